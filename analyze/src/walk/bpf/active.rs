//! Which BPF objects make up the scheduler.
//!
//! Reads `struct bpf_struct_ops_map` (kernel/bpf/bpf_struct_ops.c): its copy of the ops points
//! to the `scx_sched` that it registered (`ops.priv`, 6.16 and later), its links to the programs.
//! So two loaded copies of one scheduler are told apart. Where that cannot be read, the shared
//! format's own method: the first struct_ops program that uses a section map.

use std::collections::{BTreeMap, HashMap};

use scx_postmortem_format::report::{ActiveInfo, Callback, Hex, LinkInfo, MapRef, SchedulerInfo};

use super::progs::{Program, Programs, short};
use super::{MapHead, bounded, pointers, section_object};
use crate::addr::Kva;
use crate::bytes::{le_u64, to_usize};
use crate::error::Result;
use crate::kernel::Kernel;
use crate::object::Object;
use crate::walk::Remarks;
use crate::walk::sched::{FoundVia, Schedulers, ops_of_map};

/// `BPF_MAP_TYPE_STRUCT_OPS`.
const STRUCT_OPS: u32 = 26;
/// `BPF_STRUCT_OPS_MAX_NR_MEMBERS` is 64.
const MAX_CALLBACKS: usize = 1024;

/// A struct_ops map.
#[derive(Debug, Clone)]
pub struct StructOpsMap<'k> {
    /// Its names.
    pub reference: MapRef,
    /// The kernel's copy of the `sched_ext_ops` in it; `None` for other struct_ops.
    pub ops: Option<Object<'k>>,
    /// The `scx_sched` that it registered, null before and in other struct_ops.
    pub sched: Kva,
    /// Its programs, by the `struct bpf_prog`, in the order of the struct's members.
    pub programs: Vec<Kva>,
}

/// Reads every struct_ops map of `maps`, by id.
pub fn struct_ops_maps<'k>(
    kernel: &'k Kernel,
    maps: &[MapHead],
    remarks: &mut Remarks,
) -> Vec<StructOpsMap<'k>> {
    let mut found = Vec::new();
    for map in maps.iter().filter(|map| map.map_type == STRUCT_OPS) {
        let section = "active.struct_ops_map";
        let ops = ops_of_map(kernel, map.at);
        let ops = remarks.ok(section, ops).flatten();
        let sched = ops.as_ref().map(|ops| ops.member("priv")?.ptr());
        let sched = sched.and_then(|sched| remarks.ok(section, sched));
        let programs = programs_of(kernel, map.at, remarks);
        found.push(StructOpsMap {
            reference: map.reference.clone(),
            ops,
            sched: sched.unwrap_or(Kva::NULL),
            programs: remarks.ok(section, programs).unwrap_or_default(),
        });
    }
    found
}

/// The programs of a struct_ops map: those of its links, one for each callback that is set.
fn programs_of(kernel: &Kernel, map: Kva, remarks: &mut Remarks) -> Result<Vec<Kva>> {
    let map = kernel.object("struct bpf_struct_ops_map", map)?;
    let count = map.member("funcs_cnt")?.u32()?;
    let count = bounded(count, MAX_CALLBACKS, "active.callbacks", remarks);
    let links = map.member("links")?.ptr()?;
    let mut programs = Vec::new();
    for at in pointers(kernel, links, count)? {
        if at.is_null() {
            continue;
        }
        let link = kernel.object("struct bpf_link", at)?;
        let program = link.member("prog").and_then(|prog| prog.ptr());
        programs.extend(remarks.ok("active.callbacks", program));
    }
    programs.retain(|at| !at.is_null());
    Ok(programs)
}

/// What of a map's programs says which callback each implements.
fn callbacks(map: &StructOpsMap<'_>, programs: &Programs<'_>) -> Vec<Callback> {
    let known = map.programs.iter().filter_map(|&at| programs.at(at));
    known.map(callback).collect()
}

