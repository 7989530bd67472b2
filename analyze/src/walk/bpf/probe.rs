//! What a probe program left in its `.bss`: counters, a latch, and the state of a scheduler at its
//! exit, which outlives the scheduler. The live tool has one, and so have we (`bpf/probe.bpf.c`).
//!
//! Variables are found by name through the data section in the probe's BTF.

use scx_postmortem_format::report::limits::MAX_VALUE_SIZE;
use scx_postmortem_format::report::reasons::{
    BSS_LATCH_NOT_RESOLVED, BSS_LATCH_NOT_TRIGGERED, BSS_LATCH_OUT_OF_BOUNDS, BSS_LATCH_TRIGGERED,
    SCHED_SOURCE_BSS_SNAPSHOT,
};
use scx_postmortem_format::report::{
    EventCounterSample, Hex, ProbeBssCounters, ProbeExit, ProbeInfo, ScxSchedState,
};

use super::MapHead;
use super::btfs::Btfs;
use crate::addr::Kva;
use crate::bytes::{array, le_u64, to_usize};
use crate::error::{Error, Result};
use crate::kernel::{Btf, Kernel};
use crate::walk::{Limits, Remarks};

/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// Each counter of each CPU has a slot of its own.
const SLOT_BYTES: usize = 128;
/// Counters of one CPU.
const SLOTS: usize = 15;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probe {
    /// Its counters.
    pub counters: Option<ProbeBssCounters>,
    /// The scheduler's state when it ended with an error.
    pub state: Option<ScxSchedState>,
    /// The scheduler's event counters then.
    pub events: Option<EventCounterSample>,
    /// Our own part of the report.
    pub info: Option<ProbeInfo>,
}

/// Names the map of the probe's variables.
fn is_probe(map: &MapHead) -> bool {
    map.map_type == ARRAY && map.reference.name.ends_with("probe_bp.bss")
}

/// The variable that says that there was an error exit.
const LATCH: &str = "ktstr_err_exit_detected";

/// What the latch of a running guest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LatchState {
    /// The probe has seen an error exit.
    Triggered,
    /// It has seen none.
    NotTriggered,
    /// The probe was there, and is not any more.
    OutOfBounds,
    /// No probe was found.
    NotResolved,
}

impl LatchState {
    /// As a degraded report has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Triggered => BSS_LATCH_TRIGGERED,
            Self::NotTriggered => BSS_LATCH_NOT_TRIGGERED,
            Self::OutOfBounds => BSS_LATCH_OUT_OF_BOUNDS,
            Self::NotResolved => BSS_LATCH_NOT_RESOLVED,
        }
    }
}

/// The latch of a guest's probe: found once, then read as often as one likes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latch {
    map: Kva,
    id: u32,
    at: Kva,
    trigger: Option<Kva>,
}

impl Latch {
    /// Finds it in a guest that may run; `None` without a probe, or while it is being loaded.
    #[must_use]
    pub fn find(kernel: &Kernel) -> Option<Self> {
        let maps = super::map_heads(kernel, &Limits::default(), &mut Remarks::default());
        let probe = maps.iter().find(|map| is_probe(map))?;
        let map = kernel.object("struct bpf_array", probe.at).ok()?;
        let btfs = Btfs::new(kernel);
        let loaded = btfs.of(&map.member("map.btf").ok()?).ok()??;
        let value = map.member("value").ok()?.address();
        let size = map.member("map.value_size").ok()?.u32().ok()?;
        let place = |name: &str, size_of: u32| {
            let section = loaded.types.find_section(".bss")?;
            let found = loaded.types.section(section).find(|v| v.name == name)?;
            let end = found.offset.checked_add(found.size)?;
            let fits = found.size == size_of && end <= size;
            fits.then(|| value.add(u64::from(found.offset)))
        };
        Some(Self {
            map: probe.at,
            id: probe.reference.id?,
            at: place(LATCH, 4)?,
            trigger: place("ktstr_last_trigger_ts", 8),
        })
    }

    /// Reads it: two small reads. Whether the map is still the one that was found is checked, so
    /// that memory which is someone else's by now never counts.
    #[must_use]
    pub fn state(&self, kernel: &Kernel) -> LatchState {
        let id = kernel
            .object("struct bpf_map", self.map)
            .and_then(|map| map.member("id")?.u32());
        match (id, kernel.read_u32(self.at)) {
            (Ok(id), Ok(latch)) if id == self.id => {
                if latch == 0 {
                    LatchState::NotTriggered
                } else {
                    LatchState::Triggered
                }
            }
            _ => LatchState::OutOfBounds,
        }
    }

    /// When the probe last saw a scheduler end: nanoseconds of the guest's monotonic clock.
    #[must_use]
    pub fn last_trigger_ns(&self, kernel: &Kernel) -> Option<u64> {
        kernel.read_u64(self.trigger?).ok().filter(|&at| at != 0)
    }
}

