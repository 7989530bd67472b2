//! Every BPF map type in one capture, against what the guest's kernel said of the same maps.
//!
//! `corpus/maps-7.3` is a guest with a map of every type; `docs/maps.md` lists them. Just before
//! the core was taken the guest saved the bytes of all that has keys (`truth/raw/ID`), and what
//! no look-up shows was noted when it was put there (`truth/zoo`). No map changed in between.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use scx_postmortem_format::report::{
    FailureDumpMap, FailureDumpReport, MapInfo, MapTarget, RenderedValue, StorageOwner, reasons,
};
use scx_postmortem_tests::entry;

/// Lines of `docs/maps.md` that this capture has in other words: the maps of global sections.
const SECTIONS: &str = "ARRAY, global sections";

/// The capture's report and the guest's truth.
struct Guest {
    report: FailureDumpReport,
    truth: PathBuf,
}

/// A map as the guest saved it: keys and values, in the kernel's order.
struct Raw {
    name: String,
    map_type: u32,
    rows: Vec<(String, Vec<String>)>,
}

impl Guest {
    fn read() -> Self {
        let entry = entry("maps-7.3").unwrap();
        Self {
            report: entry.report().unwrap(),
            truth: entry.dir.join("truth"),
        }
    }

    fn infos(&self) -> &[MapInfo] {
        &self.report.postmortem.as_ref().unwrap().maps
    }

    /// The record of the shared format for a map of ours.
    fn shared(&self, info: &MapInfo) -> &FailureDumpMap {
        let mut found = self.report.maps.iter().filter(|m| m.map_kva == info.kva.0);
        let shared = found.next();
        assert!(found.next().is_none(), "two records of {}", info.name);
        shared.unwrap_or_else(|| panic!("`maps` has no {}", info.name))
    }

    /// Both records of the map with that name.
    fn map(&self, name: &str) -> (&MapInfo, &FailureDumpMap) {
        let mut found = self.infos().iter().filter(|m| m.name == name);
        let info = found.next().unwrap_or_else(|| panic!("no map {name}"));
        assert!(found.next().is_none(), "two maps {name}");
        (info, self.shared(info))
    }

    fn text(&self, file: &str) -> String {
        let path = self.truth.join(file);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// What follows `NAME ` in the lines of a file that begin so.
    fn lines(&self, file: &str, start: &str) -> Vec<String> {
        let text = self.text(file);
        let found: Vec<String> = text
            .lines()
            .filter_map(|line| Some(line.strip_prefix(start)?.to_owned()))
            .collect();
        assert!(!found.is_empty(), "{file} has no line `{start}…`");
        found
    }

    /// `# id 3 name task_map type 29 …`, then rows of hexadecimal bytes: key and values.
    fn raw(&self, id: u32) -> Raw {
        let text = self.text(&format!("raw/{id}"));
        let mut lines = text.lines();
        let head: Vec<&str> = lines.next().unwrap().split(' ').collect();
        assert_eq!(head[2], id.to_string());
        let rows = lines.map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            (words.next().unwrap(), words.collect())
        });
        Raw {
            name: head[4].to_owned(),
            map_type: head[6].parse().unwrap(),
            rows: rows.collect(),
        }
    }

    /// The rows that a look-up answered, by key.
    fn rows(&self, info: &MapInfo) -> BTreeMap<String, Vec<String>> {
        let raw = self.raw(info.id);
        let rows: BTreeMap<_, _> = raw
            .rows
            .into_iter()
            .filter(|(_, values)| values.first().is_some_and(|v| v != "error:"))
            .collect();
        assert!(!rows.is_empty(), "the guest saved nothing of {}", info.name);
        rows
    }
}

/// `01 02 ff` as `0102ff`.
fn plain(hex: &str) -> String {
    hex.replace(' ', "")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn u32_hex(number: u32) -> String {
    hex(&number.to_le_bytes())
}

/// The bytes of a value's leaves, one after the other.
fn leaves(value: &RenderedValue) -> String {
    let integer = |bits: u32, bytes: [u8; 8]| hex(&bytes[..bits as usize / 8]);
    match value {
        RenderedValue::Int { bits, value } => integer(*bits, value.to_le_bytes()),
        RenderedValue::Uint { bits, value } => integer(*bits, value.to_le_bytes()),
        RenderedValue::Float { bits: 64, value } => hex(&value.to_le_bytes()),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "it was an f32 in the guest"
        )]
        RenderedValue::Float { value, .. } => hex(&(*value as f32).to_le_bytes()),
        RenderedValue::Ptr { value, .. } => hex(&value.to_le_bytes()),
        RenderedValue::Array { elements, .. } => elements.iter().map(leaves).collect(),
        RenderedValue::Struct { members, .. } => members.iter().map(|m| leaves(&m.value)).collect(),
        RenderedValue::Bytes { hex } => plain(hex),
        other => panic!("no leaf: {other:?}"),
    }
}

