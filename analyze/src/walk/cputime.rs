//! CPU time, soft interrupts and interrupts per CPU.
//!
//! Reads the per-CPU variables `kernel_cpustat`, `kstat` and `tick_cpu_sched`. The figures are
//! what the kernel last stored: an idle CPU with its tick stopped has not folded in its idle
//! time yet.

use scx_postmortem_format::report::PerCpuTimeStats;

use super::Remarks;
use crate::error::{Error, Result};
use crate::kernel::Kernel;

/// One row per possible CPU; a CPU that cannot be read has none and a remark.
pub fn read(kernel: &Kernel, remarks: &mut Remarks) -> Vec<PerCpuTimeStats> {
    kernel
        .cpus()
        .filter_map(|cpu| remarks.ok("per_cpu_time", read_cpu(kernel, cpu)))
        .collect()
}

fn read_cpu(kernel: &Kernel, cpu: u32) -> Result<PerCpuTimeStats> {
    let cpustat = kernel.per_cpu_object("kernel_cpustat", "struct kernel_cpustat", cpu)?;
    let times = cpustat.member("cpustat")?.u64s(16)?;
    let time = |name: &str| -> Result<u64> {
        let index = kernel.constant("enum cpu_usage_stat", name)?;
        usize::try_from(index)
            .ok()
            .and_then(|i| times.get(i))
            .copied()
            .ok_or_else(|| Error::NoMember {
                strukt: "kernel_cpustat.cpustat".into(),
                member: name.to_owned(),
            })
    };
    let kstat = kernel.per_cpu_object("kstat", "struct kernel_stat", cpu)?;
    let counts = kstat.member("softirqs")?.u64s(16)?;
    let mut softirqs = [0; 10];
    for (slot, &count) in softirqs.iter_mut().zip(&counts) {
        *slot = count;
    }
    if counts.len() != softirqs.len() {
        return Err(Error::Implausible {
            what: "NR_SOFTIRQS".into(),
            found: counts.len().to_string(),
            why: "the report format has ten",
        });
    }
    // Gone from tick_sched in 7.2, and without NO_HZ there is no such variable.
    let iowait = kernel
        .per_cpu_object("tick_cpu_sched", "struct tick_sched", cpu)
        .and_then(|tick| tick.member("iowait_sleeptime")?.i64());
    Ok(PerCpuTimeStats {
        cpu,
        cpustat_user_ns: time("CPUTIME_USER")?,
        cpustat_nice_ns: time("CPUTIME_NICE")?,
        cpustat_system_ns: time("CPUTIME_SYSTEM")?,
        cpustat_softirq_ns: time("CPUTIME_SOFTIRQ")?,
        cpustat_irq_ns: time("CPUTIME_IRQ")?,
        cpustat_idle_ns: time("CPUTIME_IDLE")?,
        cpustat_iowait_ns: time("CPUTIME_IOWAIT")?,
        cpustat_steal_ns: time("CPUTIME_STEAL")?,
        softirqs,
        irqs_sum: kstat.member("irqs_sum")?.u64()?,
        iowait_sleeptime_ns: match iowait {
            Ok(ns) => Some(ns.cast_unsigned()),
            Err(e) if e.is_absent() => None,
            Err(e) => return Err(e),
        },
    })
}
