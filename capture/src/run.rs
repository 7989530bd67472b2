//! `capture run`: a scheduler in a fresh guest, and a capture when it fails.
//!
//! [`follow`] is the coordinator. It knows a [`Machine`] and no backend:
//!
//! ```text
//! booting ──kernel found──▶ watching ──exit kind set──▶ failing ──dump written──▶ held ──▶ written
//!    │                         │  └── panic, console, signal, time ───────────────▶ held
//!    └────── guest ended ──────┴───────────────────────────────▶ ended, nothing written
//! ```
//!
//! The moment is the return of the kernel's `scx_dump_state()`: the failure is noted, the kernel's
//! own dump is in memory, and no queue has been touched. A hardware breakpoint leads there; without
//! one, the exit kind is polled, which may come too late for the queues and is recorded as such.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use scx_postmortem_format::capture::{
    AtomicFile, CaptureSpec, Existing, Manifest, MissingItem, Note, SourceInfo, Summary, Timings,
    ToolInfo, Trigger, WriteOptions, WriteProgress, note_types, write_capture,
};

use crate::machine::{Event, Frozen, Machine, MachineError};
use crate::watch::Live;

/// Bytes of the console that a capture keeps.
pub(crate) const CONSOLE_TAIL: usize = 64 << 10;
/// How often memory is looked at while the guest runs.
const TICK: Duration = Duration::from_millis(50);
/// How often the kernel is looked for while the guest boots.
const SEARCH: Duration = Duration::from_millis(500);
/// Time in which all vCPUs have to stop.
const FREEZE: Duration = Duration::from_secs(10);
/// Time that the kernel gets to write its own dump, on a host that emulates it slowly.
const DUMP: Duration = Duration::from_secs(20);
/// Time from a polled exit kind to the breakpoint that should follow at once.
const GRACE: Duration = Duration::from_secs(3);
/// What the kernel writes when it is at its end.
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// Which moments are worth a capture besides a scheduler's failure.
#[derive(Debug, Clone, Default)]
pub(crate) struct Triggers {
    /// Any of these on the console.
    pub(crate) console: Vec<String>,
    /// So long after the start.
    pub(crate) after: Option<Duration>,
    /// Set by a signal: take a capture now.
    pub(crate) now: Arc<AtomicBool>,
    /// Set by a signal: end.
    pub(crate) end: Arc<AtomicBool>,
    /// So long after the start the guest is ended without a capture.
    pub(crate) timeout: Option<Duration>,
}

/// Why a guest is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fired {
    /// Stable name: `scx_exit`, `panic`, `console`, `signal`, `time`.
    pub(crate) kind: &'static str,
    /// For people.
    pub(crate) detail: String,
}

impl Fired {
    /// Whether something failed, or a capture was only asked for.
    pub(crate) fn is_failure(&self) -> bool {
        !matches!(self.kind, "signal" | "time")
    }
}

/// How a run came to its end.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The guest is held for a capture.
    Held {
        /// Why.
        fired: Fired,
        /// Its vCPUs.
        frozen: Frozen,
    },
    /// The guest ended, and nothing had failed.
    Ended {
        /// What its machine said.
        how: String,
        /// The last thing that init said.
        said: Option<String>,
    },
    /// The time was over.
    TimeOver,
    /// We were asked to end.
    Interrupted,
}

/// What the coordinator knows of the run.
pub(crate) struct Run {
    triggers: Triggers,
    started: Instant,
    live: Option<Live>,
    searched: Option<Instant>,
    why_not: String,
    console: Vec<u8>,
    /// How much of `console` was searched.
    seen: usize,
    said: Option<String>,
    attached: Option<String>,
    phase: Phase,
    /// Progress for whoever watches.
    tell: Box<dyn Fn(&str)>,
    /// Where the console's output goes besides.
    echo: Option<Box<dyn Fn(&[u8])>>,
}

/// Where the coordinator is once the kernel was found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Waiting for the function that follows a failure.
    Watching,
    /// An exit kind was seen by polling; the breakpoint should follow.
    Expected { since: Instant, detail: String },
    /// In that function; waiting for its return.
    Dumping {
        since: Instant,
        detail: Option<String>,
    },
}

impl Run {
    pub(crate) fn new(
        triggers: Triggers,
        tell: Box<dyn Fn(&str)>,
        echo: Option<Box<dyn Fn(&[u8])>>,
    ) -> Self {
        Self {
            triggers,
            started: Instant::now(),
            live: None,
            searched: None,
            why_not: String::new(),
            console: Vec::new(),
            seen: 0,
            said: None,
            attached: None,
            phase: Phase::Watching,
            tell,
            echo,
        }
    }

