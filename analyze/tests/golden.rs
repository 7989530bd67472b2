//! `analyze golden` and `analyze diff`, as commands.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

fn captures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/findings")
}

/// A folder with three captures, one of them in a folder of its own.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("more")).unwrap();
    for (name, to) in [("fifo", "fifo"), ("lock", "lock"), ("idle", "more/idle")] {
        let from = captures().join(format!("{name}.core.zst"));
        std::fs::copy(from, dir.path().join(format!("{to}.core.zst"))).unwrap();
    }
    dir
}

/// Exit code, standard output and standard error.
fn analyze(arguments: &[&str]) -> (i32, String, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_analyze"))
        .args(arguments)
        .output()
        .unwrap();
    (
        done.status.code().unwrap(),
        String::from_utf8(done.stdout).unwrap(),
        String::from_utf8(done.stderr).unwrap(),
    )
}

fn golden(what: &str, dir: &TempDir, more: &[&str]) -> (i32, String, String) {
    let tables = captures().join("kernel-7.3.tables.zst");
    let mut arguments = vec!["golden", what, dir.path().to_str().unwrap()];
    arguments.extend(["--kernel-tables", tables.to_str().unwrap()]);
    arguments.extend(more);
    analyze(&arguments)
}

#[test]
fn captures_are_blessed_checked_and_a_difference_is_told() {
    let dir = folder();
    let (code, out, _) = golden("check", &dir, &[]);
    assert_eq!(code, 8, "{out}");
    assert!(out.contains("MISSING  fifo.core.zst"), "{out}");
    assert!(out.ends_with("3 captures: 0 the same, 3 not\n"), "{out}");

    let redact = ["--redact", "addresses,times,versions"];
    let (code, out, _) = golden("bless", &dir, &redact);
    assert_eq!(code, 0, "{out}");
    assert!(
        out.ends_with("3 captures: 3 written, 0 as they were, 0 failed\n"),
        "{out}"
    );
    let path = dir.path().join("fifo.golden.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(
        "\"redact\": [\n      \"addresses\",\n      \"times\",\n      \"versions\"\n    ]"
    ));
    assert!(!text.contains("\"analyzer\"") && !text.contains("\"digest\""));
    for address in [
        "\"0xffff8",
        "\"0xffff9",
        "\"0xffffa",
        "\"0xffffc",
        "\"0xffffd",
        "1844674407",
    ] {
        // The largest numbers stand for -1, and for an id of the kernel's own queues.
        let left = text
            .lines()
            .find(|line| line.contains(address) && !line.contains("18446744073709551615"));
        assert_eq!(left, None, "{address}");
    }
    // Again: nothing to do; and the files are the same at any number of jobs.
    let (code, out, _) = golden(
        "bless",
        &dir,
        &["--redact", "addresses,times,versions", "-j", "1"],
    );
    assert_eq!(
        (code, out.as_str()),
        (0, "3 captures: 0 written, 3 as they were, 0 failed\n")
    );
    for jobs in ["1", "2", "3"] {
        let (code, out, _) = golden("check", &dir, &["--jobs", jobs]);
        assert_eq!((code, out.as_str()), (0, "3 captures: 3 the same, 0 not\n"));
    }

    let changed = text.replacen("\"demo_fifo\"", "\"demo_lifo\"", 1);
    assert_ne!(changed, text);
    std::fs::write(&path, changed).unwrap();
    std::fs::remove_file(dir.path().join("more/idle.golden.json")).unwrap();
    std::fs::write(dir.path().join("more/broken.core.zst"), b"nothing").unwrap();
    std::fs::write(
        dir.path().join("more/broken.golden.json"),
        b"{\"golden\":{},\"report\":{}}",
    )
    .unwrap();
    let junit = dir.path().join("out.xml");
    let (code, out, _) = golden("check", &dir, &["--junit", junit.to_str().unwrap()]);
    assert_eq!(code, 8);
    assert!(
        out.contains("DIFFERS  fifo.core.zst: 1 difference\n"),
        "{out}"
    );
    assert!(
        out.contains("      - \"demo_lifo\"\n      + \"demo_fifo\"\n"),
        "{out}"
    );
    assert!(out.contains("FAILED   more/broken.core.zst: "), "{out}");
    assert!(out.contains("MISSING  more/idle.core.zst"), "{out}");
    assert!(out.ends_with("4 captures: 1 the same, 3 not\n"), "{out}");
    let xml = std::fs::read_to_string(junit).unwrap();
    assert!(
        xml.contains("<testsuites tests=\"4\" failures=\"2\" errors=\"1\""),
        "{xml}"
    );
    assert!(xml.contains("<testcase classname=\"golden\" name=\"lock.core.zst\" time=\""));
    assert!(xml.contains("  - &quot;demo_lifo&quot;\n  + &quot;demo_fifo&quot;</failure>"));
}

