//! sched_ext event counters at the instant of the capture.
//!
//! Reads `struct scx_event_stats`, one per CPU: `scx_sched.pcpu->event_stats` since 6.17,
//! `scx_sched.event_stats_cpu` in 6.16. The names are whatever this kernel's BTF has.

use scx_postmortem_format::report::{CpuCount, EventCounter, EventCounterSample};

use super::sched::Sched;
use crate::bytes::to_usize;
use crate::error::{Error, Result};
use crate::object::Object;

/// More counters than a kernel has.
const MAX_COUNTERS: usize = 256;

/// Counters by kernel name, summed over possible CPUs, in declaration order.
///
/// # Errors
/// When the counters of some CPU cannot be read: a partial sum would look like a whole one.
pub fn read(sched: &Sched<'_>) -> Result<Vec<EventCounter>> {
    let kernel = sched.object.kernel();
    let mut counters: Vec<EventCounter> = Vec::new();
    for cpu in kernel.cpus() {
        let stats = stats_of(&sched.object, cpu)?;
        if kernel.btf.members(stats.ty()).nth(MAX_COUNTERS).is_some() {
            return Err(Error::Implausible {
                what: "struct scx_event_stats".into(),
                found: format!("more than {MAX_COUNTERS} members"),
                why: "21 in 7.3",
            });
        }
        let names: Vec<&str> = kernel.btf.members(stats.ty()).map(|m| m.name).collect();
        if counters.is_empty() {
            counters = names
                .iter()
                .map(|&name| EventCounter {
                    name: name.to_owned(),
                    value: 0,
                    per_cpu: Vec::new(),
                })
                .collect();
        }
        let bytes = stats.bytes()?;
        for (counter, member) in counters.iter_mut().zip(kernel.btf.members(stats.ty())) {
            let at = to_usize(u64::from(member.bit_offset / 8));
            let value = match kernel.btf.size_of(member.ty) {
                Some(8) => crate::bytes::le_u64(&bytes, at),
                _ => None,
            };
            let Some(value) = value.map(u64::cast_signed) else {
                return Err(Error::WrongType {
                    what: format!("scx_event_stats.{}", counter.name),
                    expected: "8 bytes",
                    found: kernel.btf.describe(member.ty),
                });
            };
            counter.value = counter.value.saturating_add(value);
            if value != 0 {
                counter.per_cpu.push(CpuCount { cpu, value });
            }
        }
    }
    Ok(counters)
}

fn stats_of<'k>(sched: &Object<'k>, cpu: u32) -> Result<Object<'k>> {
    match sched.member("pcpu") {
        Ok(pcpu) => pcpu.deref_per_cpu(cpu)?.member("event_stats"),
        // 6.16
        Err(e) if e.is_absent() => sched.member("event_stats_cpu")?.deref_per_cpu(cpu),
        Err(e) => Err(e),
    }
}

/// The contract's sample. Counters that this kernel does not have are 0 there by definition; the
/// list of [`EventCounter`]s tells which exist.
#[must_use]
pub fn sample(counters: &[EventCounter], elapsed_ms: u64) -> EventCounterSample {
    let mut sample = EventCounterSample {
        elapsed_ms,
        ..EventCounterSample::default()
    };
    for counter in counters {
        let name = counter
            .name
            .trim_start_matches("SCX_EV_")
            .to_ascii_lowercase();
        // Renamed in 7.3.
        let name = if name == "reenq_repeat" {
            "reenq_local_repeat"
        } else {
            &name
        };
        if let Some(slot) = sample.counter_mut(name) {
            *slot = counter.value;
        }
    }
    sample
}
