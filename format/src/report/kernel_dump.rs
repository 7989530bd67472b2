//! The kernel's own dump (`exit_info.dump`) as structure, and how it compares with what was read.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::hex::Hex;
use super::omit::is_false;

/// The text that `scx_dump_state()` wrote, taken apart. Everything is as the kernel printed it;
/// a member that this kernel does not print is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct KernelDump {
    /// The scheduler, as kernels with sub-schedulers name it: `demo_stall: root`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// Name of the task in whose context the exit was triggered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Its thread id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The exit kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_kind: Option<u32>,
    /// The CPU on which it was triggered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_cpu: Option<i32>,
    /// The reason and, in brackets, the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The stack on which the error was found: `function+0x1a/0x40`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backtrace: Vec<String>,
    /// Run queues in the order of the text. The kernel leaves idle ones out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<DumpCpu>,
    /// The event counters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub event_counters: Vec<DumpCounter>,
    /// Lines outside of CPUs that are none of the above, such as what the scheduler's `dump`
    /// callback printed: the first of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other: Vec<String>,
    /// Lines of that kind which are not here.
    #[serde(skip_serializing_if = "super::omit::zero_u32")]
    pub other_left_out: u32,
    /// The text ends before the event counters, which the kernel prints last.
    #[serde(skip_serializing_if = "is_false")]
    pub cut: bool,
}

/// One CPU of the dump.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DumpCpu {
    /// The CPU.
    pub cpu: u32,
    /// `nr_run`: runnable sched_ext tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nr_running: Option<u32>,
    /// `flags`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<Hex>,
    /// `cpu_rel`: a higher class has the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_released: Option<bool>,
    /// `ops_qseq`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_qseq: Option<u64>,
    /// `ksync`, `pnt_seq` in older kernels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kick_seq: Option<u64>,
    /// Name of the task that ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curr_comm: Option<String>,
    /// Its thread id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curr_pid: Option<i32>,
    /// Its class, e.g. `ext_sched_class`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curr_class: Option<String>,
    /// Further lines about the CPU, such as those of the scheduler's `dump_cpu` callback.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other: Vec<String>,
    /// Its runnable tasks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<DumpTask>,
}

/// One task of the dump.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DumpTask {
    /// `*`: it was the one that ran.
    #[serde(skip_serializing_if = "is_false")]
    pub current: bool,
    /// Its state as a letter.
    pub state: String,
    /// Its name.
    pub comm: String,
    /// Its thread id.
    pub pid: i32,
    /// Its scheduler, in kernels with sub-schedulers: `*root`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// When it became runnable, ms from the moment of the line: −1234 is 1.234 s ago.
    pub runnable_ms: i64,
    /// `scx_state`, as a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scx_state: Option<u32>,
    /// The flags behind it, without those of the state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scx_flags: Option<Hex>,
    /// `dsq_flags`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsq_flags: Option<Hex>,
    /// `ops_state`, as a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_state: Option<u32>,
    /// The number of the enqueue behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_qseq: Option<u64>,
    /// `sticky_cpu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky_cpu: Option<i32>,
    /// `holding_cpu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holding_cpu: Option<i32>,
    /// `dsq_id`. Absent when it was on no queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsq_id: Option<Hex>,
    /// `dsq_vtime`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsq_vtime: Option<u64>,
    /// `slice`, ns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice_ns: Option<u64>,
    /// `weight`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// `cpus`: the CPUs that it may use, as the kernel prints a mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<String>,
    /// `no_mig`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration_disabled: Option<u32>,
    /// Its kernel stack.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stack: Vec<String>,
    /// Further lines, such as those of the scheduler's `dump_task` callback.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other: Vec<String>,
}

/// One event counter of the dump.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DumpCounter {
    /// The kernel's name.
    pub name: String,
    /// Its value.
    pub value: i64,
}

/// The kernel's dump against what was read of the guest's memory. The dump is the older of the
/// two: tasks that ran since are counted and left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DumpComparison {
    /// Values that both have.
    pub compared: u32,
    /// Those that are equal.
    pub equal: u32,
    /// Counters that have grown since, and ages that are longer by the time between.
    pub grown: u32,
    /// Tasks that waited in the dump and have not moved since: their values are compared.
    pub tasks: u32,
    /// Tasks of the dump that ran, or were queued again, after the kernel's line about them, or that
    /// became runnable while the kernel wrote it.
    pub moved: u32,
    /// The time from the dump's first lines to the stop, jiffies: by how much those tasks' ages
    /// differ at most. Absent when no task tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_difference_jiffies: Option<u64>,
    /// What time does not explain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<DumpDifference>,
}

/// One value that differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DumpDifference {
    /// Which: `starve-0[187] dsq_id`.
    pub what: String,
    /// The kernel's value.
    pub dump: String,
    /// What this report has.
    pub report: String,
}
