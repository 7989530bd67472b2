//! Reading captures.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use xxhash_rust::xxh3::Xxh3;

use super::cache::{FrameCache, with_context};
use super::codec::{ZERO_FRAME, ZEROS, content_bytes, decompress};
use super::early::{Early, EarlyHead};
use super::elf::{
    EHDR_LEN, Headers, PHDR_LEN, parse_file_header, parse_note_header, parse_program_headers,
};
use super::error::{Absence, ExportError, OpenError, ReadError};
use super::exclude::Excluded;
use super::manifest::{Manifest, MemoryKind};
use super::note::{NoteEntry, note_types};
use super::parallel::{Spares, ordered};
use super::preamble::{PREAMBLE_MAX, Preamble};
use super::store::Store;
use super::table::{EARLY_PREFIX, Location, Table, TableFault, early_payload};
use super::vcpu::VcpuState;
use super::{FRAME_BYTES, FRAME_BYTES_U64, Segment};
use crate::bytes::{array, to_u64, to_usize};
use crate::report::VcpuPerfSample;

/// A manifest longer than this is not read.
const MANIFEST_LIMIT: u64 = 16 << 20;
/// A note of excluded pages longer than this is not read.
const EXCLUDED_LIMIT: u64 = 64 << 20;
/// Notes beyond this number are not listed.
const NOTES_LIMIT: usize = 65_536;
/// A note's name longer than this ends the list.
const NAME_LIMIT: usize = 256;
/// A note of a single vCPU longer than this is not read.
const VCPU_LIMIT: u64 = 1 << 20;
/// A VMCOREINFO note longer than this is not read.
const VMCOREINFO_LIMIT: u64 = 1 << 20;
/// A BTF note longer than this is not read.
const BTF_LIMIT: u64 = 256 << 20;
/// A verification lists this many damaged frames, and counts the rest.
const BAD_FRAMES_LIMIT: usize = 1000;
/// Frames per unit of parallel work.
const UNIT: u64 = 4;

/// How to open a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOptions {
    /// Memory in bytes for decompressed frames. Once it is used up, frames that are not held
    /// yet are decompressed again for every read that does not follow one of the same frame.
    pub cache_bytes: u64,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
        }
    }
}

/// Why the frames of a capture had to be searched for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecoveredCause {
    /// The file does not end in a seek table: it was cut off, or something was appended.
    NoTable,
    /// The seek table or its integrity record is damaged; the text says how.
    DamagedTable(String),
}

/// What was found in a capture without a usable seek table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// Why a search was necessary.
    pub cause: RecoveredCause,
    /// Whole frames of the ELF core that were found.
    pub frames_found: u64,
    /// Frames that the ELF core has according to the preamble.
    pub frames_expected: u64,
    /// Bytes of the ELF core that are missing at its end.
    pub missing_bytes: u64,
    /// File offset of the first byte that was not understood.
    pub stopped_at: u64,
}

impl std::fmt::Display for Recovered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.cause {
            RecoveredCause::NoTable => f.write_str("the file does not end in a seek table")?,
            RecoveredCause::DamagedTable(why) => f.write_str(why)?,
        }
        if self.missing_bytes == 0 {
            return write!(f, "; a search found all {} frames", self.frames_found);
        }
        write!(
            f,
            "; a search found {} of {} frames up to byte {}, {} bytes of the core are missing",
            self.frames_found, self.frames_expected, self.stopped_at, self.missing_bytes
        )
    }
}

/// How far a verification or an export has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Decompressed bytes that are done.
    pub done_bytes: u64,
    /// Decompressed bytes altogether.
    pub total_bytes: u64,
}

/// A callback for [`Progress`]; breaking cancels.
type Report<'a> = &'a (dyn Fn(Progress) -> ControlFlow<()> + Sync);

/// A frame that fails its checks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BadFrame {
    /// Number of the entry in the seek table.
    pub frame: u64,
    /// File offset.
    pub offset: u64,
    /// The check that failed.
    pub why: &'static str,
    /// The guest memory in it that can't be read: first guest physical address and length in
    /// bytes. `None` for headers, notes and the early image.
    pub memory: Option<(u64, u64)>,
}

/// The result of [`Capture::verify`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Frames that were checked, those of the early image included.
    pub frames: u64,
    /// Decompressed bytes that were checked.
    pub bytes: u64,
    /// Number of frames that failed.
    pub bad_frames: u64,
    /// The first thousand of them, by number.
    pub bad: Vec<BadFrame>,
    /// Whatever else is wrong: recovered files, unreadable manifest or notes. Each a sentence.
    pub problems: Vec<String>,
    /// Whether the progress callback asked to stop; the counts are of what was done by then.
    pub cancelled: bool,
}

impl VerifyReport {
    /// Whether everything was checked and nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.bad_frames == 0 && self.problems.is_empty() && !self.cancelled
    }
}

/// A run of frames that hold one stream of bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream {
    /// Entry of the first frame.
    first: u64,
    /// Bytes that the file holds.
    pub(super) bytes: u64,
}

