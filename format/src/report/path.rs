//! Names of report files that stand beside the main one.

use std::path::{Path, PathBuf};

/// Tag: an early capture was held and the end of the run came without a late one.
pub const SNAPSHOT_TAG_EARLY_ONLY_LATE_NEVER_FIRED: &str = "early-only-late-never-fired";
/// Tag: an early capture was held; the late trigger fired, but the exit was no error, so that no
/// late capture was made.
pub const SNAPSHOT_TAG_EARLY_ONLY_LATE_SUPPRESSED: &str = "early-only-late-suppressed";
/// Tag of an early capture whose late one came out degraded. The degraded report takes the main
/// path.
pub const SNAPSHOT_TAG_EARLY_PRE_LATE_DEGRADED: &str = "early-pre-late-degraded";
/// Tag of a degraded report of the early trigger. The main path stays free for the late one.
pub const SNAPSHOT_TAG_EARLY_DEGRADED: &str = "early-degraded";

/// The four tags of early captures, in their canonical order.
pub const ALL_SNAPSHOT_TAGS: [&str; 4] = [
    SNAPSHOT_TAG_EARLY_ONLY_LATE_NEVER_FIRED,
    SNAPSHOT_TAG_EARLY_ONLY_LATE_SUPPRESSED,
    SNAPSHOT_TAG_EARLY_PRE_LATE_DEGRADED,
    SNAPSHOT_TAG_EARLY_DEGRADED,
];

/// Tag of the n-th periodic capture: `periodic_000`, `periodic_001`, …
pub fn periodic_snapshot_tag(n: usize) -> String {
    format!("periodic_{n:03}")
}

/// Where a report with a tag goes, next to the main report's path `base`:
/// `run.failure-dump.json` and `early-degraded` give `run.snapshot.early-degraded.json`.
///
/// Characters of the tag outside `A–Z a–z 0–9 . _ -` become `_`, so that a tag cannot leave the
/// directory. A base name without a usable stem becomes `dump`. Bytes of the base name that are
/// not UTF-8 are replaced.
pub fn tagged_snapshot_path(base: &Path, tag: &str) -> PathBuf {
    let stem = base
        .file_stem()
        .map(|stem| stem.to_string_lossy())
        .filter(|stem| !stem.is_empty() && !stem.starts_with('.'))
        .unwrap_or_else(|| "dump".into());
    let stem = stem.strip_suffix(".failure-dump").unwrap_or(&stem);
    let tag: String = tag
        .chars()
        .map(|c| match c {
            'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '_' | '-' => c,
            _ => '_',
        })
        .collect();
    let mut name = format!("{stem}.snapshot.{tag}");
    if let Some(extension) = base.extension() {
        name.push('.');
        name.push_str(&extension.to_string_lossy());
    }
    base.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings() {
        for (base, tag, expected) in [
            (
                "d/t-00ab.repro.failure-dump.json",
                SNAPSHOT_TAG_EARLY_DEGRADED,
                "d/t-00ab.repro.snapshot.early-degraded.json",
            ),
            (
                "t.failure-dump.json",
                "a b/../é",
                "t.snapshot.a_b_..__.json",
            ),
            ("/x/t", "periodic_000", "/x/t.snapshot.periodic_000"),
            ("/x/.json", "t", "/x/dump.snapshot.t"),
            ("/x/.failure-dump.json", "t", "/x/dump.snapshot.t.json"),
            ("t.tar.gz", "t", "t.tar.snapshot.t.gz"),
        ] {
            assert_eq!(
                tagged_snapshot_path(Path::new(base), tag),
                Path::new(expected)
            );
        }
        assert_eq!(periodic_snapshot_tag(0), "periodic_000");
        assert_eq!(periodic_snapshot_tag(1234), "periodic_1234");
    }

    #[test]
    fn tags() {
        assert_eq!(
            ALL_SNAPSHOT_TAGS,
            [
                "early-only-late-never-fired",
                "early-only-late-suppressed",
                "early-pre-late-degraded",
                "early-degraded",
            ]
        );
    }
}
