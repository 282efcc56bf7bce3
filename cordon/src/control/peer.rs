//! One connection to the control socket: lines in, answers out, in order.
//!
//! The peer is distrusted: a line has a longest length and, once it is begun, a time; an answer that is not
//! taken ends the connection; of descriptors one is kept, for the line that it came with.

use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use cordon_cli::protocol::{Answer, ControlError, ErrorCode, Outcome, Request};
use ipc::poll::{self, Source};
use ipc::{Deadline, rights};
use rustix::io::Errno;
use serde_json::Value;

use super::Seat;
use crate::limits::MAX_CONTROL_LINE;

/// How long a peer may take for a line that it began, and for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that are taken at once.
const PIECE: usize = 4096;

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum Ended {
    EndOfFile,
    HalfALine,
    TooLong,
    TooManyDescriptors,
    Unread,
    Failed(std::io::Error),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndOfFile => f.write_str("it left"),
            Self::HalfALine => f.write_str("it did not end its line in time"),
            Self::TooLong => f.write_str("its line is too long"),
            Self::TooManyDescriptors => f.write_str("it sent more than one descriptor"),
            Self::Unread => f.write_str("it did not take its answer in time"),
            Self::Failed(error) => write!(f, "its socket failed: {error}"),
        }
    }
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Errno> for Ended {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET => Self::EndOfFile,
            other => Self::Failed(other.into()),
        }
    }
}

/// Answers every line of a peer until it leaves or must; why it did.
pub(super) fn serve(
    stream: &UnixStream,
    seat: &Seat,
    carry_out: impl Fn(Request, Option<OwnedFd>) -> Result<Value, ControlError>,
) -> Ended {
    rights::prepare(stream);
    let mut lines = Lines { stream, bytes: Vec::new(), descriptor: None };
    loop {
        let (line, beside) = match lines.next() {
            Ok(next) => next,
            Err(ended) => {
                let (code, why) = match &ended {
                    Ended::TooLong => {
                        (ErrorCode::TooLong, format!("a line has at most {MAX_CONTROL_LINE} bytes"))
                    }
                    Ended::HalfALine => {
                        (ErrorCode::BadRequest, "the line did not end in time".to_owned())
                    }
                    Ended::TooManyDescriptors => {
                        (ErrorCode::BadRequest, "at most one descriptor is taken".to_owned())
                    }
                    _ => return ended,
                };
                let _ = send(stream, &Answer::error(None, code, why));
                return ended;
            }
        };
        let answer = match Request::parse(&line) {
            Err(answer) => *answer,
            Ok(request) => {
                seat.is_at_work(true);
                let id = request.id.clone();
                let done = carry_out(request, beside);
                seat.is_at_work(false);
                Answer::new(id, done.map_or_else(Outcome::Error, Outcome::Ok))
            }
        };
        if let Err(ended) = send(stream, &answer) {
            return ended;
        }
    }
}

/// The lines of a peer.
struct Lines<'s> {
    stream: &'s UnixStream,
    /// What came and is no whole line yet, or lines that come later: one line and one piece at most.
    bytes: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

impl Lines<'_> {
    /// The next line, without its end, and the descriptor that came with it or before it.
    fn next(&mut self) -> Result<(Vec<u8>, Option<OwnedFd>), Ended> {
        let mut looked = 0;
        let mut deadline = None;
        loop {
            if let Some(at) = self.bytes[looked..].iter().position(|byte| *byte == b'\n') {
                let rest = self.bytes.split_off(looked + at + 1);
                let mut line = std::mem::replace(&mut self.bytes, rest);
                line.pop();
                return Ok((line, self.descriptor.take()));
            }
            looked = self.bytes.len();
            if looked > MAX_CONTROL_LINE {
                return Err(Ended::TooLong);
            }
            if looked > 0 && deadline.is_none() {
                deadline = Some(Deadline::after(TIMEOUT));
            }
            let source = [Source::readable(self.stream, ())];
            if poll::wait(&source, deadline)?.is_empty() {
                return Err(Ended::HalfALine);
            }
            self.take()?;
        }
    }

    /// Takes what is there.
    fn take(&mut self) -> Result<(), Ended> {
        let mut piece = [0; PIECE];
        let mut came = match rights::receive(self.stream, &mut piece) {
            Err(Errno::AGAIN) => return Ok(()),
            other => other?,
        };
        let more = came.handles.len() + usize::from(self.descriptor.is_some()) > 1;
        if more || came.handles_truncated {
            return Err(Ended::TooManyDescriptors);
        }
        if came.bytes == 0 {
            return Err(Ended::EndOfFile);
        }
        self.descriptor = self.descriptor.take().or_else(|| came.handles.pop());
        self.bytes.extend_from_slice(&piece[..came.bytes]);
        Ok(())
    }
}

