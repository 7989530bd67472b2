//! Kernel stacks, unwound with the ORC tables that the kernel itself uses.
//!
//! Reads `__start_orc_unwind_ip` and `__start_orc_unwind` (`struct orc_entry`,
//! arch/x86/include/asm/orc_types.h), the same tables of each module (`struct mod_arch_specific`)
//! and `struct pt_regs` on the stacks. Mirrors `unwind_next_frame()` of
//! arch/x86/kernel/unwind_orc.c: an entry tells, for the instructions from its address on, how
//! the caller's stack pointer follows from a register, and where the caller's frame pointer was
//! saved. JITed BPF code has no entries and keeps frame pointers instead.
//!
//! Stacks are not checked against the bounds of the task's, the interrupts' and the exceptions'
//! stacks: memory holds still, so a wrong turn only ends in an address that no table knows.

use super::{Kernel, Text};
use crate::addr::Kva;
use crate::bytes::to_usize;
use crate::error::{Error, Result};
use crate::object::Object;

/// The registers that unwinding begins with or continues from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registers {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub bp: u64,
    /// The others that an entry may name, where they are known.
    pub scratch: Option<Scratch>,
    /// Whether `ip` is the next instruction of code that was interrupted, not a return address.
    pub interrupted: bool,
}

/// Registers that hold the stack pointer in a few places of the entry code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scratch {
    /// `%rax`.
    pub ax: u64,
    /// `%r10`.
    pub r10: u64,
    /// `%r13`.
    pub r13: u64,
    /// `%rdi`.
    pub di: u64,
    /// `%rdx`.
    pub dx: u64,
}

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackFrame {
    /// Where execution goes on in this frame.
    pub ip: Kva,
    /// Whether `ip` was interrupted there; else it is a return address, behind the call.
    pub interrupted: bool,
}

/// Why unwinding stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StackEnd {
    /// At the first frame of the stack.
    Complete,
    /// At the registers of user space, from where the kernel was entered.
    User(Kva),
    /// The tables end the stack here although it is not its first frame: code that nobody can
    /// unwind.
    Undefined(Kva),
    /// Neither the kernel, nor a module, nor JITed code has this address.
    NoCode(Kva),
    /// The stack pointer went back.
    Backwards(Kva),
    /// Something could not be read.
    Error(Error),
    /// There are more frames than were asked for.
    Limit(usize),
}

impl StackEnd {
    /// The reason in words; `None` when the stack is whole.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Complete | Self::User(_) => None,
            Self::Undefined(ip) => Some(format!("the ORC tables cannot unwind from {ip}")),
            Self::NoCode(ip) => Some(format!(
                "{ip} is neither in the kernel, nor in a module, nor in a BPF program"
            )),
            Self::Backwards(sp) => Some(format!("the stack pointer went back to {sp}")),
            Self::Error(error) => Some(error.to_string()),
            Self::Limit(limit) => Some(format!("only the first {limit} frames are shown")),
        }
    }
}

/// A stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// Innermost first.
    pub frames: Vec<StackFrame>,
    /// Why it ends where it does.
    pub end: StackEnd,
}

/// The kernel's own tables, and how their entries are read.
#[derive(Debug)]
pub(super) struct Orc {
    table: Table,
    numbering: &'static [Base; 11],
    /// Bytes of a `struct orc_entry`.
    entry_size: u64,
}

/// A table: the addresses that entries begin at, as distances from where they are written, and
/// the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// The first distance, an `int`.
    pub ips: Kva,
    /// The first `struct orc_entry`.
    pub entries: Kva,
    /// How many.
    pub count: u64,
}

/// What an entry's `sp_reg` and `bp_reg` name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    Undefined,
    /// The caller's stack pointer.
    PrevSp,
    Ax,
    Dx,
    Di,
    Bp,
    Sp,
    R10,
    R13,
    BpIndirect,
    SpIndirect,
}

/// A kernel's `orc_header`.
type Hash = [u8; 20];

