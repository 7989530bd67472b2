//! BTF, indexed once over its raw bytes.
//!
//! Format: `include/uapi/linux/btf.h`, `Documentation/bpf/btf.rst`. A report needs some two
//! hundred of the hundred thousand types of a kernel, and has to be ready in a tenth of a
//! second; decoding all of them first costs more than that. So one pass notes where each type
//! begins and which named types there are; everything else is decoded on demand.
//!
//! The blob is untrusted: every offset is checked, chains of modifiers and nested anonymous
//! members are bounded.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use crate::bytes::{le_u16, le_u32, to_usize};
use crate::error::{Error, Result};

const MAGIC: u16 = 0xeb9f;
/// `BTF_MAX_TYPE` is 2^20 - 1.
const MAX_TYPES: usize = 1 << 20;
/// Longest string that is believed: names have at most 512 bytes (`KSYM_NAME_LEN`), and scanning
/// for an end that is megabytes away would be paid for every member.
const MAX_STRING: usize = 4096;
/// Longest chain of typedefs and qualifiers.
const MAX_MODIFIERS: usize = 32;
/// Deepest nesting of anonymous structs that a member search enters.
const MAX_NESTING: usize = 16;
/// Slots that a search by name looks at; real kernels need some twenty.
const MAX_PROBES: usize = 1024;
/// Members that one search looks at, nested ones included: task_struct has some 300.
const MAX_SEARCHED: usize = 100_000;

/// The id of a type within one BTF blob; 0 is void.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub u32);

/// The kinds of `BTF_KIND_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are those of the BTF specification")]
pub enum Kind {
    Void,
    Int,
    Ptr,
    Array,
    Struct,
    Union,
    Enum,
    Fwd,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Func,
    FuncProto,
    Var,
    Datasec,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

impl Kind {
    const fn from_wire(kind: u32) -> Option<Self> {
        Some(match kind {
            1 => Self::Int,
            2 => Self::Ptr,
            3 => Self::Array,
            4 => Self::Struct,
            5 => Self::Union,
            6 => Self::Enum,
            7 => Self::Fwd,
            8 => Self::Typedef,
            9 => Self::Volatile,
            10 => Self::Const,
            11 => Self::Restrict,
            12 => Self::Func,
            13 => Self::FuncProto,
            14 => Self::Var,
            15 => Self::Datasec,
            16 => Self::Float,
            17 => Self::DeclTag,
            18 => Self::TypeTag,
            19 => Self::Enum64,
            _ => return None,
        })
    }

    /// Bytes that follow the common 12 for a type with `vlen` elements.
    const fn extra(self, vlen: usize) -> usize {
        match self {
            Self::Int | Self::Var | Self::DeclTag => 4,
            Self::Array => 12,
            Self::Struct | Self::Union | Self::Datasec | Self::Enum64 => vlen * 12,
            Self::Enum | Self::FuncProto => vlen * 8,
            _ => 0,
        }
    }

    /// How C writes it before a name.
    #[must_use]
    pub const fn keyword(self) -> &'static str {
        match self {
            Self::Struct => "struct ",
            Self::Union => "union ",
            Self::Enum | Self::Enum64 => "enum ",
            _ => "",
        }
    }
}

/// One decoded type header.
#[derive(Debug, Clone, Copy)]
pub struct Type {
    /// Its id.
    pub id: TypeId,
    /// Its kind.
    pub kind: Kind,
    name_off: u32,
    vlen: usize,
    kflag: bool,
    /// `size` or `type`, depending on the kind.
    word: u32,
    /// Where the kind's own data begins.
    at: usize,
}

impl Type {
    /// The referenced type, for kinds that refer to one.
    #[must_use]
    pub const fn target(&self) -> TypeId {
        TypeId(self.word)
    }

    /// The size of a struct, union, enum, integer, float or section, bytes.
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.word
    }

    /// For a forward declaration: whether it is of a union.
    #[must_use]
    pub const fn is_union_forward(&self) -> bool {
        matches!(self.kind, Kind::Fwd) && self.kflag
    }

    /// How many members, enumerators, parameters or section variables it has.
    #[must_use]
    pub const fn vlen(&self) -> usize {
        self.vlen
    }
}

