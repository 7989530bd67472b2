//! A guest's memory while it runs: a shared file that the emulator maps, read beside it, or the
//! address space of the emulator's process.
//!
//! Read with `pread`, not through a mapping of our own: a read of a hole in a tmpfs file through a
//! mapping allocates it, and the guest would cost its full size. It also means that no `unsafe` and
//! no reference to bytes that change is needed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use scx_postmortem_analyze::addr::Gpa;
use scx_postmortem_analyze::error::Error;
use scx_postmortem_analyze::source::{PhysicalMemory, Region};
use scx_postmortem_format::capture::{Extent, MemorySource};

/// A piece of the guest's address space and where it is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// First guest physical address.
    pub(crate) gpa: u64,
    /// Length in bytes.
    pub(crate) bytes: u64,
    /// Where it begins in the file.
    pub(crate) offset: u64,
}

/// Where memory is.
#[derive(Debug)]
pub(crate) struct Backing {
    file: File,
    pages: Pages,
}

/// What tells which of it was touched.
#[derive(Debug)]
enum Pages {
    /// A file's holes.
    Holes,
    /// `/proc/PID/pagemap` of anonymous memory.
    Pagemap(File),
    /// Nothing: pages that a process does not have may be in a file behind it.
    Unknown,
}

impl Backing {
    /// A file that the emulator maps shared. Offsets are those of the file.
    pub(crate) fn file(file: File) -> Self {
        let pages = Pages::Holes;
        Self { file, pages }
    }

    /// Anonymous memory of a process: `/proc/PID/mem` and `/proc/PID/pagemap`. Offsets are the
    /// process' addresses.
    pub(crate) fn process(file: File, pagemap: File) -> Self {
        let pages = Pages::Pagemap(pagemap);
        Self { file, pages }
    }

    /// Memory of a process that has a file behind it: `/proc/PID/mem`.
    pub(crate) fn mapped(file: File) -> Self {
        let pages = Pages::Unknown;
        Self { file, pages }
    }

    fn share(&self) -> io::Result<Self> {
        let pages = match &self.pages {
            Pages::Holes => Pages::Holes,
            Pages::Pagemap(file) => Pages::Pagemap(file.try_clone()?),
            Pages::Unknown => Pages::Unknown,
        };
        Ok(Self {
            file: self.file.try_clone()?,
            pages,
        })
    }

    /// The parts of a range that have been touched, as offset and end.
    fn touched(&self, start: u64, end: u64, out: &mut Vec<(u64, u64)>) -> io::Result<()> {
        match &self.pages {
            Pages::Pagemap(pagemap) => return present(pagemap, start, end, out),
            Pages::Unknown => {
                out.push((start, end));
                return Ok(());
            }
            Pages::Holes => {}
        }
        let mut at = start;
        while at < end {
            let from = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(from) => from.min(end),
                // No data behind `at`.
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno.into()),
            };
            if from >= end {
                break;
            }
            let to = seek(&self.file, SeekFrom::Hole(from))?.min(end);
            // Never stand still, whatever the file system answers.
            if to <= from {
                break;
            }
            out.push((from, to));
            at = to;
        }
        Ok(())
    }
}

/// Pages that a process has, in memory or swapped out: bits 63 and 62 of its pagemap
/// (Documentation/admin-guide/mm/pagemap.rst).
fn present(pagemap: &File, start: u64, end: u64, out: &mut Vec<(u64, u64)>) -> io::Result<()> {
    const PAGE: u64 = 4096;
    const ENTRIES: u64 = 8192;
    let mut page = start / PAGE;
    let last = end.div_ceil(PAGE);
    let mut chunk = Vec::new();
    while page < last {
        let count = (last - page).min(ENTRIES);
        chunk.resize(usize::try_from(count * 8).unwrap_or(0), 0);
        pagemap.read_exact_at(&mut chunk, page * 8)?;
        for entry in chunk.chunks_exact(8) {
            let has = entry.last().is_some_and(|bits| bits & 0xc0 != 0);
            let (from, to) = ((page * PAGE).max(start), ((page + 1) * PAGE).min(end));
            match out.last_mut() {
                Some(open) if has && open.1 == from => open.1 = to,
                _ if has => out.push((from, to)),
                _ => {}
            }
            page += 1;
        }
    }
    Ok(())
}

/// Guest memory that someone else writes.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    backing: Vec<Backing>,
    /// By address, disjoint; with the backing's number.
    map: Vec<(Mapping, usize)>,
    regions: Vec<Region>,
}

