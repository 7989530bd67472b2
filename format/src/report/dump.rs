//! The three report objects.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::arena::{ScxStaticSnapshot, SdtAllocatorSnapshot};
use super::cpu::{
    CgroupPsiStat, PerCpuTimeStats, PerNodeNumaStats, VcpuPerfSample, VcpuRegSnapshot,
};
use super::map::FailureDumpMap;
use super::omit::{is_false, zero_u32, zero_u64};
use super::postmortem::PostmortemReport;
use super::prog::{ProbeBssCounters, ProgRuntimeStats};
use super::sched::{DsqState, EventCounterSample, RqScxState, ScxSchedState};
use super::task::TaskEnrichment;

/// `schema` of a [`FailureDumpReport`].
pub const SCHEMA_SINGLE: &str = "single";
/// `schema` of a [`DualFailureDumpReport`].
pub const SCHEMA_DUAL: &str = "dual";
/// `schema` of a [`DegradedFailureDumpReport`].
pub const SCHEMA_DEGRADED: &str = "degraded";

/// The report of one capture.
///
/// `schema` and `maps` are always written and must be there when a report is parsed. Everything
/// else is left out when it is empty. A section that can be empty for a reason has a member next
/// to it that ends in `_unavailable` and holds the reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FailureDumpReport {
    /// Always `"single"`.
    #[schemars(extend("const" = "single"))]
    pub schema: String,
    /// One per BPF map of the guest, in the order in which the kernel allocated them
    /// (`map_idr`). Maps of the framework that made the capture are left out.
    pub maps: Vec<FailureDumpMap>,
    /// Registers at the freeze, by vCPU id. Null: that vCPU never stopped, or its registers could
    /// not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vcpu_regs: Vec<Option<VcpuRegSnapshot>>,
    /// Object-name prefix of the attached scheduler: the part before the dot in the names of its
    /// `.bss`, `.data` and `.rodata` maps. Absent when no scheduler could be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_obj_name: Option<String>,
    /// Kernel addresses of the maps that the attached scheduler's programs use. Tells two loaded
    /// copies of one scheduler apart. Empty when the name was found another way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub active_map_kvas: Vec<u64>,
    /// Typed arena allocators found in the scheduler's `.bss`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sdt_allocations: Vec<SdtAllocatorSnapshot>,
    /// Bump allocators found in the scheduler's `.bss`. Absent when there is nothing to say.
    #[serde(default, skip_serializing_if = "ScxStaticSnapshot::is_empty")]
    pub scx_static_ranges: ScxStaticSnapshot,
    /// Why `sdt_allocations` is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sdt_alloc_unavailable: Option<String>,
    /// One per loaded struct_ops program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prog_runtime_stats: Vec<ProgRuntimeStats>,
    /// Why `prog_runtime_stats` is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prog_runtime_stats_unavailable: Option<String>,
    /// One per CPU that has a per-CPU area.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per_cpu_time: Vec<PerCpuTimeStats>,
    /// One per leaf cgroup of the workload that has pressure accounting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cgroup_psi: Vec<CgroupPsiStat>,
    /// One per NUMA node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per_node_numa: Vec<PerNodeNumaStats>,
    /// Why `per_node_numa` is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_node_numa_unavailable: Option<String>,
    /// One per task that was reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub task_enrichments: Vec<TaskEnrichment>,
    /// Why `task_enrichments` is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_enrichments_unavailable: Option<String>,
    /// The sched_ext event counters over time, each row summed over the CPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub event_counter_timeline: Vec<EventCounterSample>,
    /// The sched_ext part of each run queue, by CPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rq_scx_states: Vec<RqScxState>,
    /// Dispatch queues: first the local ones, then bypass, global and user ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dsq_states: Vec<DsqState>,
    /// The scheduler's root object. Absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scx_sched_state: Option<ScxSchedState>,
    /// Why `rq_scx_states`, `dsq_states` and `scx_sched_state` are incomplete. It can stand next
    /// to data: then the walk was partial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scx_walker_unavailable: Option<String>,
    /// Hardware counters of each vCPU at the freeze. Null: they could not be read for that vCPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vcpu_perf_at_freeze: Vec<Option<VcpuPerfSample>>,
    /// Microseconds from the start of the dump to the first check that found the deadline
    /// passed. Absent when it never passed, and always absent from an offline analysis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dump_truncated_at_us: Option<u64>,
    /// How many maps are missing from `maps` because the deadline had passed.
    #[serde(default, skip_serializing_if = "zero_u32")]
    pub maps_truncated: u32,
    /// What the probe program counted. Absent without a probe in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_counters: Option<ProbeBssCounters>,
    /// Evidence when the guest failed before anything could be captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_setup_failure: Option<GuestSetupFailureContext>,
    /// True: nothing was captured, the empty sections are not an observation. See
    /// [`FailureDumpReport::placeholder`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_placeholder: bool,
    /// Our addition to the shared format: what the post-mortem analysis found beyond it.
    /// Absent in reports of other tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postmortem: Option<Box<PostmortemReport>>,
}

