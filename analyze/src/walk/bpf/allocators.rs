//! The allocators that schedulers keep in an arena, and what is allocated.
//!
//! Reads, by the types of the scheduler's own BTF, the scx library's `struct scx_allocator`
//! (`pool`, `root`), `struct sdt_pool`, `struct sdt_desc` (`allocated`, `nr_free`, `chunk`) and
//! `struct scx_static`, wherever a global variable has such a type. An allocator is a tree of
//! three levels of 512 slots. Above the lowest level every pointer is followed (a bit there means
//! "full below"); on the lowest the bitmap says which slots are live.
//!
//! Each slot holds its own place in the tree (`sdt_data.tid.idx`): in front of the payload in
//! older versions of the library, behind it in newer ones. The slots themselves tell which.

use std::collections::HashMap;

use scx_postmortem_format::report::{
    AllocatorInfo, Hex, ScxStaticRange, ScxStaticSnapshot, SdtAllocEntry, SdtAllocatorSnapshot,
    limits, reasons,
};

use crate::addr::Kva;
use crate::bytes::{array, le_u64, low32, to_u64, to_usize};
use crate::error::{Error, Result};
use crate::kernel::btf::Kind;
use crate::kernel::{Btf, Kernel, TypeId};
use crate::render::{Arena, Scope};

/// `SDT_TASK_LEVELS` and `SDT_TASK_ENTS_PER_CHUNK`.
const LEVELS: usize = 3;
const SLOTS: usize = 512;
const PAGE: u64 = 4096;
/// Largest slab: 512 elements of the largest size.
const MAX_SLAB: u64 = 512 * 4096;
/// Chunks that one walk enters: a level below the root is full at 512.
const MAX_CHUNKS: usize = 1 + SLOTS + SLOTS * SLOTS;
/// Alignment to which the library rounds an element up, at most.
const MAX_ALIGN: u64 = 64;
/// Sizes of `struct sdt_data` where the program's BTF does not have it.
const HEADER: u64 = 8;
const TRAILERS: [u64; 2] = [16, 8];

/// One data section of a scheduler's object: its variables, their bytes, and its arena.
pub struct Section<'a, 'k> {
    /// Types, kernel, arena.
    pub scope: &'a Scope<'k>,
    /// The section's BTF type.
    pub ty: TypeId,
    /// Where the section is in memory.
    pub at: Kva,
}

/// Where a slot's number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// In front of the payload, in a header of this many bytes.
    Header(u64),
    /// Behind it, in the last bytes of the element.
    Trailer(u64),
}

impl Layout {
    const fn overhead(self) -> u64 {
        match self {
            Self::Header(size) | Self::Trailer(size) => size,
        }
    }

    /// Offset of `sdt_data` in an element.
    const fn id_at(self, elem_size: u64) -> u64 {
        match self {
            Self::Header(_) => 0,
            Self::Trailer(size) => elem_size.saturating_sub(size),
        }
    }

    const fn payload_at(self) -> u64 {
        match self {
            Self::Header(size) => size,
            Self::Trailer(_) => 0,
        }
    }
}

/// A live slot.
struct Slot {
    /// Its place in the tree.
    position: u64,
    /// The pointer to it, as the chunk has it.
    pointer: u64,
    bytes: Vec<u8>,
}

/// An allocator before its layout is known.
struct Tree {
    name: String,
    at: Kva,
    elem_size: u64,
    slots: Vec<Slot>,
    truncated: bool,
    skipped: u32,
    error: Option<String>,
}

/// What was allocated at an arena address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// The allocator, as a place in the list of snapshots, and the slot in it.
    pub allocator: usize,
    /// The slot's place in that snapshot.
    pub entry: usize,
    /// Whether the payload has a type.
    pub typed: bool,
}

/// All allocators of one object.
#[derive(Default)]
pub struct Allocators {
    /// The contract's records.
    pub snapshots: Vec<SdtAllocatorSnapshot>,
    /// Ours, in the same order.
    pub infos: Vec<AllocatorInfo>,
    /// Bump allocators.
    pub statics: ScxStaticSnapshot,
    /// By the low 32 bits of the address of a slot, and of its payload.
    pub allocations: HashMap<u32, Allocation>,
    /// Bytes of the arena that are accounted for, by low 32 bits of the address.
    pub known: Vec<(u32, u64)>,
    /// Whether there is an instance of `struct scx_allocator`.
    pub found: bool,
}

