//! BPF maps as our own text shows them: a table of all, then what the shared text has no place
//! for. The contents themselves are in the shared part.

use super::super::bpf_maps::{AllocatorInfo, ArenaInfo, MapInfo};
use super::escape::Escaped;
use super::postmortem::{Table, more};

/// Owners, targets, records and stacks shown of one map. The JSON has all.
const SHOWN: usize = 8;
/// Bytes of a record that are shown.
const SHOWN_BYTES: usize = 48;

/// The lines of the section on maps.
pub(super) fn maps(maps: &[MapInfo]) -> Vec<String> {
    if maps.is_empty() {
        return Vec::new();
    }
    let mut table = Table::new([
        "id", "name", "type", "key", "value", "entries", "bytes", "programs",
    ]);
    let number = |n: Option<u64>| n.map_or_else(|| "-".into(), |n| n.to_string());
    for map in maps {
        let programs: Vec<String> = map.progs.iter().map(|p| p.id.to_string()).collect();
        let held = match (map.entries, map.max_entries) {
            (Some(held), Some(most)) if most > 0 => format!("{held}/{most}"),
            (held, _) => number(held),
        };
        table.push([
            map.id.to_string(),
            map.name.clone(),
            map.type_name
                .clone()
                .unwrap_or_else(|| map.map_type.to_string()),
            map.key_type
                .clone()
                .unwrap_or_else(|| number(map.key_size.map(u64::from))),
            map.value_type
                .clone()
                .unwrap_or_else(|| number(map.value_size.map(u64::from))),
            held,
            number(map.memory_bytes),
            programs.join(","),
        ]);
    }
    let mut lines = table.lines();
    for map in maps {
        let details = details(map);
        if !details.is_empty() {
            lines.push(format!("{} {}:", map.id, Escaped(&map.name)));
            lines.extend(details.into_iter().map(|line| format!("  {line}")));
        }
    }
    lines
}

/// The lines of the section on arenas: how much of each is understood, and its allocators.
pub(super) fn arenas(arenas: &[ArenaInfo], allocators: &[AllocatorInfo]) -> Vec<String> {
    let mut lines = Vec::new();
    for arena in arenas {
        let mut line = format!(
            "{} {}: {} pages",
            arena.map_id,
            Escaped(&arena.name),
            arena.pages
        );
        if let Some(at) = arena.globals_at {
            line.push_str(&format!(", globals at {at}"));
        }
        if arena.unrecognised_pages > 0 {
            line.push_str(&format!(
                ", {} without anything that was recognised: {}",
                arena.unrecognised_pages,
                Escaped(&arena.unrecognised.join(" "))
            ));
        }
        lines.push(line);
        lines.extend(
            arena
                .globals_error
                .iter()
                .map(|error| format!("  globals not read: {}", Escaped(error))),
        );
        let own = allocators
            .iter()
            .filter(|a| a.arena_id == Some(arena.map_id));
        for a in own {
            let ty = match (&a.payload_type, &a.payload_rule) {
                (Some(ty), Some(rule)) => format!("{} ({})", Escaped(ty), Escaped(rule)),
                _ => "payload of unknown type".to_owned(),
            };
            let mut line = format!(
                "  {}: {} live of {} bytes, {} with a known owner, {ty}",
                Escaped(&a.name),
                a.live,
                a.elem_size,
                a.owners.len()
            );
            if a.misplaced > 0 {
                line.push_str(&format!(", {} whose own number is another", a.misplaced));
            }
            if let Some(error) = &a.error {
                line.push_str(&format!("; {}", Escaped(error)));
            }
            lines.push(line);
        }
    }
    lines
}

fn details(map: &MapInfo) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(error) = &map.error {
        lines.push(format!("not whole: {}", Escaped(error)));
    }
    if let Some(state) = &map.struct_ops_state {
        lines.push(format!("state {}", Escaped(state)));
    }
    for callback in &map.callbacks {
        lines.push(format!(
            "{} = {} (id {})",
            Escaped(&callback.member),
            Escaped(&callback.prog.name),
            callback.prog.id
        ));
    }
    if let Some(bloom) = &map.bloom {
        lines.push(format!(
            "{} of {} bits set, {} hash functions",
            bloom.bits_set, bloom.bits, bloom.hash_functions
        ));
    }
    let who = |kind: &str, id: Option<u64>, name: Option<&str>, error: Option<&str>| {
        let id = id.map_or_else(String::new, |id| format!(" {id}"));
        let name = name.map_or_else(String::new, |name| format!(" {}", Escaped(name)));
        let error = error.map_or_else(String::new, |e| format!(" ({})", Escaped(e)));
        format!("{}{id}{name}{error}", Escaped(kind))
    };
    let targets = map.targets.iter().map(|t| {
        let to = who(&t.kind, t.id, t.name.as_deref(), t.error.as_deref());
        format!("[{}] -> {to}", Escaped(&t.key))
    });
    list(&mut lines, map.targets.len(), targets);
    let owners = map.owners.iter().map(|o| {
        let owner = who(&o.kind, o.id, o.name.as_deref(), o.error.as_deref());
        format!("owned by {owner}")
    });
    list(&mut lines, map.owners.len(), owners);
    let records = map.records.iter().map(|r| {
        let bytes: String = r.data_hex.chars().take(3 * SHOWN_BYTES).collect();
        let rest = if bytes.len() < r.data_hex.len() {
            " ..."
        } else {
            ""
        };
        format!(
            "@{} {} {} bytes: {}{rest}",
            r.position,
            Escaped(&r.state),
            r.len,
            Escaped(bytes.trim_end())
        )
    });
    list(&mut lines, map.records.len(), records);
    let stacks = map.stacks.iter().map(|stack| {
        let frames = stack.frames.iter().map(|frame| match &frame.symbol {
            Some(symbol) => symbol.clone(),
            None => frame.addr.to_string(),
        });
        let frames: Vec<String> = frames.chain(stack.user_frames.iter().cloned()).collect();
        format!(
            "stack {}: {}",
            stack.bucket_id,
            Escaped(&frames.join(" < "))
        )
    });
    list(&mut lines, map.stacks.len(), stacks);
    lines
}

/// The first few of `items`, and how many more there are.
fn list(lines: &mut Vec<String>, count: usize, items: impl Iterator<Item = String>) {
    lines.extend(items.take(SHOWN));
    lines.extend(more(count, SHOWN));
}
