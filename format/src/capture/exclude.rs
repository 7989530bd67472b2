//! Pages that were left out of a capture by what the guest's own kernel says they are, as a note
//! of their own: a guest has many of them, in many runs, and a manifest with all of these would
//! be slow to read.

use std::fmt;

use super::write::Extent;
use crate::bytes::{Record, le_u32, le_u64, to_u64, to_usize};

const PAGE: u64 = 4096;
/// Version of the note.
const VERSION: u32 = 1;
/// Bytes of the note's header.
const HEADER: usize = 16;
/// Bytes that a run takes at least.
const SHORTEST: usize = 3;

/// What a page was that was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// Nobody's: in the lists of the page allocator.
    Free,
    /// Anonymous memory of processes, and huge pages set aside for them.
    User,
    /// Content of files.
    Cache,
    /// A rule of a later version.
    Unknown,
}

impl Rule {
    /// The rules that this version has, in the order of reports.
    pub const ALL: [Self; 3] = [Self::Free, Self::User, Self::Cache];

    /// The name, as on the command line and in the manifest.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::User => "user",
            Self::Cache => "cache",
            Self::Unknown => "unknown",
        }
    }

    /// The rule with that name.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        let known = Self::ALL.into_iter().find(|rule| rule.name() == name);
        known.unwrap_or(Self::Unknown)
    }

    /// What the rule leaves out.
    #[must_use]
    pub const fn pages(self) -> &'static str {
        match self {
            Self::Free => "free pages",
            Self::User => "pages of user memory",
            Self::Cache => "pages of the page cache",
            Self::Unknown => "pages that a rule names which this version does not know",
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::Free => 1,
            Self::User => 2,
            Self::Cache => 3,
            Self::Unknown => 0,
        }
    }

    const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Free,
            2 => Self::User,
            3 => Self::Cache,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Pages in a row that one rule left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First guest physical address, a multiple of 4096.
    pub gpa: u64,
    /// Length in bytes, a multiple of 4096.
    pub bytes: u64,
    /// The rule.
    pub rule: Rule,
}

impl Run {
    const fn end(&self) -> u64 {
        self.gpa.saturating_add(self.bytes)
    }
}

/// Pages to be left out of a capture, or that were: ascending and disjoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Excluded {
    runs: Vec<Run>,
}

impl Excluded {
    /// Adds pages behind all that are in there already. What is not whole pages, or not behind
    /// them, is not added.
    pub fn push(&mut self, run: Run) {
        let free = self.runs.last().map_or(0, Run::end);
        let whole = run.gpa.is_multiple_of(PAGE) && run.bytes.is_multiple_of(PAGE);
        if run.bytes == 0 || run.gpa < free || !whole || run.gpa.checked_add(run.bytes).is_none() {
            return;
        }
        match self.runs.last_mut() {
            Some(last) if last.end() == run.gpa && last.rule == run.rule => last.bytes += run.bytes,
            _ => self.runs.push(run),
        }
    }

    /// The runs, ascending.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Whether nothing is left out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The rule that left out the page at `gpa`, if one did.
    #[must_use]
    pub fn rule_at(&self, gpa: u64) -> Option<Rule> {
        let next = self.runs.partition_point(|run| run.gpa <= gpa);
        let run = self.runs.get(next.checked_sub(1)?)?;
        (gpa < run.end()).then_some(run.rule)
    }

    /// Bytes and number of runs per rule, of those rules that left out anything.
    #[must_use]
    pub fn by_rule(&self) -> Vec<(Rule, u64, u64)> {
        let rules = Rule::ALL.into_iter().chain([Rule::Unknown]);
        let counted = rules.map(|rule| {
            let runs = self.runs.iter().filter(|run| run.rule == rule);
            let (bytes, count) = runs.fold((0u64, 0), |(bytes, n), run| {
                (bytes.saturating_add(run.bytes), n + 1)
            });
            (rule, bytes, count)
        });
        counted.filter(|&(_, bytes, _)| bytes > 0).collect()
    }

