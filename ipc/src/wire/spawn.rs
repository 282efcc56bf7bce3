//! What a confined server asks its spawner for, and what it was given before: data only.
//!
//! The grant comes first and once, from the same process while nothing has reached it yet. Whatever
//! comes afterwards names things of the grant and no others: no path and no argument is ever taken from a
//! request. A program comes as a descriptor, where the grant says that it may, and is checked.

use serde::{Deserialize, Serialize};

use super::function::Known;
use crate::address::PciAddress;
pub use crate::limits::{MAX_FUNCTIONS, MAX_GRANTED_PATH, MAX_GRANTED_SOCKETS};

/// Everything that a spawner will ever do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The program, as bytes of a path.
    pub program: Vec<u8>,
    /// Where the dext is: `sim:PATH` and the like, as bytes.
    pub dext: Vec<u8>,
    /// Refuse to start a process without a layer of its sandbox.
    pub strict: bool,
    /// What becomes of BARs, as a connection process is told: "handed".
    pub windows: String,
    /// Functions that processes may be started for.
    pub devices: Vec<PciAddress>,
    /// Paths that may be listened at, as bytes.
    pub sockets: Vec<Vec<u8>>,
    /// Mode of the files of these sockets: permission bits only.
    pub socket_mode: u32,
    /// The group of these files; that of the spawner when it is not said.
    pub socket_group: Option<u32>,
    /// The user and group that every process ends up as, where that is not the spawner's own.
    pub user: Option<User>,
    /// Whether other programs may be given later.
    pub programs: bool,
}

/// A user and a group, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A process for a function of the grant. Beside it: its standard error, a pipe, and its tube.
    Start {
        /// The function.
        address: PciAddress,
        /// Which process.
        role: Role,
        /// Of which program: 0 is the grant's, others are numbered as they were given.
        program: u32,
    },
    /// A socket that listens at a path of the grant, by number.
    Listen(u32),
    /// That the file of a socket is removed, if it is still the one that was made.
    Remove(u32),
    /// Another program; beside it, its file, open for reading.
    Program,
    /// That a program is started no more.
    Forget(u32),
}

/// Which process is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A connection process.
    Connection,
    /// A process that reports who has the function open.
    Lister,
    /// A function process.
    Function {
        /// Whether it will be handed guest memory.
        guest_memory: bool,
        /// What its first process found.
        known: Option<Known>,
        /// DevCtl's maximum read request size as the host had set it, 0..=7.
        max_read_request: Option<u8>,
        /// Whether it leaves the interrupts to the process that serves now.
        standby: bool,
    },
    /// A connection process that takes over what one before it left.
    Adopter,
    /// A connection process that is handed the files of its group, which a manager opened.
    Handed,
    /// Another one, which takes over what a dead process left, and is handed the files of its functions too.
    HandedAdopter,
}

/// What comes of it. With each of them, pidfds of children that were made and did not come to run,
/// behind what is said below: their parent is whoever asked, which must reap them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The grant was taken.
    Granted,
    /// The process runs; first beside it, its pidfd.
    Started {
        /// Its number, as the spawner and its parent see it.
        pid: u32,
    },
    /// It listens; beside it, the socket.
    Listening,
    /// The file is gone, or was somebody else's by then.
    Removed,
    /// It is not done, and why.
    Refused(String),
    /// The program is taken, by this number, which no other ever has.
    Program(u32),
    /// It is started no more.
    Forgotten,
}
