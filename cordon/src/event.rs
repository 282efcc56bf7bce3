//! What happens to a running `cordon serve`: one type, as a line for people ([`Event`]'s `Display`) and
//! as an object for programs (serde). It is what `serve` prints, and all that it prints; with `--events` it
//! is also written as [`Record`]s. docs/events.md has every kind and field.

mod death;
mod record;
mod text;

use std::fmt;

use ipc::PciAddress;
use serde::{Deserialize, Serialize};

use crate::confinement::Confinement;

pub use death::{DeathCause, LimitName, Limited, ProcessDeath, ProcessKind, Successor};
pub use record::{Record, SCHEMA};

/// Which of a function's servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The function itself.
    Function,
    /// Its DMA companion.
    Companion,
}

/// What the client of a function sees of it while the device is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ClientView {
    /// No client is connected: the next one sees the device.
    NoClient,
    /// The device.
    Device,
    /// All ones, until it connects again or another client does: it still maps windows of a dext that
    /// died, and vfio-user has no way to have it map others.
    Ones,
}

impl fmt::Display for ClientView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoClient => "no client is connected",
            Self::Device => "its client sees the device",
            Self::Ones => {
                "its client reads all ones until it connects again, since it maps windows of a dext \
                 that died (serve --windows trapped recovers without)"
            }
        })
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The server is confined, from here on.
    Confined(Confinement),
    /// A function is attached and its sockets take clients.
    Listening {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// Where; lossy if the path is no text.
        socket: String,
        /// Where its companion is, if it has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        companion_socket: Option<String>,
        /// Process id.
        function_process: u32,
        /// Process id.
        connection_process: u32,
    },
    /// A function was detached by a command of the control socket, and is not served until another one
    /// attaches it, which is told as `listening`.
    Released {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
    },
    /// Every function is listening, but those of which `failed` was told.
    Ready,
    /// A client connected.
    Attach {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// To which server.
        part: Part,
    },
    /// This server continues with the client of a server that was killed.
    ClientAdopted {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
    },
    /// A client of a server before this one does not go on, and was sent away; what it left is taken back.
    ClientLost {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// Why not.
        why: String,
    },
    /// A client is gone.
    Detach {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// From which server.
        part: Part,
        /// What ended it.
        why: String,
    },
    /// A client asked for something that was refused; it goes on. Or it asked for a function whose IOMMU group is
    /// another client's, and was sent away.
    Refused {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// By which server.
        part: Part,
        /// What, and why.
        why: String,
    },
    /// Another client came while one was there, and was sent away.
    Busy {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// By which server.
        part: Part,
    },
    /// Events of a client that came too fast to be told each.
    LeftOut {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// Of which server.
        part: Part,
        /// The name of these events.
        of: String,
        /// How many.
        count: u64,
    },
    /// Events that nobody read in time.
    Unread {
        /// How many.
        count: u64,
    },
    /// No client can be taken for a while: something is short.
    Delayed {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// Which server.
        part: Part,
        /// What is short.
        why: String,
    },
    /// The function is not handed to the next client: it could not be reset yet.
    Withheld {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// Which server.
        part: Part,
        /// Why.
        why: String,
    },
    /// A function that was withheld is there for the next client.
    Available {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// Which server.
        part: Part,
    },
    /// A server failed, and takes no more clients. Or a function could not be attached by a server that goes on with
    /// what one before it left, and stays detached until a command of the control socket attaches it.
    Failed {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// Which server.
        part: Part,
        /// Why.
        why: String,
    },
    /// The host wants a function back that is in use: it is unplugged, or another driver is to have it (Linux's
    /// VFIO). Everything of its IOMMU group is given back at once. What follows are `connection-died` and, of each
    /// function, `away`.
    Requested {
        /// The function that the connection process was first started for.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// The process that gives it back.
        process: u32,
        /// Which function the host wants.
        why: String,
    },
    /// The device is gone and may come back; its client reads all ones.
    Away {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// Whose death it was.
        why: String,
    },
    /// The device came back.
    Back {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// What its client sees.
        client: ClientView,
    },
    /// The function is served no more, and reads all ones.
    GivenUp {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// The death after which it was given up.
        why: String,
    },
    /// The function process died that served the function, or one that was being set up to take its place. What
    /// follows is `recovered`, `away` or `given-up`.
    FunctionDied {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// How it died.
        #[serde(flatten)]
        death: ProcessDeath,
    },
    /// The connection process died that held the device. What follows is `connection-adopted`,
    /// `connection-replaced` or `given-up`.
    ConnectionDied {
        /// The function that it was first started for.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// How it died.
        #[serde(flatten)]
        death: ProcessDeath,
    },
    /// A standby died while it waited, or could not take over; another is started.
    StandbyLost {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// How it died.
        #[serde(flatten)]
        death: ProcessDeath,
    },
    /// Another function process serves in the place of one that died.
    Recovered {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// Process id of the one that serves now.
        process: u32,
        /// Function processes of this function that were replaced so far: 1 after the first death.
        generation: u64,
        /// From when the death was noticed until the function was served again, in microseconds.
        microseconds: u64,
        /// Which process it is.
        by: Successor,
    },
    /// Another connection process holds the device in the place of one that died; its functions come
    /// `back` one by one.
    ConnectionReplaced {
        /// The function that it was first started for.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// Process id of the one that holds it now.
        process: u32,
        /// Connection processes of this device that were replaced so far: 1 after the first death.
        generation: u64,
        /// From when the death was noticed until the other was ready, in microseconds.
        microseconds: u64,
    },
    /// Another connection process holds the device in the place of one that died, and has taken over what that
    /// left: functions were served meanwhile, and their DMA went on. Over Linux's VFIO.
    ConnectionAdopted {
        /// The function that it was first started for.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// Process id of the one that holds it now.
        process: u32,
        /// Connection processes of this device that were replaced so far: 1 after the first death.
        generation: u64,
        /// From when the death was noticed until everything was taken over, in microseconds.
        microseconds: u64,
    },
    /// Another function process serves, of another program, in the place of one that gave way to it.
    Upgraded {
        /// The function.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// Process id of the one that serves now.
        process: u32,
        /// How often that was done for this function so far.
        upgrades: u64,
        /// From when requests waited until they were served, in microseconds.
        microseconds: u64,
    },
    /// A limit was reached. Of processes, what it bounds is given up: see the `given-up` that follows. Of a
    /// client, only what it asked for beyond it is refused, and it is told once for each client and limit: see
    /// `refused`.
    Limit {
        /// By whom: the function, or the one that a connection process was first started for.
        #[serde(with = "as_text")]
        #[cfg_attr(test, schemars(with = "String"))]
        device: PciAddress,
        /// By its processes of this kind, or its client.
        of: Limited,
        /// Of a client, of which server.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<Part>,
        /// Which limit.
        limit: LimitName,
        /// Of a client, how many it may have.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        most: Option<u64>,
        /// Of `deaths`, how many there were, the last one among them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deaths: Option<u32>,
        /// Of processes, within this time, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        milliseconds: Option<u64>,
    },
    /// Deaths and replacements came faster than they could be told. They have no numbers in the sequence.
    Unobserved {
        /// How many.
        count: u64,
    },
    /// The process that starts others is gone: none can be replaced any more, so the end is begun. With a keeper it comes
    /// at once and nothing else is told: the next server goes on with everything.
    SpawnerLost {
        /// Its process id.
        process: u32,
    },
    /// Every function was given up. A server with a control socket waits for a command that revives one, unless it was
    /// started with `--exit-when-given-up`; any other ends.
    NothingLeft,
    /// The end was asked for, or nothing is left.
    Stopping {
        /// Which signal asked for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<String>,
    },
    /// Stopping in order took too long: child processes are killed.
    Forced,
    /// What became of a planned fault.
    Fault {
        /// Which, in the form of the command line.
        fault: String,
        /// The process that it struck, if it fired.
        process: Option<u32>,
    },
    /// Everything is detached.
    Stopped,
}

