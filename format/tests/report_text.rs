//! The report's text form, byte by byte.

#![cfg(test)]

use scx_postmortem_format::report::*;
use serde_json::{Value, json};

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn uint(bits: u32, value: u64) -> Value {
    json!({"kind": "uint", "bits": bits, "value": value})
}

fn n(value: u64) -> Value {
    uint(32, value)
}

fn array(elements: &[Value]) -> Value {
    json!({"kind": "array", "len": elements.len(), "elements": elements})
}

fn numbers(bits: u32, values: &[u64]) -> Value {
    array(&values.iter().map(|v| uint(bits, *v)).collect::<Vec<_>>())
}

fn chars(text: &str) -> Value {
    let chars: Vec<Value> = text
        .bytes()
        .map(|value| json!({"kind": "char", "value": value}))
        .collect();
    array(&chars)
}

fn object(type_name: Option<&str>, members: &[(&str, Value)]) -> Value {
    let members: Vec<Value> = members
        .iter()
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect();
    json!({"kind": "struct", "type_name": type_name, "members": members})
}

fn named(type_name: &str, members: &[(&str, Value)]) -> Value {
    object(Some(type_name), members)
}

#[track_caller]
fn shows(value: Value, expected: &str) {
    assert_eq!(read::<RenderedValue>(value).to_string(), expected);
}

// ---- whole reports ----

#[test]
fn complete_example() {
    let report = FailureDumpReportAny::parse(include_str!("report/example.json")).unwrap();
    let expected = include_str!("report/example.txt");
    assert_eq!(format!("{report}\n"), expected);
    assert_eq!(text_report(&report), expected);
}

#[test]
fn empty() {
    let mut report = FailureDumpReport::default();
    assert_eq!(report.to_string(), "(empty failure dump)");
    // What never prints does not count either.
    report.active_obj_name = Some("x".into());
    report.active_map_kvas = vec![1];
    report.cgroup_psi = vec![CgroupPsiStat::default()];
    report.probe_counters = Some(ProbeBssCounters::default());
    report.guest_setup_failure = Some(GuestSetupFailureContext::default());
    report.postmortem = Some(Box::new(PostmortemReport::new("analyze")));
    assert_eq!(report.to_string(), "(empty failure dump)");
}

#[test]
fn walker_timeline_and_counters() {
    let sample = |elapsed_ms, dispatch_keep_last| EventCounterSample {
        elapsed_ms,
        dispatch_keep_last,
        ..EventCounterSample::default()
    };
    let report = FailureDumpReport {
        rq_scx_states: vec![RqScxState::default()],
        scx_sched_state: Some(ScxSchedState::default()),
        event_counter_timeline: vec![sample(100, 0), sample(200, 3), sample(300, 7)],
        vcpu_perf_at_freeze: vec![
            Some(VcpuPerfSample {
                cycles: 10,
                instructions: 5,
                cache_misses: 1,
                branch_misses: 2,
                time_enabled_ns: 3,
                time_running_ns: 3,
                task_clock_ns: None,
            }),
            None,
        ],
        ..FailureDumpReport::default()
    };
    assert_eq!(
        report.to_string(),
        "scx_walker: rq_scx=1 dsq=0 sched=captured\n\
         \n\
         event_counter_timeline: 3 samples (100–300ms)\n              \
                       dispatch_keep_last  ▁▄█  (last=7)\n\
         \n\
         vcpu_perf_at_freeze:\n  \
           vcpu 0: cycles=10 insns=5 ipc=0.500 cache_misses=1 branch_misses=2 (en/ru=3/3 ns)\n  \
           vcpu 1: <unavailable>"
    );
}

#[test]
fn every_section_in_order() {
    let report = FailureDumpReport {
        guest_setup_failure: Some(GuestSetupFailureContext {
            init_stage: Some("mounts".into()),
            final_guest_phase: Some("boot".into()),
            guest_exit_code: Some(-1),
            scheduler_attach_outcome: Some("refused".into()),
            console_tail: Some("a\nb\r\n".into()),
            init_log_tail: Some(String::new()),
            scheduler_log_tail: Some("\x1b[31merror\n\n".into()),
        }),
        sdt_allocations: vec![read(json!({
            "allocator_name": "a", "skipped_subtrees": 0, "elem_size": 8, "target_type_id": 0,
            "payload_type_reason": "payload_size == 0", "truncated": true
        }))],
        scx_static_ranges: read(json!({"skipped": 2})),
        sdt_alloc_unavailable: Some("r1".into()),
        prog_runtime_stats: vec![
            read(json!({"name": "p", "cnt": 0, "nsecs": 5, "misses": 0})),
            read(json!({"name": "q", "cnt": 3, "nsecs": 10, "misses": 1})),
        ],
        prog_runtime_stats_unavailable: Some("r2".into()),
        per_cpu_time: vec![PerCpuTimeStats::default(); 2],
        per_node_numa: vec![PerNodeNumaStats::default()],
        per_node_numa_unavailable: Some("r3".into()),
        task_enrichments: vec![TaskEnrichment::default(); 3],
        task_enrichments_unavailable: Some("r4".into()),
        scx_walker_unavailable: Some("r5".into()),
        vcpu_regs: vec![None],
        dump_truncated_at_us: Some(2_000_000),
        maps_truncated: 4,
        ..FailureDumpReport::default()
    };
    assert_eq!(
        report.to_string(),
        "guest setup failure:\n  stage: mounts\n  final_guest_phase: boot\n  guest_exit_code: -1\n  \
         scheduler_attach: refused\n  scheduler log tail:\n    \\x1b[31merror\n    \n  \
         init log tail (COM2):\n  console tail (COM1):\n    a\n    b\n\
         \n\
         vcpu_regs:\n  vcpu 0: <unavailable>\n\
         \n\
         sdt_alloc a (elem_size=8, target_type_id=0, reason=payload_size == 0): 0 live \
         (truncated)\n\
         \n\
         sdt_allocations: <unavailable: r1>\n\
         \n\
         scx_static: 2 instance(s) skipped\n\
         \n\
         prog_runtime_stats:\n  p: cnt=0 nsecs=5 misses=0\n  \
         q: cnt=3 nsecs=10 misses=1 ns/call=3.333 miss_rate=0.2500\n\
         \n\
         prog_runtime_stats: <unavailable: r2>\n\
         \n\
         per_cpu_time: 2 CPUs captured\n\
         \n\
         per_node_numa: 1 nodes captured\n\
         \n\
         per_node_numa: <unavailable: r3>\n\
         \n\
         task_enrichments: 3 tasks captured\n\
         \n\
         task_enrichments: <unavailable: r4>\n\
         \n\
         scx_walker: <unavailable: r5>\n\
         \n\
         dump truncated: deadline crossed at 2000000us (4 map(s) skipped)"
    );
}