/// The latch of a guest, looked for anew; `None` without a probe. Whoever looks more than once
/// keeps the [`Latch`].
#[must_use]
pub fn latch(kernel: &Kernel) -> Option<LatchState> {
    Some(Latch::find(kernel)?.state(kernel))
}

/// Reads the probe's `.bss`, if the guest has a probe.
pub fn read(kernel: &Kernel, maps: &[MapHead], btfs: &Btfs<'_>, remarks: &mut Remarks) -> Probe {
    let Some(probe) = maps.iter().find(|map| is_probe(map)) else {
        return Probe::default();
    };
    let read = || -> Result<Probe> {
        let map = kernel.object("struct bpf_array", probe.at)?;
        let size = map.member("map.value_size")?.u32()?;
        if size > MAX_VALUE_SIZE {
            return Err(Error::Implausible {
                what: "the size of probe_bp.bss".into(),
                found: size.to_string(),
                why: "at most 16 MiB",
            });
        }
        let loaded = btfs.of(&map.member("map.btf")?)?;
        let loaded = loaded.ok_or_else(|| Error::Null("the BTF of probe_bp.bss".into()))?;
        let bytes = kernel.read_bytes(map.member("value")?.address(), u64::from(size))?;
        let mut found = decode(&loaded.types, &bytes);
        if let Some(exit) = found.info.as_mut().and_then(|info| info.exit.as_mut()) {
            let kinds = kernel.btf.find("enum scx_exit_kind")?;
            let name = kernel.btf.enumerator_name(kinds, exit.exit_kind.into());
            exit.exit_kind_name = name.map(str::to_owned);
        }
        Ok(found)
    };
    remarks.ok("probe_counters", read()).unwrap_or_default()
}

/// A `.bss` section with its types.
struct Section<'a> {
    btf: &'a Btf,
    bytes: &'a [u8],
}

impl Section<'_> {
    /// The bytes of a variable, `None` unless all of them are there.
    fn variable(&self, name: &str) -> Option<&[u8]> {
        let section = self.btf.find_section(".bss")?;
        let found = self.btf.section(section).find(|v| v.name == name)?;
        let start = to_usize(u64::from(found.offset));
        let end = start.checked_add(to_usize(u64::from(found.size)))?;
        self.bytes.get(start..end)
    }

    fn number<const N: usize>(&self, name: &str) -> Option<[u8; N]> {
        array(self.variable(name)?, 0)
    }
}

fn decode(btf: &Btf, bytes: &[u8]) -> Probe {
    let section = Section { btf, bytes };
    let (state, events) = (state(&section), events(&section));
    Probe {
        counters: section.variable("ktstr_pcpu_counters").map(counters),
        info: info(&section, state.as_ref(), events.as_ref()),
        state,
        events,
    }
}

/// Our own part of the report; `None` without a latch.
fn info(
    section: &Section<'_>,
    state: Option<&ScxSchedState>,
    events: Option<&EventCounterSample>,
) -> Option<ProbeInfo> {
    let latched = u32::from_le_bytes(section.number(LATCH)?) != 0;
    let wide = |name: &str| section.number(name).map(u64::from_le_bytes);
    // Only our own probe has these.
    let narrow = |name: &str| section.number(name).map(u32::from_le_bytes);
    let exit = state.map(|state| ProbeExit {
        at_ns: wide("probe_exit_ns").filter(|&at| at != 0),
        cpu: narrow("probe_exit_cpu"),
        pid: narrow("probe_exit_pid").map(u32::cast_signed),
        exit_kind: state.exit_kind,
        exit_kind_name: None,
        sched_kva: state.sched_kva.map(Hex),
        aborting: state.aborting,
        bypass_depth: state.bypass_depth,
        watchdog_timeout_jiffies: state.watchdog_timeout.unwrap_or(0),
        events: events.cloned(),
    });
    Some(ProbeInfo {
        latched,
        last_trigger_ns: wide("ktstr_last_trigger_ts").filter(|&at| at != 0),
        exit,
    })
}

/// The sums over the CPUs, slot by slot; a negative cell counts as 0.
fn counters(cells: &[u8]) -> ProbeBssCounters {
    let mut sums = [0u64; SLOTS];
    for cpu in cells.chunks_exact(SLOTS * SLOT_BYTES) {
        for (sum, cell) in sums.iter_mut().zip(cpu.chunks_exact(SLOT_BYTES)) {
            let value = le_u64(cell, 0).unwrap_or(0).cast_signed().max(0);
            *sum = sum.saturating_add(value.cast_unsigned());
        }
    }
    let [
        probe_count,
        kprobe_returns,
        meta_miss,
        ringbuf_drops,
        timeline_count,
        timeline_drops,
        pi_count,
        pi_orphan_fexits,
        pi_class_change_count,
        pi_drops,
        lock_contend_count,
        lock_contend_drops,
        preempt_disable_count,
        preempt_enable_count,
        trigger_count,
    ] = sums;
    ProbeBssCounters {
        probe_count,
        kprobe_returns,
        meta_miss,
        ringbuf_drops,
        timeline_count,
        timeline_drops,
        pi_count,
        pi_orphan_fexits,
        pi_class_change_count,
        pi_drops,
        lock_contend_count,
        lock_contend_drops,
        preempt_disable_count,
        preempt_enable_count,
        trigger_count,
    }
}

