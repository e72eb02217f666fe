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

/// Builds [`Opcode`] and its properties from the table below.
///
/// A line `1 Lookup Names, Bytes(128);` becomes the variant `Opcode::Lookup = 1`
/// and one arm in each of `from_wire`, `body` and `answer`.
macro_rules! operations {
    ($($number:literal $name:ident $body:expr, $answer:expr;)*) => {
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
        }
    };
}

use Answer::{Any, Bytes, Never};
use Body::{Fixed, Names, Payload};

operations! {
    1  Lookup        Names,       Bytes(128);
    2  Forget        Fixed,       Never;
    3  Getattr       Fixed,       Bytes(104);
    4  Setattr       Fixed,       Bytes(104);
    5  Readlink      Fixed,       Any;
    6  Symlink       Names,       Bytes(128);
    8  Mknod         Names,       Bytes(128);
    9  Mkdir         Names,       Bytes(128);
    10 Unlink        Names,       Bytes(0);
    11 Rmdir         Names,       Bytes(0);
    12 Rename        Names,       Bytes(0);
    13 Link          Names,       Bytes(128);
    14 Open          Fixed,       Bytes(16);
    15 Read          Fixed,       Any;
    16 Write         Payload(40), Bytes(8);
    17 Statfs        Fixed,       Bytes(80);
    18 Release       Fixed,       Bytes(0);
    20 Fsync         Fixed,       Bytes(0);
    21 Setxattr      Names,       Bytes(0);
    22 Getxattr      Names,       Any;
    23 Listxattr     Fixed,       Any;
    24 Removexattr   Names,       Bytes(0);
    25 Flush         Fixed,       Bytes(0);
    26 Init          Fixed,       Bytes(64);
    27 Opendir       Fixed,       Bytes(16);
    28 Readdir       Fixed,       Any;
    29 Releasedir    Fixed,       Bytes(0);
    30 Fsyncdir      Fixed,       Bytes(0);
    34 Access        Fixed,       Bytes(0);
    35 Create        Names,       Bytes(144);
    36 Interrupt     Fixed,       Never;
    38 Destroy       Fixed,       Bytes(0);
    42 BatchForget   Payload(8),  Never;
    43 Fallocate     Fixed,       Bytes(0);
    44 Readdirplus   Fixed,       Any;
    45 Rename2       Names,       Bytes(0);
    46 Lseek         Fixed,       Bytes(8);
    47 CopyFileRange Fixed,       Bytes(8);
    50 Syncfs        Fixed,       Bytes(0);
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
