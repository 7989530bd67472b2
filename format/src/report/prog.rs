//! BPF programs: run-time statistics, and the probe's own counters.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cpu::ratio;

/// Run-time statistics of one struct_ops program, summed over the CPUs. The kernel counts runs
/// and time only while BPF statistics are switched on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProgRuntimeStats {
    /// `bpf_prog_aux.name`.
    pub name: String,
    /// `bpf_prog_stats.cnt`: runs.
    pub cnt: u64,
    /// `bpf_prog_stats.nsecs`: time in the program, ns.
    pub nsecs: u64,
    /// `bpf_prog_stats.misses`: entries that the kernel refused because the program was already
    /// running on that CPU.
    pub misses: u64,
}

impl ProgRuntimeStats {
    /// Mean time of a run, ns; 0 without runs.
    pub fn ns_per_call(&self) -> f64 {
        ratio(self.nsecs, self.cnt)
    }

    /// Refused entries as a share of all entries, 0 to 1; 0 without entries.
    pub fn miss_rate(&self) -> f64 {
        ratio(self.misses, self.cnt.saturating_add(self.misses))
    }
}

/// Counters that the probe program keeps, summed over the CPUs. A zero does not tell "never
/// happened" from "was never attached".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProbeBssCounters {
    /// Probe hits while the probe was enabled.
    pub probe_count: u64,
    /// Hits that stored a record.
    pub kprobe_returns: u64,
    /// Hits at an address for which the probe has no description.
    pub meta_miss: u64,
    /// Records that found no room in the trigger's ring.
    pub ringbuf_drops: u64,
    /// Timeline records written (switches, migrations, wakeups).
    pub timeline_count: u64,
    /// Timeline records lost to a full ring.
    pub timeline_drops: u64,
    /// Priority-inheritance records written.
    pub pi_count: u64,
    /// Priority-inheritance exits without a recorded entry.
    pub pi_orphan_fexits: u64,
    /// Priority-inheritance events that changed a task's scheduling class.
    pub pi_class_change_count: u64,
    /// Priority-inheritance records lost.
    pub pi_drops: u64,
    /// Lock-contention records written.
    pub lock_contend_count: u64,
    /// Lock-contention records lost.
    pub lock_contend_drops: u64,
    /// Times that preemption went from on to off.
    pub preempt_disable_count: u64,
    /// Times that preemption went from off to on.
    pub preempt_enable_count: u64,
    /// Runs of the handler of the scheduler's exit, clean exits included.
    pub trigger_count: u64,
}
