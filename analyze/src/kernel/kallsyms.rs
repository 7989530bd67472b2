//! Symbols out of the kernel's own compressed table.
//!
//! Mirrors `kernel/kallsyms.c` and `scripts/kallsyms.c`. Names are looked up by binary search
//! through `kallsyms_seqs_of_names`, which lists symbols by name, so finding a hundred symbols
//! does not expand two hundred thousand. Address encodings, each still met in the field:
//!
//! - up to 6.14: `offsets[i]` as s32, negative values below `relative_base`, others absolute
//!   (`CONFIG_KALLSYMS_ABSOLUTE_PERCPU`);
//! - 6.15 to 6.19: `relative_base + (u32)offsets[i]`;
//! - from 7.0: the address of `offsets[i]` itself plus `(s32)offsets[i]`; the tables are 4-
//!   instead of 8-aligned and `relative_base` is gone.

use std::cmp::Ordering;

use super::vmcoreinfo::Vmcoreinfo;
use crate::addr::Kva;
use crate::bytes::{array, le_u16, le_u32, to_u64, to_usize};
use crate::error::{Error, Result};

/// More symbols than any kernel has; bounds every allocation below.
const MAX_SYMBOLS: usize = 1_000_000;
/// Longest expanded name (`KSYM_NAME_LEN` is 512), with the type letter.
const MAX_NAME: usize = 513;
/// One marker for this many names.
const MARKER_STEP: usize = 256;
/// All names together, compressed or expanded: far more than in any kernel.
const MAX_NAMES_BYTES: usize = 64 << 20;

/// Reads guest memory by kernel virtual address into a fresh buffer.
pub(super) type Fetch<'a> = &'a dyn Fn(Kva, usize) -> Result<Vec<u8>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Addresses {
    /// `relative_base`, and whether negative offsets mark the relative ones.
    Based { base: u64, absolute_percpu: bool },
    /// Each offset is relative to its own place, which is this address plus 4 * index.
    SelfRelative { offsets: u64 },
}

/// The kernel's symbol table.
#[derive(Debug)]
pub struct Kallsyms {
    count: usize,
    names: Vec<u8>,
    markers: Vec<u32>,
    tokens: Vec<u8>,
    token_index: Vec<u16>,
    offsets: Vec<u8>,
    /// Three big-endian bytes per symbol: the symbols in order of their names.
    by_name: Vec<u8>,
    addresses: Addresses,
}

