//! Every BPF map of the guest, and what is in it.
//!
//! Reads `map_idr` and `struct bpf_map` (include/linux/bpf.h) here; each family of map types has
//! a file of its own beside this one that begins with the structures it reads. A map that cannot
//! be read spoils only itself: its record keeps the header and says what went wrong.

mod arena;
mod array;
mod bloom;
mod cgroup_storage;
mod hash;
mod heap;
mod local_storage;
mod lpm_trie;
mod memory;
mod owners;
mod queue;
mod ringbuf;
mod stack_trace;
mod struct_ops;
mod targets;

use std::collections::HashMap;

use rayon::prelude::*;
use scx_postmortem_format::report::{
    FailureDumpMap, Flags, Hex, MapInfo, NamedId, RenderedValue, StorageOwner, map_type_name,
    reasons,
};

pub use self::heap::Heap;
use super::allocators::Allocation;
use super::btfs::{Btfs, LoadedBtf};
use crate::addr::Kva;
use crate::bytes::{to_u64, to_usize};
use crate::error::{Error, Result};
use crate::kernel::{Kernel, TypeId};
use crate::object::Object;
use crate::recover::Casts;
use crate::render::{Arena, Scope, bytes_value};
use crate::walk::{Limits, Remarks};

/// Programs looked at for the maps that they use.
const MAX_PROGS: usize = 65_536;
/// Maps that one program uses (`MAX_USED_MAPS` of the verifier).
const MAX_USED_MAPS: u64 = 64;
/// Bytes of keys and values that are read from all maps together, and from one at least: sizes
/// are the guest's word, and a lie would otherwise be answered with all the memory there is.
const MAX_BYTES: u64 = 1 << 28;
const MIN_BYTES: u64 = 1 << 18;
/// Largest value that is read (the shared format's limit).
const MAX_VALUE: u32 = 16 << 20;

/// `BPF_F_*` of include/uapi/linux/bpf.h; the enum has no name, so BTF cannot be asked for it.
const FLAGS: [(u32, &str); 20] = [
    (0, "NO_PREALLOC"),
    (1, "NO_COMMON_LRU"),
    (2, "NUMA_NODE"),
    (3, "RDONLY"),
    (4, "WRONLY"),
    (5, "STACK_BUILD_ID"),
    (6, "ZERO_SEED"),
    (7, "RDONLY_PROG"),
    (8, "WRONLY_PROG"),
    (9, "CLONE"),
    (10, "MMAPABLE"),
    (11, "PRESERVE_ELEMS"),
    (12, "INNER_MAP"),
    (13, "LINK"),
    (14, "PATH_FD"),
    (15, "VTYPE_BTF_OBJ_FD"),
    (16, "TOKEN_FD"),
    (17, "SEGV_ON_FAULT"),
    (18, "NO_USER_CONV"),
    (19, "RB_OVERWRITE"),
];

/// The section's two halves: the shared format's records and our own, all in the order of ids.
#[derive(Default)]
pub struct Maps {
    /// The contract's records, without those of the live tool's own framework.
    pub shared: Vec<FailureDumpMap>,
    /// Ours, of all maps.
    pub own: Vec<MapInfo>,
    /// What the arenas hold.
    pub heap: Heap,
}

/// What the programs tell about maps.
#[derive(Default)]
struct Users {
    /// By map: the programs that use it.
    progs: HashMap<Kva, Vec<NamedId>>,
    /// By map: the arena of a program that uses it.
    arenas: HashMap<Kva, Kva>,
    /// By arena: the BTF of a program that uses it.
    arena_btfs: HashMap<Kva, Kva>,
}

/// One map being read: its header, its types, and where its pointers lead.
struct Map<'k> {
    kernel: &'k Kernel,
    kva: Kva,
    object: Object<'k>,
    map_type: u32,
    flags: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    scope: Scope<'k>,
    /// Whether `scope` has the types that the map's ids mean.
    typed: bool,
    key_type: TypeId,
    value_type: TypeId,
    /// Entries that the report shows.
    limit: usize,
    /// Pages of an arena that it shows.
    page_limit: usize,
}

