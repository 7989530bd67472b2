//! BPF maps that lie: in a copy of a real guest's memory one structure of a map is changed, and
//! only that map may suffer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::sync::Arc;

use scx_postmortem_analyze::addr::{Gpa, Kva};
use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::{Btf, Kernel, Overrides};
use scx_postmortem_analyze::source::Image;
use scx_postmortem_analyze::walk::bpf::btfs;
use scx_postmortem_format::report::{
    ArenaInfo, FailureDumpMap, FailureDumpReport, MapInfo, RenderedValue,
};
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

/// Our own record of a map.
fn own<'r>(report: &'r FailureDumpReport, name: &str) -> &'r MapInfo {
    let own = report.postmortem.as_ref().unwrap();
    own.maps.iter().find(|map| map.name == name).unwrap()
}

fn arena<'r>(report: &'r FailureDumpReport, name: &str) -> &'r ArenaInfo {
    let own = report.postmortem.as_ref().unwrap();
    own.arenas.iter().find(|arena| arena.name == name).unwrap()
}

/// The kernel address of a user address in the arena `name`.
fn in_arena(report: &FailureDumpReport, name: &str, user: u64) -> Kva {
    let arena = map(report, name).arena.as_ref().unwrap();
    Kva(arena.kern_vm_start + (user & 0xffff_ffff))
}

/// The report with the entry that maps `at`, in the table whose entries cover `1 << level`
/// bytes, leading out of memory.
fn without_table(entry: &Entry, kernel: &Kernel, at: Kva, level: u32) -> FailureDumpReport {
    let mut table = kernel.page_table.root.0;
    let mut shifts = vec![39, 30, 21, 12];
    if kernel.page_table.five_levels {
        shifts.insert(0, 48);
    }
    for shift in shifts.into_iter().take_while(|shift| *shift > level) {
        let mut raw = [0; 8];
        let entry = Gpa(table + (at.0 >> shift & 0x1ff) * 8);
        kernel.image.memory.read(entry, &mut raw).unwrap();
        table = u64::from_le_bytes(raw) & 0x000f_ffff_ffff_f000;
    }
    let entry_at = table + (at.0 >> level & 0x1ff) * 8;
    let nowhere = 0x000f_ffff_ffff_f063u64;
    let mut image = Image::open(&entry.capture()).unwrap();
    Patched::apply(
        &mut image,
        vec![(entry_at, nowhere.to_le_bytes().to_vec())],
        Vec::new(),
    );
    let kernel = Kernel::find(image, &Overrides::default()).unwrap();
    analysis::analyze(&kernel, &Options::default())
}

