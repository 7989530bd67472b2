//! The `capture` command: writes captures.
#![forbid(unsafe_code)]

mod cli;
mod convert;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
