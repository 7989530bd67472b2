//! Findings: what a person should look at first.
//!
//! Each rule is a file here. A rule looks only at the report, so that whatever it says can be
//! checked there: every finding names its evidence by JSON pointer. Rules come in the order in
//! which they explain a failure; what is certain goes before what is likely, and the first
//! finding is the verdict. A rule that misses what it needs says nothing.

mod aborting;
mod affinity;
mod arena_full;
mod bypass;
mod cpu_hog;
mod error_exit;
mod holders;
mod idle_cpu;
pub(crate) mod kernel_panic;
mod lock_holder;
mod never_consumed;
mod other_scheduler;
mod outranked;
mod queues;
mod realtime;
mod ringbuf;
mod slow_program;
mod starved;
mod stopped;
mod stranded;
mod stuck;
mod unpreempted;
mod untouched;
mod vtime;

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;

use scx_postmortem_format::report::{
    CpuInfo, DsqInfo, DsqName, FailureDumpMap, Finding, FindingEvidence, Hex, MapInfo,
    PostmortemReport, StarvedTask, TaskInfo,
};

use crate::source::TORN;

/// How sure a rule is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Confidence {
    /// The image proves it.
    Certain,
    /// It fits and nothing speaks against it.
    Likely,
    /// It fits, and so may something else.
    Possible,
}

impl Confidence {
    const fn word(self) -> &'static str {
        match self {
            Self::Certain => "certain",
            Self::Likely => "likely",
            Self::Possible => "possible",
        }
    }
}

/// A finding being made.
struct Draft {
    confidence: Confidence,
    what: String,
    advice: Option<String>,
    evidence: Vec<FindingEvidence>,
    /// The starved tasks whose wait it explains, by their place in the list.
    victims: Vec<usize>,
    /// It follows from another, and stands behind all that are as sure.
    follows: bool,
}

impl Draft {
    fn new(confidence: Confidence, what: impl Into<String>) -> Self {
        Self {
            confidence,
            what: what.into(),
            advice: None,
            evidence: Vec::new(),
            victims: Vec::new(),
            follows: false,
        }
    }

    fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    fn explains(mut self, victims: impl IntoIterator<Item = usize>) -> Self {
        self.victims.extend(victims);
        self
    }

    /// A fact: where it stands below `postmortem`, and its value.
    fn rests_on(mut self, path: impl Display, value: impl Display) -> Self {
        self.evidence.push(FindingEvidence {
            path: format!("/postmortem/{path}"),
            value: value.to_string(),
        });
        self
    }

    /// The same for a fact of the shared part of the report.
    fn rests_on_shared(mut self, path: impl Display, value: impl Display) -> Self {
        self.evidence.push(FindingEvidence {
            path: format!("/{path}"),
            value: value.to_string(),
        });
        self
    }
}

