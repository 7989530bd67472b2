//! `analyze golden`.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write as _};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, Subcommand};
use scx_postmortem_analyze::golden::Redaction;
use scx_postmortem_analyze::golden::check::{self, Given, Outcome, Task};
use scx_postmortem_analyze::source;
use scx_postmortem_format::capture::{AtomicFile, Existing};
use scx_postmortem_format::report::Escaped;

use super::{Failure, Progress, exit, print};

/// What `analyze golden` is given.
#[derive(Args)]
pub(super) struct GoldenArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compares the report of every *.core.zst below DIR with the *.golden.json beside it.
    Check {
        #[command(flatten)]
        common: Common,
        /// Also write the results as JUnit XML.
        #[arg(long, value_name = "FILE")]
        junit: Option<PathBuf>,
    },
    /// Writes the report of every *.core.zst below DIR as *.golden.json beside it.
    Bless {
        #[command(flatten)]
        common: Common,
        /// What to replace, so that it may change: `addresses`, `times`, `versions`, `none`. The
        /// golden report remembers it. Default: what it has, of a new one `versions`.
        #[arg(long, value_name = "WHAT", value_delimiter = ',')]
        redact: Vec<String>,
        /// A part of the report to leave out, as `postmortem.kernel_log`. More than one can be
        /// given; `none` alone leaves out nothing. Default: what the golden report leaves out.
        #[arg(long, value_name = "PATH")]
        without: Vec<String>,
    },
}

#[derive(Args)]
struct Common {
    /// A folder with captures.
    dir: PathBuf,
    /// Captures to look at at the same time. Default: as many as there are processors.
    #[arg(short, long)]
    jobs: Option<NonZeroUsize>,
    /// For captures that were reduced without the kernel's tables.
    #[arg(long, value_name = "FILE")]
    kernel_tables: Option<PathBuf>,
}

fn given(redact: &[String], without: &[String]) -> Result<Given, Failure> {
    let paths: Vec<String> = match without {
        [none] if none == "none" => Vec::new(),
        paths => paths.to_vec(),
    };
    if let Some(path) = paths.iter().find(|path| path.contains(['[', ']', '*'])) {
        return Err(Failure(
            2,
            format!(
                "--without {path}: expected names with dots between them, as postmortem.kernel_log; members of a list's elements cannot be left out, only the whole list"
            ),
        ));
    }
    let mut redactions = BTreeSet::new();
    for name in redact.iter().filter(|name| *name != "none") {
        let redaction = Redaction::of_name(name).ok_or_else(|| {
            let all: Vec<&str> = Redaction::ALL.iter().map(|r| r.name()).collect();
            let all = all.join(", ");
            Failure(
                2,
                format!("--redact {name}: expected none or some of {all}"),
            )
        })?;
        redactions.insert(redaction);
    }
    Ok(Given {
        redactions: (!redact.is_empty()).then_some(redactions),
        without: (!without.is_empty()).then_some(paths),
    })
}

pub(super) fn run(args: &GoldenArgs) -> Result<u8, Failure> {
    let (common, task, junit) = match &args.command {
        Command::Check { common, junit } => (common, Task::Check, junit.as_ref()),
        Command::Bless {
            common,
            redact,
            without,
        } => (common, Task::Bless(given(redact, without)?), None),
    };
    if let Some(junit) = junit {
        source::may_write(junit, &[], false).map_err(|s| Failure(exit::OUTPUT, s))?;
    }
    let captures = check::captures(&common.dir).map_err(|why| Failure(exit::UNUSABLE_FILE, why))?;
    if captures.is_empty() {
        return Err(Failure(
            exit::UNUSABLE_FILE,
            format!("{}: no *.core.zst is below it", common.dir.display()),
        ));
    }
    if let Task::Bless(Given {
        without: Some(paths),
        ..
    }) = &task
        && let Some((path, meant)) =
            check::unknown_path(&captures, paths, common.kernel_tables.as_deref())
    {
        let near = match meant.as_slice() {
            [] => String::new(),
            meant => format!("; near: {}", meant.join(", ")),
        };
        let why = format!("--without {path}: no report of these captures has it{near}");
        return Err(Failure(2, why));
    }
    let jobs = super::jobs(common.jobs);
    let began = Instant::now();
    let progress = Progress::new("reports");
    let total = u64::try_from(captures.len()).unwrap_or(u64::MAX);
    let cases = check::run(
        &common.dir,
        &captures,
        &task,
        common.kernel_tables.as_deref(),
        jobs,
        &|done| progress.show(u64::try_from(done).unwrap_or(0), total),
    );
    progress.clear();
    let time = began.elapsed();
    let (mut failed, mut written) = (0, 0);
    for case in &cases {
        let name = Escaped(&case.name);
        let line = match &case.outcome {
            Outcome::Same => continue,
            Outcome::Written => {
                written += 1;
                format!("written  {name}\n")
            }
            Outcome::Missing => {
                failed += 1;
                format!(
                    "MISSING  {name}: it has no golden report; `analyze golden bless` makes it\n"
                )
            }
            Outcome::Failed(why) => {
                failed += 1;
                format!("FAILED   {name}: {}\n", Escaped(why))
            }
            Outcome::Differs(text, count) => {
                failed += 1;
                let lines = text.lines().map(|line| format!("    {}\n", Escaped(line)));
                let lines: String = lines.collect();
                let s = if *count == 1 { "" } else { "s" };
                format!("DIFFERS  {name}: {count} difference{s}\n{lines}")
            }
        };
        print(&[&line])?;
    }
    let same = cases.len() - failed - written;
    let what = match task {
        Task::Check => format!("{same} the same, {failed} not"),
        Task::Bless(_) => format!("{written} written, {same} as they were, {failed} failed"),
    };
    print(&[&format!("{} captures: {what}\n", cases.len())])?;
    if std::io::stderr().is_terminal() {
        let seconds = time.as_secs_f64();
        eprintln!(
            "{seconds:.1} s, {:.1} a second",
            cases.len() as f64 / seconds
        );
    }
    if let Some(path) = junit {
        let write = || -> Result<(), Box<dyn std::error::Error>> {
            let mut file = AtomicFile::create(path, Existing::Replace)?;
            file.file()
                .write_all(check::junit(&cases, time).as_bytes())?;
            file.commit()?;
            Ok(())
        };
        write().map_err(|e| Failure::output(path, e))?;
    }
    Ok(if failed == 0 { exit::OK } else { exit::DIFFERS })
}
