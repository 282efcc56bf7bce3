//! What is said on the control socket of a `cordon serve`: data only, described for whoever speaks it in
//! `docs/control.md`.
//!
//! A request is one line with one JSON object, and so is its answer. Whoever connects is let in by the mode
//! of the socket's file; what it sends is checked all the same, since it is read by a program that holds
//! other people's devices.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::confinement::Confinement;
use crate::event::ClientView;

/// Version of the protocol, in every answer. A command or a field that is added does not change it.
pub const VERSION: u32 = 1;

/// Longest text of an [`Id`], in bytes.
const ID_BYTES: usize = 64;

/// What a peer calls its request; the answer has the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Id {
    /// A number.
    Number(u64),
    /// A text of at most 64 bytes.
    Text(String),
}

/// One line of a peer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What the peer calls it.
    pub id: Option<Id>,
    /// What it asks for.
    pub command: Command,
}

/// What can be asked for. Functions are named by text here, and looked for among those that the server was
/// started for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Every function that the server was started for, in short: no process is asked.
    List {},
    /// Everything about one function, or, without one, about the server.
    Inspect {
        /// The function, as BB:DD.F.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
    },
    /// Detaches a function: its client is sent away, its socket removed.
    Detach {
        /// The function, as BB:DD.F.
        device: String,
    },
    /// Attaches a function that was detached.
    Attach {
        /// The function, as BB:DD.F.
        device: String,
    },
    /// Attaches a function anew that was given up; its client is sent away.
    Revive {
        /// The function, as BB:DD.F.
        device: String,
    },
    /// What is to go wrong: first disarms, then arms, then lists.
    Faults {
        /// Faults as on a command line, to be armed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        arm: Vec<String>,
        /// Numbers of faults that are to fire no more, as they are listed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        disarm: Vec<usize>,
    },
    /// Counters as Prometheus reads them.
    Metrics {},
    /// Has every function served by another program while guests run: the one whose file came beside the
    /// request, or without one the one that the server was started with.
    Upgrade {
        /// Also replaces connection processes, which their functions see as a surprise removal and a return.
        #[serde(default)]
        connections: bool,
    },
}

impl Command {
    /// Every command by name, for whoever asks for another one.
    pub const NAMES: [&str; 8] =
        ["list", "inspect", "detach", "attach", "revive", "faults", "metrics", "upgrade"];
}

impl Request {
    /// Reads a line.
    ///
    /// # Errors
    /// The answer to a line that is no request.
    pub fn parse(line: &[u8]) -> Result<Self, Box<Answer>> {
        let bad = |id, why: String| Box::new(Answer::error(id, ErrorCode::BadRequest, why));
        let object = serde_json::from_slice::<Map<String, Value>>(line);
        let mut object = object.map_err(|error| bad(None, format!("no JSON object: {error}")))?;
        let id = match object.remove("id") {
            None | Some(Value::Null) => None,
            Some(id) => match serde_json::from_value::<Id>(id) {
                Ok(Id::Text(text)) if text.len() > ID_BYTES => {
                    return Err(bad(None, format!("an id has at most {ID_BYTES} bytes")));
                }
                Ok(id) => Some(id),
                Err(_) => {
                    return Err(bad(None, "an id is a number from 0 or a text".to_owned()));
                }
            },
        };
        let Some(name) = object.get("command").and_then(Value::as_str) else {
            return Err(bad(id, "a request names its command in 'command'".to_owned()));
        };
        if !Command::NAMES.contains(&name) {
            // What came is not said back: a line may be long.
            let known = Command::NAMES.join(", ");
            let why = format!("there is no such command; there are {known}");
            return Err(Box::new(Answer::error(id, ErrorCode::UnknownCommand, why)));
        }
        match serde_json::from_value(Value::Object(object)) {
            Ok(command) => Ok(Self { id, command }),
            Err(error) => Err(bad(id, error.to_string())),
        }
    }

    /// As a line, without its end.
    ///
    /// # Errors
    /// Never in practice: a request is plain data.
    pub fn line(&self) -> serde_json::Result<String> {
        let mut object = serde_json::to_value(&self.command)?;
        if let (Value::Object(object), Some(id)) = (&mut object, &self.id) {
            object.insert("id".to_owned(), serde_json::to_value(id)?);
        }
        serde_json::to_string(&object)
    }
}

/// What comes of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// The request's; nothing if it had none or could not be read.
    pub id: Option<Id>,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was done: an object whose `type` says what it is.
    Ok(Value),
    /// It was not, and nothing was changed that the message does not name.
    Error(ControlError),
}

impl Answer {
    /// An answer of this version.
    #[must_use]
    pub fn new(id: Option<Id>, outcome: Outcome) -> Self {
        Self { version: VERSION, id, outcome }
    }

