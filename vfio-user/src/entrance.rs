//! Where clients come in. That one cannot be let in, since a descriptor is missing or it has gone
//! already, is no reason to let nobody in any more: it is tried again after a pause.
//!
//! Or a client that was connected before this program was started: it is let in, and no other comes.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use ipc::poll::Source;
use ipc::{Deadline, SocketFile};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What clients come by.
pub(super) enum Way {
    /// A listening socket, by which any number comes.
    Listener(Arc<SocketFile>),
    /// The one client that there will be, until it is let in.
    Connected(Option<OwnedFd>),
}

/// See the module.
pub(super) struct Entrance {
    way: Way,
    /// Nobody is let in before.
    closed_until: Option<Deadline>,
    pause: Duration,
}

impl Entrance {
    /// By a listener that does not block, or of one client.
    pub(super) fn new(way: Way) -> Self {
        Self { way, closed_until: None, pause: FIRST_PAUSE }
    }

    /// Whether nobody will come any more.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.way, Way::Connected(None))
    }

    /// The client that was connected already.
    pub(super) fn connected(&mut self) -> Option<UnixStream> {
        match &mut self.way {
            Way::Connected(client) => client.take().map(UnixStream::from),
            Way::Listener(_) => None,
        }
    }

    /// What to wait for, unless it is closed.
    pub(super) fn source<T>(&self, token: T) -> Option<Source<'_, T>> {
        let closed = self.closed_until.is_some_and(|until| !until.passed());
        match &self.way {
            Way::Listener(listener) if !closed => Some(Source::readable(&**listener, token)),
            _ => None,
        }
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
        let Way::Listener(listener) = &self.way else { return Ok(None) };
        let error = match listener.try_accept() {
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
