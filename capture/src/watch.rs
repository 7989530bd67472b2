//! What a running guest's kernel says of its scheduler, read out of its memory while it runs.
//!
//! Reads `scx_root` → `scx_sched` (`exit_kind`, `ops.name`, `watchdog_timeout`) and `scx_watchdog_timestamp`; the runnable lists
//! through the monitor's sampler. Everything read can be torn, since nothing is stopped: a value is
//! acted upon only where a wrong one does no harm, or after it was read again.

use std::collections::BTreeMap;
use std::time::Duration;

use scx_postmortem_analyze::addr::Kva;
use scx_postmortem_analyze::error::{Error, Result};
use scx_postmortem_analyze::kernel::vmcoreinfo::Vmcoreinfo;
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::monitor::{OldestAge, Sampler};
use scx_postmortem_analyze::object::Object;
use scx_postmortem_analyze::probe::Latch;
pub(crate) use scx_postmortem_analyze::probe::LatchState;
use scx_postmortem_analyze::source::Image;
use scx_postmortem_analyze::walk::{Limits, Remarks, clock, printk, sched};

use scx_postmortem_format::capture::{Note, Timeline};
use scx_postmortem_format::report::LogRecord;

use crate::machine::{GuestMemory, Touched};

/// `SCX_EXIT_ERROR`: this kind and all above it are failures.
const FIRST_ERROR: i64 = 1024;
/// How far apart the monitor's samples are.
pub(crate) const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// An age above this is a torn read (the contract's section 6.13).
const MAX_AGE: u64 = 86_400_000;

/// Sees what goes on in a guest's kernel. The coordinator knows nothing else of kernels.
pub(crate) trait Eyes {
    /// Looks for the kernel of a guest that runs, or says why it cannot be found yet. With `ticks`
    /// only for one whose jiffies went on since the last search: after a reset the memory still
    /// holds the kernel that was there before.
    fn find(&mut self, memory: &GuestMemory, ticks: bool) -> std::result::Result<Found, String>;

    /// Looks at the guest while it runs, with `ages` also for how long tasks have waited. `None`: what was read was torn; look again.
    fn look(&mut self, ages: bool) -> Option<Seen>;

    /// How long tasks of the attached scheduler have waited, or its watchdog has not run.
    fn ages(&self) -> Option<Ages>;

    /// The scheduler that has failed, looked for among all of them. Only of a guest that stands
    /// still.
    fn failure(&self) -> Option<Scheduler>;

    /// The last failure of a scheduler that the kernel's log tells of: the record's number, and what
    /// it says.
    fn logged(&self) -> Option<(u64, String)>;

    /// How long the guest has run by its own clock.
    fn uptime(&self) -> Option<Duration>;

    /// Takes a sample for the timeline, so long after the start.
    fn sample(&mut self, at: Duration);

    /// The return address that a function finds on its stack when it is entered.
    fn return_address(&self, rsp: u64) -> Option<u64>;
}

/// The kernel that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// `uname -r`.
    pub(crate) release: String,
    /// The text of VMCOREINFO.
    pub(crate) vmcoreinfo: Vec<u8>,
    pub(crate) has_sched_ext: bool,
    /// Entry of `scx_dump_state`: where the kernel goes once a scheduler has failed, and before it
    /// touches any queue.
    pub(crate) dump_entry: Option<u64>,
    /// Entry of `kmsg_dump_desc`: where the kernel goes in a panic or an oops, once it has written
    /// its message.
    pub(crate) log_dump: Option<u64>,
    /// Why an early image cannot be waited for.
    pub(crate) no_ages: Option<String>,
}

/// What was seen at one look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The scheduler that is attached.
    pub(crate) scheduler: Option<Scheduler>,
    /// The longest time that a task has been runnable for, or that the watchdog has not run for,
    /// in jiffies.
    pub(crate) oldest_age: Option<u64>,
    /// Half of the watchdog's limit, in jiffies.
    pub(crate) half_timeout: Option<u64>,
    /// There are more runnable tasks than were looked at: an older one may be among the rest.
    pub(crate) cut: bool,
    /// What the latch of the probe says.
    pub(crate) latch: LatchState,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            scheduler: None,
            oldest_age: None,
            half_timeout: None,
            cut: false,
            latch: LatchState::NotResolved,
        }
    }
}