/// Reads the allocators of one section. `limit` is the number of slots per allocator.
#[must_use]
pub fn read(section: &Section<'_, '_>, limit: usize) -> Allocators {
    let mut found = Allocators::default();
    let scope = section.scope;
    let btf = scope.btf();
    let mut trees = Vec::new();
    for variable in btf.section(section.ty) {
        let Some(ty) = btf.ty(btf.peel(variable.ty)) else {
            continue;
        };
        let at = section.at.add(u64::from(variable.offset));
        match (ty.kind, btf.name(&ty)) {
            (Kind::Struct, "scx_allocator") => {
                found.found = true;
                trees.push(tree(
                    scope,
                    variable.name,
                    ty.id,
                    at,
                    limit,
                    &mut found.known,
                ));
            }
            (Kind::Struct, "scx_static") => match static_range(scope, variable.name, ty.id, at) {
                Ok(Some(range)) => {
                    found.known.push((range.start_low32, range.capacity));
                    found.statics.ranges.push(range);
                }
                Ok(None) | Err(_) => found.statics.skipped += 1,
            },
            (Kind::Struct, "sdt_pool") => {
                found.known.extend(slab(scope, ty.id, at, ""));
            }
            (Kind::Ptr, _) => {
                let target = btf.ty(btf.peel(ty.target()));
                if target.is_some_and(|t| btf.name(&t) == "scx_alloc_stack") {
                    found
                        .known
                        .extend(spare_pages(scope, at).unwrap_or_default());
                }
            }
            _ => {}
        }
    }
    let layout = layout(btf, &trees);
    for tree in trees {
        finish(scope, tree, layout, &mut found);
    }
    found
}

/// A number or pointer in guest memory, typed by the scheduler's BTF.
fn member(kernel: &Kernel, btf: &Btf, ty: TypeId, at: Kva, path: &str) -> Result<u64> {
    kernel.read_u64(at.add(btf.field(ty, path)?.offset))
}

fn static_range(
    scope: &Scope<'_>,
    name: &str,
    ty: TypeId,
    at: Kva,
) -> Result<Option<ScxStaticRange>> {
    let read = |path| member(scope.kernel(), scope.btf(), ty, at, path);
    let capacity = read("max_alloc_bytes")?;
    let memory = read("memory")?;
    let size = read("off")?;
    let plausible =
        (1..limits::MAX_VM_RANGE_BYTES).contains(&capacity) && memory != 0 && size <= capacity;
    Ok(plausible.then(|| ScxStaticRange {
        instance_name: name.to_owned(),
        start_low32: low32(memory),
        size,
        capacity,
    }))
}

/// The pages that a `struct sdt_pool` cuts elements from, as the region that they are.
fn slab(scope: &Scope<'_>, ty: TypeId, at: Kva, prefix: &str) -> Option<(u32, u64)> {
    let read = |path: &str| {
        let path = format!("{prefix}{path}");
        member(scope.kernel(), scope.btf(), ty, at, &path).ok()
    };
    let slab = read("slab").filter(|&slab| slab != 0)?;
    let size = read("elem_size")?.checked_mul(read("max_elems")?)?;
    (size <= MAX_SLAB).then(|| (low32(slab), size))
}

/// The pages that a `struct scx_alloc_stack`, which the variable at `at` points to, holds in
/// reserve, and its own.
fn spare_pages(scope: &Scope<'_>, at: Kva) -> Result<Vec<(u32, u64)>> {
    let (kernel, btf) = (scope.kernel(), scope.btf());
    let ty = btf.find("struct scx_alloc_stack")?;
    let stack = btf.field(ty, "stack")?;
    let pointer = kernel.read_u64(at)?;
    let mut pages = Vec::new();
    if let Some(arena) = scope.arena().filter(|_| pointer != 0) {
        let mut bytes = vec![0; to_usize(btf.size_of(ty).unwrap_or(0).min(PAGE))];
        arena.fill(kernel, arena.low32(pointer), &mut bytes)?;
        pages.push((low32(pointer), PAGE));
        let slots = btf.array(stack.ty).map_or(0, |a| u64::from(a.len));
        let held = le_u64(&bytes, to_usize(btf.field(ty, "idx")?.offset)).unwrap_or(0);
        for slot in 0..held.min(slots) {
            let page = le_u64(&bytes, to_usize(stack.offset + slot * 8)).unwrap_or(0);
            pages.push((low32(page), PAGE));
        }
    }
    Ok(pages)
}