/// What a family's walker found.
struct Found {
    shared: FailureDumpMap,
    own: MapInfo,
    /// Words of values that lead to a slot of an allocator, with the owner of the value.
    links: Vec<(Allocation, StorageOwner)>,
}

impl Found {
    /// Notes why contents are missing or incomplete, in the words of the shared format where it
    /// has some. Later reasons join earlier ones.
    fn error(&mut self, what: impl Into<String>) {
        let what = what.into();
        match &mut self.shared.error {
            Some(error) => {
                error.push_str("; ");
                error.push_str(&what);
            }
            none => *none = Some(what),
        }
    }
}

/// Reads all maps.
pub fn read(
    kernel: &Kernel,
    btfs: &Btfs<'_>,
    casts: &Casts,
    limits: &Limits,
    remarks: &mut Remarks,
) -> Maps {
    let listed = (|| -> Result<_> {
        let idr = kernel.global("map_idr", "struct idr")?;
        let walk = kernel.idr(&idr, limits.maps)?;
        remarks.walk_end("maps", idr.address(), &walk.end);
        Ok(walk.items)
    })();
    let Some(listed) = remarks.ok("maps", listed) else {
        return Maps::default();
    };
    let users = users(kernel, remarks);
    let btf_of = |&(_, at): &(u64, Kva)| {
        let map = kernel.object("struct bpf_map", at).ok()?;
        map.member("btf").and_then(|btf| btf.ptr()).ok()
    };
    let needed: Vec<Kva> = listed
        .iter()
        .filter_map(btf_of)
        .chain(users.arena_btfs.values().copied())
        .filter(|at| !at.is_null())
        .collect();
    btfs.load_all(&needed);
    let arenas = arenas(kernel, &listed);
    let arena_of = |at: Kva| {
        let arena = users.arenas.get(&at).and_then(|a| arenas.get(a));
        // A map that no program uses: where there is one arena, it can only be that one.
        let only = || {
            (arenas.len() == 1)
                .then(|| arenas.values().next())
                .flatten()
        };
        arena.or_else(only).map(|&(_, arena)| arena)
    };
    let bytes = (MAX_BYTES / to_u64(listed.len()).max(1)).max(MIN_BYTES);
    let sections: Vec<_> = listed
        .par_iter()
        .filter_map(|&(_, at)| {
            Map::open(kernel, at, (btfs, casts), arena_of(at), limits, bytes).ok()
        })
        .filter_map(|(map, found)| heap::section(&map, found.own.id))
        .collect();
    let heap = Heap::new(sections, &arenas);
    let read: Vec<_> = listed
        .par_iter()
        .map(|&(id, at)| {
            let found = Map::open(kernel, at, (btfs, casts), arena_of(at), limits, bytes)
                .map(|(map, found)| one(map, found, id, &heap));
            (at, found)
        })
        .collect();
    let mut maps = Maps {
        heap,
        ..Maps::default()
    };
    for (at, found) in read {
        match found {
            Ok(mut found) => {
                if found.own.id == 0 {
                    remarks.anomaly("maps", Some(at), "a map on the list has id 0".into());
                }
                found.own.progs = users.progs.get(&at).cloned().unwrap_or_default();
                found.own.error.clone_from(&found.shared.error);
                if !is_framework(&found.shared.name) {
                    maps.shared.push(found.shared);
                }
                maps.heap.own(&found.links, found.own.id);
                maps.own.push(found.own);
            }
            Err(error) if error.is_absent() => remarks.missing("maps", &error),
            Err(error) => remarks.anomaly("maps", Some(at), error.to_string()),
        }
    }
    for (&at, (_, arena)) in &arenas {
        let btf = users.arena_btfs.get(&at).map(|&btf| btfs.get(btf));
        let recovered = users.arena_btfs.get(&at).and_then(|&btf| casts.of(btf));
        maps.heap.arena(kernel, arena, (btf, recovered), &maps.own);
    }
    maps.heap.arenas.sort_by_key(|arena| arena.map_id);
    maps
}

