//! What can be wrong with a question, and what could have been asked instead.

use std::fmt;

/// The result of asking a [`Snapshot`](super::Snapshot).
pub type SnapshotResult<T> = Result<T, SnapshotError>;

/// Keys of a map that a message names.
pub(super) const KEY_SAMPLES: usize = 3;

/// A map that the filter on the active scheduler kept out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExcludedMap {
    /// Its name.
    pub name: String,
    /// Its address; 0 when the report does not have it.
    pub map_kva: u64,
}

/// Why there are no statistics of a scheduler in one sample of a series.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MissingStatsReason {
    /// The run had no scheduler program that could be asked.
    NoSchedulerBinary,
    /// No scheduler ran at that time.
    NoScheduler {
        /// Why.
        reason: String,
    },
    /// The guest stood still.
    DuringFreeze,
    /// The request was given up.
    Cancelled,
    /// The scheduler answered with an error.
    SchedulerError {
        /// The error.
        errno: i32,
        /// What was asked.
        args: String,
    },
    /// The answer had no `resp` in it.
    MissingResp {
        /// What was asked.
        args: String,
    },
    /// The request was longer than may be sent.
    RequestTooLarge {
        /// Its bytes.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// The answer was longer than may be received.
    ResponseTooLarge {
        /// Its bytes.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// The thread that asks had panicked.
    MutexPoisoned,
}

impl fmt::Display for MissingStatsReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSchedulerBinary => f.write_str("the run has no scheduler program"),
            Self::NoScheduler { reason } => write!(f, "no scheduler runs: {reason}"),
            Self::DuringFreeze => f.write_str("the guest was frozen"),
            Self::Cancelled => f.write_str("the request was cancelled"),
            Self::SchedulerError { errno, args } => {
                write!(f, "the scheduler answered {args:?} with error {errno}")
            }
            Self::MissingResp { args } => write!(f, "the answer to {args:?} has no resp"),
            Self::RequestTooLarge { size, max } => {
                write!(f, "the request has {size} bytes, at most {max} are sent")
            }
            Self::ResponseTooLarge { size, max } => {
                write!(f, "the answer has {size} bytes, at most {max} are read")
            }
            Self::MutexPoisoned => f.write_str("the thread that asks had panicked"),
        }
    }
}

