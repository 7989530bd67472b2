//! Which pages a capture can do without: free, user memory, page cache.
//!
//! The guest's own kernel has a descriptor (`struct page`) for each page of its memory, and these
//! are what is asked here, for the choices that makedumpfile's dump levels offer. A page is left
//! out only when its descriptor, or that of the compound page that it is part of, says without
//! doubt what it is; whatever cannot be read or has a meaning that is not known stays. The same
//! works on a file and on the memory of a guest that stands still.
//!
//! Mirrors `include/linux/page-flags.h`, `include/linux/mm_types.h`, `include/linux/mmzone.h` and
//! `mm/page_alloc.c`.

use std::ops::Range;
use std::str::FromStr;

use rayon::prelude::*;
use scx_postmortem_format::capture::{Excluded, Rule, Run};

use crate::addr::Kva;
use crate::bytes::{le_u32, le_u64, to_u64, to_usize};
use crate::error::{Error, Result};
use crate::kernel::Kernel;

const PAGE: u64 = 4096;
/// Pages whose descriptors are read at a time: no block of free pages (`MAX_PAGE_ORDER` is 10 on
/// x86-64) reaches from one such range into the next.
const STEP: u64 = 1 << 10;
/// `SECTION_HAS_MEM_MAP` and `SECTION_IS_ONLINE` of `mem_section.section_mem_map`
/// (include/linux/mmzone.h): a section whose descriptors exist and are in use.
const SECTION_IN_USE: u64 = 1 << 1 | 1 << 2;
/// The other bits of `section_mem_map` that are no address.
const SECTION_BITS: u64 = 0xff;
/// `GUP_PIN_COUNTING_BIAS`: what a pin adds to the count of a page that is none of several.
const PIN_BIAS: u32 = 1 << 10;
/// `MAX_NUMNODES` of the largest kernels.
const MAX_NODES: u32 = 1024;
/// More zones than any kernel has per node.
const MAX_ZONES: u64 = 16;
/// More lists than any kernel has per CPU and zone.
const MAX_LISTS: u64 = 64;
/// `PAGE_ALLOC_COSTLY_ORDER`: lists of larger blocks than that are for huge pages only.
const COSTLY_ORDER: u64 = 3;

/// What to leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// Pages that nobody has.
    pub free: bool,
    /// Anonymous memory of processes, and huge pages for them.
    pub user: bool,
    /// Content of files.
    pub cache: bool,
}

impl Rules {
    const fn has(self, rule: Rule) -> bool {
        match rule {
            Rule::Free => self.free,
            Rule::User => self.user,
            Rule::Cache => self.cache,
            _ => false,
        }
    }
}

impl FromStr for Rules {
    type Err = String;

    fn from_str(list: &str) -> std::result::Result<Self, String> {
        let mut rules = Self::default();
        for name in list.split(',').map(str::trim) {
            match Rule::from_name(name) {
                Rule::Free => rules.free = true,
                Rule::User => rules.user = true,
                Rule::Cache => rules.cache = true,
                _ => {
                    return Err(format!(
                        "{name:?}: expected a list of free, user and cache, as free,user,cache"
                    ));
                }
            }
        }
        Ok(rules)
    }
}

/// The pages of the image that the rules leave out.
///
/// Takes time in proportion to the number of pages: a descriptor of 64 bytes for each is read, in
/// parallel.
///
/// # Errors
/// When this kernel's page descriptors cannot be found or understood: nothing should be left out
/// then. A descriptor that cannot be read is no error: its page stays.
pub fn plan(kernel: &Kernel, rules: Rules) -> Result<Excluded> {
    let map = MemoryMap::new(kernel)?;
    let listed = if rules.free {
        map.per_cpu_lists()
    } else {
        Vec::new()
    };
    let mut steps = Vec::new();
    for region in kernel.image.memory.regions() {
        let pages = region.start.0.div_ceil(PAGE)..region.end().0 / PAGE;
        map.described(pages, &mut steps);
    }
    let found: Vec<Vec<Option<Rule>>> = steps
        .par_iter()
        .map(|step| map.classify(step, &listed))
        .collect();
    let mut excluded = Excluded::default();
    for (step, rules_of) in steps.iter().zip(&found) {
        for (page, rule) in step.clone().zip(rules_of) {
            if let Some(rule) = rule.filter(|&rule| rules.has(rule)) {
                excluded.push(Run {
                    gpa: page * PAGE,
                    bytes: PAGE,
                    rule,
                });
            }
        }
    }
    Ok(excluded)
}

