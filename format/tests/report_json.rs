//! The report's JSON form: what is written, what is read, what is refused.

#![cfg(test)]

use proptest::prelude::*;
use scx_postmortem_format::report::*;
use serde_json::{Value, json};

const EXAMPLE: &str = include_str!("report/example.json");

fn parse(text: &str) -> FailureDumpReportAny {
    FailureDumpReportAny::parse(text).unwrap()
}

/// Without the line breaks and the indentation that are there for the reader.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim_start).collect()
}

#[test]
fn complete_example() {
    let report = parse(EXAMPLE);
    assert_eq!(report.schema(), SCHEMA_SINGLE);
    // Not only the same object: the same members in the same order.
    assert_eq!(report.to_json().unwrap(), one_line(EXAMPLE));
    assert_eq!(parse(&report.to_json().unwrap()), report);
}

#[test]
fn minimal_reports() {
    for text in [
        r#"{"schema":"single","maps":[]}"#,
        r#"{"schema":"dual","late":{"schema":"single","maps":[]},"early_skipped_reason":"max_age never crossed threshold (peak=31j, threshold=500j)"}"#,
        r#"{"schema":"degraded","reason":"vCPU rendezvous timed out before parked acknowledgement: 30000ms; 1/2 vCPUs parked","vcpu_regs":[{"instruction_pointer":1,"stack_pointer":2,"page_table_root":3},null],"watchpoint_hit":true,"bss_latch_state":"not_triggered","exit_kind":1026,"elapsed_ms":30000}"#,
    ] {
        assert_eq!(parse(text).to_json().unwrap(), text);
    }
    let dual = DualFailureDumpReport {
        early_skipped_reason: Some(reasons::early_never_crossed(31, 500)),
        ..DualFailureDumpReport::new(FailureDumpReport::default())
    };
    assert_eq!(
        FailureDumpReportAny::from(dual).to_json().unwrap(),
        r#"{"schema":"dual","late":{"schema":"single","maps":[]},"early_skipped_reason":"max_age never crossed threshold (peak=31j, threshold=500j)"}"#
    );
}

#[test]
fn placeholder() {
    let report = FailureDumpReport::placeholder("why");
    assert_eq!(
        serde_json::to_string(&report).unwrap(),
        r#"{"schema":"single","maps":[],"sdt_alloc_unavailable":"why","prog_runtime_stats_unavailable":"why","per_node_numa_unavailable":"why","task_enrichments_unavailable":"why","scx_walker_unavailable":"why","is_placeholder":true}"#
    );
    assert_eq!(FailureDumpReport::default().schema, "single");
    assert!(!FailureDumpReport::default().is_placeholder);
}

#[test]
fn refused() {
    for (text, code) in [
        ("", "not_json"),
        ("{", "not_json"),
        ("{\"schema\":\"single\",\"maps\":[]} x", "not_json"),
        ("[]", "no_schema"),
        ("[\"single\",[]]", "no_schema"),
        ("7", "no_schema"),
        ("\"single\"", "no_schema"),
        ("{\"maps\":[]}", "no_schema"),
        ("{\"schema\":1,\"maps\":[]}", "no_schema"),
        ("{\"schema\":null,\"maps\":[]}", "no_schema"),
        ("{\"schema\":\"triple\",\"maps\":[]}", "unknown_schema"),
        ("{\"schema\":\"Single\",\"maps\":[]}", "unknown_schema"),
        ("{\"schema\":\"single\"}", "shape"),
        ("{\"schema\":\"single\",\"maps\":{}}", "shape"),
        ("{\"schema\":\"dual\"}", "shape"),
        ("{\"schema\":\"dual\",\"late\":null}", "shape"),
        ("{\"schema\":\"dual\",\"late\":{\"maps\":[]}}", "shape"),
        ("{\"schema\":\"degraded\",\"reason\":\"r\"}", "shape"),
        (
            "{\"schema\":\"single\",\"maps\":[],\"maps_truncated\":-1}",
            "shape",
        ),
        (
            "{\"schema\":\"single\",\"maps\":[],\"vcpu_regs\":[{}]}",
            "shape",
        ),
    ] {
        let error = FailureDumpReportAny::parse(text).unwrap_err();
        assert_eq!(error.code(), code, "{text}");
        assert_eq!(FailureDumpReportAny::from_json(text), None);
        let has_source = std::error::Error::source(&error).is_some();
        assert_eq!(has_source, matches!(code, "not_json" | "shape"), "{text}");
    }
}

