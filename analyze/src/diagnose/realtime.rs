//! CPUs taken by classes above sched_ext.
//!
//! A real-time, deadline or stop task runs before any task of sched_ext, for as long as it likes:
//! no BPF scheduler can do anything about it.

use scx_postmortem_format::report::{CpuInfo, CurrTask, StarvedTask};

use super::{Case, Confidence, Draft, listed, name, waited};

/// What runs on each CPU that a starved task may use, when all of them run other classes; with
/// the CPUs' places in the report.
pub(super) fn hogs<'r>(
    case: &Case<'r>,
    task: &StarvedTask,
) -> Option<Vec<(usize, &'r CpuInfo, &'r CurrTask)>> {
    let cpus = case.may_use(task).filter(|cpus| !cpus.is_empty())?;
    cpus.into_iter()
        .map(|(at, cpu)| {
            let curr = cpu.curr.as_ref()?;
            let above = ["rt", "dl", "stop"].contains(&curr.class.as_deref()?);
            above.then_some((at, cpu, curr))
        })
        .collect()
}

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let mut victims = Vec::new();
    let mut all = Vec::new();
    for (index, task) in case.starved() {
        if let Some(hogs) = hogs(case, task) {
            victims.push((index, task));
            all.extend(hogs);
        }
    }
    let Some((_, longest)) = victims.first() else {
        return Vec::new();
    };
    all.sort_by_key(|(at, ..)| *at);
    all.dedup_by_key(|(at, ..)| *at);
    let who: Vec<String> = victims.iter().map(|(_, task)| name(task)).collect();
    let hogs = all.iter().map(|(_, cpu, curr)| {
        let class = curr.class.as_deref().unwrap_or_default();
        format!("{}[{}] ({class}) on CPU {}", curr.comm, curr.pid, cpu.cpu)
    });
    let mut draft = Draft::new(
        Confidence::Likely,
        format!(
            "tasks of a class above sched_ext have all CPUs that {} may use: {}; waited up to {}",
            listed(&who),
            hogs.collect::<Vec<_>>().join(", "),
            waited(longest.runnable_age_ms)
        ),
    )
    .advice("a BPF scheduler cannot preempt real-time, deadline or stop tasks: look at why these run so long");
    for (at, _, curr) in &all {
        let class = curr.class.as_deref().unwrap_or_default();
        draft = draft
            .rests_on(format_args!("cpus/{at}/curr/pid"), curr.pid)
            .rests_on(format_args!("cpus/{at}/curr/class"), class);
    }
    for (index, task) in victims.iter().take(4) {
        draft = draft.rests_on(
            format_args!("starved/{index}/runnable_age_ms"),
            task.runnable_age_ms,
        );
    }
    vec![draft]
}
