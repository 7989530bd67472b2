//! Dispatch queues that nobody takes tasks from.
//!
//! `scx_dispatch_q.seq` counts the tasks that were ever put into a queue, `nr` those that are in
//! it: where both are the same, none has ever left. That some have left is no proof that they were
//! taken: the kernel dequeues a task to change its nice value, CPUs or cgroup, and what it puts
//! back then counts again.

use std::collections::BTreeMap;

use scx_postmortem_format::report::{DsqChange, DsqInfo, StarvedTask};

use super::{Case, Confidence, Draft, cpu_hog, dsq_of, idle_cpu, listed, name, realtime, waited};

/// A user queue with starved tasks, first the one that waited longest.
struct Waiting<'r> {
    index: usize,
    dsq: &'r DsqInfo,
    tasks: Vec<(usize, &'r StarvedTask)>,
}

fn waiting<'r>(case: &Case<'r>) -> Vec<Waiting<'r>> {
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
    found
}

fn who(queue: &Waiting<'_>) -> String {
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

/// Whether nothing speaks for it that anybody ever took from a queue: all that is in it starves, and
/// what has left it is no more than if the kernel had dequeued each of these tasks once.
pub(super) fn unserved(dsq: &DsqInfo, starving: usize) -> bool {
    let all = usize::try_from(dsq.nr) == Ok(starving);
    dsq.nr > 0 && (left(dsq) == 0 || (all && left(dsq) <= dsq.nr))
}

/// Two images that are closer together than this say nothing of what stood still.
const APART_MS: u64 = 1000;

/// What went on in a queue since the early image of a dual capture, where that is long enough ago.
fn since<'r>(case: &Case<'r>, queue: &Waiting<'_>) -> Option<Since<'r>> {
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

struct Since<'r> {
    index: usize,
    change: &'r DsqChange,
    elapsed_ms: u64,
}

impl Since<'_> {
    /// Whether there was something to take all the while, and nobody took any of it.
    fn untouched(&self) -> bool {
        self.change.taken_out == Some(0) && self.change.early_nr.is_some_and(|nr| nr > 0)
    }

    fn rests_on(&self, draft: Draft) -> Draft {
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

/// A queue that was served once, and from which nothing was taken between the two images.
pub(super) fn untouched(case: &Case<'_>) -> Vec<Draft> {
    let queues = waiting(case).into_iter();
    queues
        .filter(|queue| queue.dsq.seq != queue.dsq.nr)
        .filter_map(|queue| {
            let since = since(case, &queue).filter(Since::untouched)?;
            let (early, late) = (since.change.early_nr?, since.change.late_nr?);
            let draft = Draft::new(
                Confidence::Certain,
                format!(
                    "nothing was taken from DSQ {} in the {} between the early and the late image: it held {early} tasks then and {late} now; {}",
                    queue.dsq.id,
                    waited(since.elapsed_ms),
                    who(&queue)
                ),
            )
            .advice("look at why ops.dispatch() stopped to move tasks from this queue, with scx_bpf_dsq_move_to_local(), on the CPUs that its tasks may use");
            Some(with_tasks(since.rests_on(draft), &queue))
        })
        .collect()
}

pub(super) fn never_consumed(case: &Case<'_>) -> Vec<Draft> {
    let queues = waiting(case).into_iter();
    queues
        .filter(|queue| unserved(queue.dsq, queue.tasks.len()))
        .filter_map(|queue| {
            let between = since(case, &queue);
            let dsq = dsq_of(case, queue.dsq.id, None);
            let (nr, seq, who) = (queue.dsq.nr, queue.dsq.seq, who(&queue));
            let (confidence, words) = match left(queue.dsq) {
                0 => {
                    let all = match nr {
                        1 => "the only task that was put there is".to_owned(),
                        nr => format!("all {nr} tasks that were put there are"),
                    };
                    let words = format!("nothing was ever taken from {dsq}: {all} still in it; {who}");
                    // One task alone may only wait for its turn.
                    let limit = case.report.scheduler.as_ref().and_then(|s| s.watchdog_timeout_ms);
                    let over = |limit| queue.tasks.iter().any(|(_, task)| task.runnable_age_ms >= limit);
                    let sure = if nr > 1 || limit.is_none_or(over) {
                        Confidence::Certain
                    } else {
                        Confidence::Likely
                    };
                    (sure, words)
                }
                // Then the two images tell more.
                _ if between.as_ref().is_some_and(Since::untouched) => return None,
                left => {
                    let all = match nr {
                        1 => "the only task in it starves".to_owned(),
                        nr => format!("all {nr} tasks in it starve"),
                    };
                    let have = if left == 1 { "has" } else { "have" };
                    let words = format!(
                        "nobody seems to take from {dsq}: {all}, and {left} of the {seq} insertions {have} left it (taken, or dequeued by the kernel); {who}"
                    );
                    // Something has left while it was watched; or a CPU sleeps that may only have
                    // to be woken.
                    let asleep = queue.tasks.iter().any(|(_, task)| idle_cpu::asleep(case, task).is_some());
                    let sure = if between.is_some() || asleep {
                        Confidence::Possible
                    } else {
                        Confidence::Likely
                    };
                    (sure, words)
                }
            };
            let draft = Draft::new(confidence, words)
            .advice("make ops.dispatch() move tasks from this queue, with scx_bpf_dsq_move_to_local(), on the CPUs that its tasks may use")
            .rests_on(format_args!("dsqs/{}/nr", queue.index), queue.dsq.nr)
            .rests_on(format_args!("dsqs/{}/seq", queue.index), queue.dsq.seq);
            let draft = match between.filter(Since::untouched) {
                Some(since) => since.rests_on(draft),
                None => draft,
            };
            Some(with_tasks(draft, &queue))
        })
        .collect()
}

pub(super) fn stopped(case: &Case<'_>) -> Vec<Draft> {
    let queues = waiting(case).into_iter();
    queues
        .filter(|queue| !unserved(queue.dsq, queue.tasks.len()))
        // With an early image it may be known that it stopped; one that was served since may have
        // stopped later.
        .filter(|queue| !since(case, queue).is_some_and(|since| since.untouched()))
        // The first in the queue starves: nobody takes from it. Others may be behind it by order.
        .filter(|queue| {
            let mut tasks = queue.tasks.iter().map(|(_, task)| task);
            tasks.any(|task| {
                let held = || cpu_hog::taken(case, task) == Some(Confidence::Likely);
                task.dsq_position == Some(0) && !realtime::hogged(case, task) && !held()
            })
        })
        .map(|queue| {
            let draft = Draft::new(
                Confidence::Possible,
                format!(
                    "{} was served before, and its first task waits: {}",
                    dsq_of(case, queue.dsq.id, None),
                    who(&queue)
                ),
            )
            .rests_on(format_args!("dsqs/{}/nr", queue.index), queue.dsq.nr)
            .rests_on(format_args!("dsqs/{}/seq", queue.index), queue.dsq.seq);
            with_tasks(draft, &queue)
        })
        .collect()
}

fn with_tasks(mut draft: Draft, queue: &Waiting<'_>) -> Draft {
    draft = draft.explains(queue.tasks.iter().map(|&(index, _)| index));
    for (index, task) in queue.tasks.iter().take(4) {
        draft = draft.rests_on(
            format_args!("starved/{index}/runnable_age_ms"),
            task.runnable_age_ms,
        );
    }
    draft
}
