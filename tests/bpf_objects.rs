//! BPF programs, links and the active scheduler: against the sources that they were built from,
//! and on guests whose memory was changed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::Path;

use scx_postmortem_analyze::addr::{Gpa, Kva};
use scx_postmortem_analyze::analysis::{self, Options};
use scx_postmortem_analyze::error::Error;
use scx_postmortem_analyze::kernel::{Kernel, Overrides};
use scx_postmortem_analyze::object::Object;
use scx_postmortem_analyze::source::{Image, PhysicalMemory, Region};
use scx_postmortem_format::report::{FailureDumpReport, PostmortemReport, ProgramInfo};
use scx_postmortem_tests::{Entry, corpus};

/// Memory with some bytes changed.
struct Patched {
    inner: Box<dyn PhysicalMemory>,
    patches: Vec<(u64, Vec<u8>)>,
}

impl PhysicalMemory for Patched {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Error> {
        self.inner.read(gpa, buf)?;
        for (at, bytes) in &self.patches {
            for (at, byte) in (*at..).zip(bytes) {
                if let Some(index) = at.checked_sub(gpa.0)
                    && let Some(target) = buf.get_mut(usize::try_from(index).unwrap())
                {
                    *target = *byte;
                }
            }
        }
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        self.inner.regions()
    }
}

/// A change: where, and which bytes.
type Patch = (Kva, Vec<u8>);

/// The report of a guest with these changes in its memory.
fn changed(entry: &Entry, patches: &[Patch]) -> FailureDumpReport {
    let kernel = entry.kernel().unwrap();
    let patches = patches
        .iter()
        .map(|(at, bytes)| (kernel.translate(*at).unwrap().0.0, bytes.clone()))
        .collect();
    let mut image = Image::open(&entry.capture()).unwrap();
    let inner = std::mem::replace(&mut image.memory, Box::new(Nothing));
    image.memory = Box::new(Patched { inner, patches });
    let kernel = Kernel::find(image, &Overrides::default()).unwrap();
    analysis::analyze(&kernel, &Options::default())
}

struct Nothing;

impl PhysicalMemory for Nothing {
    fn read(&self, gpa: Gpa, _: &mut [u8]) -> Result<(), Error> {
        Err(Error::Hole(gpa))
    }
    fn regions(&self) -> &[Region] {
        &[]
    }
}

/// A guest to change, its kernel and its unchanged report.
struct Guest {
    entry: Entry,
    kernel: Kernel,
    own: PostmortemReport,
}

impl Guest {
    fn new(name: &str) -> Self {
        let mut all = corpus().unwrap().into_iter();
        let entry = all.find(|entry| entry.name == name).unwrap();
        let kernel = entry.kernel().unwrap();
        let own = *entry.report().unwrap().postmortem.unwrap();
        Self { entry, kernel, own }
    }

    fn program(&self, index: usize) -> Object<'_> {
        let kva = Kva(self.own.programs[index].kva.0);
        self.kernel.object("struct bpf_prog", kva).unwrap()
    }

    fn aux(&self, index: usize) -> Object<'_> {
        let aux = self.program(index).member("aux").unwrap();
        aux.deref().unwrap()
    }

    /// The report after a change, without what says so in the whole report.
    fn with(&self, patches: &[Patch]) -> PostmortemReport {
        *changed(&self.entry, patches).postmortem.unwrap()
    }

    /// After these changes everything but program `index` is as it was.
    fn spoils_only(&self, index: usize, patches: &[Patch]) -> ProgramInfo {
        let changed = self.with(patches);
        assert_eq!(changed.programs.len(), self.own.programs.len());
        for (i, (now, before)) in changed.programs.iter().zip(&self.own.programs).enumerate() {
            if i != index {
                assert_eq!(now, before);
            }
        }
        assert_eq!(changed.links, self.own.links);
        assert_eq!(changed.schedulers.len(), self.own.schedulers.len());
        changed.programs[index].clone()
    }
}