    /// What is to be left out of `memory` (ascending and disjoint): whole pages in it, and of
    /// those only stretches of at least `shortest` bytes, or longer where there would be more
    /// than `most` ranges of memory to keep. With the ranges to keep.
    pub(super) fn fit(&self, memory: &[Extent], shortest: u64, most: usize) -> (Self, Vec<Extent>) {
        let mut inside = Self::default();
        let mut at = 0;
        for extent in memory {
            let end = extent.gpa.saturating_add(extent.bytes) / PAGE * PAGE;
            let start = extent.gpa.div_ceil(PAGE).saturating_mul(PAGE);
            at += self
                .runs
                .get(at..)
                .unwrap_or_default()
                .partition_point(|run| run.end() <= start);
            for run in self.runs.get(at..).unwrap_or_default() {
                let (from, to) = (run.gpa.max(start), run.end().min(end));
                if run.gpa >= end {
                    break;
                }
                inside.push(Run {
                    gpa: from,
                    bytes: to.saturating_sub(from),
                    rule: run.rule,
                });
            }
        }
        let mut shortest = shortest;
        loop {
            let long = inside.stretches(shortest);
            let kept = keep(memory, &long.runs);
            if kept.len() <= most || long.is_empty() {
                return (long, kept);
            }
            shortest = shortest.saturating_mul(2).max(2 * PAGE);
        }
    }

    /// The runs that are part of a stretch of at least `shortest` bytes.
    fn stretches(&self, shortest: u64) -> Self {
        let touch = |a: &Run, b: &Run| a.end() == b.gpa;
        let long = self
            .runs
            .chunk_by(touch)
            .filter(|stretch| stretch.iter().map(|run| run.bytes).sum::<u64>() >= shortest);
        Self {
            runs: long.flatten().copied().collect(),
        }
    }

    /// The content of the note.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Record::default()
            .u32(VERSION)
            .u32(4096)
            .u64(to_u64(self.runs.len()))
            .done();
        let mut free = 0;
        for run in &self.runs {
            put_number(&mut out, (run.gpa - free) / PAGE);
            put_number(&mut out, run.bytes / PAGE);
            out.push(run.rule.code());
            free = run.end();
        }
        out
    }

    /// Reads a note; what is wrong with it otherwise.
    pub(super) fn decode(note: &[u8]) -> Result<Self, &'static str> {
        if (le_u32(note, 0), le_u32(note, 4)) != (Some(VERSION), Some(4096)) {
            return Err("expected version 1 with pages of 4096 bytes");
        }
        let count = le_u64(note, 8).unwrap_or(u64::MAX);
        let mut rest = note.get(HEADER..).unwrap_or_default();
        if count > to_u64(rest.len() / SHORTEST) {
            return Err("it has fewer runs than it says");
        }
        let mut runs = Vec::with_capacity(to_usize(count));
        let mut free = 0u64;
        for _ in 0..count {
            let run = (|| {
                let gap = take_number(&mut rest)?.checked_mul(PAGE)?;
                let bytes = take_number(&mut rest)?.checked_mul(PAGE)?;
                let (&code, after) = rest.split_first()?;
                rest = after;
                let gpa = free.checked_add(gap)?;
                free = gpa.checked_add(bytes)?;
                (bytes > 0).then_some(Run {
                    gpa,
                    bytes,
                    rule: Rule::from_code(code),
                })
            })();
            runs.push(run.ok_or("a run of it is cut off, empty or beyond all addresses")?);
        }
        Ok(Self { runs })
    }
}

/// What is left of `memory` without `runs`; both ascending.
fn keep(memory: &[Extent], runs: &[Run]) -> Vec<Extent> {
    let mut kept = Vec::new();
    let mut push = |from: u64, to: u64| {
        if from < to {
            kept.push(Extent::new(from, to - from));
        }
    };
    let mut runs = runs.iter().peekable();
    for extent in memory {
        let end = extent.gpa.saturating_add(extent.bytes);
        let mut at = extent.gpa;
        while let Some(run) = runs.next_if(|run| run.gpa < end) {
            push(at, run.gpa);
            at = run.end();
        }
        push(at, end);
    }
    kept
}

