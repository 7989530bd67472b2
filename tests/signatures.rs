//! Failure signatures: one for the captures of one bug, others for others.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use scx_postmortem_analyze::analysis::Options;
use scx_postmortem_analyze::golden::report_of;
use scx_postmortem_analyze::signature::Signature;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn signature(name: &str) -> Option<Signature> {
    let tables = path("findings/kernel-7.3.tables.zst");
    let report = report_of(&path(name), Some(&tables), &Options::default()).unwrap();
    Signature::of(&report)
}

fn text(name: &str) -> String {
    signature(name)
        .unwrap_or_else(|| panic!("{name}: no failure"))
        .text()
}

/// Two boots on 7.3, one of them with four times the memory, and one on 6.18: each put its kernel
/// somewhere else, and starved other tasks for other times.
#[test]
fn a_stall_has_one_signature_on_all_boots_and_kernels() {
    let one = text("signatures/stall-7.3.core.zst");
    assert_eq!(
        one,
        "scx-failure-signature 1\nscheduler=demo_stall\nexit=1026\nprogram=\nline=\nverdict=queue-never-consumed\nmessage=\nstack=\n"
    );
    assert_eq!(one, text("signatures/stall-2g-7.3.core.zst"));
    assert_eq!(one, text("../corpus/stall-6.18/guest.core.zst"));
    // What people have written down: this changes only with the version.
    let id = signature("signatures/stall-7.3.core.zst").unwrap().id();
    assert_eq!(id, "1-c618c8ce9ad22cda");
}

/// Before the kernel has filled the exit record, and after.
#[test]
fn an_error_has_one_signature_whenever_it_is_captured() {
    let after = text("../corpus/error-7.3/guest.core.zst");
    assert!(
        after.contains("\nexit=1025\nprogram=error_enqueue\nline=error.bpf.c:42\nverdict=error\n"),
        "{after}"
    );
    assert_eq!(after, text("findings/claimed.core.zst"));
}

#[test]
fn other_failures_have_other_signatures() {
    let mut seen = BTreeMap::new();
    let names = [
        "affinity", "arena", "bypass", "claimed", "hog", "idle", "lock", "ring", "slow",
        "stranded", "stuck",
    ];
    for name in names {
        let signature = signature(&format!("findings/{name}.core.zst")).unwrap();
        let other = seen.insert(signature.id(), name);
        assert_eq!(other, None, "{name}: {}", signature.text());
    }
    let stall = signature("signatures/stall-7.3.core.zst").unwrap();
    let p2dq = signature("../corpus/p2dq-7.3/guest.core.zst").unwrap();
    assert_eq!(p2dq.scheduler.as_deref(), Some("p2dq"));
    for signature in [stall, p2dq] {
        assert_eq!(
            seen.insert(signature.id(), "more"),
            None,
            "{}",
            signature.text()
        );
    }
    for healthy in ["fifo", "healthy"] {
        assert_eq!(signature(&format!("findings/{healthy}.core.zst")), None);
    }
}
