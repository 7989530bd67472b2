//! What is counted or read per vCPU, CPU, NUMA node and cgroup.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Registers of one vCPU at the freeze.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VcpuRegSnapshot {
    /// x86-64 `rip`, arm64 `pc`.
    pub instruction_pointer: u64,
    /// x86-64 `rsp`, arm64 `sp_el1`.
    pub stack_pointer: u64,
    /// x86-64 `cr3`; arm64 `ttbr1_el1` with its flag bits.
    pub page_table_root: u64,
    /// arm64 `ttbr0_el1`. Absent on x86-64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_page_table_root: Option<u64>,
    /// arm64 `tcr_el1`, which tells the page size. Absent on x86-64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcr_el1: Option<u64>,
}

/// How many softirq vectors [`PerCpuTimeStats::softirqs`] has.
pub const NR_SOFTIRQS: usize = 10;

/// The kernel's names of the softirq vectors, in the order of [`PerCpuTimeStats::softirqs`].
pub const SOFTIRQ_NAMES: [&str; NR_SOFTIRQS] = [
    "HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU",
];

/// Where one CPU's time went since boot, and its interrupt counts. As last stored by the kernel: a
/// CPU that idles with its tick stopped has not added that time yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PerCpuTimeStats {
    /// The CPU.
    pub cpu: u32,
    /// `kernel_cpustat.cpustat[CPUTIME_USER]`, ns.
    pub cpustat_user_ns: u64,
    /// `kernel_cpustat.cpustat[CPUTIME_NICE]`, ns.
    pub cpustat_nice_ns: u64,
    /// `kernel_cpustat.cpustat[CPUTIME_SYSTEM]`, ns.
    pub cpustat_system_ns: u64,
    /// `kernel_cpustat.cpustat[CPUTIME_SOFTIRQ]`, ns.
    pub cpustat_softirq_ns: u64,
    /// `kernel_cpustat.cpustat[CPUTIME_IRQ]`, ns.
    pub cpustat_irq_ns: u64,
    /// `kernel_cpustat.cpustat[CPUTIME_IDLE]`, ns.
    pub cpustat_idle_ns: u64,
    /// `kernel_cpustat.cpustat[CPUTIME_IOWAIT]`, ns.
    pub cpustat_iowait_ns: u64,
    /// `kernel_cpustat.cpustat[CPUTIME_STEAL]`, ns.
    pub cpustat_steal_ns: u64,
    /// `kernel_stat.softirqs`, a count per vector; [`SOFTIRQ_NAMES`] names them.
    pub softirqs: [u64; NR_SOFTIRQS],
    /// `kernel_stat.irqs_sum`, a count.
    pub irqs_sum: u64,
    /// `tick_sched.iowait_sleeptime`, ns. Absent in kernels that never stop the tick.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iowait_sleeptime_ns: Option<u64>,
}

/// Pressure-stall accounting of interrupts for one cgroup, as the kernel holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CgroupPsiStat {
    /// Kernel address of the `struct cgroup`.
    pub cgroup_kva: u64,
    /// `psi_group.total[PSI_AVGS][PSI_IRQ_FULL]`, ns.
    pub total_ns: u64,
    /// `psi_group.avg[PSI_IRQ_FULL][0]`: the 10-second average in per cent, times 2048.
    pub avg10_raw: u64,
    /// `cgroup.self.serial_nr`, which no other cgroup ever has.
    pub serial_nr: u64,
}

/// NUMA allocation counters of one node since boot: `zone.vm_numa_event`, summed over its zones,
/// with what CPUs have not folded into it yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PerNodeNumaStats {
    /// The node.
    pub node: u32,
    /// `NUMA_HIT`: pages that were wanted from this node and came from it.
    pub numa_hit: u64,
    /// `NUMA_MISS`: pages that came from this node though another was wanted.
    pub numa_miss: u64,
    /// `NUMA_FOREIGN`: pages that were wanted from this node and came from another.
    pub numa_foreign: u64,
    /// `NUMA_INTERLEAVE_HIT`: interleaved pages that came from the node they were meant for.
    pub numa_interleave_hit: u64,
    /// `NUMA_LOCAL`: pages taken by a CPU of this node.
    pub numa_local: u64,
    /// `NUMA_OTHER`: pages taken by a CPU of another node.
    pub numa_other: u64,
}

/// Hardware counters of one vCPU, guest time only, from the start of the run to the freeze.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VcpuPerfSample {
    /// CPU cycles.
    pub cycles: u64,
    /// Instructions retired.
    pub instructions: u64,
    /// Cache misses.
    pub cache_misses: u64,
    /// Mispredicted branches.
    pub branch_misses: u64,
    /// How long the counters were enabled, ns.
    pub time_enabled_ns: u64,
    /// How long they really counted, ns. Less than enabled when counters had to be shared.
    pub time_running_ns: u64,
    /// The vCPU thread's task clock, ns. Null, never left out, when it could not be read.
    #[serde(default)]
    pub task_clock_ns: Option<u64>,
}

impl VcpuPerfSample {
    /// Instructions per cycle; 0 without cycles.
    pub fn ipc(&self) -> f64 {
        ratio(self.instructions, self.cycles)
    }
}

/// A quotient of two counts for display; 0 when there is nothing to divide by.
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}
