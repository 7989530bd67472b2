//! Tasks that may not run where their queue is served.
//!
//! A task that is bound to some of the CPUs waits in a queue that others leave: whoever takes
//! from the queue passes it over, because it may not run there.

use scx_postmortem_format::report::StarvedTask;

use super::{Case, Confidence, Draft, dsq_of, holders, name, queues, waited};
use crate::kernel::cpu_list;

/// Starved tasks that are looked at, those that waited longest: each costs a walk over its queue.
const MOST: usize = 64;

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let online = case.online();
    let found = case.starved().take(MOST);
    let found = found.filter_map(|(index, task)| passed(case, online, index, task));
    // The first of those that it is surest of.
    let mut best: Option<Draft> = None;
    for draft in found {
        let sure = draft.confidence == Confidence::Likely;
        if best.is_none() || sure {
            best = Some(draft);
        }
        if sure {
            break;
        }
    }
    best.into_iter().collect()
}

fn passed(case: &Case<'_>, online: usize, index: usize, task: &StarvedTask) -> Option<Draft> {
    let (at, dsq) = case.user_queue(task)?;
    // Others have left, more than if the kernel had dequeued each that waits once.
    if queues::left(dsq) <= dsq.nr {
        return None;
    }
    let (task_at, info) = case.task(task)?;
    let allowed = info.cpus_allowed.as_deref()?;
    let cpus = case.may_use(task)?;
    if cpus.is_empty() || cpus.len() >= online {
        return None;
    }
    let half = task.runnable_age_jiffies / 2;
    // One that may run elsewhere and has waited as long says that nobody takes any more.
    let wider = dsq.tasks.iter().any(|other| {
        let elsewhere = other.cpus_allowed.as_deref();
        elsewhere.is_some_and(|cpus| cpus != allowed)
            && other.runnable_age_jiffies.is_some_and(|age| age >= half)
    });
    let younger = || {
        dsq.tasks.iter().any(|other| {
            other.task_kva != task.kva && other.runnable_age_jiffies.is_some_and(|age| age < half)
        })
    };
    // Where one task has each of its CPUs, another rule tells.
    let held = holders::taken(case, task);
    if held == Some(Confidence::Likely)
        || wider
        || !(dsq.nr == 1 || younger())
        || holders::hogged(case, task)
    {
        return None;
    }
    // It may not have been its turn.
    let before = queues::before(case, dsq, task, &cpus);
    let confidence = match before {
        0 => held.unwrap_or(Confidence::Likely),
        _ => Confidence::Possible,
    };
    let turn = match before {
        0 => String::new(),
        1 => ", or it was not its turn: one task that may run there is before it".to_owned(),
        n => format!(", or it was not its turn: {n} tasks that may run there are before it"),
    };
    let may: Vec<u32> = cpus.iter().map(|(_, cpu)| cpu.cpu).collect();
    let cpus = format!(
        "CPU{} {}",
        if may.len() == 1 { "" } else { "s" },
        cpu_list(&may)
    );
    Some(
        Draft::new(
            confidence,
            format!(
                "{} may only run on {cpus}, and others were taken from {}, where it has waited for {}: the CPUs that take from this queue are not those that it may use{turn}",
                name(task),
                dsq_of(case, dsq.id, None),
                waited(task.runnable_age_ms)
            ),
        )
        .advice("queue such tasks per CPU, or let every CPU take from this queue")
        .rests_on(format_args!("tasks/{task_at}/cpus_allowed"), allowed)
        .rests_on(format_args!("dsqs/{at}/seq"), dsq.seq)
        .rests_on(
            format_args!("starved/{index}/runnable_age_ms"),
            task.runnable_age_ms,
        )
        .explains([index]),
    )
}
