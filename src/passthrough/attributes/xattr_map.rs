//! What extended attributes are called on the other side (`--xattrmap`).
//!
//! Names are bytes. The command line has made sure that every name meets a rule
//! in each direction; should one not, it is refused or hidden.
//!
//! No two names of the guest are one attribute on the host: otherwise a user
//! could set by one name, which the guest does not guard, what it guards by the
//! other (`user.x.security.capability` for `security.capability`, say).

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::sync::Arc;

use rustix::io::Errno;

use crate::config::{XattrRule, XattrRuleKind};
use crate::fs::Result;

/// The rules, or none, with which names are the same on both sides.
#[derive(Debug)]
pub struct XattrMap(Option<Arc<[XattrRule]>>);

impl XattrMap {
    /// A map by these rules.
    pub fn new(rules: Option<Arc<[XattrRule]>>) -> Self {
        Self(rules)
    }

    /// What the host calls the attribute that the guest calls `name`.
    ///
    /// # Errors
    /// `EPERM` or `ENOTSUP` where the rules say so; `EPERM` also for a name that
    /// belongs to another attribute of the guest.
    pub fn to_host<'n>(&self, name: &'n CStr) -> Result<Cow<'n, CStr>> {
        let Some(rules) = &self.0 else {
            return Ok(Cow::Borrowed(name));
        };
        let guest = name.to_bytes();
        let (place, rule) = rule_for_guest(rules, guest).ok_or(Errno::PERM)?;
        match rule.kind {
            XattrRuleKind::Bad => Err(Errno::PERM),
            XattrRuleKind::Unsupported => Err(Errno::NOTSUP),
            XattrRuleKind::Ok if owner(rules, guest).is_some() => Err(Errno::PERM),
            XattrRuleKind::Ok => Ok(Cow::Borrowed(name)),
            XattrRuleKind::Prefix => {
                let host = [&rule.prepend, guest].concat();
                if owner(rules, &host) != Some(place) {
                    return Err(Errno::PERM);
                }
                // A rule cannot hold a NUL: the command line has none.
                CString::new(host).map(Cow::Owned).map_err(|_| Errno::INVAL)
            }
        }
    }

    /// What the guest calls the attribute that the host calls `name`; `None` if
    /// it is hidden.
    pub fn to_guest<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        let Some(rules) = &self.0 else {
            return Some(name);
        };
        let rule = rules
            .iter()
            .find(|rule| rule.is_for_host() && name.starts_with(&rule.prepend))?;
        match rule.kind {
            XattrRuleKind::Prefix => name.strip_prefix(rule.prepend.as_slice()),
            XattrRuleKind::Ok => Some(name),
            XattrRuleKind::Bad | XattrRuleKind::Unsupported => None,
        }
    }
}

/// The first rule about a name of the guest, and its place in the list.
fn rule_for_guest<'r>(rules: &'r [XattrRule], name: &[u8]) -> Option<(usize, &'r XattrRule)> {
    rules
        .iter()
        .enumerate()
        .find(|(_, rule)| rule.is_for_guest() && name.starts_with(&rule.key))
}

