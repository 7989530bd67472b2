//! The `capture` command: writes captures.
#![deny(unsafe_code)]

mod cli;
mod convert;
mod coordinator;
mod guest;
mod machine;
mod save;
mod signals;
mod start;
mod watch;

use std::process::ExitCode;

fn main() -> ExitCode {
    if guest::init::is_init() {
        guest::init::run();
        return ExitCode::FAILURE;
    }
    cli::run()
}
