//! Dual captures and captures that were given up, as a user meets them. Their images are a shipped
//! capture, and for the early one the same with some values as they might have been before.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scx_postmortem_analyze::addr::{Gpa, Kva};
use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::source::{Image, PhysicalMemory};
use scx_postmortem_format::capture::{
    Abandoned, CaptureSpec, EarlySpec, Extent, GeneralRegs, Manifest, MemorySource, Note,
    SpecialRegs, VcpuState, WriteOptions, note_types, write_capture,
};
use scx_postmortem_format::report::{
    DegradedFailureDumpReport, DualFailureDumpReport, FailureDumpReportAny, PostmortemReport,
};

/// The queue that nobody serves in the shipped capture.
const QUEUE: u64 = 0xdead5;

fn shipped() -> Kernel {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = path.join("../corpus/stall-6.18/guest.core.zst");
    Kernel::find(Image::open(&path).unwrap(), &Overrides::default()).unwrap()
}

/// A kernel's memory with some bytes replaced.
struct Source<'a> {
    memory: &'a dyn PhysicalMemory,
    patches: Vec<(u64, Vec<u8>)>,
}

impl MemorySource for Source<'_> {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()> {
        self.memory.read(Gpa(gpa), buf).map_err(io::Error::other)?;
        for (start, bytes) in &self.patches {
            for (at, &byte) in (*start..).zip(bytes) {
                if let Some(place) = at
                    .checked_sub(gpa)
                    .and_then(|i| buf.get_mut(usize::try_from(i).ok()?))
                {
                    *place = byte;
                }
            }
        }
        Ok(())
    }
}

/// What the early image has otherwise: kernel address and bytes.
type Patch = (Kva, Vec<u8>);

/// Writes a capture of the shipped guest, dual with an early image that has `patches`.
fn write(
    path: &Path,
    kernel: &Kernel,
    late: Manifest,
    states: &[VcpuState],
    early: Option<(Manifest, Vec<Patch>)>,
) {
    let image = &kernel.image;
    let regions = image.memory.regions().iter();
    let registers = image.register_notes.iter();
    let registers: Vec<Note> = registers
        .map(|n| Note::new(&n.name, n.kind, n.desc.clone()))
        .collect();
    let mut notes = registers.clone();
    notes.push(Note::vmcoreinfo(kernel.vmcoreinfo.text().into()));
    notes.extend(states.iter().map(|state| {
        let json = serde_json::to_vec(state).unwrap();
        Note::scxpm(note_types::VCPU_STATE, json)
    }));
    let (manifest, patches) = early.clone().unwrap_or_default();
    let before = Source {
        memory: &*image.memory,
        patches: patches
            .into_iter()
            .map(|(kva, bytes)| (kernel.translate(kva).unwrap().0.0, bytes))
            .collect(),
    };
    let spec = CaptureSpec {
        memory: regions.map(|r| Extent::new(r.start.0, r.len)).collect(),
        manifest: late,
        notes,
        early: early.is_some().then_some(EarlySpec {
            source: &before,
            manifest,
            notes: registers,
        }),
        ..CaptureSpec::default()
    };
    let after = Source {
        memory: &*image.memory,
        patches: Vec::new(),
    };
    let mut file = fs::File::create(path).unwrap();
    write_capture(&mut file, &spec, &after, &WriteOptions::default()).unwrap();
}

fn run(file: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_analyze"));
    command.arg(file).args(more).output().unwrap()
}

fn report(file: &Path, more: &[&str]) -> (FailureDumpReportAny, Option<i32>, String) {
    let done = run(file, &[more, &["--format", "json"]].concat());
    let any = FailureDumpReportAny::from_json(std::str::from_utf8(&done.stdout).unwrap());
    let stderr = String::from_utf8(done.stderr).unwrap();
    (any.expect(&stderr), done.status.code(), stderr)
}

