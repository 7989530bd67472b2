//! CPUs taken by classes above sched_ext.
//!
//! A real-time, deadline or stop task runs before any task of sched_ext, for as long as it likes:
//! no BPF scheduler can do anything about it. So does a fair task, where the scheduler has only the
//! tasks that asked for it.

use std::cmp::Reverse;
use std::collections::HashMap;

use scx_postmortem_format::report::{CpuInfo, Hex, StarvedTask, TaskInfo};

use super::{Case, Confidence, Draft, listed, name, waited};

/// Several such tasks can share a CPU: one that has run for this part of the wait is no passer-by.
const GOOD_PART: u64 = 8;
/// It is none either with this part of the time since boot, in which its own life is.
const OF_UPTIME: u64 = 16;

/// A CPU that a class above sched_ext has, and by which of its tasks.
pub(super) struct Hog<'r> {
    at: usize,
    cpu: &'r CpuInfo,
    pub(super) task_at: usize,
    pub(super) task: &'r TaskInfo,
    /// It has run for a good part of the time that the starved task waited.
    long: bool,
    /// A server lends sched_ext some time meanwhile, which makes it a delay, no stop.
    served: bool,
}

impl Hog<'_> {
    /// Whether that explains the wait.
    pub(super) const fn explains(&self) -> bool {
        self.long && !self.served
    }
}

/// For each CPU, the task of a class above sched_ext there that has run longest: what runs at this
/// instant may have just come.
pub(super) fn longest(case: &Case<'_>) -> HashMap<u32, usize> {
    let mut longest: HashMap<u32, (Option<u64>, Reverse<Hex>, usize)> = HashMap::new();
    for (at, task) in case.report.tasks.iter().enumerate() {
        let class = task.class.as_deref();
        let above = class.is_some_and(|class| case.is_above(class));
        if let Some(cpu) = task.cpu.filter(|_| above && task.on_rq == Some(1)) {
            let this = (task.sum_exec_ns, Reverse(task.kva), at);
            let most = longest.entry(cpu).or_insert(this);
            *most = this.max(*most);
        }
    }
    let longest = longest.into_iter();
    longest.map(|(cpu, (.., at))| (cpu, at)).collect()
}

/// Who has the CPU, when it is a class above sched_ext, against a wait of that length.
pub(super) fn hog<'r>(
    case: &Case<'r>,
    at: usize,
    cpu: &'r CpuInfo,
    wait_ns: u64,
) -> Option<Hog<'r>> {
    let curr = cpu.curr.as_ref()?;
    if !case.is_above(curr.class.as_deref()?) {
        return None;
    }
    let task_at = *case.above.get(&cpu.cpu)?;
    let task = case.report.tasks.get(task_at)?;
    let part = wait_ns / GOOD_PART;
    // What it has run for in all its life says little of one that began long ago. Nobody knows when
    // it did; not before the guest did.
    let mostly = |ns: u64| {
        let life_ns = case.newest_clock_ns;
        life_ns.is_some_and(|life| ns.saturating_mul(OF_UPTIME) >= life)
    };
    let at_once = (curr.kva == task.kva)
        .then(|| running_ns(cpu))
        .flatten()
        .is_some_and(|ns| ns >= part);
    let ran = task.sum_exec_ns.filter(|&ns| ns >= part);
    let servers = cpu.throttling.iter().flat_map(|t| &t.servers);
    let served = servers
        .filter(|server| server.class == "ext" && server.active == Some(true))
        .any(|server| server.runtime_ns.is_some_and(|ns| ns > 0));
    Some(Hog {
        at,
        cpu,
        task_at,
        task,
        long: ran.is_some_and(|ns| at_once || mostly(ns)),
        served,
    })
}

/// For how long a CPU has run its current task without a switch: its own clock may be behind.
pub(super) fn running_ns(cpu: &CpuInfo) -> Option<u64> {
    let running = cpu.curr.as_ref()?.running_ns?;
    Some(running.saturating_add(cpu.clock_behind_ns.unwrap_or(0)))
}

pub(super) const fn wait_ns(starved: &StarvedTask) -> u64 {
    starved.runnable_age_ms.saturating_mul(1_000_000)
}

/// What `of` says of each CPU that a starved task may use, against its wait, when it says something
/// of all of them.
pub(super) fn on_all<'r, T>(
    case: &Case<'r>,
    starved: &StarvedTask,
    of: fn(&Case<'r>, usize, &'r CpuInfo, u64) -> Option<T>,
) -> Option<Vec<T>> {
    let cpus = case.may_use(starved).filter(|cpus| !cpus.is_empty())?;
    let wait_ns = wait_ns(starved);
    let cpus = cpus.into_iter();
    cpus.map(|(at, cpu)| of(case, at, cpu, wait_ns)).collect()
}

/// Who has each CPU that a starved task may use, when other classes run on all of them.
fn takers<'r>(case: &Case<'r>, starved: &StarvedTask) -> Option<Vec<Hog<'r>>> {
    on_all(case, starved, hog)
}

/// Whether other classes have all CPUs that a starved task may use, and have had them for long.
pub(super) fn hogged(case: &Case<'_>, starved: &StarvedTask) -> bool {
    takers(case, starved).is_some_and(|hogs| hogs.iter().all(Hog::explains))
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
    .advice("a BPF scheduler cannot preempt tasks of real-time, deadline or stop class, nor of fair class where it has not all of them: look at why these run so long");
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
