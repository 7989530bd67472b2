//! What changed from the early image of a dual capture to the late one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::hex::Hex;
use super::locks::NamedTask;
use super::omit::is_false;

/// The early image against the late one, or any report against another. Stands in the late report
/// of a dual one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EarlyLateDiff {
    /// The two are not of one boot. Then things are the same when they have the same names and ids,
    /// pointers when they differ only by where the kernel was put at boot, and nothing is said of
    /// the time in between.
    #[serde(skip_serializing_if = "is_false")]
    pub other_boot: bool,
    /// The time between the two by the guest's own clock, ns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elapsed_ns: Option<u64>,
    /// The same in jiffies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elapsed_jiffies: Option<u64>,
    /// The scheduler. Absent when neither image has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<SchedulerChange>,
    /// Tasks that wait in both images and have not run in between, the longest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub still_waiting: Vec<WaitingChange>,
    /// Queues that had or have tasks, or took some in: those of the late report, in its order, then
    /// those that are gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dsqs: Vec<DsqChange>,
    /// CPUs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<CpuChange>,
    /// Who has had the CPUs in between: tasks by the time that they ran, the longest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ran: Vec<RanTask>,
    /// Event counters that changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub counters: Vec<CounterChange>,
    /// BPF maps that came, went, or have another number of entries, by id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<MapChange>,
    /// Variables of BPF programs that changed, by map and then as the map has them: each number,
    /// text or pointer for itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub variables: Vec<VariableChange>,
    /// Maps with entries that came, went or changed, in the order of the late report.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<EntriesChange>,
    /// Tasks that only the late image has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks_come: Vec<NamedTask>,
    /// Tasks that only the early image has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks_gone: Vec<NamedTask>,
    /// What could not be compared, and why. Each a sentence.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_compared: Vec<String>,
}

/// The scheduler then and now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SchedulerChange {
    /// Its name in the early image. Absent when it had none attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_name: Option<String>,
    /// Its name in the late image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_name: Option<String>,
    /// Whether it is the same object in the kernel.
    pub same: bool,
    /// `enable_state` in the early image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_state: Option<String>,
    /// `enable_state` in the late image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_state: Option<String>,
    /// `exit_kind` in the early image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_exit_kind: Option<u32>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_exit_kind_name: Option<String>,
    /// `exit_kind` in the late image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_exit_kind: Option<u32>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_exit_kind_name: Option<String>,
}

/// A task that waits all the while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WaitingChange {
    /// The task.
    #[serde(flatten)]
    pub task: NamedTask,
    /// How long it had been runnable in the early image, ms.
    pub early_age_ms: u64,
    /// The same in the late image.
    pub late_age_ms: u64,
    /// The queue it was on. Absent when it was on none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_dsq_id: Option<Hex>,
    /// The queue it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_dsq_id: Option<Hex>,
}

/// A dispatch queue then and now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DsqChange {
    /// Its id.
    pub id: Hex,
    /// Its name, as `dsqs` has it.
    pub name: String,
    /// What it is, as `dsqs` has it.
    pub origin: String,
    /// Its address.
    pub dsq_kva: Hex,
    /// Tasks in it in the early image. Absent when it was not there yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_nr: Option<u32>,
    /// Tasks in it in the late image. Absent when it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_nr: Option<u32>,
    /// Tasks that were put into it in between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub put_in: Option<u32>,
    /// Tasks that left it in between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_out: Option<u32>,
}

/// A CPU then and now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CpuChange {
    /// The CPU.
    pub cpu: u32,
    /// What it ran in the early image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_curr: Option<NamedTask>,
    /// What it runs in the late one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_curr: Option<NamedTask>,
    /// By how much its run queue's clock went on, ns. 0: it stood still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_advanced_ns: Option<u64>,
    /// Runnable tasks in the early image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_nr_running: Option<u32>,
    /// Runnable tasks in the late one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_nr_running: Option<u32>,
}

/// A task that ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RanTask {
    /// The task.
    #[serde(flatten)]
    pub task: NamedTask,
    /// How long it ran in between, ns, as of the last time that the kernel counted.
    pub ran_ns: u64,
    /// The CPU it was on in the early image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_cpu: Option<u32>,
    /// The CPU it is on in the late one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_cpu: Option<u32>,
}

/// An event counter then and now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CounterChange {
    /// Its name.
    pub name: String,
    /// Its value in the early image.
    pub early: i64,
    /// Its value in the late one.
    pub late: i64,
    /// The difference per 1000 s of the guest's clock. Absent when the time is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_1000_s: Option<i64>,
}

/// A BPF map then and now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MapChange {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// `come`, `gone` or `changed`.
    pub what: String,
    /// Entries in the early image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_entries: Option<u64>,
    /// Entries in the late one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_entries: Option<u64>,
}

/// A variable of BPF programs then and now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct VariableChange {
    /// The map that it is in.
    pub map: String,
    /// The variable.
    pub name: String,
    /// What of it changed.
    pub changes: Vec<ValueChange>,
    /// There are more changes than are listed.
    #[serde(skip_serializing_if = "is_false")]
    pub truncated: bool,
}

/// A number, text or pointer then and now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ValueChange {
    /// Where it is within the value, `limits.slice_us`, `[3].nr`; empty for the value itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What it was, as reports show it. Absent when there was nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early: Option<String>,
    /// What it is. Absent when there is nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<String>,
    /// Of integers the difference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<i64>,
    /// The difference per 1000 s of the guest's clock. Absent when the time is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_1000_s: Option<i64>,
}

/// What happened to the entries of a map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EntriesChange {
    /// The map's name.
    pub map: String,
    /// Its address in the late report. Absent when that does not have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map_kva: Option<Hex>,
    /// Entries that only the late report has.
    pub come: u64,
    /// Entries that only the early report has.
    pub gone: u64,
    /// Entries with another value.
    pub changed: u64,
    /// The first of them: those of the late report in its order, then those that are gone.
    pub entries: Vec<EntryChange>,
}

/// An entry of a map then and now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EntryChange {
    /// Its key, as reports show it; in local storage the owner.
    pub key: String,
    /// `come`, `gone` or `changed`.
    pub what: String,
    /// What of the value changed; of an entry that came or went, the value as a whole.
    pub changes: Vec<ValueChange>,
    /// There are more changes than are listed.
    #[serde(skip_serializing_if = "is_false")]
    pub truncated: bool,
}

/// Two reports compared by hand, `analyze diff`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ReportsDiff {
    /// The first one.
    pub a: DiffSide,
    /// The second one.
    pub b: DiffSide,
    /// From the first to the second.
    pub diff: EarlyLateDiff,
}

/// One of two reports that are compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DiffSide {
    /// What it is: `early`, `late` or the file's name without its folder.
    pub name: String,
    /// `uname -r` of the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Time since the guest's boot, ns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime_ns: Option<u64>,
    /// The scheduler's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// The verdict of its report.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headline: Vec<String>,
}
