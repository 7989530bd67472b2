//! What a CPU was doing beyond its run queue: context, idleness, tick, topology, throttling.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::hex::Hex;
use super::omit::is_false;

/// What kept the CPU's context, as its registers and its preemption counter tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CpuContext {
    /// `user` or `kernel`: the privilege level of the vCPU's registers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// RFLAGS.IF: the vCPU takes interrupts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub irqs_enabled: Option<bool>,
    /// The CPU's preemption counter, all bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preempt_count: Option<Hex>,
    /// How often preemption is disabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preempt_disabled: Option<u32>,
    /// How often bottom halves are disabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bh_disabled: Option<u32>,
    /// How often interrupts are disabled by a counter. Absent in kernels that do not count it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardirq_disabled: Option<u32>,
    /// It serves a softirq.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_softirq: Option<bool>,
    /// Hardware interrupts that it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardirqs: Option<u32>,
    /// Non-maskable interrupts that it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nmis: Option<u32>,
    /// The running task has `TIF_NEED_RESCHED`: it is to give way as soon as it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub need_resched: Option<bool>,
    /// The running task has `TIF_NEED_RESCHED_LAZY`: it is to give way when it returns to user
    /// space, or at a tick. Absent in kernels without lazy preemption.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub need_resched_lazy: Option<bool>,
    /// The CPU itself knows that it is to reschedule: the bit in its preemption counter, which
    /// the kernel keeps inverted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preempt_need_resched: Option<bool>,
}

/// How a CPU idles. Absent for one that has work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CpuIdle {
    /// When the idle loop last went to sleep, ns of the monotonic clock
    /// (`tick_sched.idle_entrytime`). An interrupt begins it anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry_ns: Option<u64>,
    /// How long ago that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_ns: Option<u64>,
    /// The cpuidle state that it is in (`rq.idle_state`). Absent without a cpuidle driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// The CPU's tick, `struct tick_sched`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CpuTick {
    /// The tick is stopped: nobody expects one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<bool>,
    /// `jiffies` at the last tick.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_jiffies: Option<u64>,
    /// How long ago that was, jiffies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_jiffies: Option<u64>,
    /// The same in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
}

/// The detector of soft lockups (kernel/watchdog.c): a task of the highest class that every period
/// wants the CPU for a moment, and gets it unless preemption is off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SoftLockup {
    /// Time since that task last ran, ns, in steps of 2^30 (`watchdog_touch_ts`), up to the run
    /// queue's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ns: Option<u64>,
    /// The period, ns (`sample_period`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_ns: Option<u64>,
}

/// Runnable tasks of each class, the running one included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ClassCounts {
    /// `rq.dl.dl_nr_running`: deadline tasks, and servers that stand for a class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dl: Option<u32>,
    /// `rq.rt.rt_nr_running`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rt: Option<u32>,
    /// `rq.cfs.h_nr_queued`, `h_nr_running` before it was renamed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fair: Option<u32>,
    /// `rq.scx.nr_running`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ext: Option<u32>,
}

/// Where a CPU is in the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CpuTopology {
    /// Its NUMA node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<i32>,
    /// The CPUs of its core, itself included, as a range list. Empty for one that never came up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core: Option<String>,
    /// The CPUs that share its last-level cache, itself included, as a range list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llc: Option<String>,
    /// The number of its package.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package: Option<u32>,
}

/// The bits of a CPU in the masks of sched_ext's own idle tracking.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ScxIdleBits {
    /// It is marked idle, and whoever looks for an idle CPU may claim it.
    pub cpu: bool,
    /// Its whole core is marked idle.
    pub smt: bool,
}

/// A deadline server (`struct sched_dl_entity`), which guarantees a class some time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DlServer {
    /// The class that it serves: `fair` or `ext`.
    pub class: String,
    /// It has been started. What follows is absent while it has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<bool>,
    /// It has used up its time, or waits for its turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled: Option<bool>,
    /// It waits with its time until the class has starved for long enough (`dl_defer_armed`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deferred: Option<bool>,
    /// It runs tasks of its class right now, since these starved (`dl_defer_running`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<bool>,
    /// Time that it gives in each period, ns; 0 switches it off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_ns: Option<u64>,
    /// The period, ns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_ns: Option<u64>,
}

/// Classes and groups that may not use the CPU for now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CpuThrottling {
    /// Real-time tasks have used up their share (`rt_rq.rt_throttled`). Absent in kernels that
    /// bound them with a deadline server instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rt: Option<bool>,
    /// The servers of classes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<DlServer>,
    /// Cgroups whose fair tasks have used up their quota (`cpu.max`) here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fair_cgroups: Vec<String>,
    /// The list of these could not be read whole.
    #[serde(skip_serializing_if = "is_false")]
    pub fair_cgroups_truncated: bool,
}
