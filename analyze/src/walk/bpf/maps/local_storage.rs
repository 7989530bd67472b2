//! TASK_STORAGE, CGRP_STORAGE, INODE_STORAGE and SK_STORAGE.
//!
//! Reads `struct bpf_local_storage_map` (`buckets`, 2^`bucket_log` of them) and
//! `struct bpf_local_storage_elem` (include/linux/bpf_local_storage.h): the element is on its
//! bucket's list with `map_node`, its value is `sdata.data`, and `local_storage->owner` is the
//! task, cgroup, inode or socket that it belongs to.

use scx_postmortem_format::report::{FailureDumpEntry, RenderedValue, hex_string, reasons};

use super::owners::owner;
use super::{Found, Map};
use crate::addr::Kva;
use crate::error::{Error, Result};
use crate::object::Object;

/// `BPF_LOCAL_STORAGE_MAX_BUCKETS` does not exist; the kernel takes twice the number of CPUs.
const MAX_BUCKET_LOG: u32 = 16;

pub(super) fn read(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let storage = map.cast("struct bpf_local_storage_map")?;
    let log = storage.member("bucket_log")?.u32()?;
    if log > MAX_BUCKET_LOG {
        return Err(Error::Implausible {
            what: format!("bucket_log of the map at {}", map.kva),
            found: log.to_string(),
            why: "at most 16",
        });
    }
    let buckets = storage.member("buckets")?;
    let first = buckets.deref()?;
    let size = first
        .size()
        .ok_or_else(|| Error::NoType("struct bpf_local_storage_map_bucket with a size".into()))?;
    for index in 0..1u64 << log {
        let bucket = Object::new(map.kernel, first.ty(), first.address().add(index * size));
        let head = bucket.member("list")?.address();
        let left = map.limit.saturating_sub(found.shared.entries.len());
        let walk = map.kernel.hlist(head, left);
        for node in walk.items {
            match entry(map, node) {
                Ok((entry, at)) => {
                    found.own.owners.push(owner(map.kernel, map.map_type, at));
                    found.shared.entries.push(entry);
                }
                Err(error) => found.lost(format_args!("the element at {node}: {error}")),
            }
        }
        if found.bucket_end(Some(index), &walk.end) {
            found.error(reasons::map::local_storage_truncated(map.limit));
            break;
        }
    }
    found.count(found.shared.entries.len());
    Ok(())
}

/// An element, and its owner's address; null when the owner has let go of it.
fn entry(map: &Map<'_>, node: Kva) -> Result<(FailureDumpEntry, Kva)> {
    let element = map
        .kernel
        .entry("struct bpf_local_storage_elem", "map_node", node)?;
    let local_storage = element.member("local_storage")?;
    let owner = match local_storage.deref() {
        Ok(storage) => storage.member("owner")?.ptr()?,
        Err(Error::Null(_)) => Kva::NULL,
        Err(error) => return Err(error),
    };
    let at = element.member("sdata.data")?.address();
    let bytes = map.kernel.read_bytes(at, u64::from(map.value_size))?;
    let entry = FailureDumpEntry {
        key: Some(RenderedValue::ptr(owner.0)),
        key_hex: hex_string(&owner.0.to_le_bytes()),
        value: Some(map.value_or_bytes(&bytes, at)),
        value_hex: hex_string(&bytes),
        payload: None,
    };
    Ok((entry, owner))
}
