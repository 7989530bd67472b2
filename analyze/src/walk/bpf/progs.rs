//! BPF programs.
//!
//! Reads `prog_idr` → `struct bpf_prog` → `struct bpf_prog_aux` (include/linux/bpf.h), the
//! per-CPU `struct bpf_prog_stats`, and the function and line information that came with the
//! program. Mirrors `bpf_prog_get_info_by_fd()` (kernel/bpf/syscall.c) for what a number means.

use std::collections::HashMap;
use std::sync::OnceLock;

use rayon::prelude::*;
use scx_postmortem_format::report::{
    Hex, MapRef, NamedId, ProgRuntimeStats, ProgramCpuStats, ProgramFunction, ProgramHook,
    ProgramInfo, ProgramStats, SourceLine,
};

use super::btfs::Btfs;
use super::{bounded, enum_word, map_ref, pointers};
use crate::addr::Kva;
use crate::bytes::{le_u64, to_usize};
use crate::error::{Error, Result};
use crate::kernel::btf::{Kind, TypeId};
use crate::kernel::{Btf, Kernel};
use crate::object::Object;
use crate::walk::sched::struct_ops_name;
use crate::walk::{Limits, Remarks};

/// `MAX_USED_MAPS` is 64.
const MAX_MAPS: usize = 1024;
/// `BPF_MAX_SUBPROGS` is 256, and the verifier adds a few.
const MAX_FUNCTIONS: usize = 1024;
/// Lines of a program: no more than instructions, of which `BPF_COMPLEXITY_LIMIT_INSNS` is the
/// limit.
const MAX_LINES: u32 = 1_000_000;
/// Bytes of a name: `KSYM_NAME_LEN`.
const MAX_NAME: usize = 512;
/// `BPF_PTR_POISON`: a program that several struct_ops maps have (7.0 and later).
const PTR_POISON: Kva = Kva(0xdead_0000_0000_eb9f);

/// One program.
#[derive(Debug, Clone)]
pub struct Program<'k> {
    /// What the report says of it.
    pub info: ProgramInfo,
    /// Its `struct bpf_prog`.
    pub object: Object<'k>,
}

impl Program<'_> {
    /// Its id and name.
    #[must_use]
    pub fn reference(&self) -> NamedId {
        NamedId {
            id: self.info.id,
            name: self.info.name.clone(),
        }
    }

    /// Whether it implements a callback of some struct_ops.
    #[must_use]
    pub fn is_struct_ops(&self) -> bool {
        self.info.prog_type == "struct_ops"
    }
}

/// A piece of JITed code.
#[derive(Debug, Clone)]
struct Code {
    start: u64,
    end: u64,
    /// Index of its program.
    program: usize,
    /// The function's name.
    name: String,
}

/// A line of source that an address belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The line.
    pub source: SourceLine,
    /// The function of the program that the address is in.
    pub function: String,
}

/// All programs of the guest.
pub struct Programs<'k> {
    /// In order of their ids.
    pub all: Vec<Program<'k>>,
    /// Whether `prog_idr` could be walked at all.
    pub readable: bool,
    /// Whether the kernel counts runs at this moment; `None` when that is not known.
    pub counting: Option<bool>,
    by_kva: HashMap<Kva, usize>,
    code: Vec<Code>,
    /// Of each program: where the code of its lines begins, read when first asked for.
    lines: Vec<OnceLock<LineStarts>>,
}

/// Address and index of each entry of a program's line information, ascending.
type LineStarts = Vec<(u64, u32)>;

impl<'k> Programs<'k> {
    /// Reads them all.
    pub fn read(
        kernel: &'k Kernel,
        btfs: &Btfs<'k>,
        uptime_ns: Option<u64>,
        limits: &Limits,
        remarks: &mut Remarks,
    ) -> Self {
        let counting = remarks.ok("programs.stats", counting(kernel));
        let walk = kernel
            .global("prog_idr", "struct idr")
            .and_then(|idr| Ok((idr.address(), kernel.idr(&idr, limits.programs)?)));
        let walk = remarks.ok("programs", walk);
        let readable = walk.is_some();
        let mut items = Vec::new();
        if let Some((head, walk)) = walk {
            remarks.walk_end("prog_idr", head, &walk.end);
            items = walk.items;
        }
        let reader = Reader {
            kernel,
            btfs,
            uptime_ns,
            counting,
        };
        let read: Vec<_> = items
            .par_iter()
            .map(|&(id, at)| {
                let mut part = Remarks::default();
                let program = reader.program(id, at, &mut part);
                (program, part)
            })
            .collect();
        let mut all: Vec<Program<'k>> = Vec::with_capacity(read.len());
        for (program, part) in read {
            remarks.absorb(part);
            all.extend(remarks.ok("programs", program));
        }
        let by_kva = (0..)
            .zip(&all)
            .map(|(i, p)| (p.object.address(), i))
            .collect();
        let code = code_of(&all);
        let lines = all.iter().map(|_| OnceLock::new()).collect();
        Self {
            all,
            readable,
            counting,
            by_kva,
            code,
            lines,
        }
    }

