//! What is written about the daemon says what the daemon does: every option is
//! in the help, the manual page, the completions and the README, and the README
//! names none that does not exist.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use clap::Arg;
use clap_complete::aot::{Bash, Fish, Zsh};

#[path = "../examples/generate.rs"]
#[allow(dead_code)]
mod generate;

/// Every option that is no secret, as the operator writes it: `--fd`, `-o`.
fn options() -> BTreeSet<String> {
    let mut command = virtiofsd::cli::command();
    command.build();
    let shown = command
        .get_arguments()
        .filter(|option| !option.is_hide_set());
    shown.map(spelled).collect()
}

fn spelled(option: &Arg) -> String {
    match (option.get_long(), option.get_short()) {
        (Some(long), _) => format!("--{long}"),
        (None, Some(short)) => format!("-{short}"),
        (None, None) => panic!("{option} is no option"),
    }
}

/// Every word of `text` that looks like an option.
fn named_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let words = text.split(|c| !is_part(c));
    words
        .filter(|word| word.starts_with('-') && word.len() > 1)
        .map(str::to_owned)
        .collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[track_caller]
fn names_every_option(what: &str, text: &str) {
    let missing: Vec<_> = options().difference(&named_in(text)).cloned().collect();
    assert!(missing.is_empty(), "{what} does not name {missing:?}");
}

#[test]
fn the_help_names_every_option() {
    let help = virtiofsd::cli::command().render_long_help().to_string();
    names_every_option("--help", &help);
    assert!(options().len() > 40, "{:?}", options());
}

#[test]
fn the_manual_page_names_every_option() {
    let page = String::from_utf8(generate::manual_page().unwrap()).unwrap();
    let plain = page.replace("\\fB", " ").replace("\\-", "-");
    names_every_option("the manual page", &plain.replace("\\f", " "));
    for section in ["NAME", "OPTIONS", "EXIT STATUS", "FILES", "EXAMPLES"] {
        assert!(
            page.contains(&format!(".SH \"{section}\""))
                || page.contains(&format!(".SH {section}\n")),
            "{section}"
        );
    }
    assert!(
        page.contains("qemu\\-system\\-x86_64"),
        "the examples are not there"
    );
}

#[test]
fn the_completions_name_every_option() {
    for text in [generate::completions(Bash), generate::completions(Zsh)] {
        names_every_option("a completion", &String::from_utf8(text).unwrap());
    }
    // fish has its own way to write them: `-l fd`, `-s o`.
    let fish = String::from_utf8(generate::completions(Fish)).unwrap();
    for option in options() {
        let written = match option.strip_prefix("--") {
            Some(long) => format!(" -l {long} "),
            None => option.replace('-', " -s ") + " ",
        };
        assert!(
            fish.contains(&written),
            "{written} is not in the completion for fish"
        );
    }
}

#[test]
fn bash_completes_options_and_values() {
    let script = String::from_utf8(generate::completions(Bash)).unwrap();
    for (words, expected) in [
        (["--xattr", "--cac"], "--cache\n"),
        (["--cache", "me"], "metadata\n"),
        (["--sandbox", "na"], "namespace\n"),
    ] {
        let ask = format!(
            "\nCOMP_WORDS=(virtiofsd {0} {1}); COMP_CWORD=2\n\
             _virtiofsd virtiofsd {1} {0}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
            words[0], words[1]
        );
        assert_eq!(
            output_of_bash(&(script.clone() + &ask)),
            expected,
            "{words:?}"
        );
    }
}

fn output_of_bash(script: &str) -> String {
    let mut bash = Command::new("bash")
        .args(["--norc", "-s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    bash.stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    let output = bash.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_readme_has_a_line_for_every_option() {
    let readme = read("README.md");
    let table: String = readme
        .lines()
        .filter(|line| line.starts_with("| `-"))
        .collect();
    names_every_option("the table in README.md", &table);
    let unknown: Vec<_> = named_in(&table).difference(&options()).cloned().collect();
    assert!(
        unknown.is_empty(),
        "README.md has options that do not exist: {unknown:?}"
    );
}

// Commands in the documents

/// README.md and everything in doc, with names.
fn documents() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let entries = fs::read_dir(folder.join("doc")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.push(folder.join("README.md"));
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    let named = |path: std::path::PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.display().to_string(), text)
    };
    paths.into_iter().map(named).collect()
}

