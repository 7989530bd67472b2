//! Names of JITed BPF code: programs, struct_ops trampolines, dispatchers.
//!
//! Reads the list `bpf_kallsyms` of `struct bpf_ksym` (kernel/bpf/core.c), which the kernel
//! itself consults when kallsyms has no answer.

use super::{Kernel, Place};
use crate::addr::Kva;
use crate::error::Result;

/// More programs than any kernel has loaded.
const MAX_KSYMS: usize = 65_536;

/// One piece of JITed code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BpfKsym {
    start: u64,
    end: u64,
    name: String,
}

impl Kernel {
    /// Everything on the list, ascending. An entry that cannot be read is left out: a frame
    /// without a name says so itself.
    pub(super) fn read_bpf_ksyms(&self) -> Vec<BpfKsym> {
        let Ok(head) = self.symbol("bpf_kallsyms") else {
            return Vec::new();
        };
        let read = |node: Kva| -> Result<BpfKsym> {
            let ksym = self.entry("struct bpf_ksym", "lnode", node)?;
            Ok(BpfKsym {
                start: ksym.member("start")?.u64()?,
                end: ksym.member("end")?.u64()?,
                name: ksym.member("name")?.text()?,
            })
        };
        let nodes = self.list(head, MAX_KSYMS).items;
        let mut found: Vec<BpfKsym> = nodes.into_iter().filter_map(|n| read(n).ok()).collect();
        found.sort_by_key(|k| k.start);
        found
    }
}

/// An address inside one of `ksyms`.
pub(super) fn place(ksyms: &[BpfKsym], kva: Kva) -> Option<Place> {
    let ksym = find(ksyms, kva)?;
    Some(Place {
        name: ksym.name.clone(),
        offset: kva.0 - ksym.start,
        size: ksym.end - ksym.start,
        module: None,
    })
}

/// The code that `kva` is in.
pub(super) fn find(ksyms: &[BpfKsym], kva: Kva) -> Option<&BpfKsym> {
    let next = ksyms.partition_point(|k| k.start <= kva.0);
    let ksym = ksyms.get(next.checked_sub(1)?)?;
    (kva.0 < ksym.end).then_some(ksym)
}
