//! One report against another: what changed, what stood still. The early image of a dual capture
//! against the late one, or any two.
//!
//! Only two reports are compared, so that whatever is said can be checked in them. In two of one
//! boot things are the same when their address in the kernel and their name or id are. In others
//! they are when their names and ids are; the addresses of one boot mean nothing in another, and
//! those that values hold are the same when they differ only by where the kernel and its memory
//! were put ([`Space`]).

mod values;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

use scx_postmortem_format::report::{
    CounterChange, CpuChange, CpuInfo, CurrTask, DiffSide, DsqChange, DsqInfo, EarlyLateDiff,
    EventCounter, FailureDumpReport, Hex, KernelInfo, MapChange, MapInfo, NamedTask,
    PostmortemReport, RanTask, ReportsDiff, SchedulerChange, TaskInfo, WaitingChange,
};

use self::values::Space;

/// Tasks of a kind that are listed.
const MAX_TASKS: usize = 200;
/// Tasks of which it is said how long they ran.
const MAX_RAN: usize = 20;

/// The first of each key. Reports can come from anywhere: a search of the list for each element of
/// another one would take as long as both lists multiplied.
fn firsts<'t, T, K: Eq + Hash>(list: &'t [T], key: impl Fn(&'t T) -> K) -> HashMap<K, &'t T> {
    let mut firsts = HashMap::with_capacity(list.len());
    for element in list {
        firsts.entry(key(element)).or_insert(element);
    }
    firsts
}

/// Compares the two reports of a dual capture.
#[must_use]
pub fn compare(early: &FailureDumpReport, late: &FailureDumpReport) -> EarlyLateDiff {
    Pair::new(early, late, false).compare()
}

/// Compares any two reports. `names` say what each is.
#[must_use]
pub fn compare_reports(
    a: &FailureDumpReport,
    b: &FailureDumpReport,
    names: [&str; 2],
) -> ReportsDiff {
    let side = |report: &FailureDumpReport, name: &str| {
        let own = report.postmortem.as_deref();
        let kernel = own.and_then(|own| own.kernel.as_ref());
        let scheduler = own.and_then(|own| own.scheduler.as_ref());
        DiffSide {
            name: name.to_owned(),
            kernel: kernel.and_then(|k| k.release.clone()),
            uptime_ns: kernel.and_then(|k| k.uptime_ns),
            scheduler: scheduler
                .and_then(|s| s.ops_name.clone())
                .or_else(|| report.active_obj_name.clone()),
            headline: own.map(|own| own.headline.clone()).unwrap_or_default(),
        }
    };
    let [name_a, name_b] = names;
    ReportsDiff {
        a: side(a, name_a),
        b: side(b, name_b),
        diff: Pair::new(a, b, !one_boot(a, b)).compare(),
    }
}

/// Whether both are of one boot: of one kernel, put at the same places, with the same first
/// process, and the second not before the first.
fn one_boot(a: &FailureDumpReport, b: &FailureDumpReport) -> bool {
    let (Some(a), Some(b)) = (&a.postmortem, &b.postmortem) else {
        return false;
    };
    let (Some(ka), Some(kb)) = (&a.kernel, &b.kernel) else {
        return false;
    };
    let place = |k: &KernelInfo| {
        let at = (k.kaslr_offset, k.phys_base, k.page_offset_base);
        (k.release.clone(), k.build_id.clone(), k.cmdline.clone(), at)
    };
    let first = |own: &PostmortemReport| {
        let first = own.tasks.iter().find(|task| task.pid == 1);
        first.map(|task| task.kva)
    };
    place(ka) == place(kb)
        && ka.page_offset_base.is_some()
        && first(a).is_some()
        && first(a) == first(b)
        && ka.uptime_ns <= kb.uptime_ns
}

/// The block of our own, or what of it the shared format tells, for reports of other tools.
fn own(report: &FailureDumpReport, shared_only: bool) -> Cow<'_, PostmortemReport> {
    match &report.postmortem {
        Some(own) if !shared_only => Cow::Borrowed(own),
        _ => Cow::Owned(from_shared(report)),
    }
}

