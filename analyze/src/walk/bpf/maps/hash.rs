//! HASH, LRU_HASH, their per-CPU kinds, HASH_OF_MAPS, and the resizable RHASH.
//!
//! Reads `struct bpf_htab` and `struct htab_elem` (kernel/bpf/hashtab.c): `buckets` of
//! nulls-terminated lists; the key at `key`, the value behind it at the next multiple of 8. In a
//! per-CPU hash a per-CPU pointer stands there, in a hash of maps the inner map. `count` is 0 for
//! preallocated maps: elements are counted by walking.

use scx_postmortem_format::report::{
    FailureDumpEntry, FailureDumpPercpuHashEntry, RenderedValue, hex_string, reasons,
};

use super::targets::map_target;
use super::{Found, Map};
use crate::addr::Kva;
use crate::bytes::{le_u64, to_usize};
use crate::error::{Error, Result};

/// Buckets: the next power of two of the most entries that fit into memory.
const MAX_BUCKETS: u64 = 1 << 26;
/// Bytes of buckets that are read at once.
const CHUNK: u64 = 1 << 16;
/// Buckets that are tried one by one, in vain, where so many bytes cannot be read at once.
const MAX_RETRIES: usize = 1 << 16;

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
    let mut elements = Vec::new();
    let per_chunk = CHUNK / size;
    let mut start = 0;
    let mut retries = MAX_RETRIES;
    while start < count {
        let buckets = per_chunk.min(count - start);
        let at = first.add(start * size);
        let chunk = map.kernel.read_bytes(at, buckets * size).ok();
        for bucket in 0..buckets {
            let (offset, index) = (bucket * size + head, start + bucket);
            let link = match &chunk {
                Some(chunk) => le_u64(chunk, to_usize(offset)).unwrap_or(1),
                None if retries == 0 => {
                    found.lost(format_args!(
                        "bucket {index} is in a part that cannot be read"
                    ));
                    continue;
                }
                None => match map.kernel.read_u64(at.add(offset)) {
                    Ok(link) => link,
                    Err(error) => {
                        retries -= 1;
                        found.lost(format_args!("bucket {index} cannot be read: {error}"));
                        continue;
                    }
                },
            };
            if link & 1 == 1 || link == 0 {
                continue;
            }
            let left = map.limit.saturating_sub(elements.len());
            let walk = map.kernel.hlist_nulls(at.add(offset), left);
            for node in walk.items {
                let key_size = u64::from(map.key_size);
                match map.kernel.read_bytes(node.add(key), key_size) {
                    Ok(key) => elements.push(Element {
                        key,
                        value_at: node.add(value),
                    }),
                    Err(error) => lost_key(found, node, &error),
                }
            }
            if found.bucket_end(Some(index), &walk.end) {
                found.count(elements.len());
                return Ok((elements, true));
            }
        }
        start += buckets;
    }
    found.count(elements.len());
    Ok((elements, false))
}

fn lost_key(found: &mut Found, node: Kva, error: &Error) {
    found.lost(format_args!("the key of the element at {node}: {error}"));
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

pub(super) fn read(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let (elements, cut) = elements(map, found)?;
    found.shared.entries = elements
        .iter()
        .map(|element| entry(map, &element.key, element.value_at))
        .collect();
    if cut {
        found.error(reasons::map::hash_truncated(map.limit));
    }
    Ok(())
}

pub(super) fn read_per_cpu(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let (elements, cut) = elements(map, found)?;
    for Element { key, value_at } in elements {
        let key_hex = hex_string(&key);
        let what = format_args!("the value of {key_hex}");
        let per_cpu = match map.kernel.read_ptr(value_at) {
            Ok(base) => map.per_cpu_values(base, found, what),
            Err(error) => {
                found.note(format_args!("{what}: {error}"));
                Vec::new()
            }
        };
        found
            .shared
            .percpu_hash_entries
            .push(FailureDumpPercpuHashEntry {
                key: map.key(&key),
                key_hex,
                per_cpu,
            });
    }
    if cut {
        found.error(reasons::map::percpu_hash_truncated(map.limit));
    }
    Ok(())
}

/// A hash of maps: what user space sees as the value is the inner map's id.
pub(super) fn read_of_maps(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let (elements, cut) = elements(map, found)?;
    for element in elements {
        let key_hex = hex_string(&element.key);
        let inner = match map.kernel.read_ptr(element.value_at) {
            Ok(inner) => inner,
            Err(error) => {
                found.lost(format_args!("the value of {key_hex}: {error}"));
                continue;
            }
        };
        let target = map_target(map.kernel, key_hex.clone(), inner);
        let id = target.id.and_then(|id| u32::try_from(id).ok());
        found.shared.entries.push(FailureDumpEntry {
            key: map.key(&element.key),
            key_hex,
            value: id.map(|id| RenderedValue::Uint {
                bits: 32,
                value: u64::from(id),
            }),
            value_hex: id
                .map(|id| hex_string(&id.to_le_bytes()))
                .unwrap_or_default(),
            payload: None,
        });
        found.own.targets.push(target);
    }
    found.count(found.shared.entries.len());
    if cut {
        found.error(reasons::map::hash_truncated(map.limit));
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
        let key = match map.kernel.read_bytes(key_at, u64::from(map.key_size)) {
            Ok(key) => key,
            Err(error) => {
                lost_key(found, *at, &error);
                continue;
            }
        };
        let value_at = key_at.add(u64::from(map.key_size).next_multiple_of(8));
        found.shared.entries.push(entry(map, &key, value_at));
    }
    if found.bucket_end(None, &walk.end) {
        found.error(reasons::map::hash_truncated(map.limit));
    }
    found.count(found.shared.entries.len());
    Ok(())
}
