//! Tiny guests, written as bytes, on the machine's own KVM. Plain `cargo test` leaves them out, for
//! not every machine has one: `tests/guest/nested.py --here` runs them, and within a guest that
//! has one.

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use scx_postmortem_format::capture::VcpuState;
use vm_memory::{Bytes, GuestAddress};

use super::boot::Start;
use super::*;

/// Where the first vCPU's code is; the others' is a page further each.
const CODE: u64 = 0x1_0000;
/// What the guests count in.
const DATA: u64 = 0x3_0000;
const SOON: Duration = Duration::from_secs(5);
/// One machine at a time: threads and files of all of them are counted.
static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Writes a letter to the console and powers off.
#[rustfmt::skip]
const HELLO: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx,0x3f8
    0xb0, 0x6b, // mov al,0x6b
    0xee, // out dx,al
    0x66, 0xba, 0x04, 0x06, // mov dx,0x604
    0x66, 0xb8, 0x00, 0x34, // mov ax,0x3400
    0x66, 0xef, // out dx,ax
    0xf4, // hlt
    0xeb, 0xfd, // jmp 0x11
];

/// Makes a device open a file of the host, then powers off.
#[rustfmt::skip]
const BREAKER: &[u8] = &[
    0x66, 0xba, 0x00, 0x07, // mov dx,0x700
    0xee, // out dx,al
    0x66, 0xba, 0x04, 0x06, // mov dx,0x604
    0x66, 0xb8, 0x00, 0x34, // mov ax,0x3400
    0x66, 0xef, // out dx,ax
    0xeb, 0xfe, // jmp 0xf
];

/// Tells the first vCPU that it runs.
#[rustfmt::skip]
const SECOND: &[u8] = &[
    0xc7, 0x04, 0x25, 0x00, 0x00, 0x03, 0x00, 0x07, 0x00, 0x00, 0x00, // mov DWORD PTR ds:0x30000,0x7
    0xeb, 0xfe, // jmp 0xb
];

/// Waits for the second vCPU and powers off.
#[rustfmt::skip]
const FIRST: &[u8] = &[
    0x83, 0x3c, 0x25, 0x00, 0x00, 0x03, 0x00, 0x07, // cmp DWORD PTR ds:0x30000,0x7
    0x75, 0xf6, // jne 0x0
    0x66, 0xba, 0x04, 0x06, // mov dx,0x604
    0x66, 0xb8, 0x00, 0x34, // mov ax,0x3400
    0x66, 0xef, // out dx,ax
    0xeb, 0xfe, // jmp 0x14
];

/// Counts for ever, with interrupts off.
#[rustfmt::skip]
const COUNT: &[u8] = &[
    0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x03, 0x00, // inc QWORD PTR ds:0x30000
    0xeb, 0xf6, // jmp 0x0
];

/// Counts for ever and notes the time stamp counter.
#[rustfmt::skip]
const CLOCK: &[u8] = &[
    0x0f, 0x31, // rdtsc
    0x48, 0xc1, 0xe2, 0x20, // shl rdx,0x20
    0x48, 0x09, 0xd0, // or rax,rdx
    0x48, 0x89, 0x04, 0x25, 0x08, 0x00, 0x03, 0x00, // mov QWORD PTR ds:0x30008,rax
    0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x03, 0x00, // inc QWORD PTR ds:0x30000
    0xeb, 0xe5, // jmp 0x0
];

/// Waits until it is let go, then writes what is watched.
#[rustfmt::skip]
const LATE: &[u8] = &[
    0x83, 0x3c, 0x25, 0x10, 0x00, 0x03, 0x00, 0x00, // cmp DWORD PTR ds:0x30010,0x0
    0x74, 0xf6, // je 0x0
    0xc7, 0x04, 0x25, 0x00, 0x00, 0x03, 0x00, 0x05, 0x00, 0x00, 0x00, // mov DWORD PTR ds:0x30000,0x5
    0xeb, 0xfe, // jmp 0x15
];

/// Debugs itself: steps through its own code by the trap flag, behind a wait until it is let go.
#[rustfmt::skip]
const DEBUGGER: &[u8] = &[
    0x83, 0x3c, 0x25, 0x10, 0x00, 0x03, 0x00, 0x00, // cmp DWORD PTR ds:0x30010,0x0
    0x74, 0xf6, // je 0x0
    0x0f, 0x01, 0x1c, 0x25, 0x00, 0x01, 0x03, 0x00, // lidt ds:0x30100
    0x9c, // pushf
    0x48, 0x81, 0x0c, 0x24, 0x00, 0x01, 0x00, 0x00, // or QWORD PTR [rsp],0x100
    0x9d, // popf
    0x90, // nop
    0x90, // nop
    0xeb, 0xfe, // jmp 0x1e
];
const STEPPED: u64 = CODE + 0x1d;
/// Where handlers are, and this one's: it notes DR6 and where it was, counts, and ends the stepping.
const HANDLER: u64 = CODE + 0x800;
#[rustfmt::skip]
const HANDLES: &[u8] = &[
    0x0f, 0x21, 0xf0, // mov rax,dr6
    0x48, 0x89, 0x04, 0x25, 0x08, 0x00, 0x03, 0x00, // mov QWORD PTR ds:0x30008,rax
    0x48, 0x8b, 0x04, 0x24, // mov rax,QWORD PTR [rsp]
    0x48, 0x89, 0x04, 0x25, 0x18, 0x00, 0x03, 0x00, // mov QWORD PTR ds:0x30018,rax
    0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x03, 0x00, // inc QWORD PTR ds:0x30000
    0x48, 0x81, 0x64, 0x24, 0x10, 0xff, 0xfe, 0xff, 0xff, // and QWORD PTR [rsp+0x10],0xfffffffffffffeff
    0x48, 0xcf, // iretq
];

