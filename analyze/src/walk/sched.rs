//! The schedulers: which there are, in which state.
//!
//! Reads `scx_root` (6.16 and later), `scx_sched_all` (7.1 and later), and, for a scheduler that
//! was thrown out but whose link still lives, the BPF struct_ops maps: `map_idr` →
//! `bpf_struct_ops_map.kvalue.data` → `sched_ext_ops.priv`. State that moved between globals and
//! `struct scx_sched` is asked for in both places.

use scx_postmortem_format::report::{Flags, Hex, SchedulerInfo, ScxSchedState};

use super::clock::{self, Clock};
use super::{Limits, Members, Remarks, required};
use crate::addr::Kva;
use crate::error::{Error, Result};
use crate::kernel::{Kernel, TypeId, WalkEnd};
use crate::object::Object;

/// More schedulers than cgroups that could own one.
const MAX_SCHEDS: usize = 64;
/// Deeper than sub-schedulers can be (`SCX_SUB_MAX_DEPTH` is 4).
const MAX_LEVEL: i32 = 64;
/// `SCX_OPS_NAME_LEN`.
const OPS_NAME_LEN: usize = 128;
/// `BPF_MAP_TYPE_STRUCT_OPS`.
const STRUCT_OPS: u32 = 26;

/// How a scheduler was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundVia {
    /// The pointer to the attached root scheduler.
    Root,
    /// The list of all schedulers.
    All,
    /// The struct_ops map of an ejected scheduler.
    StructOps,
}

impl FoundVia {
    const fn name(self) -> &'static str {
        match self {
            Self::Root => "scx_root",
            Self::All => "scx_sched_all",
            Self::StructOps => "struct_ops map",
        }
    }
}

/// One scheduler.
#[derive(Debug, Clone, Copy)]
pub struct Sched<'k> {
    /// Its `struct scx_sched`.
    pub object: Object<'k>,
    /// How it was found.
    pub via: FoundVia,
}

/// All schedulers, the root first.
#[derive(Debug, Clone, Default)]
pub struct Schedulers<'k> {
    /// In order: attached root, others on the list, ejected ones by map id.
    pub all: Vec<Sched<'k>>,
    /// Whether `scx_root` is set.
    pub attached: bool,
}

impl<'k> Schedulers<'k> {
    /// The one that the report is about: the attached root, else the newest ejected one.
    #[must_use]
    pub fn subject(&self) -> Option<&Sched<'k>> {
        if self.attached {
            self.all.first()
        } else {
            self.all.last()
        }
    }
}

/// Finds every scheduler.
pub fn find<'k>(kernel: &'k Kernel, limits: &Limits, remarks: &mut Remarks) -> Schedulers<'k> {
    let mut found = Schedulers::default();
    let root = kernel.symbol("scx_root").and_then(|at| kernel.read_ptr(at));
    match root.and_then(|at| Ok((at, kernel.object("struct scx_sched", at)?))) {
        Ok((at, object)) if !at.is_null() => {
            found.attached = true;
            found.all.push(Sched {
                object,
                via: FoundVia::Root,
            });
        }
        Ok(_) => {}
        Err(error) => remarks.missing("scheduler", &error),
    }
    // The list is of 7.1 and later; its absence on older kernels is not worth a remark.
    if let Ok(head) = kernel.symbol("scx_sched_all") {
        let walk = kernel.list(head, MAX_SCHEDS);
        remarks.walk_end("scx_sched_all", head, &walk.end);
        for node in walk.items {
            if let Some(object) =
                remarks.ok("scheduler", kernel.entry("struct scx_sched", "all", node))
            {
                push(&mut found, object, FoundVia::All);
            }
        }
    }
    if let Err(error) = ejected(kernel, limits, remarks, &mut found) {
        remarks.missing("scheduler.ejected", &error);
    }
    found
}

fn push<'k>(found: &mut Schedulers<'k>, object: Object<'k>, via: FoundVia) {
    if found.all.len() >= MAX_SCHEDS {
        return;
    }
    if found
        .all
        .iter()
        .all(|s| s.object.address() != object.address())
    {
        found.all.push(Sched { object, via });
    }
}

