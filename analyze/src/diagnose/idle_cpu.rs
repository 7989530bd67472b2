//! A CPU that does nothing while work that it may do waits.

use super::{Case, Confidence, Draft, dsq_of, holders, name, waited};

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    for (index, task) in case.starved() {
        // What is on a local queue only that CPU can take; and where the BPF scheduler keeps it, or
        // nobody ever takes from its queue, an idle CPU is not the cause.
        let queue = task.dsq_origin.as_deref();
        if !matches!(queue, Some("user" | "global")) || case.never_consumed(task) {
            continue;
        }
        let Some((at, cpu, idle_ns)) = holders::asleep(case, task) else {
            continue;
        };
        let place = task.dsq_id.map_or_else(
            || "with the BPF scheduler".to_owned(),
            |id| format!("on {}", dsq_of(case, id, Some(task.cpu))),
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
            .rests_on(format_args!("cpus/{at}/idle_state/idle_ns"), idle_ns)
            .rests_on(format_args!("starved/{index}/runnable_age_ms"), task.runnable_age_ms)
            .explains([index]),
        ];
    }
    Vec::new()
}
