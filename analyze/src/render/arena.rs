//! The window of a BPF arena: which addresses lead into it, and how they are read.
//!
//! Reads `struct bpf_arena` (kernel/bpf/arena.c). A page with user address U is mapped in the
//! kernel at `kern_vm->addr + GUARD_SZ / 2 + (u32)U`; which pages exist, only the page tables
//! tell. From 7.2 on, an unallocated page may be mapped to one page of scratch.

use std::ops::Range;

use crate::addr::{Gpa, Kva};
use crate::bytes::{to_u64, to_usize};
use crate::error::{Error, Result};
use crate::kernel::Kernel;

/// `SZ_4G`: an arena never spans more.
const SPAN: u64 = 1 << 32;
/// `GUARD_SZ / 2` with 4 KiB pages: arena pointers take signed 16-bit offsets.
const HALF_GUARD: u64 = 1 << 15;
const PAGE: u64 = 4096;

/// One arena's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arena {
    /// Its `struct bpf_arena`, which begins with its `struct bpf_map`.
    pub map: Kva,
    /// User address of its first byte, `user_vm_start`.
    pub user_start: u64,
    /// User address behind its last byte, `user_vm_end`.
    pub user_end: u64,
    /// Kernel address that stands for low 32 bits of 0.
    pub kernel_start: Kva,
    /// The page that unallocated addresses are mapped to, on kernels that have one.
    scratch: Option<Gpa>,
}

impl Arena {
    /// The window of the arena map at `map`.
    ///
    /// # Errors
    /// When this kernel's `struct bpf_arena` lacks what is needed or cannot be read.
    pub fn read(kernel: &Kernel, map: Kva) -> Result<Self> {
        let arena = kernel.object("struct bpf_arena", map)?;
        let area = arena.member("kern_vm")?.deref()?.member("addr")?.ptr()?;
        let user_start = arena.member("user_vm_start")?.u64()?;
        for (address, what) in [
            (area.0, "bpf_arena.kern_vm->addr"),
            (user_start, "bpf_arena.user_vm_start"),
        ] {
            if address % PAGE != 0 {
                return Err(Error::Implausible {
                    what: format!("{what} of the map at {map}"),
                    found: format!("{address:#x}"),
                    why: "the beginning of a page",
                });
            }
        }
        let scratch = match arena.member("scratch_page") {
            Ok(page) => Some(kernel.page_to_gpa(page.ptr()?)?),
            Err(e) if e.is_absent() => None,
            Err(e) => return Err(e),
        };
        Ok(Self {
            map,
            user_start,
            user_end: arena.member("user_vm_end")?.u64()?,
            kernel_start: area.add(HALF_GUARD),
            scratch,
        })
    }

    /// The kernel address of a pointer into the arena, in its user form (`cast_user`) or its
    /// kernel form; `None` for any other value.
    #[must_use]
    pub fn kernel_address(&self, pointer: u64) -> Option<Kva> {
        let user = self.user_start != 0 && pointer.wrapping_sub(self.user_start) < SPAN;
        let kernel = pointer.wrapping_sub(self.kernel_start.0) < SPAN;
        if user {
            Some(self.low32(pointer))
        } else {
            kernel.then_some(Kva(pointer))
        }
    }

    /// The kernel address for the low 32 bits of a pointer.
    #[must_use]
    pub fn low32(&self, pointer: u64) -> Kva {
        self.kernel_start.add(pointer & (SPAN - 1))
    }

    /// The kernel addresses of the arena's first `span` bytes, each range with the user address
    /// that it begins with: two ranges when the low 32 bits of the user addresses wrap.
    #[must_use]
    pub fn ranges(&self, span: u64) -> Vec<(Range<Kva>, u64)> {
        let span = span.min(SPAN);
        let start = self.low32(self.user_start);
        let whole = self.kernel_start.add(SPAN);
        let first = span.min(whole.0.wrapping_sub(start.0));
        let mut ranges = vec![(start..start.add(first), self.user_start)];
        if first < span {
            ranges.push((
                self.kernel_start..self.kernel_start.add(span.saturating_sub(first)),
                self.user_start.wrapping_add(first),
            ));
        }
        ranges
    }

    /// Whether a mapped page is the arena's own, not the one that stands for unallocated ones.
    #[must_use]
    pub fn is_own_page(&self, page: Gpa) -> bool {
        self.scratch != Some(page)
    }

    /// Fills `buf` from the kernel address `at` in the window.
    ///
    /// # Errors
    /// When a page is not allocated or cannot be read.
    pub fn fill(&self, kernel: &Kernel, at: Kva, buf: &mut [u8]) -> Result<()> {
        let mut at = at;
        let mut rest = buf;
        while !rest.is_empty() {
            let in_page = to_usize(PAGE - at.0 % PAGE);
            let len = in_page.min(rest.len());
            let (head, tail) = rest.split_at_mut(len);
            let (gpa, _) = kernel.translate(at)?;
            if !self.is_own_page(Gpa(gpa.0 - gpa.0 % PAGE)) {
                return Err(Error::NotMapped(at, "arena page"));
            }
            kernel.read(at, head)?;
            rest = tail;
            at = at.add(to_u64(len));
        }
        Ok(())
    }
}
