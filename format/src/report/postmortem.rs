//! What the post-mortem analysis adds to the shared format: the optional member `postmortem`.
//!
//! Every member may be missing, enumerations may grow, addresses and identifiers are hexadecimal
//! strings ([`Hex`]). Lists have a fixed order: by CPU, by id, or as the guest's own list has it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bpf_maps::{AllocatorInfo, ArenaInfo, Callback, MapInfo};
use super::bpf_objects::{ActiveInfo, LinkInfo, MapRef, ProgramInfo};
use super::cpu_state::{
    ClassCounts, CpuContext, CpuIdle, CpuThrottling, CpuTick, CpuTopology, ScxIdleBits, SoftLockup,
};
use super::deferred::{TimerInfo, WorkqueueInfo};
use super::diff::EarlyLateDiff;
use super::findings::Finding;
use super::hex::Hex;
use super::history::History;
use super::kernel_dump::{DumpComparison, KernelDump};
use super::kernel_side::{IrqCount, LogRecord, PressureInfo, SchedStats};
use super::locks::{LockInfo, LockWait, NamedTask};
use super::omit::is_false;
use super::probe::ProbeInfo;
use super::recovered::RecoveredPointers;

/// Version of the `postmortem` member that this crate writes. It grows when the meaning of a
/// member changes, not when members are added.
pub const POSTMORTEM_VERSION: u32 = 1;

/// What the analysis found beyond the shared format.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PostmortemReport {
    /// [`POSTMORTEM_VERSION`] of the tool that wrote this.
    pub version: u32,
    /// Name and version of that tool.
    pub analyzer: String,
    /// The verdict in short sentences: what died, who waited, where and for how long.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headline: Vec<String>,
    /// Why it happened, as far as rules can tell: the first is the verdict.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// What changed since the early image, and what stood still. Only in the late report of a dual
    /// one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<Box<EarlyLateDiff>>,
    /// What is wrong with the file itself: truncation, damage, torn memory. Each a sentence.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Tasks that have been runnable for half of the watchdog's limit or longer, the longest
    /// first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub starved: Vec<StarvedTask>,
    /// The file that was analysed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<InputInfo>,
    /// The guest's kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelInfo>,
    /// Where basic facts came from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub provenance: Vec<Provenance>,
    /// The scheduler that the report is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<SchedulerInfo>,
    /// Every scheduler found in the guest, that one included, the root first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schedulers: Vec<SchedulerInfo>,
    /// How the scheduler ended. Absent when it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_info: Option<ExitInfo>,
    /// The kernel's own dump against what this report has. Absent without a dump, and after the
    /// ejection, when the queues are gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump_differences: Option<DumpComparison>,
    /// The scheduler's event counters at this moment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub event_counters: Vec<EventCounter>,
    /// What the probe program saw of the scheduler's end. Absent without a probe in the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeInfo>,
    /// What a monitor saw before this moment. Absent without a monitor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
    /// Each CPU and its run queue.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<CpuInfo>,
    /// Dispatch queues: local, bypass, global, then those that the scheduler made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dsqs: Vec<DsqInfo>,
    /// Tasks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskInfo>,
    /// Locks that tasks wait for, by address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<LockInfo>,
    /// BPF maps, by id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<MapInfo>,
    /// Arenas, by id of their maps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub arenas: Vec<ArenaInfo>,
    /// Allocators in arenas, in the order of `sdt_allocations`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allocators: Vec<AllocatorInfo>,
    /// Which BPF objects make up the scheduler that the report is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<ActiveInfo>,
    /// BPF programs, by id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<ProgramInfo>,
    /// BPF links, by id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<LinkInfo>,
    /// Integers that hold pointers, as the programs' own instructions tell. Absent when nobody
    /// looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovered_pointers: Option<RecoveredPointers>,
    /// Pressure stall information.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<PressureInfo>,
    /// Interrupts that came at least once: by number, then those of the architecture.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub irqs: Vec<IrqCount>,
    /// Statistics of the run queues. Absent in kernels that keep none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedstats: Option<SchedStats>,
    /// Timers: by CPU, hrtimers before the wheel's, each queue as it expires. Absent when nothing
    /// is set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timers: Vec<TimerInfo>,
    /// Workqueues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workqueues: Option<WorkqueueInfo>,
    /// The kernel's log, the oldest record first: its end, as far as the limit reaches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernel_log: Vec<LogRecord>,
    /// Sections that are missing, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<Unavailable>,
    /// What was found that cannot be, and where.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub anomalies: Vec<Anomaly>,
    /// Limits that cut something off.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitReached>,
}

