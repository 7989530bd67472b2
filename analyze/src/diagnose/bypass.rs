//! The kernel has taken scheduling over without a failure.
//!
//! `scx_sched.bypass_depth` is not 0 while a scheduler is enabled or disabled and across suspend;
//! tasks then run in FIFO order, whatever the BPF scheduler says.

use super::{Case, Confidence, Draft};

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
    vec![
        Draft::new(
            Confidence::Certain,
            format!("the kernel bypasses the scheduler (depth {depth}, state {state}): tasks run in FIFO order"),
        )
        .rests_on("scheduler/bypass_depth", depth),
    ]
}
