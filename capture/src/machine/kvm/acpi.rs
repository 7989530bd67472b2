//! The tables that tell a kernel what is in the machine: its CPUs, its I/O APIC, and how to power
//! it off or reset it.

use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

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
pub(super) fn tables(vcpus: u32) -> Vec<u8> {
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
    for id in (0..vcpus).filter_map(|vcpu| u8::try_from(vcpu).ok()) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    let madt = put(&bytes_of(&madt));

    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM, xsdt));
    for (to, from) in out.iter_mut().zip(rsdp) {
        *to = from;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn tables_lead_to_each_other_and_have_their_checksums() {
        let tables = tables(3);
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
}