impl PostmortemReport {
    /// An empty block of this version, by the tool `analyzer` (its name and version).
    pub fn new(analyzer: impl Into<String>) -> Self {
        Self {
            version: POSTMORTEM_VERSION,
            analyzer: analyzer.into(),
            ..Self::default()
        }
    }
}

/// A task that waits too long, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StarvedTask {
    /// Its thread id.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Address of its `task_struct`.
    pub kva: Hex,
    /// The CPU whose runnable list it is on.
    pub cpu: u32,
    /// How long it has been runnable, jiffies.
    pub runnable_age_jiffies: u64,
    /// The same in ms.
    pub runnable_age_ms: u64,
    /// The dispatch queue it is on. Absent when it is on none: the BPF scheduler holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsq_id: Option<Hex>,
    /// What that queue is, as `dsq_states` puts it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsq_origin: Option<String>,
    /// Address of that queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsq_kva: Option<Hex>,
    /// Its place in that queue; 0 is the next to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsq_position: Option<u32>,
}

/// The file that was analysed. It has no name here: the same bytes give the same report wherever
/// they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct InputInfo {
    /// `capture` (this project's own format) or `elf-core`.
    pub kind: String,
    /// Bytes of guest memory that the file holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// vCPUs that the file describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// What tells this capture from any other: a digest of the checksums of all its parts, 32
    /// hexadecimal digits. Absent for an ELF core, which has none and would have to be read whole,
    /// for a capture that is cut short, and for one of version 1.0 that was read by ranges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Memory that was left out of the file on purpose, and by which rule. Each a sentence.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// What made the capture fire, in the capturing tool's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
}

/// The guest's kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct KernelInfo {
    /// `uname -r`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// The kernel's build id, lower-case hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// `x86_64` or `aarch64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// `linux_banner`: version, compiler, build date.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_banner: Option<String>,
    /// Timer ticks per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hz: Option<u32>,
    /// `jiffies_64`: ticks since shortly before boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jiffies: Option<u64>,
    /// Time since boot, ns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime_ns: Option<u64>,
    /// Time since any CPU last brought the kernel's clocks up to date, ns, by the vCPUs' TSC: a tick
    /// or two, unless no CPU takes one. Absent where the file has no TSC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timekeeping_age_ns: Option<u64>,
    /// How many CPUs the kernel is prepared for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nr_cpus: Option<u32>,
    /// CPUs that may come online, as a range list (`0-3,8`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus_possible: Option<String>,
    /// CPUs that are online, as a range list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus_online: Option<String>,
    /// CPUs that are plugged in, as a range list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus_present: Option<String>,
    /// CPUs that tasks may be moved to, as a range list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus_active: Option<String>,
    /// Possible CPUs that scheduling domains leave out (`isolcpus=`, isolated cpusets), as a
    /// range list; empty when there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus_isolated: Option<String>,
    /// CPUs without a tick while one task runs (`nohz_full=`), as a range list; empty when there
    /// are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus_nohz_full: Option<String>,
    /// Levels of the kernel's page tables, 4 or 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paging_levels: Option<u32>,
    /// How far the kernel's text was moved at boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kaslr_offset: Option<Hex>,
    /// Physical address of the kernel's image minus its link-time offset, bytes. It can be
    /// negative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phys_base: Option<i64>,
    /// Where the direct map of all memory begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page_offset_base: Option<Hex>,
    /// Where the vmalloc area begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmalloc_base: Option<Hex>,
    /// Where the memory map begins, a `struct page` for each page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmemmap_base: Option<Hex>,
    /// The command line that the kernel was booted with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// The state of sched_ext as a whole, whether or not a scheduler is attached: `enabling`,
    /// `enabled`, `disabling` or `disabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sched_ext_state: Option<String>,
}

