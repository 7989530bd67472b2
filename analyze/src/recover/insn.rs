//! BPF instructions as the kernel keeps them after verification (`bpf_prog.insnsi`).
//!
//! Encoding: include/uapi/linux/bpf.h and `bpf_common.h`, Documentation/bpf/standardization. The
//! verifier rewrites what was loaded (kernel/bpf/verifier.c), which shows here in these ways:
//!
//! - `resolve_pseudo_ldimm64()`: a 64-bit load holds the address of the map, of the map's value,
//!   or for an arena the user address; its source register is 0 unless it is a function's.
//! - `do_misc_fixups()`: the cast to an arena's kernel side is a 32-bit move, pointer arithmetic
//!   on its result may have become 32-bit too; the cast to the user side stays.
//! - `convert_ctx_accesses()`: accesses to an arena have the modes of `PROBE_MEM32` and
//!   `PROBE_ATOMIC`, those through pointers that may be stale `PROBE_MEM`.
//! - `jit_subprogs()`: a call of a subprogram has the distance to it in one of `imm` and `off`, and
//!   its number in the other: up to 6.x the number in `imm`, on 7.3 in `off`.
//! - helpers and kfuncs: `imm` counts from `__bpf_call_base`.

use crate::bytes::array;

/// Bytes of a `struct bpf_insn`.
pub(super) const SIZE: usize = 8;
/// Registers r0 to r10, and those that the kernel adds: r11 is `BPF_REG_AX`, on 7.3
/// `BPF_REG_PARAMS`, where the arguments after the fifth are, and r12 `BPF_REG_AX`. As many as the
/// encoding has.
pub(super) const REGS: usize = 16;

const BPF_PSEUDO_FUNC: u8 = 4;
const BPF_PSEUDO_CALL: u8 = 1;
const BPF_PSEUDO_KFUNC_CALL: u8 = 2;
const BPF_FETCH: i32 = 1;

/// How an access reaches its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// `BPF_MEM`.
    Plain,
    /// `BPF_PROBE_MEM`: a kernel pointer that may be stale.
    Probe,
    /// `BPF_PROBE_MEM32` and `BPF_PROBE_ATOMIC`: an arena pointer.
    Arena,
}

/// The second operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operand {
    Reg(u8),
    Imm(i32),
}

/// Arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alu {
    Add,
    Sub,
    Mul,
    Shl,
    /// Everything else that only makes sense with numbers.
    Other,
}

/// A memory operand: register plus offset, bytes, mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) base: u8,
    pub(super) offset: i16,
    pub(super) size: u32,
    pub(super) mode: Mode,
}

/// What an atomic operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Atomic {
    /// Adds to, ands with … the memory; `true`: the old value goes to the source register.
    Change(bool),
    Exchange,
    /// Compares with r0, which gets the old value.
    CompareExchange,
    /// The destination register gets the value.
    LoadAcquire,
    StoreRelease,
}

/// One instruction. Register numbers are below [`REGS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Insn {
    /// A 64-bit constant; takes two slots.
    Load64 {
        dst: u8,
        value: u64,
    },
    /// The address of a function of the program: the slot that it begins with, if the distance
    /// is there, and its number, if that is. Takes two slots.
    LoadFunction {
        dst: u8,
        slot: i64,
        number: i32,
    },
    /// Second half of the two above, never run.
    Half,
    Load {
        dst: u8,
        memory: Memory,
        signed: bool,
    },
    Store {
        memory: Memory,
        value: Operand,
    },
    Atomic {
        what: Atomic,
        memory: Memory,
        src: u8,
    },
    /// `wide`: all 64 bits.
    Move {
        dst: u8,
        value: Operand,
        wide: bool,
    },
    /// A move that extends the sign of 8, 16 or 32 bits.
    MoveSigned {
        dst: u8,
    },
    /// `addr_space_cast` to the user side of an arena.
    ToUser {
        dst: u8,
        src: u8,
    },
    /// `addr_space_cast` to the kernel side, where the verifier left it.
    ToKernel {
        dst: u8,
        src: u8,
    },
    /// `dst = this CPU's instance of src`.
    PerCpu {
        dst: u8,
        src: u8,
    },
    Arithmetic {
        op: Alu,
        dst: u8,
        value: Operand,
        wide: bool,
    },
    /// Negation, byte swaps: the destination becomes another number.
    Scramble {
        dst: u8,
    },
    Jump {
        target: i64,
    },
    /// `equality`: tests for equal or not equal.
    Branch {
        dst: u8,
        value: Operand,
        target: i64,
        equality: bool,
        wide: bool,
    },
    /// Call of a helper or kfunc at `__bpf_call_base + imm`.
    Call {
        imm: i32,
        kfunc: bool,
    },
    /// A tail call, which goes on with the next instruction when it fails.
    TailCall,
    /// Call of a function of the program. The distance counts from the next slot.
    CallLocal {
        imm: i32,
        off: i16,
    },
    Exit,
    /// Anything else: what follows cannot be told.
    Unclear,
}

