//! Our own block as text: the verdict first, then the evidence, then what was not read.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use super::super::dsq_name::{DsqName, DsqNames};
use super::super::dump::FailureDumpReport;
use super::super::hex::Hex;
use super::super::kernel_dump::DumpComparison;
use super::super::postmortem::{
    CpuInfo, DsqInfo, ExitInfo, Flags, KernelInfo, PostmortemReport, SchedulerInfo, TaskInfo,
    UnavailableCode,
};
use super::super::probe::ProbeInfo;
use super::bpf_maps::{arenas, maps};
use super::bpf_objects;
use super::card::card;
use super::deferred::{overdue_timers, overdue_works};
use super::escape::Escaped;
use super::history::history;
use super::kernel_side;
use super::stacks::{frame_line, stacks};

/// Rows shown of one table. The JSON has all.
pub(super) const SHOWN_ROWS: usize = 40;
/// Tasks shown behind one CPU or one queue.
const SHOWN_TASKS: usize = 16;
/// Levels of sub-schedulers that are set off.
const SHOWN_LEVELS: usize = 8;
/// Characters of one cell.
const CELL_WIDTH: usize = 48;

impl fmt::Display for PostmortemReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(None))
    }
}

impl PostmortemReport {
    /// The whole block. `shared` is the report that it is a part of: the values of the stalled
    /// task's storage are there.
    pub(super) fn text(&self, shared: Option<&FailureDumpReport>) -> String {
        let sections = [
            self.title(),
            self.headline(),
            self.damage(),
            self.findings(),
            section("stalled task", Some(card(self, shared))),
            section("cpu table", Some(super::cpus::table(self))),
            self.cpus(),
            self.queues(),
            self.waiting(),
            section("scheduler", self.scheduler.as_ref().map(scheduler)),
            self.other_schedulers(),
            section("exit", self.exit_info.as_ref().map(exit_info)),
            section("probe", self.probe.as_ref().map(probe)),
            section("locks", Some(super::cpus::locks(self))),
            section(
                "the kernel's own dump against this report",
                self.dump_differences.as_ref().map(dump_differences),
            ),
            section("stacks", Some(stacks(self))),
            self.counters(),
            section("before the stop", self.history.as_ref().map(history)),
            section(
                "bpf scheduler",
                self.active.as_ref().map(bpf_objects::active),
            ),
            section("bpf programs", Some(bpf_objects::programs(&self.programs))),
            section("bpf links", Some(bpf_objects::links(&self.links))),
            section("maps", Some(maps(&self.maps))),
            section("arenas", Some(arenas(&self.arenas, &self.allocators))),
            section("pressure", self.psi.as_ref().map(kernel_side::pressure)),
            section("interrupts", Some(kernel_side::irqs(&self.irqs))),
            section(
                "scheduler statistics",
                self.schedstats.as_ref().map(kernel_side::schedstats),
            ),
            section("overdue timers", Some(overdue_timers(&self.timers))),
            section("overdue works", self.workqueues.as_ref().map(overdue_works)),
            self.unavailable(),
            self.anomalies(),
            self.limits(),
            self.provenance(),
        ];
        joined(&sections)
    }
}

/// The sections that are not empty, with an empty line between them.
fn joined(sections: &[String]) -> String {
    let texts = sections.iter().map(|text| text.trim_end());
    let texts: Vec<&str> = texts.filter(|text| !text.is_empty()).collect();
    texts.join("\n\n")
}

/// A heading and its indented lines, if there are any.
pub(super) fn section(heading: &str, lines: Option<Vec<String>>) -> String {
    match lines {
        Some(lines) if !lines.is_empty() => {
            let lines = lines.iter().map(|line| format!("\n  {}", line.trim_end()));
            format!("{heading}:{}", lines.collect::<String>())
        }
        _ => String::new(),
    }
}