/// Maps that the live tool's own programs make (report format, section on the probe).
fn is_framework(name: &str) -> bool {
    name.starts_with("probe_bp.")
        || name.starts_with("fentry_p.")
        || [
            "probe_bp",
            "fentry_p",
            "func_meta_map",
            "probe_data",
            "probe_scratch",
            "ktstr_events",
        ]
        .contains(&name)
}

/// The id and the window of each arena, by map. One that cannot be read is missing here; its own record
/// says why.
fn arenas(kernel: &Kernel, listed: &[(u64, Kva)]) -> HashMap<Kva, (u32, Arena)> {
    listed
        .iter()
        .filter_map(|&(_, at)| {
            let map = kernel.object("struct bpf_map", at).ok()?;
            let map_type = map.member("map_type").and_then(|t| t.u32()).ok()?;
            (map_type == arena::TYPE).then_some(())?;
            let id = map.member("id").and_then(|id| id.u32()).ok()?;
            Some((at, (id, Arena::read(kernel, at).ok()?)))
        })
        .collect()
}

/// Which programs use which maps: `bpf_prog_aux.used_maps` and `.arena` of everything in
/// `prog_idr`.
fn users(kernel: &Kernel, remarks: &mut Remarks) -> Users {
    let mut users = Users::default();
    let progs = (|| -> Result<_> {
        let idr = kernel.global("prog_idr", "struct idr")?;
        kernel.idr(&idr, MAX_PROGS)
    })();
    let Some(progs) = remarks.ok("maps.progs", progs) else {
        return users;
    };
    for (_, at) in progs.items {
        let used = (|| -> Result<()> {
            let aux = kernel
                .object("struct bpf_prog", at)?
                .member("aux")?
                .deref()?;
            let prog = NamedId {
                id: aux.member("id")?.u32()?,
                name: aux.member("name")?.text()?,
            };
            let arena = match aux.member("arena") {
                Ok(arena) => arena.ptr()?,
                Err(e) if e.is_absent() => Kva::NULL,
                Err(e) => return Err(e),
            };
            if !arena.is_null() {
                let btf = aux.member("btf")?.ptr()?;
                users.arena_btfs.entry(arena).or_insert(btf);
            }
            let count = u64::from(aux.member("used_map_cnt")?.u32()?);
            let list = aux.member("used_maps")?.ptr()?;
            for i in 0..count.min(MAX_USED_MAPS) {
                let map = kernel.read_ptr(list.add(i * 8))?;
                users.progs.entry(map).or_default().push(prog.clone());
                if !arena.is_null() {
                    users.arenas.entry(map).or_insert(arena);
                }
            }
            Ok(())
        })();
        if let Err(error) = used {
            remarks.anomaly("maps.progs", Some(at), error.to_string());
        }
    }
    users
}

/// Reads what is in one map.
fn one(map: Map<'_>, mut found: Found, id: u64, heap: &Heap) -> Found {
    if u64::from(found.own.id) != id {
        found.error(format!(
            "bpf_map.id is {}, its place in map_idr {id}",
            found.own.id
        ));
    }
    if map.value_size > MAX_VALUE {
        found.error(format!(
            "values of {} bytes, which is more than the {MAX_VALUE} that are read",
            map.value_size
        ));
        return found;
    }
    let arena = map.scope.arena().map(|arena| arena.map);
    let slots = arena.and_then(|arena| heap.slots(arena));
    let map = Map {
        scope: map.scope.with_slots(slots),
        ..map
    };
    if let Err(error) = map.contents(&mut found) {
        let what = map.in_format_words(&error);
        found.error(what);
    }
    // Its absence needs no reason of its own: what it is made of is what contents are found by.
    found.own.memory_bytes = memory::bytes(&map, &found).ok().flatten();
    heap.payloads(&map, &mut found);
    found
}

