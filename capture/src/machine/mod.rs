//! What runs a guest, as the coordinator sees it: [`Machine`]. Nothing outside a backend's own
//! directory knows which one it is, but for [`choose`], which picks it.

pub(crate) mod choose;
mod copied;
mod kvm;
pub(crate) mod memory;
mod perf;
mod qemu;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};

pub(crate) use self::copied::{Copied, Room};
pub(crate) use self::memory::{GuestMemory, Mapping, Touched};
pub(crate) use self::qemu::guardian;
use scx_postmortem_format::capture::VcpuState;
use scx_postmortem_format::report::VcpuPerfSample;

/// Why a machine did not do what it was asked. Each message is a sentence.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    /// It cannot be started here.
    #[error("{0}")]
    Start(String),
    /// It is gone.
    #[error("the guest's machine is gone: {0}")]
    Gone(String),
    /// It did not answer in time.
    #[error("{what} took longer than {seconds} s")]
    Late {
        /// What was asked.
        what: String,
        /// How long was waited.
        seconds: u64,
    },
    /// It refused.
    #[error("{what} failed: {why}")]
    Refused {
        /// What was asked.
        what: String,
        /// Its answer.
        why: String,
    },
}

impl MachineError {
    /// What it keeps a freeze from being sound by.
    pub(crate) const fn cause(&self) -> Cause {
        match self {
            Self::Start(_) | Self::Gone(_) => Cause::Gone,
            Self::Late { .. } => Cause::Silent,
            Self::Refused { .. } => Cause::Refused,
        }
    }
}

/// A file that other programs open by its path, and that has no name in any directory: it goes with
/// this process, however that ends.
#[derive(Debug)]
pub(crate) struct Nameless {
    pub(crate) file: File,
    /// Where it is as long as this process has it open.
    pub(crate) path: PathBuf,
}

impl Nameless {
    /// `name` is for who looks at open files.
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
        // By our own entry in /proc, so that nothing has to be inherited.
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let path = PathBuf::from(path);
        Ok(Self { file, path })
    }

    /// With this content.
    pub(crate) fn with(name: &str, content: &[u8]) -> io::Result<Self> {
        let mut this = Self::new(name)?;
        this.file.write_all(content)?;
        Ok(this)
    }
}

/// A guest to start, whatever runs it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Config {
    pub(crate) vcpus: u32,
    pub(crate) memory_bytes: u64,
    /// NUMA nodes, at least 1: [`share`] says what each has.
    pub(crate) nodes: u32,
    /// A bzImage, or a vmlinux.
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    /// Kernel command line.
    pub(crate) append: String,
    /// For tests: this vCPU does not stop when the others do.
    pub(crate) unparked: Option<u32>,
}

/// What makes the guest stop by itself. Kernel virtual addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Before a vCPU executes the instruction at this address.
    Execute(u64),
    /// After a vCPU has written to the four bytes at this address.
    Write(u64),
    /// Soon after the four bytes at this address have changed: the machine reads them every
    /// millisecond or more often, and the vCPUs go on meanwhile.
    Change(u64),
}

/// What a machine tells by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A vCPU did what was being waited for. All vCPUs stand still.
    Stopped {
        /// What it was.
        at: Stop,
        /// The vCPU's stack pointer.
        rsp: u64,
        /// The first argument of a function that it is about to enter.
        rdi: u64,
    },
    /// The guest was reset, and boots again.
    Restarted,
    /// The guest has told its machine that its kernel panicked (pvpanic).
    Panicked,
    /// The guest was powered off or reset.
    Ended {
        /// What the machine said of it.
        how: String,
        /// The guest's kernel asked for it: power off, not a reset and not a fault.
        powered_off: bool,
    },
}

/// What kept a freeze from being sound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Not all vCPUs stopped in time.
    #[default]
    Late,
    /// The machine went away.
    Gone,
    /// The guest was powered off or reset, by itself.
    Ended,
    /// The machine did not answer.
    Silent,
    /// The machine did not do what it was asked.
    Refused,
    /// They stopped, and their registers could not be taken.
    Registers,
}