#[test]
fn placeholder() {
    assert_eq!(
        FailureDumpReport::placeholder("why").to_string(),
        "capture unavailable: why\n\
         \n\
         sdt_allocations: <unavailable: why>\n\
         \n\
         prog_runtime_stats: <unavailable: why>\n\
         \n\
         per_node_numa: <unavailable: why>\n\
         \n\
         task_enrichments: <unavailable: why>\n\
         \n\
         scx_walker: <unavailable: why>"
    );
}

#[test]
fn registers() {
    let regs = VcpuRegSnapshot {
        instruction_pointer: 1,
        stack_pointer: u64::MAX,
        page_table_root: 0x1000,
        user_page_table_root: Some(2),
        tcr_el1: Some(3),
    };
    assert_eq!(
        regs.to_string(),
        "ip=0x0000000000000001 sp=0xffffffffffffffff ptroot=0x0000000000001000 \
         uptroot=0x0000000000000002"
    );
}

#[test]
fn dual() {
    let mut report = DualFailureDumpReport::new(FailureDumpReport::default());
    assert_eq!(
        report.to_string(),
        "DualFailureDumpReport: early=absent, late=(0 maps, 0 vcpu_regs)\n\
         \n\
         late snapshot (error-exit; early snapshot absent (stall fired before half-way threshold, \
         or runnable_at scan setup failed) — re-run with RUST_LOG=ktstr=debug for scan resolution \
         diagnostics):\n\
         (empty failure dump)"
    );
    report.early_skipped_reason = Some("why".into());
    assert_eq!(
        report.to_string(),
        "DualFailureDumpReport: early=absent (why), late=(0 maps, 0 vcpu_regs)\n\
         \n\
         late snapshot (error-exit; early snapshot absent: why):\n\
         (empty failure dump)"
    );
    report.early = Some(FailureDumpReport::default());
    report.early_skipped_reason = None;
    let header = |report: &DualFailureDumpReport| {
        let text = report.to_string();
        text.lines().next().unwrap().to_owned()
    };
    assert_eq!(
        header(&report),
        "DualFailureDumpReport: early=present (jiffies not captured), late=(0 maps, 0 vcpu_regs)"
    );
    report.early_max_age_jiffies = 510;
    report.early_threshold_jiffies = 500;
    assert_eq!(
        report.to_string(),
        "DualFailureDumpReport: early=present (max_age=510j, threshold=500j), \
         late=(0 maps, 0 vcpu_regs)\n\
         \n\
         early snapshot (sched_ext watchdog half-way):\n\
         (empty failure dump)\n\
         \n\
         late snapshot (error-exit):\n\
         (empty failure dump)"
    );
}

#[test]
fn degraded() {
    let mut report: DegradedFailureDumpReport = read(json!({
        "schema": "degraded",
        "reason": reasons::degraded(reasons::REASON_DEGRADED_RENDEZVOUS_TIMEOUT, 30000, 1, 2),
        "vcpu_regs": [
            {"instruction_pointer": 1, "stack_pointer": 2, "page_table_root": 3}, null
        ],
        "watchpoint_hit": true,
        "bss_latch_state": "not_triggered",
        "exit_kind": 1026,
        "elapsed_ms": 30000
    }));
    let text = "degraded failure dump:
  reason: vCPU rendezvous timed out before parked acknowledgement: 30000ms; 1/2 vCPUs parked
  vcpus_parked: 1/2
    vcpu 0: parked, ip=0x0000000000000001 sp=0x0000000000000002 ptroot=0x0000000000000003
    vcpu 1: not_parked
  watchpoint_hit: true
  bss_latch_state: not_triggered
  exit_kind: 1026
  elapsed_ms: 30000
";
    assert_eq!(report.to_string(), text);
    assert_eq!(text_report(&report.clone().into()), text);
    report.vcpu_regs.clear();
    report.exit_kind = None;
    report.elapsed_ms = 0;
    report.reason = "r\n".into();
    assert_eq!(
        report.to_string(),
        "degraded failure dump:\n  reason: r\\n\n  watchpoint_hit: true\n  \
         bss_latch_state: not_triggered\n"
    );
}

#[test]
fn allocators() {
    let report = FailureDumpReport {
        sdt_allocations: vec![read(json!({
            "allocator_name": "scx_task_allocator",
            "entries": [{
                "idx": 1, "genn": 2, "user_addr": 0x1000,
                "payload": named("task_ctx", &[("pid", n(412))])
            }],
            "skipped_subtrees": 1, "elem_size": 32, "target_type_id": 77
        }))],
        scx_static_ranges: read(json!({
            "ranges": [{
                "instance_name": "scx_static", "start_low32": 0x10000, "size": 0x1000,
                "capacity": 1_048_576
            }],
            "skipped": 0
        })),
        ..FailureDumpReport::default()
    };
    assert_eq!(
        report.to_string(),
        "sdt_alloc scx_task_allocator (elem_size=32, target_type_id=77): 1 live \
         (1 subtrees skipped)\n\
         task_ctx{pid=412}\n\
         \n\
         scx_static scx_static [0x10000..0x11000) cap=1048576"
    );
    assert_eq!(
        report.sdt_allocations[0].entries[0].to_string(),
        "idx=1 genn=2 user_addr=0x1000 payload=task_ctx{pid=412}"
    );
    assert_eq!(
        ScxStaticSnapshot::default().to_string(),
        "scx_static: <none>"
    );
}