fn dual(file: &Path, more: &[&str]) -> (Box<DualFailureDumpReport>, Option<i32>) {
    match report(file, more) {
        (FailureDumpReportAny::Dual(dual), code, _) => (dual, code),
        (other, ..) => panic!("expected a dual report, found a {} one", other.schema()),
    }
}

fn degraded(file: &Path) -> (Box<DegradedFailureDumpReport>, Option<i32>, String) {
    match report(file, &[]) {
        (FailureDumpReportAny::Degraded(degraded), code, said) => (degraded, code, said),
        (other, ..) => panic!("expected a degraded report, found a {} one", other.schema()),
    }
}

fn own(report: &scx_postmortem_format::report::FailureDumpReport) -> &PostmortemReport {
    report.postmortem.as_deref().unwrap()
}

/// The guest's clock five seconds back.
fn sooner(kernel: &Kernel) -> Patch {
    let data = kernel.global("timekeeper_data", "struct tk_data");
    let data = data.or_else(|_| kernel.global("tk_core", "struct tk_data"));
    let seconds = data.unwrap().member("timekeeper.xtime_sec").unwrap();
    let now = seconds.u64().unwrap();
    (seconds.address(), (now - 5).to_le_bytes().to_vec())
}

/// The queue with two tasks less, and the clocks of 5 s before.
fn before(kernel: &Kernel, nr: u32, seq: u32) -> Vec<Patch> {
    let single = analysis::analyze(kernel, &Options::default());
    let dsqs = &own(&single).dsqs;
    let queue = dsqs.iter().find(|dsq| dsq.id.0 == QUEUE).unwrap();
    assert_eq!((queue.nr, queue.seq), (6, 6), "the capture has changed");
    let queue = kernel.object("struct scx_dispatch_q", Kva(queue.dsq_kva.0));
    let queue = queue.unwrap();
    let at = |member: &'static str| queue.member(member).unwrap().address();
    let jiffies = kernel.symbol("jiffies_64").unwrap();
    let now = kernel.read_u64(jiffies).unwrap();
    vec![
        (at("nr"), nr.to_le_bytes().to_vec()),
        (at("seq"), seq.to_le_bytes().to_vec()),
        (jiffies, (now - 1250).to_le_bytes().to_vec()),
        sooner(kernel),
    ]
}

fn file(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("guest.core.zst")
}