    /// The program whose `struct bpf_prog` is at `at`.
    #[must_use]
    pub fn at(&self, at: Kva) -> Option<&Program<'k>> {
        self.all.get(*self.by_kva.get(&at)?)
    }

    /// The program of this id.
    #[must_use]
    pub fn by_id(&self, id: u32) -> Option<&Program<'k>> {
        let index = self.all.partition_point(|program| program.info.id < id);
        self.all.get(index).filter(|program| program.info.id == id)
    }

    /// The names of the program that a `struct bpf_prog *` points to; `None` for a null pointer.
    ///
    /// # Errors
    /// When it is not null and leads to no program of `prog_idr`.
    pub fn of(&self, pointer: &Object<'_>) -> Result<Option<NamedId>> {
        let at = pointer.ptr()?;
        if at.is_null() {
            return Ok(None);
        }
        match self.at(at) {
            Some(program) => Ok(Some(program.reference())),
            None => Err(Error::Implausible {
                what: "a program".into(),
                found: at.to_string(),
                why: "prog_idr does not have it",
            }),
        }
    }

    /// The line of source that the instruction at `kva` was made from. A return address on a
    /// stack is behind the call: ask for the address before it.
    #[must_use]
    pub fn source_line(&self, btfs: &Btfs<'_>, kva: Kva) -> Option<Line> {
        let next = self.code.partition_point(|code| code.start <= kva.0);
        let code = self.code.get(next.checked_sub(1)?)?;
        if kva.0 >= code.end {
            return None;
        }
        let program = self.all.get(code.program)?.object;
        let aux = program.member("aux").and_then(|aux| aux.deref()).ok()?;
        let starts = self
            .lines
            .get(code.program)?
            .get_or_init(|| line_starts(&aux).unwrap_or_default());
        let next = starts.partition_point(|&(start, _)| start <= kva.0);
        let &(start, index) = starts.get(next.checked_sub(1)?)?;
        if start < code.start {
            return None;
        }
        let source = line(btfs, &aux, index).ok().flatten()?;
        Some(Line {
            source,
            function: code.name.clone(),
        })
    }

    /// Where the instruction before a return address comes from, in one word:
    /// `stall.bpf.c:42`.
    #[must_use]
    pub fn frame_source(&self, btfs: &Btfs<'_>, return_address: Kva) -> Option<String> {
        let line = self.source_line(btfs, return_address.sub(1))?;
        Some(short(&line.source))
    }

    /// The contract's statistics: struct_ops programs that have counters.
    #[must_use]
    pub fn runtime_stats(&self) -> Vec<ProgRuntimeStats> {
        let struct_ops = self.all.iter().filter(|p| p.is_struct_ops());
        struct_ops
            .filter_map(|program| {
                let stats = program.info.stats.as_ref()?;
                Some(ProgRuntimeStats {
                    name: program.info.kernel_name.clone(),
                    cnt: stats.runs,
                    nsecs: stats.time_ns,
                    misses: stats.misses,
                })
            })
            .collect()
    }
}

/// `file:line`, without the directories.
#[must_use]
pub fn short(source: &SourceLine) -> String {
    let file = source.file.rsplit('/').next().unwrap_or_default();
    format!("{file}:{}", source.line)
}

