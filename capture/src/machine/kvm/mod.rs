//! A guest in this very process, on the host's KVM: no QEMU, no firmware.
//!
//! Its memory is a memfd, as QEMU's is. Each vCPU has a thread; a watcher reads the bytes that are
//! to be noticed. Devices are two serial ports and what powers the guest off.

mod acpi;
mod boot;
mod cpuid;
mod debug;
mod devices;
mod jail;
mod layout;
mod probe;
mod raw;
mod state;
mod vcpu;
mod watcher;

use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_clock_data, kvm_pit_config};
use kvm_ioctls::{Cap, Error};

use self::cpuid::{Features, Topology};
use self::debug::Fires;
use self::devices::Devices;
use self::raw::{Vcpu, Vm};
use self::vcpu::{Crew, Told};
use self::watcher::Watcher;
use super::perf::Counters;
use super::{Cause, Config, Event, Frozen, GuestMemory, Machine, MachineError, Stop};

const DEVICE: &str = "/dev/kvm";
/// The version of its API that there has been since Linux 2.6.22.
const API: i32 = 12;
const VCPUS: RangeInclusive<u32> = 1..=64;
const MEMORY: RangeInclusive<u64> = 128 << 20..=64 << 30;
/// Time for all vCPUs to stand when the machine itself wants it.
const SHORT: Duration = Duration::from_secs(3);
/// How long a kernel is tried before it counts as one that runs here.
const TRIAL: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(10);
/// How long one says nothing before it is stopped to see how far it is; then twice as long.
const SILENCE: Duration = Duration::from_millis(250);
/// The privilege level of programs.
const USER: u8 = 3;
/// What a kernel writes when it has come through everything that a host may fail at.
const BOOTED: [&[u8]; 2] = [b"Run /init as init", b"Freeing unused kernel"];
/// What it writes when it has not.
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// Longest line of the guest's init, bytes.
const MAX_LINE: usize = 64 << 10;

/// A guest on KVM. It ends when this is dropped.
pub(super) struct Kvm {
    crew: Arc<Crew>,
    vm: Arc<Vm>,
    devices: Arc<Devices>,
    memory: GuestMemory,
    /// What init has said of a line that is not whole.
    pending: Vec<u8>,
    watcher: Option<Watcher>,
    /// The guest's time can be set back.
    shifts: bool,
    /// What of this host's debug registers works.
    fires: Fires,
    stops: Vec<Stop>,
    stands: bool,
    /// The guest's clock and TSC when it was stopped.
    stopped_at: Option<Time>,
    ended: bool,
    detail: String,
    /// The hardware counters of the vCPUs' threads, or why there are none.
    counters: Result<Counters, String>,
}

/// A guest's time.
struct Time {
    clock: Option<kvm_clock_data>,
    /// Of each vCPU what its TSC was shifted by, and what it was.
    offsets: Vec<Option<u64>>,
    tscs: Vec<Option<u64>>,
    /// The host's.
    at: Instant,
}

fn start(what: &str) -> impl Fn(Error) -> MachineError {
    move |e| MachineError::Start(format!("cannot start the guest on KVM: {what}: {e}"))
}

/// What a machine of this kind may have. More is QEMU's to run.
fn sizes(config: &Config) -> Result<(), MachineError> {
    let refused = |what: String| Err(MachineError::Start(what));
    if !VCPUS.contains(&config.vcpus) {
        return refused(format!(
            "{} vCPUs (--cpus): a guest on KVM has {} to {}; --backend qemu can have more",
            config.vcpus,
            VCPUS.start(),
            VCPUS.end()
        ));
    }
    if !MEMORY.contains(&config.memory_bytes) {
        return refused(format!(
            "{} MiB of memory (--memory): a guest on KVM has {} MiB to {} GiB; --backend qemu can have others",
            config.memory_bytes >> 20,
            MEMORY.start() >> 20,
            MEMORY.end() >> 30
        ));
    }
    Ok(())
}