/// `ORC_REG_*` by number: macros, which BTF does not have. `orc_header` tells which numbers the
/// tables were made with, as the kernel's own check when a module is loaded: it is a hash of the
/// macros and of `struct orc_entry`.
const NUMBERINGS: [(Hash, [Base; 11]); 2] = [
    // Since 7.1.
    (
        *b"\x13\x7c\x36\xad\x76\x27\xc4\xdd\x55\x93\x21\x76\xbb\x0e\xcd\xbd\x50\x41\xfc\x82",
        [
            Base::Undefined,
            Base::Ax,
            Base::Dx,
            Base::Sp,
            Base::Bp,
            Base::Di,
            Base::R10,
            Base::R13,
            Base::PrevSp,
            Base::SpIndirect,
            Base::BpIndirect,
        ],
    ),
    // 6.4 to 7.0.
    (
        *b"\xfe\x5d\x32\xbf\x58\x1b\xd6\x3b\x2c\xa9\xa5\xc6\x5b\xa5\xa6\x25\xea\xb3\xfe\x24",
        [
            Base::Undefined,
            Base::PrevSp,
            Base::Dx,
            Base::Di,
            Base::Bp,
            Base::Sp,
            Base::R10,
            Base::R13,
            Base::BpIndirect,
            Base::SpIndirect,
            Base::Undefined,
        ],
    ),
];

/// `ORC_TYPE_*`, the same in both.
mod kind {
    pub(super) const UNDEFINED: u64 = 0;
    pub(super) const END_OF_STACK: u64 = 1;
    pub(super) const CALL: u64 = 2;
    pub(super) const REGS: u64 = 3;
    pub(super) const REGS_PARTIAL: u64 = 4;
}

/// What an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    sp_offset: u64,
    bp_offset: u64,
    sp_base: Base,
    bp_base: Base,
    kind: u64,
    signal: bool,
}

impl Rule {
    /// A function that keeps its frame pointer, behind its prologue.
    const FRAME_POINTER: Self = Self {
        sp_offset: 16,
        bp_offset: 16u64.wrapping_neg(),
        sp_base: Base::Bp,
        bp_base: Base::PrevSp,
        kind: kind::CALL,
        signal: false,
    };

    fn read(entry: &Object<'_>, numbering: &[Base; 11]) -> Result<Self> {
        let offset = |path| entry.member(path)?.i64().map(i64::cast_unsigned);
        let bits = |path| entry.member(path)?.u64();
        let base = |path| {
            let number = bits(path)?;
            let base = numbering.get(to_usize(number)).copied();
            base.ok_or_else(|| Error::Implausible {
                what: format!("{path} of the orc_entry at {}", entry.address()),
                found: number.to_string(),
                why: "arch/x86/include/asm/orc_types.h names no such register",
            })
        };
        Ok(Self {
            sp_offset: offset("sp_offset")?,
            bp_offset: offset("bp_offset")?,
            sp_base: base("sp_reg")?,
            bp_base: base("bp_reg")?,
            kind: bits("type")?,
            signal: bits("signal")? != 0,
        })
    }
}

/// `THREAD_SIZE` and `IRQ_STACK_SIZE`, which stacks are aligned to.
const STACK_SIZE: u64 = 1 << 14;
/// Entries of the kernel or a module: its text has no more bytes than that.
const MAX_ENTRIES: u64 = 1 << 26;

impl Kernel {
    /// The frames from `start` on, at most `limit` of them.
    #[must_use]
    pub fn unwind(&self, start: Registers, limit: usize) -> Stack {
        let mut frames = Vec::new();
        let mut at = start;
        let end = loop {
            if frames.len() >= limit {
                break StackEnd::Limit(limit);
            }
            frames.push(StackFrame {
                ip: Kva(at.ip),
                interrupted: at.interrupted,
            });
            match self.caller(&at) {
                Ok(Ok(next)) => at = next,
                Ok(Err(end)) => break end,
                Err(error) => break StackEnd::Error(error),
            }
        };
        Stack { frames, end }
    }