impl PostmortemReport {
    fn title(&self) -> String {
        let mut lines = Vec::new();
        if !self.analyzer.is_empty() {
            lines.push(Escaped(&self.analyzer).to_string());
        }
        if let Some(kernel) = &self.kernel {
            lines.extend(kernel_lines(kernel));
        }
        if let Some(input) = &self.input {
            let mut facts = Facts::default();
            facts.push(Escaped(&input.kind));
            facts.with("memory", input.memory_bytes.map(Size));
            facts.with("vcpus", input.vcpus);
            facts.with("trigger", input.trigger.as_deref().map(Escaped));
            lines.push(format!("input: {}", facts.join(", ")));
            let left_out = input.left_out.iter();
            lines.extend(left_out.map(|what| format!("left out: {}", Escaped(what))));
        }
        lines.join("\n")
    }

    fn headline(&self) -> String {
        let lines = self
            .headline
            .iter()
            .map(|line| format!("* {}", Escaped(line)));
        section("what happened", Some(lines.collect()))
    }

    /// The first sections: what happened, and why.
    pub(super) fn brief(&self) -> String {
        joined(&[
            self.title(),
            self.headline(),
            self.damage(),
            self.findings(),
        ])
    }

    /// What is wrong with the file: it comes before what was concluded from it.
    fn damage(&self) -> String {
        let warnings = self.warnings.iter();
        let lines = warnings.map(|warning| Escaped(warning).to_string());
        section("damage", Some(lines.collect()))
    }

    fn findings(&self) -> String {
        let mut lines = Vec::new();
        for (number, finding) in (1..).zip(&self.findings) {
            lines.push(format!(
                "{number}. {} [{}, {}]",
                Escaped(&finding.what),
                Escaped(&finding.confidence),
                Escaped(&finding.rule)
            ));
            let advice = finding.advice.iter();
            lines.extend(advice.map(|advice| format!("   → {}", Escaped(advice))));
            let evidence = finding.evidence.iter();
            let evidence =
                evidence.map(|e| format!("{} = {}", Escaped(&e.path), Escaped(&e.value)));
            lines.extend(evidence.map(|fact| format!("     {fact}")));
        }
        if lines.is_empty() {
            // A block that says nothing of what happened was made without the rules.
            if self.headline.is_empty() {
                return String::new();
            }
            // What is not there for this kernel hides nothing.
            let mut missing = self.unavailable.iter().map(|missing| missing.code);
            let hidden = missing.any(|code| code != UnavailableCode::NotApplicable);
            let within = if hidden || !self.anomalies.is_empty() || !self.warnings.is_empty() {
                " in what could be read"
            } else {
                ""
            };
            return format!("findings: none; no rule saw anything wrong{within}");
        }
        section("findings", Some(lines))
    }

    fn other_schedulers(&self) -> String {
        let lines = self
            .schedulers
            .iter()
            .filter(|s| Some(*s) != self.scheduler.as_ref())
            .map(|s| {
                // A tree: each level stands further in.
                let level = s.level.and_then(|level| usize::try_from(level).ok());
                let depth = level.unwrap_or(0).min(SHOWN_LEVELS);
                format!("{}{}", "  ".repeat(depth), scheduler_name(s))
            })
            .collect();
        section("other schedulers", Some(lines))
    }

    /// Runnable tasks that are not running, the one that waited longest first.
    fn waiting(&self) -> String {
        let waiting = waiting_tasks(self);
        if waiting.is_empty() {
            return String::new();
        }
        let mut table = Table::new(["runnable", "pid", "comm", "cpu", "waits on", "may use cpus"]);
        table.right = [true, true, false, true, false, false];
        for task in &waiting {
            table.rows.push([
                task.age_ms.map_or("?".into(), |ms| Ago(ms).to_string()),
                task.pid.to_string(),
                cell(task.comm),
                task.cpu.map_or(String::new(), |cpu| cpu.to_string()),
                cell(&task.place),
                cell(task.cpus_allowed.unwrap_or_default()),
            ]);
        }
        section("waiting tasks, longest first", Some(table.lines()))
    }

