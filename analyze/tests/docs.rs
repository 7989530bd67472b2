//! What docs/query.md and docs/archive.md show of commands is what they print.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::Path;
use std::process::Command;

/// The commands of a page, each with the lines below it. Both are indented; a command begins with
/// `$ analyze `.
fn shown(page: &str) -> Vec<(Vec<String>, Vec<String>)> {
    let mut found: Vec<(Vec<String>, Vec<String>)> = Vec::new();
    let mut open = false;
    for line in page.lines() {
        let Some(line) = line.strip_prefix("    ") else {
            // An empty line can be within what a command prints.
            open &= line.is_empty();
            if let (true, Some((_, lines))) = (open, found.last_mut()) {
                lines.push(String::new());
            }
            continue;
        };
        if let Some(command) = line.strip_prefix("$ analyze ") {
            found.push((shell_words::split(command).unwrap(), Vec::new()));
            open = true;
        } else if let (true, Some((_, lines))) = (open, found.last_mut()) {
            lines.push(line.to_owned());
        }
    }
    for (_, lines) in &mut found {
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
    }
    found
}

/// Whether `lines` are what was printed; `…` alone stands for any lines, at the end of one for the
/// rest of it.
fn matches(lines: &[String], printed: &[&str]) -> bool {
    match lines {
        [] => printed.is_empty(),
        [dots, rest @ ..] if dots.trim() == "…" => {
            (0..=printed.len()).any(|skip| matches(rest, &printed[skip..]))
        }
        [line, rest @ ..] => printed.first().is_some_and(|first| {
            let same = match line.strip_suffix('…') {
                Some(start) => first.starts_with(start),
                None => first == line,
            };
            same && matches(rest, &printed[1..])
        }),
    }
}

/// Holds the commands of a page to what they print. Results go to `out` where the page has
/// `results`.
fn hold(page: &str, count: usize, out: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join(page)).unwrap();
    let commands = shown(&text);
    assert!(commands.len() >= count, "{} commands", commands.len());
    for (mut arguments, lines) in commands {
        for argument in &mut arguments {
            if argument == "results" {
                out.clone_into(argument);
            }
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_analyze"));
        // The tests themselves may run in a part of a larger job.
        for variable in [
            "JOB_COMPLETION_INDEX",
            "SLURM_ARRAY_TASK_ID",
            "CI_NODE_INDEX",
        ] {
            command.env_remove(variable);
        }
        let done = command
            .args(&arguments)
            .current_dir(&root)
            .output()
            .unwrap();
        let mut printed = String::from_utf8(done.stdout).unwrap();
        printed.push_str(&String::from_utf8(done.stderr).unwrap());
        let printed = printed.replace(out, "results");
        // The page is of the default build.
        let printed: Vec<&str> = printed
            .trim_end()
            .lines()
            .map(str::trim_end)
            .filter(|line| *line != "results/index.parquet")
            .collect();
        assert!(
            matches(&lines, &printed),
            "{arguments:?} prints\n{}\nthe page has\n{}",
            printed.join("\n"),
            lines.join("\n")
        );
    }
}

#[test]
fn the_page_on_queries_shows_what_the_commands_print() {
    hold("docs/query.md", 8, "results");
}

#[test]
fn the_page_on_archives_shows_what_the_command_prints() {
    let out = tempfile::tempdir().unwrap();
    hold("docs/archive.md", 1, out.path().to_str().unwrap());
}
