//! A Linux kernel in a guest's memory, ready to run: there is no firmware.
//!
//! Documentation/arch/x86/boot.rst, "64-bit Boot Protocol": a bzImage at 1 MiB, entered 0x200
//! behind that in long mode with the boot parameters in %rsi. Its decompressor moves and relocates
//! the kernel (KASLR). A vmlinux stays where it was linked. It is entered by its note of PVH
//! (include/xen/interface/elfnote.h, hvm/start_info.h): in protected mode without paging, with what
//! starts it in %ebx; or, without that note, in long mode at its own entry.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, boot_e820_entry, boot_params};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::{Config, MachineError, Mapping};
use super::acpi;
use super::cpuid::Topology;
use super::layout::{
    ACPI, BOOT_PARAMS, COMMAND_LINE, COMMAND_LINE_MAX, GDT, HIGH, LOW_END, PAGE_TABLES, START_INFO,
};

/// Of `boot_params.hdr`.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER: u32 = 0x5372_6448;
const OTHER_LOADER: u8 = 0xff;
/// Where a kernel without such a limit of its own wants its initramfs at the latest.
const INITRD_MAX: u64 = 0x37ff_ffff;
/// Of an E820 entry.
const RAM: u32 = 1;
const RESERVED: u32 = 2;
/// Where a bzImage is entered.
const ENTRY_64: u64 = 0x200;
const PAGE: u64 = 4096;

/// `XEN_HVM_START_MAGIC_VALUE`, and the version that has a memory map.
const PVH_MAGIC: u32 = 0x336e_c578;
const PVH_VERSION: u32 = 1;

/// Where a vCPU begins, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// In long mode, with this in %rsi.
    Long { rip: u64, rsi: u64 },
    /// In protected mode without paging, with this in %ebx.
    Protected { rip: u64, rbx: u64 },
}

fn cannot(what: impl std::fmt::Display, why: impl std::fmt::Display) -> MachineError {
    MachineError::Start(format!("cannot start the guest: {what}: {why}"))
}

/// Puts the kernel, its initramfs and its parameters into the guest's memory.
pub(super) fn load(
    memory: &GuestMemoryMmap,
    pieces: &[Mapping],
    topology: &Topology,
    config: &Config,
) -> Result<Start, MachineError> {
    let mut params = boot_params::default();
    let Kernel { entry, pvh, end } = kernel(memory, &config.kernel, &mut params)?;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER;
    params.hdr.type_of_loader = OTHER_LOADER;
    params.hdr.loadflags |= LOADED_HIGH;

    let low = pieces.first().map_or(0, |piece| piece.bytes);
    initrd(memory, &config.initrd, end, low, &mut params)?;
    command_line(memory, &config.append, &mut params)?;

    let tables = acpi::tables(topology, pieces);
    let put = |bytes: &[u8], at: u64| {
        memory
            .write_slice(bytes, GuestAddress(at))
            .map_err(|e| cannot("its tables", e))
    };
    put(&tables, ACPI)?;
    params.acpi_rsdp_addr = ACPI;
    let mut ranges = vec![
        (0, LOW_END, RAM),
        (LOW_END, HIGH - LOW_END, RESERVED),
        (HIGH, low - HIGH, RAM),
    ];
    ranges.extend(pieces.iter().skip(1).map(|p| (p.gpa, p.bytes, RAM)));
    if let Some(rip) = pvh {
        put(&start_info(&params, &ranges), START_INFO)?;
        return Ok(Start::Protected {
            rip,
            rbx: START_INFO,
        });
    }
    let mut count = 0;
    for (entry, &(addr, size, kind)) in params.e820_table.iter_mut().zip(&ranges) {
        *entry = boot_e820_entry {
            addr,
            size,
            r#type: kind,
        };
        count += 1;
    }
    params.e820_entries = count;
    memory
        .write_obj(params, GuestAddress(BOOT_PARAMS))
        .map_err(|e| cannot("its boot parameters", e))?;
    long_mode_tables(memory).map_err(|e| cannot("its page tables", e))?;
    Ok(Start::Long {
        rip: entry,
        rsi: BOOT_PARAMS,
    })
}

