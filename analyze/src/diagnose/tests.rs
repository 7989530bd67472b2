//! Rules on small reports made by hand. Those that a shipped capture shows are in `tests/findings.rs`.

use scx_postmortem_format::report::{
    ActiveInfo, ArenaInfo, Callback, CpuContext, CpuIdle, CpuThrottling, CpuTick, CurrTask,
    DlServer, DsqChange, DsqInfo, DumpCpu, DumpTask, EarlyLateDiff, ExitInfo, FailureDumpRingbuf,
    Flags, Frame, Hex, KernelDump, KernelInfo, LockInfo, LogRecord, MapRef, NamedId, NamedTask,
    ProgramInfo, ProgramStats, QueuedTask, RingRecord, SchedulerInfo, SoftLockup, StorageOwner,
};

use super::*;

/// Two CPUs that run sched_ext tasks; task 7 has waited 20 s at the head of a user queue from
/// which others were taken, and task 8, younger, is behind it.
fn stalled(cpus_allowed: &str) -> PostmortemReport {
    let cpu = |cpu| CpuInfo {
        cpu,
        online: Some(true),
        idle: Some(false),
        clock_ns: Some(100_000_000_000),
        curr: Some(CurrTask {
            pid: 100 + i32::try_from(cpu).unwrap_or(0),
            comm: "busy".into(),
            class: Some("ext".into()),
            ..CurrTask::default()
        }),
        ..CpuInfo::default()
    };
    let task = |kva, pid: i32, age, cpus: &str| TaskInfo {
        kva: Hex(kva),
        pid,
        runnable_age_jiffies: Some(age),
        cpus_allowed: Some(cpus.into()),
        migration_disabled: Some(0),
        ..TaskInfo::default()
    };
    let queued = |kva, age| QueuedTask {
        task_kva: Hex(kva),
        runnable_age_jiffies: Some(age),
        ..QueuedTask::default()
    };
    PostmortemReport {
        cpus: vec![cpu(0), cpu(1)],
        tasks: vec![
            task(0x7000, 7, 5000, cpus_allowed),
            task(0x8000, 8, 10, "0-1"),
        ],
        dsqs: vec![DsqInfo {
            id: Hex(0x42),
            origin: "user".into(),
            dsq_kva: Hex(0xd000),
            nr: 2,
            seq: 900,
            tasks: vec![queued(0x7000, 5000), queued(0x8000, 10)],
            ..DsqInfo::default()
        }],
        starved: vec![StarvedTask {
            pid: 7,
            comm: "victim".into(),
            kva: Hex(0x7000),
            cpu: 1,
            runnable_age_jiffies: 5000,
            runnable_age_ms: 20_000,
            dsq_id: Some(Hex(0x42)),
            dsq_origin: Some("user".into()),
            dsq_kva: Some(Hex(0xd000)),
            dsq_position: Some(0),
        }],
        ..PostmortemReport::new("test")
    }
}

fn rules(report: &PostmortemReport) -> Vec<String> {
    findings(report, &[]).into_iter().map(|f| f.rule).collect()
}

/// A task of that class, which began 20 s ago and has run for 15 s of these, runs on the CPU.
fn class(report: &mut PostmortemReport, cpu: usize, class: &str) {
    let Some(at) = report.cpus.get_mut(cpu) else {
        return;
    };
    let Some(curr) = at.curr.as_mut() else { return };
    curr.class = Some(class.into());
    curr.kva = Hex(0xc000 + u64::from(at.cpu));
    report.tasks.push(TaskInfo {
        kva: Hex(0xc000 + u64::from(at.cpu)),
        pid: curr.pid,
        comm: curr.comm.clone(),
        cpu: Some(at.cpu),
        on_rq: Some(1),
        class: Some(class.into()),
        sum_exec_ns: Some(15_000_000_000),
        start_time_ns: Some(80_000_000_000),
        ..TaskInfo::default()
    });
}

#[test]
fn cpu_lists() {
    assert_eq!(parse_cpus("0-3,8"), Some(vec![(0, 3), (8, 8)]));
    assert_eq!(parse_cpus(""), Some(vec![]));
    assert_eq!(parse_cpus("x"), None);
}

#[test]
fn a_queue_that_was_served_once_is_only_possible() {
    let found = findings(&stalled("0-1"), &[]);
    assert_eq!(rules(&stalled("0-1")), ["queue-stopped"]);
    assert!(found.iter().all(|f| f.confidence == "possible"));
}

#[test]
fn a_bound_task_that_others_pass_is_told_by_its_affinity() {
    let found = findings(&stalled("1"), &[]);
    let what = found.first().map(|f| f.what.as_str()).unwrap_or_default();
    assert!(
        what.starts_with("victim[7] may only run on CPU 1"),
        "{what}"
    );
    // Nobody passed it: the queue is empty but for it, and holds all that ever came.
    let mut report = stalled("1");
    if let Some(dsq) = report.dsqs.first_mut() {
        (dsq.nr, dsq.seq) = (1, 1);
        dsq.tasks.truncate(1);
    }
    assert_eq!(rules(&report), ["queue-never-consumed"]);
}

/// A queue gives its tasks out in order.
#[test]
fn a_bound_task_may_just_not_have_had_its_turn() {
    let mut report = stalled("1");
    report.tasks.push(TaskInfo {
        kva: Hex(0x9000),
        cpu: Some(0),
        cpus_allowed: Some("0".into()),
        migration_disabled: Some(0),
        ..TaskInfo::default()
    });
    if let Some(dsq) = report.dsqs.first_mut() {
        let first = QueuedTask {
            task_kva: Hex(0x9000),
            runnable_age_jiffies: Some(8),
            ..QueuedTask::default()
        };
        dsq.tasks.insert(0, first);
        dsq.nr = 3;
    }
    for task in &mut report.starved {
        task.dsq_position = Some(1);
    }
    // The one before it may only run elsewhere.
    let told = |report: &PostmortemReport| {
        let found = findings(report, &[]).into_iter().next();
        let found = found.unwrap_or_default();
        assert_eq!(found.rule, "affinity");
        (found.confidence, found.what)
    };
    let (sure, what) = told(&report);
    assert_eq!(sure, "likely");
    assert!(what.ends_with("not those that it may use"), "{what}");
    if let Some(task) = report.tasks.last_mut() {
        task.cpus_allowed = Some("0-1".into());
    }
    let (sure, what) = told(&report);
    assert_eq!(sure, "possible");
    assert!(
        what.ends_with("one task that may run there is before it"),
        "{what}"
    );
}

/// A task that is reniced or moved while it is queued is dequeued and put back.
#[test]
fn a_queue_that_only_the_kernel_took_from_is_not_served() {
    let mut report = stalled("1");
    if let Some(dsq) = report.dsqs.first_mut() {
        (dsq.nr, dsq.seq) = (1, 2);
        dsq.tasks.truncate(1);
    }
    let found = findings(&report, &[]);
    let found: Vec<_> = found
        .iter()
        .map(|f| (&*f.rule, &*f.confidence, &*f.what))
        .collect();
    let what = "nobody seems to take from DSQ 0x42 (user): the only task in it starves, and 1 of the 2 insertions has left it (taken, or dequeued by the kernel); victim[7] waited up to 20.000s";
    assert_eq!(found, [("queue-never-consumed", "likely", what)]);
    // A CPU sleeps that may only have to be woken.
    if let Some(cpu) = report.cpus.get_mut(1) {
        cpu.idle = Some(true);
        cpu.idle_state = Some(CpuIdle {
            idle_ns: Some(5_000_000_000),
            ..CpuIdle::default()
        });
    }
    assert_eq!(
        rules(&report),
        ["idle-cpu-with-waiting-work", "queue-never-consumed"]
    );
    // As many have left as make it a queue that is served.
    let mut served = stalled("1");
    for (seq, rule) in [(5, "affinity"), (4, "queue-stopped")] {
        if let Some(dsq) = served.dsqs.first_mut() {
            dsq.seq = seq;
        }
        assert_eq!(rules(&served).first().map(String::as_str), Some(rule));
    }
}

