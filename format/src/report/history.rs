//! What a monitor saw before the stop.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::hex::Hex;

/// Samples of the running guest, as columns: element *i* of every list is of sample *i*.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct History {
    /// How far apart samples were to be taken, milliseconds.
    pub interval_ms: u64,
    /// Samples that were taken.
    pub taken: u64,
    /// Samples that the file holds. Of long runs the older ones are thinned out.
    pub held: u64,
    /// When each sample that is shown here was taken: milliseconds of the host's clock since the
    /// monitor began. Evenly thinned when there are many.
    pub at_ms: Vec<u64>,
    /// The guest's time since boot then, milliseconds; null where it was torn.
    pub uptime_ms: Vec<Option<u64>>,
    /// The schedulers that were attached, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schedulers: Vec<HistoryScheduler>,
    /// What was sampled. A series that was 0 throughout is left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<HistorySeries>,
}

/// A scheduler that was attached while samples were taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct HistoryScheduler {
    /// `ops.name`.
    pub name: String,
    /// Its `struct scx_sched`.
    pub sched_kva: Hex,
    /// The first sample that saw it, as in `at_ms`.
    pub first_ms: u64,
    /// The last one.
    pub last_ms: u64,
}

/// One number over time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct HistorySeries {
    /// What: `nr_running`, `user_dsq`, `SCX_EV_…` and so on.
    pub name: String,
    /// Of which CPU. An event counter without one is the sum over all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// Of which DSQ (`user_dsq`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsq_id: Option<Hex>,
    /// Of which node (`global_dsq`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<u32>,
    /// Whether it only grows while one scheduler is attached, so that its differences count.
    pub counter: bool,
    /// The values; null where it could not be read, or was torn, or was not there.
    pub values: Vec<Option<i64>>,
}