/// Copies what counts in one string instruction, over and over.
#[rustfmt::skip]
const COPIES: &[u8] = &[
    0xbe, 0x00, 0x00, 0x80, 0x00, // mov esi,0x800000
    0xbf, 0x00, 0x00, 0x04, 0x00, // mov edi,0x40000
    0xb9, 0x00, 0x20, 0x00, 0x00, // mov ecx,0x2000
    0xf3, 0xa4, // rep movsb
    0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x03, 0x00, // inc QWORD PTR ds:0x30000
    0xeb, 0xe5, // jmp 0x0
];
const COPY: u64 = CODE + 15;
/// Where it copies to, and how much each time.
const COPY_TO: u64 = 0x4_0000;
const COPY_BYTES: u64 = 0x2000;

/// A value of its own for each register, and for each vCPU.
fn pattern(vcpu: u8, register: u8) -> u64 {
    u64::from(vcpu * 0x40 + register) * 0x0101_0101_0101_0101
}

/// The model-specific registers that a guest sets, and to what.
fn model_specific(vcpu: u8) -> [(u32, u64); 16] {
    let own = u64::from(vcpu) << 12;
    [
        (0xc000_0081, 0x0023_0010_1111_1111 + own),
        (0xc000_0082, 0xffff_ffff_2222_2222 + own),
        (0xc000_0083, 0xffff_ffff_3333_3333 + own),
        (0xc000_0084, 0x4_4700),
        (0xc000_0100, 0x7f00_5555_5555 + own),
        (0xc000_0101, 0xffff_8880_6666_6666 + own),
        (0xc000_0102, 0x7f11_7777_7777 + own),
        (0xc000_0103, 0x8000 + own),
        (0x174, 0x10),
        // AMD's have no more than 32 bits.
        (0x175, 0x8200_3000 + own),
        (0x176, 0x8100_1000 + own),
        (0x277, 0x0007_0406_0007_0406),
        (0x2ff, 0xc06),
        (0x6e0, 0),
        // One for all of them.
        (0x4b56_4d00, 0x3_8000),
        (0x4b56_4d01, 0x3_9001 + own),
    ]
}

/// The table that these guests have while they set them, and its only handler: it counts an MSR that
/// the guest may not set, and goes on behind the instruction.
const IDT: u64 = DATA + 0x1000;
const REFUSED: u64 = DATA + 0x2000;
const GENERAL_PROTECTION: u64 = 13;
#[rustfmt::skip]
const SKIPS: &[u8] = &[
    0x48, 0x83, 0xc4, 0x08, // add rsp,0x8
    0xff, 0x04, 0xb5, 0x00, 0x20, 0x03, 0x00, // inc DWORD PTR [rsi*4+0x32000]
    0x48, 0x83, 0x04, 0x24, 0x02, // add QWORD PTR [rsp],0x2
    0x48, 0xcf, // iretq
];

/// Puts a table of one handler where `lidt` at `pointer` finds it.
fn handle(machine: &Kvm, pointer: u64, table: u64, vector: u64, handler: &[u8]) {
    let memory = &machine.vm.memory;
    memory.write_slice(handler, GuestAddress(HANDLER)).unwrap();
    let limit = u16::try_from(vector * 16 + 15).unwrap();
    memory.write_obj(limit, GuestAddress(pointer)).unwrap();
    memory.write_obj(table, GuestAddress(pointer + 2)).unwrap();
    // An interrupt gate in the code segment.
    let gate = 0x8e00u64 << 32 | 0x10 << 16 | HANDLER & 0xffff | (HANDLER >> 16) << 48;
    let at = GuestAddress(table + vector * 16);
    memory.write_obj(gate, at).unwrap();
}

/// Which counter of [`REFUSED`] belongs to an MSR, by its place in [`model_specific`].
fn counter(vcpu: u8, place: u8) -> u32 {
    u32::from(vcpu) * 0x40 + u32::from(place)
}

