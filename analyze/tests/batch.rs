//! `analyze batch`, as a command: what it writes, that it goes on where it was, and that parts make a
//! whole.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

fn captures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/findings")
}

fn tables() -> String {
    let path = captures().join("kernel-7.3.tables.zst");
    path.to_str().unwrap().to_owned()
}

/// A folder with copies of captures.
fn folder(names: &[&str], copies: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for copy in 0..copies {
        let to = dir.path().join(format!("boot-{copy:02}"));
        std::fs::create_dir(&to).unwrap();
        for name in names {
            let file = format!("{name}.core.zst");
            std::fs::copy(captures().join(&file), to.join(&file)).unwrap();
        }
    }
    dir
}

/// The command, in a folder, so that names of inputs are the same wherever that is.
fn command(dir: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = without_tables(Path::new(env!("CARGO_BIN_EXE_analyze")), dir, out);
    command.args(["--kernel-tables", &tables()]).args(more);
    command
}

/// The same of some build, with no tables given.
fn without_tables(program: &Path, dir: &Path, out: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).args(["batch", "--out"]).arg(out);
    // The tests themselves may run in a part of a larger job.
    for variable in [
        "JOB_COMPLETION_INDEX",
        "SLURM_ARRAY_TASK_ID",
        "CI_NODE_INDEX",
    ] {
        command.env_remove(variable);
    }
    command
}

/// Exit code, standard output and standard error.
fn batch(dir: &Path, out: &Path, more: &[&str]) -> (i32, String, String) {
    said(&mut command(dir, out, more))
}

fn said(command: &mut Command) -> (i32, String, String) {
    let done = command.output().unwrap();
    (
        done.status.code().unwrap(),
        String::from_utf8(done.stdout).unwrap(),
        String::from_utf8(done.stderr).unwrap(),
    )
}

