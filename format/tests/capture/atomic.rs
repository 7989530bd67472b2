use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use scx_postmortem_format::capture::{AtomicFile, Existing};

fn names(directory: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// On this file system, and as on one where each file has a name.
const BOTH: [fn(&Path, Existing) -> io::Result<AtomicFile>; 2] =
    [AtomicFile::create, AtomicFile::create_named];

#[test]
fn appears_when_it_is_committed() {
    for (create, before) in BOTH.into_iter().zip([0, 1]) {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a.core.zst");
        let mut file = create(&target, Existing::Refuse).unwrap();
        file.write_all(b"content").unwrap();
        // Killed now, this process leaves as many files.
        assert_eq!(names(directory.path()).len(), before);
        let temporary = file.temporary_path().to_owned();
        assert_eq!(fs::read(&temporary).unwrap(), b"content");
        let mode = fs::metadata(&temporary).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        file.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"content");
        let mode = fs::metadata(&target).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(names(directory.path()), ["a.core.zst"]);
    }
}

#[test]
fn leaves_nothing_when_it_is_dropped() {
    for create in BOTH {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a");
        fs::write(&target, b"before").unwrap();
        let mut file = create(&target, Existing::Replace).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(names(directory.path()), ["a"]);
        assert_eq!(fs::read(&target).unwrap(), b"before");
    }
}

#[test]
fn keeps_a_partial_file_under_another_name() {
    for create in BOTH {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a.core.zst");
        fs::write(&target, b"before").unwrap();
        fs::write(directory.path().join("a.core.zst.partial"), b"older").unwrap();
        let mut file = create(&target, Existing::Replace).unwrap();
        file.write_all(b"half").unwrap();
        let partial = file.keep_partial().unwrap();
        assert_eq!(partial, directory.path().join("a.core.zst.partial"));
        assert_eq!(fs::read(&partial).unwrap(), b"half");
        assert_eq!(fs::read(&target).unwrap(), b"before");
        assert_eq!(names(directory.path()).len(), 2);
    }
}

#[test]
fn replaces_only_when_it_may() {
    for create in BOTH {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a");
        // Taken while it is being written.
        let file = create(&target, Existing::Refuse).unwrap();
        fs::write(&target, b"other").unwrap();
        assert_eq!(file.commit().unwrap_err().kind(), ErrorKind::AlreadyExists);
        // Taken before.
        let error = create(&target, Existing::Refuse).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&target).unwrap(), b"other");
        assert_eq!(names(directory.path()), ["a"]);
        let mut file = create(&target, Existing::Replace).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["a"]);
    }
}

#[test]
fn a_whole_file_whose_name_was_taken_meanwhile_is_kept() {
    for create in BOTH {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a");
        let mut file = create(&target, Existing::Refuse).unwrap();
        file.write_all(b"whole").unwrap();
        fs::write(&target, b"other").unwrap();
        let (error, kept) = file.commit_or_keep().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(kept.unwrap()).unwrap(), b"whole");
        assert_eq!(names(directory.path()), ["a", "a.partial"]);
    }
}

#[test]
fn a_name_that_is_too_long_is_refused_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("a".repeat(250));
    let error = AtomicFile::create(&target, Existing::Replace).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidFilename, "{error}");
}

#[test]
fn a_link_is_replaced_and_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let (target, elsewhere) = (directory.path().join("a"), directory.path().join("b"));
    fs::write(&elsewhere, b"precious").unwrap();
    symlink(&elsewhere, &target).unwrap();
    let mut file = AtomicFile::create(&target, Existing::Replace).unwrap();
    file.write_all(b"new").unwrap();
    file.commit().unwrap();
    assert_eq!(fs::read(&elsewhere).unwrap(), b"precious");
    assert!(fs::symlink_metadata(&target).unwrap().is_file());
}

#[test]
fn refuses_what_is_no_place_for_a_file() {
    let directory = tempfile::tempdir().unwrap();
    for target in [directory.path(), std::path::Path::new("/dev/null")] {
        let error = AtomicFile::create(target, Existing::Replace).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
    let missing = directory.path().join("no/such/dir/a");
    let error = AtomicFile::create(&missing, Existing::Replace).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = AtomicFile::create(std::path::Path::new(".."), Existing::Replace).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}