/// Nothing takes from a queue while no CPU that could is free.
#[test]
fn a_queue_that_no_cpu_could_serve_stands_behind_what_takes_the_cpus() {
    let mut report = stalled("1");
    if let Some(dsq) = report.dsqs.first_mut() {
        (dsq.nr, dsq.seq) = (1, 1);
        dsq.tasks.truncate(1);
    }
    let told = |report: &PostmortemReport| {
        let found = findings(report, &[]).into_iter();
        found
            .map(|f| format!("{} {}", f.rule, f.confidence))
            .collect::<Vec<_>>()
    };
    let mut hogged = report.clone();
    class(&mut hogged, 1, "rt");
    assert_eq!(
        told(&hogged),
        ["real-time-hog likely", "queue-never-consumed likely"]
    );
    // One that has just come is no cause.
    if let Some(task) = hogged.tasks.last_mut() {
        task.sum_exec_ns = Some(12_000_000);
    }
    assert_eq!(
        told(&hogged),
        ["queue-never-consumed certain", "real-time-hog possible"]
    );
    // The only CPU that it may use stands in the kernel, for 11 s of the 20.
    let mut stuck = report;
    for (cpu, clock) in stuck.cpus.iter_mut().zip([31_000_000_000, 20_000_000_000]) {
        cpu.clock_ns = Some(clock);
        cpu.context = Some(CpuContext {
            irqs_enabled: Some(false),
            ..CpuContext::default()
        });
    }
    if let Some(curr) = stuck.cpus.get_mut(1).and_then(|cpu| cpu.curr.as_mut()) {
        curr.kva = Hex(0x8000);
    }
    if let Some(task) = stuck.tasks.get_mut(1) {
        task.stack.push(Frame {
            symbol: Some("native_queued_spin_lock_slowpath+0x6c/0x2e0".into()),
            ..Frame::default()
        });
    }
    assert_eq!(
        told(&stuck),
        ["cpu-stuck likely", "queue-never-consumed likely"]
    );
    // Another could have served it.
    if let Some(task) = stuck.tasks.first_mut() {
        task.cpus_allowed = Some("0-1".into());
    }
    assert_eq!(
        told(&stuck),
        ["queue-never-consumed certain", "cpu-stuck likely"]
    );
}

#[test]
fn an_idle_cpu_counts_only_when_the_task_may_use_it() {
    let mut report = stalled("0-1");
    let idle = |report: &mut PostmortemReport, idle_ns| {
        if let Some(cpu) = report.cpus.first_mut() {
            cpu.idle = Some(true);
            cpu.idle_state = Some(CpuIdle {
                idle_ns,
                ..CpuIdle::default()
            });
        }
    };
    // Nobody knows for how long, or it has just gone to sleep.
    for idle_ns in [None, Some(99_000_000)] {
        idle(&mut report, idle_ns);
        assert_eq!(rules(&report), ["queue-stopped"]);
    }
    idle(&mut report, Some(367_296_673));
    let found = findings(&report, &[]).into_iter().next();
    let found = found.unwrap_or_default();
    assert_eq!(found.rule, "idle-cpu-with-waiting-work");
    let evidence = found.evidence.iter().map(|e| (&*e.path, &*e.value));
    assert!(
        evidence
            .into_iter()
            .any(|fact| fact == ("/postmortem/cpus/0/idle_state/idle_ns", "367296673"))
    );
    let mut bound = stalled("1");
    idle(&mut bound, Some(367_296_673));
    assert!(!rules(&bound).contains(&"idle-cpu-with-waiting-work".to_owned()));
    // It must not be moved, whatever its mask says.
    let mut pinned = report;
    if let Some(task) = pinned.tasks.first_mut() {
        task.migration_disabled = Some(1);
    }
    assert!(!rules(&pinned).contains(&"idle-cpu-with-waiting-work".to_owned()));
}

#[test]
fn a_real_time_task_on_one_of_two_cpus_is_no_reason() {
    let mut report = stalled("0-1");
    class(&mut report, 0, "rt");
    assert_eq!(rules(&report), ["queue-stopped"]);
    class(&mut report, 1, "dl");
    assert_eq!(rules(&report), ["real-time-hog"]);
    // One that has just come takes nothing, and hides no other rule.
    let mut young = report.clone();
    if let Some(task) = young.tasks.last_mut() {
        task.sum_exec_ns = Some(12_000_000);
    }
    assert_eq!(rules(&young), ["real-time-hog", "queue-stopped"]);
    assert!(
        findings(&young, &[])
            .iter()
            .all(|f| f.confidence == "possible")
    );
    // It has run for a while in a long life, and stands there now by chance.
    let mut old = report.clone();
    for cpu in &mut old.cpus {
        cpu.clock_ns = Some(1_000_000_000_000);
    }
    assert_eq!(rules(&old), ["real-time-hog", "queue-stopped"]);
    // It has not left the CPU for an eighth of the wait: it is no passer-by, however old.
    for cpu in &mut old.cpus {
        cpu.clock_behind_ns = Some(500_000_000);
        if let Some(curr) = &mut cpu.curr {
            curr.running_ns = Some(2_000_000_000);
        }
    }
    assert_eq!(
        first(&old, &[]),
        Some(("real-time-hog".into(), "likely".into()))
    );
    // A server lends sched_ext some of one CPU's time: it is no reason to hide another rule.
    if let Some(cpu) = old.cpus.first_mut() {
        cpu.throttling = Some(CpuThrottling {
            servers: vec![DlServer {
                class: "ext".into(),
                active: Some(true),
                runtime_ns: Some(50_000_000),
                ..DlServer::default()
            }],
            ..CpuThrottling::default()
        });
    }
    assert_eq!(rules(&old), ["real-time-hog", "queue-stopped"]);
    // An offline CPU serves nobody.
    let mut report = stalled("0-1");
    class(&mut report, 0, "stop");
    if let Some(cpu) = report.cpus.get_mut(1) {
        cpu.online = Some(false);
    }
    assert_eq!(rules(&report), ["real-time-hog"]);
}

/// The task on each CPU has run since `running_ns`, and has so much left of its slice.
fn holding(report: &mut PostmortemReport, running_ns: u64, slice_ns: u64) {
    for cpu in &mut report.cpus {
        let Some(curr) = cpu.curr.as_mut() else {
            continue;
        };
        curr.kva = Hex(0xc000 + u64::from(cpu.cpu));
        curr.running_ns = Some(running_ns);
        report.tasks.push(TaskInfo {
            kva: curr.kva,
            class: curr.class.clone(),
            slice_ns: Some(slice_ns),
            ..TaskInfo::default()
        });
    }
}

