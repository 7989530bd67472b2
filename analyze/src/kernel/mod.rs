//! The guest's kernel, found in the image alone.
//!
//! Order of discovery: VMCOREINFO (note, else scanned for) gives release, `phys_base`, the
//! page-table root and the kallsyms tables; kallsyms gives every symbol; `__start_BTF` and
//! `__stop_BTF` give the types; bases and per-CPU offsets are then variables like any other.
//! Every step that took something from elsewhere is named in [`Kernel::provenance`].
#![forbid(unsafe_code)]

mod bpf_ksyms;
pub mod btf;
mod cgroup;
mod containers;
mod cpus;
pub mod kallsyms;
mod modules;
pub mod orc;
pub mod paging;
pub mod vmcoreinfo;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, RwLock};

use rayon::prelude::*;

pub use self::btf::{Btf, Field, TypeId};
pub use self::containers::{Walk, WalkEnd};
pub use self::cpus::cpu_list;
use self::kallsyms::Kallsyms;
pub use self::paging::Mapped;
use self::paging::PageTable;
use self::vmcoreinfo::Vmcoreinfo;
use crate::addr::{Gpa, Kva};
use crate::bytes::{le_u64, to_u64, to_usize};
use crate::error::{Error, Result};
use crate::object::Object;
use crate::source::{Image, PhysicalMemory};

/// `__START_KERNEL_map`: where the kernel image is mapped.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// `KERNEL_IMAGE_SIZE` where VMCOREINFO does not tell.
const IMAGE_SIZE: u64 = 1 << 30;
/// Largest single read: more is a count gone wrong.
const MAX_READ: usize = 64 << 20;
/// `NR_CPUS` of the largest distribution kernels.
const MAX_CPUS: u32 = 8192;

/// Files that stand in for what an image lacks.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--vmcoreinfo FILE`: its text.
    pub vmcoreinfo: Option<PathBuf>,
    /// `--btf FILE`: a raw BTF blob.
    pub btf: Option<PathBuf>,
    /// `--vmlinux FILE`: an ELF vmlinux with a symbol table, BTF, or both.
    pub vmlinux: Option<PathBuf>,
    /// `--system-map FILE`.
    pub system_map: Option<PathBuf>,
}

/// Where one ingredient came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// The ingredient: `vmcoreinfo`, `symbols`, `types`.
    pub what: &'static str,
    /// Its source: `note`, `memory`, or the flag that supplied it.
    pub source: String,
}

/// Symbols, wherever they came from.
#[derive(Debug)]
enum Symbols {
    Kallsyms(Kallsyms),
    /// From a file: name → run-time address, and the addresses in order.
    File {
        by_name: HashMap<String, Kva>,
        by_address: Vec<(Kva, String)>,
    },
}

/// Cached member paths: type, path (by address and length, since paths are literals).
type FieldCache = RwLock<HashMap<(TypeId, usize, usize), Result<Field>>>;

/// A kernel that was found in an image.
pub struct Kernel {
    /// The file's content.
    pub image: Image,
    /// VMCOREINFO as found.
    pub vmcoreinfo: Vmcoreinfo,
    /// The kernel's types.
    pub btf: Arc<Btf>,
    /// Where each ingredient came from.
    pub provenance: Vec<Provenance>,
    /// The page tables of the kernel itself.
    pub page_table: PageTable,
    /// Base of the direct map.
    pub page_offset: Kva,
    symbols: Symbols,
    phys_base: u64,
    image_size: u64,
    nr_cpu_ids: u32,
    /// `__per_cpu_offset[cpu]` per possible CPU; `None` where the CPU is not possible.
    per_cpu_offsets: Vec<Option<u64>>,
    fields: FieldCache,
    bpf_ksyms: OnceLock<Vec<bpf_ksyms::BpfKsym>>,
    modules: OnceLock<Vec<modules::Module>>,
    orc: OnceLock<Result<orc::Orc>>,
}

