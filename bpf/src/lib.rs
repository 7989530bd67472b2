//! The BPF objects that this project ships, compiled.
//!
//! Sources are `bpf/*.bpf.c` and `bpf/fail/*.bpf.c`; `bpf/build.sh` compiles them, and the guest suite proves that the
//! objects are what their sources give. Users of these bytes need no clang.
#![forbid(unsafe_code)]

/// One compiled BPF object.
#[derive(Debug, Clone, Copy)]
pub struct Object {
    /// Its name: that of the source without `.bpf.c`.
    pub name: &'static str,
    /// The ELF object file.
    pub elf: &'static [u8],
}

/// Schedulers that fail on purpose, and two healthy ones.
pub const DEMOS: [Object; 6] = [
    Object {
        name: "stall",
        elf: include_bytes!("../objects/stall.bpf.o"),
    },
    Object {
        name: "error",
        elf: include_bytes!("../objects/error.bpf.o"),
    },
    Object {
        name: "lost",
        elf: include_bytes!("../objects/lost.bpf.o"),
    },
    Object {
        name: "fault",
        elf: include_bytes!("../objects/fault.bpf.o"),
    },
    Object {
        name: "healthy",
        elf: include_bytes!("../objects/healthy.bpf.o"),
    },
    Object {
        name: "maps",
        elf: include_bytes!("../objects/maps.bpf.o"),
    },
];

/// Schedulers with one fault each, and one without, for the findings.
pub const FAILING: [Object; 13] = [
    Object {
        name: "affinity",
        elf: include_bytes!("../objects/affinity.bpf.o"),
    },
    Object {
        name: "arena",
        elf: include_bytes!("../objects/arena.bpf.o"),
    },
    Object {
        name: "bypass",
        elf: include_bytes!("../objects/bypass.bpf.o"),
    },
    Object {
        name: "fifo",
        elf: include_bytes!("../objects/fifo.bpf.o"),
    },
    Object {
        name: "idle",
        elf: include_bytes!("../objects/idle.bpf.o"),
    },
    Object {
        name: "lock",
        elf: include_bytes!("../objects/lock.bpf.o"),
    },
    Object {
        name: "preempt",
        elf: include_bytes!("../objects/preempt.bpf.o"),
    },
    Object {
        name: "ring",
        elf: include_bytes!("../objects/ring.bpf.o"),
    },
    Object {
        name: "slice",
        elf: include_bytes!("../objects/slice.bpf.o"),
    },
    Object {
        name: "slow",
        elf: include_bytes!("../objects/slow.bpf.o"),
    },
    Object {
        name: "stopped",
        elf: include_bytes!("../objects/stopped.bpf.o"),
    },
    Object {
        name: "stranded",
        elf: include_bytes!("../objects/stranded.bpf.o"),
    },
    Object {
        name: "stuck",
        elf: include_bytes!("../objects/stuck.bpf.o"),
    },
];

/// One map of every type, and the programs that fill what user space cannot.
pub const ZOO: Object = Object {
    name: "zoo",
    elf: include_bytes!("../objects/zoo.bpf.o"),
};

/// Watches a scheduler end, from inside the guest (`bpf/probe.bpf.c`).
pub const PROBE: Object = Object {
    name: "probe",
    elf: include_bytes!("../objects/probe.bpf.o"),
};

#[cfg(test)]
mod tests {
    use super::*;
    use goblin::elf::Elf;
    use goblin::elf::header::EM_BPF;

    fn section<'a>(elf: &Elf<'_>, object: &'a Object, name: &str) -> Option<&'a [u8]> {
        let header = elf
            .section_headers
            .iter()
            .find(|s| elf.shdr_strtab.get_at(s.sh_name) == Some(name))?;
        object.elf.get(header.file_range()?)
    }

    #[test]
    fn each_demo_is_a_gpl_struct_ops_object_with_btf() {
        for object in DEMOS.iter().chain(&FAILING) {
            let elf = Elf::parse(object.elf).unwrap();
            assert_eq!(elf.header.e_machine, EM_BPF, "{}", object.name);
            assert_eq!(
                section(&elf, object, "license"),
                Some(&b"GPL\0"[..]),
                "{}",
                object.name
            );
            assert!(
                section(&elf, object, ".struct_ops.link").is_some(),
                "{}",
                object.name
            );
            let btf = section(&elf, object, ".BTF").unwrap();
            let btf = btf_rs::Btf::from_bytes(btf).unwrap();
            for needed in ["sched_ext_ops", "task_struct"] {
                assert!(
                    !btf.resolve_ids_by_name(needed).unwrap().is_empty(),
                    "{}",
                    object.name
                );
            }
        }
    }

    #[test]
    fn objects_name_no_folder_of_the_machine_that_built_them() {
        for object in DEMOS.iter().chain(&FAILING).chain([&ZOO, &PROBE]) {
            for folder in [&b"/home/"[..], b"/root/", b"/tmp/"] {
                let found = object.elf.windows(folder.len()).any(|w| w == folder);
                assert!(
                    !found,
                    "{}: {}",
                    object.name,
                    String::from_utf8_lossy(folder)
                );
            }
        }
    }
}