/// The type's name in this kernel, else the one that we know.
fn type_name(kernel: &Kernel, map_type: u32) -> Option<String> {
    let guest = kernel.btf.find("enum bpf_map_type").ok().and_then(|ty| {
        // CGROUP_STORAGE and PERCPU_CGROUP_STORAGE have a second name, with _DEPRECATED.
        let mut names = kernel.btf.enumerators(ty);
        names.find(|&(name, value)| value == i64::from(map_type) && !name.ends_with("_DEPRECATED"))
    });
    match (map_type_name(map_type), guest) {
        (Some(known), _) => Some(known.to_owned()),
        (None, Some((name, _))) => Some(
            name.trim_start_matches("BPF_MAP_TYPE_")
                .to_ascii_lowercase(),
        ),
        (None, None) => None,
    }
}

impl<'k> Map<'k> {
    /// Reads a map's header.
    fn open(
        kernel: &'k Kernel,
        at: Kva,
        (btfs, casts): (&Btfs<'_>, &Casts),
        arena: Option<Arena>,
        limits: &Limits,
        bytes: u64,
    ) -> Result<(Self, Found)> {
        let object = kernel.object("struct bpf_map", at)?;
        let u32 = |path| object.member(path).and_then(|m| m.u32());
        let map_type = u32("map_type")?;
        let mut found = Found {
            shared: FailureDumpMap {
                name: object.member("name")?.text()?,
                map_kva: at.0,
                map_type,
                value_size: u32("value_size")?,
                max_entries: u32("max_entries")?,
                ..FailureDumpMap::default()
            },
            own: MapInfo {
                id: u32("id")?,
                kva: Hex(at.0),
                map_type,
                type_name: type_name(kernel, map_type),
                key_size: Some(u32("key_size")?),
                frozen: object.member("frozen").and_then(|f| f.bool())?,
                ..MapInfo::default()
            },
            links: Vec::new(),
        };
        let flags = u32("map_flags")?;
        found.own.name.clone_from(&found.shared.name);
        found.own.value_size = Some(found.shared.value_size);
        found.own.max_entries = Some(found.shared.max_entries);
        found.own.flags = Some(Flags {
            raw: Hex(u64::from(flags)),
            names: FLAGS
                .iter()
                .filter(|(bit, _)| flags >> bit & 1 == 1)
                .map(|(_, name)| (*name).to_owned())
                .collect(),
        });

        let btf = object.member("btf")?.ptr()?;
        let loaded = (!btf.is_null()).then(|| btfs.get(btf));
        let (types, typed) = match &loaded {
            // Ids of a BTF that cannot be read mean nothing in another.
            Some(Err(error)) => {
                found.error(format!("the map's BTF cannot be read: {error}"));
                (&kernel.btf, false)
            }
            Some(Ok(LoadedBtf { types, .. })) => (types, true),
            None => (&kernel.btf, true),
        };
        if let Some(Ok(btf)) = &loaded {
            found.own.btf_id = Some(btf.id);
        }
        let instances = match map_type {
            5 | 6 | 10 | 21 => to_u64(kernel.cpus().count()),
            _ => 1,
        };
        let each = u64::from(found.shared.value_size)
            .saturating_mul(instances)
            .saturating_add(u64::from(u32("key_size")?));
        let map = Map {
            kernel,
            kva: at,
            object,
            map_type,
            flags,
            key_size: u32("key_size")?,
            value_size: found.shared.value_size,
            max_entries: found.shared.max_entries,
            scope: Scope::new(kernel, std::sync::Arc::clone(types), arena)
                .with_casts(casts.of(btf)),
            typed,
            key_type: TypeId(u32("btf_key_type_id")?),
            value_type: TypeId(u32("btf_value_type_id")?),
            limit: limits.entries.min(to_usize(bytes / each.max(1)).max(1)),
            page_limit: limits.pages,
        };
        let name_of = |ty: TypeId| (typed && ty.0 != 0).then(|| types.describe(ty));
        found.own.key_type = name_of(map.key_type);
        found.own.value_type = name_of(map.value_type);
        Ok((map, found))
    }

    /// Reads what is in the map, by its type.
    fn contents(&self, found: &mut Found) -> Result<()> {
        match self.map_type {
            1 | 9 => hash::read(self, found),
            2 => array::read(self, found),
            3 | 4 | 8 | 12 | 14..=18 | 20 | 25 => targets::read(self, found),
            5 | 10 => hash::read_per_cpu(self, found),
            6 => array::read_per_cpu(self, found),
            7 => stack_trace::read(self, found),
            11 => lpm_trie::read(self, found),
            13 => hash::read_of_maps(self, found),
            19 | 21 => cgroup_storage::read(self, found),
            22 | 23 => queue::read(self, found),
            24 | 28 | 29 | 32 => local_storage::read(self, found),
            26 => struct_ops::read(self, found),
            27 | 31 => ringbuf::read(self, found),
            30 => bloom::read(self, found),
            arena::TYPE => arena::read(self, found),
            34 => array::read_instructions(self, found),
            // A resizable hash, of 7.2 and later.
            35 => hash::read_resizable(self, found),
            other => {
                found.error(reasons::map::unknown_type(other));
                Ok(())
            }
        }
    }

    /// The shared format has sentences of its own for some types.
    fn in_format_words(&self, error: &Error) -> String {
        use reasons::map as words;
        let sentence = match self.map_type {
            7 if error.is_absent() => words::STACK_TRACE_NO_OFFSETS,
            26 if error.is_absent() => words::STRUCT_OPS_NO_OFFSETS,
            27 | 31 if error.is_absent() => words::RINGBUF_NO_OFFSETS,
            arena::TYPE if error.is_absent() => words::ARENA_NO_OFFSETS,
            _ => return error.to_string(),
        };
        format!("{sentence} ({error})")
    }

    /// The map seen as the struct of its own type, which begins with its `struct bpf_map`.
    fn cast(&self, ty: &str) -> Result<Object<'k>> {
        self.kernel.object(ty, self.kva)
    }

