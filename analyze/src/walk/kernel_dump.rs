//! The kernel's own dump, from text to structure, and its comparison with what was read.
//!
//! Mirrors `scx_dump_state()`, `scx_dump_cpu()` and `scx_dump_task()` (kernel/sched/ext.c), which print
//! a head with reason and backtrace, each CPU that is not idle with its runnable tasks and their
//! stacks, and the event counters. The text can end anywhere, names of tasks can be anything, and
//! the scheduler's callbacks print lines of their own: what is not recognised is kept as text.

use std::collections::HashMap;

use scx_postmortem_format::report::{
    DumpComparison, DumpCounter, DumpCpu, DumpDifference, DumpTask, EventCounter, ExitInfo, Hex,
    KernelDump, PostmortemReport, TaskInfo,
};

use super::clock::Clock;

/// Lines that are looked at; the kernel's buffer is 32 KiB unless a scheduler asks for more.
const MAX_LINES: usize = 1 << 16;
/// Lines of each kind that are kept as text.
const MAX_OTHER: usize = 64;
/// Frames of one stack.
const MAX_FRAMES: usize = 128;
/// Characters of one line that is kept.
const MAX_LINE: usize = 512;
/// Differences that are listed.
const MAX_DIFFERENCES: usize = 100;
/// How much later than the dump a core can be for its tasks to be compared, seconds.
const MAX_LATE_S: u64 = 4;
/// `SCX_DSQ_LOCAL`, the same in all kernels.
const SCX_DSQ_LOCAL: Hex = Hex(0x8000_0000_0000_0002);

/// Which lines come next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Head,
    Backtrace,
    Body,
    Counters,
}

/// Takes the text apart.
#[must_use]
pub fn parse(text: &str) -> KernelDump {
    let mut dump = KernelDump {
        cut: true,
        ..KernelDump::default()
    };
    let mut part = Part::Head;
    // The kernel underlines headings; a task's stack stands after an empty line.
    for (number, line) in text.lines().take(MAX_LINES).enumerate() {
        let rule = line.len() > 3 && line.bytes().all(|byte| byte == b'-');
        if rule || line.trim().is_empty() {
            continue;
        }
        match line {
            "Backtrace:" if part == Part::Head => {
                part = Part::Backtrace;
                continue;
            }
            "CPU states" => {
                part = Part::Body;
                continue;
            }
            "Event counters" => {
                part = Part::Counters;
                dump.cut = false;
                continue;
            }
            _ => {}
        }
        if let Some(cpu) = cpu_line(line) {
            part = Part::Body;
            dump.cpus.push(cpu);
            continue;
        }
        let known = match part {
            Part::Head => head_line(&mut dump, number, line),
            Part::Backtrace => match line.strip_prefix("  ") {
                Some(frame) if is_frame(frame) => {
                    keep(&mut dump.backtrace, MAX_FRAMES, frame);
                    true
                }
                _ => false,
            },
            Part::Body => match dump.cpus.last_mut() {
                Some(cpu) => {
                    body_line(cpu, line);
                    true
                }
                None => false,
            },
            Part::Counters => counter_line(&mut dump.event_counters, line),
        };
        if !known && !keep(&mut dump.other, MAX_OTHER, line) {
            dump.other_left_out = dump.other_left_out.saturating_add(1);
        }
    }
    dump
}

/// Keeps a line, unless there are enough.
fn keep(lines: &mut Vec<String>, limit: usize, line: &str) -> bool {
    if lines.len() >= limit {
        return false;
    }
    lines.push(line.trim().chars().take(MAX_LINE).collect());
    true
}

/// `function+0x1a/0x40`, with a module's name behind it, or an address.
fn is_frame(text: &str) -> bool {
    let text = text.trim();
    text.starts_with("0x")
        || text
            .split_once("+0x")
            .is_some_and(|(_, at)| at.contains('/'))
}

/// `comm[pid]`: the last bracket counts, whatever the name is.
fn name_and_pid(text: &str) -> Option<(String, i32)> {
    let (comm, pid) = text.strip_suffix(']')?.rsplit_once('[')?;
    Some((comm.to_owned(), pid.parse().ok()?))
}

