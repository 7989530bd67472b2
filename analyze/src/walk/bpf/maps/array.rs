//! ARRAY, PERCPU_ARRAY and INSN_ARRAY.
//!
//! Reads `struct bpf_array` (include/linux/bpf.h): the values begin at `value`, `elem_size`
//! apart; a per-CPU array has per-CPU pointers there (`pptrs`). `struct bpf_insn_array`
//! (kernel/bpf/bpf_insn_array.c) has its own values.

use scx_postmortem_format::report::{
    FailureDumpArrayEntry, FailureDumpPercpuEntry, RenderedValue, reasons,
};

use super::{Found, Map};
use crate::bytes::{to_u64, to_usize};
use crate::error::Result;
use crate::kernel::TypeId;
use crate::render::Scope;

pub(super) fn read(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let array = map.cast("struct bpf_array")?;
    let first = array.member("value")?.address();
    let stride = u64::from(array.member("elem_size")?.u32()?);
    found.own.entries = Some(u64::from(map.max_entries));
    let size = u64::from(map.value_size);
    if map.max_entries <= 1 {
        match map.kernel.read_bytes(first, size) {
            Ok(bytes) => {
                found.shared.value = Some(if found.shared.name.ends_with(".rodata.str1.1") {
                    RenderedValue::Bytes {
                        hex: escaped(&bytes),
                    }
                } else {
                    map.value_or_bytes(&bytes, first)
                });
            }
            Err(error) => found.error(format!("{} ({error})", reasons::map::ARRAY_UNREADABLE)),
        }
        return Ok(());
    }
    let count = to_usize(u64::from(map.max_entries));
    let mut unreadable = 0;
    for key in (0..map.max_entries).take(map.limit) {
        let at = first.add(stride.wrapping_mul(u64::from(key)));
        let bytes = map.kernel.read_bytes(at, size).ok();
        unreadable += usize::from(bytes.is_none());
        found.shared.array_entries.push(FailureDumpArrayEntry {
            key,
            value: bytes.map(|bytes| map.value_or_bytes(&bytes, at)),
        });
    }
    if count > map.limit {
        found.error(format!(
            "ARRAY truncated at {} keys (max_entries={count})",
            map.limit
        ));
    }
    if unreadable > 0 {
        found.error(format!("{unreadable} keys unreadable"));
    }
    Ok(())
}

pub(super) fn read_per_cpu(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let array = map.cast("struct bpf_array")?;
    let pointers = array.member("pptrs")?.address();
    found.own.entries = Some(u64::from(map.max_entries));
    let shown = to_usize(u64::from(map.max_entries)).min(map.limit);
    let mut unreadable = 0;
    for key in (0..map.max_entries).take(shown) {
        let per_cpu = match map.kernel.read_ptr(pointers.add(u64::from(key) * 8)) {
            Ok(base) if !base.is_null() => map.per_cpu_values(base),
            Ok(_) => Vec::new(),
            Err(_) => {
                unreadable += 1;
                Vec::new()
            }
        };
        found
            .shared
            .percpu_entries
            .push(FailureDumpPercpuEntry { key, per_cpu });
    }
    if to_u64(shown) < u64::from(map.max_entries) {
        found.error(format!(
            "PERCPU_ARRAY truncated at {shown} keys (max_entries={})",
            map.max_entries
        ));
    }
    if unreadable > 0 {
        found.error(format!("{unreadable} keys unreadable"));
    }
    Ok(())
}

/// Where the instructions of a jump table ended up: `struct bpf_insn_array_value` is the
/// kernel's own type.
pub(super) fn read_instructions(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let values = map.cast("struct bpf_insn_array")?.member("values")?;
    let ty: TypeId = map.kernel.btf.find("struct bpf_insn_array_value")?;
    let scope = Scope::new(map.kernel, std::sync::Arc::clone(&map.kernel.btf), None);
    found.own.entries = Some(u64::from(map.max_entries));
    for key in (0..map.max_entries).take(map.limit) {
        let value = values.index(u64::from(key))?;
        let bytes = value.bytes().ok();
        found.shared.array_entries.push(FailureDumpArrayEntry {
            key,
            value: bytes.map(|bytes| scope.render_at(ty, &bytes, value.address().0)),
        });
    }
    if to_usize(u64::from(map.max_entries)) > map.limit {
        found.error(format!(
            "INSN_ARRAY truncated at {} keys (max_entries={})",
            map.limit, map.max_entries
        ));
    }
    Ok(())
}

/// Printable ASCII as itself, everything else as `\xHH`.
fn escaped(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|&byte| match byte {
            0x20..=0x7e => char::from(byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        })
        .collect()
}
