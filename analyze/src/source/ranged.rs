//! A file that is somewhere else, read by ranges.
//!
//! A report needs a part of a capture: the notes, the kernel's tables, the pages that walkers touch.
//! Frames are small and independent so that no more has to be fetched. Requests are dear, so what
//! lies together is fetched together: in blocks, and more of them at once where reads go on from what
//! was fetched before, as through the kernel's symbols and types.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use scx_postmortem_format::capture::Store;

use crate::bytes::{to_u64, to_usize};

/// What is fetched at least.
const BLOCK: u64 = 32 << 10;
/// Blocks that are fetched ahead at most.
const AHEAD: u64 = 8;
/// Memory for blocks. A report touches fewer; where a capture has more, the oldest go.
const HELD_BLOCKS: usize = 4096;

/// A file of which any range can be had.
pub trait Ranges: Send + Sync {
    /// Length of the file.
    fn bytes(&self) -> u64;

    /// Exactly `len` bytes from `offset`.
    ///
    /// # Errors
    /// Why they cannot be had.
    fn read(&self, offset: u64, len: usize) -> std::io::Result<Vec<u8>>;
}

/// What was asked of a file so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests.
    pub requests: u64,
    /// Bytes that came.
    pub bytes: u64,
}

/// A file that is read by ranges, with a small cache. Clones share it.
#[derive(Clone)]
pub struct RangedFile(Arc<Shared>);

struct Shared {
    ranges: Box<dyn Ranges>,
    state: Mutex<State>,
    /// A request has ended.
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    /// Blocks by number, and when each was used last.
    blocks: HashMap<u64, (Arc<[u8]>, u64)>,
    /// Blocks that are being fetched.
    coming: HashSet<u64>,
    uses: u64,
    traffic: Traffic,
    failure: Option<String>,
}

impl fmt::Debug for RangedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangedFile")
            .field("bytes", &self.bytes())
            .field("traffic", &self.traffic())
            .finish_non_exhaustive()
    }
}

impl RangedFile {
    /// A file.
    #[must_use]
    pub fn new(ranges: Box<dyn Ranges>) -> Self {
        Self(Arc::new(Shared {
            ranges,
            state: Mutex::default(),
            arrived: Condvar::new(),
        }))
    }

    /// What was asked of it so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.state().traffic
    }

    /// Why a range could not be had, if that ever happened. Whatever was made of the file then lacks
    /// something that the file has.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.state().failure.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What another thread panicked in changes nothing about blocks that are whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches some blocks that were marked as coming.
    fn get(&self, run: &Range<u64>) -> Result<Vec<u8>, String> {
        let start = run.start * BLOCK;
        let end = (run.end * BLOCK).min(self.bytes());
        let len = to_usize(end.saturating_sub(start));
        match self.0.ranges.read(start, len) {
            Ok(bytes) if bytes.len() == len => Ok(bytes),
            Ok(bytes) => Err(format!("{} bytes came for a range of {len}", bytes.len())),
            Err(why) => Err(why.to_string()),
        }
    }
}

impl State {
    /// The first blocks of `wanted` that are neither here nor coming, and some that will probably be
    /// wanted next.
    fn missing(&self, wanted: &Range<u64>, end: u64) -> Option<Range<u64>> {
        let is_missing =
            |block: &u64| !self.blocks.contains_key(block) && !self.coming.contains(block);
        let start = wanted.clone().find(is_missing)?;
        let asked = (start..wanted.end).take_while(is_missing).count();
        // As many as stand before them in a row.
        let before = (0..start).rev().take(to_usize(AHEAD));
        let before = before
            .take_while(|block| self.blocks.contains_key(block))
            .count();
        let stop = start.saturating_add(to_u64(asked));
        let ahead = (stop..end).take(before).take_while(is_missing).count();
        Some(start..stop.saturating_add(to_u64(ahead)))
    }

    fn keep(&mut self, run: &Range<u64>, bytes: &[u8]) {
        for (block, bytes) in run.clone().zip(bytes.chunks(to_usize(BLOCK))) {
            if self.blocks.len() >= HELD_BLOCKS {
                let oldest = self.blocks.iter().min_by_key(|(_, (_, used))| *used);
                if let Some(oldest) = oldest.map(|(&block, _)| block) {
                    self.blocks.remove(&oldest);
                }
            }
            self.uses += 1;
            self.blocks.insert(block, (bytes.into(), self.uses));
        }
    }

    /// The bytes of a range, when all of its blocks are here.
    fn assemble(&mut self, offset: u64, len: usize, wanted: &Range<u64>) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(len);
        let mut within = to_usize(offset % BLOCK);
        for block in wanted.clone() {
            self.uses += 1;
            let (bytes, used) = self.blocks.get_mut(&block)?;
            *used = self.uses;
            let left = len - out.len();
            let end = bytes.len().min(within.saturating_add(left));
            out.extend_from_slice(bytes.get(within..end)?);
            within = 0;
        }
        (out.len() == len).then_some(out)
    }
}

impl Store for RangedFile {
    fn bytes(&self) -> u64 {
        self.0.ranges.bytes()
    }

    fn whole(&self) -> Option<&[u8]> {
        None
    }