#[test]
fn a_task_with_an_infinite_slice_is_to_blame_and_not_the_queue() {
    let told = |report: &PostmortemReport| {
        let found = findings(report, &[]).into_iter();
        found
            .map(|f| format!("{} {}", f.rule, f.confidence))
            .collect::<Vec<_>>()
    };
    let mut report = stalled("1");
    holding(&mut report, 15_000_000_000, u64::MAX);
    let found = findings(&report, &[]);
    let found: Vec<_> = found
        .iter()
        .map(|f| (&*f.rule, &*f.confidence, &*f.what))
        .collect();
    let what = "one task each keeps all CPUs that victim[7] may use: busy[101] (ext) for 15.000s without a switch on CPU 1, with an infinite slice; waited up to 20.000s";
    assert_eq!(found, [("cpu-hog", "likely", what)]);
    // What is behind the newest clock counts as well. Of one that came later it is not known for how
    // long it has had the CPU before, but that nothing takes it away.
    let mut late = stalled("1");
    holding(&mut late, 9_000_000_000, u64::MAX);
    let unknown = [
        "cpu-hog possible",
        "affinity possible",
        "queue-stopped possible",
    ];
    assert_eq!(told(&late), unknown);
    if let Some(cpu) = late.cpus.get_mut(1) {
        cpu.clock_behind_ns = Some(1_000_000_000);
    }
    assert_eq!(told(&late), ["cpu-hog likely"]);
    // A higher class comes in between now and then. It began 15 s before the newest clock, 100 s, and
    // has run for all but 2 s of that; or 40 s before, and may have run before the wait of 20 s.
    for (start, ran, sure) in [(85, 13, true), (60, 35, true), (60, 29, false)] {
        let mut cut = stalled("1");
        holding(&mut cut, 300_000_000, u64::MAX);
        if let Some(task) = cut.tasks.last_mut() {
            task.start_time_ns = Some(start * 1_000_000_000);
            task.sum_exec_ns = Some(ran * 1_000_000_000);
        }
        let found: &[_] = if sure { &["cpu-hog likely"] } else { &unknown };
        assert_eq!(told(&cut), found, "{start} {ran}");
    }
    // It was let on each time its slice had ended: because nothing else was there for it?
    let mut short = stalled("1");
    holding(&mut short, 15_000_000_000, 20_000_000);
    assert_eq!(
        told(&short),
        [
            "cpu-hog possible",
            "affinity possible",
            "queue-stopped possible"
        ]
    );
    // The other CPU is free for it.
    let mut free = stalled("0-1");
    holding(&mut free, 15_000_000_000, u64::MAX);
    if let Some(curr) = free.cpus.first_mut().and_then(|cpu| cpu.curr.as_mut()) {
        curr.running_ns = Some(4_000_000);
    }
    if let Some(task) = free.tasks.iter_mut().find(|task| task.kva == Hex(0xc000)) {
        task.slice_ns = Some(16_000_000);
    }
    assert_eq!(told(&free), ["queue-stopped possible"]);
    // The queue is one that nobody takes from, and nobody could.
    let mut parked = report;
    if let Some(dsq) = parked.dsqs.first_mut() {
        dsq.seq = dsq.nr;
    }
    assert_eq!(
        told(&parked),
        ["cpu-hog likely", "queue-never-consumed likely"]
    );
}

/// `SCX_OPS_SWITCH_PARTIAL`: the fair class comes before sched_ext, and has most tasks.
#[test]
fn fair_tasks_are_above_where_the_scheduler_has_not_all() {
    let mut report = stalled("1");
    class(&mut report, 1, "fair");
    let rule = |report: &PostmortemReport| rules(report).into_iter().next();
    assert_eq!(rule(&report).as_deref(), Some("affinity"));
    for (switched_all, found) in [(true, "affinity"), (false, "real-time-hog")] {
        report.scheduler = Some(SchedulerInfo {
            switched_all: Some(switched_all),
            ..SchedulerInfo::default()
        });
        assert_eq!(rule(&report).as_deref(), Some(found), "{switched_all}");
    }
}

#[test]
fn bypass_is_a_finding_only_without_a_failure() {
    let mut report = PostmortemReport {
        scheduler: Some(SchedulerInfo {
            bypass_depth: Some(1),
            enable_state: Some("enabled".into()),
            ..SchedulerInfo::default()
        }),
        ..PostmortemReport::new("test")
    };
    assert_eq!(rules(&report), ["bypass"]);
    let certainty = |report: &PostmortemReport| {
        let found = findings(report, &[]).into_iter();
        found.map(|f| f.confidence).collect::<Vec<_>>()
    };
    assert_eq!(certainty(&report), ["certain"]);
    // To be enabled takes a moment, for which it is bypassed.
    if let Some(scheduler) = &mut report.scheduler {
        scheduler.enable_state = Some("enabling".into());
    }
    assert_eq!(certainty(&report), ["possible"]);
    for (ms, sure) in [(700, &[][..]), (11_608, &["likely"])] {
        if let Some(scheduler) = &mut report.scheduler {
            scheduler.bypassed_ms = Some(ms);
        }
        assert_eq!(certainty(&report), sure, "{ms}");
    }
    report.exit_info = Some(ExitInfo {
        kind: 1026,
        kind_name: Some("SCX_EXIT_ERROR_STALL".into()),
        ..ExitInfo::default()
    });
    assert!(rules(&report).is_empty());
}

#[test]
fn a_scheduler_that_is_thrown_out_is_told_until_the_record_says_why() {
    let mut report = PostmortemReport {
        scheduler: Some(SchedulerInfo {
            aborting: Some(true),
            exit_kind: Some(1027),
            exit_kind_name: Some("SCX_EXIT_ERROR_STALL".into()),
            ..SchedulerInfo::default()
        }),
        exit_info: Some(ExitInfo::default()),
        ..PostmortemReport::new("test")
    };
    let found = findings(&report, &[]);
    let what = found.first().map(|f| f.what.as_str()).unwrap_or_default();
    assert_eq!(
        what,
        "the scheduler is being thrown out (SCX_EXIT_ERROR_STALL), and the kernel has not written down why yet"
    );
    // Stored a moment before `aborting`, which kernels before 6.19 do not have.
    for aborting in [Some(false), None] {
        if let Some(scheduler) = &mut report.scheduler {
            scheduler.aborting = aborting;
        }
        assert_eq!(rules(&report), ["aborting"]);
    }
    if let Some(exit) = &mut report.exit_info {
        exit.kind = 1027;
    }
    assert!(rules(&report).is_empty());
    // Somebody has unloaded it (SCX_EXIT_UNREG).
    report.exit_info = None;
    if let Some(scheduler) = &mut report.scheduler {
        scheduler.exit_kind = Some(64);
    }
    assert!(rules(&report).is_empty());
}

/// What `scx_bpf_error()` of corpus/error-7.3 leaves behind.
fn failed(msg: &str, dump: Option<KernelDump>) -> PostmortemReport {
    PostmortemReport {
        scheduler: Some(SchedulerInfo {
            found_via: "scx_root".into(),
            ..SchedulerInfo::default()
        }),
        exit_info: Some(ExitInfo {
            kind: 1025,
            kind_name: Some("SCX_EXIT_ERROR_BPF".into()),
            exit_cpu: Some(1),
            reason: Some("scx_bpf_error".into()),
            msg: Some(msg.into()),
            dump: dump.as_ref().map(|_| "…".into()),
            parsed_dump: dump,
            ..ExitInfo::default()
        }),
        ..stalled("0-1")
    }
}

