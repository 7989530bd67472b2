//! What each CPU was doing beyond its run queue.
//!
//! Reads, of each CPU: `__preempt_count` (`pcpu_hot.preempt_count` before 6.15;
//! include/linux/preempt.h), `task_struct.thread_info.flags` of the running task
//! (include/asm-generic/thread_info_tif.h), the vCPU's registers, `tick_cpu_sched`
//! (`struct tick_sched`, kernel/time/tick-sched.h), `watchdog_touch_ts` (kernel/watchdog.c), members of `struct rq` with the deadline
//! servers of classes, `numa_node`, `cpu_sibling_map`, `cpu_llc_shared_map` and `cpu_info`
//! (arch/x86/kernel/smpboot.c). Of the machine: the masks of CPUs (kernel/cpu.c),
//! `housekeeping` (kernel/sched/isolation.c), the idle masks of kernel/sched/ext_idle.c, and
//! `task_groups` with the `cfs_rq`s that are throttled (kernel/sched/fair.c).

use std::collections::BTreeMap;

use scx_postmortem_format::report::{
    ClassCounts, CpuContext, CpuIdle, CpuInfo, CpuThrottling, CpuTick, CpuTopology, DlServer, Hex,
    KernelInfo, ScxIdleBits, SoftLockup,
};

use super::clock::{self, Clock};
use super::stacks::vcpu_of;
use super::{Members, Remarks, static_key};
use crate::addr::Kva;
use crate::bytes::to_usize;
use crate::error::{Error, Result};
use crate::kernel::{Kernel, cpu_list};
use crate::object::Object;

/// Task groups, or throttled run queues of one: more than a machine has CPUs and cgroups for.
const MAX_GROUPS: usize = 1 << 16;
/// `MAX_NUMNODES` of the largest machines.
const MAX_NODES: u32 = 1024;
/// Longest name of an idle state.
const MAX_NAME: usize = 64;
/// Bytes of `resched_curr()` that are looked at.
const RESCHED_CURR: u64 = 48;

/// `TS_FLAG_*` of kernel/time/tick-sched.h: macros, the same since the flags became bits of one
/// word (6.9).
mod ts_flag {
    pub(super) const INIDLE: u64 = 1 << 0;
    pub(super) const STOPPED: u64 = 1 << 1;
}

/// Gives every CPU what is beyond its run queue.
pub fn read(kernel: &Kernel, clock: Option<&Clock>, cpus: &mut [CpuInfo], remarks: &mut Remarks) {
    let machine = Machine {
        kernel,
        clock,
        now: remarks
            .ok("cpus.idle_state", clock::monotonic_ns(kernel))
            .and_then(|now| u64::try_from(now).ok()),
        resched: remarks.ok("cpus.context.need_resched", resched_bits(kernel)),
        detector: remarks
            .ok("cpus.soft_lockup", Detector::find(kernel))
            .flatten(),
        idle: IdleMasks::find(kernel, remarks),
    };
    let mut throttled = BTreeMap::new();
    let complete = match throttled_groups(kernel, &mut throttled, remarks) {
        Ok(complete) => complete,
        Err(error) => {
            remarks.missing("cpus.throttling.fair_cgroups", &error);
            // The reason says that nothing is known.
            true
        }
    };
    let newest = cpus.iter().filter_map(|cpu| cpu.clock_ns).max();
    for info in cpus {
        let rq = kernel.per_cpu_object("runqueues", "struct rq", info.cpu);
        let Some(rq) = remarks.ok("cpus", rq) else {
            continue;
        };
        let ext = info.scx_nr_running;
        info.clock_behind_ns = newest.zip(info.clock_ns).map(|(all, own)| all - own);
        info.classes = Some(classes(&rq, ext, remarks));
        info.context = Some(machine.context(info, remarks));
        info.tick = machine.tick(info.cpu, remarks);
        info.soft_lockup = machine.soft_lockup(info, remarks);
        info.idle_state = (info.idle == Some(true))
            .then(|| machine.idle_state(info.cpu, &rq, remarks))
            .flatten();
        info.scx_idle = machine.scx_idle(info.cpu);
        info.topology = Some(topology(kernel, info.cpu, remarks));
        let groups = throttled.remove(&info.cpu).unwrap_or_default();
        info.throttling = throttling(&rq, groups, !complete, remarks);
    }
}

