//! A table of what the CPUs do, and the locks that tasks wait for.

use std::collections::BTreeMap;

use super::super::dsq_name::DsqName;
use super::super::hex::Hex;
use super::super::locks::{LockInfo, NamedTask};
use super::super::postmortem::{CpuInfo, DsqInfo, PostmortemReport, TaskInfo};
use super::escape::Escaped;
use super::postmortem::{Facts, Millis, Nanos, SHOWN_ROWS, Table, cell, more, on_cpu_ns};

/// Waiters shown behind one lock.
const SHOWN_WAITERS: usize = 16;

/// A line for each CPU. Empty when there is nothing beyond the run queues.
pub(super) fn table(report: &PostmortemReport) -> Vec<String> {
    let told = |cpu: &&CpuInfo| cpu.context.is_some() || cpu.tick.is_some();
    if !report.cpus.iter().any(|cpu| told(&cpu)) {
        return Vec::new();
    }
    let mut table = Table::new([
        "cpu",
        "runs",
        "class",
        "for",
        "mode",
        "irqs",
        "preempt",
        "resched",
        "dl/rt/fair/ext",
        "tick",
        "behind",
        "node",
        "core",
        "llc",
    ]);
    table.right = [
        true, false, false, true, false, false, false, false, false, true, true, true, false, false,
    ];
    for cpu in &report.cpus {
        table.push(row(cpu));
    }
    let mut lines = table.lines();
    lines.extend(report.cpus.iter().take(SHOWN_ROWS).filter_map(throttled));
    lines
}

fn row(cpu: &CpuInfo) -> [String; 14] {
    let curr = cpu.curr.as_ref();
    let idle = cpu.idle == Some(true);
    let runs = match curr {
        _ if cpu.online == Some(false) => "offline".to_owned(),
        Some(_) if idle => match cpu.idle_state.as_ref().and_then(|i| i.state.as_ref()) {
            Some(state) => format!("idle ({state})"),
            None => "idle".to_owned(),
        },
        Some(curr) => format!("{}[{}]", curr.comm, curr.pid),
        None => String::new(),
    };
    let since = match &cpu.idle_state {
        Some(state) if idle => state.idle_ns,
        _ => on_cpu_ns(cpu),
    };
    let text = |value: Option<String>| value.unwrap_or_default();
    let context = cpu.context.clone().unwrap_or_default();
    let irqs = context.irqs_enabled.map(|on| if on { "on" } else { "off" });
    let counts = cpu.classes.as_ref().map(|n| {
        let counts = [n.dl, n.rt, n.fair, n.ext];
        let counts = counts.map(|n| n.map_or("?".to_owned(), |n| n.to_string()));
        counts.join("/")
    });
    let tick = cpu.tick.as_ref().and_then(|tick| {
        if tick.stopped == Some(true) {
            return Some("stopped".to_owned());
        }
        Some(format!("{} ms", tick.age_ms?))
    });
    let topology = cpu.topology.clone().unwrap_or_default();
    [
        cpu.cpu.to_string(),
        runs,
        text(curr.and_then(|curr| curr.class.clone()).filter(|_| !idle)),
        text(since.map(|ns| Nanos(ns).to_string())),
        text(context.mode.clone()),
        text(irqs.map(str::to_owned)),
        preemption(cpu),
        rescheduling(cpu),
        text(counts),
        text(tick),
        text(cpu.clock_behind_ns.map(|ns| Nanos(ns).to_string())),
        text(topology.node.map(|node| node.to_string())),
        text(topology.core),
        text(topology.llc),
    ]
}

