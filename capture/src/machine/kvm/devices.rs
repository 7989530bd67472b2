//! The few devices that a guest of ours sees: two serial ports, and what powers it off.
//!
//! Interrupt controllers, timer and speaker are in the host's kernel. Ports that nothing is behind
//! read as all ones, as on a real bus.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::VmFd;
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// First ports of the serial ports and their interrupts: the console, and init's line to us.
const SERIAL: [(u16, u32); 2] = [(0x3f8, 4), (0x2f8, 3)];
const SERIAL_PORTS: u16 = 8;
/// ACPI's status and enable registers, two bytes each.
pub(super) const PM_EVENT: u16 = 0x600;
/// ACPI's control register, two bytes.
pub(super) const PM_CONTROL: u16 = 0x604;
/// Where a guest writes [`RESET_VALUE`] to be reset: the port of a keyboard controller, as kernels
/// without ACPI do it, too.
pub(super) const RESET: u16 = 0x64;
pub(super) const RESET_VALUE: u8 = 0xfe;
/// `SLP_TYP` of power off.
pub(super) const SLEEP_OFF: u8 = 5;
/// In the control register: `SCI_EN`, `SLP_EN`, and where `SLP_TYP` is.
const ACPI_ON: u16 = 1;
const SLEEP: u16 = 1 << 13;
const SLEEP_TYPE: u16 = 10;
/// Most bytes of a serial port that nobody has fetched yet.
const MAX_WAITING: usize = 16 << 20;

/// What a vCPU's access to a port has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    PowerOff,
    Reset,
}

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// What a serial port has sent and nobody has fetched.
#[derive(Debug, Clone, Default)]
pub(super) struct Line(Arc<Mutex<Vec<u8>>>);

impl Line {
    /// Takes what there is.
    pub(super) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at it and leaves it there.
    pub(super) fn look<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MAX_WAITING {
            waiting.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Port = Serial<Interrupt, NoEvents, Line>;

/// All devices of a guest.
pub(super) struct Devices {
    serial: [Mutex<Port>; 2],
    /// What raises their interrupts.
    interrupts: [RawFd; 2],
    /// ACPI's enable register: what was written is read back, and nothing else happens.
    enabled: Mutex<[u8; 2]>,
    pub(super) console: Line,
    pub(super) host: Line,
    /// What came of a device's attempt to open a file; see [`BREAKS_OUT`].
    #[cfg(test)]
    pub(super) opened: Mutex<Option<Option<i32>>>,
    /// What [`COUNTS`] gives next.
    #[cfg(test)]
    next: std::sync::atomic::AtomicU8,
}

/// Memory that counts the bytes that are read from it, from here on.
#[cfg(test)]
pub(super) const COUNTS: u64 = 8 << 20;

/// A device with a hole: whoever writes here makes it open a file of the host.
#[cfg(test)]
pub(super) const BREAKS_OUT: u16 = 0x700;

impl Devices {
    pub(super) fn new(vm: &VmFd) -> io::Result<Self> {
        let port = |interrupt: u32, line: &Line| {
            let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
            vm.register_irqfd(&event, interrupt)?;
            let fd = event.as_raw_fd();
            let port = Mutex::new(Serial::new(Interrupt(event), line.clone()));
            Ok::<_, io::Error>((port, fd))
        };
        let (console, host) = (Line::default(), Line::default());
        let [(_, first), (_, second)] = SERIAL;
        let (first, second) = (port(first, &console)?, port(second, &host)?);
        Ok(Self {
            interrupts: [first.1, second.1],
            serial: [first.0, second.0],
            enabled: Mutex::default(),
            console,
            host,
            #[cfg(test)]
            opened: Mutex::default(),
            #[cfg(test)]
            next: std::sync::atomic::AtomicU8::default(),
        })
    }

    /// The descriptors that raise their interrupts.
    pub(super) const fn interrupts(&self) -> [RawFd; 2] {
        self.interrupts
    }

    fn serial(&self, port: u16) -> Option<(&Mutex<Port>, u8)> {
        let mut ports = self.serial.iter().zip(SERIAL);
        ports.find_map(|(serial, (first, _))| {
            let register = port.checked_sub(first).filter(|r| *r < SERIAL_PORTS)?;
            Some((serial, u8::try_from(register).ok()?))
        })
    }

    /// A vCPU writes to a port.
    pub(super) fn write(&self, port: u16, data: &[u8]) -> Effect {
        if let Some((serial, register)) = self.serial(port) {
            let mut serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
            for &byte in data {
                // An interrupt that cannot be raised leaves the driver to its timer.
                let _ = serial.write(register, byte);
            }
            return Effect::None;
        }
        match (port, data) {
            (RESET, [.., RESET_VALUE]) => return Effect::Reset,
            (PM_CONTROL, [low, high, ..]) => {
                let value = u16::from_le_bytes([*low, *high]);
                let kind = (value >> SLEEP_TYPE) & 7;
                if value & SLEEP != 0 && kind == u16::from(SLEEP_OFF) {
                    return Effect::PowerOff;
                }
            }
            #[cfg(test)]
            (BREAKS_OUT, _) => {
                let opened = std::fs::File::open("/proc/self/status");
                let errno = opened.err().and_then(|e| e.raw_os_error());
                *self.opened.lock().unwrap() = Some(errno);
            }
            (PM_EVENT, [_, _, low, high]) => self.enable([*low, *high]),
            (port, [low, high]) if port == PM_EVENT + 2 => self.enable([*low, *high]),
            _ => {}
        }
        Effect::None
    }

    fn enable(&self, value: [u8; 2]) {
        *self.enabled.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }

    /// A vCPU reads memory that is none: nothing is there.
    pub(super) fn read_memory(&self, at: u64, data: &mut [u8]) {
        data.fill(0xff);
        #[cfg(test)]
        if at >= COUNTS {
            data.fill_with(|| self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        }
        // For the tests alone.
        let _ = at;
    }

    /// A vCPU reads from a port.
    pub(super) fn read(&self, port: u16, data: &mut [u8]) {
        if let Some((serial, register)) = self.serial(port) {
            let mut serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
            data.fill_with(|| serial.read(register));
            return;
        }
        let enabled = || *self.enabled.lock().unwrap_or_else(PoisonError::into_inner);
        let value: Vec<u8> = match port {
            // Nothing has happened, and this is what may.
            PM_EVENT => [0, 0].into_iter().chain(enabled()).collect(),
            port if port == PM_EVENT + 2 => enabled().into(),
            PM_CONTROL => ACPI_ON.to_le_bytes().into(),
            // A keyboard controller that is not there is never busy.
            RESET => vec![0],
            _ => Vec::new(),
        };
        let value = value.into_iter().chain(std::iter::repeat(0xff));
        for (to, from) in data.iter_mut().zip(value) {
            *to = from;
        }
    }
}
