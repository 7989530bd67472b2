//! A QEMU that is running already: libvirt's, virtme-ng's, one that was started by hand.
//!
//! Its memory is where its process has it: in a file that it maps shared (`memory-backend-file`,
//! `memory-backend-memfd`), which is opened beside it, else in its own address space, which
//! `/proc/PID/mem` gives to whoever may trace it. QMP tells which guest addresses there are
//! (`info mtree -f`) and where in the process each of them is (`gpa2hva`); the socket itself tells
//! which process it is. Whoever may look into neither gets the memory through QEMU, as it dumps it
//! into a file of ours (`dump-guest-memory`): whole, while the guest stands still, and not in between.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Seek;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::program_header::PT_LOAD;
use goblin::elf::{Elf, ProgramHeader};
use rustix::fs::{MemfdFlags, major, memfd_create, minor};
use rustix::net::sockopt::socket_peercred;
use serde_json::{Value, json};

use super::gdb::Gdb;
use super::guardian::Guardian;
use super::mtree;
use super::qmp::Qmp;
use super::{Owner, Parts, Qemu, SHORT};
use crate::machine::memory::Backing;
use crate::machine::{GuestMemory, Machine, MachineError, Mapping};

/// Time in which a monitor answers.
const CONNECT: Duration = Duration::from_secs(5);
/// Name that QEMU has for the file that it dumps memory into, and the time that it gets.
const DUMP: &str = "scxpm-dump";
const DUMPED_WITHIN: Duration = Duration::from_secs(600);
/// The dump's headers are in its first bytes, as many as these.
const HEADERS: usize = 1 << 16;

/// Memory of a process of someone else.
#[derive(Debug)]
pub(crate) struct Attached {
    pid: i32,
    /// The regions of memory that count as the guest's RAM.
    backends: Vec<String>,
    /// Where QEMU dumps the memory to when its process is closed to us, and why it is.
    dumped: Option<(File, String)>,
}

fn refused(what: impl Into<String>, why: impl ToString) -> MachineError {
    MachineError::Refused {
        what: what.into(),
        why: why.to_string(),
    }
}

/// A range of a process' address space, from `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapped {
    start: u64,
    end: u64,
    shared: bool,
    offset: u64,
    device: (u32, u32),
    inode: u64,
    path: PathBuf,
}

/// One line: `7f00-7f01 rw-s 00000000 00:01 2048  /memfd:ram (deleted)`.
fn mapped(line: &str) -> Option<Mapped> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let modes = words.next()?;
    let offset = hex(words.next()?)?;
    let (major, minor) = words.next()?.split_once(':')?;
    let number = |digits| u32::from_str_radix(digits, 16).ok();
    Some(Mapped {
        start: hex(start)?,
        end: hex(end)?,
        shared: modes.ends_with('s'),
        offset,
        device: (number(major)?, number(minor)?),
        inode: words.next()?.parse().ok()?,
        path: words.collect::<Vec<_>>().join(" ").into(),
    })
}

