//! All registers of one x86-64 vCPU, and the notes of other tools that are made from them.

use serde::{Deserialize, Serialize};

use crate::bytes::Record;

/// Registers in JSON are hexadecimal strings: 64 bits do not fit into a JSON number everywhere.
mod hex {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S, T>(value: &T, serializer: S) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
        T: std::fmt::LowerHex,
    {
        serializer.serialize_str(&format!("{value:#x}"))
    }

    pub(super) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: TryFrom<u64>,
    {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .and_then(|value| T::try_from(value).ok())
            .ok_or_else(|| {
                D::Error::custom(format!(
                    "expected a register such as \"0x1f\", found {text:?}"
                ))
            })
    }
}

/// The same for a register that the writer may not have been able to read.
mod maybe_hex {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(
        clippy::ref_option,
        reason = "serde calls it with a reference to the member"
    )]
    pub(super) fn serialize<S: Serializer>(
        value: &Option<u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::hex::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<u64>, D::Error> {
        #[derive(Deserialize)]
        struct Register(#[serde(with = "super::hex")] u64);
        Ok(Option::<Register>::deserialize(deserializer)?.map(|Register(value)| value))
    }
}

/// General registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the names are those of the processor's manuals"
)]
pub struct GeneralRegs {
    #[serde(with = "hex")]
    pub rax: u64,
    #[serde(with = "hex")]
    pub rbx: u64,
    #[serde(with = "hex")]
    pub rcx: u64,
    #[serde(with = "hex")]
    pub rdx: u64,
    #[serde(with = "hex")]
    pub rsi: u64,
    #[serde(with = "hex")]
    pub rdi: u64,
    #[serde(with = "hex")]
    pub rsp: u64,
    #[serde(with = "hex")]
    pub rbp: u64,
    #[serde(with = "hex")]
    pub r8: u64,
    #[serde(with = "hex")]
    pub r9: u64,
    #[serde(with = "hex")]
    pub r10: u64,
    #[serde(with = "hex")]
    pub r11: u64,
    #[serde(with = "hex")]
    pub r12: u64,
    #[serde(with = "hex")]
    pub r13: u64,
    #[serde(with = "hex")]
    pub r14: u64,
    #[serde(with = "hex")]
    pub r15: u64,
    #[serde(with = "hex")]
    pub rip: u64,
    #[serde(with = "hex")]
    pub rflags: u64,
}

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SegmentReg {
    /// Selector.
    #[serde(with = "hex")]
    pub selector: u16,
    /// Limit in bytes.
    #[serde(with = "hex")]
    pub limit: u32,
    /// Attributes, at the bits that they have in the second word of a segment descriptor (type
    /// from bit 8, S 12, DPL 13, P 15, AVL 20, L 21, D/B 22, G 23).
    #[serde(with = "hex")]
    pub flags: u32,
    /// Base: a guest virtual address.
    #[serde(with = "hex")]
    pub base: u64,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DescriptorTable {
    /// Base: a guest virtual address.
    #[serde(with = "hex")]
    pub base: u64,
    /// Limit in bytes.
    #[serde(with = "hex")]
    pub limit: u16,
}

/// Segment and control registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the names are those of the processor's manuals"
)]
pub struct SpecialRegs {
    pub cs: SegmentReg,
    pub ds: SegmentReg,
    pub es: SegmentReg,
    pub fs: SegmentReg,
    pub gs: SegmentReg,
    pub ss: SegmentReg,
    pub ldt: SegmentReg,
    pub tr: SegmentReg,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    #[serde(with = "hex")]
    pub cr0: u64,
    #[serde(with = "hex")]
    pub cr2: u64,
    #[serde(with = "hex")]
    pub cr3: u64,
    #[serde(with = "hex")]
    pub cr4: u64,
    /// Absent: not known.
    #[serde(with = "maybe_hex", skip_serializing_if = "Option::is_none")]
    pub cr8: Option<u64>,
    /// Absent: not known.
    #[serde(with = "maybe_hex", skip_serializing_if = "Option::is_none")]
    pub efer: Option<u64>,
}