/// A value that has no padding but at its end.
#[track_caller]
fn same(ours: &RenderedValue, theirs: &str, what: &str) {
    let ours = leaves(ours);
    assert!(
        theirs.starts_with(&ours) && theirs.len() - ours.len() < 16,
        "{what}: {ours} here, {theirs} in the guest"
    );
}

fn member<'v>(value: &'v RenderedValue, name: &str) -> &'v RenderedValue {
    let RenderedValue::Struct { members, .. } = value else {
        panic!("no structure: {value:?}");
    };
    let found = members.iter().find(|m| m.name == name);
    &found.unwrap_or_else(|| panic!("no {name}")).value
}

/// The names in back quotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The rows of the table in `docs/maps.md`: their cells.
fn documented() -> Vec<Vec<String>> {
    let text = include_str!("../docs/maps.md");
    let rows: Vec<Vec<String>> = text
        .lines()
        .filter(|l| l.starts_with("| ") && !l.starts_with("| map type"))
        .map(|l| l.trim_matches('|').split('|').map(|c| c.trim().to_owned()))
        .map(Iterator::collect)
        .collect();
    assert!(rows.len() > 30, "{} rows", rows.len());
    rows
}

#[test]
fn every_map_type_of_this_kernel_is_in_the_capture() {
    let guest = Guest::read();
    let types: BTreeSet<u32> = guest.infos().iter().map(|m| m.map_type).collect();
    // enum bpf_map_type, BPF_MAP_TYPE_HASH to BPF_MAP_TYPE_RHASH.
    assert_eq!(types, (1..=35).collect());
    assert_eq!(guest.report.maps.len(), guest.infos().len());
    let saved = std::fs::read_dir(guest.truth.join("raw")).unwrap().count();
    assert_eq!(saved, guest.infos().len(), "maps that the guest listed");
    for info in guest.infos() {
        let raw = guest.raw(info.id);
        assert_eq!(raw.name, info.name);
        assert_eq!(raw.map_type, info.map_type, "{}", info.name);
    }
}

#[test]
fn each_map_is_shown_where_the_documentation_says() {
    let guest = Guest::read();
    let mut seen = BTreeSet::new();
    for row in documented() {
        let [types, maps, .., shown] = row.as_slice() else {
            panic!("{row:?}")
        };
        let types: Vec<String> = types
            .split([',', ' '])
            .map(str::to_ascii_lowercase)
            .collect();
        let mut names = quoted(maps);
        if row[0] == SECTIONS {
            names = quoted(&row[2]);
            names.retain(|n| n.starts_with('.'));
        }
        let members = quoted(shown);
        assert!(
            !members.is_empty(),
            "{}: nothing under `rendered as`",
            row[0]
        );
        for name in names {
            let sections = row[0] == SECTIONS;
            let matches = |m: &&MapInfo| match name.strip_suffix('*') {
                Some(start) => m.name.starts_with(start),
                // The loader puts the object's name before these three.
                None if sections && [".bss", ".data", ".rodata"].contains(&name) => {
                    m.name == format!("zoo{name}")
                }
                None => name.starts_with(&m.name) && m.name.len() >= name.len().min(15),
            };
            let found: Vec<&MapInfo> = guest
                .infos()
                .iter()
                .filter(|m| types.contains(m.type_name.as_ref().unwrap()))
                .filter(matches)
                .collect();
            assert!(!found.is_empty(), "{}: no map {name}", row[0]);
            for info in found {
                let shared = serde_json::to_value(guest.shared(info)).unwrap();
                let own = serde_json::to_value(info).unwrap();
                for member in &members {
                    let there = shared.get(member).or(own.get(member));
                    assert!(there.is_some(), "{}: no {member}", info.name);
                }
                seen.insert(info.id);
            }
        }
    }
    for info in guest.infos() {
        let shared = guest.shared(info);
        assert_eq!(shared.error, info.error, "{}", info.name);
        match info.name.as_str() {
            "bloom" => assert_eq!(info.error.as_deref(), Some(reasons::map::BLOOM_FILTER)),
            // Its type alone is used, for rhash.
            "like_rhash" => assert_eq!((info.entries, &info.error), (Some(0), &None)),
            _ => {
                assert_eq!(info.error, None, "{}", info.name);
                assert!(info.entries.unwrap() > 0, "{} is empty", info.name);
            }
        }
        let listed =
            seen.contains(&info.id) || info.name.starts_with("demo.") || info.name == "like_rhash";
        assert!(listed, "{} is not in docs/maps.md", info.name);
    }
}

