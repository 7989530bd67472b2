//! Numbers that are really pointers, as the programs' own instructions tell.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bpf_maps::NamedId;
use super::omit::zero_u64;

/// What was recovered about integers that hold pointers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RecoveredPointers {
    /// Programs whose instructions were followed.
    pub programs: u64,
    /// Their instructions.
    pub instructions: u64,
    /// Programs that could not be read: what they do may speak against what is here.
    #[serde(skip_serializing_if = "zero_u64")]
    pub unread_programs: u64,
    /// Integers shown as pointers (`cast_annotation`), by BTF, struct and offset.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pointers: Vec<RecoveredPointer>,
    /// Integers that hold a pointer at some place in the programs and something else at another:
    /// shown as the integers that they are declared as.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contradicted: Vec<RecoveredPointer>,
}

/// One integer, in all values of its struct.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RecoveredPointer {
    /// The id of the BTF that declares it.
    pub btf_id: u32,
    /// The innermost struct that it is in, or its section.
    pub parent: String,
    /// Its name there.
    pub member: String,
    /// Its offset there, bytes.
    pub offset: u32,
    /// What it points to. Absent when only the address space is known, or when it is
    /// contradicted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// `arena` or `kernel`, where the programs expect it to lead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub space: Option<String>,
    /// What shows it: an instruction of each kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<CastEvidence>,
}

/// An instruction that tells of an integer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CastEvidence {
    /// What happens: `pointer stored`, `used as`, `followed`, `compared with`, `copied from`, or
    /// against it `number stored`, `arithmetic`.
    pub what: String,
    /// The type or place that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The program.
    pub prog: NamedId,
    /// Its instruction, counted in slots of 8 bytes after verification.
    pub insn: u32,
    /// File and line, where the program has line information.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}
