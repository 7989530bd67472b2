//! The file itself: what it holds, whether it is sound, and the ELF core inside it.

use std::ops::ControlFlow;
use std::path::Path;

use scx_postmortem_format::capture::{
    AtomicFile, Existing, ExportError as FormatExportError, Timings, Trigger,
};

use super::capture::{container, describe_note, excluded_pages, held, vcpus};
use super::{FileBytes, Image};
use crate::bytes::to_u64;
use crate::error::OpenError;

/// Ranges of memory that are listed.
const MAX_RANGES: usize = 32;

/// Told of bytes done and bytes in all.
pub type OnProgress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// What `analyze info` prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Key and value, in order.
    pub lines: Vec<(String, String)>,
    /// Whether something is wrong with the file.
    pub damaged: bool,
}

/// What `analyze verify` prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What is wrong, each a sentence; empty for a sound file.
    pub problems: Vec<String>,
    /// What was checked.
    pub summary: String,
}

/// Why an export failed.
#[derive(Debug)]
pub enum ExportError {
    /// The capture cannot be read.
    Input(OpenError),
    /// The core cannot be written.
    Output(String),
}

/// Whether `output` may be written while `inputs` are read: it must be none of them, no symbolic
/// link and no device, and not a core that would be lost.
///
/// # Errors
/// A sentence that names the file.
pub fn may_write(output: &Path, inputs: &[&Path], replace_cores: bool) -> Result<(), String> {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;
    let name = output.display();
    if output == Path::new("-") {
        return Err("standard output cannot take this, name a file".into());
    }
    let Ok(link) = std::fs::symlink_metadata(output) else {
        return Ok(());
    };
    if link.file_type().is_symlink() {
        return Err(format!("{name}: is a symbolic link; name the file itself"));
    }
    if !link.is_file() {
        return Err(format!("{name}: is not a regular file; name another"));
    }
    for input in inputs {
        let same =
            std::fs::metadata(input).is_ok_and(|i| i.dev() == link.dev() && i.ino() == link.ino());
        if same {
            return Err(format!(
                "{name}: is the input; writing would destroy it, name another file"
            ));
        }
    }
    let mut head = Vec::new();
    let opened = std::fs::File::open(output);
    // A file that cannot be read cannot be told to be a core; writing fails in its own words.
    let _ = opened.and_then(|f| f.take(16).read_to_end(&mut head));
    let core = head.starts_with(b"\x7fELF") || head.get(8..16) == Some(b"SCXPMCAP");
    if core && !replace_cores {
        return Err(format!(
            "{name}: is a core or a capture already and is not overwritten; remove it first"
        ));
    }
    Ok(())
}

