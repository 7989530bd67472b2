//! Pointers: what they lead to, or why nobody looked.
//!
//! Ways, told apart by the value and its type tags: into an arena; to reference-counted
//! kernel objects (`__kptr`), whose types are the guest kernel's, not those of the program's own
//! `vmlinux.h`; into per-CPU areas (`__percpu_kptr`); and to the program's own structs in map
//! values. Other kernel pointers may be stale by now and are not followed. Integers that the
//! programs use as pointers ([`crate::recover`]) go the same ways; a kernel object that one of them
//! leads to is shown when it is still there.

use scx_postmortem_format::report::reasons::deref as reason;
use scx_postmortem_format::report::reasons::deref::Chase;
use scx_postmortem_format::report::{RenderedValue, reasons};

use super::{Arena, CHASED_PER_PART, MAX_REACHED_TYPES, Pass};
use crate::addr::Kva;
use crate::bytes::{array, low32, to_u64, to_usize};
use crate::kernel::btf::{Kind, Type};
use crate::kernel::{Btf, TypeId};
use crate::recover::{Home, Space, Target};

/// Nested targets that are followed.
const MAX_CHASE: usize = 32;
/// Nested targets that are followed where one of them is behind an integer: those make graphs of
/// what were lists, and every way through a graph would be shown.
const MAX_CAST_CHASE: usize = 3;
/// Largest target that is shown; larger ones are cut.
const MAX_TARGET: usize = 1 << 16;
/// Largest kernel object that is shown whole.
const MAX_KERNEL_OBJECT: u64 = 256;
/// Longest string behind a `char *`.
const MAX_STRING: usize = 256;
const PAGE: u64 = 4096;
/// Addresses below this are user space's.
const KERNEL_SPACE: u64 = 0xff00_0000_0000_0000;

/// The outcome of a chase: the target, or the reason why there is none, or neither when there
/// was nothing to try.
pub(super) type Chased = Result<Option<RenderedValue>, String>;

impl Pass<'_, '_> {
    pub(super) fn pointer(
        &mut self,
        btf: &Btf,
        ty: &Type,
        bytes: &[u8],
        depth: usize,
    ) -> RenderedValue {
        let Some(value) = array(bytes, 0).map(u64::from_le_bytes) else {
            return self.short(8, bytes);
        };
        if value == 0 {
            return RenderedValue::ptr(0);
        }
        let target = ty.target();
        if btf.is_function_pointer(ty.id) {
            return RenderedValue::Ptr {
                value,
                deref: None,
                deref_skipped_reason: None,
                cast_annotation: None,
                symbol: self.scope.kernel.symbolize(Kva(value)),
            };
        }
        let chased = if btf.has_tag(target, "percpu_kptr") {
            self.guarded(value, depth, |pass| {
                pass.per_cpu(btf, target, value, depth + 1)
            })
        } else {
            self.chase(btf, target, value, depth + 1)
        };
        let (deref, deref_skipped_reason) = match chased {
            Ok(deref) => (deref.map(Box::new), None),
            Err(reason) => {
                self.take_text(&reason);
                (None, Some(reason))
            }
        };
        RenderedValue::Ptr {
            value,
            deref,
            deref_skipped_reason,
            cast_annotation: None,
            symbol: None,
        }
    }

