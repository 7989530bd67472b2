//! From a memory image to a report.
//!
//! Layers, each knowing only the ones above it in this list:
//!
//! - [`source`]: guest physical memory and vCPU registers, out of a capture or an ELF core;
//! - [`kernel`]: symbols, types, address translation, per-CPU areas and the kernel's containers;
//! - [`object`]: a typed view of one piece of guest memory, so that a walker reads like C;
//! - [`recover`]: what the programs' instructions tell about integers that hold pointers;
//! - [`render`]: bytes and a BTF type to a value that a report can show;
//! - [`walk`]: one file per walker, each producing its part of the report;
//! - [`monitor`]: the few figures that are sampled while a guest runs;
//! - [`diagnose`]: what a person should look at first;
//! - [`diff`]: the early image of a dual capture against the late one;
//! - [`degraded`]: the report of a capture that was given up;
//! - [`exclude`]: which pages are free, user memory or page cache;
//! - [`reduce`]: a capture of only the pages that a report reads;
//! - [`analysis`]: runs the walkers and puts the report together, in a fixed order;
//! - [`snapshot`]: a report asked by name, for tests;
//! - [`query`]: the same for people, and the kernel's own objects;
//! - [`golden`]: reports that are to stay as they are;
//! - [`signature`]: what tells one failure from another;
//! - [`batch`]: many captures at once, and one table of all.
#![deny(unsafe_code)]

pub mod addr;
pub mod analysis;
pub mod batch;
pub mod degraded;
pub mod diagnose;
pub mod diff;
pub mod error;
pub mod exclude;
mod folder;
pub mod golden;
pub mod history;
pub mod kernel;
pub mod monitor;
pub mod object;
pub mod query;
pub mod recover;
pub mod reduce;
pub mod render;
pub mod signature;
pub mod snapshot;
pub mod source;
pub mod tables;
pub mod walk;

pub use error::{Error, Result};
use scx_postmortem_format::bytes;
pub use walk::bpf::probe;