#[test]
fn elements_of_hashes_tries_and_cgroup_storages_are_those_of_look_ups() {
    let guest = Guest::read();
    let mut elements = 0;
    for name in [
        "by_pid",
        "recent",
        "hash_pre",
        "hash_dyn",
        "hash_tiny",
        "lru",
        "lru_own",
        "rhash",
        "lpm",
        "inner_hash_a",
        "inner_hash_b",
        "inner_made",
        "cg_store",
        "cg_shared",
    ] {
        let (info, shared) = guest.map(name);
        let ours: BTreeMap<String, Vec<String>> = shared
            .entries
            .iter()
            .map(|e| (plain(&e.key_hex), vec![plain(&e.value_hex)]))
            .collect();
        assert_eq!(ours.len(), shared.entries.len(), "{name}: keys twice");
        assert_eq!(ours, guest.rows(info), "{name}");
        assert_eq!(info.entries, Some(ours.len() as u64), "{name}");
        for entry in &shared.entries {
            assert!(entry.key.is_some() && entry.value.is_some(), "{name}");
        }
        elements += ours.len();
    }
    assert!(elements > 150, "{elements} elements");
    assert_eq!(guest.map("hash_pre").0.entries, Some(40));
    assert_eq!(guest.map("lru").0.entries, Some(58));
}

#[test]
fn slots_of_arrays_have_the_values_of_look_ups() {
    let guest = Guest::read();
    for name in ["mmap_array", "odd_array", "inner_array_a", "inner_array_b"] {
        let (info, shared) = guest.map(name);
        let rows = guest.rows(info);
        assert_eq!(shared.array_entries.len(), rows.len(), "{name}");
        for entry in &shared.array_entries {
            let what = format!("{name}[{}]", entry.key);
            same(
                entry.value.as_ref().unwrap(),
                &rows[&u32_hex(entry.key)][0],
                &what,
            );
        }
    }
    // Floats: bpftool writes none that can be read.
    let (info, shared) = guest.map("float_array");
    let rows = guest.rows(info);
    for entry in &shared.array_entries {
        let value = entry.value.as_ref().unwrap();
        let row = &rows[&u32_hex(entry.key)][0];
        assert_eq!(leaves(member(value, "real")), row[..8]);
        assert_eq!(leaves(member(value, "precise")), row[16..32]);
    }
    // orig_off, xlated_off, jitted_off
    let (info, shared) = guest.map("insn_array");
    let rows = guest.rows(info);
    assert_eq!(shared.array_entries.len(), 3);
    for entry in &shared.array_entries {
        let what = format!("insn_array[{}]", entry.key);
        same(
            entry.value.as_ref().unwrap(),
            &rows[&u32_hex(entry.key)][0],
            &what,
        );
    }
    for name in [
        ".rodata.baz",
        ".data.control",
        ".rodata.tunable",
        ".bss.bar",
        "demo.rodata",
    ] {
        let (info, shared) = guest.map(name);
        same(
            shared.value.as_ref().unwrap(),
            &guest.rows(info)["00000000"][0],
            name,
        );
    }
}

#[test]
fn values_of_each_cpu_are_those_of_look_ups() {
    let guest = Guest::read();
    for name in ["cpu_stats", "pc_array"] {
        let (info, shared) = guest.map(name);
        let rows = guest.rows(info);
        assert_eq!(shared.percpu_entries.len(), rows.len(), "{name}");
        for entry in &shared.percpu_entries {
            let theirs = &rows[&u32_hex(entry.key)];
            assert_eq!(entry.per_cpu.len(), theirs.len(), "{name}");
            for (ours, theirs) in entry.per_cpu.iter().zip(theirs) {
                same(ours.as_ref().unwrap(), theirs, name);
            }
        }
    }
    for name in ["pc_hash", "pc_hash_dyn", "lru_pc_hash", "pc_cg_store"] {
        let (info, shared) = guest.map(name);
        let rows = guest.rows(info);
        assert_eq!(shared.percpu_hash_entries.len(), rows.len(), "{name}");
        for entry in &shared.percpu_hash_entries {
            let theirs = &rows[&plain(&entry.key_hex)];
            assert_eq!(entry.per_cpu.len(), theirs.len(), "{name}");
            for (ours, theirs) in entry.per_cpu.iter().zip(theirs) {
                same(ours.as_ref().unwrap(), theirs, name);
            }
        }
    }
}

