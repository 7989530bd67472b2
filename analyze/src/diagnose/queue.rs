//! Dispatch queues that nobody takes tasks from.
//!
//! `scx_dispatch_q.seq` counts the tasks that were ever put into a queue, `nr` those that are in
//! it: where both are the same, none has ever left.

use std::collections::BTreeMap;

use scx_postmortem_format::report::{DsqInfo, StarvedTask};

use super::{Case, Confidence, Draft, dsq_of, listed, name, realtime, waited};

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

pub(super) fn never_consumed(case: &Case<'_>) -> Vec<Draft> {
    let queues = waiting(case).into_iter();
    queues
        .filter(|queue| queue.dsq.seq == queue.dsq.nr && queue.dsq.nr > 0)
        .map(|queue| {
            let draft = Draft::new(
                Confidence::Certain,
                format!(
                    "nothing was ever taken from {}: {} still in it; {}",
                    dsq_of(case, queue.dsq.id, None),
                    match queue.dsq.nr {
                        1 => "the only task that was put there is".to_owned(),
                        nr => format!("all {nr} tasks that were put there are"),
                    },
                    who(&queue)
                ),
            )
            .advice("make ops.dispatch() move tasks from this queue, with scx_bpf_dsq_move_to_local(), on the CPUs that its tasks may use")
            .rests_on(format_args!("dsqs/{}/nr", queue.index), queue.dsq.nr)
            .rests_on(format_args!("dsqs/{}/seq", queue.index), queue.dsq.seq);
            with_tasks(draft, &queue)
        })
        .collect()
}

pub(super) fn stopped(case: &Case<'_>) -> Vec<Draft> {
    let queues = waiting(case).into_iter();
    queues
        .filter(|queue| queue.dsq.seq != queue.dsq.nr)
        // The first in the queue starves: nobody takes from it. Others may be behind it by order.
        .filter(|queue| {
            let mut tasks = queue.tasks.iter().map(|(_, task)| task);
            tasks.any(|task| task.dsq_position == Some(0) && !realtime::hogged(case, task))
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
