//! Work that the kernel has put off: timers, workqueues.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::hex::Hex;
use super::omit::is_false;
use super::postmortem::Flags;

/// One timer that is set or whose function runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TimerInfo {
    /// The CPU whose queue it is on.
    pub cpu: u32,
    /// `hrtimer`, or `wheel` for a `struct timer_list`.
    pub kind: String,
    /// The queue: of an hrtimer the clock (`MONOTONIC`, `REALTIME_SOFT`, …), of the wheel `LOCAL`,
    /// `GLOBAL` or `DEF` (deferrable: an idle CPU does not wake up for it).
    pub base: String,
    /// Address of the `struct hrtimer` or `struct timer_list`.
    pub kva: Hex,
    /// The function that it calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// When, ns of its own clock. Only of an hrtimer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_ns: Option<i64>,
    /// When, jiffies. Only of the wheel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_jiffies: Option<u64>,
    /// How long until then, ns; negative when that moment has passed. As of the last tick.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_ns: Option<i64>,
    /// It should have run: more than two ticks ago and, in the wheel, more than the slots of its
    /// level are wide, by which the kernel is late on purpose. Never said of a deferrable one.
    #[serde(skip_serializing_if = "is_false")]
    pub overdue: bool,
    /// Its function runs at this moment. It can be set again already.
    #[serde(skip_serializing_if = "is_false")]
    pub running: bool,
    /// The thread that it wakes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wakes: Option<TaskName>,
    /// The work that it queues: the function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<String>,
    /// The BPF map whose timer it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpf_map_id: Option<u32>,
    /// The BPF callback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpf_callback: Option<String>,
}

/// What identifies a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TaskName {
    /// Its thread id.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Address of its `task_struct`.
    pub kva: Hex,
}

/// Workqueues: who works, and what waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WorkqueueInfo {
    /// The work that checks whether tasks starve, `scx_watchdog_work`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scx_watchdog: Option<DelayedWork>,
    /// The pools of workers, by id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<WorkerPool>,
}

/// A `struct delayed_work`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DelayedWork {
    /// Address of the `struct delayed_work`.
    pub kva: Hex,
    /// Its function. Absent before it was set up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// It is set or queued, and has not begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<bool>,
    /// When its timer expires, jiffies. Absent when the timer is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_jiffies: Option<u64>,
    /// How long until then, ms; negative when that moment has passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_ms: Option<i64>,
    /// The worker that runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs_in: Option<TaskName>,
}

/// One `struct worker_pool`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WorkerPool {
    /// Its number.
    pub id: u32,
    /// Address of the `struct worker_pool`.
    pub kva: Hex,
    /// The CPU that it belongs to. Absent for an unbound pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// The nice value of its workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nice: Option<i32>,
    /// `worker_pool.flags`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<Flags>,
    /// Workers that are runnable and hold others back. Means something only in a CPU's pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nr_running: Option<i32>,
    /// Workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nr_workers: Option<i32>,
    /// Those of them that have nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nr_idle: Option<i32>,
    /// How long ago a work was last taken from the list, or the first was put on it, jiffies
    /// (`last_progress_ts`, `watchdog_ts` before 7.0).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress_age_jiffies: Option<u64>,
    /// The same in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress_age_ms: Option<u64>,
    /// Works wait, and for a second or longer none was begun.
    #[serde(skip_serializing_if = "is_false")]
    pub overdue: bool,
    /// Workers that are at work, in the order of the pool's list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub busy: Vec<BusyWorker>,
    /// Works that wait for a worker, the next one first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<WorkItem>,
    /// Works that wait until fewer of their workqueue are active.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inactive: Vec<WorkItem>,
}

/// A `struct work_struct` that waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WorkItem {
    /// Address of the `struct work_struct`.
    pub kva: Hex,
    /// Its function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// Its workqueue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workqueue: Option<String>,
}

/// A `struct worker` with a work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BusyWorker {
    /// Its thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskName>,
    /// Address of the `struct work_struct`; its memory can be freed already.
    pub work_kva: Hex,
    /// The work's function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// Its workqueue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workqueue: Option<String>,
    /// When the work began, jiffies. Absent in kernels that do not keep it (before 7.0).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_jiffies: Option<u64>,
    /// How long ago that was, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_ms: Option<u64>,
    /// Works that this worker has to do next.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scheduled: Vec<WorkItem>,
}
