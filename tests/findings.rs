//! What the findings say of the shipped captures, and that each can be checked in the report.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use scx_postmortem_format::report::{FailureDumpReport, FailureDumpReportAny};
use scx_postmortem_tests::{corpus, entry};

fn rules(report: &FailureDumpReport) -> Vec<(String, String)> {
    let findings = &report.postmortem.as_ref().unwrap().findings;
    let rules = findings.iter().map(|f| (f.rule.clone(), f.what.clone()));
    rules.collect()
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
    for entry in corpus().unwrap() {
        let report = entry.report().unwrap();
        let findings = report.postmortem.as_ref().unwrap().findings.clone();
        let any = FailureDumpReportAny::from(report);
        let json: serde_json::Value = serde_json::from_str(&any.to_json().unwrap()).unwrap();
        for evidence in findings.iter().flat_map(|f| &f.evidence) {
            let there = json.pointer(&evidence.path);
            let there = there.unwrap_or_else(|| panic!("{}: no {}", entry.name, evidence.path));
            let text = match there {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            assert_eq!(text, evidence.value, "{}: {}", entry.name, evidence.path);
            checked += 1;
        }
    }
    assert!(checked >= 15, "{checked}");
}
