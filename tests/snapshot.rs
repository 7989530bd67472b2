//! The view of reports by name, on a real guest in which one scheduler was loaded twice from one
//! file: the first one is gone, but somebody holds its variables.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::Path;
use std::sync::OnceLock;

use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::snapshot::{
    Snapshot, SnapshotEntry, SnapshotError, SnapshotField, pickers,
};
use scx_postmortem_analyze::source::Image;
use scx_postmortem_analyze::tables;
use scx_postmortem_format::report::{FailureDumpReport, FailureDumpReportAny, RenderedValue};

fn report() -> &'static FailureDumpReport {
    static REPORT: OnceLock<FailureDumpReport> = OnceLock::new();
    REPORT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("findings");
        let image = Image::open(&folder.join("twice.core.zst")).unwrap();
        let image = tables::supply(image, &folder.join("kernel-7.3.tables.zst")).unwrap();
        let kernel = Kernel::find(image, &Overrides::default()).unwrap();
        analysis::analyze(&kernel, &Options::default())
    })
}

/// The same from a file, with members that nobody knows and without those that only we write, as
/// another tool may have it.
fn of_another_tool() -> FailureDumpReport {
    let any = FailureDumpReportAny::from(report().clone());
    let mut json: serde_json::Value = serde_json::from_str(&any.to_json().unwrap()).unwrap();
    json.as_object_mut().unwrap().remove("postmortem").unwrap();
    json["a_new_section"] = serde_json::json!([{"x": 1}]);
    for map in json["maps"].as_array_mut().unwrap() {
        map["btf_id"] = 7.into();
        if let Some(members) = map.pointer_mut("/value/members/0") {
            members["offset"] = 0.into();
        }
    }
    let FailureDumpReportAny::Single(report) =
        FailureDumpReportAny::parse(&json.to_string()).unwrap()
    else {
        panic!("not a single report");
    };
    *report
}

/// Without what tells the two copies apart: as where the walk of the programs failed.
fn ambiguous() -> FailureDumpReport {
    FailureDumpReport {
        active_map_kvas: Vec::new(),
        ..report().clone()
    }
}

const COUNTERS: [&str; 4] = ["nr_direct", "nr_niced", "nr_bound", "nr_timed"];

/// The counters of the running scheduler's `.bss`, read from the report by hand.
fn running(report: &FailureDumpReport) -> Vec<u64> {
    let maps = report.maps.iter();
    let mut bss =
        maps.filter(|map| map.name == "demo.bss" && report.active_map_kvas.contains(&map.map_kva));
    let value = bss.next().unwrap().value.as_ref().unwrap();
    assert!(bss.next().is_none());
    let counters = COUNTERS.iter().map(|name| value.member(name).unwrap());
    counters.map(|value| value.as_u64().unwrap()).collect()
}

#[test]
fn the_running_copy_is_found_among_two_of_one_name() {
    let other = of_another_tool();
    for report in [report(), &other] {
        let snapshot = Snapshot::new(report);
        for section in ["demo.bss", "demo.data", "demo.rodata"] {
            let maps = report.maps.iter().filter(|map| map.name == section);
            assert_eq!(maps.count(), 2, "{section}");
        }
        let active = snapshot.active().unwrap();
        assert!(active.map_count() < snapshot.map_count());
        let running = running(report);
        // The load runs under the second one; the first one had a second without any.
        assert!(running.iter().all(|&count| count > 0), "{running:?}");
        for (name, value) in COUNTERS.iter().zip(&running) {
            assert_eq!(snapshot.var(name).as_u64().unwrap(), *value, "{name}");
            assert_eq!(snapshot.live_var(name).as_u64().unwrap(), *value, "{name}");
            assert_eq!(active.var(name).as_u64().unwrap(), *value, "{name}");
            let copies: Vec<_> = snapshot.vars(name).collect();
            assert_eq!(copies.len(), 2);
            assert!(copies.iter().all(|(map, _)| *map == "demo.bss"));
            let values: Vec<u64> = copies.iter().map(|(_, f)| f.as_u64().unwrap()).collect();
            assert!(values.contains(value), "{values:?}");
            assert_eq!(active.vars(name).count(), 1);
        }
        // Constants and variables with a value of their own, one copy each.
        assert_eq!(snapshot.var("slice_us").as_u64().unwrap(), 5000);
        assert_eq!(snapshot.var("start_marker").as_i64().unwrap(), -20);
        let wrong = snapshot.var("start_marker").as_u64().unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "path 'start_marker': cannot read as u64 — actual rendered variant is Int(negative)"
        );
    }
}

