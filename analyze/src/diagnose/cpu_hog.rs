//! CPUs that one and the same task keeps while others wait.
//!
//! It does not keep them in one piece: tasks of higher classes come in between, the detector of soft
//! lockups every few seconds, and what is left of its slice brings it back.
//!
//! A task of sched_ext keeps its CPU until its slice ends, and one with `SCX_SLICE_INF` until
//! somebody takes that away: nothing else in a user queue is looked at meanwhile. One whose slice is
//! short may be let on each time because `ops.dispatch()` had nothing else for the CPU, and then the
//! queue is to blame as well as the task.

use scx_postmortem_format::report::{CpuInfo, CurrTask, StarvedTask, TaskInfo};

use super::{Case, Confidence, Draft, listed, name, realtime, stuck, waited};

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
    at: usize,
    cpu: &'r CpuInfo,
    pub(super) curr: &'r CurrTask,
    task: Option<(usize, &'r TaskInfo)>,
    kept: Kept,
    /// A class above sched_ext runs there, or nothing at all: other rules tell.
    other: bool,
}

impl Held<'_> {
    /// What is left of the slice, where that is long.
    fn slice_ns(&self) -> Option<u64> {
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
    let other = case.is_above(class) || stuck::stands(case, cpu);
    let within = || {
        let ran = realtime::ran_within(case, task?.1, wait_ns).filter(long);
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
    if let Some(ns) = realtime::running_ns(cpu).filter(long) {
        held.kept = Kept::Unbroken(ns);
    } else if let Some(ns) = within() {
        held.kept = Kept::Within(ns);
    } else if class != "ext" || held.slice_ns().is_none() {
        return None;
    }
    Some(held)
}

/// Who holds each CPU that a starved task may use, when all are held or stand still.
fn holders<'r>(case: &Case<'r>, starved: &StarvedTask) -> Option<Vec<Held<'r>>> {
    realtime::on_all(case, starved, held)
}

/// How sure it is that a starved task waits for the tasks that hold its CPUs.
fn sure(held: &[Held<'_>]) -> Confidence {
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

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let mut victims = Vec::new();
    let mut all = Vec::new();
    for (index, task) in case.starved() {
        if case.user_queue(task).is_none() {
            continue;
        }
        if let Some(held) = holders(case, task)
            && held.iter().any(|held| !held.other)
        {
            victims.push((index, task));
            all.extend(held);
        }
    }
    let Some((_, longest)) = victims.first() else {
        return Vec::new();
    };
    all.sort_by_key(|held| held.at);
    all.dedup_by_key(|held| held.at);
    let who: Vec<String> = victims.iter().map(|(_, task)| name(task)).collect();
    let tasks = all.iter().map(|held| {
        let of = held
            .slice_ns()
            .map_or_else(String::new, |slice| match slice {
                u64::MAX => ", with an infinite slice".to_owned(),
                ns => format!(", with {} left of its slice", waited(ns / 1_000_000)),
            });
        format!("{} on CPU {}{of}", held_by(held), held.cpu.cpu)
    });
    let advice = match all.iter().any(|held| held.slice_ns().is_some()) {
        false => {
            "the slice of such a task is short: find what gives it another each time, a callback that sets it, or ops.dispatch() that has nothing else for this CPU"
        }
        true => {
            "give slices that end, or take the CPU away with scx_bpf_kick_cpu() and SCX_KICK_PREEMPT when others wait for it"
        }
    };
    let mut draft = Draft::new(
        sure(&all),
        format!(
            "one task each keeps all CPUs that {} may use: {}; waited up to {}",
            listed(&who),
            tasks.collect::<Vec<_>>().join(", "),
            waited(longest.runnable_age_ms)
        ),
    )
    .advice(advice);
    for held in &all {
        for (path, value) in held.evidence() {
            draft = draft.rests_on(path, value);
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
