//! The strings that programs compare: reasons, origins, states, annotations.
//!
//! Each is a fixed text of the shared format. Those with something inserted are functions.
//! A reason that is not here belongs into the `postmortem` part.

/// Prefix of a degraded report's `reason`: some vCPU did not stop in time.
pub const REASON_DEGRADED_RENDEZVOUS_TIMEOUT: &str =
    "vCPU rendezvous timed out before parked acknowledgement";
/// Prefix of a degraded report's `reason`: the capture was killed while it waited for the vCPUs.
pub const REASON_DEGRADED_KILL_DURING_RENDEZVOUS: &str =
    "vCPU rendezvous aborted by external kill before parked acknowledgement";
/// Prefix of a degraded report's `reason` that newer versions of the live tool write.
pub const REASON_DEGRADED_CAST_ANALYSIS: &str = "cast-analysis infrastructure failure";

/// A degraded report's whole `reason`: `prefix` is one of the two rendezvous prefixes, `parked` of
/// `total` vCPUs had stopped.
pub fn degraded(prefix: &str, elapsed_ms: u64, parked: usize, total: usize) -> String {
    format!("{prefix}: {elapsed_ms}ms; {parked}/{total} vCPUs parked")
}

/// `prog_runtime_stats_unavailable`: programs could not be walked at all.
pub const REASON_PROG_ACCESSOR_UNAVAILABLE: &str = "prog accessor unavailable";
/// `prog_runtime_stats_unavailable`: no struct_ops program is loaded.
pub const REASON_NO_STRUCT_OPS_LOADED: &str = "no struct_ops programs loaded";
/// `per_node_numa_unavailable`: NUMA counters were not read.
pub const REASON_NO_NUMA_WALKER: &str = "no NUMA walker (host-side walker pending)";
/// `task_enrichments_unavailable`: tasks were not walked.
pub const REASON_NO_TASK_WALKER: &str = "no task walker available";
/// `task_enrichments_unavailable`: tasks were walked and none could be read.
pub const REASON_TASK_WALKER_ZERO_TASKS: &str = "task walker yielded zero tasks";
/// `scx_walker_unavailable`: sched_ext was not walked.
pub const REASON_NO_SCX_WALKER: &str = "no scx walker capture";
/// `scx_walker_unavailable`: no scheduler is attached.
pub const REASON_SCX_ROOT_NULL: &str = "scx_root is NULL (no scheduler attached)";
/// `scx_walker_unavailable`: there is a scheduler, but no run queue and no queue could be read.
pub const REASON_SCX_WALKER_NO_STATE: &str = "scx walker reached no state";
/// `sdt_alloc_unavailable`: the deadline had passed.
pub const REASON_SDT_ALLOC_DEADLINE_EXCEEDED: &str =
    "dump deadline exceeded before sdt_alloc pre-pass could run";
/// `sdt_alloc_unavailable`: the arena's user address has low bits, or there is no arena.
pub const REASON_SDT_ALLOC_UNALIGNED_USER_VM: &str =
    "user_vm_start is not 4 GiB-aligned; low-32 keying disabled";
/// `sdt_alloc_unavailable`: no `.bss` to look in.
pub const REASON_SDT_ALLOC_NO_BSS: &str = "no scheduler .bss map (or .bss has no program BTF)";
/// `sdt_alloc_unavailable`: the arena's kernel address is not known.
pub const REASON_SDT_ALLOC_NO_ARENA: &str = "no arena map captured (kern_vm_start unavailable)";
/// `sdt_alloc_unavailable`: the scheduler does not use these allocators.
pub const REASON_SDT_ALLOC_NO_TYPE: &str = "scheduler BTF does not declare struct scx_allocator";
/// `sdt_alloc_unavailable`: the type is there, but no variable of it.
pub const REASON_SDT_ALLOC_NO_INSTANCE: &str = "no scx_allocator instance in .bss";
/// All five reasons of a report whose capture never found the guest's memory map or symbols.
pub const REASON_PREREQUISITES_UNAVAILABLE: &str = "dump prerequisites unavailable";