/// Who says how much, where that is limited.
pub type Source = (PciAddress, Part, &'static str);

impl Event {
    /// Its name, as it is in the serde form.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Confined(_) => "confined",
            Self::Listening { .. } => "listening",
            Self::Released { .. } => "released",
            Self::Ready => "ready",
            Self::Attach { .. } => "attach",
            Self::Detach { .. } => "detach",
            Self::Refused { .. } => "refused",
            Self::Busy { .. } => "busy",
            Self::LeftOut { .. } => "left-out",
            Self::Unread { .. } => "unread",
            Self::Delayed { .. } => "delayed",
            Self::ClientAdopted { .. } => "client-adopted",
            Self::ClientLost { .. } => "client-lost",
            Self::Withheld { .. } => "withheld",
            Self::Available { .. } => "available",
            Self::Failed { .. } => "failed",
            Self::Requested { .. } => "requested",
            Self::Away { .. } => "away",
            Self::Back { .. } => "back",
            Self::GivenUp { .. } => "given-up",
            Self::FunctionDied { .. } => "function-died",
            Self::ConnectionDied { .. } => "connection-died",
            Self::StandbyLost { .. } => "standby-lost",
            Self::Recovered { .. } => "recovered",
            Self::ConnectionReplaced { .. } => "connection-replaced",
            Self::ConnectionAdopted { .. } => "connection-adopted",
            Self::Upgraded { .. } => "upgraded",
            Self::Limit { .. } => "limit",
            Self::Unobserved { .. } => "unobserved",
            Self::SpawnerLost { .. } => "spawner-lost",
            Self::NothingLeft => "nothing-left",
            Self::Stopping { .. } => "stopping",
            Self::Forced => "forced",
            Self::Fault { .. } => "fault",
            Self::Stopped => "stopped",
        }
    }

    /// Whose event it is, if it is one that a client can cause as often as it likes.
    #[must_use]
    pub fn source(&self) -> Option<Source> {
        match self {
            Self::Attach { device, part }
            | Self::Detach { device, part, .. }
            | Self::Refused { device, part, .. }
            | Self::Delayed { device, part, .. }
            | Self::Withheld { device, part, .. }
            | Self::Available { device, part }
            | Self::Busy { device, part }
            | Self::Limit { device, part: Some(part), .. } => Some((*device, *part, self.name())),
            _ => None,
        }
    }

    /// The function that it is about.
    fn device(&self) -> Option<(PciAddress, Part)> {
        match self {
            Self::Attach { device, part }
            | Self::Detach { device, part, .. }
            | Self::Refused { device, part, .. }
            | Self::Busy { device, part }
            | Self::Delayed { device, part, .. }
            | Self::Withheld { device, part, .. }
            | Self::Available { device, part }
            | Self::LeftOut { device, part, .. }
            | Self::Limit { device, part: Some(part), .. }
            | Self::Failed { device, part, .. } => Some((*device, *part)),
            Self::Listening { device, .. }
            | Self::Released { device }
            | Self::ClientAdopted { device }
            | Self::ClientLost { device, .. }
            | Self::Requested { device, .. }
            | Self::Away { device, .. }
            | Self::Back { device, .. }
            | Self::FunctionDied { device, .. }
            | Self::ConnectionDied { device, .. }
            | Self::StandbyLost { device, .. }
            | Self::Recovered { device, .. }
            | Self::ConnectionReplaced { device, .. }
            | Self::ConnectionAdopted { device, .. }
            | Self::Upgraded { device, .. }
            | Self::Limit { device, .. }
            | Self::GivenUp { device, .. } => Some((*device, Part::Function)),
            _ => None,
        }
    }
}

/// What has a text of its own is that text.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::{Deserialize as _, Deserializer, Error as _};
    use serde::ser::Serializer;

    pub(super) fn serialize<T: Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'d, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'d>,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;