fn at(object: &Object<'_>, member: &'static str) -> Kva {
    object.member(member).unwrap().address()
}

fn u32_at(object: &Object<'_>, member: &'static str, value: u32) -> Patch {
    (at(object, member), value.to_le_bytes().to_vec())
}

fn u64_at(object: &Object<'_>, member: &'static str, value: u64) -> Patch {
    (at(object, member), value.to_le_bytes().to_vec())
}

const STALL: &str = "stall-6.18";

#[test]
fn lines_are_those_of_the_source_files() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bpf");
    let mut lines = 0;
    for entry in corpus().unwrap() {
        let own = *entry.report().unwrap().postmortem.unwrap();
        for program in &own.programs {
            let Some(source) = &program.source else {
                continue;
            };
            let file = source.file.rsplit('/').next().unwrap();
            let Ok(text) = std::fs::read_to_string(sources.join(file)) else {
                continue;
            };
            let index = usize::try_from(source.line).unwrap() - 1;
            let line = text.lines().nth(index).unwrap();
            assert_eq!(source.text.as_deref(), Some(line.trim()), "{file}");
            lines += 1;
        }
        // The exit's stack goes through the program that raised the error.
        let Some(exit) = own.exit_info.filter(|exit| exit.kind == 1025) else {
            continue;
        };
        let frame = exit.backtrace.iter().find_map(|f| f.source.clone());
        let (file, line) = frame.as_deref().unwrap().split_once(':').unwrap();
        let text = std::fs::read_to_string(sources.join(file)).unwrap();
        let line = text.lines().nth(line.parse::<usize>().unwrap() - 1);
        assert!(line.unwrap().contains("SCX_ERROR("), "{line:?}");
    }
    assert!(lines >= 15, "{lines} programs with a line of source");
}

#[test]
fn a_program_with_a_bad_pointer_spoils_only_itself() {
    let guest = Guest::new(STALL);
    let elsewhere = u64_at(&guest.program(1), "aux", 0xdead_beef_dead_beef);
    let found = guest.spoils_only(1, &[elsewhere]);
    let error = found.error.unwrap();
    assert!(error.contains("0xdeadbeef"), "{error}");
    assert_eq!(found.prog_type, "struct_ops");

    // Another program's aux is readable, and still not this one's.
    let other = guest.aux(0).address().0;
    let found = guest.spoils_only(1, &[u64_at(&guest.program(1), "aux", other)]);
    assert!(found.error.unwrap().contains("it must be of this program"));
}

#[test]
fn counts_that_cannot_be_are_cut_or_refused() {
    let guest = Guest::new(STALL);
    let aux = guest.aux(1);
    let found = guest.spoils_only(1, &[u32_at(&aux, "used_map_cnt", u32::MAX)]);
    assert_eq!(found.error, None);
    assert_eq!(found.kernel_name, "stall_enqueue");

    let found = guest.spoils_only(1, &[u32_at(&aux, "nr_linfo", u32::MAX)]);
    assert_eq!(found.source, None);
    let found = guest.spoils_only(1, &[u32_at(&aux, "func_info_cnt", 0)]);
    assert_eq!(found.name, "stall_enqueue");
    let found = guest.spoils_only(
        1,
        &[
            u32_at(&aux, "real_func_cnt", u32::MAX),
            u64_at(&aux, "func", aux.address().0),
        ],
    );
    assert_eq!(found.error, None);
}

#[test]
fn btf_that_is_garbage_costs_names_and_lines() {
    let guest = Guest::new(STALL);
    let btf = guest.aux(0).member("btf").unwrap().deref().unwrap();
    let data = btf.member("data").unwrap().ptr().unwrap();
    let own = guest.with(&[(data, vec![0xff; 64])]);
    assert_eq!(own.programs.len(), guest.own.programs.len());
    for (now, before) in own.programs.iter().zip(&guest.own.programs) {
        assert_eq!(now.source, None);
        assert_eq!(now.name, before.kernel_name);
        assert_eq!(now.stats, before.stats);
        assert_eq!(now.hook, before.hook);
    }
    let said = own.unavailable.iter().any(|u| u.reason.contains("BTF"));
    assert!(said, "nothing says that the BTF is unusable");
}