/// Walks one allocator's tree.
fn tree(
    scope: &Scope<'_>,
    name: &str,
    ty: TypeId,
    at: Kva,
    limit: usize,
    known: &mut Vec<(u32, u64)>,
) -> Tree {
    let mut tree = Tree {
        name: name.to_owned(),
        at,
        elem_size: 0,
        slots: Vec::new(),
        truncated: false,
        skipped: 0,
        error: None,
    };
    let walked = (|| -> Result<()> {
        let btf = scope.btf();
        let kernel = scope.kernel();
        tree.elem_size = member(kernel, btf, ty, at, "pool.elem_size")?;
        if tree.elem_size == 0 {
            tree.error = Some("it was never initialised (elem_size is 0)".into());
            return Ok(());
        }
        if !(limits::MIN_ELEM_SIZE..=limits::MAX_ELEM_SIZE).contains(&tree.elem_size) {
            return Err(Error::Implausible {
                what: format!("{name}.pool.elem_size"),
                found: tree.elem_size.to_string(),
                why: "16 to 4096 bytes",
            });
        }
        known.extend(slab(scope, ty, at, "pool."));
        let arena = scope
            .arena()
            .ok_or_else(|| Error::Null(format!("the arena of {name}")))?;
        let desc = btf.find("struct sdt_desc")?;
        let root = member(kernel, btf, ty, at, "root")?;
        let mut walk = Walk {
            kernel,
            arena,
            allocated: btf.field(desc, "allocated")?.offset,
            nr_free: btf.field(desc, "nr_free")?.offset,
            chunk: btf.field(desc, "chunk")?.offset,
            desc_size: btf.size_of(desc).unwrap_or(0),
            limit,
            chunks: 0,
            known,
        };
        if root != 0 {
            walk.descend(root, 0, 0, &mut tree);
        }
        Ok(())
    })();
    if let Err(error) = walked {
        tree.error = Some(error.to_string());
    }
    tree
}

struct Walk<'a> {
    kernel: &'a Kernel,
    arena: &'a Arena,
    allocated: u64,
    nr_free: u64,
    chunk: u64,
    desc_size: u64,
    limit: usize,
    chunks: usize,
    known: &'a mut Vec<(u32, u64)>,
}

impl Walk<'_> {
    fn bytes(&self, pointer: u64, size: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; to_usize(size)];
        let at = self.arena.low32(pointer);
        self.arena.fill(self.kernel, at, &mut bytes).ok()?;
        Some(bytes)
    }

    /// Visits the node whose `struct sdt_desc` is at `pointer`; `position` is that of its first
    /// slot, in units of this level.
    fn descend(&mut self, pointer: u64, level: usize, position: u64, tree: &mut Tree) {
        self.chunks += 1;
        let node = self.bytes(pointer, self.desc_size).and_then(|desc| {
            let nr_free = le_u64(&desc, to_usize(self.nr_free))?;
            let chunk = le_u64(&desc, to_usize(self.chunk)).filter(|&chunk| chunk != 0)?;
            (nr_free <= to_u64(SLOTS) && self.chunks <= MAX_CHUNKS).then_some(())?;
            Some((desc, chunk, self.bytes(chunk, to_u64(SLOTS) * 8)?))
        });
        let Some((desc, chunk, pointers)) = node else {
            tree.skipped += 1;
            return;
        };
        self.known.push((low32(pointer), self.desc_size));
        self.known.push((low32(chunk), to_u64(SLOTS) * 8));
        for slot in 0..SLOTS {
            if tree.truncated {
                return;
            }
            let child = le_u64(&pointers, slot * 8).unwrap_or(0);
            if child == 0 {
                continue;
            }
            let position = position * to_u64(SLOTS) + to_u64(slot);
            if level + 1 < LEVELS {
                self.descend(child, level + 1, position, tree);
                continue;
            }
            let word = le_u64(&desc, to_usize(self.allocated) + slot / 64 * 8).unwrap_or(0);
            let live = word >> (slot % 64) & 1 == 1;
            // A freed slot keeps its memory.
            self.known.push((low32(child), tree.elem_size));
            if !live {
                continue;
            }
            if tree.slots.len() >= self.limit {
                tree.truncated = true;
                return;
            }
            match self.bytes(child, tree.elem_size) {
                Some(bytes) => tree.slots.push(Slot {
                    position,
                    pointer: child,
                    bytes,
                }),
                None => tree.skipped += 1,
            }
        }
    }
}

