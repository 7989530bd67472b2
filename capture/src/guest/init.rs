//! The guest's first process: this very program, started by the guest's kernel as `/init`.
//!
//! It mounts what schedulers need, starts the scheduler and, once that is attached, the workload,
//! and powers the guest off when either has ended. Lines that begin with `@` on the second serial
//! port are for the host.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use rustix::system::{RebootCommand, finit_module, reboot};

use super::{PLAN, Plan, probe};

/// How init's last word begins when all workloads have ended.
pub(crate) const DONE: &str = "workloads ended: ";
/// How a workload has ended that did not fail.
pub(crate) const OK: &str = "code 0";
/// How long a scheduler may take to attach: under software emulation the verifier needs minutes.
const ATTACH: Duration = Duration::from_secs(900);
/// How long it may take to end when asked to.
const END: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(50);

/// Whether this process is a guest's init.
pub(crate) fn is_init() -> bool {
    std::process::id() == 1 && Path::new(PLAN).exists()
}

/// What the host is told.
struct Host(Option<File>);

impl Host {
    fn say(&mut self, line: &str) {
        if let Some(port) = &mut self.0 {
            // Without a host that listens the guest goes on all the same.
            let _ = port.write_all(format!("@{line}\n").as_bytes());
        }
    }
}

/// Runs the guest to its end and powers it off. Comes back only when that fails.
pub(crate) fn run() {
    mount_all();
    let mut host = Host(OpenOptions::new().write(true).open("/dev/ttyS1").ok());
    let how = match plan().and_then(|plan| follow(&plan, &mut host)) {
        Ok(how) => how,
        Err(why) => format!("failed {why}"),
    };
    host.say(&how);
    // The line has to leave the serial port before the machine does.
    if let Some(port) = &host.0 {
        let _ = rustix::termios::tcdrain(port);
    }
    let _ = reboot(RebootCommand::PowerOff);
    let _ = reboot(RebootCommand::Restart);
}

fn mount_all() {
    let mounts = [
        ("proc", "/proc", "proc"),
        ("sysfs", "/sys", "sysfs"),
        ("devtmpfs", "/dev", "devtmpfs"),
        ("tmpfs", "/tmp", "tmpfs"),
        ("tmpfs", "/run", "tmpfs"),
        ("bpf", "/sys/fs/bpf", "bpf"),
        ("cgroup2", "/sys/fs/cgroup", "cgroup2"),
        ("debugfs", "/sys/kernel/debug", "debugfs"),
        ("tracefs", "/sys/kernel/tracing", "tracefs"),
    ];
    for (source, target, kind) in mounts {
        // A kernel without one of them still runs a scheduler that does not ask for it.
        let _ = mount(
            source,
            target,
            kind,
            MountFlags::empty(),
            None::<&std::ffi::CStr>,
        );
    }
    let controllers = "+cpu +memory";
    let _ = std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", controllers);
}

fn plan() -> Result<Plan, String> {
    let text = std::fs::read(PLAN).map_err(|e| format!("{PLAN}: {e}"))?;
    serde_json::from_slice(&text).map_err(|e| format!("{PLAN}: {e}"))
}

fn state() -> String {
    let text = std::fs::read_to_string("/sys/kernel/sched_ext/state");
    text.unwrap_or_default().trim().to_owned()
}

fn start(words: &[String]) -> Result<Child, String> {
    let (name, arguments) = words.split_first().ok_or("an empty command")?;
    Command::new(name)
        .args(arguments)
        .env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin")
        .env("HOME", "/root")
        .stdin(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot start {name}: {e}"))
}

/// A process that init waits for.
struct Running {
    pid: i32,
    /// How it ended.
    ended: Option<String>,
}

impl Running {
    fn new(child: &Child) -> Self {
        Self {
            pid: i32::try_from(child.id()).unwrap_or(0),
            ended: None,
        }
    }
}

/// Collects every process that has ended, also orphans: that is an init's work.
fn reap(watched: &mut [Running]) {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        let how = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("code {code}"),
            (_, Some(signal)) => format!("signal {signal}"),
            _ => continue,
        };
        let pid = pid.as_raw_nonzero().get();
        for running in watched.iter_mut().filter(|running| running.pid == pid) {
            running.ended = Some(how.clone());
        }
    }
}

fn follow(plan: &Plan, host: &mut Host) -> Result<String, String> {
    if !Path::new("/sys/kernel/sched_ext").exists() {
        return Err("this kernel has no sched_ext".into());
    }
    for module in &plan.modules {
        let loaded = File::open(module).and_then(|file| Ok(finit_module(file, c"", 0)?));
        // A module that is there already is as good as one that was loaded.
        if let Err(why) = loaded
            && why.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(format!("to load {module}: {why}"));
        }
    }
    if plan.probe {
        host.say(&match probe::load() {
            Ok(attached) => format!("probe attached to {attached}"),
            Err(why) => format!("probe failed: {why}"),
        });
    }
    let scheduler = start(&plan.scheduler)?;
    let mut watched = vec![Running::new(&scheduler)];
    let since = Instant::now();
    while state() != "enabled" {
        reap(&mut watched);
        let ended = watched.first().and_then(|s| s.ended.clone());
        if let Some(how) = ended.filter(|how| !(plan.pinned && how == OK)) {
            return Ok(format!("scheduler {how} before it was attached"));
        }
        if since.elapsed() > ATTACH {
            return Err(format!(
                "no scheduler was attached in {} s",
                ATTACH.as_secs()
            ));
        }
        thread::sleep(TICK);
    }
    host.say("attached");
    for words in &plan.workloads {
        watched.push(Running::new(&start(words)?));
    }
    if watched.len() > 1 {
        host.say("workload started");
    }
    let mut told = vec![false; watched.len()];
    loop {
        reap(&mut watched);
        let commands = std::iter::once(&plan.scheduler).chain(&plan.workloads);
        for ((running, told), words) in watched.iter().zip(&mut told).zip(commands) {
            if let Some(how) = running.ended.as_ref().filter(|_| !*told) {
                *told = true;
                if plan.pinned && words == &plan.scheduler && how == OK {
                    // It has registered the scheduler, which stays.
                    continue;
                }
                host.say(&format!("{} ended with {how}", words.join(" ")));
            }
        }
        let (scheduler, workloads) = watched.split_first().ok_or("nothing to wait for")?;
        match &scheduler.ended {
            Some(how) if !plan.pinned => return Ok(format!("scheduler {how}")),
            _ if plan.pinned && state() == "disabled" => return Ok("scheduler detached".into()),
            _ => {}
        }
        if !workloads.is_empty() && workloads.iter().all(|w| w.ended.is_some()) {
            let how = workloads.iter().zip(&plan.workloads).map(|(w, words)| {
                let how = w.ended.as_deref().unwrap_or_default();
                match how {
                    OK => how.to_owned(),
                    how => format!("{how} ({})", words.join(" ")),
                }
            });
            let how: Vec<String> = how.collect();
            let how = how.join(", ");
            if !plan.pinned {
                end(&mut watched);
            }
            return Ok(format!("{DONE}{how}"));
        }
        thread::sleep(TICK);
    }
}

/// Asks the scheduler to end, as a person would with control-C.
fn end(watched: &mut [Running]) {
    let pid = watched.first().and_then(|s| Pid::from_raw(s.pid));
    if let Some(pid) = pid {
        let _ = kill_process(pid, Signal::INT);
    }
    let since = Instant::now();
    while since.elapsed() < END && watched.first().is_some_and(|s| s.ended.is_none()) {
        reap(watched);
        thread::sleep(TICK);
    }
}
