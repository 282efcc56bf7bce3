//! A served function: its socket and its thread.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipc::event::Signaller;
use ipc::{Deadline, SocketFile, SocketFileError};

use crate::options::Options;
use crate::seat::{Beside, Seat};
use crate::service::Service;
use cordon_vmm::{Container, PassthroughDevice};

/// How long a server may take to stop whose device is still attached: a little longer than a request
/// that waits for a process to be found silent and replaced.
const STOP: Duration = Duration::from_secs(5);

/// Why a function is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket cannot be made.
    #[error(transparent)]
    Listen(#[from] SocketFileError),
    /// No thread or descriptor is left.
    #[error("Cannot serve {}", .0.display())]
    Start(PathBuf, #[source] io::Error),
}

/// What happens, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client connected.
    Attached,
    /// A client is gone; why.
    Detached(String),
    /// A client asked for something that was refused, or not done in time; the client goes on.
    Refused(String),
    /// Another client came while one was there, or while the function is withheld, and was sent
    /// away.
    Busy,
    /// No client can be let in for now; why. It is tried again.
    Delayed(String),
    /// What a client left in the function could not be taken back; why. No other client gets the
    /// function until it has been, which is tried again.
    Withheld(String),
    /// The function is not withheld any more.
    Available,
    /// The server has a bug or cannot wait; the function is served no more.
    Failed(String),
}

/// A served function. Dropping it stops serving; the device stays attached.
pub struct Server {
    stop: Signaller,
    thread: Option<JoinHandle<()>>,
    finished: Receiver<()>,
    file: Arc<SocketFile>,
    /// Of its own client.
    seat: Arc<Seat>,
    /// Of the clients of what is served beside it.
    beside: Beside,
}

impl Server {
    /// Serves `device` at `path` to one client after the other; `log` is told what happens. A
    /// socket that nobody listens at is replaced, nothing else. The device is reset before the first
    /// client, and after each.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn start(
        path: &Path,
        device: Arc<dyn PassthroughDevice>,
        container: Arc<Container>,
        options: Options,
        log: impl Fn(Event) + Send + 'static,
    ) -> Result<Self, ServerError> {
        let file = Arc::new(SocketFile::listen(path)?);
        let start = |error| ServerError::Start(path.to_owned(), error);
        let stopped = ipc::Event::new().map_err(start)?;
        let stop = stopped.signaller().map_err(start)?;
        let (sender, finished) = channel();
        let name = format!("vfio-user {}", device.info().identity.address);
        let (seat, beside) = (Arc::new(Seat::new().map_err(start)?), Beside::default());
        let (its_seat, its_beside) = (Arc::clone(&seat), beside.clone());
        let service = Service {
            stopped,
            device,
            container,
            options,
            seat: its_seat,
            beside: its_beside,
            log,
        };
        let listener = Arc::clone(&file);
        let run = move || {
            service.run(listener);
            let _ = sender.send(());
        };
        let thread = std::thread::Builder::new().name(name).spawn(run).map_err(start)?;
        Ok(Self { stop, thread: Some(thread), finished, file, seat, beside })
    }

    /// Serves what belongs to this server's function, its companion, as [`Server::start`]. Since
    /// that acts in the memory of the function's client, its client leaves with the function's.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn start_beside(
        &self,
        path: &Path,
        device: Arc<dyn PassthroughDevice>,
        container: Arc<Container>,
        options: Options,
        log: impl Fn(Event) + Send + 'static,
    ) -> Result<Self, ServerError> {
        let server = Self::start(path, device, container, options, log)?;
        self.beside.add(&server.seat);
        Ok(server)
    }

    /// Has it stop, and waits for that until `deadline`; whether it has. It takes leave of its client in
    /// order first: one whose device does not answer is given up when the device is detached, or when a
    /// request is overdue.
    pub fn stop(&self, deadline: Deadline) -> bool {
        self.stop.signal();
        let left = deadline.instant().saturating_duration_since(Instant::now());
        !matches!(self.finished.recv_timeout(left), Err(RecvTimeoutError::Timeout))
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A request in flight is bounded by the device's deadlines, and answered at once when the device
        // is detached.
        if self.stop(Deadline::after(STOP))
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the server at {} panicked", self.path().display());
        }
        // Also when the thread is stuck in a request and holds the socket.
        self.file.remove();
    }
}
