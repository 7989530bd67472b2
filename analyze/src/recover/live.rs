//! Which registers still matter at an instruction.
//!
//! Where ways meet, a register that nobody reads afterwards holds something else on each of them.
//! Forgetting it there saves most of the work of following it.

use std::ops::Range;

use super::insn::{Atomic, Insn, Operand};

/// A set of registers, one bit each.
pub(super) type Registers = u16;

/// Rounds until jumps backwards have told all; what is not settled then counts as read.
const MAX_ROUNDS: usize = 64;
/// r1 to r5, and those and r0.
const ARGUMENTS: Registers = 0b11_1110;
const CLOBBERED: Registers = 0b11_1111;

const fn bit(reg: u8) -> Registers {
    1 << (reg & 15)
}

const fn operand(operand: Operand) -> Registers {
    match operand {
        Operand::Reg(reg) => bit(reg),
        Operand::Imm(_) => 0,
    }
}

/// What an instruction reads, and what it overwrites.
fn effects(insn: Insn, is_time_check: &impl Fn(i32) -> bool) -> (Registers, Registers) {
    match insn {
        Insn::Load64 { dst, .. } | Insn::LoadFunction { dst, .. } | Insn::MoveSigned { dst } => {
            (0, bit(dst))
        }
        Insn::Half | Insn::Jump { .. } => (0, 0),
        Insn::Load { dst, memory, .. } => (bit(memory.base), bit(dst)),
        Insn::Store { memory, value } => (bit(memory.base) | operand(value), 0),
        Insn::Atomic { what, memory, src } => {
            let both = bit(memory.base) | bit(src);
            match what {
                Atomic::LoadAcquire => (bit(memory.base), bit(src)),
                Atomic::StoreRelease => (both, 0),
                Atomic::CompareExchange => (both | bit(0), 0),
                Atomic::Exchange | Atomic::Change(_) => (both, 0),
            }
        }
        Insn::Move { dst, value, .. } => (operand(value), bit(dst)),
        Insn::ToUser { dst, src } | Insn::ToKernel { dst, src } | Insn::PerCpu { dst, src } => {
            (bit(src), bit(dst))
        }
        Insn::Arithmetic { dst, value, .. } => (bit(dst) | operand(value), 0),
        Insn::Scramble { dst } => (0, bit(dst)),
        Insn::Branch { dst, value, .. } => (bit(dst) | operand(value), 0),
        Insn::Call { imm, .. } if is_time_check(imm) => (0, 0),
        Insn::Call { .. } | Insn::CallLocal { .. } | Insn::TailCall => (ARGUMENTS, CLOBBERED),
        Insn::Exit => (bit(0), Registers::MAX),
        Insn::Unclear => (Registers::MAX, 0),
    }
}

/// The registers that matter before each instruction of a function, and after its last.
pub(super) fn live(
    insns: &[Insn],
    slots: Range<usize>,
    is_time_check: impl Fn(i32) -> bool,
) -> Vec<Registers> {
    let code = insns.get(slots.clone()).unwrap_or_default();
    let mut live: Vec<Registers> = vec![0; code.len() + 1];
    // What is behind the end is not known.
    if let Some(end) = live.last_mut() {
        *end = Registers::MAX;
    }
    let at = |live: &[Registers], target: i64| -> Registers {
        let inside = usize::try_from(target).ok();
        let inside = inside.and_then(|slot| slot.checked_sub(slots.start));
        inside
            .and_then(|index| live.get(index).copied())
            .unwrap_or(0)
    };
    for _ in 0..MAX_ROUNDS {
        let mut changed = false;
        for (index, insn) in code.iter().enumerate().rev() {
            let next = live.get(index + 1).copied().unwrap_or(Registers::MAX);
            let after = match *insn {
                Insn::Jump { target } => at(&live, target),
                Insn::Branch { target, .. } => next | at(&live, target),
                _ => next,
            };
            let (reads, writes) = effects(*insn, &is_time_check);
            let before = after & !writes | reads;
            if let Some(known) = live.get_mut(index)
                && *known != before
            {
                *known = before;
                changed = true;
            }
        }
        if !changed {
            return live;
        }
    }
    vec![Registers::MAX; code.len() + 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_later_matters() {
        let copy = |dst, src| Insn::Move {
            dst,
            value: Operand::Reg(src),
            wide: true,
        };
        let insns = [
            copy(6, 1),
            Insn::Branch {
                dst: 2,
                value: Operand::Imm(0),
                target: 3,
                equality: true,
                wide: true,
            },
            copy(6, 3),
            copy(0, 6),
            Insn::Exit,
        ];
        let found = live(&insns, 0..5, |_| false);
        assert_eq!(found[4], bit(0));
        assert_eq!(found[3], bit(6));
        assert_eq!(found[2], bit(3));
        assert_eq!(found[1], bit(2) | bit(3) | bit(6));
        assert_eq!(found[0], bit(1) | bit(2) | bit(3));
    }

    #[test]
    fn a_loop_keeps_what_it_reads_at_its_start() {
        let insns = [
            Insn::Scramble { dst: 7 },
            Insn::Branch {
                dst: 8,
                value: Operand::Imm(0),
                target: 0,
                equality: true,
                wide: true,
            },
            Insn::Scramble { dst: 8 },
            Insn::Jump { target: 1 },
        ];
        let found = live(&insns, 0..4, |_| false);
        assert_eq!(found[0] & bit(8), bit(8));
        assert_eq!(found[2] & bit(8), 0);
        assert_eq!(live(&[], 0..0, |_| false), [Registers::MAX]);
    }
}