/// All files below a folder with what is in them, but for what is not finished.
fn tree(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for folder in ["", "reports", "done"] {
        for entry in std::fs::read_dir(dir.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn rows(out: &Path, table: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join(table)).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn every_capture_has_a_report_and_rows_and_a_bad_one_has_its_error() {
    let dir = folder(&["idle", "fifo", "stuck"], 2);
    let bad = dir.path().join("boot-00/bad.core.zst");
    let whole = std::fs::read(captures().join("lock.core.zst")).unwrap();
    std::fs::write(&bad, &whole[..100]).unwrap();
    let out = tempfile::tempdir().unwrap();
    let (code, text, _) = batch(dir.path(), out.path(), &[".", "missing.core.zst"]);
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("FAILED  boot-00/bad.core.zst: the capture is truncated"),
        "{text}"
    );
    assert!(
        text.contains("FAILED  missing.core.zst: No such file"),
        "{text}"
    );
    assert!(text.contains("8 captures: 6 reports, 2 failed\n"), "{text}");
    assert!(text.contains("     2  without a failure\n"), "{text}");
    let idle = "     2  1-";
    assert_eq!(text.matches(idle).count(), 2, "{text}");
    assert!(text.contains("idle-cpu-with-waiting-work"), "{text}");

    let rows = rows(out.path(), "index.ndjson");
    let of =
        |input: &str| -> Vec<&Value> { rows.iter().filter(|row| row["input"] == input).collect() };
    let row = of("boot-01/idle.core.zst")[0];
    assert_eq!(row["kernel_release"], "7.3.4+deb13-cloud-amd64");
    assert_eq!(row["verdict"], "idle-cpu-with-waiting-work");
    assert_eq!(row["finding"], 1);
    assert_eq!(row["finding_rule"], row["verdict"]);
    assert_eq!(
        row["analyzer"],
        concat!("scx-postmortem ", env!("CARGO_PKG_VERSION"))
    );
    assert!(row["starved_ms"].as_i64().unwrap() > 1000);
    assert_eq!(
        row["signature"],
        of("boot-00/idle.core.zst")[0]["signature"]
    );
    assert_ne!(
        row["signature"],
        of("boot-00/stuck.core.zst")[0]["signature"]
    );
    let fifo = of("boot-00/fifo.core.zst");
    assert_eq!(fifo.len(), 1);
    assert!(fifo[0]["signature"].is_null() && fifo[0]["finding"].is_null());
    let bad = of("boot-00/bad.core.zst");
    assert!(bad[0]["error"].as_str().unwrap().contains("the preamble"));
    assert!(bad[0]["report"].is_null() && bad[0]["file_bytes"] == 100);

    // The report is the command's own, to the byte.
    let report = out.path().join(row["report"].as_str().unwrap());
    let alone = Command::new(env!("CARGO_BIN_EXE_analyze"))
        .args(["--format", "json", "--kernel-tables", &tables()])
        .arg(dir.path().join("boot-01/idle.core.zst"))
        .output()
        .unwrap();
    assert_eq!(std::fs::read(report).unwrap(), alone.stdout);

    // The second run does only what may have changed.
    let before = tree(out.path());
    let (_, text, _) = batch(dir.path(), out.path(), &["."]);
    assert!(
        text.contains("7 captures, 7 of them done before: 6 reports, 1 failed"),
        "{text}"
    );
    assert_eq!(before.len(), tree(out.path()).len());
    // Another file under the name, and other settings, are another capture.
    std::fs::write(dir.path().join("boot-00/bad.core.zst"), whole).unwrap();
    let (_, text, _) = batch(dir.path(), out.path(), &["."]);
    assert!(
        text.contains("7 captures, 6 of them done before: 7 reports, 0 failed"),
        "{text}"
    );
    let (_, text, _) = batch(dir.path(), out.path(), &[".", "--no-casts"]);
    assert!(text.contains("7 captures: 7 reports, 0 failed"), "{text}");
}

#[test]
fn a_capture_without_its_tables_is_tried_again() {
    let dir = folder(&["fifo"], 1);
    let out = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_analyze"));
    let run = |more: &[&str]| said(without_tables(program, dir.path(), out.path()).args(more));
    let (code, text, _) = run(&["boot-00"]);
    assert_eq!(code, 3, "{text}");
    assert!(
        text.starts_with("FAILED  boot-00/fifo.core.zst: the capture was reduced to"),
        "{text}"
    );
    assert!(text.contains("put that file beside the capture"), "{text}");

    // Those of another kernel are not the ones, and hide nothing.
    let other = dir.path().join("other.zst");
    let full = captures().join("../../corpus/stall-6.18/guest.core.zst");
    let made = Command::new(program)
        .arg("tables")
        .arg(full)
        .arg("-o")
        .arg(&other)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let others = ["boot-00", "--kernel-tables", "other.zst"];
    let (code, text, _) = run(&others);
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("other.zst: these are the kernel tables "),
        "{text}"
    );
    std::fs::copy(tables(), dir.path().join("boot-00/7.3.tables.zst")).unwrap();
    for more in [&others[..], &["boot-00"]] {
        let (code, text, _) = run(more);
        assert_eq!(code, 0, "{text}");
        assert!(
            text.starts_with("1 captures: 1 reports, 0 failed"),
            "{text}"
        );
    }
    let (_, text, _) = run(&["boot-00"]);
    assert!(text.starts_with("1 captures, 1 of them done"), "{text}");
}

#[test]
fn what_cannot_be_read_for_a_while_keeps_its_report() {
    let dir = folder(&["idle"], 1);
    let out = tempfile::tempdir().unwrap();
    let input = "boot-00/idle.core.zst";
    assert_eq!(batch(dir.path(), out.path(), &[input]).0, 0);
    let before = tree(out.path());
    let (there, away) = (dir.path().join("boot-00"), dir.path().join("away"));
    std::fs::rename(&there, &away).unwrap();
    // Also where all is to be done again.
    for more in [&[input][..], &[input, "--again"], &[input, "--no-casts"]] {
        let (code, text, _) = batch(dir.path(), out.path(), more);
        assert_eq!(code, 3, "{text}");
        assert!(
            text.contains("FAILED  boot-00/idle.core.zst: No such"),
            "{text}"
        );
        assert!(text.contains("1 captures: 0 reports, 1 failed\n"), "{text}");
        let now = tree(out.path());
        let reports = |tree: &BTreeMap<String, Vec<u8>>| {
            let mut tree = tree.clone();
            tree.retain(|name, _| name.starts_with("reports/"));
            tree
        };
        assert_eq!(reports(&now), reports(&before));
        let row = &rows(out.path(), "index.ndjson")[0];
        assert!(row["error"].as_str().unwrap().contains("No such file"));
        assert_eq!(row["verdict"], "idle-cpu-with-waiting-work");
        assert!(out.path().join(row["report"].as_str().unwrap()).exists());
    }
    std::fs::rename(&away, &there).unwrap();
    let (code, text, _) = batch(dir.path(), out.path(), &[input]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("1 captures, 1 of them done before: 1 reports, 0 failed"),
        "{text}"
    );
    assert_eq!(tree(out.path()), before);
    // What is known to be another file has no report of the one before.
    std::fs::write(dir.path().join(input), b"nothing").unwrap();
    let (code, text, _) = batch(dir.path(), out.path(), &[input]);
    assert_eq!(code, 3, "{text}");
    assert!(
        !tree(out.path())
            .keys()
            .any(|name| name.starts_with("reports/"))
    );
}

#[test]
fn an_input_in_which_runs_end_again_and_again_is_passed_over_once() {
    let dir = folder(&["fifo", "idle"], 1);
    let out = tempfile::tempdir().unwrap();
    assert_eq!(batch(dir.path(), out.path(), &["."]).0, 0);
    let wanted = tree(out.path());
    let record = wanted
        .keys()
        .find_map(|name| name.strip_prefix("done/boot-00-idle"));
    let key = format!(
        "boot-00-idle{}",
        record.unwrap().strip_suffix(".json").unwrap()
    );
    let mark = out.path().join(format!("unfinished/begun-{key}"));
    let again = |ends: &str| {
        std::fs::write(&mark, ends).unwrap();
        let done = batch(dir.path(), out.path(), &[".", "--again"]);
        assert!(!mark.exists());
        done
    };
    // Runs that were killed, or a mark that is none.
    for ends in ["1", "2", "x"] {
        let (code, text, _) = again(ends);
        assert_eq!(code, 0, "{text}");
        assert_eq!(tree(out.path()), wanted);
    }
    std::fs::remove_file(out.path().join(format!("done/{key}.json"))).unwrap();
    let (code, text, _) = again("3");
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("FAILED  boot-00/idle.core.zst: 3 runs ended while they were at work on it"),
        "{text}"
    );
    assert!(text.contains("2 captures: 1 reports, 1 failed"), "{text}");
    let (code, text, _) = batch(dir.path(), out.path(), &["."]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("2 captures, 1 of them done before"), "{text}");
    assert_eq!(tree(out.path()), wanted);
}