    fn queues(&self) -> String {
        let mut lines = Vec::new();
        for dsq in self
            .dsqs
            .iter()
            .filter(|dsq| dsq.nr > 0 || !dsq.tasks.is_empty())
        {
            let mut facts = Facts::default();
            facts.push(count(dsq.nr, "task"));
            facts.with("seq", Some(dsq.seq));
            if let Some(order) = &dsq.order {
                facts.push(Escaped(order));
            }
            if dsq.truncated {
                facts.push("list cut short");
            }
            lines.push(format!("{}: {}", DsqName::of(dsq), facts.join(", ")));
            for task in dsq.tasks.iter().take(SHOWN_TASKS) {
                let mut facts = Facts::default();
                facts.with("vtime", task.dsq_vtime.filter(|_| is_vtime(dsq)));
                facts.with("slice", task.slice_ns.map(Nanos));
                lines.push(format!(
                    "  {}. {}{} {}",
                    task.index,
                    task_name(&task.comm, task.pid),
                    ago(task.runnable_age_ms),
                    facts.join(", ")
                ));
            }
            lines.extend(more(dsq.tasks.len(), SHOWN_TASKS).map(|text| format!("  {text}")));
        }
        let empty = self.dsqs.len() - self.dsqs.iter().filter(|d| d.nr > 0).count();
        if !self.dsqs.is_empty() && empty > 0 {
            lines.push(format!("{empty} of {} queues are empty", self.dsqs.len()));
        }
        section("dispatch queues", Some(lines))
    }

    fn cpus(&self) -> String {
        let names = DsqNames::among(&self.dsqs);
        let lines = self.cpus.iter().flat_map(|cpu| cpu_lines(cpu, &names));
        section("cpus", Some(lines.collect()))
    }

    fn counters(&self) -> String {
        let counters = || self.event_counters.iter().filter(|c| c.value != 0);
        let width = counters()
            .map(|c| c.name.chars().count())
            .max()
            .unwrap_or(0);
        let mut lines: Vec<String> = counters()
            .map(|c| {
                let per_cpu: Vec<String> = c
                    .per_cpu
                    .iter()
                    .map(|part| format!("cpu{}={}", part.cpu, part.value))
                    .collect();
                let name = Escaped(&c.name).to_string();
                let line = format!("{name:<width$}  {}  {}", c.value, per_cpu.join(" "));
                line.trim_end().to_owned()
            })
            .collect();
        let zero = self.event_counters.len() - lines.len();
        if zero > 0 {
            lines.push(format!(
                "{zero} of {} counters are 0",
                self.event_counters.len()
            ));
        }
        section("event counters", Some(lines))
    }

    fn unavailable(&self) -> String {
        let lines = self.unavailable.iter().map(|missing| {
            let code = missing.code.as_str();
            format!(
                "{} ({code}): {}",
                Escaped(&missing.section),
                Escaped(&missing.reason)
            )
        });
        section("unavailable", Some(lines.collect()))
    }

    fn anomalies(&self) -> String {
        let lines = self.anomalies.iter().map(|anomaly| {
            let address = anomaly
                .address
                .map_or(String::new(), |a| format!(" at {a}"));
            format!(
                "{}{address}: {}",
                Escaped(&anomaly.section),
                Escaped(&anomaly.what)
            )
        });
        section("anomalies", Some(lines.collect()))
    }

    fn limits(&self) -> String {
        let lines = self.limits.iter().map(|reached| {
            let actual = reached.actual.map_or(String::new(), |n| format!(" of {n}"));
            format!("{}: {}{actual}", Escaped(&reached.what), reached.limit)
        });
        section("limits reached", Some(lines.collect()))
    }

    fn provenance(&self) -> String {
        let lines = self.provenance.iter().map(|fact| {
            let line = format!("{}: {}", Escaped(&fact.what), Escaped(&fact.source));
            match fact.detail.as_str() {
                "" => line,
                detail => format!("{line} ({})", Escaped(detail)),
            }
        });
        section("provenance", Some(lines.collect()))
    }
}

/// What the probe saw, in one or two lines.
fn probe(probe: &ProbeInfo) -> Vec<String> {
    let Some(exit) = &probe.exit else {
        let line = match (probe.latched, probe.last_trigger_ns) {
            (true, _) => "saw an error exit, and kept nothing of it".to_owned(),
            (false, Some(at)) => format!("saw an exit that was no error, {} after boot", Nanos(at)),
            (false, None) => "saw no scheduler end".to_owned(),
        };
        return vec![line];
    };
    let kind = exit.exit_kind_name.as_deref().map(Escaped);
    let kind = kind.map_or_else(|| exit.exit_kind.to_string(), |kind| kind.to_string());
    let mut facts = Facts::default();
    facts.push(format_args!("saw {kind}"));
    facts.with("after", exit.at_ns.map(Nanos));
    facts.with("on cpu", exit.cpu);
    facts.with("in pid", exit.pid);
    let mut state = Facts::default();
    state.with("scheduler", exit.sched_kva);
    state.with("bypass depth", Some(exit.bypass_depth));
    state.with(
        "watchdog",
        Some(format_args!("{} jiffies", exit.watchdog_timeout_jiffies)),
    );
    if exit.aborting {
        state.push("aborting");
    }
    vec![facts.join(", "), state.join(", ")]
}

