//! BPF links.
//!
//! Reads `link_idr` → `struct bpf_link`, which is a member of a struct of the link's type
//! (kernel/bpf/syscall.c, trampoline.c, cgroup.c, kernel/trace/bpf_trace.c, net/core …). What a
//! link is attached to is read as far as the kernel's BTF has that struct.

use rayon::prelude::*;
use scx_postmortem_format::report::{Hex, LinkInfo, MapRef};

use super::progs::Programs;
use super::{bounded, dentry_path, enum_word, map_ref, pointers};
use crate::addr::Kva;
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::object::Object;
use crate::walk::{Limits, Remarks};

/// Bytes of a name: `KSYM_NAME_LEN`.
const MAX_NAME: usize = 512;
/// `TRACE_EVENT_FL_…` of include/linux/trace_events.h: an anonymous enum, which BTF does not find
/// by name; unchanged from 6.12 to 7.3.
const EVENT_TRACEPOINT: i64 = 1 << 3;
const EVENT_KPROBE: i64 = 1 << 5;
const EVENT_UPROBE: i64 = 1 << 6;

/// All links, by id.
pub fn read(
    kernel: &Kernel,
    programs: &Programs<'_>,
    limits: &Limits,
    remarks: &mut Remarks,
) -> Vec<LinkInfo> {
    let walk = kernel
        .global("link_idr", "struct idr")
        .and_then(|idr| Ok((idr.address(), kernel.idr(&idr, limits.links)?)));
    let Some((head, walk)) = remarks.ok("links", walk) else {
        return Vec::new();
    };
    remarks.walk_end("link_idr", head, &walk.end);
    let read: Vec<_> = walk
        .items
        .par_iter()
        .map(|&(id, at)| {
            let mut part = Remarks::default();
            let link = read_one(kernel, id, at, programs, limits, &mut part);
            (link, part)
        })
        .collect();
    let mut links = Vec::with_capacity(read.len());
    for (link, part) in read {
        remarks.absorb(part);
        links.extend(remarks.ok("links", link));
    }
    links
}

/// One link. Fails only when this kernel has no links as we know them.
fn read_one(
    kernel: &Kernel,
    idr_id: u64,
    at: Kva,
    programs: &Programs<'_>,
    limits: &Limits,
    remarks: &mut Remarks,
) -> Result<LinkInfo> {
    let object = kernel.object("struct bpf_link", at)?;
    let mut info = LinkInfo {
        id: u32::try_from(idr_id).unwrap_or(u32::MAX),
        kva: Hex(at.0),
        ..LinkInfo::default()
    };
    let mut reader = Reader {
        kernel,
        programs,
        limits,
        section: format!("links.{}", info.id),
        remarks,
    };
    if let Err(error) = reader.fill(&object, &mut info) {
        // Some of its pointers come with the id.
        if !(info.unsettled && matches!(error, Error::Null(_))) {
            reader.say(at, &error);
        }
        info.error = Some(error.to_string());
    }
    Ok(info)
}

/// What reading one link needs.
struct Reader<'a, 'k> {
    kernel: &'k Kernel,
    programs: &'a Programs<'k>,
    limits: &'a Limits,
    section: String,
    remarks: &'a mut Remarks,
}

