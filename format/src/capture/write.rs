//! Writing captures.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::ControlFlow;

use super::codec::{Compressor, ZERO_FRAME, ZEROS, is_zero};
use super::elf::{Layout, MAX_SEGMENTS, check_extents, note_segment};
use super::error::WriteError;
use super::exclude::Excluded;
use super::manifest::{ExcludedPages, Manifest, MemoryKind, MemoryRegion};
use super::note::{Note, note_types};
use super::parallel::{Spares, ordered};
use super::preamble::{INTEGRITY_LEN, Integrity, Preamble, SKIPPABLE_MAGIC};
use super::table::{EARLY_MARK, EARLY_PREFIX, MAX_ENTRIES, TableBuilder};
use xxhash_rust::xxh3::Xxh3;

use super::{EARLY_PAGE_BYTES, FRAME_BYTES, FRAME_BYTES_U64, Segment};
use crate::bytes::{Record, to_u64, to_usize};

/// The compression level that is used unless another one is asked for.
pub const LEVEL_DEFAULT: i32 = 1;

/// The level for `--small`: a few per cent smaller for a third more time.
pub const LEVEL_SMALL: i32 = 3;

/// Pages are left out in stretches of at least so many bytes.
const SHORTEST_STRETCH: u64 = 4096;

/// Frames per unit of parallel work.
const UNIT: u64 = 4;
/// Pages of the early image per frame.
const PAGES: u64 = 16;
const PAGE_U64: u64 = 4096;

/// Length in bytes of the header of the early stream.
pub(super) const EARLY_HEADER: usize = 64;
pub(super) const EARLY_STREAM_MARK: &[u8; 8] = b"SCXPMDLT";

/// A range of guest physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First guest physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Extent {
    /// The range of `bytes` bytes from `gpa`.
    #[must_use]
    pub const fn new(gpa: u64, bytes: u64) -> Self {
        Self { gpa, bytes }
    }

    const fn end(&self) -> u64 {
        self.gpa.saturating_add(self.bytes)
    }
}

/// Guest memory to be written.
pub trait MemorySource: Sync {
    /// Fills `buf` with the bytes at `gpa`. Called from several threads, for any part of the
    /// ranges of [`data_extents`](Self::data_extents).
    ///
    /// # Errors
    /// When the memory cannot be read; the capture is then given up.
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()>;

    /// The bytes at `gpa` without a copy, for sources that have them in memory.
    fn slice(&self, gpa: u64, bytes: usize) -> Option<&[u8]> {
        let _ = (gpa, bytes);
        None
    }

    /// The parts of `range` that hold data, ascending and disjoint; all else is zero and is
    /// never read. A backing file's holes must be left out: reading a hole may allocate it.
    ///
    /// # Errors
    /// When that cannot be found out; the capture is then given up.
    fn data_extents(&self, range: Extent) -> io::Result<Vec<Extent>> {
        Ok(vec![range])
    }
}

/// What goes into a capture besides the bytes of memory.
#[derive(Default)]
pub struct CaptureSpec<'a> {
    /// Memory to capture, ascending and disjoint. Neither addresses nor lengths need alignment.
    pub memory: Vec<Extent>,
    /// The manifest. The writer adds the captured ranges to its `memory`.
    pub manifest: Manifest,
    /// Notes that come before memory: registers, VMCOREINFO, small ones of our own.
    pub notes: Vec<Note>,
    /// Notes that come after memory: large ones whose content the image holds too.
    pub tail_notes: Vec<Note>,
    /// Pages of `memory` to leave out. Single ones stay where there would be too many ranges.
    pub excluded: Excluded,
    /// The early image of a dual capture.
    pub early: Option<EarlySpec<'a>>,
}

impl std::fmt::Debug for CaptureSpec<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaptureSpec")
            .field("memory", &self.memory)
            .field("manifest", &self.manifest)
            .field("notes", &self.notes.len())
            .field("tail_notes", &self.tail_notes.len())
            .field("excluded", &self.excluded.runs().len())
            .field("early", &self.early.is_some())
            .finish()
    }
}

