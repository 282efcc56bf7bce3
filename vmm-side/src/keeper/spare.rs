//! Children beside the one that serves: a standby, which takes its place when it dies, and a candidate of
//! another program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ipc::Deadline;

use super::{Keeper, ReadyChild, StartError};
use crate::child::start::{ChildToken, Kept, Progress, Starting};
use crate::child::{Cause, Death, Protocol, Spec};
use crate::observer::Happening;
use crate::recovery::Backoff;

/// Pauses between attempts to start a standby: nobody is in a hurry.
const STANDBY_PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));

pub(super) enum Standby<P: Protocol> {
    /// None is wanted.
    Off,
    /// One is to be started at this time.
    Wanted(Deadline, Backoff),
    Starting(Starting<P>, Backoff),
    Ready(Kept<P>, P::Ready),
}

/// A child that may come in the place of the one there is.
pub(super) enum Candidate<P: Protocol> {
    None,
    Starting(Starting<P>),
    Ready(Kept<P>, P::Ready),
}

impl<P: Protocol> Candidate<P> {
    pub(super) fn forward_stderr(&mut self) {
        if let Self::Starting(starting) = self {
            starting.kept.forward_stderr();
        }
    }
}

impl<P: Protocol> Keeper<P> {
    /// Keeps a second, warm child from here on, started as `spec` says.
    pub(crate) fn stand_by(&mut self, spec: Spec) {
        self.standby_spec = Some(spec);
        self.warm(Duration::ZERO);
    }