type Rule = fn(&Case<'_>) -> Vec<Draft>;

/// The rules, the one that explains most first.
const RULES: [(&str, Rule); 21] = [
    ("kernel-panic", kernel_panic::find),
    ("error-exit", error_exit::find),
    ("other-scheduler-failed", other_scheduler::find),
    ("cpu-stuck", stuck::find),
    ("arena-exhausted", arena_full::find),
    (QUEUE_NEVER, never_consumed::find),
    (QUEUE_UNTOUCHED, untouched::find),
    ("real-time-hog", realtime::find),
    ("cpu-hog", cpu_hog::find),
    ("stranded-on-local-queue", stranded::find),
    ("affinity", affinity::find),
    ("preemption-off", unpreempted::find),
    ("idle-cpu-with-waiting-work", idle_cpu::find),
    (LOCK_HOLDER, lock_holder::find),
    (RINGBUF, ringbuf::find),
    ("slow-program", slow_program::find),
    ("vtime-ahead", vtime::find),
    ("queue-outranked", outranked::find),
    (QUEUE_STOPPED, stopped::find),
    ("bypass", bypass::find),
    ("aborting", aborting::find),
];
const QUEUE_NEVER: &str = "queue-never-consumed";
const QUEUE_UNTOUCHED: &str = "queue-untouched";
const QUEUE_STOPPED: &str = "queue-stopped";
const LOCK_HOLDER: &str = "lock-holder-off-cpu";
const RINGBUF: &str = "ringbuf-full";
/// What keeps tasks of sched_ext from their CPU whatever the scheduler does, programs in user
/// space among them.
const CPU_TAKEN: [&str; 5] = [
    "cpu-stuck",
    "preemption-off",
    "real-time-hog",
    "cpu-hog",
    "stranded-on-local-queue",
];

/// What is told when no rule tells why.
const LAST: (&str, Rule) = ("starved-task", starved::find);

/// The findings on a report, the verdict first. `shared_maps` is `maps` of the shared part.
#[must_use]
pub fn findings(report: &PostmortemReport, shared_maps: &[FailureDumpMap]) -> Vec<Finding> {
    let case = Case::new(report, shared_maps);
    let mut drafts: Vec<(&str, Draft)> = Vec::new();
    for (rule, find) in RULES.into_iter().chain([LAST]) {
        if rule == LAST.0 && !drafts.is_empty() {
            break;
        }
        drafts.extend(find(&case).into_iter().map(|draft| (rule, draft)));
    }
    if torn(report) {
        for (_, draft) in &mut drafts {
            draft.confidence = draft.confidence.max(Confidence::Likely);
        }
    }
    drop_the_vague(&mut drafts);
    consequences_last(&mut drafts);
    drafts.sort_by_key(|(_, draft)| (draft.confidence, draft.follows));
    let findings = drafts.into_iter().map(|(rule, draft)| Finding {
        rule: rule.to_owned(),
        what: draft.what,
        confidence: draft.confidence.word().to_owned(),
        advice: draft.advice,
        evidence: draft.evidence,
    });
    findings.collect()
}

/// Whether some of the guest ran on while its memory was copied: then nothing is proven by it.
fn torn(report: &PostmortemReport) -> bool {
    report.warnings.iter().any(|warning| warning == TORN)
}

/// That a queue's first task waits says nothing where another rule tells why it does.
fn drop_the_vague(drafts: &mut Vec<(&str, Draft)>) {
    let told: HashSet<usize> = drafts
        .iter()
        .filter(|(rule, draft)| *rule != QUEUE_STOPPED && draft.confidence != Confidence::Possible)
        .flat_map(|(_, draft)| draft.victims.iter().copied())
        .collect();
    drafts.retain(|(rule, draft)| {
        *rule != QUEUE_STOPPED || !draft.victims.iter().any(|at| told.contains(at))
    });
}

/// A cause stands before what follows from it, however sure both are.
fn consequences_last(drafts: &mut [(&str, Draft)]) {
    let surest = |drafts: &[(&str, Draft)], of: &dyn Fn(&str, &Draft) -> bool| {
        let drafts = drafts.iter().filter(|(rule, draft)| of(rule, draft));
        let confidence = drafts.map(|(_, draft)| draft.confidence);
        confidence.filter(|c| *c != Confidence::Possible).min()
    };
    // Who reads the ring is a task, too, and nobody knows which.
    let taken = surest(drafts, &|rule, _| CPU_TAKEN.contains(&rule));
    for at in 0..drafts.len() {
        let cause = match drafts.get(at) {
            // A CPU that is taken takes from no queue.
            Some((QUEUE_NEVER | QUEUE_UNTOUCHED, queue)) => all_taken(drafts, &queue.victims),
            Some((RINGBUF, _)) => taken.map(|_| Confidence::Possible),
            // The owner's own wait has a cause.
            Some((LOCK_HOLDER, lock)) => surest(drafts, &|rule, draft| {
                let others = ![LOCK_HOLDER, RINGBUF].contains(&rule);
                others && draft.victims.iter().any(|at| lock.victims.contains(at))
            }),
            _ => None,
        };
        if let (Some(cause), Some((rule, draft))) = (cause, drafts.get_mut(at)) {
            draft.confidence = draft.confidence.max(cause);
            // The other rules of that kind are behind their causes by the order of the rules.
            draft.follows = [QUEUE_NEVER, QUEUE_UNTOUCHED, LOCK_HOLDER].contains(rule);
        }
    }
}

/// How sure it is that all of these tasks wait because their CPUs are taken.
fn all_taken(drafts: &[(&str, Draft)], victims: &[usize]) -> Option<Confidence> {
    let causes = drafts.iter().filter(|(rule, draft)| {
        let some = draft.victims.iter().any(|at| victims.contains(at));
        some && CPU_TAKEN.contains(rule) && draft.confidence != Confidence::Possible
    });
    let causes: Vec<&Draft> = causes.map(|(_, draft)| draft).collect();
    let mut left = victims.iter();
    let all = left.all(|at| causes.iter().any(|draft| draft.victims.contains(at)));
    let sure = causes.iter().map(|draft| draft.confidence).max();
    sure.filter(|_| all)
}

/// The report, with the look-ups that rules share.
struct Case<'r> {
    report: &'r PostmortemReport,
    shared_maps: &'r [FailureDumpMap],
    /// Where the record of each task is, by its address.
    tasks: HashMap<u64, usize>,
    /// The same of the queues.
    dsqs: HashMap<u64, usize>,
    /// Of each CPU the tasks of classes above sched_ext.
    above: HashMap<u32, holders::Above>,
    /// The newest of all CPUs' clocks.
    newest_clock_ns: Option<u64>,
    /// The CPUs that `cpu-stuck` tells of, once somebody has asked.
    standing: OnceCell<HashSet<u32>>,
}

