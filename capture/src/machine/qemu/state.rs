//! The registers of QEMU's vCPUs: out of the notes of its dumps (`QEMUCPUState`,
//! target/i386/arch_dump.c), which have most of them, and out of what its monitor prints
//! (`info registers -a`, target/i386/cpu-dump.c), which has the rest. Neither has CR8 or the TSC.

use scx_postmortem_format::capture::{
    DebugRegs, DescriptorTable, GeneralRegs, Msr, SegmentReg, SpecialRegs, VcpuState,
};

const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;
/// Where the values of [`VcpuState`] are in the note.
const GENERAL: usize = 8;
const SEGMENTS: usize = GENERAL + 18 * 8;
const SEGMENT: usize = 24;
const CONTROL: usize = SEGMENTS + 10 * SEGMENT;
const KERNEL_GS: usize = CONTROL + 5 * 8;

fn bytes<const N: usize>(note: &[u8], at: usize) -> Option<[u8; N]> {
    note.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn segment(note: &[u8], index: usize) -> Option<SegmentReg> {
    let at = SEGMENTS + index * SEGMENT;
    let selector = u32::from_le_bytes(bytes(note, at)?);
    Some(SegmentReg {
        selector: u16::try_from(selector & 0xffff).ok()?,
        limit: u32::from_le_bytes(bytes(note, at + 4)?),
        flags: u32::from_le_bytes(bytes(note, at + 8)?),
        base: u64::from_le_bytes(bytes(note, at + 16)?),
    })
}

fn table(note: &[u8], index: usize) -> Option<DescriptorTable> {
    let segment = segment(note, index)?;
    Some(DescriptorTable {
        base: segment.base,
        limit: u16::try_from(segment.limit & 0xffff).ok()?,
    })
}

/// The state of one vCPU from its note; `None` when the note is too short.
pub(super) fn of_note(vcpu: u32, note: &[u8]) -> Option<VcpuState> {
    let general = |index: usize| bytes(note, GENERAL + index * 8).map(u64::from_le_bytes);
    let control = |index: usize| bytes(note, CONTROL + index * 8).map(u64::from_le_bytes);
    let kernel_gs = bytes(note, KERNEL_GS).map(u64::from_le_bytes);
    let msr = |value| Msr {
        index: MSR_KERNEL_GS_BASE,
        value,
    };
    Some(VcpuState {
        version: 1,
        vcpu,
        general: GeneralRegs {
            rax: general(0)?,
            rbx: general(1)?,
            rcx: general(2)?,
            rdx: general(3)?,
            rsi: general(4)?,
            rdi: general(5)?,
            rsp: general(6)?,
            rbp: general(7)?,
            r8: general(8)?,
            r9: general(9)?,
            r10: general(10)?,
            r11: general(11)?,
            r12: general(12)?,
            r13: general(13)?,
            r14: general(14)?,
            r15: general(15)?,
            rip: general(16)?,
            rflags: general(17)?,
        },
        special: Some(SpecialRegs {
            cs: segment(note, 0)?,
            ds: segment(note, 1)?,
            es: segment(note, 2)?,
            fs: segment(note, 3)?,
            gs: segment(note, 4)?,
            ss: segment(note, 5)?,
            ldt: segment(note, 6)?,
            tr: segment(note, 7)?,
            gdt: table(note, 8)?,
            idt: table(note, 9)?,
            cr0: control(0)?,
            cr2: control(2)?,
            cr3: control(3)?,
            cr4: control(4)?,
            cr8: None,
            efer: None,
        }),
        debug: None,
        msrs: kernel_gs.map(msr).into_iter().collect(),
        xsave: Vec::new(),
    })
}

/// Adds what the monitor's text knows beyond the notes: EFER and the debug registers.
pub(super) fn add_text(states: &mut [VcpuState], text: &str) {
    for section in text.split("CPU#").skip(1) {
        let number = section.split_whitespace().next();
        let number = number.and_then(|number| number.parse::<u32>().ok());
        let Some(state) = states.iter_mut().find(|s| Some(s.vcpu) == number) else {
            continue;
        };
        let value = |name: &str| {
            let rest = section.split_once(&format!("{name}="))?.1;
            let end = rest.find(|c: char| !c.is_ascii_hexdigit());
            let digits = rest.get(..end.unwrap_or(rest.len()))?;
            u64::from_str_radix(digits, 16).ok()
        };
        if let Some(special) = &mut state.special {
            special.efer = value("EFER");
        }
        let all = ["DR0", "DR1", "DR2", "DR3", "DR6", "DR7"].map(value);
        if let [
            Some(dr0),
            Some(dr1),
            Some(dr2),
            Some(dr3),
            Some(dr6),
            Some(dr7),
        ] = all
        {
            state.debug = Some(DebugRegs {
                dr0,
                dr1,
                dr2,
                dr3,
                dr6,
                dr7,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 7.2 prints it, shortened.
    const TEXT: &str = "
CPU#0
RAX=0000000000000000 RBX=0000000000000001
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER=0000000000000d01

CPU#1
DR0=00000000000000a0 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
DR6=00000000ffff0ff0 DR7=0000000000000402
EFER=0000000000000d01
";

    #[test]
    fn a_note_and_the_text_give_all_that_there_is() {
        let known = VcpuState {
            version: 1,
            vcpu: 1,
            general: GeneralRegs {
                rax: 1,
                rsi: 2,
                r15: 15,
                rip: 0xffff_ffff_8120_0000,
                rflags: 0x246,
                ..GeneralRegs::default()
            },
            special: Some(SpecialRegs {
                cs: SegmentReg {
                    selector: 0x10,
                    limit: 0xffff_ffff,
                    flags: 0xaf_9b00,
                    base: 0,
                },
                gdt: DescriptorTable {
                    base: 0xffff_fe00_0000_1000,
                    limit: 0x7f,
                },
                cr3: 0x123_4000,
                ..SpecialRegs::default()
            }),
            msrs: vec![Msr {
                index: MSR_KERNEL_GS_BASE,
                value: 0x7f00,
            }],
            ..VcpuState::default()
        };
        let note = known.to_qemu().unwrap();
        let mut states = vec![of_note(1, &note).unwrap()];
        assert_eq!(states[0], known);
        add_text(&mut states, TEXT);
        assert_eq!(states[0].special.unwrap().efer, Some(0xd01));
        let debug = states[0].debug.unwrap();
        assert_eq!(
            (debug.dr0, debug.dr6, debug.dr7),
            (0xa0, 0xffff_0ff0, 0x402)
        );
        assert_eq!(of_note(0, &note[..400]), None);
    }
}
