//! What CPUs were doing and what tasks wait for, on the shipped captures: values that the guests'
//! failures fix, and locks that are made up in their memory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use scx_postmortem_analyze::addr::Kva;
use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::Kernel;
use scx_postmortem_format::report::{PostmortemReport, TaskInfo};
use scx_postmortem_tests::{corpus, entry};

fn own(kernel: &Kernel) -> PostmortemReport {
    let report = analysis::analyze(kernel, &Options::default());
    *report.postmortem.unwrap()
}

fn task<'r>(report: &'r PostmortemReport, comm: &str) -> &'r TaskInfo {
    report.tasks.iter().find(|t| t.comm == comm).unwrap()
}

#[test]
fn a_cpu_that_dumps_is_in_an_interrupt_with_interrupts_off() {
    // Two layouts of the preemption counter, in 32 bits and in 64.
    for (name, dumping, raw) in [("stall-6.18", 0, 0x8001_0000), ("error-7.3", 0, 0x100_0000)] {
        let own = own(&entry(name).unwrap().kernel().unwrap());
        let context = own.cpus[dumping].context.clone().unwrap();
        assert_eq!(context.preempt_count.unwrap().0, raw, "{name}");
        assert_eq!(context.hardirqs, Some(1), "{name}");
        assert_eq!(context.irqs_enabled, Some(false), "{name}");
        assert_eq!(context.mode.as_deref(), Some("kernel"), "{name}");
        // The other one runs user code, which nothing keeps there.
        let other = own.cpus[1].context.clone().unwrap();
        assert_eq!(other.mode.as_deref(), Some("user"), "{name}");
        assert_eq!(other.irqs_enabled, Some(true), "{name}");
        assert_eq!(other.preempt_disabled, Some(0), "{name}");
        // The bits agree: the flag is set before its copy in the counter.
        for cpu in &own.cpus {
            let context = cpu.context.clone().unwrap();
            assert!(context.need_resched.is_some());
            if context.preempt_need_resched == Some(true) {
                assert_eq!(context.need_resched, Some(true), "{name}");
            }
        }
    }
}

#[test]
fn an_idle_cpu_idles_since_and_is_in_the_masks() {
    let own = own(&entry("maps-7.3").unwrap().kernel().unwrap());
    let [busy, idle] = &own.cpus[..] else {
        panic!("{} CPUs", own.cpus.len());
    };
    assert_eq!((busy.idle, idle.idle), (Some(false), Some(true)));
    assert!(busy.idle_state.is_none());
    assert!(idle.idle_state.as_ref().unwrap().entry_ns.is_some());
    assert!(idle.scx_idle.as_ref().unwrap().cpu);
    assert!(!busy.scx_idle.as_ref().unwrap().cpu);
    let counts = idle.classes.clone().unwrap();
    assert_eq!(
        [counts.dl, counts.rt, counts.fair, counts.ext],
        [Some(0); 4]
    );
}

#[test]
fn counts_clocks_and_topology_hold_together() {
    for entry in corpus().unwrap() {
        let own = own(&entry.kernel().unwrap());
        let kernel = own.kernel.as_ref().unwrap();
        assert_eq!(kernel.cpus_present, kernel.cpus_possible, "{}", entry.name);
        assert_eq!(kernel.cpus_active, kernel.cpus_online, "{}", entry.name);
        assert_eq!(kernel.cpus_isolated.as_deref(), Some(""));
        assert_eq!(kernel.cpus_nohz_full.as_deref(), Some(""));
        assert!(own.cpus.iter().any(|cpu| cpu.clock_behind_ns == Some(0)));
        for cpu in &own.cpus {
            let counts = cpu.classes.clone().unwrap();
            let sum = [counts.dl, counts.rt, counts.fair, counts.ext];
            let sum: u32 = sum.into_iter().flatten().sum();
            // A server that stands for a class is counted once more.
            assert!(sum >= cpu.nr_running.unwrap(), "{}", entry.name);
            assert_eq!(counts.ext, cpu.scx_nr_running);
            let topology = cpu.topology.clone().unwrap();
            assert_eq!(topology.node, Some(0));
            assert_eq!(topology.core, Some(cpu.cpu.to_string()));
            assert_eq!(topology.llc.as_deref(), Some("0-1"));
            let tick = cpu.tick.clone().unwrap();
            assert_eq!(tick.stopped, Some(false));
            assert!(tick.age_ms.unwrap() < 1000, "{}", entry.name);
        }
        // bpf/guest/init puts each piece of the load into its cgroup.
        assert_eq!(task(&own, "spin-0").cgroup.as_deref(), Some("/demo/hot"));
        assert_eq!(task(&own, "kthreadd").wchan.as_deref(), Some("kthreadd"));
        assert!(own.locks.is_empty(), "{}", entry.name);
    }
}