// ---- maps ----

fn a_map(members: Value) -> FailureDumpMap {
    let mut map = json!({"name": "m", "map_type": 1, "value_size": 8, "max_entries": 9});
    for (name, value) in members.as_object().unwrap() {
        map[name] = value.clone();
    }
    read(map)
}

const HEAD: &str = "map m (type=hash, value_size=8, max_entries=9)";

#[test]
fn map_head() {
    let map = a_map(json!({"map_type": 99, "error": "bad\u{1b}"}));
    assert_eq!(
        map.to_string(),
        "map m (type=99, value_size=8, max_entries=9) [error: bad\\x1b]"
    );
}

fn table_entries() -> Vec<Value> {
    [(1, 5, 17592, true), (61, 3, 0, false)]
        .map(|(cgrp, llc, load, hot)| {
            json!({
                "key": named("k", &[("cgrp", n(cgrp)), ("llc", n(llc))]),
                "key_hex": "",
                "value": named("v", &[
                    ("load", n(load)), ("hot", json!({"kind": "bool", "value": hot}))
                ]),
                "value_hex": ""
            })
        })
        .to_vec()
}

#[test]
fn table() {
    let map = a_map(json!({
        "name": "layer_map", "value_size": 16, "max_entries": 512, "entries": table_entries()
    }));
    assert_eq!(
        map.to_string(),
        "map layer_map (type=hash, value_size=16, max_entries=512)
  cgrp  llc |  load    hot
     1    5 | 17592   true
    61    3 |     0  false"
    );
}

#[test]
fn no_table() {
    let change = |change: fn(&mut Vec<Value>)| {
        let mut entries = table_entries();
        change(&mut entries);
        let text = a_map(json!({"entries": entries})).to_string();
        assert!(text.starts_with(&format!("{HEAD}\nentry: key=")), "{text}");
    };
    change(|entries| entries.truncate(1));
    change(|entries| entries[1]["payload"] = n(1));
    change(|entries| entries[0]["key"] = n(1));
    change(|entries| {
        entries[1].as_object_mut().unwrap().remove("value");
    });
    change(|entries| entries[1]["value"]["type_name"] = json!("other"));
    change(|entries| entries[1]["key"]["members"][0]["name"] = json!("other"));
    change(|entries| {
        let members = entries[1]["key"]["members"].as_array_mut().unwrap();
        members.pop();
    });
    change(|entries| entries[0]["value"]["members"][0]["value"] = numbers(8, &[1]));
}

#[test]
fn entry_blocks() {
    let map = a_map(json!({"entries": [
        {
            "key": {"kind": "ptr", "value": 0xffff_8881_0123_4000_u64},
            "key_hex": "00 40",
            "value": named("task_map_val", &[
                ("tid", named("sdt_id", &[("idx", n(3)), ("genn", n(1))])),
                ("data", json!({
                    "kind": "ptr", "value": 0x1000_0000_0a40_u64,
                    "deref_skipped_reason": reasons::deref::ALREADY_RENDERED
                })),
            ]),
            "value_hex": "03",
            "payload": named("task_ctx", &[("pid", n(412)), ("slice_ns", n(20_000_000))])
        },
        {"key_hex": "01 02", "value_hex": "ff 00"}
    ]}));
    assert_eq!(
        map.to_string(),
        format!(
            "{HEAD}
entry: key=0xffff888101234000
  value: task_map_val:
    tid sdt_id{{idx=3, genn=1}}
    data 0x100000000a40 [chase: already rendered in sdt_allocations]
  .data task_ctx{{pid=412, slice_ns=20000000}}
entry: key=01 02 (raw)
  value: ff 00 (raw)"
        )
    );
}

#[test]
fn array_entries() {
    let map = a_map(json!({"array_entries": [{"key": 0, "value": n(7)}, {"key": 1}]}));
    assert_eq!(
        map.to_string(),
        format!("{HEAD}\nkey 0: 7\nkey 1: <unreadable>")
    );
}

#[test]
fn percpu_array() {
    let ctx = |id: u64, nr: u64| {
        named(
            "cpu_ctx",
            &[
                ("id", n(id)),
                ("nr", n(nr)),
                ("weight", n(1024)),
                ("zero", n(0)),
            ],
        )
    };
    let stat = |value: u64| named("stat", &[("n", n(value))]);
    let map = a_map(json!({"percpu_entries": [
        {"key": 0, "per_cpu": [ctx(0, 0), ctx(1, 10), ctx(2, 20), null]},
        {"key": 1, "per_cpu": [stat(1), stat(1), stat(5), stat(1)]},
        {"key": 2, "per_cpu": [n(1), null]},
        {"key": 3, "per_cpu": []},
        {"key": 4, "per_cpu": [stat(1), stat(1)]},
        {"key": 5, "per_cpu": [stat(1), stat(1), stat(2), n(3)]},
        {"key": 6, "per_cpu": [object(None, &[("n", n(1))]), stat(1), null, stat(1)]},
        {"key": 7, "per_cpu": [stat(1), named("stat", &[])]},
    ]}));
    assert_eq!(
        map.to_string(),
        format!(
            "{HEAD}
key 0: struct cpu_ctx (4 CPUs)
  common:
    weight: 1024
  per-cpu:
    cpu | id | nr
      0 | 0 | 0
      1 | 1 | 10
      2 | 2 | 20
  cpus [3]: <unmapped>
key 1: struct stat (4 CPUs)
  cpus [0, 1, 3]: stat{{n=1}}
  cpu 2: stat{{n=5}}
key 2:
  cpu 0: 1
  cpu 1: <unmapped>
key 3:
key 4: struct stat (2 CPUs)
  all CPUs: stat{{n=1}}
key 5: struct stat (4 CPUs)
  cpus 0-1: stat{{n=1}}
  cpu 2: stat{{n=2}}
  cpu 3: 3
key 6: (4 CPUs)
  cpu 0: {{n=1}}
  cpus [1, 3]: stat{{n=1}}
  cpus [2]: <unmapped>
key 7:
  cpu 0: stat{{n=1}}
  cpu 1: stat{{}}"
        )
    );
}

