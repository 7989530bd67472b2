//! Variables and map entries of two reports.

use std::cell::Cell;
use std::collections::HashMap;

use scx_postmortem_format::report::{
    EarlyLateDiff, EntriesChange, EntryChange, FailureDumpMap, FailureDumpReport, Hex, KernelInfo,
    MapInfo, PostmortemReport, RenderedValue, StorageOwner, ValueChange, VariableChange,
};

use super::firsts;

/// Variables that are listed.
const MAX_VARIABLES: usize = 200;
/// Changes within one variable or entry that are listed.
const MAX_CHANGES: usize = 8;
/// Maps with changed entries that are listed.
const MAX_MAPS: usize = 100;
/// Changed entries of one map that are listed.
const MAX_ENTRIES: usize = 20;
/// Characters of a value or key that are shown.
const MAX_CHARS: usize = 80;
/// Values within each other that are looked into.
const MAX_DEPTH: usize = 64;

/// Where a boot has put the kernel and its memory: an address less the start of its region is the
/// same in each boot. The default is of a boot that is compared with itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Space {
    /// Start of each region and its length; the last one may be less.
    regions: [Option<(u64, u64)>; 4],
}

/// Where the kernel's text is linked to, and how long its window is with the modules'.
const TEXT: (u64, u64) = (0xffff_ffff_8000_0000, 0x7f00_0000);
/// The longest direct map, vmalloc area and memory map that there are, those of five levels of
/// page tables. Where the next region begins earlier, that one counts.
const LONGEST: u64 = 1 << 55;

impl Space {
    pub(super) fn of(kernel: &KernelInfo) -> Self {
        let text = kernel
            .kaslr_offset
            .map(|slide| (TEXT.0.wrapping_add(slide.0), TEXT.1 - slide.0.min(TEXT.1)));
        let mut starts: Vec<(usize, u64)> = [
            (1, kernel.page_offset_base),
            (2, kernel.vmalloc_base),
            (3, kernel.vmemmap_base),
        ]
        .into_iter()
        .filter_map(|(which, at)| Some((which, at?.0)))
        .collect();
        starts.sort_unstable_by_key(|&(_, at)| at);
        let mut regions = [text, None, None, None];
        for (i, &(which, start)) in starts.iter().enumerate() {
            let next = starts.get(i + 1).map_or(TEXT.0, |&(_, at)| at);
            let len = next.saturating_sub(start).min(LONGEST);
            if let Some(place) = regions.get_mut(which) {
                *place = Some((start, len));
            }
        }
        Self { regions }
    }

    /// An address by its region; anything else as it is.
    fn normal(&self, value: u64) -> (usize, u64) {
        for (which, region) in (1..).zip(self.regions) {
            if let Some((start, len)) = region
                && let Some(offset) = value.checked_sub(start)
                && offset < len
            {
                return (which, offset);
            }
        }
        (0, value)
    }
}

/// Adds what changed in the maps of two reports.
pub(super) fn compare(
    reports: [&FailureDumpReport; 2],
    owns: [&PostmortemReport; 2],
    spaces: [Space; 2],
    diff: &mut EarlyLateDiff,
) {
    let [early, late] = reports;
    let values = Values {
        spaces,
        elapsed_ns: diff.elapsed_ns,
        pointers: Cell::new(0),
    };
    let infos = owns.map(|own| firsts(&own.maps, |info| info.kva.0));
    let mut before = paired(early, diff.other_boot);
    let mut variables = 0usize;
    let mut more_maps = 0usize;
    let mut nth: HashMap<&str, usize> = HashMap::new();
    for map in &late.maps {
        let key = key_of(map, &mut nth, diff.other_boot);
        let Some(was) = before.remove(&key) else {
            continue;
        };
        if let (Some(RenderedValue::Struct { .. }), Some(RenderedValue::Struct { .. })) =
            (&was.value, &map.value)
        {
            let changed = values.variables(was, map);
            variables += changed.len();
            let room = MAX_VARIABLES.saturating_sub(diff.variables.len());
            diff.variables.extend(changed.into_iter().take(room));
            continue;
        }
        if was.error.is_some() || map.error.is_some() {
            let why = was.error.as_ref().or(map.error.as_ref());
            diff.not_compared.push(format!(
                "the entries of map {}: not all of them are known: {}",
                map.name,
                why.map_or("", String::as_str)
            ));
            continue;
        }
        let sides = [Side::new(was, &infos[0]), Side::new(map, &infos[1])];
        if let Some(changes) = values.entries(map, &sides) {
            if diff.entries.len() < MAX_MAPS {
                diff.entries.push(changes);
            } else {
                more_maps += 1;
            }
        }
    }
    if variables > MAX_VARIABLES {
        diff.not_compared.push(format!(
            "{} more variables that changed are not listed",
            variables - MAX_VARIABLES
        ));
    }
    if values.pointers.get() > 0 {
        diff.not_compared.push(format!(
            "{} pointers to what each boot has allocated for itself",
            values.pointers.get()
        ));
    }
    if more_maps > 0 {
        diff.not_compared.push(format!(
            "{more_maps} more maps with changed entries are not listed"
        ));
    }
}

