//! A dispatch queue that nobody takes tasks from.
//!
//! `scx_dispatch_q.seq` counts insertions, `nr` what is there. Others are served, but not one of
//! them: a queue whose tasks wait while those of another are taken is told of by `outranked`.

use super::queues::{Since, left, since, unserved, waiting, who, with_tasks};
use super::{Case, Confidence, Draft, dsq_of, holders, outranked};

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
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
                    let asleep = queue.tasks.iter().any(|(_, task)| holders::asleep(case, task).is_some());
                    let sure = if between.is_some() || asleep {
                        Confidence::Possible
                    } else {
                        Confidence::Likely
                    };
                    (sure, words)
                }
            };
            // It may be looked at, but only where another has nothing.
            let other = outranked::busy(case, &queue).map(|busy| {
                let other = dsq_of(case, busy.dsq.id, None);
                format!("; if it does so only when {other} is empty, which is served all the while, give this one a share")
            });
            let draft = Draft::new(confidence, words)
            .advice(format!("make ops.dispatch() move tasks from this queue, with scx_bpf_dsq_move_to_local(), on the CPUs that its tasks may use{}", other.unwrap_or_default()))
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
