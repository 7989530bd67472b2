//! Timers that are set, and which of them are overdue.
//!
//! Mirrors `print_cpu()` (kernel/time/timer_list.c) for hrtimers: the per-CPU `hrtimer_bases` with
//! its `struct hrtimer_clock_base`s, each a tree of `struct hrtimer` by expiry (from 7.1 on the
//! nodes are also linked). The timer wheel is the per-CPU array `timer_bases` of `struct timer_base`,
//! whose `vectors` are lists of `struct timer_list` (kernel/time/timer.c). What a timer is for, its
//! function tells: `hrtimer_sleeper`, `process_timer`, `delayed_work` and `bpf_hrtimer` contain one.

use scx_postmortem_format::report::{Hex, TaskName, TimerInfo};

use super::clock::{self, Clock};
use super::tasks::TaskRef;
use super::{Limits, Remarks};
use crate::addr::Kva;
use crate::bytes::to_usize;
use crate::error::Result;
use crate::kernel::{Kernel, WalkEnd};
use crate::object::Object;

/// Timers that are read, of all CPUs together.
const MAX_TIMERS: usize = 1 << 16;
/// Clocks of a CPU.
const MAX_CLOCKS: u64 = 16;
/// Queues of a CPU's wheel; three with CONFIG_NO_HZ_COMMON.
const MAX_WHEELS: u32 = 8;
/// Lists of a wheel: `WHEEL_SIZE` is 576 with HZ above 100.
const MAX_SLOTS: u32 = 4096;
/// Slots of one level (`LVL_SIZE`); each level's are 8 times as wide as the last one's
/// (`LVL_CLK_SHIFT`).
const LEVEL_SLOTS: u64 = 64;
const LEVEL_SHIFT: u32 = 3;
/// Ticks by which a timer can be late without anything being wrong: the one in which it expires,
/// and the one in which the core was taken.
const LATE_TICKS: u64 = 2;
const SECTION: &str = "timers";

/// The moment of the core, and what may still be read.
struct Now {
    monotonic_ns: i64,
    clock: Clock,
    tick_ns: i64,
    /// Nodes: lists that share theirs, or whose timers cannot be read, cost no more than others.
    left: usize,
}

/// The timers of all CPUs: hrtimers, then the wheel's, each queue in the order in which it
/// expires.
pub fn read(
    kernel: &Kernel,
    clock: Option<&Clock>,
    limits: &Limits,
    remarks: &mut Remarks,
) -> Vec<TimerInfo> {
    let mut timers = Vec::new();
    let monotonic = clock::monotonic_ns(kernel);
    let (Some(monotonic_ns), Some(&clock)) = (remarks.ok(SECTION, monotonic), clock) else {
        return timers;
    };
    let tick_ns = i64::try_from(1_000_000_000 / clock.hz.max(1)).unwrap_or(i64::MAX);
    let mut now = Now {
        monotonic_ns,
        clock,
        tick_ns,
        left: MAX_TIMERS,
    };
    for cpu in kernel.cpus() {
        if let Err(error) = hrtimers(kernel, cpu, &mut now, &mut timers, remarks) {
            remarks.missing("timers.hrtimers", &error);
        }
        if let Err(error) = wheel(kernel, cpu, &mut now, &mut timers, remarks) {
            remarks.missing("timers.wheel", &error);
        }
    }
    if timers.len() > limits.timers {
        remarks.limit(SECTION, limits.timers, Some(timers.len()));
        // The overdue ones stay, whatever their place.
        let overdue = timers.iter().filter(|timer| timer.overdue).count();
        let mut others = limits.timers.saturating_sub(overdue);
        timers.retain(|timer| {
            let keep = timer.overdue || others > 0;
            others -= usize::from(keep && !timer.overdue);
            keep
        });
        timers.truncate(limits.timers);
    }
    timers
}