    /// An integer that the programs use as a pointer. Which way it is followed, the value
    /// decides; the programs' word is shown when it is not followed.
    pub(super) fn cast_pointer(
        &mut self,
        btf: &Btf,
        target: &Target,
        value: u64,
        depth: usize,
    ) -> RenderedValue {
        let arena = self.scope.arena;
        let place = arena.and_then(|arena| Some((arena, arena.kernel_address(value)?)));
        let into_arena = match place {
            _ if value == 0 => target.space == Space::Arena,
            Some(_) => true,
            None => false,
        };
        let outside = std::mem::replace(&mut self.in_cast, true);
        let chased = if value == 0 {
            Ok(None)
        } else {
            self.guarded(value, depth + 1, |pass| match place {
                Some((arena, at)) => pass.cast_arena(btf, target, &arena, at, value, depth + 1),
                None => pass.cast_kernel(btf, target, value, depth + 1),
            })
        };
        self.in_cast = outside;
        let (deref, deref_skipped_reason) = match chased {
            Ok(deref) => (deref.map(Box::new), None),
            Err(reason) => {
                self.take_text(&reason);
                (None, Some(reason))
            }
        };
        let annotation = if into_arena {
            reasons::CAST_ARENA
        } else {
            reasons::CAST_KERNEL
        };
        RenderedValue::Ptr {
            value,
            deref,
            deref_skipped_reason,
            cast_annotation: Some(annotation.into()),
            symbol: None,
        }
    }

    fn cast_arena(
        &mut self,
        btf: &Btf,
        target: &Target,
        arena: &Arena,
        at: Kva,
        value: u64,
        depth: usize,
    ) -> Chased {
        match target.ty {
            Some(ty) if ty.home == Home::Program => {
                self.chase_arena(btf, ty.id, arena, at, value, depth)
            }
            Some(ty) => Err(reason::arena_kernel_type(
                &self.scope.kernel.btf.describe(ty.id),
                value,
            )),
            None => Err(reason::arena_deferred(value)),
        }
    }

    fn cast_kernel(&mut self, btf: &Btf, target: &Target, value: u64, depth: usize) -> Chased {
        let hinted_arena = target.space == Space::Arena;
        let Some(ty) = target.ty else {
            return Err(reason::outside_arena(value));
        };
        let kernel = self.scope.kernel;
        let types = match ty.home {
            Home::Program => btf,
            Home::Kernel => &kernel.btf,
        };
        let pointee = pointee(types, ty.id, Chase::Kernel)?;
        let failed = || reason::kernel_read_failed(value, to_usize(pointee.size), hinted_arena);
        if value < KERNEL_SPACE {
            return Err(failed());
        }
        let first = kernel.read_u64(Kva(value)).map_err(|_| failed())?;
        if ty.home == Home::Program {
            if first >> 56 == 0xff {
                return Err(reason::kernel_implausible(value));
            }
            return self.kernel_bytes(btf, pointee.ty, value, pointee.size, depth);
        }
        let name = kernel.btf.ty(pointee.ty).map(|ty| kernel.btf.name(&ty));
        let name = name.unwrap_or_default();
        if let Some(mask) = self.cpu_mask_at(name, value) {
            return mask.map(Some);
        }
        if !self.is_live(name, value) {
            return Err(reason::kernel_not_live(name, value));
        }
        Ok(self.identity(name, value))
    }

    /// Follows `value`, a pointer to a `target` of `btf`.
    fn chase(&mut self, btf: &Btf, target: TypeId, value: u64, depth: usize) -> Chased {
        self.guarded(value, depth, |pass| {
            let arena = pass.scope.arena;
            match arena.and_then(|arena| Some((arena, arena.kernel_address(value)?))) {
                Some((arena, at)) => pass.chase_arena(btf, target, &arena, at, value, depth),
                None => pass.chase_kernel(btf, target, value, depth),
            }
        })
    }

    /// Runs `follow` unless the address is being followed already or too many are.
    fn guarded(
        &mut self,
        value: u64,
        depth: usize,
        follow: impl FnOnce(&mut Self) -> Chased,
    ) -> Chased {
        if self.path.contains(&value) {
            return Err(reason::cycle(value));
        }
        // One more struct must fit into the JSON below.
        let most = if self.in_cast {
            MAX_CAST_CHASE
        } else {
            MAX_CHASE
        };
        if self.path.len() >= most || depth + 4 >= super::MAX_DEPTH {
            return Ok(None);
        }
        self.path.push(value);
        let at = self.at.take();
        let chased = follow(self);
        self.at = at;
        self.path.pop();
        chased
    }

