//! The shared libraries that a program needs, found as the dynamic loader finds them.
//!
//! Order of ld.so(8): `DT_RPATH` where there is no `DT_RUNPATH`, `LD_LIBRARY_PATH`, `DT_RUNPATH`,
//! the directories of `/etc/ld.so.conf`, the default ones. Nothing is run: `ldd` would execute
//! the program's own loader.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use goblin::elf::Elf;

/// Directories that every loader looks into. Debian's have the machine's name, Fedora's do not.
const DEFAULT: [&str; 6] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];
/// Libraries of one program; more is a loop of our own.
const MAX_LIBRARIES: usize = 512;
/// Nested `include` lines.
const MAX_DEPTH: u32 = 8;

/// Where `path` is in another system's tree, also when that has all of it below `/usr`.
fn below(root: &Path, path: &Path) -> PathBuf {
    let path = path.strip_prefix("/").unwrap_or(path);
    let place = root.join(path);
    let merged = root.join("usr").join(path);
    if !place.exists() && merged.exists() {
        return merged;
    }
    place
}

/// The files that `program` needs beside itself: where each is here, by the path that it must
/// have in the guest. With a `root`, the loader and the libraries are those of that tree.
pub(super) fn needed(
    program: &Path,
    root: Option<&Path>,
) -> Result<BTreeMap<String, PathBuf>, String> {
    let mut found = BTreeMap::new();
    let mut search: Vec<PathBuf> = std::env::var_os("LD_LIBRARY_PATH")
        .filter(|_| root.is_none())
        .map(|paths| std::env::split_paths(&paths).collect())
        .unwrap_or_default();
    if let Some(root) = root {
        search.extend(DEFAULT.iter().map(|path| below(root, Path::new(path))));
    } else {
        let configured = Path::new("/etc/ld.so.conf");
        configuration(configured, MAX_DEPTH, &mut search);
        search.extend(DEFAULT.map(PathBuf::from));
    }

    let mut wants = Vec::new();
    let mut queue = vec![program.to_owned()];
    while let Some(object) = queue.pop() {
        if found.len() > MAX_LIBRARIES {
            return Err(format!(
                "{}: needs more than {MAX_LIBRARIES} libraries",
                program.display()
            ));
        }
        let cannot = |why: &dyn std::fmt::Display| format!("{}: {why}", object.display());
        let bytes = std::fs::read(&object).map_err(|e| cannot(&e))?;
        if bytes.starts_with(b"#!") {
            return Err(cannot(
                &"is a script; the guest has no interpreter for it, so name a program",
            ));
        }
        let elf = Elf::parse(&bytes).map_err(|e| cannot(&format!("is no ELF program ({e})")))?;
        if elf.header.e_machine != goblin::elf::header::EM_X86_64 {
            return Err(cannot(&format!(
                "is built for ELF machine {}, the guest is x86-64 (62)",
                elf.header.e_machine
            )));
        }
        if let Some(loader) = elf.interpreter {
            let name = Path::new(loader).file_name().unwrap_or_default();
            let guest = if loader.starts_with("/lib64/") {
                format!("/lib/{}", name.to_string_lossy())
            } else {
                loader.to_owned()
            };
            let loader = Path::new(loader);
            let here = root.map_or_else(|| loader.to_owned(), |root| below(root, loader));
            found.insert(guest, here);
        }
        wants.extend(versions_needed(&elf).map(|(file, version)| (object.clone(), file, version)));
        let home = object.parent().unwrap_or(Path::new("/"));
        let paths = if elf.runpaths.is_empty() {
            &elf.rpaths
        } else {
            &elf.runpaths
        };
        let own = paths.iter().flat_map(|list| list.split(':')).map(|path| {
            let origin = home.display().to_string();
            PathBuf::from(
                path.replace("$ORIGIN", &origin)
                    .replace("${ORIGIN}", &origin),
            )
        });
        let own: Vec<PathBuf> = own.collect();
        for name in &elf.libraries {
            let places = own
                .iter()
                .chain(&search)
                .map(|directory| directory.join(name));
            let Some(place) = places.into_iter().find(|place| fits(place)) else {
                let place = match root {
                    None => "none of the loader's directories; set LD_LIBRARY_PATH".to_owned(),
                    Some(root) => format!(
                        "none of the library directories of {}; add its package to that tree",
                        root.display()
                    ),
                };
                return Err(cannot(&format!(
                    "needs the library {name}, which is in {place}"
                )));
            };
            // Every loader looks there without a configuration: `/lib64` is the same in the guest.
            let guest = format!("/lib/{name}");
            if found.insert(guest, place.clone()).is_none() {
                queue.push(place);
            }
        }
    }
    check_versions(program, wants, &found)?;
    Ok(found)
}