#[test]
fn another_build_of_the_same_version_makes_reports_again() {
    let dir = folder(&["fifo"], 1);
    let out = tempfile::tempdir().unwrap();
    let copies = tempfile::tempdir().unwrap();
    let same = copies.path().join("same");
    let other = copies.path().join("other");
    let mut bytes = std::fs::read(env!("CARGO_BIN_EXE_analyze")).unwrap();
    let put = |path: &Path, bytes: &[u8]| {
        std::fs::write(path, bytes).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    put(&same, &bytes);
    // As long, and still a program.
    *bytes.last_mut().unwrap() ^= 1;
    put(&other, &bytes);
    let run = |program: &Path| {
        let mut command = without_tables(program, dir.path(), out.path());
        said(command.args([".", "--kernel-tables", &tables()])).1
    };
    let made = "1 captures: 1 reports";
    let kept = "1 captures, 1 of them done before: 1 reports";
    assert!(run(Path::new(env!("CARGO_BIN_EXE_analyze"))).starts_with(made));
    assert!(run(&same).starts_with(kept));
    assert!(run(&other).starts_with(made));
    assert!(run(&other).starts_with(kept));
    assert!(run(&same).starts_with(made));
}

#[test]
fn a_run_that_is_killed_goes_on_and_does_nothing_twice() {
    let names = ["idle", "stuck", "lock", "ring", "slow", "affinity"];
    let dir = folder(&names, 4);
    let whole = tempfile::tempdir().unwrap();
    let (code, wanted, _) = batch(dir.path(), whole.path(), &["."]);
    assert_eq!(code, 0, "{wanted}");

    let out = tempfile::tempdir().unwrap();
    let mut child = command(dir.path(), out.path(), &[".", "--jobs", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let done = out.path().join("done");
    let finished = || std::fs::read_dir(&done).map_or(0, Iterator::count);
    let began = Instant::now();
    while finished() < 5 {
        assert!(
            began.elapsed() < Duration::from_secs(120),
            "nothing is done"
        );
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it was killed"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    // SIGKILL: nothing is tidied up.
    child.kill().unwrap();
    child.wait().unwrap();
    // What is cut off has no name of a result.
    std::fs::write(out.path().join("unfinished/reports-half"), b"{").unwrap();
    let state = |name: &str| {
        let meta = std::fs::metadata(out.path().join(name)).unwrap();
        (meta.ino(), meta.mtime(), meta.mtime_nsec())
    };
    let before: Vec<(String, _)> = tree(out.path())
        .into_keys()
        .map(|name| {
            let state = state(&name);
            (name, state)
        })
        .collect();
    let count = before
        .iter()
        .filter(|(name, _)| name.starts_with("done/"))
        .count();
    assert!((5..24).contains(&count), "{count}");

    let (code, text, _) = batch(dir.path(), out.path(), &["."]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains(&format!(
            "24 captures, {count} of them done before: 24 reports"
        )),
        "{text}"
    );
    // The same bytes as without, and of what was done nothing was written again.
    assert_eq!(tree(out.path()), tree(whole.path()));
    for (name, was) in before {
        // A report whose capture was not marked as done is made again.
        let key = name.strip_prefix("reports/");
        let marked =
            key.is_none_or(|key| std::fs::metadata(done.join(key)).unwrap().mtime() <= was.1);
        if marked && name.starts_with("done/") {
            assert_eq!(state(&name), was, "{name}");
        }
    }
}

#[test]
fn parts_of_a_run_make_the_whole() {
    let dir = folder(&["idle", "stuck", "fifo"], 4);
    let whole = tempfile::tempdir().unwrap();
    batch(dir.path(), whole.path(), &["."]);
    let out = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    let mut inputs = 0;
    // One part is told by the flag, one by each engine's variables.
    for part in 1..=4_u32 {
        let mut command = command(dir.path(), out.path(), &["."]);
        match part {
            1 => command.args(["--shard", "1/4"]),
            2 => command
                .env("JOB_COMPLETION_INDEX", "1")
                .env("JOB_COMPLETIONS", "4"),
            3 => command
                .env("SLURM_ARRAY_TASK_ID", "12")
                .env("SLURM_ARRAY_TASK_MIN", "10")
                .env("SLURM_ARRAY_TASK_COUNT", "4"),
            _ => command.env("CI_NODE_INDEX", "4").env("CI_NODE_TOTAL", "4"),
        };
        let done = command.output().unwrap();
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        let rows = rows(out.path(), &format!("index-{part}-of-4.ndjson"));
        let mut names: Vec<&str> = rows
            .iter()
            .map(|row| row["input"].as_str().unwrap())
            .collect();
        names.dedup();
        inputs += names.len();
        seen.extend(rows);
    }
    assert_eq!(inputs, 12);
    let order = |mut rows: Vec<Value>| {
        rows.sort_by_key(|row| (row["input"].to_string(), row["finding"].as_i64()));
        rows
    };
    assert_eq!(order(seen), order(rows(whole.path(), "index.ndjson")));
    let results = |dir: &Path| {
        let mut tree = tree(dir);
        tree.retain(|name, _| name.contains('/'));
        tree
    };
    assert_eq!(results(out.path()), results(whole.path()));
    // All of it, where the parts have left their results: nothing is done again.
    let (_, text, _) = batch(dir.path(), out.path(), &["."]);
    assert!(
        text.contains("12 captures, 12 of them done before"),
        "{text}"
    );
    assert_eq!(
        rows(out.path(), "index.ndjson"),
        rows(whole.path(), "index.ndjson")
    );
}

#[test]
fn what_makes_no_sense_is_refused_before_any_work() {
    let dir = folder(&["fifo"], 1);
    let out = tempfile::tempdir().unwrap();
    for (more, says) in [
        (&[][..], "required"),
        (
            &[".", "--shard", "3/2"],
            "expected a number from 1 to 2, found 3",
        ),
        (&["boot-00/nothing/"], "captures: 0 reports, 1 failed"),
    ] {
        let (code, text, error) = batch(dir.path(), out.path(), more);
        assert_ne!(code, 0);
        let said = format!("{text}{error}");
        assert!(said.contains(says), "{said}");
    }
    let done = command(dir.path(), out.path(), &["."])
        .env("JOB_COMPLETION_INDEX", "0")
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(2));
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(said.contains("JOB_COMPLETIONS is not; set it"), "{said}");
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let (code, _, said) = batch(dir.path(), out.path(), &["empty"]);
    assert_eq!(code, 4, "{said}");
    if !cfg!(feature = "object-store") {
        let (code, _, said) = batch(dir.path(), out.path(), &["s3://bucket/x.core.zst"]);
        assert_eq!(code, 2);
        assert!(said.contains("--features archive"), "{said}");
    }
    // Two at once in one folder.
    let lock = std::fs::File::create(out.path().join("unfinished/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let (code, _, said) = batch(dir.path(), out.path(), &["."]);
    assert_eq!(code, 1);
    assert!(
        said.contains("another analyze batch is at work there"),
        "{said}"
    );
}

#[test]
fn inputs_can_come_from_a_list() {
    let dir = folder(&["fifo"], 3);
    let out = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("list"),
        "boot-00/fifo.core.zst\n./boot-02\n",
    )
    .unwrap();
    let (code, text, _) = batch(dir.path(), out.path(), &["--list", "list", "boot-00"]);
    assert_eq!(code, 0, "{text}");
    let rows = rows(out.path(), "index.ndjson");
    let names: Vec<&Value> = rows.iter().map(|row| &row["input"]).collect();
    assert_eq!(names, ["boot-00/fifo.core.zst", "boot-02/fifo.core.zst"]);
}
