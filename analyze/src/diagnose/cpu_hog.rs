//! CPUs that one and the same task keeps while others wait.
//!
//! It does not keep them in one piece: tasks of higher classes come in between, the detector of soft
//! lockups every few seconds, and what is left of its slice brings it back.
//!
//! A task of sched_ext keeps its CPU until its slice ends, and one with `SCX_SLICE_INF` until
//! somebody takes that away: nothing else in a user queue is looked at meanwhile. One whose slice is
//! short may be let on each time because `ops.dispatch()` had nothing else for the CPU, and then the
//! queue is to blame as well as the task.

use super::holders::{self, held_by};
use super::{Case, Draft, listed, name, waited};

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let mut victims = Vec::new();
    let mut all = Vec::new();
    for (index, task) in case.starved() {
        if case.user_queue(task).is_none() {
            continue;
        }
        if let Some(held) = holders::holders(case, task)
            && held.iter().any(|held| !held.other)
        {
            victims.push((index, task));
            all.extend(held);
        }
    }
    let Some((_, longest)) = victims.first() else {
        return Vec::new();
    };
    all.sort_by_key(|held| held.at);
    all.dedup_by_key(|held| held.at);
    let who: Vec<String> = victims.iter().map(|(_, task)| name(task)).collect();
    let tasks = all.iter().map(|held| {
        let of = held
            .slice_ns()
            .map_or_else(String::new, |slice| match slice {
                u64::MAX => ", with an infinite slice".to_owned(),
                ns => format!(", with {} left of its slice", waited(ns / 1_000_000)),
            });
        format!("{} on CPU {}{of}", held_by(held), held.cpu.cpu)
    });
    let advice = match all.iter().any(|held| held.slice_ns().is_some()) {
        false => {
            "the slice of such a task is short: find what gives it another each time, a callback that sets it, or ops.dispatch() that has nothing else for this CPU"
        }
        true => {
            "give slices that end, or take the CPU away with scx_bpf_kick_cpu() and SCX_KICK_PREEMPT when others wait for it"
        }
    };
    let mut draft = Draft::new(
        holders::sure(&all),
        format!(
            "one task each keeps all CPUs that {} may use: {}; waited up to {}",
            listed(&who),
            tasks.collect::<Vec<_>>().join(", "),
            waited(longest.runnable_age_ms)
        ),
    )
    .advice(advice);
    for held in &all {
        for (path, value) in held.evidence() {
            draft = draft.rests_on(path, value);
        }
    }
    draft = draft.explains(victims.iter().map(|&(index, _)| index));
    for (index, task) in victims.iter().take(4) {
        draft = draft.rests_on(
            format_args!("starved/{index}/runnable_age_ms"),
            task.runnable_age_ms,
        );
    }
    vec![draft]
}
