//! What is taken of the programs that are started, at most.

use std::io::{self, Read};

/// Longest answer of a program that is asked something, in bytes: the state of thousands of functions.
pub(crate) const MAX_ANSWER: u64 = 4 << 20;

/// All that comes, as text.
///
/// # Errors
/// Those of the reader; [`io::ErrorKind::InvalidData`] for what is no text or is longer than [`MAX_ANSWER`].
pub(crate) fn answer(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(MAX_ANSWER + 1).read_to_string(&mut text)?;
    taken(text)
}

/// What was read of an answer, of which one byte more than [`MAX_ANSWER`] was asked for.
pub(crate) fn taken(text: String) -> io::Result<String> {
    if text.len() as u64 > MAX_ANSWER {
        let why = format!("an answer is longer than {MAX_ANSWER} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_a_byte_too_long_is_an_error() {
        let of = |length| answer(io::repeat(b'x').take(length));
        assert_eq!(of(MAX_ANSWER).unwrap().len() as u64, MAX_ANSWER);
        let error = of(MAX_ANSWER + 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(answer(io::repeat(0xff).take(1)).unwrap_err().kind(), error.kind());
    }
}
