use std::io::Read;

use proptest::prelude::*;
use scx_postmortem_format::capture::{
    Absence, Capture, Extent, GeneralRegs, MemoryKind, MemoryRegion, Note, OpenOptions, ReadError,
    SpecialRegs, VcpuState, WriteError, WriteOptions, WriteProgress, note_types, write_capture,
};

use crate::guest::{Guest, noise, write};

const MIB: u64 = 1 << 20;

/// What `zstd -d` makes of a file.
fn unzstd(file: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    zstd::stream::Decoder::new(file)
        .unwrap()
        .read_to_end(&mut out)
        .unwrap();
    out
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Two segments with a gap, one of them with long runs of zeros.
fn guest() -> Guest {
    let mut low = noise(1, 300_000);
    low[70_000..270_000].fill(0);
    Guest::new(vec![(0x1000, low), (MIB, noise(2, 131_072))])
}

#[test]
fn memory_reads_back() {
    let guest = guest();
    let (file, summary) = guest.capture();
    let capture = Capture::open(file).unwrap();
    assert!(capture.recovered().is_none());
    assert_eq!(summary.memory_bytes, 431_072);
    // Head, five frames (of which two are zero throughout), two frames.
    assert_eq!((summary.frames, summary.zero_frames), (8, 2));
    let segments: Vec<_> = capture
        .segments()
        .iter()
        .map(|s| (s.gpa, s.bytes))
        .collect();
    assert_eq!(segments, [(0x1000, 300_000), (MIB, 131_072)]);
    for (gpa, bytes) in &guest.memory {
        let mut back = vec![0xff; bytes.len()];
        capture.read_physical(*gpa, &mut back).unwrap();
        assert!(back == *bytes);
        assert_eq!(
            capture.physical_slice(gpa + 100, 50).unwrap(),
            Some(&bytes[100..150])
        );
    }
    // Over the edge of a frame.
    assert_eq!(capture.physical_slice(0x1000 + 65_530, 10), Ok(None));
    assert!(capture.verify(None).is_sound());
}

#[test]
fn hole_not_captured_and_zero_differ() {
    let guest = guest();
    let mut spec = guest.spec();
    spec.manifest.memory.push(MemoryRegion {
        gpa: 8 * MIB,
        bytes: MIB,
        kind: MemoryKind::NotCaptured,
        reason: Some("device memory".into()),
    });
    let (file, _) = write(&spec, &guest, 1);
    let capture = Capture::open(file).unwrap();
    let read = |gpa, len| {
        let mut buf = vec![0xff; len];
        capture.read_physical(gpa, &mut buf).map(|()| buf)
    };
    assert_eq!(read(0x1000 + 100_000, 8), Ok(vec![0; 8]));
    assert_eq!(read(0, 8), Err(ReadError::Hole { gpa: 0 }));
    let end = 0x1000 + 300_000;
    assert_eq!(read(end - 4, 8), Err(ReadError::Hole { gpa: end }));
    assert_eq!(
        read(9 * MIB - 8, 8),
        Err(ReadError::NotCaptured {
            gpa: 9 * MIB - 8,
            cause: Absence::NotTaken
        })
    );
    assert_eq!(read(9 * MIB, 1), Err(ReadError::Hole { gpa: 9 * MIB }));
    assert_eq!(read(u64::MAX, 8), Err(ReadError::Hole { gpa: u64::MAX }));
    let kinds: Vec<_> = capture
        .manifest()
        .unwrap()
        .memory
        .iter()
        .map(|r| (r.gpa, r.bytes, r.kind))
        .collect();
    assert_eq!(
        kinds,
        [
            (0x1000, 300_000, MemoryKind::Captured),
            (MIB, 131_072, MemoryKind::Captured),
            (8 * MIB, MIB, MemoryKind::NotCaptured),
        ]
    );
}

#[test]
fn decompressed_it_is_an_elf_core() {
    let guest = guest();
    let mut spec = guest.spec();
    spec.tail_notes
        .push(Note::scxpm(note_types::BTF, noise(3, 200_000)));
    let (file, summary) = write(&spec, &guest, 2);
    let elf = unzstd(&file);
    assert_eq!(elf.len() as u64, summary.logical_bytes);
    assert_eq!(&elf[..8], b"\x7fELF\x02\x01\x01\0");
    assert_eq!(elf[56], 4);
    let header = |n: usize| &elf[64 + n * 56..64 + n * 56 + 56];
    assert_eq!(header(0)[0], 4);
    assert_eq!(header(3)[0], 4);
    for (n, (gpa, bytes)) in guest.memory.iter().enumerate() {
        let header = header(n + 1);
        assert_eq!(header[0], 1);
        let offset = le64(header, 8);
        assert_eq!(offset % 65_536, 0);
        assert_eq!((le64(header, 16), le64(header, 24)), (*gpa, *gpa));
        assert_eq!(le64(header, 32), bytes.len() as u64);
        assert_eq!(le64(header, 40), bytes.len() as u64);
        assert_eq!(le64(header, 48), 0);
        assert!(elf[offset as usize..][..bytes.len()] == *bytes);
    }
    let capture = Capture::open(&file[..]).unwrap();
    let mut logical = vec![0; elf.len()];
    capture.read_logical(0, &mut logical).unwrap();
    assert!(logical == elf);
    let mut exported = Vec::new();
    assert_eq!(
        capture.export(&mut exported, None).unwrap(),
        summary.logical_bytes
    );
    assert!(exported == elf);
    let mut sparse = tempfile::tempfile().unwrap();
    capture.export_sparse(&mut sparse, None).unwrap();
    let mut back = Vec::new();
    std::io::Seek::rewind(&mut sparse).unwrap();
    sparse.read_to_end(&mut back).unwrap();
    assert!(back == elf);
    assert_eq!(
        capture.read_logical(summary.logical_bytes - 1, &mut [0; 2]),
        Err(ReadError::OutOfRange {
            offset: summary.logical_bytes - 1,
            end: summary.logical_bytes + 1,
            len: summary.logical_bytes
        })
    );
}

#[test]
fn another_reader_of_the_seekable_format_agrees() {
    let guest = guest();
    let (file, summary) = guest.capture();
    let mut decoder = zeekstd::Decoder::new(std::io::Cursor::new(&file)).unwrap();
    let mut elf = vec![0; summary.logical_bytes as usize];
    decoder.read_exact(&mut elf).unwrap();
    assert!(elf == unzstd(&file));
    // Frames 2 to 4 of the core only.
    let from = 2 * 65_536 + 1234;
    let mut part = vec![0; 150_000];
    decoder.set_offset(from).unwrap();
    decoder.read_exact(&mut part).unwrap();
    assert!(part == elf[from as usize..][..150_000]);
}

#[test]
fn notes_are_listed_and_read() {
    let guest = guest();
    let state = VcpuState {
        version: 1,
        vcpu: 1,
        general: GeneralRegs {
            rip: 0xffff_ffff_8123_4567,
            ..GeneralRegs::default()
        },
        special: Some(SpecialRegs {
            cr3: 0x1000,
            ..SpecialRegs::default()
        }),
        ..VcpuState::default()
    };
    let mut spec = guest.spec();
    spec.notes = vec![
        Note::scxpm(note_types::VCPU_STATE, serde_json::to_vec(&state).unwrap()),
        Note::prstatus(state.to_prstatus()),
        Note::qemu(state.to_qemu().unwrap()),
        Note::vmcoreinfo(b"OSRELEASE=6.18.15-test\n".to_vec()),
        Note::new("NEW", 77, vec![1, 2, 3]),
    ];
    let btf = noise(5, 100_001);
    spec.tail_notes = vec![Note::scxpm(note_types::BTF, btf.clone())];
    let (file, _) = write(&spec, &guest, 1);
    let capture = Capture::open(file).unwrap();
    let listed: Vec<_> = capture
        .notes()
        .iter()
        .map(|n| (n.name.as_str(), n.kind, n.bytes))
        .collect();
    let manifest_bytes = capture.preamble().manifest_bytes;
    let state_bytes = serde_json::to_vec(&state).unwrap().len() as u64;
    assert_eq!(
        listed,
        [
            ("CORE", 1, 336),
            ("QEMU", 0, 440),
            ("VMCOREINFO", 0, 23),
            ("NEW", 77, 3),
            ("SCXPM", 0x5354_0001, manifest_bytes),
            ("SCXPM", 0x5354_0002, state_bytes),
            ("SCXPM", 0x5354_0003, 100_001),
        ]
    );
    assert_eq!(capture.notes_fault(), None);
    assert!(capture.vcpu_states().unwrap() == std::slice::from_ref(&state));
    assert_eq!(capture.prstatus().unwrap(), [state.to_prstatus()]);
    assert_eq!(
        capture.vmcoreinfo().unwrap().as_deref(),
        Some(b"OSRELEASE=6.18.15-test\n".as_slice())
    );
    assert!(capture.btf().unwrap() == Some(btf));
    let new = &capture.notes()[3];
    assert_eq!(capture.read_note(new, 3).unwrap(), [1, 2, 3]);
    assert_eq!(
        capture.read_note(new, 2),
        Err(ReadError::TooLarge {
            what: "note NEW type 0x4d".into(),
            bytes: 3,
            limit: 2
        })
    );
    let manifest = capture.manifest().unwrap();
    assert_eq!((manifest.version, manifest.cpus), (1, 2));
    assert_eq!(capture.preamble().kernel_release, "6.18.15-test");
    assert_eq!(capture.preamble().vcpus, 2);
    assert_eq!(capture.preamble().memory_bytes, 431_072);
    assert!(!capture.preamble().dual && !capture.preamble().degraded);
}

#[test]
fn holes_of_the_source_are_never_touched() {
    let mut guest = Guest::new(vec![(0, vec![0; 1 << 20])]);
    for (at, len) in [(100, 50), (70_000, 10_000), (200_000, 300_000)] {
        guest.memory[0].1[at..at + len].copy_from_slice(&noise(at as u64, len));
    }
    guest.data = Some(vec![
        Extent::new(100, 50),
        Extent::new(70_000, 10_000),
        Extent::new(200_000, 300_000),
    ]);
    let (file, summary) = guest.capture();
    // 16 frames of memory; data lies in frames 0, 1, and 3 to 7.
    assert_eq!((summary.frames, summary.zero_frames), (17, 9));
    let capture = Capture::open(file).unwrap();
    let mut back = vec![1; 1 << 20];
    capture.read_physical(0, &mut back).unwrap();
    assert!(back == guest.memory[0].1);
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let guest = Guest::new(vec![(0, noise(9, 5_000_000)), (64 * MIB, noise(8, 70_001))]);
    let before = Guest::new(vec![
        (0, noise(10, 5_000_000)),
        (64 * MIB, noise(8, 70_001)),
    ]);
    let mut spec = guest.spec();
    spec.early = Some(scx_postmortem_format::capture::EarlySpec {
        source: &before,
        manifest: before.spec().manifest,
        notes: vec![],
    });
    let (one, _) = write(&spec, &guest, 1);
    let (two, _) = write(&spec, &guest, 2);
    let (five, _) = write(&spec, &guest, 5);
    assert!(one == two && two == five);
}

#[test]
fn reads_agree_with_any_cache_from_many_threads() {
    let guest = Guest::new(vec![(0, noise(4, 3_000_000))]);
    let (file, _) = guest.capture();
    for cache_bytes in [0, 5 * 65_536, 64 << 20] {
        let capture = Capture::open_with(&file[..], OpenOptions { cache_bytes }).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (capture, guest) = (&capture, &guest);
                scope.spawn(move || {
                    let mut buf = [0; 5000];
                    for i in 0..500 {
                        let gpa = (i * 7919 * (thread + 1) + i * i * 31) % 2_990_000;
                        capture.read_physical(gpa, &mut buf).unwrap();
                        assert!(buf[..] == guest.memory[0].1[gpa as usize..][..5000]);
                    }
                });
            }
        });
    }
}

