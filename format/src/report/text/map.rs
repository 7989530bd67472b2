//! Maps as text.

use std::fmt;

use super::super::arena::ArenaSnapshot;
use super::super::map::{
    FailureDumpArrayEntry, FailureDumpEntry, FailureDumpFdArray, FailureDumpMap,
    FailureDumpPercpuEntry, FailureDumpPercpuHashEntry, FailureDumpRingbuf, FailureDumpStackTrace,
    map_type_name,
};
use super::super::value::{RenderedMember, RenderedValue};
use super::escape::Escaped;
use super::value::{AtDepth, is_inline_scalar, is_scalar_zero, positions_that_differ};

/// Entries from which on a hash map is shown as a table.
const TABLE_MIN_ENTRIES: usize = 2;
/// CPUs up to which equal per-CPU values are shown together.
const PERCPU_DEDUP_CPU_LIMIT: usize = 64;
/// Distinct per-CPU values from which on what they share is shown once.
const PERCPU_TEMPLATE_MIN_GROUPS: usize = 3;
/// Members that may differ between the CPUs of such a template.
const PERCPU_TEMPLATE_MAX_VARYING: usize = 7;
/// Frames shown of one stack.
const SHOWN_FRAMES: usize = 8;
/// Slots shown of a map of descriptors.
const SHOWN_INDICES: usize = 16;

impl fmt::Display for FailureDumpMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "map {} (type=", Escaped(&self.name))?;
        match map_type_name(self.map_type) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "{}", self.map_type)?,
        }
        write!(
            f,
            ", value_size={}, max_entries={})",
            self.value_size, self.max_entries
        )?;
        if let Some(error) = &self.error {
            write!(f, " [error: {}]", Escaped(error))?;
        }
        if let Some(value) = &self.value {
            write!(f, "\n{value}")?;
        }
        match Table::of(&self.entries) {
            Some(table) => table.fmt(f)?,
            None => write_lines(f, &self.entries)?,
        }
        write_lines(f, &self.array_entries)?;
        write_lines(f, &self.percpu_entries)?;
        write_lines(f, &self.percpu_hash_entries)?;
        write_lines(f, self.arena.as_slice())?;
        write_lines(f, self.ringbuf.as_slice())?;
        write_lines(f, self.stack_trace.as_slice())?;
        write_lines(f, self.fd_array.as_slice())
    }
}

/// Each on a line of its own.
fn write_lines<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    items.iter().try_for_each(|item| write!(f, "\n{item}"))
}

// ---- hash maps ----

/// Entries of the same structure with scalars only: a row each, keys left of a bar.
struct Table {
    /// The header, then the entries: key cells and value cells.
    rows: Vec<[Vec<String>; 2]>,
}

impl Table {
    /// The entries as a table, if they make one.
    fn of(entries: &[FailureDumpEntry]) -> Option<Self> {
        if entries.len() < TABLE_MIN_ENTRIES {
            return None;
        }
        let first = table_entry(entries.first()?)?;
        let mut rows = vec![first.map(|(_, members)| {
            members
                .iter()
                .map(|m| Escaped(&m.name).to_string())
                .collect()
        })];
        for entry in entries {
            let sides = table_entry(entry)?;
            if !sides.iter().zip(&first).all(|(a, b)| same_columns(*a, *b)) {
                return None;
            }
            rows.push(
                sides.map(|(_, members)| members.iter().map(|m| m.value.to_string()).collect()),
            );
        }
        Some(Self { rows })
    }
}

type StructParts<'a> = (&'a Option<String>, &'a [RenderedMember]);

/// Key and value of an entry, if both can be rows of a table.
fn table_entry(entry: &FailureDumpEntry) -> Option<[StructParts<'_>; 2]> {
    if entry.payload.is_some() {
        return None;
    }
    Some([
        row_struct(entry.key.as_ref()?)?,
        row_struct(entry.value.as_ref()?)?,
    ])
}

/// A structure of inline scalars.
fn row_struct(value: &RenderedValue) -> Option<StructParts<'_>> {
    match value {
        RenderedValue::Struct { type_name, members }
            if members.iter().all(|m| is_inline_scalar(&m.value)) =>
        {
            Some((type_name, members))
        }
        _ => None,
    }
}

fn same_columns((a_type, a): StructParts<'_>, (b_type, b): StructParts<'_>) -> bool {
    a_type == b_type && a.iter().map(|m| &m.name).eq(b.iter().map(|m| &m.name))
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = [Vec::new(), Vec::new()];
        for row in &self.rows {
            for (cells, widths) in row.iter().zip(&mut widths) {
                widths.resize(cells.len(), 0);
                for (cell, width) in cells.iter().zip(widths) {
                    *width = cell.len().max(*width);
                }
            }
        }
        for row in &self.rows {
            f.write_str("\n  ")?;
            for (side, (cells, widths)) in row.iter().zip(&widths).enumerate() {
                if side > 0 {
                    f.write_str(" | ")?;
                }
                for (i, (cell, width)) in cells.iter().zip(widths).enumerate() {
                    let gap = if i > 0 { "  " } else { "" };
                    write!(f, "{gap}{cell:>width$}")?;
                }
            }
        }
        Ok(())
    }
}

