//! What the findings say of the shipped captures, and that each can be checked in the report.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::{Path, PathBuf};

use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::source::Image;
use scx_postmortem_analyze::tables;
use scx_postmortem_format::report::{FailureDumpReport, FailureDumpReportAny};
use scx_postmortem_tests::{corpus, entry};

fn rules(report: &FailureDumpReport) -> Vec<(String, String)> {
    let findings = &report.postmortem.as_ref().unwrap().findings;
    let rules = findings.iter().map(|f| (f.rule.clone(), f.what.clone()));
    rules.collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("findings")
}

/// The report on one of the captures in `findings/`, which tests/findings/make.py made.
fn of_guest(name: &str) -> FailureDumpReport {
    let path = folder().join(format!("{name}.core.zst"));
    let image = Image::open(&path).unwrap();
    let image = tables::supply(image, &folder().join("kernel-7.3.tables.zst")).unwrap();
    let kernel = Kernel::find(image, &Overrides::default()).unwrap();
    analysis::analyze(&kernel, &Options::default())
}

/// Guests with one fault each: the rule of the first finding, and what it says.
const GUESTS: [(&str, &str, &str); 10] = [
    (
        "affinity",
        "affinity",
        "may only run on CPU 1, and others were taken from DSQ 0xaff0",
    ),
    (
        "arena",
        "arena-exhausted",
        "arena arena is exhausted: all of its 128 pages are allocated",
    ),
    (
        "bypass",
        "bypass",
        "(depth 1, state enabling): tasks run in FIFO order; it is in bypass_init_task() at ",
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
        "that waiter-1[138] and waiter-0[137] wait for, and has itself been runnable for 10.848s without running, on DSQ 0x10c4",
    ),
    (
        "ring",
        "ringbuf-full",
        "ring buffer events is full (8184 of 8192 bytes)",
    ),
    (
        "slow",
        "slow-program",
        "slow_select_cpu() takes 5.153 ms each time",
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
    assert!(what.contains("DSQ 0xdead5: all 6 tasks"), "{what}");
    assert!(what.contains("starve-1[188]"), "{what}");
}

#[test]
fn an_error_exit_names_the_line_that_called() {
    let found = rules(&entry("error-7.3").unwrap().report().unwrap());
    let [(rule, what)] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(rule, "error-exit");
    assert!(
        what.contains("scx_bpf_error() in error_enqueue() at error.bpf.c:42: tripped over"),
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
