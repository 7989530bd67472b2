//! The coordinator: from a guest that runs to what is to be written of it. It knows a [`Machine`]
//! and [`Eyes`], no backend and no kernel.
//!
//! ```text
//!   no kernel ── found ──▶ Watching ── half the timeout ──▶ early image, and on
//!      ▲                    │  │  ▲
//!      │      exit kind set │  │  │ nothing had failed
//!      │                    ▼  │  │
//!      │              Failing  │  │          nothing follows in 3 s
//!      │                    │  ▼  │   ┌──────────────────────────────▶ late image
//!      │   dump entered     └▶ Dumping ─── returned, or not in 20 s ──▶ late image
//!      │
//!   guest reset, from anywhere          panic, console, signal, time ──▶ late image
//!   guest ended, machine lost ── had failed by then ──▶ late image of memory as it stands
//!                             └─ had not, or time over, told to end ──▶ over (an early image is kept)
//! ```
//!
//! The moment of a failure is the return of the kernel's `scx_dump_state()`: the failure is noted,
//! the kernel's own dump is in memory, and no queue has been touched. A breakpoint leads there;
//! without one the exit kind is watched or polled. Which of them it was is recorded.
//!
//! Every way ends in one [`Outcome`]; whatever was taken is in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use scx_postmortem_analyze::addr::Gpa;
use scx_postmortem_analyze::source::{PhysicalMemory, Region};
use scx_postmortem_format::capture::{Extent, MemorySource, Timings};

use crate::machine::{
    Cause, Copied, Event, Frozen, GuestMemory, Machine, MachineError, Room, Stop,
};
use crate::watch::{Eyes, Found, LatchState, Scheduler};

/// Bytes of the console that a capture keeps.
const CONSOLE_TAIL: usize = 64 << 10;
/// How often memory is looked at while the guest runs.
const TICK: Duration = Duration::from_millis(50);
/// How often the kernel is looked for while the guest boots.
const SEARCH: Duration = Duration::from_millis(500);
/// Time in which all vCPUs have to stop (the contract's section 6.14).
const FREEZE: Duration = Duration::from_secs(30);
/// Time that the kernel gets to write its own dump, on a host that emulates it slowly.
const DUMP: Duration = Duration::from_secs(20);
/// Time from an exit kind to the dump that should follow at once.
const GRACE: Duration = Duration::from_secs(3);
/// How long the log is looked at for why a scheduler has gone: the kernel writes that down as the
/// last.
const WHY: Duration = Duration::from_secs(2);
/// Shorter runs say nothing of clocks.
const CLOCKS: Duration = Duration::from_secs(4);
/// What the kernel writes when it is at its end.
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// Why an early image cannot be waited for.
const NOT_LIVE: &str = "QEMU's process is closed to capture, so the guest's memory is seen only while it stands still; run capture as the same user or as root";
/// `enum kmsg_dump_reason` (include/linux/kmsg_dump.h): why the kernel hands out its log.
const KMSG_DUMP_PANIC: u64 = 1;
const KMSG_DUMP_OOPS: u64 = 2;

/// Where the console's output goes besides.
pub(crate) type Echo<'a> = Option<Box<dyn Fn(&[u8]) + 'a>>;

/// At which moment of a failure the image is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Moment {
    /// When the kernel has written its own dump, or as near to it as the machine can.
    #[default]
    Dump,
    /// The same, and a watchpoint notes when the exit kind was stored. It costs a guest under
    /// software emulation some 10 % of its speed.
    Timed,
    /// At the store of the exit kind, by a watchpoint: before the kernel has written the reason.
    Store,
    /// When the exit kind is seen in memory, without stopping the guest for it.
    Poll,
}

/// Which moments are worth a capture.
#[derive(Debug, Clone, Default)]
pub(crate) struct Triggers {
    pub(crate) moment: Moment,
    /// Take an early image at half of the watchdog's limit.
    pub(crate) early: bool,
    /// Any of these on the console.
    pub(crate) console: Vec<String>,
    /// So long after the start.
    pub(crate) after: Option<Duration>,
    /// Set by a signal: take a capture now.
    pub(crate) now: Arc<AtomicBool>,
    /// Set by a signal: end.
    pub(crate) end: Arc<AtomicBool>,
    /// So long after the start the guest is left without a capture.
    pub(crate) timeout: Option<Duration>,
    /// The guest goes on after the late image, so that this is a copy.
    pub(crate) goes_on: bool,
    /// Take a capture at once.
    pub(crate) at_once: bool,
    /// How often the monitor takes a sample.
    pub(crate) sample_every: Option<Duration>,
}

/// Why an image was taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fired {
    /// Stable name: `scx_exit`, `runnable_age`, `panic`, `oops`, `console`, `signal`, `time`, `asked`, `lost`.
    pub(crate) kind: &'static str,
    /// For people.
    pub(crate) detail: String,
    /// What saw it: `breakpoint`, `watchpoint`, `poll`.
    pub(crate) by: Option<&'static str>,
    /// The exit kind.
    pub(crate) exit_kind: Option<i64>,
    /// How long it had been set: known when a watchpoint saw the store.
    pub(crate) exit_age: Option<Duration>,
    /// The time since it was last seen not to be set.
    pub(crate) exit_age_at_most: Option<Duration>,
    /// A watchpoint saw the store.
    pub(crate) watchpoint_hit: bool,
    /// What the probe's latch said last; absent: nobody looked.
    pub(crate) latch: Option<LatchState>,
}

impl Fired {
    fn new(kind: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            ..Self::default()
        }
    }

    /// Whether something failed, or a capture was only asked for.
    pub(crate) fn is_failure(&self) -> bool {
        !matches!(self.kind, "signal" | "time" | "asked")
    }
}

