//! Which backend runs a guest: the one place that knows them all.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use scx_postmortem_format::report::Escaped;

use super::kvm::Kvm;
pub(crate) use super::qemu::Accel;
use super::qemu::{Emulator, Qemu};
use super::{Config, Machine, MachineError};
use crate::guest;

/// What runs a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Backend {
    /// A QEMU.
    Qemu,
    /// This very process, through /dev/kvm.
    Kvm,
    /// KVM where it can run this kernel, which is tried, else QEMU.
    Auto,
}

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice<'a> {
    pub(crate) backend: Backend,
    /// The program, by name or path.
    pub(crate) qemu: &'a str,
    pub(crate) accel: Accel,
    pub(crate) cpu: &'a str,
}

/// Starts a guest. `end` is set when we are told to end meanwhile.
pub(crate) fn start(
    choice: &Choice<'_>,
    config: &Config,
    end: &AtomicBool,
) -> Result<Box<dyn Machine>, MachineError> {
    match choice.backend {
        Backend::Qemu => emulated(choice, config, None, end),
        Backend::Kvm => Ok(Box::new(Kvm::start(config)?)),
        Backend::Auto => match Kvm::start(config).and_then(|kvm| kvm.tried(end)) {
            Ok(kvm) => Ok(Box::new(kvm)),
            Err(why) => {
                let why = why.to_string();
                let why = why.trim_end();
                emulated(choice, config, Some(why), end).map_err(|e| {
                    MachineError::Start(format!("neither on KVM ({why}) nor on QEMU: {e}"))
                })
            }
        },
    }
}

/// In QEMU; `not_on_kvm` says why, when it was tried there.
fn emulated(
    choice: &Choice<'_>,
    config: &Config,
    not_on_kvm: Option<&str>,
    end: &AtomicBool,
) -> Result<Box<dyn Machine>, MachineError> {
    let program = guest::program(choice.qemu, None).map_err(|e| {
        MachineError::Start(format!(
            "{e} (Debian: qemu-system-x86, Fedora: qemu-system-x86-core)"
        ))
    })?;
    if let Some(why) = not_on_kvm {
        let line = Escaped(why);
        // Whoever closed standard error gets the same guest.
        let _ = writeln!(io::stderr(), "capture: not on KVM, but on QEMU: {line}");
    }
    let emulator = Emulator {
        program,
        accel: choice.accel,
        cpu: choice.cpu.into(),
    };
    let mut qemu = Qemu::start(&emulator, config, end)?;
    if let Some(why) = not_on_kvm {
        qemu.also(&format!("not on KVM: {why}"));
    }
    Ok(Box::new(qemu))
}

/// The guest of a QEMU that is running already.
pub(crate) fn attach(socket: &Path) -> Result<Box<dyn Machine>, MachineError> {
    Ok(Box::new(Qemu::attach(socket)?))
}
