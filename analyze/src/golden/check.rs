//! Every capture in a folder against the report beside it.
//!
//! `NAME.core.zst` has its golden report in `NAME.golden.json`: what was redacted or left out when
//! it was made, and the report. A check applies the same to today's report, and compares.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use scx_postmortem_format::capture::{AtomicFile, Existing};
use serde_json::{Map, Value};

use super::{Golden, Redaction, guarded, report_of};
use crate::analysis::Options;
use crate::folder::{Item, walk};
use crate::query::near::near;
use crate::source::read_whole;

/// How the names of captures end.
const CAPTURE: &str = ".core.zst";
/// How the names of golden reports end.
const GOLDEN: &str = ".golden.json";
/// Captures of one folder.
const MAX_CAPTURES: usize = 1 << 20;
/// Changes of one report that are listed.
const MAX_CHANGES: usize = 40;
/// Characters of a value that are shown.
const MAX_CHARS: usize = 100;

/// What is redacted and left out when golden reports are made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// What is replaced.
    pub redactions: BTreeSet<Redaction>,
    /// Dotted paths that are left out.
    pub without: Vec<String>,
}

impl Settings {
    fn to_json(&self) -> Value {
        let names = self.redactions.iter().map(|r| r.name());
        serde_json::json!({
            "redact": names.collect::<Vec<_>>(),
            "without": self.without,
        })
    }

    fn of_json(json: &Value) -> Result<Self, String> {
        let strings = |name: &str| {
            let list = json.get(name).and_then(Value::as_array);
            let list = list.map(Vec::as_slice).unwrap_or_default();
            list.iter().filter_map(Value::as_str)
        };
        let redactions = strings("redact").map(|name| {
            Redaction::of_name(name).ok_or_else(|| {
                format!("it redacts {name:?}, which this version does not know; use a newer one")
            })
        });
        Ok(Self {
            redactions: redactions.collect::<Result<_, _>>()?,
            without: strings("without").map(str::to_owned).collect(),
        })
    }

    fn golden(&self, path: &Path, kernel_tables: Option<&Path>) -> Result<Value, String> {
        let report = report_of(path, kernel_tables, &Options::default())?;
        let redactions: Vec<Redaction> = self.redactions.iter().copied().collect();
        let golden = Golden::of(&report)?;
        drop(report);
        let golden = golden.redact(&redactions);
        let golden = self
            .without
            .iter()
            .fold(golden, |golden, path| golden.without(path));
        Ok(golden.report)
    }
}

/// What came of one capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The report is the golden one.
    Same,
    /// It is not: what differs, and how many differences there are.
    Differs(String, usize),
    /// There is no golden report yet.
    Missing,
    /// The golden report was written, because it was not there or differed.
    Written,
    /// The capture or its golden report could not be read or written.
    Failed(String),
}

/// One capture and what came of it.
#[derive(Debug, Clone)]
pub struct Case {
    /// The capture, below the folder.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took.
    pub time: Duration,
}

/// What to do with the reports.
#[derive(Debug, Clone)]
pub enum Task {
    /// Compare each with its golden one.
    Check,
    /// Write each as its golden one.
    Bless(Given),
}

/// What is asked for when golden reports are made. What is not stays as the golden report has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// What is to be replaced. A new golden report has its versions replaced.
    pub redactions: Option<BTreeSet<Redaction>>,
    /// Dotted paths that are to be left out. Of a new golden report none are.
    pub without: Option<Vec<String>>,
}

impl Given {
    /// The settings of a golden report that has `old` ones, or is new.
    fn over(&self, old: Option<Settings>) -> Settings {
        let old = old.unwrap_or_else(|| Settings {
            redactions: BTreeSet::from([Redaction::Versions]),
            without: Vec::new(),
        });
        Settings {
            redactions: self.redactions.clone().unwrap_or(old.redactions),
            without: self.without.clone().unwrap_or(old.without),
        }
    }
}

