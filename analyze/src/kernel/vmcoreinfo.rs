//! VMCOREINFO: the kernel's own `KEY=VALUE` text about itself.
//!
//! Written by `kernel/vmcore_info.c`. Taken from the file's note, else found in guest memory:
//! the kernel keeps one page-aligned copy of the text (`vmcoreinfo_data`) and one behind an ELF
//! note header (`vmcoreinfo_note`). Other hits of its words are decoys: format strings in the
//! kernel's read-only data, logs, user pages.

use crate::addr::{Gpa, Kva};
use crate::bytes::{le_u32, to_u64, to_usize};
use crate::source::PhysicalMemory;

/// The text is at most one page.
const MAX_TEXT: usize = 4096;

/// Bytes read at a time while scanning.
const SCAN_CHUNK: usize = 1 << 20;
/// Bytes read at a time around unreadable memory: a page, since frames of a capture need not lie
/// at multiples of their size in guest memory.
const RETRY_CHUNK: usize = 4096;

/// A parsed VMCOREINFO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vmcoreinfo {
    text: String,
}

impl Vmcoreinfo {
    /// Accepts `text` when it looks like a whole VMCOREINFO of an x86-64 kernel: a release,
    /// several symbols, and the numbers that address translation needs.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let end = memchr::memchr(0, text).unwrap_or(text.len()).min(MAX_TEXT);
        let text = std::str::from_utf8(text.get(..end)?).ok()?.to_owned();
        let info = Self { text };
        let symbols = info
            .text
            .lines()
            .filter(|l| l.starts_with("SYMBOL("))
            .count();
        let whole = info.release().is_some()
            && symbols >= 4
            && info.phys_base().is_some()
            && info.symbol("swapper_pg_dir").is_some();
        whole.then_some(info)
    }

    /// The whole text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The value after `key=`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }

    /// `OSRELEASE`, as `uname -r` prints it.
    #[must_use]
    pub fn release(&self) -> Option<&str> {
        self.get("OSRELEASE")
    }

    /// `BUILD-ID`, hexadecimal.
    #[must_use]
    pub fn build_id(&self) -> Option<&str> {
        self.get("BUILD-ID")
    }

    /// `SYMBOL(name)`: the run-time address.
    #[must_use]
    pub fn symbol(&self, name: &str) -> Option<Kva> {
        u64::from_str_radix(self.get(&format!("SYMBOL({name})"))?, 16)
            .ok()
            .map(Kva)
    }

    /// `NUMBER(phys_base)`. Signed: negative whenever the kernel sits physically below its
    /// virtual offset.
    #[must_use]
    pub fn phys_base(&self) -> Option<i64> {
        self.get("NUMBER(phys_base)")?.parse().ok()
    }

    /// `KERNELOFFSET`: how far KASLR moved the kernel image, in bytes.
    #[must_use]
    pub fn kaslr_offset(&self) -> Option<u64> {
        u64::from_str_radix(self.get("KERNELOFFSET")?, 16).ok()
    }

    /// `NUMBER(KERNEL_IMAGE_SIZE)`: size of the window that the kernel image may lie in.
    #[must_use]
    pub fn image_size(&self) -> Option<u64> {
        self.get("NUMBER(KERNEL_IMAGE_SIZE)")?.parse().ok()
    }

    /// `NUMBER(pgtable_l5_enabled)`.
    #[must_use]
    pub fn five_levels(&self) -> Option<bool> {
        Some(self.get("NUMBER(pgtable_l5_enabled)")?.trim() == "1")
    }

    /// `NUMBER(sme_mask)`: the page-table bit that marks encrypted memory, 0 without it.
    #[must_use]
    pub fn sme_mask(&self) -> u64 {
        self.get("NUMBER(sme_mask)")
            .and_then(|n| n.parse().ok())
            .unwrap_or(0)
    }

    /// Every candidate in guest memory, in the order of physical addresses. Only the copy behind
    /// a note header is looked for, whose words are rarer than those of the bare text. The caller
    /// validates each against the kernel that it describes.
    pub fn scan(memory: &dyn PhysicalMemory) -> impl Iterator<Item = Self> + '_ {
        let finder = memchr::memmem::Finder::new(b"VMCOREINFO\0");
        let starts = memory.regions().iter().flat_map(|region| {
            let (start, end) = (region.start.0, region.end().0);
            (start..end).step_by(SCAN_CHUNK).map(move |at| (at, end))
        });
        let mut chunk = vec![0; SCAN_CHUNK];
        // No name crosses a chunk's border: a note header is 4-aligned and within one page.
        starts.flat_map(move |(at, end)| {
            let len = to_usize(end - at).min(SCAN_CHUNK);
            let part = chunk.get_mut(..len).unwrap_or_default();
            // Around what cannot be read, step by step: a damaged frame costs itself alone.
            let step = match memory.read(Gpa(at), part) {
                Ok(()) => SCAN_CHUNK,
                Err(_) => RETRY_CHUNK,
            };
            let mut hits = Vec::new();
            for (at, piece) in (at..).step_by(step).map(Gpa).zip(part.chunks_mut(step)) {
                if step == SCAN_CHUNK || memory.read(at, piece).is_ok() {
                    hits.extend(finder.find_iter(piece).map(|o| at.add(to_u64(o))));
                }
            }
            hits.into_iter()
                .filter_map(|name_at| Self::from_note(memory, name_at))
        })
    }

    /// The note whose name begins at `name_at`.
    fn from_note(memory: &dyn PhysicalMemory, name_at: Gpa) -> Option<Self> {
        let mut header = [0; 12];
        memory
            .read(Gpa(name_at.0.checked_sub(12)?), &mut header)
            .ok()?;
        let desc_len = to_usize(u64::from(le_u32(&header, 4)?));
        // n_namesz counts the NUL; n_type is 0.
        if le_u32(&header, 0)? != 11 || le_u32(&header, 8)? != 0 || desc_len > MAX_TEXT {
            return None;
        }
        let mut text = vec![0; desc_len];
        memory.read(name_at.add(12), &mut text).ok()?;
        Self::parse(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"OSRELEASE=6.18.15\nBUILD-ID=ab\nSYMBOL(init_uts_ns)=ffffffff9f\n\
        SYMBOL(swapper_pg_dir)=ffffffff9e212000\nSYMBOL(_stext)=ffffffff9d000000\n\
        SYMBOL(prb)=ffffffff9d000010\nNUMBER(phys_base)=-486539264\nKERNELOFFSET=1c000000\n\
        NUMBER(pgtable_l5_enabled)=0\n\0rest";

    #[test]
    fn reads_signed_phys_base_and_hex_offset() {
        let info = Vmcoreinfo::parse(TEXT).unwrap();
        assert_eq!(info.phys_base(), Some(-486_539_264));
        assert_eq!(info.kaslr_offset(), Some(0x1c00_0000));
        assert_eq!(
            info.symbol("swapper_pg_dir"),
            Some(Kva(0xffff_ffff_9e21_2000))
        );
        assert_eq!(info.symbol("nothing"), None);
        assert_eq!(info.five_levels(), Some(false));
    }

    #[test]
    fn refuses_the_format_string_decoy() {
        assert_eq!(
            Vmcoreinfo::parse(b"KERNELOFFSET=%lx\nNUMBER(KERNEL_IMAGE_SIZE)=%ld\n"),
            None
        );
    }
}
