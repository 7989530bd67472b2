//! What the table has of a capture and of its findings.

use scx_postmortem_format::report::{FailureDumpReportAny, PostmortemReport};
use serde::{Deserialize, Serialize};

use crate::signature::{self, Signature};

/// Rows of one capture at most; the column `findings` counts all.
const MAX_FINDINGS: usize = 1000;
/// Bytes of a text in the table at most, but for an input's name.
const MAX_TEXT: usize = 4096;
/// Bytes of all texts in one capture's rows at most. A finding alone has fewer.
const MAX_TEXTS: usize = 4 << 20;

/// A text as the table has it: not longer than [`MAX_TEXT`]. Reports can come from anywhere, and a
/// table repeats what it has of a capture in each row.
fn cut(text: &mut String) {
    const MARK: char = '…';
    if text.len() > MAX_TEXT {
        let mut end = MAX_TEXT - MARK.len_utf8();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push(MARK);
    }
}

/// A value of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    /// A text.
    Text(Option<&'a str>),
    /// A number.
    Number(Option<i64>),
}

/// What the table has of one capture. A column without a value was not in the report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaptureRow {
    /// The capture, as it was given or found.
    pub input: String,
    /// The report's file below the folder of results. Absent when there is none.
    pub report: Option<String>,
    /// Why there is no report.
    pub error: Option<String>,
    /// `single`, `dual` or `degraded`.
    pub schema: Option<String>,
    /// Bytes of the file.
    pub file_bytes: Option<i64>,
    /// Bytes of guest memory in it.
    pub memory_bytes: Option<i64>,
    /// What tells the capture from any other.
    pub digest: Option<String>,
    /// Name and version of the analyzer.
    pub analyzer: String,
    /// `uname -r` of the guest.
    pub kernel_release: Option<String>,
    /// Its build id.
    pub kernel_build_id: Option<String>,
    /// CPUs that the kernel was prepared for.
    pub cpus: Option<i64>,
    /// Time since boot.
    pub uptime_ns: Option<i64>,
    /// What made the capture fire.
    pub trigger: Option<String>,
    /// `sched_ext_ops.name`.
    pub scheduler: Option<String>,
    /// `enabled`, `disabling`, …
    pub scheduler_state: Option<String>,
    /// `scx_exit_info.kind`; 0: it had not ended.
    pub exit_kind: Option<i64>,
    /// The kernel's name for it.
    pub exit_kind_name: Option<String>,
    /// What happened, in the kernel's words.
    pub exit_reason: Option<String>,
    /// The message that goes with it.
    pub exit_msg: Option<String>,
    /// The watchdog's limit.
    pub watchdog_timeout_ms: Option<i64>,
    /// The task that waited longest.
    pub starved_comm: Option<String>,
    /// Its thread id.
    pub starved_pid: Option<i64>,
    /// How long it has waited.
    pub starved_ms: Option<i64>,
    /// The queue that it is on.
    pub starved_on: Option<String>,
    /// Tasks that starve.
    pub starved_tasks: Option<i64>,
    /// The rule of the first finding.
    pub verdict: Option<String>,
    /// How sure that is.
    pub verdict_confidence: Option<String>,
    /// The BPF program that failed.
    pub program: Option<String>,
    /// The line of it.
    pub line: Option<String>,
    /// The failure's signature. Absent when nothing failed.
    pub signature: Option<String>,
    /// Findings in all.
    pub findings: Option<i64>,
    /// Sentences on what is wrong with the file, parts that are missing, and things that cannot be.
    pub warnings: Option<i64>,
    /// As `warnings`.
    pub unavailable: Option<i64>,
    /// As `warnings`.
    pub anomalies: Option<i64>,
}

/// What the table has of one finding.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingRow {
    /// The rule that found it.
    pub rule: String,
    /// `certain`, `likely` or `possible`.
    pub confidence: String,
    /// What was found.
    pub what: String,
}

fn number(value: impl TryInto<i64>) -> Option<i64> {
    value.try_into().ok()
}

impl CaptureRow {
    /// Fills in what a report says.
    pub fn take_report(&mut self, report: &FailureDumpReportAny) {
        self.schema = Some(report.schema().to_owned());
        if let FailureDumpReportAny::Degraded(report) = report {
            self.exit_reason = Some(report.reason.clone());
        }
        let Some(subject) = signature::subject(report) else {
            return;
        };
        let kind = signature::exit_kind(subject);
        self.exit_kind = Some(kind);
        let signature = Signature::of(report);
        self.signature = signature.as_ref().map(Signature::id);
        if let Some(signature) = signature {
            self.program = signature.program;
            self.line = signature.line;
        }
        if let Some(own) = &subject.postmortem {
            self.take_own(own, kind);
        }
    }

