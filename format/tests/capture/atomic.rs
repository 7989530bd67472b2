use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{PermissionsExt, symlink};

use scx_postmortem_format::capture::{AtomicFile, Existing, ensure_space, free_bytes};

fn names(directory: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn appears_when_it_is_committed() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("a.core.zst");
    let mut file = AtomicFile::create(&target, Existing::Refuse).unwrap();
    file.write_all(b"content").unwrap();
    assert!(!target.exists());
    let temporary = file.temporary_path().to_owned();
    assert_eq!(temporary.parent(), Some(directory.path()));
    let mode = fs::metadata(&temporary).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    file.commit().unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"content");
    assert_eq!(names(directory.path()), ["a.core.zst"]);
}

#[test]
fn leaves_nothing_when_it_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("a");
    fs::write(&target, b"before").unwrap();
    let mut file = AtomicFile::create(&target, Existing::Replace).unwrap();
    file.write_all(b"half").unwrap();
    drop(file);
    assert_eq!(names(directory.path()), ["a"]);
    assert_eq!(fs::read(&target).unwrap(), b"before");
}

#[test]
fn keeps_a_partial_file_under_another_name() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("a.core.zst");
    fs::write(&target, b"before").unwrap();
    fs::write(directory.path().join("a.core.zst.partial"), b"older").unwrap();
    let mut file = AtomicFile::create(&target, Existing::Replace).unwrap();
    file.write_all(b"half").unwrap();
    let partial = file.keep_partial().unwrap();
    assert_eq!(partial, directory.path().join("a.core.zst.partial"));
    assert_eq!(fs::read(&partial).unwrap(), b"half");
    assert_eq!(fs::read(&target).unwrap(), b"before");
    assert_eq!(names(directory.path()).len(), 2);
}

#[test]
fn replaces_only_when_it_may() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("a");
    // Taken while it is being written.
    let file = AtomicFile::create(&target, Existing::Refuse).unwrap();
    fs::write(&target, b"other").unwrap();
    assert_eq!(file.commit().unwrap_err().kind(), ErrorKind::AlreadyExists);
    // Taken before.
    let error = AtomicFile::create(&target, Existing::Refuse).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&target).unwrap(), b"other");
    assert_eq!(names(directory.path()), ["a"]);
    let mut file = AtomicFile::create(&target, Existing::Replace).unwrap();
    file.write_all(b"new").unwrap();
    file.commit().unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"new");
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

#[test]
fn space_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("new");
    let free = free_bytes(&target).unwrap();
    assert!(free > 0);
    ensure_space(&target, 1).unwrap();
    let error = ensure_space(&target, u64::MAX).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert!(
        error.to_string().contains("18446744073709551615 bytes"),
        "{error}"
    );
}
