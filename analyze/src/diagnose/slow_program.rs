//! A callback that takes far longer than the others.
//!
//! The kernel counts runs and time of each BPF program while `kernel.bpf_stats_enabled` is on.

use scx_postmortem_format::report::{ProgramInfo, ProgramStats};

use super::{Case, Confidence, Draft};

/// Callbacks that are called again and again, under the lock of a run queue or of a task.
const HOT: [&str; 17] = [
    "select_cpu",
    "enqueue",
    "dequeue",
    "dispatch",
    "tick",
    "runnable",
    "running",
    "stopping",
    "quiescent",
    "yield",
    "core_sched_before",
    "set_weight",
    "set_cpumask",
    "update_idle",
    "cpu_acquire",
    "cpu_release",
    "cgroup_move",
];
/// Runs that make a mean to compare with.
const RUNS: u64 = 20;
/// Runs of the slow one, or else its time in all, ns: a few slow ones may be the host's.
const MANY_RUNS: u64 = 500;
const MUCH_NS: u64 = 1_000_000_000;
/// A mean that is worth a word, ns.
const SLOW_NS: u64 = 1_000_000;
/// How many times the mean of every other callback.
const FACTOR: u64 = 20;

struct Mean<'r> {
    at: usize,
    program: &'r ProgramInfo,
    stats: &'r ProgramStats,
    callback: &'r str,
    ns: u64,
}

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let Some(active) = &case.report.active else {
        return Vec::new();
    };
    let programs = case.report.programs.iter().enumerate();
    let mut means: Vec<Mean<'_>> = programs
        .filter_map(|(at, program)| {
            let mut callbacks = active.callbacks.iter();
            let callback = callbacks.find(|callback| callback.prog.id == program.id)?;
            let stats = program.stats.as_ref().filter(|stats| stats.runs >= RUNS)?;
            HOT.contains(&&*callback.member).then_some(Mean {
                at,
                program,
                stats,
                callback: &callback.member,
                ns: stats.time_ns.checked_div(stats.runs)?,
            })
        })
        .collect();
    means.sort_by_key(|mean| std::cmp::Reverse(mean.ns));
    let [slowest, next, ..] = &means[..] else {
        return Vec::new();
    };
    let enough = slowest.stats.runs >= MANY_RUNS || slowest.stats.time_ns >= MUCH_NS;
    if !enough || slowest.ns < SLOW_NS || slowest.ns / FACTOR < next.ns {
        return Vec::new();
    }
    let micros = |ns: u64| format!("{}.{:03} ms", ns / 1_000_000, ns / 1000 % 1000);
    vec![
        Draft::new(
            Confidence::Likely,
            format!(
                "{}() takes {} each time ({} runs), {} times as long as the next slowest callback, {}()",
                slowest.program.name,
                micros(slowest.ns),
                slowest.stats.runs,
                slowest.ns / next.ns.max(1),
                next.program.name,
            ),
        )
        .advice(format!("ops.{}() holds up the CPU with interrupts off: look for loops over tasks or CPUs in it", slowest.callback))
        .rests_on(format_args!("programs/{}/stats/time_ns", slowest.at), slowest.stats.time_ns)
        .rests_on(format_args!("programs/{}/stats/runs", slowest.at), slowest.stats.runs)
        .rests_on(format_args!("programs/{}/stats/time_ns", next.at), next.stats.time_ns)
        .rests_on(format_args!("programs/{}/stats/runs", next.at), next.stats.runs),
    ]
}
