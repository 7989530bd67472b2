//! Tasks: identity, scheduling class, and their sched_ext state.
//!
//! Reads `struct task_struct` (include/linux/sched.h) with its `struct sched_ext_entity`
//! (include/linux/sched/ext.h) and `struct signal_struct`. Tasks come from `scx_tasks`, which
//! links every task from fork to free, then from the kernel's own task list, then from run
//! queues and DSQs: whoever waits somewhere has a record.

use std::collections::HashSet;

use rayon::prelude::*;
use scx_postmortem_format::report::{Flags, Hex, NamedTask, QueuedTask, TaskEnrichment, TaskInfo};

use super::clock::Clock;
use super::sched::named_flags;
use super::{Limits, Members, Remarks};
use crate::addr::Kva;
use crate::error::{Error, Result};
use crate::kernel::{Kernel, TypeId, cpu_list};
use crate::object::Object;

/// Nodes of the global lists that a walk visits: a quarter of the largest `pid_max`.
const MAX_TASKS: usize = 1 << 20;

/// The scheduling classes by the address of their symbol.
#[derive(Debug, Clone, Default)]
struct Classes(Vec<(Kva, &'static str)>);

impl Classes {
    fn find(kernel: &Kernel) -> Self {
        const NAMES: [(&str, &str); 6] = [
            ("stop_sched_class", "stop"),
            ("dl_sched_class", "dl"),
            ("rt_sched_class", "rt"),
            ("fair_sched_class", "fair"),
            ("ext_sched_class", "ext"),
            ("idle_sched_class", "idle"),
        ];
        Self(
            NAMES
                .iter()
                .filter_map(|(sym, name)| Some((kernel.symbol(sym).ok()?, *name)))
                .collect(),
        )
    }

    fn name(&self, class: Kva) -> Option<&'static str> {
        self.0
            .iter()
            .find(|(at, _)| *at == class)
            .map(|(_, name)| *name)
    }
}

/// Pid and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRef {
    /// `task_struct.pid`.
    pub pid: i32,
    /// `task_struct.comm`.
    pub comm: String,
}

impl TaskRef {
    /// Reads them.
    ///
    /// # Errors
    /// When either cannot be read.
    pub fn read(task: &Object<'_>) -> Result<Self> {
        Ok(Self {
            pid: task.member("pid")?.i32()?,
            comm: task.member("comm")?.text()?,
        })
    }
}

/// The tasks that get a record: where there are too many, those of `first`, which run or wait
/// somewhere, before all others. Their order stays.
pub fn keep<'k>(
    tasks: Vec<Object<'k>>,
    first: &HashSet<Kva>,
    limits: &Limits,
    remarks: &mut Remarks,
) -> Vec<Object<'k>> {
    if tasks.len() <= limits.tasks {
        return tasks;
    }
    remarks.limit("task_enrichments", limits.tasks, Some(tasks.len()));
    let mut kept: Vec<_> = tasks.into_iter().enumerate().collect();
    kept.sort_by_key(|(_, task)| !first.contains(&task.address()));
    kept.truncate(limits.tasks);
    kept.sort_by_key(|&(index, _)| index);
    kept.into_iter().map(|(_, task)| task).collect()
}

/// What every look at a task needs.
pub struct Tasks<'k> {
    kernel: &'k Kernel,
    clock: Option<Clock>,
    classes: Classes,
    ent_flags: Option<TypeId>,
    queued_flag: Result<u64>,
    reset_flag: Result<u64>,
}

impl<'k> Tasks<'k> {
    /// Prepares.
    #[must_use]
    pub fn new(kernel: &'k Kernel, clock: Option<Clock>) -> Self {
        Self {
            kernel,
            clock,
            classes: Classes::find(kernel),
            ent_flags: kernel.btf.find("enum scx_ent_flags").ok(),
            queued_flag: ent_flag(kernel, "SCX_TASK_QUEUED"),
            reset_flag: ent_flag(kernel, "SCX_TASK_RESET_RUNNABLE_AT"),
        }
    }

