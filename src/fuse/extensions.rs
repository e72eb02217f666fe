//! The extensions behind the body of a creating request.
//!
//! `fuse_in_header.total_extlen` says how many units of 8 bytes they take. Each
//! begins with `fuse_ext_header`, whose size counts itself and its padding.

use std::ffi::CStr;

use super::XATTR_SIZE_MAX;
use super::abi::{self, ExtHeader};
use super::cursor::Cursor;
use super::malformed::Malformed;

/// `FUSE_MAX_NR_SECCTX`: a kind up to this is a number of security contexts.
const MAX_SECURITY_CONTEXTS: u32 = 31;

/// `FUSE_EXT_GROUPS`: supplementary groups of the caller.
const EXT_GROUPS: u32 = 32;

/// What the extensions of a request say.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Extensions<'a> {
    /// The supplementary group that gives the caller access to the directory;
    /// the guest names it only where there is one and it is needed.
    pub supplementary_group: Option<u32>,
    /// The security label of what is to be made.
    pub security_context: Option<SecurityContext<'a>>,
}

/// A security label and the extended attribute that holds it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SecurityContext<'a> {
    /// The attribute, such as `security.selinux`; any bytes.
    pub name: &'a CStr,
    /// Its value.
    pub label: &'a [u8],
}

/// Reads the extensions of a request; kinds that are not known are passed over.
///
/// # Errors
/// `Malformed` when a size lies.
pub fn decode_extensions(bytes: &[u8]) -> Result<Extensions<'_>, Malformed> {
    let mut cursor = Cursor::new(bytes);
    let mut found = Extensions::default();
    while !cursor.is_empty() {
        let header: ExtHeader = cursor.take()?;
        let body_len = (header.size as usize)
            .checked_sub(size_of::<ExtHeader>())
            .ok_or(Malformed::BadExtension)?;
        let mut body = Cursor::new(cursor.take_bytes(body_len)?);
        if header.kind <= MAX_SECURITY_CONTEXTS {
            // Kernels send one label or none.
            match (header.kind, found.security_context) {
                (0, _) => {}
                (1, None) => found.security_context = Some(security_context(&mut body)?),
                _ => return Err(Malformed::BadExtension),
            }
        } else if header.kind == EXT_GROUPS {
            // The kernel sends one group or none, and no more is asked for.
            found.supplementary_group = match body.take::<u32>()? {
                0 => None,
                1 => Some(body.take()?),
                _ => return Err(Malformed::BadExtension),
            };
        }
    }
    Ok(found)
}

fn security_context<'a>(body: &mut Cursor<'a>) -> Result<SecurityContext<'a>, Malformed> {
    let header: abi::SecurityContext = body.take()?;
    if header.size as usize > XATTR_SIZE_MAX {
        return Err(Malformed::ValueTooLong);
    }
    let name = body.take_c_str()?;
    let label = body.take_bytes(header.size as usize)?;
    Ok(SecurityContext { name, label })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group_extension(size: u32, count: u32, group: u32) -> Vec<u8> {
        [size, EXT_GROUPS, count, group]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect()
    }

    #[test]
    fn one_group_is_read() {
        let bytes = group_extension(16, 1, 1000);
        let found = decode_extensions(&bytes).unwrap();
        assert_eq!(found.supplementary_group, Some(1000));
    }

    #[test]
    fn a_list_of_no_group_is_none() {
        for bytes in [group_extension(16, 0, 0), Vec::new()] {
            let found = decode_extensions(&bytes).unwrap();
            assert_eq!(found.supplementary_group, None);
        }
    }

    /// An extension with `count` contexts, of which there is one; `size` is the
    /// label's.
    fn context_extension(count: u32, size: u32, label: &[u8]) -> Vec<u8> {
        let mut context = [size.to_ne_bytes(), [0; 4]].concat();
        context.extend(b"security.x\0");
        context.extend(label);
        context.resize(context.len().next_multiple_of(8), 0);
        let len = context.len() as u32 + 8;
        [&len.to_ne_bytes()[..], &count.to_ne_bytes(), &context].concat()
    }

    #[test]
    fn one_label_is_read_beside_the_group() {
        let context = SecurityContext {
            name: c"security.x",
            label: b"label\0",
        };
        let label = context_extension(1, 6, b"label\0");
        let group = group_extension(16, 1, 1000);
        for bytes in [
            [label.clone(), group.clone()].concat(),
            [group, label].concat(),
        ] {
            let found = decode_extensions(&bytes).unwrap();
            assert_eq!(found.security_context, Some(context));
            assert_eq!(found.supplementary_group, Some(1000));
        }
        let empty = context_extension(1, 0, b"");
        let empty = decode_extensions(&empty).unwrap().security_context;
        assert_eq!(empty.unwrap().label, b"");
    }

    #[test]
    fn a_list_of_no_label_is_none() {
        let none = [8_u32.to_ne_bytes(), 0_u32.to_ne_bytes()].concat();
        assert_eq!(decode_extensions(&none).unwrap(), Extensions::default());
    }

    #[test]
    fn labels_that_lie_are_refused() {
        for (count, size) in [(1, 100), (1, u32::MAX), (1, 65537), (2, 6), (31, 6)] {
            let bytes = context_extension(count, size, b"label\0");
            assert!(decode_extensions(&bytes).is_err(), "{count} {size}");
        }
        let whole = context_extension(1, 6, b"label\0");
        for len in 1..whole.len() {
            assert!(decode_extensions(&whole[..len]).is_err(), "{len}");
        }
        let twice = [whole.clone(), whole].concat();
        assert!(decode_extensions(&twice).is_err());
        // No NUL ends the name.
        let nameless = [
            &24_u32.to_ne_bytes()[..],
            &1_u32.to_ne_bytes(),
            &[0; 8],
            &[b'x'; 8],
        ];
        assert!(decode_extensions(&nameless.concat()).is_err());
    }

    #[test]
    fn sizes_that_lie_are_refused() {
        for size in [0, 1, 7, 17, 24, u32::MAX] {
            assert!(
                decode_extensions(&group_extension(size, 1, 1000)).is_err(),
                "{size}"
            );
        }
        assert!(decode_extensions(&group_extension(16, 2, 1000)).is_err());
        assert!(decode_extensions(&group_extension(16, u32::MAX, 1000)).is_err());
        let whole = group_extension(16, 1, 1000);
        for len in 1..whole.len() {
            assert!(decode_extensions(&whole[..len]).is_err(), "{len}");
        }
    }
}
