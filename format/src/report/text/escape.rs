//! Guest strings made safe to print.

use std::fmt::{self, Write};

/// Displays a string with everything that could steer a terminal, break a line or turn the reading
/// direction around written as an escape: `\n`, `\r`, `\t`, `\x1b`, `\u{202e}`.
///
/// Printable text is left as it is, a backslash too, so that names and messages look the way the
/// kernel has them. The price: the escapes cannot be told from the same characters in the
/// original. The JSON form has the original.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

fn needs_escape(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.contains(needs_escape) {
            return f.write_str(self.0);
        }
        for c in self.0.chars() {
            match c {
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                c if !needs_escape(c) => f.write_char(c)?,
                c if u32::from(c) < 0x100 => write!(f, "\\x{:02x}", u32::from(c))?,
                c => write!(f, "\\u{{{:x}}}", u32::from(c))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        for (text, shown) in [
            ("kworker/0:1-é→", "kworker/0:1-é→"),
            ("C:\\n", "C:\\n"),
            ("a\x1b[2Jb\n", "a\\x1b[2Jb\\n"),
            ("\u{9b}\u{202e}\0\x7f", "\\x9b\\u{202e}\\x00\\x7f"),
        ] {
            assert_eq!(Escaped(text).to_string(), shown);
        }
    }
}
