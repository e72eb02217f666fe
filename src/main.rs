//! The `virtiofsd` program: parse the command line, run, report one error line.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::FAILURE
}
