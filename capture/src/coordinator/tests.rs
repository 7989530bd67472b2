//! Every way through the coordinator, on a machine that does what a script says.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;

use scx_postmortem_format::capture::VcpuState;

use super::*;
use crate::machine::Mapping;
use crate::machine::memory::Backing;
use crate::watch::{Ages, LatchState, Seen};

const ENTRY: u64 = 0xffff_ffff_8120_0000;
const BACK: u64 = 0xffff_ffff_8130_0042;
const LOG: u64 = 0xffff_ffff_8110_0000;
const KIND: u64 = 0xffff_8880_0012_3400;

/// One turn of the guest: what the machine tells, and what is to be seen in memory from then on.
struct Turn {
    event: Result<Option<Event>, MachineError>,
    seen: Option<Seen>,
    console: &'static str,
    message: &'static str,
    then: Option<Box<dyn Fn()>>,
}

fn turn(event: Option<Event>, seen: Option<Seen>) -> Turn {
    Turn {
        event: Ok(event),
        seen,
        console: "",
        message: "",
        then: None,
    }
}

fn nothing(seen: Seen) -> Turn {
    turn(None, Some(seen))
}

fn stopped(at: Stop) -> Turn {
    stopped_with(at, 0)
}

/// At the entry of a function with this first argument.
fn stopped_with(at: Stop, rdi: u64) -> Turn {
    let rsp = 0x1000;
    turn(Some(Event::Stopped { at, rsp, rdi }), None)
}

fn ended() -> Turn {
    let how = "shut down (guest-shutdown)".to_owned();
    let powered_off = true;
    turn(Some(Event::Ended { how, powered_off }), None)
}

fn says(console: &'static str) -> Turn {
    Turn {
        console,
        ..turn(None, None)
    }
}

fn vcpu(number: u32) -> VcpuState {
    VcpuState {
        vcpu: number,
        ..VcpuState::default()
    }
}

fn scheduler(exit_kind: i64) -> Scheduler {
    Scheduler {
        at: 0xffff_8880_0012_3000,
        name: "foo".into(),
        exit_kind,
        exit_name: format!("kind {exit_kind}"),
        exit_kind_at: KIND,
        failed: exit_kind >= 1024,
        ..Scheduler::default()
    }
}

fn with(exit_kind: i64) -> Seen {
    Seen {
        scheduler: Some(scheduler(exit_kind)),
        latch: LatchState::NotTriggered,
        ..Seen::default()
    }
}

fn aged(age: u64) -> Seen {
    Seen {
        oldest_age: Some(age),
        half_timeout: Some(2000),
        ..with(0)
    }
}

fn hung() -> MachineError {
    MachineError::Late {
        what: "an answer".into(),
        seconds: 20,
    }
}

/// What the machine was told, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Stops(Vec<Stop>),
    Freeze,
    Resume,
}

struct Fake {
    script: VecDeque<Turn>,
    memory: GuestMemory,
    file: File,
    told: Vec<Told>,
    /// What stops it can do.
    can: fn(&Stop) -> bool,
    /// It does not resume any more once this many times are over.
    resumes: usize,
    /// It takes no stops any more once this many times are over.
    takes: usize,
    freezes: VecDeque<Frozen>,
    seen: std::rc::Rc<std::cell::RefCell<Option<Seen>>>,
    console: &'static str,
    message: &'static str,
    stands: bool,
    live: bool,
    stood: bool,
    died: Option<&'static str>,
    /// How long each wait was to be.
    waits: Vec<Duration>,
    /// It waits as long as that.
    sleeps: bool,
}

struct FakeEyes {
    seen: std::rc::Rc<std::cell::RefCell<Option<Seen>>>,
    found: Result<Found, String>,
    failure: Option<Scheduler>,
    back: Option<u64>,
    ages: Option<(u64, u64)>,
    /// The last failure in the kernel's log at each time that it is asked for; the last stays.
    log: std::cell::RefCell<VecDeque<Option<(u64, String)>>>,
    uptimes: std::cell::RefCell<VecDeque<Duration>>,
    /// Whether each search was to be for a kernel that ticks.
    asked: Vec<bool>,
    /// When samples were taken.
    samples: Vec<Duration>,
}

impl Eyes for FakeEyes {
    fn find(&mut self, _: &GuestMemory, ticks: bool) -> Result<Found, String> {
        self.asked.push(ticks);
        self.found.clone()
    }

    fn look(&mut self, _: bool) -> Option<Seen> {
        self.seen.borrow().clone()
    }

    fn ages(&self) -> Option<Ages> {
        let seen = self.seen.borrow();
        let seen = seen.as_ref();
        let ages = self
            .ages
            .or_else(|| seen.and_then(|seen| seen.oldest_age.zip(seen.half_timeout)));
        ages.map(|(age, half)| Ages {
            age,
            half,
            task: Some("victim[7]".into()),
            hz: Some(250),
            ..Ages::default()
        })
    }

    fn failure(&self) -> Option<Scheduler> {
        self.failure.clone()
    }

    fn logged(&self) -> Option<(u64, String)> {
        let mut log = self.log.borrow_mut();
        match log.len() {
            0 => None,
            1 => log[0].clone(),
            _ => log.pop_front().unwrap(),
        }
    }

    fn uptime(&self) -> Option<Duration> {
        self.uptimes.borrow_mut().pop_front()
    }

    fn sample(&mut self, at: Duration) {
        self.samples.push(at);
    }

    fn return_address(&self, _: u64) -> Option<u64> {
        self.back
    }
}

