//! The task that stalled, on one card: where it waits, what the CPUs that it may use are doing,
//! where it sleeps, and what the scheduler keeps about it.

use super::super::dsq_name::DsqName;
use super::super::dump::FailureDumpReport;
use super::super::hex::Hex;
use super::super::postmortem::{CpuInfo, DsqInfo, PostmortemReport, StarvedTask, TaskInfo};
use super::super::value::RenderedValue;
use super::escape::Escaped;
use super::postmortem::{Ago, Facts, FlagList, Nanos, more, on_cpu_ns, task_name};
use super::stacks::{frame_line, writes_dump};

/// CPUs, frames and lines of a value that are shown.
const SHOWN_CPUS: usize = 16;
const SHOWN_FRAMES: usize = 16;
const SHOWN_LINES: usize = 24;

/// The card of the task that has waited longest. `shared` has the values of maps and arenas.
pub(super) fn card(own: &PostmortemReport, shared: Option<&FailureDumpReport>) -> Vec<String> {
    let Some(worst) = own.starved.first() else {
        return Vec::new();
    };
    let task = own.tasks.iter().find(|task| task.kva == worst.kva);
    let limit = own.scheduler.as_ref().and_then(|s| s.watchdog_timeout_ms);
    let limit = limit.map_or(String::new(), |ms| {
        format!(", the watchdog's limit is {ms}ms")
    });
    let state = task.and_then(|task| task.state.as_deref()).unwrap_or("?");
    let mut lines = vec![format!(
        "{} {} {}{limit}",
        Escaped(state),
        task_name(&worst.comm, worst.pid),
        Ago(worst.runnable_age_ms),
    )];
    let mut below = vec![queue(own, worst, task)];
    below.extend(task.map(|task| values(own, task)));
    if let Some(task) = task {
        below.extend(cpus(own, worst, task));
        if !task.stack.is_empty() {
            below.push("stack:".to_owned());
            let frames = task.stack.iter().take(SHOWN_FRAMES);
            below.extend(frames.map(|frame| format!("  {}", frame_line(frame))));
            below.extend(more(task.stack.len(), SHOWN_FRAMES).map(|text| format!("  {text}")));
        }
    }
    below.extend(shared.map_or_else(Vec::new, |shared| context(own, shared, worst.kva)));
    lines.extend(below.iter().map(|line| format!("  {line}")));
    let others = own.starved.len() - 1;
    if others > 0 {
        let verb = if others == 1 { "has" } else { "have" };
        lines.push(format!(
            "{others} more {verb} waited for half of that limit or longer"
        ));
    }
    lines
}

/// Where it waits.
fn queue(own: &PostmortemReport, worst: &StarvedTask, task: Option<&TaskInfo>) -> String {
    let of = |dsq: &&DsqInfo| Some(dsq.dsq_kva) == worst.dsq_kva;
    let Some(dsq) = own.dsqs.iter().find(of) else {
        let held = task.and_then(|task| task.ops_state.as_deref()) == Some("QUEUED");
        return match worst.dsq_id {
            Some(id) => {
                let name = DsqName::find(&own.dsqs, id, Some(worst.cpu));
                format!("waits on DSQ {name}")
            }
            None if held => "waits on no DSQ: the BPF scheduler holds it".to_owned(),
            None => "waits on no DSQ".to_owned(),
        };
    };
    let mut facts = Facts::default();
    if let Some(position) = worst.dsq_position {
        facts.push(format_args!("position {position} of {}", dsq.nr));
    }
    if let Some(order) = &dsq.order {
        facts.push(Escaped(order));
    }
    facts.with("seq", Some(dsq.seq));
    format!("waits on {}: {}", DsqName::of(dsq), facts.join(", "))
}

/// What sched_ext keeps about it, in the order of the kernel's dump.
fn values(own: &PostmortemReport, task: &TaskInfo) -> String {
    let mut facts = Facts::default();
    facts.with("class", task.class.as_deref().map(Escaped));
    facts.with("scx_state", task.scx_state.as_deref().map(Escaped));
    facts.with("flags", task.scx_flags.as_ref().map(FlagList));
    facts.with("ops_state", task.ops_state.as_deref().map(Escaped));
    if let (Some(sticky), Some(holding)) = (task.sticky_cpu, task.holding_cpu) {
        facts.push(format_args!("sticky/holding_cpu={sticky}/{holding}"));
    }
    facts.with("slice", task.slice_ns.map(Nanos));
    facts.with("dsq_vtime", task.dsq_vtime);
    facts.with("weight", task.scx_weight);
    let to = task.ddsp_dsq_id;
    let to = to.map(|id| DsqName::find(&own.dsqs, id, task.cpu));
    facts.with("to DSQ", to);
    let fixed = task.migration_disabled.filter(|&n| n != 0);
    facts.with("migration disabled", fixed);
    facts.join(", ")
}

/// The CPUs that it may use, and what runs there.
fn cpus(own: &PostmortemReport, worst: &StarvedTask, task: &TaskInfo) -> Vec<String> {
    let Some(allowed) = &task.cpus_allowed else {
        return Vec::new();
    };
    // Then its mask counts for nothing.
    let fixed = task.migration_disabled.is_some_and(|n| n != 0);
    let mut lines = vec![if fixed {
        let (cpu, mask) = (worst.cpu, Escaped(allowed));
        format!("may use cpu {cpu} alone, migration is disabled (else cpus {mask}):")
    } else {
        format!("may use cpus {}:", Escaped(allowed))
    }];
    let may: Vec<&CpuInfo> = own
        .cpus
        .iter()
        .filter(|cpu| match fixed {
            true => cpu.cpu == worst.cpu,
            false => in_list(allowed, cpu.cpu),
        })
        .collect();
    for cpu in may.iter().take(SHOWN_CPUS) {
        let dump = if writes_dump(own, cpu) {
            ", interrupted to write the kernel's dump"
        } else {
            ""
        };
        lines.push(format!("  cpu {}: {}{dump}", cpu.cpu, doing(cpu)));
    }
    lines.extend(more(may.len(), SHOWN_CPUS).map(|text| format!("  {text}")));
    lines
}

