//! The scheduler failed by its own word, or by a mistake that the kernel caught.
//!
//! Reads the exit record: `SCX_EXIT_ERROR_BPF` is `scx_bpf_error()`, `SCX_EXIT_ERROR` whatever
//! else the kernel threw it out for. The backtrace tells which program it was in, the head of the
//! kernel's dump in the context of which task.

use scx_postmortem_format::report::ExitInfo;

use super::{Case, Confidence, Draft, listed};

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let Some(exit) = &case.report.exit_info else {
        return Vec::new();
    };
    let kind = exit.kind_name.as_deref().unwrap_or_default();
    let how = match kind {
        "SCX_EXIT_ERROR_BPF" => "the scheduler called scx_bpf_error()",
        "SCX_EXIT_ERROR" => "the kernel threw the scheduler out for an error",
        _ => return Vec::new(),
    };
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let message = text(&exit.msg).map(|msg| ("msg", msg));
    let message = message.or_else(|| Some(("reason", text(&exit.reason)?)));
    let frames = exit.backtrace.iter().enumerate();
    let program = frames
        .filter_map(|(index, frame)| {
            Some((index, frame.symbol.as_deref()?, frame.source.as_deref()?))
        })
        .next();
    let place = program
        .map(|(_, symbol, source)| format!(" in {}() at {source}", super::program_name(symbol)));
    let task = task(case);
    let whose = task.as_ref().map_or(String::new(), |task| {
        let who = format!("{}[{}]", task.comm, task.pid);
        match task.cpu {
            Some((cpu, _)) => format!(", while CPU {cpu} ran {who}"),
            None => format!(", in the context of {who}"),
        }
    });
    let words = message.as_ref().map_or("no message", |(_, words)| words);
    let missing = missing_queue(case, exit, words);
    let by = missing
        .as_ref()
        .map_or(String::new(), |queue| format!("; {}", queue.by));
    let mut draft = Draft::new(
        Confidence::Certain,
        format!("{how}{}{whose}: {words}{by}", place.unwrap_or_default()),
    )
    .rests_on("exit_info/kind_name", kind);
    if let Some((member, words)) = &message {
        draft = draft.rests_on(format_args!("exit_info/{member}"), words);
    }
    if let Some((index, symbol, source)) = program {
        draft = draft
            .rests_on(format_args!("exit_info/backtrace/{index}/symbol"), symbol)
            .rests_on(format_args!("exit_info/backtrace/{index}/source"), source);
    }
    if let Some(queue) = missing {
        draft = draft.advice(queue.advice).rests_on(
            format_args!("exit_info/backtrace/{}/symbol", queue.frame),
            queue.symbol,
        );
    }
    if let Some(task) = task {
        draft = draft
            .rests_on(format_args!("{}comm", task.path), &task.comm)
            .rests_on(format_args!("{}pid", task.path), task.pid);
        if let Some((cpu, path)) = task.cpu {
            draft = draft.rests_on(path, cpu);
        }
    }
    vec![draft]
}

/// A task that was put into a queue that is not there.
struct MissingQueue<'r> {
    by: &'static str,
    frame: usize,
    symbol: &'r str,
    advice: String,
}

/// What the kernel says when it does not find a queue (`find_dsq_for_dispatch()`): by then the
/// program has returned, and only the kernel's own functions tell which callback it was.
fn missing_queue<'r>(case: &Case<'r>, exit: &'r ExitInfo, words: &str) -> Option<MissingQueue<'r>> {
    // A program may say the same in words of its own, with scx_bpf_error().
    let kernels = exit.kind_name.as_deref() == Some("SCX_EXIT_ERROR");
    if !kernels || !words.starts_with("non-existent DSQ ") {
        return None;
    }
    let scheduler = case.report.scheduler.as_ref();
    let selects = scheduler.is_none_or(|s| s.has_ops.iter().any(|op| op == "select_cpu"));
    let mut frames = exit.backtrace.iter().enumerate();
    let (frame, symbol, by) = frames.find_map(|(index, frame)| {
        let symbol = frame.symbol.as_deref()?;
        let by = match symbol.split('+').next()? {
            "do_enqueue_task" | "scx_do_enqueue_task" if selects => {
                "ops.enqueue() or ops.select_cpu() had put the task there"
            }
            "do_enqueue_task" | "scx_do_enqueue_task" => "ops.enqueue() had put the task there",
            "flush_dispatch_buf" | "scx_flush_dispatch_buf" | "balance_one" | "balance_scx" => {
                "ops.dispatch() had put the task there"
            }
            _ => return None,
        };
        Some((index, symbol, by))
    })?;
    let its = scheduler.map(|scheduler| scheduler.sched_kva);
    let dsqs = case.report.dsqs.iter();
    let dsqs = dsqs.filter(|dsq| {
        let owner = dsq.sched_kva.is_none() || Some(dsq.sched_kva) == its;
        dsq.origin == "user" && owner
    });
    let there: Vec<String> = dsqs.map(|dsq| dsq.id.to_string()).collect();
    // None may mean that they could not be read.
    let there = match &there[..] {
        [] => String::new(),
        some => format!(", as {}", listed(some)),
    };
    Some(MissingQueue {
        by,
        frame,
        symbol,
        advice: format!(
            "create the queue with scx_bpf_create_dsq(), in ops.init() for instance, before a task is put there, or put it into one that the scheduler has{there}"
        ),
    })
}

/// The task in whose context the call failed.
struct Failing {
    comm: String,
    pid: i32,
    /// The CPU, which kernels before 7.2 do not keep, and where it stands.
    cpu: Option<(u32, &'static str)>,
    /// What the members' names follow.
    path: String,
}

fn task(case: &Case<'_>) -> Option<Failing> {
    let exit = case.report.exit_info.as_ref()?;
    let number = |cpu: Option<i32>| cpu.and_then(|cpu| u32::try_from(cpu).ok());
    if let Some(dump) = &exit.parsed_dump
        && let (Some(comm), Some(pid)) = (&dump.comm, dump.pid)
    {
        let cpu = number(dump.exit_cpu)
            .map(|cpu| (cpu, "exit_info/parsed_dump/exit_cpu"))
            .or_else(|| Some((number(exit.exit_cpu)?, "exit_info/exit_cpu")));
        return Some(Failing {
            comm: comm.clone(),
            pid,
            cpu,
            path: "exit_info/parsed_dump/".to_owned(),
        });
    }
    // Before the dump is written: while it is being thrown out, the CPU still runs what it ran.
    let attached = case.report.scheduler.as_ref()?.found_via == "scx_root";
    let cpu = number(exit.exit_cpu).filter(|_| attached && exit.dump.is_none())?;
    let mut cpus = case.report.cpus.iter().enumerate();
    let (at, info) = cpus.find(|(_, info)| info.cpu == cpu)?;
    let curr = info.curr.as_ref()?;
    Some(Failing {
        comm: curr.comm.clone(),
        pid: curr.pid,
        cpu: Some((cpu, "exit_info/exit_cpu")),
        path: format!("cpus/{at}/curr/"),
    })
}
