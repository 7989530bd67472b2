//! The guest's user space: an initramfs with this very program as its init, the scheduler, the
//! workload, and what they need.

mod bpf;
mod bpftool;
mod cpio;
pub(crate) mod init;
mod libraries;
mod modules;
pub(crate) mod package;
mod probe;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::cpio::Archive;
pub(crate) use self::libraries::program;
use self::package::Package;
use crate::cli::GuestArgs;
use crate::machine::Nameless;

/// Where the guest finds what to do. Its presence makes this program an init.
pub(crate) const PLAN: &str = "/scxpm/plan.json";
/// Where the initramfs of a BPF object has it. It keeps its name: libbpf names maps of variables
/// after the file.
const OBJECTS: &str = "/scxpm/object";

/// What init does in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The scheduler's command, words.
    pub(crate) scheduler: Vec<String>,
    /// The scheduler stays when its command has ended: a link that is pinned.
    pub(crate) pinned: bool,
    /// Commands that run at the same time once the scheduler is attached, words each.
    pub(crate) workloads: Vec<Vec<String>>,
    /// Kernel modules to load, in this order.
    #[serde(default)]
    pub(crate) modules: Vec<String>,
    /// Load the probe program before the scheduler.
    #[serde(default)]
    pub(crate) probe: bool,
}

/// What the user asks for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    /// A command line, or the path of a BPF object.
    pub(crate) scheduler: &'a str,
    pub(crate) workloads: &'a [String],
    /// Further files: path here, or `HERE:GUEST`.
    pub(crate) files: &'a [String],
    /// The bpftool that registers an object, when another than the usual one.
    pub(crate) bpftool: Option<&'a Path>,
    /// Load the probe.
    pub(crate) probe: bool,
    /// Another system's tree, which the libraries come from, and programs by name.
    pub(crate) root: Option<&'a Path>,
    /// Kernel modules to load, by name or file.
    pub(crate) modules: &'a [String],
    pub(crate) kernel: &'a KernelFile,
}

/// The guest's kernel.
#[derive(Debug, Default)]
pub(crate) struct KernelFile {
    /// A bzImage, or a vmlinux.
    pub(crate) image: PathBuf,
    /// Holds it, when it is out of a package.
    unpacked: Option<Nameless>,
    /// `uname -r`.
    pub(crate) release: Option<String>,
    /// Its configuration: some schedulers ask for it.
    pub(crate) config: Option<Vec<u8>>,
    /// The package that it came in.
    pub(crate) package: Option<Package>,
}

impl KernelFile {
    /// `path` is an image or a package. `config` names a configuration, otherwise it is looked for.
    pub(crate) fn open(path: &Path, config: Option<&Path>, modules: bool) -> Result<Self, String> {
        let mut this = Self {
            image: path.to_owned(),
            ..Self::default()
        };
        let content;
        if let Some(package) = Package::open(path, modules)? {
            let image = package.kernel().ok_or_else(|| {
                let names = package.names();
                let names: Vec<_> = names.iter().take(5).copied().collect();
                format!(
                    "{}: this package holds no vmlinuz (it has {}); Debian's is linux-image-… or linux-binary-…, Fedora's kernel-core",
                    path.display(),
                    if names.is_empty() { "nothing of a kernel".into() } else { names.join(", ") }
                )
            })?;
            let unpacked = Nameless::with("scx-postmortem-kernel", image)
                .map_err(|e| format!("{}: a copy of its kernel: {e}", path.display()))?;
            this.image.clone_from(&unpacked.path);
            this.unpacked = Some(unpacked);
            content = image.to_vec();
            this.config = package.config().map(<[u8]>::to_vec);
            this.package = Some(package);
        } else {
            content = std::fs::read(path)
                .map_err(|e| format!("{}: {e}; expected a kernel image", path.display()))?;
        }
        let kernel = content.starts_with(b"\x7fELF") || content.get(0x202..0x206) == Some(b"HdrS");
        if !kernel {
            return Err(format!(
                "{}: is no kernel; expected a bzImage (a distribution's vmlinuz), a vmlinux, or the Debian or RPM package of a kernel",
                path.display()
            ));
        }
        this.release = release_of(&content);
        let beside = this.release.as_ref();
        let beside = beside.and_then(|release| config_beside(path, release));
        if let Some(config) = config {
            this.config = Some(read(config)?);
        } else if this.config.is_none()
            && let Some(config) = beside
        {
            this.config = Some(read(&config)?);
        }
        Ok(this)
    }

