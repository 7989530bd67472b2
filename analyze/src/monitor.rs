//! Samples of a running guest, read out of its memory without stopping it.
//!
//! Reads what the walkers of run queues, dispatch queues, event counters and pressure read
//! (`walk/rq.rs`, `dsq.rs`, `events.rs`, `psi.rs`), of a kernel whose image is live memory, ten
//! times a second. Two things differ. Names are resolved once, when the [`Sampler`] is made, and
//! each structure is fetched with one read. And whatever is read can be torn, since nothing
//! stands still: a value is looked at again when it cannot be right, and is absent when it still
//! cannot. Counters and clocks never go back, depths have a bound, ages are within the guest's
//! life, and what was read through a scheduler counts only if that scheduler was still attached
//! when all of it had been read (`scx_root` is cleared before a scheduler is freed).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use scx_postmortem_format::capture::{
    Attached, CpuSample, DsqSample, PsiSample, Sample, SeenScheduler, WaitingSample,
};

use crate::addr::Kva;
use crate::bytes::{array, le_u64, to_usize};
use crate::error::{Error, Result};
use crate::kernel::{Kernel, WalkEnd};
use crate::object::Object;
use crate::walk::psi;

/// `PID_MAX_LIMIT`: no queue is deeper.
const MAX_DEPTH: u64 = 1 << 22;
/// Tasks of all runnable lists that one sample looks at. Each CPU has an equal share, to which
/// comes what others leave.
const MAX_WAITING: usize = 2048;
/// Queues of a scheduler's own that one sample looks at.
const MAX_DSQS: usize = 512;
/// Buckets of their hash table, in one read.
const MAX_BUCKETS: u64 = 1 << 13;
/// NUMA nodes.
const MAX_NODES: u32 = 64;
/// Members of `struct scx_event_stats`.
const MAX_COUNTERS: usize = 256;
/// Bytes of one structure that is fetched whole.
const MAX_SPAN: u64 = 1 << 16;
/// A counter or clock that moved further between two samples was torn: an hour of nanoseconds.
const MAX_STEP: i64 = 3_600_000_000_000;
/// How often the clock is read again while the kernel writes it.
const CLOCK_TRIES: usize = 4;

/// One member in the bytes of a [`Span`].
#[derive(Debug, Clone, Copy)]
struct Slot {
    at: usize,
    size: usize,
    signed: bool,
}

/// Members of one type that are fetched together.
#[derive(Debug, Clone)]
struct Span {
    /// Where the first of them begins.
    from: u64,
    len: u64,
    /// In the order that was asked for; none for a member that this kernel lacks.
    slots: Vec<Option<Slot>>,
}

impl Span {
    /// Resolves members, each given as its names, newest first. What this kernel does not have is
    /// absent later; integers and pointers only.
    fn new(kernel: &Kernel, ty: &str, members: &[&[&'static str]]) -> Result<Self> {
        let base = kernel.object(ty, Kva::NULL)?;
        let found = members.iter().map(|names| match base.first_of(names) {
            Ok(member) => Ok(Some(member)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        });
        Self::of(found.collect::<Result<_>>()?)
    }

    /// Members of one object at address 0.
    fn of(members: Vec<Option<Object<'_>>>) -> Result<Self> {
        let mut places = Vec::with_capacity(members.len());
        for member in members {
            places.push(match member {
                Some(member) => Some((member.address().0, width(&member)?)),
                None => None,
            });
        }
        let known = || places.iter().flatten();
        let from = known().map(|(at, _)| *at).min().unwrap_or(0);
        let end = known()
            .map(|(at, (size, _))| at.saturating_add(*size))
            .max();
        let len = end.unwrap_or(0).saturating_sub(from);
        if len > MAX_SPAN {
            return Err(Error::Implausible {
                what: "the distance of two members of one structure".into(),
                found: format!("{len} bytes"),
                why: "at most 64 KiB",
            });
        }
        let slots = places.into_iter().map(|place| {
            place.map(|(at, (size, signed))| Slot {
                at: to_usize(at - from),
                size: to_usize(size),
                signed,
            })
        });
        Ok(Self {
            from,
            len,
            slots: slots.collect(),
        })
    }

    fn read(&self, kernel: &Kernel, at: Kva) -> Result<Values<'_>> {
        Ok(Values {
            span: self,
            bytes: kernel.read_bytes(at.add(self.from), self.len)?,
        })
    }
}

/// Size and sign of an integer, a pointer, or a struct that wraps one (`atomic_t`).
fn width(member: &Object<'_>) -> Result<(u64, bool)> {
    let btf = &member.kernel().btf;
    if btf.pointee(member.ty()).is_some() {
        return Ok((8, false));
    }
    let inner = match btf.integer(member.ty()) {
        Some(info) => Some(info),
        None => member
            .member("counter")
            .ok()
            .and_then(|c| btf.integer(c.ty())),
    };
    let info = inner.filter(|info| matches!(info.size, 1 | 2 | 4 | 8));
    let info = info.ok_or_else(|| Error::WrongType {
        what: format!("the member at {}", member.address()),
        expected: "an integer or a pointer",
        found: member.type_name(),
    })?;
    Ok((u64::from(info.size), info.signed))
}

/// The values of a [`Span`].
struct Values<'s> {
    span: &'s Span,
    bytes: Vec<u8>,
}

impl Values<'_> {
    /// The member that was asked for as number `index`; sign-extended.
    fn raw(&self, index: usize) -> Option<u64> {
        let slot = (*self.span.slots.get(index)?)?;
        let bytes = self.bytes.get(slot.at..slot.at.checked_add(slot.size)?)?;
        let value = match slot.size {
            1 => array(bytes, 0).map(u8::from_le_bytes).map(u64::from),
            2 => array(bytes, 0).map(u16::from_le_bytes).map(u64::from),
            4 => array(bytes, 0).map(u32::from_le_bytes).map(u64::from),
            _ => le_u64(bytes, 0),
        }?;
        let bits = slot.size * 8;
        let negative = slot.signed && bits < 64 && value >> (bits - 1) & 1 == 1;
        Some(if negative {
            value | u64::MAX << bits
        } else {
            value
        })
    }