/// What [`START_INFO`] holds: `struct hvm_start_info`, and behind it the list of modules, which is
/// the initramfs, and the map of the memory.
fn start_info(params: &boot_params, ranges: &[(u64, u64, u32)]) -> Vec<u8> {
    let size = |bytes: usize| u64::try_from(bytes).unwrap_or(0);
    let modules = START_INFO + size(size_of::<hvm_start_info>());
    let map = modules + size(size_of::<hvm_modlist_entry>());
    let words = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let count = u32::try_from(ranges.len()).unwrap_or(0);
    let mut out: Vec<u8> = words(&[
        pair(PVH_MAGIC, PVH_VERSION),
        // No flags, one module.
        pair(0, 1),
        modules,
        u64::from(params.hdr.cmd_line_ptr),
        ACPI,
        map,
        pair(count, 0),
    ]);
    let initrd = (params.hdr.ramdisk_image, params.hdr.ramdisk_size);
    out.extend::<Vec<u8>>(words(&[initrd.0.into(), initrd.1.into(), 0, 0]));
    for &(at, bytes, kind) in ranges {
        out.extend::<Vec<u8>>(words(&[at, bytes, pair(kind, 0)]));
    }
    debug_assert_eq!(
        out.len(),
        size_of::<hvm_start_info>()
            + size_of::<hvm_modlist_entry>()
            + ranges.len() * size_of::<hvm_memmap_table_entry>()
    );
    out
}

/// A kernel in memory.
struct Kernel {
    /// Where it is entered in long mode.
    entry: u64,
    /// Where it is entered in protected mode, if it can be.
    pvh: Option<u64>,
    /// The end of what it needs at first.
    end: u64,
}

fn kernel(
    memory: &GuestMemoryMmap,
    path: &Path,
    params: &mut boot_params,
) -> Result<Kernel, MachineError> {
    let shown = path.display();
    let mut file = File::open(path).map_err(|e| cannot(&shown, e))?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(|e| cannot(&shown, e))?;
    file.seek(SeekFrom::Start(0))
        .map_err(|e| cannot(&shown, e))?;
    let high = Some(GuestAddress(HIGH));
    if &magic == b"\x7fELF" {
        let loaded = Elf::load(memory, None, &mut file, high).map_err(|e| {
            cannot(
                &shown,
                format!("{e}; expected an x86-64 vmlinux that fits into the guest's memory"),
            )
        })?;
        params.hdr.kernel_alignment = 0x100_0000;
        return Ok(Kernel {
            entry: loaded.kernel_load.0,
            pvh: match loaded.pvh_boot_cap {
                PvhBootCapability::PvhEntryPresent(at) => Some(at.0),
                _ => None,
            },
            end: loaded.kernel_end,
        });
    }
    let loaded = BzImage::load(memory, high, &mut file, None).map_err(|e| {
        cannot(
            &shown,
            format!("{e}; expected a bzImage or a vmlinux that fits into the guest's memory"),
        )
    })?;
    let Some(header) = loaded.setup_header else {
        return Err(cannot(&shown, "it has no setup header"));
    };
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(cannot(
            &shown,
            "it has no 64-bit entry (XLF_KERNEL_64); expected an x86-64 kernel",
        ));
    }
    params.hdr = header;
    // The decompressor works from where the kernel prefers to be, unless KASLR finds a better place.
    let (preferred, size) = (header.pref_address, u64::from(header.init_size));
    let end = loaded.kernel_end.max(preferred.saturating_add(size));
    Ok(Kernel {
        entry: loaded.kernel_load.0 + ENTRY_64,
        pvh: None,
        end,
    })
}

