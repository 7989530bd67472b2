//! A CPU that does nothing while work that it may do waits.

use scx_postmortem_format::report::{CpuInfo, StarvedTask};

use super::{Case, Confidence, Draft, dsq_of, name, waited};

/// A CPU that has been idle for less may just be on its way.
const LONG_NS: u64 = 100_000_000;

/// For how long a CPU has slept, ns, when that is long and nobody has told it to wake.
pub(super) fn sleeps(cpu: &CpuInfo) -> Option<u64> {
    let woken = cpu.context.as_ref().is_some_and(|context| {
        [
            context.need_resched,
            context.need_resched_lazy,
            context.preempt_need_resched,
        ]
        .contains(&Some(true))
    });
    let idle_ns = cpu.idle_state.as_ref()?.idle_ns?;
    (cpu.idle == Some(true) && !woken && idle_ns >= LONG_NS).then_some(idle_ns)
}

/// A CPU that a starved task may use and that sleeps: its place in the list, and for how long.
pub(super) fn asleep<'r>(case: &Case<'r>, task: &StarvedTask) -> Option<(usize, &'r CpuInfo, u64)> {
    let cpus = case.may_use(task)?;
    let mut cpus = cpus.into_iter();
    cpus.find_map(|(at, cpu)| Some((at, cpu, sleeps(cpu)?)))
}

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    for (index, task) in case.starved() {
        // What is on a local queue only that CPU can take; and where the BPF scheduler keeps it, or
        // nobody ever takes from its queue, an idle CPU is not the cause.
        let queue = task.dsq_origin.as_deref();
        if !matches!(queue, Some("user" | "global")) || case.never_consumed(task) {
            continue;
        }
        let Some((at, cpu, idle_ns)) = asleep(case, task) else {
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