/// Names of the groups of structure offsets that [`scx_walker_partial`] lists, in its order.
pub const OFFSET_GROUPS: [&str; 10] = [
    "rq",
    "scx_rq",
    "task_struct",
    "sched_ext_entity",
    "scx_dsq_list_node",
    "scx_dispatch_q",
    "scx_sched",
    "scx_sched_pnode",
    "scx_sched_pcpu",
    "rhashtable/bucket_table/rhash_head",
];

/// `scx_walker_unavailable`: the kernel's types lack these [groups](OFFSET_GROUPS), so that parts
/// of the walk were skipped. It can stand next to data.
pub fn scx_walker_partial(missing: &[&str]) -> String {
    format!(
        "scx walker partial: missing offset groups [{}]",
        missing.join(", ")
    )
}

/// `exit_kind` from which on an exit is an error.
pub const EXIT_KIND_ERROR: u32 = 1024;
/// `exit_kind` of an error that the BPF program raised itself.
pub const EXIT_KIND_ERROR_BPF: u32 = 1025;
/// `exit_kind` of the watchdog: a task was not run in time.
pub const EXIT_KIND_ERROR_STALL: u32 = 1026;

/// `early_skipped_reason`: the scan that finds old runnable tasks could not be made;
/// `prerequisite` is what it lacked.
pub fn early_prerequisites(prerequisite: &str) -> String {
    format!("scan prerequisites unavailable: {prerequisite}")
}

/// `early_skipped_reason`: no task got old enough before the end. Both in jiffies.
pub fn early_never_crossed(peak: u64, threshold: u64) -> String {
    format!("max_age never crossed threshold (peak={peak}j, threshold={threshold}j)")
}

/// `early_skipped_reason`: the kernel's tick found the stall, and no task carried an age.
pub const EARLY_TICK_STALL: &str = "scx_tick stall \u{2014} no per-task runnable_at data";

/// `early_skipped_reason`: the early capture itself came out degraded for `reason`. It names the
/// constant, not its value.
pub fn early_degraded(reason: &str) -> String {
    format!("early capture degraded ({reason}); see tagged sibling at SNAPSHOT_TAG_EARLY_DEGRADED")
}

/// `bss_latch_state`: the probe saw an error exit.
pub const BSS_LATCH_TRIGGERED: &str = "triggered";
/// `bss_latch_state`: the probe saw none.
pub const BSS_LATCH_NOT_TRIGGERED: &str = "not_triggered";
/// `bss_latch_state`: the latch's memory is no longer there.
pub const BSS_LATCH_OUT_OF_BOUNDS: &str = "out_of_bounds";
/// `bss_latch_state`: the latch was never found.
pub const BSS_LATCH_NOT_RESOLVED: &str = "not_resolved";
/// `bss_latch_state` of a report that has nothing to do with the latch.
pub const BSS_LATCH_NOT_APPLICABLE: &str = "not-applicable";

/// `cast_annotation`: a pointer to a type that is only declared; an allocator told the real one.
pub const CAST_SDT_ALLOC: &str = "sdt_alloc";
/// `cast_annotation`: a number that the program uses as a pointer into the arena.
pub const CAST_ARENA: &str = "cast\u{2192}arena";
/// `cast_annotation`: a number that the program uses as a pointer into the kernel.
pub const CAST_KERNEL: &str = "cast\u{2192}kernel";
/// `cast_annotation`: like [`CAST_ARENA`], with the type told by an allocator.
pub const CAST_ARENA_SDT_ALLOC: &str = "cast\u{2192}arena (sdt_alloc)";
/// `cast_annotation`: like [`CAST_KERNEL`], with the type told by an allocator.
pub const CAST_KERNEL_SDT_ALLOC: &str = "cast\u{2192}kernel (sdt_alloc)";

/// `payload_type_reason`: the allocator's elements are all header.
pub const PAYLOAD_SIZE_ZERO: &str = "payload_size == 0";