/// `NAME: root`, `COMM[PID] triggered exit kind N on CPU C:`, `  REASON (MESSAGE)`.
fn head_line(dump: &mut KernelDump, number: usize, line: &str) -> bool {
    if let Some((who, what)) = line.rsplit_once(" triggered exit kind ") {
        let what = what.trim_end_matches(':');
        let (kind, cpu) = match what.split_once(" on CPU ") {
            Some((kind, cpu)) => (kind, cpu.parse().ok()),
            None => (what, None),
        };
        if let (Some((comm, pid)), Ok(kind)) = (name_and_pid(who), kind.parse()) {
            dump.comm = Some(comm);
            dump.pid = Some(pid);
            dump.exit_kind = Some(kind);
            dump.exit_cpu = cpu;
            return true;
        }
    }
    if dump.exit_kind.is_some() && dump.reason.is_none() && line.starts_with("  ") {
        dump.reason = Some(line.trim().chars().take(MAX_LINE * 4).collect());
        return true;
    }
    if number == 0 && !line.starts_with(' ') && line.contains(": ") {
        dump.scheduler = Some(line.chars().take(MAX_LINE).collect());
        return true;
    }
    false
}

/// `CPU 0   : nr_run=8 flags=0x1 cpu_rel=0 ops_qseq=3557 pnt_seq=7336`
fn cpu_line(line: &str) -> Option<DumpCpu> {
    let (cpu, values) = line.strip_prefix("CPU ")?.split_once(':')?;
    let mut found = DumpCpu {
        cpu: cpu.trim().parse().ok()?,
        ..DumpCpu::default()
    };
    for word in values.split_whitespace() {
        let (key, value) = word.split_once('=')?;
        match key {
            "nr_run" => found.nr_running = value.parse().ok(),
            "flags" => found.flags = hex(value),
            "cpu_rel" => found.cpu_released = value.parse::<u32>().ok().map(|v| v != 0),
            "ops_qseq" => found.ops_qseq = value.parse().ok(),
            "ksync" | "pnt_seq" => found.kick_seq = value.parse().ok(),
            _ => {
                keep(&mut found.other, MAX_OTHER, word);
            }
        }
    }
    Some(found)
}

fn hex(text: &str) -> Option<Hex> {
    let digits = text.strip_prefix("0x")?;
    u64::from_str_radix(digits, 16).ok().map(Hex)
}

/// A line below a CPU's.
fn body_line(cpu: &mut DumpCpu, line: &str) {
    if let Some(task) = task_line(line) {
        cpu.tasks.push(task);
        return;
    }
    let Some(task) = cpu.tasks.last_mut() else {
        if let Some((comm, pid, class)) = curr_line(line) {
            cpu.curr_comm = Some(comm);
            cpu.curr_pid = Some(pid);
            cpu.curr_class = Some(class);
        } else {
            keep(&mut cpu.other, MAX_OTHER, line);
        }
        return;
    };
    if line.starts_with("      ") && task_values(task, line) {
        return;
    }
    if line.strip_prefix("    ").is_some_and(is_frame) {
        keep(&mut task.stack, MAX_FRAMES, line);
    } else {
        keep(&mut task.other, MAX_OTHER, line);
    }
}

/// `          curr=kworker/u8:0[12] class=ext_sched_class`
fn curr_line(line: &str) -> Option<(String, i32, String)> {
    let (who, class) = line
        .trim_start()
        .strip_prefix("curr=")?
        .rsplit_once(" class=")?;
    let (comm, pid) = name_and_pid(who)?;
    Some((comm, pid, class.to_owned()))
}

/// ` *R kworker/u8:0[12] *root -12ms`; the scheduler's name stands there from 7.1 on.
fn task_line(line: &str) -> Option<DumpTask> {
    let rest = line.strip_prefix(' ')?;
    let (current, rest) = match rest.strip_prefix('*') {
        Some(rest) => (true, rest),
        None => (false, rest.strip_prefix(' ')?),
    };
    let (state, rest) = rest.split_once(' ')?;
    if state.len() != 1 {
        return None;
    }
    let (who, age) = rest.strip_suffix("ms")?.rsplit_once(' ')?;
    // Always with its sign.
    if !age.starts_with(['+', '-']) {
        return None;
    }
    let age = age.parse().ok()?;
    let (who, scheduler) = match name_and_pid(who) {
        Some(who) => (who, None),
        None => {
            let (who, scheduler) = who.rsplit_once(' ')?;
            (name_and_pid(who)?, Some(scheduler.to_owned()))
        }
    };
    Some(DumpTask {
        current,
        state: state.to_owned(),
        comm: who.0,
        pid: who.1,
        scheduler,
        runnable_ms: age,
        ..DumpTask::default()
    })
}

