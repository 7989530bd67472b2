//! Arenas in which every page is taken.
//!
//! `bpf_arena_alloc_pages()` fails then. That alone is no failure, since a scheduler may fill its
//! arena on purpose; but where those that starve are the ones without a context, which
//! `ops.init_task()` makes for each, it is why.

use std::collections::HashSet;

use scx_postmortem_format::report::MapInfo;

use super::{Case, Confidence, Draft, listed, name, waited};

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let Some((index, longest)) = case.starved().next() else {
        return Vec::new();
    };
    let names: Vec<String> = case.starved().map(|(_, task)| name(task)).collect();
    let starved: HashSet<u64> = case.starved().map(|(_, task)| task.kva.0).collect();
    let arenas = case.report.arenas.iter().enumerate();
    arenas
        .filter_map(|(at, arena)| {
            let used = case.used_by_scheduler(arena.kva.0)?;
            let limit = used.max_entries?;
            if arena.pages != Some(u64::from(limit)) || arena.error.is_some() {
                return None;
            }
            let without = case.report.maps.iter().enumerate().find(|(_, map)| leaves_out(case, map, &starved));
            let (confidence, why) = without.map_or_else(
                || (Confidence::Possible, String::new()),
                |(_, map)| {
                    let which = match names.len() {
                        1 => "which is not",
                        _ => "none of which is",
                    };
                    let why = match map.owners.len() {
                        1 => format!(", {which} the one task in {},", map.name),
                        count => format!(", {which} among the {count} tasks in {},", map.name),
                    };
                    // A storage of some tasks only says nothing of those that it lacks.
                    let rest = case.report.tasks.iter().filter(|task| {
                        task.class.as_deref() == Some("ext") && !starved.contains(&task.kva.0)
                    });
                    let owners: HashSet<u64> = map.owners.iter().map(|owner| owner.kva.0).collect();
                    let mut lacks = rest.filter(|task| !owners.contains(&task.kva.0));
                    // Else a task may get its context when it first runs, and these never did.
                    let made = |map| case.used_by_callback(map, &["init_task"]);
                    match lacks.next() {
                        None if made(map) && made(used) => (Confidence::Certain, why),
                        None if !case.starved().any(|(_, task)| case.never_consumed(task)) => {
                            (Confidence::Likely, why)
                        }
                        _ => (Confidence::Possible, why),
                    }
                },
            );
            let mut draft = Draft::new(
                confidence,
                format!(
                    "arena {} is exhausted: all of its {limit} pages are allocated; {}{why} waited up to {}",
                    arena.name,
                    listed(&names),
                    waited(longest.runnable_age_ms)
                ),
            )
            .advice("make the arena larger (max_entries), free what tasks leave behind in ops.exit_task(), and have a way to run tasks without a context")
            .rests_on(format_args!("arenas/{at}/pages"), limit);
            let mut maps = case.report.maps.iter();
            if let Some(map_at) = maps.position(|map| map.kva == arena.kva) {
                draft = draft.rests_on(format_args!("maps/{map_at}/max_entries"), limit);
            }
            if let Some((map_at, map)) = without {
                draft = draft.rests_on(format_args!("maps/{map_at}/entries"), map.owners.len());
            }
            let draft = draft.rests_on(
                format_args!("starved/{index}/runnable_age_ms"),
                longest.runnable_age_ms,
            );
            Some(draft.explains(case.starved().map(|(index, _)| index)))
        })
        .collect()
}

/// A task storage of the scheduler that holds a value for other tasks, and for none that starves.
fn leaves_out(case: &Case<'_>, map: &MapInfo, starved: &HashSet<u64>) -> bool {
    map.type_name.as_deref() == Some("task_storage")
        && case.used_by_scheduler(map.kva.0).is_some()
        && map.error.is_none()
        && map.entries.is_some_and(|entries| {
            usize::try_from(entries).is_ok_and(|entries| entries == map.owners.len() && entries > 0)
        })
        && map
            .owners
            .iter()
            .all(|owner| !starved.contains(&owner.kva.0))
}
