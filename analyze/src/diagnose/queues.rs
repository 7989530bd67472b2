//! The user queues that starved tasks wait in: what several rules have to know.
//!
//! `scx_dispatch_q.seq` counts the tasks that were ever put into a queue, `nr` those that are in
//! it: where both are the same, none has ever left. That some have left is no proof that they were
//! taken: the kernel dequeues a task to change its nice value, CPUs or cgroup, and what it puts
//! back then counts again.

use std::collections::BTreeMap;

use scx_postmortem_format::report::{CpuInfo, DsqChange, DsqInfo, StarvedTask};

use super::{Case, Draft, listed, name, waited};

/// Queues, and tasks of each, that rules look at which have to compare each with all others.
pub(super) const MOST: usize = 64;

/// A user queue with starved tasks, first the one that waited longest.
pub(super) struct Waiting<'r> {
    pub(super) index: usize,
    pub(super) dsq: &'r DsqInfo,
    pub(super) tasks: Vec<(usize, &'r StarvedTask)>,
}

pub(super) fn waiting<'r>(case: &Case<'r>) -> Vec<Waiting<'r>> {
    let mut by_queue: BTreeMap<u64, Vec<(usize, &StarvedTask)>> = BTreeMap::new();
    for (index, task) in case.starved() {
        if let Some(kva) = task.dsq_kva {
            by_queue.entry(kva.0).or_default().push((index, task));
        }
    }
    let dsqs = case.report.dsqs.iter().enumerate();
    let mut found: Vec<_> = dsqs
        .filter(|(_, dsq)| dsq.origin == "user")
        .filter_map(|(index, dsq)| {
            let tasks = by_queue.remove(&dsq.dsq_kva.0)?;
            Some(Waiting { index, dsq, tasks })
        })
        .collect();
    found.sort_by_key(|queue| queue.tasks.first().map(|&(index, _)| index));
    found.truncate(MOST);
    found
}

pub(super) fn who(queue: &Waiting<'_>) -> String {
    let names: Vec<String> = queue.tasks.iter().map(|(_, task)| name(task)).collect();
    let longest = queue
        .tasks
        .first()
        .map_or(0, |(_, task)| task.runnable_age_ms);
    format!("{} waited up to {}", listed(&names), waited(longest))
}

/// Insertions that are not in the queue any more.
pub(super) const fn left(dsq: &DsqInfo) -> u32 {
    dsq.seq.wrapping_sub(dsq.nr)
}

/// The same in words, after the queue's name.
pub(super) fn have_left(dsq: &DsqInfo) -> String {
    let left = left(dsq);
    let have = if left == 1 { "has" } else { "have" };
    format!(
        "{left} of {} insertions {have} left it (taken, or dequeued by the kernel)",
        dsq.seq
    )
}

/// Whether nothing speaks for it that anybody ever took from a queue: all that is in it starves, and
/// what has left it is no more than if the kernel had dequeued each of these tasks once.
pub(super) fn unserved(dsq: &DsqInfo, starving: usize) -> bool {
    let all = usize::try_from(dsq.nr) == Ok(starving);
    dsq.nr > 0 && (left(dsq) == 0 || (all && left(dsq) <= dsq.nr))
}

/// Two images that are closer together than this say nothing of what stood still.
const APART_MS: u64 = 1000;

/// What went on in a queue since the early image of a dual capture, where that is long enough ago.
pub(super) fn since<'r>(case: &Case<'r>, queue: &Waiting<'_>) -> Option<Since<'r>> {
    let diff = case.report.diff.as_deref()?;
    let mut changes = diff.dsqs.iter().enumerate();
    let (index, change) = changes
        .find(|(_, change)| change.dsq_kva == queue.dsq.dsq_kva && change.id == queue.dsq.id)?;
    // An eighth of the limit: they are half of it apart or more, unless the early one came late.
    let limit = case.report.scheduler.as_ref()?.watchdog_timeout_ms;
    let apart = limit.map_or(APART_MS, |limit| (limit / 8).max(APART_MS));
    let elapsed_ms = diff.elapsed_ns? / 1_000_000;
    (elapsed_ms >= apart).then_some(Since {
        index,
        change,
        elapsed_ms,
    })
}

pub(super) struct Since<'r> {
    index: usize,
    pub(super) change: &'r DsqChange,
    pub(super) elapsed_ms: u64,
}

impl Since<'_> {
    /// Whether there was something to take all the while, and nobody took any of it.
    pub(super) fn untouched(&self) -> bool {
        self.change.taken_out == Some(0) && self.change.early_nr.is_some_and(|nr| nr > 0)
    }

    pub(super) fn rests_on(&self, draft: Draft) -> Draft {
        let path = format!("diff/dsqs/{}", self.index);
        let mut draft = draft;
        for (member, value) in [
            ("early_nr", self.change.early_nr),
            ("late_nr", self.change.late_nr),
            ("taken_out", self.change.taken_out),
        ] {
            if let Some(value) = value {
                draft = draft.rests_on(format_args!("{path}/{member}"), value);
            }
        }
        draft
    }
}

/// How many tasks are before one in its queue that may run on one of these CPUs.
pub(super) fn before(
    case: &Case<'_>,
    dsq: &DsqInfo,
    task: &StarvedTask,
    cpus: &[(usize, &CpuInfo)],
) -> usize {
    let before = dsq.tasks.iter();
    let before = before.take_while(|other| other.task_kva != task.kva);
    let may = before.filter(|other| {
        let record = case.task_at(other.task_kva);
        let theirs = record.and_then(|(_, record)| case.usable(record, record.cpu?));
        // What is not known may be.
        theirs.is_none_or(|theirs| {
            cpus.iter()
                .any(|(_, cpu)| theirs.iter().any(|(_, other)| other.cpu == cpu.cpu))
        })
    });
    may.count()
}

pub(super) fn with_tasks(mut draft: Draft, queue: &Waiting<'_>) -> Draft {
    draft = draft.explains(queue.tasks.iter().map(|&(index, _)| index));
    for (index, task) in queue.tasks.iter().take(4) {
        draft = draft.rests_on(
            format_args!("starved/{index}/runnable_age_ms"),
            task.runnable_age_ms,
        );
    }
    draft
}
