//! A dispatch queue that waits while tasks are taken from another.
//!
//! `ops.dispatch()` that looks at one queue only when another is empty starves it for as long as the
//! other never is. Memory does not tell which queue a program looks at first: a scheduler that has
//! stopped to look at one of its queues leaves the same picture, so this is never more than likely.

use scx_postmortem_format::report::DsqInfo;

use super::queues::{self, Waiting};
use super::{Case, Confidence, Draft, dsq_of, holders, waited};

/// A queue was served all the while, where the oldest task in it has waited for no more than this
/// part of the other's wait.
const YOUNG: u64 = 8;

/// A queue that is served while others wait.
pub(super) struct Busy<'r> {
    at: usize,
    pub(super) dsq: &'r DsqInfo,
    /// How long its oldest task has waited, and where that is in the queue.
    oldest_ms: u64,
    oldest_at: usize,
    /// What was taken from it since the early image of a dual capture, while nothing was from the
    /// one that waits.
    taken: Option<(usize, u32)>,
}

/// The queue that CPUs take from which could take from this one.
pub(super) fn busy<'r>(case: &Case<'r>, queue: &Waiting<'_>) -> Option<Busy<'r>> {
    let (_, first) = queue.tasks.first()?;
    let cpus = case.may_use(first)?;
    // A CPU with nothing to do would have looked at both. And a task that is bound to some of them
    // may be where none of these looks, which is for `affinity` to tell.
    let idle = cpus.iter().any(|(_, cpu)| cpu.idle != Some(false));
    if idle || cpus.len() != case.online() {
        return None;
    }
    // Their own tasks are where they are for another reason then.
    let taken = holders::taken(case, first) == Some(Confidence::Likely);
    if taken || holders::hogged(case, first) {
        return None;
    }
    let others = case.report.dsqs.iter().enumerate();
    let mut others: Vec<Busy<'r>> = others
        .filter(|(_, dsq)| dsq.origin == "user" && dsq.sched_kva == queue.dsq.sched_kva)
        .filter(|(_, dsq)| dsq.dsq_kva != queue.dsq.dsq_kva && queues::left(dsq) > dsq.nr)
        .filter_map(|(at, dsq)| {
            let ages: Option<Vec<u64>> = dsq.tasks.iter().map(|t| t.runnable_age_ms).collect();
            let ages = ages.filter(|_| !dsq.truncated)?.into_iter();
            let (oldest_at, oldest_ms) = ages.enumerate().max_by_key(|&(_, ms)| ms)?;
            (oldest_ms <= first.runnable_age_ms / YOUNG).then_some(Busy {
                at,
                dsq,
                oldest_ms,
                oldest_at,
                taken: None,
            })
        })
        .collect();
    // The busiest, where there are several.
    others.sort_by_key(|busy| std::cmp::Reverse(queues::left(busy.dsq)));
    let on_both = |kva| {
        let (_, task) = case.task_at(kva)?;
        let theirs = case.usable(task, task.cpu?)?;
        let mut theirs = theirs.iter();
        Some(theirs.any(|(at, _)| cpus.iter().any(|(cpu, _)| cpu == at)))
    };
    let mut others = others.into_iter().take(queues::MOST);
    let mut busy = others.find(|busy| {
        let mut tasks = busy.dsq.tasks.iter().take(queues::MOST);
        tasks.any(|task| on_both(task.task_kva) == Some(true))
    })?;
    if queues::since(case, queue).is_some_and(|since| since.untouched()) {
        busy.taken = case.report.diff.as_deref().and_then(|diff| {
            let mut changes = diff.dsqs.iter().enumerate();
            let (at, change) = changes.find(|(_, change)| change.dsq_kva == busy.dsq.dsq_kva)?;
            Some((at, change.taken_out.filter(|&taken| taken > busy.dsq.nr)?))
        });
    }
    Some(busy)
}

/// Whether a task starves at the head of a queue that others have left.
fn left_behind(queue: &Waiting<'_>) -> bool {
    let mut tasks = queue.tasks.iter();
    let head = tasks.any(|(_, task)| task.dsq_position == Some(0));
    head && !queues::unserved(queue.dsq, queue.tasks.len())
}

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let queues = queues::waiting(case).into_iter();
    queues
        .filter(left_behind)
        .filter_map(|queue| {
            let busy = busy(case, &queue)?;
            let (dsq, other) = (dsq_of(case, queue.dsq.id, None), dsq_of(case, busy.dsq.id, None));
            let (confidence, known) = match busy.taken {
                Some((_, taken)) => (
                    Confidence::Likely,
                    format!("from which {taken} were taken since the early image"),
                ),
                None => (
                    Confidence::Possible,
                    format!("where the oldest has waited for {}", waited(busy.oldest_ms)),
                ),
            };
            let mut draft = Draft::new(
                confidence,
                format!(
                    "tasks wait in {dsq}, while {}, and others are taken from {other}, {known}: ops.dispatch() seems to look at the former only when the latter is empty, or not any more; {}",
                    queues::have_left(queue.dsq),
                    queues::who(&queue)
                ),
            )
            .advice(format!("if {other} comes first, give {dsq} a share all the same: a budget for each, or whichever head has waited longer"))
            .rests_on(format_args!("dsqs/{}/nr", queue.index), queue.dsq.nr)
            .rests_on(format_args!("dsqs/{}/seq", queue.index), queue.dsq.seq)
            .rests_on(format_args!("dsqs/{}/nr", busy.at), busy.dsq.nr)
            .rests_on(format_args!("dsqs/{}/seq", busy.at), busy.dsq.seq)
            .rests_on(
                format_args!("dsqs/{}/tasks/{}/runnable_age_ms", busy.at, busy.oldest_at),
                busy.oldest_ms,
            );
            if let Some((at, taken)) = busy.taken {
                draft = draft.rests_on(format_args!("diff/dsqs/{at}/taken_out"), taken);
            }
            Some(queues::with_tasks(draft, &queue))
        })
        .collect()
}
