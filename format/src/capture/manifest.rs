//! The manifest: what the writer says about a capture, as JSON in a note.
//!
//! Every field can be absent, and a reader keeps the fields that it does not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Fields that this version does not know.
type Extra = BTreeMap<String, serde_json::Value>;

/// What the writer says about a capture.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// Version of the manifest's meaning; this crate writes 1.
    pub version: u32,
    /// The program that wrote the file.
    pub tool: ToolInfo,
    /// What the capture was made from.
    pub source: SourceInfo,
    /// `uname -r` of the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_release: Option<String>,
    /// Number of virtual CPUs; 0 when not known.
    pub cpus: u32,
    /// Memory of the guest. The writer adds what it captured; the caller lists what exists and
    /// was not captured. What is in neither is a hole.
    pub memory: Vec<MemoryRegion>,
    /// Pages that were left out by what the guest's kernel says they are, summed up by rule. The
    /// writer fills it in; the pages themselves are in a note of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<ExcludedPages>,
    /// Why the capture was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Trigger>,
    /// When it was taken, and how long that took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// Each a reason why the capture is less than it should be: a vCPU that was not parked,
    /// memory that was copied while the guest ran. Empty for a sound capture.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub degraded: Vec<String>,
    /// Set when the capture was given up: not every vCPU stopped, and memory is what there was at
    /// that moment. The analysis then makes a degraded report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abandoned: Option<Abandoned>,
    /// What could not be included, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingItem>,
    /// The early image, when the capture is dual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early: Option<EarlyInfo>,
    /// The id of the file that holds those pages of the kernel that this one has left out for
    /// being in there; in that file itself, its own id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_tables: Option<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A program and its version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolInfo {
    /// Name of the program.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// What a capture was made from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceInfo {
    /// `kvm`, `qemu`, `elf-core`; more to come.
    pub kind: String,
    /// Details for people: the emulator and its version, the original's file name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A range of guest physical memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryRegion {
    /// First guest physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// What the file has of it.
    pub kind: MemoryKind,
    /// Why it was not captured. What was left out on purpose, because nothing that the file is
    /// for needs it, begins with [`LEFT_OUT`]; anything else is damage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How the reason of a range begins that was left out on purpose; what follows is the rule.
pub const LEFT_OUT: &str = "left out: ";

/// What one rule left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExcludedPages {
    /// The rule: `free`, `user`, `cache`.
    pub rule: String,
    /// Bytes that it left out.
    pub bytes: u64,
    /// In how many runs of pages.
    pub runs: u64,
}

/// What a file has of a range of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    /// All of it.
    Captured,
    /// All of it but the pages that the note of excluded pages lists.
    Partial,
    /// Nothing, although the guest had memory there.
    NotCaptured,
    /// Nothing, because the guest had no memory there. A range that is not listed is a hole too.
    Hole,
    /// A kind that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Why a capture was taken.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Trigger {
    /// Stable name, such as `scx_exit`, `runnable_age`, `panic`, `console`, `signal`, `time`.
    pub kind: String,
    /// Details for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// When a capture was taken and how long that took. Absent: not known.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Timings {
    /// Host wall clock at the freeze, nanoseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_unix_ns: Option<u64>,
    /// How long the guest had been running, nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_uptime_ns: Option<u64>,
    /// From the first vCPU stopped to the last one resumed, nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_ns: Option<u64>,
    /// The part of the pause that copied memory, nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_ns: Option<u64>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// How a capture was given up.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Abandoned {
    /// Why: `timeout` (not every vCPU stopped in time), `killed` (the run was ended meanwhile), else
    /// in words.
    pub cause: String,
    /// Milliseconds from the start of the capture until it was given up.
    pub elapsed_ms: u64,
    /// Whether the hardware watchpoint on the scheduler's exit kind had fired.
    pub watchpoint_hit: bool,
    /// State of the probe program's latch, as reports name it. Absent: nobody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bss_latch_state: Option<String>,
    /// `scx_sched.exit_kind` at that moment. Absent: it was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_kind: Option<u32>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Something that a capture should hold and does not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MissingItem {
    /// What: `btf`, `vcpu 3 msr 0x48`.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// The early image of a dual capture, as the late manifest announces it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EarlyInfo {
    /// Why it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Trigger>,
    /// When it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// How long before the late image, nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before_late_ns: Option<u64>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_and_kinds_survive() {
        let text = r#"{"version":1,"cpus":4,"future":{"a":[1]},
            "memory":[{"gpa":4096,"bytes":8192,"kind":"encrypted"}],
            "trigger":{"kind":"panic","pid":7}}"#;
        let manifest: Manifest = serde_json::from_str(text).unwrap();
        assert_eq!(manifest.cpus, 4);
        assert_eq!(manifest.memory[0].kind, MemoryKind::Unknown);
        assert_eq!(manifest.memory[0].gpa, 4096);
        let trigger = manifest.trigger.as_ref().unwrap();
        assert_eq!(trigger.extra["pid"], 7);
        let again = serde_json::to_value(&manifest).unwrap();
        assert_eq!(again["future"]["a"][0], 1);
    }
}
