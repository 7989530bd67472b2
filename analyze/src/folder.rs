//! What lies below a folder.

use std::path::{Path, PathBuf};

/// Folders within each other that are looked into.
const MAX_DEPTH: usize = 32;

/// What a [`walk`] has come to.
pub(crate) enum Item {
    /// A regular file.
    File(PathBuf),
    /// A folder that was not looked into, or not to its end, and a sentence that says why.
    Unread(PathBuf, String),
}

/// Tells of everything below a folder, in no order, until `tell` has an error. Links are not
/// followed: they can lead in circles.
pub(crate) fn walk(
    dir: &Path,
    tell: &mut dyn FnMut(Item) -> Result<(), String>,
) -> Result<(), String> {
    let mut folders = vec![(dir.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let mut inner = Vec::new();
        let mut read = || -> std::io::Result<Result<(), String>> {
            for entry in std::fs::read_dir(&folder)? {
                let entry = entry?;
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    inner.push(entry.path());
                } else if kind.is_file()
                    && let Err(enough) = tell(Item::File(entry.path()))
                {
                    return Ok(Err(enough));
                }
            }
            Ok(Ok(()))
        };
        match read() {
            Ok(told) => told?,
            Err(e) => {
                let why = format!("{}: {e}", folder.display());
                tell(Item::Unread(folder, why))?;
            }
        }
        for folder in inner {
            if depth < MAX_DEPTH {
                folders.push((folder, depth + 1));
                continue;
            }
            let why = format!(
                "{}: it lies in more than {MAX_DEPTH} folders within each other, so nothing below it was looked at; name it itself",
                folder.display()
            );
            tell(Item::Unread(folder, why))?;
        }
    }
    Ok(())
}

/// Why a folder below which there should be captures was not looked into, if now it still cannot be.
pub(crate) fn unread(folder: &Path) -> String {
    let name = folder.display();
    match std::fs::read_dir(folder) {
        Err(e) => format!("{name}: {e}"),
        Ok(_) => format!(
            "{name}: this folder was not looked into: it could not be read, or lies in more than {MAX_DEPTH} others; name it itself"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_too_deep_is_told_and_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = dir.path().to_owned();
        for _ in 0..=MAX_DEPTH {
            std::fs::write(at.join("x"), "").unwrap();
            at.push("d");
            std::fs::create_dir(&at).unwrap();
        }
        std::fs::write(at.join("deepest"), "").unwrap();
        let (mut files, mut unread) = (0, Vec::new());
        let walked = walk(dir.path(), &mut |item| {
            match item {
                Item::File(_) => files += 1,
                Item::Unread(folder, why) => unread.push((folder, why)),
            }
            Ok(())
        });
        walked.unwrap();
        assert_eq!(files, MAX_DEPTH + 1);
        let [(folder, why)] = &unread[..] else {
            panic!("{unread:?}");
        };
        assert_eq!(*folder, at);
        assert!(why.contains("in more than 32 folders"), "{why}");
        let enough = walk(dir.path(), &mut |_| Err("enough".to_owned()));
        assert_eq!(enough, Err("enough".to_owned()));
        let none = dir.path().join("none");
        let gone = walk(&none, &mut |item| match item {
            Item::File(_) => Ok(()),
            Item::Unread(_, why) => Err(why),
        });
        assert!(gone.unwrap_err().contains("none: No such file"));
    }
}
