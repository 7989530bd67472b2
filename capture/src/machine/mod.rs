//! What runs a guest, as the coordinator sees it: [`Machine`]. Nothing outside a backend's own
//! directory knows which one it is.

mod memory;
pub(crate) mod qemu;

use std::time::Duration;

pub(crate) use self::memory::{GuestMemory, Mapping, Touched};
use scx_postmortem_format::capture::Note;

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

/// What a machine tells by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A vCPU stands at an address that was being watched. All vCPUs are stopped.
    Breakpoint {
        /// Its instruction pointer.
        rip: u64,
        /// Its stack pointer.
        rsp: u64,
    },
    /// The guest was powered off or reset, or its machine ended.
    Ended {
        /// What the machine said of it.
        how: String,
    },
}

/// A stopped guest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Frozen {
    /// The registers of each vCPU that stands still, as notes of an ELF core.
    pub(crate) registers: Vec<Note>,
    /// vCPUs that did not stop in time, and why. Empty for a sound capture.
    pub(crate) not_parked: Vec<String>,
}

/// A guest and what runs it.
pub(crate) trait Machine {
    /// What runs it, for the manifest: stable name and details.
    fn describe(&self) -> (&'static str, String);

    /// Its memory as it is at this moment, while it runs.
    fn memory(&mut self) -> Result<&GuestMemory, MachineError>;

    /// Number of vCPUs.
    fn vcpus(&self) -> u32;

    /// Waits for something to happen, at most for `wait`.
    fn wait(&mut self, wait: Duration) -> Result<Option<Event>, MachineError>;

    /// Stops all vCPUs at their next arrival at a kernel address; at most one address at a time.
    /// `false`: this machine cannot.
    fn break_at(&mut self, kva: Option<u64>) -> Result<bool, MachineError>;

    /// Stops all vCPUs within `deadline` and takes their registers.
    fn freeze(&mut self, deadline: Duration) -> Result<Frozen, MachineError>;

    /// Lets all vCPUs go on.
    fn resume(&mut self) -> Result<(), MachineError>;

    /// Ends the guest.
    fn stop(&mut self);

    /// What the guest has written to its console since the last call.
    fn console(&mut self) -> Vec<u8>;

    /// What the guest's init has told since the last call: whole lines.
    fn messages(&mut self) -> Vec<String>;
}
