//! What all guests of one kernel build have in common, kept once.
//!
//! The kernel's types and symbols are most of a reduced capture. They are the same bytes in every
//! guest of a build, at an address that differs by where the kernel was put. `analyze tables`
//! writes them to a file of their own; a capture that was reduced with it leaves out those of its
//! pages that are in there, byte for byte, and names that file by its id. Nothing is taken from a
//! file with another id.

use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::addr::Gpa;
use crate::bytes::{to_u64, to_usize};
use crate::error::Error;
use crate::kernel::vmcoreinfo::Vmcoreinfo;
use crate::source::{Image, PhysicalMemory, Region};
use scx_postmortem_format::capture::{LEFT_OUT, MemoryKind};

const PAGE: u64 = 4096;
/// What the manifest of a tables file has for the kind of its source.
pub(crate) const KIND: &str = "kernel-tables";

/// Why pages were left out, as the manifest and the report name it.
pub(crate) fn rule(id: &str) -> String {
    format!("pages that are in the kernel tables {id}")
}

/// An opened tables file.
pub(crate) struct Tables {
    memory: Box<dyn PhysicalMemory>,
    /// What the file is called in captures: the kernel's build id and a digest of the pages.
    pub(crate) id: String,
    /// The build id of its kernel.
    pub(crate) build_id: String,
    /// Where the kernel was, see [`image_base`].
    base: u64,
}

impl Tables {
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let image = Image::open(path).map_err(|e| e.to_string())?;
        let no = || format!("{name}: not a file that analyze tables has written");
        let manifest = image.manifest.as_ref().ok_or_else(no)?;
        if manifest.source.kind != KIND {
            return Err(no());
        }
        let info = image.vmcoreinfo.as_deref().and_then(Vmcoreinfo::parse);
        let info = info.ok_or_else(no)?;
        let id = manifest.kernel_tables.clone().ok_or_else(no)?;
        let build_id = info.build_id().unwrap_or_default().to_owned();
        let base = image_base(&info);
        let found = digest(&*image.memory, image.memory.regions(), base)
            .map_err(|why| format!("{name}: damaged, make it again with analyze tables: {why}"))?;
        let own = self::id(&build_id, found);
        if own != id {
            return Err(format!(
                "{name}: it calls itself the kernel tables {id}, and its content makes it {own}: it is damaged or was changed, make it again with analyze tables"
            ));
        }
        Ok(Self {
            id,
            build_id,
            base,
            memory: image.memory,
        })
    }

    /// The page that is at `gpa` in a guest whose kernel is at `base`.
    pub(crate) fn page(&self, gpa: Gpa, base: u64) -> Option<[u8; 4096]> {
        let mut page = [0; 4096];
        let at = Gpa(gpa.0.wrapping_sub(base).wrapping_add(self.base));
        self.memory.read(at, &mut page).ok().map(|()| page)
    }
}

/// What a tables file is called.
pub(crate) fn id(build_id: &str, digest: u64) -> String {
    format!("{build_id}-{digest:016x}")
}

/// The digest of pages and of where in the kernel's image they are.
pub(crate) fn digest(
    memory: &dyn PhysicalMemory,
    regions: &[Region],
    base: u64,
) -> Result<u64, Error> {
    let mut digest = Xxh3::new();
    let mut page = [0; 4096];
    for region in regions {
        digest.update(&region.start.0.wrapping_sub(base).to_le_bytes());
        let mut at = region.start;
        while at.0 < region.end().0 {
            let room = to_usize((region.end().0 - at.0).min(PAGE));
            let part = page.get_mut(..room).unwrap_or_default();
            memory.read(at, part)?;
            digest.update(part);
            at = Gpa(at.0.saturating_add(to_u64(room)));
        }
    }
    Ok(digest.digest())
}

/// What to take from a physical address in the kernel's image for one that is the same in every
/// guest of a build.
pub(crate) fn image_base(info: &Vmcoreinfo) -> u64 {
    let phys_base = info.phys_base().unwrap_or_default().cast_unsigned();
    phys_base.wrapping_add(info.kaslr_offset().unwrap_or(0))
}

/// The id of the tables file that an image cannot do without.
#[must_use]
pub fn needed(image: &Image) -> Option<&str> {
    let manifest = image.manifest.as_ref()?;
    manifest.kernel_tables.as_deref()
}

/// Of these files the one that calls itself by that id, else the last: it says why it is not the one.
/// [`supply`] checks what is in it.
#[must_use]
pub fn choose<'a>(files: &[&'a Path], id: &str) -> Option<&'a Path> {
    let (last, others) = files.split_last()?;
    let found = others.iter().find(|path| is_called(path, id));
    Some(found.unwrap_or(last))
}

/// Files that are looked at beside a capture.
const MAX_BESIDE: usize = 64;

