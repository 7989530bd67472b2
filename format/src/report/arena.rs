//! BPF arenas and the allocators that live in them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::omit::is_false;
use super::value::RenderedValue;

/// Pages of a BPF arena.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArenaSnapshot {
    /// Mapped pages, in the order in which they were found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pages: Vec<ArenaPage>,
    /// The arena is larger than what was searched page by page; its tail was only sampled.
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncated: bool,
    /// Size of the arena in pages, as the map declares it and at most 4 GiB.
    pub declared_pages: u64,
    /// The map declares more than 4 GiB, which cannot be.
    #[serde(default, skip_serializing_if = "is_false")]
    pub span_capped: bool,
    /// Kernel address where the arena's window begins. 0 when it is not known.
    pub kern_vm_start: u64,
    /// User address where the arena begins, `bpf_arena.user_vm_start`. 0 when it is not known.
    pub user_vm_start: u64,
}

/// One page of an arena.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArenaPage {
    /// User address of the page, all 64 bits.
    pub user_addr: u64,
    /// The page's bytes, one number each.
    pub bytes: Vec<u8>,
}

/// One typed arena allocator (`struct scx_allocator`) and its live allocations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SdtAllocatorSnapshot {
    /// Name of the `.bss` variable.
    pub allocator_name: String,
    /// Live slots, in the order of the allocator's tree.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<SdtAllocEntry>,
    /// More slots were live than are listed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncated: bool,
    /// Parts of the tree that were given up because they could not be read or made no sense.
    pub skipped_subtrees: u32,
    /// `scx_allocator.pool.elem_size`: bytes from slot to slot, header included.
    pub elem_size: u64,
    /// BTF id of the payload's type in the scheduler's BTF. 0 when it was not found; payloads
    /// are then bytes.
    pub target_type_id: u32,
    /// Why `target_type_id` is 0. Left out when it is not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub payload_type_reason: String,
}

/// One live allocation of a typed arena allocator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SdtAllocEntry {
    /// `sdt_data.tid.idx`: the slot's index in the tree, 27 bits.
    pub idx: i32,
    /// `sdt_data.tid.genn`: how often the slot was reused.
    pub genn: i32,
    /// The low 32 bits of the slot's arena address. (An arena page's address has all 64.)
    pub user_addr: u64,
    /// What follows the slot's header.
    pub payload: RenderedValue,
}

/// The bump allocators (`struct scx_static`) of the scheduler.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScxStaticSnapshot {
    /// One per allocator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<ScxStaticRange>,
    /// Allocators whose fields made no sense.
    pub skipped: u32,
}

impl ScxStaticSnapshot {
    /// There is nothing to say: such a snapshot is left out of the report.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.skipped == 0
    }
}

/// One bump allocator's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScxStaticRange {
    /// Name of the `.bss` variable.
    pub instance_name: String,
    /// The low 32 bits of `scx_static.memory`.
    pub start_low32: u32,
    /// `scx_static.off`: bytes handed out so far.
    pub size: u64,
    /// `scx_static.max_alloc_bytes`: bytes that can be handed out.
    pub capacity: u64,
}
