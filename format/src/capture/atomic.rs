//! A file that appears under its name only when it is complete.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::RenameFlags;

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

/// A file under a temporary name in the directory of its final name, readable by its owner only.
///
/// [`commit`](Self::commit) gives it its final name. Dropped before that, it is removed.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    temporary: PathBuf,
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
    /// Creates the temporary file for `target`.
    ///
    /// # Errors
    /// When `target` is not a name for a regular file (a directory, a device), exists and may
    /// not be replaced, or when its directory cannot be written to.
    pub fn create(target: &Path, existing: Existing) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
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
        loop {
            let mut temporary = OsString::from(".");
            temporary.push(name);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            temporary.push(format!(".{}.{number}.tmp", std::process::id()));
            let temporary = directory(target).join(temporary);
            // `create_new` neither follows a link nor takes over a file.
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary);
            match file {
                Ok(file) => {
                    return Ok(Self {
                        file,
                        temporary,
                        target: target.to_owned(),
                        existing,
                        done: false,
                    });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(context(&temporary, "cannot create", &e)),
            }
        }
    }

    /// The file, to write to.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Where the file is until it is committed.
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
            .map_err(|e| context(&self.temporary, "cannot sync", &e))?;
        let renamed = match existing {
            Existing::Replace => std::fs::rename(&self.temporary, name),
            Existing::Refuse => self.rename_unless_taken(name),
        };
        renamed.map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => taken(name),
            _ => context(name, "cannot rename the finished file to", &e),
        })?;
        self.done = true;
        sync_directory(name)
    }

    fn rename_unless_taken(&self, name: &Path) -> io::Result<()> {
        let here = rustix::fs::CWD;
        match rustix::fs::renameat_with(here, &self.temporary, here, name, RenameFlags::NOREPLACE) {
            // Not every file system knows the flag; a hard link does not replace either.
            Err(rustix::io::Errno::INVAL) => {
                std::fs::hard_link(&self.temporary, name)?;
                std::fs::remove_file(&self.temporary)
            }
            other => other.map_err(io::Error::from),
        }
    }
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
        if !self.done {
            // Nothing can be done about a failure here.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Bytes that an unprivileged user can still write to the file system of `path` or, when `path`
/// does not exist yet, of its directory.
///
/// # Errors
/// The operating system's.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let place = if path.is_dir() { path } else { directory(path) };
    let stat = rustix::fs::statvfs(place)
        .map_err(|e| context(place, "cannot see how much space is free in", &e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Checks that `bytes` can still be written next to `path`.
///
/// # Errors
/// `StorageFull` with both numbers when not, or the operating system's.
pub fn ensure_space(path: &Path, bytes: u64) -> io::Result<()> {
    let free = free_bytes(path)?;
    if free >= bytes {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::StorageFull,
        format!(
            "{} needs up to {bytes} bytes, {free} are free; free some space or choose another directory",
            path.display()
        ),
    ))
}