/// As high as it may be: the kernel begins from below.
fn initrd(
    memory: &GuestMemoryMmap,
    path: &Path,
    end: u64,
    low: u64,
    params: &mut boot_params,
) -> Result<(), MachineError> {
    let shown = path.display();
    let mut file = File::open(path).map_err(|e| cannot(&shown, e))?;
    let bytes = file.metadata().map_err(|e| cannot(&shown, e))?.len();
    let max = match params.hdr.initrd_addr_max {
        0 => INITRD_MAX,
        max => u64::from(max),
    };
    let too_big = || {
        cannot(
            &shown,
            format!(
                "its {} MiB do not fit behind the kernel, which needs {} MiB of {} MiB; give the guest more memory (--memory)",
                bytes >> 20,
                end >> 20,
                low >> 20
            ),
        )
    };
    let at = low.min(max.saturating_add(1)).checked_sub(bytes);
    let at = at.map(|at| at & !(PAGE - 1)).filter(|at| *at >= end);
    let at = at.ok_or_else(too_big)?;
    let count = usize::try_from(bytes).map_err(|_| too_big())?;
    memory
        .read_exact_volatile_from(GuestAddress(at), &mut file, count)
        .map_err(|e| cannot(&shown, e))?;
    params.hdr.ramdisk_image = u32::try_from(at).map_err(|_| too_big())?;
    params.hdr.ramdisk_size = u32::try_from(bytes).map_err(|_| too_big())?;
    Ok(())
}

fn command_line(
    memory: &GuestMemoryMmap,
    line: &str,
    params: &mut boot_params,
) -> Result<(), MachineError> {
    let most = match params.hdr.cmdline_size {
        0 => 255,
        size => u64::from(size).min(COMMAND_LINE_MAX - 1),
    };
    let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
    if length > most {
        return Err(cannot(
            "the kernel's command line",
            format!("it has {length} bytes; this kernel takes {most}"),
        ));
    }
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    memory
        .write_slice(&bytes, GuestAddress(COMMAND_LINE))
        .map_err(|e| cannot("the kernel's command line", e))?;
    params.hdr.cmd_line_ptr = u32::try_from(COMMAND_LINE).unwrap_or(0);
    Ok(())
}

/// Segment descriptors of long mode, as the boot protocol wants them: code at 0x10, data at 0x18,
/// and a task state segment for the CPU's own sake.
const DESCRIPTORS: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];

/// Page tables that map the first 4 GiB to themselves, and the descriptor table.
pub(super) fn long_mode_tables(memory: &GuestMemoryMmap) -> io::Result<()> {
    const PRESENT_WRITE: u64 = 3;
    const HUGE: u64 = 1 << 7;
    let put = |at: u64, value: u64| {
        memory
            .write_obj(value, GuestAddress(at))
            .map_err(io::Error::other)
    };
    let upper = PAGE_TABLES + PAGE;
    let middle = upper + PAGE;
    put(PAGE_TABLES, upper | PRESENT_WRITE)?;
    for gib in 0..4u64 {
        put(upper + gib * 8, (middle + gib * PAGE) | PRESENT_WRITE)?;
    }
    for page in 0..4 * 512u64 {
        put(middle + page * 8, (page << 21) | HUGE | PRESENT_WRITE)?;
    }
    for (at, descriptor) in (GDT..).step_by(8).zip(DESCRIPTORS) {
        put(at, descriptor)?;
    }
    Ok(())
}

fn descriptor(index: u16) -> kvm_segment {
    let raw = DESCRIPTORS.get(usize::from(index)).copied().unwrap_or(0);
    let bits = |at: u32, mask: u64| u8::try_from((raw >> at) & mask).unwrap_or(0);
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: index * 8,
        type_: bits(40, 0xf),
        s: bits(44, 1),
        dpl: bits(45, 3),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: bits(55, 1),
        ..kvm_segment::default()
    }
}

