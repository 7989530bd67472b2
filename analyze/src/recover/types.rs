//! The two worlds of types that a program lives in: its own BTF, and the guest kernel's.
//!
//! A program brings its own copy of the kernel's structs (`vmlinux.h`, or a few members with
//! `preserve_access_index`). Its instructions have the kernel's offsets, patched in when it was
//! loaded, so a struct that is such a copy stands for the kernel's.

use std::collections::HashMap;
use std::sync::RwLock;

use crate::bytes::to_u64;
use crate::kernel::btf::{Btf, Kind, TypeId};

/// Deepest nesting of structs and arrays that is entered.
const MAX_NESTING: usize = 16;
/// Members that are compared to tell a copy of a kernel struct.
const MAX_COMPARED: usize = 32;
/// Members looked at for one offset.
const MAX_MEMBERS: usize = 4096;

/// Whose type it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Home {
    /// The program's BTF.
    Program,
    /// The guest kernel's.
    Kernel,
}

/// A type of one of the two, without typedefs and qualifiers. Id 0 is void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ty {
    /// Whose.
    pub home: Home,
    /// Its id there.
    pub id: TypeId,
}

impl Ty {
    pub(super) const fn is_void(self) -> bool {
        self.id.0 == 0
    }
}

/// Eight bytes that may be followed: a member of one of the program's own structs (elements of
/// an array all share one), or a variable of one of its sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// The innermost struct, or the section.
    pub parent: TypeId,
    /// Offset in it, bytes.
    pub offset: u32,
}

/// What is at some offset of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaf {
    /// A pointer to a type that is known.
    Pointer(Ty),
    /// An integer of 8 bytes or a `void *`, of the program's own.
    Number(Slot),
    /// Another integer.
    Plain,
    Other,
}

pub(super) struct Types<'b> {
    pub(super) own: &'b Btf,
    pub(super) kernel: &'b Btf,
    standing: RwLock<HashMap<TypeId, Ty>>,
}

impl<'b> Types<'b> {
    pub(super) fn new(own: &'b Btf, kernel: &'b Btf) -> Self {
        Self {
            own,
            kernel,
            standing: RwLock::default(),
        }
    }

