//! `analyze reduce`: a capture that holds only the pages that a report reads.
//!
//! A failing core becomes a small file that gives the same report: one to attach to a bug, or to
//! keep as a test. Pages that no walker asked for are left out, and named so in the manifest;
//! nothing is made up in their place, so a newer analyzer that looks further finds them missing
//! instead of zero.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use scx_postmortem_format::capture::{
    AtomicFile, CaptureSpec, Existing, Extent, LEFT_OUT, Manifest, MemoryKind, MemoryRegion,
    MemorySource, Note, SourceInfo, Summary, ToolInfo, WriteOptions, WriteProgress, note_types,
    write_capture,
};
use scx_postmortem_format::report::FailureDumpReportAny;

use crate::addr::Gpa;
use crate::analysis::{self, Options};
use crate::bytes::{to_u64, to_usize};
use crate::error::Error;
use crate::kernel::{Kernel, Overrides};
use crate::source::{Image, ImageKind, OnProgress, PhysicalMemory, Region};

const PAGE: u64 = 4096;
/// Ranges of memory that a file may have (`e_phnum`, and room for its notes).
const MAX_EXTENTS: usize = 32_000;
/// The rule, as the manifest and the report name it.
const RULE: &str = "pages that no walker read when the capture was reduced";

/// Memory that notes which of its pages were read.
struct Recorder {
    memory: Box<dyn PhysicalMemory>,
    /// By the first page of each region: a bit for each of its pages.
    read: BTreeMap<u64, Vec<AtomicU64>>,
}

impl Recorder {
    fn new(memory: Box<dyn PhysicalMemory>) -> Self {
        let read = memory
            .regions()
            .iter()
            .map(|region| {
                let pages = region.len.div_ceil(PAGE) + 1;
                let words = to_usize(pages.div_ceil(64));
                let first = region.start.0 / PAGE;
                (first, (0..words).map(|_| AtomicU64::new(0)).collect())
            })
            .collect();
        Self { memory, read }
    }

    fn note(&self, gpa: Gpa, len: usize) {
        let last = gpa.0.saturating_add(to_u64(len).saturating_sub(1)) / PAGE;
        let mut page = gpa.0 / PAGE;
        while page <= last {
            // Two regions may share a page: the bit of the earlier one stands for it.
            let Some((first, words)) = self.read.range(..=page).next_back() else {
                return;
            };
            let index = page - first;
            let Some(word) = words.get(to_usize(index / 64)) else {
                return;
            };
            word.fetch_or(1 << (index % 64), Ordering::Relaxed);
            page += 1;
        }
    }

    fn was_read(&self, page: u64) -> bool {
        let of = self.read.range(..=page).next_back();
        of.is_some_and(|(first, words)| {
            let index = page - first;
            let word = words.get(to_usize(index / 64));
            word.is_some_and(|word| word.load(Ordering::Relaxed) >> (index % 64) & 1 == 1)
        })
    }

    /// The parts of the image that were read, page by page; gaps of up to `gap` pages count as
    /// read.
    fn extents(&self, gap: u64) -> Vec<Extent> {
        let mut found: Vec<Extent> = Vec::new();
        for region in self.memory.regions() {
            let end = region.start.0.saturating_add(region.len);
            // Where the last extent of this region ends.
            let mut open: Option<u64> = None;
            for page in region.start.0 / PAGE..end.div_ceil(PAGE) {
                if !self.was_read(page) {
                    continue;
                }
                let from = (page * PAGE).max(region.start.0);
                let to = (page + 1).saturating_mul(PAGE).min(end);
                match (open, found.last_mut()) {
                    (Some(last), Some(extent)) if from - last <= gap * PAGE => {
                        *extent = Extent::new(extent.gpa, to - extent.gpa);
                    }
                    _ => found.push(Extent::new(from, to - from)),
                }
                open = Some(to);
            }
        }
        found
    }
}