/// The code of all functions, ascending.
fn code_of(programs: &[Program<'_>]) -> Vec<Code> {
    let mut code = Vec::new();
    for (program, Program { info, .. }) in programs.iter().enumerate() {
        let mut push = |start: Hex, end: Hex, name: &str| {
            if start.0 < end.0 {
                code.push(Code {
                    start: start.0,
                    end: end.0,
                    program,
                    name: name.to_owned(),
                });
            }
        };
        for function in &info.functions {
            push(function.start, function.end, &function.name);
        }
        if info.functions.is_empty()
            && let Some((start, end)) = info.start.zip(info.end)
        {
            push(start, end, &info.name);
        }
    }
    code.sort_by_key(|c| (c.start, c.program));
    code
}

/// Whether the kernel counts runs: the static key behind `kernel.bpf_stats_enabled` and
/// `BPF_ENABLE_STATS`.
fn counting(kernel: &Kernel) -> Result<bool> {
    let key = kernel.global("bpf_stats_enabled_key", "struct static_key_false")?;
    key.member("key.enabled")?.i32().map(|enabled| enabled > 0)
}

/// What reading one program needs.
struct Reader<'a, 'k> {
    kernel: &'k Kernel,
    btfs: &'a Btfs<'k>,
    uptime_ns: Option<u64>,
    counting: Option<bool>,
}

impl<'k> Reader<'_, 'k> {
    /// One program. Fails only when this kernel has no programs as we know them; one that cannot
    /// be read is listed with the reason.
    fn program(&self, idr_id: u64, at: Kva, remarks: &mut Remarks) -> Result<Program<'k>> {
        let object = self.kernel.object("struct bpf_prog", at)?;
        let id = u32::try_from(idr_id).unwrap_or(u32::MAX);
        let mut info = ProgramInfo {
            id,
            kva: Hex(at.0),
            ..ProgramInfo::default()
        };
        if let Err(error) = self.fill(&object, &mut info, remarks) {
            remarks.anomaly(&format!("programs.{id}"), Some(at), error.to_string());
            info.error = Some(error.to_string());
        }
        Ok(Program { info, object })
    }

    fn fill(&self, prog: &Object<'k>, info: &mut ProgramInfo, remarks: &mut Remarks) -> Result<()> {
        let kernel = self.kernel;
        let section = format!("programs.{}", info.id);
        let section = section.as_str();
        let prog_type = prog.member("type")?.u32()?;
        info.prog_type = enum_word(kernel, "enum bpf_prog_type", "BPF_PROG_TYPE_", prog_type);
        let tag = remarks.ok(section, prog.member("tag").and_then(|tag| tag.bytes()));
        info.tag = tag.map(|tag| tag.iter().map(|byte| format!("{byte:02x}")).collect());
        let flag = |path: &'static str| prog.member(path).and_then(|f| f.bool());
        info.jited = remarks.ok(section, flag("jited"));
        info.sleepable = remarks.ok(section, flag("sleepable"));
        info.gpl_compatible = remarks.ok(section, flag("gpl_compatible"));
        let len = remarks.ok(section, prog.member("len").and_then(|l| l.u32()));
        info.xlated_bytes = len.map(|len| u64::from(len) * 8);
        let pages = remarks.ok(section, prog.member("pages").and_then(|p| p.u32()));
        info.memory_bytes = pages.map(|pages| u64::from(pages) << 12);
        let stats = remarks.ok(section, self.stats(prog));
        info.stats = stats.flatten();

        let aux = prog.member("aux")?.deref()?;
        // Anything else at this address would be believed word by word.
        let their_id = aux.member("id")?.u32()?;
        let back = aux.member("prog")?.ptr()?;
        if their_id != info.id || back != prog.address() {
            return Err(Error::Implausible {
                what: format!("the bpf_prog_aux at {}", aux.address()),
                found: format!("id {their_id} of the program at {back}"),
                why: "it must be of this program",
            });
        }
        info.kernel_name = aux.member("name")?.text()?;
        info.name = match self.function_name(&aux) {
            Ok(Some(name)) => name,
            Ok(None) => info.kernel_name.clone(),
            Err(error) => {
                remarks.missing(&format!("{section}.name"), &error);
                info.kernel_name.clone()
            }
        };
        info.loaded_ns = remarks.ok(section, aux.member("load_time").and_then(|t| t.u64()));
        info.age_ms = self
            .uptime_ns
            .zip(info.loaded_ns)
            .and_then(|(now, then)| now.checked_sub(then))
            .map(|ns| ns / 1_000_000);
        let uid = aux.member("user").and_then(|user| match user.ptr()? {
            Kva::NULL => Ok(None),
            _ => user.deref()?.member("uid.val")?.u32().map(Some),
        });
        info.uid = remarks.ok(section, uid).flatten();
        info.verified_insns =
            remarks.ok(section, aux.member("verified_insns").and_then(|v| v.u32()));
        info.btf_id = remarks
            .ok(section, aux.member("btf").and_then(|btf| btf_id(&btf)))
            .flatten();
        let maps = self.used_maps(&aux, section, remarks);
        info.maps = remarks.ok(section, maps).unwrap_or_default();
        info.source = remarks
            .ok(&format!("{section}.source"), self.first_line(&aux))
            .flatten();
        let range = remarks.ok(section, ksym_range(&aux)).flatten();
        (info.start, info.end) = range.unzip();
        let functions = self.functions(&aux, section, remarks);
        info.functions = remarks.ok(section, functions).unwrap_or_default();
        let len = prog.member("jited_len").and_then(|l| l.u32());
        info.jited_bytes = remarks.ok(section, self.jited_bytes(&aux, len));
        let attach_type = prog.member("expected_attach_type").and_then(|t| t.u32());
        if let Some(attach_type) = remarks.ok(section, attach_type) {
            info.attach_type = self.attach_type(&info.prog_type, attach_type);
        }
        let hook = self.hook(&aux, &info.prog_type, section, remarks);
        info.hook = (hook != ProgramHook::default()).then_some(hook);
        Ok(())
    }

    /// What `expected_attach_type` says. 0 is also what programs without a choice have, and for
    /// struct_ops it is the index of a member.
    fn attach_type(&self, prog_type: &str, attach_type: u32) -> Option<String> {
        let said = match prog_type {
            "struct_ops" => false,
            "cgroup_skb" => true,
            _ => attach_type != 0,
        };
        said.then(|| enum_word(self.kernel, "enum bpf_attach_type", "BPF_", attach_type))
    }

    /// The counters; `None` for a program without any.
    fn stats(&self, prog: &Object<'k>) -> Result<Option<ProgramStats>> {
        let pointer = prog.member("stats")?;
        if pointer.ptr()?.is_null() {
            return Ok(None);
        }
        let mut sum = ProgramStats {
            not_counting: self.counting == Some(false),
            ..ProgramStats::default()
        };
        for cpu in self.kernel.cpus() {
            let stats = pointer.deref_per_cpu(cpu)?;
            // u64_stats_t wraps a local64_t, which wraps an atomic_long_t.
            let one = ProgramCpuStats {
                cpu,
                runs: stats.member("cnt.v.a.a")?.u64()?,
                time_ns: stats.member("nsecs.v.a.a")?.u64()?,
                misses: stats.member("misses.v.a.a")?.u64()?,
            };
            sum.runs = sum.runs.saturating_add(one.runs);
            sum.time_ns = sum.time_ns.saturating_add(one.time_ns);
            sum.misses = sum.misses.saturating_add(one.misses);
            if (one.runs, one.time_ns, one.misses) != (0, 0, 0) {
                sum.per_cpu.push(one);
            }
        }
        Ok(Some(sum))
    }

    /// The name of the function that an aux stands for (`bpf_get_prog_name()`), `None` without
    /// function information.
    fn function_name(&self, aux: &Object<'k>) -> Result<Option<String>> {
        let count = aux.member("func_info_cnt")?.u32()?;
        let index = aux.member("func_idx")?.u32()?;
        let Some(loaded) = self.btfs.of(&aux.member("btf")?)? else {
            return Ok(None);
        };
        let table = aux.member("func_info")?;
        // Functions that the verifier added have no information.
        if index >= count || table.ptr()?.is_null() {
            return Ok(None);
        }
        let info = nth(&table, index)?;
        let ty = TypeId(info.member("type_id")?.u32()?);
        Ok(func_name(&loaded.types, ty))
    }

    fn used_maps(
        &self,
        aux: &Object<'k>,
        section: &str,
        remarks: &mut Remarks,
    ) -> Result<Vec<MapRef>> {
        let count = aux.member("used_map_cnt")?.u32()?;
        let count = bounded(count, MAX_MAPS, &format!("{section}.maps"), remarks);
        let table = aux.member("used_maps")?.ptr()?;
        let mut found = Vec::new();
        for at in pointers(self.kernel, table, count)? {
            if at.is_null() {
                continue;
            }
            match map_ref(self.kernel, at) {
                Ok(map) => found.push(map),
                Err(error) => {
                    remarks.anomaly(&format!("{section}.maps"), Some(at), error.to_string());
                }
            }
        }
        Ok(found)
    }

    /// The first line of the function that an aux stands for; `None` without line information.
    fn first_line(&self, aux: &Object<'k>) -> Result<Option<SourceLine>> {
        let count = line_count(aux)?;
        let index = aux.member("linfo_idx")?.u32()?;
        if index >= count {
            return Ok(None);
        }
        line(self.btfs, aux, index)
    }

    /// The programs behind `aux.func[]`, empty for a program of one function.
    fn func_table(
        &self,
        aux: &Object<'k>,
        section: &str,
        remarks: &mut Remarks,
    ) -> Result<Vec<Object<'k>>> {
        // func_cnt leaves out what the verifier added (6.7 and later).
        let count = aux.first_of(&["real_func_cnt", "func_cnt"])?.u32()?;
        let table = aux.member("func")?.ptr()?;
        if table.is_null() {
            return Ok(Vec::new());
        }
        let count = bounded(
            count,
            MAX_FUNCTIONS,
            &format!("{section}.functions"),
            remarks,
        );
        pointers(self.kernel, table, count)?
            .into_iter()
            .filter(|at| !at.is_null())
            .map(|at| self.kernel.object("struct bpf_prog", at))
            .collect()
    }

    fn functions(
        &self,
        aux: &Object<'k>,
        section: &str,
        remarks: &mut Remarks,
    ) -> Result<Vec<ProgramFunction>> {
        let mut found = Vec::new();
        for func in self.func_table(aux, section, remarks)? {
            let section = format!("{section}.functions");
            match self.function(&func, &section, remarks) {
                Ok(function) => found.push(function),
                Err(error) => remarks.anomaly(&section, Some(func.address()), error.to_string()),
            }
        }
        Ok(found)
    }

    fn function(
        &self,
        func: &Object<'k>,
        section: &str,
        remarks: &mut Remarks,
    ) -> Result<ProgramFunction> {
        let start = func.member("bpf_func")?.ptr()?;
        let len = func.member("jited_len")?.u32()?;
        let aux = func.member("aux")?.deref()?;
        let name = match self.function_name(&aux)? {
            Some(name) => name,
            None => aux.member("name")?.text()?,
        };
        Ok(ProgramFunction {
            name,
            start: Hex(start.0),
            end: Hex(start.0.wrapping_add(u64::from(len))),
            source: remarks.ok(section, self.first_line(&aux)).flatten(),
        })
    }

    /// The size of the machine code, that of all functions together.
    fn jited_bytes(&self, aux: &Object<'k>, own: Result<u32>) -> Result<u32> {
        // The number of functions was remarked on already.
        let functions = self.func_table(aux, "", &mut Remarks::default())?;
        if functions.is_empty() {
            return own;
        }
        let mut sum = 0u32;
        for func in functions {
            sum = sum.saturating_add(func.member("jited_len")?.u32()?);
        }
        Ok(sum)
    }

    /// What the program is attached to, or made for.
    fn hook(
        &self,
        aux: &Object<'k>,
        prog_type: &str,
        section: &str,
        remarks: &mut Remarks,
    ) -> ProgramHook {
        let section = &format!("{section}.hook");
        let mut hook = ProgramHook::default();
        let name = aux
            .member("attach_func_name")
            .and_then(|name| name.string(MAX_NAME));
        hook.name = remarks
            .ok(section, name)
            .flatten()
            .filter(|n| !n.is_empty());
        let type_id = aux.member("attach_btf_id").and_then(|id| id.u32());
        hook.btf_type_id = remarks.ok(section, type_id).filter(|&id| id != 0);
        let btf = aux.member("attach_btf").and_then(|btf| self.btfs.of(&btf));
        let btf = remarks.ok(section, btf).flatten();
        hook.btf = btf.as_ref().map(|btf| match btf.name.as_str() {
            "" => format!("BTF {}", btf.id),
            name => name.to_owned(),
        });
        let type_name = btf.zip(hook.btf_type_id).and_then(|(loaded, id)| {
            let ty = loaded.types.ty(TypeId(id))?;
            Some(loaded.types.name(&ty).to_owned()).filter(|name| !name.is_empty())
        });
        if prog_type == "struct_ops" {
            // 6.16 and later; before, the type alone tells.
            let st_ops = aux.member("st_ops").and_then(|st_ops| match st_ops.ptr()? {
                Kva::NULL => Ok(None),
                _ => struct_ops_name(&st_ops.deref()?).map(Some),
            });
            let st_ops = match st_ops {
                Err(error) if error.is_absent() => None,
                other => remarks.ok(section, other).flatten(),
            };
            hook.ops = st_ops.filter(|n| !n.is_empty()).or(type_name);
            // 7.0 and later; for older kernels the maps are asked.
            if let Ok(assoc) = aux.member("st_ops_assoc") {
                let map = assoc.ptr().and_then(|at| match at {
                    Kva::NULL | PTR_POISON => Ok(None),
                    at => map_ref(self.kernel, at).map(Some),
                });
                hook.map = remarks.ok(section, map).flatten();
            }
            return hook;
        }
        hook.name = hook.name.or(type_name);
        let target = aux.member("dst_prog").and_then(|prog| match prog.ptr()? {
            Kva::NULL => Ok(None),
            _ => self.target(&prog.deref()?).map(Some),
        });
        hook.target = remarks.ok(section, target).flatten();
        hook
    }

    fn target(&self, prog: &Object<'k>) -> Result<NamedId> {
        let aux = prog.member("aux")?.deref()?;
        let name = match self.function_name(&aux)? {
            Some(name) => name,
            None => aux.member("name")?.text()?,
        };
        let id = aux.member("id")?.u32()?;
        Ok(NamedId { id, name })
    }
}

