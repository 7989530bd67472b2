//! The threads that run a guest's vCPUs, and how all of them come to stand still.
//!
//! A vCPU is told to park by a flag that its thread looks at before it enters the guest, and by a
//! signal that takes it out of the guest. A signal that comes between the look and the entry would
//! be lost, so it is repeated until the thread says that it stands. One that stands has left its
//! vCPU, which is then anyone's to look at.
//!
//! What a thread has to tell waits in a queue; all are told to park, and do not run again before it
//! was taken: what stopped one of them while all were being stopped for another reason is told as it
//! was.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{Error, VcpuExit};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::super::Stop;
use super::debug;
use super::devices::{Devices, Effect};
use super::jail::{self, Role};
use super::raw::Vcpu;

/// How long a signal has to work before it is repeated.
const AGAIN: Duration = Duration::from_millis(1);
/// How often a device is asked to complete what a vCPU was doing: KVM emulates up to 1,024 rounds of
/// a string instruction at once, and each may ask twice.
const MAX_SETTLE: usize = 4096;
/// Longest instruction of x86, bytes.
const MAX_INSTRUCTION: u8 = 15;

/// What a thread tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// One of the stops that were set was met.
    Stopped { at: Stop, rsp: u64, rdi: u64 },
    /// The guest is over.
    Ended { how: String, powered_off: bool },
    /// KVM cannot go on with it.
    Failed { why: String },
}

impl Told {
    /// Nothing comes behind it: the vCPU does not run again.
    const fn is_last(&self) -> bool {
        matches!(self, Self::Ended { .. } | Self::Failed { .. })
    }
}

/// What an entry of the guest came to.
enum Came {
    /// A signal took it out.
    Out,
    /// What it asked for was done.
    On,
    /// Others have to know.
    To(Told),
}

/// What the threads are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Run,
    Park,
    Quit,
}

#[derive(Debug)]
struct Floor {
    order: Order,
    /// Which of the vCPUs stand.
    stands: Vec<bool>,
    /// What nobody has taken yet.
    told: VecDeque<Told>,
}

/// A vCPU, and what stops it.
#[derive(Debug)]
pub(super) struct Cpu {
    vcpu: Vcpu,
    /// What its debug registers hold.
    stops: Vec<Stop>,
    /// Single-step fires here.
    steps: bool,
    /// Where it met one of them last.
    met: Option<u64>,
    /// The instruction at which it would stop at once, and which it is taken past.
    stepping: Option<u64>,
    /// A step ended elsewhere, in a handler: the flag is in the frame that this returns by.
    owed: bool,
}

impl Deref for Cpu {
    type Target = Vcpu;

    fn deref(&self) -> &Vcpu {
        &self.vcpu
    }
}

impl DerefMut for Cpu {
    fn deref_mut(&mut self) -> &mut Vcpu {
        &mut self.vcpu
    }
}

