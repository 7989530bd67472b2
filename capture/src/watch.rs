//! What a running guest's kernel says of its scheduler, read out of its memory while it runs.
//!
//! Reads `scx_root` → `scx_sched.exit_kind` (`atomic_t`) and `ops.name`. Everything read can be torn, since nothing is stopped: a value is
//! acted upon only where a wrong one does no harm, or after it was read again.

use scx_postmortem_analyze::addr::Kva;
use scx_postmortem_analyze::error::Result;
use scx_postmortem_analyze::kernel::vmcoreinfo::Vmcoreinfo;
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::object::Object;
use scx_postmortem_analyze::source::Image;
use scx_postmortem_analyze::walk::{Limits, Remarks, sched};

use crate::machine::{GuestMemory, Touched};

/// `SCX_EXIT_ERROR`: this kind and all above it are failures.
const FIRST_ERROR: i64 = 1024;

/// The kernel of a running guest.
pub(crate) struct Live {
    kernel: Kernel,
    /// Entry of the function that writes the kernel's own dump once a scheduler has failed.
    dump: Option<Kva>,
    first_error: i64,
}

/// A scheduler that is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attached {
    /// Its `struct scx_sched`.
    pub(crate) at: Kva,
    /// `ops.name`.
    pub(crate) name: String,
    /// `exit_kind`: 0 while all is well.
    pub(crate) exit_kind: i64,
}

impl Live {
    /// Finds the kernel of a guest that runs, or says why it cannot be found yet.
    pub(crate) fn find(memory: &GuestMemory) -> std::result::Result<Self, String> {
        let touched = Touched::new(memory).map_err(|e| e.to_string())?;
        let mut why = "no VMCOREINFO in the guest's memory yet".to_owned();
        for candidate in Vmcoreinfo::scan(&touched) {
            let own = memory.share().map_err(|e| e.to_string())?;
            let image = Image::live(Box::new(own), candidate.text().as_bytes().to_vec());
            match Kernel::find(image, &Overrides::default()) {
                Ok(kernel) => return Ok(Self::new(kernel)),
                Err(reason) => why = reason,
            }
        }
        Err(why)
    }

    fn new(kernel: Kernel) -> Self {
        let names = [
            "scx_dump_state",
            "scx_dump_state.isra.0",
            "scx_dump_state.constprop.0",
        ];
        let dump = names.iter().find_map(|name| kernel.symbol(name).ok());
        let first_error = kernel.constant("enum scx_exit_kind", "SCX_EXIT_ERROR");
        Self {
            dump,
            first_error: first_error.unwrap_or(FIRST_ERROR),
            kernel,
        }
    }

    /// `uname -r`.
    pub(crate) fn release(&self) -> &str {
        self.kernel.release()
    }

    /// The text of VMCOREINFO.
    pub(crate) fn vmcoreinfo(&self) -> Vec<u8> {
        self.kernel.vmcoreinfo.text().as_bytes().to_vec()
    }

    /// Whether this kernel has sched_ext at all.
    pub(crate) fn has_sched_ext(&self) -> bool {
        scx_postmortem_analyze::analysis::has_sched_ext(&self.kernel)
    }

    /// Where the kernel goes once a scheduler has failed, and before it touches any queue.
    pub(crate) fn dump_function(&self) -> Option<Kva> {
        self.dump
    }

    /// Whether `kind` is a failure.
    pub(crate) fn is_error(&self, kind: i64) -> bool {
        kind >= self.first_error
    }

    /// The name of an exit kind.
    pub(crate) fn kind_name(&self, kind: i64) -> String {
        let ty = self.kernel.btf.find("enum scx_exit_kind").ok();
        let name = ty.and_then(|ty| self.kernel.btf.enumerator_name(ty, kind));
        name.map_or_else(|| format!("exit kind {kind}"), str::to_owned)
    }

    /// The scheduler that is attached, if any.
    pub(crate) fn attached(&self) -> Result<Option<Attached>> {
        let root = self.kernel.read_ptr(self.kernel.symbol("scx_root")?)?;
        if root.is_null() {
            return Ok(None);
        }
        let sched = self.kernel.object("struct scx_sched", root)?;
        self.of(sched).map(Some)
    }

    /// The scheduler that has failed, in words, looked for among all of them. Only of a guest that
    /// stands still.
    pub(crate) fn failure(&self) -> Option<String> {
        let mut remarks = Remarks::default();
        let found = sched::find(&self.kernel, &Limits::default(), &mut remarks);
        found.all.iter().find_map(|sched| {
            let attached = self.of(sched.object).ok()?;
            self.is_error(attached.exit_kind)
                .then(|| format!("{}: {}", attached.name, self.kind_name(attached.exit_kind)))
        })
    }

    fn of(&self, sched: Object<'_>) -> Result<Attached> {
        Ok(Attached {
            at: sched.address(),
            name: sched.member("ops.name")?.text()?,
            exit_kind: sched.first_of(&["exit_kind.counter", "exit_kind"])?.i64()?,
        })
    }

    /// The return address that a function finds on its stack when it is entered.
    pub(crate) fn return_address(&self, rsp: u64) -> Result<Kva> {
        self.kernel.read_ptr(Kva(rsp))
    }
}
