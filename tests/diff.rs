//! Any two reports against each other.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use scx_postmortem_analyze::diff::compare_reports;
use scx_postmortem_format::report::{
    FailureDumpReport, FailureDumpReportAny, Hex, RenderedValue, ReportsDiff,
};
use scx_postmortem_tests::entry;
use serde_json::Value;

fn between(a: &FailureDumpReport, b: &FailureDumpReport) -> ReportsDiff {
    compare_reports(a, b, ["a", "b"])
}

/// What a report would be had the boot put the kernel, the direct map, the vmalloc area and the
/// memory map elsewhere.
fn moved(report: &FailureDumpReport) -> FailureDumpReport {
    let kernel = report.postmortem.as_ref().unwrap().kernel.as_ref().unwrap();
    let regions = [
        (
            0xffff_ffff_8000_0000 + kernel.kaslr_offset.unwrap().0,
            0x4000_0000,
            0x0120_0000,
        ),
        (kernel.page_offset_base.unwrap().0, 1 << 40, 0x40_0000_0000),
        (kernel.vmalloc_base.unwrap().0, 1 << 40, 0x80_0000_0000),
        (kernel.vmemmap_base.unwrap().0, 1 << 40, 0x40_0000_0000),
    ];
    let shift = |at: u64| {
        let region = regions
            .iter()
            .find(|(start, len, _)| (*start..start + len).contains(&at));
        region.map_or(at, |(_, _, by)| at + by)
    };
    fn walk(value: &mut Value, shift: &dyn Fn(u64) -> u64) {
        match value {
            Value::Number(n) => {
                if let Some(at) = n.as_u64() {
                    *value = shift(at).into();
                }
            }
            Value::String(text) => {
                let hex = text
                    .strip_prefix("0x")
                    .and_then(|h| u64::from_str_radix(h, 16).ok());
                if let Some(at) = hex {
                    *text = format!("{:#x}", shift(at));
                }
            }
            Value::Array(all) => all.iter_mut().for_each(|v| walk(v, shift)),
            Value::Object(all) => all.values_mut().for_each(|v| walk(v, shift)),
            _ => {}
        }
    }
    let any = FailureDumpReportAny::from(report.clone());
    let mut json = serde_json::from_str(&any.to_json().unwrap()).unwrap();
    walk(&mut json, &shift);
    // The start of the window moved by the slide itself.
    let slide = kernel.kaslr_offset.unwrap().0 + 0x0120_0000;
    json["postmortem"]["kernel"]["kaslr_offset"] = format!("{slide:#x}").into();
    match FailureDumpReportAny::parse(&json.to_string()).unwrap() {
        FailureDumpReportAny::Single(report) => *report,
        other => panic!("{}", other.schema()),
    }
}

#[test]
fn a_report_against_itself_has_no_changes() {
    for name in ["stall-6.18", "maps-7.3"] {
        let report = entry(name).unwrap().report().unwrap();
        let ReportsDiff { diff, .. } = between(&report, &report);
        assert!(!diff.other_boot);
        assert_eq!(diff.elapsed_ns, Some(0));
        assert!(
            diff.variables.is_empty() && diff.entries.is_empty(),
            "{diff:?}"
        );
        assert!(diff.tasks_come.is_empty() && diff.tasks_gone.is_empty());
        assert!(diff.counters.is_empty() && diff.maps.is_empty());
    }
}

#[test]
fn addresses_that_differ_only_by_kaslr_are_no_changes() {
    for name in ["stall-6.18", "maps-7.3"] {
        let report = entry(name).unwrap().report().unwrap();
        let moved = moved(&report);
        assert_ne!(moved.maps, report.maps);
        let ReportsDiff { diff, .. } = between(&report, &moved);
        assert!(diff.other_boot, "{name}");
        assert_eq!(diff.variables, [], "{name}");
        assert_eq!(diff.entries, [], "{name}");
        assert_eq!(diff.maps, [], "{name}");
        assert!(
            diff.tasks_come.is_empty() && diff.tasks_gone.is_empty(),
            "{name}"
        );
        assert!(diff.cpus.iter().all(|cpu| cpu.early_curr == cpu.late_curr));
        assert_eq!(diff.elapsed_ns, None);
    }
}

/// The same guest two seconds later, by hand.
fn later(report: &FailureDumpReport) -> FailureDumpReport {
    let mut later = report.clone();
    let own = later.postmortem.as_mut().unwrap();
    let kernel = own.kernel.as_mut().unwrap();
    *kernel.uptime_ns.as_mut().unwrap() += 2_000_000_000;
    own.event_counters[0].value += 500;
    let task = own
        .tasks
        .iter()
        .position(|task| task.comm == "starve-2")
        .unwrap();
    own.tasks.remove(task);
    let mut new = own.tasks[0].clone();
    (new.pid, new.comm, new.kva) = (777, "late".into(), Hex(0xffff_8880_0000_1000));
    own.tasks.push(new);
    let parked = own.dsqs.iter_mut().find(|dsq| dsq.id.0 == 0xdead5).unwrap();
    (parked.nr, parked.seq) = (8, parked.seq + 2);
    let bss = later
        .maps
        .iter_mut()
        .find(|map| map.name == "demo.bss")
        .unwrap();
    let Some(RenderedValue::Struct { members, .. }) = &mut bss.value else {
        panic!("no variables");
    };
    let parked = members.iter_mut().find(|m| m.name == "nr_parked").unwrap();
    parked.value = RenderedValue::Uint { bits: 64, value: 8 };
    later
}