#[test]
fn the_inner_schema_is_not_compared() {
    let text = r#"{"schema":"dual","late":{"schema":"dual","maps":[]}}"#;
    assert_eq!(parse(text).to_json().unwrap(), text);
}

#[test]
fn unknown_members_are_skipped_and_unknown_kinds_are_not() {
    let map = |value: &str| {
        format!(
            r#"{{"schema":"single","x":{{"y":[1]}},"maps":[{{"name":"m","map_type":2,"value_size":4,"max_entries":1,"z":0,"value":{value}}}]}}"#
        )
    };
    let with_extra = r#"{"extra":[{}],"value":1,"kind":"uint","bits":8}"#;
    let FailureDumpReportAny::Single(report) = parse(&map(with_extra)) else {
        panic!("not single");
    };
    assert_eq!(
        report.maps[0].value,
        Some(RenderedValue::Uint { bits: 8, value: 1 })
    );
    for bad in [
        r#"{"kind":"map","value":1}"#,
        r#"{"value":1,"bits":8}"#,
        r#"{"kind":"uint","bits":8}"#,
        r#"{"kind":"uint","bits":8,"value":-1}"#,
        r#"{"kind":"char","value":256}"#,
        r#"{"kind":"struct","type_name":"s"}"#,
        r#"{"kind":"array","elements":[]}"#,
        r#"{"kind":"truncated","needed":1,"had":0}"#,
        "7",
    ] {
        assert_eq!(FailureDumpReportAny::from_json(&map(bad)), None, "{bad}");
    }
}

