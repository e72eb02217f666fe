//! What is written about the daemon says what the daemon does: every option is
//! in the help, the manual page, the completions and the README, and the README
//! names none that does not exist.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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

/// README.md, CONTRIBUTING.md and everything in doc, with names.
fn documents() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let entries = fs::read_dir(folder.join("doc")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.push(folder.join("README.md"));
    paths.push(folder.join("CONTRIBUTING.md"));
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

// Who runs the commands

/// What the indented blocks have besides commands.
const NO_COMMANDS: &[&str] = &["<", "-", ":", "WARN ", "(qemu ", "securityContext:"];

/// Programs whose commands are found within the text as well.
const PROGRAMS: &[&str] = &[
    "cargo",
    "curl",
    "kill",
    "make",
    "man",
    "mount",
    "qemu-system-x86_64",
    "socat",
    "systemctl",
    "unshare",
    "usermod",
];

/// How commands begin that are run elsewhere: by which file, and what that has in it.
/// A file that does not hold the command itself says why it stands for it.
const RUN_BY: &[(&str, &str, &str)] = &[
    (
        "virtiofsd ",
        "tests/documents.rs",
        "commands(&text, \"virtiofsd\")",
    ),
    (
        "qemu-system-x86_64 ... -object",
        "tests/documents.rs",
        "commands(by_hand, \"qemu-",
    ),
    (
        "curl ",
        "tests/documents.rs",
        "commands(&observing, \"curl\")",
    ),
    (
        "socat ",
        "tests/documents.rs",
        "commands(&observing, \"socat\")",
    ),
    (
        "kill ",
        "tests/documents.rs",
        "commands(&observing, \"kill\")",
    ),
    ("cargo test ", "tests/run", "step cargo test --locked"),
    // As it goes by a socket of the test's.
    (
        "qemu-system-x86_64 ... -incoming",
        "tests/guest_migration.rs",
        "-incoming",
    ),
    (
        "mount -t virtiofs ",
        "tests/vm/guest/initramfs-init",
        "mount -t virtiofs ",
    ),
    (
        "mount --make-shared",
        "tests/escape.rs",
        "\"--make-shared\"",
    ),
    (
        "mkdir -p /etc/virtiofsd",
        "tests/systemd.rs",
        "### As a service",
    ),
    ("echo SHARED_DIR=", "tests/systemd.rs", "### As a service"),
    (
        "systemctl enable --now ",
        "tests/systemd.rs",
        "### As a service",
    ),
    (
        "usermod --add-subuids ",
        "tests/documents.rs",
        "commands(&text, \"usermod\")",
    ),
    ("unshare -r", "tests/unprivileged.rs", "unshare -r"),
    ("tests/run", ".ci/run", "tests/run"),
    (
        "cargo doc --document-private-items",
        "tests/run",
        "cargo doc --no-deps --document-private-items",
    ),
    ("make install", "tests/install.rs", "\"install\""),
    ("make uninstall", "tests/install.rs", "\"uninstall\""),
    ("make deb", "tests/package.rs", "\"deb\""),
    (
        "make binary; tests/package/reproducible",
        "tests/run",
        "step tests/package/reproducible",
    ),
    ("tests/vm/posix", "tests/run", "step tests/vm/posix --short"),
    ("tests/as-user", "tests/run", "step tests/as-user"),
    ("tests/prepare", "tests/run", "step tests/prepare"),
    ("tests/vm/prepare", "tests/prepare", "tests/vm/prepare"),
    (
        "tests/vm/references",
        "tests/prepare",
        "tests/vm/references",
    ),
    (
        "tests/vm/newer-qemu",
        "tests/prepare",
        "tests/vm/newer-qemu",
    ),
    ("tests/vm/run", "tests/guest.rs", "tool(\"run\")"),
    ("tests/libvirt/run", "tests/libvirt.rs", "tests/libvirt/run"),
    ("cargo deny ", "tests/run", "licenses bans sources"),
    // With the version that is known to work.
    ("cargo install cargo-deb", "tests/prepare", "cargo install"),
    // By `make binary`, with --locked.
    (
        "cargo build --release",
        "Makefile",
        "build --release --locked",
    ),
    // The same two goals.
    ("make", "tests/install.rs", "make"),
    // Takes what is to be known of the options from `command()`, as the manual page does.
    (
        "man virtiofsd",
        "tests/documents.rs",
        "generate::manual_page()",
    ),
];

/// Commands that no test runs, and why.
const NOT_RUN: &[(&str, &str)] = &[
    ("systemctl edit ", "opens an editor"),
    (
        "tests/vm/shell",
        "the first look, over tests/vm/run, which is run",
    ),
    ("cargo bench ", "measures, for minutes; clippy builds it"),
    (
        "VIRTIOFSD_WRITE_TABLES=1 cargo test ",
        "writes what these tests compare otherwise",
    ),
    ("cargo install cargo-fuzz", "a tool for fuzzing"),
    (
        "cargo fuzz ",
        "takes as long as one likes; tests/fuzz_corpus.rs runs the targets",
    ),
];

/// A shell's command, which must succeed; gives what it printed.
#[track_caller]
fn output_of(command: &str) -> String {
    let output = Command::new("bash").args(["-euc", command]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_commands_to_observe_the_daemon_work() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("share")).unwrap();
    let observing = read("doc/observing.md").replace("fork\n", "fork ");
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let here = |command: &str| {
        command
            .replace("/run/", &format!("{}/", folder.path().display()))
            .replace("/srv/", &format!("{}/", folder.path().display()))
            .replace("9100", &address.port().to_string())
    };
    let daemon = here(&commands(&observing, "virtiofsd")[0]);
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_virtiofsd"))
        .args(daemon.split_whitespace().skip(1))
        .args(["--sandbox=none", "--log-level=info"])
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(daemon.stderr.take().unwrap()).lines();
    let mut wait_for = |text: &str| {
        let found = log
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains(text));
        assert!(found.is_some(), "the daemon ended before {text:?}");
    };
    wait_for("Waiting for vhost-user");

    let metrics = output_of(&here(&commands(&observing, "curl")[0]));
    assert!(metrics.contains("virtiofsd_info{"), "{metrics}");

    let proxy = here(&commands(&observing, "socat")[0]);
    let mut proxy = Command::new("socat")
        .args(proxy.split_whitespace().skip(1))
        .spawn()
        .expect("tests/prepare installs socat");
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "socat does not listen");
        std::thread::yield_now();
    }
    let by_proxy = output_of(&format!("curl --silent --fail http://{address}/metrics"));
    assert!(by_proxy.contains("virtiofsd_info{"), "{by_proxy}");
    proxy.kill().unwrap();
    proxy.wait().unwrap();

    // A daemon that nobody has connected to has a guest of no inodes.
    output_of(&here(&commands(&observing, "kill")[0]));
    wait_for("inodes: ");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

