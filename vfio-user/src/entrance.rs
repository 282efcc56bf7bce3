//! Where clients come in. That one cannot be let in, since a descriptor is missing or it has gone
//! already, is no reason to let nobody in any more: it is tried again after a pause.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use ipc::poll::Source;
use ipc::{Deadline, SocketFile};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A listening socket.
pub(super) struct Entrance {
    listener: Arc<SocketFile>,
    /// Nobody is let in before.
    closed_until: Option<Deadline>,
    pause: Duration,
}

impl Entrance {
    /// Of a socket that does not block.
    pub(super) fn new(listener: Arc<SocketFile>) -> Self {
        Self { listener, closed_until: None, pause: FIRST_PAUSE }
    }

    /// What to wait for, unless it is closed.
    pub(super) fn source<T>(&self, token: T) -> Option<Source<'_, T>> {
        let closed = self.closed_until.is_some_and(|until| !until.passed());
        (!closed).then(|| Source::readable(&*self.listener, token))
    }

    /// When there will be something to wait for again.
    pub(super) fn opens(&self) -> Option<Deadline> {
        self.closed_until.filter(|until| !until.passed())
    }

    /// The next client; `None` when it has gone again.
    ///
    /// # Errors
    /// Why it cannot be let in, the first time of several.
    pub(super) fn accept(&mut self) -> io::Result<Option<UnixStream>> {
        let error = match self.listener.try_accept() {
            Ok(None) => return Ok(None),
            Ok(Some(stream)) => {
                (self.closed_until, self.pause) = (None, FIRST_PAUSE);
                return Ok(Some(stream.into()));
            }
            Err(error) => error,
        };
        if matches!(
            error.kind(),
            io::ErrorKind::WouldBlock
                | io::ErrorKind::Interrupted
                | io::ErrorKind::ConnectionAborted
        ) {
            return Ok(None);
        }
        let first = self.pause == FIRST_PAUSE;
        self.closed_until = Some(Deadline::after(self.pause));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        if first { Err(error) } else { Ok(None) }
    }
}
