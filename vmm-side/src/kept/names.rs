//! What descriptors are called in the store. A store keeps no order and may leave out what it has already, so each has
//! a name of its own; `:` separates names there, so none has one.
//!
//! ```text
//! cordon.0000-01-00-0.record                     what there is of the group that was opened for 0000:01:00.0
//! cordon.0000-01-00-0.group-0                    its first descriptor
//! cordon.0000-01-00-0.0000-01-00-1.device-0      the first one of a function of it
//! cordon.0000-01-00-0.0000-01-00-1.request       readable once the kernel wants that function back
//! cordon.memory-7                                a file of guest memory, which groups share
//! cordon.client.0000-01-00-1.socket              the client that a front end has for a function
//! cordon.client.0000-01-00-1.answers-in          where what it is answered is put in, and
//! cordon.client.0000-01-00-1.answers-out         where that is taken out
//! cordon.client.0000-01-00-1.session             what the front end knows of it
//! cordon.client.0000-01-00-1.event-2-5           an event of interrupt index 2, for vector 5 or another one
//! ```

use std::fmt;

use ipc::PciAddress;

/// What the names of ours begin with.
const PREFIX: &str = "cordon.";

/// What is behind a name. A group is named by the function that its connection process was started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    /// What there is of a group.
    Record(PciAddress),
    /// One of the group's own.
    Group(PciAddress, u8),
    /// One of a function's, by group, function and number.
    Device(PciAddress, PciAddress, u8),
    /// The event by which the kernel asks for a function of a group.
    Request(PciAddress, PciAddress),
    /// Guest memory.
    Memory(u32),
    /// A part of the client of a function.
    Client(PciAddress, ClientPart),
}

/// What there is of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ClientPart {
    Socket,
    AnswersIn,
    AnswersOut,
    /// By interrupt index and a number: that of a vector that has it, or another.
    Event(u8, u16),
    /// Last in order: what is closed in order leaves it to the end.
    Session,
}

struct Plain(PciAddress);

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(at) = self;
        let (segment, bus, device) = (at.segment(), at.bus(), at.device());
        write!(f, "{segment:04x}-{bus:02x}-{device:02x}-{:x}", at.function())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        match self {
            Self::Record(key) => write!(f, "{}.record", Plain(*key)),
            Self::Group(key, number) => write!(f, "{}.group-{number}", Plain(*key)),
            Self::Device(key, address, number) => {
                write!(f, "{}.{}.device-{number}", Plain(*key), Plain(*address))
            }
            Self::Request(key, address) => {
                write!(f, "{}.{}.request", Plain(*key), Plain(*address))
            }
            Self::Memory(number) => write!(f, "memory-{number}"),
            Self::Client(address, part) => {
                write!(f, "client.{}.", Plain(*address))?;
                match part {
                    ClientPart::Socket => f.write_str("socket"),
                    ClientPart::AnswersIn => f.write_str("answers-in"),
                    ClientPart::AnswersOut => f.write_str("answers-out"),
                    ClientPart::Session => f.write_str("session"),
                    ClientPart::Event(index, vector) => write!(f, "event-{index}-{vector}"),
                }
            }
        }
    }
}

fn address(text: &str) -> Option<PciAddress> {
    let parts: Vec<&str> = text.split('-').collect();
    let [segment, bus, device, function] = parts[..] else { return None };
    format!("{segment}:{bus}:{device}.{function}").parse().ok()
}

fn client_part(text: &str) -> Option<ClientPart> {
    Some(match text {
        "socket" => ClientPart::Socket,
        "answers-in" => ClientPart::AnswersIn,
        "answers-out" => ClientPart::AnswersOut,
        "session" => ClientPart::Session,
        event => {
            let (index, vector) = event.strip_prefix("event-")?.split_once('-')?;
            ClientPart::Event(index.parse().ok()?, vector.parse().ok()?)
        }
    })
}

impl Name {
    /// Whether it is that of a record, of a group or of a client, without which the rest is of no use.
    pub(super) fn is_record(self) -> bool {
        matches!(self, Self::Record(_) | Self::Client(_, ClientPart::Session))
    }