/// The first of some dotted paths that is in the report of none of the captures, and paths that may
/// have been meant. What is empty is left out of a report, so one capture that has it is enough;
/// without any report nothing can be told.
#[must_use]
pub fn unknown_path(
    captures: &[PathBuf],
    paths: &[String],
    kernel_tables: Option<&Path>,
) -> Option<(String, Vec<String>)> {
    let mut left: Vec<(String, Vec<String>)> = paths
        .iter()
        .map(|path| (path.clone(), Vec::new()))
        .collect();
    let mut any = false;
    for capture in captures {
        if left.is_empty() {
            break;
        }
        let name = capture.display().to_string();
        let make = || report_of(capture, kernel_tables, &Options::default());
        let report = guarded(&name, make).and_then(|report| report);
        let Ok(golden) = report.and_then(|report| Golden::of(&report)) else {
            continue;
        };
        any = true;
        left.retain_mut(|(path, meant)| {
            let halves = ["early", "late"].map(|half| golden.report.get(half));
            for root in std::iter::once(Some(&golden.report))
                .chain(halves)
                .flatten()
            {
                match look_up(root, path) {
                    Ok(()) => return false,
                    Err(names) if meant.is_empty() => *meant = names,
                    Err(_) => {}
                }
            }
            true
        });
    }
    left.into_iter().next().filter(|_| any)
}

/// Whether a dotted path is in a report; if not, paths that are.
fn look_up(report: &Value, path: &str) -> Result<(), Vec<String>> {
    let mut at = report;
    let mut before = String::new();
    for part in path.split('.') {
        let Some(next) = at.get(part) else {
            let names = at.as_object().into_iter().flat_map(|all| all.keys());
            let names = near(part, names).into_iter();
            return Err(names.map(|name| format!("{before}{name}")).collect());
        };
        at = next;
        before = format!("{before}{part}.");
    }
    Ok(())
}

/// The captures below a folder, by name, also those of which only the golden report is left: that
/// one is not passed over.
///
/// # Errors
/// When a folder cannot be read, or there are more than are checked at once.
pub fn captures(dir: &Path) -> Result<Vec<PathBuf>, String> {
    if dir.is_file() {
        return Err(format!(
            "{}: it is a file; give the folder that it is in, all captures below are looked at",
            dir.display()
        ));
    }
    let mut found = BTreeSet::new();
    walk(dir, &mut |item| {
        let path = match item {
            Item::File(path) => path,
            Item::Unread(_, why) => return Err(why),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(CAPTURE) {
            found.insert(path);
        } else if let Some(stem) = name.strip_suffix(GOLDEN) {
            found.insert(path.with_file_name(format!("{stem}{CAPTURE}")));
        }
        match found.len() {
            0..=MAX_CAPTURES => Ok(()),
            _ => Err(format!(
                "{}: more than {MAX_CAPTURES} captures are below it; check its folders one by one",
                dir.display()
            )),
        }
    })?;
    Ok(found.into_iter().collect())
}

/// Runs a task over captures, `jobs` at a time, each with one thread: what one capture needs is
/// gone before the next one is opened, so that memory does not grow with their number. `done` is
/// told of each.
#[must_use]
pub fn run(
    dir: &Path,
    captures: &[PathBuf],
    task: &Task,
    kernel_tables: Option<&Path>,
    jobs: usize,
    done: &(dyn Fn(usize) + Sync),
) -> Vec<Case> {
    let work = |path: &Path| one(path, task, kernel_tables);
    each(dir, captures, jobs, &work, done)
}

fn each(
    dir: &Path,
    captures: &[PathBuf],
    jobs: usize,
    work: &(dyn Fn(&Path) -> Result<Outcome, String> + Sync),
    done: &(dyn Fn(usize) + Sync),
) -> Vec<Case> {
    let next = AtomicUsize::new(0);
    let finished = AtomicUsize::new(0);
    let cases: Mutex<Vec<(usize, Case)>> = Mutex::new(Vec::with_capacity(captures.len()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, captures.len().max(1)) {
            scope.spawn(|| {
                // One thread for the walkers: captures are what runs in parallel here.
                let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(path) = captures.get(index) else {
                        break;
                    };
                    let began = Instant::now();
                    let name = path.strip_prefix(dir).unwrap_or(path);
                    let name = name.display().to_string();
                    let work = || guarded(&name, || work(path)).and_then(|outcome| outcome);
                    let outcome = match &pool {
                        Ok(pool) => pool.install(work),
                        Err(_) => work(),
                    };
                    let case = Case {
                        name,
                        outcome: outcome.unwrap_or_else(Outcome::Failed),
                        time: began.elapsed(),
                    };
                    if let Ok(mut cases) = cases.lock() {
                        cases.push((index, case));
                    }
                    done(finished.fetch_add(1, Ordering::Relaxed) + 1);
                }
            });
        }
    });
    let mut cases = cases.into_inner().unwrap_or_default();
    cases.sort_by_key(|&(index, _)| index);
    cases.into_iter().map(|(_, case)| case).collect()
}