#[test]
fn an_arena_page_outside_memory_is_missed_alone() {
    let (entry, kernel, sound) = guest();
    let before = map(&sound, "arena").arena.clone().unwrap();
    let at = in_arena(&sound, "arena", before.pages[1].user_addr);
    let report = without_table(&entry, &kernel, at, 12);
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

#[test]
fn a_table_of_an_arena_outside_memory_costs_its_pages_alone() {
    let (entry, kernel, sound) = guest();
    let before = map(&sound, "zoo_arena").arena.clone().unwrap();
    // Two megabytes or one gigabyte without tables: the pages of that part are not known.
    for level in [21, 30] {
        let covered = |user: u64| in_arena(&sound, "zoo_arena", user).0 >> level;
        let lost = covered(before.pages[0].user_addr);
        let at = in_arena(&sound, "zoo_arena", before.pages[0].user_addr);
        let report = without_table(&entry, &kernel, at, level);
        let after = map(&report, "zoo_arena");
        let mut left = before.pages.clone();
        left.retain(|page| covered(page.user_addr) != lost);
        assert_eq!(after.arena.clone().unwrap().pages, left, "{level}");
        let error = after.error.clone().unwrap();
        assert!(error.contains("the page tables of 0x2000"), "{error}");
        assert_eq!(own(&report, "zoo_arena").entries, None);
        let info = arena(&report, "zoo_arena");
        assert_eq!(info.pages, None);
        assert!(info.error.as_deref().unwrap().contains("page tables of"));
        let globals = info.globals_error.clone().unwrap_or_default();
        assert!(!globals.contains("never touched"), "{globals}");
        let before = arena(&sound, "arena");
        if level == 21 {
            assert_eq!(arena(&report, "arena"), before);
        }
    }
}

#[test]
fn globals_in_a_part_of_an_arena_without_tables_are_not_called_untouched() {
    let entry = entry(ALLOCATORS).unwrap();
    let kernel = entry.kernel().unwrap();
    let sound = analysis::analyze(&kernel, &Options::default());
    let globals = arena(&sound, "arena").globals_at.unwrap().0;
    let at = in_arena(&sound, "arena", globals);
    let report = without_table(&entry, &kernel, at, 21);
    let info = arena(&report, "arena");
    assert_eq!((info.pages, &info.globals), (None, &None));
    let error = info.globals_error.clone().unwrap();
    assert!(error.contains("it is not known"), "{error}");
    let error = info.error.clone().unwrap();
    assert!(
        error.contains("pages were found; the page tables of"),
        "{error}"
    );
    assert!(
        !map(&report, "arena")
            .arena
            .as_ref()
            .unwrap()
            .pages
            .is_empty()
    );
    // What is in the other parts is still there.
    assert_eq!(report.sdt_allocations, sound.sdt_allocations);
}

#[test]
fn a_hole_in_the_buckets_costs_those_buckets() {
    let (entry, kernel, sound) = guest();
    let before = map(&sound, "by_pid");
    let htab = kernel
        .object("struct bpf_htab", Kva(before.map_kva))
        .unwrap();
    let first = htab.member("buckets").unwrap().deref().unwrap();
    let size = first.size().unwrap();
    // Sixteen buckets in the middle.
    let from = first.address().add(64 * size);
    let report = entry.patched(&[], &[from..from.add(16 * size)]).unwrap();
    let report = analysis::analyze(&report, &Options::default());
    let after = map(&report, "by_pid");
    let error = after.error.clone().unwrap();
    assert!(error.contains("bucket 64 cannot be read"), "{error}");
    assert!(error.contains("8 more of this kind"), "{error}");
    assert_eq!(own(&report, "by_pid").entries, None);
    assert!(after.entries.len() * 2 > before.entries.len());
    assert!(after.entries.len() < before.entries.len());
    assert!(after.entries.iter().all(|e| before.entries.contains(e)));
    others_stand(&sound, &report, |m| m.name == "by_pid");
}

#[test]
fn an_element_that_cannot_be_read_is_missed_alone() {
    let (entry, kernel, sound) = guest();
    let run = |kva: Kva, len: u64| {
        let changed = entry.patched(&[], &[kva..kva.add(len)]).unwrap();
        analysis::analyze(&changed, &Options::default())
    };
    // A key: what is in front of the value, whose address no report has.
    let map_kva = Kva(map(&sound, "by_pid").map_kva);
    let htab = kernel.object("struct bpf_htab", map_kva).unwrap();
    let count = htab.member("n_buckets").unwrap().u64().unwrap();
    let first = htab.member("buckets").unwrap().deref().unwrap();
    let heads = (0..count).map(|i| first.address().add(i * first.size().unwrap()));
    let node = heads
        .map(|at| kernel.read_ptr(at).unwrap())
        .find(|node| node.0 & 1 == 0 && !node.is_null())
        .unwrap();
    let element = kernel.object("struct htab_elem", node).unwrap();
    let report = run(element.member("key").unwrap().address(), 4);
    let (before, after) = (map(&sound, "by_pid"), map(&report, "by_pid"));
    assert_eq!(after.entries.len() + 1, before.entries.len());
    assert!(after.error.clone().unwrap().contains("the key of"));
    assert_eq!(own(&report, "by_pid").entries, None);

    // An element of a local storage, and one of the storage of a cgroup.
    for (name, ty, node_member, lost) in [
        (
            "task_map",
            "struct bpf_local_storage_elem",
            "map_node",
            "sdata.data",
        ),
        ("cg_store", "struct bpf_cgroup_storage", "list_map", "key"),
    ] {
        let kva = Kva(map(&sound, name).map_kva);
        let node = if name == "task_map" {
            let storage = kernel.object("struct bpf_local_storage_map", kva).unwrap();
            let buckets = storage.member("buckets").unwrap().deref().unwrap();
            kernel.read_ptr(buckets.address()).unwrap()
        } else {
            let storage = kernel.object("struct bpf_cgroup_storage_map", kva).unwrap();
            storage.member("list.next").unwrap().ptr().unwrap()
        };
        let element = kernel.entry(ty, node_member, node).unwrap();
        let report = run(element.member(lost).unwrap().address(), 8);
        let (before, after) = (map(&sound, name), map(&report, name));
        assert_eq!(after.entries.len() + 1, before.entries.len(), "{name}");
        assert!(after.error.clone().unwrap().contains("the element at"));
        assert_eq!(own(&report, name).entries, None);
    }
}

#[test]
fn a_value_of_one_cpu_that_cannot_be_read_has_a_reason() {
    let (entry, kernel, sound) = guest();
    let kva = Kva(map(&sound, "pc_array").map_kva);
    let array = kernel.object("struct bpf_array", kva).unwrap();
    let base = array.member("pptrs").unwrap().address().add(8);
    let base = kernel.read_ptr(base).unwrap();
    let at = kernel.per_cpu(base, 1).unwrap();
    let changed = entry.patched(&[], &[at..at.add(4)]).unwrap();
    let report = analysis::analyze(&changed, &Options::default());
    let after = map(&report, "pc_array");
    let error = after.error.clone().unwrap();
    assert!(error.contains("key 1 of CPU 1: "), "{error}");
    assert_eq!(after.percpu_entries[1].per_cpu[1], None);
    assert!(after.percpu_entries[1].per_cpu[0].is_some());
    others_stand(&sound, &report, |m| m.name == "pc_array");
}

#[test]
fn positions_of_a_ring_that_cannot_be_are_refused() {
    let (entry, kernel, sound) = guest();
    let kva = Kva(map(&sound, "ring").map_kva);
    let ring = kernel.object("struct bpf_ringbuf_map", kva).unwrap();
    let ring = ring.member("rb").unwrap().deref().unwrap();
    let place = |path| ring.member(path).unwrap().address();
    let full = u64::MAX.to_le_bytes();
    // A mask of another ring; positions at the end of all numbers.
    let mask = (place("mask"), &0xffffu64.to_le_bytes()[..]);
    let near = (u64::MAX - 100).to_le_bytes();
    let positions = [
        (place("consumer_pos"), &near[..]),
        (place("producer_pos"), &full[..]),
    ];
    let header =
        place("data").add(map(&sound, "ring").ringbuf.as_ref().unwrap().consumer_pos & 4095);
    for (changes, words) in [
        (vec![mask], "bpf_ringbuf.mask is 0xffff"),
        (positions.to_vec(), "claims"),
        (vec![(header, &[0xff; 4][..])], "claims 1073741823 bytes"),
        (vec![positions[0]], "do not fit"),
    ] {
        let report = patched(&entry, &changes);
        let error = map(&report, "ring").error.clone().unwrap_or_default();
        assert!(error.contains(words), "{words}: {error}");
        assert_eq!(own(&report, "ring").entries, None, "{words}");
        others_stand(&sound, &report, |m| m.name == "ring");
    }
}

/// The parts of a value.
fn parts(value: &RenderedValue) -> usize {
    1 + match value {
        RenderedValue::Struct { members, .. } => members.iter().map(|m| parts(&m.value)).sum(),
        RenderedValue::Array { elements, .. } => elements.iter().map(parts).sum(),
        RenderedValue::Truncated { partial, .. } => parts(partial),
        RenderedValue::Ptr {
            deref: Some(to), ..
        } => parts(to),
        _ => 0,
    }
}

#[test]
fn types_that_make_much_of_few_bytes_cost_no_memory() {
    let (entry, kernel, sound) = guest();
    let at = Kva(map(&sound, "by_pid").map_kva);
    let header = kernel.object("struct bpf_map", at).unwrap();
    let place = |path| header.member(path).unwrap().address();
    let btf = header.member("btf").unwrap().deref().unwrap();
    let size = btf.member("data_size").unwrap().u32().unwrap();
    let data = btf.member("data").unwrap().ptr().unwrap();
    // A byte, and three structs: each of as many of the one before as fit, all at offset 0.
    let count = (size - 24 - 16 - 3 * 12 - 8) / 12 / 3;
    let mut types: Vec<u32> = vec![1, 1 << 24, 1, 8];
    for inner in 1..=3 {
        types.extend([3, 4 << 24 | count, 1]);
        types.extend((0..count).flat_map(|_| [5, inner, 0]));
    }
    let len = u32::try_from(types.len() * 4).unwrap();
    let mut blob: Vec<u8> = vec![0x9f, 0xeb, 1, 0];
    for word in [24, 0, len, len, size - 24 - len].iter().chain(&types) {
        blob.extend(word.to_le_bytes());
    }
    blob.extend(b"\0u\0s\0m\0");
    blob.resize(size as usize, 0);
    // Page by page: the blob is contiguous in virtual memory only.
    let mut changes: Vec<(Kva, &[u8])> = Vec::new();
    let mut from = 0;
    while from < blob.len() {
        let at = data.add(from as u64);
        let to = blob.len().min(from + 4096 - (at.0 % 4096) as usize);
        changes.push((at, &blob[from..to]));
        from = to;
    }
    let (key, value) = (1u32.to_le_bytes(), 4u32.to_le_bytes());
    changes.push((place("btf_key_type_id"), &key));
    changes.push((place("btf_value_type_id"), &value));
    let report = patched(&entry, &changes);
    let after = map(&report, "by_pid");
    let all: usize = after.entries.iter().flat_map(|e| &e.value).map(parts).sum();
    assert!(count > 60, "{count}");
    assert!((100_000..300_000).contains(&all), "{all}");
    assert_eq!(after.entries.len(), map(&sound, "by_pid").entries.len());
    let error = after.error.clone().unwrap();
    assert!(error.contains("parts that are shown of one map"), "{error}");
}

/// A guest whose scheduler has an arena with allocators.
const ALLOCATORS: &str = "p2dq-7.3";

#[test]
fn the_slots_of_an_allocator_have_a_limit_of_their_own() {
    let entry = entry(ALLOCATORS).unwrap();
    let kernel = entry.kernel().unwrap();
    let sound = analysis::analyze(&kernel, &Options::default());
    let of = |report: &FailureDumpReport| {
        let name = "scx_task_allocator";
        let shared = report.sdt_allocations.iter();
        let own = report.postmortem.as_ref().unwrap().allocators.iter();
        (
            shared
                .clone()
                .find(|a| a.allocator_name == name)
                .unwrap()
                .clone(),
            own.clone().find(|a| a.name == name).unwrap().clone(),
        )
    };
    let (shared, own) = of(&sound);
    assert_eq!((shared.entries.len(), own.live, own.shown), (89, 89, 89));
    // The size of the section that holds the variable is no reason for fewer slots.
    let section = Kva(map(&sound, "bpf_bpf.bss").map_kva);
    let section = kernel.object("struct bpf_map", section).unwrap();
    let size = section.member("value_size").unwrap().address();
    let report = patched(&entry, &[(size, &(15u32 << 20).to_le_bytes())]);
    assert_eq!(of(&report), (shared.clone(), own.clone()));
    // The limit is; and it is told.
    let mut options = Options::default();
    options.limits.entries = 10;
    let report = analysis::analyze(&kernel, &options);
    let (cut, cut_own) = of(&report);
    assert!(cut.truncated);
    assert_eq!(cut.entries[..], shared.entries[..10]);
    assert_eq!((cut_own.live, cut_own.shown), (89, 10));
    let text = scx_postmortem_format::report::text_report(&report.into());
    assert!(text.contains("89 live of 216 bytes"), "{text}");
    assert!(text.contains("the first 10 are shown"), "{text}");
}

/// The BTF of a map's value.
fn value_btf(kernel: &Kernel, map: Kva) -> Arc<Btf> {
    let map = kernel.object("struct bpf_map", map).unwrap();
    let btf = map.member("btf").unwrap().ptr().unwrap();
    btfs::load(kernel, btf).unwrap().types
}

#[test]
fn a_tree_that_meets_itself_is_walked_once() {
    let entry = entry(ALLOCATORS).unwrap();
    let kernel = entry.kernel().unwrap();
    let sound = analysis::analyze(&kernel, &Options::default());
    let before = sound.postmortem.as_ref().unwrap().allocators.clone();
    let index = before
        .iter()
        .position(|a| a.name == "scx_task_allocator")
        .unwrap();
    let arena = map(&sound, "arena").arena.clone().unwrap();
    let address = |word: u64| Kva(arena.kern_vm_start + (word & 0xffff_ffff));
    let section = Kva(map(&sound, "bpf_bpf.bss").map_kva);
    let btf = value_btf(&kernel, section);
    let offset = |ty: &str, path: &str| btf.field(btf.find(ty).unwrap(), path).unwrap().offset;
    let root = Kva(before[index].kva.0).add(offset("struct scx_allocator", "root"));
    let root = kernel.read_u64(root).unwrap();
    let chunk = address(root).add(offset("struct sdt_desc", "chunk"));
    let chunk = kernel.read_u64(chunk).unwrap();
    let child = kernel.read_u64(address(chunk)).unwrap();
    assert_ne!(child, 0);
    // All of its 512 pointers lead to the same node.
    let all: Vec<u8> = (0..512).flat_map(|_| child.to_le_bytes()).collect();
    let report = patched(&entry, &[(address(chunk), &all)]);
    let after = &report.postmortem.as_ref().unwrap().allocators[index];
    assert_eq!(
        (after.live, after.shown),
        (before[index].live, before[index].shown)
    );
    let error = after.error.clone().unwrap();
    assert!(error.contains("has been met before"), "{error}");
    assert_eq!(report.sdt_allocations[index].skipped_subtrees, 511);
    assert_eq!(
        report.sdt_allocations[index].entries,
        sound.sdt_allocations[index].entries
    );
}

#[test]
fn slots_whose_numbers_agree_with_no_layout_are_bytes() {
    let entry = entry(ALLOCATORS).unwrap();
    let kernel = entry.kernel().unwrap();
    let sound = analysis::analyze(&kernel, &Options::default());
    let before = sound.postmortem.as_ref().unwrap().allocators.clone();
    let index = before
        .iter()
        .position(|a| a.name == "scx_task_allocator")
        .unwrap();
    let (info, slots) = (&before[index], &sound.sdt_allocations[index].entries);
    let layout = info.layout.as_deref().unwrap();
    let size: u64 = layout.split(' ').find_map(|w| w.parse().ok()).unwrap();
    let in_slot = if layout.contains("last") {
        info.elem_size - size
    } else {
        0
    };
    // Every number but that of slot 0 becomes one that no slot has.
    let changes: Vec<(Kva, &[u8])> = slots[1..]
        .iter()
        .map(|slot| {
            (
                in_arena(&sound, "arena", slot.user_addr).add(in_slot),
                &[0xee; 4][..],
            )
        })
        .collect();
    let report = patched(&entry, &changes);
    let after = &report.postmortem.as_ref().unwrap().allocators[index];
    assert_eq!((&after.layout, &after.payload_type), (&None, &None));
    assert_eq!((after.live, after.misplaced), (info.live, 0));
    let error = after.error.clone().unwrap();
    assert!(error.contains("cannot be told"), "{error}");
    let shared = &report.sdt_allocations[index];
    assert!(shared.payload_type_reason.contains("cannot be told"));
    for slot in &shared.entries {
        assert!(
            matches!(slot.payload, RenderedValue::Bytes { .. }),
            "{slot:?}"
        );
    }
}
