//! The early image of a dual capture: the late one, with the pages that differ.

use super::error::{Absence, ReadError};
use super::manifest::{Manifest, MemoryKind};
use super::note::{NoteEntry, note_types};
use super::read::{Capture, NoteList, Stream, absent_ranges, overlapping, parse_manifest};
use super::store::Store;
use super::vcpu::VcpuState;
use super::write::{EARLY_HEADER, EARLY_STREAM_MARK};
use super::{EARLY_PAGE_BYTES, FRAME_BYTES_U64};
use crate::bytes::{array, le_u32, le_u64, to_u64, to_usize};

const PAGE_U64: u64 = 4096;
/// Index entries read at a time.
const INDEX_STEP: u64 = 16_384;
/// A manifest longer than this is not read.
const MANIFEST_LIMIT: u64 = 16 << 20;

/// What the start of the early stream says.
#[derive(Debug)]
pub(super) struct EarlyHead {
    stream: Stream,
    notes: NoteList,
    manifest: Result<Manifest, ReadError>,
    absent: Vec<(u64, u64)>,
    /// Numbers of the pages that differ, ascending.
    pages: Vec<u32>,
    pages_offset: u64,
}

impl EarlyHead {
    pub(super) fn read<B: Store>(capture: &Capture<B>) -> Result<Self, ReadError> {
        let none = |why| Err(ReadError::NoEarly { why });
        let malformed = |why: &str| ReadError::Malformed {
            what: "the early image".into(),
            why: why.to_owned(),
        };
        if !capture.preamble().dual {
            return none("the capture is not a dual one");
        }
        let lost = "the file is truncated before its end";
        let Some(stream) = capture.early_stream() else {
            return none(lost);
        };
        let mut header = [0; EARLY_HEADER];
        let header_read = capture.read_stream(stream, 0, &mut header);
        if let Err(ReadError::OutOfRange { .. }) = header_read {
            return none(lost);
        }
        header_read?;
        if array::<8>(&header, 0) != Some(*EARLY_STREAM_MARK) {
            return Err(malformed("expected the mark SCXPMDLT"));
        }
        if (le_u32(&header, 8), le_u32(&header, 12)) != (Some(1), Some(4096)) {
            return Err(malformed("expected version 1 with pages of 4096 bytes"));
        }
        let field = |at| le_u64(&header, at).unwrap_or(u64::MAX);
        let (bytes, notes, notes_bytes) = (field(16), field(24), field(32));
        let (index, count, pages_offset) = (field(40), field(48), field(56));
        if bytes > stream.bytes {
            return none(lost);
        }
        let ends = [
            notes.checked_add(notes_bytes),
            count.checked_mul(4).and_then(|n| n.checked_add(index)),
            count
                .checked_mul(PAGE_U64)
                .and_then(|n| n.checked_add(pages_offset)),
        ];
        let inside = ends.iter().all(|end| end.is_some_and(|end| end <= bytes));
        if bytes != stream.bytes || !inside || !pages_offset.is_multiple_of(FRAME_BYTES_U64) {
            return Err(malformed("its parts do not fit into it"));
        }
        let limit = capture.preamble().logical_bytes.div_ceil(PAGE_U64);
        if count > limit {
            return Err(malformed("it has more pages than the late image"));
        }
        // Step by step: memory is taken only for what was seen to be in order.
        let mut pages = Vec::new();
        let mut at = 0;
        while at < count {
            let step = (count - at).min(INDEX_STEP);
            let entries = capture.read_vec(stream, index + at * 4, step * 4, u64::MAX, "index")?;
            let (entries, _) = entries.as_chunks::<4>();
            for entry in entries {
                let page = u32::from_le_bytes(*entry);
                if pages.last().is_some_and(|&last| last >= page) {
                    return Err(malformed("its index is not in ascending order"));
                }
                pages.push(page);
            }
            at += step;
        }
        let notes = capture.list_notes(stream, &[(notes, notes_bytes)]);
        let manifest = notes
            .entries
            .iter()
            .find(|note| note.is_scxpm(note_types::MANIFEST))
            .ok_or_else(|| malformed("it has no manifest"))
            .and_then(|note| capture.read_note_of(stream, note, MANIFEST_LIMIT))
            .and_then(|json| parse_manifest(&json));
        let absent = manifest.as_ref().map_or_else(
            |_| Vec::new(),
            |manifest| absent_ranges(manifest, &[MemoryKind::NotCaptured]),
        );
        Ok(Self {
            stream,
            notes,
            manifest,
            absent,
            pages,
            pages_offset,
        })
    }
}

