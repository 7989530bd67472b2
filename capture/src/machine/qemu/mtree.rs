//! Where a memory backend lies in the guest's address space, out of the monitor's `info mtree -f`.
//!
//! QEMU tells it nowhere else: the size of the hole below 4 GiB depends on machine type, version
//! and options.

use crate::machine::Mapping;

/// The pieces of `backend` in the view of memory that the CPUs have.
///
/// Lines of a flat view read
/// `  0000000000100000-000000001fffffff (prio 0, ram): ram @0000000000100000 KVM`.
pub(super) fn mappings(text: &str, backend: &str) -> Vec<Mapping> {
    let mut found = Vec::new();
    // Whether the view at hand is that of the system's memory, and not that of I/O ports or a
    // device.
    let mut system = false;
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with("FlatView") {
            if !found.is_empty() {
                break;
            }
            system = false;
        } else if line.starts_with("AS \"memory\"") {
            system = true;
        } else if system {
            found.extend(piece(line, backend));
        }
    }
    found
}

fn piece(line: &str, backend: &str) -> Option<Mapping> {
    let (range, rest) = line.split_once(" (")?;
    let (first, last) = range.split_once('-')?;
    let number = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let (first, last) = (number(first)?, number(last)?);
    let (_, target) = rest.split_once("): ")?;
    let mut words = target.split_whitespace();
    if words.next() != Some(backend) {
        return None;
    }
    let offset = words.find_map(|word| word.strip_prefix('@'));
    Some(Mapping {
        gpa: first,
        bytes: last.checked_sub(first)?.checked_add(1)?,
        offset: offset.map_or(Some(0), number)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
FlatView #0
 AS \"I/O\", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS \"memory\", root: system
 AS \"cpu-memory-0\", root: system
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): ram
  00000000000c0000-00000000000cafff (prio 0, rom): ram @00000000000c0000
  00000000000cb000-00000000000effff (prio 0, ram): ram @00000000000cb000 KVM
  00000000000f0000-00000000000fffff (prio 0, rom): pc.bios @0000000000030000
  0000000000100000-00000000bfffffff (prio 0, ram): ram @0000000000100000
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  0000000100000000-000000013fffffff (prio 0, ram): ram @00000000c0000000

FlatView #2
 AS \"cpu-smm-0\", root: memory
  0000000000000000-00000000000bffff (prio 0, ram): ram
";

    #[test]
    fn the_view_of_memory_is_read() {
        let found = mappings(TEXT, "ram");
        let piece = |gpa, bytes, offset| Mapping { gpa, bytes, offset };
        assert_eq!(
            found,
            [
                piece(0, 0xc_0000, 0),
                piece(0xc_0000, 0xb000, 0xc_0000),
                piece(0xc_b000, 0x2_5000, 0xc_b000),
                piece(0x10_0000, 0xbff0_0000, 0x10_0000),
                piece(4 << 30, 1 << 30, 0xc000_0000),
            ]
        );
        assert_eq!(mappings(TEXT, "other"), []);
        assert_eq!(mappings("nonsense (prio 0, ram): ram", "ram"), []);
    }
}
