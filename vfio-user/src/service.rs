//! The thread of one served function: listens, serves one client at a time, until it is stopped.
//!
//! A bug in it, a panic, ends this function's service and nothing else: it is caught, what the
//! client had is taken back, and it is told as an event.

use std::any::Any;
use std::io;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use ipc::Deadline;
use ipc::poll::{self, Source};
use ipc::spin::{self, Spin};
use parking_lot::Mutex;

use crate::entrance::{Entrance, Way};
use crate::guest::{Guest, Stay};
use crate::handover::Handover;
use crate::kept::{Adopted, Baseline};
use crate::options::Options;
use crate::progress::Progress;
use crate::seat::{Beside, Seat};
use crate::server::Event;
use crate::session::Session;
use crate::socket::{Socket, SocketError};
use cordon_vmm::PassthroughDevice;
use cordon_vmm::error::{DeviceError, ErrorKind};
use cordon_vmm::kept::{KeptClient, Store};

/// Pauses between attempts to take back what a client left.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long the client of a companion may take to leave.
const LEAVING: Duration = Duration::from_secs(1);

/// How long the thread looks for the next command after it served one, at most.
const LONGEST_LOOK: Duration = Duration::from_micros(30);
/// After so many commands in a row it looks whether it is to stop, or another client is there.
const MOST_IN_A_ROW: u32 = 64;

/// What the thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Stop,
    /// Another client.
    Entrance,
    /// Something from the client, or its end.
    Client,
    /// The client is to leave.
    Leave,
}

/// What waiting for a client comes to.
enum Next {
    Client(UnixStream, Stay),
    /// The one that there was to be may not have the function.
    SentAway,
    Stopped,
}

/// Why a client is served no more.
pub(crate) enum End {
    Stopped,
    Left(String),
    /// It was another server's, and this one could not go on with it.
    Lost(String),
}

/// See the module.
pub(crate) struct Service<L> {
    pub(crate) stopped: ipc::Event,
    pub(crate) device: Arc<dyn PassthroughDevice>,
    /// Where clients are kept, if they are.
    pub(crate) store: Option<Arc<Store>>,
    pub(crate) guest: Guest,
    /// The last client, until nothing of it is left: where that is never seen to, until the server is dropped.
    pub(crate) stay: Arc<Mutex<Option<Stay>>>,
    pub(crate) options: Options,
    pub(crate) seat: Arc<Seat>,
    pub(crate) beside: Beside,
    pub(crate) progress: Arc<Progress>,
    pub(crate) log: L,
}

impl<L: Fn(Event)> Service<L> {
    /// Serves until it is stopped.
    pub(crate) fn run(&self, way: Way, adopted: Option<Adopted>, baseline: Option<Baseline>) {
        // What a panic leaves behind is this function's alone, and used by nobody afterwards.
        let serve = || self.serve(Entrance::new(way), adopted, baseline);
        let served = catch_unwind(AssertUnwindSafe(serve));
        // Nothing is left to be stuck in.
        self.progress.waits();
        let why = match served {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => format!("a bug in its server: {}", said(&*panic)),
        };
        // The log may be what panicked.
        let _ = catch_unwind(AssertUnwindSafe(|| (self.log)(Event::Failed(why))));
    }

    fn serve(
        &self,
        mut entrance: Entrance,
        adopted: Option<Adopted>,
        baseline: Option<Baseline>,
    ) -> io::Result<()> {
        // What the keeper has of a client that is gone, until nothing of that is left.
        let (mut handover, mut kept) = match baseline {
            Some(Baseline { record, client }) => (Handover::of(&record), Some(client)),
            None => (Handover::new(), None),
        };
        if let Some(adopted) = adopted {
            handover = Handover::of(&adopted.record.handover);
            let end;
            (end, kept) = self.go_on(adopted, &mut entrance, &mut handover)?;
            if !self.has_left(end) {
                return Ok(());
            }
        }
        loop {
            if !self.clean(&mut entrance, &mut handover)? {
                return Ok(());
            }
            // Nothing of the client is left.
            kept.take().iter().for_each(KeptClient::give_up);
            drop(self.stay.lock().take());
            if entrance.is_over() {
                (self.log)(Event::Finished);
                return Ok(());
            }
            let (stream, admitted) = match self.next_client(&mut entrance)? {
                Next::Client(stream, admitted) => (stream, admitted),
                Next::SentAway => continue,
                Next::Stopped => return Ok(()),
            };
            *self.stay.lock() = Some(admitted);
            let end;
            (end, kept) = self.serve_client(stream, &mut entrance, &mut handover)?;
            if !self.has_left(end) {
                return Ok(());
            }
        }
    }

