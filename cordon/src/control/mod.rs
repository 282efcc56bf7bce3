//! The control socket of a running `cordon serve`: who connects to it, and who is asked by `cordon ctl`.
//!
//! | module | what |
//! | --- | --- |
//! | `client` | asks a server |
//! | `commands` | carries out what is asked for |
//! | `metrics` | counters as Prometheus reads them |
//! | `peer` | one connection: lines in, answers out |
//!
//! One thread accepts, and each connection has one, at most [`MAX_CONTROL_PEERS`] at once. Beyond that the
//! connection that has been waited for the longest is closed, for one that never reads or never ends its
//! line must not keep others out; a new one waits for at most [`GRACE`] for that. A peer that is at a
//! command keeps its place. The mode of the socket's file says who may connect; everybody else is trusted
//! with nothing.

mod client;
mod commands;
mod metrics;
mod peer;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipc::SocketFile;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::Failure;
use crate::limits::MAX_CONTROL_PEERS;
use crate::serve::Fleet;

pub(crate) use client::{AskError, TIMEOUT, ask_with, inspect, inspect_server};

/// How long a peer that is waited for keeps its place at least, when others want it.
const GRACE: Duration = Duration::from_millis(100);

/// A control socket. Its file is removed with the value.
pub(crate) struct Control(Arc<SocketFile>);

impl Control {
    /// Answers at `file`, by threads of its own that end with the program.
    pub(crate) fn start(file: SocketFile, fleet: Arc<Fleet>) -> Result<Self, Failure> {
        let file = Arc::new(file);
        let listener = Arc::clone(&file);
        let peers = Arc::new(Peers::default());
        std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            loop {
                match listener.accept() {
                    Ok(client) => peers.begin(client, &fleet),
                    Err(error) => {
                        tracing::error!("control socket {}: {error}", listener.path().display());
                        return;
                    }
                }
            }
        })?;
        Ok(Self(file))
    }

    /// What it listens at.
    pub(crate) fn file(&self) -> &Arc<SocketFile> {
        &self.0
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // The thread holds the socket until the program ends.
        self.0.remove();
    }
}

/// One connection, as whoever accepts sees it.
struct Place {
    number: u64,
    stream: Arc<UnixStream>,
    /// Since when it is waited for: for a request, or to take an answer. Nothing while it is at a command.
    waited_for: Option<Instant>,
    /// It was sent away, and its thread is about to end.
    leaves: bool,
}

/// Who is connected.
#[derive(Default)]
struct Peers {
    places: Mutex<(u64, Vec<Place>)>,
    /// Somebody left, or is waited for now.
    changed: Condvar,
}

impl Peers {
    /// Lets a peer in as soon as there is a place.
    fn begin(self: &Arc<Self>, client: OwnedFd, fleet: &Arc<Fleet>) {
        let stream = Arc::new(UnixStream::from(client));
        let mut places = self.places.lock();
        while places.1.len() >= MAX_CONTROL_PEERS {
            self.make_room(&mut places);
        }
        places.0 += 1;
        let number = places.0;
        let waited_for = Some(Instant::now());
        let stream_of_it = Arc::clone(&stream);
        places.1.push(Place { number, stream: stream_of_it, waited_for, leaves: false });
        drop(places);
        let (peers, fleet) = (Arc::clone(self), Arc::clone(fleet));
        let seat = Seat { peers, number };
        let serve = move || {
            let why = peer::serve(&stream, &seat, |request, beside| {
                commands::carry_out(&fleet, request, beside)
            });
            tracing::debug!("control: peer {}: {why}", seat.number);
        };
        // The seat goes with the closure where there is no thread, and the connection with it.
        let started = std::thread::Builder::new().name(format!("control {number}")).spawn(serve);
        if let Err(error) = started {
            tracing::warn!("control: no thread for a peer: {error}");
        }
    }

    /// Sends the peer away that has been waited for the longest, if that is long enough, or waits. A place is
    /// free when its thread is about to end, so that there are no more threads than places.
    fn make_room(&self, places: &mut MutexGuard<'_, (u64, Vec<Place>)>) {
        if places.1.iter().any(|place| place.leaves) {
            return self.changed.wait(places);
        }
        let waited_for = places.1.iter_mut().filter_map(|place| Some((place.waited_for?, place)));
        match waited_for.min_by_key(|(since, _)| *since) {
            Some((since, place)) if since.elapsed() >= GRACE => {
                place.leaves = true;
                // Wakes its thread, whatever it waits for.
                let _ = place.stream.shutdown(std::net::Shutdown::Both);
            }
            Some((since, _)) => {
                let _ = self.changed.wait_until(places, since + GRACE);
            }
            // Each of them is at a command, which has a deadline of its own.
            None => self.changed.wait(places),
        }
    }
}

/// A peer's place, given up with the value.
struct Seat {
    peers: Arc<Peers>,
    number: u64,
}

impl Seat {
    /// The peer is at a command from here on, or waited for.
    fn is_at_work(&self, works: bool) {
        let mut places = self.peers.places.lock();
        if let Some(place) = places.1.iter_mut().find(|place| place.number == self.number) {
            place.waited_for = (!works).then(Instant::now);
        }
        drop(places);
        self.peers.changed.notify_all();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.peers.places.lock().1.retain(|place| place.number != self.number);
        self.peers.changed.notify_all();
    }
}