impl GuestMemory {
    /// All of it in one file. `map` may be in any order; what overlaps an earlier piece is left
    /// out.
    pub(crate) fn new(file: File, map: Vec<Mapping>) -> Self {
        let map = map.into_iter().map(|piece| (piece, 0)).collect();
        Self::from_parts(vec![Backing::file(file)], map)
    }

    /// Each piece in the backing of that number.
    pub(crate) fn from_parts(backing: Vec<Backing>, mut map: Vec<(Mapping, usize)>) -> Self {
        map.sort_by_key(|(piece, _)| piece.gpa);
        let mut end = 0;
        map.retain(|(piece, _)| {
            let keep = piece.gpa >= end && piece.bytes > 0;
            if keep {
                end = piece.gpa.saturating_add(piece.bytes);
            }
            keep
        });
        let mut regions: Vec<Region> = Vec::new();
        for (piece, _) in &map {
            match regions.last_mut() {
                Some(last) if last.end().0 == piece.gpa => last.len += piece.bytes,
                _ => regions.push(Region {
                    start: Gpa(piece.gpa),
                    len: piece.bytes,
                }),
            }
        }
        Self {
            backing,
            map,
            regions,
        }
    }

    /// The same memory in the same files, where `map` says.
    pub(crate) fn with_map(&self, map: Vec<(Mapping, usize)>) -> io::Result<Self> {
        let Self { backing, .. } = self.share()?;
        Ok(Self::from_parts(backing, map))
    }

    /// How many files, or processes, it is in.
    pub(crate) fn backings(&self) -> usize {
        self.backing.len()
    }

    /// The same memory again, for another owner.
    pub(crate) fn share(&self) -> io::Result<Self> {
        let backing = self.backing.iter().map(Backing::share);
        Ok(Self {
            backing: backing.collect::<io::Result<_>>()?,
            map: self.map.clone(),
            regions: self.regions.clone(),
        })
    }

    /// The ranges of the guest's memory, for a capture.
    pub(crate) fn extents(&self) -> Vec<Extent> {
        let regions = self.regions.iter();
        regions.map(|r| Extent::new(r.start.0, r.len)).collect()
    }

    /// The parts of one mapping that have been touched, as addresses of the guest.
    fn data_of(&self, piece: Mapping, backing: usize, out: &mut Vec<Extent>) -> io::Result<()> {
        let Some(backing) = self.backing.get(backing) else {
            return Ok(());
        };
        let mut touched = Vec::new();
        let end = piece.offset.saturating_add(piece.bytes);
        backing.touched(piece.offset, end, &mut touched)?;
        let extents = touched.into_iter();
        out.extend(
            extents.map(|(from, to)| Extent::new(piece.gpa + (from - piece.offset), to - from)),
        );
        Ok(())
    }

    /// Whether its first bytes can be read: a process that has ended has no memory.
    pub(crate) fn is_there(&self) -> bool {
        let first = self.map.first();
        first.is_some_and(|(piece, _)| self.read_at(piece.gpa, &mut [0]).is_ok())
    }

    /// What the guest has touched, by address.
    pub(crate) fn touched(&self) -> io::Result<Vec<Extent>> {
        let mut out = Vec::new();
        for (piece, backing) in &self.map {
            self.data_of(*piece, *backing, &mut out)?;
        }
        Ok(out)
    }

    fn read_at(&self, mut gpa: u64, mut buf: &mut [u8]) -> Result<(), ReadFailure> {
        while !buf.is_empty() {
            let next = self.map.partition_point(|(piece, _)| piece.gpa <= gpa);
            let piece = next.checked_sub(1).and_then(|i| self.map.get(i));
            let left = |piece: &Mapping| (piece.gpa + piece.bytes).saturating_sub(gpa);
            let piece = piece.filter(|(piece, _)| left(piece) > 0);
            let Some((piece, backing)) =
                piece.and_then(|(piece, backing)| Some((piece, self.backing.get(*backing)?)))
            else {
                return Err(ReadFailure::Hole(gpa));
            };
            let len = usize::try_from(left(piece))
                .unwrap_or(usize::MAX)
                .min(buf.len());
            let (part, rest) = buf.split_at_mut(len);
            backing
                .file
                .read_exact_at(part, piece.offset + (gpa - piece.gpa))
                .map_err(ReadFailure::Io)?;
            gpa = gpa.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
            buf = rest;
        }
        Ok(())
    }
}

/// Why memory could not be read.
enum ReadFailure {
    /// The guest has none at this address.
    Hole(u64),
    Io(io::Error),
}

impl PhysicalMemory for GuestMemory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        self.read_at(gpa.0, buf).map_err(|failure| match failure {
            ReadFailure::Hole(gpa) => Error::Hole(Gpa(gpa)),
            ReadFailure::Io(error) => Error::Damaged(error.to_string()),
        })
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}