/// An address by the symbol before it.
struct Place {
    name: String,
    offset: u64,
    /// Bytes to the next symbol.
    size: u64,
    module: Option<String>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{:#x}/{:#x}", self.name, self.offset, self.size)?;
        match &self.module {
            Some(module) => write!(f, " [{module}]"),
            None => Ok(()),
        }
    }
}

/// Whose code an address is in.
enum Text {
    /// The kernel image's.
    Kernel,
    /// A module's, which has unwind tables of its own.
    Module(orc::Table),
    /// A BPF program's or trampoline's.
    Bpf,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("release", &self.release())
            .field("page_table", &self.page_table)
            .finish_non_exhaustive()
    }
}

/// What is needed to read by KVA, before there are symbols.
struct Early<'a> {
    memory: &'a dyn PhysicalMemory,
    phys_base: u64,
    image_size: u64,
}

impl Early<'_> {
    /// Reads from the kernel image mapping, which is physically contiguous.
    fn fetch(&self, kva: Kva, len: usize) -> Result<Vec<u8>> {
        let gpa = image_to_phys(kva, self.phys_base, self.image_size)
            .ok_or(Error::NotMapped(kva, "kernel image"))?;
        if len > MAX_READ {
            return Err(Error::Implausible {
                what: format!("a table at {kva}"),
                found: format!("{len} bytes"),
                why: "at most 64 MiB",
            });
        }
        let mut buf = vec![0; len];
        // Large tables decode many frames of a capture; each is independent.
        buf.par_chunks_mut(1 << 18)
            .enumerate()
            .try_for_each(|(i, chunk)| self.memory.read(gpa.add(to_u64(i) << 18), chunk))?;
        Ok(buf)
    }
}

/// A kernel-image address as a physical one.
fn image_to_phys(kva: Kva, phys_base: u64, image_size: u64) -> Option<Gpa> {
    let offset = kva.0.checked_sub(KERNEL_MAP)?;
    (offset < image_size).then(|| Gpa(offset.wrapping_add(phys_base)))
}

impl Kernel {
    /// Finds the kernel in an image.
    ///
    /// # Errors
    /// One sentence: what was looked for, what was found, and which flag supplies it.
    pub fn find(image: Image, overrides: &Overrides) -> std::result::Result<Self, String> {
        let mut provenance = Vec::new();
        if let Some(id) = crate::tables::needed(&image) {
            return Err(crate::tables::missing(id, true));
        }
        let vmcoreinfo = find_vmcoreinfo(&image, overrides, &mut provenance)?;
        let release = vmcoreinfo.release().unwrap_or_default().to_owned();

        // parse() has seen both.
        let phys_base = vmcoreinfo.phys_base().unwrap_or_default().cast_unsigned();
        let root = vmcoreinfo.symbol("swapper_pg_dir").unwrap_or_default();
        let image_size = vmcoreinfo.image_size().unwrap_or(IMAGE_SIZE).min(1 << 31);
        let early = Early {
            memory: &*image.memory,
            phys_base,
            image_size,
        };
        let root = image_to_phys(root, phys_base, image_size).ok_or_else(|| {
            format!("VMCOREINFO puts swapper_pg_dir at {root}, outside the kernel image")
        })?;
        let page_table = PageTable {
            root,
            five_levels: vmcoreinfo.five_levels().unwrap_or(false),
            sme_mask: vmcoreinfo.sme_mask(),
        };

        let symbols = find_symbols(&vmcoreinfo, &early, overrides, &mut provenance)?;
        let btf = find_btf(
            &symbols,
            &early,
            &image,
            overrides,
            &release,
            &mut provenance,
        )?;

        let mut kernel = Self {
            vmcoreinfo,
            btf: Arc::new(btf),
            provenance,
            page_table,
            page_offset: Kva::NULL,
            symbols,
            phys_base,
            image_size,
            nr_cpu_ids: 0,
            per_cpu_offsets: Vec::new(),
            fields: RwLock::default(),
            bpf_ksyms: OnceLock::new(),
            modules: OnceLock::new(),
            orc: OnceLock::new(),
            image,
        };
        kernel.page_offset = kernel
            .symbol("page_offset_base")
            .and_then(|at| kernel.read_u64(at))
            .map(Kva)
            .map_err(|e| format!("cannot find the direct map: {e}"))?;
        kernel.check_banner(&release)?;
        let no_areas = |e| format!("cannot find the per-CPU areas: {e}");
        kernel.nr_cpu_ids = kernel.read_nr_cpu_ids().map_err(no_areas)?;
        kernel.per_cpu_offsets = kernel.read_per_cpu_offsets().map_err(no_areas)?;
        kernel.check_types()?;
        Ok(kernel)
    }

