//! What the kernel counts and says by itself, against what the guests saved of /proc, /sys and
//! dmesg: once before the core (`truth/stop`) and once after it (`truth/after`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use scx_postmortem_analyze::addr::Kva;
use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::Kernel;
use scx_postmortem_analyze::walk::Limits;
use scx_postmortem_format::report::{
    FailureDumpReport, LogRecord, PostmortemReport, Pressure, UnavailableCode,
};
use scx_postmortem_tests::{Entry, corpus, entry};

/// A file of the guest's truth; `None` where that was not saved.
fn saved(entry: &Entry, file: &str) -> Option<String> {
    std::fs::read_to_string(entry.dir.join("truth").join(file)).ok()
}

/// A counter's value before the core and after it. The lean guests saved nothing after it.
fn bounds(before: u64, after: Option<u64>) -> RangeInclusive<u64> {
    before..=after.unwrap_or(u64::MAX)
}

fn report(kernel: &Kernel, log: usize) -> FailureDumpReport {
    let limits = Limits {
        log,
        ..Limits::default()
    };
    let options = Options {
        limits,
        ..Options::default()
    };
    analysis::analyze(kernel, &options)
}

fn own(kernel: &Kernel) -> PostmortemReport {
    *report(kernel, 200).postmortem.unwrap()
}

/// As dmesg prints it, without levels.
fn dmesg(records: &[LogRecord]) -> Vec<String> {
    let lines = records.iter().flat_map(|record| {
        let stamp = format!(
            "[{:5}.{:06}] ",
            record.ts_ns / 1_000_000_000,
            record.ts_ns / 1000 % 1_000_000
        );
        record
            .text
            .split('\n')
            .map(move |line| format!("{stamp}{line}"))
    });
    lines.collect()
}

#[test]
fn the_log_is_line_by_line_what_dmesg_printed() {
    let mut compared = 0;
    for entry in corpus().unwrap() {
        let kernel = entry.kernel().unwrap();
        let records = report(&kernel, usize::MAX).postmortem.unwrap().kernel_log;
        let ours = dmesg(&records);
        let theirs = saved(&entry, "after/dmesg").unwrap();
        let theirs: Vec<&str> = theirs.lines().collect();
        assert!(theirs.len() >= ours.len(), "{}", entry.name);
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert_eq!(ours, theirs, "{}", entry.name);
            compared += 1;
        }
        let seqs: Vec<u64> = records.iter().map(|record| record.seq).collect();
        assert!(
            seqs.iter().copied().eq(0..seqs.len() as u64),
            "{}",
            entry.name
        );
        assert!(records.iter().all(|record| !record.unfinished));
    }
    assert!(compared > 1500, "{compared} lines");
}

#[test]
fn a_report_has_the_end_of_the_log_and_says_how_much_there_is() {
    let kernel = entry("error-7.3").unwrap().kernel().unwrap();
    let all = report(&kernel, usize::MAX).postmortem.unwrap();
    let few = own(&kernel);
    assert_eq!(few.kernel_log.len(), 200);
    let from = all.kernel_log.len() - 200;
    assert_eq!(few.kernel_log, all.kernel_log[from..]);
    let limit = few.limits.iter().find(|l| l.what == "kernel_log").unwrap();
    assert_eq!(limit.actual, Some(all.kernel_log.len() as u64));
    assert!(all.limits.iter().all(|l| l.what != "kernel_log"));
    // The guest's init wrote the last to /dev/kmsg: level `warn` (the default), facility `user`.
    let last = few.kernel_log.last().unwrap();
    assert_eq!(last.text, "scx-postmortem: tripping");
    assert_eq!((last.level_name.as_str(), last.facility), ("warn", 1));
    assert_eq!(
        (last.caller.as_str(), last.comm.as_deref()),
        ("T1", Some("sh"))
    );
}

/// `total=` in µs, by `some` and `full`, of a file of /proc/pressure.
fn totals(text: &str) -> BTreeMap<String, u64> {
    let lines = text.lines().map(|line| {
        let (kind, rest) = line.split_once(' ').unwrap();
        let total = rest.rsplit_once("total=").unwrap().1;
        (kind.to_owned(), total.parse().unwrap())
    });
    lines.collect()
}

