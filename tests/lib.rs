//! What the tests across crates share: the corpus.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::path::{Path, PathBuf};

use scx_postmortem_analyze::addr::{Gpa, Kva};
use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::error::Error;
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::source::{Image, PhysicalMemory, Region};
use scx_postmortem_format::report::FailureDumpReport;

/// One entry of `corpus/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its folder.
    pub dir: PathBuf,
    /// The folder's name.
    pub name: String,
}

impl Entry {
    /// The capture.
    #[must_use]
    pub fn capture(&self) -> PathBuf {
        self.dir.join("guest.core.zst")
    }

    /// The kernel that is in it.
    ///
    /// # Errors
    /// The sentence that `analyze` would print.
    pub fn kernel(&self) -> Result<Kernel, String> {
        let image = Image::open(&self.capture()).map_err(|e| e.to_string())?;
        Kernel::find(image, &Overrides::default())
    }

    /// Its kernel, with the bytes at some kernel addresses replaced and those in some ranges
    /// lost.
    ///
    /// # Errors
    /// As [`Entry::kernel`]; also when an address is not mapped.
    pub fn patched(&self, bytes: &[(Kva, &[u8])], lost: &[Range<Kva>]) -> Result<Kernel, String> {
        let plain = self.kernel()?;
        let at = |kva| match plain.translate(kva) {
            Ok((gpa, _)) => Ok(gpa.0),
            Err(e) => Err(e.to_string()),
        };
        let mut replaced = Vec::new();
        for &(kva, new) in bytes {
            replaced.push((at(kva)?, new.to_vec()));
        }
        let mut ranges = Vec::new();
        for range in lost {
            let start = at(range.start)?;
            ranges.push(start..start + (range.end.0 - range.start.0));
        }
        let mut image = Image::open(&self.capture()).map_err(|e| e.to_string())?;
        Patched::apply(&mut image, replaced, ranges);
        Kernel::find(image, &Overrides::default())
    }

    /// Its report.
    ///
    /// # Errors
    /// As [`Entry::kernel`].
    pub fn report(&self) -> Result<FailureDumpReport, String> {
        Ok(analysis::analyze(&self.kernel()?, &Options::default()))
    }
}

/// An image's memory with some bytes replaced and some lost.
pub struct Patched {
    inner: Box<dyn PhysicalMemory>,
    bytes: Vec<(u64, Vec<u8>)>,
    lost: Vec<Range<u64>>,
}

impl Patched {
    /// Puts it in place of the image's memory.
    pub fn apply(image: &mut Image, bytes: Vec<(u64, Vec<u8>)>, lost: Vec<Range<u64>>) {
        let empty = Self {
            inner: Box::new(Nothing),
            bytes: Vec::new(),
            lost: Vec::new(),
        };
        let inner = std::mem::replace(&mut image.memory, Box::new(empty));
        image.memory = Box::new(Self { inner, bytes, lost });
    }
}

impl PhysicalMemory for Patched {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        let end = gpa.0 + buf.len() as u64;
        if let Some(lost) = self.lost.iter().find(|l| l.start < end && gpa.0 < l.end) {
            return Err(Error::NotCaptured(Gpa(lost.start.max(gpa.0))));
        }
        self.inner.read(gpa, buf)?;
        for (start, bytes) in &self.bytes {
            if *start >= end || start + bytes.len() as u64 <= gpa.0 {
                continue;
            }
            for (at, byte) in (gpa.0..).zip(buf.iter_mut()) {
                let new = at
                    .checked_sub(*start)
                    .and_then(|o| bytes.get(usize::try_from(o).ok()?));
                *byte = new.copied().unwrap_or(*byte);
            }
        }
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        self.inner.regions()
    }
}

/// No memory at all.
pub struct Nothing;

impl PhysicalMemory for Nothing {
    fn read(&self, gpa: Gpa, _: &mut [u8]) -> Result<(), Error> {
        Err(Error::Hole(gpa))
    }

    fn regions(&self) -> &[Region] {
        &[]
    }
}

/// The entry of that name.
///
/// # Errors
/// As [`corpus`]; also when there is none.
pub fn entry(name: &str) -> Result<Entry, String> {
    let found = corpus()?.into_iter().find(|entry| entry.name == name);
    found.ok_or_else(|| format!("the corpus has no {name}"))
}

/// Every entry of the corpus, by name.
///
/// # Errors
/// When the folder cannot be read or holds fewer than the three captures that ship.
pub fn corpus() -> Result<Vec<Entry>, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    let say = |e: std::io::Error| format!("{}: {e}", root.display());
    let mut entries = Vec::new();
    for folder in std::fs::read_dir(&root).map_err(say)? {
        let dir = folder.map_err(say)?.path();
        let name = dir
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        let entry = Entry { dir, name };
        if entry.capture().exists() {
            entries.push(entry);
        }
    }
    entries.sort();
    if entries.len() < 3 {
        return Err(format!(
            "{}: {} captures, expected 3 or more",
            root.display(),
            entries.len()
        ));
    }
    Ok(entries)
}