/// The early image of a dual capture: the same memory, some time before.
pub struct EarlySpec<'a> {
    /// Memory as it was. Asked for the ranges of [`CaptureSpec::memory`], less those that
    /// `manifest` lists as not captured.
    pub source: &'a dyn MemorySource,
    /// The manifest of the early image.
    pub manifest: Manifest,
    /// Registers and other notes of the early image.
    pub notes: Vec<Note>,
}

/// How far writing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteProgress {
    /// Bytes of the ELF core that are written, before compression.
    pub done_bytes: u64,
    /// Length of the ELF core.
    pub total_bytes: u64,
    /// Bytes of the file that are written.
    pub file_bytes: u64,
}

/// How to write.
#[derive(Clone, Copy)]
pub struct WriteOptions<'a> {
    /// zstd level, 1 to 22: [`LEVEL_DEFAULT`], [`LEVEL_SMALL`], or 19 for archives.
    pub level: i32,
    /// Number of worker threads; `None` uses the current rayon pool. The file's bytes do not
    /// depend on it.
    pub threads: Option<usize>,
    /// Called now and then, in order; breaking cancels.
    pub progress: Option<&'a (dyn Fn(WriteProgress) -> ControlFlow<()> + Sync)>,
}

impl Default for WriteOptions<'_> {
    fn default() -> Self {
        Self {
            level: LEVEL_DEFAULT,
            threads: None,
            progress: None,
        }
    }
}

impl std::fmt::Debug for WriteOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteOptions")
            .field("level", &self.level)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Summary {
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// Length of the ELF core in bytes.
    pub logical_bytes: u64,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Frames that hold the ELF core.
    pub frames: u64,
    /// How many of these are all zeros.
    pub zero_frames: u64,
    /// Pages of [`EARLY_PAGE_BYTES`] in which the early image differs.
    pub early_pages: u64,
    /// Bytes of the file that the early image takes.
    pub early_bytes: u64,
}

/// Where a capture is written to. What is known only at the end is put into its first bytes then.
pub trait Output: Write + Seek + Send {}

impl<T: Write + Seek + Send> Output for T {}

/// Writes a capture to `out` from where that stands, front to back, in one pass over `source`; at
/// the end the preamble is written again, with the digest.
///
/// Memory use does not depend on the size of the guest: a few MiB per thread, and 8 bytes per
/// frame for the seek table. The bytes that are written depend on the arguments only. To have
/// the file appear only when it is complete, write to an [`AtomicFile`](super::AtomicFile).
///
/// # Errors
/// [`WriteError`]. What `out` has got by then opens as a truncated capture if it has the first
/// frames.
pub fn write_capture(
    out: &mut dyn Output,
    spec: &CaptureSpec<'_>,
    source: &dyn MemorySource,
    options: &WriteOptions<'_>,
) -> Result<Summary, WriteError> {
    let Some(threads) = options.threads else {
        return Writer::new(spec, source, options)?.run(out);
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .build();
    let pool = pool.map_err(|e| WriteError::Threads {
        threads,
        why: e.to_string(),
    })?;
    pool.install(|| Writer::new(spec, source, options)?.run(out))
}

/// Memory with its data extents, per segment.
struct Memory<'a> {
    source: &'a dyn MemorySource,
    /// Data, one list per segment.
    data: Vec<Vec<Extent>>,
    /// Ranges that must not be asked for: their content is unknown. Ascending.
    absent: Vec<Extent>,
}

/// The content of a part of guest memory.
enum Content<'a> {
    Zero,
    Bytes(&'a [u8]),
}

impl<'a> Memory<'a> {
    fn new(
        source: &'a dyn MemorySource,
        segments: &[Segment],
        absent: Vec<Extent>,
    ) -> Result<Self, WriteError> {
        let mut data = Vec::with_capacity(segments.len());
        for s in segments {
            let range = Extent::new(s.gpa, s.bytes);
            let extents = source
                .data_extents(range)
                .map_err(|cause| WriteError::Source {
                    gpa: s.gpa,
                    bytes: s.bytes,
                    cause,
                })?;
            check_extents(&extents, "data extents")?;
            let inside = extents
                .iter()
                .all(|e| e.gpa >= s.gpa && e.end() <= range.end());
            if !inside {
                return Err(WriteError::Spec(format!(
                    "the source has data extents outside of the segment at {:#x}",
                    s.gpa
                )));
            }
            data.push(extents);
        }
        Ok(Self {
            source,
            data,
            absent,
        })
    }