/// The first line of an entry's block.
fn write_entry_head(
    f: &mut fmt::Formatter<'_>,
    key: Option<&RenderedValue>,
    key_hex: &str,
) -> fmt::Result {
    f.write_str("entry: key=")?;
    write_or_raw(f, key, key_hex)
}

/// A value one step in, or its bytes.
fn write_or_raw(
    f: &mut fmt::Formatter<'_>,
    value: Option<&RenderedValue>,
    hex: &str,
) -> fmt::Result {
    match value {
        Some(value) => write!(f, "{}", AtDepth(value, 1)),
        None => write!(f, "{} (raw)", Escaped(hex)),
    }
}

impl fmt::Display for FailureDumpEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_entry_head(f, self.key.as_ref(), &self.key_hex)?;
        f.write_str("\n  value: ")?;
        write_or_raw(f, self.value.as_ref(), &self.value_hex)?;
        if let Some(payload) = &self.payload {
            write!(f, "\n  .data {}", AtDepth(payload, 1))?;
        }
        Ok(())
    }
}

impl fmt::Display for FailureDumpArrayEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "key {}: {}", self.key, AtDepth(value, 1)),
            None => write!(f, "key {}: <unreadable>", self.key),
        }
    }
}

// ---- per-CPU maps ----

impl fmt::Display for FailureDumpPercpuHashEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_entry_head(f, self.key.as_ref(), &self.key_hex)?;
        write_each_cpu(f, &self.per_cpu, 1)
    }
}

/// A line per CPU.
fn write_each_cpu(
    f: &mut fmt::Formatter<'_>,
    per_cpu: &[Option<RenderedValue>],
    depth: usize,
) -> fmt::Result {
    for (cpu, slot) in per_cpu.iter().enumerate() {
        match slot {
            Some(value) => write!(f, "\n  cpu {cpu}: {}", AtDepth(value, depth))?,
            None => write!(f, "\n  cpu {cpu}: <unmapped>")?,
        }
    }
    Ok(())
}

impl fmt::Display for FailureDumpPercpuEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}:", self.key)?;
        let mut structs = self.per_cpu.iter().flatten().filter_map(struct_members);
        let nr_structs = structs.clone().count();
        if nr_structs < 2 || structs.any(<[_]>::is_empty) {
            return write_each_cpu(f, &self.per_cpu, 0);
        }
        if let Some(RenderedValue::Struct {
            type_name: Some(name),
            ..
        }) = self.per_cpu.iter().flatten().next()
        {
            write!(f, " struct {}", Escaped(name))?;
        }
        let nr_cpus = self.per_cpu.len();
        write!(f, " ({nr_cpus} CPUs)")?;
        if nr_cpus > PERCPU_DEDUP_CPU_LIMIT {
            return write_each_cpu(f, &self.per_cpu, 0);
        }
        let mut groups: Vec<(Vec<usize>, &RenderedValue)> = Vec::new();
        let mut unmapped = Vec::new();
        for (cpu, slot) in self.per_cpu.iter().enumerate() {
            let Some(value) = slot else {
                unmapped.push(cpu);
                continue;
            };
            match groups.iter_mut().find(|(_, known)| *known == value) {
                Some((cpus, _)) => cpus.push(cpu),
                None => groups.push((vec![cpu], value)),
            }
        }
        match PercpuTemplate::of(&groups) {
            Some(template) => template.fmt(f)?,
            None => {
                for (cpus, value) in &groups {
                    write!(f, "\n  {}: {value}", cpu_names(cpus, nr_cpus))?;
                }
            }
        }
        if !unmapped.is_empty() {
            write!(f, "\n  cpus {unmapped:?}: <unmapped>")?;
        }
        Ok(())
    }
}

fn struct_members(value: &RenderedValue) -> Option<&[RenderedMember]> {
    match value {
        RenderedValue::Struct { members, .. } => Some(members),
        _ => None,
    }
}

/// How a group of CPUs is called.
fn cpu_names(cpus: &[usize], nr_cpus: usize) -> String {
    match cpus {
        _ if cpus.len() == nr_cpus => "all CPUs".to_owned(),
        [cpu] => format!("cpu {cpu}"),
        [first, .., last] if cpus.iter().copied().eq(*first..=*last) => {
            format!("cpus {first}-{last}")
        }
        _ => format!("cpus {cpus:?}"),
    }
}