    /// The rendered key, where the map has a type for it.
    fn key(&self, bytes: &[u8]) -> Option<RenderedValue> {
        (self.typed && self.key_type.0 != 0).then(|| self.scope.render(self.key_type, bytes))
    }

    /// The rendered value at `at`, where the map has a type for it.
    fn value(&self, bytes: &[u8], at: Kva) -> Option<RenderedValue> {
        (self.typed && self.value_type.0 != 0)
            .then(|| self.scope.render_at(self.value_type, bytes, at.0))
    }

    /// The rendered value, else its bytes.
    fn value_or_bytes(&self, bytes: &[u8], at: Kva) -> RenderedValue {
        self.value(bytes, at).unwrap_or_else(|| bytes_value(bytes))
    }

    /// Each possible CPU's value behind the per-CPU pointer `base`, by CPU number; `None` where
    /// there is no such CPU or its memory cannot be read.
    fn per_cpu_values(&self, base: Kva) -> Vec<Option<RenderedValue>> {
        (0..self.kernel.nr_cpus())
            .map(|cpu| {
                let at = self.kernel.per_cpu(base, cpu)?;
                let bytes = self
                    .kernel
                    .read_bytes(at, u64::from(self.value_size))
                    .ok()?;
                Some(self.value_or_bytes(&bytes, at))
            })
            .collect()
    }
}
