//! A guest in a QEMU: one of our own ([`Emulator`]), or one that is running already ([`attach`]).
//!
//! The memory of our own is a memfd of this process that QEMU maps shared, so a running guest can
//! be read, a stopped one copied, and the memory of a QEMU that died be kept, without a word to
//! QEMU. QMP stops and resumes; breakpoints and watchpoints go through the debug stub; the
//! registers come out of QEMU's own `dump-guest-memory` of a single page, in the very notes that
//! its cores have.

mod attach;
mod gdb;
pub(crate) mod guardian;
mod mtree;
mod own;
mod qmp;
mod state;
mod ticks;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use scx_postmortem_analyze::source::Image;
use scx_postmortem_format::capture::VcpuState;
use serde_json::{Value, json};

use self::gdb::{Gdb, Place};
use self::guardian::Guardian;
pub(crate) use self::own::Accel;
pub(super) use self::own::Emulator;
use self::qmp::Qmp;
use super::perf::Counters;
use super::{Cause, Event, Frozen, GuestMemory, Machine, MachineError, Stop};

/// Time for a command that does next to nothing.
const SHORT: Duration = Duration::from_secs(10);
/// Time in which the debug stub tells that the guest was paused.
const PAUSED: Duration = Duration::from_millis(200);
/// How often an event is looked for while waiting.
const TICK: Duration = Duration::from_millis(20);
/// How often a QEMU that has nothing to tell is asked whether it is still there.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Most that is read of a console at once, bytes.
const MAX_READ: u64 = 4 << 20;
/// Name that QEMU has for the file that its registers go to.
const REGISTERS: &str = "scxpm-registers";
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
        said: File,
    },
    /// Someone else's: it goes on as it did.
    Other {
        /// The backends that its memory is in.
        attached: attach::Attached,
        /// Lets it go on when we are killed.
        guardian: Option<Guardian>,
    },
}

/// Name of a node's memory backend.
fn backend(node: u32) -> String {
    format!("ram{node}")
}

/// What a connection to a QEMU is made of.
struct Parts {
    owner: Owner,
    qmp: Qmp,
    gdb: Gdb,
    memory: GuestMemory,
    vcpus: u32,
    kvm: bool,
    /// Whether the guest was running before we came.
    runs: bool,
}

/// A running QEMU. One of our own ends when this is dropped, and when this process does.
#[derive(Debug)]
pub(crate) struct Qemu {
    owner: Owner,
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
    left: bool,
    /// Whether an attached guest is to run when we leave.
    runs: bool,
    /// Someone else has stopped an attached guest, which is then not ours to resume: QEMU's name
    /// of the state.
    held: Option<String>,
    /// A `stop` was given up that QEMU may still carry out.
    owed: bool,
    /// When QEMU last answered.
    heard: Instant,
    /// The vCPUs' hardware counters, or why there are none.
    counters: Result<Counters, String>,
    unparked: Option<u32>,
}

impl Qemu {
    /// The guest stands still.
    fn new(parts: Parts) -> Result<Self, MachineError> {
        let mut qemu = Self {
            owner: parts.owner,
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
            left: false,
            runs: parts.runs,
            held: None,
            owed: false,
            heard: Instant::now(),
            counters: Err("the vCPUs are emulated in software: no counter of the host tells their instructions from the emulator's".into()),
            unparked: None,
        };
        if parts.kvm {
            qemu.counters = qemu.threads().and_then(|all| Counters::of_guest(&all));
        }
        let version = qemu.qmp.ask("query-version", json!({}), SHORT)?;
        let number = |name: &str| version.pointer(name).and_then(Value::as_u64).unwrap_or(0);
        qemu.detail = format!(
            "QEMU {}.{}.{}, {}",
            number("/qemu/major"),
            number("/qemu/minor"),
            number("/qemu/micro"),
            if parts.kvm {
                "KVM"
            } else {
                "software emulation"
            }
        );
        Ok(qemu)
    }

