//! The kernel's log.
//!
//! Mirrors `prb_read_valid()` and `get_data()` of kernel/printk/printk_ringbuffer.c:
//! `prb` points to a `struct printk_ringbuffer` with a ring of descriptors (`prb_desc`, each with a
//! `printk_info`) and one of text. A descriptor's `state_var` holds its id and, in the two highest
//! bits, its state; its text is between two logical positions, behind a copy of the id, and begins
//! anew at the ring's start where it would not fit before its end.

use scx_postmortem_format::report::LogRecord;

use super::{Limits, Remarks};
use crate::addr::Kva;
use crate::bytes::{array, to_usize};
use crate::error::{Error, Result};
use crate::kernel::{Kernel, TypeId};
use crate::object::Object;

const SECTION: &str = "kernel_log";
/// Descriptors that are looked at, the newest: a log of 8 MiB.
const MAX_DESCRIPTORS: usize = 1 << 18;
/// `log_buf_len=` allows 2 GiB.
const MAX_SIZE_BITS: u32 = 31;
/// The low 62 bits of `state_var` (`DESC_ID_MASK`); the state is above.
const ID_BITS: u32 = 62;
/// `EMPTY_LINE_LPOS`, both positions of a record without text.
const EMPTY_LINE: u64 = 3;
/// `caller_id` of a CPU outside of any task.
const CALLER_CPU: u32 = 1 << 31;
/// Damaged records that are told one by one.
const MAX_DAMAGED: usize = 16;

/// The names of the levels, as dmesg(1) has them.
const LEVELS: [&str; 8] = [
    "emerg", "alert", "crit", "err", "warn", "notice", "info", "debug",
];

/// The last records, the oldest first.
pub fn read(kernel: &Kernel, limits: &Limits, remarks: &mut Remarks) -> Vec<LogRecord> {
    let ring = match Ring::find(kernel) {
        Ok(ring) => ring,
        Err(error) => {
            remarks.missing(SECTION, &error);
            return Vec::new();
        }
    };
    let mut records = Vec::new();
    let mut valid = 0;
    let mut damaged = 0;
    let mut text_bytes = 0;
    // From the head, which is always allocated, back to the tail.
    let between = ring.head.wrapping_sub(ring.tail) & ID_MASK;
    let count = to_usize(between.min(ring.mask())).saturating_add(1);
    for back in (0u64..).take(count.min(MAX_DESCRIPTORS)) {
        let id = ring.head.wrapping_sub(back) & ID_MASK;
        let record = match ring.descriptor(id) {
            Ok(Some(descriptor)) => {
                valid += 1;
                if records.len() >= limits.log {
                    continue;
                }
                ring.record(&descriptor)
            }
            Ok(None) => continue,
            Err(error) => Err(error),
        };
        match record {
            Ok(record) => {
                text_bytes += record.text.len();
                records.push(record);
                // Blocks do not overlap; invalid UTF-8 grows threefold.
                if text_bytes > to_usize(3 << ring.size_bits) {
                    let what = "the records have more text than the ring has bytes".to_owned();
                    remarks.anomaly(SECTION, Some(ring.data), what);
                    break;
                }
            }
            Err(error) => {
                damaged += 1;
                if damaged <= MAX_DAMAGED {
                    remarks.anomaly(SECTION, Some(ring.at(id)), error.to_string());
                } else {
                    remarks.limit("kernel_log.anomalies", MAX_DAMAGED, None);
                }
            }
        }
    }
    if valid > records.len() + damaged || count > MAX_DESCRIPTORS {
        let actual = (count <= MAX_DESCRIPTORS).then_some(valid);
        remarks.limit(SECTION, limits.log, actual);
    }
    if valid + damaged == 0 {
        let what = format!("none of {count} descriptors behind the head has a record");
        remarks.anomaly(SECTION, Some(ring.at(ring.head)), what);
    }
    records.reverse();
    records
}

const ID_MASK: u64 = (1 << ID_BITS) - 1;

/// A descriptor that has a record.
struct Descriptor<'k> {
    id: u64,
    info: Object<'k>,
    finalized: bool,
    begin: u64,
    next: u64,
}

