//! A guest in a QEMU of our own.
//!
//! Its memory is a memfd of this process that QEMU maps shared, so a running guest can be read and
//! a stopped one copied without a word to QEMU. QMP stops and resumes; breakpoints go through the
//! debug stub; the registers come out of QEMU's own `dump-guest-memory` of a single page, in the
//! very notes that its cores have.

mod gdb;
mod mtree;
mod qmp;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use scx_postmortem_analyze::source::Image;
use scx_postmortem_format::capture::Note;
use serde_json::{Value, json};

use self::gdb::Gdb;
use self::qmp::Qmp;
use super::{Event, Frozen, GuestMemory, Machine, MachineError, Stop};

/// Name of the memory backend.
const BACKEND: &str = "ram";
/// Time in which QEMU opens its sockets.
const START: Duration = Duration::from_secs(30);
/// Time for a command that does next to nothing.
const SHORT: Duration = Duration::from_secs(10);
/// Time in which the debug stub tells that the guest was paused.
const PAUSED: Duration = Duration::from_millis(200);
/// How often an event is looked for while waiting.
const TICK: Duration = Duration::from_millis(20);
/// Messages of QEMU that are shown when it ends, bytes.
const MAX_SAID: u64 = 2000;

/// What emulates the CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Accel {
    /// Software; works everywhere.
    Tcg,
    /// The host's KVM.
    Kvm,
}

/// What to start.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// The program, `qemu-system-x86_64`.
    pub(crate) program: PathBuf,
    pub(crate) accel: Accel,
    /// `-cpu`.
    pub(crate) cpu: String,
    pub(crate) vcpus: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    /// Kernel command line.
    pub(crate) append: String,
}

/// A running QEMU. It ends when this is dropped, and when this process does.
#[derive(Debug)]
pub(crate) struct Qemu {
    child: Child,
    /// Holds the sockets, the console and the registers' file; gone with us.
    directory: tempfile::TempDir,
    said: PathBuf,
    console: Tail,
    host: Tail,
    pending: Vec<u8>,
    qmp: Qmp,
    gdb: Gdb,
    /// What stops the guest.
    stops: Vec<Stop>,
    /// Whether the guest stands still because of us.
    stands: bool,
    /// A stop that came while the guest was being paused for something else.
    stash: Option<Event>,
    memory: GuestMemory,
    vcpus: u32,
    detail: String,
    ended: bool,
}

