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
    AtomicFile, CaptureSpec, Excluded, Existing, Extent, LEFT_OUT, Manifest, MemoryKind,
    MemoryRegion, MemorySource, Note, SourceInfo, Summary, ToolInfo, WriteOptions, WriteProgress,
    note_types, write_capture,
};
use scx_postmortem_format::report::{FailureDumpReport, FailureDumpReportAny};

use crate::addr::Gpa;
use crate::analysis::{self, Options};
use crate::bytes::{to_u64, to_usize};
use crate::error::Error;
use crate::kernel::{Kernel, Overrides};
use crate::source::{Image, OnProgress, PhysicalMemory, Region};
use crate::tables::{self, Tables};

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

    /// The parts of the image that were read, of the pages that are wanted; gaps of up to `gap`
    /// pages count as read.
    fn extents(&self, gap: u64, wanted: impl Fn(u64) -> bool) -> Vec<Extent> {
        let mut found: Vec<Extent> = Vec::new();
        for region in self.memory.regions() {
            let end = region.start.0.saturating_add(region.len);
            // Where the last extent of this region ends.
            let mut open: Option<u64> = None;
            for page in region.start.0 / PAGE..end.div_ceil(PAGE) {
                if !self.was_read(page) || !wanted(page) {
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

/// Which image of a capture is reduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// The only one; of a dual capture it has to be said.
    Only,
    /// The early one of a dual capture.
    Early,
    /// The late one of a dual capture, or the only one.
    Late,
}

impl Pick {
    fn open(self, file: &Path) -> Result<Image, ReduceError> {
        let mut image = match self {
            Self::Early => Image::open_early(file)?,
            Self::Only | Self::Late => Image::open(file)?,
        };
        if self == Self::Only && image.early {
            return Err(ReduceError::Dual(file.display().to_string()));
        }
        // The reduced capture has no other, so its report does not tell of one.
        image.early = false;
        Ok(image)
    }
}

/// Why there is no reduced capture.
#[derive(Debug, thiserror::Error)]
pub enum ReduceError {
    /// The input.
    #[error(transparent)]
    Input(#[from] crate::error::OpenError),
    /// A dual capture, and nobody said which image is meant.
    #[error(
        "{0}: this is a dual capture, and a reduced one holds one image: give --late or --early"
    )]
    Dual(String),
    /// The output.
    #[error("{0}")]
    Output(String),
    /// The file with the kernel's tables.
    #[error("{0}")]
    Tables(String),
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

/// A file and what a report on it read.
struct Recorded {
    warnings: Vec<String>,
    recorder: Arc<Recorder>,
    manifest: Manifest,
    notes: Vec<Note>,
    tail_notes: Vec<Note>,
    kernel: Kernel,
    report: FailureDumpReport,
}

impl Recorded {
    fn new(file: &Path, pick: Pick) -> Result<Self, ReduceError> {
        let no_kernel = |why| no_kernel(file, why);
        // Looking for VMCOREINFO may read all memory: it becomes a note first.
        let kernel = Kernel::find(pick.open(file)?, &Overrides::default()).map_err(no_kernel)?;
        let vmcoreinfo = kernel.vmcoreinfo.text().as_bytes().to_vec();
        let release = kernel.release().to_owned();
        drop(kernel);

        let mut image = pick.open(file)?;
        let source = image.kind.name();
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
        manifest.source = SourceInfo {
            kind: source.into(),
            ..SourceInfo::default()
        };
        manifest.early = None;
        let mut notes: Vec<Note> = image
            .register_notes
            .iter()
            .map(|note| Note::new(&note.name, note.kind, note.desc.clone()))
            .collect();
        notes.push(Note::vmcoreinfo(vmcoreinfo));
        let timeline = image.timeline.iter();
        notes.extend(timeline.map(|t| Note::scxpm(note_types::TIMELINE, t.clone())));
        let tail_notes = image
            .btf
            .iter()
            .map(|btf| Note::scxpm(note_types::BTF, btf.clone()))
            .collect();

        let kernel = Kernel::find(image, &Overrides::default()).map_err(no_kernel)?;
        let report = analysis::analyze(&kernel, &Options::default());
        if let Some(damage) = kernel.image.memory.damage().into_iter().next() {
            let path = file.display().to_string();
            return Err(ReduceError::Damaged { path, damage });
        }
        Ok(Self {
            warnings: kernel.image.warnings.clone(),
            recorder,
            manifest,
            notes,
            tail_notes,
            kernel,
            report,
        })
    }

    /// Writes that memory of it to a file, which appears only when `check` is content with it.
    fn write(
        self,
        memory: Vec<Extent>,
        tool: &str,
        output: &Path,
        level: i32,
        progress: OnProgress<'_>,
        check: impl FnOnce(&Path, FailureDumpReport) -> Result<(), ReduceError>,
    ) -> Result<Reduced, ReduceError> {
        let Self {
            warnings,
            recorder,
            mut manifest,
            notes,
            tail_notes,
            kernel,
            report,
        } = self;
        drop(kernel);
        manifest.tool = ToolInfo {
            name: tool.into(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        manifest.memory.sort_by_key(|region| region.gpa);
        let spec = CaptureSpec {
            memory,
            manifest,
            notes,
            tail_notes,
            excluded: Excluded::default(),
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
        check(written.temporary_path(), report)?;
        written.commit().map_err(|e| failed(&e))?;
        Ok(Reduced { summary, warnings })
    }
}

fn no_kernel(file: &Path, why: String) -> ReduceError {
    let path = file.display().to_string();
    ReduceError::Input(crate::error::OpenError::NoKernel { path, why })
}

/// Writes the pages of one image of `file` that a report reads to `output`, and makes sure that they
/// give the same report. Pages that are in the file `shared`, which [`tables()`] has written for this
/// kernel, are left out. `output` appears only when complete.
///
/// # Errors
/// [`ReduceError`].
pub fn reduce(
    file: &Path,
    pick: Pick,
    shared: Option<&Path>,
    output: &Path,
    level: i32,
    progress: OnProgress<'_>,
) -> Result<Reduced, ReduceError> {
    let mut recorded = Recorded::new(file, pick)?;
    let warning = recorded.warnings.first().cloned();
    let recorder = Arc::clone(&recorded.recorder);
    let mut elsewhere = Vec::new();
    let mut elsewhere_rule = String::new();
    if let Some(path) = shared {
        let tables = Tables::open(path).map_err(ReduceError::Tables)?;
        let build_id = recorded.kernel.vmcoreinfo.build_id().unwrap_or_default();
        if build_id.is_empty() || tables.build_id != build_id {
            return Err(ReduceError::Tables(format!(
                "{}: these are tables of the kernel with build id {}, and the guest's is {build_id}",
                path.display(),
                tables.build_id
            )));
        }
        let base = tables::image_base(&recorded.kernel.vmcoreinfo);
        elsewhere = recorder.extents(0, |page| {
            let mut own = [0; 4096];
            let gpa = Gpa(page * PAGE);
            let here = recorder.memory.read(gpa, &mut own).is_ok();
            here && tables.page(gpa, base) == Some(own)
        });
        elsewhere_rule = tables::rule(&tables.id);
        recorded.manifest.kernel_tables = Some(tables.id);
    }
    let is_elsewhere = |page: u64| {
        let at = elsewhere.partition_point(|extent: &Extent| extent.gpa <= page * PAGE);
        let before = at.checked_sub(1).and_then(|at| elsewhere.get(at));
        before.is_some_and(|extent| page * PAGE < extent.gpa + extent.bytes)
    };

    let mut gap = 0;
    let mut memory = recorder.extents(gap, |page| !is_elsewhere(page));
    while memory.len() > MAX_EXTENTS {
        gap = gap * 2 + 1;
        memory = recorder.extents(gap, |page| !is_elsewhere(page));
    }
    let listed = &mut recorded.manifest.memory;
    listed.retain(|region| region.kind == MemoryKind::NotCaptured);
    // What the whole file has left out already, one by one: a reduced one is small.
    let excluded = recorded.kernel.image.excluded.runs().iter();
    listed.extend(excluded.map(|run| {
        let rule = format!("{} (--exclude {})", run.rule.pages(), run.rule);
        not_captured(run.gpa, run.bytes, &rule)
    }));
    let regions = recorder.regions();
    // With gaps, an extent may cover what is elsewhere; it is then in the file itself.
    let shared_extents: Vec<Extent> = match gap {
        0 => elsewhere.clone(),
        _ => subtract(&elsewhere, &memory),
    };
    let mut kept: Vec<Extent> = memory.iter().chain(&shared_extents).copied().collect();
    kept.sort_by_key(|extent| extent.gpa);
    listed.extend(left_out(regions, &kept));
    listed.extend(
        shared_extents
            .iter()
            .map(|extent| not_captured(extent.gpa, extent.bytes, &elsewhere_rule)),
    );
    recorded.write(
        memory,
        "analyze reduce",
        output,
        level,
        progress,
        |written, before| {
            let mut again = Image::open(written)?;
            if let Some(path) = shared {
                again = tables::supply(again, path).map_err(ReduceError::Tables)?;
            }
            let kernel =
                Kernel::find(again, &Overrides::default()).map_err(|why| no_kernel(file, why))?;
            let after = analysis::analyze(&kernel, &Options::default());
            match (difference(before, after), warning) {
                (None, _) => Ok(()),
                (Some(place), None) => Err(ReduceError::Different(place)),
                (Some(_), Some(damage)) => {
                    let path = file.display().to_string();
                    Err(ReduceError::Damaged { path, damage })
                }
            }
        },
    )
}

/// Writes what all guests with the kernel of `file` have in common to `output`: those pages that
/// a report reads of the kernel's types, symbols and other constants, and its unwind tables whole.
///
/// # Errors
/// [`ReduceError`].
pub fn tables(
    file: &Path,
    output: &Path,
    level: i32,
    progress: OnProgress<'_>,
) -> Result<Reduced, ReduceError> {
    let mut recorded = Recorded::new(file, Pick::Late)?;
    let recorder = Arc::clone(&recorded.recorder);
    let kernel = &recorded.kernel;
    let build_id = kernel.vmcoreinfo.build_id().map(str::to_owned);
    let build_id = build_id.ok_or_else(|| no_kernel(file, "the kernel has no build id".into()))?;
    let base = tables::image_base(&kernel.vmcoreinfo);
    let pages_between = |start: &str, end: &str| {
        let at = |name| kernel.symbol(name).and_then(|kva| kernel.translate(kva));
        match (at(start), at(end)) {
            // Whole pages only: the rest may change.
            (Ok((start, _)), Ok((end, _))) => start.0.div_ceil(PAGE)..end.0 / PAGE,
            _ => 0..0,
        }
    };
    let constant = pages_between("__start_rodata", "__end_rodata");
    let unwind = [
        pages_between("__start_orc_unwind_ip", "__stop_orc_unwind_ip"),
        pages_between("__start_orc_unwind", "__stop_orc_unwind"),
        pages_between("orc_lookup", "orc_lookup_end"),
    ];
    for page in unwind.iter().flat_map(Clone::clone) {
        recorder.note(Gpa(page * PAGE), 1);
    }
    let memory = recorder.extents(0, |page| {
        constant.contains(&page) || unwind.iter().any(|range| range.contains(&page))
    });

    let regions = memory.iter().map(|extent| Region {
        start: Gpa(extent.gpa),
        len: extent.bytes,
    });
    let regions: Vec<Region> = regions.collect();
    let digest = tables::digest(&*recorder.memory, &regions, base)
        .map_err(|e| ReduceError::Output(e.to_string()))?;
    recorded.manifest = Manifest {
        version: 1,
        kernel_release: recorded.manifest.kernel_release.take(),
        kernel_tables: Some(tables::id(&build_id, digest)),
        source: SourceInfo {
            kind: tables::KIND.into(),
            ..SourceInfo::default()
        },
        ..Manifest::default()
    };
    // Not the registers of a guest: nothing in there is of that guest alone.
    recorded.notes.retain(|note| note.name == "VMCOREINFO");
    recorded.tail_notes.clear();
    recorded.write(
        memory,
        "analyze tables",
        output,
        level,
        progress,
        |written, _| Tables::open(written).map(drop).map_err(ReduceError::Tables),
    )
}

/// The parts of `from` that are in none of `without`; both ascending.
fn subtract(from: &[Extent], without: &[Extent]) -> Vec<Extent> {
    let mut out = Vec::new();
    for extent in from {
        let mut at = extent.gpa;
        let end = extent.gpa + extent.bytes;
        for other in without {
            let (start, stop) = (other.gpa, other.gpa + other.bytes);
            if stop <= at || end <= start {
                continue;
            }
            if at < start {
                out.push(Extent::new(at, start - at));
            }
            at = stop;
        }
        if at < end {
            out.push(Extent::new(at, end - at));
        }
    }
    out
}

fn not_captured(gpa: u64, bytes: u64, rule: &str) -> MemoryRegion {
    MemoryRegion {
        gpa,
        bytes,
        kind: MemoryKind::NotCaptured,
        reason: Some(format!("{LEFT_OUT}{rule}")),
    }
}

/// What is between the extents that are kept.
fn left_out(regions: &[Region], kept: &[Extent]) -> Vec<MemoryRegion> {
    let mut out = Vec::new();
    let mut push = |from: u64, to: u64| {
        if from < to {
            out.push(not_captured(from, to - from, RULE));
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
fn difference(before: FailureDumpReport, after: FailureDumpReport) -> Option<String> {
    let lines = |mut report: FailureDumpReport| {
        if let Some(own) = &mut report.postmortem {
            own.input = None;
            own.provenance.clear();
            // Of the file, not of the guest.
            own.warnings.clear();
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
