//! Our captures, as an image and for the commands that look at the file itself.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use scx_postmortem_format::capture::{
    Absence, Capture, Excluded, ExcludedPages, LEFT_OUT, Manifest, MemoryKind, MemoryRegion,
    NoteEntry, OpenError as FormatError, ReadError, Rule, Store, VcpuState, note_types,
};

use super::elf::{Note, NoteFacts};
use super::{FileBytes, Image, ImageKind, PhysicalMemory, Region, VcpuRegs};
use crate::addr::Gpa;
use crate::bytes::{to_u64, to_usize};
use crate::error::{Error, OpenError};

/// What to know about the memory of a capture that was given up.
pub const TORN: &str = "the capture was given up before all of the guest stood still: memory is as it was at that moment and may be torn, so that what is read from it may not fit together";
/// A note of one vCPU, or VMCOREINFO, longer than this is not looked at.
const NOTE_LIMIT: u64 = 1 << 14;
/// `MSR_IA32_TSC`.
const MSR_TSC: u32 = 0x10;
/// More vCPUs than any guest has.
const MAX_VCPUS: u32 = 8192;
/// Corrupt frames that are named.
const MAX_DAMAGE: usize = 10;
/// Sentences of one kind that are taken out of a manifest.
const MAX_SENTENCES: usize = 100;
/// Notes that are looked at: two for each of 8192 vCPUs, and room for others.
const MAX_NOTES: usize = 20_000;

/// An open capture with its memory ranges.
pub(super) struct CaptureMemory<B> {
    capture: Capture<B>,
    regions: Vec<Region>,
    /// Whether to read the early image of a dual capture.
    early: bool,
    /// Frames that reads found corrupt: where they begin in the file, and what is wrong.
    corrupt: Mutex<BTreeMap<u64, (u64, &'static str)>>,
}

impl<B: Store + Send> PhysicalMemory for CaptureMemory<B> {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        let read = if self.early {
            let early = self.capture.early();
            early.and_then(|early| early.read_physical(gpa.0, buf))
        } else {
            self.capture.read_physical(gpa.0, buf)
        };
        read.map_err(|e| match e {
            ReadError::Hole { gpa } => Error::Hole(Gpa(gpa)),
            ReadError::NotCaptured {
                gpa,
                cause: Absence::LeftOut(rule),
            } => Error::LeftOut(Gpa(gpa), rule),
            ReadError::NotCaptured { gpa, .. } => Error::NotCaptured(Gpa(gpa)),
            other => {
                if let ReadError::Corrupt { frame, offset, why } = other {
                    // A walker that panicked elsewhere changes nothing about what was found.
                    let mut corrupt = self.corrupt.lock().unwrap_or_else(PoisonError::into_inner);
                    corrupt.insert(frame, (offset, why));
                }
                Error::Damaged(other.to_string())
            }
        })
    }

    fn damage(&self) -> Vec<String> {
        let corrupt = self.corrupt.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = corrupt.iter().take(MAX_DAMAGE);
        let mut sentences: Vec<String> = shown
            .map(|(frame, (offset, why))| {
                format!(
                    "frame {frame} at byte {offset} of the capture is corrupt ({why}); what the report needed of it is missing"
                )
            })
            .collect();
        match corrupt.len().saturating_sub(MAX_DAMAGE) {
            0 => {}
            more => sentences.push(format!(
                "{more} more frames are corrupt; `analyze verify` lists all damage"
            )),
        }
        sentences
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}

/// Opens the container, without looking at what is in it.
pub(super) fn container<B: Store>(bytes: B, path: &str) -> Result<Capture<B>, OpenError> {
    Capture::open(bytes).map_err(|e| match e {
        FormatError::NotACapture { found } => OpenError::NotACore {
            path: path.to_owned(),
            found: format!("the file begins with {found}"),
        },
        other => OpenError::Capture {
            path: path.to_owned(),
            cause: other.to_string(),
        },
    })
}

/// Opens the image that other tools see, in a dual capture the late one.
pub(super) fn open<B: Store + Send + 'static>(bytes: B, path: &str) -> Result<Image, OpenError> {
    Ok(image(container(bytes, path)?, None))
}

