//! The one file that knows bincode.
//!
//! bincode is unmaintained (RUSTSEC-2025-0141, argued in deny.toml); replacing it means replacing
//! the functions below and the golden bytes of `tests/golden.rs`.
//!
//! Encoding is fixed width and little endian; enum tags are 32 bits. Decoding reads no further than the
//! message goes, and trailing bytes are an error. What a length says is not allocated: for a sequence
//! serde makes room for 1 MiB of elements at most before any has come, and text is as long as what is
//! left (a fuzz target measures that).

use bincode::Options as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A message that could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The encoded form would exceed the limit agreed with the peer.
    #[error("Message of {size} bytes is above the limit of {limit}")]
    TooLarge {
        /// Bytes that the message would take.
        size: u64,
        /// Bytes that may be sent.
        limit: usize,
    },
    /// The type cannot be encoded at all: a defect of the caller.
    #[error("Message cannot be encoded")]
    Encode(#[source] bincode::Error),
    /// The bytes are no message of the expected type.
    #[error("Malformed message")]
    Malformed(#[source] bincode::Error),
}

fn options(limit: u64) -> impl bincode::Options {
    bincode::DefaultOptions::new()
        .with_limit(limit)
        .with_fixint_encoding()
        .with_little_endian()
        .reject_trailing_bytes()
}

/// Encodes `message` in at most `limit` bytes.
///
/// # Errors
/// [`CodecError::TooLarge`] above `limit`; nothing is allocated in that case.
pub fn encode<M: Serialize>(message: &M, limit: usize) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::new();
    encode_into(&mut bytes, message, limit)?;
    Ok(bytes)
}

/// Appends `message` to `bytes`, in at most `limit` bytes.
///
/// # Errors
/// As [`encode`]; `bytes` are then as they were.
pub fn encode_into<M: Serialize>(
    bytes: &mut Vec<u8>,
    message: &M,
    limit: usize,
) -> Result<(), CodecError> {
    let size = options(u64::MAX).serialized_size(message).map_err(CodecError::Encode)?;
    if size > limit as u64 {
        return Err(CodecError::TooLarge { size, limit });
    }
    let before = bytes.len();
    let encoded = options(limit as u64).serialize_into(&mut *bytes, message);
    encoded.map_err(|error| {
        bytes.truncate(before);
        CodecError::Encode(error)
    })
}

/// Decodes exactly one `M` from `bytes`.
///
/// # Errors
/// [`CodecError::Malformed`] for an unknown tag, a length past the end, invalid content or
/// trailing bytes.
pub fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, CodecError> {
    options(bytes.len() as u64).deserialize(bytes).map_err(CodecError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_the_bytes_do_not_hold_is_refused() {
        let mut bytes = encode(&vec![1u8, 2, 3], 64).unwrap();
        bytes[0] = 0xff;
        bytes[6] = 0xff;
        assert!(matches!(decode::<Vec<u8>>(&bytes), Err(CodecError::Malformed(_))));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&7u32, 64).unwrap();
        bytes.push(0);
        assert!(decode::<u32>(&bytes).is_err());
    }

    #[test]
    fn the_limit_is_checked_before_anything_is_encoded() {
        let error = encode(&vec![0u8; 100], 50).unwrap_err();
        assert!(matches!(error, CodecError::TooLarge { size: 108, limit: 50 }), "{error}");
    }
}