    /// The registers of a task that is not on a CPU, as `__switch_to_asm()` left them.
    ///
    /// # Errors
    /// When this kernel keeps them elsewhere or the stack cannot be read.
    pub fn sleeping_registers(&self, task: &Object<'_>) -> Result<Registers> {
        let sp = Kva(task.member("thread.sp")?.u64()?);
        let frame = self.object("struct inactive_task_frame", sp)?;
        let size = frame
            .size()
            .ok_or_else(|| Error::NoType("struct inactive_task_frame with a size".into()))?;
        Ok(Registers {
            ip: frame.member("ret_addr")?.u64()?,
            sp: sp.add(size).0,
            bp: frame.member("bp")?.u64()?,
            scratch: None,
            interrupted: false,
        })
    }

    /// One step: the caller's registers, or the end.
    fn caller(&self, at: &Registers) -> Result<std::result::Result<Registers, StackEnd>> {
        let ip = Kva(at.ip);
        // A call that does not return may be its function's last instruction.
        let looked_up = if at.interrupted { ip } else { ip.sub(1) };
        let Some(rule) = self.rule(looked_up)? else {
            return Ok(Err(StackEnd::NoCode(ip)));
        };
        match rule.kind {
            kind::UNDEFINED => return Ok(Err(StackEnd::Undefined(ip))),
            kind::END_OF_STACK => return Ok(Err(StackEnd::Complete)),
            _ => {}
        }
        let scratch = || {
            at.scratch.ok_or_else(|| Error::Implausible {
                what: format!("the frame at {ip}, which a scratch register leads to,"),
                found: "a return address".into(),
                why: "only an interrupt saves these registers",
            })
        };
        let implausible = |what: &str| Error::Implausible {
            what: format!("the orc_entry for {looked_up}"),
            found: format!("{rule:?}"),
            why: match what {
                "type" => "its type must be a call's or that of saved registers",
                _ => "the kernel's unwinder knows no such base",
            },
        };
        let offset = rule.sp_offset;
        let sp = match rule.sp_base {
            Base::Sp => at.sp.wrapping_add(offset),
            Base::Bp => at.bp.wrapping_add(offset),
            Base::SpIndirect => self.read_u64(Kva(at.sp))?.wrapping_add(offset),
            Base::BpIndirect => self.read_u64(Kva(at.bp.wrapping_add(offset)))?,
            Base::Ax => scratch()?.ax.wrapping_add(offset),
            Base::Dx => scratch()?.dx.wrapping_add(offset),
            Base::Di => scratch()?.di.wrapping_add(offset),
            Base::R10 => scratch()?.r10.wrapping_add(offset),
            Base::R13 => scratch()?.r13.wrapping_add(offset),
            Base::Undefined | Base::PrevSp => return Err(implausible("sp_reg")),
        };
        let mut next = match rule.kind {
            kind::CALL => Registers {
                ip: self.read_u64(Kva(sp).sub(8))?,
                sp,
                bp: at.bp,
                scratch: None,
                interrupted: false,
            },
            kind::REGS => self.saved(Kva(sp), true, at)?,
            kind::REGS_PARTIAL => self.saved(Kva(sp), false, at)?,
            _ => return Err(implausible("type")),
        };
        next.bp = match rule.bp_base {
            Base::Undefined => next.bp,
            Base::PrevSp => self.read_u64(Kva(sp.wrapping_add(rule.bp_offset)))?,
            Base::Bp => self.read_u64(Kva(at.bp.wrapping_add(rule.bp_offset)))?,
            _ => return Err(implausible("bp_reg")),
        };
        if rule.kind != kind::CALL && self.saved_in_user_mode(Kva(sp), rule.kind)? {
            return Ok(Err(StackEnd::User(Kva(next.ip))));
        }
        next.interrupted |= rule.signal;
        if next.sp <= at.sp && (next.sp ^ at.sp) < STACK_SIZE {
            return Ok(Err(StackEnd::Backwards(Kva(next.sp))));
        }
        Ok(Ok(next))
    }