/// The id of what a `struct btf *` points to.
fn btf_id(pointer: &Object<'_>) -> Result<Option<u32>> {
    match pointer.ptr()? {
        Kva::NULL => Ok(None),
        _ => pointer.deref()?.member("id")?.u32().map(Some),
    }
}

/// Where the kernel says that the code is; `None` for a program that is not JITed.
fn ksym_range(aux: &Object<'_>) -> Result<Option<(Hex, Hex)>> {
    let start = aux.member("ksym.start")?.u64()?;
    let end = aux.member("ksym.end")?.u64()?;
    Ok((start != 0).then_some((Hex(start), Hex(end))))
}

/// Element `index` of what a pointer to an array points to.
fn nth<'k>(pointer: &Object<'k>, index: u32) -> Result<Object<'k>> {
    let first = pointer.deref()?;
    let size = first
        .size()
        .ok_or_else(|| Error::NoType(format!("with a size: {}", first.type_name())))?;
    let at = first.address().add(size.wrapping_mul(u64::from(index)));
    Ok(Object::new(first.kernel(), first.ty(), at))
}

fn func_name(btf: &Btf, ty: TypeId) -> Option<String> {
    let ty = btf.ty(ty).filter(|ty| ty.kind == Kind::Func)?;
    Some(btf.name(&ty).to_owned()).filter(|name| !name.is_empty())
}

