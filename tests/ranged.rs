//! Captures that are read by ranges: the same reports, of a part of the file.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::Path;
use std::sync::Arc;

use scx_postmortem_analyze::analysis::Options;
use scx_postmortem_analyze::golden::report_from;
use scx_postmortem_analyze::source::{Image, RangedFile, Ranges};
use scx_postmortem_format::capture::{Upgrade, upgraded};
use scx_postmortem_tests::corpus;

/// A file in memory of which only ranges are given.
struct Far(Arc<Vec<u8>>);

impl Ranges for Far {
    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
        let start = usize::try_from(offset).unwrap();
        Ok(self.0[start..start + len].to_vec())
    }
}

fn far(bytes: Vec<u8>) -> RangedFile {
    RangedFile::new(Box::new(Far(Arc::new(bytes))))
}

#[test]
fn the_report_is_the_same_and_needs_a_part_of_the_file() {
    for entry in corpus().unwrap() {
        let path = entry.capture();
        let mut bytes = std::fs::read(&path).unwrap();
        // The corpus is of version 1.0: nothing but all of the file tells its digest.
        if let Upgrade::Start(start) = upgraded(&bytes).unwrap() {
            bytes[..start.len()].copy_from_slice(&start);
        }
        let file = far(bytes);
        let report = |open: &dyn Fn(bool) -> _| {
            let report = report_from(&entry.name, None, open, &[], &Options::default()).unwrap();
            report.to_json().unwrap()
        };
        let near = report(&|early| match early {
            false => Image::open(&path),
            true => Image::open_early(&path),
        });
        let ranged = report(&|early| Image::open_ranged(&file, &entry.name, early));
        assert_eq!(file.failure(), None);
        assert!(near == ranged, "{}: the reports differ", entry.name);
        let traffic = file.traffic();
        let all = std::fs::metadata(&path).unwrap().len();
        let share = traffic.bytes as f64 / all as f64;
        println!(
            "{}: {:.1} % of {all} bytes in {} requests",
            entry.name,
            share * 100.0,
            traffic.requests
        );
        assert!(share < 0.75, "{}: {share}", entry.name);
    }
}

#[test]
fn what_cannot_be_read_by_ranges_says_so() {
    let capture = std::fs::read(corpus().unwrap()[0].capture()).unwrap();
    let says = |bytes: Vec<u8>| {
        Image::open_ranged(&far(bytes), "x", false)
            .unwrap_err()
            .to_string()
    };
    assert!(says(Vec::new()).contains("the file is empty"));
    assert!(says(b"\x7fELF and so on".to_vec()).contains("capture convert"));
    assert!(says(b"no capture at all".to_vec()).contains("the file begins with bytes 6e 6f"));
    let cut = says(capture[..capture.len() / 2].to_vec());
    assert!(
        cut.contains("the seek table") && cut.contains("copy the file here"),
        "{cut}"
    );
    let mut damaged = capture;
    let table = damaged.len() - 100;
    damaged[table] ^= 1;
    assert!(says(damaged).contains("hash does not match"));
}

#[test]
fn a_line_that_is_cut_is_no_damage_of_the_capture() {
    struct Cut(Far, u64);
    impl Ranges for Cut {
        fn bytes(&self) -> u64 {
            self.0.bytes()
        }

        fn read(&self, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
            if offset > self.1 && offset < self.bytes() / 2 {
                return Err(std::io::Error::other("the line is cut"));
            }
            self.0.read(offset, len)
        }
    }
    let path = corpus().unwrap().remove(0).capture();
    let bytes = Arc::new(std::fs::read(Path::new(&path)).unwrap());
    let whole = Far(bytes.clone());
    let file = RangedFile::new(Box::new(Cut(whole, 1 << 20)));
    let made = report_from(
        "x",
        None,
        &|early| Image::open_ranged(&file, "x", early),
        &[],
        &Options::default(),
    );
    // Whether it looks like a report or not: who asks is told.
    drop(made);
    assert_eq!(file.failure().as_deref(), Some("the line is cut"));
}
