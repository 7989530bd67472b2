//! A lock whose owner is runnable and does not run: everybody who wants the lock waits with it.
//!
//! The scheduler is to blame when it leaves the owner in a queue, and the tasks that wait for the
//! lock look blocked, not starved.

use scx_postmortem_format::report::{LockInfo, NamedTask, TaskInfo};

use super::{Case, Confidence, Draft, dsq_of, listed, waited};

/// An owner that is not starved yet, and waits at least so long, may explain others' wait.
const LONG_MS: u64 = 1000;
/// It is likely to, once it has waited for this part of the watchdog's limit.
const PART_OF_LIMIT: u64 = 4;
/// The most that the limit can be (`SCX_WATCHDOG_MAX_TIMEOUT`).
const MOST_MS: u64 = 30_000;

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let mut found: Vec<(u64, Draft)> = case
        .report
        .locks
        .iter()
        .enumerate()
        .filter_map(|(at, lock)| held(case, at, lock))
        .collect();
    // The owner that waited longest first.
    found.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
    found.into_iter().map(|(_, draft)| draft).collect()
}

fn held(case: &Case<'_>, at: usize, lock: &LockInfo) -> Option<(u64, Draft)> {
    let owner = lock.owner.as_ref()?;
    // Not the owner itself, which a broken list could name.
    let mut waiters = lock.waiters.iter().filter(|task| task.kva != owner.kva);
    waiters.next()?;
    let (task_at, task) = case.task_at(owner.kva)?;
    if task.on_cpu != Some(false) || task.state.as_deref() != Some("R") {
        return None;
    }
    let mut starved = case.starved();
    let starved = starved.find(|(_, starved)| starved.kva == owner.kva);
    let age = task.runnable_age_ms.unwrap_or(0);
    let limit = case.report.scheduler.as_ref();
    let limit = limit.and_then(|s| s.watchdog_timeout_ms).unwrap_or(MOST_MS);
    let confidence = match starved {
        Some(_) => Confidence::Certain,
        None if age >= LONG_MS.max(limit / PART_OF_LIMIT) => Confidence::Likely,
        None if age >= LONG_MS => Confidence::Possible,
        None => return None,
    };
    let others: Vec<String> = (lock.waiters.iter())
        .filter(|task| task.kva != owner.kva)
        .map(name)
        .collect();
    let mut draft = Draft::new(
        confidence,
        format!(
            "{} has the {} at {}{} that {} for, and has itself been runnable for {} without running, {}",
            name(owner),
            lock.kind,
            lock.address,
            symbol(lock),
            wait(&others),
            waited(age),
            place(case, task),
        ),
    )
    .advice("let the task run: until it has, nobody that wants the lock can go on")
    .rests_on(format_args!("locks/{at}/owner/pid"), owner.pid)
    .rests_on(format_args!("tasks/{task_at}/on_cpu"), false)
    .rests_on(format_args!("tasks/{task_at}/runnable_age_ms"), age);
    for (index, waiter) in lock.waiters.iter().enumerate().take(4) {
        draft = draft.rests_on(format_args!("locks/{at}/waiters/{index}/pid"), waiter.pid);
    }
    if let Some((index, starved)) = starved {
        draft = draft.rests_on(
            format_args!("starved/{index}/runnable_age_ms"),
            starved.runnable_age_ms,
        );
        draft = draft.explains([index]);
    }
    Some((age, draft))
}

fn name(task: &NamedTask) -> String {
    format!("{}[{}]", task.comm, task.pid)
}

fn symbol(lock: &LockInfo) -> String {
    let symbol = lock.symbol.as_deref();
    symbol.map_or(String::new(), |symbol| format!(" ({symbol})"))
}

fn wait(names: &[String]) -> String {
    let verb = if names.len() == 1 { "waits" } else { "wait" };
    format!("{} {verb}", listed(names))
}

fn place(case: &Case<'_>, task: &TaskInfo) -> String {
    match (task.dsq_id, task.ops_state.as_deref()) {
        (Some(id), _) => format!("on {}", dsq_of(case, id, task.cpu)),
        (None, Some("QUEUED")) => "held by the BPF scheduler".to_owned(),
        _ => "on no DSQ".to_owned(),
    }
}
