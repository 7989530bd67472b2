//! Tasks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who a task is, how the kernel prioritises it, and what it has consumed.
///
/// The members that come from the task's `signal_struct` (`pgid`, `sid` and `nr_threads` apart,
/// all are named `signal_…`) go missing together when that structure cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TaskEnrichment {
    /// `task_struct.pid`: the thread's id.
    pub pid: i32,
    /// `task_struct.tgid`: the process' id.
    pub tgid: i32,
    /// `task_struct.comm`, at most 15 bytes.
    pub comm: String,
    /// `task_struct.group_leader->pid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_leader_pid: Option<i32>,
    /// `task_struct.real_parent->pid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real_parent_pid: Option<i32>,
    /// `task_struct.real_parent->comm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real_parent_comm: Option<String>,
    /// Process group, in the initial pid namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgid: Option<i32>,
    /// Session, in the initial pid namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sid: Option<i32>,
    /// `signal_struct.nr_threads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nr_threads: Option<i32>,
    /// `task_struct.scx.weight`; 100 is that of nice 0.
    pub weight: u32,
    /// `task_struct.prio`: the priority in force, inheritance included.
    pub prio: i32,
    /// `task_struct.static_prio`: before inheritance.
    pub static_prio: i32,
    /// `task_struct.normal_prio`: that of its class and policy.
    pub normal_prio: i32,
    /// `task_struct.rt_priority`: 1 to 99 for real-time tasks, else 0.
    pub rt_priority: u32,
    /// Scheduling class: `fair`, `rt`, `dl`, `idle`, `stop` or `ext`. Absent when the task's
    /// class is none of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sched_class: Option<String>,
    /// `task_struct.core_cookie`. Absent in kernels without core scheduling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core_cookie: Option<u64>,
    /// The task waits on a sched_ext list but has another class just now: priority inheritance
    /// took it out of the scheduler's hands.
    pub pi_boosted_out_of_scx: bool,
    /// `task_struct.nvcsw`: voluntary switches.
    pub nvcsw: u64,
    /// `task_struct.nivcsw`: involuntary switches.
    pub nivcsw: u64,
    /// Voluntary switches of the process' exited threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal_nvcsw: Option<u64>,
    /// Involuntary switches of the process' exited threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal_nivcsw: Option<u64>,
    /// `task_struct.utime`: user time, ns.
    pub utime: u64,
    /// `task_struct.stime`: system time, ns.
    pub stime: u64,
    /// User time of the process' exited threads, ns. Count it once per process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal_utime: Option<u64>,
    /// System time of the process' exited threads, ns. Count it once per process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal_stime: Option<u64>,
    /// The lock slow path that the task was in, one of
    /// [`LOCK_SLOWPATHS`](super::reasons::LOCK_SLOWPATHS). Absent when it was in none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock_slowpath_match: Option<String>,
}
