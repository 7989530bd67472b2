//! A process that lets an attached guest go on when `capture` is killed: [`Guardian`].
//!
//! Breakpoints in someone else's guest are a promise to take them out again. A `capture` that is
//! killed cannot; then this process says goodbye to QEMU's debug stub in its place. It is the same
//! program, waits for the end of its standard input, which only `capture` holds the other end of,
//! and has the stub's socket as its standard output. The last byte that it was told says what to do.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use super::gdb::Gdb;

/// The name of the command, which is not for people.
pub(crate) const COMMAND: &str = "guardian";
/// All was put right: nothing is to be done.
const LEFT: u8 = b'.';
/// The guest's owner has stopped it, and it is not ours to resume.
const HELD: u8 = b'h';
/// It was running, or is to be.
const RUNS: u8 = b'r';
/// Any byte stops a running guest, and the stub listens to one that stands. Then: remove all
/// breakpoints, and let it go on (`D`).
const GOODBYE: &[u8] = b"\x03+$D#44";
/// The stub's answer, how long it may take, and the most that is read for it, bytes.
const DONE: &[u8] = b"$OK#9a";
const PATIENCE: Duration = Duration::from_secs(300);
const MAX_HEARD: usize = 1 << 16;

/// The process, and the pipe whose end it waits for.
#[derive(Debug)]
pub(crate) struct Guardian(Child);

impl Guardian {
    /// Starts it. Without one a killed `capture` leaves its breakpoints behind, no more.
    pub(super) fn start(gdb: &Gdb) -> Option<Self> {
        let socket = gdb.socket().as_fd().try_clone_to_owned().ok()?;
        let child = Command::new("/proc/self/exe")
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(socket)
            .stderr(Stdio::null())
            // Whoever kills our process group is not to kill it as well.
            .process_group(0)
            .spawn();
        child.ok().map(Self)
    }
}

impl Guardian {
    /// Whether the guest is to stand when nobody is left.
    pub(super) fn tell(&mut self, held: bool) {
        self.write(if held { HELD } else { RUNS });
    }

    /// Nothing is left to be done.
    pub(super) fn dismiss(&mut self) {
        self.write(LEFT);
    }

    fn write(&mut self, byte: u8) {
        if let Some(pipe) = &mut self.0.stdin {
            // One that is gone cannot help any more.
            let _ = pipe.write_all(&[byte]);
        }
    }
}

/// What that process does.
pub(crate) fn run() -> ExitCode {
    let mut said = Vec::new();
    let waited = io::stdin().read_to_end(&mut said);
    if waited.is_ok() && !matches!(said.last(), Some(&LEFT | &HELD)) {
        // Nobody is left to tell of a failure.
        let _ = goodbye();
    }
    ExitCode::SUCCESS
}

fn goodbye() -> io::Result<()> {
    let mut stub = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    stub.write_all(GOODBYE)?;
    // With the socket closed QEMU may not read what is still in it. The answer is not the first
    // packet to come: the stub also tells that the guest was stopped.
    stub.set_read_timeout(Some(PATIENCE))?;
    let (mut heard, mut chunk) = (Vec::new(), [0; 256]);
    while memchr::memmem::find(&heard, DONE).is_none() && heard.len() < MAX_HEARD {
        match stub.read(&mut chunk)? {
            0 => break,
            len => heard.extend(chunk.iter().take(len)),
        }
    }
    Ok(())
}
