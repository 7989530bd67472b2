//! Loaded modules: where their code is, its names and its unwind tables.
//!
//! Reads the list `modules` of `struct module` (include/linux/module.h): `mem[MOD_TEXT]` and
//! `mem[MOD_INIT_TEXT]`, `kallsyms` (`struct mod_kallsyms`, an ELF symbol table) and
//! `arch.orc_unwind*`. Names are chosen as `find_kallsyms_symbol()` of
//! kernel/module/kallsyms.c chooses them.

use std::sync::OnceLock;

use super::orc::Table;
use super::{Kernel, Place};
use crate::addr::Kva;
use crate::bytes::{le_u32, le_u64, to_usize};
use crate::error::{Error, Result};
use crate::object::Object;

/// Modules believed.
const MAX_MODULES: usize = 4096;
/// Symbols of one module believed.
const MAX_SYMBOLS: u64 = 1 << 18;
/// Longest name: `KSYM_NAME_LEN`.
const MAX_NAME: usize = 512;

/// One module.
#[derive(Debug)]
pub(super) struct Module {
    name: String,
    /// Its `struct module`.
    at: Kva,
    /// Where its code is.
    text: Vec<std::ops::Range<u64>>,
    table: Table,
    /// Address and place of the name of each symbol, ascending; read when first asked for.
    symbols: OnceLock<Vec<(u64, Kva)>>,
}

impl Module {
    fn read(module: &Object<'_>) -> Result<Self> {
        let kernel = module.kernel();
        let text = ["MOD_TEXT", "MOD_INIT_TEXT"]
            .iter()
            .map(|kind| {
                let kind = kernel.constant("enum mod_mem_type", kind)?;
                let memory = module.member("mem")?.index(kind.cast_unsigned())?;
                let base = memory.member("base")?.ptr()?;
                let size = u64::from(memory.member("size")?.u32()?);
                Ok(base.0..base.add(size).0)
            })
            .collect::<Result<Vec<_>>>()?;
        let table = Table {
            ips: module.member("arch.orc_unwind_ip")?.ptr()?,
            entries: module.member("arch.orc_unwind")?.ptr()?,
            count: module.member("arch.num_orcs")?.u64()?,
        };
        Ok(Self {
            name: module.member("name")?.text()?,
            at: module.address(),
            text,
            table,
            symbols: OnceLock::new(),
        })
    }

    fn has(&self, kva: Kva) -> bool {
        self.text.iter().any(|text| text.contains(&kva.0))
    }

    pub(super) const fn table(&self) -> Table {
        self.table
    }

    /// An address by the module's own symbols.
    pub(super) fn place(&self, kernel: &Kernel, kva: Kva) -> Option<Place> {
        let text = self.text.iter().find(|text| text.contains(&kva.0))?;
        let symbols = self
            .symbols
            .get_or_init(|| self.read_symbols(kernel).unwrap_or_default());
        let after = symbols.partition_point(|&(value, _)| value <= kva.0);
        let &(start, _) = symbols.get(after.checked_sub(1)?)?;
        if !text.contains(&start) {
            return None;
        }
        // Of several names for one address the table's first counts.
        let first = symbols.partition_point(|&(value, _)| value < start);
        let name = kernel.read_cstr(symbols.get(first)?.1, MAX_NAME).ok()?;
        let end = symbols.get(after).map_or(text.end, |&(next, _)| next);
        Some(Place {
            name,
            offset: kva.0 - start,
            size: end.min(text.end).saturating_sub(start),
            module: Some(self.name.clone()),
        })
    }

    fn read_symbols(&self, kernel: &Kernel) -> Result<Vec<(u64, Kva)>> {
        let table = kernel
            .object("struct module", self.at)?
            .member("kallsyms")?
            .deref()?;
        let count = u64::from(table.member("num_symtab")?.u32()?).min(MAX_SYMBOLS);
        let names = table.member("strtab")?.ptr()?;
        let symbols = table.member("symtab")?;
        let (at, symbol) = (symbols.ptr()?, symbols.deref()?);
        let size = symbol
            .size()
            .filter(|size| (16..=64).contains(size))
            .ok_or_else(|| Error::NoType("Elf64_Sym with a size".into()))?;
        let offset = |member| -> Result<usize> {
            let member = symbol.member(member)?.address().0;
            Ok(to_usize(member.wrapping_sub(at.0)))
        };
        let (name, value, section) = (offset("st_name")?, offset("st_value")?, offset("st_shndx")?);
        let raw = kernel.read_bytes(at, count * size)?;
        let mut found: Vec<(u64, Kva)> = raw
            .chunks_exact(to_usize(size))
            .filter_map(|each| {
                let name = u64::from(le_u32(each, name)?);
                // SHN_UNDEF, and the nameless first.
                let defined = each.get(section..)?.iter().take(2).any(|&b| b != 0);
                (defined && name != 0).then_some((le_u64(each, value)?, names.add(name)))
            })
            .collect();
        found.sort_by_key(|&(value, _)| value);
        Ok(found)
    }
}

impl Kernel {
    /// Every module on the list; one that cannot be read is left out: its code has no names then,
    /// which each address says itself.
    pub(super) fn read_modules(&self) -> Vec<Module> {
        let Ok(head) = self.symbol("modules") else {
            return Vec::new();
        };
        let nodes = self.list(head, MAX_MODULES).items;
        nodes
            .into_iter()
            .filter_map(|node| {
                let module = self.entry("struct module", "list", node).ok()?;
                Module::read(&module).ok()
            })
            .collect()
    }

    /// The module whose code is at `kva`.
    pub(super) fn module_at(&self, kva: Kva) -> Option<&Module> {
        let modules = self.modules.get_or_init(|| self.read_modules());
        modules.iter().find(|module| module.has(kva))
    }
}
