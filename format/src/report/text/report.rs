//! The three reports as text, in the shared format.

use std::fmt;

use rayon::prelude::*;

use super::super::any::FailureDumpReportAny;
use super::super::arena::{ScxStaticRange, ScxStaticSnapshot, SdtAllocEntry, SdtAllocatorSnapshot};
use super::super::cpu::{VcpuPerfSample, VcpuRegSnapshot};
use super::super::dump::{
    DegradedFailureDumpReport, DualFailureDumpReport, FailureDumpReport, GuestSetupFailureContext,
};
use super::super::prog::ProgRuntimeStats;
use super::super::sched::EventCounterSample;
use super::escape::Escaped;
use super::sparkline::sparkline;
use super::value::AtDepth;

impl fmt::Display for FailureDumpReportAny {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single(report) => report.fmt(f),
            Self::Dual(report) => report.fmt(f),
            Self::Degraded(report) => report.fmt(f),
        }
    }
}

/// The text of the shared format, without the `postmortem` part and without a newline at its end.
impl fmt::Display for FailureDumpReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sections = self.sections();
        if sections.is_empty() {
            return f.write_str("(empty failure dump)");
        }
        for (i, section) in sections.iter().enumerate() {
            if i > 0 {
                f.write_str("\n\n")?;
            }
            f.write_str(section)?;
        }
        Ok(())
    }
}

impl FailureDumpReport {
    /// The sections that have something to say, in their order.
    fn sections(&self) -> Vec<String> {
        let mut sections = Sections(Vec::new());
        if let Some(context) = self.guest_setup_failure.as_ref().filter(|c| !c.is_empty()) {
            sections.add(context);
        }
        if self.is_placeholder
            && let Some(reason) = self.first_reason()
        {
            sections.add(format_args!("capture unavailable: {}", Escaped(reason)));
        }
        // Most of the text, and each map's is its own.
        let maps: Vec<String> = self.maps.par_iter().map(ToString::to_string).collect();
        sections.0.extend(maps);
        sections.list(
            "vcpu_regs:",
            self.vcpu_regs.iter().enumerate().map(vcpu_line),
        );
        for allocator in &self.sdt_allocations {
            sections.add(allocator);
        }
        sections.unavailable("sdt_allocations", &self.sdt_alloc_unavailable);
        if !self.scx_static_ranges.is_empty() {
            sections.add(&self.scx_static_ranges);
        }
        sections.list("prog_runtime_stats:", &self.prog_runtime_stats);
        sections.unavailable("prog_runtime_stats", &self.prog_runtime_stats_unavailable);
        sections.captured("per_cpu_time", self.per_cpu_time.len(), "CPUs");
        sections.captured("per_node_numa", self.per_node_numa.len(), "nodes");
        sections.unavailable("per_node_numa", &self.per_node_numa_unavailable);
        sections.captured("task_enrichments", self.task_enrichments.len(), "tasks");
        sections.unavailable("task_enrichments", &self.task_enrichments_unavailable);
        let (runqueues, queues) = (self.rq_scx_states.len(), self.dsq_states.len());
        if runqueues > 0 || queues > 0 || self.scx_sched_state.is_some() {
            let sched = match self.scx_sched_state {
                Some(_) => "captured",
                None => "absent",
            };
            sections.add(format_args!(
                "scx_walker: rq_scx={runqueues} dsq={queues} sched={sched}"
            ));
        }
        sections.unavailable("scx_walker", &self.scx_walker_unavailable);
        if !self.event_counter_timeline.is_empty() {
            sections.add(Timeline(&self.event_counter_timeline));
        }
        sections.list(
            "vcpu_perf_at_freeze:",
            self.vcpu_perf_at_freeze.iter().enumerate().map(vcpu_line),
        );
        if self.dump_truncated_at_us.is_some() || self.maps_truncated > 0 {
            let mut text = "dump truncated:".to_owned();
            if let Some(us) = self.dump_truncated_at_us {
                text.push_str(&format!(" deadline crossed at {us}us"));
            }
            if self.maps_truncated > 0 {
                text.push_str(&format!(" ({} map(s) skipped)", self.maps_truncated));
            }
            sections.add(text);
        }
        sections.0
    }