/// `payload_type_reason`: the scheduler has no structure of this size in bytes.
pub fn payload_no_candidate(size: u64) -> String {
    format!("no candidate of size {size}")
}

/// `payload_type_reason`: the scheduler has this many structures that could be meant.
pub fn payload_ambiguous(candidates: usize) -> String {
    format!("ambiguous: {candidates} candidates")
}

/// `source` of a scheduler state read from the kernel's own object.
pub const SCHED_SOURCE_LIVE: &str = "live";
/// `source` of a scheduler state that the probe had saved at the exit.
pub const SCHED_SOURCE_BSS_SNAPSHOT: &str = "bss_snapshot";

/// `origin` of a CPU's local queue.
pub fn dsq_origin_local(cpu: u32) -> String {
    format!("local cpu {cpu}")
}

/// `origin` of a CPU's bypass queue.
pub fn dsq_origin_bypass(cpu: u32) -> String {
    format!("bypass cpu {cpu}")
}

/// `origin` of a node's global queue.
pub fn dsq_origin_global(node: u32) -> String {
    format!("global node {node}")
}

/// `origin` of a queue that the scheduler made.
pub const DSQ_ORIGIN_USER: &str = "user";

/// `lock_slowpath_match`: the four values there are.
pub const LOCK_SLOWPATHS: [&str; 4] = [
    "queued_spin_lock_slowpath",
    "mutex_lock_slowpath",
    "rwsem_down_read_slowpath",
    "rwsem_down_write_slowpath",
];

