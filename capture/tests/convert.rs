//! `capture convert` as a user or a script meets it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::source::{self, Image};
use scx_postmortem_format::capture::Capture;
use scx_postmortem_format::report::FailureDumpReportAny;

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus/stall-6.18/guest.core.zst")
}

/// The ELF core inside the shipped stall capture.
fn core(dir: &Path) -> PathBuf {
    let elf = dir.join("core.elf");
    source::export(&shipped(), &elf, &|_, _| ()).unwrap();
    elf
}

fn convert(core: &Path, output: &Path, more: &[&str], threads: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_capture"))
        .args([
            "convert".as_ref(),
            core.as_os_str(),
            "-o".as_ref(),
            output.as_os_str(),
        ])
        .args(more)
        .env("RAYON_NUM_THREADS", threads)
        .output()
        .unwrap()
}

/// Converts with one thread and with two: the capture and its bytes, which are the same.
fn same_on_any_threads(dir: &Path, elf: &Path, options: &[&str]) -> (PathBuf, Vec<u8>) {
    let (one, two) = (dir.join("one.core.zst"), dir.join("two.core.zst"));
    for (output, threads) in [(&one, "1"), (&two, "2")] {
        let done = convert(elf, output, options, threads);
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
    let bytes = fs::read(&one).unwrap();
    assert!(
        bytes == fs::read(&two).unwrap(),
        "the bytes depend on the number of threads"
    );
    (one, bytes)
}

/// The report on a file, without what tells one file from another.
fn json(file: &Path) -> String {
    let kernel = Kernel::find(Image::open(file).unwrap(), &Overrides::default()).unwrap();
    let mut report = analysis::analyze(&kernel, &Options::default());
    let input = report.postmortem.as_mut().unwrap().input.as_mut().unwrap();
    input.digest = None;
    FailureDumpReportAny::from(report).to_json().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_converted_core_gives_the_same_report_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let elf = core(dir.path());
    let (one, two) = (
        dir.path().join("one.core.zst"),
        dir.path().join("two.core.zst"),
    );
    for (output, threads) in [(&one, "1"), (&two, "2")] {
        let done = convert(&elf, output, &[], threads);
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        assert!(
            done.stderr.is_empty() && done.stdout.is_empty(),
            "talks in a pipe"
        );
    }
    let bytes = fs::read(&one).unwrap();
    assert!(
        bytes == fs::read(&two).unwrap(),
        "the bytes depend on the number of threads"
    );
    assert_eq!(json(&one), json(&shipped()));
    assert!(bytes.len() < 40 << 20, "{} bytes", bytes.len());

    let capture = Capture::open(bytes).unwrap();
    let manifest = capture.manifest().unwrap();
    assert_eq!(
        manifest.kernel_release.as_deref(),
        Some("6.18.15+deb13-cloud-amd64")
    );
    assert_eq!(manifest.cpus, 2);
    assert_eq!(manifest.missing, []);
    assert!(
        capture.vmcoreinfo().unwrap().is_some(),
        "the note was found in memory"
    );
    assert!(capture.verify(None).is_sound());

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(&one).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "a core holds secrets");
    }
}

#[test]
fn an_existing_file_is_kept_unless_forced() {
    let dir = tempfile::tempdir().unwrap();
    let elf = core(dir.path());
    let output = dir.path().join("kept.core.zst");
    fs::write(&output, "mine").unwrap();
    let refused = convert(&elf, &output, &[], "2");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("kept.core.zst"));
    assert_eq!(fs::read(&output).unwrap(), b"mine");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"));
    // Not even --force replaces the core by its own capture.
    let itself = convert(&elf, &elf, &["--force"], "2");
    assert_eq!(itself.status.code(), Some(1));
    assert!(fs::read(&elf).unwrap().starts_with(b"\x7fELF"));
    let forced = convert(&elf, &output, &["--force", "--small"], "2");
    assert!(
        forced.status.success(),
        "{}",
        String::from_utf8_lossy(&forced.stderr)
    );
    assert_eq!(json(&output), json(&shipped()));
    assert_eq!(
        names(dir.path()),
        ["core.elf", "kept.core.zst"],
        "temporary files are left"
    );
}

#[test]
fn a_convert_that_is_killed_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let elf = core(dir.path());
    let mut child = Command::new(env!("CARGO_BIN_EXE_capture"))
        .args(["convert", "--level", "19"])
        .arg(&elf)
        .arg("-o")
        .arg(dir.path().join("x.core.zst"))
        .spawn()
        .unwrap();
    // It writes into a file of this directory that is not the core.
    let open = PathBuf::from(format!("/proc/{}/fd", child.id()));
    let writes = || {
        let files = fs::read_dir(&open).unwrap().flatten();
        let mut files = files.filter_map(|entry| fs::read_link(entry.path()).ok());
        files.any(|file| file.starts_with(dir.path()) && file != elf)
    };
    let started = std::time::Instant::now();
    while !writes() {
        assert!(started.elapsed().as_secs() < 60, "it writes nothing");
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(names(dir.path()), ["core.elf"]);
}

