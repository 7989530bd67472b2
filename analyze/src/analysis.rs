//! Runs the walkers and puts the report together.
//!
//! Walkers run in parallel; what they return is put together in a fixed order, so the same
//! image gives the same bytes on any number of threads.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rayon::prelude::*;
use scx_postmortem_format::capture::Timeline;
use scx_postmortem_format::report::reasons;
use scx_postmortem_format::report::{
    DsqName, DualFailureDumpReport, EventCounter, ExitInfo, FailureDumpReport, Hex, InputInfo,
    IrqCount, KernelInfo, LogRecord, PerCpuTimeStats, PerNodeNumaStats, PostmortemReport,
    Provenance, SchedStats, SchedulerInfo, ScxSchedState, StarvedTask, TimerInfo, Unavailable,
    UnavailableCode, VcpuPerfSample, VcpuRegSnapshot, WorkqueueInfo,
};

use crate::addr::Kva;
use crate::kernel::{Kernel, cpu_list};
use crate::recover::Casts;
use crate::source::{Image, VcpuRegs};
use crate::walk::bpf::btfs::Btfs;
use crate::walk::bpf::{self, maps};
use crate::walk::clock::{self, Clock};
use crate::walk::dsq::{self, Dsq};
use crate::walk::rq::{self, CpuRq};
use crate::walk::sched::{self, Schedulers};
use crate::walk::tasks::{self, Tasks};
use crate::walk::{
    Limits, Remarks, cpus, cputime, events, exit_info, irqs, kernel_dump, locks, numa, printk, psi,
    schedstat, stacks, timers, workqueues,
};
use crate::{diagnose, diff, history};

/// Name and version of this analyzer, as reports have them.
pub const ANALYZER: &str = concat!("scx-postmortem ", env!("CARGO_PKG_VERSION"));

/// What to do beyond the defaults.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// How much of each list to show.
    pub limits: Limits,
    /// Leave integers as they are declared, also where the programs keep pointers in them.
    pub no_casts: bool,
}

/// Whether this kernel was built with sched_ext at all.
#[must_use]
pub fn has_sched_ext(kernel: &Kernel) -> bool {
    kernel.btf.find("struct sched_ext_entity").is_ok()
}

/// Makes the report of one image.
#[must_use]
pub fn analyze(kernel: &Kernel, options: &Options) -> FailureDumpReport {
    analyze_timed(kernel, options).0
}

