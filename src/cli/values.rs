//! Parsers of the values that have a syntax of their own.
//!
//! They check the form. Whether ranges overlap, or a capability exists on this
//! kernel, is for the part that uses them.

use std::str::FromStr;
use std::sync::Arc;

use anyhow::bail;
use log::LevelFilter;

use crate::config::{Range, Translation, XattrRule, XattrRuleKind, XattrScope};

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

/// Rules `:TYPE:SCOPE:KEY:PREPEND:`, or last and once `:map:KEY:PREPEND:`,
/// which stands for two or three of the others. The first character of each rule
/// is its delimiter; white space may stand in between. Fields are bytes.
pub(super) fn parse_xattr_map(text: &[u8]) -> Result<Arc<[XattrRule]>, String> {
    let mut rules = Vec::new();
    let mut rest = text.trim_ascii_start();
    for number in 1.. {
        if rest.is_empty() {
            break;
        }
        let (written, after) =
            parse_xattr_rule(rest).map_err(|cause| format!("rule {number}: {cause}"))?;
        rest = after.trim_ascii_start();
        match written {
            Written::Rule(rule) => rules.push(rule),
            Written::Map { .. } if !rest.is_empty() => {
                return Err(format!("rule {number}: nothing may follow a map rule"));
            }
            Written::Map { key, prepend } => rules.extend(map_rules(key, prepend)),
        }
    }
    if rules.is_empty() {
        return Err("at least one rule is needed".to_owned());
    }
    check_nothing_falls_through(&rules)?;
    Ok(rules.into())
}

/// A rule as it was written.
enum Written {
    Rule(XattrRule),
    Map { key: Vec<u8>, prepend: Vec<u8> },
}

fn parse_xattr_rule(text: &[u8]) -> Result<(Written, &[u8]), String> {
    // A character may have several bytes.
    let first = text.utf8_chunks().next();
    let first = first.and_then(|chunk| chunk.valid().chars().next());
    let (delimiter, mut rest) = text
        .split_at_checked(first.map_or(1, char::len_utf8))
        .unwrap_or((text, b""));
    let mut field = || -> Result<&[u8], String> {
        let middle = rest
            .windows(delimiter.len())
            .position(|bytes| bytes == delimiter)
            .ok_or("the rule is not complete")?;
        let (field, after) = rest.split_at(middle);
        rest = after.strip_prefix(delimiter).unwrap_or_default();
        Ok(field)
    };
    let kind = match field()? {
        b"map" => {
            let key = field()?.to_vec();
            let prepend = field()?.to_vec();
            return Ok((Written::Map { key, prepend }, rest));
        }
        b"prefix" => XattrRuleKind::Prefix,
        b"ok" => XattrRuleKind::Ok,
        b"bad" => XattrRuleKind::Bad,
        b"unsupported" => XattrRuleKind::Unsupported,
        other => {
            return Err(format!(
                "'{}' is none of prefix, ok, bad, unsupported, map",
                other.escape_ascii()
            ));
        }
    };
    let scope = match field()? {
        b"client" => XattrScope::Client,
        b"server" => XattrScope::Server,
        b"all" => XattrScope::All,
        other => {
            let other = other.escape_ascii();
            return Err(format!("'{other}' is none of client, server, all"));
        }
    };
    let key = field()?.to_vec();
    let prepend = field()?.to_vec();
    let rule = XattrRule {
        kind,
        scope,
        key,
        prepend,
    };
    Ok((Written::Rule(rule), rest))
}

/// What a map rule stands for: names that begin with `key` get `prepend` in
/// front, and nobody sees or reaches what is stored so by its other name. Where
/// `key` is empty all names are such; otherwise the others stay as they are.
fn map_rules(key: Vec<u8>, prepend: Vec<u8>) -> Vec<XattrRule> {
    let rule = |kind, key: &[u8], prepend: &[u8]| XattrRule {
        kind,
        scope: XattrScope::All,
        key: key.to_vec(),
        prepend: prepend.to_vec(),
    };
    let renamed = rule(XattrRuleKind::Prefix, &key, &prepend);
    if key.is_empty() {
        return vec![renamed, rule(XattrRuleKind::Bad, b"", b"")];
    }
    vec![
        renamed,
        rule(XattrRuleKind::Bad, &prepend, &key),
        rule(XattrRuleKind::Ok, b"", b""),
    ]
}