/// `error` of maps.
pub mod map {
    /// Array of one entry.
    pub const ARRAY_UNREADABLE: &str = "ARRAY value region unreadable (unmapped page?)";
    /// Hash map with more entries than a report holds.
    pub const HASH_TRUNCATED: &str = "hash map truncated at 4096 entries";
    /// Per-CPU hash map with more entries than a report holds.
    pub const PERCPU_HASH_TRUNCATED: &str = "percpu hash map truncated at 4096 entries";
    /// Local storage with more elements than a report holds.
    pub const LOCAL_STORAGE_TRUNCATED: &str = "local_storage map truncated at 4096 entries";
    /// Arena in a kernel whose types do not describe it.
    pub const ARENA_NO_OFFSETS: &str =
        "arena BTF offsets unavailable (kernel lacks struct bpf_arena?)";
    /// struct_ops in a kernel whose types do not describe it.
    pub const STRUCT_OPS_NO_OFFSETS: &str = "STRUCT_OPS value unreadable: bpf_struct_ops_map BTF \
        offsets unresolved (kernel without struct_ops support, or vmlinux BTF stripped of \
        bpf_struct_ops_map / bpf_struct_ops_value).";
    /// struct_ops whose value cannot be read.
    pub const STRUCT_OPS_UNMAPPED: &str = "STRUCT_OPS value unreadable: value region unmapped. \
        Live-host backend reads via BPF_MAP_LOOKUP_ELEM at key=0.";
    /// Ring buffer in a kernel whose types do not describe it.
    pub const RINGBUF_NO_OFFSETS: &str = "RINGBUF state unreadable: BTF lacks bpf_ringbuf_map / \
        bpf_ringbuf (kernel built without ringbuf, or BTF stripped). Wire format remains \
        consumer_pos/producer_pos/mask/pending_pos but the struct field offsets are not resolved \
        on this kernel.";
    /// Ring buffer whose map object cannot be read.
    pub const RINGBUF_MAP_UNMAPPED: &str =
        "RINGBUF map_kva unmapped during freeze (concurrent destruction race?)";
    /// Ring buffer without a data area.
    pub const RINGBUF_NULL: &str = "RINGBUF rb pointer NULL: bpf_ringbuf_alloc failed at map \
        create time (out of memory or numa mismatch); the map exists but has no backing ring data \
        area";
    /// Ring buffer whose `mask` cannot be read.
    pub const RINGBUF_MASK_UNMAPPED: &str =
        "RINGBUF rb->mask unmapped during freeze (rb pointer torn or unmapped)";
    /// Ring buffer whose `consumer_pos` cannot be read.
    pub const RINGBUF_CONSUMER_UNMAPPED: &str =
        "RINGBUF rb->consumer_pos unmapped (consumer page absent)";
    /// Ring buffer whose `producer_pos` cannot be read.
    pub const RINGBUF_PRODUCER_UNMAPPED: &str =
        "RINGBUF rb->producer_pos unmapped (producer page absent)";
    /// Ring buffer whose `pending_pos` cannot be read.
    pub const RINGBUF_PENDING_UNMAPPED: &str =
        "RINGBUF rb->pending_pos unmapped (producer page absent)";
    /// Ring buffer whose `mask` is all ones.
    pub const RINGBUF_MASK_ONES: &str = "RINGBUF rb->mask = u64::MAX (capacity would wrap to 0); \
        likely a corrupted read of bpf_ringbuf.mask";
    /// Ring buffer of no size. [`RINGBUF_MASK_ONES`] comes first, so this is never seen.
    pub const RINGBUF_CAPACITY_ZERO: &str =
        "RINGBUF capacity = 0 (mask + 1 wrapped); rb->mask read produced a non-power-of-two value";
    /// Stack traces in a kernel whose types do not describe them.
    pub const STACK_TRACE_NO_OFFSETS: &str = "STACK_TRACE bucket array unreadable: BTF lacks \
        bpf_stack_map / stack_map_bucket. Each non-null bucket pointer would carry `nr` u64 PCs \
        (or bpf_stack_build_id records when BPF_F_STACK_BUILD_ID is set on the map); resolve the \
        offsets to render.";
    /// Stack traces whose map object cannot be read.
    pub const STACK_TRACE_MAP_UNMAPPED: &str = "STACK_TRACE map_kva unmapped during freeze";
    /// Maps of descriptors that are hashes.
    pub const FD_HASH_NOT_WALKED: &str = "fd-array dump does not walk hash-shaped FD maps \
        (SOCKHASH/DEVMAP_HASH/HASH_OF_MAPS); populated count is unavailable for these";
    /// The older two kinds of cgroup storage.
    pub const CGROUP_STORAGE_DEPRECATED: &str =
        "deprecated cgroup-attached storage; use CGRP_STORAGE on newer kernels";
    /// Queues and stacks.
    pub const QUEUE_STACK: &str =
        "QUEUE/STACK are destructive (peek shows only the head; pop consumes); no enumeration API";
    /// Bloom filters.
    pub const BLOOM_FILTER: &str =
        "BLOOM_FILTER is a probabilistic set; no key enumeration is possible";
    /// Tries.
    pub const LPM_TRIE: &str = "LPM_TRIE walker not implemented (keyed by prefixlen + data); use \
        bpf(2) BPF_MAP_GET_NEXT_KEY for live-host iteration";
    /// Instruction arrays.
    pub const INSN_ARRAY: &str = "INSN_ARRAY stores BPF instruction targets used by the verifier \
        for indirect jumps; values are kernel-side program data";

    /// Array with more keys than a report holds, or with `unreadable` keys that could not be read,
    /// or both. `None` when neither is the case.
    pub fn array(max_entries: u32, truncated: bool, unreadable: usize) -> Option<String> {
        let cut =
            truncated.then(|| format!("ARRAY truncated at 4096 keys (max_entries={max_entries})"));
        let lost = (unreadable > 0).then(|| format!("{unreadable} keys unreadable"));
        match (cut, lost) {
            (Some(cut), Some(lost)) => Some(format!("{cut}; {lost}")),
            (cut, lost) => cut.or(lost),
        }
    }

    /// [`HASH_TRUNCATED`] with another limit.
    pub fn hash_truncated(limit: usize) -> String {
        format!("hash map truncated at {limit} entries")
    }

