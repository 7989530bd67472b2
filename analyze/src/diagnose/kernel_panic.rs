//! The kernel itself failed: a panic or an oops, whatever the scheduler did.
//!
//! Reads the kernel's log (`panic()` in kernel/panic.c; `show_fault_oops()` in arch/x86/mm/fault.c,
//! `__die_header()` in arch/x86/kernel/dumpstack.c, `report_bug()` in lib/bug.c), and where the CPU of
//! the task that wrote it is: an oops may be survived, a panic is not.

use scx_postmortem_format::report::{LogRecord, PostmortemReport};

use super::{Case, Confidence, Draft};

const PANIC: &str = "Kernel panic - not syncing: ";
/// How the first line of an oops begins.
const OOPS: [&str; 5] = [
    "BUG: kernel NULL pointer dereference",
    "BUG: unable to handle page fault",
    "kernel BUG at ",
    "Oops: ",
    "stack segment: ",
];
/// `KERN_ALERT`, `KERN_CRIT` and `KERN_DEFAULT` (include/linux/kern_levels.h): what an oops is
/// written with. Programs in user space write to the log as well.
const MOST_LEVEL: u8 = 4;

/// The record of a panic, or of the first oops where there is none, and its place.
fn record(report: &PostmortemReport) -> Option<(usize, &LogRecord)> {
    let kernels = || {
        let all = report.kernel_log.iter().enumerate();
        all.filter(|(_, record)| record.facility == 0 && record.level <= MOST_LEVEL)
    };
    let panic = kernels().find(|(_, record)| record.text.starts_with(PANIC));
    let oops = || kernels().find(|(_, record)| OOPS.iter().any(|how| record.text.starts_with(how)));
    panic.or_else(oops)
}

/// In whose context: `T135` is the task with that pid, `C1` a CPU in an interrupt.
fn whose(report: &PostmortemReport, record: &LogRecord) -> String {
    let pid = record
        .caller
        .strip_prefix('T')
        .and_then(|pid| pid.parse::<i32>().ok());
    let cpu = pid.and_then(|pid| {
        let mut cpus = report.cpus.iter();
        cpus.find(|cpu| {
            cpu.curr
                .as_ref()
                .is_some_and(|curr| curr.pid == pid && pid != 0)
        })
    });
    match (pid, record.comm.as_deref(), cpu) {
        (Some(pid), Some(comm), Some(cpu)) => format!(" ({comm}[{pid}] on CPU {})", cpu.cpu),
        (Some(pid), Some(comm), None) => format!(" ({comm}[{pid}])"),
        _ => String::new(),
    }
}

/// The failure in a sentence, and its record's place.
pub(crate) fn sentence(report: &PostmortemReport) -> Option<(usize, String)> {
    let (at, record) = record(report)?;
    let whose = whose(report, record);
    let text = record.text.trim_end();
    Some((
        at,
        match text.strip_prefix(PANIC) {
            Some(why) => format!("the guest's kernel panicked: {why}{whose}"),
            None => format!("the guest's kernel had an oops: {text}{whose}"),
        },
    ))
}

pub(super) fn find(case: &Case<'_>) -> Vec<Draft> {
    let Some((at, what)) = sentence(case.report) else {
        return Vec::new();
    };
    let text = case
        .report
        .kernel_log
        .get(at)
        .map_or("", |record| record.text.as_str());
    vec![
        Draft::new(Confidence::Certain, what)
            .advice("the kernel's log, at the end of the text report, has the call trace; the stack of that CPU is among the stacks")
            .rests_on(format_args!("kernel_log/{at}/text"), text),
    ]
}