/// What is said to do about missing sub-ids gives the user some.
#[test]
fn the_command_for_more_ids_works() {
    if !rustix::process::geteuid().is_root() {
        println!("skips itself: only root changes users");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let etc = folder.path().join("etc");
    fs::create_dir(&etc).unwrap();
    for (name, line) in [
        ("passwd", "USER:x:1000:1000::/:/bin/sh\n"),
        ("group", "USER:x:1000:\n"),
        ("subuid", ""),
        ("subgid", ""),
    ] {
        fs::write(etc.join(name), line).unwrap();
    }
    let text = read("doc/troubleshooting.md");
    let command = commands(&text, "usermod").remove(0);
    let prefix = format!("usermod --prefix {} ", folder.path().display());
    output_of(&command.replace("usermod ", &prefix));
    for name in ["subuid", "subgid"] {
        let given = fs::read_to_string(etc.join(name)).unwrap();
        assert_eq!(given, "USER:100000:65536\n", "{name}");
    }
}

/// Every line of an indented block that is a command, and what within the text looks
/// like one; continued lines joined, without prompts.
fn all_commands(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let mut found = Vec::new();
    let mut was_empty = true;
    let mut is_listing = false;
    for line in joined.lines() {
        if let Some(line) = line.strip_prefix("    ") {
            // A listing is one from its first line to its last.
            if was_empty {
                is_listing = NO_COMMANDS.iter().any(|start| line.starts_with(start));
            }
            if !is_listing && !line.starts_with([' ', '(']) {
                found.push(line.to_owned());
            }
        }
        was_empty = line.trim().is_empty();
    }
    for text in joined.replace('\n', " ").split('`').skip(1).step_by(2) {
        let program = text.split([' ', ';']).next().unwrap_or_default();
        let is_script = program.starts_with("tests/") && is_executable(program);
        if is_script || (PROGRAMS.contains(&program) && text.contains(' ')) {
            found.push(text.to_owned());
        }
    }
    found
        .iter()
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let prompt = usize::from(words[0].ends_with(['$', '#']));
            words[prompt..].join(" ")
        })
        .collect()
}

fn is_executable(path: &str) -> bool {
    let found = fs::metadata(Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
    found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o100 != 0)
}

/// A command that is new in a document gets a test, or a reason.
#[test]
fn every_command_of_the_documents_is_run() {
    let mut used = BTreeSet::new();
    let mut count = 0;
    for (document, text) in documents() {
        for command in all_commands(&text) {
            count += 1;
            for name in command.split("--test ").skip(1) {
                let name = name.split_whitespace().next().unwrap();
                assert!(
                    Path::new(env!("CARGO_MANIFEST_DIR"))
                        .join(format!("tests/{name}.rs"))
                        .exists(),
                    "{document}: {command}"
                );
            }
            let begins = |start: &str| {
                command.strip_prefix(start).is_some_and(|rest| {
                    start.ends_with(' ') || !rest.starts_with(|c: char| c.is_alphanumeric())
                })
            };
            if let Some((start, ..)) = NOT_RUN.iter().find(|(start, _)| begins(start)) {
                used.insert(*start);
                continue;
            }
            let runs = RUN_BY.iter().find(|(start, ..)| begins(start));
            let Some((start, file, has)) = runs else {
                panic!("{document}: who runs this? {command}");
            };
            used.insert(start);
            assert!(read(file).contains(has), "{file} does not run {command}");
        }
    }
    let known = RUN_BY.iter().map(|(start, ..)| start);
    for start in known.chain(NOT_RUN.iter().map(|(start, _)| start)) {
        assert!(used.contains(start), "no document has a command {start:?}");
    }
    assert!(count > 60, "{count}");
}
