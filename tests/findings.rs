//! What the findings say of the shipped captures, and that each can be checked in the report.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::{Path, PathBuf};

use scx_postmortem_analyze::addr::{Gpa, Kva};
use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::source::Image;
use scx_postmortem_analyze::tables;
use scx_postmortem_analyze::walk::Limits;
use scx_postmortem_format::capture::{
    CaptureSpec, Extent, MemorySource, Note, WriteOptions, write_capture,
};
use scx_postmortem_format::report::{
    FailureDumpReport, FailureDumpReportAny, PostmortemReport, brief_report, text_report,
};
use scx_postmortem_tests::{Patched, corpus, entry};

fn rules(report: &FailureDumpReport) -> Vec<(String, String)> {
    let findings = &report.postmortem.as_ref().unwrap().findings;
    let rules = findings.iter().map(|f| (f.rule.clone(), f.what.clone()));
    rules.collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("findings")
}

/// One of the captures in `findings/`, which tests/findings/make.py made.
fn guest(name: &str) -> Image {
    let path = folder().join(format!("{name}.core.zst"));
    let image = Image::open(&path).unwrap();
    tables::supply(image, &folder().join("kernel-7.3.tables.zst")).unwrap()
}

fn kernel_of(image: Image) -> Kernel {
    Kernel::find(image, &Overrides::default()).unwrap()
}

/// The report on one of the captures.
fn of_guest(name: &str) -> FailureDumpReport {
    analysis::analyze(&kernel_of(guest(name)), &Options::default())
}

fn own(kernel: &Kernel) -> PostmortemReport {
    *analysis::analyze(kernel, &Options::default())
        .postmortem
        .unwrap()
}

/// The guest with the word at each of these addresses replaced.
fn changed(name: &str, words: &[(Kva, u64)]) -> Image {
    let plain = kernel_of(guest(name));
    let bytes = words.iter().map(|&(kva, word)| {
        let (gpa, _) = plain.translate(kva).unwrap();
        (gpa.0, word.to_le_bytes().to_vec())
    });
    let mut image = guest(name);
    Patched::apply(&mut image, bytes.collect(), Vec::new());
    image
}

/// Where a CPU's run queue has its clock, and what it shows.
fn clock(kernel: &Kernel, cpu: u32) -> (Kva, u64) {
    let rq = kernel
        .per_cpu_object("runqueues", "struct rq", cpu)
        .unwrap();
    let clock = rq.member("clock").unwrap();
    (clock.address(), clock.u64().unwrap())
}

/// Guests with one fault each: the rule of the first finding, and what it says.
const GUESTS: [(&str, &str, &str); 16] = [
    (
        "affinity",
        "affinity",
        "may only run on CPU 1, and others were taken from DSQ 0xaff00 (user)",
    ),
    (
        "arena",
        "arena-exhausted",
        "arena arena is exhausted: all of its 128 pages are allocated",
    ),
    (
        "bypass",
        "bypass",
        "(depth 1, state enabling): tasks run in FIFO order, and have for 11.608s; it is in bypass_init_task() at ",
    ),
    (
        "claimed",
        "aborting",
        "(SCX_EXIT_ERROR_BPF) by error_enqueue() at error.bpf.c:42, while CPU 0 ran bpftool[102], and the kernel has not written down why yet",
    ),
    (
        "hog",
        "real-time-hog",
        "have all CPUs that victim[150] may use: hold-1[154] (rt) on CPU 1",
    ),
    (
        "idle",
        "idle-cpu-with-waiting-work",
        "CPU 0 is idle while other-",
    ),
    (
        "lock",
        "lock-holder-off-cpu",
        "that waiter-1[138] and waiter-0[137] wait for, and has itself been runnable for 10.848s without running, on DSQ 0x10c4 (user)",
    ),
    (
        "preempt",
        "preemption-off",
        "CPU 1 has been in the kernel with preemption off, for 11.811s or longer, with loop[152]: in the BPF program preempt_init_task() at preempt.bpf.c:51",
    ),
    (
        "prio",
        "queue-outranked",
        "tasks wait in DSQ 0x9109 (user), while 532 of 533 insertions have left it (taken, or dequeued by the kernel), and others are taken from DSQ 0x60d5 (user)",
    ),
    (
        "ring",
        "ringbuf-full",
        "ring buffer events is full (8184 of 8192 bytes)",
    ),
    (
        "slice",
        "cpu-hog",
        "one task each keeps all CPUs that victim[150], ksoftirqd/1[25] and kworker/1:1[48] may use: hog[152] (ext) for 13.063s of the wait or longer on CPU 1, with an infinite slice",
    ),
    (
        "slow",
        "slow-program",
        "slow_select_cpu() takes 5.153 ms each time",
    ),
    (
        "stopped",
        "queue-outranked",
        "ops.dispatch() seems to look at the former only when the latter is empty, or not any more; niced-1[137] and niced-0[136]",
    ),
    (
        "stranded",
        "stranded-on-local-queue",
        "cannot leave the local DSQ of CPU 1, which runs hold-1[",
    ),
    (
        "stuck",
        "cpu-stuck",
        "CPU 0 has been in the kernel with interrupts off, without a tick for 8.006s, with pulse-1[137]: in the BPF program stuck_select_cpu() at stuck.bpf.c:28",
    ),
    (
        "vtime",
        "vtime-ahead",
        "niced-0[136] has waited for 14.720s in DSQ 0x60d5 (user), which is ordered by virtual time, since its own is far ahead: 4 younger tasks are before it",
    ),
];