/// Schedulers that only a struct_ops map still leads to.
fn ejected<'k>(
    kernel: &'k Kernel,
    limits: &Limits,
    remarks: &mut Remarks,
    found: &mut Schedulers<'k>,
) -> Result<()> {
    let idr = kernel.global("map_idr", "struct idr")?;
    let maps = kernel.idr(&idr, limits.maps)?;
    remarks.walk_end("map_idr", idr.address(), &maps.end);
    for (_, at) in maps.items {
        let map = kernel.object("struct bpf_map", at)?;
        match map.member("map_type").and_then(|t| t.u32()) {
            Ok(STRUCT_OPS) => {}
            Ok(_) => continue,
            Err(error) => {
                remarks.anomaly("scheduler.ejected", Some(at), error.to_string());
                continue;
            }
        }
        match sched_of_map(kernel, at) {
            Ok(Some(object)) => push(found, object, FoundVia::StructOps),
            Ok(None) => {}
            Err(error) => {
                remarks.anomaly("scheduler.ejected", Some(at), error.to_string());
            }
        }
    }
    Ok(())
}

/// The name of a `struct bpf_struct_ops`: of the struct whose callbacks it is about.
pub(super) fn struct_ops_name(st_ops: &Object<'_>) -> Result<String> {
    let name = st_ops.member("name")?;
    match name.string(64) {
        Ok(name) => Ok(name.unwrap_or_default()),
        // `char name[]` in some kernels, `const char *` in others.
        Err(Error::WrongType { .. }) => name.text(),
        Err(error) => Err(error),
    }
}

/// The kernel's copy of the `sched_ext_ops` that a struct_ops map holds; `None` for other
/// struct_ops.
pub(super) fn ops_of_map<'k>(kernel: &'k Kernel, map: Kva) -> Result<Option<Object<'k>>> {
    // struct bpf_struct_ops_map begins with its struct bpf_map.
    let map = kernel.object("struct bpf_struct_ops_map", map)?;
    let st_ops = map
        .member("st_ops_desc")?
        .deref()?
        .member("st_ops")?
        .deref()?;
    let ty = match struct_ops_name(&st_ops)?.as_str() {
        "sched_ext_ops" => "struct sched_ext_ops",
        "sched_ext_ops_cid" => "struct sched_ext_ops_cid",
        _ => return Ok(None),
    };
    map.member("kvalue.data")?.cast(ty).map(Some)
}

/// The scheduler that a struct_ops map registered; `None` for other struct_ops, and for ops that
/// were never enabled.
fn sched_of_map<'k>(kernel: &'k Kernel, map: Kva) -> Result<Option<Object<'k>>> {
    let Some(ops) = ops_of_map(kernel, map)? else {
        return Ok(None);
    };
    let sched = ops.member("priv")?.ptr()?;
    if sched.is_null() {
        return Ok(None);
    }
    let object = kernel.object("struct scx_sched", sched)?;
    // A freed scx_sched is other memory by now: its own copy of the name must still match.
    let theirs = object.member("ops.name")?.text()?;
    let ours = ops.member("name")?.text()?;
    if theirs != ours {
        return Err(Error::Implausible {
            what: format!("the scx_sched at {sched} of struct_ops {ours:?}"),
            found: format!("the name {theirs:?}"),
            why: "both are copies of one ops; the scheduler's memory was reused",
        });
    }
    check_alive(&object)?;
    Ok(Some(object))
}

