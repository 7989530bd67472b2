//! Bringing captures of earlier versions to the current one.

use super::error::OpenError;
use super::read::Capture;
use super::{VERSION_MAJOR, VERSION_MINOR};

/// What an upgrade has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Upgrade {
    /// The capture is of the current version, or of a later minor one.
    Current,
    /// These bytes replace as many at the start of the file. All others stay.
    Start(Vec<u8>),
    /// The capture cannot be upgraded; a sentence says why.
    Impossible(String),
}

/// What makes a capture one of the current version. Memory, notes and digest stay what they are.
///
/// # Errors
/// [`OpenError`].
pub fn upgraded(file: &[u8]) -> Result<Upgrade, OpenError> {
    let capture = Capture::open(file)?;
    let preamble = capture.preamble();
    if (preamble.major, preamble.minor) >= (VERSION_MAJOR, VERSION_MINOR) {
        return Ok(Upgrade::Current);
    }
    let Some(digest) = capture
        .computed_digest()
        .filter(|_| capture.recovered().is_none())
    else {
        return Ok(Upgrade::Impossible(
            "it is not whole, and what is left of it is read as it is".to_owned(),
        ));
    };
    // Version 1.1 has the digest in the preamble, in bytes that were 0 before.
    let mut preamble = preamble.clone();
    preamble.minor = VERSION_MINOR;
    preamble.digest = Some(digest);
    let start = preamble.encode();
    if crate::bytes::to_u64(start.len()) != preamble.record_bytes {
        return Ok(Upgrade::Impossible(
            "its preamble is longer than this version writes it".to_owned(),
        ));
    }
    Ok(Upgrade::Start(start))
}