    /// Types of another build would give a wrong report without a word: `rq->cpu` must be the
    /// CPU whose run queue it is. Only asked of types that did not come with the symbols.
    fn check_types(&self) -> std::result::Result<(), String> {
        let source = self.provenance.iter().find(|p| p.what == "types");
        let Some(source) = source.filter(|p| p.source != "memory") else {
            return Ok(());
        };
        for cpu in self.cpus().take(64) {
            let found = self
                .per_cpu_object("runqueues", "struct rq", cpu)
                .and_then(|rq| rq.member("cpu")?.u32());
            if found != Ok(cpu) {
                return Err(format!(
                    "the types from {} do not fit this kernel: struct rq of CPU {cpu} is not where they say; they must come from the very build {}",
                    source.source,
                    self.release()
                ));
            }
        }
        Ok(())
    }

    /// The addresses are right exactly when the banner is where they say.
    fn check_banner(&self, release: &str) -> std::result::Result<(), String> {
        let banner = self
            .banner()
            .map_err(|e| format!("cannot read linux_banner: {e}"))?;
        if banner.starts_with(&format!("Linux version {release} ")) {
            return Ok(());
        }
        let shown: String = banner.chars().take(40).collect();
        Err(format!(
            "VMCOREINFO says release {release}, but linux_banner reads {shown:?}: stale VMCOREINFO, or symbols of another kernel"
        ))
    }

    /// `linux_banner`, without the newline.
    ///
    /// # Errors
    /// When the symbol or its memory is missing.
    pub fn banner(&self) -> Result<String> {
        Ok(self
            .read_cstr(self.symbol("linux_banner")?, 512)?
            .trim_end()
            .to_owned())
    }

    /// `uname -r` of the guest.
    #[must_use]
    pub fn release(&self) -> &str {
        self.vmcoreinfo.release().unwrap_or_default()
    }

    /// How far KASLR moved the kernel image, bytes.
    #[must_use]
    pub fn kaslr_offset(&self) -> Option<u64> {
        self.vmcoreinfo.kaslr_offset()
    }

    /// `phys_base`: physical minus link address of the kernel image, signed.
    #[must_use]
    pub const fn phys_base(&self) -> i64 {
        self.phys_base.cast_signed()
    }

    // ---- symbols ----

    /// The address of a symbol.
    ///
    /// # Errors
    /// [`Error::NoSymbol`].
    pub fn symbol(&self, name: &str) -> Result<Kva> {
        let found = match &self.symbols {
            Symbols::Kallsyms(table) => table.lookup(name),
            Symbols::File { by_name, .. } => by_name.get(name).copied(),
        };
        found.ok_or_else(|| Error::NoSymbol(name.to_owned()))
    }

    /// The kernel's own symbol table, unless a file stands in for it.
    #[must_use]
    pub const fn kallsyms(&self) -> Option<&Kallsyms> {
        match &self.symbols {
            Symbols::Kallsyms(table) => Some(table),
            Symbols::File { .. } => None,
        }
    }

    /// Whose code is at an address.
    fn text_at(&self, kva: Kva) -> Option<Text> {
        if image_to_phys(kva, 0, self.image_size).is_some() {
            return Some(Text::Kernel);
        }
        if let Some(module) = self.module_at(kva) {
            return Some(Text::Module(module.table()));
        }
        bpf_ksyms::find(self.bpf_ksyms(), kva).map(|_| Text::Bpf)
    }

    fn bpf_ksyms(&self) -> &[bpf_ksyms::BpfKsym] {
        self.bpf_ksyms.get_or_init(|| self.read_bpf_ksyms())
    }