    /// The parts of `range` in segment number `segment` that hold data.
    fn data_in(&self, segment: usize, range: Extent) -> impl Iterator<Item = Extent> {
        overlaps(self.data.get(segment).map_or(&[], Vec::as_slice), range)
    }

    fn read(&self, extent: Extent, buf: &mut [u8]) -> Result<(), WriteError> {
        self.source
            .read(extent.gpa, buf)
            .map_err(|cause| WriteError::Source {
                gpa: extent.gpa,
                bytes: extent.bytes,
                cause,
            })
    }

    /// The bytes of `range`, followed by zeros up to `len`. `buf` is used when they have to be
    /// put together.
    fn content<'b>(
        &'b self,
        segment: usize,
        range: Extent,
        len: usize,
        buf: &'b mut Vec<u8>,
    ) -> Result<Content<'b>, WriteError> {
        let mut parts = self.data_in(segment, range);
        let Some(first) = parts.next() else {
            return Ok(Content::Zero);
        };
        if first == range && to_usize(range.bytes) == len {
            if let Some(slice) = self.source.slice(range.gpa, len).filter(|s| s.len() == len) {
                return Ok(Content::Bytes(slice));
            }
            buf.resize(len, 0);
            self.read(range, buf)?;
            return Ok(Content::Bytes(buf));
        }
        buf.clear();
        buf.resize(len, 0);
        for part in std::iter::once(first).chain(parts) {
            let at = to_usize(part.gpa - range.gpa);
            if let Some(buf) = buf.get_mut(at..at + to_usize(part.bytes)) {
                self.read(part, buf)?;
            }
        }
        Ok(Content::Bytes(buf))
    }

    /// Like [`content`](Self::content) without padding; what is unknown is taken from `base`.
    fn known_content<'b>(
        &'b self,
        segment: usize,
        range: Extent,
        base: &[u8],
        buf: &'b mut Vec<u8>,
    ) -> Result<Content<'b>, WriteError> {
        let len = to_usize(range.bytes);
        if overlaps(&self.absent, range).next().is_none() {
            return self.content(segment, range, len, buf);
        }
        buf.clear();
        buf.resize(len, 0);
        let mut put = |part: Extent| {
            let at = to_usize(part.gpa - range.gpa);
            match buf.get_mut(at..at + to_usize(part.bytes)) {
                Some(buf) => self.read(part, buf),
                None => Ok(()),
            }
        };
        // Data extents less the unknown ranges.
        for part in self.data_in(segment, range) {
            let mut from = part.gpa;
            for hole in overlaps(&self.absent, part) {
                if hole.gpa > from {
                    put(Extent::new(from, hole.gpa - from))?;
                }
                from = hole.end();
            }
            if part.end() > from {
                put(Extent::new(from, part.end() - from))?;
            }
        }
        for hole in overlaps(&self.absent, range) {
            let at = to_usize(hole.gpa - range.gpa);
            let place = at..at + to_usize(hole.bytes);
            if let (Some(to), Some(from)) = (buf.get_mut(place.clone()), base.get(place)) {
                to.copy_from_slice(from);
            }
        }
        Ok(Content::Bytes(buf))
    }
}

/// The parts of `range` that `extents` (ascending, disjoint) cover.
fn overlaps(extents: &[Extent], range: Extent) -> impl Iterator<Item = Extent> {
    let from = extents.partition_point(|e| e.end() <= range.gpa);
    extents
        .iter()
        .skip(from)
        .take_while(move |e| e.gpa < range.end())
        .map(move |e| {
            let gpa = e.gpa.max(range.gpa);
            Extent::new(gpa, e.end().min(range.end()) - gpa)
        })
}

/// What one thread needs to make frames.
struct Worker {
    compressor: Compressor,
    late: Vec<u8>,
    early: Vec<u8>,
}