#[test]
fn a_golden_report_without_its_capture_is_no_success() {
    let dir = folder();
    assert_eq!(golden("bless", &dir, &[]).0, 0);
    std::fs::remove_file(dir.path().join("more/idle.core.zst")).unwrap();
    for what in ["check", "bless"] {
        let (code, out, _) = golden(what, &dir, &[]);
        assert_eq!(code, 8, "{out}");
        assert!(out.contains("FAILED   more/idle.core.zst: "), "{out}");
        assert!(out.contains("the capture beside it is gone"), "{out}");
        assert!(out.contains("3 captures: "), "{out}");
    }
}

#[test]
fn a_capture_that_lost_its_end_is_told_whoever_asks() {
    let dir = tempfile::tempdir().unwrap();
    let cut = dir.path().join("cut.core.zst");
    let whole = captures().join("../../corpus/stall-6.18/guest.core.zst");
    let bytes = std::fs::read(&whole).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() - 1000]).unwrap();
    let (cut, whole) = (cut.to_str().unwrap(), whole.to_str().unwrap());
    let expression = "bss.nr_parked";
    for (arguments, expected) in [
        (&["query", whole, expression][..], 0),
        (&["query", cut, expression], 3),
        (&["diff", whole, cut], 3),
        (&["diff", cut, whole], 3),
        (&["shell", cut], 3),
        (&["upgrade", cut], 0),
        (&["upgrade", "--write", cut], 4),
    ] {
        let (code, out, said) = analyze(arguments);
        assert_eq!(code, expected, "{arguments:?}: {out}{said}");
        let told = said.contains(&format!("analyze: {cut}: "));
        assert_eq!(told, expected != 0, "{arguments:?}: {out}{said}");
    }
}

#[test]
fn what_is_wrong_with_a_file_comes_before_what_was_not_found_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let whole = captures().join("../../corpus/stall-6.18/guest.core.zst");
    let bytes = std::fs::read(whole).unwrap();
    std::fs::write(dir.path().join("cut.core.zst"), &bytes[..3_000_000]).unwrap();
    let (code, out, _) = golden("bless", &dir, &[]);
    assert_eq!(code, 8, "{out}");
    let incomplete = out.find("bytes of the core are missing; copy the file again");
    let symbols = out.find("the symbol table (kallsyms) cannot be read");
    assert!(incomplete.is_some() && incomplete < symbols, "{out}");
    assert!(out.contains("alone with `analyze FILE`"), "{out}");
}

#[test]
fn what_is_left_out_may_change() {
    let dir = folder();
    let (code, ..) = golden(
        "bless",
        &dir,
        &["--without", "postmortem.kernel_log", "--redact", "none"],
    );
    assert_eq!(code, 0);
    let text = std::fs::read_to_string(dir.path().join("lock.golden.json")).unwrap();
    assert!(!text.contains("\"kernel_log\": [") && text.contains("\"analyzer\""));
    assert_eq!(golden("check", &dir, &[]).0, 0);
    // What only a later version can redact is not taken for something else.
    let text = text.replacen("\"redact\": []", "\"redact\": [\"moods\"]", 1);
    std::fs::write(dir.path().join("lock.golden.json"), text).unwrap();
    let (code, out, _) = golden("check", &dir, &[]);
    assert_eq!(code, 8);
    assert!(
        out.contains("it redacts \"moods\", which this version does not know"),
        "{out}"
    );
}