/// Makes sure that every name meets a rule, in each direction.
fn check_nothing_falls_through(rules: &[XattrRule]) -> Result<(), String> {
    let guest = |rule: &XattrRule| rule.is_for_guest() && rule.key.is_empty();
    let host = |rule: &XattrRule| rule.is_for_host() && rule.prepend.is_empty();
    for (whose, is_met) in [
        ("that the guest sends", rules.iter().any(guest)),
        ("that the host lists", rules.iter().any(host)),
    ] {
        if !is_met {
            return Err(format!(
                "names {whose} can pass by all rules; end the list with :bad:all::: or :ok:all:::"
            ));
        }
    }
    Ok(())
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

    fn rules(text: &str) -> Result<Vec<XattrRule>, String> {
        parse_xattr_map(text.as_bytes()).map(|rules| rules.to_vec())
    }

    #[test]
    fn xattr_rules_have_a_type_a_scope_and_two_beginnings() {
        let first = |text| rules(text).unwrap().swap_remove(0);
        assert_eq!(
            first(":prefix:client:a:b: /ok/all///"),
            XattrRule {
                kind: XattrRuleKind::Prefix,
                scope: XattrScope::Client,
                key: b"a".to_vec(),
                prepend: b"b".to_vec(),
            }
        );
        assert_eq!(first("ubaduserveru::u,u:ok:all:::").prepend, b",");
        assert_eq!(first("§bad§all§§§").kind, XattrRuleKind::Bad);
        assert_eq!(
            rules(" :bad:server:a::\n\t/unsupported/client/b//:ok:all:::\n")
                .unwrap()
                .len(),
            3
        );
    }

    #[test]
    fn xattr_rules_are_bytes() {
        let text = b"\xff".map(|delimiter| {
            [
                &b""[..],
                b"prefix",
                b"all",
                b"a\xfe",
                "\u{20ac}".as_bytes(),
                b"",
            ]
            .join(&delimiter)
        });
        let text = [&text[0], &b":ok:all:::"[..]].concat();
        let parsed = parse_xattr_map(&text).unwrap();
        assert_eq!(parsed[0].key, b"a\xfe");
        assert_eq!(parsed[0].prepend, b"\xe2\x82\xac");
    }

    #[test]
    fn a_map_rule_stands_for_others() {
        assert_eq!(
            rules(":map:trusted.:user.v.:"),
            rules(":prefix:all:trusted.:user.v.::bad:all:user.v.:trusted.::ok:all:::")
        );
        assert_eq!(
            rules("xmapxxuser.v.x"),
            rules(":prefix:all::user.v.::bad:all:::")
        );
    }

    #[test]
    fn a_list_through_which_a_name_can_fall_is_refused() {
        for (list, cause) in [
            (":ok:client:::", "names that the host lists"),
            (":ok:server:::", "names that the guest sends"),
            (":prefix:all::user.v.:", "names that the host lists"),
            (":bad:all:user.::", "names that the guest sends"),
            (":bad:all::user.:", "names that the host lists"),
            (":bad:all:a:b:", "names that the guest sends"),
        ] {
            let error = rules(list).unwrap_err();
            assert!(error.starts_with(cause), "{list}: {error}");
        }
        for list in [
            ":ok:client::x: :bad:server:x::",
            ":unsupported:all:::",
            ":map:a:b:",
            ":map:::",
        ] {
            assert!(rules(list).is_ok(), "{list}");
        }
    }

    #[test]
    fn what_is_no_list_of_xattr_rules_is_refused() {
        for (bad, cause) in [
            ("", "at least one"),
            (" ", "at least one"),
            ("foo", "rule 1: the rule is not complete"),
            (":", "rule 1: the rule is not complete"),
            (":foo:", "rule 1: 'foo'"),
            (":map:x:", "rule 1: the rule is not complete"),
            (":ok:all:x:", "rule 1: the rule is not complete"),
            (":ok:all::: :ok:some:::", "rule 2: 'some'"),
            (":map::x::ok:all:::", "rule 1: nothing may follow"),
            (":ok:all::: :map::x: :map::y:", "rule 2: nothing may follow"),
        ] {
            let error = rules(bad).unwrap_err();
            assert!(error.starts_with(cause), "{bad}: {error}");
        }
    }
}
