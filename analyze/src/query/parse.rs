//! The expressions: a small part of C's, and calls.
//!
//! ```text
//! expression = "(" C type ")" expression | ("*" | "&") expression | postfix
//! postfix    = primary { "." name | "->" name | "[" (expression | "*") "]" }
//! primary    = number | text | name [ "(" [expression {"," expression}] ")" ] | "(" expression ")"
//! ```
//!
//! A cast of a number takes the number alone, so that `(struct rq *)0xffff….cpu` needs no further
//! brackets.

use std::ops::Range;

use super::QueryError;

/// Bytes of one expression. Its parts nest half as deep at most, which the stack has to bear.
const MAX_LENGTH: usize = 1024;
/// Brackets, casts and stars within each other.
const MAX_DEPTH: usize = 64;

/// A part of an expression, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) what: What,
    pub(super) span: Range<usize>,
}

/// What a part says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Number(i128),
    Text(String),
    Name(String),
    Call(String, Vec<Node>),
    Member(Box<Node>, Word),
    Index(Box<Node>, Box<Node>),
    /// `[*]`
    All(Box<Node>),
    /// A type as C writes it, the stars left out, and how many there are.
    Cast(Word, usize, Box<Node>),
    Deref(Box<Node>),
    Address(Box<Node>),
}

/// A name, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) span: Range<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Number(i128),
    Text(String),
    Name(String),
    Sign(&'static str),
}

impl Token {
    fn shown(&self) -> String {
        match self {
            Self::Number(n) => n.to_string(),
            Self::Text(text) => format!("{text:?}"),
            Self::Name(name) => name.clone(),
            Self::Sign(sign) => format!("`{sign}`"),
        }
    }
}

const SIGNS: [&str; 10] = ["->", ".", "[", "]", "(", ")", ",", "*", "&", "-"];

/// Reads one expression.
pub(super) fn parse(text: &str) -> Result<Node, QueryError> {
    if text.len() > MAX_LENGTH {
        return Err(QueryError::new(
            0..1,
            format!(
                "the expression has {} bytes, at most {MAX_LENGTH} are read",
                text.len()
            ),
        ));
    }
    let mut parser = Parser {
        tokens: tokens(text)?,
        next: 0,
        end: text.len(),
        depth: 0,
    };
    let node = parser.expression()?;
    match parser.peek() {
        None => Ok(node),
        Some((token, span)) => Err(QueryError::new(
            span.clone(),
            format!(
                "expected `.`, `->`, `[` or the end, found {}",
                token.shown()
            ),
        )),
    }
}

fn tokens(text: &str) -> Result<Vec<(Token, Range<usize>)>, QueryError> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..) {
        let Some(first) = rest.chars().next() else {
            break;
        };
        if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        }
        let taken = |more: fn(char) -> bool| {
            let end = rest.find(|c| !more(c)).unwrap_or(rest.len());
            rest.get(..end).unwrap_or_default()
        };
        let (token, len) = if first.is_ascii_digit() {
            let digits = taken(|c| c.is_ascii_alphanumeric() || c == '_');
            (number(digits, at)?, digits.len())
        } else if first.is_alphabetic() || first == '_' {
            let name = taken(|c| c.is_alphanumeric() || c == '_');
            (Token::Name(name.to_owned()), name.len())
        } else if first == '"' || first == '\'' {
            let inside = rest.get(1..).unwrap_or_default();
            let Some(len) = inside.find(first) else {
                let span = at..text.len();
                return Err(QueryError::new(span, format!("no {first} ends this text")));
            };
            let inside = inside.get(..len).unwrap_or_default();
            (Token::Text(inside.to_owned()), len + 2)
        } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            (Token::Sign(sign), sign.len())
        } else {
            let span = at..at + first.len_utf8();
            return Err(QueryError::new(
                span,
                format!("{first:?} has no place in an expression"),
            ));
        };
        found.push((token, at..at + len));
        at += len;
    }
    Ok(found)
}

