//! QEMU's debug stub: the few packets of gdb's remote protocol that a breakpoint takes.
//!
//! Hardware breakpoints only (`Z1`): nothing is written into the guest's memory, so a capture does
//! not show that there was one.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::connect;
use crate::machine::{MachineError, Stop};

/// Longest packet that is accepted, bytes.
const MAX_PACKET: usize = 1 << 20;
/// Time in which the stub answers a question.
const ANSWER: Duration = Duration::from_secs(20);
/// Places in the `g` packet, in registers of eight bytes.
const RDI: usize = 5;
const RSP: usize = 7;
const RIP: usize = 16;

/// Where a vCPU stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) rip: u64,
    pub(super) rsp: u64,
    /// The first argument, at the entry of a function.
    pub(super) rdi: u64,
}

/// Why a guest has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// A breakpoint, or a watchpoint at the address `written`.
    Trap { written: Option<u64> },
    /// The monitor's own `stop`.
    Paused,
}

impl Reply {
    /// Of `T05thread:01;watch:ffff888003a1c2f8;` and the like: SIGTRAP is a trap.
    fn of(packet: &[u8]) -> Self {
        if packet.get(1..3) != Some(b"05") {
            return Self::Paused;
        }
        let text = String::from_utf8_lossy(packet.get(3..).unwrap_or_default());
        let written = text.split(';').find_map(|pair| {
            let digits = pair.strip_prefix("watch:")?;
            u64::from_str_radix(digits, 16).ok()
        });
        Self::Trap { written }
    }
}

/// A connection to a debug stub.
#[derive(Debug)]
pub(super) struct Gdb {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Gdb {
    /// Connects, which stops the guest.
    pub(super) fn connect(
        path: &Path,
        deadline: Instant,
        alive: &mut dyn FnMut() -> bool,
    ) -> Result<Self, MachineError> {
        Self::over(connect(path, deadline, alive)?)
    }

    /// Speaks to a stub at the other end of a socket. The guest has been stopped for it.
    pub(super) fn over(stream: UnixStream) -> Result<Self, MachineError> {
        // A stub that does not read is one that does not answer.
        stream
            .set_write_timeout(Some(ANSWER))
            .map_err(|e| gone(&e))?;
        let buffer = Vec::new();
        let mut gdb = Self { stream, buffer };
        gdb.ask("?")?;
        Ok(gdb)
    }

    /// The socket itself, for whoever takes over.
    pub(super) fn socket(&self) -> &UnixStream {
        &self.stream
    }

    /// Sets or removes a hardware breakpoint or watchpoint. `false`: the stub has none of the kind.
    pub(super) fn set(&mut self, stop: Stop, set: bool) -> Result<bool, MachineError> {
        let command = if set { 'Z' } else { 'z' };
        let packet = match stop {
            Stop::Execute(at) => format!("{command}1,{at:x},1"),
            Stop::Write(at) => format!("{command}2,{at:x},4"),
            // Nothing of QEMU's does that.
            Stop::Change(_) => return Ok(false),
        };
        match self.ask(&packet)?.as_slice() {
            b"OK" => Ok(true),
            // What the protocol has for "not supported", and what QEMU says when none is left.
            b"" | b"E22" => Ok(false),
            other => Err(refused(
                "a hardware breakpoint",
                &String::from_utf8_lossy(other),
            )),
        }
    }

    /// Where the vCPU stands that stopped.
    pub(super) fn place(&mut self) -> Result<Place, MachineError> {
        let hex = self.ask("g")?;
        let register = |index: usize| {
            let digits = hex.get(index * 16..index * 16 + 16)?;
            let text = std::str::from_utf8(digits).ok()?;
            u64::from_str_radix(text, 16).ok().map(u64::swap_bytes)
        };
        let place = || {
            Some(Place {
                rip: register(RIP)?,
                rsp: register(RSP)?,
                rdi: register(RDI)?,
            })
        };
        place().ok_or_else(|| refused("reading registers", &String::from_utf8_lossy(&hex)))
    }

    /// Lets the guest go on.
    pub(super) fn go_on(&mut self) -> Result<(), MachineError> {
        self.send("c")
    }