#[test]
fn blessed_again_a_golden_report_keeps_its_settings() {
    let dir = folder();
    let settings = || {
        let text = std::fs::read(dir.path().join("lock.golden.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        json["golden"].clone()
    };
    let log = "postmortem.kernel_log";
    let first = ["--redact", "times", "--without", log];
    assert_eq!(golden("bless", &dir, &first).0, 0);
    let kept = serde_json::json!({"redact": ["times"], "without": [log]});
    assert_eq!(settings(), kept);
    let (code, out, _) = golden("bless", &dir, &[]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("0 written, 3 as they were"), "{out}");
    assert_eq!(settings(), kept);
    assert_eq!(golden("bless", &dir, &["--without", "none"]).0, 0);
    let fewer = serde_json::json!({"redact": ["times"], "without": []});
    assert_eq!(settings(), fewer);
    // A path that no report has is a slip, and nothing is written.
    let (code, _, said) = golden("bless", &dir, &["--without", "postmortem.kernel_lgo"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("near: postmortem.kernel_log"), "{said}");
    let (code, _, said) = golden("bless", &dir, &["--without", "tasks[*].stack"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("names with dots between them"), "{said}");
    assert_eq!(settings(), fewer);
    // A golden report is no report, and a file no folder.
    let file = dir.path().join("lock.golden.json");
    let (code, _, said) = analyze(&["diff", file.to_str().unwrap(), file.to_str().unwrap()]);
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("it is a golden report"), "{said}");
    let (code, _, said) = analyze(&["golden", "check", file.to_str().unwrap()]);
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("give the folder that it is in"), "{said}");
    assert_eq!(golden("check", &dir, &["--jobs", "0"]).0, 2);
}

#[test]
fn wrong_arguments_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, said) = golden("check", &dir, &[]);
    assert_eq!(code, 4);
    assert!(said.contains("no *.core.zst is below it"), "{said}");
    let (code, _, said) = golden("bless", &dir, &["--redact", "all"]);
    assert_eq!(code, 2);
    assert!(
        said.contains("--redact all: expected none or some of addresses, times, versions"),
        "{said}"
    );
}

#[test]
fn the_report_of_a_capture_differs_in_nothing_from_itself() {
    let capture = captures().join("fifo.core.zst");
    let tables = captures().join("kernel-7.3.tables.zst");
    let scratch = tempfile::tempdir().unwrap();
    let report = scratch.path().join("fifo.json");
    let tables = ["--kernel-tables", tables.to_str().unwrap()];
    let mut arguments = vec![
        capture.to_str().unwrap(),
        "--format",
        "json",
        "-o",
        report.to_str().unwrap(),
    ];
    arguments.extend(tables);
    assert_eq!(analyze(&arguments).0, 0);
    let mut arguments = vec!["diff", capture.to_str().unwrap(), report.to_str().unwrap()];
    arguments.extend(tables);
    let (code, out, _) = analyze(&arguments);
    assert_eq!(code, 0);
    assert!(out.starts_with("a: fifo.core.zst, kernel 7.3.4"), "{out}");
    assert!(
        out.contains("one boot: b was taken 0 ns after a")
            || out.contains("one boot: b was taken 0"),
        "{out}"
    );
    assert!(
        !out.contains("variables:") && !out.contains("tasks:"),
        "{out}"
    );
    arguments.push("--json");
    let (code, out, _) = analyze(&arguments);
    assert_eq!(code, 0);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["diff"]["elapsed_ns"], 0);
    assert!(json["diff"].get("variables").is_none());
    let (code, _, said) = analyze(&["diff", report.to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(
        said.contains("this report holds one image; give another one"),
        "{said}"
    );
    let (code, out, _) = analyze(&["upgrade", report.to_str().unwrap()]);
    assert_eq!(code, 0);
    assert!(
        out.ends_with("single report, version 1: current, nothing to upgrade\n"),
        "{out}"
    );
}

#[test]
fn a_comparison_is_not_written_over_what_it_compares() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (lock, fifo) = (at("lock.core.zst"), at("fifo.core.zst"));
    let report = at("report.json");
    std::fs::write(&report, "{}").unwrap();
    for (a, b, output, says) in [
        (&lock, &fifo, &fifo, "is the input"),
        (&lock, &report, &report, "is the input"),
        (&report, &lock, &fifo, "is a core or a capture already"),
    ] {
        let before = std::fs::read(output).unwrap();
        let (code, _, said) = analyze(&["diff", a, b, "-o", output]);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(says), "{said}");
        assert!(std::fs::read(output).unwrap() == before);
    }
}

