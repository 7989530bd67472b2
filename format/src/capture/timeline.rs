//! What the monitor saw of a running guest: the content of the `TIMELINE` note.
//!
//! A timeline is a list of *series* (one number of one thing, such as `nr_running` of CPU 3) and
//! of *rows*, one per sample, each with only those series that changed. It is bounded: when it
//! grows beyond 8192 rows or a million changes, the samples before the last minute are thinned
//! out evenly. `docs/capture-format.md` has the encoding.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::note::{Note, note_types};

/// Version of the encoding that this crate writes, and the only one that it reads.
pub const TIMELINE_VERSION: u32 = 1;
/// Longest content of the note, bytes: a longer one is neither written nor read.
pub const TIMELINE_LIMIT: u64 = 8 << 20;
/// Rows that a timeline holds: ten minutes of 100 ms, and room.
const MAX_ROWS: usize = 8192;
/// Changes that all rows hold together.
const MAX_CHANGES: usize = 1 << 20;
/// Series: some thirty for each of 512 CPUs, and as many queues.
const MAX_SERIES: usize = 1 << 15;
/// Schedulers that one run may go through.
const MAX_SCHEDULERS: usize = 4096;
/// Bytes of a series' or scheduler's name.
const MAX_NAME: usize = 256;
/// What is kept in full, milliseconds before the last sample.
const KEPT_MS: u64 = 60_000;

/// Names of series, apart from the event counters', which are the kernel's (`SCX_EV_…`).
pub mod series {
    /// Nanoseconds since the guest's boot.
    pub const UPTIME_NS: &str = "uptime_ns";
    /// The attached scheduler: its place in the list of schedulers plus one, 0 when there is none.
    pub const SCHEDULER: &str = "scheduler";
    /// `scx_sched.exit_kind`.
    pub const EXIT_KIND: &str = "exit_kind";
    /// The scheduler's bypass depth.
    pub const BYPASS_DEPTH: &str = "bypass_depth";
    /// Tasks on the runnable lists of all CPUs.
    pub const WAITING: &str = "waiting";
    /// How long the one that waits longest has been runnable, milliseconds.
    pub const OLDEST_MS: &str = "oldest_ms";
    /// Its pid.
    pub const OLDEST_PID: &str = "oldest_pid";
    /// `rq->nr_running` of a CPU.
    pub const NR_RUNNING: &str = "nr_running";
    /// `rq->scx.nr_running` of a CPU.
    pub const SCX_NR_RUNNING: &str = "scx_nr_running";
    /// Tasks on a CPU's local DSQ.
    pub const LOCAL_DSQ: &str = "local_dsq";
    /// Tasks on a CPU's bypass DSQ.
    pub const BYPASS_DSQ: &str = "bypass_dsq";
    /// `rq->clock` of a CPU.
    pub const CLOCK_NS: &str = "clock_ns";
    /// Tasks on a node's global DSQ; the id is the node.
    pub const GLOBAL_DSQ: &str = "global_dsq";
    /// Tasks on a DSQ that the scheduler made; the id is the DSQ's.
    pub const USER_DSQ: &str = "user_dsq";
    /// What the names of the pressure's series begin with: then `cpu_some_`, and `total_ns` or
    /// `avg10_raw` (2048ths of a percent).
    pub const PSI: &str = "psi_";
    /// What the names of event counters begin with.
    pub const EVENT: &str = "SCX_EV_";
}

/// One series: what of which CPU or queue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Series(
    /// What it counts: one of [`series`], or the kernel's name of an event counter.
    pub String,
    /// Of which CPU.
    pub Option<u32>,
    /// Of which queue or node.
    pub Option<u64>,
);

/// A scheduler that was attached for some time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenScheduler {
    /// `ops.name`.
    pub name: String,
    /// Its `struct scx_sched`.
    pub kva: u64,
    /// `scx_enable_seq` when it was enabled: tells two at one address apart. 0 when not known.
    pub enable_seq: u64,
}

/// What of sched_ext was attached when a sample was taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Attached {
    /// It could not be read, or changed meanwhile.
    #[default]
    Unknown,
    /// No scheduler.
    Nothing,
    /// This one.
    Scheduler(SeenScheduler),
}

/// One CPU in a sample. What could not be read is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuSample {
    /// Its number.
    pub cpu: u32,
    /// `rq->nr_running`.
    pub nr_running: Option<u32>,
    /// `rq->scx.nr_running`.
    pub scx_nr_running: Option<u32>,
    /// Tasks on the local DSQ.
    pub local_dsq: Option<u32>,
    /// Tasks on the bypass DSQ, in kernels that have one for each CPU.
    pub bypass_dsq: Option<u32>,
    /// `rq->clock`.
    pub clock_ns: Option<u64>,
    /// The scheduler's event counters of this CPU, in the order of [`Sample::events`].
    pub events: Option<Vec<i64>>,
}

