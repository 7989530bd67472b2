//! Booted kernels, for `tests/guest/nested.py --case cycles` and `tests/bench/kvm.py`: which kernel
//! and initramfs is told by the environment.

use super::*;

/// Time for a kernel to come to its init, on a machine that is itself emulated.
const BOOT: Duration = Duration::from_secs(300);
const SOON: Duration = Duration::from_secs(60);
const CYCLES: usize = 100;
const RUNS: Duration = Duration::from_millis(40);
const STANDS: Duration = Duration::from_millis(60);

/// What the guest tells: seconds since its boot, and loops of its work.
#[derive(Debug, Clone, Copy)]
struct Tick {
    uptime: f64,
    work: u64,
    /// When we read it.
    at: Instant,
}

/// The last of the lines `tick UPTIME WORK` since the last call; all that there are must ascend.
fn tick(machine: &mut Kvm, before: Option<Tick>) -> Option<Tick> {
    let mut last = None;
    for line in machine.messages() {
        let words: Vec<&str> = line.split(' ').collect();
        let ["tick", uptime, work] = words[..] else {
            panic!("the guest said {line:?}");
        };
        let tick = Tick {
            uptime: uptime.parse().unwrap(),
            work: work.parse().unwrap(),
            at: Instant::now(),
        };
        if let Some(before) = last.or(before) {
            assert!(
                tick.uptime >= before.uptime && tick.work > before.work,
                "{before:?}, then {tick:?}"
            );
        }
        last = Some(tick);
    }
    last
}

fn next(machine: &mut Kvm, before: Option<Tick>, within: Duration) -> Tick {
    let end = Instant::now() + within;
    loop {
        if let Some(tick) = tick(machine, before) {
            return tick;
        }
        let console = machine.devices.console.look(|text| {
            let from = text.len().saturating_sub(1500);
            String::from_utf8_lossy(&text[from..]).into_owned()
        });
        assert!(Instant::now() < end, "no tick within {within:?}: {console}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn config(task: &str) -> Config {
    let file = |name: &str| std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set"));
    Config {
        vcpus: 2,
        memory_bytes: 256 << 20,
        nodes: 1,
        kernel: file("SCX_POSTMORTEM_KERNEL").into(),
        initrd: file("SCX_POSTMORTEM_INITRD").into(),
        append: format!("console=ttyS0 panic=0 tsc=reliable no_timer_check {task}"),
        unparked: None,
    }
}

/// The machine alone, as a QEMU is that nobody watches: tells when the guest's init has spoken.
#[test]
#[ignore = "needs /dev/kvm and a kernel; tests/bench/kvm.py runs it"]
fn a_kernel_comes_to_its_init() {
    const UP: &[u8] = b"inner: up";
    let start = Instant::now();
    let machine = Kvm::start(&config("quiet")).unwrap();
    let started = start.elapsed();
    let up = |text: &[u8]| memchr::memmem::find(text, UP).is_some();
    while !machine.devices.console.look(up) {
        assert!(start.elapsed() < BOOT, "no init within {BOOT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    println!(
        "inner: up in {:.2?}, started in {started:.2?}",
        start.elapsed()
    );
}

#[test]
#[ignore = "needs /dev/kvm and a kernel; tests/guest/nested.py runs it"]
fn a_guest_under_load_goes_on_after_a_hundred_freezes() {
    let mut machine = Kvm::start(&config("task=ticks")).unwrap();
    let first = next(&mut machine, None, BOOT);
    let before = next(&mut machine, Some(first), SOON);
    let (mut stood, mut freezes) = (Duration::ZERO, Vec::new());
    let (mut seen, mut worked) = (before, 0);
    for cycle in 0..CYCLES {
        std::thread::sleep(RUNS);
        let start = Instant::now();
        let frozen = machine.freeze(SOON);
        let frozen_at = Instant::now();
        freezes.push(frozen_at - start);
        assert_eq!(frozen.faults, [""; 0], "cycle {cycle}");
        assert_eq!(frozen.vcpus.len(), 2);
        // What it has told by now; while it stands there is no more.
        if let Some(tick) = tick(&mut machine, Some(seen)) {
            (seen, worked) = (tick, worked + 1);
        }
        std::thread::sleep(STANDS);
        assert!(
            tick(&mut machine, Some(seen)).is_none(),
            "it tells something while it stands"
        );
        machine.resume().unwrap();
        stood += frozen_at.elapsed();
    }
    // The first may be older than the last freeze.
    let last = next(&mut machine, Some(seen), SOON);
    let last = next(&mut machine, Some(last), SOON);
    freezes.sort();
    let host = last.at - before.at;
    let guest = Duration::from_secs_f64(last.uptime - before.uptime);
    let expected = if machine.shifts { host - stood } else { host };
    println!(
        "cycles: {CYCLES} freezes, median {:.1?}, longest {:.1?}; the host's clock {host:.2?}, of which it stood {stood:.2?}; the guest's {guest:.2?}, expected {expected:.2?}; its work went on from {} to {} loops, seen in {worked} of the cycles",
        freezes[CYCLES / 2],
        freezes[CYCLES - 1],
        before.work,
        last.work,
    );
    assert!(
        guest.abs_diff(expected) < expected / 20 + Duration::from_millis(300),
        "{guest:?} passed in the guest, {expected:?} were expected"
    );
    let console = machine.console();
    let console = String::from_utf8_lossy(&console);
    for complaint in [
        "lockup",
        "rcu: INFO",
        "self-detected",
        "BUG:",
        "Oops",
        "unstable",
        "backwards",
    ] {
        assert!(!console.contains(complaint), "{complaint}: {console}");
    }
}
