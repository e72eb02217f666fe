//! Parsers of the values that have a syntax of their own.
//!
//! They check the form. Whether ranges overlap, or a capability exists on this
//! kernel, is for the part that uses them.

use std::str::FromStr;
use std::sync::Arc;

use anyhow::bail;
use log::LevelFilter;

use crate::config::{Range, Translation};

/// Bytes of the tag field in the configuration space (virtio 1.2, 5.11.4).
const TAG_BYTES: usize = 36;

/// The name that the guest mounts by: 1 to 36 bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tag(String);

impl Tag {
    /// The tag as the configuration space holds it, filled up with NUL.
    pub fn padded(&self) -> [u8; TAG_BYTES] {
        let mut bytes = [0; TAG_BYTES];
        bytes
            .iter_mut()
            .zip(self.0.bytes())
            .for_each(|(to, from)| *to = from);
        bytes
    }
}

/// `--tag`.
pub(super) fn parse_tag(text: &str) -> Result<Tag, String> {
    match text.len() {
        0 => Err("a tag has at least one byte; leave the option out to have none".to_owned()),
        1..=TAG_BYTES => Ok(Tag(text.to_owned())),
        length => Err(format!(
            "{length} bytes are too long for a tag, which has at most 36"
        )),
    }
}

/// `--log-level`.
pub(super) fn parse_log_level(text: &str) -> Result<LevelFilter, String> {
    LevelFilter::from_str(text)
        .map_err(|_| "one of error, warn, info, debug, trace, off is needed".to_owned())
}

/// One entry of `--uid-map` or `--gid-map`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IdMap {
    /// The first id in the namespace.
    pub inside: u32,
    /// The id that it stands for outside.
    pub outside: u32,
    /// How many ids follow each other.
    pub count: u32,
}

/// `:INSIDE:OUTSIDE:COUNT:`, where any one character that is neither letter
/// nor digit may stand for the colon.
pub(super) fn parse_id_map(text: &str) -> Result<IdMap, String> {
    let form = || "the form is :INSIDE:OUTSIDE:COUNT:, with one delimiter throughout".to_owned();
    let delimiter = text
        .chars()
        .next()
        .filter(|c| !c.is_alphanumeric())
        .ok_or_else(form)?;
    let inner = text
        .strip_prefix(delimiter)
        .and_then(|rest| rest.strip_suffix(delimiter))
        .ok_or_else(form)?;
    let fields: Vec<&str> = inner.split(delimiter).collect();
    let &[inside, outside, count] = fields.as_slice() else {
        return Err(form());
    };
    Ok(IdMap {
        inside: number(inside)?,
        outside: number(outside)?,
        count: number(count)?,
    })
}

fn number(text: &str) -> Result<u32, String> {
    // `parse` alone would take a plus sign.
    if text.starts_with(|c: char| c.is_ascii_digit())
        && let Ok(number) = text.parse()
    {
        return Ok(number);
    }
    Err(format!("'{text}' is not a number from 0 to {}", u32::MAX))
}

/// `TYPE:FROM:TO:COUNT` or `forbid-guest:FROM:COUNT`, where any one character
/// that cannot be part of a type may stand for the colon.
pub(super) fn parse_translation(text: &str) -> Result<Translation, String> {
    let is_delimiter = |c: &char| !c.is_alphanumeric() && *c != '-' && *c != '_';
    let delimiter = text.chars().find(is_delimiter).unwrap_or(':');
    let mut fields = text.split(delimiter);
    let kind = fields.next().unwrap_or_default().to_ascii_lowercase();
    let range: fn(Range) -> Translation = match kind.as_str() {
        "guest" => Translation::Guest,
        "host" => Translation::Host,
        "map" => Translation::Map,
        "squash-guest" => Translation::SquashGuest,
        "squash-host" => Translation::SquashHost,
        "forbid-guest" => {
            let numbers = fields.map(number).collect::<Result<Vec<_>, _>>()?;
            let &[from, count] = numbers.as_slice() else {
                return Err("the form is forbid-guest:FROM:COUNT".to_owned());
            };
            return Ok(Translation::ForbidGuest { from, count });
        }
        _ => {
            return Err(format!(
                "'{kind}' is none of guest, host, map, squash-guest, squash-host, forbid-guest"
            ));
        }
    };
    let numbers = fields.map(number).collect::<Result<Vec<_>, _>>()?;
    let &[from, to, count] = numbers.as_slice() else {
        return Err(format!("the form is {kind}:FROM:TO:COUNT"));
    };
    Ok(range(Range { from, to, count }))
}

