//! The capture file: an ELF64 core of guest memory, compressed as independent zstd frames with a
//! seek table. `docs/capture-format.md` is its specification.
//!
//! [`write_capture`] makes one from any [`MemorySource`]; [`Capture`] reads one from bytes that
//! the caller supplies (a mapping, a `Vec`), or from a [`Store`] that gives a range at a time. Nothing in a file is believed before it is checked,
//! and every byte that a read returns comes from a frame whose checksum was verified.
//!
//! Three things stay apart everywhere: memory that was not captured
//! ([`ReadError::NotCaptured`]), a hole in the guest's address map ([`ReadError::Hole`]) and a
//! page of zeros (a read that succeeds).

mod atomic;
mod cache;
mod codec;
mod early;
mod elf;
mod error;
mod exclude;
mod manifest;
mod note;
mod parallel;
mod preamble;
mod read;
mod store;
mod table;
mod timeline;
mod upgrade;
mod vcpu;
mod write;

pub use self::atomic::{AtomicFile, Existing};
pub use self::early::Early;
pub use self::elf::Segment;
pub use self::error::{Absence, ExportError, OpenError, ReadError, WriteError};
pub use self::exclude::{Excluded, Rule, Run};
pub use self::manifest::{
    Abandoned, EarlyInfo, ExcludedPages, LEFT_OUT, Manifest, MemoryKind, MemoryRegion, MissingItem,
    SourceInfo, Timings, ToolInfo, Trigger,
};
pub use self::note::{Note, NoteEntry, note_types};
pub use self::preamble::{EM_X86_64, Preamble};
pub use self::read::{
    BadFrame, Capture, OpenOptions, Progress, Recovered, RecoveredCause, VerifyReport,
};
pub use self::store::Store;
pub use self::timeline::{
    Attached, CpuSample, DsqSample, PsiSample, Sample, SeenScheduler, Series, TIMELINE_LIMIT,
    TIMELINE_VERSION, Timeline, WaitingSample, series,
};
pub use self::upgrade::{Upgrade, upgraded};
pub use self::vcpu::{
    DebugRegs, DescriptorTable, GeneralRegs, Msr, SegmentReg, SpecialRegs, VcpuState,
};
pub use self::write::{
    CaptureSpec, EarlySpec, Extent, LEVEL_DEFAULT, LEVEL_SMALL, MemorySource, Output, Summary,
    WriteOptions, WriteProgress, write_capture,
};

/// Container major version that this crate writes, and the highest that it reads.
pub const VERSION_MAJOR: u16 = 1;

/// Container minor version that this crate writes. Any minor version is read.
///
/// 1 has the capture's digest in the preamble.
pub const VERSION_MINOR: u16 = 1;

/// Decompressed size in bytes of every frame but the last. Part of the format.
pub const FRAME_BYTES: usize = 64 * 1024;

/// Unit in bytes of the early image of a dual capture. Part of the format.
pub const EARLY_PAGE_BYTES: usize = 4096;

/// [`FRAME_BYTES`] as a file quantity.
const FRAME_BYTES_U64: u64 = 64 * 1024;