/// Values that differ on every CPU but only in some members.
struct PercpuTemplate<'a> {
    cpus: Vec<(usize, &'a [RenderedMember])>,
    common: Vec<&'a RenderedMember>,
    /// Names and positions of the other members.
    varying: Vec<(&'a str, usize)>,
}

impl<'a> PercpuTemplate<'a> {
    fn of(groups: &[(Vec<usize>, &'a RenderedValue)]) -> Option<Self> {
        if groups.len() < PERCPU_TEMPLATE_MIN_GROUPS {
            return None;
        }
        let cpus = groups
            .iter()
            .map(|(cpus, value)| match cpus.as_slice() {
                [cpu] => Some((*cpu, struct_members(value)?)),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()?;
        let ((_, first), others) = cpus.split_first()?;
        if others
            .iter()
            .any(|(_, members)| members.len() != first.len())
        {
            return None;
        }
        let mut varies = vec![false; first.len()];
        for (_, members) in others {
            for position in positions_that_differ(first, members) {
                if let Some(varies) = varies.get_mut(position) {
                    *varies = true;
                }
            }
        }
        let mut common = Vec::new();
        let mut varying = Vec::new();
        for (position, (member, varies)) in first.iter().zip(varies).enumerate() {
            if varies {
                varying.push((member.name.as_str(), position));
            } else {
                common.push(member);
            }
        }
        if !(1..=PERCPU_TEMPLATE_MAX_VARYING).contains(&varying.len()) {
            return None;
        }
        Some(Self {
            cpus,
            common,
            varying,
        })
    }
}

impl fmt::Display for PercpuTemplate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\n  common:")?;
        for member in self.common.iter().filter(|m| !is_scalar_zero(&m.value)) {
            write!(f, "\n    {}: {}", Escaped(&member.name), member.value)?;
        }
        f.write_str("\n  per-cpu:\n    cpu")?;
        for (name, _) in &self.varying {
            write!(f, " | {}", Escaped(name))?;
        }
        for (cpu, members) in &self.cpus {
            write!(f, "\n    {cpu:>3}")?;
            for member in self.varying.iter().filter_map(|(_, i)| members.get(*i)) {
                write!(f, " | {}", member.value)?;
            }
        }
        Ok(())
    }
}

// ---- the other kinds ----

impl fmt::Display for ArenaSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Pages are 4 KiB, or larger ones of which all bytes are there.
        let pages = self.pages.len();
        let bytes: usize = self.pages.iter().map(|page| page.bytes.len()).sum();
        let kib = pages.saturating_mul(4).max(bytes / 1024);
        let non_zero = self
            .pages
            .iter()
            .filter(|page| page.bytes.iter().any(|byte| *byte != 0))
            .count();
        write!(
            f,
            "arena: {pages} pages captured ({kib} KiB), {non_zero} non-zero \
             (see sdt_alloc section + JSON for typed data)"
        )?;
        if self.truncated {
            write!(f, " (truncated, {} declared)", self.declared_pages)?;
        }
        Ok(())
    }
}

impl fmt::Display for FailureDumpRingbuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self
            .pending_bytes
            .saturating_mul(100)
            .checked_div(self.capacity)
            .map_or(0, |percent| percent.min(100));
        write!(
            f,
            "ringbuf: capacity={}B, pending={}B ({percent}%), consumer_pos={}, producer_pos={}, \
             pending_pos={}",
            self.capacity,
            self.pending_bytes,
            self.consumer_pos,
            self.producer_pos,
            self.pending_pos
        )
    }
}

impl fmt::Display for FailureDumpStackTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "stack_trace: {} of {} buckets populated",
            self.entries.len(),
            self.n_buckets
        )?;
        if self.truncated {
            f.write_str(" (truncated)")?;
        }
        write_unreadable(f, self.buckets_unreadable)?;
        for entry in &self.entries {
            write!(f, "\n  bucket {}: nr={}", entry.bucket_id, entry.nr)?;
            if !entry.pcs.is_empty() {
                let frames = entry.pcs.iter().map(|pc| format!("{pc:#x}"));
                write!(f, " pcs={}", first_few(frames, SHOWN_FRAMES))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for FailureDumpFdArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "fd_array: {} of {} slots populated",
            self.populated, self.scanned
        )?;
        if self.truncated {
            f.write_str(" (slots truncated)")?;
        }
        write_unreadable(f, self.unreadable)?;
        if !self.indices.is_empty() {
            let indices = self.indices.iter().map(u32::to_string);
            write!(f, " indices={}", first_few(indices, SHOWN_INDICES))?;
        }
        Ok(())
    }
}

fn write_unreadable(f: &mut fmt::Formatter<'_>, n: u32) -> fmt::Result {
    if n > 0 {
        write!(f, " ({n} unreadable)")?;
    }
    Ok(())
}

/// The first of some items in brackets, and how many more there are.
fn first_few(items: impl ExactSizeIterator<Item = String>, limit: usize) -> String {
    let more = items.len().saturating_sub(limit);
    let mut text = format!("[{}", items.take(limit).collect::<Vec<_>>().join(", "));
    if more > 0 {
        text.push_str(&format!(", +{more} more"));
    }
    text.push(']');
    text
}