/// A guest's memory at one moment.
pub(crate) enum Memory {
    /// The guest's own; the guest stands still or has ended.
    Own(GuestMemory),
    /// A copy; the guest went on.
    Copy(Arc<Copied>),
}

impl Memory {
    pub(crate) fn extents(&self) -> Vec<Extent> {
        match self {
            Self::Own(memory) => memory.extents(),
            Self::Copy(memory) => memory.extents(),
        }
    }

    /// The same memory, for a kernel to be found in.
    pub(crate) fn physical(&self) -> std::io::Result<Box<dyn PhysicalMemory>> {
        Ok(match self {
            Self::Own(memory) => Box::new(memory.share()?),
            Self::Copy(memory) => Box::new(Shared(Arc::clone(memory))),
        })
    }

    pub(crate) fn source(&self) -> &dyn MemorySource {
        match self {
            Self::Own(memory) => memory,
            Self::Copy(memory) => memory.as_ref(),
        }
    }
}

struct Shared(Arc<Copied>);

impl PhysicalMemory for Shared {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> scx_postmortem_analyze::Result<()> {
        PhysicalMemory::read(self.0.as_ref(), gpa, buf)
    }

    fn regions(&self) -> &[Region] {
        self.0.regions()
    }
}

/// One image of a guest.
pub(crate) struct Snapshot {
    pub(crate) fired: Fired,
    pub(crate) frozen: Frozen,
    pub(crate) memory: Memory,
    pub(crate) timings: Timings,
    pub(crate) taken: Instant,
    /// How long it took to stop the vCPUs, or to give up.
    pub(crate) freeze: Duration,
    /// Bytes that were copied while the guest stood still.
    pub(crate) copied: Option<u64>,
}

impl Snapshot {
    pub(crate) fn is_degraded(&self) -> bool {
        !self.frozen.faults.is_empty()
    }
}

/// What became of the early image.
#[derive(Default)]
pub(crate) enum Early {
    /// Nobody asked for it.
    #[default]
    NotWanted,
    /// The age never came to half the limit.
    Waiting {
        /// The highest that was seen, jiffies.
        peak: u64,
        /// The last threshold that was seen, jiffies.
        threshold: u64,
        /// At some look there were more runnable tasks than were looked at.
        cut: bool,
    },
    /// It was taken.
    Taken {
        snapshot: Box<Snapshot>,
        /// The age that made it due, jiffies.
        age: u64,
        threshold: u64,
        /// Which scheduler it shows: its number among those that came.
        of: u64,
    },
    /// None was due before the late image, and what that shows is as old: it stands for both (the
    /// contract's section 6.13).
    Promoted {
        /// The age that the late image shows, jiffies.
        age: u64,
        threshold: u64,
    },
    /// Its memory could not be kept.
    Failed(String),
}

/// How a run came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// There is a late image; why is in it.
    Late,
    /// The guest ended, and nothing had failed.
    Ended {
        /// What its machine said.
        how: String,
        /// The last thing that init said.
        said: Option<String>,
        /// Its kernel asked for it.
        powered_off: bool,
    },
    /// The time was over.
    TimeOver,
    /// We were asked to end.
    Interrupted,
    /// The machine went away before there was a kernel to keep.
    Lost(String),
}

/// All that a run has left.
pub(crate) struct Outcome {
    pub(crate) end: End,
    pub(crate) early: Early,
    pub(crate) late: Option<Snapshot>,
    /// Both images are there, and show different schedulers.
    pub(crate) apart: bool,
}

/// Where the coordinator is once the kernel was found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Nothing has failed.
    Watching,
    /// The exit kind is set; the kernel's dump should follow.
    Failing {
        since: Instant,
        scheduler: Scheduler,
        by: &'static str,
    },
    /// In `scx_dump_state`; waiting for its return. It is also called for SysRq-D, with nothing
    /// wrong, and then there is no scheduler.
    Dumping {
        since: Instant,
        scheduler: Option<Scheduler>,
        back: u64,
    },
}

/// A scheduler without an exit kind.
#[derive(Debug, Clone)]
struct Sound {
    /// Its `struct scx_sched`.
    of: u64,
    name: String,
    /// When it was last seen so.
    at: Instant,
}

/// What the coordinator knows of the run.
pub(crate) struct Coordinator<'a> {
    triggers: Triggers,
    eyes: &'a mut dyn Eyes,
    started: Instant,
    found: Option<Found>,
    searched: Option<Instant>,
    /// Memory may hold an earlier kernel as well.
    was_reset: bool,
    /// When the monitor's next sample is due.
    due: Option<Instant>,
    why_not: String,
    console: Vec<u8>,
    /// How much of `console` was searched.
    seen: usize,
    said: Option<String>,
    attached: Option<Scheduler>,
    /// How many have come, and the last of them.
    schedulers: u64,
    last: Option<Scheduler>,
    /// The latch was seen to be set, and nothing was made of it yet.
    latched: bool,
    phase: Phase,
    /// When a watchpoint saw the store of an exit kind.
    stored: Option<Instant>,
    /// What the probe's latch said last.
    latch: Option<LatchState>,
    /// The scheduler that was last seen without an exit kind, and when.
    sound: Option<Sound>,
    /// The last failure that the kernel's log had when the kernel was found: its record's number.
    logged: Option<u64>,
    /// When a scheduler was seen to have gone, and when that one was last seen without an exit kind.
    gone: Option<(Instant, Option<Sound>)>,
    /// When the kernel was found, and how long it had run by its own clock.
    uptime: Option<(Instant, Duration)>,
    /// What is wrong with the guest's clock.
    pub(crate) off: Option<String>,
    /// What the machine stops for.
    stops: Vec<Stop>,
    /// Room for a copy, made before the guest has to stand still for it.
    room: Option<Room>,
    /// Since when the guest stands at a breakpoint.
    stood: Option<Instant>,
    early: Early,
    /// The scheduler that the early image shows, or without one the last, has gone with an exit kind
    /// that is no failure.
    pub(crate) suppressed: bool,
    /// Progress for whoever watches.
    tell: Box<dyn Fn(&str) + 'a>,
    echo: Echo<'a>,
}

