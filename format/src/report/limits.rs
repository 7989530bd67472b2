//! Limits of the shared format: how much of a thing a report holds, and what says that there was
//! more.
//!
//! They bound what the live tool that defined the format reads while its guest stands still. A
//! post-mortem analysis may go further; what it cuts off, it marks the same way.

/// Elements of a hash map, a per-CPU hash map or local storage. More: the map's `error`.
pub const MAX_HASH_ENTRIES: usize = 4096;
/// Keys of a per-CPU array. More: the map's `error`.
pub const MAX_PERCPU_KEYS: u32 = 256;
/// Keys of an array. More: the map's `error`.
pub const MAX_ARRAY_KEYS: u32 = 4096;
/// Buckets of a stack-trace map. More: `truncated`.
pub const MAX_STACK_TRACE_BUCKETS: u32 = 16384;
/// Frames of one bucket of a stack-trace map. More: `truncated`.
pub const MAX_STACK_TRACE_PCS: u32 = 128;
/// Slots of a map of descriptors. More: `truncated`.
pub const MAX_FD_ARRAY_SLOTS: u32 = 4096;
/// Listed indices of a map of descriptors. More: `indices_truncated`.
pub const MAX_FD_ARRAY_INDICES: usize = 1024;
/// Bytes of a map's value. More: the value counts as unreadable.
pub const MAX_VALUE_SIZE: u32 = 16 << 20;
/// Bytes of a program's BTF. More: the map is shown as bytes.
pub const MAX_BTF_BLOB: usize = 32 << 20;
/// Pages of an arena that are looked at one by one. More: `truncated`.
pub const MAX_ARENA_PAGES: u64 = 4096;
/// Pages that are looked at in the rest of an arena, evenly spread.
pub const MAX_ARENA_STRIDE_PROBES: u64 = 256;
/// Bytes that an arena can span. More: `span_capped`.
pub const MAX_VM_RANGE_BYTES: u64 = 4 << 30;
/// Live slots of one typed allocator. More: `truncated`.
pub const MAX_SDT_ALLOC_ENTRIES: usize = 4096;
/// Smallest element of a typed allocator that is believed, bytes.
pub const MIN_ELEM_SIZE: u64 = 16;
/// Largest element of a typed allocator that is believed, bytes.
pub const MAX_ELEM_SIZE: u64 = 4096;
/// Tasks in `task_enrichments`. More: nothing says so.
pub const MAX_ENRICHED_TASKS: usize = 4096;
/// Tasks of one run queue's or dispatch queue's list. More: `truncated`.
pub const MAX_NODES_PER_LIST: usize = 4096;
/// Buckets of the hash of user dispatch queues. More: nothing says so.
pub const MAX_RHT_BUCKETS: u32 = 65536;
/// User dispatch queues. More: nothing says so.
pub const MAX_RHT_NODES: usize = 8192;
/// User dispatch queues in one bucket. More: nothing says so.
pub const PER_BUCKET_CHAIN_CAP: usize = 1024;
/// Maps of one program that are looked at to tell which scheduler is active.
pub const MAX_USED_MAPS: u32 = 64;
/// Depth to which a value is decoded. Deeper: `unsupported`.
pub const MAX_RENDER_DEPTH: u32 = 32;
/// Modifiers (const, typedef, …) in a row that are looked through. More: `unsupported`.
pub const MAX_MODIFIER_DEPTH: u32 = 32;
/// Elements of an array value. More: `elements` is shorter than `len`.
pub const MAX_ARRAY_ELEMS: usize = 4096;
/// Bytes read behind a pointer. More: `truncated`, or a reason.
pub const POINTER_CHASE_CAP: usize = 4096;
/// Bytes read of a CPU mask behind a pointer: 8192 CPUs.
pub const CPUMASK_READ_CAP: usize = 1024;
/// Bytes after a lock slow path's symbol in which a program counter counts as inside it.
pub const LOCK_SLOWPATH_WINDOW: u64 = 4096;
/// JSON levels (objects and arrays) that serde_json reads in one report, and at most 8 of them
/// are around a [`RenderedValue`](super::RenderedValue).
pub const MAX_JSON_DEPTH: usize = 128;