/// Where the members of `struct page` are.
struct Members {
    size: u64,
    flags: usize,
    compound: usize,
    mapping: usize,
    private: usize,
    page_type: usize,
    refcount: usize,
    /// `_pincount` of a folio of several pages, where this kernel counts pins apart.
    pins: Option<u64>,
}

/// The guest's page descriptors and what is needed to understand them.
struct MemoryMap<'k> {
    kernel: &'k Kernel,
    base: Kva,
    members: Members,
    /// `PG_reserved` and `PG_head`.
    reserved: u64,
    head: u64,
    /// Values of `enum pagetype`.
    buddy: u32,
    hugetlb: u32,
    /// Sections of memory: pages in each, and the table of tables with their descriptions.
    section_pages: u64,
    sections: Kva,
    section_size: u64,
    section_map: u64,
}

/// One page descriptor.
#[derive(Clone, Copy)]
struct Page {
    flags: u64,
    compound: u64,
    mapping: u64,
    private: u64,
    page_type: u32,
    refcount: u32,
}

impl Page {
    /// What kind of page it says it is, if it says so (`page_type_has_type()`): the member is
    /// shared with `_mapcount`, of which -1 and the first values below it are none.
    const fn kind(&self) -> Option<u32> {
        let top = self.page_type >> 24;
        if top >= 0x80 && top < 0xff {
            Some(top)
        } else {
            None
        }
    }

    const fn is_tail(&self) -> bool {
        self.compound & 1 == 1
    }
}

fn size_of(kernel: &Kernel, name: &str) -> Result<u64> {
    let size = kernel.btf.size_of(kernel.btf.find(name)?);
    size.filter(|&size| size > 0)
        .ok_or_else(|| Error::NoType(format!("{name} with a size")))
}

impl Members {
    fn new(kernel: &Kernel) -> Result<Self> {
        let page = kernel.object("struct page", Kva::NULL)?;
        let at = |paths: &[&'static str]| {
            let member = page.first_of(paths)?;
            Ok(to_usize(member.address().0))
        };
        Ok(Self {
            size: size_of(kernel, "struct page")?,
            // A struct of its own since 6.18 (mm: introduce memdesc_flags_t).
            flags: at(&["flags.f", "flags"])?,
            // Renamed in 7.1, when it may hold a mask instead of an address.
            compound: at(&["compound_info", "compound_head"])?,
            mapping: at(&["mapping"])?,
            private: at(&["private"])?,
            page_type: at(&["page_type"])?,
            refcount: at(&["_refcount"])?,
            pins: kernel
                .object("struct folio", Kva::NULL)
                .and_then(|folio| folio.member("_pincount"))
                .map(|pins| pins.address().0)
                .ok(),
        })
    }

    fn page(&self, bytes: &[u8]) -> Option<Page> {
        Some(Page {
            flags: le_u64(bytes, self.flags)?,
            compound: le_u64(bytes, self.compound)?,
            mapping: le_u64(bytes, self.mapping)?,
            private: le_u64(bytes, self.private)?,
            page_type: le_u32(bytes, self.page_type)?,
            refcount: le_u32(bytes, self.refcount)?,
        })
    }
}

