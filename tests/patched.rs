//! Captures of the corpus with a few bytes replaced or lost, each where the analyzer must answer in
//! one particular way.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use scx_postmortem_analyze::addr::Kva;
use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::kernel::{Btf, Kernel, Overrides};
use scx_postmortem_analyze::source::{Image, VcpuRegs};
use scx_postmortem_analyze::walk::Limits;
use scx_postmortem_format::capture::{
    CaptureSpec, EarlySpec, Extent, Manifest, MemoryKind, MemoryRegion, MemorySource, WriteOptions,
    write_capture,
};
use scx_postmortem_format::report::{Anomaly, PostmortemReport, UnavailableCode};
use scx_postmortem_tests::{Patched, entry};

const STALL: &str = "stall-6.18";

fn report(kernel: &Kernel) -> PostmortemReport {
    *analysis::analyze(kernel, &Options::default())
        .postmortem
        .unwrap()
}

#[test]
fn a_member_that_this_kernel_lacks_is_said_once() {
    let report = report(&entry(STALL).unwrap().kernel().unwrap());
    let remarks = &report.unavailable;
    let remarks: Vec<_> = remarks
        .iter()
        .filter(|u| u.section == "tasks.core_cookie")
        .collect();
    let [remark] = remarks[..] else {
        panic!("{remarks:?}");
    };
    assert_eq!(remark.code, UnavailableCode::NotApplicable);
    assert!(report.tasks.len() > 20);
    assert!(report.anomalies.is_empty());
}

#[test]
fn a_member_that_cannot_be_read_names_its_object() {
    let entry = entry(STALL).unwrap();
    let kernel = entry.kernel().unwrap();
    let sound = report(&kernel);
    let starved = &sound.starved[0];
    let task = kernel
        .object("struct task_struct", Kva(starved.kva.0))
        .unwrap();
    let slice = task.member("scx.slice").unwrap().address();
    let report = report(&entry.patched(&[], &[slice..slice.add(8)]).unwrap());
    // The task is in a queue and in the list of tasks; the anomaly is one.
    let [anomaly] = &report.anomalies[..] else {
        panic!("{:?}", report.anomalies);
    };
    assert_eq!(anomaly.section, "tasks.scx.slice");
    assert_eq!(anomaly.address, Some(starved.kva));
    assert!(anomaly.what.contains("was not captured"), "{anomaly:?}");
    for (before, after) in sound.tasks.iter().zip(&report.tasks) {
        let lost = before.kva == starved.kva;
        assert_eq!(after.slice_ns, before.slice_ns.filter(|_| !lost));
    }
    assert_eq!(report.starved, sound.starved);
}

/// The bytes of a name in the kernel's BTF, one of them changed, so that no type has it.
fn without(kernel: &Kernel, name: &str) -> (Kva, [u8; 1]) {
    let whole = format!("\0{name}\0").into_bytes();
    let blob = kernel.btf.blob();
    let at = blob.windows(whole.len()).position(|w| w == whole).unwrap();
    let start = kernel.symbol("__start_BTF").unwrap();
    (start.add(u64::try_from(at + 1).unwrap()), *b"~")
}

#[test]
fn a_number_among_flags_has_its_own_name() {
    // 7.1 put the reason of a re-enqueue into bits 12 to 14 of the flags; 3 is PREEMPTED.
    let entry = entry("error-7.3").unwrap();
    let kernel = entry.kernel().unwrap();
    let sound = report(&kernel);
    let task = sound.tasks.iter().find(|t| t.pid == 1).unwrap();
    let flags = task.scx_flags.clone().unwrap();
    let object = kernel
        .object("struct task_struct", Kva(task.kva.0))
        .unwrap();
    let at = object.member("scx.flags").unwrap().address();
    let named = |reason: u32| {
        let plain = u32::try_from(flags.raw.0).unwrap() & !0x7000;
        let bytes = (plain | reason << 12).to_le_bytes();
        let report = report(&entry.patched(&[(at, &bytes)], &[]).unwrap());
        let task = report.tasks.into_iter().find(|t| t.pid == 1).unwrap();
        let names = task.scx_flags.unwrap().names.into_iter();
        names
            .filter(|n| n.starts_with("REENQ_"))
            .collect::<Vec<_>>()
    };
    assert_eq!(named(0), [""; 0]);
    assert_eq!(named(1), ["REENQ_KFUNC"]);
    assert_eq!(named(3), ["REENQ_PREEMPTED"]);
    assert_eq!(named(7), [""; 0]);
}