/// The masks of CPUs that are not in the report's older part.
pub fn masks(kernel: &Kernel, info: &mut KernelInfo, remarks: &mut Remarks) {
    let mask = |symbol: &str| kernel.cpu_mask(kernel.symbol(symbol)?);
    let mut list = |what: &str, cpus: Result<Vec<u32>>| {
        let cpus = remarks.ok(&format!("kernel.{what}"), cpus)?;
        Some(cpu_list(&cpus))
    };
    info.cpus_present = list("cpus_present", mask("__cpu_present_mask"));
    info.cpus_active = list("cpus_active", mask("__cpu_active_mask"));
    let possible: Vec<u32> = kernel.cpus().collect();
    let isolated = housekeeping(kernel, "HK_TYPE_DOMAIN").map(|kept| match kept {
        Some(kept) => (possible.iter().copied())
            .filter(|cpu| !kept.contains(cpu))
            .collect(),
        None => Vec::new(),
    });
    info.cpus_isolated = list("cpus_isolated", isolated);
    info.cpus_nohz_full = list("cpus_nohz_full", nohz_full(kernel));
}

/// The CPUs that do the work that a type of isolation keeps away from others; `None` while
/// nothing is isolated in that way.
fn housekeeping(kernel: &Kernel, kind: &str) -> Result<Option<Vec<u32>>> {
    let all = kernel.global("housekeeping", "struct housekeeping")?;
    // Each type has its number in this kernel. The values of some are the same.
    let kind = kernel.constant("enum hk_type", kind)?.cast_unsigned();
    if all.member("flags")?.u64()?
        & 1u64
            .checked_shl(u32::try_from(kind).unwrap_or(64))
            .unwrap_or(0)
        == 0
    {
        return Ok(None);
    }
    let mask = all.member("cpumasks")?.index(kind)?;
    kernel.cpu_mask(cpumask(&mask)?).map(Some)
}

/// `tick_nohz_full_mask`, which is allocated only with `nohz_full=`.
fn nohz_full(kernel: &Kernel) -> Result<Vec<u32>> {
    let running = kernel.global("tick_nohz_full_running", "bool")?;
    if !running.bool()? {
        return Ok(Vec::new());
    }
    let mask = kernel.global("tick_nohz_full_mask", "cpumask_var_t")?;
    kernel.cpu_mask(cpumask(&mask)?)
}

/// Where a `cpumask_var_t` has its bits: an array of one mask, or, with
/// CONFIG_CPUMASK_OFFSTACK, a pointer to one.
fn cpumask(var: &Object<'_>) -> Result<Kva> {
    match var.ptr() {
        Err(Error::WrongType { .. }) => Ok(var.address()),
        target => target,
    }
}

/// A per-CPU variable with the type that the kernel's BTF has for it, or `ty`.
fn per_cpu_var<'k>(kernel: &'k Kernel, symbol: &str, ty: &str, cpu: u32) -> Result<Object<'k>> {
    let object = kernel.per_cpu_object(symbol, ty, cpu)?;
    Ok(match kernel.btf.variable(symbol) {
        Some(ty) => Object::new(kernel, ty, object.address()),
        None => object,
    })
}

/// The bits of `thread_info.flags` that ask a task to give way: `TIF_NEED_RESCHED` and, with
/// lazy preemption, the next one.
#[derive(Clone, Copy)]
struct ReschedBits {
    now: u32,
    lazy: Option<u32>,
}

/// The bits are macros, which moved from 3 and 4 to 4 and 5 in 6.18. The kernel's own code tells:
/// `resched_curr()` does nothing but pass the first to `__resched_curr()`, and
/// `resched_curr_lazy()` either of them (kernel/sched/core.c).
fn resched_bits(kernel: &Kernel) -> Result<ReschedBits> {
    let implausible = |found: String| Error::Implausible {
        what: "the code of resched_curr()".into(),
        found,
        why: "it passes TIF_NEED_RESCHED, 3 or 4, to __resched_curr()",
    };
    let now = passed_bits(kernel, "resched_curr")?;
    let &[now @ (3 | 4)] = now.as_slice() else {
        return Err(implausible(format!("{now:?}")));
    };
    let lazy = match passed_bits(kernel, "resched_curr_lazy") {
        Ok(bits) => {
            let known = bits.iter().all(|bit| [now, now + 1].contains(bit));
            if !known {
                return Err(implausible(format!("{bits:?} in resched_curr_lazy()")));
            }
            bits.contains(&(now + 1)).then_some(now + 1)
        }
        // Without lazy preemption.
        Err(Error::NoSymbol(_)) => None,
        Err(error) => return Err(error),
    };
    Ok(ReschedBits { now, lazy })
}