/// Waits until it is let go, sets every register that a capture has, tells so in its own last bytes,
/// and stands there.
fn registers(vcpu: u8) -> Vec<u8> {
    let mut code = Vec::new();
    let low = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap().to_le_bytes();
    #[rustfmt::skip]
    code.extend([
        0x83, 0x3c, 0x25, 0x10, 0x00, 0x03, 0x00, 0x00, // cmp DWORD PTR ds:0x30010,0x0
        0x74, 0xf6, // je 0x0
        0x0f, 0x01, 0x1c, 0x25, 0x80, 0x01, 0x03, 0x00, // lidt ds:0x30180
    ]);
    // A stack for each.
    let stack = u32::try_from(DATA).unwrap() + 0x4000 + u32::from(vcpu) * 0x1000;
    code.push(0xbc); // mov esp,imm32
    code.extend(stack.to_le_bytes());
    for (place, (index, value)) in (0u8..).zip(model_specific(vcpu)) {
        code.push(0xbe); // mov esi,imm32
        code.extend(counter(vcpu, place).to_le_bytes());
        code.push(0xb9); // mov ecx,imm32
        code.extend(index.to_le_bytes());
        code.push(0xb8); // mov eax,imm32
        code.extend(low(value));
        code.push(0xba); // mov edx,imm32
        code.extend(low(value >> 32));
        code.extend([0x0f, 0x30]); // wrmsr
    }
    #[rustfmt::skip]
    code.extend([
        0x48, 0xc7, 0xc0, 0x78, 0x56, 0x34, 0x12, // mov rax,0x12345678
        0x0f, 0x22, 0xd0, // mov cr2,rax
        0x48, 0xc7, 0xc0, 0x00, 0x10, 0x00, 0x00, // mov rax,0x1000
        0x0f, 0x23, 0xc0, // mov dr0,rax
        0x48, 0xc7, 0xc0, 0x00, 0x20, 0x00, 0x00, // mov rax,0x2000
        0x0f, 0x23, 0xd8, // mov dr3,rax
        0xb8, 0x05, 0x00, 0x00, 0x00, // mov eax,0x5
        0x44, 0x0f, 0x22, 0xc0, // mov cr8,rax
        0x0f, 0x01, 0x1c, 0x25, 0x00, 0x01, 0x03, 0x00, // lidt ds:0x30100
        0xb8, 0x18, 0x00, 0x00, 0x00, // mov eax,0x18
        0x8e, 0xd8, // mov ds,eax
        0x8e, 0xc0, // mov es,eax
    ]);
    // rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8 to r15: movabs.
    let moves = [0xb8, 0xbb, 0xb9, 0xba, 0xbe, 0xbf, 0xbd, 0xbc].map(|op| (0x48, op));
    let moves = moves.into_iter().chain((0xb8..=0xbf).map(|op| (0x49, op)));
    for (register, (prefix, op)) in (1u8..).zip(moves) {
        code.extend([prefix, op]);
        code.extend(pattern(vcpu, register).to_le_bytes());
    }
    #[rustfmt::skip]
    code.extend([
        0xf9, // stc
        0xff, 0x05, 0x02, 0x00, 0x00, 0x00, // inc DWORD PTR [rip+0x2]
        0xeb, 0xfe, // jmp to itself
        0x00, 0x00, 0x00, 0x00, // becomes 1
    ]);
    code
}

/// What is in a vector register; the lower half is xmm's.
fn vector(register: u8) -> [u8; 32] {
    std::array::from_fn(|byte| register * 8 + u8::try_from(byte).unwrap())
}

fn bytes(bytes: &[u8]) -> u128 {
    u128::from_le_bytes(bytes.try_into().unwrap())
}

/// Round towards zero, all exceptions masked; and what it is after a reset.
const MXCSR: u16 = 0x7f80;
const MXCSR_RESET: u16 = 0x1f80;

/// What a guest sets beside xmm0 to 15; some KVMs emulate no more than these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sets {
    Xmm,
    /// Two numbers in x87, and MXCSR.
    Floats,
    /// The same, and the upper halves of ymm0 to 15.
    Ymm,
}

/// Loads these, all vector registers with [`vector`], and stands there. What it loads is behind the
/// code.
#[rustfmt::skip]
fn vectors(sets: Sets) -> Vec<u8> {
    let wide = sets == Sets::Ymm;
    // Where the first vector is: code, and MXCSR's value, are before it.
    const FIRST: usize = 0x400;
    let mut code = vec![
        0x0f, 0x20, 0xe0, // mov rax,cr4
        0x0d, 0x00, 0x06, if wide { 4 } else { 0 }, 0x00, // or eax,0x600 or 0x40600
        0x0f, 0x22, 0xe0, // mov cr4,rax
    ];
    if wide {
        code.extend([
            0x31, 0xc9, // xor ecx,ecx
            0x31, 0xd2, // xor edx,edx
            0xb8, 0x07, 0x00, 0x00, 0x00, // mov eax,0x7
            0x0f, 0x01, 0xd1, // xsetbv
        ]);
    }
    code.extend([
        0xdb, 0xe3, // fninit
        0xbf, 0x00, 0x04, 0x01, 0x00, // mov edi,0x10400
    ]);
    if sets != Sets::Xmm {
        code.extend([
            0xd9, 0xe8, // fld1
            0xd9, 0xeb, // fldpi
            0x0f, 0xae, 0x57, 0xf0, // ldmxcsr [rdi-0x10]
        ]);
    }
    for register in 0..16u8 {
        // (v)movdqu register,[rdi+register*32]
        match (wide, register < 8) {
            (true, true) => code.extend([0xc5, 0xfe, 0x6f]),
            (true, false) => code.extend([0xc5, 0x7e, 0x6f]),
            (false, true) => code.extend([0xf3, 0x0f, 0x6f]),
            (false, false) => code.extend([0xf3, 0x44, 0x0f, 0x6f]),
        }
        code.push(0x87 | (register & 7) << 3);
        code.extend((u32::from(register) * 32).to_le_bytes());
    }
    code.extend([
        0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x03, 0x00, // inc QWORD PTR ds:0x30000
        0xeb, 0xfe, // jmp to itself
    ]);
    code.resize(FIRST - 16, 0x90);
    code.extend(u32::from(MXCSR).to_le_bytes());
    code.resize(FIRST, 0);
    for register in 0..16 {
        code.extend(vector(register));
    }
    code
}

/// Values of a capture beside those that the guest has set.
#[derive(Default)]
struct Compared {
    all: usize,
    differ: Vec<String>,
    /// Model-specific registers that this host's KVM does not give.
    not_here: Vec<String>,
}