    /// The reason of a placeholder.
    fn first_reason(&self) -> Option<&str> {
        [
            &self.prog_runtime_stats_unavailable,
            &self.per_node_numa_unavailable,
            &self.task_enrichments_unavailable,
            &self.scx_walker_unavailable,
            &self.sdt_alloc_unavailable,
        ]
        .into_iter()
        .find_map(|reason| reason.as_deref())
    }
}

struct Sections(Vec<String>);

impl Sections {
    fn add(&mut self, section: impl fmt::Display) {
        self.0.push(section.to_string());
    }

    /// A heading with a line per item, if there are items.
    fn list<T: fmt::Display>(&mut self, heading: &str, items: impl IntoIterator<Item = T>) {
        let lines: String = items
            .into_iter()
            .map(|item| format!("\n  {item}"))
            .collect();
        if !lines.is_empty() {
            self.add(format_args!("{heading}{lines}"));
        }
    }

    fn captured(&mut self, name: &str, n: usize, what: &str) {
        if n > 0 {
            self.add(format_args!("{name}: {n} {what} captured"));
        }
    }

    fn unavailable(&mut self, name: &str, reason: &Option<String>) {
        if let Some(reason) = reason {
            self.add(format_args!("{name}: <unavailable: {}>", Escaped(reason)));
        }
    }
}

fn vcpu_line<T: fmt::Display>((i, slot): (usize, &Option<T>)) -> String {
    match slot {
        Some(what) => format!("vcpu {i}: {what}"),
        None => format!("vcpu {i}: <unavailable>"),
    }
}

impl fmt::Display for VcpuRegSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ip={:#018x} sp={:#018x} ptroot={:#018x}",
            self.instruction_pointer, self.stack_pointer, self.page_table_root
        )?;
        if let Some(root) = self.user_page_table_root {
            write!(f, " uptroot={root:#018x}")?;
        }
        Ok(())
    }
}

impl fmt::Display for VcpuPerfSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cycles={} insns={} ipc={:.3} cache_misses={} branch_misses={} (en/ru={}/{} ns)",
            self.cycles,
            self.instructions,
            self.ipc(),
            self.cache_misses,
            self.branch_misses,
            self.time_enabled_ns,
            self.time_running_ns
        )
    }
}

impl fmt::Display for ProgRuntimeStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: cnt={} nsecs={} misses={}",
            Escaped(&self.name),
            self.cnt,
            self.nsecs,
            self.misses
        )?;
        if self.cnt > 0 {
            write!(f, " ns/call={:.3}", self.ns_per_call())?;
        }
        if self.misses > 0 {
            write!(f, " miss_rate={:.4}", self.miss_rate())?;
        }
        Ok(())
    }
}

struct Timeline<'a>(&'a [EventCounterSample]);

impl fmt::Display for Timeline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else {
            return Ok(());
        };
        write!(
            f,
            "event_counter_timeline: {} samples ({}\u{2013}{}ms)",
            self.0.len(),
            first.elapsed_ms,
            last.elapsed_ms
        )?;
        for (i, (name, last)) in last.counters().into_iter().enumerate() {
            let series: Vec<i64> = self
                .0
                .iter()
                .filter_map(|sample| sample.counters().get(i).map(|(_, value)| *value))
                .collect();
            if series.iter().any(|value| *value != 0) {
                write!(f, "\n  {name:>30}  {}  (last={last})", sparkline(series))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for SdtAllocatorSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sdt_alloc {} (elem_size={}, target_type_id={}",
            Escaped(&self.allocator_name),
            self.elem_size,
            self.target_type_id
        )?;
        if !self.payload_type_reason.is_empty() {
            write!(f, ", reason={}", Escaped(&self.payload_type_reason))?;
        }
        write!(f, "): {} live", self.entries.len())?;
        if self.truncated {
            f.write_str(" (truncated)")?;
        }
        if self.skipped_subtrees > 0 {
            write!(f, " ({} subtrees skipped)", self.skipped_subtrees)?;
        }
        for entry in &self.entries {
            write!(f, "\n{}", AtDepth(&entry.payload, 2))?;
        }
        Ok(())
    }
}

impl fmt::Display for SdtAllocEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "idx={} genn={} user_addr={:#x} payload={}",
            self.idx, self.genn, self.user_addr, self.payload
        )
    }
}