#[test]
fn the_first_finding_names_the_one_fault_of_each_guest() {
    for (name, rule, says) in GUESTS {
        let found = rules(&of_guest(name));
        let (first, what) = found.first().unwrap_or_else(|| panic!("{name}: none"));
        assert_eq!(first, rule, "{name}: {found:?}");
        assert!(what.contains(says), "{name}: {what}");
    }
}

#[test]
fn healthy_guests_have_no_finding() {
    for name in ["fifo", "healthy"] {
        let report = of_guest(name);
        assert!(report.postmortem.as_ref().unwrap().scheduler.is_some());
        assert_eq!(rules(&report), [], "{name}");
    }
}

/// The kernel's message is about one of two that have waited as long, and its dump about both.
#[test]
fn the_headline_names_the_task_that_the_kernel_does() {
    let report = own(&kernel_of(guest("affinity")));
    let starved: Vec<_> = report
        .starved
        .iter()
        .map(|t| (t.pid, t.runnable_age_ms))
        .collect();
    assert_eq!(starved, [(152, 11_060), (150, 11_060)]);
    let [first, second, ..] = &report.headline[..] else {
        panic!("{:?}", report.headline);
    };
    assert!(
        first.contains("trapped-3[152] failed to run for 11.060s"),
        "{first}"
    );
    assert!(
        second.starts_with("trapped-3[152] has been runnable"),
        "{second}"
    );
}

/// `bpf_link_settle()` comes after the scheduler is enabled, which this guest is still at.
#[test]
fn a_link_that_is_being_made_is_no_damage() {
    let report = own(&kernel_of(guest("bypass")));
    assert_eq!(report.anomalies, []);
    let [link] = &report.links[..] else {
        panic!("{:?}", report.links);
    };
    assert_eq!((link.id, link.unsettled, &link.error), (1, true, &None));
    assert_eq!(link.link_type, "struct_ops");
    assert_eq!(
        link.target.as_deref(),
        Some("no map yet: it is being attached")
    );
    // Another id than the list's is damage all the same.
    let kernel = kernel_of(guest("bypass"));
    let object = kernel.object("struct bpf_link", Kva(link.kva.0)).unwrap();
    let id = object.member("id").unwrap().address();
    let word = kernel.read_u64(id).unwrap() & !u64::from(u32::MAX) | 7;
    let report = own(&kernel_of(changed("bypass", &[(id, word)])));
    let said: Vec<_> = report
        .anomalies
        .iter()
        .map(|a| a.section.as_str())
        .collect();
    assert_eq!(said, ["links.1"]);
}