    /// The end of the console's output.
    pub(crate) fn console_tail(&self) -> &[u8] {
        let from = self.console.len().saturating_sub(CONSOLE_TAIL);
        self.console.get(from..).unwrap_or_default()
    }

    /// Follows a guest until it is held or over.
    pub(crate) fn follow(&mut self, machine: &mut dyn Machine) -> Result<Outcome, MachineError> {
        loop {
            if let Some(event) = machine.wait(TICK)? {
                match event {
                    Event::Ended { how } => {
                        self.listen(machine);
                        return Ok(Outcome::Ended {
                            how,
                            said: self.said.clone(),
                        });
                    }
                    Event::Breakpoint { rip, rsp } => {
                        if let Some(fired) = self.arrived(machine, rip, rsp)? {
                            return hold(machine, fired);
                        }
                        continue;
                    }
                }
            }
            if self.triggers.end.load(Ordering::Relaxed) {
                return Ok(Outcome::Interrupted);
            }
            if let Some(fired) = self.listen(machine).or_else(|| self.clock()) {
                return hold(machine, fired);
            }
            if let Some(fired) = self.look(machine)? {
                return hold(machine, fired);
            }
            let over = |limit: Duration| self.started.elapsed() >= limit;
            if self.triggers.timeout.is_some_and(over) {
                return Ok(Outcome::TimeOver);
            }
        }
    }

    fn clock(&self) -> Option<Fired> {
        if self.triggers.now.swap(false, Ordering::Relaxed) {
            return Some(Fired {
                kind: "signal",
                detail: "SIGUSR1 to capture".into(),
            });
        }
        let after = self.triggers.after?;
        (self.started.elapsed() >= after).then(|| Fired {
            kind: "time",
            detail: format!("{} s after the start", after.as_secs()),
        })
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
        let longest = patterns
            .map(<[u8]>::len)
            .max()
            .unwrap_or(0)
            .max(PANIC.len());
        // A pattern may have come in two pieces.
        let from = self.seen.saturating_sub(longest);
        self.seen = self.console.len();
        let new = self.console.get(from..)?;
        let line_at = |at: usize| {
            let rest = new.get(at..).unwrap_or_default();
            let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            String::from_utf8_lossy(rest.get(..end).unwrap_or_default())
                .trim()
                .to_owned()
        };
        if let Some(at) = memchr::memmem::find(new, PANIC) {
            return Some(Fired {
                kind: "panic",
                detail: line_at(at),
            });
        }
        self.triggers.console.iter().find_map(|pattern| {
            let at = memchr::memmem::find(new, pattern.as_bytes())?;
            Some(Fired {
                kind: "console",
                detail: line_at(at),
            })
        })
    }

    /// Looks at the running guest's memory.
    fn look(&mut self, machine: &mut dyn Machine) -> Result<Option<Fired>, MachineError> {
        let Some(live) = &self.live else {
            self.search_kernel(machine)?;
            return Ok(None);
        };
        let attached = match live.attached() {
            Ok(attached) => attached,
            // Torn: the next look is 50 ms away.
            Err(_) => return Ok(None),
        };
        let name = attached.as_ref().map(|a| a.name.clone());
        if name != self.attached {
            if let Some(name) = &name {
                (self.tell)(&format!("scheduler {name}"));
            }
            self.attached = name;
        }
        let failed = attached.filter(|a| live.is_error(a.exit_kind));
        match (&self.phase, failed) {
            (Phase::Watching, Some(failed)) => {
                let detail = format!("{}: {}", failed.name, live.kind_name(failed.exit_kind));
                self.phase = Phase::Expected {
                    since: Instant::now(),
                    detail,
                };
            }
            (Phase::Expected { since, detail }, _) if since.elapsed() > GRACE => {
                return Ok(Some(Fired {
                    kind: "scx_exit",
                    detail: format!("{detail} (polled; the breakpoint did not fire)"),
                }));
            }
            (
                Phase::Dumping {
                    since,
                    detail: Some(detail),
                },
                _,
            ) if since.elapsed() > DUMP => {
                return Ok(Some(Fired {
                    kind: "scx_exit",
                    detail: format!("{detail} (the kernel's dump was not finished)"),
                }));
            }
            _ => {}
        }
        Ok(None)
    }

    fn search_kernel(&mut self, machine: &mut dyn Machine) -> Result<(), MachineError> {
        let soon = |at: Instant| at.elapsed() < SEARCH;
        // Before its first word there is no kernel to find.
        if self.console.is_empty() || self.searched.is_some_and(soon) {
            return Ok(());
        }
        match Live::find(machine.memory()?) {
            Ok(live) => {
                (self.tell)(&format!("kernel {}", live.release()));
                if !live.has_sched_ext() {
                    (self.tell)(
                        "this kernel has no sched_ext: only panics and the console are watched",
                    );
                } else if let Some(at) = live.dump_function() {
                    machine.break_at(Some(at.0))?;
                }
                self.live = Some(live);
            }
            Err(why) => self.why_not = why,
        }
        self.searched = Some(Instant::now());
        Ok(())
    }

