//! Deaths of device processes and the limits that they reach, as events have them.

use std::fmt;

use cordon_vmm::child::{Cause, Death};
use cordon_vmm::observer;
use serde::{Deserialize, Serialize};

/// A kind of device process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ProcessKind {
    /// Serves one function.
    Function,
    /// Holds the claims, DMA registrations and windows of one physical device.
    Connection,
}

impl fmt::Display for ProcessKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Function => "function processes",
            Self::Connection => "connection processes",
        })
    }
}

/// Which process came in the place of one that died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Successor {
    /// The standby, which had been ready.
    Standby,
    /// One that was started for it.
    Spawned,
}

impl From<observer::Successor> for Successor {
    fn from(by: observer::Successor) -> Self {
        match by {
            observer::Successor::Standby => Self::Standby,
            _ => Self::Spawned,
        }
    }
}

/// Who reached a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Limited {
    /// The function processes of a function.
    Function,
    /// The connection processes of a device.
    Connection,
    /// A client: what it may have the server hold.
    Client,
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Function => "function processes",
            Self::Connection => "connection processes",
            Self::Client => "client",
        })
    }
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum LimitName {
    /// So many processes died within a time, and no more are replaced.
    Deaths,
    /// How long replacing a process, or bringing a function back, may take.
    Timeout,
    /// How long a device may be away.
    Away,
    /// Memory files of a client's guest, each of which the server holds open.
    MemoryFiles,
    /// Events that a client gives to be signalled by.
    Events,
    /// Regions of a client's guest memory.
    Regions,
}

impl fmt::Display for LimitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deaths => "deaths",
            Self::Timeout => "time to replace one",
            Self::Away => "time to be away",
            Self::MemoryFiles => "memory files",
            Self::Events => "events",
            Self::Regions => "regions of guest memory",
        })
    }
}

/// Why a process counts as dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DeathCause {
    /// It was asked to stop and did.
    Stopped,
    /// It did not start.
    NotStarted,
    /// It did not answer or stop in time, and was killed.
    Overdue,
    /// It exited, a signal ended it, or its tube closed, without being asked to.
    Ended,
    /// It broke the protocol and was killed.
    Broken,
    /// It was ended for one of another program to take its place.
    Upgraded,
    /// It was one of too many that died.
    CrashLoop,
    /// A cause that this version has no name for.
    Other,
}

/// How a process died.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProcessDeath {
    /// Its process id; 0 of one that never ran.
    pub process: u32,
    /// Why it counts as dead.
    pub cause: DeathCause,
    /// The status that it exited with; absent when a signal ended it, or nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The name of the signal that ended it: "SIGKILL". `SIGSYS` is a forbidden system call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Of one that `SIGSYS` ended on Linux, the system call that was forbidden, as the process itself said:
    /// "openat", or "number 0x4000003b" of one without a name. Its own word: a process that is taken over can
    /// say nothing or name another one. That there was a forbidden call is the system's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_call: Option<String>,
    /// Whether it came from outside, as far as that can be told: a kill or a stop by somebody else.
    pub from_outside: bool,
    /// The request that was in flight, or the last one that was answered: "BarWrite".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_request: Option<String>,
    /// All of it in one line, for people.
    pub why: String,
}

impl ProcessDeath {
    /// What is known of a death.
    #[must_use]
    pub fn of(death: &Death) -> Self {
        Self {
            process: death.pid,
            cause: match death.cause {
                Cause::Stopped => DeathCause::Stopped,
                Cause::StartFailed(_) => DeathCause::NotStarted,
                Cause::Overdue(_) => DeathCause::Overdue,
                Cause::Ended => DeathCause::Ended,
                Cause::Broken(_) => DeathCause::Broken,
                Cause::Upgraded => DeathCause::Upgraded,
                Cause::CrashLoop { .. } => DeathCause::CrashLoop,
                _ => DeathCause::Other,
            },
            exit_code: death.exit.code(),
            signal: death.exit.signal().map(|signal| signal.to_string()),
            claimed_call: death.claimed_call.map(|call| call.to_string()),
            from_outside: death.is_from_outside(),
            last_request: death.last_request.clone(),
            why: death.to_string(),
        }
    }
}

impl fmt::Display for ProcessDeath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}
