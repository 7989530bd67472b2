//! CPUs that have not been heard of for a while, in the middle of the kernel.
//!
//! A CPU that is not idle brings its run queue's clock up to date at each tick. One whose clock
//! stands while its registers are in the kernel has taken no tick: interrupts are off, or nobody
//! gets that far. Where all CPUs stand, no clock of the guest tells, but the time stamp counter
//! does, which goes on (`timekeeping_age_ns`).

use std::collections::HashSet;

use scx_postmortem_format::report::{CpuInfo, CurrTask, Frame, TaskInfo};

use super::{Case, Confidence, Draft, program_name, waited};

/// How far a clock may be behind before it counts: a tick comes every few ms, but a host that is
/// out of breath does not run all vCPUs.
pub(super) const BEHIND_NS: u64 = 2_000_000_000;
/// Where no CPU goes on, the host may not have run any: for so long that is no hiccup.
const SURE_NS: u64 = 5_000_000_000;

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let cpus = &case.report.cpus;
    let Some(newest) = case.newest_clock_ns else {
        return Vec::new();
    };
    cpus.iter()
        .enumerate()
        .filter_map(|(at, cpu)| stuck(case, at, cpu, newest))
        .collect()
}

/// The CPUs that have taken no tick for so long that this tells of them.
pub(super) fn standing(case: &Case<'_>) -> HashSet<u32> {
    let Some(newest) = case.newest_clock_ns else {
        return HashSet::new();
    };
    let cpus = case.report.cpus.iter().enumerate();
    let standing = cpus.filter(|&(at, cpu)| stuck(case, at, cpu, newest).is_some());
    standing.map(|(_, cpu)| cpu.cpu).collect()
}

/// The task that a CPU runs, when it is in the kernel and not idle.
pub(super) fn inside<'r>(
    case: &Case<'r>,
    cpu: &'r CpuInfo,
) -> Option<(&'r CurrTask, usize, &'r TaskInfo)> {
    if cpu.online == Some(false) || cpu.idle != Some(false) {
        return None;
    }
    let curr = cpu.curr.as_ref()?;
    let (task_at, task) = case.task_at(curr.kva)?;
    // Without frames it was in user space, or nobody knows where.
    (!task.stack.is_empty()).then_some((curr, task_at, task))
}

fn stuck(case: &Case<'_>, at: usize, cpu: &CpuInfo, newest: u64) -> Option<Draft> {
    let (curr, task_at, task) = inside(case, cpu)?;
    // With `nohz_full=` nobody expects one.
    if cpu.tick.as_ref().and_then(|tick| tick.stopped) == Some(true) {
        return None;
    }
    let clock = cpu.clock_ns?;
    let kernel = case.report.kernel.as_ref();
    // The TSC tells of all CPUs: where time itself stands, none has taken a tick since.
    let (behind, by_tsc) = [
        (newest.checked_sub(clock), false),
        (kernel.and_then(|kernel| kernel.timekeeping_age_ns), true),
    ]
    .into_iter()
    .filter_map(|(ns, by_tsc)| Some((ns?, by_tsc)))
    .max_by_key(|&(ns, by_tsc)| (ns, !by_tsc))
    .filter(|&(ns, _)| ns >= BEHIND_NS)?;
    let Place {
        inner,
        program,
        words: place,
    } = place(task)?;
    let irqs = cpu
        .context
        .as_ref()
        .and_then(|context| context.irqs_enabled);
    let irqs_off = irqs == Some(false);
    // A vCPU that the host did not run for so long looks the same, but that it is in a loop of a
    // program of all places.
    let in_program = task.stack.first()?.source.is_some();
    let confidence = match (irqs_off, in_program) {
        (true, true) if !by_tsc || behind >= SURE_NS => Confidence::Certain,
        (true, _) => Confidence::Likely,
        (false, _) => Confidence::Possible,
    };
    let off = if irqs_off {
        " with interrupts off,"
    } else {
        ""
    };
    let advice = match program {
        Some(_) if irqs_off => {
            "BPF callbacks run with interrupts off: bound every loop by the work that there can be"
        }
        _ => {
            "look at the task's stack for a loop or a lock that is never had; a vCPU that the host did not run for so long looks the same"
        }
    };
    let mut draft = Draft::new(
        confidence,
        format!(
            "CPU {} has been in the kernel{off} without a tick for {}, with {}: {place}",
            cpu.cpu,
            waited(behind / 1_000_000),
            who(curr),
        ),
    )
    .advice(advice)
    .rests_on(format_args!("cpus/{at}/clock_ns"), clock)
    .rests_on(format_args!("cpus/{at}/idle"), false)
    .rests_on(format_args!("tasks/{task_at}/stack/0/symbol"), inner);
    if by_tsc {
        draft = draft.rests_on("kernel/timekeeping_age_ns", behind);
    }
    if irqs_off {
        draft = draft.rests_on(format_args!("cpus/{at}/context/irqs_enabled"), false);
    }
    if let Some((index, frame)) = program {
        draft = draft.rests_on(
            format_args!("tasks/{task_at}/stack/{index}/source"),
            frame.source.as_deref().unwrap_or_default(),
        );
    }
    Some(draft.explains(waiting_on(case, cpu, behind)))
}

/// The starved tasks that only this CPU takes: those on its local queue, and those that may use no
/// other and have waited for no more than twice as long as it does nothing for them.
pub(super) fn waiting_on(case: &Case<'_>, cpu: &CpuInfo, for_ns: u64) -> Vec<usize> {
    let origin = format!("local cpu {}", cpu.cpu);
    let only = case.starved().filter(|(_, task)| {
        let alone = || {
            let cpus = case.may_use(task);
            cpus.is_some_and(|cpus| matches!(&cpus[..], [(_, only)] if only.cpu == cpu.cpu))
        };
        let wait_ns = task.runnable_age_ms.saturating_mul(1_000_000);
        task.dsq_origin.as_deref() == Some(&*origin) || (for_ns >= wait_ns / 2 && alone())
    });
    only.map(|(index, _)| index).collect()
}

pub(super) fn who(curr: &CurrTask) -> String {
    format!("{}[{}]", curr.comm, curr.pid)
}

/// Where a task is.
pub(super) struct Place<'t> {
    /// The innermost function.
    pub(super) inner: &'t str,
    /// The outermost frame of a BPF program, and its number.
    pub(super) program: Option<(usize, &'t Frame)>,
    /// The more telling of the two.
    pub(super) words: String,
}

pub(super) fn place(task: &TaskInfo) -> Option<Place<'_>> {
    let inner = task.stack.first()?.symbol.as_deref()?;
    let mut frames = task.stack.iter().enumerate();
    let program = frames.rfind(|(_, frame)| frame.source.is_some());
    let words = program.map_or_else(
        || format!("in {inner}"),
        |(_, frame)| format!("in the BPF program {}", program_place(frame)),
    );
    Some(Place {
        inner,
        program,
        words,
    })
}

/// `name() at file:line` of a frame of a BPF program.
fn program_place(frame: &Frame) -> String {
    let symbol = frame.symbol.as_deref().unwrap_or_default();
    let source = frame.source.as_deref().unwrap_or_default();
    format!("{}() at {source}", program_name(symbol))
}
