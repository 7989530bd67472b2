//! HASH, LRU_HASH, their per-CPU kinds, HASH_OF_MAPS, and the resizable RHASH.
//!
//! Reads `struct bpf_htab` and `struct htab_elem` (kernel/bpf/hashtab.c): `buckets` of
//! nulls-terminated lists; the key at `key`, the value behind it at the next multiple of 8. In a
//! per-CPU hash a per-CPU pointer stands there, in a hash of maps the inner map. `count` is 0 for
//! preallocated maps: elements are counted by walking.

use scx_postmortem_format::report::{
    FailureDumpEntry, FailureDumpPercpuHashEntry, MapTarget, RenderedValue, hex_string, reasons,
};

use super::targets::map_target;
use super::{Found, Map};
use crate::addr::Kva;
use crate::bytes::{le_u64, to_u64, to_usize};
use crate::error::{Error, Result};
use crate::kernel::WalkEnd;

/// Buckets: the next power of two of the most entries that fit into memory.
const MAX_BUCKETS: u64 = 1 << 26;
/// Bytes of buckets that are read at once.
const CHUNK: u64 = 1 << 16;

/// One element: its key, and the address of its value.
struct Element {
    key: Vec<u8>,
    value_at: Kva,
}

/// The elements of the map, bucket by bucket, and whether some were left out.
fn elements(map: &Map<'_>, found: &mut Found) -> Result<(Vec<Element>, bool)> {
    let htab = map.cast("struct bpf_htab")?;
    let count = u64::from(htab.member("n_buckets")?.u32()?);
    if !count.is_power_of_two() || count > MAX_BUCKETS {
        return Err(Error::Implausible {
            what: format!("bpf_htab.n_buckets of the map at {}", map.kva),
            found: count.to_string(),
            why: "a power of two, at most 2^26",
        });
    }
    let buckets = htab.member("buckets")?;
    let first = buckets.ptr()?;
    let bucket_type = map.kernel.btf.pointee(buckets.ty());
    let size = bucket_type
        .and_then(|ty| map.kernel.btf.size_of(ty))
        .filter(|size| (8..=256).contains(size))
        .ok_or_else(|| Error::NoType("struct bucket with a size".into()))?;
    let head = map.kernel.object("struct bucket", first)?.member("head")?;
    let head = head.address().0.wrapping_sub(first.0);
    let (key, value) = layout(map)?;
    let mut found_elements = Vec::new();
    let mut cut = false;
    let mut per_chunk = CHUNK / size;
    let mut index = 0;
    while index < count && !cut {
        per_chunk = per_chunk.min(count - index);
        let at = first.add(index * size);
        let chunk = map.kernel.read_bytes(at, per_chunk * size)?;
        for bucket in 0..per_chunk {
            let offset = bucket * size + head;
            let link = le_u64(&chunk, to_usize(offset)).unwrap_or(1);
            if link & 1 == 1 || link == 0 {
                continue;
            }
            let left = map.limit.saturating_sub(found_elements.len());
            let walk = map.kernel.hlist_nulls(at.add(offset), left);
            for node in walk.items {
                let key = map
                    .kernel
                    .read_bytes(node.add(key), u64::from(map.key_size))?;
                found_elements.push(Element {
                    key,
                    value_at: node.add(value),
                });
            }
            match walk.end {
                WalkEnd::Complete => {}
                WalkEnd::Limit(_) => {
                    cut = true;
                    break;
                }
                end => {
                    let what = end.anomaly().unwrap_or_default();
                    found.error(format!("bucket {}: {what}", index + bucket));
                }
            }
        }
        index += per_chunk;
    }
    found.own.entries = (!cut).then(|| to_u64(found_elements.len()));
    Ok((found_elements, cut))
}

/// Offsets of key and value in an element, from its list node.
fn layout(map: &Map<'_>) -> Result<(u64, u64)> {
    let element = map.kernel.object("struct htab_elem", Kva::NULL)?;
    let key = element.member("key")?.address().0;
    Ok((key, key + u64::from(map.key_size).next_multiple_of(8)))
}

