//! Command line, exit codes and output files of `analyze`.

mod batch;
mod diff;
mod golden;
mod query;
mod shell;
mod upgrade;

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::degraded;
use scx_postmortem_analyze::error::OpenError;
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::reduce::{self as reducing, Pick, ReduceError, Reduced};
use scx_postmortem_analyze::source::{self, Image};
use scx_postmortem_analyze::tables;
use scx_postmortem_analyze::walk::Limits;
use scx_postmortem_format::capture::{AtomicFile, Existing};
use scx_postmortem_format::report::{
    DualFailureDumpReport, Escaped, FailureDumpReport, FailureDumpReportAny, UnavailableCode,
    brief_report, reasons, text_report,
};

/// The exit codes, a part of the interface: scripts branch on them.
mod exit {
    /// Everything that was asked for.
    pub(super) const OK: u8 = 0;
    /// Output could not be written.
    pub(super) const OUTPUT: u8 = 1;
    /// Wrong arguments; clap's own.
    pub(super) const USAGE: u8 = 2;
    /// Done, be it a report, `info` or an export, but parts of the image are missing or damaged.
    pub(super) const DEGRADED: u8 = 3;
    /// The file is missing, is no core, is damaged beyond use or from a newer version.
    pub(super) const UNUSABLE_FILE: u8 = 4;
    /// The file is a core, but holds no kernel that can be read.
    pub(super) const NO_KERNEL: u8 = 5;
    /// A report was written, but this kernel has no sched_ext.
    pub(super) const NO_SCHED_EXT: u8 = 6;
    /// `verify` found damage.
    pub(super) const DAMAGED: u8 = 7;
    /// `golden check` found a report that is not the golden one, or that could not be made.
    pub(super) const DIFFERS: u8 = 8;
}

const EXAMPLES: &str = "\
Examples:
  analyze stall.core.zst                      the report, as text
  analyze stall.core.zst --format json -o r.json
  analyze vmcore.elf --btf vmlinux.btf        types from a file, when the image has none
  analyze info stall.core.zst                 what is in this file, in milliseconds
  analyze query stall.core.zst 'rq(1).scx.nr_running' 'bss.nr_parked'   see docs/query.md
  analyze verify stall.core.zst               check every frame
  analyze export stall.core.zst -o core.elf   for drgn, crash, gdb
  analyze batch captures/ --out results       reports of many, and one table of all
  analyze reduce stall.core.zst -o small.core.zst   only what the report needs, for a bug report or a test
";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the output could not be written
  2  wrong arguments
  3  done, but parts of the image are missing, unreadable or damaged, or the capture was given up
  4  unusable file: missing, empty, not a core, damaged, or from a newer version
  5  no usable kernel in the image
  6  report written, but this kernel has no sched_ext
  7  verify found damage
  8  golden check found a difference, or golden bless a capture that it cannot read
";

/// Reads a core of a Linux guest and reports on its sched_ext scheduler.
#[derive(Parser)]
#[command(name = "analyze", version, before_help = EXAMPLES, after_help = EXIT_CODES)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    report: ReportArgs,
}

#[derive(Subcommand)]
enum Command {
    /// What a file holds, without decompressing its memory.
    Info {
        /// A capture or an ELF core.
        file: PathBuf,
    },
    /// Checks every frame of a capture against its checksum.
    Verify {
        /// A capture.
        file: PathBuf,
    },
    /// Writes a capture of only the pages that a report reads: small enough for a bug report or a
    /// test, with the same report.
    Reduce {
        /// A capture or an ELF core.
        file: PathBuf,
        /// The capture to write.
        #[arg(short, long)]
        output: PathBuf,
        /// zstd level.
        #[arg(long, default_value_t = 19, value_parser = clap::value_parser!(i32).range(1..=22))]
        level: i32,
        /// Leave out what is in this file, which `analyze tables` has written for the same kernel.
        /// Who reads the capture then needs that file, too.
        #[arg(long, value_name = "FILE")]
        kernel_tables: Option<PathBuf>,
        /// Of a dual capture, reduce the early image.
        #[arg(long, conflicts_with = "late")]
        early: bool,
        /// Of a dual capture, reduce the late image.
        #[arg(long)]
        late: bool,
    },
    /// Writes what all guests with a kernel have in common (its types, symbols and unwind tables),
    /// to be kept once for many reduced captures.
    Tables {
        /// A capture or an ELF core of any guest with that kernel.
        file: PathBuf,
        /// The file to write.
        #[arg(short, long)]
        output: PathBuf,
        /// zstd level.
        #[arg(long, default_value_t = 19, value_parser = clap::value_parser!(i32).range(1..=22))]
        level: i32,
    },
    /// Answers questions about a guest: variables, map entries, kernel objects, the report.
    Query(query::QueryArgs),
    /// The same, line by line, with history and completion (the tab key).
    Shell(shell::ShellArgs),
    /// What changed from one capture or report to another, or from the early half of a dual one to
    /// the late one.
    Diff(diff::DiffArgs),
    /// Tests the captures in a folder against reports that were found right.
    Golden(golden::GoldenArgs),
    /// Reports of many captures, and one table of all: what is done is not done again.
    Batch(batch::BatchArgs),
    /// Brings captures and reports of earlier versions to the current one; says of each which
    /// version it has.
    Upgrade(upgrade::UpgradeArgs),
    /// Writes the ELF core that a capture holds.
    Export {
        /// A capture.
        file: PathBuf,
        /// The ELF file to write.
        #[arg(short, long)]
        output: PathBuf,
    },
}

