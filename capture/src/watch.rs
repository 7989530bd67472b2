//! What a running guest's kernel says of its scheduler, read out of its memory while it runs.
//!
//! Reads `scx_root` → `scx_sched` (`exit_kind`, `ops.name`, `watchdog_timeout`), the runnable lists of `rq->scx` and
//! `scx_watchdog_timestamp`. Everything read can be torn, since nothing is stopped: a value is
//! acted upon only where a wrong one does no harm, or after it was read again.

use std::time::Duration;

use scx_postmortem_analyze::addr::Kva;
use scx_postmortem_analyze::error::Result;
use scx_postmortem_analyze::kernel::vmcoreinfo::Vmcoreinfo;
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::monitor::Sampler;
use scx_postmortem_analyze::object::Object;
use scx_postmortem_analyze::probe::Latch;
pub(crate) use scx_postmortem_analyze::probe::LatchState;
use scx_postmortem_analyze::source::Image;
use scx_postmortem_analyze::walk::{Limits, Remarks, clock, sched};

use scx_postmortem_format::capture::{Note, Timeline};

use crate::machine::{GuestMemory, Touched};

/// `SCX_EXIT_ERROR`: this kind and all above it are failures.
const FIRST_ERROR: i64 = 1024;
/// Most tasks of a CPU that are looked at.
const MAX_RUNNABLE: usize = 4096;
/// How far apart the monitor's samples are.
pub(crate) const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// An age above this is a torn read (the contract's section 6.13).
const MAX_AGE: u64 = 86_400_000;

/// Sees what goes on in a guest's kernel. The coordinator knows nothing else of kernels.
pub(crate) trait Eyes {
    /// Looks for the kernel of a guest that runs, or says why it cannot be found yet.
    fn find(&mut self, memory: &GuestMemory) -> std::result::Result<Found, String>;

    /// Looks at the guest while it runs, with `ages` also for how long tasks have waited. `None`: what was read was torn; look again.
    fn look(&mut self, ages: bool) -> Option<Seen>;

    /// The scheduler that has failed, looked for among all of them. Only of a guest that stands
    /// still.
    fn failure(&self) -> Option<Scheduler>;

    /// Takes a sample for the timeline, so long after the start.
    fn sample(&mut self, at: Duration);

    /// The return address that a function finds on its stack when it is entered.
    fn return_address(&self, rsp: u64) -> Option<u64>;
}

/// The kernel that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// `uname -r`.
    pub(crate) release: String,
    /// The text of VMCOREINFO.
    pub(crate) vmcoreinfo: Vec<u8>,
    pub(crate) has_sched_ext: bool,
    /// Entry of `scx_dump_state`: where the kernel goes once a scheduler has failed, and before it
    /// touches any queue.
    pub(crate) dump_entry: Option<u64>,
    /// Why an early image cannot be waited for.
    pub(crate) no_ages: Option<String>,
}

/// What was seen at one look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The scheduler that is attached.
    pub(crate) scheduler: Option<Scheduler>,
    /// The longest time that a task has been runnable for, or that the watchdog has not run for,
    /// in jiffies.
    pub(crate) oldest_age: Option<u64>,
    /// Half of the watchdog's limit, in jiffies.
    pub(crate) half_timeout: Option<u64>,
    /// What the latch of the probe says.
    pub(crate) latch: LatchState,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            scheduler: None,
            oldest_age: None,
            half_timeout: None,
            latch: LatchState::NotResolved,
        }
    }
}

/// A scheduler.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scheduler {
    /// Its `struct scx_sched`.
    pub(crate) at: u64,
    /// `ops.name`.
    pub(crate) name: String,
    /// `exit_kind`: 0 while all is well.
    pub(crate) exit_kind: i64,
    /// Its name.
    pub(crate) exit_name: String,
    /// Where it is.
    pub(crate) exit_kind_at: u64,
    /// Whether that kind is a failure.
    pub(crate) failed: bool,
    /// Where the kernel notes the kind once more when it has written down the reason
    /// (`scx_exit_info.kind`).
    pub(crate) recorded_at: Option<u64>,
    /// Whether it has.
    pub(crate) recorded: bool,
}

impl Scheduler {
    /// Name and exit kind, for people.
    pub(crate) fn words(&self) -> String {
        format!("{}: {}", self.name, self.exit_name)
    }
}

