//! sched_ext itself: event counters, run queues, dispatch queues, the root object.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::omit::is_false;

/// The scheduler's event counters at one moment, each summed over the CPUs. The names are those of
/// the kernel's `struct scx_event_stats`, in lower case without `SCX_EV_`. A counter that the
/// kernel does not have is 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventCounterSample {
    /// Milliseconds since the start of the run.
    pub elapsed_ms: u64,
    /// The scheduler chose a CPU that the task may not use; the kernel chose another.
    pub select_cpu_fallback: i64,
    /// A task meant for the queue of an offline CPU went to the global queue.
    pub dispatch_local_dsq_offline: i64,
    /// A task kept running because nothing else was dispatched.
    pub dispatch_keep_last: i64,
    /// An exiting task was enqueued without asking the scheduler.
    pub enq_skip_exiting: i64,
    /// A task that must not migrate was enqueued without asking the scheduler.
    pub enq_skip_migration_disabled: i64,
    /// A task was enqueued again because it could not run at once.
    pub reenq_immed: i64,
    /// A local queue's tasks were enqueued again more than once.
    pub reenq_local_repeat: i64,
    /// A task's slice was refilled with the default. (Earlier kernels: `enq_slice_dfl`.)
    pub refill_slice_dfl: i64,
    /// Time in bypass mode, ns.
    pub bypass_duration: i64,
    /// Tasks dispatched in bypass mode.
    pub bypass_dispatch: i64,
    /// Times that bypass mode was entered.
    pub bypass_activate: i64,
    /// A scheduler tried to insert a task that it does not own.
    pub insert_not_owned: i64,
    /// Tasks of sub-schedulers dispatched in bypass mode.
    pub sub_bypass_dispatch: i64,
}

/// How many counters an [`EventCounterSample`] has.
const NR_COUNTERS: usize = 13;

impl EventCounterSample {
    /// The counters with their names, in the order in which they are declared.
    pub fn counters(&self) -> [(&'static str, i64); NR_COUNTERS] {
        [
            ("select_cpu_fallback", self.select_cpu_fallback),
            (
                "dispatch_local_dsq_offline",
                self.dispatch_local_dsq_offline,
            ),
            ("dispatch_keep_last", self.dispatch_keep_last),
            ("enq_skip_exiting", self.enq_skip_exiting),
            (
                "enq_skip_migration_disabled",
                self.enq_skip_migration_disabled,
            ),
            ("reenq_immed", self.reenq_immed),
            ("reenq_local_repeat", self.reenq_local_repeat),
            ("refill_slice_dfl", self.refill_slice_dfl),
            ("bypass_duration", self.bypass_duration),
            ("bypass_dispatch", self.bypass_dispatch),
            ("bypass_activate", self.bypass_activate),
            ("insert_not_owned", self.insert_not_owned),
            ("sub_bypass_dispatch", self.sub_bypass_dispatch),
        ]
    }

    /// The counter with this name (lower case, without `SCX_EV_`; the older `enq_slice_dfl` is
    /// known too), or `None` for a name that has no place here.
    pub fn counter_mut(&mut self, name: &str) -> Option<&mut i64> {
        Some(match name {
            "select_cpu_fallback" => &mut self.select_cpu_fallback,
            "dispatch_local_dsq_offline" => &mut self.dispatch_local_dsq_offline,
            "dispatch_keep_last" => &mut self.dispatch_keep_last,
            "enq_skip_exiting" => &mut self.enq_skip_exiting,
            "enq_skip_migration_disabled" => &mut self.enq_skip_migration_disabled,
            "reenq_immed" => &mut self.reenq_immed,
            "reenq_local_repeat" => &mut self.reenq_local_repeat,
            "refill_slice_dfl" | "enq_slice_dfl" => &mut self.refill_slice_dfl,
            "bypass_duration" => &mut self.bypass_duration,
            "bypass_dispatch" => &mut self.bypass_dispatch,
            "bypass_activate" => &mut self.bypass_activate,
            "insert_not_owned" => &mut self.insert_not_owned,
            "sub_bypass_dispatch" => &mut self.sub_bypass_dispatch,
            _ => return None,
        })
    }
}

/// The sched_ext part of one CPU's run queue, `rq.scx`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RqScxState {
    /// The CPU.
    pub cpu: u32,
    /// `rq.scx.nr_running`: sched_ext tasks on this run queue.
    pub nr_running: u32,
    /// `rq.scx.flags`.
    pub flags: u32,
    /// `rq.scx.cpu_released`: a higher class has taken the CPU.
    pub cpu_released: bool,
    /// `rq.scx.ops_qseq`: number of the last enqueue handed to the scheduler.
    pub ops_qseq: u64,
    /// `rq.scx.kick_sync`, in older kernels `pnt_seq`. Absent where neither exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kick_sync: Option<u64>,
    /// `rq.scx.nr_immed`. Absent in kernels without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nr_immed: Option<u32>,
    /// `rq.scx.clock`, ns. Absent in kernels without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rq_clock: Option<u64>,
    /// `rq.curr->pid`: the task on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curr_pid: Option<i32>,
    /// `rq.curr->comm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curr_comm: Option<String>,
    /// Addresses of the tasks on `rq.scx.runnable_list`, in list order: first the one that has
    /// been runnable longest.
    pub runnable_task_kvas: Vec<u64>,
    /// The list is longer than what is here, or runs in a circle.
    #[serde(default, skip_serializing_if = "is_false")]
    pub runnable_truncated: bool,
}

/// One dispatch queue, `struct scx_dispatch_q`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DsqState {
    /// `scx_dispatch_q.id`.
    pub id: u64,
    /// What the queue is, from the `dsq_origin_…` functions and
    /// [`DSQ_ORIGIN_USER`](super::reasons::DSQ_ORIGIN_USER) of [`reasons`](super::reasons).
    pub origin: String,
    /// `scx_dispatch_q.nr`: tasks, as the kernel counts them.
    pub nr: u32,
    /// `scx_dispatch_q.seq`: counts insertions. A queue whose `nr` and `seq` are the same in both
    /// halves of a dual report is dead.
    pub seq: u32,
    /// Addresses of the queued tasks, in list order.
    pub task_kvas: Vec<u64>,
    /// The list is longer than what is here, or runs in a circle.
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncated: bool,
}

/// The scheduler's root object, `struct scx_sched`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScxSchedState {
    /// The scheduler is being thrown out. False also in kernels that do not say.
    pub aborting: bool,
    /// How many reasons hold the scheduler in bypass mode. 0 also in kernels that do not say.
    pub bypass_depth: i32,
    /// `scx_sched.exit_kind`. 0 while the scheduler runs; 1024 and above is an error.
    pub exit_kind: u32,
    /// The watchdog's limit, jiffies. Absent when it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog_timeout: Option<u64>,
    /// Where this was read: `live` or `bss_snapshot`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Kernel address of the object described.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sched_kva: Option<u64>,
}