#[test]
fn what_changed_within_a_boot_is_told_with_rates() {
    let report = entry("stall-6.18").unwrap().report().unwrap();
    let all = between(&report, &later(&report));
    let diff = &all.diff;
    assert!(!diff.other_boot);
    assert_eq!(diff.elapsed_ns, Some(2_000_000_000));
    let counter = &diff.counters[0];
    assert_eq!(counter.late - counter.early, 500);
    assert_eq!(counter.per_1000_s, Some(250_000));
    assert_eq!(diff.tasks_come.len(), 1);
    assert_eq!(diff.tasks_come[0].comm, "late");
    assert_eq!(diff.tasks_gone[0].comm, "starve-2");
    let queue = diff.dsqs.iter().find(|dsq| dsq.id.0 == 0xdead5).unwrap();
    assert_eq!(
        (queue.early_nr, queue.late_nr, queue.put_in, queue.taken_out),
        (Some(6), Some(8), Some(2), Some(0))
    );
    let [variable] = diff.variables.as_slice() else {
        panic!("{:?}", diff.variables);
    };
    assert_eq!((&*variable.map, &*variable.name), ("demo.bss", "nr_parked"));
    let change = &variable.changes[0];
    assert_eq!(
        (change.early.as_deref(), change.late.as_deref()),
        (Some("6"), Some("8"))
    );
    assert_eq!((change.delta, change.per_1000_s), (Some(2), Some(1000)));
    let text = all.to_string();
    for line in [
        "one boot: b was taken 2.000 s after a",
        "  0xdead5 (user): 6 tasks, now 8; 2 put in, none taken out",
        "  demo.bss nr_parked: 6 to 8, +2 (1.000/s)",
        "  come: late[777]",
    ] {
        assert!(
            text.lines().any(|l| l == line),
            "{line:?} is not in\n{text}"
        );
    }
    // And back: time does not run backwards within a boot.
    assert!(between(&later(&report), &report).diff.other_boot);
}

#[test]
fn entries_are_compared_by_key() {
    let report = entry("maps-7.3").unwrap().report().unwrap();
    let mut other = report.clone();
    let hash = other
        .maps
        .iter_mut()
        .find(|map| map.name == "hash_pre")
        .unwrap();
    let count = hash.entries.len();
    let gone = hash.entries.remove(3);
    let mut come = hash.entries[0].clone();
    come.key_hex = "ff ff ff 7f".into();
    come.key = Some(RenderedValue::Uint {
        bits: 32,
        value: 0x7fff_ffff,
    });
    hash.entries.push(come);
    // The order of a hash says nothing.
    hash.entries.reverse();
    let storage = other
        .maps
        .iter_mut()
        .find(|map| map.name == "task_store")
        .unwrap();
    let Some(RenderedValue::Struct { members, .. }) = &mut storage.entries[1].value else {
        panic!("no struct");
    };
    let number = members.iter_mut().find(|m| m.name == "number").unwrap();
    number.value = RenderedValue::Uint {
        bits: 32,
        value: 99,
    };
    let ReportsDiff { diff, .. } = between(&report, &other);
    assert_eq!(diff.entries.len(), 2, "{:?}", diff.entries);
    let hash = diff
        .entries
        .iter()
        .find(|map| map.map == "hash_pre")
        .unwrap();
    assert_eq!(
        (hash.come, hash.gone, hash.changed),
        (1, 1, 0),
        "of {count}"
    );
    let key = |what: &str| {
        let entry = hash.entries.iter().find(|entry| entry.what == what);
        entry.unwrap().key.clone()
    };
    assert_eq!(key("come"), "2147483647");
    assert_eq!(key("gone"), gone.key.unwrap().to_string());
    let storage = diff
        .entries
        .iter()
        .find(|map| map.map == "task_store")
        .unwrap();
    let [entry] = storage.entries.as_slice() else {
        panic!("{storage:?}");
    };
    assert!(entry.key.ends_with("[203]"), "{}", entry.key);
    assert_eq!(entry.changes[0].path, "number");
    assert_eq!(entry.changes[0].late.as_deref(), Some("99"));
}

#[test]
fn reports_of_another_tool_are_compared_by_what_they_have() {
    let report = entry("stall-6.18").unwrap().report().unwrap();
    let mut other = later(&report);
    other.postmortem = None;
    other
        .task_enrichments
        .retain(|task| task.comm != "starve-2");
    let all = between(&report, &other);
    let gone: Vec<&str> = all
        .diff
        .tasks_gone
        .iter()
        .map(|t| t.comm.as_str())
        .collect();
    assert_eq!(gone, ["starve-2"]);
    assert_eq!(all.diff.variables.len(), 1);
    assert!(
        all.diff
            .not_compared
            .iter()
            .any(|why| why.contains("another tool's"))
    );
}
