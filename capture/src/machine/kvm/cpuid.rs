//! What the guest's CPUs say that they can do: what the host's KVM supports, as one socket for each
//! NUMA node, whose cores have one thread each.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::Kvm;
use vmm_sys_util::errno::Error;

/// Leaf 1, %ecx.
const XSAVE: u32 = 1 << 26;
const OSXSAVE: u32 = 1 << 27;
const AVX: u32 = 1 << 28;
const FMA: u32 = 1 << 12;
const F16C: u32 = 1 << 29;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, %edx: more than one logical CPU in the package.
const HTT: u32 = 1 << 28;
/// Leaf 7, %ecx.
const PKU: u32 = 1 << 3;
const OSPKE: u32 = 1 << 4;
/// Leaf 0xd: the legacy area and the header, which come before everything else.
const SAVE_HEADER: u32 = 576;

/// How vCPUs and memory are divided among NUMA nodes: evenly, as far as that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Topology {
    pub(super) vcpus: u32,
    pub(super) nodes: u32,
}

impl Topology {
    /// First vCPU of a node, or of those behind the last one.
    fn first(&self, node: u32) -> u32 {
        super::super::share(self.vcpus.into(), self.nodes, node)
            .try_into()
            .unwrap_or(u32::MAX)
    }

    pub(super) fn node(&self, vcpu: u32) -> u32 {
        let behind = (1..self.nodes).filter(|node| self.first(*node) <= vcpu);
        behind.count().try_into().unwrap_or(0)
    }

    /// vCPUs of a node.
    fn count(&self, node: u32) -> u32 {
        self.first(node + 1) - self.first(node)
    }

    /// Bits of an APIC id that tell the vCPUs of a node from each other.
    fn bits(&self) -> u32 {
        let most = (0..self.nodes).map(|node| self.count(node)).max();
        most.unwrap_or(1).next_power_of_two().trailing_zeros()
    }

    /// A vCPU's APIC id, which is also its number for KVM.
    pub(super) fn apic_id(&self, vcpu: u32) -> u32 {
        let node = self.node(vcpu);
        node << self.bits() | (vcpu - self.first(node))
    }
}

/// What every vCPU can do.
#[derive(Debug, Clone)]
pub(super) struct Features {
    entries: Vec<kvm_cpuid_entry2>,
    topology: Topology,
}

impl Features {
    /// `deadline`: the local APIC's timer takes deadlines.
    pub(super) fn new(kvm: &Kvm, topology: Topology, deadline: bool) -> Result<Self, Error> {
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        let mut entries = supported.as_slice().to_vec();
        // The topology leaves of later CPUs would contradict leaf 0xb below.
        entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f | 0x8000_0026));
        for entry in entries.iter_mut().filter(|entry| entry.function == 1) {
            entry.ecx |= HYPERVISOR;
            if deadline {
                entry.ecx |= TSC_DEADLINE;
            }
        }
        Ok(Self { entries, topology })
    }

    /// Takes away what is saved with XSAVE, on hosts where a guest's own set of it is not right.
    pub(super) fn without_xsave(&mut self) {
        self.entries.retain(|entry| entry.function != 0xd);
        for entry in &mut self.entries {
            match (entry.function, entry.index) {
                (1, _) => entry.ecx &= !(XSAVE | OSXSAVE | AVX | FMA | F16C),
                (7, 0) => {
                    // Of leaf 7 all that needs AVX: AVX2, AVX-512 and what came with them.
                    entry.ebx &= !((1 << 5) | 0xdc23_0000);
                    entry.ecx &= !(PKU | OSPKE | 0x0000_5f42);
                    entry.edx &= !0x03c0_010c;
                }
                (7, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
                // XOP, FMA4, LWP.
                (0x8000_0001, _) => entry.ecx &= !((1 << 11) | (1 << 15) | (1 << 16)),
                _ => {}
            }
        }
    }

    /// What this vCPU says.
    pub(super) fn of(&self, vcpu: u32) -> Result<CpuId, Error> {
        let mut entries = self.entries.clone();
        let (bits, id) = (self.topology.bits(), self.topology.apic_id(vcpu));
        let node = self.topology.node(vcpu);
        let count = self.topology.count(node);
        for entry in &mut entries {
            match (entry.function, entry.index) {
                (1, _) => {
                    let count = count.min(255);
                    entry.ebx = entry.ebx & 0xffff | count << 16 | (id & 0xff) << 24;
                    entry.edx = entry.edx & !HTT | if count > 1 { HTT } else { 0 };
                }
                (4, _) => {
                    // Intel's caches: cores of the package, and threads that share a cache.
                    let cores = (1u32 << bits).min(64) - 1;
                    let level = (entry.eax >> 5) & 7;
                    let sharing = if level < 3 { 0 } else { (1u32 << bits) - 1 };
                    entry.eax = entry.eax & 0x3fff | cores << 26 | (sharing & 0xfff) << 14;
                }
                // AMD's number of cores.
                (0x8000_0008, _) => {
                    entry.ecx = entry.ecx & !0xf0ff | bits << 12 | (count - 1) & 0xff;
                }
                // AMD's caches: threads that share one.
                (0x8000_001d, _) => {
                    let level = (entry.eax >> 5) & 7;
                    let sharing = if level < 3 { 0 } else { count - 1 };
                    entry.eax = entry.eax & 0x3fff | (sharing & 0xfff) << 14;
                }
                (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, node),
                _ => {}
            }
        }
        // Threads of a core, cores of the package, and the end of the list.
        let levels = [(0, 0, 1, 1u32), (1, bits, count, 2), (2, 0, 0, 0)];
        for (index, shift, logical, kind) in levels {
            entries.push(kvm_cpuid_entry2 {
                function: 0xb,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: shift,
                ebx: logical,
                ecx: index | kind << 8,
                edx: id,
                ..kvm_cpuid_entry2::default()
            });
        }
        CpuId::from_entries(&entries).map_err(|_| Error::new(libc::E2BIG))
    }
}

