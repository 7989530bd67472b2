//! An initramfs: a cpio archive of the "newc" kind whose bytes depend on nothing but what is in it.
//!
//! Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.

use std::collections::BTreeMap;
use std::io;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// What will be in an archive, by path without the leading slash.
#[derive(Debug, Default)]
pub(super) struct Archive {
    entries: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Archive {
    pub(super) fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.entries.contains_key(path) {
            return;
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.entries
            .insert(path.to_owned(), (DIRECTORY, Vec::new()));
    }

    fn put(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        let path = path.trim_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.entries.insert(path.to_owned(), (mode, content));
    }

    pub(super) fn program(&mut self, path: &str, content: Vec<u8>) {
        self.put(path, PROGRAM, content);
    }

    pub(super) fn file(&mut self, path: &str, content: Vec<u8>) {
        self.put(path, FILE, content);
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.put(path, LINK, target.as_bytes().to_vec());
    }

    pub(super) fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path.trim_matches('/'))
    }

    /// The archive: sorted, owned by root, dated 0.
    pub(super) fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        for (inode, (path, (mode, content))) in (1u32..).zip(&self.entries) {
            entry(&mut out, path, *mode, inode, content)?;
        }
        entry(&mut out, "TRAILER!!!", 0, 0, &[])?;
        out.resize(out.len().next_multiple_of(512), 0);
        Ok(out)
    }
}

fn entry(out: &mut Vec<u8>, path: &str, mode: u32, inode: u32, content: &[u8]) -> io::Result<()> {
    let large = |_| io::Error::other(format!("{path}: too large for an initramfs"));
    let size = u32::try_from(content.len()).map_err(large)?;
    let name = u32::try_from(path.len() + 1).map_err(large)?;
    let links = if mode == DIRECTORY { 2 } else { 1 };
    // inode, mode, uid, gid, links, mtime, size, device, device of a special file, name, check
    let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name, 0];
    out.extend(b"070701");
    for field in fields {
        out.extend(format!("{field:08X}").bytes());
    }
    out.extend(path.bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(content);
    out.resize(out.len().next_multiple_of(4), 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_order_does_not_matter() {
        let mut one = Archive::default();
        one.program("/bin/sh", b"abc".to_vec());
        one.file("etc/x/y", Vec::new());
        let mut two = Archive::default();
        two.file("/etc/x/y", Vec::new());
        two.program("bin/sh", b"abc".to_vec());
        assert_eq!(one.bytes().unwrap(), two.bytes().unwrap());
        let paths: Vec<&String> = one.entries.keys().collect();
        assert_eq!(paths, ["bin", "bin/sh", "etc", "etc/x", "etc/x/y"]);

        let bytes = one.bytes().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let header = [
            "070701", "00000001", "000041ED", "00000000", "00000000", "00000002", "00000000",
            "00000000", "00000000", "00000000", "00000000", "00000000", "00000004", "00000000",
        ];
        assert_eq!(&bytes[..110], header.concat().as_bytes());
        assert_eq!(&bytes[110..116], b"bin\0\0\0");
        assert_eq!(&bytes[116..122], b"070701");
    }
}