#[test]
fn a_dual_capture_gives_both_reports_and_what_changed() {
    let kernel = shipped();
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir);
    let early = (Manifest::default(), before(&kernel, 4, 4));
    write(&path, &kernel, Manifest::default(), &[], Some(early));

    let (both, code) = dual(&path, &[]);
    // The early queue's list has two tasks more than it counts: that is noticed.
    assert_eq!(code, Some(3));
    assert_eq!(both.early_skipped_reason, None);
    let half = both.early.as_ref().unwrap();
    let queue = |report| {
        let dsqs = &own(report).dsqs;
        dsqs.iter().position(|dsq| dsq.id.0 == QUEUE).unwrap()
    };
    let found = &own(half).dsqs[queue(half)];
    assert_eq!((found.nr, found.seq), (4, 4));
    let found = &own(&both.late).dsqs[queue(&both.late)];
    assert_eq!((found.nr, found.seq), (6, 6));
    // Half of the watchdog's 8 s, and the age that the oldest task had 5 s before.
    assert_eq!(both.early_threshold_jiffies, 1000);
    let oldest = own(&both.late).starved[0].runnable_age_jiffies;
    assert_eq!(both.early_max_age_jiffies, oldest - 1250);

    let diff = own(&both.late).diff.as_deref().unwrap();
    assert_eq!(diff.elapsed_jiffies, Some(1250));
    assert_eq!(diff.elapsed_ns, Some(5_000_000_000));
    let at = diff.dsqs.iter().position(|dsq| dsq.id.0 == QUEUE).unwrap();
    let change = &diff.dsqs[at];
    assert_eq!(
        (
            change.early_nr,
            change.late_nr,
            change.put_in,
            change.taken_out
        ),
        (Some(4), Some(6), Some(2), Some(0))
    );
    let waiting: Vec<_> = diff.still_waiting.iter().map(|w| &*w.task.comm).collect();
    assert!(waiting.contains(&"starve-1"), "{waiting:?}");
    // Others became runnable after the moment that the early image claims to be.
    let starved = |comm: &str| comm.starts_with("starve");
    let mut waits = diff.still_waiting.iter();
    assert!(waits.all(|w| !starved(&w.task.comm) || w.late_age_ms - w.early_age_ms == 5000));
    assert!(diff.tasks_come.is_empty() && diff.tasks_gone.is_empty() && diff.ran.is_empty());
    let scheduler = diff.scheduler.as_ref().unwrap();
    assert!(scheduler.same);
    assert_eq!(scheduler.early_name.as_deref(), Some("demo_stall"));
    // The finding rests on it.
    let finding = &own(&both.late).findings[0];
    assert_eq!(finding.rule, "queue-never-consumed");
    let path_of = format!("/postmortem/diff/dsqs/{at}/taken_out");
    assert!(
        finding
            .evidence
            .iter()
            .any(|e| e.path == path_of && e.value == "0")
    );
    assert!(own(half).diff.is_none());

    // The halves alone are ordinary single reports: the late one that of the shipped capture.
    let (FailureDumpReportAny::Single(late), Some(0), _) = report(&path, &["--late"]) else {
        panic!("--late gives no single report");
    };
    assert_eq!(late.maps, both.late.maps);
    assert_eq!(own(&late).tasks, own(&both.late).tasks);
    assert!(own(&late).diff.is_none());
    assert!(own(&late).unavailable.iter().any(|u| u.section == "early"));
    assert!(
        own(&both.late)
            .unavailable
            .iter()
            .all(|u| u.section != "early")
    );
    let (FailureDumpReportAny::Single(early), Some(3), _) = report(&path, &["--early"]) else {
        panic!("--early gives no single report");
    };
    assert_eq!(*early, *half);

    // As text, the verdict comes first, and what changed after the late image.
    let text = String::from_utf8(run(&path, &[]).stdout).unwrap();
    assert!(text.starts_with("=== late capture ===\n"), "{text:.200}");
    assert!(
        text.contains("\n  0xdead5 (user): 4 tasks, now 6; 2 put in, none taken out\n"),
        "{text:.2000}"
    );
    let order = [
        "=== late capture ===",
        "=== from the early to the late capture ===",
        "=== early capture ===",
        "DualFailureDumpReport: early=present",
    ];
    let places = order.map(|title| text.find(title).expect(title));
    assert!(places.is_sorted(), "{places:?}");
}

#[test]
fn a_queue_that_was_served_once_and_no_more_is_told_by_the_early_image() {
    // Twenty tasks were put in and fourteen taken out before the early image, none since: the late
    // image alone has 6 of 20, which says nothing about when the last one left.
    let kernel = shipped();
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir);
    let mut late = before(&kernel, 6, 20);
    late.truncate(2);
    // What is "late" here is the shipped capture with another seq: write it first, then use it.
    let patched = Kernel::find(
        {
            let single = dir.path().join("late.core.zst");
            let swapped = (Manifest::default(), late);
            write(&single, &kernel, Manifest::default(), &[], Some(swapped));
            Image::open_early(&single).unwrap()
        },
        &Overrides::default(),
    )
    .unwrap();
    let uptime = scx_postmortem_analyze::walk::clock::uptime_ns(&patched).unwrap();
    assert!(uptime > 0);
    let single = analysis::analyze(&patched, &Options::default());
    let rules: Vec<_> = own(&single).findings.iter().map(|f| &*f.rule).collect();
    assert!(rules.contains(&"queue-outranked"), "{rules:?}");
    assert!(!rules.contains(&"queue-never-consumed"), "{rules:?}");

    let same = vec![sooner(&patched)];
    write(
        &path,
        &patched,
        Manifest::default(),
        &[],
        Some((Manifest::default(), same)),
    );
    let (both, _) = dual(&path, &[]);
    let finding = &own(&both.late).findings[0];
    assert_eq!(
        (&*finding.rule, &*finding.confidence),
        ("queue-untouched", "certain")
    );
    assert!(
        finding.what.contains("it held 6 tasks then and 6 now"),
        "{}",
        finding.what
    );
    assert!(
        own(&both.late)
            .findings
            .iter()
            .all(|f| f.rule != "queue-stopped")
    );
}