struct Raw {
    code: u8,
    dst: u8,
    src: u8,
    off: i16,
    imm: i32,
}

fn raw(bytes: &[u8]) -> Option<Raw> {
    let [code, regs, ..] = *bytes.first_chunk::<2>()?;
    let (dst, src) = (regs & 0xf, regs >> 4);
    Some(Raw {
        code,
        dst,
        src,
        off: array(bytes, 2).map(i16::from_le_bytes)?,
        imm: array(bytes, 4).map(i32::from_le_bytes)?,
    })
}

/// Decodes all instructions; the result has one entry per slot, so that its indices are those of
/// func_info and line_info.
pub(super) fn decode(bytes: &[u8]) -> Vec<Insn> {
    let mut insns = Vec::with_capacity(bytes.len() / SIZE);
    let mut slots = bytes.chunks_exact(SIZE).filter_map(raw);
    let mut at = 0i64;
    while let Some(insn) = slots.next() {
        at += 1;
        if insn.code == 0x18 {
            let Some(high) = slots.next() else {
                insns.push(Insn::Unclear);
                break;
            };
            at += 1;
            let low = u64::from(insn.imm.cast_unsigned());
            let value = u64::from(high.imm.cast_unsigned()) << 32 | low;
            insns.push(match insn.src {
                BPF_PSEUDO_FUNC => Insn::LoadFunction {
                    dst: insn.dst,
                    slot: at - 1 + i64::from(insn.imm),
                    number: high.imm,
                },
                _ => Insn::Load64 {
                    dst: insn.dst,
                    value,
                },
            });
            insns.push(Insn::Half);
        } else {
            insns.push(one(&insn, at));
        }
    }
    insns
}

/// One instruction of one slot; `next` is the slot behind it.
fn one(insn: &Raw, next: i64) -> Insn {
    let Raw {
        code,
        dst,
        src,
        off,
        imm,
    } = *insn;
    let operand = if code & 0x08 == 0 {
        Operand::Imm(imm)
    } else {
        Operand::Reg(src)
    };
    match code & 7 {
        1 => memory(code, src, off).map_or(Insn::Unclear, |(memory, signed)| Insn::Load {
            dst,
            memory,
            signed,
        }),
        2 => memory(code, dst, off).map_or(Insn::Unclear, |(memory, _)| Insn::Store {
            memory,
            value: Operand::Imm(imm),
        }),
        3 => store(insn),
        class @ (4 | 7) => alu(insn, operand, class == 7),
        class @ (5 | 6) => jump(insn, operand, class == 5, next),
        _ => Insn::Unclear,
    }
}

const fn size_of(code: u8) -> u32 {
    match code & 0x18 {
        0x00 => 4,
        0x08 => 2,
        0x10 => 1,
        _ => 8,
    }
}

/// A memory operand, and whether a load extends the sign.
fn memory(code: u8, base: u8, offset: i16) -> Option<(Memory, bool)> {
    let (mode, signed) = match code & 0xe0 {
        0x60 => (Mode::Plain, false),
        0x80 => (Mode::Plain, true),
        0x20 => (Mode::Probe, false),
        0x40 => (Mode::Probe, true),
        0xa0 => (Mode::Arena, false),
        0xc0 => (Mode::Arena, true),
        _ => return None,
    };
    let size = size_of(code);
    Some((
        Memory {
            base,
            offset,
            size,
            mode,
        },
        signed,
    ))
}

