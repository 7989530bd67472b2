//! What the guest's kernel has loaded for BPF: programs, links, and which of them make up the
//! scheduler that the report is about.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bpf_maps::{Callback, NamedId};
use super::hex::Hex;
use super::omit::is_false;

/// A BPF map, by its names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MapRef {
    /// Address of its `struct bpf_map`.
    pub kva: Hex,
    /// Its id. Absent for a map that has none any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// `bpf_map.name`, at most 15 bytes.
    pub name: String,
}

/// A line of a BPF program's source, out of the program's BTF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SourceLine {
    /// The file, as the compiler was given it.
    pub file: String,
    /// The line, counted from 1.
    pub line: u32,
    /// The text of the line. Absent when the compiler did not keep it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// A BPF program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProgramInfo {
    /// Its id.
    pub id: u32,
    /// Address of its `struct bpf_prog`.
    pub kva: Hex,
    /// The name of its main function out of its BTF; without BTF, the same as `kernel_name`.
    pub name: String,
    /// `bpf_prog_aux.name`, at most 15 bytes.
    pub kernel_name: String,
    /// The kernel's name of its type, `BPF_PROG_TYPE_` left out, in lower case: `struct_ops`. A
    /// number for a type that the kernel's BTF does not name.
    #[serde(rename = "type")]
    pub prog_type: String,
    /// The kernel's name of what it may be attached to, `BPF_` left out, in lower case:
    /// `trace_fentry`. Absent for types that have no choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attach_type: Option<String>,
    /// `bpf_prog.tag`, 16 hexadecimal digits: a digest of its instructions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// When it was loaded: ns since boot, suspend included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loaded_ns: Option<u64>,
    /// How long ago that was, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// The user who loaded it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// It was compiled to machine code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jited: Option<bool>,
    /// Size of that code, all functions, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jited_bytes: Option<u32>,
    /// Size of its instructions as the verifier left them, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xlated_bytes: Option<u64>,
    /// Memory that the kernel accounts for it, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Instructions that the verifier looked at, every path counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_insns: Option<u32>,
    /// It may sleep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sleepable: Option<bool>,
    /// Its licence lets it call functions that are for GPL programs only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpl_compatible: Option<bool>,
    /// Its runs. Absent when the kernel keeps no counters for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<ProgramStats>,
    /// What it is attached to, or made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<ProgramHook>,
    /// The maps that it uses, in the order of its instructions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<MapRef>,
    /// The id of its BTF.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub btf_id: Option<u32>,
    /// Where its code (the main function's) begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Hex>,
    /// Where its code ends: the first byte behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<Hex>,
    /// Its first line of source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceLine>,
    /// All its functions, the main one first. Empty for a program that is only that one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<ProgramFunction>,
    /// Why nothing more can be said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How often a program ran, summed over the CPUs (saturating).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProgramStats {
    /// Runs. See `not_counting`.
    pub runs: u64,
    /// Time in the program, ns. See `not_counting`.
    pub time_ns: u64,
    /// Entries that the kernel refused because the program was already running on that CPU. They
    /// are always counted.
    pub misses: u64,
    /// BPF statistics were off (`kernel.bpf_stats_enabled`): `runs` and `time_ns` are from times
    /// when they were on, and 0 does not mean that the program never ran.
    #[serde(skip_serializing_if = "is_false")]
    pub not_counting: bool,
    /// The CPUs whose part is not 0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub per_cpu: Vec<ProgramCpuStats>,
}

/// One CPU's part of [`ProgramStats`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProgramCpuStats {
    /// The CPU.
    pub cpu: u32,
    /// Runs.
    pub runs: u64,
    /// Time in the program, ns.
    pub time_ns: u64,
    /// Refused entries.
    pub misses: u64,
}

/// What a program is attached to, or made for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProgramHook {
    /// The struct whose callback it implements: `sched_ext_ops`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<String>,
    /// That callback (`enqueue`), or the function or tracepoint that it is attached to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The struct_ops map that it belongs to, where only one has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<MapRef>,
    /// The type that the program was verified against, in `btf`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub btf_type_id: Option<u32>,
    /// The BTF of that type: `vmlinux`, a module's name, or `program N`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub btf: Option<String>,
    /// The program that it replaces or traces a function of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<NamedId>,
}

/// One function of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProgramFunction {
    /// Its name.
    pub name: String,
    /// Where its code begins.
    pub start: Hex,
    /// The first byte behind its code.
    pub end: Hex,
    /// Its first line of source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceLine>,
}

/// A BPF link: what holds a program where it is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LinkInfo {
    /// Its id.
    pub id: u32,
    /// Address of its `struct bpf_link`.
    pub kva: Hex,
    /// The kernel's name of its type, `BPF_LINK_TYPE_` left out, in lower case: `struct_ops`. A
    /// number for a type that the kernel's BTF does not name.
    #[serde(rename = "type")]
    pub link_type: String,
    /// The program. Absent for a struct_ops link, which holds a map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<NamedId>,
    /// The kernel's name of the way it is attached, `BPF_` left out, in lower case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attach_type: Option<String>,
    /// It has no id of its own yet, and nobody can open it: the kernel is still attaching it
    /// (until `bpf_link_settle()`).
    #[serde(skip_serializing_if = "is_false")]
    pub unsettled: bool,
    /// What it is attached to, in words: `map 5 (stall_ops)`, `tracepoint sched_switch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The map that it holds or is attached to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<MapRef>,
    /// The program that it is attached to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_program: Option<NamedId>,
    /// The functions that it is attached to, where it can be several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<String>,
    /// `functions` has not all of them.
    #[serde(skip_serializing_if = "is_false")]
    pub functions_truncated: bool,
    /// The cookie that the program is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<Hex>,
    /// Why its target is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Which BPF objects make up the scheduler that the report is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ActiveInfo {
    /// How it was found. `ops.priv`: its struct_ops map points to the `scx_sched`; `ops callbacks`:
    /// its struct_ops map and the `scx_sched` have the same callbacks; `first struct_ops program`
    /// and `struct_ops map name`: the methods of the shared format, which cannot tell two copies
    /// apart. Empty when none of its BPF objects was found.
    pub found_by: String,
    /// The scheduler is attached; else it was ejected and its objects are still there.
    pub attached: bool,
    /// `sched_ext_ops.name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_name: Option<String>,
    /// Address of its `struct scx_sched`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sched_kva: Option<Hex>,
    /// The part before the dot in the names of its section maps, as `active_obj_name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_name: Option<String>,
    /// The map that registered it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub struct_ops_map: Option<MapRef>,
    /// Its callbacks and the programs that implement them, in the order of the struct.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub callbacks: Vec<Callback>,
    /// All maps that these programs use, by id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<MapRef>,
    /// The links that hold it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub link_ids: Vec<u32>,
}