    fn signed(&self, index: usize) -> Option<i64> {
        self.raw(index).map(u64::cast_signed)
    }

    fn ptr(&self, index: usize) -> Option<Kva> {
        self.raw(index).map(Kva)
    }

    /// The depth of a queue, if it can be one.
    fn depth(&self, index: usize) -> Option<u32> {
        let depth = self.raw(index).filter(|&depth| depth <= MAX_DEPTH)?;
        u32::try_from(depth).ok()
    }
}

/// `struct rq`, in the order of the members in [`Sampler::new`].
mod rq {
    pub(super) const NR_RUNNING: usize = 0;
    pub(super) const CLOCK: usize = 1;
    pub(super) const SCX_NR_RUNNING: usize = 2;
    pub(super) const LOCAL_DSQ: usize = 3;
    pub(super) const BYPASS_DSQ: usize = 4;
    pub(super) const RUNNABLE: usize = 5;
}

mod sched {
    pub(super) const EXIT_KIND: usize = 0;
    pub(super) const BYPASS_DEPTH: usize = 1;
    pub(super) const PCPU: usize = 2;
    pub(super) const EVENTS: usize = 3;
    pub(super) const NODES: usize = 4;
    pub(super) const DSQ_TABLE: usize = 5;
}

mod task {
    pub(super) const NEXT: usize = 0;
    pub(super) const RUNNABLE_AT: usize = 1;
    pub(super) const FLAGS: usize = 2;
}

mod table {
    pub(super) const SIZE: usize = 0;
    pub(super) const NEST: usize = 1;
    pub(super) const FUTURE: usize = 2;
}

mod dsq {
    pub(super) const ID: usize = 0;
    pub(super) const NR: usize = 1;
    pub(super) const NEXT: usize = 2;
    pub(super) const SCHED: usize = 3;
}

mod time {
    pub(super) const SEQUENCE: usize = 0;
    pub(super) const SHIFT: usize = 1;
    pub(super) const NSEC: usize = 2;
    pub(super) const SEC: usize = 3;
    pub(super) const MONO_SEC: usize = 4;
    pub(super) const MONO_NSEC: usize = 5;
    pub(super) const BOOT: usize = 6;
}

/// Everything that samples need of a kernel, resolved.
#[derive(Debug)]
pub struct Sampler {
    missing: Vec<String>,
    hz: u64,
    jiffies: Option<Kva>,
    timekeeper: Option<(Kva, Span)>,
    /// Each possible CPU and its run queue.
    cpus: Vec<(u32, Kva)>,
    rq: Span,
    /// Where the list of runnable tasks begins in a run queue.
    runnable: Option<u64>,
    task: Option<Waiting>,
    root: Option<Kva>,
    enable_seq: Option<Kva>,
    /// Up to 7.0 the bypass depth is a variable.
    bypass_depth: Option<Kva>,
    sched: Option<Schedulers>,
    psi: Option<psi::System>,
    names: Arc<[String]>,
    before: Before,
    /// [`MAX_WAITING`], or less for tests.
    most: usize,
    /// The CPU whose list is looked at first: another one each time, so that what the lists before
    /// it leave comes to each of them.
    first: AtomicUsize,
}

/// How long the task that waits longest has been runnable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldestAge {
    /// In jiffies; 0 when none waits.
    pub jiffies: u64,
    /// Its `struct task_struct`.
    pub task: Option<Kva>,
    /// There are more runnable tasks than were looked at: an older one may be among the rest.
    pub cut: bool,
}

