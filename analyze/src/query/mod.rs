//! Expressions that reach any variable, map entry, kernel object or field of the report.
//!
//! ```text
//! bss.nr_enqueued                        a variable of the running scheduler
//! map("task_ctx")[1632].vtime            what a map holds, by key; in local storage by thread id
//! rq(2).scx.nr_running                   a run queue
//! task(1632).scx.dsq.id                  a task; members follow pointers
//! (struct bpf_map *)0xffff888004a1c000   memory as a type of the kernel
//! symbol("jiffies")                      a variable of the kernel
//! report.postmortem.headline             what the report has
//! ```
//!
//! Kernel objects are read as the kernel's BTF has them, with the same reader as the walkers'; maps
//! and variables of programs are those of the report. Everything is bounded: the depth of an
//! expression, the bytes and parts of a value, the elements of a `[*]`.

mod eval;
pub(crate) mod near;
mod parse;

use std::cell::OnceCell;
use std::fmt;
use std::ops::Range;

use scx_postmortem_format::report::{
    Escaped, FailureDumpMap, FailureDumpReport, Hex, RenderedValue,
};
use serde::Serialize;

use crate::analysis::{self, Options};
use crate::kernel::Kernel;

pub use self::eval::{FUNCTIONS, ROOTS};

/// An expression that has no answer: where it goes wrong, why, and names that are close to the one
/// that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryError {
    /// The bytes of the expression that are to blame.
    pub span: Range<usize>,
    /// Why.
    pub message: String,
    /// Names that may have been meant, the closest first.
    pub near: Vec<String>,
}

impl QueryError {
    pub(crate) const fn new(span: Range<usize>, message: String) -> Self {
        Self {
            span,
            message,
            near: Vec::new(),
        }
    }

    /// The error below its expression, with a mark where it belongs.
    #[must_use]
    pub fn show(&self, expression: &str) -> String {
        let width = |range: Range<usize>| {
            let text = expression.get(range).unwrap_or_default();
            text.chars().count()
        };
        let end = self.span.end.min(expression.len());
        let before = width(0..self.span.start.min(expression.len()));
        let marks = width(self.span.start.min(end)..end).max(1);
        // One line for one line: what would break it counts as one column.
        let line: String = expression
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        format!(
            "{}\n{}{}\n{self}",
            Escaped(&line),
            " ".repeat(before),
            "^".repeat(marks)
        )
    }
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Escaped(&self.message))?;
        for (i, name) in self.near.iter().enumerate() {
            let before = if i == 0 { "; near: " } else { ", " };
            write!(f, "{before}{}", Escaped(name))?;
        }
        Ok(())
    }
}

impl std::error::Error for QueryError {}

/// The answer to one expression.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// The expression.
    pub expr: String,
    /// The type as C writes it, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// The address, of what has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Hex>,
    /// The value.
    pub value: Shown,
}

/// A value, ready to be shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Shown {
    /// A typed one, in the form that reports have.
    Rendered(RenderedValue),
    /// A map with all that is in it, in the form that reports have.
    Map(Box<FailureDumpMap>),
    /// A part of the report, or a number or text of the expression itself.
    Json(serde_json::Value),
    /// The answers of `[*]`.
    List(Vec<Shown>),
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rendered(value) => value.fmt(f),
            Self::Map(map) => map.fmt(f),
            Self::Json(serde_json::Value::String(text)) => write!(f, "{}", Escaped(text)),
            Self::Json(value) => {
                let text = serde_json::to_string_pretty(value).map_err(|_| fmt::Error)?;
                for (i, line) in text.lines().enumerate() {
                    let newline = if i == 0 { "" } else { "\n" };
                    write!(f, "{newline}{}", Escaped(line))?;
                }
                Ok(())
            }
            Self::List(all) => {
                for (i, each) in all.iter().enumerate() {
                    let newline = if i == 0 { "" } else { "\n" };
                    write!(f, "{newline}{each}")?;
                }
                Ok(())
            }
        }
    }
}

/// What expressions are asked of: a guest's memory with the report on it, or a report alone.
pub struct Session<'k> {
    kernel: Option<&'k Kernel>,
    options: Options,
    report: OnceCell<FailureDumpReport>,
    json: OnceCell<serde_json::Value>,
}

impl<'k> Session<'k> {
    /// A guest's memory. The report is made when an expression needs it.
    #[must_use]
    pub const fn of_kernel(kernel: &'k Kernel, options: Options) -> Self {
        Self {
            kernel: Some(kernel),
            options,
            report: OnceCell::new(),
            json: OnceCell::new(),
        }
    }

