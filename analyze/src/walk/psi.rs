//! Pressure stall information: of the system and of every cgroup.
//!
//! Mirrors `psi_show()` (kernel/sched/psi.c): `struct psi_group`, its `avg` and its
//! `total[PSI_AVGS]`, indexed by `enum psi_states`. Groups are `psi_system` and `cgroup.psi` of
//! what `css_for_each_descendant_pre()` visits from `cgrp_dfl_root` (kernel/cgroup/cgroup.c).
//!
//! `psi_show()` first folds in what CPUs counted since the last time (`collect_percpu_times()`,
//! `update_averages()`). That needs the clock of each CPU at the very moment; here is what the
//! kernel had stored, and when.

use std::collections::HashSet;

use scx_postmortem_format::capture::PsiSample;
use scx_postmortem_format::report::{
    CgroupPressure, CgroupPsiStat, Hex, Pressure, PressureGroup, PressureInfo, PressureLine,
    Unavailable, UnavailableCode,
};

use super::{Limits, Remarks, static_key};
use crate::addr::Kva;
use crate::bytes::{le_u64, to_u64, to_usize};
use crate::error::{Error, Result};
use crate::kernel::{Kernel, WalkEnd};
use crate::object::Object;

/// `CSS_ONLINE` of an unnamed enum in include/linux/cgroup-defs.h: without it the cgroup has been
/// removed (`cgroup_is_dead()`) and waits for its last reference.
const CSS_ONLINE: u32 = 1 << 1;
/// `NAME_MAX`, and the NUL.
const MAX_NAME: usize = 256;
/// Bytes of a path: deeper nesting than that is damage.
const MAX_PATH: usize = 1 << 14;
/// States of a `psi_group`: 6 or 7 so far.
const MAX_STATES: u64 = 16;
/// `FSHIFT`: averages have 11 bits behind the point (include/linux/sched/loadavg.h).
const FSHIFT: u32 = 11;

/// What was found.
#[derive(Default)]
pub struct Psi {
    /// The contract's rows: cgroups without children, interrupts only.
    pub leaves: Vec<CgroupPsiStat>,
    /// Our own.
    pub info: Option<PressureInfo>,
}

/// Where the states are in a group's arrays, in this kernel.
struct States {
    /// How many are averaged: all but `PSI_NONIDLE`.
    count: u64,
    cpu: (Option<u64>, Option<u64>),
    memory: (Option<u64>, Option<u64>),
    io: (Option<u64>, Option<u64>),
    irq_full: Option<u64>,
}

impl States {
    fn find(kernel: &Kernel, remarks: &mut Remarks) -> Result<Self> {
        let state = |name: &str| -> Result<u64> {
            let value = kernel.constant("enum psi_states", name)?;
            match u64::try_from(value) {
                Ok(value) if value <= MAX_STATES => Ok(value),
                _ => Err(Error::Implausible {
                    what: format!("psi_states.{name}"),
                    found: value.to_string(),
                    why: "0 to 16",
                }),
            }
        };
        let count = state("PSI_NONIDLE")?;
        let mut some_and_full = |resource: &str| {
            let one = |kind| state(&format!("PSI_{resource}_{kind}"));
            (
                remarks.ok("psi.states", one("SOME")),
                remarks.ok("psi.states", one("FULL")),
            )
        };
        Ok(Self {
            count,
            cpu: some_and_full("CPU"),
            memory: some_and_full("MEM"),
            io: some_and_full("IO"),
            irq_full: match state("PSI_IRQ_FULL") {
                Ok(state) => Some(state),
                Err(error) => {
                    let reason = format!(
                        "{error}: it does not account for the time of interrupts (CONFIG_IRQ_TIME_ACCOUNTING)"
                    );
                    for section in ["cgroup_psi", "psi.irq"] {
                        remarks.unavailable.push(Unavailable {
                            section: section.to_owned(),
                            code: error.missing(),
                            reason: reason.clone(),
                        });
                    }
                    None
                }
            },
        })
    }
}

/// The arrays of one group.
struct Figures {
    updated_ns: u64,
    /// Averages of three spans per state, 11 bits behind the point.
    avg: Vec<u64>,
    /// Totals per aggregator and state, ns; `PSI_AVGS` is the first aggregator.
    total: Vec<u64>,
    /// Where the averages' totals begin in it.
    avgs_at: u64,
}

