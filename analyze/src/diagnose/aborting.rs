//! A scheduler that is being thrown out, before the kernel has said why.
//!
//! `scx_sched.exit_kind` is set by whoever claims the exit (`scx_claim_exit()`, and
//! `scx_sched.aborting` with it, `scx_aborting` in 6.19 and 7.0); the record is filled later, by a
//! work of its own. In between only the stack of the CPU that claimed it tells who that was. Once
//! the record is there it says more than this.

use scx_postmortem_format::report::TaskInfo;

use super::{Case, Confidence, Draft};

/// `SCX_EXIT_ERROR`: what is below is an exit that somebody asked for.
const ERROR: u32 = 1024;
/// Where a scheduler's exit is claimed (kernel/sched/ext.c of 6.16 to 7.3), innermost first.
const CLAIMS: [&str; 7] = [
    "scx_claim_exit",
    "scx_vexit",
    "__scx_exit",
    "scx_exit",
    "scx_exit_bstr",
    "scx_kf_error",
    "scx_bpf_error_bstr",
];

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let Some(scheduler) = &case.report.scheduler else {
        return Vec::new();
    };
    let told = case
        .report
        .exit_info
        .as_ref()
        .is_some_and(|exit| exit.kind != 0);
    let Some(kind) = scheduler.exit_kind.filter(|&kind| kind >= ERROR && !told) else {
        return Vec::new();
    };
    let name = scheduler.exit_kind_name.as_deref();
    let name = name.map_or_else(|| format!("exit kind {kind}"), str::to_owned);
    let claim = claim(case);
    let who = claim.as_ref().map_or(String::new(), |claim| {
        let place = claim.program.as_ref();
        let place = place.map(|(_, program, source)| format!(" by {program}() at {source}"));
        let task = claim.task;
        let place = place.unwrap_or_default();
        format!(
            "{place}, while CPU {} ran {}[{}]",
            claim.cpu, task.comm, task.pid
        )
    });
    let mut draft = Draft::new(
        Confidence::Certain,
        format!("the scheduler is being thrown out ({name}){who}, and the kernel has not written down why yet"),
    )
    .advice("take the core a moment later, when the exit record is filled (scx_dump_state)")
    .rests_on("scheduler/exit_kind", kind);
    if scheduler.aborting == Some(true) {
        draft = draft.rests_on("scheduler/aborting", true);
    }
    if let Some(claim) = claim {
        let at = claim.at;
        draft = draft
            .rests_on(format_args!("tasks/{at}/pid"), claim.task.pid)
            .rests_on(
                format_args!("tasks/{at}/stack/{}/symbol", claim.frame),
                claim.symbol,
            )
            .rests_on(
                format_args!("cpus/{}/curr/kva", claim.cpu_at),
                claim.task.kva,
            );
        if let Some((frame, _, source)) = claim.program {
            draft = draft.rests_on(format_args!("tasks/{at}/stack/{frame}/source"), source);
        }
    }
    vec![draft]
}

/// Who is about to throw the scheduler out.
struct Claim<'a> {
    task: &'a TaskInfo,
    /// Where it is in `tasks`, and its frame in its stack.
    at: usize,
    frame: usize,
    symbol: &'a str,
    cpu: u32,
    cpu_at: usize,
    /// The BPF program that called: frame, name and line.
    program: Option<(usize, String, &'a str)>,
}

/// The running task that is in the middle of claiming an exit.
fn claim<'a>(case: &Case<'a>) -> Option<Claim<'a>> {
    case.report.tasks.iter().enumerate().find_map(|(at, task)| {
        let frames = || task.stack.iter().enumerate();
        let (frame, symbol) = frames().find_map(|(index, frame)| {
            let symbol = frame.symbol.as_deref()?;
            let function = symbol.split('+').next().unwrap_or_default();
            CLAIMS.contains(&function).then_some((index, symbol))
        })?;
        // By its address: all idle tasks have pid 0.
        let mut cpus = case.report.cpus.iter().enumerate();
        let (cpu_at, cpu) = cpus.find(|(_, cpu)| {
            let curr = cpu.curr.as_ref();
            curr.is_some_and(|curr| curr.kva == task.kva)
        })?;
        let program = frames().skip(frame).find_map(|(index, frame)| {
            let name = super::program_name(frame.symbol.as_deref()?);
            Some((index, name.to_owned(), frame.source.as_deref()?))
        });
        Some(Claim {
            task,
            at,
            frame,
            symbol,
            cpu: cpu.cpu,
            cpu_at,
            program,
        })
    })
}
