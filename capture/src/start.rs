//! `capture run`, from its arguments to its exit code.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::source::{Image, may_write};
use scx_postmortem_format::capture::Existing;
use scx_postmortem_format::report::Escaped;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use crate::cli::{Failure, RunArgs};
use crate::convert::progress_bar;
use crate::guest::{self, Wanted};
use crate::machine::Machine;
use crate::machine::qemu::{Config, Qemu};
use crate::run::{Outcome, Run, Triggers};

/// Exit code: the output could not be written.
const OUTPUT: u8 = 1;
/// Exit code: written, but incomplete.
const INCOMPLETE: u8 = 3;
/// Exit code: the guest could not be started, or was lost.
const LOST: u8 = 5;
/// Exit code: the scheduler did not stay.
const NO_SCHEDULER: u8 = 6;
/// Exit code: ended without a capture, by time or signal.
const ENDED: u8 = 7;
/// Exit code: there was a failure, and a capture of it.
const FAILED: u8 = 10;

/// What the kernel is always told: where its console is, and to stand still after a panic.
const APPEND: &str = "console=ttyS0 panic=0 tsc=reliable";
/// Lines of the console that are shown when a scheduler did not run.
const SHOWN: usize = 15;

fn failure(code: u8) -> impl Fn(String) -> Failure {
    move |sentence| Failure { code, sentence }
}

/// Runs a guest; the exit code of a run that went as it should.
pub(crate) fn run(args: &RunArgs) -> Result<u8, Failure> {
    let inputs = [Some(args.kernel.as_path()), args.initrd.as_deref()];
    let inputs: Vec<&Path> = inputs.into_iter().flatten().collect();
    may_write(&args.output, &inputs, args.force).map_err(failure(OUTPUT))?;
    let triggers = triggers(args).map_err(|e| failure(LOST)(format!("signals: {e}")))?;

    let directory =
        tempfile::tempdir().map_err(|e| failure(LOST)(format!("a temporary directory: {e}")))?;
    let initrd = match &args.initrd {
        Some(own) => own.clone(),
        None => {
            let path = directory.path().join("initrd");
            let bytes = initramfs(args).map_err(failure(LOST))?;
            std::fs::write(&path, bytes)
                .map_err(|e| failure(LOST)(format!("{}: {e}", path.display())))?;
            path
        }
    };
    if !args.kernel.is_file() {
        let kernel = args.kernel.display();
        return Err(failure(LOST)(format!(
            "{kernel}: no such file; expected a kernel image"
        )));
    }
    let config = Config {
        program: guest::program(&args.qemu).map_err(|e| {
            failure(LOST)(format!(
                "{e} (Debian: qemu-system-x86, Fedora: qemu-system-x86-core)"
            ))
        })?,
        accel: args.accel,
        cpu: args.cpu.clone(),
        vcpus: args.cpus,
        memory_bytes: args.memory,
        kernel: args.kernel.clone(),
        initrd,
        append: format!("{APPEND} {}", args.append),
    };
    let mut machine = Qemu::start(&config).map_err(|e| failure(LOST)(e.to_string()))?;
    let watching = io::stderr().is_terminal();
    let tell = Box::new(move |line: &str| {
        if watching {
            let _ = writeln!(io::stderr(), "capture: {}", Escaped(line));
        }
    });
    let echo = args.show_console.then(|| {
        Box::new(|bytes: &[u8]| {
            let _ = io::stderr().write_all(bytes);
        }) as Box<dyn Fn(&[u8])>
    });
    let mut run = Run::new(triggers, tell, echo);
    let outcome = run
        .follow(&mut machine)
        .map_err(|e| failure(LOST)(e.to_string()))?;
    finish(args, &run, &mut machine, outcome)
}

fn triggers(args: &RunArgs) -> io::Result<Triggers> {
    let triggers = Triggers {
        console: args.console.clone(),
        after: args.after.map(Duration::from_secs),
        timeout: args.timeout.map(Duration::from_secs),
        now: Arc::new(AtomicBool::new(false)),
        end: Arc::new(AtomicBool::new(false)),
    };
    flag::register(SIGUSR1, Arc::clone(&triggers.now))?;
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        // The second one ends us at once; QEMU goes with us.
        flag::register_conditional_shutdown(signal, 128 + 15, Arc::clone(&triggers.end))?;
        flag::register(signal, Arc::clone(&triggers.end))?;
    }
    Ok(triggers)
}

