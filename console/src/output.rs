//! Standard output and standard error, without a panic and without a lost error.

use std::fmt::Display;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::interrupt::Interrupt;
use crate::wait::wait;

/// What was printed cannot be written. Nobody needs to be told but by the exit status
/// ([`exit::UNWRITTEN`](crate::exit::UNWRITTEN)).
#[derive(Debug, thiserror::Error)]
#[error("Standard output cannot be written")]
pub struct OutputError(#[from] pub io::Error);

/// Bytes that a descriptor takes without blocking when it says that it can be written to: what
/// POSIX promises of a pipe, if nobody else writes to it.
const PIECE: usize = 512;
/// How long a reader may take for a piece once the program was told to end.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Standard output. With an [`Interrupt`] a reader that does not read holds the program up only until
/// a signal comes.
#[derive(Clone, Debug, Default)]
pub struct Output {
    interrupt: Option<Interrupt>,
}

impl Output {
    /// Standard output of a program that is to end when it is interrupted.
    #[must_use]
    pub fn interruptible(interrupt: Interrupt) -> Self {
        Self { interrupt: Some(interrupt) }
    }

    /// Writes a line.
    ///
    /// # Errors
    /// [`OutputError`].
    pub fn line(&self, text: impl Display) -> Result<(), OutputError> {
        self.text(&format!("{text}\n"))
    }

    /// Writes text as it is.
    ///
    /// # Errors
    /// [`OutputError`].
    pub fn text(&self, text: &str) -> Result<(), OutputError> {
        write_all(&io::stdout(), text.as_bytes(), self.interrupt.as_ref())
    }
}

/// Writes a line to standard output.
///
/// # Errors
/// [`OutputError`].
pub fn line(text: impl Display) -> Result<(), OutputError> {
    Output::default().line(text)
}

/// Writes a line to standard error, as far as that can be written: there is nobody left to tell
/// otherwise.
pub fn complain(text: impl Display) {
    let _ = write_all(&io::stderr(), format!("{text}\n").as_bytes(), None);
}

/// Writes all of `bytes`, also to a descriptor that does not block.
pub(crate) fn write_all(
    to: &impl AsFd,
    mut bytes: &[u8],
    interrupt: Option<&Interrupt>,
) -> Result<(), OutputError> {
    while !bytes.is_empty() {
        let piece = match interrupt {
            None => bytes,
            Some(interrupt) => {
                until_writable(to, interrupt)?;
                &bytes[..bytes.len().min(PIECE)]
            }
        };
        match rustix::io::write(to, piece) {
            Ok(0) => return Err(OutputError(io::ErrorKind::WriteZero.into())),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => drop(crate::wait::writable(to, None)?),
            Err(error) => return Err(OutputError(error.into())),
        }
    }
    Ok(())
}

/// Waits until something can be written; not for long once the program was interrupted.
fn until_writable(to: &impl AsFd, interrupt: &Interrupt) -> Result<(), OutputError> {
    let sources = [(to.as_fd(), PollFlags::OUT), (interrupt.as_fd(), PollFlags::IN)];
    let [writable, _] = wait(sources, None)?;
    if writable || crate::wait::writable(to, Some(TIMEOUT))? {
        return Ok(());
    }
    Err(OutputError(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_arrives_also_through_a_descriptor_that_does_not_block() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let text = "0123456789".repeat(50_000);
        let expected = text.clone();
        let read = std::thread::spawn(move || {
            io::read_to_string(std::fs::File::from(reader)).unwrap() == expected
        });
        write_all(&writer, text.as_bytes(), None).unwrap();
        drop(writer);
        assert!(read.join().unwrap());
    }

    #[test]
    fn a_reader_that_is_gone_and_a_disk_that_is_full_are_errors() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(reader);
        let OutputError(error) = write_all(&writer, b"x", None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        if let Ok(full) = std::fs::File::options().write(true).open("/dev/full") {
            let OutputError(error) = write_all(&full, b"x", None).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
    }
}
