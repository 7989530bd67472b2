//! Command line and exit codes of `capture`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Args, Parser, Subcommand};
use scx_postmortem_analyze::exclude::Rules;
use scx_postmortem_format::capture::{LEVEL_DEFAULT, LEVEL_SMALL};
use scx_postmortem_format::report::Escaped;

use crate::coordinator::Moment;
use crate::machine::choose::{Accel, Backend};
use crate::machine::guardian;
use crate::{convert, start};

const EXAMPLES: &str = "\
Examples:
  capture run --kernel /boot/vmlinuz-6.18 --scheduler ./scx_foo --workload 'stress-ng --cpu 4' -o foo.core.zst
                                                         run it in a fresh guest, keep the guest if it fails
  capture run --kernel bzImage --scheduler ./scx_foo --dual --timeout 600 --output-dir artifacts
                                                         the same for CI, with an earlier image to compare with
  capture attach --qmp /run/vm/qmp.sock -o vm.core.zst   watch a guest that is running already
  capture convert vmcore.elf -o stall.core.zst           archive an existing core
  capture convert vmcore.elf -o stall.core.zst --small   a little smaller, a little slower
  capture convert vmcore.elf -o stall.core.zst --exclude free,user,cache
                                                         only the kernel's own memory: the same report
  capture convert --early before.elf after.elf -o stall.core.zst
                                                         two cores of one guest, and what changed between them
";

/// What `capture` ends with, as --help and docs/capturing.md have it.
const EXIT_CODES: [(u8, &str); 10] = [
    (
        0,
        "convert, initrd: the file was written; run, attach: nothing failed, or a capture was asked for and written",
    ),
    (
        1,
        "nothing could be written; run, attach: standard error tells what had failed, and what there is of a capture, if it opens, has a name that ends in .partial",
    ),
    (2, "wrong arguments"),
    (
        3,
        "a capture was written, but is less than it should be: degraded, without the early image or pages that did not fit, or taken before the guest's kernel was found",
    ),
    (4, "convert: the core is missing or is no core"),
    (
        5,
        "run, attach, initrd: the guest could not be made, started or reached, or was lost",
    ),
    (
        6,
        "run: the scheduler was never attached, or its program ended by itself without a failure; no late image",
    ),
    (
        7,
        "run, attach: ended by --timeout or a signal; no late image",
    ),
    (
        8,
        "run: nothing failed but a workload, which ended with another code than 0; no late image",
    ),
    (
        10,
        "run, attach: the scheduler or the guest's kernel failed, or the console had the text of --on-console, and the capture was written",
    ),
];

fn exit_codes() -> String {
    let lines = EXIT_CODES.map(|(code, text)| format!("  {code:<3} {text}\n"));
    format!("Exit codes:\n{}", lines.concat())
}

/// Keeps a Linux guest at the moment that its sched_ext scheduler failed.
#[derive(Parser)]
#[command(name = "capture", version, before_help = EXAMPLES, after_help = exit_codes())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Archives an ELF core (QEMU's dump-guest-memory, libvirt, kdump) as a capture.
    Convert(ConvertArgs),
    /// Runs a scheduler in a fresh guest, and writes a capture when it fails.
    Run(Box<RunArgs>),
    /// Writes the initramfs that `run` would boot, for machines that are started by other means.
    Initrd(Box<InitrdArgs>),
    /// Watches the guest of a QEMU that is running already. It goes on afterwards.
    Attach(AttachArgs),
    /// Lets an attached guest go on when `capture` is killed; started by `attach`.
    #[command(name = guardian::COMMAND, hide = true)]
    Guardian,
}

/// What `capture run` is told.
#[derive(Args)]
#[command(group(ArgGroup::new("inside").args(["scheduler", "initrd"]).required(true)))]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) guest: GuestArgs,
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
    /// NUMA nodes, among which vCPUs and memory are divided evenly.
    #[arg(long, value_name = "NODES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) numa: u32,
    /// What runs the guest.
    #[arg(long, value_enum, default_value_t = Backend::Qemu)]
    pub(crate) backend: Backend,
    /// What runs QEMU's vCPUs.
    #[arg(long, value_enum, default_value_t = Accel::Tcg)]
    pub(crate) accel: Accel,
    /// QEMU's model of CPU.
    #[arg(long, default_value = "max,la57=off")]
    pub(crate) cpu: String,
    /// The QEMU to run.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    pub(crate) qemu: String,
    /// For tests of degraded captures: this vCPU does not stop when the others do.
    #[arg(long, value_name = "VCPU", hide = true)]
    pub(crate) unparked: Option<u32>,
    /// Also take a capture when this text appears on the guest's console.
    #[arg(long = "on-console", value_name = "TEXT")]
    pub(crate) console: Vec<String>,
    /// Show the guest's console on standard error.
    #[arg(long)]
    pub(crate) show_console: bool,
    #[command(flatten)]
    pub(crate) when: WhenArgs,
    #[command(flatten)]
    pub(crate) to: OutputArgs,
}

