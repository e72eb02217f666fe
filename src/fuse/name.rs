//! Names of directory entries.

use std::ffi::CStr;

use super::NAME_MAX;
use super::malformed::Malformed;

/// The name of a directory entry: not empty, not `.` or `..`, no `/`, no NUL,
/// at most [`NAME_MAX`] bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    /// Checks a string.
    ///
    /// # Errors
    /// `Malformed::NameTooLong` beyond [`NAME_MAX`], else `Malformed::BadName`.
    pub fn new(text: &'a CStr) -> Result<Self, Malformed> {
        let bytes = text.to_bytes();
        if bytes.len() > NAME_MAX {
            return Err(Malformed::NameTooLong);
        }
        if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
            return Err(Malformed::BadName);
        }
        Ok(Self(text))
    }

    /// The name for a system call.
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }
}