/// What `--modcaps` adds and removes, in capital letters, without `CAP_`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ModCaps {
    /// Capabilities to keep besides the usual ones.
    pub add: Vec<String>,
    /// Capabilities to drop.
    pub remove: Vec<String>,
}

/// `+NAME` or `-NAME`, joined by colons. The names are not looked up.
///
/// # Errors
/// When an element is empty or has neither sign.
pub(super) fn parse_modcaps(text: &str) -> anyhow::Result<ModCaps> {
    let mut caps = ModCaps::default();
    for element in text.split(':') {
        let (list, name) = if let Some(name) = element.strip_prefix('+') {
            (&mut caps.add, name)
        } else if let Some(name) = element.strip_prefix('-') {
            (&mut caps.remove, name)
        } else {
            bail!("--modcaps: '{element}' does not begin with + or -; an example is +sys_admin");
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            bail!("--modcaps: '{element}' does not name a capability; an example is +sys_admin");
        }
        list.push(name.to_ascii_uppercase());
    }
    Ok(caps)
}

/// One rule of `--xattrmap` as it was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct XattrRule {
    /// What the rule does.
    pub kind: XattrRuleKind,
    /// Which names it looks at: `None` for a map rule, which has no scope.
    pub scope: Option<XattrScope>,
    /// The beginning of a guest's name.
    pub key: String,
    /// The beginning of a host's name.
    pub prepend: String,
}

/// What a rule of `--xattrmap` does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum XattrRuleKind {
    /// Puts `prepend` in front for the host, takes it away for the guest.
    Prefix,
    /// Passes the name on as it is.
    Ok,
    /// Refuses or hides the name.
    Bad,
    /// Says that such names are not supported, or hides them.
    Unsupported,
    /// Stands for a whole list of the others.
    Map,
}

/// Whose names a rule of `--xattrmap` looks at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum XattrScope {
    /// Those that the guest sends.
    Client,
    /// Those that the host lists.
    Server,
    /// Both.
    All,
}

/// Rules `:TYPE:SCOPE:KEY:PREPEND:`, or last and once `:map:KEY:PREPEND:`. The
/// first character of each rule is its delimiter; white space may stand in
/// between.
pub(super) fn parse_xattr_map(text: &str) -> Result<Arc<[XattrRule]>, String> {
    let mut rules = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let number = rules.len() + 1;
        let (rule, after) =
            parse_xattr_rule(rest).map_err(|cause| format!("rule {number}: {cause}"))?;
        rest = after.trim_start();
        if rule.kind == XattrRuleKind::Map && !rest.is_empty() {
            return Err(format!("rule {number}: nothing may follow a map rule"));
        }
        rules.push(rule);
    }
    if rules.is_empty() {
        return Err("at least one rule is needed".to_owned());
    }
    Ok(rules.into())
}