#[test]
fn an_error_exit_names_the_task_and_rests_on_what_is_there() {
    let dump = KernelDump {
        comm: Some("trip-0".into()),
        pid: Some(212),
        exit_cpu: Some(1),
        ..KernelDump::default()
    };
    let first = |report: &PostmortemReport| {
        let found = findings(report, &[]).into_iter().next();
        let found = found.unwrap_or_default();
        let paths: Vec<String> = found.evidence.into_iter().map(|e| e.path).collect();
        (found.what, paths)
    };
    let (what, paths) = first(&failed("tripped over pid 212", Some(dump.clone())));
    assert_eq!(
        what,
        "the scheduler called scx_bpf_error(), while CPU 1 ran trip-0[212]: tripped over pid 212"
    );
    let of = |names: &[&str]| -> Vec<String> {
        let names = names.iter().map(|name| format!("/postmortem/{name}"));
        names.collect()
    };
    assert_eq!(
        paths,
        of(&[
            "exit_info/kind_name",
            "exit_info/msg",
            "exit_info/parsed_dump/comm",
            "exit_info/parsed_dump/pid",
            "exit_info/parsed_dump/exit_cpu",
        ])
    );
    // Before 7.2 neither the record nor the dump's head has the CPU.
    let mut older = failed(
        "x",
        Some(KernelDump {
            exit_cpu: None,
            ..dump.clone()
        }),
    );
    if let Some(exit) = &mut older.exit_info {
        exit.exit_cpu = None;
    }
    let (what, paths) = first(&older);
    assert_eq!(
        what,
        "the scheduler called scx_bpf_error(), in the context of trip-0[212]: x"
    );
    assert_eq!(
        paths,
        of(&[
            "exit_info/kind_name",
            "exit_info/msg",
            "exit_info/parsed_dump/comm",
            "exit_info/parsed_dump/pid",
        ])
    );
    // No message: the reason stands for it, and is the evidence.
    let (what, paths) = first(&failed("", Some(dump)));
    assert!(what.ends_with(": scx_bpf_error"), "{what}");
    assert_eq!(paths.get(1), of(&["exit_info/reason"]).first());
    // Before the kernel has written its dump, the CPU still runs the task.
    let (what, paths) = first(&failed("x", None));
    assert!(what.contains("while CPU 1 ran busy[101]: x"), "{what}");
    assert_eq!(paths.get(2), of(&["cpus/1/curr/comm"]).first());
}

/// By then the program has returned: only the kernel's own functions are on the stack.
#[test]
fn a_queue_that_is_not_there_is_told_with_who_put_a_task_into_it() {
    let told = |function: &str, has_ops: &[&str]| {
        let mut report = failed("non-existent DSQ 0xbad", None);
        report.scheduler = Some(SchedulerInfo {
            has_ops: has_ops.iter().map(|&op| op.to_owned()).collect(),
            ..SchedulerInfo::default()
        });
        if let Some(exit) = &mut report.exit_info {
            exit.kind_name = Some("SCX_EXIT_ERROR".into());
            exit.backtrace = ["scx_vexit+0x1/0x2", function, "enqueue_task+0x3/0x4"]
                .map(|symbol| Frame {
                    symbol: Some(symbol.into()),
                    ..Frame::default()
                })
                .to_vec();
        }
        let found = findings(&report, &[])
            .into_iter()
            .next()
            .unwrap_or_default();
        assert_eq!(found.rule, "error-exit");
        let frame = "/postmortem/exit_info/backtrace/1/symbol";
        let known = found
            .evidence
            .iter()
            .any(|e| e.path == frame && e.value == function);
        assert_eq!(known, found.advice.is_some());
        (found.what, found.advice)
    };
    let (what, advice) = told("scx_do_enqueue_task+0x1/0x2", &["enqueue", "dispatch"]);
    assert_eq!(
        what,
        "the kernel threw the scheduler out for an error: non-existent DSQ 0xbad; ops.enqueue() had put the task there"
    );
    assert_eq!(
        advice.as_deref(),
        Some(
            "create the queue with scx_bpf_create_dsq(), in ops.init() for instance, before a task is put there, or put it into one that the scheduler has, as 0x42"
        )
    );
    let (what, _) = told("do_enqueue_task+0x1/0x2", &["select_cpu", "enqueue"]);
    assert!(
        what.ends_with("; ops.enqueue() or ops.select_cpu() had put the task there"),
        "{what}"
    );
    let (what, _) = told("flush_dispatch_buf+0x1/0x2", &["enqueue"]);
    assert!(
        what.ends_with("; ops.dispatch() had put the task there"),
        "{what}"
    );
    let (what, advice) = told("worker_thread+0x1/0x2", &["enqueue"]);
    assert!(
        what.ends_with("non-existent DSQ 0xbad") && advice.is_none(),
        "{what}"
    );
    // A program that says so itself has put nothing anywhere.
    let mut report = failed("non-existent DSQ 0xbad", None);
    if let Some(exit) = &mut report.exit_info {
        exit.kind_name = Some("SCX_EXIT_ERROR_BPF".into());
        exit.backtrace = vec![Frame {
            symbol: Some("do_enqueue_task+0x1/0x2".into()),
            ..Frame::default()
        }];
    }
    let found = findings(&report, &[]);
    let own = &found.first().unwrap().what;
    assert!(!own.contains("had put the task there"), "{own}");
}

#[test]
fn what_is_not_known_is_no_finding() {
    let mut report = stalled("1");
    for task in &mut report.tasks {
        task.cpus_allowed = None;
    }
    assert_eq!(rules(&report), ["queue-stopped"]);
    report.dsqs.clear();
    assert_eq!(rules(&report), ["starved-task"]);
    report.starved.clear();
    assert!(rules(&report).is_empty());
}

#[test]
fn a_task_that_the_bpf_scheduler_keeps_is_told_when_nothing_else_is() {
    let mut report = stalled("0-1");
    report.dsqs.clear();
    for task in &mut report.starved {
        (task.dsq_id, task.dsq_kva, task.dsq_position) = (None, None, None);
        task.dsq_origin = None;
    }
    if let Some(task) = report.tasks.first_mut() {
        task.ops_state = Some("QUEUED".into());
    }
    // An idle CPU is not why.
    if let Some(cpu) = report.cpus.first_mut() {
        cpu.idle = Some(true);
        cpu.idle_state = Some(CpuIdle {
            idle_ns: Some(5_000_000_000),
            ..CpuIdle::default()
        });
    }
    let found = findings(&report, &[]);
    let found: Vec<_> = found
        .iter()
        .map(|f| (&*f.rule, &*f.confidence, &*f.what))
        .collect();
    let what = "victim[7] has been runnable for 20.000s without running: ops.enqueue() was given it, and the BPF scheduler has put it on no DSQ since";
    assert_eq!(found, [("starved-task", "likely", what)]);
}

#[test]
fn after_the_ejection_the_kernels_dump_tells_who_waited() {
    let waited = |pid, runnable_ms| DumpTask {
        pid,
        comm: format!("task-{pid}"),
        runnable_ms,
        dsq_id: Some(Hex(0x42)),
        ..DumpTask::default()
    };
    let report = PostmortemReport {
        exit_info: Some(ExitInfo {
            kind: 1026,
            kind_name: Some("SCX_EXIT_ERROR_STALL".into()),
            msg: Some("task-2[2] failed to run for 9.3s".into()),
            parsed_dump: Some(KernelDump {
                cpus: vec![DumpCpu {
                    tasks: vec![waited(1, -40), waited(2, -9300)],
                    ..DumpCpu::default()
                }],
                ..KernelDump::default()
            }),
            ..ExitInfo::default()
        }),
        ..PostmortemReport::new("test")
    };
    let found = findings(&report, &[]);
    let what = found.first().map(|f| f.what.as_str()).unwrap_or_default();
    assert_eq!(
        what,
        "the watchdog threw the scheduler out (task-2[2] failed to run for 9.3s); in the kernel's dump task-2[2] had waited longest, 9.300s, on DSQ 0x42"
    );
    assert_eq!(found.len(), 1);
}

/// The scheduler uses map 5, at 0x5000, in `ops.enqueue()`.
fn with_map(mut report: PostmortemReport, map: MapInfo) -> PostmortemReport {
    report.maps.push(MapInfo {
        id: 5,
        kva: Hex(0x5000),
        name: "it".into(),
        ..map
    });
    report.active = Some(ActiveInfo {
        maps: vec![MapRef {
            id: Some(5),
            ..MapRef::default()
        }],
        callbacks: vec![Callback {
            member: "enqueue".into(),
            prog: NamedId {
                id: 9,
                ..NamedId::default()
            },
            ..Callback::default()
        }],
        ..ActiveInfo::default()
    });
    report.programs.push(ProgramInfo {
        id: 9,
        maps: vec![MapRef {
            id: Some(5),
            ..MapRef::default()
        }],
        ..ProgramInfo::default()
    });
    report
}