/// The state that the probe kept when the scheduler ended. All variables must be there, and an
/// exit kind of 0 means that none was kept.
fn state(section: &Section<'_>) -> Option<ScxSchedState> {
    let [aborting] = section.number("ktstr_exit_aborting")?;
    let bypass_depth = i32::from_le_bytes(section.number("ktstr_exit_bypass_depth")?);
    let exit_kind = u32::from_le_bytes(section.number("ktstr_exit_kind_snap")?);
    let sched_kva = u64::from_le_bytes(section.number("ktstr_exit_sched_kva")?);
    let watchdog = u64::from_le_bytes(section.number("ktstr_exit_watchdog_timeout")?);
    (exit_kind != 0).then(|| ScxSchedState {
        aborting: aborting != 0,
        bypass_depth,
        exit_kind,
        watchdog_timeout: Some(watchdog),
        source: Some(SCHED_SOURCE_BSS_SNAPSHOT.to_owned()),
        sched_kva: (sched_kva != 0).then_some(sched_kva),
    })
}

/// The event counters that the probe kept at the error.
fn events(section: &Section<'_>) -> Option<EventCounterSample> {
    let exit_kind = u32::from_le_bytes(section.number("ktstr_exit_kind_snap")?);
    let stats = section.variable("ktstr_exit_event_stats")?;
    let at_ns = u64::from_le_bytes(section.number("ktstr_last_trigger_ts")?);
    let counter = |index: usize| Some(le_u64(stats, index * 8)?.cast_signed());
    let sample = EventCounterSample {
        elapsed_ms: at_ns / 1_000_000,
        select_cpu_fallback: counter(0)?,
        dispatch_local_dsq_offline: counter(1)?,
        dispatch_keep_last: counter(2)?,
        enq_skip_exiting: counter(3)?,
        enq_skip_migration_disabled: counter(4)?,
        reenq_immed: counter(5)?,
        reenq_local_repeat: counter(6)?,
        refill_slice_dfl: counter(7)?,
        bypass_duration: counter(8)?,
        bypass_dispatch: counter(9)?,
        bypass_activate: counter(10)?,
        insert_not_owned: counter(11)?,
        sub_bypass_dispatch: counter(12)?,
    };
    (exit_kind != 0).then_some(sample)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    /// BTF with one data section `.bss` of the given variables: name, offset, size.
    fn btf(variables: &[(&str, u32, u32)]) -> Btf {
        let mut strings = b"\0.bss\0".to_vec();
        let mut types = Vec::new();
        let word = |out: &mut Vec<u8>, value: u32| out.extend(value.to_le_bytes());
        for (name, _, _) in variables {
            let offset = u32::try_from(strings.len()).unwrap();
            strings.extend(name.as_bytes());
            strings.push(0);
            // BTF_KIND_VAR of type void, global.
            for value in [offset, 14 << 24, 0, 1] {
                word(&mut types, value);
            }
        }
        let count = u32::try_from(variables.len()).unwrap();
        for value in [1, 15 << 24 | count, 0] {
            word(&mut types, value);
        }
        for (id, (_, offset, size)) in (1u32..).zip(variables) {
            for value in [id, *offset, *size] {
                word(&mut types, value);
            }
        }
        let mut blob = Vec::new();
        blob.extend(0xeb9fu16.to_le_bytes());
        blob.extend([1, 0]);
        let (types_len, strings_len) = (types.len(), strings.len());
        for value in [24, 0, types_len, types_len, strings_len] {
            word(&mut blob, u32::try_from(value).unwrap());
        }
        blob.extend(types);
        blob.extend(strings);
        Btf::parse(blob).unwrap()
    }

    const SNAPSHOT: [(&str, u32, u32); 7] = [
        ("ktstr_exit_aborting", 0, 1),
        ("ktstr_exit_bypass_depth", 4, 4),
        ("ktstr_exit_kind_snap", 8, 4),
        ("ktstr_exit_sched_kva", 16, 8),
        ("ktstr_exit_watchdog_timeout", 24, 8),
        ("ktstr_last_trigger_ts", 32, 8),
        ("ktstr_exit_event_stats", 40, 13 * 8),
    ];

    fn snapshot() -> Vec<u8> {
        let mut bytes = vec![0; 144];
        bytes[0] = 1;
        bytes[4..8].copy_from_slice(&(-3i32).to_le_bytes());
        bytes[8..12].copy_from_slice(&1026u32.to_le_bytes());
        bytes[16..24].copy_from_slice(&0xffff_8881_0123_4000u64.to_le_bytes());
        bytes[24..32].copy_from_slice(&4000u64.to_le_bytes());
        bytes[32..40].copy_from_slice(&5_000_000u64.to_le_bytes());
        for slot in 0..13u64 {
            let at = 40 + to_usize(slot) * 8;
            bytes[at..at + 8].copy_from_slice(&(slot + 100).to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_scheduler_that_is_gone_is_known_from_the_probes_snapshot() {
        let probe = decode(&btf(&SNAPSHOT), &snapshot());
        let expected = ScxSchedState {
            aborting: true,
            bypass_depth: -3,
            exit_kind: 1026,
            watchdog_timeout: Some(4000),
            source: Some("bss_snapshot".to_owned()),
            sched_kva: Some(0xffff_8881_0123_4000),
        };
        assert_eq!(probe.state, Some(expected));
        let events = probe.events.unwrap();
        assert_eq!(events.elapsed_ms, 5);
        assert_eq!(events.select_cpu_fallback, 100);
        assert_eq!(events.sub_bypass_dispatch, 112);
        assert_eq!(probe.counters, None);
    }

    #[test]
    fn our_own_probe_also_says_when_and_where() {
        let mut variables = SNAPSHOT.to_vec();
        variables.push((LATCH, 144, 4));
        let mut bytes = snapshot();
        bytes.resize(164, 0);
        bytes[144] = 1;
        // The live tool's probe: no more than that.
        let info = decode(&btf(&variables), &bytes).info.unwrap();
        assert!(info.latched);
        assert_eq!(info.last_trigger_ns, Some(5_000_000));
        let exit = info.exit.unwrap();
        assert_eq!(
            (exit.exit_kind, exit.bypass_depth, exit.aborting),
            (1026, -3, true)
        );
        assert_eq!(exit.watchdog_timeout_jiffies, 4000);
        assert_eq!(exit.sched_kva, Some(Hex(0xffff_8881_0123_4000)));
        assert_eq!(exit.events.unwrap().dispatch_keep_last, 102);
        assert_eq!((exit.at_ns, exit.cpu, exit.pid), (None, None, None));
        variables.push(("probe_exit_ns", 148, 8));
        variables.push(("probe_exit_cpu", 156, 4));
        variables.push(("probe_exit_pid", 160, 4));
        bytes[148] = 9;
        bytes[156] = 3;
        bytes[160] = 77;
        let exit = decode(&btf(&variables), &bytes).info.unwrap().exit.unwrap();
        assert_eq!(
            (exit.at_ns, exit.cpu, exit.pid),
            (Some(9), Some(3), Some(77))
        );
        // Armed, and nothing happened.
        let idle = decode(&btf(&variables), &[0; 164]);
        assert_eq!((idle.state, idle.events), (None, None));
        assert_eq!(idle.info, Some(ProbeInfo::default()));
    }

    #[test]
    fn an_exit_kind_of_zero_or_a_missing_variable_is_no_snapshot() {
        let mut bytes = snapshot();
        bytes[8..12].fill(0);
        assert_eq!(decode(&btf(&SNAPSHOT), &bytes), Probe::default());
        for missing in 0..5 {
            let mut variables = SNAPSHOT.to_vec();
            variables.remove(missing);
            let probe = decode(&btf(&variables), &snapshot());
            assert_eq!(probe.state, None, "without variable {missing}");
        }
        // A section that is shorter than its type says.
        let probe = decode(&btf(&SNAPSHOT), &snapshot()[..31]);
        assert_eq!(probe.state, None);
    }

    #[test]
    fn counters_are_sums_over_the_cpus_and_negative_cells_count_as_zero() {
        let cpus = 256usize;
        let size = cpus * SLOTS * SLOT_BYTES;
        let mut bytes = vec![0; 128 + size];
        for cpu in 0..cpus {
            for slot in 0..SLOTS {
                let at = 128 + (cpu * SLOTS + slot) * SLOT_BYTES;
                let value = if cpu == 9 {
                    -1
                } else {
                    i64::try_from(slot).unwrap()
                };
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        let size = u32::try_from(size).unwrap();
        let found = decode(&btf(&[("ktstr_pcpu_counters", 128, size)]), &bytes);
        let counters = found.counters.unwrap();
        assert_eq!(size, 491_520);
        assert_eq!(counters.probe_count, 0);
        assert_eq!(counters.kprobe_returns, 255);
        assert_eq!(counters.trigger_count, 14 * 255);
        assert_eq!(found.state, None);
    }
}