/// What makes a map the same one: within a boot its address, else its name and which of those that
/// have it.
type Key = (u64, String, usize);

fn key_of<'m>(map: &'m FailureDumpMap, nth: &mut HashMap<&'m str, usize>, other_boot: bool) -> Key {
    if !other_boot && map.map_kva != 0 {
        return (map.map_kva, map.name.clone(), 0);
    }
    let nth = nth.entry(map.name.as_str()).or_default();
    *nth += 1;
    (0, map.name.clone(), *nth)
}

fn paired(report: &FailureDumpReport, other_boot: bool) -> HashMap<Key, &FailureDumpMap> {
    let mut nth = HashMap::new();
    let maps = report.maps.iter();
    maps.map(|map| (key_of(map, &mut nth, other_boot), map))
        .collect()
}

/// A value of an entry: one, or one for each CPU.
#[derive(Clone, Copy)]
enum Content<'r> {
    One(Option<&'r RenderedValue>, &'r str),
    Slots(&'r [Option<RenderedValue>]),
}

/// The entries of one map by key, and how each key is shown.
struct Side<'r> {
    order: Vec<(String, String, Content<'r>)>,
}

impl<'r> Side<'r> {
    fn new(map: &'r FailureDumpMap, infos: &HashMap<u64, &'r MapInfo>) -> Self {
        let info = infos.get(&map.map_kva);
        let owners = info.map(|info| info.owners.as_slice());
        let owners = owners.filter(|owners| owners.len() == map.entries.len());
        let owners = owners.unwrap_or_default();
        let mut order = Vec::new();
        for entry in &map.array_entries {
            let key = entry.key.to_string();
            let content = Content::One(entry.value.as_ref(), "");
            order.push((key.clone(), key, content));
        }
        for (i, entry) in map.entries.iter().enumerate() {
            let content = Content::One(entry.value.as_ref(), &entry.value_hex);
            let owner = owners.get(i).and_then(owner_key);
            let (key, shown) =
                owner.unwrap_or_else(|| (entry.key_hex.clone(), shown(&entry.key, &entry.key_hex)));
            order.push((key, shown, content));
        }
        for entry in &map.percpu_entries {
            let key = entry.key.to_string();
            order.push((key.clone(), key, Content::Slots(&entry.per_cpu)));
        }
        for entry in &map.percpu_hash_entries {
            let shown = shown(&entry.key, &entry.key_hex);
            order.push((entry.key_hex.clone(), shown, Content::Slots(&entry.per_cpu)));
        }
        // A map of one value that is no struct.
        if let Some(value) = &map.value {
            order.push((
                String::new(),
                "value".to_owned(),
                Content::One(Some(value), ""),
            ));
        }
        Self { order }
    }
}

/// To whom an element of local storage belongs; addresses say nothing.
fn owner_key(owner: &StorageOwner) -> Option<(String, String)> {
    let id = owner.id?;
    let name = owner.name.as_deref().unwrap_or_default();
    let key = format!("{} {id} {name}", owner.kind);
    Some((key, format!("{name}[{id}]")))
}

fn shown(key: &Option<RenderedValue>, hex: &str) -> String {
    match key {
        Some(key) => short(key),
        None => format!("hex:{hex}"),
    }
}

fn short(value: &RenderedValue) -> String {
    let text = value.to_string();
    let mut words = text.split_whitespace();
    let first = words.next().unwrap_or_default().to_owned();
    let line = words.fold(first, |line, word| {
        if line.len() > MAX_CHARS * 4 {
            line
        } else {
            line + " " + word
        }
    });
    if line.chars().count() <= MAX_CHARS {
        return line;
    }
    let mut cut: String = line.chars().take(MAX_CHARS - 1).collect();
    cut.push('…');
    cut
}

struct Values {
    spaces: [Space; 2],
    elapsed_ns: Option<u64>,
    /// Pointers that could not be compared.
    pointers: Cell<usize>,
}

