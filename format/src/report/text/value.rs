//! Values as text.
//!
//! A value is written where the caller's line stands; only lines that the value itself begins are
//! indented, two spaces per depth. Widths count bytes.

use std::collections::HashSet;
use std::fmt::{self, Write};

use super::super::value::{RenderedMember, RenderedValue};
use super::escape::Escaped;

/// Bytes that `Type{a=1, b=2}` may take before the structure is broken into lines.
const STRUCT_INLINE_WIDTH_BUDGET: usize = 120;
/// Bytes that a list in brackets may take before it is wrapped.
const INLINE_LIST_WRAP_BUDGET: usize = 120;
/// Levels that the search for something non-zero goes down; below, everything counts as non-zero.
const ZERO_TEST_DEPTH: usize = 16;
/// Values inside values that are written. No report that was read can have as many; the limit
/// protects the stack from one built in memory.
const MAX_NESTING: usize = 200;
/// Scalars in one row of a structure.
const CELLS_PER_ROW: usize = 3;
/// Rows from which on a structure's `=` signs are aligned, if names differ enough in length.
const ALIGN_MIN_ROWS: usize = 3;
/// The least difference in the lengths of a column's names for which its `=` signs are aligned.
const ALIGN_MIN_SPREAD: usize = 4;
/// Elements that a template of structures must cover.
const TEMPLATE_MIN_ELEMENTS: usize = 3;
/// Members that may differ between the elements of a template.
const TEMPLATE_MAX_VARYING: usize = 3;
/// Members in which an element may differ from a template's first one.
const TEMPLATE_MAX_DIFFERENCES: usize = 7;

impl fmt::Display for RenderedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        AtDepth(self, 0).fmt(f)
    }
}

/// Displays a value whose own lines are indented this many steps.
pub(super) struct AtDepth<'a>(pub(super) &'a RenderedValue, pub(super) usize);

impl fmt::Display for AtDepth<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = Place {
            depth: self.1,
            nesting: 0,
        };
        write_value(f, self.0, place)
    }
}

/// Where a value is written.
#[derive(Clone, Copy)]
struct Place {
    /// Indentation of the lines that it begins, in steps.
    depth: usize,
    /// Values that it is inside of.
    nesting: usize,
}

impl Place {
    /// The place of a value on a line of its own, one step further in.
    fn child(self) -> Self {
        Self {
            depth: self.depth + 1,
            nesting: self.nesting + 1,
        }
    }

    /// The place of a value that continues this one's line.
    fn beside(self) -> Self {
        Self {
            depth: self.depth,
            nesting: self.nesting + 1,
        }
    }

    /// Begins a line.
    fn new_line(self, out: &mut dyn Write) -> fmt::Result {
        out.write_char('\n')?;
        self.indent(out)
    }

    fn indent(self, out: &mut dyn Write) -> fmt::Result {
        for _ in 0..self.depth {
            out.write_str("  ")?;
        }
        Ok(())
    }
}

/// A number, a name, an address: fits into a table cell or a one-line list.
pub(super) fn is_inline_scalar(value: &RenderedValue) -> bool {
    match value {
        RenderedValue::Bytes { .. } | RenderedValue::Unsupported { .. } => true,
        RenderedValue::Ptr { deref, .. } => deref.is_none(),
        value => is_flat_scalar(value),
    }
}

/// An inline scalar with nothing to explain: fits between the others of a structure's row.
fn is_flat_scalar(value: &RenderedValue) -> bool {
    match value {
        RenderedValue::Int { .. }
        | RenderedValue::Uint { .. }
        | RenderedValue::Bool { .. }
        | RenderedValue::Char { .. }
        | RenderedValue::Float { .. }
        | RenderedValue::Enum { .. } => true,
        RenderedValue::Ptr {
            deref,
            deref_skipped_reason,
            ..
        } => deref.is_none() && deref_skipped_reason.is_none(),
        _ => false,
    }
}