    /// [`PERCPU_HASH_TRUNCATED`] with another limit.
    pub fn percpu_hash_truncated(limit: usize) -> String {
        format!("percpu hash map truncated at {limit} entries")
    }

    /// [`LOCAL_STORAGE_TRUNCATED`] with another limit.
    pub fn local_storage_truncated(limit: usize) -> String {
        format!("local_storage map truncated at {limit} entries")
    }

    /// Per-CPU array with more keys than a report holds.
    pub fn percpu_array_truncated(max_entries: u32) -> String {
        format!("PERCPU_ARRAY truncated at 256 keys (max_entries={max_entries})")
    }

    /// A map type that nothing here knows.
    pub fn unknown_type(map_type: u32) -> String {
        format!(
            "unknown map_type {map_type} (kernel newer than dump renderer; update render_map \
             dispatch)"
        )
    }
}

/// `reason` of an `unsupported` value.
pub mod unsupported {
    /// Values are nested deeper than 32 levels.
    pub const DEPTH: &str = "render depth 32 exceeded";
    /// An array's element type has no id.
    pub const ARRAY_ELEMENT_ID: &str = "array element type id not resolvable";
    /// An array's element type cannot be found.
    pub const ARRAY_ELEMENT_TYPE: &str = "array element type not resolvable";
    /// An array's element type has no size.
    pub const ARRAY_ELEMENT_SIZE: &str = "array element size not resolvable";
    /// A type that is only declared.
    pub const FORWARD: &str = "forward declaration: type body not in BTF";
    /// A function.
    pub const FUNCTION: &str = "function type: no value bytes to render";
    /// A variable whose type has no id.
    pub const VAR_ID: &str = "var type id not resolvable";
    /// `void`.
    pub const VOID: &str = "void: no value bytes to render";
    /// A modifier that is still there after all were looked through.
    pub const MODIFIER: &str = "unpeeled modifier (BTF cycle?)";
    /// A data section whose variable cannot be found.
    pub const DATASEC_VAR: &str = "datasec var type not resolvable";
    /// A variable of a data section whose type cannot be found.
    pub const VAR_UNDERLYING: &str = "var underlying type id not resolvable";
    /// A member without a type.
    pub const MEMBER_NO_ID: &str = "member has no type id";
    /// A member whose type cannot be found behind its modifiers.
    pub const MEMBER_MODIFIERS: &str = "member type modifiers unresolvable";
    /// A member whose type has no size.
    pub const MEMBER_SIZE: &str = "member type size unresolvable";
    /// A bit field whose type cannot be found behind its modifiers.
    pub const BITFIELD_MODIFIERS: &str = "bitfield type modifiers unresolvable";
    /// The payload of an allocation could not be read.
    pub const PAYLOAD_READ: &str = "payload read failed: end-of-DRAM or unmapped page";

    /// Too many modifiers before this type.
    pub fn modifiers(type_id: u32) -> String {
        format!("could not peel modifiers from type id {type_id}")
    }

    /// A flexible array, with this many bytes where it would be.
    pub fn flexible_array(available: usize) -> String {
        format!(
            "flex array (BTF len=0); runtime length not representable in BTF, {available} bytes \
             available at site"
        )
    }

    /// A kind of BTF type that is not handled; `debug` describes it.
    pub fn kind(debug: &str, type_id: u32) -> String {
        format!("unhandled BTF type kind {debug} for type id {type_id}")
    }

    /// A float of neither 4 nor 8 bytes.
    pub fn float_size(size: usize) -> String {
        format!("unsupported float size {size}")
    }

    /// An entry of a data section that is not a variable but a `kind`.
    pub fn datasec_entry(kind: &str) -> String {
        format!("datasec entry resolved to non-Var ({kind})")
    }

    /// An ordinary member that does not begin at a byte.
    pub fn member_offset(bit_offset: u32) -> String {
        format!("non-bitfield member at non-byte bit offset {bit_offset}")
    }

