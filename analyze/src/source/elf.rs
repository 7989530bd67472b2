//! ELF64 cores with physical addresses: QEMU `dump-guest-memory`, libvirt, cloud-hypervisor,
//! kdump's ELF form, and what `zstd -d` makes of a capture.

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::Elf;
use goblin::elf::header::{EM_X86_64, ET_CORE};
use goblin::elf::program_header::{PT_LOAD, PT_NOTE, ProgramHeader};
use scx_postmortem_format::capture::Excluded;

use super::{FileBytes, Image, ImageKind, PhysicalMemory, RawNote, Region, VcpuRegs};
use crate::addr::Gpa;
use crate::bytes::{le_u32, to_u64, to_usize};
use crate::error::{Error, OpenError};

/// More PT_LOADs than any guest has memory ranges; a file that claims more is refused.
const MAX_SEGMENTS: usize = 65_534;

/// `e_phnum` that says "the real number is in section header 0".
const PN_XNUM: u16 = 0xffff;

/// Bytes of one PT_NOTE that are looked at: registers of 8192 vCPUs and a BTF fit.
const MAX_NOTES: u64 = 64 << 20;

/// PT_NOTEs that are looked at; one or two are usual.
const MAX_NOTE_SEGMENTS: usize = 16;

/// vCPUs whose registers are taken: `NR_CPUS` of the largest distribution kernels.
const MAX_VCPUS: usize = 8192;

/// Length of one vCPU's register note: NT_PRSTATUS has 336 bytes, QEMU's 440.
const MAX_REGISTERS: usize = 1 << 14;

/// Type of the general-register note.
const NT_PRSTATUS: u32 = 1;

/// One PT_LOAD: a run of physical memory at a file offset.
#[derive(Debug, Clone, Copy)]
struct Segment {
    region: Region,
    offset: u64,
    /// Bytes that the program header promises but the file does not hold.
    cut: u64,
}

/// A mapped ELF core.
#[derive(Debug)]
pub struct ElfCore {
    bytes: FileBytes,
    segments: Vec<Segment>,
    regions: Vec<Region>,
}

impl PhysicalMemory for ElfCore {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        let mut at = gpa;
        let mut rest = buf;
        while !rest.is_empty() {
            let next = self.segments.partition_point(|s| s.region.start <= at);
            let segment = next.checked_sub(1).and_then(|i| self.segments.get(i));
            let Some(segment) = segment else {
                return Err(Error::Hole(at));
            };
            let within = at.0 - segment.region.start.0;
            let Some(left) = segment
                .region
                .len
                .checked_sub(within)
                .filter(|&left| left > 0)
            else {
                let promised = segment.region.len.saturating_add(segment.cut);
                return Err(if within < promised {
                    Error::NotCaptured(at)
                } else {
                    Error::Hole(at)
                });
            };
            let len = to_usize(left).min(rest.len());
            let start = to_usize(segment.offset.saturating_add(within));
            let source = self.bytes.get(start..start.saturating_add(len));
            let Some(source) = source else {
                return Err(Error::NotCaptured(at));
            };
            let (head, tail) = rest.split_at_mut(len);
            head.copy_from_slice(source);
            rest = tail;
            at = at.add(to_u64(len));
        }
        Ok(())
    }

    fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        let next = self.segments.partition_point(|s| s.region.start <= gpa);
        let segment = self.segments.get(next.checked_sub(1)?)?;
        let within = gpa.0 - segment.region.start.0;
        if within.checked_add(to_u64(len))? > segment.region.len {
            return None;
        }
        let start = to_usize(segment.offset.checked_add(within)?);
        self.bytes.get(start..start.checked_add(len)?)
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}

/// A note of a core: name without its NUL, type, description.
pub(super) struct Note<'a> {
    pub(super) name: &'a [u8],
    pub(super) kind: u32,
    pub(super) desc: &'a [u8],
}