impl Values {
    fn variables(&self, was: &FailureDumpMap, map: &FailureDumpMap) -> Vec<VariableChange> {
        let members = |map: &'_ FailureDumpMap| match &map.value {
            Some(RenderedValue::Struct { members, .. }) => members.clone(),
            _ => Vec::new(),
        };
        let before = members(was);
        let before: HashMap<&str, &RenderedValue> = before
            .iter()
            .map(|member| (member.name.as_str(), &member.value))
            .collect();
        let mut found = Vec::new();
        for member in members(map) {
            let Some(was) = before.get(member.name.as_str()) else {
                continue;
            };
            let mut changes = Changes::default();
            self.value(was, &member.value, "", 0, &mut changes);
            if !changes.list.is_empty() {
                found.push(VariableChange {
                    map: map.name.clone(),
                    name: member.name.clone(),
                    changes: changes.list,
                    truncated: changes.truncated,
                });
            }
        }
        found
    }

    fn entries(&self, map: &FailureDumpMap, [was, now]: &[Side<'_>; 2]) -> Option<EntriesChange> {
        let mut before: HashMap<&str, &(String, String, Content<'_>)> =
            was.order.iter().map(|entry| (&*entry.0, entry)).collect();
        let mut all = EntriesChange {
            map: map.name.clone(),
            map_kva: (map.map_kva != 0).then_some(Hex(map.map_kva)),
            ..EntriesChange::default()
        };
        for (key, shown, content) in &now.order {
            let mut changes = Changes::default();
            let what = match before.remove(&**key) {
                Some((_, _, was)) => {
                    self.content(was, content, &mut changes);
                    if changes.list.is_empty() {
                        continue;
                    }
                    all.changed += 1;
                    "changed"
                }
                None => {
                    all.come += 1;
                    changes.list.push(ValueChange {
                        late: Some(whole(content)),
                        ..ValueChange::default()
                    });
                    "come"
                }
            };
            all.push(shown, what, changes);
        }
        for (key, shown, content) in &was.order {
            if before.contains_key(&**key) {
                all.gone += 1;
                let mut changes = Changes::default();
                changes.list.push(ValueChange {
                    early: Some(whole(content)),
                    ..ValueChange::default()
                });
                all.push(shown, "gone", changes);
            }
        }
        (all.come + all.gone + all.changed > 0).then_some(all)
    }

    fn content(&self, was: &Content<'_>, now: &Content<'_>, changes: &mut Changes) {
        match (was, now) {
            (Content::One(Some(was), _), Content::One(Some(now), _)) => {
                self.value(was, now, "", 0, changes);
            }
            (Content::One(None, was), Content::One(None, now)) if was == now => {}
            (Content::Slots(was), Content::Slots(now)) => {
                for cpu in 0..was.len().max(now.len()) {
                    let path = format!("cpu {cpu}");
                    let was = was.get(cpu).and_then(Option::as_ref);
                    let now = now.get(cpu).and_then(Option::as_ref);
                    match (was, now) {
                        (Some(was), Some(now)) => self.value(was, now, &path, 0, changes),
                        (None, None) => {}
                        (was, now) => {
                            changes.push(&path, was.map(short), now.map(short), None, None)
                        }
                    }
                }
            }
            (was, now) => changes.push("", Some(whole(was)), Some(whole(now)), None, None),
        }
    }

    /// Notes each part that differs.
    fn value(
        &self,
        was: &RenderedValue,
        now: &RenderedValue,
        path: &str,
        depth: usize,
        changes: &mut Changes,
    ) {
        use RenderedValue as V;
        if changes.truncated {
            return;
        }
        let deep = depth < MAX_DEPTH;
        match (was, now) {
            (V::Struct { members: a, .. }, V::Struct { members: b, .. })
                if deep && a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.name == b.name) =>
            {
                for (a, b) in a.iter().zip(b) {
                    let path = match (path, b.name.as_str()) {
                        (path, "") => path.to_owned(),
                        ("", name) => name.to_owned(),
                        (path, name) => format!("{path}.{name}"),
                    };
                    self.value(&a.value, &b.value, &path, depth + 1, changes);
                }
            }
            (V::Array { elements: a, .. }, V::Array { elements: b, .. })
                if deep
                    && a.len() == b.len()
                    && !a.iter().chain(b).any(|e| matches!(e, V::Char { .. })) =>
            {
                for (i, (a, b)) in a.iter().zip(b).enumerate() {
                    self.value(a, b, &format!("{path}[{i}]"), depth + 1, changes);
                }
            }
            (
                V::Ptr {
                    value: a,
                    deref: Some(to_a),
                    ..
                },
                V::Ptr {
                    value: b,
                    deref: Some(to_b),
                    ..
                },
            ) if deep && self.same(*a, *b) => {
                let path = format!("*{path}");
                self.value(to_a, to_b, &path, depth + 1, changes);
            }
            (V::Ptr { value: a, .. }, V::Ptr { value: b, .. }) if self.same(*a, *b) => {}
            (
                V::Ptr {
                    symbol: Some(a), ..
                },
                V::Ptr {
                    symbol: Some(b), ..
                },
            ) if a == b => {}
            // Where a boot's allocators put an object says nothing about another boot's.
            (
                V::Ptr {
                    value: a,
                    deref: None,
                    ..
                },
                V::Ptr {
                    value: b,
                    deref: None,
                    ..
                },
            ) if self.both_allocated(*a, *b) => self.pointers.set(self.pointers.get() + 1),
            (V::Uint { bits: 64, value: a }, V::Uint { bits: 64, value: b })
                if self.same(*a, *b) => {}
            (was, now) if was == now => {}
            (was, now) => {
                let integer = |value: &V| match value {
                    V::Int { value, .. } => Some(i128::from(*value)),
                    V::Uint { value, .. } => Some(i128::from(*value)),
                    _ => None,
                };
                let delta = integer(was)
                    .zip(integer(now))
                    .and_then(|(was, now)| i64::try_from(now - was).ok());
                let rate = delta.zip(self.elapsed_ns.filter(|&ns| ns > 0));
                let rate = rate.and_then(|(delta, ns)| {
                    let rate = i128::from(delta) * 1_000_000_000_000 / i128::from(ns);
                    i64::try_from(rate).ok()
                });
                changes.push(path, Some(short(was)), Some(short(now)), delta, rate);
            }
        }
    }

    /// Whether two addresses of two boots are of objects that both have allocated.
    fn both_allocated(&self, was: u64, now: u64) -> bool {
        let [early, late] = &self.spaces;
        let (was, now) = (early.normal(was).0, late.normal(now).0);
        // 2 to 4: direct map, vmalloc area, memory map.
        early != late && was >= 2 && was == now
    }

    /// Whether two numbers are equal, or addresses of the same place.
    fn same(&self, was: u64, now: u64) -> bool {
        let [early, late] = &self.spaces;
        was == now && early == late || early.normal(was) == late.normal(now)
    }
}

