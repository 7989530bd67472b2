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
    /// The file, for sentences.
    name: String,
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
            name: name.to_string(),
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

/// Why an image has not got the tables that it needs. Each is a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// There are none.
    Missing(String),
    /// Those that there are cannot be used.
    Unusable(String),
}

/// What to do about tables that an image cannot do without. Those of a `file` are looked for beside
/// it.
pub(crate) fn missing(id: &str, file: bool) -> String {
    let beside = match file {
        true => ", or put that file beside the capture, with `tables` in its name",
        false => "",
    };
    format!(
        "the capture was reduced to what is not in the kernel tables {id}; supply these with --kernel-tables FILE{beside}"
    )
}

/// Gives an image the tables that it needs, if it needs some: of the `given` files the one that
/// calls itself by their id, else such a one in the folder of `capture`, where that is a file. One
/// that cannot be used stands in the way of no other.
///
/// # Errors
/// [`Fault`]; when no file is the one, why the last given is not.
pub fn complete(image: Image, given: &[&Path], capture: Option<&Path>) -> Result<Image, Fault> {
    let Some(id) = needed(&image).map(str::to_owned) else {
        return Ok(image);
    };
    let mut damaged = None;
    let mut open = |path: &Path| match is_called(path, &id).then(|| Tables::open(path))? {
        Ok(tables) => Some(tables),
        Err(why) => {
            damaged.get_or_insert(why);
            None
        }
    };
    let mut more = String::new();
    let mut found = given.iter().find_map(|path| open(path));
    if let (None, Some(capture)) = (&found, capture) {
        let (files, total) = beside(capture);
        found = files.iter().find_map(|path| open(path));
        if total > files.len() {
            more = format!(
                "; {total} files with `tables` in their names are there, and only the first {} were looked at",
                files.len()
            );
        }
    }
    match (found, damaged, given.last()) {
        (Some(tables), ..) => fill(image, tables).map_err(Fault::Unusable),
        (None, Some(why), _) => Err(Fault::Unusable(format!("{why}{more}"))),
        (None, None, Some(last)) => match supply(image, last) {
            Ok(image) => Ok(image),
            Err(why) => Err(Fault::Unusable(format!("{why}{more}"))),
        },
        (None, None, None) => Err(Fault::Missing(format!(
            "{}{more}",
            missing(&id, capture.is_some())
        ))),
    }
}

/// Files that are looked at beside a capture.
const MAX_BESIDE: usize = 64;

/// The first files called `*tables*.zst` in the folder of a capture, and how many there are.
fn beside(capture: &Path) -> (Vec<PathBuf>, usize) {
    let folder = match capture.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let files = std::fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<PathBuf> = files
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.contains("tables") && name.ends_with(".zst") && path.is_file()
        })
        .collect();
    files.sort();
    let total = files.len();
    files.truncate(MAX_BESIDE);
    (files, total)
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
pub fn supply(image: Image, path: &Path) -> Result<Image, String> {
    fill(image, Tables::open(path)?)
}

fn fill(mut image: Image, tables: Tables) -> Result<Image, String> {
    let Some(wanted) = needed(&image).map(str::to_owned) else {
        return Ok(image);
    };
    if tables.id != wanted {
        return Err(format!(
            "{}: these are the kernel tables {}, and the capture needs {wanted}",
            tables.name, tables.id
        ));
    }
    let info = image.vmcoreinfo.as_deref().and_then(Vmcoreinfo::parse);
    let info = info.ok_or("the capture has no VMCOREINFO that tells where its kernel is")?;
    // The id has it too, but a manifest is only what somebody wrote.
    let build_id = info.build_id().unwrap_or_default();
    if build_id != tables.build_id {
        return Err(format!(
            "{}: these are tables of the kernel with build id {}, and the capture is of one with build id {build_id}",
            tables.name, tables.build_id
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A capture that was reduced without its tables, alone in a folder, and these.
    fn alone() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let findings = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/findings");
        let dir = tempfile::tempdir().unwrap();
        let capture = dir.path().join("fifo.core.zst");
        std::fs::copy(findings.join("fifo.core.zst"), &capture).unwrap();
        let tables = std::fs::read(findings.join("kernel-7.3.tables.zst")).unwrap();
        (dir, capture, tables)
    }

    fn completed(capture: &Path, given: &[&Path]) -> Result<(), Fault> {
        let image = complete(Image::open(capture).unwrap(), given, Some(capture))?;
        assert_eq!(needed(&image), None);
        Ok(())
    }

    #[test]
    fn a_damaged_file_does_not_hide_an_intact_one() {
        let (dir, capture, tables) = alone();
        let mut damaged = tables.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        let first = dir.path().join("a.tables.zst");
        std::fs::write(&first, &damaged).unwrap();
        let id = Tables::open(&first).err().unwrap();
        assert!(id.contains("damaged"), "{id}");
        // It is the one by its name, so that is what is told.
        assert_eq!(completed(&capture, &[]), Err(Fault::Unusable(id)));
        let wanted = needed(&Image::open(&capture).unwrap()).unwrap().to_owned();
        assert!(is_called(&first, &wanted));
        std::fs::write(dir.path().join("b.tables.zst"), &tables).unwrap();
        assert_eq!(completed(&capture, &[]), Ok(()));
        assert_eq!(completed(&capture, &[&first]), Ok(()));
    }

    #[test]
    fn files_given_for_others_leave_what_is_beside() {
        let (dir, capture, tables) = alone();
        // It needs these tables itself, so it is none.
        let other = dir.path().join("other.zst");
        std::fs::copy(&capture, &other).unwrap();
        let Err(Fault::Unusable(why)) = completed(&capture, &[&other]) else {
            panic!("it is no tables file");
        };
        assert!(
            why.contains("other.zst: not a file that analyze tables has written"),
            "{why}"
        );
        let image = || Image::open(&capture).unwrap();
        let Err(Fault::Missing(why)) = complete(image(), &[], None) else {
            panic!("there are none");
        };
        assert!(
            why.ends_with("supply these with --kernel-tables FILE"),
            "{why}"
        );
        let right = dir.path().join("k.tables.zst");
        std::fs::write(&right, &tables).unwrap();
        assert_eq!(completed(&capture, &[&other]), Ok(()));
        // Of an image that is no file here, nothing is beside.
        assert!(complete(image(), &[&other], None).is_err());
        assert!(complete(image(), &[&right, &other], None).is_ok());
    }

    #[test]
    fn it_is_told_when_not_all_files_were_looked_at() {
        let (dir, capture, tables) = alone();
        for number in 0..MAX_BESIDE {
            std::fs::write(dir.path().join(format!("tables-{number:03}.zst")), b"x").unwrap();
        }
        let Err(Fault::Missing(why)) = completed(&capture, &[]) else {
            panic!("there are none");
        };
        assert!(why.ends_with("with `tables` in its name"), "{why}");
        std::fs::write(dir.path().join("z.tables.zst"), &tables).unwrap();
        let Err(Fault::Missing(why)) = completed(&capture, &[]) else {
            panic!("it is the last of too many");
        };
        assert!(
            why.ends_with(
                "; 65 files with `tables` in their names are there, and only the first 64 were looked at"
            ),
            "{why}"
        );
        std::fs::remove_file(dir.path().join("tables-000.zst")).unwrap();
        assert_eq!(completed(&capture, &[]), Ok(()));
    }
}
