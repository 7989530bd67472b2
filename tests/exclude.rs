//! Captures without free pages, user memory and page cache: the same report, and pages that are
//! what the guest's own kernel counts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::io;

use scx_postmortem_analyze::addr::{Gpa, Kva};
use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::error::Error;
use scx_postmortem_analyze::exclude::{self, Rules};
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::source::{Image, PhysicalMemory};
use scx_postmortem_format::capture::{
    CaptureSpec, Excluded, Extent, Manifest, MemorySource, Note, Rule, WriteOptions, write_capture,
};
use scx_postmortem_format::report::FailureDumpReportAny;
use scx_postmortem_tests::{corpus, entry};

const ALL: Rules = Rules {
    free: true,
    user: true,
    cache: true,
};

struct Source<'a>(&'a dyn PhysicalMemory);

impl MemorySource for Source<'_> {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read(Gpa(gpa), buf).map_err(io::Error::other)
    }
}

/// The report without what it says about the file.
fn json(kernel: &Kernel) -> String {
    let mut report = analysis::analyze(kernel, &Options::default());
    let own = report.postmortem.as_mut().unwrap();
    own.input = None;
    own.provenance.clear();
    FailureDumpReportAny::from(report).to_json().unwrap()
}

/// Writes a capture of the kernel's image without `excluded` and opens it.
fn rewritten(kernel: &Kernel, excluded: Excluded) -> Kernel {
    let image = &kernel.image;
    let regions = image.memory.regions().iter();
    let registers = image.register_notes.iter();
    let mut notes: Vec<Note> = registers
        .map(|n| Note::new(&n.name, n.kind, n.desc.clone()))
        .collect();
    notes.push(Note::vmcoreinfo(kernel.vmcoreinfo.text().into()));
    let spec = CaptureSpec {
        memory: regions.map(|r| Extent::new(r.start.0, r.len)).collect(),
        manifest: Manifest::default(),
        notes,
        excluded,
        ..CaptureSpec::default()
    };
    let mut bytes = std::io::Cursor::new(Vec::new());
    let source = Source(&*image.memory);
    write_capture(&mut bytes, &spec, &source, &WriteOptions::default()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes.get_ref()).unwrap();
    let image = Image::open(file.path()).unwrap();
    Kernel::find(image, &Overrides::default()).unwrap()
}

fn bytes_of(excluded: &Excluded, rule: Rule) -> u64 {
    let sums = excluded.by_rule();
    let sum = sums.iter().find(|(of, ..)| *of == rule);
    sum.map_or(0, |&(_, bytes, _)| bytes)
}

#[test]
fn reports_are_the_same_without_what_no_walker_reads() {
    for entry in corpus().unwrap() {
        let whole = entry.kernel().unwrap();
        let already = whole.image.excluded.clone();
        let excluded = exclude::plan(&whole, ALL).unwrap();
        if !already.is_empty() {
            // Such an entry shows by its golden report that nothing is missing.
            assert!(
                excluded.is_empty(),
                "{}: {:?}",
                entry.name,
                excluded.by_rule()
            );
            continue;
        }
        for rule in Rule::ALL {
            assert!(
                bytes_of(&excluded, rule) > 1 << 19,
                "{}: {rule}",
                entry.name
            );
        }
        let before = whole.image.memory_bytes();
        let small = rewritten(&whole, excluded.clone());
        let left: u64 = excluded.runs().iter().map(|run| run.bytes).sum();
        assert_eq!(small.image.memory_bytes(), before - left, "{}", entry.name);
        assert!(
            json(&whole) == json(&small),
            "{}: another report",
            entry.name
        );
        // A second time there is nothing more to leave out.
        assert!(
            exclude::plan(&small, ALL).unwrap().is_empty(),
            "{}",
            entry.name
        );
    }
}

/// Sum of a counter over the zones or nodes of the whole system, with what CPUs have pending.
fn counter(kernel: &Kernel, total: &str, index: (&str, &str), pending: &[Kva]) -> i64 {
    let index = u64::try_from(kernel.constant(index.0, index.1).unwrap()).unwrap();
    let at = kernel.symbol(total).unwrap().add(index * 8);
    let sum = kernel.read_u64(at).unwrap().cast_signed();
    let mut byte = [0u8; 1];
    pending.iter().fold(sum, |sum, diffs| {
        kernel.read(diffs.add(index), &mut byte).unwrap();
        sum + i64::from(byte[0].cast_signed())
    })
}

