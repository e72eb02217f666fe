//! What is written about the daemon says what the daemon does: every option is
//! in the help, the manual page, the completions and the README, and the README
//! names none that does not exist.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
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