    /// What this is the name of, if it is one of ours: written as it is here and in no other way.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.strip_prefix(PREFIX)?.split('.').collect();
        let numbered = |text: &str, what: &str| text.strip_prefix(what)?.parse::<u8>().ok();
        let found = match parts[..] {
            [memory] => Self::Memory(memory.strip_prefix("memory-")?.parse().ok()?),
            ["client", function, part] => Self::Client(address(function)?, client_part(part)?),
            [key, "record"] => Self::Record(address(key)?),
            [key, group] => Self::Group(address(key)?, numbered(group, "group-")?),
            [key, function, "request"] => Self::Request(address(key)?, address(function)?),
            [key, function, device] => {
                Self::Device(address(key)?, address(function)?, numbered(device, "device-")?)
            }
            _ => return None,
        };
        (found.to_string() == text).then_some(found)
    }

    /// The group that it belongs to; none of memory, nor of a client, which goes on with its function.
    pub(super) fn group(self) -> Option<PciAddress> {
        match self {
            Self::Record(key)
            | Self::Group(key, _)
            | Self::Device(key, _, _)
            | Self::Request(key, _) => Some(key),
            Self::Memory(_) | Self::Client(..) => None,
        }
    }

    /// The function that it belongs to, if it is one's alone.
    pub(super) fn function(self) -> Option<PciAddress> {
        match self {
            Self::Device(_, function, _) | Self::Request(_, function) => Some(function),
            Self::Record(_) | Self::Group(..) | Self::Memory(_) | Self::Client(..) => None,
        }
    }
}

/// Whether a descriptor of this name is one of a [`Store`](super::Store)'s, of whichever version, which takes it by
/// itself. A socket that systemd names after its unit is none.
///
/// ```
/// use cordon_vmm::kept::is_ours;
///
/// assert!(is_ours("cordon.memory-0") && is_ours("cordon.0000-01-00-0.record"));
/// assert!(!is_ours("cordon.socket") && !is_ours("vfio-group"));
/// ```
#[must_use]
pub fn is_ours(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| match rest.split_once('.') {
        Some((first, _)) => first == "client" || address(first).is_some(),
        None => rest.starts_with("memory-"),
    })
}

/// For keepers: what has to go at once when the descriptor of this name is readable, since the kernel wants the
/// device back, which it gets when nobody has it open any more: everything whose name begins so. `None` of a name
/// that says nothing of the kind.
///
/// ```
/// use cordon_vmm::kept::wanted_back;
///
/// let name = "cordon.0000-01-00-0.0000-01-00-1.request";
/// assert_eq!(wanted_back(name).as_deref(), Some("cordon.0000-01-00-0."));
/// assert_eq!(wanted_back("cordon.0000-01-00-0.group-0"), None);
/// ```
#[must_use]
pub fn wanted_back(name: &str) -> Option<String> {
    match Name::parse(name)? {
        Name::Request(key, _) => Some(format!("{PREFIX}{}.", Plain(key))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written_and_nothing_else_is() {
        let at = |text: &str| text.parse::<PciAddress>().unwrap();
        let (key, function) = (at("01:00.0"), at("10ab:ff:1f.7"));
        let all = [
            (Name::Record(key), "cordon.0000-01-00-0.record"),
            (Name::Group(key, 1), "cordon.0000-01-00-0.group-1"),
            (Name::Device(key, function, 0), "cordon.0000-01-00-0.10ab-ff-1f-7.device-0"),
            (Name::Request(key, function), "cordon.0000-01-00-0.10ab-ff-1f-7.request"),
            (Name::Memory(255), "cordon.memory-255"),
            (Name::Client(key, ClientPart::Socket), "cordon.client.0000-01-00-0.socket"),
            (Name::Client(key, ClientPart::AnswersIn), "cordon.client.0000-01-00-0.answers-in"),
            (Name::Client(key, ClientPart::AnswersOut), "cordon.client.0000-01-00-0.answers-out"),
            (Name::Client(key, ClientPart::Session), "cordon.client.0000-01-00-0.session"),
            (
                Name::Client(function, ClientPart::Event(2, 2047)),
                "cordon.client.10ab-ff-1f-7.event-2-2047",
            ),
        ];
        for (name, text) in all {
            assert_eq!(name.to_string(), text);
            assert_eq!(Name::parse(text), Some(name));
            assert!(!text.contains(':') && text.len() < 255);
        }
        for text in [
            "",
            "cordon.",
            "cordon.memory-",
            "cordon.memory-007",
            "cordon.memory-4294967296",
            "cordon.0000-01-00-8.record",
            "cordon.01-00-0.record",
            "cordon.0000-01-00-0.group-256",
            "cordon.0000-01-00-0.group-+1",
            "cordon.0000-01-00-0.0000-01-00-0.device-0.x",
            "vmm.0000-01-00-0.record",
            "cordon.client.0000-01-00-0",
            "cordon.client.0000-01-00-0.event-2",
            "cordon.client.0000-01-00-0.event-02-1",
            "cordon.client.0000-01-00-0.event-2-65536",
        ] {
            assert_eq!(Name::parse(text), None, "{text}");
        }
    }
}
