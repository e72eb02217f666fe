//! The words of `-o`, as the daemon that came with QEMU had them.
//!
//! They are applied on top of the separate options, wherever they stood.

use std::path::PathBuf;

use log::LevelFilter;

use super::Options;
use super::options::{CacheChoice, Negotiation, Sandbox};
use super::values::parse_xattr_map;

/// What a word does to the options.
enum Meaning {
    /// `word` switches on, `no_word` off.
    Switch(fn(&mut Options, bool)),
    /// `word=value`; a value that it cannot have is an error.
    Value(fn(&mut Options, &str) -> Result<(), String>),
    /// The word is right as it is, and says what holds anyway.
    Ignored,
}
use Meaning::{Ignored, Switch, Value};

/// Every word there is. What is not here is a usage error.
const WORDS: &[(&str, Meaning)] = &[
    ("source", Value(source)),
    ("cache", Value(cache)),
    ("sandbox", Value(sandbox)),
    ("loglevel", Value(log_level)),
    ("xattrmap", Value(xattr_map)),
    ("modcaps", Value(modcaps)),
    ("xattr", Switch(|options, on| options.xattr = on)),
    (
        "readdirplus",
        Switch(|options, on| options.no_readdirplus = !on),
    ),
    ("writeback", Switch(|options, on| options.writeback = on)),
    (
        "allow_direct_io",
        Switch(|options, on| options.allow_direct_io = on),
    ),
    ("killpriv_v2", Switch(killpriv_v2)),
    (
        "posix_acl",
        Switch(|options, on| options.posix_acl = negotiation(on)),
    ),
    (
        "security_label",
        Switch(|options, on| options.security_label = negotiation(on)),
    ),
    ("announce_submounts", Ignored),
    ("posix_lock", Switch(|options, on| options.posix_lock = on)),
    ("flock", Switch(|options, on| options.flock = on)),
];

/// Applies the words of every `-o`, in their order.
///
/// # Errors
/// A sentence about the first word or value that does not exist.
pub(super) fn apply(options: &mut Options) -> Result<(), String> {
    for list in options.compat.clone() {
        for word in split(&list) {
            apply_word(options, &word)?;
        }
    }
    Ok(())
}

/// Splits at commas. Two commas stand for one that is part of a word, which is
/// how libvirt writes a path with a comma in it.
fn split(list: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut characters = list.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(character);
        }
    }
    words
}

fn apply_word(options: &mut Options, word: &str) -> Result<(), String> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, None),
    };
    let (positive, on) = match name.strip_prefix("no_") {
        Some(positive) => (positive, false),
        None => (name, true),
    };
    for (known, meaning) in WORDS {
        match (meaning, value) {
            (Value(set), Some(value)) if *known == name => {
                return set(options, value)
                    .map_err(|cause| format!("invalid value '{value}' for '-o {name}': {cause}"));
            }
            (Switch(set), None) if *known == positive => {
                set(options, on);
                return Ok(());
            }
            (Ignored, None) if *known == name => return Ok(()),
            _ => {}
        }
    }
    Err(format!("unknown word '{word}' in '-o'"))
}

fn source(options: &mut Options, value: &str) -> Result<(), String> {
    options.shared_dir = Some(PathBuf::from(value));
    Ok(())
}

fn cache(options: &mut Options, value: &str) -> Result<(), String> {
    options.cache = match value {
        "auto" => CacheChoice::Auto,
        "always" => CacheChoice::Always,
        "none" => CacheChoice::Never,
        "metadata" => CacheChoice::Metadata,
        _ => return Err("one of auto, always, none, metadata is needed".to_owned()),
    };
    Ok(())
}

fn sandbox(options: &mut Options, value: &str) -> Result<(), String> {
    options.sandbox = match value {
        "namespace" => Sandbox::Namespace,
        "chroot" => Sandbox::Chroot,
        _ => return Err("one of namespace, chroot is needed".to_owned()),
    };
    Ok(())
}

fn log_level(options: &mut Options, value: &str) -> Result<(), String> {
    options.log_level = match value {
        "debug" => LevelFilter::Debug,
        "info" => LevelFilter::Info,
        "warn" => LevelFilter::Warn,
        "err" => LevelFilter::Error,
        _ => return Err("one of debug, info, warn, err is needed".to_owned()),
    };
    Ok(())
}

fn xattr_map(options: &mut Options, value: &str) -> Result<(), String> {
    options.xattrmap = Some(parse_xattr_map(value.as_bytes())?);
    Ok(())
}