#[test]
fn queues_and_stacks_are_in_the_order_in_which_they_pop() {
    let guest = Guest::read();
    for (name, count) in [("queue", 8), ("stack", 4)] {
        let theirs = guest.lines("zoo/queues.txt", &format!("{name}, next to pop first: "));
        let (info, shared) = guest.map(name);
        let ours: Vec<String> = shared
            .array_entries
            .iter()
            .map(|e| leaves(e.value.as_ref().unwrap()))
            .collect();
        assert_eq!(ours, theirs, "{name}");
        assert_eq!(info.entries, Some(count), "{name}");
    }
    let holds = guest.lines("zoo/queues.txt", "bloom holds ").len() as u64;
    let bloom = guest.map("bloom").0.bloom.clone().unwrap();
    assert_eq!(bloom.hash_functions, 4);
    assert!(
        bloom.bits_set > holds && bloom.bits_set <= 4 * holds,
        "{bloom:?}"
    );
}

#[test]
fn ring_buffers_have_the_records_that_were_put_in() {
    let guest = Guest::read();
    for (name, count) in [("ring", 95), ("ring_busy", 5), ("user_ring", 113)] {
        let (info, shared) = guest.map(name);
        let ours: Vec<String> = info
            .records
            .iter()
            .map(|r| {
                let state = r.state.replace("committed", "ready");
                let data = plain(&r.data_hex);
                format!("{} length {} {state} data {data}", r.position, r.len)
            })
            .collect();
        let mut theirs = guest.lines("zoo/rings.txt", &format!("{name} record at "));
        // Nobody has written to the user ring's last record, so mapkit noted no data for it.
        if let Some(last) = theirs.last_mut().filter(|l| l.ends_with("data ")) {
            last.push_str(ours.last().unwrap().rsplit(' ').next().unwrap());
        }
        assert_eq!(ours, theirs, "{name}");
        assert_eq!(ours.len(), count, "{name}");
        let ring = shared.ringbuf.as_ref().unwrap();
        let positions = format!(
            "consumer_pos {} producer_pos {} size {}",
            ring.consumer_pos, ring.producer_pos, ring.capacity
        );
        let noted = guest.lines("zoo/rings.txt", &format!("{name} consumer_pos"));
        assert_eq!([positions], [format!("consumer_pos{}", noted[0])], "{name}");
    }
    // 250 records of 16 bytes went through room for 170: the last 170 are there.
    let (info, shared) = guest.map("ring_over");
    let numbers: Vec<String> = (80..250u64)
        .map(|n| hex(&n.to_le_bytes()) + &hex(&0xbe0u64.to_le_bytes()))
        .collect();
    let ours: Vec<String> = info.records.iter().map(|r| plain(&r.data_hex)).collect();
    assert_eq!(ours, numbers);
    let ring = shared.ringbuf.as_ref().unwrap();
    let noted = guest.lines("zoo/rings.txt", "ring_over consumer_pos 0 ");
    let positions = format!(
        "producer_pos {} pending_pos {} overwrite_pos {} size {}",
        ring.producer_pos, ring.pending_pos, info.records[0].position, ring.capacity
    );
    assert_eq!(noted, [positions]);
}