#[test]
fn percpu_template_limits() {
    // Seven members may differ, eight may not.
    let cpus = |members: u64| {
        let cpu = |cpu: u64| {
            let names: Vec<String> = (0..members).map(|i| format!("m{i}")).collect();
            let members: Vec<(&str, Value)> =
                names.iter().map(|m| (m.as_str(), n(cpu + 1))).collect();
            named("s", &members)
        };
        let map = a_map(json!({"percpu_entries": [
            {"key": 0, "per_cpu": [cpu(0), cpu(1), cpu(2)]}
        ]}));
        map.to_string()
    };
    assert!(cpus(7).contains("per-cpu:"));
    assert!(!cpus(8).contains("per-cpu:"));
    // From 65 CPUs on there is no grouping.
    let many = |nr: usize| {
        let per_cpu = vec![named("s", &[("a", n(1))]); nr];
        a_map(json!({"percpu_entries": [{"key": 0, "per_cpu": per_cpu}]})).to_string()
    };
    assert!(many(64).ends_with("(64 CPUs)\n  all CPUs: s{a=1}"));
    assert!(many(65).ends_with("\n  cpu 64: s{a=1}"));
}

#[test]
fn percpu_hash() {
    let map = a_map(json!({"percpu_hash_entries": [
        {"key": n(1), "key_hex": "01", "per_cpu": [n(1), null]},
        {"key_hex": "02", "per_cpu": []},
    ]}));
    assert_eq!(
        map.to_string(),
        format!("{HEAD}\nentry: key=1\n  cpu 0: 1\n  cpu 1: <unmapped>\nentry: key=02 (raw)")
    );
}

#[test]
fn arena() {
    let mut map = a_map(json!({}));
    let page = |bytes| ArenaPage {
        user_addr: 0,
        bytes,
    };
    let mut arena = ArenaSnapshot {
        pages: vec![page(vec![0; 4096]), page(vec![1; 4096])],
        declared_pages: 5000,
        ..ArenaSnapshot::default()
    };
    let text = "arena: 2 pages captured (8 KiB), 1 non-zero \
                (see sdt_alloc section + JSON for typed data)";
    assert_eq!(arena.to_string(), text);
    arena.truncated = true;
    map.arena = Some(arena);
    assert_eq!(
        map.to_string(),
        format!("{HEAD}\n{text} (truncated, 5000 declared)")
    );
    let large = ArenaSnapshot {
        pages: vec![page(vec![0; 65536])],
        ..ArenaSnapshot::default()
    };
    assert!(large.to_string().contains("(64 KiB)"));
}

#[test]
fn ringbuf() {
    for (capacity, pending, percent) in [
        (4096, 1024, 25),
        (0, 1024, 0),
        (4096, u64::MAX, 100),
        (1 << 63, u64::MAX / 2, 1),
    ] {
        let ringbuf = FailureDumpRingbuf {
            capacity,
            consumer_pos: 1,
            producer_pos: 2,
            pending_pos: 3,
            pending_bytes: pending,
        };
        assert_eq!(
            ringbuf.to_string(),
            format!(
                "ringbuf: capacity={capacity}B, pending={pending}B ({percent}%), consumer_pos=1, \
                 producer_pos=2, pending_pos=3"
            )
        );
    }
}

#[test]
fn stack_trace_and_descriptors() {
    let map = a_map(json!({
        "stack_trace": {
            "n_buckets": 64,
            "entries": [
                {"bucket_id": 3, "nr": 2, "data_hex": ""},
                {"bucket_id": 5, "nr": 9, "pcs": [1, 2, 3, 4, 5, 6, 7, 8, 9], "data_hex": ""}
            ],
            "truncated": true, "buckets_unreadable": 1
        },
        "fd_array": {
            "populated": 17, "scanned": 20, "indices": (0..17).collect::<Vec<_>>(),
            "truncated": true, "unreadable": 2
        }
    }));
    assert_eq!(
        map.to_string(),
        format!(
            "{HEAD}
stack_trace: 2 of 64 buckets populated (truncated) (1 unreadable)
  bucket 3: nr=2
  bucket 5: nr=9 pcs=[0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, +1 more]
fd_array: 17 of 20 slots populated (slots truncated) (2 unreadable) indices=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, +1 more]"
        )
    );
    let plain: FailureDumpFdArray = read(json!({"populated": 0, "scanned": 0}));
    assert_eq!(plain.to_string(), "fd_array: 0 of 0 slots populated");
}

// ---- values ----