/// Why a question has no answer. What was there instead is in the members, so that a test's
/// message says what to change.
///
/// `PlaceholderSample`, `MissingStats`, `HostFieldUnavailable` and `WalkerDriftedWithinPhase` are
/// about series of samples, which one report is not: nothing here gives them. They are there for
/// code that makes a series out of many reports.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotError {
    /// No map has that name.
    MapNotFound {
        /// The name.
        requested: String,
        /// The maps that there are.
        available: Vec<String>,
    },
    /// No global section has a variable of that name.
    VarNotFound {
        /// The name.
        requested: String,
        /// The variables that there are; for a read that picks among copies, the sections.
        available: Vec<String>,
    },
    /// Several sections have it, and none of them is known to be the running scheduler's.
    AmbiguousVar {
        /// The name.
        requested: String,
        /// The sections, one for each copy.
        found_in: Vec<String>,
    },
    /// A component of a path is not there.
    FieldNotFound {
        /// The whole path.
        requested: String,
        /// What of it led somewhere.
        walked: String,
        /// The component.
        component: String,
        /// The members there.
        available: Vec<String>,
    },
    /// A component of a path asks for a member of something that has none.
    NotAStruct {
        /// The whole path.
        requested: String,
        /// What of it led somewhere.
        walked: String,
        /// The component.
        component: String,
        /// What is there.
        kind: String,
    },
    /// The value is of another kind.
    TypeMismatch {
        /// What was asked for.
        expected: String,
        /// What is there.
        actual: String,
        /// The path.
        requested: String,
    },
    /// No entry has that position.
    IndexOutOfRange {
        /// The map.
        map: String,
        /// The position.
        index: usize,
        /// Entries that there are.
        len: usize,
    },
    /// The CPU has no value.
    PerCpuSlot {
        /// The map.
        map: String,
        /// The CPU.
        cpu: u32,
        /// CPUs that there are values for.
        len: usize,
        /// The CPU is within them: its slot is empty.
        unmapped: bool,
    },
    /// No entry is the one that was looked for.
    NoMatch {
        /// The map.
        map: String,
        /// What looked.
        op: String,
        /// How many were looked at.
        len: usize,
        /// The first keys of them.
        available_keys: Vec<String>,
    },
    /// Two dots in a row, or one at an end.
    EmptyPathComponent {
        /// The path.
        requested: String,
    },
    /// An entry has a value for each CPU, and none was chosen.
    PerCpuNotNarrowed {
        /// The map.
        map: String,
    },
    /// There are bytes without a type.
    NoRendered {
        /// The map.
        map: String,
        /// `key` or `value`.
        side: String,
    },
    /// A sample of a series is a placeholder.
    PlaceholderSample {
        /// The sample.
        tag: String,
        /// Why.
        reason: String,
    },
    /// A sample of a series has no statistics.
    MissingStats {
        /// The sample.
        tag: String,
        /// Why.
        reason: MissingStatsReason,
    },
    /// A sample of a series has no CPU times of a CPU.
    HostFieldUnavailable {
        /// The sample.
        tag: String,
        /// The CPU.
        cpu: u32,
    },
    /// The report is a placeholder: nothing was captured.
    PlaceholderSnapshot {
        /// The snapshot, if it has a name.
        tag: Option<String>,
    },
    /// It cannot be told which scheduler runs.
    NoActiveScheduler {
        /// Why.
        reason: String,
    },
    /// The scheduler's maps are there, but none at an address that its programs use.
    ActiveFilterExcludedMaps {
        /// The map or variable.
        requested: String,
        /// The scheduler's object.
        active_obj: String,
        /// Its maps.
        excluded_maps: Vec<ExcludedMap>,
        /// The addresses that its programs use.
        whitelist_kvas: Vec<u64>,
    },
    /// The running scheduler changed within a phase of a series.
    WalkerDriftedWithinPhase {
        /// The phase.
        phase: String,
        /// The addresses of its maps at first.
        pinned_kvas: Vec<u64>,
        /// Those in a later sample.
        sample_kvas: Vec<u64>,
        /// What was asked for.
        requested: String,
    },
    /// A picker chose nothing, or something that is not there.
    ProjectionFailed {
        /// What it did.
        reason: String,
    },
    /// A map could not be read whole.
    MapRenderIncomplete {
        /// The map.
        map: String,
        /// Why.
        error: String,
    },
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MapNotFound {
                requested,
                available,
            } => write!(
                f,
                "snapshot has no map '{requested}' (captured maps: {available:?})"
            ),
            Self::VarNotFound {
                requested,
                available,
            } => write!(
                f,
                "snapshot has no global variable '{requested}' in any *.bss/*.data/*.rodata map (available globals: {available:?})"
            ),
            Self::AmbiguousVar {
                requested,
                found_in,
            } => write!(
                f,
                "snapshot global '{requested}' is ambiguous (found in {found_in:?}); use Snapshot::active().var(name) for the running scheduler's, Snapshot::vars(name) for every copy, or Snapshot::map(name) for one section"
            ),
            Self::FieldNotFound {
                requested,
                walked,
                component,
                available,
            } => write!(
                f,
                "path '{requested}': component '{component}' (after walking '{walked}') not found (members at this depth: {available:?})"
            ),
            Self::NotAStruct {
                requested,
                walked,
                component,
                kind,
            } => write!(
                f,
                "path '{requested}': component '{component}' (after walking '{walked}') expected a Struct, got {kind}"
            ),
            Self::TypeMismatch {
                expected,
                actual,
                requested,
            } => write!(
                f,
                "path '{requested}': cannot read as {expected} — actual rendered variant is {actual}"
            ),
            Self::IndexOutOfRange { map, index, len } => {
                write!(f, "map '{map}': index {index} out of range (length {len})")
            }
            Self::PerCpuSlot {
                map,
                cpu,
                unmapped: true,
                ..
            } => write!(f, "map '{map}': cpu {cpu} per-CPU slot is unmapped (None)"),
            Self::PerCpuSlot { map, cpu, len, .. } => write!(
                f,
                "map '{map}': cpu {cpu} out of range (have {len} per-CPU slots)"
            ),
            Self::NoMatch {
                map,
                op,
                len,
                available_keys,
            } => no_match(f, map, op, *len, available_keys),
            Self::EmptyPathComponent { requested } => write!(
                f,
                "path '{requested}' has an empty component (consecutive '.')"
            ),
            Self::PerCpuNotNarrowed { map } => write!(
                f,
                "map '{map}': per-CPU entry without a CPU narrow — call .cpu(N) first"
            ),
            Self::NoRendered { map, side } => write!(
                f,
                "map '{map}': {side} has no rendered structure (no BTF type at capture time)"
            ),
            Self::PlaceholderSample { tag, reason } => write!(
                f,
                "sample '{tag}' is a placeholder report (capture pipeline did not land): {reason}"
            ),
            Self::MissingStats { tag, reason } => {
                write!(f, "sample '{tag}': stats absent ({reason})")
            }
            Self::HostFieldUnavailable { tag, cpu } => write!(
                f,
                "sample '{tag}': per_cpu_time has no entry for cpu {cpu} (placeholder report or kernel-walker resolution failure)"
            ),
            Self::PlaceholderSnapshot { tag } => {
                f.write_str("snapshot ")?;
                if let Some(tag) = tag {
                    write!(f, "'{tag}' ")?;
                }
                f.write_str("is a placeholder — the freeze-rendezvous path could not capture real data; no maps to walk")
            }
            Self::NoActiveScheduler { reason } => write!(
                f,
                "snapshot has no currently-active scheduler ({reason}); use Snapshot::vars(name) for every copy, or Snapshot::map(name) for one section"
            ),
            Self::ActiveFilterExcludedMaps {
                requested,
                active_obj,
                excluded_maps,
                whitelist_kvas,
            } => excluded(f, requested, active_obj, excluded_maps, whitelist_kvas),
            Self::WalkerDriftedWithinPhase {
                phase,
                pinned_kvas,
                sample_kvas,
                requested,
            } => {
                write!(
                    f,
                    "'{requested}': the running scheduler changed within phase '{phase}': its maps were at "
                )?;
                addresses(f, pinned_kvas)?;
                f.write_str(", in this sample they are at ")?;
                addresses(f, sample_kvas)
            }
            Self::ProjectionFailed { reason } => write!(f, "projection failed: {reason}"),
            Self::MapRenderIncomplete { map, error } => write!(
                f,
                "map '{map}' contents unavailable (render failed at capture): {error}"
            ),
        }
    }
}