/// `BPF_STX`: plain, or atomic.
fn store(insn: &Raw) -> Insn {
    let mode = match insn.code & 0xe0 {
        0xc0 => Mode::Plain,
        0xe0 => Mode::Arena,
        _ => {
            return memory(insn.code, insn.dst, insn.off).map_or(Insn::Unclear, |(memory, _)| {
                Insn::Store {
                    memory,
                    value: Operand::Reg(insn.src),
                }
            });
        }
    };
    let what = match insn.imm {
        0x100 => Atomic::LoadAcquire,
        0x110 => Atomic::StoreRelease,
        0xe1 => Atomic::Exchange,
        0xf1 => Atomic::CompareExchange,
        imm if imm & 0xf == BPF_FETCH => Atomic::Change(true),
        _ => Atomic::Change(false),
    };
    // A load has its memory in the source register.
    let (base, src) = if what == Atomic::LoadAcquire {
        (insn.src, insn.dst)
    } else {
        (insn.dst, insn.src)
    };
    Insn::Atomic {
        what,
        memory: Memory {
            base,
            offset: insn.off,
            size: size_of(insn.code),
            mode,
        },
        src,
    }
}

fn alu(insn: &Raw, value: Operand, wide: bool) -> Insn {
    let dst = insn.dst;
    let op = match insn.code & 0xf0 {
        0x00 => Alu::Add,
        0x10 => Alu::Sub,
        0x20 => Alu::Mul,
        0x60 => Alu::Shl,
        0x80 | 0xd0 => return Insn::Scramble { dst },
        0xb0 => {
            return match (value, insn.off) {
                (_, 0) | (Operand::Imm(_), _) => Insn::Move { dst, value, wide },
                (Operand::Reg(src), 1) if wide && insn.imm == 1 => Insn::ToKernel { dst, src },
                (Operand::Reg(src), 1) if wide => Insn::ToUser { dst, src },
                (Operand::Reg(src), -1) if wide => Insn::PerCpu { dst, src },
                _ => Insn::MoveSigned { dst },
            };
        }
        0xe0 | 0xf0 => return Insn::Unclear,
        _ => Alu::Other,
    };
    Insn::Arithmetic {
        op,
        dst,
        value,
        wide,
    }
}

