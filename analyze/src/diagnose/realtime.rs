//! CPUs taken by classes above sched_ext.
//!
//! A real-time, deadline or stop task runs before any task of sched_ext, for as long as it likes:
//! no BPF scheduler can do anything about it. So does a fair task, where the scheduler has only the
//! tasks that asked for it.

use super::holders::{self, Hog};
use super::{Case, Confidence, Draft, listed, name, waited};

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let mut victims = Vec::new();
    let mut all = Vec::new();
    for (index, task) in case.starved() {
        if let Some(hogs) = holders::takers(case, task) {
            victims.push((index, task));
            all.extend(hogs);
        }
    }
    let Some((_, longest)) = victims.first() else {
        return Vec::new();
    };
    all.sort_by_key(|hog| hog.at);
    all.dedup_by_key(|hog| hog.at);
    let who: Vec<String> = victims.iter().map(|(_, task)| name(task)).collect();
    let hogs = all.iter().map(|hog| {
        let class = hog.task.class.as_deref().unwrap_or_default();
        let (comm, pid) = (&hog.task.comm, hog.task.pid);
        // Several take turns: the one that has run longest is told, and what runs at this instant.
        let now = hog
            .cpu
            .curr
            .as_ref()
            .filter(|curr| curr.kva != hog.task.kva);
        let now = now.map_or(String::new(), |curr| {
            let class = curr.class.as_deref().unwrap_or_default();
            format!(", where {}[{}] ({class}) runs now", curr.comm, curr.pid)
        });
        format!("{comm}[{pid}] ({class}) on CPU {}{now}", hog.cpu.cpu)
    });
    let mut draft = Draft::new(
        if all.iter().all(Hog::explains) {
            Confidence::Likely
        } else {
            Confidence::Possible
        },
        format!(
            "tasks of a class above sched_ext have all CPUs that {} may use: {}; waited up to {}",
            listed(&who),
            hogs.collect::<Vec<_>>().join(", "),
            waited(longest.runnable_age_ms)
        ),
    )
    .advice("find out why these run for so long: no BPF scheduler can take a CPU from them");
    for hog in &all {
        let curr = hog.cpu.curr.as_ref();
        let class = curr.and_then(|curr| curr.class.as_deref());
        draft = draft.rests_on(
            format_args!("cpus/{}/curr/class", hog.at),
            class.unwrap_or_default(),
        );
        if let Some(ns) = hog.task.sum_exec_ns {
            draft = draft.rests_on(format_args!("tasks/{}/sum_exec_ns", hog.task_at), ns);
        }
    }
    draft = draft.explains(victims.iter().map(|&(index, _)| index));
    for (index, task) in victims.iter().take(4) {
        draft = draft.rests_on(
            format_args!("starved/{index}/runnable_age_ms"),
            task.runnable_age_ms,
        );
    }
    vec![draft]
}
