//! The one place that maps a file.
//!
//! `unsafe` is allowed here and nowhere else in this crate: a plain ELF core can be as large as
//! the guest, and reading it whole would make the cost of a report depend on that size.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Deref;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::bytes::to_usize;
use crate::error::OpenError;

/// The bytes of a file, mapped read-only and private.
#[derive(Debug)]
pub struct FileBytes {
    /// `None` for an empty file, which cannot be mapped.
    map: Option<memmap2::Mmap>,
}

impl FileBytes {
    /// Maps `path`.
    ///
    /// # Errors
    /// When the file cannot be opened, has no fixed content (a directory, a pipe), or cannot be
    /// mapped.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let fail = |cause| OpenError::Io {
            path: path.display().to_string(),
            cause,
        };
        // Asked before it is opened: opening a named pipe waits for its writer.
        let kind = std::fs::metadata(path).map_err(fail)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = if kind.is_dir() {
                "is a directory, expected a core file"
            } else {
                "is not a regular file; a core is read in no fixed order, so write it to a file first"
            };
            return Err(fail(std::io::Error::other(what)));
        }
        let mut file = File::open(path).map_err(fail)?;
        // The size that a block device names nowhere else.
        let len = file.seek(SeekFrom::End(0)).map_err(fail)?;
        if len == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the mapping is private and read-only and lives as long as `self`. Rust's rule
        // that `&[u8]` does not change can be broken only by another process that writes to or
        // truncates the file while we read. Archived cores are not written to: our own writer
        // publishes by rename and never touches a published file. A truncation then ends this
        // process with SIGBUS; it cannot make it read memory that is not the file's.
        let map =
            unsafe { memmap2::MmapOptions::new().len(to_usize(len)).map(&file) }.map_err(fail)?;
        Ok(Self { map: Some(map) })
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl AsRef<[u8]> for FileBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}