/// A task on a runnable list.
#[derive(Debug)]
struct Waiting {
    /// From the node.
    span: Span,
    /// Where the node and the pid are in a task.
    node: u64,
    pid: u64,
    queued: u64,
    reset: u64,
}

/// What the runnable lists hold.
struct Runnable {
    found: WaitingSample,
    /// Whether there are more of them than one sample looks at.
    cut: bool,
    /// What ages count from.
    jiffies: u64,
    /// Age and node of the task that waits longest.
    oldest: Option<(u64, Kva)>,
}

/// What hangs below a `struct scx_sched`.
#[derive(Debug)]
struct Schedulers {
    span: Span,
    /// One CPU's: the event counters, and behind them the depth of the bypass DSQ where this
    /// kernel keeps it there.
    cpu: Span,
    /// Whether `cpu` is `scx_sched.event_stats_cpu`'s (6.16).
    bare: bool,
    counters: usize,
    nodes: u32,
    node: Span,
    table: Span,
    buckets: u64,
    dsq: Span,
    /// Where the node of the hash table is in a queue.
    hash_node: u64,
    builtin: u64,
}

/// The last sample's: what must not go back.
#[derive(Debug, Default)]
struct Before {
    uptime_ns: u64,
    clocks: Vec<Option<u64>>,
    scheduler: Option<SeenScheduler>,
    /// `scx_enable_seq`.
    seq: Option<u64>,
    /// What was attached, and its own number.
    own: Option<(Kva, u64)>,
    counters: Vec<Option<Vec<i64>>>,
}

impl Sampler {
    /// Resolves everything that samples of this kernel read. What is missing beside the run
    /// queues costs its own values: [`missing`](Self::missing) says what and why.
    ///
    /// # Errors
    /// When this kernel has no sched_ext, or the run queues cannot be found.
    pub fn new(kernel: &Kernel) -> Result<Self> {
        let runqueues = kernel.symbol("runqueues")?;
        let rq = Span::new(
            kernel,
            "struct rq",
            &[
                &["nr_running"],
                &["clock"],
                &["scx.nr_running"],
                &["scx.local_dsq.nr"],
                // 6.19 and 7.0.
                &["scx.bypass_dsq.nr"],
                &["scx.runnable_list.next"],
            ],
        )?;
        let none = kernel.object("struct rq", Kva::NULL)?;
        let runnable = none.member("scx.runnable_list")?.address().0;
        let cpus = kernel.cpus();
        let cpus = cpus.filter_map(|cpu| Some((cpu, kernel.per_cpu(runqueues, cpu)?)));
        let mut this = Self {
            missing: Vec::new(),
            hz: 0,
            jiffies: None,
            timekeeper: None,
            cpus: cpus.collect(),
            rq,
            runnable: Some(runnable),
            task: None,
            root: None,
            enable_seq: None,
            bypass_depth: kernel.symbol("scx_bypass_depth").ok(),
            sched: None,
            psi: None,
            names: Arc::default(),
            before: Before::default(),
            most: MAX_WAITING,
            first: AtomicUsize::new(0),
        };
        this.hz = this.ok("ages", kernel.hz()).map_or(0, |(hz, _)| hz);
        let jiffies = kernel
            .symbol("jiffies_64")
            .or_else(|_| kernel.symbol("jiffies"));
        this.jiffies = this.ok("ages", jiffies);
        this.timekeeper = this.ok("uptime", timekeeper(kernel));
        this.task = this.ok("waiting tasks", Waiting::find(kernel));
        this.root = this.ok("the scheduler", kernel.symbol("scx_root"));
        this.enable_seq = this.ok("the scheduler", kernel.symbol("scx_enable_seq"));
        if let Some((sched, names)) = this.ok("the scheduler", Schedulers::find(kernel)) {
            this.sched = Some(sched);
            this.names = names.into();
        }
        this.psi = this.ok("pressure", psi::System::find(kernel));
        Ok(this)
    }

    /// What samples of this kernel do not have, and why. Each a sentence.
    #[must_use]
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    fn ok<T>(&mut self, what: &str, found: Result<T>) -> Option<T> {
        found
            .map_err(|error| self.missing.push(format!("{what}: {error}")))
            .ok()
    }