/// The depth of a queue that belongs to no CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DsqSample {
    /// A node's global DSQ: node, tasks.
    Global(u32, u32),
    /// A DSQ that the scheduler made: id, tasks.
    User(u64, u32),
}

/// The tasks that wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WaitingSample {
    /// How many are on the runnable lists.
    pub tasks: u64,
    /// How long the one that waits longest has been runnable; 0 when none waits.
    pub oldest_ms: u64,
    /// Its pid.
    pub oldest_pid: Option<i32>,
    /// Whether all of them were looked at: if not, an older one may be among the rest.
    pub all: bool,
}

/// Pressure of the system by one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PsiSample {
    /// `cpu_some`, `memory_full` …
    pub what: &'static str,
    /// Average of ten seconds, in 2048ths of a percent.
    pub avg10_raw: Option<u64>,
    /// Total, nanoseconds.
    pub total_ns: Option<u64>,
}

/// What the monitor saw at one moment. What could not be read, or was torn, is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Milliseconds since the monitor began, by the host's clock.
    pub at_ms: u64,
    /// The guest's time since boot.
    pub uptime_ns: Option<u64>,
    /// Which scheduler was attached.
    pub attached: Attached,
    /// Its exit kind.
    pub exit_kind: Option<i64>,
    /// How many have asked for bypass.
    pub bypass_depth: Option<i64>,
    /// The names of the event counters.
    pub events: std::sync::Arc<[String]>,
    /// By number.
    pub cpus: Vec<CpuSample>,
    /// Global queues, then the scheduler's own by id; `None` when the walk was torn.
    pub dsqs: Option<Vec<DsqSample>>,
    /// The tasks that wait.
    pub waiting: Option<WaitingSample>,
    /// Pressure of the system.
    pub psi: Vec<PsiSample>,
}

/// What changed in one sample.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Row {
    at_ms: u64,
    /// Series and value, by series; `None`: not known from here on.
    changes: Vec<(usize, Option<i64>)>,
}

/// Samples over time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeline {
    interval_ms: u64,
    taken: u64,
    schedulers: Vec<SeenScheduler>,
    series: Vec<Series>,
    rows: Vec<Row>,
    /// Of all rows.
    changes: usize,
    /// How far apart the samples before the last minute are kept.
    gap_ms: u64,
    /// The values of the last row.
    now: Vec<Option<i64>>,
    index: HashMap<Series, usize>,
}

/// The note's JSON.
#[derive(Serialize, Deserialize)]
struct Wire {
    version: u32,
    interval_ms: u64,
    taken: u64,
    #[serde(default)]
    schedulers: Vec<SeenScheduler>,
    series: Vec<Series>,
    rows: Vec<Vec<Option<i64>>>,
}

impl Timeline {
    /// An empty timeline of samples that are taken `interval_ms` apart.
    #[must_use]
    pub fn new(interval_ms: u64) -> Self {
        Self {
            interval_ms,
            ..Self::default()
        }
    }

    /// How far apart samples were to be taken, milliseconds.
    #[must_use]
    pub const fn interval_ms(&self) -> u64 {
        self.interval_ms
    }

    /// Samples that were taken, those included that were thinned out.
    #[must_use]
    pub const fn taken(&self) -> u64 {
        self.taken
    }

    /// Samples that it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The series, in the order of the values that [`walk`](Self::walk) shows.
    #[must_use]
    pub fn series(&self) -> &[Series] {
        &self.series
    }

    /// Schedulers in the order in which they were seen.
    #[must_use]
    pub fn schedulers(&self) -> &[SeenScheduler] {
        &self.schedulers
    }

    /// Shows every sample: its time, and the value of each series then.
    pub fn walk(&self, mut show: impl FnMut(u64, &[Option<i64>])) {
        let mut now = vec![None; self.series.len()];
        for row in &self.rows {
            apply(&mut now, row);
            show(row.at_ms, &now);
        }
    }

