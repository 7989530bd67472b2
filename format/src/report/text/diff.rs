//! What changed from the early image to the late one, as text: what stood still first.

use std::fmt;

use super::super::diff::{
    CpuChange, DsqChange, EarlyLateDiff, EntriesChange, ReportsDiff, SchedulerChange, ValueChange,
};
use super::super::locks::NamedTask;
use super::escape::Escaped;
use super::postmortem::{Millis, Nanos, SHOWN_ROWS, count, section};

/// Tasks that are named in one line.
const NAMED: usize = 12;

/// The whole block, without a newline at its end.
pub(super) fn text(diff: &EarlyLateDiff) -> String {
    let mut sections = vec![match diff.elapsed_ns {
        Some(ns) => format!("the late image was taken {} after the early one", Nanos(ns)),
        None => "how long after the early image the late one was taken is not known".to_owned(),
    }];
    sections.extend(body(diff));
    sections.join("\n\n")
}

/// Everything below the title.
fn body(diff: &EarlyLateDiff) -> Vec<String> {
    let mut sections = Vec::new();
    sections.push(section(
        "scheduler",
        diff.scheduler.as_ref().map(|s| vec![scheduler(s)]),
    ));
    let waiting = diff.still_waiting.iter().map(|waiting| {
        let dsq = match (waiting.early_dsq_id, waiting.late_dsq_id) {
            (None, None) => "on no queue".to_owned(),
            (Some(early), Some(late)) if early == late => format!("on {late} all the while"),
            (early, late) => {
                let place = |id: Option<super::super::hex::Hex>| {
                    id.map_or_else(|| "no queue".to_owned(), |id| id.to_string())
                };
                format!("from {} to {}", place(early), place(late))
            }
        };
        format!(
            "{} has not run: runnable for {}, now {}, {dsq}",
            name(&waiting.task),
            Millis(waiting.early_age_ms),
            Millis(waiting.late_age_ms)
        )
    });
    sections.push(section("still waiting", Some(cut(waiting.collect()))));
    sections.push(section(
        "dispatch queues",
        Some(cut(diff
            .dsqs
            .iter()
            .map(|change| dsq(change, diff.other_boot))
            .collect())),
    ));
    sections.push(section(
        "cpus",
        Some(cut(diff.cpus.iter().map(cpu).collect())),
    ));
    let ran = diff.ran.iter().map(|ran| {
        let cpus = match (ran.early_cpu, ran.late_cpu) {
            (Some(early), Some(late)) if early != late => format!(" cpu {early}, then {late}"),
            (_, Some(cpu)) => format!(" cpu {cpu}"),
            _ => String::new(),
        };
        format!("{} ran {}{cpus}", name(&ran.task), Nanos(ran.ran_ns))
    });
    sections.push(section("who ran", Some(cut(ran.collect()))));
    let counters = diff.counters.iter().map(|counter| {
        let delta = i128::from(counter.late) - i128::from(counter.early);
        let rate = rate(counter.per_1000_s);
        format!(
            "{} {delta:+}{rate}, {} to {}",
            Escaped(&counter.name),
            counter.early,
            counter.late
        )
    });
    sections.push(section("event counters", Some(cut(counters.collect()))));
    let maps = diff.maps.iter().map(|map| {
        let entries = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
        let what = match &*map.what {
            "changed" => format!(
                "{} entries, now {}",
                entries(map.early_entries),
                entries(map.late_entries)
            ),
            other => Escaped(other).to_string(),
        };
        format!("{} {}: {what}", map.id, Escaped(&map.name))
    });
    sections.push(section("maps", Some(cut(maps.collect()))));
    let variables = diff.variables.iter().flat_map(|variable| {
        let more = variable.truncated.then(|| {
            format!(
                "{}.{}: more of it changed",
                Escaped(&variable.map),
                Escaped(&variable.name)
            )
        });
        let changes = variable.changes.iter().map(|change| {
            let dot = if change.path.is_empty() || change.path.starts_with('[') {
                ""
            } else {
                "."
            };
            format!(
                "{} {}{dot}{}: {}",
                Escaped(&variable.map),
                Escaped(&variable.name),
                Escaped(&change.path),
                value(change)
            )
        });
        changes.chain(more)
    });
    sections.push(section("variables", Some(cut(variables.collect()))));
    let entries = diff.entries.iter().flat_map(map_entries);
    sections.push(section("map entries", Some(cut(entries.collect()))));
    let mut tasks = Vec::new();
    for (what, list) in [("come", &diff.tasks_come), ("gone", &diff.tasks_gone)] {
        if !list.is_empty() {
            let names: Vec<String> = list.iter().take(NAMED).map(name).collect();
            let more = match list.len().saturating_sub(NAMED) {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            tasks.push(format!("{what}: {}{more}", names.join(", ")));
        }
    }
    sections.push(section("tasks", Some(tasks)));
    let not = diff.not_compared.iter().map(|why| Escaped(why).to_string());
    sections.push(section("not compared", Some(not.collect())));
    sections.retain(|section| !section.is_empty());
    sections
}

impl fmt::Display for ReportsDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, side) in [("a", &self.a), ("b", &self.b)] {
            write!(f, "{letter}: {}", Escaped(&side.name))?;
            if let Some(kernel) = &side.kernel {
                write!(f, ", kernel {}", Escaped(kernel))?;
            }
            if let Some(ns) = side.uptime_ns {
                write!(f, ", up {}", Nanos(ns))?;
            }
            if let Some(scheduler) = &side.scheduler {
                write!(f, ", scheduler {}", Escaped(scheduler))?;
            }
            writeln!(f)?;
            for line in &side.headline {
                writeln!(f, "  * {}", Escaped(line))?;
            }
        }
        let title = match (self.diff.other_boot, self.diff.elapsed_ns) {
            (true, _) => "two boots: compared by names and ids".to_owned(),
            (false, Some(ns)) => format!("one boot: b was taken {} after a", Nanos(ns)),
            (false, None) => "one boot; how much time lies between is not known".to_owned(),
        };
        writeln!(f, "{title}")?;
        for section in body(&self.diff) {
            writeln!(f, "\n{section}")?;
        }
        Ok(())
    }
}