impl<'a> Coordinator<'a> {
    pub(crate) fn new(
        triggers: Triggers,
        eyes: &'a mut dyn Eyes,
        tell: Box<dyn Fn(&str) + 'a>,
        echo: Echo<'a>,
    ) -> Self {
        let early = if triggers.early {
            Early::Waiting {
                peak: 0,
                threshold: 0,
                cut: false,
            }
        } else {
            Early::NotWanted
        };
        Self {
            triggers,
            eyes,
            started: Instant::now(),
            found: None,
            searched: None,
            was_reset: false,
            due: None,
            why_not: "the guest wrote nothing to its console".into(),
            console: Vec::new(),
            seen: 0,
            said: None,
            attached: None,
            schedulers: 0,
            last: None,
            latched: false,
            room: None,
            stood: None,
            phase: Phase::Watching,
            stored: None,
            sound: None,
            logged: None,
            gone: None,
            uptime: None,
            off: None,
            latch: None,
            stops: Vec::new(),
            early,
            suppressed: false,
            tell,
            echo,
        }
    }

    /// The end of the console's output.
    pub(crate) fn console_tail(&self) -> &[u8] {
        let from = self.console.len().saturating_sub(CONSOLE_TAIL);
        self.console.get(from..).unwrap_or_default()
    }

    /// The guest's kernel, or why it was not found.
    pub(crate) fn found(&self) -> Result<&Found, &str> {
        self.found.as_ref().ok_or(&self.why_not)
    }

    /// Follows a guest until there is a late image or it is over.
    pub(crate) fn follow(&mut self, machine: &mut dyn Machine) -> Outcome {
        let (end, late) = match self.until_the_end(machine) {
            Ok((end, late)) => (end, late),
            Err(error) => self.lost(machine, &error),
        };
        Outcome {
            end,
            apart: self.is_other() && late.is_some(),
            early: std::mem::take(&mut self.early),
            late,
        }
    }

    fn until_the_end(
        &mut self,
        machine: &mut dyn Machine,
    ) -> Result<(End, Option<Snapshot>), MachineError> {
        loop {
            match machine.wait(self.beat())? {
                Some(Event::Ended { how, powered_off }) => {
                    return Ok(self.ended(machine, how, powered_off));
                }
                Some(Event::Stopped { at, rsp, rdi }) => {
                    self.stood = Some(Instant::now());
                    if let Some(fired) = self.arrived(machine, at, rsp, rdi)? {
                        return self.late(machine, fired);
                    }
                }
                Some(Event::Restarted) => self.restarted(machine)?,
                Some(Event::Panicked) => {
                    let fired = Fired::new("panic", "the guest's kernel has told of its panic");
                    let by = Some("pvpanic");
                    return self.late(machine, Fired { by, ..fired });
                }
                None => {}
            }
            if self.triggers.end.load(Ordering::Relaxed) {
                return Ok((End::Interrupted, None));
            }
            // Whatever it stood for, it runs again.
            self.stood = None;
            if let Some(fired) = self.listen(machine) {
                return self.late(machine, fired);
            }
            // What has failed already is waited for, which does not take long.
            let fails = self.fails();
            if let Some(fired) = if fails { None } else { self.clock() } {
                let fired = self.unnoticed().unwrap_or(fired);
                return self.late(machine, fired);
            }
            if let Some(fired) = self.look(machine)? {
                return self.late(machine, fired);
            }
            let over = |limit: Duration| self.started.elapsed() >= limit;
            if self.triggers.timeout.is_some_and(over) && !self.fails() {
                return match self.unnoticed() {
                    Some(fired) => self.late(machine, fired),
                    None => Ok((End::TimeOver, None)),
                };
            }
        }
    }

    /// How long the guest is left alone: until the next look, or sample.
    fn beat(&self) -> Duration {
        let left = |due: Instant| due.saturating_duration_since(Instant::now());
        self.due.map_or(TICK, |due| left(due).min(TICK))
    }

    /// Whether a scheduler has failed, and its image is due.
    fn fails(&self) -> bool {
        match &self.phase {
            Phase::Watching => false,
            Phase::Failing { .. } => true,
            Phase::Dumping { scheduler, .. } => scheduler.is_some(),
        }
    }

    /// The guest boots again: its kernel will be elsewhere.
    fn restarted(&mut self, machine: &mut dyn Machine) -> Result<(), MachineError> {
        (self.tell)("the guest was reset");
        self.why_not = "the guest was reset, and its kernel was not found again".into();
        self.found = None;
        self.searched = None;
        self.due = None;
        self.attached = None;
        self.phase = Phase::Watching;
        (self.stored, self.sound, self.latch) = (None, None, None);
        (self.logged, self.gone, self.uptime) = (None, None, None);
        // What comes now is of another boot.
        self.another();
        self.stops = machine.stop_at(&[])?;
        self.was_reset = true;
        Ok(())
    }

    /// Counts one more scheduler, or boot. How the one before went says nothing of it, unless there is
    /// an early image of that one.
    fn another(&mut self) {
        self.schedulers += 1;
        if !matches!(self.early, Early::Taken { .. }) {
            self.suppressed = false;
        }
    }

    /// Whether a scheduler that has come is another one than the early image shows.
    fn is_other(&self) -> bool {
        matches!(self.early, Early::Taken { of, .. } if of != self.schedulers)
    }

