//! What arenas hold: allocators, the values that point to their slots, global variables.
//!
//! The scheduler's allocators are found by the types of the variables in its data sections
//! ([`allocators`]); whose a slot is, a map's value tells that points to it. Global variables of
//! an arena are in the BTF section `.addr_space.1`; libbpf puts them at the arena's beginning or,
//! since version 1.7, at its end.

use std::collections::HashMap;
use std::sync::Arc;

use scx_postmortem_format::report::{
    AllocatorInfo, ArenaInfo, Hex, MapInfo, ScxStaticSnapshot, SdtAllocatorSnapshot, SlotOwner,
    hex_bytes, reasons,
};

use super::{Found, Map};
use crate::addr::Kva;
use crate::bytes::{le_u64, low32, to_u64, to_usize};
use crate::kernel::Kernel;
use crate::kernel::btf::Kind;
use crate::recover::Recovered;
use crate::render::{Arena, Scope, Slots};
use crate::walk::bpf::allocators::{self, Allocation, Allocators, Section};
use crate::walk::bpf::btfs::LoadedBtf;

const PAGE: u64 = 4096;
/// Pages of 4 GiB.
const MAX_PAGES: usize = 1 << 20;
/// Ranges of unrecognised pages that are listed.
const MAX_RANGES: usize = 32;
/// Largest section of global variables that is read.
const MAX_GLOBALS: u64 = 16 << 20;

/// Everything found in arenas.
#[derive(Default)]
pub struct Heap {
    /// The contract's records of allocators.
    pub snapshots: Vec<SdtAllocatorSnapshot>,
    /// Ours, in the same order.
    pub infos: Vec<AllocatorInfo>,
    /// The contract's record of bump allocators.
    pub statics: ScxStaticSnapshot,
    /// The arenas, by id.
    pub arenas: Vec<ArenaInfo>,
    /// Why there is no allocator, in the contract's words.
    pub unavailable: Option<&'static str>,
    /// By arena: what is allocated in it.
    slots: HashMap<Kva, Arc<Slots>>,
    /// By arena: the allocation at each address.
    allocations: HashMap<Kva, HashMap<u32, Allocation>>,
    /// By arena: bytes that are accounted for.
    known: HashMap<Kva, Vec<(u32, u64)>>,
}

/// A data section with allocators.
pub(super) struct Searched {
    map_id: u32,
    arena: Option<Kva>,
    declares: bool,
    allocators: Allocators,
}

/// Looks for allocators among the variables of a map; `None` for maps that are no data section.
pub(super) fn section(map: &Map<'_>, id: u32) -> Option<Searched> {
    let btf = map.scope.btf();
    let ty = btf.ty(map.value_type).filter(|_| map.typed)?;
    // `struct bpf_array`, which a section is in.
    if ty.kind != Kind::Datasec || map.map_type != 2 {
        return None;
    }
    let at = map.cast("struct bpf_array").ok()?.member("value").ok()?;
    let section = Section {
        scope: &map.scope,
        ty: ty.id,
        at: at.address(),
    };
    Some(Searched {
        map_id: id,
        arena: map.scope.arena().map(|arena| arena.map),
        declares: btf.find("struct scx_allocator").is_ok(),
        allocators: allocators::read(&section, map.limit),
    })
}

impl Heap {
    /// Puts together what the sections hold, which are in the order of their maps.
    pub(super) fn new(sections: Vec<Searched>, arenas: &HashMap<Kva, (u32, Arena)>) -> Self {
        let mut heap = Self {
            unavailable: if sections.is_empty() {
                Some(reasons::REASON_SDT_ALLOC_NO_BSS)
            } else if arenas.is_empty() {
                Some(reasons::REASON_SDT_ALLOC_NO_ARENA)
            } else if !sections.iter().any(|s| s.declares) {
                Some(reasons::REASON_SDT_ALLOC_NO_TYPE)
            } else {
                Some(reasons::REASON_SDT_ALLOC_NO_INSTANCE)
            },
            ..Self::default()
        };
        let mut slots: HashMap<Kva, Slots> = HashMap::new();
        for searched in sections {
            let found = searched.allocators;
            heap.statics.ranges.extend(found.statics.ranges);
            heap.statics.skipped = heap.statics.skipped.saturating_add(found.statics.skipped);
            let first = heap.snapshots.len();
            let arena_id = searched.arena.and_then(|at| arenas.get(&at)).map(|a| a.0);
            heap.snapshots.extend(found.snapshots);
            heap.infos
                .extend(found.infos.into_iter().map(|info| AllocatorInfo {
                    map_id: searched.map_id,
                    arena_id,
                    ..info
                }));
            let Some(arena) = searched.arena else {
                continue;
            };
            heap.known.entry(arena).or_default().extend(found.known);
            let of_arena = heap.allocations.entry(arena).or_default();
            for (at, mut allocation) in found.allocations {
                allocation.allocator = allocation.allocator.saturating_add(first);
                if allocation.typed {
                    slots.entry(arena).or_default().insert(at);
                }
                of_arena.insert(at, allocation);
            }
        }
        if !heap.snapshots.is_empty() {
            heap.unavailable = None;
        }
        heap.slots = slots
            .into_iter()
            .map(|(arena, slots)| (arena, Arc::new(slots)))
            .collect();
        heap
    }