    pub(super) const fn btf(&self, home: Home) -> &'b Btf {
        match home {
            Home::Program => self.own,
            Home::Kernel => self.kernel,
        }
    }

    /// The type that a pointer's target stands for: the kernel's for a copy of it, the complete
    /// one for a forward declaration, and of several with one name always the same.
    pub(super) fn standing(&self, home: Home, id: TypeId) -> Ty {
        let btf = self.btf(home);
        let id = btf.peel(id);
        let Some(ty) = btf.ty(id) else {
            let id = TypeId(0);
            return Ty { home, id };
        };
        let keyword = match ty.kind {
            Kind::Struct => "struct",
            Kind::Union => "union",
            Kind::Fwd if ty.is_union_forward() => "union",
            Kind::Fwd => "struct",
            _ => return Ty { home, id },
        };
        let name = btf.name(&ty);
        if home == Home::Kernel {
            let complete = self.kernel.find(&format!("{keyword} {name}"));
            let forward = ty.kind == Kind::Fwd;
            let id = complete.ok().filter(|_| forward).unwrap_or(id);
            return Ty { home, id };
        }
        if let Ok(known) = self.standing.read()
            && let Some(ty) = known.get(&id)
        {
            return *ty;
        }
        let find = |home: Home, name: &str| {
            let id = self.btf(home).find(&format!("{keyword} {name}")).ok()?;
            Some(Ty { home, id })
        };
        let bare = name.split("___").next().unwrap_or(name);
        let found = if name.is_empty() {
            None
        } else if ty.kind == Kind::Fwd || self.own.size_of(id) == Some(0) {
            // Nothing to compare: the program's own struct of that name, else the kernel's.
            let own = find(Home::Program, name).filter(|own| !self.is_copy(own.id, bare));
            own.or_else(|| find(Home::Kernel, bare))
        } else if self.is_copy(id, bare) {
            find(Home::Kernel, bare)
        } else {
            find(Home::Program, name)
        };
        let found = found.unwrap_or(Ty { home, id });
        if let Ok(mut known) = self.standing.write() {
            known.insert(id, found);
        }
        found
    }

    /// Whether the program's struct `id` is a copy of the kernel's `name`: at least half of its
    /// members are there too. (Members that came or went with versions are in the copy or not.)
    fn is_copy(&self, id: TypeId, name: &str) -> bool {
        let union = self.own.ty(id).is_some_and(|ty| ty.kind == Kind::Union);
        let keyword = if union { "union" } else { "struct" };
        let Ok(theirs) = self.kernel.find(&format!("{keyword} {name}")) else {
            return false;
        };
        let (mut compared, mut shared) = (0usize, 0usize);
        let named = self.own.members(id).filter(|m| !m.name.is_empty());
        for member in named.take(MAX_COMPARED) {
            compared += 1;
            let there = self.kernel.field(theirs, member.name);
            shared += usize::from(there.is_ok());
        }
        shared * 2 >= compared
    }

    /// What is at `offset` of `ty`; for an offset within the eight bytes of a number, too.
    pub(super) fn leaf(&self, ty: Ty, offset: i64) -> Leaf {
        let Ok(offset) = u64::try_from(offset) else {
            return Leaf::Other;
        };
        let mut steps = 64;
        self.leaf_in(ty, offset, None, 0, &mut steps)
            .unwrap_or(Leaf::Other)
    }

    /// `slot` is where the value at the start of `ty` is, when that is a member or variable.
    fn leaf_in(
        &self,
        ty: Ty,
        mut offset: u64,
        slot: Option<Slot>,
        depth: usize,
        steps: &mut u32,
    ) -> Option<Leaf> {
        *steps = steps.checked_sub(1)?;
        let btf = self.btf(ty.home);
        let decoded = btf.ty(btf.peel(ty.id))?;
        if depth > MAX_NESTING {
            return None;
        }
        let inner = |id| Ty { home: ty.home, id };
        let own = |slot: Option<Slot>| slot.filter(|_| ty.home == Home::Program);
        match decoded.kind {
            Kind::Ptr if offset == 0 => {
                if btf.is_function_pointer(decoded.id) {
                    return None;
                }
                let target = self.standing(ty.home, decoded.target());
                Some(match (target.is_void(), own(slot)) {
                    (false, _) => Leaf::Pointer(target),
                    (true, Some(slot)) => Leaf::Number(slot),
                    (true, None) => Leaf::Other,
                })
            }
            Kind::Int => Some(match own(slot) {
                Some(slot) if decoded.size() == 8 && offset < 8 => Leaf::Number(slot),
                _ => Leaf::Plain,
            }),
            Kind::Enum | Kind::Enum64 => Some(Leaf::Plain),
            Kind::Array => {
                let array = btf.array(decoded.id)?;
                let size = btf.size_of(array.element).filter(|&size| size > 0)?;
                offset %= size;
                self.leaf_in(inner(array.element), offset, slot, depth + 1, steps)
            }
            Kind::Struct => {
                let (member, start) = self.member_at(ty.home, decoded.id, offset)?;
                let slot = Slot {
                    parent: decoded.id,
                    offset: u32::try_from(start).ok()?,
                };
                self.leaf_in(inner(member), offset - start, Some(slot), depth + 1, steps)
            }
            Kind::Union => {
                // Only what all members agree on.
                let mut found: Option<Leaf> = None;
                for member in btf.members(decoded.id).take(MAX_MEMBERS) {
                    if member.bit_offset != 0 || member.bits != 0 {
                        return None;
                    }
                    if btf.size_of(member.ty).is_some_and(|size| offset >= size) {
                        continue;
                    }
                    let slot = Slot {
                        parent: decoded.id,
                        offset: 0,
                    };
                    let leaf =
                        self.leaf_in(inner(member.ty), offset, Some(slot), depth + 1, steps)?;
                    if found.is_some_and(|found| found != leaf) {
                        return None;
                    }
                    found = Some(leaf);
                }
                found
            }
            Kind::Datasec => {
                let variable = btf.section(decoded.id).find(|v| {
                    let start = u64::from(v.offset);
                    (start..start + u64::from(v.size)).contains(&offset)
                })?;
                let slot = Slot {
                    parent: decoded.id,
                    offset: variable.offset,
                };
                let rest = offset - u64::from(variable.offset);
                self.leaf_in(inner(variable.ty), rest, Some(slot), depth + 1, steps)
            }
            _ => None,
        }
    }

    /// The member of a struct that covers `offset`, and where it begins.
    fn member_at(&self, home: Home, strukt: TypeId, offset: u64) -> Option<(TypeId, u64)> {
        let btf = self.btf(home);
        // Members are in ascending order in C; the last one that begins early enough.
        let mut best = None;
        for member in btf.members(strukt).take(MAX_MEMBERS) {
            let start = u64::from(member.bit_offset / 8);
            if start > offset {
                break;
            }
            if member.bits == 0 && member.bit_offset.is_multiple_of(8) {
                best = Some((member.ty, start));
            } else {
                best = None;
            }
        }
        best.filter(|&(ty, start)| btf.size_of(ty).is_none_or(|s| s == 0 || offset < start + s))
    }

    /// The type of what a pointer to `ty` plus `offset` points to.
    pub(super) fn part(&self, ty: Ty, offset: i64) -> Option<Ty> {
        let btf = self.btf(ty.home);
        let mut offset = u64::try_from(offset).ok()?;
        let mut id = btf.peel(ty.id);
        for _ in 0..MAX_NESTING {
            let decoded = btf.ty(id);
            let whole = offset == 0;
            match decoded.map(|d| d.kind) {
                Some(Kind::Datasec) => {
                    let variable = btf.section(id).find(|v| {
                        let start = u64::from(v.offset);
                        (start..start + u64::from(v.size)).contains(&offset)
                    })?;
                    offset -= u64::from(variable.offset);
                    id = btf.peel(variable.ty);
                }
                Some(Kind::Array) => {
                    // A pointer to an array is one to its elements.
                    let element = btf.array(id)?.element;
                    offset %= btf.size_of(element).filter(|&s| s > 0)?;
                    id = btf.peel(element);
                }
                _ if whole => return Some(self.standing(ty.home, id)),
                Some(Kind::Struct) => {
                    let (member, start) = self.member_at(ty.home, id, offset)?;
                    offset -= start;
                    id = btf.peel(member);
                }
                _ => return None,
            }
        }
        None
    }

    /// Whether a pointer to `outer` is one to `inner` too: as its first member, or that one's.
    pub(super) fn begins_with(&self, outer: Ty, inner: Ty) -> bool {
        let btf = self.btf(outer.home);
        let mut id = btf.peel(outer.id);
        for _ in 0..MAX_NESTING {
            if self.standing(outer.home, id) == inner {
                return true;
            }
            let Some(ty) = btf.ty(id).filter(|ty| ty.kind == Kind::Struct) else {
                return false;
            };
            let Some(first) = btf.members(ty.id).next() else {
                return false;
            };
            if first.bit_offset != 0 || first.bits != 0 {
                return false;
            }
            id = btf.peel(first.ty);
        }
        false
    }

    /// Where a pointer to `ty` plus `offset` can lead when some multiple of `stride` is added:
    /// to another element of the array that it leads into, which all look alike.
    pub(super) fn indexed(&self, ty: Ty, offset: i64, stride: u64) -> Option<i64> {
        let btf = self.btf(ty.home);
        let fits = |size: u64| size > 0 && stride.is_multiple_of(size);
        let decoded = btf.ty(btf.peel(ty.id))?;
        // A pointer to the first of several.
        if decoded.kind != Kind::Datasec && btf.size_of(ty.id).is_some_and(fits) {
            return Some(offset);
        }
        let mut rest = u64::try_from(offset).ok()?;
        let mut id = decoded.id;
        for _ in 0..MAX_NESTING {
            let decoded = btf.ty(id)?;
            match decoded.kind {
                Kind::Struct => {
                    let (member, start) = self.member_at(ty.home, id, rest)?;
                    rest -= start;
                    id = btf.peel(member);
                }
                Kind::Datasec => {
                    let variable = btf.section(id).find(|v| {
                        let start = u64::from(v.offset);
                        (start..start + u64::from(v.size)).contains(&rest)
                    })?;
                    rest -= u64::from(variable.offset);
                    id = btf.peel(variable.ty);
                }
                Kind::Array => {
                    let array = btf.array(id)?;
                    let size = btf.size_of(array.element).filter(|&s| s > 0)?;
                    let element = rest - rest % size;
                    if fits(size) {
                        return offset.checked_sub(i64::try_from(element).ok()?);
                    }
                    rest %= size;
                    id = btf.peel(array.element);
                }
                _ => return None,
            }
        }
        None
    }

    /// The size of a type, bytes; 0 when it has none.
    pub(super) fn size(&self, ty: Ty) -> u64 {
        self.btf(ty.home).size_of(ty.id).unwrap_or(0)
    }

    /// The name of a slot: of its struct or section, and of the member or variable.
    pub(super) fn slot_name(&self, slot: Slot) -> (String, String) {
        let parent = self.own.describe(slot.parent);
        let variable = self
            .own
            .section(slot.parent)
            .find(|v| v.offset == slot.offset);
        let member = self
            .own
            .members(slot.parent)
            .filter(|m| u64::from(m.bit_offset) == to_u64(8) * u64::from(slot.offset))
            .find(|m| !m.name.is_empty());
        let name = variable
            .map(|v| v.name)
            .or_else(|| member.map(|m| m.name))
            .unwrap_or_default();
        (parent, name.to_owned())
    }

    /// Whether a slot is declared as an integer, or an array of them.
    pub(super) fn is_integer(&self, slot: Slot) -> bool {
        let section = self.own.section(slot.parent);
        let variable = section.into_iter().find(|v| v.offset == slot.offset);
        let ty = variable.map(|v| v.ty).or_else(|| {
            let mut members = self.own.members(slot.parent);
            let at = |offset: u32| offset / 8 == slot.offset && offset.is_multiple_of(8);
            Some(members.find(|m| m.bits == 0 && at(m.bit_offset))?.ty)
        });
        let Some(mut id) = ty.map(|ty| self.own.peel(ty)) else {
            return false;
        };
        for _ in 0..MAX_NESTING {
            match self.own.array(id) {
                Some(array) => id = self.own.peel(array.element),
                None => break,
            }
        }
        self.own.ty(id).is_some_and(|ty| ty.kind == Kind::Int) && self.own.size_of(id) == Some(8)
    }
}