impl Kallsyms {
    /// Finds and checks the tables through VMCOREINFO.
    ///
    /// # Errors
    /// When VMCOREINFO does not name them, they cannot be read, or they contradict themselves.
    pub(super) fn load(info: &Vmcoreinfo, fetch: Fetch<'_>) -> Result<Self> {
        let table = |name: &str| {
            info.symbol(name)
                .ok_or_else(|| Error::NoSymbol(format!("{name} in VMCOREINFO")))
        };
        let bad = |what: &str, found: u64, why| Error::Implausible {
            what: what.to_owned(),
            found: found.to_string(),
            why,
        };
        let names_at = table("kallsyms_names")?;
        let token_table_at = table("kallsyms_token_table")?;
        let token_index_at = table("kallsyms_token_index")?;
        let offsets_at = table("kallsyms_offsets")?;
        let count_at = table("kallsyms_num_syms")?;
        let relative_base_at = info.symbol("kallsyms_relative_base");

        let count = fetch(count_at, 4)?;
        let count = to_usize(u64::from(le_u32(&count, 0).unwrap_or(0)));
        if count == 0 || count > MAX_SYMBOLS {
            return Err(bad("kallsyms_num_syms", to_u64(count), "1 to 1000000"));
        }

        // The markers end where the token table begins, but for the padding that the tables'
        // alignment asks for: 8 bytes as long as relative_base exists, 4 after.
        let align = if relative_base_at.is_some() { 8 } else { 4 };
        let marker_count = count.div_ceil(MARKER_STEP);
        let markers_len = to_u64((marker_count * 4).next_multiple_of(align));
        let markers_at = token_table_at.sub(markers_len);
        let names_len = markers_at.0.wrapping_sub(names_at.0);
        if names_len < to_u64(count) || names_len > to_u64(MAX_NAMES_BYTES) {
            return Err(bad(
                "the length of kallsyms_names",
                names_len,
                "at least a byte a name",
            ));
        }
        let markers = fetch(markers_at, marker_count * 4)?;
        let markers: Vec<u32> = (0..marker_count)
            .filter_map(|i| le_u32(&markers, i * 4))
            .collect();
        let ascending = markers.is_sorted()
            && markers.first() == Some(&0)
            && markers
                .last()
                .is_some_and(|&last| u64::from(last) < names_len);
        if !ascending {
            return Err(bad(
                "kallsyms_markers",
                markers_at.0,
                "offsets into names, ascending from 0",
            ));
        }

        let tokens_len = token_index_at.0.wrapping_sub(token_table_at.0);
        if tokens_len > 1 << 16 {
            return Err(bad(
                "the length of kallsyms_token_table",
                tokens_len,
                "at most 64 KiB",
            ));
        }
        let token_index = fetch(token_index_at, 512)?;
        let token_index = (0..256)
            .filter_map(|i| le_u16(&token_index, i * 2))
            .collect();

        let offsets_len = count * 4;
        let after_offsets = offsets_at.add(to_u64(offsets_len));
        let (addresses, by_name_at) = match relative_base_at {
            Some(at) => {
                let base = fetch(at, 8)?;
                let base = u64::from_le_bytes(array(&base, 0).unwrap_or_default());
                // 6.15 made per-CPU symbols ordinary; before, an offset with the sign bit is
                // relative and every other one absolute.
                (
                    Addresses::Based {
                        base,
                        absolute_percpu: false,
                    },
                    at.add(8),
                )
            }
            None => (
                Addresses::SelfRelative {
                    offsets: offsets_at.0,
                },
                after_offsets,
            ),
        };

        let mut kallsyms = Self {
            count,
            names: fetch(names_at, to_usize(names_len))?,
            markers,
            tokens: fetch(token_table_at, to_usize(tokens_len))?,
            token_index,
            offsets: fetch(offsets_at, offsets_len)?,
            by_name: fetch(by_name_at, count * 3).unwrap_or_default(),
            addresses,
        };
        kallsyms.detect_absolute_percpu();
        kallsyms.check()?;
        Ok(kallsyms)
    }

    /// Absolute per-CPU symbols are recognised by offsets with the sign bit: the plain encoding
    /// would put those 2 GiB beyond the kernel image.
    fn detect_absolute_percpu(&mut self) {
        let last = self.count.saturating_sub(1);
        let negative = |i: usize| le_u32(&self.offsets, i * 4).is_some_and(|o| o >= 1 << 31);
        if let Addresses::Based {
            absolute_percpu, ..
        } = &mut self.addresses
        {
            *absolute_percpu = negative(last) || negative(last / 2);
        }
    }

    /// Whether the name order can be trusted: sampled, so that a damaged table is noticed here
    /// and not as a symbol that seems not to exist.
    fn check(&mut self) -> Result<()> {
        if self.address(0).is_none() || self.name(0).is_none() {
            return Err(Error::Implausible {
                what: "kallsyms".into(),
                found: "an entry that does not expand".into(),
                why: "every entry names a symbol",
            });
        }
        let step = (self.count / 64).max(1);
        let sample: Vec<Option<String>> = (0..self.count)
            .step_by(step)
            .map(|rank| self.name(self.ranked(rank)?))
            .collect();
        let sorted = sample.iter().all(Option::is_some) && sample.is_sorted();
        if !sorted {
            self.index_names()?;
        }
        Ok(())
    }