    /// A refusal.
    #[must_use]
    pub fn error(id: Option<Id>, code: ErrorCode, message: impl Into<String>) -> Self {
        Self::new(id, Outcome::Error(ControlError { code, message: message.into() }))
    }
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: which object, and why.
    pub message: String,
}

impl ControlError {
    /// For `code`, with a message.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Why a request was not carried out, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The line is no request.
    BadRequest,
    /// There is no such command.
    UnknownCommand,
    /// The line is too long; the connection is closed.
    TooLong,
    /// The server was not started for that function.
    NoSuchDevice,
    /// The function is not attached.
    NotAttached,
    /// The function is attached already.
    AlreadyAttached,
    /// The function was not given up.
    NotGivenUp,
    /// Another command is at work on the same.
    Busy,
    /// The server was not started with a fault plan.
    NoFaults,
    /// It was tried and failed.
    Failed,
    /// The server is about to end.
    Stopping,
    /// One that a later version has.
    #[serde(other)]
    Other,
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A function in `list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// BB:DD.F.
    pub address: String,
    /// Where it is.
    pub state: State,
    /// Where it is served; lossy if the path is no text.
    pub socket: String,
    /// Where its companion is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub companion_socket: Option<String>,
    /// What its client sees while the device is there; absent while it is detached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientView>,
}

/// Where a function of a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum State {
    /// Attached and there.
    Served,
    /// Its device is away and may come back: it reads all ones.
    Away,
    /// It is served no more: it reads all ones until it is revived.
    GivenUp,
    /// Its server takes no more clients.
    Failed,
    /// Detached by a command.
    Detached,
    /// One that a later version has.
    #[serde(other)]
    Other,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A server, in `inspect` without a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Version of the program.
    pub cordon: String,
    /// What confines it.
    pub confinement: Confinement,
    /// Where the program of its device processes was when it started, absolute; a peer that upgrades to what is
    /// installed opens it. Absent where no program can be given (macOS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_proc: Option<String>,
}

/// A function that is served, in `inspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// BB:DD.F.
    pub address: String,
    /// What the server calls it.
    pub name: String,
    /// "present", "away" or "gone".
    pub presence: String,
    /// Why it is not present.
    pub why: Option<String>,
    /// Process id.
    pub function_process: u32,
    /// Process id.
    pub connection_process: u32,
    /// Function processes that were replaced.
    pub replacements: u64,
    /// Times that its function process gave way to one of another program.
    pub upgrades: u64,
    /// The program of its function process: "original", or the number of one that came later.
    pub program: String,
    /// The program of its connection process.
    pub connection_program: String,
    /// The program of the connection process that comes after this one, if it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_connection_program: Option<String>,
    /// Times the device went away and came back.
    pub returns: u64,
    /// Whether a standby waits.
    pub standby: bool,
    /// What its client sees while the device is there.
    pub client: ClientView,
    /// Absent while the device is away.
    pub dma: Option<Dma>,
}

impl Served {
    /// Its texts, for whoever shows them to people.
    pub fn texts(&mut self) -> impl Iterator<Item = &mut String> {
        [&mut self.address, &mut self.name, &mut self.presence].into_iter().chain(&mut self.why)
    }
}

/// DMA registrations of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dma {
    /// Registrations that there are.
    pub live_regions: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Most registrations that there were at once.
    pub peak_regions: u64,
    /// Most bytes that there were at once.
    pub peak_bytes: u64,
    /// Entries that failed since the platform maps no more bytes.
    pub failed_bytes: u64,
    /// Entries that failed since there are no more mappings.
    pub failed_mappings: u64,
    /// Entries that failed since the platform had no single segment.
    pub failed_segments: u64,
}

impl From<cordon_vmm::DmaStatistics> for Dma {
    fn from(now: cordon_vmm::DmaStatistics) -> Self {
        Self {
            live_regions: now.regions,
            live_bytes: now.bytes,
            peak_regions: now.peak_regions,
            peak_bytes: now.peak_bytes,
            failed_bytes: now.failed_bytes,
            failed_mappings: now.failed_mappings,
            failed_segments: now.failed_segments,
        }
    }
}

/// What an upgrade came to, in `upgrade`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// The program that serves: "original", or its number.
    pub program: String,
    /// Functions whose process gave way.
    pub functions: Vec<UpgradedFunction>,
    /// Connection processes that gave way.
    pub connections: usize,
    /// Functions whose connection process is still of another program: it is replaced when the last function
    /// of its device is detached, or when it dies.
    pub left: Vec<String>,
}

