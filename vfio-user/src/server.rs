//! A served function: its socket and its thread.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipc::event::Signaller;
use ipc::{Deadline, SocketFile, SocketFileError};
use parking_lot::Mutex;

use crate::entrance::Way;
use crate::guest::{Guest, Stay};
use crate::kept::{Adopted, Baseline};
use crate::options::{AtBudget, Options};
use crate::progress::Progress;
use crate::seat::{Beside, Seat};
use crate::service::Service;
use cordon_vmm::PassthroughDevice;
use cordon_vmm::kept::Store;

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
    /// A client goes on that another server had which was killed ([`Server::start_kept`]).
    TakenOver,
    /// One does not; why. What it left is taken back.
    Lost(String),
    /// A client is gone; why.
    Detached(String),
    /// A client asked for something that was refused, or not done in time; the client goes on. Or one was sent away,
    /// since it is not the process whose guest it would be ([`Guest::shared`]).
    Refused(String),
    /// A client is at a budget of its own, and was refused more: that is told once for each client and
    /// budget, and as [`Event::Refused`] like all that is refused.
    AtBudget(AtBudget),
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
    /// The one client of a server that was given a connected socket is gone, and what it left was taken
    /// back: the server has ended.
    Finished,
    /// The server has a bug or cannot wait; the function is served no more.
    Failed(String),
}

/// What clients of a kept function come by.
pub enum Clients {
    /// A socket that listens.
    At(SocketFile),
    /// The one that there is, unless it was left, and what its socket is called.
    One(Option<UnixStream>, PathBuf),
}

/// Where clients are kept, and the one that is there already.
#[derive(Default)]
pub struct Keeping {
    /// Of the host that the device is of.
    pub store: Option<Arc<Store>>,
    /// One that was left.
    pub adopted: Option<Adopted>,
    /// What one has left in the device's config space that does not go on.
    pub baseline: Option<Baseline>,
}

impl Keeping {
    /// Nobody is served after all: a client that was left is sent away, and its memory is given back, which the device
    /// does not reach any more.
    pub fn abandon(self, device: &dyn PassthroughDevice, guest: &Guest) {
        if let Some(adopted) = self.adopted {
            adopted.abandon_of(device, guest.container());
        }
    }
}

/// A served function. Dropping it stops serving; the device stays attached.
pub struct Server {
    stop: Signaller,
    thread: Option<JoinHandle<()>>,
    finished: Receiver<()>,
    progress: Arc<Progress>,
    /// Where it listens, if it does.
    file: Option<Arc<SocketFile>>,
    path: PathBuf,
    /// Of its own client.
    seat: Arc<Seat>,
    /// Of the clients of what is served beside it.
    beside: Beside,
    /// What is left of its last client: to be dropped when the device is detached, which takes that back.
    _stay: Arc<Mutex<Option<Stay>>>,
}

