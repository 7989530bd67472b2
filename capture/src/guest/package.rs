//! Kernel packages as they come from a distribution: the kernel's image, its configuration and its
//! modules, out of a Debian package (`ar` with a compressed tar) or an RPM (headers, then a
//! compressed cpio).
//!
//! deb(5); https://rpm-software-management.github.io/rpm/manual/format_v4.html.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::Path;

/// More than the content of any kernel package that is worth keeping.
const MAX_TAKEN: u64 = 1 << 30;
/// Largest file that is taken.
const MAX_FILE: u64 = 256 << 20;
/// Longest name in a cpio archive.
const MAX_NAME: u64 = 4096;
/// Largest header of an RPM.
const MAX_HEADER: u64 = 256 << 20;

const DEB: &[u8] = b"!<arch>\n";
const RPM: &[u8] = &[0xed, 0xab, 0xee, 0xdb];
const RPM_HEADER: &[u8] = &[0x8e, 0xad, 0xe8, 0x01];
const LEAD: u64 = 96;

/// What a guest needs of a package, by path without the leading `/` or `./`.
#[derive(Debug, Default)]
pub(crate) struct Package {
    files: BTreeMap<String, Vec<u8>>,
}

impl Package {
    /// Opens a package; `None` when the file is none.
    pub(crate) fn open(path: &Path, modules: bool) -> Result<Option<Self>, String> {
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let mut file = File::open(path).map_err(|e| failed(&e))?;
        let mut magic = Vec::new();
        (&mut file)
            .take(8)
            .read_to_end(&mut magic)
            .map_err(|e| failed(&e))?;
        let file = File::open(path).map_err(|e| failed(&e))?;
        let mut package = Self::default();
        let read = if magic == DEB {
            package.read_deb(file, modules)
        } else if magic.starts_with(RPM) {
            package.read_rpm(BufReader::new(file), modules)
        } else {
            return Ok(None);
        };
        read.map_err(|e| failed(&e))?;
        Ok(Some(package))
    }

    /// The kernel's image. What is signed comes after what is not: the guest has no one to ask.
    pub(crate) fn kernel(&self) -> Option<&[u8]> {
        let mut found = self.files.iter().filter(|(path, _)| {
            let name = path.rsplit('/').next().unwrap_or_default();
            name == "vmlinuz" || name.starts_with("vmlinuz-") || name.starts_with("vmlinuz.")
        });
        found.next().map(|(_, content)| content.as_slice())
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> Option<&[u8]> {
        let mut found = self.files.iter().filter(|(path, _)| {
            let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
            name.starts_with("config-") || (name == "config" && directory.contains("lib/modules/"))
        });
        found.next().map(|(_, content)| content.as_slice())
    }

    /// The names of what was taken, for a message.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.files.keys().map(String::as_str).collect()
    }

    /// Its modules, by path.
    pub(crate) fn modules(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let modules = self.files.iter().filter(|(path, _)| is_module(path));
        modules.map(|(path, content)| (path.as_str(), content.as_slice()))
    }

    fn take(&mut self, path: &str, size: u64, reader: &mut dyn Read) -> io::Result<()> {
        let taken: usize = self.files.values().map(Vec::len).sum();
        let taken = u64::try_from(taken).unwrap_or(u64::MAX);
        if size > MAX_FILE || taken.saturating_add(size) > MAX_TAKEN {
            return Err(io::Error::other(format!(
                "{path} has {size} bytes; that is no kernel package"
            )));
        }
        let mut content = Vec::new();
        reader.take(size).read_to_end(&mut content)?;
        if u64::try_from(content.len()).ok() != Some(size) {
            return Err(io::Error::other(format!("ends within {path}")));
        }
        self.files.insert(path.to_owned(), content);
        Ok(())
    }

