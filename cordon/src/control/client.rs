//! Asks a server by its control socket. Whoever listens there is not necessarily ours: what comes is bounded
//! in size and time, and fit to be shown only after [`printable`].

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use cordon_cli::protocol::{
    Answer, Command, ControlError, Id, Outcome, Request, Served, ServerInfo, VERSION,
};
use cordon_vmm::text::printable;
use ipc::{Deadline, rights};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::peer;
use crate::limits::MAX_ANSWER;

/// How long a server may take for most that it is asked for.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to take a request.
const TAKE: Duration = Duration::from_secs(5);

/// Why a server did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody answers there.
    #[error("no cordon serve answers at {path}: {why}")]
    NoServer {
        /// Where.
        path: String,
        /// Why.
        why: String,
    },
    /// What answers there is something else, or of another version.
    #[error("{path} is no control socket that this program understands: {why}")]
    NotOurs {
        /// Where.
        path: String,
        /// Why.
        why: String,
    },
    /// It says no.
    #[error("{0}")]
    Refused(ControlError),
}

/// Asks the server at `path`, with descriptors beside the request, for what may take `limit`.
pub(crate) fn ask_with(
    path: &Path,
    command: Command,
    beside: &[BorrowedFd<'_>],
    limit: Duration,
) -> Result<Value, AskError> {
    let path_text = path.display().to_string();
    let none = |why: String| AskError::NoServer { path: path_text.clone(), why };
    let other = |why: String| AskError::NotOurs { path: path_text.clone(), why };
    let id = Some(Id::Number(1));
    let command_is_metrics = matches!(command, Command::Metrics {});
    let request = Request { id: id.clone(), command };
    let line = request.line().map_err(|error| other(error.to_string()))? + "\n";
    let stream = UnixStream::connect(path).map_err(|error| none(error.to_string()))?;
    rights::prepare(&stream);
    peer::write(&stream, line.as_bytes(), beside, Deadline::after(TAKE))
        .map_err(|ended| none(ended.to_string()))?;
    let answer =
        receive(&stream, Deadline::after(limit)).map_err(|error| none(error.to_string()))?;
    if answer.is_empty() {
        return Err(none("it ended the connection without an answer".to_owned()));
    }
    let answer =
        serde_json::from_str::<Answer>(&answer).map_err(|error| other(error.to_string()))?;
    if answer.version != VERSION || (answer.id.is_some() && answer.id != id) {
        let why = format!("it answers in version {}, here is {VERSION}", answer.version);
        return Err(other(why));
    }
    match answer.outcome {
        Outcome::Ok(mut value) => {
            let text = value.get_mut("text").filter(|_| command_is_metrics).map(Value::take);
            make_printable(&mut value);
            // Text of many lines, each fit for people by itself.
            if let Some(text) = text.as_ref().and_then(Value::as_str) {
                value["text"] =
                    text.lines().map(|line| printable(line) + "\n").collect::<String>().into();
            }
            Ok(value)
        }
        Outcome::Error(ControlError { code, message }) => {
            Err(AskError::Refused(ControlError { code, message: printable(&message) }))
        }
    }
}

/// One line, without waiting longer than until `deadline` in all.
fn receive(stream: &UnixStream, deadline: Deadline) -> std::io::Result<String> {
    struct Until<'s>(&'s UnixStream, Deadline);
    impl std::io::Read for Until<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            loop {
                match std::io::Read::read(&mut &*self.0, into) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        if !ipc::poll::wait_readable(self.0, self.1)? {
                            let why = "it does not answer in time";
                            return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, why));
                        }
                    }
                    other => return other,
                }
            }
        }
    }
    let mut line = String::new();
    let read = BufReader::new(Until(stream, deadline)).take(MAX_ANSWER).read_line(&mut line)?;
    if read as u64 == MAX_ANSWER && !line.ends_with('\n') {
        let why = format!("its answer is longer than {MAX_ANSWER} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
    }
    Ok(line)
}

/// Makes every text of a value fit for people, whatever sent it.
fn make_printable(value: &mut Value) {
    match value {
        Value::String(text) => *text = printable(text),
        Value::Array(all) => all.iter_mut().for_each(make_printable),
        Value::Object(all) => all.values_mut().for_each(make_printable),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// What a server says of one function.
pub(crate) fn inspect(path: &Path, device: &str) -> Result<Served, AskError> {
    typed(path, Command::Inspect { device: Some(device.to_owned()) })
}

/// What a server says of itself.
pub(crate) fn inspect_server(path: &Path) -> Result<ServerInfo, AskError> {
    typed(path, Command::Inspect { device: None })
}

fn typed<T: DeserializeOwned>(path: &Path, command: Command) -> Result<T, AskError> {
    let value = ask_with(path, command, &[], TIMEOUT)?;
    serde_json::from_value(value).map_err(|error| AskError::NotOurs {
        path: path.display().to_string(),
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_answer_that_is_a_byte_too_long_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let long = vec![b'x'; usize::try_from(MAX_ANSWER).unwrap()];
            // The client is gone before all of it is written.
            let _ = client.write_all(&long).and_then(|()| client.write_all(b"x\n"));
        });
        let error = inspect_server(&path).unwrap_err().to_string();
        assert!(error.ends_with("its answer is longer than 8388608 bytes"), "{error}");
        server.join().unwrap();
    }
}
