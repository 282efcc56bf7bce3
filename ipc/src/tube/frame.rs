//! The 16 bytes in front of every message, little endian.
//!
//! | offset | size | what |
//! | --- | --- | --- |
//! | 0 | 4 | length of header and body, at most [`super::MAX_MESSAGE`] |
//! | 4 | 4 | number of the request; a reply repeats it |
//! | 8 | 2 | descriptors beside the message, at most [`super::MAX_HANDLES`] |
//! | 10 | 6 | reserved, 0 |

use super::{MAX_HANDLES, MAX_MESSAGE};

/// Size of the header in bytes.
pub const HEADER: usize = 16;

/// A header that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Header and body in bytes.
    pub length: u32,
    /// Request number.
    pub id: u32,
    /// Descriptors beside the message.
    pub handles: u16,
}

/// Bytes that are no frame of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a header.
    #[error("{0} bytes are no header")]
    Short(usize),
    /// The length field is below the header's or above the limit.
    #[error("length {0} is not between {HEADER} and {MAX_MESSAGE}")]
    Length(u32),
    /// The length field and the packet disagree.
    #[error("length says {said}, {came} bytes came")]
    Mismatch {
        /// The length field.
        said: u32,
        /// Bytes received.
        came: usize,
    },
    /// More descriptors announced than a message may carry.
    #[error("{0} descriptors announced, the limit is {MAX_HANDLES}")]
    TooManyHandles(u16),
    /// Another number of descriptors came than was announced.
    #[error("{said} descriptors announced, {came} came")]
    Handles {
        /// The count field.
        said: u16,
        /// Descriptors received.
        came: usize,
    },
    /// Reserved bytes are not zero.
    #[error("reserved header bytes are set")]
    Reserved,
    /// An acknowledgement of nothing, or far too few of them.
    #[error("acknowledgements of descriptors are out of step")]
    Acknowledgement,
    /// The packet or its control data did not fit and was cut.
    #[error("the message was truncated")]
    Truncated,
}

impl Header {
    /// The header for a body of `body` bytes. The caller has checked both limits.
    #[expect(clippy::cast_possible_truncation, reason = "capped by the two limits")]
    pub(crate) fn new(body: usize, id: u32, handles: usize) -> Self {
        debug_assert!(HEADER + body <= MAX_MESSAGE && handles <= MAX_HANDLES);
        Self { length: (HEADER + body) as u32, id, handles: handles as u16 }
    }

    /// As it travels.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.handles.to_le_bytes());
        bytes
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`FrameError`] naming the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let Some((header, _)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(FrameError::Short(bytes.len()));
        };
        let [l0, l1, l2, l3, i0, i1, i2, i3, h0, h1, reserved @ ..] = *header;
        let header = Self {
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            id: u32::from_le_bytes([i0, i1, i2, i3]),
            handles: u16::from_le_bytes([h0, h1]),
        };
        let length = header.length as usize;
        if !(HEADER..=MAX_MESSAGE).contains(&length) {
            return Err(FrameError::Length(header.length));
        }
        if usize::from(header.handles) > MAX_HANDLES {
            return Err(FrameError::TooManyHandles(header.handles));
        }
        if reserved != [0; 6] {
            return Err(FrameError::Reserved);
        }
        Ok(header)
    }
}
