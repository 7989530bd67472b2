//! A scheduler that is being thrown out, before the kernel has said why.
//!
//! `scx_sched.aborting` (`scx_aborting` in 6.19 and 7.0) is set by whoever claims the exit; the
//! record is filled later, by a work of its own. While it is set the kernel cuts the scheduler's
//! dispatching short. Once the record is there it says more than this.

use super::{Case, Confidence, Draft};

/// `SCX_EXIT_ERROR`: what is below is an exit that somebody asked for.
const ERROR: u32 = 1024;

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let Some(scheduler) = &case.report.scheduler else {
        return Vec::new();
    };
    let told = case
        .report
        .exit_info
        .as_ref()
        .is_some_and(|exit| exit.kind != 0);
    let Some(kind) = scheduler.exit_kind.filter(|&kind| kind >= ERROR) else {
        return Vec::new();
    };
    if scheduler.aborting != Some(true) || told {
        return Vec::new();
    }
    let name = scheduler.exit_kind_name.as_deref();
    let name = name.map_or_else(|| format!("exit kind {kind}"), str::to_owned);
    vec![
        Draft::new(
            Confidence::Certain,
            format!("the scheduler is being thrown out ({name}), and the kernel has not written down why yet"),
        )
        .advice("take the core a moment later, when the exit record is filled (scx_dump_state)")
        .rests_on("scheduler/aborting", true)
        .rests_on("scheduler/exit_kind", kind),
    ]
}
