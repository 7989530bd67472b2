//! ELF notes.

use crate::bytes::{Record, to_usize};

/// Name of the notes that are ours.
pub(super) const NAME: &str = "SCXPM";

/// Types of the notes in a capture.
pub mod note_types {
    /// `CORE`: `struct elf_prstatus`, one per vCPU in vCPU order.
    pub const NT_PRSTATUS: u32 = 1;
    /// `LINUX`: NT_X86_XSTATE, the state that XSAVE saves; each behind its vCPU's NT_PRSTATUS,
    /// which is how gdb knows whose it is.
    pub const NT_X86_XSTATE: u32 = 0x202;
    /// `QEMU`: control registers as QEMU's dumps carry them, one per vCPU in vCPU order.
    pub const QEMU_CPU_STATE: u32 = 0;
    /// `VMCOREINFO`: the text that the kernel prepared for crash dumps.
    pub const VMCOREINFO: u32 = 0;
    /// `SCXPM`: the manifest, JSON ([`Manifest`](crate::capture::Manifest)).
    pub const MANIFEST: u32 = 0x5354_0001;
    /// `SCXPM`: all registers of one vCPU, JSON ([`VcpuState`](crate::capture::VcpuState)).
    /// Absent for a vCPU that was never parked.
    pub const VCPU_STATE: u32 = 0x5354_0002;
    /// `SCXPM`: the kernel's BTF, as in its `.BTF` section.
    pub const BTF: u32 = 0x5354_0003;
    /// `SCXPM`: the monitor's samples over time, JSON.
    pub const TIMELINE: u32 = 0x5354_0004;
    /// `SCXPM`: hardware counters at the freeze, JSON.
    pub const PERF_COUNTERS: u32 = 0x5354_0005;
    /// `SCXPM`: the end of the console's output, bytes as they came.
    pub const CONSOLE: u32 = 0x5354_0006;
    /// `SCXPM`: pages that were left out, and by which rule
    /// ([`Excluded`](crate::capture::Excluded)).
    pub const EXCLUDED: u32 = 0x5354_0007;
}

/// A note to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Owner, without the NUL that the file has after it.
    pub name: String,
    /// Type; numbers belong to the owner.
    pub kind: u32,
    /// Content.
    pub desc: Vec<u8>,
}

impl Note {
    /// A note of any owner.
    #[must_use]
    pub fn new(name: &str, kind: u32, desc: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            desc,
        }
    }

    /// A note of our own; `kind` is one of [`note_types`].
    #[must_use]
    pub fn scxpm(kind: u32, desc: Vec<u8>) -> Self {
        Self::new(NAME, kind, desc)
    }

    /// A `CORE` / NT_PRSTATUS note.
    #[must_use]
    pub fn prstatus(desc: Vec<u8>) -> Self {
        Self::new("CORE", note_types::NT_PRSTATUS, desc)
    }

    /// A `LINUX` / NT_X86_XSTATE note.
    #[must_use]
    pub fn xstate(desc: Vec<u8>) -> Self {
        Self::new("LINUX", note_types::NT_X86_XSTATE, desc)
    }

    /// A `QEMU` note with control registers.
    #[must_use]
    pub fn qemu(desc: Vec<u8>) -> Self {
        Self::new("QEMU", note_types::QEMU_CPU_STATE, desc)
    }

    /// A `VMCOREINFO` note.
    #[must_use]
    pub fn vmcoreinfo(text: Vec<u8>) -> Self {
        Self::new("VMCOREINFO", note_types::VMCOREINFO, text)
    }

    /// Appends the note to `out`. Returns where in `out` its content begins, or `None` (with
    /// `out` unchanged) when it is too long for a note.
    pub(super) fn append(&self, out: &mut Vec<u8>) -> Option<usize> {
        let name_len = u32::try_from(self.name.len()).ok()?.checked_add(1)?;
        let desc_len = u32::try_from(self.desc.len()).ok()?;
        let header = Record::default()
            .u32(name_len)
            .u32(desc_len)
            .u32(self.kind)
            .bytes(self.name.as_bytes());
        let padded = 12 + to_usize(u64::from(name_len)).next_multiple_of(4);
        out.extend_from_slice(&header.pad_to(padded).done());
        let at = out.len();
        out.extend_from_slice(&self.desc);
        out.resize(at + self.desc.len().next_multiple_of(4), 0);
        Some(at)
    }
}

/// A note in a file: its content is read when it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NoteEntry {
    /// Owner; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Type.
    pub kind: u32,
    /// Where the content begins, in bytes from the start of the stream that holds the note (the
    /// ELF core, or the early stream).
    pub offset: u64,
    /// Length of the content in bytes.
    pub bytes: u64,
}

impl NoteEntry {
    /// Whether this is one of our own notes of this type.
    #[must_use]
    pub fn is_scxpm(&self, kind: u32) -> bool {
        self.name == NAME && self.kind == kind
    }
}