/// The numbers that a function which ends in jumps passes on as its second argument:
/// `mov $N,%esi` before a `jmp`.
fn passed_bits(kernel: &Kernel, function: &str) -> Result<Vec<u32>> {
    let code = kernel.read_bytes(kernel.symbol(function)?, RESCHED_CURR)?;
    let passed = |window: &[u8]| match *window {
        [0xbe, bit, 0, 0, 0, 0xe9 | 0xeb] => Some(u32::from(bit)),
        _ => None,
    };
    let mut bits: Vec<u32> = code.windows(6).filter_map(passed).collect();
    bits.dedup();
    Ok(bits)
}

/// The masks in which sched_ext keeps the idle CPUs, while it does.
struct IdleMasks {
    cpu: CpuBits,
    smt: CpuBits,
}

/// A set of CPUs, no larger than the kernel's number of them however many masks are put in.
#[derive(Default)]
struct CpuBits(Vec<bool>);

impl CpuBits {
    fn add(&mut self, cpus: Vec<u32>, possible: usize) {
        self.0.resize(possible, false);
        for cpu in cpus {
            if let Some(bit) = self.0.get_mut(to_usize(u64::from(cpu))) {
                *bit = true;
            }
        }
    }

    fn has(&self, cpu: u32) -> bool {
        self.0.get(to_usize(u64::from(cpu))).copied() == Some(true)
    }
}

impl IdleMasks {
    fn find(kernel: &Kernel, remarks: &mut Remarks) -> Option<Self> {
        let section = "cpus.scx_idle";
        let enabled = static_key(kernel, "scx_builtin_idle_enabled");
        if !remarks.ok(section, enabled)? {
            return None;
        }
        remarks.ok(section, Self::read(kernel))
    }

    fn read(kernel: &Kernel) -> Result<Self> {
        let mut all = Self {
            cpu: CpuBits::default(),
            smt: CpuBits::default(),
        };
        let possible = kernel
            .cpus()
            .max()
            .map_or(0, |last| to_usize(u64::from(last)) + 1);
        let ty = "struct scx_idle_cpus";
        let mut add = |masks: &Object<'_>| -> Result<()> {
            let mask = |path| kernel.cpu_mask(cpumask(&masks.member(path)?)?);
            all.cpu.add(mask("cpu")?, possible);
            all.smt.add(mask("smt")?, possible);
            Ok(())
        };
        // A mask for each node, when the scheduler asks for that.
        if static_key(kernel, "scx_builtin_idle_per_node")? {
            let nodes = kernel.read_ptr(kernel.symbol("scx_idle_node_masks")?)?;
            let count = kernel.read_u32(kernel.symbol("nr_node_ids")?)?;
            for node in 0..u64::from(count.min(MAX_NODES)) {
                let masks = kernel.read_ptr(nodes.add(node * 8))?;
                if !masks.is_null() {
                    add(&kernel.object(ty, masks)?)?;
                }
            }
        } else {
            add(&kernel.global("scx_idle_global_masks", ty)?)?;
        }
        Ok(all)
    }
}

/// The detector of soft lockups.
struct Detector {
    /// How often it wants to run on each CPU.
    period_ns: u64,
    /// The CPUs that it watches: not those of `nohz_full=`, and whom `watchdog_cpumask` leaves out.
    watched: Vec<u32>,
}

impl Detector {
    /// `None` while it is off.
    fn find(kernel: &Kernel) -> Result<Option<Self>> {
        // WATCHDOG_SOFTOCKUP_ENABLED of include/linux/nmi.h.
        let on = match kernel.global("watchdog_enabled", "long unsigned int") {
            Ok(enabled) => enabled.u64()? & 1 << 1 != 0,
            // Without CONFIG_LOCKUP_DETECTOR.
            Err(Error::NoSymbol(_)) => false,
            Err(error) => return Err(error),
        };
        if !on {
            return Ok(None);
        }
        Ok(Some(Self {
            period_ns: kernel.global("sample_period", "u64")?.u64()?,
            watched: kernel.cpu_mask(kernel.symbol("watchdog_allowed_mask")?)?,
        }))
    }
}

