//! `capture run` and `capture attach`, from their arguments to their exit codes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::source::{Image, may_write};
use scx_postmortem_format::capture::{AtomicFile, Existing, WriteProgress};
use scx_postmortem_format::report::Escaped;
use signal_hook::consts::SIGUSR1;
use signal_hook::flag;

use crate::cli::{AttachArgs, Failure, GuestArgs, InitrdArgs, OutputArgs, RunArgs, WhenArgs};
use crate::convert::progress_bar;
use crate::coordinator::{Coordinator, Early, Echo, End, Fired, Outcome, Snapshot, Triggers};
use crate::guest::{self, KernelFile, Wanted};
use crate::machine::choose::{self, Choice};
use crate::machine::{self, Config, Machine, Nameless};
use crate::save::{self, Guest, Saved, Target};
use crate::signals::{Signals, Writing};
use crate::watch::{Live, SAMPLE_EVERY};

/// Exit code: the output could not be written.
const OUTPUT: u8 = 1;
/// Exit code: wrong arguments.
const USAGE: u8 = 2;
/// Exit code: written, but less than it should be.
const INCOMPLETE: u8 = 3;
/// Exit code: the guest could not be started, or was lost.
const LOST: u8 = 5;
/// Exit code: the scheduler did not stay.
const NO_SCHEDULER: u8 = 6;
/// Exit code: a workload failed, the scheduler did not.
const WORKLOAD: u8 = 8;
/// Exit code: ended without a capture, by time or signal.
const ENDED: u8 = 7;
/// Exit code: there was a failure, and a capture of it.
const FAILED: u8 = 10;

/// What the kernel is always told: where its console is, to stand still after a panic, and not to
/// doubt its clocks: on a busy host an emulated one comes late, and the kernel gives up.
pub(crate) const APPEND: &str = "console=ttyS0 panic=0 tsc=reliable no_timer_check";
/// Lines of the console that are shown when a scheduler did not run.
const SHOWN: usize = 15;

fn failure(code: u8) -> impl Fn(String) -> Failure {
    move |sentence| Failure { code, sentence }
}

/// Where the capture goes and how, once that was found possible.
struct Output<'a> {
    path: PathBuf,
    args: &'a OutputArgs,
}

impl<'a> Output<'a> {
    fn new(
        args: &'a OutputArgs,
        name: &str,
        inputs: &[&Path],
        early: bool,
    ) -> Result<Self, Failure> {
        args.prepare().map_err(failure(OUTPUT))?;
        let path = args.path(name);
        may_write(&path, inputs, args.force).map_err(failure(OUTPUT))?;
        let output = Self { path, args };
        // Before a guest runs for minutes for it.
        save::check(&output.path, output.existing(), early).map_err(|e| {
            let force = match e.kind() {
                io::ErrorKind::AlreadyExists => ", or let it be replaced with --force",
                _ => "",
            };
            failure(OUTPUT)(format!("{e}{force}"))
        })?;
        Ok(output)
    }

    fn existing(&self) -> Existing {
        Existing::forced(self.args.force)
    }
}

/// What a capture is named after: the scheduler's program or object.
fn name_of(args: &RunArgs) -> String {
    let words = args.guest.scheduler.as_deref().map(shell_words::split);
    let words = words.and_then(Result::ok).unwrap_or_default();
    let file = words.first().map(Path::new).and_then(Path::file_name);
    let name = file.map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(|| "guest".into());
    name.strip_suffix(".bpf.o")
        .map(str::to_owned)
        .unwrap_or(name)
}

