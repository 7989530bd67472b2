//! Files that are cut, damaged, foreign, from the future or made to do harm.

use proptest::prelude::*;
use scx_postmortem_format::capture::{
    Absence, Capture, EarlySpec, Manifest, Note, OpenError, ReadError, RecoveredCause, note_types,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::guest::{Guest, noise, write};

/// A dual capture of three small segments in little more than a kilobyte.
fn small() -> (Guest, Guest, Vec<u8>) {
    let mut pages = vec![0x11; 70_000];
    pages[66_000..66_100].copy_from_slice(&noise(7, 100));
    let late = Guest::new(vec![
        (0x1000, pages),
        (1 << 20, vec![0; 131_072]),
        (1 << 30, vec![0x22; 5000]),
    ]);
    let mut early = late.clone();
    early.memory[0].1[40_000] = 1;
    early.memory[1].1[100_000..100_010].fill(9);
    let mut spec = late.spec();
    spec.notes = vec![Note::vmcoreinfo(b"OSRELEASE=6.18\n".to_vec())];
    spec.tail_notes = vec![Note::scxpm(note_types::BTF, vec![0x9f; 1000])];
    spec.early = Some(EarlySpec {
        source: &early,
        manifest: Manifest::default(),
        notes: vec![],
    });
    let file = write(&spec, &late, 1).0;
    drop(spec);
    (late, early, file)
}

type Read<'a> = dyn Fn(u64, &mut [u8]) -> Result<(), ReadError> + 'a;

/// Reads everything that a capture has. Panics at a byte that is not right; returns whether all
/// was there.
fn read_all(capture: &Capture<&[u8]>, late: &Guest, early: &Guest) -> bool {
    let mut complete = true;
    let mut check = |read: &Read<'_>, guest: &Guest| {
        for (gpa, bytes) in &guest.memory {
            for (n, expected) in bytes.chunks(10_000).enumerate() {
                let mut buf = vec![0xee; expected.len()];
                match read(gpa + n as u64 * 10_000, &mut buf) {
                    Ok(()) => assert!(buf == expected),
                    Err(_) => complete = false,
                }
            }
        }
    };
    check(&|gpa, buf| capture.read_physical(gpa, buf), late);
    match capture.early() {
        Ok(view) => {
            check(&|gpa, buf| view.read_physical(gpa, buf), early);
            complete &= view.manifest().is_ok() && view.notes().len() == 1;
        }
        Err(_) => complete = false,
    }
    match capture.vmcoreinfo() {
        Ok(Some(text)) => assert_eq!(text, b"OSRELEASE=6.18\n"),
        _ => complete = false,
    }
    match capture.btf() {
        Ok(Some(btf)) => assert_eq!(btf, vec![0x9f; 1000]),
        _ => complete = false,
    }
    complete &= capture.notes().len() == 3 && capture.notes_fault().is_none();
    complete &= capture.manifest().is_ok_and(|m| m.cpus == 2);
    complete
}

#[test]
fn a_flipped_bit_is_seen_or_harmless() {
    let (late, early, file) = small();
    assert!(file.len() < 2500, "{}", file.len());
    let mut seen = 0;
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut bad = file.clone();
            bad[at] ^= 1 << bit;
            let Ok(capture) = Capture::open(&bad[..]) else {
                seen += 1;
                continue;
            };
            let complete = read_all(&capture, &late, &early);
            let report = capture.verify(None);
            // What a reader misses, `verify` reports.
            assert!(complete || !report.is_sound(), "byte {at} bit {bit}");
            seen += usize::from(!report.is_sound());
        }
    }
    // zstd has bits that no decoder looks at, and several encodings of the same bytes.
    let harmless = file.len() * 8 - seen;
    assert!(harmless < file.len() * 8 / 200, "{harmless}");
}

