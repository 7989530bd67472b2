//! Integers that are really pointers: against the source of the scheduler that keeps them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::source::Image;
use scx_postmortem_format::report::{
    FailureDumpMap, FailureDumpReport, RecoveredPointers, RenderedValue,
};
use scx_postmortem_tests::{Entry, corpus, entry};

/// The guest of the corpus that runs `bpf/maps.bpf.c`.
const CAPTURE: &str = "maps-7.3";
/// The corpus capture of a real scheduler.
const REAL: &str = "p2dq-7.3";
/// A file to read instead, for cores that are not in the corpus.
const ANOTHER: &str = "SCX_POSTMORTEM_MAPS_CORE";

/// What `bpf/maps.bpf.c` and `bpf/zoo.bpf.c` say in their comments: which integer is a pointer to what.
const TRUE_POINTERS: [(&str, &str, &str); 12] = [
    (".bss", "last_task_raw", "struct task_struct"),
    (".bss", "last_taskc_raw", "struct task_arena"),
    (".bss", "pool_raw", "struct task_arena"),
    (".bss", "task_raw", "struct task_struct"),
    (".bss", "thing_head_raw", "struct thing"),
    ("struct task_arena", "parent_raw", "struct task_arena"),
    ("struct task_arena", "task_raw", "struct task_struct"),
    ("struct task_map_value", "task_raw", "struct task_struct"),
    ("struct task_map_value", "taskc_raw", "struct task_arena"),
    ("struct thing", "peer_raw", "struct thing"),
    ("struct thing", "task_raw", "struct task_struct"),
    ("struct thing", "value_raw", "struct small"),
];

/// The capture.
fn capture() -> PathBuf {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    let shipped = corpus.join(CAPTURE).join("guest.core.zst");
    std::env::var_os(ANOTHER).map_or(shipped, PathBuf::from)
}

fn report(path: &Path, no_casts: bool) -> FailureDumpReport {
    let kernel = Kernel::find(Image::open(path).unwrap(), &Overrides::default()).unwrap();
    let options = Options {
        no_casts,
        ..Options::default()
    };
    analysis::analyze(&kernel, &options)
}

fn recovered(report: &FailureDumpReport) -> &RecoveredPointers {
    let own = report.postmortem.as_deref().unwrap();
    own.recovered_pointers.as_ref().unwrap()
}

fn map<'r>(report: &'r FailureDumpReport, name: &str) -> &'r FailureDumpMap {
    report.maps.iter().find(|m| m.name == name).unwrap()
}

fn number(value: &RenderedValue, path: &str) -> u64 {
    let found = value.get(path).unwrap_or_else(|| panic!("no {path}"));
    found
        .as_u64()
        .unwrap_or_else(|| panic!("{path}: {found:?}"))
}

