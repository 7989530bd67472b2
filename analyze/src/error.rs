//! Errors of everything below the report.
//!
//! Two sizes: [`OpenError`] ends the program (not our file, no usable kernel), [`Error`] costs a
//! section or a branch of one and is turned into a reason in the report.

use scx_postmortem_format::capture::Rule;
use scx_postmortem_format::report::UnavailableCode;

use crate::addr::{Gpa, Kva};

/// The result of reading or interpreting guest memory.
pub type Result<T> = std::result::Result<T, Error>;

/// Why some guest memory could not be read or understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The physical range exists in the guest but the image does not hold it.
    #[error("physical memory at {0} was not captured")]
    NotCaptured(Gpa),
    /// The physical range exists in the guest and was left out of the image on purpose.
    #[error(
        "physical memory at {0} was left out of the capture on purpose, as one of the {pages} (--exclude {1})",
        pages = .1.pages()
    )]
    LeftOut(Gpa, Rule),
    /// No memory has ever been at this physical address.
    #[error("physical address {0} is a hole in the guest's address map")]
    Hole(Gpa),
    /// The image's own bytes are damaged.
    #[error("{0}")]
    Damaged(String),
    /// The page tables do not map the address.
    #[error("kernel address {0} is not mapped ({1} entry not present)")]
    NotMapped(Kva, &'static str),
    /// A pointer that must lead somewhere is null.
    #[error("{0} is NULL")]
    Null(String),
    /// This kernel has no such symbol.
    #[error("this kernel has no symbol {0}")]
    NoSymbol(String),
    /// This kernel's BTF has no such type.
    #[error("this kernel's BTF has no type {0}")]
    NoType(String),
    /// This kernel's BTF knows the struct, but not the member.
    #[error("{strukt} has no member {member} in this kernel")]
    NoMember {
        /// The struct or union, with its tag.
        strukt: String,
        /// The member path that was asked for, as far as it did not resolve.
        member: String,
    },
    /// A member exists but is not what it is used as.
    #[error("{what} is {found}, expected {expected}")]
    WrongType {
        /// The object or member.
        what: String,
        /// What the code needs.
        expected: &'static str,
        /// What BTF says.
        found: String,
    },
    /// A value that cannot be right.
    #[error("{what} is {found}, which is not plausible ({why})")]
    Implausible {
        /// What was read.
        what: String,
        /// The value, rendered.
        found: String,
        /// The rule that it breaks.
        why: &'static str,
    },
}

impl Error {
    /// Which kind of absence this error leads to.
    #[must_use]
    pub const fn missing(&self) -> UnavailableCode {
        match self {
            Self::NotCaptured(_) | Self::LeftOut(..) => UnavailableCode::NotInImage,
            Self::Hole(_) | Self::Damaged(_) | Self::NotMapped(..) => UnavailableCode::Unreadable,
            Self::NoSymbol(_) | Self::NoType(_) | Self::NoMember { .. } => {
                UnavailableCode::NotApplicable
            }
            Self::Null(_) | Self::WrongType { .. } | Self::Implausible { .. } => {
                UnavailableCode::Unparsable
            }
        }
    }

    /// Whether the kernel simply lacks the type, member or symbol: the caller may try the next
    /// alternative. Anything else (unreadable memory, say) must not be papered over that way.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        matches!(
            self,
            Self::NoSymbol(_) | Self::NoType(_) | Self::NoMember { .. }
        )
    }
}

/// Why an image cannot be analyzed at all. Each message is one sentence with what was looked
/// for, what was found and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be opened or mapped.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: String,
        /// The operating system's words.
        cause: std::io::Error,
    },
    /// The file is neither a capture nor an ELF64 core with physical addresses.
    #[error(
        "{path}: {found}; expected a capture (*.core.zst) or an x86-64 ELF core with physical addresses, such as QEMU's dump-guest-memory writes"
    )]
    NotACore {
        /// The file.
        path: String,
        /// What it looks like.
        found: String,
    },
    /// A file that this command has no use for.
    #[error("{path}: {why}")]
    NoUse {
        /// The file.
        path: String,
        /// What it is.
        why: &'static str,
    },
    /// The early image of a file that has but one was asked for.
    #[error("{path}: {what}; expected a dual one, with an early and a late image")]
    NotDual {
        /// The file.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// The kernel's tables that a capture was reduced without are not there, or those that are
    /// there cannot be used. With other files beside it or given, the same capture opens.
    #[error("{0}")]
    Tables(String),
    /// A capture that the format layer refuses.
    #[error("{path}: {cause}")]
    Capture {
        /// The file.
        path: String,
        /// Its sentence.
        cause: String,
    },
    /// A file that begins as a report does and is none.
    #[error("{path}: {cause}")]
    Report {
        /// The file.
        path: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Memory is there, but no kernel was found in it.
    #[error("{path}: no usable kernel in this image: {why}")]
    NoKernel {
        /// The file.
        path: String,
        /// What was looked for, what was found, which flag supplies it.
        why: String,
    },
}
