//! The programs of the guest, as the analysis wants them.
//!
//! Reads `prog_idr` → `struct bpf_prog` (`insnsi`, after verification) and `struct bpf_prog_aux`
//! (`btf`, `func_info`, `linfo`, `used_maps`, `arena`, `attach_btf_id`; include/linux/bpf.h),
//! `struct bpf_func_info` and `struct bpf_line_info` (include/uapi/linux/bpf.h).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use rayon::prelude::*;

use super::flow::{ArenaWindow, Argument, Body, Callee, Map, Program};
use super::insn::{self, Insn};
use super::types::{Home, Ty, Types};
use crate::addr::Kva;
use crate::bytes::{le_u32, to_u64, to_usize};
use crate::error::{Error, Result};
use crate::kernel::btf::{Kind, TypeId};
use crate::kernel::{Btf, Kernel};
use crate::object::Object;

/// Programs looked at.
const MAX_PROGS: usize = 65_536;
/// Instructions of one program (`BPF_COMPLEXITY_LIMIT_INSNS`), and of all.
const MAX_INSNS: u64 = 1_000_000;
const MAX_ALL_INSNS: u64 = 4_000_000;
/// `BPF_MAX_SUBPROGS` is 256, and the verifier adds a few.
const MAX_FUNCTIONS: u64 = 1024;
/// `MAX_USED_MAPS`.
const MAX_MAPS: u64 = 64;
/// Lines of a program that are searched.
const MAX_LINES: u64 = 1_000_000;
/// Bytes of a `struct bpf_func_info` and `struct bpf_line_info`, which are user-space interface.
const FUNC_INFO: usize = 8;
const LINE_INFO: usize = 16;
const PAGE: u64 = 4096;
/// `BPF_MAP_TYPE_ARRAY`, and the types whose values are per CPU.
const ARRAY: u32 = 2;
const PER_CPU: [u32; 4] = [5, 6, 10, 21];

/// A program, and what is needed to speak of it.
pub(super) struct Loaded<'k> {
    pub(super) id: u32,
    pub(super) name: String,
    /// Address of its `struct btf`.
    pub(super) btf: Kva,
    pub(super) program: Program,
    aux: Object<'k>,
}

/// The BTF of programs, by the address of its `struct btf`: its id, and the types.
type Known = HashMap<Kva, (u32, Arc<Btf>)>;

/// All programs with a BTF that `btf_at` has, in order of their ids; those BTFs; and how many
/// programs could not be read.
pub(super) fn programs<'k>(
    kernel: &'k Kernel,
    btf_at: &(dyn Fn(Kva) -> Option<(u32, Arc<Btf>)> + Sync),
) -> Result<(Vec<Loaded<'k>>, Known, u64)> {
    let idr = kernel.global("prog_idr", "struct idr")?;
    let mut left = MAX_ALL_INSNS;
    let mut wanted = Vec::new();
    let mut unread = 0;
    for (_, at) in kernel.idr(&idr, MAX_PROGS)?.items {
        let head = (|| -> Result<_> {
            let object = kernel.object("struct bpf_prog", at)?;
            let aux = object.member("aux")?.deref()?;
            let btf = aux.member("btf")?.ptr()?;
            let len = u64::from(object.member("len")?.u32()?);
            Ok((object, aux, btf, len))
        })();
        match head {
            Ok((object, aux, btf, len)) if !btf.is_null() => {
                match left.checked_sub(len).filter(|_| len <= MAX_INSNS) {
                    Some(rest) => {
                        left = rest;
                        wanted.push((object, aux, btf, len));
                    }
                    None => unread += 1,
                }
            }
            Ok(_) => {}
            Err(_) => unread += 1,
        }
    }
    let btfs: BTreeSet<Kva> = wanted.iter().map(|&(_, _, btf, _)| btf).collect();
    let btfs: Known = btfs
        .into_par_iter()
        .filter_map(|at| Some((at, btf_at(at)?)))
        .collect();
    let read: Vec<_> = wanted
        .into_par_iter()
        .map(|(object, aux, btf, len)| {
            let types = btfs
                .get(&btf)
                .ok_or_else(|| Error::Null("its BTF".into()))?;
            let types = Types::new(&types.1, &kernel.btf);
            one(kernel, &object, aux, btf, len, &types)
        })
        .collect();
    let mut programs = Vec::with_capacity(read.len());
    for program in read {
        match program {
            Ok(program) => programs.push(program),
            Err(_) => unread += 1,
        }
    }
    Ok((programs, btfs, unread))
}