fn hrtimers(
    kernel: &Kernel,
    cpu: u32,
    now: &mut Now,
    timers: &mut Vec<TimerInfo>,
    remarks: &mut Remarks,
) -> Result<()> {
    let base = kernel.per_cpu_object("hrtimer_bases", "struct hrtimer_cpu_base", cpu)?;
    let clocks = base.member("clock_base")?;
    let names = kernel.btf.find("enum hrtimer_base_type")?;
    for index in 0..u64::from(clocks.array_len()?).min(MAX_CLOCKS) {
        let clock = clocks.index(index)?;
        let name = kernel.btf.enumerator_name(names, index.cast_signed());
        let name = name.unwrap_or_default().trim_start_matches("HRTIMER_BASE_");
        let offset = clock.member("offset")?.i64()?;
        // timerqueue_head.rb_root, of timerqueue_linked_head from 7.1 on: both begin with the root.
        let root = clock.member("active.rb_root.rb_root")?.address();
        let walk = kernel.rbtree(root, now.left);
        now.left = now.left.saturating_sub(walk.items.len());
        ended(root, &walk.end, remarks);
        // A timer that runs is in no tree, unless its function has set it again.
        let running = clock.member("running")?.ptr()?;
        let mut rest = running;
        for node in walk.items {
            let timer = kernel.entry("struct hrtimer", "node.node", node)?;
            let at = timer.address();
            if at == running {
                rest = Kva(0);
            }
            match hrtimer(&timer, offset, now) {
                Ok(read) => timers.push(TimerInfo {
                    cpu,
                    base: name.to_owned(),
                    running: at == running,
                    ..read
                }),
                Err(error) => remarks.anomaly(SECTION, Some(at), error.to_string()),
            }
        }
        if !rest.is_null() {
            timers.push(running_timer(cpu, "hrtimer", name, rest));
        }
    }
    Ok(())
}

/// Its function may have freed it: only the address is known for certain.
fn running_timer(cpu: u32, kind: &str, base: &str, at: Kva) -> TimerInfo {
    TimerInfo {
        cpu,
        kind: kind.to_owned(),
        base: base.to_owned(),
        kva: Hex(at.0),
        running: true,
        ..TimerInfo::default()
    }
}

fn ended(at: Kva, end: &WalkEnd, remarks: &mut Remarks) {
    match end {
        WalkEnd::Limit(_) => remarks.limit(SECTION, MAX_TIMERS, None),
        end => {
            remarks.walk_end(SECTION, at, end);
        }
    }
}

fn hrtimer(timer: &Object<'_>, offset: i64, now: &Now) -> Result<TimerInfo> {
    let kernel = timer.kernel();
    let expires = timer.member("node.expires")?.i64()?;
    // KTIME_MAX, as the scheduler sets it, is never.
    let left = expires.saturating_sub(offset);
    let left = left.saturating_sub(now.monotonic_ns);
    let late = now
        .tick_ns
        .saturating_mul(i64::try_from(LATE_TICKS).unwrap_or(i64::MAX));
    let mut info = TimerInfo {
        kind: "hrtimer".to_owned(),
        kva: Hex(timer.address().0),
        function: function(kernel, timer.member("function")?.ptr()?),
        expires_ns: Some(expires),
        left_ns: Some(left),
        overdue: left < late.saturating_neg(),
        ..TimerInfo::default()
    };
    match info.function.as_deref() {
        Some("hrtimer_wakeup") => {
            let sleeper = kernel.entry("struct hrtimer_sleeper", "timer", timer.address())?;
            info.wakes = task_name(&sleeper.member("task")?)?;
        }
        Some("bpf_timer_cb") => {
            let bpf = kernel.entry("struct bpf_hrtimer", "timer", timer.address())?;
            let callback = bpf.member("cb.callback_fn")?.ptr()?;
            info.bpf_callback = function(kernel, callback);
            let map = bpf.member("cb.map")?;
            if !map.ptr()?.is_null() {
                info.bpf_map_id = Some(map.deref()?.member("id")?.u32()?);
            }
        }
        _ => {}
    }
    Ok(info)
}