impl Compared {
    fn value<T: Into<u128>>(&mut self, name: impl std::fmt::Display, found: T, expected: T) {
        let (found, expected) = (found.into(), expected.into());
        self.all += 1;
        if found != expected {
            let difference = format!("{name} is {found:#x}, not {expected:#x}");
            self.differ.push(difference);
        }
    }

    fn tell(&self, what: &str) {
        println!(
            "{what}: {} values compared, {} differ; MSRs that this KVM does not have: {:?}",
            self.all,
            self.differ.len(),
            self.not_here
        );
        assert_eq!(self.differ, [""; 0]);
    }
}

/// A jump to itself.
const SPINS: &[u8] = &[0xeb, 0xfe];

/// `ud2`, with no handler for it.
const FAULT: &[u8] = &[0x0f, 0x0b];

/// A machine whose vCPUs run these, with interrupts off.
fn tiny(codes: &[&[u8]], unparked: Option<u32>) -> Kvm {
    let vcpus = u32::try_from(codes.len()).unwrap();
    let topology = Topology { vcpus, nodes: 1 };
    let machine = Kvm::prepare(topology, 4 << 20, unparked);
    let mut machine = machine.unwrap_or_else(|e| panic!("this test needs a KVM that works: {e}"));
    boot::long_mode_tables(&machine.vm.memory).unwrap();
    for (number, code) in (0..).zip(codes) {
        let rip = CODE + u64::from(number) * 0x1000;
        let memory = &machine.vm.memory;
        memory.write_slice(code, GuestAddress(rip)).unwrap();
        let vcpu = machine.crew.vcpu(number).unwrap();
        boot::enter(&vcpu.fd, Start::Long { rip, rsi: 0 }).unwrap();
        let runs = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        vcpu.fd.set_mp_state(runs).unwrap();
    }
    machine.resume().unwrap();
    machine
}

fn read(machine: &Kvm, at: u64) -> u64 {
    machine.vm.memory.read_obj(GuestAddress(at)).unwrap()
}

