//! Every message type (`cordon_ipc::wire`), in both directions, out of any bytes.
//!
//! Asserted: decoding never panics, and allocates by what came and not by what a length says; what is
//! decoded encodes to the bytes that it came from, so that nothing has two forms.

use std::fmt::Debug;

use cordon_ipc::codec;
use cordon_ipc::tube::MAX_MESSAGE;
use cordon_ipc::wire::call::Call;
use cordon_ipc::wire::common::Failure;
use cordon_ipc::wire::{connection, dext, dma, faults, function, handshake, listing, sandbox};
use cordon_ipc::{PciAddress, RootBridge};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::allocations::largest;

/// What serde makes room for at most when a sequence says its length, whatever that is.
const SERDE: usize = 1 << 20;
/// The most that one byte of a message can become in memory: an element of a sequence is encoded in one byte
/// at least.
const WIDEST: usize = 256;

/// Checks one type.
fn check<M: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let (decoded, allocated) = largest(|| codec::decode::<M>(bytes));
    assert!(allocated <= SERDE.max(WIDEST * bytes.len()), "{allocated} bytes for {}", bytes.len());
    let Ok(message) = decoded else { return };
    let again = codec::encode(&message, MAX_MESSAGE).unwrap();
    assert_eq!(again, bytes, "{message:?}");
    assert_eq!(codec::decode::<M>(&again).unwrap(), message);
}

/// The answer to a request.
type Reply<Q, C> = Result<<C as Call<Q>>::Reply, Failure>;

macro_rules! replies {
    ($module:ident: $($call:ty),*) => {
        &[$( check::<Reply<$module::Request, $call>> ),*]
    };
}

type Checks = &'static [fn(&[u8])];

/// What either end of a tube sends that is no answer to a request.
const MESSAGES: Checks = &[
    check::<handshake::Hello>,
    check::<function::Request>,
    check::<Result<function::Ready, Failure>>,
    check::<function::Known>,
    check::<connection::Request>,
    check::<Result<connection::Ready, Failure>>,
    check::<listing::Request>,
    check::<Result<listing::Ready, Failure>>,
    check::<dma::Request>,
    check::<dma::Reply>,
    check::<dext::Request>,
    check::<dext::Reply>,
    check::<faults::Misbehave>,
    check::<sandbox::SandboxReport>,
    check::<Failure>,
];

const FUNCTION: Checks = replies!(function: function::Access, function::ReadConfig,
    function::Interrupts, function::Reset, function::GetStatistics, function::TakeOver,
    function::Doorbell);

const CONNECTION: Checks = replies!(connection: connection::Attach, connection::AddMemory,
    connection::RemoveMemory, connection::MapDma, connection::GetStatistics, connection::Companion,
    connection::ReleaseDma);

const LISTING: Checks = replies!(listing: listing::GetFunction, listing::GetConfig);

/// Text in which some of it travels on command lines.
fn text(text: &str) {
    if let Ok(address) = text.parse::<PciAddress>() {
        assert_eq!(address.to_string().parse::<PciAddress>().unwrap(), address);
    }
    if let Ok(bridge) = RootBridge::try_from(text.to_owned()) {
        assert_eq!(bridge.as_str(), text);
    }
    if let Ok(known) = function::Known::from_hex(text) {
        assert_eq!(known.to_hex(), text.to_ascii_lowercase());
    }
}

/// The first byte says which type the others are to be.
pub fn run(input: &[u8]) {
    let Some((&kind, bytes)) = input.split_first() else { return };
    let all = [MESSAGES, FUNCTION, CONNECTION, LISTING];
    match all.iter().copied().flatten().nth(kind.into()) {
        Some(check) => check(bytes),
        None => std::str::from_utf8(bytes).into_iter().for_each(text),
    }
}