/// A member of a struct or union.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// Its name, empty for an anonymous struct or union.
    pub name: &'a str,
    /// Its type.
    pub ty: TypeId,
    /// Offset from the start of the struct, bits.
    pub bit_offset: u32,
    /// Width in bits of a bit field, else 0.
    pub bits: u32,
}

/// Where a member path leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Offset in bytes from the start of the outermost struct; for a bit field, of the byte
    /// that holds its lowest bit.
    pub offset: u64,
    /// The member's type.
    pub ty: TypeId,
    /// For a bit field: the lowest bit within the byte at `offset`, and the width.
    pub bits: Option<(u32, u32)>,
}

/// An integer as BTF describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntInfo {
    /// Size of its storage, bytes.
    pub size: u32,
    /// Whether it is signed.
    pub signed: bool,
    /// Whether it is encoded as a character. Compilers leave this out for `char`.
    pub char: bool,
    /// Whether it is a `bool`.
    pub bool: bool,
}

/// An array type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArrayInfo {
    /// The element type.
    pub element: TypeId,
    /// Number of elements. pahole flattens arrays of arrays: this is then the product.
    pub len: u32,
}

/// A tag that the source put on a declaration (`btf_decl_tag`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeclTag<'a> {
    /// What the tag says.
    pub name: &'a str,
    /// The type or variable that has it.
    pub target: TypeId,
    /// The number of the member or parameter, when the tag is on one.
    pub component: Option<u32>,
}

/// A variable of a data section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionVariable<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type.
    pub ty: TypeId,
    /// Offset from the start of the section, bytes.
    pub offset: u32,
    /// Its size, bytes.
    pub size: u32,
}

/// One BTF blob, with the blob that it continues when it is split BTF (a kernel module's).
pub struct Btf {
    data: Vec<u8>,
    strings: std::ops::Range<usize>,
    base: Option<Arc<Btf>>,
    /// The lowest id that is this blob's own: 0, or the base's number of types.
    first: usize,
    /// Start of each own type in `data`; without a base, index 0 (void) is unused.
    starts: Vec<u32>,
    /// Open-addressing table of the ids of named structs, unions, enums, typedefs, integers,
    /// variables and sections; 0 is an empty slot.
    names: Vec<u32>,
}

impl std::fmt::Debug for Btf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Btf")
            .field("types", &self.len())
            .finish_non_exhaustive()
    }
}

/// Whether types of this kind are found by name.
const fn indexed(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Struct
            | Kind::Union
            | Kind::Enum
            | Kind::Enum64
            | Kind::Typedef
            | Kind::Int
            | Kind::Var
            | Kind::Datasec
    )
}

fn hash(name: &[u8]) -> usize {
    // DefaultHasher::default() has fixed keys, and the order of the table is never visible.
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(name);
    to_usize(hash)
}

impl Btf {
    /// Indexes a blob.
    ///
    /// # Errors
    /// [`Error::Implausible`] when it is not BTF, is cut short or holds a kind that this reader
    /// does not know (whose length is then unknown too).
    pub fn parse(data: Vec<u8>) -> Result<Self> {
        Self::parse_over(data, None)
    }

    /// Indexes split BTF: its ids and strings continue those of `base`.
    ///
    /// # Errors
    /// As [`Btf::parse`].
    pub fn parse_split(data: Vec<u8>, base: Arc<Self>) -> Result<Self> {
        Self::parse_over(data, Some(base))
    }