/// All vCPU threads of a machine.
#[derive(Debug)]
pub(super) struct Crew {
    floor: Mutex<Floor>,
    moved: Condvar,
    /// The order is another than `Run`.
    halt: AtomicBool,
    cpus: Vec<Mutex<Cpu>>,
    /// The kernel's numbers of the threads; 0 before a thread has begun.
    ids: Vec<AtomicI32>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn index(vcpu: u32) -> usize {
    usize::try_from(vcpu).unwrap_or(usize::MAX)
}

/// The signal that takes a thread out of the guest.
pub(super) fn kick() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Crew {
    /// Starts a thread for each of the vCPUs; none runs before [`Crew::run`]. `steps` says whether
    /// single-step fires; `stubborn` does not park.
    pub(super) fn start(
        vcpus: Vec<Vcpu>,
        devices: &Arc<Devices>,
        steps: bool,
        stubborn: Option<u32>,
    ) -> Result<Arc<Self>, String> {
        register_signal_handler(kick(), kicked).map_err(|e| format!("a signal handler: {e}"))?;
        let cpu = |vcpu| Cpu {
            vcpu,
            stops: Vec::new(),
            steps,
            met: None,
            stepping: None,
            owed: false,
        };
        let crew = Arc::new(Self {
            floor: Mutex::new(Floor {
                order: Order::Park,
                stands: vec![false; vcpus.len()],
                told: VecDeque::new(),
            }),
            moved: Condvar::new(),
            halt: AtomicBool::new(true),
            ids: vcpus.iter().map(|_| AtomicI32::default()).collect(),
            cpus: vcpus.into_iter().map(cpu).map(Mutex::new).collect(),
            threads: Mutex::default(),
        });
        for number in 0..crew.count() {
            let (own, devices) = (Arc::clone(&crew), Arc::clone(devices));
            let stubborn = stubborn == Some(number);
            let started = thread::Builder::new()
                .name(format!("vcpu-{number}"))
                .spawn(move || own.work(number, &devices, stubborn));
            match started {
                Ok(thread) => lock(&crew.threads).push(thread),
                Err(e) => {
                    crew.quit();
                    return Err(format!("a thread for vCPU {number}: {e}"));
                }
            }
        }
        Ok(crew)
    }

    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.cpus.len()).unwrap_or(u32::MAX)
    }

    /// The kernel's numbers of the threads, in the order of vCPUs, once all of them stand.
    pub(super) fn thread_ids(&self) -> Vec<i32> {
        let ids = self.ids.iter().map(|id| id.load(Ordering::SeqCst));
        ids.collect()
    }

    /// The vCPU, once it stands. Its thread has it otherwise, so this would wait for it.
    pub(super) fn vcpu(&self, number: u32) -> Option<MutexGuard<'_, Cpu>> {
        let stands = lock(&self.floor).stands.get(index(number)).copied();
        if stands != Some(true) {
            return None;
        }
        self.cpus.get(index(number)).map(lock)
    }

    fn order(&self, floor: &mut Floor, order: Order) {
        if floor.order == Order::Quit {
            return;
        }
        floor.order = order;
        self.halt.store(order != Order::Run, Ordering::SeqCst);
        if order == Order::Run {
            floor.stands.fill(false);
        }
        self.moved.notify_all();
    }

    /// Lets all of them run, unless there is something that was told and not taken; of that, what is
    /// no news any more is forgotten. Whether they run.
    pub(super) fn run(&self, is_news: impl Fn(&Told) -> bool) -> bool {
        let mut floor = lock(&self.floor);
        floor.told.retain(is_news);
        let free = floor.told.is_empty();
        if free {
            self.order(&mut floor, Order::Run);
        }
        free
    }

    /// Tells something, for which all are to park.
    pub(super) fn tell(&self, told: Told) {
        let mut floor = lock(&self.floor);
        floor.told.push_back(told);
        self.order(&mut floor, Order::Park);
        self.moved.notify_all();
    }

    /// Puts back what was taken first.
    pub(super) fn put_back(&self, told: Told) {
        lock(&self.floor).told.push_front(told);
    }

    /// Takes what was told first; waits for it, at most for `wait`.
    pub(super) fn told(&self, wait: Duration) -> Option<Told> {
        let (mut floor, _) = self
            .moved
            .wait_timeout_while(lock(&self.floor), wait, |floor| floor.told.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        floor.told.pop_front()
    }

    /// Makes all of them stand; gives back those that did not within the deadline.
    pub(super) fn park(&self, deadline: Duration) -> Vec<u32> {
        self.order(&mut lock(&self.floor), Order::Park);
        let end = Instant::now() + deadline;
        loop {
            self.kick();
            let floor = lock(&self.floor);
            let (floor, _) = self
                .moved
                .wait_timeout_while(floor, AGAIN, |floor| floor.stands.contains(&false))
                .unwrap_or_else(PoisonError::into_inner);
            let stands = (0..).zip(&floor.stands);
            let missing: Vec<u32> = stands.filter(|(_, s)| !**s).map(|(n, _)| n).collect();
            if missing.is_empty() || Instant::now() >= end {
                return missing;
            }
        }
    }

    /// Takes all that run out of the guest.
    pub(super) fn kick(&self) {
        let stands = lock(&self.floor).stands.clone();
        for (thread, stands) in lock(&self.threads).iter().zip(stands) {
            if !stands {
                // One that has ended needs no signal.
                let _ = thread.kill(kick());
            }
        }
    }

    /// Ends all threads and waits for them.
    pub(super) fn quit(&self) {
        self.order(&mut lock(&self.floor), Order::Quit);
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            while !thread.is_finished() {
                let _ = thread.kill(kick());
                let floor = lock(&self.floor);
                drop(self.moved.wait_timeout(floor, AGAIN));
            }
            // A thread that panicked is as gone as any other.
            let _ = thread.join();
        }
    }

    /// What a vCPU's thread does from its start to its end.
    fn work(&self, number: u32, devices: &Devices, stubborn: bool) {
        if let Some(id) = self.ids.get(index(number)) {
            let own = rustix::thread::gettid().as_raw_nonzero().get();
            id.store(own, Ordering::SeqCst);
        }
        let Some(cpu) = self.cpus.get(index(number)) else {
            return;
        };
        let mut over = false;
        let role = Role::Vcpu {
            vcpu: lock(cpu).fd.as_raw_fd(),
            interrupts: devices.interrupts(),
        };
        if let Err(e) = jail::enter(role) {
            let why = format!("no seccomp filter for the thread of vCPU {number}: {e}");
            over = true;
            self.tell(Told::Failed { why });
        }
        while self.stand(number, over) {
            let mut cpu = lock(cpu);
            cpu.step_off();
            while !self.halt.load(Ordering::SeqCst) || (stubborn && !self.is_over()) {
                if let Came::To(told) = cpu.enter(number, devices) {
                    over = told.is_last();
                    self.tell(told);
                    // At once: whoever is told may be busy, and repeats what was lost.
                    self.kick();
                    break;
                }
            }
            cpu.step_on();
            if let Some(told) = cpu.settle(number, devices) {
                over |= told.is_last();
                self.tell(told);
            }
        }
        if let Some(stands) = lock(&self.floor).stands.get_mut(index(number)) {
            *stands = true;
        }
        self.moved.notify_all();
    }

    fn is_over(&self) -> bool {
        lock(&self.floor).order == Order::Quit
    }

    /// Stands until it is told to run, if it still can; whether it was.
    fn stand(&self, number: u32, over: bool) -> bool {
        let mut floor = lock(&self.floor);
        loop {
            match floor.order {
                Order::Run if !over => return true,
                Order::Quit => return false,
                _ => {}
            }
            if let Some(stands) = floor.stands.get_mut(index(number))
                && !*stands
            {
                *stands = true;
                self.moved.notify_all();
            }
            floor = self
                .moved
                .wait(floor)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Cpu {
    /// These, and nothing else, stop it from now on.
    pub(super) fn stop_at(&mut self, stops: &[Stop]) -> Result<(), Error> {
        debug::set(&self.vcpu.fd, stops)?;
        self.stops = stops.to_vec();
        Ok(())
    }

    /// Before it goes on: it may stand at an instruction that would stop it at once, which it is then
    /// taken past. The others go on meanwhile: what stops them are registers of their own.
    fn step_off(&mut self) {
        let met = self
            .met
            .take()
            .filter(|at| self.stops.contains(&Stop::Execute(*at)));
        let stands = met.filter(|at| debug::pass(&self.vcpu.fd, *at));
        let steps = self.steps && stands.is_some() && debug::set_step(&self.vcpu.fd).is_ok();
        self.stepping = stands.filter(|_| steps);
    }

    /// Sets the stops again, whether it has been taken past or not.
    fn step_on(&mut self) {
        let Some(from) = self.stepping.take() else {
            return;
        };
        // Without them it goes on all the same.
        let _ = debug::set(&self.vcpu.fd, &self.stops);
        match self.vcpu.fd.get_regs() {
            Ok(regs) if regs.rip == from => self.met = Some(from),
            Ok(regs) => self.owed = regs.rip.wrapping_sub(from) > MAX_INSTRUCTION.into(),
            Err(_) => {}
        }
    }

    /// Lets the guest run until it leaves this vCPU.
    fn enter(&mut self, number: u32, devices: &Devices) -> Came {
        let came = match self.vcpu.fd.run() {
            Ok(VcpuExit::Debug(debug)) => {
                let (pc, dr6) = (debug.pc, debug.dr6);
                return self.debugged(pc, dr6);
            }
            Ok(VcpuExit::InternalError) => {
                let why = internal_error(&mut self.vcpu, number);
                Came::To(Told::Failed { why })
            }
            Ok(exit) => handle(exit, number, devices),
            // A signal, or a vCPU that nobody has started yet.
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => Came::Out,
            Err(e) => Came::To(Told::Failed {
                why: format!("vCPU {number}: KVM_RUN: {e}"),
            }),
        };
        // A device was asked on the way, or a signal came: it may be past without a debug exit.
        if let Some(from) = self.stepping
            && self.vcpu.fd.get_regs().is_ok_and(|regs| regs.rip != from)
        {
            self.step_on();
        }
        came
    }

    /// A debug exception. Where stops are set, the guest's own come here, too: they are given back.
    fn debugged(&mut self, pc: u64, dr6: u64) -> Came {
        if self.stepping.is_some() {
            self.step_on();
            return Came::On;
        }
        if std::mem::take(&mut self.owed) && debug::is_step(dr6) {
            return Came::On;
        }
        let Some(at) = debug::met(&self.stops, pc, dr6) else {
            // One that cannot be given back is lost, and the guest goes on.
            let _ = debug::give_back(&self.vcpu.fd, &self.stops, dr6);
            return Came::On;
        };
        self.met = Some(pc);
        let regs = self.vcpu.fd.get_regs();
        let (rsp, rdi) = regs.map_or((0, 0), |regs| (regs.rsp, regs.rdi));
        Came::To(Told::Stopped { at, rsp, rdi })
    }

    /// Completes an access to a device that the guest was taken out of, without entering it again:
    /// registers are right only then.
    fn settle(&mut self, number: u32, devices: &Devices) -> Option<Told> {
        let mut told = None;
        self.vcpu.fd.set_kvm_immediate_exit(1);
        for _ in 0..MAX_SETTLE {
            match self.enter(number, devices) {
                Came::Out => break,
                Came::On => {}
                Came::To(what) => {
                    told = Some(what);
                    break;
                }
            }
        }
        self.vcpu.fd.set_kvm_immediate_exit(0);
        told
    }
}

/// Does what the guest has left this vCPU for.
fn handle(exit: VcpuExit<'_>, number: u32, devices: &Devices) -> Came {
    let ended = |how: &str, powered_off| {
        Came::To(Told::Ended {
            how: how.into(),
            powered_off,
        })
    };
    let failed = |why: String| Came::To(Told::Failed { why });
    match exit {
        VcpuExit::IoOut(port, data) => match devices.write(port, data) {
            Effect::None => Came::On,
            Effect::PowerOff => ended("powered off", true),
            Effect::Reset => ended("reset", false),
        },
        VcpuExit::IoIn(port, data) => {
            devices.read(port, data);
            Came::On
        }
        VcpuExit::MmioRead(at, data) => {
            devices.read_memory(at, data);
            Came::On
        }
        VcpuExit::MmioWrite(..) | VcpuExit::IrqWindowOpen => Came::On,
        VcpuExit::Intr => Came::Out,
        VcpuExit::Shutdown => ended(&format!("reset (triple fault on vCPU {number})"), false),
        VcpuExit::SystemEvent(kind, _) => match kind {
            KVM_SYSTEM_EVENT_SHUTDOWN => ended("powered off", true),
            KVM_SYSTEM_EVENT_RESET => ended("reset", false),
            KVM_SYSTEM_EVENT_CRASH => ended("its kernel told KVM that it crashed", false),
            kind => failed(format!("KVM's system event {kind} is not known here")),
        },
        VcpuExit::FailEntry(reason, _) => failed(format!(
            "vCPU {number} could not enter the guest (KVM_EXIT_FAIL_ENTRY, hardware reason {reason:#x})"
        )),
        VcpuExit::MemoryFault { gpa, .. } => failed(format!(
            "vCPU {number} met memory that KVM could not give it, at {gpa:#x} (KVM_EXIT_MEMORY_FAULT)"
        )),
        exit => failed(format!(
            "vCPU {number}: KVM's exit {exit:?} is not known here"
        )),
    }
}

/// The instruction that a vCPU stands at, as far as its page goes.
fn instruction(vcpu: &Vcpu, rip: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let left = usize::try_from(4096 - rip % 4096).unwrap_or(0);
    if let Ok(place) = vcpu.fd.translate_gva(rip)
        && place.valid != 0
    {
        bytes.resize(left.min(MAX_INSTRUCTION.into()), 0);
        let read = vcpu
            .vm
            .memory
            .read_slice(&mut bytes, GuestAddress(place.physical_address));
        if read.is_err() {
            bytes.clear();
        }
    }
    bytes
}

/// What KVM did not manage, for people.
fn internal_error(vcpu: &mut Vcpu, number: u32) -> String {
    let (kind, data) = vcpu.internal_error();
    let rip = vcpu.fd.get_regs().map_or(0, |regs| regs.rip);
    if kind != KVM_INTERNAL_ERROR_EMULATION {
        let data: Vec<String> = data.iter().map(|word| format!("{word:#x}")).collect();
        return format!(
            "this host's KVM failed at RIP {rip:#x} of vCPU {number} (KVM_EXIT_INTERNAL_ERROR, kind {kind}, data {})",
            data.join(" ")
        );
    }
    // Flags, then a byte that says how many, then the instruction (`emulation_failure`).
    let mut words = data.iter();
    let flags = words.next().copied().unwrap_or(0);
    let mut bytes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
    let told = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
    if flags & told != 0 && !bytes.is_empty() {
        let size = usize::from(bytes.remove(0));
        bytes.truncate(size);
    } else {
        bytes = instruction(vcpu, rip);
    }
    let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let bytes = match bytes.as_slice() {
        [] => "which cannot be read".into(),
        bytes => format!("bytes {}", bytes.join(" ")),
    };
    format!(
        "this host's KVM cannot emulate the instruction at RIP {rip:#x} of vCPU {number} (KVM_INTERNAL_ERROR_EMULATION), {bytes}"
    )
}