impl fmt::Display for ScxStaticRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = u64::from(self.start_low32);
        write!(
            f,
            "scx_static {} [{start:#x}..{:#x}) cap={}",
            Escaped(&self.instance_name),
            start.saturating_add(self.size),
            self.capacity
        )
    }
}

impl fmt::Display for ScxStaticSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("scx_static: <none>");
        }
        let mut lines: Vec<String> = self.ranges.iter().map(ToString::to_string).collect();
        if self.skipped > 0 {
            lines.push(format!("scx_static: {} instance(s) skipped", self.skipped));
        }
        f.write_str(&lines.join("\n"))
    }
}

impl fmt::Display for GuestSetupFailureContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("guest setup failure:")?;
        for (label, text) in [
            ("stage", &self.init_stage),
            ("final_guest_phase", &self.final_guest_phase),
        ] {
            if let Some(text) = text {
                write!(f, "\n  {label}: {}", Escaped(text))?;
            }
        }
        if let Some(code) = self.guest_exit_code {
            write!(f, "\n  guest_exit_code: {code}")?;
        }
        if let Some(outcome) = &self.scheduler_attach_outcome {
            write!(f, "\n  scheduler_attach: {}", Escaped(outcome))?;
        }
        for (label, tail) in [
            ("scheduler log tail", &self.scheduler_log_tail),
            ("init log tail (COM2)", &self.init_log_tail),
            ("console tail (COM1)", &self.console_tail),
        ] {
            if let Some(tail) = tail {
                write!(f, "\n  {label}:")?;
                for line in tail.lines() {
                    write!(f, "\n    {}", Escaped(line))?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for DualFailureDumpReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let late = format!(
            "late=({} maps, {} vcpu_regs)",
            self.late.maps.len(),
            self.late.vcpu_regs.len()
        );
        let reason = self.early_skipped_reason.as_deref().map(Escaped);
        f.write_str("DualFailureDumpReport: early=")?;
        match (&self.early, &reason) {
            (Some(_), _)
                if self.early_max_age_jiffies == 0 && self.early_threshold_jiffies == 0 =>
            {
                f.write_str("present (jiffies not captured)")?;
            }
            (Some(_), _) => write!(
                f,
                "present (max_age={}j, threshold={}j)",
                self.early_max_age_jiffies, self.early_threshold_jiffies
            )?,
            (None, Some(reason)) => write!(f, "absent ({reason})")?,
            (None, None) => f.write_str("absent")?,
        }
        write!(f, ", {late}\n\n")?;
        match (&self.early, &reason) {
            (Some(early), _) => write!(
                f,
                "early snapshot (sched_ext watchdog half-way):\n{early}\n\n\
                 late snapshot (error-exit):\n{}",
                self.late
            ),
            (None, Some(reason)) => write!(
                f,
                "late snapshot (error-exit; early snapshot absent: {reason}):\n{}",
                self.late
            ),
            (None, None) => write!(
                f,
                "late snapshot (error-exit; early snapshot absent (stall fired before half-way \
                 threshold, or runnable_at scan setup failed) \u{2014} re-run with \
                 RUST_LOG=ktstr=debug for scan resolution diagnostics):\n{}",
                self.late
            ),
        }
    }
}

/// Unlike the other reports, this one ends in a newline.
impl fmt::Display for DegradedFailureDumpReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "degraded failure dump:")?;
        writeln!(f, "  reason: {}", Escaped(&self.reason))?;
        if !self.vcpu_regs.is_empty() {
            let parked = self.vcpu_regs.iter().flatten().count();
            writeln!(f, "  vcpus_parked: {parked}/{}", self.vcpu_regs.len())?;
            for (i, slot) in self.vcpu_regs.iter().enumerate() {
                match slot {
                    Some(regs) => writeln!(f, "    vcpu {i}: parked, {regs}")?,
                    None => writeln!(f, "    vcpu {i}: not_parked")?,
                }
            }
        }
        writeln!(f, "  watchpoint_hit: {}", self.watchpoint_hit)?;
        writeln!(f, "  bss_latch_state: {}", Escaped(&self.bss_latch_state))?;
        if let Some(kind) = self.exit_kind {
            writeln!(f, "  exit_kind: {kind}")?;
        }
        if self.elapsed_ms != 0 {
            writeln!(f, "  elapsed_ms: {}", self.elapsed_ms)?;
        }
        Ok(())
    }
}
