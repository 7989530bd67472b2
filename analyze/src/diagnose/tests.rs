//! Rules on small reports made by hand. Those that a shipped capture shows are in `tests/findings.rs`.

use scx_postmortem_format::report::{
    CurrTask, DsqInfo, ExitInfo, Hex, LockInfo, NamedTask, QueuedTask, SchedulerInfo,
};

use super::*;

/// Two CPUs that run sched_ext tasks; task 7 has waited 20 s at the head of a user queue from
/// which others were taken, and task 8, younger, is behind it.
fn stalled(cpus_allowed: &str) -> PostmortemReport {
    let cpu = |cpu| CpuInfo {
        cpu,
        online: Some(true),
        idle: Some(false),
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
    findings(report).into_iter().map(|f| f.rule).collect()
}

fn class(report: &mut PostmortemReport, cpu: usize, class: &str) {
    if let Some(curr) = report.cpus.get_mut(cpu).and_then(|c| c.curr.as_mut()) {
        curr.class = Some(class.into());
    }
}

#[test]
fn cpu_lists() {
    assert_eq!(parse_cpus("0-3,8"), Some(vec![(0, 3), (8, 8)]));
    assert_eq!(parse_cpus(""), Some(vec![]));
    assert_eq!(parse_cpus("x"), None);
}

#[test]
fn a_queue_that_was_served_once_is_only_possible() {
    let found = findings(&stalled("0-1"));
    assert_eq!(rules(&stalled("0-1")), ["queue-stopped"]);
    assert!(found.iter().all(|f| f.confidence == "possible"));
}

#[test]
fn a_bound_task_that_others_pass_is_told_by_its_affinity() {
    let found = findings(&stalled("1"));
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

#[test]
fn an_idle_cpu_counts_only_when_the_task_may_use_it() {
    let mut report = stalled("0-1");
    if let Some(cpu) = report.cpus.first_mut() {
        cpu.idle = Some(true);
    }
    assert_eq!(
        rules(&report).first().map(String::as_str),
        Some("idle-cpu-with-waiting-work")
    );
    let mut bound = stalled("1");
    if let Some(cpu) = bound.cpus.first_mut() {
        cpu.idle = Some(true);
    }
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
    // An offline CPU serves nobody.
    let mut report = stalled("0-1");
    class(&mut report, 0, "stop");
    if let Some(cpu) = report.cpus.get_mut(1) {
        cpu.online = Some(false);
    }
    assert_eq!(rules(&report), ["real-time-hog"]);
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
    report.exit_info = Some(ExitInfo {
        kind: 1026,
        kind_name: Some("SCX_EXIT_ERROR_STALL".into()),
        ..ExitInfo::default()
    });
    assert!(rules(&report).is_empty());
}

#[test]
fn what_is_not_known_is_no_finding() {
    let mut report = stalled("1");
    for task in &mut report.tasks {
        task.cpus_allowed = None;
    }
    assert_eq!(rules(&report), ["queue-stopped"]);
    report.dsqs.clear();
    assert!(rules(&report).is_empty());
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
    let found = findings(&report);
    let first = found.first().cloned().unwrap_or_default();
    assert_eq!(
        (first.rule.as_str(), first.confidence.as_str()),
        ("lock-holder-off-cpu", "certain")
    );
    assert_eq!(
        first.what,
        "task-7[7] has the mutex at 0xa000 that task-21[21] and task-22[22] wait for, and has itself been runnable for 20.000s without running, on DSQ 0x42"
    );
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
    assert!(findings(&young).iter().all(|f| f.confidence == "likely"));
    if let Some(task) = young.tasks.first_mut() {
        task.runnable_age_ms = Some(20);
    }
    assert!(rules(&young).is_empty());
    // Nobody else wants it.
    if let Some(lock) = report.locks.first_mut() {
        lock.waiters = vec![named(7, 0x7000)];
    }
    assert_eq!(rules(&report), ["queue-stopped"]);
}