/// Runs a guest; the exit code of a run that went as it should.
pub(crate) fn run(args: &RunArgs) -> Result<u8, Failure> {
    let inputs = [Some(args.guest.kernel.as_path()), args.initrd.as_deref()];
    let inputs: Vec<&Path> = inputs.into_iter().flatten().collect();
    if args.numa > args.cpus {
        let sentence = format!(
            "{} NUMA nodes (--numa) for {} vCPUs (--cpus): each node needs one",
            args.numa, args.cpus
        );
        return Err(failure(USAGE)(sentence));
    }
    guest::check_words(&args.guest).map_err(failure(USAGE))?;
    check_file("kernel", &args.guest.kernel).map_err(failure(LOST))?;
    if let Some(initrd) = &args.initrd {
        check_file("initrd", initrd).map_err(failure(LOST))?;
    }
    machine::check_memory(args.memory).map_err(failure(LOST))?;
    let output = Output::new(&args.to, &name_of(args), &inputs, args.when.dual)?;
    let (mut triggers, signals) = triggers(&args.when)?;
    triggers.console.clone_from(&args.console);

    let kernel = kernel(&args.guest)?;
    let packed = match &args.initrd {
        Some(_) => None,
        None => {
            let bytes = initramfs(&args.guest, &kernel).map_err(failure(LOST))?;
            let packed = Nameless::with("scx-postmortem-initrd", &bytes);
            Some(packed.map_err(|e| failure(LOST)(format!("the initramfs: {e}")))?)
        }
    };
    let initrd = args.initrd.as_ref();
    let initrd = initrd.or(packed.as_ref().map(|packed| &packed.path));
    let config = Config {
        vcpus: args.cpus,
        memory_bytes: args.memory,
        nodes: args.numa,
        kernel: kernel.image.clone(),
        initrd: initrd.cloned().unwrap_or_default(),
        append: format!("{APPEND} {}", args.append),
        unparked: args.unparked,
    };
    let choice = Choice {
        backend: args.backend,
        qemu: &args.qemu,
        accel: args.accel,
        cpu: &args.cpu,
    };
    let started = choose::start(&choice, &config, &triggers.end);
    let mut machine = started.map_err(|e| {
        let told = triggers.end.load(Ordering::Relaxed);
        failure(if told { ENDED } else { LOST })(e.to_string())
    })?;
    let no_config = kernel.config.is_none();
    // In the guest's memory by now.
    drop((kernel, packed));
    let echo = args.show_console.then(|| {
        Box::new(|bytes: &[u8]| {
            let _ = io::stderr().write_all(bytes);
        }) as Box<dyn Fn(&[u8])>
    });
    let own = Inside {
        probe: args.guest.probe,
        own_init: args.initrd.is_none(),
        no_config,
    };
    let signals = (triggers, signals);
    follow(
        machine.as_mut(),
        signals,
        "capture run",
        &output,
        echo,
        &own,
    )
}

/// A device or a pipe would be read for ever.
fn check_file(what: &str, path: &Path) -> Result<(), String> {
    let cannot = |why: &dyn std::fmt::Display| {
        format!(
            "cannot read the {what} {} (--{what}): {why}",
            path.display()
        )
    };
    let meta = std::fs::metadata(path).map_err(|e| cannot(&e))?;
    match (meta.is_file(), meta.len()) {
        (false, _) => Err(cannot(&"it is no regular file")),
        (true, 0) => Err(cannot(&"it is empty")),
        (true, _) => Ok(()),
    }
}

fn kernel(args: &GuestArgs) -> Result<KernelFile, Failure> {
    let config = args.kernel_config.as_deref();
    KernelFile::open(&args.kernel, config, !args.modules.is_empty()).map_err(failure(LOST))
}

/// Writes an initramfs.
pub(crate) fn initrd(args: &InitrdArgs) -> Result<(), Failure> {
    guest::check_words(&args.guest).map_err(failure(USAGE))?;
    check_file("kernel", &args.guest.kernel).map_err(failure(LOST))?;
    may_write(&args.output, &[&args.guest.kernel], args.force).map_err(failure(OUTPUT))?;
    let kernel = kernel(&args.guest)?;
    let bytes = initramfs(&args.guest, &kernel).map_err(failure(LOST))?;
    let existing = Existing::forced(args.force);
    let write = || {
        let mut file = AtomicFile::create(&args.output, existing)?;
        file.file().write_all(&bytes)?;
        file.commit()
    };
    let output = args.output.display();
    write().map_err(|e: io::Error| failure(OUTPUT)(format!("{output}: {e}")))
}