    fn take_own(&mut self, own: &PostmortemReport, kind: i64) {
        if let Some(input) = &own.input {
            self.memory_bytes = input.memory_bytes.and_then(number);
            self.digest.clone_from(&input.digest);
            self.trigger.clone_from(&input.trigger);
        }
        if let Some(kernel) = &own.kernel {
            self.kernel_release.clone_from(&kernel.release);
            self.kernel_build_id.clone_from(&kernel.build_id);
            self.cpus = kernel.nr_cpus.map(i64::from);
            self.uptime_ns = kernel.uptime_ns.and_then(number);
        }
        if let Some(scheduler) = &own.scheduler {
            self.scheduler.clone_from(&scheduler.ops_name);
            self.scheduler_state.clone_from(&scheduler.enable_state);
            self.watchdog_timeout_ms = scheduler.watchdog_timeout_ms.and_then(number);
            if scheduler.exit_kind.map(i64::from) == Some(kind) && kind != 0 {
                self.exit_kind_name.clone_from(&scheduler.exit_kind_name);
            }
        }
        if let Some(exit) = own.exit_info.as_ref().filter(|e| i64::from(e.kind) == kind) {
            self.exit_kind_name.clone_from(&exit.kind_name);
            self.exit_reason.clone_from(&exit.reason);
            self.exit_msg.clone_from(&exit.msg);
        }
        if let Some(task) = own.starved.first() {
            self.starved_comm = Some(task.comm.clone());
            self.starved_pid = Some(i64::from(task.pid));
            self.starved_ms = number(task.runnable_age_ms);
            self.starved_on.clone_from(&task.dsq_origin);
        }
        self.starved_tasks = number(own.starved.len());
        if let Some(first) = own.findings.first() {
            self.verdict = Some(first.rule.clone());
            self.verdict_confidence = Some(first.confidence.clone());
        }
        self.findings = number(own.findings.len());
        self.warnings = number(own.warnings.len());
        self.unavailable = number(own.unavailable.len());
        self.anomalies = number(own.anomalies.len());
    }

    /// Shortens what is too long for a table.
    pub(super) fn cut(&mut self) {
        let texts = [
            &mut self.error,
            &mut self.digest,
            &mut self.kernel_release,
            &mut self.kernel_build_id,
            &mut self.trigger,
            &mut self.scheduler,
            &mut self.scheduler_state,
            &mut self.exit_kind_name,
            &mut self.exit_reason,
            &mut self.exit_msg,
            &mut self.starved_comm,
            &mut self.starved_on,
            &mut self.verdict,
            &mut self.verdict_confidence,
            &mut self.program,
            &mut self.line,
        ];
        texts.into_iter().flatten().for_each(cut);
    }

    /// Bytes of the texts in a row of this capture.
    fn text_bytes(&self) -> usize {
        let bytes = |(_, cell): &(&str, Cell<'_>)| match cell {
            Cell::Text(Some(text)) => text.len(),
            _ => 0,
        };
        self.columns(None).iter().map(bytes).sum()
    }