    fn parse_over(data: Vec<u8>, base: Option<Arc<Self>>) -> Result<Self> {
        let bad = |what: &str, found: String, why| Error::Implausible {
            what: format!("BTF {what}"),
            found,
            why,
        };
        let magic = le_u16(&data, 0).unwrap_or(0);
        if magic != MAGIC {
            return Err(bad("magic", format!("{magic:#x}"), "0xeb9f"));
        }
        // The header grows: never use its C size.
        let word = |at| le_u32(&data, at).map(|w| to_usize(u64::from(w)));
        let header = (|| Some((word(4)?, word(8)?, word(12)?, word(16)?, word(20)?)))();
        let Some((hdr_len, type_off, type_len, str_off, str_len)) = header else {
            return Err(bad(
                "header",
                format!("{} bytes", data.len()),
                "at least 24 bytes",
            ));
        };
        let section = |off: usize, len: usize| {
            let start = hdr_len.checked_add(off)?;
            let end = start.checked_add(len)?;
            (end <= data.len()).then_some(start..end)
        };
        let (Some(types), Some(strings)) = (section(type_off, type_len), section(str_off, str_len))
        else {
            return Err(bad(
                "section bounds",
                format!("{type_len}+{str_len} bytes"),
                "within the blob",
            ));
        };

        let first = base.as_ref().map_or(0, |base| base.len());
        let mut starts = Vec::with_capacity((types.len() / 32).min(MAX_TYPES));
        if base.is_none() {
            starts.push(0);
        }
        let mut named = Vec::new();
        let mut at = types.start;
        while at < types.end {
            let id = first + starts.len();
            let header = le_u32(&data, at).zip(le_u32(&data, at + 4));
            let Some((name_off, info)) = header else {
                return Err(bad(
                    "type",
                    format!("id {id} cut short"),
                    "12 bytes or more",
                ));
            };
            let vlen = to_usize(u64::from(info & 0xffff));
            let Some(kind) = Kind::from_wire(info >> 24 & 0x1f) else {
                let found = format!("{} at id {id}", info >> 24 & 0x1f);
                return Err(bad("kind", found, "1 to 19"));
            };
            if id >= MAX_TYPES {
                return Err(bad("type count", id.to_string(), "below 2^20"));
            }
            if name_off != 0 && indexed(kind) {
                named.push(u32::try_from(id).unwrap_or(0));
            }
            starts.push(u32::try_from(at).unwrap_or(u32::MAX));
            at = at.saturating_add(12 + kind.extra(vlen));
        }
        if at > types.end {
            return Err(bad(
                "type section",
                "its last type cut short".into(),
                "whole types",
            ));
        }
        let mut btf = Self {
            data,
            strings,
            base,
            first,
            starts,
            names: Vec::new(),
        };
        btf.index(&named);
        Ok(btf)
    }

    fn index(&mut self, named: &[u32]) {
        let size = (named.len() * 2).next_power_of_two().max(2);
        let mut table = vec![0u32; size];
        for &id in named {
            let Some((kind, name)) = self
                .ty(TypeId(id))
                .map(|ty| (ty.kind, self.raw_name(ty.name_off)))
            else {
                continue;
            };
            let mut slot = hash(name) & (size - 1);
            // Of types that share kind and name the first stays, and nothing is put further
            // than a search goes: forged names can neither fill the table nor slow it down.
            for _ in 0..MAX_PROBES {
                let Some(entry) = table.get_mut(slot) else {
                    break;
                };
                if *entry == 0 {
                    *entry = id;
                    break;
                }
                let same = self
                    .ty(TypeId(*entry))
                    .is_some_and(|ty| ty.kind == kind && self.raw_name(ty.name_off) == name);
                if same {
                    break;
                }
                slot = (slot + 1) & (size - 1);
            }
        }
        self.names = table;
    }

    /// Number of types, void and the base's included: one more than the highest id.
    #[must_use]
    pub fn len(&self) -> usize {
        self.first + self.starts.len()
    }

