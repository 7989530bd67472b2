//! A CPU that does nothing while work that it may do waits.

use super::{Case, Confidence, Draft, name, waited};

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    for (index, task) in case.starved() {
        let Some(cpus) = case.may_use(task) else {
            continue;
        };
        let Some((at, cpu)) = cpus.iter().find(|(_, cpu)| cpu.idle == Some(true)) else {
            continue;
        };
        let place = task.dsq_id.map_or_else(
            || "with the BPF scheduler".to_owned(),
            |id| format!("on DSQ {id}"),
        );
        return vec![
            Draft::new(
                Confidence::Likely,
                format!(
                    "CPU {} is idle while {} waits {place} for {} and may run there",
                    cpu.cpu,
                    name(task),
                    waited(task.runnable_age_ms)
                ),
            )
            .advice("wake an idle CPU when a task is queued (scx_bpf_kick_cpu() with SCX_KICK_IDLE), and let ops.dispatch() on it take from the queue")
            .rests_on(format_args!("cpus/{at}/idle"), true)
            .rests_on(format_args!("starved/{index}/runnable_age_ms"), task.runnable_age_ms),
        ];
    }
    Vec::new()
}
