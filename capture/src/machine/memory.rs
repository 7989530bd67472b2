//! A guest's memory while it runs: a shared file that the emulator maps, read beside it.
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

/// Guest memory in a file that someone else writes.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    file: File,
    /// By address, disjoint.
    map: Vec<Mapping>,
    regions: Vec<Region>,
}

impl GuestMemory {
    /// `map` may be in any order; what overlaps an earlier piece is left out.
    pub(crate) fn new(file: File, mut map: Vec<Mapping>) -> Self {
        map.sort_by_key(|piece| piece.gpa);
        let mut end = 0;
        map.retain(|piece| {
            let keep = piece.gpa >= end && piece.bytes > 0;
            if keep {
                end = piece.gpa.saturating_add(piece.bytes);
            }
            keep
        });
        let mut regions: Vec<Region> = Vec::new();
        for piece in &map {
            match regions.last_mut() {
                Some(last) if last.end().0 == piece.gpa => last.len += piece.bytes,
                _ => regions.push(Region {
                    start: Gpa(piece.gpa),
                    len: piece.bytes,
                }),
            }
        }
        Self { file, map, regions }
    }

    /// The file, for a map of it that has changed.
    pub(crate) fn share_file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// The same memory again, for another owner.
    pub(crate) fn share(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            map: self.map.clone(),
            regions: self.regions.clone(),
        })
    }

    /// The ranges of the guest's memory, for a capture.
    pub(crate) fn extents(&self) -> Vec<Extent> {
        let regions = self.regions.iter();
        regions.map(|r| Extent::new(r.start.0, r.len)).collect()
    }

    /// The parts of one mapping that the file has data for, as addresses of the guest.
    fn data_of(&self, piece: Mapping, out: &mut Vec<Extent>) -> io::Result<()> {
        let end = piece.offset.saturating_add(piece.bytes);
        let mut at = piece.offset;
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
            out.push(Extent::new(piece.gpa + (from - piece.offset), to - from));
            at = to;
        }
        Ok(())
    }

    /// What the guest has touched, by address.
    pub(crate) fn touched(&self) -> io::Result<Vec<Extent>> {
        let mut out = Vec::new();
        for piece in &self.map {
            self.data_of(*piece, &mut out)?;
        }
        Ok(out)
    }

    fn read_at(&self, mut gpa: u64, mut buf: &mut [u8]) -> Result<(), ReadFailure> {
        while !buf.is_empty() {
            let next = self.map.partition_point(|piece| piece.gpa <= gpa);
            let piece = next.checked_sub(1).and_then(|i| self.map.get(i));
            let left = |piece: &Mapping| (piece.gpa + piece.bytes).saturating_sub(gpa);
            let Some(piece) = piece.filter(|piece| left(piece) > 0) else {
                return Err(ReadFailure::Hole(gpa));
            };
            let len = usize::try_from(left(piece))
                .unwrap_or(usize::MAX)
                .min(buf.len());
            let (part, rest) = buf.split_at_mut(len);
            self.file
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
