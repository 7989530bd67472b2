//! Findings: what a person should look at first.
//!
//! Each rule is a file here. A rule looks only at the report, so that whatever it says can be
//! checked there: every finding names its evidence by JSON pointer. Rules come in the order in
//! which they explain a failure; what is certain goes before what is likely, and the first
//! finding is the verdict. A rule that misses what it needs says nothing.

mod affinity;
mod bypass;
mod error_exit;
mod idle_cpu;
mod lock_holder;
mod queue;
mod realtime;

use std::fmt::Display;

use scx_postmortem_format::report::{
    CpuInfo, Finding, FindingEvidence, PostmortemReport, StarvedTask, TaskInfo,
};

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
}

impl Draft {
    fn new(confidence: Confidence, what: impl Into<String>) -> Self {
        Self {
            confidence,
            what: what.into(),
            advice: None,
            evidence: Vec::new(),
        }
    }

    fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
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
}

type Rule = fn(&Case<'_>) -> Vec<Draft>;

/// The rules, the one that explains most first.
const RULES: [(&str, Rule); 8] = [
    ("error-exit", error_exit::find),
    ("lock-holder-off-cpu", lock_holder::find),
    ("queue-never-consumed", queue::never_consumed),
    ("real-time-hog", realtime::find),
    ("affinity", affinity::find),
    ("idle-cpu-with-waiting-work", idle_cpu::find),
    ("queue-stopped", queue::stopped),
    ("bypass", bypass::find),
];

/// The findings on a report, the verdict first.
#[must_use]
pub fn findings(report: &PostmortemReport) -> Vec<Finding> {
    let case = Case { report };
    let mut found: Vec<(Confidence, Finding)> = Vec::new();
    for (rule, find) in RULES {
        for draft in find(&case) {
            found.push((
                draft.confidence,
                Finding {
                    rule: rule.to_owned(),
                    what: draft.what,
                    confidence: draft.confidence.word().to_owned(),
                    advice: draft.advice,
                    evidence: draft.evidence,
                },
            ));
        }
    }
    found.sort_by_key(|(confidence, _)| *confidence);
    found.into_iter().map(|(_, finding)| finding).collect()
}

/// The report, with the look-ups that rules share.
struct Case<'r> {
    report: &'r PostmortemReport,
}

impl<'r> Case<'r> {
    /// The starved tasks with their place in the list.
    fn starved(&self) -> impl Iterator<Item = (usize, &'r StarvedTask)> {
        self.report.starved.iter().enumerate()
    }

    /// A task's own record.
    fn task(&self, starved: &StarvedTask) -> Option<(usize, &'r TaskInfo)> {
        let mut tasks = self.report.tasks.iter().enumerate();
        tasks.find(|(_, task)| task.kva == starved.kva)
    }

    /// The online CPUs that a starved task may use.
    fn may_use(&self, starved: &StarvedTask) -> Option<Vec<(usize, &'r CpuInfo)>> {
        let (_, task) = self.task(starved)?;
        // The scheduler must not move it either.
        let allowed = match task.migration_disabled {
            Some(0) | None => parse_cpus(task.cpus_allowed.as_deref()?)?,
            Some(_) => vec![(starved.cpu, starved.cpu)],
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

/// `comm[pid]`, as the kernel writes it.
fn name(task: &StarvedTask) -> String {
    format!("{}[{}]", task.comm, task.pid)
}

/// Seconds of a wait, as the kernel writes them.
fn waited(ms: u64) -> String {
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