impl Machine for Fake {
    fn describe(&self) -> (&'static str, String) {
        ("fake", "for tests".into())
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn is_live(&self) -> bool {
        self.live
    }

    fn refresh(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn vcpus(&self) -> u32 {
        2
    }

    fn wait(&mut self, wait: Duration) -> Result<Option<Event>, MachineError> {
        self.waits.push(wait);
        if self.sleeps {
            std::thread::sleep(wait);
        }
        let turn = self
            .script
            .pop_front()
            .expect("the coordinator went on after the script's end");
        if turn.seen.is_some() {
            *self.seen.borrow_mut() = turn.seen;
        }
        self.console = turn.console;
        self.message = turn.message;
        if let Some(then) = turn.then {
            then();
        }
        if let Ok(Some(Event::Stopped { .. })) = turn.event {
            self.stands = true;
        }
        turn.event
    }

    fn stop_at(&mut self, stops: &[Stop]) -> Result<Vec<Stop>, MachineError> {
        self.takes = self.takes.checked_sub(1).ok_or_else(hung)?;
        let can: Vec<Stop> = stops
            .iter()
            .copied()
            .filter(|stop| (self.can)(stop))
            .collect();
        self.told.push(Told::Stops(can.clone()));
        Ok(can)
    }

    fn freeze(&mut self, _: Duration) -> Frozen {
        self.told.push(Told::Freeze);
        self.stands = true;
        self.freezes.pop_front().unwrap_or_else(|| Frozen {
            vcpus: vec![vcpu(0), vcpu(1)],
            ..Frozen::default()
        })
    }

    fn stood(&mut self) -> bool {
        self.stood
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        assert!(self.stands, "resumed while it ran");
        self.resumes = self.resumes.checked_sub(1).ok_or_else(hung)?;
        self.told.push(Told::Resume);
        self.stands = false;
        Ok(())
    }

    fn died(&mut self) -> Option<String> {
        self.died.map(str::to_owned)
    }

    fn leave(&mut self) {}

    fn console(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.console).into()
    }

    fn messages(&mut self) -> Vec<String> {
        let message = std::mem::take(&mut self.message);
        message.lines().map(str::to_owned).collect()
    }
}

struct Rig {
    machine: Fake,
    eyes: FakeEyes,
    triggers: Triggers,
}

/// A guest with sched_ext whose scheduler `foo` will have failed with a stall, on a machine that
/// can do all stops.
fn rig(script: Vec<Turn>) -> Rig {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(&[7; 4096], 0).unwrap();
    let map = vec![Mapping {
        gpa: 0,
        bytes: 1 << 20,
        offset: 0,
    }];
    let seen = std::rc::Rc::new(std::cell::RefCell::new(None));
    let machine = Fake {
        script: script.into(),
        memory: GuestMemory::new(file.try_clone().unwrap(), map),
        file,
        told: Vec::new(),
        can: |_| true,
        resumes: usize::MAX,
        takes: usize::MAX,
        freezes: VecDeque::new(),
        seen: seen.clone(),
        console: "",
        message: "",
        stands: false,
        live: true,
        stood: true,
        died: None,
        waits: Vec::new(),
        sleeps: false,
    };
    let eyes = FakeEyes {
        seen,
        found: Ok(Found {
            release: "7.3.4".into(),
            has_sched_ext: true,
            dump_entry: Some(ENTRY),
            ..Found::default()
        }),
        failure: Some(scheduler(1026)),
        back: Some(BACK),
        ages: None,
        log: VecDeque::new().into(),
        uptimes: VecDeque::new().into(),
        asked: Vec::new(),
        samples: Vec::new(),
    };
    let triggers = Triggers::default();
    Rig {
        machine,
        eyes,
        triggers,
    }
}

impl Rig {
    fn run(&mut self) -> (Outcome, bool) {
        let triggers = self.triggers.clone();
        let tell = Box::new(|_: &str| {});
        let mut coordinator = Coordinator::new(triggers, &mut self.eyes, tell, None);
        let outcome = coordinator.follow(&mut self.machine);
        assert!(
            self.machine.script.is_empty(),
            "the script was not played to its end"
        );
        (outcome, coordinator.suppressed)
    }

    fn late(&mut self) -> Snapshot {
        let (outcome, _) = self.run();
        assert_eq!(outcome.end, End::Late);
        outcome.late.unwrap()
    }
}

#[test]
fn the_moment_is_the_return_of_the_dump() {
    let mut rig = rig(vec![
        nothing(Seen::default()),
        nothing(with(0)),
        stopped(Stop::Execute(ENTRY)),
        nothing(with(1026)),
        stopped(Stop::Execute(BACK)),
    ]);
    let late = rig.late();
    assert_eq!(late.fired.kind, "scx_exit");
    assert_eq!(late.fired.by, Some("breakpoint"));
    assert_eq!(late.fired.exit_kind, Some(1026));
    assert!(
        late.fired
            .detail
            .contains("foo: kind 1026 (scx_dump_state has returned)")
    );
    // Nothing saw the store itself; it came after the last look at a sound scheduler.
    assert_eq!(late.fired.exit_age, None);
    assert!(late.fired.exit_age_at_most.is_some());
    assert!(late.fired.is_failure() && !late.is_degraded());
    let entry = vec![Stop::Execute(ENTRY)];
    assert_eq!(
        rig.machine.told,
        [
            Told::Stops(entry.clone()),
            Told::Stops(entry),
            Told::Stops(vec![Stop::Execute(BACK)]),
            Told::Resume,
            Told::Freeze,
        ]
    );
}

#[test]
fn a_dump_of_a_sound_scheduler_is_let_pass() {
    let mut rig = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        stopped(Stop::Execute(ENTRY)),
        stopped(Stop::Execute(BACK)),
        ended(),
    ]);
    rig.eyes.failure = None;
    let (outcome, _) = rig.run();
    assert!(matches!(outcome.end, End::Ended { .. }));
    assert!(outcome.late.is_none());
    // The entry is watched again.
    assert_eq!(rig.machine.told.last(), Some(&Told::Resume));
    assert!(
        rig.machine
            .told
            .ends_with(&[Told::Stops(vec![Stop::Execute(ENTRY)]), Told::Resume])
    );
}

#[test]
fn an_unreadable_return_address_makes_the_entry_the_moment() {
    let mut rig = rig(vec![nothing(with(0)), stopped(Stop::Execute(ENTRY))]);
    rig.eyes.back = None;
    let late = rig.late();
    assert!(late.fired.detail.contains("at the entry of scx_dump_state"));
}