    /// Takes `size` bytes from what this value may still follow.
    pub(super) fn spend(&mut self, size: usize) -> Result<usize, String> {
        let size = size.min(MAX_TARGET);
        self.chase_left = self
            .chase_left
            .checked_sub(size)
            .ok_or("the pointers of this value lead to more than is shown")?;
        if !self.take(size / CHASED_PER_PART) {
            return Err("the values of this map have more parts than are shown".into());
        }
        Ok(size)
    }

    /// A target in an arena. `at` is its kernel address.
    fn chase_arena(
        &mut self,
        btf: &Btf,
        target: TypeId,
        arena: &Arena,
        at: Kva,
        value: u64,
        depth: usize,
    ) -> Chased {
        let low = low32(value);
        if self
            .scope
            .slots
            .as_ref()
            .is_some_and(|slots| slots.contains(&low))
        {
            return Err(reason::ALREADY_RENDERED.to_owned());
        }
        let target = pointee(btf, target, Chase::Arena)?;
        let needed = to_usize(target.size);
        let size = self.spend(needed)?;
        let mut bytes = vec![0; size];
        arena
            .fill(self.scope.kernel, at, &mut bytes)
            .map_err(|_| reason::arena_read_failed(needed, value))?;
        self.reach(btf, target.ty, low, size);
        self.at = Some(at.0);
        Ok(Some(self.value(btf, target.ty, &bytes, depth)))
    }

    /// Notes where a pointer led to in the arena.
    fn reach(&self, btf: &Btf, ty: TypeId, low: u32, size: usize) {
        let Ok(mut reached) = self.scope.reached.lock() else {
            return;
        };
        let last = u64::from(low).saturating_add(to_u64(size.saturating_sub(1)));
        let pages = u64::from(low) / PAGE..=last / PAGE;
        let starts = pages.map(|page| low32(page.wrapping_mul(PAGE)));
        reached.pages.extend(starts);
        if reached.types.len() < MAX_REACHED_TYPES {
            reached.types.insert(btf.describe(ty));
        }
    }

    /// A target in kernel memory.
    fn chase_kernel(&mut self, btf: &Btf, target: TypeId, value: u64, depth: usize) -> Chased {
        if value < KERNEL_SPACE {
            return Ok(None);
        }
        let Some(ty) = btf.ty(btf.peel(target)) else {
            return Ok(None);
        };
        let kernel = self.scope.kernel;
        match ty.kind {
            Kind::Struct | Kind::Union | Kind::Fwd => {}
            Kind::Int if ty.size() == 1 => return Ok(self.string(value)),
            _ => return Ok(None),
        }
        // A local copy of a kernel type may be a part of it, under a name with a suffix.
        let name = btf.name(&ty);
        let name = name.split("___").next().unwrap_or(name);
        if let Some(mask) = self.cpu_mask_at(name, value) {
            return mask.map(Some);
        }
        let guest = &kernel.btf;
        let keyword = if ty.kind == Kind::Union || ty.is_union_forward() {
            "union"
        } else {
            "struct"
        };
        let known = guest.find(&format!("{keyword} {name}")).ok();
        match known.and_then(|id| Some((id, guest.size_of(id)?))) {
            Some((id, size)) if size <= MAX_KERNEL_OBJECT && counted(btf, target) => {
                self.kernel_bytes(guest, id, value, size, depth)
            }
            Some(_) if counted(btf, target) => Ok(self.identity(name, value)),
            Some(_) => Ok(None),
            None => {
                let target = pointee(btf, target, Chase::Kernel)?;
                self.kernel_bytes(btf, target.ty, value, target.size, depth)
            }
        }
    }

