//! Loads the probe program (`bpf/probe.bpf.c`) into the guest's kernel.
//!
//! aya relocates, loads and attaches it, with the types that the kernel itself has. The maps of
//! its variables are made here before: readers of failure dumps look for a map named
//! `probe_bp.bss` with types, and aya names such maps after their section and gives them none.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use aya::programs::{BtfTracePoint, FEntry};
use aya::{Btf, EbpfLoader};
use aya_obj::Object;
use aya_obj::btf::{BtfFeatures, BtfKind};
use scx_postmortem_bpf::PROBE;

use super::bpf;

/// Where the maps are pinned: aya takes a map that it finds under its pin.
const PINS: &str = "/sys/fs/bpf/scxpm-probe";
/// Sections with variables, and the maps that hold them.
const SECTIONS: [(&str, &str, u32); 2] = [
    (".bss", "probe_bp.bss", bpf::F_MMAPABLE),
    (
        ".rodata",
        "probe_bp.rodata",
        bpf::F_MMAPABLE | bpf::F_RDONLY_PROG,
    ),
];
/// What the kernel raises right behind the store of an exit kind, newest name first.
const IRQ_WORK: [&str; 2] = ["scx_disable_irq_workfn", "scx_error_irq_workfn"];
/// Kernel variables that BTF does not have, and the program's that take their addresses. Which of
/// the schedulers' exist is a matter of the kernel's version.
const VARIABLES: [(&str, &str); 4] = [
    ("__per_cpu_offset", "probe_at_per_cpu_offset"),
    ("scx_bypass_depth", "probe_at_bypass_depth"),
    ("scx_aborting", "probe_at_aborting"),
    ("scx_watchdog_timeout", "probe_at_watchdog_timeout"),
];

/// Loads the probe and attaches it for as long as the guest lives. Returns what it is attached to.
pub(super) fn load() -> Result<String, String> {
    // On the heap: where a program's constants are need not be aligned.
    let elf = PROBE.elf.to_vec();
    let kernel = Btf::from_sys_fs().map_err(|e| format!("/sys/kernel/btf/vmlinux: {e}"))?;
    make_maps(&elf)?;
    let addresses = addresses()?;
    let cpus = possible_cpus()?;
    let mut loader = EbpfLoader::new();
    loader.btf(Some(&kernel));
    for (section, ..) in SECTIONS {
        loader.map_pin_path(section, pin_of(section));
    }
    loader.override_global("probe_nr_cpus", &cpus, true);
    for (symbol, variable) in VARIABLES {
        if let Some(address) = addresses.get(symbol) {
            loader.override_global(variable, address, true);
        }
    }
    let mut program = loader.load(&elf).map_err(|e| sentence(&e))?;

    let mut attached = Vec::new();
    let has = |name: &&&str| kernel.id_by_type_name_kind(name, BtfKind::Func).is_ok();
    let irq_work = IRQ_WORK.iter().find(has).ok_or_else(|| {
        format!(
            "this kernel has none of the functions {}; without one an error exit is not seen",
            IRQ_WORK.join(", ")
        )
    })?;
    let mut enter = |program_name: &str, function: &str| -> Result<(), String> {
        let program = program.program_mut(program_name);
        let program = program.ok_or_else(|| format!("the probe has no {program_name}"))?;
        let program: &mut FEntry = program.try_into().map_err(|e| sentence(&e))?;
        let done = program.load(function, &kernel);
        done.and_then(|()| program.attach())
            .map_err(|e| format!("{function}: {}", sentence(&e)))?;
        attached.push(function.to_owned());
        Ok(())
    };
    enter("probe_irq_work", irq_work)?;
    enter("probe_disable", "scx_disable_workfn")?;
    let mut without = Vec::new();
    for (name, event) in [
        ("probe_contention", "contention_begin"),
        ("probe_pi", "sched_pi_setprio"),
    ] {
        let mut attach = || -> Result<(), String> {
            let program = program.program_mut(name);
            let program = program.ok_or_else(|| format!("the probe has no {name}"))?;
            let program: &mut BtfTracePoint = program.try_into().map_err(|e| sentence(&e))?;
            let done = program.load(event, &kernel);
            done.and_then(|()| program.attach())
                .map_err(|e| sentence(&e))?;
            Ok(())
        };
        // Only a counter is lost.
        match attach() {
            Ok(()) => attached.push(event.to_owned()),
            Err(why) => without.push(format!("{event} ({why})")),
        }
    }
    // Links end with their owner, and this process never does.
    std::mem::forget(program);
    let mut said = attached.join(" ");
    if !without.is_empty() {
        said.push_str(&format!("; without {}", without.join(", ")));
    }
    Ok(said)
}

/// The kernel refuses names with a dot there.
fn pin_of(section: &str) -> PathBuf {
    Path::new(PINS).join(section.trim_start_matches('.'))
}

/// An error and its causes, in one line.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        // Some repeat what is below them.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Makes the maps of the variables, typed, and pins them.
fn make_maps(elf: &[u8]) -> Result<(), String> {
    let mut object = Object::parse(elf).map_err(|e| sentence(&e))?;
    // Kernels that have sched_ext as we know it have all of BTF's kinds.
    let all = BtfFeatures::new(true, true, true, true, true, true, true, true);
    let types = object
        .fixup_and_sanitize_btf(&all)
        .map_err(|e| sentence(&e))?
        .ok_or("the probe's object has no BTF")?
        .clone();
    let loaded = bpf::load_btf(&types.to_bytes()).map_err(|e| format!("the probe's BTF: {e}"))?;
    fs::create_dir_all(PINS).map_err(|e| format!("{PINS}: {e}"))?;
    for (section, name, flags) in SECTIONS {
        let cannot = |e: &dyn std::fmt::Display| format!("the map {name}: {e}");
        let map = object.maps.get(section);
        let map = map.ok_or_else(|| cannot(&format!("the object has no section {section}")))?;
        let ty = types
            .id_by_type_name_kind(section, BtfKind::DataSec)
            .map_err(|e| cannot(&e))?;
        let made = bpf::create_array(name, map.value_size(), flags, &loaded, ty);
        made.and_then(|map| bpf::pin(&map, &pin_of(section)))
            .map_err(|e| cannot(&e))?;
    }
    Ok(())
}

/// Where the kernel's variables are.
fn addresses() -> Result<HashMap<String, u64>, String> {
    let path = "/proc/kallsyms";
    let file = fs::File::open(path).map_err(|e| format!("{path}: {e}"))?;
    let mut found = HashMap::new();
    for line in BufReader::with_capacity(1 << 16, file).lines() {
        let line = line.map_err(|e| format!("{path}: {e}"))?;
        let mut fields = line.split_ascii_whitespace();
        let (address, _, name) = (fields.next(), fields.next(), fields.next());
        let Some(name) = name.filter(|name| VARIABLES.iter().any(|(v, _)| v == name)) else {
            continue;
        };
        let address = address.and_then(|a| u64::from_str_radix(a, 16).ok());
        // Zeros are what it shows to those who may not know.
        if let Some(address) = address.filter(|&address| address != 0) {
            found.entry(name.to_owned()).or_insert(address);
        }
    }
    Ok(found)
}

/// One more than the highest CPU that there can be.
fn possible_cpus() -> Result<u32, String> {
    let path = "/sys/devices/system/cpu/possible";
    let text = fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    let last = text.trim().rsplit(['-', ',']).next();
    let last: Option<u32> = last.and_then(|cpu| cpu.parse().ok());
    last.map(|cpu| cpu.saturating_add(1))
        .ok_or_else(|| format!("{path}: {text:?}; expected a list of CPUs"))
}