#[test]
fn a_file_that_cannot_be_upgraded_does_not_stop_the_others() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (first, last) = (at("fifo.core.zst"), at("last.core.zst"));
    std::fs::copy(&first, &last).unwrap();
    std::fs::write(at("half.json"), "{\"x\": ").unwrap();
    let (code, out, said) = analyze(&[
        "upgrade",
        "--write",
        &first,
        &at("missing.core.zst"),
        &at("half.json"),
        &last,
    ]);
    assert_eq!(code, 4, "{out}{said}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 2, "{out}");
    for (line, name) in lines.iter().zip([&first, &last]) {
        assert!(line.starts_with(name.as_str()), "{line}");
        assert!(line.ends_with("version 1.0: now 1.1"), "{line}");
    }
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(
        lines[0].contains("missing.core.zst: No such file"),
        "{said}"
    );
    assert!(lines[1].contains("half.json"), "{said}");
}

#[test]
fn a_capture_of_an_earlier_version_is_replaced_by_one_with_the_same_report() {
    let dir = folder();
    let capture = dir.path().join("fifo.core.zst");
    let path = capture.to_str().unwrap();
    let before = std::fs::read(&capture).unwrap();
    let (code, out, _) = analyze(&["upgrade", path]);
    assert_eq!(code, 0, "{out}");
    assert!(
        out.ends_with("version 1.0: --write makes it 1.1\n"),
        "{out}"
    );
    assert_eq!(std::fs::read(&capture).unwrap(), before);
    let (_, out, _) = analyze(&["upgrade", "--write", path]);
    assert!(out.ends_with("version 1.0: now 1.1\n"), "{out}");
    let (_, out, _) = analyze(&["upgrade", "--write", path]);
    assert!(
        out.ends_with("version 1.1: current, nothing to upgrade\n"),
        "{out}"
    );
    let after = std::fs::read(&capture).unwrap();
    assert!(after != before && after[256..] == before[256..]);
    let tables = captures().join("kernel-7.3.tables.zst");
    let of = |path: &Path| {
        let path = path.to_str().unwrap();
        analyze(&[
            "--format",
            "json",
            "--kernel-tables",
            tables.to_str().unwrap(),
            path,
        ])
    };
    assert!(of(&capture) == of(&captures().join("fifo.core.zst")));
}

#[test]
fn an_array_without_a_length_has_nothing_before_its_first_element() {
    let capture = captures().join("../../corpus/stall-6.18/guest.core.zst");
    let capture = capture.to_str().unwrap();
    let of = |index: i32| format!("task(188).cgroups.dfl_cgrp.ancestors[{index}]");
    let (code, out, said) = analyze(&["query", capture, &of(0)]);
    assert_eq!(code, 0, "{out}{said}");
    let (code, out, said) = analyze(&["query", capture, &of(-1)]);
    assert_eq!(code, 2, "{out}{said}");
    assert!(said.contains("has no elements before 0"), "{said}");
}

#[test]
fn a_shell_answers_line_by_line() {
    use std::io::Write;
    use std::process::Stdio;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let scratch = tempfile::tempdir().unwrap();
    let history = scratch.path().join("history");
    let mut shell = Command::new(env!("CARGO_BIN_EXE_analyze"))
        .args(["shell", "corpus/stall-6.18/guest.core.zst", "--history"])
        .arg(&history)
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = "bss.nr_parked\n\nrq(0).cpuu\nhelp\ntask(188).comm\nquit\nrq(1).cpu\n";
    shell
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    let done = shell.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(0));
    let out = String::from_utf8(done.stdout).unwrap();
    let answers: Vec<&str> = out.lines().collect();
    assert!(
        answers.contains(&"6") && answers.contains(&"\"starve-1\""),
        "{out}"
    );
    assert!(
        out.contains("      ^^^^\nstruct rq has no member cpuu"),
        "{out}"
    );
    assert!(out.contains("Expressions:"), "{out}");
    assert!(!answers.contains(&"1"), "{out}");
}
