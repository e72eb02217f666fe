//! Taking a request body apart, front to back, without ever panicking.

use std::ffi::CStr;

use zerocopy::FromBytes;

use super::malformed::Malformed;
use super::name::Name;

/// What is left of a request body.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Starts at the front of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes one wire struct.
    ///
    /// # Errors
    /// `Malformed::Short` if fewer bytes are left.
    pub fn take<T: FromBytes>(&mut self) -> Result<T, Malformed> {
        let (value, rest) = T::read_from_prefix(self.rest).map_err(|_| Malformed::Short)?;
        self.rest = rest;
        Ok(value)
    }

    /// Takes `len` bytes.
    ///
    /// # Errors
    /// `Malformed::Short` if fewer bytes are left.
    pub fn take_bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// Takes a string up to and with its NUL.
    ///
    /// # Errors
    /// `Malformed::Short` if there is no NUL.
    pub fn take_c_str(&mut self) -> Result<&'a CStr, Malformed> {
        let text = CStr::from_bytes_until_nul(self.rest).map_err(|_| Malformed::Short)?;
        self.rest = self.rest.get(text.count_bytes() + 1..).unwrap_or_default();
        Ok(text)
    }

    /// Takes the name of a directory entry.
    ///
    /// # Errors
    /// As [`Cursor::take_c_str`] and [`Name::new`].
    pub fn take_name(&mut self) -> Result<Name<'a>, Malformed> {
        Name::new(self.take_c_str()?)
    }

    /// Takes all that is left.
    pub fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(bytes: &[u8]) -> Result<&[u8], Malformed> {
        Cursor::new(bytes)
            .take_name()
            .map(|name| name.as_c_str().to_bytes())
    }

    #[test]
    fn a_name_may_hold_any_byte_but_nul_and_slash() {
        assert_eq!(name(b"a\0"), Ok(&b"a"[..]));
        assert_eq!(name(b"\xff\x80 \n\0rest"), Ok(&b"\xff\x80 \n"[..]));
        assert_eq!(name(b"...\0"), Ok(&b"..."[..]));
    }

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for bad in [&b"\0"[..], b".\0", b"..\0", b"a/b\0", b"/\0", b"../x\0"] {
            assert_eq!(name(bad), Err(Malformed::BadName), "{bad:?}");
        }
    }

    #[test]
    fn a_name_without_its_nul_is_short() {
        assert_eq!(name(b"abc"), Err(Malformed::Short));
        assert_eq!(name(b""), Err(Malformed::Short));
    }

    #[test]
    fn the_longest_name_has_1024_bytes() {
        let mut text = vec![b'x'; 1024];
        text.push(0);
        assert_eq!(name(&text).map(<[u8]>::len), Ok(1024));
        text.insert(0, b'x');
        assert_eq!(name(&text), Err(Malformed::NameTooLong));
    }
}
