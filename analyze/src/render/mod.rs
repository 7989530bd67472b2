//! Typed values out of bytes: a BTF type and the bytes of a value → [`RenderedValue`].
//!
//! Mirrors what `kernel/bpf/btf.c` prints for a map element, and goes on where that stops:
//! pointers are followed into arenas, map values, per-CPU areas and reference-counted kernel
//! objects ([`pointer`]), and the opaque structs of the BPF library (CPU masks, timers, lists and
//! trees) are shown as what they hold ([`special`]).
//!
//! Bytes, types and everything that a pointer leads to are untrusted: nesting, the bytes followed
//! per value, and the parts of one value and of all values of a [`Scope`] are bounded, and each
//! bound leaves its mark in the value.

mod arena;
mod pointer;
mod special;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use scx_postmortem_format::report::reasons::unsupported as reason;
use scx_postmortem_format::report::{RenderedMember, RenderedValue, hex_string, limits};

pub use self::arena::Arena;
use crate::bytes::{array, to_u64, to_usize};
use crate::kernel::btf::{Kind, Type};
use crate::kernel::{Btf, Kernel, TypeId};
use crate::recover::{Recovered, Target};

/// Levels of JSON objects and arrays in one value. A reader takes 128 in the whole report.
const MAX_DEPTH: usize = 100;
/// Bytes that pointers of one value lead to, all together: forged types could otherwise make a
/// value grow exponentially by sharing targets.
const MAX_CHASED: usize = 1 << 18;
/// Members and elements of one value, all together. What else costs memory or time counts as
/// parts too: bytes, enumerators that are searched, CPUs, text.
const MAX_PARTS: usize = 1 << 18;
/// Bytes without a type, and enumerators, that count as one part.
const BYTES_PER_PART: usize = 8;
const ENUMERATORS_PER_PART: usize = 64;
/// Bytes of a name or a reason that count as one part; few have as many.
const TEXT_PER_PART: usize = 128;
/// Bytes behind pointers that count as one part.
const CHASED_PER_PART: usize = 64;
/// Names of types that are noted of what pointers lead to.
const MAX_REACHED_TYPES: usize = 256;

/// Low 32 bits of the addresses of allocations that the report shows.
pub type Slots = HashSet<u32>;

/// What pointers with a type led to in the arena.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reached {
    /// The pages, each by the low 32 bits of its address.
    pub pages: HashSet<u32>,
    /// The types, as C writes them.
    pub types: BTreeSet<String>,
}

/// What all values of a scope may still have.
struct Budget {
    parts: usize,
    left: AtomicUsize,
    exceeded: AtomicUsize,
}

impl Budget {
    fn new(parts: usize) -> Arc<Self> {
        Arc::new(Self {
            parts,
            left: AtomicUsize::new(parts),
            exceeded: AtomicUsize::new(0),
        })
    }

    /// Takes `parts`; takes what is left and fails when that is less.
    fn take(&self, parts: usize) -> bool {
        // No value of a scope is rendered beside another, so that the order is fixed.
        let left = self.left.load(Ordering::Relaxed);
        self.left
            .store(left.saturating_sub(parts), Ordering::Relaxed);
        if parts > left {
            self.exceeded.store(1, Ordering::Relaxed);
        }
        parts <= left
    }
}

/// What values are read with: the types, and where their pointers lead. All values of one scope
/// share one budget, and are to be rendered one after the other.
pub struct Scope<'k> {
    kernel: &'k Kernel,
    btf: Arc<Btf>,
    arena: Option<Arena>,
    slots: Option<Arc<Slots>>,
    /// Which integers are pointers.
    casts: Option<Arc<Recovered>>,
    budget: Arc<Budget>,
    reached: Mutex<Reached>,
    /// `contains:` tags of list heads and tree roots: by struct and member, the type and member
    /// that the list links.
    contains: OnceLock<HashMap<(TypeId, u32), (String, String)>>,
}