#[test]
fn the_store_is_the_moment_when_asked_for() {
    let mut rig = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        stopped(Stop::Write(KIND)),
    ]);
    rig.triggers.moment = Moment::Store;
    let late = rig.late();
    assert_eq!(late.fired.by, Some("watchpoint"));
    assert!(late.fired.watchpoint_hit);
    assert!(late.fired.exit_age.is_some());
    let both = vec![Stop::Write(KIND), Stop::Execute(ENTRY)];
    assert!(rig.machine.told.contains(&Told::Stops(both)));
}

#[test]
fn a_store_that_is_no_failure_is_let_pass() {
    let mut rig = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        stopped(Stop::Write(KIND)),
        nothing(with(64)),
        nothing(with(64)),
        ended(),
    ]);
    rig.triggers.moment = Moment::Store;
    rig.eyes.failure = None;
    let (outcome, suppressed) = rig.run();
    assert!(matches!(outcome.end, End::Ended { .. }));
    assert!(suppressed);
}

#[test]
fn a_timed_dump_knows_when_the_kind_was_stored() {
    let mut rig = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        stopped(Stop::Write(KIND)),
        stopped(Stop::Execute(ENTRY)),
        stopped(Stop::Execute(BACK)),
    ]);
    rig.triggers.moment = Moment::Timed;
    let late = rig.late();
    assert_eq!(late.fired.by, Some("breakpoint"));
    assert!(late.fired.watchpoint_hit && late.fired.exit_age.is_some());
}

#[test]
fn without_breakpoints_the_kind_is_polled() {
    let mut rig = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        nothing(with(1026)),
    ]);
    rig.machine.can = |_| false;
    let late = rig.late();
    assert_eq!(late.fired.by, Some("poll"));
    assert!(late.fired.detail.contains("exit kind seen in memory"));
}

#[test]
fn without_breakpoints_a_machine_that_looks_by_itself_is_asked_to() {
    let mut rig = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        stopped(Stop::Change(KIND)),
    ]);
    rig.machine.can = |stop| matches!(stop, Stop::Change(_));
    let late = rig.late();
    assert_eq!(late.fired.by, Some("poll"));
    assert!(!late.fired.watchpoint_hit);
    let told = &rig.machine.told;
    let change = Told::Stops(vec![Stop::Change(KIND)]);
    assert!(told.ends_with(&[change, Told::Freeze]), "{told:?}");
}

#[test]
fn a_machine_that_looks_by_itself_waits_for_the_reason() {
    const REASON: u64 = KIND + 0x1000;
    let mut rig = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        stopped(Stop::Change(KIND)),
        nothing(with(1026)),
        stopped(Stop::Change(REASON)),
    ]);
    rig.machine.can = |stop| matches!(stop, Stop::Change(_));
    rig.eyes.failure = Some(Scheduler {
        recorded_at: Some(REASON),
        ..scheduler(1026)
    });
    let late = rig.late();
    assert_eq!(late.fired.by, Some("poll"));
    assert!(late.fired.detail.contains("exit record seen in memory"));
    let then = [
        Told::Stops(vec![Stop::Change(KIND)]),
        Told::Stops(vec![Stop::Change(REASON)]),
        Told::Resume,
        Told::Freeze,
    ];
    assert!(rig.machine.told.ends_with(&then), "{:?}", rig.machine.told);
}

#[test]
fn a_change_that_is_no_failure_lets_the_guest_go_on() {
    let mut rig = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        stopped(Stop::Change(KIND)),
        nothing(with(1)),
        ended(),
    ]);
    rig.machine.can = |stop| matches!(stop, Stop::Change(_));
    rig.eyes.failure = None;
    let (outcome, suppressed) = rig.run();
    assert!(matches!(outcome.end, End::Ended { .. }));
    assert!(suppressed);
    assert!(rig.machine.told.ends_with(&[Told::Resume]));
}

#[test]
fn the_latch_of_the_probe_counts_as_a_kind() {
    let latched = Seen {
        latch: LatchState::Triggered,
        ..with(1)
    };
    let mut rig = rig(vec![nothing(with(0)), nothing(with(0)), nothing(latched)]);
    rig.machine.can = |_| false;
    let late = rig.late();
    assert_eq!(late.fired.by, Some("probe latch"));
    assert_eq!(late.fired.latch, Some(LatchState::Triggered));
}

#[test]
fn polling_can_be_asked_for() {
    let mut rig = rig(vec![nothing(with(0)), nothing(with(1025))]);
    rig.triggers.moment = Moment::Poll;
    let late = rig.late();
    assert_eq!(late.fired.by, Some("poll"));
    assert!(
        rig.machine
            .told
            .iter()
            .all(|told| !matches!(told, Told::Stops(s) if !s.is_empty()))
    );
}

#[test]
fn a_kind_without_a_dump_is_not_waited_for_for_ever() {
    let mut script = vec![nothing(with(0)), nothing(with(1026))];
    script.push(Turn {
        then: Some(Box::new(|| std::thread::sleep(GRACE + TICK))),
        ..nothing(with(1026))
    });
    let late = rig(script).late();
    assert_eq!(late.fired.by, Some("poll"));
    assert!(late.fired.detail.contains("dump did not follow"));
}

#[test]
fn torn_looks_are_looked_at_again() {
    let mut rig = rig(vec![turn(None, None), turn(None, None), ended()]);
    let (outcome, _) = rig.run();
    assert!(matches!(outcome.end, End::Ended { .. }));
}

#[test]
fn a_replaced_scheduler_is_followed() {
    let other = Seen {
        scheduler: Some(Scheduler {
            at: 0xffff_8880_0099_0000,
            exit_kind_at: 0xffff_8880_0099_0400,
            ..scheduler(0)
        }),
        ..Seen::default()
    };
    let mut rig = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        nothing(Seen::default()),
        nothing(other),
        stopped(Stop::Write(0xffff_8880_0099_0400)),
    ]);
    rig.triggers.moment = Moment::Store;
    rig.late();
    let stops: Vec<&Told> = rig
        .machine
        .told
        .iter()
        .filter(|t| matches!(t, Told::Stops(_)))
        .collect();
    let entry = Stop::Execute(ENTRY);
    assert_eq!(
        stops,
        [
            &Told::Stops(vec![entry]),
            &Told::Stops(vec![Stop::Write(KIND), entry]),
            &Told::Stops(vec![entry]),
            &Told::Stops(vec![Stop::Write(0xffff_8880_0099_0400), entry]),
        ]
    );
}