fn one<'k>(
    kernel: &'k Kernel,
    object: &Object<'k>,
    aux: Object<'k>,
    btf: Kva,
    len: u64,
    types: &Types<'_>,
) -> Result<Loaded<'k>> {
    let code = object.member("insnsi")?.address();
    let code = kernel.read_bytes(code, len * to_u64(insn::SIZE))?;
    let insns = insn::decode(&code);
    let functions = functions(kernel, &aux, insns.len())?;
    let count = u64::from(aux.member("used_map_cnt")?.u32()?).min(MAX_MAPS);
    let list = aux.member("used_maps")?.ptr()?;
    let maps = (0..count)
        .map(|i| map(kernel, kernel.read_ptr(list.add(i * 8))?, btf))
        .collect::<Result<_>>()?;
    let arena = match aux.member("arena") {
        Ok(arena) => arena.ptr()?,
        Err(e) if e.is_absent() => Kva::NULL,
        Err(e) => return Err(e),
    };
    let arena = if arena.is_null() {
        None
    } else {
        Some(window(kernel, arena, types, &insns)?)
    };
    Ok(Loaded {
        id: aux.member("id")?.u32()?,
        name: aux.member("name")?.text()?,
        btf,
        program: Program {
            insns,
            functions,
            arguments: arguments(kernel, object, &aux, types).unwrap_or_default(),
            maps,
            arena,
        },
        aux,
    })
}

/// Where each subprogram begins, and its type: `aux->func_info`, one for each, in order. The
/// verifier adds hidden ones without a type behind them.
fn functions(kernel: &Kernel, aux: &Object<'_>, slots: usize) -> Result<Vec<Body>> {
    let count = u64::from(aux.member("func_info_cnt")?.u32()?).min(MAX_FUNCTIONS);
    let list = aux.member("func_info")?.ptr()?;
    let bytes = if count == 0 || list.is_null() {
        Vec::new()
    } else {
        kernel.read_bytes(list, count * to_u64(FUNC_INFO))?
    };
    let mut starts: Vec<(usize, TypeId)> = bytes
        .chunks_exact(FUNC_INFO)
        .filter_map(|info| {
            let start = to_usize(u64::from(le_u32(info, 0)?));
            Some((start, TypeId(le_u32(info, 4)?)))
        })
        .collect();
    if starts.is_empty() {
        starts.push((0, TypeId(0)));
    }
    let ends = starts.iter().skip(1).map(|&(start, _)| start);
    let ends: Vec<usize> = ends.chain([slots]).collect();
    Ok(starts
        .into_iter()
        .zip(ends)
        .map(|((start, ty), end)| Body {
            slots: start.min(slots)..end.clamp(start.min(slots), slots),
            ty,
        })
        .collect())
}

fn map(kernel: &Kernel, at: Kva, btf: Kva) -> Result<Map> {
    let object = kernel.object("struct bpf_map", at)?;
    let u32 = |path| object.member(path).and_then(|m| m.u32());
    let map_type = u32("map_type")?;
    let own = object.member("btf")?.ptr()? == btf;
    let (mut values, mut stride) = (0..0, 0);
    if map_type == ARRAY {
        let array = kernel.object("struct bpf_array", at)?;
        let first = array.member("value")?.address().0;
        stride = u64::from(array.member("elem_size")?.u32()?);
        let span = stride.saturating_mul(u64::from(u32("max_entries")?));
        values = first..first.saturating_add(span);
    }
    Ok(Map {
        kva: at.0,
        values,
        stride,
        value: Ty {
            home: Home::Program,
            id: TypeId(if own { u32("btf_value_type_id")? } else { 0 }),
        },
        value_size: u32("value_size")?,
        per_cpu: PER_CPU.contains(&map_type),
    })
}

/// The window of an arena, and where its variables are: at its start, or at its end with newer
/// versions of libbpf. The addresses that the program itself uses tell.
fn window(kernel: &Kernel, at: Kva, types: &Types<'_>, insns: &[Insn]) -> Result<ArenaWindow> {
    let arena = kernel.object("struct bpf_arena", at)?;
    let user_start = arena.member("user_vm_start")?.u64()?;
    let map = kernel.object("struct bpf_map", at)?;
    let pages = u64::from(map.member("max_entries")?.u32()?);
    let own = types.own;
    let id = own.own_ids().find(|&id| {
        own.ty(id)
            .is_some_and(|ty| ty.kind == Kind::Datasec && own.name(&ty) == ".addr_space.1")
    });
    let used: Vec<u64> = insns
        .iter()
        .filter_map(|insn| match insn {
            Insn::Load64 { value, .. } => Some(*value),
            _ => None,
        })
        .filter(|value| value.wrapping_sub(user_start) < 1 << 32)
        .collect();
    let section = id.and_then(|id| {
        let size = own.size_of(id)?;
        let pages_end = pages.saturating_mul(PAGE);
        let at_end = pages_end.checked_sub(size.next_multiple_of(PAGE))?;
        let mut starts = BTreeSet::from([user_start, user_start.wrapping_add(at_end)]);
        starts.retain(|&start| used.iter().all(|at| at.wrapping_sub(start) < size));
        // Both only when nothing is used, or the arena is no larger.
        starts.first().map(|&start| (id, start))
    });
    Ok(ArenaWindow {
        user_start,
        section,
    })
}