impl<'r> Case<'r> {
    fn new(report: &'r PostmortemReport, shared_maps: &'r [FailureDumpMap]) -> Self {
        let mut case = Self {
            report,
            shared_maps,
            tasks: HashMap::new(),
            dsqs: HashMap::new(),
            above: HashMap::new(),
            standing: OnceCell::new(),
            newest_clock_ns: report.cpus.iter().filter_map(|cpu| cpu.clock_ns).max(),
        };
        for (at, task) in report.tasks.iter().enumerate() {
            case.tasks.entry(task.kva.0).or_insert(at);
        }
        for (at, dsq) in report.dsqs.iter().enumerate() {
            case.dsqs.entry(dsq.dsq_kva.0).or_insert(at);
        }
        case.above = holders::above(&case);
        case
    }

    /// The starved tasks with their place in the list.
    fn starved(&self) -> impl Iterator<Item = (usize, &'r StarvedTask)> {
        self.report.starved.iter().enumerate()
    }

    /// A task's own record.
    fn task(&self, starved: &StarvedTask) -> Option<(usize, &'r TaskInfo)> {
        self.task_at(starved.kva)
    }

    /// The record of the task at that address.
    fn task_at(&self, kva: Hex) -> Option<(usize, &'r TaskInfo)> {
        let at = *self.tasks.get(&kva.0)?;
        Some((at, self.report.tasks.get(at)?))
    }

    /// The user queue that a task is on.
    fn user_queue(&self, starved: &StarvedTask) -> Option<(usize, &'r DsqInfo)> {
        let at = *self.dsqs.get(&starved.dsq_kva?.0)?;
        let dsq = self.report.dsqs.get(at)?;
        (dsq.origin == "user").then_some((at, dsq))
    }

    /// The online CPUs that a starved task may use.
    fn may_use(&self, starved: &StarvedTask) -> Option<Vec<(usize, &'r CpuInfo)>> {
        let (_, task) = self.task(starved)?;
        self.usable(task, starved.cpu)
    }