fn jump(insn: &Raw, value: Operand, wide: bool, next: i64) -> Insn {
    let target = next + i64::from(insn.off);
    match (insn.code & 0xf0, wide) {
        (0x00, true) if insn.code & 8 == 0 => Insn::Jump { target },
        // gotol.
        (0x00, false) if insn.code & 8 == 0 => Insn::Jump {
            target: next + i64::from(insn.imm),
        },
        (0x80, true) if insn.src == BPF_PSEUDO_CALL => Insn::CallLocal {
            imm: insn.imm,
            off: insn.off,
        },
        (0x80, true) => Insn::Call {
            imm: insn.imm,
            kfunc: insn.src == BPF_PSEUDO_KFUNC_CALL,
        },
        (0x90, true) => Insn::Exit,
        (op @ (0x10..=0x70 | 0xa0..=0xd0), _) => Insn::Branch {
            dst: insn.dst,
            value,
            target,
            equality: matches!(op, 0x10 | 0x50),
            wide,
        },
        // bpf_tail_call() in the form that the verifier gives it.
        (0xf0, true) => Insn::TailCall,
        // may_goto (rewritten by the verifier), and gotox.
        _ => Insn::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u64]) -> Vec<Insn> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        decode(&bytes)
    }

    /// code, dst, src, off, imm as in the kernel's macros.
    fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
        u64::from(code)
            | u64::from(src << 4 | dst) << 8
            | u64::from(off.cast_unsigned()) << 16
            | u64::from(imm.cast_unsigned()) << 32
    }

    #[test]
    fn a_wide_constant_takes_two_slots() {
        let found = words(&[
            insn(0x18, 1, 0, 0, 0x5678_9abc),
            insn(0, 0, 0, 0, 0x1234),
            insn(0x95, 0, 0, 0, 0),
        ]);
        assert_eq!(
            found,
            [
                Insn::Load64 {
                    dst: 1,
                    value: 0x1234_5678_9abc
                },
                Insn::Half,
                Insn::Exit
            ]
        );
    }

    #[test]
    fn casts_and_per_cpu_moves_are_told_apart() {
        let found = words(&[
            insn(0xbf, 1, 2, 1, 1 << 16),
            insn(0xbf, 1, 2, 1, 1),
            insn(0xbf, 1, 2, -1, 0),
            insn(0xbf, 1, 2, 32, 0),
            insn(0xbc, 1, 2, 0, 0),
        ]);
        assert_eq!(
            found,
            [
                Insn::ToUser { dst: 1, src: 2 },
                Insn::ToKernel { dst: 1, src: 2 },
                Insn::PerCpu { dst: 1, src: 2 },
                Insn::MoveSigned { dst: 1 },
                Insn::Move {
                    dst: 1,
                    value: Operand::Reg(2),
                    wide: false
                },
            ]
        );
    }

    #[test]
    fn accesses_say_how_they_reach_memory() {
        let memory = |base, offset, size, mode| Memory {
            base,
            offset,
            size,
            mode,
        };
        let found = words(&[
            insn(0x79, 3, 1, 16, 0),
            insn(0xb9, 3, 1, 16, 0),
            insn(0x21, 3, 1, 16, 0),
            insn(0xbb, 1, 3, -8, 0),
            insn(0xdb, 1, 3, 0, 0xe1),
            insn(0xfb, 1, 3, 0, 0x01),
            insn(0xdb, 1, 3, 0, 0x100),
        ]);
        assert_eq!(
            found,
            [
                Insn::Load {
                    dst: 3,
                    memory: memory(1, 16, 8, Mode::Plain),
                    signed: false
                },
                Insn::Load {
                    dst: 3,
                    memory: memory(1, 16, 8, Mode::Arena),
                    signed: false
                },
                Insn::Load {
                    dst: 3,
                    memory: memory(1, 16, 4, Mode::Probe),
                    signed: false
                },
                Insn::Store {
                    memory: memory(1, -8, 8, Mode::Arena),
                    value: Operand::Reg(3)
                },
                Insn::Atomic {
                    what: Atomic::Exchange,
                    memory: memory(1, 0, 8, Mode::Plain),
                    src: 3
                },
                Insn::Atomic {
                    what: Atomic::Change(true),
                    memory: memory(1, 0, 8, Mode::Arena),
                    src: 3
                },
                Insn::Atomic {
                    what: Atomic::LoadAcquire,
                    memory: memory(3, 0, 8, Mode::Plain),
                    src: 1
                },
            ]
        );
    }

    #[test]
    fn jumps_lead_to_slots() {
        let found = words(&[
            insn(0x05, 0, 0, 1, 0),
            insn(0x15, 1, 0, -2, 0),
            insn(0x06, 0, 0, 0, 5),
            insn(0x85, 0, 1, 9, 2),
            insn(0x0d, 1, 0, 0, 0),
        ]);
        assert_eq!(
            found,
            [
                Insn::Jump { target: 2 },
                Insn::Branch {
                    dst: 1,
                    value: Operand::Imm(0),
                    target: 0,
                    equality: true,
                    wide: true
                },
                Insn::Jump { target: 8 },
                Insn::CallLocal { imm: 2, off: 9 },
                Insn::Unclear,
            ]
        );
    }

    #[test]
    fn garbage_is_unclear_and_a_cut_constant_ends_it() {
        assert_eq!(words(&[u64::MAX]), [Insn::Unclear]);
        assert_eq!(words(&[insn(0x18, 1, 0, 0, 0)]), [Insn::Unclear]);
        assert_eq!(decode(&[0x95]), []);
    }
}
