//! BPF maps as the analysis sees them: what the shared format's `maps` has no room for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::hex::Hex;
use super::omit::is_false;
use super::postmortem::{Flags, Frame};
use super::value::RenderedValue;

/// One BPF map: its header, who uses it, and those contents that the shared record of the same
/// address cannot hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MapInfo {
    /// `bpf_map.id`, as bpftool shows it.
    pub id: u32,
    /// Address of the `struct bpf_map`; the shared record's `map_kva`.
    pub kva: Hex,
    /// `bpf_map.name`.
    pub name: String,
    /// `bpf_map.map_type`.
    pub map_type: u32,
    /// The kernel's name of the type, e.g. `task_storage`. Absent for a number that neither the
    /// kernel nor the analysis knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub type_name: Option<String>,
    /// `bpf_map.key_size`, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_size: Option<u32>,
    /// `bpf_map.value_size`, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_size: Option<u32>,
    /// `bpf_map.max_entries`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_entries: Option<u32>,
    /// `bpf_map.map_flags`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<Flags>,
    /// The id of the BTF that types it. Absent when it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub btf_id: Option<u32>,
    /// The type of its keys as C writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_type: Option<String>,
    /// The type of its values as C writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_type: Option<String>,
    /// User space can no longer change it.
    #[serde(skip_serializing_if = "is_false")]
    pub frozen: bool,
    /// Elements found. Absent for types that hold none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// What the kernel has allocated for it, bytes, as `bytes_memlock` of bpftool counts. For a
    /// hash without lock counters where the kernel has none, and for an arena its pages, though
    /// older kernels count the one and not the other. Absent for types whose count is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Programs that use it, by id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub progs: Vec<NamedId>,
    /// Of a struct_ops map: `INIT`, `INUSE`, `TOBEFREE` or `READY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub struct_ops_state: Option<String>,
    /// Of a struct_ops map: which program implements which callback.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub callbacks: Vec<Callback>,
    /// What the slots or elements refer to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<MapTarget>,
    /// To whom the elements of a local storage belong, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<StorageOwner>,
    /// Records of a ring buffer that nobody has consumed, the oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<RingRecord>,
    /// Stacks of a stack-trace map with names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stacks: Vec<NamedStack>,
    /// Of a Bloom filter: bits and hash functions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bloom: Option<BloomInfo>,
    /// Why the contents are missing or incomplete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// An object with an id.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(default)]
pub struct NamedId {
    /// Its id.
    pub id: u32,
    /// Its name; empty when it has none.
    pub name: String,
}

/// A callback of a struct_ops map and the program that implements it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Callback {
    /// The member of the ops.
    pub member: String,
    /// The program.
    pub prog: NamedId,
    /// Where its source begins: `stall.bpf.c:42`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// What one slot or element of a map refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MapTarget {
    /// The slot's number, or the bytes of the element's key.
    pub key: String,
    /// `prog`, `map`, `cgroup`, `perf_event`, `net_device`, `cpu`, `sock` or `xsk`.
    pub kind: String,
    /// Address of the object.
    pub kva: Hex,
    /// Its id (program, map, cgroup), index (device), number (CPU) or cookie (socket).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// Its name: a program's, map's or device's, a cgroup's path, what a perf event counts, the
    /// family and ports of a socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Why it could not be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// To whom an element of a local storage belongs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StorageOwner {
    /// Address of the owner.
    pub kva: Hex,
    /// `task`, `cgroup`, `inode` or `sock`.
    pub kind: String,
    /// Thread id of a task, id of a cgroup, number of an inode, cookie of a socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// Name of a task, path of a cgroup, filesystem and name of an inode, family and ports of a
    /// socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Why it could not be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A record of a ring buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RingRecord {
    /// Position of its header, bytes since the ring was made.
    pub position: u64,
    /// Bytes of its data.
    pub len: u32,
    /// `committed`, `discarded`, or `busy`: reserved, and its producer has not finished.
    pub state: String,
    /// Its data.
    pub data_hex: String,
}

/// A stack of a stack-trace map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NamedStack {
    /// Index of the bucket, the stack's id.
    pub bucket_id: u32,
    /// Its frames, innermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub frames: Vec<Frame>,
    /// With build ids: `BUILDID+0xOFFSET`, or the address of a frame without one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_frames: Vec<String>,
}

/// A Bloom filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BloomInfo {
    /// Bits in the filter.
    pub bits: u64,
    /// Bits that are set.
    pub bits_set: u64,
    /// Hash functions per element.
    pub hash_functions: u32,
}

/// An allocator that a scheduler keeps in an arena (`struct scx_allocator`): what the shared
/// record of the same name in `sdt_allocations` has no place for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AllocatorInfo {
    /// Name of the variable.
    pub name: String,
    /// Address of the variable.
    pub kva: Hex,
    /// The map that holds the variable.
    pub map_id: u32,
    /// The arena's map. Absent when no program tells which arena goes with the variable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arena_id: Option<u32>,
    /// Bytes from slot to slot.
    pub elem_size: u64,
    /// Live slots found.
    pub live: u64,
    /// The payload's type. Absent when it could not be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_type: Option<String>,
    /// The rule that told the type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_rule: Option<String>,
    /// Where a slot keeps its number. Absent without live slots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<String>,
    /// Slots whose own number is not their place in the tree: being allocated or freed.
    pub misplaced: u64,
    /// To whom slots belong, as far as a map's value points to them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<SlotOwner>,
    /// Why slots are missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// To whom a slot belongs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SlotOwner {
    /// `idx` of the slot.
    pub idx: i32,
    /// The map whose value points to it.
    pub map_id: u32,
    /// The owner of that value.
    pub owner: StorageOwner,
}

/// An arena: its global variables, and how much of it is understood.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ArenaInfo {
    /// The arena's map.
    pub map_id: u32,
    /// The map's name.
    pub name: String,
    /// Address of its `struct bpf_arena`.
    pub kva: Hex,
    /// Pages that exist.
    pub pages: u64,
    /// User address of its global variables (the section `.addr_space.1`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub globals_at: Option<Hex>,
    /// Its global variables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub globals: Option<RenderedValue>,
    /// Why they are missing. Absent also when there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub globals_error: Option<String>,
    /// Pages in which nothing was recognised: no global variable, no allocator's tree, slot or
    /// region. Pointers with a type may still lead into them.
    pub unrecognised_pages: u64,
    /// Where those are, as ranges of user addresses; the first few.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unrecognised: Vec<String>,
}
