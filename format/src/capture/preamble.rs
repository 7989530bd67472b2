//! The two records of our own that frame the file: the preamble at the start, in the clear, and
//! the integrity record before the seek table. Both are zstd skippable frames.

use xxhash_rust::xxh3::xxh3_64;

use super::error::OpenError;
use super::{FRAME_BYTES_U64, VERSION_MAJOR, VERSION_MINOR};
use crate::bytes::{Record, array, le_u16, le_u32, le_u64, to_u64, to_usize};

/// ELF machine number of x86-64.
pub const EM_X86_64: u16 = 62;

/// Magic of the skippable frames that are ours.
pub(super) const SKIPPABLE_MAGIC: u32 = 0x184D_2A5C;
/// Mark of the preamble.
pub(super) const PREAMBLE_MARK: &[u8; 8] = b"SCXPMCAP";
/// Mark of the integrity record.
pub(super) const INTEGRITY_MARK: &[u8; 8] = b"SCXPMEND";

/// Length in bytes of the preamble as version 1.0 writes it, with its skippable header.
pub(super) const PREAMBLE_LEN: usize = 256;
/// A preamble may grow in later minor versions, but not beyond this.
pub(super) const PREAMBLE_MAX: usize = 65_536;
/// Length in bytes of the integrity record, with its skippable header.
pub(super) const INTEGRITY_LEN: usize = 80;

const RELEASE_OFFSET: usize = 80;
const RELEASE_LEN: usize = 128;
const DIGEST_OFFSET: usize = RELEASE_OFFSET + RELEASE_LEN;

/// Flag: an early image was to be written after memory.
const FLAG_DUAL: u32 = 1;
/// Flag: the manifest says that the capture is degraded (see [`super::Manifest::degraded`]).
const FLAG_DEGRADED: u32 = 2;

/// The first bytes of a capture: what the file holds, readable without decompressing anything.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preamble {
    /// Container major version.
    pub major: u16,
    /// Container minor version.
    pub minor: u16,
    /// ELF machine number of the guest; [`EM_X86_64`] is the only one so far.
    pub machine: u16,
    /// Number of virtual CPUs; 0 when the writer did not know.
    pub vcpus: u32,
    /// Whether an early image was to be written too. A truncated file may have lost it.
    pub dual: bool,
    /// Whether the capture is degraded: torn memory, or a vCPU without registers.
    pub degraded: bool,
    /// Length in bytes of the ELF core.
    pub logical_bytes: u64,
    /// Guest memory in the ELF core, in bytes.
    pub memory_bytes: u64,
    /// Offset of the manifest note's description in the ELF core, in bytes.
    pub manifest_offset: u64,
    /// Length in bytes of the manifest.
    pub manifest_bytes: u64,
    /// Kernel release of the guest; empty when the writer did not know.
    pub kernel_release: String,
    /// The capture's digest, see [`super::Capture::digest`]. `None` before version 1.1, and in a file
    /// whose writer did not come to its end.
    pub digest: Option<u128>,
    /// Bytes that the record itself takes in the file.
    pub(super) record_bytes: u64,
}

impl Preamble {
    pub(super) fn new() -> Self {
        Self {
            major: VERSION_MAJOR,
            minor: VERSION_MINOR,
            machine: EM_X86_64,
            vcpus: 0,
            dual: false,
            degraded: false,
            logical_bytes: 0,
            memory_bytes: 0,
            manifest_offset: 0,
            manifest_bytes: 0,
            kernel_release: String::new(),
            digest: None,
            record_bytes: to_u64(PREAMBLE_LEN),
        }
    }

    /// Number of data frames that the ELF core takes.
    pub(super) fn data_frames(&self) -> u64 {
        self.logical_bytes.div_ceil(FRAME_BYTES_U64)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let flags =
            if self.dual { FLAG_DUAL } else { 0 } | if self.degraded { FLAG_DEGRADED } else { 0 };
        // Cut between characters, leaving room for one NUL.
        let mut release = self.kernel_release.as_bytes();
        for (at, c) in self.kernel_release.char_indices() {
            if at + c.len_utf8() >= RELEASE_LEN {
                release = release.get(..at).unwrap_or_default();
                break;
            }
        }
        let body = Record::default()
            .u32(SKIPPABLE_MAGIC)
            .u32(248)
            .bytes(PREAMBLE_MARK)
            .u16(self.major)
            .u16(self.minor)
            .u16(self.machine)
            .u16(0)
            .u32(flags)
            .u32(self.vcpus)
            .u32(65_536)
            .u32(0)
            .u64(self.logical_bytes)
            .u64(self.memory_bytes)
            .u64(self.manifest_offset)
            .u64(self.manifest_bytes)
            .pad_to(RELEASE_OFFSET)
            .bytes(release)
            .pad_to(DIGEST_OFFSET)
            .bytes(&self.digest.unwrap_or(0).to_le_bytes())
            .pad_to(PREAMBLE_LEN - 8)
            .done();
        let hash = xxh3_64(&body);
        Record::default().bytes(&body).u64(hash).done()
    }