/// Watches a guest that is running already; the exit code.
pub(crate) fn attach(args: &AttachArgs) -> Result<u8, Failure> {
    let output = Output::new(&args.to, "guest", &[], args.when.dual)?;
    let (mut triggers, signals) = triggers(&args.when)?;
    triggers.goes_on = true;
    triggers.at_once = args.now;
    let mut machine = choose::attach(&args.qmp)
        .map_err(|e| failure(LOST)(format!("{}: {e}", args.qmp.display())))?;
    let inside = Inside {
        probe: true,
        own_init: false,
        no_config: false,
    };
    let signals = (triggers, signals);
    follow(
        machine.as_mut(),
        signals,
        "capture attach",
        &output,
        None,
        &inside,
    )
}

/// What is known of the inside of a guest.
struct Inside {
    /// The probe may be there.
    probe: bool,
    /// Its first process is ours.
    own_init: bool,
    /// We have looked for its kernel's configuration, and there was none.
    no_config: bool,
}

/// A line for whoever watches, or reads the log of a CI job.
fn say(line: &str) {
    // Without a reader the run is worth as much.
    let _ = writeln!(io::stderr(), "capture: {}", Escaped(line));
}

/// Follows a guest to its end, and writes what there is.
fn follow(
    machine: &mut dyn Machine,
    (triggers, signals): (Triggers, Signals),
    tool: &'static str,
    output: &Output<'_>,
    echo: Echo<'_>,
    inside: &Inside,
) -> Result<u8, Failure> {
    let mut eyes = Live::new(inside.probe);
    let timeout = triggers.timeout;
    let mut coordinator = Coordinator::new(triggers, &mut eyes, Box::new(say), echo);
    let outcome = coordinator.follow(machine);
    let writing = signals.writing();
    // What is to be written is ours by now; nothing of the guest has to run, or to stand, for it.
    machine.leave();
    let (kernel, why_not) = match coordinator.found() {
        Ok(found) => (Some(found.clone()), String::new()),
        Err(why) => (None, why.to_owned()),
    };
    let (kind, mut detail) = machine.describe();
    if let Some(off) = &coordinator.off {
        say(off);
        detail = format!("{detail}; {off}");
    }
    let guest = Guest {
        machine: (kind, detail),
        tool,
        vcpus: machine.vcpus(),
        kernel,
        why_not,
        console: coordinator.console_tail().to_vec(),
        suppressed: coordinator.suppressed,
        own_init: inside.own_init,
        notes: Vec::new(),
    };
    drop(coordinator);
    let guest = Guest {
        notes: eyes.timeline().into_iter().collect(),
        ..guest
    };
    finish(
        output,
        &guest,
        outcome,
        (timeout, inside.no_config),
        &writing,
    )
}

fn triggers(args: &WhenArgs) -> Result<(Triggers, Signals), Failure> {
    let triggers = Triggers {
        moment: args.moment,
        early: args.dual,
        goes_on: false,
        at_once: false,
        sample_every: (!args.no_monitor).then_some(SAMPLE_EVERY),
        console: Vec::new(),
        after: args.after.map(Duration::from_secs),
        timeout: args.timeout.map(Duration::from_secs),
        now: Arc::new(AtomicBool::new(false)),
        end: Arc::new(AtomicBool::new(false)),
    };
    flag::register(SIGUSR1, Arc::clone(&triggers.now))
        .and_then(|_| Signals::new(Arc::clone(&triggers.end)))
        .map(|signals| (triggers, signals))
        .map_err(|e| failure(LOST)(format!("signals: {e}")))
}

fn initramfs(args: &GuestArgs, kernel: &KernelFile) -> Result<Vec<u8>, String> {
    let Some(scheduler) = &args.scheduler else {
        return Err("--scheduler is missing: the program, or the BPF object, to run".into());
    };
    let wanted = Wanted {
        scheduler,
        workloads: &args.workload,
        files: &args.files,
        root: args.sysroot.as_deref(),
        bpftool: args.bpftool.as_deref(),
        probe: args.probe,
        modules: &args.modules,
        kernel,
    };
    guest::initramfs(&wanted)
}