/// Makes the report of one image, and tells how long its parts took. Parts run at the same time
/// and share the processors.
#[must_use]
pub fn analyze_timed(
    kernel: &Kernel,
    options: &Options,
) -> (FailureDumpReport, Vec<(&'static str, Duration)>) {
    let limits = &options.limits;
    let mut remarks = Remarks::default();
    let clock = remarks.ok("clock", Clock::read(kernel));
    let tasks = Tasks::new(kernel, clock);
    let scheds = remarks.timed("schedulers", |r| sched::find(kernel, limits, r));

    let btfs = Btfs::new(kernel);

    // Each closure has remarks of its own; they are put together below, in this order.
    let (
        ((rqs, r0), ((dsqs, r1), (casts, r6, maps, r4))),
        (((kernel_side, r2), (state, r3)), (bpf, r5)),
    ) = rayon::join(
        || {
            rayon::join(
                || timed("run queues", |r| run_queues(kernel, &tasks, limits, r)),
                || {
                    rayon::join(
                        || {
                            timed("dispatch queues", |r| {
                                dsq::read_all(kernel, &scheds.all, &tasks, limits, r)
                            })
                        },
                        || {
                            let (casts, r6) = timed("recovered pointers", |r| {
                                recovered(kernel, &btfs, options, r)
                            });
                            let (maps, r4) =
                                timed("maps", |r| maps::read(kernel, &btfs, &casts, limits, r));
                            (casts, r6, maps, r4)
                        },
                    )
                },
            )
        },
        || {
            let uptime_ns = clock::uptime_ns(kernel).ok();
            rayon::join(
                || {
                    rayon::join(
                        || with_remarks(|r| KernelSide::read(kernel, clock.as_ref(), limits, r)),
                        || timed("scheduler", |r| scheduler_part(&scheds, clock.as_ref(), r)),
                    )
                },
                || {
                    timed("programs and links", |r| {
                        bpf::Objects::read(kernel, &btfs, &scheds, uptime_ns, limits, r)
                    })
                },
            )
        },
    );
    for part in [r0, r1, r2, r3, r6, r4, r5] {
        remarks.absorb(part);
    }

    let on_runnable_list: HashSet<Kva> = rqs
        .iter()
        .flat_map(|rq| rq.runnable.iter().copied())
        .collect();
    let mut elsewhere: Vec<Kva> = rqs
        .iter()
        .flat_map(|rq| rq.runnable.iter().copied().chain([rq.curr]))
        .collect();
    elsewhere.extend(dsqs.iter().flat_map(|dsq| dsq.tasks.iter().copied()));
    elsewhere.retain(|at| !at.is_null());
    let (mut enriched, mut infos) = remarks.timed("tasks", |r| {
        let all = tasks.collect(&elsewhere, r);
        let first: HashSet<Kva> = elsewhere.iter().copied().collect();
        let kept = tasks::keep(all, &first, limits, r);
        tasks.records(&kept, &on_runnable_list, r)
    });
    remarks.timed("stacks", |r| {
        stacks::read(kernel, &bpf, &btfs, &mut infos, limits, r);
    });
    locks::match_slow_paths(&mut enriched, &infos);
    let locks = remarks.timed("locks", |r| locks::read(kernel, &mut infos, r));

    let mut report = FailureDumpReport {
        maps: maps.shared,
        sdt_allocations: maps.heap.snapshots,
        scx_static_ranges: maps.heap.statics,
        sdt_alloc_unavailable: maps.heap.unavailable.map(str::to_owned),
        vcpu_regs: vcpu_regs(kernel, &mut remarks),
        vcpu_perf_at_freeze: perf_counters(&kernel.image, &mut remarks),
        per_cpu_time: kernel_side.time,
        cgroup_psi: kernel_side.psi.leaves,
        per_node_numa: kernel_side.numa,
        task_enrichments_unavailable: enriched
            .is_empty()
            .then(|| reasons::REASON_TASK_WALKER_ZERO_TASKS.to_owned()),
        task_enrichments: enriched,
        scx_walker_unavailable: (!scheds.attached && has_sched_ext(kernel))
            .then(|| reasons::REASON_SCX_ROOT_NULL.to_owned()),
        ..FailureDumpReport::default()
    };
    if !has_sched_ext(kernel) {
        report.scx_walker_unavailable = Some(NO_SCHED_EXT.to_owned());
        report.task_enrichments_unavailable = Some(NO_SCHED_EXT.to_owned());
    } else if kernel.symbol("scx_root").is_err() {
        report.scx_walker_unavailable = Some(GLOBALS.to_owned());
    }
    if report.per_node_numa.is_empty() {
        let ours = (remarks.unavailable.iter()).find(|missing| missing.section == "per_node_numa");
        report.per_node_numa_unavailable = ours.map(|missing| missing.reason.clone());
    }

    let mut own = PostmortemReport {
        input: Some(input_info(kernel)),
        kernel: Some(kernel_info(kernel, clock.as_ref(), &mut remarks)),
        provenance: provenance(kernel, clock.as_ref()),
        scheduler: state.info,
        schedulers: state.all,
        exit_info: state.exit,
        event_counters: state.counters,
        tasks: infos,
        locks,
        maps: maps.own,
        arenas: maps.heap.arenas,
        allocators: maps.heap.infos,
        recovered_pointers: casts.report,
        psi: kernel_side.psi.info,
        irqs: kernel_side.irqs,
        schedstats: kernel_side.schedstats,
        timers: kernel_side.timers,
        workqueues: kernel_side.workqueues,
        kernel_log: kernel_side.log,
        ..PostmortemReport::new(ANALYZER)
    };
    report.scx_sched_state = state.state;
    add_bpf(&mut report, &mut own, bpf, &btfs, &mut remarks);
    add_history(&mut report, &mut own, kernel, &mut remarks);
    let uptime_ns = own.kernel.as_ref().and_then(|k| k.uptime_ns);
    if let Some(uptime_ns) = uptime_ns
        && !own.event_counters.is_empty()
    {
        let now = events::sample(&own.event_counters, uptime_ns / 1_000_000);
        report.event_counter_timeline.push(now);
    }
    own.starved = starved(&own, &rqs, &dsqs);
    for rq in rqs {
        report.rq_scx_states.push(rq.state);
        own.cpus.push(rq.info);
    }
    remarks.timed("CPUs", |r| {
        cpus::read(kernel, clock.as_ref(), &mut own.cpus, r);
    });
    for dsq in dsqs {
        report.dsq_states.extend(dsq.state);
        own.dsqs.push(dsq.info);
    }
    let readable = |section: &str| {
        remarks
            .unavailable
            .iter()
            .all(|u| u.section != section || u.code == UnavailableCode::NotApplicable)
    };
    let globals = kernel.symbol("scx_root").is_err();
    own.headline = headline(
        &own,
        &Known {
            sched_ext: has_sched_ext(kernel),
            attached: scheds.attached,
            searched: !globals
                && readable("scheduler")
                && readable("scheduler.ejected")
                && (remarks.anomalies.iter()).all(|a| a.section != "scheduler.ejected"),
            exit: readable("exit_info"),
        },
    );
    own.unavailable = remarks.unavailable;
    if kernel.image.early {
        own.unavailable.push(Unavailable {
            section: EARLY.to_owned(),
            code: UnavailableCode::NotRead,
            reason: "the file also holds an image from before the failure, which a report on this one alone does not look at".to_owned(),
        });
    }
    own.anomalies = remarks.anomalies;
    own.limits = remarks.limits;
    own.warnings.clone_from(&kernel.image.warnings);
    own.warnings.extend(kernel.image.memory.damage());
    // After the ejection the queues are gone, and nothing is as it was.
    if scheds.attached {
        own.dump_differences = kernel_dump::compare(&own, clock.as_ref());
    }
    own.findings = diagnose::findings(&own, &report.maps);
    report.postmortem = Some(Box::new(own));
    (report, remarks.times)
}

/// Makes the report of a dual capture: one of each image, and what changed in between.
#[must_use]
pub fn analyze_dual(early: &Kernel, late: &Kernel, options: &Options) -> DualFailureDumpReport {
    let (before, mut after) = rayon::join(|| analyze(early, options), || analyze(late, options));
    let changes = diff::compare(&before, &after);
    if let Some(own) = &mut after.postmortem {
        own.unavailable.retain(|u| u.section != EARLY);
        own.diff = Some(Box::new(changes));
        own.findings = diagnose::findings(own, &after.maps);
    }
    let own = before.postmortem.as_deref();
    let timeout = own
        .and_then(|own| own.scheduler.as_ref())
        .and_then(|scheduler| scheduler.watchdog_timeout_jiffies);
    DualFailureDumpReport {
        early_max_age_jiffies: own.and_then(oldest).unwrap_or(0),
        early_threshold_jiffies: timeout.map_or(0, |limit| limit / 2),
        early: Some(before),
        ..DualFailureDumpReport::new(after)
    }
}

/// The age of the task that has been runnable for longest.
fn oldest(own: &PostmortemReport) -> Option<u64> {
    let runnable = own.cpus.iter().flat_map(|cpu| &cpu.runnable);
    runnable.filter_map(|task| task.runnable_age_jiffies).max()
}

/// The section of what the early image of a dual capture holds.
const EARLY: &str = "early";

/// Which integers are pointers, unless nobody wants to know.
fn recovered(kernel: &Kernel, btfs: &Btfs<'_>, options: &Options, remarks: &mut Remarks) -> Casts {
    if options.no_casts {
        return Casts::default();
    }
    let types = |at| btfs.get(at).ok().map(|btf| (btf.id, btf.types));
    remarks
        .ok("recovered_pointers", Casts::recover(kernel, &types))
        .unwrap_or_default()
}

const NO_SCHED_EXT: &str = "this kernel was built without sched_ext (CONFIG_SCHED_CLASS_EXT)";

const GLOBALS: &str = "this kernel keeps its scheduler in globals (before 6.16), which this version of the analyzer does not read";

/// The section of the vCPUs' registers. A file can be whole without them.
pub const VCPU_REGS: &str = "vcpu_regs";

/// The section of the vCPUs' hardware counters, in reports and in manifests.
pub const PERF_COUNTERS: &str = "vcpu_perf_at_freeze";

/// The vCPUs' hardware counters, where the host had them.
fn perf_counters(image: &Image, remarks: &mut Remarks) -> Vec<Option<VcpuPerfSample>> {
    if let Some(counters) = &image.perf_counters {
        return counters.clone();
    }
    let manifest = image.manifest.as_ref();
    let mut missing = manifest.into_iter().flat_map(|m| &m.missing);
    // An ELF core never has any, which needs no remark.
    if let Some(item) = missing.find(|item| item.what == PERF_COUNTERS) {
        remarks.unavailable.push(Unavailable {
            section: PERF_COUNTERS.to_owned(),
            code: UnavailableCode::NotInImage,
            reason: item.reason.clone(),
        });
    }
    Vec::new()
}

/// The samples of the monitor, if there was one.
fn add_history(
    report: &mut FailureDumpReport,
    own: &mut PostmortemReport,
    kernel: &Kernel,
    remarks: &mut Remarks,
) {
    let Some(note) = &kernel.image.timeline else {
        return;
    };
    match Timeline::decode(note) {
        Ok(timeline) => {
            // The file's samples go on to the late image, also in a report on the early one.
            let until_ns = own.kernel.as_ref().and_then(|k| k.uptime_ns);
            let (history, counters) = history::read(&timeline, until_ns, remarks);
            own.history = Some(history);
            // In the order of time: what the probe kept is the last of it, if it is there.
            report.event_counter_timeline.splice(0..0, counters);
        }
        Err(why) => remarks.unavailable.push(Unavailable {
            section: "history".to_owned(),
            code: UnavailableCode::Unparsable,
            reason: format!("the note of the monitor: {why}"),
        }),
    }
}

/// Puts the BPF objects into both parts of the report.
fn add_bpf(
    report: &mut FailureDumpReport,
    own: &mut PostmortemReport,
    bpf: bpf::Objects<'_>,
    btfs: &Btfs<'_>,
    remarks: &mut Remarks,
) {
    for scheduler in own.schedulers.iter_mut().chain(&mut own.scheduler) {
        bpf::active::complete(scheduler, &bpf.struct_ops, &bpf.programs);
    }
    if let Some(exit) = &mut own.exit_info {
        bpf.name_sources(btfs, &mut exit.backtrace);
    }
    for map in &mut own.maps {
        for stack in &mut map.stacks {
            bpf.name_sources(btfs, &mut stack.frames);
        }
        for callback in &mut map.callbacks {
            if let Some(prog) = bpf.programs.by_id(callback.prog.id) {
                *callback = bpf::active::callback(prog);
            }
        }
    }
    report.prog_runtime_stats = bpf.programs.runtime_stats();
    if !bpf.programs.readable {
        report.prog_runtime_stats_unavailable =
            Some(reasons::REASON_PROG_ACCESSOR_UNAVAILABLE.to_owned());
    } else if report.prog_runtime_stats.is_empty() {
        report.prog_runtime_stats_unavailable =
            Some(reasons::REASON_NO_STRUCT_OPS_LOADED.to_owned());
    }
    if bpf.programs.counting == Some(false) && !report.prog_runtime_stats.is_empty() {
        remarks.unavailable.push(Unavailable {
            section: "prog_runtime_stats".to_owned(),
            code: UnavailableCode::NotApplicable,
            reason: NOT_COUNTING.to_owned(),
        });
    }
    report.active_obj_name = bpf.active.object_name;
    report.active_map_kvas = bpf.active.map_kvas;
    report.probe_counters = bpf.probe.counters;
    own.probe = bpf.probe.info;
    // Only where there is no live object: that is what the snapshot is for.
    if report.scx_walker_unavailable.as_deref() == Some(reasons::REASON_SCX_ROOT_NULL)
        && bpf.probe.state.is_some()
    {
        report.scx_sched_state = bpf.probe.state;
        report.scx_walker_unavailable = None;
    }
    if own.event_counters.is_empty() {
        report.event_counter_timeline.extend(bpf.probe.events);
    }
    own.active = bpf.active.info;
    own.programs = bpf.programs.all.into_iter().map(|p| p.info).collect();
    own.links = bpf.links;
}

const NOT_COUNTING: &str = "the kernel counts runs and their time only while BPF statistics are on (kernel.bpf_stats_enabled), and they are off: a count of 0 does not mean that a program never ran";

/// Runs one part of the analysis with remarks of its own.
fn timed<T>(what: &'static str, part: impl FnOnce(&mut Remarks) -> T) -> (T, Remarks) {
    with_remarks(|r| r.timed(what, part))
}

fn with_remarks<T>(walk: impl FnOnce(&mut Remarks) -> T) -> (T, Remarks) {
    let mut remarks = Remarks::default();
    let value = walk(&mut remarks);
    (value, remarks)
}

fn run_queues(
    kernel: &Kernel,
    tasks: &Tasks<'_>,
    limits: &Limits,
    remarks: &mut Remarks,
) -> Vec<CpuRq> {
    let online = kernel
        .symbol("__cpu_online_mask")
        .and_then(|at| kernel.cpu_mask(at));
    let online = remarks.ok("cpus.online", online);
    let limits = &limits.shared_by(kernel.cpus().count());
    let cpus: Vec<u32> = kernel.cpus().collect();
    let read: Vec<_> = cpus
        .par_iter()
        .map(|&cpu| with_remarks(|r| rq::read(kernel, cpu, online.as_deref(), tasks, limits, r)))
        .collect();
    let mut found = Vec::with_capacity(read.len());
    for (rq, part) in read {
        remarks.absorb(part);
        found.extend(remarks.ok("rq_scx_states", rq));
    }
    found
}

/// What the kernel itself counts and says, whoever schedules.
struct KernelSide {
    time: Vec<PerCpuTimeStats>,
    psi: psi::Psi,
    numa: Vec<PerNodeNumaStats>,
    irqs: Vec<IrqCount>,
    schedstats: Option<SchedStats>,
    timers: Vec<TimerInfo>,
    workqueues: Option<WorkqueueInfo>,
    log: Vec<LogRecord>,
}

impl KernelSide {
    fn read(
        kernel: &Kernel,
        clock: Option<&Clock>,
        limits: &Limits,
        remarks: &mut Remarks,
    ) -> Self {
        // Small parts, and one of some hundred records: no more than two go on at the same time.
        let ((time, psi, numa, timers, workqueues, r0), (irqs, schedstats, log, r1)) = rayon::join(
            || {
                let mut r = Remarks::default();
                let time = r.timed("CPU time", |r| cputime::read(kernel, r));
                let psi = r.timed("pressure", |r| psi::read(kernel, limits, r));
                let numa = r.timed("NUMA counters", |r| numa::read(kernel, r));
                let timers = r.timed("timers", |r| timers::read(kernel, clock, limits, r));
                let workqueues =
                    r.timed("workqueues", |r| workqueues::read(kernel, clock, limits, r));
                (time, psi, numa, timers, workqueues, r)
            },
            || {
                let mut r = Remarks::default();
                let irqs = r.timed("interrupts", |r| irqs::read(kernel, limits, r));
                let schedstats = r.timed("schedstats", |r| schedstat::read(kernel, r));
                let log = r.timed("kernel log", |r| printk::read(kernel, limits, r));
                (irqs, schedstats, log, r)
            },
        );
        remarks.absorb(r0);
        remarks.absorb(r1);
        Self {
            time,
            psi,
            numa,
            irqs,
            schedstats,
            timers,
            workqueues,
            log,
        }
    }
}

/// What comes from the scheduler object.
#[derive(Default)]
struct SchedulerPart {
    state: Option<ScxSchedState>,
    info: Option<SchedulerInfo>,
    all: Vec<SchedulerInfo>,
    exit: Option<ExitInfo>,
    counters: Vec<EventCounter>,
}

fn scheduler_part(
    scheds: &Schedulers<'_>,
    clock: Option<&Clock>,
    remarks: &mut Remarks,
) -> SchedulerPart {
    let Some(subject) = scheds.subject() else {
        return SchedulerPart::default();
    };
    let mut part = SchedulerPart::default();
    for each in &scheds.all {
        let (state, info) = sched::read(each, clock, remarks);
        if each.object.address() == subject.object.address() {
            part.state = remarks.ok("scx_sched_state", state);
            part.info = Some(info.clone());
        }
        part.all.push(info);
    }
    let exit = exit_info::read(subject, remarks);
    part.exit = remarks.ok("exit_info", exit).flatten();
    part.counters = remarks
        .ok("event_counters", events::read(subject))
        .unwrap_or_default();
    part
}

/// A vCPU's registers as the contract has them.
///
/// A source without control registers has no page-table root, and the format cannot leave the
/// member out: no register record is better than a wrong one.
pub(crate) fn vcpu_snapshot(regs: &VcpuRegs) -> Option<VcpuRegSnapshot> {
    Some(VcpuRegSnapshot {
        instruction_pointer: regs.rip,
        stack_pointer: regs.rsp,
        page_table_root: regs.cr3?,
        user_page_table_root: None,
        tcr_el1: None,
    })
}

fn vcpu_regs(kernel: &Kernel, remarks: &mut Remarks) -> Vec<Option<VcpuRegSnapshot>> {
    let mut without = |what: &str, lacks: fn(&Option<VcpuRegs>) -> bool| {
        let vcpus = (0u32..).zip(&kernel.image.vcpus);
        let vcpus: Vec<u32> = vcpus
            .filter_map(|(i, regs)| lacks(regs).then_some(i))
            .collect();
        if !vcpus.is_empty() {
            remarks.unavailable.push(Unavailable {
                section: VCPU_REGS.to_owned(),
                code: UnavailableCode::NotInImage,
                reason: format!("the file has no {what} of vCPU {}", cpu_list(&vcpus)),
            });
        }
    };
    without("registers", Option::is_none);
    without(
        "control registers (CR3, which QEMU's dumps have in a note named QEMU)",
        |regs| regs.is_some_and(|regs| regs.cr3.is_none()),
    );
    let vcpus = kernel.image.vcpus.iter();
    vcpus.map(|regs| vcpu_snapshot(regs.as_ref()?)).collect()
}

fn input_info(kernel: &Kernel) -> InputInfo {
    InputInfo {
        kind: kernel.image.kind.name().to_owned(),
        memory_bytes: Some(kernel.image.memory_bytes()),
        vcpus: u32::try_from(kernel.image.vcpus.len()).ok(),
        left_out: kernel.image.left_out.clone(),
        trigger: kernel.image.trigger.clone(),
        digest: kernel.image.digest.clone(),
    }
}

fn provenance(kernel: &Kernel, clock: Option<&Clock>) -> Vec<Provenance> {
    let found = kernel.provenance.iter().map(|p| (p.what, &*p.source));
    found
        .chain(clock.map(|c| ("hz", c.hz_source)))
        .map(|(what, source)| Provenance {
            what: what.to_owned(),
            source: source.to_owned(),
            detail: String::new(),
        })
        .collect()
}

fn kernel_info(kernel: &Kernel, clock: Option<&Clock>, remarks: &mut Remarks) -> KernelInfo {
    let cmdline = kernel
        .symbol("saved_command_line")
        .and_then(|at| kernel.read_ptr(at))
        .and_then(|at| kernel.read_cstr(at, 4096));
    let mask = |symbol: &str| {
        kernel
            .symbol(symbol)
            .and_then(|at| kernel.cpu_mask(at))
            .map(|cpus| cpu_list(&cpus))
    };
    let base = |symbol: &str| {
        let at = kernel.symbol(symbol).and_then(|at| kernel.read_u64(at));
        at.map(Hex)
    };
    let mut info = KernelInfo {
        release: Some(kernel.release().to_owned()),
        build_id: kernel.vmcoreinfo.build_id().map(str::to_owned),
        arch: Some("x86_64".to_owned()),
        version_banner: remarks.ok("kernel.version_banner", kernel.banner()),
        hz: clock.and_then(|c| u32::try_from(c.hz).ok()),
        jiffies: remarks.ok("kernel.jiffies", clock::jiffies(kernel)),
        uptime_ns: remarks.ok("kernel.uptime_ns", clock::uptime_ns(kernel)),
        timekeeping_age_ns: remarks
            .ok(
                "kernel.timekeeping_age_ns",
                clock::timekeeping_age_ns(kernel),
            )
            .flatten(),
        nr_cpus: u32::try_from(kernel.cpus().count()).ok(),
        cpus_possible: Some(cpu_list(&kernel.cpus().collect::<Vec<_>>())),
        cpus_online: remarks.ok("kernel.cpus_online", mask("__cpu_online_mask")),
        paging_levels: Some(if kernel.page_table.five_levels { 5 } else { 4 }),
        kaslr_offset: kernel.kaslr_offset().map(Hex),
        phys_base: Some(kernel.phys_base()),
        page_offset_base: Some(Hex(kernel.page_offset.0)),
        vmalloc_base: remarks.ok("kernel.vmalloc_base", base("vmalloc_base")),
        vmemmap_base: remarks.ok("kernel.vmemmap_base", base("vmemmap_base")),
        cmdline: remarks.ok("kernel.cmdline", cmdline),
        // Without sched_ext another remark says so.
        sched_ext_state: has_sched_ext(kernel)
            .then(|| remarks.ok("kernel.sched_ext_state", sched::enable_state(kernel)))
            .flatten(),
        ..KernelInfo::default()
    };
    cpus::masks(kernel, &mut info, remarks);
    info
}

/// Tasks on a runnable list that have waited for at least half of the watchdog's limit, the
/// longest first. Without a limit nothing counts as starved.
fn starved(own: &PostmortemReport, rqs: &[CpuRq], dsqs: &[Dsq]) -> Vec<StarvedTask> {
    let Some(limit) = own
        .scheduler
        .as_ref()
        .and_then(|s| s.watchdog_timeout_jiffies)
    else {
        return Vec::new();
    };
    let mut places = HashMap::new();
    for dsq in dsqs {
        for (&task, position) in dsq.tasks.iter().zip(0u32..) {
            places.insert(task.0, (&dsq.info, position));
        }
    }
    let mut starved = Vec::new();
    for rq in rqs {
        for task in &rq.info.runnable {
            let Some(age) = task
                .runnable_age_jiffies
                .filter(|&age| age >= (limit / 2).max(1))
            else {
                continue;
            };
            let place = places.get(&task.kva.0);
            starved.push(StarvedTask {
                kva: task.kva,
                pid: task.pid,
                comm: task.comm.clone(),
                cpu: rq.state.cpu,
                runnable_age_jiffies: age,
                runnable_age_ms: task.runnable_age_ms.unwrap_or_default(),
                // The task's own pointer, when no list that could be read has it.
                dsq_id: place.map(|(dsq, _)| dsq.id).or(task.dsq_id),
                dsq_origin: place.map(|(dsq, _)| dsq.origin.clone()),
                dsq_kva: place.map(|(dsq, _)| dsq.dsq_kva),
                dsq_position: place.map(|&(_, position)| position),
            });
        }
    }
    // Of several that have waited as long, the one that the kernel names in its message.
    let named = own.exit_info.as_ref().and_then(|exit| exit.msg.as_deref());
    let named = |t: &StarvedTask| {
        let name = format!("{}[{}] ", t.comm, t.pid);
        named.is_some_and(|msg| msg.starts_with(&name))
    };
    starved.sort_by_cached_key(|t| {
        let age = std::cmp::Reverse(t.runnable_age_jiffies);
        (age, !named(t), t.pid, t.kva.0)
    });
    starved
}

/// Where a starved task is, as far as it could be read.
fn whereabouts(own: &PostmortemReport, task: &StarvedTask) -> String {
    match (&task.dsq_origin, task.dsq_id, task.dsq_position) {
        (Some(origin), Some(id), Some(position)) => {
            format!("queued on {origin} DSQ {id} at position {position}")
        }
        (_, Some(id), _) => {
            let name = DsqName::find(&own.dsqs, id, Some(task.cpu));
            // An id alone names one queue only where no other scheduler has the same.
            let mut queues = own.dsqs.iter().filter(|dsq| dsq.id == id);
            match (queues.next(), queues.next()) {
                (Some(dsq), None)
                    if !dsq.truncated && u32::try_from(dsq.tasks.len()) == Ok(dsq.nr) =>
                {
                    format!(
                        "on DSQ {name} by its own word, and not in that queue: it was being moved"
                    )
                }
                _ => format!("on DSQ {name}, where it was not found"),
            }
        }
        _ => {
            let info = own.tasks.iter().find(|t| t.kva == task.kva);
            match info.and_then(|t| t.ops_state.as_deref()) {
                Some("QUEUED") => "on no DSQ: the BPF scheduler holds it".to_owned(),
                Some(state) => format!("on no DSQ, ops state {state}"),
                None => "on no DSQ that could be read".to_owned(),
            }
        }
    }
}

/// What is known of the kernel and of the search for a scheduler, for the headline.
struct Known {
    sched_ext: bool,
    /// `scx_root` is set.
    attached: bool,
    /// Every place where a scheduler could be was read.
    searched: bool,
    /// The exit record was read, or there is none.
    exit: bool,
}

/// The answer in a few sentences. Nothing is said that was not read.
fn headline(own: &PostmortemReport, known: &Known) -> Vec<String> {
    let failed = diagnose::kernel_panic::sentence(own);
    let mut lines: Vec<String> = failed.map(|(_, what)| what).into_iter().collect();
    lines.extend(of_scheduler(own, known));
    lines
}

/// The scheduler's part of it.
fn of_scheduler(own: &PostmortemReport, known: &Known) -> Vec<String> {
    if !known.sched_ext {
        return vec![NO_SCHED_EXT.to_owned()];
    }
    let Some(sched) = &own.scheduler else {
        let sentence = if known.searched {
            "no sched_ext scheduler is attached, and none has left a trace in the struct_ops maps"
        } else {
            "whether a sched_ext scheduler is or was attached could not be read, see `unavailable` and `anomalies`"
        };
        return vec![sentence.to_owned()];
    };
    let mut lines = Vec::new();
    let name = sched.ops_name.as_deref().unwrap_or("(unreadable name)");
    match &own.exit_info {
        Some(exit) if exit.kind == 0 => lines.push(format!(
            "scheduler {name}: its exit was claimed (exit kind {}), the exit record is not filled yet",
            sched.exit_kind.unwrap_or(0)
        )),
        Some(exit) => {
            let kind = exit.kind_name.clone().unwrap_or_else(|| format!("exit kind {}", exit.kind));
            let reason = exit.reason.as_deref().unwrap_or("no reason recorded");
            let verb = if known.attached { "is being ejected" } else { "was ejected" };
            let msg = match exit.msg.as_deref() {
                Some(msg) if !msg.is_empty() => format!(": {msg}"),
                _ => String::new(),
            };
            lines.push(format!("scheduler {name} {verb}: {kind}, {reason}{msg}"));
            if !known.attached && exit.dump.is_some() {
                lines.push(
                    "its queues are gone; the kernel's own dump, taken before, shows who waited where"
                        .to_owned(),
                );
            }
        }
        None if !known.exit => lines.push(format!(
            "scheduler {name}: its exit record could not be read, see `unavailable`"
        )),
        None if known.attached => lines.push(format!(
            "scheduler {name} is attached ({}), no exit recorded",
            sched.enable_state.as_deref().unwrap_or("state unreadable")
        )),
        None => lines.push(format!("scheduler {name} is loaded but not attached, no exit recorded")),
    }
    let limit = sched.watchdog_timeout_ms.map_or_else(String::new, |ms| {
        format!(" (the watchdog's limit is {})", diagnose::waited(ms))
    });
    if let Some(worst) = own.starved.first() {
        lines.push(format!(
            "{}[{}] has been runnable on CPU {} for {} without running{limit}, {}",
            worst.comm,
            worst.pid,
            worst.cpu,
            diagnose::waited(worst.runnable_age_ms),
            whereabouts(own, worst)
        ));
        // The watchdog goes from CPU to CPU, and names the first that is over the limit.
        let words = own.exit_info.as_ref().and_then(|exit| exit.msg.as_deref());
        let named = own.starved.iter().skip(1).find(|task| {
            let start = format!("{}[{}] failed to run for ", task.comm, task.pid);
            words.is_some_and(|words| words.starts_with(&start))
        });
        if let Some(named) = named {
            lines.push(format!(
                "the kernel names {}[{}] since the watchdog came to it first; it has waited for {}",
                named.comm,
                named.pid,
                diagnose::waited(named.runnable_age_ms)
            ));
        }
        if own.starved.len() > 1 {
            lines.push(format!(
                "{} tasks in all have waited for half of that limit or longer",
                own.starved.len()
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use scx_postmortem_format::report::{DsqInfo, QueuedTask};

    use super::*;

    #[test]
    fn a_task_that_names_a_queue_which_does_not_list_it_was_being_moved() {
        let task = StarvedTask {
            dsq_id: Some(Hex(0x42)),
            ..StarvedTask::default()
        };
        let queue = DsqInfo {
            id: Hex(0x42),
            origin: "user".into(),
            nr: 1,
            tasks: vec![QueuedTask::default()],
            ..DsqInfo::default()
        };
        let said = |dsqs: Vec<DsqInfo>| {
            let own = PostmortemReport {
                dsqs,
                ..PostmortemReport::default()
            };
            whereabouts(&own, &task)
        };
        let moved = "on DSQ 0x42 (user) by its own word, and not in that queue: it was being moved";
        assert_eq!(said(vec![queue.clone()]), moved);
        // Another scheduler has one of that id; or its list was not read to its end.
        let two = said(vec![queue.clone(), queue.clone()]);
        assert_eq!(two, "on DSQ 0x42, where it was not found");
        let lost = "on DSQ 0x42 (user), where it was not found";
        let short = DsqInfo {
            nr: 2,
            ..queue.clone()
        };
        assert_eq!(said(vec![short]), lost);
        let cut = DsqInfo {
            truncated: true,
            ..queue
        };
        assert_eq!(said(vec![cut]), lost);
    }
}
