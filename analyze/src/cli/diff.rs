//! `analyze diff`.

use std::path::{Path, PathBuf};

use clap::Args;
use scx_postmortem_analyze::analysis;
use scx_postmortem_analyze::diff::compare_reports;
use scx_postmortem_format::report::{FailureDumpReport, FailureDumpReportAny};

use super::{Failure, InputArgs, Opened, emit, exit, may_emit};

/// What `analyze diff` is given.
#[derive(Args)]
pub(super) struct DiffArgs {
    /// A capture, an ELF core, or a report's JSON.
    a: PathBuf,
    /// Another one. Without it, A is a dual one, and its early half is compared with its late one.
    b: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Where to write it; appears only when complete. Default, and `-`: standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    input: InputArgs,
}

/// A report, the early half of a dual one or the late one. `code` becomes what is told of its file.
fn report(
    args: &DiffArgs,
    file: &Path,
    early: bool,
    code: &mut u8,
) -> Result<FailureDumpReport, Failure> {
    let refuse = |why: String| {
        let sentence = format!("{}: {why}", file.display());
        Err(Failure(exit::UNUSABLE_FILE, sentence))
    };
    let opened = args.input.open(file, early)?;
    *code = opened.warn(file).max(*code);
    match opened {
        Opened::Kernel(kernel, _) => Ok(analysis::analyze(&kernel, &args.input.options())),
        Opened::Report(any) => match *any {
            FailureDumpReportAny::Single(report) if !early => Ok(*report),
            FailureDumpReportAny::Dual(dual) if !early => Ok(dual.late),
            FailureDumpReportAny::Dual(dual) => match (dual.early, dual.early_skipped_reason) {
                (Some(early), _) => Ok(early),
                (None, why) => refuse(format!(
                    "there is no early half: {}",
                    why.unwrap_or_default()
                )),
            },
            FailureDumpReportAny::Degraded(report) => refuse(format!(
                "the capture was given up, so there is nothing to compare: {}",
                report.reason
            )),
            _ => Err(Failure(
                exit::USAGE,
                format!(
                    "{}: this report holds one image; give another one to compare it with",
                    file.display()
                ),
            )),
        },
    }
}

pub(super) fn run(args: &DiffArgs) -> Result<u8, Failure> {
    let inputs: Vec<&Path> = std::iter::once(&*args.a).chain(args.b.as_deref()).collect();
    may_emit(args.output.as_deref(), &inputs)?;
    let name = |file: &Path| {
        let name = file.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    let mut code = exit::OK;
    let (a, b, names) = match &args.b {
        Some(b) => {
            let mut names = [name(&args.a), name(b)];
            // Then only the whole path tells one from the other.
            if let [one, other] = &mut names
                && one == other
            {
                *one = args.a.display().to_string();
                *other = b.display().to_string();
            }
            (
                report(args, &args.a, false, &mut code)?,
                report(args, b, false, &mut code)?,
                names,
            )
        }
        None => (
            report(args, &args.a, true, &mut code)?,
            report(args, &args.a, false, &mut code)?,
            ["early".to_owned(), "late".to_owned()],
        ),
    };
    let [name_a, name_b] = &names;
    let diff = compare_reports(&a, &b, [name_a, name_b]);
    let text = if args.json {
        serde_json::to_string(&diff)
            .map_err(|e| Failure(exit::OUTPUT, format!("cannot write the comparison: {e}")))?
    } else {
        diff.to_string()
    };
    emit(args.output.as_deref(), &text)?;
    Ok(code)
}
