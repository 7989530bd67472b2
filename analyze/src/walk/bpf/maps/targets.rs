//! Maps whose slots refer to something: PROG_ARRAY, PERF_EVENT_ARRAY, CGROUP_ARRAY,
//! ARRAY_OF_MAPS, DEVMAP, DEVMAP_HASH, CPUMAP, XSKMAP, SOCKMAP, SOCKHASH, REUSEPORT_SOCKARRAY.
//!
//! Reads `struct bpf_array.ptrs` (arraymap.c), `struct bpf_dtab` (devmap.c),
//! `struct bpf_cpu_map` (cpumap.c), `struct xsk_map` (include/net/xdp_sock.h), `struct bpf_stab`
//! and `struct bpf_shtab` (net/core/sock_map.c), `struct reuseport_array` (reuseport_array.c).

use scx_postmortem_format::report::{FailureDumpFdArray, Hex, MapTarget, hex_string, limits};

use super::owners::{Identity, cgroup, socket};
use super::{Found, Map};
use crate::addr::Kva;
use crate::bytes::{le_u64, to_u64, to_usize};
use crate::error::{Error, Result};
use crate::kernel::Kernel;

pub(super) fn read(map: &Map<'_>, found: &mut Found) -> Result<()> {
    match map.map_type {
        3 => slots(
            map,
            found,
            map.cast("struct bpf_array")?.member("ptrs")?.address(),
            "prog",
            prog,
        ),
        4 => slots(
            map,
            found,
            map.cast("struct bpf_array")?.member("ptrs")?.address(),
            "perf_event",
            perf_event,
        ),
        8 => slots(
            map,
            found,
            map.cast("struct bpf_array")?.member("ptrs")?.address(),
            "cgroup",
            cgroup,
        ),
        12 => slots(
            map,
            found,
            map.cast("struct bpf_array")?.member("ptrs")?.address(),
            "map",
            inner_map,
        ),
        14 => slots(
            map,
            found,
            map.cast("struct bpf_dtab")?.member("netdev_map")?.ptr()?,
            "net_device",
            device,
        ),
        15 => slots(
            map,
            found,
            map.cast("struct bpf_stab")?.member("sks")?.ptr()?,
            "sock",
            socket,
        ),
        16 => slots(
            map,
            found,
            map.cast("struct bpf_cpu_map")?.member("cpu_map")?.ptr()?,
            "cpu",
            cpu,
        ),
        17 => slots(
            map,
            found,
            map.cast("struct xsk_map")?.member("xsk_map")?.address(),
            "xsk",
            socket,
        ),
        18 => sock_hash(map, found),
        20 => slots(
            map,
            found,
            map.cast("struct reuseport_array")?
                .member("ptrs")?
                .address(),
            "sock",
            socket,
        ),
        _ => device_hash(map, found),
    }
}

/// An array of pointers, one for each key.
fn slots(
    map: &Map<'_>,
    found: &mut Found,
    first: Kva,
    kind: &str,
    identify: fn(&Kernel, Kva) -> Identity,
) -> Result<()> {
    let scanned = map
        .max_entries
        .min(limits::MAX_FD_ARRAY_SLOTS.max(u32::try_from(map.limit).unwrap_or(u32::MAX)));
    let mut array = FailureDumpFdArray {
        scanned,
        truncated: map.max_entries > scanned,
        ..FailureDumpFdArray::default()
    };
    let pointers = map.kernel.read_bytes(first, u64::from(scanned) * 8);
    for slot in 0..scanned {
        let offset = to_usize(u64::from(slot)) * 8;
        let pointer = match &pointers {
            Ok(bytes) => le_u64(bytes, offset).map(Kva),
            Err(_) => match map.kernel.read_ptr(first.add(to_u64(offset))) {
                Ok(pointer) => Some(pointer),
                Err(error) => {
                    found.lost(format_args!("slot {slot}: {error}"));
                    None
                }
            },
        };
        match pointer {
            None => array.unreadable += 1,
            Some(at) if at.is_null() => {}
            Some(at) => {
                array.populated += 1;
                if array.indices.len() < limits::MAX_FD_ARRAY_INDICES {
                    array.indices.push(slot);
                }
                if found.own.targets.len() < map.limit {
                    let target = target(map.kernel, slot.to_string(), kind, at, identify);
                    found.own.targets.push(target);
                }
            }
        }
    }
    array.indices_truncated = array.indices.len() < to_usize(u64::from(array.populated));
    found.incomplete |= array.truncated;
    found.count(to_usize(u64::from(array.populated)));
    found.shared.fd_array = Some(array);
    Ok(())
}

fn target(
    kernel: &Kernel,
    key: String,
    kind: &str,
    kva: Kva,
    identify: fn(&Kernel, Kva) -> Identity,
) -> MapTarget {
    let mut target = MapTarget {
        key,
        kind: kind.to_owned(),
        kva: Hex(kva.0),
        ..MapTarget::default()
    };
    match identify(kernel, kva) {
        Ok((id, name)) => {
            target.id = id;
            target.name = Some(name);
        }
        Err(error) => target.error = Some(error.to_string()),
    }
    target
}