#[test]
fn a_dual_run_copies_early_goes_on_and_holds_late() {
    let mut rig = rig(vec![
        nothing(aged(0)),
        nothing(aged(1999)),
        nothing(aged(2000)),
        nothing(aged(3000)),
        stopped(Stop::Execute(ENTRY)),
        stopped(Stop::Execute(BACK)),
    ]);
    rig.triggers.early = true;
    let (outcome, _) = rig.run();
    let Early::Taken {
        snapshot,
        age,
        threshold,
        of: 1,
    } = outcome.early
    else {
        panic!("no early image");
    };
    assert_eq!((age, threshold), (2000, 2000));
    assert_eq!(snapshot.fired.kind, "runnable_age");
    assert_eq!(snapshot.copied, Some(4096));
    assert!(snapshot.timings.pause_ns.is_some() && snapshot.timings.copy_ns.is_some());
    assert!(matches!(outcome.late.unwrap().memory, Memory::Own(_)));
    let freezes = rig.machine.told.iter().filter(|t| **t == Told::Freeze);
    assert_eq!(freezes.count(), 2);
    // The guest went on at once.
    let early = rig
        .machine
        .told
        .iter()
        .position(|t| *t == Told::Freeze)
        .unwrap();
    assert_eq!(rig.machine.told[early + 1], Told::Resume);
}

#[test]
fn an_early_image_is_kept_whatever_comes_after() {
    let early = || vec![nothing(aged(0)), nothing(aged(2500))];
    let stop = |signal: &Arc<AtomicBool>| {
        let signal = signal.clone();
        Turn {
            then: Some(Box::new(move || signal.store(true, Ordering::Relaxed))),
            ..turn(None, None)
        }
    };
    // The guest ends.
    let mut ends = rig(early().into_iter().chain([ended()]).collect());
    ends.triggers.early = true;
    // We are told to end.
    let mut told = rig(early());
    told.machine.script.push_back(stop(&told.triggers.end));
    told.triggers.early = true;
    // The time is over.
    let mut over = rig(early());
    over.machine.script.push_back(Turn {
        then: Some(Box::new(|| std::thread::sleep(Duration::from_millis(300)))),
        ..turn(None, None)
    });
    over.triggers.early = true;
    over.triggers.timeout = Some(Duration::from_millis(250));
    for (rig, end) in [
        (&mut ends, "Ended"),
        (&mut told, "Interrupted"),
        (&mut over, "TimeOver"),
    ] {
        let (outcome, _) = rig.run();
        assert!(
            format!("{:?}", outcome.end).starts_with(end),
            "{:?}",
            outcome.end
        );
        assert!(matches!(outcome.early, Early::Taken { .. }), "{end}");
        assert!(outcome.late.is_none(), "{end}");
        assert!(!rig.machine.stands, "{end}: the guest does not run");
    }
}

#[test]
fn the_peak_is_known_when_there_is_no_early_image() {
    let mut rig = rig(vec![
        nothing(aged(0)),
        nothing(aged(1200)),
        nothing(Seen {
            cut: true,
            ..aged(700)
        }),
        nothing(aged(800)),
        stopped(Stop::Execute(ENTRY)),
        stopped(Stop::Execute(BACK)),
    ]);
    rig.triggers.early = true;
    let (outcome, _) = rig.run();
    let Early::Waiting {
        peak,
        threshold,
        cut,
    } = outcome.early
    else {
        panic!("an early image");
    };
    assert_eq!((peak, threshold, cut), (1200, 2000, true));
}

#[test]
fn a_vcpu_that_does_not_stop_makes_a_degraded_image() {
    let unparked = || Frozen {
        vcpus: vec![vcpu(0)],
        faults: vec!["vCPU 1 did not stop".into()],
        ..Frozen::default()
    };
    let mut late = rig(vec![
        nothing(with(0)),
        stopped(Stop::Execute(ENTRY)),
        stopped(Stop::Execute(BACK)),
    ]);
    late.machine.freezes.push_back(unparked());
    assert!(late.late().is_degraded());

    let mut early = rig(vec![nothing(aged(0)), nothing(aged(2500)), ended()]);
    early.machine.freezes.push_back(unparked());
    early.triggers.early = true;
    let (outcome, _) = early.run();
    let Early::Taken { snapshot, .. } = outcome.early else {
        panic!("no early image");
    };
    assert!(snapshot.is_degraded());
    assert!(!early.machine.stands);
}

#[test]
fn a_lost_machine_leaves_its_memory() {
    let mut rig = rig(vec![nothing(with(0))]);
    rig.machine.script.push_back(Turn {
        event: Err(MachineError::Gone("QEMU went away".into())),
        ..turn(None, None)
    });
    rig.machine.died = Some("QEMU died (signal: 9 (SIGKILL))");
    let late = rig.late();
    assert_eq!(late.fired.kind, "lost");
    assert_eq!(
        late.fired.detail,
        "QEMU died (signal: 9 (SIGKILL)); by then a scheduler had failed, foo: kind 1026"
    );
    assert_eq!(late.frozen.faults, ["QEMU died (signal: 9 (SIGKILL))"]);
    assert!(late.is_degraded() && late.frozen.vcpus.is_empty());
    assert_eq!(late.frozen.cause, Cause::Gone);
    let mut page = [0; 4];
    late.memory.source().read(0, &mut page).unwrap();
    assert_eq!(page, [7; 4]);
}

#[test]
fn a_machine_lost_before_there_is_a_kernel_leaves_nothing() {
    let mut rig = rig(vec![]);
    rig.eyes.found = Err("no VMCOREINFO".into());
    rig.machine.script.push_back(turn(None, None));
    rig.machine.script.push_back(Turn {
        event: Err(MachineError::Gone("QEMU ended".into())),
        ..turn(None, None)
    });
    let (outcome, _) = rig.run();
    assert_eq!(
        outcome.end,
        End::Lost("the guest's machine is gone: QEMU ended".into())
    );
    assert!(outcome.late.is_none());
}