#[test]
fn every_truncation_opens_or_says_why() {
    let (late, early, file) = small();
    let mut held_before = 0;
    for len in 0..file.len() {
        let cut = &file[..len];
        match Capture::open(cut) {
            Ok(capture) => {
                let recovered = capture.recovered().unwrap();
                assert_eq!(recovered.cause, RecoveredCause::NoTable);
                assert!(!capture.verify(None).is_sound());
                let held = capture.logical_bytes();
                assert!(held >= held_before);
                held_before = held;
                let logical = capture.preamble().logical_bytes;
                assert_eq!(recovered.missing_bytes, logical - held);
                let complete = read_all(&capture, &late, &early);
                assert!(!complete || recovered.missing_bytes == 0);
                for segment in capture.segments() {
                    let held = capture.held_bytes(segment);
                    let mut buf = vec![0; held as usize];
                    capture.read_physical(segment.gpa, &mut buf).unwrap();
                    if held < segment.bytes {
                        assert_eq!(
                            capture.read_physical(segment.gpa + held, &mut [0]),
                            Err(ReadError::NotCaptured {
                                gpa: segment.gpa + held,
                                cause: Absence::Truncated
                            })
                        );
                    }
                }
            }
            Err(OpenError::Truncated { found, needed, .. }) => {
                assert_eq!(found, len as u64);
                assert!(needed > found, "{needed} {found}");
            }
            Err(OpenError::NotACapture { .. }) => assert_eq!(len, 0),
            Err(other) => panic!("{len}: {other}"),
        }
    }
    // All but the table: nothing is lost.
    let capture = Capture::open(&file[..file.len() - 1]).unwrap();
    assert!(read_all(&capture, &late, &early));
    assert_eq!(capture.recovered().unwrap().missing_bytes, 0);
}

#[test]
fn bytes_after_the_end_do_not_hide_the_capture() {
    let (late, early, mut file) = small();
    let len = file.len();
    file.extend_from_slice(b"appended");
    let capture = Capture::open(&file[..]).unwrap();
    assert!(read_all(&capture, &late, &early));
    let recovered = capture.recovered().unwrap();
    assert_eq!(recovered.cause, RecoveredCause::NoTable);
    assert!(recovered.stopped_at < len as u64);
}

#[test]
fn foreign_files_are_named() {
    let found = |file: &[u8]| match Capture::open(file) {
        Err(OpenError::NotACapture { found }) => found,
        other => panic!("{other:?}"),
    };
    assert_eq!(found(b""), "an empty file");
    assert_eq!(found(b"\x7fELF\x02\x01\x01 and so on"), "an ELF file");
    let plain = zstd::bulk::compress(b"hello", 1).unwrap();
    assert_eq!(found(&plain), "a zstd file that is no capture");
    assert_eq!(found(b"text"), "bytes 74 65 78 74");
    assert_eq!(
        Capture::open(&b"\x5c\x2a\x4d\x18"[..]).unwrap_err(),
        OpenError::Truncated {
            part: "the preamble",
            needed: 256,
            found: 4
        }
    );
}

/// Changes a preamble and makes its hash right again.
fn edit_preamble(file: &[u8], edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut file = file.to_vec();
    edit(&mut file[..248]);
    let hash = xxh3_64(&file[..248]);
    file[248..256].copy_from_slice(&hash.to_le_bytes());
    file
}

#[test]
fn a_newer_major_version_is_refused_and_a_minor_one_read() {
    let (late, early, file) = small();
    let newer = edit_preamble(&file, |p| p[16..20].copy_from_slice(&[2, 0, 7, 0]));
    let error = Capture::open(&newer[..]).unwrap_err();
    assert_eq!(
        error,
        OpenError::NewerVersion {
            major: 2,
            minor: 7,
            supported: 1
        }
    );
    assert_eq!(
        error.to_string(),
        "the capture has container version 2.7, this program reads up to 1.x; use a newer release, or `zstd -d` to get the plain ELF core"
    );
    let minor = edit_preamble(&file, |p| p[18] = 9);
    let capture = Capture::open(&minor[..]).unwrap();
    assert_eq!(capture.preamble().minor, 9);
    assert!(read_all(&capture, &late, &early));
}

