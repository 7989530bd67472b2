//! The ELF64 core inside a capture: its layout, its headers, and reading them back.

use super::error::WriteError;
use super::note::{NAME, Note};
use super::write::Extent;
use super::{EM_X86_64, FRAME_BYTES_U64};
use crate::bytes::{Record, array, le_u16, le_u32, le_u64, to_u64, to_usize};

pub(super) const EHDR_LEN: usize = 64;
pub(super) const PHDR_LEN: usize = 56;
const ET_CORE: u16 = 4;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// More PT_LOADs than a guest has memory ranges; also keeps clear of `PN_XNUM`.
pub(super) const MAX_SEGMENTS: usize = 32_768;

/// A range of guest physical memory that a capture holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Segment {
    /// First guest physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Where it begins in the ELF core, in bytes.
    pub offset: u64,
}

/// Where everything in an ELF core is.
#[derive(Debug)]
pub(super) struct Layout {
    /// ELF header, program headers and the first notes.
    pub(super) head: Vec<u8>,
    /// The second PT_NOTE and where it begins, if there is one.
    pub(super) tail: Vec<u8>,
    pub(super) tail_offset: u64,
    pub(super) segments: Vec<Segment>,
    pub(super) logical_bytes: u64,
    pub(super) manifest_offset: u64,
    pub(super) manifest_bytes: u64,
}

/// Refuses memory that is empty, not ascending, overlapping or past the top of the address
/// space.
pub(super) fn check_extents(extents: &[Extent], what: &str) -> Result<(), WriteError> {
    let mut free = 0;
    for extent in extents {
        let end = extent.gpa.checked_add(extent.bytes);
        let (true, Some(end)) = (extent.gpa >= free && extent.bytes > 0, end) else {
            return Err(WriteError::Spec(format!(
                "{what} must be ascending, disjoint and not empty, found {:#x} with {} bytes after {free:#x}",
                extent.gpa, extent.bytes
            )));
        };
        free = end;
    }
    Ok(())
}

impl Layout {
    /// Lays out a core: headers, `notes`, the manifest, memory, `tail_notes`.
    pub(super) fn new(
        memory: &[Extent],
        notes: &[Note],
        manifest: Vec<u8>,
        tail_notes: &[Note],
    ) -> Result<Self, WriteError> {
        let too_long = || WriteError::Spec("a note is longer than 4 GiB".into());
        check_extents(memory, "memory segments")?;
        if memory.is_empty() || memory.len() > MAX_SEGMENTS {
            return Err(WriteError::Spec(format!(
                "expected 1 to {MAX_SEGMENTS} memory segments, found {}",
                memory.len()
            )));
        }
        let phnum = memory.len() + 1 + usize::from(!tail_notes.is_empty());
        let notes_at = EHDR_LEN + PHDR_LEN * phnum;

        let manifest_bytes = to_u64(manifest.len());
        let (first, manifest_at) = note_segment(notes, manifest).ok_or_else(too_long)?;
        let mut tail = Vec::new();
        for note in tail_notes {
            note.append(&mut tail).ok_or_else(too_long)?;
        }

        let beyond = || WriteError::Spec("memory is larger than a file can be".into());
        let mut end = to_u64(notes_at + first.len());
        let mut segments = Vec::with_capacity(memory.len());
        for extent in memory {
            let offset = end.checked_next_multiple_of(FRAME_BYTES_U64);
            let offset = offset.ok_or_else(beyond)?;
            end = offset.checked_add(extent.bytes).ok_or_else(beyond)?;
            segments.push(Segment {
                gpa: extent.gpa,
                bytes: extent.bytes,
                offset,
            });
        }
        let mut tail_offset = end;
        if !tail.is_empty() {
            let offset = end.checked_next_multiple_of(FRAME_BYTES_U64);
            tail_offset = offset.ok_or_else(beyond)?;
            end = tail_offset
                .checked_add(to_u64(tail.len()))
                .ok_or_else(beyond)?;
        }

        let mut head = file_header(u16::try_from(phnum).unwrap_or(u16::MAX));
        let first_len = to_u64(first.len());
        head.extend(program_header(PT_NOTE, to_u64(notes_at), 0, first_len));
        for s in &segments {
            head.extend(program_header(PT_LOAD, s.offset, s.gpa, s.bytes));
        }
        if !tail.is_empty() {
            head.extend(program_header(PT_NOTE, tail_offset, 0, to_u64(tail.len())));
        }
        head.extend(first);
        Ok(Self {
            head,
            tail,
            tail_offset,
            segments,
            logical_bytes: end,
            manifest_offset: to_u64(notes_at + manifest_at),
            manifest_bytes,
        })
    }
}

/// The content of a note segment: the notes of other owners, which their tools expect to come
/// first, the manifest, our own. Also returns where the manifest's JSON begins.
pub(super) fn note_segment(notes: &[Note], manifest: Vec<u8>) -> Option<(Vec<u8>, usize)> {
    let mut out = Vec::new();
    let (ours, foreign): (Vec<_>, Vec<_>) = notes.iter().partition(|note| note.name == NAME);
    for note in foreign {
        note.append(&mut out)?;
    }
    let manifest = Note::scxpm(super::note_types::MANIFEST, manifest);
    let manifest_at = manifest.append(&mut out)?;
    for note in ours {
        note.append(&mut out)?;
    }
    Some((out, manifest_at))
}