/// Some frames in a row.
#[derive(Default)]
struct Unit {
    bytes: Vec<u8>,
    /// Compressed and decompressed length of each frame.
    sizes: Vec<(u32, u32)>,
    /// Pages of each frame in which the early image differs.
    changed: Vec<u16>,
    zero_frames: u64,
}

struct Writer<'a> {
    options: &'a WriteOptions<'a>,
    layout: Layout,
    preamble: Preamble,
    late: Memory<'a>,
    /// Memory, and the content of the note segment.
    early: Option<(Memory<'a>, Vec<u8>)>,
    workers: Spares<Worker>,
    buffers: Spares<Unit>,
}

/// Adds `captured` to the ranges that the caller listed, refusing contradictions.
fn complete(
    manifest: &Manifest,
    captured: &[Extent],
    excluded: &Excluded,
) -> Result<Manifest, WriteError> {
    let mut manifest = manifest.clone();
    manifest.version = 1;
    let rules = excluded.by_rule().into_iter();
    manifest.excluded = rules
        .map(|(rule, bytes, runs)| ExcludedPages {
            rule: rule.name().to_owned(),
            bytes,
            runs,
        })
        .collect();
    let kind = if excluded.is_empty() {
        MemoryKind::Captured
    } else {
        MemoryKind::Partial
    };
    let ours = [MemoryKind::Captured, MemoryKind::Partial];
    manifest.memory.retain(|r| !ours.contains(&r.kind));
    manifest
        .memory
        .extend(captured.iter().map(|e| MemoryRegion {
            gpa: e.gpa,
            bytes: e.bytes,
            kind,
            reason: None,
        }));
    manifest.memory.sort_by_key(|r| r.gpa);
    let all: Vec<Extent> = manifest
        .memory
        .iter()
        .map(|r| Extent::new(r.gpa, r.bytes))
        .collect();
    check_extents(&all, "captured and other ranges of memory")?;
    Ok(manifest)
}

fn to_json(manifest: &Manifest) -> Result<Vec<u8>, WriteError> {
    serde_json::to_vec(manifest).map_err(|e| WriteError::Spec(format!("the manifest: {e}")))
}

/// `captured` less `absent`.
fn subtract(captured: &[Extent], absent: &[Extent]) -> Vec<Extent> {
    let mut left = Vec::new();
    for range in captured {
        let mut from = range.gpa;
        for hole in overlaps(absent, *range) {
            if hole.gpa > from {
                left.push(Extent::new(from, hole.gpa - from));
            }
            from = hole.end();
        }
        if range.end() > from {
            left.push(Extent::new(from, range.end() - from));
        }
    }
    left
}

impl<'a> Writer<'a> {
    fn new(
        spec: &CaptureSpec<'a>,
        source: &'a dyn MemorySource,
        options: &'a WriteOptions<'a>,
    ) -> Result<Self, WriteError> {
        if !(1..=22).contains(&options.level) {
            return Err(WriteError::Spec(format!(
                "expected a compression level from 1 to 22, found {}",
                options.level
            )));
        }
        check_extents(&spec.memory, "memory segments")?;
        let (excluded, kept) = spec
            .excluded
            .fit(&spec.memory, SHORTEST_STRETCH, MAX_SEGMENTS);
        let mut manifest = complete(&spec.manifest, &spec.memory, &excluded)?;
        if spec.early.is_some() {
            manifest.early.get_or_insert_default();
        } else {
            manifest.early = None;
        }
        let mut notes = spec.notes.clone();
        if !excluded.is_empty() {
            notes.push(Note::scxpm(note_types::EXCLUDED, excluded.encode()));
        }
        let layout = Layout::new(&kept, &notes, to_json(&manifest)?, &spec.tail_notes)?;
        let late = Memory::new(source, &layout.segments, Vec::new())?;
        let early = match &spec.early {
            None => None,
            Some(early) => {
                let absent: Vec<Extent> = early
                    .manifest
                    .memory
                    .iter()
                    .filter(|r| r.kind == MemoryKind::NotCaptured)
                    .map(|r| Extent::new(r.gpa, r.bytes))
                    .collect();
                check_extents(&absent, "ranges that the early image lacks")?;
                let known = subtract(&spec.memory, &absent);
                let manifest = to_json(&complete(&early.manifest, &known, &excluded)?)?;
                let notes = note_segment(&early.notes, manifest)
                    .ok_or_else(|| WriteError::Spec("a note is longer than 4 GiB".into()))?;
                let memory = Memory::new(early.source, &layout.segments, absent)?;
                Some((memory, notes.0))
            }
        };
        let mut preamble = Preamble::new();
        preamble.vcpus = manifest.cpus;
        preamble.dual = early.is_some();
        preamble.degraded = !manifest.degraded.is_empty();
        preamble.logical_bytes = layout.logical_bytes;
        preamble.memory_bytes = layout.segments.iter().map(|s| s.bytes).sum();
        preamble.manifest_offset = layout.manifest_offset;
        preamble.manifest_bytes = layout.manifest_bytes;
        preamble.kernel_release = manifest.kernel_release.clone().unwrap_or_default();
        if preamble.data_frames() > MAX_ENTRIES - 2 {
            return Err(WriteError::Spec(format!(
                "memory takes {} frames, a seek table holds up to {MAX_ENTRIES}",
                preamble.data_frames()
            )));
        }
        Ok(Self {
            options,
            layout,
            preamble,
            late,
            early,
            workers: Spares::default(),
            buffers: Spares::default(),
        })
    }

