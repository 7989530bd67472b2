//! What the threads that serve a guest may ask of the host's kernel: a seccomp filter for each.
//!
//! A guest that found a hole in a device of ours would be such a thread. It could then go on with
//! its vCPU, raise its own interrupts, make the other vCPUs stop, get memory and end: no files, no
//! processes, no sockets, no code of its own. What is not listed is refused with EPERM, and nothing
//! is killed: a capture of a guest that does such a thing is worth having.
//!
//! The process' other threads are free: they write the capture, and no guest reaches them but
//! through the bytes of its memory.

use std::os::fd::RawFd;

use kvm_bindings::{KVMIO, kvm_debugregs, kvm_guest_debug, kvm_regs, kvm_translation};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

use super::vcpu::kick;

ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);
ioctl_ior_nr!(KVM_GET_REGS, KVMIO, 0x81, kvm_regs);
ioctl_iow_nr!(KVM_SET_REGS, KVMIO, 0x82, kvm_regs);
ioctl_iowr_nr!(KVM_TRANSLATE, KVMIO, 0x85, kvm_translation);
ioctl_iow_nr!(KVM_SET_GUEST_DEBUG, KVMIO, 0x9b, kvm_guest_debug);
ioctl_ior_nr!(KVM_GET_DEBUGREGS, KVMIO, 0xa1, kvm_debugregs);
ioctl_iow_nr!(KVM_SET_DEBUGREGS, KVMIO, 0xa2, kvm_debugregs);

/// Whose filter it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Runs this vCPU, and raises these interrupts.
    Vcpu { vcpu: RawFd, interrupts: [RawFd; 2] },
    /// Reads the guest's memory.
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

/// Arguments of a system call, as the kernel counts them: what is asked of each.
fn arguments(all: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, BackendError> {
    let condition = |(index, operation, value): &(u8, SeccompCmpOp, u64)| {
        SeccompCondition::new(*index, SeccompCmpArgLen::Dword, operation.clone(), *value)
    };
    SeccompRule::new(all.iter().map(condition).collect::<Result<_, _>>()?)
}

fn number(value: impl TryInto<u64>) -> u64 {
    value.try_into().unwrap_or(u64::MAX)
}

fn rules(role: Role) -> Result<Rules, BackendError> {
    let is = |index, value| (index, SeccompCmpOp::Eq, value);
    let mut rules: Rules = COMMON.map(|call| (call, Vec::new())).into();
    // Memory, but none that can be executed.
    let executable = SeccompCmpOp::MaskedEq(number(libc::PROT_EXEC));
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.push((call, vec![arguments(&[(2, executable.clone(), 0)])?]));
    }
    // Standard error is for a panic of our own.
    let mut writes = vec![arguments(&[is(0, number(libc::STDERR_FILENO))])?];
    match role {
        Role::Vcpu { vcpu, interrupts } => {
            for interrupt in interrupts {
                // An eventfd takes eight bytes.
                writes.push(arguments(&[is(0, number(interrupt)), is(2, 8)])?);
            }
            let requests = [
                KVM_RUN(),
                KVM_GET_REGS(),
                KVM_SET_REGS(),
                KVM_TRANSLATE(),
                KVM_SET_GUEST_DEBUG(),
                KVM_GET_DEBUGREGS(),
                KVM_SET_DEBUGREGS(),
            ];
            let own = is(0, number(vcpu));
            let requests = requests.map(|request| arguments(&[own.clone(), is(1, request)]));
            let requests = requests.into_iter().collect::<Result<_, _>>()?;
            rules.push((libc::SYS_ioctl, requests));
        }
        Role::Watcher => rules.push((libc::SYS_clock_nanosleep, Vec::new())),
    }
    // Both take the other vCPUs out of the guest.
    let own = number(std::process::id());
    let signal = arguments(&[is(0, own), is(2, number(kick()))])?;
    rules.push((libc::SYS_tgkill, vec![signal]));
    rules.push((libc::SYS_getpid, Vec::new()));
    rules.push((libc::SYS_write, writes));
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
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::process::Command;
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Needs no guest: what a thread does is refused or not.
    #[test]
    fn a_thread_in_jail_computes_waits_and_tells_and_does_nothing_else() {
        let null = || Arc::new(File::options().write(true).open("/dev/null").unwrap());
        let (own, other) = (null(), null());
        let vcpu = Role::Vcpu {
            vcpu: own.as_raw_fd(),
            interrupts: [own.as_raw_fd(); 2],
        };
        for role in [vcpu, Role::Watcher] {
            let (tell, told) = channel();
            let (own, other) = (Arc::clone(&own), Arc::clone(&other));
            let jailed = thread::spawn(move || {
                enter(role).unwrap();
                let kind = |e: std::io::Error| e.raw_os_error();
                let opened = File::open("/proc/self/status").err().and_then(kind);
                let ran = Command::new("true").spawn().err().and_then(kind);
                let started = thread::Builder::new().spawn(|| {}).err().and_then(kind);
                let wrote = |mut to: &File, bytes: &[u8]| match to.write(bytes) {
                    Ok(_) => None,
                    Err(e) => kind(e),
                };
                let wrote = [
                    wrote(&own, &[0; 8]),
                    wrote(&own, &[0; 9]),
                    wrote(&other, &[0; 8]),
                ];
                // Large enough for a mapping of its own.
                let memory = vec![1u8; 8 << 20];
                tell.send((opened, ran, started, wrote, memory.len()))
                    .unwrap();
                let slept = std::time::Instant::now();
                if role == Role::Watcher {
                    thread::sleep(Duration::from_millis(5));
                    assert!(slept.elapsed() >= Duration::from_millis(5));
                }
            });
            let refused = Some(libc::EPERM);
            let (opened, ran, started, wrote, bytes) = told.recv().unwrap();
            assert_eq!(
                (opened, ran, started),
                (refused, refused, refused),
                "{role:?}"
            );
            // A vCPU's thread raises its interrupts, and that is all that it writes.
            let first = if role == Role::Watcher { refused } else { None };
            assert_eq!(wrote, [first, refused, refused], "{role:?}");
            assert_eq!(bytes, 8 << 20);
            jailed.join().unwrap();
        }
        // The filter is the thread's, not the process'.
        assert!(File::open("/proc/self/status").is_ok());
    }
}