#[derive(Args)]
struct ReportArgs {
    /// A capture (*.core.zst) or an ELF core with physical addresses.
    #[arg(required = true)]
    file: Option<PathBuf>,
    /// Form of the report.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// End the text after the findings.
    #[arg(long)]
    brief: bool,
    /// Where to write it; appears only when complete. Default, and `-`: standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Of a dual capture, make the report of the early image alone.
    #[arg(long, conflicts_with = "late")]
    early: bool,
    /// Of a dual capture, make the report of the late image alone.
    #[arg(long)]
    late: bool,
    /// Of a capture that was given up, make the report that memory still tells, which may be torn.
    #[arg(long)]
    best_effort: bool,
    /// Print to standard error how long each part took. Parts run at the same time.
    #[arg(long)]
    timings: bool,
    #[command(flatten)]
    input: InputArgs,
}

/// How a capture is read, and where what it lacks comes from.
#[derive(Args)]
struct InputArgs {
    /// Raise every limit on list lengths to N.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Show integers as integers, also those that the scheduler keeps pointers in.
    #[arg(long)]
    no_casts: bool,
    /// Take VMCOREINFO from this text file.
    #[arg(long, value_name = "FILE")]
    vmcoreinfo: Option<PathBuf>,
    /// Take the kernel's types from this raw BTF blob.
    #[arg(long, value_name = "FILE")]
    btf: Option<PathBuf>,
    /// Where the image has no symbols or types: take them from this ELF vmlinux.
    #[arg(long, value_name = "FILE")]
    vmlinux: Option<PathBuf>,
    /// Take the symbols from this System.map.
    #[arg(long, value_name = "FILE")]
    system_map: Option<PathBuf>,
    /// Where the capture was reduced without the kernel's tables: take them from this file, which
    /// `analyze tables` has written.
    #[arg(long, value_name = "FILE")]
    kernel_tables: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// For reading.
    Text,
    /// The report's JSON, one line.
    Json,
    /// The same, indented.
    JsonPretty,
}

/// A failure on its way out: code and sentence.
struct Failure(u8, String);

impl Failure {
    fn output(path: &Path, cause: impl std::fmt::Display) -> Self {
        Self(exit::OUTPUT, format!("{}: {cause}", path.display()))
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let code = match error {
            OpenError::NotDual { .. } => exit::USAGE,
            _ => exit::UNUSABLE_FILE,
        };
        Self(code, error.to_string())
    }
}