#[test]
fn scan_visits_all_that_is_not_zero() {
    let guest = guest();
    let (file, _) = guest.capture();
    let capture = Capture::open(file).unwrap();
    let seen = std::sync::Mutex::new(Vec::new());
    capture
        .scan_memory(&|gpa, bytes| seen.lock().unwrap().push((gpa, bytes.len())))
        .unwrap();
    let mut seen = seen.into_inner().unwrap();
    seen.sort_unstable();
    assert_eq!(
        seen,
        [
            (0x1000, 65_536),
            (0x1000 + 65_536, 65_536),
            (0x1000 + 4 * 65_536, 300_000 - 4 * 65_536),
            (MIB, 65_536),
            (MIB + 65_536, 65_536),
        ]
    );
}

#[test]
fn impossible_specs_are_refused() {
    let source = guest();
    let refuse = |memory: Vec<Extent>| {
        let mut spec = source.spec();
        spec.memory = memory;
        let mut out = std::io::Cursor::new(Vec::new());
        let result = write_capture(&mut out, &spec, &source, &WriteOptions::default());
        assert!(matches!(result, Err(WriteError::Spec(_))), "{result:?}");
        assert!(out.get_ref().is_empty());
    };
    refuse(vec![]);
    refuse(vec![Extent::new(0x1000, 0)]);
    refuse(vec![Extent::new(u64::MAX - 10, 100)]);
    refuse(vec![
        Extent::new(0x3000, 0x1000),
        Extent::new(0x1000, 0x1000),
    ]);
    refuse(vec![
        Extent::new(0x1000, 0x1001),
        Extent::new(0x2000, 0x1000),
    ]);

    let mut spec = source.spec();
    spec.manifest.memory = vec![MemoryRegion {
        gpa: 0x2000,
        bytes: 0x1000,
        kind: MemoryKind::NotCaptured,
        reason: None,
    }];
    let result = write_capture(
        &mut std::io::Cursor::new(Vec::new()),
        &spec,
        &source,
        &WriteOptions::default(),
    );
    assert!(matches!(result, Err(WriteError::Spec(_))), "{result:?}");
    let options = WriteOptions {
        level: 23,
        ..WriteOptions::default()
    };
    let result = write_capture(
        &mut std::io::Cursor::new(Vec::new()),
        &source.spec(),
        &source,
        &options,
    );
    assert!(matches!(result, Err(WriteError::Spec(_))), "{result:?}");
}