#[test]
fn scalars() {
    shows(
        json!({"kind": "int", "bits": 64, "value": i64::MIN}),
        "-9223372036854775808",
    );
    shows(uint(64, u64::MAX), "18446744073709551615");
    shows(json!({"kind": "bool", "value": true}), "true");
    shows(json!({"kind": "char", "value": 39}), "'''");
    shows(json!({"kind": "char", "value": 10}), "0x0a");
    shows(json!({"kind": "float", "bits": 64, "value": 1.0}), "1");
    shows(json!({"kind": "float", "bits": 64, "value": -0.1}), "-0.1");
    shows(
        json!({"kind": "float", "bits": 64, "value": 1e21}),
        "1000000000000000000000",
    );
    shows(json!({"kind": "float", "bits": 64, "value": null}), "NaN");
    let an_enum = |variant: Value, is_signed: bool| {
        json!({
            "kind": "enum", "bits": 64, "value": -1, "variant": variant, "is_signed": is_signed
        })
    };
    shows(an_enum(json!("ST"), true), "ST (-1)");
    shows(an_enum(json!("ST"), false), "ST (18446744073709551615)");
    shows(an_enum(json!(null), true), "-1");
    shows(json!({"kind": "cpu_list", "cpus": "0-2,5"}), "cpus={0-2,5}");
    shows(json!({"kind": "bytes", "hex": "0a ff"}), "0a ff");
    shows(
        json!({"kind": "unsupported", "reason": "r"}),
        "<unsupported: r>",
    );
    let truncated =
        |had: u64| json!({"kind": "truncated", "needed": 8, "had": had, "partial": n(1)});
    shows(truncated(0), "");
    shows(truncated(4), "<truncated needed=8 had=4> 1");
}

#[test]
fn pointers() {
    let node = named("node", &[("key", n(9))]);
    shows(json!({"kind": "ptr", "value": 0x1000}), "0x1000");
    shows(
        json!({
            "kind": "ptr", "value": 0x1000, "deref": node,
            "cast_annotation": reasons::CAST_ARENA
        }),
        "0x1000 (cast→arena) → node{key=9}",
    );
    shows(
        json!({
            "kind": "ptr", "value": 0x1000,
            "deref_skipped_reason": reasons::deref::cycle(0x1000)
        }),
        "0x1000 [cycle]",
    );
    shows(
        json!({"kind": "ptr", "value": 0x1000, "deref_skipped_reason": "why"}),
        "0x1000 [chase: why]",
    );
}

#[test]
fn arrays() {
    shows(array(&[]), "[]");
    shows(numbers(16, &[1, 255]), "[1, 255]");
    shows(numbers(32, &[1, 255]), "[0x1, 0xff]");
    shows(numbers(32, &[0; 8]), "[all 8 zero]");
    shows(
        numbers(32, &[0, 3, 4, 0, 9]),
        "[[1..2]={0x3, 0x4}  [4]=0x9]",
    );
    let mut cut = numbers(16, &[1, 2]);
    cut["len"] = json!(10);
    shows(cut.clone(), "[[0..1]={1, 2}] /* 2 of 10 shown */");
    cut["elements"] = numbers(16, &[0, 0])["elements"].clone();
    shows(cut, "[all 10 zero]");
    shows(
        array(&[json!({"kind": "cpu_list", "cpus": ""}), n(0)]),
        "[all 2 zero]",
    );
}

#[test]
fn strings() {
    shows(chars("bash\0\0"), "\"bash\"");
    shows(numbers(8, &[104, 105]), "\"hi\"");
    shows(chars("one\n\ntwo\0x"), "|\n  one\n  two\n");
    shows(chars("\0hi"), "[[1..2]={'h', 'i'}]");
    shows(chars("x"), "['x']");
    shows(chars("a\tb"), "['a', 0x09, 'b']");
    shows(numbers(16, &[104, 105]), "[104, 105]");
    shows(
        named("s", &[("text", chars("a\nb")), ("n", n(1))]),
        "s:\n  n=1\n  text |\n    a\n    b\n  ",
    );
}

#[test]
fn long_lists_are_wrapped() {
    let values: Vec<u64> = (1000..1030).collect();
    let text = read::<RenderedValue>(numbers(16, &values)).to_string();
    let lines: Vec<&str> = text.lines().collect();
    // 1 + 4 + 19 × 6 = 119 bytes; the next element would end at 125.
    assert!(lines[0].starts_with("[1000, ") && lines[0].ends_with(" 1019,"));
    assert_eq!(lines[0].len(), 120);
    assert!(lines[1].starts_with("  1020, ") && lines[1].ends_with(" 1029]"));
    let sparse: Vec<u64> = (0..60).map(|i| (i % 2) * 1000).collect();
    let text = read::<RenderedValue>(numbers(16, &sparse)).to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].ends_with("=1000"), "{text}");
    assert!(lines[1].starts_with("  ["), "{text}");
    assert!(lines.iter().all(|line| line.len() <= 121));
}

#[test]
fn blocks() {
    let s = |a: u64| named("s", &[("b", n(5)), ("a", n(a))]);
    shows(
        array(&[s(1), s(2), s(3)]),
        "[\n  [0-2] s:\n    b=5\n    a: [0]=1 [1]=2 [2]=3 \n]",
    );
    let one = |a: u64| named("s", &[("a", n(a))]);
    shows(
        array(&[one(1), one(1), one(0), one(2)]),
        "[\n  [0-1] s{a=1}\n  [2] s{}\n  [3] s{a=2}\n]",
    );
    // Scalar zeros between equal elements belong to them.
    shows(array(&[one(1), n(0), one(1)]), "[\n  [0-2] s{a=1}\n]");
    // An index is missing: no template.
    shows(
        array(&[one(1), one(2), n(0), one(3)]),
        "[\n  [0] s{a=1}\n  [1] s{a=2}\n  [3] s{a=3}\n]",
    );
    // Too many members vary.
    let four = |v: u64| named("s", &["a", "b", "c", "d"].map(|name| (name, n(v))));
    shows(
        array(&[four(1), four(2), four(3)]),
        "[\n  [0] s{a=1, b=1, c=1, d=1}\n  [1] s{a=2, b=2, c=2, d=2}\n  [2] s{a=3, b=3, c=3, d=3}\n]",
    );
    let mut cut = array(&[one(1)]);
    cut["len"] = json!(3);
    shows(cut, "[\n  [0] s{a=1}\n] /* 1 of 3 shown */");
}

