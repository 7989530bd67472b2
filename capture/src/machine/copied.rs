//! A copy of a guest's memory, for a guest that has to go on: [`Copied`].
//!
//! The time that counts is that of [`Copied::fill`], in which the guest stands still. So the pages
//! that the copy goes to are allocated, and touched, before: a page fault for every 4 KiB takes
//! longer than copying them. Holes of the guest's memory are holes of the copy.

use std::io;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut, MmapOptions};
use rayon::prelude::*;
use scx_postmortem_analyze::addr::Gpa;
use scx_postmortem_analyze::error::Error;
use scx_postmortem_analyze::source::{PhysicalMemory, Region};
use scx_postmortem_format::capture::{Extent, MemorySource};

use super::GuestMemory;

/// How much of the memory one thread copies at a time, bytes.
const PIECE: usize = 4 << 20;
const PAGE: usize = 4096;
/// The guest goes on while room is made: how much more it may touch until it stops, as a share
/// of what it has touched, and in bytes.
const SLACK_SHARE: u64 = 16;
const SLACK: u64 = 16 << 20;

/// Room for a copy, made while the guest runs.
pub(crate) struct Room(MmapMut);

/// A copy of a guest's memory.
pub(crate) struct Copied {
    data: MmapMut,
    /// What was touched, by address; `data` has it in this order, without gaps.
    extents: Vec<(Extent, usize)>,
    /// The ranges of memory that the guest has.
    memory: Vec<Extent>,
    regions: Vec<Region>,
    /// How long copying took.
    pub(crate) took: Duration,
}

fn size(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(io::Error::other)
}

fn total(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.bytes).sum()
}

fn room(bytes: u64) -> io::Result<MmapMut> {
    let mut map = MmapOptions::new()
        .len(size(bytes)?.max(PAGE))
        .no_reserve_swap()
        .map_anon()?;
    // Without huge pages it is only slower.
    let _ = map.advise(Advice::HugePage);
    map.par_chunks_mut(PIECE).for_each(|piece| {
        for page in piece.chunks_mut(PAGE) {
            if let Some(first) = page.first_mut() {
                *first = 0;
                // Not optimised away: the next reader is another thread.
                std::hint::black_box(first);
            }
        }
    });
    Ok(map)
}

impl Room {
    /// Makes room for a copy of what the guest has touched by now, and a little more.
    pub(crate) fn make(memory: &GuestMemory) -> io::Result<Self> {
        let touched = total(&memory.touched()?);
        room(touched + touched / SLACK_SHARE + SLACK).map(Self)
    }
}

impl Copied {
    /// Copies the memory of a guest that stands still.
    pub(crate) fn fill(memory: &GuestMemory, Room(mut data): Room) -> io::Result<Self> {
        let start = Instant::now();
        let touched = memory.touched()?;
        if u64::try_from(data.len()).unwrap_or(0) < total(&touched) {
            data = room(total(&touched))?;
        }
        let mut pieces: Vec<(u64, &mut [u8])> = Vec::new();
        let mut extents = Vec::with_capacity(touched.len());
        let mut at = 0;
        let mut rest: &mut [u8] = &mut data;
        for extent in touched {
            let len = size(extent.bytes)?;
            let Some((part, behind)) = rest.split_at_mut_checked(len) else {
                return Err(io::Error::other(
                    "the guest's memory grew while it was copied",
                ));
            };
            rest = behind;
            extents.push((extent, at));
            at += len;
            let mut gpa = extent.gpa;
            for piece in part.chunks_mut(PIECE) {
                let len = u64::try_from(piece.len()).unwrap_or(0);
                pieces.push((gpa, piece));
                gpa = gpa.saturating_add(len);
            }
        }
        pieces
            .into_par_iter()
            .try_for_each(|(gpa, piece)| MemorySource::read(memory, gpa, piece))?;
        Ok(Self {
            data,
            extents,
            memory: memory.extents(),
            regions: memory.regions().to_vec(),
            took: start.elapsed(),
        })
    }

    /// The ranges of the guest's memory.
    pub(crate) fn extents(&self) -> Vec<Extent> {
        self.memory.clone()
    }

