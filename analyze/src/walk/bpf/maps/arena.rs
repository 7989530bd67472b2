//! ARENA: the pages that exist.
//!
//! Reads `struct bpf_arena` (kernel/bpf/arena.c). Pages are found through the page tables of the
//! arena's kernel range, so a sparse arena costs what is in it, and in chunks that are contiguous
//! nowhere else.

use scx_postmortem_format::report::{ArenaPage, ArenaSnapshot, limits};

use super::{Found, Map};
use crate::error::Result;
use crate::render::Arena;

/// `BPF_MAP_TYPE_ARENA`.
pub(super) const TYPE: u32 = 33;
const PAGE: u64 = 4096;
/// Pages of 4 GiB: no arena has more.
const MAX_PAGES: usize = 1 << 20;

pub(super) fn read(map: &Map<'_>, found: &mut Found) -> Result<()> {
    let arena = Arena::read(map.kernel, map.kva)?;
    let declared = u64::from(map.max_entries) * PAGE;
    let span = declared.min(limits::MAX_VM_RANGE_BYTES);
    let mut snapshot = ArenaSnapshot {
        declared_pages: span / PAGE,
        span_capped: declared > span,
        kern_vm_start: arena.kernel_start.0,
        user_vm_start: arena.user_start,
        ..ArenaSnapshot::default()
    };
    let mut pages = 0u64;
    let mut shown = 0;
    for (kernel, user) in arena.ranges(span) {
        let mapped = map
            .kernel
            .mapped_pages(kernel.start, kernel.end, MAX_PAGES)?;
        for (at, gpa) in mapped {
            if !arena.is_own_page(gpa) {
                continue;
            }
            pages += 1;
            if shown >= map.page_limit {
                snapshot.truncated = true;
                continue;
            }
            let mut bytes = vec![0; 4096];
            match map.kernel.image.memory.read(gpa, &mut bytes) {
                Ok(()) => {
                    shown += 1;
                    snapshot.pages.push(ArenaPage {
                        user_addr: user + (at.0 - kernel.start.0),
                        bytes,
                    });
                }
                Err(error) => found.error(format!("the page at {at}: {error}")),
            }
        }
    }
    snapshot.pages.sort_by_key(|page| page.user_addr);
    if snapshot.truncated {
        found.error(format!(
            "{shown} of {pages} pages are shown; pointers lead into all of them"
        ));
    }
    found.own.entries = Some(pages);
    found.shared.arena = Some(snapshot);
    Ok(())
}