    /// A task's members, for any record that it is in.
    pub(super) const fn members<'r>(
        task: &Object<'k>,
        remarks: &'r mut Remarks,
    ) -> Members<'r, 'k> {
        Members::of("tasks", *task, remarks)
    }

    /// Jiffies that the task has been runnable for; `None` when it is not queued, so that a
    /// stale `runnable_at` is never shown as an age.
    pub(super) fn runnable_age(&self, task: &mut Members<'_, '_>) -> Option<u64> {
        let flags = task.u64("scx.flags")?;
        let queued = task.ok("scx.flags", self.queued_flag.clone())?;
        let reset = task.ok("scx.flags", self.reset_flag.clone())?;
        // set_next_task_scx() leaves QUEUED and the old runnable_at of a task that runs, and
        // sets RESET_RUNNABLE_AT: its wait is over.
        if flags & queued == 0 || flags & reset != 0 {
            return None;
        }
        let at = task.u64("scx.runnable_at")?;
        (at != 0).then_some(self.clock?.since(at))
    }

    pub(super) fn class(&self, task: &mut Members<'_, '_>) -> Option<&'static str> {
        task.get("sched_class", |class| {
            let class = class.ptr()?;
            self.classes.name(class).ok_or_else(|| Error::Implausible {
                what: "the scheduling class".into(),
                found: class.to_string(),
                why: "the address of stop, dl, rt, fair, ext or idle_sched_class",
            })
        })
    }

    pub(super) fn age_ms(&self, age: Option<u64>) -> Option<u64> {
        age.zip(self.clock).map(|(age, clock)| clock.to_ms(age))
    }

    /// The id of the DSQ that the task is on.
    pub(super) fn dsq_id(&self, task: &mut Members<'_, '_>) -> Option<Hex> {
        let id = task.get("scx.dsq", |dsq| match dsq.deref() {
            Ok(dsq) => dsq.member("id")?.u64().map(Some),
            // On none.
            Err(Error::Null(_)) => Ok(None),
            Err(e) => Err(e),
        });
        id.flatten().map(Hex)
    }

    /// The task's policy by name.
    pub(super) fn policy(&self, task: &mut Members<'_, '_>) -> Option<String> {
        task.u64("policy").map(policy_text)
    }

    fn cpus_allowed(&self, task: &mut Members<'_, '_>) -> Option<String> {
        let cpus = task.get("cpus_ptr", |mask| self.kernel.cpu_mask(mask.ptr()?));
        cpus.map(|cpus| cpu_list(&cpus))
    }

    /// A task as an entry of a queue. `None` when not even its name can be read; the queue's
    /// list of addresses still has it.
    pub fn queued(
        &self,
        task: &Object<'k>,
        index: u32,
        remarks: &mut Remarks,
    ) -> Option<QueuedTask> {
        let named = TaskRef::read(task);
        let task = &mut Self::members(task, remarks);
        let TaskRef { pid, comm } = task.ok("comm", named)?;
        let age = self.runnable_age(task);
        Some(QueuedTask {
            index,
            task_kva: Hex(task.object.address().0),
            pid,
            comm,
            dsq_vtime: task.u64("scx.dsq_vtime"),
            dsq_flags: task
                .u64("scx.dsq_flags")
                .map(|f| named_flags(self.kernel, "enum scx_ent_dsq_flags", "SCX_TASK_DSQ_", f)),
            runnable_age_jiffies: age,
            runnable_age_ms: self.age_ms(age),
            slice_ns: task.u64("scx.slice"),
            cpus_allowed: self.cpus_allowed(task),
        })
    }

    /// Every task, each once: `scx_tasks` order, then the task list, then `extra`.
    pub fn collect(&self, extra: &[Kva], remarks: &mut Remarks) -> Vec<Object<'k>> {
        let kernel = self.kernel;
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        let mut add = |task: Object<'k>| {
            if seen.insert(task.address()) {
                found.push(task);
            }
        };
        // An iterator puts itself on the list too.
        let cursor = ent_flag(kernel, "SCX_TASK_CURSOR");
        match kernel.symbol("scx_tasks").and_then(|at| Ok((at, cursor?))) {
            Ok((head, cursor)) => {
                let walk = kernel.list(head, MAX_TASKS);
                remarks.walk_end("scx_tasks", head, &walk.end);
                for node in walk.items {
                    let task = kernel.entry("struct task_struct", "scx.tasks_node", node);
                    let Some(task) = remarks.ok("task_enrichments", task) else {
                        break;
                    };
                    match task.member("scx.flags").and_then(|f| f.u64()) {
                        Ok(flags) if flags & cursor != 0 => {}
                        Ok(_) => add(task),
                        Err(e) => {
                            remarks.anomaly("scx_tasks", Some(node), e.to_string());
                        }
                    }
                }
            }
            Err(e) => remarks.missing("task_enrichments.scx_tasks", &e),
        }
        if let Err(e) = self.each_process(remarks, &mut add) {
            remarks.missing("task_enrichments.task_list", &e);
        }
        for &at in extra {
            if let Ok(task) = kernel.object("struct task_struct", at) {
                add(task);
            }
        }
        found
    }

    /// The kernel's task list: every process, and the threads of each.
    fn each_process(&self, remarks: &mut Remarks, add: &mut impl FnMut(Object<'k>)) -> Result<()> {
        let kernel = self.kernel;
        let init = kernel.global("init_task", "struct task_struct")?;
        let head = init.member("tasks")?.address();
        let walk = kernel.list(head, MAX_TASKS);
        remarks.walk_end("init_task.tasks", head, &walk.end);
        // One budget for all thread lists: forged ones could share their tails.
        let mut budget = MAX_TASKS;
        for node in walk.items {
            let leader = kernel.entry("struct task_struct", "tasks", node)?;
            add(leader);
            let threads = leader
                .member("signal")?
                .deref()
                .and_then(|s| s.member("thread_head"));
            let threads = match threads {
                Ok(threads) => threads.address(),
                Err(e) => {
                    remarks.anomaly("signal.thread_head", Some(leader.address()), e.to_string());
                    continue;
                }
            };
            let walk = kernel.list(threads, budget);
            budget -= walk.items.len();
            if budget == 0 {
                remarks.limit("threads", MAX_TASKS, None);
                return Ok(());
            }
            remarks.walk_end("signal.thread_head", threads, &walk.end);
            for node in walk.items {
                add(kernel.entry("struct task_struct", "thread_node", node)?);
            }
        }
        Ok(())
    }

    /// The contract's records and our own, in the order of `tasks`.
    pub fn records(
        &self,
        tasks: &[Object<'k>],
        on_runnable_list: &HashSet<Kva>,
        remarks: &mut Remarks,
    ) -> (Vec<TaskEnrichment>, Vec<TaskInfo>) {
        let read: Vec<_> = tasks
            .par_iter()
            .map(|task| {
                let runnable = on_runnable_list.contains(&task.address());
                let mut remarks = Remarks::default();
                let enrichment = self.enrichment(task, runnable, &mut remarks);
                (enrichment, self.info(task, &mut remarks), remarks)
            })
            .collect();
        let mut enriched = Vec::with_capacity(read.len());
        let mut infos = Vec::with_capacity(read.len());
        for (task, (enrichment, info, part)) in tasks.iter().zip(read) {
            remarks.absorb(part);
            match enrichment {
                Ok(enrichment) => enriched.push(enrichment),
                // The same for every task of this kernel: say it once.
                Err(e) if e.is_absent() => remarks.missing("task_enrichments", &e),
                Err(e) => remarks.anomaly("task_enrichments", Some(task.address()), e.to_string()),
            }
            // It needs nothing that the other record does not.
            infos.extend(info.ok());
        }
        (enriched, infos)
    }

    fn enrichment(
        &self,
        task: &Object<'k>,
        runnable: bool,
        remarks: &mut Remarks,
    ) -> Result<TaskEnrichment> {
        let TaskRef { pid, comm } = TaskRef::read(task)?;
        let u64 = |path: &'static str| task.member(path).and_then(|m| m.u64());
        let i32 = |path: &'static str| task.member(path).and_then(|m| m.i32());
        let u32 = |path: &'static str| task.member(path).and_then(|m| m.u32());
        let optional = &mut Self::members(task, remarks);
        // These go missing together.
        let signal = optional.get("signal", |s| Signal::read(&s.deref()?));
        let parent = optional.get("real_parent", |p| TaskRef::read(&p.deref()?));
        let class = self.class(optional);
        let ext_known = self.classes.0.iter().any(|(_, name)| *name == "ext");
        Ok(TaskEnrichment {
            pid,
            tgid: i32("tgid")?,
            comm,
            group_leader_pid: optional.get("group_leader", |l| l.deref()?.member("pid")?.i32()),
            real_parent_pid: parent.as_ref().map(|p| p.pid),
            real_parent_comm: parent.map(|p| p.comm),
            pgid: signal.as_ref().and_then(|s| s.pgid),
            sid: signal.as_ref().and_then(|s| s.sid),
            nr_threads: signal.as_ref().map(|s| s.nr_threads),
            weight: u32("scx.weight")?,
            prio: i32("prio")?,
            static_prio: i32("static_prio")?,
            normal_prio: i32("normal_prio")?,
            rt_priority: u32("rt_priority")?,
            sched_class: class.map(str::to_owned),
            core_cookie: optional.u64("core_cookie"),
            pi_boosted_out_of_scx: runnable && ext_known && class.is_some_and(|c| c != "ext"),
            nvcsw: u64("nvcsw")?,
            nivcsw: u64("nivcsw")?,
            signal_nvcsw: signal.as_ref().map(|s| s.nvcsw),
            signal_nivcsw: signal.as_ref().map(|s| s.nivcsw),
            utime: u64("utime")?,
            stime: u64("stime")?,
            signal_utime: signal.as_ref().map(|s| s.utime),
            signal_stime: signal.as_ref().map(|s| s.stime),
            lock_slowpath_match: None,
        })
    }

    fn info(&self, task: &Object<'k>, remarks: &mut Remarks) -> Result<TaskInfo> {
        let TaskRef { pid, comm } = TaskRef::read(task)?;
        let tgid = task.member("tgid")?.i32()?;
        let task = &mut Self::members(task, remarks);
        let age = self.runnable_age(task);
        let flags = task.u64("scx.flags");
        let state = task
            .u64("__state")
            .zip(task.u64("exit_state"))
            .map(|(s, e)| state_text(s, e));
        let ops_state = task.get("scx.ops_state", |s| self.ops_state(s.u64()?));
        let (ops_state, ops_qseq) = ops_state.unzip();
        Ok(TaskInfo {
            kva: Hex(task.object.address().0),
            pid,
            tgid,
            comm,
            cpu: task.u32("thread_info.cpu"),
            state: state.map(|(letter, _)| letter.to_owned()),
            state_name: state.map(|(_, name)| name.to_owned()),
            on_rq: task.i32("on_rq"),
            on_cpu: task.u64("on_cpu").map(|v| v != 0),
            policy: self.policy(task),
            class: self.class(task).map(str::to_owned),
            scx_state: flags.and_then(|f| self.scx_state(f)),
            scx_flags: flags.map(|f| self.scx_flags(f)),
            scx_weight: task.u32("scx.weight"),
            slice_ns: task.u64("scx.slice"),
            dsq_vtime: task.u64("scx.dsq_vtime"),
            dsq_id: self.dsq_id(task),
            ddsp_dsq_id: task
                .get("scx.ddsp_dsq_id", |id| {
                    let none = self
                        .kernel
                        .constant("enum scx_dsq_id_flags", "SCX_DSQ_INVALID")?;
                    Ok(Some(id.u64()?).filter(|&id| id != none.cast_unsigned()))
                })
                .flatten()
                .map(Hex),
            holding_cpu: task.i32("scx.holding_cpu"),
            sticky_cpu: task.i32("scx.sticky_cpu"),
            ops_state,
            ops_qseq,
            runnable_at_jiffies: task.u64("scx.runnable_at"),
            runnable_age_jiffies: age,
            runnable_age_ms: self.age_ms(age),
            cpus_allowed: self.cpus_allowed(task),
            nr_cpus_allowed: task.i32("nr_cpus_allowed"),
            migration_disabled: task.u32("migration_disabled"),
            sum_exec_ns: task.u64("se.sum_exec_runtime"),
            start_time_ns: task.u64("start_time"),
            cgroup: task.get("cgroups", |set| {
                let cgroup = set.deref()?.member("dfl_cgrp")?.deref()?;
                self.kernel.cgroup_path(&cgroup)
            }),
            boosted_by: task
                .get("pi_top_task", |top| match top.deref() {
                    // It has inherited nothing.
                    Err(Error::Null(_)) => Ok(None),
                    top => {
                        let top = top?;
                        let TaskRef { pid, comm } = TaskRef::read(&top)?;
                        let kva = Hex(top.address().0);
                        Ok(Some(NamedTask { pid, comm, kva }))
                    }
                })
                .flatten(),
            // What is known from the stacks comes with them.
            wchan: None,
            waits_for: None,
            stack: Vec::new(),
            stack_end: None,
        })
    }

    /// `NONE`, `INIT`, `READY`, `ENABLED` …: the number 3 means ENABLED up to 7.0 and READY
    /// after, so only this kernel's own enums can tell.
    fn scx_state(&self, flags: u64) -> Option<String> {
        let btf = &self.kernel.btf;
        let ent = self.ent_flags?;
        let mask = btf
            .enumerators(ent)
            .find(|(name, _)| *name == "SCX_TASK_STATE_MASK")
            .map(|(_, mask)| mask.cast_unsigned())?;
        let value = (flags & mask).cast_signed();
        let named = |ty: TypeId, value: i64| {
            btf.enumerators(ty)
                .find(|(name, v)| {
                    *v == value
                        && ["NONE", "INIT_BEGIN", "INIT", "READY", "ENABLED", "DEAD"]
                            .contains(&name.trim_start_matches("SCX_TASK_"))
                })
                .map(|(name, _)| name.trim_start_matches("SCX_TASK_").to_owned())
        };
        match btf.find("enum scx_task_state") {
            // Up to 7.0: numbers of their own, shifted into the flags.
            Ok(states) => named(states, value >> mask.trailing_zeros()),
            // Since 7.1: constants in place.
            Err(_) => named(ent, value),
        }
    }

    fn scx_flags(&self, flags: u64) -> Flags {
        let mask = self
            .kernel
            .constant("enum scx_ent_flags", "SCX_TASK_STATE_MASK")
            .unwrap_or(0);
        let plain = flags & !mask.cast_unsigned();
        let names = named_flags(self.kernel, "enum scx_ent_flags", "SCX_TASK_", plain).names;
        Flags {
            raw: Hex(flags),
            names,
        }
    }

    /// Who has the task, and the number of the enqueue that handed it over.
    fn ops_state(&self, state: u64) -> Result<(String, u64)> {
        let shift = self
            .kernel
            .constant("enum scx_ops_state", "SCX_OPSS_QSEQ_SHIFT")?;
        let shift = shift.clamp(0, 63);
        let value = (state & ((1u64 << shift) - 1)).cast_signed();
        let name = self
            .kernel
            .btf
            .find("enum scx_ops_state")
            .ok()
            .and_then(|ty| {
                let names = self.kernel.btf.enumerators(ty);
                // The shift and the masks are in the same enum and may have the same value.
                let mut names =
                    names.filter(|(name, _)| !name.contains("QSEQ") && !name.contains("MASK"));
                names.find(|&(_, v)| v == value).map(|(name, _)| name)
            });
        let name = name.map_or_else(
            || value.to_string(),
            |name| name.trim_start_matches("SCX_OPSS_").to_owned(),
        );
        Ok((name, state >> shift))
    }
}

/// A bit of `sched_ext_entity.flags`.
fn ent_flag(kernel: &Kernel, name: &str) -> Result<u64> {
    let flag = kernel.constant("enum scx_ent_flags", name)?;
    Ok(flag.cast_unsigned())
}

/// The fields that come from `signal_struct`.
struct Signal {
    /// `None` once the task has been unhashed: `__exit_signal()` detaches its pids.
    pgid: Option<i32>,
    sid: Option<i32>,
    nr_threads: i32,
    nvcsw: u64,
    nivcsw: u64,
    utime: u64,
    stime: u64,
}

impl Signal {
    fn read(signal: &Object<'_>) -> Result<Self> {
        // enum pid_type { PIDTYPE_PID, PIDTYPE_TGID, PIDTYPE_PGID, PIDTYPE_SID }; numbers[0] is
        // the number in the initial namespace.
        let number = |kind: &str| -> Result<Option<i32>> {
            let kind = signal.kernel().constant("enum pid_type", kind)?;
            match signal.member("pids")?.index(kind.cast_unsigned())?.deref() {
                Ok(pid) => pid
                    .member("numbers")?
                    .index(0)?
                    .member("nr")?
                    .i32()
                    .map(Some),
                Err(Error::Null(_)) => Ok(None),
                Err(e) => Err(e),
            }
        };
        Ok(Self {
            pgid: number("PIDTYPE_PGID")?,
            sid: number("PIDTYPE_SID")?,
            nr_threads: signal.member("nr_threads")?.i32()?,
            nvcsw: signal.member("nvcsw")?.u64()?,
            nivcsw: signal.member("nivcsw")?.u64()?,
            utime: signal.member("utime")?.u64()?,
            stime: signal.member("stime")?.u64()?,
        })
    }
}

/// The state as `/proc/<pid>/status` writes it (fs/proc/array.c): letter and words.
fn state_text(state: u64, exit_state: u64) -> (&'static str, &'static str) {
    const NOLOAD: u64 = 0x400;
    const UNINTERRUPTIBLE: u64 = 0x2;
    const RTLOCK_WAIT: u64 = 0x1000;
    const REPORT: u64 = 0x7f;
    const FROZEN: u64 = 0x8000;
    let report = if state & (UNINTERRUPTIBLE | NOLOAD) == UNINTERRUPTIBLE | NOLOAD {
        return ("I", "idle");
    } else if state & (RTLOCK_WAIT | FROZEN) != 0 {
        UNINTERRUPTIBLE
    } else {
        (state | exit_state) & REPORT
    };
    match report.checked_ilog2() {
        None => ("R", "running"),
        Some(0) => ("S", "sleeping"),
        Some(1) => ("D", "disk sleep"),
        Some(2) => ("T", "stopped"),
        Some(3) => ("t", "tracing stop"),
        Some(4) => ("X", "dead"),
        Some(5) => ("Z", "zombie"),
        _ => ("P", "parked"),
    }
}

/// `SCHED_*` of include/uapi/linux/sched.h, which BTF does not have.
fn policy_text(policy: u64) -> String {
    match policy {
        0 => "SCHED_NORMAL".into(),
        1 => "SCHED_FIFO".into(),
        2 => "SCHED_RR".into(),
        3 => "SCHED_BATCH".into(),
        5 => "SCHED_IDLE".into(),
        6 => "SCHED_DEADLINE".into(),
        7 => "SCHED_EXT".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_read_as_in_proc() {
        assert_eq!(state_text(0, 0), ("R", "running"));
        assert_eq!(state_text(1, 0), ("S", "sleeping"));
        assert_eq!(state_text(0x402, 0), ("I", "idle"));
        assert_eq!(state_text(0x80, 0x20), ("Z", "zombie"));
        assert_eq!(state_text(0x80, 0x10), ("X", "dead"));
        assert_eq!(state_text(0x40, 0), ("P", "parked"));
    }
}