impl<'k> MemoryMap<'k> {
    fn new(kernel: &'k Kernel) -> Result<Self> {
        let flag = |name| {
            let bit = kernel.constant("enum pageflags", name)?;
            let bit = u32::try_from(bit)
                .ok()
                .and_then(|bit| 1u64.checked_shl(bit));
            bit.ok_or_else(|| Error::Implausible {
                what: name.to_owned(),
                found: "no bit of 64".into(),
                why: "a flag of a page",
            })
        };
        // Before 6.11 (mm: store the page type in the top byte) these were bits of their own.
        let kind = |name| {
            let value = kernel.constant("enum pagetype", name)?;
            let value = u32::try_from(value)
                .ok()
                .filter(|v| (0x80..0xff).contains(v));
            value.ok_or_else(|| Error::Implausible {
                what: name.to_owned(),
                found: "no value of a page type's top byte".into(),
                why: "0x80 to 0xfe",
            })
        };
        let bits = kernel.vmcoreinfo.get("NUMBER(SECTION_SIZE_BITS)");
        let bits: u32 = bits.and_then(|bits| bits.parse().ok()).unwrap_or(27);
        if !(21..=40).contains(&bits) {
            return Err(Error::Implausible {
                what: "SECTION_SIZE_BITS of VMCOREINFO".into(),
                found: bits.to_string(),
                why: "21 to 40",
            });
        }
        let section = kernel.object("struct mem_section", Kva::NULL)?;
        let section_size = size_of(kernel, "struct mem_section")?;
        if section_size > PAGE {
            return Err(Error::Implausible {
                what: "the size of struct mem_section".into(),
                found: section_size.to_string(),
                why: "at most a page",
            });
        }
        let members = Members::new(kernel)?;
        if members.size > 1024 {
            return Err(Error::Implausible {
                what: "the size of struct page".into(),
                found: members.size.to_string(),
                why: "at most 1024",
            });
        }
        Ok(Self {
            kernel,
            base: kernel.read_ptr(kernel.symbol("vmemmap_base")?)?,
            members,
            reserved: flag("PG_reserved")?,
            head: flag("PG_head")?,
            buddy: kind("PGTY_buddy")?,
            hugetlb: kind("PGTY_hugetlb")?,
            section_pages: 1 << (bits - 12),
            // struct mem_section **mem_section (CONFIG_SPARSEMEM_EXTREME)
            sections: kernel.read_ptr(kernel.symbol("mem_section")?)?,
            section_size,
            section_map: section.member("section_mem_map")?.address().0,
        })
    }

    fn descriptor(&self, page: u64) -> Kva {
        self.base.add(page.wrapping_mul(self.members.size))
    }

    /// The page that a descriptor at this address is of.
    fn page_of(&self, descriptor: u64) -> Option<u64> {
        let offset = descriptor.checked_sub(self.base.0)?;
        offset
            .is_multiple_of(self.members.size)
            .then_some(offset / self.members.size)
    }

    /// Whether the section has descriptors that are in use (`__nr_to_section()`, `valid_section()`,
    /// `online_section()`).
    fn in_use(&self, section: u64) -> Result<bool> {
        let per_root = PAGE / self.section_size;
        let root = self
            .kernel
            .read_ptr(self.sections.add((section / per_root).wrapping_mul(8)))?;
        if root.is_null() {
            return Ok(false);
        }
        let at = root.add((section % per_root) * self.section_size + self.section_map);
        let map = self.kernel.read_u64(at)?;
        // With a virtual memory map every section's word has the address of page 0's descriptor.
        Ok(map & SECTION_IN_USE == SECTION_IN_USE && map & !SECTION_BITS == self.base.0)
    }

    /// Adds the parts of `pages` that have descriptors, in steps.
    fn described(&self, pages: Range<u64>, steps: &mut Vec<Range<u64>>) {
        let mut at = pages.start;
        while at < pages.end {
            let section = at / self.section_pages;
            let end = pages
                .end
                .min((section + 1).saturating_mul(self.section_pages));
            if self.in_use(section) == Ok(true) {
                while at < end {
                    let next = end.min((at / STEP + 1) * STEP);
                    steps.push(at..next);
                    at = next;
                }
            }
            at = end;
        }
    }