    /// Reads the preamble at the start of a file.
    ///
    /// # Errors
    /// [`OpenError`]: not ours, cut off, damaged, or from a newer major version.
    pub fn decode(file: &[u8]) -> Result<Self, OpenError> {
        let truncated = |needed: usize| OpenError::Truncated {
            part: "the preamble",
            needed: to_u64(needed),
            found: to_u64(file.len()),
        };
        let corrupt = |why: String| OpenError::Corrupt {
            part: "the preamble",
            offset: 0,
            why,
        };
        let expected = Record::default().u32(SKIPPABLE_MAGIC).done();
        let marked = array::<8>(file, 8) == Some(*PREAMBLE_MARK);
        if !marked || !file.starts_with(&expected) {
            return Err(not_ours(file, &expected));
        }
        let payload = le_u32(file, 4).ok_or_else(|| truncated(PREAMBLE_LEN))?;
        let len = to_usize(u64::from(payload)).saturating_add(8);
        if !(PREAMBLE_LEN..=PREAMBLE_MAX).contains(&len) {
            return Err(corrupt(format!(
                "expected {PREAMBLE_LEN} to {PREAMBLE_MAX} bytes, found a length of {len}"
            )));
        }
        let record = file.get(..len).ok_or_else(|| truncated(len))?;
        let (body, _) = record.split_at(len - 8);
        if le_u64(record, len - 8) != Some(xxh3_64(body)) {
            return Err(corrupt("its hash does not match its content".into()));
        }
        let parsed = (|| {
            let flags = le_u32(record, 24)?;
            let release = record.get(RELEASE_OFFSET..RELEASE_OFFSET + RELEASE_LEN)?;
            let release = release.split(|&b| b == 0).next().unwrap_or_default();
            let preamble = Self {
                major: le_u16(record, 16)?,
                minor: le_u16(record, 18)?,
                machine: le_u16(record, 20)?,
                vcpus: le_u32(record, 28)?,
                dual: flags & FLAG_DUAL != 0,
                degraded: flags & FLAG_DEGRADED != 0,
                logical_bytes: le_u64(record, 40)?,
                memory_bytes: le_u64(record, 48)?,
                manifest_offset: le_u64(record, 56)?,
                manifest_bytes: le_u64(record, 64)?,
                kernel_release: String::from_utf8_lossy(release).into_owned(),
                digest: array::<16>(record, DIGEST_OFFSET)
                    .map(u128::from_le_bytes)
                    .filter(|&digest| digest != 0),
                record_bytes: to_u64(len),
            };
            Some((preamble, le_u32(record, 32)?))
        })();
        let (preamble, frame_bytes) = parsed.ok_or_else(|| truncated(PREAMBLE_LEN))?;
        // Only the mark, the version and the hash keep their places in all major versions.
        if preamble.major > VERSION_MAJOR {
            return Err(OpenError::NewerVersion {
                major: preamble.major,
                minor: preamble.minor,
                supported: VERSION_MAJOR,
            });
        }
        if preamble.machine != EM_X86_64 {
            return Err(OpenError::OtherMachine {
                machine: preamble.machine,
            });
        }
        if u64::from(frame_bytes) != FRAME_BYTES_U64 {
            return Err(corrupt(format!(
                "expected frames of {FRAME_BYTES_U64} bytes, found {frame_bytes}"
            )));
        }
        Ok(preamble)
    }
}

/// The error for a file that does not begin with our mark.
fn not_ours(file: &[u8], magic: &[u8]) -> OpenError {
    let found = match file {
        [] => "an empty file".to_owned(),
        [0x7f, b'E', b'L', b'F', ..] => "an ELF file".to_owned(),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "a zstd file that is no capture".to_owned(),
        _ if file.len() < 16 && (magic.starts_with(file) || file.starts_with(magic)) => {
            return OpenError::Truncated {
                part: "the preamble",
                needed: to_u64(PREAMBLE_LEN),
                found: to_u64(file.len()),
            };
        }
        _ => {
            let head: Vec<String> = file.iter().take(16).map(|b| format!("{b:02x}")).collect();
            format!("bytes {}", head.join(" "))
        }
    };
    OpenError::NotACapture { found }
}

/// The record before the seek table: what the table and the file must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Integrity {
    pub(super) file_bytes: u64,
    pub(super) logical_bytes: u64,
    pub(super) data_frames: u64,
    pub(super) early_chunks: u64,
    pub(super) early_bytes: u64,
    /// XXH3-64 of the whole seek table frame, skippable header included.
    pub(super) table_hash: u64,
}

impl Integrity {
    pub(super) fn encode(&self) -> Vec<u8> {
        let body = Record::default()
            .u32(SKIPPABLE_MAGIC)
            .u32(72)
            .bytes(INTEGRITY_MARK)
            .u64(self.file_bytes)
            .u64(self.logical_bytes)
            .u64(self.data_frames)
            .u64(self.early_chunks)
            .u64(self.early_bytes)
            .u64(self.table_hash)
            .pad_to(INTEGRITY_LEN - 8)
            .done();
        let hash = xxh3_64(&body);
        Record::default().bytes(&body).u64(hash).done()
    }

    /// `None` when `record` is no intact integrity record.
    pub(super) fn decode(record: &[u8]) -> Option<Self> {
        let body = record.get(..INTEGRITY_LEN - 8)?;
        let intact = le_u32(record, 0)? == SKIPPABLE_MAGIC
            && le_u32(record, 4)? == 72
            && array::<8>(record, 8)? == *INTEGRITY_MARK
            && le_u64(record, INTEGRITY_LEN - 8)? == xxh3_64(body);
        intact.then_some(())?;
        Some(Self {
            file_bytes: le_u64(record, 16)?,
            logical_bytes: le_u64(record, 24)?,
            data_frames: le_u64(record, 32)?,
            early_chunks: le_u64(record, 40)?,
            early_bytes: le_u64(record, 48)?,
            table_hash: le_u64(record, 56)?,
        })
    }
}
