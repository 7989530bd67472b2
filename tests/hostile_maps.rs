//! BPF maps that lie: in a copy of a real guest's memory one structure of a map is changed, and
//! only that map may suffer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use scx_postmortem_analyze::addr::{Gpa, Kva};
use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::source::Image;
use scx_postmortem_format::report::{FailureDumpMap, FailureDumpReport, RenderedValue};
use scx_postmortem_tests::{Entry, Patched, entry};

/// A guest with a hash `by_pid`, the sections of an object `demo`, and an `arena`.
const GUEST: &str = "maps-7.3";

fn guest() -> (Entry, Kernel, FailureDumpReport) {
    let entry = entry(GUEST).unwrap();
    let kernel = entry.kernel().unwrap();
    let report = analysis::analyze(&kernel, &Options::default());
    (entry, kernel, report)
}

fn map<'r>(report: &'r FailureDumpReport, name: &str) -> &'r FailureDumpMap {
    report.maps.iter().find(|map| map.name == name).unwrap()
}

/// The report of the guest with these bytes changed.
fn patched(entry: &Entry, bytes: &[(Kva, &[u8])]) -> FailureDumpReport {
    analysis::analyze(&entry.patched(bytes, &[]).unwrap(), &Options::default())
}

/// That all maps but those that `suffer` accepts are as they were.
fn others_stand(
    sound: &FailureDumpReport,
    changed: &FailureDumpReport,
    suffer: impl Fn(&FailureDumpMap) -> bool,
) {
    let mut compared = 0;
    for before in sound.maps.iter().filter(|map| !suffer(map)) {
        let after = changed.maps.iter().find(|m| m.map_kva == before.map_kva);
        assert_eq!(after, Some(before), "{}", before.name);
        compared += 1;
    }
    assert!(compared > 0, "nothing left to compare");
    assert_eq!(sound.task_enrichments, changed.task_enrichments);
}

#[test]
fn a_corrupt_header_spoils_one_map() {
    let (entry, kernel, sound) = guest();
    let at = Kva(map(&sound, "by_pid").map_kva);
    let header = kernel.object("struct bpf_map", at).unwrap();
    for (member, value, words) in [
        ("map_type", 99u32, "unknown map_type 99"),
        ("map_type", 33, "vm_struct * at"),
        ("value_size", u32::MAX, "4294967295 bytes"),
        ("key_size", u32::MAX, "not plausible"),
        ("id", 7777, "its place in map_idr"),
        ("btf_value_type_id", u32::MAX, ""),
    ] {
        let place = header.member(member).unwrap().address();
        let report = patched(&entry, &[(place, &value.to_le_bytes())]);
        let found = report.maps.iter().find(|m| m.map_kva == at.0).unwrap();
        let error = found.error.clone().unwrap_or_default();
        assert!(error.contains(words), "{member}: {error:?}");
        others_stand(&sound, &report, |m| m.map_kva == at.0);
    }
}

#[test]
fn a_cycle_in_a_bucket_ends_that_bucket() {
    let (entry, kernel, sound) = guest();
    let before = map(&sound, "by_pid");
    let htab = kernel
        .object("struct bpf_htab", Kva(before.map_kva))
        .unwrap();
    let count = htab.member("n_buckets").unwrap().u64().unwrap();
    let first = htab.member("buckets").unwrap().deref().unwrap();
    let node = (0..count)
        .map(|i| {
            kernel
                .read_ptr(first.address().add(i * first.size().unwrap()))
                .unwrap()
        })
        .find(|node| node.0 & 1 == 0 && !node.is_null())
        .unwrap();
    let report = patched(&entry, &[(node, &node.0.to_le_bytes())]);
    let after = map(&report, "by_pid");
    let error = after.error.clone().unwrap();
    assert!(error.contains("comes back to"), "{error}");
    // Its other buckets are still there.
    let lost = before.entries.len() - after.entries.len();
    assert!(lost < before.entries.len() / 2, "{lost}");
    assert!(after.entries.iter().all(|e| before.entries.contains(e)));
    others_stand(&sound, &report, |m| m.name == "by_pid");
}

