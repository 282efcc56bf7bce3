//! The thread of one served function: listens, serves one client at a time, until it is stopped.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use ipc::event::Signaller;
use ipc::poll::{self, Source};
use ipc::{SocketFile, SocketFileError};

use crate::session::Session;
use crate::socket::{Socket, SocketError};
use cordon_vmm::{Container, PassthroughDevice};

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
    /// A client asked for something that was refused; the client goes on.
    Refused(String),
    /// Another client came while one was there, and was sent away.
    Busy,
    /// The listening socket failed; the function is served no more.
    Failed(String),
}

/// What the thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Stop,
    Listener,
    Client,
}

/// A served function. Dropping it stops serving; the device stays attached.
pub struct Server {
    stop: Signaller,
    thread: Option<JoinHandle<()>>,
    finished: Receiver<()>,
    file: Arc<SocketFile>,
}

impl Server {
    /// Serves `device` at `path` to one client after the other; `log` is told what happens. A
    /// socket that nobody listens at is replaced, nothing else.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn start(
        path: &Path,
        device: Arc<dyn PassthroughDevice>,
        container: Arc<Container>,
        log: impl Fn(Event) + Send + 'static,
    ) -> Result<Self, ServerError> {
        let file = Arc::new(SocketFile::listen(path)?);
        let start = |error| ServerError::Start(path.to_owned(), error);
        let stopped = ipc::Event::new().map_err(start)?;
        let stop = stopped.signaller().map_err(start)?;
        let (sender, finished) = channel();
        let name = format!("vfio-user {}", device.info().identity.address);
        let listener = Arc::clone(&file);
        let run = move || {
            let thread = Thread { listener, stopped, device: &*device, container: &container, log };
            thread.run();
            let _ = sender.send(());
        };
        let thread = std::thread::Builder::new().name(name).spawn(run).map_err(start)?;
        Ok(Self { stop, thread: Some(thread), finished, file })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.signal();
        // A request in flight is bounded by the device's deadlines.
        if self.finished.recv_timeout(Duration::from_secs(20)).is_ok()
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the server at {} panicked", self.path().display());
        }
        // Also when the thread is stuck in a request and holds the socket.
        self.file.remove();
    }
}

struct Thread<'d, L> {
    listener: Arc<SocketFile>,
    stopped: ipc::Event,
    device: &'d dyn PassthroughDevice,
    container: &'d Container,
    log: L,
}

impl<L: Fn(Event)> Thread<'_, L> {
    fn run(&self) {
        loop {
            match self.wait(None) {
                Ok(tokens) if tokens.contains(&Token::Stop) => return,
                Ok(_) => {}
                Err(error) => return (self.log)(Event::Failed(error.to_string())),
            }
            let stream = match self.accept() {
                Ok(Some(stream)) => stream,
                Ok(None) => continue,
                Err(error) => return (self.log)(Event::Failed(error.to_string())),
            };
            (self.log)(Event::Attached);
            let mut session = Session::new(Socket::new(stream), self.device, self.container);
            let ended = self.converse(&mut session);
            session.end();
            match ended {
                Some(why) => (self.log)(Event::Detached(why)),
                None => return (self.log)(Event::Detached("the server stops".to_owned())),
            }
        }
    }

    /// Serves a client until it is gone, and why; `None` when the server is to stop.
    fn converse(&self, session: &mut Session<'_>) -> Option<String> {
        loop {
            let tokens = match self.wait(Some(session.socket())) {
                Ok(tokens) => tokens,
                Err(error) => return Some(error.to_string()),
            };
            for token in tokens {
                match token {
                    Token::Stop => return None,
                    Token::Listener => {
                        if let Ok(Some(_sent_away)) = self.accept() {
                            (self.log)(Event::Busy);
                        }
                    }
                    Token::Client => match session.serve_one() {
                        Ok(None) => {}
                        Ok(Some(why)) => (self.log)(Event::Refused(why)),
                        Err(SocketError::EndOfFile) => return Some("end of file".to_owned()),
                        Err(error) => return Some(error.to_string()),
                    },
                }
            }
        }
    }

    fn wait(&self, client: Option<BorrowedFd<'_>>) -> io::Result<Vec<Token>> {
        let stopped = self.stopped.as_fd();
        let mut sources = vec![
            Source::readable(&stopped, Token::Stop),
            Source::readable(&*self.listener, Token::Listener),
        ];
        if let Some(client) = &client {
            sources.push(Source::readable(client, Token::Client));
        }
        poll::wait(&sources, None)
    }

    /// The next client; `None` when it is gone again.
    fn accept(&self) -> io::Result<Option<UnixStream>> {
        Ok(self.listener.try_accept()?.map(UnixStream::from))
    }
}
