//! The threads that run a guest's vCPUs, and how all of them come to stand still.
//!
//! A vCPU is told to park by a flag that its thread looks at before it enters the guest, and by a
//! signal that takes it out of the guest. A signal that comes between the look and the entry would
//! be lost, so it is repeated until the thread says that it stands. One that stands has left its
//! vCPU, which is then anyone's to look at.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::Sender;
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
/// How often a vCPU is entered to take one step.
const MAX_STEP: usize = 100;
/// Longest instruction of x86.
const MAX_INSTRUCTION: usize = 15;

/// What a vCPU's thread tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// It met a breakpoint or a watchpoint; `dr6` says which. All are told to park.
    Debug { vcpu: u32, pc: u64, dr6: u64 },
    /// The four bytes at this address have changed. All are told to park.
    Changed { at: u64 },
    /// The guest is over.
    Ended { how: String, powered_off: bool },
    /// KVM cannot go on with it.
    Failed { why: String },
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
}

/// All vCPU threads of a machine.
#[derive(Debug)]
pub(super) struct Crew {
    floor: Mutex<Floor>,
    moved: Condvar,
    /// The order is another than `Run`.
    halt: AtomicBool,
    vcpus: Vec<Mutex<Vcpu>>,
    /// The kernel's numbers of the threads; 0 before a thread has begun.
    ids: Vec<AtomicI32>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn index(vcpu: u32) -> usize {
    usize::try_from(vcpu).unwrap_or(usize::MAX)
}

/// The signal that takes a thread out of the guest.
pub(super) fn kick() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Crew {
    /// Starts a thread for each of the vCPUs; none runs before [`Crew::run`]. `stubborn` does not
    /// park.
    pub(super) fn start(
        vcpus: Vec<Vcpu>,
        devices: &Arc<Devices>,
        tell: &Sender<Told>,
        stubborn: Option<u32>,
    ) -> Result<Arc<Self>, String> {
        register_signal_handler(kick(), kicked).map_err(|e| format!("a signal handler: {e}"))?;
        let crew = Arc::new(Self {
            floor: Mutex::new(Floor {
                order: Order::Park,
                stands: vec![false; vcpus.len()],
            }),
            moved: Condvar::new(),
            halt: AtomicBool::new(true),
            ids: vcpus.iter().map(|_| AtomicI32::default()).collect(),
            vcpus: vcpus.into_iter().map(Mutex::new).collect(),
            threads: Mutex::default(),
        });
        for number in 0..crew.count() {
            let (own, devices, tell) = (Arc::clone(&crew), Arc::clone(devices), tell.clone());
            let stubborn = stubborn == Some(number);
            let started = thread::Builder::new()
                .name(format!("vcpu-{number}"))
                .spawn(move || own.work(number, &devices, &tell, stubborn));
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
        u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX)
    }

    /// The kernel's numbers of the threads, in the order of vCPUs, once all of them stand.
    pub(super) fn thread_ids(&self) -> Vec<i32> {
        let ids = self.ids.iter().map(|id| id.load(Ordering::SeqCst));
        ids.collect()
    }

    /// The vCPU, once it stands. Its thread has it otherwise, so this would wait for it.
    pub(super) fn vcpu(&self, number: u32) -> Option<MutexGuard<'_, Vcpu>> {
        let stands = lock(&self.floor).stands.get(index(number)).copied();
        if stands != Some(true) {
            return None;
        }
        self.vcpus.get(index(number)).map(lock)
    }

    fn order(&self, order: Order) {
        let mut floor = lock(&self.floor);
        if floor.order == Order::Quit {
            return;
        }
        floor.order = order;
        self.halt.store(order != Order::Run, Ordering::SeqCst);
        if order == Order::Run {
            floor.stands.fill(false);
        }
        drop(floor);
        self.moved.notify_all();
    }

    /// Lets all of them run.
    pub(super) fn run(&self) {
        self.order(Order::Run);
    }

