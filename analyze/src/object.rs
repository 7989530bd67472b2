//! A typed view of one piece of guest memory.
//!
//! In the spirit of drgn: `rq.member("scx.nr_running")?.u32()?` reads like the C that it
//! mirrors. An object is a type and an address; nothing is read until a value is asked for. A
//! member that this kernel lacks is an error that names the struct and the member, never
//! offset 0.

use crate::addr::Kva;
use crate::bytes::{array, to_usize};
use crate::error::{Error, Result};
use crate::kernel::btf::{IntInfo, Kind};
use crate::kernel::{Kernel, TypeId};

/// Longest `char` array that is read as text: `KSYM_NAME_LEN` is 512, names of ops 128.
const MAX_TEXT: usize = 1 << 16;

/// A typed address in the guest.
#[derive(Clone, Copy)]
pub struct Object<'k> {
    kernel: &'k Kernel,
    ty: TypeId,
    address: Kva,
    bits: Option<(u32, u32)>,
}

impl std::fmt::Debug for Object<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} @ {}", self.type_name(), self.address)
    }
}

impl<'k> Object<'k> {
    /// An object of type `ty` at `address`.
    #[must_use]
    pub const fn new(kernel: &'k Kernel, ty: TypeId, address: Kva) -> Self {
        Self {
            kernel,
            ty,
            address,
            bits: None,
        }
    }

