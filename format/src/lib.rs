//! The two file formats of scx-postmortem: the capture file ([`capture`]) and the report
//! ([`report`]).
//!
//! Nothing here knows how a kernel works. The capture half turns guest memory into a file and
//! back; the report half is the JSON and text contract.
#![forbid(unsafe_code)]

pub mod bytes;
pub mod capture;
pub mod report;