/// The kernel of a running guest.
#[derive(Default)]
pub(crate) struct Live {
    known: Option<Known>,
    sampler: Option<Sampler>,
    timeline: Option<Timeline>,
    /// The probe's, once it was found; whether it is worth looking for.
    latch: Option<Latch>,
    probe: bool,
    /// The scheduler that was there when it was looked for.
    searched_at: Option<u64>,
}

struct Known {
    kernel: Kernel,
    first_error: i64,
    /// `SCX_TASK_QUEUED` and `SCX_TASK_RESET_RUNNABLE_AT` of `enum scx_ent_flags`.
    queued: u64,
    reset: u64,
}

impl Eyes for Live {
    fn find(&mut self, memory: &GuestMemory) -> std::result::Result<Found, String> {
        let touched = Touched::new(memory).map_err(|e| e.to_string())?;
        let mut why = "no VMCOREINFO in the guest's memory yet".to_owned();
        for candidate in Vmcoreinfo::scan(&touched) {
            let own = memory.share().map_err(|e| e.to_string())?;
            let image = Image::live(Box::new(own), candidate.text().as_bytes().to_vec());
            match Kernel::find(image, &Overrides::default()) {
                Ok(kernel) => return Ok(self.take(kernel)),
                Err(reason) => why = reason,
            }
        }
        Err(why)
    }

    fn look(&mut self, ages: bool) -> Option<Seen> {
        let known = self.known.as_ref()?;
        let scheduler = known.attached().ok()?;
        let ages = scheduler.as_ref().filter(|s| ages && s.exit_kind == 0);
        let ages = ages.and_then(|s| known.ages(Kva(s.at)).ok());
        // It is loaded before any scheduler, and looking for it takes a walk over all maps.
        let at = scheduler.as_ref().map(|scheduler| scheduler.at);
        if self.probe && self.latch.is_none() && at.is_some() && at != self.searched_at {
            self.latch = Latch::find(&known.kernel);
            self.searched_at = at;
        }
        let latch = self.latch.as_ref();
        Some(Seen {
            latch: latch.map_or(LatchState::NotResolved, |latch| latch.state(&known.kernel)),
            oldest_age: ages.map(|(oldest, _)| oldest),
            half_timeout: ages.map(|(_, half)| half),
            scheduler,
        })
    }

    fn failure(&self) -> Option<Scheduler> {
        let known = self.known.as_ref()?;
        let mut remarks = Remarks::default();
        let found = sched::find(&known.kernel, &Limits::default(), &mut remarks);
        let all = found.all.iter();
        let mut all = all.filter_map(|sched| known.of(sched.object).ok());
        all.find(|scheduler| scheduler.failed)
    }

    fn sample(&mut self, at: Duration) {
        if let (Some(known), Some(sampler), Some(timeline)) =
            (&self.known, &mut self.sampler, &mut self.timeline)
        {
            let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
            timeline.push(&sampler.sample(&known.kernel, at_ms));
        }
    }

    fn return_address(&self, rsp: u64) -> Option<u64> {
        let at = self.known.as_ref()?.kernel.read_ptr(Kva(rsp)).ok()?;
        (!at.is_null()).then_some(at.0)
    }
}

impl Live {
    /// With a probe in the guest to look for, or none.
    pub(crate) fn new(probe: bool) -> Self {
        Self {
            probe,
            ..Self::default()
        }
    }

    /// The samples, for a capture.
    pub(crate) fn timeline(&self) -> Option<Note> {
        let timeline = self.timeline.as_ref().filter(|t| !t.is_empty());
        timeline.map(Timeline::to_note)
    }

    fn take(&mut self, kernel: Kernel) -> Found {
        let names = [
            "scx_dump_state",
            "scx_dump_state.isra.0",
            "scx_dump_state.constprop.0",
        ];
        let dump = names.iter().find_map(|name| kernel.symbol(name).ok());
        let has_sched_ext = scx_postmortem_analyze::analysis::has_sched_ext(&kernel);
        let flag = |name: &str| {
            let value = kernel.constant("enum scx_ent_flags", name)?;
            Ok::<_, scx_postmortem_analyze::error::Error>(u64::try_from(value).unwrap_or(0))
        };
        let flags = flag("SCX_TASK_QUEUED").and_then(|queued| {
            let reset = flag("SCX_TASK_RESET_RUNNABLE_AT")?;
            kernel.symbol("jiffies_64").or(kernel.symbol("jiffies"))?;
            Ok((queued, reset))
        });
        let found = Found {
            release: kernel.release().to_owned(),
            vmcoreinfo: kernel.vmcoreinfo.text().as_bytes().to_vec(),
            dump_entry: dump.filter(|_| has_sched_ext).map(|at| at.0),
            no_ages: flags.as_ref().err().map(ToString::to_string),
            has_sched_ext,
        };
        // Without run queues there is nothing to sample.
        self.sampler = Sampler::new(&kernel).ok();
        self.timeline = self.sampler.as_ref().map(|_| {
            let every = SAMPLE_EVERY.as_millis();
            Timeline::new(u64::try_from(every).unwrap_or(u64::MAX))
        });
        let (queued, reset) = flags.unwrap_or((0, 0));
        let first_error = kernel.constant("enum scx_exit_kind", "SCX_EXIT_ERROR");
        self.known = Some(Known {
            first_error: first_error.unwrap_or(FIRST_ERROR),
            queued,
            reset,
            kernel,
        });
        found
    }
}