#[test]
fn stacks_have_the_guests_addresses_and_names() {
    let guest = Guest::read();
    let mut theirs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = String::new();
    for line in guest.text("zoo/stacks.txt").lines() {
        match line.strip_prefix("  ") {
            Some(frame) => theirs.get_mut(&current).unwrap().push(frame.to_owned()),
            None => {
                current = line.to_owned();
                theirs.insert(current.clone(), Vec::new());
            }
        }
    }
    let mut ours = BTreeMap::new();
    let mut sources = 0;
    for stack in &guest.map("stacks").0.stacks {
        let frames = stack.frames.iter().map(|f| {
            sources += usize::from(f.source.is_some());
            let name = f.symbol.as_ref().map(|symbol| {
                // The guest's kallsyms has no sizes, and `[bpf]` behind the names of programs.
                let (place, _) = symbol.rsplit_once('/').unwrap();
                let (name, offset) = place.rsplit_once('+').unwrap();
                let module = if name.starts_with("bpf_prog_") {
                    " [bpf]"
                } else {
                    ""
                };
                format!(" {name}{module}+{offset}")
            });
            format!("{:#x}{}", f.addr.0, name.unwrap_or_default())
        });
        ours.insert(format!("stacks[{}]", stack.bucket_id), frames.collect());
    }
    for stack in &guest.map("stacks_build").0.stacks {
        let frames = stack.user_frames.iter().map(|f| match f.split_once('+') {
            Some((build_id, offset)) => format!("1 {build_id} {offset}"),
            None => format!("2 {} {f}", "0".repeat(40)),
        });
        ours.insert(
            format!("stacks_build[{}]", stack.bucket_id),
            frames.collect(),
        );
    }
    assert_eq!(ours, theirs);
    assert!(sources >= 2, "{sources} frames with their line of source");
}

/// Owner and value, by what `key` makes of an owner.
fn storage<'g>(
    guest: &'g Guest,
    name: &str,
    key: impl Fn(&StorageOwner) -> String,
) -> BTreeMap<String, &'g str> {
    let (info, shared) = guest.map(name);
    assert_eq!(info.owners.len(), shared.entries.len(), "{name}");
    let mut found = BTreeMap::new();
    for (owner, entry) in info.owners.iter().zip(&shared.entries) {
        assert_eq!(plain(&entry.key_hex), hex(&owner.kva.0.to_le_bytes()));
        assert_eq!(owner.error, None, "{name}");
        found.insert(key(owner), entry.value_hex.as_str());
    }
    found
}

#[test]
fn storages_belong_to_whom_they_were_given() {
    let guest = Guest::read();
    let number = |o: &StorageOwner| o.id.unwrap_or_default();
    let name = |o: &StorageOwner| o.name.clone().unwrap_or_default();
    let spaced = |map: BTreeMap<String, &str>| -> BTreeSet<String> {
        map.into_iter()
            .map(|(k, v)| format!("{k} value {}", plain(v)))
            .collect()
    };

    let ours = storage(&guest, "task_store", |o| {
        format!("{} comm {}", number(o), name(o))
    });
    let theirs = guest.lines("zoo/owners.txt", "task_store pid ");
    assert_eq!(spaced(ours), theirs.into_iter().collect());

    let ours = storage(&guest, "cgrp_store", |o| number(o).to_string());
    let theirs = guest.lines("zoo/owners.txt", "cgrp_store inode ");
    assert_eq!(spaced(ours), theirs.into_iter().collect());
    let paths = storage(&guest, "cgrp_store", |o| {
        format!("{} inode {}", name(o), number(o))
    });
    let theirs = guest.lines("zoo/owners.txt", "cgroup ");
    assert_eq!(
        paths.into_keys().collect::<BTreeSet<_>>(),
        theirs.into_iter().collect()
    );

    let ours = storage(&guest, "inode_store", |o| {
        let file = name(o).replace("tmpfs ", "tmpfs /tmp/");
        format!("{file} inode {}", number(o))
    });
    let theirs = guest.lines("zoo/owners.txt", "inode_store ");
    assert_eq!(spaced(ours), theirs.into_iter().collect());

    // Sockets by their ports; mapkit listens at 4242 and its client comes from 4343.
    let ours = storage(&guest, "sk_store", name);
    let theirs = guest.lines("zoo/owners.txt", "sk_store tcp ");
    for (role, place) in [
        ("listener", "AF_INET local port 4242 remote port 0 state 10"),
        ("client", "AF_INET local port 4343 remote port 4242 state 1"),
        ("server", "AF_INET local port 4242 remote port 4343 state 1"),
    ] {
        let line = theirs.iter().find(|l| l.starts_with(role)).unwrap();
        assert!(
            line.ends_with(&format!(" value {}", plain(ours[place]))),
            "{line}"
        );
    }
    assert_eq!(ours.len(), 3);

    // A look-up shows the pointer as zero; mapkit noted what is behind it.
    let (info, shared) = guest.map("uptr_store");
    let value = shared.entries[0].value.as_ref().unwrap();
    let RenderedValue::Ptr {
        deref: Some(page), ..
    } = member(value, "shared")
    else {
        panic!("{value:?}");
    };
    let noted = guest.lines("zoo/owners.txt", "uptr_store pointed-to ");
    same(page, &noted[0], "uptr_store");
    assert_eq!(info.owners[0].name.as_deref(), Some("mapkit"));

    // The scheduler's tasks: id and three pointers; the kptr behind them reads as zero.
    let ours = storage(&guest, "task_map", |o| number(o).to_string());
    let theirs = guest.rows(guest.map("task_map").0);
    let mut equal = 0;
    for (tid, values) in &theirs {
        let pid = tid.strip_prefix("tid:").unwrap();
        // The commands that saved the truth were tasks, too.
        if let Some(value) = ours.get(pid) {
            assert_eq!(plain(value)[..64], values[0][..64], "task_map of {pid}");
            equal += 1;
        }
    }
    assert!(
        equal > 50 && theirs.len() - equal < 10,
        "{equal} of {}",
        theirs.len()
    );
}