#[test]
fn pressure_of_the_system_is_between_the_two_looks_at_it() {
    let mut compared = 0;
    for entry in corpus().unwrap() {
        let psi = own(&entry.kernel().unwrap()).psi.unwrap();
        let system = psi.system.unwrap();
        let resources: [(&str, Option<Pressure>); 3] = [
            ("cpu", system.cpu),
            ("memory", system.memory),
            ("io", system.io),
        ];
        for (name, pressure) in resources {
            let before = totals(&saved(&entry, &format!("stop/{name}")).unwrap());
            let after = saved(&entry, &format!("after/{name}")).map(|text| totals(&text));
            let pressure = pressure.unwrap();
            // The kernel prints zeros for it, whatever it holds.
            assert_eq!(pressure.full.is_none(), name == "cpu");
            for (kind, line) in [("some", pressure.some), ("full", pressure.full)] {
                let Some(line) = line else { continue };
                let after = after.as_ref().map(|after| after[kind]);
                let bounds = bounds(before[kind], after);
                let us = line.total_ns / 1000;
                assert!(
                    bounds.contains(&us),
                    "{} {name} {kind}: {us}, {bounds:?}",
                    entry.name
                );
                compared += 1;
            }
        }
        assert!(system.irq.is_none());
    }
    assert_eq!(compared, 20);
}

#[test]
fn averages_of_pressure_are_those_that_the_kernel_printed() {
    // In this guest the kernel did not update them between the look and the core.
    let entry = entry("error-7.3").unwrap();
    let psi = own(&entry.kernel().unwrap()).psi.unwrap();
    let line = psi.system.unwrap().cpu.unwrap().some.unwrap();
    let theirs = saved(&entry, "stop/cpu").unwrap();
    let ours = format!(
        "some avg10={} avg60={} avg300={} total=",
        line.avg10, line.avg60, line.avg300
    );
    assert!(theirs.starts_with(&ours), "{ours}, {theirs}");
}

#[test]
fn every_cgroup_of_the_guest_has_its_pressure() {
    let kernel = entry("stall-6.18").unwrap().kernel().unwrap();
    let report = report(&kernel, 200);
    let own = report.postmortem.unwrap();
    let psi = own.psi.unwrap();
    let paths: Vec<&str> = psi.cgroups.iter().map(|c| c.path.as_str()).collect();
    // As bpf/guest/init makes them.
    assert_eq!(
        paths,
        ["/demo", "/demo/hot", "/demo/threads", "/demo/starved"]
    );
    let some = |path: &str| {
        let group = psi.cgroups.iter().find(|c| c.path == path).unwrap();
        let cpu = group.pressure.clone().unwrap().cpu.unwrap();
        (cpu.some.unwrap().total_ns, cpu.full.unwrap().total_ns)
    };
    // A task that waits in a cgroup waits in its parent and in the system.
    let system = psi.system.unwrap().cpu.unwrap().some.unwrap().total_ns;
    assert!(some("/demo").0 <= system);
    for path in &paths[1..] {
        assert!(some(path).0 <= some("/demo").0, "{path}");
        assert!(some(path).1 <= some(path).0, "{path}");
    }
    // Nobody ran in /demo/starved from the moment that it had tasks.
    let (waited, all_waited) = some("/demo/starved");
    assert!(
        all_waited * 100 > waited * 98,
        "{all_waited} ns of {waited}"
    );
    // The shared format wants the pressure of interrupts, which these kernels do not measure.
    assert!(report.cgroup_psi.is_empty());
    let reason = own.unavailable.iter().find(|u| u.section == "cgroup_psi");
    let reason = reason.unwrap();
    assert_eq!(reason.code, UnavailableCode::NotApplicable);
    assert!(reason.reason.contains("PSI_IRQ_FULL"), "{}", reason.reason);
}

#[test]
fn disabled_pressure_says_so() {
    let entry = entry("stall-6.18").unwrap();
    let plain = entry.kernel().unwrap();
    // As booted with psi=0.
    let key = plain.symbol("psi_disabled").unwrap();
    let one = 1u32.to_le_bytes();
    let own = own(&entry.patched(&[(key, &one)], &[]).unwrap());
    assert!(own.psi.is_none());
    let said = own.unavailable.iter().find(|u| u.section == "psi").unwrap();
    assert!(said.reason.contains("psi_disabled"), "{}", said.reason);
}

#[test]
fn numa_counters_are_between_the_two_looks_at_numastat() {
    let mut compared = 0;
    for entry in corpus().unwrap() {
        let report = entry.report().unwrap();
        let [node] = &report.per_node_numa[..] else {
            panic!("{}: {:?}", entry.name, report.per_node_numa);
        };
        assert_eq!(node.node, 0);
        assert_eq!(report.per_node_numa_unavailable, None);
        let ours = [
            node.numa_hit,
            node.numa_miss,
            node.numa_foreign,
            node.numa_interleave_hit,
            node.numa_local,
            node.numa_other,
        ];
        let counts = |stage: &str| -> Option<Vec<u64>> {
            let text = saved(&entry, &format!("{stage}/numastat"))?;
            let words = text.lines().map(|line| line.split_once(' ').unwrap().1);
            Some(words.map(|count| count.parse().unwrap()).collect())
        };
        let (before, after) = (counts("stop").unwrap(), counts("after"));
        for (index, ours) in ours.iter().enumerate() {
            let bounds = bounds(before[index], after.as_ref().map(|after| after[index]));
            assert!(
                bounds.contains(ours),
                "{} {index}: {ours}, {bounds:?}",
                entry.name
            );
            compared += 1;
        }
    }
    assert_eq!(compared, 24);
}