/// Debug registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the names are those of the processor's manuals"
)]
pub struct DebugRegs {
    #[serde(with = "hex")]
    pub dr0: u64,
    #[serde(with = "hex")]
    pub dr1: u64,
    #[serde(with = "hex")]
    pub dr2: u64,
    #[serde(with = "hex")]
    pub dr3: u64,
    #[serde(with = "hex")]
    pub dr6: u64,
    #[serde(with = "hex")]
    pub dr7: u64,
}

/// The value of a model-specific register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Msr {
    /// Number of the register.
    #[serde(with = "hex")]
    pub index: u32,
    /// Its value.
    #[serde(with = "hex")]
    pub value: u64,
}

/// `MSR_KERNEL_GS_BASE`.
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// Everything that the writer could read of one vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VcpuState {
    /// Version of this record's meaning; this crate writes 1.
    pub version: u32,
    /// Number of the vCPU, from 0.
    pub vcpu: u32,
    /// General registers.
    pub general: GeneralRegs,
    /// Segment and control registers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub special: Option<SpecialRegs>,
    /// Debug registers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug: Option<DebugRegs>,
    /// Model-specific registers that could be read, in the writer's order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub msrs: Vec<Msr>,
    /// x87, SSE, AVX and what else XSAVE saves, in its standard form and as the kernel's own notes
    /// of it have it: the features that are switched on at byte 464. For a note of its own
    /// ([`Note::xstate`](crate::capture::Note::xstate)), not in the JSON; empty when not known.
    #[serde(skip)]
    pub xsave: Vec<u8>,
}

impl VcpuState {
    /// The value of a model-specific register, if the capture has it.
    #[must_use]
    pub fn msr(&self, index: u32) -> Option<u64> {
        self.msrs
            .iter()
            .find(|msr| msr.index == index)
            .map(|msr| msr.value)
    }

    /// The content of a `CORE` / NT_PRSTATUS note: `struct elf_prstatus` of x86-64 (336 bytes).
    /// The process id is the vCPU's number plus one, as in QEMU's dumps.
    #[must_use]
    pub fn to_prstatus(&self) -> Vec<u8> {
        let g = &self.general;
        let s = self.special.unwrap_or_default();
        let order = [
            g.r15,
            g.r14,
            g.r13,
            g.r12,
            g.rbp,
            g.rbx,
            g.r11,
            g.r10,
            g.r9,
            g.r8,
            g.rax,
            g.rcx,
            g.rdx,
            g.rsi,
            g.rdi,
            u64::MAX,
            g.rip,
        ];
        let mut record = Record::default()
            .pad_to(32)
            .u32(self.vcpu.saturating_add(1))
            .pad_to(112);
        for value in order {
            record = record.u64(value);
        }
        record
            .u64(u64::from(s.cs.selector))
            .u64(g.rflags)
            .u64(g.rsp)
            .u64(u64::from(s.ss.selector))
            .u64(s.fs.base)
            .u64(s.gs.base)
            .u64(u64::from(s.ds.selector))
            .u64(u64::from(s.es.selector))
            .u64(u64::from(s.fs.selector))
            .u64(u64::from(s.gs.selector))
            .pad_to(336)
            .done()
    }

