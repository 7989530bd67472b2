//! The seek table of the zstd seekable format, and what replaces it in a damaged file.

use std::borrow::Cow;
use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use super::preamble::{INTEGRITY_LEN, Integrity, Preamble, SKIPPABLE_MAGIC};
use super::store::Store;
use super::{FRAME_BYTES, FRAME_BYTES_U64};
use crate::bytes::{Record, array, le_u32, to_u64, to_usize};

const TABLE_MAGIC: u32 = 0x184D_2A5E;
const FOOTER_MAGIC: u32 = 0x8F92_EAB1;
const FOOTER_LEN: usize = 9;
const ENTRY_LEN: usize = 8;
const ZSTD_MAGIC: u32 = 0xFD2F_B528;

/// Limit of the zstd seekable format on the number of frames.
pub(super) const MAX_ENTRIES: u64 = 0x0800_0000;

/// Mark of the skippable frames that hold the early image.
pub(super) const EARLY_MARK: &[u8; 8] = b"SCXPMEAR";
/// Bytes before the zstd frame in such a skippable frame: its header, mark, number, padding.
pub(super) const EARLY_PREFIX: usize = 24;

/// Offsets are kept for every so many entries; between them, sizes are summed up. That keeps
/// opening a large file from writing as much memory as the table itself.
const STRIDE: u64 = 64;

/// Builds a seek table, entry by entry in file order.
#[derive(Debug, Default)]
pub(super) struct TableBuilder(Vec<u8>);

impl TableBuilder {
    pub(super) fn push(&mut self, compressed: u32, decompressed: u32) {
        self.0.extend_from_slice(&compressed.to_le_bytes());
        self.0.extend_from_slice(&decompressed.to_le_bytes());
    }

    pub(super) fn count(&self) -> u64 {
        to_u64(self.0.len() / ENTRY_LEN)
    }

    /// Length in bytes of the finished frame.
    pub(super) fn frame_len(&self) -> u64 {
        to_u64(self.0.len() + 8 + FOOTER_LEN)
    }

    /// The skippable frame. `None` when there are more entries than the format allows.
    pub(super) fn finish(self) -> Option<Vec<u8>> {
        let count = u32::try_from(self.count()).ok()?;
        (u64::from(count) <= MAX_ENTRIES).then_some(())?;
        let size = u32::try_from(self.0.len() + FOOTER_LEN).ok()?;
        let mut frame = Record::default()
            .u32(TABLE_MAGIC)
            .u32(size)
            .bytes(&self.0)
            .u32(count)
            .done();
        frame.push(0);
        frame.extend_from_slice(&FOOTER_MAGIC.to_le_bytes());
        Some(frame)
    }
}

/// Where the entries are.
#[derive(Debug)]
enum Entries {
    /// In the file itself.
    InFile(Range<usize>),
    /// Found by walking the frames, or fetched.
    Owned(Vec<u8>),
}

/// A table that is fetched is not longer than this: that of a guest with 2 TiB.
const FETCH_LIMIT: usize = 256 << 20;

/// Why the table of a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TableFault {
    /// The file does not end in a seek table.
    Missing,
    /// It does, but the table or its integrity record is not right.
    Damaged(String),
}

/// No frame is longer than this: what zstd makes of a frame's content at most, and what stands
/// before it in the early image. Whoever reads by ranges takes memory for a frame by its length in
/// the table.
fn longest_frame() -> u64 {
    to_u64(zstd_safe::compress_bound(FRAME_BYTES) + EARLY_PREFIX)
}

/// A checked seek table.
#[derive(Debug)]
pub(super) struct Table {
    entries: Entries,
    /// File offset of every `STRIDE`th entry.
    checkpoints: Vec<u64>,
    /// Entries that hold the ELF core. They begin at entry 1.
    pub(super) data_frames: u64,
    /// Entries that hold the early image. They follow the data frames.
    pub(super) early_chunks: u64,
}