    /// The guest is off. What had failed by then is worth its memory, which is still there.
    fn ended(
        &mut self,
        machine: &mut dyn Machine,
        how: String,
        powered_off: bool,
    ) -> (End, Option<Snapshot>) {
        let fired = self.listen(machine);
        if self.triggers.end.load(Ordering::Relaxed) {
            return (End::Interrupted, None);
        }
        let fired = fired
            .or_else(|| self.failing("the guest ended"))
            .or_else(|| self.unnoticed());
        let late = fired.filter(|fired| fired.is_failure() && self.found.is_some());
        let late = late.and_then(|fired| {
            let why = format!("the guest ended before it could be stopped: {how}");
            self.left(machine, fired, why, Cause::Ended)
        });
        match late {
            Some(late) => (End::Late, Some(late)),
            None => {
                let said = self.said.clone();
                let ended = End::Ended {
                    how,
                    said,
                    powered_off,
                };
                (ended, None)
            }
        }
    }

    /// A failure that nothing has seen, and that the kernel has written down: it may be over within
    /// the time between two looks, and a breakpoint needs symbols.
    fn unnoticed(&self) -> Option<Fired> {
        if self.phase != Phase::Watching {
            return None;
        }
        let (number, text) = self.eyes.logged()?;
        if self.logged.is_some_and(|before| number <= before) {
            return None;
        }
        let detail = format!("{text} (found in the kernel's log, when it was over)");
        Some(Fired {
            by: Some("kernel log"),
            exit_age_at_most: self.logged_age(&text),
            latch: self.latch,
            ..Fired::new("scx_exit", detail)
        })
    }

    /// Whether a scheduler has gone, and why may still come into the kernel's log.
    fn went(&self) -> bool {
        self.gone.as_ref().is_some_and(|(at, _)| at.elapsed() < WHY)
    }

    /// The time since a scheduler was last seen without an exit kind: the one that is attached, or
    /// the last that has gone. What was seen of another one says nothing of it.
    fn age_at_most(&self, is_it: impl Fn(&Sound) -> bool) -> Option<Duration> {
        let gone = self.gone.as_ref().and_then(|(_, sound)| sound.as_ref());
        // Another one may be at its address by now.
        let there = self.attached.as_ref().map(|attached| attached.at);
        let gone = gone.filter(|sound| there != Some(sound.of));
        let mut both = [self.sound.as_ref(), gone].into_iter().flatten();
        both.find(|sound| is_it(sound))
            .map(|sound| sound.at.elapsed())
    }

    /// The same of the scheduler that a line of the kernel's log names. One that has just gone is
    /// meant before one of that name that has come instead.
    fn logged_age(&self, text: &str) -> Option<Duration> {
        let named = |sound: &Sound| text.contains(&format!("\"{}\"", sound.name));
        let gone = self.gone.as_ref().and_then(|(_, sound)| sound.as_ref());
        let gone = gone.filter(|sound| self.went() && named(sound));
        gone.map(|sound| sound.at.elapsed())
            .or_else(|| self.age_at_most(named))
    }

    /// Compares the guest's clock with the host's, since the kernel was found.
    fn compare_clocks(&mut self) {
        let Some((since, before)) = self.uptime else {
            return;
        };
        let guest = self.eyes.uptime().and_then(|now| now.checked_sub(before));
        // An attached one may have been stopped by its owner.
        let stops = self.triggers.goes_on;
        self.off = guest.and_then(|guest| off(guest, since.elapsed(), stops));
    }

    /// What has failed already, where nothing more can be waited for.
    fn failing(&self, where_: &str) -> Option<Fired> {
        match &self.phase {
            Phase::Failing { scheduler, by, .. } => Some(self.failed(scheduler, by, where_)),
            Phase::Dumping {
                scheduler: Some(scheduler),
                ..
            } => Some(self.failed(scheduler, "breakpoint", where_)),
            _ => None,
        }
    }

    /// The memory of a machine that is not there any more, or does not do as it is told. A guest that
    /// goes on when we leave is copied: its memory would be another one by the time it is written.
    fn left(
        &self,
        machine: &dyn Machine,
        fired: Fired,
        why: String,
        cause: Cause,
    ) -> Option<Snapshot> {
        let memory = machine.memory();
        if !memory.is_there() {
            return None;
        }
        let over = matches!(cause, Cause::Gone | Cause::Ended);
        let (timings, taken) = (timings(self.started), Instant::now());
        let (memory, copied) = if self.triggers.goes_on && !over {
            let room = Room::make(memory).ok()?;
            let copied = Copied::fill(memory, room).ok()?;
            let bytes = copied.bytes();
            (Memory::Copy(Arc::new(copied)), Some(bytes))
        } else {
            (Memory::Own(memory.share().ok()?), None)
        };
        Some(Snapshot {
            fired,
            frozen: Frozen {
                faults: vec![why],
                cause,
                ..Frozen::default()
            },
            memory,
            timings,
            taken,
            freeze: Duration::ZERO,
            copied,
        })
    }

    fn clock(&self) -> Option<Fired> {
        if self.triggers.now.swap(false, Ordering::Relaxed) {
            return Some(Fired::new("signal", "SIGUSR1 to capture"));
        }
        // Not before it is known whose memory it is.
        if self.triggers.at_once && (self.found.is_some() || self.searched.is_some()) {
            return Some(Fired::new("asked", "as it is now (--now)"));
        }
        let after = self.triggers.after?;
        let text = format!("{} s after the start", after.as_secs());
        (self.started.elapsed() >= after).then(|| Fired::new("time", text))
    }

