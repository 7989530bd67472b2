//! What a run is given: files, folders, lists of them, addresses of objects.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::folder::{Item, walk};

/// Inputs of one run.
pub const MAX_INPUTS: usize = 1 << 24;
/// A line of a list longer than this is no name.
const MAX_LINE: u64 = 1 << 16;
/// Characters of an input's name in that of its results.
const MAX_STEM: usize = 80;
/// How the names of captures end.
const CAPTURE: &str = ".core.zst";
/// How the names of kernel tables end, which are no captures and begin like them.
const TABLES: &str = ".tables.zst";

/// One capture to be looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Input {
    /// A file.
    File(PathBuf),
    /// An object in a store, `s3://bucket/name` and the like.
    Object(String),
}

/// What tells whether an input is still the one that was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its length.
    pub bytes: u64,
    /// When it was changed last: nanoseconds since 1970, or an object's own word for it.
    pub changed: String,
    /// The object's entity tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

impl Input {
    /// What was given: a path without its detours, or an address.
    #[must_use]
    pub fn of(text: &OsStr) -> Self {
        match text.to_str().filter(|text| is_address(text)) {
            Some(address) => Self::Object(address.to_owned()),
            None => Self::File(plain(Path::new(text))),
        }
    }

    /// The bytes of its name: what it is known by.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        match self {
            Self::File(path) => path.as_os_str().as_bytes(),
            Self::Object(address) => address.as_bytes(),
        }
    }

    /// The same for people, and in the table.
    #[must_use]
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(self.name()).into_owned()
    }

    /// What its results are called: the end of its name, for people, and a digest of all of it, so
    /// that no two inputs share one.
    #[must_use]
    pub fn key(&self) -> String {
        let name = self.name();
        let digest = xxh3_128(name) >> 32;
        let shown = String::from_utf8_lossy(name);
        let shown = shown.strip_suffix(CAPTURE).unwrap_or(&shown);
        let mut parts: Vec<&str> = shown
            .rsplit('/')
            .filter(|part| !part.is_empty())
            .take(2)
            .collect();
        parts.reverse();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let stem: Vec<char> = parts.join("-").chars().collect();
        let from = stem.len().saturating_sub(MAX_STEM);
        let stem = stem.into_iter().skip(from);
        let stem: String = stem.map(|c| if plain(c) { c } else { '_' }).collect();
        format!("{}-{digest:024x}", stem.trim_start_matches(['.', '-']))
    }

    /// The identity of a file.
    ///
    /// # Errors
    /// The operating system's.
    pub fn identity_of_file(path: &Path) -> std::io::Result<Identity> {
        let meta = std::fs::metadata(path)?;
        Ok(Identity {
            bytes: meta.len(),
            changed: format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()),
            etag: None,
        })
    }
}

/// A path without detours: `./a//b` and `a/b` are one input.
fn plain(path: &Path) -> PathBuf {
    let path: PathBuf = path.components().collect();
    match path.strip_prefix(".") {
        Ok(rest) if !rest.as_os_str().is_empty() => rest.to_owned(),
        _ => path,
    }
}

/// Whether a text is an address, `scheme://…`.
#[must_use]
pub fn is_address(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty()
            && scheme
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-' | b'.'))
    })
}

/// The inputs that a list names, one in a line; empty lines and lines that begin with `#` are
/// nothing.
///
/// # Errors
/// A sentence.
pub fn of_list(list: &Path) -> Result<Vec<Input>, String> {
    let say = |e: std::io::Error| format!("{}: {e}", list.display());
    let mut reader: Box<dyn BufRead> = if list == Path::new("-") {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(list).map_err(say)?))
    };
    let mut inputs = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        if read.map_err(say)? == 0 {
            return Ok(inputs);
        }
        if line.len() as u64 == MAX_LINE {
            return Err(format!(
                "{}: a line is longer than {MAX_LINE} bytes; expected a list of captures, one in a line",
                list.display()
            ));
        }
        let name = line.trim_ascii();
        if !name.is_empty() && !name.starts_with(b"#") {
            inputs.push(Input::of(OsStr::from_bytes(name)));
        }
    }
}