/// Segment and control registers of long mode with [`long_mode_tables`].
pub(super) fn long_mode(mut sregs: kvm_sregs) -> kvm_sregs {
    const PROTECTED: u64 = 1 << 0;
    const EXTENSION_TYPE: u64 = 1 << 4;
    const PAGING: u64 = 1 << 31;
    const PHYSICAL_EXTENSION: u64 = 1 << 5;
    const LONG_ENABLED: u64 = 1 << 8;
    const LONG_ACTIVE: u64 = 1 << 10;
    sregs.cs = descriptor(2);
    let data = descriptor(3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = descriptor(4);
    sregs.tr.limit = 0xfffff;
    sregs.gdt.base = GDT;
    sregs.gdt.limit = u16::try_from(DESCRIPTORS.len() * 8 - 1).unwrap_or(0);
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = PROTECTED | EXTENSION_TYPE | PAGING;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = PHYSICAL_EXTENSION;
    sregs.efer = LONG_ENABLED | LONG_ACTIVE;
    sregs
}

/// Segment and control registers of protected mode without paging, as PVH wants them.
fn protected_mode(mut sregs: kvm_sregs) -> kvm_sregs {
    const PROTECTED: u64 = 1 << 0;
    const EXTENSION_TYPE: u64 = 1 << 4;
    // Code that is executed and read.
    const CODE: u8 = 0xb;
    let flat = descriptor(3);
    sregs.cs = kvm_segment {
        selector: descriptor(2).selector,
        type_: CODE,
        ..flat
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (flat, flat, flat, flat, flat);
    sregs.tr = descriptor(4);
    (sregs.tr.limit, sregs.tr.g) = (0x67, 0);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cr0 = PROTECTED | EXTENSION_TYPE;
    (sregs.cr3, sregs.cr4, sregs.efer) = (0, 0, 0);
    sregs
}

/// Makes a vCPU begin there, with interrupts off.
pub(super) fn enter(fd: &VcpuFd, start: Start) -> Result<(), kvm_ioctls::Error> {
    let (rip, rsi, rbx) = match start {
        Start::Long { rip, rsi } => (rip, rsi, 0),
        Start::Protected { rip, rbx } => (rip, 0, rbx),
    };
    let sregs = fd.get_sregs()?;
    fd.set_sregs(&match start {
        Start::Long { .. } => long_mode(sregs),
        Start::Protected { .. } => protected_mode(sregs),
    })?;
    fd.set_regs(&kvm_regs {
        rip,
        rsi,
        rbx,
        // Below the boot parameters, for those that use a stack before they have their own.
        rsp: BOOT_PARAMS - 16,
        rflags: 2,
        ..kvm_regs::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_starts_a_kernel_by_pvh_lists_its_initramfs_and_its_memory() {
        let mut params = boot_params::default();
        params.hdr.cmd_line_ptr = 0x2_0000;
        (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = (0x1000_0000, 0x1234);
        let ranges = [(0, 0x9_fc00, RAM), (4 << 30, 2 << 30, RAM)];
        let bytes = start_info(&params, &ranges);
        assert_eq!(bytes.len(), 56 + 32 + 2 * 24);
        let at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        // "xEn3" with the highest bit of the E, version 1, one module.
        assert_eq!(&bytes[..8], b"x\xc5n3\x01\0\0\0");
        assert_eq!(at(8) >> 32, 1);
        assert_eq!((at(24), at(32)), (0x2_0000, ACPI));
        let modules = usize::try_from(at(16) - START_INFO).unwrap();
        assert_eq!((at(modules), at(modules + 8)), (0x1000_0000, 0x1234));
        let map = usize::try_from(at(40) - START_INFO).unwrap();
        assert_eq!(at(48), 2);
        let second = (at(map + 24), at(map + 32), at(map + 40));
        assert_eq!(second, (4 << 30, 2 << 30, 1));
    }
}