    /// The threads that run the vCPUs, in the order of vCPUs.
    fn threads(&mut self) -> Result<Vec<i32>, String> {
        let all = self.qmp.ask("query-cpus-fast", json!({}), SHORT);
        let all = all.map_err(|e| e.to_string())?;
        let number = |cpu: &Value, name| cpu.get(name).and_then(Value::as_i64);
        let mut threads: Vec<(i64, i32)> = Vec::new();
        for cpu in all.as_array().into_iter().flatten() {
            let thread = number(cpu, "thread-id").and_then(|id| i32::try_from(id).ok());
            let both = number(cpu, "cpu-index").zip(thread);
            threads.push(both.ok_or("QEMU does not tell the threads of its vCPUs")?);
        }
        threads.sort_unstable();
        Ok(threads.into_iter().map(|(_, thread)| thread).collect())
    }

    /// Where the memory is by now: firmware moves some of it.
    fn map_memory(&mut self) -> Result<(), MachineError> {
        if let Owner::Other { attached, .. } = &mut self.owner {
            self.memory = attached.map(&mut self.qmp)?;
            return Ok(());
        }
        let tree = self.qmp.human("info mtree -f")?;
        let mut map = Vec::new();
        for (node, number) in (0..).zip(0..self.memory.backings()) {
            let backend = backend(node);
            let found = mtree::mappings(&tree, &backend);
            if found.is_empty() {
                return Err(MachineError::Refused {
                    what: "QEMU's `info mtree -f`".into(),
                    why: format!("its view of memory does not show the backend {backend:?}"),
                });
            }
            map.extend(found.into_iter().map(|piece| (piece, number)));
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
        // A descriptor, for a QEMU that runs as another user, or sees other directories.
        let file = memfd_create("scx-postmortem-registers", MemfdFlags::CLOEXEC);
        let file = file.map_err(|e| failed(e.to_string()))?;
        self.qmp.give(REGISTERS, &file)?;
        let arguments = json!({
            "paging": false, "protocol": format!("fd:{REGISTERS}"), "begin": 0, "length": 4096,
        });
        self.qmp.ask("dump-guest-memory", arguments, SHORT * 6)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let image = Image::open(&path).map_err(|e| failed(e.to_string()))?;
        let notes = image.register_notes.iter().filter(|n| n.name == "QEMU");
        let states = (0..).zip(notes);
        let states = states.map(|(vcpu, note)| {
            state::of_note(vcpu, &note.desc)
                .ok_or_else(|| failed(format!("QEMU's note of vCPU {vcpu} is too short")))
        });
        let mut states = states.collect::<Result<Vec<_>, _>>()?;
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
            match name {
                Some("SHUTDOWN") => {
                    let how = format!("shut down ({})", reason.unwrap_or("no reason given"));
                    let powered_off = reason == Some("guest-shutdown");
                    return Ok(Some(self.ended(&how, powered_off)));
                }
                Some("RESET") => return Ok(Some(Event::Restarted)),
                Some("GUEST_PANICKED") => return Ok(Some(Event::Panicked)),
                // Ours come here too, and late; only QEMU itself knows.
                Some("RESUME" | "STOP") if self.is_other() => self.look_around(SHORT)?,
                _ => {}
            }
        }
    }

    /// A connection that breaks is the end of the guest when QEMU has ended as it should.
    fn gone(&mut self, error: MachineError) -> Result<Event, MachineError> {
        let deadline = Instant::now() + Duration::from_secs(2);
        let Owner::Us { child, said, .. } = &mut self.owner else {
            self.ended = true;
            return Err(error);
        };
        while Instant::now() < deadline {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(self.ended("QEMU ended", false)),
                Ok(Some(status)) => {
                    self.ended = true;
                    let said = last_words(said);
                    return Err(MachineError::Gone(obituary(status, &said)));
                }
                _ => thread::sleep(TICK),
            }
        }
        Err(error)
    }
}

impl Qemu {
    fn is_other(&self) -> bool {
        matches!(self.owner, Owner::Other { .. })
    }

    /// Someone else has stopped the guest, or resumed it.
    fn hold(&mut self, state: Option<String>) {
        if let Owner::Other {
            guardian: Some(guardian),
            ..
        } = &mut self.owner
        {
            guardian.tell(state.is_some());
        }
        self.held = state;
    }

    /// Whether the guest of someone else runs, by QEMU's word, and what that changes.
    fn look_around(&mut self, deadline: Duration) -> Result<(), MachineError> {
        let status = self.qmp.ask("query-status", json!({}), deadline)?;
        let running = status.get("running").and_then(Value::as_bool);
        let state = status.get("status").and_then(Value::as_str).unwrap_or("");
        match running {
            Some(true) if self.stands => {
                // Its owner has resumed it.
                (self.stands, self.runs) = (false, true);
                self.hold(None);
            }
            // "debug" is a breakpoint of ours that was met just now.
            Some(false) if !self.stands && state != "debug" && !self.owed => {
                let state = state.to_owned();
                self.hold(Some(state));
            }
            _ => {}
        }
        Ok(())
    }