    fn fetch(&self, offset: u64, len: usize) -> Result<Vec<u8>, &'static str> {
        const FAILED: &str = "it could not be fetched";
        let after = offset.checked_add(to_u64(len));
        let Some(after) = after.filter(|&after| after <= self.bytes()) else {
            return Err("it is cut off");
        };
        let wanted = offset / BLOCK..after.div_ceil(BLOCK);
        let end = self.bytes().div_ceil(BLOCK);
        let mut state = self.state();
        // The blocks of a range longer than the cache do not stay until all are here.
        if wanted.end - wanted.start > to_u64(HELD_BLOCKS / 2) {
            state.traffic.requests += 1;
            state.traffic.bytes += to_u64(len);
            drop(state);
            let read = self.0.ranges.read(offset, len);
            return read.ok().filter(|bytes| bytes.len() == len).ok_or_else(|| {
                self.state()
                    .failure
                    .get_or_insert(format!("{len} bytes at {offset} could not be had"));
                FAILED
            });
        }
        loop {
            if state.failure.is_some() {
                return Err(FAILED);
            }
            if let Some(bytes) = state.assemble(offset, len, &wanted) {
                return Ok(bytes);
            }
            let Some(run) = state.missing(&wanted, end) else {
                // Another thread has asked for them.
                state = self
                    .0
                    .arrived
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.coming.extend(run.clone());
            drop(state);
            let came = self.get(&run);
            state = self.state();
            for block in run.clone() {
                state.coming.remove(&block);
            }
            state.traffic.requests += 1;
            match came {
                Ok(bytes) => {
                    state.traffic.bytes += to_u64(bytes.len());
                    state.keep(&run, &bytes);
                }
                Err(why) => {
                    state.failure.get_or_insert(why);
                }
            }
            self.0.arrived.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Bytes(Vec<u8>, Arc<AtomicBool>);

    impl Ranges for Bytes {
        fn bytes(&self) -> u64 {
            to_u64(self.0.len())
        }

        fn read(&self, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
            if self.1.load(Ordering::Relaxed) {
                return Err(std::io::Error::other("the line is cut"));
            }
            let start = to_usize(offset);
            Ok(self.0[start..start + len].to_vec())
        }
    }

    fn file(len: usize) -> (RangedFile, Vec<u8>, Arc<AtomicBool>) {
        let bytes: Vec<u8> = (0..=250).cycle().step_by(7).take(len).collect();
        let cut = Arc::new(AtomicBool::new(false));
        let file = RangedFile::new(Box::new(Bytes(bytes.clone(), cut.clone())));
        (file, bytes, cut)
    }

    #[test]
    fn any_range_is_what_the_file_has_there() {
        let (file, bytes, _) = file(1_000_003);
        for (at, len) in [
            (0, 1),
            (32_767, 2),
            (0, 1_000_003),
            (999_999, 4),
            (65_536, 32_768),
            (5, 0),
        ] {
            assert_eq!(file.fetch(at as u64, len).unwrap(), &bytes[at..at + len]);
        }
        assert!(file.fetch(1_000_000, 4).is_err());
        assert!(file.fetch(u64::MAX, 4).is_err());
        assert_eq!(file.failure(), None);
    }

    #[test]
    fn a_block_is_fetched_once_and_a_row_of_them_ever_more_at_a_time() {
        let (file, _, _) = file(8 << 20);
        for _ in 0..3 {
            file.fetch(100, 8).unwrap();
        }
        assert_eq!(
            file.traffic(),
            Traffic {
                requests: 1,
                bytes: BLOCK
            }
        );
        for at in (0..8 << 20).step_by(4096) {
            file.fetch(at, 4096).unwrap();
        }
        let traffic = file.traffic();
        assert_eq!(traffic.bytes, 8 << 20);
        assert!(traffic.requests < 40, "{traffic:?}");
    }

    #[test]
    fn memory_for_blocks_is_bounded() {
        let blocks = HELD_BLOCKS + 100;
        let (file, bytes, _) = file(blocks * to_usize(BLOCK));
        for block in (0..blocks).step_by(2).chain((1..blocks).step_by(2)) {
            let at = to_u64(block) * BLOCK;
            assert_eq!(
                file.fetch(at, 1).unwrap(),
                &bytes[to_usize(at)..=to_usize(at)]
            );
        }
        assert!(file.state().blocks.len() <= HELD_BLOCKS);
    }

    #[test]
    fn what_fails_once_stays_failed() {
        let (file, _, cut) = file(1 << 20);
        file.fetch(0, 8).unwrap();
        cut.store(true, Ordering::Relaxed);
        assert_eq!(file.fetch(1 << 19, 8), Err("it could not be fetched"));
        assert_eq!(file.failure().as_deref(), Some("the line is cut"));
        cut.store(false, Ordering::Relaxed);
        assert!(file.fetch(1 << 19, 8).is_err());
    }

    #[test]
    fn many_threads_get_what_the_file_has() {
        let (file, bytes, _) = file(4 << 20);
        std::thread::scope(|scope| {
            for thread in 0..8_usize {
                let (file, bytes) = (&file, &bytes);
                scope.spawn(move || {
                    for i in 0..400 {
                        let at = (i * 7919 + thread * 104_729) % ((4 << 20) - 5000);
                        assert_eq!(file.fetch(at as u64, 5000).unwrap(), &bytes[at..at + 5000]);
                    }
                });
            }
        });
        // No block twice.
        assert!(file.traffic().bytes <= 4 << 20);
    }
}
