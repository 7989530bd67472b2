//! vCPU registers out of ELF notes.
//!
//! Mirrors `struct elf_prstatus` (NT_PRSTATUS, x86-64) and QEMU's `QEMUCPUState`
//! (target/i386/arch_dump.c), the note with name `QEMU` and type 0.

use crate::bytes::le_u64;

/// The registers of one vCPU that a report needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VcpuRegs {
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Frame pointer.
    pub rbp: u64,
    /// Flags.
    pub rflags: u64,
    /// Code segment; its low two bits are the privilege level.
    pub cs: u64,
    /// `%rax`, `%r10`, `%r13`, `%rdi` and `%rdx`: what unwind tables may name beside the above.
    pub rax: u64,
    /// See `rax`.
    pub r10: u64,
    /// See `rax`.
    pub r13: u64,
    /// See `rax`.
    pub rdi: u64,
    /// See `rax`.
    pub rdx: u64,
    /// Page-table root, when the source had it.
    pub cr3: Option<u64>,
    /// CR4, when the source had it (bit 12: five-level paging).
    pub cr4: Option<u64>,
    /// GS base at the stop, when the source had it.
    pub gs_base: Option<u64>,
    /// The other GS base (`MSR_KERNEL_GS_BASE`), when the source had it.
    pub kernel_gs_base: Option<u64>,
    /// The time stamp counter, when the source had it.
    pub tsc: Option<u64>,
}

/// Offset of `pr_reg` in `struct elf_prstatus`.
const PR_REG: usize = 112;

impl VcpuRegs {
    /// From the description of a `CORE` / NT_PRSTATUS note. `None` when it is too short.
    #[must_use]
    pub fn from_prstatus(desc: &[u8]) -> Option<Self> {
        // user_regs_struct: r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax
        // rip cs eflags rsp ss fs_base gs_base ds es fs gs
        let reg = |index: usize| le_u64(desc, PR_REG + index * 8);
        Some(Self {
            r13: reg(2)?,
            rbp: reg(4)?,
            r10: reg(7)?,
            rax: reg(10)?,
            rdx: reg(12)?,
            rdi: reg(14)?,
            rip: reg(16)?,
            cs: reg(17)?,
            rflags: reg(18)?,
            rsp: reg(19)?,
            ..Self::default()
        })
    }

    /// Adds what a `QEMU` type 0 note knows beyond NT_PRSTATUS. Leaves `self` alone when the
    /// note is too short to hold it.
    pub fn add_qemu_state(&mut self, desc: &[u8]) {
        // u32 version, u32 size; 16 general registers; rip, rflags; ten segments of 24 bytes
        // (selector, limit, flags, pad, base): cs ds es fs gs ss ldt tr gdt idt; cr[5];
        // kernel_gs_base where the writer knew it.
        const SEGMENTS: usize = 8 + 18 * 8;
        const CONTROL: usize = SEGMENTS + 10 * 24;
        self.gs_base = le_u64(desc, SEGMENTS + 4 * 24 + 16).or(self.gs_base);
        self.cr3 = le_u64(desc, CONTROL + 3 * 8).or(self.cr3);
        self.cr4 = le_u64(desc, CONTROL + 4 * 8).or(self.cr4);
        self.kernel_gs_base = le_u64(desc, CONTROL + 5 * 8).or(self.kernel_gs_base);
    }
}
