//! BPF programs, links and the scheduler made of them, as text.

use super::super::bpf_objects::{ActiveInfo, LinkInfo, MapRef, ProgramHook, ProgramInfo};
use super::escape::Escaped;
use super::postmortem::{Facts, Millis, Nanos, SHOWN_ROWS, Table, cell, more};

/// Functions shown of one link.
const SHOWN_FUNCTIONS: usize = 8;

pub(super) fn active(active: &ActiveInfo) -> Vec<String> {
    let mut facts = Facts::default();
    facts.push(if active.attached {
        "attached"
    } else {
        "not attached"
    });
    facts.with("struct_ops map", active.struct_ops_map.as_ref().map(map));
    let links: Vec<String> = active.link_ids.iter().map(u32::to_string).collect();
    facts.with("link", (!links.is_empty()).then(|| links.join(" ")));
    facts.with("object", active.object_name.as_deref().map(Escaped));
    let found_by = Some(&active.found_by).filter(|by| !by.is_empty());
    facts.with("found by", found_by.map(|by| Escaped(by)));
    let name = Escaped(active.ops_name.as_deref().unwrap_or("(no name)"));
    let mut lines = vec![format!("{name}: {}", facts.join(", "))];
    let width = active
        .callbacks
        .iter()
        .map(|c| Escaped(&c.member).to_string().chars().count())
        .max()
        .unwrap_or(0);
    for callback in active.callbacks.iter().take(SHOWN_ROWS) {
        let source = callback.source.as_deref().map(Escaped);
        let source = source.map_or(String::new(), |source| format!(", {source}"));
        let name = Escaped(&callback.member).to_string();
        lines.push(format!(
            "  {name:<width$} = {} (program {}{source})",
            Escaped(&callback.prog.name),
            callback.prog.id
        ));
    }
    lines.extend(more(active.callbacks.len(), SHOWN_ROWS).map(|text| format!("  {text}")));
    if !active.maps.is_empty() {
        let maps: Vec<String> = active.maps.iter().take(SHOWN_ROWS).map(map).collect();
        lines.push(format!("maps {}", maps.join(", ")));
        lines.extend(more(active.maps.len(), SHOWN_ROWS));
    }
    lines
}

fn map(map: &MapRef) -> String {
    let name = Escaped(&map.name);
    match map.id {
        Some(id) => format!("{id} ({name})"),
        None => format!("? ({name})"),
    }
}

pub(super) fn programs(programs: &[ProgramInfo]) -> Vec<String> {
    if programs.is_empty() {
        return Vec::new();
    }
    let header = [
        "id", "name", "type", "hook", "runs", "mean", "misses", "age", "source",
    ];
    let mut table = Table::new(header);
    table.right = [true, false, false, false, true, true, true, true, false];
    for program in programs {
        let stats = program.stats.as_ref();
        let uncounted = stats.is_some_and(|s| s.not_counting);
        let mean = stats.and_then(|s| s.time_ns.checked_div(s.runs));
        let source = program.source.as_ref().map(|source| {
            let file = source.file.rsplit('/').next().unwrap_or_default();
            cell(&format!("{file}:{}", source.line))
        });
        table.rows.push([
            program.id.to_string(),
            cell(&program.name),
            cell(&program.prog_type),
            program.hook.as_ref().map_or(String::new(), hook),
            stats.map_or(String::new(), |s| match s.runs {
                0 if uncounted => "not counted".to_owned(),
                runs if uncounted => format!("{runs} or more"),
                runs => runs.to_string(),
            }),
            mean.map_or(String::new(), |ns| Nanos(ns).to_string()),
            stats.map_or(String::new(), |s| s.misses.to_string()),
            program
                .age_ms
                .map_or(String::new(), |ms| Millis(ms).to_string()),
            match &program.error {
                Some(error) => cell(error),
                None => source.unwrap_or_default(),
            },
        ]);
    }
    table.lines()
}

fn hook(hook: &ProgramHook) -> String {
    let mut parts: Vec<&str> = Vec::new();
    parts.extend(hook.ops.as_deref());
    parts.extend(hook.name.as_deref());
    cell(&parts.join("."))
}

pub(super) fn links(links: &[LinkInfo]) -> Vec<String> {
    let mut lines = Vec::new();
    for link in links.iter().take(SHOWN_ROWS) {
        let mut facts = Facts::default();
        let program = link.program.as_ref();
        facts.with(
            "program",
            program.map(|p| format!("{} ({})", p.id, Escaped(&p.name))),
        );
        let how = link.attach_type.as_deref();
        facts.with("as", how.filter(|h| *h != link.link_type).map(Escaped));
        facts.with("to", link.target.as_deref().map(Escaped));
        facts.with("cookie", link.cookie);
        if link.unsettled {
            facts.push("the kernel is still attaching it");
        }
        facts.with("target not known:", link.error.as_deref().map(Escaped));
        let kind = Escaped(&link.link_type);
        lines.push(format!("{} {kind}: {}", link.id, facts.join(", ")));
        for function in link.functions.iter().take(SHOWN_FUNCTIONS) {
            lines.push(format!("  {}", Escaped(function)));
        }
        let functions = more(link.functions.len(), SHOWN_FUNCTIONS);
        lines.extend(functions.map(|text| format!("  {text}")));
    }
    lines.extend(more(links.len(), SHOWN_ROWS));
    lines
}