/// Opens the early image of a dual capture.
pub(super) fn open_early<B: Store + Send + 'static>(
    bytes: B,
    path: &str,
) -> Result<Image, OpenError> {
    let capture = container(bytes, path)?;
    if !capture.preamble().dual {
        return Err(OpenError::NotDual {
            path: path.to_owned(),
            what: "this capture holds one image",
        });
    }
    let half = capture.early().map(|early| Half {
        manifest: early.manifest().cloned().map_err(Clone::clone),
        notes: early.notes().to_vec(),
        notes_fault: early.notes_fault().map(ToString::to_string),
    });
    let half = half.map_err(|cause| OpenError::Capture {
        path: path.to_owned(),
        cause: cause.to_string(),
    })?;
    Ok(image(capture, Some(half)))
}

/// What the early image of a dual capture has of its own.
struct Half {
    manifest: Result<Manifest, ReadError>,
    notes: Vec<NoteEntry>,
    notes_fault: Option<String>,
}

fn image<B: Store + Send + 'static>(capture: Capture<B>, half: Option<Half>) -> Image {
    let is_early = half.is_some();
    let half = half.unwrap_or_else(|| Half {
        manifest: capture.manifest().cloned().map_err(Clone::clone),
        notes: capture.notes().to_vec(),
        notes_fault: capture.notes_fault().map(ToString::to_string),
    });
    let read_note = |entry: &NoteEntry| {
        if is_early {
            capture.early()?.read_note(entry, NOTE_LIMIT)
        } else {
            capture.read_note(entry, NOTE_LIMIT)
        }
    };
    let mut warnings = Vec::new();
    if let Some(recovered) = capture.recovered() {
        let how = match recovered.missing_bytes {
            0 => "has lost its end",
            _ => "is incomplete",
        };
        warnings.push(format!("the capture {how}: {recovered}"));
    }
    if let Some(fault) = &half.notes_fault {
        warnings.push(format!("the notes are incomplete: {fault}"));
    }
    let mut trigger = None;
    let mut chosen = Vec::new();
    match &half.manifest {
        Ok(manifest) => {
            let degraded = manifest.degraded.iter().take(MAX_SENTENCES);
            warnings.extend(degraded.map(|why| format!("degraded: {why}")));
            if manifest.abandoned.is_some() {
                warnings.push(TORN.to_owned());
            }
            for sentence in not_captured(&manifest.memory) {
                match sentence {
                    (true, left_out) => chosen.push(left_out),
                    (false, damage) => warnings.push(damage),
                }
            }
            chosen.extend(excluded_pages(&manifest.excluded));
            trigger = manifest.trigger.as_ref().map(|t| t.kind.clone());
        }
        Err(fault) => warnings.push(format!("the manifest cannot be read: {fault}")),
    }
    let mut facts = NoteFacts::default();
    for entry in half
        .notes
        .iter()
        .filter(|n| n.name != "SCXPM")
        .take(MAX_NOTES)
    {
        match read_note(entry) {
            Ok(desc) => facts.add(&Note {
                name: entry.name.as_bytes(),
                kind: entry.kind,
                desc: &desc,
            }),
            Err(fault) => warnings.push(format!("a {} note cannot be read: {fault}", entry.name)),
        }
    }
    if is_early && facts.vmcoreinfo.is_none() {
        // The same kernel: its description does not change.
        facts.vmcoreinfo = capture.vmcoreinfo().ok().flatten();
    }
    let vcpu_states = if is_early {
        capture.early().and_then(|early| early.vcpu_states())
    } else {
        capture.vcpu_states()
    };
    let vcpu_states = vcpu_states.unwrap_or_else(|fault| {
        warnings.push(format!("the states of the vCPUs cannot be read: {fault}"));
        Vec::new()
    });
    if !vcpu_states.is_empty() {
        let cpus = half.manifest.as_ref().map_or(0, |manifest| manifest.cpus);
        facts.vcpus = by_number(&vcpu_states, cpus);
    }
    let btf = capture.btf().unwrap_or_else(|fault| {
        warnings.push(format!("the BTF note cannot be read: {fault}"));
        None
    });
    let timeline = capture.timeline().unwrap_or_else(|fault| {
        warnings.push(format!("the note of the monitor cannot be read: {fault}"));
        None
    });
    let perf_counters = capture.perf_counters().unwrap_or_else(|fault| {
        warnings.push(format!("the hardware counters cannot be read: {fault}"));
        None
    });
    let early = !is_early
        && capture.preamble().dual
        && capture
            .early()
            .map_err(|fault| warnings.push(format!("the early image cannot be read: {fault}")))
            .is_ok();
    let mut regions: Vec<Region> = capture
        .segments()
        .iter()
        .map(|s| Region {
            start: Gpa(s.gpa),
            len: capture.held_bytes(s),
        })
        .filter(|r| r.len > 0)
        .collect();
    regions.sort_by_key(|r| r.start);
    if let (true, Ok(manifest)) = (is_early, &half.manifest) {
        regions = without(&regions, &manifest.memory);
    }
    let excluded = capture.excluded().cloned().unwrap_or_else(|fault| {
        warnings.push(fault.to_string());
        Excluded::default()
    });
    let digest = capture.digest().map(|digest| format!("{digest:032x}"));
    Image {
        kind: ImageKind::Capture,
        digest,
        memory: Box::new(CaptureMemory {
            capture,
            regions,
            early: is_early,
            corrupt: Mutex::default(),
        }),
        vcpus: facts.vcpus,
        register_notes: facts.register_notes,
        vmcoreinfo: facts.vmcoreinfo,
        missing: Vec::new(),
        btf,
        timeline,
        // They are those of the last freeze.
        perf_counters: perf_counters.filter(|_| !is_early),
        early,
        manifest: half.manifest.ok(),
        vcpu_states,
        left_out: chosen,
        excluded,
        trigger,
        warnings,
    }
}

