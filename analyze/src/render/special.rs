//! Structs whose declared members say less than what they hold: CPU masks, and the opaque types
//! of `include/uapi/linux/bpf.h` that the kernel casts to its own (`struct bpf_timer` →
//! `struct bpf_async_kern`, `struct bpf_list_head` → `struct list_head`, `struct bpf_rb_root` →
//! `struct rb_root_cached`, their nodes → `struct bpf_list_node_kern` and `bpf_rb_node_kern`;
//! kernel/bpf/helpers.c, include/linux/bpf.h).

use std::collections::HashMap;

use scx_postmortem_format::report::reasons::deref as reason;
use scx_postmortem_format::report::{RenderedMember, RenderedValue, limits};

use super::{MAX_DEPTH, Pass, Scope, truncated};
use crate::addr::Kva;
use crate::bytes::{le_u64, to_u64, to_usize};
use crate::error::Result;
use crate::kernel::btf::{Kind, Type};
use crate::kernel::{Btf, TypeId, Walk, cpu_list};
use crate::object::Object;

/// What a timer or work item, and an identity without its text, count as.
const CALLBACK_PARTS: usize = 8;
/// CPUs that count as one part of a value.
const CPUS_PER_PART: usize = 32;
/// Nodes of one list or tree that are shown.
const MAX_NODES: usize = 256;

impl Pass<'_, '_> {
    /// The value of a struct that is shown in a way of its own; `None` for all others.
    pub(super) fn special(&mut self, btf: &Btf, ty: &Type, bytes: &[u8]) -> Option<RenderedValue> {
        if ty.kind != Kind::Struct {
            return None;
        }
        match btf.name(ty) {
            "cpumask" | "cpumask_t" | "bpf_cpumask" | "llc_cpumask" => self.cpu_mask(bytes),
            // Its number stands before the mask in older versions of the scx library.
            "scx_bitmap" => {
                let mask = btf.field(ty.id, "bits").ok()?;
                self.cpu_mask(bytes.get(to_usize(mask.offset)..)?)
            }
            "bpf_timer" | "bpf_wq" => {
                let at = le_u64(bytes, 0)?;
                self.take(CALLBACK_PARTS);
                (at != 0).then(|| self.callback(btf.name(ty), at))
            }
            // struct bpf_list_node_kern and bpf_rb_node_kern: the links, then the owning head.
            name @ ("bpf_list_node" | "bpf_rb_node") => {
                let links = if name == "bpf_list_node" { 16 } else { 24 };
                let owner = RenderedValue::ptr(le_u64(bytes, links)?);
                Some(RenderedValue::Struct {
                    type_name: Some(name.to_owned()),
                    members: vec![RenderedMember::new("owner", owner)],
                })
            }
            _ => None,
        }
    }

    /// The CPUs that are set in a mask.
    fn cpu_mask(&mut self, bytes: &[u8]) -> Option<RenderedValue> {
        // Shorter than a word: shown as an ordinary struct.
        le_u64(bytes, 0)?;
        let count = self.scope.kernel.nr_cpus();
        let value = match mask_cpus(bytes, count) {
            Ok(cpus) if self.take(cpus.len() / CPUS_PER_PART) => RenderedValue::CpuList {
                cpus: cpu_list(&cpus),
            },
            Ok(_) => self.no_parts(),
            Err(word) => super::unsupported(format!(
                "{word:#x} is no mask of {count} CPUs: it looks like a pointer, as freed memory begins with"
            )),
        };
        Some(value)
    }

    /// The mask that a kernel pointer to a CPU mask leads to; `None` for other types.
    pub(super) fn cpu_mask_at(
        &mut self,
        name: &str,
        value: u64,
    ) -> Option<std::result::Result<RenderedValue, String>> {
        if !matches!(name, "cpumask" | "bpf_cpumask") {
            return None;
        }
        let kernel = self.scope.kernel;
        let words = u64::from(kernel.nr_cpus()).div_ceil(64);
        let Ok(bytes) = kernel.read_bytes(Kva(value), words * 8) else {
            return Some(Err(reason::cpumask_read_failed(value)));
        };
        if mask_cpus(&bytes, kernel.nr_cpus()).is_err() {
            return Some(Err(reason::cpumask_implausible(value)));
        }
        self.cpu_mask(&bytes).map(Ok)
    }