    /// The name of what a return address goes back to, which may be behind the last instruction
    /// of the function that made the call (`%pB`).
    #[must_use]
    pub fn symbolize_return(&self, kva: Kva) -> Option<String> {
        let mut place = self.place(kva.sub(1))?;
        place.offset += 1;
        Some(place.to_string())
    }

    /// `symbol+0x12/0x34` as the kernel prints an address: in the kernel image, in a module, or in
    /// JITed BPF code. `None` for anything else.
    #[must_use]
    pub fn symbolize(&self, kva: Kva) -> Option<String> {
        Some(self.place(kva)?.to_string())
    }

    fn place(&self, kva: Kva) -> Option<Place> {
        if image_to_phys(kva, 0, self.image_size).is_none() {
            return match self.module_at(kva) {
                Some(module) => module.place(self, kva),
                None => bpf_ksyms::place(self.bpf_ksyms(), kva),
            };
        }
        let (name, offset, end) = match &self.symbols {
            Symbols::Kallsyms(table) => {
                let (name, offset) = table.symbolize(kva)?;
                (name, offset, table.end_of(kva))
            }
            Symbols::File { by_address, .. } => {
                let next = by_address.partition_point(|(at, _)| *at <= kva);
                let (start, _) = by_address.get(next.checked_sub(1)?)?;
                // Of several names for one address the first, as with kallsyms.
                let first = by_address.partition_point(|(at, _)| at < start);
                let (_, name) = by_address.get(first)?;
                (
                    name.clone(),
                    kva.0 - start.0,
                    by_address.get(next).map(|(at, _)| *at),
                )
            }
        };
        let size = end.map_or(offset, |end| end.0.wrapping_sub(kva.0).wrapping_add(offset));
        Some(Place {
            name,
            offset,
            size,
            module: None,
        })
    }

    // ---- memory ----

    /// Translates a kernel address: kernel image and direct map by arithmetic, everything else
    /// through the page tables. Returns the physical address and how many bytes follow it
    /// contiguously.
    ///
    /// # Errors
    /// As [`PageTable::walk`].
    pub fn translate(&self, kva: Kva) -> Result<(Gpa, u64)> {
        // The direct map by arithmetic, but only where there is memory: a block of memory high up
        // must not make it swallow what is mapped behind its end.
        let direct = Gpa(kva.0.wrapping_sub(self.page_offset.0));
        let regions = self.image.memory.regions();
        let next = regions.partition_point(|r| r.start <= direct);
        let region = next.checked_sub(1).and_then(|i| regions.get(i));
        if let Some(region) = region.filter(|r| direct < r.end() && !self.page_offset.is_null()) {
            return Ok((direct, region.end().0 - direct.0));
        }
        // Modules share the top of the image window on some layouts, so only the part below
        // `image_size` is arithmetic, as `__phys_addr` has it.
        if let Some(gpa) = image_to_phys(kva, self.phys_base, self.image_size) {
            return Ok((gpa, self.image_size - (kva.0 - KERNEL_MAP)));
        }
        let mapping = self.page_table.walk(&*self.image.memory, kva)?;
        Ok((mapping.gpa, mapping.contiguous))
    }

    /// The physical address of the page that a `struct page` in the memory map describes
    /// (`page_to_phys`, with CONFIG_SPARSEMEM_VMEMMAP).
    ///
    /// # Errors
    /// When the memory map's base or the size of `struct page` is not known.
    pub fn page_to_gpa(&self, page: Kva) -> Result<Gpa> {
        let base = self.read_ptr(self.symbol("vmemmap_base")?)?;
        let ty = self.btf.find("struct page")?;
        let size = self.btf.size_of(ty).filter(|&size| size > 0);
        let size = size.ok_or_else(|| Error::NoType("struct page with a size".into()))?;
        Ok(Gpa((page.0.wrapping_sub(base.0) / size).wrapping_mul(4096)))
    }