    /// Adds a sample. One from before the last is left out: time does not go back.
    pub fn push(&mut self, sample: &Sample) {
        if self
            .rows
            .last()
            .is_some_and(|last| sample.at_ms < last.at_ms)
        {
            return;
        }
        let mut next: Vec<(usize, Option<i64>)> = Vec::with_capacity(self.now.len());
        self.values_of(sample, &mut next);
        next.sort_unstable_by_key(|(series, _)| *series);
        next.dedup_by_key(|(series, _)| *series);
        let mut changes = Vec::new();
        let mut given = next.into_iter().peekable();
        for (series, now) in self.now.iter_mut().enumerate() {
            // A series that the sample does not have is not known any more.
            let value = given
                .next_if(|(at, _)| *at == series)
                .and_then(|(_, value)| value);
            if *now != value {
                *now = value;
                changes.push((series, value));
            }
        }
        self.taken += 1;
        self.changes += changes.len();
        self.rows.push(Row {
            at_ms: sample.at_ms,
            changes,
        });
        if self.rows.len() > MAX_ROWS || self.changes > MAX_CHANGES {
            self.thin();
        }
    }

    /// The number of a series; `None` when there are too many.
    fn series_of(&mut self, name: &str, cpu: Option<u32>, id: Option<u64>) -> Option<usize> {
        let series = Series(name.to_owned(), cpu, id);
        if let Some(&known) = self.index.get(&series) {
            return Some(known);
        }
        let number = self.series.len();
        if number >= MAX_SERIES || name.len() > MAX_NAME {
            return None;
        }
        self.series.push(series.clone());
        self.index.insert(series, number);
        self.now.push(None);
        Some(number)
    }

    fn values_of(&mut self, sample: &Sample, out: &mut Vec<(usize, Option<i64>)>) {
        let mut put = |this: &mut Self, name: &str, cpu, id, value: Option<i64>| {
            if value.is_some()
                && let Some(series) = this.series_of(name, cpu, id)
            {
                out.push((series, value));
            }
        };
        let wide = |value: Option<u64>| value.and_then(|v| i64::try_from(v).ok());
        let small = |value: Option<u32>| value.map(i64::from);
        put(self, series::UPTIME_NS, None, None, wide(sample.uptime_ns));
        let attached = self.attached(&sample.attached);
        put(self, series::SCHEDULER, None, None, attached);
        put(self, series::EXIT_KIND, None, None, sample.exit_kind);
        put(self, series::BYPASS_DEPTH, None, None, sample.bypass_depth);
        if let Some(waiting) = &sample.waiting {
            let oldest = Some(waiting.oldest_ms);
            put(self, series::WAITING, None, None, wide(Some(waiting.tasks)));
            put(self, series::OLDEST_MS, None, None, wide(oldest));
            let pid = waiting.oldest_pid.map(i64::from);
            put(self, series::OLDEST_PID, None, None, pid);
        }
        for psi in &sample.psi {
            let name = |part| format!("{}{}_{part}", series::PSI, psi.what);
            put(self, &name("avg10_raw"), None, None, wide(psi.avg10_raw));
            put(self, &name("total_ns"), None, None, wide(psi.total_ns));
        }
        for cpu in &sample.cpus {
            let of = Some(cpu.cpu);
            put(self, series::NR_RUNNING, of, None, small(cpu.nr_running));
            let ext = small(cpu.scx_nr_running);
            put(self, series::SCX_NR_RUNNING, of, None, ext);
            put(self, series::LOCAL_DSQ, of, None, small(cpu.local_dsq));
            put(self, series::BYPASS_DSQ, of, None, small(cpu.bypass_dsq));
            put(self, series::CLOCK_NS, of, None, wide(cpu.clock_ns));
            let counters = cpu.events.as_deref().unwrap_or_default();
            for (name, value) in sample.events.iter().zip(counters) {
                put(self, name, of, None, Some(*value));
            }
        }
        for dsq in sample.dsqs.iter().flatten() {
            let (name, id, nr) = match *dsq {
                DsqSample::Global(node, nr) => (series::GLOBAL_DSQ, u64::from(node), nr),
                DsqSample::User(id, nr) => (series::USER_DSQ, id, nr),
            };
            put(self, name, None, Some(id), small(Some(nr)));
        }
    }

    fn attached(&mut self, attached: &Attached) -> Option<i64> {
        let scheduler = match attached {
            Attached::Unknown => return None,
            Attached::Nothing => return Some(0),
            Attached::Scheduler(scheduler) => scheduler,
        };
        let known = self.schedulers.iter().rposition(|s| s == scheduler);
        let number = match known {
            Some(number) => number,
            None if self.schedulers.len() >= MAX_SCHEDULERS => return None,
            None => {
                let mut scheduler = scheduler.clone();
                if scheduler.name.len() > MAX_NAME {
                    scheduler.name = scheduler.name.chars().take(MAX_NAME / 4).collect();
                }
                self.schedulers.push(scheduler);
                self.schedulers.len() - 1
            }
        };
        i64::try_from(number + 1).ok()
    }

