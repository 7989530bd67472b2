//! Timers, workqueues and the kernel's own dump, on the corpus.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use scx_postmortem_analyze::addr::Kva;
use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::Kernel;
use scx_postmortem_format::report::{PostmortemReport, TimerInfo};
use scx_postmortem_tests::entry;

fn own(kernel: &Kernel) -> PostmortemReport {
    *analysis::analyze(kernel, &Options::default())
        .postmortem
        .unwrap()
}

fn report(name: &str) -> PostmortemReport {
    own(&entry(name).unwrap().kernel().unwrap())
}

fn with_function<'a>(own: &'a PostmortemReport, function: &str) -> Vec<&'a TimerInfo> {
    let has = |timer: &&TimerInfo| timer.function.as_deref() == Some(function);
    own.timers.iter().filter(has).collect()
}

#[test]
fn every_cpu_has_its_tick_and_what_a_timer_is_for_is_told() {
    for name in ["stall-6.18", "error-7.3", "maps-7.3", "p2dq-7.3"] {
        let own = report(name);
        let ticks = with_function(&own, "tick_nohz_handler");
        let cpus: Vec<u32> = ticks.iter().map(|timer| timer.cpu).collect();
        assert_eq!(cpus, [0, 1], "{name}");
        let delayed = with_function(&own, "delayed_work_timer_fn");
        assert!(delayed.len() > 10, "{name}");
        assert!(delayed.iter().all(|timer| timer.work.is_some()), "{name}");
        let hung = with_function(&own, "process_timeout");
        let hung = hung.iter().filter_map(|timer| timer.wakes.as_ref());
        assert!(hung.clone().count() > 0, "{name}");
        for task in hung {
            let info = own.tasks.iter().find(|t| t.kva == task.kva).unwrap();
            assert_eq!((info.pid, &info.comm), (task.pid, &task.comm), "{name}");
        }
    }
    // One timer of the zoo is set, an hour ahead.
    let own = report("maps-7.3");
    let [timer] = with_function(&own, "bpf_timer_cb")[..] else {
        panic!("{:?}", own.timers);
    };
    let map = own.maps.iter().find(|map| Some(map.id) == timer.bpf_map_id);
    assert_eq!(map.unwrap().name, "special_array");
    let callback = timer.bpf_callback.as_deref().unwrap();
    assert!(callback.ends_with("_on_timer"), "{callback}");
    assert!(timer.left_ns.unwrap() > 3_000_000_000_000);
}

#[test]
fn only_the_cpu_that_writes_the_dump_is_late() {
    // It has had interrupts off for ten ticks.
    let own = report("stall-6.18");
    let late: Vec<&TimerInfo> = own.timers.iter().filter(|timer| timer.overdue).collect();
    let [tick] = late[..] else {
        panic!("{late:?}");
    };
    assert_eq!(tick.function.as_deref(), Some("tick_nohz_handler"));
    assert_eq!((tick.cpu, tick.left_ns.unwrap() / 1_000_000), (0, -33));
    assert!(
        report("error-7.3")
            .timers
            .iter()
            .all(|timer| !timer.overdue)
    );
}

#[test]
fn works_have_their_functions_queues_and_workers() {
    let own = report("stall-6.18");
    let queues = own.workqueues.unwrap();
    // Four pools for each CPU, and two unbound ones.
    assert_eq!(queues.pools.len(), 10);
    let watchdog = queues.scx_watchdog.unwrap();
    assert_eq!(watchdog.function.as_deref(), Some("scx_watchdog_workfn"));
    assert_eq!((watchdog.pending, watchdog.left_ms), (Some(false), None));
    let dump = own.exit_info.unwrap().parsed_dump.unwrap();
    let worker = watchdog.runs_in.unwrap();
    assert_eq!((Some(worker.pid), Some(worker.comm)), (dump.pid, dump.comm));

    let queues = report("p2dq-7.3").workqueues.unwrap();
    let pool = queues
        .pools
        .iter()
        .find(|pool| !pool.pending.is_empty())
        .unwrap();
    assert_eq!(
        (pool.cpu, pool.nr_workers, pool.nr_idle),
        (Some(0), Some(4), Some(3))
    );
    assert!(!pool.overdue);
    let [busy] = &pool.busy[..] else { panic!() };
    assert_eq!(busy.function.as_deref(), Some("process_srcu"));
    assert_eq!(
        (busy.workqueue.as_deref(), busy.running_ms),
        (Some("rcu_gp"), Some(44))
    );
    let names = |work: &scx_postmortem_format::report::WorkItem| {
        (
            work.function.clone().unwrap(),
            work.workqueue.clone().unwrap(),
        )
    };
    let pending: Vec<_> = pool.pending.iter().map(names).collect();
    assert_eq!(
        pending,
        [
            ("srcu_invoke_callbacks".to_owned(), "rcu_gp".to_owned()),
            ("delayed_vfree_work".to_owned(), "events".to_owned())
        ]
    );
    // The watchdog's timer is the one on the wheel.
    let own = report("error-7.3");
    let watchdog = own
        .workqueues
        .as_ref()
        .unwrap()
        .scx_watchdog
        .clone()
        .unwrap();
    let timers = own.timers.iter();
    let mut timers = timers.filter(|t| t.work.as_deref() == Some("scx_watchdog_workfn"));
    assert_eq!(
        timers.next().unwrap().expires_jiffies,
        watchdog.expires_jiffies
    );
    assert_eq!(watchdog.left_ms, Some(3504));
}

