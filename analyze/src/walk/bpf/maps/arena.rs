//! ARENA: the pages that exist.
//!
//! Reads `struct bpf_arena` (kernel/bpf/arena.c). Pages are found through the page tables of the
//! arena's kernel range, so a sparse arena costs what is in it, and in chunks that are contiguous
//! nowhere else.

use std::ops::Range;
use std::sync::Arc;

use scx_postmortem_format::report::{ArenaPage, ArenaSnapshot, limits};

use super::{Found, Map};
use crate::addr::{Gpa, Kva};
use crate::bytes::to_u64;
use crate::error::Result;
use crate::kernel::Kernel;
use crate::render::Arena;

/// `BPF_MAP_TYPE_ARENA`.
pub(super) const TYPE: u32 = 33;
const PAGE: u64 = 4096;
/// Pages of 4 GiB: no arena has more.
const MOST_PAGES: usize = 1 << 20;
/// Pages that are listed of all arenas together, and of one at least.
const MAX_PAGES: usize = 1 << 24;
const MIN_PAGES: usize = 1 << 12;
/// Ranges whose page tables cannot be read that are named.
const MAX_NAMED: usize = 4;

/// An arena: its window, and the pages that exist in it.
pub(super) struct Pages {
    /// The map's id.
    pub(super) id: u32,
    pub(super) arena: Arena,
    /// Bytes that the map declares.
    declared: u64,
    /// Each page's user address and place, ascending.
    pub(super) pages: Vec<(u64, Gpa)>,
    /// User addresses of which it is not known whether there are pages.
    unknown: Vec<Range<u64>>,
    /// Why some are not known; `None` when all are.
    pub(super) error: Option<String>,
}

impl Pages {
    /// Lists the pages of the arena at `at`, one of `count`.
    pub(super) fn read(kernel: &Kernel, at: Kva, count: usize) -> Result<Self> {
        let limit = (MAX_PAGES / count.max(1)).max(MIN_PAGES);
        let map = kernel.object("struct bpf_map", at)?;
        let arena = Arena::read(kernel, at)?;
        let mut listed = Self {
            id: map.member("id")?.u32()?,
            arena,
            declared: u64::from(map.member("max_entries")?.u32()?) * PAGE,
            pages: Vec::new(),
            unknown: Vec::new(),
            error: None,
        };
        let mut reasons = Vec::new();
        for (range, user) in arena.ranges(listed.span()) {
            let address = |at: Kva| user.wrapping_add(at.0.wrapping_sub(range.start.0));
            let mapped = kernel.mapped_pages(range.start, range.end, MOST_PAGES);
            let own = mapped.pages.into_iter();
            let own = own.filter(|&(_, gpa)| arena.is_own_page(gpa));
            let mut own = own.map(|(at, gpa)| (address(at), gpa));
            let left = limit.saturating_sub(listed.pages.len());
            listed.pages.extend(own.by_ref().take(left));
            if let Some((next, _)) = own.next() {
                listed.unknown.push(next..address(range.end));
                reasons.push(format!("there are more than {limit}"));
            }
            for (tables, error) in mapped.unreadable {
                let unknown = address(tables.start)..address(tables.end);
                reasons.push(format!(
                    "the page tables of {:#x}-{:#x} cannot be read: {error}",
                    unknown.start, unknown.end
                ));
                listed.unknown.push(unknown);
            }
        }
        listed.pages.sort_unstable_by_key(|page| page.0);
        if !reasons.is_empty() {
            let more = reasons.len().saturating_sub(MAX_NAMED);
            reasons.truncate(MAX_NAMED);
            if more > 0 {
                reasons.push(format!("{more} ranges more"));
            }
            listed.error = Some(format!(
                "{} pages were found; {}",
                listed.pages.len(),
                reasons.join("; ")
            ));
        }
        Ok(listed)
    }

    /// Bytes that it spans.
    pub(super) fn span(&self) -> u64 {
        self.declared.min(limits::MAX_VM_RANGE_BYTES)
    }

    /// Whether there is a page at a user address; `None` when that is not known.
    pub(super) fn has(&self, user: u64) -> Option<bool> {
        let found = self.pages.binary_search_by_key(&user, |page| page.0);
        match found {
            Ok(_) => Some(true),
            Err(_) if self.unknown.iter().any(|range| range.contains(&user)) => None,
            Err(_) => Some(false),
        }
    }
}

pub(super) fn read(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let listed = match &map.pages {
        Some(listed) => Arc::clone(listed),
        // Not listed as an arena because of an error, which comes up again here.
        None => Arc::new(Pages::read(map.kernel, map.kva, 1)?),
    };
    let arena = &listed.arena;
    let mut snapshot = ArenaSnapshot {
        declared_pages: listed.span() / PAGE,
        span_capped: listed.declared > listed.span(),
        kern_vm_start: arena.kernel_start.0,
        user_vm_start: arena.user_start,
        ..ArenaSnapshot::default()
    };
    for &(user_addr, gpa) in &listed.pages {
        if snapshot.pages.len() >= map.page_limit {
            snapshot.truncated = true;
            break;
        }
        let mut bytes = vec![0; 4096];
        match map.kernel.image.memory.read(gpa, &mut bytes) {
            Ok(()) => snapshot.pages.push(ArenaPage { user_addr, bytes }),
            Err(error) => found.note(format_args!("the page at {user_addr:#x}: {error}")),
        }
    }
    if snapshot.truncated {
        found.error(format!(
            "{} of {} pages are shown; pointers lead into all of them",
            snapshot.pages.len(),
            listed.pages.len()
        ));
    }
    match &listed.error {
        None => found.own.entries = Some(to_u64(listed.pages.len())),
        Some(error) => found.error(error.clone()),
    }
    found.shared.arena = Some(snapshot);
    Ok(())
}