    /// The mapped 4 KiB pages from `start` up to `end`, ascending, at most `limit`: found
    /// through the page tables, so that the cost is that of what is mapped.
    #[must_use]
    pub fn mapped_pages(&self, start: Kva, end: Kva, limit: usize) -> Mapped {
        self.page_table
            .mapped(&*self.image.memory, start, end, limit)
    }

    /// Fills `buf` from kernel memory, page by page where it is not contiguous.
    ///
    /// # Errors
    /// When any byte cannot be translated or read.
    pub fn read(&self, kva: Kva, buf: &mut [u8]) -> Result<()> {
        let mut at = kva;
        let mut rest = buf;
        while !rest.is_empty() {
            let (gpa, contiguous) = self.translate(at)?;
            let len = to_usize(contiguous).min(rest.len());
            let (head, tail) = rest.split_at_mut(len);
            self.image.memory.read(gpa, head)?;
            rest = tail;
            at = at.add(to_u64(len));
        }
        Ok(())
    }

    /// Reads `len` bytes of kernel memory.
    ///
    /// # Errors
    /// As [`Kernel::read`]; also when `len` exceeds 64 MiB.
    pub fn read_bytes(&self, kva: Kva, len: u64) -> Result<Vec<u8>> {
        let len = to_usize(len);
        if len > MAX_READ {
            return Err(Error::Implausible {
                what: format!("the length of an object at {kva}"),
                found: format!("{len} bytes"),
                why: "at most 64 MiB",
            });
        }
        let mut buf = vec![0; len];
        self.read(kva, &mut buf)?;
        Ok(buf)
    }

    /// Reads a u64.
    ///
    /// # Errors
    /// As [`Kernel::read`].
    pub fn read_u64(&self, kva: Kva) -> Result<u64> {
        let mut raw = [0; 8];
        self.read(kva, &mut raw)?;
        Ok(u64::from_le_bytes(raw))
    }

    /// Reads a u32.
    ///
    /// # Errors
    /// As [`Kernel::read`].
    pub fn read_u32(&self, kva: Kva) -> Result<u32> {
        let mut raw = [0; 4];
        self.read(kva, &mut raw)?;
        Ok(u32::from_le_bytes(raw))
    }

    /// Reads a pointer.
    ///
    /// # Errors
    /// As [`Kernel::read`].
    pub fn read_ptr(&self, kva: Kva) -> Result<Kva> {
        self.read_u64(kva).map(Kva)
    }

