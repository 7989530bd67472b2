//! A file that appears under its name only when it is complete.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};

/// What to do when the final name is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Replace the file.
    Replace,
    /// Fail, and leave it alone.
    Refuse,
}

impl Existing {
    /// What an option such as `--force` asks for.
    #[must_use]
    pub const fn forced(force: bool) -> Self {
        if force { Self::Replace } else { Self::Refuse }
    }
}

/// A file without a name in the directory of its final name, readable by its owner only.
///
/// [`commit`](Self::commit) gives it its final name. Dropped before that, or when this process is
/// killed, it is gone. Where the file system has no files without a name (`O_TMPFILE`) it has a
/// temporary one, which is left behind by a process that is killed.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    /// Where it can be opened by now.
    temporary: PathBuf,
    /// Its temporary name, where it has one.
    name: Option<PathBuf>,
    target: PathBuf,
    existing: Existing,
    done: bool,
}

/// `file` and a sentence around the cause.
fn context(path: &Path, what: &str, cause: &io::Error) -> io::Error {
    io::Error::new(cause.kind(), format!("{what} {}: {cause}", path.display()))
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a rename in `path`'s directory last.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = directory(path);
    File::open(directory)
        .and_then(|d| d.sync_all())
        .map_err(|e| context(directory, "cannot sync", &e))
}

impl AtomicFile {
    /// Creates the file for `target`.
    ///
    /// # Errors
    /// When `target` is not a name for a regular file (a directory, a device), exists and may
    /// not be replaced, or when its directory cannot be written to.
    pub fn create(target: &Path, existing: Existing) -> io::Result<Self> {
        Self::create_as(target, existing, unnamed(directory(target)))
    }

    /// As [`create`](Self::create) on a file system where each file has a name, for tests.
    ///
    /// # Errors
    /// As there.
    #[doc(hidden)]
    pub fn create_named(target: &Path, existing: Existing) -> io::Result<Self> {
        Self::create_as(target, existing, None)
    }

    fn create_as(
        target: &Path,
        existing: Existing,
        unnamed: Option<(File, PathBuf)>,
    ) -> io::Result<Self> {
        let name = target.file_name().ok_or_else(|| {
            let why = format!("{} is not a name for a file", target.display());
            io::Error::new(io::ErrorKind::InvalidInput, why)
        })?;
        match std::fs::symlink_metadata(target) {
            Ok(meta) if !meta.is_file() && !meta.is_symlink() => {
                let why = format!(
                    "{} exists and is not a regular file; choose another name",
                    target.display()
                );
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            Ok(_) if existing == Existing::Refuse => return Err(taken(target)),
            _ => {}
        }
        // A name that is too long must not show at the end.
        let mut temporary = temporary_name(target, name);
        if let Err(e) = std::fs::symlink_metadata(&temporary)
            && e.kind() != io::ErrorKind::NotFound
        {
            return Err(context(&temporary, "cannot create", &e));
        }
        let this = |file, temporary: PathBuf, named: bool| Self {
            file,
            name: named.then(|| temporary.clone()),
            temporary,
            target: target.to_owned(),
            existing,
            done: false,
        };
        if let Some((file, opened)) = unnamed {
            return Ok(this(file, opened, false));
        }
        loop {
            // `create_new` neither follows a link nor takes over a file.
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary);
            match file {
                Ok(file) => return Ok(this(file, temporary, true)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    temporary = temporary_name(target, name);
                }
                Err(e) => return Err(context(&temporary, "cannot create", &e)),
            }
        }
    }

    /// The file, to write to.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Where this process can open the file until it is committed.
    #[must_use]
    pub fn temporary_path(&self) -> &Path {
        &self.temporary
    }

    /// Syncs the file, gives it its final name and syncs the directory.
    ///
    /// # Errors
    /// The operating system's; also when the name was taken meanwhile and may not be replaced.
    /// The temporary file is then removed, and a file of that name is as it was.
    pub fn commit(mut self) -> io::Result<()> {
        let target = self.target.clone();
        let existing = self.existing;
        self.publish(&target, existing)
    }