fn modcaps(options: &mut Options, value: &str) -> Result<(), String> {
    options.modcaps = Some(value.to_owned());
    Ok(())
}

fn killpriv_v2(options: &mut Options, on: bool) {
    options.killpriv_v2 = on;
    options.no_killpriv_v2 = !on;
}

fn negotiation(on: bool) -> Negotiation {
    if on {
        Negotiation::Always
    } else {
        Negotiation::Never
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn applied(arguments: &[&str]) -> Result<Options, String> {
        let always = ["virtiofsd", "--socket-path", "socket"];
        let mut options = Options::try_parse_from(always.iter().chain(arguments)).unwrap();
        apply(&mut options).map(|()| options)
    }

    #[test]
    fn words_win_over_separate_options_wherever_they_stand() {
        let options = applied(&[
            "-o",
            "source=/a,cache=none,no_xattr",
            "--shared-dir=/b",
            "--cache=always",
            "--xattr",
        ])
        .unwrap();
        assert_eq!(options.shared_dir, Some(PathBuf::from("/a")));
        assert_eq!(options.cache, CacheChoice::Never);
        assert!(!options.xattr);
    }

    #[test]
    fn a_later_word_wins_over_an_earlier_one() {
        let options = applied(&["-o", "source=/a,xattr", "-o", "source=/b,no_xattr"]).unwrap();
        assert_eq!(options.shared_dir, Some(PathBuf::from("/b")));
        assert!(!options.xattr);
    }

    #[test]
    fn every_word_has_its_effect() {
        let words = "source=/a,cache=metadata,sandbox=chroot,loglevel=err,xattrmap=:map::u.:,\
                     modcaps=+chown,xattr,no_readdirplus,writeback,allow_direct_io,killpriv_v2,\
                     posix_acl,security_label,announce_submounts,posix_lock,flock";
        let options = applied(&["-o", words]).unwrap();
        assert_eq!(options.cache, CacheChoice::Metadata);
        assert_eq!(options.sandbox, Sandbox::Chroot);
        assert_eq!(options.log_level, LevelFilter::Error);
        assert_eq!(options.xattrmap.unwrap().len(), 2);
        assert_eq!(options.modcaps.as_deref(), Some("+chown"));
        assert!(options.xattr && options.no_readdirplus && options.writeback);
        assert!(options.allow_direct_io && options.killpriv_v2);
        assert_eq!(options.posix_acl, Negotiation::Always);
        assert_eq!(options.security_label, Negotiation::Always);
        assert!(options.posix_lock && options.flock);

        let off = "readdirplus,no_writeback,no_allow_direct_io,no_killpriv_v2,no_posix_acl,\
                   no_security_label,no_posix_lock,no_flock";
        let on = [
            "--no-readdirplus",
            "--writeback",
            "--allow-direct-io",
            "--killpriv-v2",
            "--posix-lock",
            "--flock",
        ];
        let mut arguments = vec!["-o", off, "--posix-acl", "--security-label"];
        arguments.extend(on);
        let options = applied(&arguments).unwrap();
        assert!(!options.no_readdirplus && !options.writeback);
        assert!(!options.allow_direct_io && !options.killpriv_v2);
        assert_eq!(options.posix_acl, Negotiation::Never);
        assert_eq!(options.security_label, Negotiation::Never);
        assert!(!options.posix_lock && !options.flock);
    }

    #[test]
    fn what_is_not_in_the_table_is_refused() {
        for bad in [
            "",
            ",",
            "xattr,",
            "no_announce_submounts",
            "vhost_user_socket=/a",
            "timeout=1",
            "thread_pool_size=1",
            "source",
            "cache",
            "xattr=1",
            "no_source=/a",
            " xattr",
            "no_no_xattr",
            "XATTR",
        ] {
            let error = applied(&["-o", bad]).unwrap_err();
            assert!(error.starts_with("unknown word"), "{bad}: {error}");
        }
        for bad in [
            "cache=never",
            "cache=AUTO",
            "cache=",
            "sandbox=none",
            "sandbox=CHROOT",
            "loglevel=trace",
            "xattrmap=foo",
        ] {
            let error = applied(&["-o", bad]).unwrap_err();
            assert!(error.starts_with("invalid value"), "{bad}: {error}");
        }
    }

    #[test]
    fn two_commas_are_one_of_a_path() {
        let options = applied(&["-o", "source=/a,,b=c,,,xattr"]).unwrap();
        assert_eq!(options.shared_dir, Some(PathBuf::from("/a,b=c,")));
        assert!(options.xattr);
    }
}
