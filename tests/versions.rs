//! Captures and reports of each version that was released, read by the code of today. What is in
//! `versions/` is never made again: it is what people have.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::{Path, PathBuf};

use scx_postmortem_analyze::error::OpenError;
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::snapshot::Snapshot;
use scx_postmortem_analyze::source::Image;
use scx_postmortem_analyze::{analysis, tables};
use scx_postmortem_format::capture::{Capture, Upgrade, upgraded};
use scx_postmortem_format::report::{FailureDumpReportAny, POSTMORTEM_VERSION, ReportError};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("versions/1")
}

fn text(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

#[test]
fn a_capture_of_version_1_is_read() {
    let image = Image::open(&folder().join("single.core.zst")).unwrap();
    let digest = image.digest.clone();
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("findings/kernel-7.3.tables.zst");
    let kernel = Kernel::find(
        tables::supply(image, &shared).unwrap(),
        &Overrides::default(),
    )
    .unwrap();
    // A reduced capture has the pages that the reports of its time read; later ones may want more.
    let report = analysis::analyze(&kernel, &analysis::Options::default());
    let own = report.postmortem.as_ref().unwrap();
    assert_eq!(
        own.scheduler.as_ref().unwrap().ops_name.as_deref(),
        Some("demo_fifo")
    );
    assert_eq!(
        own.kernel.as_ref().unwrap().release.as_deref(),
        Some("7.3.4+deb13-cloud-amd64")
    );
    assert_eq!(
        own.analyzer,
        concat!("scx-postmortem ", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(own.input.as_ref().unwrap().digest, digest);
    // The digest of a file does not change with the code that reads it.
    assert_eq!(digest.as_deref(), Some("230a46e40b660d3898cf980c40651bdf"));
    assert!(report.task_enrichments.len() > 50);
    assert!(report.dsq_states.iter().any(|dsq| dsq.id == 0x60d5));
}

#[test]
fn a_capture_of_version_1_0_becomes_one_of_today_with_the_same_content() {
    let old = std::fs::read(folder().join("single.core.zst")).unwrap();
    assert_eq!((old[16], old[18]), (1, 0));
    let Upgrade::Start(start) = upgraded(&old).unwrap() else {
        panic!("nothing to upgrade");
    };
    let mut new = old.clone();
    new[..start.len()].copy_from_slice(&start);
    assert_eq!((new[16], new[18]), (1, 1));
    assert_eq!(upgraded(&new).unwrap(), Upgrade::Current);
    let (before, after) = (Capture::open(&old).unwrap(), Capture::open(&new).unwrap());
    assert_eq!(before.preamble().digest, None);
    assert_eq!(after.preamble().digest, before.digest());
    assert_eq!(after.digest(), before.digest());
    assert_eq!(after.notes(), before.notes());
    assert!(after.verify(None).is_sound());
    // A digest that is not that of the frames is noticed.
    let mut wrong = new.clone();
    wrong[210] ^= 1;
    let hash = xxhash_rust::xxh3::xxh3_64(&wrong[..248]);
    wrong[248..256].copy_from_slice(&hash.to_le_bytes());
    let verified = Capture::open(&wrong).unwrap().verify(None);
    assert!(verified.problems[0].contains("the preamble says that the capture's digest is"));
    // Of a part of a file nobody knows the digest of the whole.
    let upgrade = upgraded(&old[..old.len() - 1]).unwrap();
    assert!(matches!(upgrade, Upgrade::Impossible(_)), "{upgrade:?}");
}

/// Every member of `old` is in `new` with the same value: nothing that was written is lost.
fn kept(old: &Value, new: &Value, path: &str) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (name, value) in old {
                let path = format!("{path}.{name}");
                let now = new.get(name);
                kept(
                    value,
                    now.unwrap_or_else(|| panic!("{path} is lost")),
                    &path,
                );
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            assert_eq!(old.len(), new.len(), "{path}");
            for (i, (old, new)) in old.iter().zip(new).enumerate() {
                kept(old, new, &format!("{path}[{i}]"));
            }
        }
        (old, new) => assert_eq!(old, new, "{path}"),
    }
}

#[test]
fn reports_of_version_1_are_read_and_nothing_of_them_is_lost() {
    for (name, schema) in [
        ("single.report.json", "single"),
        ("dual.report.json", "dual"),
        ("degraded.report.json", "degraded"),
    ] {
        let json = text(name);
        let any = FailureDumpReportAny::parse(&json).unwrap();
        assert_eq!(any.schema(), schema);
        let again = any.to_json().unwrap();
        kept(
            &serde_json::from_str(&json).unwrap(),
            &serde_json::from_str(&again).unwrap(),
            name,
        );
        assert!(!any.to_string().is_empty());
    }
    let FailureDumpReportAny::Single(report) =
        FailureDumpReportAny::parse(&text("single.report.json")).unwrap()
    else {
        panic!("not a single one");
    };
    let snapshot = Snapshot::new(&report);
    assert_eq!(snapshot.task_enrichment_by_pid(1).unwrap().comm, "sh");
    let FailureDumpReportAny::Dual(report) =
        FailureDumpReportAny::parse(&text("dual.report.json")).unwrap()
    else {
        panic!("not a dual one");
    };
    assert!(report.early.is_some());
    assert!(
        report
            .late
            .postmortem
            .unwrap()
            .diff
            .unwrap()
            .elapsed_ns
            .is_some()
    );
}

#[test]
fn what_comes_from_the_future_is_refused_with_the_version_that_it_needs() {
    // A report of the next version, also one in which a member is something else.
    for change in [None, Some(("tasks", Value::from("gone")))] {
        for half in [None, Some("late")] {
            let name = if half.is_some() {
                "dual.report.json"
            } else {
                "single.report.json"
            };
            let mut json: Value = serde_json::from_str(&text(name)).unwrap();
            let own = match half {
                Some(half) => &mut json[half]["postmortem"],
                None => &mut json["postmortem"],
            };
            own["version"] = (POSTMORTEM_VERSION + 1).into();
            if let Some((name, value)) = &change {
                own[*name] = value.clone();
            }
            let error = FailureDumpReportAny::parse(&json.to_string()).unwrap_err();
            assert!(
                matches!(
                    error,
                    ReportError::NewerVersion {
                        found: 2,
                        supported: 1
                    }
                ),
                "{error:?}"
            );
            assert_eq!(
                error.to_string(),
                "the report's `postmortem` has version 2, this program reads up to 1; use a release that reads version 2"
            );
        }
    }
    // A capture: the major version is in bytes 16 and 17, the hash of it all at the end.
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("future.core.zst");
    let mut bytes = std::fs::read(folder().join("single.core.zst")).unwrap();
    bytes[16] = 2;
    let preamble = 8 + u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
    let hash = xxhash_rust::xxh3::xxh3_64(&bytes[..preamble - 8]);
    bytes[preamble - 8..preamble].copy_from_slice(&hash.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let error = Image::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::Capture { .. }));
    assert!(
        error.to_string().contains(
            "the capture has container version 2.0, this program reads up to 1.x; use a newer release"
        ),
        "{error}"
    );
}
