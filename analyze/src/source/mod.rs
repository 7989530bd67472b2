//! Where guest physical memory comes from: a capture, an ELF core, a running guest.
//!
//! Everything above this layer sees [`PhysicalMemory`] and [`Image`] only.

mod capture;
mod elf;
mod files;
mod inspect;
#[allow(unsafe_code)]
mod map;
#[cfg(feature = "object-store")]
mod object;
mod ranged;
mod regs;

use std::path::Path;

pub use self::capture::TORN;
pub use self::elf::ElfCore;
pub(crate) use self::files::read_up_to_limit;
pub use self::files::{
    btf_of_vmlinux, open_regular, read_whole, symbols_of_system_map, symbols_of_vmlinux,
};
pub use self::inspect::{
    ExportError, Exported, Facts, OnProgress, Verified, describe, export, may_write, verify,
};
pub use self::map::FileBytes;
#[cfg(feature = "object-store")]
pub use self::object::{Facts as ObjectFacts, Stores};
pub use self::ranged::{RangedFile, Ranges, Traffic};
pub use self::regs::VcpuRegs;
use scx_postmortem_format::capture::{Excluded, Manifest, Store as _, VcpuState};
use scx_postmortem_format::report::VcpuPerfSample;

use crate::addr::Gpa;
use crate::bytes::to_usize;
use crate::error::{Error, OpenError};

/// A range of guest physical memory that the image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: Gpa,
    /// Length in bytes.
    pub len: u64,
}

impl Region {
    /// The first address after the range; saturates at the top of the address space.
    #[must_use]
    pub const fn end(&self) -> Gpa {
        Gpa(self.start.0.saturating_add(self.len))
    }
}

/// Guest physical memory.
///
/// A read either fills the whole buffer or fails: there are no short reads and no made-up
/// zeros. Implementations are shared by all walkers at once.
pub trait PhysicalMemory: Send + Sync {
    /// Fills `buf` with the bytes at `gpa`.
    ///
    /// # Errors
    /// [`Error::NotCaptured`] or [`Error::Hole`] when some byte is not there,
    /// [`Error::Damaged`] when the image's own integrity check fails.
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error>;

    /// The bytes at `gpa` without a copy, where they lie in one piece in this process.
    fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        let _ = (gpa, len);
        None
    }

    /// The ranges that the image holds, ascending and disjoint.
    fn regions(&self) -> &[Region];

    /// Where reads have met damage so far, each a sentence, in the order of the file. A walker
    /// that goes around what it cannot read may not mention it; whoever ends a report asks here.
    fn damage(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What kind of file an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// Our own `.core.zst`.
    Capture,
    /// A plain ELF core.
    ElfCore,
    /// The memory of a guest that runs.
    Live,
}

impl ImageKind {
    /// The stable name used in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::ElfCore => "elf-core",
            Self::Live => "live",
        }
    }
}

/// A note as the file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawNote {
    /// Its name, without the NUL.
    pub name: String,
    /// Its type.
    pub kind: u32,
    /// Its description.
    pub desc: Vec<u8>,
}

/// An opened file: memory, registers and what its notes say about the kernel.
pub struct Image {
    /// What the file is.
    pub kind: ImageKind,
    /// Guest physical memory.
    pub memory: Box<dyn PhysicalMemory>,
    /// Per vCPU, in vCPU order; `None` where the file has no registers for it.
    pub vcpus: Vec<Option<VcpuRegs>>,
    /// Memory that the guest has and the file does not hold.
    pub missing: Vec<Region>,
    /// The register notes as they are, for whoever writes the image in another form.
    pub register_notes: Vec<RawNote>,
    /// The text of the VMCOREINFO note, when the file has one.
    pub vmcoreinfo: Option<Vec<u8>>,
    /// vmlinux BTF, when the file carries it apart from memory.
    pub btf: Option<Vec<u8>>,
    /// What a monitor saw before the stop, as the note has it (`Timeline::decode`).
    pub timeline: Option<Vec<u8>>,
    /// The hardware counters of each vCPU at the stop; `None` where they could not be read.
    pub perf_counters: Option<Vec<Option<VcpuPerfSample>>>,
    /// Whether the file also holds an image of the same guest from some time before.
    pub early: bool,
    /// The manifest of a capture.
    pub manifest: Option<Manifest>,
    /// The full state of each vCPU that stopped, where a capture has it.
    pub vcpu_states: Vec<VcpuState>,
    /// Memory that was left out on purpose, and by which rule. Each a sentence.
    pub left_out: Vec<String>,
    /// The pages that were left out by what the guest's kernel said they were.
    pub excluded: Excluded,
    /// What made the capture fire, where the file tells.
    pub trigger: Option<String>,
    /// The digest of a capture, as reports have it.
    pub digest: Option<String>,
    /// What is wrong with the file itself: truncation, damage, torn memory. Each a sentence.
    pub warnings: Vec<String>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image")
            .field("kind", &self.kind)
            .field("regions", &self.memory.regions())
            .field("vcpus", &self.vcpus.len())
            .finish_non_exhaustive()
    }
}