impl Server {
    /// Serves `device` at `path` to one client after the other, whose memory `guest` is: usually a container of its
    /// own. `log` is told what happens. A
    /// socket that nobody listens at is replaced, nothing else. The device is reset before the first
    /// client, and after each.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn start(
        path: &Path,
        device: Arc<dyn PassthroughDevice>,
        guest: impl Into<Guest>,
        options: Options,
        log: impl Fn(Event) + Send + 'static,
    ) -> Result<Self, ServerError> {
        Self::start_at(SocketFile::listen(path)?, device, guest, options, log)
    }

    /// [`Server::start`] with a socket that listens already.
    ///
    /// # Errors
    /// [`ServerError::Start`].
    pub fn start_at(
        file: SocketFile,
        device: Arc<dyn PassthroughDevice>,
        guest: impl Into<Guest>,
        options: Options,
        log: impl Fn(Event) + Send + 'static,
    ) -> Result<Self, ServerError> {
        let (clients, kept) = (Clients::At(file), Keeping::default());
        Self::start_kept(clients, kept, device, guest, options, log)
    }

    /// [`Server::start`] with a client that is connected already: it is served, and no other. `name`
    /// says which socket it is, to people.
    ///
    /// # Errors
    /// [`ServerError::Start`].
    pub fn start_connected(
        client: UnixStream,
        name: &Path,
        device: Arc<dyn PassthroughDevice>,
        guest: impl Into<Guest>,
        options: Options,
        log: impl Fn(Event) + Send + 'static,
    ) -> Result<Self, ServerError> {
        let clients = Clients::One(Some(client), name.to_owned());
        Self::start_kept(clients, Keeping::default(), device, guest, options, log)
    }

    /// As [`Server::start_at`], or for one connected client. With a keeper, its clients survive a kill of this process:
    /// they only wait for the next one, which goes on with them. The device is one of a host with the same
    /// store. With a client that was left, the device is not reset before that is gone.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn start_kept(
        clients: Clients,
        keeping: Keeping,
        device: Arc<dyn PassthroughDevice>,
        guest: impl Into<Guest>,
        options: Options,
        log: impl Fn(Event) + Send + 'static,
    ) -> Result<Self, ServerError> {
        let guest = guest.into();
        let (way, file, path) = match clients {
            Clients::At(file) => {
                let (path, file) = (file.path().to_owned(), Arc::new(file));
                (Way::Listener(Arc::clone(&file)), Some(file), path)
            }
            Clients::One(client, name) => {
                // The same one is left.
                let client = client.filter(|_| keeping.adopted.is_none());
                (Way::Connected(client.map(Into::into)), None, name)
            }
        };
        Self::start_by(way, file, path, (device, guest, options), keeping, log)
    }

    fn start_by(
        way: Way,
        file: Option<Arc<SocketFile>>,
        path: PathBuf,
        (device, guest, options): (Arc<dyn PassthroughDevice>, Guest, Options),
        Keeping { store, mut adopted, mut baseline }: Keeping,
        log: impl Fn(Event) + Send + 'static,
    ) -> Result<Self, ServerError> {
        let admitted = adopted.as_mut().map(|one| {
            let before = one.admission.take();
            before.unwrap_or_else(|| guest.admit_again(&one.stream))
        });
        let stay = admitted.transpose();
        let (stay, adopted) = match stay {
            Ok(stay) => (stay, adopted),
            Err(why) => {
                log(Event::Lost(why));
                if let Some(one) = adopted {
                    baseline = Some(one.abandon_of(&*device, guest.container()));
                }
                (None, None)
            }
        };
        let stay = Arc::new(Mutex::new(stay));
        let start = |error| ServerError::Start(path.clone(), error);
        let stopped = ipc::Event::new().map_err(start)?;
        let stop = stopped.signaller().map_err(start)?;
        let (sender, finished) = channel();
        let name = format!("vfio-user {}", device.info().identity.address);
        let (seat, beside) = (Arc::new(Seat::new().map_err(start)?), Beside::default());
        let (its_seat, its_beside) = (Arc::clone(&seat), beside.clone());
        let progress = Arc::new(Progress::new());
        let service = Service {
            stopped,
            device,
            store,
            guest,
            stay: Arc::clone(&stay),
            options,
            seat: its_seat,
            beside: its_beside,
            progress: Arc::clone(&progress),
            log,
        };
        let run = move || {
            service.run(way, adopted, baseline);
            let _ = sender.send(());
        };
        let thread = std::thread::Builder::new().name(name).spawn(run).map_err(start)?;
        let thread = Some(thread);
        Ok(Self { stop, thread, finished, progress, file, path, seat, beside, _stay: stay })
    }

    /// Serves what belongs to this server's function, its companion, as [`Server::start_at`]. Since
    /// that acts in the memory of the function's client, its client leaves with the function's.
    ///
    /// # Errors
    /// [`ServerError::Start`].
    pub fn start_beside(
        &self,
        file: SocketFile,
        device: Arc<dyn PassthroughDevice>,
        guest: impl Into<Guest>,
        options: Options,
        log: impl Fn(Event) + Send + 'static,
    ) -> Result<Self, ServerError> {
        let server = Self::start_at(file, device, guest, options, log)?;
        self.has_beside(&server);
        Ok(server)
    }

    /// `server` serves what belongs to this server's function: see [`Server::start_beside`].
    pub fn has_beside(&self, server: &Self) {
        self.beside.add(&server.seat);
    }

    /// Has it stop, and waits for that until `deadline`; whether it has. It takes leave of its client in
    /// order first: one whose device does not answer is given up when the device is detached, or when a
    /// request is overdue.
    pub fn stop(&self, deadline: Deadline) -> bool {
        self.stop.signal();
        let left = deadline.instant().saturating_duration_since(Instant::now());
        !matches!(self.finished.recv_timeout(left), Err(RecvTimeoutError::Timeout))
    }

    /// How long its thread has been at one thing, a command or taking leave of a client; zero while it
    /// waits for something to do. A command has a deadline, so that more than some seconds is a thread
    /// that is stuck.
    #[must_use]
    pub fn busy_for(&self) -> Duration {
        self.progress.busy_for()
    }

    /// What it listens at, if it does.
    #[must_use]
    pub fn file(&self) -> Option<&Arc<SocketFile>> {
        self.file.as_ref()
    }

    /// Where it listens, or what its client's socket is called.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
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
        if let Some(file) = &self.file {
            file.remove();
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
#[path = "server_tests.rs"]
mod tests;