/// Zero, false, null or an empty CPU list. Nothing that has parts is.
pub(super) fn is_scalar_zero(value: &RenderedValue) -> bool {
    match value {
        RenderedValue::Float { value, .. } => *value == 0.0,
        RenderedValue::CpuList { cpus } => cpus.is_empty(),
        value => bit_pattern(value) == Some(0),
    }
}

/// A scalar's bits; not those of a float.
fn bit_pattern(value: &RenderedValue) -> Option<u64> {
    Some(match value {
        RenderedValue::Int { value, .. } | RenderedValue::Enum { value, .. } => {
            value.cast_unsigned()
        }
        RenderedValue::Uint { value, .. } | RenderedValue::Ptr { value, .. } => *value,
        RenderedValue::Bool { value } => u64::from(*value),
        RenderedValue::Char { value } => u64::from(*value),
        _ => return None,
    })
}

/// A scalar zero, or a structure or array of nothing else.
fn is_deep_zero(value: &RenderedValue) -> bool {
    fn test(value: &RenderedValue, levels: usize) -> bool {
        let Some(below) = levels.checked_sub(1) else {
            return false;
        };
        match value {
            RenderedValue::Struct { members, .. } => members.iter().all(|m| test(&m.value, below)),
            RenderedValue::Array { elements, .. } => elements.iter().all(|e| test(e, below)),
            value => is_scalar_zero(value),
        }
    }
    test(value, ZERO_TEST_DEPTH)
}

fn write_value(out: &mut dyn Write, value: &RenderedValue, place: Place) -> fmt::Result {
    if place.nesting >= MAX_NESTING {
        return out.write_str("<nested too deep>");
    }
    match value {
        RenderedValue::Int { value, .. } => write!(out, "{value}"),
        RenderedValue::Uint { value, .. } => write!(out, "{value}"),
        RenderedValue::Bool { value } => write!(out, "{value}"),
        RenderedValue::Char { value } => match value {
            0x20..=0x7e => write!(out, "'{}'", char::from(*value)),
            _ => write!(out, "0x{value:02x}"),
        },
        RenderedValue::Float { value, .. } => write!(out, "{value}"),
        RenderedValue::Enum {
            value,
            variant,
            is_signed,
            ..
        } => write_enum(out, *value, variant.as_deref(), *is_signed),
        RenderedValue::Struct { type_name, members } => {
            write_struct(out, type_name.as_deref(), members, place)
        }
        RenderedValue::Array { len, elements } => write_array(out, *len, elements, place),
        RenderedValue::CpuList { cpus } => write!(out, "cpus={{{}}}", Escaped(cpus)),
        RenderedValue::Ptr {
            value,
            deref,
            deref_skipped_reason,
            cast_annotation,
            symbol,
        } => {
            write!(out, "{value:#x}")?;
            if let Some(symbol) = symbol {
                write!(out, " <{}>", Escaped(symbol))?;
            }
            if let Some(annotation) = cast_annotation {
                write!(out, " ({})", Escaped(annotation))?;
            }
            match (deref, deref_skipped_reason) {
                (Some(target), _) => {
                    out.write_str(" \u{2192} ")?;
                    write_value(out, target, place.beside())
                }
                (None, Some(reason)) if reason.starts_with("cycle ") => out.write_str(" [cycle]"),
                (None, Some(reason)) => write!(out, " [chase: {}]", Escaped(reason)),
                (None, None) => Ok(()),
            }
        }
        RenderedValue::Bytes { hex } => write!(out, "{}", Escaped(hex)),
        RenderedValue::Truncated { had: 0, .. } => Ok(()),
        RenderedValue::Truncated {
            needed,
            had,
            partial,
        } => {
            write!(out, "<truncated needed={needed} had={had}> ")?;
            write_value(out, partial, place.beside())
        }
        RenderedValue::Unsupported { reason } => {
            write!(out, "<unsupported: {}>", Escaped(reason))
        }
    }
}