impl MemorySource for GuestMemory {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_at(gpa, buf).map_err(|failure| match failure {
            ReadFailure::Hole(gpa) => io::Error::other(format!("no memory at {gpa:#x}")),
            ReadFailure::Io(error) => error,
        })
    }

    fn data_extents(&self, range: Extent) -> io::Result<Vec<Extent>> {
        let end = range.gpa.saturating_add(range.bytes);
        let mut out = self.touched()?;
        out.retain_mut(|extent| {
            let from = extent.gpa.max(range.gpa);
            let to = extent.gpa.saturating_add(extent.bytes).min(end);
            *extent = Extent::new(from, to.saturating_sub(from));
            from < to
        });
        Ok(out)
    }
}

/// What of a guest's memory was touched, as something to search: holes are not looked into.
pub(crate) struct Touched<'a> {
    memory: &'a GuestMemory,
    regions: Vec<Region>,
}

impl<'a> Touched<'a> {
    pub(crate) fn new(memory: &'a GuestMemory) -> io::Result<Self> {
        let touched = memory.touched()?.into_iter();
        let regions = touched.map(|extent| Region {
            start: Gpa(extent.gpa),
            len: extent.bytes,
        });
        Ok(Self {
            memory,
            regions: regions.collect(),
        })
    }
}

impl PhysicalMemory for Touched<'_> {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        PhysicalMemory::read(self.memory, gpa, buf)
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// A guest of 4 MiB whose upper half lies above 4 GiB, with two pages of data.
    fn sparse() -> (GuestMemory, File) {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(4 << 20).unwrap();
        file.write_all_at(&[7; 4096], 8192).unwrap();
        file.write_all_at(&[9; 4096], 3 << 20).unwrap();
        let map = vec![
            Mapping {
                gpa: 4 << 30,
                bytes: 2 << 20,
                offset: 2 << 20,
            },
            Mapping {
                gpa: 0,
                bytes: 2 << 20,
                offset: 0,
            },
        ];
        (GuestMemory::new(file.try_clone().unwrap(), map), file)
    }

    #[test]
    fn reads_by_address_and_leaves_holes_alone() {
        let (memory, file) = sparse();
        let before = file.metadata().unwrap().blocks();
        let mut buf = [1; 8];
        PhysicalMemory::read(&memory, Gpa(8188), &mut buf).unwrap();
        assert_eq!(buf, [0, 0, 0, 0, 7, 7, 7, 7]);
        PhysicalMemory::read(&memory, Gpa((4 << 30) + (1 << 20)), &mut buf).unwrap();
        assert_eq!(buf, [9; 8]);
        let mut hole = [1; 4096];
        PhysicalMemory::read(&memory, Gpa(1 << 20), &mut hole).unwrap();
        assert_eq!(hole, [0; 4096]);
        assert_eq!(file.metadata().unwrap().blocks(), before);
        let beyond = PhysicalMemory::read(&memory, Gpa((2 << 20) - 4), &mut buf);
        assert_eq!(beyond, Err(Error::Hole(Gpa(2 << 20))));
    }

    #[test]
    fn a_process_has_the_pages_that_it_touched() {
        let mut own = memmap2::MmapMut::map_anon(8 * 4096).unwrap();
        own[4096] = 7;
        own[5 * 4096 + 8] = 9;
        let open = |name: &str| File::open(format!("/proc/self/{name}")).unwrap();
        let piece = Mapping {
            gpa: 0x10000,
            bytes: 8 * 4096,
            offset: own.as_ptr() as u64,
        };
        let backing = vec![Backing::process(open("mem"), open("pagemap"))];
        let memory = GuestMemory::from_parts(backing, vec![(piece, 0)]);
        let touched = [Extent::new(0x11000, 4096), Extent::new(0x15000, 4096)];
        assert_eq!(memory.touched().unwrap(), touched);
        let mut buf = [0; 2];
        PhysicalMemory::read(&memory, Gpa(0x15008), &mut buf).unwrap();
        assert_eq!(buf, [9, 0]);
    }

    #[test]
    fn data_is_found_by_guest_address() {
        let (memory, _file) = sparse();
        let data = [
            Extent::new(8192, 4096),
            Extent::new((4 << 30) + (1 << 20), 4096),
        ];
        assert_eq!(memory.touched().unwrap(), data);
        let upper = Extent::new(4 << 30, 2 << 20);
        assert_eq!(memory.data_extents(upper).unwrap(), data[1..]);
        assert_eq!(memory.extents(), [Extent::new(0, 2 << 20), upper]);
    }
}