    /// Takes what the guest has said.
    fn listen(&mut self, machine: &mut dyn Machine) -> Option<Fired> {
        for line in machine.messages() {
            if let Some(message) = line.strip_prefix('@') {
                (self.tell)(message);
                self.said = Some(message.to_owned());
            }
        }
        let new = machine.console();
        if let Some(echo) = &self.echo {
            echo(&new);
        }
        self.console.extend(new);
        let fired = self.search_console();
        // Twice the tail, so that what is kept is not moved for every byte.
        let excess = self.console.len().saturating_sub(CONSOLE_TAIL);
        if excess > CONSOLE_TAIL {
            self.console.drain(..excess);
            self.seen = self.seen.saturating_sub(excess);
        }
        fired
    }

    fn search_console(&mut self) -> Option<Fired> {
        let patterns = self.triggers.console.iter().map(String::as_bytes);
        let longest = patterns.map(<[u8]>::len).max().unwrap_or(0);
        // A pattern may come in two pieces; one that was seen whole ended the run.
        let from = self.seen.saturating_sub(longest.max(PANIC.len()));
        self.seen = self.console.len();
        let new = self.console.get(from..)?;
        let line_at = |at: usize| {
            let rest = new.get(at..).unwrap_or_default();
            let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            let line = rest.get(..end).unwrap_or_default();
            String::from_utf8_lossy(line).trim().to_owned()
        };
        if let Some(at) = memchr::memmem::find(new, PANIC) {
            return Some(Fired::new("panic", line_at(at)));
        }
        self.triggers.console.iter().find_map(|pattern| {
            let at = memchr::memmem::find(new, pattern.as_bytes())?;
            Some(Fired::new("console", line_at(at)))
        })
    }

    /// Looks at the running guest's memory.
    fn look(&mut self, machine: &mut dyn Machine) -> Result<Option<Fired>, MachineError> {
        if self.found.is_none() {
            self.search_kernel(machine)?;
            return Ok(None);
        }
        if machine.is_live() {
            self.monitor();
        }
        let stale = matches!(&self.phase, Phase::Dumping { since, scheduler: None, .. } if since.elapsed() > DUMP);
        if stale {
            // Nothing had failed, and its return was never met.
            self.phase = Phase::Watching;
            self.set_stops(machine)?;
        }
        if let Some(fired) = self.overdue() {
            return Ok(Some(fired));
        }
        if !machine.is_live() {
            // What is to be seen is what was there when it last stood still.
            return Ok(None);
        }
        let looked = Instant::now();
        // Torn: the next look is 50 ms away.
        let waiting = matches!(self.early, Early::Waiting { .. });
        let Some(seen) = self.eyes.look(waiting) else {
            return Ok(None);
        };
        let place = |s: &Option<Scheduler>| s.as_ref().map(|s| s.at);
        if place(&seen.scheduler) != place(&self.attached) {
            if self.attached.is_some() {
                self.gone = Some((looked, self.sound.take()));
            }
            if let Some(scheduler) = &seen.scheduler {
                (self.tell)(&format!("scheduler {}", scheduler.name));
                self.another();
                self.last = Some(scheduler.clone());
                self.latched = false;
            }
            self.attached.clone_from(&seen.scheduler);
            if self.phase == Phase::Watching {
                self.set_stops(machine)?;
            }
        }
        if self.went()
            && let Some(fired) = self.unnoticed()
        {
            return Ok(Some(fired));
        }
        if let Early::Waiting { cut, .. } = &mut self.early {
            *cut |= seen.cut;
        }
        if let (Some(age), Some(half)) = (seen.oldest_age, seen.half_timeout) {
            self.aged(machine, age, half)?;
        }
        // The kernel sets DONE behind an error; the latch remembers. One that was set when we came
        // tells of another scheduler.
        let before = self.latch.replace(seen.latch);
        self.latched |=
            seen.latch == LatchState::Triggered && before == Some(LatchState::NotTriggered);
        let Some(scheduler) = seen.scheduler else {
            return Ok(self.latch_alone());
        };
        let latched = self.latched && scheduler.exit_kind != 0;
        if !scheduler.failed && !latched {
            if scheduler.exit_kind == 0 {
                self.sound = Some(Sound {
                    of: scheduler.at,
                    name: scheduler.name,
                    at: looked,
                });
            } else if !self.is_other() {
                self.suppressed = true;
            }
            return Ok(None);
        }
        if self.phase != Phase::Watching {
            return Ok(None);
        }
        // Once may have been torn.
        let again = self.eyes.look(false).and_then(|seen| seen.scheduler);
        if again.is_none_or(|again| again.at != scheduler.at || again.exit_kind == 0) {
            return Ok(None);
        }
        // The machine stops by itself soon.
        let entry = self.found.as_ref().and_then(|found| found.dump_entry);
        let stops = |s: &Stop| match s {
            Stop::Execute(at) => entry == Some(*at),
            // Its store may be older than the watch.
            Stop::Change(_) | Stop::Write(_) => false,
        };
        let breaks = self.stops.iter().any(stops);
        let failing = Phase::Failing {
            since: Instant::now(),
            by: if scheduler.failed {
                "poll"
            } else {
                "probe latch"
            },
            scheduler,
        };
        self.phase = failing;
        if breaks {
            return Ok(None);
        }
        let Phase::Failing { scheduler, by, .. } = &self.phase else {
            return Ok(None);
        };
        Ok(Some(self.failed(scheduler, by, "exit kind seen in memory")))
    }

    /// The latch was set, and the scheduler went between two looks.
    fn latch_alone(&mut self) -> Option<Fired> {
        if !std::mem::take(&mut self.latched) || self.phase != Phase::Watching {
            return None;
        }
        let gone = self.last.clone()?;
        let fired = self.failed(&gone, "probe latch", "it has gone meanwhile");
        // Nobody has seen its kind.
        let exit_kind = None;
        Some(Fired { exit_kind, ..fired })
    }

