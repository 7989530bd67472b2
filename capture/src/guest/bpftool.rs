//! The bpftool that registers a BPF object in the guest: whether it can, asked before a guest runs.

use std::path::Path;
use std::process::{Command, Stdio};

use super::libraries;

/// The first one that gives a link of its own to a scheduler (`struct_ops register OBJ LINK_DIR`).
const FIRST: (u32, u32) = (7, 2);
/// What to do about one that cannot be used.
pub(super) const ANOTHER: &str = "--bpftool FILE names another one (Debian has it in bpftool, Ubuntu the program itself in /usr/lib/linux-tools/*/bpftool, Fedora in bpftool)";

/// Refuses one that is known to be too old, or is another program. One that cannot be run here may
/// still run in the guest.
pub(super) fn check(path: &Path, root: Option<&Path>) -> Result<(), String> {
    let Some(said) = said(path, root) else {
        return Ok(());
    };
    let why = match version(&said) {
        Some(version) => too_old(version),
        None if said.contains("bpftool") => None,
        None => Some(format!(
            "is no bpftool: asked for its version, it does not print that word; {ANOTHER}"
        )),
    };
    why.map_or(Ok(()), |why| Err(format!("{}: {why}", path.display())))
}

fn too_old(version: (u32, u32)) -> Option<String> {
    let (major, minor) = version;
    (version < FIRST).then(|| {
        format!(
            "is bpftool {major}.{minor}, and an object is registered by 7.2 or later; {ANOTHER}"
        )
    })
}

/// What `bpftool version` prints, when it can be run. One from another system's tree is run by its own
/// loader.
fn said(path: &Path, root: Option<&Path>) -> Option<String> {
    let mut command = match root {
        None => Command::new(path),
        Some(_) => {
            let needed = libraries::needed(path, root).ok()?;
            let loader = needed.keys().find(|guest| guest.contains("/ld-linux"))?;
            let directories = needed.values().filter_map(|place| place.parent()?.to_str());
            let mut directories: Vec<&str> = directories.collect();
            directories.dedup();
            let mut command = Command::new(needed.get(loader)?);
            command.args(["--library-path", &directories.join(":")]);
            command.arg(path);
            command
        }
    };
    let command = command.arg("version").stdin(Stdio::null());
    let output = command.stderr(Stdio::null()).output().ok()?;
    // As a loader or a shell ends that cannot run it, or one that the CPU cannot.
    let ran = output.status.code().is_some_and(|code| code < 126);
    ran.then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Of `/usr/sbin/bpftool v7.5.0`: the name is the one that it was called by.
fn version(said: &str) -> Option<(u32, u32)> {
    let (_, rest) = said.lines().next()?.trim().rsplit_once("bpftool v")?;
    let mut numbers = rest.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_one_is_refused_with_what_to_do() {
        assert_eq!(version("bpftool v7.5.0\nusing libbpf v1.5\n"), Some((7, 5)));
        assert_eq!(version("/usr/sbin/bpftool v7.1.0\n"), Some((7, 1)));
        // Of kernels before 5.19, after which it has numbers of its own.
        assert_eq!(version("bpftool v5.15.0\n"), Some((5, 15)));
        assert_eq!(version("features: libbfd\n"), None);
        assert_eq!(too_old((7, 2)), None);
        assert_eq!(too_old((8, 0)), None);
        let why = too_old((7, 1)).unwrap();
        assert!(
            why.starts_with("is bpftool 7.1,") && why.contains("--bpftool FILE"),
            "{why}"
        );
    }

    #[test]
    fn a_script_tells_its_version_and_another_program_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bpftool");
        std::fs::write(&path, "#!/bin/sh\necho bpftool v7.1.0\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        let why = check(&path, None).unwrap_err();
        assert!(why.contains("is bpftool 7.1"), "{why}");
        for (says, is_one) in [
            ("echo features: libbfd", false),
            // As coreutils do.
            ("echo 'ls (GNU coreutils) 9.1'", false),
            ("echo bpftool of my own", true),
            ("exit 127", true),
        ] {
            std::fs::write(&path, format!("#!/bin/sh\n{says}\n")).unwrap();
            let checked = check(&path, None);
            assert_eq!(checked.is_ok(), is_one, "{says}: {checked:?}");
        }
        let why = check(Path::new("/bin/true"), None).unwrap_err();
        assert!(
            why.starts_with("/bin/true: is no bpftool") && why.contains("--bpftool FILE"),
            "{why}"
        );
    }
}