/// `struct printk_ringbuffer`, its sizes checked.
struct Ring<'k> {
    kernel: &'k Kernel,
    count_bits: u32,
    descs: Kva,
    infos: Kva,
    head: u64,
    tail: u64,
    size_bits: u32,
    data: Kva,
    desc_type: (TypeId, u64),
    info_type: (TypeId, u64),
    committed: u64,
    finalized: u64,
}

impl<'k> Ring<'k> {
    fn find(kernel: &'k Kernel) -> Result<Self> {
        let at = kernel.read_ptr(kernel.symbol("prb")?)?;
        let ring = kernel.object("struct printk_ringbuffer", at)?;
        let bits = |path, max: u32| -> Result<u32> {
            let bits = ring.member(path)?.u32()?;
            if (1..=max).contains(&bits) {
                return Ok(bits);
            }
            Err(Error::Implausible {
                what: format!("printk_ringbuffer.{path}"),
                found: bits.to_string(),
                why: "the logarithm of a size of at most 2 GiB",
            })
        };
        let sized = |name: &str| -> Result<(TypeId, u64)> {
            let ty = kernel.btf.find(name)?;
            let size = kernel.btf.size_of(ty).filter(|&size| size > 0);
            Ok((ty, size.ok_or_else(|| Error::NoType(name.to_owned()))?))
        };
        let state = |name| kernel.constant("enum desc_state", name);
        Ok(Self {
            kernel,
            count_bits: bits("desc_ring.count_bits", MAX_SIZE_BITS)?,
            descs: ring.member("desc_ring.descs")?.ptr()?,
            infos: ring.member("desc_ring.infos")?.ptr()?,
            head: ring.member("desc_ring.head_id")?.u64()? & ID_MASK,
            tail: ring.member("desc_ring.tail_id")?.u64()? & ID_MASK,
            size_bits: bits("text_data_ring.size_bits", MAX_SIZE_BITS)?,
            data: ring.member("text_data_ring.data")?.ptr()?,
            desc_type: sized("struct prb_desc")?,
            info_type: sized("struct printk_info")?,
            committed: state("desc_committed")?.cast_unsigned(),
            finalized: state("desc_finalized")?.cast_unsigned(),
        })
    }

    /// Descriptors in the ring, less one (`DESCS_COUNT_MASK`).
    const fn mask(&self) -> u64 {
        (1 << self.count_bits) - 1
    }

    /// Where the descriptor with this id is.
    fn at(&self, id: u64) -> Kva {
        let (_, size) = self.desc_type;
        self.descs.add((id & self.mask()).wrapping_mul(size))
    }