fn initramfs(args: &RunArgs) -> Result<Vec<u8>, String> {
    let kernel = std::fs::read(&args.kernel)
        .map_err(|e| format!("{}: {e}; expected a kernel image", args.kernel.display()))?;
    let release = guest::release_of(&kernel);
    let beside = release
        .as_ref()
        .and_then(|release| guest::config_beside(&args.kernel, release));
    let config = args.kernel_config.clone().or(beside);
    let wanted = Wanted {
        scheduler: args.scheduler.as_deref().unwrap_or_default(),
        workloads: &args.workload,
        files: &args.files,
        config: config.as_deref().zip(release.as_deref()),
    };
    guest::initramfs(&wanted)
}

fn finish(
    args: &RunArgs,
    run: &Run,
    machine: &mut dyn Machine,
    outcome: Outcome,
) -> Result<u8, Failure> {
    match outcome {
        Outcome::Held { fired, frozen } => {
            let bar = progress_bar();
            let show = |progress: scx_postmortem_format::capture::WriteProgress| {
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.done_bytes);
                ControlFlow::Continue(())
            };
            let existing = if args.force {
                Existing::Replace
            } else {
                Existing::Refuse
            };
            let written = run.write(
                machine,
                &fired,
                &frozen,
                &args.output,
                existing,
                args.level,
                &show,
            );
            bar.finish_and_clear();
            machine.stop();
            let summary = written.map_err(failure(OUTPUT))?;
            let mut out = io::stdout().lock();
            // Whoever closed standard output still gets the exit code.
            let _ = writeln!(
                out,
                "{}: {} ({}), {} MiB",
                args.output.display(),
                fired.kind,
                Escaped(&fired.detail),
                summary.file_bytes >> 20
            );
            for line in headline(&args.output) {
                let _ = writeln!(out, "  {}", Escaped(&line));
            }
            if !frozen.not_parked.is_empty() {
                return Ok(INCOMPLETE);
            }
            Ok(if fired.is_failure() { FAILED } else { 0 })
        }
        Outcome::Ended { how, said } => {
            let said = said.unwrap_or_default();
            if said.starts_with("workload ") || said == "scheduler detached" {
                return Ok(0);
            }
            let last = match said.as_str() {
                "" => String::new(),
                said => format!("; its init said last: {said}"),
            };
            Err(failure(NO_SCHEDULER)(format!(
                "the guest ended by itself, {how}{last}; no capture{}",
                console_end(run)
            )))
        }
        Outcome::TimeOver => Err(failure(ENDED)(format!(
            "the guest was ended after {} s (--timeout); no capture",
            args.timeout.unwrap_or_default()
        ))),
        Outcome::Interrupted => Err(failure(ENDED)(
            "ended by a signal; the guest was ended, no capture".into(),
        )),
    }
}

/// The last lines of the console, as the end of a message.
fn console_end(run: &Run) -> String {
    let text = String::from_utf8_lossy(run.console_tail());
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let from = lines.len().saturating_sub(SHOWN);
    let shown = lines.get(from..).unwrap_or_default();
    if shown.is_empty() {
        return String::new();
    }
    format!("; the console ended with\n{}", shown.join("\n"))
}

/// What the new capture says, in a few lines.
fn headline(path: &Path) -> Vec<String> {
    let report = Image::open(path)
        .map_err(|e| e.to_string())
        .and_then(|image| Kernel::find(image, &Overrides::default()))
        .map(|kernel| analysis::analyze(&kernel, &Options::default()));
    match report {
        Ok(report) => {
            let Some(own) = report.postmortem else {
                return Vec::new();
            };
            let findings = own.findings.into_iter().map(|finding| finding.what);
            let lines: Vec<String> = findings.collect();
            if lines.is_empty() {
                own.headline
            } else {
                lines
            }
        }
        Err(why) => vec![format!("the capture's kernel was not found: {why}")],
    }
}
