//! Benchmark part: opens a capture, finds the kernel's page tables, translates and reads 2,500
//! kernel pages scattered over the task structs, stacks and slabs that a report touches.
//!
//! Prints how many pages it read, so that a run that read nothing is not mistaken for a fast
//! one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark may stop"
)]

use scx_postmortem_analyze::addr::Kva;
use scx_postmortem_analyze::kernel::paging::PageTable;
use scx_postmortem_analyze::kernel::vmcoreinfo::Vmcoreinfo;
use scx_postmortem_analyze::source::{Image, PhysicalMemory};

const PAGES: usize = 2_500;

/// Every present entry of a table.
fn entries(memory: &dyn PhysicalMemory, table: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut raw = vec![0; 4096];
    let read = memory
        .read(scx_postmortem_analyze::addr::Gpa(table), &mut raw)
        .is_ok();
    let words: Vec<u64> = raw
        .chunks_exact(8)
        .map(|c| u64::from_le_bytes(c.try_into().unwrap()))
        .collect();
    (0u64..)
        .zip(words)
        .filter(move |&(_, word)| read && word & 1 == 1)
}

fn main() {
    let path = std::env::args_os()
        .nth(1)
        .expect("usage: scattered CAPTURE");
    let image = Image::open(path.as_ref()).unwrap();
    let memory = &*image.memory;
    let info = Vmcoreinfo::parse(image.vmcoreinfo.as_deref().expect("no VMCOREINFO note")).unwrap();
    let base = info.phys_base().unwrap().cast_unsigned();
    let root = info.symbol("swapper_pg_dir").unwrap().0 - 0xffff_ffff_8000_0000;
    let root = scx_postmortem_analyze::addr::Gpa(root.wrapping_add(base));
    let five_levels = info.five_levels().unwrap();
    let table = PageTable {
        root,
        five_levels,
        sme_mask: info.sme_mask(),
    };

    // Walk the kernel half of the tables down to 4 KiB pages: vmalloc'd stacks, per-CPU chunks,
    // BPF programs. Then the pages themselves.
    let mask = 0x000f_ffff_ffff_f000;
    let mut level: Vec<(u64, u64)> = vec![(0, root.0)];
    let shifts: &[u32] = if five_levels {
        &[48, 39, 30, 21]
    } else {
        &[39, 30, 21]
    };
    for (depth, &shift) in shifts.iter().enumerate() {
        level = level
            .iter()
            .flat_map(|&(kva, table)| {
                entries(memory, table)
                    .filter(move |&(index, entry)| (depth > 0 || index >= 256) && entry & 0x80 == 0)
                    .map(move |(index, entry)| (kva | index << shift, entry & mask))
            })
            .collect();
    }
    let high = if five_levels {
        0xfe00_0000_0000_0000
    } else {
        0xffff_0000_0000_0000
    };
    let mut pages: Vec<u64> = level
        .iter()
        .flat_map(|&(kva, table)| entries(memory, table).map(move |(i, _)| high | kva | i << 12))
        .collect();
    let step = (pages.len() / PAGES).max(1);
    pages = pages.into_iter().step_by(step).take(PAGES).collect();
    let mut page = [0; 4096];
    let mut read = 0;
    let mut sum = 0u64;
    for kva in pages {
        if let Ok(mapping) = table.walk(memory, Kva(kva))
            && memory.read(mapping.gpa, &mut page).is_ok()
        {
            read += 1;
            sum = sum.wrapping_add(page.iter().map(|&b| u64::from(b)).sum());
        }
    }
    println!("{read} pages read, sum {sum}");
}