/// A stopped guest, as far as it could be stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Frozen {
    /// The registers of each vCPU that stands still.
    pub(crate) vcpus: Vec<VcpuState>,
    /// Each a reason why the capture will be less than it should be: a vCPU that did not stop in
    /// time, registers that could not be read. Empty for a sound freeze.
    pub(crate) faults: Vec<String>,
    /// What the first of them was.
    pub(crate) cause: Cause,
    /// Hardware counters of each vCPU since the start, guest time alone.
    pub(crate) counters: Vec<Option<VcpuPerfSample>>,
    /// Why there are none.
    pub(crate) no_counters: Option<String>,
}

/// A guest and what runs it.
pub(crate) trait Machine {
    /// What runs it, for the manifest: stable name and details.
    fn describe(&self) -> (&'static str, String);

    /// Its memory as it is at this moment, while it runs. It stays readable when the machine has
    /// ended.
    fn memory(&self) -> &GuestMemory;

    /// Whether that memory changes as the guest runs. Else it is that of the last time that the guest
    /// stood still, or that [`refresh`](Self::refresh) was called.
    fn is_live(&self) -> bool;

    /// Looks again where its memory is: firmware moves some of it while it starts.
    fn refresh(&mut self) -> Result<(), MachineError>;

    /// Number of vCPUs.
    fn vcpus(&self) -> u32;

    /// Waits for something to happen, at most for `wait`.
    fn wait(&mut self, wait: Duration) -> Result<Option<Event>, MachineError>;

    /// Makes these, and nothing else, stop the guest. Gives back those that this machine can do;
    /// the others are not set.
    fn stop_at(&mut self, stops: &[Stop]) -> Result<Vec<Stop>, MachineError>;

    /// Stops all vCPUs within `deadline` and takes their registers. What did not work is in the
    /// answer: there may be something worth keeping all the same.
    fn freeze(&mut self, deadline: Duration) -> Frozen;

    /// Whether the guest has stood still since it was frozen: someone else may have resumed it.
    fn stood(&mut self) -> bool;

    /// How the program that ran the guest has died, where that can be known.
    fn died(&mut self) -> Option<String> {
        None
    }

    /// Lets all vCPUs go on; not before what has stopped them meanwhile was waited for.
    fn resume(&mut self) -> Result<(), MachineError>;

    /// Leaves the guest as was promised: ended if it is ours, running if it is not.
    fn leave(&mut self);

    /// What the guest has written to its console since the last call.
    fn console(&mut self) -> Vec<u8>;

    /// What the guest's init has told since the last call: whole lines.
    fn messages(&mut self) -> Vec<String>;
}

/// Whether this machine could ever back so much memory: a guest that comes to more by and by is
/// killed, and QEMU takes minutes to start with far more.
pub(crate) fn check_memory(bytes: u64) -> Result<(), String> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kb = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    // What cannot be read decides nothing.
    let Some(total) = kb("MemTotal:") else {
        return Ok(());
    };
    let most = total.saturating_add(kb("SwapTotal:").unwrap_or(0)) << 10;
    if bytes <= most {
        return Ok(());
    }
    Err(format!(
        "a guest with {} MiB (--memory) on a machine with {} MiB, swap included; give it less",
        bytes >> 20,
        most >> 20
    ))
}

/// Where the share of a node begins when `total` is divided evenly, as far as that goes.
fn share(total: u64, nodes: u32, node: u32) -> u64 {
    let share = u128::from(total) * u128::from(node) / u128::from(nodes.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// Begin and end of a node's memory, in bytes from the beginning of all; in whole megabytes.
fn node_memory(total: u64, nodes: u32, node: u32) -> (u64, u64) {
    let at = |node| share(total >> 20, nodes, node) << 20;
    let end = if node + 1 < nodes {
        at(node + 1)
    } else {
        total
    };
    (at(node), end)
}

/// Takes the whole lines out of what a guest's init has told so far; a line that is longer than
/// `most` bytes is none.
fn lines(pending: &mut Vec<u8>, most: usize) -> Vec<String> {
    let Some(end) = memchr::memrchr(b'\n', pending) else {
        // Ours are short lines.
        if pending.len() > most {
            pending.clear();
        }
        return Vec::new();
    };
    let rest = pending.split_off(end + 1);
    let lines = std::mem::replace(pending, rest);
    let lines = String::from_utf8_lossy(&lines);
    lines.lines().map(|line| line.trim().to_owned()).collect()
}
