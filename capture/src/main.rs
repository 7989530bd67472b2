//! The `capture` command: writes captures.
#![deny(unsafe_code)]

mod cli;
mod convert;
mod guest;
mod machine;
mod run;
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