    /// Takes a sample of the kernel that this was made for, `at_ms` milliseconds after the first.
    pub fn sample(&mut self, kernel: &Kernel, at_ms: u64) -> Sample {
        let mut sample = Sample {
            at_ms,
            uptime_ns: self.uptime(kernel),
            events: Arc::clone(&self.names),
            cpus: self
                .cpus
                .iter()
                .map(|&(cpu, _)| CpuSample {
                    cpu,
                    ..CpuSample::default()
                })
                .collect(),
            ..Sample::default()
        };
        self.run_queues(kernel, &mut sample);
        sample.waiting = self.waiting(kernel);
        // A scheduler that goes meanwhile leaves nothing that can be believed; the next look
        // finds what has come instead.
        if !self.scheduler(kernel, &mut sample) {
            clear(&mut sample);
            if !self.scheduler(kernel, &mut sample) {
                clear(&mut sample);
            }
        }
        if let Some(psi) = &self.psi {
            sample.psi = psi.read(kernel).unwrap_or_default();
        }
        sample
    }

    fn uptime(&mut self, kernel: &Kernel) -> Option<u64> {
        let (at, span) = self.timekeeper.as_ref()?;
        for _ in 0..CLOCK_TRIES {
            let first = span.read(kernel, *at).ok()?;
            let again = span.read(kernel, *at).ok()?;
            // Odd while it is being written (`seqcount_t`).
            let sequence = first.raw(time::SEQUENCE)?;
            if sequence & 1 == 1 || again.raw(time::SEQUENCE) != Some(sequence) {
                continue;
            }
            let uptime = uptime(&first);
            let step = uptime.and_then(|now| now.checked_sub(self.before.uptime_ns));
            if let Some(now) = uptime
                && (self.before.uptime_ns == 0
                    || step.is_some_and(|step| step <= MAX_STEP.unsigned_abs()))
            {
                self.before.uptime_ns = now;
                return Some(now);
            }
        }
        // A guest that was reset begins anew.
        self.before.uptime_ns = 0;
        None
    }