#[test]
fn kinds() {
    for text in [
        r#"{"kind":"int","bits":64,"value":-9223372036854775808}"#,
        r#"{"kind":"uint","bits":64,"value":18446744073709551615}"#,
        r#"{"kind":"bool","value":true}"#,
        r#"{"kind":"char","value":255}"#,
        r#"{"kind":"float","bits":32,"value":0.5}"#,
        r#"{"kind":"enum","bits":32,"value":-1,"variant":null,"is_signed":true}"#,
        r#"{"kind":"enum","bits":32,"value":1,"variant":"A","is_signed":false}"#,
        r#"{"kind":"struct","type_name":null,"members":[{"name":"","value":{"kind":"bool","value":false}}]}"#,
        r#"{"kind":"array","len":3,"elements":[]}"#,
        r#"{"kind":"cpu_list","cpus":""}"#,
        r#"{"kind":"ptr","value":0}"#,
        r#"{"kind":"ptr","value":1,"deref":{"kind":"ptr","value":2},"deref_skipped_reason":"r","cast_annotation":"sdt_alloc"}"#,
        r#"{"kind":"bytes","hex":"0a ff 00"}"#,
        r#"{"kind":"truncated","needed":8,"had":0,"partial":{"kind":"bytes","hex":""}}"#,
        r#"{"kind":"unsupported","reason":"r"}"#,
    ] {
        let value: RenderedValue = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&value).unwrap(), text);
    }
    let read = |text| serde_json::from_str::<RenderedValue>(text).unwrap();
    let unnamed = RenderedValue::Enum {
        bits: 8,
        value: 1,
        variant: None,
        is_signed: false,
    };
    assert_eq!(read(r#"{"kind":"enum","bits":8,"value":1}"#), unnamed);
    assert_eq!(
        read(r#"{"kind":"float","bits":64,"value":2}"#).as_f64(),
        Some(2.0)
    );
}

#[test]
fn a_float_that_json_has_not_is_null() {
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let text = serde_json::to_string(&RenderedValue::Float { bits: 64, value }).unwrap();
        assert_eq!(text, r#"{"kind":"float","bits":64,"value":null}"#);
        let back: RenderedValue = serde_json::from_str(&text).unwrap();
        assert!(back.as_f64().unwrap().is_nan());
    }
    assert!(serde_json::from_str::<RenderedValue>(r#"{"kind":"float","bits":64}"#).is_err());
}

#[test]
fn perf_samples_write_null() {
    let text = r#"{"cycles":10,"instructions":5,"cache_misses":1,"branch_misses":2,"time_enabled_ns":3,"time_running_ns":3,"task_clock_ns":null}"#;
    let sample: VcpuPerfSample = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&sample).unwrap(), text);
    let short = text.replace(",\"task_clock_ns\":null", "");
    assert_eq!(
        serde_json::from_str::<VcpuPerfSample>(&short).unwrap(),
        sample
    );
    assert_eq!(sample.ipc(), 0.5);
    assert_eq!(VcpuPerfSample::default().ipc(), 0.0);
}

#[test]
fn bump_allocators_are_left_out_only_when_there_is_nothing_to_say() {
    let mut report = FailureDumpReport::default();
    report.scx_static_ranges.skipped = 1;
    assert_eq!(
        serde_json::to_string(&report).unwrap(),
        r#"{"schema":"single","maps":[],"scx_static_ranges":{"skipped":1}}"#
    );
}

#[test]
fn event_counters_by_name() {
    let mut sample = EventCounterSample::default();
    for (i, (name, _)) in EventCounterSample::default().counters().iter().enumerate() {
        *sample.counter_mut(name).unwrap() = i64::try_from(i).unwrap() + 1;
    }
    let written = serde_json::to_value(&sample).unwrap();
    for (i, (name, value)) in sample.counters().iter().enumerate() {
        assert_eq!(*value, i64::try_from(i).unwrap() + 1);
        assert_eq!(written[name], json!(value));
    }
    assert_eq!(written.as_object().unwrap().len(), 14);
    *sample.counter_mut("enq_slice_dfl").unwrap() = 99;
    assert_eq!(sample.refill_slice_dfl, 99);
    assert!(sample.counter_mut("elapsed_ms").is_none());
}

#[test]
fn deep_input_is_refused_and_does_not_exhaust_the_stack() {
    let nested = |levels: usize| {
        format!(
            r#"{{"schema":"single","maps":[{{"name":"","map_type":2,"value_size":0,"max_entries":1,"value":{}{}{}}}]}}"#,
            r#"{"kind":"ptr","value":1,"deref":"#.repeat(levels),
            r#"{"kind":"bool","value":true}"#,
            "}".repeat(levels)
        )
    };
    let report = parse(&nested(120));
    assert_eq!(parse(&report.to_json().unwrap()), report);
    assert!(report.to_string().ends_with("\u{2192} true"));
    for levels in [130, 1_000, 100_000] {
        let error = FailureDumpReportAny::parse(&nested(levels)).unwrap_err();
        assert_eq!(error.code(), "shape");
    }
    let brackets = "[".repeat(100_000);
    assert_eq!(FailureDumpReportAny::from_json(&brackets), None);
}

#[test]
fn json_depth_is_what_a_reader_sees() {
    fn levels(value: &Value) -> usize {
        match value {
            Value::Object(members) => 1 + members.values().map(levels).max().unwrap_or(0),
            Value::Array(items) => 1 + items.iter().map(levels).max().unwrap_or(0),
            _ => 0,
        }
    }
    let FailureDumpReportAny::Single(report) = parse(EXAMPLE) else {
        panic!("not single");
    };
    let empty_struct = RenderedValue::Struct {
        type_name: None,
        members: Vec::new(),
    };
    let nested = RenderedValue::Array {
        len: 1,
        elements: vec![RenderedValue::Struct {
            type_name: None,
            members: vec![
                RenderedMember::new("a", empty_struct.clone()),
                RenderedMember::new(
                    "b",
                    RenderedValue::Truncated {
                        needed: 1,
                        had: 0,
                        partial: Box::new(empty_struct.clone()),
                    },
                ),
            ],
        }],
    };
    let examples = report.maps.into_iter().filter_map(|map| map.value);
    for value in examples.chain([empty_struct, nested]) {
        let written = serde_json::to_value(&value).unwrap();
        assert_eq!(value.json_depth(), levels(&written), "{written}");
    }
}

#[test]
fn accessors() {
    let value: RenderedValue = serde_json::from_value(json!({
        "kind": "ptr", "value": 4096, "deref": {
            "kind": "truncated", "needed": 99, "had": 8, "partial": {
                "kind": "struct", "type_name": "s", "members": [
                    {"name": "", "value": {"kind": "bool", "value": true}},
                    {"name": "n", "value": {"kind": "int", "bits": 32, "value": -1}},
                    {"name": "n", "value": {"kind": "bool", "value": true}},
                    {"name": "e", "value": {"kind": "enum", "bits": 64, "value": -1, "variant": null, "is_signed": false}},
                    {"name": "es", "value": {"kind": "enum", "bits": 64, "value": -1, "variant": null, "is_signed": true}},
                    {"name": "f", "value": {"kind": "float", "bits": 64, "value": 1.5}},
                    {"name": "c", "value": {"kind": "char", "value": 65}},
                    {"name": "big", "value": {"kind": "uint", "bits": 64, "value": u64::MAX}},
                    {"name": "a", "value": {"kind": "ptr", "value": 1, "deref": {"kind": "array", "len": 2, "elements": [
                        {"kind": "uint", "bits": 64, "value": 1},
                        {"kind": "uint", "bits": 64, "value": u64::from(u32::MAX) + 1}
                    ]}}},
                ]
            }
        }
    }))
    .unwrap();
    let get = |path| value.get(path).unwrap();
    assert_eq!(value.get(""), Some(&value));
    assert_eq!(get("n").as_i64(), Some(-1));
    assert_eq!(get("n").as_u64(), None);
    assert_eq!(get("n").as_bool(), Some(true));
    assert_eq!(get("n").as_f64(), Some(-1.0));
    assert_eq!(get("e").as_u64(), Some(u64::MAX));
    assert_eq!(get("e").as_i64(), Some(-1));
    assert_eq!(get("es").as_u64(), None);
    assert_eq!(get("es").as_f64(), Some(-1.0));
    assert_eq!(get("f").as_f64(), Some(1.5));
    assert_eq!(get("f").as_u64(), None);
    assert_eq!(get("f").as_bool(), None);
    assert_eq!(get("c").as_u64(), Some(65));
    assert_eq!(get("c").as_f64(), None);
    assert_eq!(get("big").as_i64(), None);
    assert_eq!(value.as_u64(), Some(4096));
    assert_eq!(value.as_i64(), None);
    assert_eq!(value.as_bool(), Some(true));
    assert_eq!(get("a").index(0).and_then(RenderedValue::as_u64), Some(1));
    assert_eq!(get("a").index(2), None);
    assert_eq!(
        get("a").as_u64_array(),
        Some(vec![1, u64::from(u32::MAX) + 1])
    );
    assert_eq!(get("a").as_u32_array(), None);
    assert_eq!(get("a").as_i64_array().map(|a| a.len()), Some(2));
    assert_eq!(get("a").as_f64_array().map(|a| a[0]), Some(1.0));
    assert_eq!(get("a").as_bool_array(), Some(vec![true, true]));
    assert_eq!(value.as_u64_array(), None);
    for nowhere in ["x", "n.x", "n.", ".n", "a..0", "."] {
        assert_eq!(value.get(nowhere), None, "{nowhere}");
    }
    assert_eq!(value.member(""), Some(&RenderedValue::Bool { value: true }));
}

// ---- the schema ----

#[test]
fn the_checked_in_schema_is_current() {
    let checked_in = include_str!("../../docs/report.schema.json");
    assert!(
        checked_in == json_schema_text().unwrap(),
        "docs/report.schema.json is stale; regenerate it with\n  \
         cargo run -p scx-postmortem-format --example schema > docs/report.schema.json"
    );
}

#[test]
fn the_description_names_every_member() {
    let description = include_str!("../../docs/report-format.md");
    let schema = json_schema();
    let mut described = 0;
    for (record, rules) in schema["$defs"].as_object().unwrap() {
        let heading = format!("\n### {record}\n");
        let Some((_, section)) = description.split_once(&heading) else {
            continue;
        };
        let section = section.split("\n### ").next().unwrap();
        let members = rules["properties"].as_object();
        for member in members.into_iter().flat_map(|members| members.keys()) {
            assert!(
                section.contains(&format!("`{member}`")),
                "docs/report-format.md does not describe {record}.{member}"
            );
        }
        described += 1;
    }
    assert_eq!(described, 33);
}

/// Enough of JSON schema for the schema that we generate.
fn fits(root: &Value, schema: &Value, value: &Value) -> bool {
    let Some(rules) = schema.as_object() else {
        return schema == &json!(true);
    };
    let list = |rule: &Value| rule.as_array().cloned().unwrap_or_default();
    rules.iter().all(|(name, rule)| match name.as_str() {
        "$ref" => {
            let target = rule.as_str().unwrap().trim_start_matches('#');
            fits(root, root.pointer(target).unwrap(), value)
        }
        "type" => {
            let is = |kind: &str| match kind {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "null" => value.is_null(),
                "integer" => value.is_u64() || value.is_i64(),
                "number" => value.is_number(),
                other => panic!("type {other}"),
            };
            match rule {
                Value::String(kind) => is(kind),
                kinds => list(kinds).iter().any(|kind| is(kind.as_str().unwrap())),
            }
        }
        "properties" => rule.as_object().unwrap().iter().all(|(member, schema)| {
            value
                .get(member)
                .is_none_or(|member| fits(root, schema, member))
        }),
        "required" => list(rule)
            .iter()
            .all(|member| value.get(member.as_str().unwrap()).is_some()),
        "items" => list(value).iter().all(|item| fits(root, rule, item)),
        "minItems" => list(value).len() as u64 >= rule.as_u64().unwrap(),
        "maxItems" => list(value).len() as u64 <= rule.as_u64().unwrap(),
        "const" => value == rule,
        "enum" => list(rule).contains(value),
        "minimum" => value.as_f64().is_none_or(|n| n >= rule.as_f64().unwrap()),
        "maximum" => value.as_f64().is_none_or(|n| n <= rule.as_f64().unwrap()),
        "anyOf" => list(rule).iter().any(|schema| fits(root, schema, value)),
        "oneOf" => list(rule).iter().filter(|s| fits(root, s, value)).count() == 1,
        "pattern" => {
            assert_eq!(rule, "^0x[0-9a-fA-F]{1,16}$");
            value.as_str().is_none_or(|text| {
                text.strip_prefix("0x").is_some_and(|digits| {
                    (1..=16).contains(&digits.len())
                        && digits.bytes().all(|b| b.is_ascii_hexdigit())
                })
            })
        }
        "$defs" | "$schema" | "title" | "description" | "default" | "format" => true,
        other => panic!("the schema has a rule that this test does not know: {other}"),
    })
}

/// Every object with one member removed, and every value replaced by one of another type.
fn mutations(value: &Value, path: &str, out: &mut Vec<(String, Option<Value>)>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let path = format!("{path}/{name}");
                out.push((path.clone(), None));
                for other in [json!(null), json!("x"), json!(-1), json!([]), json!({})] {
                    // serde takes an array of the members' values for an object.
                    if member.is_object() && other.is_array() {
                        continue;
                    }
                    out.push((path.clone(), Some(other)));
                }
                mutations(member, &path, out);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                let path = format!("{path}/{i}");
                out.push((path.clone(), Some(json!(null))));
                mutations(item, &path, out);
            }
        }
        _ => {}
    }
}