/// Where one fact came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Provenance {
    /// The fact, e.g. `vmcoreinfo` or `symbols`.
    pub what: String,
    /// Its source, e.g. `note` or `memory scan`.
    pub source: String,
    /// More about it; can be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Flags, as a number and by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Flags {
    /// All bits.
    pub raw: Hex,
    /// The kernel's names of the bits that are set. A bit without a name is missing here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// One scheduler, `struct scx_sched` or what older kernels have for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SchedulerInfo {
    /// `sched_ext_ops.name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_name: Option<String>,
    /// `enabling`, `enabled`, `disabling` or `disabled`. Absent for a scheduler that was ejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_state: Option<String>,
    /// Address of the `struct scx_sched`. Absent in kernels without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sched_kva: Option<Hex>,
    /// How it was found: `scx_root`, `struct_ops map`, …
    pub found_via: String,
    /// Every ordinary task belongs to the scheduler, not only those that asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switched_all: Option<bool>,
    /// How many reasons hold the scheduler in bypass mode; 0 is not in bypass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bypass_depth: Option<i32>,
    /// For how long it has been in bypass mode, ms. Absent while it is not, and in kernels that
    /// do not say since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bypassed_ms: Option<u64>,
    /// The scheduler is being thrown out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aborting: Option<bool>,
    /// `scx_sched.exit_kind`: 0 while it runs, 1 once its disabling has begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_kind: Option<u32>,
    /// The kernel's name for it. Absent for an unknown number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_kind_name: Option<String>,
    /// How long a runnable task may wait before the watchdog acts, jiffies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog_timeout_jiffies: Option<u64>,
    /// The same in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog_timeout_ms: Option<u64>,
    /// Time since the watchdog last checked, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog_timestamp_age_ms: Option<u64>,
    /// The default time slice, ns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice_dfl_ns: Option<u64>,
    /// `sched_ext_ops.flags`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_flags: Option<Flags>,
    /// The callbacks that the scheduler has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub has_ops: Vec<String>,
    /// Tasks that the scheduler refused to take since it was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nr_rejected: Option<i64>,
    /// How many schedulers were loaded since boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_seq: Option<i64>,
    /// How often a CPU came or went since boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hotplug_seq: Option<i64>,
    /// Depth in the tree of sub-schedulers; 0 is the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<i32>,
    /// Address of the scheduler above it. Absent for the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_kva: Option<Hex>,
    /// Addresses of the schedulers right below it, as the kernel's list has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Hex>,
    /// The cgroup that a sub-scheduler serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<String>,
    /// The BPF map that registered it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub struct_ops_map: Option<MapRef>,
    /// Its callbacks and the programs that implement them, in the order of the struct.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub callbacks: Vec<Callback>,
}

/// How the scheduler ended, `struct scx_exit_info`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ExitInfo {
    /// `scx_exit_info.kind`; 1024 and above is an error.
    pub kind: u32,
    /// The kernel's name for it, e.g. `SCX_EXIT_ERROR_STALL`. Absent for an unknown number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind_name: Option<String>,
    /// `scx_exit_info.exit_code`. Absent when it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// `scx_exit_info.flags`. Absent in kernels without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<Flags>,
    /// The CPU on which the error was found. Absent in kernels without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_cpu: Option<i32>,
    /// What happened, in the kernel's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The message that goes with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msg: Option<String>,
    /// The stack on which the error was found, innermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backtrace: Vec<Frame>,
    /// The kernel's own dump text. Absent when the kernel had not written it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump: Option<String>,
    /// The kernel had more to say than its buffer holds.
    #[serde(skip_serializing_if = "is_false")]
    pub dump_truncated: bool,
    /// The dump, taken apart. Absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parsed_dump: Option<KernelDump>,
}

/// One frame of a stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Frame {
    /// Program counter.
    pub addr: Hex,
    /// `function+0x1a/0x40`. Absent when no symbol covers the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// The line of a BPF program that this is: `stall.bpf.c:42`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// One event counter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EventCounter {
    /// The kernel's name, e.g. `SCX_EV_SELECT_CPU_FALLBACK`.
    pub name: String,
    /// The sum over the CPUs. `SCX_EV_BYPASS_DURATION` is in ns, all others count.
    pub value: i64,
    /// The CPUs whose part is not 0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub per_cpu: Vec<CpuCount>,
}

/// One CPU's part of a counter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CpuCount {
    /// The CPU.
    pub cpu: u32,
    /// Its part.
    pub value: i64,
}