/// Registers in the places of their vCPUs, of which there are `count`. Register notes tell only the
/// order of those that stopped.
fn by_number(states: &[VcpuState], count: u32) -> Vec<Option<VcpuRegs>> {
    let places = states.iter().map(|state| state.vcpu.saturating_add(1));
    let count = places.fold(count, u32::max).min(MAX_VCPUS);
    let mut found = vec![None; to_usize(u64::from(count))];
    for state in states {
        if let Some(place) = found.get_mut(to_usize(u64::from(state.vcpu))) {
            let mut regs = VcpuRegs::from_prstatus(&state.to_prstatus());
            if let (Some(regs), Some(qemu)) = (&mut regs, state.to_qemu()) {
                regs.add_qemu_state(&qemu);
            }
            if let Some(regs) = &mut regs {
                regs.tsc = state.msr(MSR_TSC);
            }
            *place = regs;
        }
    }
    found
}

/// The parts of `regions` that the early image has.
fn without(regions: &[Region], memory: &[MemoryRegion]) -> Vec<Region> {
    let absent = memory.iter().filter(|r| r.kind == MemoryKind::NotCaptured);
    let mut absent: Vec<(u64, u64)> = absent
        .map(|r| (r.gpa, r.gpa.saturating_add(r.bytes)))
        .collect();
    absent.sort_unstable();
    let mut left = Vec::new();
    for region in regions {
        let mut at = region.start.0;
        let end = region.end().0;
        let from = absent
            .partition_point(|&(start, _)| start < at)
            .saturating_sub(1);
        for &(start, stop) in absent
            .iter()
            .skip(from)
            .take_while(|(start, _)| *start < end)
        {
            if start > at {
                left.push(Region {
                    start: Gpa(at),
                    len: start - at,
                });
            }
            at = at.max(stop);
        }
        if at < end {
            left.push(Region {
                start: Gpa(at),
                len: end - at,
            });
        }
    }
    left
}