#[test]
fn what_is_no_core_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    fs::write(&text, "no core").unwrap();
    let output = dir.path().join("x.core.zst");
    let missing = dir.path().join("missing");
    for (input, words) in [
        (text.as_path(), "expected"),
        (missing.as_path(), "No such file"),
        (&shipped(), "is a capture already"),
    ] {
        let done = convert(input, &output, &[], "2");
        assert_eq!(done.status.code(), Some(4), "{}", input.display());
        let stderr = String::from_utf8(done.stderr).unwrap();
        assert!(
            stderr.starts_with("capture: ") && stderr.contains(words),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert_eq!(names(dir.path()), ["text"]);
    }
    let nowhere = dir.path().join("no/such/dir/x.core.zst");
    let done = convert(&core(dir.path()), &nowhere, &[], "2");
    assert_eq!(done.status.code(), Some(1));
}

#[test]
fn a_truncated_core_is_archived_with_its_gap_and_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let elf = core(dir.path());
    let whole = fs::metadata(&elf).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&elf).unwrap();
    file.set_len(whole - (20 << 20)).unwrap();
    let output = dir.path().join("x.core.zst");
    let done = convert(&elf, &output, &[], "2");
    assert_eq!(
        done.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(String::from_utf8_lossy(&done.stderr).contains("truncated"));
    let capture = Capture::open(fs::read(&output).unwrap()).unwrap();
    let manifest = capture.manifest().unwrap();
    let gap: u64 = manifest
        .memory
        .iter()
        .filter(|r| r.kind == scx_postmortem_format::capture::MemoryKind::NotCaptured)
        .map(|r| r.bytes)
        .sum();
    assert_eq!(gap, 20 << 20);
}

#[test]
fn a_core_without_a_kernel_is_archived_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let elf = core(dir.path());
    // Take the kernel away: the notes' VMCOREINFO and both copies in memory.
    let mut bytes = fs::read(&elf).unwrap();
    let mut at = 0;
    while let Some(hit) = bytes[at..].windows(10).position(|w| w == b"VMCOREINFO") {
        bytes[at + hit] = b'X';
        at += hit + 1;
    }
    fs::write(&elf, bytes).unwrap();
    let output = dir.path().join("x.core.zst");
    let done = convert(&elf, &output, &[], "2");
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let capture = Capture::open(fs::read(&output).unwrap()).unwrap();
    let manifest = capture.manifest().unwrap();
    assert_eq!(manifest.kernel_release, None);
    assert_eq!(manifest.missing.len(), 1);
    assert_eq!(manifest.missing[0].what, "kernel");
    assert!(manifest.missing[0].reason.contains("looked for VMCOREINFO"));
}

#[test]
fn excluded_pages_are_not_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let elf = core(dir.path());
    let rules = ["--exclude", "free,user,cache"];
    let (one, bytes) = same_on_any_threads(dir.path(), &elf, &rules);
    let capture = Capture::open(bytes).unwrap();
    let manifest = capture.manifest().unwrap();
    let names: Vec<&str> = manifest.excluded.iter().map(|e| &*e.rule).collect();
    assert_eq!(names, ["free", "user", "cache"]);
    assert!(manifest.excluded.iter().all(|e| e.bytes > 1 << 19));
    // The manifest stays short: the pages themselves are in a note.
    assert!(
        capture.preamble().manifest_bytes < 600,
        "{} bytes",
        capture.preamble().manifest_bytes
    );
    assert!(capture.verify(None).is_sound());
    let facts = source::describe(&one).unwrap();
    assert!(!facts.damaged);
    let left_out = facts.lines.iter().filter(|(key, _)| key == "left out");
    let left_out: Vec<&str> = left_out.map(|(_, value)| &**value).collect();
    assert_eq!(left_out.len(), 3, "{left_out:?}");
    assert!(
        left_out[0].ends_with("free pages (--exclude free)"),
        "{left_out:?}"
    );

    // The ELF core in it has none of these pages either, and gives the same report.
    let again = dir.path().join("again.elf");
    source::export(&one, &again, &|_, _| ()).unwrap();
    let without_input = |file: &Path| {
        let mut json: serde_json::Value = serde_json::from_str(&json(file)).unwrap();
        let own = json["postmortem"].as_object_mut().unwrap();
        own.remove("input");
        own.remove("provenance");
        json
    };
    assert!(without_input(&again) == without_input(&elf));
    assert!(fs::metadata(&again).unwrap().len() < fs::metadata(&elf).unwrap().len() * 2 / 3);
}

