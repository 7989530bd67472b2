//! Decompressed frames that stay, and the memory that they live in.
//!
//! Touching fresh memory costs more than decompressing into it, so slots come from a process-wide
//! pool of huge pages and go back to it when a capture is closed.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use memmap2::{Advice, MmapMut};
use zstd_safe::DCtx;

use super::FRAME_BYTES;
use crate::bytes::{to_u64, to_usize};

/// Memory is taken from the system in pieces of this many bytes: a few huge pages.
const GROW_BYTES: usize = 8 << 20;

/// Frames per second-level table.
const LEAF: u64 = 256;

/// Memory for one frame.
type Slot = &'static mut [u8];

/// Slots that no capture uses. They are never given back to the system: a process that opened
/// one capture will open the next.
static POOL: Mutex<Vec<Slot>> = Mutex::new(Vec::new());

fn take_slot() -> Option<Slot> {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if pool.is_empty() {
        let mapping = MmapMut::map_anon(GROW_BYTES).ok()?;
        // Only a hint; without huge pages it is slower, not wrong.
        let _ = mapping.advise(Advice::HugePage);
        let mapping: &'static mut MmapMut = Box::leak(Box::new(mapping));
        pool.extend(mapping.chunks_exact_mut(FRAME_BYTES).rev());
    }
    pool.pop()
}

fn give_slot(slot: Slot) {
    POOL.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(slot);
}

/// A frame that was decompressed, or why it could not be.
type Entry = Result<(Slot, usize), &'static str>;
type Leaf = Box<[OnceLock<Entry>]>;

/// The frames of one capture. A hit takes no lock.
#[derive(Debug)]
pub(super) struct FrameCache {
    id: u64,
    leaves: Box<[OnceLock<Leaf>]>,
    budget_frames: u64,
    used_frames: AtomicU64,
}

impl FrameCache {
    /// A cache for entries `0..entries` that holds up to `budget_bytes`.
    pub(super) fn new(entries: u64, budget_bytes: u64) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let leaves = to_usize(entries.div_ceil(LEAF));
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            leaves: std::iter::repeat_with(OnceLock::new).take(leaves).collect(),
            budget_frames: budget_bytes / to_u64(FRAME_BYTES),
            used_frames: AtomicU64::new(0),
        }
    }

    /// The frame of `entry`, if it is here.
    pub(super) fn get(&self, entry: u64) -> Option<Result<&[u8], &'static str>> {
        let leaf = self.leaves.get(to_usize(entry / LEAF))?.get()?;
        let cached = leaf.get(to_usize(entry % LEAF))?.get()?;
        Some(Self::view(cached))
    }

    fn view(entry: &Entry) -> Result<&[u8], &'static str> {
        match entry {
            Ok((slot, len)) => Ok(slot.get(..*len).unwrap_or_default()),
            Err(why) => Err(why),
        }
    }

    /// The frame of `entry`, filled by `fill` if it is not here yet. `fill` returns the frame's
    /// length. `None` when there is no room for it.
    pub(super) fn get_or_fill(
        &self,
        entry: u64,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, &'static str>,
    ) -> Option<Result<&[u8], &'static str>> {
        let leaf = self.leaves.get(to_usize(entry / LEAF))?.get_or_init(|| {
            std::iter::repeat_with(OnceLock::new)
                .take(to_usize(LEAF))
                .collect()
        });
        let cell = leaf.get(to_usize(entry % LEAF))?;
        if let Some(cached) = cell.get() {
            return Some(Self::view(cached));
        }
        let reserved =
            self.used_frames
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                    (used < self.budget_frames).then_some(used + 1)
                });
        reserved.ok()?;
        let mut spare = take_slot();
        if spare.is_none() {
            self.used_frames.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        // Another thread that wants the same frame waits here instead of decompressing it too.
        let cached = cell.get_or_init(|| {
            let slot = spare.take().ok_or("out of memory")?;
            match fill(slot) {
                Ok(len) => Ok((slot, len)),
                Err(why) => {
                    spare = Some(slot);
                    Err(why)
                }
            }
        });
        if let Some(slot) = spare {
            give_slot(slot);
            self.used_frames.fetch_sub(1, Ordering::Relaxed);
        }
        Some(Self::view(cached))
    }

    /// Calls `with` with the frame of `entry` in this thread's scratch memory, filled by `fill`
    /// unless it is the frame that was there last.
    pub(super) fn through_scratch<R>(
        &self,
        entry: u64,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, &'static str>,
        with: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, &'static str> {
        SCRATCH.with_borrow_mut(|scratch| {
            let key = (self.id, entry);
            if scratch.key != Some(key) {
                scratch.key = None;
                scratch.frame.resize(FRAME_BYTES, 0);
                scratch.len = fill(&mut scratch.frame)?;
                scratch.key = Some(key);
            }
            Ok(with(scratch.frame.get(..scratch.len).unwrap_or_default()))
        })
    }
}

impl Drop for FrameCache {
    fn drop(&mut self) {
        let cells = self.leaves.iter_mut().filter_map(OnceLock::take).flatten();
        for mut cell in cells {
            if let Some(Ok((slot, _))) = cell.take() {
                give_slot(slot);
            }
        }
    }
}

#[derive(Default)]
struct Scratch {
    key: Option<(u64, u64)>,
    frame: Vec<u8>,
    len: usize,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static CONTEXT: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

/// Calls `with` with this thread's decompression context.
pub(super) fn with_context<R>(
    with: impl FnOnce(&mut DCtx<'static>) -> Result<R, &'static str>,
) -> Result<R, &'static str> {
    CONTEXT.with_borrow_mut(|context| {
        if context.is_none() {
            *context = DCtx::try_create();
        }
        with(context.as_mut().ok_or("out of memory")?)
    })
}
