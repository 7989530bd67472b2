//! A guest in a QEMU: one of our own ([`Emulator`]), or one that is running already ([`attach`]).
//!
//! The memory of our own is a memfd of this process that QEMU maps shared, so a running guest can
//! be read, a stopped one copied, and the memory of a QEMU that died be kept, without a word to
//! QEMU. QMP stops and resumes; breakpoints and watchpoints go through the debug stub; the
//! registers come out of QEMU's own `dump-guest-memory` of a single page, in the very notes that
//! its cores have.

mod attach;
mod gdb;
mod mtree;
mod own;
mod qmp;
mod state;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use scx_postmortem_analyze::source::Image;
use scx_postmortem_format::capture::VcpuState;
use serde_json::{Value, json};

use self::gdb::Gdb;
pub(crate) use self::own::Accel;
pub(super) use self::own::Emulator;
use self::qmp::Qmp;
use super::{Event, Frozen, GuestMemory, Machine, MachineError, Stop};

/// Name of the memory backend.
const BACKEND: &str = "ram";
/// Time for a command that does next to nothing.
const SHORT: Duration = Duration::from_secs(10);
/// Time in which the debug stub tells that the guest was paused.
const PAUSED: Duration = Duration::from_millis(200);
/// How often an event is looked for while waiting.
const TICK: Duration = Duration::from_millis(20);
/// Longest line of the guest's init, bytes.
const MAX_LINE: usize = 64 << 10;
/// Messages of QEMU that are shown when it ends, bytes.
const MAX_SAID: u64 = 2000;

/// Whose QEMU it is.
#[derive(Debug)]
enum Owner {
    /// Ours: it ends with us.
    Us {
        child: Child,
        /// Where its messages go.
        said: PathBuf,
    },
    /// Someone else's: it goes on as it did.
    Other {
        /// The backends that its memory is in.
        attached: attach::Attached,
    },
}

/// What a connection to a QEMU is made of.
struct Parts {
    owner: Owner,
    directory: tempfile::TempDir,
    qmp: Qmp,
    gdb: Gdb,
    memory: GuestMemory,
    vcpus: u32,
    accel: &'static str,
    /// Whether the guest was running before we came.
    runs: bool,
}

/// A running QEMU. One of our own ends when this is dropped, and when this process does.
#[derive(Debug)]
pub(crate) struct Qemu {
    owner: Owner,
    /// Holds the sockets, the console and the registers' file; gone with us.
    directory: tempfile::TempDir,
    console: Option<Tail>,
    host: Option<Tail>,
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
    /// Whether an attached guest is to run when we leave.
    runs: bool,
    unparked: Option<u32>,
}

impl Qemu {
    /// The guest stands still.
    fn new(parts: Parts) -> Result<Self, MachineError> {
        let mut qemu = Self {
            owner: parts.owner,
            directory: parts.directory,
            console: None,
            host: None,
            pending: Vec::new(),
            qmp: parts.qmp,
            gdb: parts.gdb,
            stops: Vec::new(),
            stands: true,
            stash: None,
            memory: parts.memory,
            vcpus: parts.vcpus,
            detail: String::new(),
            ended: false,
            runs: parts.runs,
            unparked: None,
        };
        let version = qemu.qmp.ask("query-version", json!({}), SHORT)?;
        let number = |name: &str| version.pointer(name).and_then(Value::as_u64).unwrap_or(0);
        qemu.detail = format!(
            "QEMU {}.{}.{}, {}",
            number("/qemu/major"),
            number("/qemu/minor"),
            number("/qemu/micro"),
            parts.accel
        );
        Ok(qemu)
    }

    /// Where the memory is by now: firmware moves some of it.
    fn map_memory(&mut self) -> Result<(), MachineError> {
        if let Owner::Other { attached } = &self.owner {
            self.memory = attached.map(&mut self.qmp)?;
            return Ok(());
        }
        let tree = self.qmp.human("info mtree -f")?;
        let map = mtree::mappings(&tree, BACKEND);
        if map.is_empty() {
            return Err(MachineError::Refused {
                what: "QEMU's `info mtree -f`".into(),
                why: format!("its view of memory does not show the backend {BACKEND:?}"),
            });
        }
        let moved = self.memory.with_map(map);
        self.memory = moved.map_err(|e| MachineError::Refused {
            what: "sharing the guest's memory".into(),
            why: e.to_string(),
        })?;
        Ok(())
    }

