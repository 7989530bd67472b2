//! Tasks on the local queue of a CPU that does not take them, though others could.
//!
//! Only the CPU itself takes from its local queue. What was put there stays when the CPU goes
//! offline, or when a task of a class above takes it, unless `ops.cpu_release()` calls
//! `scx_bpf_reenqueue_local()`; or while the task that it runs has a slice that does not end.

use super::{Case, Confidence, Draft, holders, listed, name, waited};

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let cpus = case.report.cpus.iter().enumerate();
    cpus.filter_map(|(at, cpu)| {
        let origin = format!("local cpu {}", cpu.cpu);
        let tasks: Vec<_> = case
            .starved()
            .filter(|(_, task)| task.dsq_origin.as_deref() == Some(&*origin))
            // With no other CPU to go to, the queue makes no difference.
            .filter(|(_, task)| !holders::hogged(case, task))
            .collect();
        let (_, longest) = tasks.first()?;
        let class = cpu.curr.as_ref().and_then(|curr| curr.class.as_deref());
        let hog = holders::hog(case, at, cpu, holders::wait_ns(longest));
        let (confidence, why, path, value, advice) = if cpu.online == Some(false) {
            let advice = "ops.cpu_offline(): do not dispatch to a CPU that is gone";
            (Confidence::Certain, "is offline".to_owned(), format!("cpus/{at}/online"), "false".to_owned(), advice)
        } else if let Some(class) = class.filter(|class| case.is_above(class)) {
            let curr = cpu.curr.as_ref()?;
            let why = format!("runs {}[{}] ({class})", curr.comm, curr.pid);
            let advice = "call scx_bpf_reenqueue_local() in ops.cpu_release(), or when a higher class takes a CPU, so that others can have its tasks";
            // It may have just come.
            let sure = match &hog {
                Some(hog) if hog.explains() => Confidence::Likely,
                _ => Confidence::Possible,
            };
            (sure, why, format!("cpus/{at}/curr/class"), class.to_owned(), advice)
        } else if let Some(idle_ns) = holders::sleeps(cpu) {
            let advice = "kick a CPU (scx_bpf_kick_cpu()) after a task was put on its local queue";
            (
                Confidence::Likely,
                "is idle".to_owned(),
                format!("cpus/{at}/idle_state/idle_ns"),
                idle_ns.to_string(),
                advice,
            )
        } else {
            // One that stands is another rule's.
            let held = holders::held(case, at, cpu, holders::wait_ns(longest));
            let held = held.filter(|_| !case.stands(cpu))?;
            let (path, value) = held.evidence().into_iter().next()?;
            let advice = "give slices that end, or take the CPU away with SCX_KICK_PREEMPT after a task was put on its local queue";
            let why = format!("runs {}", holders::held_by(&held));
            let sure = if held.long() { Confidence::Likely } else { Confidence::Possible };
            (sure, why, path, value.to_string(), advice)
        };
        let names: Vec<String> = tasks.iter().map(|(_, task)| name(task)).collect();
        let mut draft = Draft::new(
            confidence,
            format!(
                "{} cannot leave the local DSQ of CPU {}, which {why}; waited up to {}",
                listed(&names),
                cpu.cpu,
                waited(longest.runnable_age_ms)
            ),
        )
        .advice(advice)
        .rests_on(path, value);
        if let Some(hog) = hog.filter(|_| cpu.online != Some(false))
            && let Some(ns) = hog.task.sum_exec_ns
        {
            draft = draft.rests_on(format_args!("tasks/{}/sum_exec_ns", hog.task_at), ns);
        }
        draft = draft.explains(tasks.iter().map(|&(index, _)| index));
        for (index, task) in tasks.iter().take(4) {
            draft = draft
                .rests_on(format_args!("starved/{index}/dsq_origin"), &origin)
                .rests_on(format_args!("starved/{index}/runnable_age_ms"), task.runnable_age_ms);
        }
        Some(draft)
    })
    .collect()
}