#[test]
fn an_unknown_link_is_listed_with_a_reason() {
    let guest = Guest::new(STALL);
    let kva = Kva(guest.own.links[0].kva.0);
    let link = guest.kernel.object("struct bpf_link", kva).unwrap();
    let own = guest.with(&[u32_at(&link, "type", 4711)]);
    assert_eq!(own.links[0].link_type, "4711");
    assert!(own.links[0].error.as_deref().unwrap().contains("4711"));
    assert_eq!(own.programs, guest.own.programs);
}

#[test]
fn the_scheduler_is_found_in_more_than_one_way() {
    let guest = Guest::new(STALL);
    let active = guest.own.active.clone().unwrap();
    assert_eq!(active.found_by, "ops.priv");
    let members: Vec<&str> = active.callbacks.iter().map(|c| c.member.as_str()).collect();
    let expected = ["select_cpu", "enqueue", "dispatch", "init", "exit"];
    assert_eq!(members, expected);

    let map = Kva(active.struct_ops_map.clone().unwrap().kva.0);
    let map = guest
        .kernel
        .object("struct bpf_struct_ops_map", map)
        .unwrap();
    let ops = map.member("kvalue.data").unwrap();
    let ops = ops.cast("struct sched_ext_ops").unwrap();
    // Not registered by this map, by its own word: the callbacks are the same still.
    let no_priv = u64_at(&ops, "priv", 0);
    let own = guest.with(std::slice::from_ref(&no_priv));
    let other = own.active.unwrap();
    assert_eq!(other.found_by, "ops callbacks");
    assert_eq!(other.callbacks, active.callbacks);
    assert_eq!(other.maps, active.maps);

    // A copy with other callbacks: what is left is the shared format's method.
    let report = changed(&guest.entry, &[no_priv, u64_at(&ops, "enqueue", 0)]);
    let own = report.postmortem.unwrap();
    assert_eq!(own.active.unwrap().found_by, "first struct_ops program");
    assert_eq!(report.active_obj_name.as_deref(), Some("demo"));
    assert_eq!(report.active_map_kvas, [active.maps[0].kva.0]);

    // No section map by name: what the kernel says of the scheduler stands, with a remark.
    let mut changes = vec![u64_at(&ops, "priv", 0), u64_at(&ops, "enqueue", 0)];
    for map in &guest.own.maps {
        if let Some(dot) = map.name.rfind('.') {
            let map = guest.kernel.object("struct bpf_map", Kva(map.kva.0));
            let name = map.unwrap().member("name").unwrap().address();
            changes.push((name.add(dot as u64), vec![b'_']));
        }
    }
    let own = guest.with(&changes);
    let left = own.active.unwrap();
    assert_eq!((left.found_by.as_str(), left.struct_ops_map), ("", None));
    assert_eq!(left.ops_name, active.ops_name);
    assert_eq!(left.sched_kva, active.sched_kva);
    let remark = own.anomalies.iter().find(|a| a.section == "active");
    assert_eq!(remark.unwrap().address, active.sched_kva);
}

#[test]
fn counters_that_are_not_counting_are_marked() {
    let guest = Guest::new(STALL);
    let counting = |own: &PostmortemReport| {
        let mut stats = own.programs.iter().filter_map(|p| p.stats.as_ref());
        stats.all(|stats| !stats.not_counting)
    };
    assert!(counting(&guest.own));
    let key = guest.kernel.symbol("bpf_stats_enabled_key").unwrap();
    let own = guest.with(&[(key, vec![0; 4])]);
    assert!(!counting(&own));
    let reason = |u: &&_| {
        let u: &scx_postmortem_format::report::Unavailable = u;
        u.section == "prog_runtime_stats"
    };
    assert!(own.unavailable.iter().find(reason).is_some());
}
