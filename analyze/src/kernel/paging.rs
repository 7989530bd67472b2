//! x86-64 page-table walks, 4 and 5 levels, with 2 MiB and 1 GiB pages.
//!
//! Mirrors `arch/x86/include/asm/pgtable*.h`. Page tables are read from the image like anything
//! else, so a hostile one can only lead to an error.

use crate::addr::{Gpa, Kva};
use crate::bytes::{le_u64, to_usize};
use crate::error::{Error, Result};
use crate::source::PhysicalMemory;

const PRESENT: u64 = 1;
/// In a PUD or PMD entry: this entry maps a huge page.
const HUGE: u64 = 1 << 7;
/// Physical address bits of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The levels below the root, outermost first: name for errors, shift of the index.
const LEVELS: [(&str, u32); 5] = [
    ("pgd", 48),
    ("p4d", 39),
    ("pud", 30),
    ("pmd", 21),
    ("pte", 12),
];

/// One page-table tree.
#[derive(Debug, Clone, Copy)]
pub struct PageTable {
    /// Physical address of the outermost table.
    pub root: Gpa,
    /// Five levels (LA57) rather than four.
    pub five_levels: bool,
    /// Encryption bit to clear in every entry (AMD SME), 0 without.
    pub sme_mask: u64,
}

/// A translated address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Where the address is.
    pub gpa: Gpa,
    /// Bytes from there to the end of the page, at least 1.
    pub contiguous: u64,
}

impl PageTable {
    /// Translates `kva`.
    ///
    /// # Errors
    /// [`Error::NotMapped`] naming the level whose entry is not present, or the reason why a
    /// table could not be read.
    pub fn walk(&self, memory: &dyn PhysicalMemory, kva: Kva) -> Result<Mapping> {
        // With four levels the kernel calls the outermost table pgd and folds p4d into it.
        let levels = LEVELS.iter().skip(usize::from(!self.five_levels));
        let mut table = self.root;
        for &(name, shift) in levels {
            let index = (kva.0 >> shift) & 0x1ff;
            let mut raw = [0; 8];
            memory.read(table.add(index * 8), &mut raw)?;
            let entry = u64::from_le_bytes(raw) & !self.sme_mask;
            let leaf = shift == 12 || (entry & HUGE != 0 && (shift == 21 || shift == 30));
            // PROT_NONE entries, whose frame numbers are inverted against L1TF, are user pages:
            // the kernel's own tables have none.
            if entry & PRESENT == 0 {
                return Err(Error::NotMapped(kva, name));
            }
            if leaf {
                let offset_mask = (1u64 << shift) - 1;
                let offset = kva.0 & offset_mask;
                // Bit 12 of a huge entry is PAT, so the address starts above the offset bits.
                let base = entry & ADDRESS & !offset_mask;
                return Ok(Mapping {
                    gpa: Gpa(base | offset),
                    contiguous: offset_mask + 1 - offset,
                });
            }
            table = Gpa(entry & ADDRESS);
        }
        Err(Error::NotMapped(kva, "pte"))
    }

    /// The mapped 4 KiB pages from `start` up to `end`, ascending, at most `limit`. Tables that
    /// map nothing are skipped whole.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn mapped(
        &self,
        memory: &dyn PhysicalMemory,
        start: Kva,
        end: Kva,
        limit: usize,
    ) -> Result<Vec<(Kva, Gpa)>> {
        let mut found = Vec::new();
        let mut at = Kva(start.0 & !0xfff);
        // The last table of PTEs that was read: neighbours share it.
        let mut cached: Option<(Gpa, Box<[u8; 4096]>)> = None;
        while at < end && found.len() < limit {
            match self.find_table(memory, at)? {
                Err(shift) => {
                    // Not present: on to what the next entry of that level covers.
                    let Some(next) = (at.0 >> shift).checked_add(1) else {
                        break;
                    };
                    let next = next.wrapping_shl(shift);
                    if next <= at.0 {
                        break;
                    }
                    at = Kva(next);
                }
                Ok(Table::Huge(mapping)) => {
                    found.push((at, mapping.gpa));
                    at = at.add(4096);
                }
                Ok(Table::Ptes(table)) => {
                    if cached.as_ref().is_none_or(|(of, _)| *of != table) {
                        let mut page = Box::new([0; 4096]);
                        memory.read(table, &mut page[..])?;
                        cached = Some((table, page));
                    }
                    let Some((_, page)) = &cached else { break };
                    let first = to_usize(at.0 >> 12 & 0x1ff);
                    for index in first..512 {
                        let entry = le_u64(&page[..], index * 8).unwrap_or(0) & !self.sme_mask;
                        if at >= end || found.len() >= limit {
                            break;
                        }
                        if entry & PRESENT != 0 {
                            found.push((at, Gpa(entry & ADDRESS)));
                        }
                        let Some(next) = at.0.checked_add(4096) else {
                            return Ok(found);
                        };
                        at = Kva(next);
                    }
                }
            }
        }
        Ok(found)
    }

    /// The table of PTEs, or the huge page, that `kva` lies in; else the shift of the level
    /// whose entry is not present.
    fn find_table(
        &self,
        memory: &dyn PhysicalMemory,
        kva: Kva,
    ) -> Result<std::result::Result<Table, u32>> {
        let levels = LEVELS.iter().skip(usize::from(!self.five_levels));
        let mut table = self.root;
        for &(_, shift) in levels.clone() {
            if shift == 12 {
                break;
            }
            let mut raw = [0; 8];
            memory.read(table.add((kva.0 >> shift & 0x1ff) * 8), &mut raw)?;
            let entry = u64::from_le_bytes(raw) & !self.sme_mask;
            if entry & PRESENT == 0 {
                return Ok(Err(shift));
            }
            if entry & HUGE != 0 && (shift == 21 || shift == 30) {
                return self.walk(memory, kva).map(|m| Ok(Table::Huge(m)));
            }
            table = Gpa(entry & ADDRESS);
        }
        Ok(Ok(Table::Ptes(table)))
    }
}