    fn run_queues(&mut self, kernel: &Kernel, sample: &mut Sample) {
        self.before.clocks.resize(self.cpus.len(), None);
        let rqs = self.cpus.iter().zip(&mut self.before.clocks);
        for ((&(_, at), clock), out) in rqs.zip(&mut sample.cpus) {
            let Ok(mut values) = self.rq.read(kernel, at) else {
                continue;
            };
            let clock_of = |values: &Values<'_>| {
                let now = values.raw(rq::CLOCK)?;
                let step = now.checked_sub((*clock).unwrap_or(0));
                let fine = step.is_some_and(|step| step <= MAX_STEP.unsigned_abs());
                (fine || clock.is_none()).then_some(now)
            };
            let mut now = clock_of(&values);
            let depths = [rq::NR_RUNNING, rq::SCX_NR_RUNNING, rq::LOCAL_DSQ];
            if now.is_none() || depths.iter().any(|&depth| values.depth(depth).is_none()) {
                match self.rq.read(kernel, at) {
                    Ok(again) => values = again,
                    Err(_) => continue,
                }
                now = clock_of(&values);
            }
            *clock = now;
            out.clock_ns = now;
            out.nr_running = values.depth(rq::NR_RUNNING);
            out.scx_nr_running = values.depth(rq::SCX_NR_RUNNING);
            out.local_dsq = values.depth(rq::LOCAL_DSQ);
            out.bypass_dsq = values.depth(rq::BYPASS_DSQ);
        }
    }

    /// Looks at `most` runnable tasks at a time instead of 2048.
    #[must_use]
    pub const fn looking_at(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// How long the task that waits longest has been runnable. `None`: not known for this kernel, or
    /// torn.
    #[must_use]
    pub fn oldest_age(&self, kernel: &Kernel) -> Option<OldestAge> {
        let found = self.runnable_tasks(kernel)?;
        Some(OldestAge {
            jiffies: found.oldest.map_or(0, |(age, _)| age),
            task: found
                .oldest
                .zip(self.task.as_ref())
                .map(|((_, node), task)| node.sub(task.node)),
            cut: found.cut,
        })
    }

    /// Walks the runnable lists.
    fn runnable_tasks(&self, kernel: &Kernel) -> Option<Runnable> {
        let task = self.task.as_ref()?;
        let offset = self.runnable?;
        let jiffies = kernel.read_u64(self.jiffies?).ok()?;
        let mut found = WaitingSample {
            all: true,
            ..WaitingSample::default()
        };
        let mut oldest: Option<(u64, Kva)> = None;
        // Lists that lead into each other must not multiply the work.
        let mut left = self.most;
        let mut cut = false;
        let count = self.cpus.len();
        let first = self.first.fetch_add(1, Ordering::Relaxed);
        let first = first.checked_rem(count).unwrap_or(0);
        let in_turn = self.cpus.iter().cycle().skip(first).take(count);
        for (done, &(_, at)) in in_turn.enumerate() {
            let mut budget = left.div_ceil((count - done).max(1));
            left -= budget;
            let head = at.add(offset);
            let values = self.rq.read(kernel, at).ok()?;
            let mut node = values.ptr(rq::RUNNABLE)?;
            while node != head {
                if budget == 0 {
                    (found.all, cut) = (false, true);
                    break;
                }
                budget -= 1;
                // A node that was taken off or freed meanwhile leads nowhere.
                if node.is_null() {
                    found.all = false;
                    break;
                }
                let Ok(values) = task.span.read(kernel, node.sub(task.node)) else {
                    found.all = false;
                    break;
                };
                let next = values.ptr(task::NEXT)?;
                let flags = values.raw(task::FLAGS)?;
                let since = values.raw(task::RUNNABLE_AT)?;
                found.tasks += 1;
                let age = jiffies.wrapping_sub(since);
                // Half of the range counts as future; runnable since before the boot is torn.
                let age = if age > u64::MAX / 2 { 0 } else { age };
                let waits = flags & task.queued != 0 && flags & task.reset == 0 && since != 0;
                // Of two that have waited as long, the same one whichever CPU comes first.
                let older = |(most, at): (u64, Kva)| age > most || age == most && node.0 < at.0;
                if waits && self.within_life(age) && oldest.is_none_or(older) {
                    oldest = Some((age, node));
                }
                // A node off its list points to itself (`list_del_init()`).
                if next == node {
                    found.all = false;
                    break;
                }
                node = next;
            }
            left += budget;
        }
        Some(Runnable {
            found,
            cut,
            jiffies,
            oldest,
        })
    }

    /// How many wait, and who waits longest; as the report counts it (`walk/tasks.rs`).
    fn waiting(&self, kernel: &Kernel) -> Option<WaitingSample> {
        let task = self.task.as_ref()?;
        if self.hz == 0 {
            return None;
        }
        let Runnable {
            mut found,
            jiffies,
            oldest,
            ..
        } = self.runnable_tasks(kernel)?;
        if let Some((age, node)) = oldest {
            let ms = u128::from(age) * 1000 / u128::from(self.hz);
            found.oldest_ms = u64::try_from(ms).unwrap_or(u64::MAX);
            let at = node.sub(task.node);
            let pid = kernel.read_u32(at.add(task.pid)).ok();
            // The same wait as before, so the pid is that of the task that waited.
            let again = task.span.read(kernel, at).ok()?;
            let same = again
                .raw(task::RUNNABLE_AT)
                .map(|since| jiffies.wrapping_sub(since));
            found.oldest_pid = pid
                .map(u32::cast_signed)
                .filter(|pid| same == Some(age) && (0..=1 << 22).contains(pid));
        }
        Some(found)
    }

    /// Whether a task can have waited so long.
    fn within_life(&self, jiffies: u64) -> bool {
        let life = self.before.uptime_ns / 1_000_000_000;
        life == 0 || jiffies / self.hz.max(1) <= life.saturating_add(2)
    }

    fn root(&self, kernel: &Kernel) -> Option<(Kva, Option<u64>)> {
        let root = kernel.read_ptr(self.root?).ok()?;
        let seq = self.enable_seq.and_then(|at| kernel.read_u64(at).ok());
        Some((root, seq))
    }

    /// Reads what belongs to the scheduler that is attached. `false` when it changed meanwhile.
    fn scheduler(&mut self, kernel: &Kernel, sample: &mut Sample) -> bool {
        let Some(identity @ (root, seq)) = self.root(kernel) else {
            return true;
        };
        let earlier = std::mem::replace(&mut self.before.seq, seq);
        if root.is_null() {
            sample.attached = Attached::Nothing;
            self.before.scheduler = None;
            self.before.own = None;
            return true;
        }
        let known = self.before.scheduler.take();
        let enable_seq = own_seq(self.before.own, root, earlier, seq);
        self.before.own = Some((root, enable_seq));
        let known = known.filter(|s| (s.kva, s.enable_seq) == (root.0, enable_seq));
        let new = known.is_none();
        let scheduler = known.or_else(|| {
            let object = kernel.object("struct scx_sched", root).ok()?;
            let name = object
                .member("ops.name")
                .and_then(|name| name.text())
                .ok()?;
            Some(SeenScheduler {
                name,
                kva: root.0,
                enable_seq,
            })
        });
        if new {
            self.before.counters = vec![None; self.cpus.len()];
        }
        let counters = self.sched.as_ref().map(|sched| {
            sched.read(
                kernel,
                root,
                self.bypass_depth,
                &self.before.counters,
                sample,
            )
        });
        if self.root(kernel) != Some(identity) {
            return false;
        }
        if let Some(counters) = counters {
            self.before.counters = counters;
        }
        if let Some(scheduler) = scheduler {
            sample.attached = Attached::Scheduler(scheduler.clone());
            self.before.scheduler = Some(scheduler);
        }
        true
    }
}

