//! Clients that are kept, in the thread of their server: one that comes, and one that another server had.

use std::io;
use std::os::unix::net::UnixStream;

use cordon_vmm::kept::KeptClient;
use ipc::Deadline;
use ipc::poll::{self, Source};

use super::{Adopted, Baseline, Kept, KeptError, Record};
use crate::entrance::Entrance;
use crate::handover::Handover;
use crate::server::Event;
use crate::service::{End, Service, Token};
use crate::session::{NotAdopted, Session};
use crate::socket::TIMEOUT;

impl<L: Fn(Event)> Service<L> {
    /// What keeps a client that has just come, where its function is kept.
    pub(crate) fn keep(&self, stream: &UnixStream, handover: &Handover) -> Option<Kept> {
        let address = self.device.info().identity.address;
        let client = self.store.as_ref()?.client(address)?;
        let record = Record { handover: handover.record(), ..Record::default() };
        let kept = Kept::new(client, stream, &record);
        kept.map_err(|error| {
            let why = ipc::chain(&error);
            tracing::warn!(
                "{address}: its client is not kept, and a kill of this server ends it: {why}"
            );
        })
        .ok()
    }

    /// Serves a client on that another server had.
    pub(crate) fn go_on(
        &self,
        mut adopted: Adopted,
        entrance: &mut Entrance,
        handover: &mut Handover,
    ) -> io::Result<(End, Option<KeptClient>)> {
        let _taken = self.seat.take();
        let (device, container) = (&*self.device, self.guest.container());
        let settled = adopted.settle(|stream| self.wait_for_room(stream));
        let lost = |adopted: Adopted, why| {
            self.quiesce();
            let Baseline { client, .. } = adopted.abandon(container);
            self.leaves();
            Ok((End::Lost(why), Some(client)))
        };
        if let Err(error) = settled {
            return lost(adopted, ipc::chain(&error));
        }
        let session =
            Session::adopt(adopted, &self.stopped, device, container, handover, self.options);
        match session {
            Ok(session) => {
                (self.log)(Event::TakenOver);
                self.serve_session(session, entrance)
            }
            Err(not) => {
                let NotAdopted { adopted, why } = *not;
                lost(adopted, why)
            }
        }
    }

    /// Waits for a client to take what it was answered before.
    fn wait_for_room(&self, stream: &UnixStream) -> Result<(), KeptError> {
        let sources =
            [Source::readable(&self.stopped, Token::Stop), Source::writable(stream, Token::Client)];
        let deadline = Deadline::after(TIMEOUT);
        let tokens = poll::wait(&sources, Some(deadline)).map_err(KeptError::Socket)?;
        match tokens.contains(&Token::Client) {
            true => Ok(()),
            false => Err(KeptError::Socket(io::ErrorKind::TimedOut.into())),
        }
    }
}
