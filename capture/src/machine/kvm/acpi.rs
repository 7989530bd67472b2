//! The tables that tell a kernel what is in the machine: its CPUs, its I/O APIC, its NUMA nodes,
//! and how to power it off or reset it.

use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::slit::SLIT;
use acpi_tables::srat::MemoryAffinity;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink, aml};

use super::super::{Mapping, node_memory};
use super::cpuid::Topology;
use super::devices::{PM_CONTROL, PM_EVENT, RESET, RESET_VALUE, SLEEP_OFF};
use super::layout::{ACPI, IO_APIC, LOCAL_APIC};

const OEM: [u8; 6] = *b"SCXPM ";
const TABLE: [u8; 8] = *b"SCXPMKVM";
const REVISION: u32 = 1;
/// Interrupt of ACPI itself, never raised.
const SCI: u16 = 9;
/// `ACPI_FADT_LEGACY_DEVICES`: there are serial ports and the like; no keyboard controller.
const LEGACY_DEVICES: u16 = 1;
/// `ACPI_FADT_NO_VGA` and `ACPI_FADT_NO_CMOS_RTC`.
const WITHOUT: u16 = (1 << 2) | (1 << 5);

/// The tables as bytes to put at [`ACPI`], where the first is the RSDP.
pub(super) fn tables(topology: &Topology, pieces: &[Mapping]) -> Vec<u8> {
    let bytes_of = |table: &dyn Aml| {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        bytes
    };
    // The RSDP comes first, though what it points to comes last.
    let mut out = vec![0; 64];
    let mut put = |bytes: &[u8]| {
        out.resize(out.len().next_multiple_of(64), 0);
        let at = ACPI + u64::try_from(out.len()).unwrap_or(0);
        out.extend_from_slice(bytes);
        at
    };

    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    let states = aml::Package::new(vec![&SLEEP_OFF, &SLEEP_OFF, &0u8, &0u8]);
    aml::Name::new("_S5_".into(), &states).to_aml_bytes(&mut dsdt);
    let dsdt = put(dsdt.as_slice());
    let facs = put(&bytes_of(&FACS::new()));

    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_64(facs)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = SCI.into();
    fadt.pm1a_evt_blk = u32::from(PM_EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(PM_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | WITHOUT).into();
    fadt.reset_reg = GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(RESET),
    );
    fadt.reset_value = RESET_VALUE;
    let fadt = put(&bytes_of(&fadt.finalize()));

    let controller = LocalInterruptController::Address(LOCAL_APIC);
    let mut madt = MADT::new(OEM, TABLE, REVISION, controller);
    for (vcpu, id) in ids(topology) {
        madt.add_structure(ProcessorLocalApic::new(vcpu, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    let madt = put(&bytes_of(&madt));

    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if topology.nodes > 1 {
        xsdt.add_entry(put(affinity(topology, pieces).as_slice()));
        xsdt.add_entry(put(&bytes_of(&distances(topology.nodes))));
    }
    let xsdt = put(&bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM, xsdt));
    for (to, from) in out.iter_mut().zip(rsdp) {
        *to = from;
    }
    out
}

/// Number and APIC id of each vCPU.
fn ids(topology: &Topology) -> impl Iterator<Item = (u8, u8)> + '_ {
    (0..topology.vcpus).filter_map(|vcpu| {
        let id = u8::try_from(topology.apic_id(vcpu)).ok()?;
        Some((u8::try_from(vcpu).ok()?, id))
    })
}

/// SRAT: the node of each vCPU and of each piece of memory.
fn affinity(topology: &Topology, pieces: &[Mapping]) -> Sdt {
    const HEADER: u32 = 48;
    const PROCESSOR: [u8; 2] = [0, 16];
    const ENABLED: u32 = 1;
    let mut srat = Sdt::new(*b"SRAT", HEADER, 3, OEM, TABLE, REVISION);
    // "Reserved to be 1 for backward compatibility".
    srat.write_u32(36, 1);
    for (vcpu, id) in ids(topology) {
        let [low, high @ ..] = topology.node(vcpu.into()).to_le_bytes();
        // `acpi_srat_cpu_affinity`: node, APIC id, flags, no SAPIC, the rest of the node, no clock
        // domain.
        srat.vec(&PROCESSOR);
        srat.vec(&[low, id]);
        srat.dword(ENABLED);
        srat.vec(&[0]);
        srat.vec(&high);
        srat.vec(&[0; 4]);
    }
    for (node, gpa, bytes) in memory_of_nodes(topology.nodes, pieces) {
        MemoryAffinity::new(node, gpa, bytes)
            .enabled()
            .to_aml_bytes(&mut srat);
    }
    srat
}

/// Which node each range of memory belongs to.
fn memory_of_nodes(nodes: u32, pieces: &[Mapping]) -> Vec<(u32, u64, u64)> {
    let total = pieces.iter().map(|piece| piece.bytes).sum();
    let mut out = Vec::new();
    for node in 0..nodes {
        let (start, end) = node_memory(total, nodes, node);
        for piece in pieces {
            let from = start.max(piece.offset);
            let to = end.min(piece.offset + piece.bytes);
            if from < to {
                out.push((node, piece.gpa + (from - piece.offset), to - from));
            }
        }
    }
    out
}

/// SLIT: twice as far to any other node.
fn distances(nodes: u32) -> SLIT {
    let mut slit = SLIT::new(OEM, TABLE, REVISION, nodes);
    let nodes = usize::try_from(nodes).unwrap_or(0);
    for (a, b) in (0..nodes).flat_map(|a| (0..a).map(move |b| (a, b))) {
        slit.set_distance(a, b, 20);
    }
    slit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn tables_lead_to_each_other_and_have_their_checksums() {
        let three = Topology { vcpus: 3, nodes: 1 };
        let tables = tables(&three, &[]);
        let at = |gpa: u64| &tables[usize::try_from(gpa - ACPI).unwrap()..];
        let u32_at = |table: &[u8], at: usize| {
            u32::from_le_bytes(table[at..at + 4].try_into().unwrap()) as usize
        };
        let u64_at =
            |table: &[u8], at: usize| u64::from_le_bytes(table[at..at + 8].try_into().unwrap());
        assert_eq!(&tables[..8], b"RSD PTR ");
        assert_eq!((sum(&tables[..20]), sum(&tables[..36])), (0, 0));
        let xsdt = at(u64_at(&tables, 24));
        assert_eq!((&xsdt[..4], u32_at(xsdt, 4)), (&b"XSDT"[..], 36 + 16));
        let fadt = at(u64_at(xsdt, 36));
        let madt = at(u64_at(xsdt, 44));
        let dsdt = at(u64_at(fadt, 140));
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        for table in [xsdt, fadt, madt, dsdt] {
            assert_eq!(sum(&table[..u32_at(table, 4)]), 0);
        }
        // \_S5_ with sleep type 5, as the machine's power-off expects it.
        let s5 = [8, b'_', b'S', b'5', b'_', 0x12, 8, 4, 10, 5, 10, 5, 0, 0];
        assert_eq!(&dsdt[36..u32_at(dsdt, 4)], s5);
        // Three CPUs of 8 bytes, one I/O APIC of 12.
        assert_eq!(u32_at(madt, 4), 44 + 3 * 8 + 12);
        assert_eq!(u32_at(fadt, 64), u32::from(PM_CONTROL) as usize);
    }
    #[test]
    fn each_vcpu_and_all_memory_belong_to_a_node() {
        let topology = Topology { vcpus: 4, nodes: 2 };
        let pieces = super::super::layout::pieces(5 << 30);
        let half = 5u64 << 29;
        let expected = [
            (0, 0, half),
            (1, half, (3 << 30) - half),
            (1, 4 << 30, 2 << 30),
        ];
        assert_eq!(memory_of_nodes(2, &pieces), expected);
        let srat = affinity(&topology, &pieces);
        let bytes = srat.as_slice();
        assert_eq!(sum(bytes), 0);
        assert_eq!(bytes.len(), 48 + 4 * 16 + 3 * 40);
        let processors: Vec<_> = bytes[48..112]
            .chunks(16)
            .map(|entry| (entry[0], entry[1], entry[2], entry[3], entry[4]))
            .collect();
        let expected = [(0, 0), (0, 1), (1, 2), (1, 3)].map(|(n, id)| (0, 16, n, id, 1));
        assert_eq!(processors, expected);
        let mut slit = Vec::new();
        distances(3).to_aml_bytes(&mut slit);
        assert_eq!((sum(&slit), slit.len()), (0, 44 + 9));
        assert_eq!(slit[44..], [10, 20, 20, 20, 10, 20, 20, 20, 10]);
        // The root lists both, behind those that every machine has.
        let all = tables(&topology, &pieces);
        for name in [b"SRAT", b"SLIT"] {
            assert!(all.windows(4).any(|bytes| bytes == name));
        }
    }
}