    /// The descriptor, unless it has another record by now, or none that is complete.
    fn descriptor(&self, id: u64) -> Result<Option<Descriptor<'k>>> {
        let desc = Object::new(self.kernel, self.desc_type.0, self.at(id));
        let state_var = desc.member("state_var")?.u64()?;
        let state = state_var >> ID_BITS;
        let finalized = state == self.finalized;
        if state_var & ID_MASK != id || !(finalized || state == self.committed) {
            return Ok(None);
        }
        let (info_type, info_size) = self.info_type;
        let info = self.infos.add((id & self.mask()).wrapping_mul(info_size));
        Ok(Some(Descriptor {
            id,
            info: Object::new(self.kernel, info_type, info),
            finalized,
            begin: desc.member("text_blk_lpos.begin")?.u64()?,
            next: desc.member("text_blk_lpos.next")?.u64()?,
        }))
    }

    fn record(&self, desc: &Descriptor<'k>) -> Result<LogRecord> {
        let info = &desc.info;
        let small = |path| -> Result<u8> {
            let value = info.member(path)?.u32()?;
            u8::try_from(value).map_err(|_| Error::Implausible {
                what: format!("printk_info.{path}"),
                found: value.to_string(),
                why: "one byte",
            })
        };
        let level = small("level")?;
        let caller = info.member("caller_id")?.u32()?;
        // 7.0
        let comm = match info.member("comm") {
            Ok(comm) => Some(comm.text()?).filter(|comm| !comm.is_empty()),
            Err(_) => None,
        };
        let subsystem = info.member("dev_info.subsystem")?.text()?;
        let device = info.member("dev_info.device")?.text()?;
        let device = match (subsystem.is_empty(), device.is_empty()) {
            (true, true) => None,
            (false, true) => Some(subsystem),
            (true, false) => Some(device),
            (false, false) => Some(format!("{subsystem} {device}")),
        };
        let text_len = info.member("text_len")?.u64()?;
        let text = self.text(desc, text_len)?;
        Ok(LogRecord {
            seq: info.member("seq")?.u64()?,
            ts_ns: info.member("ts_nsec")?.u64()?,
            level,
            level_name: LEVELS
                .get(usize::from(level))
                .map_or_else(|| level.to_string(), |&name| name.to_owned()),
            facility: small("facility")?,
            caller: match caller & CALLER_CPU {
                0 => format!("T{caller}"),
                _ => format!("C{}", caller & !CALLER_CPU),
            },
            comm,
            device,
            text: String::from_utf8_lossy(&text).into_owned(),
            unfinished: !desc.finalized,
        })
    }

    /// `get_data()` and `copy_data()`.
    fn text(&self, desc: &Descriptor<'_>, text_len: u64) -> Result<Vec<u8>> {
        const ID_SIZE: u64 = 8;
        let &Descriptor {
            id, begin, next, ..
        } = desc;
        let bad = |why| {
            Err(Error::Implausible {
                what: format!("the text of log record {id}"),
                found: format!("positions {begin:#x} to {next:#x}, {text_len} bytes"),
                why,
            })
        };
        if begin & 1 == 1 && next & 1 == 1 {
            return match (begin, next) {
                (EMPTY_LINE, EMPTY_LINE) => Ok(Vec::new()),
                _ => bad("there was no room for it"),
            };
        }
        let Some((start, len)) = block(begin, next, self.size_bits) else {
            return bad("a block is in one round of the ring or at the start of the next");
        };
        if len < ID_SIZE || start % ID_SIZE != 0 || len - ID_SIZE < text_len {
            return bad("aligned, and long enough for the text and its id");
        }
        let block = self.data.add(start);
        let bytes = self.kernel.read_bytes(block, ID_SIZE + text_len)?;
        if array(&bytes, 0).map(u64::from_le_bytes) != Some(id) {
            return bad("the block must begin with the record's id: it was overwritten");
        }
        Ok(bytes.into_iter().skip(to_usize(ID_SIZE)).collect())
    }
}

/// Where in a ring of `1 << size_bits` bytes the block between two logical positions is, and how
/// long. Positions run up to 2^64 and on from 0; the first is one ring's size below that.
fn block(begin: u64, next: u64, size_bits: u32) -> Option<(u64, u64)> {
    let size = 1u64 << size_bits;
    let wraps = |position: u64| position >> size_bits;
    let index = |position: u64| position & (size - 1);
    // A block that ends where the ring does has its end in the next round already. Older kernels
    // put such a block at the start.
    if wraps(begin) == wraps(next.wrapping_sub(1)) {
        let len = next.wrapping_sub(begin);
        return (1..=size).contains(&len).then(|| (index(begin), len));
    }
    (wraps(begin.wrapping_add(size)) == wraps(next)).then(|| (0, index(next)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_where_the_kernel_put_it() {
        // 4096 bytes of ring.
        let first = 4096u64.wrapping_neg();
        assert_eq!(block(first, first + 32, 12), Some((0, 32)));
        // Up to the very end, where positions come to 0.
        assert_eq!(block(64u64.wrapping_neg(), 0, 12), Some((4032, 64)));
        // No room before the end: at the start of the next round, for the first time and later.
        assert_eq!(block(64u64.wrapping_neg(), 96, 12), Some((0, 96)));
        assert_eq!(block(4000, 4096 + 128, 12), Some((0, 128)));
        assert_eq!(block(4000, 4096, 12), Some((4000, 96)));
        // Not in two rounds, not backwards, not longer than the ring.
        assert_eq!(block(4000, 8192 + 128, 12), None);
        assert_eq!(block(200, 100, 12), None);
        assert_eq!(block(100, 100, 12), None);
    }
}
