//! Who has a CPU, and for how long: what several rules have to know.
//!
//! A class above sched_ext runs before it for as long as it likes; a task of sched_ext keeps its CPU
//! until its slice ends; and a CPU may sleep.

use std::cmp::Reverse;
use std::collections::HashMap;

use scx_postmortem_format::report::{CpuInfo, CurrTask, StarvedTask, TaskInfo};

use super::{Case, Confidence, waited};

/// One that has run for this part of the wait, without a switch, is no passer-by.
const AT_ONCE: u64 = 8;
/// Nor are such tasks that had the CPU for this part of it in all; or for the former, when one of
/// them waits for the CPU itself.
const IN_ALL: u64 = 2;

/// A CPU that a class above sched_ext has, and by which of its tasks.
pub(super) struct Hog<'r> {
    pub(super) at: usize,
    pub(super) cpu: &'r CpuInfo,
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
fn running_ns(cpu: &CpuInfo) -> Option<u64> {
    let running = cpu.curr.as_ref()?.running_ns?;
    Some(running.saturating_add(cpu.clock_behind_ns.unwrap_or(0)))
}

/// For how long, at least, a task ran in the last `wait_ns`: what it has run for in all, less what it
/// may have run for before. A clock of a run queue goes as `CLOCK_MONOTONIC` does, give or take what
/// passes before the kernel has that.
fn ran_within(case: &Case<'_>, task: &TaskInfo, wait_ns: u64) -> Option<u64> {
    let life = case.newest_clock_ns?.checked_sub(task.start_time_ns?)?;
    let before = life.saturating_sub(wait_ns);
    Some(task.sum_exec_ns?.saturating_sub(before).min(wait_ns))
}

pub(super) const fn wait_ns(starved: &StarvedTask) -> u64 {
    starved.runnable_age_ms.saturating_mul(1_000_000)
}

/// What `of` says of each CPU that a starved task may use, against its wait, when it says something
/// of all of them.
fn on_all<'r, T>(
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
pub(super) fn takers<'r>(case: &Case<'r>, starved: &StarvedTask) -> Option<Vec<Hog<'r>>> {
    on_all(case, starved, hog)
}

/// Whether other classes have all CPUs that a starved task may use, and have had them for long.
pub(super) fn hogged(case: &Case<'_>, starved: &StarvedTask) -> bool {
    takers(case, starved).is_some_and(|hogs| hogs.iter().all(Hog::explains))
}

/// What is left of a slice that does not end soon.
const LONG_SLICE_NS: u64 = 1_000_000_000;

/// How a task keeps a CPU.
#[derive(Clone, Copy)]
enum Kept {
    /// For so many ns, half of the wait or more, without a switch.
    Unbroken(u64),
    /// For so many ns of the wait, half of it or more.
    Within(u64),
    /// It cannot be told for how long it has, but its slice does not end soon.
    Slice,
}

/// A CPU that one task keeps from a starved one.
pub(super) struct Held<'r> {
    pub(super) at: usize,
    pub(super) cpu: &'r CpuInfo,
    pub(super) curr: &'r CurrTask,
    task: Option<(usize, &'r TaskInfo)>,
    kept: Kept,
    /// A class above sched_ext runs there, or nothing at all: other rules tell.
    pub(super) other: bool,
}

impl Held<'_> {
    /// What is left of the slice, where that is long.
    pub(super) fn slice_ns(&self) -> Option<u64> {
        let slice = self.task?.1.slice_ns?;
        (slice >= LONG_SLICE_NS).then_some(slice)
    }

    /// Whether it is known that it has had the CPU for half of the wait.
    pub(super) const fn long(&self) -> bool {
        !matches!(self.kept, Kept::Slice)
    }

    /// The facts that say so: JSON pointers and what is there.
    pub(super) fn evidence(&self) -> Vec<(String, u64)> {
        let mut facts = Vec::new();
        let mut add = |path: String, value: Option<u64>| facts.extend(value.map(|v| (path, v)));
        match (self.kept, self.task) {
            (Kept::Within(_), Some((at, task))) => {
                add(format!("tasks/{at}/sum_exec_ns"), task.sum_exec_ns);
                add(format!("tasks/{at}/start_time_ns"), task.start_time_ns);
            }
            _ => {
                let path = format!("cpus/{}/curr/running_ns", self.at);
                add(path, self.curr.running_ns);
            }
        }
        if let Some((at, _)) = self.task {
            add(format!("tasks/{at}/slice_ns"), self.slice_ns());
        }
        facts
    }
}

/// The task that has had a CPU for half of a wait of that length, or that nothing takes it from soon.
/// Whatever its class is, the idle task does not count.
pub(super) fn held<'r>(
    case: &Case<'r>,
    at: usize,
    cpu: &'r CpuInfo,
    wait_ns: u64,
) -> Option<Held<'r>> {
    if cpu.online == Some(false) || cpu.idle != Some(false) {
        return None;
    }
    let curr = cpu.curr.as_ref()?;
    let class = curr.class.as_deref().filter(|class| *class != "idle")?;
    let task = case.task_at(curr.kva);
    let long = |ns: &u64| *ns >= wait_ns / 2;
    let other = case.is_above(class) || case.stands(cpu);
    let within = || {
        let ran = ran_within(case, task?.1, wait_ns).filter(long);
        ran.filter(|_| class == "ext" || other)
    };
    let mut held = Held {
        at,
        cpu,
        curr,
        task,
        kept: Kept::Slice,
        other,
    };
    if let Some(ns) = running_ns(cpu).filter(long) {
        held.kept = Kept::Unbroken(ns);
    } else if let Some(ns) = within() {
        held.kept = Kept::Within(ns);
    } else if class != "ext" || held.slice_ns().is_none() {
        return None;
    }
    Some(held)
}

/// Who holds each CPU that a starved task may use, when all are held or stand still.
pub(super) fn holders<'r>(case: &Case<'r>, starved: &StarvedTask) -> Option<Vec<Held<'r>>> {
    on_all(case, starved, held)
}

/// How sure it is that a starved task waits for the tasks that hold its CPUs.
pub(super) fn sure(held: &[Held<'_>]) -> Confidence {
    let firm = |held: &Held<'_>| held.other || (held.long() && held.slice_ns().is_some());
    if held.iter().all(firm) {
        Confidence::Likely
    } else {
        Confidence::Possible
    }
}

/// The same of a starved task, where all of its CPUs are held.
pub(super) fn taken(case: &Case<'_>, starved: &StarvedTask) -> Option<Confidence> {
    holders(case, starved).map(|held| sure(&held))
}

/// `busy[101] (ext) for 15.000s without a switch`, or how else it keeps the CPU.
pub(super) fn held_by(held: &Held<'_>) -> String {
    let curr = held.curr;
    let class = curr.class.as_deref().unwrap_or_default();
    let who = format!("{}[{}] ({class})", curr.comm, curr.pid);
    match held.kept {
        Kept::Unbroken(ns) => format!("{who} for {} without a switch", waited(ns / 1_000_000)),
        Kept::Within(ns) => format!("{who} for {} of the wait or longer", waited(ns / 1_000_000)),
        Kept::Slice => who,
    }
}

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
