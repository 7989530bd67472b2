//! Interrupts by name and CPU.
//!
//! Mirrors `show_interrupts()` (kernel/irq/proc.c) and `arch_show_interrupts()`
//! (arch/x86/kernel/irq.c): every `struct irq_desc` of the maple tree `sparse_irqs` with its per-CPU
//! `kstat_irqs`, chip and actions; then the per-CPU `irq_stat`, whose members became one array with
//! `enum irq_stat_counts` in 7.2, and `mce_exception_count` and `mce_poll_count`.

use scx_postmortem_format::report::{CpuCount, IrqCount};

use super::{Limits, Remarks};
use crate::addr::Kva;
use crate::bytes::to_usize;
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::object::Object;

/// `IRQ_BITMAP_BITS` of a large machine.
const MAX_IRQS: usize = 1 << 16;
/// Actions that share an interrupt.
const MAX_ACTIONS: usize = 64;
/// Longest name of an action or a chip.
const MAX_NAME: usize = 128;
/// Counters of `irq_stat`.
const MAX_COUNTS: u32 = 64;

/// What `/proc/interrupts` calls a counter of the architecture: member of `irq_cpustat_t`, or a
/// per-CPU variable; enumerator of `irq_stat_counts`; label; description.
const ARCH: [(&str, &str, &str, &str); 22] = [
    ("__nmi_count", "NMI", "NMI", "Non-maskable interrupts"),
    (
        "apic_timer_irqs",
        "APIC_TIMER",
        "LOC",
        "Local timer interrupts",
    ),
    (
        "irq_spurious_count",
        "SPURIOUS",
        "SPU",
        "Spurious interrupts",
    ),
    (
        "apic_perf_irqs",
        "APIC_PERF",
        "PMI",
        "Performance monitoring interrupts",
    ),
    (
        "apic_irq_work_irqs",
        "IRQ_WORK",
        "IWI",
        "IRQ work interrupts",
    ),
    (
        "icr_read_retry_count",
        "ICR_READ_RETRY",
        "RTR",
        "APIC ICR read retries",
    ),
    (
        "x86_platform_ipis",
        "X86_PLATFORM_IPI",
        "PLT",
        "Platform interrupts",
    ),
    (
        "irq_resched_count",
        "RESCHEDULE",
        "RES",
        "Rescheduling interrupts",
    ),
    (
        "irq_call_count",
        "CALL_FUNCTION",
        "CAL",
        "Function call interrupts",
    ),
    ("irq_tlb_count", "TLB", "TLB", "TLB shootdowns"),
    (
        "irq_thermal_count",
        "THERMAL_APIC",
        "TRM",
        "Thermal event interrupts",
    ),
    (
        "irq_threshold_count",
        "THRESHOLD_APIC",
        "THR",
        "Threshold APIC interrupts",
    ),
    (
        "irq_deferred_error_count",
        "DEFERRED_ERROR",
        "DFR",
        "Deferred Error APIC interrupts",
    ),
    (
        "mce_exception_count",
        "MCE_EXCEPTION",
        "MCE",
        "Machine check exceptions",
    ),
    ("mce_poll_count", "MCE_POLL", "MCP", "Machine check polls"),
    (
        "irq_hv_callback_count",
        "HYPERVISOR_CALLBACK",
        "HYP",
        "Hypervisor callback interrupts",
    ),
    (
        "irq_hv_reenlightenment_count",
        "HYPERV_REENLIGHTENMENT",
        "HRE",
        "Hyper-V reenlightenment interrupts",
    ),
    (
        "hyperv_stimer0_count",
        "HYPERV_STIMER0",
        "HVS",
        "Hyper-V stimer0 interrupts",
    ),
    (
        "kvm_posted_intr_ipis",
        "POSTED_INTR",
        "PIN",
        "Posted-interrupt notification event",
    ),
    (
        "kvm_posted_intr_nested_ipis",
        "POSTED_INTR_NESTED",
        "NPI",
        "Nested posted-interrupt event",
    ),
    (
        "kvm_posted_intr_wakeup_ipis",
        "POSTED_INTR_WAKEUP",
        "PIW",
        "Posted-interrupt wakeup event",
    ),
    (
        "",
        "PERF_GUEST_MEDIATED_PMI",
        "VPMI",
        "Perf Guest Mediated PMI",
    ),
];

/// Interrupts that came at least once, ascending; then those of the architecture.
pub fn read(kernel: &Kernel, limits: &Limits, remarks: &mut Remarks) -> Vec<IrqCount> {
    let mut rows = Vec::new();
    // Each interrupt has a counter on each CPU.
    let cpus = kernel.cpus().count().max(1);
    // A radix tree named irq_desc_tree before 6.5, which had no sched_ext.
    let tree = kernel.global("sparse_irqs", "struct maple_tree");
    let walk = tree.and_then(|tree| Ok((tree.address(), kernel.maple_tree(&tree, MAX_IRQS)?)));
    if let Some((at, walk)) = remarks.ok("irqs", walk) {
        remarks.walk_end("irqs", at, &walk.end);
        let count = walk.items.len();
        let shown = limits.irq_counts / cpus;
        if count > shown {
            remarks.limit("irqs", shown, Some(count));
        }
        for (irq, desc) in walk.items.into_iter().take(shown) {
            match read_irq(kernel, irq, desc) {
                Ok(row) => rows.extend(row),
                Err(error) if error.is_absent() => remarks.missing("irqs", &error),
                Err(error) => remarks.anomaly("irqs", Some(desc), error.to_string()),
            }
        }
    }
    let arch = match kernel.btf.find("enum irq_stat_counts") {
        Ok(counts) => {
            let names = kernel
                .btf
                .enumerators(counts)
                .take(to_usize(u64::from(MAX_COUNTS)));
            numbered(kernel, names)
        }
        // Up to 7.1.
        Err(_) => named(kernel),
    };
    rows.extend(remarks.ok("irqs.arch", arch).unwrap_or_default());
    rows
}

