//! The `virtiofsd` program: parse the command line, run, report one error line.

use std::process::ExitCode;
use virtiofsd::{config::Config, device, passthrough::Passthrough};

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        args.iter()
            .position(|a| a == name)
            .and_then(|i| args.get(i + 1))
            .cloned()
    };
    let has = |name: &str| args.iter().any(|a| a == name);
    let socket = value("--socket-path").unwrap_or_default();
    let _ = std::fs::remove_file(&socket);
    let config = Config {
        readdirplus: !has("--no-readdirplus"),
        xattr: has("--xattr"),
        announce_submounts: true,
        writeback: has("--writeback"),
        ..Config::default()
    };
    let run = || -> anyhow::Result<()> {
        let listener = std::os::unix::net::UnixListener::bind(&socket)?;
        let fs = Passthrough::new(
            std::path::Path::new(&value("--shared-dir").unwrap_or_default()),
            config,
            1000000,
        )?;
        let dir = fs.proc_self_fd().try_clone_to_owned()?;
        let options = device::DeviceOptions {
            tag: value("--tag").and_then(|t| device::Tag::new(&t)),
            request_queues: value("--num-request-queues")
                .and_then(|n| n.parse().ok())
                .unwrap_or(1),
            pool_threads: value("--thread-pool-size")
                .and_then(|n| n.parse().ok())
                .unwrap_or(0),
        };
        device::serve(listener, fs, &options, dir)
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}
