//! A queue that was served once, and from which nothing was taken between the two images of a dual
//! capture.

use super::queues::{Since, since, waiting, who, with_tasks};
use super::{Case, Confidence, Draft, waited};

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
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
