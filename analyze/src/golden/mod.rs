//! Golden reports: what a capture's report was when somebody looked at it and found it right.
//!
//! A scheduler's own repository tests its captures in three lines, with whatever compares texts:
//!
//! ```no_run
//! use scx_postmortem_analyze::golden::{Golden, Redaction};
//! let golden = Golden::open("captures/stall.core.zst").unwrap().redact(Redaction::ALL);
//! println!("{}", golden.text()); // insta::assert_snapshot!(golden.text());
//! ```
//!
//! The report of the same file is the same at each run, so nothing has to be redacted for that.
//! Redactions keep a golden report the same across captures of the same failure, and across versions
//! of the analyzer that only say the same in other words: a test chooses.
//!
//! `analyze golden check` does it for every capture in a folder ([`check`]).

pub mod check;
mod redact;

use std::path::Path;

use scx_postmortem_format::report::{DualFailureDumpReport, FailureDumpReportAny, reasons};
use serde_json::Value;

use crate::analysis::{self, Options};
use crate::degraded;
use crate::error::OpenError;
use crate::kernel::{Kernel, Overrides};
use crate::source::{Image, read_up_to_limit};
use crate::tables::{self, Fault};

/// What is replaced in a golden report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Redaction {
    /// Addresses of the kernel become names: of the task, map, queue or symbol that is there, else a
    /// number in the order in which they come.
    Addresses,
    /// Times since the boot become times before the capture.
    Times,
    /// The versions of the analyzer and the digest of the capture are left out.
    Versions,
}

impl Redaction {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Addresses, Self::Times, Self::Versions];

    /// Its name on the command line and in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Addresses => "addresses",
            Self::Times => "times",
            Self::Versions => "versions",
        }
    }

    /// The one with that name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|all| all.name() == name)
    }
}

/// A report that is to stay as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Golden {
    report: Value,
}

impl Golden {
    /// The report of a capture, a core, or a report's JSON.
    ///
    /// # Errors
    /// One sentence.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, String> {
        Self::open_with(path.as_ref(), None)
    }

    /// The same of a capture that was reduced without the kernel's tables.
    ///
    /// # Errors
    /// One sentence.
    pub fn open_with(path: &Path, kernel_tables: Option<&Path>) -> Result<Self, String> {
        Self::of(&report_of(path, kernel_tables, &Options::default())?)
    }

    /// A report that is there already.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn of(report: &FailureDumpReportAny) -> Result<Self, String> {
        let text = report.to_json().map_err(|e| e.to_string())?;
        let report = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        Ok(Self { report })
    }

    /// The same with these replaced.
    #[must_use]
    pub fn redact(mut self, redactions: &[Redaction]) -> Self {
        redact::apply(&mut self.report, redactions);
        self
    }

    /// The same without what is at a dotted path, of each half of a dual report.
    ///
    /// ```
    /// # use scx_postmortem_analyze::golden::Golden;
    /// # use scx_postmortem_format::report::{FailureDumpReport, FailureDumpReportAny};
    /// let report = FailureDumpReport::placeholder("the guest did not stop");
    /// let golden = Golden::of(&FailureDumpReportAny::from(report)).unwrap();
    /// let golden = golden.without("sdt_alloc_unavailable");
    /// assert!(golden.json().get("sdt_alloc_unavailable").is_none());
    /// ```
    #[must_use]
    pub fn without(mut self, path: &str) -> Self {
        remove(&mut self.report, path);
        for half in ["early", "late"] {
            if let Some(half) = self.report.get_mut(half) {
                remove(half, path);
            }
        }
        self
    }

    /// Only what is at a dotted path; null when nothing is.
    #[must_use]
    pub fn only(self, path: &str) -> Self {
        let found = path
            .split('.')
            .try_fold(&self.report, |value, name| value.get(name));
        Self {
            report: found.cloned().unwrap_or(Value::Null),
        }
    }

    /// The report as JSON, for `insta::assert_json_snapshot!` and for looking at parts of it.
    #[must_use]
    pub const fn json(&self) -> &Value {
        &self.report
    }

    /// The report as indented JSON, for `insta::assert_snapshot!`.
    #[must_use]
    pub fn text(&self) -> String {
        // Values of JSON can be written as JSON.
        serde_json::to_string_pretty(&self.report).unwrap_or_default()
    }
}

fn remove(value: &mut Value, path: &str) {
    let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
    let mut at = Some(value);
    for part in parent.split('.').filter(|part| !part.is_empty()) {
        at = at.and_then(|value| value.get_mut(part));
    }
    if let Some(Value::Object(members)) = at {
        members.remove(name);
    }
}

/// The report of a capture or core as the command makes it, or the one in a file of JSON.
///
/// # Errors
/// One sentence that names the file.
pub fn report_of(
    path: &Path,
    kernel_tables: Option<&Path>,
    options: &Options,
) -> Result<FailureDumpReportAny, String> {
    if is_json(path) {
        return read_report(path).map_err(|e| e.to_string());
    }
    let open = |early| match early {
        false => Image::open(path),
        true => Image::open_early(path),
    };
    let tables: Vec<&Path> = kernel_tables.into_iter().collect();
    let name = path.display().to_string();
    report_from(&name, Some(path), &open, &tables, options).map_err(|e| e.to_string())
}