impl Figures {
    fn read(group: &Object<'_>, states: &States) -> Result<Self> {
        let kernel = group.kernel();
        // BTF has arrays of arrays flattened: avg[states][3], total[aggregators][states].
        let flat = |path, expected: u64| -> Result<Vec<u64>> {
            let values = group.member(path)?.u64s(256)?;
            if values.len() == to_usize(expected) {
                return Ok(values);
            }
            Err(Error::Implausible {
                what: format!("the length of psi_group.{path}"),
                found: values.len().to_string(),
                why: "it goes with the states of enum psi_states",
            })
        };
        let aggregators = kernel.constant("enum psi_aggregators", "NR_PSI_AGGREGATORS")?;
        let avgs = kernel.constant("enum psi_aggregators", "PSI_AVGS")?;
        let small = |n: i64| u64::try_from(n).unwrap_or(MAX_STATES).min(MAX_STATES);
        Ok(Self {
            updated_ns: group.member("avg_last_update")?.u64()?,
            avg: flat("avg", states.count * 3)?,
            total: flat("total", states.count * small(aggregators))?,
            avgs_at: states.count * small(avgs),
        })
    }

    fn avg(&self, state: u64, span: u64) -> Option<u64> {
        self.avg.get(to_usize(state * 3 + span)).copied()
    }

    fn total(&self, state: u64) -> Option<u64> {
        self.total.get(to_usize(self.avgs_at + state)).copied()
    }

    fn line(&self, state: Option<u64>) -> Option<PressureLine> {
        let state = state?;
        Some(PressureLine {
            avg10: percent(self.avg(state, 0)?),
            avg60: percent(self.avg(state, 1)?),
            avg300: percent(self.avg(state, 2)?),
            total_ns: self.total(state)?,
        })
    }

    fn lines(&self, (some, full): (Option<u64>, Option<u64>)) -> Option<Pressure> {
        let pressure = Pressure {
            some: self.line(some),
            full: self.line(full),
        };
        (pressure != Pressure::default()).then_some(pressure)
    }

    fn group(&self, states: &States, is_system: bool) -> PressureGroup {
        // CPU FULL is undefined at the system level.
        let cpu_full = states.cpu.1.filter(|_| !is_system);
        PressureGroup {
            updated_ns: Some(self.updated_ns),
            cpu: self.lines((states.cpu.0, cpu_full)),
            memory: self.lines(states.memory),
            io: self.lines(states.io),
            irq: self.lines((None, states.irq_full)),
        }
    }
}

/// `LOAD_INT` and `LOAD_FRAC`: cut off, not rounded.
fn percent(raw: u64) -> String {
    let whole = raw >> FSHIFT;
    let frac = ((raw & ((1 << FSHIFT) - 1)) * 100) >> FSHIFT;
    format!("{whole}.{frac:02}")
}

/// The pressure of the system alone, resolved once: for a monitor that reads it many times.
#[derive(Debug)]
pub struct System {
    at: Kva,
    count: u64,
    aggregators: u64,
    avgs_at: u64,
    states: Vec<(&'static str, u64)>,
}

impl System {
    /// Finds it.
    ///
    /// # Errors
    /// When this kernel has no pressure stall information, or it is off.
    pub fn find(kernel: &Kernel) -> Result<Self> {
        let group = group_of_system(kernel)?;
        if static_key(kernel, "psi_disabled")? {
            return Err(Error::Implausible {
                what: "the static key psi_disabled".into(),
                found: "on".into(),
                why: "off: the kernel was started with psi=0, or without psi=1",
            });
        }
        let states = States::find(kernel, &mut Remarks::default())?;
        let figures = Figures::read(&group, &states)?;
        let aggregators = to_u64(figures.total.len()) / states.count.max(1);
        let named = [
            ("cpu_some", states.cpu.0),
            ("memory_some", states.memory.0),
            ("memory_full", states.memory.1),
            ("io_some", states.io.0),
            ("io_full", states.io.1),
            ("irq_full", states.irq_full),
        ];
        let named = named
            .into_iter()
            .filter_map(|(name, state)| Some((name, state?)));
        Ok(Self {
            at: group.address(),
            count: states.count,
            aggregators,
            avgs_at: figures.avgs_at,
            states: named.collect(),
        })
    }