/// `scx_state/flags=3/0x5 dsq_flags=0x0 …`: whether the line has any of the values.
fn task_values(task: &mut DumpTask, line: &str) -> bool {
    let mut known = false;
    for word in line.split_whitespace() {
        let Some((key, value)) = word.split_once('=') else {
            continue;
        };
        let pair = value.split_once('/');
        match (key, pair) {
            ("scx_state/flags", Some((state, flags))) => {
                task.scx_state = state.parse().ok();
                task.scx_flags = hex(flags);
            }
            ("dsq_flags", _) => task.dsq_flags = hex(value),
            ("ops_state/qseq", Some((state, seq))) => {
                task.ops_state = state.parse().ok();
                task.ops_qseq = seq.parse().ok();
            }
            ("sticky/holding_cpu", Some((sticky, holding))) => {
                task.sticky_cpu = sticky.parse().ok();
                task.holding_cpu = holding.parse().ok();
            }
            ("dsq_id", _) => task.dsq_id = hex(value),
            ("dsq_vtime", _) => task.dsq_vtime = value.parse().ok(),
            ("slice", _) => task.slice_ns = value.parse().ok(),
            ("weight", _) => task.weight = value.parse().ok(),
            ("cpus", _) => task.cpus = Some(value.chars().take(MAX_LINE).collect()),
            ("no_mig", _) => task.migration_disabled = value.parse().ok(),
            _ => continue,
        }
        known = true;
    }
    known
}

/// `   SCX_EV_BYPASS_DURATION:         76860781`
fn counter_line(counters: &mut Vec<DumpCounter>, line: &str) -> bool {
    let counter = line.trim().split_once(':').and_then(|(name, value)| {
        Some(DumpCounter {
            name: name.starts_with("SCX_EV_").then(|| name.to_owned())?,
            value: value.trim().parse().ok()?,
        })
    });
    let known = counter.is_some();
    counters.extend(counter);
    known
}

/// What a report says of the same things. `None` without a dump.
#[must_use]
pub fn compare(report: &PostmortemReport, clock: Option<&Clock>) -> Option<DumpComparison> {
    let exit = report.exit_info.as_ref()?;
    let dump = exit.parsed_dump.as_ref()?;
    let mut tally = DumpComparison::default();
    head(&mut tally, dump, exit);
    counters(&mut tally, dump, &report.event_counters);
    if let Some(clock) = clock {
        tasks(&mut tally, dump, report, clock);
    }
    Some(tally)
}

fn check(tally: &mut DumpComparison, what: impl FnOnce() -> String, dump: &str, report: &str) {
    tally.compared = tally.compared.saturating_add(1);
    if dump == report {
        tally.equal = tally.equal.saturating_add(1);
    } else if tally.differences.len() < MAX_DIFFERENCES {
        tally.differences.push(DumpDifference {
            what: what(),
            dump: dump.to_owned(),
            report: report.to_owned(),
        });
    }
}

/// Two values, if the kernel printed it and the report has it.
fn check_both<T: ToString>(
    tally: &mut DumpComparison,
    what: impl FnOnce() -> String,
    dump: Option<T>,
    report: Option<T>,
) {
    if let (Some(dump), Some(report)) = (dump, report) {
        check(tally, what, &dump.to_string(), &report.to_string());
    }
}

fn head(tally: &mut DumpComparison, dump: &KernelDump, exit: &ExitInfo) {
    check_both(
        tally,
        || "exit kind".into(),
        dump.exit_kind,
        Some(exit.kind),
    );
    check_both(tally, || "exit cpu".into(), dump.exit_cpu, exit.exit_cpu);
    if let (Some(theirs), Some(reason)) = (&dump.reason, &exit.reason) {
        let ours = match exit.msg.as_deref() {
            Some(msg) if !msg.is_empty() => format!("{reason} ({msg})"),
            _ => reason.clone(),
        };
        // A message can have lines of its own.
        if !ours.contains('\n') {
            check(tally, || "reason".into(), theirs, ours.trim());
        }
    }
    for ((frame, theirs), number) in exit.backtrace.iter().zip(&dump.backtrace).zip(0..) {
        if let Some(ours) = &frame.symbol {
            // Modules and BPF programs have their names behind the function's.
            let word = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
            check(
                tally,
                || format!("backtrace[{number}]"),
                &word(theirs),
                &word(ours),
            );
        }
    }
}

