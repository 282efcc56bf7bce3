//! A child that is looked after and not replaced: the lister, and whoever tries things out.

use std::os::fd::BorrowedFd;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};

use ipc::wire::call::Call;
use ipc::{Deadline, Event, Handles};

use crate::child::{CallError, Cause, Child, Death, Protocol, Spec, process_name};
use crate::keeper::{Keeper, KeeperEvent, KeeperThread, StartError};

/// A child process. Dropping it stops the child in order, or kills it.
pub struct Supervisor<P: Protocol> {
    child: Arc<Child<P>>,
    thread: KeeperThread,
    last: Arc<OnceLock<Arc<Death>>>,
    call: std::time::Duration,
}

impl<P: Protocol> Supervisor<P> {
    /// Starts the child and waits until it is ready.
    ///
    /// # Errors
    /// The [`Death`] of a child that did not become ready: the program is missing, the dext said
    /// no, a layer of the sandbox is missing, or it took too long.
    pub fn start(spec: &Spec) -> Result<(Self, P::Ready), Arc<Death>> {
        let failed = |why: String| {
            let cause = Cause::StartFailed(why);
            Arc::new(Death::new(process_name::<P>(&spec.subject), cause))
        };
        let subject = spec.subject.clone();
        let (sender, started) = sync_channel(1);
        let name = format!("{} {}", P::COMMAND, spec.subject);
        let news = Event::new().map_err(|error| no_room::<P>(&subject, error))?;
        let (own, last) = (spec.clone(), Arc::new(OnceLock::new()));
        let told = Arc::clone(&last);
        let launch = Arc::clone(&spec.launch);
        let thread = KeeperThread::spawn(name, launch, move |parts| {
            let mut keeper = match Keeper::<P>::new(own, news, parts) {
                Ok(keeper) => keeper,
                Err(error) => return drop(sender.send(Err(no_room::<P>(&subject, error)))),
            };
            let (kept, ready) = match keeper.start() {
                Ok(started) => started,
                Err(StartError::Died(death)) => return drop(sender.send(Err(death))),
                Err(StartError::Stopped) => return,
            };
            let child = Arc::clone(&kept.child);
            keeper.keep(kept);
            if sender.send(Ok((child, ready))).is_err() {
                keeper.end();
                return;
            }
            let death = loop {
                match keeper.wait() {
                    KeeperEvent::Stop => break keeper.end(),
                    KeeperEvent::Died(death) => break Some(death),
                    KeeperEvent::News | KeeperEvent::Candidate(_) => {}
                }
            };
            if let Some(death) = death {
                let _ = told.set(death);
            }
        })
        .map_err(|error| no_room::<P>(&spec.subject, error))?;
        match started.recv() {
            Ok(Ok((child, ready))) => {
                Ok((Self { child, thread, last, call: spec.deadlines.call }, ready))
            }
            Ok(Err(death)) => Err(death),
            Err(_) => Err(failed("its keeper ended".to_owned())),
        }
    }

    /// Asks the child and waits for its answer, or for its death.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call<C: Call<P::Request>>(
        &self,
        call: &C,
        handles: &[BorrowedFd<'_>],
    ) -> Result<(C::Reply, Handles), CallError> {
        self.child.call(call, handles, Deadline::after(self.call * 2))
    }

    /// [`Supervisor::call`] for a request that nothing comes beside, in either direction: what did
    /// come is closed.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn ask<C: Call<P::Request>>(&self, call: &C) -> Result<C::Reply, CallError> {
        Ok(self.call(call, &[])?.0)
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// The child's death, once it is dead.
    #[must_use]
    pub fn death(&self) -> Option<Arc<Death>> {
        self.child.death()
    }

    /// Readable once the child is dead.
    #[must_use]
    pub fn died(&self) -> &Event {
        self.child.died()
    }

    /// Stops the child in order, or kills it when it does not stop in time; how it ended.
    pub fn stop(&self) -> Arc<Death> {
        self.thread.stop();
        let told = self.child.death().or_else(|| self.last.get().cloned());
        told.unwrap_or_else(|| self.child.fate.wait_for_death())
    }
}

fn no_room<P: Protocol>(subject: &str, error: std::io::Error) -> Arc<Death> {
    Arc::new(Death::new(process_name::<P>(subject), Cause::no_room(error)))
}