impl PhysicalMemory for Recorder {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        // What cannot be read is nothing to keep.
        self.memory.read(gpa, buf)?;
        self.note(gpa, buf.len());
        Ok(())
    }

    fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        let slice = self.memory.slice(gpa, len)?;
        self.note(gpa, len);
        Some(slice)
    }

    fn regions(&self) -> &[Region] {
        self.memory.regions()
    }
}

/// A recorder that outlives the kernel that reads through it.
struct Shared(Arc<Recorder>);

impl PhysicalMemory for Shared {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        PhysicalMemory::read(&*self.0, gpa, buf)
    }

    fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        PhysicalMemory::slice(&*self.0, gpa, len)
    }

    fn regions(&self) -> &[Region] {
        self.0.regions()
    }

    fn damage(&self) -> Vec<String> {
        self.0.memory.damage()
    }
}

impl MemorySource for Recorder {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()> {
        self.memory.read(Gpa(gpa), buf).map_err(io::Error::other)
    }

    fn slice(&self, gpa: u64, bytes: usize) -> Option<&[u8]> {
        self.memory.slice(Gpa(gpa), bytes)
    }
}

/// Why there is no reduced capture.
#[derive(Debug, thiserror::Error)]
pub enum ReduceError {
    /// The input.
    #[error(transparent)]
    Input(#[from] crate::error::OpenError),
    /// The output.
    #[error("{0}")]
    Output(String),
    /// The reduced capture does not give the report of the whole one.
    #[error(
        "the report on the reduced capture is not the one on the whole file (first at {0}); this is a fault of analyze, please report it"
    )]
    Different(String),
    /// The file is damaged where the report needs it, so nothing that is kept gives its report.
    #[error("{path}: {damage}; a file is reduced when it is whole: copy it again")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        damage: String,
    },
}

/// A capture that was reduced.
#[derive(Debug, Clone)]
pub struct Reduced {
    /// What was written.
    pub summary: Summary,
    /// What is wrong with the file that it was made of, without a difference to the report.
    pub warnings: Vec<String>,
}

