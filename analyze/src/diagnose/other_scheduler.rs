//! A scheduler failed that is not the one that the report is about.
//!
//! The report follows the attached root. A sub-scheduler (7.1 and later) is thrown out alone, and a
//! root that failed may have a successor already; both have their own `scx_sched.exit_kind`.

use super::{Case, Confidence, Draft};

/// `SCX_EXIT_ERROR` and above (`enum scx_exit_kind`, kernel/sched/ext_internal.h).
const FIRST_ERROR: u32 = 1024;

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let subject = case.report.scheduler.as_ref().and_then(|s| s.sched_kva);
    let others = case.report.schedulers.iter().enumerate();
    others
        .filter(|(_, other)| other.sched_kva != subject)
        .filter_map(|(at, other)| {
            let kind = other.exit_kind.filter(|&kind| kind >= FIRST_ERROR)?;
            let kva = other.sched_kva?;
            let name = other.ops_name.as_deref().unwrap_or("without a name");
            let kind_name = other.exit_kind_name.as_deref().unwrap_or("an unknown kind");
            let (confidence, which) = match (other.parent_kva, &other.cgroup_path) {
                (Some(_), Some(cgroup)) => (
                    Confidence::Certain,
                    format!("the sub-scheduler {name} of cgroup {cgroup}"),
                ),
                (Some(_), None) => (Confidence::Certain, format!("the sub-scheduler {name}")),
                // That may have been long before.
                (None, _) => (
                    Confidence::Possible,
                    format!("the scheduler {name}, which is not attached any more,"),
                ),
            };
            let draft = Draft::new(
                confidence,
                format!("{which} at {kva} was thrown out: {kind_name} ({kind})"),
            )
            .rests_on(format_args!("schedulers/{at}/exit_kind"), kind);
            Some(match other.parent_kva {
                Some(parent) => draft.rests_on(format_args!("schedulers/{at}/parent_kva"), parent),
                None => draft,
            })
        })
        .collect()
}