/// The notes of a stream, as far as they could be listed.
#[derive(Debug)]
pub(super) struct NoteList {
    pub(super) entries: Vec<NoteEntry>,
    pub(super) fault: Option<ReadError>,
}

/// An open capture.
///
/// `B` is the file: all of it, as a mapping, a `Vec<u8>` or a slice, or a [`Store`] that gives a
/// range at a time. All methods take `&self` and may be
/// called from many threads; a read of memory that was read before takes no lock.
#[derive(Debug)]
pub struct Capture<B> {
    bytes: B,
    preamble: Preamble,
    table: Table,
    cache: FrameCache,
    headers: Headers,
    recovered: Option<Recovered>,
    manifest: Result<Manifest, ReadError>,
    /// Ranges that the manifest lists as not captured: first address, first address after.
    absent: Vec<(u64, u64)>,
    excluded: OnceLock<Result<Excluded, ReadError>>,
    notes: OnceLock<NoteList>,
    early: OnceLock<Result<EarlyHead, ReadError>>,
}

impl<B: Store> Capture<B> {
    /// Opens a capture with the default options.
    ///
    /// # Errors
    /// [`OpenError`]. A file that is only truncated, or whose seek table is damaged, opens; see
    /// [`recovered`](Self::recovered).
    pub fn open(bytes: B) -> Result<Self, OpenError> {
        Self::open_with(bytes, OpenOptions::default())
    }