    /// Doubles the distance of the samples from before the last minute, until there is room; when
    /// the last minute alone is too much, its samples too.
    fn thin(&mut self) {
        let last = self.rows.last().map_or(0, |row| row.at_ms);
        let full =
            |this: &Self| this.rows.len() > MAX_ROWS / 4 * 3 || this.changes > MAX_CHANGES / 4 * 3;
        self.gap_ms = self.gap_ms.max(self.interval_ms.max(1));
        for _ in 0..64 {
            if !full(self) {
                return;
            }
            self.gap_ms = self.gap_ms.saturating_mul(2);
            // Beyond that the old part is as thin as it gets.
            let kept_ms = if self.gap_ms > last / 16 { 0 } else { KEPT_MS };
            self.thin_to(last.saturating_sub(kept_ms), self.gap_ms);
        }
    }

    /// Keeps of the samples before `until` only such as are `gap` apart, the first among them.
    fn thin_to(&mut self, until: u64, gap: u64) {
        let rows = std::mem::take(&mut self.rows);
        let mut kept: Vec<Row> = Vec::with_capacity(rows.len());
        // What the samples that went had changed, for the next one that stays.
        let mut pending: Vec<(usize, Option<i64>)> = Vec::new();
        let last = rows.len().saturating_sub(1);
        for (at, mut row) in rows.into_iter().enumerate() {
            let near = kept
                .last()
                .is_some_and(|before| row.at_ms.saturating_sub(before.at_ms) < gap);
            if near && row.at_ms < until && at != last {
                pending = merged(&pending, &row.changes);
                continue;
            }
            if !pending.is_empty() {
                row.changes = merged(&pending, &row.changes);
                pending.clear();
            }
            kept.push(row);
        }
        // What changed and changed back is no change.
        let mut now = vec![None; self.series.len()];
        self.changes = 0;
        for row in &mut kept {
            row.changes
                .retain(|&(series, value)| match now.get_mut(series) {
                    Some(known) if *known != value => {
                        *known = value;
                        true
                    }
                    _ => false,
                });
            self.changes += row.changes.len();
        }
        self.rows = kept;
    }