    fn worker(&self) -> Result<Worker, WriteError> {
        let make = || {
            Compressor::new(self.options.level).map(|compressor| Worker {
                compressor,
                late: Vec::new(),
                early: Vec::new(),
            })
        };
        let worker = self.workers.take().map_or_else(make, Ok);
        worker.map_err(|why| WriteError::Compress { frame: 0, why })
    }

    fn buffer(&self) -> Unit {
        let mut unit = self.buffers.take().unwrap_or_default();
        unit.bytes.clear();
        unit.sizes.clear();
        unit.changed.clear();
        unit.zero_frames = 0;
        unit
    }

    fn run(&self, out: &mut dyn Output) -> Result<Summary, WriteError> {
        let failed = |cause| WriteError::Output { written: 0, cause };
        let start = out.stream_position().map_err(failed)?;
        let mut sink = Sink {
            digest: Xxh3::new(),
            out: BufWriter::with_capacity(FRAME_BYTES, &mut *out),
            written: 0,
            table: TableBuilder::default(),
        };
        let frames = self.preamble.data_frames();
        let total_bytes = self.layout.logical_bytes;
        let mut summary = Summary {
            logical_bytes: total_bytes,
            memory_bytes: self.preamble.memory_bytes,
            frames,
            ..Summary::default()
        };
        sink.record(&self.preamble.encode())?;

        let mut changed: Vec<u16> = Vec::new();
        let mut done = 0;
        ordered(
            frames.div_ceil(UNIT),
            |unit| self.data_unit(unit),
            |unit| {
                sink.frames(&unit)?;
                summary.zero_frames += unit.zero_frames;
                changed.extend_from_slice(&unit.changed);
                done = total_bytes.min(done + to_u64(unit.sizes.len()) * FRAME_BYTES_U64);
                self.buffers.give(unit);
                self.progress(done, sink.written)
            },
        )?;

        let mut integrity = Integrity {
            file_bytes: 0,
            logical_bytes: total_bytes,
            data_frames: frames,
            early_chunks: 0,
            early_bytes: 0,
            table_hash: 0,
        };
        if let Some((early, notes)) = &self.early {
            let before = sink.written;
            let stream = EarlyStream::new(self, early, notes, &changed)?;
            summary.early_pages = to_u64(stream.pages.len());
            integrity.early_chunks = stream.bytes.div_ceil(FRAME_BYTES_U64);
            integrity.early_bytes = stream.bytes;
            ordered(
                integrity.early_chunks.div_ceil(UNIT),
                |unit| stream.unit(unit),
                |unit| {
                    sink.frames(&unit)?;
                    self.buffers.give(unit);
                    self.progress(done, sink.written)
                },
            )?;
            summary.early_bytes = sink.written - before;
        }

        // The record is an entry of the table whose hash it holds, so its size is fixed.
        let mut table = std::mem::take(&mut sink.table);
        table.push(u32::try_from(INTEGRITY_LEN).unwrap_or(u32::MAX), 0);
        integrity.file_bytes = sink.written + to_u64(INTEGRITY_LEN) + table.frame_len();
        let table = table.finish().ok_or_else(|| {
            WriteError::Spec("there are more frames than a seek table holds".into())
        })?;
        integrity.table_hash = xxhash_rust::xxh3::xxh3_64(&table);
        sink.record(&integrity.encode())?;
        sink.put(&table)?;
        let digest = sink.digest.digest128();
        summary.file_bytes = sink.finish()?;
        let preamble = Preamble {
            digest: Some(digest),
            ..self.preamble.clone()
        };
        let end = start.saturating_add(summary.file_bytes);
        let written = summary.file_bytes;
        let again = out
            .seek(SeekFrom::Start(start))
            .and_then(|_| out.write_all(&preamble.encode()))
            .and_then(|()| out.seek(SeekFrom::Start(end)));
        again.map_err(|cause| WriteError::Output { written, cause })?;
        Ok(summary)
    }