/// Runs the command line.
pub(crate) fn run() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| match error.kind() {
        // A word too many, or a misspelt command: clap would call the second word a command.
        ErrorKind::ArgumentConflict => Cli::command()
            .error(
                ErrorKind::InvalidSubcommand,
                "a report takes one FILE; a command comes first and is one of info, verify, query, shell, diff, golden, batch, upgrade, reduce, tables, export",
            )
            .exit(),
        // clap forgets that this could not be written.
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let text = error.render();
            let text = match std::io::stdout().is_terminal() {
                true => text.ansi().to_string(),
                false => text.to_string(),
            };
            let code = match print(&[&text]) {
                Ok(()) => exit::OK,
                Err(Failure(code, sentence)) => {
                    let _ = writeln!(std::io::stderr(), "analyze: {sentence}");
                    code
                }
            };
            std::process::exit(i32::from(code))
        }
        _ => error.exit(),
    });
    let done = match &cli.command {
        Some(Command::Info { file }) => info(file),
        Some(Command::Verify { file }) => verify(file),
        Some(Command::Reduce {
            file,
            output,
            level,
            kernel_tables,
            early,
            late,
        }) => reduce(
            file,
            pick(*early, *late),
            kernel_tables.as_deref(),
            output,
            *level,
        ),
        Some(Command::Tables {
            file,
            output,
            level,
        }) => reduced(&[file], output, "collecting", |show| {
            reducing::tables(file, output, *level, show)
        }),
        Some(Command::Query(args)) => query::run(args),
        Some(Command::Shell(args)) => shell::run(args),
        Some(Command::Diff(args)) => diff::run(args),
        Some(Command::Golden(args)) => golden::run(args),
        Some(Command::Batch(args)) => batch::run(args),
        Some(Command::Upgrade(args)) => upgrade::run(args),
        Some(Command::Export { file, output }) => export(file, output),
        None => report(&cli.report),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(Failure(code, sentence)) => {
            // Nothing is left to tell anyone when stderr is gone too.
            let _ = writeln!(std::io::stderr(), "analyze: {}", Escaped(&sentence));
            ExitCode::from(code)
        }
    }
}

impl InputArgs {
    /// Refuses files that cannot be opened, before any work.
    fn check_files(&self) -> Result<(), Failure> {
        let files = [
            ("--vmcoreinfo", &self.vmcoreinfo),
            ("--btf", &self.btf),
            ("--vmlinux", &self.vmlinux),
            ("--system-map", &self.system_map),
            ("--kernel-tables", &self.kernel_tables),
        ];
        for (flag, path) in files {
            if let Some(path) = path
                && let Err(e) = source::open_regular(path)
            {
                return Err(Failure(2, format!("{flag} {}: {e}", path.display())));
            }
        }
        Ok(())
    }

    fn options(&self) -> Options {
        let limits = Limits::default();
        Options {
            limits: self.limit.map_or(limits, |n| limits.raised_to(n)),
            no_casts: self.no_casts,
        }
    }
}

impl ReportArgs {
    /// Refuses what would fail or destroy something, before any work.
    fn check_files(&self, file: &Path) -> Result<(), Failure> {
        self.input.check_files()?;
        may_emit(self.output.as_deref(), &[file])
    }
}

/// Refuses an output that would destroy something, before any work.
fn may_emit(output: Option<&Path>, inputs: &[&Path]) -> Result<(), Failure> {
    match output {
        Some(output) if output != Path::new("-") => source::may_write(output, inputs, false)
            .map_err(|sentence| Failure(exit::OUTPUT, sentence)),
        _ => Ok(()),
    }
}

/// How many captures are looked at at the same time: as many as were asked for, or as there are
/// processors.
fn jobs(asked: Option<NonZeroUsize>) -> usize {
    asked
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get)
}

/// Most reasons that are told of a capture that was given up.
const MAX_REASONS: usize = 20;

fn report(args: &ReportArgs) -> Result<u8, Failure> {
    let Some(file) = &args.file else {
        return Err(Failure(2, "no file given; see --help".into()));
    };
    if args.brief && !matches!(args.format, Format::Text) {
        let sentence = "--brief shortens the text; expected no --format json with it";
        return Err(Failure(2, sentence.into()));
    }
    args.check_files(file)?;
    let start = Instant::now();
    let image = if args.early {
        Image::open_early(file)?
    } else {
        Image::open(file)?
    };
    if let Some(report) = degraded::report(&image).filter(|_| !args.best_effort) {
        let degraded = image.manifest.iter().flat_map(|m| &m.degraded);
        for why in degraded.take(MAX_REASONS) {
            eprintln!("analyze: {}: {}", file.display(), Escaped(why));
        }
        eprintln!(
            "analyze: {}: the capture was given up; --best-effort makes the report that memory still tells",
            file.display()
        );
        let text = args.render(&report.into())?;
        emit(args.output.as_deref(), &text)?;
        return Ok(exit::DEGRADED);
    }
    let dual = image.early && !args.late;
    let kernel = args.input.kernel(file, image)?;
    if args.input.vmlinux.is_some() && kernel.provenance.iter().all(|p| p.source != "--vmlinux") {
        eprintln!("--vmlinux was not needed: the image has symbols and types of its own");
    }
    let options = args.input.options();
    let found = start.elapsed();
    let (any, code, times) = if dual {
        let (report, code) = dual_report(args, file, &kernel, &options);
        (FailureDumpReportAny::from(report), code, Vec::new())
    } else {
        let (report, times) = analysis::analyze_timed(&kernel, &options);
        let code = exit_code(&kernel, &report);
        (report.into(), code, times)
    };
    let analyzed = start.elapsed();
    let text = args.render(&any)?;
    if args.timings {
        let rendered = start.elapsed();
        eprintln!("{:>8.1} ms  the file and its kernel", millis(found));
        for (what, time) in times {
            eprintln!("{:>8.1} ms    {what}", millis(time));
        }
        eprintln!("{:>8.1} ms  all walkers", millis(analyzed - found));
        eprintln!("{:>8.1} ms  the report's form", millis(rendered - analyzed));
    }
    emit(args.output.as_deref(), &text)?;
    Ok(code)
}