    /// Where its modules are looked for.
    fn sources(&self, root: Option<&Path>) -> Vec<modules::Source<'_>> {
        let package = self.package.as_ref();
        let mut sources: Vec<_> = package.map(modules::Source::Package).into_iter().collect();
        if let Some(release) = &self.release {
            for base in [root.unwrap_or(Path::new("/")), Path::new("/")] {
                for below in ["lib/modules", "usr/lib/modules"] {
                    let directory = base.join(below).join(release);
                    sources.push(modules::Source::Directory(directory));
                }
            }
        }
        sources
    }
}

/// The initramfs' bytes.
pub(crate) fn initramfs(wanted: &Wanted<'_>) -> Result<Vec<u8>, String> {
    let root = wanted.root;
    let mut archive = Archive::default();
    for path in ["dev", "proc", "sys", "tmp", "run", "root", "etc", "var/tmp"] {
        archive.directory(path);
    }
    archive.link("lib64", "lib");
    archive.directory("lib");
    let own = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
    let mut origins = Origins::default();
    origins.is_new("/init", &own)?;
    archive.program("/init", libraries::loaded_part(read(&own)?));
    add_libraries(&mut archive, &own, root)?;

    let mut plan = Plan {
        probe: wanted.probe,
        ..Plan::default()
    };
    if wanted.scheduler.ends_with(".bpf.o") {
        let path = Path::new(wanted.scheduler);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let object = format!("{OBJECTS}/{name}");
        archive.file(&object, read(path)?);
        let tool = match wanted.bpftool {
            // With a slash, so that it is no name to look for.
            Some(path) if path.is_relative() => Path::new(".").join(path),
            Some(path) => path.to_owned(),
            None => program("bpftool", root).map_err(|e| format!("{e}; {}", bpftool::ANOTHER))?,
        };
        libraries::needed(&tool, root).map_err(|e| format!("{e}; {}", bpftool::ANOTHER))?;
        bpftool::check(&tool, root)?;
        let tool = tool.display().to_string();
        let words = [
            &tool,
            "struct_ops",
            "register",
            &object,
            "/sys/fs/bpf/scheduler",
        ];
        plan.scheduler = words.map(str::to_owned).into();
        plan.pinned = true;
    } else {
        plan.scheduler = words(wanted.scheduler)?;
    }
    for workload in wanted.workloads {
        plan.workloads.push(words(workload)?);
    }
    let commands = std::iter::once(&mut plan.scheduler).chain(&mut plan.workloads);
    for command in commands {
        if let Some(name) = command.first_mut() {
            let path = program(name, root)?;
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            let guest = format!("/bin/{file}");
            if origins.is_new(&guest, &path)? {
                add_program(&mut archive, &path, &guest, root)?;
            }
            *name = guest;
        }
    }
    for file in wanted.files {
        let (here, guest) = file.split_once(':').unwrap_or((file, ""));
        let here = Path::new(here);
        let name = here.file_name().unwrap_or_default().to_string_lossy();
        let guest = match guest {
            "" => format!("/{name}"),
            guest => guest.to_owned(),
        };
        if !origins.is_new(&guest, here)? {
            continue;
        }
        let content = read(here)?;
        // A program comes with what it needs.
        if content.starts_with(b"\x7fELF\x02\x01\x01") && !guest.ends_with(".o") {
            add_program(&mut archive, here, &guest, root)?;
        } else {
            archive.file(&guest, content);
        }
    }
    let kernel = wanted.kernel;
    if let (Some(config), Some(release)) = (&kernel.config, &kernel.release) {
        archive.file(&format!("/boot/config-{release}"), config.clone());
    }
    if !wanted.modules.is_empty() {
        for (name, content) in modules::find(wanted.modules, &kernel.sources(root))? {
            let guest = format!("/scxpm/modules/{name}.ko");
            archive.file(&guest, content);
            plan.modules.push(guest);
        }
    }
    let plan = serde_json::to_vec_pretty(&plan).map_err(|e| e.to_string())?;
    archive.file(PLAN, plan);
    // Programs that ask for a shell's `sh` by path get one only when it was packed.
    if archive.contains("/bin/dash") && !archive.contains("/bin/sh") {
        archive.link("/bin/sh", "dash");
    }
    archive.bytes().map_err(|e| e.to_string())
}

/// Where what was named for the guest is here, by its path there.
#[derive(Default)]
struct Origins(BTreeMap<String, PathBuf>);

impl Origins {
    /// Whether `here` is not in the guest yet. A path there is for one file: the second would be
    /// run, or read, in place of the first.
    fn is_new(&mut self, guest: &str, here: &Path) -> Result<bool, String> {
        // What cannot be found is told by who reads it.
        let real = here.canonicalize().unwrap_or_else(|_| here.to_owned());
        let key = guest.trim_matches('/').to_owned();
        match self.0.get(&key) {
            Some(first) if *first == real => Ok(false),
            Some(first) => Err(format!(
                "{} and {}: both would be {guest} in the guest; rename one of them",
                first.display(),
                real.display()
            )),
            None => {
                self.0.insert(key, real);
                Ok(true)
            }
        }
    }
}