    /// The columns of a row, in the order of the table: of the capture, and of one of its findings.
    #[must_use]
    pub fn columns<'a>(
        &'a self,
        finding: Option<(usize, &'a FindingRow)>,
    ) -> [(&'static str, Cell<'a>); 39] {
        use Cell::{Number, Text};
        let text = |text: &'a Option<String>| Text(text.as_deref());
        let of = |part: fn(&FindingRow) -> &str| Text(finding.map(|(_, finding)| part(finding)));
        [
            ("input", Text(Some(&self.input))),
            ("report", text(&self.report)),
            ("error", text(&self.error)),
            ("schema", text(&self.schema)),
            ("file_bytes", Number(self.file_bytes)),
            ("memory_bytes", Number(self.memory_bytes)),
            ("digest", text(&self.digest)),
            ("analyzer", Text(Some(&self.analyzer))),
            ("kernel_release", text(&self.kernel_release)),
            ("kernel_build_id", text(&self.kernel_build_id)),
            ("cpus", Number(self.cpus)),
            ("uptime_ns", Number(self.uptime_ns)),
            ("trigger", text(&self.trigger)),
            ("scheduler", text(&self.scheduler)),
            ("scheduler_state", text(&self.scheduler_state)),
            ("exit_kind", Number(self.exit_kind)),
            ("exit_kind_name", text(&self.exit_kind_name)),
            ("exit_reason", text(&self.exit_reason)),
            ("exit_msg", text(&self.exit_msg)),
            ("watchdog_timeout_ms", Number(self.watchdog_timeout_ms)),
            ("starved_comm", text(&self.starved_comm)),
            ("starved_pid", Number(self.starved_pid)),
            ("starved_ms", Number(self.starved_ms)),
            ("starved_on", text(&self.starved_on)),
            ("starved_tasks", Number(self.starved_tasks)),
            ("verdict", text(&self.verdict)),
            ("verdict_confidence", text(&self.verdict_confidence)),
            ("program", text(&self.program)),
            ("line", text(&self.line)),
            ("signature", text(&self.signature)),
            ("findings", Number(self.findings)),
            ("warnings", Number(self.warnings)),
            ("unavailable", Number(self.unavailable)),
            ("anomalies", Number(self.anomalies)),
            // From 1, as the text of a report counts them.
            (
                "finding",
                Number(finding.and_then(|(at, _)| number(at.saturating_add(1)))),
            ),
            ("finding_rule", of(|finding| &finding.rule)),
            ("finding_confidence", of(|finding| &finding.confidence)),
            ("finding_what", of(|finding| &finding.what)),
            (
                "table_version",
                Number(Some(i64::from(super::TABLE_VERSION))),
            ),
        ]
    }
}

/// The findings of a report, for the table, beside the capture's own row.
#[must_use]
pub(super) fn findings(report: &FailureDumpReportAny, row: &CaptureRow) -> Vec<FindingRow> {
    let own = signature::subject(report).and_then(|report| report.postmortem.as_deref());
    let findings = own.map_or(&[][..], |own| &own.findings);
    let mut room = MAX_TEXTS;
    let capture = row.text_bytes();
    let rows = findings.iter().take(MAX_FINDINGS).map_while(|finding| {
        let mut row = FindingRow {
            rule: finding.rule.clone(),
            confidence: finding.confidence.clone(),
            what: finding.what.clone(),
        };
        let texts = [&mut row.rule, &mut row.confidence, &mut row.what];
        let own: usize = texts
            .into_iter()
            .map(|text| {
                cut(text);
                text.len()
            })
            .sum();
        room = room.checked_sub(capture.saturating_add(own))?;
        Some(row)
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use scx_postmortem_format::report::{FailureDumpReport, Finding};

    use super::*;

    fn rows(findings: Vec<Finding>) -> (CaptureRow, Vec<FindingRow>) {
        let own = PostmortemReport {
            findings,
            ..PostmortemReport::default()
        };
        let report = FailureDumpReport {
            postmortem: Some(Box::new(own)),
            ..FailureDumpReport::default()
        };
        let report = FailureDumpReportAny::from(report);
        let mut row = CaptureRow::default();
        row.take_report(&report);
        row.cut();
        let findings = super::findings(&report, &row);
        (row, findings)
    }

    fn finding(rule: &str, what: String) -> Finding {
        Finding {
            rule: rule.to_owned(),
            what,
            ..Finding::default()
        }
    }

    #[test]
    fn a_report_from_anywhere_cannot_fill_the_table() {
        let many = vec![finding("many", "x".to_owned()); 5000];
        let (row, findings) = rows(many);
        assert_eq!((row.findings, findings.len()), (Some(5000), MAX_FINDINGS));
        // Three bytes a character: the cut is between two.
        let (row, findings) = rows(vec![finding(&"→".repeat(3000), "→".repeat(1 << 20))]);
        let verdict = row.verdict.unwrap();
        assert_eq!((verdict.len(), &verdict), (MAX_TEXT - 1, &findings[0].rule));
        assert!(verdict.ends_with("→…"), "{verdict}");
        assert_eq!(findings[0].what.len(), MAX_TEXT - 1);
        // What each row repeats counts.
        let (_, findings) = rows(vec![finding(&"r".repeat(4096), "w".repeat(4096)); 1000]);
        // The verdict, the rule, the sentence, the schema and the signature.
        assert_eq!(findings.len(), MAX_TEXTS / (3 * 4096 + 6 + 18));
        let (_, findings) = rows(vec![finding("r", "w".repeat(4096)); 2]);
        assert_eq!(findings[1].what.len(), 4096);
    }
}
