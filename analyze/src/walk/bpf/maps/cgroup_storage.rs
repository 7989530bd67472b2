//! CGROUP_STORAGE and PERCPU_CGROUP_STORAGE, the storage of programs attached to cgroups.
//!
//! Reads `struct bpf_cgroup_storage_map` (kernel/bpf/local_storage.c), which links every
//! `struct bpf_cgroup_storage` (include/linux/bpf-cgroup.h) in `list`; its `key` names cgroup and
//! attach type.

use scx_postmortem_format::report::{FailureDumpEntry, FailureDumpPercpuHashEntry, hex_string};

use super::{Found, Map};
use crate::bytes::to_u64;
use crate::error::Result;
use crate::kernel::WalkEnd;

/// `BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE`.
const PER_CPU: u32 = 21;

pub(super) fn read(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let head = map
        .cast("struct bpf_cgroup_storage_map")?
        .member("list")?
        .address();
    let walk = map.kernel.list(head, map.limit);
    for &node in &walk.items {
        let storage = map
            .kernel
            .entry("struct bpf_cgroup_storage", "list_map", node)?;
        let key_at = storage.member("key")?.address();
        let key = map.kernel.read_bytes(key_at, u64::from(map.key_size))?;
        if map.map_type == PER_CPU {
            found
                .shared
                .percpu_hash_entries
                .push(FailureDumpPercpuHashEntry {
                    key: map.key(&key),
                    key_hex: hex_string(&key),
                    per_cpu: map.per_cpu_values(storage.member("percpu_buf")?.ptr()?),
                });
            continue;
        }
        let at = storage.member("buf")?.deref()?.member("data")?.address();
        let bytes = map.kernel.read_bytes(at, u64::from(map.value_size))?;
        found.shared.entries.push(FailureDumpEntry {
            key: map.key(&key),
            key_hex: hex_string(&key),
            value: map.value(&bytes, at),
            value_hex: hex_string(&bytes),
            payload: None,
        });
    }
    match &walk.end {
        WalkEnd::Complete => found.own.entries = Some(to_u64(walk.items.len())),
        end => found.error(end.anomaly().unwrap_or_default()),
    }
    Ok(())
}