    /// Rebuilds the name order from the names themselves.
    fn index_names(&mut self) -> Result<()> {
        let mut text = Vec::new();
        let mut names = Vec::new();
        for index in 0..self.count {
            let start = text.len();
            let Some(name) = self.expand(index) else {
                continue;
            };
            text.extend(name);
            names.push((start..text.len(), index));
            if text.len() > MAX_NAMES_BYTES {
                return Err(Error::Implausible {
                    what: "the length of all symbol names".into(),
                    found: format!("more than {MAX_NAMES_BYTES}"),
                    why: "some 5 MB in a distribution's kernel",
                });
            }
        }
        names.sort_by_key(|(name, index)| (text.get(name.clone()), *index));
        self.by_name = names
            .iter()
            .flat_map(|&(_, i)| {
                let [.., a, b, c] = to_u64(i).to_be_bytes();
                [a, b, c]
            })
            .collect();
        Ok(())
    }

    /// How many symbols there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none; never true for a loaded table.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The symbol with the n-th name.
    fn ranked(&self, rank: usize) -> Option<usize> {
        let [a, b, c] = array(&self.by_name, rank.checked_mul(3)?)?;
        Some(to_usize(u64::from(u32::from_be_bytes([0, a, b, c]))))
    }

    /// The compressed name of symbol `index`: a run of token numbers.
    fn compressed(&self, index: usize) -> Option<&[u8]> {
        let marker = *self.markers.get(index / MARKER_STEP)?;
        let mut at = to_usize(u64::from(marker));
        for step in 0..=index % MARKER_STEP {
            let first = *self.names.get(at)?;
            at += 1;
            let mut len = usize::from(first);
            if first & 0x80 != 0 {
                len = usize::from(first & 0x7f) | usize::from(*self.names.get(at)?) << 7;
                at += 1;
            }
            if step == index % MARKER_STEP {
                return self.names.get(at..at.checked_add(len)?);
            }
            at = at.checked_add(len)?;
        }
        None
    }

