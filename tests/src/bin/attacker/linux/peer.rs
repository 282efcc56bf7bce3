//! A function process that answers everything with something, so that what it does beside that counts.

use std::os::fd::OwnedFd;
use std::time::Duration;

use ipc::event::Signaller;
use ipc::lane::Server;
use ipc::wire::common::Failure;
use ipc::wire::function::{Request, Statistics};
use ipc::{Access, Deadline, Handles, SharedMemory, Tube, Window, lane};

use super::steps::{leave, soon};

/// What every read of it answers unless an attack says otherwise.
const VALUE: u64 = 7;

pub(crate) struct Peer {
    pub(crate) tube: Tube,
    /// The lane, served as it should be.
    pub(crate) served: Option<Server>,
    /// The lane, to be written to, and what wakes its callers.
    pub(crate) lane: Option<(Window, Vec<Signaller>)>,
    /// Whether a lane is joined or only written to.
    pub(crate) serves_lane: bool,
    /// The VMM's events.
    pub(crate) signallers: Vec<Signaller>,
    /// The tube to the connection process.
    pub(crate) companion: Option<Tube>,
    /// What a read answers.
    pub(crate) value: u64,
    /// How requests that come by the tube alone are answered, if that is oddly.
    pub(crate) odd: Option<fn(&mut Self, u32, &Request)>,
}

/// An answer to a request of ours.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl Peer {
    pub(crate) fn new(tube: Tube) -> Self {
        Self {
            tube,
            served: None,
            lane: None,
            serves_lane: true,
            signallers: Vec::new(),
            companion: None,
            value: VALUE,
            odd: None,
        }
    }

    /// Serves for good, and does `meanwhile` as often as it comes to it.
    pub(crate) fn serve(mut self, mut meanwhile: impl FnMut(&mut Self)) -> ! {
        loop {
            meanwhile(&mut self);
            self.serve_lane();
            let short = Deadline::after(Duration::from_micros(200));
            match self.tube.receive::<Request>(short) {
                Ok(received) => {
                    let (id, message, handles) = (received.id, received.message, received.handles);
                    match (&message, self.odd) {
                        (Request::ReadConfig(_) | Request::GetStatistics(_), Some(odd)) => {
                            odd(&mut self, id, &message);
                        }
                        _ => self.answer(id, &message, handles),
                    }
                }
                Err(ipc::TubeError::TimedOut) => {}
                Err(_) => leave(),
            }
        }
    }

    fn serve_lane(&mut self) {
        let Some(server) = &mut self.served else { return };
        while let Some(taken) = server.take() {
            server.answer(&taken, &Ok(self.value));
        }
    }

    pub(crate) fn answer(&mut self, id: u32, request: &Request, handles: Handles) {
        let done = Outcome::Ok(());
        let tube = &mut self.tube;
        let sent = match request {
            Request::Access(_) => tube.send(id, &Outcome::Ok(self.value), &[], soon()),
            Request::ReadConfig(call) => {
                let length = usize::try_from(call.length).unwrap();
                tube.send(id, &Outcome::Ok(vec![0xa5u8; length]), &[], soon())
            }
            Request::Doorbell(_) => tube.send(id, &Outcome::Ok(0u32), &[], soon()),
            Request::TakeOver(_) => tube.send(id, &Outcome::Ok(8u16), &[], soon()),
            Request::GetStatistics(_) => {
                tube.send(id, &Outcome::Ok(Statistics::default()), &[], soon())
            }
            Request::Interrupts(_) => {
                self.signallers.extend(handles.map(Signaller::from_trusted));
                tube.send(id, &done, &[], soon())
            }
            Request::Companion(_) => {
                self.companion = handles.one().ok().map(Tube::from_fd);
                tube.send(id, &done, &[], soon())
            }
            Request::UseLane(_) => {
                if self.serves_lane {
                    let server = Server::join(handles, false).unwrap();
                    server.woke(false).unwrap();
                    self.served = Some(server);
                } else {
                    self.lane = Some(mapped(handles));
                }
                tube.send(id, &done, &[], soon())
            }
            Request::Shutdown(_) => {
                let _ = tube.send(id, &done, &[], soon());
                std::process::exit(0)
            }
            _ => tube.send(id, &done, &[], soon()),
        };
        if sent.is_err() {
            leave();
        }
    }
}

/// The memory of a lane and what wakes its callers, in the order of [`Server::join`].
fn mapped(mut handles: Handles) -> (Window, Vec<Signaller>) {
    let memory: OwnedFd = handles.next().unwrap();
    let memory = SharedMemory::from_peer(memory, lane::BYTES).unwrap();
    let window = memory.map_all(Access::ReadWrite).unwrap();
    // What the process waits on, which it does not.
    std::mem::forget(handles.next());
    (window, handles.map(Signaller::from_trusted).collect())
}
