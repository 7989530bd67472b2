//! What each task was doing: its kernel stack.
//!
//! A task on a CPU is where that vCPU's registers are; which one that is, the per-CPU
//! `current_task` tells. Every other task is where `__switch_to_asm()` left it:
//! `task_struct.thread.sp` and the `struct inactive_task_frame` there. Unwinding itself is in
//! [`crate::kernel::orc`].

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;
use scx_postmortem_format::report::{Frame, Hex, TaskInfo};

use super::bpf::Objects;
use super::bpf::btfs::Btfs;
use super::bpf::progs::short;
use super::{Limits, Remarks};
use crate::addr::Kva;
use crate::bytes::to_usize;
use crate::error::Result;
use crate::kernel::Kernel;
use crate::kernel::orc::{Registers, Scratch, StackFrame};
use crate::source::VcpuRegs;

/// Gives every task its stack, or the reason why it has none.
pub fn read(
    kernel: &Kernel,
    objects: &Objects<'_>,
    btfs: &Btfs<'_>,
    tasks: &mut [TaskInfo],
    limits: &Limits,
    remarks: &mut Remarks,
) {
    let on_cpu = current_tasks(kernel, remarks);
    let sched_text = sched_text(kernel, remarks);
    tasks.par_iter_mut().for_each(|task| {
        let start = match on_cpu.get(&Kva(task.kva.0)) {
            Some(&cpu) => running(kernel, cpu),
            // Neither its CPU's registers nor its saved ones are all its own.
            None if task.on_cpu == Some(true) => {
                Err("it was being switched to or from when the CPU stopped".to_owned())
            }
            None => sleeping(kernel, task),
        };
        match start {
            Ok(start) => {
                let stack = kernel.unwind(start, limits.frames);
                task.stack = stack
                    .frames
                    .iter()
                    .map(|frame| describe(kernel, objects, btfs, *frame))
                    .collect();
                task.stack_end = stack.end.reason();
                task.wchan = wait_channel(kernel, &sched_text, task);
            }
            Err(reason) => task.stack_end = Some(reason),
        }
    });
}

/// Where the functions are that only schedule and lock: `in_sched_functions()`
/// (kernel/sched/core.c).
fn sched_text(kernel: &Kernel, remarks: &mut Remarks) -> Vec<Range<Kva>> {
    let range = |start, end| Ok(kernel.symbol(start)?..kernel.symbol(end)?);
    let sched = range("__sched_text_start", "__sched_text_end");
    // Empty where all locks are inlined.
    let lock = range("__lock_text_start", "__lock_text_end");
    [sched, lock]
        .into_iter()
        .filter_map(|range| remarks.ok("tasks.wchan", range))
        .collect()
}

/// The function that a sleeping task waits in: `get_wchan()` goes up the stack to the first that
/// does more than schedule, or to the last.
fn wait_channel(kernel: &Kernel, sched_text: &[Range<Kva>], task: &TaskInfo) -> Option<String> {
    let sleeps = task.on_rq == Some(0) && task.state.as_deref() != Some("R");
    if !sleeps || task.on_cpu != Some(false) || sched_text.is_empty() {
        return None;
    }
    let mut frames = task.stack.iter().map(|frame| Kva(frame.addr.0));
    let outside = |at: &Kva| !sched_text.iter().any(|range| range.contains(at));
    let whole = task.stack_end.is_none();
    let at = frames
        .find(outside)
        .or_else(|| task.stack.last().filter(|_| whole).map(|f| Kva(f.addr.0)))?;
    let symbol = kernel.symbolize(at)?;
    Some(match symbol.split_once('+') {
        Some((name, _)) => name.to_owned(),
        None => symbol,
    })
}

/// The CPU of each task that is `current` on one.
fn current_tasks(kernel: &Kernel, remarks: &mut Remarks) -> HashMap<Kva, u32> {
    let pointer = |cpu| -> Result<Kva> {
        // In `pcpu_hot` before 6.15.
        let at = match kernel.symbol("current_task") {
            Ok(symbol) => kernel.per_cpu(symbol, cpu).unwrap_or_default(),
            Err(_) => kernel
                .per_cpu_object("pcpu_hot", "struct pcpu_hot", cpu)?
                .member("current_task")?
                .address(),
        };
        kernel.read_ptr(at)
    };
    kernel
        .cpus()
        .filter_map(|cpu| Some((remarks.ok("tasks.stack", pointer(cpu))?, cpu)))
        .collect()
}

fn sleeping(kernel: &Kernel, task: &TaskInfo) -> std::result::Result<Registers, String> {
    let read = || -> Result<Option<Registers>> {
        let task = kernel.object("struct task_struct", Kva(task.kva.0))?;
        // put_task_stack(): a dead task's stack is given back before its task_struct.
        if task.member("stack_refcount.refs")?.u64()? == 0 {
            return Ok(None);
        }
        kernel.sleeping_registers(&task).map(Some)
    };
    match read() {
        Ok(Some(registers)) => Ok(registers),
        Ok(None) => Err("it has exited, and its stack is given back".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The registers of the vCPU that is `cpu`, when it is in the kernel.
fn running(kernel: &Kernel, cpu: u32) -> std::result::Result<Registers, String> {
    let regs = vcpu_of(kernel, cpu).ok_or_else(|| {
        format!("it is running on CPU {cpu}, whose registers are not in the file")
    })?;
    if regs.cs & 3 == 3 {
        return Err(format!(
            "it is running on CPU {cpu}, in user space at {:#x}",
            regs.rip
        ));
    }
    Ok(Registers {
        ip: regs.rip,
        sp: regs.rsp,
        bp: regs.rbp,
        scratch: Some(Scratch {
            ax: regs.rax,
            r10: regs.r10,
            r13: regs.r13,
            di: regs.rdi,
            dx: regs.rdx,
        }),
        interrupted: true,
    })
}

/// The vCPU whose GS base is the CPU's per-CPU area; by number, where the file has no GS bases.
pub(super) fn vcpu_of(kernel: &Kernel, cpu: u32) -> Option<VcpuRegs> {
    let area = kernel.per_cpu(Kva::NULL, cpu)?.0;
    let vcpus = &kernel.image.vcpus;
    let mut known = vcpus.iter().flatten();
    let by_base = known
        .find(|regs| [regs.gs_base, regs.kernel_gs_base].contains(&Some(area)))
        .copied();
    by_base.or_else(|| {
        let regs = (*vcpus.get(to_usize(u64::from(cpu)))?)?;
        regs.gs_base.is_none().then_some(regs)
    })
}

/// A frame with its names.
fn describe(kernel: &Kernel, objects: &Objects<'_>, btfs: &Btfs<'_>, frame: StackFrame) -> Frame {
    let (symbol, line_at) = if frame.interrupted {
        (kernel.symbolize(frame.ip), frame.ip)
    } else {
        (kernel.symbolize_return(frame.ip), frame.ip.sub(1))
    };
    let line = objects.programs.source_line(btfs, line_at);
    Frame {
        addr: Hex(frame.ip.0),
        symbol,
        source: line.map(|line| short(&line.source)),
    }
}
