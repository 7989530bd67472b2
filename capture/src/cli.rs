//! Command line and exit codes of `capture`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use scx_postmortem_format::capture::{LEVEL_DEFAULT, LEVEL_SMALL};
use scx_postmortem_format::report::Escaped;

use crate::convert;

const EXAMPLES: &str = "\
Examples:
  capture convert vmcore.elf -o stall.core.zst           archive an existing core
  capture convert vmcore.elf -o stall.core.zst --small   a little smaller, a little slower
";

const EXIT_CODES: &str = "\
Exit codes:
  0  the capture was written
  1  the capture could not be written; nothing is left under its name
  2  wrong arguments
  3  the capture was written, but the core was incomplete
  4  the core is missing or is no core
";

/// Keeps a Linux guest at the moment that its sched_ext scheduler failed.
#[derive(Parser)]
#[command(name = "capture", version, before_help = EXAMPLES, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Archives an ELF core (QEMU's dump-guest-memory, libvirt, kdump) as a capture.
    Convert(ConvertArgs),
}

/// What `capture convert` is told.
#[derive(Args)]
pub(crate) struct ConvertArgs {
    /// An x86-64 ELF core with physical addresses.
    pub(crate) core: PathBuf,
    /// The capture to write, by custom *.core.zst. It appears only when complete, readable by
    /// its owner alone: a core holds all that was in the guest's memory.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Compression level, 1 (fast) to 22; 19 for archives.
    #[arg(long, default_value_t = LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub(crate) level: i32,
    /// The same as --level 3.
    #[arg(long, conflicts_with = "level")]
    small: bool,
    /// Replace FILE if it exists.
    #[arg(long)]
    pub(crate) force: bool,
}

impl ConvertArgs {
    /// The level that the options ask for.
    pub(crate) fn level(&self) -> i32 {
        if self.small { LEVEL_SMALL } else { self.level }
    }
}

/// A failure on its way out: exit code and sentence.
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) sentence: String,
}

/// Runs the command line.
pub(crate) fn run() -> ExitCode {
    let done = match &Cli::parse().command {
        Command::Convert(args) => convert::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, sentence }) => {
            // Nothing is left to tell anyone when stderr is gone too.
            let _ = writeln!(std::io::stderr(), "capture: {}", Escaped(&sentence));
            ExitCode::from(code)
        }
    }
}
