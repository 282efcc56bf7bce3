//! Events as people read them.

use std::fmt;

use super::{Event, Part, Successor};

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
            Self::Released { .. } => write!(f, "released: detached by a command"),
            Self::ClientAdopted { .. } => {
                write!(f, "client adopted: it goes on with this server")
            }
            Self::ClientLost { why, .. } => write!(f, "client lost: {why}"),
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
            Self::Requested { process, why, .. } => {
                write!(f, "requested: the host wants it back from process {process}: {why}")
            }
            Self::Away { why, .. } => write!(f, "away: {why}"),
            Self::Back { client, .. } => write!(f, "back: {client}"),
            Self::GivenUp { why, .. } => write!(f, "given up: {why}"),
            // It says which process that was.
            Self::FunctionDied { death, .. } | Self::ConnectionDied { death, .. } => {
                write!(f, "{death}")
            }
            Self::StandbyLost { death, .. } => write!(f, "standby lost: {death}"),
            Self::Recovered { process, generation, microseconds, by, .. } => {
                let by = if *by == Successor::Standby { ", which stood by," } else { "" };
                write!(
                    f,
                    "recovered: process {process}{by} serves after {microseconds} us (replacement \
                     {generation})"
                )
            }
            Self::ConnectionReplaced { process, generation, microseconds, .. } => write!(
                f,
                "connection replaced: process {process} holds the device after {microseconds} us \
                 (replacement {generation})"
            ),
            Self::ConnectionAdopted { process, generation, microseconds, .. } => write!(
                f,
                "connection adopted: process {process} holds the device after {microseconds} us, which \
                 went on meanwhile (replacement {generation})"
            ),
            Self::Upgraded { process, upgrades, microseconds, .. } => write!(
                f,
                "upgraded: process {process} serves after {microseconds} us (upgrade {upgrades})"
            ),
            Self::Limit { of, limit, most, deaths, milliseconds, .. } => {
                write!(f, "limit reached: {limit} of its {of}: ")?;
                match (deaths, milliseconds, most) {
                    (Some(deaths), Some(time), _) => write!(f, "{deaths} within {time} ms"),
                    (_, Some(time), _) => write!(f, "{time} ms"),
                    (_, None, most) => write!(f, "{}", most.unwrap_or_default()),
                }
            }
            Self::Unobserved { count } => {
                write!(f, "left out: {count} deaths and replacements that came too fast")
            }
            Self::Confined(confinement) => write!(f, "confined: {confinement}"),
            Self::SpawnerLost { process } => write!(
                f,
                "spawner lost: process {process} ended, no device process can be replaced any more"
            ),
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