fn whole(content: &Content<'_>) -> String {
    match content {
        Content::One(Some(value), _) => short(value),
        Content::One(None, hex) => hex.chars().take(MAX_CHARS).collect(),
        Content::Slots(slots) => {
            let there = slots.iter().flatten().map(short);
            let all: Vec<String> = there.take(4).collect();
            all.join(" | ")
        }
    }
}

#[derive(Default)]
struct Changes {
    list: Vec<ValueChange>,
    truncated: bool,
}

impl Changes {
    fn push(
        &mut self,
        path: &str,
        early: Option<String>,
        late: Option<String>,
        delta: Option<i64>,
        per_1000_s: Option<i64>,
    ) {
        if self.list.len() >= MAX_CHANGES {
            self.truncated = true;
            return;
        }
        self.list.push(ValueChange {
            path: path.to_owned(),
            early,
            late,
            delta,
            per_1000_s,
        });
    }
}

trait Push {
    fn push(&mut self, key: &str, what: &'static str, changes: Changes);
}

impl Push for EntriesChange {
    fn push(&mut self, key: &str, what: &'static str, changes: Changes) {
        if self.entries.len() < MAX_ENTRIES {
            self.entries.push(EntryChange {
                key: key.to_owned(),
                what: what.to_owned(),
                changes: changes.list,
                truncated: changes.truncated,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(slide: u64, direct: u64, vmalloc: u64) -> Space {
        Space::of(&KernelInfo {
            kaslr_offset: Some(Hex(slide)),
            page_offset_base: Some(Hex(direct)),
            vmalloc_base: Some(Hex(vmalloc)),
            ..KernelInfo::default()
        })
    }

    #[test]
    fn addresses_that_differ_by_the_boot_alone_are_the_same() {
        let values = Values {
            spaces: [
                space(0x1000_0000, 0xffff_8880_0000_0000, 0xffff_c900_0000_0000),
                space(0x2a00_0000, 0xffff_9b40_0000_0000, 0xffff_a8c0_0000_0000),
            ],
            elapsed_ns: None,
            pointers: Cell::new(0),
        };
        // Text, direct map, vmalloc.
        assert!(values.same(0xffff_ffff_9012_3456, 0xffff_ffff_aa12_3456));
        assert!(values.same(0xffff_8880_0123_4000, 0xffff_9b40_0123_4000));
        assert!(values.same(0xffff_c900_0000_8000, 0xffff_a8c0_0000_8000));
        // Other places, other regions, and plain numbers.
        assert!(!values.same(0xffff_8880_0123_4000, 0xffff_9b40_0123_5000));
        assert!(!values.same(0xffff_8880_0000_8000, 0xffff_a8c0_0000_8000));
        assert!(values.same(7, 7));
        assert!(!values.same(7, 8));
        assert!(values.same(u64::MAX, u64::MAX));
    }
}