/// The callback that a program implements.
#[must_use]
pub fn callback(program: &Program<'_>) -> Callback {
    let hook = program.info.hook.as_ref();
    Callback {
        member: hook.and_then(|h| h.name.clone()).unwrap_or_default(),
        prog: program.reference(),
        source: program.info.source.as_ref().map(short),
    }
}

/// What `active` found.
#[derive(Debug, Clone, Default)]
pub struct Active {
    /// Our own account of it.
    pub info: Option<ActiveInfo>,
    /// The contract's object name.
    pub object_name: Option<String>,
    /// The contract's map addresses.
    pub map_kvas: Vec<u64>,
}

/// Finds the BPF objects of the scheduler that the report is about.
pub fn find(
    scheds: &Schedulers<'_>,
    maps: &[MapHead],
    struct_ops: &[StructOpsMap<'_>],
    programs: &Programs<'_>,
    links: &[LinkInfo],
    remarks: &mut Remarks,
) -> Active {
    let subject = scheds.subject();
    let registered = subject.and_then(|subject| {
        let by_priv = struct_ops
            .iter()
            .find(|map| map.ops.is_some() && map.sched == subject.object.address());
        if by_priv.is_some() {
            return by_priv.map(|map| (map, "ops.priv"));
        }
        // The struct_ops code that the kernel calls into is each map's own.
        let theirs = callback_pointers(&subject.object.member("ops").ok()?);
        let theirs = remarks.ok("active", theirs).filter(|p| !p.is_empty())?;
        struct_ops
            .iter()
            .find(|map| {
                let ours = map.ops.as_ref().map(callback_pointers);
                ours.is_some_and(|ours| ours.as_ref() == Ok(&theirs))
            })
            .map(|map| (map, "ops callbacks"))
    });
    let mut info = ActiveInfo {
        attached: subject.is_some_and(|s| s.via != FoundVia::StructOps),
        sched_kva: subject.map(|s| Hex(s.object.address().0)),
        ops_name: subject.and_then(|s| s.object.member("ops.name").ok()?.text().ok()),
        ..ActiveInfo::default()
    };
    let its_programs: Vec<&Program<'_>> = match registered {
        Some((map, how)) => {
            how.clone_into(&mut info.found_by);
            info.struct_ops_map = Some(map.reference.clone());
            info.callbacks = callbacks(map, programs);
            info.link_ids = links
                .iter()
                .filter(|link| {
                    link.map
                        .as_ref()
                        .is_some_and(|m| m.kva == map.reference.kva)
                })
                .map(|link| link.id)
                .collect();
            map.programs
                .iter()
                .filter_map(|&at| programs.at(at))
                .collect()
        }
        None => match first_program(programs, maps) {
            Some(program) => {
                "first struct_ops program".clone_into(&mut info.found_by);
                vec![program]
            }
            None => return by_map_name(struct_ops, maps, info, remarks),
        },
    };
    let mut used: BTreeMap<(Option<u32>, Hex), MapRef> = BTreeMap::new();
    for map in its_programs.iter().flat_map(|program| &program.info.maps) {
        used.insert((map.id, map.kva), map.clone());
    }
    info.maps = used.into_values().collect();
    info.object_name = object_of(&its_programs, maps);
    Active {
        object_name: info.object_name.clone(),
        // Without a name they would mean nothing to a reader.
        map_kvas: match info.object_name {
            Some(_) => info.maps.iter().map(|map| map.kva.0).collect(),
            None => Vec::new(),
        },
        info: Some(info),
    }
}

/// The pointers to callbacks in an ops struct, by member; empty when none is set.
fn callback_pointers(ops: &Object<'_>) -> Result<Vec<(String, u64)>> {
    let btf = &ops.kernel().btf;
    let bytes = ops.bytes()?;
    Ok(btf
        .members(ops.ty())
        .filter(|m| m.bits == 0 && btf.is_function_pointer(m.ty))
        .filter_map(|m| {
            let at = to_usize(u64::from(m.bit_offset / 8));
            let pointer = le_u64(&bytes, at).filter(|&p| p != 0)?;
            Some((m.name.to_owned(), pointer))
        })
        .collect())
}