fn write_enum(
    out: &mut dyn Write,
    value: i64,
    variant: Option<&str>,
    is_signed: bool,
) -> fmt::Result {
    if let Some(name) = variant {
        write!(out, "{} (", Escaped(name))?;
    }
    if is_signed {
        write!(out, "{value}")?;
    } else {
        write!(out, "{}", value.cast_unsigned())?;
    }
    if variant.is_some() {
        out.write_char(')')?;
    }
    Ok(())
}

// ---- arrays ----

/// The array's bytes if all of them can be part of a C string: printable, newline or NUL.
fn text_bytes(elements: &[RenderedValue]) -> Option<Vec<u8>> {
    if elements.len() < 2 {
        return None;
    }
    elements
        .iter()
        .map(|element| {
            let byte = match element {
                RenderedValue::Int { bits: 8, value } => {
                    let [low, ..] = value.to_le_bytes();
                    low
                }
                RenderedValue::Uint { bits: 8, value } => {
                    let [low, ..] = value.to_le_bytes();
                    low
                }
                RenderedValue::Char { value } => *value,
                _ => return None,
            };
            matches!(byte, 0 | b'\n' | 0x20..=0x7e).then_some(byte)
        })
        .collect()
}

fn write_array(
    out: &mut dyn Write,
    len: u64,
    elements: &[RenderedValue],
    place: Place,
) -> fmt::Result {
    if elements.is_empty() {
        return out.write_str("[]");
    }
    if let Some(bytes) = text_bytes(elements).filter(|bytes| bytes.first() != Some(&0)) {
        return write_c_string(out, &bytes, place);
    }
    if elements.iter().all(is_scalar_zero) {
        return write!(out, "[all {len} zero]");
    }
    let shown = u64::try_from(elements.len()).unwrap_or(u64::MAX);
    if elements.iter().all(is_inline_scalar) {
        if shown == len && !elements.iter().any(is_scalar_zero) {
            let parts: Vec<String> = elements.iter().map(list_element).collect();
            return write_list(out, &parts, ", ", place);
        }
        write_list(out, &runs(elements), "  ", place)?;
    } else {
        write_groups(out, elements, place)?;
    }
    if shown < len {
        write!(out, " /* {shown} of {len} shown */")?;
    }
    Ok(())
}

/// A text up to its first NUL; one with line breaks as a block.
fn write_c_string(out: &mut dyn Write, bytes: &[u8], place: Place) -> fmt::Result {
    let text: String = bytes
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| char::from(*byte))
        .collect();
    if !text.contains('\n') {
        return write!(out, "\"{text}\"");
    }
    out.write_str("|\n")?;
    for line in text.split('\n').filter(|line| !line.is_empty()) {
        place.child().indent(out)?;
        writeln!(out, "{line}")?;
    }
    place.indent(out)
}

/// An element of a one-line list. Wide unsigned numbers are mostly masks and addresses there.
fn list_element(element: &RenderedValue) -> String {
    match element {
        RenderedValue::Uint { bits: 32.., value } => format!("{value:#x}"),
        element => element.to_string(),
    }
}

/// The non-zero stretches of a list, each with the indices it covers.
fn runs(elements: &[RenderedValue]) -> Vec<String> {
    let mut parts = Vec::new();
    let mut start = 0;
    for run in elements.chunk_by(|a, b| is_scalar_zero(a) == is_scalar_zero(b)) {
        let end = start + run.len();
        match run {
            [first, ..] if is_scalar_zero(first) => {}
            [only] => parts.push(format!("[{start}]={}", list_element(only))),
            _ => {
                let values: Vec<String> = run.iter().map(list_element).collect();
                parts.push(format!("[{start}..{}]={{{}}}", end - 1, values.join(", ")));
            }
        }
        start = end;
    }
    parts
}

