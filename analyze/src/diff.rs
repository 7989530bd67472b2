//! The early image of a dual capture against the late one: what changed, what stood still.
//!
//! Only two reports are compared, so that whatever is said can be checked in them. Things are the
//! same when their address in the kernel and their name or id are: both images are of one boot.

use std::collections::{BTreeMap, HashMap};

use scx_postmortem_format::report::{
    CounterChange, CpuChange, CurrTask, DsqChange, DsqInfo, EarlyLateDiff, Hex, MapChange,
    NamedTask, PostmortemReport, RanTask, SchedulerChange, TaskInfo, WaitingChange,
};

/// Tasks of a kind that are listed.
const MAX_TASKS: usize = 200;
/// Tasks of which it is said how long they ran.
const MAX_RAN: usize = 20;

/// Compares the two reports of a dual capture.
#[must_use]
pub fn compare(early: &PostmortemReport, late: &PostmortemReport) -> EarlyLateDiff {
    let kernel = |get: fn(&scx_postmortem_format::report::KernelInfo) -> Option<u64>| {
        let early = early.kernel.as_ref().and_then(get)?;
        late.kernel.as_ref().and_then(get)?.checked_sub(early)
    };
    let mut diff = EarlyLateDiff {
        elapsed_ns: kernel(|k| k.uptime_ns),
        elapsed_jiffies: kernel(|k| k.jiffies),
        scheduler: scheduler(early, late),
        dsqs: dsqs(early, late),
        cpus: cpus(early, late),
        maps: maps(early, late),
        ..EarlyLateDiff::default()
    };
    diff.counters = counters(early, late, diff.elapsed_ns);
    tasks(early, late, &mut diff);
    if diff.elapsed_ns.is_none() {
        let why = "the time between the images is not known: one of them has no uptime, or the early one is the younger";
        diff.not_compared.push(why.to_owned());
    }
    diff
}

fn scheduler(early: &PostmortemReport, late: &PostmortemReport) -> Option<SchedulerChange> {
    if early.scheduler.is_none() && late.scheduler.is_none() {
        return None;
    }
    let (before, after) = (early.scheduler.as_ref(), late.scheduler.as_ref());
    let at = |s: Option<&scx_postmortem_format::report::SchedulerInfo>| s.and_then(|s| s.sched_kva);
    Some(SchedulerChange {
        early_name: before.and_then(|s| s.ops_name.clone()),
        late_name: after.and_then(|s| s.ops_name.clone()),
        same: at(before).is_some() && at(before) == at(after),
        early_state: before.and_then(|s| s.enable_state.clone()),
        late_state: after.and_then(|s| s.enable_state.clone()),
        early_exit_kind: before.and_then(|s| s.exit_kind),
        late_exit_kind: after.and_then(|s| s.exit_kind),
    })
}

fn dsqs(early: &PostmortemReport, late: &PostmortemReport) -> Vec<DsqChange> {
    let key = |dsq: &DsqInfo| (dsq.dsq_kva.0, dsq.id.0);
    let mut before: BTreeMap<(u64, u64), &DsqInfo> =
        early.dsqs.iter().map(|dsq| (key(dsq), dsq)).collect();
    let change = |dsq: &DsqInfo, before: Option<&DsqInfo>, after: Option<&DsqInfo>| {
        // What was put in since is counted modulo 2^32; a queue that was made anew at the same
        // place counts from 0 and would seem to have taken in billions.
        let put_in = match (before, after) {
            (Some(before), Some(after)) => Some(after.seq.wrapping_sub(before.seq)),
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

fn named(curr: &CurrTask) -> NamedTask {
    NamedTask {
        pid: curr.pid,
        comm: curr.comm.clone(),
        kva: curr.kva,
    }
}

fn cpus(early: &PostmortemReport, late: &PostmortemReport) -> Vec<CpuChange> {
    let both = late.cpus.iter().filter_map(|after| {
        let before = early.cpus.iter().find(|before| before.cpu == after.cpu)?;
        Some((before, after))
    });
    both.map(|(before, after)| CpuChange {
        cpu: after.cpu,
        early_curr: before.curr.as_ref().map(named),
        late_curr: after.curr.as_ref().map(named),
        clock_advanced_ns: before
            .clock_ns
            .and_then(|before| after.clock_ns?.checked_sub(before)),
        early_nr_running: before.nr_running,
        late_nr_running: after.nr_running,
    })
    .collect()
}

fn maps(early: &PostmortemReport, late: &PostmortemReport) -> Vec<MapChange> {
    type Pair<'r> = [Option<&'r scx_postmortem_format::report::MapInfo>; 2];
    let mut by_id: BTreeMap<u32, Pair<'_>> = BTreeMap::new();
    for (side, report) in [early, late].into_iter().enumerate() {
        for map in &report.maps {
            if let Some(place) = by_id.entry(map.id).or_default().get_mut(side) {
                *place = Some(map);
            }
        }
    }
    let change = |(id, [before, after]): (u32, Pair<'_>)| {
        let what = match (before, after) {
            (None, _) => "come",
            (_, None) => "gone",
            (Some(before), Some(after)) if before.entries != after.entries => "changed",
            _ => return None,
        };
        Some(MapChange {
            id,
            name: after.or(before).map(|map| map.name.clone())?,
            what: what.to_owned(),
            early_entries: before.and_then(|map| map.entries),
            late_entries: after.and_then(|map| map.entries),
        })
    };
    by_id.into_iter().filter_map(change).collect()
}

fn counters(
    early: &PostmortemReport,
    late: &PostmortemReport,
    elapsed_ns: Option<u64>,
) -> Vec<CounterChange> {
    // Counters belong to a scheduler: another one begins anew.
    let at = |report: &PostmortemReport| report.scheduler.as_ref().and_then(|s| s.sched_kva);
    if at(early) != at(late) {
        return Vec::new();
    }
    let both = late.event_counters.iter().filter_map(|after| {
        let mut counters = early.event_counters.iter();
        let before = counters.find(|before| before.name == after.name)?;
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

fn tasks(early: &PostmortemReport, late: &PostmortemReport, diff: &mut EarlyLateDiff) {
    let key = |task: &TaskInfo| (task.kva.0, task.pid);
    let name = |task: &TaskInfo| NamedTask {
        pid: task.pid,
        comm: task.comm.clone(),
        kva: task.kva,
    };
    let before: HashMap<(u64, i32), &TaskInfo> =
        early.tasks.iter().map(|task| (key(task), task)).collect();
    let after: HashMap<(u64, i32), &TaskInfo> =
        late.tasks.iter().map(|task| (key(task), task)).collect();
    let cut = [early, late].into_iter().any(|report| {
        let mut limits = report.limits.iter();
        limits.any(|limit| limit.what.contains("task"))
    });
    if cut {
        let why = "which tasks came and went: a limit cut the list of tasks in one of the images (--limit raises it)";
        diff.not_compared.push(why.to_owned());
    } else {
        let come = late
            .tasks
            .iter()
            .filter(|task| !before.contains_key(&key(task)));
        diff.tasks_come = come.map(name).take(MAX_TASKS).collect();
        let gone = early
            .tasks
            .iter()
            .filter(|task| !after.contains_key(&key(task)));
        diff.tasks_gone = gone.map(name).take(MAX_TASKS).collect();
    }
    for task in &late.tasks {
        let Some(was) = before.get(&key(task)) else {
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
