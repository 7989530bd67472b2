//! A task that others pass, for its virtual time is far ahead of theirs.
//!
//! A queue that was filled by `scx_bpf_dsq_insert_vtime()` gives out the task with the smallest
//! `dsq_vtime`. What comes later with a smaller one goes before.

use super::{Case, Confidence, Draft, dsq_of, holders, name, queues, waited};

/// All before it came in the last part, of so many, of its wait: they have passed it.
const YOUNG: u64 = 8;
/// How many times as far ahead of the last before it as those before it are spread, or as a slice
/// lasts, where that is longer.
const FAR: u64 = 16;
/// Starved tasks that are looked at, those that waited longest: each costs a walk over its queue.
const MOST: usize = 64;

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let mut tasks = case.starved().take(MOST);
    let first = tasks.find_map(|(index, task)| {
        let (at, dsq) = case.user_queue(task)?;
        if dsq.order.as_deref() != Some("vtime") || holders::hogged(case, task) {
            return None;
        }
        let place = dsq.tasks.iter().position(|t| t.task_kva == task.kva)?;
        let (before, from) = dsq.tasks.split_at_checked(place)?;
        let own = from.first()?;
        let (front, last) = (before.first()?, before.last()?);
        let young = |age: Option<u64>| age.is_some_and(|ms| ms <= task.runnable_age_ms / YOUNG);
        if !before.iter().all(|task| young(task.runnable_age_ms)) {
            return None;
        }
        // The kernel compares these as signed differences: time_before64().
        let ahead = |vtime: u64, of: u64| {
            let by = vtime.wrapping_sub(of);
            i64::try_from(by).is_ok().then_some(by)
        };
        let by = ahead(own.dsq_vtime?, last.dsq_vtime?)?;
        let spread = ahead(last.dsq_vtime?, front.dsq_vtime?)?;
        let step = spread.max(own.slice_ns?).max(1);
        // Where none of those may run on its CPUs, they are in nobody's way.
        let cpus = case.may_use(task)?;
        let passed = queues::before(case, dsq, task, &cpus);
        if by / step < FAR || passed == 0 {
            return None;
        }
        let who = match before {
            [_] => "one younger task is before it, and dsq_vtime is".to_owned(),
            all if all.len() == passed => {
                format!("{passed} younger tasks are before it, and dsq_vtime is")
            }
            all => format!(
                "{} younger tasks are before it, {passed} of which may run on its CPUs, and dsq_vtime is",
                all.len()
            ),
        };
        let theirs = match before {
            [_] => "its",
            _ => "the last of theirs",
        };
        Some(
            Draft::new(
                Confidence::Likely,
                format!(
                    "{} has waited for {} in {}, which is ordered by virtual time, since its own is far ahead: {who} {by} more than {theirs}",
                    name(task),
                    waited(task.runnable_age_ms),
                    dsq_of(case, dsq.id, None),
                ),
            )
            .advice("limit how far a task's dsq_vtime may be ahead of the queue's when it is inserted; look at where this one's comes from: its weight, the time that it is charged with, what ops.enable() or ops.init_task() set")
            .rests_on(format_args!("dsqs/{at}/tasks/{place}/dsq_vtime"), own.dsq_vtime?)
            .rests_on(format_args!("dsqs/{at}/tasks/{}/dsq_vtime", place - 1), last.dsq_vtime?)
            .rests_on(format_args!("dsqs/{at}/tasks/0/dsq_vtime"), front.dsq_vtime?)
            .rests_on(format_args!("starved/{index}/dsq_position"), place)
            .rests_on(format_args!("starved/{index}/runnable_age_ms"), task.runnable_age_ms)
            .explains([index]),
        )
    });
    first.into_iter().collect()
}