#[test]
fn the_kernel_counts_the_same_pages() {
    for entry in corpus().unwrap() {
        let kernel = entry.kernel().unwrap();
        if !kernel.image.excluded.is_empty() {
            continue;
        }
        let excluded = exclude::plan(&kernel, ALL).unwrap();
        let node = kernel
            .read_ptr(kernel.symbol("node_data").unwrap())
            .unwrap();
        let node = kernel.object("struct pglist_data", node).unwrap();
        let (mut zones, mut nodes, mut listed) = (Vec::new(), Vec::new(), 0);
        for cpu in kernel.cpus() {
            let stats = node.member("per_cpu_nodestats").unwrap();
            let stats = stats.deref_per_cpu(cpu).unwrap();
            nodes.push(stats.member("vm_node_stat_diff").unwrap().address());
            let all = node.member("node_zones").unwrap();
            for zone in 0..u64::from(all.array_len().unwrap()) {
                let zone = all.index(zone).unwrap();
                if zone.member("present_pages").unwrap().u64().unwrap() == 0 {
                    continue;
                }
                let stats = zone.member("per_cpu_zonestats").unwrap();
                let stats = stats.deref_per_cpu(cpu).unwrap();
                zones.push(stats.member("vm_stat_diff").unwrap().address());
                let lists = zone.member("per_cpu_pageset").unwrap();
                let lists = lists.deref_per_cpu(cpu).unwrap();
                listed += i64::from(lists.member("count").unwrap().i32().unwrap());
            }
        }
        let zone = |name| {
            counter(
                &kernel,
                "vm_zone_stat",
                ("enum zone_stat_item", name),
                &zones,
            )
        };
        let node = |name| {
            counter(
                &kernel,
                "vm_node_stat",
                ("enum node_stat_item", name),
                &nodes,
            )
        };
        let pages = |rule| i64::try_from(bytes_of(&excluded, rule) / 4096).unwrap();
        assert_eq!(
            pages(Rule::Free),
            zone("NR_FREE_PAGES") + listed,
            "{}: free, in the buddy lists and in those of the CPUs",
            entry.name
        );
        assert_eq!(pages(Rule::Cache), node("NR_FILE_PAGES"), "{}", entry.name);
        // Anonymous pages that are not mapped (any more) are not counted, those that are pinned
        // are not left out: a few of each.
        let mapped = node("NR_ANON_MAPPED");
        let user = pages(Rule::User);
        assert!(
            (user - mapped).abs() <= 32,
            "{}: {user}, {mapped}",
            entry.name
        );
    }
}

#[test]
fn a_page_that_was_left_out_names_its_rule() {
    let whole = entry("stall-6.18").unwrap().kernel().unwrap();
    let rules: Rules = "cache,user".parse().unwrap();
    let excluded = exclude::plan(&whole, rules).unwrap();
    assert_eq!(bytes_of(&excluded, Rule::Free), 0);
    let run = |rule| *excluded.runs().iter().find(|run| run.rule == rule).unwrap();
    let (user, cache) = (run(Rule::User), run(Rule::Cache));
    let small = rewritten(&whole, excluded.clone());
    let mut page = [0u8; 4096];
    for (run, words) in [
        (user, "user memory (--exclude user)"),
        (cache, "page cache (--exclude cache)"),
    ] {
        let gpa = Gpa(run.gpa);
        whole.image.memory.read(gpa, &mut page).unwrap();
        let error = small.image.memory.read(gpa, &mut page).unwrap_err();
        assert_eq!(error, Error::LeftOut(gpa, run.rule));
        assert!(error.to_string().contains(words), "{error}");
        // A read that only ends in such a page fails at its first byte.
        let before = Gpa(run.gpa - 8);
        if small.image.memory.read(before, &mut page[..8]).is_ok() {
            let error = small.image.memory.read(before, &mut page[..16]);
            assert_eq!(error, Err(Error::LeftOut(gpa, run.rule)));
        }
    }
    // What was never there stays a hole.
    let hole = small.image.memory.read(Gpa(1 << 40), &mut page);
    assert_eq!(hole, Err(Error::Hole(Gpa(1 << 40))));
    assert_eq!(small.image.excluded, excluded);
    assert_eq!(small.image.left_out.len(), 2, "{:?}", small.image.left_out);
    assert!(
        small.image.warnings.is_empty(),
        "{:?}",
        small.image.warnings
    );
}

#[test]
fn pages_without_a_readable_descriptor_stay() {
    let entry = entry("stall-6.18").unwrap();
    let whole = entry.kernel().unwrap();
    let excluded = exclude::plan(&whole, ALL).unwrap();
    let base = whole
        .read_ptr(whole.symbol("vmemmap_base").unwrap())
        .unwrap();
    // The descriptors of the 2 MiB at 64 MiB, of 64 bytes each.
    let first = (64u64 << 20) / 4096;
    let lost = base.add(first * 64)..base.add((first + 512) * 64);
    let torn = entry.patched(&[], std::slice::from_ref(&lost)).unwrap();
    let kept = exclude::plan(&torn, ALL).unwrap();
    assert!(
        excluded
            .runs()
            .iter()
            .any(|run| run.gpa < 66 << 20 && run.gpa + run.bytes > 64 << 20)
    );
    for page in (64 << 20..66 << 20).step_by(4096) {
        assert_eq!(kept.rule_at(page), None, "{page:#x}");
    }
    let sum = |excluded: &Excluded| excluded.runs().iter().map(|run| run.bytes).sum::<u64>();
    // Descriptors are read for 4 MiB at a time, and a block of free pages goes whole or not at all.
    assert!(
        sum(&kept) >= sum(&excluded) - (8 << 20),
        "only what is around it stays"
    );

    let none = exclude::plan(
        &entry
            .patched(&[(whole.symbol("mem_section").unwrap(), &[0; 8])], &[])
            .unwrap(),
        ALL,
    );
    assert!(
        none.unwrap().is_empty(),
        "no table of sections, no descriptors"
    );
}

#[test]
fn lists_of_rules_are_checked() {
    assert_eq!("free, user,cache".parse(), Ok(ALL));
    for wrong in ["", "free,", "all", "free;user", "unknown", "FREE"] {
        let error = wrong.parse::<Rules>().unwrap_err();
        assert!(
            error.contains("expected a list of free, user and cache"),
            "{error}"
        );
    }
}
