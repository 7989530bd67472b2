//! CPUs that one and the same task keeps while others wait.
//!
//! A task of sched_ext keeps its CPU until its slice ends, and one with `SCX_SLICE_INF` until
//! somebody takes that away: nothing else in a user queue is looked at meanwhile. One whose slice is
//! short may be let on each time because `ops.dispatch()` had nothing else for the CPU, and then the
//! queue is to blame as well as the task.

use scx_postmortem_format::report::{CpuInfo, CurrTask, StarvedTask, TaskInfo};

use super::{Case, Confidence, Draft, listed, name, realtime, stuck, waited};

/// What is left of a slice that does not end soon.
const LONG_SLICE_NS: u64 = 1_000_000_000;

/// A CPU that has run one task for half of a wait or longer.
pub(super) struct Held<'r> {
    at: usize,
    cpu: &'r CpuInfo,
    pub(super) curr: &'r CurrTask,
    task: Option<(usize, &'r TaskInfo)>,
    pub(super) ns: u64,
    /// A class above sched_ext runs there, or nothing at all: other rules tell.
    other: bool,
}

impl Held<'_> {
    /// What is left of the slice, where that is long.
    fn slice_ns(&self) -> Option<u64> {
        let slice = self.task?.1.slice_ns?;
        (slice >= LONG_SLICE_NS).then_some(slice)
    }
}

/// The task that has had a CPU for half of a wait of that length. Whatever its class is, the idle
/// task does not count.
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
    let ns = realtime::running_ns(cpu).filter(|&ns| ns >= wait_ns / 2)?;
    Some(Held {
        at,
        cpu,
        curr,
        task: case.task_at(curr.kva),
        ns,
        other: case.is_above(class) || stuck::stands(case, cpu),
    })
}

/// Who holds each CPU that a starved task may use, when all are held or stand still.
fn holders<'r>(case: &Case<'r>, starved: &StarvedTask) -> Option<Vec<Held<'r>>> {
    realtime::on_all(case, starved, held)
}

/// How sure it is that a starved task waits for the tasks that hold its CPUs.
fn sure(held: &[Held<'_>]) -> Confidence {
    let firm = |held: &Held<'_>| held.other || held.slice_ns().is_some();
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
        let on = format!("{} on CPU {}", held_by(held), held.cpu.cpu);
        let endless = held.slice_ns() == Some(u64::MAX);
        format!(
            "{on}{}",
            if endless {
                ", with an infinite slice"
            } else {
                ""
            }
        )
    });
    let advice = match sure(&all) {
        Confidence::Possible => {
            "the slice of such a task is short: find what gives it another each time, a callback that sets it, or ops.dispatch() that has nothing else for this CPU"
        }
        _ => {
            "give slices that end, or take the CPU away with scx_bpf_kick_cpu() and SCX_KICK_PREEMPT when others wait for it"
        }
    };
    let mut draft = Draft::new(
        sure(&all),
        format!(
            "all CPUs that {} may use have each run one task for half of the wait or longer: {}; waited up to {}",
            listed(&who),
            tasks.collect::<Vec<_>>().join(", "),
            waited(longest.runnable_age_ms)
        ),
    )
    .advice(advice);
    for held in &all {
        if let Some(ns) = held.curr.running_ns {
            draft = draft.rests_on(format_args!("cpus/{}/curr/running_ns", held.at), ns);
        }
        if let (Some((at, _)), Some(slice)) = (held.task, held.slice_ns()) {
            draft = draft.rests_on(format_args!("tasks/{at}/slice_ns"), slice);
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

/// `busy[101] (ext) for 15.000s without a switch`.
pub(super) fn held_by(held: &Held<'_>) -> String {
    let curr = held.curr;
    let class = curr.class.as_deref().unwrap_or_default();
    format!(
        "{}[{}] ({class}) for {} without a switch",
        curr.comm,
        curr.pid,
        waited(held.ns / 1_000_000)
    )
}