/// Appends a number in groups of seven bits, the lowest first (LEB128).
fn put_number(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(list: &[(u64, u64, Rule)]) -> Excluded {
        let mut excluded = Excluded::default();
        for &(page, pages, rule) in list {
            excluded.push(Run {
                gpa: page * PAGE,
                bytes: pages * PAGE,
                rule,
            });
        }
        excluded
    }

    #[test]
    fn runs_are_merged_counted_and_found() {
        let mut excluded = runs(&[
            (1, 2, Rule::Free),
            (3, 1, Rule::Free),
            (4, 1, Rule::User),
            (9, 300, Rule::Cache),
        ]);
        // Behind the last run only, and whole pages only.
        excluded.push(Run {
            gpa: 0,
            bytes: PAGE,
            rule: Rule::Free,
        });
        excluded.push(Run {
            gpa: 400 * PAGE,
            bytes: 12,
            rule: Rule::Free,
        });
        assert_eq!(excluded.runs().len(), 3);
        assert_eq!(
            excluded.by_rule(),
            [
                (Rule::Free, 3 * PAGE, 1),
                (Rule::User, PAGE, 1),
                (Rule::Cache, 300 * PAGE, 1)
            ]
        );
        let at = |page: u64| excluded.rule_at(page * PAGE + 4095);
        assert_eq!(
            [at(0), at(1), at(3), at(4), at(5), at(308), at(309)],
            [
                None,
                Some(Rule::Free),
                Some(Rule::Free),
                Some(Rule::User),
                None,
                Some(Rule::Cache),
                None
            ]
        );
        let note = excluded.encode();
        assert_eq!(note.len(), HEADER + 3 * 3 + 1, "300 takes two bytes");
        assert_eq!(Excluded::decode(&note).unwrap(), excluded);
    }

    #[test]
    fn what_is_too_short_or_not_inside_stays() {
        let excluded = runs(&[
            (0, 1, Rule::Free),
            (4, 1, Rule::User),
            (5, 1, Rule::Free),
            (8, 1, Rule::Free),
            (20, 10, Rule::Cache),
        ]);
        // From the middle of page 0 to the middle of page 24.
        let memory = [Extent::new(2048, 24 * PAGE)];
        let (out, kept) = excluded.fit(&memory, PAGE, 100);
        assert_eq!(
            out,
            runs(&[
                (4, 1, Rule::User),
                (5, 1, Rule::Free),
                (8, 1, Rule::Free),
                (20, 4, Rule::Cache)
            ])
        );
        assert_eq!(
            kept,
            [
                Extent::new(2048, 4 * PAGE - 2048),
                Extent::new(6 * PAGE, 2 * PAGE),
                Extent::new(9 * PAGE, 11 * PAGE),
                Extent::new(24 * PAGE, 2048)
            ]
        );
        let (out, kept) = excluded.fit(&memory, 2 * PAGE, 100);
        assert_eq!(out.runs().len(), 3, "the page alone stays: {out:?}");
        assert_eq!(kept.len(), 3);
        let (out, kept) = excluded.fit(&memory, PAGE, 2);
        assert_eq!((out.runs().len(), kept.len()), (1, 2), "{out:?}");
    }

    #[test]
    fn hostile_notes_are_refused() {
        let good = runs(&[(1, 2, Rule::Free), (7, 3, Rule::User)]).encode();
        for cut in 0..good.len() {
            Excluded::decode(&good[..cut]).unwrap_err();
        }
        let mut many = good.clone();
        many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        Excluded::decode(&many).unwrap_err();
        let mut empty = good.clone();
        empty[17] = 0;
        Excluded::decode(&empty).unwrap_err();
        // A run at the top of the address space and one behind it.
        let mut high = good[..16].to_vec();
        put_number(&mut high, (1 << 52) - 1);
        high.extend([1, 1, 1, 1, 1]);
        Excluded::decode(&high).unwrap_err();
        let mut endless = good[..16].to_vec();
        endless.extend([0xff; 20]);
        Excluded::decode(&endless).unwrap_err();
        // A rule of a later version is no reason to refuse the file.
        let mut later = good;
        later[18] = 99;
        let later = Excluded::decode(&later).unwrap();
        assert_eq!(later.rule_at(PAGE), Some(Rule::Unknown));
    }
}
