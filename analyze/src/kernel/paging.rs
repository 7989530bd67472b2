//! x86-64 page-table walks, 4 and 5 levels, with 2 MiB and 1 GiB pages.
//!
//! Mirrors `arch/x86/include/asm/pgtable*.h`. Page tables are read from the image like anything
//! else, so a hostile one can only lead to an error.

use std::ops::Range;

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
    /// map nothing are skipped whole, and so are those that cannot be read, which is noted.
    #[must_use]
    pub fn mapped(
        &self,
        memory: &dyn PhysicalMemory,
        start: Kva,
        end: Kva,
        limit: usize,
    ) -> Mapped {
        let mut found = Mapped::default();
        let mut at = Kva(start.0 & !0xfff);
        // The last table of PTEs that was read: neighbours share it.
        let mut cached: Option<(Gpa, Box<[u8; 4096]>)> = None;
        while at < end {
            if found.pages.len() >= limit {
                found.cut = true;
                break;
            }
            let mut table = self.find_table(memory, at);
            if let Table::Ptes(ptes) = table
                && cached.as_ref().is_none_or(|(of, _)| *of != ptes)
            {
                let mut page = Box::new([0; 4096]);
                match memory.read(ptes, &mut page[..]) {
                    Ok(()) => cached = Some((ptes, page)),
                    Err(error) => table = Table::Unreadable(21, error),
                }
            }
            let next = match table {
                // Not present: on to what the next entry of that level covers.
                Table::Absent(shift) => next_multiple(at, shift),
                Table::Unreadable(shift, error) => {
                    let next = next_multiple(at, shift);
                    found.note(at..next.unwrap_or(end).min(end), error);
                    next
                }
                Table::Huge(gpa) => {
                    found.pages.push((at, gpa));
                    at.0.checked_add(4096).map(Kva)
                }
                Table::Ptes(_) => {
                    let Some((_, page)) = &cached else { break };
                    let mut next = Some(at);
                    for index in to_usize(at.0 >> 12 & 0x1ff)..512 {
                        let Some(here) = next.filter(|here| *here < end) else {
                            break;
                        };
                        if found.pages.len() >= limit {
                            break;
                        }
                        let entry = le_u64(&page[..], index * 8).unwrap_or(0) & !self.sme_mask;
                        if entry & PRESENT != 0 {
                            found.pages.push((here, Gpa(entry & ADDRESS)));
                        }
                        next = here.0.checked_add(4096).map(Kva);
                    }
                    next
                }
            };
            match next {
                Some(next) => at = next,
                None => break,
            }
        }
        found
    }

    /// What maps `kva`, one level above single pages.
    fn find_table(&self, memory: &dyn PhysicalMemory, kva: Kva) -> Table {
        let levels = LEVELS.iter().skip(usize::from(!self.five_levels));
        let mut table = self.root;
        for &(_, shift) in levels {
            if shift == 12 {
                break;
            }
            let mut raw = [0; 8];
            if let Err(error) = memory.read(table.add((kva.0 >> shift & 0x1ff) * 8), &mut raw) {
                // All of this table: it is one page.
                return Table::Unreadable(shift + 9, error);
            }
            let entry = u64::from_le_bytes(raw) & !self.sme_mask;
            if entry & PRESENT == 0 {
                return Table::Absent(shift);
            }
            if entry & HUGE != 0 && (shift == 21 || shift == 30) {
                let offset_mask = (1u64 << shift) - 1;
                let base = entry & ADDRESS & !offset_mask;
                return Table::Huge(Gpa(base | (kva.0 & offset_mask)));
            }
            table = Gpa(entry & ADDRESS);
        }
        Table::Ptes(table)
    }
}

/// The first multiple of `1 << shift` above `at`; `None` at the end of the address space.
fn next_multiple(at: Kva, shift: u32) -> Option<Kva> {
    let next = (at.0 >> shift).checked_add(1)?;
    next.checked_mul(1u64.checked_shl(shift)?).map(Kva)
}

/// What maps an address, one level above single pages.
enum Table {
    /// A page of PTEs at this address.
    Ptes(Gpa),
    /// A huge page: the address in it.
    Huge(Gpa),
    /// The entry is not present at the level with this shift.
    Absent(u32),
    /// A table cannot be read that covers so many bits of the address.
    Unreadable(u32, Error),
}

/// The pages that the page tables map in a range of addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapped {
    /// The pages, ascending.
    pub pages: Vec<(Kva, Gpa)>,
    /// Ranges whose tables cannot be read, ascending, with the reasons: whether there are pages
    /// is not known.
    pub unreadable: Vec<(Range<Kva>, Error)>,
    /// There are more pages than were asked for.
    pub cut: bool,
}

impl Mapped {
    fn note(&mut self, range: Range<Kva>, error: Error) {
        match self.unreadable.last_mut() {
            Some((last, known)) if last.end == range.start && *known == error => {
                last.end = range.end;
            }
            _ => self.unreadable.push((range, error)),
        }
    }
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

    #[test]
    fn a_table_that_cannot_be_read_costs_what_it_covers() {
        // Two gigabytes: in the first, two tables of PTEs, one of which is nowhere, and a table
        // of PMDs that is nowhere for the second.
        let kva = Kva(0xffff_c900_0000_0000);
        let index = |kva: Kva, shift: u32| usize::try_from((kva.0 >> shift) & 0x1ff).unwrap() * 8;
        let (nowhere, more) = (0xdead_b003, kva.add(1 << 30));
        let memory = Words::new(&[
            (0x1000 + index(kva, 39), 0x2003),
            (0x2000 + index(kva, 30), 0x3003),
            (0x2000 + index(more, 30), nowhere),
            (0x3000 + index(kva, 21), nowhere),
            (0x3000 + index(kva.add(1 << 21), 21), 0x4003),
            (0x4000 + index(kva.add(0x5000), 12), 0x9003),
        ]);
        let found = table(false).mapped(&memory, kva, kva.add(2 << 30), 8);
        assert_eq!(found.pages, [(kva.add((1 << 21) + 0x5000), Gpa(0x9000))]);
        let ranges: Vec<_> = found.unreadable.iter().map(|(r, _)| r.clone()).collect();
        assert_eq!(
            ranges,
            [kva..kva.add(1 << 21), more..more.add(1 << 30)],
            "{found:?}"
        );
        assert!(!found.cut);
        // At the end of the address space, and with nothing readable at all.
        let bad = PageTable {
            root: Gpa(0xdead_b000),
            ..table(true)
        };
        let top = Kva(u64::MAX - 0x1fff);
        let found = bad.mapped(&memory, top, Kva(u64::MAX), 8);
        assert_eq!(found.unreadable.len(), 1);
        assert_eq!(found.unreadable[0].0, top..Kva(u64::MAX));
    }
}
