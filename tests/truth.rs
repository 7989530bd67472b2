//! Reports against what the guest's own kernel said.
//!
//! The kernel writes a dump of its own (`scx_dump_state()`) a few milliseconds before a stall or
//! error capture is taken; its text is in the image, and the scheduler's exit callback kept a
//! second copy that the guest sent out before it ended (`truth/scx_exit.json` and `truth/scx_dump.txt`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;

use scx_postmortem_format::report::{ExitInfo, PostmortemReport};
use scx_postmortem_tests::{Entry, corpus};

/// A task as the kernel's dump lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Dumped {
    comm: String,
    age_ms: u64,
    dsq_id: Option<u64>,
    weight: u64,
    running: bool,
}

/// The tasks of a dump by pid: `  R comm[12] *root -9016ms`, then its fields.
fn parse_dump(dump: &str) -> BTreeMap<i32, Dumped> {
    let mut tasks = BTreeMap::new();
    let mut current: Option<i32> = None;
    for line in dump.lines() {
        if let Some((pid, task)) = parse_head(line) {
            tasks.insert(pid, task);
            current = Some(pid);
        }
        let Some(task) = current.and_then(|pid| tasks.get_mut(&pid)) else {
            continue;
        };
        for word in line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("dsq_id", id)) => {
                    let hex = id.strip_prefix("0x");
                    task.dsq_id = hex.map(|h| u64::from_str_radix(h, 16).unwrap());
                }
                Some(("weight", weight)) => task.weight = weight.parse().unwrap(),
                _ => {}
            }
        }
    }
    tasks
}

fn parse_head(line: &str) -> Option<(i32, Dumped)> {
    let age = line.strip_suffix("ms")?.rsplit(' ').next()?;
    let age_ms = age.parse::<i64>().ok()?;
    let head = line.get(..line.rfind(']')?)?;
    let (name, pid) = head.rsplit_once('[')?;
    // One marker, one state letter, one blank.
    let comm = name.get(3..)?.trim_start().to_owned();
    let running = name.starts_with(" *");
    let age_ms = age_ms.unsigned_abs();
    Some((
        pid.parse().ok()?,
        Dumped {
            comm,
            age_ms,
            dsq_id: None,
            weight: 0,
            running,
        },
    ))
}

/// The captures whose scheduler has ended in a way that `accept` takes.
fn reports(accept: impl Fn(&ExitInfo) -> bool) -> Vec<(Entry, PostmortemReport)> {
    let all = corpus().unwrap().into_iter().map(|entry| {
        let own = *entry.report().unwrap().postmortem.unwrap();
        (entry, own)
    });
    all.filter(|(_, own)| own.exit_info.as_ref().is_some_and(&accept))
        .collect()
}

fn stalled() -> Vec<(Entry, PostmortemReport)> {
    let found = reports(|exit| exit.kind == 1026);
    assert!(!found.is_empty(), "the corpus has no stall");
    found
}

