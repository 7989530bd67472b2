//! Golden reports: every capture of the corpus, as JSON and as text. A change of a report is
//! reviewed like code: `cargo insta review`, or `INSTA_UPDATE=always cargo test`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

use scx_postmortem_format::report::{FailureDumpReportAny, text_report};
use scx_postmortem_tests::corpus;

fn settings(dir: &std::path::Path) -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(dir);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings
}

/// Levels of a report's JSON that are spread over lines; what is deeper stays on one.
const LEVELS: usize = 5;

/// Bytes of a line that are shown; what is longer ends in a digest.
const LONGEST: usize = 4000;

/// The JSON in lines that a person can compare: a line for each entry of a map and each variable
/// of a section, and for the bytes of an arena's page their digest.
fn lines(json: &str) -> String {
    let mut out = String::new();
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    let mut rest = json;
    while let Some(c) = rest.chars().next() {
        if !in_string && let Some(bytes) = rest.strip_prefix("\"bytes\":[") {
            let (numbers, after) = bytes.split_once(']').unwrap();
            out.push_str(&format!(
                "\"bytes\":\"{} of them, FNV-1a {:#018x}\"",
                numbers.split(',').count(),
                fnv(numbers.as_bytes())
            ));
            rest = after;
            continue;
        }
        rest = &rest[c.len_utf8()..];
        let structure = !in_string && "{}[],".contains(c);
        in_string ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        let new_line = |out: &mut String, depth: usize| {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', depth));
        };
        match c {
            '{' | '[' if structure => {
                depth += 1;
                out.push(c);
                if depth <= LEVELS && !rest.starts_with(['}', ']']) {
                    new_line(&mut out, depth);
                }
            }
            '}' | ']' if structure => {
                depth -= 1;
                if depth < LEVELS && !out.ends_with(['{', '[']) {
                    new_line(&mut out, depth);
                }
                out.push(c);
            }
            ',' if structure => {
                out.push(c);
                if depth <= LEVELS {
                    new_line(&mut out, depth);
                }
            }
            _ => out.push(c),
        }
    }
    let mut short = String::new();
    for line in out.lines() {
        let mut end = LONGEST.min(line.len());
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        let shown = &line[..end];
        short.push_str(shown);
        if shown.len() < line.len() {
            let hash = fnv(line.as_bytes());
            short.push_str(&format!(" … {} bytes, FNV-1a {hash:#018x}", line.len()));
        }
        short.push('\n');
    }
    short
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[test]
fn reports_are_as_they_were() {
    for entry in corpus().unwrap() {
        let any = FailureDumpReportAny::from(entry.report().unwrap());
        settings(&entry.dir).bind(|| {
            insta::assert_snapshot!("report.json", lines(&any.to_json().unwrap()));
            insta::assert_snapshot!("report.txt", text_report(&any));
        });
    }
}

#[test]
fn a_report_reads_back_as_itself() {
    for entry in corpus().unwrap() {
        let any = FailureDumpReportAny::from(entry.report().unwrap());
        let json = any.to_json().unwrap();
        let back = FailureDumpReportAny::from_json(&json).expect("our own JSON must parse");
        assert_eq!(back, any, "{}", entry.name);
        assert_eq!(back.to_json().unwrap(), json, "{}", entry.name);
    }
}

#[test]
fn threads_do_not_show() {
    for entry in corpus().unwrap() {
        let bytes = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                FailureDumpReportAny::from(entry.report().unwrap())
                    .to_json()
                    .unwrap()
            })
        };
        let one = bytes(1);
        for threads in [2, 3, 8] {
            assert_eq!(one, bytes(threads), "{} with {threads} threads", entry.name);
        }
    }
}

/// What the README shows of a report is what the report says.
#[test]
fn the_readme_shows_the_golden_report() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let golden = root.join("corpus/stall-6.18/report.txt.snap");
    let golden = std::fs::read_to_string(golden).unwrap();
    let start = readme.find("    scx-postmortem 0.").unwrap();
    let end = readme.find("All tests (no guest").unwrap();
    let shown: Vec<&str> = readme[start..end].lines().map(str::trim_end).collect();
    assert!(shown.len() > 30, "{} lines", shown.len());
    for line in shown.iter().filter(|l| !l.is_empty() && l.trim() != "…") {
        let line = line.strip_prefix("    ").unwrap();
        assert!(
            golden.lines().any(|l| l == line),
            "the report has no {line:?}"
        );
    }
}
