//! Breakpoints and watchpoints through the guest's debug registers (`KVM_SET_GUEST_DEBUG`), as far
//! as they fire on this host.

use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_DB, KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug,
};
use kvm_ioctls::{Error, VcpuFd};

use super::super::Stop;

/// Debug registers for addresses.
pub(super) const COUNT: usize = 4;
/// In DR7: exact breakpoints, and the bit that is always set.
const EXACT: u64 = 0x600;
/// "Resume": the breakpoint of the instruction that comes next does not fire.
const RESUME: u64 = 1 << 16;

/// What fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Fires {
    pub(super) execute: bool,
    pub(super) write: bool,
    pub(super) step: bool,
}

impl Fires {
    /// Whether this one does.
    pub(super) fn has(self, stop: Stop) -> bool {
        match stop {
            Stop::Execute(_) => self.execute,
            Stop::Write(_) => self.write,
            Stop::Change(_) => false,
        }
    }
}

/// For the manifest: what fires on this host.
impl std::fmt::Display for Fires {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = [
            (self.execute, "breakpoints"),
            (self.write, "watchpoints"),
            (self.step, "single-step"),
        ];
        let fire = all.iter().filter(|(fires, _)| *fires);
        let fire: Vec<_> = fire.map(|(_, name)| *name).collect();
        match fire.as_slice() {
            [] => f.write_str("no breakpoint fires"),
            fire => write!(f, "what fires: {}", fire.join(", ")),
        }
    }
}

/// These, and nothing else, stop the vCPU. Debug registers that the guest has set itself do not
/// work meanwhile.
pub(super) fn set(fd: &VcpuFd, stops: &[Stop]) -> Result<(), Error> {
    fd.set_guest_debug(&request(stops))
}

fn request(stops: &[Stop]) -> kvm_guest_debug {
    let mut debug = kvm_guest_debug::default();
    let mut control = EXACT;
    for (index, stop) in stops.iter().enumerate().take(COUNT) {
        // Length and kind, as DR7 has them: four bytes that are written, or an instruction.
        let (at, bits) = match stop {
            Stop::Execute(at) => (*at, 0),
            Stop::Write(at) => (*at, 0b1101u64),
            Stop::Change(_) => continue,
        };
        if let Some(register) = debug.arch.debugreg.get_mut(index) {
            *register = at;
        }
        control |= 2 << (index * 2) | bits << (16 + index * 4);
        debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
    }
    if let Some(dr7) = debug.arch.debugreg.last_mut() {
        *dr7 = control;
    }
    debug
}

/// Gives a debug exception to the guest, whose own it is: a step of its debugger.
pub(super) fn give_back(fd: &VcpuFd, stops: &[Stop], dr6: u64) -> Result<(), Error> {
    let mut registers = fd.get_debug_regs()?;
    registers.dr6 = dr6;
    fd.set_debug_regs(&registers)?;
    let mut debug = request(stops);
    debug.control |= KVM_GUESTDBG_INJECT_DB;
    fd.set_guest_debug(&debug)
}

/// Which of the stops that were set a vCPU has met.
pub(super) fn met(stops: &[Stop], pc: u64, dr6: u64) -> Option<Stop> {
    let hit = |index: usize| dr6 & (1 << index) != 0;
    let writes = stops.iter().enumerate();
    let mut writes = writes.filter(|(index, stop)| hit(*index) && matches!(stop, Stop::Write(_)));
    // The address tells of an instruction, whatever DR6 says.
    let execute = stops.iter().find(|stop| **stop == Stop::Execute(pc));
    execute
        .or_else(|| writes.next().map(|(_, stop)| stop))
        .copied()
}

/// Before a vCPU goes on that may stand at a breakpoint: whether it does. The flag that should let it
/// pass is set, which is enough where the processor itself looks at it.
pub(super) fn pass(fd: &VcpuFd, at: u64) -> bool {
    let Ok(mut regs) = fd.get_regs() else {
        return false;
    };
    let stands = regs.rip == at;
    if stands {
        regs.rflags |= RESUME;
        // Else it is met once more.
        let _ = fd.set_regs(&regs);
    }
    stands
}

/// Whether DR6 tells of a single step.
pub(super) const fn is_step(dr6: u64) -> bool {
    dr6 & 1 << 14 != 0
}

/// Makes a vCPU stop after one instruction, and not within the handler of an interrupt, where the
/// host's kernel can hold them off (5.15).
pub(super) fn set_step(fd: &VcpuFd) -> Result<(), Error> {
    let step = |more: u32| {
        fd.set_guest_debug(&kvm_guest_debug {
            control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | more,
            ..kvm_guest_debug::default()
        })
    };
    step(KVM_GUESTDBG_BLOCKIRQ).or_else(|_| step(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_met_is_told_by_address_or_register() {
        let stops = [Stop::Write(0x1000), Stop::Execute(0x2000)];
        assert_eq!(met(&stops, 0x2000, 0), Some(Stop::Execute(0x2000)));
        assert_eq!(met(&stops, 0x3000, 0xffff_0ff1), Some(Stop::Write(0x1000)));
        // Another one's: the second register is no watchpoint.
        assert_eq!(met(&stops, 0x3000, 0xffff_0ff2), None);
    }

    #[test]
    fn what_fires_is_told_in_words() {
        let some = Fires {
            execute: true,
            step: true,
            ..Fires::default()
        };
        assert_eq!(some.to_string(), "what fires: breakpoints, single-step");
        assert_eq!(Fires::default().to_string(), "no breakpoint fires");
    }
}