    /// The slots with a typed payload in an arena.
    pub(super) fn slots(&self, arena: Kva) -> Option<Arc<Slots>> {
        self.slots.get(&arena).cloned()
    }

    /// The allocation that a word of a value leads to.
    fn allocation(&self, arena: &Arena, word: u64) -> Option<&Allocation> {
        arena.kernel_address(word)?;
        self.allocations.get(&arena.map)?.get(&low32(word))
    }

    /// Puts the typed payload beside each element whose value points to a slot, and notes whose
    /// slot it is.
    pub(super) fn payloads(&self, map: &Map<'_>, found: &mut Found) {
        let Some(arena) = map.scope.arena() else {
            return;
        };
        let owners: Vec<_> = found
            .own
            .owners
            .iter()
            .map(Some)
            .chain(std::iter::repeat(None))
            .take(found.shared.entries.len())
            .map(Option::<&_>::cloned)
            .collect();
        for (entry, owner) in found.shared.entries.iter_mut().zip(owners) {
            let bytes = hex_bytes(&entry.value_hex);
            let words = bytes.chunks_exact(8).filter_map(|word| le_u64(word, 0));
            for word in words {
                let Some(allocation) = self.allocation(arena, word) else {
                    continue;
                };
                if allocation.typed && entry.payload.is_none() {
                    entry.payload = self
                        .snapshots
                        .get(allocation.allocator)
                        .and_then(|s| s.entries.get(allocation.entry))
                        .map(|slot| slot.payload.clone());
                }
                if let Some(owner) = &owner {
                    found.links.push((allocation.clone(), owner.clone()));
                }
            }
        }
    }

    /// Notes the owners of slots that a map's values told.
    pub(super) fn own(
        &mut self,
        links: &[(Allocation, scx_postmortem_format::report::StorageOwner)],
        map_id: u32,
    ) {
        for (allocation, owner) in links {
            let idx = self
                .snapshots
                .get(allocation.allocator)
                .and_then(|s| s.entries.get(allocation.entry))
                .map(|slot| slot.idx);
            let info = self.infos.get_mut(allocation.allocator);
            if let Some((idx, info)) = idx.zip(info) {
                info.owners.push(SlotOwner {
                    idx,
                    map_id,
                    owner: owner.clone(),
                });
            }
        }
    }

    /// The arena's own record.
    pub(super) fn arena(
        &mut self,
        kernel: &Kernel,
        arena: &Arena,
        (btf, casts): (
            Option<crate::error::Result<LoadedBtf>>,
            Option<Arc<Recovered>>,
        ),
        maps: &[MapInfo],
    ) {
        let Some(map) = maps.iter().find(|map| map.kva.0 == arena.map.0) else {
            return;
        };
        let span = u64::from(map.max_entries.unwrap_or(0)) * PAGE;
        let mut pages = Vec::new();
        for (range, user) in arena.ranges(span.min(1 << 32)) {
            // What cannot be read is in the map's own record.
            let mapped = kernel
                .mapped_pages(range.start, range.end, MAX_PAGES)
                .unwrap_or_default();
            let own = mapped
                .into_iter()
                .filter(|(_, gpa)| arena.is_own_page(*gpa));
            pages.extend(own.map(|(at, _)| user + (at.0 - range.start.0)));
        }
        pages.sort_unstable();
        let mut info = ArenaInfo {
            map_id: map.id,
            name: map.name.clone(),
            kva: map.kva,
            pages: to_u64(pages.len()),
            ..ArenaInfo::default()
        };
        let mut known = self.known.remove(&arena.map).unwrap_or_default();
        match btf {
            Some(Ok(btf)) => {
                let slots = self.slots(arena.map);
                let scope = Scope::new(kernel, Arc::clone(&btf.types), Some(*arena));
                let scope = scope.with_slots(slots).with_casts(casts);
                globals(&scope, arena, span, &pages, &mut info);
                if let Some((at, size)) = info.globals_at.zip(globals_size(&btf)) {
                    known.push((low32(at.0), size));
                }
            }
            Some(Err(error)) => info.globals_error = Some(error.to_string()),
            None => {}
        }
        let unrecognised = unrecognised(&pages, &known);
        info.unrecognised_pages = to_u64(unrecognised.len());
        info.unrecognised = ranges(&unrecognised);
        self.arenas.push(info);
    }
}

