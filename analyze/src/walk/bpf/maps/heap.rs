//! What arenas hold: allocators, the values that point to their slots, global variables.
//!
//! The scheduler's allocators are found by the types of the variables in its data sections
//! ([`allocators`]); whose a slot is, a map's value tells that points to it. Global variables of
//! an arena are in the BTF section `.addr_space.1`; libbpf puts them at the arena's beginning or,
//! since version 1.7, at its end.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use scx_postmortem_format::report::{
    AllocatorInfo, ArenaInfo, Hex, MapInfo, ScxStaticSnapshot, SdtAllocatorSnapshot, SlotOwner,
    hex_bytes, reasons,
};

use super::arena::Pages;
use super::{Found, Map};
use crate::addr::{Gpa, Kva};
use crate::bytes::{le_u64, low32, to_u64, to_usize};
use crate::kernel::btf::Kind;
use crate::kernel::{Btf, Kernel};
use crate::recover::Recovered;
use crate::render::{Arena, Reached, Scope, Slots};
use crate::walk::Remarks;
use crate::walk::bpf::allocators::{self, Allocation, Allocators, Section};
use crate::walk::bpf::btfs::LoadedBtf;

const PAGE: u64 = 4096;
/// Ranges of unrecognised pages that are listed.
const MAX_RANGES: usize = 32;
/// Types that are listed of what pointers lead to.
const MAX_TYPES: usize = 256;
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
    /// By arena: what typed pointers led to.
    reached: HashMap<Kva, Reached>,
}

/// A data section with allocators.
pub(super) struct Searched {
    map_id: u32,
    arena: Option<Kva>,
    declares: bool,
    allocators: Allocators,
    reached: Reached,
}

/// Whether a map is a data section: a `struct bpf_array` of that BTF type.
pub(super) fn is_section(map: &Map<'_>) -> bool {
    let ty = map.scope.btf().ty(map.value_type);
    map.typed && map.map_type == 2 && ty.is_some_and(|ty| ty.kind == Kind::Datasec)
}

/// Looks for allocators among the variables of a data section, of whose slots `bytes` are kept.
pub(super) fn section(map: &Map<'_>, id: u32, bytes: u64) -> Option<Searched> {
    let at = map.cast("struct bpf_array").ok()?.member("value").ok()?;
    let btf = map.scope.btf();
    let section = Section {
        scope: &map.scope,
        ty: map.value_type,
        at: at.address(),
    };
    Some(Searched {
        map_id: id,
        arena: map.scope.arena().map(|arena| arena.map),
        declares: btf.find("struct scx_allocator").is_ok(),
        allocators: allocators::read(&section, map.slot_limit, bytes),
        reached: map.scope.reached(),
    })
}

impl Heap {
    /// Puts together what the sections hold, which are in the order of their maps.
    pub(super) fn new(
        sections: Vec<Searched>,
        arenas: &HashMap<Kva, Arc<Pages>>,
        remarks: &mut Remarks,
    ) -> Self {
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
            for (name, error) in &found.skipped_statics {
                remarks.missing(&format!("scx_static_ranges.{name}"), error);
            }
            heap.statics.ranges.extend(found.statics.ranges);
            heap.statics.skipped = heap.statics.skipped.saturating_add(found.statics.skipped);
            let first = heap.snapshots.len();
            let arena_id = searched.arena.and_then(|at| arenas.get(&at)).map(|a| a.id);
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
            heap.reach(arena, searched.reached);
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

    /// Notes where pointers led to in an arena.
    pub(super) fn reach(&mut self, arena: Kva, reached: Reached) {
        let all = self.reached.entry(arena).or_default();
        all.pages.extend(reached.pages);
        all.types.extend(reached.types);
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
            let mut linked = HashSet::new();
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
                        .filter(|_| map.scope.charge(allocation.parts))
                        .map(|slot| slot.payload.clone());
                }
                // A value may lead to the slot and to its payload.
                if let Some(owner) = &owner
                    && linked.insert((allocation.allocator, allocation.entry))
                {
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
            let slot = self
                .snapshots
                .get(allocation.allocator)
                .and_then(|s| s.entries.get(allocation.entry));
            let info = self.infos.get_mut(allocation.allocator);
            if let Some((slot, info)) = slot.zip(info) {
                info.owners.push(SlotOwner {
                    idx: slot.idx,
                    genn: slot.genn,
                    map_id,
                    owner: owner.clone(),
                });
            }
        }
    }

    /// Puts the owners of each allocator's slots in the slots' order.
    pub(super) fn sort_owners(&mut self) {
        for info in &mut self.infos {
            info.owners
                .sort_by_key(|slot| (slot.idx, slot.map_id, slot.owner.kva));
            info.owners.dedup();
        }
    }