fn first(report: &PostmortemReport, shared: &[FailureDumpMap]) -> Option<(String, String)> {
    let found = findings(report, shared).into_iter();
    found.map(|f| (f.rule, f.confidence)).next()
}

#[test]
fn a_ring_buffer_is_full_when_the_next_record_does_not_fit() {
    let report = with_map(
        stalled("0-1"),
        MapInfo {
            flags: Some(Flags::default()),
            records: vec![RingRecord {
                len: 16,
                ..RingRecord::default()
            }],
            ..MapInfo::default()
        },
    );
    let shared = |consumer_pos, pending_bytes| {
        [FailureDumpMap {
            map_kva: 0x5000,
            ringbuf: Some(FailureDumpRingbuf {
                capacity: 4096,
                consumer_pos,
                pending_bytes,
                ..FailureDumpRingbuf::default()
            }),
            ..FailureDumpMap::default()
        }]
    };
    let full = Some(("ringbuf-full".to_owned(), "likely".to_owned()));
    assert_eq!(first(&report, &shared(800, 4080)), full);
    assert_ne!(first(&report, &shared(800, 4072)), full);
    // One that nobody was ever meant to read says less.
    let unread = Some(("ringbuf-full".to_owned(), "possible".to_owned()));
    assert_eq!(first(&report, &shared(0, 4080)), unread);
    // Nor does one that only tells of what happened.
    let mut told = report.clone();
    if let Some(active) = &mut told.active {
        active.callbacks.clear();
    }
    assert_eq!(first(&told, &shared(800, 4080)), unread);
    // A real-time task has the CPUs: its reader is likely to be one of those that wait.
    let mut hogged = report.clone();
    class(&mut hogged, 0, "rt");
    class(&mut hogged, 1, "rt");
    let found: Vec<_> = findings(&hogged, &shared(800, 4080))
        .into_iter()
        .map(|f| (f.rule, f.confidence))
        .collect();
    let told = |rule: &str, sure: &str| (rule.to_owned(), sure.to_owned());
    assert_eq!(
        found,
        [
            told("real-time-hog", "likely"),
            told("ringbuf-full", "possible")
        ]
    );
    // Nobody waits, or it is somebody else's.
    let mut healthy = report.clone();
    healthy.starved.clear();
    assert_eq!(first(&healthy, &shared(800, 4080)), None);
    let mut other = report;
    other.active = None;
    assert_ne!(first(&other, &shared(800, 4080)), full);
}

#[test]
fn a_full_arena_is_why_when_those_without_a_context_starve() {
    let mut report = with_map(
        stalled("0-1"),
        MapInfo {
            max_entries: Some(9),
            ..MapInfo::default()
        },
    );
    report.arenas.push(ArenaInfo {
        map_id: 5,
        kva: Hex(0x5000),
        pages: Some(9),
        ..ArenaInfo::default()
    });
    let found = |confidence: &str| Some(("arena-exhausted".to_owned(), confidence.to_owned()));
    assert_eq!(first(&report, &[]), found("possible"));
    let owner = |kva| StorageOwner {
        kva: Hex(kva),
        ..StorageOwner::default()
    };
    report.maps.push(MapInfo {
        id: 6,
        kva: Hex(0x6000),
        type_name: Some("task_storage".into()),
        entries: Some(1),
        owners: vec![owner(0x8000)],
        ..MapInfo::default()
    });
    if let Some(active) = &mut report.active {
        active.maps.push(MapRef {
            id: Some(6),
            ..MapRef::default()
        });
    }
    // It may be made when a task first runs, which these never did; and then their queue is why.
    assert_eq!(first(&report, &[]), found("likely"));
    let mut parked = report.clone();
    if let Some(dsq) = parked.dsqs.first_mut() {
        dsq.seq = dsq.nr;
    }
    let unserved = ("queue-never-consumed".to_owned(), "certain".to_owned());
    assert_eq!(first(&parked, &[]), Some(unserved));
    // Here ops.init_task() makes it, out of the arena.
    if let Some(callback) = report
        .active
        .iter_mut()
        .flat_map(|a| &mut a.callbacks)
        .next()
    {
        callback.member = "init_task".into();
    }
    if let Some(program) = report.programs.first_mut() {
        program.maps.push(MapRef {
            id: Some(6),
            ..MapRef::default()
        });
    }
    assert_eq!(first(&report, &[]), found("certain"));
    // A task of the scheduler that runs has none either: the storage is not of all tasks.
    let mut others = report.clone();
    others.tasks.push(TaskInfo {
        kva: Hex(0x9000),
        class: Some("ext".into()),
        ..TaskInfo::default()
    });
    assert_eq!(first(&others, &[]), found("possible"));
    // One of another class needs none.
    if let Some(task) = others.tasks.last_mut() {
        task.class = Some("rt".into());
    }
    assert_eq!(first(&others, &[]), found("certain"));
    // The task that starves has one.
    if let Some(map) = report.maps.last_mut() {
        map.owners = vec![owner(0x7000)];
    }
    assert_eq!(first(&report, &[]), found("possible"));
    // There is room.
    if let Some(arena) = report.arenas.first_mut() {
        arena.pages = Some(8);
    }
    assert_ne!(first(&report, &[]), found("possible"));
}

#[test]
fn a_cpu_is_stuck_only_in_the_kernel_and_not_when_idle() {
    let mut report = stalled("0-1");
    report.starved.clear();
    for (cpu, clock) in report.cpus.iter_mut().zip([9_000_000_000, 5_000_000_000]) {
        cpu.clock_ns = Some(clock);
    }
    if let Some(curr) = report.cpus.get_mut(1).and_then(|cpu| cpu.curr.as_mut()) {
        curr.kva = Hex(0x8000);
    }
    // In user space, as far as anybody knows.
    assert_eq!(first(&report, &[]), None);
    if let Some(task) = report.tasks.get_mut(1) {
        task.stack.push(Frame {
            symbol: Some("bpf_prog_0123456789abcdef_spin+0x1/0x2".into()),
            source: Some("spin.bpf.c:3".into()),
            ..Frame::default()
        });
    }
    let found = findings(&report, &[]);
    let what = found.first().map(|f| f.what.as_str()).unwrap_or_default();
    assert!(what.contains("4.000s"), "{what}");
    // Interrupts may be on, for all that is known: the host may not have run the vCPU.
    assert_eq!(
        found.first().map(|f| f.confidence.as_str()),
        Some("possible")
    );
    assert!(
        what.ends_with("in the BPF program spin() at spin.bpf.c:3"),
        "{what}"
    );
    let mut off = report.clone();
    if let Some(cpu) = off.cpus.get_mut(1) {
        cpu.context = Some(CpuContext {
            irqs_enabled: Some(false),
            ..CpuContext::default()
        });
    }
    let stuck = |sure: &str| Some(("cpu-stuck".to_owned(), sure.to_owned()));
    assert_eq!(first(&off, &[]), stuck("certain"));
    let advice = |report: &PostmortemReport| {
        let found = findings(report, &[]).into_iter().next();
        found.and_then(|f| f.advice).unwrap_or_default()
    };
    assert!(advice(&off).starts_with("BPF callbacks run with interrupts off"));
    // Not in a program: a vCPU that did not run looks the same.
    if let Some(frame) = off.tasks.get_mut(1).and_then(|t| t.stack.first_mut()) {
        (frame.source, frame.symbol) = (
            None,
            Some("native_queued_spin_lock_slowpath+0x6c/0x2e0".into()),
        );
    }
    assert_eq!(first(&off, &[]), stuck("likely"));
    assert!(!advice(&off).contains("BPF"), "{}", advice(&off));
    // With nohz_full nobody expects a tick.
    if let Some(cpu) = off.cpus.get_mut(1) {
        cpu.tick = Some(CpuTick {
            stopped: Some(true),
            ..CpuTick::default()
        });
    }
    assert_eq!(first(&off, &[]), None);
    if let Some(cpu) = report.cpus.get_mut(1) {
        cpu.idle = Some(true);
    }
    assert_eq!(first(&report, &[]), None);
}