fn number(digits: &str, at: usize) -> Result<Token, QueryError> {
    let bare = digits
        .trim_end_matches(['u', 'U', 'l', 'L'])
        .replace('_', "");
    let hex = bare.strip_prefix("0x").or_else(|| bare.strip_prefix("0X"));
    let value = match hex {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => bare.parse(),
    };
    match value {
        Ok(value) => Ok(Token::Number(i128::from(value))),
        Err(_) => Err(QueryError::new(
            at..at + digits.len(),
            format!("{digits} is no number of at most 64 bits"),
        )),
    }
}

struct Parser {
    tokens: Vec<(Token, Range<usize>)>,
    next: usize,
    end: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&(Token, Range<usize>)> {
        self.tokens.get(self.next)
    }

    fn sign(&self, sign: &str) -> bool {
        self.sign_at(self.next, sign)
    }

    fn sign_at(&self, at: usize, sign: &str) -> bool {
        matches!(self.tokens.get(at), Some((Token::Sign(found), _)) if *found == sign)
    }

    fn take(&mut self, sign: &str) -> Option<Range<usize>> {
        let span = self.sign(sign).then(|| self.peek())?.map(|t| t.1.clone());
        self.next += 1;
        span
    }

    fn wanted(&self, what: &str) -> QueryError {
        match self.peek() {
            Some((token, span)) => QueryError::new(
                span.clone(),
                format!("expected {what}, found {}", token.shown()),
            ),
            None => QueryError::new(
                self.end..self.end + 1,
                format!("expected {what}, found the end"),
            ),
        }
    }

    fn must(&mut self, sign: &str) -> Result<Range<usize>, QueryError> {
        self.take(sign)
            .ok_or_else(|| self.wanted(&format!("`{sign}`")))
    }

    fn word(&mut self, what: &str) -> Result<Word, QueryError> {
        match self.peek() {
            Some((Token::Name(name), span)) => {
                let word = Word {
                    text: name.clone(),
                    span: span.clone(),
                };
                self.next += 1;
                Ok(word)
            }
            _ => Err(self.wanted(what)),
        }
    }