fn kernel_lines(kernel: &KernelInfo) -> Vec<String> {
    let mut facts = Facts::default();
    facts.push(Escaped(
        kernel.release.as_deref().unwrap_or("unknown release"),
    ));
    if let Some(arch) = &kernel.arch {
        facts.push(Escaped(arch));
    }
    facts.with("HZ", kernel.hz);
    facts.with("online cpus", kernel.cpus_online.as_deref().map(Escaped));
    facts.with(
        "possible cpus",
        kernel.cpus_possible.as_deref().map(Escaped),
    );
    let none = |list: &String| match list.as_str() {
        "" => "none".to_owned(),
        list => Escaped(list).to_string(),
    };
    facts.with("isolated cpus", kernel.cpus_isolated.as_ref().map(none));
    facts.with(
        "nohz_full cpus",
        (kernel.cpus_nohz_full.as_ref())
            .filter(|list| !list.is_empty())
            .map(none),
    );
    facts.with("sched_ext", kernel.sched_ext_state.as_deref().map(Escaped));
    facts.with("up", kernel.uptime_ns.map(|ns| Millis(ns / 1_000_000)));
    facts.with("build id", kernel.build_id.as_deref().map(Escaped));
    vec![format!("kernel: {}", facts.join(", "))]
}

fn scheduler_name(s: &SchedulerInfo) -> String {
    let mut facts = Facts::default();
    if let Some(state) = &s.enable_state {
        facts.push(Escaped(state));
    }
    facts.with("level", s.level.filter(|level| *level != 0));
    facts.with("cgroup", s.cgroup_path.as_deref().map(Escaped));
    facts.with("at", s.sched_kva);
    if !s.found_via.is_empty() {
        facts.with("found via", Some(Escaped(&s.found_via)));
    }
    let name = Escaped(s.ops_name.as_deref().unwrap_or("(no name)"));
    format!("{name}: {}", facts.join(", "))
}

fn scheduler(s: &SchedulerInfo) -> Vec<String> {
    let mut state = Facts::default();
    let name = s.exit_kind_name.as_deref();
    let name = name.map_or(String::new(), |name| format!(" ({})", Escaped(name)));
    state.with("exit_kind", s.exit_kind.map(|kind| format!("{kind}{name}")));
    state.with("bypass_depth", s.bypass_depth);
    state.with("bypassed for", s.bypassed_ms.map(Millis));
    state.with("aborting", s.aborting);
    state.with("switched_all", s.switched_all);
    let mut time = Facts::default();
    let jiffies = |n| format!(" ({n} jiffies)");
    let jiffies = s.watchdog_timeout_jiffies.map_or(String::new(), jiffies);
    let limit = |ms| format!("{}{jiffies}", Millis(ms));
    time.with("watchdog limit", s.watchdog_timeout_ms.map(limit));
    time.with(
        "since the watchdog ran",
        s.watchdog_timestamp_age_ms.map(Millis),
    );
    time.with("default slice", s.slice_dfl_ns.map(Nanos));
    let mut counts = Facts::default();
    counts.with("enable_seq", s.enable_seq);
    counts.with("hotplug_seq", s.hotplug_seq);
    counts.with("nr_rejected", s.nr_rejected);
    let mut lines = vec![scheduler_name(s)];
    lines.extend(
        [state, time, counts]
            .iter()
            .filter(|f| !f.0.is_empty())
            .map(|f| f.join(", ")),
    );
    if let Some(flags) = s.ops_flags.as_ref().filter(|flags| flags.raw.0 != 0) {
        lines.push(format!("flags {}", FlagList(flags)));
    }
    if !s.has_ops.is_empty() {
        lines.push(format!("callbacks {}", Escaped(&s.has_ops.join(" "))));
    }
    lines
}

