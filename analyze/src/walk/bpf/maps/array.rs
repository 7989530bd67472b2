//! ARRAY, PERCPU_ARRAY and INSN_ARRAY.
//!
//! Reads `struct bpf_array` (include/linux/bpf.h): the values begin at `value`, `elem_size`
//! apart; a per-CPU array has per-CPU pointers there (`pptrs`). `struct bpf_insn_array`
//! (kernel/bpf/bpf_insn_array.c) has its own values.

use std::sync::Arc;

use scx_postmortem_format::report::{
    FailureDumpArrayEntry, FailureDumpPercpuEntry, RenderedValue, reasons,
};

use super::{Found, Map};
use crate::bytes::{to_u64, to_usize};
use crate::error::{Error, Result};
use crate::kernel::TypeId;

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
    let mut unreadable = Unreadable::default();
    for key in (0..map.max_entries).take(map.limit) {
        let at = first.add(stride.wrapping_mul(u64::from(key)));
        let bytes = unreadable.ok(map.kernel.read_bytes(at, size));
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
    unreadable.close(found);
    Ok(())
}

/// Keys whose values cannot be read: how many, and why the first.
#[derive(Default)]
struct Unreadable {
    keys: usize,
    first: Option<Error>,
}

impl Unreadable {
    fn ok<T>(&mut self, read: Result<T>) -> Option<T> {
        read.map_err(|error| {
            self.keys += 1;
            self.first.get_or_insert(error);
        })
        .ok()
    }

    fn close(self, found: &mut Found) {
        if let Some(first) = self.first {
            found.error(format!("{} keys unreadable ({first})", self.keys));
        }
    }
}

pub(super) fn read_per_cpu(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let array = map.cast("struct bpf_array")?;
    let pointers = array.member("pptrs")?.address();
    found.own.entries = Some(u64::from(map.max_entries));
    let shown = to_usize(u64::from(map.max_entries)).min(map.limit);
    let mut unreadable = Unreadable::default();
    for key in (0..map.max_entries).take(shown) {
        let base = map.kernel.read_ptr(pointers.add(u64::from(key) * 8));
        let base = base.and_then(|base| match base.is_null() {
            true => Err(Error::Null(format!("bpf_array.pptrs[{key}]"))),
            false => Ok(base),
        });
        let per_cpu = match unreadable.ok(base) {
            Some(base) => map.per_cpu_values(base, found, format_args!("key {key}")),
            None => Vec::new(),
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
    unreadable.close(found);
    Ok(())
}

/// Where the instructions of a jump table ended up: `struct bpf_insn_array_value` is the
/// kernel's own type.
pub(super) fn read_instructions(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let values = map.cast("struct bpf_insn_array")?.member("values")?;
    let ty: TypeId = map.kernel.btf.find("struct bpf_insn_array_value")?;
    let scope = map.scope.with_types(Arc::clone(&map.kernel.btf));
    found.own.entries = Some(u64::from(map.max_entries));
    let mut unreadable = Unreadable::default();
    for key in (0..map.max_entries).take(map.limit) {
        let value = values.index(u64::from(key))?;
        let bytes = unreadable.ok(value.bytes());
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
    unreadable.close(found);
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
