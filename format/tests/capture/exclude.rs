use scx_postmortem_format::capture::{
    Absence, Capture, EarlySpec, Excluded, Extent, Manifest, MemoryKind, ReadError, Rule, Run,
};

use crate::guest::{Guest, noise, write};

const PAGE: u64 = 4096;

fn excluded(runs: &[(u64, u64, Rule)]) -> Excluded {
    let mut excluded = Excluded::default();
    for &(page, pages, rule) in runs {
        excluded.push(Run {
            gpa: page * PAGE,
            bytes: pages * PAGE,
            rule,
        });
    }
    excluded
}

/// The rule by which a read of one byte fails; `None` when it does not.
fn rule_of(result: Result<(), ReadError>) -> Option<Rule> {
    match result {
        Ok(()) => None,
        Err(ReadError::NotCaptured {
            cause: Absence::LeftOut(rule),
            ..
        }) => Some(rule),
        Err(_) => Some(Rule::Unknown),
    }
}

#[test]
fn excluded_pages_are_missing_in_both_images_and_all_else_reads_back() {
    let late = Guest::new(vec![
        (0, noise(1, 100 * 4096 + 100)),
        (1 << 30, noise(2, 66_001)),
    ]);
    let mut early = late.clone();
    early.memory[0].1.fill(7);
    let runs = excluded(&[
        (2, 3, Rule::Free),
        (5, 1, Rule::User),
        (40, 20, Rule::Cache),
        // Nothing is there, or not a whole page.
        (100, 1, Rule::Free),
        (200, 1, Rule::Free),
        ((1 << 18) + 16, 1, Rule::User),
    ]);
    let mut spec = late.spec();
    spec.excluded = runs;
    spec.early = Some(EarlySpec {
        source: &early,
        manifest: Manifest::default(),
        notes: Vec::new(),
    });
    let (file, summary) = write(&spec, &late, 2);
    let whole = 100 * 4096 + 100 + 66_001;
    assert_eq!(summary.memory_bytes, whole - 24 * PAGE);
    let capture = Capture::open(&file[..]).unwrap();
    assert!(capture.verify(None).is_sound());
    let manifest = capture.manifest().unwrap();
    let sums: Vec<_> = manifest
        .excluded
        .iter()
        .map(|sum| (sum.rule.as_str(), sum.bytes / PAGE, sum.runs))
        .collect();
    assert_eq!(sums, [("free", 3, 1), ("user", 1, 1), ("cache", 20, 1)]);
    let kinds: Vec<MemoryKind> = manifest.memory.iter().map(|r| r.kind).collect();
    assert_eq!(kinds, [MemoryKind::Partial; 2]);
    assert_eq!(capture.segments().len(), 4);
    let view = capture.early().unwrap();
    for page in 0..100u64 {
        let rule = match page {
            2..5 => Some(Rule::Free),
            5 => Some(Rule::User),
            40..60 => Some(Rule::Cache),
            _ => None,
        };
        let mut found = [vec![0; 4096], vec![0; 4096]];
        let read = capture.read_physical(page * PAGE, &mut found[0]);
        assert_eq!(rule_of(read), rule, "page {page}");
        let read = view.read_physical(page * PAGE, &mut found[1]);
        assert_eq!(rule_of(read), rule, "page {page} of the early image");
        if rule.is_none() {
            for (found, guest) in found.iter().zip([&late, &early]) {
                let at = page as usize * 4096;
                assert!(found[..] == guest.memory[0].1[at..at + 4096], "page {page}");
            }
        }
    }
    let hole = capture.read_physical(200 * PAGE, &mut [0]);
    assert_eq!(hole, Err(ReadError::Hole { gpa: 200 * PAGE }));
    // The last, broken page of each range stays.
    capture.read_physical(100 * PAGE, &mut [0; 100]).unwrap();
    capture.read_physical((1 << 30) + 66_000, &mut [0]).unwrap();
}

#[test]
fn the_bytes_of_a_capture_without_exclusions_are_as_before() {
    let guest = Guest::new(vec![(0, noise(1, 300_000))]);
    let plain = guest.capture().0;
    let mut spec = guest.spec();
    spec.excluded = excluded(&[(1000, 2, Rule::Free)]);
    assert!(write(&spec, &guest, 1).0 == plain, "nothing of it is there");
}

#[test]
fn a_hundred_thousand_runs_still_make_a_file_that_opens_at_once() {
    // Zeros, of which every other page, and now and then a stretch of eight, is left out.
    let pages = 250_000u64;
    let mut runs = Excluded::default();
    for page in (0..pages).step_by(2) {
        let stretch = page % 32 == 0;
        runs.push(Run {
            gpa: page * PAGE,
            bytes: if stretch { 8 * PAGE } else { PAGE },
            rule: Rule::Free,
        });
    }
    assert!(runs.runs().len() > 80_000, "{}", runs.runs().len());
    let guest = Guest {
        data: Some(Vec::new()),
        ..Guest::default()
    };
    let mut spec = guest.spec();
    spec.memory = vec![Extent::new(0, pages * PAGE)];
    spec.excluded = runs;
    let (file, _) = write(&spec, &guest, 2);
    let capture = Capture::open(&file[..]).unwrap();
    // Single pages stay, the stretches are left out.
    let segments = capture.segments().len();
    assert!((7_000..=32_768).contains(&segments), "{segments}");
    assert!(capture.preamble().manifest_bytes < 500);
    let rule = |page: u64| rule_of(capture.read_physical(page * PAGE, &mut [1]));
    assert_eq!(rule(64), Some(Rule::Free));
    assert_eq!(rule(71), Some(Rule::Free));
    assert_eq!(rule(74), None, "a page alone is there");
    let mut page = [1];
    capture.read_physical(74 * PAGE, &mut page).unwrap();
    assert_eq!(page, [0]);
    assert_eq!(capture.excluded().unwrap().rule_at(74 * PAGE), None);
}

#[test]
fn without_the_list_pages_are_not_captured_and_no_hole() {
    let guest = Guest::new(vec![(0, noise(1, 300_000))]);
    let mut spec = guest.spec();
    spec.excluded = excluded(&[(2, 3, Rule::Free)]);
    // A file whose list of pages is no such list: as many bytes, another version.
    let (file, _) = write(&spec, &guest, 1);
    let capture = Capture::open(&file[..]).unwrap();
    let mut core = Vec::new();
    capture.export(&mut core, None).unwrap();
    let mut pattern = b"SCXPM\0\0\0".to_vec();
    pattern.extend(1u32.to_le_bytes());
    pattern.extend(4096u32.to_le_bytes());
    let at = core.windows(pattern.len()).position(|w| w == pattern);
    core[at.unwrap() + 8] = 9;
    let frames = zstd_frames(&file, &core);
    let capture = Capture::open(&frames[..]).unwrap();
    assert!(capture.excluded().is_err());
    assert_eq!(
        capture.read_physical(2 * PAGE, &mut [0]),
        Err(ReadError::NotCaptured {
            gpa: 2 * PAGE,
            cause: Absence::NotTaken
        })
    );
    assert!(!capture.verify(None).is_sound());
}

/// The file with its first data frame replaced by the beginning of `core`, without its table: as
/// a reader finds it that has to search.
fn zstd_frames(file: &[u8], core: &[u8]) -> Vec<u8> {
    let mut out = file[..256].to_vec();
    for frame in core.chunks(65_536) {
        let mut encoder = zstd::bulk::Compressor::new(1).unwrap();
        encoder.include_checksum(true).unwrap();
        out.extend(encoder.compress(frame).unwrap());
    }
    out
}