    fn read_deb(&mut self, file: File, modules: bool) -> io::Result<()> {
        let mut archive = ar::Archive::new(file);
        while let Some(entry) = archive.next_entry() {
            let entry = entry?;
            let name = String::from_utf8_lossy(entry.header().identifier()).into_owned();
            if !name.starts_with("data.tar") {
                continue;
            }
            let mut tar = tar::Archive::new(unpacked(entry)?);
            for entry in tar.entries()? {
                let mut entry = entry?;
                let path = entry.path()?.to_string_lossy().into_owned();
                let path = path.trim_start_matches("./").trim_start_matches('/');
                if entry.header().entry_type().is_file() && wanted(path, modules) {
                    let size = entry.size();
                    self.take(path, size, &mut entry)?;
                }
            }
            return Ok(());
        }
        Err(io::Error::other(
            "has no data.tar; expected a Debian package",
        ))
    }

    fn read_rpm(&mut self, mut file: impl Read, modules: bool) -> io::Result<()> {
        let mut lead = Vec::new();
        (&mut file).take(LEAD).read_to_end(&mut lead)?;
        let signature = skip_header(&mut file)?;
        // The header behind the signature begins at a multiple of eight.
        let pad = signature.next_multiple_of(8) - signature;
        io::copy(&mut (&mut file).take(pad), &mut io::sink())?;
        skip_header(&mut file)?;
        let mut cpio = unpacked(file)?;
        while let Some((path, mode, size)) = cpio_entry(&mut cpio)? {
            let path = path.trim_start_matches("./").trim_start_matches('/');
            if mode & 0o170_000 == 0o100_000 && wanted(path, modules) {
                self.take(path, size, &mut cpio)?;
            } else {
                io::copy(&mut (&mut cpio).take(size), &mut io::sink())?;
            }
            skip_padding(&mut cpio, size)?;
        }
        Ok(())
    }
}

fn is_module(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.ends_with(".ko") || name.contains(".ko.")
}

fn wanted(path: &str, modules: bool) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.starts_with("vmlinuz")
        || name.starts_with("config-")
        || (name == "config" && path.contains("lib/modules/"))
        || (modules && is_module(path))
}

/// What is within, by its first bytes: gzip is not used for kernels any more.
pub(super) fn unpacked<'a>(mut packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::new();
    (&mut packed).take(6).read_to_end(&mut magic)?;
    let whole = Cursor::new(magic.clone()).chain(packed);
    Ok(match magic.as_slice() {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::new(whole)?),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(liblzma::read::XzDecoder::new(whole)),
        [0x1f, 0x8b, ..] => {
            return Err(io::Error::other(
                "is packed with gzip; expected xz, zstd or no compression",
            ));
        }
        _ => Box::new(whole),
    })
}

fn number(bytes: &[u8]) -> Option<u64> {
    let bytes: [u8; 4] = bytes.try_into().ok()?;
    Some(u64::from(u32::from_be_bytes(bytes)))
}

/// Skips one header of an RPM; its length in bytes.
fn skip_header(file: &mut impl Read) -> io::Result<u64> {
    let wrong = || io::Error::other("is damaged: no RPM header where one should be");
    let mut intro = [0; 16];
    file.read_exact(&mut intro)?;
    let (magic, rest) = intro.split_at(4);
    if magic != RPM_HEADER {
        return Err(wrong());
    }
    let entries = rest.get(4..8).and_then(number).ok_or_else(wrong)?;
    let bytes = rest.get(8..12).and_then(number).ok_or_else(wrong)?;
    let length = entries.saturating_mul(16).saturating_add(bytes);
    if length > MAX_HEADER {
        return Err(wrong());
    }
    let skipped = io::copy(&mut file.take(length), &mut io::sink())?;
    if skipped != length {
        return Err(wrong());
    }
    Ok(16 + length)
}

