//! A dispatch queue that was served, and whose first task starves.

use super::queues::{have_left, since, unserved, waiting, who, with_tasks};
use super::{Case, Confidence, Draft, dsq_of, holders, outranked};

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let queues = waiting(case).into_iter();
    queues
        .filter(|queue| !unserved(queue.dsq, queue.tasks.len()))
        // With an early image it may be known that it stopped; one that was served since may have
        // stopped later.
        .filter(|queue| !since(case, queue).is_some_and(|since| since.untouched()))
        .filter(|queue| outranked::busy(case, queue).is_none())
        // The first in the queue starves: nobody takes from it. Others may be behind it by order.
        .filter(|queue| {
            let mut tasks = queue.tasks.iter().map(|(_, task)| task);
            tasks.any(|task| {
                let held = || holders::taken(case, task) == Some(Confidence::Likely);
                task.dsq_position == Some(0) && !holders::hogged(case, task) && !held()
            })
        })
        .map(|queue| {
            let draft = Draft::new(
                Confidence::Possible,
                format!(
                    "the first task in {} waits, while {}: {}",
                    dsq_of(case, queue.dsq.id, None),
                    have_left(queue.dsq),
                    who(&queue)
                ),
            )
            .rests_on(format_args!("dsqs/{}/nr", queue.index), queue.dsq.nr)
            .rests_on(format_args!("dsqs/{}/seq", queue.index), queue.dsq.seq);
            with_tasks(draft, &queue)
        })
        .collect()
}
