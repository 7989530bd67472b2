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
/// Symbols of all modules together: ten times what a machine with every driver has.
const MAX_ALL_SYMBOLS: u64 = 1 << 21;
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
    /// Symbols that are read.
    count: u64,
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
            count: symbol_count(module)?,
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
        let raw = kernel.read_bytes(at, self.count * size)?;
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

fn symbol_count(module: &Object<'_>) -> Result<u64> {
    let table = module.member("kallsyms")?;
    // Without CONFIG_KALLSYMS, or not loaded to its end.
    if table.ptr()?.is_null() {
        return Ok(0);
    }
    Ok(u64::from(table.deref()?.member("num_symtab")?.u32()?))
}

/// How many of each module's symbols are read: modules can share one table, however long, so what
/// they have together counts. By the order of the list, since which names are asked for first
/// differs from run to run.
fn share(counts: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut left = MAX_ALL_SYMBOLS;
    let counts = counts.into_iter().map(|count| {
        let own = count.min(MAX_SYMBOLS).min(left);
        left -= own;
        own
    });
    counts.collect()
}

impl Kernel {
    /// Every module on the list; one that cannot be read is left out: its code has no names then,
    /// which each address says itself.
    pub(super) fn read_modules(&self) -> Vec<Module> {
        let Ok(head) = self.symbol("modules") else {
            return Vec::new();
        };
        let nodes = self.list(head, MAX_MODULES).items;
        let mut modules: Vec<Module> = nodes
            .into_iter()
            .filter_map(|node| {
                let module = self.entry("struct module", "list", node).ok()?;
                Module::read(&module).ok()
            })
            .collect();
        let counts = share(modules.iter().map(|module| module.count));
        for (module, count) in modules.iter_mut().zip(counts) {
            module.count = count;
        }
        modules
    }

    /// The module whose code is at `kva`.
    pub(super) fn module_at(&self, kva: Kva) -> Option<&Module> {
        let modules = self.modules.get_or_init(|| self.read_modules());
        modules.iter().find(|module| module.has(kva))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_modules_with_one_table_have_no_more_symbols_than_a_large_machine() {
        let all = share([u64::from(u32::MAX); MAX_MODULES]);
        assert_eq!(all.len(), MAX_MODULES);
        assert_eq!(all.iter().sum::<u64>(), MAX_ALL_SYMBOLS);
        assert_eq!(all.first(), Some(&MAX_SYMBOLS));
        assert_eq!(all.last(), Some(&0));
        // Those of a Debian guest, and the largest driver there is, have all of theirs.
        let real = [3412, 1177, 64, 0, 98_304, 24_018];
        assert_eq!(share(real), real);
    }
}