/// What maps an address, one level above single pages.
enum Table {
    /// A page of PTEs at this address.
    Ptes(Gpa),
    /// A huge page.
    Huge(Mapping),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Region;

    /// 64 KiB of zeroed memory at 0 with some words set.
    struct Words(Vec<u8>, [Region; 1]);

    impl Words {
        fn new(words: &[(usize, u64)]) -> Self {
            let mut bytes = vec![0; 0x10000];
            for &(at, value) in words {
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            Self(
                bytes,
                [Region {
                    start: Gpa(0),
                    len: 0x10000,
                }],
            )
        }
    }

    impl PhysicalMemory for Words {
        fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<()> {
            let start = usize::try_from(gpa.0).unwrap();
            let from = self
                .0
                .get(start..start + buf.len())
                .ok_or(Error::Hole(gpa))?;
            buf.copy_from_slice(from);
            Ok(())
        }
        fn regions(&self) -> &[Region] {
            &self.1
        }
    }

    fn table(five_levels: bool) -> PageTable {
        PageTable {
            root: Gpa(0x1000),
            five_levels,
            sme_mask: 1 << 47,
        }
    }

    #[test]
    fn four_levels_with_the_encryption_bit() {
        // 0xffffc90000001234: indices 402, 256+.. computed from the shifts below.
        let kva = Kva(0xffff_c900_0000_1234);
        let index = |shift: u32| usize::try_from((kva.0 >> shift) & 0x1ff).unwrap() * 8;
        let memory = Words::new(&[
            (0x1000 + index(39), 0x2003 | 1 << 47),
            (0x2000 + index(30), 0x3003),
            (0x3000 + index(21), 0x4003),
            (0x4000 + index(12), 0x8000_0000_0000_9003),
        ]);
        let hit = table(false).walk(&memory, kva).unwrap();
        assert_eq!(
            hit,
            Mapping {
                gpa: Gpa(0x9234),
                contiguous: 0x1000 - 0x234
            }
        );
        assert_eq!(
            table(false).walk(&memory, Kva(kva.0 + 0x1000)),
            Err(Error::NotMapped(Kva(kva.0 + 0x1000), "pte"))
        );
    }

    #[test]
    fn five_levels_and_a_huge_page_with_pat() {
        let kva = Kva(0xff11_0000_0033_4455);
        let index = |shift: u32| usize::try_from((kva.0 >> shift) & 0x1ff).unwrap() * 8;
        let memory = Words::new(&[
            (0x1000 + index(48), 0x2003),
            (0x2000 + index(39), 0x3003),
            (0x3000 + index(30), 0x4003),
            (0x4000 + index(21), 0x40_0000 | 0x1000 | HUGE | PRESENT),
        ]);
        let hit = table(true).walk(&memory, kva).unwrap();
        assert_eq!(
            hit,
            Mapping {
                gpa: Gpa(0x53_4455),
                contiguous: 0x20_0000 - 0x13_4455
            }
        );
    }

    #[test]
    fn a_table_outside_memory_is_an_error_not_a_page() {
        let memory = Words::new(&[(0x1000, 0xdead_b003)]);
        assert_eq!(
            table(false).walk(&memory, Kva(0)),
            Err(Error::Hole(Gpa(0xdead_b000)))
        );
    }
}