/// Where the slots of this object's allocators keep their number: the one place where every
/// slot's number is its place in the tree. Slot 0 alone proves nothing: a zero is anywhere.
fn layout(btf: &Btf, trees: &[Tree]) -> Layout {
    let declared = btf
        .find("struct sdt_data")
        .ok()
        .and_then(|ty| Some((btf.size_of(ty)?, btf.field(ty, "payload").is_ok())));
    let mut candidates = match declared {
        Some((size, true)) => vec![Layout::Header(size)],
        Some((size, false)) => vec![Layout::Trailer(size)],
        None => Vec::new(),
    };
    candidates.extend(TRAILERS.map(Layout::Trailer));
    candidates.push(Layout::Header(HEADER));
    let matches = |layout: Layout| {
        trees
            .iter()
            .flat_map(|tree| tree.slots.iter().map(move |slot| (tree, slot)))
            .filter(|(tree, slot)| slot_id(slot, layout, tree.elem_size).0 == slot.position)
            .count()
    };
    // The first of the best: candidates are in order of likelihood.
    let mut best = (0, Layout::Header(HEADER));
    for candidate in candidates.into_iter().rev() {
        let count = matches(candidate);
        if count >= best.0 {
            best = (count, candidate);
        }
    }
    best.1
}

/// The slot's own number and generation.
fn slot_id(slot: &Slot, layout: Layout, elem_size: u64) -> (u64, i32) {
    let at = to_usize(layout.id_at(elem_size));
    let word = |at| array(&slot.bytes, at).map_or(0, i32::from_le_bytes);
    (
        u64::from(word(at).cast_unsigned()),
        word(at.saturating_add(4)),
    )
}

/// Types the payloads and adds the allocator to the result.
fn finish(scope: &Scope<'_>, tree: Tree, layout: Layout, found: &mut Allocators) {
    let btf = scope.btf();
    let payload_size = tree.elem_size.saturating_sub(layout.overhead());
    let choice = payload_type(btf, &tree.name, payload_size, layout);
    let (target, rule, reason) = match choice {
        Ok((ty, rule)) => (Some(ty), Some(rule), String::new()),
        Err(reason) => (None, None, reason),
    };
    let allocator = found.snapshots.len();
    let mut entries = Vec::with_capacity(tree.slots.len());
    let mut misplaced = 0u64;
    for (entry, slot) in tree.slots.iter().enumerate() {
        let (own, genn) = slot_id(slot, layout, tree.elem_size);
        misplaced += u64::from(own != slot.position);
        let payload_at = to_usize(layout.payload_at());
        let payload = slot.bytes.get(payload_at..).unwrap_or_default();
        let payload = payload.get(..to_usize(payload_size)).unwrap_or(payload);
        let value = match target {
            Some(ty) => {
                let size = btf.size_of(ty).map_or(payload.len(), to_usize);
                let at = scope
                    .arena()
                    .map_or(slot.pointer, |arena| arena.low32(slot.pointer).0)
                    .wrapping_add(layout.payload_at());
                scope.render_at(ty, payload.get(..size).unwrap_or(payload), at)
            }
            None => crate::render::bytes_value(payload),
        };
        let allocation = Allocation {
            allocator,
            entry,
            typed: target.is_some(),
        };
        let start = low32(slot.pointer);
        for at in [start, start.wrapping_add(low32(layout.payload_at()))] {
            found.allocations.insert(at, allocation.clone());
        }
        entries.push(SdtAllocEntry {
            idx: i32::try_from(slot.position).unwrap_or(i32::MAX),
            genn,
            user_addr: u64::from(start),
            payload: value,
        });
    }
    found.infos.push(AllocatorInfo {
        name: tree.name.clone(),
        kva: Hex(tree.at.0),
        elem_size: tree.elem_size,
        live: to_u64(entries.len()),
        payload_type: target.map(|ty| btf.describe(ty)),
        payload_rule: rule.map(str::to_owned),
        layout: (!entries.is_empty()).then(|| match layout {
            Layout::Header(size) => format!("number in a header of {size} bytes"),
            Layout::Trailer(size) => format!("number in the last {size} bytes"),
        }),
        misplaced,
        error: tree.error,
        ..AllocatorInfo::default()
    });
    found.snapshots.push(SdtAllocatorSnapshot {
        allocator_name: tree.name,
        entries,
        truncated: tree.truncated,
        skipped_subtrees: tree.skipped,
        elem_size: tree.elem_size,
        target_type_id: target.map_or(0, |ty| ty.0),
        payload_type_reason: reason,
    });
}