#[test]
fn slots_hold_what_was_put_in() {
    let guest = Guest::read();
    let mut seen = BTreeSet::new();
    for line in guest.text("zoo/slots.txt").lines() {
        let (slot, what) = line.split_once(" = ").unwrap();
        let (name, key) = slot.strip_suffix(']').unwrap().split_once('[').unwrap();
        let number: u64 = key.parse().unwrap();
        let (info, shared) = guest.map(name);
        let keys = [
            number.to_string(),
            hex(&number.to_le_bytes()[..info.key_size.unwrap() as usize]),
        ];
        let matching = |t: &&MapTarget| keys.contains(&plain(&t.key));
        let target = info.targets.iter().find(matching);
        let target = target.unwrap_or_else(|| panic!("nothing in {slot}"));
        let id = target.id.unwrap_or_default();
        let text = target.name.as_deref().unwrap_or_default();
        let ours = match target.kind.as_str() {
            "prog" => format!("program {text}"),
            "cgroup" => format!("cgroup {text}"),
            "net_device" => format!("device {text}, ifindex {id}"),
            "cpu" => format!("cpu {id}, {text}"),
            "sock" => format!("cookie {id}"),
            "xsk" => "AF_XDP socket".to_owned(),
            // PERF_TYPE_SOFTWARE, PERF_COUNT_SW_BPF_OUTPUT
            "perf_event" => text.replace("type 1 config 0xa", "software event BPF_OUTPUT of"),
            other => panic!("{slot}: {other}"),
        };
        // The rest: a device's or CPU's program, an inode.
        assert!(
            what.contains(&ours),
            "{slot}: {ours} here, {what} in the guest"
        );
        assert_eq!(target.error, None, "{slot}");
        let array = shared.fd_array.as_ref().unwrap();
        assert_eq!(array.populated as usize, info.targets.len(), "{name}");
        seen.insert((name.to_owned(), number));
    }
    let targets: usize = guest
        .infos()
        .iter()
        .filter(|m| !m.name.ends_with("_of_maps"))
        .map(|m| m.targets.len())
        .sum();
    assert_eq!(seen.len(), targets, "a slot that nobody filled");

    for name in ["array_of_maps", "hash_of_maps"] {
        let (info, _) = guest.map(name);
        let ours: BTreeMap<String, Vec<String>> = info
            .targets
            .iter()
            .map(|t| {
                let key = match t.key.parse() {
                    Ok(slot) if name == "array_of_maps" => u32_hex(slot),
                    _ => plain(&t.key),
                };
                let inner = u32::try_from(t.id.unwrap()).unwrap();
                assert_eq!(t.name, Some(guest.raw(inner).name), "{name}");
                (key, vec![u32_hex(inner)])
            })
            .collect();
        assert_eq!(ours, guest.rows(info), "{name}");
    }
}

#[test]
fn maps_take_the_memory_that_bpftool_showed() {
    let guest = Guest::read();
    let list: Vec<serde_json::Value> = serde_json::from_str(&guest.text("map_show.json")).unwrap();
    let theirs: BTreeMap<u64, Option<u64>> = list
        .iter()
        .map(|m| (m["id"].as_u64().unwrap(), m["bytes_memlock"].as_u64()))
        .collect();
    let ours: BTreeMap<u64, Option<u64>> = guest
        .infos()
        .iter()
        .map(|m| (u64::from(m.id), m.memory_bytes))
        .collect();
    assert_eq!(ours, theirs);
}

