//! Where everything is in the guest's address space.
//!
//! ```text
//! 0x0000_0000  tables of the boot, command line      below 640 KiB
//! 0x000a_0000  ACPI tables from 0x000e_0000          reserved
//! 0x0010_0000  memory, up to 3 GiB
//! 0xc000_0000  hole: I/O APIC, local APIC, KVM's own pages
//! 0x1_0000_0000  what is left of the memory
//! ```

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::super::{GuestMemory, Mapping};

/// Where memory below 4 GiB ends at the latest.
const HOLE: u64 = 3 << 30;
const ABOVE: u64 = 4 << 30;
/// Page tables, descriptor table, what PVH begins with, boot parameters and command line, all below `LOW_END`.
pub(super) const GDT: u64 = 0x500;
pub(super) const START_INFO: u64 = 0x6000;
pub(super) const BOOT_PARAMS: u64 = 0x7000;
pub(super) const PAGE_TABLES: u64 = 0x9000;
pub(super) const COMMAND_LINE: u64 = 0x2_0000;
pub(super) const COMMAND_LINE_MAX: u64 = 0x1_0000;
/// Where conventional memory ends.
pub(super) const LOW_END: u64 = 0x9_fc00;
/// ACPI tables.
pub(super) const ACPI: u64 = 0xe_0000;
/// Where extended memory begins.
pub(super) const HIGH: u64 = 0x10_0000;
/// Three pages that KVM needs on Intel's CPUs, and one before them.
pub(super) const TSS: usize = 0xfffb_d000;
pub(super) const IDENTITY_MAP: u64 = 0xfffb_c000;
pub(super) const IO_APIC: u32 = 0xfec0_0000;
pub(super) const LOCAL_APIC: u32 = 0xfee0_0000;

/// The pieces of a guest's memory.
pub(super) fn pieces(bytes: u64) -> Vec<Mapping> {
    let low = bytes.min(HOLE);
    let mut pieces = vec![Mapping {
        gpa: 0,
        bytes: low,
        offset: 0,
    }];
    if bytes > low {
        pieces.push(Mapping {
            gpa: ABOVE,
            bytes: bytes - low,
            offset: low,
        });
    }
    pieces
}

/// A guest's memory: for KVM, and for everyone who reads it. One file is behind both.
pub(super) fn memory(bytes: u64) -> io::Result<(GuestMemoryMmap, GuestMemory)> {
    let file: File = memfd_create("scx-postmortem-guest", MemfdFlags::CLOEXEC)?.into();
    file.set_len(bytes)?;
    let pieces = pieces(bytes);
    let ranges = pieces.iter().map(|piece| {
        let file = FileOffset::new(file.try_clone()?, piece.offset);
        let bytes = usize::try_from(piece.bytes).map_err(io::Error::other)?;
        Ok((GuestAddress(piece.gpa), bytes, Some(file)))
    });
    let ranges: Vec<_> = ranges.collect::<io::Result<_>>()?;
    let mapped = GuestMemoryMmap::from_ranges_with_files(ranges).map_err(io::Error::other)?;
    Ok((mapped, GuestMemory::new(file, pieces)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_leaves_the_hole_below_4_gib_free() {
        let of = |bytes| {
            let pieces = pieces(bytes);
            let pieces = pieces.iter().map(|p| (p.gpa, p.bytes, p.offset));
            pieces.collect::<Vec<_>>()
        };
        assert_eq!(of(1 << 30), [(0, 1 << 30, 0)]);
        assert_eq!(of(3 << 30), [(0, 3 << 30, 0)]);
        assert_eq!(of(5 << 30), [(0, 3 << 30, 0), (4 << 30, 2 << 30, 3 << 30)]);
    }
}