impl Default for FailureDumpReport {
    fn default() -> Self {
        Self {
            schema: SCHEMA_SINGLE.to_owned(),
            maps: Vec::new(),
            vcpu_regs: Vec::new(),
            active_obj_name: None,
            active_map_kvas: Vec::new(),
            sdt_allocations: Vec::new(),
            scx_static_ranges: ScxStaticSnapshot::default(),
            sdt_alloc_unavailable: None,
            prog_runtime_stats: Vec::new(),
            prog_runtime_stats_unavailable: None,
            per_cpu_time: Vec::new(),
            cgroup_psi: Vec::new(),
            per_node_numa: Vec::new(),
            per_node_numa_unavailable: None,
            task_enrichments: Vec::new(),
            task_enrichments_unavailable: None,
            event_counter_timeline: Vec::new(),
            rq_scx_states: Vec::new(),
            dsq_states: Vec::new(),
            scx_sched_state: None,
            scx_walker_unavailable: None,
            vcpu_perf_at_freeze: Vec::new(),
            dump_truncated_at_us: None,
            maps_truncated: 0,
            probe_counters: None,
            guest_setup_failure: None,
            is_placeholder: false,
            postmortem: None,
        }
    }
}

impl FailureDumpReport {
    /// The report of a capture that did not happen: empty, marked `is_placeholder`, and with
    /// `reason` in every member that explains an empty section.
    pub fn placeholder(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self {
            is_placeholder: true,
            sdt_alloc_unavailable: Some(reason.clone()),
            prog_runtime_stats_unavailable: Some(reason.clone()),
            per_node_numa_unavailable: Some(reason.clone()),
            task_enrichments_unavailable: Some(reason.clone()),
            scx_walker_unavailable: Some(reason),
            ..Self::default()
        }
    }
}

/// Two captures of one failure: one on the way, one at the end.
///
/// It has no default, because a defaulted `late` would claim a capture that never was; use
/// [`DualFailureDumpReport::new`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DualFailureDumpReport {
    /// Always `"dual"`.
    #[schemars(extend("const" = "dual"))]
    pub schema: String,
    /// Taken when a task had been runnable for half the watchdog's limit. Absent when that did
    /// not happen before the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early: Option<FailureDumpReport>,
    /// Taken when the scheduler exited with an error.
    pub late: FailureDumpReport,
    /// The largest age of a runnable task when the early capture was taken, in jiffies. 0 without
    /// one.
    #[serde(default, skip_serializing_if = "zero_u64")]
    pub early_max_age_jiffies: u64,
    /// The age that triggers the early capture, in jiffies: half the watchdog's limit. 0 without
    /// an early capture.
    #[serde(default, skip_serializing_if = "zero_u64")]
    pub early_threshold_jiffies: u64,
    /// Why `early` is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_skipped_reason: Option<String>,
}

impl DualFailureDumpReport {
    /// A dual report with a late capture and no early one.
    pub fn new(late: FailureDumpReport) -> Self {
        Self {
            schema: SCHEMA_DUAL.to_owned(),
            early: None,
            late,
            early_max_age_jiffies: 0,
            early_threshold_jiffies: 0,
            early_skipped_reason: None,
        }
    }
}

/// A capture that was triggered and then given up, because not every vCPU stopped in time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DegradedFailureDumpReport {
    /// Always `"degraded"`.
    #[schemars(extend("const" = "degraded"))]
    pub schema: String,
    /// One of the stable prefixes of [`reasons`](super::reasons), then detail. See
    /// [`reasons::degraded`](super::reasons::degraded).
    pub reason: String,
    /// Registers by vCPU id. Null names a vCPU that never stopped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vcpu_regs: Vec<Option<VcpuRegSnapshot>>,
    /// The hardware watchpoint on the scheduler's exit kind had fired.
    pub watchpoint_hit: bool,
    /// State of the probe program's error latch, one of the `BSS_LATCH_…` strings of
    /// [`reasons`](super::reasons).
    pub bss_latch_state: String,
    /// `scx_sched.exit_kind` at that moment. Absent when it was not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_kind: Option<u32>,
    /// Milliseconds from the start of the capture until it was given up.
    #[serde(default, skip_serializing_if = "zero_u64")]
    pub elapsed_ms: u64,
}

impl DegradedFailureDumpReport {
    /// A degraded report with everything but its reason and the latch state at its default.
    pub fn new(reason: impl Into<String>, bss_latch_state: impl Into<String>) -> Self {
        Self {
            schema: SCHEMA_DEGRADED.to_owned(),
            reason: reason.into(),
            vcpu_regs: Vec::new(),
            watchpoint_hit: false,
            bss_latch_state: bss_latch_state.into(),
            exit_kind: None,
            elapsed_ms: 0,
        }
    }
}

/// What is known about a guest that failed before a capture was possible. Members that are not
/// known are left out; without any, the whole record is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GuestSetupFailureContext {
    /// Boot stage that the guest's init reported last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_stage: Option<String>,
    /// Last phase of the guest's life that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_guest_phase: Option<String>,
    /// Exit status of the guest's init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_exit_code: Option<i32>,
    /// What came of attaching the scheduler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler_attach_outcome: Option<String>,
    /// End of the first serial console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_tail: Option<String>,
    /// End of the second serial console, where the guest's init writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_log_tail: Option<String>,
    /// End of the scheduler's own log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler_log_tail: Option<String>,
}

impl GuestSetupFailureContext {
    /// Nothing is known; such a record is treated as absent.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
