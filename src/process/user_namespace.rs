//! The user namespace that an ordinary user's sandbox needs: which ids it has.
//!
//! The kernel lets everyone map the own user and the own group, and nothing else.
//! For more there are newuidmap(1) and newgidmap(1), which look into /etc/subuid
//! and /etc/subgid for what the administrator allows.

use std::fs;
use std::io::ErrorKind;
use std::process::Command;

use anyhow::{Context, bail};
use rustix::process::{Pid, getegid, geteuid};

/// `count` ids of the namespace from `inside` on, and what they are outside.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IdRange {
    /// The first id in the namespace.
    pub inside: u32,
    /// The id that it is outside.
    pub outside: u32,
    /// How many ids follow each other.
    pub count: u32,
}

/// The ids of a user namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamespaceIds {
    users: Vec<IdRange>,
    groups: Vec<IdRange>,
}

/// What is different between users and groups.
struct Kind {
    /// The file of the process in `/proc`.
    file: &'static str,
    program: &'static str,
    allowed_in: &'static str,
    option: &'static str,
}

const USERS: Kind = Kind {
    file: "uid_map",
    program: "newuidmap",
    allowed_in: "/etc/subuid",
    option: "--uid-map",
};

const GROUPS: Kind = Kind {
    file: "gid_map",
    program: "newgidmap",
    allowed_in: "/etc/subgid",
    option: "--gid-map",
};

impl NamespaceIds {
    /// The ranges that the operator gave; where there are none, the caller is
    /// who it is outside.
    pub fn new(users: Vec<IdRange>, groups: Vec<IdRange>) -> Self {
        let or_itself = |ranges: Vec<IdRange>, id| {
            if ranges.is_empty() {
                vec![IdRange {
                    inside: id,
                    outside: id,
                    count: 1,
                }]
            } else {
                ranges
            }
        };
        Self {
            users: or_itself(users, geteuid().as_raw()),
            groups: or_itself(groups, getegid().as_raw()),
        }
    }

    /// Whether somebody is root in the namespace.
    pub fn have_root(&self) -> bool {
        let has_zero = |ranges: &[IdRange]| {
            let mut ranges = ranges.iter();
            ranges.any(|range| range.inside == 0 && range.count > 0)
        };
        has_zero(&self.users) && has_zero(&self.groups)
    }

    /// Sets the ids of the namespace that `process` is the first one in.
    ///
    /// # Errors
    /// Which map could not be set, and what may help.
    pub fn set_for(&self, process: Pid) -> anyhow::Result<()> {
        let own_user = geteuid().as_raw();
        if let Some(own) = is_only(&self.users, own_user) {
            write(process, USERS.file, &line(own))?;
        } else {
            run(&USERS, process, &self.users)?;
        }
        let own_group = getegid().as_raw();
        if let Some(own) = is_only(&self.groups, own_group) {
            // Without this a user could leave a group that is kept from
            // something, and so the kernel asks for it.
            write(process, "setgroups", "deny")?;
            write(process, GROUPS.file, &line(own))
        } else {
            run(&GROUPS, process, &self.groups)
        }
    }
}

/// The one range, where it is that of the id alone.
fn is_only(ranges: &[IdRange], id: u32) -> Option<IdRange> {
    match ranges {
        &[range] if range.outside == id && range.count == 1 => Some(range),
        _ => None,
    }
}

fn line(range: IdRange) -> String {
    let IdRange {
        inside,
        outside,
        count,
    } = range;
    format!("{inside} {outside} {count}\n")
}

fn write(process: Pid, file: &str, text: &str) -> anyhow::Result<()> {
    let path = format!("/proc/{process}/{file}");
    // In one write: the kernel takes no second one.
    fs::write(&path, text).with_context(|| format!("cannot write {path}"))
}

/// Has the program of the distribution set a map.
fn run(kind: &Kind, process: Pid, ranges: &[IdRange]) -> anyhow::Result<()> {
    let &Kind {
        program,
        allowed_in,
        option,
        ..
    } = kind;
    let numbers = ranges.iter().flat_map(|range| {
        let numbers = [range.inside, range.outside, range.count];
        numbers.map(|number| number.to_string())
    });
    let done = Command::new(program)
        .arg(process.to_string())
        .args(numbers)
        .output();
    match done {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr);
            bail!(
                "{program} ended with {}: {}; {option} takes what {allowed_in} allows this user, \
                 and where new privileges are forbidden, as in some containers, the own id only",
                done.status,
                said.trim()
            )
        }
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "{option} needs the program {program}, which was not found; install it (the package \
             uidmap of Debian), or map the own id only, as in {option}=:0:{}:1:",
            own_id(kind)
        ),
        Err(error) => Err(error).with_context(|| format!("cannot run {program}")),
    }
}

fn own_id(kind: &Kind) -> u32 {
    if kind.file == USERS.file {
        geteuid().as_raw()
    } else {
        getegid().as_raw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(inside: u32, outside: u32, count: u32) -> IdRange {
        IdRange {
            inside,
            outside,
            count,
        }
    }

    #[test]
    fn without_ranges_the_caller_is_itself() {
        let maps = NamespaceIds::new(Vec::new(), Vec::new());
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        assert_eq!(maps.users, [range(uid, uid, 1)]);
        assert_eq!(maps.groups, [range(gid, gid, 1)]);
    }

    #[test]
    fn only_the_own_id_alone_needs_no_program() {
        assert!(is_only(&[range(0, 1000, 1)], 1000).is_some());
        for ranges in [
            &[][..],
            &[range(0, 1000, 2)],
            &[range(0, 1001, 1)],
            &[range(0, 1000, 1), range(1, 100_000, 1)],
        ] {
            assert_eq!(is_only(ranges, 1000), None, "{ranges:?}");
        }
    }

    #[test]
    fn root_needs_a_user_and_a_group() {
        let root = || vec![range(5, 100_000, 1), range(0, 1000, 1)];
        let other = || vec![range(1, 1000, 1), range(0, 2000, 0)];
        assert!(NamespaceIds::new(root(), root()).have_root());
        assert!(!NamespaceIds::new(root(), other()).have_root());
        assert!(!NamespaceIds::new(other(), root()).have_root());
    }

    #[test]
    fn a_map_is_a_line_of_three_numbers() {
        assert_eq!(line(range(0, 1000, 1)), "0 1000 1\n");
    }
}