impl<'k> Scope<'k> {
    /// Values of types in `btf`, whose arena pointers lead into `arena`.
    #[must_use]
    pub fn new(kernel: &'k Kernel, btf: Arc<Btf>, arena: Option<Arena>) -> Self {
        Self {
            kernel,
            btf,
            arena,
            slots: None,
            casts: None,
            budget: Budget::new(MAX_PARTS),
            reached: Mutex::default(),
            contains: OnceLock::new(),
        }
    }

    /// The same, with the allocations that the report shows elsewhere: pointers to them are not
    /// followed again.
    #[must_use]
    pub fn with_slots(self, slots: Option<Arc<Slots>>) -> Self {
        Self { slots, ..self }
    }

    /// The same, with the integers that the programs keep pointers in shown as pointers.
    #[must_use]
    pub fn with_casts(self, casts: Option<Arc<Recovered>>) -> Self {
        Self { casts, ..self }
    }

    /// The same, whose values have at most `parts` parts, all together.
    #[must_use]
    pub fn with_parts(self, parts: usize) -> Self {
        Self {
            budget: Budget::new(parts),
            ..self
        }
    }

    /// Values of other types that share this scope's budget, and lead nowhere.
    #[must_use]
    pub fn with_types(&self, btf: Arc<Btf>) -> Self {
        Self {
            budget: Arc::clone(&self.budget),
            ..Self::new(self.kernel, btf, None)
        }
    }

    /// Takes the parts of a value that is shown once more. Whether there were enough left.
    #[must_use]
    pub fn charge(&self, parts: usize) -> bool {
        self.budget.take(parts)
    }

    /// The parts that there were for all values, when they did not suffice.
    #[must_use]
    pub fn exhausted(&self) -> Option<usize> {
        (self.budget.exceeded.load(Ordering::Relaxed) != 0).then_some(self.budget.parts)
    }

    /// The parts taken so far.
    #[must_use]
    pub fn used(&self) -> usize {
        let left = self.budget.left.load(Ordering::Relaxed);
        self.budget.parts.saturating_sub(left)
    }

    /// What pointers led to in the arena since this was last asked.
    #[must_use]
    pub fn reached(&self) -> Reached {
        match self.reached.lock() {
            Ok(mut reached) => std::mem::take(&mut reached),
            Err(_) => Reached::default(),
        }
    }

    /// Bytes without a type, within the budget.
    #[must_use]
    pub fn bytes(&self, bytes: &[u8]) -> RenderedValue {
        if self.charge(bytes.len() / BYTES_PER_PART + 1) {
            bytes_value(bytes)
        } else {
            self.no_parts()
        }
    }

    fn no_parts(&self) -> RenderedValue {
        unsupported(format!(
            "more than {} parts in the values of one map",
            self.budget.parts
        ))
    }

    /// The types.
    #[must_use]
    pub const fn btf(&self) -> &Arc<Btf> {
        &self.btf
    }

    /// The kernel that values are read from.
    #[must_use]
    pub const fn kernel(&self) -> &'k Kernel {
        self.kernel
    }

    /// The arena that pointers lead into.
    #[must_use]
    pub const fn arena(&self) -> Option<&Arena> {
        self.arena.as_ref()
    }

    /// The value of type `ty` in `bytes`.
    #[must_use]
    pub fn render(&self, ty: TypeId, bytes: &[u8]) -> RenderedValue {
        Pass::new(self).value(&self.btf, ty, bytes, 0)
    }

    /// The same for a value that lives at `address`: lists that begin in it can then be walked,
    /// and a pointer back to it is a cycle.
    #[must_use]
    pub fn render_at(&self, ty: TypeId, bytes: &[u8], address: u64) -> RenderedValue {
        let mut pass = Pass::new(self);
        pass.path.push(address);
        pass.at = Some(address);
        pass.value(&self.btf, ty, bytes, 0)
    }
}

/// Bytes without a type.
pub(crate) fn bytes_value(bytes: &[u8]) -> RenderedValue {
    RenderedValue::Bytes {
        hex: hex_string(bytes),
    }
}