#[test]
fn types_that_are_garbage_leave_the_bytes() {
    let (entry, kernel, sound) = guest();
    let header = kernel
        .object("struct bpf_map", Kva(map(&sound, "by_pid").map_kva))
        .unwrap();
    let btf = header.member("btf").unwrap();
    let of_map = |m: &FailureDumpMap| {
        let other = kernel.object("struct bpf_map", Kva(m.map_kva)).unwrap();
        other.member("btf").unwrap().ptr() == btf.ptr()
    };
    let data = btf.deref().unwrap().member("data").unwrap();
    let data = data.ptr().unwrap();
    let report = patched(&entry, &[(data, &[0xff; 64])]);
    let before = map(&sound, "by_pid");
    let after = map(&report, "by_pid");
    assert!(after.error.clone().unwrap().contains("BTF"), "{after:?}");
    assert_eq!(after.entries.len(), before.entries.len());
    for (after, before) in after.entries.iter().zip(&before.entries) {
        assert_eq!(after.value_hex, before.value_hex);
        assert_eq!(after.key_hex, before.key_hex);
        assert_eq!((&after.key, &after.value), (&None, &None));
    }
    let bss = map(&report, "demo.bss").value.clone().unwrap();
    assert!(matches!(bss, RenderedValue::Bytes { .. }), "{bss:?}");
    // Types are how arena pointers are followed; everything else of other maps stands.
    let arena = |m: &FailureDumpMap| m.map_type == 33;
    others_stand(&sound, &report, |m| of_map(m) || arena(m));
}

#[test]
fn an_arena_page_outside_memory_is_missed_alone() {
    let (entry, kernel, sound) = guest();
    let before = map(&sound, "arena").arena.clone().unwrap();
    let page = &before.pages[1];
    let at = Kva(before.kern_vm_start + (page.user_addr & 0xffff_ffff));
    // Down the page tables to the entry that maps the page.
    let mut table = kernel.page_table.root.0;
    let levels: &[u32] = if kernel.page_table.five_levels {
        &[48, 39, 30, 21]
    } else {
        &[39, 30, 21]
    };
    for shift in levels {
        let mut raw = [0; 8];
        let entry = Gpa(table + (at.0 >> shift & 0x1ff) * 8);
        kernel.image.memory.read(entry, &mut raw).unwrap();
        table = u64::from_le_bytes(raw) & 0x000f_ffff_ffff_f000;
    }
    let entry_at = table + (at.0 >> 12 & 0x1ff) * 8;
    let nowhere = 0x000f_ffff_ffff_f063u64;
    let mut image = Image::open(&entry.capture()).unwrap();
    Patched::apply(
        &mut image,
        vec![(entry_at, nowhere.to_le_bytes().to_vec())],
        Vec::new(),
    );
    let kernel = Kernel::find(image, &Overrides::default()).unwrap();
    let report = analysis::analyze(&kernel, &Options::default());
    let after = map(&report, "arena");
    let error = after.error.clone().unwrap();
    assert!(error.contains("hole in the guest's address map"), "{error}");
    let pages = after.arena.clone().unwrap().pages;
    let mut left = before.pages.clone();
    left.remove(1);
    assert_eq!(pages, left);
    // Values whose pointers led into that page say so.
    others_stand(&sound, &report, |m| {
        m.name == "arena" || format!("{m:?}").contains("deref: Some")
    });
}

#[test]
fn sizes_that_are_lies_cost_no_memory() {
    let (entry, kernel, sound) = guest();
    let at = Kva(map(&sound, "by_pid").map_kva);
    let header = kernel.object("struct bpf_map", at).unwrap();
    let size = header.member("value_size").unwrap().address();
    let report = patched(&entry, &[(size, &(16u32 << 20).to_le_bytes())]);
    let after = map(&report, "by_pid");
    // A share of 256 MiB holds one or two values of 16 MiB.
    assert!(after.entries.len() < 3, "{}", after.entries.len());
    let error = after.error.clone().unwrap();
    assert!(error.contains("hash map truncated at"), "{error}");
    others_stand(&sound, &report, |m| m.map_kva == at.0);
}