    /// Enters one level of nesting.
    fn deeper<T>(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        if self.depth >= MAX_DEPTH {
            let span = self.peek().map_or(self.end..self.end + 1, |t| t.1.clone());
            return Err(QueryError::new(
                span,
                format!("more than {MAX_DEPTH} levels of brackets and signs"),
            ));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn expression(&mut self) -> Result<Node, QueryError> {
        self.deeper(Self::prefix)
    }

    fn prefix(&mut self) -> Result<Node, QueryError> {
        if let Some(start) = self.take("*") {
            let inner = self.expression()?;
            let span = start.start..inner.span.end;
            let what = What::Deref(Box::new(inner));
            return Ok(Node { what, span });
        }
        if let Some(start) = self.take("&") {
            let inner = self.expression()?;
            let span = start.start..inner.span.end;
            let what = What::Address(Box::new(inner));
            return Ok(Node { what, span });
        }
        if self.is_cast() {
            let start = self.must("(")?;
            let (ty, stars) = self.c_type()?;
            self.must(")")?;
            if let Some((Token::Number(_), _)) = self.peek() {
                let number = self.primary()?;
                let span = start.start..number.span.end;
                let what = What::Cast(ty, stars, Box::new(number));
                return self.postfix(Node { what, span });
            }
            let inner = self.expression()?;
            let span = start.start..inner.span.end;
            let what = What::Cast(ty, stars, Box::new(inner));
            return Ok(Node { what, span });
        }
        let primary = self.primary()?;
        self.postfix(primary)
    }

    /// `(struct …`, `(name *` or `(name) something`.
    fn is_cast(&self) -> bool {
        if !self.sign("(") {
            return false;
        }
        let Some((Token::Name(name), _)) = self.tokens.get(self.next + 1) else {
            return false;
        };
        if matches!(
            name.as_str(),
            "struct" | "union" | "enum" | "unsigned" | "signed" | "const"
        ) {
            return true;
        }
        let mut at = self.next + 2;
        // `long int`, `u64 *`
        while matches!(self.tokens.get(at), Some((Token::Name(_), _))) {
            at += 1;
        }
        let stars = self.sign_at(at, "*");
        while self.sign_at(at, "*") {
            at += 1;
        }
        if !self.sign_at(at, ")") {
            return false;
        }
        let after = self.tokens.get(at + 1);
        let operand = matches!(
            after,
            Some((Token::Number(_) | Token::Text(_) | Token::Name(_), _))
        ) || self.sign_at(at + 1, "(")
            || self.sign_at(at + 1, "&")
            || self.sign_at(at + 1, "*");
        stars || operand
    }

    fn c_type(&mut self) -> Result<(Word, usize), QueryError> {
        let mut word = self.word("a C type")?;
        while let Some((Token::Name(_), _)) = self.peek() {
            let more = self.word("a C type")?;
            word.text = format!("{} {}", word.text, more.text);
            word.span.end = more.span.end;
        }
        let mut stars = 0;
        while self.take("*").is_some() {
            stars += 1;
        }
        if let Some(bare) = word.text.strip_prefix("const ") {
            word.text = bare.to_owned();
        }
        Ok((word, stars))
    }

    fn primary(&mut self) -> Result<Node, QueryError> {
        let Some((token, span)) = self.peek().cloned() else {
            return Err(self.wanted("a name, a number or `(`"));
        };
        match token {
            Token::Number(n) => {
                self.next += 1;
                let what = What::Number(n);
                Ok(Node { what, span })
            }
            Token::Text(text) => {
                self.next += 1;
                let what = What::Text(text);
                Ok(Node { what, span })
            }
            Token::Name(name) => {
                self.next += 1;
                if self.take("(").is_none() {
                    let what = What::Name(name);
                    return Ok(Node { what, span });
                }
                let mut arguments = Vec::new();
                let keyword = match self.peek() {
                    Some((Token::Name(word), _)) => {
                        matches!(word.as_str(), "struct" | "union" | "enum")
                    }
                    _ => false,
                };
                if name == "sizeof" && keyword {
                    // As C has it, without quotes.
                    let (ty, stars) = self.c_type()?;
                    if stars == 0 {
                        let what = What::Text(ty.text);
                        arguments.push(Node {
                            what,
                            span: ty.span,
                        });
                    } else {
                        let why = "a pointer has 8 bytes; name what it leads to";
                        return Err(QueryError::new(ty.span, why.into()));
                    }
                } else if !self.sign(")") {
                    arguments.push(self.expression()?);
                    while self.take(",").is_some() {
                        arguments.push(self.expression()?);
                    }
                }
                let end = self.must(")")?;
                let what = What::Call(name, arguments);
                let span = span.start..end.end;
                Ok(Node { what, span })
            }
            Token::Sign("-") => {
                self.next += 1;
                let inner = self.deeper(Self::primary)?;
                let What::Number(n) = inner.what else {
                    return Err(QueryError::new(
                        span,
                        "a minus stands before a number only".into(),
                    ));
                };
                let what = What::Number(-n);
                let span = span.start..inner.span.end;
                Ok(Node { what, span })
            }
            Token::Sign("(") => {
                self.next += 1;
                let inner = self.expression()?;
                let end = self.must(")")?;
                let span = span.start..end.end;
                Ok(Node { span, ..inner })
            }
            Token::Sign(_) => Err(self.wanted("a name, a number or `(`")),
        }
    }

    fn postfix(&mut self, first: Node) -> Result<Node, QueryError> {
        let mut node = first;
        // Each turn makes the tree one level deeper, and what walks it goes down.
        let mut links = 0;
        loop {
            links += 1;
            if links > MAX_DEPTH {
                return Err(QueryError::new(
                    node.span,
                    format!("more than {MAX_DEPTH} members in a row"),
                ));
            }
            if self.take(".").is_some() || self.take("->").is_some() {
                let word = match self.peek() {
                    // The elements of a report's lists, as jq has them.
                    Some((Token::Text(text), span)) => {
                        let word = Word {
                            text: text.clone(),
                            span: span.clone(),
                        };
                        self.next += 1;
                        word
                    }
                    _ => self.word("a member's name")?,
                };
                let span = node.span.start..word.span.end;
                let what = What::Member(Box::new(node), word);
                node = Node { what, span };
            } else if self.take("[").is_some() {
                if self.sign("*") && self.sign_at(self.next + 1, "]") {
                    self.next += 1;
                    let end = self.must("]")?;
                    let span = node.span.start..end.end;
                    let what = What::All(Box::new(node));
                    node = Node { what, span };
                    continue;
                }
                let index = self.expression()?;
                let end = self.must("]")?;
                let span = node.span.start..end.end;
                let what = What::Index(Box::new(node), Box::new(index));
                node = Node { what, span };
            } else {
                return Ok(node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> (Range<usize>, String) {
        let error = parse(text).unwrap_err();
        (error.span, error.message)
    }

    #[test]
    fn members_calls_and_indices_nest_to_the_left() {
        let node = parse("task(1632).scx.dsq->id").unwrap();
        assert_eq!(node.span, 0..22);
        let What::Member(dsq, id) = node.what else {
            panic!("{node:?}");
        };
        assert_eq!((id.text.as_str(), id.span), ("id", 20..22));
        let What::Member(scx, _) = dsq.what else {
            panic!("no member");
        };
        let What::Member(call, _) = scx.what else {
            panic!("no member");
        };
        let What::Call(name, arguments) = call.what else {
            panic!("no call");
        };
        assert_eq!(name, "task");
        assert_eq!(arguments[0].what, What::Number(1632));
    }

    #[test]
    fn a_cast_of_a_number_binds_closer_than_the_member() {
        let node = parse("(struct bpf_map *)0xffff888000001000.name").unwrap();
        let What::Member(cast, _) = node.what else {
            panic!("{node:?}");
        };
        let What::Cast(ty, stars, inner) = cast.what else {
            panic!("no cast");
        };
        assert_eq!((ty.text.as_str(), stars), ("struct bpf_map", 1));
        assert_eq!(inner.what, What::Number(0xffff_8880_0000_1000));
        // And one of anything else less close, as in C.
        assert!(matches!(
            parse("(struct rq *)a.b").unwrap().what,
            What::Cast(..)
        ));
        assert!(matches!(parse("(u64)a").unwrap().what, What::Cast(..)));
        assert!(matches!(
            parse("*(unsigned long *)symbol(\"jiffies\")").unwrap().what,
            What::Deref(_)
        ));
    }

    #[test]
    fn brackets_around_a_name_are_no_cast() {
        assert_eq!(parse("(bss)").unwrap().what, What::Name("bss".into()));
        assert!(matches!(parse("(bss).a").unwrap().what, What::Member(..)));
    }

    #[test]
    fn mistakes_are_told_where_they_are() {
        assert_eq!(
            message("rq(2).[1]"),
            (6..7, "expected a member's name, found `[`".into())
        );
        assert_eq!(
            message("rq(2"),
            (4..5, "expected `)`, found the end".into())
        );
        assert_eq!(
            message("a b"),
            (2..3, "expected `.`, `->`, `[` or the end, found b".into())
        );
        assert_eq!(message("map(\"x"), (4..6, "no \" ends this text".into()));
        assert_eq!(
            message("a + b"),
            (2..3, "'+' has no place in an expression".into())
        );
        assert_eq!(
            message("0x1ffffffffffffffff"),
            (
                0..19,
                "0x1ffffffffffffffff is no number of at most 64 bits".into()
            )
        );
        assert_eq!(
            message(""),
            (
                0..1,
                "expected a name, a number or `(`, found the end".into()
            )
        );
    }

    #[test]
    fn sizeof_takes_a_type_as_c_has_it() {
        let node = parse("sizeof(struct rq)").unwrap();
        let What::Call(name, arguments) = node.what else {
            panic!("no call");
        };
        assert_eq!(name, "sizeof");
        assert_eq!(arguments[0].what, What::Text("struct rq".into()));
        assert_eq!(arguments[0].span, 7..16);
        assert!(message("sizeof(struct rq *)").1.contains("a pointer has 8"));
    }

    #[test]
    fn deep_and_long_expressions_are_refused() {
        let deep = "(".repeat(1000);
        assert!(message(&deep).1.contains("more than 64 levels"));
        assert!(message(&"*".repeat(1000)).1.contains("more than 64 levels"));
        assert!(message(&"-".repeat(1000)).1.contains("more than 64 levels"));
        assert!(
            message(&format!("a{}", ".a".repeat(500)))
                .1
                .contains("more than 64 members")
        );
        assert!(message(&"a".repeat(5000)).1.contains("5000 bytes"));
    }
}