    /// The note's content; at most [`TIMELINE_LIMIT`] bytes, for which more samples may have to
    /// go.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let whole = self.encode_as_is();
        if fits(&whole) {
            return whole;
        }
        let mut thinner = self.clone();
        for _ in 0..64 {
            thinner.gap_ms = thinner
                .gap_ms
                .max(thinner.interval_ms.max(1))
                .saturating_mul(2);
            thinner.thin_to(u64::MAX, thinner.gap_ms);
            let bytes = thinner.encode_as_is();
            if fits(&bytes) || thinner.rows.len() <= 2 {
                return bytes;
            }
        }
        Vec::new()
    }

    fn encode_as_is(&self) -> Vec<u8> {
        let mut now: Vec<i64> = vec![0; self.series.len()];
        let mut before = 0;
        let mut rows = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            let step = row.at_ms.saturating_sub(before);
            before = row.at_ms;
            let mut out = Vec::with_capacity(1 + row.changes.len() * 2);
            out.push(i64::try_from(step).ok());
            let mut next = 0;
            for &(series, value) in &row.changes {
                out.push(i64::try_from(series - next).ok());
                next = series + 1;
                out.push(value.and_then(|value| {
                    let last = now.get_mut(series)?;
                    let delta = value.wrapping_sub(*last);
                    *last = value;
                    Some(delta)
                }));
            }
            rows.push(out);
        }
        let wire = Wire {
            version: TIMELINE_VERSION,
            interval_ms: self.interval_ms,
            taken: self.taken,
            schedulers: self.schedulers.clone(),
            series: self.series.clone(),
            rows,
        };
        serde_json::to_vec(&wire).unwrap_or_default()
    }

    /// The note.
    #[must_use]
    pub fn to_note(&self) -> Note {
        Note::scxpm(note_types::TIMELINE, self.encode())
    }

    /// Reads a note's content.
    ///
    /// # Errors
    /// A sentence: what was found, what was expected.
    pub fn decode(content: &[u8]) -> Result<Self, String> {
        if !fits(content) {
            return Err(format!(
                "{} bytes; expected at most {TIMELINE_LIMIT}",
                content.len()
            ));
        }
        let version: Version = serde_json::from_slice(content).map_err(|e| e.to_string())?;
        if version.version != TIMELINE_VERSION {
            return Err(format!(
                "version {}; this tool reads version {TIMELINE_VERSION}",
                version.version
            ));
        }
        let wire: Wire = serde_json::from_slice(content).map_err(|e| e.to_string())?;
        wire.check()
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

fn fits(content: &[u8]) -> bool {
    u64::try_from(content.len()).is_ok_and(|len| len <= TIMELINE_LIMIT)
}

fn apply(now: &mut [Option<i64>], row: &Row) {
    for &(series, value) in &row.changes {
        if let Some(slot) = now.get_mut(series) {
            *slot = value;
        }
    }
}

/// Two lists of changes, both by series; where both have one, the later.
fn merged(
    earlier: &[(usize, Option<i64>)],
    later: &[(usize, Option<i64>)],
) -> Vec<(usize, Option<i64>)> {
    let mut out = Vec::with_capacity(earlier.len() + later.len());
    let mut rest = later.iter().copied().peekable();
    for &(series, value) in earlier {
        while let Some(before) = rest.next_if(|(at, _)| *at < series) {
            out.push(before);
        }
        out.push(
            rest.next_if(|(at, _)| *at == series)
                .unwrap_or((series, value)),
        );
    }
    out.extend(rest);
    out
}

impl Wire {
    fn check(self) -> Result<Timeline, String> {
        let too_many = |what: &str, found: usize, limit: usize| {
            (found > limit).then(|| format!("{found} {what}; expected at most {limit}"))
        };
        let excess = too_many("series", self.series.len(), MAX_SERIES)
            .or_else(|| too_many("samples", self.rows.len(), MAX_ROWS))
            .or_else(|| too_many("schedulers", self.schedulers.len(), MAX_SCHEDULERS));
        if let Some(why) = excess {
            return Err(why);
        }
        let names = self.series.iter().map(|series| &series.0);
        let names = names.chain(self.schedulers.iter().map(|s| &s.name));
        if let Some(long) = names.map(String::len).find(|&len| len > MAX_NAME) {
            return Err(format!(
                "a name of {long} bytes; expected at most {MAX_NAME}"
            ));
        }
        let mut index = HashMap::with_capacity(self.series.len());
        for (number, series) in self.series.iter().enumerate() {
            if index.insert(series.clone(), number).is_some() {
                return Err(format!("the series {series:?} is there twice"));
            }
        }
        let mut last: Vec<i64> = vec![0; self.series.len()];
        let mut now: Vec<Option<i64>> = vec![None; self.series.len()];
        let mut at_ms = 0u64;
        let mut changes = 0;
        let mut rows = Vec::with_capacity(self.rows.len());
        for (number, wire) in self.rows.iter().enumerate() {
            let wrong = |what: &str| format!("sample {number}: {what}");
            let (step, pairs) = wire
                .split_first()
                .ok_or_else(|| wrong("is empty; expected the time since the one before it"))?;
            let step = step.and_then(|step| u64::try_from(step).ok());
            at_ms = step
                .and_then(|step| at_ms.checked_add(step))
                .ok_or_else(|| wrong("its time is missing, negative or too large"))?;
            let (pairs, rest) = pairs.as_chunks::<2>();
            if !rest.is_empty() {
                return Err(wrong("ends within a pair of series and change"));
            }
            changes += pairs.len();
            if changes > MAX_CHANGES {
                return Err(format!("more than {MAX_CHANGES} changes"));
            }
            let mut next = 0usize;
            let mut row = Row {
                at_ms,
                changes: Vec::with_capacity(pairs.len()),
            };
            for [skipped, delta] in pairs {
                let series = skipped
                    .and_then(|skipped| usize::try_from(skipped).ok())
                    .and_then(|skipped| next.checked_add(skipped))
                    .filter(|&series| series < last.len())
                    .ok_or_else(|| wrong("names a series that is not there"))?;
                next = series + 1;
                let value = delta.and_then(|delta| {
                    let last = last.get_mut(series)?;
                    *last = last.wrapping_add(delta);
                    Some(*last)
                });
                row.changes.push((series, value));
            }
            apply(&mut now, &row);
            rows.push(row);
        }
        Ok(Timeline {
            interval_ms: self.interval_ms,
            taken: self.taken,
            schedulers: self.schedulers,
            series: self.series,
            rows,
            changes,
            gap_ms: 0,
            now,
            index,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn sample(at_ms: u64, nr: u32) -> Sample {
        let cpu = |cpu| CpuSample {
            cpu,
            nr_running: Some(nr + cpu),
            clock_ns: Some(at_ms * 1_000_000 + u64::from(cpu)),
            events: Some(vec![i64::from(nr), 7]),
            ..CpuSample::default()
        };
        Sample {
            at_ms,
            uptime_ns: Some(at_ms * 1_000_000),
            attached: Attached::Scheduler(SeenScheduler {
                name: "demo".into(),
                kva: 0xffff_8881_0000_0000,
                enable_seq: 1,
            }),
            events: Arc::new(["SCX_EV_A".into(), "SCX_EV_B".into()]),
            cpus: vec![cpu(0), cpu(1)],
            dsqs: Some(vec![DsqSample::User(0xdead5, nr)]),
            ..Sample::default()
        }
    }

    /// Every sample's values by series.
    fn table(timeline: &Timeline) -> Vec<(u64, Vec<(Series, i64)>)> {
        let mut out = Vec::new();
        timeline.walk(|at, values| {
            let known = timeline.series().iter().zip(values);
            let known = known.filter_map(|(series, value)| Some((series.clone(), (*value)?)));
            out.push((at, known.collect()));
        });
        out
    }

    fn value(
        timeline: &Timeline,
        row: usize,
        name: &str,
        cpu: Option<u32>,
        id: Option<u64>,
    ) -> Option<i64> {
        let wanted = Series(name.into(), cpu, id);
        let rows = table(timeline);
        let found = rows[row].1.iter().find(|(series, _)| *series == wanted);
        found.map(|(_, value)| *value)
    }

    #[test]
    fn a_sample_is_read_back_as_it_was_and_what_is_gone_is_absent() {
        let mut timeline = Timeline::new(100);
        timeline.push(&sample(5, 3));
        let mut torn = sample(105, 4);
        torn.dsqs = None;
        torn.cpus[1].clock_ns = None;
        torn.attached = Attached::Nothing;
        timeline.push(&torn);
        timeline.push(&sample(205, 4));
        let read = Timeline::decode(&timeline.encode()).unwrap();
        assert_eq!(table(&read), table(&timeline));
        let dsq = |row| value(&read, row, series::USER_DSQ, None, Some(0xdead5));
        assert_eq!([dsq(0), dsq(1), dsq(2)], [Some(3), None, Some(4)]);
        let clock = |row| value(&read, row, series::CLOCK_NS, Some(1), None);
        assert_eq!(
            [clock(0), clock(1), clock(2)],
            [Some(5_000_001), None, Some(205_000_001)]
        );
        let sched = |row| value(&read, row, series::SCHEDULER, None, None);
        assert_eq!([sched(0), sched(1), sched(2)], [Some(1), Some(0), Some(1)]);
        assert_eq!(value(&read, 2, "SCX_EV_A", Some(0), None), Some(4));
        assert_eq!(read.schedulers()[0].name, "demo");
        assert_eq!((read.taken(), read.len(), read.interval_ms()), (3, 3, 100));
    }

    #[test]
    fn a_long_run_is_thinned_and_keeps_its_last_minute_and_its_ends() {
        let mut timeline = Timeline::new(100);
        let count = 40_000u32;
        for i in 0..count {
            timeline.push(&sample(u64::from(i) * 100, i % 50));
        }
        assert!(timeline.len() <= MAX_ROWS, "{}", timeline.len());
        assert!(timeline.changes <= MAX_CHANGES);
        assert_eq!(timeline.taken(), u64::from(count));
        let rows = table(&timeline);
        assert_eq!(rows[0].0, 0);
        let end = u64::from(count - 1) * 100;
        let last_minute: Vec<u64> = rows
            .iter()
            .map(|r| r.0)
            .filter(|at| *at > end - 60_000)
            .collect();
        assert_eq!(last_minute.len(), 600);
        assert_eq!(*last_minute.last().unwrap(), end);
        // Whatever stayed has the values that it was pushed with.
        for (row, (at, _)) in rows.iter().enumerate().step_by(97) {
            let nr = i64::try_from(at / 100 % 50).unwrap();
            assert_eq!(
                value(&timeline, row, series::NR_RUNNING, Some(1), None),
                Some(nr + 1),
                "{at}"
            );
        }
        assert_eq!(table(&Timeline::decode(&timeline.encode()).unwrap()), rows);
    }

    #[test]
    fn ten_minutes_of_eight_cpus_take_less_than_a_megabyte() {
        let mut timeline = Timeline::new(100);
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let names: Vec<String> = (0..21).map(|i| format!("SCX_EV_{i}")).collect();
        let names: Arc<[String]> = names.into();
        let mut counters = vec![vec![0i64; 21]; 8];
        let mut totals = [0u64; 7];
        for i in 0..6000u64 {
            let at_ms = i * 100 + random(3);
            let cpus = (0u32..).zip(&mut counters).map(|(cpu, counters)| {
                // Three of the counters move all the time, as in a busy guest.
                for counter in counters.iter_mut().take(3) {
                    *counter += i64::try_from(random(4000)).unwrap();
                }
                let depth = |n: u64| Some(u32::try_from(n).unwrap());
                CpuSample {
                    cpu,
                    nr_running: depth(random(6)),
                    scx_nr_running: depth(random(6)),
                    local_dsq: depth(random(4)),
                    bypass_dsq: Some(0),
                    clock_ns: Some(at_ms * 1_000_000 + random(4_000_000)),
                    events: Some(counters.clone()),
                }
            });
            let cpus = cpus.collect();
            let psi = [
                "cpu_some",
                "memory_some",
                "memory_full",
                "io_some",
                "io_full",
            ];
            let psi = psi.iter().zip(&mut totals).map(|(what, total)| {
                if i % 20 == 0 {
                    *total += random(2_000_000_000);
                }
                PsiSample {
                    what,
                    avg10_raw: Some(*total % 204_800),
                    total_ns: Some(*total),
                }
            });
            let psi = psi.collect();
            let dsqs = (0..4).map(|id| DsqSample::User(id, u32::try_from(random(20)).unwrap()));
            let dsqs = dsqs.collect();
            timeline.push(&Sample {
                at_ms,
                uptime_ns: Some(at_ms * 1_000_000 + random(4_000_000)),
                events: Arc::clone(&names),
                cpus,
                dsqs: Some(dsqs),
                waiting: Some(WaitingSample {
                    tasks: random(30),
                    oldest_ms: random(4000),
                    oldest_pid: Some(i32::try_from(random(300)).unwrap()),
                    all: true,
                }),
                psi,
                ..sample(0, 0)
            });
        }
        assert_eq!(timeline.len(), 6000);
        let content = timeline.encode();
        let packed = zstd::bulk::compress(&content, 1).unwrap();
        println!("{} bytes, packed {}", content.len(), packed.len());
        assert!(
            packed.len() < 1 << 20,
            "{} of {}",
            packed.len(),
            content.len()
        );
    }

    #[test]
    fn hostile_content_is_refused_with_a_reason() {
        let head = r#"{"version":1,"interval_ms":100,"taken":1,"series":[["a",0,null]],"rows":"#;
        let refused =
            |rows: &str| Timeline::decode(format!("{head}{rows}}}").as_bytes()).unwrap_err();
        assert_eq!(
            refused("[[]]"),
            "sample 0: is empty; expected the time since the one before it"
        );
        assert_eq!(
            refused("[[-1]]"),
            "sample 0: its time is missing, negative or too large"
        );
        assert_eq!(
            refused("[[null]]"),
            "sample 0: its time is missing, negative or too large"
        );
        assert_eq!(
            refused("[[1,0]]"),
            "sample 0: ends within a pair of series and change"
        );
        assert_eq!(
            refused("[[1],[1,1,5]]"),
            "sample 1: names a series that is not there"
        );
        assert_eq!(
            refused("[[1,0,5,0,5]]"),
            "sample 0: names a series that is not there"
        );
        assert_eq!(
            refused("[[1,-1,5]]"),
            "sample 0: names a series that is not there"
        );
        let many = format!("[{}[0]]", "[0],".repeat(MAX_ROWS));
        assert_eq!(refused(&many), "8193 samples; expected at most 8192");
        let steps = "[[9223372036854775807],[9223372036854775807],[9223372036854775807]]";
        assert_eq!(
            refused(steps),
            "sample 2: its time is missing, negative or too large"
        );
        let twice = r#"{"version":1,"interval_ms":1,"taken":1,"series":[["a",0,null],["a",0,null]],"rows":[]}"#;
        assert!(
            Timeline::decode(twice.as_bytes())
                .unwrap_err()
                .ends_with("is there twice")
        );
        let newer = r#"{"version":2}"#;
        assert_eq!(
            Timeline::decode(newer.as_bytes()).unwrap_err(),
            "version 2; this tool reads version 1"
        );
        let long = vec![b' '; usize::try_from(TIMELINE_LIMIT).unwrap() + 1];
        assert_eq!(
            Timeline::decode(&long).unwrap_err(),
            "8388609 bytes; expected at most 8388608"
        );
        assert!(Timeline::decode(b"").is_err());
        assert!(Timeline::decode(&[b'['; 10_000]).is_err());
        // Values wrap as they do when they are written: no change is out of range.
        let wrap = format!("{head}[[0,0,9223372036854775807],[0,0,9223372036854775807]]}}");
        let wrap = Timeline::decode(wrap.as_bytes()).unwrap();
        assert_eq!(value(&wrap, 1, "a", Some(0), None), Some(-2));
    }

    #[test]
    fn the_example_of_the_specification_is_what_it_says() {
        let page = include_str!("../../../docs/capture-format.md");
        let (_, section) = page.split_once("## 4a.").unwrap();
        let (_, json) = section.split_once("```json").unwrap();
        let (json, _) = json.split_once("```").unwrap();
        let read = Timeline::decode(json.as_bytes()).unwrap();
        let uptime = |row| value(&read, row, series::UPTIME_NS, None, None);
        assert_eq!(
            [uptime(0), uptime(1)],
            [Some(5_012_000_000), Some(5_112_000_000)]
        );
        let nr = |row, cpu| value(&read, row, series::NR_RUNNING, Some(cpu), None);
        assert_eq!(
            [nr(0, 0), nr(1, 0), nr(0, 1), nr(1, 1)],
            [Some(3), Some(3), Some(1), Some(3)]
        );
        assert_eq!(table(&read)[1].0, 100);
        assert_eq!(value(&read, 0, series::SCHEDULER, None, None), Some(1));
        let again: serde_json::Value = serde_json::from_slice(&read.encode()).unwrap();
        assert_eq!(
            again,
            serde_json::from_str::<serde_json::Value>(json).unwrap()
        );
    }

    fn samples() -> impl Strategy<Value = Vec<Sample>> {
        let cpu = (
            0u32..4,
            any::<Option<u32>>(),
            any::<Option<u64>>(),
            any::<Option<[i64; 2]>>(),
        );
        let one = (
            0u64..100_000,
            proptest::option::of(any::<u64>()),
            proptest::collection::vec(cpu, 0..4),
            proptest::option::of(proptest::collection::vec(
                (any::<u64>(), any::<u32>()),
                0..4,
            )),
            any::<Option<i64>>(),
            0u8..4,
        );
        proptest::collection::vec(one, 0..60).prop_map(|all| {
            let mut at_ms = 0;
            let all = all
                .into_iter()
                .map(|(step, uptime_ns, cpus, dsqs, exit_kind, sched)| {
                    at_ms += step;
                    let cpus =
                        cpus.into_iter()
                            .map(|(cpu, nr_running, clock_ns, events)| CpuSample {
                                cpu,
                                nr_running,
                                clock_ns,
                                events: events.map(|events| events.to_vec()),
                                ..CpuSample::default()
                            });
                    Sample {
                        at_ms,
                        uptime_ns,
                        attached: match sched {
                            0 => Attached::Unknown,
                            1 => Attached::Nothing,
                            n => Attached::Scheduler(SeenScheduler {
                                name: format!("s{n}"),
                                kva: u64::MAX - u64::from(n),
                                enable_seq: 0,
                            }),
                        },
                        exit_kind,
                        events: Arc::new(["SCX_EV_A".into(), "SCX_EV_B".into()]),
                        cpus: cpus.collect(),
                        dsqs: dsqs.map(|d| {
                            d.into_iter()
                                .map(|(id, nr)| DsqSample::User(id, nr))
                                .collect()
                        }),
                        ..Sample::default()
                    }
                });
            all.collect()
        })
    }

    proptest! {
        #[test]
        fn whatever_is_pushed_comes_back(samples in samples()) {
            let mut timeline = Timeline::new(100);
            samples.iter().for_each(|sample| timeline.push(sample));
            let content = timeline.encode();
            let read = Timeline::decode(&content).unwrap();
            prop_assert_eq!(table(&read), table(&timeline));
            prop_assert_eq!(read.encode(), content);
        }

        #[test]
        fn thinning_changes_no_value_of_what_stays(samples in samples(), gap in 1u64..1_000_000) {
            let mut timeline = Timeline::new(100);
            samples.iter().for_each(|sample| timeline.push(sample));
            let all = table(&timeline);
            let until = all.last().map_or(0, |last| last.0);
            timeline.thin_to(until, gap);
            let kept = table(&timeline);
            // In order, each one of those that were there.
            let mut rest = all.iter();
            for row in &kept {
                prop_assert!(rest.any(|before| before == row));
            }
            prop_assert_eq!(kept.last(), all.last());
            prop_assert_eq!(kept.first(), all.first());
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0usize..400, with: u8) {
            let _ = Timeline::decode(&bytes);
            let mut timeline = Timeline::new(100);
            timeline.push(&sample(5, 3));
            timeline.push(&sample(9, 8));
            bytes = timeline.encode();
            let at = at % bytes.len();
            bytes[at] = with;
            if let Ok(read) = Timeline::decode(&bytes) {
                prop_assert!(Timeline::decode(&read.encode()).is_ok());
            }
        }
    }
}
