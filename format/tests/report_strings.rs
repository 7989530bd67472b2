//! Every string that other programs compare, against a list that was made from the format's
//! description. Inserted values are 7, 0x1f and the like.

#![cfg(test)]

use scx_postmortem_format::report::reasons::deref::Chase;
use scx_postmortem_format::report::reasons::*;
use scx_postmortem_format::report::*;

fn strings() -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut fixed = |texts: &[&str]| all.extend(texts.iter().map(|text| text.to_string()));
    fixed(&[SCHEMA_SINGLE, SCHEMA_DUAL, SCHEMA_DEGRADED]);
    fixed(&ALL_SNAPSHOT_TAGS);
    fixed(&[
        REASON_DEGRADED_RENDEZVOUS_TIMEOUT,
        REASON_DEGRADED_KILL_DURING_RENDEZVOUS,
        &degraded(REASON_DEGRADED_RENDEZVOUS_TIMEOUT, 7, 1, 2),
        REASON_DEGRADED_CAST_ANALYSIS,
        REASON_PROG_ACCESSOR_UNAVAILABLE,
        REASON_NO_STRUCT_OPS_LOADED,
        REASON_NO_NUMA_WALKER,
        REASON_NO_TASK_WALKER,
        REASON_TASK_WALKER_ZERO_TASKS,
        REASON_NO_SCX_WALKER,
        &scx_walker_partial(&["a", "b"]),
        REASON_SCX_ROOT_NULL,
        REASON_SCX_WALKER_NO_STATE,
        REASON_SDT_ALLOC_DEADLINE_EXCEEDED,
        REASON_SDT_ALLOC_UNALIGNED_USER_VM,
        REASON_SDT_ALLOC_NO_BSS,
        REASON_SDT_ALLOC_NO_ARENA,
        REASON_SDT_ALLOC_NO_TYPE,
        REASON_SDT_ALLOC_NO_INSTANCE,
        REASON_PREREQUISITES_UNAVAILABLE,
    ]);
    fixed(&OFFSET_GROUPS);
    fixed(&[
        &early_prerequisites("p"),
        &early_never_crossed(7, 8),
        EARLY_TICK_STALL,
        &early_degraded("r"),
        BSS_LATCH_TRIGGERED,
        BSS_LATCH_NOT_TRIGGERED,
        BSS_LATCH_OUT_OF_BOUNDS,
        BSS_LATCH_NOT_RESOLVED,
        BSS_LATCH_NOT_APPLICABLE,
        CAST_SDT_ALLOC,
        CAST_ARENA,
        CAST_KERNEL,
        CAST_ARENA_SDT_ALLOC,
        CAST_KERNEL_SDT_ALLOC,
        PAYLOAD_SIZE_ZERO,
        &payload_no_candidate(7),
        &payload_ambiguous(7),
        SCHED_SOURCE_LIVE,
        SCHED_SOURCE_BSS_SNAPSHOT,
        &dsq_origin_local(7),
        &dsq_origin_bypass(7),
        &dsq_origin_global(7),
        DSQ_ORIGIN_USER,
    ]);
    fixed(&LOCK_SLOWPATHS);
    fixed(&[
        map::ARRAY_UNREADABLE,
        &map::array(7, true, 0).unwrap(),
        &map::array(7, false, 7).unwrap(),
        &map::array(7, true, 7).unwrap(),
        map::HASH_TRUNCATED,
        map::PERCPU_HASH_TRUNCATED,
        &map::percpu_array_truncated(7),
        map::LOCAL_STORAGE_TRUNCATED,
        map::ARENA_NO_OFFSETS,
        map::STRUCT_OPS_NO_OFFSETS,
        map::STRUCT_OPS_UNMAPPED,
        map::RINGBUF_NO_OFFSETS,
        map::RINGBUF_MAP_UNMAPPED,
        map::RINGBUF_NULL,
        map::RINGBUF_MASK_UNMAPPED,
        map::RINGBUF_CONSUMER_UNMAPPED,
        map::RINGBUF_PRODUCER_UNMAPPED,
        map::RINGBUF_PENDING_UNMAPPED,
        map::RINGBUF_MASK_ONES,
        map::RINGBUF_CAPACITY_ZERO,
        map::STACK_TRACE_NO_OFFSETS,
        map::STACK_TRACE_MAP_UNMAPPED,
        map::FD_HASH_NOT_WALKED,
        map::CGROUP_STORAGE_DEPRECATED,
        map::QUEUE_STACK,
        map::BLOOM_FILTER,
        map::LPM_TRIE,
        map::INSN_ARRAY,
        &map::unknown_type(7),
        unsupported::DEPTH,
        &unsupported::modifiers(7),
        unsupported::ARRAY_ELEMENT_ID,
        unsupported::ARRAY_ELEMENT_TYPE,
        unsupported::ARRAY_ELEMENT_SIZE,
        &unsupported::flexible_array(7),
        unsupported::FORWARD,
        unsupported::FUNCTION,
        unsupported::VAR_ID,
        unsupported::VOID,
        unsupported::MODIFIER,
        &unsupported::kind("d", 7),
        &unsupported::float_size(7),
        unsupported::DATASEC_VAR,
        &unsupported::datasec_entry("k"),
        unsupported::VAR_UNDERLYING,
        unsupported::MEMBER_NO_ID,
        &unsupported::member_offset(7),
        unsupported::MEMBER_MODIFIERS,
        unsupported::MEMBER_SIZE,
        &unsupported::bitfield_width(7),
        unsupported::BITFIELD_MODIFIERS,
        unsupported::PAYLOAD_READ,
        &deref::cycle(0x1f),
        deref::ALREADY_RENDERED,
        deref::SIZE_ZERO,
        &deref::cpumask_read_failed(0x1f),
        &deref::cpumask_short(7),
        &deref::cpumask_implausible(0x1f),
    ]);
    for chase in [Chase::Arena, Chase::Kernel] {
        fixed(&[
            &deref::unresolvable(chase, 7),
            &deref::forward(chase, "struct", Some("s"), 7),
            &deref::forward(chase, "union", Some("s"), 7),
            &deref::forward(chase, "struct", None, 7),
            &deref::forward(chase, "union", None, 7),
            &deref::function(chase, 7),
            &deref::prototype(chase, 7),
            &deref::datasec(chase, 7),
            &deref::var(chase, 7),
            &deref::void(chase, 7),
            &deref::decl_tag(chase, 7),
            &deref::no_size(chase, 7),
            &deref::size_zero(chase, 7),
            &deref::cross_btf(chase, 7),
        ]);
    }
    fixed(&[
        &deref::arena_read_failed(7, 0x1f),
        &deref::arena_short(0x1f, 7, 8),
        &deref::arena_deferred(0x1f),
        &deref::arena_deferred_size(7, "r"),
        &deref::arena_type_unresolved(7),
        &deref::outside_arena(0x1f),
        &deref::kernel_read_failed(0x1f, 7, false),
        &deref::kernel_read_failed(0x1f, 7, true),
        &deref::kernel_short(0x1f, 7, 8),
        &deref::kernel_implausible(0x1f),
    ]);
    all
}

