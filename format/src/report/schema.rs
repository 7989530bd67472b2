//! The JSON schema of a report, made from the types.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::any::ReportError;
use super::dump::{DegradedFailureDumpReport, DualFailureDumpReport, FailureDumpReport};

/// The schema of everything that [`FailureDumpReportAny`](super::FailureDumpReportAny) reads.
///
/// It says what a reader accepts. What is written is stricter: members come in the order of the
/// types, and those that may be left out are never null.
pub fn json_schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let shapes = [
        generator.subschema_for::<FailureDumpReport>(),
        generator.subschema_for::<DualFailureDumpReport>(),
        generator.subschema_for::<DegradedFailureDumpReport>(),
    ];
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Failure-dump report",
        "description": "One of three shapes, told apart by the member `schema`. Integers use \
            the full range of 64 bits: do not read them as floating-point numbers.",
        "oneOf": shapes,
        "$defs": generator.take_definitions(true),
    });
    tidy_descriptions(&mut schema);
    schema
}

/// Turns descriptions from the code's documentation into plain text: no links, no line breaks
/// inside a paragraph.
fn tidy_descriptions(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(text) if name == "description" => *text = plain(text),
                    value => tidy_descriptions(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy_descriptions),
        _ => {}
    }
}

fn plain(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(|p| p.replace('\n', " "));
    let text = paragraphs.collect::<Vec<_>>().join("\n\n");
    let mut plain = String::new();
    let mut pieces = text.split("[`");
    plain.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        plain.push('`');
        match piece.split_once("`]") {
            Some((name, rest)) => {
                plain.push_str(name);
                plain.push('`');
                // The link's target, if it is given.
                let target = rest.strip_prefix('(').and_then(|r| r.split_once(')'));
                plain.push_str(target.map_or(rest, |(_, rest)| rest));
            }
            None => plain.push_str(piece),
        }
    }
    plain
}

/// [`json_schema`] as the text that the repository keeps in `docs/report.schema.json`.
pub fn json_schema_text() -> Result<String, ReportError> {
    let mut text = serde_json::to_string_pretty(&json_schema()).map_err(ReportError::Write)?;
    text.push('\n');
    Ok(text)
}
