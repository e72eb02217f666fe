//! The table of operations: everything that is known about each, once.

/// How the body of a request is laid out, and so how much of it is copied out
/// of guest memory before it is decoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Body {
    /// One struct of a fixed size, or nothing.
    Fixed,
    /// A struct, names, values and extensions, all of them decoded.
    Names,
    /// A struct of this many bytes, then data that stays in guest memory.
    Payload(usize),
}

/// Whether and how a request is answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// By at least this many bytes behind the header, or by an error.
    Bytes(usize),
    /// By as many bytes as there are, or by an error.
    Any,
    /// Nothing is written, not even an error.
    Never,
}

/// What a request does to the shared tree, which decides whether it is carried
/// out where the tree is read-only. Access times and locks do not count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Nothing, whatever the arguments.
    Reads,
    /// It changes the tree if it succeeds.
    Changes,
    /// The arguments say which; `server::read_only` knows how.
    ByArguments,
}

/// Whether serving a request may have to wait for a disk or a server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Waits {
    /// Not to speak of.
    No,
    /// Only where the file system is known to be slow.
    IfSlow,
    /// It is what the operation is about.
    Always,
    /// The same, unless there is no disk.
    UnlessInMemory,
    /// The file system finds out by trying.
    Tried,
}

/// Builds [`Opcode`] and its properties from the table below.
///
/// A line `1 Lookup Names, Bytes(128), Reads, IfSlow;` becomes the variant
/// `Opcode::Lookup = 1` and one arm in each of `from_wire`, `body`, `answer`,
/// `effect` and `waits`.
macro_rules! operations {
    ($($number:literal $name:ident $body:expr, $answer:expr, $effect:expr, $waits:expr;)*) => {
        /// An operation of the protocol (`fuse_opcode`).
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[allow(missing_docs)]
        pub enum Opcode { $($name = $number,)* }

        impl Opcode {
            /// All operations, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The operation of a number; `None` for one that is not served.
            pub fn from_wire(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// How the body of a request is laid out.
            pub fn body(self) -> Body {
                match self { $(Self::$name => $body,)* }
            }

            /// Whether and how the request is answered.
            pub fn answer(self) -> Answer {
                match self { $(Self::$name => $answer,)* }
            }

            /// What the request does to the shared tree.
            pub fn effect(self) -> Effect {
                match self { $(Self::$name => $effect,)* }
            }

            /// Whether serving the request may have to wait.
            pub fn waits(self) -> Waits {
                match self { $(Self::$name => $waits,)* }
            }
        }
    };
}

use Answer::{Any, Bytes, Never};
use Body::{Fixed, Names, Payload};
use Effect::{ByArguments, Changes, Reads};
use Waits::{Always, IfSlow, No, Tried, UnlessInMemory};

operations! {
    1  Lookup        Names,       Bytes(128), Reads,       IfSlow;
    2  Forget        Fixed,       Never,      Reads,       No;
    3  Getattr       Fixed,       Bytes(104), Reads,       IfSlow;
    4  Setattr       Fixed,       Bytes(104), Changes,     IfSlow;
    5  Readlink      Fixed,       Any,        Reads,       IfSlow;
    6  Symlink       Names,       Bytes(128), Changes,     IfSlow;
    8  Mknod         Names,       Bytes(128), Changes,     IfSlow;
    9  Mkdir         Names,       Bytes(128), Changes,     IfSlow;
    10 Unlink        Names,       Bytes(0),   Changes,     IfSlow;
    11 Rmdir         Names,       Bytes(0),   Changes,     IfSlow;
    12 Rename        Names,       Bytes(0),   Changes,     IfSlow;
    13 Link          Names,       Bytes(128), Changes,     IfSlow;
    14 Open          Fixed,       Bytes(16),  ByArguments, IfSlow;
    15 Read          Fixed,       Any,        Reads,       Tried;
    16 Write         Payload(40), Bytes(8),   Changes,     Tried;
    17 Statfs        Fixed,       Bytes(80),  Reads,       IfSlow;
    18 Release       Fixed,       Bytes(0),   Reads,       IfSlow;
    20 Fsync         Fixed,       Bytes(0),   Reads,       UnlessInMemory;
    21 Setxattr      Names,       Bytes(0),   Changes,     IfSlow;
    22 Getxattr      Names,       Any,        Reads,       IfSlow;
    23 Listxattr     Fixed,       Any,        Reads,       IfSlow;
    24 Removexattr   Names,       Bytes(0),   Changes,     IfSlow;
    25 Flush         Fixed,       Bytes(0),   Reads,       IfSlow;
    26 Init          Fixed,       Bytes(64),  Reads,       No;
    27 Opendir       Fixed,       Bytes(16),  Reads,       IfSlow;
    28 Readdir       Fixed,       Any,        Reads,       IfSlow;
    29 Releasedir    Fixed,       Bytes(0),   Reads,       IfSlow;
    30 Fsyncdir      Fixed,       Bytes(0),   Reads,       UnlessInMemory;
    31 Getlk         Fixed,       Bytes(24),  Reads,       IfSlow;
    32 Setlk         Fixed,       Bytes(0),   Reads,       IfSlow;
    33 Setlkw        Fixed,       Bytes(0),   Reads,       Tried;
    34 Access        Fixed,       Bytes(0),   ByArguments, IfSlow;
    35 Create        Names,       Bytes(144), ByArguments, IfSlow;
    36 Interrupt     Fixed,       Never,      Reads,       No;
    38 Destroy       Fixed,       Bytes(0),   Reads,       No;
    39 Ioctl         Names,       Bytes(16),  ByArguments, IfSlow;
    42 BatchForget   Payload(8),  Never,      Reads,       No;
    43 Fallocate     Fixed,       Bytes(0),   Changes,     Always;
    44 Readdirplus   Fixed,       Any,        Reads,       IfSlow;
    45 Rename2       Names,       Bytes(0),   Changes,     IfSlow;
    46 Lseek         Fixed,       Bytes(8),   Reads,       IfSlow;
    47 CopyFileRange Fixed,       Bytes(8),   Changes,     Always;
    50 Syncfs        Fixed,       Bytes(0),   Reads,       Always;
    51 Tmpfile       Names,       Bytes(144), Changes,     IfSlow;
    52 Statx         Fixed,       Bytes(288), Reads,       IfSlow;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_leads_back_to_its_operation() {
        for op in Opcode::ALL {
            assert_eq!(Opcode::from_wire(*op as u32), Some(*op));
        }
    }

    #[test]
    fn numbers_that_are_not_served_are_refused() {
        for number in [0, 7, 19, 40, 41, 48, 53, 4096, u32::MAX] {
            assert_eq!(Opcode::from_wire(number), None);
        }
    }

    #[test]
    fn only_forgets_and_interrupts_go_unanswered() {
        let silent: Vec<_> = Opcode::ALL
            .iter()
            .filter(|op| op.answer() == Answer::Never)
            .collect();
        assert_eq!(
            silent,
            [&Opcode::Forget, &Opcode::Interrupt, &Opcode::BatchForget]
        );
    }
}
