//! RINGBUF and USER_RINGBUF: positions, and the records that nobody has consumed.
//!
//! Reads `struct bpf_ringbuf_map.rb` and `struct bpf_ringbuf` (kernel/bpf/ringbuf.c). Positions
//! count bytes since the ring was made; a record is an 8-byte header (length with a busy and a
//! discard bit, page offset), its data, and padding to 8. The data area is mapped twice in a row,
//! so a record that wraps is contiguous.

use scx_postmortem_format::report::{FailureDumpRingbuf, RingRecord, hex_string, reasons};

use super::{Found, Map};
use crate::bytes::le_u32;
use crate::error::Result;

/// `BPF_RINGBUF_BUSY_BIT` and `BPF_RINGBUF_DISCARD_BIT`.
const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;
/// `BPF_RINGBUF_HDR_SZ`.
const HEADER: u64 = 8;
/// Bytes of data of all records together that a report holds.
const MAX_BYTES: u64 = 1 << 20;

pub(super) fn read(map: &Map<'_>, found: &mut Found) -> Result<()> {
    use reasons::map as words;
    let pointer = map.cast("struct bpf_ringbuf_map")?.member("rb")?;
    if pointer.ptr()?.is_null() {
        found.error(words::RINGBUF_NULL);
        return Ok(());
    }
    let ring = pointer.deref()?;
    let position = |path, sentence: &str| {
        let value = ring.member(path)?.u64();
        Ok::<_, crate::Error>(value.map_err(|error| format!("{sentence} ({error})")))
    };
    let read = [
        position("mask", words::RINGBUF_MASK_UNMAPPED)?,
        position("consumer_pos", words::RINGBUF_CONSUMER_UNMAPPED)?,
        position("producer_pos", words::RINGBUF_PRODUCER_UNMAPPED)?,
        position("pending_pos", words::RINGBUF_PENDING_UNMAPPED)?,
    ];
    let (mask, consumer_pos, producer_pos, pending_pos) = match read {
        [Ok(mask), Ok(consumer), Ok(producer), Ok(pending)] => (mask, consumer, producer, pending),
        other => {
            for problem in other.into_iter().filter_map(|read| read.err()) {
                found.error(problem);
            }
            return Ok(());
        }
    };
    let Some(capacity) = mask.checked_add(1) else {
        found.error(words::RINGBUF_MASK_ONES);
        return Ok(());
    };
    if capacity != u64::from(map.max_entries) || !capacity.is_power_of_two() {
        found.error(format!(
            "bpf_ringbuf.mask is {mask:#x}, which does not go with bpf_map.max_entries {}",
            map.max_entries
        ));
        return Ok(());
    }
    found.shared.ringbuf = Some(FailureDumpRingbuf {
        capacity,
        consumer_pos,
        producer_pos,
        pending_pos,
        pending_bytes: producer_pos.wrapping_sub(consumer_pos),
    });
    // A ring that overwrites its oldest records (6.19 and later) begins where it stopped doing so.
    let oldest = match ring.member("overwrite_pos") {
        Ok(position) => position.u64()?.max(consumer_pos),
        Err(_) => consumer_pos,
    };
    if producer_pos.wrapping_sub(oldest) > capacity || producer_pos < oldest {
        found.error(format!(
            "positions {oldest} to {producer_pos} do not fit a ring of {capacity} bytes: no record is shown"
        ));
        return Ok(());
    }
    let data = ring.member("data")?.address();
    let mut at = oldest;
    let mut bytes = 0u64;
    while at < producer_pos {
        let header_at = data.add(at & mask);
        let header = match map.kernel.read_bytes(header_at, HEADER) {
            Ok(header) => header,
            Err(error) => {
                found.lost(format_args!("the record at position {at}: {error}"));
                break;
            }
        };
        let word = le_u32(&header, 0).unwrap_or(0);
        let len = word & !(BUSY | DISCARD);
        let size = (HEADER + u64::from(len)).next_multiple_of(8);
        let Some(next) = at.checked_add(size).filter(|&next| next <= producer_pos) else {
            found.lost(format_args!(
                "the record at position {at} claims {len} bytes, beyond the producer's position"
            ));
            break;
        };
        bytes = bytes.saturating_add(u64::from(len));
        if found.own.records.len() >= map.limit || bytes > MAX_BYTES {
            found.incomplete = true;
            found.error(format!(
                "{} records are shown, {} bytes of records are not",
                found.own.records.len(),
                producer_pos.saturating_sub(at)
            ));
            break;
        }
        let content = match map.kernel.read_bytes(header_at.add(HEADER), u64::from(len)) {
            Ok(content) => content,
            Err(error) => {
                found.lost(format_args!("the record at position {at}: {error}"));
                at = next;
                continue;
            }
        };
        found.own.records.push(RingRecord {
            position: at,
            len,
            state: if word & BUSY != 0 {
                "busy"
            } else if word & DISCARD != 0 {
                "discarded"
            } else {
                "committed"
            }
            .to_owned(),
            data_hex: hex_string(&content),
        });
        at = next;
    }
    found.count(found.own.records.len());
    Ok(())
}