/// What the looks at all CPUs share.
struct Machine<'k> {
    kernel: &'k Kernel,
    clock: Option<&'k Clock>,
    /// The monotonic clock.
    now: Option<u64>,
    resched: Option<ReschedBits>,
    /// None while it is off.
    detector: Option<Detector>,
    idle: Option<IdleMasks>,
}

impl Machine<'_> {
    fn context(&self, info: &CpuInfo, remarks: &mut Remarks) -> CpuContext {
        let section = "cpus.context";
        let mut context = CpuContext::default();
        // Without registers another remark says so.
        if let Some(regs) = vcpu_of(self.kernel, info.cpu) {
            let user = regs.cs & 3 == 3;
            context.mode = Some(if user { "user" } else { "kernel" }.to_owned());
            context.irqs_enabled = Some(regs.rflags & 1 << 9 != 0);
        }
        let count = remarks.ok(section, PreemptCount::read(self.kernel, info.cpu));
        if let Some(count) = count {
            context.preempt_count = Some(Hex(count.raw));
            context.preempt_disabled = Some(count.bits(0, 8));
            let softirq = count.bits(8, 8);
            // SOFTIRQ_DISABLE_OFFSET is two: the low bit is that of a softirq that is served.
            context.in_softirq = Some(softirq & 1 == 1);
            context.bh_disabled = Some(softirq >> 1);
            let hardirq = if count.counts_irqs_off { 24 } else { 16 };
            context.hardirq_disabled = count.counts_irqs_off.then(|| count.bits(16, 8));
            context.hardirqs = Some(count.bits(hardirq, 4));
            // With 32 bits and irqs counted there is one bit left, else there are four.
            let nmi = if count.counts_irqs_off && count.width == 32 {
                1
            } else {
                4
            };
            context.nmis = Some(count.bits(hardirq + 4, nmi));
            context.preempt_need_resched = Some(count.raw >> (count.width - 1) & 1 == 0);
        }
        let curr = info.curr.as_ref().map(|curr| Kva(curr.kva.0));
        if let Some((curr, bits)) = curr.zip(self.resched) {
            let flags = self.kernel.object("struct task_struct", curr);
            let flags = flags.and_then(|task| task.member("thread_info.flags")?.u64());
            if let Some(flags) = remarks.ok("cpus.context.need_resched", flags) {
                context.need_resched = Some(flags >> bits.now & 1 == 1);
                context.need_resched_lazy = bits.lazy.map(|bit| flags >> bit & 1 == 1);
            }
        }
        context
    }

    fn tick(&self, cpu: u32, remarks: &mut Remarks) -> Option<CpuTick> {
        let tick = self
            .kernel
            .per_cpu_object("tick_cpu_sched", "struct tick_sched", cpu);
        let tick = remarks.ok("cpus.tick", tick)?;
        let members = &mut Members::of("cpus.tick", tick, remarks);
        let last = members.u64("last_tick_jiffies");
        let age = last.zip(self.clock).map(|(last, clock)| clock.since(last));
        Some(CpuTick {
            stopped: members
                .u64("flags")
                .map(|flags| flags & ts_flag::STOPPED != 0),
            last_jiffies: last,
            age_jiffies: age,
            age_ms: age.zip(self.clock).map(|(age, clock)| clock.to_ms(age)),
        })
    }

    fn soft_lockup(&self, info: &CpuInfo, remarks: &mut Remarks) -> Option<SoftLockup> {
        let section = "cpus.soft_lockup";
        let detector = self.detector.as_ref()?;
        if !detector.watched.contains(&info.cpu) {
            return None;
        }
        let touched = per_cpu_var(
            self.kernel,
            "watchdog_touch_ts",
            "long unsigned int",
            info.cpu,
        );
        let touched = remarks.ok(section, touched.and_then(|t| t.u64()))?;
        // get_timestamp(): about seconds of the clock that run queues have. 0: not watched yet.
        let age = (info.clock_ns? >> 30).saturating_sub(touched);
        (touched != 0).then_some(SoftLockup {
            age_ns: age.checked_mul(1 << 30),
            period_ns: Some(detector.period_ns),
        })
    }

    fn idle_state(&self, cpu: u32, rq: &Object<'_>, remarks: &mut Remarks) -> Option<CpuIdle> {
        let tick = self
            .kernel
            .per_cpu_object("tick_cpu_sched", "struct tick_sched", cpu);
        let tick = remarks.ok("cpus.idle_state", tick)?;
        let members = &mut Members::of("cpus.idle_state", tick, remarks);
        let inside = members.u64("flags")? & ts_flag::INIDLE != 0;
        let entry = members.u64("idle_entrytime").filter(|_| inside);
        let members = &mut Members::of("cpus.idle_state", *rq, remarks);
        let state = members.get("idle_state", |state| match state.deref() {
            // No driver, or not asleep.
            Err(Error::Null(_)) => Ok(None),
            state => state?.member("name")?.text().map(Some),
        });
        Some(CpuIdle {
            entry_ns: entry,
            // The clock stands at its last update, up to a tick ago.
            idle_ns: entry
                .zip(self.now)
                .map(|(entry, now)| now.saturating_sub(entry)),
            state: state
                .flatten()
                .map(|name| name.chars().take(MAX_NAME).collect()),
        })
    }

    fn scx_idle(&self, cpu: u32) -> Option<ScxIdleBits> {
        let masks = self.idle.as_ref()?;
        Some(ScxIdleBits {
            cpu: masks.cpu.has(cpu),
            smt: masks.smt.has(cpu),
        })
    }
}