    /// A timer or work item: what will be called, when, and whether it is armed. `at` is its
    /// `struct bpf_hrtimer` or `struct bpf_work`.
    fn callback(&self, name: &str, at: u64) -> RenderedValue {
        let members = read_callback(self.scope, name, Kva(at));
        let mut pointer = RenderedValue::ptr(at);
        if let RenderedValue::Ptr {
            deref,
            deref_skipped_reason,
            ..
        } = &mut pointer
        {
            match members {
                Ok((type_name, members)) => {
                    *deref = Some(Box::new(RenderedValue::Struct {
                        type_name: Some(type_name.to_owned()),
                        members,
                    }));
                }
                Err(error) => *deref_skipped_reason = Some(error.to_string()),
            }
        }
        RenderedValue::Struct {
            type_name: Some(name.to_owned()),
            members: vec![RenderedMember::new("kernel", pointer)],
        }
    }

    /// A kernel object too large to show, as what identifies it.
    pub(super) fn identity(&mut self, name: &str, value: u64) -> Option<RenderedValue> {
        let kernel = self.scope.kernel;
        let read = || -> Result<Vec<RenderedMember>> {
            let object = kernel.object(&format!("struct {name}"), Kva(value))?;
            Ok(match name {
                "task_struct" => vec![
                    RenderedMember::new("pid", number(object.member("pid")?.i32()?)),
                    RenderedMember::new("tgid", number(object.member("tgid")?.i32()?)),
                    RenderedMember::new("comm", text(&object.member("comm")?.text()?)),
                ],
                "cgroup" => {
                    let node = object.member("kn")?.deref()?;
                    vec![
                        RenderedMember::new(
                            "id",
                            RenderedValue::Uint {
                                bits: 64,
                                value: node.member("id")?.u64()?,
                            },
                        ),
                        RenderedMember::new("path", text(&kernel.cgroup_path(&object)?)),
                    ]
                }
                _ => Vec::new(),
            })
        };
        let members = read().ok().filter(|members| !members.is_empty())?;
        let parts = members.iter().map(|member| match &member.value {
            RenderedValue::Array { elements, .. } => elements.len(),
            _ => 1,
        });
        let parts = parts.fold(CALLBACK_PARTS, usize::saturating_add);
        self.take(parts).then_some(())?;
        Some(RenderedValue::Struct {
            type_name: Some(name.to_owned()),
            members,
        })
    }