/// Writes what a run has left, and says how it ended.
fn finish(
    output: &Output<'_>,
    guest: &Guest,
    outcome: Outcome,
    (timeout, no_config): (Option<Duration>, bool),
    writing: &Writing,
) -> Result<u8, Failure> {
    let bar = progress_bar();
    let show = |progress: WriteProgress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
    };
    let target = Target {
        output: &output.path,
        existing: output.existing(),
        level: output.args.level,
        max_size: output.args.max_size,
        exclude: output.args.exclude,
        show: &show,
        writing,
    };
    // Whatever comes of the files, it is known by then what happened.
    if let Some(late) = &outcome.late {
        say(&what_happened(late));
    }
    let fired = outcome.late.as_ref().map(|late| late.fired.clone());
    let (saved, failed) = save::save(guest, &outcome, &target);
    bar.finish_and_clear();
    tell_saved(&saved, fired.as_ref());
    if !failed.is_empty() {
        if saved.is_empty() {
            let early = match &outcome.early {
                Early::Taken { snapshot, .. } => Some(snapshot.as_ref()),
                _ => None,
            };
            let shown = outcome.late.as_ref().or(early);
            for line in shown
                .iter()
                .flat_map(|image| unsaved_headline(guest, image))
            {
                say(&line);
            }
        }
        let sentences: Vec<String> = failed.into_iter().map(|f| f.sentence).collect();
        let code = if saved.is_empty() { OUTPUT } else { INCOMPLETE };
        return Err(failure(code)(sentences.join("; ")));
    }
    if let Some((file, less)) = saved
        .iter()
        .find_map(|file| Some((file, file.less.as_ref()?)))
    {
        let path = file.path.display();
        return Err(failure(INCOMPLETE)(format!("{path}: {less}")));
    }
    let also = match saved.first() {
        Some(file) if fired.is_none() => {
            format!("; the early image is in {}", file.path.display())
        }
        _ => "; no capture".into(),
    };
    match outcome.end {
        End::Late if saved.iter().any(|file| file.degraded) => {
            let images = outcome.late.iter();
            let faults = images.flat_map(|image| image.frozen.faults.clone());
            let mut faults: Vec<String> = faults.collect();
            if let Early::Taken { snapshot, .. } = &outcome.early {
                let early = snapshot.frozen.faults.iter();
                faults.extend(early.map(|why| format!("the early image: {why}")));
            }
            Err(failure(INCOMPLETE)(format!(
                "degraded: {}{}",
                faults.join("; "),
                no_kernel(guest)
            )))
        }
        End::Late if fired.is_none_or(|fired| fired.is_failure()) => Ok(FAILED),
        // Whoever asked for it wanted a guest that runs.
        End::Late if guest.kernel.is_none() => Err(failure(INCOMPLETE)(format!(
            "the capture was taken before the guest's kernel was found: {}",
            guest.why_not
        ))),
        End::Late => Ok(0),
        End::Ended {
            how,
            said,
            powered_off,
        } => {
            let said = said.unwrap_or_default();
            if let Some(codes) = said.strip_prefix(guest::init::DONE) {
                if codes.split(", ").all(|code| code == guest::init::OK) {
                    say(&format!("nothing failed{also}"));
                    return Ok(0);
                }
                return Err(failure(WORKLOAD)(format!(
                    "nothing failed but a workload: {codes}{also}{}",
                    console_end(&guest.console)
                )));
            }
            // Someone else's guest, or init, that was shut down in order.
            if said == "scheduler detached" || (!guest.own_init && powered_off) {
                let how = if said.is_empty() { &how } else { &said };
                say(&format!("nothing failed ({how}){also}"));
                return Ok(0);
            }
            let last = match said.as_str() {
                "" => String::new(),
                said => format!("; its init said last: {said}"),
            };
            let config = match said.contains("before it was attached") && no_config {
                true => {
                    "; the kernel's configuration, which some schedulers ask for, was not found beside the kernel: --kernel-config FILE names it"
                }
                false => "",
            };
            Err(failure(NO_SCHEDULER)(format!(
                "the guest ended by itself, {how}{last}{config}{also}{}",
                console_end(&guest.console)
            )))
        }
        End::TimeOver => Err(failure(ENDED)(format!(
            "nothing failed in {} s (--timeout){also}{}",
            timeout.unwrap_or_default().as_secs(),
            no_kernel(guest)
        ))),
        End::Interrupted => Err(failure(ENDED)(format!(
            "ended by a signal{also}{}",
            no_kernel(guest)
        ))),
        End::Lost(why) => Err(failure(LOST)(format!(
            "{why}{also}{}",
            console_end(&guest.console)
        ))),
    }
}