/// The words of a command line, as a shell splits them.
fn words(line: &str) -> Result<Vec<String>, String> {
    let words = shell_words::split(line).map_err(|e| format!("{line:?}: {e}"))?;
    if words.is_empty() {
        return Err("an empty command; expected a program and its arguments".into());
    }
    Ok(words)
}

/// Whether the command lines can be split into words.
pub(crate) fn check_words(args: &GuestArgs) -> Result<(), String> {
    let object = |line: &str| line.ends_with(".bpf.o");
    let scheduler = args.scheduler.iter().filter(|line| !object(line));
    scheduler
        .chain(&args.workload)
        .try_for_each(|line| words(line).map(drop))
}

fn add_program(
    archive: &mut Archive,
    path: &Path,
    guest: &str,
    root: Option<&Path>,
) -> Result<(), String> {
    archive.program(guest, read(path)?);
    add_libraries(archive, path, root)
}

fn add_libraries(archive: &mut Archive, path: &Path, root: Option<&Path>) -> Result<(), String> {
    for (guest, place) in libraries::needed(path, root)? {
        if !archive.contains(&guest) {
            archive.program(&guest, read(&place)?);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// The release of a kernel: of a bzImage out of its header, of a vmlinux out of its banner.
///
/// Documentation/arch/x86/boot.rst: `HdrS` at 0x202, `kernel_version` at 0x20e is where the text
/// is, less 0x200.
fn release_of(kernel: &[u8]) -> Option<String> {
    if kernel.starts_with(b"\x7fELF") {
        const BANNER: &[u8] = b"Linux version ";
        let mut banners = memchr::memmem::find_iter(kernel, BANNER);
        return banners.find_map(|at| {
            let text = kernel.get(at + BANNER.len()..)?;
            let text = text.get(..text.len().min(128))?;
            let release = text.split(|&b| b == b' ').next()?;
            // Format strings begin the same way.
            let release = String::from_utf8(release.to_vec()).ok()?;
            release
                .starts_with(|c: char| c.is_ascii_digit())
                .then_some(release)
        });
    }
    if kernel.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let at = u16::from_le_bytes(kernel.get(0x20e..0x210)?.try_into().ok()?);
    let text = kernel.get(usize::from(at) + 0x200..)?;
    let text = text.get(..text.len().min(128))?;
    let release = text.split(|&b| b == 0 || b == b' ').next()?;
    String::from_utf8(release.to_vec()).ok()
}

/// Where distributions keep the configuration of the kernel at `path`.
fn config_beside(kernel: &Path, release: &str) -> Option<PathBuf> {
    let directory = kernel.parent()?;
    let places = [
        directory.join(format!("config-{release}")),
        directory.join("config"),
        PathBuf::from(format!("/boot/config-{release}")),
        PathBuf::from(format!("/usr/lib/modules/{release}/config")),
    ];
    places.into_iter().find(|place| place.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_programs_of_one_name_are_refused_and_one_of_two_names_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        for name in ["a", "b"] {
            std::fs::create_dir(at(name)).unwrap();
            std::fs::copy("/bin/true", at(&format!("{name}/foo"))).unwrap();
        }
        std::os::unix::fs::symlink(at("a"), at("c")).unwrap();
        let kernel = KernelFile::default();
        let build = |workload: &str, file: Option<String>| {
            let wanted = Wanted {
                scheduler: &at("a/foo"),
                workloads: &[format!("{} --x", at(workload))],
                files: &Vec::from_iter(file),
                bpftool: None,
                probe: false,
                root: None,
                modules: &[],
                kernel: &kernel,
            };
            initramfs(&wanted)
        };
        let why = build("b/foo", None).unwrap_err();
        let both = [at("a/foo"), at("b/foo"), "/bin/foo".into()];
        assert!(both.iter().all(|path| why.contains(path)), "{why}");
        assert!(build("c/foo", None).is_ok(), "the same program twice");
        for (file, guest) in [("b/foo", "bin/foo"), ("b/foo", "/init")] {
            let why = build("a/foo", Some(format!("{}:{guest}", at(file)))).unwrap_err();
            assert!(why.contains("rename one") && why.contains(guest), "{why}");
        }
        assert!(
            build("a/foo", Some(at("b/foo"))).is_ok(),
            "it is /foo there"
        );
    }
}