/// What is in a guest.
#[derive(Args)]
pub(crate) struct GuestArgs {
    /// The guest's kernel: a bzImage (vmlinuz), a vmlinux with a PVH entry, or the Debian or RPM
    /// package of a kernel.
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: PathBuf,
    /// The scheduler: a command line, whose program goes into the guest with its libraries, or a
    /// BPF object (*.bpf.o) that bpftool registers there.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) scheduler: Option<String>,
    /// A command line that is started once the scheduler is attached. May be given several
    /// times; when all of them have ended, so does the guest.
    #[arg(long, value_name = "COMMAND", requires = "scheduler")]
    pub(crate) workload: Vec<String>,
    /// A further file for the guest, in its root directory or at GUEST. Programs come with their
    /// libraries.
    #[arg(long = "file", value_name = "FILE[:GUEST]", requires = "scheduler")]
    pub(crate) files: Vec<String>,
    /// A kernel module to load first, with what it depends on: a name, looked for in the kernel's
    /// package and below /lib/modules, or a file. May be given several times.
    #[arg(long = "module", value_name = "NAME", requires = "scheduler")]
    pub(crate) modules: Vec<String>,
    /// Load the probe program before the scheduler: it takes a copy of the scheduler's state at the
    /// instant of an error exit, and counts what else reports show of it.
    #[arg(long, requires = "scheduler")]
    pub(crate) probe: bool,
    /// Another system's root directory: programs named without a path, and all libraries, come
    /// from there. Its C library must not be older than this machine's.
    #[arg(long, value_name = "DIR", requires = "scheduler")]
    pub(crate) sysroot: Option<PathBuf>,
    /// The bpftool that registers a BPF object in the guest, 7.2 or later. Looked for by name.
    #[arg(long, value_name = "FILE", requires = "scheduler")]
    pub(crate) bpftool: Option<PathBuf>,
    /// The kernel's configuration, which some schedulers read. Looked for beside the kernel.
    #[arg(long, value_name = "FILE", requires = "scheduler")]
    pub(crate) kernel_config: Option<PathBuf>,
}

/// What `capture initrd` is told.
#[derive(Args)]
#[command(group(ArgGroup::new("inside").args(["scheduler"]).required(true)))]
pub(crate) struct InitrdArgs {
    #[command(flatten)]
    pub(crate) guest: GuestArgs,
    /// The initramfs to write.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace FILE if it exists.
    #[arg(long)]
    pub(crate) force: bool,
}

/// What `capture attach` is told.
#[derive(Args)]
pub(crate) struct AttachArgs {
    /// The socket of a monitor (QMP) of a QEMU that runs an x86-64 guest.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) qmp: PathBuf,
    /// Take the capture at once.
    #[arg(long)]
    pub(crate) now: bool,
    #[command(flatten)]
    pub(crate) when: WhenArgs,
    #[command(flatten)]
    pub(crate) to: OutputArgs,
}

/// When a capture is taken.
#[derive(Args)]
pub(crate) struct WhenArgs {
    /// Also keep an image from the time when a task has waited for half of the watchdog's limit.
    /// The file then holds both, and `analyze` says what changed between them.
    #[arg(long)]
    pub(crate) dual: bool,
    /// At which moment of a scheduler's failure the image is taken.
    #[arg(long, value_enum, default_value_t = Moment::Dump)]
    pub(crate) moment: Moment,
    /// Do not sample the guest's counters and queues on the way.
    #[arg(long)]
    pub(crate) no_monitor: bool,
    /// Take a capture after so many seconds, whatever happens.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) after: Option<u64>,
    /// Give up after so many seconds, without a capture.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
}