/// What keeps the running task on the CPU.
fn preemption(cpu: &CpuInfo) -> String {
    let Some(context) = &cpu.context else {
        return String::new();
    };
    let depth = |name: &str, depth: Option<u32>| {
        let depth = depth.filter(|&depth| depth > 0)?;
        Some(format!("{name} {depth}"))
    };
    let serving = context.in_softirq.filter(|&serving| serving);
    let parts = [
        depth("off", context.preempt_disabled),
        depth("bh off", context.bh_disabled),
        serving.map(|_| "softirq".to_owned()),
        depth("irqs off", context.hardirq_disabled),
        depth("hardirq", context.hardirqs),
        depth("nmi", context.nmis),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    match (parts.is_empty(), context.preempt_count) {
        (true, None) => String::new(),
        (true, Some(_)) => "on".to_owned(),
        (false, _) => parts.join(", "),
    }
}

fn rescheduling(cpu: &CpuInfo) -> String {
    let Some(context) = &cpu.context else {
        return String::new();
    };
    let parts = [
        (context.need_resched, "now"),
        (context.need_resched_lazy, "lazy"),
        (context.preempt_need_resched, "folded"),
    ];
    let set: Vec<&str> = parts
        .iter()
        .filter(|(set, _)| *set == Some(true))
        .map(|(_, name)| *name)
        .collect();
    set.join(", ")
}

/// Classes and groups that may not run; servers that run a starved class.
fn throttled(cpu: &CpuInfo) -> Option<String> {
    let throttling = cpu.throttling.as_ref()?;
    let mut facts = Facts::default();
    if throttling.rt == Some(true) {
        facts.push("real-time tasks are throttled");
    }
    for server in throttling
        .servers
        .iter()
        .filter(|s| s.running == Some(true))
    {
        facts.push(format_args!(
            "the deadline server runs starved {} tasks",
            Escaped(&server.class)
        ));
    }
    if !throttling.fair_cgroups.is_empty() {
        facts.push(format_args!(
            "out of quota: {}",
            Escaped(&throttling.fair_cgroups.join(" "))
        ));
    }
    let facts = facts.join(", ");
    (!facts.is_empty()).then(|| format!("cpu {}: {facts}", cpu.cpu))
}

/// A line for each lock and one for those who wait.
pub(super) fn locks(report: &PostmortemReport) -> Vec<String> {
    let tasks: BTreeMap<Hex, &TaskInfo> = report.tasks.iter().map(|t| (t.kva, t)).collect();
    let mut lines = Vec::new();
    for lock in report.locks.iter().take(SHOWN_ROWS) {
        lines.push(lock_line(lock, &tasks, &report.dsqs));
        let names = lock.waiters.iter().take(SHOWN_WAITERS).map(|waiter| {
            let mode = tasks.get(&waiter.kva).and_then(|task| {
                let mode = task.waits_for.as_ref()?.mode.as_deref()?;
                Some(format!(" to {mode}"))
            });
            format!("{}{}", name(waiter), mode.unwrap_or_default())
        });
        let names: Vec<String> = names.collect();
        let rest = more(lock.waiters.len(), SHOWN_WAITERS);
        let rest = rest.map_or(String::new(), |rest| format!(", {rest}"));
        lines.push(format!("  waited for by {}{rest}", names.join(", ")));
    }
    lines.extend(more(report.locks.len(), SHOWN_ROWS));
    lines
}

fn name(task: &NamedTask) -> String {
    format!("{} ({})", task.pid, Escaped(&task.comm))
}

fn lock_line(lock: &LockInfo, tasks: &BTreeMap<Hex, &TaskInfo>, dsqs: &[DsqInfo]) -> String {
    let mut facts = Facts::default();
    if let Some(owner) = &lock.owner {
        let place = tasks.get(&owner.kva).map(|task| whereabouts(task, dsqs));
        let place = place.map_or(String::new(), |place| format!(", {place}"));
        facts.push(format_args!("held by {}{place}", name(owner)));
    }
    facts.with("readers", lock.readers);
    facts.with("last taken to read by", lock.last_reader.as_ref().map(name));
    facts.with("last taken by", lock.last_holder.as_ref().map(name));
    if let Some(why) = &lock.owner_unknown {
        facts.push(Escaped(why));
    }
    if lock.truncated {
        facts.push("list of waiters cut short");
    }
    let symbol = lock.symbol.as_deref().map(cell);
    let symbol = symbol.map_or(String::new(), |symbol| format!(" {symbol}"));
    let user = (lock.kind == "pi_futex")
        .then_some(lock.user_address)
        .flatten();
    let user = user.map_or(String::new(), |user| format!(" for user address {user}"));
    format!(
        "{} {}{symbol}{user}: {}",
        Escaped(&lock.kind),
        lock.address,
        facts.join("; ")
    )
}

/// Where the owner of a lock is.
fn whereabouts(task: &TaskInfo, dsqs: &[DsqInfo]) -> String {
    match (task.on_cpu, task.cpu, task.state.as_deref()) {
        (Some(true), Some(cpu), _) => format!("which runs on cpu {cpu}"),
        (_, _, Some("R")) => {
            let mut facts = Facts::default();
            facts.push("which is runnable and does not run");
            facts.with("for", task.runnable_age_ms.map(Millis));
            let queue = task.dsq_id.map(|id| DsqName::find(dsqs, id, task.cpu));
            facts.with("on DSQ", queue);
            facts.join(" ")
        }
        _ => {
            let state = task.state_name.as_deref().unwrap_or("not running");
            let place = task.wchan.as_deref();
            let place = place.map_or(String::new(), |at| format!(" in {}", Escaped(at)));
            format!("which is in state {}{place}", Escaped(state))
        }
    }
}