#[test]
fn a_panic_and_a_pattern_on_the_console_are_moments() {
    let mut panics = rig(vec![
        nothing(with(0)),
        says("[ 1.0] Kernel pan"),
        says("ic - not syncing: VFS\r\n"),
    ]);
    let late = panics.late();
    assert_eq!(late.fired.kind, "panic");
    assert_eq!(late.fired.detail, "Kernel panic - not syncing: VFS");
    assert!(late.fired.is_failure());

    let mut pattern = rig(vec![
        nothing(with(0)),
        says("all is well\n"),
        says("x BUG: y\nz"),
    ]);
    pattern.triggers.console = vec!["BUG:".into()];
    let late = pattern.late();
    assert_eq!(
        (late.fired.kind, late.fired.detail.as_str()),
        ("console", "BUG: y")
    );
}

#[test]
fn a_signal_and_a_time_are_moments_and_no_failures() {
    let mut now = rig(vec![nothing(with(0))]);
    now.triggers.now.store(true, Ordering::Relaxed);
    let late = now.late();
    assert_eq!(late.fired.kind, "signal");
    assert!(!late.fired.is_failure());

    let mut after = rig(vec![nothing(with(0))]);
    after.triggers.after = Some(Duration::ZERO);
    assert_eq!(after.late().fired.kind, "time");
}

#[test]
fn samples_are_taken_on_the_way_and_at_the_end() {
    let mut rig = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        stopped(Stop::Execute(ENTRY)),
        stopped(Stop::Execute(BACK)),
    ]);
    rig.triggers.sample_every = Some(Duration::ZERO);
    rig.late();
    // Nothing is sampled before the kernel is found; then at each turn, and once it stands.
    assert_eq!(rig.eyes.samples.len(), 3);
}

#[test]
fn samples_come_when_they_are_due() {
    let every = Duration::from_millis(20);
    let mut script: Vec<Turn> = (0..12).map(|_| nothing(with(0))).collect();
    script.push(ended());
    let mut rig = rig(script);
    rig.triggers.sample_every = Some(every);
    rig.machine.sleeps = true;
    rig.run();
    // The first turns find the kernel and take the first sample; from then on each wait ends when
    // the next one is due.
    let (first, then) = rig.machine.waits.split_at(2);
    assert_eq!(first, [TICK; 2]);
    assert!(then.iter().all(|&wait| wait <= every), "{then:?}");
    let samples = &rig.eyes.samples;
    assert_eq!(samples.len(), 11, "one in each turn");
    // None comes before it is due, and what one was late by is not added to all that follow.
    let since = |at: usize| samples[at].saturating_sub(samples[0]);
    let slack = Duration::from_millis(1);
    assert!((1..11).all(|n| since(n) + slack >= every * u32::try_from(n).unwrap()));
}

#[test]
fn what_is_due_keeps_its_beat_and_is_not_made_up_for() {
    let ms = Duration::from_millis;
    let start = Instant::now();
    let next = |due, now| next(start + ms(due), ms(100), start + ms(now)) - start;
    assert_eq!(next(0, 0), ms(100));
    assert_eq!(next(100, 104), ms(200));
    assert_eq!(next(100, 199), ms(200));
    assert_eq!(next(100, 200), ms(300));
    assert_eq!(next(100, 730), ms(800), "six were missed");
    let zero = super::next(start, Duration::ZERO, start + ms(5));
    assert_eq!(zero, start + ms(5));
}

#[test]
fn a_capture_that_is_asked_for_waits_for_the_kernel() {
    let mut rig = rig(vec![nothing(with(0)), nothing(with(0))]);
    rig.triggers.at_once = true;
    let late = rig.late();
    assert_eq!(late.fired.kind, "asked");
    assert!(!late.fired.is_failure());
}

#[test]
fn a_guest_that_goes_on_is_copied_and_resumed() {
    let mut rig = rig(vec![
        nothing(with(0)),
        stopped(Stop::Execute(ENTRY)),
        stopped(Stop::Execute(BACK)),
    ]);
    rig.triggers.goes_on = true;
    let late = rig.late();
    rig.machine.file.write_all_at(&[1; 4096], 0).unwrap();
    let mut page = [0; 4];
    late.memory.source().read(0, &mut page).unwrap();
    assert_eq!(page, [7; 4]);
    assert!(
        rig.machine
            .told
            .ends_with(&[Told::Freeze, Told::Stops(vec![]), Told::Resume])
    );
    assert!(!rig.machine.stands);
}

#[test]
fn a_latch_that_was_set_before_tells_of_another_scheduler() {
    let latched = |kind| Seen {
        latch: LatchState::Triggered,
        ..with(kind)
    };
    let unresolved = Seen {
        latch: LatchState::NotResolved,
        ..Seen::default()
    };
    let mut rig = rig(vec![
        nothing(unresolved),
        nothing(latched(0)),
        nothing(latched(0)),
        ended(),
    ]);
    rig.machine.can = |_| false;
    let (outcome, _) = rig.run();
    assert!(matches!(outcome.end, End::Ended { .. }));
}

#[test]
fn a_guest_that_ends_while_it_fails_leaves_its_memory() {
    let mut rig = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        nothing(with(1026)),
        ended(),
    ]);
    let late = rig.late();
    assert_eq!(late.fired.kind, "scx_exit");
    assert!(late.is_degraded());

    let reset = Event::Ended {
        how: "shut down (guest-reset)".into(),
        powered_off: false,
    };
    let reboots = Turn {
        console: "Kernel panic - not syncing: x\n",
        ..turn(Some(reset), None)
    };
    let mut panics = self::rig(vec![nothing(with(0)), reboots]);
    assert_eq!(panics.late().fired.kind, "panic");
}

#[test]
fn what_init_said_last_is_known_at_the_end() {
    let mut rig = rig(vec![nothing(with(0))]);
    rig.machine.script.push_back(Turn {
        message: "@workload code 0\nnoise",
        ..ended()
    });
    let (outcome, _) = rig.run();
    let End::Ended { said, .. } = outcome.end else {
        panic!("{:?}", outcome.end);
    };
    assert_eq!(said.as_deref(), Some("workload code 0"));
}