fn mutated(value: &Value, path: &str, to: &Option<Value>) -> Value {
    let mut value = value.clone();
    let (parent, name) = path.rsplit_once('/').unwrap();
    match (value.pointer_mut(parent).unwrap(), to) {
        (Value::Object(members), None) => {
            members.remove(name);
        }
        (_, None) => panic!("only members are removed"),
        (_, Some(to)) => *value.pointer_mut(path).unwrap() = to.clone(),
    }
    value
}

#[test]
fn schema_and_parser_accept_the_same() {
    let schema = json_schema();
    let full: Value = serde_json::from_str(include_str!("report/full.json")).unwrap();
    let example: Value = serde_json::from_str(EXAMPLE).unwrap();
    let dual = json!({
        "schema": "dual",
        "early": {"schema": "single", "maps": []},
        "late": {"schema": "single", "maps": [], "is_placeholder": true},
        "early_max_age_jiffies": 1,
        "early_threshold_jiffies": 2,
        "early_skipped_reason": "r",
    });
    let degraded = json!({
        "schema": "degraded", "reason": "r", "vcpu_regs": [null], "watchpoint_hit": true,
        "bss_latch_state": "triggered", "exit_kind": 1, "elapsed_ms": 1,
    });
    let mut tried = 0;
    for report in [full, example, dual, degraded] {
        assert!(fits(&schema, &schema, &report));
        let written = parse(&report.to_string()).to_json().unwrap();
        assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), report);
        let mut changes = Vec::new();
        mutations(&report, "", &mut changes);
        for (path, to) in &changes {
            // The schema of an inner report is required but not compared.
            if path.ends_with("/schema") && path != "/schema" && *to == Some(json!("x")) {
                continue;
            }
            let changed = mutated(&report, path, to);
            let parsed = FailureDumpReportAny::from_json(&changed.to_string());
            assert_eq!(
                fits(&schema, &schema, &changed),
                parsed.is_some(),
                "{path} = {to:?}"
            );
            tried += 1;
        }
    }
    assert!(tried > 1000, "{tried}");
}