    /// The registers of all vCPUs.
    fn registers(&mut self) -> Result<Vec<VcpuState>, MachineError> {
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
        let notes = image.register_notes.iter().filter(|n| n.name == "QEMU");
        let states = (0..).zip(notes);
        let states = states.map(|(vcpu, note)| {
            state::of_note(vcpu, &note.desc)
                .ok_or_else(|| failed(format!("QEMU's note of vCPU {vcpu} is too short")))
        });
        let mut states = states.collect::<Result<Vec<_>, _>>()?;
        let _ = std::fs::remove_file(&path);
        if u32::try_from(states.len()).ok() != Some(self.vcpus) {
            return Err(failed(format!(
                "QEMU gave {} of {} vCPUs",
                states.len(),
                self.vcpus
            )));
        }
        // Without it there are a few registers less.
        if let Ok(text) = self.qmp.human("info registers -a") {
            state::add_text(&mut states, &text);
        }
        Ok(states)
    }

    fn ended(&mut self, how: &str, powered_off: bool) -> Event {
        self.ended = true;
        let said = match &self.owner {
            Owner::Us { said, .. } => last_words(said),
            Owner::Other { .. } => String::new(),
        };
        Event::Ended {
            how: format!("{how}{said}"),
            powered_off,
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
                let powered_off = reason == Some("guest-shutdown");
                return Ok(Some(self.ended(&how, powered_off)));
            }
        }
    }

    /// A connection that breaks is the end of the guest when QEMU has ended as it should.
    fn gone(&mut self, error: MachineError) -> Result<Event, MachineError> {
        let deadline = Instant::now() + Duration::from_secs(2);
        let Owner::Us { child, said } = &mut self.owner else {
            self.ended = true;
            return Err(error);
        };
        while Instant::now() < deadline {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(self.ended("QEMU ended", false)),
                Ok(Some(status)) => {
                    self.ended = true;
                    let said = last_words(said);
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
            Ok(vcpus) => frozen.vcpus = vcpus,
            Err(error) => frozen.faults.push(error.to_string()),
        }
        if let Some(vcpu) = self.unparked {
            forget(&mut frozen, vcpu);
            // It goes on, so everything does: QEMU has one switch for all.
            let _ = self.resume();
        }
        frozen
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        // A byte to the stub of a running guest would stop it.
        if self.stash.is_some() || !self.stands {
            return Ok(());
        }
        self.gdb.go_on()?;
        self.stands = false;
        Ok(())
    }

    fn leave(&mut self) {
        match &mut self.owner {
            Owner::Us { child, .. } => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Owner::Other { .. } if !self.ended => {
                // Each of them is worth trying, whatever came of the one before. The stub listens
                // to a guest that stands only.
                let _ = self.pause(SHORT);
                let _ = self.stop_at(&[]);
                let _ = self.gdb.detach();
                let _ = self.qmp.human("gdbserver none");
                let state = if self.runs { "cont" } else { "stop" };
                let _ = self.qmp.ask(state, json!({}), SHORT);
            }
            Owner::Other { .. } => {}
        }
        self.ended = true;
    }

    fn console(&mut self) -> Vec<u8> {
        let console = self.console.as_mut();
        console.map(Tail::new_bytes).unwrap_or_default()
    }

    fn messages(&mut self) -> Vec<String> {
        let host = self.host.as_mut();
        self.pending
            .extend(host.map(Tail::new_bytes).unwrap_or_default());
        super::lines(&mut self.pending, MAX_LINE)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Takes a vCPU out of those that stand.
fn forget(frozen: &mut Frozen, vcpu: u32) {
    frozen.vcpus.retain(|state| state.vcpu != vcpu);
    frozen.faults.push(format!(
        "vCPU {vcpu} did not stop (a fault that was asked for)"
    ));
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