    /// Whether there is no type but void.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() <= 1
    }

    /// The ids that are this blob's own, ascending.
    pub fn own_ids(&self) -> impl Iterator<Item = TypeId> {
        (self.first.max(1)..self.len()).filter_map(|id| Some(TypeId(u32::try_from(id).ok()?)))
    }

    /// The blob that holds a type: this one, or its base.
    fn home(&self, id: TypeId) -> &Self {
        match &self.base {
            Some(base) if to_usize(u64::from(id.0)) < self.first => base.home(id),
            _ => self,
        }
    }

    /// Bytes of strings, the base's included: where the strings of a split blob begin.
    fn strings_len(&self) -> usize {
        self.strings.len() + self.base.as_ref().map_or(0, |base| base.strings_len())
    }

    fn raw_name(&self, offset: u32) -> &[u8] {
        let mut offset = to_usize(u64::from(offset));
        let mut home = self;
        // At most the two levels that the kernel has: a module over vmlinux.
        while let Some(base) = &home.base {
            match offset.checked_sub(base.strings_len()) {
                Some(own) => {
                    offset = own;
                    break;
                }
                None => home = base,
            }
        }
        let strings = home.data.get(home.strings.clone()).unwrap_or_default();
        let from = strings.get(offset..).unwrap_or_default();
        let from = from.get(..MAX_STRING).unwrap_or(from);
        from.get(..memchr::memchr(0, from).unwrap_or(0))
            .unwrap_or_default()
    }

    /// The string at an offset into the string section, as line information has them; empty for
    /// one that is not there or longer than 4 KiB.
    #[must_use]
    pub fn string(&self, offset: u32) -> &str {
        std::str::from_utf8(self.raw_name(offset)).unwrap_or("")
    }

    /// Decodes a type. `None` for void and for ids that the blob does not have.
    #[must_use]
    pub fn ty(&self, id: TypeId) -> Option<Type> {
        let home = self.home(id);
        let index = to_usize(u64::from(id.0));
        if index == 0 {
            return None;
        }
        let start = to_usize(u64::from(*home.starts.get(index - home.first)?));
        let info = le_u32(&home.data, start + 4)?;
        Some(Type {
            id,
            kind: Kind::from_wire(info >> 24 & 0x1f)?,
            name_off: le_u32(&home.data, start)?,
            vlen: to_usize(u64::from(info & 0xffff)),
            kflag: info >> 31 == 1,
            word: le_u32(&home.data, start + 8)?,
            at: start + 12,
        })
    }

    /// A type's own name, empty when it has none.
    #[must_use]
    pub fn name(&self, ty: &Type) -> &str {
        self.string(ty.name_off)
    }

    /// The type as C writes it, for messages: `struct rq`, `int`, `struct task_struct *`.
    #[must_use]
    pub fn describe(&self, id: TypeId) -> String {
        self.describe_nested(id, 0)
    }

    fn describe_nested(&self, id: TypeId, depth: usize) -> String {
        let Some(ty) = self.ty(id) else {
            return "void".into();
        };
        let name = self.name(&ty);
        match ty.kind {
            _ if depth > MAX_MODIFIERS => "a cycle of types".into(),
            Kind::Ptr => format!("{} *", self.describe_nested(ty.target(), depth + 1)),
            Kind::Array => match self.array(id) {
                Some(outer) => {
                    // As C writes them: the outer length first.
                    let (mut lengths, mut element) = (format!("[{}]", outer.len), outer.element);
                    for _ in depth..MAX_MODIFIERS {
                        let Some(inner) = self.array(element) else {
                            break;
                        };
                        lengths.push_str(&format!("[{}]", inner.len));
                        element = inner.element;
                    }
                    format!("{}{lengths}", self.describe_nested(element, depth + 1))
                }
                None => "an array".into(),
            },
            Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag => {
                self.describe_nested(ty.target(), depth + 1)
            }
            kind if name.is_empty() => format!("an anonymous {}", kind.keyword().trim_end()),
            kind => format!("{}{name}", kind.keyword()),
        }
    }

    /// The first type of this name whose kind `accept` takes, the base's before its own.
    fn find_kind(&self, name: &str, accept: impl Fn(Kind) -> bool + Copy) -> Option<TypeId> {
        let in_base = self.base.as_ref().and_then(|b| b.find_kind(name, accept));
        in_base.or_else(|| self.find_own(name, accept))
    }

    fn find_own(&self, name: &str, accept: impl Fn(Kind) -> bool) -> Option<TypeId> {
        let mask = self.names.len().checked_sub(1)?;
        let mut slot = hash(name.as_bytes()) & mask;
        let mut best: Option<TypeId> = None;
        for _ in 0..MAX_PROBES {
            let id = TypeId(*self.names.get(slot)?);
            if id.0 == 0 {
                break;
            }
            let hit = self
                .ty(id)
                .is_some_and(|ty| accept(ty.kind) && self.raw_name(ty.name_off) == name.as_bytes());
            // The lowest id, whatever order the table has.
            if hit && best.is_none_or(|b| id < b) {
                best = Some(id);
            }
            slot = (slot + 1) & mask;
        }
        best
    }

    /// Finds a type by its C name: `struct rq`, `union foo`, `enum bar`, else a typedef or
    /// integer.
    ///
    /// # Errors
    /// [`Error::NoType`].
    pub fn find(&self, name: &str) -> Result<TypeId> {
        let found = if let Some(tag) = name.strip_prefix("struct ") {
            self.find_kind(tag, |k| k == Kind::Struct)
        } else if let Some(tag) = name.strip_prefix("union ") {
            self.find_kind(tag, |k| k == Kind::Union)
        } else if let Some(tag) = name.strip_prefix("enum ") {
            self.find_kind(tag, |k| matches!(k, Kind::Enum | Kind::Enum64))
        } else {
            self.find_kind(name, |k| matches!(k, Kind::Typedef | Kind::Int))
        };
        found.ok_or_else(|| Error::NoType(name.to_owned()))
    }

    /// The type of a global variable. Kernels list per-CPU variables only.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<TypeId> {
        let id = self.find_kind(name, |k| k == Kind::Var)?;
        Some(self.ty(id)?.target())
    }

    /// Strips typedefs, qualifiers and tags.
    #[must_use]
    pub fn peel(&self, mut id: TypeId) -> TypeId {
        for _ in 0..MAX_MODIFIERS {
            match self.ty(id) {
                Some(ty)
                    if matches!(
                        ty.kind,
                        Kind::Typedef
                            | Kind::Volatile
                            | Kind::Const
                            | Kind::Restrict
                            | Kind::TypeTag
                            | Kind::DeclTag
                    ) =>
                {
                    id = ty.target();
                }
                _ => break,
            }
        }
        id
    }

    /// Size of a value of this type, bytes; `None` for functions, void and forward declarations.
    #[must_use]
    pub fn size_of(&self, id: TypeId) -> Option<u64> {
        let mut count: u64 = 1;
        let mut id = self.peel(id);
        for _ in 0..MAX_MODIFIERS {
            let ty = self.ty(id)?;
            let size = match ty.kind {
                Kind::Ptr => 8,
                Kind::Array => {
                    let array = self.array(id)?;
                    count = count.checked_mul(u64::from(array.len))?;
                    id = self.peel(array.element);
                    continue;
                }
                Kind::Int
                | Kind::Struct
                | Kind::Union
                | Kind::Enum
                | Kind::Enum64
                | Kind::Float
                | Kind::Datasec => u64::from(ty.word),
                _ => return None,
            };
            return count.checked_mul(size);
        }
        None
    }

    /// The element type and length when `id` is an array.
    #[must_use]
    pub fn array(&self, id: TypeId) -> Option<ArrayInfo> {
        let ty = self.ty(self.peel(id)).filter(|ty| ty.kind == Kind::Array)?;
        let word = |at| le_u32(&self.home(ty.id).data, ty.at + at);
        Some(ArrayInfo {
            element: TypeId(word(0)?),
            len: word(8)?,
        })
    }

    /// The innermost element and the number of them when `id` is an array, or an array of
    /// arrays. Kernels up to 7.3.4 as Debian builds them flatten those in their BTF, 7.2.13 does
    /// not: it depends on the program that wrote the BTF.
    #[must_use]
    pub fn flat_array(&self, id: TypeId) -> Option<ArrayInfo> {
        let mut whole = self.array(id)?;
        for _ in 0..MAX_MODIFIERS {
            let Some(inner) = self.array(whole.element) else {
                return Some(whole);
            };
            whole = ArrayInfo {
                element: inner.element,
                len: whole.len.checked_mul(inner.len)?,
            };
        }
        None
    }

    /// Size and sign when `id` is an integer or enum.
    #[must_use]
    pub fn integer(&self, id: TypeId) -> Option<IntInfo> {
        let ty = self.ty(self.peel(id))?;
        match ty.kind {
            // Encoding byte: bit 0 of bits 24..28 is "signed".
            Kind::Int => {
                let encoding = le_u32(&self.home(ty.id).data, ty.at)?;
                Some(IntInfo {
                    size: ty.word,
                    signed: encoding >> 24 & 1 == 1,
                    char: encoding >> 25 & 1 == 1,
                    bool: encoding >> 26 & 1 == 1,
                })
            }
            Kind::Enum | Kind::Enum64 => Some(IntInfo {
                size: ty.word,
                signed: ty.kflag,
                char: false,
                bool: false,
            }),
            _ => None,
        }
    }

    /// The pointee when `id` is a pointer.
    #[must_use]
    pub fn pointee(&self, id: TypeId) -> Option<TypeId> {
        self.ty(self.peel(id))
            .filter(|ty| ty.kind == Kind::Ptr)
            .map(|ty| ty.target())
    }

    /// Whether `id` is a pointer to a function.
    #[must_use]
    pub fn is_function_pointer(&self, id: TypeId) -> bool {
        let target = self
            .pointee(id)
            .and_then(|target| self.ty(self.peel(target)));
        target.is_some_and(|ty| ty.kind == Kind::FuncProto)
    }

    /// The return type of a function or its prototype.
    #[must_use]
    pub fn return_type(&self, id: TypeId) -> Option<TypeId> {
        self.prototype(id).map(|ty| ty.target())
    }

    /// The parameters of a function or its prototype, name and type; nothing for other types.
    pub fn parameters(&self, id: TypeId) -> impl Iterator<Item = (&str, TypeId)> {
        self.prototype(id).into_iter().flat_map(move |ty| {
            let data = &self.home(ty.id).data;
            (0..ty.vlen).map_while(move |i| {
                let at = ty.at + i * 8;
                Some((
                    self.string(le_u32(data, at)?),
                    TypeId(le_u32(data, at + 4)?),
                ))
            })
        })
    }

    fn prototype(&self, id: TypeId) -> Option<Type> {
        let ty = self.ty(self.peel(id))?;
        let ty = if ty.kind == Kind::Func {
            self.ty(ty.target())?
        } else {
            ty
        };
        (ty.kind == Kind::FuncProto).then_some(ty)
    }

    /// Whether a function can be called from other objects (`BTF_FUNC_GLOBAL`): the verifier
    /// then goes by its prototype alone.
    #[must_use]
    pub fn is_global_function(&self, id: TypeId) -> bool {
        self.ty(id)
            .is_some_and(|ty| ty.kind == Kind::Func && ty.vlen == 1)
    }

    /// The members of a struct or union, in declaration order; nothing for other types.
    pub fn members(&self, id: TypeId) -> impl Iterator<Item = Member<'_>> {
        let ty = self
            .ty(self.peel(id))
            .filter(|ty| matches!(ty.kind, Kind::Struct | Kind::Union));
        ty.into_iter().flat_map(move |ty| {
            let data = &self.home(ty.id).data;
            (0..ty.vlen).map_while(move |i| {
                let at = ty.at + i * 12;
                let offset = le_u32(data, at + 8)?;
                Some(Member {
                    name: self.string(le_u32(data, at)?),
                    ty: TypeId(le_u32(data, at + 4)?),
                    bit_offset: if ty.kflag {
                        offset & 0x00ff_ffff
                    } else {
                        offset
                    },
                    bits: if ty.kflag { offset >> 24 } else { 0 },
                })
            })
        })
    }

    /// Resolves a dotted member path, entering anonymous structs and unions as C does.
    ///
    /// # Errors
    /// [`Error::NoMember`] naming the struct in which the path ended, and the part not found.
    pub fn field(&self, strukt: TypeId, path: &str) -> Result<Field> {
        let mut field = Field {
            offset: 0,
            ty: strukt,
            bits: None,
        };
        for name in path.split('.') {
            let mut budget = MAX_SEARCHED;
            let found =
                self.member(field.ty, name, 0, &mut budget)
                    .ok_or_else(|| Error::NoMember {
                        strukt: self.describe(field.ty),
                        member: name.to_owned(),
                    })?;
            let bit = u64::from(found.bit_offset);
            field = Field {
                offset: field.offset + bit / 8,
                ty: found.ty,
                bits: (found.bits != 0).then_some((found.bit_offset % 8, found.bits)),
            };
        }
        Ok(field)
    }

    fn member(
        &self,
        strukt: TypeId,
        name: &str,
        depth: usize,
        budget: &mut usize,
    ) -> Option<Member<'_>> {
        if depth > MAX_NESTING {
            return None;
        }
        let mut anonymous = Vec::new();
        for member in self.members(strukt) {
            *budget = budget.checked_sub(1)?;
            if member.name == name {
                return Some(member);
            }
            if member.name.is_empty() {
                anonymous.push(member);
            }
        }
        anonymous.into_iter().find_map(|outer| {
            let inner = self.member(outer.ty, name, depth + 1, budget)?;
            let bit_offset = inner.bit_offset.checked_add(outer.bit_offset)?;
            Some(Member {
                bit_offset,
                ..inner
            })
        })
    }

    /// The enumerators of an enum: name and value, in declaration order.
    pub fn enumerators(&self, id: TypeId) -> impl Iterator<Item = (&str, i64)> {
        let ty = self.ty(self.peel(id));
        ty.into_iter().flat_map(move |ty| {
            let data = &self.home(ty.id).data;
            (0..ty.vlen).map_while(move |i| match ty.kind {
                Kind::Enum => {
                    let at = ty.at + i * 8;
                    let raw = le_u32(data, at + 4)?;
                    let value = if ty.kflag {
                        i64::from(raw.cast_signed())
                    } else {
                        i64::from(raw)
                    };
                    Some((self.string(le_u32(data, at)?), value))
                }
                Kind::Enum64 => {
                    let at = ty.at + i * 12;
                    let low = u64::from(le_u32(data, at + 4)?);
                    let high = u64::from(le_u32(data, at + 8)?);
                    Some((
                        self.string(le_u32(data, at)?),
                        (high << 32 | low).cast_signed(),
                    ))
                }
                _ => None,
            })
        })
    }

    /// The variables of a data section, in declaration order; nothing for other types.
    pub fn section(&self, id: TypeId) -> impl Iterator<Item = SectionVariable<'_>> {
        let ty = self.ty(id).filter(|ty| ty.kind == Kind::Datasec);
        ty.into_iter().flat_map(move |ty| {
            let data = &self.home(ty.id).data;
            (0..ty.vlen).map_while(move |i| {
                let at = ty.at + i * 12;
                let variable = self.ty(TypeId(le_u32(data, at)?))?;
                Some(SectionVariable {
                    name: self.name(&variable),
                    ty: variable.target(),
                    offset: le_u32(data, at + 4)?,
                    size: le_u32(data, at + 8)?,
                })
            })
        })
    }

    /// A declaration tag; `None` for other types.
    #[must_use]
    pub fn decl_tag(&self, id: TypeId) -> Option<DeclTag<'_>> {
        let ty = self.ty(id).filter(|ty| ty.kind == Kind::DeclTag)?;
        Some(DeclTag {
            name: self.name(&ty),
            target: ty.target(),
            // -1 for the type itself.
            component: le_u32(&self.home(id).data, ty.at).filter(|&i| i != u32::MAX),
        })
    }

    /// The data section of this name, such as `.bss`.
    #[must_use]
    pub fn find_section(&self, name: &str) -> Option<TypeId> {
        self.find_kind(name, |k| k == Kind::Datasec)
    }

    /// Whether the modifiers between a pointer (or a member) and what it leads to carry a type
    /// tag, such as `kptr` or `percpu_kptr`.
    #[must_use]
    pub fn has_tag(&self, id: TypeId, tag: &str) -> bool {
        let mut id = id;
        let mut pointers = 0;
        for _ in 0..2 * MAX_MODIFIERS {
            let Some(ty) = self.ty(id) else { return false };
            match ty.kind {
                Kind::TypeTag if self.name(&ty) == tag => return true,
                Kind::Ptr => pointers += 1,
                Kind::Typedef | Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag => {}
                _ => return false,
            }
            if pointers > 1 {
                return false;
            }
            id = ty.target();
        }
        false
    }

    /// The value of one enumerator of a named enum.
    ///
    /// # Errors
    /// [`Error::NoType`] or [`Error::NoMember`].
    pub fn enumerator(&self, enumeration: &str, name: &str) -> Result<i64> {
        let id = self.find(enumeration)?;
        self.enumerators(id)
            .find(|&(n, _)| n == name)
            .map(|(_, value)| value)
            .ok_or_else(|| Error::NoMember {
                strukt: enumeration.to_owned(),
                member: name.to_owned(),
            })
    }

    /// The name of a value of an enum, `None` when it has none.
    #[must_use]
    pub fn enumerator_name(&self, id: TypeId, value: i64) -> Option<&str> {
        self.enumerators(id)
            .find(|&(_, v)| v == value)
            .map(|(name, _)| name)
    }

    /// The blob itself.
    #[must_use]
    pub fn blob(&self) -> &[u8] {
        &self.data
    }
}