/// What `scx_enable_seq` is once the scheduler at `root` is enabled. `scx_root` is set when that
/// begins, and the number goes up when it is done (`scx_root_enable_workfn()`, kernel/sched/ext.c): one
/// that has come since the last look, with the number as it was, is still being enabled.
fn own_seq(known: Option<(Kva, u64)>, root: Kva, earlier: Option<u64>, seq: Option<u64>) -> u64 {
    let Some(seq) = seq else {
        return 0;
    };
    let enabled = seq.saturating_add(1);
    let begins = match known.filter(|&(at, _)| at == root) {
        Some((_, own)) => own == enabled,
        None => earlier == Some(seq),
    };
    if begins { enabled } else { seq }
}

/// Takes back what came from a scheduler that is gone.
fn clear(sample: &mut Sample) {
    sample.attached = Attached::Unknown;
    sample.exit_kind = None;
    sample.bypass_depth = None;
    sample.dsqs = None;
    for cpu in &mut sample.cpus {
        cpu.events = None;
    }
}

impl Waiting {
    fn find(kernel: &Kernel) -> Result<Self> {
        let task = kernel.object("struct task_struct", Kva::NULL)?;
        let flag = |name| -> Result<u64> {
            let value = kernel.constant("enum scx_ent_flags", name)?;
            Ok(value.cast_unsigned())
        };
        Ok(Self {
            span: Span::of(vec![
                Some(task.member("scx.runnable_node.next")?),
                Some(task.member("scx.runnable_at")?),
                Some(task.member("scx.flags")?),
            ])?,
            node: task.member("scx.runnable_node")?.address().0,
            pid: task.member("pid")?.address().0,
            queued: flag("SCX_TASK_QUEUED")?,
            reset: flag("SCX_TASK_RESET_RUNNABLE_AT")?,
        })
    }
}

impl Schedulers {
    /// Where everything is, and the names of the event counters.
    fn find(kernel: &Kernel) -> Result<(Self, Vec<String>)> {
        let span = Span::new(
            kernel,
            "struct scx_sched",
            &[
                &["exit_kind"],
                // 7.1 and later.
                &["bypass_depth"],
                // 6.17 and later.
                &["pcpu"],
                // 6.16.
                &["event_stats_cpu"],
                &["pnode", "global_dsqs"],
                &["dsq_hash.tbl"],
            ],
        )?;
        let stats = kernel.object("struct scx_event_stats", Kva::NULL)?;
        let sched = kernel.object("struct scx_sched", Kva::NULL)?;
        let bare = !sched.has("pcpu");
        let (stats, bypass) = if bare {
            (stats, None)
        } else {
            let pcpu = kernel.object("struct scx_sched_pcpu", Kva::NULL)?;
            // 7.1 and later.
            (
                pcpu.member("event_stats")?,
                pcpu.member("bypass_dsq.nr").ok(),
            )
        };
        let members: Vec<_> = kernel.btf.members(stats.ty()).take(MAX_COUNTERS).collect();
        let counters = members.iter().map(|member| {
            let at = stats.address().add(u64::from(member.bit_offset / 8));
            Some(Object::new(kernel, member.ty, at))
        });
        let counters: Vec<_> = counters.chain([bypass]).collect();
        let count = members.len();
        let names = members
            .iter()
            .map(|member| member.name.to_owned())
            .collect();
        let node = if sched.has("pnode") {
            let node = kernel.object("struct scx_sched_pnode", Kva::NULL)?;
            Span::of(vec![Some(node.member("global_dsq.nr")?)])?
        } else {
            Span::new(kernel, "struct scx_dispatch_q", &[&["nr"]])?
        };
        // Without CONFIG_NUMA it is a macro for 1.
        let nodes = match kernel.symbol("nr_node_ids") {
            Ok(at) => kernel.read_u32(at)?.min(MAX_NODES),
            Err(_) => 1,
        };
        let queue = kernel.object("struct scx_dispatch_q", Kva::NULL)?;
        let builtin = kernel.constant("enum scx_dsq_id_flags", "SCX_DSQ_FLAG_BUILTIN")?;
        let table = kernel.object("struct bucket_table", Kva::NULL)?;
        let this = Self {
            span,
            cpu: Span::of(counters)?,
            bare,
            counters: count,
            nodes,
            node,
            table: Span::new(
                kernel,
                "struct bucket_table",
                &[&["size"], &["nest"], &["future_tbl"]],
            )?,
            buckets: table.member("buckets")?.address().0,
            dsq: Span::new(
                kernel,
                "struct scx_dispatch_q",
                // 7.1 and later know whose a queue is.
                &[&["id"], &["nr"], &["hash_node.next"], &["sched"]],
            )?,
            hash_node: queue.member("hash_node")?.address().0,
            builtin: builtin.cast_unsigned(),
        };
        Ok((this, names))
    }

