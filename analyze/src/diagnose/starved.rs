//! The task that waited longest, where no other rule tells why.
//!
//! What the image proves of it: how long, against the watchdog's limit, and where it is. A task that
//! was handed to `ops.enqueue()` and is on no queue is the BPF scheduler's to dispatch
//! (`SCX_OPSS_QUEUED`). After the ejection the queues are gone, and the kernel's own dump says who
//! waited where.

use super::{Case, Confidence, Draft, dsq_of, name, waited};

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let Some((index, task)) = case.starved().next() else {
        return from_dump(case);
    };
    let limit = case.report.scheduler.as_ref();
    let limit = limit.and_then(|s| s.watchdog_timeout_ms);
    let against = limit.map_or_else(String::new, |ms| {
        format!(" (the watchdog's limit is {})", waited(ms))
    });
    let record = case.task(task);
    let ops_state = record.and_then(|(at, t)| Some((at, t.ops_state.as_deref()?)));
    let kept = task.dsq_id.is_none() && matches!(ops_state, Some((_, "QUEUED")));
    let place = match (task.dsq_id, task.dsq_position) {
        (Some(id), position) => {
            let queue = dsq_of(case, id, Some(task.cpu));
            match position {
                Some(0) => format!("it is the first on {queue}"),
                Some(1) => format!("one task is before it on {queue}"),
                Some(before) => format!("{before} tasks are before it on {queue}"),
                None => format!("it is on {queue}"),
            }
        }
        (None, _) if kept => {
            "ops.enqueue() was given it, and the BPF scheduler has put it on no DSQ since"
                .to_owned()
        }
        (None, _) => "it is on no DSQ".to_owned(),
    };
    let mut draft = Draft::new(
        Confidence::Likely,
        format!(
            "{} has been runnable for {} without running{against}: {place}",
            name(task),
            waited(task.runnable_age_ms)
        ),
    )
    .rests_on(
        format_args!("starved/{index}/runnable_age_ms"),
        task.runnable_age_ms,
    );
    if let Some(ms) = limit {
        draft = draft.rests_on("scheduler/watchdog_timeout_ms", ms);
    }
    if kept {
        draft = draft.advice("find where the scheduler keeps it (a map, an arena, a ring to user space), and what should have made ops.dispatch() insert it");
        if let Some((at, state)) = ops_state {
            draft = draft.rests_on(format_args!("tasks/{at}/ops_state"), state);
        }
    } else {
        draft.confidence = Confidence::Possible;
    }
    vec![draft]
}

/// The same from the kernel's dump, of a scheduler that the watchdog has thrown out.
fn from_dump(case: &Case<'_>) -> Vec<Draft> {
    let Some(exit) = &case.report.exit_info else {
        return Vec::new();
    };
    let kind = exit.kind_name.as_deref().unwrap_or_default();
    let (Some(dump), "SCX_EXIT_ERROR_STALL") = (&exit.parsed_dump, kind) else {
        return Vec::new();
    };
    let cpus = dump.cpus.iter().enumerate();
    let tasks = cpus.flat_map(|(cpu, of)| {
        let tasks = of.tasks.iter().enumerate();
        tasks.map(move |(at, task)| (cpu, at, task))
    });
    // The kernel prints the time until a task became runnable: the least is the longest wait.
    let Some((cpu, at, task)) = tasks
        .filter(|(.., task)| !task.current)
        .min_by_key(|(cpu, at, task)| (task.runnable_ms, *cpu, *at))
    else {
        return Vec::new();
    };
    let place = task.dsq_id.map_or_else(
        || "on no DSQ".to_owned(),
        |id| format!("on {}", dsq_of(case, id, None)),
    );
    let message = exit.msg.as_deref().or(exit.reason.as_deref());
    let path = format!("exit_info/parsed_dump/cpus/{cpu}/tasks/{at}");
    let draft = Draft::new(
        Confidence::Certain,
        format!(
            "the watchdog threw the scheduler out ({}); in the kernel's dump {}[{}] had waited longest, {}, {place}",
            message.unwrap_or("no message"),
            task.comm,
            task.pid,
            waited(task.runnable_ms.unsigned_abs()),
        ),
    )
    .advice("take the core while the kernel writes its dump (scx_dump_state), when the queues are still there")
    .rests_on("exit_info/kind_name", kind)
    .rests_on(format_args!("{path}/runnable_ms"), task.runnable_ms);
    vec![match task.dsq_id {
        Some(id) => draft.rests_on(format_args!("{path}/dsq_id"), id),
        None => draft,
    }]
}