#[test]
fn a_single_capture_has_no_early_half() {
    let kernel = shipped();
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir);
    write(&path, &kernel, Manifest::default(), &[], None);
    let done = run(&path, &["--early"]);
    assert_eq!(done.status.code(), Some(2));
    let stderr = String::from_utf8(done.stderr).unwrap();
    assert!(stderr.contains("expected a dual one"), "{stderr}");
    assert!(done.stdout.is_empty());
}

/// Each image by itself gives the report that the dual capture has of it.
#[test]
fn either_image_of_a_dual_capture_can_be_reduced() {
    let kernel = shipped();
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir);
    let early = before(&kernel, 4, 4);
    write(
        &path,
        &kernel,
        Manifest::default(),
        &[],
        Some((Manifest::default(), early)),
    );
    let reduce = |which: &[&str], small: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_analyze"));
        command.arg("reduce").arg(&path).args(which);
        command.args(["--level", "1", "-o"]).arg(small);
        command.output().unwrap()
    };
    let small = dir.path().join("small.core.zst");
    let done = reduce(&[], &small);
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(2));
    assert!(said.ends_with("give --late or --early\n"), "{said}");
    assert!(!small.exists());
    for (which, nr) in [("--early", 4), ("--late", 6)] {
        let small = dir.path().join(format!("small{which}.core.zst"));
        let done = reduce(&[which], &small);
        assert_eq!(
            done.status.code(),
            Some(0),
            "{which}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        let (any, _, _) = report(&small, &[]);
        let FailureDumpReportAny::Single(found) = any else {
            panic!("{which}: not a single report");
        };
        let queue = own(&found).dsqs.iter().find(|dsq| dsq.id.0 == QUEUE);
        assert_eq!(queue.unwrap().nr, nr, "{which}");
        assert!(fs::metadata(&small).unwrap().len() < fs::metadata(&path).unwrap().len());
    }
}

fn given_up() -> Abandoned {
    Abandoned {
        cause: "timeout".into(),
        elapsed_ms: 30_000,
        watchpoint_hit: true,
        bss_latch_state: Some("triggered".into()),
        exit_kind: Some(1026),
        ..Abandoned::default()
    }
}