#[test]
fn what_cannot_be_excluded_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let elf = core(dir.path());
    let output = dir.path().join("x.core.zst");
    let wrong = convert(&elf, &output, &["--exclude", "free,kernel"], "2");
    assert_eq!(wrong.status.code(), Some(2));
    let stderr = String::from_utf8(wrong.stderr).unwrap();
    assert!(
        stderr.contains("\"kernel\": expected a list of free, user and cache"),
        "{stderr}"
    );
    // Without a kernel nobody can say what the pages are.
    let mut bytes = fs::read(&elf).unwrap();
    let mut at = 0;
    while let Some(hit) = bytes[at..].windows(10).position(|w| w == b"VMCOREINFO") {
        bytes[at + hit] = b'X';
        at += hit + 1;
    }
    fs::write(&elf, bytes).unwrap();
    let done = convert(&elf, &output, &["--exclude", "free"], "2");
    assert_eq!(done.status.code(), Some(4));
    let stderr = String::from_utf8(done.stderr).unwrap();
    assert!(
        stderr.contains("cannot tell which pages to leave out")
            && stderr.contains("convert it without --exclude"),
        "{stderr}"
    );
    assert_eq!(names(dir.path()), ["core.elf"]);
}

#[test]
fn an_early_core_must_be_an_older_one_of_the_same_guest() {
    let dir = tempfile::tempdir().unwrap();
    let elf = core(dir.path());
    let output = dir.path().join("x.core.zst");
    let refused = |early: &Path, words: &str| {
        let done = convert(&elf, &output, &["--early", early.to_str().unwrap()], "2");
        assert_eq!(done.status.code(), Some(4));
        let stderr = String::from_utf8(done.stderr).unwrap();
        assert!(stderr.contains(words), "{stderr}");
        assert!(!output.exists());
    };
    // The same moment is not an older one.
    refused(&elf, "expected the older one with --early");
    let other = dir.path().join("other.elf");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus/error-7.3/guest.core.zst");
    source::export(&path, &other, &|_, _| ()).unwrap();
    refused(&other, "not a core of the same run of the guest");
    refused(&shipped(), "is a capture; expected an ELF core");
    refused(&dir.path().join("missing"), "No such file");
}

/// Where in an ELF core a guest physical address is.
fn file_offset(elf: &[u8], gpa: u64) -> usize {
    let number = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap());
    let count = usize::from(u16::from_le_bytes([elf[56], elf[57]]));
    let mut loads = (0..count)
        .map(|i| 64 + i * 56)
        .filter(|&at| elf[at..at + 4] == [1, 0, 0, 0]);
    let at = loads.find(|&at| (number(at + 24)..number(at + 24) + number(at + 32)).contains(&gpa));
    let at = at.unwrap();
    usize::try_from(number(at + 8) + gpa - number(at + 24)).unwrap()
}

#[test]
fn two_cores_of_one_guest_make_a_dual_capture() {
    let dir = tempfile::tempdir().unwrap();
    let elf = core(dir.path());
    // The same guest with a clock that is 5 s behind.
    let kernel = Kernel::find(Image::open(&elf).unwrap(), &Overrides::default()).unwrap();
    let timekeeper = kernel.global("timekeeper_data", "struct tk_data").unwrap();
    let seconds = timekeeper.member("timekeeper.xtime_sec").unwrap();
    let (gpa, _) = kernel.translate(seconds.address()).unwrap();
    let mut bytes = fs::read(&elf).unwrap();
    let at = file_offset(&bytes, gpa.0);
    bytes[at..at + 8].copy_from_slice(&(seconds.u64().unwrap() - 5).to_le_bytes());
    let early = dir.path().join("early.elf");
    fs::write(&early, bytes).unwrap();
    let (one, bytes) = same_on_any_threads(dir.path(), &elf, &["--early", early.to_str().unwrap()]);
    let capture = Capture::open(bytes).unwrap();
    assert!(capture.verify(None).is_sound());
    let info = capture.manifest().unwrap().early.clone().unwrap();
    assert_eq!(info.before_late_ns, Some(5_000_000_000));
    assert_eq!(capture.early().unwrap().changed_pages(), 1);
    // The early image has registers of its own, and its own clock.
    let early = Image::open_early(&one).unwrap();
    assert_eq!(early.vcpus.len(), 2);
    let early = Kernel::find(early, &Overrides::default()).unwrap();
    let late = Kernel::find(Image::open(&one).unwrap(), &Overrides::default()).unwrap();
    let dual = analysis::analyze_dual(&early, &late, &Options::default());
    let diff = dual.late.postmortem.unwrap().diff.unwrap();
    assert_eq!(diff.elapsed_ns, Some(5_000_000_000));
    assert_eq!(diff.ran, []);
}