/// One entry: where its frame is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Table {
    /// Reads the table at the end of `file` and checks all of it against the file.
    pub(super) fn read(file: &impl Store, preamble: &Preamble) -> Result<Self, TableFault> {
        let damaged = |why: &str| Err(TableFault::Damaged(why.to_owned()));
        let len = to_usize(file.bytes());
        // The bytes from there to the end of the file.
        let from = |at: usize| match file.whole() {
            Some(file) => file.get(at..).map(Cow::Borrowed),
            None => file.fetch(to_u64(at), len - at).ok().map(Cow::Owned),
        };
        let footer = len.checked_sub(FOOTER_LEN).and_then(from);
        let footer = footer.and_then(|footer| array::<FOOTER_LEN>(&footer, 0));
        let Some(footer) = footer else {
            return Err(TableFault::Missing);
        };
        if le_u32(&footer, 5) != Some(FOOTER_MAGIC) {
            return Err(TableFault::Missing);
        }
        if footer.get(4) != Some(&0) {
            return damaged("the seek table's descriptor is not 0");
        }
        let count = to_usize(u64::from(le_u32(&footer, 0).unwrap_or(u32::MAX)));
        // Bounded by the file before anything is sized by it.
        let entries_end = len - FOOTER_LEN;
        let places = count
            .checked_mul(ENTRY_LEN)
            .and_then(|bytes| entries_end.checked_sub(bytes))
            .and_then(|start| Some((start, start.checked_sub(8)?)))
            .and_then(|(start, frame)| Some((start, frame, frame.checked_sub(INTEGRITY_LEN)?)));
        let Some((entries_start, table_at, integrity_at)) = places else {
            return damaged("the seek table claims more frames than the file has room for");
        };
        if file.whole().is_none() && len - integrity_at > FETCH_LIMIT {
            return damaged("the seek table is too long to be fetched");
        }
        let Some(tail) = from(integrity_at) else {
            return damaged("the seek table could not be fetched");
        };
        let (record, table) = tail.split_at_checked(INTEGRITY_LEN).unwrap_or_default();
        let Some(integrity) = Integrity::decode(record) else {
            return damaged("no intact integrity record stands before the seek table");
        };
        if xxh3_64(table) != integrity.table_hash {
            return damaged("the seek table's hash does not match the integrity record");
        }
        let header_ok = le_u32(table, 0) == Some(TABLE_MAGIC)
            && le_u32(table, 4).map(|n| to_usize(u64::from(n))) == Some(table.len() - 8);
        if !header_ok {
            return damaged("the seek table's frame header does not match its length");
        }
        if integrity.file_bytes != to_u64(len) {
            return damaged("the file's length does not match the integrity record");
        }
        if integrity.logical_bytes != preamble.logical_bytes
            || integrity.data_frames != preamble.data_frames()
        {
            return damaged("the integrity record does not match the preamble");
        }
        // Preamble and integrity record are entries too.
        let expected = integrity
            .data_frames
            .checked_add(integrity.early_chunks)
            .and_then(|n| n.checked_add(2));
        if expected != Some(to_u64(count)) {
            return damaged("the number of frames does not match the integrity record");
        }
        let entries = table.get(8..table.len() - FOOTER_LEN).unwrap_or_default();
        let (checkpoints, total) = Self::check(entries, preamble, &integrity)?;
        if total != to_u64(table_at) {
            return damaged("the frame sizes do not add up to the file's length");
        }
        Ok(Self {
            entries: match &tail {
                Cow::Borrowed(_) => Entries::InFile(entries_start..entries_end),
                Cow::Owned(_) => Entries::Owned(entries.to_vec()),
            },
            checkpoints,
            data_frames: integrity.data_frames,
            early_chunks: integrity.early_chunks,
        })
    }

    /// One pass over the entries: sizes as the layout has them, and the running offsets.
    fn check(
        entries: &[u8],
        preamble: &Preamble,
        integrity: &Integrity,
    ) -> Result<(Vec<u64>, u64), TableFault> {
        let (entries, _) = entries.as_chunks::<ENTRY_LEN>();
        let data = to_usize(integrity.data_frames);
        let split = |entry: &[u8; ENTRY_LEN]| {
            let both = u64::from_le_bytes(*entry);
            (both & 0xffff_ffff, both >> 32)
        };
        let mut checkpoints = Vec::with_capacity(entries.len() / 64 + 1);
        let mut at: u64 = 0;
        let mut odd = 0_usize;
        let mut long = 0_usize;
        let longest = longest_frame();
        for block in entries.chunks(64) {
            checkpoints.push(at);
            for entry in block {
                let (compressed, decompressed) = split(entry);
                // No frame of any kind is shorter than 8 bytes.
                odd += usize::from(decompressed != FRAME_BYTES_U64 || compressed < 8);
                long += usize::from(compressed > longest);
                at += compressed;
            }
        }
        // All odd ones are accounted for: the first, a short last data frame, and what follows.
        let expect = |index: usize, size: u64| {
            entries
                .get(index)
                .map(split)
                .is_some_and(|(c, d)| d == size && c >= 8)
        };
        let last = preamble.logical_bytes % FRAME_BYTES_U64;
        let mut accounted = 0;
        let mut sane = expect(0, 0);
        accounted += 1;
        if last != 0 && data > 0 {
            sane &= expect(data, last);
            accounted += 1;
        }
        for index in data + 1..entries.len() {
            sane &= expect(index, 0);
            accounted += 1;
        }
        let first = entries.first().map(split);
        let tail = entries.last().map(split);
        sane &= first.is_some_and(|(c, _)| c == preamble.record_bytes);
        sane &= tail.is_some_and(|(c, _)| c == to_u64(INTEGRITY_LEN));
        if !sane || odd != accounted {
            return Err(TableFault::Damaged(
                "the seek table's sizes are not those of a capture".into(),
            ));
        }
        // The first entry is the preamble, whose length is checked already.
        if long != first.map_or(0, |(c, _)| usize::from(c > longest)) {
            return Err(TableFault::Damaged(
                "the seek table has a frame that is longer than 64 KiB can become".into(),
            ));
        }
        Ok((checkpoints, at))
    }

    /// Walks the frames from the start of a file without a usable table, as far as whole frames
    /// of the right kind and size follow each other.
    pub(super) fn scan(file: &[u8], preamble: &Preamble) -> Self {
        let mut builder = TableBuilder::default();
        let mut checkpoints = vec![0];
        let mut at = preamble.record_bytes;
        builder.push(u32::try_from(at).unwrap_or(u32::MAX), 0);
        let (mut data, mut early) = (0, 0);
        let wanted = preamble.data_frames();
        while builder.count() < MAX_ENTRIES {
            let Some(rest) = file.get(to_usize(at)..) else {
                break;
            };
            let found = if data < wanted {
                let left = preamble.logical_bytes - data * FRAME_BYTES_U64;
                whole_frame(rest, left.min(FRAME_BYTES_U64)).inspect(|_| data += 1)
            } else {
                early_chunk(rest, early).inspect(|_| early += 1)
            };
            let Some(bytes) = found else {
                break;
            };
            if builder.count().is_multiple_of(STRIDE) {
                checkpoints.push(at);
            }
            builder.push(bytes, 0);
            at += u64::from(bytes);
        }
        Self {
            entries: Entries::Owned(builder.0),
            checkpoints,
            data_frames: data,
            early_chunks: early,
        }
    }

    /// Where the frame of entry `index` is. `None` beyond the frames of data and early image.
    pub(super) fn locate(&self, file: &[u8], index: u64) -> Option<Location> {
        (index <= self.data_frames.checked_add(self.early_chunks)?).then_some(())?;
        let entries = match &self.entries {
            Entries::InFile(range) => file.get(range.clone())?,
            Entries::Owned(entries) => entries,
        };
        let (entries, _) = entries.as_chunks::<ENTRY_LEN>();
        let size = |entry: &[u8; ENTRY_LEN]| u64::from_le_bytes(*entry) & 0xffff_ffff;
        let mut offset = *self.checkpoints.get(to_usize(index / STRIDE))?;
        let from = to_usize(index - index % STRIDE);
        let index = to_usize(index);
        offset += entries.get(from..index)?.iter().map(size).sum::<u64>();
        Some(Location {
            offset,
            bytes: size(entries.get(index)?),
        })
    }

    /// First byte after the last frame that was found.
    pub(super) fn end(&self, file: &[u8]) -> u64 {
        self.locate(file, self.data_frames + self.early_chunks)
            .map_or(0, |l| l.offset.saturating_add(l.bytes))
    }
}