    /// The `struct pt_regs` at `sp`, or, when only the hardware's part was saved, the one whose
    /// part is there.
    fn pt_regs(&self, sp: Kva, whole: bool) -> Result<Object<'_>> {
        if whole {
            return self.object("struct pt_regs", sp);
        }
        let hardware = self.object("struct pt_regs", Kva::NULL)?.member("ip")?;
        self.object("struct pt_regs", sp.sub(hardware.address().0))
    }

    fn saved(&self, sp: Kva, whole: bool, at: &Registers) -> Result<Registers> {
        let regs = self.pt_regs(sp, whole)?;
        let reg = |name| regs.member(name)?.u64();
        Ok(Registers {
            ip: reg("ip")?,
            sp: reg("sp")?,
            bp: if whole { reg("bp")? } else { at.bp },
            scratch: if whole {
                Some(Scratch {
                    ax: reg("ax")?,
                    r10: reg("r10")?,
                    r13: reg("r13")?,
                    di: reg("di")?,
                    dx: reg("dx")?,
                })
            } else {
                at.scratch
            },
            interrupted: true,
        })
    }

    fn saved_in_user_mode(&self, sp: Kva, saved: u64) -> Result<bool> {
        let regs = self.pt_regs(sp, saved == kind::REGS)?;
        Ok(regs.member("cs")?.u64()? & 3 == 3)
    }

    /// The kernel's own tables.
    fn find_orc(&self) -> Result<Orc> {
        let ips = self.symbol("__start_orc_unwind_ip")?;
        let end = self.symbol("__stop_orc_unwind_ip")?;
        let mut hash = Hash::default();
        self.read(self.symbol("orc_header")?, &mut hash)?;
        let known = NUMBERINGS.iter().find(|(known, _)| *known == hash);
        let (_, numbering) = known.ok_or_else(|| Error::Implausible {
            what: "orc_header".into(),
            found: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            why: "this version of the analyzer knows the ORC formats of 6.4 to 7.3",
        })?;
        let entry = self.object("struct orc_entry", Kva::NULL)?;
        Ok(Orc {
            table: Table {
                ips,
                entries: self.symbol("__start_orc_unwind")?,
                count: end.0.saturating_sub(ips.0) / 4,
            },
            numbering,
            entry_size: entry
                .size()
                .ok_or_else(|| Error::NoType("struct orc_entry with a size".into()))?,
        })
    }

    /// What to do at an address; `None` when no code is there.
    fn rule(&self, ip: Kva) -> Result<Option<Rule>> {
        let orc = self.orc.get_or_init(|| self.find_orc());
        let orc = orc.as_ref().map_err(Clone::clone)?;
        let table = match self.text_at(ip) {
            Some(Text::Kernel) => orc.table,
            Some(Text::Module(table)) => table,
            Some(Text::Bpf) => return Ok(Some(Rule::FRAME_POINTER)),
            None => return Ok(None),
        };
        let Some(index) = self.last_entry(&table, ip)? else {
            return Ok(None);
        };
        let at = table.entries.add(index * orc.entry_size);
        Rule::read(&self.object("struct orc_entry", at)?, orc.numbering).map(Some)
    }

    /// Index of the last entry that begins at or before `ip`.
    fn last_entry(&self, table: &Table, ip: Kva) -> Result<Option<u64>> {
        let begins = |index: u64| -> Result<Kva> {
            let at = table.ips.add(index * 4);
            let distance = self.read_u32(at)?.cast_signed();
            Ok(Kva(at.0.wrapping_add_signed(i64::from(distance))))
        };
        let (mut low, mut high) = (0, table.count.min(MAX_ENTRIES));
        while low < high {
            let middle = low.midpoint(high);
            if begins(middle)? <= ip {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low.checked_sub(1))
    }
}
