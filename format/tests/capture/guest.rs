//! A guest made of bytes.

use std::io;

use scx_postmortem_format::capture::{
    CaptureSpec, Extent, Manifest, MemorySource, Summary, WriteOptions, write_capture,
};

/// Some ranges of memory with their bytes, and what of them is data.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guest {
    pub(crate) memory: Vec<(u64, Vec<u8>)>,
    /// Data extents; `None` means all of it. Reads outside of them fail.
    pub(crate) data: Option<Vec<Extent>>,
}

/// Bytes that compress somewhat and differ everywhere.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|i| {
            if i % 8 == 0 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
            }
            (state >> (i % 8 * 8)) as u8 & 0x3f
        })
        .collect()
}

impl Guest {
    pub(crate) fn new(memory: Vec<(u64, Vec<u8>)>) -> Self {
        Self { memory, data: None }
    }

    pub(crate) fn extents(&self) -> Vec<Extent> {
        let extent = |(gpa, bytes): &(u64, Vec<u8>)| Extent::new(*gpa, bytes.len() as u64);
        self.memory.iter().map(extent).collect()
    }

    pub(crate) fn spec(&self) -> CaptureSpec<'static> {
        CaptureSpec {
            memory: self.extents(),
            manifest: Manifest {
                kernel_release: Some("6.18.15-test".into()),
                cpus: 2,
                ..Manifest::default()
            },
            ..CaptureSpec::default()
        }
    }

    pub(crate) fn capture(&self) -> (Vec<u8>, Summary) {
        write(&self.spec(), self, 1)
    }
}

pub(crate) fn write(spec: &CaptureSpec<'_>, guest: &Guest, threads: usize) -> (Vec<u8>, Summary) {
    let options = WriteOptions {
        threads: Some(threads),
        ..WriteOptions::default()
    };
    let mut file = std::io::Cursor::new(Vec::new());
    let summary = write_capture(&mut file, spec, guest, &options).unwrap();
    let file = file.into_inner();
    assert_eq!(summary.file_bytes, file.len() as u64);
    (file, summary)
}

impl MemorySource for Guest {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = gpa + buf.len() as u64;
        if let Some(data) = &self.data {
            let allowed = |e: &Extent| e.gpa <= gpa && end <= e.gpa + e.bytes;
            if !data.iter().any(allowed) {
                return Err(io::Error::other("a hole was touched"));
            }
        }
        for (start, bytes) in &self.memory {
            if *start <= gpa && end <= start + bytes.len() as u64 {
                let at = (gpa - start) as usize;
                buf.copy_from_slice(&bytes[at..at + buf.len()]);
                return Ok(());
            }
        }
        Err(io::Error::other("no such memory"))
    }

    fn data_extents(&self, range: Extent) -> io::Result<Vec<Extent>> {
        let Some(data) = &self.data else {
            return Ok(vec![range]);
        };
        let inside = |e: &&Extent| e.gpa >= range.gpa && e.gpa < range.gpa + range.bytes;
        Ok(data.iter().filter(inside).copied().collect())
    }
}