    /// A report without memory: kernel objects are not there.
    #[must_use]
    pub fn of_report(report: FailureDumpReport) -> Self {
        let cell = OnceCell::new();
        // A new cell takes its first value.
        let _ = cell.set(report);
        Self {
            kernel: None,
            options: Options::default(),
            report: cell,
            json: OnceCell::new(),
        }
    }

    /// Answers one expression.
    ///
    /// # Errors
    /// Where it goes wrong, and why.
    pub fn ask(&self, expression: &str) -> Result<Answer, QueryError> {
        let node = parse::parse(expression)?;
        eval::answer(self, expression, &node)
    }

    /// What could stand at the end of a line that is being typed: where the word that it ends in
    /// begins, and the words, in order.
    #[must_use]
    pub fn complete(&self, line: &str) -> (usize, Vec<String>) {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let start = line.rfind(|c| !is_word(c)).map_or(0, |at| {
            at + line
                .get(at..)
                .and_then(|rest| rest.chars().next())
                .map_or(1, char::len_utf8)
        });
        let (before, word) = line.split_at_checked(start).unwrap_or((line, ""));
        let mut names: Vec<String> = if let Some((open, name)) = quoted(line) {
            let names = self.named(open);
            let start = line.len() - name.len();
            return (start, chosen(names, name));
        } else if let Some(object) = before
            .strip_suffix('.')
            .or_else(|| before.strip_suffix("->"))
        {
            // The longest end of the line that is an expression: brackets may be open before it.
            let starts = object.char_indices().map(|(at, _)| at);
            let mut parsed = starts.filter_map(|at| parse::parse(object.get(at..)?).ok());
            parsed
                .next()
                .map(|node| eval::members(self, &node))
                .unwrap_or_default()
        } else {
            let roots = ROOTS.iter().map(|(name, _)| (*name).to_owned());
            let functions = FUNCTIONS.iter().map(|(name, ..)| format!("{name}("));
            let members = self.json().as_object();
            let members = members.into_iter().flat_map(|m| m.keys().cloned());
            roots.chain(functions).chain(members).collect()
        };
        names = chosen(names, word);
        (start, names)
    }

    /// The names that a function's text can be.
    fn named(&self, function: &str) -> Vec<String> {
        let maps = || self.report().maps.iter().map(|map| map.name.clone());
        match function {
            "map" => maps().collect(),
            "task" => {
                let tasks = self.report().task_enrichments.iter();
                tasks.map(|task| task.comm.clone()).collect()
            }
            "var" => {
                let sections = self
                    .report()
                    .maps
                    .iter()
                    .filter_map(|map| map.value.as_ref());
                sections.flat_map(eval::rendered_names).collect()
            }
            "symbol" | "per_cpu" => {
                let table = self.kernel.and_then(Kernel::kallsyms);
                let names = table
                    .into_iter()
                    .flat_map(|t| (0..t.len()).filter_map(|i| t.name(i)));
                names.collect()
            }
            _ => Vec::new(),
        }
    }

    fn report(&self) -> &FailureDumpReport {
        self.report.get_or_init(|| match self.kernel {
            Some(kernel) => analysis::analyze(kernel, &self.options),
            None => FailureDumpReport::default(),
        })
    }

    /// The report as JSON.
    fn json(&self) -> &serde_json::Value {
        self.json
            .get_or_init(|| serde_json::to_value(self.report()).unwrap_or(serde_json::Value::Null))
    }
}

/// Completions of one word.
const MAX_CHOSEN: usize = 200;

/// Those that begin with `word`, in order.
fn chosen(mut names: Vec<String>, word: &str) -> Vec<String> {
    names.retain(|name| !name.is_empty() && name.starts_with(word));
    names.sort_unstable();
    names.dedup();
    names.truncate(MAX_CHOSEN);
    names
}

/// The function whose text a line ends in, and what there is of the text.
fn quoted(line: &str) -> Option<(&str, &str)> {
    let (before, text) = line.rsplit_once('"')?;
    // Within a text there is an odd number of quotation marks before.
    (before.matches('"').count() % 2 == 0).then_some(())?;
    let before = before.strip_suffix('(')?;
    let name = before
        .rsplit(|c: char| !c.is_alphanumeric() && c != '_')
        .next()?;
    Some((name, text))
}