#[test]
fn the_sparse_arena_has_the_guests_pages() {
    let guest = Guest::read();
    let (info, shared) = guest.map("zoo_arena");
    let path = guest.truth.join(format!("arena_pages_{}.bin", info.id));
    let theirs = std::fs::read(path).unwrap();
    // bpf/zoo.bpf.c: where it is mapped.
    const BASE: u64 = 0x2000_0000_0000;
    let pages: Vec<(u64, &[u8])> = theirs
        .chunks(8 + 4096)
        .map(|page| {
            (
                u64::from_le_bytes(page[..8].try_into().unwrap()),
                &page[8..],
            )
        })
        .collect();
    let numbers: Vec<u64> = pages.iter().map(|p| p.0).collect();
    assert_eq!(numbers, [3, 17, 18, 600, 1023]);
    let arena = shared.arena.as_ref().unwrap();
    assert_eq!(arena.pages.len(), pages.len());
    for (ours, (number, bytes)) in arena.pages.iter().zip(pages) {
        assert_eq!(ours.user_addr, BASE + number * 4096);
        assert!(ours.bytes == bytes, "page {number} differs");
    }
}

#[test]
fn the_schedulers_struct_ops_map_names_its_programs() {
    let guest = Guest::read();
    let (info, shared) = guest.map("maps_ops");
    assert_eq!(info.struct_ops_state.as_deref(), Some("READY"));
    let callbacks: Vec<(&str, &str)> = info
        .callbacks
        .iter()
        .map(|c| (c.member.as_str(), c.prog.name.as_str()))
        .collect();
    // bpf/maps.bpf.c, in the order of struct sched_ext_ops.
    assert_eq!(
        callbacks,
        [
            ("enqueue", "maps_enqueue"),
            ("dispatch", "maps_dispatch"),
            ("running", "maps_running"),
            ("stopping", "maps_stopping"),
            ("init_task", "maps_init_task"),
            ("exit_task", "maps_exit_task"),
            ("init", "maps_init"),
        ]
    );
    let name = leaves(member(shared.value.as_ref().unwrap(), "name"));
    assert!(name.starts_with(&hex(b"demo_maps\0")), "{name}");
}

#[test]
fn task_contexts_of_a_real_scheduler_have_their_owners() {
    let entry = entry("p2dq-7.3").unwrap();
    let report = entry.report().unwrap();
    let own = report.postmortem.as_ref().unwrap();
    let name = "scx_task_allocator";
    let info = own.allocators.iter().find(|a| a.name == name).unwrap();
    let mut slots = report.sdt_allocations.iter();
    let slots = slots.find(|a| a.allocator_name == name).unwrap();
    assert!(info.owners.len() > 50, "{} owners", info.owners.len());
    assert_eq!(info.owners.len(), slots.entries.len());
    let by_slot: BTreeMap<i64, u64> = info
        .owners
        .iter()
        .map(|o| (i64::from(o.idx), o.owner.id.unwrap()))
        .collect();
    // struct task_p2dq: whose context it is, by the scheduler's own word.
    for slot in &slots.entries {
        let RenderedValue::Int { value: pid, .. } = member(&slot.payload, "pid") else {
            panic!("{slot:?}");
        };
        assert_eq!(by_slot[&i64::from(slot.idx)], u64::try_from(*pid).unwrap());
    }
    // And what a look-up gave: the slot's number, the task's address, the context's.
    let map = own.maps.iter().find(|m| m.name == "scx_task_map").unwrap();
    let shared = report.maps.iter().find(|m| m.map_kva == map.kva.0).unwrap();
    let path = entry.dir.join(format!("truth/taskmap_{}.txt", map.id));
    let text = std::fs::read_to_string(path).unwrap();
    let theirs: BTreeMap<u64, &str> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(pid, value)| (pid.parse().unwrap(), value))
        .collect();
    let mut equal = 0;
    for (owner, element) in map.owners.iter().zip(&shared.entries) {
        if let Some(theirs) = theirs.get(&owner.id.unwrap()) {
            assert_eq!(plain(&element.value_hex), *theirs, "{owner:?}");
            equal += 1;
        }
    }
    assert!(equal > 50, "{equal} of {}", theirs.len());
}