/// The report of both images of a dual capture. What is wrong with the early one costs that half.
fn dual_report(
    args: &ReportArgs,
    file: &Path,
    late: &Kernel,
    options: &Options,
) -> (DualFailureDumpReport, u8) {
    let without = |why: String| {
        let report = analysis::analyze(late, options);
        let code = exit_code(late, &report);
        let report = DualFailureDumpReport {
            early_skipped_reason: Some(why),
            ..DualFailureDumpReport::new(report)
        };
        (report, exit::DEGRADED.max(code))
    };
    let image = match Image::open_early(file) {
        Ok(image) => image,
        Err(why) => return without(why.to_string()),
    };
    if let Some(report) = degraded::report(&image).filter(|_| !args.best_effort) {
        return without(reasons::early_degraded(&report.reason));
    }
    match args.input.kernel(file, image) {
        Err(Failure(_, why)) => without(why),
        Ok(early) => {
            let report = analysis::analyze_dual(&early, late, options);
            let mut code = exit_code(late, &report.late);
            if let Some(half) = &report.early
                && code == exit::OK
            {
                code = exit_code(&early, half);
            }
            (report, code)
        }
    }
}

impl InputArgs {
    /// The kernel of an image.
    fn kernel(&self, file: &Path, mut image: Image) -> Result<Kernel, Failure> {
        if let Some(path) = &self.kernel_tables {
            image = tables::supply(image, path)
                .map_err(|why| Failure(exit::UNUSABLE_FILE, format!("--kernel-tables {why}")))?;
        }
        let warnings = image.warnings.clone();
        let overrides = Overrides {
            vmcoreinfo: self.vmcoreinfo.clone(),
            btf: self.btf.clone(),
            vmlinux: self.vmlinux.clone(),
            system_map: self.system_map.clone(),
        };
        let no_kernel = |why| {
            // What is wrong with the file comes first: it explains the rest.
            let why = match warnings.as_slice() {
                [] => why,
                some => format!(
                    "{}; copy the file again; for what is left: {why}",
                    some.join("; ")
                ),
            };
            Failure(
                exit::NO_KERNEL,
                OpenError::NoKernel {
                    path: file.display().to_string(),
                    why,
                }
                .to_string(),
            )
        };
        let image = tables::complete(image, &[], Some(file)).map_err(|fault| match fault {
            tables::Fault::Missing(why) => no_kernel(why),
            tables::Fault::Unusable(why) => Failure(exit::UNUSABLE_FILE, why),
        })?;
        Kernel::find(image, &overrides).map_err(no_kernel)
    }
}

impl ReportArgs {
    /// The report in the form that was asked for.
    fn render(&self, any: &FailureDumpReportAny) -> Result<String, Failure> {
        let text = match self.format {
            Format::Text if self.brief => Ok(brief_report(any)),
            Format::Text => Ok(text_report(any)),
            Format::Json => any.to_json(),
            Format::JsonPretty => any.to_json_pretty(),
        };
        text.map_err(|e| Failure(exit::OUTPUT, format!("cannot write the report: {e}")))
    }
}

/// What a file holds.
enum Opened {
    /// Memory with a kernel in it, and why it is not whole, as of a capture that was given up or
    /// that lost its end. Each a sentence.
    Kernel(Box<Kernel>, Vec<String>),
    /// A report.
    Report(Box<FailureDumpReportAny>),
}