/// One CPU and its run queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CpuInfo {
    /// The CPU.
    pub cpu: u32,
    /// It is online.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// It runs its idle task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<bool>,
    /// Address of its `struct rq`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rq_kva: Option<Hex>,
    /// The task that runs on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curr: Option<CurrTask>,
    /// `rq.nr_running`: runnable tasks of all classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nr_running: Option<u32>,
    /// `rq.clock`, ns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_ns: Option<u64>,
    /// How far that is behind the newest of all CPUs' clocks, ns. An idle CPU's stands still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_behind_ns: Option<u64>,
    /// `rq.scx.nr_running`: runnable sched_ext tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scx_nr_running: Option<u32>,
    /// `rq.scx.flags`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scx_flags: Option<Flags>,
    /// `rq.scx.cpu_released`: a higher class has taken the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_released: Option<bool>,
    /// `rq.scx.ops_qseq`: number of the last enqueue handed to the scheduler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_qseq: Option<u64>,
    /// Runnable tasks by class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<ClassCounts>,
    /// Whether it can be preempted and interrupted, and is asked to reschedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<CpuContext>,
    /// Its sleep, while it runs its idle task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_state: Option<CpuIdle>,
    /// Its place in the masks of idle CPUs that sched_ext keeps. Absent while the BPF scheduler
    /// tracks idle CPUs itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scx_idle: Option<ScxIdleBits>,
    /// Its last tick.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tick: Option<CpuTick>,
    /// The detector of soft lockups on it. Absent where that is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_lockup: Option<SoftLockup>,
    /// Where it is in the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<CpuTopology>,
    /// Classes and groups that may not use it for now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttling: Option<CpuThrottling>,
    /// The tasks of `rq.scx.runnable_list`, the longest runnable first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub runnable: Vec<RunnableTask>,
    /// The list is longer than what is here, or runs in a circle.
    #[serde(skip_serializing_if = "is_false")]
    pub runnable_truncated: bool,
}

/// The task that runs on a CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CurrTask {
    /// Its thread id.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Address of its `task_struct`.
    pub kva: Hex,
    /// Its class: `fair`, `rt`, `dl`, `idle`, `stop` or `ext`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Its policy, e.g. `SCHED_EXT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// How long it has been on the CPU, ns, up to the run queue's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_ns: Option<u64>,
    /// When it came onto the CPU, ns of the run queue's clock (`sched_info.last_arrival`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arrived_ns: Option<u64>,
    /// When its run time was last accounted, ns of the run queue's clock without interrupts
    /// (`se.exec_start`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec_start_ns: Option<u64>,
}

/// A task that waits on a run queue's list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RunnableTask {
    /// Its thread id.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// Address of its `task_struct`.
    pub kva: Hex,
    /// `scx.runnable_at`, jiffies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runnable_at_jiffies: Option<u64>,
    /// How long it has been runnable, jiffies. Absent while the kernel has yet to set
    /// `runnable_at`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runnable_age_jiffies: Option<u64>,
    /// The same in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runnable_age_ms: Option<u64>,
    /// The dispatch queue it is on. Absent when it is on none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsq_id: Option<Hex>,
}

/// One dispatch queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DsqInfo {
    /// `scx_dispatch_q.id`.
    pub id: Hex,
    /// What the id means: `LOCAL`, `GLOBAL`, `BYPASS`, … or `user` for one that the scheduler
    /// chose.
    pub name: String,
    /// What the queue is, as `dsq_states` puts it: `local cpu 0`, `user`, …
    pub origin: String,
    /// Address of the `struct scx_dispatch_q`.
    pub dsq_kva: Hex,
    /// Address of the scheduler that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sched_kva: Option<Hex>,
    /// `scx_dispatch_q.nr`: tasks, as the kernel counts them.
    pub nr: u32,
    /// `scx_dispatch_q.seq`: counts insertions.
    pub seq: u32,
    /// `fifo` or `vtime`: how its tasks are ordered. Absent when it is empty and does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// The queued tasks, the next one to run first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<QueuedTask>,
    /// The list is longer than what is here, or runs in a circle.
    #[serde(skip_serializing_if = "is_false")]
    pub truncated: bool,
}

/// A task that waits on a dispatch queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct QueuedTask {
    /// Its place in the queue; 0 is the next to run.
    pub index: u32,
    /// Address of its `task_struct`.
    pub task_kva: Hex,
    /// Its thread id.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// `scx.dsq_vtime`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsq_vtime: Option<u64>,
    /// `scx.dsq_flags`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsq_flags: Option<Flags>,
    /// How long it has been runnable, jiffies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runnable_age_jiffies: Option<u64>,
    /// The same in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runnable_age_ms: Option<u64>,
    /// Its time slice, ns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice_ns: Option<u64>,
    /// CPUs it may run on, as a range list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus_allowed: Option<String>,
}

