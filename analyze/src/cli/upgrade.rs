//! `analyze upgrade`.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use scx_postmortem_analyze::{golden, source};
use scx_postmortem_format::capture::{
    AtomicFile, Existing, Preamble, Upgrade, VERSION_MAJOR, VERSION_MINOR, upgraded,
};
use scx_postmortem_format::report::{
    Escaped, FailureDumpReport, FailureDumpReportAny, POSTMORTEM_VERSION,
};

use super::{Failure, InputArgs, Opened, exit, print};

/// What `analyze upgrade` is given.
#[derive(Args)]
pub(super) struct UpgradeArgs {
    /// Captures and reports.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Replace those of earlier versions, each at once. Without it, only say which they are.
    #[arg(long)]
    write: bool,
    #[command(flatten)]
    input: InputArgs,
}

/// Says of each file which version it has, and with `--write` brings it to the current one. There
/// has been one version of reports so far; an upgrader of an older one belongs here. A file that
/// cannot be used does not stop the others.
pub(super) fn run(args: &UpgradeArgs) -> Result<u8, Failure> {
    let mut worst = exit::OK;
    for file in &args.files {
        match one(args, file) {
            Ok(what) => print(&[&file.display().to_string(), ": ", &what, "\n"])?,
            Err(Failure(code, why)) => {
                worst = worst.max(code);
                // Nothing is left to tell anyone when stderr is gone too.
                let _ = writeln!(std::io::stderr(), "analyze: {}", Escaped(&why));
            }
        }
    }
    Ok(worst)
}

fn one(args: &UpgradeArgs, file: &Path) -> Result<String, Failure> {
    if !golden::is_json(file) {
        return capture(file, args.write);
    }
    match args.input.open(file, false)? {
        Opened::Report(any) => Ok(report(&any)),
        // Another file has taken its place meanwhile.
        Opened::Kernel(..) => capture(file, args.write),
    }
}

fn capture(file: &Path, write: bool) -> Result<String, Failure> {
    let bytes = source::FileBytes::open(file)?;
    if bytes.starts_with(b"\x7fELF") {
        return Ok(
            "an ELF core, which has no version of ours; `capture convert` makes a capture of it"
                .to_owned(),
        );
    }
    let unusable = |why: &dyn std::fmt::Display| {
        Failure(exit::UNUSABLE_FILE, format!("{}: {why}", file.display()))
    };
    let upgrade = upgraded(&bytes).map_err(|e| unusable(&e))?;
    let preamble = Preamble::decode(&bytes).map_err(|e| unusable(&e))?;
    let old = format!(
        "capture, container version {}.{}",
        preamble.major, preamble.minor
    );
    match upgrade {
        Upgrade::Start(start) if write => {
            replace(file, &bytes, &start).map_err(|e| Failure::output(file, e))?;
            Ok(format!("{old}: now {VERSION_MAJOR}.{VERSION_MINOR}"))
        }
        Upgrade::Start(_) => Ok(format!(
            "{old}: --write makes it {VERSION_MAJOR}.{VERSION_MINOR}"
        )),
        Upgrade::Impossible(why) if write => Err(unusable(&format!("{old}: not upgraded: {why}"))),
        Upgrade::Impossible(why) => Ok(format!("{old}: not upgraded: {why}")),
        _ => Ok(format!("{old}: current, nothing to upgrade")),
    }
}

/// Writes the file anew, with another start, and puts it in the place of the old one.
fn replace(file: &Path, bytes: &[u8], start: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    // A link stays one, and what it leads to is replaced.
    let file = std::fs::canonicalize(file)?;
    let permissions = std::fs::metadata(&file)?.permissions();
    let mut new = AtomicFile::create(&file, Existing::Replace)?;
    new.file().write_all(bytes)?;
    new.file().seek(SeekFrom::Start(0))?;
    new.file().write_all(start)?;
    new.file().set_permissions(permissions)?;
    new.commit()?;
    Ok(())
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