impl Qemu {
    /// Starts QEMU and lets the guest run.
    pub(crate) fn start(config: &Config) -> Result<Self, MachineError> {
        let start = |what: &str, e: &dyn std::fmt::Display| {
            MachineError::Start(format!("cannot start the guest: {what}: {e}"))
        };
        // Paths of sockets are limited to 108 bytes: not below the output's directory.
        let directory = tempfile::Builder::new()
            .prefix("scxpm-")
            .tempdir()
            .map_err(|e| start("a temporary directory", &e))?;
        let at = |name: &str| directory.path().join(name);
        let memory: File = memfd_create("scx-postmortem-guest", MemfdFlags::CLOEXEC)
            .map_err(|e| start("memory for the guest", &e))?
            .into();
        memory
            .set_len(config.memory_bytes)
            .map_err(|e| start("memory for the guest", &e))?;
        let said = at("qemu.err");
        let errors = File::create(&said).map_err(|e| start("its messages", &e))?;
        for name in ["console", "host"] {
            File::create(at(name)).map_err(|e| start("its console", &e))?;
        }
        let arguments = arguments(config, directory.path(), &memory);
        let mut child = spawn(&config.program, &arguments, errors)?;

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
                    config.program.display()
                )));
            }
        };
        let mut qemu = Self {
            child,
            said,
            console: Tail::new(at("console")),
            host: Tail::new(at("host")),
            pending: Vec::new(),
            qmp,
            gdb,
            stops: Vec::new(),
            stands: true,
            stash: None,
            memory: GuestMemory::new(memory, Vec::new()),
            vcpus: config.vcpus,
            detail: String::new(),
            ended: false,
            directory,
        };
        let version = qemu.qmp.ask("query-version", json!({}), SHORT)?;
        let number = |name: &str| version.pointer(name).and_then(Value::as_u64).unwrap_or(0);
        qemu.detail = format!(
            "QEMU {}.{}.{}, {}",
            number("/qemu/major"),
            number("/qemu/minor"),
            number("/qemu/micro"),
            match config.accel {
                Accel::Tcg => "software emulation",
                Accel::Kvm => "KVM",
            }
        );
        qemu.map_memory()?;
        qemu.resume()?;
        Ok(qemu)
    }

    /// Where the memory is by now: firmware moves some of it.
    fn map_memory(&mut self) -> Result<(), MachineError> {
        let tree = self.qmp.human("info mtree -f")?;
        let map = mtree::mappings(&tree, BACKEND);
        if map.is_empty() {
            return Err(MachineError::Refused {
                what: "QEMU's `info mtree -f`".into(),
                why: format!("its view of memory does not show the backend {BACKEND:?}"),
            });
        }
        let same = self
            .memory
            .share_file()
            .map_err(|e| MachineError::Refused {
                what: "sharing the guest's memory".into(),
                why: e.to_string(),
            })?;
        self.memory = GuestMemory::new(same, map);
        Ok(())
    }

    /// The registers of all vCPUs, as QEMU's dumps have them.
    fn registers(&mut self) -> Result<Vec<Note>, MachineError> {
        let what = "taking the vCPUs' registers";
        let failed = |why: String| MachineError::Refused {
            what: what.into(),
            why,
        };
        let path = self.directory.path().join("registers.elf");
        let arguments = json!({
            "paging": false, "protocol": format!("file:{}", path.display()),
            "begin": 0, "length": 4096,
        });
        self.qmp.ask("dump-guest-memory", arguments, SHORT * 6)?;
        let image = Image::open(&path).map_err(|e| failed(e.to_string()))?;
        let notes = image.register_notes.iter();
        let notes = notes.map(|note| Note::new(&note.name, note.kind, note.desc.clone()));
        let notes: Vec<Note> = notes.collect();
        let _ = std::fs::remove_file(&path);
        Ok(notes)
    }

    fn ended(&mut self, how: &str) -> Event {
        self.ended = true;
        Event::Ended {
            how: format!("{how}{}", last_words(&self.said)),
        }
    }

    /// What QEMU has told by itself.
    fn event(&mut self) -> Result<Option<Event>, MachineError> {
        loop {
            let event = match self.qmp.event() {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(None),
                Err(error) => return self.gone(error).map(Some),
            };
            let name = event.get("event").and_then(Value::as_str);
            let reason = event.pointer("/data/reason").and_then(Value::as_str);
            if name == Some("SHUTDOWN") {
                let how = format!("shut down ({})", reason.unwrap_or("no reason given"));
                return Ok(Some(self.ended(&how)));
            }
        }
    }

    /// A connection that breaks is the end of the guest when QEMU has ended as it should.
    fn gone(&mut self, error: MachineError) -> Result<Event, MachineError> {
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(self.ended("QEMU ended")),
                Ok(Some(status)) => {
                    self.ended = true;
                    let said = last_words(&self.said);
                    return Err(MachineError::Gone(format!("QEMU ended ({status}){said}")));
                }
                _ => thread::sleep(TICK),
            }
        }
        Err(error)
    }
}

impl Qemu {
    /// Stops the guest, unless it stands.
    fn pause(&mut self, deadline: Duration) -> Result<(), MachineError> {
        if self.stands {
            return Ok(());
        }
        self.qmp.ask("stop", json!({}), deadline)?;
        self.stands = true;
        // The stub tells of the pause, too; but a breakpoint that was met at the same time must
        // not be lost.
        if let Some(reply) = self.gdb.stopped(PAUSED)? {
            self.stash = self.event_of(reply)?;
        }
        Ok(())
    }

    fn event_of(&mut self, reply: gdb::Reply) -> Result<Option<Event>, MachineError> {
        let gdb::Reply::Trap { written } = reply else {
            return Ok(None);
        };
        self.stands = true;
        let (rip, rsp) = self.gdb.place()?;
        let at = written.map_or(Stop::Execute(rip), Stop::Write);
        Ok(Some(Event::Stopped { at, rsp }))
    }
}