/// One task in the scheduler's view.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TaskInfo {
    /// Address of its `task_struct`.
    pub kva: Hex,
    /// Thread id.
    pub pid: i32,
    /// Process id.
    pub tgid: i32,
    /// Name.
    pub comm: String,
    /// The CPU it runs on or ran on last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// State as a letter: R, S, D, T, t, X, Z, P or I.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// State in words, e.g. `running`, `sleeping`, `disk sleep`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_name: Option<String>,
    /// `task_struct.on_rq`: 0 not on a run queue, 1 on one, 2 moving between two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_rq: Option<i32>,
    /// It is on a CPU now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_cpu: Option<bool>,
    /// Policy, e.g. `SCHED_EXT`, `SCHED_NORMAL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Scheduling class: `fair`, `rt`, `dl`, `idle`, `stop` or `ext`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// State towards sched_ext: `NONE`, `INIT`, `READY`, `ENABLED`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scx_state: Option<String>,
    /// `scx.flags`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scx_flags: Option<Flags>,
    /// `scx.weight`; 100 is that of nice 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scx_weight: Option<u32>,
    /// What is left of its slice, ns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice_ns: Option<u64>,
    /// `scx.dsq_vtime`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsq_vtime: Option<u64>,
    /// The queue it is on. Absent when it is on none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dsq_id: Option<Hex>,
    /// The queue it was dispatched to from `select_cpu` or `enqueue` and has yet to reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ddsp_dsq_id: Option<Hex>,
    /// `scx.holding_cpu`; −1 when no CPU is moving it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holding_cpu: Option<i32>,
    /// `scx.sticky_cpu`; −1 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky_cpu: Option<i32>,
    /// Who has it: `NONE`, `QUEUEING`, `QUEUED` (the scheduler) or `DISPATCHING`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_state: Option<String>,
    /// Number of the enqueue that handed it to the scheduler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_qseq: Option<u64>,
    /// `scx.runnable_at`, jiffies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runnable_at_jiffies: Option<u64>,
    /// How long it has been runnable, jiffies. Absent when it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runnable_age_jiffies: Option<u64>,
    /// The same in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runnable_age_ms: Option<u64>,
    /// CPUs it may run on, as a range list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus_allowed: Option<String>,
    /// How many these are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nr_cpus_allowed: Option<i32>,
    /// `task_struct.migration_disabled`: not 0, it must stay on its CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration_disabled: Option<u32>,
    /// How long it has run in all its life, ns, up to the last tick or switch
    /// (`se.sum_exec_runtime`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum_exec_ns: Option<u64>,
    /// When it began, ns of `CLOCK_MONOTONIC` (`task_struct.start_time`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time_ns: Option<u64>,
    /// Its cgroup in the default hierarchy, `/` for the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The function that it sleeps in, as `/proc/<pid>/wchan` has it. Absent when it does not
    /// sleep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wchan: Option<String>,
    /// The lock that it waits for. Absent when it waits for none that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<LockWait>,
    /// The task whose priority it has inherited (`task_struct.pi_top_task`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boosted_by: Option<NamedTask>,
    /// Its kernel stack, innermost frame first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stack: Vec<Frame>,
    /// Why the stack ends before its first frame, or is missing. Absent when it is whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack_end: Option<String>,
}

/// A section that is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Unavailable {
    /// The section: a member of this block, or one of the report's own by its path.
    pub section: String,
    /// The kind of absence: `unreadable` (the memory that holds it could not be read),
    /// `unparsable` (it was read and makes no sense), `not_applicable` (this guest or kernel has
    /// no such thing), `not_in_image` (the image does not hold it). More may come.
    #[schemars(with = "String")]
    pub code: UnavailableCode,
    /// What was looked for and not found.
    pub reason: String,
}

/// The kinds of absence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UnavailableCode {
    /// The memory that holds it could not be read.
    Unreadable,
    /// It was read and makes no sense.
    Unparsable,
    /// This guest or kernel has no such thing.
    NotApplicable,
    /// The image does not hold it.
    NotInImage,
    /// It may well be there: this version of the analyzer does not read it.
    NotRead,
    /// A kind of absence that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl UnavailableCode {
    /// The code as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Unparsable => "unparsable",
            Self::NotApplicable => "not_applicable",
            Self::NotInImage => "not_in_image",
            Self::NotRead => "not_read",
            Self::Unknown => "unknown",
        }
    }
}

/// Something that was found and cannot be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Anomaly {
    /// The section in which it was met.
    pub section: String,
    /// Where it is in the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Hex>,
    /// What it is.
    pub what: String,
}

/// A limit that cut something off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LimitReached {
    /// What is limited.
    pub what: String,
    /// The limit.
    pub limit: u64,
    /// How many there are. Absent when nobody counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual: Option<u64>,
}