fn unsupported(reason: impl Into<String>) -> RenderedValue {
    RenderedValue::Unsupported {
        reason: reason.into(),
    }
}

fn truncated(needed: usize, had: usize, partial: RenderedValue) -> RenderedValue {
    RenderedValue::Truncated {
        needed: to_u64(needed),
        had: to_u64(had),
        partial: Box::new(partial),
    }
}

/// One top-level value being rendered.
struct Pass<'s, 'k> {
    scope: &'s Scope<'k>,
    /// Addresses whose targets are being rendered, outermost first.
    path: Vec<u64>,
    /// Where the bytes being rendered live, when that is known.
    at: Option<u64>,
    /// Whether an integer led to what is being rendered.
    in_cast: bool,
    /// Bytes that pointers may still lead to.
    chase_left: usize,
    /// Members and elements that the value may still have.
    parts_left: usize,
    /// There were not enough of them, or of the scope's.
    exhausted: bool,
}

impl<'s, 'k> Pass<'s, 'k> {
    fn new(scope: &'s Scope<'k>) -> Self {
        Self {
            scope,
            path: Vec::new(),
            at: None,
            in_cast: false,
            chase_left: MAX_CHASED,
            parts_left: MAX_PARTS,
            exhausted: false,
        }
    }

    /// Takes parts of what this value and its scope may still have.
    fn take(&mut self, parts: usize) -> bool {
        let enough = parts <= self.parts_left && self.scope.budget.take(parts);
        self.parts_left = match self.parts_left.checked_sub(parts) {
            Some(left) if enough => left,
            _ => 0,
        };
        self.exhausted |= !enough;
        enough
    }

    /// The same for a name or a sentence.
    fn take_text(&mut self, text: &str) -> bool {
        self.take(text.len() / TEXT_PER_PART)
    }

    fn no_parts(&self) -> RenderedValue {
        if self.scope.exhausted().is_some() {
            return self.scope.no_parts();
        }
        unsupported(format!("more than {MAX_PARTS} parts in one value"))
    }

    /// Fewer bytes than needed, or bytes that are no number.
    fn short(&mut self, needed: u64, bytes: &[u8]) -> RenderedValue {
        let value = self.bytes(bytes);
        truncated(to_usize(needed), bytes.len(), value)
    }

    fn bytes(&mut self, bytes: &[u8]) -> RenderedValue {
        if self.take(bytes.len() / BYTES_PER_PART) {
            bytes_value(bytes)
        } else {
            self.no_parts()
        }
    }

    /// Renders `bytes` as a `ty` of `btf`, which is the scope's or the kernel's. `depth` counts
    /// the JSON levels around the value.
    fn value(&mut self, btf: &Btf, ty: TypeId, bytes: &[u8], depth: usize) -> RenderedValue {
        if depth >= MAX_DEPTH {
            return unsupported(reason::DEPTH);
        }
        if !self.take(1) {
            return self.no_parts();
        }
        let peeled = btf.peel(ty);
        let Some(ty) = btf.ty(peeled) else {
            return unsupported(if peeled.0 == 0 {
                reason::VOID.to_owned()
            } else {
                reason::modifiers(peeled.0)
            });
        };
        match ty.kind {
            Kind::Int => self.int(btf, &ty, bytes),
            Kind::Float => self.float(&ty, bytes),
            Kind::Enum | Kind::Enum64 => self.enumeration(btf, &ty, bytes),
            Kind::Ptr => self.pointer(btf, &ty, bytes, depth),
            Kind::Array => self.array(btf, &ty, bytes, depth),
            Kind::Struct | Kind::Union => self.aggregate(btf, &ty, bytes, depth),
            Kind::Datasec => self.section(btf, &ty, bytes, depth),
            Kind::Var => self.value(btf, ty.target(), bytes, depth + 1),
            Kind::Fwd => unsupported(reason::FORWARD),
            Kind::Func | Kind::FuncProto => unsupported(reason::FUNCTION),
            Kind::Void
            | Kind::Typedef
            | Kind::Volatile
            | Kind::Const
            | Kind::Restrict
            | Kind::DeclTag
            | Kind::TypeTag => unsupported(reason::MODIFIER),
        }
    }