#[test]
fn the_dump_is_taken_apart_and_agrees_with_memory() {
    for (name, cpus, tasks, counters, compared) in
        [("stall-6.18", 2, 18, 9, 137), ("error-7.3", 2, 13, 21, 171)]
    {
        let own = report(name);
        let exit = own.exit_info.unwrap();
        let dump = exit.parsed_dump.unwrap();
        let text = exit.dump.unwrap();
        assert_eq!(dump.exit_kind, Some(exit.kind));
        assert_eq!(dump.cpus.len(), cpus, "{name}");
        assert_eq!(dump.event_counters.len(), counters, "{name}");
        assert!(
            !dump.cut && dump.other.is_empty(),
            "{name}: {:?}",
            dump.other
        );
        let all = || dump.cpus.iter().flat_map(|cpu| &cpu.tasks);
        assert_eq!(all().count(), tasks, "{name}");
        assert_eq!(
            all().count(),
            text.matches("scx_state/flags=").count(),
            "{name}"
        );
        // Every task with every value, and every frame.
        for task in all() {
            assert!(task.scx_state.is_some() && task.weight.is_some() && task.cpus.is_some());
            assert!(task.other.is_empty(), "{:?}", task.other);
        }
        let frames: usize = all().map(|task| task.stack.len()).sum();
        let frames = frames + dump.backtrace.len();
        assert_eq!(frames, text.matches("+0x").count(), "{name}");
        let sum = own.dump_differences.unwrap();
        assert_eq!((sum.compared, sum.equal), (compared, compared), "{name}");
        assert!(sum.differences.is_empty(), "{name}: {:?}", sum.differences);
    }
    // No failure, no dump.
    assert!(report("maps-7.3").dump_differences.is_none());
}

#[test]
fn a_value_that_time_does_not_explain_is_told() {
    let entry = entry("stall-6.18").unwrap();
    let plain = entry.kernel().unwrap();
    let starved = own(&plain).starved.remove(0);
    let task = plain
        .object("struct task_struct", Kva(starved.kva.0))
        .unwrap();
    let weight = task.member("scx.weight").unwrap().address();
    let own = own(&entry.patched(&[(weight, &[77])], &[]).unwrap());
    let differences = own.dump_differences.unwrap().differences;
    let [one] = &differences[..] else {
        panic!("{differences:?}");
    };
    assert_eq!(
        one.what,
        format!("{}[{}] weight", starved.comm, starved.pid)
    );
    assert_eq!((one.dump.as_str(), one.report.as_str()), ("100", "77"));
}

#[test]
fn lists_of_timers_and_works_that_run_in_circles_are_cut() {
    let entry = entry("p2dq-7.3").unwrap();
    let plain = entry.kernel().unwrap();
    let sound = own(&plain);
    // A node that is its own successor, in the tree of hrtimers, in the wheel, in a pool's list.
    let at = |kind: &str| {
        let timer = sound
            .timers
            .iter()
            .find(|timer| timer.kind == kind)
            .unwrap();
        timer.kva.0
    };
    let (tree, wheel) = (at("hrtimer"), at("wheel"));
    let pools = &sound.workqueues.as_ref().unwrap().pools;
    let pool = pools.iter().find(|pool| !pool.pending.is_empty()).unwrap();
    let work = Kva(pool.pending[0].kva.0);
    let entry_of = plain.object("struct work_struct", work).unwrap();
    let work = entry_of.member("entry").unwrap().address();
    let worker = plain.object("struct worker_pool", Kva(pool.kva.0)).unwrap();
    let workers = plain.read_ptr(worker.member("workers").unwrap().address());
    let workers = workers.unwrap();
    let patches = [
        (Kva(tree + 16), &tree.to_le_bytes()[..]),
        (Kva(wheel), &wheel.to_le_bytes()[..]),
        (work, &work.0.to_le_bytes()[..]),
        (workers, &workers.0.to_le_bytes()[..]),
    ];
    let own = own(&entry.patched(&patches, &[]).unwrap());
    for section in ["timers", "workqueues", "workqueues.pools.workers"] {
        let said = own.anomalies.iter().filter(|a| a.section == section);
        assert!(said.count() > 0, "{section}: {:?}", own.anomalies);
    }
    // The other CPU's are all there.
    let other = |own: &PostmortemReport| own.timers.iter().filter(|t| t.cpu == 1).count();
    assert_eq!(other(&own), other(&sound));
    assert_eq!(own.workqueues.unwrap().pools.len(), pools.len());
}

#[test]
fn a_dump_of_garbage_is_bounded_and_the_rest_of_the_report_stays() {
    let entry = entry("stall-6.18").unwrap();
    let plain = entry.kernel().unwrap();
    let sched = Kva(own(&plain).scheduler.unwrap().sched_kva.unwrap().0);
    let sched = plain.object("struct scx_sched", sched).unwrap();
    let info = sched.member("exit_info").unwrap().deref().unwrap();
    let at = info.member("dump").unwrap().ptr().unwrap();
    let alphabet = b"\nC []\xff*=-\x1b";
    let garbage: Vec<u8> = (0..3000usize)
        .map(|n| alphabet[n * n % 97 % alphabet.len()])
        .collect();
    let own = own(&entry.patched(&[(at.add(40), &garbage)], &[]).unwrap());
    let exit = own.exit_info.unwrap();
    let dump = exit.parsed_dump.unwrap();
    assert!(dump.other.len() <= 64);
    // What stands behind the garbage is read again.
    assert_eq!(dump.event_counters.len(), 9);
    assert!(own.dump_differences.is_some());
    assert_eq!(own.starved.len(), 6);
}