impl Machine for Qemu {
    fn describe(&self) -> (&'static str, String) {
        ("qemu", self.detail.clone())
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn refresh(&mut self) -> Result<(), MachineError> {
        self.map_memory()
    }

    fn vcpus(&self) -> u32 {
        self.vcpus
    }

    fn wait(&mut self, wait: Duration) -> Result<Option<Event>, MachineError> {
        if let Some(event) = self.stash.take() {
            return Ok(Some(event));
        }
        let deadline = Instant::now() + wait;
        loop {
            if let Some(event) = self.event()? {
                return Ok(Some(event));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.gdb.stopped(left.min(TICK)) {
                Ok(Some(reply)) => {
                    if let Some(event) = self.event_of(reply)? {
                        return Ok(Some(event));
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    // The monitor may know how it ended.
                    if let Ok(Some(event)) = self.event() {
                        return Ok(Some(event));
                    }
                    return self.gone(error).map(Some);
                }
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
    }

    fn stop_at(&mut self, stops: &[Stop]) -> Result<Vec<Stop>, MachineError> {
        if self.stops == stops {
            return Ok(self.stops.clone());
        }
        // The stub takes breakpoints of a guest that stands.
        let ran = !self.stands;
        self.pause(SHORT)?;
        for old in std::mem::take(&mut self.stops) {
            self.gdb.set(old, false)?;
        }
        for &new in stops {
            if self.gdb.set(new, true)? {
                self.stops.push(new);
            }
        }
        if ran {
            self.resume()?;
        }
        Ok(self.stops.clone())
    }

    fn freeze(&mut self, deadline: Duration) -> Frozen {
        let mut frozen = Frozen::default();
        if let Err(error) = self.pause(deadline) {
            frozen.faults.push(error.to_string());
            return frozen;
        }
        let refreshed = self.map_memory();
        match refreshed.and_then(|()| self.registers()) {
            Ok(registers) => {
                frozen.registers = registers;
                frozen.parked = (0..self.vcpus).collect();
            }
            Err(error) => frozen.faults.push(error.to_string()),
        }
        frozen
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        if self.stash.is_some() {
            return Ok(());
        }
        self.gdb.go_on()?;
        self.stands = false;
        Ok(())
    }

    fn leave(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.ended = true;
    }

    fn console(&mut self) -> Vec<u8> {
        self.console.new_bytes()
    }

    fn messages(&mut self) -> Vec<String> {
        self.pending.extend(self.host.new_bytes());
        let Some(end) = memchr::memrchr(b'\n', &self.pending) else {
            return Vec::new();
        };
        let rest = self.pending.split_off(end + 1);
        let lines = std::mem::replace(&mut self.pending, rest);
        let lines = String::from_utf8_lossy(&lines);
        lines.lines().map(|line| line.trim().to_owned()).collect()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.leave();
    }
}

fn arguments(config: &Config, directory: &Path, memory: &File) -> Vec<String> {
    let at = |name: &str| directory.join(name).display().to_string();
    // QEMU opens our memfd by our own entry in /proc, so that nothing has to be inherited.
    let memory_path = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
    let accel = match config.accel {
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
        &format!("memory-backend-file,id={BACKEND},size={size},mem-path={memory_path},share=on"),
        "-m",
        &format!("{}M", size >> 20),
        "-accel",
        accel,
        "-cpu",
        &config.cpu,
        "-smp",
        &config.vcpus.to_string(),
        "-kernel",
        &config.kernel.display().to_string(),
        "-initrd",
        &config.initrd.display().to_string(),
        "-append",
        &config.append,
        "-chardev",
        &format!("file,id=console,path={}", at("console")),
        "-serial",
        "chardev:console",
        "-chardev",
        &format!("file,id=host,path={}", at("host")),
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
        command
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

/// The end of what QEMU has printed, as the end of a sentence.
fn last_words(path: &Path) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_SAID).read_to_string(&mut text));
    match (read, text.trim()) {
        (Ok(_), said) if !said.is_empty() => format!("; QEMU said: {said}"),
        _ => String::new(),
    }
}

/// Connects to a socket of a program that is starting, while that is `alive`.
fn connect(
    path: &Path,
    deadline: Instant,
    alive: &mut dyn FnMut() -> bool,
) -> Result<UnixStream, MachineError> {
    loop {
        let lives = alive();
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(_) if !lives => return Err(MachineError::Start("it ended at once".into())),
            Err(e) if Instant::now() >= deadline => {
                return Err(MachineError::Start(format!(
                    "nobody answers on {}: {e}",
                    path.display()
                )));
            }
            Err(_) => thread::sleep(TICK),
        }
    }
}

/// A file that someone else appends to.
#[derive(Debug)]
struct Tail {
    path: PathBuf,
    at: u64,
}

impl Tail {
    fn new(path: PathBuf) -> Self {
        Self { path, at: 0 }
    }

    fn new_bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A console that cannot be read is an empty one: it decides nothing by itself.
        let _ = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.at))?;
            file.read_to_end(&mut bytes)
        });
        self.at += u64::try_from(bytes.len()).unwrap_or(0);
        bytes
    }
}
