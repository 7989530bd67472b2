use proptest::prelude::*;
use scx_postmortem_format::capture::{
    Absence, Capture, EarlySpec, Extent, Manifest, MemoryKind, MemoryRegion, Note, ReadError,
    VcpuState, note_types,
};

use crate::guest::{Guest, noise, write};

fn dual(late: &Guest, early: &Guest, manifest: Manifest) -> Vec<u8> {
    let mut spec = late.spec();
    let state = VcpuState {
        version: 1,
        vcpu: 3,
        ..VcpuState::default()
    };
    spec.early = Some(EarlySpec {
        source: early,
        manifest,
        notes: vec![Note::scxpm(
            note_types::VCPU_STATE,
            serde_json::to_vec(&state).unwrap(),
        )],
    });
    write(&spec, late, 2).0
}

#[test]
fn both_images_read_back() {
    let late = Guest::new(vec![(0, noise(1, 1_000_000)), (1 << 30, noise(2, 66_001))]);
    let mut early = late.clone();
    early.memory[0].1[5000] ^= 1;
    early.memory[0].1[500_000..600_000].fill(0);
    early.memory[1].1[66_000] ^= 0x80;
    let manifest = Manifest {
        cpus: 4,
        ..Manifest::default()
    };
    let file = dual(&late, &early, manifest);
    let capture = Capture::open(&file[..]).unwrap();
    assert!(capture.preamble().dual);
    assert!(capture.manifest().unwrap().early.is_some());
    let view = capture.early().unwrap();
    // Page 1, pages 122 to 146, and the last one.
    assert_eq!(view.changed_pages(), 1 + 25 + 1);
    for (guest, is_early) in [(&late, false), (&early, true)] {
        for (gpa, bytes) in &guest.memory {
            let mut back = vec![0; bytes.len()];
            if is_early {
                view.read_physical(*gpa, &mut back).unwrap();
            } else {
                capture.read_physical(*gpa, &mut back).unwrap();
            }
            assert!(back == *bytes);
        }
    }
    assert_eq!(view.manifest().unwrap().cpus, 4);
    assert_eq!(view.vcpu_states().unwrap()[0].vcpu, 3);
    assert_eq!(capture.vcpu_states().unwrap(), []);
    assert_eq!(
        view.read_physical(1_000_000, &mut [0]),
        Err(ReadError::Hole { gpa: 1_000_000 })
    );
    assert!(capture.verify(None).is_sound());

    // Stock tools see the late image, and nothing of the early one.
    let single = late.capture().0;
    let single = Capture::open(single).unwrap();
    let elf = zstd::stream::decode_all(&file[..]).unwrap();
    let at = capture.segments()[0].offset as usize;
    assert!(elf[at..][..1_000_000] == late.memory[0].1);
    assert_eq!(
        single.early().unwrap_err(),
        ReadError::NoEarly {
            why: "the capture is not a dual one"
        }
    );
}

#[test]
fn memory_that_only_the_late_image_has() {
    let late = Guest::new(vec![(0, noise(1, 200_000))]);
    let mut early = Guest::new(vec![(0, noise(3, 200_000))]);
    // Reading these would fail.
    early.data = Some(vec![Extent::new(0, 50_000), Extent::new(60_000, 100_000)]);
    early.memory[0].1[50_000..60_000].fill(0);
    early.memory[0].1[160_000..].fill(0);
    let manifest = Manifest {
        memory: vec![MemoryRegion {
            gpa: 45_000,
            bytes: 20_000,
            kind: MemoryKind::NotCaptured,
            reason: Some("the copy was interrupted".into()),
        }],
        ..Manifest::default()
    };
    let file = dual(&late, &early, manifest);
    let capture = Capture::open(file).unwrap();
    let view = capture.early().unwrap();
    let mut buf = vec![0; 45_000];
    view.read_physical(0, &mut buf).unwrap();
    assert!(buf == early.memory[0].1[..45_000]);
    let mut buf = vec![0; 135_000];
    view.read_physical(65_000, &mut buf).unwrap();
    assert!(buf == early.memory[0].1[65_000..]);
    for (gpa, len, first) in [
        (44_999, 2, 45_000),
        (64_999, 10, 64_999),
        (0, 200_000, 45_000),
    ] {
        assert_eq!(
            view.read_physical(gpa, &mut vec![0; len]),
            Err(ReadError::NotCaptured {
                gpa: first,
                cause: Absence::NotTaken
            })
        );
    }
    let known: Vec<_> = view
        .manifest()
        .unwrap()
        .memory
        .iter()
        .filter(|r| r.kind == MemoryKind::Captured)
        .map(|r| (r.gpa, r.bytes))
        .collect();
    assert_eq!(known, [(0, 45_000), (65_000, 135_000)]);
    let mut buf = vec![0; 200_000];
    capture.read_physical(0, &mut buf).unwrap();
    assert!(buf == late.memory[0].1);
}

#[test]
fn images_that_do_not_differ_cost_little() {
    let guest = Guest::new(vec![(0, noise(1, 2_000_000))]);
    let single = guest.capture().0.len();
    let file = dual(&guest, &guest, Manifest::default());
    assert!(file.len() < single + 1000, "{} {single}", file.len());
    let capture = Capture::open(file).unwrap();
    assert_eq!(capture.early().unwrap().changed_pages(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_two_images_read_back(
        lens in prop::collection::vec(1_usize..150_000, 1..4),
        edits in prop::collection::vec((any::<usize>(), 1_usize..20_000, any::<Option<u64>>()), 0..8),
        reads in prop::collection::vec((any::<usize>(), 1_usize..50_000), 1..6),
    ) {
        let mut gpa = 0;
        let mut late = Guest::default();
        for len in lens {
            gpa += 12_345;
            late.memory.push((gpa, noise(gpa, len)));
            gpa += len as u64;
        }
        let mut early = late.clone();
        let segments = early.memory.len();
        for (at, len, fill) in edits {
            let bytes = &mut early.memory[at % segments].1;
            let at = at % bytes.len();
            let len = len.min(bytes.len() - at);
            match fill {
                None => bytes[at..at + len].fill(0),
                Some(seed) => bytes[at..at + len].copy_from_slice(&noise(seed, len)),
            }
        }
        let file = dual(&late, &early, Manifest::default());
        let capture = Capture::open(file).unwrap();
        let view = capture.early().unwrap();
        for (at, len) in reads {
            for ((gpa, early), (_, late)) in early.memory.iter().zip(&late.memory) {
                let at = at % early.len();
                let len = len.min(early.len() - at);
                let mut buf = vec![0; len];
                view.read_physical(gpa + at as u64, &mut buf).unwrap();
                prop_assert!(buf == early[at..at + len]);
                capture.read_physical(gpa + at as u64, &mut buf).unwrap();
                prop_assert!(buf == late[at..at + len]);
            }
        }
    }
}