#[test]
fn a_guest_of_another_architecture_is_named_and_refused() {
    let (.., file) = small();
    let arm = edit_preamble(&file, |p| p[20..22].copy_from_slice(&183u16.to_le_bytes()));
    let error = Capture::open(&arm[..]).unwrap_err();
    assert_eq!(error, OpenError::OtherMachine { machine: 183 });
    assert_eq!(
        error.to_string(),
        "the capture is of a guest with ELF machine 183, this program reads x86-64 (62); `zstd -d` gives the plain ELF core for other tools"
    );
}

const PREAMBLE: usize = 256;
const INTEGRITY: usize = 80;

/// Changes the seek table of a capture and makes all hashes right again.
fn edit_table(file: &[u8], edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut file = file.to_vec();
    let len = file.len();
    let count = u32::from_le_bytes(file[len - 9..len - 5].try_into().unwrap()) as usize;
    let at = len - 17 - count * 8;
    edit(&mut file[at..]);
    let hash = xxh3_64(&file[at..]);
    let record = &mut file[at - INTEGRITY..at];
    record[56..64].copy_from_slice(&hash.to_le_bytes());
    let hash = xxh3_64(&record[..INTEGRITY - 8]);
    record[INTEGRITY - 8..].copy_from_slice(&hash.to_le_bytes());
    file
}

#[test]
fn hostile_seek_tables_are_not_believed() {
    let (late, early, file) = small();
    let why = |file: &[u8]| {
        let capture = Capture::open(file).unwrap();
        // The frames themselves are fine, so a search finds all of them.
        assert!(read_all(&capture, &late, &early));
        match &capture.recovered().unwrap().cause {
            RecoveredCause::DamagedTable(why) => why.clone(),
            other => panic!("{other:?}"),
        }
    };
    let entry = |n: usize| 8 + n * 8;
    let set = |t: &mut [u8], at: usize, value: u32| {
        t[at..at + 4].copy_from_slice(&value.to_le_bytes());
    };
    let get = |t: &[u8], at: usize| u32::from_le_bytes(t[at..at + 4].try_into().unwrap());

    let count_at = file.len() - 9;
    let mut bad = file.clone();
    bad[count_at..count_at + 4].fill(0xff);
    assert_eq!(
        why(&bad),
        "the seek table claims more frames than the file has room for"
    );
    let mut bad = file.clone();
    bad[count_at] -= 1;
    assert_eq!(
        why(&bad),
        "no intact integrity record stands before the seek table"
    );
    let mut bad = file.clone();
    let last_entry = count_at - 3;
    bad[last_entry] ^= 1;
    assert_eq!(
        why(&bad),
        "the seek table's hash does not match the integrity record"
    );
    let sizes = "the seek table's sizes are not those of a capture";
    let sum = "the frame sizes do not add up to the file's length";
    // Nothing is fetched by such a length, whether or not the file is as long.
    let long = "the seek table has a frame that is longer than 64 KiB can become";
    assert_eq!(
        why(&edit_table(&file, |t| set(t, entry(1), u32::MAX))),
        long
    );
    let longest = 65_536 + 65_536 / 256 + 32 + 24;
    assert_eq!(
        why(&edit_table(&file, |t| set(t, entry(1), longest + 1))),
        long
    );
    assert_eq!(why(&edit_table(&file, |t| set(t, entry(1), longest))), sum);
    assert_eq!(why(&edit_table(&file, |t| set(t, entry(1), 0))), sizes);
    assert_eq!(why(&edit_table(&file, |t| set(t, entry(0), 300))), sizes);
    assert_eq!(
        why(&edit_table(&file, |t| set(t, entry(2) + 4, u32::MAX))),
        sizes
    );
    let descriptor = file.len() - 5;
    let table_at = |t: &[u8]| t.len() - 5;
    assert_eq!(file[descriptor], 0);
    assert_eq!(
        why(&edit_table(&file, |t| {
            let at = table_at(t);
            t[at] = 0x80;
        })),
        "the seek table's descriptor is not 0"
    );
    // Sizes that add up, but lead to wrong places: seen when the frames are read.
    let bad = edit_table(&file, |t| {
        let (a, b) = (get(t, entry(2)), get(t, entry(3)));
        set(t, entry(2), a - 1);
        set(t, entry(3), b + 1);
    });
    let capture = Capture::open(&bad[..]).unwrap();
    assert!(!read_all(&capture, &late, &early));
    let report = capture.verify(None);
    let numbers: Vec<_> = report.bad.iter().map(|bad| bad.frame).collect();
    assert_eq!(numbers, [2, 3]);
    assert_eq!(report.bad[0].memory, Some((0x1000, 65_536)));
    assert_eq!(
        report.bad[1].memory,
        Some((0x1000 + 65_536, 70_000 - 65_536))
    );
}