    /// Takes a sample when one is due.
    fn monitor(&mut self) {
        let Some(every) = self.triggers.sample_every else {
            return;
        };
        let now = Instant::now();
        let due = self.due.unwrap_or(now);
        if now >= due {
            self.eyes.sample(self.started.elapsed());
            self.due = Some(next(due, every, Instant::now()));
        }
    }

    /// What should have happened and did not.
    fn overdue(&self) -> Option<Fired> {
        match &self.phase {
            Phase::Failing {
                since,
                scheduler,
                by,
            } if since.elapsed() > GRACE => Some(self.failed(
                scheduler,
                by,
                "exit kind set, and the kernel's dump did not follow",
            )),
            Phase::Dumping {
                since,
                scheduler: Some(scheduler),
                ..
            } if since.elapsed() > DUMP => {
                Some(self.failed(scheduler, "breakpoint", "scx_dump_state did not return"))
            }
            _ => None,
        }
    }

    fn failed(&self, scheduler: &Scheduler, by: &'static str, where_: &str) -> Fired {
        Fired {
            by: Some(by),
            exit_kind: Some(scheduler.exit_kind),
            exit_age: self.stored.map(|at| at.elapsed()),
            exit_age_at_most: self.age_at_most(|sound| sound.of == scheduler.at),
            watchpoint_hit: self.stored.is_some(),
            latch: self.latch,
            ..Fired::new("scx_exit", format!("{} ({where_})", scheduler.words()))
        }
    }

    /// Takes the early image when it is due.
    fn aged(&mut self, machine: &mut dyn Machine, age: u64, half: u64) -> Result<(), MachineError> {
        let Early::Waiting {
            peak, threshold, ..
        } = &mut self.early
        else {
            return Ok(());
        };
        *peak = age.max(*peak);
        *threshold = half;
        if age < half || half == 0 || self.phase != Phase::Watching {
            return Ok(());
        }
        // There is one early image, and a torn look is no reason for it.
        let Some(ages) = self.eyes.ages().filter(|ages| ages.age >= ages.half) else {
            return Ok(());
        };
        let words = ages.words();
        (self.tell)(&format!("{words}: early image"));
        let fired = Fired::new("runnable_age", words);
        let room = Room::make(machine.memory());
        let start = Instant::now();
        let copied = copy(machine, fired, self.started, room);
        let resumed = machine.resume();
        self.early = match copied {
            Ok(mut snapshot) => {
                snapshot.timings.pause_ns = nanos(start.elapsed());
                Early::Taken {
                    snapshot: Box::new(snapshot),
                    age,
                    threshold: half,
                    of: self.schedulers,
                }
            }
            Err(why) => Early::Failed(why),
        };
        resumed
    }

    fn search_kernel(&mut self, machine: &mut dyn Machine) -> Result<(), MachineError> {
        // Where each search takes a dump of all memory, the guest is to get on in between.
        let every = if machine.is_live() {
            SEARCH
        } else {
            SEARCH * 20
        };
        let soon = |at: Instant| at.elapsed() < every;
        if self.searched.is_some_and(soon) {
            return Ok(());
        }
        machine.refresh()?;
        match self.eyes.find(machine.memory(), self.was_reset) {
            Ok(mut found) => {
                (self.tell)(&format!("kernel {}", found.release));
                self.logged = self.eyes.logged().map(|(number, _)| number);
                self.uptime = self.eyes.uptime().map(|up| (Instant::now(), up));
                if !machine.is_live() {
                    found.no_ages = Some(NOT_LIVE.to_owned());
                }
                if !found.has_sched_ext {
                    (self.tell)(
                        "this kernel has no sched_ext: only panics and the console are watched",
                    );
                }
                self.found = Some(found);
                self.set_stops(machine)?;
            }
            Err(why) => self.why_not = why,
        }
        self.searched = Some(Instant::now());
        Ok(())
    }

    /// Sets what is to stop the guest while nothing has failed.
    fn set_stops(&mut self, machine: &mut dyn Machine) -> Result<(), MachineError> {
        let entry = self.found.as_ref().and_then(|found| found.dump_entry);
        let entry = entry.map(Stop::Execute);
        let log_dump = self.found.as_ref().and_then(|found| found.log_dump);
        let entries = entry.into_iter().chain(log_dump.map(Stop::Execute));
        let kind = self.attached.as_ref().map(|s| Stop::Write(s.exit_kind_at));
        let wanted: Vec<Stop> = match self.triggers.moment {
            Moment::Dump => entries.collect(),
            Moment::Timed | Moment::Store => kind.into_iter().chain(entries).collect(),
            Moment::Poll => Vec::new(),
        };
        self.stops = machine.stop_at(&wanted)?;
        let breaks = entry.is_some_and(|entry| self.stops.contains(&entry));
        let writes = self.stops.iter().any(|s| matches!(s, Stop::Write(_)));
        let blind = match self.triggers.moment {
            Moment::Dump | Moment::Timed => !breaks,
            Moment::Store => !writes,
            Moment::Poll => false,
        };
        // Memory is looked at instead, as often as the machine can.
        if let Some(scheduler) = self.attached.as_ref().filter(|_| blind) {
            let mut wanted = self.stops.clone();
            wanted.push(Stop::Change(scheduler.exit_kind_at));
            self.stops = machine.stop_at(&wanted)?;
        }
        Ok(())
    }

