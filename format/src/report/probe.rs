//! What the probe program in the guest saw of a scheduler's end.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::hex::Hex;
use super::sched::EventCounterSample;

/// The probe's latch and what it kept, out of its variables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProbeInfo {
    /// Whether it has seen an error exit.
    pub latched: bool,
    /// When it last saw an exit of any kind: nanoseconds of the guest's monotonic clock. Absent
    /// when it saw none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_trigger_ns: Option<u64>,
    /// The scheduler at its error exit, before the kernel's dump and before anything was taken
    /// apart. Of several our own probe keeps the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<ProbeExit>,
}

/// A scheduler at the instant of its error exit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProbeExit {
    /// When: nanoseconds of the guest's monotonic clock. Only our own probe tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_ns: Option<u64>,
    /// On which CPU. Only our own probe tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// Which task that CPU ran, 0 for an idle one. Only our own probe tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// `scx_sched.exit_kind`.
    pub exit_kind: u32,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_kind_name: Option<String>,
    /// The `struct scx_sched`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sched_kva: Option<Hex>,
    /// Whether it was being aborted.
    pub aborting: bool,
    /// How many had asked for bypass.
    pub bypass_depth: i32,
    /// The watchdog's limit.
    pub watchdog_timeout_jiffies: u64,
    /// The scheduler's event counters then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<EventCounterSample>,
}
