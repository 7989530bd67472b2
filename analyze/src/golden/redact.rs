//! What a golden report has instead of addresses, times and versions.

use std::collections::HashMap;

use serde_json::Value;

use super::Redaction;

/// Values within each other that are looked into; a reader of JSON takes 128.
const MAX_DEPTH: usize = 256;
/// Below this, and from the last page on (small negative numbers), a number is no kernel address.
const KERNEL: std::ops::Range<u64> = 0xffff_8000_0000_0000..0xffff_ffff_ffff_f000;
/// Where the kernel's text is linked to, and where the modules end.
const TEXT: std::ops::Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_ff00_0000;

/// Members that are times since the boot, in ns, ms and jiffies. `docs/report-format.md` says of
/// each what it is.
const AT_NS: [&str; 12] = [
    "uptime_ns",
    "clock_ns",
    "rq_clock",
    "loaded_ns",
    "entry_ns",
    "exec_start_ns",
    "arrived_ns",
    "ts_ns",
    "updated_ns",
    "at_ns",
    "last_trigger_ns",
    "expires_ns",
];
const AT_MS: [&str; 5] = ["elapsed_ms", "first_ms", "last_ms", "at_ms", "uptime_ms"];
const AT_JIFFIES: [&str; 5] = [
    "jiffies",
    "last_jiffies",
    "runnable_at_jiffies",
    "since_jiffies",
    "expires_jiffies",
];

pub(super) fn apply(report: &mut Value, redactions: &[Redaction]) {
    // The halves of a dual report have times of their own.
    if redactions.contains(&Redaction::Times) {
        if report.get("late").is_some() {
            for half in ["early", "late"] {
                if let Some(half) = report.get_mut(half) {
                    relative(half);
                }
            }
        } else {
            relative(report);
        }
    }
    if redactions.contains(&Redaction::Versions) {
        versions(report, 0);
    }
    if redactions.contains(&Redaction::Addresses) {
        let slide = report
            .pointer("/postmortem/kernel/kaslr_offset")
            .or_else(|| report.pointer("/late/postmortem/kernel/kaslr_offset"));
        let mut names = Names {
            slide: slide.and_then(address).unwrap_or(0),
            ..Names::default()
        };
        names.learn(report, "", 0);
        names.replace(report, 0);
    }
}

fn versions(value: &mut Value, depth: usize) {
    match value {
        Value::Object(members) if depth < MAX_DEPTH => {
            if let Some(own) = members.get_mut("postmortem").and_then(Value::as_object_mut) {
                own.remove("analyzer");
                if let Some(input) = own.get_mut("input").and_then(Value::as_object_mut) {
                    input.remove("digest");
                }
            }
            for half in ["early", "late"] {
                if let Some(half) = members.get_mut(half) {
                    versions(half, depth + 1);
                }
            }
        }
        _ => {}
    }
}

// ---- times ----

fn relative(report: &mut Value) {
    let number = |path: &str| report.pointer(path).and_then(Value::as_u64);
    let uptime = number("/postmortem/kernel/uptime_ns");
    let jiffies = number("/postmortem/kernel/jiffies");
    times(report, uptime, jiffies, 0);
}

fn times(value: &mut Value, uptime: Option<u64>, jiffies: Option<u64>, depth: usize) {
    if depth >= MAX_DEPTH {
        return;
    }
    match value {
        Value::Array(elements) => {
            for element in elements {
                times(element, uptime, jiffies, depth + 1);
            }
        }
        Value::Object(members) => {
            for (name, value) in members {
                let name = name.as_str();
                let unit = if AT_NS.contains(&name) {
                    uptime.map(|now| (now, 1_000_000_000, "s"))
                } else if AT_MS.contains(&name) {
                    uptime.map(|now| (now / 1_000_000, 1000, "s"))
                } else if AT_JIFFIES.contains(&name) {
                    jiffies.map(|now| (now, 1, "jiffies"))
                } else {
                    None
                };
                match (unit, value) {
                    (Some(unit), Value::Array(elements)) => {
                        for element in elements {
                            before(element, unit);
                        }
                    }
                    (Some(unit), value @ Value::Number(_)) => before(value, unit),
                    (_, value) => times(value, uptime, jiffies, depth + 1),
                }
            }
        }
        _ => {}
    }
}

