//! Timers and workqueues as text: only what is overdue. The JSON has all.

use super::super::deferred::{TimerInfo, WorkItem, WorkerPool, WorkqueueInfo};
use super::escape::Escaped;
use super::postmortem::{Ago, Facts, SHOWN_ROWS, more, task_name};

/// Works shown of one pool.
const SHOWN_WORKS: usize = 8;

/// A line for each timer that should have run.
pub(super) fn overdue_timers(timers: &[TimerInfo]) -> Vec<String> {
    let overdue: Vec<&TimerInfo> = timers.iter().filter(|timer| timer.overdue).collect();
    let mut lines: Vec<String> = overdue.iter().take(SHOWN_ROWS).map(|t| timer(t)).collect();
    lines.extend(more(overdue.len(), SHOWN_ROWS));
    lines
}

fn timer(timer: &TimerInfo) -> String {
    let mut facts = Facts::default();
    facts.push(Escaped(timer.function.as_deref().unwrap_or("?")));
    facts.with("work", timer.work.as_deref().map(Escaped));
    let wakes = timer.wakes.as_ref();
    facts.with("wakes", wakes.map(|task| task_name(&task.comm, task.pid)));
    facts.with("of map", timer.bpf_map_id);
    facts.with("calls", timer.bpf_callback.as_deref().map(Escaped));
    if timer.running {
        facts.push("runs now");
    }
    let late = timer.left_ns.map_or(String::new(), |ns| {
        format!(" {}", Ago((ns / 1_000_000).unsigned_abs()))
    });
    let kind = Escaped(&timer.kind);
    let base = Escaped(&timer.base);
    format!(
        "cpu {}: {kind} {base}{late} {}",
        timer.cpu,
        facts.join(", ")
    )
}

/// The pools in which works wait while none is begun.
pub(super) fn overdue_works(info: &WorkqueueInfo) -> Vec<String> {
    let overdue: Vec<&WorkerPool> = info.pools.iter().filter(|pool| pool.overdue).collect();
    let mut lines: Vec<String> = overdue
        .iter()
        .take(SHOWN_ROWS)
        .flat_map(|p| pool(p))
        .collect();
    lines.extend(more(overdue.len(), SHOWN_ROWS));
    lines
}

fn pool(pool: &WorkerPool) -> Vec<String> {
    let place = pool
        .cpu
        .map_or("unbound".to_owned(), |cpu| format!("cpu {cpu}"));
    let mut facts = Facts::default();
    facts.push(format_args!("{} works wait", pool.pending.len()));
    facts.with("last begun", pool.progress_age_ms.map(Ago));
    facts.with("workers", pool.nr_workers);
    facts.with("idle", pool.nr_idle);
    let mut lines = vec![format!("pool {} ({place}): {}", pool.id, facts.join(", "))];
    for worker in pool.busy.iter().take(SHOWN_WORKS) {
        let who = worker.task.as_ref();
        let who = who.map_or("?".to_owned(), |task| task_name(&task.comm, task.pid));
        let since = worker
            .running_ms
            .map_or(String::new(), |ms| format!(" {}", Ago(ms)));
        let function = Escaped(worker.function.as_deref().unwrap_or("?"));
        lines.push(format!("  {who}{since} runs {function}"));
    }
    lines.extend(more(pool.busy.len(), SHOWN_WORKS).map(|text| format!("  {text}")));
    let works = pool.pending.iter().take(SHOWN_WORKS);
    lines.extend(works.map(|work| format!("  waits: {}", work_name(work))));
    lines.extend(more(pool.pending.len(), SHOWN_WORKS).map(|text| format!("  {text}")));
    lines
}

fn work_name(work: &WorkItem) -> String {
    let function = Escaped(work.function.as_deref().unwrap_or("?"));
    match &work.workqueue {
        Some(queue) => format!("{function} ({})", Escaped(queue)),
        None => function.to_string(),
    }
}
