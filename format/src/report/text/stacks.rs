//! Kernel stacks as text: of what the CPUs run, of starved tasks and of those in
//! uninterruptible sleep. The JSON has every task's.

use std::collections::{BTreeSet, HashMap};

use super::super::hex::Hex;
use super::super::postmortem::{CpuInfo, Frame, PostmortemReport, TaskInfo};
use super::escape::Escaped;
use super::postmortem::{SHOWN_ROWS, more};

/// Different stacks that are shown.
const SHOWN_STACKS: usize = 16;

/// A frame: address, function, and the line of a BPF program.
pub(super) fn frame_line(frame: &Frame) -> String {
    let symbol = Escaped(frame.symbol.as_deref().unwrap_or("?"));
    let source = frame.source.as_deref().map(Escaped);
    let source = source.map_or(String::new(), |source| format!(" ({source})"));
    format!("{:>18} {symbol}{source}", frame.addr)
}

/// Whether a CPU was stopped while it wrote the kernel's dump: it does so in an interrupt, and the
/// task that it ran before has nothing to do with it (kernel/sched/ext.c: `scx_error_irq_workfn()`,
/// or `scx_disable_irq_workfn()` from 7.1 on).
pub(super) fn writes_dump(report: &PostmortemReport, cpu: &CpuInfo) -> bool {
    let curr = cpu.curr.as_ref();
    let runs = |task: &&TaskInfo| curr.is_some_and(|curr| curr.kva == task.kva);
    let stack = report.tasks.iter().find(runs);
    stack.into_iter().flat_map(|task| &task.stack).any(|frame| {
        let symbol = frame.symbol.as_deref().unwrap_or_default();
        let function = symbol.split('+').next().unwrap_or_default();
        [
            "scx_dump_state",
            "scx_error_irq_workfn",
            "scx_disable_irq_workfn",
        ]
        .contains(&function)
    })
}

pub(super) fn stacks(report: &PostmortemReport) -> Vec<String> {
    let starved: BTreeSet<Hex> = report.starved.iter().map(|task| task.kva).collect();
    // Running ones first, in the order of their CPUs.
    let mut shown: Vec<&TaskInfo> = report
        .tasks
        .iter()
        .filter(|task| {
            let stuck = task.state.as_deref() == Some("D");
            let runs = task.on_cpu == Some(true);
            let told = !task.stack.is_empty() || task.stack_end.is_some();
            told && (runs || stuck || starved.contains(&task.kva))
        })
        .collect();
    shown.sort_by_key(|task| (task.on_cpu != Some(true), task.cpu, task.pid));
    // Tasks that wait for the same thing have the same stack.
    let mut groups: Vec<(Vec<String>, &TaskInfo)> = Vec::new();
    let mut same: HashMap<(bool, Vec<u64>, Option<&str>), usize> = HashMap::new();
    for task in shown {
        let on_cpu = task.on_cpu == Some(true);
        let name = format!("{} ({})", task.pid, Escaped(&task.comm));
        let frames: Vec<u64> = task.stack.iter().map(|frame| frame.addr.0).collect();
        let at = *same
            .entry((on_cpu, frames, task.stack_end.as_deref()))
            .or_insert(groups.len());
        match groups.get_mut(at).filter(|_| !on_cpu) {
            Some((names, _)) => names.push(name),
            None => groups.push((vec![name], task)),
        }
    }
    let mut lines = Vec::new();
    for (names, task) in groups.iter().take(SHOWN_STACKS) {
        let place = match task.cpu.filter(|_| task.on_cpu == Some(true)) {
            Some(cpu) => format!("on cpu {cpu}"),
            None => task.state_name.clone().unwrap_or_default(),
        };
        let place = if place == "running" {
            "runnable".to_owned()
        } else {
            place
        };
        lines.push(format!("{}, {place}:", names.join(", ")));
        for frame in task.stack.iter().take(SHOWN_ROWS) {
            lines.push(format!("  {}", frame_line(frame)));
        }
        lines.extend(more(task.stack.len(), SHOWN_ROWS).map(|text| format!("  {text}")));
        lines.extend(
            task.stack_end
                .iter()
                .map(|end| format!("  ({})", Escaped(end))),
        );
    }
    lines.extend(more(groups.len(), SHOWN_STACKS));
    lines
}