/// How long something has waited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ages {
    /// The longest time that a task has been runnable for, or that the watchdog has not run for, in
    /// jiffies.
    pub(crate) age: u64,
    /// Half of the watchdog's limit, in jiffies.
    pub(crate) half: u64,
    /// There are more runnable tasks than were looked at.
    pub(crate) cut: bool,
    /// It is the watchdog that has not run.
    pub(crate) watchdog: bool,
    /// The task that waits: `comm[pid]`.
    pub(crate) task: Option<String>,
    /// Jiffies of a second.
    pub(crate) hz: Option<u64>,
}

impl Ages {
    /// Who has waited, and how long, for people.
    pub(crate) fn words(&self) -> String {
        let time = |jiffies: u64| match self.hz {
            Some(hz) if hz > 0 => {
                let tenths = u128::from(jiffies) * 10 / u128::from(hz);
                format!("{}.{} s", tenths / 10, tenths % 10)
            }
            _ => format!("{jiffies} jiffies"),
        };
        let (age, half) = (time(self.age), time(self.half));
        let who = match (&self.task, self.watchdog) {
            (_, true) => format!("the watchdog has not run for {age}"),
            (Some(task), _) => format!("{task} has been runnable for {age}"),
            (None, _) => format!("a task has been runnable for {age}"),
        };
        format!("{who}, half of the watchdog's limit is {half}")
    }
}

/// A scheduler.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scheduler {
    /// Its `struct scx_sched`.
    pub(crate) at: u64,
    /// `ops.name`.
    pub(crate) name: String,
    /// `exit_kind`: 0 while all is well.
    pub(crate) exit_kind: i64,
    /// Its name.
    pub(crate) exit_name: String,
    /// Where it is.
    pub(crate) exit_kind_at: u64,
    /// Whether that kind is a failure.
    pub(crate) failed: bool,
    /// Where the kernel notes the kind once more when it has written down the reason
    /// (`scx_exit_info.kind`).
    pub(crate) recorded_at: Option<u64>,
    /// Whether it has.
    pub(crate) recorded: bool,
}

impl Scheduler {
    /// Name and exit kind, for people.
    pub(crate) fn words(&self) -> String {
        format!("{}: {}", self.name, self.exit_name)
    }
}

/// The kernel of a running guest.
#[derive(Default)]
pub(crate) struct Live {
    known: Option<Known>,
    sampler: Option<Sampler>,
    timeline: Option<Timeline>,
    /// The probe's, once it was found; whether it is worth looking for.
    latch: Option<Latch>,
    probe: bool,
    /// The scheduler that was there when it was looked for.
    searched_at: Option<u64>,
    /// By VMCOREINFO: the jiffies that kernels were last seen with, while it is not known which of
    /// them runs.
    jiffies: BTreeMap<String, u64>,
}

struct Known {
    kernel: Kernel,
    first_error: i64,
}

impl Eyes for Live {
    fn find(&mut self, memory: &GuestMemory, ticks: bool) -> std::result::Result<Found, String> {
        let touched = Touched::new(memory).map_err(|e| e.to_string())?;
        let mut why = "no VMCOREINFO in the guest's memory yet".to_owned();
        for candidate in Vmcoreinfo::scan(&touched) {
            let own = memory.share().map_err(|e| e.to_string())?;
            let image = Image::live(Box::new(own), candidate.text().as_bytes().to_vec());
            match Kernel::find(image, &Overrides::default()) {
                Ok(kernel) if ticks && !self.has_ticked(&kernel) => {
                    why = "the only kernel in memory does not run".into();
                }
                Ok(kernel) => return Ok(self.take(kernel)),
                Err(reason) => why = reason,
            }
        }
        Err(why)
    }