    /// The content of a `QEMU` note: version 1 of its CPU state for x86-64 (440 bytes). `None`
    /// without segment and control registers.
    #[must_use]
    pub fn to_qemu(&self) -> Option<Vec<u8>> {
        let g = &self.general;
        let s = self.special.as_ref()?;
        let mut record = Record::default().u32(1).u32(440);
        for value in [
            g.rax, g.rbx, g.rcx, g.rdx, g.rsi, g.rdi, g.rsp, g.rbp, g.r8, g.r9, g.r10, g.r11,
            g.r12, g.r13, g.r14, g.r15, g.rip, g.rflags,
        ] {
            record = record.u64(value);
        }
        let table = |t: &DescriptorTable| SegmentReg {
            limit: u32::from(t.limit),
            base: t.base,
            ..SegmentReg::default()
        };
        for segment in [
            s.cs,
            s.ds,
            s.es,
            s.fs,
            s.gs,
            s.ss,
            s.ldt,
            s.tr,
            table(&s.gdt),
            table(&s.idt),
        ] {
            record = record
                .u32(u32::from(segment.selector))
                .u32(segment.limit)
                .u32(segment.flags)
                .u32(0)
                .u64(segment.base);
        }
        for value in [s.cr0, 0, s.cr2, s.cr3, s.cr4] {
            record = record.u64(value);
        }
        let record = record.u64(self.msr(MSR_KERNEL_GS_BASE).unwrap_or(0));
        Some(record.done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{le_u32, le_u64};

    fn state() -> VcpuState {
        VcpuState {
            version: 1,
            vcpu: 2,
            general: GeneralRegs {
                rax: 1,
                r15: 15,
                rip: 0xffff_ffff_8100_0000,
                rsp: 0xffff_c900_0000_1000,
                rflags: 0x246,
                ..GeneralRegs::default()
            },
            special: Some(SpecialRegs {
                gs: SegmentReg {
                    base: 0xffff_8880_7d80_0000,
                    ..SegmentReg::default()
                },
                cr3: 0x123_4000,
                cr4: 0x6f0,
                ..SpecialRegs::default()
            }),
            debug: None,
            msrs: vec![Msr {
                index: MSR_KERNEL_GS_BASE,
                value: 0x7f00,
            }],
            xsave: Vec::new(),
        }
    }

    #[test]
    fn notes_have_the_layout_of_their_owners() {
        let prstatus = state().to_prstatus();
        assert_eq!(prstatus.len(), 336);
        assert_eq!(le_u32(&prstatus, 32), Some(3));
        assert_eq!(le_u64(&prstatus, 112), Some(15));
        assert_eq!(le_u64(&prstatus, 112 + 16 * 8), Some(0xffff_ffff_8100_0000));
        assert_eq!(le_u64(&prstatus, 112 + 18 * 8), Some(0x246));
        assert_eq!(le_u64(&prstatus, 112 + 19 * 8), Some(0xffff_c900_0000_1000));
        let qemu = state().to_qemu().unwrap();
        assert_eq!(qemu.len(), 440);
        assert_eq!(le_u64(&qemu, 8), Some(1));
        assert_eq!(
            le_u64(&qemu, 152 + 4 * 24 + 16),
            Some(0xffff_8880_7d80_0000)
        );
        assert_eq!(le_u64(&qemu, 152 + 240 + 3 * 8), Some(0x123_4000));
        assert_eq!(le_u64(&qemu, 152 + 240 + 4 * 8), Some(0x6f0));
        assert_eq!(le_u64(&qemu, 432), Some(0x7f00));
    }

    #[test]
    fn json_round_trip() {
        let json = serde_json::to_string(&state()).unwrap();
        assert!(json.contains(r#""rip":"0xffffffff81000000""#), "{json}");
        assert_eq!(serde_json::from_str::<VcpuState>(&json).unwrap(), state());
        assert!(!json.contains("efer") && !json.contains("cr8"), "{json}");
        let known: SpecialRegs = serde_json::from_str(r#"{"efer":"0xd01"}"#).unwrap();
        assert_eq!((known.efer, known.cr8), (Some(0xd01), None));
        assert!(serde_json::from_str::<Msr>(r#"{"index":"0x1ffffffff"}"#).is_err());
        assert!(serde_json::from_str::<Msr>(r#"{"index":"12"}"#).is_err());
    }
}
