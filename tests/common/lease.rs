//! A process of the host that has a lease of a file (`fcntl(2)`, F_SETLEASE), as Samba
//! and NFS servers take them, and gives it up when the test says so.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// 1024 is F_SETLEASE, 1 is F_WRLCK and 0 F_RDLCK; SIGIO is what asks for it back.
const SCRIPT: &str = r#"
    $SIG{IO} = "IGNORE";
    open(my $file, $ARGV[0] ? "+<" : "<", $ARGV[1]) or die $!;
    fcntl($file, 1024, $ARGV[0] + 0) or die $!;
    $| = 1;
    print "held\n";
    <STDIN>;
"#;

pub struct Lease {
    holder: Child,
    until_closed: Option<ChildStdin>,
}

impl Lease {
    /// One that keeps everybody from opening the file, or who wants to write only.
    pub fn take(file: &Path, of_all: bool) -> Self {
        let mut holder = Command::new("perl")
            .args(["-e", SCRIPT, if of_all { "1" } else { "0" }])
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "held\n");
        let until_closed = holder.stdin.take();
        Self {
            holder,
            until_closed,
        }
    }

    /// Gives it up.
    pub fn give_up(&mut self) {
        if let Some(mut stdin) = self.until_closed.take() {
            let _ = stdin.write_all(b"\n");
        }
        let _ = self.holder.wait();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.give_up();
    }
}