impl Image {
    /// Opens a capture or an ELF core, deciding by content, never by name.
    ///
    /// # Errors
    /// [`OpenError`] when the file cannot be read or is neither.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let bytes = FileBytes::open(path)?;
        let name = path.display().to_string();
        if bytes.is_empty() {
            return Err(OpenError::NotACore {
                path: name,
                found: "the file is empty".into(),
            });
        }
        if bytes.starts_with(b"\x7fELF") {
            return elf::open(bytes, &name);
        }
        capture::open(bytes, &name)
    }

    /// Opens the early image of a dual capture.
    ///
    /// # Errors
    /// [`OpenError`] when the file cannot be read or holds no early image.
    pub fn open_early(path: &Path) -> Result<Self, OpenError> {
        let bytes = FileBytes::open(path)?;
        let name = path.display().to_string();
        if bytes.is_empty() || bytes.starts_with(b"\x7fELF") {
            return Err(OpenError::NotDual {
                path: name,
                what: "this is no capture",
            });
        }
        capture::open_early(bytes, &name)
    }

    /// Opens a capture that is somewhere else, or its early image. What is read of it is fetched
    /// then, so that whoever has made a report of it asks [`RangedFile::failure`] whether all came.
    ///
    /// # Errors
    /// [`OpenError`], also for an ELF core: what it has has to be searched for.
    pub fn open_ranged(file: &RangedFile, name: &str, early: bool) -> Result<Self, OpenError> {
        let len = to_usize(file.bytes().min(4));
        let start = file.fetch(0, len);
        let opened = match start {
            Ok(start) if start.is_empty() => Err(OpenError::NotACore {
                path: name.to_owned(),
                found: "the file is empty".into(),
            }),
            Ok(start) if start == b"\x7fELF" => Err(OpenError::NoUse {
                path: name.to_owned(),
                why: "this is an ELF core, and only captures are read from a store; copy it to a file, or archive what `capture convert` makes of it",
            }),
            _ if early => capture::open_early(file.clone(), name),
            _ => capture::open(file.clone(), name),
        };
        match file.failure() {
            Some(why) => Err(OpenError::Io {
                path: name.to_owned(),
                cause: std::io::Error::other(why),
            }),
            None => opened,
        }
    }

    /// A guest that runs: its memory, and VMCOREINFO as it was found there. What is read can be
    /// torn.
    #[must_use]
    pub fn live(memory: Box<dyn PhysicalMemory>, vmcoreinfo: Vec<u8>) -> Self {
        Self {
            kind: ImageKind::Live,
            memory,
            vcpus: Vec::new(),
            missing: Vec::new(),
            register_notes: Vec::new(),
            vmcoreinfo: Some(vmcoreinfo),
            btf: None,
            timeline: None,
            perf_counters: None,
            early: false,
            manifest: None,
            vcpu_states: Vec::new(),
            left_out: Vec::new(),
            excluded: Excluded::default(),
            trigger: None,
            digest: None,
            warnings: Vec::new(),
        }
    }

    /// Bytes of guest memory that the image holds.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory.regions().iter().map(|r| r.len).sum()
    }
}