#[test]
fn hostile_preambles_cost_nothing() {
    let (_, _, file) = small();
    let u64_at = |p: &mut [u8], at: usize, value: u64| {
        p[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    for logical in [0, 1, u64::MAX, 1 << 62, 65_536] {
        let bad = edit_preamble(&file, |p| u64_at(p, 40, logical));
        // Whatever it is taken for, it is not taken for whole.
        if let Ok(capture) = Capture::open(&bad[..]) {
            assert!(capture.recovered().is_some());
            assert!(capture.logical_bytes() < 1 << 20);
        }
    }
    for (offset, bytes) in [
        (0, u64::MAX),
        (u64::MAX, 100),
        (u64::MAX, u64::MAX),
        (64, 1 << 40),
    ] {
        let bad = edit_preamble(&file, |p| {
            u64_at(p, 56, offset);
            u64_at(p, 64, bytes);
        });
        let capture = Capture::open(&bad[..]).unwrap();
        assert!(capture.manifest().is_err());
        assert!(!capture.verify(None).is_sound());
    }
    let bad = edit_preamble(&file, |p| p[4..8].fill(0xff));
    assert!(matches!(
        Capture::open(&bad[..]),
        Err(OpenError::Corrupt {
            part: "the preamble",
            ..
        })
    ));
    let bad = edit_preamble(&file, |p| p[32] = 1);
    let error = Capture::open(&bad[..]).unwrap_err().to_string();
    assert_eq!(
        error,
        "the capture is corrupt: the preamble at byte 0: expected frames of 65536 bytes, found 65537; copy the file again, or try `zstd -d` to get what the ELF core still holds"
    );
}

/// A capture around any bytes, made after the specification and not by the crate.
fn assemble(core: &[u8], early: &[u8]) -> Vec<u8> {
    fn skippable(mark: &[u8; 8], payload: &[u8]) -> Vec<u8> {
        let mut out = 0x184D_2A5C_u32.to_le_bytes().to_vec();
        out.extend((payload.len() as u32 + 8).to_le_bytes());
        out.extend(mark);
        out.extend(payload);
        out
    }
    fn hashed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        // The hash is part of the payload, and covers the length.
        let len = bytes.len() as u32 - 8;
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        let at = bytes.len() - 8;
        let hash = xxh3_64(&bytes[..at]);
        bytes[at..].copy_from_slice(&hash.to_le_bytes());
        bytes
    }
    let frame = |bytes: &[u8]| {
        let mut encoder = zstd::bulk::Compressor::new(1).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.compress(bytes).unwrap()
    };
    let mut preamble = vec![1, 0, 0, 0, 62, 0, 0, 0];
    preamble.extend(u32::from(!early.is_empty()).to_le_bytes());
    preamble.extend([0; 4]);
    preamble.extend(65_536_u32.to_le_bytes());
    preamble.extend([0; 4]);
    preamble.extend((core.len() as u64).to_le_bytes());
    preamble.resize(PREAMBLE - 24, 0);
    let mut file = hashed(skippable(b"SCXPMCAP", &preamble));
    assert_eq!(file.len(), PREAMBLE);
    let mut table: Vec<(u32, u32)> = vec![(PREAMBLE as u32, 0)];
    for chunk in core.chunks(65_536) {
        let bytes = frame(chunk);
        table.push((bytes.len() as u32, chunk.len() as u32));
        file.extend(bytes);
    }
    let data_frames = table.len() as u64 - 1;
    for (number, chunk) in early.chunks(65_536).enumerate() {
        let mut payload = (number as u64).to_le_bytes().to_vec();
        payload.extend(frame(chunk));
        let bytes = skippable(b"SCXPMEAR", &payload);
        table.push((bytes.len() as u32, 0));
        file.extend(bytes);
    }
    let early_chunks = table.len() as u64 - 1 - data_frames;
    table.push((INTEGRITY as u32, 0));
    let mut seek = 0x184D_2A5E_u32.to_le_bytes().to_vec();
    seek.extend((table.len() as u32 * 8 + 9).to_le_bytes());
    for (compressed, decompressed) in &table {
        seek.extend(compressed.to_le_bytes());
        seek.extend(decompressed.to_le_bytes());
    }
    seek.extend((table.len() as u32).to_le_bytes());
    seek.push(0);
    seek.extend(0x8F92_EAB1_u32.to_le_bytes());
    let mut record = Vec::new();
    for field in [
        (file.len() + INTEGRITY + seek.len()) as u64,
        core.len() as u64,
        data_frames,
        early_chunks,
        early.len() as u64,
        xxh3_64(&seek),
    ] {
        record.extend(field.to_le_bytes());
    }
    record.extend([0; 8]);
    let record = hashed(skippable(b"SCXPMEND", &record));
    assert_eq!(record.len(), INTEGRITY);
    file.extend(record);
    file.extend(seek);
    file
}

/// An ELF core with these program headers: type, offset, address, length in file, in memory.
fn elf(headers: &[[u64; 5]], len: usize) -> Vec<u8> {
    let mut core = b"\x7fELF\x02\x01\x01".to_vec();
    core.resize(16, 0);
    core.extend([4, 0, 62, 0, 1, 0, 0, 0]);
    core.extend(0_u64.to_le_bytes());
    core.extend(64_u64.to_le_bytes());
    core.resize(52, 0);
    core.extend([64, 0, 56, 0]);
    core.extend((headers.len() as u16).to_le_bytes());
    core.resize(64, 0);
    for [kind, offset, gpa, file, memory] in headers {
        core.extend((*kind as u32).to_le_bytes());
        core.extend([0; 4]);
        for field in [*offset, 0, *gpa, *file, *memory, 0] {
            core.extend(field.to_le_bytes());
        }
    }
    core.resize(len.max(core.len()), 0);
    core
}

const LOAD: u64 = 1;
const NOTE: u64 = 4;

#[test]
fn a_file_made_after_the_specification_opens() {
    let mut core = elf(
        &[[NOTE, 200, 0, 20, 0], [LOAD, 65_536, 0x5000, 4096, 4096]],
        65_536,
    );
    core[200..220].copy_from_slice(b"\x04\0\0\0\x03\0\0\0\x4d\0\0\0NEW\0abc\0");
    core.extend(noise(1, 4096));
    let mut early = b"SCXPMDLT".to_vec();
    early.extend([1, 0, 0, 0, 0, 0x10, 0, 0]);
    for field in [65_536 + 4096_u64, 64, 0, 64, 1, 65_536] {
        early.extend(field.to_le_bytes());
    }
    early.extend(16_u32.to_le_bytes());
    early.resize(65_536, 0);
    early.extend(vec![0x55; 4096]);
    let file = assemble(&core, &early);
    let capture = Capture::open(&file[..]).unwrap();
    assert!(capture.recovered().is_none());
    assert_eq!(capture.notes().len(), 1);
    assert_eq!(capture.read_note(&capture.notes()[0], 10).unwrap(), b"abc");
    let mut buf = vec![0; 4096];
    capture.read_physical(0x5000, &mut buf).unwrap();
    assert!(buf == noise(1, 4096));
    capture
        .early()
        .unwrap()
        .read_physical(0x5000, &mut buf)
        .unwrap();
    let expected: Vec<u8> = noise(1, 4096).iter().map(|b| b ^ 0x55).collect();
    assert!(buf == expected);
    assert_eq!(zstd::stream::decode_all(&file[..]).unwrap(), core);
}

#[test]
fn hostile_elf_headers_are_refused() {
    let refuse = |headers: &[[u64; 5]]| {
        let file = assemble(&elf(headers, 200_000), &[]);
        match Capture::open(&file[..]) {
            Err(OpenError::Corrupt { part, why, .. }) => {
                assert_eq!(part, "the ELF header");
                why
            }
            other => panic!("{other:?}"),
        }
    };
    let load = |offset, gpa, bytes| [LOAD, offset, gpa, bytes, bytes];
    let max = u64::MAX;
    assert!(refuse(&[load(65_536, 0, 1 << 40)]).contains("points to"));
    assert!(refuse(&[load(max, 0, 1)]).contains("points to"));
    assert!(refuse(&[[NOTE, 100, 0, max, 0]]).contains("points to"));
    let order = "is empty, overlaps or is not in order";
    assert!(refuse(&[load(65_536, 0, 0)]).contains(order));
    assert!(refuse(&[load(65_536, max - 3, 5)]).contains(order));
    assert!(refuse(&[[LOAD, 65_536, 0, 10, 20]]).contains(order));
    assert!(refuse(&[load(65_536, 9000, 10), load(131_072, 0, 10)]).contains(order));
    assert!(refuse(&[load(65_536, 0, 10), load(131_072, 9, 10)]).contains(order));
    assert!(refuse(&[load(100, 0, 10)]).contains("does not begin with a frame"));
    assert!(refuse(&[load(65_536, 0, 10), load(65_536, 100, 10)]).contains("share bytes"));

    let mut core = elf(&[], 1000);
    core[56..58].fill(0xff);
    let many = Capture::open(assemble(&core, &[])).unwrap_err().to_string();
    assert!(
        many.contains("expected up to 32770 program headers, found 65535"),
        "{many}"
    );
    core[56..58].copy_from_slice(&[0, 1]);
    assert!(Capture::open(assemble(&core, &[])).is_err());
    core[0] = 0;
    let no_elf = Capture::open(assemble(&core, &[])).unwrap_err().to_string();
    assert!(
        no_elf.contains("expected a 64-bit little-endian ELF header"),
        "{no_elf}"
    );
}

#[test]
fn hostile_notes_end_the_list() {
    let list = |note: &[u8], len: u64| {
        let mut core = elf(&[[NOTE, 200, 0, len, 0]], 2_000_000);
        core[200..200 + note.len()].copy_from_slice(note);
        let capture = Capture::open(assemble(&core, &[])).unwrap();
        let fault = capture.notes_fault().map(ToString::to_string);
        (capture.notes().len(), fault.unwrap_or_default())
    };
    let good = b"\x04\0\0\0\x03\0\0\0\x4d\0\0\0NEW\0abc\0";
    assert_eq!(list(good, 20), (1, String::new()));
    let (count, fault) = list(good, 25);
    assert_eq!(count, 1);
    assert!(
        fault.contains("cut off by the end of the segment"),
        "{fault}"
    );
    let (count, fault) = list(b"\x04\0\0\0\xff\xff\xff\xff\x4d\0\0\0NEW\0", 20);
    assert_eq!(count, 0);
    assert!(fault.contains("longer than its segment"), "{fault}");
    let (count, fault) = list(b"\xff\xff\xff\xff\0\0\0\0\x4d\0\0\0NEW\0", 20);
    assert_eq!(count, 0);
    assert!(fault.contains("name is longer"), "{fault}");
    // 12 zero bytes are an empty note.
    let (count, fault) = list(&[], 1_900_000);
    assert_eq!(count, 65_536);
    assert!(fault.contains("more notes"), "{fault}");
}

#[test]
fn hostile_early_streams_are_refused() {
    let core = elf(&[[LOAD, 65_536, 0, 40_960, 40_960]], 65_536 + 40_960);
    let open = |fields: [u64; 6], index: &[u32], bytes: u64| {
        let mut early = b"SCXPMDLT".to_vec();
        early.extend([1, 0, 0, 0, 0, 0x10, 0, 0]);
        for field in fields {
            early.extend(field.to_le_bytes());
        }
        for page in index {
            early.extend(page.to_le_bytes());
        }
        early.resize(bytes as usize, 0);
        let file = assemble(&core, &early);
        let capture = Capture::open(&file[..]).unwrap();
        assert!(capture.read_physical(0, &mut [0; 4096]).is_ok());
        let result = capture.early().map(|view| view.changed_pages());
        result.map_err(|e| e.to_string())
    };
    let two = 65_536 + 8192;
    let (pages, max) = (65_536, u64::MAX);
    assert_eq!(open([two, 64, 0, 64, 2, pages], &[16, 17], two), Ok(2));
    let misfit = |fields, bytes| {
        let why = open(fields, &[16, 17], bytes).unwrap_err();
        assert!(why.contains("do not fit"), "{why}");
    };
    misfit([two, 64, 0, 64, 3, pages], two);
    misfit([two, 64, 0, 64, max / 4096, pages], two);
    misfit([two, 64, max, 64, 2, pages], two);
    misfit([two, 64, 0, max, 2, pages], two);
    misfit([two, 64, 0, 64, 2, pages - 8], two);
    misfit([two, 64, 0, 64, 2, pages], two + 1);
    let order = open([two, 64, 0, 64, 2, pages], &[17, 17], two).unwrap_err();
    assert!(order.contains("ascending"), "{order}");
    let lost = open([two + 1, 64, 0, 64, 2, pages], &[16, 17], two).unwrap_err();
    assert!(lost.contains("truncated"), "{lost}");
    let many = 65_536 + 30 * 4096;
    let more = open([many, 64, 0, 64, 30, pages], &[], many).unwrap_err();
    assert!(more.contains("more pages than the late image"), "{more}");
}

#[test]
fn a_damaged_table_with_a_truncated_file_still_gives_the_prefix() {
    let guest = Guest::new(vec![(0, noise(1, 1_000_000))]);
    let (file, _) = guest.capture();
    let cut = &file[..file.len() / 2];
    let capture = Capture::open(cut).unwrap();
    let recovered = capture.recovered().unwrap();
    assert_eq!(recovered.frames_expected, 17);
    assert_eq!(recovered.frames_found, 8);
    let held = capture.held_bytes(&capture.segments()[0]);
    assert_eq!(held, 7 * 65_536);
    let mut buf = vec![0; held as usize];
    capture.read_physical(0, &mut buf).unwrap();
    assert!(buf == guest.memory[0].1[..held as usize]);
    let mut part = Vec::new();
    assert_eq!(capture.export(&mut part, None).unwrap(), 8 * 65_536);
    assert!(recovered.to_string().contains("found 8 of 17 frames"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_damage_is_survived(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
        fix_preamble in any::<bool>(),
        fix_table in any::<bool>(),
    ) {
        let (late, early, file) = small();
        let mut bad = file;
        for (at, value) in edits {
            let at = at.index(bad.len());
            bad[at] = value;
        }
        if fix_table && bad[bad.len() - 9..bad.len() - 5] == [13, 0, 0, 0] {
            bad = edit_table(&bad, |_| {});
        }
        bad.truncate(256 + cut.index(bad.len() * 2).min(bad.len() - 256));
        if fix_preamble {
            bad = edit_preamble(&bad, |p| p[..16].copy_from_slice(b"\x5c\x2a\x4d\x18\xf8\0\0\0SCXPMCAP"));
        }
        if let Ok(capture) = Capture::open(&bad[..]) {
            // Changed headers may place the right bytes elsewhere, so only that it ends counts.
            let mut buf = vec![0; 70_000];
            for (gpa, _) in late.memory.iter().chain(&early.memory) {
                let _ = capture.read_physical(*gpa, &mut buf);
                if let Ok(view) = capture.early() {
                    let _ = view.read_physical(*gpa, &mut buf);
                }
            }
            let _ = capture.notes();
            let _ = capture.vmcoreinfo();
            let _ = capture.verify(None);
            let _ = capture.export(&mut std::io::sink(), None);
        }
    }
}
