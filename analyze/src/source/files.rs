//! Symbols and types out of files that the user names: `--vmlinux`, `--system-map`, `--btf`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use goblin::elf::Elf;

use super::FileBytes;
use crate::bytes::{to_u64, to_usize};

/// A file longer than this is not read whole: the BTF of a kernel is some 6 MB, a System.map 10.
const MAX_WHOLE: u64 = 256 << 20;

/// Opens a file that a flag names.
///
/// # Errors
/// When it cannot be opened or is none that ends: opening a pipe waits for its writer, and a
/// device may never stop.
pub fn open_regular(path: &Path) -> io::Result<File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    File::open(path)
}

/// The whole of a file.
///
/// # Errors
/// A sentence that names the file.
pub fn read_whole(path: &Path) -> Result<Vec<u8>, String> {
    let named = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let bytes = read_up_to_limit(path).map_err(|e| named(&e))?;
    bytes.map_err(|why| named(&why))
}

/// The same, where it matters whether the file could not be read or is too long: then the inner
/// error says so.
pub(crate) fn read_up_to_limit(path: &Path) -> io::Result<Result<Vec<u8>, String>> {
    let mut bytes = Vec::new();
    let file = open_regular(path)?;
    // One more than the limit, so that a longer file is noticed.
    file.take(MAX_WHOLE + 1).read_to_end(&mut bytes)?;
    Ok(if to_u64(bytes.len()) > MAX_WHOLE {
        Err(format!("is longer than {MAX_WHOLE} bytes"))
    } else {
        Ok(bytes)
    })
}

fn vmlinux(path: &Path) -> Result<FileBytes, String> {
    FileBytes::open(path).map_err(|e| e.to_string())
}

fn parse<'a>(bytes: &'a FileBytes, path: &Path) -> Result<Elf<'a>, String> {
    Elf::parse(bytes).map_err(|e| format!("{}: not an ELF vmlinux ({e})", path.display()))
}

/// Names and link addresses from the symbol table of an ELF vmlinux.
///
/// # Errors
/// A sentence: the file is unreadable, no ELF, or stripped.
pub fn symbols_of_vmlinux(path: &Path) -> Result<Vec<(String, u64)>, String> {
    let bytes = vmlinux(path)?;
    let elf = parse(&bytes, path)?;
    let symbols: Vec<_> = elf
        .syms
        .iter()
        .filter_map(|s| Some((elf.strtab.get_at(s.st_name)?.to_owned(), s.st_value)))
        .filter(|(name, at)| !name.is_empty() && *at != 0)
        .collect();
    if symbols.is_empty() {
        return Err(format!(
            "{}: has no symbol table (stripped); use the vmlinux of the debug package, or --system-map",
            path.display()
        ));
    }
    Ok(symbols)
}

/// The `.BTF` section of an ELF vmlinux.
///
/// # Errors
/// A sentence: the file is unreadable, no ELF, or has no such section.
pub fn btf_of_vmlinux(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = vmlinux(path)?;
    let elf = parse(&bytes, path)?;
    elf.section_headers
        .iter()
        .find(|s| elf.shdr_strtab.get_at(s.sh_name) == Some(".BTF"))
        .and_then(|s| {
            let start = to_usize(s.sh_offset);
            bytes.get(start..start.checked_add(to_usize(s.sh_size))?)
        })
        .map(<[u8]>::to_vec)
        .ok_or_else(|| format!("{}: has no .BTF section", path.display()))
}

/// Names and link addresses from a `System.map`.
///
/// # Errors
/// A sentence: the file is unreadable or holds no symbols (Debian ships a stub).
pub fn symbols_of_system_map(path: &Path) -> Result<Vec<(String, u64)>, String> {
    let text = read_whole(path)?;
    let text = String::from_utf8_lossy(&text);
    let symbols: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let at = u64::from_str_radix(words.next()?, 16).ok()?;
            let _letter = words.next()?;
            Some((words.next()?.to_owned(), at))
        })
        .collect();
    if symbols.len() < 1000 {
        return Err(format!(
            "{}: {} symbols, expected a full System.map (distributions may ship a stub)",
            path.display(),
            symbols.len()
        ));
    }
    Ok(symbols)
}