#[test]
fn a_kernel_that_hands_out_its_log_has_crashed_or_is_shut_down() {
    for (reason, kind) in [(1, "panic"), (2, "oops")] {
        let mut crashed = rig(vec![
            nothing(with(0)),
            stopped_with(Stop::Execute(LOG), reason),
        ]);
        crashed.eyes.found.as_mut().unwrap().log_dump = Some(LOG);
        let late = crashed.late();
        assert_eq!((late.fired.kind, late.fired.by), (kind, Some("breakpoint")));
        assert!(late.fired.is_failure());
    }
    let mut down = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        stopped_with(Stop::Execute(LOG), 4),
        ended(),
    ]);
    down.eyes.found.as_mut().unwrap().log_dump = Some(LOG);
    let (outcome, _) = down.run();
    assert!(matches!(outcome.end, End::Ended { .. }));
    // A vCPU stands on it, and would meet it again for ever.
    let both = vec![Stop::Execute(ENTRY), Stop::Execute(LOG)];
    assert_eq!(
        down.machine.told,
        [
            Told::Stops(both.clone()),
            Told::Stops(both),
            Told::Stops(vec![Stop::Execute(ENTRY)]),
            Told::Resume,
        ]
    );
}

#[test]
fn an_unreadable_return_address_of_a_sound_scheduler_is_not_met_again() {
    let mut rig = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        stopped(Stop::Execute(ENTRY)),
        ended(),
    ]);
    rig.eyes.back = None;
    rig.eyes.failure = None;
    let (outcome, _) = rig.run();
    assert!(matches!(outcome.end, End::Ended { .. }));
    // It is looked for in memory from then on.
    let told = &rig.machine.told;
    let change = Told::Stops(vec![Stop::Change(KIND)]);
    assert_eq!(told[told.len() - 2..], [change, Told::Resume]);
}

#[test]
fn a_guest_that_is_reset_is_looked_at_anew() {
    let mut rig = rig(vec![
        nothing(with(0)),
        turn(Some(Event::Restarted), Some(Seen::default())),
        nothing(with(0)),
        stopped(Stop::Execute(ENTRY)),
        stopped(Stop::Execute(BACK)),
    ]);
    assert_eq!(rig.late().fired.kind, "scx_exit");
    // What is in memory may be what was there before.
    assert_eq!(rig.eyes.asked, [false, true]);
    let entry = Told::Stops(vec![Stop::Execute(ENTRY)]);
    // Its breakpoints went with the kernel that they were in, and came again with the next.
    let none = rig
        .machine
        .told
        .iter()
        .position(|t| *t == Told::Stops(vec![]));
    assert_eq!(rig.machine.told[none.unwrap() + 1], entry);
}

#[test]
fn an_early_image_of_a_scheduler_that_was_replaced_is_no_half_of_a_pair() {
    let other = || Seen {
        scheduler: Some(Scheduler {
            at: 0xffff_8880_0099_0000,
            ..scheduler(0)
        }),
        ..Seen::default()
    };
    let mut rig = rig(vec![
        nothing(aged(0)),
        nothing(aged(2500)),
        nothing(other()),
        stopped(Stop::Execute(ENTRY)),
        stopped(Stop::Execute(BACK)),
    ]);
    rig.triggers.early = true;
    let (outcome, _) = rig.run();
    assert!(outcome.apart && outcome.late.is_some());
    assert!(matches!(outcome.early, Early::Taken { of: 1, .. }));
}

#[test]
fn how_a_scheduler_went_says_nothing_of_the_next_one() {
    let at = |at: u64, seen: Seen| Seen {
        scheduler: seen.scheduler.map(|s| Scheduler { at, ..s }),
        ..seen
    };
    // The first goes in order; then an early image of the second, and the guest ends.
    let mut second = rig(vec![
        nothing(with(0)),
        nothing(with(64)),
        nothing(at(0x9000, aged(0))),
        nothing(at(0x9000, aged(2500))),
        ended(),
    ]);
    // An early image of the first, which goes in order; the second is sound.
    let mut first = rig(vec![
        nothing(aged(0)),
        nothing(aged(2500)),
        nothing(with(64)),
        nothing(at(0x9000, with(0))),
        ended(),
    ]);
    // An early image of the first, whose going nobody saw; the second goes in order.
    let mut other = rig(vec![
        nothing(aged(0)),
        nothing(aged(2500)),
        nothing(at(0x9000, with(0))),
        nothing(at(0x9000, with(64))),
        ended(),
    ]);
    for (rig, expected) in [
        (&mut second, false),
        (&mut first, true),
        (&mut other, false),
    ] {
        rig.triggers.early = true;
        rig.eyes.failure = None;
        let (outcome, suppressed) = rig.run();
        assert!(matches!(outcome.early, Early::Taken { .. }));
        assert!(outcome.late.is_none());
        assert_eq!(suppressed, expected);
    }
}

#[test]
fn where_ages_are_not_known_no_image_stands_for_an_early_one() {
    let mut rig = rig(vec![
        nothing(with(0)),
        stopped(Stop::Execute(ENTRY)),
        stopped(Stop::Execute(BACK)),
    ]);
    rig.triggers.early = true;
    rig.machine.live = false;
    rig.eyes.ages = Some((2500, 2000));
    let (outcome, _) = rig.run();
    assert_eq!(outcome.end, End::Late);
    assert!(matches!(outcome.early, Early::Waiting { .. }));
}

#[test]
fn a_late_image_that_is_old_enough_stands_for_both() {
    let script = || {
        vec![
            nothing(aged(0)),
            nothing(aged(1200)),
            stopped(Stop::Execute(ENTRY)),
            stopped(Stop::Execute(BACK)),
        ]
    };
    for (age, promoted) in [(1999, false), (2000, true)] {
        let mut rig = rig(script());
        rig.triggers.early = true;
        rig.eyes.ages = Some((age, 2000));
        let (outcome, _) = rig.run();
        let is = matches!(
            outcome.early,
            Early::Promoted {
                age: 2000,
                threshold: 2000
            }
        );
        assert_eq!(is, promoted);
    }
}