/// A function whose process gave way to one of another program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradedFunction {
    /// BB:DD.F.
    pub address: String,
    /// The process that serves it now.
    pub process: u32,
    /// Microseconds during which nobody served it.
    pub microseconds: u64,
}

/// A fault of a server's plan, in `faults`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFault {
    /// What it is called until the server ends.
    pub number: usize,
    /// In the form of the command line.
    pub fault: String,
    /// Requests that were counted for it.
    pub seen: u64,
    /// The process that it struck, if it fired.
    pub fired: Option<u32>,
    /// Whether it was disarmed.
    pub disarmed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> (ErrorCode, Option<Id>, String) {
        let answer = *Request::parse(line.as_bytes()).unwrap_err();
        assert_eq!(answer.version, VERSION);
        match answer.outcome {
            Outcome::Error(ControlError { code, message }) => (code, answer.id, message),
            Outcome::Ok(_) => panic!("{line} was done"),
        }
    }

    #[test]
    fn every_command_has_its_name_and_comes_back_the_same() {
        let device = || "01:00.0".to_owned();
        let all = [
            Command::List {},
            Command::Inspect { device: Some(device()) },
            Command::Detach { device: device() },
            Command::Attach { device: device() },
            Command::Revive { device: device() },
            Command::Faults { arm: vec!["function,kill".to_owned()], disarm: vec![3] },
            Command::Metrics {},
            Command::Upgrade { connections: true },
        ];
        let mut names = Vec::new();
        for (at, command) in all.into_iter().enumerate() {
            let value = serde_json::to_value(&command).unwrap();
            names.push(value["command"].as_str().unwrap().to_owned());
            for id in [None, Some(Id::Number(at as u64)), Some(Id::Text("a".to_owned()))] {
                let request = Request { id, command: command.clone() };
                assert_eq!(Request::parse(request.line().unwrap().as_bytes()).unwrap(), request);
            }
        }
        assert_eq!(names, Command::NAMES);
        let short = Request::parse(br#"{"command":"faults"}"#).unwrap();
        assert_eq!(short.command, Command::Faults { arm: Vec::new(), disarm: Vec::new() });
        assert_eq!(short.id, None);
    }

    #[test]
    fn what_is_no_request_is_answered_with_its_reason() {
        let (code, id, why) = refused("{");
        assert_eq!((code, id), (ErrorCode::BadRequest, None));
        assert!(why.contains("no JSON object"), "{why}");
        for (line, code, says) in [
            ("[1]", ErrorCode::BadRequest, "no JSON object"),
            ("{}", ErrorCode::BadRequest, "names its command"),
            (r#"{"id":1,"command":7}"#, ErrorCode::BadRequest, "names its command"),
            (r#"{"id":1,"command":"explode"}"#, ErrorCode::UnknownCommand, "there are list"),
            (r#"{"id":1,"command":"detach"}"#, ErrorCode::BadRequest, "device"),
            (r#"{"id":1,"command":"list","all":true}"#, ErrorCode::BadRequest, "all"),
            (r#"{"id":-1,"command":"list"}"#, ErrorCode::BadRequest, "an id"),
            (r#"{"id":{},"command":"list"}"#, ErrorCode::BadRequest, "an id"),
            (r#"{"command":"faults","disarm":[-1]}"#, ErrorCode::BadRequest, "-1"),
        ] {
            let (was, _, why) = refused(line);
            assert_eq!(was, code, "{line}: {why}");
            assert!(why.contains(says), "{line}: {why}");
        }
        assert_eq!(refused(r#"{"id":"x","command":"detach"}"#).1, Some(Id::Text("x".to_owned())));
        let long = format!(r#"{{"id":"{}","command":"list"}}"#, "x".repeat(65));
        assert!(refused(&long).2.contains("at most 64 bytes"));
    }

    #[test]
    fn an_answer_is_ok_or_an_error_and_codes_of_later_versions_are_taken() {
        let id = || Some(Id::Number(4));
        let done = Answer::new(id(), Outcome::Ok(serde_json::json!({ "type": "x" })));
        let text = serde_json::to_string(&done).unwrap();
        assert_eq!(text, r#"{"version":1,"id":4,"ok":{"type":"x"}}"#);
        assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), done);
        let refused = Answer::error(id(), ErrorCode::NoSuchDevice, "why");
        let text = serde_json::to_string(&refused).unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"id":4,"error":{"code":"no-such-device","message":"why"}}"#
        );
        let later = text.replace("no-such-device", "whatever");
        let later: Answer = serde_json::from_str(&later).unwrap();
        assert_eq!(later, Answer::error(id(), ErrorCode::Other, "why"));
        assert_eq!(ErrorCode::NoSuchDevice.to_string(), "no-such-device");
        assert_eq!(State::GivenUp.to_string(), "given-up");
    }
}
