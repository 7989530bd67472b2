//! Which backend runs a guest: the one place that knows them all.

use std::fs::File;
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
    // What no backend could start is no reason to take another one.
    for (what, path) in [("kernel", &config.kernel), ("initrd", &config.initrd)] {
        let cannot = |e: &dyn std::fmt::Display| {
            MachineError::Start(format!("cannot read the {what} {}: {e}", path.display()))
        };
        let file = File::open(path).map_err(|e| cannot(&e))?;
        if file.metadata().is_ok_and(|meta| meta.is_dir()) {
            return Err(cannot(&"it is a directory"));
        }
    }
    match choice.backend {
        Backend::Qemu => emulated(choice, config),
        Backend::Kvm => Ok(Box::new(Kvm::start(config)?)),
        Backend::Auto => match Kvm::start(config).and_then(|kvm| kvm.tried(end)) {
            Ok(kvm) => Ok(Box::new(kvm)),
            Err(why) => {
                let why = why.to_string();
                let line = Escaped(why.trim_end());
                // Whoever closed standard error gets the same guest.
                let _ = writeln!(io::stderr(), "capture: not on KVM, but on QEMU: {line}");
                emulated(choice, config).map_err(|e| {
                    MachineError::Start(format!("neither on KVM ({why}) nor on QEMU: {e}"))
                })
            }
        },
    }
}

fn emulated(choice: &Choice<'_>, config: &Config) -> Result<Box<dyn Machine>, MachineError> {
    let program = guest::program(choice.qemu, None).map_err(|e| {
        MachineError::Start(format!(
            "{e} (Debian: qemu-system-x86, Fedora: qemu-system-x86-core)"
        ))
    })?;
    let emulator = Emulator {
        program,
        accel: choice.accel,
        cpu: choice.cpu.into(),
    };
    Ok(Box::new(Qemu::start(&emulator, config)?))
}

/// The guest of a QEMU that is running already.
pub(crate) fn attach(socket: &Path) -> Result<Box<dyn Machine>, MachineError> {
    Ok(Box::new(Qemu::attach(socket)?))
}
