//! The `virtiofsd` program: parse the command line, run, report one error line.

use std::process::ExitCode;

use virtiofsd::process::service;
use virtiofsd::{app, cli};

fn main() -> ExitCode {
    let options = cli::parse(std::env::args_os(), service::passed_socket())
        .unwrap_or_else(|error| error.exit());
    match app::run(options) {
        Ok(code) => code,
        Err(error) => {
            log::error!(target: "virtiofsd", "{error:#}");
            ExitCode::FAILURE
        }
    }
}
