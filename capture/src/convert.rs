//! `capture convert`: an existing ELF core becomes a capture.
//!
//! The kernel is looked for so that the capture can say which release it holds and carry
//! VMCOREINFO as a note; a core whose kernel cannot be found is archived all the same, with the
//! reason in its manifest.

use std::io;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use scx_postmortem_analyze::addr::Gpa;
use scx_postmortem_analyze::exclude;
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::source::{Image, ImageKind, PhysicalMemory, may_write};
use scx_postmortem_analyze::walk::clock;
use scx_postmortem_format::capture::{
    AtomicFile, CaptureSpec, EarlyInfo, EarlySpec, Excluded, Existing, Extent, Manifest,
    MemoryKind, MemoryRegion, MemorySource, MissingItem, Note, SourceInfo, ToolInfo, WriteOptions,
    write_capture,
};

use crate::cli::{ConvertArgs, Failure};

/// Exit code: the input is unusable.
const UNUSABLE: u8 = 4;
/// Exit code: written, but the input was incomplete.
const INCOMPLETE: u8 = 3;
/// Exit code: the output could not be written.
const OUTPUT: u8 = 1;

/// An image as something to write from.
struct Source<'a>(&'a dyn PhysicalMemory);

impl MemorySource for Source<'_> {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read(Gpa(gpa), buf).map_err(io::Error::other)
    }

    fn slice(&self, gpa: u64, bytes: usize) -> Option<&[u8]> {
        self.0.slice(Gpa(gpa), bytes)
    }
}

/// Converts.
pub(crate) fn run(args: &ConvertArgs) -> Result<(), Failure> {
    let inputs: Vec<&Path> = [Some(&args.core), args.early.as_ref()]
        .into_iter()
        .flatten()
        .map(PathBuf::as_path)
        .collect();
    may_write(&args.output, &inputs, args.force).map_err(|sentence| Failure {
        code: OUTPUT,
        sentence,
    })?;
    let unusable = |sentence: String| Failure {
        code: UNUSABLE,
        sentence,
    };
    let image = Image::open(&args.core).map_err(|e| unusable(e.to_string()))?;
    if image.kind == ImageKind::Capture {
        let name = args.core.display();
        return Err(unusable(format!(
            "{name}: is a capture already; expected an ELF core"
        )));
    }
    let mut manifest = Manifest {
        version: 1,
        tool: ToolInfo {
            name: "capture convert".into(),
            version: env!("CARGO_PKG_VERSION").into(),
        },
        source: SourceInfo {
            kind: "elf-core".into(),
            ..SourceInfo::default()
        },
        cpus: u32::try_from(image.vcpus.len()).unwrap_or(0),
        degraded: image.warnings.clone(),
        memory: image
            .missing
            .iter()
            .map(|r| MemoryRegion {
                gpa: r.start.0,
                bytes: r.len,
                kind: MemoryKind::NotCaptured,
                reason: Some("the core that was converted does not hold it".into()),
            })
            .collect(),
        ..Manifest::default()
    };
    let warnings = image.warnings.clone();
    let raw_vmcoreinfo = image.vmcoreinfo.clone();
    let mut notes = register_notes(&image);
    let memory: Vec<Extent> = image
        .memory
        .regions()
        .iter()
        .map(|r| Extent::new(r.start.0, r.len))
        .collect();

    let mut early: Option<EarlyCore> = None;
    let mut excluded = Excluded::default();
    let no_exclusion = |why: &dyn std::fmt::Display| {
        unusable(format!(
            "{}: cannot tell which pages to leave out: {why}; convert it without --exclude",
            args.core.display()
        ))
    };
    // Finding the kernel takes the image; the image comes back with it, or is opened again.
    let (image, found) = match Kernel::find(image, &Overrides::default()) {
        Ok(kernel) => {
            let text = kernel.vmcoreinfo.text().as_bytes().to_vec();
            manifest.kernel_release = Some(kernel.release().to_owned());
            if let Some(path) = &args.early {
                early = Some(EarlyCore::open(path, &kernel, &memory).map_err(&unusable)?);
            }
            if let Some(rules) = args.exclude {
                excluded = exclude::plan(&kernel, rules).map_err(|e| no_exclusion(&e))?;
            }
            (kernel.image, Ok(text))
        }
        Err(why) if args.early.is_some() => {
            return Err(unusable(format!(
                "{}: cannot tell whether both cores are of one guest: {why}",
                args.core.display()
            )));
        }
        Err(why) if args.exclude.is_some() => return Err(no_exclusion(&why)),
        Err(why) => (
            Image::open(&args.core).map_err(|e| unusable(e.to_string()))?,
            Err(why),
        ),
    };
    match found {
        Ok(text) => notes.push(Note::vmcoreinfo(text)),
        Err(reason) => {
            notes.extend(raw_vmcoreinfo.map(Note::vmcoreinfo));
            manifest.missing.push(MissingItem {
                what: "kernel".into(),
                reason,
            });
        }
    }

    let mut warnings = warnings;
    let early_source = early.as_ref().map(|early| Source(&*early.image.memory));
    let mut early_spec = None;
    if let (Some(early), Some(source)) = (&early, &early_source) {
        warnings.extend(
            early
                .image
                .warnings
                .iter()
                .map(|w| format!("early core: {w}")),
        );
        manifest.early = Some(EarlyInfo {
            before_late_ns: Some(early.before_late_ns),
            ..EarlyInfo::default()
        });
        early_spec = Some(EarlySpec {
            source,
            manifest: early.manifest(&manifest),
            notes: register_notes(&early.image),
        });
    }
    let spec = CaptureSpec {
        memory,
        manifest,
        notes,
        excluded,
        early: early_spec,
        ..CaptureSpec::default()
    };
    let failed = |cause: &dyn std::fmt::Display| Failure {
        code: OUTPUT,
        sentence: format!("{}: {cause}", args.output.display()),
    };
    let existing = Existing::forced(args.force);
    let mut file = AtomicFile::create(&args.output, existing).map_err(|e| {
        let hint = if e.kind() == io::ErrorKind::AlreadyExists {
            "; --force replaces it"
        } else {
            ""
        };
        failed(&format!("{e}{hint}"))
    })?;
    let bar = progress_bar();
    let show = |progress: scx_postmortem_format::capture::WriteProgress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
        ControlFlow::Continue(())
    };
    let options = WriteOptions {
        level: args.level(),
        progress: Some(&show),
        ..WriteOptions::default()
    };
    let written = write_capture(file.file(), &spec, &Source(&*image.memory), &options);
    bar.finish_and_clear();
    let summary = written.map_err(|e| failed(&e))?;
    file.commit().map_err(|e| failed(&e))?;
    if !warnings.is_empty() {
        return Err(Failure {
            code: INCOMPLETE,
            sentence: format!(
                "{}: written, but {}: {}",
                args.output.display(),
                args.core.display(),
                warnings.join("; ")
            ),
        });
    }
    if io::stderr().is_terminal() {
        let ratio = summary.file_bytes.saturating_mul(100) / summary.memory_bytes.max(1);
        // Only for whoever watches.
        let _ = io::Write::write_fmt(
            &mut io::stderr(),
            format_args!(
                "{}: {} MiB of memory in {} MiB ({ratio} %)\n",
                args.output.display(),
                summary.memory_bytes >> 20,
                summary.file_bytes >> 20
            ),
        );
    }
    Ok(())
}