#[test]
fn structures() {
    shows(
        named(
            "outer",
            &[("a", n(1)), ("inner", named("in", &[("x", n(2))]))],
        ),
        "outer{a=1, inner=in{x=2}}",
    );
    shows(named("s", &[]), "s{}");
    shows(object(None, &[("a", n(0))]), "{}");
    shows(object(None, &[("", n(1))]), "{<anon>=1}");
    shows(
        named("s", &[("x___fmt.1", chars("pid %d\n")), ("n", n(1))]),
        "s{n=1}",
    );
    shows(
        named(
            "sched_state",
            &[
                ("nr_running", n(12)),
                ("total_vtime", uint(64, 998_877_665_544)),
                ("cpu", json!({"kind": "int", "bits": 32, "value": -1})),
                ("avg_lat_ns_window", n(123_456)),
                (
                    "state",
                    json!({
                        "kind": "enum", "bits": 32, "value": 1, "variant": "ST_BUSY", "is_signed": false
                    }),
                ),
                ("primary", json!({"kind": "bool", "value": true})),
                ("mask", json!({"kind": "cpu_list", "cpus": "0-3,8"})),
                (
                    "next",
                    json!({
                        "kind": "ptr", "value": 0x1000_0000_1000_u64,
                        "deref": named("node", &[("key", n(9))])
                    }),
                ),
                ("hist", numbers(32, &[0, 3, 4, 0, 9])),
                ("comm", chars("bash\0")),
            ],
        ),
        "sched_state:
  nr_running=12              total_vtime=998877665544   cpu=-1
  avg_lat_ns_window=123456   state=ST_BUSY (1)          primary=true
  mask cpus={0-3,8}
  next 0x100000001000 → node{key=9}
  hist [[1..2]={0x3, 0x4}  [4]=0x9]
  comm \"bash\"",
    );
    shows(
        named(
            "w",
            &[
                ("alpha", n(1)),
                ("b", n(2)),
                ("c", n(3)),
                ("a_long_name", n(4)),
                ("bb", n(5)),
                ("cc", n(6)),
                ("x", n(7)),
                ("yy", n(8)),
                ("zz", n(9)),
                ("m", numbers(32, &[1])),
            ],
        ),
        "w:
  alpha       = 1   b=2    c=3
  a_long_name = 4   bb=5   cc=6
  x           = 7   yy=8   zz=9
  m [0x1]",
    );
}

#[test]
fn a_structure_is_broken_beyond_120_bytes() {
    let long = |name_length: usize| named("s", &[("a".repeat(name_length).as_str(), n(1))]);
    // s{…=1}
    let text = |length| read::<RenderedValue>(long(length)).to_string();
    assert_eq!(text(115).len(), 120);
    assert!(!text(115).contains('\n'));
    assert!(text(116).starts_with("s:\n  aaa"));
}

#[test]
fn anonymous_members() {
    let inner = |value: u64| object(None, &[("x", n(value)), ("y", n(0))]);
    // Something new: shown in its place.
    shows(
        named("s", &[("a", n(1)), ("", inner(2)), ("b", n(3))]),
        "s{a=1, x=2, b=3}",
    );
    // Another view of the same number: left out, also if that number is one structure down.
    shows(named("s", &[("a", n(1)), ("", inner(1))]), "s{a=1}");
    shows(
        named("s", &[("t", named("id", &[("v", n(7))])), ("", inner(7))]),
        "s{t=id{v=7}}",
    );
    // There is no other number that it could repeat.
    shows(named("s", &[("a", n(0)), ("", inner(1))]), "s{x=1}");
}

#[test]
fn names_from_the_guest_are_escaped() {
    shows(
        named("s\n", &[("a\x1b[0m", n(1)), ("b\u{202e}", n(2))]),
        "s\\n{a\\x1b[0m=1, b\\u{202e}=2}",
    );
    let map = a_map(json!({"name": "\u{9b}2J", "entries": [
        {"key": named("k", &[("x\ny", n(1))]), "key_hex": "", "value": named("v", &[]), "value_hex": ""},
        {"key": named("k", &[("x\ny", n(2))]), "key_hex": "", "value": named("v", &[]), "value_hex": ""}
    ]}));
    assert_eq!(
        map.to_string(),
        "map \\x9b2J (type=hash, value_size=8, max_entries=9)\n  x\\ny | \n     1 | \n     2 | "
    );
}

#[test]
fn deep_values_neither_hang_nor_exhaust_the_stack() {
    let mut deep = RenderedValue::Bool { value: true };
    for i in 0..5_000 {
        deep = match i % 3 {
            0 => RenderedValue::Ptr {
                value: 1,
                deref: Some(Box::new(deep)),
                deref_skipped_reason: None,
                cast_annotation: None,
                symbol: None,
            },
            1 => RenderedValue::Array {
                len: 1,
                elements: vec![deep],
            },
            _ => RenderedValue::Struct {
                type_name: None,
                members: vec![RenderedMember::new("m", deep)],
            },
        };
    }
    assert!(deep.to_string().contains("<nested too deep>"));

    // Each level is tried on one line first. That must not double the work at each level.
    let long = chars(&"long text ".repeat(20));
    let mut tower = named("top", &[("text", long.clone())]);
    for _ in 0..35 {
        tower = named("level", &[("inner", tower), ("text", long.clone())]);
    }
    let text = read::<RenderedValue>(tower).to_string();
    assert_eq!(text.lines().count(), 35 * 2 + 2);

    let mut slim = n(1);
    for _ in 0..35 {
        slim = object(None, &[("", slim)]);
    }
    assert!(read::<RenderedValue>(slim).to_string().contains("<anon>"));
}

// ---- our own block ----

