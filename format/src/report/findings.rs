//! What a person should look at first.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One answer to "why", with what it rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Finding {
    /// The rule that found it, e.g. `queue-never-consumed`.
    pub rule: String,
    /// What was found, a sentence.
    pub what: String,
    /// `certain` (the image proves it), `likely` (it fits and nothing speaks against it) or
    /// `possible` (it fits, and so may something else).
    pub confidence: String,
    /// What to look at next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// What the finding rests on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<FindingEvidence>,
}

/// One fact of a finding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct FindingEvidence {
    /// Where it is in the report, as a JSON pointer (RFC 6901): `/postmortem/dsqs/1/seq`.
    pub path: String,
    /// What stands there.
    pub value: String,
}