/// What a file holds. Decompresses nothing but the notes of a capture.
///
/// # Errors
/// [`OpenError`].
pub fn describe(path: &Path) -> Result<Facts, OpenError> {
    let bytes = FileBytes::open(path)?;
    let name = path.display().to_string();
    let mut lines = Vec::new();
    let mut add = |key: &str, value: String| lines.push((key.to_owned(), value));
    let file_bytes = to_u64(bytes.len());
    if bytes.is_empty() || bytes.starts_with(b"\x7fELF") {
        drop(bytes);
        let image = Image::open(path)?;
        add("kind", "ELF core, x86-64".into());
        add("file", size(file_bytes));
        add("memory", size(image.memory_bytes()));
        for region in image.memory.regions() {
            add("", format!("{:#x}..{:#x}", region.start.0, region.end().0));
        }
        add("vCPUs", image.vcpus.len().to_string());
        let note = if image.vmcoreinfo.is_some() {
            "note"
        } else {
            "no note; searched for in memory"
        };
        add("VMCOREINFO", note.into());
        for warning in &image.warnings {
            add("damage", warning.clone());
        }
        return Ok(Facts {
            lines,
            damaged: !image.warnings.is_empty(),
        });
    }
    let capture = container(bytes, &name)?;
    let head = capture.preamble();
    let mut damaged = false;
    add(
        "kind",
        format!("capture, container version {}.{}", head.major, head.minor),
    );
    add("file", size(file_bytes));
    add(
        "kernel",
        if head.kernel_release.is_empty() {
            "not known".into()
        } else {
            head.kernel_release.clone()
        },
    );
    add("memory", size(held(&capture)));
    add("vCPUs", vcpus(capture.notes()).to_string());
    match capture.manifest() {
        Ok(manifest) => {
            add(
                "written by",
                format!("{} {}", manifest.tool.name, manifest.tool.version),
            );
            add("made from", manifest.source.kind.clone());
            if let Some(trigger) = &manifest.trigger {
                for line in triggered(trigger) {
                    add("trigger", line);
                }
            }
            for line in manifest.timings.iter().flat_map(timed) {
                add("times", line);
            }
            for what in excluded_pages(&manifest.excluded) {
                add("left out", what);
            }
            for why in &manifest.degraded {
                damaged = true;
                add("degraded", why.clone());
            }
            for item in &manifest.missing {
                add("missing", format!("{}: {}", item.what, item.reason));
            }
        }
        Err(fault) => {
            damaged = true;
            add("manifest", fault.to_string());
        }
    }
    add(
        "dual",
        if head.dual {
            "yes: an early image is in the file"
        } else {
            "no"
        }
        .into(),
    );
    for note in capture.notes() {
        add("note", describe_note(note));
    }
    if let Some(fault) = capture.notes_fault() {
        damaged = true;
        add("damage", format!("the notes are incomplete: {fault}"));
    }
    if let Some(recovered) = capture.recovered() {
        damaged = true;
        add("damage", recovered.to_string());
    }
    // Last, for there can be many.
    for (number, s) in capture.segments().iter().take(MAX_RANGES).enumerate() {
        let key = if number == 0 { "ranges" } else { "" };
        let end = s.gpa.saturating_add(s.bytes);
        add(key, format!("{:#x}..{end:#x}", s.gpa));
    }
    match capture.segments().len().saturating_sub(MAX_RANGES) {
        0 => {}
        more => add("", format!("and {more} more ranges")),
    }
    Ok(Facts { lines, damaged })
}

/// What made a capture fire: a line for its name and its words, and one for each thing known of it.
fn triggered(trigger: &Trigger) -> Vec<String> {
    let mut first = trigger.kind.clone();
    if let Some(detail) = &trigger.detail {
        first = format!("{first}: {detail}");
    }
    let known = trigger.extra.iter().map(|(name, value)| {
        let ns = value.as_u64().filter(|_| name.contains("_ns"));
        match (ns, value.as_str()) {
            (Some(ns), _) => millis(&name.replace("_ns", ""), ns),
            (None, Some(text)) => format!("{name} {text}"),
            (None, None) => format!("{name} {value}"),
        }
    });
    std::iter::once(first).chain(known).collect()
}

fn millis(what: &str, ns: u64) -> String {
    format!("{what} {}.{:03} ms", ns / 1_000_000, ns / 1000 % 1000)
}

/// When an image was taken, and how long the guest stood still for it.
fn timed(timings: &Timings) -> Vec<String> {
    let ms = |what: &str, ns: Option<u64>| ns.map(|ns| millis(what, ns));
    let wall = timings.taken_unix_ns.map(|ns| {
        let (seconds, rest) = (ns / 1_000_000_000, ns / 1_000_000 % 1000);
        format!("taken at {}.{rest:03}Z", utc(seconds))
    });
    let lines = [
        wall,
        ms("the guest had run for", timings.guest_uptime_ns),
        ms("the guest stood still for", timings.pause_ns),
        ms("of which memory was copied for", timings.copy_ns),
    ];
    lines.into_iter().flatten().collect()
}

/// `2026-11-22T04:26:48` of seconds since 1970.
fn utc(seconds: u64) -> String {
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

/// Year, month and day of days since 1970, in years that begin in March: then only their end differs.
const fn date(days: u64) -> (u64, u64, u64) {
    let days = days.saturating_add(719_468);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let (month, next) = match from_march {
        0..=9 => (from_march + 3, 0),
        _ => (from_march - 9, 1),
    };
    (era * 400 + year + next, month, day)
}

/// Bytes, and MiB, to the nearest tenth.
fn size(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10 + (1 << 19)) >> 20;
    format!("{bytes} bytes ({}.{} MiB)", tenths / 10, tenths % 10)
}