fn from_shared(report: &FailureDumpReport) -> PostmortemReport {
    let tasks = report.task_enrichments.iter().map(|task| TaskInfo {
        pid: task.pid,
        tgid: task.tgid,
        comm: task.comm.clone(),
        class: task.sched_class.clone(),
        ..TaskInfo::default()
    });
    let dsqs = report.dsq_states.iter().map(|dsq| DsqInfo {
        id: Hex(dsq.id),
        name: format!("{:#x}", dsq.id),
        origin: dsq.origin.clone(),
        nr: dsq.nr,
        seq: dsq.seq,
        truncated: dsq.truncated,
        ..DsqInfo::default()
    });
    let cpus = report.rq_scx_states.iter().map(|rq| CpuInfo {
        cpu: rq.cpu,
        curr: rq.curr_pid.map(|pid| CurrTask {
            pid,
            comm: rq.curr_comm.clone().unwrap_or_default(),
            ..CurrTask::default()
        }),
        clock_ns: rq.rq_clock,
        nr_running: Some(rq.nr_running),
        ..CpuInfo::default()
    });
    let counters = report.event_counter_timeline.last();
    let counters = counters.map(|sample| {
        sample.counters().map(|(name, value)| EventCounter {
            name: name.to_owned(),
            value,
            ..EventCounter::default()
        })
    });
    let maps = report.maps.iter().map(|map| {
        let entries = map.entries.len() + map.percpu_hash_entries.len();
        MapInfo {
            kva: Hex(map.map_kva),
            name: map.name.clone(),
            map_type: map.map_type,
            entries: (entries > 0 && map.error.is_none()).then_some(entries as u64),
            ..MapInfo::default()
        }
    });
    PostmortemReport {
        tasks: tasks.collect(),
        dsqs: dsqs.collect(),
        cpus: cpus.collect(),
        event_counters: counters.into_iter().flatten().collect(),
        maps: maps.collect(),
        ..PostmortemReport::default()
    }
}

/// Address, id or ordinal, name.
type TaskKey<'t> = (u64, i32, &'t str);

/// Two reports that are compared.
struct Pair<'r> {
    reports: [&'r FailureDumpReport; 2],
    early: Cow<'r, PostmortemReport>,
    late: Cow<'r, PostmortemReport>,
    other_boot: bool,
    shared_only: bool,
}

impl<'r> Pair<'r> {
    fn new(early: &'r FailureDumpReport, late: &'r FailureDumpReport, other_boot: bool) -> Self {
        let shared_only = early.postmortem.is_none() || late.postmortem.is_none();
        Self {
            reports: [early, late],
            early: own(early, shared_only),
            late: own(late, shared_only),
            other_boot,
            shared_only,
        }
    }

    fn compare(&self) -> EarlyLateDiff {
        let (early, late) = (&*self.early, &*self.late);
        let kernel = |get: fn(&KernelInfo) -> Option<u64>| {
            let before = early.kernel.as_ref().and_then(get)?;
            let after = late.kernel.as_ref().and_then(get)?;
            after.checked_sub(before).filter(|_| !self.other_boot)
        };
        let mut diff = EarlyLateDiff {
            other_boot: self.other_boot,
            elapsed_ns: kernel(|k| k.uptime_ns),
            elapsed_jiffies: kernel(|k| k.jiffies),
            scheduler: self.scheduler(),
            dsqs: self.dsqs(),
            cpus: self.cpus(),
            maps: self.maps(),
            ..EarlyLateDiff::default()
        };
        diff.counters = self.counters(diff.elapsed_ns);
        self.tasks(&mut diff);
        if self.shared_only {
            let why = "schedulers, times and what else only this analyzer's reports have: one of the two is another tool's";
            diff.not_compared.push(why.to_owned());
        } else if diff.elapsed_ns.is_none() && !self.other_boot {
            let why = "the time between the images is not known: one of them has no uptime, or the early one is the younger";
            diff.not_compared.push(why.to_owned());
        }
        let spaces = if self.other_boot {
            [early, late].map(|own| own.kernel.as_ref().map(Space::of).unwrap_or_default())
        } else {
            [Space::default(), Space::default()]
        };
        values::compare(self.reports, [early, late], spaces, &mut diff);
        diff
    }
}