#[test]
fn the_exit_record_in_memory_is_the_one_that_the_guest_saw() {
    let failed = reports(|exit| exit.kind >= 1024);
    assert!(failed.len() >= 2, "{} captures of failures", failed.len());
    for (entry, own) in failed {
        let name = &entry.name;
        let exit = own.exit_info.unwrap();
        let read = |file: &str| {
            let path = entry.dir.join("truth").join(file);
            std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let truth: serde_json::Value = serde_json::from_str(&read("scx_exit.json")).unwrap();
        assert_eq!(Some(u64::from(exit.kind)), truth["kind"].as_u64(), "{name}");
        assert_eq!(exit.exit_code, truth["exit_code"].as_i64(), "{name}");
        assert_eq!(exit.reason.as_deref(), truth["reason"].as_str(), "{name}");
        assert_eq!(exit.msg.as_deref(), truth["msg"].as_str(), "{name}");
        let theirs = read("scx_dump.txt");
        assert!(
            theirs.len() > 1000,
            "{name}: a dump of {} bytes",
            theirs.len()
        );
        assert_eq!(exit.dump.unwrap().trim_end(), theirs.trim_end(), "{name}");
        // The dump prints the backtrace that we symbolize ourselves.
        for frame in exit.backtrace {
            let symbol = frame.symbol.unwrap();
            assert!(
                theirs.contains(&format!("  {symbol}\n")),
                "{name}: no {symbol} in the dump"
            );
        }
    }
}

#[test]
fn starved_tasks_are_those_of_the_kernels_own_dump() {
    for (entry, own) in stalled() {
        let dumped = parse_dump(own.exit_info.as_ref().unwrap().dump.as_deref().unwrap());
        let limit_ms = own.scheduler.as_ref().unwrap().watchdog_timeout_ms.unwrap();
        // The dump is written right before the capture, yet after the ages were taken; what
        // was far from half of the limit on one side is far from it on the other.
        let theirs: BTreeMap<i32, &Dumped> = dumped
            .iter()
            .filter(|(_, t)| !t.running && t.age_ms >= limit_ms / 2)
            .map(|(pid, t)| (*pid, t))
            .collect();
        assert!(
            theirs.len() >= 3,
            "{}: {} starved tasks",
            entry.name,
            theirs.len()
        );
        let ours: BTreeMap<i32, _> = own.starved.iter().map(|t| (t.pid, t)).collect();
        assert_eq!(
            ours.keys().collect::<Vec<_>>(),
            theirs.keys().collect::<Vec<_>>(),
            "{}",
            entry.name
        );
        for (pid, theirs) in theirs {
            let ours = ours[&pid];
            assert_eq!(ours.comm, theirs.comm, "{}", entry.name);
            assert_eq!(
                ours.dsq_id.map(|id| id.0),
                theirs.dsq_id,
                "{} {pid}",
                entry.name
            );
            let later = ours.runnable_age_ms.checked_sub(theirs.age_ms);
            assert!(
                later.is_some_and(|ms| ms <= 400),
                "{} {pid}: {} ms here, {} ms in the dump",
                entry.name,
                ours.runnable_age_ms,
                theirs.age_ms
            );
        }
    }
}

#[test]
fn every_task_of_the_dump_is_in_the_report_with_its_weight() {
    for (entry, own) in stalled() {
        let exit = own.exit_info.as_ref().unwrap();
        let dumped = parse_dump(exit.dump.as_deref().unwrap());
        assert!(
            dumped.len() > 5,
            "{}: {} tasks in the dump",
            entry.name,
            dumped.len()
        );
        for (pid, theirs) in dumped {
            let ours = own
                .tasks
                .iter()
                .find(|t| t.pid == pid && t.comm == theirs.comm);
            let ours = ours.unwrap_or_else(|| panic!("{}: no {}[{pid}]", entry.name, theirs.comm));
            assert_eq!(
                ours.scx_weight.map(u64::from),
                Some(theirs.weight),
                "{}",
                entry.name
            );
        }
    }
}

#[test]
fn event_counters_are_those_of_sysfs_or_have_gone_on_from_there() {
    let mut compared = 0;
    for entry in corpus().unwrap() {
        let own = entry.report().unwrap().postmortem.unwrap();
        let path = entry.dir.join("truth/events");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let names: Vec<&str> = own.event_counters.iter().map(|c| c.name.as_str()).collect();
        let theirs: BTreeMap<&str, i64> = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, value)| (name, value.trim().parse().unwrap()))
            .collect();
        assert_eq!(names.len(), theirs.len(), "{}: {names:?}", entry.name);
        for counter in &own.event_counters {
            // sysfs was read seconds before the capture, and no counter goes down.
            let before = theirs[counter.name.as_str()];
            assert!(counter.value >= before, "{} {}", entry.name, counter.name);
            let sum: i64 = counter.per_cpu.iter().map(|c| c.value).sum();
            assert_eq!(sum, counter.value, "{} {}", entry.name, counter.name);
            compared += 1;
        }
    }
    assert!(compared > 40, "{compared} counters");
}

/// What `bpftool map show` printed in the guests (`bytes_memlock`), for maps whose memory does
/// not grow with their elements.
#[test]
fn maps_take_the_memory_that_the_kernel_says() {
    let known = [
        ("maps-7.3", "task_map", 328),
        ("maps-7.3", "recent", 6016),
        ("maps-7.3", "by_pid", 8112),
        ("maps-7.3", "cpu_stats", 352),
        ("maps-7.3", "demo.bss", 8192),
        ("maps-7.3", "maps_ops", 6336),
        ("maps-7.3", "hash_pre", 16192),
        ("maps-7.3", "pc_hash", 2688),
        ("maps-7.3", "lru_own", 6016),
        ("maps-7.3", "ring", 16712),
        ("maps-7.3", "user_ring", 16712),
        ("maps-7.3", "stacks", 14144),
        ("maps-7.3", "lpm", 352),
        ("maps-7.3", "queue", 512),
        ("maps-7.3", "bloom", 328),
        ("maps-7.3", "zoo_arena", 20480),
        ("maps-7.3", "array_of_maps", 328),
        ("maps-7.3", "cgrp_store", 328),
        ("error-7.3", ".bss.exit", 40960),
        ("error-7.3", "error_ops", 6336),
        ("stall-6.18", "demo.bss", 8192),
        ("stall-6.18", "stall_ops", 6112),
    ];
    let mut checked = 0;
    for entry in corpus().unwrap() {
        let expected: Vec<_> = known
            .iter()
            .filter(|(guest, ..)| *guest == entry.name)
            .collect();
        if expected.is_empty() {
            continue;
        }
        let maps = entry.report().unwrap().postmortem.unwrap().maps;
        for (_, name, bytes) in expected {
            let map = maps.iter().find(|m| m.name == *name).unwrap();
            assert_eq!(map.memory_bytes, Some(*bytes), "{name} of {}", entry.name);
            checked += 1;
        }
    }
    assert_eq!(checked, known.len());
}