    fn array(&mut self, btf: &Btf, ty: &Type, bytes: &[u8], depth: usize) -> RenderedValue {
        let Some(info) = btf.array(ty.id) else {
            return unsupported(reason::ARRAY_ELEMENT_ID);
        };
        let Some(size) = btf.size_of(info.element).map(to_usize) else {
            return unsupported(reason::ARRAY_ELEMENT_SIZE);
        };
        if info.len == 0 && !bytes.is_empty() {
            return unsupported(reason::flexible_array(bytes.len()));
        }
        let at = self.at;
        let shown = to_usize(u64::from(info.len)).min(limits::MAX_ARRAY_ELEMS);
        let mut elements = Vec::new();
        for i in 0..shown {
            let start = i.saturating_mul(size);
            let rest = bytes.get(start..).unwrap_or_default();
            self.at = at.map(|at| at.wrapping_add(to_u64(start)));
            let whole = rest.get(..size);
            let element = self.value(btf, info.element, whole.unwrap_or(rest), depth + 2);
            let cut = whole.is_none();
            elements.push(match element {
                element if !cut || matches!(element, RenderedValue::Truncated { .. }) => element,
                element => truncated(size, rest.len(), element),
            });
            if cut || self.exhausted {
                break;
            }
        }
        self.at = at;
        RenderedValue::Array {
            len: u64::from(info.len),
            elements,
        }
    }

    fn aggregate(&mut self, btf: &Btf, ty: &Type, bytes: &[u8], depth: usize) -> RenderedValue {
        if let Some(value) = self.special(btf, ty, bytes) {
            return value;
        }
        if !self.take_text(btf.name(ty)) {
            return self.no_parts();
        }
        let size = to_usize(u64::from(ty.size()));
        let at = self.at;
        let mut members = Vec::new();
        for (member, index) in btf.members(ty.id).zip(0u32..) {
            if !self.take_text(member.name) {
                members.push(RenderedMember::new("", self.no_parts()));
                break;
            }
            let bit = to_usize(u64::from(member.bit_offset));
            let offset = bit / 8;
            if offset >= bytes.len() && bytes.len() < size {
                if self.take(1) {
                    continue;
                }
                members.push(RenderedMember::new(member.name, self.no_parts()));
                break;
            }
            let rest = bytes.get(offset..).unwrap_or_default();
            let value = if member.bits != 0 {
                self.bit_field(btf, member.ty, rest, bit % 8, member.bits)
            } else if !bit.is_multiple_of(8) {
                match self.take(1) {
                    true => unsupported(reason::member_offset(member.bit_offset)),
                    false => self.no_parts(),
                }
            } else {
                self.at = at.map(|at| at.wrapping_add(to_u64(offset)));
                match self.recovered(btf, ty.id, offset, member.ty) {
                    Some(target) => self.cast(btf, &target, member.ty, rest, depth + 3),
                    None => self.member(btf, (ty.id, index), member.ty, rest, depth + 3),
                }
            };
            match value {
                RenderedValue::Struct { members: inner, .. } if member.name.is_empty() => {
                    members.extend(inner)
                }
                value => members.push(RenderedMember::new(member.name, value)),
            }
            if self.exhausted {
                break;
            }
        }
        self.at = at;
        let name = btf.name(ty);
        let value = RenderedValue::Struct {
            type_name: (!name.is_empty()).then(|| name.to_owned()),
            members,
        };
        if bytes.len() < size {
            truncated(size, bytes.len(), value)
        } else {
            value
        }
    }

    /// What the programs say of the integer, or the integers, at `offset` of a struct or section.
    fn recovered(&self, btf: &Btf, parent: TypeId, offset: usize, ty: TypeId) -> Option<Target> {
        let casts = self.scope.casts.as_ref()?;
        if !std::ptr::eq(btf, &*self.scope.btf) {
            return None;
        }
        let target = casts.at(parent, u32::try_from(offset).ok()?)?;
        // Another member of a union may be something else.
        let mut element = ty;
        for _ in 0..MAX_DEPTH {
            match btf.array(element) {
                Some(array) => element = array.element,
                None => break,
            }
        }
        let element = btf.ty(btf.peel(element))?;
        (element.kind == Kind::Int && element.size() == 8).then_some(target)
    }

