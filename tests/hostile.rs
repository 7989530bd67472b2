//! Guest memory that lies: every capture of the corpus with bytes of its memory changed. The
//! analyzer must come back with a report or an error, without panicking, hanging or growing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use scx_postmortem_analyze::addr::Gpa;
use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::error::Error;
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::source::{Image, PhysicalMemory, Region};
use scx_postmortem_tests::Nothing;

/// Memory in which one aligned word in `rate` reads as something else.
struct Lying {
    inner: Box<dyn PhysicalMemory>,
    seed: u64,
    rate: u64,
    /// Physical memory that tells the truth: the kernel's own image, so that the walkers are
    /// reached; empty when everything may lie.
    truthful: Range<u64>,
    lies: AtomicU64,
}

/// splitmix64: the lie depends on the address and the seed alone, so reads agree.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl PhysicalMemory for Lying {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        self.inner.read(gpa, buf)?;
        for (at, byte) in (gpa.0..).zip(buf.iter_mut()) {
            let dice = mix((at / 8) ^ self.seed);
            if dice.is_multiple_of(self.rate) && !self.truthful.contains(&at) {
                self.lies.fetch_add(1, Ordering::Relaxed);
                *byte = match dice >> 32 & 3 {
                    // A plausible pointer into other memory, a small number, noise, all ones.
                    0 => *byte ^ (1 << (dice >> 40 & 7)),
                    1 => u8::from(at.is_multiple_of(8)),
                    2 => mix(dice ^ at).to_le_bytes()[0],
                    _ => 0xff,
                };
            }
        }
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        self.inner.regions()
    }
}

#[test]
fn lies_in_memory_cost_a_branch_not_the_process() {
    let mut told = 0;
    let mut reports = 0;
    for entry in scx_postmortem_tests::corpus().unwrap() {
        let path = entry.capture();
        let kernel = Kernel::find(Image::open(&path).unwrap(), &Overrides::default()).unwrap();
        let physical = |symbol| {
            kernel
                .translate(kernel.symbol(symbol).unwrap())
                .unwrap()
                .0
                .0
        };
        let kernel_image = physical("_text")..physical("_end");
        // From one wrong word in 16 to one in 16384: heavy damage ends early, light damage gets
        // deep into the walkers.
        for seed in 0..24u64 {
            let mut image = Image::open(&path).unwrap();
            let inner = std::mem::replace(&mut image.memory, Box::new(Nothing));
            let rate = 16 << (seed % 6 * 2);
            let truthful = if seed < 6 { 0..0 } else { kernel_image.clone() };
            let lying = Lying {
                inner,
                seed: mix(seed),
                rate,
                truthful,
                lies: AtomicU64::new(0),
            };
            let lies = std::sync::Arc::new(lying);
            image.memory = Box::new(Shared(lies.clone()));
            let start = Instant::now();
            if let Ok(kernel) = Kernel::find(image, &Overrides::default()) {
                let report = analysis::analyze(&kernel, &Options::default());
                assert!(report.postmortem.is_some());
                reports += 1;
            }
            let took = start.elapsed();
            assert!(
                took < Duration::from_secs(60),
                "{}: seed {seed} took {took:?}",
                path.display()
            );
            told += lies.lies.load(Ordering::Relaxed);
        }
    }
    assert!(
        told > 1000,
        "only {told} bytes were changed: the test tests nothing"
    );
    assert!(
        reports > 10,
        "only {reports} reports came out: the walkers were not reached"
    );
}

struct Shared(std::sync::Arc<Lying>);

impl PhysicalMemory for Shared {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        self.0.read(gpa, buf)
    }
    fn regions(&self) -> &[Region] {
        self.0.regions()
    }
}

/// The report's JSON without what it says about the file, and whether it says that something is
/// wrong with that.
fn report_of(path: &std::path::Path) -> Option<(String, bool)> {
    let kernel = Kernel::find(Image::open(path).ok()?, &Overrides::default()).ok()?;
    let mut report = analysis::analyze(&kernel, &Options::default());
    let own = report.postmortem.as_mut().unwrap();
    let told = own.warnings.iter().any(|w| w.contains(" is corrupt"));
    own.warnings.clear();
    let json = scx_postmortem_format::report::FailureDumpReportAny::from(report);
    Some((json.to_json().unwrap(), told))
}

#[test]
fn a_report_that_a_corrupt_frame_changed_says_so() {
    use std::os::unix::fs::FileExt;

    let entry = scx_postmortem_tests::entry("stall-6.18").unwrap();
    // Of only the pages that the report reads, so that damage has something to hit.
    let copy = tempfile::NamedTempFile::new().unwrap();
    scx_postmortem_analyze::reduce::reduce(
        &entry.capture(),
        scx_postmortem_analyze::reduce::Pick::Only,
        None,
        copy.path(),
        1,
        &|_, _| {},
    )
    .unwrap();
    // The reduced capture took the place of the file that the handle is of.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(copy.path())
        .unwrap();
    let bytes = std::fs::read(copy.path()).unwrap();
    let (whole, told) = report_of(copy.path()).unwrap();
    assert!(!told);
    let (mut changed, mut same) = (0, 0);
    for at in (1..80).map(|i| bytes.len() * i / 80) {
        file.write_all_at(&[bytes[at] ^ 0x10], at as u64).unwrap();
        if let Some((report, told)) = report_of(copy.path()) {
            assert!(
                told || report == whole,
                "byte {at} changed the report without a word"
            );
            if report == whole {
                same += 1;
            } else {
                changed += 1;
            }
        }
        file.write_all_at(&bytes[at..=at], at as u64).unwrap();
    }
    assert!(
        changed > 0 && same > 0,
        "{changed} changed, {same} the same"
    );
}