    /// Opens a capture.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_with(bytes: B, options: OpenOptions) -> Result<Self, OpenError> {
        let file = bytes.whole();
        let preamble = match file {
            Some(file) => Preamble::decode(file)?,
            None => {
                let len = to_usize(bytes.bytes()).min(PREAMBLE_MAX);
                let head = bytes.fetch(0, len).map_err(|why| OpenError::Corrupt {
                    part: "the preamble",
                    offset: 0,
                    why: why.to_owned(),
                })?;
                Preamble::decode(&head)?
            }
        };
        let (table, cause) = match (Table::read(&bytes, &preamble), file) {
            (Ok(table), _) => (table, None),
            (Err(fault), Some(file)) => (Table::scan(file, &preamble), Some(fault)),
            // A search needs all of the file.
            (Err(fault), None) => {
                let why = match fault {
                    TableFault::Missing => "it is not there: the file was cut off".to_owned(),
                    TableFault::Damaged(why) => why,
                };
                return Err(OpenError::Corrupt {
                    part: "the seek table",
                    offset: bytes.bytes(),
                    why: format!("{why}; copy the file here to read what is left of it"),
                });
            }
        };
        let file = file.unwrap_or_default();
        let recovered = cause.map(|fault| Recovered {
            cause: match fault {
                TableFault::Missing => RecoveredCause::NoTable,
                TableFault::Damaged(why) => RecoveredCause::DamagedTable(why),
            },
            frames_found: table.data_frames,
            frames_expected: preamble.data_frames(),
            missing_bytes: preamble
                .logical_bytes
                .saturating_sub(table.data_frames.saturating_mul(FRAME_BYTES_U64)),
            stopped_at: table.end(file),
        });
        let entries = 1 + table.data_frames + table.early_chunks;
        let mut capture = Self {
            cache: FrameCache::new(entries, options.cache_bytes),
            preamble,
            table,
            headers: Headers::default(),
            recovered,
            manifest: Err(ReadError::Malformed {
                what: "the manifest".into(),
                why: "it was not read yet".into(),
            }),
            absent: Vec::new(),
            excluded: OnceLock::new(),
            notes: OnceLock::new(),
            early: OnceLock::new(),
            bytes,
        };
        capture.headers = capture.read_headers()?;
        capture.manifest = capture.read_manifest();
        if let Ok(manifest) = &capture.manifest {
            capture.absent =
                absent_ranges(manifest, &[MemoryKind::NotCaptured, MemoryKind::Partial]);
        }
        Ok(capture)
    }

    fn read_headers(&self) -> Result<Headers, OpenError> {
        let at = self.preamble.record_bytes;
        let data = self.data();
        let corrupt = |why: String| OpenError::Corrupt {
            part: "the ELF header",
            offset: at,
            why,
        };
        let fail = |e: ReadError| match e {
            ReadError::OutOfRange { .. } => match &self.recovered {
                // How long the frame is that was cut cannot be seen: one more byte at least.
                Some(r) if r.cause == RecoveredCause::NoTable => OpenError::Truncated {
                    part: match r.frames_found {
                        0 => "the frame with the ELF header",
                        _ => "the program headers",
                    },
                    needed: self.file_bytes().saturating_add(1),
                    found: self.file_bytes(),
                },
                _ => corrupt(e.to_string()),
            },
            ReadError::Corrupt { offset, why, .. } => OpenError::Corrupt {
                part: "the frame with the ELF headers",
                offset,
                why: why.to_owned(),
            },
            other => corrupt(other.to_string()),
        };
        let mut header = [0; EHDR_LEN];
        self.read_stream(data, 0, &mut header).map_err(fail)?;
        let count = parse_file_header(&header).map_err(corrupt)?;
        let table = self
            .read_vec(
                data,
                to_u64(EHDR_LEN),
                to_u64(count * PHDR_LEN),
                u64::MAX,
                "the program headers",
            )
            .map_err(fail)?;
        parse_program_headers(&table, self.preamble.logical_bytes).map_err(corrupt)
    }

    fn read_manifest(&self) -> Result<Manifest, ReadError> {
        let json = self.read_vec(
            self.data(),
            self.preamble.manifest_offset,
            self.preamble.manifest_bytes,
            MANIFEST_LIMIT,
            "the manifest",
        )?;
        parse_manifest(&json)
    }

    /// What the first bytes of the file say about it.
    #[must_use]
    pub fn preamble(&self) -> &Preamble {
        &self.preamble
    }

    /// What the writer says about the capture.
    ///
    /// # Errors
    /// [`ReadError`] when the manifest is not in the file, damaged, or not JSON. The rest of the
    /// capture can still be used, but memory that was not captured is then reported as a hole.
    pub fn manifest(&self) -> Result<&Manifest, &ReadError> {
        self.manifest.as_ref()
    }

    /// Set when the file has no usable seek table and its frames were searched for.
    #[must_use]
    pub fn recovered(&self) -> Option<&Recovered> {
        self.recovered.as_ref()
    }

    /// What tells this capture from any other: XXH3-128 over the length of each frame and the
    /// checksum of its contents, 12 bytes for each, little-endian, in the order of the file. So it
    /// takes next to no time, and damage to contents changes nothing about it. Since version 1.1 the
    /// preamble has it. `None` for a file without a usable seek table, and for an older one that is
    /// not in this process: the checksums are all over it.
    #[must_use]
    pub fn digest(&self) -> Option<u128> {
        if self.recovered.is_some() {
            return None;
        }
        self.preamble.digest.or_else(|| self.computed_digest())
    }

    /// The digest as the frames have it.
    pub(super) fn computed_digest(&self) -> Option<u128> {
        let file = self.bytes.whole()?;
        let mut digest = Xxh3::new();
        for index in 1..=self
            .table
            .data_frames
            .checked_add(self.table.early_chunks)?
        {
            let location = self.table.locate(file, index)?;
            // A frame ends with the checksum.
            let end = location.offset.checked_add(location.bytes)?;
            let checksum = array::<4>(file, to_usize(end.checked_sub(4)?))?;
            digest.update(&location.bytes.to_le_bytes());
            digest.update(&checksum);
        }
        Some(digest.digest128())
    }

    /// The guest physical memory that the ELF core has, ascending and disjoint. Of a truncated
    /// file, the end may be missing: see [`held_bytes`](Self::held_bytes).
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.headers.segments
    }

    /// How many bytes of `segment`, from its start, the file holds.
    #[must_use]
    pub fn held_bytes(&self, segment: &Segment) -> u64 {
        self.data()
            .bytes
            .saturating_sub(segment.offset)
            .min(segment.bytes)
    }

    /// Length of the file in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.bytes.bytes()
    }

    /// Bytes of the ELF core that the file holds, from its start. Less than
    /// [`Preamble::logical_bytes`] for a truncated file.
    #[must_use]
    pub fn logical_bytes(&self) -> u64 {
        self.data().bytes
    }

    /// The notes of the ELF core, in file order, as far as they can be read; see
    /// [`notes_fault`](Self::notes_fault). Notes of unknown owners and types are listed too.
    pub fn notes(&self) -> &[NoteEntry] {
        &self.note_list().entries
    }

    /// Why the list of notes is not complete, if it is not.
    pub fn notes_fault(&self) -> Option<&ReadError> {
        self.note_list().fault.as_ref()
    }

    fn note_list(&self) -> &NoteList {
        self.notes
            .get_or_init(|| self.list_notes(self.data(), &self.headers.notes))
    }

    /// The content of a note.
    ///
    /// # Errors
    /// [`ReadError::TooLarge`] when it is longer than `limit` bytes; otherwise as for
    /// [`read_logical`](Self::read_logical).
    pub fn read_note(&self, note: &NoteEntry, limit: u64) -> Result<Vec<u8>, ReadError> {
        self.read_note_of(self.data(), note, limit)
    }

    pub(super) fn read_note_of(
        &self,
        stream: Stream,
        note: &NoteEntry,
        limit: u64,
    ) -> Result<Vec<u8>, ReadError> {
        let what = format!("note {} type {:#x}", note.name, note.kind);
        self.read_vec(stream, note.offset, note.bytes, limit, &what)
    }

    /// The content of the first note with this owner and type; `None` without one.
    fn first_note(&self, name: &str, kind: u32, limit: u64) -> Option<Result<Vec<u8>, ReadError>> {
        let wanted = |note: &&NoteEntry| note.name == name && note.kind == kind;
        let note = self.notes().iter().find(wanted)?;
        Some(self.read_note(note, limit))
    }

    /// The text that the kernel prepared for crash dumps; `None` when the capture has no such
    /// note.
    ///
    /// # Errors
    /// As for [`read_note`](Self::read_note).
    pub fn vmcoreinfo(&self) -> Result<Option<Vec<u8>>, ReadError> {
        self.first_note("VMCOREINFO", note_types::VMCOREINFO, VMCOREINFO_LIMIT)
            .transpose()
    }

    /// The kernel's BTF; `None` when the capture has no such note.
    ///
    /// # Errors
    /// As for [`read_note`](Self::read_note).
    pub fn btf(&self) -> Result<Option<Vec<u8>>, ReadError> {
        self.first_note(super::note::NAME, note_types::BTF, BTF_LIMIT)
            .transpose()
    }

    /// The monitor's samples as the note has them; `None` when the capture has no such note.
    /// [`Timeline::decode`](super::Timeline::decode) takes them apart.
    ///
    /// # Errors
    /// As for [`read_note`](Self::read_note).
    pub fn timeline(&self) -> Result<Option<Vec<u8>>, ReadError> {
        self.first_note(
            super::note::NAME,
            note_types::TIMELINE,
            super::TIMELINE_LIMIT,
        )
        .transpose()
    }

    /// The vCPUs' hardware counters, by vCPU: a JSON array, `null` where they could not be read.
    /// `None` when the capture has no such note.
    ///
    /// # Errors
    /// As for [`read_note`](Self::read_note); [`ReadError::Malformed`] when it is no such array.
    pub fn perf_counters(&self) -> Result<Option<Vec<Option<VcpuPerfSample>>>, ReadError> {
        let note = self.first_note(super::note::NAME, note_types::PERF_COUNTERS, VCPU_LIMIT);
        let Some(json) = note.transpose()? else {
            return Ok(None);
        };
        let counters = serde_json::from_slice(&json).map_err(|e| ReadError::Malformed {
            what: "the note of the hardware counters".into(),
            why: e.to_string(),
        })?;
        Ok(Some(counters))
    }

    /// The content of each `CORE` / NT_PRSTATUS note, in vCPU order.
    ///
    /// # Errors
    /// As for [`read_note`](Self::read_note).
    pub fn prstatus(&self) -> Result<Vec<Vec<u8>>, ReadError> {
        self.notes()
            .iter()
            .filter(|n| n.name == "CORE" && n.kind == note_types::NT_PRSTATUS)
            .map(|note| self.read_note(note, VCPU_LIMIT))
            .collect()
    }

    /// The full state of each vCPU that has one. Match them by [`VcpuState::vcpu`].
    ///
    /// # Errors
    /// As for [`read_note`](Self::read_note); [`ReadError::Malformed`] when one is not such a
    /// record.
    pub fn vcpu_states(&self) -> Result<Vec<VcpuState>, ReadError> {
        self.vcpu_states_of(self.data(), self.notes())
    }

    pub(super) fn vcpu_states_of(
        &self,
        stream: Stream,
        notes: &[NoteEntry],
    ) -> Result<Vec<VcpuState>, ReadError> {
        notes
            .iter()
            .filter(|note| note.is_scxpm(note_types::VCPU_STATE))
            .map(|note| {
                let json = self.read_note_of(stream, note, VCPU_LIMIT)?;
                serde_json::from_slice(&json).map_err(|e| ReadError::Malformed {
                    what: "the state of a vCPU".into(),
                    why: e.to_string(),
                })
            })
            .collect()
    }

    /// Fills `buf` with guest physical memory.
    ///
    /// # Errors
    /// [`ReadError::Hole`] or [`ReadError::NotCaptured`] with the first address that has no
    /// bytes, [`ReadError::Corrupt`] when a frame is damaged. `buf` may be partly filled then.
    pub fn read_physical(&self, gpa: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let mut gpa = gpa;
        let mut buf = buf;
        while !buf.is_empty() {
            let (offset, left) = self.translate(gpa)?;
            let len = to_usize(left).min(buf.len());
            let (head, rest) = buf.split_at_mut(len);
            self.read_stream(self.data(), offset, head)?;
            buf = rest;
            // Cannot overflow: segments end within the address space.
            gpa = gpa.wrapping_add(to_u64(len));
        }
        Ok(())
    }

    /// Guest physical memory without a copy, when all of it lies in one frame that is held in
    /// memory. `None` when it does not; [`read_physical`](Self::read_physical) then reads it.
    ///
    /// # Errors
    /// As for [`read_physical`](Self::read_physical).
    pub fn physical_slice(&self, gpa: u64, len: usize) -> Result<Option<&[u8]>, ReadError> {
        let (offset, left) = self.translate(gpa)?;
        let within = to_usize(offset % FRAME_BYTES_U64);
        let end = within.saturating_add(len);
        if to_u64(len) > left || end > FRAME_BYTES {
            return Ok(None);
        }
        let frame = self.held_frame(self.data().first + offset / FRAME_BYTES_U64)?;
        Ok(frame.and_then(|frame| frame.get(within..end)))
    }

    /// Where in the core `gpa` is, and how many bytes of its segment the file holds from there.
    pub(super) fn translate(&self, gpa: u64) -> Result<(u64, u64), ReadError> {
        let Some(segment) = self.headers.segment_at(gpa) else {
            return Err(self.nothing_at(gpa));
        };
        let within = gpa - segment.gpa;
        match self.held_bytes(segment).checked_sub(within) {
            Some(left) if left > 0 => Ok((segment.offset + within, left)),
            _ => Err(ReadError::NotCaptured {
                gpa,
                cause: Absence::Truncated,
            }),
        }
    }

    fn nothing_at(&self, gpa: u64) -> ReadError {
        let rule = self.excluded().ok().and_then(|pages| pages.rule_at(gpa));
        let cause = rule.map_or(Absence::NotTaken, Absence::LeftOut);
        if rule.is_some() || overlapping(&self.absent, gpa, 1).is_some() {
            ReadError::NotCaptured { gpa, cause }
        } else {
            ReadError::Hole { gpa }
        }
    }

    /// The pages that were left out on purpose; none for most captures.
    ///
    /// # Errors
    /// As for [`read_note`](Self::read_note); [`ReadError::Malformed`] when it is no such list.
    /// Such pages are then reported as not captured, without a rule.
    pub fn excluded(&self) -> Result<&Excluded, &ReadError> {
        let read = || {
            let note = self.first_note(super::note::NAME, note_types::EXCLUDED, EXCLUDED_LIMIT);
            let Some(note) = note.transpose()? else {
                return Ok(Excluded::default());
            };
            Excluded::decode(&note).map_err(|why| ReadError::Malformed {
                what: "the list of excluded pages".into(),
                why: why.to_owned(),
            })
        };
        self.excluded.get_or_init(read).as_ref()
    }

    /// Fills `buf` with bytes of the ELF core.
    ///
    /// # Errors
    /// [`ReadError::OutOfRange`] beyond what the file holds, [`ReadError::Corrupt`] when a frame
    /// is damaged.
    pub fn read_logical(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.read_stream(self.data(), offset, buf)
    }

    /// The early image of a dual capture.
    ///
    /// # Errors
    /// [`ReadError::NoEarly`] when there is none, or the file was cut off before its end;
    /// [`ReadError::Corrupt`] or [`ReadError::Malformed`] when it cannot be used.
    pub fn early(&self) -> Result<Early<'_, B>, ReadError> {
        let head = self.early.get_or_init(|| EarlyHead::read(self));
        match head {
            Ok(head) => Ok(Early::new(self, head)),
            Err(e) => Err(e.clone()),
        }
    }

    /// The ELF core.
    pub(super) fn data(&self) -> Stream {
        let found = self.table.data_frames.saturating_mul(FRAME_BYTES_U64);
        Stream {
            first: 1,
            bytes: found.min(self.preamble.logical_bytes),
        }
    }

    /// The early stream; `None` when not a single chunk is there.
    pub(super) fn early_stream(&self) -> Option<Stream> {
        let last = self.table.early_chunks.checked_sub(1)?;
        let first = 1 + self.table.data_frames;
        let frame = self.compressed(first + last).ok()?;
        let tail = content_bytes(&frame)?.min(FRAME_BYTES_U64);
        Some(Stream {
            first,
            bytes: last * FRAME_BYTES_U64 + tail,
        })
    }

    /// The zstd frame of an entry.
    fn compressed(&self, entry: u64) -> Result<Cow<'_, [u8]>, &'static str> {
        let place = self.place(entry).ok_or("there is no such frame")?;
        let (start, len) = (to_usize(place.offset), to_usize(place.bytes));
        let frame = match self.bytes.whole() {
            Some(file) => {
                let frame = file.get(start..start.saturating_add(len));
                Cow::Borrowed(frame.ok_or("it is cut off")?)
            }
            None => Cow::Owned(self.bytes.fetch(place.offset, len)?),
        };
        let Some(number) = entry.checked_sub(1 + self.table.data_frames) else {
            return Ok(frame);
        };
        let no_chunk = "it is no part of the early image";
        match frame {
            Cow::Borrowed(frame) => early_payload(frame, number)
                .map(Cow::Borrowed)
                .ok_or(no_chunk),
            Cow::Owned(frame) => {
                let payload = early_payload(&frame, number).map(<[u8]>::to_vec);
                payload.map(Cow::Owned).ok_or(no_chunk)
            }
        }
    }

    /// Where the frame of an entry is.
    fn place(&self, entry: u64) -> Option<Location> {
        let file = self.bytes.whole().unwrap_or_default();
        self.table.locate(file, entry)
    }

    /// Decompresses the frame of an entry into `out` and returns its length.
    fn load(&self, entry: u64, out: &mut [u8]) -> Result<usize, &'static str> {
        let frame = self.compressed(entry)?;
        let len = match entry.checked_sub(1 + self.table.data_frames) {
            None => {
                let start = entry.saturating_sub(1).saturating_mul(FRAME_BYTES_U64);
                self.preamble.logical_bytes.saturating_sub(start)
            }
            Some(number) if number + 1 == self.table.early_chunks => {
                content_bytes(&frame).ok_or("it does not declare its length")?
            }
            Some(_) => FRAME_BYTES_U64,
        };
        let len = to_usize(len.min(FRAME_BYTES_U64));
        let out = out.get_mut(..len).ok_or("it is too long")?;
        with_context(|context| decompress(context, &frame, out))?;
        Ok(len)
    }

    fn corrupt(&self, entry: u64, why: &'static str) -> ReadError {
        let place = self.place(entry);
        ReadError::Corrupt {
            frame: entry,
            offset: place.map_or(0, |p| p.offset),
            why,
        }
    }

    /// The frame of an entry, when it can be held in memory.
    fn held_frame(&self, entry: u64) -> Result<Option<&[u8]>, ReadError> {
        let held = self.cache.get(entry);
        let held = match held {
            Some(held) => Some(held),
            None if self.is_zero(entry) => Some(Ok(ZEROS.as_slice())),
            None => self.cache.get_or_fill(entry, |out| self.load(entry, out)),
        };
        held.transpose().map_err(|why| self.corrupt(entry, why))
    }

    /// Whether an entry is the frame that stands for zeros.
    fn is_zero(&self, entry: u64) -> bool {
        // By its length first: a frame may have to be fetched.
        let prefix = if entry > self.table.data_frames {
            EARLY_PREFIX
        } else {
            0
        };
        let len = to_u64(prefix + ZERO_FRAME.len());
        self.place(entry).is_some_and(|place| place.bytes == len)
            && self
                .compressed(entry)
                .is_ok_and(|frame| *frame == ZERO_FRAME)
    }

    fn with_frame<R>(&self, entry: u64, with: impl FnOnce(&[u8]) -> R) -> Result<R, ReadError> {
        if let Some(frame) = self.held_frame(entry)? {
            return Ok(with(frame));
        }
        self.cache
            .through_scratch(entry, |out| self.load(entry, out), with)
            .map_err(|why| self.corrupt(entry, why))
    }

    pub(super) fn read_stream(
        &self,
        stream: Stream,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        let end = offset.saturating_add(to_u64(buf.len()));
        if end > stream.bytes {
            return Err(ReadError::OutOfRange {
                offset,
                end,
                len: stream.bytes,
            });
        }
        let mut offset = offset;
        let mut buf = buf;
        while !buf.is_empty() {
            let within = to_usize(offset % FRAME_BYTES_U64);
            let len = (FRAME_BYTES - within).min(buf.len());
            let (head, rest) = buf.split_at_mut(len);
            let entry = stream.first + offset / FRAME_BYTES_U64;
            let copied = self.with_frame(entry, |frame| {
                let bytes = frame.get(within..within + len)?;
                head.copy_from_slice(bytes);
                Some(())
            })?;
            copied.ok_or_else(|| self.corrupt(entry, "it is shorter than the layout expects"))?;
            buf = rest;
            offset += to_u64(len);
        }
        Ok(())
    }

    /// Reads a part of a stream whose length comes from the file: checked before memory for it
    /// is taken.
    pub(super) fn read_vec(
        &self,
        stream: Stream,
        offset: u64,
        bytes: u64,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>, ReadError> {
        if bytes > limit {
            return Err(ReadError::TooLarge {
                what: what.to_owned(),
                bytes,
                limit,
            });
        }
        let end = offset.saturating_add(bytes);
        if end > stream.bytes {
            return Err(ReadError::OutOfRange {
                offset,
                end,
                len: stream.bytes,
            });
        }
        let mut content = vec![0; to_usize(bytes)];
        self.read_stream(stream, offset, &mut content)?;
        Ok(content)
    }

    /// Lists the notes in some ranges of a stream.
    pub(super) fn list_notes(&self, stream: Stream, ranges: &[(u64, u64)]) -> NoteList {
        let mut entries = Vec::new();
        let fault = ranges
            .iter()
            .find_map(|&(at, len)| self.list_range(stream, at, len, &mut entries).err());
        NoteList { entries, fault }
    }

    fn list_range(
        &self,
        stream: Stream,
        at: u64,
        len: u64,
        entries: &mut Vec<NoteEntry>,
    ) -> Result<(), ReadError> {
        let malformed = |at: u64, why: &str| ReadError::Malformed {
            what: format!("the note at {at:#x}"),
            why: why.to_owned(),
        };
        let end = at.saturating_add(len);
        let mut at = at;
        while at < end {
            if entries.len() >= NOTES_LIMIT {
                return Err(malformed(
                    at,
                    "there are more notes than a capture can have",
                ));
            }
            let mut header = [0; 12];
            if end - at < 12 {
                return Err(malformed(
                    at,
                    "its header is cut off by the end of the segment",
                ));
            }
            self.read_stream(stream, at, &mut header)?;
            let (name_len, bytes, kind, desc_at) =
                parse_note_header(&header).ok_or_else(|| malformed(at, "its sizes overflow"))?;
            if name_len > NAME_LIMIT {
                return Err(malformed(at, "its name is longer than 256 bytes"));
            }
            let offset = at.saturating_add(desc_at);
            let content_end = offset.saturating_add(bytes);
            if content_end > end {
                return Err(malformed(at, "it is longer than its segment"));
            }
            let mut name = vec![0; name_len];
            self.read_stream(stream, at + 12, &mut name)?;
            let name = name.strip_suffix(b"\0").unwrap_or(&name);
            entries.push(NoteEntry {
                name: String::from_utf8_lossy(name).into_owned(),
                kind,
                offset,
                bytes,
            });
            at = content_end.checked_next_multiple_of(4).unwrap_or(end);
        }
        Ok(())
    }

    /// Decompresses every frame, in parallel, and checks all there is to check.
    pub fn verify(&self, progress: Option<Report<'_>>) -> VerifyReport {
        let early_bytes = self.early_stream().map_or(0, |s| s.bytes);
        let total_bytes = self.data().bytes.saturating_add(early_bytes);
        let last = self.table.data_frames + self.table.early_chunks;
        let buffers = Spares::<Vec<u8>>::default();
        let done = AtomicU64::new(0);
        let frames = AtomicU64::new(0);
        let cancelled = AtomicU64::new(0);
        let check_unit = |unit: u64| {
            let mut bad: Vec<(u64, &'static str)> = Vec::new();
            if cancelled.load(Ordering::Relaxed) != 0 {
                return bad;
            }
            let mut buffer = buffers.take().unwrap_or_else(|| vec![0; FRAME_BYTES]);
            let mut bytes = 0;
            let first = 1 + unit * UNIT;
            let entries = first..(first + UNIT).min(last + 1);
            frames.fetch_add(entries.end - entries.start, Ordering::Relaxed);
            for entry in entries {
                let loaded = if self.is_zero(entry) {
                    Ok(FRAME_BYTES)
                } else {
                    self.load(entry, &mut buffer)
                };
                match loaded {
                    Ok(len) => bytes += to_u64(len),
                    Err(why) => bad.push((entry, why)),
                }
            }
            buffers.give(buffer);
            let done_bytes = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            let stop = progress.is_some_and(|report| {
                report(Progress {
                    done_bytes,
                    total_bytes,
                })
                .is_break()
            });
            if stop {
                cancelled.store(1, Ordering::Relaxed);
            }
            bad
        };
        // Results of units are in order, and empty unless something is wrong.
        let bad: Vec<(u64, &'static str)> = (0..last.div_ceil(UNIT))
            .into_par_iter()
            .flat_map_iter(check_unit)
            .collect();
        let mut problems: Vec<String> = Vec::new();
        problems.extend(self.recovered.iter().map(ToString::to_string));
        problems.extend(self.manifest.as_ref().err().map(ToString::to_string));
        problems.extend(self.notes_fault().map(ToString::to_string));
        problems.extend(self.excluded().err().map(ToString::to_string));
        // A checksum that is damaged is told of its frame.
        if bad.is_empty()
            && self.recovered.is_none()
            && let (Some(said), Some(found)) = (self.preamble.digest, self.computed_digest())
            && said != found
        {
            problems.push(format!(
                "the preamble says that the capture's digest is {said:032x}, and its frames make it {found:032x}"
            ));
        }
        if self.preamble.dual {
            problems.extend(self.early().err().map(|e| e.to_string()));
        }
        VerifyReport {
            frames: frames.into_inner(),
            bytes: done.into_inner(),
            bad_frames: to_u64(bad.len()),
            bad: bad
                .into_iter()
                .take(BAD_FRAMES_LIMIT)
                .map(|(entry, why)| self.bad_frame(entry, why))
                .collect(),
            problems,
            cancelled: cancelled.into_inner() != 0,
        }
    }

    fn bad_frame(&self, frame: u64, why: &'static str) -> BadFrame {
        let place = self.place(frame);
        let memory = (frame <= self.table.data_frames)
            .then(|| frame.saturating_sub(1) * FRAME_BYTES_U64)
            .and_then(|start| {
                let after = self.headers.segments.partition_point(|s| s.offset <= start);
                let segment = self.headers.segments.get(after.checked_sub(1)?)?;
                let within = start - segment.offset;
                let left = segment.bytes.checked_sub(within).filter(|&left| left > 0)?;
                Some((segment.gpa + within, left.min(FRAME_BYTES_U64)))
            });
        BadFrame {
            frame,
            offset: place.map_or(0, |p| p.offset),
            why,
            memory,
        }
    }

    /// Calls `visit` with every frame of guest memory that is not all zeros: its guest physical
    /// address and its bytes. In parallel, in no order, without filling the cache.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] with some damaged frame, after all others were visited.
    pub fn scan_memory(&self, visit: &(dyn Fn(u64, &[u8]) + Sync)) -> Result<(), ReadError> {
        let buffers = Spares::<Vec<u8>>::default();
        let frames = self.headers.segments.par_iter().flat_map(|segment| {
            let held = self.held_bytes(segment);
            let first = segment.offset / FRAME_BYTES_U64;
            (0..held.div_ceil(FRAME_BYTES_U64))
                .into_par_iter()
                .map(move |i| {
                    let within = i * FRAME_BYTES_U64;
                    (1 + first + i, segment.gpa + within, held - within)
                })
        });
        let failed = frames.filter_map(|(entry, gpa, left)| {
            if self.is_zero(entry) {
                return None;
            }
            let mut buffer = buffers.take().unwrap_or_else(|| vec![0; FRAME_BYTES]);
            let loaded = self.load(entry, &mut buffer);
            if let Ok(len) = loaded {
                visit(
                    gpa,
                    buffer.get(..len.min(to_usize(left))).unwrap_or_default(),
                );
            }
            buffers.give(buffer);
            loaded.err().map(|why| (entry, why))
        });
        match failed.min_by_key(|&(entry, _)| entry) {
            None => Ok(()),
            Some((entry, why)) => Err(self.corrupt(entry, why)),
        }
    }

    /// Writes the ELF core to `out`, decompressing in parallel, and returns its length in bytes.
    /// For a truncated file that is what the file holds.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn export(
        &self,
        out: &mut (dyn Write + Send),
        progress: Option<Report<'_>>,
    ) -> Result<u64, ExportError> {
        self.export_to(progress, &mut |bytes| match bytes {
            Piece::Bytes(bytes) => out.write_all(bytes),
            Piece::Zeros(len) => out.write_all(ZEROS.get(..len).unwrap_or_default()),
        })
    }

    /// Like [`export`](Self::export), from the current position of `file`, leaving holes for
    /// frames of zeros.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn export_sparse(
        &self,
        file: &mut File,
        progress: Option<Report<'_>>,
    ) -> Result<u64, ExportError> {
        let written = self.export_to(progress, &mut |bytes| match bytes {
            Piece::Bytes(bytes) => file.write_all(bytes),
            Piece::Zeros(len) => {
                let len = i64::try_from(len).map_err(std::io::Error::other)?;
                file.seek(SeekFrom::Current(len)).map(|_| ())
            }
        })?;
        let fail = |cause| ExportError::Output { written, cause };
        let end = file.stream_position().map_err(fail)?;
        file.set_len(end).map_err(fail)?;
        Ok(written)
    }

    fn export_to(
        &self,
        progress: Option<Report<'_>>,
        put: &mut (dyn FnMut(Piece<'_>) -> std::io::Result<()> + Send),
    ) -> Result<u64, ExportError> {
        let total_bytes = self.data().bytes;
        let buffers = Spares::<Exported>::default();
        let mut written = 0;
        ordered(
            self.table.data_frames.div_ceil(UNIT),
            |unit| {
                let mut out = buffers.take().unwrap_or_default();
                out.frames.clear();
                out.bytes.resize(to_usize(UNIT) * FRAME_BYTES, 0);
                let first = 1 + unit * UNIT;
                let entries = first..(first + UNIT).min(self.table.data_frames + 1);
                for (place, entry) in out.bytes.chunks_exact_mut(FRAME_BYTES).zip(entries) {
                    let frame = if self.is_zero(entry) {
                        (FRAME_BYTES, true)
                    } else {
                        let loaded = self.load(entry, place);
                        (loaded.map_err(|why| self.corrupt(entry, why))?, false)
                    };
                    out.frames.push(frame);
                }
                Ok::<_, ExportError>(out)
            },
            |out| {
                for (bytes, &(len, zero)) in out.bytes.chunks_exact(FRAME_BYTES).zip(&out.frames) {
                    let piece = if zero {
                        Piece::Zeros(len)
                    } else {
                        Piece::Bytes(bytes.get(..len).unwrap_or_default())
                    };
                    put(piece).map_err(|cause| ExportError::Output { written, cause })?;
                    written += to_u64(len);
                }
                buffers.give(out);
                let stop = progress.is_some_and(|report| {
                    report(Progress {
                        done_bytes: written,
                        total_bytes,
                    })
                    .is_break()
                });
                if stop {
                    return Err(ExportError::Cancelled { written });
                }
                Ok(())
            },
        )?;
        Ok(written)
    }
}

/// A part of an export.
enum Piece<'a> {
    Bytes(&'a [u8]),
    Zeros(usize),
}

/// Some frames in a row, with length and whether all zeros.
#[derive(Default)]
struct Exported {
    bytes: Vec<u8>,
    frames: Vec<(usize, bool)>,
}

pub(super) fn parse_manifest(json: &[u8]) -> Result<Manifest, ReadError> {
    serde_json::from_slice(json).map_err(|e| ReadError::Malformed {
        what: "the manifest".into(),
        why: e.to_string(),
    })
}

/// The ranges that a manifest lists as one of `kinds`, ascending and disjoint.
pub(super) fn absent_ranges(manifest: &Manifest, kinds: &[MemoryKind]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = manifest
        .memory
        .iter()
        .filter(|r| kinds.contains(&r.kind))
        .map(|r| (r.gpa, r.gpa.saturating_add(r.bytes)))
        .filter(|(start, end)| start < end)
        .collect();
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}

/// The first address from `gpa` on that one of `ranges` holds, within `bytes` bytes.
pub(super) fn overlapping(ranges: &[(u64, u64)], gpa: u64, bytes: u64) -> Option<u64> {
    let next = ranges.partition_point(|&(_, end)| end <= gpa);
    let &(start, _) = ranges.get(next)?;
    let first = start.max(gpa);
    (first - gpa < bytes).then_some(first)
}