/// The inputs with every folder replaced by the captures below it, sorted, each once. Folders that
/// cannot be read stay, and become an error of their own.
///
/// # Errors
/// When there are more than a run takes.
pub fn expand(given: Vec<Input>) -> Result<Vec<Input>, String> {
    let mut found = Vec::new();
    let mut add = |input: Input| {
        found.push(input);
        match found.len() {
            0..=MAX_INPUTS => Ok(()),
            _ => Err(format!(
                "more than {MAX_INPUTS} captures; use several runs, each with a folder of its own"
            )),
        }
    };
    for input in given {
        match &input {
            Input::File(path) if path.is_dir() => walk(path, &mut |item| match item {
                Item::File(path) if is_core(&path) => add(Input::File(plain(&path))),
                Item::File(_) => Ok(()),
                Item::Unread(folder, _) => add(Input::File(plain(&folder))),
            })?,
            _ => add(input)?,
        }
    }
    found.sort_by(|a, b| a.name().cmp(b.name()));
    found.dedup_by(|a, b| a.name() == b.name());
    Ok(found)
}

/// Whether a file in a folder is meant: by its name, or by what it begins with.
fn is_core(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_bytes();
    // Hidden files: a capture that is being written is one.
    if name.starts_with(b".") || name.ends_with(TABLES.as_bytes()) {
        return false;
    }
    if name.ends_with(CAPTURE.as_bytes()) {
        return true;
    }
    let mut start = [0; 18];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
    let elf_core = start.starts_with(b"\x7fELF\x02\x01") && start.get(16..18) == Some(&[4, 0]);
    read.is_ok() && (elf_core || start.get(8..16) == Some(b"SCXPMCAP"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_has_one_name_however_it_is_written() {
        let name = |text: &str| Input::of(OsStr::new(text)).shown();
        assert_eq!(name("./a//b.core.zst"), "a/b.core.zst");
        assert_eq!(name("a/b.core.zst"), "a/b.core.zst");
        assert_eq!(name("s3://bucket//x"), "s3://bucket//x");
        assert!(matches!(Input::of(OsStr::new("a:b")), Input::File(_)));
    }

    #[test]
    fn results_have_names_of_their_own() {
        let key = |text: &str| Input::of(OsStr::new(text)).key();
        let one = key("corpus/stall-6.18/guest.core.zst");
        assert!(one.starts_with("stall-6.18-guest-"), "{one}");
        assert_eq!(one, key("./corpus/stall-6.18/guest.core.zst"));
        assert_ne!(one, key("corpus/stall-6_18/guest.core.zst"));
        assert_ne!(key("x/a b"), key("x/a_b"));
        for odd in ["..", "/", "s3://b/k?x=1", "a/\u{1b}[2J"] {
            let key = key(odd);
            assert!(
                !key.contains(['/', '\u{1b}', '?']) && !key.starts_with('.'),
                "{key}"
            );
        }
        assert!(key(&"x".repeat(5000)).len() < 120);
    }

    #[test]
    fn folders_give_what_is_in_them_once_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("more")).unwrap();
        for name in [
            "b.core.zst",
            "more/a.core.zst",
            "notes.txt",
            ".x.core.zst",
            "c.core.zst.partial",
            "k.tables.zst",
        ] {
            std::fs::write(at(name), b"").unwrap();
        }
        std::fs::write(at("vmcore"), b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0").unwrap();
        std::fs::write(
            at("program"),
            b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0",
        )
        .unwrap();
        let given = vec![
            Input::File(at("b.core.zst")),
            Input::File(dir.path().to_owned()),
        ];
        let names: Vec<String> = expand(given).unwrap().iter().map(Input::shown).collect();
        let wanted = ["b.core.zst", "more/a.core.zst", "vmcore"];
        let wanted: Vec<String> = wanted
            .iter()
            .map(|name| at(name).display().to_string())
            .collect();
        assert_eq!(names, wanted);
        // What is not looked into is an input, and so becomes an error.
        let mut deep = dir.path().join("more");
        for _ in 0..32 {
            deep.push("d");
        }
        std::fs::create_dir_all(&deep).unwrap();
        let names = expand(vec![Input::File(dir.path().to_owned())]).unwrap();
        assert!(names.contains(&Input::File(deep)) && names.len() == 4);
    }

    #[test]
    fn lists_have_a_name_in_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("list");
        std::fs::write(&list, "# captures\n\na.core.zst\n  s3://b/c.core.zst \r\n").unwrap();
        let inputs = of_list(&list).unwrap();
        assert_eq!(
            inputs,
            [
                Input::File("a.core.zst".into()),
                Input::Object("s3://b/c.core.zst".into()),
            ]
        );
        std::fs::write(&list, "x".repeat(1 << 17)).unwrap();
        assert!(of_list(&list).unwrap_err().contains("a line is longer"));
    }
}
