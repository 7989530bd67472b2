//! Walkers: one file each, each reading one kind of kernel structure into its part of the
//! report. They return data; they do not print, and they do not fail as a whole: what cannot be
//! read becomes a [`Remarks`] entry, the rest stays.
//!
//! No walker holds an offset or asks for a kernel version. Where a structure changed, the
//! alternatives stand next to each other as member paths, newest first.
#![forbid(unsafe_code)]

pub mod bpf;
pub mod clock;
pub mod cpus;
pub mod cputime;
pub mod dsq;
pub mod events;
pub mod exit_info;
pub mod irqs;
pub mod kernel_dump;
pub mod locks;
pub mod numa;
pub mod printk;
pub mod psi;
pub mod rq;
pub mod sched;
pub mod schedstat;
pub mod stacks;
pub mod tasks;
pub mod timers;
pub mod workqueues;

use std::time::{Duration, Instant};

use scx_postmortem_format::report::{Anomaly, Hex, LimitReached, Unavailable};

use crate::addr::Kva;
use crate::bytes::to_u64;
use crate::error::{Error, Result};
use crate::kernel::{Kernel, WalkEnd};
use crate::object::Object;

/// Entries of all run queues, or of all DSQs, together.
const MAX_LISTED: usize = 1 << 22;
/// Remarks of each kind that a report holds.
const MAX_REMARKS: usize = 1000;

/// How much of a list a report shows. Protects the reader of the report, not the analyzer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tasks per run queue or DSQ (`MAX_NODES_PER_LIST`).
    pub list: usize,
    /// Tasks with a record of their own (`MAX_ENRICHED_TASKS`).
    pub tasks: usize,
    /// User DSQs (`MAX_RHT_NODES`).
    pub dsqs: usize,
    /// BPF maps.
    pub maps: usize,
    /// Elements of one BPF map.
    pub entries: usize,
    /// Pages of one arena: each is some 10 KB of JSON.
    pub pages: usize,
    /// BPF programs.
    pub programs: usize,
    /// BPF links, and the functions of one link.
    pub links: usize,
    /// Cgroups.
    pub cgroups: usize,
    /// Records of the kernel's log, the last ones.
    pub log: usize,
    /// Frames of one stack.
    pub frames: usize,
    /// Timers.
    pub timers: usize,
    /// Works of all workqueues.
    pub works: usize,
    /// Counters of interrupts: one for each of them and each CPU.
    pub irq_counts: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            list: 4096,
            tasks: 4096,
            dsqs: 8192,
            maps: 65_536,
            entries: 4096,
            pages: 1024,
            programs: 16_384,
            links: 16_384,
            cgroups: 4096,
            log: 200,
            frames: 128,
            timers: 4096,
            works: 4096,
            irq_counts: 1 << 21,
        }
    }
}

impl Limits {
    /// The limits of each of `count` lists that are walked one after the other: together they
    /// hold no more than all tasks of a very large machine, so that lists which share their
    /// nodes cannot multiply the work. Ordinary guests never notice.
    #[must_use]
    pub fn shared_by(self, count: usize) -> Self {
        let each = (MAX_LISTED / count.max(1)).max(64);
        Self {
            list: self.list.min(each),
            ..self
        }
    }

    /// Every limit raised to `n`, none lowered.
    #[must_use]
    pub fn raised_to(self, n: usize) -> Self {
        Self {
            list: self.list.max(n),
            tasks: self.tasks.max(n),
            dsqs: self.dsqs.max(n),
            maps: self.maps.max(n),
            entries: self.entries.max(n),
            pages: self.pages.max(n),
            programs: self.programs.max(n),
            links: self.links.max(n),
            cgroups: self.cgroups.max(n),
            log: self.log.max(n),
            frames: self.frames.max(n),
            timers: self.timers.max(n),
            works: self.works.max(n),
            irq_counts: self.irq_counts.max(n),
        }
    }
}

/// What a walker has to say beside its data: what is missing and why, what looked wrong, which
/// limits cut something.
#[derive(Debug, Clone, Default)]
pub struct Remarks {
    /// Parts that are missing, with their reasons.
    pub unavailable: Vec<Unavailable>,
    /// Things that should not be.
    pub anomalies: Vec<Anomaly>,
    /// Limits that were reached.
    pub limits: Vec<LimitReached>,
    /// How long parts of the analysis took. Not in any report.
    pub times: Vec<(&'static str, Duration)>,
}

impl Remarks {
    /// Notes that `section` is missing because of `error`.
    pub fn missing(&mut self, section: &str, error: &Error) {
        let entry = Unavailable {
            section: section.to_owned(),
            code: error.missing(),
            reason: error.to_string(),
        };
        if self.unavailable.len() < MAX_REMARKS && !self.unavailable.contains(&entry) {
            self.unavailable.push(entry);
        }
    }

    /// The value, or a remark that `section` is missing.
    pub fn ok<T>(&mut self, section: &str, value: Result<T>) -> Option<T> {
        value.map_err(|error| self.missing(section, &error)).ok()
    }