/// Size of the section of global variables.
fn globals_size(btf: &LoadedBtf) -> Option<u64> {
    btf.types.size_of(btf.types.find_section(SECTION)?)
}

/// Where clang puts variables of address space 1.
const SECTION: &str = ".addr_space.1";

/// Reads the arena's global variables.
fn globals(scope: &Scope<'_>, arena: &Arena, span: u64, pages: &[u64], info: &mut ArenaInfo) {
    let btf = scope.btf();
    let Some(ty) = btf.find_section(SECTION) else {
        return;
    };
    let Some(size) = btf
        .size_of(ty)
        .filter(|size| (1..=MAX_GLOBALS).contains(size))
    else {
        info.globals_error = Some(format!("the section {SECTION} has no plausible size"));
        return;
    };
    let bottom = arena.user_start;
    let top = bottom
        .wrapping_add(span)
        .wrapping_sub(size.next_multiple_of(PAGE));
    let has = |at: u64| pages.binary_search(&at).is_ok();
    let at = match (has(bottom), has(top)) {
        (true, false) => bottom,
        (false, true) => top,
        (true, true) if bottom == top => bottom,
        (true, true) => {
            info.globals_error = Some(
                "there are pages at both ends of the arena, and libbpf puts global variables at either".into(),
            );
            return;
        }
        (false, false) => {
            info.globals_error =
                Some("no page at either end of the arena: they were never touched".into());
            return;
        }
    };
    info.globals_at = Some(Hex(at));
    let mut bytes = vec![0; to_usize(size)];
    // A page that was never touched reads as zero.
    for (offset, chunk) in (0u64..).step_by(4096).zip(bytes.chunks_mut(4096)) {
        if !has(at.wrapping_add(offset)) {
            continue;
        }
        let from = arena.low32(at.wrapping_add(offset));
        if let Err(error) = arena.fill(scope.kernel(), from, chunk) {
            info.globals_error = Some(error.to_string());
            return;
        }
    }
    info.globals = Some(scope.render_at(ty, &bytes, arena.low32(at).0));
}

/// The pages that none of the known bytes touch.
fn unrecognised(pages: &[u64], known: &[(u32, u64)]) -> Vec<u64> {
    let mut spans: Vec<(u64, u64)> = known
        .iter()
        .map(|&(start, len)| (u64::from(start), u64::from(start).saturating_add(len)))
        .collect();
    spans.sort_unstable();
    // Where spans begin, the furthest end so far.
    let mut furthest = 0;
    let reach: Vec<u64> = spans
        .iter()
        .map(|&(_, end)| {
            furthest = end.max(furthest);
            furthest
        })
        .collect();
    pages
        .iter()
        .copied()
        .filter(|page| {
            let low = page & 0xffff_ffff;
            let before = spans.partition_point(|&(start, _)| start < low + PAGE);
            let end = before.checked_sub(1).and_then(|i| reach.get(i));
            end.is_none_or(|&end| end <= low)
        })
        .collect()
}

/// Pages as ranges of addresses.
fn ranges(pages: &[u64]) -> Vec<String> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &page in pages {
        match runs.last_mut() {
            Some((_, end)) if *end == page => *end = page.wrapping_add(PAGE),
            _ => runs.push((page, page.wrapping_add(PAGE))),
        }
    }
    runs.iter()
        .take(MAX_RANGES)
        .map(|(start, end)| format!("{start:#x}-{end:#x}"))
        .collect()
}