fn doing(cpu: &CpuInfo) -> String {
    if cpu.online == Some(false) {
        return "offline".to_owned();
    }
    if cpu.idle == Some(true) {
        return "idle".to_owned();
    }
    let Some(curr) = &cpu.curr else {
        return "not known".to_owned();
    };
    let mut facts = Facts::default();
    facts.push(format_args!("*{}", task_name(&curr.comm, curr.pid)));
    if let Some(class) = curr.class.as_deref().or(curr.policy.as_deref()) {
        facts.push(Escaped(class));
    }
    facts.with("for", on_cpu_ns(cpu).map(Nanos));
    facts.with("nr_running", cpu.nr_running);
    facts.join(", ")
}

/// Whether a range list (`0-3,8`) has a number.
fn in_list(list: &str, number: u32) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&number),
            _ => false,
        }
    })
}

/// The values in local storage and the slots of arena allocators that belong to a task.
fn context(own: &PostmortemReport, shared: &FailureDumpReport, task: Hex) -> Vec<String> {
    let mut lines = Vec::new();
    for map in &own.maps {
        let values = shared
            .maps
            .iter()
            .find(|values| values.map_kva == map.kva.0);
        let Some(values) = values.filter(|_| !map.owners.is_empty()) else {
            continue;
        };
        for (owner, entry) in map.owners.iter().zip(&values.entries) {
            if owner.kva == task {
                let name = format!("map {} (id {})", Escaped(&map.name), map.id);
                lines.extend(value(&name, entry.value.as_ref(), &entry.value_hex));
            }
        }
    }
    for (allocator, slots) in own.allocators.iter().zip(&shared.sdt_allocations) {
        for slot in allocator
            .owners
            .iter()
            .filter(|slot| slot.owner.kva == task)
        {
            let entry = slots
                .entries
                .iter()
                .find(|e| (e.idx, e.genn) == (slot.idx, slot.genn));
            if let Some(entry) = entry {
                let name = format!("{} slot {}", Escaped(&allocator.name), slot.idx);
                lines.extend(value(&name, Some(&entry.payload), ""));
            }
        }
    }
    if !lines.is_empty() {
        lines.insert(0, "bpf context:".to_owned());
    }
    lines
}

fn value(name: &str, value: Option<&RenderedValue>, hex: &str) -> Vec<String> {
    let text = match value {
        Some(value) => value.to_string(),
        None => format!("{hex} (raw)"),
    };
    let count = text.lines().count();
    let mut shown = text.lines().take(SHOWN_LINES);
    let mut lines = vec![format!("  {name}: {}", shown.next().unwrap_or_default())];
    lines.extend(shown.map(|line| format!("    {line}")));
    lines.extend(more(count, SHOWN_LINES).map(|text| format!("    {text}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::super::super::postmortem::CurrTask;
    use super::*;

    /// A task that waits on CPU 1 of two; that CPU has taken no tick for 8 s.
    fn waiting(migration_disabled: u32) -> PostmortemReport {
        let cpu = |cpu, clock_behind_ns| CpuInfo {
            cpu,
            idle: Some(false),
            clock_behind_ns: Some(clock_behind_ns),
            curr: Some(CurrTask {
                pid: 90,
                comm: "busy".into(),
                running_ns: Some(13_000_000),
                ..CurrTask::default()
            }),
            ..CpuInfo::default()
        };
        PostmortemReport {
            cpus: vec![cpu(0, 0), cpu(1, 8_000_000_000)],
            starved: vec![StarvedTask {
                kva: Hex(0x7000),
                cpu: 1,
                ..StarvedTask::default()
            }],
            tasks: vec![TaskInfo {
                kva: Hex(0x7000),
                cpu: Some(1),
                cpus_allowed: Some("0-1".into()),
                migration_disabled: Some(migration_disabled),
                ..TaskInfo::default()
            }],
            ..PostmortemReport::new("test")
        }
    }

    #[test]
    fn a_task_that_must_not_move_has_one_cpu() {
        let lines = |n| card(&waiting(n), None);
        let free = lines(0);
        assert!(free.contains(&"  may use cpus 0-1:".to_owned()), "{free:?}");
        assert!(
            free.contains(&"    cpu 0: *busy[90], for 13.000 ms".to_owned()),
            "{free:?}"
        );
        let fixed = lines(1);
        let words = "  may use cpu 1 alone, migration is disabled (else cpus 0-1):";
        assert!(fixed.contains(&words.to_owned()), "{fixed:?}");
        assert!(
            !fixed.iter().any(|line| line.contains("cpu 0:")),
            "{fixed:?}"
        );
    }

    #[test]
    fn a_cpu_whose_clock_stands_has_run_its_task_all_the_while() {
        let lines = card(&waiting(1), None);
        assert!(
            lines.contains(&"    cpu 1: *busy[90], for 8.013 s".to_owned()),
            "{lines:?}"
        );
    }

    #[test]
    fn a_range_list_has_its_numbers_and_no_others() {
        let list = "0-3,8,10-11";
        let has: Vec<u32> = (0..20).filter(|&n| in_list(list, n)).collect();
        assert_eq!(has, [0, 1, 2, 3, 8, 10, 11]);
        assert!(!in_list("", 0) && !in_list("x-y", 0));
    }
}
