//! The kernel has taken scheduling over without a failure.
//!
//! `scx_sched.bypass_depth` is not 0 while a scheduler is enabled or disabled and across suspend;
//! tasks then run in FIFO order, whatever the BPF scheduler says. Where the kernel is in a callback
//! meanwhile, that is what it waits for.

use super::{Case, Confidence, Draft, waited};

/// To enable a scheduler takes some ten ms on an ordinary machine.
const LONG_MS: u64 = 1000;

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let Some(scheduler) = &case.report.scheduler else {
        return Vec::new();
    };
    let Some(depth) = scheduler.bypass_depth.filter(|&depth| depth > 0) else {
        return Vec::new();
    };
    // Being thrown out is why, then, and has a finding of its own.
    if case.report.exit_info.is_some() {
        return Vec::new();
    }
    let state = scheduler.enable_state.as_deref().unwrap_or("unknown");
    let what = format!(
        "the kernel bypasses the scheduler (depth {depth}, state {state}): tasks run in FIFO order"
    );
    let since = scheduler.bypassed_ms;
    let what = match since {
        Some(ms) => format!("{what}, and have for {}", waited(ms)),
        None => what,
    };
    let ordinary = matches!(state, "enabling" | "disabling");
    let confidence = match since {
        // It takes a moment, and nothing is wrong.
        Some(ms) if ordinary && ms < LONG_MS => return Vec::new(),
        Some(_) if ordinary => Confidence::Likely,
        None if ordinary => Confidence::Possible,
        _ => Confidence::Certain,
    };
    let draft = |what: String| {
        let draft = Draft::new(confidence, what).rests_on("scheduler/bypass_depth", depth);
        let draft = match &scheduler.enable_state {
            Some(state) => draft.rests_on("scheduler/enable_state", state),
            None => draft,
        };
        match since {
            Some(ms) => draft.rests_on("scheduler/bypassed_ms", ms),
            None => draft,
        }
    };
    let Some((task_at, index, symbol, source)) = busy_with(case) else {
        return vec![draft(what)];
    };
    let program = super::program_name(symbol);
    let draft = draft(format!("{what}; it is in {program}() at {source}"));
    vec![
        draft
            .advice("while it is enabled or disabled, init_task(), exit_task() and the like run once for each task: keep them short")
            .rests_on(format_args!("tasks/{task_at}/stack/{index}/source"), source),
    ]
}

/// Where the task that enables or disables the scheduler is in a program of its.
fn busy_with<'r>(case: &Case<'r>) -> Option<(usize, usize, &'r str, &'r str)> {
    let mut tasks = case.report.tasks.iter().enumerate();
    tasks.find_map(|(task_at, task)| {
        let called = |frame: &scx_postmortem_format::report::Frame| {
            let symbol = frame.symbol.as_deref().unwrap_or_default();
            [
                "scx_enable",
                "scx_root_enable",
                "scx_disable",
                "scx_root_disable",
            ]
            .iter()
            .any(|function| symbol.starts_with(function))
        };
        task.stack.iter().any(called).then_some(())?;
        let mut frames = task.stack.iter().enumerate();
        let (index, frame) = frames.rfind(|(_, frame)| frame.source.is_some())?;
        Some((
            task_at,
            index,
            frame.symbol.as_deref()?,
            frame.source.as_deref()?,
        ))
    })
}