    fn progress(&self, done_bytes: u64, file_bytes: u64) -> Result<(), WriteError> {
        let progress = WriteProgress {
            done_bytes,
            total_bytes: self.layout.logical_bytes,
            file_bytes,
        };
        match self.options.progress.map(|report| report(progress)) {
            Some(ControlFlow::Break(())) => Err(WriteError::Cancelled {
                written: file_bytes,
            }),
            _ => Ok(()),
        }
    }

    fn data_unit(&self, unit: u64) -> Result<Unit, WriteError> {
        let mut out = self.buffer();
        let mut worker = self.worker()?;
        let first = unit * UNIT;
        let frames = self.preamble.data_frames();
        for frame in first..frames.min(first + UNIT) {
            self.data_frame(frame, &mut worker, &mut out)?;
        }
        self.workers.give(worker);
        Ok(out)
    }

    /// Appends frame number `frame` of the ELF core.
    fn data_frame(
        &self,
        frame: u64,
        worker: &mut Worker,
        out: &mut Unit,
    ) -> Result<(), WriteError> {
        let Worker {
            compressor,
            late,
            early,
        } = worker;
        let start = frame * FRAME_BYTES_U64;
        let len = to_usize((self.layout.logical_bytes - start).min(FRAME_BYTES_U64));
        let mut changed = 0;
        let content = if let Some((number, range)) = self.segment_part(start, len) {
            let content = self.late.content(number, range, len, late)?;
            if let Some((memory, _)) = &self.early {
                let bytes = match content {
                    Content::Zero => ZEROS.get(..len).unwrap_or_default(),
                    Content::Bytes(bytes) => bytes,
                };
                let known = to_usize(range.bytes);
                let bytes = bytes.get(..known).unwrap_or_default();
                let before = memory.known_content(number, range, bytes, early)?;
                changed = changed_pages(&content, bytes, &before);
            }
            content
        } else {
            let (bytes, at) = if start < to_u64(self.layout.head.len()) {
                (&self.layout.head, start)
            } else {
                (&self.layout.tail, start - self.layout.tail_offset)
            };
            let from = to_usize(at).min(bytes.len());
            let to = from.saturating_add(len).min(bytes.len());
            late.clear();
            late.extend_from_slice(bytes.get(from..to).unwrap_or_default());
            late.resize(len, 0);
            Content::Bytes(late)
        };
        let compressed = match content {
            Content::Bytes(bytes) if !is_zero(bytes) => compressor.append(bytes, &mut out.bytes),
            _ => {
                out.zero_frames += 1;
                if len == FRAME_BYTES {
                    out.bytes.extend_from_slice(&ZERO_FRAME);
                    Ok(u32::try_from(ZERO_FRAME.len()).unwrap_or(u32::MAX))
                } else {
                    let zero = ZEROS.get(..len).unwrap_or_default();
                    compressor.append(zero, &mut out.bytes)
                }
            }
        };
        let compressed = compressed.map_err(|why| WriteError::Compress { frame, why })?;
        out.sizes
            .push((compressed, u32::try_from(len).unwrap_or(u32::MAX)));
        out.changed.push(changed);
        Ok(())
    }

