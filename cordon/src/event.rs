//! What happens to a running `cordon serve`: one type, as a line for people ([`Event`]'s `Display`) and
//! as an object for programs (serde). It is what `serve` prints, and all that it prints.

use std::fmt;

use ipc::PciAddress;
use serde::{Deserialize, Serialize};

/// Which of a function's servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The function itself.
    Function,
    /// Its DMA companion.
    Companion,
}

/// What the client of a function sees of it while the device is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A function is attached and its sockets take clients.
    Listening {
        /// The function.
        #[serde(with = "as_text")]
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
    /// Every function is listening.
    Ready,
    /// A client connected.
    Attach {
        /// The function.
        #[serde(with = "as_text")]
        device: PciAddress,
        /// To which server.
        part: Part,
    },
    /// A client is gone.
    Detach {
        /// The function.
        #[serde(with = "as_text")]
        device: PciAddress,
        /// From which server.
        part: Part,
        /// What ended it.
        why: String,
    },
    /// A client asked for something that was refused; it goes on.
    Refused {
        /// The function.
        #[serde(with = "as_text")]
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
        device: PciAddress,
        /// By which server.
        part: Part,
    },
    /// Events of a client that came too fast to be told each.
    LeftOut {
        /// The function.
        #[serde(with = "as_text")]
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
        device: PciAddress,
        /// Which server.
        part: Part,
    },
    /// A server failed, and takes no more clients.
    Failed {
        /// The function.
        #[serde(with = "as_text")]
        device: PciAddress,
        /// Which server.
        part: Part,
        /// Why.
        why: String,
    },
    /// The device is gone and may come back; its client reads all ones.
    Away {
        /// The function.
        #[serde(with = "as_text")]
        device: PciAddress,
        /// Whose death it was.
        why: String,
    },
    /// The device came back.
    Back {
        /// The function.
        #[serde(with = "as_text")]
        device: PciAddress,
        /// What its client sees.
        client: ClientView,
    },
    /// The function is served no more, and reads all ones.
    GivenUp {
        /// The function.
        #[serde(with = "as_text")]
        device: PciAddress,
        /// The death after which it was given up.
        why: String,
    },
    /// Every function was given up.
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
            Self::Listening { .. } => "listening",
            Self::Ready => "ready",
            Self::Attach { .. } => "attach",
            Self::Detach { .. } => "detach",
            Self::Refused { .. } => "refused",
            Self::Busy { .. } => "busy",
            Self::LeftOut { .. } => "left-out",
            Self::Unread { .. } => "unread",
            Self::Delayed { .. } => "delayed",
            Self::Withheld { .. } => "withheld",
            Self::Available { .. } => "available",
            Self::Failed { .. } => "failed",
            Self::Away { .. } => "away",
            Self::Back { .. } => "back",
            Self::GivenUp { .. } => "given-up",
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
            | Self::Busy { device, part } => Some((*device, *part, self.name())),
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
            | Self::Failed { device, part, .. } => Some((*device, *part)),
            Self::Listening { device, .. }
            | Self::Away { device, .. }
            | Self::Back { device, .. }
            | Self::GivenUp { device, .. } => Some((*device, Part::Function)),
            _ => None,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((device, part)) = self.device() {
            let part = if part == Part::Companion { "companion: " } else { "" };
            write!(f, "{device}: {part}")?;
        }
        match self {
            Self::Listening {
                socket,
                companion_socket,
                function_process,
                connection_process,
                ..
            } => {
                write!(f, "listening at {socket}")?;
                if let Some(socket) = companion_socket {
                    write!(f, ", companion at {socket}")?;
                }
                write!(
                    f,
                    "; function process {function_process}, connection process {connection_process}"
                )
            }
            Self::Detach { why, .. } => write!(f, "detach: {why}"),
            Self::Refused { why, .. } => write!(f, "refused: {why}"),
            Self::Busy { .. } => write!(f, "busy: another client was sent away"),
            Self::LeftOut { of, count, .. } => write!(f, "left out: {count} more '{of}'"),
            Self::Unread { count } => {
                write!(f, "left out: {count} events that nobody read in time")
            }
            Self::Delayed { why, .. } => write!(f, "delayed: {why}"),
            Self::Withheld { why, .. } => write!(f, "withheld: {why}"),
            Self::Available { .. } => write!(f, "available again"),
            Self::Failed { why, .. } => write!(f, "failed: {why}"),
            Self::Away { why, .. } => write!(f, "away: {why}"),
            Self::Back { client, .. } => write!(f, "back: {client}"),
            Self::GivenUp { why, .. } => write!(f, "given up: {why}"),
            Self::NothingLeft => write!(f, "nothing is left to serve"),
            Self::Stopping { signal: Some(signal) } => write!(f, "stopping: {signal}"),
            Self::Forced => write!(f, "forced: child processes are killed"),
            Self::Fault { fault, process: Some(pid) } => {
                write!(f, "fault: fired at process {pid}: {fault}")
            }
            Self::Fault { fault, process: None } => write!(f, "fault: never fired: {fault}"),
            Self::Ready | Self::Attach { .. } | Self::Stopping { signal: None } | Self::Stopped => {
                f.write_str(self.name())
            }
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
mod tests {
    use super::*;

    fn all() -> Vec<Event> {
        let device = "01:00.1".parse().unwrap();
        let part = Part::Companion;
        let why = || "because".to_owned();
        vec![
            Event::Listening {
                device,
                socket: "/s".to_owned(),
                companion_socket: Some("/c".to_owned()),
                function_process: 2,
                connection_process: 3,
            },
            Event::Ready,
            Event::Attach { device, part: Part::Function },
            Event::Detach { device, part, why: why() },
            Event::Refused { device, part, why: why() },
            Event::Busy { device, part },
            Event::LeftOut { device, part, of: "refused".to_owned(), count: 7 },
            Event::Unread { count: 7 },
            Event::Delayed { device, part, why: why() },
            Event::Withheld { device, part, why: why() },
            Event::Available { device, part },
            Event::Failed { device, part, why: why() },
            Event::Away { device, why: why() },
            Event::Back { device, client: ClientView::Ones },
            Event::GivenUp { device, why: why() },
            Event::NothingLeft,
            Event::Stopping { signal: Some("SIGTERM".to_owned()) },
            Event::Stopping { signal: None },
            Event::Forced,
            Event::Fault { fault: "function,nth=1,when=before,kill".to_owned(), process: Some(7) },
            Event::Stopped,
        ]
    }

    #[test]
    fn every_event_is_an_object_with_its_name_and_comes_back_the_same() {
        for event in all() {
            let value = serde_json::to_value(&event).unwrap();
            assert_eq!(value["event"], event.name());
            let device = event.device().map(|(device, _)| device.to_string());
            assert_eq!(value["device"].as_str(), device.as_deref());
            assert_eq!(serde_json::from_value::<Event>(value).unwrap(), event);
        }
    }

    #[test]
    fn every_event_is_one_line_that_names_its_function_first() {
        for event in all() {
            let line = event.to_string();
            assert!(!line.contains('\n') && !line.is_empty());
            assert_eq!(line.starts_with("01:00.1: "), event.device().is_some(), "{line}");
        }
        let client = ClientView::Ones;
        let back = Event::Back { device: "01:00.0".parse().unwrap(), client }.to_string();
        assert!(back.contains("all ones") && back.contains("--windows trapped"), "{back}");
    }
}