#[test]
fn hz_does_not_need_sched_ext() {
    let entry = entry(STALL).unwrap();
    let kernel = entry.kernel().unwrap();
    assert_eq!(kernel.hz(), Ok((250, "SCX_WATCHDOG_MAX_TIMEOUT")));
    let (at, byte) = without(&kernel, "SCX_WATCHDOG_MAX_TIMEOUT");
    let kernel = entry.patched(&[(at, &byte)], &[]).unwrap();
    assert_eq!(kernel.hz(), Ok((250, "clocksource_jiffies")));
    let report = report(&kernel);
    let told = report.provenance.iter().find(|p| p.what == "hz").unwrap();
    assert_eq!(told.source, "clocksource_jiffies");
}

#[test]
fn a_scheduler_of_a_struct_ops_map_must_be_alive() {
    let entry = entry(STALL).unwrap();
    let kernel = entry.kernel().unwrap();
    let root = kernel.symbol("scx_root").unwrap();
    let sched = kernel.read_ptr(root).unwrap();
    let object = kernel.object("struct scx_sched", sched).unwrap();
    let at = |path| object.member(path).unwrap().address();
    // As after an ejection: only the map leads to it.
    let ejected = (root, &[0; 8][..]);
    let disabled = kernel.constant("enum scx_enable_state", "SCX_DISABLED");
    let disabled = i32::try_from(disabled.unwrap()).unwrap().to_le_bytes();
    let state = (
        kernel.symbol("scx_enable_state_var").unwrap(),
        &disabled[..],
    );
    let found = report(&entry.patched(&[ejected, state], &[]).unwrap());
    assert!(found.anomalies.is_empty(), "{:?}", found.anomalies);
    let known = found.kernel.unwrap();
    assert_eq!(known.sched_ext_state.as_deref(), Some("disabled"));
    let found = found.scheduler.unwrap();
    assert_eq!(found.sched_kva.map(|at| at.0), Some(sched.0));
    assert_eq!(found.found_via, "struct_ops map");
    assert_eq!(found.enable_state, None);
    for (path, value, words) in [
        ("kobj.kref.refcount.refs", &[0; 4][..], "reference count"),
        ("exit_kind", &[3, 1, 4, 1], "exit kind"),
        ("exit_info", &[0; 8], "is NULL"),
        ("exit_info", &[0x5a; 8], "not mapped"),
        ("ops.name", b"other", "was reused"),
    ] {
        let report = report(&entry.patched(&[ejected, (at(path), value)], &[]).unwrap());
        assert!(report.scheduler.is_none(), "{path}");
        assert!(report.schedulers.is_empty(), "{path}");
        assert!(report.headline[0].contains("could not be read"), "{path}");
        let [anomaly] = &report.anomalies[..] else {
            panic!("{path}: {:?}", report.anomalies);
        };
        assert_eq!(anomaly.section, "scheduler.ejected");
        assert!(anomaly.what.contains(words), "{path}: {anomaly:?}");
    }
}

#[test]
fn who_waits_or_runs_keeps_its_record_when_there_are_too_many() {
    let kernel = entry(STALL).unwrap().kernel().unwrap();
    let all = report(&kernel);
    let mut busy: HashSet<_> = all.starved.iter().map(|t| t.kva).collect();
    for cpu in &all.cpus {
        busy.extend(cpu.runnable.iter().map(|t| t.kva));
        busy.extend(cpu.curr.iter().map(|t| t.kva));
    }
    let limits = Limits {
        tasks: busy.len() + 3,
        ..Limits::default()
    };
    let few = *analysis::analyze(
        &kernel,
        &Options {
            limits,
            ..Options::default()
        },
    )
    .postmortem
    .unwrap();
    assert_eq!(few.tasks.len(), busy.len() + 3);
    let kept: HashSet<_> = few.tasks.iter().map(|t| t.kva).collect();
    assert!(kept.is_superset(&busy));
    let in_order = all.tasks.iter().filter(|t| kept.contains(&t.kva));
    assert!(in_order.eq(&few.tasks));
    assert!(all.tasks.len() > busy.len() + 3);
    assert!(few.limits.iter().any(|l| l.what == "task_enrichments"));
}