#[test]
fn a_capture_that_was_given_up_gives_a_degraded_report() {
    let kernel = shipped();
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir);
    let manifest = Manifest {
        cpus: 2,
        degraded: vec!["vCPU 0 did not stop within 30 s".into()],
        abandoned: Some(given_up()),
        ..Manifest::default()
    };
    // Only vCPU 1 stopped.
    let state = VcpuState {
        version: 1,
        vcpu: 1,
        general: GeneralRegs {
            rip: 0xffff_ffff_8100_0000,
            rsp: 0xffff_c900_0000_1000,
            ..GeneralRegs::default()
        },
        special: Some(SpecialRegs {
            cr3: 0x123_4000,
            ..SpecialRegs::default()
        }),
        ..VcpuState::default()
    };
    write(&path, &kernel, manifest.clone(), &[state], None);
    let (degraded_report, code, said) = degraded(&path);
    assert_eq!(code, Some(3));
    assert!(said.contains("--best-effort"), "{said}");
    assert!(said.contains("vCPU 0 did not stop within 30 s"), "{said}");
    assert_eq!(
        degraded_report.reason,
        "vCPU rendezvous timed out before parked acknowledgement: 30000ms; 1/2 vCPUs parked"
    );
    assert_eq!(degraded_report.vcpu_regs.len(), 2);
    assert_eq!(degraded_report.vcpu_regs[0], None);
    let regs = degraded_report.vcpu_regs[1].as_ref().unwrap();
    assert_eq!(regs.instruction_pointer, 0xffff_ffff_8100_0000);
    assert_eq!(regs.page_table_root, 0x123_4000);
    assert!(degraded_report.watchpoint_hit);
    assert_eq!(degraded_report.bss_latch_state, "triggered");
    assert_eq!(degraded_report.exit_kind, Some(1026));
    assert_eq!(degraded_report.elapsed_ms, 30_000);
    let text = String::from_utf8(run(&path, &[]).stdout).unwrap();
    assert!(
        text.starts_with("degraded failure dump:\n  reason: vCPU rendezvous timed out"),
        "{text}"
    );
    assert!(text.contains("    vcpu 0: not_parked\n"), "{text}");

    // What memory tells, marked as torn.
    let (FailureDumpReportAny::Single(single), Some(3), _) = report(&path, &["--best-effort"])
    else {
        panic!("--best-effort gives no single report");
    };
    let warnings = &own(&single).warnings;
    assert!(
        warnings.iter().any(|w| w.contains("may be torn")),
        "{warnings:?}"
    );
    assert!(
        warnings.iter().any(|w| w.contains("vCPU 0 did not stop")),
        "{warnings:?}"
    );
    assert!(!own(&single).tasks.is_empty());
    // The registers are those of the vCPU that stopped, though the first note has them.
    let input = own(&single).input.as_ref().unwrap();
    assert_eq!(input.vcpus, Some(2));
    assert_eq!(single.vcpu_regs.len(), 2);
    assert_eq!(single.vcpu_regs[0], None);
    let regs = single.vcpu_regs[1].as_ref().unwrap();
    assert_eq!(regs.instruction_pointer, 0xffff_ffff_8100_0000);

    // An early image that was given up costs only its half.
    let late = Manifest::default();
    write(&path, &kernel, late, &[], Some((manifest, Vec::new())));
    let (both, code) = dual(&path, &[]);
    assert_eq!(code, Some(3));
    assert!(both.early.is_none());
    let reason = both.early_skipped_reason.unwrap();
    assert!(
        reason.starts_with("early capture degraded (vCPU rendezvous timed out")
            && reason.ends_with("see tagged sibling at SNAPSHOT_TAG_EARLY_DEGRADED"),
        "{reason}"
    );
    assert!(!own(&both.late).tasks.is_empty());
}

#[test]
fn without_states_registers_count_only_when_all_are_there() {
    let kernel = shipped();
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir);
    let mut manifest = Manifest {
        cpus: 2,
        abandoned: Some(Abandoned {
            cause: "killed".into(),
            ..Abandoned::default()
        }),
        ..Manifest::default()
    };
    write(&path, &kernel, manifest.clone(), &[], None);
    let (whole, ..) = degraded(&path);
    assert!(
        whole
            .reason
            .starts_with("vCPU rendezvous aborted by external kill"),
        "{}",
        whole.reason
    );
    assert!(
        whole.reason.ends_with("2/2 vCPUs parked"),
        "{}",
        whole.reason
    );
    assert_eq!(whole.bss_latch_state, "not_resolved");
    // Two register notes of three vCPUs: whose they are cannot be told.
    manifest.cpus = 3;
    write(&path, &kernel, manifest, &[], None);
    let (part, ..) = degraded(&path);
    assert_eq!(part.vcpu_regs, [None, None, None]);
}