/// Opens the device, or says what is wrong with it.
fn open() -> Result<kvm_ioctls::Kvm, MachineError> {
    let kvm = kvm_ioctls::Kvm::new().map_err(|e| {
        MachineError::Start(match e.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => format!(
                "there is no {DEVICE}: load kvm_intel or kvm_amd, or switch on virtualisation in the firmware (for a guest: nested virtualisation on its host; for a container: docker run --device {DEVICE})"
            ),
            libc::EACCES | libc::EPERM => no_access(Path::new(DEVICE)),
            _ => format!("{DEVICE}: {e}"),
        })
    })?;
    // Another device may be in its place.
    if kvm.get_api_version() != API {
        let version = kvm.get_api_version();
        return Err(MachineError::Start(format!(
            "{DEVICE} is no KVM: its API version is {version}, expected {API}; --backend qemu does without it"
        )));
    }
    Ok(kvm)
}

/// What keeps us from a device that is there.
fn no_access(device: &Path) -> String {
    let what = format!("no access to {}", device.display());
    let Ok(meta) = std::fs::metadata(device) else {
        return what;
    };
    let (mode, owner, group) = (meta.mode() & 0o777, meta.uid(), meta.gid());
    let way = if mode & 0o006 == 0o006 {
        "something else forbids it, as in a container that was not given the device (docker run --device)"
    } else if mode & 0o060 == 0o060 {
        "add yourself to that group (usually kvm)"
    } else {
        "its group has no access, so let root give it some: chgrp kvm and chmod 660, or a udev rule (KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\")"
    };
    format!("{what} (owner {owner}, group {group}, mode {mode:03o}): {way}")
}

impl Kvm {
    /// Starts a guest and lets it run.
    pub(super) fn start(config: &Config) -> Result<Self, MachineError> {
        let topology = Topology {
            vcpus: config.vcpus,
            nodes: config.nodes.max(1),
        };
        sizes(config)?;
        let mut kvm = Self::prepare(topology, config.memory_bytes, config.unparked)?;
        let pieces = layout::pieces(config.memory_bytes);
        let entry = boot::load(&kvm.vm.memory, &pieces, &topology, config)?;
        let late = || MachineError::Start("the first vCPU's thread did not begin in time".into());
        let first = kvm.crew.vcpu(0).ok_or_else(late)?;
        boot::enter(&first.fd, entry).map_err(start("the first vCPU"))?;
        drop(first);
        kvm.resume()?;
        Ok(kvm)
    }

