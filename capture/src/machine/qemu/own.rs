//! A QEMU that we start, with nothing but what a scheduler needs: no disk, no network.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::gdb::Gdb;
use super::qmp::Qmp;
use super::{BACKEND, Owner, Parts, Qemu, Tail, last_words};
use crate::machine::{Config, GuestMemory, Machine, MachineError, Nameless};

/// Time in which QEMU opens its sockets.
const START: Duration = Duration::from_secs(30);

/// What emulates the CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Accel {
    /// Software; works everywhere.
    Tcg,
    /// The host's KVM.
    Kvm,
}

/// How QEMU is to do it.
#[derive(Debug, Clone)]
pub(in crate::machine) struct Emulator {
    /// The program, `qemu-system-x86_64`.
    pub(in crate::machine) program: PathBuf,
    pub(in crate::machine) accel: Accel,
    /// `-cpu`.
    pub(in crate::machine) cpu: String,
}

impl Qemu {
    /// Starts QEMU and lets the guest run.
    pub(in crate::machine) fn start(
        emulator: &Emulator,
        config: &Config,
    ) -> Result<Self, MachineError> {
        let start = |what: &str, e: &dyn std::fmt::Display| {
            MachineError::Start(format!("cannot start the guest: {what}: {e}"))
        };
        // Paths of sockets are limited to 108 bytes: not below the output's directory.
        let directory = tempfile::Builder::new()
            .prefix("scxpm-")
            .tempdir()
            .map_err(|e| start("a temporary directory", &e))?;
        let at = |name: &str| directory.path().join(name);
        let file = |name: &str, what: &str| Nameless::new(name).map_err(|e| start(what, &e));
        let memory = file("scx-postmortem-guest", "memory for the guest")?;
        let sized = memory.file.set_len(config.memory_bytes);
        sized.map_err(|e| start("memory for the guest", &e))?;
        let said = file("scx-postmortem-messages", "its messages")?.file;
        let errors = said.try_clone().map_err(|e| start("its messages", &e))?;
        let console = file("scx-postmortem-console", "its console")?;
        let host = file("scx-postmortem-host", "its console")?;
        let files = [&memory, &console, &host].map(|file| file.path.display().to_string());
        let arguments = arguments(emulator, config, directory.path(), &files);
        let mut child = spawn(&emulator.program, &arguments, errors)?;

        let deadline = Instant::now() + START;
        let mut alive = || matches!(child.try_wait(), Ok(None));
        let connected = Qmp::connect(&at("qmp"), deadline, &mut alive)
            .and_then(|qmp| Ok((qmp, Gdb::connect(&at("gdb"), deadline, &mut alive)?)));
        let (qmp, gdb) = match connected {
            Ok(both) => both,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let said = last_words(&said);
                return Err(MachineError::Start(format!(
                    "{} does not start: {error}{said}",
                    emulator.program.display()
                )));
            }
        };
        // It held the sockets, and QEMU has opened all that it opens by now: nothing is left of us when
        // we are killed.
        drop(directory);
        let (console, host) = (Tail::new(console.file), Tail::new(host.file));
        let mut qemu = Self::new(Parts {
            owner: Owner::Us { child, said },
            qmp,
            gdb,
            memory: GuestMemory::new(memory.file, Vec::new()),
            vcpus: config.vcpus,
            kvm: emulator.accel == Accel::Kvm,
            runs: false,
        })?;
        qemu.console = Some(console);
        qemu.host = Some(host);
        qemu.unparked = config.unparked;
        qemu.refresh()?;
        qemu.resume()?;
        Ok(qemu)
    }
}

/// `directory` is for sockets, the files are for the memory and the two serial ports.
fn arguments(
    emulator: &Emulator,
    config: &Config,
    directory: &Path,
    [memory, console, host]: &[String; 3],
) -> Vec<String> {
    let at = |name: &str| directory.join(name).display().to_string();
    let accel = match emulator.accel {
        Accel::Tcg => "tcg,thread=multi",
        Accel::Kvm => "kvm",
    };
    let size = config.memory_bytes;
    let socket = |id: &str| format!("socket,id={id},path={},server=on,wait=off", at(id));
    [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-S",
        "-machine",
        &format!("pc,memory-backend={BACKEND}"),
        "-object",
        &format!("memory-backend-file,id={BACKEND},size={size},mem-path={memory},share=on"),
        "-m",
        &format!("{}M", size >> 20),
        "-accel",
        accel,
        "-cpu",
        &emulator.cpu,
        "-smp",
        &config.vcpus.to_string(),
        "-kernel",
        &config.kernel.display().to_string(),
        "-initrd",
        &config.initrd.display().to_string(),
        "-append",
        &config.append,
        "-chardev",
        &format!("file,id=console,path={console}"),
        "-serial",
        "chardev:console",
        "-chardev",
        &format!("file,id=host,path={host}"),
        "-serial",
        "chardev:host",
        "-chardev",
        &socket("gdb"),
        "-gdb",
        "chardev:gdb",
        "-chardev",
        &socket("qmp"),
        "-mon",
        "chardev=qmp,mode=control",
    ]
    .map(str::to_owned)
    .into()
}

/// Starts QEMU so that it does not outlive us, even when we are killed: `setpriv` (util-linux)
/// asks the kernel for that, which takes a system call that safe Rust has no way to make here.
fn spawn(program: &Path, arguments: &[String], errors: File) -> Result<Child, MachineError> {
    let started = |mut command: Command, errors: File| {
        // Not in our process group: a control-C is for us, and we end it.
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
    };
    let cannot = |e: io::Error| {
        MachineError::Start(format!(
            "cannot run {}: {e}; install it (Debian: qemu-system-x86, Fedora: qemu-system-x86-core) or name it with --qemu",
            program.display()
        ))
    };
    let copy = errors.try_clone().map_err(cannot)?;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .args(arguments);
    match started(command, copy) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let mut command = Command::new(program);
            command.args(arguments);
            started(command, errors).map_err(cannot)
        }
        other => other.map_err(cannot),
    }
}