    /// Reads the bytes of a NUL-terminated string, without the NUL; a string that fills `max`
    /// ends there.
    ///
    /// # Errors
    /// When memory before its end cannot be read: part of a text would pass for all of it.
    pub fn read_cstr_bytes(&self, kva: Kva, max: usize) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        let mut at = kva;
        while text.len() < max {
            let in_page = to_usize(4096 - at.0 % 4096).min(max - text.len());
            let mut chunk = vec![0; in_page];
            self.read(at, &mut chunk)?;
            if let Some(end) = memchr::memchr(0, &chunk) {
                text.extend(chunk.into_iter().take(end));
                break;
            }
            at = at.add(to_u64(in_page));
            text.extend(chunk);
        }
        Ok(text)
    }

    /// Reads a NUL-terminated string, lossily as UTF-8.
    ///
    /// # Errors
    /// As [`Kernel::read_cstr_bytes`].
    pub fn read_cstr(&self, kva: Kva, max: usize) -> Result<String> {
        let text = self.read_cstr_bytes(kva, max)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    // ---- types ----

    /// A typed object at `kva`; `ty` is a C type name such as `struct rq`.
    ///
    /// # Errors
    /// [`Error::NoType`].
    pub fn object(&self, ty: &str, kva: Kva) -> Result<Object<'_>> {
        Ok(Object::new(self, self.btf.find(ty)?, kva))
    }

    /// The global variable `symbol` as an object of type `ty`. Kernel BTF does not type
    /// ordinary globals, so the caller says what the C source says.
    ///
    /// # Errors
    /// [`Error::NoSymbol`] or [`Error::NoType`].
    pub fn global(&self, symbol: &str, ty: &str) -> Result<Object<'_>> {
        self.object(ty, self.symbol(symbol)?)
    }

    /// Resolves a member path of a type, once per kernel.
    ///
    /// # Errors
    /// [`Error::NoMember`].
    pub fn field(&self, ty: TypeId, path: &'static str) -> Result<Field> {
        let key = (ty, path.as_ptr().addr(), path.len());
        if let Ok(cache) = self.fields.read()
            && let Some(hit) = cache.get(&key)
        {
            return hit.clone();
        }
        let found = self.btf.field(ty, path);
        if let Ok(mut cache) = self.fields.write() {
            cache.insert(key, found.clone());
        }
        found
    }

    /// A constant out of a named enum, for example `("enum scx_ent_flags", "SCX_TASK_QUEUED")`.
    ///
    /// # Errors
    /// [`Error::NoType`] or [`Error::NoMember`].
    pub fn constant(&self, enumeration: &str, name: &str) -> Result<i64> {
        self.btf.enumerator(enumeration, name)
    }

    /// `HZ`, and what told it: the enum constant `SCX_WATCHDOG_MAX_TIMEOUT`, which is 30 * HZ in
    /// kernel/sched/ext*.c of every kernel that has it, else the length of a tick, which
    /// `clocksource_jiffies` has as a multiplier and a shift (kernel/time/jiffies.c).
    ///
    /// # Errors
    /// When this kernel has neither or HZ makes no sense.
    pub fn hz(&self) -> Result<(u64, &'static str)> {
        let constant = "SCX_WATCHDOG_MAX_TIMEOUT";
        let (hz, source) = match self.constant("enum scx_consts", constant) {
            Ok(timeout) => (u64::try_from(timeout).unwrap_or(0) / 30, constant),
            Err(_) => {
                let jiffies = self.global("clocksource_jiffies", "struct clocksource")?;
                let shift = jiffies.member("shift")?.u32()?;
                let tick_ns = jiffies.member("mult")?.u64()?.checked_shr(shift);
                let tick_ns = tick_ns.unwrap_or(0).max(1);
                (
                    (1_000_000_000 + tick_ns / 2) / tick_ns,
                    "clocksource_jiffies",
                )
            }
        };
        if !(24..=10_000).contains(&hz) {
            return Err(Error::Implausible {
                what: format!("HZ from {source}"),
                found: hz.to_string(),
                why: "24 to 10000",
            });
        }
        Ok((hz, source))
    }

    // ---- per-CPU ----

    fn read_nr_cpu_ids(&self) -> Result<u32> {
        let ids = self.read_u32(self.symbol("nr_cpu_ids")?)?;
        if ids == 0 || ids > MAX_CPUS {
            return Err(Error::Implausible {
                what: "nr_cpu_ids".into(),
                found: ids.to_string(),
                why: "1 to 8192",
            });
        }
        Ok(ids)
    }

    fn read_per_cpu_offsets(&self) -> Result<Vec<Option<u64>>> {
        let ids = self.nr_cpu_ids;
        let table = self.symbol("__per_cpu_offset")?;
        let raw = self.read_bytes(table, u64::from(ids) * 8)?;
        let possible = self.cpu_mask(self.symbol("__cpu_possible_mask")?)?;
        Ok((0..ids)
            .map(|cpu| {
                let offset = le_u64(&raw, to_usize(u64::from(cpu)) * 8)?;
                possible.contains(&cpu).then_some(offset)
            })
            .collect())
    }

    /// The CPUs set in the `struct cpumask` at `kva`, ascending, below `nr_cpu_ids`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn cpu_mask(&self, kva: Kva) -> Result<Vec<u32>> {
        let ids = self.nr_cpu_ids;
        let bytes = self.read_bytes(kva, u64::from(ids).div_ceil(64) * 8)?;
        Ok((0..ids)
            .filter(|cpu| {
                let byte = bytes
                    .get(to_usize(u64::from(cpu / 8)))
                    .copied()
                    .unwrap_or(0);
                byte >> (cpu % 8) & 1 == 1
            })
            .collect())
    }

    /// `nr_cpu_ids`: one more than the highest possible CPU.
    #[must_use]
    pub fn nr_cpus(&self) -> u32 {
        u32::try_from(self.per_cpu_offsets.len()).unwrap_or(MAX_CPUS)
    }

    /// The possible CPUs, ascending.
    pub fn cpus(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..)
            .zip(&self.per_cpu_offsets)
            .filter_map(|(cpu, offset)| offset.map(|_| cpu))
    }

    /// This CPU's instance of the per-CPU object at `pointer` (a symbol's address or a dynamic
    /// per-CPU pointer). One formula serves kernels before and after 6.15: per-CPU symbols were
    /// offsets and are now image addresses, and `__per_cpu_offset` changed with them.
    #[must_use]
    pub fn per_cpu(&self, pointer: Kva, cpu: u32) -> Option<Kva> {
        let offset = (*self.per_cpu_offsets.get(to_usize(u64::from(cpu)))?)?;
        Some(pointer.add(offset))
    }

    /// This CPU's instance of a per-CPU variable, typed.
    ///
    /// # Errors
    /// [`Error::NoSymbol`], [`Error::NoType`], or an impossible CPU.
    pub fn per_cpu_object(&self, symbol: &str, ty: &str, cpu: u32) -> Result<Object<'_>> {
        let at = self
            .per_cpu(self.symbol(symbol)?, cpu)
            .ok_or_else(|| Error::Null(format!("the per-CPU area of CPU {cpu}")))?;
        self.object(ty, at)
    }
}