fn file_header(phnum: u16) -> Vec<u8> {
    Record::default()
        .bytes(b"\x7fELF")
        // 64-bit, little-endian, version 1
        .bytes(&[2, 1, 1])
        .pad_to(16)
        .u16(ET_CORE)
        .u16(EM_X86_64)
        .u32(1)
        .u64(0)
        .u64(to_u64(EHDR_LEN))
        .u64(0)
        .u32(0)
        .u16(64)
        .u16(56)
        .u16(phnum)
        .pad_to(EHDR_LEN)
        .done()
}

/// The virtual address equals the physical one and the alignment is 0, as in QEMU's dumps made
/// without paging: gdb then reads physical addresses, and crash, which tells the kinds of core
/// apart by the alignment, does not take it for a netdump.
fn program_header(kind: u32, offset: u64, gpa: u64, bytes: u64) -> Vec<u8> {
    let memory_bytes = if kind == PT_LOAD { bytes } else { 0 };
    Record::default()
        .u32(kind)
        .u32(0)
        .u64(offset)
        .u64(gpa)
        .u64(gpa)
        .u64(bytes)
        .u64(memory_bytes)
        .u64(0)
        .done()
}

/// What a reader takes from the headers.
#[derive(Debug, Default)]
pub(super) struct Headers {
    /// Ascending and disjoint.
    pub(super) segments: Vec<Segment>,
    /// Offset and length of each PT_NOTE.
    pub(super) notes: Vec<(u64, u64)>,
}

/// How many program headers follow, from the first [`EHDR_LEN`] bytes of a core.
pub(super) fn parse_file_header(header: &[u8]) -> Result<usize, String> {
    if array::<7>(header, 0) != Some(*b"\x7fELF\x02\x01\x01") {
        return Err("expected a 64-bit little-endian ELF header".into());
    }
    let fields = (
        le_u16(header, 16),
        le_u16(header, 18),
        le_u64(header, 32),
        le_u16(header, 54),
    );
    if fields != (Some(ET_CORE), Some(EM_X86_64), Some(64), Some(56)) {
        return Err("expected an x86-64 core with 56-byte program headers at byte 64".into());
    }
    let count = le_u16(header, 56).map_or(0, usize::from);
    if count > MAX_SEGMENTS + 2 {
        return Err(format!(
            "expected up to {} program headers, found {count}",
            MAX_SEGMENTS + 2
        ));
    }
    Ok(count)
}

/// Reads the program headers and checks them against the core's length.
pub(super) fn parse_program_headers(bytes: &[u8], logical_bytes: u64) -> Result<Headers, String> {
    let mut headers = Headers::default();
    let mut free = 0;
    for header in bytes.chunks_exact(PHDR_LEN) {
        let field = |at| le_u64(header, at).unwrap_or(u64::MAX);
        let (offset, gpa, bytes, memory) = (field(8), field(24), field(32), field(40));
        let kind = le_u32(header, 0);
        if kind != Some(PT_LOAD) && kind != Some(PT_NOTE) {
            continue;
        }
        if offset
            .checked_add(bytes)
            .is_none_or(|end| end > logical_bytes)
        {
            return Err(format!(
                "a program header points to {bytes} bytes at {offset:#x}, the core has {logical_bytes}"
            ));
        }
        if kind == Some(PT_NOTE) {
            headers.notes.push((offset, bytes));
            continue;
        }
        let end = gpa.checked_add(bytes);
        let (true, Some(end)) = (gpa >= free && bytes == memory && bytes > 0, end) else {
            return Err(format!(
                "the segment at guest physical address {gpa:#x} is empty, overlaps or is not in order"
            ));
        };
        // The early image counts pages of the core, so they must not be shared.
        if !offset.is_multiple_of(FRAME_BYTES_U64) {
            return Err(format!(
                "the segment at guest physical address {gpa:#x} does not begin with a frame"
            ));
        }
        free = end;
        headers.segments.push(Segment { gpa, bytes, offset });
    }
    // Offsets ascend with addresses in every core that this format describes.
    let ascending = headers
        .segments
        .windows(2)
        .all(|pair| matches!(pair, [a, b] if a.offset.saturating_add(a.bytes) <= b.offset));
    if !ascending {
        return Err("segments share bytes of the core".into());
    }
    Ok(headers)
}

impl Headers {
    /// The segment that holds `gpa`.
    pub(super) fn segment_at(&self, gpa: u64) -> Option<&Segment> {
        let after = self.segments.partition_point(|s| s.gpa <= gpa);
        let segment = self.segments.get(after.checked_sub(1)?)?;
        (gpa - segment.gpa < segment.bytes).then_some(segment)
    }
}

/// Splits what is left of a note segment: the next note's name length, content length and type,
/// then offsets of name, content and end, relative to the note.
pub(super) fn parse_note_header(header: &[u8]) -> Option<(usize, u64, u32, u64)> {
    let name_len = to_usize(u64::from(le_u32(header, 0)?));
    let desc_len = u64::from(le_u32(header, 4)?);
    let kind = le_u32(header, 8)?;
    let desc_at = to_u64(name_len)
        .checked_add(12)?
        .checked_next_multiple_of(4)?;
    Some((name_len, desc_len, kind, desc_at))
}
