//! BLOOM_FILTER: how full it is. Which elements it holds, no one can tell.
//!
//! Reads `struct bpf_bloom_filter` (kernel/bpf/bloom_filter.c).

use scx_postmortem_format::report::{BloomInfo, reasons};

use super::{Found, Map};
use crate::error::{Error, Result};

/// `BIT_U32_HASH_MAX`: a filter has at most 2^31 bits.
const MAX_BYTES: u64 = 1 << 28;
const CHUNK: u64 = 1 << 20;

pub(super) fn read(map: &Map<'_>, found: &mut Found) -> Result<()> {
    found.error(reasons::map::BLOOM_FILTER);
    let filter = map.cast("struct bpf_bloom_filter")?;
    let mask = u64::from(filter.member("bitset_mask")?.u32()?);
    let bits = mask + 1;
    // The kernel rounds the bits up to whole words.
    let bytes = bits.div_ceil(64) * 8;
    if !bits.is_power_of_two() || bytes > MAX_BYTES {
        return Err(Error::Implausible {
            what: format!("bitset_mask of the map at {}", map.kva),
            found: format!("{mask:#x}"),
            why: "one less than a power of two, at most 2^31",
        });
    }
    let bitset = filter.member("bitset")?.address();
    let mut set = 0u64;
    let mut done = 0;
    while done < bytes {
        let len = CHUNK.min(bytes - done);
        let chunk = map.kernel.read_bytes(bitset.add(done), len)?;
        set += chunk
            .iter()
            .map(|byte| u64::from(byte.count_ones()))
            .sum::<u64>();
        done += len;
    }
    found.own.bloom = Some(BloomInfo {
        bits,
        bits_set: set,
        hash_functions: filter.member("nr_hash_funcs")?.u32()?,
    });
    Ok(())
}
