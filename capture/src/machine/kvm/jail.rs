//! What the threads that serve a guest may ask of the host's kernel: a seccomp filter for each.
//!
//! A guest that found a hole in a device of ours would be such a thread. It could then go on with
//! its vCPU, raise its own interrupts, get memory and end: no files, no processes, no sockets, no
//! code of its own. What is not listed is refused with EPERM, and nothing is killed: a capture of a
//! guest that does such a thing is worth having.
//!
//! The process' other threads are free: they write the capture, and no guest reaches them but
//! through the bytes of its memory.

use kvm_bindings::{KVMIO, kvm_regs, kvm_translation};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iowr_nr};

use super::vcpu::kick;

ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);
ioctl_ior_nr!(KVM_GET_REGS, KVMIO, 0x81, kvm_regs);
ioctl_iowr_nr!(KVM_TRANSLATE, KVMIO, 0x85, kvm_translation);

/// Whose filter it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Runs a vCPU.
    Vcpu,
    /// Reads the guest's memory, and takes the vCPUs out of it.
    Watcher,
}

type Rules = Vec<(i64, Vec<SeccompRule>)>;

/// Of what both do: wait for each other, allocate, come back from a signal, end.
const COMMON: [i64; 13] = [
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // The kick, and the end of a thread, which blocks signals.
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    // Where the clock is no vDSO's.
    libc::SYS_clock_gettime,
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// An argument of a system call, as the kernel counts them.
fn argument(index: u8, operation: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    let length = SeccompCmpArgLen::Dword;
    let condition = SeccompCondition::new(index, length, operation, value)?;
    SeccompRule::new(vec![condition])
}

fn number(value: impl TryInto<u64>) -> u64 {
    value.try_into().unwrap_or(u64::MAX)
}

fn rules(role: Role) -> Result<Rules, BackendError> {
    let equals = |index, value| argument(index, SeccompCmpOp::Eq, value);
    let mut rules: Rules = COMMON.map(|call| (call, Vec::new())).into();
    // Memory, but none that can be executed.
    let executable = SeccompCmpOp::MaskedEq(number(libc::PROT_EXEC));
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.push((call, vec![argument(2, executable.clone(), 0)?]));
    }
    // An eventfd takes eight bytes; standard error is for a panic of our own.
    let panic = equals(0, number(libc::STDERR_FILENO))?;
    rules.push((libc::SYS_write, vec![equals(2, 8)?, panic]));
    match role {
        Role::Vcpu => {
            let requests = [KVM_RUN(), KVM_GET_REGS(), KVM_TRANSLATE()];
            let requests = requests.map(|request| equals(1, request));
            let requests = requests.into_iter().collect::<Result<_, _>>()?;
            rules.push((libc::SYS_ioctl, requests));
        }
        Role::Watcher => {
            let signal = equals(2, number(kick()))?;
            rules.push((libc::SYS_tgkill, vec![signal]));
            rules.push((libc::SYS_getpid, Vec::new()));
            rules.push((libc::SYS_clock_nanosleep, Vec::new()));
        }
    }
    Ok(rules)
}

fn program(role: Role) -> Result<BpfProgram, BackendError> {
    let refused = SeccompAction::Errno(u32::try_from(libc::EPERM).unwrap_or(1));
    let rules = rules(role)?.into_iter().collect();
    let arch = TargetArch::x86_64;
    SeccompFilter::new(rules, refused, SeccompAction::Allow, arch)?.try_into()
}

/// From here on this thread can do nothing else, and neither can what it starts.
pub(super) fn enter(role: Role) -> Result<(), String> {
    let program = program(role).map_err(|e| e.to_string())?;
    seccompiler::apply_filter(&program).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Command;
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Needs no guest: what a thread does is refused or not.
    #[test]
    fn a_thread_in_jail_computes_waits_and_tells_and_does_nothing_else() {
        for role in [Role::Vcpu, Role::Watcher] {
            let (tell, told) = channel();
            let jailed = thread::spawn(move || {
                enter(role).unwrap();
                let kind = |e: std::io::Error| e.raw_os_error();
                let opened = File::open("/proc/self/status").err().and_then(kind);
                let ran = Command::new("true").spawn().err().and_then(kind);
                let started = thread::Builder::new().spawn(|| {}).err().and_then(kind);
                // Large enough for a mapping of its own.
                let memory = vec![1u8; 8 << 20];
                tell.send((opened, ran, started, memory.len())).unwrap();
                let slept = std::time::Instant::now();
                if role == Role::Watcher {
                    thread::sleep(Duration::from_millis(5));
                    assert!(slept.elapsed() >= Duration::from_millis(5));
                }
            });
            let refused = Some(libc::EPERM);
            let (opened, ran, started, bytes) = told.recv().unwrap();
            assert_eq!(
                (opened, ran, started),
                (refused, refused, refused),
                "{role:?}"
            );
            assert_eq!(bytes, 8 << 20);
            jailed.join().unwrap();
        }
        // The filter is the thread's, not the process'.
        assert!(File::open("/proc/self/status").is_ok());
    }
}
