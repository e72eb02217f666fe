//! The configuration space of the device (virtio 1.2, 5.11.4).

/// Bytes of the tag; a shorter one is padded with NUL.
pub const TAG_BYTES: usize = 36;

/// The bytes of the configuration space: the tag and the
/// number of request queues in little endian.
pub(super) fn bytes(tag: &[u8; TAG_BYTES], request_queues: u32) -> Vec<u8> {
    let mut space = tag.to_vec();
    space.extend_from_slice(&request_queues.to_le_bytes());
    space
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_is_the_tag_and_the_number_of_queues() {
        let space = bytes(&[b't'; TAG_BYTES], 0x0102);
        assert_eq!(space.len(), 40);
        assert_eq!(space[..36], [b't'; 36]);
        assert_eq!(space[36..], [2, 1, 0, 0]);
    }
}