fn counters(tally: &mut DumpComparison, dump: &KernelDump, ours: &[EventCounter]) {
    for theirs in &dump.event_counters {
        let Some(ours) = ours.iter().find(|ours| ours.name == theirs.name) else {
            continue;
        };
        if ours.value > theirs.value {
            tally.compared = tally.compared.saturating_add(1);
            tally.grown = tally.grown.saturating_add(1);
        } else {
            let (dump, report) = (theirs.value.to_string(), ours.value.to_string());
            check(tally, || theirs.name.clone(), &dump, &report);
        }
    }
}

/// The tasks that waited. Those that have not moved since became runnable at the same jiffy; the
/// line's age then tells when it was written.
fn tasks(tally: &mut DumpComparison, dump: &KernelDump, report: &PostmortemReport, clock: &Clock) {
    let mut by_pid: HashMap<i32, &TaskInfo> = HashMap::new();
    for task in &report.tasks {
        by_pid.entry(task.pid).or_insert(task);
    }
    let mut runnable: HashMap<i32, (u64, u32)> = HashMap::new();
    for cpu in &report.cpus {
        for task in &cpu.runnable {
            if let Some(at) = task.runnable_at_jiffies {
                runnable.insert(task.pid, (at, cpu.cpu));
            }
        }
    }
    let waiting = dump.cpus.iter().flat_map(|cpu| {
        let waiting = cpu.tasks.iter().filter(|task| !task.current);
        waiting.map(move |task| (cpu.cpu, task))
    });
    // When each line was written, if its task has not moved.
    let written = |task: &DumpTask| {
        let (at, _) = runnable.get(&task.pid)?;
        let age_ms = u64::try_from(task.runnable_ms.checked_neg()?).ok()?;
        let age = u128::from(age_ms) * u128::from(clock.hz) / 1000;
        let written = at.wrapping_add(u64::try_from(age).ok()?);
        // Not after the core, and not long before it.
        let ago = clock.jiffies.wrapping_sub(written);
        (ago <= clock.hz.saturating_mul(MAX_LATE_S)).then_some((*at, ago))
    };
    // One that moved seems to be written later than it was; so the first lines are those with
    // the longest way to the core.
    let first = waiting.clone().filter_map(|(_, task)| written(task));
    let first = first.map(|(_, ago)| ago).max();
    tally.age_difference_jiffies = first;
    for (cpu, line) in waiting {
        let place = written(line).zip(first);
        // Runnable since before the dump began: nothing has happened to it since.
        let still = place.filter(|((at, _), first)| clock.jiffies.wrapping_sub(*at) > *first);
        let ours = by_pid.get(&line.pid).filter(|_| still.is_some());
        // The CPUs go on while one of them writes: a task can be dispatched and not have run yet.
        let dispatched = |ours: &TaskInfo| {
            ours.dsq_id == Some(SCX_DSQ_LOCAL) && line.dsq_id != Some(SCX_DSQ_LOCAL)
        };
        let Some(ours) = ours.filter(|ours| !dispatched(ours)) else {
            tally.moved = tally.moved.saturating_add(1);
            continue;
        };
        tally.tasks = tally.tasks.saturating_add(1);
        let on = runnable.get(&line.pid).map(|(_, cpu)| *cpu);
        task(tally, line, ours, cpu, on);
    }
}

fn task(tally: &mut DumpComparison, line: &DumpTask, ours: &TaskInfo, cpu: u32, on: Option<u32>) {
    let what = |name: &str| format!("{}[{}] {name}", line.comm, line.pid);
    check(tally, || what("comm"), &line.comm, &ours.comm);
    check_both(tally, || what("cpu"), Some(cpu), on);
    let state = ours.state.as_deref().unwrap_or_default();
    check(tally, || what("state"), &line.state, state);
    let none = "none".to_owned();
    let id = |id: Option<Hex>| id.map_or(none.clone(), |id| id.to_string());
    // The kernel prints the queue whenever it prints this.
    if line.sticky_cpu.is_some() {
        check(tally, || what("dsq_id"), &id(line.dsq_id), &id(ours.dsq_id));
    }
    check_both(
        tally,
        || what("sticky_cpu"),
        line.sticky_cpu,
        ours.sticky_cpu,
    );
    check_both(
        tally,
        || what("holding_cpu"),
        line.holding_cpu,
        ours.holding_cpu,
    );
    check_both(tally, || what("ops_qseq"), line.ops_qseq, ours.ops_qseq);
    check_both(tally, || what("dsq_vtime"), line.dsq_vtime, ours.dsq_vtime);
    check_both(tally, || what("slice"), line.slice_ns, ours.slice_ns);
    check_both(tally, || what("weight"), line.weight, ours.scx_weight);
    check_both(
        tally,
        || what("no_mig"),
        line.migration_disabled,
        ours.migration_disabled,
    );
    let theirs = line.cpus.as_deref().and_then(cpus_of_mask);
    check_both(tally, || what("cpus"), theirs, ours.cpus_allowed.clone());
}