/// Its only CPU is in the kernel, where that task is at `symbol`.
fn alone(symbol: &str) -> PostmortemReport {
    let mut report = stalled("0-1");
    report.starved.clear();
    report.cpus.truncate(1);
    if let Some(cpu) = report.cpus.first_mut() {
        (cpu.clock_ns, cpu.clock_behind_ns) = (Some(28_922_660_348), Some(0));
        cpu.context = Some(CpuContext {
            irqs_enabled: Some(false),
            ..CpuContext::default()
        });
        if let Some(curr) = &mut cpu.curr {
            curr.kva = Hex(0x8000);
        }
    }
    if let Some(task) = report.tasks.get_mut(1) {
        task.stack.push(Frame {
            symbol: Some(symbol.into()),
            source: symbol
                .starts_with("bpf_prog_")
                .then(|| "stuck.bpf.c:28".into()),
            ..Frame::default()
        });
    }
    report
}

#[test]
fn the_only_cpu_is_stuck_when_time_itself_stands() {
    let mut report = alone("bpf_prog_86fc745902364c05_stuck_select_cpu+0xa8/0xcf");
    // Its own clock tells nothing: there is no other.
    assert_eq!(first(&report, &[]), None);
    for (age, found) in [
        (3_900_000, None),
        // A pause of the whole guest can be as long.
        (4_900_000_000, Some("likely")),
        (8_006_179_337, Some("certain")),
    ] {
        report.kernel = Some(KernelInfo {
            timekeeping_age_ns: Some(age),
            ..KernelInfo::default()
        });
        let found = found.map(|sure| ("cpu-stuck".to_owned(), sure.to_owned()));
        assert_eq!(first(&report, &[]), found, "{age}");
    }
    let found = findings(&report, &[]);
    let what = found.first().map(|f| f.what.as_str()).unwrap_or_default();
    assert!(what.contains("without a tick for 8.006s"), "{what}");
    let paths = found.iter().flat_map(|f| &f.evidence).map(|e| &*e.path);
    assert!(
        paths
            .into_iter()
            .any(|path| path == "/postmortem/kernel/timekeeping_age_ns")
    );
}

#[test]
fn preemption_is_off_where_not_even_the_highest_class_gets_in() {
    let mut report = alone("bpf_prog_86fc745902364c05_spin+0xa8/0xcf");
    if let Some(cpu) = report.cpus.first_mut() {
        cpu.context = Some(CpuContext {
            irqs_enabled: Some(true),
            preempt_disabled: Some(2),
            ..CpuContext::default()
        });
    }
    let mut with = |age_ns| {
        if let Some(cpu) = report.cpus.first_mut() {
            cpu.soft_lockup = Some(SoftLockup {
                age_ns: Some(age_ns),
                period_ns: Some(4_000_000_000),
            });
        }
        report.clone()
    };
    // The longest that was seen on a healthy guest is 4 steps.
    assert_eq!(first(&with(4 << 30), &[]), None);
    assert_eq!(first(&with(9 << 30), &[]), None);
    let report = with(12 << 30);
    let found = findings(&report, &[]);
    let told = found.first().map(|f| (&*f.rule, &*f.confidence, &*f.what));
    assert_eq!(
        told,
        Some((
            "preemption-off",
            "likely",
            "CPU 0 has been in the kernel with preemption off, for 11.811s or longer, with busy[100]: in the BPF program spin() at stuck.bpf.c:28; not even the highest class gets it"
        ))
    );
    // A task of that class runs.
    let mut stop = report.clone();
    if let Some(curr) = stop.cpus.first_mut().and_then(|cpu| cpu.curr.as_mut()) {
        curr.class = Some("stop".into());
    }
    assert_eq!(first(&stop, &[]), None);
    // In user space it can always be preempted.
    let mut user = report;
    user.tasks.iter_mut().for_each(|task| task.stack.clear());
    assert_eq!(first(&user, &[]), None);
}

#[test]
fn a_task_is_stranded_where_another_cpu_could_have_it() {
    let mut report = stalled("0-1");
    report.dsqs.clear();
    for task in &mut report.starved {
        task.dsq_origin = Some("local cpu 1".into());
    }
    let nothing = Some(("starved-task".to_owned(), "possible".to_owned()));
    assert_eq!(first(&report, &[]), nothing);
    let mut held = report.clone();
    holding(&mut held, 15_000_000_000, u64::MAX);
    let what = findings(&held, &[]).into_iter().map(|f| f.what).next();
    assert_eq!(
        what.as_deref(),
        Some(
            "victim[7] cannot leave the local DSQ of CPU 1, which runs busy[101] (ext) for 15.000s without a switch; waited up to 20.000s"
        )
    );
    class(&mut report, 1, "rt");
    let found = |confidence: &str| {
        let rule = "stranded-on-local-queue".to_owned();
        Some((rule, confidence.to_owned()))
    };
    assert_eq!(first(&report, &[]), found("likely"));
    let mut young = report.clone();
    if let Some(task) = young.tasks.last_mut() {
        task.sum_exec_ns = Some(12_000_000);
    }
    assert_eq!(first(&young, &[]), found("possible"));
    if let Some(cpu) = report.cpus.get_mut(1) {
        cpu.online = Some(false);
    }
    assert_eq!(first(&report, &[]), found("certain"));
    // All CPUs are taken: the queue makes no difference.
    class(&mut report, 0, "rt");
    assert_eq!(
        first(&report, &[]),
        Some(("real-time-hog".into(), "likely".into()))
    );
}

#[test]
fn a_slow_callback_stands_out_from_every_other() {
    let program = |id, name: &str, runs, time_ns| ProgramInfo {
        id,
        name: name.into(),
        stats: Some(ProgramStats {
            runs,
            time_ns,
            ..ProgramStats::default()
        }),
        ..ProgramInfo::default()
    };
    let report = |runs, enqueue_ns| PostmortemReport {
        active: Some(ActiveInfo {
            callbacks: ["enqueue", "dispatch", "init"]
                .into_iter()
                .zip(1..)
                .map(|(member, id)| Callback {
                    member: member.into(),
                    prog: NamedId {
                        id,
                        ..NamedId::default()
                    },
                    ..Callback::default()
                })
                .collect(),
            ..ActiveInfo::default()
        }),
        programs: vec![
            program(1, "slow_enqueue", runs, enqueue_ns),
            program(2, "slow_dispatch", 100, 10_000_000),
            program(3, "slow_init", 1, 900_000_000_000),
        ],
        ..PostmortemReport::new("test")
    };
    // The next takes 0.1 ms: 2.5 ms are 25 times that, and 1.9 ms 19 times.
    assert_eq!(rules(&report(500, 1_250_000_000)), ["slow-program"]);
    assert!(rules(&report(500, 950_000_000)).is_empty());
    // A few slow runs may be the host's, but for a second in all.
    assert!(rules(&report(100, 250_000_000)).is_empty());
    assert_eq!(rules(&report(100, 1_000_000_000)), ["slow-program"]);
}