/// A view of guest memory as it was in the early image of a dual capture.
#[derive(Debug)]
pub struct Early<'c, B> {
    capture: &'c Capture<B>,
    head: &'c EarlyHead,
}

impl<B> Clone for Early<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Early<'_, B> {}

impl<'c, B: Store> Early<'c, B> {
    pub(super) fn new(capture: &'c Capture<B>, head: &'c EarlyHead) -> Self {
        Self { capture, head }
    }

    /// What the writer says about the early image.
    ///
    /// # Errors
    /// [`ReadError`] when it is damaged, absent or not JSON.
    pub fn manifest(&self) -> Result<&'c Manifest, &'c ReadError> {
        self.head.manifest.as_ref()
    }

    /// The notes of the early image. Their offsets count from the start of the early stream.
    #[must_use]
    pub fn notes(&self) -> &'c [NoteEntry] {
        &self.head.notes.entries
    }

    /// Why the list of notes is not complete, if it is not.
    #[must_use]
    pub fn notes_fault(&self) -> Option<&'c ReadError> {
        self.head.notes.fault.as_ref()
    }

    /// The content of one of [`notes`](Self::notes).
    ///
    /// # Errors
    /// As for [`Capture::read_note`].
    pub fn read_note(&self, note: &NoteEntry, limit: u64) -> Result<Vec<u8>, ReadError> {
        self.capture.read_note_of(self.head.stream, note, limit)
    }

    /// The full state of each vCPU that has one, at the time of the early image.
    ///
    /// # Errors
    /// As for [`Capture::vcpu_states`].
    pub fn vcpu_states(&self) -> Result<Vec<VcpuState>, ReadError> {
        self.capture
            .vcpu_states_of(self.head.stream, &self.head.notes.entries)
    }

    /// Number of pages of [`EARLY_PAGE_BYTES`] in which the two images differ.
    #[must_use]
    pub fn changed_pages(&self) -> u64 {
        to_u64(self.head.pages.len())
    }

    /// Fills `buf` with guest physical memory as it was in the early image.
    ///
    /// # Errors
    /// As for [`Capture::read_physical`].
    pub fn read_physical(&self, gpa: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        if let Some(gpa) = overlapping(&self.head.absent, gpa, to_u64(buf.len())) {
            return Err(ReadError::NotCaptured {
                gpa,
                cause: Absence::NotTaken,
            });
        }
        self.capture.read_physical(gpa, buf)?;
        let mut gpa = gpa;
        let mut buf = buf;
        while !buf.is_empty() {
            let (offset, left) = self.capture.translate(gpa)?;
            let len = to_usize(left).min(buf.len());
            let (head, rest) = buf.split_at_mut(len);
            self.apply(offset, head)?;
            buf = rest;
            gpa = gpa.wrapping_add(to_u64(len));
        }
        Ok(())
    }

    /// Turns bytes of the late image, from `offset` of the core, into those of the early one.
    fn apply(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let pages = &self.head.pages;
        let first = offset / PAGE_U64;
        let end = offset.saturating_add(to_u64(buf.len()));
        let from = pages.partition_point(|&page| u64::from(page) < first);
        let changed = pages.iter().enumerate().skip(from);
        let mut delta = [0; EARLY_PAGE_BYTES];
        for (number, &page) in changed.take_while(|(_, page)| u64::from(**page) * PAGE_U64 < end) {
            let page_start = u64::from(page) * PAGE_U64;
            let start = page_start.max(offset);
            let len = to_usize((page_start + PAGE_U64).min(end) - start);
            let stored = self.head.pages_offset + to_u64(number) * PAGE_U64 + (start - page_start);
            let delta = delta.get_mut(..len).unwrap_or_default();
            self.capture.read_stream(self.head.stream, stored, delta)?;
            let at = to_usize(start - offset);
            let place = buf.get_mut(at..at + len).unwrap_or_default();
            for (byte, delta) in place.iter_mut().zip(delta) {
                *byte ^= *delta;
            }
        }
        Ok(())
    }
}
