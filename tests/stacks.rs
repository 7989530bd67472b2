//! Kernel stacks: where they begin and end in the shipped captures, and what becomes of one whose
//! memory is damaged. That every frame is what DWARF says, `tests/interop` compares.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use scx_postmortem_analyze::addr::Kva;
use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::Kernel;
use scx_postmortem_format::report::{PostmortemReport, TaskInfo};
use scx_postmortem_tests::{corpus, entry};

const STALL: &str = "stall-6.18";

fn report(kernel: &Kernel) -> PostmortemReport {
    *analysis::analyze(kernel, &Options::default())
        .postmortem
        .unwrap()
}

fn functions(task: &TaskInfo) -> Vec<&str> {
    let names = task.stack.iter().map(|frame| {
        let symbol = frame.symbol.as_deref().expect("every frame has a name");
        symbol.split('+').next().unwrap()
    });
    names.collect()
}

/// Where the kernel is entered: all whole stacks end there.
const ENTRIES: [&str; 5] = [
    "entry_SYSCALL_64_after_hwframe",
    "ret_from_fork_asm",
    "common_startup_64",
    "asm_sysvec_apic_timer_interrupt",
    "asm_sysvec_reschedule_ipi",
];

#[test]
fn every_task_has_a_whole_stack_or_a_reason() {
    for entry in corpus().unwrap() {
        let report = report(&entry.kernel().unwrap());
        let mut whole = 0;
        for task in &report.tasks {
            let who = format!("{}: {}[{}]", entry.name, task.comm, task.pid);
            match task.stack_end.as_deref() {
                None => {
                    let functions = functions(task);
                    assert!(
                        ENTRIES.contains(functions.last().unwrap()),
                        "{who}: {functions:?}"
                    );
                    if task.on_cpu == Some(false) {
                        let new = functions == ["ret_from_fork_asm"];
                        assert!(new || functions[0] == "__schedule", "{who}: {functions:?}");
                    }
                    whole += 1;
                }
                Some(end) if end.contains(" in user space at ") => {
                    assert_eq!(task.on_cpu, Some(true), "{who}");
                    assert!(task.stack.is_empty(), "{who}");
                }
                Some(end) => {
                    assert_eq!(end, "it has exited, and its stack is given back", "{who}");
                    assert_eq!(task.state.as_deref(), Some("X"), "{who}");
                }
            }
        }
        assert!(whole >= 70, "{}: {whole}", entry.name);
    }
}

/// The watchdog's own backtrace was saved a moment before the core, further down in the same
/// function; all its callers are the same.
#[test]
fn the_watchdogs_stack_is_what_the_kernel_saved() {
    let report = report(&entry(STALL).unwrap().kernel().unwrap());
    let saved = report.exit_info.unwrap().backtrace;
    let symbols: Vec<_> = saved.iter().map(|f| f.symbol.clone().unwrap()).collect();
    let task = report
        .tasks
        .iter()
        .find(|task| functions(task).contains(&"scx_watchdog_workfn"))
        .unwrap();
    let at = functions(task)
        .iter()
        .position(|&name| name == "scx_watchdog_workfn")
        .unwrap();
    assert!(symbols[0].starts_with("scx_watchdog_workfn+"));
    let callers: Vec<_> = task.stack[at + 1..]
        .iter()
        .map(|f| f.symbol.clone().unwrap())
        .collect();
    assert_eq!(callers, symbols[1..]);
}

#[test]
fn a_damaged_stack_says_how_far_it_leads() {
    let entry = entry(STALL).unwrap();
    let kernel = entry.kernel().unwrap();
    let sound = report(&kernel);
    let starved = &sound.starved[0];
    let task = kernel
        .object("struct task_struct", Kva(starved.kva.0))
        .unwrap();
    let sp = Kva(task.member("thread.sp").unwrap().u64().unwrap());
    let frame = kernel.object("struct inactive_task_frame", sp).unwrap();
    let (bp, ret) = (
        frame.member("bp").unwrap().address(),
        frame.member("ret_addr").unwrap().address(),
    );
    let of = |bytes: &[(Kva, &[u8])], lost: &[std::ops::Range<Kva>]| {
        let kernel = entry.patched(bytes, lost).unwrap();
        let report = report(&kernel);
        let task = report.tasks.into_iter().find(|t| t.kva == starved.kva);
        let task = task.unwrap();
        (task.stack.len(), task.stack_end.unwrap())
    };

    let (frames, end) = of(&[(ret, &0x1234u64.to_le_bytes())], &[]);
    assert_eq!(frames, 1);
    assert_eq!(
        end,
        "0x1234 is neither in the kernel, nor in a module, nor in a BPF program"
    );

    // __schedule() finds its caller by its frame pointer: one that leads back to itself.
    let (frames, end) = of(&[(bp, &sp.0.to_le_bytes())], &[]);
    assert!(frames < 4, "{frames}");
    assert!(!end.is_empty());

    let (frames, end) = of(&[], &[sp..sp.add(256)]);
    assert_eq!(frames, 0);
    assert!(end.contains("was not captured"), "{end}");
}

#[test]
fn tables_of_another_kind_are_named() {
    let entry = entry(STALL).unwrap();
    let header = entry.kernel().unwrap().symbol("orc_header").unwrap();
    let report = report(&entry.patched(&[(header, &[0xee; 20])], &[]).unwrap());
    let starved = &report.starved[0];
    let task = report.tasks.iter().find(|t| t.kva == starved.kva).unwrap();
    // Where it is, needs no table.
    assert_eq!(functions(task), ["__schedule"]);
    let end = task.stack_end.as_deref().unwrap();
    assert!(end.starts_with("orc_header is eeee"), "{end}");
}