#[test]
fn the_owner_of_a_lock_counts_while_it_is_kept_from_running() {
    let named = |pid: i32, kva| NamedTask {
        pid,
        comm: format!("task-{pid}"),
        kva: Hex(kva),
    };
    let mut report = stalled("0-1");
    report.locks = vec![LockInfo {
        kind: "mutex".into(),
        address: Hex(0xa000),
        owner: Some(named(7, 0x7000)),
        waiters: vec![named(21, 0x2100), named(22, 0x2200)],
        ..LockInfo::default()
    }];
    // It is not known to be off its CPU.
    assert_eq!(rules(&report), ["queue-stopped"]);
    if let Some(task) = report.tasks.first_mut() {
        (task.on_cpu, task.state) = (Some(false), Some("R".into()));
        (task.runnable_age_ms, task.dsq_id) = (Some(20_000), Some(Hex(0x42)));
    }
    let found = findings(&report, &[]);
    let first = found.first().cloned().unwrap_or_default();
    assert_eq!(
        (first.rule.as_str(), first.confidence.as_str()),
        ("lock-holder-off-cpu", "certain")
    );
    assert_eq!(
        first.what,
        "task-7[7] has the mutex at 0xa000 that task-21[21] and task-22[22] wait for, and has itself been runnable for 20.000s without running, on DSQ 0x42 (user)"
    );
    // Its own wait has a cause: nothing was ever taken from its queue, or others have its CPUs.
    let mut parked = report.clone();
    if let Some(dsq) = parked.dsqs.first_mut() {
        dsq.seq = dsq.nr;
    }
    assert_eq!(
        rules(&parked),
        ["queue-never-consumed", "lock-holder-off-cpu"]
    );
    let mut hogged = report.clone();
    class(&mut hogged, 0, "rt");
    class(&mut hogged, 1, "dl");
    assert_eq!(rules(&hogged), ["real-time-hog", "lock-holder-off-cpu"]);
    // A sleeping owner waits for something itself.
    let mut sleeping = report.clone();
    if let Some(task) = sleeping.tasks.first_mut() {
        task.state = Some("D".into());
    }
    assert_eq!(rules(&sleeping), ["queue-stopped"]);
    // One that was preempted just now is nobody's fault, and a long wait is likely to be.
    let mut young = report.clone();
    young.starved.clear();
    assert_eq!(rules(&young), ["lock-holder-off-cpu"]);
    assert!(
        findings(&young, &[])
            .iter()
            .all(|f| f.confidence == "likely")
    );
    // Against the watchdog's limit: as long as that may be, or as it is.
    for (limit_ms, age_ms, sure) in [
        (None, 7_500, Some("likely")),
        (None, 7_400, Some("possible")),
        (Some(8_000), 2_000, Some("likely")),
        (Some(8_000), 1_999, Some("possible")),
        (Some(2_000), 1_000, Some("likely")),
        (Some(2_000), 999, None),
        (Some(8_000), 20, None),
    ] {
        young.scheduler = limit_ms.map(|ms| SchedulerInfo {
            watchdog_timeout_ms: Some(ms),
            ..SchedulerInfo::default()
        });
        if let Some(task) = young.tasks.first_mut() {
            task.runnable_age_ms = Some(age_ms);
        }
        let found = findings(&young, &[]).into_iter().next();
        let found = found.map(|f| f.confidence);
        assert_eq!(found.as_deref(), sure, "{limit_ms:?} {age_ms}");
    }
    // Nobody else wants it.
    if let Some(lock) = report.locks.first_mut() {
        lock.waiters = vec![named(7, 0x7000)];
    }
    assert_eq!(rules(&report), ["queue-stopped"]);
}

#[test]
fn another_scheduler_that_failed_is_told() {
    let scheduler = |kva, kind, parent: Option<u64>| SchedulerInfo {
        ops_name: Some(format!("s{kva}")),
        sched_kva: Some(Hex(kva)),
        exit_kind: Some(kind),
        exit_kind_name: Some("SCX_EXIT_ERROR_STALL".into()),
        parent_kva: parent.map(Hex),
        ..SchedulerInfo::default()
    };
    let root = scheduler(1, 0, None);
    let mut report = PostmortemReport {
        scheduler: Some(root.clone()),
        schedulers: vec![root, scheduler(2, 64, None), scheduler(3, 1026, None)],
        ..PostmortemReport::new("test")
    };
    let told = |report: &PostmortemReport| {
        let found = findings(report, &[]).into_iter();
        found.map(|f| (f.confidence, f.what)).collect::<Vec<_>>()
    };
    let gone = "the scheduler s3, which is not attached any more, at 0x3 was thrown out: SCX_EXIT_ERROR_STALL (1026)";
    assert_eq!(told(&report), [("possible".into(), gone.into())]);
    // The kernel throws out a sub-scheduler alone.
    report.schedulers.truncate(1);
    report.schedulers.push(scheduler(4, 1026, Some(1)));
    let sub = "the sub-scheduler s4 at 0x4 was thrown out: SCX_EXIT_ERROR_STALL (1026)";
    assert_eq!(told(&report), [("certain".into(), sub.into())]);
}

#[test]
fn nothing_is_certain_that_was_read_while_the_guest_ran() {
    let mut report = stalled("0-1");
    if let Some(dsq) = report.dsqs.first_mut() {
        dsq.seq = dsq.nr;
    }
    let sure = |report: &PostmortemReport| first(report, &[]).map(|(_, sure)| sure);
    assert_eq!(sure(&report).as_deref(), Some("certain"));
    report.warnings.push(TORN.to_owned());
    assert_eq!(sure(&report).as_deref(), Some("likely"));
}

/// It runs every now and then, and was seen by chance.
#[test]
fn a_real_time_task_that_runs_a_tenth_of_the_time_is_no_reason() {
    for (ran_s, sure) in [(2, "possible"), (11, "likely")] {
        let mut report = stalled("1");
        class(&mut report, 1, "rt");
        if let Some(task) = report.tasks.last_mut() {
            task.sum_exec_ns = Some(ran_s * 1_000_000_000);
        }
        let found = findings(&report, &[]);
        let hog = found.iter().find(|f| f.rule == "real-time-hog");
        assert_eq!(hog.map(|f| &*f.confidence), Some(sure), "{ran_s}");
    }
}

#[test]
fn a_kernel_that_failed_comes_first() {
    let record = |level, text: &str| LogRecord {
        level,
        caller: "T101".into(),
        comm: Some("busybox".into()),
        text: text.into(),
        ..LogRecord::default()
    };
    let mut report = stalled("0-1");
    // What a program writes there, or the kernel in passing, is no failure.
    report.kernel_log.push(LogRecord {
        facility: 1,
        ..record(0, "Kernel panic - not syncing: said a program")
    });
    report.kernel_log.push(record(6, "Oops: not at all"));
    assert_eq!(rules(&report), ["queue-stopped"]);
    if let Some(curr) = report.cpus.get_mut(1).and_then(|cpu| cpu.curr.as_mut()) {
        curr.pid = 101;
    }
    let told = |report: &PostmortemReport| {
        let found = findings(report, &[]).into_iter().next();
        found.map(|f| (f.rule, f.confidence, f.what))
    };
    let found = |what: &str| Some(("kernel-panic".into(), "certain".into(), what.to_owned()));
    report.kernel_log.push(record(
        1,
        "BUG: unable to handle page fault for address: 42",
    ));
    let oops = "the guest's kernel had an oops: BUG: unable to handle page fault for address: 42 (busybox[101] on CPU 1)";
    assert_eq!(told(&report), found(oops));
    report.kernel_log.push(record(
        0,
        "Kernel panic - not syncing: sysrq triggered crash",
    ));
    let panic = "the guest's kernel panicked: sysrq triggered crash (busybox[101] on CPU 1)";
    assert_eq!(told(&report), found(panic));
}