/// Nobody's clock is ahead of the stuck CPU's then: only the TSC goes on.
#[test]
fn a_cpu_that_stands_with_all_others_is_told_by_the_tsc() {
    let kernel = kernel_of(guest("stuck"));
    let ((at, _), (_, stuck)) = (clock(&kernel, 1), clock(&kernel, 0));
    let base = ["timekeeper_data", "tk_core"]
        .iter()
        .find_map(|name| kernel.global(name, "struct tk_data").ok());
    let base = base.unwrap().member("timekeeper.tkr_mono").unwrap();
    let last = base.member("cycle_last").unwrap().u64().unwrap();
    let found = |cycles: Option<u64>| {
        let mut image = changed("stuck", &[(at, stuck)]);
        for regs in image.vcpus.iter_mut().flatten() {
            regs.tsc = cycles.map(|cycles| last + cycles);
        }
        let report = own(&kernel_of(image));
        let age = report.kernel.as_ref().unwrap().timekeeping_age_ns;
        let found = report.findings.first();
        (age, found.map(|f| (f.rule.clone(), f.confidence.clone())))
    };
    assert_eq!(found(None), (None, None));
    // 2596.113 MHz, as the guest's log has it: a tick's time, then eight seconds.
    let (age, none) = found(Some(10_384_452));
    assert!((3_990_000..4_010_000).contains(&age.unwrap()), "{age:?}");
    assert_eq!(none, None);
    let (age, told) = found(Some(20_768_904_000));
    assert!(
        (7_990_000_000..8_010_000_000).contains(&age.unwrap()),
        "{age:?}"
    );
    assert_eq!(told, Some(("cpu-stuck".into(), "certain".into())));
}

/// The detector's task has run on each CPU within its period of 4 s, but for the steps of its
/// clock; on the stuck CPU, whose own clock stands with it, it only seems so.
#[test]
fn the_detector_of_soft_lockups_is_quiet_where_tasks_are_preempted() {
    let mut seen = 0;
    let guests = GUESTS.iter().map(|(name, ..)| *name);
    let guests = guests.filter(|name| *name != "preempt");
    for name in guests.chain(["fifo", "healthy"]) {
        for cpu in own(&kernel_of(guest(name))).cpus {
            let detector = cpu.soft_lockup.unwrap();
            assert_eq!(detector.period_ns, Some(4_000_000_000));
            assert!(detector.age_ns.unwrap() <= 5 << 30, "{name}: {detector:?}");
            seen += 1;
        }
    }
    assert_eq!(seen, 34);
    // The same CPU of the slow guest, when that task last ran 20 steps ago.
    let kernel = kernel_of(guest("slow"));
    let touched = kernel.per_cpu_object("watchdog_touch_ts", "long unsigned int", 1);
    let touched = touched.unwrap();
    let long_ago = (clock(&kernel, 1).1 >> 30) - 20;
    let report = own(&kernel_of(changed(
        "slow",
        &[(touched.address(), long_ago)],
    )));
    let cpu = report.cpus.iter().find(|cpu| cpu.cpu == 1).unwrap();
    assert_eq!(cpu.soft_lockup.as_ref().unwrap().age_ns, Some(20 << 30));
}

/// A ring of waiters that never comes back to the first.
#[test]
fn a_lock_whose_waiters_run_in_a_circle_is_cut_short() {
    let kernel = kernel_of(guest("lock"));
    let sound = own(&kernel);
    let [lock] = &sound.locks[..] else {
        panic!("{:?}", sound.locks);
    };
    assert_eq!((lock.kind.as_str(), lock.waiters.len()), ("mutex", 2));
    let mutex = kernel.object("struct mutex", Kva(lock.address.0)).unwrap();
    let first = mutex.member("first_waiter").unwrap().deref().unwrap();
    let first = first.member("list").unwrap().address();
    let second = kernel.read_ptr(first).unwrap();
    assert_eq!(kernel.read_ptr(second).unwrap(), first);
    for (at, next, waiters) in [
        (second, second, 2),
        (first, first, 1),
        (first, Kva(0x10), 1),
    ] {
        let report = own(&kernel_of(changed("lock", &[(at, next.0)])));
        let [found] = &report.locks[..] else {
            panic!("{next}: {:?}", report.locks);
        };
        assert_eq!(found.waiters, lock.waiters[..waiters], "{next}");
        assert_eq!(found.truncated, next != first, "{next}");
        assert_eq!(found.owner, lock.owner, "{next}");
    }
}

#[test]
fn interrupts_have_a_budget_of_counters() {
    let kernel = kernel_of(guest("healthy"));
    let whole = own(&kernel);
    let numbered = |report: &PostmortemReport| {
        let irqs = report.irqs.iter();
        irqs.filter(|irq| irq.irq.parse::<u32>().is_ok()).count()
    };
    assert!(whole.limits.iter().all(|l| l.what != "irqs"));
    let limits = Limits {
        irq_counts: 9,
        ..Limits::default()
    };
    let options = Options {
        limits,
        ..Options::default()
    };
    let few = *analysis::analyze(&kernel, &options).postmortem.unwrap();
    let reached = few.limits.iter().find(|l| l.what == "irqs").unwrap();
    // Nine counters are four interrupts of a guest with two CPUs.
    assert_eq!(reached.limit, 4);
    assert!(numbered(&few) <= 4 && numbered(&few) < numbered(&whole));
    assert_eq!(few.irqs.last(), whole.irqs.last());
}