    fn look(&mut self, ages: bool) -> Option<Seen> {
        let known = self.known.as_ref()?;
        let scheduler = known.attached().ok()?;
        let ages = scheduler.as_ref().filter(|s| ages && s.exit_kind == 0);
        let ages = ages.and_then(|s| Some(self.ages_of(known, s)?.0));
        // It is loaded before any scheduler, and looking for it takes a walk over all maps.
        let at = scheduler.as_ref().map(|scheduler| scheduler.at);
        if self.probe && self.latch.is_none() && at.is_some() && at != self.searched_at {
            self.latch = Latch::find(&known.kernel);
            self.searched_at = at;
        }
        let latch = self.latch.as_ref();
        Some(Seen {
            latch: latch.map_or(LatchState::NotResolved, |latch| latch.state(&known.kernel)),
            oldest_age: ages.as_ref().map(|ages| ages.age),
            half_timeout: ages.as_ref().map(|ages| ages.half),
            cut: ages.is_some_and(|ages| ages.cut),
            scheduler,
        })
    }

    fn ages(&self) -> Option<Ages> {
        let known = self.known.as_ref()?;
        let (ages, task) = self.ages_of(known, &known.attached().ok()??)?;
        Some(Ages {
            task: task.and_then(|at| known.task(at).ok()),
            hz: known.kernel.hz().ok().map(|(hz, _)| hz),
            ..ages
        })
    }

    fn failure(&self) -> Option<Scheduler> {
        let known = self.known.as_ref()?;
        let mut remarks = Remarks::default();
        let found = sched::find(&known.kernel, &Limits::default(), &mut remarks);
        let all = found.all.iter();
        let mut all = all.filter_map(|sched| known.of(sched.object).ok());
        all.find(|scheduler| scheduler.failed)
    }

    fn logged(&self) -> Option<(u64, String)> {
        let known = self.known.as_ref()?;
        let mut remarks = Remarks::default();
        let records = printk::read(&known.kernel, &whole_log(), &mut remarks);
        let failure = records.into_iter().rev().find(is_failure)?;
        Some((failure.seq, failure.text.trim().to_owned()))
    }

    fn uptime(&self) -> Option<Duration> {
        let known = self.known.as_ref()?;
        clock::uptime_ns(&known.kernel)
            .ok()
            .map(Duration::from_nanos)
    }

    fn sample(&mut self, at: Duration) {
        if let (Some(known), Some(sampler), Some(timeline)) =
            (&self.known, &mut self.sampler, &mut self.timeline)
        {
            let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
            timeline.push(&sampler.sample(&known.kernel, at_ms));
        }
    }

    fn return_address(&self, rsp: u64) -> Option<u64> {
        let at = self.known.as_ref()?.kernel.read_ptr(Kva(rsp)).ok()?;
        (!at.is_null()).then_some(at.0)
    }
}

/// All of the kernel's log: what has failed may be far behind its end by the time that it is looked
/// for. The ring's own size bounds that.
fn whole_log() -> Limits {
    Limits {
        log: usize::MAX,
        ..Limits::default()
    }
}

/// Whether a record is the end of a scheduler by an error, as `scx_disable_workfn()` has it
/// (kernel/sched/ext.c): `sched_ext: BPF scheduler "NAME" disabled (REASON)`, an error only when it
/// was one.
fn is_failure(record: &LogRecord) -> bool {
    const ERR: u8 = 3;
    record.facility == 0
        && record.level <= ERR
        && record.text.starts_with("sched_ext: ")
        && record.text.contains(" disabled (")
}

impl Live {
    /// With a probe in the guest to look for, or none.
    pub(crate) fn new(probe: bool) -> Self {
        Self {
            probe,
            ..Self::default()
        }
    }

    /// The samples, for a capture.
    pub(crate) fn timeline(&self) -> Option<Note> {
        let timeline = self.timeline.as_ref().filter(|t| !t.is_empty());
        timeline.map(Timeline::to_note)
    }

    /// Whether a kernel's jiffies are others than when it was last asked for.
    fn has_ticked(&mut self, kernel: &Kernel) -> bool {
        let Ok(now) = clock::jiffies(kernel) else {
            return false;
        };
        let text = kernel.vmcoreinfo.text().to_owned();
        let before = self.jiffies.insert(text, now);
        before.is_some_and(|before| before != now)
    }

