//! A vCPU's registers, from KVM's structures to those of a capture.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs, kvm_dtable, kvm_msr_entry, kvm_segment};
use kvm_ioctls::VcpuFd;
use scx_postmortem_format::capture::{
    DebugRegs, DescriptorTable, GeneralRegs, Msr, SegmentReg, SpecialRegs, VcpuState,
};
use vmm_sys_util::errno::Error;

use super::cpuid::save_sizes;

const TSC: u32 = 0x10;
/// The model-specific registers of a capture, as `asm/msr-index.h` and `asm/kvm_para.h` name them.
const MSRS: [u32; 23] = [
    TSC,         // MSR_IA32_TSC
    0xc000_0080, // MSR_EFER
    0xc000_0081, // MSR_STAR
    0xc000_0082, // MSR_LSTAR
    0xc000_0083, // MSR_CSTAR
    0xc000_0084, // MSR_SYSCALL_MASK
    0xc000_0100, // MSR_FS_BASE
    0xc000_0101, // MSR_GS_BASE
    0xc000_0102, // MSR_KERNEL_GS_BASE
    0xc000_0103, // MSR_TSC_AUX
    0x0000_001b, // MSR_IA32_APICBASE
    0x0000_003b, // MSR_IA32_TSC_ADJUST
    0x0000_0048, // MSR_IA32_SPEC_CTRL
    0x0000_0174, // MSR_IA32_SYSENTER_CS
    0x0000_0175, // MSR_IA32_SYSENTER_ESP
    0x0000_0176, // MSR_IA32_SYSENTER_EIP
    0x0000_01a0, // MSR_IA32_MISC_ENABLE
    0x0000_0277, // MSR_IA32_CR_PAT
    0x0000_02ff, // MSR_MTRRdefType
    0x0000_06e0, // MSR_IA32_TSC_DEADLINE
    0x0000_0da0, // MSR_IA32_XSS
    0x4b56_4d00, // MSR_KVM_WALL_CLOCK_NEW
    0x4b56_4d01, // MSR_KVM_SYSTEM_TIME_NEW
];

fn segment(from: &kvm_segment) -> SegmentReg {
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    SegmentReg {
        selector: from.selector,
        limit: from.limit,
        flags: u32::from(from.type_ & 0xf) << 8
            | bit(from.s, 12)
            | u32::from(from.dpl & 3) << 13
            | bit(from.present, 15)
            | bit(from.avl, 20)
            | bit(from.l, 21)
            | bit(from.db, 22)
            | bit(from.g, 23),
        base: from.base,
    }
}

fn table(from: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: from.base,
        limit: from.limit,
    }
}

/// Those of [`MSRS`] that this host can read. KVM stops at the first that it cannot.
fn msrs(fd: &VcpuFd) -> Vec<Msr> {
    let mut out = Vec::new();
    let mut rest = MSRS.as_slice();
    while !rest.is_empty() {
        let entries: Vec<_> = rest
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..kvm_msr_entry::default()
            })
            .collect();
        let Ok(mut list) = Msrs::from_entries(&entries) else {
            break;
        };
        let count = fd.get_msrs(&mut list).unwrap_or(0);
        let read = list.as_slice().iter().take(count);
        out.extend(read.map(|entry| Msr {
            index: entry.index,
            value: entry.data,
        }));
        rest = rest.get(count + 1..).unwrap_or_default();
    }
    out
}

/// In the area that XSAVE writes: where the kernel's notes have the features that are switched on
/// (`struct xregs_state`, arch/x86/kernel/fpu/xstate.h: `sw_reserved`).
const FEATURES: usize = 464;
/// Length of its part without the header.
const PLAIN: usize = 512;
/// x87 and SSE, which every x86-64 processor has.
const LEGACY: u64 = 3;

/// The state that XSAVE saves, in its standard form and as long as it is on this vCPU. KVM gives
/// a page of it: what is larger (AMX) needs leave that this process has not asked for.
fn xsave(fd: &VcpuFd) -> Result<Vec<u8>, Error> {
    let area = fd.get_xsave()?.region;
    let mut area: Vec<u8> = area.iter().flat_map(|word| word.to_le_bytes()).collect();
    // A host without XSAVE has no such register.
    let xcrs = fd.get_xcrs().unwrap_or_default();
    let first = xcrs
        .xcrs
        .iter()
        .take(usize::try_from(xcrs.nr_xcrs).unwrap_or(0));
    let features = first
        .filter(|entry| entry.xcr == 0)
        .fold(LEGACY, |all, entry| all | entry.value);
    let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES)?;
    let low = u32::try_from(features & 0xffff_ffff).unwrap_or(0);
    let (size, _) = save_sizes(cpuid.as_slice(), low);
    area.truncate(usize::try_from(size).unwrap_or(PLAIN));
    let mask = area.get_mut(FEATURES..FEATURES + 8);
    if let Some(mask) = mask {
        mask.copy_from_slice(&features.to_le_bytes());
    }
    Ok(area)
}

/// The time stamp counter, at this moment.
pub(super) fn tsc(fd: &VcpuFd) -> Option<u64> {
    let entry = kvm_msr_entry {
        index: TSC,
        ..kvm_msr_entry::default()
    };
    let mut list = Msrs::from_entries(&[entry]).ok()?;
    let read = fd.get_msrs(&mut list).ok()?;
    let entry = list.as_slice().first().filter(|_| read == 1);
    entry.map(|entry| entry.data)
}

/// Sets it to what it was when the vCPU stopped.
pub(super) fn set_tsc(state: &mut VcpuState, tsc: u64) {
    for msr in state.msrs.iter_mut().filter(|msr| msr.index == TSC) {
        msr.value = tsc;
    }
}

/// All registers of a vCPU that stands still.
pub(super) fn of(vcpu: u32, fd: &VcpuFd) -> Result<VcpuState, Error> {
    let regs = fd.get_regs()?;
    let special = fd.get_sregs()?;
    let debug = fd.get_debug_regs()?;
    let [dr0, dr1, dr2, dr3] = debug.db;
    Ok(VcpuState {
        version: 1,
        vcpu,
        general: GeneralRegs {
            rax: regs.rax,
            rbx: regs.rbx,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            rsp: regs.rsp,
            rbp: regs.rbp,
            r8: regs.r8,
            r9: regs.r9,
            r10: regs.r10,
            r11: regs.r11,
            r12: regs.r12,
            r13: regs.r13,
            r14: regs.r14,
            r15: regs.r15,
            rip: regs.rip,
            rflags: regs.rflags,
        },
        special: Some(SpecialRegs {
            cs: segment(&special.cs),
            ds: segment(&special.ds),
            es: segment(&special.es),
            fs: segment(&special.fs),
            gs: segment(&special.gs),
            ss: segment(&special.ss),
            ldt: segment(&special.ldt),
            tr: segment(&special.tr),
            gdt: table(&special.gdt),
            idt: table(&special.idt),
            cr0: special.cr0,
            cr2: special.cr2,
            cr3: special.cr3,
            cr4: special.cr4,
            cr8: Some(special.cr8),
            efer: Some(special.efer),
        }),
        debug: Some(DebugRegs {
            dr0,
            dr1,
            dr2,
            dr3,
            dr6: debug.dr6,
            dr7: debug.dr7,
        }),
        msrs: msrs(fd),
        xsave: xsave(fd)?,
    })
}