/// Splits a PT_NOTE segment; stops at the first entry that does not fit.
pub(super) fn notes(mut bytes: &[u8]) -> impl Iterator<Item = Note<'_>> {
    std::iter::from_fn(move || {
        let name_len = to_usize(u64::from(le_u32(bytes, 0)?));
        let desc_len = to_usize(u64::from(le_u32(bytes, 4)?));
        let kind = le_u32(bytes, 8)?;
        let name_end = name_len.checked_add(12)?;
        let desc_start = name_end.checked_next_multiple_of(4)?;
        let desc_end = desc_start.checked_add(desc_len)?;
        let name = bytes.get(12..name_end)?;
        let desc = bytes.get(desc_start..desc_end)?;
        let next = desc_end.checked_next_multiple_of(4)?.min(bytes.len());
        bytes = bytes.get(next..)?;
        Some(Note {
            name: name.strip_suffix(b"\0").unwrap_or(name),
            kind,
            desc,
        })
    })
}

/// Registers and kernel hints gathered from notes.
#[derive(Default)]
pub(super) struct NoteFacts {
    pub(super) vcpus: Vec<Option<VcpuRegs>>,
    pub(super) vmcoreinfo: Option<Vec<u8>>,
    pub(super) register_notes: Vec<RawNote>,
    qemu_states: usize,
}

impl NoteFacts {
    pub(super) fn add(&mut self, note: &Note<'_>) {
        let registers = matches!(
            (note.name, note.kind),
            (b"CORE", NT_PRSTATUS) | (b"QEMU", 0)
        );
        let room = self.register_notes.len() < 2 * MAX_VCPUS;
        if registers && room && note.desc.len() <= MAX_REGISTERS {
            self.register_notes.push(RawNote {
                name: String::from_utf8_lossy(note.name).into_owned(),
                kind: note.kind,
                desc: note.desc.to_vec(),
            });
        }
        match (note.name, note.kind) {
            (b"CORE", NT_PRSTATUS) if self.vcpus.len() >= MAX_VCPUS => {}
            (b"CORE", NT_PRSTATUS) => self.vcpus.push(VcpuRegs::from_prstatus(note.desc)),
            // The n-th QEMU note describes the n-th vCPU, like the n-th NT_PRSTATUS.
            (b"QEMU", 0) => {
                if let Some(Some(regs)) = self.vcpus.get_mut(self.qemu_states) {
                    regs.add_qemu_state(note.desc);
                }
                self.qemu_states += 1;
            }
            (b"VMCOREINFO", 0) => self.vmcoreinfo = Some(note.desc.to_vec()),
            _ => {}
        }
    }
}

/// Sorts and clips: kdump's ELF has the kernel's text in a PT_LOAD of its own and again inside
/// that of the memory around it, and paging dumps of QEMU overlap too. Of two that overlap the
/// one that begins first, or is longer, is kept; both show the same memory.
fn disjoint(mut segments: Vec<Segment>) -> Vec<Segment> {
    segments.sort_by_key(|s| (s.region.start, std::cmp::Reverse(s.region.len)));
    let mut kept: Vec<Segment> = Vec::with_capacity(segments.len());
    for mut segment in segments {
        let from = kept.last().map_or(Gpa(0), |last| {
            Gpa(last.region.end().0.saturating_add(last.cut))
        });
        let hidden = from.0.saturating_sub(segment.region.start.0);
        let from_held = hidden.min(segment.region.len);
        let from_cut = (hidden - from_held).min(segment.cut);
        segment.region.start = segment.region.start.add(from_held + from_cut);
        segment.region.len -= from_held;
        segment.offset = segment.offset.saturating_add(from_held);
        segment.cut -= from_cut;
        if segment.region.len > 0 || segment.cut > 0 {
            kept.push(segment);
        }
    }
    kept
}

