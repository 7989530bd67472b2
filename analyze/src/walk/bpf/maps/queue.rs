//! QUEUE and STACK.
//!
//! Reads `struct bpf_queue_stack` (kernel/bpf/queue_stack_maps.c): a ring of `size` slots of
//! `value_size` bytes, written at `head`; a queue is read from `tail`, a stack below `head`.

use scx_postmortem_format::report::FailureDumpArrayEntry;

use super::{Found, Map};
use crate::error::{Error, Result};

/// `BPF_MAP_TYPE_STACK`.
const STACK: u32 = 23;

/// Elements by position: key 0 is what the next peek returns.
pub(super) fn read(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let ring = map.cast("struct bpf_queue_stack")?;
    let head = ring.member("head")?.u32()?;
    let tail = ring.member("tail")?.u32()?;
    let size = ring.member("size")?.u32()?;
    if head >= size || tail >= size {
        return Err(Error::Implausible {
            what: format!("the queue at {}", map.kva),
            found: format!("head {head}, tail {tail}"),
            why: "both are below its size",
        });
    }
    let elements = ring.member("elements")?.address();
    let held = if head >= tail {
        head - tail
    } else {
        size - tail + head
    };
    found.own.entries = Some(u64::from(held));
    for key in (0..held).take(map.limit) {
        let slot = if map.map_type == STACK {
            head.checked_sub(key + 1)
        } else {
            let slot = u64::from(tail) + u64::from(key);
            u32::try_from(slot % u64::from(size)).ok()
        };
        let Some(slot) = slot else { break };
        let at = elements.add(u64::from(slot).wrapping_mul(u64::from(map.value_size)));
        let value = match map.kernel.read_bytes(at, u64::from(map.value_size)) {
            Ok(bytes) => Some(map.value_or_bytes(&bytes, at)),
            Err(error) => {
                found.note(format_args!("the element at {key}: {error}"));
                None
            }
        };
        found
            .shared
            .array_entries
            .push(FailureDumpArrayEntry { key, value });
    }
    if crate::bytes::to_usize(u64::from(held)) > map.limit {
        found.error(format!(
            "{held} elements, the first {} are shown",
            map.limit
        ));
    }
    Ok(())
}