fn postmortem() -> PostmortemReport {
    let flags = |raw: u64, names: &[&str]| {
        Some(Flags {
            raw: raw.into(),
            names: names.iter().map(|name| name.to_string()).collect(),
        })
    };
    let waits = |kva: u64, pid: i32, comm: &str, ms: u64, dsq_id: Option<u64>| RunnableTask {
        pid,
        comm: comm.into(),
        kva: kva.into(),
        runnable_age_ms: Some(ms),
        dsq_id: dsq_id.map(Hex),
        ..RunnableTask::default()
    };
    PostmortemReport {
        headline: vec!["it \x1b[31mstalled".into()],
        warnings: vec!["the file ends early".into()],
        input: Some(InputInfo {
            kind: "capture".into(),
            memory_bytes: Some(512 << 20),
            vcpus: Some(2),
            trigger: Some("scx error exit".into()),
            left_out: vec!["a page that no report reads".into()],
            ..InputInfo::default()
        }),
        kernel: Some(KernelInfo {
            release: Some("6.18.3".into()),
            arch: Some("x86_64".into()),
            hz: Some(250),
            uptime_ns: Some(25_064_123_456),
            ..KernelInfo::default()
        }),
        provenance: vec![Provenance {
            what: "symbols".into(),
            source: "kallsyms".into(),
            detail: "relative".into(),
        }],
        scheduler: Some(SchedulerInfo {
            ops_name: Some("demo".into()),
            enable_state: Some("enabled".into()),
            sched_kva: Some(0xffff_8880_0000_1000.into()),
            found_via: "scx_root".into(),
            exit_kind: Some(1026),
            watchdog_timeout_jiffies: Some(2000),
            watchdog_timeout_ms: Some(8000),
            slice_dfl_ns: Some(20_000_000),
            ops_flags: flags(8, &["SWITCH_PARTIAL"]),
            has_ops: vec!["enqueue".into(), "dispatch".into()],
            ..SchedulerInfo::default()
        }),
        exit_info: Some(ExitInfo {
            kind: 1026,
            kind_name: Some("SCX_EXIT_ERROR_STALL".into()),
            reason: Some("runnable task stall".into()),
            msg: Some("a[1] failed to run\n".into()),
            backtrace: vec![
                Frame {
                    addr: 0xffff_ffff_8100_0000.into(),
                    symbol: Some("f+0x1/0x2".into()),
                    source: None,
                },
                Frame::default(),
            ],
            dump: Some("1\n2\n".into()),
            dump_truncated: true,
            ..ExitInfo::default()
        }),
        event_counters: vec![
            EventCounter {
                name: "SCX_EV_A".into(),
                value: 3,
                per_cpu: vec![CpuCount { cpu: 1, value: 3 }],
            },
            EventCounter {
                name: "SCX_EV_BB".into(),
                ..EventCounter::default()
            },
        ],
        cpus: vec![CpuInfo {
            cpu: 0,
            curr: Some(CurrTask {
                pid: 9,
                comm: "runs".into(),
                kva: 0x90.into(),
                class: Some("ext".into()),
                running_ns: Some(1_500_000),
                ..CurrTask::default()
            }),
            nr_running: Some(4),
            scx_flags: flags(1, &["ONLINE"]),
            runnable: vec![
                waits(0x20, 2, "held", 900, None),
                waits(0x10, 1, "a\x07", 9036, Some(7)),
                waits(0x90, 9, "runs", 0, None),
            ],
            ..CpuInfo::default()
        }],
        dsqs: vec![
            DsqInfo {
                id: (1 << 63 | 1).into(),
                name: "GLOBAL".into(),
                origin: "global node 0".into(),
                ..DsqInfo::default()
            },
            DsqInfo {
                id: 7.into(),
                name: "user".into(),
                origin: "user".into(),
                nr: 2,
                seq: 5,
                order: Some("vtime".into()),
                tasks: vec![
                    QueuedTask {
                        index: 0,
                        task_kva: 0x10.into(),
                        pid: 1,
                        comm: "a".into(),
                        dsq_vtime: Some(77),
                        runnable_age_ms: Some(9036),
                        slice_ns: Some(u64::MAX),
                        cpus_allowed: Some("0-1".into()),
                        ..QueuedTask::default()
                    },
                    QueuedTask {
                        index: 1,
                        task_kva: 0x30.into(),
                        pid: 3,
                        comm: "b".into(),
                        ..QueuedTask::default()
                    },
                ],
                ..DsqInfo::default()
            },
        ],
        tasks: vec![
            TaskInfo {
                kva: 0x20.into(),
                ops_state: Some("QUEUED".into()),
                ..TaskInfo::default()
            },
            TaskInfo {
                kva: 0x90.into(),
                on_cpu: Some(true),
                ..TaskInfo::default()
            },
        ],
        unavailable: vec![Unavailable {
            section: "maps".into(),
            code: UnavailableCode::NotInImage,
            reason: "why".into(),
        }],
        anomalies: vec![Anomaly {
            section: "dsqs".into(),
            address: Some(0x30.into()),
            what: "a cycle".into(),
        }],
        limits: vec![LimitReached {
            what: "tasks".into(),
            limit: 4096,
            actual: Some(5000),
        }],
        ..PostmortemReport::new("scx-postmortem 0.1.0")
    }
}

const POSTMORTEM: &str = "scx-postmortem 0.1.0
kernel: 6.18.3, x86_64, HZ 250, up 25.064 s
input: capture, memory 512 MiB, vcpus 2, trigger scx error exit
left out: a page that no report reads