#[test]
fn a_machine_that_takes_no_orders_any_more_is_lost_with_its_memory() {
    // At the early image: the copy is kept, and so is what memory says at the end.
    let mut early = rig(vec![nothing(aged(0)), nothing(aged(2500))]);
    early.triggers.early = true;
    early.machine.resumes = 0;
    let (outcome, _) = early.run();
    assert!(matches!(outcome.early, Early::Taken { .. }));
    let late = outcome.late.unwrap();
    assert_eq!(late.fired.kind, "lost");
    assert!(late.is_degraded());
    assert_eq!(late.frozen.cause, Cause::Silent);
    assert!(matches!(late.memory, Memory::Own(_)));
    // At a breakpoint.
    let mut stops = rig(vec![nothing(with(0)), stopped(Stop::Execute(ENTRY))]);
    stops.machine.takes = 1;
    let late = stops.late();
    assert_eq!(late.fired.exit_kind, Some(1026));
    assert!(
        late.fired
            .detail
            .contains("an answer took longer than 20 s")
    );
}

#[test]
fn someone_elses_guest_that_is_lost_is_copied_unless_it_has_ended() {
    let refuses = || MachineError::Refused {
        what: "a breakpoint".into(),
        why: "no".into(),
    };
    let gone = || MachineError::Gone("it ended".into());
    for (error, cause, copied) in [
        (hung(), Cause::Silent, true),
        (refuses(), Cause::Refused, true),
        (gone(), Cause::Gone, false),
    ] {
        let mut rig = rig(vec![nothing(with(0))]);
        rig.machine.script.push_back(Turn {
            event: Err(error),
            ..turn(None, None)
        });
        rig.triggers.goes_on = true;
        let late = rig.late();
        assert_eq!(late.frozen.cause, cause);
        assert_eq!(matches!(late.memory, Memory::Copy(_)), copied, "{cause:?}");
        assert_eq!(late.copied, copied.then_some(4096));
    }
}

#[test]
fn someone_elses_guest_whose_memory_cannot_be_copied_leaves_no_late_image() {
    let mut rig = rig(vec![
        nothing(with(0)),
        stopped(Stop::Execute(ENTRY)),
        stopped(Stop::Execute(BACK)),
    ]);
    rig.triggers.goes_on = true;
    rig.machine.memory = cannot_be_copied();
    let (outcome, _) = rig.run();
    let End::Lost(why) = outcome.end else {
        panic!("{:?}", outcome.end);
    };
    assert!(why.contains("cannot be copied"), "{why}");
    assert!(outcome.late.is_none());
    assert!(!rig.machine.stands);
}

/// A process whose page map ends before its memory does.
fn cannot_be_copied() -> GuestMemory {
    let file = || tempfile::tempfile().unwrap();
    let piece = Mapping {
        gpa: 0,
        bytes: 1 << 20,
        offset: 0,
    };
    let backing = vec![Backing::process(file(), file())];
    GuestMemory::from_parts(backing, vec![(piece, 0)])
}

#[test]
fn an_early_image_that_cannot_be_copied_is_given_up_and_the_guest_goes_on() {
    let mut rig = rig(vec![
        nothing(aged(0)),
        nothing(aged(2500)),
        stopped(Stop::Execute(ENTRY)),
        stopped(Stop::Execute(BACK)),
    ]);
    rig.triggers.early = true;
    rig.machine.memory = cannot_be_copied();
    let (outcome, _) = rig.run();
    let Early::Failed(why) = outcome.early else {
        panic!("an early image");
    };
    assert!(
        why.starts_with("the guest's memory cannot be copied: "),
        "{why}"
    );
    let freeze = rig.machine.told.iter().position(|t| *t == Told::Freeze);
    assert_eq!(rig.machine.told[freeze.unwrap() + 1], Told::Resume);
    assert_eq!(outcome.end, End::Late);
}

#[test]
fn memory_that_is_not_seen_while_the_guest_runs_is_not_watched() {
    let mut rig = rig(vec![
        nothing(aged(0)),
        // Stale: it would be due, and failed.
        nothing(aged(2500)),
        nothing(with(1026)),
        stopped(Stop::Execute(ENTRY)),
        stopped(Stop::Execute(BACK)),
    ]);
    rig.machine.live = false;
    rig.triggers.early = true;
    rig.triggers.sample_every = Some(Duration::ZERO);
    let (outcome, _) = rig.run();
    let late = outcome.late.unwrap();
    assert_eq!(
        (late.fired.kind, late.fired.by),
        ("scx_exit", Some("breakpoint"))
    );
    assert!(matches!(outcome.early, Early::Waiting { peak: 0, .. }));
    // The last one, of the guest that stands.
    assert_eq!(rig.eyes.samples.len(), 1);
}

#[test]
fn a_limit_that_passes_while_a_scheduler_fails_waits_for_its_image() {
    let mut rig = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        stopped(Stop::Execute(ENTRY)),
        Turn {
            then: Some(Box::new(|| std::thread::sleep(Duration::from_millis(60)))),
            ..nothing(with(1026))
        },
        stopped(Stop::Execute(BACK)),
    ]);
    rig.triggers.timeout = Some(Duration::from_millis(50));
    rig.triggers.after = Some(Duration::from_millis(50));
    let late = rig.late();
    assert_eq!(
        (late.fired.kind, late.fired.exit_kind),
        ("scx_exit", Some(1026))
    );
}

#[test]
fn an_early_image_of_another_boot_is_no_half_of_a_pair() {
    let mut rig = rig(vec![
        nothing(aged(0)),
        nothing(aged(2500)),
        turn(Some(Event::Restarted), Some(Seen::default())),
        turn(Some(Event::Panicked), None),
    ]);
    rig.triggers.early = true;
    let (outcome, _) = rig.run();
    assert!(outcome.apart);
    let late = outcome.late.unwrap();
    assert_eq!((late.fired.kind, late.fired.by), ("panic", Some("pvpanic")));
}