/// Queue 0x42 has task 7 alone, and tasks come and go on another that both CPUs could take from.
fn outranked() -> PostmortemReport {
    let mut report = stalled("0-1");
    report.tasks[1].cpu = Some(0);
    let served = report.dsqs.first_mut().unwrap();
    served.tasks.truncate(1);
    served.nr = 1;
    report.dsqs.push(DsqInfo {
        id: Hex(0x43),
        origin: "user".into(),
        dsq_kva: Hex(0xd100),
        nr: 1,
        seq: 5000,
        tasks: vec![QueuedTask {
            task_kva: Hex(0x8000),
            runnable_age_ms: Some(40),
            ..QueuedTask::default()
        }],
        ..DsqInfo::default()
    });
    report
}

#[test]
fn a_queue_that_another_comes_before() {
    let report = outranked();
    let found = findings(&report, &[]);
    let [found] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(
        (&*found.rule, &*found.confidence),
        ("queue-outranked", "possible")
    );
    let (seq, left) = (report.dsqs[0].seq, report.dsqs[0].seq - report.dsqs[0].nr);
    assert_eq!(
        found.what,
        format!(
            "tasks wait in DSQ 0x42 (user), while {left} of {seq} insertions have left it (taken, or dequeued by the kernel), and others are taken from DSQ 0x43 (user), where the oldest has waited for 0.040s: ops.dispatch() seems to look at the former only when the latter is empty, or not any more; victim[7] waited up to 20.000s"
        )
    );
    let facts: Vec<_> = found
        .evidence
        .iter()
        .map(|e| (&*e.path, &*e.value))
        .collect();
    assert!(facts.contains(&("/postmortem/dsqs/1/tasks/0/runnable_age_ms", "40")));
    // What makes another explanation the better one, or leaves nothing to compare with.
    let changes: [fn(&mut PostmortemReport); 7] = [
        |r| r.dsqs[1].tasks[0].runnable_age_ms = Some(2501),
        |r| r.dsqs[1].tasks[0].runnable_age_ms = None,
        |r| r.dsqs[1].seq = 2,
        |r| r.dsqs[1].tasks.clear(),
        |r| r.dsqs[1].sched_kva = Some(Hex(0x5000)),
        |r| r.cpus[0].idle = Some(true),
        |r| r.tasks[0].cpus_allowed = Some("0".into()),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let mut other = outranked();
        change(&mut other);
        let told = rules(&other);
        assert!(
            !told.contains(&"queue-outranked".to_owned()),
            "{at}: {told:?}"
        );
        // The last is for `affinity`, which knows more.
        let next = if at == 6 { "affinity" } else { "queue-stopped" };
        assert_eq!(told, [next], "{at}");
    }
    // Two images show what was taken from each.
    let mut dual = outranked();
    let change = |id, kva, taken| DsqChange {
        id: Hex(id),
        dsq_kva: Hex(kva),
        early_nr: Some(1),
        late_nr: Some(1),
        taken_out: Some(taken),
        ..DsqChange::default()
    };
    dual.scheduler = Some(SchedulerInfo {
        watchdog_timeout_ms: Some(8000),
        ..SchedulerInfo::default()
    });
    dual.diff = Some(Box::new(EarlyLateDiff {
        elapsed_ns: Some(9_000_000_000),
        dsqs: vec![change(0x42, 0xd000, 0), change(0x43, 0xd100, 700)],
        ..EarlyLateDiff::default()
    }));
    let told = findings(&dual, &[]);
    let told: Vec<_> = told.iter().map(|f| (&*f.rule, &*f.confidence)).collect();
    assert_eq!(
        told,
        [
            ("queue-untouched", "certain"),
            ("queue-outranked", "likely")
        ]
    );
}

/// Nobody can tell whether it would be looked at if the other were empty.
#[test]
fn a_queue_that_was_never_served_may_be_outranked() {
    let mut report = outranked();
    report.dsqs[0].seq = 1;
    let advice = |report: &PostmortemReport| {
        let found = findings(report, &[]);
        let [found] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(found.rule, "queue-never-consumed");
        (found.confidence.clone(), found.advice.clone().unwrap())
    };
    // It is one single task, which the watchdog would have let wait for longer.
    report.scheduler = Some(SchedulerInfo {
        watchdog_timeout_ms: Some(30_000),
        ..SchedulerInfo::default()
    });
    let (sure, words) = advice(&report);
    assert_eq!(sure, "likely");
    assert!(
        words.ends_with("; if it does so only when DSQ 0x43 (user) is empty, which is served all the while, give this one a share"),
        "{words}"
    );
    report.dsqs[1].tasks.clear();
    let (_, words) = advice(&report);
    assert!(
        words.ends_with("on the CPUs that its tasks may use"),
        "{words}"
    );
}

#[test]
fn a_task_far_ahead_in_virtual_time() {
    let queued = |kva, ms, vtime| QueuedTask {
        task_kva: Hex(kva),
        runnable_age_ms: Some(ms),
        runnable_age_jiffies: Some(ms / 4),
        dsq_vtime: Some(vtime),
        slice_ns: Some(5_000_000),
        ..QueuedTask::default()
    };
    // Its virtual time has gone round since.
    let report = |by: u64| {
        let mut report = stalled("0-1");
        let start = u64::MAX - 10_000_000;
        report.tasks[1].cpu = Some(0);
        report.dsqs[0].order = Some("vtime".into());
        report.dsqs[0].tasks = vec![
            queued(0x8000, 40, start),
            queued(0x9000, 20, start + 6_000_000),
            queued(0x7000, 20_000, (start + 6_000_000).wrapping_add(by)),
        ];
        report.dsqs[0].nr = 3;
        report.starved[0].dsq_position = Some(2);
        report
    };
    // Those before it are 6 ms apart, and 16 times that is far.
    let found = findings(&report(96_000_000), &[]);
    let [found] = &found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(
        (&*found.rule, &*found.confidence),
        ("vtime-ahead", "likely")
    );
    assert_eq!(
        found.what,
        "victim[7] has waited for 20.000s in DSQ 0x42 (user), which is ordered by virtual time, since its own is far ahead: 2 younger tasks are before it, and dsq_vtime is 96000000 more than the last of theirs"
    );
    assert!(
        rules(&report(95_999_999)).is_empty() || rules(&report(95_999_999)) == ["starved-task"]
    );
    let changes: [fn(&mut PostmortemReport); 5] = [
        // It is not served at all: these have waited as long.
        |r| r.dsqs[0].tasks[0].runnable_age_ms = Some(2501),
        |r| r.dsqs[0].tasks[1].runnable_age_ms = None,
        |r| r.dsqs[0].order = Some("fifo".into()),
        |r| r.dsqs[0].tasks[2].dsq_vtime = None,
        // Its turn is next.
        |r| drop(r.dsqs[0].tasks.drain(..2)),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let mut other = report(96_000_000);
        change(&mut other);
        let told = rules(&other);
        assert!(!told.contains(&"vtime-ahead".to_owned()), "{at}: {told:?}");
    }
    // Those before it may only run where it may not.
    let mut bound = report(96_000_000);
    bound.tasks[0].cpus_allowed = Some("1".into());
    bound.tasks[1].cpus_allowed = Some("0".into());
    bound.dsqs[0].tasks.remove(1);
    assert!(!rules(&bound).contains(&"vtime-ahead".to_owned()));
    bound.tasks[1].cpus_allowed = Some("0-1".into());
    assert!(rules(&bound).contains(&"vtime-ahead".to_owned()));
}
