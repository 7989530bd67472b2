//! CPUs taken by classes above sched_ext.
//!
//! A real-time, deadline or stop task runs before any task of sched_ext, for as long as it likes:
//! no BPF scheduler can do anything about it.

use scx_postmortem_format::report::{CpuInfo, StarvedTask, TaskInfo};

use super::{Case, Confidence, Draft, listed, name, waited};

const ABOVE: [&str; 3] = ["rt", "dl", "stop"];
/// Several such tasks can share a CPU: one that has run for this part of the wait is no passer-by.
const GOOD_PART: u64 = 8;

/// A CPU that a class above sched_ext has, and by which of its tasks.
pub(super) struct Hog<'r> {
    at: usize,
    cpu: &'r CpuInfo,
    task_at: usize,
    task: &'r TaskInfo,
    /// It has run for a good part of the time that the starved task waited.
    long: bool,
}

/// Who has each CPU that a starved task may use, when other classes run on all of them: the one
/// of their tasks there that has run longest, for what runs at this instant may have just come.
fn takers<'r>(case: &Case<'r>, starved: &StarvedTask) -> Option<Vec<Hog<'r>>> {
    let cpus = case.may_use(starved).filter(|cpus| !cpus.is_empty())?;
    let wait_ns = starved.runnable_age_ms.saturating_mul(1_000_000);
    cpus.into_iter()
        .map(|(at, cpu)| {
            let curr = cpu.curr.as_ref()?;
            if !ABOVE.contains(&curr.class.as_deref()?) {
                return None;
            }
            let tasks = case.report.tasks.iter().enumerate();
            let (task_at, task) = tasks
                .filter(|(_, task)| {
                    task.cpu == Some(cpu.cpu)
                        && task.on_rq == Some(1)
                        && task.class.as_deref().is_some_and(|c| ABOVE.contains(&c))
                })
                .max_by_key(|(_, task)| (task.sum_exec_ns, std::cmp::Reverse(task.kva)))?;
            let long = task.sum_exec_ns.is_some_and(|ns| ns >= wait_ns / GOOD_PART);
            Some(Hog {
                at,
                cpu,
                task_at,
                task,
                long,
            })
        })
        .collect()
}

/// Whether other classes have all CPUs that a starved task may use, and have had them for long.
pub(super) fn hogged(case: &Case<'_>, starved: &StarvedTask) -> bool {
    takers(case, starved).is_some_and(|hogs| hogs.iter().all(|hog| hog.long))
}

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let mut victims = Vec::new();
    let mut all = Vec::new();
    for (index, task) in case.starved() {
        if let Some(hogs) = takers(case, task) {
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
        format!("{comm}[{pid}] ({class}) on CPU {}", hog.cpu.cpu)
    });
    // A server that lends sched_ext some time under such a load makes it a delay, no stop.
    let served = all.iter().any(|hog| {
        let servers = hog.cpu.throttling.iter().flat_map(|t| &t.servers);
        servers
            .filter(|server| server.class == "ext" && server.active == Some(true))
            .any(|server| server.runtime_ns.is_some_and(|ns| ns > 0))
    });
    let mut draft = Draft::new(
        if all.iter().all(|hog| hog.long) && !served {
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
    .advice("a BPF scheduler cannot preempt real-time, deadline or stop tasks: look at why these run so long");
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
