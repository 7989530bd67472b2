//! The kernel's types: our index against `btf-rs`, on the BTF of every kernel of the corpus.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::HashMap;

use btf_rs::{Btf as Reference, BtfType, Type};
use scx_postmortem_analyze::kernel::{Btf, TypeId};
use scx_postmortem_tests::corpus;

/// Everything that our index says about a struct or union, next to what btf-rs says.
fn compare(ours: &Btf, id: u32, reference: &Reference, theirs: &btf_rs::Struct) -> usize {
    let ty = ours.ty(TypeId(id)).unwrap();
    assert_eq!(
        ours.name(&ty),
        reference.resolve_name(theirs).unwrap_or_default()
    );
    assert_eq!(
        ours.size_of(TypeId(id)),
        Some(u64::try_from(theirs.size()).unwrap())
    );
    let mut members = 0;
    let mut mine = ours.members(TypeId(id));
    for their in &theirs.members {
        let my = mine.next().unwrap();
        assert_eq!(my.name, reference.resolve_name(their).unwrap_or_default());
        assert_eq!(
            my.bit_offset,
            their.bit_offset(),
            "{}.{}",
            ours.name(&ty),
            my.name
        );
        assert_eq!(my.bits, their.bitfield_size().unwrap_or(0), "{}", my.name);
        assert_eq!(Some(my.ty.0), their.get_type_id());
        members += 1;
    }
    assert!(mine.next().is_none());
    members
}

#[test]
fn every_struct_of_every_corpus_kernel_is_as_btf_rs_reads_it() {
    let mut seen = HashMap::new();
    for entry in corpus().unwrap() {
        let kernel = entry.kernel().unwrap();
        let release = kernel.release().to_owned();
        if seen.contains_key(&release) {
            continue;
        }
        let ours = &kernel.btf;
        let reference = Reference::from_bytes(ours.blob()).unwrap();
        let (mut structs, mut members) = (0, 0);
        for id in 1..u32::try_from(ours.len()).unwrap() {
            match reference.resolve_type_by_id(id).unwrap() {
                Type::Struct(theirs) | Type::Union(theirs) => {
                    members += compare(ours, id, &reference, &theirs);
                    structs += 1;
                }
                _ => {}
            }
        }
        assert!(structs > 10_000, "{release}: {structs} structs");
        assert!(members > 60_000, "{release}: {members} members");
        seen.insert(release, structs);
    }
    assert!(seen.len() >= 2, "the corpus has {} kernels", seen.len());
}

#[test]
fn names_lead_to_the_types_that_btf_rs_finds() {
    for entry in corpus().unwrap() {
        let kernel = entry.kernel().unwrap();
        let reference = Reference::from_bytes(kernel.btf.blob()).unwrap();
        for name in [
            "task_struct",
            "rq",
            "scx_sched",
            "sched_ext_entity",
            "bpf_map",
            "cgroup",
        ] {
            let ours = kernel.btf.find(&format!("struct {name}")).unwrap();
            let theirs = reference.resolve_ids_by_name(name).unwrap();
            assert!(
                theirs.contains(&ours.0),
                "{name}: {ours:?}, btf-rs has {theirs:?}"
            );
        }
        assert!(kernel.btf.find("struct no_such_struct_anywhere").is_err());
        assert!(kernel.btf.find("union task_struct").is_err());
    }
}