    /// As [`commit`](Self::commit), but when that fails the file is kept as by
    /// [`keep_partial`](Self::keep_partial): it is whole, and may be all that is left of a guest.
    ///
    /// # Errors
    /// Why it could not have its name, and the name that it has instead, or why it has none.
    pub fn commit_or_keep(mut self) -> Result<(), (io::Error, io::Result<PathBuf>)> {
        let target = self.target.clone();
        let existing = self.existing;
        match self.publish(&target, existing) {
            Ok(()) => Ok(()),
            // It has its name; only how lasting that is, is not known.
            Err(error) if self.done => Err((error, Ok(target))),
            Err(error) => Err((error, self.keep_partial())),
        }
    }

    /// Keeps what was written so far as `NAME.partial`, replacing an older one, and returns that
    /// name. For captures that could not be completed.
    ///
    /// # Errors
    /// The operating system's. The temporary file is then removed.
    pub fn keep_partial(mut self) -> io::Result<PathBuf> {
        let mut partial = self.target.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        self.publish(&partial, Existing::Replace)?;
        Ok(partial)
    }

    fn publish(&mut self, name: &Path, existing: Existing) -> io::Result<()> {
        self.file
            .sync_all()
            .map_err(|e| context(&self.target, "cannot sync what is to be", &e))?;
        let renamed = match (existing, &self.name) {
            (Existing::Replace, _) => self
                .named()
                .and_then(|temporary| std::fs::rename(temporary, name)),
            (Existing::Refuse, Some(temporary)) => rename_unless_taken(temporary, name),
            // A link replaces nothing.
            (Existing::Refuse, None) => self.link(name),
        };
        renamed.map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => taken(name),
            _ => context(name, "cannot give the finished file its name", &e),
        })?;
        self.done = true;
        sync_directory(name)
    }

    fn link(&self, name: &Path) -> io::Result<()> {
        let here = rustix::fs::CWD;
        let flags = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(here, &self.temporary, here, name, flags).map_err(io::Error::from)
    }

    /// Its temporary name, which it gets now if it has none: only a rename replaces a file.
    fn named(&mut self) -> io::Result<&Path> {
        while self.name.is_none() {
            let name = temporary_name(&self.target, self.target.file_name().unwrap_or_default());
            match self.link(&name) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
                Ok(()) => self.name = Some(name),
            }
        }
        Ok(self.name.as_deref().unwrap_or(&self.temporary))
    }
}

fn rename_unless_taken(temporary: &Path, name: &Path) -> io::Result<()> {
    let here = rustix::fs::CWD;
    match rustix::fs::renameat_with(here, temporary, here, name, RenameFlags::NOREPLACE) {
        // Not every file system knows the flag; a hard link does not replace either.
        Err(rustix::io::Errno::INVAL) => {
            std::fs::hard_link(temporary, name)?;
            std::fs::remove_file(temporary)
        }
        other => other.map_err(io::Error::from),
    }
}

/// A name beside `target` that no other file of this process has.
fn temporary_name(target: &Path, name: &OsStr) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.{number}.tmp", std::process::id()));
    directory(target).join(temporary)
}

/// A file without a name, and a path that leads to it while it is open here: `linkat(2)` takes that.
/// `None` where that does not work; why not shows when a file with a name is made.
fn unnamed(directory: &Path) -> Option<(File, PathBuf)> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR).ok()?;
    let file = File::from(file);
    let opened = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    std::fs::metadata(&opened).ok()?;
    Some((file, opened))
}

fn taken(target: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::AlreadyExists,
        format!(
            "{} exists; choose another name or remove it",
            target.display()
        ),
    )
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(name) = self.name.as_ref().filter(|_| !self.done) {
            // Nothing can be done about a failure here.
            let _ = std::fs::remove_file(name);
        }
    }
}