fn write(machine: &Kvm, at: u64, value: u64) {
    machine
        .vm
        .memory
        .write_obj(value, GuestAddress(at))
        .unwrap();
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < end, "it never came to pass: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn one() -> std::sync::MutexGuard<'static, ()> {
    ONE.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn ended(machine: &mut Kvm) -> (String, bool) {
    match machine.wait(SOON) {
        Ok(Some(Event::Ended { how, powered_off })) => (how, powered_off),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_has_no_access_is_told_what_to_do_about_it() {
    use std::os::unix::fs::PermissionsExt;

    let device = tempfile::NamedTempFile::new().unwrap();
    let told = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(device.path(), mode).unwrap();
        no_access(device.path())
    };
    assert!(told(0o660).ends_with("mode 660): add yourself to that group (usually kvm)"));
    assert!(told(0o600).contains("mode 600): its group has no access"));
    assert!(told(0o666).contains("mode 666): something else forbids it"));
    let gone = no_access(Path::new("/nothing/there"));
    assert_eq!(gone, "no access to /nothing/there");
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn a_guest_writes_to_its_console_and_powers_off() {
    let _one = one();
    let mut machine = tiny(&[HELLO], None);
    assert_eq!(ended(&mut machine), ("powered off".into(), true));
    assert_eq!(machine.console(), b"k");
    assert_eq!(machine.describe().0, "kvm");
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn what_a_guest_makes_a_device_do_is_refused_by_the_kernel() {
    const FILTERED: &str = "Seccomp:\t2";
    let _one = one();
    let mut machine = tiny(&[BREAKER, COUNT], None);
    machine.stop_at(&[Stop::Change(DATA + 8)]).unwrap();
    assert_eq!(ended(&mut machine), ("powered off".into(), true));
    let opened = *machine.devices.opened.lock().unwrap();
    assert_eq!(opened, Some(Some(libc::EPERM)));
    // All threads that serve the guest have a filter, and this one has not.
    let mut found = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let name = read("comm").trim().to_owned();
        if name.starts_with("vcpu-") || name == "watcher" {
            assert!(read("status").contains(FILTERED), "{name}");
            found.push(name);
        }
    }
    found.sort();
    assert_eq!(found, ["vcpu-0", "vcpu-1", "watcher"]);
    let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    assert!(!own.contains(FILTERED), "{own}");
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn two_vcpus_run_at_the_same_time() {
    let _one = one();
    let mut machine = tiny(&[FIRST, SECOND], None);
    assert_eq!(ended(&mut machine), ("powered off".into(), true));
    assert_eq!(read(&machine, DATA), 7);
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn a_triple_fault_ends_the_guest_and_leaves_its_registers() {
    let _one = one();
    let mut machine = tiny(&[FAULT, COUNT], None);
    let (how, powered_off) = ended(&mut machine);
    assert!(
        how.contains("triple fault on vCPU 0") && !powered_off,
        "{how}"
    );
    let frozen = machine.freeze(SOON);
    assert_eq!((frozen.vcpus.len(), frozen.faults.len()), (2, 0));
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn a_vcpu_that_spins_with_interrupts_off_parks_and_goes_on() {
    let _one = one();
    let mut machine = tiny(&[COUNT, COUNT], None);
    let mut longest = Duration::ZERO;
    for cycle in 0..100 {
        let before = read(&machine, DATA);
        until("work goes on", || read(&machine, DATA) > before);
        let start = Instant::now();
        let frozen = machine.freeze(SOON);
        longest = longest.max(start.elapsed());
        assert_eq!(frozen.faults, [""; 0], "cycle {cycle}");
        let rips: Vec<u64> = frozen.vcpus.iter().map(|v| v.general.rip).collect();
        for (number, rip) in (0..).zip(rips) {
            let offset = rip - CODE - number * 0x1000;
            assert!(offset == 0 || offset == 8, "vCPU {number} is at {rip:#x}");
        }
        let still = read(&machine, DATA);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(
            read(&machine, DATA),
            still,
            "cycle {cycle}: it works while it stands"
        );
        machine.resume().unwrap();
    }
    println!("longest of 100 freezes: {longest:?}");
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn one_that_does_not_park_is_missing_and_the_others_are_there() {
    let _one = one();
    let mut machine = tiny(&[LATE, COUNT], Some(1));
    until("the second one runs", || read(&machine, DATA) > 0);
    let frozen = machine.freeze(Duration::from_millis(200));
    let there: Vec<u32> = frozen.vcpus.iter().map(|vcpu| vcpu.vcpu).collect();
    assert_eq!(there, [0]);
    assert_eq!(frozen.faults, ["vCPU 1 did not stop within 0.2 s"]);
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn registers_are_those_that_the_guest_has_set() {
    let _one = one();
    let codes = [registers(0), registers(1)];
    let mut machine = tiny(&[&codes[0], &codes[1]], None);
    handle(&machine, DATA + 0x180, IDT, GENERAL_PROTECTION, SKIPS);
    write(&machine, DATA + 16, 1);
    let event = machine.wait(Duration::from_millis(500)).unwrap();
    assert_eq!(event, None);
    let frozen = machine.freeze(SOON);
    assert_eq!(frozen.faults, [""; 0]);
    let mut seen = Compared::default();
    for (vcpu, (state, code)) in (0u8..).zip(frozen.vcpus.iter().zip(&codes)) {
        let begin = CODE + u64::from(vcpu) * 0x1000;
        let told = begin + u64::try_from(code.len()).unwrap() - 4;
        let offset = state.general.rip - begin;
        let stands = read(&machine, told) & 0xff;
        assert_eq!(stands, 1, "vCPU {vcpu} stands at {offset:#x}");
        let refused = |place| {
            let at = REFUSED + u64::from(counter(vcpu, place)) * 4;
            read(&machine, at) & 0xffff_ffff != 0
        };
        let mut set = Vec::new();
        for (place, (index, value)) in (0u8..).zip(model_specific(vcpu)) {
            if refused(place) {
                seen.not_here.push(format!("{index:#x}"));
            } else {
                set.push((index, value));
            }
        }
        // Those of system calls and segments are everywhere.
        assert!(set.len() >= 8, "{:?}", seen.not_here);
        compare_registers(&mut seen, vcpu, state, told - 2, &set);
    }
    assert_eq!(frozen.vcpus.len(), 2);
    seen.tell("registers");
}

/// Compares with what [`registers`] has set, and with what a reset has where it sets nothing.
fn compare_registers(
    seen: &mut Compared,
    vcpu: u8,
    state: &VcpuState,
    rip: u64,
    set: &[(u32, u64)],
) {
    let g = &state.general;
    let general = [
        ("rax", g.rax),
        ("rbx", g.rbx),
        ("rcx", g.rcx),
        ("rdx", g.rdx),
        ("rsi", g.rsi),
        ("rdi", g.rdi),
        ("rbp", g.rbp),
        ("rsp", g.rsp),
        ("r8", g.r8),
        ("r9", g.r9),
        ("r10", g.r10),
        ("r11", g.r11),
        ("r12", g.r12),
        ("r13", g.r13),
        ("r14", g.r14),
        ("r15", g.r15),
    ];
    for (register, (name, found)) in (1u8..).zip(general) {
        seen.value(name, found, pattern(vcpu, register));
    }
    seen.value("rip", g.rip, rip);
    // Carry, and the bit that is always set.
    seen.value("rflags", g.rflags, 3);
    let special = state.special.unwrap();
    let (code, data) = (0xa0_9b00, 0xc0_9300);
    let own = u64::from(vcpu) << 12;
    let segments = [
        ("cs", special.cs, 0x10, code, 0),
        ("ds", special.ds, 0x18, data, 0),
        ("es", special.es, 0x18, data, 0),
        ("fs", special.fs, 0x18, data, 0x7f00_5555_5555 + own),
        ("gs", special.gs, 0x18, data, 0xffff_8880_6666_6666 + own),
        ("ss", special.ss, 0x18, data, 0),
    ];
    for (name, found, selector, flags, base) in segments {
        seen.value(name, found.selector, selector);
        seen.value(format!("{name}, flags"), found.flags, flags);
        seen.value(format!("{name}, limit"), found.limit, 0xffff_ffffu32);
        seen.value(format!("{name}, base"), found.base, base);
    }
    // A task state segment that is busy.
    seen.value("ldt", special.ldt.selector, 0);
    seen.value("tr", special.tr.selector, 0x20);
    seen.value("tr, type", special.tr.flags >> 8 & 0xf, 0xb);
    seen.value("gdt", special.gdt.base, layout::GDT);
    seen.value("gdt, limit", special.gdt.limit, 39);
    seen.value("idt", special.idt.base, 0);
    seen.value("idt, limit", special.idt.limit, 0);
    seen.value("cr0", special.cr0, 0x8000_0011);
    seen.value("cr2", special.cr2, 0x1234_5678);
    seen.value("cr3", special.cr3, layout::PAGE_TABLES);
    seen.value("cr4", special.cr4, 0x20);
    seen.value("cr8", special.cr8.unwrap(), 5);
    seen.value("efer", special.efer.unwrap(), 0x500);
    let debug = state.debug.unwrap();
    seen.value("dr0", debug.dr0, 0x1000);
    seen.value("dr1", debug.dr1, 0);
    seen.value("dr2", debug.dr2, 0);
    seen.value("dr3", debug.dr3, 0x2000);
    seen.value("dr6", debug.dr6, 0xffff_0ff0);
    seen.value("dr7", debug.dr7, 0x400);
    // The local APIC is on, and the first vCPU is who boots.
    let apic = if vcpu == 0 { 0xfee0_0900 } else { 0xfee0_0800 };
    let reset = [
        (0xc000_0080, 0x500),
        (0x1b, apic),
        (0x3b, 0),
        (0x48, 0),
        (0xda0, 0),
    ];
    for (index, value) in set.iter().copied().chain(reset) {
        match state.msr(index) {
            Some(found) => seen.value(format!("MSR {index:#x}"), found, value),
            None => seen.not_here.push(format!("{index:#x}")),
        }
    }
    assert!(
        state.msr(0x10).is_some_and(|tsc| tsc > 0),
        "{:?}",
        state.msrs
    );
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn vector_registers_are_those_that_the_guest_has_set() {
    let _one = one();
    // Whether the guest may have the wider ones is known from a first one.
    let has_xsave = !tiny(&[COUNT], None).detail.contains("no XSAVE");
    let wide = has_xsave && is_x86_feature_detected!("avx");
    let mut sets = if wide { Sets::Ymm } else { Sets::Floats };
    let mut machine = tiny(&[&vectors(sets)], None);
    let end = Instant::now() + SOON;
    while read(&machine, DATA) != 1 {
        assert!(
            Instant::now() < end,
            "it never came to pass: it has set them"
        );
        match machine.wait(Duration::from_millis(5)) {
            Ok(None) => {}
            Err(MachineError::Gone(why)) if sets == Sets::Floats && why.contains("EMULATION") => {
                sets = Sets::Xmm;
                machine = tiny(&[&vectors(sets)], None);
            }
            other => panic!("{other:?}"),
        }
    }
    let frozen = machine.freeze(SOON);
    assert_eq!(frozen.faults, [""; 0]);
    let area = &frozen.vcpus[0].xsave;
    let word = |at: usize| u64::from_le_bytes(area[at..at + 8].try_into().unwrap());
    let short = |at: usize| u16::from_le_bytes(area[at..at + 2].try_into().unwrap());
    let mut seen = Compared::default();
    seen.value("FCW", short(0), 0x37f);
    if sets == Sets::Xmm {
        seen.value("FSW", short(2), 0);
        seen.value("FTW", area[4], 0);
        seen.value("MXCSR", short(24), MXCSR_RESET);
    } else {
        // The register that is the stack's top, and those that hold something.
        seen.value("FSW", short(2), 6 << 11);
        seen.value("FTW", area[4], 0xc0);
        seen.value("MXCSR", short(24), MXCSR);
        seen.value("ST0", word(32), 0xc90f_daa2_2168_c235);
        seen.value("ST0, exponent", short(40), 0x4000);
        seen.value("ST1", word(48), 1 << 63);
        seen.value("ST1, exponent", short(56), 0x3fff);
    }
    for register in 0..16u8 {
        let at = 160 + usize::from(register) * 16;
        let low = &vector(register)[..16];
        seen.value(
            format!("xmm{register}"),
            bytes(&area[at..at + 16]),
            bytes(low),
        );
        if wide {
            let at = 576 + usize::from(register) * 16;
            let high = &vector(register)[16..];
            let found = bytes(&area[at..at + 16]);
            seen.value(format!("ymm{register}, above"), found, bytes(high));
        }
    }
    let features = if wide { 7 } else { 3 };
    seen.value("features", word(464), features);
    seen.value("length", area.len() as u64, if wide { 832 } else { 576 });
    seen.tell(&format!("vectors ({sets:?})"));
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn no_time_passes_for_a_guest_that_stands() {
    const PAUSE: Duration = Duration::from_millis(400);
    let _one = one();
    let mut machine = tiny(&[CLOCK, CLOCK], None);
    until("it runs", || read(&machine, DATA) > 0);
    machine.freeze(SOON);
    let khz = machine.crew.vcpu(0).unwrap().fd.get_tsc_khz().unwrap();
    let before = read(&machine, DATA + 8);
    std::thread::sleep(PAUSE);
    // What a capture has is the time of the stop, whenever it is read.
    let state = &machine.freeze(SOON).vcpus[0];
    let stood = state.msr(0x10).unwrap().abs_diff(before) * 1000 / u64::from(khz);
    let stood = Duration::from_micros(stood);
    assert!(
        stood < PAUSE / 4,
        "the TSC is {stood:?} from the guest's last"
    );
    let count = read(&machine, DATA);
    let resumed = Instant::now();
    machine.resume().unwrap();
    until("it goes on", || read(&machine, DATA) > count);
    let passed = read(&machine, DATA + 8) - before;
    let most = resumed.elapsed() + PAUSE / 4;
    let passed = Duration::from_micros(passed * 1000 / u64::from(khz));
    println!("time can be set back: {}", machine.shifts);
    if machine.shifts {
        assert!(
            passed < most,
            "{passed:?} passed in the guest, at most {most:?} in which it ran"
        );
    } else {
        // A host whose guests read its own counter: said in the manifest.
        assert!(passed >= PAUSE, "only {passed:?} passed in the guest");
        let detail = machine.describe().1;
        assert!(detail.contains("its TSC goes on"), "{detail}");
    }
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn what_is_said_to_stop_the_guest_does() {
    let _one = one();
    let mut machine = tiny(&[LATE], None);
    machine.freeze(SOON);
    let stops = [Stop::Write(DATA), Stop::Execute(CODE + 10)];
    let set = machine.stop_at(&stops).unwrap();
    println!("{}", machine.describe().1);
    assert_eq!(set.contains(&stops[0]), machine.fires.write);
    assert_eq!(set.contains(&stops[1]), machine.fires.execute);
    write(&machine, DATA + 16, 1);
    machine.resume().unwrap();
    for stop in [stops[1], stops[0]] {
        if !set.contains(&stop) {
            continue;
        }
        let event = machine.wait(SOON).unwrap();
        let Some(Event::Stopped { at, rsp, .. }) = event else {
            panic!("{event:?} instead of {stop:?}");
        };
        assert_eq!((at, rsp), (stop, layout::BOOT_PARAMS - 16));
        // The watched bytes have not been written before, and have been behind.
        let written = if stop == stops[0] { 5 } else { 0 };
        assert_eq!(read(&machine, DATA) & 0xffff_ffff, written);
        machine.resume().unwrap();
    }
    until("it goes on", || read(&machine, DATA) & 0xffff_ffff == 5);
}

/// A guest that has met a breakpoint, which nobody has taken notice of yet.
fn at_a_breakpoint() -> Option<(Kvm, Stop)> {
    let mut machine = tiny(&[LATE, SPINS], None);
    machine.freeze(SOON);
    let stop = Stop::Execute(CODE + 10);
    if machine.stop_at(&[stop]).unwrap() != [stop] {
        assert!(!machine.fires.execute);
        println!("in-process: breakpoints do not fire here, so none is met while it is frozen");
        return None;
    }
    write(&machine, DATA + 16, 1);
    machine.resume().unwrap();
    // Nobody waits for it.
    std::thread::sleep(Duration::from_millis(100));
    let frozen = machine.freeze(SOON);
    assert_eq!(frozen.faults, [""; 0]);
    assert_eq!(frozen.vcpus[0].general.rip, CODE + 10);
    Some((machine, stop))
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn what_was_met_while_it_was_frozen_is_told_before_it_goes_on() {
    let _one = one();
    let Some((mut machine, stop)) = at_a_breakpoint() else {
        return;
    };
    machine.resume().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(read(&machine, DATA) & 0xffff_ffff, 0, "it went on");
    let (rsp, rdi) = (layout::BOOT_PARAMS - 16, 0);
    let event = machine.wait(SOON).unwrap();
    assert_eq!(event, Some(Event::Stopped { at: stop, rsp, rdi }));
    machine.resume().unwrap();
    until("it goes on", || read(&machine, DATA) & 0xffff_ffff == 5);
    assert_eq!(machine.wait(Duration::from_millis(50)).unwrap(), None);
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn what_is_not_asked_for_any_more_is_not_told() {
    let _one = one();
    let Some((mut machine, _)) = at_a_breakpoint() else {
        return;
    };
    assert_eq!(machine.stop_at(&[]).unwrap(), []);
    machine.resume().unwrap();
    until("it goes on", || read(&machine, DATA) & 0xffff_ffff == 5);
    assert_eq!(machine.wait(Duration::from_millis(50)).unwrap(), None);
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn a_guest_that_steps_through_its_own_code_does_so_while_breakpoints_are_set() {
    let _one = one();
    let mut machine = tiny(&[DEBUGGER], None);
    machine.freeze(SOON);
    handle(&machine, DATA + 0x100, DATA + 0x200, 1, HANDLES);
    let never = Stop::Execute(CODE + 0x700);
    let set = machine.stop_at(&[never]).unwrap();
    assert_eq!(set == [never], machine.fires.execute);
    if set.is_empty() {
        println!("in-process: breakpoints do not fire here, so steps of a guest never come to us");
    }
    write(&machine, DATA + 16, 1);
    machine.resume().unwrap();
    until("it has stepped", || read(&machine, DATA) > 0);
    assert_eq!(machine.wait(Duration::from_millis(50)).unwrap(), None);
    assert_eq!(read(&machine, DATA), 1);
    // Behind the first instruction after the flag was set; DR6 says that it was a step.
    assert_eq!(read(&machine, DATA + 0x18), STEPPED);
    assert_eq!(read(&machine, DATA + 8) & 0x4000, 0x4000);
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn a_string_instruction_loses_nothing_when_it_is_frozen() {
    let _one = one();
    let mut machine = tiny(&[COPIES], None);
    let (mut within, mut compared) = (0, 0);
    for _ in 0..200 {
        std::thread::sleep(Duration::from_micros(500));
        let frozen = machine.freeze(SOON);
        assert_eq!(frozen.faults, [""; 0]);
        let general = &frozen.vcpus[0].general;
        if general.rip == COPY && general.rcx > 0 && general.rcx < COPY_BYTES {
            within += 1;
            let mut bytes = vec![0; usize::try_from(general.rdi - COPY_TO).unwrap()];
            machine
                .vm
                .memory
                .read_slice(&mut bytes, GuestAddress(COPY_TO))
                .unwrap();
            assert_eq!(general.rdi - COPY_TO, COPY_BYTES - general.rcx);
            let all = bytes
                .windows(2)
                .all(|pair| pair[1] == pair[0].wrapping_add(1));
            assert!(
                all,
                "of {} bytes some are lost: {:?}",
                bytes.len(),
                &bytes[..16]
            );
            compared += bytes.len();
        }
        machine.resume().unwrap();
    }
    println!(
        "longest line: {within} of 200 freezes within the instruction, {compared} bytes compared"
    );
    assert!(within > 0);
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn nothing_is_set_when_a_vcpu_does_not_stand() {
    let _one = one();
    let mut machine = tiny(&[LATE, COUNT], Some(1));
    until("the second one runs", || read(&machine, DATA) > 0);
    let stop = Stop::Execute(CODE + 10);
    // It is waited for as long as for any.
    assert_eq!(machine.stop_at(&[stop]).unwrap(), []);
    write(&machine, DATA + 16, 1);
    assert_eq!(machine.wait(Duration::from_millis(50)).unwrap(), None);
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn the_counters_of_all_vcpus_stay_together() {
    let _one = one();
    let mut machine = tiny(&[COUNT, COUNT, COUNT], None);
    for _ in 0..20 {
        machine.freeze(SOON);
        machine.resume().unwrap();
    }
    machine.freeze(SOON);
    let offset = |number| machine.crew.vcpu(number).unwrap().tsc_offset();
    let offsets = [offset(0), offset(1), offset(2)];
    println!(
        "time can be set back: {}; offsets {offsets:x?}",
        machine.shifts
    );
    assert!(offsets.iter().all(|each| *each == offsets[0]));
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn a_change_in_memory_stops_the_guest_soon() {
    let _one = one();
    let mut machine = tiny(&[LATE, COUNT], None);
    let at = Stop::Change(DATA + 0x10);
    // What changes is what lets the first vCPU go, and it is we who change it.
    assert_eq!(machine.stop_at(&[at]).unwrap(), [at]);
    assert_eq!(machine.wait(Duration::from_millis(50)).unwrap(), None);
    let start = Instant::now();
    write(&machine, DATA + 0x10, 1);
    let event = machine.wait(SOON).unwrap();
    println!("noticed in {:?}", start.elapsed());
    assert_eq!(event, Some(Event::Stopped { at, rsp: 0, rdi: 0 }));
    assert_eq!(machine.freeze(SOON).faults, [""; 0]);
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn a_trial_tells_a_guest_that_ends_from_one_that_cannot_run() {
    let _one = one();
    let never = AtomicBool::new(false);
    let mut machine = tiny(&[HELLO], None).tried(&never).ok().unwrap();
    assert_eq!(ended(&mut machine), ("powered off".into(), true));
    drop(machine);
    let why = tiny(&[FAULT], None).tried(&never).err().unwrap();
    let expected = "the guest ended while it booted: reset (triple fault on vCPU 0)";
    assert_eq!(why.to_string(), expected);
    // Whoever is told to end does not wait for the rest of the trial.
    let start = Instant::now();
    assert!(tiny(&[COUNT], None).tried(&AtomicBool::new(true)).is_ok());
    assert!(start.elapsed() < SOON);
    let text = b"x\nKernel panic - not syncing: Attempted to kill init!\r\nCPU";
    let line = "Kernel panic - not syncing: Attempted to kill init!";
    assert_eq!(panicked(text).as_deref(), Some(line));
    assert_eq!(panicked(b"all is well"), None);
}

/// Our threads and files, by what they are.
fn left() -> Vec<String> {
    let entries = |path: &str| std::fs::read_dir(path).unwrap().flatten();
    let threads = entries("/proc/self/task").filter_map(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let name = name.trim();
        (name.starts_with("vcpu-") || name == "watcher").then(|| name.to_owned())
    });
    let files = entries("/proc/self/fd").filter_map(|fd| {
        let target = std::fs::read_link(fd.path()).ok()?;
        let name = target.to_string_lossy().into_owned();
        let ours = ["kvm", "scx-postmortem-guest", "eventfd", "perf_event"];
        ours.iter().any(|own| name.contains(own)).then_some(name)
    });
    threads.chain(files).collect()
}

#[test]
#[ignore = "needs /dev/kvm; tests/guest/nested.py --here runs it"]
fn two_hundred_machines_leave_nothing_behind() {
    let _one = one();
    let nothing: Vec<String> = Vec::new();
    assert_eq!(left(), nothing);
    for index in 0..200 {
        match index % 4 {
            0 => assert!(ended(&mut tiny(&[HELLO], None)).1),
            1 => assert!(!ended(&mut tiny(&[FAULT, COUNT], None)).1),
            2 => {
                let mut machine = tiny(&[COUNT, COUNT], None);
                machine.stop_at(&[Stop::Change(DATA + 8)]).unwrap();
                assert!(left().len() > 6, "{:?}", left());
            }
            _ => {
                let config = Config {
                    vcpus: 1,
                    memory_bytes: 128 << 20,
                    kernel: "/proc/self/exe".into(),
                    initrd: "/nothing/there".into(),
                    ..Config::default()
                };
                let why = Kvm::start(&config).err().unwrap();
                assert!(matches!(why, MachineError::Start(_)), "{why}");
            }
        }
        assert_eq!(left(), nothing, "machine {index}");
    }
    assert!(Path::new(DEVICE).exists());
}
