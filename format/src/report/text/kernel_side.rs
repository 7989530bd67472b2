//! Pressure, interrupts, scheduler statistics and the kernel's log as text.

use super::super::kernel_side::{
    CgroupPressure, CpuSchedStats, IrqCount, LogRecord, Pressure, PressureGroup, PressureInfo,
    PressureLine, SchedStats,
};
use super::escape::Escaped;
use super::postmortem::{Facts, Nanos, SHOWN_ROWS, more};

/// The least important level whose name is printed: `warn`.
const NAMED_LEVEL: u8 = 4;

/// The system's lines as `/proc/pressure` has them, then the cgroups under pressure.
pub(super) fn pressure(info: &PressureInfo) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(system) = &info.system {
        lines.extend(group(system, true).map(|line| format!("system {line}")));
    }
    let cgroups: Vec<String> = info.cgroups.iter().flat_map(cgroup).collect();
    let shown = cgroups.len().min(SHOWN_ROWS);
    lines.extend(cgroups.iter().take(shown).cloned());
    lines.extend(more(cgroups.len(), SHOWN_ROWS));
    let quiet = |c: &&CgroupPressure| {
        c.pressure
            .as_ref()
            .is_some_and(|p| group(p, false).next().is_none())
    };
    let quiet = info.cgroups.iter().filter(quiet).count();
    if quiet > 0 {
        lines.push(format!(
            "{quiet} of {} cgroups never waited",
            info.cgroups.len()
        ));
    }
    lines
}

fn cgroup(cgroup: &CgroupPressure) -> Vec<String> {
    let path = Escaped(&cgroup.path);
    let Some(pressure) = &cgroup.pressure else {
        return vec![format!("{path} could not be read")];
    };
    let disabled = if cgroup.disabled {
        " (accounting is off)"
    } else {
        ""
    };
    let lines = group(pressure, false);
    lines
        .map(|line| format!("{path}{disabled} {line}"))
        .collect()
}

/// Lines of one group; those of a resource without any pressure only when `all`.
fn group(group: &PressureGroup, all: bool) -> impl Iterator<Item = String> {
    let resources = [
        ("cpu", &group.cpu),
        ("memory", &group.memory),
        ("io", &group.io),
        ("irq", &group.irq),
    ];
    let parts = |(name, pressure): (&'static str, &Option<Pressure>)| {
        let Pressure { some, full } = pressure.clone().unwrap_or_default();
        [(name, "some", some), (name, "full", full)]
    };
    let lines = resources.map(parts).into_iter().flatten();
    lines.filter_map(move |(name, kind, line)| {
        let line: PressureLine = line.filter(|line| all || line.total_ns > 0)?;
        let (a, b, c) = (
            Escaped(&line.avg10),
            Escaped(&line.avg60),
            Escaped(&line.avg300),
        );
        let total_us = line.total_ns / 1000;
        Some(format!(
            "{name} {kind} avg10={a} avg60={b} avg300={c} total={total_us}"
        ))
    })
}

/// A line for each interrupt.
pub(super) fn irqs(irqs: &[IrqCount]) -> Vec<String> {
    let mut lines: Vec<String> = irqs
        .iter()
        .take(SHOWN_ROWS)
        .map(|irq| {
            let mut facts = Facts::default();
            facts.push(irq.total);
            let parts = irq.per_cpu.iter().take(SHOWN_ROWS);
            let parts: Vec<String> = parts.map(|p| format!("cpu{}={}", p.cpu, p.value)).collect();
            facts.push(parts.join(" "));
            if let Some(chip) = &irq.chip {
                facts.push(Escaped(chip));
            }
            if !irq.names.is_empty() {
                facts.push(Escaped(&irq.names.join(", ")));
            }
            format!("{:>4}: {}", Escaped(&irq.irq).to_string(), facts.join("  "))
        })
        .collect();
    lines.extend(more(irqs.len(), SHOWN_ROWS));
    lines
}

/// A line for each run queue, and for each kind of domain.
pub(super) fn schedstats(stats: &SchedStats) -> Vec<String> {
    let mut lines = Vec::new();
    if stats.counting == Some(false) {
        lines.push("the kernel does not count (kernel.sched_schedstats=0)".to_owned());
    }
    for cpu in stats.cpus.iter().take(SHOWN_ROWS) {
        lines.push(run_queue(cpu, stats.counting != Some(false)));
        for domain in &cpu.domains {
            let name = domain.name.as_deref().unwrap_or("?");
            let mut facts = Facts::default();
            facts.with("cpus", domain.span.as_deref().map(Escaped));
            for counter in &domain.counters {
                facts.push(format_args!("{}={}", Escaped(&counter.name), counter.value));
            }
            lines.push(format!("  domain {}: {}", Escaped(name), facts.join(", ")));
        }
    }
    lines.extend(more(stats.cpus.len(), SHOWN_ROWS));
    lines
}

fn run_queue(cpu: &CpuSchedStats, counts: bool) -> String {
    let mut facts = Facts::default();
    facts.with("ran", cpu.rq_cpu_time_ns.map(Nanos));
    facts.with("waited", cpu.run_delay_ns.map(Nanos));
    facts.with("timeslices", cpu.pcount);
    if counts {
        facts.with("schedule()", cpu.sched_count);
        facts.with("went idle", cpu.sched_goidle);
        facts.with("wakeups", cpu.ttwu_count);
        facts.with("local wakeups", cpu.ttwu_local);
        facts.with("yields", cpu.yld_count);
    }
    format!("cpu {}: {}", cpu.cpu, facts.join(", "))
}

/// The log as dmesg(1) prints it, with the names of important levels.
pub(super) fn log(records: &[LogRecord]) -> String {
    let mut text = String::new();
    for record in records {
        let stamp = format!(
            "[{:5}.{:06}] ",
            record.ts_ns / 1_000_000_000,
            record.ts_ns / 1000 % 1_000_000
        );
        let level = match record.level {
            0..=NAMED_LEVEL => format!("{}: ", Escaped(&record.level_name)),
            _ => String::new(),
        };
        // One record can be several lines; each has its time, as dmesg(1) does it.
        for line in record.text.split('\n') {
            text.push_str(format!("{stamp}{level}{}", Escaped(line)).trim_end());
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_looks_as_dmesg_prints_it() {
        let record = |ts_ns, level: u8, text: &str| LogRecord {
            ts_ns,
            level,
            level_name: if level == 4 { "warn" } else { "info" }.to_owned(),
            text: text.to_owned(),
            ..LogRecord::default()
        };
        let records = [
            record(12_345_678_901, 6, "one\ntwo"),
            record(123_456_000_000_000, 4, "three\u{1b}[31m"),
        ];
        assert_eq!(
            log(&records),
            "[   12.345678] one\n[   12.345678] two\n[123456.000000] warn: three\\x1b[31m\n"
        );
    }
}