/// Rows of /proc/interrupts: counts per CPU, and the rest of the line.
fn interrupts(text: &str) -> BTreeMap<String, (Vec<u64>, String)> {
    let cpus = text.lines().next().unwrap().split_whitespace().count();
    let rows = text.lines().skip(1).filter_map(|line| {
        let (label, rest) = line.trim_start().split_once(':')?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        let counts: Vec<u64> = (words.iter().take(cpus))
            .filter_map(|word| word.parse().ok())
            .collect();
        (counts.len() == cpus).then(|| (label.to_owned(), (counts, words[cpus..].join(" "))))
    });
    rows.collect()
}

#[test]
fn interrupts_are_those_of_proc_or_have_gone_on_from_there() {
    let mut compared = 0;
    for entry in corpus().unwrap() {
        let irqs = own(&entry.kernel().unwrap()).irqs;
        let before = interrupts(&saved(&entry, "stop/interrupts").unwrap());
        let after = saved(&entry, "after/interrupts").map(|text| interrupts(&text));
        for (label, (counts, rest)) in &before {
            let row = irqs.iter().find(|row| row.irq == *label);
            if let Some(row) = row {
                for name in &row.names {
                    assert!(rest.ends_with(name.as_str()), "{name}, {rest}");
                }
                if let Some(chip) = &row.chip {
                    assert!(rest.starts_with(chip.as_str()), "{chip}, {rest}");
                }
            }
            for (cpu, &before) in (0u32..).zip(counts) {
                let part = row.and_then(|row| row.per_cpu.iter().find(|part| part.cpu == cpu));
                let ours = part.map_or(0, |part| part.value.cast_unsigned());
                let after = after.as_ref().map(|after| after[label].0[cpu as usize]);
                let bounds = bounds(before, after);
                assert!(
                    bounds.contains(&ours),
                    "{} {label} CPU {cpu}: {ours}, {bounds:?}",
                    entry.name
                );
                compared += 1;
            }
        }
        for row in &irqs {
            // One that nobody handles any more (a serial port that is closed) is not listed.
            assert!(
                before.contains_key(&row.irq) || row.names.is_empty(),
                "{} {}",
                entry.name,
                row.irq
            );
            let sum: i64 = row.per_cpu.iter().map(|part| part.value).sum();
            assert_eq!(sum.cast_unsigned(), row.total);
        }
    }
    assert!(compared > 150, "{compared} counts");
}

#[test]
fn scheduler_statistics_are_those_of_proc_or_have_gone_on_from_there() {
    let mut compared = 0;
    for entry in corpus().unwrap() {
        let stats = own(&entry.kernel().unwrap()).schedstats.unwrap();
        assert_eq!(stats.counting, Some(false));
        // cpuN, then nine numbers, of which the second is always 0; domainN NAME MASK and counts.
        let lines = |stage: &str| -> Option<Vec<Vec<String>>> {
            let text = saved(&entry, &format!("{stage}/schedstat"))?;
            let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
            Some(text.lines().skip(2).map(words).collect())
        };
        let (before, after) = (lines("stop").unwrap(), lines("after"));
        assert_eq!(before.len(), 2 * stats.cpus.len());
        for (index, cpu) in stats.cpus.iter().enumerate() {
            let ours = [
                cpu.yld_count,
                Some(0),
                cpu.sched_count,
                cpu.sched_goidle,
                cpu.ttwu_count,
                cpu.ttwu_local,
                cpu.rq_cpu_time_ns,
                cpu.run_delay_ns,
                cpu.pcount,
            ];
            assert_eq!(before[2 * index][0], format!("cpu{}", cpu.cpu));
            for (at, ours) in ours.into_iter().enumerate() {
                let number = |lines: &Vec<Vec<String>>| lines[2 * index][at + 1].parse().unwrap();
                let bounds = bounds(number(&before), after.as_ref().map(number));
                let ours = ours.unwrap();
                assert!(
                    bounds.contains(&ours),
                    "{} cpu {index} {at}: {ours}, {bounds:?}",
                    entry.name
                );
                compared += 1;
            }
            let [domain] = &cpu.domains[..] else {
                panic!("{}: {:?}", entry.name, cpu.domains);
            };
            let theirs = &before[2 * index + 1];
            assert_eq!(domain.name.as_deref(), Some(theirs[1].as_str()));
            assert_eq!(
                (theirs[2].as_str(), domain.span.as_deref()),
                ("3", Some("0-1"))
            );
            assert!(domain.counters.is_empty());
        }
    }
    assert_eq!(compared, 72);
}