/// A time since the boot as one before (or after) `now`; milliseconds are enough.
fn before(value: &mut Value, (now, per_unit, unit): (u64, i128, &str)) {
    let time = value.as_u64().map(i128::from);
    let Some(time) = time.or_else(|| value.as_i64().map(i128::from)) else {
        return;
    };
    let delta = time - i128::from(now);
    let sign = if delta < 0 { '-' } else { '+' };
    let delta = delta.abs();
    *value = Value::String(if per_unit == 1 {
        format!("{sign}{delta} {unit}")
    } else {
        let thousandths = delta * 1000 / per_unit;
        format!(
            "{sign}{}.{:03} {unit}",
            thousandths / 1000,
            thousandths % 1000
        )
    });
}

// ---- addresses ----

#[derive(Default)]
struct Names {
    known: HashMap<u64, String>,
    /// How far the boot moved the kernel's text.
    slide: u64,
    unknown: usize,
}

fn is_kernel(value: u64) -> bool {
    KERNEL.contains(&value)
}

/// The address in a value that is nothing else.
fn address(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => u64::from_str_radix(text.strip_prefix("0x")?, 16).ok(),
        _ => None,
    }
}

impl Names {
    /// Notes what lives at which address, as far as the report itself says. `what` is the list that
    /// the value is in.
    fn learn(&mut self, value: &Value, what: &str, depth: usize) {
        if depth >= MAX_DEPTH {
            return;
        }
        match value {
            Value::Array(elements) => {
                for element in elements {
                    self.learn(element, what, depth + 1);
                }
            }
            Value::Object(members) => {
                self.learn_one(members, what);
                for (name, value) in members {
                    self.learn(value, name, depth + 1);
                }
            }
            _ => {}
        }
    }

    fn learn_one(&mut self, members: &serde_json::Map<String, Value>, what: &str) {
        let at = |name: &str| {
            members
                .get(name)
                .and_then(address)
                .filter(|&at| is_kernel(at))
        };
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        let number = |name: &str| members.get(name).and_then(Value::as_i64);
        let kva = at("kva").or_else(|| at("task_kva"));
        let named = match (text("comm"), number("pid"), text("name"), text("symbol")) {
            (Some(comm), Some(pid), ..) => kva.map(|kva| (kva, format!("task {comm}[{pid}]"))),
            (_, _, Some(name), _) if what == "maps" => {
                kva.or_else(|| at("map_kva")).map(|kva| match number("id") {
                    Some(id) => (kva, format!("map {name} {id}")),
                    None => (kva, format!("map {name}")),
                })
            }
            (.., Some(symbol)) => {
                let place = at("addr").or_else(|| at("value"));
                place.map(|at| (at, symbol.to_owned()))
            }
            (_, _, Some(name), _) if what == "programs" => {
                kva.map(|kva| (kva, format!("program {name}")))
            }
            _ => None,
        };
        let queue = at("dsq_kva").zip(text("origin")).map(|(at, origin)| {
            let id = members.get("id").map_or_else(String::new, |id| {
                id.as_str().map_or_else(|| id.to_string(), str::to_owned)
            });
            (at, format!("dsq {id} ({origin})"))
        });
        let sched = at("sched_kva").zip(text("ops_name"));
        let sched = sched.map(|(at, name)| (at, format!("scheduler {name}")));
        for (at, name) in [named, queue, sched].into_iter().flatten() {
            self.known.entry(at).or_insert(name);
        }
    }

    fn name(&mut self, at: u64) -> String {
        if let Some(name) = self.known.get(&at) {
            return format!("<{name}>");
        }
        let name = if TEXT.contains(&at) {
            format!("text {:#x}", at.wrapping_sub(self.slide))
        } else {
            self.unknown += 1;
            format!("address {}", self.unknown)
        };
        let shown = format!("<{name}>");
        self.known.insert(at, name);
        shown
    }

    fn replace(&mut self, value: &mut Value, depth: usize) {
        if depth >= MAX_DEPTH {
            return;
        }
        match value {
            Value::Number(number) => {
                if let Some(at) = number.as_u64().filter(|&at| is_kernel(at)) {
                    *value = Value::String(self.name(at));
                }
            }
            Value::String(text) => {
                if let Some(new) = self.text(text) {
                    *text = new;
                }
            }
            Value::Array(elements) => {
                for element in elements {
                    self.replace(element, depth + 1);
                }
            }
            Value::Object(members) => {
                for (_, value) in members {
                    self.replace(value, depth + 1);
                }
            }
            _ => {}
        }
    }