    /// Makes all of them stand; gives back those that did not within the deadline.
    pub(super) fn park(&self, deadline: Duration) -> Vec<u32> {
        self.order(Order::Park);
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
    fn kick(&self) {
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
        self.order(Order::Quit);
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
    fn work(&self, number: u32, devices: &Devices, tell: &Sender<Told>, stubborn: bool) {
        if let Some(id) = self.ids.get(index(number)) {
            let own = rustix::thread::gettid().as_raw_nonzero().get();
            id.store(own, Ordering::SeqCst);
        }
        let mut over = false;
        if let Err(e) = jail::enter(Role::Vcpu) {
            let why = format!("no seccomp filter for the thread of vCPU {number}: {e}");
            over = true;
            let _ = tell.send(Told::Failed { why });
        }
        while self.stand(number, over) {
            let Some(vcpu) = self.vcpus.get(index(number)) else {
                return;
            };
            let mut vcpu = lock(vcpu);
            while !self.halt.load(Ordering::SeqCst) || (stubborn && !self.is_over()) {
                let Some(told) = enter(&mut vcpu, number, devices) else {
                    continue;
                };
                over = matches!(told, Told::Ended { .. } | Told::Failed { .. });
                self.order(Order::Park);
                // Nobody listens to a machine that is being left.
                let _ = tell.send(told);
                break;
            }
            settle(&mut vcpu);
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

/// Lets the guest run until something has happened to this vCPU that others have to know.
fn enter(vcpu: &mut Vcpu, number: u32, devices: &Devices) -> Option<Told> {
    let ended = |how: &str, powered_off| {
        Some(Told::Ended {
            how: how.into(),
            powered_off,
        })
    };
    let failed = |why: String| Some(Told::Failed { why });
    match vcpu.fd.run() {
        Ok(VcpuExit::IoOut(port, data)) => match devices.write(port, data) {
            Effect::None => None,
            Effect::PowerOff => ended("powered off", true),
            Effect::Reset => ended("reset", false),
        },
        Ok(VcpuExit::IoIn(port, data)) => {
            devices.read(port, data);
            None
        }
        // Nothing is there.
        Ok(VcpuExit::MmioRead(_, data)) => {
            data.fill(0xff);
            None
        }
        Ok(VcpuExit::MmioWrite(..) | VcpuExit::Intr | VcpuExit::IrqWindowOpen) => None,
        Ok(VcpuExit::Debug(debug)) => Some(Told::Debug {
            vcpu: number,
            pc: debug.pc,
            dr6: debug.dr6,
        }),
        Ok(VcpuExit::Shutdown) => ended(&format!("reset (triple fault on vCPU {number})"), false),
        Ok(VcpuExit::SystemEvent(kind, _)) => match kind {
            KVM_SYSTEM_EVENT_SHUTDOWN => ended("powered off", true),
            KVM_SYSTEM_EVENT_RESET => ended("reset", false),
            KVM_SYSTEM_EVENT_CRASH => ended("its kernel told KVM that it crashed", false),
            kind => failed(format!("KVM's system event {kind} is not known here")),
        },
        Ok(VcpuExit::InternalError) => failed(internal_error(vcpu, number)),
        Ok(VcpuExit::FailEntry(reason, _)) => failed(format!(
            "vCPU {number} could not enter the guest (KVM_EXIT_FAIL_ENTRY, hardware reason {reason:#x})"
        )),
        Ok(VcpuExit::MemoryFault { gpa, .. }) => failed(format!(
            "vCPU {number} met memory that KVM could not give it, at {gpa:#x} (KVM_EXIT_MEMORY_FAULT)"
        )),
        Ok(exit) => failed(format!(
            "vCPU {number}: KVM's exit {exit:?} is not known here"
        )),
        // A signal, or a vCPU that nobody has started yet.
        Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => None,
        Err(e) => failed(format!("vCPU {number}: KVM_RUN: {e}")),
    }
}

/// Takes a vCPU past an instruction that would stop it, and sets the stops again. What else happens
/// on the way is given back.
pub(super) fn step(
    vcpu: &mut Vcpu,
    number: u32,
    devices: &Devices,
    stops: &[Stop],
) -> Option<Told> {
    let from = vcpu.fd.get_regs().ok()?.rip;
    debug::set_step(&vcpu.fd).ok()?;
    let mut other = None;
    for _ in 0..MAX_STEP {
        match enter(vcpu, number, devices) {
            Some(Told::Debug { .. }) => break,
            Some(told) => {
                other = Some(told);
                break;
            }
            // A device was asked, or a signal came.
            None if vcpu.fd.get_regs().is_ok_and(|regs| regs.rip == from) => {}
            None => break,
        }
    }
    // Without them it goes on all the same.
    let _ = debug::set(&vcpu.fd, stops);
    other
}

/// Completes an access to a device that the guest was taken out of, without entering it again:
/// registers are right only then.
fn settle(vcpu: &mut Vcpu) {
    vcpu.fd.set_kvm_immediate_exit(1);
    let _: Result<VcpuExit<'_>, Error> = vcpu.fd.run();
    vcpu.fd.set_kvm_immediate_exit(0);
}

/// The instruction that a vCPU stands at, as far as its page goes.
fn instruction(vcpu: &Vcpu, rip: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let left = usize::try_from(4096 - rip % 4096).unwrap_or(0);
    if let Ok(place) = vcpu.fd.translate_gva(rip)
        && place.valid != 0
    {
        bytes.resize(left.min(MAX_INSTRUCTION), 0);
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
