//! CPUs that take their ticks and cannot be preempted.
//!
//! A CPU that takes its ticks and does not let a task of the highest class run has preemption
//! off: the detector of soft lockups (kernel/watchdog.c) keeps such a task, and notes when it ran.

use scx_postmortem_format::report::{CpuContext, CpuInfo};

use super::stuck::{BEHIND_NS, Place, inside, place, waiting_on, who};
use super::{Case, Confidence, Draft, waited};

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let cpus = case.report.cpus.iter().enumerate();
    cpus.filter_map(|(at, cpu)| without_preemption(case, at, cpu))
        .collect()
}

fn without_preemption(case: &Case<'_>, at: usize, cpu: &CpuInfo) -> Option<Draft> {
    let (curr, task_at, task) = inside(case, cpu)?;
    // One of that class is there already.
    if curr.class.as_deref() == Some("stop") || cpu.clock_behind_ns? >= BEHIND_NS {
        return None;
    }
    let detector = cpu.soft_lockup.as_ref()?;
    let (age, period) = (detector.age_ns?, detector.period_ns?);
    // It is let in once in each period, give or take its clock's coarse steps.
    let long = period.saturating_mul(2).saturating_add(BEHIND_NS);
    if age < long {
        return None;
    }
    let Place {
        inner,
        words: place,
        ..
    } = place(task)?;
    let context = cpu.context.as_ref();
    let depth =
        |read: fn(&CpuContext) -> Option<u32>| context.and_then(read).filter(|&depth| depth > 0);
    let preempt = depth(|context| context.preempt_disabled);
    let softirq = depth(|context| context.in_softirq.map(u32::from));
    let bh = depth(|context| context.bh_disabled);
    let (why, fact) = match (softirq, preempt, bh) {
        (Some(_), ..) => ("in a softirq", Some(("in_softirq", "true".to_owned()))),
        (None, Some(depth), _) => (
            "with preemption off",
            Some(("preempt_disabled", depth.to_string())),
        ),
        (None, None, Some(depth)) => (
            "with softirqs off",
            Some(("bh_disabled", depth.to_string())),
        ),
        _ => ("without a point at which it gives way", None),
    };
    let mut draft = Draft::new(
        Confidence::Likely,
        format!(
            "CPU {} has been in the kernel {why}, for {} or longer, with {}: {place}; not even the highest class gets it",
            cpu.cpu,
            // The last step of that clock may have been about to end.
            waited((age - (1 << 30)) / 1_000_000),
            who(curr),
        ),
    )
    .advice("look at the task's stack for what loops there: nothing else runs on this CPU until it ends")
    .rests_on(format_args!("cpus/{at}/soft_lockup/age_ns"), age)
    .rests_on(format_args!("cpus/{at}/soft_lockup/period_ns"), period)
    .rests_on(format_args!("tasks/{task_at}/stack/0/symbol"), inner);
    if let Some((member, value)) = fact {
        draft = draft.rests_on(format_args!("cpus/{at}/context/{member}"), value);
    }
    Some(draft.explains(waiting_on(case, cpu, age)))
}