/// Sizes and positions that a damaged or hostile guest could hold.
#[test]
fn a_damaged_ring_of_the_log_is_told_and_bounded() {
    let entry = entry("error-7.3").unwrap();
    let plain = entry.kernel().unwrap();
    let at = plain.read_ptr(plain.symbol("prb").unwrap()).unwrap();
    let ring = plain.object("struct printk_ringbuffer", at).unwrap();
    let of = |path| ring.member(path).unwrap().address();
    let all = own(&plain).kernel_log;

    for size in ["desc_ring.count_bits", "text_data_ring.size_bits"] {
        let own = own(&entry.patched(&[(of(size), &[200])], &[]).unwrap());
        assert!(own.kernel_log.is_empty());
        let said = own.unavailable.iter().find(|u| u.section == "kernel_log");
        assert!(said.unwrap().reason.contains(size));
    }
    // A head that has run round the ring many times: no descriptor has such an id.
    let far = (1u64 << 60).to_le_bytes();
    let lost = own(&entry
        .patched(&[(of("desc_ring.head_id"), &far)], &[])
        .unwrap());
    assert!(lost.kernel_log.is_empty());
    assert!(lost.anomalies.iter().any(|a| a.section == "kernel_log"));
    // One record whose text positions are wrong costs that record.
    let head = ring.member("desc_ring.head_id").unwrap().u64().unwrap() & ((1 << 62) - 1);
    let bits = ring.member("desc_ring.count_bits").unwrap().u32().unwrap();
    let descs = ring.member("desc_ring.descs").unwrap().deref().unwrap();
    let size = descs.size().unwrap();
    let slot = descs.address().add((head & ((1 << bits) - 1)) * size);
    let desc = plain.object("struct prb_desc", slot).unwrap();
    let begin = desc.member("text_blk_lpos.begin").unwrap();
    let before = begin.u64().unwrap() - 8;
    let next = desc.member("text_blk_lpos.next").unwrap().address();
    let own = own(&entry
        .patched(&[(next, &before.to_le_bytes())], &[])
        .unwrap());
    assert!(own.anomalies.iter().any(|a| a.section == "kernel_log"));
    assert_eq!(own.kernel_log.last(), all.get(all.len() - 2));
}

#[test]
fn a_loop_in_the_tree_of_interrupts_is_cut() {
    let entry = entry("error-7.3").unwrap();
    let plain = entry.kernel().unwrap();
    let tree = plain.global("sparse_irqs", "struct maple_tree").unwrap();
    let root = tree.member("ma_root").unwrap().ptr().unwrap();
    let node = Kva(root.0 & !0xff);
    let range = plain.object("struct maple_range_64", node).unwrap();
    let slot = range.member("slot").unwrap().address();
    // The root as its own first child: a range node that comes back to itself.
    let child = (node.0 | 2 << 3 | 6).to_le_bytes();
    let root_at = tree.member("ma_root").unwrap().address();
    let patches = [(slot, &child[..]), (root_at, &child[..])];
    let own = own(&entry.patched(&patches, &[]).unwrap());
    assert!(own.anomalies.iter().any(|a| a.section == "irqs"));
    assert!(own.irqs.iter().any(|row| row.irq == "LOC"));
}

#[test]
fn lists_of_cgroups_that_run_into_each_other_are_cut() {
    let entry = entry("stall-6.18").unwrap();
    let plain = entry.kernel().unwrap();
    let sound = own(&plain).psi.unwrap().cgroups;
    let member = |path: &str, member: &'static str| {
        let at = sound.iter().find(|c| c.path == path).unwrap().cgroup_kva.0;
        let cgroup = plain.object("struct cgroup", Kva(at)).unwrap();
        cgroup.member(member).unwrap().address()
    };
    // The first child of /demo/hot is /demo, whose list never comes back to /demo/hot.
    let loops = member("/demo", "self.sibling").0.to_le_bytes();
    let patches = [(member("/demo/hot", "self.children"), &loops[..])];
    let own = own(&entry.patched(&patches, &[]).unwrap());
    assert!(own.anomalies.iter().any(|a| a.section == "psi.cgroups"));
    let paths: Vec<String> = (own.psi.unwrap().cgroups.into_iter())
        .map(|c| c.path)
        .collect();
    for path in ["/demo", "/demo/hot", "/demo/threads", "/demo/starved"] {
        assert!(paths.iter().any(|p| p == path), "{path}, {paths:?}");
    }
}
