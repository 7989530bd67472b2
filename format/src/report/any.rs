//! Reading a report without knowing which of the three it is.

use std::fmt;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::error::Category;

use super::dump::{
    DegradedFailureDumpReport, DualFailureDumpReport, FailureDumpReport, SCHEMA_DEGRADED,
    SCHEMA_DUAL, SCHEMA_SINGLE,
};
use super::postmortem::POSTMORTEM_VERSION;

/// One of the three reports. More shapes may come, so matches need a wildcard.
///
/// Its `Display` is that of the report inside.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum FailureDumpReportAny {
    /// `"single"`: one capture.
    Single(Box<FailureDumpReport>),
    /// `"dual"`: an early and a late capture.
    Dual(Box<DualFailureDumpReport>),
    /// `"degraded"`: a capture that was given up.
    Degraded(Box<DegradedFailureDumpReport>),
}

/// Why a text is not a report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The text is not JSON.
    #[error("the report is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// The outermost value has no member `schema` that is a string.
    #[error("the report has no \"schema\" member that names its shape")]
    NoSchema,
    /// The value of `schema` is none that this version knows.
    #[error("the report has the unknown schema {0:?}")]
    UnknownSchema(String),
    /// The members do not fit the shape that `schema` names, or are nested deeper than serde_json
    /// reads (128 levels).
    #[error("the report does not fit its schema \"{schema}\"")]
    Shape {
        /// The value of `schema`.
        schema: &'static str,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// What this project adds to the shared format is of a version that came later, in which members
    /// may mean something else.
    #[error(
        "the report's `postmortem` has version {found}, this program reads up to {supported}; use a release that reads version {found}"
    )]
    NewerVersion {
        /// Its version.
        found: u32,
        /// The highest version that this program reads.
        supported: u32,
    },
    /// The report could not be written as JSON.
    #[error("the report cannot be written as JSON")]
    Write(#[source] serde_json::Error),
}

impl ReportError {
    /// A short stable name for this kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotJson(_) => "not_json",
            Self::NoSchema => "no_schema",
            Self::UnknownSchema(_) => "unknown_schema",
            Self::Shape { .. } => "shape",
            Self::NewerVersion { .. } => "newer_version",
            Self::Write(_) => "write",
        }
    }
}

impl FailureDumpReportAny {
    /// Reads a report of any shape. Whatever is wrong with the text, the answer is `None`; use
    /// [`parse`](Self::parse) for the cause.
    pub fn from_json(json: &str) -> Option<Self> {
        Self::parse(json).ok()
    }

    /// Reads a report of any shape, or says why it cannot.
    ///
    /// The outermost `schema` alone decides the shape: a report without one is not taken for a
    /// single report, because that would quietly drop the wrapper of a richer shape. The
    /// `schema` of the reports inside a dual report must be there but is not compared.
    pub fn parse(json: &str) -> Result<Self, ReportError> {
        let SchemaOf(schema) = serde_json::from_str(json).map_err(|error| {
            if error.classify() == Category::Data {
                ReportError::NoSchema
            } else {
                ReportError::NotJson(error)
            }
        })?;
        let Some(Value::String(schema)) = schema else {
            return Err(ReportError::NoSchema);
        };
        let parsed = match schema.as_str() {
            SCHEMA_SINGLE => shape(json, SCHEMA_SINGLE).map(Self::Single),
            SCHEMA_DUAL => shape(json, SCHEMA_DUAL).map(Self::Dual),
            SCHEMA_DEGRADED => shape(json, SCHEMA_DEGRADED).map(Self::Degraded),
            _ => return Err(ReportError::UnknownSchema(schema)),
        };
        let found = match &parsed {
            Ok(report) => report.version(),
            // A later version is the better explanation of what does not fit.
            Err(_) => serde_json::from_str(json).map_or(0, |v: Versioned| v.highest()),
        };
        if found > POSTMORTEM_VERSION {
            return Err(ReportError::NewerVersion {
                found,
                supported: POSTMORTEM_VERSION,
            });
        }
        parsed
    }

    /// The highest version of what this project adds, 0 without any.
    fn version(&self) -> u32 {
        let of =
            |report: &FailureDumpReport| report.postmortem.as_ref().map_or(0, |own| own.version);
        match self {
            Self::Single(report) => of(report),
            Self::Dual(report) => of(&report.late).max(report.early.as_ref().map_or(0, of)),
            Self::Degraded(_) => 0,
        }
    }

    /// The value of the report's `schema` member, by shape.
    pub fn schema(&self) -> &'static str {
        match self {
            Self::Single(_) => SCHEMA_SINGLE,
            Self::Dual(_) => SCHEMA_DUAL,
            Self::Degraded(_) => SCHEMA_DEGRADED,
        }
    }

    /// The report as it goes into a file: one line of JSON, no newline at its end.
    pub fn to_json(&self) -> Result<String, ReportError> {
        match self {
            Self::Single(report) => serde_json::to_string(report),
            Self::Dual(report) => serde_json::to_string(report),
            Self::Degraded(report) => serde_json::to_string(report),
        }
        .map_err(ReportError::Write)
    }

    /// The same report with the same order of members, indented for people and for reviews.
    pub fn to_json_pretty(&self) -> Result<String, ReportError> {
        match self {
            Self::Single(report) => serde_json::to_string_pretty(report),
            Self::Dual(report) => serde_json::to_string_pretty(report),
            Self::Degraded(report) => serde_json::to_string_pretty(report),
        }
        .map_err(ReportError::Write)
    }
}

/// The versions in a report of any shape, and nothing else of it.
#[derive(Deserialize)]
struct Versioned {
    postmortem: Option<VersionOf>,
    early: Option<Half>,
    late: Option<Half>,
}

#[derive(Deserialize)]
struct Half {
    postmortem: Option<VersionOf>,
}

#[derive(Deserialize)]
struct VersionOf {
    version: u32,
}

impl Versioned {
    fn highest(&self) -> u32 {
        let halves = [&self.early, &self.late].into_iter().flatten();
        let halves = halves.filter_map(|half| half.postmortem.as_ref());
        let all = halves.chain(&self.postmortem);
        all.map(|own| own.version).max().unwrap_or(0)
    }
}

/// The member `schema` of an object. The rest is checked to be JSON and not kept: a report can hold
/// many megabytes of arena pages.
struct SchemaOf(Option<Value>);

impl<'de> Deserialize<'de> for SchemaOf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SchemaVisitor).map(Self)
    }
}

struct SchemaVisitor;

impl<'de> Visitor<'de> for SchemaVisitor {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut schema = None;
        while let Some(name) = members.next_key::<String>()? {
            if name == "schema" {
                schema = Some(members.next_value()?);
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(schema)
    }
}

fn shape<T: DeserializeOwned>(json: &str, schema: &'static str) -> Result<Box<T>, ReportError> {
    serde_json::from_str(json)
        .map(Box::new)
        .map_err(|source| ReportError::Shape { schema, source })
}

impl From<FailureDumpReport> for FailureDumpReportAny {
    fn from(report: FailureDumpReport) -> Self {
        Self::Single(Box::new(report))
    }
}

impl From<DualFailureDumpReport> for FailureDumpReportAny {
    fn from(report: DualFailureDumpReport) -> Self {
        Self::Dual(Box::new(report))
    }
}

impl From<DegradedFailureDumpReport> for FailureDumpReportAny {
    fn from(report: DegradedFailureDumpReport) -> Self {
        Self::Degraded(Box::new(report))
    }
}
