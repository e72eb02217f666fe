//! What a daemon asked of the kernel, as `strace` writes it down.
//!
//! Each thread has a file of its own, so that no line is cut in two by another
//! thread. Descriptors are shown with what they lead to.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Calls that take a path, and those that make a descriptor otherwise.
const TRACED: &str = "trace=%file,open_by_handle_at,open_tree,seccomp";

/// Calls of the daemon since its filter is there.
#[derive(Debug)]
pub struct Trace(Vec<Call>);

/// One call.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: String,
    pub arguments: Vec<String>,
    pub result: String,
}

/// Puts `strace` in front of a command line; `prefix` is that of its files.
pub fn traced(prefix: &Path, program: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new("strace");
    command.args([
        "-f",
        "-ff",
        "-y",
        "-qq",
        "-s",
        "4096",
        "--seccomp-bpf",
        "-e",
        TRACED,
    ]);
    command.arg("-o").arg(prefix).args(program);
    command
}

impl Trace {
    /// Reads the files in a folder that has no others.
    pub fn read(folder: &Path) -> Self {
        let files = fs::read_dir(folder).unwrap();
        let calls = files.flat_map(|file| of_one_thread(&file.unwrap().path()));
        Self(calls.collect())
    }

    pub fn calls(&self) -> &[Call] {
        &self.0
    }
}

fn of_one_thread(file: &PathBuf) -> Vec<Call> {
    let text = String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    let is = |line: &&str, call: &str| line.starts_with(call);
    let filtered = lines.iter().rposition(|line| is(line, "seccomp("));
    let serving = match filtered {
        Some(last) => &lines[last + 1..],
        // The process outside of the sandbox.
        None if lines.iter().any(|line| is(line, "execve(")) => &[],
        None => &lines[..],
    };
    serving
        .iter()
        .filter_map(|line| Call::parse(line))
        .collect()
}

impl Call {
    /// `name(argument, ...) = result`; signals and ends of threads are no calls.
    fn parse(line: &str) -> Option<Self> {
        let (name, rest) = line.split_once('(')?;
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return None;
        }
        let (arguments, result) = rest.rsplit_once(") = ")?;
        Some(Self {
            name: name.to_owned(),
            arguments: split(arguments),
            result: result.to_owned(),
        })
    }

    pub fn argument(&self, index: usize) -> &str {
        self.arguments.get(index).map_or("", String::as_str)
    }

    /// What the new descriptor leads to, where one was made.
    pub fn made(&self) -> Option<&str> {
        described(&self.result)
    }
}

/// What a descriptor leads to: `7</path>`.
pub fn described(descriptor: &str) -> Option<&str> {
    let (_, rest) = descriptor.split_once('<')?;
    rest.rsplit_once('>').map(|(path, _)| path)
}

/// Splits at the commas that are in no string and in no brackets.
fn split(arguments: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    for character in arguments.chars() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '{' | '[' | '<' if !quoted => depth += 1,
            '}' | ']' | '>' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(character);
    }
    parts.iter().map(|part| part.trim().to_owned()).collect()
}