/// The versions of symbols that an object asks of its libraries: the library's name, the version.
fn versions_needed(elf: &Elf<'_>) -> impl Iterator<Item = (String, String)> {
    /// `VER_FLG_WEAK`: it runs without, too.
    const WEAK: u16 = 2;
    let name = |at| elf.dynstrtab.get_at(at).unwrap_or_default().to_owned();
    let files = elf.verneed.iter().flatten();
    let all = files.flat_map(move |file| {
        let library = name(file.vn_file);
        let versions = file.iter().filter(|version| version.vna_flags & WEAK == 0);
        let versions = versions.map(|version| (library.clone(), name(version.vna_name)));
        versions.collect::<Vec<_>>()
    });
    all.collect::<Vec<_>>().into_iter()
}

/// The versions of symbols that a library has, in its own order.
fn versions_had(path: &Path) -> Vec<String> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let Ok(elf) = Elf::parse(&bytes) else {
        return Vec::new();
    };
    let definitions = elf.verdef.iter().flatten();
    let names = definitions.filter_map(|one| one.iter().next().map(|first| first.vda_name));
    let names = names.filter_map(|at| elf.dynstrtab.get_at(at));
    names.map(str::to_owned).collect()
}

/// Whether each library has what is asked of it: the guest's loader would refuse the program else,
/// and nobody could tell why the guest does nothing.
fn check_versions(
    program: &Path,
    wants: Vec<(PathBuf, String, String)>,
    found: &BTreeMap<String, PathBuf>,
) -> Result<(), String> {
    let mut known: BTreeMap<&Path, Vec<String>> = BTreeMap::new();
    for (object, library, version) in wants {
        let Some(place) = found.get(&format!("/lib/{library}")) else {
            continue;
        };
        let had = known.entry(place).or_insert_with(|| versions_had(place));
        // One without any is as good as the loader takes it for.
        if had.is_empty() || had.contains(&version) {
            continue;
        }
        let (family, _) = version.split_once('_').unwrap_or((&version, ""));
        let number = |v: &String| {
            let rest = v.strip_prefix(family).and_then(|v| v.strip_prefix('_'));
            rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        let mut own = had.iter().filter(|v| number(v));
        let last = own.next_back().map_or("none of that kind", String::as_str);
        let by = match object == program {
            true => String::new(),
            false => format!(" (for {})", program.display()),
        };
        return Err(format!(
            "{}{by} needs {version} of {library}, and {} has it up to {last}; take it and its libraries from one system, this one or the one of --sysroot, or build it for the older one",
            object.display(),
            place.display()
        ));
    }
    Ok(())
}

/// Whether a file is a library for this machine: directories may hold others of the same name.
fn fits(path: &Path) -> bool {
    let mut header = [0; 20];
    std::fs::File::open(path)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut header))
        .is_ok_and(|()| {
            header.starts_with(b"\x7fELF\x02\x01") && header.get(18..20) == Some(&[62, 0])
        })
}

/// The directories that a loader's configuration names.
fn configuration(path: &Path, depth: u32, out: &mut Vec<PathBuf>) {
    let Ok(text) = std::fs::read_to_string(path) else {
        return;
    };
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(pattern) = line.strip_prefix("include ") {
            if depth > 0 {
                // Only what is in use: all files of one directory with one ending.
                let pattern = Path::new(pattern.trim());
                let ending = pattern.extension().unwrap_or_default();
                let directory = pattern.parent().unwrap_or(Path::new("/"));
                let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
                let mut files: Vec<PathBuf> = files.map(|entry| entry.path()).collect();
                files.sort();
                for file in files.iter().filter(|f| f.extension() == Some(ending)) {
                    configuration(file, depth - 1, out);
                }
            }
        } else if line.starts_with('/') {
            out.push(PathBuf::from(line));
        }
    }
}

/// A program by the name that a shell would take: with a slash as it is, else in `root`'s usual
/// places, else through PATH.
pub(crate) fn program(name: &str, root: Option<&Path>) -> Result<PathBuf, String> {
    let as_it_is = PathBuf::from(name);
    if name.contains('/') {
        return if as_it_is.is_file() {
            Ok(as_it_is)
        } else {
            Err(format!("{name}: no such file; expected a program"))
        };
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Path::new);
    let own = root.into_iter();
    let own = own.flat_map(|root| usual.map(|place| below(root, place)));
    let mut places: Vec<PathBuf> = own.collect();
    places.extend(std::env::split_paths(&paths));
    // Where an ordinary user's PATH does not lead, and bpftool is.
    places.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let mut found = places.into_iter().map(|place| place.join(name));
    found
        .find(|path| path.is_file())
        .ok_or_else(|| format!("{name}: no such program in PATH; give its path or install it"))
}