/// The payload's type, with the rule that found it; else the shared format's reason why not.
fn payload_type(
    btf: &Btf,
    allocator: &str,
    payload_size: u64,
    layout: Layout,
) -> std::result::Result<(TypeId, &'static str), String> {
    if payload_size == 0 {
        return Err(reasons::PAYLOAD_SIZE_ZERO.to_owned());
    }
    // With the number behind the payload the element is rounded up to the payload's alignment.
    let fits = |ty: TypeId| {
        btf.size_of(ty).is_some_and(|size| match layout {
            Layout::Header(_) => size == payload_size,
            Layout::Trailer(_) => size <= payload_size && payload_size - size < MAX_ALIGN,
        })
    };
    let stem = allocator.trim_end_matches("_allocator");
    let short = stem.trim_start_matches("scx_");
    let find = |name: &str| {
        let ty = btf
            .find(&format!("struct {name}"))
            .or_else(|_| btf.find(name));
        ty.ok().map(|ty| btf.peel(ty))
    };
    let named = |name: &str| find(name).filter(|&ty| fits(ty));
    for name in [stem, short] {
        if let Some(ty) = named(name) {
            return Ok((ty, "named after the allocator"));
        }
    }
    // A mask is declared for the largest machine and allocated for this one.
    if let Some(ty) = find(stem).filter(|&ty| btf.size_of(ty).is_some_and(|s| s > payload_size)) {
        return Ok((
            ty,
            "named after the allocator, of which a slot has the beginning",
        ));
    }
    if short == "task"
        && let Some(ty) = named("task_ctx")
    {
        return Ok((ty, "the type called task_ctx"));
    }
    let candidates: Vec<(TypeId, &str)> = btf
        .own_ids()
        .filter_map(|id| {
            let ty = btf.ty(id).filter(|ty| ty.kind == Kind::Struct)?;
            let name = btf.name(&ty);
            (!name.is_empty() && fits(id)).then_some((id, name))
        })
        .collect();
    let single = |accept: &dyn Fn(&str) -> bool| {
        let mut hits = candidates.iter().filter(|(_, name)| accept(name));
        match (hits.next(), hits.next()) {
            (Some(&(ty, _)), None) => Some(ty),
            _ => None,
        }
    };
    type Rule<'r> = (&'r dyn Fn(&str) -> bool, &'static str);
    let rules: [Rule<'_>; 5] = [
        (&|name| name == "task_ctx", "the type called task_ctx"),
        (
            &|name| name.ends_with("_arena_ctx"),
            "the one type ending in _arena_ctx",
        ),
        (
            &|name| name.ends_with("_task_ctx"),
            "the one type ending in _task_ctx",
        ),
        (
            &|name| name.split('_').any(|word| word == short),
            "the one type with the allocator's name in its own",
        ),
        (
            &|name| name.ends_with("_ctx"),
            "the one type ending in _ctx",
        ),
    ];
    // One candidate of exactly the size is it; where only a range is known, a name must agree.
    if let (Layout::Header(_), [(ty, _)]) = (layout, candidates.as_slice()) {
        return Ok((*ty, "the one type of this size"));
    }
    for (accept, rule) in rules {
        if let Some(ty) = single(accept) {
            return Ok((ty, rule));
        }
    }
    Err(match candidates.len() {
        0 => reasons::payload_no_candidate(payload_size),
        n => reasons::payload_ambiguous(n),
    })
}