impl InputArgs {
    /// Opens a capture, a core or a report. A file that begins with `{` is a report.
    fn open(&self, file: &Path, early: bool) -> Result<Opened, Failure> {
        self.check_files()?;
        if scx_postmortem_analyze::golden::is_json(file) {
            let unusable = |why: String| Failure(exit::UNUSABLE_FILE, why);
            let bytes = source::read_whole(file).map_err(unusable)?;
            let unusable = |why: &dyn std::fmt::Display| {
                Failure(exit::UNUSABLE_FILE, format!("{}: {why}", file.display()))
            };
            let text = String::from_utf8(bytes).map_err(|e| unusable(&e))?;
            let report = FailureDumpReportAny::parse(&text).map_err(|e| {
                let golden = serde_json::from_str::<serde_json::Value>(&text)
                    .is_ok_and(|json| json.get("golden").is_some() && json.get("report").is_some());
                if golden {
                    return unusable(
                        &"it is a golden report, parts of which are replaced: `analyze golden check DIR` compares it with the capture beside it; give that capture, or a report of `analyze FILE --format json`",
                    );
                }
                let cause = std::error::Error::source(&e);
                match cause {
                    Some(cause) => unusable(&format!("{e}: {cause}")),
                    None => unusable(&e),
                }
            })?;
            return Ok(Opened::Report(Box::new(report)));
        }
        let image = if early {
            Image::open_early(file)?
        } else {
            Image::open(file)?
        };
        let mut warnings = image.warnings.clone();
        if degraded::report(&image).is_some() && !warnings.iter().any(|w| w == source::TORN) {
            warnings.push(source::TORN.to_owned());
        }
        let kernel = self.kernel(file, image)?;
        Ok(Opened::Kernel(Box::new(kernel), warnings))
    }
}

impl Opened {
    /// Says why what comes is not whole, and gives the exit code of what is done with it.
    fn warn(&self, file: &Path) -> u8 {
        let Self::Kernel(_, warnings) = self else {
            return exit::OK;
        };
        for warning in warnings {
            eprintln!("analyze: {}: {}", file.display(), Escaped(warning));
        }
        match warnings.as_slice() {
            [] => exit::OK,
            _ => exit::DEGRADED,
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// What the reader should know about the report's completeness.
fn exit_code(kernel: &Kernel, report: &FailureDumpReport) -> u8 {
    let own = report.postmortem.as_deref();
    let damaged = own.is_some_and(|own| {
        !own.warnings.is_empty()
            || !own.anomalies.is_empty()
            || own.unavailable.iter().any(|u| {
                let whole_without = [analysis::VCPU_REGS, analysis::PERF_COUNTERS];
                !whole_without.contains(&&*u.section)
                    && !matches!(
                        u.code,
                        UnavailableCode::NotApplicable | UnavailableCode::NotRead
                    )
            })
    });
    if damaged {
        exit::DEGRADED
    } else if !analysis::has_sched_ext(kernel) {
        exit::NO_SCHED_EXT
    } else {
        exit::OK
    }
}

/// Writes to a file, which appears only when complete, or to standard output.
fn emit(output: Option<&Path>, text: &str) -> Result<(), Failure> {
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    let Some(path) = output.filter(|path| *path != Path::new("-")) else {
        return print(&[text, newline]);
    };
    let write = || -> Result<(), Box<dyn std::error::Error>> {
        let mut file = AtomicFile::create(path, Existing::Replace)?;
        file.file().write_all(text.as_bytes())?;
        file.file().write_all(newline.as_bytes())?;
        file.commit()?;
        Ok(())
    };
    write().map_err(|e| Failure::output(path, e))
}

/// Writes to standard output. A reader that closed the pipe has seen enough.
fn print(parts: &[&str]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let done = parts
        .iter()
        .try_for_each(|part| out.write_all(part.as_bytes()));
    match done.and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure(exit::OUTPUT, format!("standard output: {e}")))
        }
        _ => Ok(()),
    }
}

fn info(file: &Path) -> Result<u8, Failure> {
    let facts = source::describe(file)?;
    let width = facts
        .lines
        .iter()
        .map(|(key, _)| key.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for (key, value) in &facts.lines {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key:<width$}  {}", Escaped(value));
    }
    print(&[&text])?;
    Ok(if facts.damaged {
        exit::DEGRADED
    } else {
        exit::OK
    })
}