what happened:
  * it \\x1b[31mstalled

damage:
  the file ends early

findings: none; no rule saw anything wrong in what could be read

cpus:
  cpu 0: runs *runs[9] [ext, for 1.500 ms], nr_running 4, scx flags 0x1 (ONLINE)
    held[2] -900ms
    a\\x07[1] -9036ms on DSQ 0x7 (user)
   *runs[9] -0ms

dispatch queues:
  0x7 (user): 2 tasks, seq 5, vtime
    0. a[1] -9036ms vtime 77, slice infinite
    1. b[3]
  1 of 2 queues are empty

waiting tasks, longest first:
  runnable  pid  comm   cpu  waits on        may use cpus
   -9036ms    1  a\\x07    0  0x7 (user)      0-1
    -900ms    2  held     0  no DSQ, QUEUED
         ?    3  b           0x7 (user)

scheduler:
  demo: enabled, at 0xffff888000001000, found via scx_root
  exit_kind 1026
  watchdog limit 8.000 s (2000 jiffies), default slice 20.000 ms
  flags 0x8 (SWITCH_PARTIAL)
  callbacks enqueue dispatch

exit:
  SCX_EXIT_ERROR_STALL (1026)
  reason: runnable task stall
  message: a[1] failed to run\\n
  backtrace:
    0xffffffff81000000 f+0x1/0x2
                   0x0 ?
  the kernel's own dump: 2 lines, cut short by the kernel (in the JSON, exit_info.dump)

event counters:
  SCX_EV_A  3  cpu1=3
  1 of 2 counters are 0

unavailable:
  maps (not_in_image): why

anomalies:
  dsqs at 0x30: a cycle

limits reached:
  tasks: 4096 of 5000

provenance:
  symbols: kallsyms (relative)";

#[test]
fn postmortem_block() {
    let block = postmortem();
    assert_eq!(block.to_string(), POSTMORTEM);
    let written = serde_json::to_string(&block).unwrap();
    assert_eq!(
        serde_json::from_str::<PostmortemReport>(&written).unwrap(),
        block
    );
    assert_eq!(PostmortemReport::default().to_string(), "");
}

#[test]
fn text_report_prints_our_block_first() {
    let with = |analyzer: &str| FailureDumpReport {
        postmortem: Some(Box::new(PostmortemReport::new(analyzer))),
        ..FailureDumpReport::default()
    };
    assert_eq!(
        text_report(&with("late").into()),
        "late\n\n=== captured state ===\n\n(empty failure dump)\n"
    );
    let mut dual = DualFailureDumpReport::new(with("late"));
    dual.early = Some(with("early"));
    let text = text_report(&dual.into());
    assert!(
        text.starts_with(
            "=== late capture ===\n\nlate\n\n=== early capture ===\n\nearly\n\n\
             === captured state ===\n\nDualFailureDumpReport: "
        ),
        "{text}"
    );
    assert_eq!(
        text_report(&FailureDumpReport::default().into()),
        "(empty failure dump)\n"
    );
}

#[test]
fn long_tables_are_cut() {
    let task = |pid: i32| RunnableTask {
        pid,
        comm: "c".repeat(60),
        kva: Hex(u64::try_from(pid).unwrap()),
        ..RunnableTask::default()
    };
    let report = PostmortemReport {
        cpus: vec![CpuInfo {
            runnable: (1..=50).map(task).collect(),
            ..CpuInfo::default()
        }],
        ..PostmortemReport::default()
    };
    let text = report.to_string();
    assert!(text.ends_with("  … 10 more (in the JSON)"), "{text}");
    assert!(text.contains("    … 34 more (in the JSON)\n"), "{text}");
    assert!(text.contains(&format!(" {}…  ", "c".repeat(47))), "{text}");
}

#[test]
fn slots_are_shown_with_their_owners_and_no_allocator_is_left_out() {
    let owner = |idx: i32, id: u64, name: &str| SlotOwner {
        idx,
        genn: 1,
        map_id: 6,
        owner: StorageOwner {
            kind: "task".into(),
            id: Some(id),
            name: Some(name.into()),
            ..StorageOwner::default()
        },
    };
    let mut own = PostmortemReport::new("analyze");
    own.arenas = vec![ArenaInfo {
        map_id: 4,
        name: "arena".into(),
        error: Some("3 pages were found; no more".into()),
        other_types: vec!["struct a".into(), "struct b".into()],
        ..ArenaInfo::default()
    }];
    let all = AllocatorInfo {
        name: "tasks".into(),
        arena_id: Some(4),
        elem_size: 64,
        live: 5000,
        shown: 4999,
        // More than a text shows.
        owners: (0..4097).map(|i| owner(i, 264, "hold-0")).collect(),
        ..AllocatorInfo::default()
    };
    let lost = AllocatorInfo {
        name: "others".into(),
        arena_id: None,
        owners: vec![owner(7, 1, "\x1b[31m"), owner(7, 2, "b")],
        ..AllocatorInfo::default()
    };
    own.allocators = vec![lost, all];
    let report = FailureDumpReport {
        postmortem: Some(Box::new(own)),
        ..FailureDumpReport::default()
    };
    let text = text_report(&report.into());
    for line in [
        "  4 arena: not all pages known",
        "    pages: 3 pages were found; no more",
        "    known by their members only: struct a, struct b",
        "    tasks: 5000 live of 64 bytes, 4097 with a known owner, payload of unknown type, the first 4999 are shown",
        "      [64] gen 1 task 264 hold-0",
        "      … 1 more (in the JSON)",
        "  allocators of which the arena is not known:",
        "    others: 0 live of 0 bytes, 1 with a known owner, payload of unknown type",
        "      [7] gen 1 task 2 b",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}");
    }
    assert!(!text.contains('\x1b'));
}

#[test]
fn no_map_is_cut_from_the_table_of_maps() {
    let mut own = PostmortemReport::new("analyze");
    own.maps = (1..=100)
        .map(|id| MapInfo {
            id,
            name: format!("map_{id}"),
            flags: Some(Flags {
                raw: 0x401.into(),
                names: vec!["NO_PREALLOC".into(), "MMAPABLE".into()],
            }),
            memory_error: (id == 3).then(|| "not captured".into()),
            ..MapInfo::default()
        })
        .collect();
    let report = FailureDumpReport {
        postmortem: Some(Box::new(own)),
        ..FailureDumpReport::default()
    };
    let text = text_report(&report.into());
    let rows = text.lines().filter(|l| l.ends_with("NO_PREALLOC|MMAPABLE"));
    assert_eq!(rows.count(), 100, "{text}");
    assert!(text.contains("    bytes not known: not captured"), "{text}");
}
