//! CPUs taken by classes above sched_ext.
//!
//! A real-time, deadline or stop task runs before any task of sched_ext, for as long as it likes:
//! no BPF scheduler can do anything about it. So does a fair task, where the scheduler has only the
//! tasks that asked for it.

use std::cmp::Reverse;
use std::collections::HashMap;

use scx_postmortem_format::report::{CpuInfo, StarvedTask, TaskInfo};

use super::{Case, Confidence, Draft, listed, name, waited};

/// One that has run for this part of the wait, without a switch, is no passer-by.
const AT_ONCE: u64 = 8;
/// Nor are such tasks that had the CPU for this part of it in all; or for the former, when one of
/// them waits for the CPU itself.
const IN_ALL: u64 = 2;

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

/// Tasks of a CPU that are added up.
const MOST: usize = 16;

/// The tasks of classes above sched_ext that a CPU has, those that have run longest.
#[derive(Default)]
pub(super) struct Above {
    /// Where they are in the list of tasks.
    tasks: Vec<usize>,
    /// The first of them that can run: what runs at this instant may have just come. Where that is
    /// another one, this one waits for it.
    runnable: Option<usize>,
}

/// These of each CPU.
pub(super) fn above(case: &Case<'_>) -> HashMap<u32, Above> {
    let mut above: HashMap<u32, Above> = HashMap::new();
    let tasks = case.report.tasks.iter().enumerate();
    let mut tasks: Vec<_> = tasks
        .filter(|(_, task)| {
            task.class
                .as_deref()
                .is_some_and(|class| case.is_above(class))
        })
        .collect();
    tasks.sort_by_key(|(_, task)| (Reverse(task.sum_exec_ns), task.kva));
    for (at, task) in tasks {
        let Some(cpu) = task.cpu else { continue };
        let on = above.entry(cpu).or_default();
        if on.tasks.len() < MOST {
            on.tasks.push(at);
        }
        if task.on_rq == Some(1) {
            on.runnable.get_or_insert(at);
        }
    }
    above
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
    let above = case.above.get(&cpu.cpu)?;
    let task_at = above.runnable?;
    let task = case.report.tasks.get(task_at)?;
    let at_once = running_ns(cpu).is_some_and(|ns| ns >= wait_ns / AT_ONCE);
    // Several can share a CPU, some of which have ended since. What they ran for before the wait does
    // not count.
    let in_all = || {
        let queue = curr.kva != task.kva;
        let part = if queue { AT_ONCE } else { IN_ALL };
        let tasks = above
            .tasks
            .iter()
            .filter_map(|&at| case.report.tasks.get(at));
        let ran = tasks.filter_map(|task| ran_within(case, task, wait_ns));
        ran.fold(0, u64::saturating_add) >= wait_ns / part
    };
    let servers = cpu.throttling.iter().flat_map(|t| &t.servers);
    let served = servers
        .filter(|server| server.class == "ext" && server.active == Some(true))
        .any(|server| server.runtime_ns.is_some_and(|ns| ns > 0));
    Some(Hog {
        at,
        cpu,
        task_at,
        task,
        long: at_once || in_all(),
        served,
    })
}

/// For how long a CPU has run its current task without a switch: its own clock may be behind.
pub(super) fn running_ns(cpu: &CpuInfo) -> Option<u64> {
    let running = cpu.curr.as_ref()?.running_ns?;
    Some(running.saturating_add(cpu.clock_behind_ns.unwrap_or(0)))
}

/// For how long, at least, a task ran in the last `wait_ns`: what it has run for in all, less what it
/// may have run for before. A clock of a run queue goes as `CLOCK_MONOTONIC` does, give or take what
/// passes before the kernel has that.
pub(super) fn ran_within(case: &Case<'_>, task: &TaskInfo, wait_ns: u64) -> Option<u64> {
    let life = case.newest_clock_ns?.checked_sub(task.start_time_ns?)?;
    let before = life.saturating_sub(wait_ns);
    Some(task.sum_exec_ns?.saturating_sub(before).min(wait_ns))
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