    /// A vCPU stands where we wanted it.
    fn arrived(
        &mut self,
        machine: &mut dyn Machine,
        rip: u64,
        rsp: u64,
    ) -> Result<Option<Fired>, MachineError> {
        let Some(live) = &self.live else {
            machine.resume()?;
            return Ok(None);
        };
        let entry = live.dump_function().map(|at| at.0);
        if entry == Some(rip) {
            // The dump is also written on SysRq-D, with nothing wrong.
            let failed = live.failure();
            let back = live.return_address(rsp).ok().map(|at| at.0);
            self.phase = Phase::Dumping {
                since: Instant::now(),
                detail: failed.clone(),
            };
            match (back, failed) {
                (Some(back), _) => {
                    machine.break_at(Some(back))?;
                    machine.resume()?;
                    return Ok(None);
                }
                (None, Some(detail)) => {
                    return Ok(Some(Fired {
                        kind: "scx_exit",
                        detail: format!("{detail} (at the entry of scx_dump_state)"),
                    }));
                }
                (None, None) => {}
            }
        }
        if let Phase::Dumping {
            detail: Some(detail),
            ..
        } = &self.phase
        {
            return Ok(Some(Fired {
                kind: "scx_exit",
                detail: format!("{detail} (at the return of scx_dump_state)"),
            }));
        }
        self.phase = Phase::Watching;
        machine.break_at(entry)?;
        machine.resume()?;
        Ok(None)
    }

    /// What the capture of a held guest contains besides its memory.
    fn spec(
        &self,
        machine: &mut dyn Machine,
        fired: &Fired,
        frozen: &Frozen,
    ) -> Result<CaptureSpec<'static>, MachineError> {
        let (kind, detail) = machine.describe();
        let mut notes = frozen.registers.clone();
        let mut missing = Vec::new();
        match &self.live {
            Some(live) => notes.push(Note::vmcoreinfo(live.vmcoreinfo())),
            None => missing.push(MissingItem {
                what: "kernel".into(),
                reason: self.why_not.clone(),
            }),
        }
        notes.push(Note::scxpm(
            note_types::CONSOLE,
            self.console_tail().to_vec(),
        ));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let manifest = Manifest {
            version: 1,
            tool: ToolInfo {
                name: "capture run".into(),
                version: env!("CARGO_PKG_VERSION").into(),
            },
            source: SourceInfo {
                kind: kind.into(),
                detail: Some(detail),
                ..SourceInfo::default()
            },
            kernel_release: self.live.as_ref().map(|live| live.release().to_owned()),
            cpus: machine.vcpus(),
            trigger: Some(Trigger {
                kind: fired.kind.into(),
                detail: Some(fired.detail.clone()),
                ..Trigger::default()
            }),
            timings: Some(Timings {
                taken_unix_ns: now.ok().and_then(|d| u64::try_from(d.as_nanos()).ok()),
                ..Timings::default()
            }),
            degraded: frozen.not_parked.clone(),
            missing,
            ..Manifest::default()
        };
        Ok(CaptureSpec {
            memory: machine.memory()?.extents(),
            manifest,
            notes,
            ..CaptureSpec::default()
        })
    }

    /// Writes the capture of a held guest. The guest stands still meanwhile and ends afterwards.
    pub(crate) fn write(
        &self,
        machine: &mut dyn Machine,
        fired: &Fired,
        frozen: &Frozen,
        output: &std::path::Path,
        existing: Existing,
        level: i32,
        show: &(dyn Fn(WriteProgress) -> ControlFlow<()> + Sync),
    ) -> Result<Summary, String> {
        let failed = |cause: &dyn std::fmt::Display| format!("{}: {cause}", output.display());
        let spec = self.spec(machine, fired, frozen).map_err(|e| failed(&e))?;
        let mut file = AtomicFile::create(output, existing).map_err(|e| failed(&e))?;
        let options = WriteOptions {
            level,
            progress: Some(show),
            ..WriteOptions::default()
        };
        let memory = machine.memory().map_err(|e| failed(&e))?;
        let summary =
            write_capture(file.file(), &spec, memory, &options).map_err(|e| failed(&e))?;
        file.commit().map_err(|e| failed(&e))?;
        Ok(summary)
    }
}

fn hold(machine: &mut dyn Machine, fired: Fired) -> Result<Outcome, MachineError> {
    let frozen = machine.freeze(FREEZE)?;
    Ok(Outcome::Held { fired, frozen })
}