#[test]
fn a_latch_whose_scheduler_has_gone_is_a_moment_all_the_same() {
    let mut rig = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        nothing(Seen {
            latch: LatchState::Triggered,
            ..Seen::default()
        }),
    ]);
    rig.triggers.moment = Moment::Poll;
    let late = rig.late();
    assert_eq!(
        (late.fired.kind, late.fired.by),
        ("scx_exit", Some("probe latch"))
    );
    assert_eq!(late.fired.exit_kind, None);
}

#[test]
fn what_fails_is_not_forgotten_for_a_stop_of_something_else() {
    let mut rig = rig(vec![
        nothing(with(0)),
        nothing(with(0)),
        // Seen by polling, before the dump is reached.
        nothing(with(1026)),
        stopped_with(Stop::Execute(LOG), 4),
        ended(),
    ]);
    rig.eyes.found.as_mut().unwrap().log_dump = Some(LOG);
    let late = rig.late();
    assert_eq!((late.fired.kind, late.fired.by), ("scx_exit", Some("poll")));
    assert_eq!(late.frozen.cause, Cause::Ended);
}

#[test]
fn a_copy_that_someone_resumed_the_guest_under_is_degraded() {
    let mut rig = rig(vec![nothing(aged(0)), nothing(aged(2500)), ended()]);
    rig.triggers.early = true;
    rig.machine.stood = false;
    let (outcome, _) = rig.run();
    let Early::Taken { snapshot, .. } = outcome.early else {
        panic!("no early image");
    };
    assert!(snapshot.is_degraded());
}

/// What the kernel's log says of a failure, at each time that it is asked for.
fn logs(rig: &mut Rig, numbers: &[Option<u64>]) {
    let text = r#"sched_ext: BPF scheduler "foo" disabled (runtime error)"#;
    let log = numbers.iter().map(|n| n.map(|n| (n, text.to_owned())));
    *rig.eyes.log.borrow_mut() = log.collect();
}

#[test]
fn a_failure_between_two_looks_is_found_in_the_log() {
    // The scheduler is gone, and the log does not say why at once.
    let gone = || nothing(Seen::default());
    let mut rig = rig(vec![nothing(with(0)), nothing(with(0)), gone(), gone()]);
    rig.triggers.moment = Moment::Poll;
    logs(&mut rig, &[Some(7), Some(7), Some(9)]);
    let late = rig.late();
    assert_eq!(
        (late.fired.kind, late.fired.by),
        ("scx_exit", Some("kernel log"))
    );
    assert!(late.fired.detail.contains("disabled (runtime error)"));
    assert!(late.fired.is_failure() && !late.is_degraded());

    // Of before we came.
    let mut old = self::rig(vec![nothing(with(0)), nothing(with(0)), gone(), ended()]);
    logs(&mut old, &[Some(7)]);
    assert!(old.run().0.late.is_none());
}

#[test]
fn a_failure_in_the_log_is_not_measured_by_another_scheduler() {
    // `foo` was sound, and is gone; what comes instead is seen to be sound later.
    let later = Duration::from_millis(60);
    let other = |name: &str| {
        let mut seen = with(0);
        let scheduler = seen.scheduler.as_mut().unwrap();
        (scheduler.at, scheduler.name) = (0xffff_8880_0055_0000, name.into());
        nothing(seen)
    };
    let age = |name: &str| {
        let comes = Turn {
            then: Some(Box::new(move || std::thread::sleep(later))),
            ..other(name)
        };
        let mut rig = rig(vec![nothing(with(0)), nothing(with(0)), comes, other(name)]);
        rig.triggers.moment = Moment::Poll;
        logs(&mut rig, &[None, None, Some(9)]);
        let late = rig.late();
        assert_eq!(late.fired.by, Some("kernel log"));
        late.fired.exit_age_at_most.unwrap()
    };
    assert!(age("bar") >= later);
    // The same scheduler, started once more.
    assert!(age("foo") >= later);

    // Nobody has ever seen the one that failed.
    let mut unseen = rig(vec![other("bar"), other("bar"), nothing(Seen::default())]);
    unseen.triggers.moment = Moment::Poll;
    logs(&mut unseen, &[None, Some(9)]);
    assert_eq!(unseen.late().fired.exit_age_at_most, None);
}

#[test]
fn a_failure_that_nobody_saw_is_no_end_without_one() {
    let played = |last: Turn| {
        let mut rig = rig(vec![nothing(Seen::default()), last]);
        rig.triggers.moment = Moment::Poll;
        logs(&mut rig, &[None, Some(3)]);
        rig
    };
    // The guest has ended: what there is of it is kept.
    let mut rig = played(ended());
    let late = rig.late();
    assert_eq!(late.fired.by, Some("kernel log"));
    assert_eq!(late.frozen.cause, Cause::Ended);
    // The time is over, and a capture was only asked for.
    let mut rig = played(nothing(Seen::default()));
    rig.triggers.timeout = Some(Duration::ZERO);
    rig.machine.script.pop_front();
    let late = rig.late();
    assert_eq!(late.fired.kind, "scx_exit");
    let mut rig = played(nothing(Seen::default()));
    rig.machine.script.pop_front();
    rig.triggers.timeout = Some(Duration::from_secs(600));
    rig.machine.script.push_front(nothing(Seen::default()));
    let now = rig.triggers.now.clone();
    rig.machine.script[1].then = Some(Box::new(move || now.store(true, Ordering::Relaxed)));
    let late = rig.late();
    assert_eq!(late.fired.kind, "scx_exit", "not only a signal");
}

#[test]
fn a_clock_that_runs_off_is_told_of() {
    let seconds = Duration::from_secs;
    let off = |guest, host, stops| off(seconds(guest), seconds(host), stops);
    let why = off(300, 20, false).unwrap();
    assert!(why.contains("300.0 s while 20.0 s"), "{why}");
    assert!(off(300, 20, true).is_some() && off(4, 20, false).is_some());
    assert_eq!(off(4, 20, true), None, "its owner may have stopped it");
    assert_eq!(off(39, 20, false), None);
    assert_eq!(off(11, 20, false), None);
    assert_eq!(off(9, 1, false), None, "too short to tell");
}