/// Does what a capture is given to. A fault of ours that it leads to costs that capture alone.
pub(crate) fn guarded<T>(name: &str, work: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .map_err(|_| format!("{name}: the analyzer failed on it; please report that"))
}

/// The report in a file of JSON.
///
/// # Errors
/// [`OpenError::Io`] when it cannot be read, [`OpenError::Report`] when it is none.
pub fn read_report(path: &Path) -> Result<FailureDumpReportAny, OpenError> {
    let name = || path.display().to_string();
    let none = |cause: String| OpenError::Report {
        path: name(),
        cause,
    };
    let bytes = read_up_to_limit(path).map_err(|cause| OpenError::Io {
        path: name(),
        cause,
    })?;
    let bytes = bytes.map_err(none)?;
    let text = std::str::from_utf8(&bytes).map_err(|e| none(e.to_string()))?;
    FailureDumpReportAny::parse(text).map_err(|e| none(e.to_string()))
}

/// The report of an image as the command makes it: of both halves of a dual one, and the short one
/// of a capture that was given up. `open` opens the image, or with `true` its early half. Of the
/// tables those are taken that the image needs, else such ones as are beside `file`, where the image
/// is one ([`tables::complete`]).
///
/// # Errors
/// [`OpenError`].
pub fn report_from(
    name: &str,
    file: Option<&Path>,
    open: &dyn Fn(bool) -> Result<Image, OpenError>,
    kernel_tables: &[&Path],
    options: &Options,
) -> Result<FailureDumpReportAny, OpenError> {
    let image = open(false)?;
    if let Some(report) = degraded::report(&image) {
        return Ok(report.into());
    }
    let dual = image.early;
    let kernel_of = |image| kernel_of(name, file, image, kernel_tables);
    let late = kernel_of(image)?;
    if !dual {
        return Ok(analysis::analyze(&late, options).into());
    }
    let early = match open(true) {
        // That says nothing of the capture, whose report it would stay in.
        Err(unread @ OpenError::Io { .. }) => return Err(unread),
        early => early.map_err(|e| e.to_string()),
    };
    let early = early.and_then(|image| match degraded::report(&image) {
        Some(report) => Err(reasons::early_degraded(&report.reason)),
        None => kernel_of(image).map_err(|e| e.to_string()),
    });
    Ok(match early {
        Ok(early) => analysis::analyze_dual(&early, &late, options).into(),
        Err(why) => DualFailureDumpReport {
            early_skipped_reason: Some(why),
            ..DualFailureDumpReport::new(analysis::analyze(&late, options))
        }
        .into(),
    })
}

fn kernel_of(
    name: &str,
    file: Option<&Path>,
    image: Image,
    given: &[&Path],
) -> Result<Kernel, OpenError> {
    let image = tables::complete(image, given, file).map_err(|fault| {
        OpenError::Tables(match fault {
            Fault::Missing(why) => format!("{name}: {why}"),
            Fault::Unusable(why) => why,
        })
    })?;
    let warnings = image.warnings.clone();
    Kernel::find(image, &Overrides::default()).map_err(|why| {
        // Who asks for many reports, or for golden ones, has no such options.
        let why = match why.split_once("; supply ") {
            Some((cause, with)) => {
                format!("{cause}; look at it alone with `analyze FILE`, and supply {with}")
            }
            None => why,
        };
        // What is wrong with the file comes first: it explains the rest.
        let why = match warnings.as_slice() {
            [] => why,
            some => format!(
                "{}; copy the file again; for what is left: {why}",
                some.join("; ")
            ),
        };
        OpenError::NoKernel {
            path: name.to_owned(),
            why,
        }
    })
}

/// Whether the first byte of a file that is no white space begins a JSON object.
#[must_use]
pub fn is_json(file: &Path) -> bool {
    use std::io::Read;
    let mut start = [0; 64];
    let read = crate::source::open_regular(file).and_then(|mut file| file.read(&mut start));
    let start = start.get(..read.unwrap_or(0)).unwrap_or_default();
    start.trim_ascii_start().first() == Some(&b'{')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_early_half_that_cannot_be_read_now_is_not_said_to_be_unusable() {
        let findings = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/findings");
        let tables = findings.join("kernel-7.3.tables.zst");
        let capture = findings.join("fifo.core.zst");
        let report = |early: fn() -> OpenError| {
            let open = |is_early| match is_early {
                true => Err(early()),
                false => Image::open(&capture).map(|image| Image {
                    early: true,
                    ..image
                }),
            };
            report_from("fifo", None, &open, &[&tables], &Options::default())
        };
        let unread = report(|| OpenError::Io {
            path: "fifo".into(),
            cause: std::io::Error::other("the line is cut"),
        });
        assert_eq!(unread.unwrap_err().to_string(), "fifo: the line is cut");
        let damaged = report(|| OpenError::Capture {
            path: "fifo".into(),
            cause: "it is damaged".into(),
        });
        let FailureDumpReportAny::Dual(dual) = damaged.unwrap() else {
            panic!("it is a dual one");
        };
        assert_eq!(
            dual.early_skipped_reason.as_deref(),
            Some("fifo: it is damaged")
        );
    }
}