/// Length of the complete zstd frame at the start of `bytes`, when it declares `content` bytes.
fn whole_frame(bytes: &[u8], content: u64) -> Option<u32> {
    (le_u32(bytes, 0)? == ZSTD_MAGIC).then_some(())?;
    // A frame is never much longer than its content; do not let zstd walk the rest of the file.
    let bound = bytes
        .len()
        .min(zstd_safe::compress_bound(to_usize(content)) + 32);
    let bytes = bytes.get(..bound)?;
    let declared = zstd_safe::get_frame_content_size(bytes).ok()??;
    let len = zstd_safe::find_frame_compressed_size(bytes).ok()?;
    (declared == content && len >= 8).then_some(())?;
    u32::try_from(len).ok()
}

/// Length of the complete skippable frame with chunk `number` of the early image.
fn early_chunk(bytes: &[u8], number: u64) -> Option<u32> {
    let len = le_u32(bytes, 4)?.checked_add(8)?;
    (u64::from(len) <= longest_frame()).then_some(())?;
    let frame = bytes.get(..to_usize(u64::from(len)))?;
    early_payload(frame, number).map(|_| len)
}

/// The zstd frame inside the skippable frame with chunk `number` of the early image.
pub(super) fn early_payload(frame: &[u8], number: u64) -> Option<&[u8]> {
    let ours = le_u32(frame, 0)? == SKIPPABLE_MAGIC
        && to_u64(frame.len()) == u64::from(le_u32(frame, 4)?) + 8
        && array::<8>(frame, 8)? == *EARLY_MARK
        && u64::from(le_u32(frame, 16)?) == number
        && le_u32(frame, 20)? == 0;
    ours.then_some(())?;
    frame.get(EARLY_PREFIX..)
}
