//! Writes what is made from the definitions of the options: the manual page
//! and the completions for bash, fish and zsh.
//!
//! usage: cargo run --example generate -- FOLDER

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::{env, fs};

use clap_complete::aot::{Bash, Fish, Generator, Zsh, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// What the page says besides the options: status, signals, files.
const REST_OF_THE_PAGE: &str = include_str!("../packaging/virtiofsd.1.in");

fn main() -> io::Result<()> {
    match env::args_os().nth(1) {
        Some(directory) => write_all(&PathBuf::from(directory)),
        None => Err(io::Error::other("usage: generate FOLDER")),
    }
}

/// Writes everything into `directory`.
pub fn write_all(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    fs::write(directory.join("virtiofsd.1"), manual_page()?)?;
    fs::write(directory.join("virtiofsd.bash"), completions(Bash))?;
    fs::write(directory.join("virtiofsd.fish"), completions(Fish))?;
    fs::write(directory.join("_virtiofsd"), completions(Zsh))
}

/// The page `virtiofsd(1)`.
pub fn manual_page() -> io::Result<Vec<u8>> {
    let command = virtiofsd::cli::command();
    let examples = command.get_after_help().map(ToString::to_string);
    let man = Man::new(command).manual("Virtualization");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    page.write_all(REST_OF_THE_PAGE.as_bytes())?;
    put_examples(&examples.unwrap_or_default()).to_writer(&mut page)?;
    Ok(page)
}

/// The end of the help text: sentences, with the commands indented.
fn put_examples(text: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]);
    let mut in_commands = false;
    for line in text.lines().filter(|line| *line != "Examples:") {
        let is_command = line.starts_with("    ");
        if is_command != in_commands {
            roff.control(if is_command { "EX" } else { "EE" }, []);
            in_commands = is_command;
        }
        match (line.trim(), is_command) {
            ("", _) => drop(roff.control("PP", [])),
            (_, true) => drop(roff.text([bold(line)])),
            (sentence, false) => drop(roff.text([roman(sentence)])),
        }
    }
    if in_commands {
        roff.control("EE", []);
    }
    roff
}

/// What a shell reads to complete the options of the daemon.
pub fn completions(shell: impl Generator) -> Vec<u8> {
    let mut text = Vec::new();
    generate(
        shell,
        &mut virtiofsd::cli::command(),
        "virtiofsd",
        &mut text,
    );
    text
}