    /// The number of the segment at `offset` of the core, and its memory in the `len` bytes
    /// from there.
    fn segment_part(&self, offset: u64, len: usize) -> Option<(usize, Extent)> {
        let segments = &self.layout.segments;
        let number = segments
            .partition_point(|s| s.offset <= offset)
            .checked_sub(1)?;
        let s = segments.get(number)?;
        let within = offset - s.offset;
        let left = s.bytes.checked_sub(within).filter(|&left| left > 0)?;
        Some((number, Extent::new(s.gpa + within, left.min(to_u64(len)))))
    }
}

/// Bit per page in which `before` differs.
fn changed_pages(content: &Content<'_>, late: &[u8], before: &Content<'_>) -> u16 {
    let zero = ZEROS.get(..late.len()).unwrap_or_default();
    let before = match (content, before) {
        (Content::Zero, Content::Zero) => return 0,
        (_, Content::Zero) => zero,
        (_, Content::Bytes(bytes)) => bytes,
    };
    let pages = late
        .chunks(EARLY_PAGE_BYTES)
        .zip(before.chunks(EARLY_PAGE_BYTES));
    pages
        .enumerate()
        .filter(|(_, (late, before))| late != before)
        .fold(0, |mask, (page, _)| mask | 1 << page)
}

/// The early image as a stream of its own: header, notes, index of changed pages, the pages.
struct EarlyStream<'a> {
    writer: &'a Writer<'a>,
    early: &'a Memory<'a>,
    head: Vec<u8>,
    /// Numbers of changed pages, counted in the ELF core.
    pages: Vec<u32>,
    pages_offset: u64,
    bytes: u64,
}

impl<'a> EarlyStream<'a> {
    fn new(
        writer: &'a Writer<'a>,
        early: &'a Memory<'a>,
        notes: &[u8],
        changed: &[u16],
    ) -> Result<Self, WriteError> {
        let mut pages = Vec::new();
        for (frame, &mask) in changed.iter().enumerate() {
            for bit in 0..PAGES {
                if mask & (1 << bit) != 0 {
                    // Fits: a seek table's limit of frames is 2^27.
                    let page = u32::try_from(to_u64(frame) * PAGES + bit);
                    pages.push(page.unwrap_or(u32::MAX));
                }
            }
        }
        let index_offset = to_u64(EARLY_HEADER + notes.len()).next_multiple_of(8);
        let head_bytes = index_offset + to_u64(pages.len()) * 4;
        let pages_offset = head_bytes.next_multiple_of(FRAME_BYTES_U64);
        let bytes = pages_offset + to_u64(pages.len()) * PAGE_U64;
        let mut head = Record::default()
            .bytes(EARLY_STREAM_MARK)
            .u32(1)
            .u32(4096)
            .u64(bytes)
            .u64(to_u64(EARLY_HEADER))
            .u64(to_u64(notes.len()))
            .u64(index_offset)
            .u64(to_u64(pages.len()))
            .u64(pages_offset)
            .bytes(notes)
            .pad_to(to_usize(index_offset))
            .done();
        for page in &pages {
            head.extend_from_slice(&page.to_le_bytes());
        }
        let chunks = bytes.div_ceil(FRAME_BYTES_U64);
        if writer.preamble.data_frames() + chunks > MAX_ENTRIES - 2 {
            return Err(WriteError::Spec(format!(
                "both images take more frames than the {MAX_ENTRIES} that a seek table holds"
            )));
        }
        Ok(Self {
            writer,
            early,
            head,
            pages,
            pages_offset,
            bytes,
        })
    }

