//! A Linux kernel in a guest's memory, ready to run: there is no firmware.
//!
//! Documentation/arch/x86/boot.rst, "64-bit Boot Protocol": a bzImage at 1 MiB, entered 0x200
//! behind that in long mode with the boot parameters in %rsi. Its decompressor moves and relocates
//! the kernel (KASLR). A vmlinux is entered in the same way, at its own entry, where it was linked.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::{Config, MachineError, Mapping};
use super::acpi;
use super::cpuid::Topology;
use super::layout::{
    ACPI, BOOT_PARAMS, COMMAND_LINE, COMMAND_LINE_MAX, GDT, HIGH, LOW_END, PAGE_TABLES,
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

/// Where a vCPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) rip: u64,
    pub(super) rsi: u64,
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
    let (entry, end) = kernel(memory, &config.kernel, &mut params)?;
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
    Ok(Start {
        rip: entry,
        rsi: BOOT_PARAMS,
    })
}

/// Where the kernel is entered, and the end of what it needs at first.
fn kernel(
    memory: &GuestMemoryMmap,
    path: &Path,
    params: &mut boot_params,
) -> Result<(u64, u64), MachineError> {
    let shown = path.display();
    let mut file = File::open(path).map_err(|e| cannot(&shown, e))?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(|e| cannot(&shown, e))?;
    file.seek(SeekFrom::Start(0))
        .map_err(|e| cannot(&shown, e))?;
    let high = Some(GuestAddress(HIGH));
    if &magic == b"\x7fELF" {
        let loaded =
            Elf::load(memory, None, &mut file, high).map_err(|e| cannot(&shown, e.to_string()))?;
        params.hdr.kernel_alignment = 0x100_0000;
        return Ok((loaded.kernel_load.0, loaded.kernel_end));
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
    Ok((loaded.kernel_load.0 + ENTRY_64, end))
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

/// Makes a vCPU begin there, in long mode with interrupts off.
pub(super) fn enter(fd: &VcpuFd, start: Start) -> Result<(), kvm_ioctls::Error> {
    fd.set_sregs(&long_mode(fd.get_sregs()?))?;
    fd.set_regs(&kvm_regs {
        rip: start.rip,
        rsi: start.rsi,
        // Below the boot parameters, for those that use a stack before they have their own.
        rsp: BOOT_PARAMS - 16,
        rflags: 2,
        ..kvm_regs::default()
    })
}