/// A map that is the value of another.
pub(super) fn map_target(kernel: &Kernel, key: String, kva: Kva) -> MapTarget {
    target(kernel, key, "map", kva, inner_map)
}

fn inner_map(kernel: &Kernel, kva: Kva) -> Identity {
    let map = kernel.object("struct bpf_map", kva)?;
    Ok((Some(map.member("id")?.u64()?), map.member("name")?.text()?))
}

fn prog(kernel: &Kernel, kva: Kva) -> Identity {
    let aux = kernel
        .object("struct bpf_prog", kva)?
        .member("aux")?
        .deref()?;
    Ok((Some(aux.member("id")?.u64()?), aux.member("name")?.text()?))
}

/// `struct bpf_event_entry.event`: what it counts, as perf_event_attr says it.
fn perf_event(kernel: &Kernel, kva: Kva) -> Identity {
    let entry = kernel.object("struct bpf_event_entry", kva)?;
    let event = entry.member("event")?.deref()?;
    let attr = event.member("attr")?;
    let cpu = event.member("cpu")?.i32()?;
    Ok((
        None,
        format!(
            "type {} config {:#x} cpu {cpu}",
            attr.member("type")?.u32()?,
            attr.member("config")?.u64()?
        ),
    ))
}

/// `struct bpf_dtab_netdev.dev`.
fn device(kernel: &Kernel, kva: Kva) -> Identity {
    let slot = kernel.object("struct bpf_dtab_netdev", kva)?;
    let device = slot.member("dev")?.deref()?;
    Ok((
        Some(device.member("ifindex")?.u64()?),
        device.member("name")?.text()?,
    ))
}

/// `struct bpf_cpu_map_entry.cpu`, with the size of its queue.
fn cpu(kernel: &Kernel, kva: Kva) -> Identity {
    let entry = kernel.object("struct bpf_cpu_map_entry", kva)?;
    let cpu = entry.member("cpu")?.u64()?;
    let size = entry.member("value.qsize")?.u32()?;
    Ok((Some(cpu), format!("queue of {size}")))
}

/// `struct bpf_dtab`: lists of `struct bpf_dtab_netdev`, by index of the device.
fn device_hash(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let table = map.cast("struct bpf_dtab")?;
    let heads = table.member("dev_index_head")?.ptr()?;
    let count = u64::from(table.member("n_buckets")?.u32()?);
    buckets(map, found, heads, 8, count, |map, node| {
        let entry = map
            .kernel
            .entry("struct bpf_dtab_netdev", "index_hlist", node)?;
        let key = entry.member("idx")?.u32()?;
        Ok(target(
            map.kernel,
            hex_string(&key.to_le_bytes()),
            "net_device",
            entry.address(),
            device,
        ))
    })
}

/// `struct bpf_shtab`: lists of `struct bpf_shtab_elem`, by key.
fn sock_hash(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let table = map.cast("struct bpf_shtab")?;
    let first = table.member("buckets")?;
    let count = u64::from(table.member("buckets_num")?.u32()?);
    let size = map
        .kernel
        .btf
        .pointee(first.ty())
        .and_then(|ty| map.kernel.btf.size_of(ty))
        .ok_or_else(|| Error::NoType("struct bpf_shtab_bucket with a size".into()))?;
    // The list head is the first member of its bucket.
    buckets(map, found, first.ptr()?, size, count, |map, node| {
        let element = map.kernel.entry("struct bpf_shtab_elem", "node", node)?;
        let key_at = element.member("key")?.address();
        let key = map.kernel.read_bytes(key_at, u64::from(map.key_size))?;
        let sock = element.member("sk")?.ptr()?;
        Ok(target(map.kernel, hex_string(&key), "sock", sock, socket))
    })
}

/// The elements of a table of `struct hlist_head`s that are `size` bytes apart.
fn buckets(
    map: &Map<'_>,
    found: &mut Found,
    first: Kva,
    size: u64,
    count: u64,
    read: impl Fn(&Map<'_>, Kva) -> Result<MapTarget>,
) -> Result<()> {
    let scanned = count.min(u64::from(limits::MAX_RHT_BUCKETS));
    let mut cut = count > scanned;
    for index in 0..scanned {
        let left = map.limit.saturating_sub(found.own.targets.len());
        let walk = map.kernel.hlist(first.add(index.wrapping_mul(size)), left);
        for node in walk.items {
            match read(map, node) {
                Ok(target) => found.own.targets.push(target),
                Err(error) => found.lost(format_args!("the element at {node}: {error}")),
            }
        }
        if found.bucket_end(Some(index), &walk.end) {
            cut = true;
            break;
        }
    }
    let populated = found.own.targets.len();
    found.incomplete |= cut;
    found.count(populated);
    if cut {
        found.error(format!("the first {populated} elements are shown"));
    }
    found.shared.fd_array = Some(FailureDumpFdArray {
        populated: u32::try_from(populated).unwrap_or(u32::MAX),
        scanned: 0,
        truncated: cut,
        ..FailureDumpFdArray::default()
    });
    Ok(())
}
