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

/// Builds [`Opcode`] and its properties from the table below.
///
/// A line `1 Lookup Names, Bytes(128), Reads;` becomes the variant
/// `Opcode::Lookup = 1` and one arm in each of `from_wire`, `body`, `answer` and
/// `effect`.
macro_rules! operations {
    ($($number:literal $name:ident $body:expr, $answer:expr, $effect:expr;)*) => {
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
        }
    };
}

use Answer::{Any, Bytes, Never};
use Body::{Fixed, Names, Payload};
use Effect::{ByArguments, Changes, Reads};

operations! {
    1  Lookup        Names,       Bytes(128), Reads;
    2  Forget        Fixed,       Never,      Reads;
    3  Getattr       Fixed,       Bytes(104), Reads;
    4  Setattr       Fixed,       Bytes(104), Changes;
    5  Readlink      Fixed,       Any,        Reads;
    6  Symlink       Names,       Bytes(128), Changes;
    8  Mknod         Names,       Bytes(128), Changes;
    9  Mkdir         Names,       Bytes(128), Changes;
    10 Unlink        Names,       Bytes(0),   Changes;
    11 Rmdir         Names,       Bytes(0),   Changes;
    12 Rename        Names,       Bytes(0),   Changes;
    13 Link          Names,       Bytes(128), Changes;
    14 Open          Fixed,       Bytes(16),  ByArguments;
    15 Read          Fixed,       Any,        Reads;
    16 Write         Payload(40), Bytes(8),   Changes;
    17 Statfs        Fixed,       Bytes(80),  Reads;
    18 Release       Fixed,       Bytes(0),   Reads;
    20 Fsync         Fixed,       Bytes(0),   Reads;
    21 Setxattr      Names,       Bytes(0),   Changes;
    22 Getxattr      Names,       Any,        Reads;
    23 Listxattr     Fixed,       Any,        Reads;
    24 Removexattr   Names,       Bytes(0),   Changes;
    25 Flush         Fixed,       Bytes(0),   Reads;
    26 Init          Fixed,       Bytes(64),  Reads;
    27 Opendir       Fixed,       Bytes(16),  Reads;
    28 Readdir       Fixed,       Any,        Reads;
    29 Releasedir    Fixed,       Bytes(0),   Reads;
    30 Fsyncdir      Fixed,       Bytes(0),   Reads;
    34 Access        Fixed,       Bytes(0),   ByArguments;
    35 Create        Names,       Bytes(144), ByArguments;
    36 Interrupt     Fixed,       Never,      Reads;
    38 Destroy       Fixed,       Bytes(0),   Reads;
    42 BatchForget   Payload(8),  Never,      Reads;
    43 Fallocate     Fixed,       Bytes(0),   Changes;
    44 Readdirplus   Fixed,       Any,        Reads;
    45 Rename2       Names,       Bytes(0),   Changes;
    46 Lseek         Fixed,       Bytes(8),   Reads;
    47 CopyFileRange Fixed,       Bytes(8),   Changes;
    50 Syncfs        Fixed,       Bytes(0),   Reads;
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
        for number in [0, 7, 19, 39, 41, 48, 53, 4096, u32::MAX] {
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