impl Known {
    /// The scheduler that is attached, if any.
    fn attached(&self) -> Result<Option<Scheduler>> {
        let root = self.kernel.read_ptr(self.kernel.symbol("scx_root")?)?;
        if root.is_null() {
            return Ok(None);
        }
        let sched = self.kernel.object("struct scx_sched", root)?;
        self.of(sched).map(Some)
    }

    fn of(&self, sched: Object<'_>) -> Result<Scheduler> {
        let kind = sched.first_of(&["exit_kind.counter", "exit_kind"])?;
        let exit_kind = kind.i64()?;
        let ty = self.kernel.btf.find("enum scx_exit_kind").ok();
        let name = ty.and_then(|ty| self.kernel.btf.enumerator_name(ty, exit_kind));
        // Filled behind the exit kind, and before the kernel's dump.
        let record = sched.member("exit_info").and_then(|info| info.ptr());
        let record = record.ok().filter(|at| !at.is_null()).and_then(|at| {
            let kind = self.kernel.object("struct scx_exit_info", at).ok()?;
            let kind = kind.member("kind").ok()?;
            Some((kind.address().0, kind.i64().ok()? != 0))
        });
        Ok(Scheduler {
            recorded_at: record.map(|(at, _)| at),
            recorded: record.is_some_and(|(_, recorded)| recorded),
            at: sched.address().0,
            name: sched.member("ops.name")?.text()?,
            exit_kind,
            exit_name: name.map_or_else(|| format!("exit kind {exit_kind}"), str::to_owned),
            exit_kind_at: kind.address().0,
            failed: exit_kind >= self.first_error,
        })
    }

    /// The oldest age and half the watchdog's limit, in jiffies (the contract's section 6.13).
    fn ages(&self, sched: Kva) -> Result<(u64, u64)> {
        let kernel = &self.kernel;
        let sched = kernel.object("struct scx_sched", sched)?;
        // A member of each scheduler from 7.1 on.
        let timeout = match sched.member("watchdog_timeout") {
            Ok(own) => own.u64()?,
            Err(_) => kernel.read_u64(kernel.symbol("scx_watchdog_timeout")?)?,
        };
        let now = clock::jiffies(kernel)?;
        let since = |at: u64| now.saturating_sub(at);
        let mut oldest = 0;
        let checked = kernel.read_u64(kernel.symbol("scx_watchdog_timestamp")?)?;
        // The watchdog runs every half of the limit, and timers come an eighth late: up to there
        // its age says nothing, where the contract would take the half.
        let late = timeout - timeout / 4;
        if checked != 0 && (late..=MAX_AGE).contains(&since(checked)) {
            oldest = since(checked);
        }
        for cpu in kernel.cpus() {
            let rq = kernel.per_cpu_object("runqueues", "struct rq", cpu)?;
            let head = rq.member("scx.runnable_list")?.address();
            for node in kernel.list(head, MAX_RUNNABLE).items {
                let Ok(age) = self.age(node, now) else {
                    // The list has moved on under us.
                    break;
                };
                oldest = oldest.max(age.filter(|&age| age <= MAX_AGE).unwrap_or(0));
            }
        }
        Ok((oldest, timeout / 2))
    }

    fn age(&self, node: Kva, now: u64) -> Result<Option<u64>> {
        let task = self
            .kernel
            .entry("struct task_struct", "scx.runnable_node", node)?;
        let flags = task.member("scx.flags")?.u64()?;
        let at = task.member("scx.runnable_at")?.u64()?;
        let waits = flags & self.queued != 0 && flags & self.reset == 0 && at != 0;
        Ok(waits.then(|| now.saturating_sub(at)))
    }
}