/// The commands of a document that start with `program`, continued lines joined:
/// lines of indented blocks, with or without a prompt, and what is in backticks.
fn commands(text: &str, program: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let blocks = joined.lines().filter_map(|line| line.strip_prefix("    "));
    let in_backticks = joined.split('`').skip(1).step_by(2);
    let start = format!("{program} ");
    blocks
        .chain(in_backticks)
        .map(|command| command.trim_start())
        .map(|command| {
            command.split_once("$ ").map_or(command, |(prompt, rest)| {
                if prompt.chars().all(char::is_alphanumeric) {
                    rest
                } else {
                    command
                }
            })
        })
        .filter(|command| command.starts_with(&start))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_command_lines_of_the_documents_are_understood() {
    let mut count = 0;
    for (document, text) in documents() {
        for command in commands(&text, "virtiofsd") {
            if command.contains("--help") {
                continue;
            }
            let plain = command
                .replace("$(id -u)", "1000")
                .replace("$(id -g)", "1000");
            let mut words: Vec<_> = plain
                .split_whitespace()
                .filter(|word| *word != "...")
                .collect();
            for (option, given) in [
                ("--shared-dir", "--shared-dir=/srv"),
                ("--socket-path", "--socket-path=/run/socket"),
            ] {
                // What is elsewhere in the document stands for the dots.
                if !plain.contains(option) {
                    words.push(given);
                }
            }
            if let Err(error) = virtiofsd::cli::parse(words, None) {
                panic!("{document}: {command}\n{error}");
            }
            count += 1;
        }
    }
    assert!(count >= 10, "only {count} commands were found");
}

#[test]
fn the_messages_that_are_explained_are_those_of_the_daemon() {
    fn sources(folder: &Path, all: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, all);
            } else {
                // A literal that goes on behind a backslash is one.
                let text = fs::read_to_string(&path).unwrap();
                let lines: Vec<_> = text.split("\\\n").map(str::trim_start).collect();
                all.push_str(&lines.concat());
            }
        }
    }
    let mut source = String::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut source,
    );
    let text = read("doc/troubleshooting.md");
    let (said, _) = text.split_once("## What the others say").unwrap();
    let mut count = 0;
    for line in said.lines().filter(|line| line.starts_with("| `")) {
        let cell = line.split(" | ").next().unwrap();
        for fragment in cell.split('`').skip(1).step_by(2) {
            assert!(
                source.contains(fragment),
                "the daemon never says {fragment:?}"
            );
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}

/// The start by hand as the README has it, without the guest: QEMU accepts its
/// command line and is served by the daemon of the other one.
#[test]
fn the_quick_start_by_hand_works() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::create_dir(folder.path().join("share")).unwrap();
    let here = |command: &str| {
        command
            .replace("/run/share.sock", &path("share.sock"))
            .replace("/srv/share", &path("share"))
            .replace("4G", "64M")
            .replace("...", "-accel tcg -nodefaults -display none -S")
    };
    let readme = read("README.md");
    let start = |program: &str, command: &str| {
        let command = here(command);
        let mut words = command.split_whitespace();
        words.next();
        let mut start = Command::new(program);
        start
            .args(words)
            .stdin(Stdio::null())
            .env_remove("RUST_LOG");
        start
    };
    let (_, by_hand) = readme.split_once("### By hand").unwrap();
    let daemon = &commands(by_hand, "virtiofsd")[0];
    let qemu = &commands(by_hand, "qemu-system-x86_64")[0];
    let mut daemon = start(env!("CARGO_BIN_EXE_virtiofsd"), daemon);
    if !rustix::process::geteuid().is_root() {
        daemon.arg("--sandbox=none");
    }
    let mut daemon = daemon.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(daemon.stderr.take().unwrap()).lines();
    let mut wait_for = |text: &str| {
        let found = log
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains(text));
        assert!(found.is_some(), "the daemon ended before {text:?}");
    };
    wait_for("Waiting for vhost-user");
    let mut qemu = start("qemu-system-x86_64", qemu)
        .spawn()
        .expect("tests/prepare installs QEMU");
    wait_for("Client connected");
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    wait_for("Client disconnected");
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn the_capabilities_for_a_container_are_enough() {
    if !rustix::process::geteuid().is_root() {
        println!("skips itself: only root can give capabilities away");
        return;
    }
    let readme = read("README.md");
    let (_, container) = readme.split_once("### In a container").unwrap();
    let (_, list) = container.split_once("add: [").unwrap();
    let (list, _) = list.split_once(']').unwrap();
    let names: Vec<_> = list
        .split(',')
        .map(|name| name.trim().to_lowercase())
        .collect();
    let set = format!("-all,+{}", names.join(",+"));
    let folder = tempfile::tempdir().unwrap();
    let command = commands(container, "virtiofsd").remove(0);
    let command = command
        .replace("/run/share.sock", "socket")
        .replace("/srv/share", folder.path().to_str().unwrap());
    let output = Command::new("setpriv")
        .args([format!("--bounding-set={set}"), format!("--inh-caps={set}")])
        .args([env!("CARGO_BIN_EXE_virtiofsd"), "--check"])
        .args(command.split_whitespace().skip(1))
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("file handles cannot"), "{said}");
}