/// Checks every frame of a capture.
///
/// # Errors
/// [`OpenError`]; a plain ELF core has nothing to check against and is refused.
pub fn verify(path: &Path, progress: OnProgress<'_>) -> Result<Verified, OpenError> {
    let bytes = FileBytes::open(path)?;
    let name = path.display().to_string();
    if bytes.starts_with(b"\x7fELF") {
        return Err(OpenError::NoUse {
            path: name,
            why: "this is a plain ELF core, which has no checksums to verify",
        });
    }
    if bytes.is_empty() {
        return Err(OpenError::NotACore {
            path: name,
            found: "the file is empty".into(),
        });
    }
    let capture = container(bytes, &name)?;
    let checked = capture.verify(Some(&|p| {
        progress(p.done_bytes, p.total_bytes);
        ControlFlow::Continue(())
    }));
    let mut problems = checked.problems.clone();
    for bad in &checked.bad {
        let memory = bad.memory.map_or_else(String::new, |(gpa, len)| {
            format!(
                ", guest memory {gpa:#x}..{:#x} cannot be read",
                gpa.saturating_add(len)
            )
        });
        problems.push(format!(
            "frame {} at byte {}: {}{memory}",
            bad.frame, bad.offset, bad.why
        ));
    }
    let listed = to_u64(checked.bad.len());
    if checked.bad_frames > listed {
        problems.push(format!(
            "and {} more damaged frames",
            checked.bad_frames - listed
        ));
    }
    let verdict = if problems.is_empty() {
        "sound"
    } else {
        "damaged"
    };
    let summary = format!(
        "{name}: {verdict}, {} frames, {} bytes checked",
        checked.frames, checked.bytes
    );
    Ok(Verified { problems, summary })
}

/// What became of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exported {
    /// The core is whole; with a warning when the capture itself is not.
    Whole(Option<String>),
    /// What the capture holds of it, under this other name, and what is missing.
    Partial(std::path::PathBuf, String),
}

/// Writes the ELF core of a capture; `output` appears only when complete, else what there is stays
/// beside it as `NAME.partial`. Pages of zeros become holes in the file.
///
/// # Errors
/// [`ExportError`].
pub fn export(
    path: &Path,
    output: &Path,
    progress: OnProgress<'_>,
) -> Result<Exported, ExportError> {
    let name = path.display().to_string();
    let bytes = FileBytes::open(path).map_err(ExportError::Input)?;
    if bytes.starts_with(b"\x7fELF") {
        return Err(ExportError::Input(OpenError::NoUse {
            path: name,
            why: "this is an ELF file already",
        }));
    }
    if bytes.is_empty() {
        return Err(ExportError::Input(OpenError::NotACore {
            path: name,
            found: "the file is empty".into(),
        }));
    }
    let capture = container(bytes, &name).map_err(ExportError::Input)?;
    let manifest = capture.manifest().ok();
    if manifest.is_some_and(|manifest| manifest.kernel_tables.is_some()) {
        return Err(ExportError::Input(OpenError::NoUse {
            path: name,
            why: "the kernel's types and symbols are in a file of their own (analyze tables), and a core without them is of no use to drgn, crash or gdb; export the capture that this one was made of, or reduce that without --kernel-tables",
        }));
    }
    let failed = |e: std::io::Error| ExportError::Output(e.to_string());
    let mut file = AtomicFile::create(output, Existing::Replace).map_err(failed)?;
    let report = |p: scx_postmortem_format::capture::Progress| {
        progress(p.done_bytes, p.total_bytes);
        ControlFlow::Continue(())
    };
    capture
        .export_sparse(file.file(), Some(&report))
        .map_err(|e| match e {
            FormatExportError::Read(cause) => ExportError::Input(OpenError::Capture {
                path: name,
                cause: cause.to_string(),
            }),
            other => ExportError::Output(other.to_string()),
        })?;
    match capture.recovered() {
        Some(recovered) if recovered.missing_bytes > 0 => {
            let kept = file.keep_partial().map_err(failed)?;
            Ok(Exported::Partial(kept, recovered.to_string()))
        }
        recovered => {
            file.commit().map_err(failed)?;
            Ok(Exported::Whole(recovered.map(ToString::to_string)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_as_people_write_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (1_795_321_608, "2026-11-22T04:26:48"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(utc(seconds), text);
        }
        assert!(!utc(u64::MAX).is_empty());
        assert_eq!(size(0), "0 bytes (0.0 MiB)");
        assert_eq!(size(1_572_864), "1572864 bytes (1.5 MiB)");
        assert_eq!(size(1_048_575), "1048575 bytes (1.0 MiB)");
        assert_eq!(
            size(u64::MAX),
            "18446744073709551615 bytes (17592186044416.0 MiB)"
        );
    }
}