#[test]
fn a_damaged_frame_hides_no_vmcoreinfo_but_its_own() {
    const FRAME: u64 = 64 << 10;
    let entry = entry(STALL).unwrap();
    let kernel = entry.kernel().unwrap();
    let note = kernel.symbol("vmcoreinfo_note").unwrap();
    let note = kernel
        .translate(kernel.read_ptr(note).unwrap())
        .unwrap()
        .0
        .0;
    let open = |lost| {
        let mut image = Image::open(&entry.capture()).unwrap();
        image.vmcoreinfo = None;
        Patched::apply(&mut image, Vec::new(), vec![lost]);
        Kernel::find(image, &Overrides::default())
    };
    let frame = note / FRAME * FRAME;
    // The other frames of the same chunk.
    let chunk = frame / (1 << 20) * (1 << 20);
    let neighbour = (chunk..).step_by(1 << 16).find(|&at| at != frame).unwrap();
    let found = open(neighbour..neighbour + FRAME).unwrap();
    assert_eq!(found.vmcoreinfo, kernel.vmcoreinfo);
    assert_eq!(found.provenance[0].source, "memory");
    assert!(open(frame..frame + FRAME).is_err());
}

#[test]
fn registers_without_a_page_table_root_are_remarked() {
    let entry = entry(STALL).unwrap();
    let report = |change: fn(&mut VcpuRegs)| {
        let mut image = Image::open(&entry.capture()).unwrap();
        image.vcpus.iter_mut().flatten().for_each(change);
        image.vcpus.push(None);
        let kernel = Kernel::find(image, &Overrides::default()).unwrap();
        let remarks = report(&kernel).unavailable.into_iter();
        let remarks = remarks.filter(|u| u.section == analysis::VCPU_REGS);
        remarks.map(|u| u.reason).collect::<Vec<_>>()
    };
    assert_eq!(report(|_| {}), ["the file has no registers of vCPU 2"]);
    let [_, without] = &report(|regs| regs.cr3 = None)[..] else {
        panic!("no remark");
    };
    assert!(without.ends_with("of vCPU 0-1"), "{without}");
}

/// 64 KiB of the same byte.
struct Filled(u8);

impl MemorySource for Filled {
    fn read(&self, _: u64, buf: &mut [u8]) -> std::io::Result<()> {
        buf.fill(self.0);
        Ok(())
    }
}