fn register_notes(image: &Image) -> Vec<Note> {
    let notes = image.register_notes.iter();
    notes
        .map(|note| Note::new(&note.name, note.kind, note.desc.clone()))
        .collect()
}

/// A core of the same guest from some time before.
struct EarlyCore {
    image: Image,
    before_late_ns: u64,
    /// What the late core has and this one lacks.
    lacks: Vec<Extent>,
}

impl EarlyCore {
    /// Opens it and makes sure that it is of the same guest and older: anything else would give a
    /// comparison of things that have nothing to do with each other.
    fn open(path: &Path, late: &Kernel, memory: &[Extent]) -> Result<Self, String> {
        let name = path.display();
        let mut image = Image::open(path).map_err(|e| e.to_string())?;
        if image.kind == ImageKind::Capture {
            return Err(format!("{name}: is a capture; expected an ELF core"));
        }
        // What is there in the late core is there in both: the kernel does not change its place.
        image.vmcoreinfo = Some(late.vmcoreinfo.text().as_bytes().to_vec());
        let other = |why: &str| format!("{name}: not a core of the same run of the guest: {why}");
        let early = Kernel::find(image, &Overrides::default()).map_err(|why| other(&why))?;
        if early.vmcoreinfo != late.vmcoreinfo {
            return Err(other("its kernel is another one, or at another place"));
        }
        let time = |kernel: &Kernel| {
            clock::uptime_ns(kernel).map_err(|e| format!("{name}: cannot compare the times: {e}"))
        };
        // Random for each boot, also where nothing else is.
        let canary = |kernel: &Kernel| {
            let init = kernel.global("init_task", "struct task_struct")?;
            init.member("stack_canary")?.u64()
        };
        if canary(&early) != canary(late) {
            return Err(other("it was booted another time"));
        }
        let (before, after) = (time(&early)?, time(late)?);
        let before_late_ns = after.checked_sub(before).filter(|&ns| ns > 0);
        let before_late_ns = before_late_ns.ok_or_else(|| {
            format!(
                "{name}: was taken {before} ns after the guest's start, and the late core {after} ns; expected the older one with --early"
            )
        })?;
        let regions = early.image.memory.regions().iter();
        let has: Vec<Extent> = regions.map(|r| Extent::new(r.start.0, r.len)).collect();
        let mut lacks = Vec::new();
        for extent in memory {
            let end = extent.gpa.saturating_add(extent.bytes);
            let mut at = extent.gpa;
            for part in &has {
                let part_end = part.gpa.saturating_add(part.bytes);
                if part_end <= at || part.gpa >= end {
                    continue;
                }
                if part.gpa > at {
                    lacks.push(Extent::new(at, part.gpa - at));
                }
                at = part_end;
            }
            if at < end {
                lacks.push(Extent::new(at, end - at));
            }
        }
        Ok(Self {
            image: early.image,
            before_late_ns,
            lacks,
        })
    }

    fn manifest(&self, late: &Manifest) -> Manifest {
        let lacks = self.lacks.iter().map(|extent| MemoryRegion {
            gpa: extent.gpa,
            bytes: extent.bytes,
            kind: MemoryKind::NotCaptured,
            reason: Some("the early core does not hold it".into()),
        });
        Manifest {
            tool: late.tool.clone(),
            source: late.source.clone(),
            kernel_release: late.kernel_release.clone(),
            cpus: u32::try_from(self.image.vcpus.len()).unwrap_or(0),
            memory: lacks.collect(),
            degraded: self.image.warnings.clone(),
            ..Manifest::default()
        }
    }
}

/// A bar on a terminal, nothing in a pipe.
pub(crate) fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
