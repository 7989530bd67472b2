//! The report of a capture that was given up: what its manifest and its notes say, none of which
//! depends on memory that may have been changing while it was copied.

use scx_postmortem_format::capture::Abandoned;
use scx_postmortem_format::report::{DegradedFailureDumpReport, VcpuRegSnapshot, reasons};

use crate::analysis::vcpu_snapshot;
use crate::bytes::to_usize;
use crate::source::Image;

/// More vCPUs than any guest has.
const MAX_VCPUS: u32 = 8192;

/// The degraded report, when the capture was given up.
#[must_use]
pub fn report(image: &Image) -> Option<DegradedFailureDumpReport> {
    let manifest = image.manifest.as_ref()?;
    let abandoned = manifest.abandoned.as_ref()?;
    let vcpu_regs = vcpus(image, manifest.cpus);
    let parked = vcpu_regs.iter().flatten().count();
    let latch = abandoned.bss_latch_state.as_deref();
    Some(DegradedFailureDumpReport {
        watchpoint_hit: abandoned.watchpoint_hit,
        exit_kind: abandoned.exit_kind,
        elapsed_ms: abandoned.elapsed_ms,
        ..DegradedFailureDumpReport::new(
            reason(abandoned, parked, vcpu_regs.len()),
            latch.unwrap_or(reasons::BSS_LATCH_NOT_RESOLVED),
        )
    })
    .map(|report| DegradedFailureDumpReport {
        vcpu_regs,
        ..report
    })
}

fn reason(abandoned: &Abandoned, parked: usize, total: usize) -> String {
    let prefix = match &*abandoned.cause {
        "timeout" => reasons::REASON_DEGRADED_RENDEZVOUS_TIMEOUT,
        "killed" => reasons::REASON_DEGRADED_KILL_DURING_RENDEZVOUS,
        "" => "the capture was given up",
        other => other,
    };
    reasons::degraded(prefix, abandoned.elapsed_ms, parked, total)
}

/// Registers by number of the vCPU; nothing for one that never stopped. Only the full states name
/// their vCPU: without them all register notes must be there for their order to tell.
fn vcpus(image: &Image, count: u32) -> Vec<Option<VcpuRegSnapshot>> {
    let mut found: Vec<Option<VcpuRegSnapshot>> = vec![None; to_usize(count.min(MAX_VCPUS).into())];
    if image.vcpu_states.is_empty() {
        if image.vcpus.len() == found.len() {
            for (place, regs) in found.iter_mut().zip(&image.vcpus) {
                *place = regs.as_ref().and_then(vcpu_snapshot);
            }
        }
        return found;
    }
    for state in &image.vcpu_states {
        let regs = state.special.map(|special| VcpuRegSnapshot {
            instruction_pointer: state.general.rip,
            stack_pointer: state.general.rsp,
            page_table_root: special.cr3,
            user_page_table_root: None,
            tcr_el1: None,
        });
        if let Some(place) = found.get_mut(to_usize(state.vcpu.into())) {
            *place = regs;
        }
    }
    found
}
