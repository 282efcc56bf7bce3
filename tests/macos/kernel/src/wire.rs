//! What processes and the kernel process say to each other. Every process of a run is of one build, so there are
//! no versions.

use serde::{Deserialize, Serialize};

use crate::codes::{Code, Name};

/// A part of a memory file that travels beside, by its place among the descriptors.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) file: u32,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Where a task comes from.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Origin {
    /// Nobody of ours.
    First,
    /// A spawn that was prepared.
    Birth(u64),
    /// A fork of this task.
    Fork(u64),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// A process begins. The task lives for as long as this connection.
    Start {
        pid: u32,
        origin: Origin,
    },
    /// A thread of a task.
    Thread {
        task: u64,
    },
    Birth {
        registered: Option<Vec<Name>>,
    },
    Allocate {
        right: u32,
    },
    Insert {
        name: Name,
        from: Name,
        how: u32,
    },
    Deallocate {
        name: Name,
    },
    ModRefs {
        name: Name,
        right: u32,
        delta: i32,
    },
    Notification {
        name: Name,
        what: i32,
        sync: u32,
        whom: Name,
        how: u32,
    },
    MoveMember {
        member: Name,
        into: Name,
    },
    Register {
        names: Vec<Name>,
    },
    Lookup,
    /// `timeout` in milliseconds.
    Send {
        message: Vec<u8>,
        timeout: Option<u32>,
    },
    Receive {
        name: Name,
        options: i32,
        room: u32,
        timeout: Option<u32>,
    },
    NewMemory {
        parts: Vec<Part>,
        protection: i32,
        is_copy: bool,
    },
    Memory {
        name: Name,
    },
    NewObject {
        is_immovable: bool,
    },
    Hold {
        name: Name,
    },
    LetGo {
        held: u64,
    },
    FromKernel {
        held: u64,
        id: i32,
        body: Vec<u8>,
        is_last: bool,
    },
    Readable {
        name: Name,
    },
    Confine {
        profile: String,
        parameters: Vec<(String, String)>,
    },
    Confinement {
        pid: u32,
    },
    /// A confined process makes a call of a finite list for the first time.
    Seen {
        operation: String,
        call: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Code(Code),
    /// It is done; the number of a task, a birth or a right that is held.
    Number(u64),
    Name(Name),
    Names(Vec<Name>),
    /// It is done, and the right of an object of IOKit's was the last one if so said.
    Done {
        was_last: bool,
    },
    /// What was received, or is given back, and the code.
    Message {
        code: Code,
        message: Vec<u8>,
    },
    Memory {
        parts: Vec<Part>,
        protection: i32,
        is_copy: bool,
    },
    /// The descriptor travels beside.
    Readable,
    Confinement(Option<(String, Vec<(String, String)>)>),
    /// There is no such process.
    NoProcess,
    Guard(String),
    NotSimulated(String),
}