impl Pair<'_> {
    fn scheduler(&self) -> Option<SchedulerChange> {
        let (early, late) = (&*self.early, &*self.late);
        if early.scheduler.is_none() && late.scheduler.is_none() {
            return None;
        }
        let (before, after) = (early.scheduler.as_ref(), late.scheduler.as_ref());
        let at =
            |s: Option<&scx_postmortem_format::report::SchedulerInfo>| s.and_then(|s| s.sched_kva);
        Some(SchedulerChange {
            early_name: before.and_then(|s| s.ops_name.clone()),
            late_name: after.and_then(|s| s.ops_name.clone()),
            same: if self.other_boot {
                before.and_then(|s| s.ops_name.as_ref()) == after.and_then(|s| s.ops_name.as_ref())
            } else {
                at(before).is_some() && at(before) == at(after)
            },
            early_state: before.and_then(|s| s.enable_state.clone()),
            late_state: after.and_then(|s| s.enable_state.clone()),
            early_exit_kind: before.and_then(|s| s.exit_kind),
            early_exit_kind_name: before.and_then(|s| s.exit_kind_name.clone()),
            late_exit_kind: after.and_then(|s| s.exit_kind),
            late_exit_kind_name: after.and_then(|s| s.exit_kind_name.clone()),
        })
    }

    fn dsqs(&self) -> Vec<DsqChange> {
        let (early, late) = (&*self.early, &*self.late);
        let key = |dsq: &DsqInfo| {
            let kva = if self.other_boot { 0 } else { dsq.dsq_kva.0 };
            (kva, dsq.id.0, dsq.origin.clone())
        };
        let mut before: BTreeMap<(u64, u64, String), &DsqInfo> =
            early.dsqs.iter().map(|dsq| (key(dsq), dsq)).collect();
        let change = |dsq: &DsqInfo, before: Option<&DsqInfo>, after: Option<&DsqInfo>| {
            // What was put in since is counted modulo 2^32; a queue that was made anew at the same
            // place counts from 0 and would seem to have taken in billions.
            let put_in = match (before, after) {
                (Some(before), Some(after)) if !self.other_boot => {
                    Some(after.seq.wrapping_sub(before.seq))
                }
                _ => None,
            };
            let put_in = put_in.filter(|&n| n < 1 << 31);
            let taken_out = match (before, after, put_in) {
                (Some(before), Some(after), Some(put_in)) => before
                    .nr
                    .checked_add(put_in)
                    .and_then(|all| all.checked_sub(after.nr)),
                _ => None,
            };
            DsqChange {
                id: dsq.id,
                name: dsq.name.clone(),
                origin: dsq.origin.clone(),
                dsq_kva: dsq.dsq_kva,
                early_nr: before.map(|dsq| dsq.nr),
                late_nr: after.map(|dsq| dsq.nr),
                put_in,
                taken_out,
            }
        };
        let mut changes: Vec<DsqChange> = late
            .dsqs
            .iter()
            .map(|dsq| change(dsq, before.remove(&key(dsq)), Some(dsq)))
            .collect();
        let gone = early
            .dsqs
            .iter()
            .filter(|dsq| before.contains_key(&key(dsq)));
        changes.extend(gone.map(|dsq| change(dsq, Some(dsq), None)));
        let busy = |c: &DsqChange| {
            let counts = [c.early_nr, c.late_nr, c.put_in, c.taken_out];
            counts.into_iter().flatten().any(|n| n > 0)
        };
        changes.retain(busy);
        changes
    }

    /// A running task. Addresses of two boots would be compared in vain.
    fn named(&self, curr: &CurrTask) -> NamedTask {
        NamedTask {
            pid: curr.pid,
            comm: curr.comm.clone(),
            kva: if self.other_boot { Hex(0) } else { curr.kva },
        }
    }

    fn cpus(&self) -> Vec<CpuChange> {
        let (early, late) = (&*self.early, &*self.late);
        let before = firsts(&early.cpus, |cpu| cpu.cpu);
        let both = late
            .cpus
            .iter()
            .filter_map(|after| Some((*before.get(&after.cpu)?, after)));
        both.map(|(before, after)| CpuChange {
            cpu: after.cpu,
            early_curr: before.curr.as_ref().map(|curr| self.named(curr)),
            late_curr: after.curr.as_ref().map(|curr| self.named(curr)),
            clock_advanced_ns: before
                .clock_ns
                .and_then(|before| after.clock_ns?.checked_sub(before))
                .filter(|_| !self.other_boot),
            early_nr_running: before.nr_running,
            late_nr_running: after.nr_running,
        })
        .collect()
    }

    fn maps(&self) -> Vec<MapChange> {
        type Two<'r> = [Option<&'r MapInfo>; 2];
        let mut by_id: BTreeMap<(u32, String, usize), Two<'_>> = BTreeMap::new();
        for (side, report) in [&*self.early, &*self.late].into_iter().enumerate() {
            let mut nth: HashMap<&str, usize> = HashMap::new();
            for map in &report.maps {
                // Ids are of one boot; else the name, and which of those that have it.
                let key = if self.other_boot || self.shared_only {
                    let nth = nth.entry(map.name.as_str()).or_default();
                    *nth += 1;
                    (0, map.name.clone(), *nth)
                } else {
                    (map.id, String::new(), 0)
                };
                if let Some(place) = by_id.entry(key).or_default().get_mut(side) {
                    *place = Some(map);
                }
            }
        }
        let change = |[before, after]: Two<'_>| {
            let what = match (before, after) {
                (None, _) => "come",
                (_, None) => "gone",
                (Some(before), Some(after)) if before.entries != after.entries => "changed",
                _ => return None,
            };
            let map = after.or(before)?;
            Some(MapChange {
                id: map.id,
                name: map.name.clone(),
                what: what.to_owned(),
                early_entries: before.and_then(|map| map.entries),
                late_entries: after.and_then(|map| map.entries),
            })
        };
        by_id.into_values().filter_map(change).collect()
    }

    fn counters(&self, elapsed_ns: Option<u64>) -> Vec<CounterChange> {
        let (early, late) = (&*self.early, &*self.late);
        // Counters belong to a scheduler: another one begins anew.
        let at = |report: &PostmortemReport| report.scheduler.as_ref().and_then(|s| s.sched_kva);
        if !self.other_boot && at(early) != at(late) {
            return Vec::new();
        }
        let before = firsts(&early.event_counters, |counter| counter.name.as_str());
        let both = late.event_counters.iter().filter_map(|after| {
            let before = *before.get(after.name.as_str())?;
            (before.value != after.value).then_some((before, after))
        });
        both.map(|(before, after)| {
            let delta = i128::from(after.value) - i128::from(before.value);
            let rate = elapsed_ns
                .filter(|&ns| ns > 0)
                .and_then(|ns| i64::try_from(delta * 1_000_000_000_000 / i128::from(ns)).ok());
            CounterChange {
                name: after.name.clone(),
                early: before.value,
                late: after.value,
                per_1000_s: rate,
            }
        })
        .collect()
    }

    /// What makes each task the same one. The kernel's own threads have other ids in each boot, so
    /// there it is the name, and which of those that have it.
    fn task_keys<'t>(&self, tasks: &'t [TaskInfo]) -> Vec<TaskKey<'t>> {
        let mut nth: HashMap<&str, i32> = HashMap::new();
        let key = |task: &'t TaskInfo| {
            if !self.other_boot && !self.shared_only {
                return (task.kva.0, task.pid, "");
            }
            if !self.other_boot {
                return (0, task.pid, task.comm.as_str());
            }
            let nth = nth.entry(task.comm.as_str()).or_default();
            *nth = nth.saturating_add(1);
            (0, *nth, task.comm.as_str())
        };
        tasks.iter().map(key).collect()
    }

    fn tasks(&self, diff: &mut EarlyLateDiff) {
        let (early, late) = (&*self.early, &*self.late);
        let name = |task: &TaskInfo| NamedTask {
            pid: task.pid,
            comm: task.comm.clone(),
            kva: task.kva,
        };
        let early_keys = self.task_keys(&early.tasks);
        let late_keys = self.task_keys(&late.tasks);
        let before: HashMap<&TaskKey<'_>, &TaskInfo> =
            early_keys.iter().zip(&early.tasks).collect();
        let after: HashSet<&TaskKey<'_>> = late_keys.iter().collect();
        let cut = [early, late].into_iter().any(|report| {
            let mut limits = report.limits.iter();
            limits.any(|limit| limit.what.contains("task"))
        });
        if cut {
            let why = "which tasks came and went: a limit cut the list of tasks in one of the images (--limit raises it)";
            diff.not_compared.push(why.to_owned());
        } else {
            // A CPU's idle task is in a report only while it runs.
            let come = late_keys.iter().zip(&late.tasks);
            let come = come.filter(|(key, task)| task.pid != 0 && !before.contains_key(key));
            diff.tasks_come = come.map(|(_, task)| name(task)).take(MAX_TASKS).collect();
            let gone = early_keys.iter().zip(&early.tasks);
            let gone = gone.filter(|(key, task)| task.pid != 0 && !after.contains(key));
            diff.tasks_gone = gone.map(|(_, task)| name(task)).take(MAX_TASKS).collect();
        }
        // Of two boots nobody waits on.
        let both = if self.other_boot {
            &[][..]
        } else {
            &late.tasks
        };
        for (key, task) in late_keys.iter().zip(both) {
            let Some(was) = before.get(key) else {
                continue;
            };
            let ran_ns = was
                .sum_exec_ns
                .and_then(|before| task.sum_exec_ns?.checked_sub(before));
            if let Some(ran_ns) = ran_ns.filter(|&ns| ns > 0) {
                diff.ran.push(RanTask {
                    task: name(task),
                    ran_ns,
                    early_cpu: was.cpu,
                    late_cpu: task.cpu,
                });
            }
            let waits = was.runnable_at_jiffies.is_some()
                && was.runnable_at_jiffies == task.runnable_at_jiffies
                && ran_ns == Some(0);
            if let (true, Some(early_age_ms), Some(late_age_ms)) =
                (waits, was.runnable_age_ms, task.runnable_age_ms)
            {
                let on = |id: Option<Hex>| id.filter(|id| id.0 != 0);
                diff.still_waiting.push(WaitingChange {
                    task: name(task),
                    early_age_ms,
                    late_age_ms,
                    early_dsq_id: on(was.dsq_id),
                    late_dsq_id: on(task.dsq_id),
                });
            }
        }
        diff.ran
            .sort_by_key(|ran| (std::cmp::Reverse(ran.ran_ns), ran.task.kva.0));
        diff.ran.truncate(MAX_RAN);
        diff.still_waiting
            .sort_by_key(|w| (std::cmp::Reverse(w.late_age_ms), w.task.kva.0));
        diff.still_waiting.truncate(MAX_TASKS);
    }
}
