//! The kernel's containers, walked in real captures where the answer is known twice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeSet;

use scx_postmortem_analyze::addr::Kva;
use scx_postmortem_analyze::kernel::{Kernel, WalkEnd};
use scx_postmortem_tests::corpus;

/// A limit that no corpus guest reaches.
const MANY: usize = 100_000;

fn comm_and_pid(kernel: &Kernel, task: Kva) -> (String, i32) {
    let task = kernel.object("struct task_struct", task).unwrap();
    (
        task.member("comm").unwrap().text().unwrap(),
        task.member("pid").unwrap().i32().unwrap(),
    )
}

#[test]
fn the_pid_idr_and_its_hlists_lead_to_the_tasks_of_the_task_list() {
    for entry in corpus().unwrap() {
        let kernel = entry.kernel().unwrap();
        let namespace = kernel
            .global("init_pid_ns", "struct pid_namespace")
            .unwrap();
        let pids = kernel.idr(&namespace.member("idr").unwrap(), MANY).unwrap();
        assert_eq!(pids.end, WalkEnd::Complete, "{}", entry.name);
        assert!(pids.items.is_sorted_by_key(|(id, _)| *id));
        let mut by_idr = BTreeSet::new();
        for (id, at) in pids.items {
            let pid = kernel.object("struct pid", at).unwrap();
            let number = pid.member("numbers").unwrap().index(0).unwrap();
            let number = number.member("nr").unwrap().i32().unwrap();
            assert_eq!(u64::try_from(number).unwrap(), id, "{}", entry.name);
            // tasks[PIDTYPE_PID]: an hlist of the one task with this pid, through pid_links[0].
            let head = pid.member("tasks").unwrap().index(0).unwrap();
            for node in kernel.hlist(head.address(), MANY).items {
                let task = kernel
                    .entry("struct task_struct", "pid_links", node)
                    .unwrap();
                assert_eq!(task.member("pid").unwrap().i32().unwrap(), number);
                by_idr.insert(number);
            }
        }
        let report = entry.report().unwrap();
        let listed: BTreeSet<i32> = report
            .postmortem
            .unwrap()
            .tasks
            .iter()
            // Idle tasks are in no idr; the dead are on scx_tasks until they are freed.
            .filter(|t| t.pid != 0 && t.state.as_deref() != Some("X"))
            .map(|t| t.pid)
            .collect();
        assert!(listed.len() > 40, "{}: {} tasks", entry.name, listed.len());
        assert_eq!(by_idr, listed, "{}", entry.name);
    }
}

#[test]
fn a_vtime_dsq_has_its_tree_in_the_order_of_its_list() {
    let mut trees = 0;
    for entry in corpus().unwrap() {
        let kernel = entry.kernel().unwrap();
        let own = entry.report().unwrap().postmortem.unwrap();
        for dsq in own
            .dsqs
            .iter()
            .filter(|d| d.order.as_deref() == Some("vtime"))
        {
            let object = kernel
                .object("struct scx_dispatch_q", Kva(dsq.dsq_kva.0))
                .unwrap();
            let root = object.member("priq").unwrap().address();
            let walk = kernel.rbtree(root, MANY);
            assert_eq!(walk.end, WalkEnd::Complete, "{}", entry.name);
            let tree: Vec<u64> = walk
                .items
                .into_iter()
                .map(|node| {
                    let task = kernel
                        .entry("struct task_struct", "scx.dsq_priq", node)
                        .unwrap();
                    task.address().0
                })
                .collect();
            let list: Vec<u64> = dsq.tasks.iter().map(|t| t.task_kva.0).collect();
            assert_eq!(tree, list, "{} {}", entry.name, dsq.id);
            let vtimes: Vec<u64> = dsq.tasks.iter().map(|t| t.dsq_vtime.unwrap()).collect();
            assert!(vtimes.is_sorted(), "{}: {vtimes:?}", entry.name);
            trees += usize::from(list.len() > 3);
        }
    }
    assert!(
        trees > 0,
        "no capture has a vtime DSQ with more than 3 tasks"
    );
}

#[test]
fn the_dsq_hash_of_the_stall_holds_its_two_queues() {
    for entry in corpus()
        .unwrap()
        .into_iter()
        .filter(|e| e.name.starts_with("stall"))
    {
        let kernel = entry.kernel().unwrap();
        let root = kernel.read_ptr(kernel.symbol("scx_root").unwrap()).unwrap();
        let sched = kernel.object("struct scx_sched", root).unwrap();
        let table = sched.member("dsq_hash").unwrap();
        let walk = kernel.rhashtable(&table, MANY).unwrap();
        assert_eq!(walk.end, WalkEnd::Complete);
        let mut ids: Vec<u64> = walk
            .items
            .into_iter()
            .map(|node| {
                let dsq = kernel
                    .entry("struct scx_dispatch_q", "hash_node", node)
                    .unwrap();
                dsq.member("id").unwrap().u64().unwrap()
            })
            .collect();
        ids.sort_unstable();
        // bpf/stall.bpf.c: SHARED_DSQ and PARKED_DSQ.
        assert_eq!(ids, [0x60d5, 0xd_ead5], "{}", entry.name);
        let nelems = table.member("nelems").unwrap().u32().unwrap();
        assert_eq!(nelems, 2, "the table's own count");
    }
}

#[test]
fn every_symbol_is_found_by_name_and_by_address() {
    for entry in corpus().unwrap() {
        let kernel = entry.kernel().unwrap();
        for name in [
            "scx_root",
            "runqueues",
            "init_task",
            "map_idr",
            "schedule",
            "linux_banner",
        ] {
            let at = kernel.symbol(name).unwrap();
            if name == "schedule" {
                let text = kernel.symbolize(at.add(4)).unwrap();
                assert!(text.starts_with("schedule+0x4/0x"), "{text}");
            }
            assert!(!at.is_null(), "{name}");
        }
        assert!(kernel.symbol("no_such_symbol_anywhere").is_err());
        // Two ways to the same task: the per-CPU variable current_task, and rq->curr.
        for cpu in kernel.cpus() {
            let current = kernel
                .per_cpu(kernel.symbol("current_task").unwrap(), cpu)
                .unwrap();
            let current = kernel.read_ptr(current).unwrap();
            let rq = kernel
                .per_cpu_object("runqueues", "struct rq", cpu)
                .unwrap();
            assert_eq!(rq.member("cpu").unwrap().u32().unwrap(), cpu);
            let curr = rq.member("curr").unwrap().ptr().unwrap();
            assert_eq!(comm_and_pid(&kernel, current), comm_and_pid(&kernel, curr));
        }
    }
}