    /// Whether a kernel object is still what a pointer says: whether it is linked from where live
    /// ones of its type are. Always false for types for which that is not known.
    pub(super) fn is_live(&self, name: &str, value: u64) -> bool {
        let kernel = self.scope.kernel;
        let check = || -> Result<bool> {
            let object = kernel.object(&format!("struct {name}"), Kva(value))?;
            Ok(match name {
                // On its thread group's list, whose neighbours lead back; or the idle task of a
                // CPU, which is on none.
                "task_struct" => {
                    let node = object.member("thread_node")?;
                    let next = node.member("next")?.ptr()?;
                    let prev = node.member("prev")?.ptr()?;
                    let back = |at: Kva, way: &'static str| -> Result<Kva> {
                        kernel.object("struct list_head", at)?.member(way)?.ptr()
                    };
                    let linked = next != node.address()
                        && back(next, "prev").ok() == Some(node.address())
                        && back(prev, "next").ok() == Some(node.address());
                    linked
                        || kernel.cpus().any(|cpu| {
                            let rq = kernel.per_cpu_object("runqueues", "struct rq", cpu);
                            rq.and_then(|rq| rq.member("idle")?.ptr())
                                .is_ok_and(|idle| idle.0 == value)
                        })
                }
                // Its kernfs node leads back.
                "cgroup" => {
                    let node = object.member("kn")?.deref()?;
                    node.member("priv")?.ptr()?.0 == value
                }
                _ => false,
            })
        };
        check().unwrap_or(false)
    }

    /// A list head or tree root with a `contains:` tag, as the objects that it owns.
    pub(super) fn owning_container(
        &mut self,
        btf: &Btf,
        place: (TypeId, u32),
        ty: TypeId,
        rest: &[u8],
        depth: usize,
    ) -> Option<RenderedValue> {
        let head = self.at?;
        let peeled = btf.ty(btf.peel(ty))?;
        let name = btf.name(&peeled);
        if !matches!(name, "bpf_list_head" | "bpf_rb_root") || !std::ptr::eq(btf, &*self.scope.btf)
        {
            return None;
        }
        let size = usize::try_from(peeled.size()).ok()?;
        if rest.len() < size {
            return None;
        }
        let contains = self.scope.contains.get_or_init(|| contains_tags(btf));
        let (strukt, member) = contains.get(&place)?;
        let owned = btf.find(&format!("struct {strukt}")).ok()?;
        let field = btf.field(owned, member).ok()?;
        let object_size = btf.size_of(owned)?;
        let kernel = self.scope.kernel;
        let walk = if name == "bpf_list_head" {
            // Empty, and never initialised.
            if le_u64(rest, 0)? == 0 {
                Walk::empty()
            } else {
                kernel.list(Kva(head), MAX_NODES)
            }
        } else {
            kernel.rbtree(Kva(head), MAX_NODES)
        };
        let mut elements = Vec::new();
        for node in walk.items {
            let at = node.sub(field.offset);
            if depth + 5 >= MAX_DEPTH {
                break;
            }
            let size = match self.spend(to_usize(object_size)) {
                Ok(size) => size,
                Err(reason) => {
                    elements.push(super::unsupported(reason));
                    break;
                }
            };
            let bytes = match kernel.read_bytes(at, to_u64(size)) {
                Ok(bytes) => bytes,
                Err(error) => {
                    elements.push(super::unsupported(format!(
                        "the node at {node} cannot be read: {error}"
                    )));
                    break;
                }
            };
            self.at = Some(at.0);
            elements.push(self.value(btf, owned, &bytes, depth + 5));
        }
        self.at = Some(head);
        let items = RenderedValue::Array {
            len: to_u64(elements.len()),
            elements,
        };
        let items = match walk.end.anomaly() {
            Some(what) => truncated(0, 0, super::unsupported(what)),
            None => items,
        };
        Some(RenderedValue::Struct {
            type_name: Some(name.to_owned()),
            members: vec![RenderedMember::new("owned", items)],
        })
    }
}

/// The CPUs below `count` that are set in a mask; else the word that is none of a mask of so many
/// CPUs. A mask that was freed begins with an obscured pointer, whose top byte is 0xff; the top
/// byte of a sound mask is that too when the CPUs of that byte exist, or when all bits are set.
fn mask_cpus(bytes: &[u8], count: u32) -> std::result::Result<Vec<u32>, u64> {
    let mut cpus = Vec::new();
    let words = (0usize..).map_while(|i| le_u64(bytes, i.checked_mul(8)?));
    for (word, first) in words.zip((0..count).step_by(64)) {
        let here = count.saturating_sub(first).min(64);
        let beyond = word.checked_shr(here).unwrap_or(0);
        if beyond != 0 && word >> 56 == 0xff && word != u64::MAX {
            return Err(word);
        }
        cpus.extend(
            (first..count)
                .take(64)
                .filter(|cpu| word >> (cpu % 64) & 1 == 1),
        );
    }
    Ok(cpus)
}