/// Where a capture goes.
#[derive(Args)]
pub(crate) struct OutputArgs {
    /// The capture to write, by custom *.core.zst. It appears only when complete, readable by
    /// its owner alone: a core holds all that was in the guest's memory.
    #[arg(
        short,
        long,
        value_name = "FILE",
        required_unless_present = "output_dir"
    )]
    output: Option<PathBuf>,
    /// A directory for it instead: the capture is DIR/NAME.core.zst, NAME the scheduler's program
    /// or object, or `guest`. Made if it is not there.
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    output_dir: Option<PathBuf>,
    /// Leave out pages that a report does not need, by what the guest's kernel says they are:
    /// free ones, user memory, the page cache. Smaller, and fewer secrets.
    #[arg(long, value_name = "free,user,cache")]
    pub(crate) exclude: Option<Rules>,
    /// Give up writing when the file has become larger than this, as 200M or 1G. A file without the
    /// early image, then without the pages that --exclude leaves out, is tried before that; else
    /// what there is of it, if it opens, gets a name that ends in .partial.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_size: Option<u64>,
    /// Compression level, 1 (fast) to 22; 19 for archives.
    #[arg(long, default_value_t = LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub(crate) level: i32,
    /// Replace FILE if it exists.
    #[arg(long)]
    pub(crate) force: bool,
}

impl OutputArgs {
    /// The file to write; `name` is what it is of.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        match (&self.output, &self.output_dir) {
            (Some(output), _) => output.clone(),
            (None, Some(directory)) => directory.join(format!("{name}.core.zst")),
            (None, None) => PathBuf::new(),
        }
    }

    /// Makes the directory that was asked for.
    pub(crate) fn prepare(&self) -> Result<(), String> {
        let Some(directory) = &self.output_dir else {
            return Ok(());
        };
        if directory.exists() && !directory.is_dir() {
            return Err(format!(
                "{}: is no directory; --output-dir takes one, -o a file",
                directory.display()
            ));
        }
        std::fs::create_dir_all(directory).map_err(|e| format!("{}: {e}", directory.display()))
    }
}

/// A size in bytes, from `512M` or `2G`.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?}: expected megabytes or gigabytes, as 512M or 2G");
    let (digits, shift) = match text.strip_suffix(['M', 'm']) {
        Some(digits) => (digits, 20),
        None => (text.strip_suffix(['G', 'g']).ok_or_else(wrong)?, 30),
    };
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    count.checked_mul(1 << shift).ok_or_else(wrong)
}

/// A size that a guest's memory can have.
fn memory(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
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
        Command::Initrd(args) => start::initrd(args).map(|()| 0),
        Command::Attach(args) => start::attach(args),
        Command::Guardian => return guardian::run(),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(Failure { code, sentence }) => {
            // Nothing is left to tell anyone when stderr is gone too.
            let mut err = std::io::stderr().lock();
            for (index, line) in sentence.lines().enumerate() {
                let prefix = if index == 0 { "capture: " } else { "  " };
                let _ = writeln!(err, "{prefix}{}", Escaped(line));
            }
            ExitCode::from(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_guest_has_something_to_run() {
        use clap::error::ErrorKind::{ArgumentConflict, MissingRequiredArgument};
        let parse = |words: &str| {
            let parsed = Cli::try_parse_from(words.split(' '));
            parsed.map(drop).map_err(|e| e.kind())
        };
        let missing = Err(MissingRequiredArgument);
        assert_eq!(parse("capture run --kernel k -o x"), missing);
        assert_eq!(parse("capture initrd --kernel k -o x"), missing);
        assert_eq!(parse("capture run --kernel k --initrd i -o x"), Ok(()));
        assert_eq!(parse("capture run --kernel k --scheduler s -o x"), Ok(()));
        assert_eq!(
            parse("capture initrd --kernel k --scheduler s -o x"),
            Ok(())
        );
        assert_eq!(
            parse("capture run --kernel k --initrd i --scheduler s -o x"),
            Err(ArgumentConflict)
        );
    }

    #[test]
    fn the_page_has_the_exit_codes_of_help() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/capturing.md");
        let page = std::fs::read_to_string(page).unwrap();
        let table = page
            .split_once("| code | meaning |\n|---|---|\n")
            .unwrap()
            .1;
        let table: Vec<&str> = table.lines().take_while(|l| l.starts_with('|')).collect();
        let expected = EXIT_CODES.map(|(code, text)| format!("| {code} | {text} |"));
        assert_eq!(table, expected);
    }

    #[test]
    fn sizes_have_a_unit() {
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("2g"), Ok(2 << 30));
        assert!(size("512").unwrap_err().contains("as 512M or 2G"));
        assert!(memory("16M").is_err());
    }
}