impl Attached {
    /// The file that a shared mapping is of: by its name where that still leads there, else among
    /// the files that the process has open.
    fn file_of(&self, map: &Mapped) -> Option<File> {
        let is_it = |file: &File| {
            let meta = file.metadata().ok()?;
            let device = (major(meta.dev()), minor(meta.dev()));
            (device == map.device && meta.ino() == map.inode).then_some(())
        };
        let open = |path: &Path| File::open(path).ok().filter(|file| is_it(file).is_some());
        // Not every file system gives its device the same number here and there; what the
        // process itself has open under that name, and what it has mapped, is it all the same.
        let held = || {
            let fds = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).ok()?;
            fds.flatten().find_map(|entry| {
                let name = std::fs::read_link(entry.path()).ok()?;
                let file = (name == map.path).then(|| File::open(entry.path()).ok())??;
                let inode = file.metadata().ok()?.ino();
                (inode == map.inode).then_some(file)
            })
        };
        let range = format!("{:x}-{:x}", map.start, map.end);
        let mapped = || File::open(format!("/proc/{}/map_files/{range}", self.pid)).ok();
        open(&map.path).or_else(held).or_else(mapped)
    }

    /// Where the guest's memory is by now.
    pub(super) fn map(&mut self, qmp: &mut Qmp) -> Result<GuestMemory, MachineError> {
        if self.dumped.is_none() {
            match self.in_process(qmp) {
                Err(Closed::ToUs(why)) => {
                    let file = memfd_create("scx-postmortem-dump", MemfdFlags::CLOEXEC);
                    let file = file.map_err(|e| refused("a file for the guest's memory", e))?;
                    self.dumped = Some((file.into(), why));
                }
                Err(Closed::No(error)) => return Err(error),
                Ok(memory) => return Ok(memory),
            }
        }
        let Some((file, why)) = &mut self.dumped else {
            return Err(refused("finding the guest's memory", "there is none"));
        };
        dump(qmp, file).map_err(|e| {
            refused(
                "reading the guest's memory",
                format!("{why}; and QEMU does not dump it either: {e}"),
            )
        })
    }

    /// Whether the memory is seen while the guest runs.
    pub(super) fn is_live(&self) -> bool {
        self.dumped.is_none()
    }

    /// The memory in QEMU's own process.
    fn in_process(&self, qmp: &mut Qmp) -> Result<GuestMemory, Closed> {
        let tree = qmp.human("info mtree -f")?;
        let pieces: Vec<Mapping> = self
            .backends
            .iter()
            .flat_map(|backend| mtree::mappings(&tree, backend))
            .collect();
        if pieces.is_empty() {
            let why = format!(
                "QEMU's `info mtree -f` shows none of its backends ({})",
                self.backends.join(", ")
            );
            return Err(Closed::No(refused("finding the guest's memory", why)));
        }
        let maps = format!("/proc/{}/maps", self.pid);
        let text = std::fs::read_to_string(&maps)
            .map_err(|e| Closed::ToUs(format!("{maps} cannot be read: {e}")))?;
        let maps: Vec<Mapped> = text.lines().filter_map(mapped).collect();
        let mut files: BTreeMap<Place, Option<usize>> = BTreeMap::new();
        let mut backing = Vec::new();
        let mut placed = Vec::new();
        for piece in pieces {
            let hva = hva(qmp, piece.gpa)?;
            let own = maps.iter().find(|m| m.start <= hva && hva < m.end);
            let Some(own) = own else {
                return Err(Closed::No(refused(
                    "finding the guest's memory",
                    format!(
                        "process {} has nothing at {hva:#x}, where QEMU says it is; is the socket another program's?",
                        self.pid
                    ),
                )));
            };
            let whole = hva.saturating_add(piece.bytes) <= own.end;
            let shared = Some(own).filter(|m| m.shared && whole);
            let file = shared.and_then(|map| {
                let place = Place::File(map.device, map.inode);
                let known = files.entry(place).or_insert_with(|| {
                    backing.push(Backing::file(self.file_of(map)?));
                    backing.len().checked_sub(1)
                });
                Some((map, (*known)?))
            });
            if let Some((map, index)) = file {
                let offset = hva - map.start + map.offset;
                placed.push((Mapping { offset, ..piece }, index));
                continue;
            }
            // Only of anonymous memory the page map tells what was touched.
            let anonymous = own.inode == 0 && whole;
            let index = match files.get(&Place::Process(anonymous)) {
                Some(Some(index)) => *index,
                _ => {
                    backing.push(self.process(anonymous)?);
                    let index = backing.len() - 1;
                    files.insert(Place::Process(anonymous), Some(index));
                    index
                }
            };
            let offset = hva;
            placed.push((Mapping { offset, ..piece }, index));
        }
        Ok(GuestMemory::from_parts(backing, placed))
    }

    fn process(&self, anonymous: bool) -> Result<Backing, Closed> {
        let open = |name: &str| {
            let path = format!("/proc/{}/{name}", self.pid);
            File::open(&path).map_err(|e| Closed::ToUs(format!("{path} cannot be read: {e}")))
        };
        Ok(match anonymous {
            true => Backing::process(open("mem")?, open("pagemap")?),
            false => Backing::mapped(open("mem")?),
        })
    }
}