/// The file is what it says by its content, not by its name for itself.
#[test]
fn tables_that_were_changed_or_are_of_another_kernel_are_refused() {
    let good = folder().join("kernel-7.3.tables.zst");
    let opened = Image::open(&good).unwrap();
    let id = tables::needed(&guest_alone("stuck")).unwrap().to_owned();
    let manifest = opened.manifest.clone().unwrap();
    assert_eq!(manifest.kernel_tables.as_ref(), Some(&id));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tables.zst");
    let write = |change: &(dyn Fn(&mut [u8], u64) + Sync), info: &[u8]| {
        let extents: Vec<Extent> = (opened.memory.regions().iter())
            .map(|region| Extent::new(region.start.0, region.len))
            .collect();
        let spec = CaptureSpec {
            memory: extents,
            manifest: manifest.clone(),
            notes: vec![Note {
                name: "VMCOREINFO".into(),
                kind: 0,
                desc: info.to_vec(),
            }],
            ..CaptureSpec::default()
        };
        let mut file = std::fs::File::create(&path).unwrap();
        let memory = Changed {
            image: &opened,
            change,
        };
        write_capture(&mut file, &spec, &memory, &WriteOptions::default()).unwrap();
    };
    let info = opened.vmcoreinfo.clone().unwrap();
    let supply = || tables::supply(guest_alone("stuck"), &path).map(drop);
    write(&|_, _| {}, &info);
    assert_eq!(supply(), Ok(()));
    // One bit of one page.
    let page = opened.memory.regions()[3].start.0;
    write(
        &|bytes, gpa| {
            if let Some(at) = page
                .checked_sub(gpa)
                .and_then(|at| bytes.get_mut(usize::try_from(at).ok()?))
            {
                *at ^= 1;
            }
        },
        &info,
    );
    let error = supply().unwrap_err();
    assert!(
        error.contains(&format!("it calls itself the kernel tables {id}")),
        "{error}"
    );
    assert!(
        error.contains("make it again with analyze tables"),
        "{error}"
    );
    // Another kernel's, with the name of this one's.
    let text = String::from_utf8(info).unwrap();
    let (build_id, _) = id.split_once('-').unwrap();
    let other = "0123456789abcdef0123456789abcdef01234567";
    write(&|_, _| {}, text.replace(build_id, other).as_bytes());
    let error = supply().unwrap_err();
    assert!(error.contains(&id) && error.contains(other), "{error}");
    // The right tables, for a capture of another kernel whose manifest asks for them.
    let mut capture = guest_alone("stuck");
    let info = String::from_utf8(capture.vmcoreinfo.unwrap()).unwrap();
    capture.vmcoreinfo = Some(info.replace(build_id, other).into_bytes());
    let error = tables::supply(capture, &good).map(drop).unwrap_err();
    let both = format!("with build id {build_id}, and the capture is of one with build id {other}");
    assert!(error.contains(&both), "{error}");
}

fn guest_alone(name: &str) -> Image {
    Image::open(&folder().join(format!("{name}.core.zst"))).unwrap()
}

/// An image's memory with something changed.
struct Changed<'a> {
    image: &'a Image,
    change: &'a (dyn Fn(&mut [u8], u64) + Sync),
}

impl MemorySource for Changed<'_> {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let read = self.image.memory.read(Gpa(gpa), buf);
        read.map_err(|e| std::io::Error::other(e.to_string()))?;
        (self.change)(buf, gpa);
        Ok(())
    }
}

#[test]
fn a_report_without_findings_says_so() {
    let any = FailureDumpReportAny::from(of_guest("healthy"));
    let words = "\nfindings: none; no rule saw anything wrong\n";
    assert!(
        brief_report(&any).ends_with(words),
        "{}",
        brief_report(&any)
    );
    assert!(text_report(&any).contains(words));
    let any = FailureDumpReportAny::from(of_guest("hog"));
    assert!(!brief_report(&any).contains("findings: none"));
}