/// The text of a `char` array, whichever kind of integer its elements are.
fn text(value: &RenderedValue, path: &str) -> String {
    let elements = value.get(path).and_then(|v| v.elements()).unwrap();
    let bytes = elements.iter().map(|e| match e {
        RenderedValue::Char { value } => *value,
        other => u8::try_from(other.as_i64().unwrap()).unwrap(),
    });
    let bytes: Vec<u8> = bytes.take_while(|&b| b != 0).collect();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn exactly_the_pointers_of_the_source_are_recovered() {
    let path = capture();
    let report = report(&path, false);
    let recovered = recovered(&report);
    let found: BTreeSet<_> = recovered
        .pointers
        .iter()
        .map(|p| {
            let target = p.target.as_deref().unwrap_or("nothing known");
            (p.parent.as_str(), p.member.as_str(), target)
        })
        .collect();
    assert_eq!(found, BTreeSet::from(TRUE_POINTERS));
    assert_eq!(recovered.contradicted, []);
    assert_eq!(recovered.unread_programs, 0);
    for pointer in &recovered.pointers {
        assert!(!pointer.evidence.is_empty(), "{pointer:?}");
        for evidence in &pointer.evidence {
            let source = evidence.source.as_deref().unwrap_or_default();
            assert!(
                source.starts_with("maps.bpf.c:") || source.starts_with("zoo.bpf.c:"),
                "{evidence:?}"
            );
        }
    }
}

#[test]
fn they_are_shown_as_what_they_point_to() {
    let path = capture();
    let report = report(&path, false);
    let own = report.postmortem.as_deref().unwrap();
    let storage = map(&report, "task_map");
    let owners = &own
        .maps
        .iter()
        .find(|m| m.name == "task_map")
        .unwrap()
        .owners;
    assert!(owners.len() > 20, "{} owners", owners.len());
    assert_eq!(owners.len(), storage.entries.len());
    let mut parents = 0;
    for (entry, owner) in storage.entries.iter().zip(owners) {
        let value = entry.value.as_ref().unwrap();
        // The task that is pointed to is the task whose storage this is.
        assert_eq!(number(value, "task_raw"), owner.kva.0);
        assert_eq!(number(value, "task_raw.pid"), owner.id.unwrap());
        // The context in the arena is that of this task.
        let tid = number(value, "tid");
        assert_eq!(number(value, "taskc_raw"), number(value, "taskc"));
        assert_eq!(number(value, "taskc_raw.tid"), tid);
        assert_eq!(number(value, "taskc_raw.pid"), owner.id.unwrap());
        assert_eq!(number(value, "taskc_raw.magic"), 0x7a5c);
        assert_eq!(number(value, "taskc_raw.task_raw.pid"), owner.id.unwrap());
        assert!(!text(value, "taskc_raw.comm").is_empty());
        if number(value, "taskc_raw.parent_raw") != 0 {
            assert_eq!(number(value, "taskc_raw.parent_raw.tid"), tid / 2);
            parents += 1;
        }
        for (path, annotation) in [("task_raw", "cast→kernel"), ("taskc_raw", "cast→arena")] {
            match value.get(path).unwrap() {
                RenderedValue::Ptr {
                    cast_annotation, ..
                } => assert_eq!(cast_annotation.as_deref(), Some(annotation)),
                other => panic!("{other:?}"),
            }
        }
        // Numbers stay numbers.
        for path in ["tid", "started_ns", "taskc_raw.runs", "taskc_raw.total_ns"] {
            let value = value.get(path).unwrap();
            assert!(
                matches!(value, RenderedValue::Uint { .. }),
                "{path}: {value:?}"
            );
        }
    }
    assert!(parents > 20, "{parents} parents");
}

#[test]
fn without_it_they_are_the_same_numbers() {
    let path = capture();
    let (with, without) = (report(&path, false), report(&path, true));
    let own = without.postmortem.as_deref().unwrap();
    assert_eq!(own.recovered_pointers, None);
    let (with, without) = (map(&with, "task_map"), map(&without, "task_map"));
    for (with, without) in with.entries.iter().zip(&without.entries) {
        let (with, without) = (
            with.value.as_ref().unwrap(),
            without.value.as_ref().unwrap(),
        );
        for member in ["task_raw", "taskc_raw"] {
            let plain = without.member(member).unwrap();
            assert!(matches!(plain, RenderedValue::Uint { .. }), "{plain:?}");
            assert_eq!(plain.as_u64().unwrap(), number(with, member));
        }
    }
}

#[test]
fn schedulers_without_such_integers_have_none() {
    let plain = |e: &&Entry| e.name != CAPTURE && e.name != REAL;
    for entry in corpus().unwrap().iter().filter(plain) {
        let report = entry.report().unwrap();
        let recovered = recovered(&report);
        assert!(recovered.programs > 0, "{}", entry.name);
        assert!(recovered.instructions > 0, "{}", entry.name);
        assert_eq!(recovered.pointers, [], "{}", entry.name);
        assert_eq!(recovered.contradicted, [], "{}", entry.name);
    }
}

#[test]
fn a_real_scheduler_keeps_a_task_in_an_integer() {
    let report = entry(REAL).unwrap().report().unwrap();
    let recovered = recovered(&report);
    let [tptr] = recovered.pointers.as_slice() else {
        panic!("{:?}", recovered.pointers);
    };
    assert_eq!(tptr.parent, "struct scx_task_map_val");
    assert_eq!((tptr.member.as_str(), tptr.offset), ("tptr", 8));
    assert_eq!(tptr.target.as_deref(), Some("struct task_struct"));
    // mval->tptr = (__u64) p, in scx_task_alloc().
    let [evidence] = tptr.evidence.as_slice() else {
        panic!("{:?}", tptr.evidence);
    };
    assert_eq!(evidence.source.as_deref(), Some("sdt_task.bpf.c:51"));
    // Each leads to the task that owns the value.
    let map = map(&report, "scx_task_map");
    let mut tasks = 0;
    for element in &map.entries {
        let value = element.value.as_ref().unwrap();
        let key = element.key.as_ref().unwrap().as_u64();
        assert_eq!(value.member("tptr").unwrap().as_u64(), key);
        tasks += usize::from(value.get("tptr.pid").is_some());
    }
    assert!(tasks > 50, "{tasks} tasks");
}