/// A rate in parentheses, with a space before it.
fn rate(per_1000_s: Option<i64>) -> String {
    per_1000_s.map_or_else(String::new, |rate| {
        let sign = if rate < 0 { "-" } else { "" };
        let rate = rate.unsigned_abs();
        format!(" ({sign}{}.{:03}/s)", rate / 1000, rate % 1000)
    })
}

fn value(change: &ValueChange) -> String {
    let side = |value: &Option<String>| match value {
        Some(value) => Escaped(value).to_string(),
        None => "nothing".to_owned(),
    };
    let delta = change.delta.map_or_else(String::new, |delta| {
        format!(", {delta:+}{}", rate(change.per_1000_s))
    });
    format!("{} to {}{delta}", side(&change.early), side(&change.late))
}

fn map_entries(map: &EntriesChange) -> Vec<String> {
    let mut lines = vec![format!(
        "{}: {} come, {} gone, {} changed",
        Escaped(&map.map),
        map.come,
        map.gone,
        map.changed
    )];
    for entry in &map.entries {
        let key = Escaped(&entry.key);
        match &*entry.what {
            "changed" => lines.extend(entry.changes.iter().map(|change| {
                let path = if change.path.is_empty() {
                    String::new()
                } else {
                    format!(" {}", Escaped(&change.path))
                };
                format!("  {key}{path}: {}", value(change))
            })),
            what => {
                let change = entry.changes.first();
                let shown =
                    change.and_then(|change| change.late.as_ref().or(change.early.as_ref()));
                let shown = shown.map_or_else(String::new, |value| format!(": {}", Escaped(value)));
                lines.push(format!("  {key} {}{shown}", Escaped(what)));
            }
        }
    }
    lines
}

fn name(task: &NamedTask) -> String {
    format!("{}[{}]", Escaped(&task.comm), task.pid)
}

/// At most so many lines as of any table.
fn cut(mut lines: Vec<String>) -> Vec<String> {
    if let Some(more @ 1..) = lines.len().checked_sub(SHOWN_ROWS) {
        lines.truncate(SHOWN_ROWS);
        lines.push(format!("and {more} more in the JSON"));
    }
    lines
}

fn scheduler(change: &SchedulerChange) -> String {
    let of = |name: &Option<String>,
              state: &Option<String>,
              kind: Option<u32>,
              known: &Option<String>| {
        let name = name.as_deref().unwrap_or("none");
        let state = state
            .as_deref()
            .map(|state| format!(", {}", Escaped(state)));
        let kind = kind.map(|kind| match known {
            Some(known) => format!(", exit kind {kind} ({})", Escaped(known)),
            None => format!(", exit kind {kind}"),
        });
        format!(
            "{}{}{}",
            Escaped(name),
            state.unwrap_or_default(),
            kind.unwrap_or_default()
        )
    };
    let early = of(
        &change.early_name,
        &change.early_state,
        change.early_exit_kind,
        &change.early_exit_kind_name,
    );
    let late = of(
        &change.late_name,
        &change.late_state,
        change.late_exit_kind,
        &change.late_exit_kind_name,
    );
    if early == late && change.same {
        format!("{late}, as before")
    } else if change.same {
        format!("{early}; now {late}")
    } else {
        format!("{early}; now another one: {late}")
    }
}

fn dsq(change: &DsqChange, other_boot: bool) -> String {
    let id = match &*change.origin {
        // Each is known by its own id; the others share theirs.
        "user" => change.id.to_string(),
        _ => Escaped(&change.name).to_string(),
    };
    let label = format!("{id} ({})", Escaped(&change.origin));
    let (early, late) = match (change.early_nr, change.late_nr) {
        (Some(early), Some(late)) => (early, late),
        (None, Some(late)) => return format!("{label}: new, {}", count(late, "task")),
        (early, None) => {
            return format!("{label}: gone, had {}", count(early.unwrap_or(0), "task"));
        }
    };
    if other_boot {
        return format!("{label}: {}, now {late}", count(early, "task"));
    }
    let flow = match (change.put_in, change.taken_out) {
        (Some(put), Some(0)) if early > 0 => format!("{put} put in, none taken out"),
        (Some(put), Some(taken)) => format!("{put} put in, {taken} taken out"),
        (Some(put), None) => format!("{put} put in"),
        _ => "made anew".to_owned(),
    };
    format!("{label}: {}, now {late}; {flow}", count(early, "task"))
}

fn cpu(change: &CpuChange) -> String {
    let curr = |task: &Option<NamedTask>| task.as_ref().map_or_else(|| "?".to_owned(), name);
    let (early, late) = (curr(&change.early_curr), curr(&change.late_curr));
    let ran = if change.early_curr == change.late_curr {
        format!("{late} both times")
    } else {
        format!("{early}, now {late}")
    };
    let clock = match change.clock_advanced_ns {
        Some(0) => ", its clock stood still".to_owned(),
        Some(ns) => format!(", its clock went on by {}", Nanos(ns)),
        None => String::new(),
    };
    let count = |n: Option<u32>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
    format!(
        "cpu {}: {ran}, nr_running {}, now {}{clock}",
        change.cpu,
        count(change.early_nr_running),
        count(change.late_nr_running)
    )
}