/// How many lines a program's information has.
fn line_count(aux: &Object<'_>) -> Result<u32> {
    let count = aux.member("nr_linfo")?.u32()?;
    if count > MAX_LINES {
        return Err(Error::Implausible {
            what: "bpf_prog_aux.nr_linfo".into(),
            found: count.to_string(),
            why: "at most a million",
        });
    }
    Ok(count)
}

/// Entry `index` of a program's line information.
fn line(btfs: &Btfs<'_>, aux: &Object<'_>, index: u32) -> Result<Option<SourceLine>> {
    let table = aux.member("linfo")?;
    if table.ptr()?.is_null() {
        return Ok(None);
    }
    let Some(loaded) = btfs.of(&aux.member("btf")?)? else {
        return Ok(None);
    };
    let entry = nth(&table, index)?;
    let text = |offset: u32| loaded.types.string(offset).to_owned();
    let file = text(entry.member("file_name_off")?.u32()?);
    // BPF_LINE_INFO_LINE_NUM(); the column is in the low ten bits.
    let line = entry.member("line_col")?.u32()? >> 10;
    let text = text(entry.member("line_off")?.u32()?);
    Ok((!file.is_empty()).then(|| SourceLine {
        file,
        line,
        text: Some(text.trim().to_owned()).filter(|t| !t.is_empty()),
    }))
}

/// Where the code of each line begins: `jited_linfo[i]` is that of `linfo[i]`. Empty without line
/// information or without machine code.
fn line_starts(aux: &Object<'_>) -> Result<LineStarts> {
    let count = line_count(aux)?;
    let table = aux.member("jited_linfo")?.ptr()?;
    if table.is_null() || count == 0 {
        return Ok(Vec::new());
    }
    let raw = aux.kernel().read_bytes(table, u64::from(count) * 8)?;
    let mut starts: LineStarts = (0..count)
        .filter_map(|i| Some((le_u64(&raw, to_usize(u64::from(i)) * 8)?, i)))
        .collect();
    starts.sort_unstable();
    Ok(starts)
}