    /// The longest wait without names, and the `struct task_struct` that waits.
    fn ages_of(&self, known: &Known, scheduler: &Scheduler) -> Option<(Ages, Option<Kva>)> {
        let oldest: OldestAge = self.sampler.as_ref()?.oldest_age(&known.kernel)?;
        let (watchdog, half) = known.watchdog(Kva(scheduler.at)).ok()?;
        let waiting = Some(oldest.jiffies).filter(|&age| age <= MAX_AGE);
        let waiting = waiting.unwrap_or(0);
        let ages = Ages {
            age: watchdog.max(waiting),
            half,
            cut: oldest.cut,
            watchdog: watchdog > waiting,
            ..Ages::default()
        };
        Some((ages, oldest.task))
    }

    fn take(&mut self, kernel: Kernel) -> Found {
        let names = [
            "scx_dump_state",
            "scx_dump_state.isra.0",
            "scx_dump_state.constprop.0",
        ];
        let dump = names.iter().find_map(|name| kernel.symbol(name).ok());
        // Without the description before 6.12.
        let log_dump = ["kmsg_dump_desc", "kmsg_dump"];
        let log_dump = log_dump.iter().find_map(|name| kernel.symbol(name).ok());
        let has_sched_ext = scx_postmortem_analyze::analysis::has_sched_ext(&kernel);
        // What samples lack of waiting tasks, or of the jiffies that their ages count in, ages lack.
        let sampler = Sampler::new(&kernel);
        let no_ages = match &sampler {
            Ok(sampler) => {
                let mut missing = sampler.missing().iter();
                let ages = ["ages: ", "waiting tasks: "];
                missing
                    .find(|why| ages.iter().any(|of| why.starts_with(of)))
                    .cloned()
            }
            Err(why) => Some(why.to_string()),
        };
        let found = Found {
            release: kernel.release().to_owned(),
            vmcoreinfo: kernel.vmcoreinfo.text().as_bytes().to_vec(),
            dump_entry: dump.filter(|_| has_sched_ext).map(|at| at.0),
            log_dump: log_dump.map(|at| at.0),
            no_ages,
            has_sched_ext,
        };
        // Without run queues there is nothing to sample.
        self.sampler = sampler.ok();
        self.timeline = self.sampler.as_ref().map(|_| {
            let every = SAMPLE_EVERY.as_millis();
            Timeline::new(u64::try_from(every).unwrap_or(u64::MAX))
        });
        let first_error = kernel.constant("enum scx_exit_kind", "SCX_EXIT_ERROR");
        // A probe of an earlier boot is not where this one's is.
        (self.latch, self.searched_at) = (None, None);
        self.known = Some(Known {
            first_error: first_error.unwrap_or(FIRST_ERROR),
            kernel,
        });
        found
    }
}

impl Known {
    /// The scheduler that is attached, if any.
    fn attached(&self) -> Result<Option<Scheduler>> {
        let root = self.kernel.read_ptr(self.kernel.symbol("scx_root")?)?;
        if root.is_null() {
            return Ok(None);
        }
        let sched = self.kernel.object("struct scx_sched", root)?;
        self.of(sched).map(Some)
    }

    fn of(&self, sched: Object<'_>) -> Result<Scheduler> {
        let kind = sched.first_of(&["exit_kind.counter", "exit_kind"])?;
        let exit_kind = kind.i64()?;
        let ty = self.kernel.btf.find("enum scx_exit_kind").ok();
        let name = ty.and_then(|ty| self.kernel.btf.enumerator_name(ty, exit_kind));
        if ty.is_some() && name.is_none() {
            let what =
                format!("the exit kind is {exit_kind}, which enum scx_exit_kind does not have");
            return Err(Error::Damaged(what));
        }
        // Filled behind the exit kind, and before the kernel's dump.
        let record = sched.member("exit_info").and_then(|info| info.ptr());
        let record = record.ok().filter(|at| !at.is_null()).and_then(|at| {
            let kind = self.kernel.object("struct scx_exit_info", at).ok()?;
            let kind = kind.member("kind").ok()?;
            Some((kind.address().0, kind.i64().ok()? != 0))
        });
        Ok(Scheduler {
            recorded_at: record.map(|(at, _)| at),
            recorded: record.is_some_and(|(_, recorded)| recorded),
            at: sched.address().0,
            name: sched.member("ops.name")?.text()?,
            exit_kind,
            exit_name: name.map_or_else(|| format!("exit kind {exit_kind}"), str::to_owned),
            exit_kind_at: kind.address().0,
            failed: exit_kind >= self.first_error,
        })
    }

