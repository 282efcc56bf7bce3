//! How a server begins: every function is attached, and what a server before it left that was killed goes on.
//!
//! With nothing left, one function that cannot be attached is the end of the start. Otherwise that function alone stays
//! detached, and is told as failed: what others have, and their clients, is too much to lose over it.

use std::mem::ManuallyDrop;

use cordon_cli::event::Event;
use cordon_vfio_user::Keeping;
use ipc::Deadline;

use super::fleet::{Fleet, FunctionAttached};
use super::left::Left;
use super::slot::Slot;
use super::stop;
use crate::Failure;
use crate::failure::ServeEnd;

/// Functions that are attached, with whoever they are for.
type Attached<'f> = Vec<(&'f Slot, FunctionAttached)>;

impl Fleet {
    /// Attaches everything and serves it.
    pub(super) fn start(&self) -> Result<(), Failure> {
        let tell = |event: &Event| self.sink.tell(event);
        let mut left = Left::of(self.store.as_ref(), self.slots(), self.how, &tell);
        let mut attached = Attached::new();
        let mut done = self.attach_all(&mut left, &mut attached);
        if left.is_any() {
            // One that is not served any more has come with its group, and would go on reaching memory.
            for address in self.host.discard_unattached() {
                tracing::warn!("{address} was left and is not served: it is given back");
            }
        }
        // Who had a client before has what that mapped; the rest is not reached any more.
        attached.iter().for_each(|(_, one)| left.quiet(&one.function));
        left.release();
        // All are let in before any is served, which may find that its client has left.
        let served: Vec<_> = attached
            .into_iter()
            .map(|(slot, one)| {
                let mut adopted = left.client(slot.address, &one.function);
                adopted.iter_mut().for_each(|client| client.admit(&one.guest));
                let baseline = left.baseline(&one.function);
                (slot, one, Keeping { store: self.store.clone(), adopted, baseline })
            })
            .collect();
        let (mut is_served, mut last) = (false, None);
        for (slot, one, clients) in served {
            if done.is_err() {
                self.host.detach(&one.function);
                continue;
            }
            let had_client = clients.adopted.is_some();
            match self.serve(slot, &mut slot.work.lock(), one, clients) {
                Ok(()) => is_served = true,
                Err(failure) if left.is_any() => {
                    if had_client {
                        left.lost(slot.address, &ipc::chain(&*failure));
                    }
                    left.stays_detached(slot, &failure);
                    last = Some(failure);
                }
                Err(failure) => done = Err(failure),
            }
        }
        match last {
            Some(failure) if done.is_ok() && !is_served => Err(failure),
            _ => done,
        }
    }

    /// Attaches what can be; an error when nothing is to be served.
    fn attach_all<'f>(
        &'f self,
        left: &mut Left<'_>,
        attached: &mut Attached<'f>,
    ) -> Result<(), Failure> {
        let (mut again, mut last) = (Vec::new(), None);
        for slot in self.slots() {
            match self.attach_one(slot, left, attached)? {
                None => {}
                // Once more when others of its group have been: nothing of theirs is given up for it then.
                Some(_) if left.has(slot.address) => again.push(slot),
                Some(failure) if left.is_any() => {
                    left.stays_detached(slot, &failure);
                    last = Some(failure);
                }
                Some(failure) => return Err(failure),
            }
        }
        for slot in again {
            let Some(mut failure) = self.attach_one(slot, left, attached)? else { continue };
            if left.give_up(slot, &failure) {
                match self.attach_one(slot, left, attached)? {
                    None => continue,
                    Some(once_more) => failure = once_more,
                }
            }
            left.stays_detached(slot, &failure);
            last = Some(failure);
        }
        match last {
            Some(failure) if attached.is_empty() => Err(failure),
            _ => Ok(()),
        }
    }

    /// Attaches a function, as it was left if it was. Why it is not, if it is the function's own; an error is the end.
    fn attach_one<'f>(
        &'f self,
        slot: &'f Slot,
        left: &mut Left<'_>,
        attached: &mut Attached<'f>,
    ) -> Result<Option<Failure>, Failure> {
        self.stop.interrupt().check()?;
        match self.attach_function(slot) {
            Ok(one) => {
                attached.push((slot, one));
                Ok(None)
            }
            Err(failure) => {
                if self.has_lost_spawner() {
                    if left.is_any() {
                        // Nothing of it is given back.
                        let _kept = ManuallyDrop::new(std::mem::take(attached));
                        self.end_as_if_killed();
                    }
                    return Err(ServeEnd::SpawnerLost.into());
                }
                self.stop.interrupt().check()?;
                Ok(Some(failure))
            }
        }
    }

    /// Whether no process can be started any more.
    fn has_lost_spawner(&self) -> bool {
        let lost = self.confined.lost();
        lost.is_some_and(|lost| {
            ipc::poll::wait_readable(&lost, Deadline::now()).unwrap_or_default()
        })
    }

    /// Whether a keeper has something of a function that is attached.
    pub(super) fn is_kept(&self) -> bool {
        let store = self.store.as_ref();
        store.is_some_and(|store| self.slots().iter().any(|one| store.keeps(one.address).is_ok()))
    }

    /// No process can be started any more: ends this one as a kill does, so that nothing is given back, and whoever
    /// keeps functions and clients has the next one go on with them.
    pub(super) fn end_as_if_killed(&self) -> ! {
        let process = self.confinement().spawner.unwrap_or_default();
        self.sink.tell(&Event::SpawnerLost { process });
        let _ = self.sink.flush(stop::WRITING);
        std::process::exit(console::exit::FAILED.into());
    }
}