    /// A text with the addresses in it replaced: `0xffff…`, or bytes of memory.
    fn text(&mut self, text: &str) -> Option<String> {
        if let Some(bytes) = self.bytes(text) {
            return Some(bytes);
        }
        let mut out = String::new();
        let mut rest = text;
        let mut changed = false;
        while let Some(at) = rest.find("0xffff") {
            let (before, from) = rest.split_at_checked(at)?;
            let digits = from.get(2..).unwrap_or_default();
            let end = digits.find(|c: char| !c.is_ascii_hexdigit());
            let digits = digits
                .get(..end.unwrap_or(digits.len()))
                .unwrap_or_default();
            out.push_str(before);
            let value = u64::from_str_radix(digits, 16).ok();
            match value.filter(|&value| is_kernel(value) && digits.len() == 16) {
                Some(value) => {
                    out.push_str(&self.name(value));
                    changed = true;
                }
                None => {
                    out.push_str("0x");
                    out.push_str(digits);
                }
            }
            rest = from.get(2 + digits.len()..).unwrap_or_default();
        }
        out.push_str(rest);
        changed.then_some(out)
    }

    /// Bytes as reports have them, `0a ff 00`: each aligned group of eight that is an address.
    fn bytes(&mut self, text: &str) -> Option<String> {
        let count = (text.len() + 1) / 3;
        if count < 8 || text.len() != count * 3 - 1 {
            return None;
        }
        let mut all = Vec::with_capacity(count);
        for part in text.split(' ') {
            all.push((part.len() == 2).then(|| u8::from_str_radix(part, 16).ok())??);
        }
        let mut parts = Vec::new();
        let mut changed = false;
        for group in all.chunks(8) {
            let value = <[u8; 8]>::try_from(group).ok().map(u64::from_le_bytes);
            match value.filter(|&value| is_kernel(value)) {
                Some(value) => {
                    parts.push(self.name(value));
                    changed = true;
                }
                None => parts.extend(group.iter().map(|byte| format!("{byte:02x}"))),
            }
        }
        changed.then(|| parts.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_become_names_times_relative_and_versions_go() {
        let mut report = json!({
            "schema": "single",
            "rq_scx_states": [{"runnable_task_kvas": [0xffff_8880_0123_4000_u64, 0xffff_8880_0123_5000_u64]}],
            "maps": [{"name": "demo.bss", "map_kva": 0xffff_8880_0000_1000_u64,
                "entries": [{"key_hex": "00 40 23 01 80 88 ff ff"}],
                "value": {"kind": "uint", "bits": 64, "value": u64::MAX}}],
            "postmortem": {
                "analyzer": "scx-postmortem 0.1.0",
                "input": {"kind": "capture", "digest": "00"},
                "kernel": {"uptime_ns": 22_541_000_000_u64, "jiffies": 1000, "kaslr_offset": "0xa000000"},
                "tasks": [{"kva": "0xffff888001234000", "pid": 188, "comm": "starve-1",
                    "runnable_at_jiffies": 990, "slice_ns": 5}],
                "kernel_log": [{"ts_ns": 20_000_000_000_u64,
                    "text": "at 0xffffffff8a001000 and 0xffff888001234000, 0xffff"}],
            },
        });
        apply(&mut report, Redaction::ALL);
        let tasks = &report["rq_scx_states"][0]["runnable_task_kvas"];
        assert_eq!(tasks[0], "<task starve-1[188]>");
        assert_eq!(tasks[1], "<address 1>");
        let map = &report["maps"][0];
        assert_eq!(map["map_kva"], "<map demo.bss>");
        assert_eq!(map["entries"][0]["key_hex"], "<task starve-1[188]>");
        assert_eq!(map["value"]["value"], u64::MAX);
        let own = &report["postmortem"];
        assert_eq!(own["tasks"][0]["runnable_at_jiffies"], "-10 jiffies");
        assert_eq!(own["tasks"][0]["slice_ns"], 5);
        assert_eq!(own["kernel"]["uptime_ns"], "+0.000 s");
        assert_eq!(own["kernel_log"][0]["ts_ns"], "-2.541 s");
        assert_eq!(
            own["kernel_log"][0]["text"],
            "at <text 0xffffffff80001000> and <task starve-1[188]>, 0xffff"
        );
        assert!(own.get("analyzer").is_none() && own["input"].get("digest").is_none());
    }
}
