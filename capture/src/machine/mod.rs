//! What runs a guest, as the coordinator sees it: [`Machine`]. Nothing outside a backend's own
//! directory knows which one it is.

mod copied;
pub(crate) mod memory;
mod perf;
pub(crate) mod qemu;

use std::time::Duration;

pub(crate) use self::copied::{Copied, Room};
pub(crate) use self::memory::{GuestMemory, Mapping, Touched};
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

/// What makes the guest stop by itself. Kernel virtual addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Before a vCPU executes the instruction at this address.
    Execute(u64),
    /// After a vCPU has written to the four bytes at this address.
    Write(u64),
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

    /// Lets all vCPUs go on.
    fn resume(&mut self) -> Result<(), MachineError>;

    /// Leaves the guest as was promised: ended if it is ours, running if it is not.
    fn leave(&mut self);

    /// What the guest has written to its console since the last call.
    fn console(&mut self) -> Vec<u8>;

    /// What the guest's init has told since the last call: whole lines.
    fn messages(&mut self) -> Vec<String>;
}