impl std::error::Error for SnapshotError {}

fn no_match(
    f: &mut fmt::Formatter<'_>,
    map: &str,
    op: &str,
    len: usize,
    keys: &[String],
) -> fmt::Result {
    if len == 0 {
        return write!(f, "map '{map}': {op} matched no entries (map is empty)");
    }
    write!(f, "map '{map}': {op} matched none of {len} entries ")?;
    if keys.is_empty() {
        return f.write_str("(sample keys unavailable)");
    }
    write!(f, "(first {}: {keys:?})", keys.len())?;
    if keys.iter().all(|key| key.starts_with("hex:")) {
        f.write_str("; the map has no BTF type for its keys, so compare their bytes")?;
    }
    Ok(())
}

fn excluded(
    f: &mut fmt::Formatter<'_>,
    requested: &str,
    object: &str,
    maps: &[ExcludedMap],
    whitelist: &[u64],
) -> fmt::Result {
    write!(
        f,
        "'{requested}': the active scheduler's object '{object}' has maps, but none of them is in use by its programs: "
    )?;
    for (i, map) in maps.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        write!(f, "{comma}{}@{:#x}", map.name, map.map_kva)?;
    }
    f.write_str("; its programs use ")?;
    addresses(f, whitelist)?;
    let without = maps.iter().filter(|map| map.map_kva == 0).count();
    f.write_str(match without {
        0 => " (all of them are at other addresses: maps of another instance)",
        n if n == maps.len() => " (none of them has an address in the report)",
        _ => " (some are at other addresses, the others have none in the report)",
    })
}

fn addresses(f: &mut fmt::Formatter<'_>, all: &[u64]) -> fmt::Result {
    f.write_str("[")?;
    for (i, at) in all.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        write!(f, "{comma}{at:#x}")?;
    }
    f.write_str("]")
}
