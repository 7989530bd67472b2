//! Typed values: what the bytes of a map, a variable or an allocation mean.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// A value read from the guest, decoded by its BTF type.
///
/// On the wire it is an object whose member `kind` names the variant. The set of kinds is closed:
/// a reader refuses a whole report over an unknown one, so new kinds cannot be added.
///
/// Values nest. serde_json reads at most 128 levels, so whoever builds one keeps it well below
/// that ([`json_depth`](Self::json_depth) counts).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RenderedValue {
    /// A signed integer.
    Int {
        /// Width in bits.
        bits: u32,
        /// The value, sign-extended.
        value: i64,
    },
    /// An unsigned integer.
    Uint {
        /// Width in bits.
        bits: u32,
        /// The value.
        value: u64,
    },
    /// A boolean.
    Bool {
        /// The value.
        value: bool,
    },
    /// A one-byte character.
    Char {
        /// The byte.
        value: u8,
    },
    /// A floating-point number.
    Float {
        /// 32 or 64.
        bits: u32,
        /// The value. JSON has no NaN and no infinities: they are written as null, and null is
        /// read as NaN.
        #[serde(deserialize_with = "float_or_null")]
        #[schemars(extend("type" = ["number", "null"]))]
        value: f64,
    },
    /// An enumerator.
    Enum {
        /// Width in bits.
        bits: u32,
        /// The value's bit pattern; for an unsigned enum read it as u64.
        value: i64,
        /// The enumerator's name. Null, never left out, when no name has this value.
        variant: Option<String>,
        /// The enum is signed. Taken for false when it is not there.
        #[serde(default)]
        is_signed: bool,
    },
    /// A structure, a union or a data section. The members of a union all show the same bytes.
    Struct {
        /// The type's name. Null, never left out, for an anonymous type.
        type_name: Option<String>,
        /// The members, in the order of the type.
        members: Vec<RenderedMember>,
    },
    /// An array.
    Array {
        /// How many elements the type declares.
        len: u64,
        /// The elements; fewer than `len` when they were cut off.
        elements: Vec<RenderedValue>,
    },
    /// A CPU mask.
    CpuList {
        /// The CPUs as a range list, `0-2,5`; empty for no CPU.
        cpus: String,
    },
    /// A pointer.
    Ptr {
        /// The address.
        value: u64,
        /// What it points to. Absent when it was not followed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deref: Option<Box<RenderedValue>>,
        /// Why it was not followed. Absent together with `deref`: nobody tried.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deref_skipped_reason: Option<String>,
        /// How it was known to be a pointer, when the type does not say so: one of the
        /// `CAST_…` strings of [`reasons`](super::reasons).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cast_annotation: Option<Cow<'static, str>>,
        /// The symbol that the address lies in, `function+0x12/0x34`. Our addition to the shared
        /// format. Absent when none does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        symbol: Option<String>,
    },
    /// Bytes without a type.
    Bytes {
        /// The bytes as [`hex_string`](super::hex_string) writes them; for a section of string
        /// literals, escaped ASCII instead.
        hex: String,
    },
    /// The bytes ended before the value did.
    Truncated {
        /// Bytes that the type takes.
        needed: u64,
        /// Bytes that there were.
        had: u64,
        /// What could be decoded from them.
        partial: Box<RenderedValue>,
    },
    /// Something that cannot be shown.
    Unsupported {
        /// Why.
        reason: String,
    },
}

/// A member of a structure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RenderedMember {
    /// The member's name; empty for an anonymous one.
    pub name: String,
    /// Its value.
    pub value: RenderedValue,
}

impl RenderedMember {
    /// A member.
    pub fn new(name: impl Into<String>, value: RenderedValue) -> Self {
        Self {
            name: name.into(),
            value,
        }
    }
}