/// A list in brackets, wrapped between its parts if it is too long for one line.
fn write_list(out: &mut dyn Write, parts: &[String], separator: &str, place: Place) -> fmt::Result {
    let separators = parts.len().saturating_sub(1) * separator.len();
    let total = 2 + separators + parts.iter().map(String::len).sum::<usize>();
    let wrap = total > INLINE_LIST_WRAP_BUDGET;
    let inner = place.child();
    out.write_char('[')?;
    let mut column = 1;
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            if wrap && column + separator.len() + part.len() > INLINE_LIST_WRAP_BUDGET {
                out.write_str(separator.trim_end())?;
                inner.new_line(out)?;
                column = 2 * inner.depth;
            } else {
                out.write_str(separator)?;
                column += separator.len();
            }
        }
        out.write_str(part)?;
        column += part.len();
    }
    out.write_char(']')
}

/// Equal elements of an array that follow each other, leaving scalar zeros out.
struct Group<'a> {
    first: usize,
    last: usize,
    value: &'a RenderedValue,
}

impl<'a> Group<'a> {
    /// The members, if the group is one structure.
    fn single_struct(&self) -> Option<&'a [RenderedMember]> {
        match self.value {
            RenderedValue::Struct { members, .. } if self.first == self.last => Some(members),
            _ => None,
        }
    }
}

/// The elements one below the other, equal neighbours together.
fn write_groups(out: &mut dyn Write, elements: &[RenderedValue], place: Place) -> fmt::Result {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (i, element) in elements.iter().enumerate() {
        if is_scalar_zero(element) {
            continue;
        }
        match groups.last_mut() {
            Some(group) if group.value == element => group.last = i,
            _ => groups.push(Group {
                first: i,
                last: i,
                value: element,
            }),
        }
    }
    let inner = place.child();
    out.write_char('[')?;
    let mut rest = groups.as_slice();
    while let [group, after @ ..] = rest {
        inner.new_line(out)?;
        if let Some(template) = Template::find(rest) {
            template.write(out, inner)?;
            rest = rest.get(template.elements.len()..).unwrap_or(&[]);
            continue;
        }
        if group.first == group.last {
            write!(out, "[{}] ", group.first)?;
        } else {
            write!(out, "[{}-{}] ", group.first, group.last)?;
        }
        write_value(out, group.value, inner)?;
        rest = after;
    }
    place.new_line(out)?;
    out.write_char(']')
}

/// Structures that follow each other and differ in few members, to be written once.
struct Template<'a> {
    first_index: usize,
    type_name: Option<&'a str>,
    elements: Vec<&'a [RenderedMember]>,
    /// Positions of the members that are not the same in all elements.
    varying: Vec<usize>,
}