#[test]
fn two_copies_that_nothing_tells_apart_are_refused_by_name() {
    let report = ambiguous();
    let snapshot = Snapshot::new(&report);
    let Err(SnapshotError::NoActiveScheduler { reason }) = snapshot.active() else {
        panic!("one was chosen");
    };
    assert!(
        reason.starts_with(
            "snapshot has multiple same-name copies of demo's global-section maps (demo.bss × 2, demo.data × 2, demo.rodata × 2) and the principled target-free prog_idr walker did not publish"
        ),
        "{reason}"
    );
    let SnapshotField::Missing(SnapshotError::AmbiguousVar {
        requested,
        found_in,
    }) = snapshot.var("nr_timed")
    else {
        panic!("one was chosen");
    };
    assert_eq!(requested, "nr_timed");
    assert_eq!(found_in, ["demo.bss", "demo.bss"]);
    assert!(matches!(
        snapshot.live_var("nr_timed").error(),
        Some(SnapshotError::NoActiveScheduler { .. })
    ));
}

#[test]
fn pickers_take_all_variables_from_one_copy() {
    let report = ambiguous();
    let snapshot = Snapshot::new(&report);
    let wanted = running(self::report());
    let fields = snapshot
        .live_vars_via(&COUNTERS, pickers::max_by_sum_u64)
        .unwrap();
    let values: Vec<u64> = fields.iter().map(|f| f.as_u64().unwrap()).collect();
    assert_eq!(values, wanted);
    // Another order of names is another order of values, of the same copy.
    let turned: Vec<&str> = COUNTERS.iter().rev().copied().collect();
    let fields = snapshot
        .live_vars_via(&turned, pickers::max_by_sum_u64)
        .unwrap();
    let values: Vec<u64> = fields.iter().rev().map(|f| f.as_u64().unwrap()).collect();
    assert_eq!(values, wanted);
    // A picker sees both copies, each whole, and is asked once.
    let mut asked = 0;
    let last = snapshot.live_vars_via(&COUNTERS, |rows| {
        asked += 1;
        assert_eq!(rows.len(), 2);
        assert!(
            rows.iter()
                .all(|(map, row)| *map == "demo.bss" && row.len() == 4)
        );
        Some(1)
    });
    assert_eq!(asked, 1);
    let first = snapshot.live_vars_via(&COUNTERS, |_| Some(0)).unwrap();
    let sum =
        |fields: &[SnapshotField<'_>]| -> u64 { fields.iter().map(|f| f.as_u64().unwrap()).sum() };
    let (first, last) = (sum(&first), sum(&last.unwrap()));
    assert_ne!(first, last);
    assert_eq!(first.max(last), wanted.iter().sum::<u64>());
    let busiest = snapshot.live_var_via("nr_timed", pickers::max_by_counter_value);
    assert_eq!(busiest.as_u64().unwrap(), wanted[3]);
    // .bss and .rodata are two maps: no one map has both.
    let Err(SnapshotError::VarNotFound {
        requested,
        available,
    }) = snapshot.live_vars_via(&["nr_timed", "slice_us"], |_| Some(0))
    else {
        panic!("found in one map");
    };
    assert_eq!(requested, "[nr_timed, slice_us]");
    assert_eq!(available.iter().filter(|map| *map == "demo.bss").count(), 2);
    for (chosen, said) in [
        (None, "returned None (no candidate matched"),
        (
            Some(2),
            "returned index 2 out of range (candidate count = 2)",
        ),
    ] {
        let error = snapshot.live_vars_via(&COUNTERS, |_| chosen).unwrap_err();
        assert!(matches!(error, SnapshotError::ProjectionFailed { .. }));
        assert!(error.to_string().contains(said), "{error}");
        let field = snapshot.live_var_via("nr_timed", |_| chosen);
        assert!(field.error().unwrap().to_string().contains(said));
    }
    let none = snapshot.live_vars_via(&[], |_| Some(0)).unwrap_err();
    assert!(none.to_string().contains("empty names slice"));
}

#[test]
fn addresses_that_no_map_has_exclude_all_of_them() {
    let report = FailureDumpReport {
        active_map_kvas: vec![0x1000],
        ..report().clone()
    };
    let active = Snapshot::new(&report).active().unwrap();
    assert_eq!(active.map_count(), 0);
    let errors = [
        active.map("demo.bss").unwrap_err(),
        active.var("nr_timed").error().unwrap().clone(),
        active.live_vars_via(&COUNTERS, |_| Some(0)).unwrap_err(),
    ];
    for error in errors {
        let SnapshotError::ActiveFilterExcludedMaps {
            active_obj,
            excluded_maps,
            whitelist_kvas,
            ..
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!(active_obj, "demo");
        assert_eq!(excluded_maps.len(), 6);
        assert_eq!(whitelist_kvas, &[0x1000]);
        let text = error.to_string();
        assert!(
            text.contains(&format!("demo.bss@{:#x}", excluded_maps[0].map_kva))
                || text.contains("demo.bss@0x"),
            "{text}"
        );
        assert!(text.ends_with("(all of them are at other addresses: maps of another instance)"));
    }
}

#[test]
fn entries_keys_and_cpus_of_the_scheduler_s_maps() {
    let snapshot = Snapshot::new(report());
    // What init wrote: i * 7919 → { i * i, … }.
    let still = snapshot.map("still_hash").unwrap();
    for i in 0..40u64 {
        let entry = still.find(|e| e.key("").as_u64() == Ok(i * 7919));
        assert_eq!(entry.get("square").as_u64(), Ok(i * i));
        let parts = entry.get("parts").as_u32_array().unwrap();
        assert_eq!(
            parts[..2].iter().map(|&p| u64::from(p)).collect::<Vec<_>>(),
            [i, i + 1000]
        );
    }
    assert_eq!(still.filter(|_| true).len(), 40);
    let most = still.max_by(|e| e.get("square").as_u64().unwrap());
    assert_eq!(most.key("").as_u64(), Ok(39 * 7919));
    let SnapshotEntry::Missing(SnapshotError::NoMatch {
        op,
        len,
        available_keys,
        ..
    }) = still.find(|_| false)
    else {
        panic!("found");
    };
    assert_eq!((op.as_str(), len, available_keys.len()), ("find", 40, 3));
    let entry = still.at(0);
    assert!(matches!(
        entry.get("squared").error(),
        Some(SnapshotError::FieldNotFound { available, .. }) if available == &["square", "parts", "label"]
    ));
    assert!(matches!(
        entry.get("square.x").error(),
        Some(SnapshotError::NotAStruct { kind, .. }) if kind == "Uint"
    ));
    assert!(matches!(
        entry.get("square..x").error(),
        Some(SnapshotError::EmptyPathComponent { .. })
    ));
    assert!(matches!(
        entry.cpu_sum_u64("square"),
        Err(SnapshotError::TypeMismatch { expected, actual, .. })
            if expected == "Percpu / PercpuHash" && actual == "Hash"
    ));

    // Two slots for each of two CPUs; the scheduler uses the first.
    let stats = snapshot.map("cpu_stats").unwrap();
    let ran = |cpu| stats.cpu(cpu).at(0).get("ran").as_u64().unwrap();
    assert!(ran(0) > 0 && ran(1) > 0);
    let slot = stats.at(0);
    assert_eq!(slot.cpu_sum_u64("ran"), Ok(ran(0) + ran(1)));
    assert_eq!(slot.cpu_max_u64("ran"), Ok(ran(0).max(ran(1))));
    assert_eq!(slot.cpu_min_u64("ran"), Ok(ran(0).min(ran(1))));
    assert_eq!(slot.cpu_sum_i64("ran"), Ok((ran(0) + ran(1)).cast_signed()));
    assert_eq!(slot.cpu_sum_f64("ran"), Ok((ran(0) + ran(1)) as f64));
    assert_eq!(stats.at(1).cpu_sum_u64("ran"), Ok(0));
    assert_eq!(slot.key("").as_u64(), Ok(0));
    let mut seen = Vec::new();
    slot.cpu_each("ran", |cpu, value| {
        seen.push((cpu, value.as_u64().unwrap()))
    })
    .unwrap();
    assert_eq!(seen, [(0, ran(0)), (1, ran(1))]);
    assert!(matches!(
        stats.at(2),
        SnapshotEntry::Missing(SnapshotError::IndexOutOfRange {
            index: 2,
            len: 2,
            ..
        })
    ));
    assert!(matches!(
        stats.cpu(64).at(0),
        SnapshotEntry::Missing(SnapshotError::PerCpuSlot {
            cpu: 64,
            unmapped: false,
            ..
        })
    ));
    let by_affinity = snapshot.map("by_affinity").unwrap();
    let bound = by_affinity.find(|e| e.key("").as_u64() == Ok(1));
    let narrow: u64 = (0..2)
        .filter_map(|cpu| {
            let entries = by_affinity.cpu(cpu).filter(|_| true);
            let index =
                (0..entries.len()).find(|&i| by_affinity.at(i).key("").as_u64() == Ok(1))?;
            entries[index].get("").as_u64().ok()
        })
        .sum();
    assert_eq!(bound.cpu_sum_u64(""), Ok(narrow));
    assert!(narrow > 0);

    // Arrays of several slots are out of this view's reach, as in the live tool's.
    let table = snapshot.map("table").unwrap();
    assert_eq!(table.raw().array_entries.len(), 8);
    assert!(matches!(
        table.at(0),
        SnapshotEntry::Missing(SnapshotError::IndexOutOfRange { len: 0, .. })
    ));
    // Nobody reads the ring buffer, so it is full.
    let ring = snapshot.map("events").unwrap().ringbuf().unwrap();
    assert_eq!(ring.capacity, 16384);
    assert!(ring.pending_bytes > 16000);
    assert!(snapshot.map("arena").unwrap().arena().unwrap().pages.len() >= 3);
    let task = snapshot.map("task_ctxs").unwrap();
    assert!(task.filter(|e| e.get("marker").as_i64() == Ok(-20)).len() > 10);
}

#[test]
fn rows_of_the_report_are_found_by_what_they_are_of() {
    let snapshot = Snapshot::new(report());
    let report = snapshot.report();
    assert_eq!(snapshot.rq_scx_states().len(), 2);
    assert_eq!(snapshot.per_cpu_time().len(), 2);
    assert_eq!(snapshot.per_cpu_time_at(1).unwrap().cpu, 1);
    assert!(snapshot.per_cpu_time_at(2).is_none());
    assert_eq!(snapshot.per_node_numa_at(0).unwrap().node, 0);
    assert!(snapshot.per_node_numa_at(1).is_none());
    assert_eq!(snapshot.task_enrichment_by_pid(1).unwrap().pid, 1);
    assert!(snapshot.task_enrichment_by_pid(-5).is_none());
    let program = snapshot
        .prog_runtime_stats_by_name("healthy_enqueue")
        .unwrap();
    assert!(program.cnt > 0);
    assert!(snapshot.prog_runtime_stats_by_name("enqueue").is_none());
    assert!(snapshot.dsq_states().iter().any(|dsq| dsq.id == 0x7e57));
    assert!(snapshot.scx_sched_state().is_some());
    assert!(snapshot.probe_counters().is_none());
    assert_eq!(snapshot.event_counter_timeline().len(), 1);
    assert_eq!(snapshot.cgroup_psi(), report.cgroup_psi);
    assert_eq!(snapshot.per_node_numa(), report.per_node_numa);
    assert_eq!(snapshot.task_enrichments(), report.task_enrichments);
    assert_eq!(snapshot.prog_runtime_stats(), report.prog_runtime_stats);
    for reason in [
        snapshot.scx_walker_unavailable(),
        snapshot.task_enrichments_unavailable(),
        snapshot.prog_runtime_stats_unavailable(),
        snapshot.per_node_numa_unavailable(),
        snapshot.sdt_alloc_unavailable().filter(|_| false),
    ] {
        assert_eq!(reason, None);
    }
    assert_eq!(
        snapshot.sdt_alloc_unavailable(),
        report.sdt_alloc_unavailable.as_deref()
    );
}

#[test]
fn a_section_that_could_not_be_read_is_not_a_missing_variable() {
    let mut report = report().clone();
    for map in report.maps.iter_mut().filter(|map| map.name == "demo.bss") {
        map.value = None;
        map.error = Some("page not captured".into());
    }
    let field = Snapshot::new(&report).var("nr_timed");
    assert_eq!(
        field.error().unwrap().to_string(),
        "map 'demo.bss' contents unavailable (render failed at capture): page not captured"
    );
    // A pointer that was not followed is no struct.
    let value = RenderedValue::ptr(0xffff_8880_0000_0000);
    report.maps[0].name = "x.bss".into();
    report.maps[0].value = Some(RenderedValue::Struct {
        type_name: None,
        members: vec![scx_postmortem_format::report::RenderedMember::new(
            "p", value,
        )],
    });
    let field = Snapshot::new(&report).var("p").get("q");
    assert!(matches!(
        field.error(),
        Some(SnapshotError::NotAStruct { kind, walked, .. }) if kind == "Ptr" && walked == "p"
    ));
}