#[test]
fn errors_of_source_and_output_and_cancelling_come_through() {
    let guest = Guest::new(vec![(0, noise(1, 5_000_000))]);
    let mut cut = guest.clone();
    cut.memory[0].1.truncate(3_000_000);
    let mut out = std::io::Cursor::new(Vec::new());
    match write_capture(&mut out, &guest.spec(), &cut, &WriteOptions::default()) {
        Err(WriteError::Source { gpa, .. }) => assert_eq!(gpa, 3_000_000 / 65_536 * 65_536),
        other => panic!("{other:?}"),
    }

    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(bytes.len())
                .ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    impl std::io::Seek for Full {
        fn seek(&mut self, _: std::io::SeekFrom) -> std::io::Result<u64> {
            Ok(0)
        }
    }
    match write_capture(
        &mut Full(100_000),
        &guest.spec(),
        &guest,
        &WriteOptions::default(),
    ) {
        Err(WriteError::Output { cause, .. }) => {
            assert_eq!(cause.kind(), std::io::ErrorKind::StorageFull);
        }
        other => panic!("{other:?}"),
    }

    let progress = |p: WriteProgress| {
        assert_eq!(p.total_bytes, 65_536 + 5_000_000);
        if p.done_bytes > 1_000_000 {
            std::ops::ControlFlow::Break(())
        } else {
            std::ops::ControlFlow::Continue(())
        }
    };
    let options = WriteOptions {
        progress: Some(&progress),
        ..WriteOptions::default()
    };
    let result = write_capture(
        &mut std::io::Cursor::new(Vec::new()),
        &guest.spec(),
        &guest,
        &options,
    );
    assert!(
        matches!(result, Err(WriteError::Cancelled { .. })),
        "{result:?}"
    );
}

