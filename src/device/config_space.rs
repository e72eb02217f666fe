//! The configuration space of the device (virtio 1.2, 5.11.4).

/// The most bytes of a tag.
pub const MAX_TAG_BYTES: usize = 36;

/// The name by which the guest mounts the share: 1 to 36 bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tag(String);

impl Tag {
    /// Checks a tag; `None` if it is empty or too long.
    pub fn new(text: &str) -> Option<Self> {
        (1..=MAX_TAG_BYTES)
            .contains(&text.len())
            .then(|| Self(text.to_owned()))
    }
}

/// The bytes of the configuration space: the tag padded with NUL, and the
/// number of request queues in little endian.
pub(super) fn bytes(tag: &Tag, request_queues: u32) -> Vec<u8> {
    let mut space = tag.0.as_bytes().to_vec();
    space.resize(MAX_TAG_BYTES, 0);
    space.extend_from_slice(&request_queues.to_le_bytes());
    space
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_has_1_to_36_bytes() {
        assert_eq!(Tag::new(""), None);
        assert!(Tag::new("x").is_some());
        assert!(Tag::new(&"x".repeat(36)).is_some());
        assert_eq!(Tag::new(&"x".repeat(37)), None);
        assert_eq!(Tag::new(&"ä".repeat(19)), None);
    }

    #[test]
    fn the_space_is_the_padded_tag_and_the_number_of_queues() {
        let space = bytes(&Tag::new("share").unwrap(), 0x0102);
        assert_eq!(space.len(), 40);
        assert_eq!(&space[..6], b"share\0");
        assert_eq!(&space[5..36], [0; 31]);
        assert_eq!(space[36..], [2, 1, 0, 0]);
    }
}