fn float_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl RenderedValue {
    /// A pointer that was not followed.
    pub fn ptr(value: u64) -> Self {
        Self::Ptr {
            value,
            deref: None,
            deref_skipped_reason: None,
            cast_annotation: None,
            symbol: None,
        }
    }

    /// The value behind followed pointers and around which the input ended: what the members and
    /// elements below are looked up in.
    fn inner(&self) -> &Self {
        let mut value = self;
        loop {
            value = match value {
                Self::Ptr {
                    deref: Some(target),
                    ..
                } => target,
                Self::Truncated { partial, .. } => partial,
                _ => return value,
            };
        }
    }

    /// The first member with this name. Looks through followed pointers and truncation.
    pub fn member(&self, name: &str) -> Option<&Self> {
        match self.inner() {
            Self::Struct { members, .. } => {
                members.iter().find(|m| m.name == name).map(|m| &m.value)
            }
            _ => None,
        }
    }

    /// The element at this position. Looks through followed pointers and truncation.
    pub fn index(&self, i: usize) -> Option<&Self> {
        self.elements()?.get(i)
    }

    /// The member reached by names with dots between them; the value itself for an empty path.
    /// A path with an empty name in it leads nowhere.
    pub fn get(&self, path: &str) -> Option<&Self> {
        if path.is_empty() {
            return Some(self);
        }
        path.split('.').try_fold(self, |value, name| {
            (!name.is_empty()).then(|| value.member(name))?
        })
    }

    /// The elements of an array. Looks through followed pointers and truncation.
    pub fn elements(&self) -> Option<&[Self]> {
        match self.inner() {
            Self::Array { elements, .. } => Some(elements),
            _ => None,
        }
    }

    /// The value as an unsigned number: integers and signed enums that are not negative,
    /// unsigned enums by bit pattern, booleans, characters, addresses.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Uint { value, .. } | Self::Ptr { value, .. } => Some(*value),
            Self::Int { value, .. } => u64::try_from(*value).ok(),
            Self::Enum {
                value, is_signed, ..
            } => {
                if *is_signed {
                    u64::try_from(*value).ok()
                } else {
                    Some(value.cast_unsigned())
                }
            }
            Self::Bool { value } => Some(u64::from(*value)),
            Self::Char { value } => Some(u64::from(*value)),
            _ => None,
        }
    }

    /// The value as a signed number: integers that fit, enums by bit pattern, booleans,
    /// characters.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int { value, .. } | Self::Enum { value, .. } => Some(*value),
            Self::Uint { value, .. } => i64::try_from(*value).ok(),
            Self::Bool { value } => Some(i64::from(*value)),
            Self::Char { value } => Some(i64::from(*value)),
            _ => None,
        }
    }

    /// The value as a floating-point number: floats, integers and enums, rounded if need be.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float { value, .. } => Some(*value),
            Self::Int { value, .. } => Some(*value as f64),
            Self::Uint { value, .. } => Some(*value as f64),
            Self::Enum {
                value, is_signed, ..
            } => Some(if *is_signed {
                *value as f64
            } else {
                value.cast_unsigned() as f64
            }),
            _ => None,
        }
    }

    /// The value as a truth value: booleans; integers, characters, enums and addresses are true
    /// when they are not 0.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool { value } => Some(*value),
            Self::Uint { value, .. } | Self::Ptr { value, .. } => Some(*value != 0),
            Self::Int { value, .. } | Self::Enum { value, .. } => Some(*value != 0),
            Self::Char { value } => Some(*value != 0),
            _ => None,
        }
    }

    /// Every element [as u64](Self::as_u64), or `None` if one of them is not.
    pub fn as_u64_array(&self) -> Option<Vec<u64>> {
        self.elements()?.iter().map(Self::as_u64).collect()
    }

    /// Every element as u32, or `None` if one of them does not fit.
    pub fn as_u32_array(&self) -> Option<Vec<u32>> {
        self.elements()?
            .iter()
            .map(|element| u32::try_from(element.as_u64()?).ok())
            .collect()
    }

    /// Every element [as i64](Self::as_i64), or `None` if one of them is not.
    pub fn as_i64_array(&self) -> Option<Vec<i64>> {
        self.elements()?.iter().map(Self::as_i64).collect()
    }

    /// Every element [as f64](Self::as_f64), or `None` if one of them is not.
    pub fn as_f64_array(&self) -> Option<Vec<f64>> {
        self.elements()?.iter().map(Self::as_f64).collect()
    }

    /// Every element [as bool](Self::as_bool), or `None` if one of them is not.
    pub fn as_bool_array(&self) -> Option<Vec<bool>> {
        self.elements()?.iter().map(Self::as_bool).collect()
    }

    /// How many levels of JSON objects and arrays the value takes. A reader takes 128 for the
    /// whole report, of which up to 8 are around the value.
    pub fn json_depth(&self) -> usize {
        let mut deepest = 0;
        let mut todo = vec![(self, 1usize)];
        while let Some((value, depth)) = todo.pop() {
            let mut deepest_here = depth;
            match value {
                // The array of members, and the object of each member.
                Self::Struct { members, .. } => {
                    deepest_here = depth + if members.is_empty() { 1 } else { 2 };
                    todo.extend(members.iter().map(|m| (&m.value, depth + 3)));
                }
                Self::Array { elements, .. } => {
                    deepest_here = depth + 1;
                    todo.extend(elements.iter().map(|e| (e, depth + 2)));
                }
                Self::Ptr {
                    deref: Some(inner), ..
                }
                | Self::Truncated { partial: inner, .. } => todo.push((inner, depth + 1)),
                _ => {}
            }
            deepest = deepest.max(deepest_here);
        }
        deepest
    }
}