#[test]
fn a_task_waits_for_a_lock_only_when_the_lock_has_it() {
    let entry = entry("stall-6.18").unwrap();
    let plain = entry.kernel().unwrap();
    let sound = own(&plain);
    let (waiter, owner) = (task(&sound, "idle"), task(&sound, "starve-0"));
    let object = plain
        .object("struct task_struct", Kva(waiter.kva.0))
        .unwrap();
    let mutex = plain.global("cgroup_mutex", "struct mutex").unwrap();
    let at = |path| mutex.member(path).unwrap().address();
    let blocked_on = object.member("blocked_on").unwrap().address();
    let pointer = mutex.address().0.to_le_bytes();
    let word = (owner.kva.0 | 1).to_le_bytes();

    // A pointer alone: the lock knows nothing of it.
    let claim = [(blocked_on, &pointer[..]), (at("owner"), &word[..])];
    let report = own(&entry.patched(&claim, &[]).unwrap());
    assert!(task(&report, "idle").waits_for.is_none());
    assert!(report.locks.is_empty());

    // The record of a waiter, at the unused end of its stack, in the mutex' list.
    let stack = object.member("stack").unwrap().ptr().unwrap();
    let record = plain.object("struct mutex_waiter", stack.add(256)).unwrap();
    let node = record.member("list").unwrap().address();
    let (node_at, head) = (node.0.to_le_bytes(), at("wait_list").0.to_le_bytes());
    let task_at = record.member("task").unwrap().address();
    let waiting = waiter.kva.0.to_le_bytes();
    let mut patches = claim.to_vec();
    patches.extend([
        (at("wait_list"), &node_at[..]),
        (at("wait_list").add(8), &node_at[..]),
        (node, &head[..]),
        (node.add(8), &head[..]),
        (task_at, &waiting[..]),
    ]);
    let report = own(&entry.patched(&patches, &[]).unwrap());
    let [lock] = &report.locks[..] else {
        panic!("{:?}", report.locks);
    };
    assert_eq!(lock.kind, "mutex");
    assert_eq!(lock.address.0, mutex.address().0);
    let symbol = lock.symbol.as_deref().unwrap();
    assert!(symbol.starts_with("cgroup_mutex+0x0/"), "{symbol}");
    assert_eq!(lock.owner.as_ref().unwrap().pid, owner.pid);
    assert_eq!(lock.waiters[0].pid, waiter.pid);
    let waits = task(&report, "idle").waits_for.clone().unwrap();
    assert_eq!(waits.found_by, "blocked_on");
    assert_eq!(waits.owner.unwrap().comm, "starve-0");
    // Its owner starves, and the queue that it is in tells why.
    let rules = report.findings.iter();
    let rules: Vec<_> = rules.map(|f| (&*f.rule, &*f.confidence)).collect();
    assert_eq!(
        rules,
        [
            ("queue-never-consumed", "certain"),
            ("lock-holder-off-cpu", "certain")
        ]
    );

    // A list that never comes back is cut, and said to be.
    let itself = node.0.to_le_bytes();
    patches.push((node, &itself[..]));
    let report = own(&entry.patched(&patches, &[]).unwrap());
    assert!(report.locks.iter().all(|lock| lock.truncated));
}
