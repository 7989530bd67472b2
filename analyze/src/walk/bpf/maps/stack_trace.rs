//! STACK_TRACE: the stacks that programs stored, with names.
//!
//! Reads `struct bpf_stack_map` and `struct stack_map_bucket` (kernel/bpf/stackmap.c). With
//! `BPF_F_STACK_BUILD_ID` a frame is a `struct bpf_stack_build_id`: status, build id, and an
//! offset into the file or an address.

use scx_postmortem_format::report::{
    FailureDumpStackTrace, FailureDumpStackTraceEntry, Frame, Hex, NamedStack, hex_string, limits,
};

use super::{Found, Map};
use crate::addr::Kva;
use crate::bytes::{le_u32, le_u64, to_u64};
use crate::error::{Error, Result};
use crate::object::Object;

/// `BPF_F_STACK_BUILD_ID`.
const BUILD_ID: u32 = 1 << 5;
/// `BPF_STACK_BUILD_ID_VALID`.
const BUILD_ID_VALID: u32 = 1;
/// Bytes of `struct bpf_stack_build_id`.
const BUILD_ID_FRAME: usize = 32;

pub(super) fn read(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let stacks = map.cast("struct bpf_stack_map")?;
    let n_buckets = stacks.member("n_buckets")?.u32()?;
    let buckets = stacks.member("buckets")?.address();
    let mut read = FailureDumpStackTrace {
        n_buckets,
        truncated: n_buckets > limits::MAX_STACK_TRACE_BUCKETS,
        ..FailureDumpStackTrace::default()
    };
    let mut cut = read.truncated;
    for id in 0..n_buckets.min(limits::MAX_STACK_TRACE_BUCKETS) {
        let bucket = match map.kernel.read_ptr(buckets.add(u64::from(id) * 8)) {
            Ok(bucket) if bucket.is_null() => continue,
            Ok(bucket) => bucket,
            Err(error) => {
                found.lost(format_args!("bucket {id}: {error}"));
                read.buckets_unreadable += 1;
                continue;
            }
        };
        if read.entries.len() >= map.limit {
            read.truncated = true;
            cut = true;
            break;
        }
        let object = map.kernel.object("struct stack_map_bucket", bucket)?;
        match one(map, id, &object) {
            Ok((entry, names)) => {
                read.truncated |= entry.nr > limits::MAX_STACK_TRACE_PCS;
                read.entries.push(entry);
                found.own.stacks.push(names);
            }
            Err(error) => {
                found.lost(format_args!("bucket {id}: {error}"));
                read.buckets_unreadable += 1;
            }
        }
    }
    found.incomplete |= cut;
    found.count(read.entries.len());
    found.shared.stack_trace = Some(read);
    Ok(())
}

fn one(
    map: &Map<'_>,
    bucket_id: u32,
    bucket: &Object<'_>,
) -> Result<(FailureDumpStackTraceEntry, NamedStack)> {
    let nr = bucket.member("nr")?.u32()?;
    let size = if map.flags & BUILD_ID == 0 {
        8
    } else {
        BUILD_ID_FRAME
    };
    if u64::from(nr).saturating_mul(to_u64(size)) > u64::from(map.value_size) {
        return Err(Error::Implausible {
            what: format!("stack_map_bucket.nr at {}", bucket.address()),
            found: nr.to_string(),
            why: "at most what a value holds",
        });
    }
    let count = nr.min(limits::MAX_STACK_TRACE_PCS);
    let data = bucket.member("data")?.address();
    let bytes = map
        .kernel
        .read_bytes(data, u64::from(count) * to_u64(size))?;
    let mut entry = FailureDumpStackTraceEntry {
        bucket_id,
        nr,
        pcs: Vec::new(),
        data_hex: hex_string(&bytes),
    };
    let mut names = NamedStack {
        bucket_id,
        ..NamedStack::default()
    };
    for frame in bytes.chunks_exact(size) {
        if size == 8 {
            let pc = le_u64(frame, 0).unwrap_or(0);
            entry.pcs.push(pc);
            names.frames.push(Frame {
                addr: Hex(pc),
                symbol: map.kernel.symbolize(Kva(pc)),
                source: None,
            });
        } else {
            let offset = le_u64(frame, 24).unwrap_or(0);
            let id = frame.get(4..24).unwrap_or_default();
            names
                .user_frames
                .push(if le_u32(frame, 0) == Some(BUILD_ID_VALID) {
                    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
                    format!("{id}+{offset:#x}")
                } else {
                    format!("{offset:#x}")
                });
        }
    }
    Ok((entry, names))
}