/// The rule by which the guest reaches the attribute that the host calls `host`,
/// if that is one that puts something in front: it goes before one that leaves
/// names alone, and where several lead there, the first of them.
fn owner(rules: &[XattrRule], host: &[u8]) -> Option<usize> {
    rules.iter().enumerate().position(|(place, rule)| {
        rule.kind == XattrRuleKind::Prefix
            && rule.is_for_guest()
            && host
                .strip_prefix(rule.prepend.as_slice())
                .and_then(|guest| rule_for_guest(rules, guest))
                .is_some_and(|(first, _)| first == place)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::XattrScope;

    /// `KIND SCOPE KEY PREPEND`, with `-` for an empty field.
    fn map(rules: &[&str]) -> XattrMap {
        let bytes = |text: &str| text.trim_start_matches('-').as_bytes().to_vec();
        let rules = rules.iter().map(|rule| {
            let fields: Vec<&str> = rule.split(' ').collect();
            XattrRule {
                kind: match fields[0] {
                    "prefix" => XattrRuleKind::Prefix,
                    "ok" => XattrRuleKind::Ok,
                    "bad" => XattrRuleKind::Bad,
                    _ => XattrRuleKind::Unsupported,
                },
                scope: match fields[1] {
                    "client" => XattrScope::Client,
                    "server" => XattrScope::Server,
                    _ => XattrScope::All,
                },
                key: bytes(fields[2]),
                prepend: bytes(fields[3]),
            }
        });
        XattrMap::new(Some(rules.collect()))
    }

    fn to_host(map: &XattrMap, name: &str) -> Result<String> {
        let name = CString::new(name).unwrap();
        map.to_host(&name)
            .map(|host| host.to_str().unwrap().to_owned())
    }

    fn to_guest<'n>(map: &XattrMap, name: &'n str) -> Option<&'n str> {
        map.to_guest(name.as_bytes())
            .map(|name| std::str::from_utf8(name).unwrap())
    }

    #[test]
    fn without_rules_names_are_the_same() {
        let map = XattrMap::new(None);
        assert_eq!(map.to_host(c"user.\xff").unwrap().to_bytes(), b"user.\xff");
        assert_eq!(map.to_guest(b"user.\xff"), Some(&b"user.\xff"[..]));
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let map = map(&[
            "unsupported client system. -",
            "bad client user.secret. -",
            "prefix all trusted. user.v.",
            "bad server - security.",
            "ok all - -",
        ]);
        assert_eq!(to_host(&map, "system.x"), Err(Errno::NOTSUP));
        assert_eq!(to_host(&map, "user.secret.x"), Err(Errno::PERM));
        assert_eq!(to_host(&map, "user.secret").unwrap(), "user.secret");
        assert_eq!(to_host(&map, "trusted.x").unwrap(), "user.v.trusted.x");
        assert_eq!(to_host(&map, "security.x").unwrap(), "security.x");
        assert_eq!(to_guest(&map, "user.v.trusted.x"), Some("trusted.x"));
        assert_eq!(to_guest(&map, "security.x"), None);
        assert_eq!(to_guest(&map, "system.x"), Some("system.x"));
    }

    #[test]
    fn scopes_look_at_one_direction_only() {
        let map = map(&[
            "prefix client a. user.",
            "prefix server - user.",
            "bad server - -",
            "ok client - -",
        ]);
        assert_eq!(to_host(&map, "a.x").unwrap(), "user.a.x");
        assert_eq!(to_host(&map, "b.x").unwrap(), "b.x");
        assert_eq!(to_guest(&map, "user.a.x"), Some("a.x"));
        assert_eq!(to_guest(&map, "b.x"), None);
    }

    #[test]
    fn a_name_that_is_renamed_is_not_reached_directly() {
        let map = map(&["prefix all security. user.v.", "ok all - -"]);
        assert_eq!(
            to_host(&map, "security.capability").unwrap(),
            "user.v.security.capability"
        );
        assert_eq!(
            to_host(&map, "user.v.security.capability"),
            Err(Errno::PERM)
        );
        // Nothing is renamed to these.
        for name in ["user.v.", "user.v.user.x", "user.v.security", "user.x"] {
            assert_eq!(to_host(&map, name).unwrap(), name);
        }
    }

    #[test]
    fn a_name_that_meets_no_rule_is_refused_and_hidden() {
        let map = map(&["ok all user. user."]);
        assert_eq!(to_host(&map, "trusted.x"), Err(Errno::PERM));
        assert_eq!(to_guest(&map, "trusted.x"), None);
    }

    /// All strings of up to `length` letters.
    fn strings(length: usize) -> Vec<String> {
        let mut all = vec![String::new()];
        let mut last = all.clone();
        for _ in 0..length {
            last = last
                .iter()
                .flat_map(|text| ["a", "b"].map(|letter| format!("{text}{letter}")))
                .collect();
            all.extend(last.clone());
        }
        all
    }

    #[test]
    fn no_two_names_of_the_guest_are_one_on_the_host() {
        let short = strings(2);
        let names = strings(5);
        let field = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
        let mut seed = 1_u32;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as usize % below
        };
        for _ in 0..500 {
            let mut rules: Vec<String> = (0..random(4) + 1)
                .map(|_| {
                    let kind = ["prefix", "prefix", "ok", "bad"][random(4)];
                    let scope = ["all", "client"][random(2)];
                    let key = field(&short[random(short.len())]);
                    let prepend = field(&short[random(short.len())]);
                    format!("{kind} {scope} {key} {prepend}")
                })
                .collect();
            rules.push("ok all - -".to_owned());
            let map = map(&rules.iter().map(String::as_str).collect::<Vec<_>>());
            let mut seen = std::collections::HashMap::new();
            for name in &names {
                if let Ok(host) = to_host(&map, name)
                    && let Some(other) = seen.insert(host, name)
                {
                    panic!("{other:?} and {name:?} by {rules:?}");
                }
            }
        }
    }
}