fn parse_xattr_rule(text: &str) -> Result<(XattrRule, &str), String> {
    let delimiter = text.chars().next().unwrap_or(':');
    let mut rest = text.strip_prefix(delimiter).unwrap_or(text);
    let mut field = || -> Result<&str, String> {
        let (field, after) = rest
            .split_once(delimiter)
            .ok_or("the rule is not complete")?;
        rest = after;
        Ok(field)
    };
    let kind = match field()? {
        "prefix" => XattrRuleKind::Prefix,
        "ok" => XattrRuleKind::Ok,
        "bad" => XattrRuleKind::Bad,
        "unsupported" => XattrRuleKind::Unsupported,
        "map" => XattrRuleKind::Map,
        other => {
            return Err(format!(
                "'{other}' is none of prefix, ok, bad, unsupported, map"
            ));
        }
    };
    let scope = if kind == XattrRuleKind::Map {
        None
    } else {
        Some(match field()? {
            "client" => XattrScope::Client,
            "server" => XattrScope::Server,
            "all" => XattrScope::All,
            other => return Err(format!("'{other}' is none of client, server, all")),
        })
    };
    let key = field()?.to_owned();
    let prepend = field()?.to_owned();
    Ok((
        XattrRule {
            kind,
            scope,
            key,
            prepend,
        },
        rest,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_has_1_to_36_bytes() {
        assert!(parse_tag("").is_err());
        assert!(parse_tag(&"é".repeat(18)).is_ok());
        assert!(parse_tag(&"é".repeat(19)).is_err());
        assert!(parse_tag(&"a".repeat(37)).is_err());
        assert_eq!(parse_tag(&"a".repeat(36)).unwrap().padded(), [b'a'; 36]);
        assert_eq!(parse_tag("ab").unwrap().padded()[..4], *b"ab\0\0");
    }

    #[test]
    fn a_log_level_may_be_in_any_case() {
        assert_eq!(parse_log_level("DeBug"), Ok(LevelFilter::Debug));
        assert_eq!(parse_log_level("OFF"), Ok(LevelFilter::Off));
        assert!(parse_log_level("warning").is_err());
        assert!(parse_log_level("").is_err());
    }

    #[test]
    fn an_id_map_has_one_delimiter_and_three_numbers() {
        let expected = IdMap {
            inside: 1,
            outside: 2,
            count: 3,
        };
        for good in [":1:2:3:", ",1,2,3,", " 1 2 3 ", "-1-2-3-", "/1/2/3/"] {
            assert_eq!(parse_id_map(good), Ok(expected), "{good}");
        }
        for bad in [
            "",
            ":",
            "::",
            "1:2:3",
            ":1:2:3",
            "a1a2a3a",
            ":1,2:3:",
            ":1:2:",
            ":1:2:3:4:",
            ":-1:2:3:",
            ":+1:2:3:",
            ":1:2:x:",
            ":4294967296:1:1:",
            ": 1:2:3:",
        ] {
            assert!(parse_id_map(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_translation_has_a_type_and_its_numbers() {
        let range = Range {
            from: 1,
            to: 2,
            count: 3,
        };
        for (text, expected) in [
            ("guest:1:2:3", Translation::Guest(range)),
            ("HOST,1,2,3", Translation::Host(range)),
            ("map 1 2 3", Translation::Map(range)),
            ("Squash-Guest/1/2/3", Translation::SquashGuest(range)),
            ("squash-host:1:2:3", Translation::SquashHost(range)),
            (
                "forbid-guest:1:3",
                Translation::ForbidGuest { from: 1, count: 3 },
            ),
        ] {
            assert_eq!(parse_translation(text), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "guest",
            "guest:1:2",
            "guest:1:2:3:",
            "guest:1:2:3:4",
            "guest:1,2:3",
            "guest_1_2_3",
            "guest:-1:2:3",
            ":guest:1:2:3",
            "forbid-guest:1:2:3",
            "forbid-host:1:2",
            "squash_guest:1:2:3",
            "guest:1:2:4294967296",
        ] {
            assert!(parse_translation(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn modcaps_have_a_sign_and_a_name() {
        let caps = parse_modcaps("+sys_admin:-CHOWN:+Mknod").unwrap();
        assert_eq!(caps.add, ["SYS_ADMIN", "MKNOD"]);
        assert_eq!(caps.remove, ["CHOWN"]);
        for bad in [
            "",
            "+",
            "-",
            "chown",
            "+chown:",
            ":+chown",
            "+chown,-mknod",
            "++chown",
        ] {
            assert!(parse_modcaps(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn xattr_rules_are_complete_and_a_map_is_the_last() {
        let rules = parse_xattr_map(":prefix:client:a:b: /ok/all///\n\t:map::user.x.:").unwrap();
        assert_eq!(rules.len(), 3);
        assert_eq!(
            rules[0],
            XattrRule {
                kind: XattrRuleKind::Prefix,
                scope: Some(XattrScope::Client),
                key: "a".to_owned(),
                prepend: "b".to_owned(),
            }
        );
        assert_eq!(
            (rules[1].kind, rules[1].key.as_str()),
            (XattrRuleKind::Ok, "")
        );
        assert_eq!(
            (rules[2].kind, rules[2].prepend.as_str()),
            (XattrRuleKind::Map, "user.x.")
        );
        for good in [
            ":bad:server:a::",
            ":unsupported:all:a:b:",
            ":ok:all:::",
            "xmapxyxzx",
        ] {
            assert!(parse_xattr_map(good).is_ok(), "{good}");
        }
        for (bad, cause) in [
            ("", "at least one"),
            (" ", "at least one"),
            ("foo", "rule 1: the rule is not complete"),
            (":foo:", "rule 1: 'foo'"),
            (":ok:all:x:", "rule 1: the rule is not complete"),
            (":ok:all::: :ok:some:::", "rule 2: 'some'"),
            (":map::x::ok:all:::", "rule 1: nothing may follow"),
            (":map::x: :map::y:", "rule 1: nothing may follow"),
        ] {
            let error = parse_xattr_map(bad).unwrap_err();
            assert!(error.starts_with(cause), "{bad}: {error}");
        }
    }
}
