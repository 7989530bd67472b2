//! `analyze upgrade`.

use std::path::PathBuf;

use clap::Args;
use scx_postmortem_analyze::{golden, source};
use scx_postmortem_format::report::{FailureDumpReport, FailureDumpReportAny, POSTMORTEM_VERSION};

use super::{Failure, InputArgs, Opened, exit, print};

/// What `analyze upgrade` is given.
#[derive(Args)]
pub(super) struct UpgradeArgs {
    /// Captures and reports.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    input: InputArgs,
}

/// Says of each file which version it has. There has been one of each so far, so whatever opens is
/// current; an upgrader of an older one belongs here.
pub(super) fn run(args: &UpgradeArgs) -> Result<u8, Failure> {
    for file in &args.files {
        let what = if golden::is_json(file) {
            let Opened::Report(any) = args.input.open(file, false)? else {
                continue;
            };
            report(&any)
        } else {
            let facts = source::describe(file)?;
            let mut values = facts.lines.into_iter().map(|(_, value)| value);
            let container = values.find(|value| value.contains("container version"));
            match container {
                Some(version) => format!("{version}: current, nothing to upgrade"),
                None => "an ELF core, which has no version of ours; `capture convert` makes a capture of it".to_owned(),
            }
        };
        print(&[&file.display().to_string(), ": ", &what, "\n"])?;
    }
    Ok(exit::OK)
}

fn report(any: &FailureDumpReportAny) -> String {
    let ours = |report: &FailureDumpReport| report.postmortem.is_some();
    let has_version = match any {
        FailureDumpReportAny::Single(report) => ours(report),
        FailureDumpReportAny::Dual(dual) => ours(&dual.late),
        _ => false,
    };
    let schema = any.schema();
    if has_version {
        format!("{schema} report, version {POSTMORTEM_VERSION}: current, nothing to upgrade")
    } else {
        format!(
            "{schema} report of the shared format alone, which has no version: nothing to upgrade"
        )
    }
}
