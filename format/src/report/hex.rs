//! Two hexadecimal forms: one number, and a run of bytes.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 64-bit address or identifier of the `postmortem` part.
///
/// It is written as a string, `"0xffff888101234000"`, because kernel addresses do not fit the
/// numbers of many JSON readers. A plain JSON number is accepted on input as well. The members of
/// the shared format do not use this type: there addresses are numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex(pub u64);

impl From<u64> for Hex {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

impl From<Hex> for u64 {
    fn from(value: Hex) -> Self {
        value.0
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Padding applies to the whole text, so that columns of addresses line up.
        f.pad(&format!("{:#x}", self.0))
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HexVisitor)
    }
}

struct HexVisitor;

impl Visitor<'_> for HexVisitor {
    type Value = Hex;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string of the form 0x1f, or an unsigned number")
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Hex, E> {
        Ok(Hex(value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Hex, E> {
        text.strip_prefix("0x")
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Hex)
            .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl JsonSchema for Hex {
    fn schema_name() -> Cow<'static, str> {
        "Hex".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A 64-bit address or identifier as a hexadecimal string. \
                            A number is accepted on input.",
            "anyOf": [
                { "type": "string", "pattern": "^0x[0-9a-fA-F]{1,16}$" },
                { "type": "integer", "format": "uint64", "minimum": 0 }
            ]
        })
    }
}

/// Bytes as the report writes them: two lower-case digits each, separated by one space, and an
/// empty string for no bytes.
pub fn hex_string(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().saturating_mul(3));
    for (i, byte) in bytes.iter().enumerate() {
        if i > 0 {
            text.push(' ');
        }
        for nibble in [byte >> 4, byte & 0xf] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('?'));
        }
    }
    text
}

/// The bytes that [`hex_string`] wrote; what is no byte is left out.
#[must_use]
pub fn hex_bytes(text: &str) -> Vec<u8> {
    text.split_ascii_whitespace()
        .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes() {
        assert_eq!(hex_string(&[]), "");
        assert_eq!(hex_string(&[0x0a, 0xff, 0x00]), "0a ff 00");
    }

    #[test]
    fn numbers() {
        assert_eq!(
            serde_json::to_string(&Hex(u64::MAX)).unwrap(),
            "\"0xffffffffffffffff\""
        );
        assert_eq!(serde_json::from_str::<Hex>("\"0x1F\"").unwrap(), Hex(31));
        assert_eq!(
            serde_json::from_str::<Hex>("18446744073709551615").unwrap(),
            Hex(u64::MAX)
        );
        for bad in [
            "\"\"",
            "\"0x\"",
            "\"1f\"",
            "\"0x+1\"",
            "\"0x11112222333344445\"",
            "-1",
            "1.5",
            "null",
        ] {
            assert!(serde_json::from_str::<Hex>(bad).is_err(), "{bad}");
        }
        assert_eq!(format!("[{:>6}]", Hex(0xab)), "[  0xab]");
    }
}