fn exit_info(exit: &ExitInfo) -> Vec<String> {
    let mut facts = Facts::default();
    facts.push(match &exit.kind_name {
        Some(name) => format!("{} ({})", Escaped(name), exit.kind),
        None => format!("kind {}", exit.kind),
    });
    facts.with(
        "code",
        exit.exit_code
            .filter(|&code| code != 0)
            .map(|code| format!("{code:#x}")),
    );
    facts.with("cpu", exit.exit_cpu.filter(|cpu| *cpu >= 0));
    facts.with(
        "flags",
        exit.flags.as_ref().filter(|f| f.raw.0 != 0).map(FlagList),
    );
    let mut lines = vec![facts.join(", ")];
    if let Some(reason) = &exit.reason {
        lines.push(format!("reason: {}", Escaped(reason)));
    }
    if let Some(msg) = &exit.msg {
        lines.push(format!("message: {}", Escaped(msg)));
    }
    if !exit.backtrace.is_empty() {
        lines.push("backtrace:".to_owned());
        for frame in exit.backtrace.iter().take(SHOWN_ROWS) {
            lines.push(format!("  {}", frame_line(frame)));
        }
        lines.extend(more(exit.backtrace.len(), SHOWN_ROWS).map(|text| format!("  {text}")));
    }
    if let Some(dump) = &exit.dump {
        let cut = if exit.dump_truncated {
            ", cut short by the kernel"
        } else {
            ""
        };
        lines.push(format!(
            "the kernel's own dump: {} lines{cut} (in the JSON, exit_info.dump)",
            dump.lines().count()
        ));
    }
    lines
}

/// The sum, and what time does not explain.
fn dump_differences(compared: &DumpComparison) -> Vec<String> {
    let mut facts = Facts::default();
    facts.push(format_args!("{} values compared", compared.compared));
    facts.push(format_args!("{} equal", compared.equal));
    facts.push(format_args!("{} grown since", compared.grown));
    facts.push(format_args!("{} differ", compared.differences.len()));
    let mut lines = vec![
        facts.join(", "),
        format!(
            "waiting tasks: {} had not moved since; {} had, or became runnable while it was written",
            compared.tasks, compared.moved
        ),
    ];
    for each in compared.differences.iter().take(SHOWN_ROWS) {
        lines.push(format!(
            "{}: {} in the dump, {} in memory",
            Escaped(&each.what),
            Escaped(&each.dump),
            Escaped(&each.report)
        ));
    }
    lines.extend(more(compared.differences.len(), SHOWN_ROWS));
    lines
}

/// A runnable task that waits, from whatever lists it.
#[derive(Default)]
struct Waiting<'a> {
    pid: i32,
    comm: &'a str,
    age_ms: Option<u64>,
    cpu: Option<u32>,
    place: String,
    cpus_allowed: Option<&'a str>,
}