    /// A task's name and number.
    fn task(&self, at: Kva) -> Result<String> {
        let task = self.kernel.object("struct task_struct", at)?;
        let (comm, pid) = (task.member("comm")?.text()?, task.member("pid")?.u32()?);
        Ok(format!("{comm}[{pid}]"))
    }

    /// How long the watchdog has not run, where that says something, and half its limit, in jiffies
    /// (the contract's section 6.13).
    fn watchdog(&self, sched: Kva) -> Result<(u64, u64)> {
        let kernel = &self.kernel;
        let sched = kernel.object("struct scx_sched", sched)?;
        // A member of each scheduler from 7.1 on.
        let timeout = match sched.member("watchdog_timeout") {
            Ok(own) => own.u64()?,
            Err(_) => kernel.read_u64(kernel.symbol("scx_watchdog_timeout")?)?,
        };
        let now = clock::jiffies(kernel)?;
        let checked = kernel.read_u64(kernel.symbol("scx_watchdog_timestamp")?)?;
        // The watchdog runs every half of the limit, and timers come an eighth late: up to there
        // its age says nothing, where the contract would take the half.
        let late = timeout - timeout / 4;
        let age = now.saturating_sub(checked);
        let tells = checked != 0 && (late..=MAX_AGE).contains(&age);
        Ok((if tells { age } else { 0 }, timeout / 2))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn an_end_by_an_error_is_told_from_one_in_order() {
        let says = |level, facility, text: &str| {
            is_failure(&LogRecord {
                level,
                facility,
                text: text.into(),
                ..LogRecord::default()
            })
        };
        let failed = "sched_ext: BPF scheduler \"foo\" disabled (runnable task stall)";
        let gone = "sched_ext: BPF scheduler \"foo\" disabled (unregistered from user space)";
        assert!(says(3, 0, failed));
        assert!(!says(6, 0, gone));
        assert!(!says(3, 1, failed), "written by a program");
        assert!(!says(3, 0, "sched_ext: foo: bar[1] failed to run for 30s"));
    }

    #[test]
    fn all_of_the_log_is_looked_at() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
        let image = Image::open(&corpus.join("stall-6.18/guest.core.zst")).unwrap();
        let kernel = Kernel::find(image, &Overrides::default()).unwrap();
        let mut remarks = Remarks::default();
        let records = printk::read(&kernel, &whole_log(), &mut remarks);
        // The ring of this guest has room for all that it has said.
        assert!(records.len() > Limits::default().log, "{}", records.len());
        assert_eq!(records[0].seq, 0);
        let last = printk::read(&kernel, &Limits::default(), &mut remarks);
        assert_eq!(last.last(), records.last());
    }

    #[test]
    fn an_age_names_who_waits_and_for_how_long() {
        let ages = Ages {
            age: 2002,
            half: 2000,
            task: Some("victim[7]".into()),
            hz: Some(250),
            ..Ages::default()
        };
        assert_eq!(
            ages.words(),
            "victim[7] has been runnable for 8.0 s, half of the watchdog's limit is 8.0 s"
        );
        let unnamed = Ages {
            task: None,
            hz: None,
            ..ages.clone()
        };
        assert_eq!(
            unnamed.words(),
            "a task has been runnable for 2002 jiffies, half of the watchdog's limit is 2000 jiffies"
        );
        let watchdog = Ages {
            watchdog: true,
            ..ages
        };
        assert!(
            watchdog
                .words()
                .starts_with("the watchdog has not run for 8.0 s")
        );
    }
}