/// A sentence for each reason for which memory was not captured: a core without its free pages
/// can have a hundred thousand ranges that it lacks. With whether that was on purpose.
fn not_captured(memory: &[MemoryRegion]) -> impl Iterator<Item = (bool, String)> {
    let mut reasons: Vec<(&str, &MemoryRegion, u64, u64)> = Vec::new();
    for region in memory {
        if region.kind != MemoryKind::NotCaptured {
            continue;
        }
        let reason = region.reason.as_deref().unwrap_or("no reason recorded");
        let room = reasons.len() < MAX_SENTENCES;
        match reasons.iter_mut().find(|(known, ..)| *known == reason) {
            Some((_, _, ranges, bytes)) => {
                *ranges += 1;
                *bytes = bytes.saturating_add(region.bytes);
            }
            None if room => reasons.push((reason, region, 1, region.bytes)),
            None => {}
        }
    }
    reasons.into_iter().map(|(reason, first, ranges, bytes)| {
        let ranges = match ranges {
            1 => String::new(),
            n if reason.starts_with(LEFT_OUT) => format!(" in {n} ranges"),
            n => format!(" and in {} more ranges", n - 1),
        };
        match reason.strip_prefix(LEFT_OUT) {
            Some(rule) => (true, format!("{bytes} bytes{ranges}: {rule}")),
            None => (
                false,
                format!(
                    "{bytes} bytes at PA {:#x}{ranges} were not captured: {reason}",
                    first.gpa
                ),
            ),
        }
    })
}

/// A sentence for each rule that left out pages.
pub(super) fn excluded_pages(rules: &[ExcludedPages]) -> impl Iterator<Item = String> {
    rules.iter().take(MAX_SENTENCES).map(|sum| {
        let ranges = match sum.runs {
            1 => String::new(),
            n => format!(" in {n} ranges"),
        };
        let rule = Rule::from_name(&sum.rule);
        format!(
            "{} bytes{ranges}: {} (--exclude {})",
            sum.bytes,
            rule.pages(),
            sum.rule
        )
    })
}

/// What a note is, for people.
pub(super) fn describe_note(note: &NoteEntry) -> String {
    let what = match (note.name.as_str(), note.kind) {
        ("CORE", note_types::NT_PRSTATUS) => "registers of a vCPU",
        ("LINUX", note_types::NT_X86_XSTATE) => "floating point and vector registers of a vCPU",
        ("QEMU", note_types::QEMU_CPU_STATE) => "control registers of a vCPU",
        ("VMCOREINFO", note_types::VMCOREINFO) => "the kernel's own description",
        ("SCXPM", note_types::MANIFEST) => "manifest",
        ("SCXPM", note_types::VCPU_STATE) => "full state of a vCPU",
        ("SCXPM", note_types::BTF) => "vmlinux BTF",
        ("SCXPM", note_types::TIMELINE) => "monitor timeline",
        ("SCXPM", note_types::PERF_COUNTERS) => "perf counters",
        ("SCXPM", note_types::CONSOLE) => "end of the console",
        ("SCXPM", note_types::EXCLUDED) => "pages that were left out",
        _ => "unknown to this version",
    };
    format!(
        "{} {:#x}: {what}, {} bytes",
        note.name, note.kind, note.bytes
    )
}

/// Bytes of guest memory that a capture holds.
pub(super) fn held(capture: &Capture<FileBytes>) -> u64 {
    capture
        .segments()
        .iter()
        .map(|s| capture.held_bytes(s))
        .sum()
}

/// Counts vCPUs by their registers.
pub(super) fn vcpus(notes: &[NoteEntry]) -> u64 {
    let registers = notes
        .iter()
        .filter(|n| n.name == "CORE" && n.kind == note_types::NT_PRSTATUS);
    to_u64(registers.count())
}