/// Size of the area that XSAVE writes for these features, and of the one that XSAVEC does if there
/// is such a thing.
pub(super) fn save_sizes(entries: &[kvm_cpuid_entry2], features: u32) -> (u32, Option<u32>) {
    let leaf = |index| {
        let mut own = entries.iter().filter(|entry| entry.function == 0xd);
        own.find(|entry| entry.index == index)
    };
    let (mut plain, mut compact) = (SAVE_HEADER, SAVE_HEADER);
    for entry in (2..32)
        .filter(|bit| features & (1 << bit) != 0)
        .filter_map(leaf)
    {
        plain = plain.max(entry.ebx.saturating_add(entry.eax));
        if entry.ecx & 2 != 0 {
            compact = compact.next_multiple_of(64);
        }
        compact = compact.saturating_add(entry.eax);
    }
    // XSAVEC or XSAVES.
    let has = leaf(1).is_some_and(|entry| entry.eax & 0b1010 != 0);
    (plain, has.then_some(compact))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_of_a_node_are_a_socket_of_their_own() {
        let of = |vcpus, nodes| {
            let topology = Topology { vcpus, nodes };
            let each = (0..vcpus).map(|vcpu| (topology.node(vcpu), topology.apic_id(vcpu)));
            each.collect::<Vec<_>>()
        };
        assert_eq!(of(4, 1), [(0, 0), (0, 1), (0, 2), (0, 3)]);
        assert_eq!(of(4, 2), [(0, 0), (0, 1), (1, 2), (1, 3)]);
        // Two and three: ids have a bit more than the smaller one needs.
        assert_eq!(of(5, 2), [(0, 0), (0, 1), (1, 4), (1, 5), (1, 6)]);
        assert_eq!(of(3, 3), [(0, 0), (1, 1), (2, 2)]);
        let most = Topology {
            vcpus: 64,
            nodes: 7,
        };
        // The APIC of a CPU without x2APIC has ids up to 254.
        assert!((0..64).all(|vcpu| most.apic_id(vcpu) < 255));
    }

    #[test]
    fn a_save_area_has_the_size_of_its_parts() {
        let leaf = |index, eax, ebx, ecx| kvm_cpuid_entry2 {
            function: 0xd,
            index,
            eax,
            ebx,
            ecx,
            ..kvm_cpuid_entry2::default()
        };
        // AVX at 576, PKRU at 2688 as on AMD, in steps of 64 when compact.
        let mut entries = vec![
            leaf(0, 0x207, 0, 0),
            leaf(2, 256, 576, 0),
            leaf(9, 8, 2688, 2),
        ];
        assert_eq!(save_sizes(&entries, 0x207), (2696, None));
        entries.push(leaf(1, 0b1010, 0, 0));
        assert_eq!(save_sizes(&entries, 0x207), (2696, Some(832 + 8)));
        assert_eq!(save_sizes(&entries, 7), (832, Some(832)));
    }
}