/// Where the golden report of a capture is.
#[must_use]
pub fn golden_path(capture: &Path) -> PathBuf {
    let name = capture.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(CAPTURE).unwrap_or(&name);
    capture.with_file_name(format!("{stem}{GOLDEN}"))
}

fn one(path: &Path, task: &Task, kernel_tables: Option<&Path>) -> Result<Outcome, String> {
    let beside = golden_path(path);
    let wanted = match std::fs::exists(&beside) {
        Ok(true) => Some(read_golden(&beside)),
        Ok(false) => None,
        Err(e) => return Err(format!("{}: {e}", beside.display())),
    };
    if wanted.is_some() && std::fs::exists(path).is_ok_and(|exists| !exists) {
        return Err(format!(
            "{}: there is a golden report, and the capture beside it is gone; bring it back, or remove the report",
            beside.display()
        ));
    }
    match task {
        Task::Check => {
            let Some(wanted) = wanted else {
                return Ok(Outcome::Missing);
            };
            let (settings, wanted) = wanted?;
            let found = settings.golden(path, kernel_tables)?;
            if found == wanted {
                return Ok(Outcome::Same);
            }
            let mut changes = Changes::default();
            changes.compare("", &wanted, &found, 0);
            Ok(Outcome::Differs(changes.text(), changes.count))
        }
        Task::Bless(given) => {
            let old = match &wanted {
                Some(Ok((old, _))) => Some(old.clone()),
                Some(Err(why)) if given.redactions.is_none() || given.without.is_none() => {
                    return Err(format!(
                        "{why}; so what it replaces and leaves out is not known: say it with --redact and --without, or remove the file"
                    ));
                }
                Some(Err(_)) | None => None,
            };
            let settings = &given.over(old);
            let found = settings.golden(path, kernel_tables)?;
            if let Some(Ok((old, wanted))) = &wanted
                && old == settings
                && *wanted == found
            {
                return Ok(Outcome::Same);
            }
            write_golden(&beside, settings, found)?;
            Ok(Outcome::Written)
        }
    }
}

fn read_golden(path: &Path) -> Result<(Settings, Value), String> {
    let say = |why: String| format!("{}: {why}", path.display());
    let bytes = read_whole(path)?;
    let mut json: Value = serde_json::from_slice(&bytes).map_err(|e| say(e.to_string()))?;
    drop(bytes);
    let settings = json
        .get("golden")
        .ok_or_else(|| say("no golden report: it has no member \"golden\"".to_owned()))?;
    let settings = Settings::of_json(settings).map_err(say)?;
    let report = json.get_mut("report").map(Value::take);
    let report = report.ok_or_else(|| say("it has no member \"report\"".to_owned()))?;
    Ok((settings, report))
}