fn verify(file: &Path) -> Result<u8, Failure> {
    let progress = Progress::new("verifying");
    let outcome = source::verify(file, &|done, total| progress.show(done, total));
    progress.clear();
    let outcome = outcome?;
    let mut text = String::new();
    for problem in &outcome.problems {
        let _ = writeln!(text, "{}: {}", file.display(), Escaped(problem));
    }
    let _ = writeln!(text, "{}", outcome.summary);
    print(&[&text])?;
    Ok(if outcome.problems.is_empty() {
        exit::OK
    } else {
        exit::DAMAGED
    })
}

/// Which image of a dual capture these flags name.
const fn pick(early: bool, late: bool) -> Pick {
    match (early, late) {
        (true, _) => Pick::Early,
        (_, true) => Pick::Late,
        _ => Pick::Only,
    }
}

fn reduce(
    file: &Path,
    pick: Pick,
    kernel_tables: Option<&Path>,
    output: &Path,
    level: i32,
) -> Result<u8, Failure> {
    let inputs: Vec<&Path> = [Some(file), kernel_tables].into_iter().flatten().collect();
    reduced(&inputs, output, "reducing", |show| {
        reducing::reduce(file, pick, kernel_tables, output, level, show)
    })
}

/// Runs what writes a part of a capture.
fn reduced(
    inputs: &[&Path],
    output: &Path,
    doing: &'static str,
    run: impl FnOnce(source::OnProgress<'_>) -> Result<Reduced, ReduceError>,
) -> Result<u8, Failure> {
    source::may_write(output, inputs, false).map_err(|s| Failure(exit::OUTPUT, s))?;
    let progress = Progress::new(doing);
    let reduced = run(&|done, total| {
        progress.show(done, total);
    });
    progress.clear();
    let reduced = reduced.map_err(|error| match error {
        ReduceError::Input(error @ OpenError::NoKernel { .. }) => {
            Failure(exit::NO_KERNEL, error.to_string())
        }
        dual @ ReduceError::Dual(_) => Failure(exit::USAGE, dual.to_string()),
        ReduceError::Input(error) => error.into(),
        damaged @ ReduceError::Damaged { .. } => Failure(exit::UNUSABLE_FILE, damaged.to_string()),
        ReduceError::Tables(why) => Failure(exit::UNUSABLE_FILE, why),
        other => Failure(exit::OUTPUT, other.to_string()),
    })?;
    if std::io::stderr().is_terminal() {
        eprintln!(
            "{}: {} KiB of memory in {} KiB",
            output.display(),
            reduced.summary.memory_bytes >> 10,
            reduced.summary.file_bytes >> 10
        );
    }
    if let Some(warning) = reduced.warnings.first() {
        return Err(Failure(
            exit::DEGRADED,
            format!("{}: written, but {warning}", output.display()),
        ));
    }
    Ok(exit::OK)
}

fn export(file: &Path, output: &Path) -> Result<u8, Failure> {
    source::may_write(output, &[file], false).map_err(|s| Failure(exit::OUTPUT, s))?;
    let progress = Progress::new("exporting");
    let done = source::export(file, output, &|done, total| progress.show(done, total));
    progress.clear();
    match done {
        Ok(source::Exported::Whole(None)) => Ok(exit::OK),
        Ok(source::Exported::Whole(Some(warning))) => Err(Failure(
            exit::DEGRADED,
            format!("{}: the core is whole, but {warning}", output.display()),
        )),
        Ok(source::Exported::Partial(kept, warning)) => Err(Failure(
            exit::DEGRADED,
            format!("what there is was kept as {}: {warning}", kept.display()),
        )),
        Err(source::ExportError::Input(error)) => Err(error.into()),
        Err(source::ExportError::Output(cause)) => Err(Failure::output(output, cause)),
    }
}

/// A line on the terminal while something takes long; nothing in a pipe.
struct Progress {
    what: &'static str,
    terminal: bool,
    shown: std::sync::Mutex<Option<u64>>,
}

impl Progress {
    fn new(what: &'static str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            what,
            terminal,
            shown: std::sync::Mutex::new(None),
        }
    }

    fn show(&self, done: u64, total: u64) {
        if !self.terminal {
            return;
        }
        let percent = u128::from(done) * 100 / u128::from(total.max(1));
        let percent = u64::try_from(percent).unwrap_or(100);
        if let Ok(mut shown) = self.shown.lock()
            && *shown != Some(percent)
        {
            *shown = Some(percent);
            let _ = write!(std::io::stderr(), "\r{} {percent:3} %", self.what);
        }
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