/// Refuses memory that a scheduler was freed from and that still has its name. `ops.priv` holds
/// a reference for as long as it is set.
fn check_alive(sched: &Object<'_>) -> Result<()> {
    let implausible = |what: &str, found: String, why| Error::Implausible {
        what: format!("{what} of the scx_sched at {}", sched.address()),
        found,
        why,
    };
    if sched.has("kobj.kref.refcount.refs") {
        let refs = sched.member("kobj.kref.refcount.refs")?.i32()?;
        if refs <= 0 {
            let why = "a scheduler that is referred to has references";
            return Err(implausible("the reference count", refs.to_string(), why));
        }
    }
    let kinds = sched.kernel().btf.find("enum scx_exit_kind")?;
    let record = sched.member("exit_info")?.deref()?;
    for kind in [sched.member("exit_kind")?, record.member("kind")?] {
        let kind = kind.i64()?;
        if sched.kernel().btf.enumerator_name(kinds, kind).is_none() {
            let why = "one of enum scx_exit_kind";
            return Err(implausible("the exit kind", kind.to_string(), why));
        }
    }
    Ok(())
}

/// A value that lives in `struct scx_sched` on newer kernels and in a global before. The global
/// is that of the attached scheduler, and says nothing about one that was ejected.
fn moved<'k>(
    sched: &Sched<'k>,
    member: &'static str,
    symbol: &str,
    ty: &str,
) -> Result<Object<'k>> {
    let found = sched.object.member(member);
    if !matches!(found, Err(Error::NoMember { .. })) {
        return found;
    }
    let absent = |why: String| Error::NoMember {
        strukt: "struct scx_sched".into(),
        member: format!("{member} ({why})"),
    };
    match sched.object.kernel().global(symbol, ty) {
        Err(Error::NoSymbol(_)) => Err(absent(format!("nor is there a symbol {symbol}"))),
        Ok(_) if sched.via == FoundVia::StructOps => Err(absent(format!(
            "and the symbol {symbol} belongs to no ejected scheduler"
        ))),
        global => global,
    }
}