    /// Stops the guest, unless it stands.
    fn pause(&mut self, deadline: Duration) -> Result<(), MachineError> {
        if self.is_other() {
            self.look_around(deadline)?;
        }
        if self.stands {
            return Ok(());
        }
        let asked = self.qmp.ask("stop", json!({}), deadline);
        self.owed = matches!(asked, Err(MachineError::Late { .. }));
        asked?;
        self.stands = true;
        // The stub tells of the pause, too; but a breakpoint that was met at the same time must
        // not be lost.
        if let Some(reply) = self.gdb.stopped(PAUSED)? {
            self.stash = self.event_of(reply)?;
        }
        Ok(())
    }

    /// Puts someone else's guest back as it was; whether all of that worked. Each step is worth
    /// trying, whatever came of the one before.
    fn take_leave(&mut self) -> bool {
        // The stub listens to a guest that stands only.
        let mut sound = self.pause(SHORT).is_ok();
        let goes_on = self.runs && self.held.is_none();
        if sound {
            sound &= self.stop_at(&[]).is_ok();
            if goes_on {
                sound &= self.gdb.detach().is_ok();
            }
            sound &= self.qmp.human("gdbserver none").is_ok();
        }
        if goes_on || self.owed {
            sound &= self.qmp.ask("cont", json!({}), SHORT).is_ok();
        }
        sound
    }

    fn event_of(&mut self, reply: gdb::Reply) -> Result<Option<Event>, MachineError> {
        let gdb::Reply::Trap { written } = reply else {
            return Ok(None);
        };
        self.stands = true;
        let Place { rip, rsp, rdi } = self.gdb.place()?;
        if !self.is_live() {
            self.map_memory()?;
        }
        let at = written.map_or(Stop::Execute(rip), Stop::Write);
        Ok(Some(Event::Stopped { at, rsp, rdi }))
    }

    /// Asks a QEMU that has been silent for long whether it is still there: one that hangs tells
    /// nothing, and is waited for to no end otherwise.
    fn hear(&mut self) -> Result<(), MachineError> {
        if self.heard.elapsed() < HEARTBEAT {
            return Ok(());
        }
        let status = self.qmp.ask("query-status", json!({}), SHORT * 3)?;
        self.heard = Instant::now();
        let running = status.get("running").and_then(Value::as_bool);
        let state = status.get("status").and_then(Value::as_str).unwrap_or("");
        // Ours runs, or a breakpoint was met just now. KVM stops it for an instruction that it
        // does not know, and then nothing more comes.
        if running == Some(false) && !self.stands && !self.is_other() && state != "debug" {
            let why = format!("QEMU stopped the guest by itself ({state})");
            return Err(MachineError::Gone(why));
        }
        Ok(())
    }
}

impl Machine for Qemu {
    fn describe(&self) -> (&'static str, String) {
        ("qemu", self.detail.clone())
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn is_live(&self) -> bool {
        match &self.owner {
            Owner::Us { .. } => true,
            Owner::Other { attached, .. } => attached.is_live(),
        }
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
                return self.hear().map(|()| None);
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
            frozen.cause = match error.cause() {
                Cause::Silent => Cause::Late,
                other => other,
            };
            let died = self.died().filter(|_| frozen.cause == Cause::Gone);
            let fault = died.unwrap_or_else(|| error.to_string());
            frozen.faults.push(fault);
            return frozen;
        }
        let refreshed = self.map_memory();
        match refreshed.and_then(|()| self.registers()) {
            Ok(vcpus) => frozen.vcpus = vcpus,
            Err(error) => {
                frozen.cause = match error.cause() {
                    Cause::Gone => Cause::Gone,
                    _ => Cause::Registers,
                };
                frozen.faults.push(error.to_string());
            }
        }
        match &mut self.counters {
            Ok(counters) => frozen.counters = counters.read(),
            Err(why) => frozen.no_counters = Some(why.clone()),
        }
        if let Some(vcpu) = self.unparked {
            forget(&mut frozen, vcpu);
            // It goes on, so everything does: QEMU has one switch for all.
            let _ = self.resume();
        }
        frozen
    }