pub(super) fn open(bytes: FileBytes, path: &str) -> Result<Image, OpenError> {
    let refuse = |found: String| OpenError::NotACore {
        path: path.to_owned(),
        found,
    };

    // EI_CLASS and EI_DATA come before anything that goblin would have to guess.
    if bytes.get(4..6) != Some(&[2, 1]) {
        return Err(refuse("this ELF file is not 64-bit little-endian".into()));
    }
    let header = Elf::parse_header(&bytes)
        .map_err(|e| refuse(format!("the ELF header does not parse ({e})")))?;
    if header.e_type != ET_CORE {
        return Err(refuse(
            "this ELF file is a program or library, not a core".into(),
        ));
    }
    if header.e_machine != EM_X86_64 {
        return Err(refuse(format!(
            "this core's ELF machine is {}, not x86-64 (62)",
            header.e_machine
        )));
    }
    let mut count = usize::from(header.e_phnum);
    if header.e_phnum == PN_XNUM {
        let at = to_usize(header.e_shoff).saturating_add(44);
        count = le_u32(&bytes, at).map_or(0, |n| to_usize(u64::from(n)));
    }
    let room = bytes.len().saturating_sub(to_usize(header.e_phoff)) / 56;
    if count > MAX_SEGMENTS || count > room {
        return Err(refuse(format!(
            "the ELF header claims {count} program headers, the file has room for {room}"
        )));
    }
    let ctx = Ctx::new(Container::Big, Endian::Little);
    let headers = ProgramHeader::parse(&bytes, to_usize(header.e_phoff), count, ctx)
        .map_err(|e| refuse(format!("the program headers do not parse ({e})")))?;

    let mut facts = NoteFacts::default();
    let mut segments = Vec::new();
    let mut truncated: u64 = 0;
    let mut note_segments = 0;
    let file_len = to_u64(bytes.len());
    for ph in &headers {
        match ph.p_type {
            PT_NOTE if note_segments < MAX_NOTE_SEGMENTS => {
                note_segments += 1;
                let len = ph.p_filesz.min(MAX_NOTES);
                let end = ph.p_offset.saturating_add(len).min(file_len);
                let all = bytes
                    .get(to_usize(ph.p_offset)..to_usize(end))
                    .unwrap_or_default();
                notes(all).for_each(|note| facts.add(&note));
            }
            PT_LOAD if ph.p_memsz.max(ph.p_filesz) > 0 && ph.p_paddr != u64::MAX => {
                let held = file_len.saturating_sub(ph.p_offset).min(ph.p_filesz);
                truncated = truncated.saturating_add(ph.p_filesz - held);
                segments.push(Segment {
                    region: Region {
                        start: Gpa(ph.p_paddr),
                        len: held,
                    },
                    offset: ph.p_offset,
                    // Beyond p_filesz is memory that the writer left out (makedumpfile does).
                    cut: ph.p_memsz.max(ph.p_filesz) - held,
                });
            }
            _ => {}
        }
    }
    if segments.is_empty() {
        return Err(refuse("this ELF core holds no memory (no PT_LOAD)".into()));
    }
    if segments.len() > 1 && segments.iter().all(|s| s.region.start == Gpa(0)) {
        return Err(refuse(
            "its PT_LOADs have no physical addresses, so it is a core of a process".into(),
        ));
    }
    let segments = disjoint(segments);
    let mut warnings = Vec::new();
    if truncated > 0 {
        warnings.push(format!(
            "the file is truncated: {truncated} bytes of guest memory that its program headers promise are missing"
        ));
    }
    let missing: Vec<Region> = segments
        .iter()
        .filter(|s| s.cut > 0)
        .map(|s| Region {
            start: s.region.end(),
            len: s.cut,
        })
        .collect();
    let regions = segments
        .iter()
        .map(|s| s.region)
        .filter(|r| r.len > 0)
        .collect();
    Ok(Image {
        kind: ImageKind::ElfCore,
        memory: Box::new(ElfCore {
            bytes,
            segments,
            regions,
        }),
        vcpus: facts.vcpus,
        register_notes: facts.register_notes,
        vmcoreinfo: facts.vmcoreinfo,
        missing,
        btf: None,
        timeline: None,
        perf_counters: None,
        early: false,
        manifest: None,
        vcpu_states: Vec::new(),
        left_out: Vec::new(),
        excluded: Excluded::default(),
        trigger: None,
        digest: None,
        warnings,
    })
}