    /// The kernel that it lives in.
    #[must_use]
    pub const fn kernel(&self) -> &'k Kernel {
        self.kernel
    }

    /// Where it is (`&object`).
    #[must_use]
    pub const fn address(&self) -> Kva {
        self.address
    }

    /// Its type.
    #[must_use]
    pub const fn ty(&self) -> TypeId {
        self.ty
    }

    /// Its type as C writes it.
    #[must_use]
    pub fn type_name(&self) -> String {
        self.kernel.btf.describe(self.ty)
    }

    /// The size of its type in bytes, `None` for an incomplete one.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.kernel.btf.size_of(self.ty)
    }

    /// A member by dotted path, through embedded structs and anonymous ones but not through
    /// pointers.
    ///
    /// # Errors
    /// [`Error::NoMember`].
    pub fn member(&self, path: &'static str) -> Result<Self> {
        let field = self.kernel.field(self.ty, path)?;
        Ok(Self {
            kernel: self.kernel,
            ty: field.ty,
            address: self.address.add(field.offset),
            bits: field.bits,
        })
    }

    /// A member by a name that was not known when this was compiled: what a person asks for.
    ///
    /// # Errors
    /// [`Error::NoMember`].
    pub fn member_named(&self, name: &str) -> Result<Self> {
        let field = self.kernel.btf.field(self.ty, name)?;
        Ok(Self {
            kernel: self.kernel,
            ty: field.ty,
            address: self.address.add(field.offset),
            bits: field.bits,
        })
    }

    /// Of a bit field its width.
    #[must_use]
    pub fn bit_width(&self) -> Option<u32> {
        self.bits.map(|(_, width)| width)
    }

    /// The first of several paths that this kernel has: how a walker spells the history of a
    /// member, newest name first.
    ///
    /// # Errors
    /// [`Error::NoMember`] naming all of them.
    pub fn first_of(&self, paths: &[&'static str]) -> Result<Self> {
        for path in paths {
            match self.member(path) {
                Err(Error::NoMember { .. }) => {}
                found => return found,
            }
        }
        Err(Error::NoMember {
            strukt: self.type_name(),
            member: paths.join(" nor "),
        })
    }

    /// Whether this kernel's type has the member.
    #[must_use]
    pub fn has(&self, path: &'static str) -> bool {
        self.kernel.field(self.ty, path).is_ok()
    }

    /// Element `index` of an array, or of the array that a pointer leads to. Not checked
    /// against the declared length: the kernel's own arrays are often declared `[]` or `[1]`.
    ///
    /// # Errors
    /// [`Error::WrongType`] for anything but an array, [`Error::NoType`] for an element of
    /// unknown size.
    pub fn index(&self, index: u64) -> Result<Self> {
        let btf = &self.kernel.btf;
        let array = btf.array(self.ty).ok_or_else(|| self.wrong("an array"))?;
        let size = btf.size_of(array.element).ok_or_else(|| {
            Error::NoType(format!("with a size: {}", btf.describe(array.element)))
        })?;
        let address = self.address.add(size.wrapping_mul(index));
        Ok(Self::new(self.kernel, array.element, address))
    }

    /// The declared length of an array.
    ///
    /// # Errors
    /// [`Error::WrongType`] for anything but an array.
    pub fn array_len(&self) -> Result<u32> {
        self.kernel
            .btf
            .array(self.ty)
            .map(|a| a.len)
            .ok_or_else(|| self.wrong("an array"))
    }

    /// The same address seen as another type.
    ///
    /// # Errors
    /// [`Error::NoType`].
    pub fn cast(&self, ty: &str) -> Result<Self> {
        self.kernel.object(ty, self.address)
    }

    /// The value of a pointer that must lead somewhere.
    fn target(&self) -> Result<Kva> {
        let target = self.ptr()?;
        if target.is_null() {
            return Err(Error::Null(format!(
                "a {} at {}",
                self.type_name(),
                self.address
            )));
        }
        Ok(target)
    }

    /// What a pointer points to (`*object`).
    ///
    /// # Errors
    /// [`Error::Null`] for a null pointer, [`Error::WrongType`] for anything but a pointer.
    pub fn deref(&self) -> Result<Self> {
        let pointee = self
            .kernel
            .btf
            .pointee(self.ty)
            .ok_or_else(|| self.wrong("a pointer"))?;
        let target = self.target()?;
        Ok(Self::new(self.kernel, pointee, target))
    }

    /// `*(ty *)object`: follows a `void *` or a per-CPU base that BTF cannot type.
    ///
    /// # Errors
    /// As [`Object::deref`]; [`Error::NoType`].
    pub fn deref_as(&self, ty: &str) -> Result<Self> {
        let target = self.target()?;
        self.kernel.object(ty, target)
    }

    /// This CPU's instance of what a per-CPU pointer points to.
    ///
    /// # Errors
    /// As [`Object::deref`]; also when the CPU is not possible.
    pub fn deref_per_cpu(&self, cpu: u32) -> Result<Self> {
        let base = self.deref()?;
        let address = self
            .kernel
            .per_cpu(base.address, cpu)
            .ok_or_else(|| Error::Null(format!("the per-CPU area of CPU {cpu}")))?;
        Ok(Self { address, ..base })
    }

    fn wrong(&self, expected: &'static str) -> Error {
        Error::WrongType {
            what: format!("the object at {}", self.address),
            expected,
            found: self.type_name(),
        }
    }

    /// The object's bytes; at most 64 MiB.
    ///
    /// # Errors
    /// When the type has no size or the memory cannot be read.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let size = self.size().ok_or_else(|| self.wrong("a complete type"))?;
        self.kernel.read_bytes(self.address, size)
    }

    /// The value of a pointer.
    ///
    /// # Errors
    /// [`Error::WrongType`] for anything but a pointer.
    pub fn ptr(&self) -> Result<Kva> {
        let peeled = self.kernel.btf.peel(self.ty);
        match self.kernel.btf.ty(peeled).map(|ty| ty.kind) {
            Some(Kind::Ptr) => self.kernel.read_ptr(self.address),
            _ => Err(self.wrong("a pointer")),
        }
    }

    /// An integer, enum, bool or bit field, zero- or sign-extended by its own type. The width
    /// comes from BTF: members change theirs between kernels (`task_struct.on_cpu` did in 7.2).
    ///
    /// Single-member structs that wrap an integer (`atomic_t`, `atomic64_t`, `atomic_long_t`)
    /// are looked into.
    fn scalar(&self) -> Result<(u64, IntInfo)> {
        let btf = &self.kernel.btf;
        let Some(info) = btf.integer(self.ty) else {
            // Once only: a forged type could be its own counter.
            let inner = self.member("counter").ok();
            return match inner.filter(|inner| btf.integer(inner.ty).is_some()) {
                Some(inner) => inner.scalar(),
                None => Err(self.wrong("an integer")),
            };
        };
        let mut raw = [0u8; 8];
        if let Some((shift, width)) = self.bits {
            if width == 0 || width > 64 || shift > 7 {
                return Err(self.wrong("a bit field of 1 to 64 bits"));
            }
            // Up to 71 bits from the first byte on: read what the field covers, no more.
            let mut wide = [0u8; 16];
            let covered = to_usize(u64::from((shift + width).div_ceil(8)));
            let target = wide
                .get_mut(..covered)
                .ok_or_else(|| self.wrong("a bit field"))?;
            self.kernel.read(self.address, target)?;
            let value = u128::from_le_bytes(wide) >> shift & ((1u128 << width) - 1);
            let mut value = u64::try_from(value).unwrap_or(0);
            if info.signed && width < 64 && value >> (width - 1) & 1 == 1 {
                value |= u64::MAX << width;
            }
            return Ok((value, info));
        }
        let target = raw
            .get_mut(..to_usize(u64::from(info.size)))
            .filter(|t| matches!(t.len(), 1 | 2 | 4 | 8))
            .ok_or_else(|| self.wrong("an integer of 1, 2, 4 or 8 bytes"))?;
        self.kernel.read(self.address, target)?;
        let value = u64::from_le_bytes(raw);
        let width = info.size * 8;
        let negative = info.signed && width < 64 && value >> (width - 1) & 1 == 1;
        Ok((
            if negative {
                value | u64::MAX << width
            } else {
                value
            },
            info,
        ))
    }

    fn convert<T>(&self, value: Option<T>, expected: &'static str, raw: u64) -> Result<T> {
        value.ok_or_else(|| Error::Implausible {
            what: format!("the {} at {}", self.type_name(), self.address),
            found: format!("{raw:#x}"),
            why: expected,
        })
    }

    /// An integer as u64: the zero-extended value of an unsigned type, the bit pattern of a
    /// sign-extended one.
    ///
    /// # Errors
    /// When it is no integer or cannot be read.
    pub fn u64(&self) -> Result<u64> {
        self.scalar().map(|(value, _)| value)
    }

    /// An integer as i64; the bit pattern of a u64 beyond its range.
    ///
    /// # Errors
    /// When it is no integer or cannot be read.
    pub fn i64(&self) -> Result<i64> {
        self.scalar().map(|(value, _)| value.cast_signed())
    }

    /// An integer of at most 32 bits as u32; for a signed type its bit pattern.
    ///
    /// # Errors
    /// When it is no integer, cannot be read, or does not fit.
    pub fn u32(&self) -> Result<u32> {
        let (value, info) = self.scalar()?;
        if info.signed && info.size <= 4 {
            let [a, b, c, d, ..] = value.to_le_bytes();
            return Ok(u32::from_le_bytes([a, b, c, d]));
        }
        self.convert(u32::try_from(value).ok(), "it must fit 32 bits", value)
    }

    /// An integer as i32.
    ///
    /// # Errors
    /// When it is no integer, cannot be read, or does not fit.
    pub fn i32(&self) -> Result<i32> {
        let (value, info) = self.scalar()?;
        if info.size <= 4 {
            let [a, b, c, d, ..] = value.to_le_bytes();
            return Ok(i32::from_le_bytes([a, b, c, d]));
        }
        self.convert(
            i32::try_from(value.cast_signed()).ok(),
            "it must fit 32 bits",
            value,
        )
    }

    /// Whether an integer is not zero.
    ///
    /// # Errors
    /// When it is no integer or cannot be read.
    pub fn bool(&self) -> Result<bool> {
        self.u64().map(|value| value != 0)
    }

    /// The text of a `char` array, up to its first NUL.
    ///
    /// # Errors
    /// When it is no array or cannot be read.
    pub fn text(&self) -> Result<String> {
        let len = to_usize(u64::from(self.array_len()?));
        self.kernel.read_cstr(self.address, len.min(MAX_TEXT))
    }

    /// The NUL-terminated string that a `char *` points to, at most `max` bytes; `None` for a
    /// null pointer.
    ///
    /// # Errors
    /// When it is no pointer or cannot be read.
    pub fn string(&self, max: usize) -> Result<Option<String>> {
        let at = self.ptr()?;
        if at.is_null() {
            return Ok(None);
        }
        self.kernel.read_cstr(at, max).map(Some)
    }

    /// The name of an enum's value in this kernel.
    ///
    /// # Errors
    /// When it is no integer or cannot be read.
    pub fn enum_name(&self) -> Result<Option<&'k str>> {
        let value = self.i64()?;
        Ok(self.kernel.btf.enumerator_name(self.ty, value))
    }

    /// An array of integers, or of arrays of them, in the order of memory, at most `max` of them,
    /// in one read.
    ///
    /// # Errors
    /// When it is no array of integers or cannot be read.
    pub fn u64s(&self, max: u32) -> Result<Vec<u64>> {
        let btf = &self.kernel.btf;
        let array_info = btf
            .flat_array(self.ty)
            .ok_or_else(|| self.wrong("an array"))?;
        let info = btf
            .integer(array_info.element)
            .ok_or_else(|| self.wrong("integers"))?;
        let count = array_info.len.min(max);
        let raw = self
            .kernel
            .read_bytes(self.address, u64::from(count) * u64::from(info.size))?;
        let size = to_usize(u64::from(info.size)).max(1);
        raw.chunks_exact(size)
            .map(|chunk| match info.size {
                1 => array(chunk, 0).map(u8::from_le_bytes).map(u64::from),
                2 => array(chunk, 0).map(u16::from_le_bytes).map(u64::from),
                4 => array(chunk, 0).map(u32::from_le_bytes).map(u64::from),
                8 => array(chunk, 0).map(u64::from_le_bytes),
                _ => None,
            })
            .collect::<Option<Vec<u64>>>()
            .ok_or_else(|| self.wrong("integers of 1, 2, 4 or 8 bytes"))
    }
}
