//! QEMU's monitor protocol: a line of JSON for each command, answer and event.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use super::connect;
use crate::machine::MachineError;

/// Longest line that is accepted, bytes. QEMU's longest answers are its memory trees.
const MAX_LINE: usize = 8 << 20;
/// Time in which QEMU takes a file descriptor.
const GIVE: Duration = Duration::from_secs(10);
/// Events that are kept for whoever asks; older ones are forgotten.
const MAX_EVENTS: usize = 1024;

/// A connection to a monitor.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: UnixStream,
    buffer: Vec<u8>,
    events: VecDeque<Value>,
    /// How many commands were sent: each has its number.
    asked: u64,
}

impl Qmp {
    /// Connects and leaves the negotiation phase.
    pub(super) fn connect(
        path: &Path,
        deadline: Instant,
        alive: &mut dyn FnMut() -> bool,
    ) -> Result<Self, MachineError> {
        let stream = connect(path, deadline, alive)?;
        let mut qmp = Self {
            stream,
            buffer: Vec::new(),
            events: VecDeque::new(),
            asked: 0,
        };
        let greeting = qmp.line(deadline, "QEMU's greeting").map_err(|e| match e {
            MachineError::Late { seconds, .. } => MachineError::Refused {
                what: format!("connecting to the monitor at {}", path.display()),
                why: format!("it took the connection and did not greet in {seconds} s. A monitor serves one client at a time: another one (libvirt, virsh, another capture) may have it. Give QEMU one more (-qmp unix:PATH,server=on,wait=off), or end the other"),
            },
            other => other,
        })?;
        if greeting.get("QMP").is_none() {
            return Err(MachineError::Refused {
                what: format!("the monitor at {}", path.display()),
                why: format!("it greets with {greeting}, not as QMP does"),
            });
        }
        qmp.ask("qmp_capabilities", json!({}), Duration::from_secs(10))?;
        Ok(qmp)
    }

    /// Asks something of the socket itself.
    pub(super) fn peer<T>(&self, ask: impl FnOnce(&UnixStream) -> T) -> T {
        ask(&self.stream)
    }

    /// Runs a command and waits for its answer.
    pub(super) fn ask(
        &mut self,
        command: &str,
        arguments: Value,
        timeout: Duration,
    ) -> Result<Value, MachineError> {
        let what = format!("QEMU's {command}");
        self.asked += 1;
        let id = self.asked;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        self.stream
            .set_write_timeout(Some(timeout))
            .and_then(|()| self.stream.write_all(line.as_bytes()))
            .map_err(|e| gone(&what, &e))?;
        self.answer(&what, id, timeout)
    }

    /// The answer to the command of this number.
    fn answer(&mut self, what: &str, id: u64, timeout: Duration) -> Result<Value, MachineError> {
        let deadline = Instant::now() + timeout;
        loop {
            let answer = self.line(deadline, what)?;
            // The late answer to a question that was given up is no answer to this one.
            let of = answer.get("id").and_then(Value::as_u64);
            if of.is_some_and(|of| of != id) {
                continue;
            }
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                let why = error.get("desc").and_then(Value::as_str);
                return Err(MachineError::Refused {
                    what: what.to_owned(),
                    why: why.unwrap_or("without a reason").to_owned(),
                });
            }
            self.keep(answer);
        }
    }

    /// Gives QEMU a file descriptor, under a name that commands call it by.
    pub(super) fn give(&mut self, name: &str, fd: impl AsFd) -> Result<(), MachineError> {
        let what = "QEMU's getfd";
        self.asked += 1;
        let id = self.asked;
        let arguments = json!({ "fdname": name });
        let line = json!({ "execute": "getfd", "arguments": arguments, "id": id });
        let line = format!("{line}\n");
        let fds = [fd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        rights.push(SendAncillaryMessage::ScmRights(&fds));
        let line = [IoSlice::new(line.as_bytes())];
        sendmsg(&self.stream, &line, &mut rights, SendFlags::empty())
            .map_err(|e| gone(what, &e.into()))?;
        self.answer(what, id, GIVE).map(drop)
    }

    /// A command of the human monitor.
    pub(super) fn human(&mut self, line: &str) -> Result<String, MachineError> {
        let arguments = json!({ "command-line": line });
        let answer = self.ask("human-monitor-command", arguments, Duration::from_secs(10))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    fn keep(&mut self, event: Value) {
        if event.get("event").is_none() {
            return;
        }
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The oldest event that nobody has taken yet; looks for new ones without waiting.
    pub(super) fn event(&mut self) -> Result<Option<Value>, MachineError> {
        loop {
            match self.line(Instant::now(), "QEMU's events") {
                Ok(event) => self.keep(event),
                Err(MachineError::Late { .. }) => break,
                // What came before the end is still worth knowing.
                Err(_) if !self.events.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(self.events.pop_front())
    }

    /// The next line; at least one look at what has come already.
    fn line(&mut self, deadline: Instant, what: &str) -> Result<Value, MachineError> {
        let start = Instant::now();
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                let rest = self.buffer.split_off(end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                return serde_json::from_slice(&line).map_err(|e| MachineError::Refused {
                    what: what.to_owned(),
                    why: format!("QEMU's answer is no JSON ({e})"),
                });
            }
            if self.buffer.len() > MAX_LINE {
                return Err(MachineError::Refused {
                    what: what.to_owned(),
                    why: format!("QEMU's answer is longer than {MAX_LINE} bytes"),
                });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = left.max(Duration::from_millis(1));
            let mut chunk = [0; 65536];
            let read = self
                .stream
                .set_read_timeout(Some(wait))
                .and_then(|()| self.stream.read(&mut chunk));
            match read {
                Ok(0) => return Err(MachineError::Gone(format!("QEMU went away during {what}"))),
                Ok(len) => self.buffer.extend(chunk.iter().take(len)),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if left.is_zero() {
                        return Err(MachineError::Late {
                            what: what.to_owned(),
                            seconds: start.elapsed().as_secs(),
                        });
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(gone(what, &e)),
            }
        }
    }
}

fn gone(what: &str, error: &std::io::Error) -> MachineError {
    MachineError::Gone(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_monitor_that_serves_someone_else_is_told_from_one_that_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp");
        let soon = || Instant::now() + Duration::from_millis(50);
        // As QEMU's: connections wait until the one before has gone.
        let _busy = UnixListener::bind(&path).unwrap();
        let why = Qmp::connect(&path, soon(), &mut || true).unwrap_err();
        let why = why.to_string();
        assert!(why.contains("serves one client at a time"), "{why}");
        assert!(why.contains(&path.display().to_string()), "{why}");
        let none = directory.path().join("none");
        let why = Qmp::connect(&none, soon(), &mut || true).unwrap_err();
        assert!(why.to_string().contains("nobody answers"), "{why}");
    }
}