    /// An integer that is a pointer to `target`, or an array of them.
    fn cast(
        &mut self,
        btf: &Btf,
        target: &Target,
        ty: TypeId,
        bytes: &[u8],
        depth: usize,
    ) -> RenderedValue {
        if !self.take(1) {
            return self.no_parts();
        }
        let Some(array) = btf.array(ty) else {
            return match array::<8>(bytes, 0).map(u64::from_le_bytes) {
                Some(value) => self.cast_pointer(btf, target, value, depth),
                None => self.short(8, bytes),
            };
        };
        if depth >= MAX_DEPTH {
            return unsupported(reason::DEPTH);
        }
        let size = btf.size_of(array.element).map_or(8, to_usize).max(8);
        let shown = to_usize(u64::from(array.len)).min(limits::MAX_ARRAY_ELEMS);
        let elements = bytes.chunks(size).take(shown);
        let elements = elements
            .map_while(|bytes| {
                (!self.exhausted).then_some(())?;
                Some(self.cast(btf, target, array.element, bytes, depth + 2))
            })
            .collect();
        RenderedValue::Array {
            len: u64::from(array.len),
            elements,
        }
    }

    /// One member from the bytes at its offset on, `place` being its struct and number.
    fn member(
        &mut self,
        btf: &Btf,
        place: (TypeId, u32),
        ty: TypeId,
        rest: &[u8],
        depth: usize,
    ) -> RenderedValue {
        if let Some(value) = self.owning_container(btf, place, ty, rest, depth) {
            return value;
        }
        match btf.size_of(ty).map(to_usize) {
            // A flexible array takes what is there.
            Some(0) => self.value(btf, ty, rest, depth),
            Some(size) => self.value(btf, ty, rest.get(..size).unwrap_or(rest), depth),
            None if !self.take(1) => self.no_parts(),
            None => unsupported(reason::MEMBER_SIZE),
        }
    }

    /// The variables of a data section.
    fn section(&mut self, btf: &Btf, ty: &Type, bytes: &[u8], depth: usize) -> RenderedValue {
        let at = self.at;
        let mut members = Vec::new();
        for variable in btf.section(ty.id) {
            if !self.take_text(variable.name) {
                members.push(RenderedMember::new("", self.no_parts()));
                break;
            }
            let start = to_usize(u64::from(variable.offset));
            let size = to_usize(u64::from(variable.size));
            let rest = bytes.get(start..).unwrap_or_default();
            self.at = at.map(|at| at.wrapping_add(to_u64(start)));
            let value = match rest.get(..size) {
                Some(bytes) => match self.recovered(btf, ty.id, start, variable.ty) {
                    Some(target) => self.cast(btf, &target, variable.ty, bytes, depth + 3),
                    None => self.value(btf, variable.ty, bytes, depth + 3),
                },
                None => truncated(
                    size,
                    rest.len(),
                    self.value(btf, variable.ty, rest, depth + 4),
                ),
            };
            members.push(RenderedMember::new(variable.name, value));
            if self.exhausted {
                break;
            }
        }
        self.at = at;
        RenderedValue::Struct {
            type_name: Some(btf.name(ty).to_owned()),
            members,
        }
    }