/// Writes the pages of `file` that a report reads to `output`, and makes sure that they give the
/// same report. `output` appears only when complete.
///
/// # Errors
/// [`ReduceError`].
pub fn reduce(
    file: &Path,
    output: &Path,
    level: i32,
    progress: OnProgress<'_>,
) -> Result<Reduced, ReduceError> {
    let name = file.display().to_string();
    let no_kernel = |why| crate::error::OpenError::NoKernel {
        path: name.clone(),
        why,
    };
    // Looking for VMCOREINFO may read all memory: it becomes a note first.
    let kernel = Kernel::find(Image::open(file)?, &Overrides::default()).map_err(no_kernel)?;
    let vmcoreinfo = kernel.vmcoreinfo.text().as_bytes().to_vec();
    let release = kernel.release().to_owned();
    drop(kernel);

    let mut image = Image::open(file)?;
    let source = match image.kind {
        ImageKind::Capture => "capture",
        ImageKind::ElfCore => "elf-core",
    };
    let recorder = Arc::new(Recorder::new(image.memory));
    image.memory = Box::new(Shared(Arc::clone(&recorder)));
    image.vmcoreinfo = Some(vmcoreinfo.clone());
    let mut manifest = image.manifest.clone().unwrap_or_else(|| Manifest {
        version: 1,
        cpus: u32::try_from(image.vcpus.len()).unwrap_or(0),
        degraded: image.warnings.clone(),
        kernel_release: Some(release),
        ..Manifest::default()
    });
    let mut notes: Vec<Note> = image
        .register_notes
        .iter()
        .map(|note| Note::new(&note.name, note.kind, note.desc.clone()))
        .collect();
    notes.push(Note::vmcoreinfo(vmcoreinfo));
    let tail_notes = image
        .btf
        .iter()
        .map(|btf| Note::scxpm(note_types::BTF, btf.clone()))
        .collect();

    let kernel = Kernel::find(image, &Overrides::default()).map_err(no_kernel)?;
    let before = analysis::analyze(&kernel, &Options::default());
    let warnings = kernel.image.warnings.clone();
    if let Some(damage) = kernel.image.memory.damage().into_iter().next() {
        return Err(ReduceError::Damaged { path: name, damage });
    }
    drop(kernel);

    let mut gap = 0;
    let mut memory = recorder.extents(gap);
    while memory.len() > MAX_EXTENTS {
        gap = gap * 2 + 1;
        memory = recorder.extents(gap);
    }
    manifest.tool = ToolInfo {
        name: "analyze reduce".into(),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    manifest.source = SourceInfo {
        kind: source.into(),
        ..SourceInfo::default()
    };
    manifest.early = None;
    manifest
        .memory
        .retain(|region| region.kind == MemoryKind::NotCaptured);
    manifest
        .memory
        .extend(left_out(recorder.regions(), &memory));
    manifest.memory.sort_by_key(|region| region.gpa);

    let spec = CaptureSpec {
        memory,
        manifest,
        notes,
        tail_notes,
        early: None,
    };
    let failed = |cause: &dyn std::fmt::Display| {
        ReduceError::Output(format!("{}: {cause}", output.display()))
    };
    let show = |written: WriteProgress| {
        progress(written.done_bytes, written.total_bytes);
        ControlFlow::Continue(())
    };
    let options = WriteOptions {
        level,
        progress: Some(&show),
        ..WriteOptions::default()
    };
    let mut written = AtomicFile::create(output, Existing::Replace).map_err(|e| failed(&e))?;
    let summary =
        write_capture(written.file(), &spec, &*recorder, &options).map_err(|e| failed(&e))?;
    let again = Image::open(written.temporary_path())?;
    let kernel = Kernel::find(again, &Overrides::default()).map_err(no_kernel)?;
    let after = analysis::analyze(&kernel, &Options::default());
    if let Some(place) = difference(before, after) {
        return Err(match warnings.into_iter().next() {
            Some(damage) => ReduceError::Damaged { path: name, damage },
            None => ReduceError::Different(place),
        });
    }
    written.commit().map_err(|e| failed(&e))?;
    Ok(Reduced { summary, warnings })
}

/// What is between the extents that are kept.
fn left_out(regions: &[Region], kept: &[Extent]) -> Vec<MemoryRegion> {
    let mut out = Vec::new();
    let mut push = |from: u64, to: u64| {
        if from < to {
            out.push(MemoryRegion {
                gpa: from,
                bytes: to - from,
                kind: MemoryKind::NotCaptured,
                reason: Some(format!("{LEFT_OUT}{RULE}")),
            });
        }
    };
    let mut kept = kept.iter().peekable();
    for region in regions {
        let end = region.start.0.saturating_add(region.len);
        let mut at = region.start.0;
        while let Some(extent) = kept.next_if(|extent| extent.gpa < end) {
            push(at, extent.gpa);
            at = extent.gpa.saturating_add(extent.bytes);
        }
        push(at, end);
    }
    out
}

/// The first line in which two reports differ, but for what tells the files apart.
fn difference(
    before: scx_postmortem_format::report::FailureDumpReport,
    after: scx_postmortem_format::report::FailureDumpReport,
) -> Option<String> {
    let lines = |mut report: scx_postmortem_format::report::FailureDumpReport| {
        if let Some(own) = &mut report.postmortem {
            own.input = None;
            own.provenance.clear();
            // Of the file, not of the guest.
            own.warnings.clear();
            // An early image is not carried over.
            own.unavailable.retain(|u| u.section != "early");
        }
        FailureDumpReportAny::from(report)
            .to_json_pretty()
            .unwrap_or_else(|e| e.to_string())
    };
    let (before, after) = (lines(before), lines(after));
    let mut pairs = before.lines().zip(after.lines());
    pairs
        .find(|(a, b)| a != b)
        .map(|(a, b)| format!("{:.60} / {:.60}", a.trim(), b.trim()))
}
