//! Expressions over shipped captures: values that are known, errors that point at the spot, and
//! expressions that nobody would write.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use scx_postmortem_analyze::analysis::Options;
use scx_postmortem_analyze::query::{Answer, QueryError, Session, Shown};
use scx_postmortem_format::report::{FailureDumpReport, RenderedValue};
use scx_postmortem_tests::entry;

fn text(session: &Session<'_>, expression: &str) -> String {
    match session.ask(expression) {
        Ok(answer) => answer.value.to_string(),
        Err(error) => panic!("{}", error.show(expression)),
    }
}

fn error(session: &Session<'_>, expression: &str) -> QueryError {
    match session.ask(expression) {
        Ok(Answer { value, .. }) => panic!("{expression} is {value}"),
        Err(error) => error,
    }
}

#[test]
fn what_is_known_of_a_guest_is_what_expressions_say() {
    let kernel = entry("stall-6.18").unwrap().kernel().unwrap();
    let session = Session::of_kernel(&kernel, Options::default());
    for (expression, wanted) in [
        ("bss.nr_parked", "6"),
        ("var(\"nr_parked\")", "6"),
        ("map(\"demo.bss\").nr_parked", "6"),
        ("map(\"demo.bss\")[0].nr_parked", "6"),
        ("dsq(0xdead5).nr", "6"),
        ("task(188).comm", "\"starve-1\""),
        ("task(\"starve-1\").pid", "188"),
        ("task(188).scx.dsq.id", "912085"),
        ("task(188).scx.dsq->id", "912085"),
        ("(*task(188).scx.dsq).id", "912085"),
        ("(u8)task(188).scx.dsq.id", "213"),
        ("(s8)task(188).scx.dsq.id", "-43"),
        ("(&task(188).scx).dsq.nr", "6"),
        ("task(188).group_leader.pid", "188"),
        ("rq(1).cpu", "1"),
        ("symbol(\"runqueues\")[1].cpu", "1"),
        ("symbol(\"runqueues\")[*].cpu", "0\n1"),
        ("per_cpu(\"runqueues\", 0).cpu", "0"),
        ("rq(task(188).wake_cpu).cpu == 1", ""),
        ("sched().ops.name", "\"demo_stall\""),
        ("symbol(\"scx_root\").ops.name", "\"demo_stall\""),
        ("symbol(\"nr_cpu_ids\")", "2"),
        ("*(unsigned int *)&symbol(\"nr_node_ids\")", "1"),
        (
            "symbol(\"init_uts_ns\").name.release",
            "\"6.18.15+deb13-cloud-amd64\"",
        ),
        ("sizeof(\"struct list_head\")", "16"),
        ("scx_sched_state.exit_kind", "1026"),
        ("report.scx_sched_state.exit_kind", "1026"),
        (
            "report.postmortem.starved[*].comm",
            "starve-1\nstarve-0\nstarve-mt.1\nstarve-mt.2\nstarve-mt\nstarve-2",
        ),
        ("report.postmortem.starved[0].dsq_id", "0xdead5"),
        ("17", "17"),
        ("-17", "-17"),
        ("0x10", "16"),
    ] {
        if expression.contains("==") {
            // No comparisons: the equal sign is told.
            assert_eq!(error(&session, expression).span, 27..28);
            continue;
        }
        assert_eq!(text(&session, expression), wanted, "{expression}");
    }
    // The same object by its address, with type and address in the answer.
    let answer = session.ask("task(188)").unwrap();
    let address = answer.address.unwrap();
    assert_eq!(answer.r#type.as_deref(), Some("struct task_struct"));
    let cast = format!("(struct task_struct *){address}");
    assert_eq!(text(&session, &format!("{cast}.comm")), "\"starve-1\"");
    assert_eq!(text(&session, &format!("({cast})[0].pid")), "188");
    let answer = session.ask("&task(188).scx.dsq").unwrap();
    assert_eq!(answer.r#type.as_deref(), Some("struct scx_dispatch_q * *"));
    // A bit field has a value and no address.
    let answer = session.ask("task(188).sched_reset_on_fork").unwrap();
    assert_eq!(answer.address, None);
    assert!(matches!(
        answer.value,
        Shown::Rendered(RenderedValue::Uint { bits: 1, value: 0 })
    ));
}

#[test]
fn entries_of_maps_are_reached_by_their_keys() {
    let kernel = entry("maps-7.3").unwrap().kernel().unwrap();
    let session = Session::of_kernel(&kernel, Options::default());
    let report = entry("maps-7.3").unwrap().report().unwrap();
    let own = report.postmortem.as_ref().unwrap();
    let mut storages = 0;
    let mut hashes = 0;
    for map in &report.maps {
        let info = own.maps.iter().find(|m| m.kva.0 == map.map_kva).unwrap();
        let id = info.id;
        for (i, entry) in map.entries.iter().enumerate().take(3) {
            let Some(value) = &entry.value else { continue };
            let key = match (info.owners.get(i).and_then(|o| o.id), &entry.key) {
                (Some(owner), _) => {
                    let owners = info.owners.iter();
                    if owners.filter(|o| o.id == Some(owner)).count() > 1 {
                        continue;
                    }
                    storages += 1;
                    owner.to_string()
                }
                (None, Some(RenderedValue::Uint { value, .. })) => {
                    hashes += 1;
                    value.to_string()
                }
                _ => format!("\"hex:{}\"", entry.key_hex),
            };
            let expression = format!("map({id})[{key}]");
            let answer = session.ask(&expression);
            let answer = answer.unwrap_or_else(|e| panic!("{}: {}", map.name, e.show(&expression)));
            assert_eq!(answer.value, Shown::Rendered(value.clone()), "{expression}");
        }
        for slot in map.percpu_entries.iter().take(2) {
            let expression = format!("map({id})[{}][1]", slot.key);
            let wanted = slot.per_cpu[1].clone().unwrap();
            assert_eq!(
                session.ask(&expression).unwrap().value,
                Shown::Rendered(wanted)
            );
        }
        for slot in map
            .array_entries
            .iter()
            .filter(|slot| slot.value.is_some())
            .take(2)
        {
            let expression = format!("map({id})[{}]", slot.key);
            let wanted = slot.value.clone().unwrap();
            assert_eq!(
                session.ask(&expression).unwrap().value,
                Shown::Rendered(wanted)
            );
        }
    }
    assert!(storages > 5 && hashes > 5, "{storages} {hashes}");
}

#[test]
fn maps_without_entries_say_where_their_contents_are() {
    let kernel = entry("maps-7.3").unwrap().kernel().unwrap();
    let session = Session::of_kernel(&kernel, Options::default());
    for (expression, said) in [
        ("map(\"ring\")[0]", "].records"),
        ("map(\"prog_array\")[0]", "].targets"),
        ("map(\"prog_array\")[*]", "].targets"),
        ("map(\"stacks\")[0]", "].stacks"),
        ("map(\"arena\")[0]", "].arena"),
        ("map(\"like_rhash\")[0]", "it is empty"),
    ] {
        let error = error(&session, expression);
        assert!(error.message.contains(said), "{expression}: {error}");
    }
    assert!(text(&session, "map(\"prog_array\").targets[0].name").contains("tail_root"));
    assert_eq!(text(&session, "map(\"hash_of_maps\")[11]"), "48");
    let near = error(&session, "map(\"hash_pre\")[7920]").near;
    assert_eq!(near[0], "7919");
    let size = text(&session, "sizeof(\"struct rq\")");
    assert_eq!(text(&session, "sizeof(struct rq)"), size);
    assert_eq!(error(&session, "sizeof(\"rq\")").near, ["struct rq"]);
    let cast = error(&session, "(task_struct *)4096.pid");
    assert_eq!(cast.near, ["struct task_struct"]);
    let tasks = error(&session, "report.tasks[*].comm").message;
    assert!(tasks.contains("report.postmortem.tasks"), "{tasks}");
}

#[test]
fn errors_point_at_the_spot_and_list_near_names() {
    let kernel = entry("stall-6.18").unwrap().kernel().unwrap();
    let session = Session::of_kernel(&kernel, Options::default());
    for (expression, span, said, near) in [
        (
            "rq(1).scx.nr_runing",
            10..19,
            "struct scx_rq has no member nr_runing",
            Some("nr_running"),
        ),
        ("rq(7)", 3..4, "there is no CPU 7; possible are 0-1", None),
        (
            "bss.nr_park",
            4..11,
            "has no member nr_park",
            Some("nr_parked"),
        ),
        (
            "map(\"demo.bs\")",
            4..13,
            "there is no map \"demo.bs\"",
            Some("demo.bss"),
        ),
        (
            "map(9999)",
            4..8,
            "no map has the id 9999; there are: ",
            None,
        ),
        ("tsk(1)", 0..6, "there is no function tsk", Some("task")),
        ("task()", 0..6, "expected task(PID|\"COMM\")", None),
        (
            "task(\"starve-9\")",
            5..15,
            "no task has the name \"starve-9\"",
            Some("starve-0"),
        ),
        (
            "task(4000000)",
            5..12,
            "no task has the thread id 4000000; near: ",
            None,
        ),
        (
            "symbol(\"jiffes\")",
            7..15,
            "this kernel has no symbol",
            Some("jiffies"),
        ),
        (
            "nr_parked",
            0..9,
            "a variable of the scheduler has",
            Some("bss.nr_parked"),
        ),
        ("reprt", 0..5, "nothing has the name reprt", Some("report")),
        (
            "report.postmortm",
            7..16,
            "the report has no postmortm here",
            Some("postmortem"),
        ),
        (
            "report.postmortem.tasks.pid",
            24..27,
            "this is a list: give an index",
            None,
        ),
        (
            "report.postmortem.tasks[100000]",
            24..30,
            "the list has ",
            None,
        ),
        ("task(1).comm[16]", 13..15, "has elements 0 to 15", None),
        ("task(1).comm[-1]", 13..15, "has elements 0 to 15", None),
        ("task(1).pid.x", 12..13, "has no members", None),
        ("*task(1).pid", 0..12, "is no pointer", None),
        (
            "(struct tsk_struct *)1",
            1..18,
            "has no type struct tsk_struct",
            Some("task_struct"),
        ),
        (
            "(struct task_struct)1",
            1..19,
            "memory is cast to a pointer: (struct task_struct *)",
            None,
        ),
        ("(struct task_struct *)0.pid", 24..27, "is NULL", None),
        ("(struct task_struct *)4096.pid", 0..30, "0x1", None),
        ("(void *)4096[0]", 13..14, "a void pointer", None),
        (
            "&task(1).sched_reset_on_fork",
            0..28,
            "a bit field has no address",
            None,
        ),
        ("&task(1).pid.x", 13..14, "has no members", None),
        ("symbol(\"runqueues\")", 0..19, "for each CPU", None),
        (
            "symbol(\"nr_node_ids\").x",
            22..23,
            "the kernel has no type for nr_node_ids",
            None,
        ),
        (
            "(u64)symbol(\"nr_node_ids\")",
            5..26,
            "&symbol(\"nr_node_ids\")",
            None,
        ),
        (
            "dsq(1)",
            4..5,
            "those of the scheduler are 0x60d5, 0xdead5",
            None,
        ),
        (
            "sizeof(\"struct nothing\")",
            7..23,
            "has no type struct nothing",
            None,
        ),
    ] {
        let error = error(&session, expression);
        assert_eq!(error.span, span, "{expression}: {error}");
        assert!(error.message.contains(said), "{expression}: {error}");
        if let Some(near) = near {
            assert!(
                error.near.iter().any(|n| n == near),
                "{expression}: {error}"
            );
        }
        let shown = error.show(expression);
        let mark = shown.lines().nth(1).unwrap();
        assert_eq!(mark.find('^'), Some(span.start), "{shown}");
    }
}

#[test]
fn a_report_alone_answers_for_what_it_has() {
    let report = entry("stall-6.18").unwrap().report().unwrap();
    let without = FailureDumpReport {
        postmortem: None,
        ..report.clone()
    };
    for report in [report, without] {
        let session = Session::of_report(report);
        assert_eq!(text(&session, "bss.nr_parked"), "6");
        assert_eq!(text(&session, "scx_sched_state.exit_kind"), "1026");
        for needs_memory in [
            "rq(0)",
            "task(1)",
            "symbol(\"jiffies\")",
            "(u64)1",
            "sched()",
        ] {
            let error = error(&session, needs_memory);
            assert!(
                error.message.contains("needs the guest's memory"),
                "{error}"
            );
        }
    }
}

#[test]
fn words_are_completed_by_what_there_is() {
    let kernel = entry("stall-6.18").unwrap().kernel().unwrap();
    let session = Session::of_kernel(&kernel, Options::default());
    for (line, start, words) in [
        ("rq(1).scx.nr_r", 10, &["nr_running"][..]),
        ("(rq(1).scx.nr_r", 11, &["nr_running"]),
        ("task(188).scx.dsq->se", 19, &["seq"]),
        ("bss.nr_p", 4, &["nr_parked"]),
        (
            "(&task(188)).sched_re",
            13,
            &["sched_remote_wakeup", "sched_reset_on_fork"],
        ),
        ("map(\"demo.b", 5, &["demo.bss"]),
        ("var(\"nr_p", 5, &["nr_parked"]),
        (
            "task(\"starve-m",
            6,
            &["starve-mt", "starve-mt.1", "starve-mt.2"],
        ),
        ("symbol(\"scx_root", 8, &["scx_root"]),
        ("report.postmortem.headl", 18, &["headline"]),
        ("per_", 0, &["per_cpu(", "per_cpu_time", "per_node_numa"]),
        ("rq(1).scx.zz", 10, &[]),
        ("rq(99).sc", 7, &[]),
        ("é", 0, &[]),
    ] {
        let (found, mut names) = session.complete(line);
        if line == "per_" {
            names.retain(|name| words.contains(&name.as_str()));
        }
        assert_eq!(
            (found, names),
            (start, words.iter().map(|w| (*w).to_owned()).collect()),
            "{line}"
        );
    }
}

/// Words that are put together in any order: nothing may panic, run for ever or print without end.
#[test]
fn no_expression_is_too_odd() {
    const WORDS: [&str; 40] = [
        "bss",
        "report",
        "rq(0)",
        "task(1)",
        "map(\"demo.bss\")",
        "symbol(\"runqueues\")",
        ".",
        ".",
        ".",
        "->",
        "[",
        "]",
        "(",
        ")",
        "*",
        "&",
        "scx",
        "dsq",
        "id",
        "curr",
        "0",
        "1",
        "-1",
        "18446744073709551615",
        "0xffffffff80000000",
        "(struct rq *)",
        "(u64)",
        "(void *)",
        "(char *)",
        "\"a\"",
        "[*]",
        ",",
        "postmortem",
        "tasks",
        "task",
        "map",
        "sizeof(\"struct page\")",
        "é",
        "-",
        "mm",
    ];
    let kernel = entry("stall-6.18").unwrap().kernel().unwrap();
    let session = Session::of_kernel(&kernel, Options::default());
    let mut state = 1u64;
    let mut next = |below: usize| {
        // Knuth's MMIX generator.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut answered = 0;
    for _ in 0..4_000 {
        let words = 1 + next(9);
        let expression: String = (0..words).map(|_| WORDS[next(WORDS.len())]).collect();
        match session.ask(&expression) {
            Ok(answer) => {
                answered += 1;
                assert!(answer.value.to_string().len() < 64 << 20);
            }
            Err(error) => assert!(error.show(&expression).contains('^')),
        }
    }
    assert!(answered > 40, "{answered}");
}