impl<'a> Template<'a> {
    /// The template that begins with the first of these groups, if there is one.
    ///
    /// The groups that belong together are all that follow and differ from the first one in few
    /// enough members. If then too many members vary among them, or an index is missing between
    /// them, there is no template at all, not a shorter one.
    fn find(groups: &[Group<'a>]) -> Option<Self> {
        let (group, rest) = groups.split_first()?;
        let first = group.single_struct()?;
        let mut elements = vec![first];
        let mut varying: Vec<usize> = Vec::new();
        for (expected, next) in (group.first + 1..).zip(rest) {
            let Some(members) = next.single_struct().filter(|m| m.len() == first.len()) else {
                break;
            };
            let differing: Vec<usize> = positions_that_differ(first, members).collect();
            if differing.len() > TEMPLATE_MAX_DIFFERENCES {
                break;
            }
            if next.first != expected {
                return None;
            }
            varying.extend(differing);
            varying.sort_unstable();
            varying.dedup();
            if varying.len() > TEMPLATE_MAX_VARYING {
                return None;
            }
            elements.push(members);
        }
        if elements.len() < TEMPLATE_MIN_ELEMENTS || varying.is_empty() {
            return None;
        }
        let type_name = match group.value {
            RenderedValue::Struct { type_name, .. } => type_name.as_deref(),
            _ => None,
        };
        Some(Self {
            first_index: group.first,
            type_name,
            elements,
            varying,
        })
    }

    fn write(&self, out: &mut dyn Write, place: Place) -> fmt::Result {
        let last_index = self.first_index + self.elements.len() - 1;
        write!(out, "[{}-{last_index}]", self.first_index)?;
        if let Some(name) = self.type_name {
            write!(out, " {}", Escaped(name))?;
        }
        out.write_char(':')?;
        let inner = place.child();
        let Some(first) = self.elements.first() else {
            return Ok(());
        };
        for (i, member) in first.iter().enumerate() {
            if !self.varying.contains(&i) && !is_deep_zero(&member.value) {
                inner.new_line(out)?;
                write!(out, "{}=", Escaped(&member.name))?;
                write_value(out, &member.value, inner)?;
            }
        }
        for &position in &self.varying {
            let Some(member) = first.get(position) else {
                continue;
            };
            inner.new_line(out)?;
            write!(out, "{}: ", Escaped(&member.name))?;
            for (index, members) in (self.first_index..).zip(&self.elements) {
                if let Some(member) = members.get(position) {
                    write!(out, "[{index}]=")?;
                    write_value(out, &member.value, inner)?;
                    out.write_char(' ')?;
                }
            }
        }
        Ok(())
    }
}

/// Positions at which the values of two equally long lists of members are not the same.
pub(super) fn positions_that_differ(
    a: &[RenderedMember],
    b: &[RenderedMember],
) -> impl Iterator<Item = usize> {
    a.iter()
        .zip(b)
        .enumerate()
        .filter(|(_, (a, b))| a.value != b.value)
        .map(|(i, _)| i)
}

// ---- structures ----

/// The members that are shown: those of anonymous structures in their place, without zeros and
/// without format strings of print calls.
fn visible_members(members: &[RenderedMember]) -> Vec<&RenderedMember> {
    let mut flat = Vec::with_capacity(members.len());
    let mut named_scalars = None;
    for member in members {
        match &member.value {
            RenderedValue::Struct { members: inner, .. } if member.name.is_empty() => {
                let named = named_scalars.get_or_insert_with(|| named_scalars_of(members));
                if !repeats(inner, named) {
                    flat.extend(inner);
                }
            }
            _ => flat.push(member),
        }
    }
    flat.retain(|m| !is_deep_zero(&m.value) && !is_format_string(m));
    flat
}

/// Bit patterns, other than 0, of the scalars that named members hold, directly or one structure
/// down.
fn named_scalars_of(members: &[RenderedMember]) -> HashSet<u64> {
    let mut patterns = HashSet::new();
    for member in members.iter().filter(|m| !m.name.is_empty()) {
        match &member.value {
            RenderedValue::Struct { members: inner, .. } => {
                patterns.extend(inner.iter().filter_map(|m| bit_pattern(&m.value)));
            }
            value => patterns.extend(bit_pattern(value)),
        }
    }
    patterns.remove(&0);
    patterns
}

/// An anonymous union's other view of what named members show already.
fn repeats(overlay: &[RenderedMember], named: &HashSet<u64>) -> bool {
    !named.is_empty()
        && !overlay.is_empty()
        && overlay.iter().all(|member| {
            bit_pattern(&member.value).is_some_and(|bits| bits == 0 || named.contains(&bits))
        })
}

fn is_format_string(member: &RenderedMember) -> bool {
    member.name.contains("___fmt")
        && matches!(&member.value,
            RenderedValue::Array { elements, .. } if text_bytes(elements).is_some())
}

/// A member's name as it is shown.
fn member_name(member: &RenderedMember) -> String {
    if member.name.is_empty() {
        "<anon>".to_owned()
    } else {
        Escaped(&member.name).to_string()
    }
}

fn write_struct(
    out: &mut dyn Write,
    type_name: Option<&str>,
    members: &[RenderedMember],
    place: Place,
) -> fmt::Result {
    let visible = visible_members(members);
    let mut inline = String::new();
    if push_inline_struct(&mut inline, type_name, &visible, STRUCT_INLINE_WIDTH_BUDGET) {
        return out.write_str(&inline);
    }
    write!(out, "{}:", Escaped(type_name.unwrap_or_default()))?;
    let (scalars, others): (Vec<_>, Vec<_>) =
        visible.into_iter().partition(|m| is_flat_scalar(&m.value));
    let cells: Vec<(String, String)> = scalars
        .into_iter()
        .map(|m| (member_name(m), m.value.to_string()))
        .collect();
    write_cells(out, &cells, place.child())?;
    for member in others {
        place.child().new_line(out)?;
        write!(out, "{} ", member_name(member))?;
        write_value(out, &member.value, place.child())?;
    }
    Ok(())
}

/// Appends `Type{a=1, b=2}` if the structure fits on a line and the text then has at most `end`
/// bytes. If not, returns false and leaves something unfinished.
///
/// It gives up as soon as the budget is spent, also deep inside, so that trying it again for each
/// structure on the way down stays cheap.
fn push_inline_struct(
    text: &mut String,
    type_name: Option<&str>,
    visible: &[&RenderedMember],
    end: usize,
) -> bool {
    let _ = write!(text, "{}{{", Escaped(type_name.unwrap_or_default()));
    for (i, member) in visible.iter().enumerate() {
        if i > 0 {
            text.push_str(", ");
        }
        text.push_str(&member_name(member));
        text.push('=');
        if text.len() > end {
            return false;
        }
        match &member.value {
            RenderedValue::Struct { type_name, members } => {
                let visible = visible_members(members);
                if !push_inline_struct(text, type_name.as_deref(), &visible, end) {
                    return false;
                }
            }
            value if is_flat_scalar(value) => {
                let _ = write!(text, "{value}");
            }
            _ => return false,
        }
    }
    text.push('}');
    // A structure without visible members has no other form.
    text.len() <= end || visible.is_empty()
}

/// A structure's scalars, several to a row and in columns.
fn write_cells(out: &mut dyn Write, cells: &[(String, String)], place: Place) -> fmt::Result {
    let rows = cells.len().div_ceil(CELLS_PER_ROW);
    let columns: Vec<Column> = (0..CELLS_PER_ROW)
        .map(|i| Column::of(cells.iter().skip(i).step_by(CELLS_PER_ROW), rows))
        .collect();
    for row in cells.chunks(CELLS_PER_ROW) {
        place.new_line(out)?;
        for (i, ((name, value), column)) in row.iter().zip(&columns).enumerate() {
            out.write_str(name)?;
            match column.align_names {
                Some(width) => {
                    write_spaces(out, width - name.len().min(width))?;
                    write!(out, " = {value}")?;
                }
                None => write!(out, "={value}")?,
            }
            if i + 1 < row.len() {
                write_spaces(out, column.width - column.cell_width(name, value) + 3)?;
            }
        }
    }
    Ok(())
}

/// The layout of one column of a structure's scalars.
struct Column {
    /// Bytes to which names are padded, if they are.
    align_names: Option<usize>,
    /// Bytes of the widest cell.
    width: usize,
}

impl Column {
    fn of<'a>(cells: impl Iterator<Item = &'a (String, String)> + Clone, rows: usize) -> Self {
        let longest = cells.clone().map(|(name, _)| name.len()).max().unwrap_or(0);
        let shortest = cells.clone().map(|(name, _)| name.len()).min().unwrap_or(0);
        let align = rows >= ALIGN_MIN_ROWS && longest - shortest >= ALIGN_MIN_SPREAD;
        let mut column = Self {
            align_names: align.then_some(longest),
            width: 0,
        };
        column.width = cells
            .map(|(name, value)| column.cell_width(name, value))
            .max()
            .unwrap_or(0);
        column
    }

    fn cell_width(&self, name: &str, value: &str) -> usize {
        match self.align_names {
            Some(width) => width + 3 + value.len(),
            None => name.len() + 1 + value.len(),
        }
    }
}

fn write_spaces(out: &mut dyn Write, n: usize) -> fmt::Result {
    for _ in 0..n {
        out.write_char(' ')?;
    }
    Ok(())
}