    /// The online CPUs that a task may use, which is on the one given.
    fn usable(&self, task: &TaskInfo, on: u32) -> Option<Vec<(usize, &'r CpuInfo)>> {
        // The scheduler must not move it either.
        let allowed = match task.migration_disabled {
            Some(0) | None => parse_cpus(task.cpus_allowed.as_deref()?)?,
            Some(_) => vec![(on, on)],
        };
        let cpus = self.report.cpus.iter().enumerate();
        let cpus = cpus.filter(|(_, cpu)| {
            cpu.online != Some(false)
                && allowed
                    .iter()
                    .any(|&(first, last)| (first..=last).contains(&cpu.cpu))
        });
        Some(cpus.collect())
    }

    /// Whether nothing was ever taken from the user queue that a task is in.
    fn never_consumed(&self, starved: &StarvedTask) -> bool {
        self.user_queue(starved)
            .is_some_and(|(_, dsq)| dsq.nr > 0 && queues::left(dsq) == 0)
    }

    /// Whether a CPU has taken no tick for so long that `cpu-stuck` tells of it.
    fn stands(&self, cpu: &CpuInfo) -> bool {
        let standing = self.standing.get_or_init(|| stuck::standing(self));
        standing.contains(&cpu.cpu)
    }

    /// The map at that address, when it is one of the scheduler's.
    fn used_by_scheduler(&self, kva: u64) -> Option<&'r MapInfo> {
        let map = self.report.maps.iter().find(|map| map.kva.0 == kva)?;
        let active = self.report.active.as_ref()?;
        active
            .maps
            .iter()
            .any(|used| used.id == Some(map.id))
            .then_some(map)
    }

    /// Whether a program that implements one of these callbacks of the scheduler uses a map.
    fn used_by_callback(&self, map: &MapInfo, callbacks: &[&str]) -> bool {
        let active = self.report.active.iter();
        let programs = active
            .flat_map(|active| &active.callbacks)
            .filter(|callback| callbacks.contains(&&*callback.member))
            .map(|callback| callback.prog.id);
        programs.into_iter().any(|id| {
            let mut programs = self.report.programs.iter();
            let program = programs.find(|program| program.id == id);
            program.is_some_and(|program| program.maps.iter().any(|used| used.id == Some(map.id)))
        })
    }

    /// Whether a class runs before sched_ext. A fair task counts where the scheduler has only the
    /// tasks that asked for it.
    fn is_above(&self, class: &str) -> bool {
        let partial = || {
            let scheduler = self.report.scheduler.as_ref();
            scheduler.and_then(|s| s.switched_all) == Some(false)
        };
        matches!(class, "rt" | "dl" | "stop") || (class == "fair" && partial())
    }

    /// CPUs that are not known to be offline.
    fn online(&self) -> usize {
        let cpus = self.report.cpus.iter();
        cpus.filter(|cpu| cpu.online != Some(false)).count()
    }
}

/// `0-3,8` as ranges.
fn parse_cpus(list: &str) -> Option<Vec<(u32, u32)>> {
    list.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((first.parse().ok()?, last.parse().ok()?))
        })
        .collect()
}

/// Where a task is queued, by id and by what that means.
fn dsq_of(case: &Case<'_>, id: Hex, cpu: Option<u32>) -> String {
    format!("DSQ {}", DsqName::find(&case.report.dsqs, id, cpu))
}

/// `comm[pid]`, as the kernel writes it.
fn name(task: &StarvedTask) -> String {
    format!("{}[{}]", task.comm, task.pid)
}

/// The name of a BPF function out of its symbol, `bpf_prog_0123456789abcdef_name+0x12/0x34`.
fn program_name(symbol: &str) -> &str {
    let function = symbol.split('+').next().unwrap_or(symbol);
    let function = function.strip_prefix("bpf_prog_").unwrap_or(function);
    function.split_once('_').map_or(function, |(_, name)| name)
}

/// Seconds of a wait, as the kernel writes them.
pub(crate) fn waited(ms: u64) -> String {
    format!("{}.{:03}s", ms / 1000, ms % 1000)
}

/// `a`, `a and b`, `a, b and 3 more`.
fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [one, two] => format!("{one} and {two}"),
        [one, two, three] => format!("{one}, {two} and {three}"),
        [one, two, rest @ ..] => format!("{one}, {two} and {} more", rest.len()),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
