//! What may be wrong with a keeper, and with what it kept.

use std::io;

use ipc::PciAddress;
use ipc::codec::CodecError;

use super::record::VERSION;
use crate::limits::{MAX_KEPT_OF_CLIENT, MAX_KEPT_OF_CLIENTS};

/// What is wrong with a keeper, or with what it kept of a function or a group.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no way to it.
    #[error("The keeper that NOTIFY_SOCKET names cannot be reached")]
    Unreachable(#[source] io::Error),
    /// It did not take a message; nothing is given to it until it takes messages again.
    #[error("The keeper takes no messages: nothing is kept until it does")]
    Silent(#[source] io::Error),
    /// What it passed on cannot be taken.
    #[error("The descriptors that the keeper passed on cannot be taken (LISTEN_FDS)")]
    Passed(#[source] io::Error),
    /// No memory or descriptor for a record.
    #[error("The record of what is kept cannot be written")]
    Write(#[source] io::Error),
    /// The record is of another version of this library.
    #[error("Its record is of version {0}, this program knows version {VERSION}")]
    Version(u32),
    /// The record is none, or no part of it is whole.
    #[error("Its record is torn, or is none")]
    Torn,
    /// The record says what cannot be.
    #[error("Its record makes no sense: {0}")]
    Absurd(String),
    /// The record says what cannot be read.
    #[error("Its record makes no sense")]
    Malformed(#[source] CodecError),
    /// Something was not kept.
    #[error("{0} was not kept with it: has the keeper room for everything?")]
    Missing(String),
    /// A client whose function does not go on.
    #[error("Its function was not kept, or cannot be gone on with")]
    WithoutFunction,
    /// Nothing says what it was, since the VMM ended while it was attached or detached.
    #[error("It was just being attached or detached")]
    Unrecorded,
    /// The kernel wants it.
    #[error("The kernel wants it back")]
    Requested,
    /// More than a record has room for.
    #[error("What there is of it takes {size} bytes of a record, the limit is {most}")]
    TooLarge {
        /// How much it takes.
        size: u64,
        /// How much there may be.
        most: usize,
    },
    /// More files than are kept.
    #[error("Guest memory is in more than {0} files, which are as many as are kept")]
    TooManyFiles(usize),
    /// More descriptors than are kept of clients.
    #[error(
        "Its client would have {} descriptors kept, and all clients {}: {MAX_KEPT_OF_CLIENT} and {MAX_KEPT_OF_CLIENTS} are \
         the limits",
        own + 1,
        all + 1
    )]
    NoRoom {
        /// Those of the client.
        own: usize,
        /// Those of all.
        all: usize,
    },
    /// It has no room for one more.
    #[error(
        "The keeper has room for {0} descriptors (FDSTORE, systemd's FileDescriptorStoreMax=), which are taken"
    )]
    Full(usize),
    /// A client that was not kept when its server ended.
    #[error("It was not kept any more")]
    Lost,
    /// Nothing of it is kept.
    #[error(
        "Function {0} is not kept: nobody attached it, it has a companion, or nothing survives its processes"
    )]
    NotKept(PciAddress),
}