/// What a piece of memory is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// A file: device and inode.
    File((u32, u32), u64),
    /// The process, and whether it is anonymous memory.
    Process(bool),
}

/// Why memory is not read in QEMU's process.
enum Closed {
    /// The operating system does not let us.
    ToUs(String),
    No(MachineError),
}

impl From<MachineError> for Closed {
    fn from(error: MachineError) -> Self {
        Self::No(error)
    }
}

/// Has QEMU dump the guest's memory into `file`, over what it holds; whoever reads there sees the new
/// content.
fn dump(qmp: &mut Qmp, file: &mut File) -> Result<GuestMemory, MachineError> {
    let what = "a dump of the guest's memory";
    // QEMU's descriptor shares our place in the file.
    file.rewind().map_err(|e| refused(what, e))?;
    qmp.give(DUMP, &*file)?;
    let arguments = json!({ "paging": false, "protocol": format!("fd:{DUMP}") });
    qmp.ask("dump-guest-memory", arguments, DUMPED_WITHIN)?;
    let mut head = vec![0; HEADERS];
    let len = file.read_at(&mut head, 0).map_err(|e| refused(what, e))?;
    head.truncate(len);
    let headers = Elf::parse_header(&head).and_then(|header| {
        let count = usize::from(header.e_phnum);
        let at = usize::try_from(header.e_phoff).unwrap_or(usize::MAX);
        let context = Ctx::new(Container::Big, Endian::Little);
        ProgramHeader::parse(&head, at, count, context)
    });
    let headers = headers.map_err(|e| refused(what, format!("QEMU wrote no ELF core: {e}")))?;
    let loads = headers.iter().filter(|header| header.p_type == PT_LOAD);
    let pieces = loads.map(|load| {
        let piece = Mapping {
            gpa: load.p_paddr,
            bytes: load.p_filesz,
            offset: load.p_offset,
        };
        (piece, 0)
    });
    let file = file.try_clone().map_err(|e| refused(what, e))?;
    Ok(GuestMemory::from_parts(
        vec![Backing::file(file)],
        pieces.collect(),
    ))
}

/// Where QEMU has a guest address, in its own address space.
fn hva(qmp: &mut Qmp, gpa: u64) -> Result<u64, MachineError> {
    let said = qmp.human(&format!("gpa2hva {gpa:#x}"))?;
    let number = said.split_whitespace().last().unwrap_or_default();
    let digits = number.strip_prefix("0x").unwrap_or(number);
    u64::from_str_radix(digits, 16).map_err(|_| {
        refused(
            format!("asking QEMU where it has the guest's {gpa:#x}"),
            format!("it said {:?}", said.trim()),
        )
    })
}

/// The regions that hold the guest's RAM: the backends that were asked for, and the one that a
/// machine makes by itself.
fn backends(qmp: &mut Qmp) -> Result<Vec<String>, MachineError> {
    let mut names = vec!["pc.ram".to_owned()];
    let known = qmp.ask("query-memdev", json!({}), SHORT)?;
    for backend in known.as_array().into_iter().flatten() {
        if let Some(id) = backend.get("id").and_then(Value::as_str) {
            names.push(id.to_owned());
        }
    }
    names.dedup();
    Ok(names)
}

