//! Per-CPU run queues: `rq->scx` and the tasks that are runnable on it.
//!
//! Reads the per-CPU `runqueues` (`struct rq`, kernel/sched/sched.h) and its `struct scx_rq`.
//! The running task is not on `runnable_list`, yet counts in `nr_running`.

use scx_postmortem_format::report::{CpuInfo, CurrTask, Hex, RqScxState, RunnableTask};

use super::sched::named_flags;
use super::tasks::{TaskRef, Tasks};
use super::{Limits, Members, Remarks, required};
use crate::addr::Kva;
use crate::error::Result;
use crate::kernel::Kernel;
use crate::object::Object;

/// One CPU's run queue.
pub struct CpuRq {
    /// The contract's record.
    pub state: RqScxState,
    /// Our own.
    pub info: CpuInfo,
    /// The tasks on the runnable list, in order.
    pub runnable: Vec<Kva>,
    /// `rq->curr`, null when unreadable.
    pub curr: Kva,
}

/// Reads one CPU's run queue.
///
/// # Errors
/// When the run queue itself cannot be read or this kernel has no `rq->scx`.
pub fn read<'k>(
    kernel: &'k Kernel,
    cpu: u32,
    online: Option<&[u32]>,
    tasks: &Tasks<'k>,
    limits: &Limits,
    remarks: &mut Remarks,
) -> Result<CpuRq> {
    let rq = kernel.per_cpu_object("runqueues", "struct rq", cpu)?;
    let scx = rq.member("scx")?;
    let section = "rq_scx_states";

    let head = scx.member("runnable_list")?.address();
    let walk = kernel.list(head, limits.list);
    let cut = remarks.walk_end(&format!("cpu {cpu} runnable_list"), head, &walk.end);
    let runnable: Vec<Kva> = walk
        .items
        .into_iter()
        .filter_map(|node| {
            let task = kernel.entry("struct task_struct", "scx.runnable_node", node);
            remarks.ok(section, task).map(|t| t.address())
        })
        .collect();

    let curr = rq.member("curr").and_then(|c| c.deref());
    let curr = remarks.ok(section, curr);
    let curr_ref = curr
        .as_ref()
        .and_then(|task| remarks.ok(section, TaskRef::read(task)));
    let flags = scx.member("flags")?.u32()?;
    // Moved from the run queue to each task in 7.2.
    let qseq = required(scx.member("ops_qseq").and_then(|q| q.u64()))?;
    let released = required(scx.member("cpu_released").and_then(|c| c.bool()))?;
    let optional = &mut Members::of(section, scx, remarks);
    // The format requires both. A kernel that moved the sequence to the task has no such number,
    // and the remark says so.
    let qseq = optional.ok("ops_qseq", qseq);
    let released = optional.ok("cpu_released", released);
    // Renamed in 6.19.
    let kick_sync = scx.first_of(&["kick_sync", "pnt_seq"]);
    let kick_sync = optional.ok("kick_sync", kick_sync.and_then(|k| k.u64()));
    let state = RqScxState {
        cpu,
        nr_running: scx.member("nr_running")?.u32()?,
        flags,
        cpu_released: released.unwrap_or(false),
        ops_qseq: qseq.unwrap_or(0),
        kick_sync,
        nr_immed: optional.u32("nr_immed"),
        rq_clock: optional.u64("clock"),
        curr_pid: curr_ref.as_ref().map(|t| t.pid),
        curr_comm: curr_ref.as_ref().map(|t| t.comm.clone()),
        runnable_task_kvas: runnable.iter().map(|at| at.0).collect(),
        runnable_truncated: cut,
    };
    let running = curr.as_ref().zip(curr_ref).map(|(task, named)| {
        let running_ns = running_ns(&rq, task, remarks);
        let optional = &mut Tasks::members(task, remarks);
        CurrTask {
            pid: named.pid,
            comm: named.comm,
            kva: Hex(task.address().0),
            class: tasks.class(optional).map(str::to_owned),
            policy: tasks.policy(optional),
            running_ns,
            arrived_ns: optional
                .u64("sched_info.last_arrival")
                .filter(|&since| since != 0),
            exec_start_ns: optional.u64("se.exec_start"),
        }
    });
    let waiting = runnable
        .iter()
        .filter_map(|&at| {
            let task = kernel.object("struct task_struct", at).ok()?;
            let named = TaskRef::read(&task);
            let task = &mut Tasks::members(&task, remarks);
            let named = task.ok("comm", named)?;
            let age = tasks.runnable_age(task);
            Some(RunnableTask {
                pid: named.pid,
                comm: named.comm,
                kva: Hex(at.0),
                runnable_at_jiffies: task.u64("scx.runnable_at"),
                runnable_age_jiffies: age,
                runnable_age_ms: tasks.age_ms(age),
                dsq_id: tasks.dsq_id(task),
            })
        })
        .collect();
    let optional = &mut Members::of("cpus", rq, remarks);
    let idle = optional.get("idle", |i| i.ptr());
    let info = CpuInfo {
        cpu,
        online: online.map(|online| online.contains(&cpu)),
        idle: idle
            .zip(curr.as_ref())
            .map(|(idle, curr)| idle == curr.address()),
        rq_kva: Some(Hex(rq.address().0)),
        curr: running,
        nr_running: optional.u32("nr_running"),
        clock_ns: optional.u64("clock"),
        scx_nr_running: Some(state.nr_running),
        scx_flags: Some(named_flags(
            kernel,
            "enum scx_rq_flags",
            "SCX_RQ_",
            u64::from(flags),
        )),
        cpu_released: released,
        ops_qseq: qseq,
        runnable: waiting,
        runnable_truncated: cut,
        // The walker of CPUs has the rest.
        ..CpuInfo::default()
    };
    Ok(CpuRq {
        state,
        info,
        runnable,
        curr: curr.map_or(Kva::NULL, |c| c.address()),
    })
}

/// How long `task` has been on its CPU (`sched_info_arrive()` stamps it with `rq_clock()`);
/// `None` without CONFIG_SCHED_INFO.
fn running_ns(rq: &Object<'_>, task: &Object<'_>, remarks: &mut Remarks) -> Option<u64> {
    let now = Members::of("cpus", *rq, remarks).u64("clock")?;
    let since = Members::of("tasks", *task, remarks).u64("sched_info.last_arrival")?;
    (since != 0).then(|| now.checked_sub(since)).flatten()
}