fn waiting_tasks(report: &PostmortemReport) -> Vec<Waiting<'_>> {
    let tasks: BTreeMap<Hex, &TaskInfo> = report.tasks.iter().map(|t| (t.kva, t)).collect();
    // Built-in ids are shared: every CPU's local queue has the same.
    let queues: BTreeMap<Hex, &DsqInfo> = report
        .dsqs
        .iter()
        .filter(|d| d.name == "user")
        .map(|d| (d.id, d))
        .collect();
    let names = DsqNames::among(&report.dsqs);
    let mut waiting: BTreeMap<Hex, Waiting<'_>> = BTreeMap::new();
    for cpu in &report.cpus {
        for task in &cpu.runnable {
            waiting.insert(
                task.kva,
                Waiting {
                    pid: task.pid,
                    comm: &task.comm,
                    age_ms: task.runnable_age_ms,
                    cpu: Some(cpu.cpu),
                    place: task
                        .dsq_id
                        .map_or(String::new(), |id| match queues.get(&id) {
                            Some(dsq) => DsqName::of(dsq).to_string(),
                            None => names.find(id, Some(cpu.cpu)).to_string(),
                        }),
                    cpus_allowed: None,
                },
            );
        }
    }
    for dsq in &report.dsqs {
        for task in &dsq.tasks {
            let entry = waiting.entry(task.task_kva).or_insert_with(|| Waiting {
                pid: task.pid,
                comm: &task.comm,
                ..Waiting::default()
            });
            entry.age_ms = entry.age_ms.or(task.runnable_age_ms);
            entry.place = DsqName::of(dsq).to_string();
            entry.cpus_allowed = entry.cpus_allowed.or(task.cpus_allowed.as_deref());
        }
    }
    for (kva, entry) in &mut waiting {
        if let Some(task) = tasks.get(kva) {
            entry.cpu = entry.cpu.or(task.cpu);
            entry.cpus_allowed = entry.cpus_allowed.or(task.cpus_allowed.as_deref());
            if entry.place.is_empty() {
                entry.place = match &task.ops_state {
                    Some(state) => format!("no DSQ, {state}"),
                    None => "no DSQ".to_owned(),
                };
            }
        }
    }
    waiting.retain(|kva, _| tasks.get(kva).and_then(|t| t.on_cpu) != Some(true));
    let mut waiting: Vec<_> = waiting.into_iter().collect();
    waiting.sort_by_key(|(kva, task)| (std::cmp::Reverse(task.age_ms), task.pid, *kva));
    waiting.into_iter().map(|(_, task)| task).collect()
}

fn is_vtime(dsq: &DsqInfo) -> bool {
    dsq.order.as_deref() == Some("vtime")
}

/// How long the current task has been on its CPU: up to the run queue's clock, and since.
pub(super) fn on_cpu_ns(cpu: &CpuInfo) -> Option<u64> {
    let running = cpu.curr.as_ref()?.running_ns?;
    Some(running.saturating_add(cpu.clock_behind_ns.unwrap_or(0)))
}

/// `1 task`, `2 tasks`.
pub(super) fn count(n: impl fmt::Display, what: &str) -> String {
    let n = n.to_string();
    let plural = if n == "1" { "" } else { "s" };
    format!("{n} {what}{plural}")
}

fn cpu_lines(cpu: &CpuInfo, names: &DsqNames<'_>) -> Vec<String> {
    let mut facts = Facts::default();
    if cpu.online == Some(false) {
        facts.push("offline");
    }
    match &cpu.curr {
        Some(_) if cpu.idle == Some(true) => facts.push("idle"),
        Some(curr) => {
            let mut about = Facts::default();
            if let Some(class) = curr.class.as_deref().or(curr.policy.as_deref()) {
                about.push(Escaped(class));
            }
            about.with("for", on_cpu_ns(cpu).map(Nanos));
            let about = match about.join(", ") {
                about if about.is_empty() => about,
                about => format!(" [{about}]"),
            };
            facts.push(format_args!(
                "runs *{}{about}",
                task_name(&curr.comm, curr.pid)
            ));
        }
        None if cpu.idle == Some(true) => facts.push("idle"),
        None => {}
    }
    facts.with("nr_running", cpu.nr_running);
    facts.with("scx nr_running", cpu.scx_nr_running);
    facts.with(
        "scx flags",
        cpu.scx_flags
            .as_ref()
            .filter(|f| f.raw.0 != 0)
            .map(FlagList),
    );
    if cpu.cpu_released == Some(true) {
        facts.push("released to a higher class");
    }
    let mut lines = vec![format!("cpu {}: {}", cpu.cpu, facts.join(", "))];
    for task in cpu.runnable.iter().take(SHOWN_TASKS) {
        let current = cpu.curr.as_ref().is_some_and(|curr| curr.kva == task.kva);
        let mark = if current { '*' } else { ' ' };
        let queue = task.dsq_id.filter(|_| !current);
        lines.push(format!(
            " {mark}{}{}{}",
            task_name(&task.comm, task.pid),
            ago(task.runnable_age_ms),
            queue.map_or(String::new(), |id| {
                format!(" on DSQ {}", names.find(id, Some(cpu.cpu)))
            })
        ));
    }
    lines.extend(more(cpu.runnable.len(), SHOWN_TASKS).map(|text| format!("  {text}")));
    if cpu.runnable_truncated {
        lines.push("  list cut short".to_owned());
    }
    lines
}