    fn stood(&mut self) -> bool {
        if self.is_other() {
            // No answer is no proof.
            return self.look_around(SHORT).is_ok() && self.stands;
        }
        true
    }

    fn died(&mut self) -> Option<String> {
        let Owner::Us { child, said } = &mut self.owner else {
            return None;
        };
        // Its connections break before it can be waited for.
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Some(obituary(status, &last_words(said))),
                Ok(None) if Instant::now() < deadline => thread::sleep(TICK),
                _ => return None,
            }
        }
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        if self.owed {
            // QEMU takes orders one after the other.
            self.qmp.ask("cont", json!({}), SHORT * 3)?;
            self.owed = false;
            return Ok(());
        }
        // A byte to the stub of a running guest would stop it.
        if self.stash.is_some() || !self.stands {
            return Ok(());
        }
        if self.held.is_none() {
            self.gdb.go_on()?;
        }
        self.stands = false;
        Ok(())
    }

    fn leave(&mut self) {
        match &mut self.owner {
            Owner::Us { child, .. } => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Owner::Other { .. } if self.left => {}
            Owner::Other { .. } => {
                let sound = self.take_leave();
                if let Owner::Other { guardian, .. } = &mut self.owner
                    && let Some(mut guardian) = guardian.take()
                    && sound
                {
                    // Else it tries for some minutes more, when we have long ended.
                    guardian.dismiss();
                }
            }
        }
        self.left = true;
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

impl Qemu {
    /// Something that the manifest has to say of this machine.
    pub(super) fn also(&mut self, what: &str) {
        self.detail = format!("{}; {what}", self.detail);
    }
}

/// Takes a vCPU out of those that stand.
fn forget(frozen: &mut Frozen, vcpu: u32) {
    frozen.vcpus.retain(|state| state.vcpu != vcpu);
    frozen.faults.push(format!(
        "vCPU {vcpu} did not stop (a fault that was asked for)"
    ));
}

/// How QEMU has died: `signal: 9 (SIGKILL)`, `exit status: 1`.
fn obituary(status: ExitStatus, said: &str) -> String {
    format!("QEMU died ({status}){said}")
}

/// The end of what QEMU has printed, as the end of a sentence.
fn last_words(mut said: &File) -> String {
    let mut text = Vec::new();
    // QEMU writes at the place that it shares with us; it has ended.
    let read = said.metadata().and_then(|meta| {
        let from = meta.len().saturating_sub(MAX_SAID);
        said.seek(SeekFrom::Start(from))?;
        said.take(MAX_SAID).read_to_end(&mut text)
    });
    let text = String::from_utf8_lossy(&text);
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

/// A file that someone else writes to, read as it grows. What was read is given back to the file
/// system, so that a talkative guest does not fill it.
#[derive(Debug)]
struct Tail {
    file: File,
    /// How far it was read.
    at: u64,
    /// How far its blocks were given back.
    freed: u64,
}

impl Tail {
    const fn new(file: File) -> Self {
        let (at, freed) = (0, 0);
        Self { file, at, freed }
    }

    fn new_bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A console that cannot be read is an empty one: it decides nothing by itself.
        let mut file = &self.file;
        let _ = file
            .seek(SeekFrom::Start(self.at))
            .and_then(|_| file.take(MAX_READ).read_to_end(&mut bytes));
        self.at += u64::try_from(bytes.len()).unwrap_or(0);
        if self.at - self.freed > MAX_READ {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = fallocate(file, hole, 0, self.at);
            self.freed = self.at;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_console_is_read_as_it_grows_and_takes_no_more_room_than_what_is_new() {
        let console = crate::machine::Nameless::new("console").unwrap();
        // As QEMU opens it.
        let mut file = File::create(&console.path).unwrap();
        let mut tail = Tail::new(console.file);
        let mut read = 0;
        for round in 0..12u8 {
            file.write_all(&vec![round; 1 << 20]).unwrap();
            let new = tail.new_bytes();
            assert!(new.iter().all(|&byte| byte == round));
            read += new.len();
        }
        assert_eq!(read, 12 << 20);
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), 12 << 20);
        assert!(meta.blocks() * 512 <= 5 << 20, "{}", meta.blocks());
        assert_eq!(tail.new_bytes(), b"");
    }
}