/// `__preempt_count` of a CPU.
struct PreemptCount {
    raw: u64,
    /// Its bits: 64 since 7.3.
    width: u32,
    /// 7.3 also counts how often interrupts are disabled, in bits of its own between those of
    /// softirqs and hardirqs ("preempt: Introduce HARDIRQ_DISABLE_BITS").
    counts_irqs_off: bool,
}

impl PreemptCount {
    fn read(kernel: &Kernel, cpu: u32) -> Result<Self> {
        // In `pcpu_hot` before 6.15.
        let count = match per_cpu_var(kernel, "__preempt_count", "int", cpu) {
            Err(Error::NoSymbol(_)) => kernel
                .per_cpu_object("pcpu_hot", "struct pcpu_hot", cpu)?
                .member("preempt_count")?,
            count => count?,
        };
        let width = match count.size() {
            Some(4) => 32,
            Some(8) => 64,
            size => {
                return Err(Error::Implausible {
                    what: "__preempt_count".into(),
                    found: format!("{size:?} bytes"),
                    why: "an int or a long",
                });
            }
        };
        let raw = count.u64()?;
        Ok(Self {
            raw: if width == 32 {
                raw & u64::from(u32::MAX)
            } else {
                raw
            },
            width,
            counts_irqs_off: kernel.symbol("local_interrupt_disable_state").is_ok(),
        })
    }

    fn bits(&self, shift: u32, count: u32) -> u32 {
        u32::try_from(self.raw >> shift & ((1 << count) - 1)).unwrap_or(0)
    }
}

fn classes(rq: &Object<'_>, ext: Option<u32>, remarks: &mut Remarks) -> ClassCounts {
    let members = &mut Members::of("cpus.classes", *rq, remarks);
    // Renamed between 6.13 and 6.15.
    let fair = rq.first_of(&["cfs.h_nr_queued", "cfs.h_nr_running"]);
    ClassCounts {
        dl: members.u32("dl.dl_nr_running"),
        rt: members.u32("rt.rt_nr_running"),
        fair: members.ok("cfs.h_nr_queued", fair.and_then(|n| n.u32())),
        ext,
    }
}