/// Why a failure would not have been seen.
fn no_kernel(guest: &Guest) -> String {
    match &guest.kernel {
        Some(_) => String::new(),
        None => format!("; the guest's kernel was not found: {}", guest.why_not),
    }
}

/// Names the files, and what the first one says.
fn tell_saved(saved: &[Saved], fired: Option<&Fired>) {
    let mut out = io::stdout().lock();
    for (index, file) in saved.iter().enumerate() {
        let why = match fired.filter(|_| index == 0) {
            Some(fired) => format!("{} ({}), ", fired.kind, Escaped(&fired.detail)),
            None => "the early image, ".into(),
        };
        // Whoever closed standard output still gets the exit code.
        let _ = writeln!(
            out,
            "{}: {}{} MiB",
            file.path.display(),
            why,
            file.summary.file_bytes >> 20
        );
    }
    for line in saved
        .first()
        .into_iter()
        .flat_map(|file| headline(Image::open(&file.path).map_err(|e| e.to_string())))
    {
        let _ = writeln!(out, "  {}", Escaped(&line));
    }
}

/// Why a late image was taken, and when.
fn what_happened(late: &Snapshot) -> String {
    let fired = &late.fired;
    let taken = late.timings.taken_unix_ns.map(Duration::from_nanos);
    let taken = taken.and_then(|since| UNIX_EPOCH.checked_add(since));
    let at = taken.map(|at| format!(", {}", humantime::format_rfc3339_seconds(at)));
    let since = late.timings.guest_uptime_ns.map(Duration::from_nanos);
    let since = since.map(|since| format!(", {} s after the start", since.as_secs()));
    format!(
        "{}: {}{}{}",
        fired.kind,
        fired.detail,
        at.unwrap_or_default(),
        since.unwrap_or_default()
    )
}

/// What an image says that no file holds.
fn unsaved_headline(guest: &Guest, snapshot: &Snapshot) -> Vec<String> {
    let Some(found) = &guest.kernel else {
        return Vec::new();
    };
    let memory = snapshot.memory.physical().map_err(|e| e.to_string());
    headline(memory.map(|memory| Image::live(memory, found.vmcoreinfo.clone())))
}

/// The last lines of the console, as the end of a message.
fn console_end(console: &[u8]) -> String {
    let text = without_colours(&String::from_utf8_lossy(console));
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

/// A terminal's control sequences (`ESC [ … letter`) and carriage returns would be shown as they
/// are.
fn without_colours(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, sequence)) = rest.split_once("\x1b[") {
        out.push_str(before);
        let end = sequence.find(|c: char| ('@'..='~').contains(&c));
        rest = end
            .and_then(|end| sequence.get(end + 1..))
            .unwrap_or_default();
    }
    out.push_str(rest);
    out.replace('\r', "")
}

/// What an image says, in a few lines.
fn headline(image: Result<Image, String>) -> Vec<String> {
    let report = image
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_not_read_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vmlinuz");
        let said = |path: &Path| check_file("kernel", path);
        let gone = said(&file).unwrap_err();
        assert!(gone.starts_with("cannot read the kernel /"), "{gone}");
        assert!(gone.contains("/vmlinuz (--kernel): No such file"), "{gone}");
        std::fs::write(&file, b"").unwrap();
        assert!(said(&file).unwrap_err().ends_with("it is empty"));
        std::fs::write(&file, b"x").unwrap();
        assert_eq!(said(&file), Ok(()));
        for other in [dir.path(), Path::new("/dev/zero")] {
            assert!(said(other).unwrap_err().ends_with("it is no regular file"));
        }
    }
}