fn wheel(
    kernel: &Kernel,
    cpu: u32,
    now: &mut Now,
    timers: &mut Vec<TimerInfo>,
    remarks: &mut Remarks,
) -> Result<()> {
    let first = kernel.per_cpu_object("timer_bases", "struct timer_base", cpu)?;
    let size = first.size().unwrap_or_default();
    // The array's length is a macro; the variable's type has it.
    let variable = kernel.btf.variable("timer_bases");
    let count = variable.and_then(|ty| kernel.btf.array(ty));
    let count = count.map_or(1, |array| array.len.min(MAX_WHEELS));
    for index in 0..count {
        let at = first.address().add(u64::from(index).wrapping_mul(size));
        let base = kernel.object("struct timer_base", at)?;
        // BASE_LOCAL, BASE_GLOBAL, BASE_DEF; one for all without CONFIG_NO_HZ_COMMON.
        let name = match index {
            _ if count == 1 => "",
            0 => "LOCAL",
            1 => "GLOBAL",
            _ => "DEF",
        };
        let vectors = base.member("vectors")?;
        let slots = u64::from(vectors.array_len()?.min(MAX_SLOTS));
        let heads = kernel.read_bytes(vectors.address(), slots * 8)?;
        let begin = timers.len();
        let running = base.member("running_timer")?.ptr()?;
        let mut rest = running;
        for (slot, head) in (0u64..).zip(heads.as_chunks::<8>().0) {
            if *head == [0; 8] {
                continue;
            }
            let head = vectors.address().add(slot * 8);
            let walk = kernel.hlist(head, now.left);
            now.left = now.left.saturating_sub(walk.items.len());
            ended(head, &walk.end, remarks);
            let level = u32::try_from(slot / LEVEL_SLOTS).unwrap_or(u32::MAX);
            let width = 1u64
                .checked_shl(LEVEL_SHIFT.saturating_mul(level))
                .unwrap_or(u64::MAX);
            for node in walk.items {
                let timer = kernel.entry("struct timer_list", "entry", node)?;
                let at = timer.address();
                if at == running {
                    rest = Kva(0);
                }
                match wheel_timer(&timer, width, now) {
                    Ok(read) => timers.push(TimerInfo {
                        cpu,
                        base: name.to_owned(),
                        running: at == running,
                        overdue: read.overdue && name != "DEF",
                        ..read
                    }),
                    Err(error) => remarks.anomaly(SECTION, Some(at), error.to_string()),
                }
            }
        }
        let own = timers.get_mut(begin..).unwrap_or_default();
        own.sort_by_key(|timer| (timer.left_ns, timer.kva.0));
        if !rest.is_null() {
            timers.push(running_timer(cpu, "wheel", name, rest));
        }
    }
    Ok(())
}

fn wheel_timer(timer: &Object<'_>, width: u64, now: &Now) -> Result<TimerInfo> {
    let kernel = timer.kernel();
    let expires = timer.member("expires")?.u64()?;
    // Jiffies wrap, so the difference is what has a sign.
    let left = expires.wrapping_sub(now.clock.jiffies).cast_signed();
    let late = width.saturating_add(LATE_TICKS);
    let late = i64::try_from(late).unwrap_or(i64::MAX);
    let mut info = TimerInfo {
        kind: "wheel".to_owned(),
        kva: Hex(timer.address().0),
        function: function(kernel, timer.member("function")?.ptr()?),
        expires_jiffies: Some(expires),
        left_ns: Some(left.saturating_mul(now.tick_ns)),
        overdue: left < late.saturating_neg(),
        ..TimerInfo::default()
    };
    match info.function.as_deref() {
        Some("delayed_work_timer_fn") => {
            let work = kernel.entry("struct delayed_work", "timer", timer.address())?;
            info.work = function(kernel, work.member("work.func")?.ptr()?);
        }
        Some("process_timeout") => {
            let process = kernel.entry("struct process_timer", "timer", timer.address())?;
            info.wakes = task_name(&process.member("task")?)?;
        }
        _ => {}
    }
    Ok(info)
}

/// The name of the function that begins at an address, or what is there instead.
pub(super) fn function(kernel: &Kernel, at: Kva) -> Option<String> {
    if at.is_null() {
        return None;
    }
    let Some(symbol) = kernel.symbolize(at) else {
        return Some(at.to_string());
    };
    Some(match symbol.split_once("+0x0/") {
        Some((name, _)) => name.to_owned(),
        None => symbol,
    })
}

/// Which thread a `struct task_struct *` leads to; `None` for a null pointer.
pub(super) fn task_name(pointer: &Object<'_>) -> Result<Option<TaskName>> {
    if pointer.ptr()?.is_null() {
        return Ok(None);
    }
    let task = pointer.deref()?;
    let TaskRef { pid, comm } = TaskRef::read(&task)?;
    Ok(Some(TaskName {
        pid,
        comm,
        kva: Hex(task.address().0),
    }))
}

/// The text of a `char` array, at most `max` characters of it.
pub(super) fn name(object: &Object<'_>, max: u64) -> Result<String> {
    Ok(object.text()?.chars().take(to_usize(max)).collect())
}