fn entry(map: &Map<'_>, key: &[u8], value_at: Kva) -> FailureDumpEntry {
    let bytes = map.kernel.read_bytes(value_at, u64::from(map.value_size));
    let (value, value_hex) = match &bytes {
        Ok(bytes) => (map.value(bytes, value_at), hex_string(bytes)),
        Err(error) => (
            Some(RenderedValue::Unsupported {
                reason: error.to_string(),
            }),
            String::new(),
        ),
    };
    FailureDumpEntry {
        key: map.key(key),
        key_hex: hex_string(key),
        value,
        value_hex,
        payload: None,
    }
}

/// The sentence of the shared format names its own limit.
fn truncated(map: &Map<'_>, words: &str) -> String {
    words.replace("4096", &map.limit.to_string())
}

pub(super) fn read(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let (elements, cut) = elements(map, found)?;
    found.shared.entries = elements
        .iter()
        .map(|element| entry(map, &element.key, element.value_at))
        .collect();
    if cut {
        found.error(truncated(map, reasons::map::HASH_TRUNCATED));
    }
    Ok(())
}

pub(super) fn read_per_cpu(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let (elements, cut) = elements(map, found)?;
    for element in elements {
        let base = map.kernel.read_ptr(element.value_at)?;
        found
            .shared
            .percpu_hash_entries
            .push(FailureDumpPercpuHashEntry {
                key: map.key(&element.key),
                key_hex: hex_string(&element.key),
                per_cpu: map.per_cpu_values(base),
            });
    }
    if cut {
        found.error(truncated(map, reasons::map::PERCPU_HASH_TRUNCATED));
    }
    Ok(())
}

/// A hash of maps: what user space sees as the value is the inner map's id.
pub(super) fn read_of_maps(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let (elements, cut) = elements(map, found)?;
    for element in elements {
        let inner = map.kernel.read_ptr(element.value_at)?;
        let target = map_target(map.kernel, hex_string(&element.key), inner);
        let id = target.id.and_then(|id| u32::try_from(id).ok());
        found.shared.entries.push(FailureDumpEntry {
            key: map.key(&element.key),
            key_hex: hex_string(&element.key),
            value: id.map(|id| RenderedValue::Uint {
                bits: 32,
                value: u64::from(id),
            }),
            value_hex: id
                .map(|id| hex_string(&id.to_le_bytes()))
                .unwrap_or_default(),
            payload: None,
        });
        found.own.targets.push(MapTarget {
            key: hex_string(&element.key),
            ..target
        });
    }
    if cut {
        found.error(truncated(map, reasons::map::HASH_TRUNCATED));
    }
    Ok(())
}

/// RHASH of 7.2 and later: `struct bpf_rhtab.ht` is an rhashtable of `struct rhtab_elem`.
pub(super) fn read_resizable(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let table = map.cast("struct bpf_rhtab")?.member("ht")?;
    let walk = map.kernel.rhashtable(&table, map.limit)?;
    let element = map.kernel.object("struct rhtab_elem", Kva::NULL)?;
    let node = element.member("node")?.address().0;
    let data = element.member("data")?.address().0;
    for at in &walk.items {
        let key_at = at.sub(node).add(data);
        let key = map.kernel.read_bytes(key_at, u64::from(map.key_size))?;
        let value_at = key_at.add(u64::from(map.key_size).next_multiple_of(8));
        found.shared.entries.push(entry(map, &key, value_at));
    }
    match &walk.end {
        WalkEnd::Complete => found.own.entries = Some(to_u64(walk.items.len())),
        WalkEnd::Limit(_) => found.error(truncated(map, reasons::map::HASH_TRUNCATED)),
        end => found.error(end.anomaly().unwrap_or_default()),
    }
    Ok(())
}