/// What stands for the items that are not shown.
pub(super) fn more(n: usize, shown: usize) -> Option<String> {
    (n > shown).then(|| format!("… {} more (in the JSON)", n - shown))
}

/// Short statements about one thing.
#[derive(Default)]
pub(super) struct Facts(Vec<String>);

impl Facts {
    pub(super) fn push(&mut self, fact: impl fmt::Display) {
        self.0.push(fact.to_string());
    }

    pub(super) fn with(&mut self, label: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.push(format_args!("{label} {value}"));
        }
    }

    pub(super) fn join(&self, separator: &str) -> String {
        self.0.join(separator)
    }
}

pub(super) struct FlagList<'a>(pub(super) &'a Flags);

impl fmt::Display for FlagList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.raw)?;
        if !self.0.names.is_empty() {
            write!(f, " ({})", Escaped(&self.0.names.join("|")))?;
        }
        Ok(())
    }
}

/// A task as the kernel's dump writes it: `comm[pid]`.
pub(super) fn task_name(comm: &str, pid: i32) -> String {
    format!("{}[{pid}]", Escaped(comm))
}

/// How long ago, as the kernel's dump writes it: `-1234ms`.
pub(super) struct Ago(pub(super) u64);

impl fmt::Display for Ago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("-{}ms", self.0))
    }
}

/// The same behind a name, if it is known.
fn ago(ms: Option<u64>) -> String {
    ms.map_or(String::new(), |ms| format!(" {}", Ago(ms)))
}

/// Milliseconds as seconds.
pub(super) struct Millis(pub(super) u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} s", self.0 / 1000, self.0 % 1000)
    }
}

/// Nanoseconds in a unit that fits.
pub(super) struct Nanos(pub(super) u64);

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ns @ 0..1_000 => write!(f, "{ns} ns"),
            ns @ 1_000..1_000_000 => write!(f, "{}.{:03} µs", ns / 1_000, ns % 1_000),
            ns @ 1_000_000..1_000_000_000 => {
                write!(f, "{}.{:03} ms", ns / 1_000_000, ns / 1_000 % 1_000)
            }
            u64::MAX => f.write_str("infinite"),
            ns => Millis(ns / 1_000_000).fmt(f),
        }
    }
}

/// Bytes in MiB, or exactly when there is less than one.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes @ 0..0x10_0000 => write!(f, "{bytes} bytes"),
            bytes => write!(f, "{} MiB", bytes >> 20),
        }
    }
}

/// A guest string that fits into a table.
pub(super) fn cell(text: &str) -> String {
    let text = Escaped(text).to_string();
    if text.chars().count() <= CELL_WIDTH {
        return text;
    }
    text.chars().take(CELL_WIDTH - 1).chain(['…']).collect()
}

/// Columns that line up.
pub(super) struct Table<const N: usize> {
    header: [&'static str; N],
    pub(super) right: [bool; N],
    pub(super) rows: Vec<[String; N]>,
    /// Rows that are shown.
    pub(super) shown: usize,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(header: [&'static str; N]) -> Self {
        Self {
            header,
            right: [false; N],
            rows: Vec::new(),
            shown: SHOWN_ROWS,
        }
    }

    /// A row of guest strings and numbers.
    pub(super) fn push(&mut self, row: [String; N]) {
        self.rows.push(row.map(|text| cell(&text)));
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let header = self.header.map(str::to_owned);
        let shown: Vec<&[String; N]> = [&header]
            .into_iter()
            .chain(self.rows.iter().take(self.shown))
            .collect();
        let mut widths = [0; N];
        for row in &shown {
            for (width, cell) in widths.iter_mut().zip(row.iter()) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut lines: Vec<String> = shown
            .iter()
            .map(|row| {
                let mut line = String::new();
                for ((cell, width), right) in row.iter().zip(widths).zip(self.right) {
                    // Writing to a string cannot fail.
                    let _ = if right {
                        write!(line, "{cell:>width$}  ")
                    } else {
                        write!(line, "{cell:<width$}  ")
                    };
                }
                line.trim_end().to_owned()
            })
            .collect();
        lines.extend(more(self.rows.len(), self.shown));
        lines
    }
}
