//! CPUs that have not been heard of for a while, in the middle of the kernel.
//!
//! A CPU that is not idle brings its run queue's clock up to date at each tick. One whose clock
//! stands while its registers are in the kernel has taken no tick: interrupts are off, or nobody
//! gets that far.

use scx_postmortem_format::report::{CpuInfo, CurrTask, Frame};

use super::{Case, Confidence, Draft};

/// How far a clock may be behind before it counts: a tick comes every few ms, but a host that is
/// out of breath does not run all vCPUs.
const BEHIND_NS: u64 = 2_000_000_000;

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let cpus = &case.report.cpus;
    let Some(newest) = cpus.iter().filter_map(|cpu| cpu.clock_ns).max() else {
        return Vec::new();
    };
    cpus.iter()
        .enumerate()
        .filter_map(|(at, cpu)| stuck(case, at, cpu, newest))
        .collect()
}

fn stuck(case: &Case<'_>, at: usize, cpu: &CpuInfo, newest: u64) -> Option<Draft> {
    if cpu.online == Some(false) || cpu.idle != Some(false) {
        return None;
    }
    let clock = cpu.clock_ns?;
    let behind = newest.checked_sub(clock).filter(|&ns| ns >= BEHIND_NS)?;
    let curr = cpu.curr.as_ref()?;
    let mut tasks = case.report.tasks.iter().enumerate();
    let (task_at, task) = tasks.find(|(_, task)| task.kva == curr.kva)?;
    // Without frames it was in user space, or nobody knows where.
    let inner = task.stack.first()?.symbol.as_deref()?;
    let mut frames = task.stack.iter().enumerate();
    let program = frames.rfind(|(_, frame)| frame.source.is_some());
    let place = program.map_or_else(
        || format!("in {inner}"),
        |(_, frame)| format!("in the BPF program {}", program_place(frame)),
    );
    let irqs_off = cpu
        .context
        .as_ref()
        .is_some_and(|context| context.irqs_enabled == Some(false));
    let mut draft = Draft::new(
        if irqs_off {
            Confidence::Certain
        } else {
            Confidence::Likely
        },
        format!(
            "CPU {} has been in the kernel{} without a tick for {}.{:03}s, with {}: {place}",
            cpu.cpu,
            if irqs_off {
                " with interrupts off,"
            } else {
                ""
            },
            behind / 1_000_000_000,
            behind / 1_000_000 % 1000,
            who(curr),
        ),
    )
    .advice("BPF callbacks run with interrupts off: bound every loop by the work that there can be")
    .rests_on(format_args!("cpus/{at}/clock_ns"), clock)
    .rests_on(format_args!("cpus/{at}/idle"), false)
    .rests_on(format_args!("tasks/{task_at}/stack/0/symbol"), inner);
    if irqs_off {
        draft = draft.rests_on(format_args!("cpus/{at}/context/irqs_enabled"), false);
    }
    if let Some((index, frame)) = program {
        draft = draft.rests_on(
            format_args!("tasks/{task_at}/stack/{index}/source"),
            frame.source.as_deref().unwrap_or_default(),
        );
    }
    Some(draft)
}

fn who(curr: &CurrTask) -> String {
    format!("{}[{}]", curr.comm, curr.pid)
}

/// `name() at file:line` of a frame of a BPF program.
fn program_place(frame: &Frame) -> String {
    let symbol = frame.symbol.as_deref().unwrap_or_default();
    let source = frame.source.as_deref().unwrap_or_default();
    format!("{}() at {source}", super::program_name(symbol))
}