    /// Fills in what belongs to the scheduler at `root`. Returns the counters of each CPU, which
    /// the next sample must not be below.
    fn read(
        &self,
        kernel: &Kernel,
        root: Kva,
        bypass_depth: Option<Kva>,
        before: &[Option<Vec<i64>>],
        sample: &mut Sample,
    ) -> Vec<Option<Vec<i64>>> {
        let mut kept = before.to_vec();
        let Ok(values) = self.span.read(kernel, root) else {
            return kept;
        };
        sample.exit_kind = values
            .signed(sched::EXIT_KIND)
            .filter(|kind| (0..=1 << 16).contains(kind));
        sample.bypass_depth = values.signed(sched::BYPASS_DEPTH).or_else(|| {
            let depth = kernel.read_u32(bypass_depth?).ok()?;
            Some(i64::from(depth.cast_signed()))
        });
        let base = values.ptr(if self.bare {
            sched::EVENTS
        } else {
            sched::PCPU
        });
        for (cpu, before) in sample.cpus.iter_mut().zip(&mut kept) {
            let at = base.filter(|base| !base.is_null());
            let Some(at) = at.and_then(|base| kernel.per_cpu(base, cpu.cpu)) else {
                continue;
            };
            let read = || {
                let values = self.cpu.read(kernel, at).ok()?;
                Some((
                    self.counters(&values, before.as_deref()),
                    values.depth(self.counters),
                ))
            };
            let Some((mut counters, mut bypass)) = read() else {
                continue;
            };
            if counters.is_none() {
                let Some(again) = read() else {
                    continue;
                };
                (counters, bypass) = again;
            }
            cpu.bypass_dsq = cpu.bypass_dsq.or(bypass);
            cpu.events.clone_from(&counters);
            if counters.is_some() {
                *before = counters;
            }
        }
        sample.dsqs = self.queues(kernel, root, &values).or_else(|| {
            // Once more: a queue came or went.
            let values = self.span.read(kernel, root).ok()?;
            self.queues(kernel, root, &values)
        });
        kept
    }

    /// One CPU's event counters; `None` when one of them cannot be right.
    fn counters(&self, values: &Values<'_>, before: Option<&[i64]>) -> Option<Vec<i64>> {
        let counters = (0..self.counters).map(|index| {
            let now = values.signed(index).filter(|&now| now >= 0)?;
            let Some(&then) = before.and_then(|before| before.get(index)) else {
                return Some(now);
            };
            (now >= then && now - then <= MAX_STEP).then_some(now)
        });
        counters.collect()
    }

    /// The depths of the queues that belong to no CPU; `None` when the walk met something that is
    /// no queue.
    fn queues(&self, kernel: &Kernel, root: Kva, values: &Values<'_>) -> Option<Vec<DsqSample>> {
        let mut found = Vec::new();
        let nodes = values.ptr(sched::NODES)?;
        let pointers = kernel.read_bytes(nodes, u64::from(self.nodes) * 8).ok()?;
        for (node, raw) in (0u32..).zip(pointers.as_chunks::<8>().0) {
            let at = Kva(u64::from_le_bytes(*raw));
            // Of a node without memory.
            if !at.is_null() {
                let nr = self.node.read(kernel, at).ok()?.depth(0)?;
                found.push(DsqSample::Global(node, nr));
            }
        }
        let mut users = self.users(kernel, root, values.ptr(sched::DSQ_TABLE)?)?;
        users.sort_unstable();
        users.dedup();
        found.extend(users.into_iter().map(|(id, nr)| DsqSample::User(id, nr)));
        Some(found)
    }

    /// The queues that the scheduler made, with their depths: the chains of an rhashtable
    /// (`walk/dsq.rs`), the array of buckets in one read.
    fn users(&self, kernel: &Kernel, root: Kva, table: Kva) -> Option<Vec<(u64, u32)>> {
        let head = self.table.read(kernel, table).ok()?;
        let size = head.raw(table::SIZE)?;
        let simple = head.raw(table::NEST)? == 0 && head.ptr(table::FUTURE)?.is_null();
        let mut nodes = Vec::new();
        if simple && size.is_power_of_two() && size <= MAX_BUCKETS {
            let buckets = kernel.read_bytes(table.add(self.buckets), size * 8).ok()?;
            for raw in buckets.as_chunks::<8>().0 {
                // Bit 0 of the head is the bucket's lock; an odd pointer further on is the end.
                let first = Kva(u64::from_le_bytes(*raw) & !1);
                if !first.is_null() {
                    nodes.push(first);
                }
            }
        } else {
            // During a resize.
            let sched = kernel.object("struct scx_sched", root).ok()?;
            let hash = sched.member("dsq_hash").ok()?;
            let walk = kernel.rhashtable(&hash, MAX_DSQS).ok()?;
            let cut = walk.end.is_cut() && !matches!(walk.end, WalkEnd::Limit(_));
            let queues = walk
                .items
                .into_iter()
                .map(|node| Some(self.queue(kernel, root, node)?.0));
            return if cut { None } else { queues.collect() };
        }
        let mut found = Vec::new();
        for mut node in nodes {
            while node.0 & 1 == 0 && !node.is_null() {
                if found.len() >= MAX_DSQS {
                    return Some(found);
                }
                let (queue, next) = self.queue(kernel, root, node)?;
                found.push(queue);
                node = next;
            }
        }
        Some(found)
    }