// ---- arbitrary values ----

fn float() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(0.0),
        any::<f64>().prop_filter("JSON has only finite numbers", |f| f.is_finite())
    ]
}

fn value() -> impl Strategy<Value = RenderedValue> {
    let text =
        || proptest::string::string_regex("[a-z_\\x00-\\x1f\u{80}-\u{a0}é→ ]{0,12}").unwrap();
    let leaf = prop_oneof![
        (any::<u32>(), any::<i64>()).prop_map(|(bits, value)| RenderedValue::Int { bits, value }),
        (any::<u32>(), any::<u64>()).prop_map(|(bits, value)| RenderedValue::Uint { bits, value }),
        (0u8..130).prop_map(|value| RenderedValue::Uint {
            bits: 8,
            value: value.into()
        }),
        any::<bool>().prop_map(|value| RenderedValue::Bool { value }),
        any::<u8>().prop_map(|value| RenderedValue::Char { value }),
        (any::<u32>(), float()).prop_map(|(bits, value)| RenderedValue::Float { bits, value }),
        (
            any::<u32>(),
            any::<i64>(),
            proptest::option::of(text()),
            any::<bool>()
        )
            .prop_map(|(bits, value, variant, is_signed)| RenderedValue::Enum {
                bits,
                value,
                variant,
                is_signed
            }),
        text().prop_map(|cpus| RenderedValue::CpuList { cpus }),
        text().prop_map(|hex| RenderedValue::Bytes { hex }),
        text().prop_map(|reason| RenderedValue::Unsupported { reason }),
    ];
    leaf.prop_recursive(6, 96, 8, move |inner| {
        let members = proptest::collection::vec(
            (text(), inner.clone()).prop_map(|(name, value)| RenderedMember { name, value }),
            0..8,
        );
        prop_oneof![
            (proptest::option::of(text()), members)
                .prop_map(|(type_name, members)| RenderedValue::Struct { type_name, members }),
            (
                any::<u64>(),
                proptest::collection::vec(inner.clone(), 0..8),
                any::<bool>()
            )
                .prop_map(|(len, elements, complete)| RenderedValue::Array {
                    len: if complete { elements.len() as u64 } else { len },
                    elements
                }),
            (inner.clone(), 0usize..8).prop_map(|(element, n)| RenderedValue::Array {
                len: n as u64,
                elements: vec![element; n]
            }),
            (
                any::<u64>(),
                proptest::option::of(inner.clone().prop_map(Box::new)),
                proptest::option::of(text()),
                proptest::option::of(text()),
                proptest::option::of(text())
            )
                .prop_map(|(value, deref, reason, cast, symbol)| RenderedValue::Ptr {
                    value,
                    deref,
                    deref_skipped_reason: reason,
                    cast_annotation: cast.map(Into::into),
                    symbol
                }),
            (any::<u64>(), any::<u64>(), inner.prop_map(Box::new)).prop_map(
                |(needed, had, partial)| RenderedValue::Truncated {
                    needed,
                    had,
                    partial
                }
            ),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_value_survives_json(value in value()) {
        let text = serde_json::to_string(&value).unwrap();
        let back: RenderedValue = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&back, &value);
        prop_assert_eq!(serde_json::to_string(&back).unwrap(), text);
    }

    #[test]
    fn any_value_prints_without_control_characters(value in value()) {
        let text = value.to_string();
        prop_assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{:?}", text);
        let map = FailureDumpMap { value: Some(value), ..FailureDumpMap::default() };
        prop_assert!(map.to_string().ends_with(&text));
    }
}
