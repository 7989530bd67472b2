//! NUMA counters of each node.
//!
//! Mirrors `node_read_numastat()` (drivers/base/node.c): `fold_vm_numa_events()` and
//! `sum_zone_numa_event_state()` (mm/vmstat.c). Online nodes are those of `node_states[N_ONLINE]`;
//! a node is `node_data[n]`, a `struct pglist_data`; the counters are `zone.vm_numa_event` and what
//! CPUs have not folded into it yet, `zone.per_cpu_zonestats->vm_numa_event`.

use scx_postmortem_format::report::{PerNodeNumaStats, Unavailable, UnavailableCode};

use super::{Remarks, static_key};
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::object::Object;

/// Largest `MAX_NUMNODES`.
const MAX_NODES: u64 = 1024;
/// Zones of a node: 5 with CONFIG_ZONE_DEVICE.
const MAX_ZONES: u32 = 16;
const SECTION: &str = "per_node_numa";

/// One row per online node; a node that cannot be read has none and a remark.
pub fn read(kernel: &Kernel, remarks: &mut Remarks) -> Vec<PerNodeNumaStats> {
    let (Some(items), Some(nodes), Some(cpus)) = (
        remarks.ok(SECTION, Items::find(kernel)),
        remarks.ok(SECTION, online_nodes(kernel)),
        remarks.ok(SECTION, online_cpus(kernel)),
    ) else {
        return Vec::new();
    };
    // sysctl vm.numa_stat = 0 also clears the counters.
    if static_key(kernel, "vm_numa_stat_key") == Ok(false) {
        remarks.unavailable.push(Unavailable {
            section: SECTION.to_owned(),
            code: UnavailableCode::NotApplicable,
            reason: "the static key vm_numa_stat_key is off: the kernel does not count (vm.numa_stat=0), and a counter of 0 says nothing".to_owned(),
        });
    }
    let rows = nodes.into_iter().map(|node| {
        let counts = read_node(kernel, node, &items, &cpus);
        remarks.ok(SECTION, counts)
    });
    rows.collect::<Vec<_>>().into_iter().flatten().collect()
}

/// Where the counters are in `vm_numa_event`, in this kernel.
struct Items([u64; 6]);

impl Items {
    fn find(kernel: &Kernel) -> Result<Self> {
        const NAMES: [&str; 6] = [
            "NUMA_HIT",
            "NUMA_MISS",
            "NUMA_FOREIGN",
            "NUMA_INTERLEAVE_HIT",
            "NUMA_LOCAL",
            "NUMA_OTHER",
        ];
        let mut items = [0; 6];
        for (slot, name) in items.iter_mut().zip(NAMES) {
            let index = kernel.constant("enum numa_stat_item", name)?;
            *slot = u64::try_from(index).map_err(|_| Error::Implausible {
                what: name.to_owned(),
                found: index.to_string(),
                why: "an index",
            })?;
        }
        Ok(Self(items))
    }

    /// The six counters out of a `vm_numa_event` array.
    fn read(&self, events: &Object<'_>) -> Result<[u64; 6]> {
        let len = u64::from(events.array_len()?);
        let mut counts = [0; 6];
        for (count, &item) in counts.iter_mut().zip(&self.0) {
            if item >= len {
                return Err(Error::Implausible {
                    what: "numa_stat_item".into(),
                    found: item.to_string(),
                    why: "an index of vm_numa_event",
                });
            }
            *count = events.index(item)?.u64()?;
        }
        Ok(counts)
    }
}

fn online_nodes(kernel: &Kernel) -> Result<Vec<u64>> {
    // nodemask_t node_states[NR_NODE_STATES]
    let state = kernel.constant("enum node_states", "N_ONLINE")?;
    let state = u64::try_from(state).unwrap_or(0);
    let mask = kernel.global("node_states", "nodemask_t")?;
    let size = mask.size().unwrap_or(0).min(MAX_NODES / 8);
    let bytes = kernel.read_bytes(mask.address().add(size * state), size)?;
    let bits = (0u64..).zip(bytes).flat_map(|(at, byte)| {
        (0u64..8).filter_map(move |bit| (byte >> bit & 1 == 1).then_some(at * 8 + bit))
    });
    Ok(bits.collect())
}

fn online_cpus(kernel: &Kernel) -> Result<Vec<u32>> {
    kernel.cpu_mask(kernel.symbol("__cpu_online_mask")?)
}

fn read_node(kernel: &Kernel, node: u64, items: &Items, cpus: &[u32]) -> Result<PerNodeNumaStats> {
    // struct pglist_data *node_data[MAX_NUMNODES]
    let at = kernel.read_ptr(kernel.symbol("node_data")?.add(node * 8))?;
    if at.is_null() {
        return Err(Error::Null(format!("node_data[{node}]")));
    }
    let pgdat = kernel.object("struct pglist_data", at)?;
    let zones = pgdat.member("node_zones")?;
    let count = zones.array_len()?;
    if count > MAX_ZONES {
        return Err(Error::Implausible {
            what: "the length of pglist_data.node_zones".into(),
            found: count.to_string(),
            why: "at most 16",
        });
    }
    let mut sum = [0u64; 6];
    let mut add = |counts: [u64; 6]| {
        for (sum, count) in sum.iter_mut().zip(counts) {
            *sum = sum.wrapping_add(count);
        }
    };
    for index in 0..u64::from(count) {
        let zone = zones.index(index)?;
        add(items.read(&zone.member("vm_numa_event")?)?);
        // Zones without memory share one set of boot-time statistics (`populated_zone()`).
        if zone.member("present_pages")?.u64()? == 0 {
            continue;
        }
        let pending = zone.member("per_cpu_zonestats")?;
        for &cpu in cpus {
            let stats = pending.deref_per_cpu(cpu)?;
            add(items.read(&stats.member("vm_numa_event")?)?);
        }
    }
    let [
        numa_hit,
        numa_miss,
        numa_foreign,
        numa_interleave_hit,
        numa_local,
        numa_other,
    ] = sum;
    Ok(PerNodeNumaStats {
        node: u32::try_from(node).unwrap_or(u32::MAX),
        numa_hit,
        numa_miss,
        numa_foreign,
        numa_interleave_hit,
        numa_local,
        numa_other,
    })
}