#[test]
fn stable_strings() {
    let expected: Vec<&str> = include_str!("report/strings.txt").lines().collect();
    for (is, should) in strings().iter().zip(&expected) {
        assert_eq!(is, should);
    }
    assert_eq!(strings().len(), expected.len());
}

#[test]
fn whole_maps_have_no_error() {
    assert_eq!(map::array(7, false, 0), None);
}

#[test]
fn map_types() {
    let names: Vec<_> = (0..=40).filter_map(map_type_name).collect();
    assert_eq!(
        names.join(" "),
        "hash array prog_array perf_event_array percpu_hash percpu_array stack_trace cgroup_array \
         lru_hash lru_percpu_hash lpm_trie array_of_maps hash_of_maps devmap sockmap cpumap xskmap \
         sockhash cgroup_storage reuseport_sockarray percpu_cgroup_storage queue stack sk_storage \
         devmap_hash struct_ops ringbuf inode_storage task_storage bloom_filter user_ringbuf \
         cgrp_storage arena insn_array"
    );
    assert_eq!(map_type_name(0), None);
    assert_eq!(map_type_name(1), Some("hash"));
    assert_eq!(map_type_name(35), None);
}

#[test]
fn sentences_with_a_limit_are_those_of_the_format_at_its_own_limit() {
    let limit = limits::MAX_HASH_ENTRIES;
    assert_eq!(map::hash_truncated(limit), map::HASH_TRUNCATED);
    assert_eq!(
        map::percpu_hash_truncated(limit),
        map::PERCPU_HASH_TRUNCATED
    );
    assert_eq!(
        map::local_storage_truncated(limit),
        map::LOCAL_STORAGE_TRUNCATED
    );
}
