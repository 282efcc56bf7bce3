//! Who speaks, in which versions, with which limits.

use std::os::fd::OwnedFd;

use arbitrary::Arbitrary;
use cordon_ipc::tube::{HandshakeError, MAX_HANDLES, MAX_MESSAGE};
use cordon_ipc::wire::handshake::{Hello, MAGIC, OLDEST_VERSION, Role, VERSION};
use cordon_ipc::{Deadline, Tube, codec};

use super::peer::{Witness, framed};

/// What a peer says of itself.
#[derive(Arbitrary, Debug)]
pub struct Input {
    magic: Option<u32>,
    version: Near,
    oldest: Near,
    role: u8,
    expected: u8,
    features: u64,
    max_message: u32,
    max_handles: u16,
    /// More bytes than a greeting has.
    more: Vec<u8>,
}

/// A version as an input names it.
#[derive(Arbitrary, Debug)]
enum Near {
    Ours(i8),
    Any(u16),
}

impl Near {
    fn number(&self) -> u16 {
        match self {
            Self::Ours(by) => VERSION.saturating_add_signed(i16::from(*by)),
            Self::Any(number) => *number,
        }
    }
}

const ROLES: [Role; 6] =
    [Role::Vmm, Role::Connection, Role::Function, Role::Lister, Role::DextClient, Role::Dext];

/// The least that a peer must take.
const MIN_MESSAGE: u32 = 8 * 1024;

pub fn run(input: &Input) {
    let role = |number: u8| ROLES[usize::from(number) % ROLES.len()];
    let (expected, theirs) = (role(input.expected), role(input.role));
    let hello = Hello {
        magic: input.magic.unwrap_or(MAGIC),
        version: input.version.number(),
        oldest: input.oldest.number(),
        role: theirs,
        features: input.features,
        max_message: input.max_message,
        max_handles: input.max_handles,
    };
    let mut bytes = codec::encode(&hello, 64).unwrap();
    bytes.extend_from_slice(&input.more);
    let (mut tube, peer) = Tube::pair().unwrap();
    let (peer, witness) = (OwnedFd::from(peer), Witness::new());
    assert!(witness.send(&peer, &framed(0, &bytes, 0), 0));
    let agreed = tube.handshake(Role::Vmm, expected, Deadline::now());
    // Each as it would judge by itself.
    let is_common =
        hello.version >= OLDEST_VERSION && hello.oldest <= VERSION && hello.oldest <= hello.version;
    let is_right = hello.magic == MAGIC
        && is_common
        && theirs == expected
        && hello.max_message >= MIN_MESSAGE
        && hello.max_handles > 0
        && input.more.is_empty();
    assert_eq!(agreed.is_ok(), is_right, "{agreed:?}");
    match agreed {
        Ok(agreed) => {
            assert!((OLDEST_VERSION..=VERSION).contains(&agreed.version));
            assert!((hello.oldest..=hello.version).contains(&agreed.version));
            assert_eq!(agreed.features & !hello.features, 0);
            assert_eq!(agreed.max_message, hello.max_message.min(MAX_MESSAGE as u32));
            assert_eq!(agreed.max_handles, hello.max_handles.min(MAX_HANDLES as u16));
        }
        Err(HandshakeError::Magic(found)) => assert_eq!(found, hello.magic),
        Err(HandshakeError::Role { found, .. }) => assert_eq!(found, theirs),
        Err(_) => {}
    }
}