    /// Takes leave: the stub forgets its breakpoints and lets the guest go on.
    pub(super) fn detach(&mut self) -> Result<(), MachineError> {
        self.ask("D").map(drop)
    }

    /// Why the guest has stopped, if it did by now.
    pub(super) fn stopped(&mut self, wait: Duration) -> Result<Option<Reply>, MachineError> {
        let deadline = Instant::now() + wait;
        while let Some(packet) = self.receive(deadline)? {
            match packet.first() {
                Some(b'T' | b'S') => return Ok(Some(Reply::of(&packet))),
                Some(b'W' | b'X') => {
                    return Err(MachineError::Gone("the guest has ended".to_owned()));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn ask(&mut self, text: &str) -> Result<Vec<u8>, MachineError> {
        self.send(text)?;
        let deadline = Instant::now() + ANSWER;
        loop {
            let Some(answer) = self.receive(deadline)? else {
                return Err(MachineError::Late {
                    what: "an answer of QEMU's debug stub".into(),
                    seconds: ANSWER.as_secs(),
                });
            };
            // Stop replies come when they come.
            if text == "?" || !matches!(answer.first(), Some(b'T' | b'S')) {
                return Ok(answer);
            }
        }
    }

    fn send(&mut self, text: &str) -> Result<(), MachineError> {
        let sum = text.bytes().fold(0u8, u8::wrapping_add);
        self.stream
            .write_all(format!("${text}#{sum:02x}").as_bytes())
            .map_err(|e| gone(&e))
    }

    /// The next packet's content; `None` when none has come by `deadline`.
    fn receive(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, MachineError> {
        loop {
            if let Some(packet) = take_packet(&mut self.buffer) {
                self.stream.write_all(b"+").map_err(|e| gone(&e))?;
                return Ok(Some(packet));
            }
            if self.buffer.len() > MAX_PACKET {
                return Err(refused("reading a packet", "it does not end"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = left.max(Duration::from_millis(1));
            let mut chunk = [0; 4096];
            let read = self
                .stream
                .set_read_timeout(Some(wait))
                .and_then(|()| self.stream.read(&mut chunk));
            match read {
                Ok(0) => return Err(MachineError::Gone("QEMU closed its debug stub".into())),
                Ok(len) => self.buffer.extend(chunk.iter().take(len)),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if left.is_zero() {
                        return Ok(None);
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(gone(&e)),
            }
        }
    }
}

/// Takes the first whole packet, `$content#xx`, out of `buffer`.
fn take_packet(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let start = memchr::memchr(b'$', buffer)?;
    let len = memchr::memchr(b'#', buffer.get(start..)?)?;
    if buffer.len() < start + len + 3 {
        return None;
    }
    let rest = buffer.split_off(start + len + 3);
    let taken = std::mem::replace(buffer, rest);
    Some(taken.get(start + 1..start + len)?.to_vec())
}

fn gone(error: &std::io::Error) -> MachineError {
    MachineError::Gone(format!("QEMU's debug stub: {error}"))
}

fn refused(what: &str, why: &str) -> MachineError {
    MachineError::Refused {
        what: format!("{what} through QEMU's debug stub"),
        why: format!("it answered {why:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_replies_say_why() {
        assert_eq!(Reply::of(b"T05thread:01;"), Reply::Trap { written: None });
        let watch = b"T05thread:01;watch:ffff888003a1c2f8;";
        let written = Some(0xffff_8880_03a1_c2f8);
        assert_eq!(Reply::of(watch), Reply::Trap { written });
        assert_eq!(Reply::of(b"T02thread:01;"), Reply::Paused);
    }

    #[test]
    fn packets_come_in_pieces() {
        let mut buffer = b"+$T05thre".to_vec();
        assert_eq!(take_packet(&mut buffer), None);
        buffer.extend(b"ad:01;#0");
        assert_eq!(take_packet(&mut buffer), None);
        buffer.extend(b"7$OK#9a+");
        assert_eq!(take_packet(&mut buffer).unwrap(), b"T05thread:01;");
        assert_eq!(take_packet(&mut buffer).unwrap(), b"OK");
        assert_eq!(take_packet(&mut buffer), None);
        assert_eq!(buffer, b"+");
    }
}