/// What the words of the context are: the parameters of the struct_ops member or of the kernel
/// function that the program is attached to.
fn arguments(
    kernel: &Kernel,
    object: &Object<'_>,
    aux: &Object<'_>,
    types: &Types<'_>,
) -> Result<Vec<Argument>> {
    let attach = aux.member("attach_btf")?.ptr()?;
    let attach = kernel.object("struct btf", attach)?;
    if attach.member("name")?.text()? != "vmlinux" {
        return Ok(Vec::new());
    }
    let btf = &kernel.btf;
    let mut target = TypeId(aux.member("attach_btf_id")?.u32()?);
    let mut skipped = 0;
    let kind = object.member("type")?;
    match kind.enum_name()? {
        Some("BPF_PROG_TYPE_STRUCT_OPS") => {
            let member = object.member("expected_attach_type")?.u32()?;
            let mut members = btf.members(target);
            let member = members.nth(to_usize(u64::from(member)));
            target = member.map_or(TypeId(0), |m| m.ty);
        }
        Some("BPF_PROG_TYPE_TRACING" | "BPF_PROG_TYPE_LSM") => {
            // A trace point: a typedef of a pointer to its probe, which has a cookie first.
            if btf.ty(target).is_some_and(|ty| ty.kind == Kind::Typedef) {
                skipped = 1;
            }
        }
        _ => return Ok(Vec::new()),
    }
    let function = btf.pointee(target).unwrap_or(target);
    Ok(btf
        .parameters(function)
        .skip(skipped)
        .map(|(_, ty)| match btf.pointee(ty) {
            Some(target) => {
                let ty = types.standing(Home::Kernel, target);
                let known = btf.ty(ty.id).map(|ty| ty.kind);
                match known {
                    Some(Kind::Struct | Kind::Union) => Argument::Pointer(ty),
                    _ => Argument::Other,
                }
            }
            None if btf.integer(ty).is_some() => Argument::Number,
            None => Argument::Other,
        })
        .collect())
}

/// The functions of the kernel that the programs call.
pub(super) fn callees(kernel: &Kernel, programs: &[Loaded<'_>]) -> HashMap<i32, Callee> {
    let Ok(base) = kernel.symbol("__bpf_call_base") else {
        return HashMap::new();
    };
    let insns = programs.iter().flat_map(|p| &p.program.insns);
    let called: BTreeSet<(i32, bool)> = insns
        .filter_map(|insn| match insn {
            Insn::Call { imm, kfunc } => Some((*imm, *kfunc)),
            _ => None,
        })
        .collect();
    let named: Vec<(i32, bool, String)> = called
        .into_par_iter()
        .filter_map(|(imm, kfunc)| {
            let at = Kva(base.0.wrapping_add_signed(i64::from(imm)));
            let symbol = kernel.symbolize(at)?;
            // Anything else than the start of a function is not what we think.
            let (name, rest) = symbol.split_once('+')?;
            rest.starts_with("0x0/")
                .then(|| (imm, kfunc, name.to_owned()))
        })
        .collect();
    let kfuncs: HashMap<&str, ()> = named
        .iter()
        .filter(|(_, kfunc, _)| *kfunc)
        .map(|(_, _, name)| (name.as_str(), ()))
        .collect();
    let btf = &kernel.btf;
    let ids: Vec<TypeId> = if kfuncs.is_empty() {
        Vec::new()
    } else {
        btf.own_ids().collect()
    };
    let functions: HashMap<&str, TypeId> = ids
        .par_chunks(8192)
        .flat_map_iter(|ids| {
            ids.iter().filter_map(|&id| {
                let ty = btf.ty(id).filter(|ty| ty.kind == Kind::Func)?;
                let name = btf.name(&ty);
                kfuncs.contains_key(name).then_some((name, id))
            })
        })
        .collect();
    named
        .iter()
        .map(|(imm, kfunc, name)| {
            let ty = functions.get(name.as_str()).copied().filter(|_| *kfunc);
            let name = name.clone();
            (*imm, Callee { name, ty })
        })
        .collect()
}

impl Loaded<'_> {
    /// `file:line` of instructions, for those that have one. `slots` ascending.
    pub(super) fn lines(
        &self,
        kernel: &Kernel,
        own: &Btf,
        slots: &BTreeSet<u32>,
    ) -> HashMap<u32, String> {
        let read = (|| -> Result<Vec<u8>> {
            let count = u64::from(self.aux.member("nr_linfo")?.u32()?).min(MAX_LINES);
            let list = self.aux.member("linfo")?.ptr()?;
            if count == 0 || list.is_null() {
                return Ok(Vec::new());
            }
            kernel.read_bytes(list, count * to_u64(LINE_INFO))
        })();
        let bytes = read.unwrap_or_default();
        let lines: Vec<&[u8]> = bytes.chunks_exact(LINE_INFO).collect();
        let start = |line: &[u8]| le_u32(line, 0).unwrap_or(u32::MAX);
        let mut found = HashMap::new();
        for &slot in slots {
            let next = lines.partition_point(|line| start(line) <= slot);
            let Some(line) = next.checked_sub(1).and_then(|i| lines.get(i)) else {
                continue;
            };
            let (Some(file), Some(column)) = (le_u32(line, 4), le_u32(line, 12)) else {
                continue;
            };
            let file = own.string(file);
            let file = file.rsplit('/').next().unwrap_or_default();
            if !file.is_empty() {
                found.insert(slot, format!("{file}:{}", column >> 10));
            }
        }
        found
    }
}
