//! Kernel modules for the guest: found by name with what they depend on, unpacked, and put into
//! the order in which they have to be loaded.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use goblin::elf::Elf;

use super::package::{Package, unpacked};

/// Largest module, unpacked.
const MAX_MODULE: u64 = 256 << 20;
/// Directories below a kernel's modules.
const MAX_DEPTH: u32 = 16;

/// A module: its name, as the kernel has it, and its content.
pub(super) type Module = (String, Vec<u8>);

/// The name that the kernel has for a file: `snd-pcm.ko.xz` is `snd_pcm`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or_default();
    let stem = file.split(".ko").next().unwrap_or_default();
    stem.replace('-', "_")
}

/// Where modules are looked for.
pub(super) enum Source<'a> {
    Package(&'a Package),
    Directory(PathBuf),
}

impl Source<'_> {
    /// All that there are: packed content by name.
    fn index(&self) -> BTreeMap<String, Packed<'_>> {
        let mut found = BTreeMap::new();
        match self {
            Self::Package(package) => found.extend(
                package
                    .modules()
                    .map(|(path, content)| (name_of(path), Packed::Content(content))),
            ),
            Self::Directory(directory) => walk(directory, MAX_DEPTH, &mut found),
        }
        found
    }
}

enum Packed<'a> {
    Content(&'a [u8]),
    File(PathBuf),
}

fn walk(directory: &Path, depth: u32, found: &mut BTreeMap<String, Packed<'_>>) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let name = path.to_string_lossy();
        if path.is_dir() && depth > 0 && !path.is_symlink() {
            walk(&path, depth - 1, found);
        } else if name.ends_with(".ko") || name.contains(".ko.") {
            found.insert(name_of(&name), Packed::File(path));
        }
    }
}

fn unpack(packed: &Packed<'_>, name: &str) -> Result<Vec<u8>, String> {
    let failed = |e: std::io::Error| format!("module {name}: {e}");
    let mut content = Vec::new();
    let reader = match packed {
        Packed::Content(bytes) => unpacked(*bytes),
        Packed::File(path) => std::fs::File::open(path).and_then(unpacked),
    };
    let reader = reader.map_err(failed)?;
    reader
        .take(MAX_MODULE)
        .read_to_end(&mut content)
        .map_err(failed)?;
    Ok(content)
}

/// The modules that a module needs: `depends=` of its section `.modinfo`.
fn depends(content: &[u8], name: &str) -> Result<Vec<String>, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("module {name}: is no kernel module ({why})");
    let elf = Elf::parse(content).map_err(|e| wrong(&e))?;
    let section = elf
        .section_headers
        .iter()
        .find(|header| elf.shdr_strtab.get_at(header.sh_name) == Some(".modinfo"))
        .and_then(goblin::elf::SectionHeader::file_range)
        .and_then(|range| content.get(range))
        .ok_or_else(|| wrong(&"no section .modinfo"))?;
    let mut fields = section.split(|&byte| byte == 0);
    let list = fields.find_map(|field| field.strip_prefix(b"depends="));
    let list = String::from_utf8_lossy(list.unwrap_or_default()).into_owned();
    let names = list.split(',').filter(|name| !name.is_empty());
    Ok(names.map(|name| name.replace('-', "_")).collect())
}

/// Finds `wanted`, names or files, with all that they need, in the order of loading.
pub(super) fn find(wanted: &[String], sources: &[Source<'_>]) -> Result<Vec<Module>, String> {
    let indices: Vec<_> = sources.iter().map(Source::index).collect();
    let mut out = Vec::new();
    for name in wanted {
        add(name, &indices, &mut Vec::new(), &mut out)?;
    }
    Ok(out)
}

fn add(
    wanted: &str,
    indices: &[BTreeMap<String, Packed<'_>>],
    above: &mut Vec<String>,
    out: &mut Vec<Module>,
) -> Result<(), String> {
    let name = name_of(wanted);
    if above.contains(&name) || out.iter().any(|(there, _)| *there == name) {
        return Ok(());
    }
    let file = wanted.contains(".ko").then(|| Packed::File(wanted.into()));
    let known = indices.iter().find_map(|index| index.get(&name));
    let Some(packed) = file.as_ref().or(known) else {
        return Err(format!(
            "module {name}: not in the kernel's package, nor below /lib/modules of its release; give its file, as --module DIR/{name}.ko"
        ));
    };
    let content = unpack(packed, &name)?;
    above.push(name.clone());
    for needed in depends(&content, &name)? {
        add(&needed, indices, above, out)?;
    }
    above.pop();
    out.push((name, content));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kernels() {
        assert_eq!(
            name_of("lib/modules/7.3/kernel/sound/snd-pcm.ko.xz"),
            "snd_pcm"
        );
        assert_eq!(name_of("fuse"), "fuse");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let why = find(&["fuse".into()], &[]).unwrap_err();
        assert!(
            why.starts_with("module fuse: not in the kernel's package"),
            "{why}"
        );
    }
}
