//! Notices soon when four bytes of a running guest change, by reading them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use scx_postmortem_analyze::addr::{Gpa, Kva};
use scx_postmortem_analyze::kernel::paging::PageTable;
use vm_memory::{Bytes, GuestAddress};

use super::super::{GuestMemory, Stop};
use super::jail::{self, Role};
use super::raw::{Vcpu, Vm};
use super::vcpu::{Crew, Told};

/// How often they are read.
const EVERY: Duration = Duration::from_micros(500);
/// In CR3: where the table is, and which half of a pair (page-table isolation) it is.
const ROOT: u64 = 0x000f_ffff_ffff_f000;
const USER_HALF: u64 = 1 << 12;
/// In CR4: five levels.
const LA57: u64 = 1 << 12;

/// Where a kernel address is, by the page tables that a vCPU has loaded. In user mode, with
/// page-table isolation, these do not have the kernel's data, but their other half has.
pub(super) fn place(vcpu: &Vcpu, memory: &GuestMemory, at: u64) -> Option<u64> {
    let sregs = vcpu.fd.get_sregs().ok()?;
    let roots = [sregs.cr3 & ROOT, sregs.cr3 & ROOT & !USER_HALF];
    roots.into_iter().find_map(|root| {
        let table = PageTable {
            root: Gpa(root),
            five_levels: sregs.cr4 & LA57 != 0,
            sme_mask: 0,
        };
        let place = table.walk(memory, Kva(at)).ok()?;
        (place.contiguous >= 4).then_some(place.gpa.0)
    })
}

/// A thread that looks; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watcher {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Looks at `place`, which is `at` for the guest's kernel, from now on. What is there now is what
    /// has not changed.
    pub(super) fn start(
        vm: &Arc<Vm>,
        crew: &Arc<Crew>,
        place: u64,
        at: u64,
    ) -> std::io::Result<Self> {
        let end = Arc::new(AtomicBool::new(false));
        let (vm, crew, over) = (Arc::clone(vm), Arc::clone(crew), Arc::clone(&end));
        let read = move || {
            let place = GuestAddress(place);
            vm.memory.load::<u32>(place, Ordering::Relaxed).ok()
        };
        let before = read();
        let thread = thread::Builder::new()
            .name("watcher".into())
            .spawn(move || {
                if let Err(e) = jail::enter(Role::Watcher) {
                    let why = format!("no seccomp filter for the thread that watches: {e}");
                    crew.tell(Told::Failed { why });
                    return;
                }
                while !over.load(Ordering::Relaxed) {
                    if read() != before {
                        let (at, rsp, rdi) = (Stop::Change(at), 0, 0);
                        crew.tell(Told::Stopped { at, rsp, rdi });
                        // At once: whoever is told may be busy, and repeats what was lost.
                        crew.kick();
                        return;
                    }
                    thread::sleep(EVERY);
                }
            })?;
        Ok(Self {
            end,
            thread: Some(thread),
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
