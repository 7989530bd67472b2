//! What this host's KVM really does, asked of tiny guests: it says that it can do things that it
//! cannot, above all where it is itself in a guest.

use std::sync::Arc;

use kvm_bindings::{CpuId, kvm_regs};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress};

use super::super::Stop;
use super::boot::{self, Start};
use super::cpuid::save_sizes;
use super::debug::{self, Fires};
use super::layout;
use super::raw::{Vcpu, Vm};

/// Where a tiny guest and its data are.
const CODE: u64 = 0x1_0000;
const DATA: u64 = 0x3_0000;
#[rustfmt::skip]
const WRITES: &[u8] = &[
    0x90, // nop
    0x90, // nop
    0xc7, 0x04, 0x25, 0x00, 0x00, 0x03, 0x00, 0x01, 0x00, 0x00, 0x00, // mov dword [0x30000], 1
    0x90, // nop
    0xf4, // hlt
];
const BEHIND_WRITE: u64 = CODE + 13;
/// Reads the time stamp counter.
#[rustfmt::skip]
const CLOCK: &[u8] = &[
    0x0f, 0x31, // rdtsc
    0xf4, // hlt
];
/// Switches on all that XSAVE saves, and asks how large that is: %esi the features, %r10 those that
/// were switched on, %r8 and %r9 the sizes; then saves and restores.
#[rustfmt::skip]
const SAVES: &[u8] = &[
    0x0f, 0x20, 0xe0, // mov rax,cr4
    0x0d, 0x00, 0x06, 0x04, 0x00, // or eax,0x40600
    0x0f, 0x22, 0xe0, // mov cr4,rax
    0xb8, 0x0d, 0x00, 0x00, 0x00, // mov eax,0xd
    0x31, 0xc9, // xor ecx,ecx
    0x0f, 0xa2, // cpuid
    0x89, 0xc6, // mov esi,eax
    0x31, 0xd2, // xor edx,edx
    0x31, 0xc9, // xor ecx,ecx
    0x0f, 0x01, 0xd1, // xsetbv
    0xb8, 0x0d, 0x00, 0x00, 0x00, // mov eax,0xd
    0x31, 0xc9, // xor ecx,ecx
    0x0f, 0xa2, // cpuid
    0x41, 0x89, 0xd8, // mov r8d,ebx
    0xb8, 0x0d, 0x00, 0x00, 0x00, // mov eax,0xd
    0xb9, 0x01, 0x00, 0x00, 0x00, // mov ecx,0x1
    0x0f, 0xa2, // cpuid
    0x41, 0x89, 0xd9, // mov r9d,ebx
    0x31, 0xc9, // xor ecx,ecx
    0x0f, 0x01, 0xd0, // xgetbv
    0x41, 0x89, 0xc2, // mov r10d,eax
    0xbf, 0x00, 0x00, 0x04, 0x00, // mov edi,0x40000
    0xb8, 0xff, 0xff, 0xff, 0xff, // mov eax,0xffffffff
    0xba, 0xff, 0xff, 0xff, 0xff, // mov edx,0xffffffff
    0x48, 0x0f, 0xae, 0x27, // xsave64 [rdi]
    0x48, 0x0f, 0xae, 0x2f, // xrstor64 [rdi]
    0xf4, // hlt
];
/// A shift of the time stamp counter that no host's own value reaches.
const SHIFT: u64 = 1 << 60;

/// A vCPU of a machine of its own at the beginning of `code`.
fn tiny(kvm: &Kvm, code: &[u8], cpuid: Option<&CpuId>) -> Option<Vcpu> {
    let (memory, _) = layout::memory(1 << 20).ok()?;
    let vm = Arc::new(Vm::new(kvm, memory).ok()?);
    boot::long_mode_tables(&vm.memory).ok()?;
    vm.memory.write_slice(code, GuestAddress(CODE)).ok()?;
    let vcpu = Vcpu::new(&vm, 0).ok()?;
    if let Some(cpuid) = cpuid {
        vcpu.fd.set_cpuid2(cpuid).ok()?;
    }
    boot::enter(&vcpu.fd, Start::Long { rip: CODE, rsi: 0 }).ok()?;
    Some(vcpu)
}

/// What a tiny guest came to.
enum Came {
    /// A debug exit: address and DR6.
    Debug(u64, u64),
    /// Its own end, with these registers.
    End(kvm_regs),
}

/// Runs it; `None` when KVM could not.
fn run(vcpu: &mut Vcpu) -> Option<Came> {
    loop {
        match vcpu.fd.run() {
            Ok(VcpuExit::Debug(debug)) => return Some(Came::Debug(debug.pc, debug.dr6)),
            Ok(VcpuExit::Hlt) => break,
            Err(e) if e.errno() == libc::EINTR => {}
            _ => return None,
        }
    }
    vcpu.fd.get_regs().ok().map(Came::End)
}

/// What stops a guest here.
pub(super) fn fires(kvm: &Kvm) -> Fires {
    let stops = |stop: Option<Stop>, expected: u64| {
        let mut vcpu = tiny(kvm, WRITES, None)?;
        match stop {
            Some(stop) => debug::set(&vcpu.fd, &[stop]).ok()?,
            None => debug::set_step(&vcpu.fd).ok()?,
        }
        let Came::Debug(pc, dr6) = run(&mut vcpu)? else {
            return None;
        };
        let met = stop.is_none_or(|stop| debug::met(&[stop], pc, dr6) == Some(stop));
        (met && pc == expected).then_some(())
    };
    Fires {
        execute: stops(Some(Stop::Execute(CODE + 1)), CODE + 1).is_some(),
        write: stops(Some(Stop::Write(DATA)), BEHIND_WRITE).is_some(),
        step: stops(None, CODE + 1).is_some(),
    }
}

/// Whether a guest's time stamp counter can be shifted.
pub(super) fn time_shifts(kvm: &Kvm) -> bool {
    let shifted = || {
        let mut vcpu = tiny(kvm, CLOCK, None)?;
        let offset = vcpu.tsc_offset()?;
        vcpu.set_tsc_offset(offset.wrapping_add(SHIFT)).ok()?;
        let Came::End(regs) = run(&mut vcpu)? else {
            return None;
        };
        (regs.rdx << 32 >= SHIFT).then_some(())
    };
    shifted().is_some()
}

/// Whether a guest may be told of XSAVE: what it is then told fits together, and works. Linux
/// panics early where it does not (`paranoid_xstate_size_valid`, arch/x86/kernel/fpu/xstate.c).
pub(super) fn saves(kvm: &Kvm, cpuid: &CpuId) -> bool {
    let sound = || {
        let mut vcpu = tiny(kvm, SAVES, Some(cpuid))?;
        let Came::End(regs) = run(&mut vcpu)? else {
            return None;
        };
        let features = u32::try_from(regs.rsi).ok()?;
        let told = (regs.r10, regs.r8, regs.r9);
        let (plain, compact) = save_sizes(cpuid.as_slice(), features);
        let expected = (
            features.into(),
            plain.into(),
            compact.map_or(told.2, u64::from),
        );
        (told == expected).then_some(())
    };
    sound().is_some()
}