    fn unit(&self, unit: u64) -> Result<Unit, WriteError> {
        let mut out = self.writer.buffer();
        let mut worker = self.writer.worker()?;
        let first = unit * UNIT;
        let chunks = self.bytes.div_ceil(FRAME_BYTES_U64);
        let mut content = Vec::with_capacity(FRAME_BYTES);
        for chunk in first..chunks.min(first + UNIT) {
            self.chunk(chunk, &mut worker, &mut content)?;
            let start = out.bytes.len();
            out.bytes.resize(start + EARLY_PREFIX, 0);
            let len = worker
                .compressor
                .append(&content, &mut out.bytes)
                .map_err(|why| WriteError::Compress { frame: chunk, why })?;
            let prefix = Record::default()
                .u32(SKIPPABLE_MAGIC)
                .u32(len.saturating_add(16))
                .bytes(EARLY_MARK)
                .u32(u32::try_from(chunk).unwrap_or(u32::MAX))
                .u32(0)
                .done();
            if let Some(place) = out.bytes.get_mut(start..start + EARLY_PREFIX) {
                place.copy_from_slice(&prefix);
            }
            out.sizes.push((len.saturating_add(24), 0));
        }
        self.writer.workers.give(worker);
        Ok(out)
    }

    /// Puts the content of a chunk of the stream into `content`.
    fn chunk(
        &self,
        chunk: u64,
        worker: &mut Worker,
        content: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        content.clear();
        let start = chunk * FRAME_BYTES_U64;
        let Some(within) = start.checked_sub(self.pages_offset) else {
            let from = to_usize(start);
            let to = from.saturating_add(FRAME_BYTES).min(self.head.len());
            content.extend_from_slice(self.head.get(from..to).unwrap_or_default());
            let len = (self.bytes - start).min(FRAME_BYTES_U64);
            content.resize(to_usize(len), 0);
            return Ok(());
        };
        let first = to_usize(within / PAGE_U64);
        for &page in self.pages.iter().skip(first).take(to_usize(PAGES)) {
            let at = content.len();
            content.resize(at + EARLY_PAGE_BYTES, 0);
            let delta = content.get_mut(at..).unwrap_or_default();
            self.delta(u64::from(page) * PAGE_U64, worker, delta)?;
        }
        Ok(())
    }

    /// Puts early XOR late of the page at `offset` of the core into `delta`, which is zero.
    fn delta(&self, offset: u64, worker: &mut Worker, delta: &mut [u8]) -> Result<(), WriteError> {
        let Some((number, range)) = self.writer.segment_part(offset, EARLY_PAGE_BYTES) else {
            return Ok(());
        };
        let Worker { late, early, .. } = worker;
        let len = to_usize(range.bytes);
        let zero = ZEROS.get(..len).unwrap_or_default();
        let late = match self.writer.late.content(number, range, len, late)? {
            Content::Zero => zero,
            Content::Bytes(bytes) => bytes,
        };
        let before = match self.early.known_content(number, range, late, early)? {
            Content::Zero => zero,
            Content::Bytes(bytes) => bytes,
        };
        for (delta, (late, before)) in delta.iter_mut().zip(late.iter().zip(before)) {
            *delta = late ^ before;
        }
        Ok(())
    }
}

/// The output with what is to be said about it at the end.
struct Sink<W: Write> {
    out: BufWriter<W>,
    written: u64,
    table: TableBuilder,
    /// Over the frames so far, see [`super::Capture::digest`].
    digest: Xxh3,
}

impl<W: Write> Sink<W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let written = self.written;
        self.out
            .write_all(bytes)
            .map_err(|cause| WriteError::Output { written, cause })?;
        self.written += to_u64(bytes.len());
        Ok(())
    }

    /// A skippable frame of our own.
    fn record(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.table
            .push(u32::try_from(bytes.len()).unwrap_or(u32::MAX), 0);
        self.put(bytes)
    }

    fn frames(&mut self, unit: &Unit) -> Result<(), WriteError> {
        self.put(&unit.bytes)?;
        let mut end = 0;
        for &(compressed, decompressed) in &unit.sizes {
            self.table.push(compressed, decompressed);
            end += to_usize(u64::from(compressed));
            let checksum = unit.bytes.get(end.saturating_sub(4)..end);
            self.digest.update(&u64::from(compressed).to_le_bytes());
            self.digest.update(checksum.unwrap_or_default());
        }
        Ok(())
    }

    fn finish(mut self) -> Result<u64, WriteError> {
        let written = self.written;
        self.out
            .flush()
            .map_err(|cause| WriteError::Output { written, cause })?;
        Ok(written)
    }
}