    /// The bytes of symbol `index`'s name, without the type letter in front.
    fn expand<'a>(&'a self, index: usize) -> Option<impl Iterator<Item = u8> + 'a> {
        let tokens = self.compressed(index)?;
        let bytes = tokens.iter().flat_map(|&token| {
            let start = self
                .token_index
                .get(usize::from(token))
                .copied()
                .unwrap_or(u16::MAX);
            let token = self.tokens.get(usize::from(start)..).unwrap_or_default();
            token.iter().copied().take_while(|&byte| byte != 0)
        });
        Some(bytes.take(MAX_NAME).skip(1))
    }

    /// The name of symbol `index`.
    #[must_use]
    pub fn name(&self, index: usize) -> Option<String> {
        String::from_utf8(self.expand(index)?.collect()).ok()
    }

    /// The address of symbol `index`.
    #[must_use]
    pub fn address(&self, index: usize) -> Option<Kva> {
        let offset = le_u32(&self.offsets, index.checked_mul(4)?)?;
        let signed = i64::from(offset.cast_signed());
        Some(Kva(match self.addresses {
            Addresses::SelfRelative { offsets } => offsets
                .wrapping_add(to_u64(index) * 4)
                .wrapping_add_signed(signed),
            Addresses::Based {
                base,
                absolute_percpu: false,
            } => base.wrapping_add(u64::from(offset)),
            Addresses::Based {
                absolute_percpu: true,
                ..
            } if signed >= 0 => u64::from(offset),
            Addresses::Based { base, .. } => base.wrapping_sub(1).wrapping_add_signed(-signed),
        }))
    }

    /// Every address of a symbol of this name, lowest first: static symbols can share one.
    #[must_use]
    pub fn lookup_all(&self, name: &str) -> Vec<Kva> {
        let compare = |rank: usize| -> Ordering {
            match self.ranked(rank).and_then(|index| self.expand(index)) {
                Some(bytes) => bytes.cmp(name.bytes()),
                None => Ordering::Greater,
            }
        };
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if compare(middle) == Ordering::Less {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let same = (low..self.count).take_while(|&rank| compare(rank) == Ordering::Equal);
        let mut found: Vec<Kva> = same
            .filter_map(|rank| self.address(self.ranked(rank)?))
            .collect();
        found.sort_unstable();
        found
    }

    /// The lowest address of a symbol of this name.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<Kva> {
        self.lookup_all(name).first().copied()
    }

    /// How many symbols begin at or before `kva`.
    fn up_to(&self, kva: Kva) -> Option<usize> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.address(middle)? <= kva {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Some(low)
    }

    /// The symbol that `kva` lies in, and how far: the last one that begins at or before it,
    /// and of several at the same address the first, as the kernel prints it.
    #[must_use]
    pub fn symbolize(&self, kva: Kva) -> Option<(String, u64)> {
        let mut index = self.up_to(kva)?.checked_sub(1)?;
        let start = self.address(index)?;
        while index > 0 && self.address(index - 1) == Some(start) {
            index -= 1;
        }
        Some((self.name(index)?, kva.0 - start.0))
    }

    /// The end of the symbol that begins at or before `kva`: the next different address.
    #[must_use]
    pub fn end_of(&self, kva: Kva) -> Option<Kva> {
        self.address(self.up_to(kva)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of `count` symbols, each named by the one token, which is `name` with its type.
    fn forged(count: u32, name: &[u8]) -> Result<Kallsyms> {
        const NAMES: u64 = 0x10_0000_0000;
        const TOKENS: u64 = 0x20_0000_0000;
        const INDEX: u64 = 0x20_0000_1000;
        const OFFSETS: u64 = 0x30_0000_0000;
        const COUNT: u64 = 0x40_0000_0000;
        // Two bytes a name: the length 1 and token 0.
        let marker_count = u64::from(count).div_ceil(256);
        let names_at = TOKENS - marker_count * 4 - u64::from(count) * 2;
        let text = format!(
            "OSRELEASE=1\nSYMBOL(swapper_pg_dir)=1\nNUMBER(phys_base)=0\n\
             SYMBOL(kallsyms_names)={names_at:x}\nSYMBOL(kallsyms_token_table)={TOKENS:x}\n\
             SYMBOL(kallsyms_token_index)={INDEX:x}\nSYMBOL(kallsyms_offsets)={OFFSETS:x}\n\
             SYMBOL(kallsyms_num_syms)={COUNT:x}\n"
        );
        let info = Vmcoreinfo::parse(text.as_bytes()).unwrap();
        assert!(names_at > NAMES);
        Kallsyms::load(&info, &|at, len| {
            Ok(match at.0 {
                COUNT => count.to_le_bytes().to_vec(),
                at if at == names_at => [1, 0].repeat(len / 2),
                TOKENS => {
                    let mut token = [b"T", name].concat();
                    token.resize(len, 0);
                    token
                }
                INDEX | OFFSETS => vec![0; len],
                at if at < TOKENS => (0..len / 4)
                    .flat_map(|i| u32::try_from(i * 512).unwrap().to_le_bytes())
                    .collect(),
                // The order by name.
                _ => return Err(Error::NoSymbol(String::new())),
            })
        })
    }

    #[test]
    fn a_lost_order_by_name_is_rebuilt() {
        let table = forged(1000, b"schedule").unwrap();
        assert_eq!(table.lookup_all("schedule").len(), 1000);
        assert_eq!(table.lookup("other"), None);
    }

    #[test]
    fn a_forged_table_does_not_grow_without_end() {
        let error = forged(1_000_000, &[b'x'; 512]).unwrap_err();
        assert!(error.to_string().contains("all symbol names"), "{error}");
    }
}
