//! Tables of `doc/hostile-guest.md`: what was tried, and what came of it.
//!
//! A test notes each outcome and checks the table at its end: it fails where the
//! document says something else. With `VIRTIOFSD_WRITE_TABLES` in the environment
//! the table in the document is written anew instead.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Rows that are not listed one by one where their outcomes are the same.
const MANY: usize = 20;

/// Outcomes by row and column, each cell with all that were seen.
pub struct Table {
    name: &'static str,
    columns: Vec<&'static str>,
    /// Rows in the order in which they were first noted.
    rows: Vec<(String, Vec<BTreeSet<String>>)>,
}

impl Table {
    /// The first column is that of the rows' names.
    pub fn new(name: &'static str, columns: &[&'static str]) -> Self {
        Self {
            name,
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Notes an outcome.
    pub fn note(&mut self, row: &str, column: &str, outcome: impl Into<String>) {
        let at = self.columns.iter().position(|known| *known == column);
        let at = at.unwrap_or_else(|| panic!("no column {column}"));
        let index = match self.rows.iter().position(|(name, _)| name == row) {
            Some(index) => index,
            None => {
                let cells = vec![BTreeSet::new(); self.columns.len() - 1];
                self.rows.push((row.to_owned(), cells));
                self.rows.len() - 1
            }
        };
        self.rows[index].1[at - 1].insert(outcome.into());
    }

    /// Fails if another run has seen something else.
    #[track_caller]
    pub fn assert_like(&self, other: &Self) {
        assert!(
            self.text() == other.text(),
            "{}\nand then\n{}",
            self.text(),
            other.text()
        );
    }

    /// The table; rows with the same outcomes are one, and the longest of these is that
    /// of all others.
    fn text(&self) -> String {
        let mut merged: Vec<(Vec<&str>, Vec<String>)> = Vec::new();
        for (name, cells) in &self.rows {
            let cells: Vec<_> = cells.iter().map(cell).collect();
            match merged.iter_mut().find(|(_, same)| *same == cells) {
                Some((names, _)) => names.push(name),
                None => merged.push((vec![name], cells)),
            }
        }
        let most = merged.iter().map(|(names, _)| names.len()).max();
        let others = merged
            .iter()
            .position(|(names, _)| Some(names.len()) == most);
        if most >= Some(MANY) {
            let (_, cells) = merged.remove(others.unwrap_or_default());
            merged.push((vec!["all others"], cells));
        }
        let mut lines = vec![
            line(self.columns.iter().copied()),
            line(self.columns.iter().map(|_| "---")),
        ];
        for (names, cells) in merged {
            let names = names.join(", ");
            let cells = cells.iter().map(String::as_str);
            lines.push(line([names.as_str()].into_iter().chain(cells)));
        }
        lines.join("\n")
    }

    /// Compares the table with that of the document, or writes it there.
    #[track_caller]
    pub fn check(self) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("doc/hostile-guest.md");
        // Tests that run at the same time write to it too.
        let file = File::open(&path).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        let document = fs::read_to_string(&path).unwrap();
        let (begin, end) = (format!("<!-- table: {} -->\n", self.name), "\n<!-- end -->");
        let places = document.split_once(&begin).and_then(|(before, rest)| {
            let (table, after) = rest.split_once(end)?;
            Some((before, table, after))
        });
        let Some((before, table, after)) = places else {
            panic!("no table {} in {}", self.name, path.display());
        };
        let seen = self.text();
        if std::env::var_os("VIRTIOFSD_WRITE_TABLES").is_some() {
            fs::write(&path, [before, &begin, &seen, end, after].concat()).unwrap();
        } else {
            assert!(
                table == seen,
                "table {:?} of doc/hostile-guest.md is\n{table}\nbut this was seen:\n{seen}\n\
                 VIRTIOFSD_WRITE_TABLES=1 writes it anew (doc/testing.md)",
                self.name
            );
        }
    }
}

fn cell(outcomes: &BTreeSet<String>) -> String {
    if outcomes.is_empty() {
        return "–".to_owned();
    }
    let outcomes: Vec<_> = outcomes.iter().map(String::as_str).collect();
    outcomes.join(", ")
}

fn line<'a>(cells: impl Iterator<Item = &'a str>) -> String {
    let cells: Vec<_> = cells.map(|cell| cell.replace('|', "\\|")).collect();
    format!("| {} |", cells.join(" | "))
}

/// An errno by its name.
pub fn errno_name(errno: i32) -> String {
    let names = [
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::EIO, "EIO"),
        (libc::ENXIO, "ENXIO"),
        (libc::E2BIG, "E2BIG"),
        (libc::EBADF, "EBADF"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EFAULT, "EFAULT"),
        (libc::EEXIST, "EEXIST"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::EISDIR, "EISDIR"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOTTY, "ENOTTY"),
        (libc::EFBIG, "EFBIG"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::ERANGE, "ERANGE"),
        (libc::ENAMETOOLONG, "ENAMETOOLONG"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ENODATA, "ENODATA"),
        (libc::EPROTO, "EPROTO"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::ESTALE, "ESTALE"),
        (libc::ELOOP, "ELOOP"),
    ];
    let known = names.iter().find(|(number, _)| *number == errno);
    known.map_or_else(|| format!("error {errno}"), |(_, name)| (*name).to_owned())
}