/// The object name of programs: of the first section map that one of them uses.
fn object_of(programs: &[&Program<'_>], maps: &[MapHead]) -> Option<String> {
    let sections = programs.iter().flat_map(|program| &program.info.maps);
    let object = sections
        .filter_map(|map| section_object(&map.name))
        .find(|object| {
            let mut names = maps.iter().map(|map| map.reference.name.as_str());
            names.any(|name| section_object(name) == Some(object))
        })?;
    Some(object.to_owned())
}

/// The contract's method: the first struct_ops program that uses a section map, of those that
/// are made for sched_ext.
fn first_program<'a, 'k>(programs: &'a Programs<'k>, maps: &[MapHead]) -> Option<&'a Program<'k>> {
    programs.all.iter().find(|program| {
        let hook = program.info.hook.as_ref();
        let other = hook
            .and_then(|hook| hook.ops.as_deref())
            .is_some_and(|ops| !ops.starts_with("sched_ext_ops"));
        program.is_struct_ops() && !other && object_of(&[program], maps).is_some()
    })
}

/// The contract's fallback: a struct_ops map that is named like an object with sections, each of
/// which exists once.
fn by_map_name(
    struct_ops: &[StructOpsMap<'_>],
    maps: &[MapHead],
    info: ActiveInfo,
    remarks: &mut Remarks,
) -> Active {
    let named = struct_ops.iter().find_map(|map| {
        let object = map.reference.name.split('.').next()?;
        let mut sections: Vec<&str> = maps
            .iter()
            .map(|map| map.reference.name.as_str())
            .filter(|name| section_object(name) == Some(object))
            .collect();
        let all = sections.len();
        sections.sort_unstable();
        sections.dedup();
        (all > 0 && sections.len() == all).then(|| (map, object.to_owned()))
    });
    let Some((map, object)) = named else {
        // What the kernel itself says of the scheduler stands.
        let Some(at) = info.sched_kva else {
            return Active::default();
        };
        if info.attached {
            let what = "it is attached, and no struct_ops map or program of it was found";
            remarks.anomaly("active", Some(Kva(at.0)), what.into());
        }
        return Active {
            info: Some(info),
            ..Active::default()
        };
    };
    Active {
        info: Some(ActiveInfo {
            found_by: "struct_ops map name".to_owned(),
            object_name: Some(object.clone()),
            struct_ops_map: Some(map.reference.clone()),
            ..info
        }),
        object_name: Some(object),
        map_kvas: Vec::new(),
    }
}

/// Adds to a scheduler the map that registered it and the programs behind its callbacks.
pub fn complete(
    scheduler: &mut SchedulerInfo,
    struct_ops: &[StructOpsMap<'_>],
    programs: &Programs<'_>,
) {
    let map = struct_ops.iter().find(|map| {
        map.ops.is_some() && !map.sched.is_null() && scheduler.sched_kva == Some(Hex(map.sched.0))
    });
    if let Some(map) = map {
        scheduler.struct_ops_map = Some(map.reference.clone());
        scheduler.callbacks = callbacks(map, programs);
    }
}

/// Names the struct_ops map of programs whose kernel does not say it (before 7.0), where exactly
/// one has them.
pub fn name_maps(programs: &mut Programs<'_>, struct_ops: &[StructOpsMap<'_>]) {
    let mut owners: HashMap<Kva, Option<&MapRef>> = HashMap::new();
    for map in struct_ops {
        for &program in &map.programs {
            let owner = owners.entry(program).or_insert(Some(&map.reference));
            *owner = owner.filter(|owner| **owner == map.reference);
        }
    }
    for program in &mut programs.all {
        if let Some(Some(owner)) = owners.get(&program.object.address())
            && let Some(hook) = &mut program.info.hook
        {
            hook.map.get_or_insert_with(|| (*owner).clone());
        }
    }
}