    /// A bit field of no width, or wider than 64 bits.
    pub fn bitfield_width(width: u32) -> String {
        format!("bitfield width {width} out of range")
    }
}

/// `deref_skipped_reason` of pointers. Addresses are inserted as plain numbers and appear as
/// `0x…`.
pub mod deref {
    /// Which way a pointer was followed; it begins several reasons.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Chase {
        /// Into the arena.
        Arena,
        /// Into the kernel, as cast analysis told.
        Kernel,
    }

    impl Chase {
        /// The words for it.
        pub fn as_str(self) -> &'static str {
            match self {
                Self::Arena => "arena chase",
                Self::Kernel => "kernel cast",
            }
        }
    }

    /// Arena address of an allocation that `sdt_allocations` shows.
    pub const ALREADY_RENDERED: &str = "already rendered in sdt_allocations";
    /// Kernel pointer to a type without a size.
    pub const SIZE_ZERO: &str = "pointee BTF size is 0 (incomplete type)";

    /// The address was already followed on the way here.
    pub fn cycle(address: u64) -> String {
        format!("cycle \u{2192} {address:#x}")
    }

    /// A CPU mask in the kernel could not be read.
    pub fn cpumask_read_failed(address: u64) -> String {
        format!("cpumask kptr read_kva failed at {address:#x} (unmapped page or no PTE)")
    }

    /// Too few bytes of a CPU mask in the kernel could be read.
    pub fn cpumask_short(had: usize) -> String {
        format!("cpumask kptr read returned {had} bytes; need at least 8")
    }

    /// What a pointer to a CPU mask leads to looks like freed memory.
    pub fn cpumask_implausible(address: u64) -> String {
        format!(
            "cpumask kptr plausibility gate rejected: bits[0] top byte is 0xff at {address:#x} \
             (likely freed slab object)"
        )
    }

    /// The target's type cannot be found.
    pub fn unresolvable(chase: Chase, type_id: u32) -> String {
        format!("{} target type id {type_id} unresolvable", chase.as_str())
    }

    /// The target's type is only declared. `keyword` is `struct` or `union`; no name: anonymous.
    pub fn forward(chase: Chase, keyword: &str, name: Option<&str>, type_id: u32) -> String {
        let chase = chase.as_str();
        match name {
            Some(name) => format!(
                "{chase} target {keyword} {name} (type id {type_id}) is a forward declaration; \
                 body not in this BTF"
            ),
            None => format!(
                "{chase} target type id {type_id} is an anonymous {keyword} forward declaration; \
                 body not in this BTF"
            ),
        }
    }

    /// The target is a function.
    pub fn function(chase: Chase, type_id: u32) -> String {
        format!(
            "{} target type id {type_id} is a function (BTF_KIND_FUNC); functions have no storage \
             size",
            chase.as_str()
        )
    }

    /// The target is a function prototype.
    pub fn prototype(chase: Chase, type_id: u32) -> String {
        format!(
            "{} target type id {type_id} is a function prototype (BTF_KIND_FUNC_PROTO); prototypes \
             have no storage size",
            chase.as_str()
        )
    }

    /// The target is a data section.
    pub fn datasec(chase: Chase, type_id: u32) -> String {
        format!(
            "{} target type id {type_id} is a datasec (BTF_KIND_DATASEC); not a pointer chase \
             target",
            chase.as_str()
        )
    }

    /// The target is a variable.
    pub fn var(chase: Chase, type_id: u32) -> String {
        format!(
            "{} target type id {type_id} is a var (BTF_KIND_VAR); not a pointer chase target",
            chase.as_str()
        )
    }

    /// The target is `void`.
    pub fn void(chase: Chase, type_id: u32) -> String {
        format!(
            "{} target type id {type_id} is void; chasing a void* requires runtime type info",
            chase.as_str()
        )
    }

    /// The target is a declaration tag.
    pub fn decl_tag(chase: Chase, type_id: u32) -> String {
        format!(
            "{} target type id {type_id} is a decl-tag (BTF_KIND_DECL_TAG); modifiers should have \
             peeled (malformed BTF chain?)",
            chase.as_str()
        )
    }

    /// The target's size cannot be told.
    pub fn no_size(chase: Chase, type_id: u32) -> String {
        format!(
            "{} target type id {type_id} has unresolvable size",
            chase.as_str()
        )
    }

    /// The target has no size.
    pub fn size_zero(chase: Chase, type_id: u32) -> String {
        format!(
            "{} target type id {type_id} BTF size is 0 (incomplete type)",
            chase.as_str()
        )
    }

    /// Another object's BTF was asked for the type and does not have it.
    pub fn cross_btf(chase: Chase, type_id: u32) -> String {
        format!(
            "{}: cross-BTF Fwd type id {type_id} unresolved in sibling BTF",
            chase.as_str()
        )
    }

    /// Arena memory could not be read.
    pub fn arena_read_failed(needed: usize, address: u64) -> String {
        format!(
            "arena read failed (cross-page boundary or unmapped page); needed {needed} bytes from \
             {address:#x}"
        )
    }

    /// Fewer bytes of arena memory than the header of an allocation.
    pub fn arena_short(address: u64, had: usize, header: usize) -> String {
        format!(
            "arena read at {address:#x} returned {had} bytes; sdt_alloc bridge needs at least \
             {header} for header skip"
        )
    }

    /// Known to be an arena pointer, with no type and no allocation at the address.
    pub fn arena_deferred(address: u64) -> String {
        format!(
            "arena chase: STX-flow path tagged slot as Arena with deferred resolve; bridge had no \
             entry for {address:#x}"
        )
    }

    /// Known to be an arena pointer to `alloc_size` bytes, for which no type was found because of
    /// `reason`, a `payload_type_reason`.
    pub fn arena_deferred_size(alloc_size: u64, reason: &str) -> String {
        format!(
            "arena chase: STX-flow path tagged slot as Arena with deferred resolve; \
             alloc_size={alloc_size} fallback unresolved ({reason})"
        )
    }

    /// The programs keep pointers to a kernel type there, but the address is in the arena.
    pub fn arena_kernel_type(name: &str, address: u64) -> String {
        format!("arena chase: {address:#x} is in the arena, where no {name} can be")
    }

    /// No live object of the kernel's is known at the address: it may be freed by now.
    pub fn kernel_not_live(name: &str, address: u64) -> String {
        format!("kernel cast: no live struct {name} is known at {address:#x}")
    }

    /// The type is not in the BTF.
    pub fn arena_type_unresolved(type_id: u32) -> String {
        format!("arena chase: type id {type_id} unresolved in BTF")
    }

    /// Taken for an arena pointer, but the address is outside.
    pub fn outside_arena(address: u64) -> String {
        format!(
            "kernel cast target unresolved (analyzer hinted Arena with deferred resolve, but \
             runtime value {address:#x} fell outside the arena window)"
        )
    }

    /// Kernel memory could not be read. `hinted_arena`: cast analysis took it for an arena
    /// pointer.
    pub fn kernel_read_failed(address: u64, needed: usize, hinted_arena: bool) -> String {
        let hint = if hinted_arena {
            " (cast analysis may have flagged a non-pointer field)"
        } else {
            ""
        };
        format!(
            "kernel read_kva failed at {address:#x} (unmapped page or no PTE); needed {needed} \
             bytes{hint}"
        )
    }

    /// Fewer bytes of kernel memory than the header of an allocation.
    pub fn kernel_short(address: u64, had: usize, header: usize) -> String {
        format!(
            "kernel read_kva at {address:#x} returned {had} bytes; sdt_alloc bridge needs at least \
             {header} for header skip"
        )
    }

    /// What the pointer leads to looks like freed memory.
    pub fn kernel_implausible(address: u64) -> String {
        format!(
            "kernel cast plausibility gate rejected: first qword top byte is 0xff at {address:#x} \
             (likely freed slab object freelist pointer)"
        )
    }
}