    fn int(&mut self, btf: &Btf, ty: &Type, bytes: &[u8]) -> RenderedValue {
        let Some(info) = btf.integer(ty.id) else {
            return unsupported(reason::modifiers(ty.id.0));
        };
        let Some(bytes) = bytes.get(..to_usize(u64::from(info.size))) else {
            return self.short(u64::from(info.size), bytes);
        };
        if info.bool {
            return RenderedValue::Bool {
                value: bytes.iter().any(|&byte| byte != 0),
            };
        }
        if let (true, [value]) = (info.char, bytes) {
            return RenderedValue::Char { value: *value };
        }
        let bits = info.size.saturating_mul(8);
        // __int128 is left as its bytes.
        let value = (1..=64).contains(&bits).then(|| bits_of(bytes, 0, bits));
        match value.flatten() {
            Some(value) if info.signed => RenderedValue::Int {
                bits,
                value: sign_extend(value, bits),
            },
            Some(value) => RenderedValue::Uint { bits, value },
            None => self.bytes(bytes),
        }
    }

    fn bit_field(
        &mut self,
        btf: &Btf,
        ty: TypeId,
        bytes: &[u8],
        shift: usize,
        width: u32,
    ) -> RenderedValue {
        if !self.take(1) {
            return self.no_parts();
        }
        let Some(info) = btf.integer(ty) else {
            return unsupported(reason::BITFIELD_MODIFIERS);
        };
        if width > 64 {
            return unsupported(reason::bitfield_width(width));
        }
        match bits_of(bytes, shift, width) {
            Some(value) if info.signed => RenderedValue::Int {
                bits: width,
                value: sign_extend(value, width),
            },
            Some(value) => RenderedValue::Uint { bits: width, value },
            None => self.short(u64::from(info.size), bytes),
        }
    }

    fn float(&mut self, ty: &Type, bytes: &[u8]) -> RenderedValue {
        let size = ty.size();
        if bytes.len() < to_usize(u64::from(size)) {
            return self.short(u64::from(size), bytes);
        }
        let value = match size {
            4 => array(bytes, 0).map(f32::from_le_bytes).map(f64::from),
            8 => array(bytes, 0).map(f64::from_le_bytes),
            _ => return unsupported(reason::float_size(to_usize(u64::from(size)))),
        };
        match value {
            Some(value) if value.is_finite() => RenderedValue::Float {
                bits: size * 8,
                value,
            },
            // JSON has no number for it, and readers of the shared format refuse null.
            Some(value) => unsupported(format!("the float {value} has no JSON number")),
            None => self.short(u64::from(size), bytes),
        }
    }

    fn enumeration(&mut self, btf: &Btf, ty: &Type, bytes: &[u8]) -> RenderedValue {
        let Some(info) = btf.integer(ty.id) else {
            return unsupported(reason::modifiers(ty.id.0));
        };
        let bits = info.size.saturating_mul(8);
        if !(1..=64).contains(&bits) {
            return unsupported(format!("enum of {} bytes", info.size));
        }
        let Some(raw) = bits_of(bytes, 0, bits) else {
            return self.short(u64::from(info.size), bytes);
        };
        if !self.take(ty.vlen() / ENUMERATORS_PER_PART) {
            return self.no_parts();
        }
        let mask = u64::MAX >> (64 - bits);
        let variant = btf
            .enumerators(ty.id)
            .find(|(_, v)| v.cast_unsigned() & mask == raw)
            .map(|(name, _)| name.to_owned());
        RenderedValue::Enum {
            bits,
            value: if info.signed {
                sign_extend(raw, bits)
            } else {
                raw.cast_signed()
            },
            variant,
            is_signed: info.signed,
        }
    }
}

/// The low `width` bits of little-endian bytes from bit `shift` on.
fn bits_of(bytes: &[u8], shift: usize, width: u32) -> Option<u64> {
    // `__int128` exists, and is not a number here.
    if width > 64 {
        return None;
    }
    let covered = (shift + to_usize(u64::from(width))).div_ceil(8);
    let mut wide = [0u8; 16];
    wide.get_mut(..covered)?
        .copy_from_slice(bytes.get(..covered)?);
    let value = u128::from_le_bytes(wide) >> shift & ((1u128 << width) - 1);
    u64::try_from(value).ok()
}

/// Extends the sign bit of a `width`-bit number.
const fn sign_extend(value: u64, width: u32) -> i64 {
    let unused = 64 - width;
    (value << unused).cast_signed() >> unused
}