    fn kernel_bytes(
        &mut self,
        btf: &Btf,
        ty: TypeId,
        value: u64,
        needed: u64,
        depth: usize,
    ) -> Chased {
        if needed == 0 {
            return Err(reason::SIZE_ZERO.to_owned());
        }
        let size = self.spend(to_usize(needed))?;
        let failed = || reason::kernel_read_failed(value, to_usize(needed), false);
        let bytes = self
            .scope
            .kernel
            .read_bytes(Kva(value), to_u64(size))
            .map_err(|_| failed())?;
        self.at = Some(value);
        Ok(Some(self.value(btf, ty, &bytes, depth)))
    }

    /// The string behind a `char *`, when it is one.
    fn string(&mut self, value: u64) -> Option<RenderedValue> {
        let text = self
            .scope
            .kernel
            .read_cstr_bytes(Kva(value), MAX_STRING)
            .ok()?;
        let printable = |&byte: &u8| matches!(byte, b'\n' | b'\t' | 0x20..=0x7e);
        if text.is_empty() || !text.iter().all(printable) {
            return None;
        }
        self.take(text.len()).then_some(())?;
        let elements = text.iter().chain(&[0]);
        Some(RenderedValue::Array {
            len: to_u64(text.len() + 1),
            elements: elements
                .map(|&value| RenderedValue::Char { value })
                .collect(),
        })
    }

    /// Each CPU's instance behind a `__percpu_kptr`.
    fn per_cpu(&mut self, btf: &Btf, target: TypeId, value: u64, depth: usize) -> Chased {
        let target = pointee(btf, target, Chase::Kernel)?;
        let kernel = self.scope.kernel;
        // The allocator hands out the place that holds the per-CPU pointer (bpf_percpu_obj_new);
        // the verifier puts a load before each use.
        let base = kernel
            .read_ptr(Kva(value))
            .map_err(|_| reason::kernel_read_failed(value, 8, false))?;
        let mut elements = Vec::new();
        for cpu in kernel.cpus() {
            let size = self.spend(to_usize(target.size))?;
            let failed = || reason::kernel_read_failed(value, size, false);
            let at = kernel.per_cpu(base, cpu).ok_or_else(failed)?;
            let bytes = kernel.read_bytes(at, to_u64(size)).map_err(|_| failed())?;
            elements.push(self.value(btf, target.ty, &bytes, depth + 2));
        }
        Ok(Some(RenderedValue::Array {
            len: to_u64(elements.len()),
            elements,
        }))
    }
}

/// Whether the pointer holds a reference, so that its target must still be there.
fn counted(btf: &Btf, target: TypeId) -> bool {
    btf.has_tag(target, "kptr")
}

/// A type that a pointer leads to, with its size.
struct Pointee {
    ty: TypeId,
    size: u64,
}

/// What a pointer to `target` leads to. A forward declaration stands for the struct of the same
/// name.
fn pointee(btf: &Btf, target: TypeId, chase: Chase) -> Result<Pointee, String> {
    let peeled = btf.peel(target);
    let Some(ty) = btf.ty(peeled) else {
        return Err(if peeled.0 == 0 {
            reason::void(chase, 0)
        } else {
            reason::unresolvable(chase, peeled.0)
        });
    };
    let id = ty.id.0;
    let complete = match ty.kind {
        Kind::Fwd => {
            let name = btf.name(&ty);
            let keyword = if ty.is_union_forward() {
                "union"
            } else {
                "struct"
            };
            let full = btf.find(&format!("{keyword} {name}"));
            full.map_err(|_| {
                reason::forward(chase, keyword, (!name.is_empty()).then_some(name), id)
            })?
        }
        Kind::Func => return Err(reason::function(chase, id)),
        Kind::FuncProto => return Err(reason::prototype(chase, id)),
        Kind::Datasec => return Err(reason::datasec(chase, id)),
        Kind::Var => return Err(reason::var(chase, id)),
        Kind::DeclTag => return Err(reason::decl_tag(chase, id)),
        _ => peeled,
    };
    match btf.size_of(complete) {
        None => Err(reason::no_size(chase, complete.0)),
        Some(0) => Err(reason::size_zero(chase, complete.0)),
        Some(size) => Ok(Pointee { ty: complete, size }),
    }
}
