//! The text form of a report.
//!
//! `Display` of the report types is the text of the shared format, line by line. It leaves our own
//! `postmortem` part out; [`text_report`] prints that first and the shared text after it.
//!
//! No text depends on a clock, a terminal or the order in which threads finish. Strings of the
//! guest pass through [`Escaped`], so that a corrupted or hostile guest cannot send control
//! sequences to a reader's terminal.

mod bpf_maps;
mod bpf_objects;
mod card;
mod cpus;
mod deferred;
mod diff;
mod escape;
mod history;
mod kernel_side;
mod map;
mod postmortem;
mod report;
mod sparkline;
mod stacks;
mod value;

use std::fmt::Write;

pub use escape::Escaped;

use super::any::FailureDumpReportAny;
use super::dump::FailureDumpReport;

/// What a person reads first: the kernel, what happened, and why. It ends in a newline.
pub fn brief_report(report: &FailureDumpReportAny) -> String {
    let of = |report: &FailureDumpReport| {
        let postmortem = report.postmortem.as_ref();
        postmortem.map_or(String::new(), |p| format!("{}\n", p.brief()))
    };
    match report {
        FailureDumpReportAny::Single(report) => of(report),
        FailureDumpReportAny::Dual(report) => of(&report.late),
        FailureDumpReportAny::Degraded(report) => format!("{report}\n"),
    }
}

/// Appends what the analysis found in one capture.
fn block(text: &mut String, title: &str, report: &FailureDumpReport) {
    if let Some(postmortem) = &report.postmortem {
        if !title.is_empty() {
            text.push_str(title);
            text.push_str("\n\n");
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "{}\n\n", postmortem.text(Some(report)));
    }
}

/// The whole text of a report: what the analysis found (`postmortem`, of the early capture and of
/// the late one where there are two), then the text of the shared format, then the kernel's log.
/// It ends in a newline.
pub fn text_report(report: &FailureDumpReportAny) -> String {
    let mut text = String::new();
    match report {
        FailureDumpReportAny::Single(report) => block(&mut text, "", report),
        FailureDumpReportAny::Dual(report) => {
            // The late capture holds the failure, and the verdict; the early one explains it.
            block(&mut text, "=== late capture ===", &report.late);
            let own = report.late.postmortem.as_ref();
            if let Some(diff) = own.and_then(|own| own.diff.as_deref()) {
                text.push_str("=== from the early to the late capture ===\n\n");
                text.push_str(&diff::text(diff));
                text.push_str("\n\n");
            }
            if let Some(early) = &report.early {
                block(&mut text, "=== early capture ===", early);
            }
        }
        FailureDumpReportAny::Degraded(_) => {}
    }
    if !text.is_empty() {
        text.push_str("=== captured state ===\n\n");
    }
    let _ = write!(text, "{report}");
    if !text.ends_with('\n') {
        text.push('\n');
    }
    // The late capture's log has what the early one's had.
    let last = match report {
        FailureDumpReportAny::Single(report) => report.postmortem.as_ref(),
        FailureDumpReportAny::Dual(report) => report.late.postmortem.as_ref(),
        FailureDumpReportAny::Degraded(_) => None,
    };
    if let Some(postmortem) = last.filter(|own| !own.kernel_log.is_empty()) {
        text.push_str("\n=== kernel log ===\n\n");
        text.push_str(&kernel_side::log(&postmortem.kernel_log));
    }
    text
}
