//! The first message in each direction: who speaks, which versions, which features, which limits.
//!
//! Both sides send, then receive, and take the minimum of everything; neither trusts the other's
//! arithmetic. A peer that speaks no common version is refused with both ranges named.

use super::{MAX_HANDLES, MAX_MESSAGE, Tube, TubeError};
use crate::deadline::Deadline;
use crate::limits::MIN_MESSAGE;
use crate::wire::handshake::{Hello, MAGIC, OLDEST_VERSION, Role, VERSION};

/// What both sides can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Protocol version in use.
    pub version: u16,
    /// Features that both sides have, as in [`Hello::features`].
    pub features: u64,
    /// Largest message that either side may send.
    pub max_message: u32,
    /// Most descriptors beside a message.
    pub max_handles: u16,
}

/// Why two processes do not talk.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The tube failed first.
    #[error("No handshake")]
    Tube(#[from] TubeError),
    /// Whatever is at the other end is not ours.
    #[error("The peer is not a Cordon process: magic {0:#010x} instead of {MAGIC:#010x}")]
    Magic(u32),
    /// No version in common.
    #[error(
        "The peer speaks protocol versions {theirs_oldest} to {theirs}, \
         this process {OLDEST_VERSION} to {VERSION}"
    )]
    Version {
        /// Newest version of the peer.
        theirs: u16,
        /// Oldest version of the peer.
        theirs_oldest: u16,
    },
    /// The wrong process is at the other end.
    #[error("The peer is a {found:?} process, expected {expected:?}")]
    Role {
        /// Who should be there.
        expected: Role,
        /// Who is.
        found: Role,
    },
    /// The peer's limits are below what this protocol needs.
    #[error(
        "The peer takes messages of {max_message} bytes and {max_handles} descriptors: too few"
    )]
    Limits {
        /// Bytes that it takes.
        max_message: u32,
        /// Descriptors that it takes.
        max_handles: u16,
    },
}

impl Hello {
    /// What this build offers as `role`.
    #[must_use]
    pub fn ours(role: Role) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            oldest: OLDEST_VERSION,
            role,
            features: 0,
            max_message: u32::try_from(MAX_MESSAGE).unwrap_or(u32::MAX),
            max_handles: u16::try_from(MAX_HANDLES).unwrap_or(u16::MAX),
        }
    }

    /// What this side and `theirs` have in common.
    ///
    /// # Errors
    /// [`HandshakeError`] when that is not enough.
    pub fn agree(&self, theirs: &Self, expected: Role) -> Result<Agreed, HandshakeError> {
        if theirs.magic != MAGIC {
            return Err(HandshakeError::Magic(theirs.magic));
        }
        let version = self.version.min(theirs.version);
        if version < self.oldest || version < theirs.oldest {
            return Err(HandshakeError::Version {
                theirs: theirs.version,
                theirs_oldest: theirs.oldest,
            });
        }
        if theirs.role != expected {
            return Err(HandshakeError::Role { expected, found: theirs.role });
        }
        let (max_message, max_handles) = (theirs.max_message, theirs.max_handles);
        if max_message < MIN_MESSAGE || max_handles == 0 {
            return Err(HandshakeError::Limits { max_message, max_handles });
        }
        Ok(Agreed {
            version,
            features: self.features & theirs.features,
            max_message: self.max_message.min(max_message),
            max_handles: self.max_handles.min(max_handles),
        })
    }
}

impl Tube {
    /// Introduces this process as `ours` and expects `theirs` at the other end.
    ///
    /// # Errors
    /// [`HandshakeError`]; the tube is of no use afterwards.
    pub fn handshake(
        &mut self,
        ours: Role,
        theirs: Role,
        deadline: Deadline,
    ) -> Result<Agreed, HandshakeError> {
        self.introduce(ours, deadline)?;
        self.meet(ours, theirs, deadline)
    }

    /// The first half of a handshake: says who this process is.
    ///
    /// # Errors
    /// [`HandshakeError::Tube`].
    pub fn introduce(&mut self, ours: Role, deadline: Deadline) -> Result<(), HandshakeError> {
        Ok(self.send(0, &Hello::ours(ours), &[], deadline)?)
    }

    /// The second half of a handshake: takes what the peer says of itself.
    ///
    /// # Errors
    /// [`HandshakeError`]; after a [`TubeError::TimedOut`] it can be called again, otherwise the tube
    /// is of no use.
    pub fn meet(
        &mut self,
        ours: Role,
        theirs: Role,
        deadline: Deadline,
    ) -> Result<Agreed, HandshakeError> {
        let peer = self.receive::<Hello>(deadline)?.message;
        Hello::ours(ours).agree(&peer, theirs)
    }
}