/// Reads one scheduler: the contract's record, and everything that our own part of the report
/// says.
///
/// The first is an error when its exit kind, without which nothing can be said, or another member
/// that the format requires cannot be read.
pub fn read(
    sched: &Sched<'_>,
    clock: Option<&Clock>,
    remarks: &mut Remarks,
) -> (Result<ScxSchedState>, SchedulerInfo) {
    let object = &sched.object;
    let kernel = object.kernel();
    // Globals describe the scheduler that is attached, not one that is gone.
    let current = sched.via != FoundVia::StructOps;

    let aborting = moved(sched, "aborting", "scx_aborting", "bool").and_then(|a| a.bool());
    let bypass_depth =
        moved(sched, "bypass_depth", "scx_bypass_depth", "int").and_then(|d| d.i32());
    let exit_kind = object.member("exit_kind").and_then(|k| k.u32());
    let timeout = moved(
        sched,
        "watchdog_timeout",
        "scx_watchdog_timeout",
        "long unsigned int",
    );
    let broken = [
        required(aborting.clone()).err(),
        required(bypass_depth.clone()).err(),
        exit_kind.clone().err(),
    ];
    let optional = &mut Members::of("scx_sched_state", *object, remarks);
    let aborting = optional.ok("aborting", aborting);
    let bypass_depth = optional.ok("bypass_depth", bypass_depth);
    let exit_kind = optional.ok("exit_kind", exit_kind);
    let timeout = optional.ok("watchdog_timeout", timeout.and_then(|t| t.u64()));
    let state = match broken.into_iter().flatten().next() {
        Some(error) => Err(error),
        None => Ok(ScxSchedState {
            // The format requires these two. A kernel without them is written as false and 0,
            // with the remark that says so.
            aborting: aborting.unwrap_or(false),
            bypass_depth: bypass_depth.unwrap_or(0),
            exit_kind: exit_kind.unwrap_or(0),
            watchdog_timeout: timeout,
            source: current.then(|| "live".to_owned()),
            sched_kva: Some(object.address().0),
        }),
    };

    let optional = &mut Members::of("scheduler", *object, remarks);
    let timestamp = kernel
        .global("scx_watchdog_timestamp", "long unsigned int")
        .and_then(|t| t.u64());
    let timestamp = optional.ok("watchdog_timestamp", timestamp);
    // Before 7.1 it was a static variable inside scx_bypass().
    let bypassed_ms = object.member("bypass_timestamp").and_then(|since| {
        let now = u64::try_from(clock::monotonic_ns(kernel)?).unwrap_or(0);
        Ok(now.saturating_sub(since.u64()?) / 1_000_000)
    });
    let slice_dfl = moved(sched, "slice_dfl", "scx_slice_dfl", "u64").and_then(|s| s.u64());
    let switched_all = kernel
        .global("scx_switching_all", "bool")
        .and_then(|v| v.bool());
    let mut count = |member: &str, symbol: &str| {
        let value = kernel.global(symbol, "atomic_long_t");
        optional.ok(member, value.and_then(|v| v.i64()))
    };
    let nr_rejected = count("nr_rejected", "scx_nr_rejected");
    let enable_seq = count("enable_seq", "scx_enable_seq");
    let hotplug_seq = count("hotplug_seq", "scx_hotplug_seq");
    let info = SchedulerInfo {
        ops_name: optional
            .get("ops.name", |name| name.text())
            .map(|name| name.chars().take(OPS_NAME_LEN).collect()),
        sched_kva: Some(Hex(object.address().0)),
        found_via: sched.via.name().to_owned(),
        enable_state: current
            .then(|| optional.ok("enable_state", enable_state(kernel)))
            .flatten(),
        switched_all: optional
            .ok("switched_all", switched_all)
            .filter(|_| current),
        bypass_depth,
        bypassed_ms: optional
            .ok("bypass_timestamp", bypassed_ms)
            .filter(|_| current && bypass_depth.is_some_and(|depth| depth > 0)),
        aborting,
        exit_kind,
        exit_kind_name: exit_kind.and_then(|kind| exit_kind_name(kernel, kind)),
        watchdog_timeout_jiffies: timeout,
        watchdog_timeout_ms: timeout.zip(clock).map(|(t, c)| c.to_ms(t)),
        watchdog_timestamp_age_ms: timestamp
            .filter(|&t| t != 0 && current)
            .zip(clock)
            .map(|(t, c)| c.to_ms(c.since(t))),
        slice_dfl_ns: optional.ok("slice_dfl", slice_dfl),
        ops_flags: optional
            .u64("ops.flags")
            .map(|f| named_flags(kernel, "enum scx_ops_flags", "SCX_OPS_", f)),
        has_ops: optional
            .ok("has_ops", callbacks(object))
            .unwrap_or_default(),
        nr_rejected,
        enable_seq,
        hotplug_seq,
        level: optional.i32("level"),
        parent_kva: optional.ok("ancestors", parent(object)).flatten(),
        children: optional.get("children", children).unwrap_or_default(),
        cgroup_path: optional.get("cgrp_path", |p| p.string(4096)).flatten(),
        // Known once the struct_ops maps are read.
        struct_ops_map: None,
        callbacks: Vec::new(),
    };
    (state, info)
}

/// The kernel's name of an exit kind.
pub(super) fn exit_kind_name(kernel: &Kernel, kind: u32) -> Option<String> {
    let ty = kernel.btf.find("enum scx_exit_kind").ok()?;
    let name = kernel.btf.enumerator_name(ty, i64::from(kind))?;
    Some(name.to_owned())
}