    /// Reads it, as the kernel last stored it.
    ///
    /// # Errors
    /// When the memory cannot be read.
    pub fn read(&self, kernel: &Kernel) -> Result<Vec<PsiSample>> {
        let group = kernel.object("struct psi_group", self.at)?;
        let avg = group.member("avg")?.address();
        let avg = kernel.read_bytes(avg, self.count * 3 * 8)?;
        let total = group.member("total")?.address();
        let total = kernel.read_bytes(total, self.count * self.aggregators * 8)?;
        let number = |bytes: &[u8], index: u64| le_u64(bytes, to_usize(index * 8));
        let states = self.states.iter().map(|&(what, state)| {
            let total = number(&total, self.avgs_at + state);
            crate::monitor::psi_sample(what, number(&avg, state * 3), total)
        });
        Ok(states.collect())
    }
}

/// Reads all groups.
pub fn read(kernel: &Kernel, limits: &Limits, remarks: &mut Remarks) -> Psi {
    let system = match group_of_system(kernel) {
        Ok(group) => group,
        Err(error) => {
            let reason = match error {
                Error::NoSymbol(_) | Error::NoType(_) => {
                    format!("{error}: it was built without pressure stall information (CONFIG_PSI)")
                }
                _ => error.to_string(),
            };
            missing(remarks, error.missing(), &reason);
            return Psi::default();
        }
    };
    match static_key(kernel, "psi_disabled") {
        Ok(false) => {}
        Ok(true) => {
            let reason = "the static key psi_disabled is on: this kernel was started without pressure stall information (psi=)";
            missing(remarks, UnavailableCode::NotApplicable, reason);
            return Psi::default();
        }
        // The figures are there all the same; whether they move is not known.
        Err(error) => remarks.missing("psi.disabled", &error),
    }
    let states = match States::find(kernel, remarks) {
        Ok(states) => states,
        Err(error) => {
            missing(remarks, error.missing(), &error.to_string());
            return Psi::default();
        }
    };
    let figures = Figures::read(&system, &states);
    let figures = remarks.ok("psi.system", figures);
    let mut psi = Psi {
        leaves: Vec::new(),
        info: Some(PressureInfo {
            system: figures.map(|figures| figures.group(&states, true)),
            cgroups: Vec::new(),
        }),
    };
    let root = kernel
        .global("cgrp_dfl_root", "struct cgroup_root")
        .and_then(|root| root.member("cgrp"));
    if let Some(root) = remarks.ok("psi.cgroups", root) {
        cgroups(&root, &states, limits, &mut psi, remarks);
    }
    psi
}

/// Nothing at all could be had, in both parts of the report.
fn missing(remarks: &mut Remarks, code: UnavailableCode, reason: &str) {
    for section in ["cgroup_psi", "psi"] {
        remarks.unavailable.push(Unavailable {
            section: section.to_owned(),
            code,
            reason: reason.to_owned(),
        });
    }
}

fn group_of_system(kernel: &Kernel) -> Result<Object<'_>> {
    let group = kernel.global("psi_system", "struct psi_group")?;
    // Without CONFIG_PSI the struct is empty.
    group.member("avg")?;
    Ok(group)
}

/// What a walk over the tree has met.
struct Seen {
    cgroups: HashSet<Kva>,
    /// Nodes of lists that may still be visited: lists that share them must not multiply the work.
    budget: usize,
    /// Cgroups in the report.
    limit: usize,
}

