//! BPF maps and their contents.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::arena::ArenaSnapshot;
use super::omit::{is_false, zero_u32, zero_u64};
use super::value::RenderedValue;

/// One BPF map: what kind it is, and its contents in the member that fits the kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FailureDumpMap {
    /// `bpf_map.name`, at most 15 bytes.
    pub name: String,
    /// Kernel address of the `struct bpf_map`. 0 and left out when it is not known.
    #[serde(default, skip_serializing_if = "zero_u64")]
    pub map_kva: u64,
    /// `bpf_map.map_type`, a number of `enum bpf_map_type`. [`map_type_name`] names it.
    pub map_type: u32,
    /// `bpf_map.value_size`, in bytes.
    pub value_size: u32,
    /// `bpf_map.max_entries`.
    pub max_entries: u32,
    /// The value of a map that holds one: an array of one entry, or struct_ops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<RenderedValue>,
    /// Elements of hash maps and local storage, in the order in which they are found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<FailureDumpEntry>,
    /// Slots of an array of more than one entry, by key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub array_entries: Vec<FailureDumpArrayEntry>,
    /// Slots of a per-CPU array, by key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub percpu_entries: Vec<FailureDumpPercpuEntry>,
    /// Elements of per-CPU hash maps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub percpu_hash_entries: Vec<FailureDumpPercpuHashEntry>,
    /// Pages of an arena.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arena: Option<ArenaSnapshot>,
    /// Positions of a ring buffer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ringbuf: Option<FailureDumpRingbuf>,
    /// Buckets of a stack-trace map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack_trace: Option<FailureDumpStackTrace>,
    /// Occupancy of a map that holds descriptors (programs, maps, sockets, …).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd_array: Option<FailureDumpFdArray>,
    /// Why the contents are missing or incomplete. It can stand next to contents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One element of a hash map or of local storage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FailureDumpEntry {
    /// The key. Absent when the map has no type for it. In local storage, a pointer to the
    /// object that owns the element.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<RenderedValue>,
    /// The bytes of the key. In local storage, those of the owner's address.
    pub key_hex: String,
    /// The value. Absent when the map has no type for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<RenderedValue>,
    /// The bytes of the value.
    pub value_hex: String,
    /// The arena allocation that the value points to, with its type. Absent when there is none or
    /// it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<RenderedValue>,
}

/// One slot of an array map.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FailureDumpArrayEntry {
    /// The slot's index.
    pub key: u32,
    /// The slot's value. Absent when its memory could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<RenderedValue>,
}

/// One slot of a per-CPU array map.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FailureDumpPercpuEntry {
    /// The slot's index.
    pub key: u32,
    /// The value of each CPU. Null: that CPU has no such value, or it could not be read. Empty
    /// when the slot has no per-CPU memory at all.
    pub per_cpu: Vec<Option<RenderedValue>>,
}

/// One element of a per-CPU hash map.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FailureDumpPercpuHashEntry {
    /// The key. Absent when the map has no type for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<RenderedValue>,
    /// The bytes of the key.
    pub key_hex: String,
    /// The value of each CPU. Null: that CPU has no such value, or it could not be read.
    pub per_cpu: Vec<Option<RenderedValue>>,
}

/// Positions of a ring buffer, all in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailureDumpRingbuf {
    /// Size of the data area: `bpf_ringbuf.mask` + 1.
    pub capacity: u64,
    /// `bpf_ringbuf.consumer_pos`.
    pub consumer_pos: u64,
    /// `bpf_ringbuf.producer_pos`.
    pub producer_pos: u64,
    /// `bpf_ringbuf.pending_pos`, the oldest record that is reserved and not yet submitted. While
    /// it differs from `producer_pos`, a producer is inside a record.
    pub pending_pos: u64,
    /// What the consumer has not read yet: `producer_pos` − `consumer_pos`, wrapping.
    pub pending_bytes: u64,
}

/// Buckets of a stack-trace map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailureDumpStackTrace {
    /// `bpf_stack_map.n_buckets`.
    pub n_buckets: u32,
    /// The buckets that hold a stack, by id.
    pub entries: Vec<FailureDumpStackTraceEntry>,
    /// Some bucket, or some frames of a bucket, are beyond the limit and missing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncated: bool,
    /// Buckets that could not be read.
    #[serde(default, skip_serializing_if = "zero_u32")]
    pub buckets_unreadable: u32,
}

/// One stack of a stack-trace map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailureDumpStackTraceEntry {
    /// Index of the bucket, the stack's id.
    pub bucket_id: u32,
    /// `stack_map_bucket.nr`: frames as the kernel counts them, even when fewer are listed.
    pub nr: u32,
    /// Program counters, innermost first. Empty when the map records build ids instead, or when
    /// the frames could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pcs: Vec<u64>,
    /// The bytes of the frames. 8 bytes a frame, or 32 with build ids.
    pub data_hex: String,
}

/// Occupancy of a map that holds descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailureDumpFdArray {
    /// Slots that hold something.
    pub populated: u32,
    /// Slots that were looked at.
    pub scanned: u32,
    /// The slots that hold something, by index, up to a limit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub indices: Vec<u32>,
    /// The map has more slots than were looked at.
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncated: bool,
    /// `indices` is shorter than `populated`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub indices_truncated: bool,
    /// Slots that could not be read.
    #[serde(default, skip_serializing_if = "zero_u32")]
    pub unreadable: u32,
}

/// The kernel's name of a map type (`enum bpf_map_type`, without its prefix, in lower case), or
/// `None` for a number that this version does not know.
pub fn map_type_name(map_type: u32) -> Option<&'static str> {
    Some(match map_type {
        1 => "hash",
        2 => "array",
        3 => "prog_array",
        4 => "perf_event_array",
        5 => "percpu_hash",
        6 => "percpu_array",
        7 => "stack_trace",
        8 => "cgroup_array",
        9 => "lru_hash",
        10 => "lru_percpu_hash",
        11 => "lpm_trie",
        12 => "array_of_maps",
        13 => "hash_of_maps",
        14 => "devmap",
        15 => "sockmap",
        16 => "cpumap",
        17 => "xskmap",
        18 => "sockhash",
        19 => "cgroup_storage",
        20 => "reuseport_sockarray",
        21 => "percpu_cgroup_storage",
        22 => "queue",
        23 => "stack",
        24 => "sk_storage",
        25 => "devmap_hash",
        26 => "struct_ops",
        27 => "ringbuf",
        28 => "inode_storage",
        29 => "task_storage",
        30 => "bloom_filter",
        31 => "user_ringbuf",
        32 => "cgrp_storage",
        33 => "arena",
        34 => "insn_array",
        _ => return None,
    })
}