/// What the kernel loads of a program: its segments, without the sections behind them. Debug
/// information is most of a program's file, and in an initramfs it would be most of a small
/// guest's memory. What is no ELF program is left as it is.
pub(super) fn loaded_part(mut program: Vec<u8>) -> Vec<u8> {
    /// `e_shoff`, and `e_shnum` with `e_shstrndx`, in the header of a 64-bit ELF file.
    const SECTIONS: [std::ops::Range<usize>; 2] = [0x28..0x30, 0x3c..0x40];
    let Ok(elf) = Elf::parse(&program) else {
        return program;
    };
    let header = &elf.header;
    let table = header.e_phoff + u64::from(header.e_phentsize) * u64::from(header.e_phnum);
    let ends = elf.program_headers.iter();
    let ends = ends.map(|segment| segment.p_offset.saturating_add(segment.p_filesz));
    let end = ends.chain([table]).max().unwrap_or_default();
    match usize::try_from(end) {
        Ok(end) if elf.is_64 && end < program.len() => {
            program.truncate(end);
            for field in SECTIONS {
                if let Some(field) = program.get_mut(field) {
                    field.fill(0);
                }
            }
        }
        _ => {}
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_program_finds_its_libraries() {
        let found = needed(&std::env::current_exe().unwrap(), None).unwrap();
        assert!(found.contains_key("/lib/libc.so.6"), "{found:?}");
        assert!(found.contains_key("/lib/ld-linux-x86-64.so.2"), "{found:?}");
        assert!(found.values().all(|path| path.is_file()));
    }

    #[test]
    fn what_is_loaded_of_a_program_runs_as_all_of_it() {
        use std::os::unix::fs::PermissionsExt;
        let own = std::env::current_exe().unwrap();
        let whole = std::fs::read(&own).unwrap();
        let part = loaded_part(whole.clone());
        assert!(
            part.len() < whole.len() / 2,
            "{} of {}",
            part.len(),
            whole.len()
        );
        assert_eq!(loaded_part(b"#!/bin/sh\n".to_vec()), b"#!/bin/sh\n");
        assert_eq!(loaded_part(part.clone()), part);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("part");
        std::fs::write(&path, part).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        let listed = |program: &Path| {
            let done = std::process::Command::new(program).arg("--list").output();
            let done = done.unwrap();
            assert!(done.status.success());
            done.stdout
        };
        assert_eq!(listed(&path), listed(&own));
    }

    #[test]
    fn a_library_that_is_too_old_is_named_before_the_guest_runs() {
        let own = std::env::current_exe().unwrap();
        let found = needed(&own, None).unwrap();
        let libc = found["/lib/libc.so.6"].clone();
        assert!(versions_had(&libc).contains(&"GLIBC_2.2.5".to_owned()));
        let bytes = std::fs::read(&own).unwrap();
        let elf = Elf::parse(&bytes).unwrap();
        let needs: Vec<_> = versions_needed(&elf).collect();
        assert!(
            needs.contains(&("libc.so.6".into(), "GLIBC_2.2.5".into())),
            "{needs:?}"
        );
        let want = |version: &str| vec![(own.clone(), "libc.so.6".to_owned(), version.to_owned())];
        check_versions(&own, want("GLIBC_2.2.5"), &found).unwrap();
        let why = check_versions(&own, want("GLIBC_9.99"), &found).unwrap_err();
        assert!(why.contains("needs GLIBC_9.99 of libc.so.6"), "{why}");
        assert!(
            why.contains(&format!("{} has it up to GLIBC_2.", libc.display())),
            "{why}"
        );
    }

    #[test]
    fn what_cannot_run_in_the_guest_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        let said = needed(&script, None).unwrap_err();
        assert!(said.contains("is a script"), "{said}");
        std::fs::write(&script, "text").unwrap();
        assert!(
            needed(&script, None)
                .unwrap_err()
                .contains("is no ELF program")
        );
        let said = program("surely-no-such-program", None).unwrap_err();
        assert!(
            said.starts_with("surely-no-such-program: no such program"),
            "{said}"
        );
    }
}
