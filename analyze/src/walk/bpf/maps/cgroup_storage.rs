//! CGROUP_STORAGE and PERCPU_CGROUP_STORAGE, the storage of programs attached to cgroups.
//!
//! Reads `struct bpf_cgroup_storage_map` (kernel/bpf/local_storage.c), which links every
//! `struct bpf_cgroup_storage` (include/linux/bpf-cgroup.h) in `list`; its `key` names cgroup and
//! attach type.

use scx_postmortem_format::report::{FailureDumpEntry, FailureDumpPercpuHashEntry, hex_string};

use super::{Found, Map};
use crate::addr::Kva;
use crate::error::Result;

/// `BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE`.
const PER_CPU: u32 = 21;

pub(super) fn read(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let head = map
        .cast("struct bpf_cgroup_storage_map")?
        .member("list")?
        .address();
    let walk = map.kernel.list(head, map.limit);
    for &node in &walk.items {
        if let Err(error) = element(map, found, node) {
            found.lost(format_args!("the element at {node}: {error}"));
        }
    }
    if found.bucket_end(None, &walk.end) {
        found.error(format!("the first {} elements are shown", map.limit));
    }
    let shown = found.shared.entries.len();
    found.count(shown.max(found.shared.percpu_hash_entries.len()));
    Ok(())
}

fn element(map: &Map<'_>, found: &mut Found, node: Kva) -> Result<()> {
    let storage = map
        .kernel
        .entry("struct bpf_cgroup_storage", "list_map", node)?;
    let key_at = storage.member("key")?.address();
    let key = map.kernel.read_bytes(key_at, u64::from(map.key_size))?;
    let key_hex = hex_string(&key);
    if map.map_type == PER_CPU {
        let base = storage.member("percpu_buf")?.ptr()?;
        let what = format_args!("the value of {key_hex}");
        let per_cpu = map.per_cpu_values(base, found, what);
        found
            .shared
            .percpu_hash_entries
            .push(FailureDumpPercpuHashEntry {
                key: map.key(&key),
                key_hex,
                per_cpu,
            });
        return Ok(());
    }
    let at = storage.member("buf")?.deref()?.member("data")?.address();
    let bytes = map.kernel.read_bytes(at, u64::from(map.value_size))?;
    found.shared.entries.push(FailureDumpEntry {
        key: map.key(&key),
        key_hex,
        value: map.value(&bytes, at),
        value_hex: hex_string(&bytes),
        payload: None,
    });
    Ok(())
}