#[test]
fn an_early_image_is_not_passed_over_in_silence() {
    let spec = CaptureSpec {
        memory: vec![Extent::new(0, 1 << 16)],
        early: Some(EarlySpec {
            source: &Filled(1),
            manifest: Manifest::default(),
            notes: Vec::new(),
        }),
        ..CaptureSpec::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dual");
    let mut file = std::fs::File::create(&path).unwrap();
    write_capture(&mut file, &spec, &Filled(2), &WriteOptions::default()).unwrap();
    let image = Image::open(&path).unwrap();
    assert!(image.early);
    assert!(image.warnings.is_empty(), "{:?}", image.warnings);

    let mut image = Image::open(&entry(STALL).unwrap().capture()).unwrap();
    assert!(!image.early);
    image.early = true;
    let kernel = Kernel::find(image, &Overrides::default()).unwrap();
    let remarks = report(&kernel).unavailable;
    let remark = remarks.iter().find(|u| u.section == "early").unwrap();
    assert_eq!(remark.code, UnavailableCode::NotRead);
}

#[test]
fn memory_that_was_not_captured_is_told_once_for_each_reason() {
    let lacks = |gpa, reason: &str| MemoryRegion {
        gpa,
        bytes: 4096,
        kind: MemoryKind::NotCaptured,
        reason: Some(reason.into()),
    };
    let free = (1..=500).map(|i| lacks(i << 20, "free"));
    let spec = CaptureSpec {
        memory: vec![Extent::new(0, 1 << 16)],
        manifest: Manifest {
            memory: free.chain([lacks(1 << 40, "device")]).collect(),
            ..Manifest::default()
        },
        ..CaptureSpec::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    let mut file = std::fs::File::create(&path).unwrap();
    write_capture(&mut file, &spec, &Filled(1), &WriteOptions::default()).unwrap();
    assert_eq!(
        Image::open(&path).unwrap().warnings,
        [
            "2048000 bytes at PA 0x100000 and in 499 more ranges were not captured: free",
            "4096 bytes at PA 0x10000000000 were not captured: device",
        ]
    );
}

/// An ELF file with these sections: name, type, linked section, size of an entry, content.
fn elf(sections: &[(&str, u32, u32, u64, Vec<u8>)]) -> Vec<u8> {
    let mut names = vec![0];
    let mut data = Vec::new();
    let mut headers = vec![0; 64];
    let mut header = |name: &str, kind: u32, link: u32, entry: u64, content: &[u8]| {
        let offset = 64 + u64::try_from(data.len()).unwrap();
        let size = u64::try_from(content.len()).unwrap();
        headers.extend(u32::try_from(names.len()).unwrap().to_le_bytes());
        headers.extend(kind.to_le_bytes());
        for word in [0, 0, offset, size] {
            headers.extend(u64::to_le_bytes(word));
        }
        headers.extend(link.to_le_bytes());
        headers.extend(0u32.to_le_bytes());
        headers.extend(8u64.to_le_bytes());
        headers.extend(entry.to_le_bytes());
        names.extend(name.bytes().chain([0]));
        data.extend(content);
        names.clone()
    };
    for (name, kind, link, entry, content) in sections {
        header(name, *kind, *link, *entry, content);
    }
    // The names with room for their own section's.
    let mut all = header(".shstrtab", 3, 0, 0, &[]);
    let at = headers.len() - 64;
    let size = u64::try_from(all.len()).unwrap().to_le_bytes();
    headers[at + 32..at + 40].copy_from_slice(&size);
    let count = u16::try_from(sections.len() + 2).unwrap();
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend([0; 16]);
    file.extend((64 + u64::try_from(data.len() + all.len()).unwrap()).to_le_bytes());
    file.extend([0; 4]);
    for half in [64, 0, 0, 64, count, count - 1] {
        file.extend(u16::to_le_bytes(half));
    }
    file.append(&mut data);
    file.append(&mut all);
    file.append(&mut headers);
    file
}

#[test]
fn files_stand_in_for_lost_symbols_and_types() {
    let entry = entry(STALL).unwrap();
    let kernel = entry.kernel().unwrap();
    let sound = report(&kernel);
    let slide = kernel.kaslr_offset().unwrap();
    let table = kernel.kallsyms().unwrap();
    let (mut map, mut symtab, mut strtab) = (String::new(), vec![0; 24], vec![0]);
    for i in 0..table.len() {
        let (at, name) = (table.address(i).unwrap().0, table.name(i).unwrap());
        let at = if at < 0xffff_ffff_8000_0000 {
            at
        } else {
            at - slide
        };
        map += &format!("{at:016x} T {name}\n");
        symtab.extend(u32::try_from(strtab.len()).unwrap().to_le_bytes());
        symtab.extend([0x12, 0, 1, 0]);
        symtab.extend(at.to_le_bytes());
        symtab.extend([0; 8]);
        strtab.extend(name.bytes().chain([0]));
    }
    let dir = tempfile::tempdir().unwrap();
    let (system_map, vmlinux) = (dir.path().join("System.map"), dir.path().join("vmlinux"));
    std::fs::write(&system_map, map).unwrap();
    let file = elf(&[
        (".symtab", 2, 2, 24, symtab),
        (".strtab", 3, 0, 0, strtab),
        (".BTF", 1, 0, 0, kernel.btf.blob().to_vec()),
    ]);
    std::fs::write(&vmlinux, file).unwrap();

    let physical = |at| kernel.translate(at).unwrap().0.0;
    let tokens = physical(kernel.vmcoreinfo.symbol("kallsyms_token_table").unwrap());
    let types = physical(kernel.symbol("__start_BTF").unwrap());
    let find = |lost: &[u64], overrides: &Overrides| {
        let mut image = Image::open(&entry.capture()).unwrap();
        let lost = lost.iter().map(|&at| at..at + 8).collect();
        Patched::apply(&mut image, Vec::new(), lost);
        Kernel::find(image, overrides)
    };
    let with_map = Overrides {
        system_map: Some(system_map),
        ..Overrides::default()
    };
    let with_vmlinux = Overrides {
        vmlinux: Some(vmlinux),
        ..Overrides::default()
    };
    let error = find(&[tokens], &Overrides::default()).unwrap_err();
    assert!(
        error.contains("--vmlinux FILE or --system-map FILE"),
        "{error}"
    );
    let error = find(&[types], &Overrides::default()).unwrap_err();
    assert!(error.contains("--btf FILE"), "{error}");
    for (lost, overrides, symbols_of, types_of) in [
        (&[tokens][..], &with_map, "--system-map", "memory"),
        (&[tokens], &with_vmlinux, "--vmlinux", "memory"),
        (&[types], &with_vmlinux, "kallsyms in memory", "--vmlinux"),
        (&[tokens, types], &with_vmlinux, "--vmlinux", "--vmlinux"),
    ] {
        let report = report(&find(lost, overrides).unwrap());
        let told = |what| {
            let mut all = report.provenance.iter();
            all.find(|p| p.what == what).map(|p| p.source.as_str())
        };
        assert_eq!(
            (told("symbols"), told("types")),
            (Some(symbols_of), Some(types_of))
        );
        assert_eq!(report.headline, sound.headline);
        assert_eq!(report.tasks, sound.tasks);
        assert_eq!(report.cpus, sound.cpus);
        assert_eq!(report.dsqs, sound.dsqs);
        assert_eq!(report.unavailable, sound.unavailable);
        assert!(report.anomalies.is_empty());
    }
}

#[test]
fn a_forged_list_ends_and_keeps_what_came_before() {
    let entry = entry(STALL).unwrap();
    let kernel = entry.kernel().unwrap();
    let sound = report(&kernel);
    let queue = sound.dsqs.iter().find(|d| d.id.0 == 0xdead5).unwrap();
    let second = Kva(queue.tasks[1].task_kva.0);
    let task = kernel.object("struct task_struct", second).unwrap();
    let node = task.member("scx.dsq_list.node").unwrap().address();
    for (next, words) in [
        (node, "comes back"),
        (Kva(0x10), "0x10"),
        (Kva::NULL, "NULL"),
    ] {
        let report = report(
            &entry
                .patched(&[(node, &next.0.to_le_bytes())], &[])
                .unwrap(),
        );
        let found = report.dsqs.iter().find(|d| d.id == queue.id).unwrap();
        assert!(found.truncated, "{words}");
        assert_eq!(found.tasks, queue.tasks[..2], "{words}");
        let said = |a: &Anomaly| a.section == "user dsq 0xdead5" && a.what.contains(words);
        assert!(report.anomalies.iter().any(said), "{:?}", report.anomalies);
    }
}

/// Makes one type in `rate` its own target, element or anonymous member.
fn turn_on_themselves(blob: &mut [u8], rate: usize) -> Option<()> {
    let word = |blob: &[u8], at| Some(u32::from_le_bytes(*blob.get(at..)?.first_chunk()?));
    let mut at = 24;
    let end = 24 + usize::try_from(word(blob, 12)?).ok()?;
    let mut id = 1u32;
    while at < end {
        let info = word(blob, at + 4)?;
        let vlen = usize::try_from(info & 0xffff).ok()?;
        let (size, own) = match info >> 24 & 0x1f {
            // int, variable, declaration tag
            1 | 14 | 17 => (4, None),
            3 => (12, Some(12)),
            4 | 5 => (12 * vlen, (vlen > 0).then_some(16)),
            15 | 19 => (12 * vlen, None),
            6 | 13 => (8 * vlen, None),
            2 | 8..=11 | 18 => (0, Some(8)),
            _ => (0, None),
        };
        if let Some(own) = own.filter(|_| (at / 4).is_multiple_of(rate)) {
            blob.get_mut(at + own..)?
                .first_chunk_mut()
                .map(|w| *w = id.to_le_bytes())?;
            if own == 16 {
                *blob.get_mut(at + 12..)?.first_chunk_mut()? = [0; 4];
            }
        }
        at += 12 + size;
        id += 1;
    }
    Some(())
}

#[test]
fn types_that_contain_themselves_are_read_in_bounded_time() {
    let blob = entry(STALL).unwrap().kernel().unwrap().btf.blob().to_vec();
    let start = Instant::now();
    for rate in [1, 2, 7, 100] {
        let mut forged = blob.clone();
        turn_on_themselves(&mut forged, rate).unwrap();
        assert_ne!(forged, blob);
        let btf = Btf::parse(forged).unwrap();
        let mut read = 0;
        for name in ["task_struct", "rq", "scx_sched", "sched_ext_ops", "bpf_map"] {
            let ty = btf.find(&format!("struct {name}")).unwrap();
            let mut sizes = vec![btf.size_of(ty)];
            for member in btf.members(ty) {
                sizes.push(btf.size_of(member.ty));
                read += btf.describe(member.ty).len();
                let _ = (btf.integer(member.ty), btf.pointee(member.ty));
            }
            read += sizes.into_iter().flatten().count();
            btf.field(ty, "no_such_member_anywhere").unwrap_err();
        }
        assert!(read > 1000, "{read}");
    }
    assert!(start.elapsed() < Duration::from_secs(60));
}