    /// A machine with nothing in its memory, whose vCPUs stand.
    fn prepare(
        topology: Topology,
        memory_bytes: u64,
        unparked: Option<u32>,
    ) -> Result<Self, MachineError> {
        let vcpus = topology.vcpus;
        let kvm = open()?;
        let most = kvm.get_max_vcpus();
        if usize::try_from(vcpus).unwrap_or(usize::MAX) > most {
            return Err(MachineError::Start(format!(
                "{vcpus} vCPUs (--cpus): this host's KVM has at most {most} for a guest"
            )));
        }
        let (mapped, memory) = layout::memory(memory_bytes)
            .map_err(|e| MachineError::Start(format!("memory for the guest: {e}")))?;
        let vm = Vm::new(&kvm, mapped).map_err(start("a virtual machine"))?;
        // Beside another machine: for the first one, and behind the last one, the host's kernel
        // patches its text.
        let (fires, shifts) = (probe::fires(&kvm), probe::time_shifts(&kvm));
        vm.fd
            .set_tss_address(layout::TSS)
            .map_err(start("KVM_SET_TSS_ADDR"))?;
        vm.fd
            .set_identity_map_address(layout::IDENTITY_MAP)
            .map_err(start("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.fd
            .create_irq_chip()
            .map_err(start("its interrupt controllers"))?;
        vm.fd
            .create_pit2(kvm_pit_config {
                flags: KVM_PIT_SPEAKER_DUMMY,
                ..kvm_pit_config::default()
            })
            .map_err(start("its timer"))?;
        let devices = Devices::new(&vm.fd)
            .map_err(|e| MachineError::Start(format!("the guest's serial ports: {e}")))?;
        let devices = Arc::new(devices);
        let vm = Arc::new(vm);
        let deadline = vm.fd.check_extension(Cap::TscDeadlineTimer);
        let mut features =
            Features::new(&kvm, topology, deadline).map_err(start("KVM_GET_SUPPORTED_CPUID"))?;
        let first = features.of(0).map_err(start("what its CPUs are"))?;
        let saves = probe::saves(&kvm, &first);
        if !saves {
            features.without_xsave();
        }
        let cpus = (0..vcpus).map(|number| {
            let vcpu = Vcpu::new(&vm, topology.apic_id(number))?;
            vcpu.fd.set_cpuid2(&features.of(number)?)?;
            Ok(vcpu)
        });
        let cpus = cpus
            .collect::<Result<Vec<_>, Error>>()
            .map_err(start("a vCPU"))?;
        let crew = Crew::start(cpus, &devices, fires.step, unparked)
            .map_err(|e| MachineError::Start(format!("cannot start the guest on KVM: {e}")))?;
        let mut machine = Self {
            crew,
            vm,
            devices,
            memory,
            pending: Vec::new(),
            watcher: None,
            fires,
            shifts,
            stops: Vec::new(),
            stands: true,
            stopped_at: None,
            ended: false,
            detail: format!(
                "in-process, KVM API {}; {fires}{}{}",
                kvm.get_api_version(),
                if shifts {
                    ""
                } else {
                    "; its TSC goes on while it stands"
                },
                if saves {
                    ""
                } else {
                    "; its CPUs have no XSAVE, which does not work here"
                },
            ),
            counters: Err("the vCPUs' threads did not begin in time".into()),
        };
        if machine.park(SHORT).is_empty() {
            machine.counters = Counters::of_guest(&machine.crew.thread_ids());
        }
        Ok(machine)
    }

    fn park(&self, deadline: Duration) -> Vec<u32> {
        self.crew.park(deadline)
    }

    /// Waits until the kernel has come so far that this host can run it, or says why it cannot.
    pub(super) fn tried(mut self, end: &AtomicBool) -> Result<Self, MachineError> {
        let deadline = Instant::now() + TRIAL;
        let (mut said, mut looked, mut silence) = (0, Instant::now(), SILENCE);
        while Instant::now() < deadline && !end.load(Ordering::Relaxed) {
            let booted = self.devices.console.look(|text| {
                let mut signs = BOOTED.iter();
                signs.any(|sign| memchr::memmem::find(text, sign).is_some())
            });
            // A kernel that was told to be quiet still has an init that is not.
            if booted || self.devices.host.look(|said| !said.is_empty()) {
                break;
            }
            if let Some(line) = self.devices.console.look(panicked) {
                let why = format!("the guest's kernel panicked while it booted: {line}");
                return Err(MachineError::Start(why));
            }
            match self.crew.told(TICK) {
                None => {}
                Some(Told::Failed { why }) => return Err(MachineError::Start(why)),
                Some(Told::Ended {
                    how,
                    powered_off: false,
                }) => {
                    let why = format!("the guest ended while it booted: {how}");
                    return Err(MachineError::Start(why));
                }
                Some(told) => {
                    self.crew.put_back(told);
                    break;
                }
            }
            // One that says nothing may be long past its boot; one that does is not disturbed.
            let says = self.devices.console.look(<[u8]>::len);
            if says != said {
                (said, looked) = (says, Instant::now());
            } else if looked.elapsed() >= silence {
                if self.runs_programs() {
                    break;
                }
                self.resume()?;
                (silence, looked) = (silence * 2, Instant::now());
            }
        }
        self.resume()?;
        Ok(self)
    }

    /// Stops the guest; whether one of its vCPUs was in a program, not in the kernel.
    fn runs_programs(&mut self) -> bool {
        self.halt();
        let mut vcpus = (0..self.crew.count()).filter_map(|number| self.crew.vcpu(number));
        vcpus.any(|vcpu| {
            let special = vcpu.fd.get_sregs();
            special.is_ok_and(|special| special.cs.dpl == USER)
        })
    }

    fn event(&mut self, told: Told) -> Result<Option<Event>, MachineError> {
        match told {
            Told::Ended { how, powered_off } => {
                self.ended = true;
                Ok(Some(Event::Ended { how, powered_off }))
            }
            Told::Failed { why } => {
                self.ended = true;
                Err(MachineError::Gone(format!(
                    "{why}; --backend qemu does without it"
                )))
            }
            Told::Stopped { at, rsp, rdi } => {
                self.halt();
                if !self.stops.contains(&at) {
                    // Set before, and not any more.
                    self.resume()?;
                    return Ok(None);
                }
                Ok(Some(Event::Stopped { at, rsp, rdi }))
            }
        }
    }

    /// Makes all vCPUs stand, and remembers when; those that do not.
    fn halt(&mut self) -> Vec<u32> {
        self.halt_within(SHORT)
    }

    fn halt_within(&mut self, deadline: Duration) -> Vec<u32> {
        let missing = self.park(deadline);
        if !self.stands {
            self.stands = true;
            self.stopped_at = missing.is_empty().then(|| self.time());
        }
        missing
    }

    fn time(&self) -> Time {
        // What passes from here on does not pass for the guest.
        let (at, clock) = (Instant::now(), self.vm.fd.get_clock().ok());
        let each = (0..self.crew.count()).map(|number| {
            let vcpu = self.crew.vcpu(number)?;
            Some((vcpu.tsc_offset(), state::tsc(&vcpu.fd)))
        });
        let (offsets, tscs) = each.map(Option::unwrap_or_default).unzip();
        Time {
            clock,
            offsets,
            tscs,
            at,
        }
    }

    /// Sets the guest's clocks back to when it was stopped, so that no time has passed for it. What
    /// cannot be set back is told to the guest's kernel (`KVM_KVMCLOCK_CTRL`), which then does not
    /// take the pause for a lockup.
    fn set_back(&self, time: &Time) {
        let mut shifts = Vec::new();
        for (number, offset) in (0..).zip(&time.offsets) {
            let Some(vcpu) = self.crew.vcpu(number) else {
                continue;
            };
            // A guest without kvmclock has nothing to be told.
            let _ = vcpu.fd.kvmclock_ctrl();
            let offset = offset.filter(|_| self.shifts);
            if let (Some(offset), Ok(khz)) = (offset, vcpu.fd.get_tsc_khz()) {
                shifts.push((vcpu, offset, khz));
            }
        }
        // Last, for time goes on from here; the same for all, for their counters go together.
        let paused = time.at.elapsed();
        for (vcpu, offset, khz) in shifts {
            let ticks = paused.as_nanos().saturating_mul(u128::from(khz)) / 1_000_000;
            let ticks = u64::try_from(ticks).unwrap_or(0);
            let _ = vcpu.set_tsc_offset(offset.wrapping_sub(ticks));
        }
        // The guest's clocks stay with each other.
        if let Some(clock) = time.clock.filter(|_| self.shifts) {
            let clock = kvm_clock_data {
                clock: clock.clock,
                ..kvm_clock_data::default()
            };
            let _ = self.vm.fd.set_clock(&clock);
        }
    }

    fn watch(&mut self, at: Option<u64>) -> bool {
        self.watcher = None;
        let Some(at) = at else {
            return false;
        };
        let place = (0..self.crew.count()).find_map(|number| {
            let vcpu = self.crew.vcpu(number)?;
            watcher::place(&vcpu, &self.memory, at)
        });
        self.watcher = place.and_then(|place| Watcher::start(&self.vm, &self.crew, place, at).ok());
        self.watcher.is_some()
    }
}

/// The line in which a kernel says that it panics, if it does.
fn panicked(console: &[u8]) -> Option<String> {
    let at = memchr::memmem::find(console, PANIC)?;
    let line = console.get(at..)?.split(|&byte| byte == b'\n').next()?;
    Some(String::from_utf8_lossy(line).trim().to_owned())
}

impl Machine for Kvm {
    fn describe(&self) -> (&'static str, String) {
        ("kvm", self.detail.clone())
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn is_live(&self) -> bool {
        true
    }

    fn stood(&mut self) -> bool {
        // Nobody else has a hand in it.
        true
    }

    fn refresh(&mut self) -> Result<(), MachineError> {
        // It is where it was put.
        Ok(())
    }

    fn vcpus(&self) -> u32 {
        self.crew.count()
    }

    fn wait(&mut self, wait: Duration) -> Result<Option<Event>, MachineError> {
        match self.crew.told(wait) {
            Some(told) => self.event(told),
            None => Ok(None),
        }
    }

    fn stop_at(&mut self, stops: &[Stop]) -> Result<Vec<Stop>, MachineError> {
        if self.stops == stops {
            return Ok(self.stops.clone());
        }
        let change = stops.iter().find_map(|stop| match stop {
            Stop::Change(at) => Some(*at),
            _ => None,
        });
        let ran = !self.stands;
        // One that does not stand would pass what the others stop at.
        let all_stand = self.halt().is_empty();
        let hardware = stops
            .iter()
            .filter(|stop| all_stand && self.fires.has(**stop));
        let hardware: Vec<Stop> = hardware.copied().take(debug::COUNT).collect();
        for mut vcpu in (0..self.crew.count()).filter_map(|number| self.crew.vcpu(number)) {
            vcpu.stop_at(&hardware).map_err(|e| MachineError::Refused {
                what: "KVM_SET_GUEST_DEBUG".into(),
                why: e.to_string(),
            })?;
        }
        let watched = self.watch(change);
        let set = |stop: &&Stop| match stop {
            Stop::Change(at) => watched && change == Some(*at),
            stop => hardware.contains(stop),
        };
        self.stops = stops.iter().filter(set).copied().collect();
        if ran {
            self.resume()?;
        }
        Ok(self.stops.clone())
    }

    fn freeze(&mut self, deadline: Duration) -> Frozen {
        let mut frozen = Frozen::default();
        for number in self.halt_within(deadline) {
            frozen.faults.push(format!(
                "vCPU {number} did not stop within {:.1} s",
                deadline.as_secs_f64()
            ));
        }
        for number in 0..self.crew.count() {
            let Some(vcpu) = self.crew.vcpu(number) else {
                continue;
            };
            match state::of(number, &vcpu.fd) {
                Ok(mut state) => {
                    let time = self.stopped_at.as_ref();
                    let tsc = time.and_then(|time| time.tscs.get(vcpu::index(number)).copied()?);
                    if let Some(tsc) = tsc {
                        // It is counting while the guest stands.
                        state::set_tsc(&mut state, tsc);
                    }
                    frozen.vcpus.push(state);
                }
                Err(e) => {
                    if frozen.faults.is_empty() {
                        frozen.cause = Cause::Registers;
                    }
                    frozen
                        .faults
                        .push(format!("the registers of vCPU {number}: {e}"));
                }
            }
        }
        match &mut self.counters {
            Ok(counters) => frozen.counters = counters.read(),
            Err(why) => frozen.no_counters = Some(why.clone()),
        }
        frozen
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        if !self.stands || self.ended {
            return Ok(());
        }
        let time = self.stopped_at.take();
        if let Some(time) = &time {
            self.set_back(time);
        }
        // What came while it was stopped for something else is told before it goes on.
        let is_news = |told: &Told| match told {
            Told::Stopped { at, .. } => self.stops.contains(at),
            Told::Ended { .. } | Told::Failed { .. } => true,
        };
        if self.crew.run(is_news) {
            self.stands = false;
        } else {
            // As if it had run for no time.
            self.stopped_at = time.map(|_| self.time());
        }
        Ok(())
    }

    fn leave(&mut self) {
        self.watcher = None;
        self.crew.quit();
        self.ended = true;
    }

    fn console(&mut self) -> Vec<u8> {
        self.devices.console.take()
    }

    fn messages(&mut self) -> Vec<String> {
        self.pending.extend(self.devices.host.take());
        super::lines(&mut self.pending, MAX_LINE)
    }
}

impl Drop for Kvm {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod booted;
#[cfg(test)]
mod tests;