/// Sends an answer to a peer that takes it in time.
fn send(stream: &UnixStream, answer: &Answer) -> Result<(), Ended> {
    let line = serde_json::to_string(answer).map_err(std::io::Error::other)? + "\n";
    write(stream, line.as_bytes(), &[], Deadline::after(TIMEOUT))
}

/// Sends bytes, with descriptors beside the first of them.
pub(super) fn write(
    stream: &UnixStream,
    mut bytes: &[u8],
    mut beside: &[std::os::fd::BorrowedFd<'_>],
    deadline: Deadline,
) -> Result<(), Ended> {
    while !bytes.is_empty() {
        match rights::send(stream, bytes, beside) {
            Ok(sent) => {
                bytes = &bytes[sent..];
                beside = &[];
            }
            Err(error) if rights::is_full(error, beside) => {
                if !rights::wait_for_room(stream, error, deadline)? {
                    return Err(Ended::Unread);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write as _};
    use std::sync::Arc;

    use super::*;
    use crate::control::Peers;

    /// A peer of a thread that answers how many bytes its id has.
    fn served() -> (UnixStream, std::thread::JoinHandle<Ended>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serving = std::thread::spawn(move || {
            let seat = Seat { peers: Arc::<Peers>::default(), number: 1 };
            serve(&theirs, &seat, |request, beside| {
                Ok(serde_json::json!({ "id": request.id, "beside": beside.is_some() }))
            })
        });
        (ours, serving)
    }

    fn answer(reader: &mut impl std::io::BufRead) -> Answer {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn lines_are_answered_in_order_however_they_are_cut() {
        let (mut ours, serving) = served();
        let mut reader = BufReader::new(ours.try_clone().unwrap());
        let text = "{\"id\":1,\"command\":\"list\"}\n\n{\"id\":2,\"command\":\"list\"}\nx\n";
        for piece in text.as_bytes().chunks(5) {
            ours.write_all(piece).unwrap();
        }
        let all: Vec<Answer> = (0..4).map(|_| answer(&mut reader)).collect();
        assert!(matches!(&all[0].outcome, Outcome::Ok(value) if value["id"] == 1));
        assert!(matches!(&all[2].outcome, Outcome::Ok(value) if value["id"] == 2));
        for at in [1, 3] {
            assert!(matches!(&all[at].outcome, Outcome::Error(error)
                if error.code == ErrorCode::BadRequest));
        }
        drop((ours, reader));
        assert!(matches!(serving.join().unwrap(), Ended::EndOfFile));
    }

    #[test]
    fn a_line_that_is_too_long_ends_the_connection_with_a_word() {
        let (mut ours, serving) = served();
        // Half of it may be refused by then.
        let _ = ours.write_all(&vec![b'x'; MAX_CONTROL_LINE + 2 * PIECE]);
        let mut reader = BufReader::new(ours);
        let refused = answer(&mut reader);
        assert!(matches!(&refused.outcome, Outcome::Error(error)
            if error.code == ErrorCode::TooLong && error.message.contains("65536")));
        assert!(matches!(serving.join().unwrap(), Ended::TooLong));
    }

    #[test]
    fn one_descriptor_comes_with_its_line_and_two_end_the_connection() {
        use std::os::fd::AsFd as _;
        let (ours, serving) = served();
        let mut reader = BufReader::new(ours.try_clone().unwrap());
        let null = std::fs::File::open("/dev/null").unwrap();
        let line = b"{\"command\":\"list\"}\n";
        let deadline = || Deadline::after(TIMEOUT);
        for beside in [true, false] {
            let handles = [null.as_fd()];
            write(&ours, line, if beside { &handles } else { &[] }, deadline()).unwrap();
            let came = answer(&mut reader);
            assert!(matches!(came.outcome, Outcome::Ok(value) if value["beside"] == beside));
        }
        write(&ours, line, &[null.as_fd(), null.as_fd()], deadline()).unwrap();
        assert!(matches!(answer(&mut reader).outcome, Outcome::Error(_)));
        assert!(matches!(serving.join().unwrap(), Ended::TooManyDescriptors));
    }
}