    /// A vCPU stands where we wanted it.
    fn arrived(
        &mut self,
        machine: &mut dyn Machine,
        at: Stop,
        rsp: u64,
        rdi: u64,
    ) -> Result<Option<Fired>, MachineError> {
        let entry = self.found.as_ref().and_then(|found| found.dump_entry);
        let log_dump = self.found.as_ref().and_then(|found| found.log_dump);
        let fired = match (at, &self.phase) {
            (Stop::Write(_), _) => match self.written() {
                Some(scheduler) => match entry.filter(|_| self.triggers.moment == Moment::Timed) {
                    None => Some(self.failed(&scheduler, "watchpoint", "exit kind written")),
                    Some(entry) => {
                        self.phase = Phase::Failing {
                            since: Instant::now(),
                            scheduler,
                            by: "watchpoint",
                        };
                        self.stops = machine.stop_at(&[Stop::Execute(entry)])?;
                        machine.resume()?;
                        return Ok(None);
                    }
                },
                None => None,
            },
            (Stop::Change(at), _) => match self.eyes.failure() {
                Some(scheduler) => return self.changed(machine, at, scheduler),
                None => None,
            },
            (
                Stop::Execute(at),
                Phase::Dumping {
                    scheduler, back, ..
                },
            ) if at == *back => {
                let done = scheduler.as_ref();
                done.map(|s| self.failed(s, "breakpoint", "scx_dump_state has returned"))
            }
            (Stop::Execute(at), _) if entry == Some(at) => {
                return self.dumping(machine, rsp);
            }
            (Stop::Execute(at), _) if log_dump == Some(at) => match rdi {
                KMSG_DUMP_PANIC => Some(self.crashed("panic", "the guest's kernel panicked")),
                KMSG_DUMP_OOPS => {
                    Some(self.crashed("oops", "the guest's kernel met a bug of its own"))
                }
                // It is being shut down. A breakpoint that a vCPU stands on would be met again.
                _ => {
                    self.forget(|found| found.log_dump = None);
                    None
                }
            },
            // Set before, and no longer of interest.
            (Stop::Execute(_), _) => None,
        };
        if fired.is_some() {
            return Ok(fired);
        }
        // What fails, fails on.
        if !matches!(self.phase, Phase::Failing { .. }) {
            self.phase = Phase::Watching;
        }
        self.set_stops(machine)?;
        machine.resume()?;
        Ok(None)
    }

    /// The kernel is about to hand its log to whoever keeps it: it is at its end, or one of its
    /// tasks is.
    fn crashed(&self, kind: &'static str, detail: &str) -> Fired {
        Fired {
            by: Some("breakpoint"),
            latch: self.latch,
            ..Fired::new(kind, detail)
        }
    }

    fn forget(&mut self, what: impl FnOnce(&mut Found)) {
        if let Some(found) = &mut self.found {
            what(found);
        }
    }

    /// The machine has seen the exit kind, or what follows it, change in memory.
    fn changed(
        &mut self,
        machine: &mut dyn Machine,
        at: u64,
        scheduler: Scheduler,
    ) -> Result<Option<Fired>, MachineError> {
        if at != scheduler.exit_kind_at {
            let fired = self.failed(&scheduler, "poll", "exit record seen in memory");
            return Ok(Some(fired));
        }
        let reason = match self.triggers.moment {
            Moment::Dump | Moment::Timed if !scheduler.recorded => scheduler.recorded_at,
            _ => None,
        };
        if let Some(reason) = reason {
            // The kernel writes it down at once; its dump and the end of the queues come behind.
            self.stops = machine.stop_at(&[Stop::Change(reason)])?;
        }
        if reason.is_none() || self.stops.is_empty() {
            let fired = self.failed(&scheduler, "poll", "exit kind seen in memory");
            return Ok(Some(fired));
        }
        self.phase = Phase::Failing {
            since: Instant::now(),
            scheduler,
            by: "poll",
        };
        machine.resume()?;
        Ok(None)
    }

    /// A vCPU has written to the exit kind.
    fn written(&mut self) -> Option<Scheduler> {
        let scheduler = self.eyes.failure()?;
        self.stored = Some(Instant::now());
        Some(scheduler)
    }

    /// A vCPU is about to write the kernel's dump.
    fn dumping(
        &mut self,
        machine: &mut dyn Machine,
        rsp: u64,
    ) -> Result<Option<Fired>, MachineError> {
        let scheduler = self.eyes.failure();
        let Some(back) = self.eyes.return_address(rsp) else {
            if let Some(scheduler) = &scheduler {
                let what = "at the entry of scx_dump_state; its return address is unreadable";
                return Ok(Some(self.failed(scheduler, "breakpoint", what)));
            }
            // The breakpoint that the vCPU stands on would be met again.
            self.forget(|found| found.dump_entry = None);
            self.set_stops(machine)?;
            machine.resume()?;
            return Ok(None);
        };
        self.stops = machine.stop_at(&[Stop::Execute(back)])?;
        let copies = self.triggers.goes_on && scheduler.is_some();
        self.phase = Phase::Dumping {
            since: Instant::now(),
            scheduler,
            back,
        };
        machine.resume()?;
        if copies {
            // The guest runs meanwhile. Without room by then it is made later, at its cost.
            self.room = Room::make(machine.memory()).ok();
        }
        Ok(None)
    }