/// The pages that are in the tables are refused from any other file, and missed without one.
#[test]
fn a_capture_without_its_tables_says_so() {
    let image = Image::open(&folder().join("stuck.core.zst")).unwrap();
    let id = tables::needed(&image).unwrap().to_owned();
    let error = Kernel::find(image, &Overrides::default()).unwrap_err();
    assert!(error.contains("--kernel-tables FILE"), "{error}");
    assert!(error.contains(&id), "{error}");
    let image = Image::open(&folder().join("stuck.core.zst")).unwrap();
    let other = entry("stall-6.18").unwrap().capture();
    let error = tables::supply(image, &other).unwrap_err();
    assert!(
        error.contains("not a file that analyze tables has written"),
        "{error}"
    );
    // What needs none takes none.
    let whole = Image::open(&other).unwrap();
    let whole = tables::supply(whole, &folder().join("kernel-7.3.tables.zst")).unwrap();
    assert!(Kernel::find(whole, &Overrides::default()).is_ok());
}

#[test]
fn the_queue_that_nobody_serves_is_the_verdict() {
    let found = rules(&entry("stall-6.18").unwrap().report().unwrap());
    let [(rule, what)] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(rule, "queue-never-consumed");
    assert!(what.contains("DSQ 0xdead5 (user): all 6 tasks"), "{what}");
    assert!(what.contains("starve-1[188]"), "{what}");
}

/// One that was reniced in the queue was dequeued and inserted again.
#[test]
fn a_queue_that_a_task_was_dequeued_from_once_is_still_the_verdict() {
    let entry = entry("stall-6.18").unwrap();
    let kernel = entry.kernel().unwrap();
    let report = own(&kernel);
    let dsq = report.dsqs.iter().find(|dsq| dsq.id.0 == 0xdead5).unwrap();
    assert_eq!((dsq.nr, dsq.seq), (6, 6));
    let object = kernel.object("struct scx_dispatch_q", Kva(dsq.dsq_kva.0));
    let seq = object.unwrap().member("seq").unwrap().address();
    let changed = entry.patched(&[(seq, &7_u32.to_le_bytes())], &[]).unwrap();
    let found = own(&changed).findings;
    let [only] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(
        (only.rule.as_str(), only.confidence.as_str()),
        ("queue-never-consumed", "likely")
    );
    let words = "all 6 tasks in it starve, and 1 of the 7 insertions has left it (taken, or dequeued by the kernel)";
    assert!(only.what.contains(words), "{}", only.what);
}

#[test]
fn an_error_exit_names_the_line_that_called() {
    let found = rules(&entry("error-7.3").unwrap().report().unwrap());
    let [(rule, what)] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(rule, "error-exit");
    assert!(
        what.contains("scx_bpf_error() in error_enqueue() at error.bpf.c:42, while CPU 0 ran many.3[152]: tripped over"),
        "{what}"
    );
}

/// The guest is held still by FIFO tasks while its truth is saved.
#[test]
fn real_time_tasks_that_have_all_cpus_are_the_verdict() {
    let found = rules(&entry("p2dq-7.3").unwrap().report().unwrap());
    let [(rule, what)] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(rule, "real-time-hog");
    assert!(what.contains("hold-1[265] (rt) on CPU 1"), "{what}");
}

#[test]
fn a_healthy_scheduler_has_no_finding() {
    let report = entry("maps-7.3").unwrap().report().unwrap();
    assert!(report.postmortem.as_ref().unwrap().starved.is_empty());
    assert_eq!(rules(&report), []);
}

#[test]
fn evidence_is_where_it_says() {
    let mut checked = 0;
    let entries = corpus().unwrap().into_iter();
    let entries = entries.map(|entry| (entry.name.clone(), entry.report().unwrap()));
    let guests = GUESTS.map(|(name, ..)| (name.to_owned(), of_guest(name)));
    for (name, report) in entries.chain(guests) {
        let findings = report.postmortem.as_ref().unwrap().findings.clone();
        let any = FailureDumpReportAny::from(report);
        let json: serde_json::Value = serde_json::from_str(&any.to_json().unwrap()).unwrap();
        for evidence in findings.iter().flat_map(|f| &f.evidence) {
            let there = json.pointer(&evidence.path);
            let there = there.unwrap_or_else(|| panic!("{name}: no {}", evidence.path));
            let text = match there {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            assert_eq!(text, evidence.value, "{name}: {}", evidence.path);
            checked += 1;
        }
    }
    assert!(checked >= 50, "{checked}");
}
