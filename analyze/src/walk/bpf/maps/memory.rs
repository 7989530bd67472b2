//! How much memory a map takes, as the kernel counts it for `bytes_memlock`: the
//! `map_mem_usage` of each type's `struct bpf_map_ops`.

use super::{Found, Map, arena};
use crate::bytes::to_u64;
use crate::error::{Error, Result};
use crate::object::Object;

/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`.
const MMAPABLE: u32 = 1 << 10;
const PAGE: u64 = 4096;
const POINTER: u64 = 8;
/// `sizeof(struct llist_node)`, by which the BPF allocator's objects are larger.
const LLIST_NODE: u64 = 8;
/// `HASHTAB_MAP_LOCK_COUNT` counters of 4 bytes for each CPU.
const LOCK_COUNTERS: u64 = 8 * 4;
/// `RINGBUF_NR_META_PAGES`: what comes before the positions, and the two positions.
const RING_META_PAGES: u64 = 3;

/// The bytes; `None` for a type that is not known, and where elements were not counted.
pub(super) fn bytes(map: &Map<'_>, found: &Found) -> Result<Option<u64>> {
    let entries = u64::from(map.max_entries);
    let value_size = u64::from(map.value_size);
    let with = |ty: &str, each: u64, count: u64| -> Result<u64> {
        Ok(size_of(map, ty)?.saturating_add(each.saturating_mul(count)))
    };
    Ok(Some(match map.map_type {
        1 | 5 | 9 | 10 | 13 => return hash(map, found),
        2 | 3 | 4 | 6 | 8 | 12 => array(map)?,
        7 => {
            let stacks = map.cast("struct bpf_stack_map")?;
            let buckets = stacks.member("n_buckets")?.u64()?;
            with("struct bpf_stack_map", POINTER, buckets)?.saturating_add(
                with("struct stack_map_bucket", 1, value_size)?.saturating_mul(entries),
            )
        }
        11 => {
            let trie = map.cast("struct lpm_trie")?;
            let data = trie.member("data_size")?.u64()?;
            let node = with("struct lpm_trie_node", 1, data.saturating_add(value_size))?;
            node.saturating_mul(trie.member("n_entries")?.u64()?)
        }
        14 | 25 => {
            let table = map.cast("struct bpf_dtab")?;
            // Pointers, or list heads of one pointer.
            let slots = match map.map_type {
                14 => entries,
                _ => table.member("n_buckets")?.u64()?,
            };
            let items = table.member("items")?.u64()?;
            with("struct bpf_dtab", POINTER, slots)?
                .saturating_add(size_of(map, "struct bpf_dtab_netdev")?.saturating_mul(items))
        }
        15 => with("struct bpf_stab", POINTER, entries)?,
        16 => with("struct bpf_cpu_map", POINTER, entries)?,
        17 => {
            let count = counter(&map.cast("struct xsk_map")?.member("count")?)?;
            with("struct xsk_map", POINTER, entries)?
                .saturating_add(size_of(map, "struct xsk_map_node")?.saturating_mul(count))
        }
        18 => {
            let table = map.cast("struct bpf_shtab")?;
            let bucket = size_of(map, "struct bpf_shtab_bucket")?;
            let elements =
                counter(&table.member("count")?)?.saturating_mul(table.member("elem_size")?.u64()?);
            with(
                "struct bpf_shtab",
                bucket,
                table.member("buckets_num")?.u64()?,
            )?
            .saturating_add(elements)
        }
        19 | 21 => size_of(map, "struct bpf_cgroup_storage_map")?,
        20 => with("struct reuseport_array", POINTER, entries)?,
        22 | 23 => {
            let size = map.cast("struct bpf_queue_stack")?.member("size")?.u64()?;
            with("struct bpf_queue_stack", value_size, size)?
        }
        24 | 28 | 29 | 32 => {
            let log = map
                .cast("struct bpf_local_storage_map")?
                .member("bucket_log")?
                .u32()?;
            let buckets = 1u64.checked_shl(log).unwrap_or(u64::MAX);
            let bucket = size_of(map, "struct bpf_local_storage_map_bucket")?;
            with("struct bpf_local_storage_map", bucket, buckets)?
        }
        26 => struct_ops(map)?,
        27 | 31 => {
            let ring = map.cast("struct bpf_ringbuf_map")?.member("rb")?.deref()?;
            let pages = ring.member("nr_pages")?.u64()?;
            // Each data page is mapped twice in a row.
            let mappings = RING_META_PAGES.saturating_add(2 * (entries / PAGE));
            with("struct bpf_ringbuf_map", PAGE, pages)?
                .saturating_add(mappings.saturating_mul(POINTER))
        }
        30 => {
            let mask = map
                .cast("struct bpf_bloom_filter")?
                .member("bitset_mask")?
                .u64()?;
            // Bits, in whole words.
            with(
                "struct bpf_bloom_filter",
                8,
                mask.saturating_add(1).div_ceil(64),
            )?
        }
        arena::TYPE => match found.own.entries {
            Some(pages) => pages.saturating_mul(PAGE),
            None => return Ok(None),
        },
        34 => {
            let each = size_of(map, "struct bpf_insn_array_value")?.saturating_add(POINTER);
            with("struct bpf_insn_array", each, entries)?
        }
        35 => {
            let table = map.cast("struct bpf_rhtab")?;
            let count = counter(&table.member("ht.nelems")?)?;
            with("struct bpf_rhtab", table.member("elem_size")?.u64()?, count)?
        }
        _ => return Ok(None),
    }))
}

fn size_of(map: &Map<'_>, ty: &str) -> Result<u64> {
    let found = map.kernel.btf.find(ty)?;
    map.kernel
        .btf
        .size_of(found)
        .ok_or_else(|| Error::NoType(format!("{ty} with a size")))
}

/// An `atomic_t` that counts.
fn counter(atomic: &Object<'_>) -> Result<u64> {
    Ok(u64::from(atomic.member("counter")?.u32()?))
}

/// `array_map_mem_usage()`.
fn array(map: &Map<'_>) -> Result<u64> {
    let array = map.cast("struct bpf_array")?;
    let header = size_of(map, "struct bpf_array")?;
    let entries = u64::from(map.max_entries);
    let values = array.member("elem_size")?.u64()?.saturating_mul(entries);
    Ok(if map.map_type == 6 {
        let each = values.saturating_mul(cpus(map));
        header
            .saturating_add(entries.saturating_mul(POINTER))
            .saturating_add(each)
    } else if map.flags & MMAPABLE == 0 {
        header.saturating_add(values)
    } else {
        header
            .next_multiple_of(PAGE)
            .saturating_add(values.checked_next_multiple_of(PAGE).unwrap_or(values))
    })
}

fn cpus(map: &Map<'_>) -> u64 {
    to_u64(map.kernel.cpus().count())
}

/// `htab_map_mem_usage()`. Without the lock counters that 6.16 dropped, though up to 6.19 the
/// kernel goes on counting them.
fn hash(map: &Map<'_>, found: &Found) -> Result<Option<u64>> {
    let table = map.cast("struct bpf_htab")?;
    let buckets = table.member("n_buckets")?.u64()?;
    let bucket = map.kernel.btf.pointee(table.member("buckets")?.ty());
    let bucket = bucket
        .and_then(|ty| map.kernel.btf.size_of(ty))
        .ok_or_else(|| Error::NoType("struct bucket with a size".into()))?;
    let element = table.member("elem_size")?.u64()?;
    let percpu = matches!(map.map_type, 5 | 10);
    let lru = matches!(map.map_type, 9 | 10);
    let of_maps = map.map_type == 13;
    let mut base = size_of(map, "struct bpf_htab")?.saturating_add(bucket.saturating_mul(buckets));
    if table.has("map_locked") {
        base = base.saturating_add(LOCK_COUNTERS * cpus(map));
    }
    let values = u64::from(map.value_size)
        .next_multiple_of(8)
        .saturating_mul(cpus(map));
    let used = if map.flags & NO_PREALLOC == 0 {
        // One spare element per CPU, where an update takes its new element from.
        let spare = if percpu || lru || of_maps {
            0
        } else {
            cpus(map)
        };
        let entries = u64::from(map.max_entries).saturating_add(spare);
        let each = element.saturating_add(if percpu { values } else { 0 });
        let pointers = if percpu || lru {
            0
        } else {
            POINTER * cpus(map)
        };
        entries.saturating_mul(each).saturating_add(pointers)
    } else {
        let Some(count) = found.own.entries else {
            return Ok(None);
        };
        let mut each = element.saturating_add(LLIST_NODE);
        if percpu {
            each = each
                .saturating_add(LLIST_NODE + POINTER)
                .saturating_add(values);
        }
        each.saturating_mul(count)
    };
    Ok(Some(base.saturating_add(used)))
}

/// `bpf_struct_ops_map_mem_usage()`: the kernel's copy of the ops, user space's, the links, the
/// symbols of the trampolines where there are some, and a page of trampolines.
fn struct_ops(map: &Map<'_>) -> Result<u64> {
    let ops = map.cast("struct bpf_struct_ops_map")?;
    let value = u64::from(map.value_size);
    let mut each = 0;
    for list in ["links", "ksyms"] {
        each += if ops.has(list) { POINTER } else { 0 };
    }
    let functions = ops
        .first_of(&["funcs_cnt", "links_cnt"])?
        .u64()?
        .saturating_mul(each);
    let header = size_of(map, "struct bpf_struct_ops_map")?;
    let common = size_of(map, "struct bpf_struct_ops_value")?;
    Ok(header
        .saturating_sub(common)
        .saturating_add(value.saturating_mul(2))
        .saturating_add(functions)
        .saturating_add(PAGE))
}