fn find_vmcoreinfo(
    image: &Image,
    overrides: &Overrides,
    provenance: &mut Vec<Provenance>,
) -> std::result::Result<Vmcoreinfo, String> {
    if let Some(path) = &overrides.vmcoreinfo {
        let text = crate::source::read_whole(path)?;
        let info = Vmcoreinfo::parse(&text).ok_or_else(|| {
            format!(
                "{}: no VMCOREINFO text with OSRELEASE, SYMBOL(swapper_pg_dir) and NUMBER(phys_base)",
                path.display()
            )
        })?;
        provenance.push(Provenance {
            what: "vmcoreinfo",
            source: "--vmcoreinfo".into(),
        });
        return Ok(info);
    }
    // A note can be stale too: libvirt keeps one across a kexec.
    let note = image.vmcoreinfo.as_deref().and_then(Vmcoreinfo::parse);
    if let Some(info) = note.clone().filter(|info| candidate_is_live(image, info)) {
        provenance.push(Provenance {
            what: "vmcoreinfo",
            source: "note".into(),
        });
        return Ok(info);
    }
    // Kexec leaves the previous kernel's copy in memory, so a candidate must lead to an
    // init_uts_ns with its own release.
    let found = Vmcoreinfo::scan(&*image.memory).find(|info| candidate_is_live(image, info));
    if let Some(info) = found {
        provenance.push(Provenance {
            what: "vmcoreinfo",
            source: "memory".into(),
        });
        return Ok(info);
    }
    if let Some(info) = note {
        provenance.push(Provenance {
            what: "vmcoreinfo",
            source: "note, which memory does not confirm".into(),
        });
        return Ok(info);
    }
    Err(format!(
        "looked for VMCOREINFO in the file's notes and in {} bytes of guest memory and found none that leads to a kernel; supply its text with --vmcoreinfo FILE, unless the guest had not booted yet or is not x86-64 Linux",
        image.memory_bytes()
    ))
}

/// Whether a scanned VMCOREINFO describes memory that is there: `init_uts_ns` holds its release.
fn candidate_is_live(image: &Image, info: &Vmcoreinfo) -> bool {
    let early = Early {
        memory: &*image.memory,
        phys_base: info.phys_base().unwrap_or_default().cast_unsigned(),
        image_size: info.image_size().unwrap_or(IMAGE_SIZE),
    };
    // struct uts_namespace begins with struct new_utsname (5.9 and later), at most 24 bytes in.
    let (Some(release), Some(uts)) = (info.release(), info.symbol("init_uts_ns")) else {
        return false;
    };
    let Ok(bytes) = early.fetch(uts, 512) else {
        return false;
    };
    memchr::memmem::find(&bytes, release.as_bytes()).is_some()
}