/// `3,ffffffff`, as the kernel prints a mask, as a range list.
fn cpus_of_mask(mask: &str) -> Option<String> {
    let mut cpus = Vec::new();
    for (word, text) in (0u32..).zip(mask.rsplit(',')) {
        let bits = u32::from_str_radix(text, 16).ok()?;
        let set = (0..32).filter(|bit| bits >> bit & 1 == 1);
        cpus.extend(set.map(|bit| word.saturating_mul(32).saturating_add(bit)));
    }
    Some(crate::kernel::cpu_list(&cpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_anything_and_lines_can_end_anywhere() {
        let text = "demo: root\nx] triggered exit kind 1[7] triggered exit kind 1026 on CPU 3:\n  why (what)\n\nBacktrace:\n  f+0x1/0x2 [mod]\n\nCPU states\n----------\n\nCPU 3   : nr_run=2 flags=0x9 cpu_rel=1 ops_qseq=5 ksync=6 new=1\n          curr=a class=b[9] class=rt_sched_class\n\n *R - 1ms[12] x[13] *root -28ms\n      scx_state/flags=4/0xd dsq_flags=0x1 ops_state/qseq=2/77\n      sticky/holding_cpu=-1/2 dsq_id=(n/a)\n      dsq_vtime=1 slice=2 weight=3\n      cpus=1,00000002 no_mig=1\n\n    g+0x0/0x1\n    of the scheduler's own\n  R [[-7] +0ms\n      dsq_id=0x8000000000000002 sti";
        let dump = parse(text);
        assert_eq!(dump.scheduler.as_deref(), Some("demo: root"));
        assert_eq!(dump.comm.as_deref(), Some("x] triggered exit kind 1"));
        assert_eq!(
            (dump.pid, dump.exit_kind, dump.exit_cpu),
            (Some(7), Some(1026), Some(3))
        );
        assert_eq!(dump.reason.as_deref(), Some("why (what)"));
        assert_eq!(dump.backtrace, ["f+0x1/0x2 [mod]"]);
        assert!(dump.cut && dump.other.is_empty());
        let [cpu] = &dump.cpus[..] else { panic!() };
        assert_eq!(
            (cpu.kick_seq, &cpu.other[..]),
            (Some(6), &["new=1".to_owned()][..])
        );
        assert_eq!(cpu.curr_comm.as_deref(), Some("a class=b"));
        let [one, two] = &cpu.tasks[..] else { panic!() };
        assert_eq!(
            (one.comm.as_str(), one.pid, one.runnable_ms),
            ("- 1ms[12] x", 13, -28)
        );
        assert_eq!(
            (one.ops_state, one.ops_qseq, one.dsq_id),
            (Some(2), Some(77), None)
        );
        assert_eq!(
            one.cpus.as_deref().and_then(cpus_of_mask).as_deref(),
            Some("1,32")
        );
        assert_eq!(one.stack, ["g+0x0/0x1"]);
        assert_eq!(one.other, ["of the scheduler's own"]);
        assert_eq!((two.comm.as_str(), two.pid), ("[", -7));
        assert_eq!(two.dsq_id, Some(Hex(0x8000_0000_0000_0002)));
    }

    #[test]
    fn garbage_is_kept_as_text_and_bounded() {
        let text = "\u{0}\u{fffd}[]: \n".repeat(MAX_LINES + 5);
        let dump = parse(&text);
        assert_eq!(dump.other.len(), MAX_OTHER);
        assert_eq!(to_usize(dump.other_left_out) + MAX_OTHER + 1, MAX_LINES);
        assert!(dump.cpus.is_empty() && dump.cut);
        let mut bytes: Vec<u8> = (0..=255u8).cycle().take(1 << 16).collect();
        bytes.splice(100..100, *b"\nCPU 1 : nr_run=1\n *R a[1] -1ms\n");
        let dump = parse(&String::from_utf8_lossy(&bytes));
        assert_eq!(dump.cpus.len(), 1);
    }

    fn to_usize(n: u32) -> usize {
        usize::try_from(n).unwrap()
    }
}