    /// Takes the late image.
    fn late(
        &mut self,
        machine: &mut dyn Machine,
        fired: Fired,
    ) -> Result<(End, Option<Snapshot>), MachineError> {
        let stalled = fired.kind == "scx_exit";
        let snapshot = if self.triggers.goes_on {
            let room = self.room.take().map(Ok);
            let room = room.unwrap_or_else(|| Room::make(machine.memory()));
            let start = self.stood.unwrap_or_else(Instant::now);
            let mut snapshot = copy(machine, fired, self.started, room);
            if stalled && snapshot.as_ref().is_ok_and(|late| !late.is_degraded()) {
                self.promote();
            }
            // Whatever comes of this, the guest goes on as it was promised when we leave, and a copy
            // that was taken is kept.
            let _ = machine.stop_at(&[]);
            let _ = machine.resume();
            if let Ok(snapshot) = &mut snapshot {
                snapshot.timings.pause_ns = nanos(start.elapsed());
            }
            match snapshot {
                Ok(snapshot) => snapshot,
                // It runs again; what its memory holds from now on is not what was to be kept.
                Err(why) => return Ok((End::Lost(why), None)),
            }
        } else {
            let snapshot = hold(machine, fired, self.started)?;
            if stalled && !snapshot.is_degraded() {
                self.promote();
            }
            snapshot
        };
        self.compare_clocks();
        // The guest's last state is its timeline's last sample.
        if self.triggers.sample_every.is_some() {
            self.eyes.sample(self.started.elapsed());
        }
        self.listen(machine);
        Ok((End::Late, Some(snapshot)))
    }

    /// Looks at the guest that stands still for the age that no look at the running one has seen.
    fn promote(&mut self) {
        let ages = self.found.as_ref().is_some_and(|f| f.no_ages.is_none());
        if !ages || !matches!(self.early, Early::Waiting { .. }) {
            return;
        }
        let seen = self.eyes.ages();
        if let Some(ages) = seen.filter(|ages| ages.age >= ages.half && ages.half > 0) {
            self.early = Early::Promoted {
                age: ages.age,
                threshold: ages.half,
            };
        }
    }

    /// The machine does not do what it should, or is gone. Its memory is still there.
    fn lost(&mut self, machine: &mut dyn Machine, error: &MachineError) -> (End, Option<Snapshot>) {
        self.listen(machine);
        let died = match error.cause() {
            Cause::Gone => machine.died(),
            _ => None,
        };
        let why = died.unwrap_or_else(|| error.to_string());
        if self.found.is_none() {
            return (End::Lost(why), None);
        }
        let fired = self.failing("the machine was lost").unwrap_or_else(|| {
            let failure = self.eyes.failure();
            let by_then = failure.as_ref().map_or_else(String::new, |scheduler| {
                format!("; by then a scheduler had failed, {}", scheduler.words())
            });
            Fired {
                exit_kind: failure.map(|s| s.exit_kind),
                watchpoint_hit: self.stored.is_some(),
                latch: self.latch,
                ..Fired::new("lost", format!("{why}{by_then}"))
            }
        });
        let Some(snapshot) = self.left(machine, fired, why.clone(), error.cause()) else {
            return (End::Lost(why), None);
        };
        (End::Late, Some(snapshot))
    }
}

/// When something is due again that was due then and comes so often. What was missed is not made up for.
fn next(due: Instant, every: Duration, now: Instant) -> Instant {
    let late = now.saturating_duration_since(due).as_nanos();
    let over = late.checked_rem(every.as_nanos()).unwrap_or(0);
    let over = Duration::from_nanos(u64::try_from(over).unwrap_or(0));
    now + every.saturating_sub(over)
}

/// Whether a guest's clock has gone at least twice as fast as the host's, or half as fast where nobody
/// stops it; a sentence.
fn off(guest: Duration, host: Duration, stops: bool) -> Option<String> {
    let fast = guest > host * 2;
    let slow = guest * 2 < host && !stops;
    (host >= CLOCKS && (fast || slow)).then(|| {
        format!(
            "the guest's clock went {:.1} s while {:.1} s passed here: its times and limits are not what they seem",
            guest.as_secs_f64(),
            host.as_secs_f64()
        )
    })
}

fn nanos(duration: Duration) -> Option<u64> {
    u64::try_from(duration.as_nanos()).ok()
}

fn timings(started: Instant) -> Timings {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Timings {
        taken_unix_ns: now.ok().and_then(nanos),
        guest_uptime_ns: nanos(started.elapsed()),
        ..Timings::default()
    }
}

/// Stops a guest for good. Its memory is not copied: it does not change any more.
fn hold(
    machine: &mut dyn Machine,
    fired: Fired,
    started: Instant,
) -> Result<Snapshot, MachineError> {
    let start = Instant::now();
    let frozen = machine.freeze(FREEZE);
    let freeze = start.elapsed();
    let memory = machine.memory().share();
    let memory = memory.map_err(|e| MachineError::Refused {
        what: "keeping the guest's memory".into(),
        why: e.to_string(),
    })?;
    Ok(Snapshot {
        fired,
        frozen,
        memory: Memory::Own(memory),
        timings: timings(started),
        taken: start,
        freeze,
        copied: None,
    })
}

/// Stops a guest and copies its memory. The caller resumes it, whatever comes of this.
fn copy(
    machine: &mut dyn Machine,
    fired: Fired,
    started: Instant,
    room: std::io::Result<Room>,
) -> Result<Snapshot, String> {
    let start = Instant::now();
    let mut timings = timings(started);
    let mut frozen = machine.freeze(FREEZE);
    let freeze = start.elapsed();
    let copied = room.and_then(|room| Copied::fill(machine.memory(), room));
    let copied = copied.map_err(|e| format!("the guest's memory cannot be copied: {e}"))?;
    timings.copy_ns = nanos(copied.took);
    if frozen.faults.is_empty() && !machine.stood() {
        let why = "someone else resumed the guest while its memory was copied";
        frozen.faults.push(why.to_owned());
    }
    Ok(Snapshot {
        fired,
        frozen,
        copied: Some(copied.bytes()),
        memory: Memory::Copy(Arc::new(copied)),
        timings,
        taken: start,
        freeze,
    })
}

#[cfg(test)]
mod tests;