    /// Tells how a client ended; whether others may come.
    fn has_left(&self, end: End) -> bool {
        let (why, others_come) = match end {
            End::Left(why) => (why, true),
            End::Lost(why) => {
                (self.log)(Event::Lost(why));
                return true;
            }
            End::Stopped => ("the server stops".to_owned(), false),
        };
        (self.log)(Event::Detached(why));
        others_come
    }

    /// Takes back what the last client left, however often that has to be tried; `false` when the
    /// server is to stop.
    fn clean(&self, entrance: &mut Entrance, handover: &mut Handover) -> io::Result<bool> {
        let (mut pause, mut withheld) = (FIRST_PAUSE, false);
        while let Err(error) = self.try_to_clean(handover) {
            if !withheld {
                (self.log)(Event::Withheld(error.to_string()));
                withheld = true;
            }
            let until = Deadline::after(pause);
            while !until.passed() {
                let tokens = self.wait(entrance, None, Some(until))?;
                if tokens.contains(&Token::Stop) {
                    return Ok(false);
                }
                if tokens.contains(&Token::Entrance) {
                    self.send_away(entrance);
                }
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        if withheld {
            (self.log)(Event::Available);
        }
        Ok(true)
    }

    fn try_to_clean(&self, handover: &mut Handover) -> Result<(), DeviceError> {
        if !self.beside.vacate(Deadline::after(LEAVING)) {
            let message = "the client of its companion is still there";
            return Err(DeviceError::new(ErrorKind::Busy, message));
        }
        handover.clean(&*self.device)
    }

    /// Waits for a client.
    fn next_client(&self, entrance: &mut Entrance) -> io::Result<Next> {
        if let Some(client) = entrance.connected() {
            return Ok(self
                .admit(&client)
                .map_or(Next::SentAway, |stay| Next::Client(client, stay)));
        }
        loop {
            let tokens = self.wait(entrance, None, None)?;
            if tokens.contains(&Token::Stop) {
                return Ok(Next::Stopped);
            }
            if tokens.contains(&Token::Entrance)
                && let Some(stream) = self.accept(entrance)
                && let Some(stay) = self.admit(&stream)
            {
                return Ok(Next::Client(stream, stay));
            }
        }
    }

    /// Lets a client in, unless functions that reach the same memory are another's.
    fn admit(&self, client: &UnixStream) -> Option<Stay> {
        let admitted = self.guest.admit(client);
        admitted.map_err(|why| (self.log)(Event::Refused(why))).ok()
    }

    fn accept(&self, entrance: &mut Entrance) -> Option<UnixStream> {
        entrance.accept().unwrap_or_else(|error| {
            (self.log)(Event::Delayed(format!("no client can be let in: {error}")));
            None
        })
    }

    fn send_away(&self, entrance: &mut Entrance) {
        if self.accept(entrance).is_some() {
            (self.log)(Event::Busy);
        }
    }

    /// Serves a client until it is gone, and takes back its memory.
    fn serve_client(
        &self,
        stream: UnixStream,
        entrance: &mut Entrance,
        handover: &mut Handover,
    ) -> io::Result<(End, Option<KeptClient>)> {
        let _taken = self.seat.take();
        (self.log)(Event::Attached);
        let socket = match self.keep(&stream, handover) {
            Some(kept) => Socket::kept(stream, kept, &self.stopped),
            None => Socket::new(stream, &self.stopped),
        };
        let (device, container) = (&*self.device, self.guest.container());
        let session = Session::new(socket, device, container, handover, self.options);
        self.serve_session(session, entrance)
    }

    pub(crate) fn serve_session(
        &self,
        mut session: Session<'_>,
        entrance: &mut Entrance,
    ) -> io::Result<(End, Option<KeptClient>)> {
        let talk = AssertUnwindSafe(|| self.converse(&mut session, entrance));
        let ended = catch_unwind(talk);
        // Whatever happened, its memory is not the device's any more.
        self.quiesce();
        if let Some(why) = session.end() {
            (self.log)(Event::Refused(why));
        }
        let kept = session.into_kept();
        self.leaves();
        let end = ended.unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok((end, kept))
    }

    pub(crate) fn quiesce(&self) {
        if let Err(error) = self.device.quiesce()
            && !error.is_absent()
        {
            tracing::warn!("quiescing after a client: {error}");
        }
    }

    pub(crate) fn leaves(&self) {
        if let Some(stay) = &mut *self.stay.lock() {
            stay.leaves();
        }
    }

    fn converse(&self, session: &mut Session<'_>, entrance: &mut Entrance) -> io::Result<End> {
        // Beside the client and the function process, which looks for the next access itself.
        let looks = spin::has_processors_for(3);
        let spin = Spin::new(if looks { LONGEST_LOOK } else { Duration::ZERO });
        let mut in_a_row = 0;
        loop {
            // A guest's accesses come one after the other: a look is cheaper than a sleep in between.
            let may_come = looks && (1..MOST_IN_A_ROW).contains(&in_a_row);
            if may_come && spin.look(|| session.look()) {
                in_a_row += 1;
                if let Some(end) = self.serve_message(session) {
                    return Ok(end);
                }
                continue;
            }
            in_a_row = 0;
            let now = session.is_begun().then(Deadline::now);
            let tokens = self.wait(entrance, Some(session), now)?;
            for token in &tokens {
                match token {
                    Token::Stop => return Ok(End::Stopped),
                    Token::Leave => {
                        return Ok(End::Left("the client of its function has left".to_owned()));
                    }
                    Token::Entrance => self.send_away(entrance),
                    Token::Client => {}
                }
            }
            if now.is_some() || tokens.contains(&Token::Client) {
                in_a_row = 1;
                if let Some(end) = self.serve_message(session) {
                    return Ok(end);
                }
            }
        }
    }

    /// Serves a message that has begun to come; how the client ended, if it did.
    fn serve_message(&self, session: &mut Session<'_>) -> Option<End> {
        self.progress.begins();
        let served = session.serve_one();
        if let Some(at) = session.take_at_budget() {
            (self.log)(Event::AtBudget(at));
        }
        match served {
            Ok(None) => None,
            Ok(Some(why)) => {
                (self.log)(Event::Refused(why));
                None
            }
            Err(SocketError::Stopped) => Some(End::Stopped),
            Err(SocketError::EndOfFile) => Some(End::Left("end of file".to_owned())),
            Err(error) => Some(End::Left(error.to_string())),
        }
    }

    /// Waits; nothing when it is time to look again.
    fn wait(
        &self,
        entrance: &Entrance,
        session: Option<&Session<'_>>,
        until: Option<Deadline>,
    ) -> io::Result<poll::Tokens<Token>> {
        let client = session.map(Session::socket);
        let mut sources = vec![Source::readable(&self.stopped, Token::Stop)];
        sources.extend(entrance.source(Token::Entrance));
        if let Some(client) = &client {
            sources.push(Source::readable(self.seat.leave(), Token::Leave));
            sources.push(Source::readable(client, Token::Client));
        }
        let soonest = [entrance.opens(), until].into_iter().flatten().min();
        self.progress.waits();
        let tokens = poll::wait(&sources, soonest);
        self.progress.begins();
        tokens
    }
}

/// What a panic says.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked".into())
}
