//! What the kernel itself counts and says: pressure, interrupts, scheduler statistics, its log.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::hex::Hex;
use super::omit::is_false;
use super::postmortem::CpuCount;

/// Pressure stall information. All of it is as the kernel last stored it: it brings averages and
/// totals up to date every two seconds while there is work, and whenever somebody reads
/// `/proc/pressure` or a cgroup's files; a core does neither.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PressureInfo {
    /// The whole system (`psi_system`), which is also the root cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<PressureGroup>,
    /// Every other cgroup of the default hierarchy, parents before children, siblings as they were
    /// created.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cgroups: Vec<CgroupPressure>,
}

/// The pressure on one cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CgroupPressure {
    /// Its path in the default hierarchy.
    pub path: String,
    /// Address of its `struct cgroup`.
    pub cgroup_kva: Hex,
    /// `cgroup.self.serial_nr`, which no other cgroup ever has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial_nr: Option<u64>,
    /// Accounting was switched off for it (`cgroup.pressure`); the figures are older.
    #[serde(skip_serializing_if = "is_false")]
    pub disabled: bool,
    /// The figures. Absent when they could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<PressureGroup>,
}

/// One `struct psi_group`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PressureGroup {
    /// When the averages were last brought up to date, ns of the scheduler's clock
    /// (`psi_group.avg_last_update`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_ns: Option<u64>,
    /// CPU. For the whole system there is no `full`: the kernel holds a number that means nothing
    /// and prints zeros.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Pressure>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Pressure>,
    /// Input and output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Pressure>,
    /// Interrupts; only `full`. Absent in kernels without CONFIG_IRQ_TIME_ACCOUNTING.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub irq: Option<Pressure>,
}

/// The pressure on one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Pressure {
    /// Some task waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub some: Option<PressureLine>,
    /// All tasks that were not idle waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<PressureLine>,
}

/// A line of `/proc/pressure`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PressureLine {
    /// Share of the last 10 s, per cent with two decimals, as the kernel prints it.
    pub avg10: String,
    /// Of the last 60 s.
    pub avg60: String,
    /// Of the last 300 s.
    pub avg300: String,
    /// Since boot, ns. The kernel prints µs.
    pub total_ns: u64,
}

/// How often one interrupt came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct IrqCount {
    /// The first column of `/proc/interrupts`: a number, or a word for those of the architecture
    /// (`LOC`). An interrupt that nobody handles any more is in `/proc/stat` only.
    pub irq: String,
    /// Who handles it (`irqaction.name`), or what it is (`Local timer interrupts`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// `irq_chip.name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chip: Option<String>,
    /// `irq_data.hwirq`: its number at that chip. Absent without an interrupt domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hwirq: Option<u64>,
    /// The sum over the possible CPUs. The kernel prints the online ones.
    pub total: u64,
    /// The CPUs whose part is not 0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub per_cpu: Vec<CpuCount>,
}

/// What `/proc/schedstat` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SchedStats {
    /// `sched_schedstats`: the kernel counts. While it does not, a count of 0 says nothing; times
    /// and `pcount` are kept all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counting: Option<bool>,
    /// By CPU.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<CpuSchedStats>,
}

/// The statistics of one run queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CpuSchedStats {
    /// The CPU.
    pub cpu: u32,
    /// `rq.yld_count`: calls of sched_yield(2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub yld_count: Option<u64>,
    /// `rq.sched_count`: calls of `schedule()`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sched_count: Option<u64>,
    /// `rq.sched_goidle`: those after which the CPU was idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sched_goidle: Option<u64>,
    /// `rq.ttwu_count`: tasks woken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttwu_count: Option<u64>,
    /// `rq.ttwu_local`: those woken on the CPU that woke them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttwu_local: Option<u64>,
    /// `rq.rq_cpu_time`: how long tasks ran, ns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rq_cpu_time_ns: Option<u64>,
    /// `rq.rq_sched_info.run_delay`: how long tasks waited to run, ns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_delay_ns: Option<u64>,
    /// `rq.rq_sched_info.pcount`: how often a task was given the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcount: Option<u64>,
    /// Its scheduling domains, the smallest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<SchedDomain>,
}

/// One `struct sched_domain` of a CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SchedDomain {
    /// Its name: `SMT`, `MC`, `PKG`, `NUMA`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The CPUs in it, as a range list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span: Option<String>,
    /// The counters that are not 0, by their names in the kernel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub counters: Vec<NamedCount>,
}

/// A counter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NamedCount {
    /// Its name, with the kind of idleness where there is one count of each:
    /// `lb_count[CPU_NEWLY_IDLE]`.
    pub name: String,
    /// Its value.
    pub value: u64,
}

/// One record of the kernel's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LogRecord {
    /// Its number since boot. A number that is missing between two others was lost.
    pub seq: u64,
    /// When, ns of the kernel's local clock.
    pub ts_ns: u64,
    /// 0 (`emerg`) to 7 (`debug`).
    pub level: u8,
    /// The name of that level.
    pub level_name: String,
    /// 0 for the kernel; others came through `/dev/kmsg`.
    pub facility: u8,
    /// Who: `T12` for a task by pid, `C1` for a CPU outside of any task.
    pub caller: String,
    /// Name of that task. Absent in kernels that do not keep it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// The device that it is about, as subsystem and name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The text; it can have several lines.
    pub text: String,
    /// The kernel had not finished it: more could have been appended.
    #[serde(skip_serializing_if = "is_false")]
    pub unfinished: bool,
}