/// Starts QEMU's debug stub, which stops the guest. The stub gets its end of a socket through the
/// monitor: QEMU may run as another user, or see other directories than we do.
fn stub(qmp: &mut Qmp) -> Result<Gdb, MachineError> {
    let what = "starting QEMU's debug stub";
    let (ours, theirs) = UnixStream::pair().map_err(|e| refused(what, e))?;
    let name = format!("scxpm-gdb-{}", std::process::id());
    qmp.give(&name, &theirs)?;
    drop(theirs);
    let address = json!({ "type": "fd", "data": { "str": name } });
    let socket = json!({ "type": "socket", "data": { "addr": address, "server": false } });
    qmp.ask(
        "chardev-add",
        json!({ "id": name, "backend": socket }),
        SHORT,
    )?;
    let said = qmp.human(&format!("gdbserver chardev:{name}"))?;
    Gdb::over(ours).map_err(|e| refused(what, format!("{e}; QEMU said {:?}", said.trim())))
}

impl Qemu {
    /// Attaches to the QEMU whose monitor listens at `socket`. The guest goes on.
    pub(crate) fn attach(socket: &Path) -> Result<Self, MachineError> {
        let deadline = Instant::now() + CONNECT;
        let mut qmp = Qmp::connect(socket, deadline, &mut || true)?;
        let target = qmp.ask("query-target", json!({}), SHORT)?;
        let arch = target.get("arch").and_then(Value::as_str);
        if arch != Some("x86_64") {
            let arch = arch.unwrap_or("unknown").to_owned();
            return Err(refused(
                format!("attaching to {}", socket.display()),
                format!("its guest is {arch}; only x86_64 guests are read so far"),
            ));
        }
        let pid = qmp.peer(|stream| socket_peercred(stream).map(|peer| peer.pid));
        let pid = pid.map_err(|e| refused("asking which process QEMU is", e))?;
        let status = qmp.ask("query-status", json!({}), SHORT)?;
        let running = status.get("running").and_then(Value::as_bool) == Some(true);
        let state = status.get("status").and_then(Value::as_str).unwrap_or("");
        // At a breakpoint that nobody waits for any more, a killed capture's: it is to run.
        let runs = running || state == "debug";
        let state = state.to_owned();
        let vcpus = qmp.ask("query-cpus-fast", json!({}), SHORT)?;
        let vcpus = vcpus.as_array().map_or(0, Vec::len);
        let kvm = qmp.ask("query-kvm", json!({}), SHORT)?;
        let kvm = kvm.get("enabled").and_then(Value::as_bool) == Some(true);
        let mut attached = Attached {
            pid: pid.as_raw_nonzero().get(),
            backends: backends(&mut qmp)?,
            dumped: None,
        };
        let memory = attached.map(&mut qmp)?;

        let gdb = stub(&mut qmp);
        if gdb.is_err() {
            // As it was.
            let _ = qmp.human("gdbserver none");
            let _ = qmp.ask(if runs { "cont" } else { "stop" }, json!({}), SHORT);
        }
        let gdb = gdb?;
        let guardian = Guardian::start(&gdb);
        let mut qemu = Self::new(Parts {
            owner: Owner::Other { attached, guardian },
            qmp,
            gdb,
            memory,
            vcpus: u32::try_from(vcpus).unwrap_or(0),
            kvm,
            runs,
        })?;
        if runs {
            qemu.resume()?;
        } else {
            qemu.hold(Some(state));
        }
        Ok(qemu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_read() {
        let line = "7f6a40000000-7f6a60000000 rw-s 00001000 00:01 2048                       /memfd:ram (deleted)";
        let expected = Mapped {
            start: 0x7f6a_4000_0000,
            end: 0x7f6a_6000_0000,
            shared: true,
            offset: 0x1000,
            device: (0, 1),
            inode: 2048,
            path: "/memfd:ram (deleted)".into(),
        };
        assert_eq!(mapped(line), Some(expected));
        let anonymous = mapped("7f00-7f10 rw-p 00000000 00:00 0 ").unwrap();
        assert!(!anonymous.shared);
        assert_eq!(anonymous.path, PathBuf::new());
        assert_eq!(mapped("nonsense"), None);
    }
}
