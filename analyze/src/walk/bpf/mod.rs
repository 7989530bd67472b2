//! BPF: maps and what is in them, arenas and their allocators, programs, links, and which of them make up the scheduler.
//!
//! Reads `prog_idr`, `link_idr` and `map_idr` (kernel/bpf/syscall.c) and what hangs on them.

pub mod active;
pub mod allocators;
pub mod btfs;
pub mod links;
pub mod maps;
pub mod probe;
pub mod progs;

use scx_postmortem_format::report::{Frame, Hex, LinkInfo, MapRef};

use self::active::{Active, StructOpsMap};
use self::btfs::Btfs;
use self::probe::Probe;
use self::progs::Programs;
use super::sched::Schedulers;
use super::{Limits, Remarks};
use crate::addr::Kva;
use crate::bytes::{le_u64, to_u64, to_usize};
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::object::Object;

/// Deepest path that is believed.
const MAX_PATH_DEPTH: usize = 256;
/// `NAME_MAX` and more.
const MAX_NAME: usize = 512;

/// The BPF objects of the guest.
pub struct Objects<'k> {
    /// Programs.
    pub programs: Programs<'k>,
    /// Links.
    pub links: Vec<LinkInfo>,
    /// The maps that registered schedulers and other struct_ops.
    pub struct_ops: Vec<StructOpsMap<'k>>,
    /// The scheduler's own.
    pub active: Active,
    /// What the live tool's probe left.
    pub probe: Probe,
}

impl<'k> Objects<'k> {
    /// Reads them.
    pub fn read(
        kernel: &'k Kernel,
        btfs: &Btfs<'k>,
        scheds: &Schedulers<'k>,
        uptime_ns: Option<u64>,
        limits: &Limits,
        remarks: &mut Remarks,
    ) -> Self {
        let mut programs = Programs::read(kernel, btfs, uptime_ns, limits, remarks);
        let maps = map_heads(kernel, limits, remarks);
        let struct_ops = active::struct_ops_maps(kernel, &maps, remarks);
        active::name_maps(&mut programs, &struct_ops);
        let links = links::read(kernel, &programs, limits, remarks);
        let active = active::find(scheds, &maps, &struct_ops, &programs, &links, remarks);
        let probe = probe::read(kernel, &maps, btfs, remarks);
        Self {
            programs,
            links,
            struct_ops,
            active,
            probe,
        }
    }

    /// Names the source of those frames of a stack that are in BPF programs. All addresses are
    /// return addresses.
    pub fn name_sources(&self, btfs: &Btfs<'_>, frames: &mut [Frame]) {
        for frame in frames {
            frame.source = self.programs.frame_source(btfs, Kva(frame.addr.0));
        }
    }
}

/// One BPF map, as far as everything needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapHead {
    /// The `struct bpf_map`.
    pub at: Kva,
    /// Its names.
    pub reference: MapRef,
    /// `bpf_map.map_type`.
    pub map_type: u32,
}

/// Every map of `map_idr`, by id. One that cannot be read leaves a remark.
pub fn map_heads(kernel: &Kernel, limits: &Limits, remarks: &mut Remarks) -> Vec<MapHead> {
    let walk = kernel
        .global("map_idr", "struct idr")
        .and_then(|idr| Ok((idr.address(), kernel.idr(&idr, limits.maps)?)));
    let Some((head, walk)) = remarks.ok("maps", walk) else {
        return Vec::new();
    };
    remarks.walk_end("map_idr", head, &walk.end);
    let mut found = Vec::with_capacity(walk.items.len());
    for (_, at) in walk.items {
        let head = kernel.object("struct bpf_map", at).and_then(|map| {
            Ok(MapHead {
                at,
                reference: map_ref(kernel, at)?,
                map_type: map.member("map_type")?.u32()?,
            })
        });
        match head {
            Ok(head) => found.push(head),
            Err(error) => remarks.anomaly("maps", Some(at), error.to_string()),
        }
    }
    found
}

/// The names of the map at `at`.
///
/// # Errors
/// When it cannot be read.
pub fn map_ref(kernel: &Kernel, at: Kva) -> Result<MapRef> {
    let map = kernel.object("struct bpf_map", at)?;
    let id = map.member("id")?.u32()?;
    Ok(MapRef {
        kva: Hex(at.0),
        id: (id != 0).then_some(id),
        name: map.member("name")?.text()?,
    })
}

/// The object name in the name of a section map: what is before `.bss`, `.data` or `.rodata`.
#[must_use]
pub fn section_object(map_name: &str) -> Option<&str> {
    [".bss", ".data", ".rodata"]
        .iter()
        .find_map(|section| map_name.strip_suffix(section))
        .filter(|object| !object.is_empty())
}

/// A number by this kernel's name for it in an enum: the prefix left out, in lower case. The
/// number itself when the enum has no such name.
fn enum_word(kernel: &Kernel, enumeration: &str, prefix: &str, value: u32) -> String {
    let name = kernel.btf.find(enumeration).ok().and_then(|ty| {
        let name = kernel.btf.enumerator_name(ty, i64::from(value))?;
        Some(
            name.strip_prefix(prefix)
                .unwrap_or(name)
                .to_ascii_lowercase(),
        )
    });
    name.unwrap_or_else(|| value.to_string())
}

/// `count` pointers from `at` on, in one read; the caller has bounded `count`.
fn pointers(kernel: &Kernel, at: Kva, count: usize) -> Result<Vec<Kva>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let raw = kernel.read_bytes(at, to_u64(count).saturating_mul(8))?;
    Ok((0..count)
        .map_while(|i| le_u64(&raw, i * 8).map(Kva))
        .collect())
}

/// A count that must not exceed `max`; what is beyond is cut and noted.
fn bounded(count: u32, max: usize, what: &str, remarks: &mut Remarks) -> usize {
    let count = to_usize(u64::from(count));
    if count > max {
        remarks.limit(what, max, Some(count));
    }
    count.min(max)
}

/// The path of a `struct dentry` within its file system.
fn dentry_path(dentry: Object<'_>) -> Result<String> {
    let mut names = Vec::new();
    let mut dentry = dentry;
    for _ in 0..MAX_PATH_DEPTH {
        let parent = dentry.member("d_parent")?.deref()?;
        if parent.address() == dentry.address() {
            names.reverse();
            return Ok(format!("/{}", names.join("/")));
        }
        let name = dentry.member("d_name.name")?.string(MAX_NAME)?;
        names.push(name.unwrap_or_default());
        dentry = parent;
    }
    Err(Error::Implausible {
        what: format!("the path of the dentry at {}", dentry.address()),
        found: format!("more than {MAX_PATH_DEPTH} parts"),
        why: "it must come to a root",
    })
}