    /// One queue, and the next of its chain; `None` when there is no queue any more.
    fn queue(&self, kernel: &Kernel, root: Kva, node: Kva) -> Option<((u64, u32), Kva)> {
        let at = node.sub(self.hash_node);
        let values = self.dsq.read(kernel, at).ok()?;
        let id = values.raw(dsq::ID)?;
        // A queue that is being destroyed has the id of none, which is a built-in one.
        let theirs = values.ptr(dsq::SCHED).is_none_or(|sched| sched == root);
        let nr = values.depth(dsq::NR)?;
        (id & self.builtin == 0 && theirs).then_some(())?;
        Some(((id, nr), values.ptr(dsq::NEXT)?))
    }
}

/// The kernel's timekeeper, as `walk/clock.rs` reads it, and its sequence count.
fn timekeeper(kernel: &Kernel) -> Result<(Kva, Span)> {
    // 6.17 made it the first of an array, for auxiliary clocks.
    let at = kernel
        .symbol("timekeeper_data")
        .or_else(|_| kernel.symbol("tk_core"))?;
    let data = kernel.object("struct tk_data", Kva::NULL)?;
    let members = [
        "seq.seqcount.sequence",
        "timekeeper.tkr_mono.shift",
        "timekeeper.tkr_mono.xtime_nsec",
        "timekeeper.xtime_sec",
        "timekeeper.wall_to_monotonic.tv_sec",
        "timekeeper.wall_to_monotonic.tv_nsec",
        "timekeeper.offs_boot",
    ];
    let found = members.map(|path| data.member(path).map(Some));
    let found: Vec<_> = found.into_iter().collect::<Result<_>>()?;
    Ok((at, Span::of(found)?))
}

fn uptime(values: &Values<'_>) -> Option<u64> {
    let shift = u32::try_from(values.raw(time::SHIFT)?).ok()?;
    let nsec = values.raw(time::NSEC)?.checked_shr(shift)?;
    let seconds = |index| Some(i128::from(values.signed(index)?) * 1_000_000_000);
    let total = seconds(time::SEC)?
        + i128::from(nsec)
        + seconds(time::MONO_SEC)?
        + i128::from(values.signed(time::MONO_NSEC)?)
        + i128::from(values.signed(time::BOOT)?);
    u64::try_from(total).ok()
}

/// Pressure in the form of a sample.
pub(crate) fn psi_sample(
    what: &'static str,
    avg10_raw: Option<u64>,
    total_ns: Option<u64>,
) -> PsiSample {
    // An average beyond 100 % was torn, or is no average.
    PsiSample {
        what,
        avg10_raw: avg10_raw.filter(|&raw| raw <= 101 << 11),
        total_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that a scheduler is known by, look for look: where it is, and `scx_enable_seq`.
    fn numbers(looks: &[(u64, u64)]) -> Vec<u64> {
        let (mut known, mut earlier) = (None, None);
        let look = |&(root, seq): &(u64, u64)| {
            let own = own_seq(known, Kva(root), earlier, Some(seq));
            known = (root != 0).then_some((Kva(root), own));
            earlier = Some(seq);
            (root != 0).then_some(own)
        };
        looks.iter().filter_map(look).collect()
    }

    #[test]
    fn a_scheduler_has_one_number_while_it_is_being_enabled_and_then() {
        // It comes with the number of the one before, or of none.
        assert_eq!(numbers(&[(0, 0), (7, 0), (7, 0), (7, 1), (7, 1)]), [1; 4]);
        assert_eq!(numbers(&[(0, 3), (7, 3), (7, 4)]), [4; 2]);
        // Enabled between two looks, and before the first.
        assert_eq!(numbers(&[(0, 0), (7, 1), (7, 1)]), [1; 2]);
        assert_eq!(numbers(&[(7, 5), (7, 5)]), [5; 2]);
        // Two at one address, with and without a look in between; and two at different ones.
        assert_eq!(numbers(&[(7, 1), (0, 1), (7, 1), (7, 2)]), [1, 2, 2]);
        assert_eq!(numbers(&[(7, 1), (7, 2), (7, 2)]), [1, 2, 2]);
        assert_eq!(numbers(&[(7, 1), (8, 1), (8, 2)]), [1, 2, 2]);
        assert_eq!(own_seq(None, Kva(7), None, None), 0, "not known");
    }
}