/// All cgroups below `root`, parents first.
fn cgroups<'k>(
    root: &Object<'k>,
    states: &States,
    limits: &Limits,
    psi: &mut Psi,
    remarks: &mut Remarks,
) {
    let mut seen = Seen {
        cgroups: HashSet::from([root.address()]),
        // Removed cgroups are on the lists too.
        budget: limits.cgroups.saturating_mul(2),
        limit: limits.cgroups,
    };
    let mut rows = Vec::new();
    let mut stack: Vec<(Object<'k>, String)> = Vec::new();
    let (first, _) = children(root, "", &mut seen, remarks);
    stack.extend(first.into_iter().rev());
    while let Some((cgroup, path)) = stack.pop() {
        if rows.len() >= limits.cgroups {
            remarks.limit("psi.cgroups", limits.cgroups, None);
            break;
        }
        let (below, whole) = children(&cgroup, &path, &mut seen, remarks);
        let is_leaf = below.is_empty() && whole;
        stack.extend(below.into_iter().rev());
        let at = cgroup.address();
        let serial_nr = cgroup.member("self.serial_nr").and_then(|nr| nr.u64());
        let serial_nr = note(remarks, at, serial_nr);
        let group = cgroup.member("psi").and_then(|psi| psi.deref());
        let group = note(remarks, at, group);
        let figures = group.as_ref().map(|group| Figures::read(group, states));
        let figures = figures.and_then(|figures| note(remarks, at, figures));
        let enabled = group.map(|group| group.member("enabled").and_then(|e| e.bool()));
        let enabled = enabled.and_then(|enabled| note(remarks, at, enabled));
        let irq = figures.as_ref().zip(states.irq_full);
        if let Some((figures, state)) = irq.filter(|_| is_leaf)
            && let (Some(serial_nr), Some(avg10_raw), Some(total_ns)) =
                (serial_nr, figures.avg(state, 0), figures.total(state))
        {
            psi.leaves.push(CgroupPsiStat {
                cgroup_kva: at.0,
                total_ns,
                avg10_raw,
                serial_nr,
            });
        }
        rows.push(CgroupPressure {
            path,
            cgroup_kva: Hex(at.0),
            serial_nr,
            disabled: enabled == Some(false),
            pressure: figures.map(|figures| figures.group(states, false)),
        });
    }
    if let Some(info) = &mut psi.info {
        info.cgroups = rows;
    }
}

/// What this kernel lacks is said once, what cannot be read for each cgroup.
fn note<T>(remarks: &mut Remarks, at: Kva, value: Result<T>) -> Option<T> {
    match value {
        Ok(value) => Some(value),
        Err(error) if error.is_absent() => {
            remarks.missing("psi.cgroups", &error);
            None
        }
        Err(error) => {
            remarks.anomaly("psi.cgroups", Some(at), error.to_string());
            None
        }
    }
}

/// The live children of a cgroup with their paths, and whether these are all.
fn children<'k>(
    cgroup: &Object<'k>,
    path: &str,
    seen: &mut Seen,
    remarks: &mut Remarks,
) -> (Vec<(Object<'k>, String)>, bool) {
    let kernel = cgroup.kernel();
    let at = cgroup.address();
    let Some(head) = note(remarks, at, cgroup.member("self.children")) else {
        return (Vec::new(), false);
    };
    let walk = kernel.list(head.address(), seen.budget);
    seen.budget -= walk.items.len().min(seen.budget);
    let mut whole = match walk.end {
        WalkEnd::Limit(_) => {
            remarks.limit("psi.cgroups", seen.limit, None);
            false
        }
        end => !remarks.walk_end("psi.cgroups", head.address(), &end),
    };
    let mut found = Vec::new();
    for node in walk.items {
        let child = named_child(kernel, node, path);
        match note(remarks, node, child) {
            Some(None) => {}
            Some(Some((child, path))) if seen.cgroups.insert(child.address()) => {
                found.push((child, path));
            }
            Some(Some((child, _))) => {
                whole = false;
                let what = "a cgroup that is in the tree already".to_owned();
                remarks.anomaly("psi.cgroups", Some(child.address()), what);
            }
            None => whole = false,
        }
    }
    (found, whole)
}

/// The cgroup on a list of children, unless it has been removed.
fn named_child<'k>(
    kernel: &'k Kernel,
    node: Kva,
    parent: &str,
) -> Result<Option<(Object<'k>, String)>> {
    let child = kernel.entry("struct cgroup", "self.sibling", node)?;
    if child.member("self.flags")?.u32()? & CSS_ONLINE == 0 {
        return Ok(None);
    }
    let name = child.member("kn")?.deref()?.member("name")?;
    let name = name.string(MAX_NAME)?.unwrap_or_default();
    let path = format!("{parent}/{name}");
    if path.len() > MAX_PATH {
        return Err(Error::Implausible {
            what: "the path of a cgroup".into(),
            found: format!("{} bytes", path.len()),
            why: "at most 16 KiB",
        });
    }
    Ok(Some((child, path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_print_as_the_kernel_does() {
        assert_eq!(percent(0), "0.00");
        // 50.79 as /proc/pressure/cpu had it: 50 + 1632/2048 = 50.796…, cut off.
        assert_eq!(percent(50 << 11 | 1632), "50.79");
        assert_eq!(percent(100 << 11), "100.00");
    }
}