/// What a `struct bpf_hrtimer` or `struct bpf_work` will do.
fn read_callback(
    scope: &Scope<'_>,
    name: &str,
    at: Kva,
) -> Result<(&'static str, Vec<RenderedMember>)> {
    let kernel = scope.kernel;
    let symbol = |object: &Object<'_>| -> Result<RenderedValue> {
        let value = object.ptr()?;
        let mut pointer = RenderedValue::ptr(value.0);
        if let RenderedValue::Ptr { symbol, .. } = &mut pointer {
            *symbol = kernel.symbolize(value);
        }
        Ok(pointer)
    };
    if name == "bpf_wq" {
        let work = kernel.object("struct bpf_work", at)?;
        let callback = symbol(&work.member("cb.callback_fn")?)?;
        return Ok((
            "bpf_work",
            vec![RenderedMember::new("callback_fn", callback)],
        ));
    }
    let timer = kernel.object("struct bpf_hrtimer", at)?;
    let state = timer.first_of(&["timer.is_queued", "timer.state"])?;
    Ok((
        "bpf_hrtimer",
        vec![
            RenderedMember::new("callback_fn", symbol(&timer.member("cb.callback_fn")?)?),
            RenderedMember::new(
                "expires",
                RenderedValue::Uint {
                    bits: 64,
                    value: timer.member("timer.node.expires")?.u64()?,
                },
            ),
            RenderedMember::new(
                "queued",
                RenderedValue::Bool {
                    value: state.u64()? & 1 == 1,
                },
            ),
        ],
    ))
}

/// By struct and number of its member: what the `contains:TYPE:MEMBER` tag of the member says.
fn contains_tags(btf: &Btf) -> HashMap<(TypeId, u32), (String, String)> {
    btf.own_ids()
        .filter_map(|id| {
            let tag = btf.decl_tag(id)?;
            let (ty, member) = tag.name.strip_prefix("contains:")?.split_once(':')?;
            Some((
                (tag.target, tag.component?),
                (ty.to_owned(), member.to_owned()),
            ))
        })
        .collect()
}

fn number(value: i32) -> RenderedValue {
    RenderedValue::Int {
        bits: 32,
        value: i64::from(value),
    }
}

/// Text as the array of characters that it is in the kernel.
fn text(text: &str) -> RenderedValue {
    let bytes = text.bytes().chain([0]);
    let elements: Vec<RenderedValue> = bytes
        .take(limits::MAX_ARRAY_ELEMS)
        .map(|value| RenderedValue::Char { value })
        .collect();
    RenderedValue::Array {
        len: to_u64(elements.len()),
        elements,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_with_a_full_top_byte_is_a_mask_where_there_are_such_cpus() {
        let full = 0xff00_0000_0000_0001u64.to_le_bytes();
        let high: Vec<u32> = [0].into_iter().chain(56..64).collect();
        assert_eq!(mask_cpus(&full, 64), Ok(high.clone()));
        assert_eq!(mask_cpus(&full, 128), Ok(high));
        // Of 60 CPUs there are none from 60 on; and this is what a pointer looks like.
        assert_eq!(mask_cpus(&full, 60), Err(0xff00_0000_0000_0001));
        assert_eq!(mask_cpus(&full, 2), Err(0xff00_0000_0000_0001));
        // All bits set, as the kernel fills masks; bits of no CPU without the top byte.
        assert_eq!(mask_cpus(&[0xff; 8], 2), Ok(vec![0, 1]));
        assert_eq!(mask_cpus(&[0x0e; 8], 2), Ok(vec![1]));
        // The second word of a larger mask, and bytes behind the last CPU.
        let mut two = [0u8; 24];
        two[8] = 2;
        two[16..].fill(0xee);
        assert_eq!(mask_cpus(&two, 128), Ok(vec![65]));
        two[15] = 0xff;
        assert!(mask_cpus(&two, 100).is_err());
        assert!(mask_cpus(&two, 128).is_ok());
    }
}
