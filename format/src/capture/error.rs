//! What can go wrong with a capture file. Each message is one sentence: what was expected, what
//! was found, what to do.

use super::exclude::Rule;

/// Why a file cannot be opened as a capture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file does not begin as a capture does.
    #[error(
        "not a capture: expected the mark SCXPMCAP at byte 8, found {found}; for a plain ELF core use it as it is or archive it with `capture convert`"
    )]
    NotACapture {
        /// What the file begins with.
        found: String,
    },
    /// The container's major version is above [`super::VERSION_MAJOR`].
    #[error(
        "the capture has container version {major}.{minor}, this program reads up to {supported}.x; use a newer release, or `zstd -d` to get the plain ELF core"
    )]
    NewerVersion {
        /// Major version of the file.
        major: u16,
        /// Minor version of the file.
        minor: u16,
        /// Highest major version that this program reads.
        supported: u16,
    },
    /// The guest's architecture is one that this program does not read.
    #[error(
        "the capture is of a guest with ELF machine {machine}, this program reads x86-64 (62); `zstd -d` gives the plain ELF core for other tools"
    )]
    OtherMachine {
        /// ELF machine number that the file names.
        machine: u16,
    },
    /// The file ends before the first thing that could be used.
    #[error(
        "the capture is truncated: expected at least {needed} bytes for {part}, found {found}; copy the file again from where it was written"
    )]
    Truncated {
        /// What the file ends in.
        part: &'static str,
        /// Bytes that the part needs, counted from the start of the file.
        needed: u64,
        /// Bytes that the file has.
        found: u64,
    },
    /// A part without which nothing else can be read is damaged.
    #[error(
        "the capture is corrupt: {part} at byte {offset}: {why}; copy the file again, or try `zstd -d` to get what the ELF core still holds"
    )]
    Corrupt {
        /// The part.
        part: &'static str,
        /// Where it begins, in bytes from the start of the file.
        offset: u64,
        /// What was expected and what was found.
        why: String,
    },
}

/// Why bytes of an open capture cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The guest has no memory at this address.
    #[error("guest physical address {gpa:#x} is a hole in the address map: no memory is there")]
    Hole {
        /// Guest physical address.
        gpa: u64,
    },
    /// The guest has memory there, the capture does not hold it.
    #[error("guest physical address {gpa:#x} was not captured: {cause}")]
    NotCaptured {
        /// Guest physical address.
        gpa: u64,
        /// Why the capture does not hold it.
        cause: Absence,
    },
    /// A frame fails its checks.
    #[error(
        "frame {frame} at byte {offset} of the capture is corrupt: {why}; `analyze verify` lists all damage"
    )]
    Corrupt {
        /// Number of the entry in the seek table.
        frame: u64,
        /// Where the frame begins, in bytes from the start of the file.
        offset: u64,
        /// The check that failed.
        why: &'static str,
    },
    /// The logical stream ends before the end of the range, or the file was cut there.
    #[error(
        "bytes {offset:#x} to {end:#x} of the stream are not in the file, which holds {len:#x} bytes of it"
    )]
    OutOfRange {
        /// First byte of the range.
        offset: u64,
        /// First byte after the range.
        end: u64,
        /// Bytes that the file holds.
        len: u64,
    },
    /// A note is larger than the reader is prepared to take into memory.
    #[error("{what} is {bytes} bytes, expected at most {limit}; the capture is corrupt or hostile")]
    TooLarge {
        /// The note.
        what: String,
        /// Its length in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Something decodes, but is not what the format says.
    #[error("{what} does not parse: {why}")]
    Malformed {
        /// The part.
        what: String,
        /// What was expected and what was found.
        why: String,
    },
    /// The early image of a dual capture is not (completely) in the file.
    #[error("the early image is not in the file: {why}")]
    NoEarly {
        /// Why.
        why: &'static str,
    },
}

/// Why memory that the guest had is not in a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Absence {
    /// The writer says that it did not take it; the manifest's region has the reason.
    NotTaken,
    /// It was left out on purpose, by a rule that the user chose.
    LeftOut(Rule),
    /// It was taken, but the file was cut off before it.
    Truncated,
}

impl std::fmt::Display for Absence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotTaken => f.write_str("the manifest lists the range as not captured"),
            Self::LeftOut(rule) => write!(
                f,
                "it was left out on purpose, as one of the {} (--exclude {rule})",
                rule.pages()
            ),
            Self::Truncated => f.write_str("the file is truncated before it"),
        }
    }
}

/// Why a capture could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// What the caller asked for cannot be a capture.
    #[error("cannot lay out the capture: {0}")]
    Spec(String),
    /// Guest memory could not be read.
    #[error("cannot read guest memory at {gpa:#x} ({bytes} bytes): {cause}")]
    Source {
        /// Guest physical address.
        gpa: u64,
        /// Bytes asked for.
        bytes: u64,
        /// The source's words.
        cause: std::io::Error,
    },
    /// The output could not be written.
    #[error("cannot write the capture after {written} bytes: {cause}")]
    Output {
        /// Bytes that were written before.
        written: u64,
        /// The operating system's words.
        cause: std::io::Error,
    },
    /// zstd refused.
    #[error("cannot compress frame {frame}: {why}")]
    Compress {
        /// Number of the frame.
        frame: u64,
        /// zstd's words.
        why: &'static str,
    },
    /// The worker threads could not be started.
    #[error("cannot start {threads} worker threads: {why}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// The operating system's words.
        why: String,
    },
    /// The progress callback asked to stop.
    #[error("cancelled after {written} bytes")]
    Cancelled {
        /// Bytes that were written before.
        written: u64,
    },
}

/// Why an export stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The capture could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The output could not be written.
    #[error("cannot write the ELF core after {written} bytes: {cause}")]
    Output {
        /// Bytes that were written before.
        written: u64,
        /// The operating system's words.
        cause: std::io::Error,
    },
    /// The progress callback asked to stop.
    #[error("cancelled after {written} bytes")]
    Cancelled {
        /// Bytes that were written before.
        written: u64,
    },
}
