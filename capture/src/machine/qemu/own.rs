//! A QEMU that we start, with nothing but what a scheduler needs: no disk, no network.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::gdb::Gdb;
use super::qmp::Qmp;
use super::{Owner, Parts, Qemu, Tail, backend, last_words, ticks};
use crate::machine::memory::Backing;
use crate::machine::{Config, GuestMemory, Machine, MachineError, Nameless, node_memory, share};

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
    /// Starts QEMU and lets the guest run. `end` is set when we are told to end meanwhile.
    pub(in crate::machine) fn start(
        emulator: &Emulator,
        config: &Config,
        end: &AtomicBool,
    ) -> Result<Self, MachineError> {
        let start = |what: &str, e: &dyn std::fmt::Display| {
            MachineError::Start(format!("cannot start the guest: {what}: {e}"))
        };
        // Paths of sockets are limited to 108 bytes: not below the output's directory.
        let directory = tempfile::Builder::new()
            .prefix("scxpm-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(|e| start("a temporary directory", &e))?;
        let at = |name: &str| directory.path().join(name);
        let file = |name: &str, what: &str| Nameless::new(name).map_err(|e| start(what, &e));
        let nodes = config.nodes.max(1);
        let memory = (0..nodes).map(|node| {
            let (begin, end) = node_memory(config.memory_bytes, nodes, node);
            let memory = Nameless::new("scx-postmortem-guest")?;
            memory.file.set_len(end - begin)?;
            Ok(memory)
        });
        let memory = memory.collect::<io::Result<Vec<_>>>();
        let memory = memory.map_err(|e| start("memory for the guest", &e))?;
        let said = file("scx-postmortem-messages", "its messages")?.file;
        let errors = said.try_clone().map_err(|e| start("its messages", &e))?;
        let console = file("scx-postmortem-console", "its console")?;
        let host = file("scx-postmortem-host", "its console")?;
        let serial = [&console, &host].map(|file| file.path.display().to_string());
        let speed = match emulator.accel {
            Accel::Tcg => ticks::early_khz(),
            Accel::Kvm => String::new(),
        };
        let config = &Config {
            // Before the user's own words: the last one counts.
            append: format!("{speed}{}", config.append),
            ..config.clone()
        };
        let arguments = arguments(emulator, config, directory.path(), &memory, &serial);
        let mut child = spawn(&emulator.program, &arguments, errors)?;

        let deadline = Instant::now() + START;
        let ends = || end.load(Ordering::Relaxed);
        let mut alive = || !ends() && matches!(child.try_wait(), Ok(None));
        let connected = Qmp::connect(&at("qmp"), deadline, &mut alive)
            .and_then(|qmp| Ok((qmp, Gdb::connect(&at("gdb"), deadline, &mut alive)?)));
        let (qmp, gdb) = match connected {
            Ok(both) => both,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                if ends() {
                    let why = "ended by a signal before QEMU had answered";
                    return Err(MachineError::Start(why.into()));
                }
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
            memory: GuestMemory::from_parts(
                memory
                    .into_iter()
                    .map(|part| Backing::file(part.file))
                    .collect(),
                Vec::new(),
            ),
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

/// `directory` is for sockets, the files are for the memory of each node and the two serial ports.
fn arguments(
    emulator: &Emulator,
    config: &Config,
    directory: &Path,
    memory: &[Nameless],
    [console, host]: &[String; 2],
) -> Vec<String> {
    let at = |name: &str| directory.join(name).display().to_string();
    let accel = match emulator.accel {
        Accel::Tcg => "tcg,thread=multi",
        Accel::Kvm => "kvm",
    };
    let size = config.memory_bytes;
    let socket = |id: &str| format!("socket,id={id},path={},server=on,wait=off", at(id));
    let mut arguments: Vec<String> = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-S",
        "-m",
        &format!("{}M", size >> 20),
        "-accel",
        accel,
        "-cpu",
        &emulator.cpu,
        "-smp",
        &smp(config),
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
    .into();
    arguments.extend(memory_arguments(config, memory));
    arguments
}

/// A CPU of one node that shares a cache with another's would be a kernel's warning: with nodes each
/// is a socket of its own.
fn smp(config: &Config) -> String {
    let vcpus = config.vcpus;
    if config.nodes > 1 {
        format!("{vcpus},sockets={vcpus},cores=1,threads=1")
    } else {
        vcpus.to_string()
    }
}

/// The guest's memory in our memfds, one for each NUMA node.
fn memory_arguments(config: &Config, memory: &[Nameless]) -> Vec<String> {
    let mut out = vec!["-machine".to_owned()];
    match memory {
        [_] => out.push(format!("pc,memory-backend={}", backend(0))),
        _ => out.push("pc".to_owned()),
    }
    let nodes = config.nodes.max(1);
    for (node, file) in (0..).zip(memory) {
        let (begin, end) = node_memory(config.memory_bytes, nodes, node);
        let id = backend(node);
        let path = file.path.display();
        out.push("-object".to_owned());
        out.push(format!(
            "memory-backend-file,id={id},size={},mem-path={path},share=on",
            end - begin
        ));
        if memory.len() > 1 {
            let first = |node| share(config.vcpus.into(), nodes, node);
            out.push("-numa".to_owned());
            out.push(format!(
                "node,nodeid={node},cpus={}-{},memdev={id}",
                first(node),
                first(node + 1).saturating_sub(1)
            ));
        }
    }
    out
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_command_line() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/capturing.md");
        let page = std::fs::read_to_string(page).unwrap();
        let (_, block) = page.split_once("    qemu-system-x86_64 ").unwrap();
        let lines = block.lines().take_while(|l| !l.is_empty());
        let words = shell_words::split(&lines.collect::<Vec<_>>().join(" ")).unwrap();
        let words: Vec<String> = words.into_iter().filter(|w| w.trim() != "\\").collect();
        let config = Config {
            vcpus: 2,
            memory_bytes: 512 << 20,
            nodes: 1,
            kernel: "KERNEL".into(),
            initrd: "INITRD".into(),
            append: format!("tsc_early_khz=KHZ {} WORDS", crate::start::APPEND),
            unparked: None,
        };
        let emulator = Emulator {
            program: "qemu-system-x86_64".into(),
            accel: Accel::Tcg,
            cpu: "max,la57=off".into(),
        };
        let memory = Nameless {
            file: tempfile::tempfile().unwrap(),
            path: "MEMORY".into(),
        };
        let serial = ["CONSOLE".to_owned(), "MESSAGES".to_owned()];
        let expected = arguments(&emulator, &config, Path::new("DIR"), &[memory], &serial);
        assert_eq!(words, expected);
    }

    #[test]
    fn each_node_has_its_share_of_cpus_and_memory() {
        let file = || Nameless::new("test").unwrap();
        let config = Config {
            vcpus: 5,
            memory_bytes: 513 << 20,
            nodes: 2,
            ..Config::default()
        };
        let two = memory_arguments(&config, &[file(), file()]);
        assert_eq!(two[..2], ["-machine", "pc"]);
        assert!(two[3].starts_with("memory-backend-file,id=ram0,size=268435456,"));
        assert_eq!(two[5], "node,nodeid=0,cpus=0-1,memdev=ram0");
        assert!(two[7].starts_with("memory-backend-file,id=ram1,size=269484032,"));
        assert_eq!(two[9], "node,nodeid=1,cpus=2-4,memdev=ram1");
        assert_eq!(smp(&config), "5,sockets=5,cores=1,threads=1");
        let one = memory_arguments(&Config { nodes: 1, ..config }, &[file()]);
        assert_eq!(one[1], "pc,memory-backend=ram0");
        assert!(
            one[3].contains("size=537919488,") && one.len() == 4,
            "{one:?}"
        );
    }
}
