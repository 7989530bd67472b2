//! The scheduler failed by its own word, or by a mistake that the kernel caught.
//!
//! Reads the exit record: `SCX_EXIT_ERROR_BPF` is `scx_bpf_error()`, `SCX_EXIT_ERROR` whatever
//! else the kernel threw it out for. The backtrace tells which program it was in.

use super::{Case, Confidence, Draft};

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
    let message = exit.msg.as_deref().filter(|msg| !msg.is_empty());
    let message = message.or(exit.reason.as_deref()).unwrap_or("no message");
    let frames = exit.backtrace.iter().enumerate();
    let program = frames
        .filter_map(|(index, frame)| {
            Some((index, frame.symbol.as_deref()?, frame.source.as_deref()?))
        })
        .next();
    let place = program
        .map(|(_, symbol, source)| format!(" in {}() at {source}", super::program_name(symbol)));
    let mut draft = Draft::new(
        Confidence::Certain,
        format!("{how}{}: {message}", place.unwrap_or_default()),
    )
    .rests_on("exit_info/kind_name", kind)
    .rests_on("exit_info/msg", message);
    if let Some((index, symbol, _)) = program {
        draft = draft.rests_on(format_args!("exit_info/backtrace/{index}/symbol"), symbol);
    }
    let cpu = exit.exit_cpu.and_then(|cpu| u32::try_from(cpu).ok());
    let cpus = case.report.cpus.iter().enumerate();
    // Only while it is being thrown out does the CPU still run what it ran then.
    let attached = case.report.scheduler.as_ref();
    let still = attached.is_some_and(|s| s.found_via == "scx_root");
    if let Some((index, curr)) = cpus
        .filter(|(_, c)| still && Some(c.cpu) == cpu)
        .find_map(|(index, c)| Some((index, c.curr.as_ref()?)))
    {
        draft = draft
            .rests_on(format_args!("cpus/{index}/curr/comm"), &curr.comm)
            .rests_on(format_args!("cpus/{index}/curr/pid"), curr.pid);
    }
    vec![draft]
}
