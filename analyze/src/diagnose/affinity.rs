//! Tasks that may not run where their queue is served.
//!
//! A task that is bound to some of the CPUs waits in a queue that others leave: whoever takes
//! from the queue passes it over, because it may not run there.

use super::{Case, Confidence, Draft, dsq_of, name, queue, realtime, waited};
use crate::kernel::cpu_list;

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let online = case.online();
    case.starved()
        .filter_map(|(index, task)| {
            let cpus = case.may_use(task)?;
            if cpus.is_empty() || cpus.len() >= online {
                return None;
            }
            let kva = task.dsq_kva?;
            let mut dsqs = case.report.dsqs.iter().enumerate();
            let (at, dsq) = dsqs.find(|(_, dsq)| dsq.dsq_kva == kva && dsq.origin == "user")?;
            // Others have left, more than if the kernel had dequeued each that waits once.
            let served = queue::left(dsq) > dsq.nr;
            // One that may run elsewhere and has waited as long says that nobody takes any more.
            let wider = dsq.tasks.iter().any(|other| {
                let own = case.task(task).and_then(|(_, t)| t.cpus_allowed.as_deref());
                other.cpus_allowed.is_some()
                    && other.cpus_allowed.as_deref() != own
                    && other
                        .runnable_age_jiffies
                        .is_some_and(|age| age >= task.runnable_age_jiffies / 2)
            });
            let younger = dsq.tasks.iter().any(|other| {
                other.task_kva != task.kva
                    && other.runnable_age_jiffies.is_some_and(|age| age < task.runnable_age_jiffies / 2)
            });
            if !served || wider || !(younger || dsq.nr == 1) {
                return None;
            }
            // Where other classes have its CPUs, another rule tells.
            if realtime::hogged(case, task) {
                return None;
            }
            let (task_at, info) = case.task(task)?;
            let allowed = info.cpus_allowed.as_deref()?;
            let may: Vec<u32> = cpus.iter().map(|(_, cpu)| cpu.cpu).collect();
            let cpus = format!("CPU{} {}", if may.len() == 1 { "" } else { "s" }, cpu_list(&may));
            Some(
                Draft::new(
                    Confidence::Likely,
                    format!(
                        "{} may only run on {cpus}, and others were taken from {}, where it has waited for {}: the CPUs that take from this queue are not those that it may use",
                        name(task),
                        dsq_of(case, dsq.id, None),
                        waited(task.runnable_age_ms)
                    ),
                )
                .advice("queue such tasks per CPU, or let every CPU take from this queue")
                .rests_on(format_args!("tasks/{task_at}/cpus_allowed"), allowed)
                .rests_on(format_args!("dsqs/{at}/seq"), dsq.seq)
                .rests_on(format_args!("starved/{index}/runnable_age_ms"), task.runnable_age_ms)
                .explains([index])
            )
        })
        .take(1)
        .collect()
}