fn find_symbols(
    info: &Vmcoreinfo,
    early: &Early<'_>,
    overrides: &Overrides,
    provenance: &mut Vec<Provenance>,
) -> std::result::Result<Symbols, String> {
    let slide = info.kaslr_offset().unwrap_or(0);
    if let Some(path) = &overrides.system_map {
        let symbols = crate::source::symbols_of_system_map(path)?;
        provenance.push(Provenance {
            what: "symbols",
            source: "--system-map".into(),
        });
        return Ok(Symbols::from_file(symbols, slide));
    }
    let cause = match Kallsyms::load(info, &|at, len| early.fetch(at, len)) {
        Ok(table) => {
            provenance.push(Provenance {
                what: "symbols",
                source: "kallsyms in memory".into(),
            });
            return Ok(Symbols::Kallsyms(table));
        }
        Err(e) => e,
    };
    if let Some(path) = &overrides.vmlinux {
        let symbols = crate::source::symbols_of_vmlinux(path)?;
        provenance.push(Provenance {
            what: "symbols",
            source: "--vmlinux".into(),
        });
        return Ok(Symbols::from_file(symbols, slide));
    }
    Err(format!(
        "the symbol table (kallsyms) cannot be read from memory: {cause}; supply the symbols with --vmlinux FILE or --system-map FILE"
    ))
}

fn find_btf(
    symbols: &Symbols,
    early: &Early<'_>,
    image: &Image,
    overrides: &Overrides,
    release: &str,
    provenance: &mut Vec<Provenance>,
) -> std::result::Result<Btf, String> {
    let mut take = |source: &str, blob: Vec<u8>| -> std::result::Result<Btf, String> {
        let btf =
            Btf::parse(blob).map_err(|e| format!("the BTF from {source} is unusable: {e}"))?;
        provenance.push(Provenance {
            what: "types",
            source: source.into(),
        });
        Ok(btf)
    };
    if let Some(path) = &overrides.btf {
        return take("--btf", crate::source::read_whole(path)?);
    }
    let in_memory = (|| {
        let start = symbols.lookup("__start_BTF")?;
        let stop = symbols.lookup("__stop_BTF")?;
        let len = to_usize(stop.0.wrapping_sub(start.0));
        (len > 0).then(|| early.fetch(start, len))
    })();
    let cause = match in_memory {
        Some(Ok(blob)) => match take("memory", blob) {
            Ok(btf) => return Ok(btf),
            Err(e) => e,
        },
        Some(Err(e)) => e.to_string(),
        None => format!("kernel {release} has no BTF (CONFIG_DEBUG_INFO_BTF is off)"),
    };
    if let Some(blob) = &image.btf {
        return take("note", blob.clone());
    }
    if let Some(path) = &overrides.vmlinux {
        return take("--vmlinux", crate::source::btf_of_vmlinux(path)?);
    }
    Err(format!(
        "the kernel's types cannot be read: {cause}; supply them with --btf FILE (a raw BTF blob of this very kernel) or --vmlinux FILE"
    ))
}

impl Symbols {
    fn from_file(symbols: Vec<(String, u64)>, slide: u64) -> Self {
        let mut by_address: Vec<(Kva, String)> = symbols
            .into_iter()
            // Per-CPU offsets and absolute symbols do not move with the image.
            .map(|(name, at)| {
                (
                    Kva(if at >= KERNEL_MAP {
                        at.wrapping_add(slide)
                    } else {
                        at
                    }),
                    name,
                )
            })
            .collect();
        // Names for one address stay in the order of the file.
        by_address.sort_by_key(|(at, _)| *at);
        let by_name = by_address
            .iter()
            .rev()
            .map(|(at, name)| (name.clone(), *at))
            .collect();
        Self::File {
            by_name,
            by_address,
        }
    }

    fn lookup(&self, name: &str) -> Option<Kva> {
        match self {
            Self::Kallsyms(table) => table.lookup(name),
            Self::File { by_name, .. } => by_name.get(name).copied(),
        }
    }
}