    /// The arena's own record.
    pub(super) fn arena(
        &mut self,
        kernel: &Kernel,
        listed: &Pages,
        (btf, casts): (
            Option<crate::error::Result<LoadedBtf>>,
            Option<Arc<Recovered>>,
        ),
        maps: &[MapInfo],
    ) {
        let arena = &listed.arena;
        let Some(map) = maps.iter().find(|map| map.kva.0 == arena.map.0) else {
            return;
        };
        let mut info = ArenaInfo {
            map_id: map.id,
            name: map.name.clone(),
            kva: map.kva,
            pages: listed.error.is_none().then(|| to_u64(listed.pages.len())),
            error: listed.error.clone(),
            ..ArenaInfo::default()
        };
        let mut known = self.known.remove(&arena.map).unwrap_or_default();
        let mut types = BTreeSet::new();
        match btf {
            Some(Ok(btf)) => {
                let slots = self.slots(arena.map);
                let scope = Scope::new(kernel, Arc::clone(&btf.types), Some(*arena));
                let scope = scope.with_slots(slots).with_casts(casts);
                globals(&scope, listed, &mut info);
                if let Some((at, size)) = info.globals_at.zip(globals_size(&btf)) {
                    known.push((low32(at.0), size));
                }
                self.reach(arena.map, scope.reached());
                types.extend(arena_arguments(&btf.types));
            }
            Some(Err(error)) => info.globals_error = Some(error.to_string()),
            None => info.globals_error = Some(NO_PROGRAM.to_owned()),
        }
        if let Some(reached) = self.reached.remove(&arena.map) {
            known.extend(reached.pages.into_iter().map(|page| (page, PAGE)));
            types.extend(reached.types);
        }
        types.retain(|ty| !READ.contains(&ty.as_str()));
        info.other_types = types.into_iter().take(MAX_TYPES).collect();
        let unrecognised = unrecognised(&listed.pages, &known);
        info.unrecognised_pages = to_u64(unrecognised.len());
        info.unrecognised = ranges(&unrecognised);
        self.arenas.push(info);
    }
}

/// Why an arena's global variables have no types.
const NO_PROGRAM: &str =
    "no program with this arena was found, whose BTF would tell whether it has any";

/// Types of which this file, the one on allocators and the renderer know what they mean.
const READ: [&str; 7] = [
    "struct scx_allocator",
    "struct scx_alloc_stack",
    "struct scx_bitmap",
    "struct scx_static",
    "struct sdt_chunk",
    "struct sdt_desc",
    "struct sdt_pool",
];

/// What the parameters of functions lead to that are declared to be arena pointers (`__arg_arena`
/// of libbpf, the declaration tag `arg:arena`).
fn arena_arguments(btf: &Btf) -> Vec<String> {
    let tags = btf.own_ids().filter_map(|id| btf.decl_tag(id));
    let found = tags
        .filter(|tag| tag.name == "arg:arena")
        .filter_map(|tag| {
            let function = btf.ty(tag.target)?;
            let index = to_usize(u64::from(tag.component?));
            let (_, parameter) = btf.parameters(function.target()).nth(index)?;
            let target = btf.ty(btf.peel(btf.pointee(parameter)?))?;
            matches!(target.kind, Kind::Struct | Kind::Union).then(|| btf.describe(target.id))
        });
    found.collect()
}

/// Size of the section of global variables.
fn globals_size(btf: &LoadedBtf) -> Option<u64> {
    btf.types.size_of(btf.types.find_section(SECTION)?)
}

/// Where clang puts variables of address space 1.
const SECTION: &str = ".addr_space.1";

/// Reads the arena's global variables.
fn globals(scope: &Scope<'_>, listed: &Pages, info: &mut ArenaInfo) {
    let (btf, arena) = (scope.btf(), &listed.arena);
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
        .wrapping_add(listed.span())
        .wrapping_sub(size.next_multiple_of(PAGE));
    let at = match (listed.has(bottom), listed.has(top)) {
        (Some(true), Some(false)) => Ok(bottom),
        (Some(false), Some(true)) => Ok(top),
        (Some(true), Some(true)) if bottom == top => Ok(bottom),
        (Some(true), Some(true)) => Err(
            "there are pages at both ends of the arena, and libbpf puts global variables at either",
        ),
        (Some(false), Some(false)) => {
            Err("no page at either end of the arena: they were never touched")
        }
        (None, _) | (_, None) => Err(
            "it is not known whether there are pages at both ends of the arena, and libbpf puts global variables at either",
        ),
    };
    let at = match at {
        Ok(at) => at,
        Err(why) => {
            info.globals_error = Some(why.into());
            return;
        }
    };
    info.globals_at = Some(Hex(at));
    let mut bytes = vec![0; to_usize(size)];
    // A page that was never touched reads as zero.
    for (offset, chunk) in (0u64..).step_by(4096).zip(bytes.chunks_mut(4096)) {
        match listed.has(at.wrapping_add(offset)) {
            Some(true) => {}
            Some(false) => continue,
            None => {
                info.globals_error = Some("not all of their pages are known".into());
                return;
            }
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
fn unrecognised(pages: &[(u64, Gpa)], known: &[(u32, u64)]) -> Vec<u64> {
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
        .map(|&(user, _)| user)
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