fn topology(kernel: &Kernel, cpu: u32, remarks: &mut Remarks) -> CpuTopology {
    let list = |symbol: &str| -> Result<String> {
        let mask = per_cpu_var(kernel, symbol, "cpumask_var_t", cpu)?;
        Ok(cpu_list(&kernel.cpu_mask(cpumask(&mask)?)?))
    };
    let node = per_cpu_var(kernel, "numa_node", "int", cpu).and_then(|node| node.i32());
    let package = kernel
        .per_cpu_object("cpu_info", "struct cpuinfo_x86", cpu)
        .and_then(|info| info.member("topo.pkg_id")?.u32());
    let core = remarks.ok("cpus.topology.core", list("cpu_sibling_map"));
    // Zeros for a CPU that never came up.
    let known = core.as_ref().is_some_and(|core| !core.is_empty());
    CpuTopology {
        node: remarks.ok("cpus.topology.node", node),
        llc: remarks.ok("cpus.topology.llc", list("cpu_llc_shared_map")),
        package: remarks
            .ok("cpus.topology.package", package)
            .filter(|_| known),
        core,
    }
}

fn throttling(
    rq: &Object<'_>,
    fair_cgroups: Vec<String>,
    fair_cgroups_truncated: bool,
    remarks: &mut Remarks,
) -> Option<CpuThrottling> {
    let members = &mut Members::of("cpus.throttling", *rq, remarks);
    // CONFIG_RT_GROUP_SCHED, or before 6.12.
    let rt = rq
        .has("rt.rt_throttled")
        .then(|| members.u64("rt.rt_throttled"))
        .flatten()
        .map(|throttled| throttled != 0);
    let mut servers = Vec::new();
    // The first since 6.8, the second since 7.0.
    for (class, path) in [("fair", "fair_server"), ("ext", "ext_server")] {
        if let Ok(server) = rq.member(path) {
            let members = &mut Members::of("cpus.throttling.servers", server, remarks);
            let active = members.u64("dl_server_active").map(|bit| bit != 0);
            // What a server was stopped with says nothing.
            let mut bit = |path| {
                let bit = members.u64(path).map(|bit| bit != 0);
                bit.filter(|_| active == Some(true))
            };
            servers.push(DlServer {
                class: class.to_owned(),
                active,
                throttled: bit("dl_throttled"),
                deferred: bit("dl_defer_armed"),
                running: bit("dl_defer_running"),
                runtime_ns: members.u64("dl_runtime"),
                period_ns: members.u64("dl_period"),
            });
        }
    }
    Some(CpuThrottling {
        rt,
        servers,
        fair_cgroups,
        fair_cgroups_truncated,
    })
}

/// The cgroups whose fair run queue on a CPU has used up its quota, by CPU. Returns whether all
/// were seen.
fn throttled_groups(
    kernel: &Kernel,
    found: &mut BTreeMap<u32, Vec<String>>,
    remarks: &mut Remarks,
) -> Result<bool> {
    let section = "cpus.throttling.fair_cgroups";
    let head = kernel.symbol("task_groups")?;
    let groups = kernel.list(head, MAX_GROUPS);
    let mut complete = !remarks.walk_end(section, head, &groups.end);
    let mut budget = MAX_GROUPS;
    for node in groups.items {
        let group = kernel.entry("struct task_group", "list", node)?;
        // Without CONFIG_CFS_BANDWIDTH there is no such member, and nothing is throttled.
        let list = match group.member("cfs_bandwidth.throttled_cfs_rq") {
            Ok(list) => list.address(),
            Err(_) => return Ok(true),
        };
        let throttled = kernel.list(list, budget);
        budget -= throttled.items.len();
        complete &= !remarks.walk_end(section, list, &throttled.end);
        for node in throttled.items {
            let cfs_rq = kernel.entry("struct cfs_rq", "throttled_list", node)?;
            let cpu = cfs_rq.member("rq")?.deref()?.member("cpu")?.u32()?;
            let cgroup = group.member("css.cgroup")?.deref()?;
            found
                .entry(cpu)
                .or_default()
                .push(kernel.cgroup_path(&cgroup)?);
        }
    }
    found.values_mut().for_each(|paths| paths.sort());
    Ok(complete)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_of_many_nodes_make_one_set_of_the_cpus_that_there_are() {
        let mut idle = CpuBits::default();
        for _ in 0..MAX_NODES {
            idle.add(vec![0, 3, 8191, u32::MAX], 4);
        }
        assert_eq!(idle.0, [true, false, false, true]);
        let has: Vec<bool> = [0, 1, 3, 8191, u32::MAX].map(|cpu| idle.has(cpu)).to_vec();
        assert_eq!(has, [true, false, true, false, false]);
    }
}
