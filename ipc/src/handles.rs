//! Descriptors that came beside a message.

use std::os::fd::OwnedFd;

/// The descriptors of one received message, in the order of sending. Those that nobody takes are
/// closed on drop, so a peer cannot fill a process's table by sending what was not asked for.
#[derive(Debug, Default)]
pub struct Handles(std::collections::VecDeque<OwnedFd>);

/// A message came with another number of descriptors than it speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Message came with {found} descriptors, expected {expected}")]
pub struct HandleCountError {
    /// How many the message speaks of.
    pub expected: usize,
    /// How many came.
    pub found: usize,
}

impl Handles {
    /// How many are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Fails unless exactly `expected` are there.
    ///
    /// # Errors
    /// [`HandleCountError`] with both numbers.
    pub fn expect(&self, expected: usize) -> Result<(), HandleCountError> {
        if self.len() == expected {
            Ok(())
        } else {
            Err(HandleCountError { expected, found: self.len() })
        }
    }

    /// Exactly one descriptor.
    ///
    /// # Errors
    /// [`HandleCountError`] when there is none or more than one.
    pub fn one(mut self) -> Result<OwnedFd, HandleCountError> {
        self.expect(1)?;
        self.0.pop_front().ok_or(HandleCountError { expected: 1, found: 0 })
    }
}

impl From<Vec<OwnedFd>> for Handles {
    fn from(handles: Vec<OwnedFd>) -> Self {
        Self(handles.into())
    }
}

impl Iterator for Handles {
    type Item = OwnedFd;

    fn next(&mut self) -> Option<OwnedFd> {
        self.0.pop_front()
    }
}