    /// Set while a standby is ready.
    pub(crate) fn standby_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.standby_ready)
    }

    /// Puts another standby, or none, in the place of the one there is.
    fn set_standby(&mut self, standby: Standby<P>) -> Standby<P> {
        self.standby_ready.store(matches!(standby, Standby::Ready(..)), Ordering::Release);
        std::mem::replace(&mut self.standby, standby)
    }

    /// Starts a standby in a while, if one is wanted and none is there.
    pub(crate) fn warm(&mut self, pause: Duration) {
        if self.standby_spec.is_some() && matches!(self.standby, Standby::Off) {
            let backoff = Backoff::new(STANDBY_PAUSES.0, STANDBY_PAUSES.1);
            self.set_standby(Standby::Wanted(Deadline::after(pause), backoff));
        }
    }

    pub(super) fn standby(&mut self, token: ChildToken) {
        match (&mut self.standby, token) {
            (Standby::Ready(kept, _), ChildToken::Stderr) => kept.forward_stderr(),
            (Standby::Ready(kept, _), ChildToken::Exit) => kept.child.fate.condemn(Cause::Ended),
            (Standby::Starting(starting, _), ChildToken::Stderr) => starting.kept.forward_stderr(),
            // `advance_standby` sees to the rest.
            _ => {}
        }
    }

    /// Brings the standby as far as it comes without waiting.
    pub(super) fn advance_standby(&mut self) {
        let standby = match std::mem::replace(&mut self.standby, Standby::Off) {
            Standby::Wanted(when, backoff) if when.passed() => self.start_standby(backoff),
            Standby::Starting(mut starting, backoff) => match starting.advance() {
                Progress::Ready(ready) => Standby::Ready(starting.kept, ready),
                Progress::Failed(cause) => Self::no_standby(&starting.kept.end(cause), backoff),
                Progress::NotYet => Standby::Starting(starting, backoff),
            },
            Standby::Ready(kept, ready) if kept.child.fate.is_condemned() => {
                drop(ready);
                let death = kept.end(Cause::Ended);
                self.spec.tell(|address| Happening::StandbyLost { address, death });
                let backoff = Backoff::new(STANDBY_PAUSES.0, STANDBY_PAUSES.1);
                Standby::Wanted(Deadline::after(Duration::from_millis(100)), backoff)
            }
            other => other,
        };
        self.set_standby(standby);
    }

    /// Starts a candidate as `spec` says, in the place of one there may be; what becomes of it is told by
    /// [`Keeper::wait`].
    ///
    /// # Errors
    /// The [`Death`] of one that could not even be spawned.
    pub(crate) fn try_candidate(&mut self, spec: &Spec) -> Result<(), Arc<Death>> {
        self.drop_candidate();
        self.candidate = Candidate::Starting(self.spawn(spec)?);
        Ok(())
    }

    /// Brings the candidate as far as it comes without waiting; what is to be told of it.
    pub(super) fn advance_candidate(&mut self) -> Option<Result<(), Arc<Death>>> {
        let (candidate, news) = match self.take_candidate_as_is() {
            Candidate::Starting(mut starting) => match starting.advance() {
                Progress::Ready(ready) => (Candidate::Ready(starting.kept, ready), Some(Ok(()))),
                Progress::Failed(cause) => (Candidate::None, Some(Err(starting.kept.end(cause)))),
                Progress::NotYet => (Candidate::Starting(starting), None),
            },
            other => (other, None),
        };
        self.candidate = candidate;
        news
    }

    /// What the candidate said when it became ready.
    pub(crate) fn candidate(&self) -> Option<&P::Ready> {
        match &self.candidate {
            Candidate::Ready(_, ready) => Some(ready),
            Candidate::Starting(_) | Candidate::None => None,
        }
    }

    fn take_candidate_as_is(&mut self) -> Candidate<P> {
        std::mem::replace(&mut self.candidate, Candidate::None)
    }

    /// Takes the candidate, if one is ready and lives; the death of one that has died since.
    pub(crate) fn take_candidate(&mut self) -> Option<Result<ReadyChild<P>, Arc<Death>>> {
        match self.take_candidate_as_is() {
            Candidate::Ready(mut kept, ready) => {
                kept.forward_stderr();
                Some(if kept.child.fate.is_condemned() || kept.has_ended() {
                    Err(kept.end(Cause::Ended))
                } else {
                    Ok((kept, ready))
                })
            }
            Candidate::Starting(starting) => {
                starting.kept.end(Cause::Stopped);
                None
            }
            Candidate::None => None,
        }
    }

    /// Ends the candidate, if there is one.
    pub(crate) fn drop_candidate(&mut self) {
        match self.take_candidate_as_is() {
            Candidate::Ready(kept, _) => drop(self.end_in_order(kept)),
            Candidate::Starting(starting) => drop(starting.kept.end(Cause::Stopped)),
            Candidate::None => {}
        }
    }

    fn start_standby(&self, backoff: Backoff) -> Standby<P> {
        let Some(spec) = &self.standby_spec else { return Standby::Off };
        match self.spawn(spec) {
            Ok(starting) => Standby::Starting(starting, backoff),
            Err(death) => Self::no_standby(&death, backoff),
        }
    }

    fn no_standby(death: &Death, mut backoff: Backoff) -> Standby<P> {
        tracing::debug!("no standby yet: {death}");
        let pause = backoff.pause();
        Standby::Wanted(Deadline::after(pause), backoff)
    }

    /// Takes the standby, if there is one, or waits for one that is being started.
    ///
    /// # Errors
    /// [`StartError::Stopped`].
    pub(crate) fn take_standby(&mut self) -> Result<Option<ReadyChild<P>>, StartError> {
        match self.set_standby(Standby::Off) {
            Standby::Ready(kept, ready) if !kept.child.fate.is_condemned() => {
                Ok(Some((kept, ready)))
            }
            Standby::Ready(kept, _) => {
                let death = kept.end(Cause::Ended);
                self.spec.tell(|address| Happening::StandbyLost { address, death });
                Ok(None)
            }
            Standby::Starting(starting, _) => match self.finish(starting) {
                Ok(standby) => Ok(Some(standby)),
                Err(StartError::Died(_)) => Ok(None),
                Err(StartError::Stopped) => Err(StartError::Stopped),
            },
            Standby::Off | Standby::Wanted(..) => Ok(None),
        }
    }

    /// Ends the standby, if there is one; none is started until it is asked for again.
    pub(crate) fn drop_standby(&mut self) {
        match self.set_standby(Standby::Off) {
            Standby::Ready(kept, _) => drop(self.end_in_order(kept)),
            Standby::Starting(starting, _) => drop(starting.kept.end(Cause::Stopped)),
            Standby::Off | Standby::Wanted(..) => {}
        }
    }
}