fn write_golden(path: &Path, settings: &Settings, report: Value) -> Result<(), String> {
    let mut whole = Map::new();
    whole.insert("golden".to_owned(), settings.to_json());
    whole.insert("report".to_owned(), report);
    let write = || -> Result<(), Box<dyn std::error::Error>> {
        let mut file = AtomicFile::create(path, Existing::Replace)?;
        let mut out = std::io::BufWriter::new(file.file());
        serde_json::to_writer_pretty(&mut out, &whole)?;
        std::io::Write::write_all(&mut out, b"\n")?;
        std::io::Write::flush(&mut out)?;
        drop(out);
        file.commit()?;
        Ok(())
    };
    write().map_err(|e| format!("{}: {e}", path.display()))
}

/// Differences, each with its path.
#[derive(Default)]
struct Changes {
    lines: Vec<String>,
    count: usize,
}

impl Changes {
    fn text(&self) -> String {
        let mut text = self.lines.join("\n");
        if let Some(more @ 1..) = self.count.checked_sub(self.lines.len()) {
            let _ = write!(text, "\nand {more} more differences");
        }
        text
    }

    fn note(&mut self, path: &str, was: Option<&Value>, now: Option<&Value>) {
        self.count += 1;
        if self.lines.len() >= MAX_CHANGES {
            return;
        }
        let path = if path.is_empty() { "the report" } else { path };
        let line = match (was, now) {
            (Some(was), Some(now)) => format!("{path}\n  - {}\n  + {}", short(was), short(now)),
            (Some(was), None) => format!("{path}\n  - {}", short(was)),
            (None, now) => format!("{path}\n  + {}", now.map_or_else(String::new, short)),
        };
        self.lines.push(line);
    }

    fn compare(&mut self, path: &str, was: &Value, now: &Value, depth: usize) {
        if was == now {
            return;
        }
        let dot = if path.is_empty() { "" } else { "." };
        match (was, now) {
            _ if depth > 64 => self.note(path, Some(was), Some(now)),
            (Value::Object(was), Value::Object(now)) => {
                for (name, was) in was {
                    let path = format!("{path}{dot}{name}");
                    match now.get(name) {
                        Some(now) => self.compare(&path, was, now, depth + 1),
                        None => self.note(&path, Some(was), None),
                    }
                }
                for (name, now) in now {
                    if !was.contains_key(name) {
                        self.note(&format!("{path}{dot}{name}"), None, Some(now));
                    }
                }
            }
            (Value::Array(was), Value::Array(now)) => self.lists(path, was, now, depth),
            (was, now) => self.note(path, Some(was), Some(now)),
        }
    }

    /// Lists of one length element by element; of others what is the same at both ends is left out.
    fn lists(&mut self, path: &str, was: &[Value], now: &[Value], depth: usize) {
        if was.len() == now.len() {
            for (i, (was, now)) in was.iter().zip(now).enumerate() {
                self.compare(&format!("{path}[{i}]"), was, now, depth + 1);
            }
            return;
        }
        let same = |(a, b): &(&Value, &Value)| a == b;
        let start = was.iter().zip(now).take_while(same).count();
        let room = was.len().min(now.len()) - start;
        let ends = was.iter().rev().zip(now.iter().rev());
        let end = ends.take_while(same).count().min(room);
        let middle = |list: &'_ [Value]| start..list.len() - end;
        for (i, value) in was.iter().enumerate() {
            if middle(was).contains(&i) {
                self.note(&format!("{path}[{i}]"), Some(value), None);
            }
        }
        for (i, value) in now.iter().enumerate() {
            if middle(now).contains(&i) {
                self.note(&format!("{path}[{i}]"), None, Some(value));
            }
        }
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= MAX_CHARS {
        return text;
    }
    let mut cut: String = text.chars().take(MAX_CHARS).collect();
    cut.push('…');
    cut
}

/// The cases as JUnit XML, which CI systems show.
#[must_use]
pub fn junit(cases: &[Case], time: Duration) -> String {
    let count = |of: fn(&Outcome) -> bool| cases.iter().filter(|c| of(&c.outcome)).count();
    let failures = count(|o| matches!(o, Outcome::Differs(..) | Outcome::Missing));
    let errors = count(|o| matches!(o, Outcome::Failed(_)));
    let counts = format!(
        "tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\" time=\"{:.3}\"",
        cases.len(),
        time.as_secs_f64()
    );
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites {counts}>\n  <testsuite name=\"golden\" {counts}>\n"
    );
    for case in cases {
        let _ = write!(
            xml,
            "    <testcase classname=\"golden\" name=\"{}\" time=\"{:.3}\"",
            escaped(&case.name),
            case.time.as_secs_f64()
        );
        let inner = match &case.outcome {
            Outcome::Same | Outcome::Written => None,
            Outcome::Differs(text, count) => {
                Some(("failure", format!("{count} differences"), text.as_str()))
            }
            Outcome::Missing => Some(("failure", "no golden report".to_owned(), "")),
            Outcome::Failed(why) => Some(("error", "failed".to_owned(), why.as_str())),
        };
        let _ = match inner {
            None => writeln!(xml, "/>"),
            Some((tag, message, text)) => writeln!(
                xml,
                ">\n      <{tag} message=\"{}\">{}</{tag}>\n    </testcase>",
                escaped(&message),
                escaped(text)
            ),
        };
    }
    xml.push_str("  </testsuite>\n</testsuites>\n");
    xml
}