    /// What each page of a step is; nothing where its descriptor cannot be read.
    fn classify(&self, step: &Range<u64>, listed: &[Range<u64>]) -> Vec<Option<Rule>> {
        let len = to_usize(step.end - step.start);
        let mut found = vec![None; len];
        let size = to_usize(self.members.size);
        let mut raw = vec![0; len.saturating_mul(size)];
        if self
            .kernel
            .read(self.descriptor(step.start), &mut raw)
            .is_err()
        {
            return found;
        }
        let pages: Vec<Option<Page>> = raw
            .chunks_exact(size)
            .map(|bytes| self.members.page(bytes))
            .collect();
        // The head of the compound page that came last, and what it is.
        let mut last: Option<(u64, Option<Rule>)> = None;
        for (index, page) in pages.iter().enumerate() {
            let Some(page) = page else { continue };
            let number = step.start + to_u64(index);
            let rule = if page.kind() == Some(self.buddy) {
                self.mark_free(step, index, &pages, &mut found);
                continue;
            } else if page.is_tail() {
                let head = self.head_of(number, page);
                match (head, last) {
                    (Some(head), Some((known, rule))) if head == known => rule,
                    (Some(head), _) => {
                        let rule = self.rule_at(head);
                        last = Some((head, rule));
                        rule
                    }
                    (None, _) => None,
                }
            } else if page.flags & self.head != 0 {
                let rule = self.rule_of(number, page);
                last = Some((number, rule));
                rule
            } else {
                self.rule_of(number, page)
            };
            if let (Some(rule), Some(place)) = (rule, found.get_mut(index)) {
                *place = Some(rule);
            }
        }
        self.mark_listed(step, &pages, listed, &mut found);
        found
    }

    /// A block of the buddy allocator (`PageBuddy()`, `buddy_order()`): its first page has the
    /// order, and nobody holds any of the others. Otherwise it stays.
    fn mark_free(
        &self,
        step: &Range<u64>,
        index: usize,
        pages: &[Option<Page>],
        found: &mut [Option<Rule>],
    ) {
        let order = pages.get(index).copied().flatten().map(|page| page.private);
        let Some(order) = order.filter(|&order| 1 << order.min(63) <= STEP) else {
            return;
        };
        let count = to_usize(1 << order);
        let number = step.start + to_u64(index);
        let block = index..index.saturating_add(count);
        let Some(inside) = pages.get(block.clone()) else {
            return;
        };
        let unused = |page: &Option<Page>| page.is_some_and(|page| page.refcount == 0);
        let aligned = number.is_multiple_of(to_u64(count));
        if let Some(places) = found.get_mut(block).filter(|_| aligned)
            && inside.iter().all(unused)
        {
            places.fill(Some(Rule::Free));
        }
    }

    /// Free pages that a CPU keeps for itself.
    fn mark_listed(
        &self,
        step: &Range<u64>,
        pages: &[Option<Page>],
        listed: &[Range<u64>],
        found: &mut [Option<Rule>],
    ) {
        let from = listed.partition_point(|range| range.end <= step.start);
        let here = listed.iter().skip(from);
        for range in here.take_while(|range| range.start < step.end) {
            for number in range.start.max(step.start)..range.end.min(step.end) {
                let index = to_usize(number - step.start);
                let page = pages.get(index).copied().flatten();
                let unused = page.is_some_and(|page| {
                    page.refcount == 0 && page.kind().is_none() && page.mapping == 0
                });
                if let Some(place) = found.get_mut(index).filter(|_| unused) {
                    *place = Some(Rule::Free);
                }
            }
        }
    }

    /// The first page of the compound page that a tail page belongs to (`compound_head()`): its
    /// descriptor's address plus one, or, from 7.1 on kernels that share the descriptors of huge
    /// pages, a mask for the descriptor's address.
    fn head_of(&self, number: u64, tail: &Page) -> Option<u64> {
        let at = self.descriptor(number).0;
        let mask = tail.compound & !1;
        let is_mask = (!mask).wrapping_add(1).is_power_of_two();
        let head = if is_mask { at & mask } else { mask };
        self.page_of(head).filter(|&head| head < number)
    }

    /// What the compound page is that begins at a page.
    fn rule_at(&self, head: u64) -> Option<Rule> {
        let mut raw = vec![0; to_usize(self.members.size)];
        self.kernel.read(self.descriptor(head), &mut raw).ok()?;
        let page = self.members.page(&raw)?;
        let is_head = page.flags & self.head != 0 && !page.is_tail();
        is_head.then(|| self.rule_of(head, &page)).flatten()
    }