/// The tables file with that id in the folder of a capture, of those called `*tables*.zst`. It is
/// known by what its manifest says; [`supply`] checks what is in it.
#[must_use]
pub fn beside(capture: &Path, id: &str) -> Option<PathBuf> {
    let folder = match capture.parent()? {
        here if here.as_os_str().is_empty() => Path::new("."),
        folder => folder,
    };
    let files = std::fs::read_dir(folder).ok()?;
    let mut files: Vec<PathBuf> = files
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.contains("tables") && name.ends_with(".zst") && path.is_file()
        })
        .collect();
    files.sort();
    files.truncate(MAX_BESIDE);
    files.into_iter().find(|path| is_called(path, id))
}

/// Whether a file says of itself that it is the tables with that id.
fn is_called(path: &Path, id: &str) -> bool {
    let image = Image::open(path).ok();
    image.is_some_and(|image| {
        let manifest = image.manifest.as_ref();
        manifest.is_some_and(|manifest| manifest.source.kind == KIND) && needed(&image) == Some(id)
    })
}

/// Gives an image the pages that it left out for being in a tables file. Images that need none
/// stay as they are.
///
/// # Errors
/// A sentence: the file cannot be read, is no tables file, or is not the one that the image names.
pub fn supply(mut image: Image, path: &Path) -> Result<Image, String> {
    let tables = Tables::open(path)?;
    let Some(wanted) = needed(&image).map(str::to_owned) else {
        return Ok(image);
    };
    if tables.id != wanted {
        return Err(format!(
            "{}: these are the kernel tables {}, and the capture needs {wanted}",
            path.display(),
            tables.id
        ));
    }
    let info = image.vmcoreinfo.as_deref().and_then(Vmcoreinfo::parse);
    let info = info.ok_or("the capture has no VMCOREINFO that tells where its kernel is")?;
    // The id has it too, but a manifest is only what somebody wrote.
    let build_id = info.build_id().unwrap_or_default();
    if build_id != tables.build_id {
        return Err(format!(
            "{}: these are tables of the kernel with build id {}, and the capture is of one with build id {build_id}",
            path.display(),
            tables.build_id
        ));
    }
    let reason = format!("{LEFT_OUT}{}", rule(&wanted));
    let mut shared = Vec::new();
    if let Some(manifest) = &mut image.manifest {
        manifest.kernel_tables = None;
        let memory = manifest.memory.iter();
        let left_out = memory.filter(|region| {
            region.kind == MemoryKind::NotCaptured && region.reason.as_deref() == Some(&reason)
        });
        shared.extend(left_out.map(|region| Region {
            start: Gpa(region.gpa),
            len: region.bytes,
        }));
        shared.sort_by_key(|region| region.start.0);
    }
    let memory = Supplied {
        inner: image.memory,
        tables,
        base: image_base(&info),
        shared,
    };
    Ok(Image {
        memory: Box::new(memory),
        ..image
    })
}

/// An image's memory, and where that has left something out, the tables'.
struct Supplied {
    inner: Box<dyn PhysicalMemory>,
    tables: Tables,
    base: u64,
    /// What was left out, ascending.
    shared: Vec<Region>,
}

impl Supplied {
    /// Whether something between the two addresses was left out.
    fn is_shared(&self, from: u64, to: u64) -> bool {
        let at = self.shared.partition_point(|region| region.start.0 < to);
        let last = at.checked_sub(1).and_then(|at| self.shared.get(at));
        last.is_some_and(|region| from < region.end().0)
    }

    fn part(&self, gpa: Gpa, part: &mut [u8]) -> Result<(), Error> {
        if !self.is_shared(gpa.0, gpa.0.saturating_add(1)) {
            return self.inner.read(gpa, part);
        }
        let page = self.tables.page(Gpa(gpa.0 / PAGE * PAGE), self.base);
        let from = to_usize(gpa.0 % PAGE);
        let bytes = page
            .as_ref()
            .and_then(|page| page.get(from..from.saturating_add(part.len())));
        part.copy_from_slice(bytes.ok_or(Error::NotCaptured(gpa))?);
        Ok(())
    }
}

impl PhysicalMemory for Supplied {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        if !self.is_shared(gpa.0, gpa.0.saturating_add(to_u64(buf.len()))) {
            return self.inner.read(gpa, buf);
        }
        let mut at = gpa;
        let mut rest = buf;
        while !rest.is_empty() {
            let room = to_usize(PAGE - at.0 % PAGE).min(rest.len());
            let (part, after) = rest.split_at_mut(room);
            self.part(at, part)?;
            at = Gpa(at.0.saturating_add(to_u64(room)));
            rest = after;
        }
        Ok(())
    }

    fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        // What is shared is not in there.
        self.inner.slice(gpa, len)
    }

    fn regions(&self) -> &[Region] {
        self.inner.regions()
    }

    fn damage(&self) -> Vec<String> {
        self.inner.damage()
    }
}