/// Memory with runs of zeros and of noise, at odd addresses and of odd lengths.
fn any_guest() -> impl Strategy<Value = Guest> {
    let run = (any::<bool>(), any::<u64>(), 1_usize..100_000);
    let segment = (0_u64..100_000, prop::collection::vec(run, 1..4));
    prop::collection::vec(segment, 1..4).prop_map(|segments| {
        let mut gpa = 0;
        let mut guest = Guest::default();
        let mut data = Vec::new();
        for (gap, runs) in segments {
            gpa += gap;
            let start = gpa;
            let mut bytes = Vec::new();
            for (zero, seed, len) in runs {
                if zero {
                    bytes.resize(bytes.len() + len, 0);
                } else {
                    data.push(Extent::new(start + bytes.len() as u64, len as u64));
                    bytes.extend(noise(seed, len));
                }
            }
            gpa += bytes.len() as u64;
            guest.memory.push((start, bytes));
        }
        guest.data = Some(data);
        guest
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_memory_reads_back(
        guest in any_guest(),
        reads in prop::collection::vec((any::<u64>(), 1_usize..200_000), 1..8),
        tail in any::<bool>(),
    ) {
        let mut spec = guest.spec();
        if tail {
            spec.tail_notes.push(Note::scxpm(note_types::CONSOLE, noise(1, 777)));
        }
        let (file, summary) = write(&spec, &guest, 2);
        let elf = unzstd(&file);
        prop_assert_eq!(elf.len() as u64, summary.logical_bytes);
        let capture = Capture::open(&file[..]).unwrap();
        prop_assert!(capture.verify(None).is_sound());
        for (segment, (gpa, bytes)) in capture.segments().iter().zip(&guest.memory) {
            prop_assert_eq!(segment.gpa, *gpa);
            prop_assert!(elf[segment.offset as usize..][..bytes.len()] == bytes[..]);
        }
        for (at, len) in reads {
            for (gpa, bytes) in &guest.memory {
                let at = (at % bytes.len() as u64) as usize;
                let len = len.min(bytes.len() - at);
                let mut back = vec![0xff; len];
                capture.read_physical(gpa + at as u64, &mut back).unwrap();
                prop_assert!(back == bytes[at..at + len]);
            }
        }
    }
}

#[test]
fn the_preamble_is_the_one_of_the_document() {
    let guest = Guest::new(vec![(0, vec![0; 131_072])]);
    let (file, _) = guest.capture();
    let hex: Vec<String> = file[..256]
        .chunks(16)
        .enumerate()
        .map(|(line, bytes)| {
            let bytes: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
            format!("{:02x}  {}", line * 16, bytes.join(" "))
        })
        .collect();
    let document = include_str!("../../../docs/capture-format.md");
    let (_, example) = document.split_once("```hex\n").unwrap();
    let (example, _) = example.split_once("\n```").unwrap();
    assert_eq!(example, hex.join("\n"));
}
