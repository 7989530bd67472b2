//! Command line and exit codes of `capture`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use scx_postmortem_analyze::exclude::Rules;
use scx_postmortem_format::capture::{LEVEL_DEFAULT, LEVEL_SMALL};
use scx_postmortem_format::report::Escaped;

use crate::machine::qemu::Accel;
use crate::{convert, start};

const EXAMPLES: &str = "\
Examples:
  capture run --kernel /boot/vmlinuz-6.18 --scheduler ./scx_foo --workload 'stress-ng --cpu 4' -o foo.core.zst
                                                         run it in a fresh guest, keep the guest if it fails
  capture convert vmcore.elf -o stall.core.zst           archive an existing core
  capture convert vmcore.elf -o stall.core.zst --small   a little smaller, a little slower
  capture convert vmcore.elf -o stall.core.zst --exclude free,user,cache
                                                         only the kernel's own memory: the same report
  capture convert --early before.elf after.elf -o stall.core.zst
                                                         two cores of one guest, and what changed between them
";

const EXIT_CODES: &str = "\
Exit codes:
  0   convert: the capture was written; run: nothing failed, or a capture was asked for and written
  1   the capture could not be written; nothing is left under its name
  2   wrong arguments
  3   the capture was written, but is incomplete
  4   the core is missing or is no core
  5   run: the guest could not be started or was lost
  6   run: the scheduler was never attached, or its program ended by itself; no capture
  7   run: ended by --timeout or a signal; no capture
  10  run: the scheduler or the guest's kernel failed, and the capture was written
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
    /// Runs a scheduler in a fresh guest, and writes a capture when it fails.
    Run(RunArgs),
}

/// What `capture run` is told.
#[derive(Args)]
pub(crate) struct RunArgs {
    /// The guest's kernel: a bzImage (vmlinuz), or a vmlinux with a PVH entry.
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: PathBuf,
    /// The scheduler: a command line, whose program goes into the guest with its libraries, or a
    /// BPF object (*.bpf.o) that bpftool registers there.
    #[arg(long, value_name = "COMMAND", required_unless_present = "initrd")]
    pub(crate) scheduler: Option<String>,
    /// A command line that is started once the scheduler is attached. May be given several
    /// times; when all of them have ended, so does the guest.
    #[arg(long, value_name = "COMMAND", requires = "scheduler")]
    pub(crate) workload: Vec<String>,
    /// A further file for the guest, in its root directory or at GUEST. Programs come with their
    /// libraries.
    #[arg(long = "file", value_name = "FILE[:GUEST]", requires = "scheduler")]
    pub(crate) files: Vec<String>,
    /// The kernel's configuration, which some schedulers read. Looked for beside the kernel.
    #[arg(long, value_name = "FILE", requires = "scheduler")]
    pub(crate) kernel_config: Option<PathBuf>,
    /// An initramfs of your own instead; it is not changed.
    #[arg(long, value_name = "FILE", conflicts_with = "scheduler")]
    pub(crate) initrd: Option<PathBuf>,
    /// More for the kernel's command line.
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub(crate) append: String,
    /// vCPUs.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(crate) cpus: u32,
    /// Memory, as 512M or 2G.
    #[arg(long, default_value = "512M", value_parser = memory)]
    pub(crate) memory: u64,
    /// What runs the vCPUs.
    #[arg(long, value_enum, default_value_t = Accel::Tcg)]
    pub(crate) accel: Accel,
    /// QEMU's model of CPU.
    #[arg(long, default_value = "max,la57=off")]
    pub(crate) cpu: String,
    /// The QEMU to run.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    pub(crate) qemu: String,
    /// The capture to write, by custom *.core.zst. It appears only when complete, readable by
    /// its owner alone: a core holds all that was in the guest's memory.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Also take a capture when this text appears on the guest's console.
    #[arg(long = "on-console", value_name = "TEXT")]
    pub(crate) console: Vec<String>,
    /// Take a capture after so many seconds, whatever happens.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) after: Option<u64>,
    /// End the guest after so many seconds, without a capture.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
    /// Show the guest's console on standard error.
    #[arg(long)]
    pub(crate) show_console: bool,
    /// Compression level, 1 (fast) to 22; 19 for archives.
    #[arg(long, default_value_t = LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub(crate) level: i32,
    /// Replace FILE if it exists.
    #[arg(long)]
    pub(crate) force: bool,
}

/// A size in bytes, from `512M` or `2G`.
fn memory(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?}: expected megabytes or gigabytes, as 512M or 2G");
    let (digits, shift) = match text.strip_suffix(['M', 'm']) {
        Some(digits) => (digits, 20),
        None => (text.strip_suffix(['G', 'g']).ok_or_else(wrong)?, 30),
    };
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    let bytes = count.checked_mul(1 << shift).ok_or_else(wrong)?;
    if (64 << 20..=1 << 40).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("{text}: expected 64M to 1024G"))
    }
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
    /// Another core of the same guest, from some time before: the capture becomes a dual one, and
    /// its report tells what has changed between the two.
    #[arg(long, value_name = "EARLY.elf")]
    pub(crate) early: Option<PathBuf>,
    /// Leave out pages that a report does not need, by what the guest's kernel says they are:
    /// free ones, user memory, the page cache. Smaller, and fewer secrets.
    #[arg(long, value_name = "free,user,cache")]
    pub(crate) exclude: Option<Rules>,
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
        Command::Convert(args) => convert::run(args).map(|()| 0),
        Command::Run(args) => start::run(args),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(Failure { code, sentence }) => {
            // Nothing is left to tell anyone when stderr is gone too.
            let _ = writeln!(std::io::stderr(), "capture: {}", Escaped(&sentence));
            ExitCode::from(code)
        }
    }
}
