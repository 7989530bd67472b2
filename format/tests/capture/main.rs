//! The capture file, written and read back, whole and damaged.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "clippy sees helper functions of tests as ordinary code"
)]

mod atomic;
mod damage;
mod dual;
mod exclude;
mod guest;
mod roundtrip;