    /// Notes something implausible at an address.
    pub fn anomaly(&mut self, section: &str, at: Option<Kva>, what: String) {
        let (section, address) = (section.to_owned(), at.map(|a| Hex(a.0)));
        self.push_anomaly(Anomaly {
            section,
            address,
            what,
        });
    }

    /// Once for each thing: several records can ask one object for the same member. Anomalies
    /// beyond the limit are counted in one limit remark.
    fn push_anomaly(&mut self, anomaly: Anomaly) {
        if self.anomalies.len() >= MAX_REMARKS {
            self.limit("anomalies", MAX_REMARKS, None);
        } else if !self.anomalies.contains(&anomaly) {
            self.anomalies.push(anomaly);
        }
    }

    /// Notes how a walk ended, unless it ended well. Returns whether entries may be missing.
    pub fn walk_end(&mut self, section: &str, head: Kva, end: &WalkEnd) -> bool {
        match end {
            WalkEnd::Complete => return false,
            WalkEnd::Limit(limit) => {
                self.limit(section, *limit, None);
            }
            other => {
                let what = other.anomaly().unwrap_or_default();
                self.anomaly(section, Some(head), what);
            }
        }
        true
    }

    /// Notes that a limit cut something; once for each thing.
    pub fn limit(&mut self, what: &str, limit: usize, actual: Option<usize>) {
        let entry = LimitReached {
            what: what.to_owned(),
            limit: to_u64(limit),
            actual: actual.map(to_u64),
        };
        if self.limits.len() < MAX_REMARKS && !self.limits.contains(&entry) {
            self.limits.push(entry);
        }
    }

    /// Runs a part of the analysis and notes how long it took.
    pub fn timed<T>(&mut self, what: &'static str, part: impl FnOnce(&mut Self) -> T) -> T {
        let start = Instant::now();
        let value = part(self);
        self.times.push((what, start.elapsed()));
        value
    }

    /// Takes over another walker's remarks, leaving out what was said already.
    pub fn absorb(&mut self, other: Self) {
        self.times.extend(other.times);
        for entry in other.unavailable {
            if self.unavailable.len() < MAX_REMARKS && !self.unavailable.contains(&entry) {
                self.unavailable.push(entry);
            }
        }
        other
            .anomalies
            .into_iter()
            .for_each(|anomaly| self.push_anomaly(anomaly));
        for entry in other.limits {
            if self.limits.len() < MAX_REMARKS && !self.limits.contains(&entry) {
                self.limits.push(entry);
            }
        }
    }
}

/// The members of one object that its record can do without. One that this kernel lacks is said
/// once for all objects; one that cannot be read, for this object.
pub(super) struct Members<'r, 'k> {
    section: &'static str,
    object: Object<'k>,
    remarks: &'r mut Remarks,
}

impl<'r, 'k> Members<'r, 'k> {
    /// Remarks on `object` go to parts of `section` that bear the members' names.
    pub(super) const fn of(
        section: &'static str,
        object: Object<'k>,
        remarks: &'r mut Remarks,
    ) -> Self {
        Self {
            section,
            object,
            remarks,
        }
    }

    /// The value, or a remark on `path`.
    pub(super) fn ok<T>(&mut self, path: &str, value: Result<T>) -> Option<T> {
        let error = match value {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        // Without `scx` there is neither `scx.slice` nor `scx.flags`: one remark.
        let known = match &error {
            Error::NoMember { member, .. } => path.split_once(member.as_str()),
            _ => None,
        };
        let path = known.map_or(path, |(_, rest)| path.strip_suffix(rest).unwrap_or(path));
        let section = format!("{}.{path}", self.section);
        if error.is_absent() {
            self.remarks.missing(&section, &error);
        } else {
            let at = self.object.address();
            self.remarks.anomaly(&section, Some(at), error.to_string());
        }
        None
    }

    /// What `read` makes of a member.
    pub(super) fn get<T>(
        &mut self,
        path: &'static str,
        read: impl FnOnce(Object<'k>) -> Result<T>,
    ) -> Option<T> {
        let value = self.object.member(path).and_then(read);
        self.ok(path, value)
    }

    pub(super) fn u64(&mut self, path: &'static str) -> Option<u64> {
        self.get(path, |m| m.u64())
    }

    pub(super) fn u32(&mut self, path: &'static str) -> Option<u32> {
        self.get(path, |m| m.u32())
    }

    pub(super) fn i32(&mut self, path: &'static str) -> Option<i32> {
        self.get(path, |m| m.i32())
    }
}

/// Whether a static key is on (`static_key_enabled()`). The branch itself is in the kernel's code;
/// its count is a variable.
fn static_key(kernel: &Kernel, symbol: &str) -> Result<bool> {
    // static_key_true and static_key_false have the same layout.
    let key = kernel.global(symbol, "struct static_key_false")?;
    key.member("key.enabled")?.bool()
}

/// A member that the format requires may be missing in a kernel, which leaves a remark; when it
/// cannot be read, there is no record.
fn required<T>(value: Result<T>) -> Result<Result<T>> {
    match value {
        Err(e) if !e.is_absent() => Err(e),
        other => Ok(other),
    }
}
