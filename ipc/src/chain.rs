//! An error and its causes as one line, for whoever prints it.

use std::error::Error;

/// The error's text and that of each cause, separated by colons; a cause that its error already
/// tells is not said twice.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TubeError, tube::HandshakeError};

    #[test]
    fn causes_are_told_once() {
        let error = HandshakeError::Tube(TubeError::Disconnected);
        assert_eq!(chain(&error), "No handshake: The peer is gone");
        let error = TubeError::from(std::io::Error::other("full"));
        assert_eq!(chain(&error), "The socket failed: full");
    }
}