/// The scheduler above (`scx_parent()`); `None` for the root, and in kernels that know no other.
fn parent(sched: &Object<'_>) -> Result<Option<Hex>> {
    let level = match sched.member("level") {
        Ok(level) => level.i32()?,
        Err(error) if error.is_absent() => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(above) = level.checked_sub(1).and_then(|n| u64::try_from(n).ok()) else {
        return Ok(None);
    };
    if level > MAX_LEVEL {
        return Err(Error::Implausible {
            what: "scx_sched.level".into(),
            found: level.to_string(),
            why: "sub-schedulers are few levels deep",
        });
    }
    let parent = sched.member("ancestors")?.index(above)?.ptr()?;
    Ok(Some(Hex(parent.0)))
}

/// The schedulers below, from the head of their list.
fn children(head: Object<'_>) -> Result<Vec<Hex>> {
    let kernel = head.kernel();
    let walk = kernel.list(head.address(), MAX_SCHEDS);
    if let WalkEnd::Broken(_, error) = walk.end {
        return Err(error);
    }
    let entries = walk.items.into_iter().map(|node| {
        let child = kernel.entry("struct scx_sched", "sibling", node)?;
        Ok(Hex(child.address().0))
    });
    entries.collect()
}

/// The state of sched_ext as a whole, as /sys/kernel/sched_ext/state names it.
///
/// # Errors
/// When this kernel does not have it or it cannot be read.
pub fn enable_state(kernel: &Kernel) -> Result<String> {
    let state = kernel.global("scx_enable_state_var", "atomic_t")?.i64()?;
    let ty = kernel.btf.find("enum scx_enable_state").ok();
    let name = ty.and_then(|ty| kernel.btf.enumerator_name(ty, state));
    Ok(name.map_or_else(
        || state.to_string(),
        |name| name.trim_start_matches("SCX_").to_ascii_lowercase(),
    ))
}

/// A flag word with this kernel's names for its bits.
pub(super) fn named_flags(kernel: &Kernel, enumeration: &str, prefix: &str, value: u64) -> Flags {
    let names = kernel
        .btf
        .find(enumeration)
        .map(|ty| decode_bits(kernel, ty, value, prefix))
        .unwrap_or_default();
    Flags {
        raw: Hex(value),
        names,
    }
}

/// The names of the single-bit enumerators that are set in `value`, ascending by bit. A number in
/// a range of bits, which has a `_MASK` and a `_SHIFT`, has one name or none, never those of its
/// bits.
fn decode_bits(kernel: &Kernel, ty: TypeId, value: u64, prefix: &str) -> Vec<String> {
    let named = || {
        kernel.btf.enumerators(ty).filter_map(|(name, bits)| {
            let short = name.strip_prefix(prefix)?;
            // Positions and widths of bit ranges are in the same enums.
            let number =
                short.ends_with("_SHIFT") || short.ends_with("_BITS") || short.contains("__");
            (!number).then_some((bits.cast_unsigned(), short))
        })
    };
    let shift_of = |name: &str| {
        let stem = name.strip_suffix("_MASK")?;
        let shift = format!("{prefix}{stem}_SHIFT");
        kernel.btf.enumerators(ty).find(|(name, _)| *name == shift)
    };
    let masks: Vec<u64> = named()
        .filter(|(_, name)| shift_of(name).is_some())
        .map(|(mask, _)| mask)
        .collect();
    let ranges = masks.iter().fold(0, |all, mask| all | mask);
    let mut names: Vec<(u64, &str)> = named()
        .filter(
            |&(bits, _)| match masks.iter().find(|&mask| bits & !mask == 0) {
                Some(mask) => bits != 0 && bits != *mask && value & mask == bits,
                None => bits.is_power_of_two() && value & bits & !ranges != 0,
            },
        )
        .collect();
    names.sort();
    names.dedup_by_key(|(bit, _)| *bit);
    names.into_iter().map(|(_, name)| name.to_owned()).collect()
}

/// The callbacks that the scheduler implements: non-null function pointers of its ops.
fn callbacks(sched: &Object<'_>) -> Result<Vec<String>> {
    let kernel = sched.kernel();
    // 7.2 and later: a union of two forms whose callbacks differ in name.
    let cid = match sched.member("is_cid_type") {
        Ok(cid) => cid.bool()?,
        Err(_) => false,
    };
    let ops = sched.member(if cid { "ops_cid" } else { "ops" })?;
    let bytes = ops.bytes()?;
    Ok(kernel
        .btf
        .members(ops.ty())
        .filter(|m| m.bits == 0 && kernel.btf.is_function_pointer(m.ty))
        .filter(|m| {
            let at = crate::bytes::to_usize(u64::from(m.bit_offset / 8));
            crate::bytes::le_u64(&bytes, at).is_some_and(|p| p != 0)
        })
        .map(|m| m.name.to_owned())
        .collect())
}