impl<'k> Reader<'_, 'k> {
    fn say(&mut self, at: Kva, error: &Error) {
        if error.is_absent() {
            self.remarks.missing(&self.section, error);
        } else {
            let what = error.to_string();
            self.remarks.anomaly(&self.section, Some(at), what);
        }
    }

    fn fill(&mut self, link: &Object<'k>, info: &mut LinkInfo) -> Result<()> {
        let kernel = self.kernel;
        let their_id = link.member("id")?.u32()?;
        // bpf_link_prime() puts it into the list, bpf_link_settle() gives it the id, once it is
        // attached: until then bpf_link_by_id() takes it for one that is not there.
        info.unsettled = their_id == 0;
        if !info.unsettled && their_id != info.id {
            return Err(Error::Implausible {
                what: format!("the id of link {}", info.id),
                found: their_id.to_string(),
                why: "link_idr has it under another",
            });
        }
        let link_type = link.member("type")?.u32()?;
        info.link_type = enum_word(kernel, "enum bpf_link_type", "BPF_LINK_TYPE_", link_type);
        match self.programs.of(&link.member("prog")?) {
            Ok(program) => info.program = program,
            Err(error) => self.say(link.address(), &error),
        }
        // 6.17 and later; before, links of some types have one of their own.
        if let Ok(attach_type) = link.member("attach_type").and_then(|t| t.u32())
            && (attach_type != 0 || info.link_type == "cgroup")
        {
            info.attach_type = Some(self.attach_type(attach_type));
        }
        self.target(link, info)
    }

    fn attach_type(&self, attach_type: u32) -> String {
        enum_word(self.kernel, "enum bpf_attach_type", "BPF_", attach_type)
    }

    /// The struct of type `ty` that the link is the member `path` of.
    fn outer(&self, link: &Object<'k>, ty: &str, path: &'static str) -> Result<Object<'k>> {
        self.kernel.entry(ty, path, link.address())
    }

    /// Where a link of its type is attached, by each type's own struct.
    fn target(&mut self, link: &Object<'k>, info: &mut LinkInfo) -> Result<()> {
        info.target = match info.link_type.clone().as_str() {
            "struct_ops" => {
                let outer = self.outer(link, "struct bpf_struct_ops_link", "link")?;
                info.map = self.map(&outer.member("map")?)?;
                let none = if info.unsettled {
                    "no map yet: it is being attached"
                } else {
                    "no map: it was detached"
                };
                Some(info.map.as_ref().map_or_else(|| none.to_owned(), map_words))
            }
            "raw_tracepoint" => {
                let outer = self.outer(link, "struct bpf_raw_tp_link", "link")?;
                info.cookie = cookie(&outer, "cookie");
                let event = outer.member("btp")?.deref()?.member("tp")?.deref()?;
                name_of(&event, "name")?.map(|name| format!("tracepoint {name}"))
            }
            "tracing" => {
                let outer = self.outer(link, "struct bpf_tracing_link", "link.link")?;
                info.cookie =
                    cookie(&outer, "link.node.cookie").or_else(|| cookie(&outer, "link.cookie"));
                if info.attach_type.is_none() {
                    let own = outer.member("attach_type").and_then(|t| t.u32());
                    info.attach_type = own.ok().map(|t| self.attach_type(t));
                }
                let target = outer.member("tgt_prog")?;
                info.target_program = self.programs.of(&target).unwrap_or_default();
                let trampoline = outer.member("trampoline")?.deref()?;
                Some(format!("function {}", self.traced(&trampoline)?))
            }
            "tracing_multi" => {
                let outer = self.outer(link, "struct bpf_tracing_multi_link", "link")?;
                let count = outer.member("nodes_cnt")?.u32()?;
                let nodes = outer.member("nodes")?;
                let shown = self.shown(count, info);
                for (index, _) in (0u64..).zip(0..shown) {
                    let node = nodes.index(index)?;
                    let trampoline = node.member("trampoline")?.deref()?;
                    info.functions.push(self.traced(&trampoline)?);
                }
                Some(format!("{count} functions"))
            }
            "cgroup" => {
                let outer = self.outer(link, "struct bpf_cgroup_link", "link")?;
                if info.attach_type.is_none() {
                    let own = outer.member("type").and_then(|t| t.u32());
                    info.attach_type = own.ok().map(|t| self.attach_type(t));
                }
                let cgroup = outer.member("cgroup")?;
                match cgroup.ptr()? {
                    Kva::NULL => Some("no cgroup: it was removed".to_owned()),
                    _ => Some(format!(
                        "cgroup {}",
                        self.kernel.cgroup_path(&cgroup.deref()?)?
                    )),
                }
            }
            "iter" => {
                let outer = self.outer(link, "struct bpf_iter_link", "link")?;
                info.map = self.map(&outer.member("aux.map")?)?;
                let kind = outer
                    .member("tinfo")?
                    .deref()?
                    .member("reg_info")?
                    .deref()?;
                name_of(&kind, "target")?.map(|name| format!("iterator {name}"))
            }
            "netns" => {
                let outer = self.outer(link, "struct bpf_netns_link", "link")?;
                let net = outer.member("net")?;
                match net.ptr()? {
                    Kva::NULL => Some("no network namespace: it is gone".to_owned()),
                    _ => {
                        let inode = net.deref()?.member("ns.inum")?.u32()?;
                        Some(format!("network namespace {inode}"))
                    }
                }
            }
            "xdp" => {
                let outer = self.outer(link, "struct bpf_xdp_link", "link")?;
                Some(device(&outer.member("dev")?)?)
            }
            "tcx" => {
                let outer = self.outer(link, "struct tcx_link", "link")?;
                Some(device(&outer.member("dev")?)?)
            }
            "netkit" => {
                let outer = self.outer(link, "struct netkit_link", "link")?;
                Some(device(&outer.member("dev")?)?)
            }
            "sockmap" => {
                let outer = self.outer(link, "struct sockmap_link", "link")?;
                info.map = self.map(&outer.member("map")?)?;
                info.map.as_ref().map(map_words)
            }
            "netfilter" => {
                let outer = self.outer(link, "struct bpf_nf_link", "link")?;
                let number = |path: &'static str| outer.member(path)?.i64();
                Some(format!(
                    "netfilter family {}, hook {}, priority {}",
                    number("hook_ops.pf")?,
                    number("hook_ops.hooknum")?,
                    number("hook_ops.priority")?
                ))
            }
            "perf_event" => {
                let outer = self.outer(link, "struct bpf_perf_link", "link")?;
                let file = outer.member("perf_file")?.deref()?;
                let event = file.member("private_data")?.deref_as("struct perf_event")?;
                info.cookie = cookie(&event, "bpf_cookie");
                Some(self.perf_event(&event)?)
            }
            "kprobe_multi" => {
                let outer = self.outer(link, "struct bpf_kprobe_multi_link", "link")?;
                let count = outer.member("cnt")?.u32()?;
                let shown = self.shown(count, info);
                let addresses = outer.member("addrs")?.ptr()?;
                info.functions = pointers(self.kernel, addresses, shown)?
                    .into_iter()
                    .map(|at| self.function(at))
                    .collect();
                Some(format!("{count} functions"))
            }
            "uprobe_multi" => {
                let outer = self.outer(link, "struct bpf_uprobe_multi_link", "link")?;
                let count = outer.member("cnt")?.u32()?;
                let path = dentry_path(outer.member("path.dentry")?.deref()?)?;
                let shown = self.shown(count, info);
                let probes = outer.member("uprobes")?.deref()?;
                let size = probes.size().unwrap_or(0);
                for (index, _) in (0u64..).zip(0..shown) {
                    let at = probes.address().add(size.wrapping_mul(index));
                    let probe = Object::new(self.kernel, probes.ty(), at);
                    let offset = probe.member("offset")?.u64()?;
                    info.functions.push(format!("{path}+{offset:#x}"));
                }
                let task = outer.member("task")?;
                let of = match task.ptr()? {
                    Kva::NULL => String::new(),
                    _ => format!(" of process {}", task.deref()?.member("pid")?.i32()?),
                };
                Some(format!("{count} places in {path}{of}"))
            }
            other => {
                return Err(Error::NoType(format!(
                    "for a link of type {other} that this analyzer knows"
                )));
            }
        };
        Ok(())
    }

    /// How many of `count` functions are shown.
    fn shown(&mut self, count: u32, info: &mut LinkInfo) -> usize {
        let what = format!("{}.functions", self.section);
        let shown = bounded(count, self.limits.links, &what, self.remarks);
        info.functions_truncated = u32::try_from(shown) != Ok(count);
        shown
    }

    fn map(&self, pointer: &Object<'k>) -> Result<Option<MapRef>> {
        match pointer.ptr()? {
            Kva::NULL => Ok(None),
            at => map_ref(self.kernel, at).map(Some),
        }
    }

    /// The function that a trampoline belongs to.
    fn traced(&self, trampoline: &Object<'k>) -> Result<String> {
        Ok(self.function(trampoline.member("func.addr")?.ptr()?))
    }

    /// A function by the name of its first byte.
    fn function(&self, at: Kva) -> String {
        let symbol = self.kernel.symbolize(at);
        symbol.map_or_else(
            || at.to_string(),
            |symbol| match symbol.split_once("+0x0/") {
                Some((name, _)) => name.to_owned(),
                None => symbol,
            },
        )
    }

    /// What a perf event is about: a tracepoint, a probe, or a counter.
    fn perf_event(&self, event: &Object<'k>) -> Result<String> {
        let call = event.member("tp_event")?;
        if call.ptr()?.is_null() {
            let number = |path: &'static str| event.member(path)?.u64();
            return Ok(format!(
                "perf event type {}, config {:#x}",
                number("attr.type")?,
                number("attr.config")?
            ));
        }
        let call = call.deref()?;
        let flags = call.member("flags")?.i64()?;
        if flags & EVENT_KPROBE != 0 {
            let probe = self.probe(&call, "struct trace_kprobe")?;
            let at = probe.member("rp.kp.addr")?.ptr()?;
            let symbol = probe.member("symbol")?.string(MAX_NAME)?;
            let place = symbol.unwrap_or_else(|| self.function(at));
            let offset = probe.member("rp.kp.offset")?.u64()?;
            let offset = match offset {
                0 => String::new(),
                offset => format!("+{offset:#x}"),
            };
            let word = match probe.member("rp.handler")?.ptr()? {
                Kva::NULL => "kprobe",
                _ => "kretprobe",
            };
            return Ok(format!("{word} {place}{offset}"));
        }
        if flags & EVENT_UPROBE != 0 {
            let probe = self.probe(&call, "struct trace_uprobe")?;
            let file = probe.member("filename")?.string(MAX_NAME)?;
            let offset = probe.member("offset")?.u64()?;
            return Ok(format!("uprobe {}+{offset:#x}", file.unwrap_or_default()));
        }
        let name = if flags & EVENT_TRACEPOINT != 0 {
            name_of(&call.member("tp")?.deref()?, "name")?
        } else {
            name_of(&call, "name")?
        };
        Ok(format!("tracepoint {}", name.unwrap_or_default()))
    }

    /// The first probe of a dynamic event (`trace_probe_primary_from_call()`).
    fn probe(&self, call: &Object<'k>, ty: &str) -> Result<Object<'k>> {
        let event = self
            .kernel
            .entry("struct trace_probe_event", "call", call.address())?;
        let first = event.member("probes.next")?.ptr()?;
        self.kernel.entry(ty, "tp.list", first)
    }
}

/// A map as a target.
fn map_words(map: &MapRef) -> String {
    match map.id {
        Some(id) => format!("map {id} ({})", map.name),
        None => format!("map ({})", map.name),
    }
}

fn name_of(object: &Object<'_>, member: &'static str) -> Result<Option<String>> {
    object.member(member)?.string(MAX_NAME)
}

/// A cookie that the kernel has and the user set.
fn cookie(object: &Object<'_>, member: &'static str) -> Option<Hex> {
    let value = object.member(member).and_then(|c| c.u64()).ok()?;
    (value != 0).then_some(Hex(value))
}

/// A network device by name and index.
fn device(pointer: &Object<'_>) -> Result<String> {
    if pointer.ptr()?.is_null() {
        return Ok("no device: it is gone".to_owned());
    }
    let device = pointer.deref()?;
    let name = device.member("name")?.text()?;
    let index = device.member("ifindex")?.i32()?;
    Ok(format!("device {name} (index {index})"))
}