fn read_irq(kernel: &Kernel, irq: u64, at: Kva) -> Result<Option<IrqCount>> {
    let desc = kernel.object("struct irq_desc", at)?;
    let stats = desc.member("kstat_irqs")?;
    if stats.ptr()?.is_null() {
        return Ok(None);
    }
    let counts = per_cpu(kernel, |cpu| {
        let stat = stats.deref_per_cpu(cpu)?;
        match stat.member("cnt") {
            Ok(count) => count.u64(),
            // A plain integer before 6.10.
            Err(_) => stat.u64(),
        }
    })?;
    let Some((total, per_cpu)) = counts else {
        return Ok(None);
    };
    let data = desc.member("irq_data")?;
    let chip = data.member("chip")?;
    let chip = match chip.ptr()?.is_null() {
        true => None,
        false => chip.deref()?.member("name")?.string(MAX_NAME)?,
    };
    let hwirq = match data.member("domain")?.ptr()?.is_null() {
        true => None,
        false => Some(data.member("hwirq")?.u64()?),
    };
    Ok(Some(IrqCount {
        irq: irq.to_string(),
        names: actions(&desc)?,
        chip,
        hwirq,
        total,
        per_cpu,
    }))
}

/// The names of those who share the interrupt.
fn actions(desc: &Object<'_>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut next = desc.member("action")?;
    while !next.ptr()?.is_null() {
        if names.len() >= MAX_ACTIONS {
            return Err(Error::Implausible {
                what: "the list irq_desc.action".into(),
                found: format!("more than {MAX_ACTIONS}"),
                why: "few devices share an interrupt",
            });
        }
        let action = next.deref()?;
        names.push(action.member("name")?.string(MAX_NAME)?.unwrap_or_default());
        next = action.member("next")?;
    }
    Ok(names)
}

/// The sum of what `read` gives for each CPU, with the parts that are not 0; `None` when all are.
fn per_cpu(
    kernel: &Kernel,
    mut read: impl FnMut(u32) -> Result<u64>,
) -> Result<Option<(u64, Vec<CpuCount>)>> {
    let mut total = 0u64;
    let mut parts = Vec::new();
    for cpu in kernel.cpus() {
        let count = read(cpu)?;
        total = total.saturating_add(count);
        if count != 0 {
            let value = count.cast_signed();
            parts.push(CpuCount { cpu, value });
        }
    }
    Ok((!parts.is_empty()).then_some((total, parts)))
}

fn arch_row(irq: &str, name: &str, counts: Option<(u64, Vec<CpuCount>)>) -> Option<IrqCount> {
    let (total, per_cpu) = counts?;
    Some(IrqCount {
        irq: irq.to_owned(),
        names: (!name.is_empty())
            .then(|| name.to_owned())
            .into_iter()
            .collect(),
        total,
        per_cpu,
        ..IrqCount::default()
    })
}

/// `irq_stat.counts[]`.
fn numbered<'k>(
    kernel: &'k Kernel,
    names: impl Iterator<Item = (&'k str, i64)>,
) -> Result<Vec<IrqCount>> {
    let mut tables = Vec::new();
    for cpu in kernel.cpus() {
        let stat = kernel.per_cpu_object("irq_stat", "irq_cpustat_t", cpu)?;
        tables.push((cpu, stat.member("counts")?.u64s(MAX_COUNTS)?));
    }
    let mut rows = Vec::new();
    for (name, index) in names {
        let name = name.trim_start_matches("IRQ_COUNT_");
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        // The enum's last is the length of the array.
        if tables.iter().any(|(_, table)| index >= table.len()) {
            continue;
        }
        let known = ARCH.iter().find(|(_, enumerator, ..)| *enumerator == name);
        let (label, text) = known.map_or((name, ""), |&(_, _, label, text)| (label, text));
        let counts = per_cpu(kernel, |cpu| {
            let table = tables.iter().find(|(of, _)| *of == cpu);
            let count = table.and_then(|(_, table)| table.get(index));
            count.copied().ok_or_else(|| Error::NoMember {
                strukt: "irq_cpustat_t.counts".into(),
                member: name.to_owned(),
            })
        })?;
        rows.extend(arch_row(label, text, counts));
    }
    Ok(rows)
}

/// The members of `irq_stat` and their neighbours.
fn named(kernel: &Kernel) -> Result<Vec<IrqCount>> {
    let mut rows = Vec::new();
    for &(member, _, label, text) in &ARCH {
        if member.is_empty() {
            continue;
        }
        let counts = per_cpu(kernel, |cpu| {
            let stat = kernel.per_cpu_object("irq_stat", "irq_cpustat_t", cpu)?;
            match stat.member(member) {
                Ok(count) => count.u64(),
                Err(_) => kernel.per_cpu_object(member, "unsigned int", cpu)?.u64(),
            }
        });
        match counts {
            Ok(counts) => rows.extend(arch_row(label, text, counts)),
            // Each belongs to an option of the kernel's configuration.
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(rows)
}