/// Text that XML takes; characters that it cannot have become `?`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            '\u{fffe}' | '\u{ffff}' => out.push('?'),
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changes(was: &Value, now: &Value) -> (String, usize) {
        let mut changes = Changes::default();
        changes.compare("", was, now, 0);
        (changes.text(), changes.count)
    }

    #[test]
    fn each_difference_is_told_with_its_path() {
        let was = json!({"a": {"b": [1, 2, 3]}, "gone": true, "list": [1, 2, 3, 4]});
        let now = json!({"a": {"b": [1, 5, 3]}, "new": "x", "list": [1, 9, 3, 3, 4]});
        let (text, count) = changes(&was, &now);
        assert_eq!(
            text,
            "a.b[1]\n  - 2\n  + 5\ngone\n  - true\nlist[1]\n  - 2\nlist[1]\n  + 9\nlist[2]\n  + 3\nnew\n  + \"x\""
        );
        assert_eq!(count, 6);
    }

    #[test]
    fn many_differences_are_counted() {
        let was: Value = (0..100).collect();
        let now: Value = (100..200).collect();
        let (text, count) = changes(&was, &now);
        assert_eq!(count, 100);
        assert!(text.ends_with("and 60 more differences"), "{text}");
    }

    #[test]
    fn a_fault_of_ours_costs_that_capture_alone() {
        let names = ["a.core.zst", "b.core.zst", "c.core.zst"].map(PathBuf::from);
        let work = |path: &Path| {
            assert_ne!(path, Path::new("b.core.zst"));
            Ok(Outcome::Same)
        };
        let cases = each(Path::new(""), &names, 2, &work, &|_| ());
        let outcomes: Vec<_> = cases.into_iter().map(|case| case.outcome).collect();
        let failed = "b.core.zst: the analyzer failed on it; please report that".to_owned();
        assert_eq!(
            outcomes,
            [Outcome::Same, Outcome::Failed(failed), Outcome::Same]
        );
    }

    #[test]
    fn what_a_report_holds_cannot_break_the_xml() {
        let case = Case {
            name: "a<b>&\".core.zst".into(),
            outcome: Outcome::Differs("x\n  - \"\u{1b}[2J\"".into(), 1),
            time: Duration::from_millis(1500),
        };
        let xml = junit(&[case], Duration::from_secs(2));
        assert!(xml.contains("name=\"a&lt;b&gt;&amp;&quot;.core.zst\" time=\"1.500\">"));
        assert!(
            xml.contains("<failure message=\"1 differences\">x\n  - &quot;?[2J&quot;</failure>")
        );
        assert!(xml.contains("tests=\"1\" failures=\"1\" errors=\"0\" time=\"2.000\""));
    }
}