    /// Bytes that were copied.
    pub(crate) fn bytes(&self) -> u64 {
        self.extents.iter().map(|(extent, _)| extent.bytes).sum()
    }

    fn read_at(&self, mut gpa: u64, mut buf: &mut [u8]) -> Option<()> {
        while !buf.is_empty() {
            let region = self
                .regions
                .iter()
                .find(|r| r.start.0 <= gpa && gpa < r.end().0)?;
            let next = self
                .extents
                .partition_point(|(extent, _)| extent.gpa <= gpa);
            let own = next.checked_sub(1).and_then(|i| self.extents.get(i));
            let own = own.filter(|(extent, _)| gpa - extent.gpa < extent.bytes);
            let until = match own {
                Some((extent, _)) => extent.gpa.saturating_add(extent.bytes),
                None => self
                    .extents
                    .get(next)
                    .map_or(u64::MAX, |(extent, _)| extent.gpa),
            };
            let len = until.min(region.end().0) - gpa;
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
            let (part, rest) = buf.split_at_mut(len);
            match own {
                Some((extent, at)) => {
                    let from = at + usize::try_from(gpa - extent.gpa).ok()?;
                    part.copy_from_slice(self.data.get(from..from.checked_add(len)?)?);
                }
                None => part.fill(0),
            }
            gpa = gpa.checked_add(u64::try_from(len).ok()?)?;
            buf = rest;
        }
        Some(())
    }
}

impl PhysicalMemory for Copied {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        self.read_at(gpa.0, buf).ok_or(Error::Hole(gpa))
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}

impl MemorySource for Copied {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_at(gpa, buf)
            .ok_or_else(|| io::Error::other(format!("no memory at {gpa:#x}")))
    }

    fn data_extents(&self, range: Extent) -> io::Result<Vec<Extent>> {
        let end = range.gpa.saturating_add(range.bytes);
        let mut out: Vec<Extent> = self.extents.iter().map(|(extent, _)| *extent).collect();
        out.retain_mut(|extent| {
            let from = extent.gpa.max(range.gpa);
            let to = extent.gpa.saturating_add(extent.bytes).min(end);
            *extent = Extent::new(from, to.saturating_sub(from));
            from < to
        });
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::machine::Mapping;

    #[test]
    fn a_copy_reads_as_the_memory_did_and_keeps_its_holes() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(4 << 20).unwrap();
        file.write_all_at(&[7; 4096], 8192).unwrap();
        file.write_all_at(&[9; 4096], 3 << 20).unwrap();
        let half = |gpa, offset| Mapping {
            gpa,
            bytes: 2 << 20,
            offset,
        };
        let map = vec![half(0, 0), half(4 << 30, 2 << 20)];
        let memory = GuestMemory::new(file.try_clone().unwrap(), map);
        let room = Room::make(&memory).unwrap();
        // Touched after the room was made.
        file.write_all_at(&[5; 100], 1 << 20).unwrap();
        let copy = Copied::fill(&memory, room).unwrap();
        // Not in the copy any more.
        file.write_all_at(&[1; 4096], 8192).unwrap();

        assert_eq!(copy.bytes(), 3 * 4096);
        let mut buf = [1; 8];
        PhysicalMemory::read(&copy, Gpa(8188), &mut buf).unwrap();
        assert_eq!(buf, [0, 0, 0, 0, 7, 7, 7, 7]);
        PhysicalMemory::read(&copy, Gpa((1 << 20) + 96), &mut buf).unwrap();
        assert_eq!(buf, [5, 5, 5, 5, 0, 0, 0, 0]);
        PhysicalMemory::read(&copy, Gpa((4 << 30) + (1 << 20)), &mut buf).unwrap();
        assert_eq!(buf, [9; 8]);
        let beyond = PhysicalMemory::read(&copy, Gpa((2 << 20) - 4), &mut buf);
        assert_eq!(beyond, Err(Error::Hole(Gpa((2 << 20) - 4))));
        let data = copy.data_extents(Extent::new(0, 2 << 20)).unwrap();
        assert_eq!(data, [Extent::new(8192, 4096), Extent::new(1 << 20, 4096)]);
        assert_eq!(copy.extents(), memory.extents());
    }
}