/// The next entry of a cpio archive of the "newc" kind: path, mode, size. `None` at its end.
fn cpio_entry(cpio: &mut dyn Read) -> io::Result<Option<(String, u64, u64)>> {
    let wrong = || io::Error::other("is damaged: no cpio entry where one should be");
    let mut header = [0; 110];
    cpio.read_exact(&mut header)?;
    let (magic, fields) = header.split_at(6);
    if magic != b"070701" && magic != b"070702" {
        return Err(wrong());
    }
    let field = |index: usize| {
        let digits = fields.get(index * 8..index * 8 + 8)?;
        u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let (Some(mode), Some(size), Some(name)) = (field(1), field(6), field(11)) else {
        return Err(wrong());
    };
    if name == 0 || name > MAX_NAME {
        return Err(wrong());
    }
    let mut path = Vec::new();
    cpio.take(name).read_to_end(&mut path)?;
    skip_padding(cpio, 110 + name)?;
    path.pop();
    let path = String::from_utf8_lossy(&path).into_owned();
    Ok((path != "TRAILER!!!").then_some((path, mode, size)))
}

fn skip_padding(reader: &mut dyn Read, behind: u64) -> io::Result<()> {
    let pad = behind.next_multiple_of(4) - behind;
    io::copy(&mut reader.take(pad), &mut io::sink()).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::cpio::Archive;
    use super::*;

    fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, *content).unwrap();
        }
        tar.into_inner().unwrap()
    }

    const FILES: [(&str, &[u8]); 4] = [
        ("boot/vmlinuz-7.3.4", b"kernel"),
        ("boot/config-7.3.4", b"CONFIG_BPF=y"),
        ("lib/modules/7.3.4/kernel/fs/fuse.ko.xz", b"module"),
        ("usr/share/doc/README", b"text"),
    ];

    fn check(package: &Package) {
        assert_eq!(package.kernel(), Some(&b"kernel"[..]));
        assert_eq!(package.config(), Some(&b"CONFIG_BPF=y"[..]));
        let modules: Vec<_> = package.modules().map(|(path, _)| path).collect();
        assert_eq!(modules, ["lib/modules/7.3.4/kernel/fs/fuse.ko.xz"]);
    }

    #[test]
    fn a_debian_package_is_read_packed_with_zstd_or_xz() {
        let directory = tempfile::tempdir().unwrap();
        let tar = tar_of(&FILES);
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&tar).unwrap();
        let zstd = zstd::encode_all(tar.as_slice(), 1).unwrap();
        for (name, data) in [
            ("data.tar.xz", xz.finish().unwrap()),
            ("data.tar.zst", zstd),
            ("data.tar", tar),
        ] {
            let path = directory.path().join("linux.deb");
            let mut deb = ar::Builder::new(File::create(&path).unwrap());
            for (name, content) in [("debian-binary", b"2.0\n".to_vec()), (name, data)] {
                let header = ar::Header::new(name.into(), content.len() as u64);
                deb.append(&header, content.as_slice()).unwrap();
            }
            drop(deb);
            check(&Package::open(&path, true).unwrap().unwrap());
            let without = Package::open(&path, false).unwrap().unwrap();
            assert_eq!(without.modules().count(), 0);
        }
    }

    #[test]
    fn an_rpm_is_read() {
        let mut cpio = Archive::default();
        for (path, content) in FILES {
            cpio.file(path, content.to_vec());
        }
        let header = |entries: u32, bytes: u32| {
            let mut out = RPM_HEADER.to_vec();
            out.extend([0; 4]);
            out.extend(entries.to_be_bytes());
            out.extend(bytes.to_be_bytes());
            out.resize(16 + entries as usize * 16 + bytes as usize, 1);
            out
        };
        let mut rpm = RPM.to_vec();
        rpm.resize(96, 0);
        // A signature of 16 + 16 + 5 bytes, and three to the next multiple of eight.
        rpm.extend(header(1, 5));
        rpm.extend([0; 3]);
        rpm.extend(header(2, 7));
        rpm.extend(zstd::encode_all(cpio.bytes().unwrap().as_slice(), 1).unwrap());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel-core.rpm");
        std::fs::write(&path, &rpm).unwrap();
        check(&Package::open(&path, true).unwrap().unwrap());

        std::fs::write(&path, &rpm[..rpm.len() - 40]).unwrap();
        assert!(Package::open(&path, true).is_err());
        rpm[96] = 0;
        std::fs::write(&path, &rpm).unwrap();
        let why = Package::open(&path, true).unwrap_err();
        assert!(why.contains("no RPM header"), "{why}");
    }

    #[test]
    fn anything_else_is_no_package() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmlinuz");
        std::fs::write(&path, b"MZ").unwrap();
        assert!(Package::open(&path, false).unwrap().is_none());
    }
}