    /// Whether the kernel may have pinned the page (`folio_maybe_dma_pinned()`): it then uses it
    /// as its own, as BPF does with the user memory that a `__uptr` leads to.
    fn may_be_pinned(&self, number: u64, page: &Page) -> bool {
        if page.flags & self.head == 0 {
            return page.refcount >= PIN_BIAS;
        }
        let pins = self.members.pins.map(|at| self.descriptor(number).add(at));
        !pins.is_some_and(|at| self.kernel.read_u32(at) == Ok(0))
    }

    /// What a page is that is in use. Slabs, page tables and others have a type, and their
    /// `mapping` is something else.
    fn rule_of(&self, number: u64, page: &Page) -> Option<Rule> {
        if page.flags & self.reserved != 0 || self.may_be_pinned(number, page) {
            return None;
        }
        match page.kind() {
            Some(kind) if kind == self.hugetlb => return Some(Rule::User),
            Some(_) => return None,
            None => {}
        }
        // FOLIO_MAPPING_ANON is bit 0; bit 1 alone was a driver's movable page before 6.17.
        match page.mapping & 3 {
            1 | 3 => Some(Rule::User),
            // An address_space, so aligned and in the kernel's half of the addresses.
            0 if page.mapping >> 56 == 0xff && page.mapping.is_multiple_of(8) => Some(Rule::Cache),
            _ => None,
        }
    }

    /// The free pages on the CPUs' own lists (`zone.per_cpu_pageset`), ascending. What cannot be
    /// read of them stays.
    fn per_cpu_lists(&self) -> Vec<Range<u64>> {
        let mut listed = Vec::new();
        let nodes = self.kernel.symbol("nr_node_ids");
        let nodes = nodes.and_then(|at| self.kernel.read_u32(at)).unwrap_or(1);
        for node in 0..nodes.min(MAX_NODES) {
            // A node that is not there, or a list that cannot be walked, has nothing to add.
            let _ = self.node_lists(u64::from(node), &mut listed);
        }
        listed.sort_unstable_by_key(|range: &Range<u64>| range.start);
        listed
    }

    fn node_lists(&self, node: u64, listed: &mut Vec<Range<u64>>) -> Result<()> {
        let kernel = self.kernel;
        let pgdat = kernel.read_ptr(kernel.symbol("node_data")?.add(node * 8))?;
        if pgdat.is_null() {
            return Ok(());
        }
        let zones = kernel
            .object("struct pglist_data", pgdat)?
            .member("node_zones")?;
        let link = kernel.object("struct page", Kva::NULL)?;
        let link = link.first_of(&["pcp_list", "lru"])?.address().0;
        let types = kernel.constant("enum migratetype", "MIGRATE_PCPTYPES")?;
        let types = u64::try_from(types).unwrap_or(0).max(1);
        // A list that comes back to what another one has is no list; and nothing is endless.
        let room = to_usize(kernel.image.memory_bytes() / PAGE);
        for zone in 0..u64::from(zones.array_len()?).min(MAX_ZONES) {
            let zone = zones.index(zone)?;
            if zone.member("present_pages")?.u64()? == 0 {
                continue;
            }
            let sets = zone.member("per_cpu_pageset")?;
            for cpu in kernel.cpus() {
                let lists = sets.deref_per_cpu(cpu)?.member("lists")?;
                for list in 0..u64::from(lists.array_len()?).min(MAX_LISTS) {
                    // order_to_pindex(): by order, then by type; huge pages last.
                    let order = list / types;
                    if order > COSTLY_ORDER {
                        break;
                    }
                    let room = room.saturating_sub(listed.len());
                    let walk = kernel.list(lists.index(list)?.address(), room);
                    let first = walk
                        .items
                        .iter()
                        .filter_map(|node| self.page_of(node.sub(link).0));
                    listed.extend(first.map(|page| page..page.saturating_add(1 << order)));
                }
            }
        }
        Ok(())
    }
}
