//! The report: its types, its JSON form, its text form and its JSON schema.
//!
//! A report is the JSON object that a failure-dump file holds. Three shapes exist, told apart by
//! the member `schema`: [`FailureDumpReport`] (one capture), [`DualFailureDumpReport`] (an early
//! and a late capture) and [`DegradedFailureDumpReport`] (a capture that was given up).
//! [`FailureDumpReportAny`] holds whichever one a file turns out to contain.
//!
//! The wire format is fixed and shared with another tool, so the names, the order and the
//! omission rules of every type here are a contract; `docs/report-format.md` describes it field by
//! field. What this project adds lives in one optional member, `postmortem`
//! ([`PostmortemReport`]), which readers of the shared format skip.
//!
//! The text form comes from `Display`. [`text_report`] puts our own block before it.

mod any;
mod arena;
mod bpf_maps;
mod bpf_objects;
mod cpu;
mod cpu_state;
mod deferred;
mod diff;
mod dsq_name;
mod dump;
mod findings;
mod hex;
mod history;
mod kernel_dump;
mod kernel_side;
pub mod limits;
mod locks;
mod map;
mod omit;
mod path;
mod postmortem;
mod probe;
mod prog;
pub mod reasons;
mod recovered;
mod sched;
mod schema;
mod task;
pub mod text;
mod value;

pub use any::{FailureDumpReportAny, ReportError};
pub use arena::{
    ArenaPage, ArenaSnapshot, ScxStaticRange, ScxStaticSnapshot, SdtAllocEntry,
    SdtAllocatorSnapshot,
};
pub use bpf_maps::*;
pub use bpf_objects::*;
pub use cpu::{
    CgroupPsiStat, NR_SOFTIRQS, PerCpuTimeStats, PerNodeNumaStats, SOFTIRQ_NAMES, VcpuPerfSample,
    VcpuRegSnapshot,
};
pub use cpu_state::*;
pub use deferred::*;
pub use diff::*;
pub use dsq_name::DsqName;
pub use dump::{
    DegradedFailureDumpReport, DualFailureDumpReport, FailureDumpReport, GuestSetupFailureContext,
    SCHEMA_DEGRADED, SCHEMA_DUAL, SCHEMA_SINGLE,
};
pub use findings::{Finding, FindingEvidence};
pub use hex::{Hex, hex_bytes, hex_string};
pub use history::*;
pub use kernel_dump::*;
pub use kernel_side::*;
pub use locks::*;
pub use map::{
    FailureDumpArrayEntry, FailureDumpEntry, FailureDumpFdArray, FailureDumpMap,
    FailureDumpPercpuEntry, FailureDumpPercpuHashEntry, FailureDumpRingbuf, FailureDumpStackTrace,
    FailureDumpStackTraceEntry, map_type_name,
};
pub use path::{
    ALL_SNAPSHOT_TAGS, SNAPSHOT_TAG_EARLY_DEGRADED, SNAPSHOT_TAG_EARLY_ONLY_LATE_NEVER_FIRED,
    SNAPSHOT_TAG_EARLY_ONLY_LATE_SUPPRESSED, SNAPSHOT_TAG_EARLY_PRE_LATE_DEGRADED,
    periodic_snapshot_tag, tagged_snapshot_path,
};
pub use postmortem::*;
pub use probe::{ProbeExit, ProbeInfo};
pub use prog::{ProbeBssCounters, ProgRuntimeStats};
pub use recovered::*;
pub use sched::{DsqState, EventCounterSample, RqScxState, ScxSchedState};
pub use schema::{json_schema, json_schema_text};
pub use task::TaskEnrichment;
pub use text::{Escaped, brief_report, text_report};
pub use value::{RenderedMember, RenderedValue};
