//! The BTF that programs and maps were loaded with.
//!
//! Reads `struct btf` (kernel/bpf/btf.c): `data` is the blob as user space loaded it. BPF objects
//! have types of their own; a kernel module's BTF continues that of the kernel (`base_btf`).

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use rayon::prelude::*;
use scx_postmortem_format::report::limits::MAX_BTF_BLOB;

use crate::addr::Kva;
use crate::bytes::to_usize;
use crate::error::{Error, Result};
use crate::kernel::{Btf, Kernel};
use crate::object::Object;

/// A `struct btf` of the guest, parsed.
#[derive(Debug, Clone)]
pub struct LoadedBtf {
    /// `btf.id`, as bpftool shows it.
    pub id: u32,
    /// `btf.name`: `vmlinux`, a module's name, or empty for a program's.
    pub name: String,
    /// The types.
    pub types: Arc<Btf>,
}

/// The BTF objects of the guest, each parsed once: programs and maps of one object file share
/// theirs.
pub struct Btfs<'k> {
    kernel: &'k Kernel,
    parsed: RwLock<HashMap<Kva, Result<LoadedBtf>>>,
}

impl<'k> Btfs<'k> {
    /// Nothing is parsed yet.
    #[must_use]
    pub fn new(kernel: &'k Kernel) -> Self {
        Self {
            kernel,
            parsed: RwLock::default(),
        }
    }

    /// Parses those at `addresses`, in parallel.
    pub fn load_all(&self, addresses: &[Kva]) {
        let mut unique = addresses.to_vec();
        unique.sort_unstable();
        unique.dedup();
        // What cannot be read is asked for again by whoever needs it.
        unique.into_par_iter().for_each(|at| drop(self.get(at)));
    }

    /// The `struct btf` at `at`.
    ///
    /// # Errors
    /// When it cannot be read or is not BTF.
    pub fn get(&self, at: Kva) -> Result<LoadedBtf> {
        if let Ok(parsed) = self.parsed.read()
            && let Some(hit) = parsed.get(&at)
        {
            return hit.clone();
        }
        let loaded = load(self.kernel, at);
        if let Ok(mut parsed) = self.parsed.write() {
            parsed.insert(at, loaded.clone());
        }
        loaded
    }

    /// What a member that is a `struct btf *` points to; `None` when it is null.
    ///
    /// # Errors
    /// As [`Btfs::get`].
    pub fn of(&self, pointer: &Object<'_>) -> Result<Option<LoadedBtf>> {
        let at = pointer.ptr()?;
        (!at.is_null()).then(|| self.get(at)).transpose()
    }
}

/// Reads the BTF whose `struct btf` is at `at`.
///
/// # Errors
/// When it cannot be read or is no BTF.
pub fn load(kernel: &Kernel, at: Kva) -> Result<LoadedBtf> {
    let btf = kernel.object("struct btf", at)?;
    let id = btf.member("id")?.u32()?;
    let name = btf.member("name")?.text()?;
    let base = btf.member("base_btf")?.ptr()?;
    if base.is_null() && btf.member("kernel_btf")?.bool()? {
        let types = Arc::clone(&kernel.btf);
        return Ok(LoadedBtf { id, name, types });
    }
    let size = btf.member("data_size")?.u32()?;
    if size == 0 || to_usize(u64::from(size)) > MAX_BTF_BLOB {
        return Err(Error::Implausible {
            what: format!("the size of the BTF at {at}"),
            found: size.to_string(),
            why: "1 byte to 32 MiB",
        });
    }
    let data = kernel.read_bytes(btf.member("data")?.ptr()?, u64::from(size))?;
    let types = if base.is_null() {
        Btf::parse(data)?
    } else {
        Btf::parse_split(data, Arc::clone(&kernel.btf))?
    };
    let types = Arc::new(types);
    Ok(LoadedBtf { id, name, types })
}
