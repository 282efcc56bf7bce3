//! Keeps a child: one thread that starts it, looks after it, and starts another when it dies.
//!
//! It is the same thing for function and connection processes; what is done about a death is its
//! owner's ([`crate::function`], [`crate::connection`]). The thread waits in one place
//! ([`Keeper::wait`]) for: its stop, news of its owner's, the end and the standard error of the child,
//! faults that are due, a second, warm child that stands by, and a candidate: a child of another program
//! that may come in the place of the one there is. It is on the way of no request. It
//! asks a silent child for a sign of life ([`Channel::check_life`](crate::child::Channel)).
//!
//! The thread itself is `thread`, the children beside the one that serves are `spare`.
//!
//! Children die with the thread that spawned them, so that thread is the keeper's and outlives them.

mod spare;
mod thread;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ipc::poll::{self, Source};
use ipc::{Deadline, Event};

use self::spare::{Candidate, Standby};
use self::thread::InHand;
pub(crate) use self::thread::{KeeperParts, KeeperThread};
use crate::child::start::{ChildToken, Kept, Progress, Starting};
use crate::child::{Cause, Child, Death, Protocol, Spec};

/// Something that its owner must know.
#[derive(Debug)]
pub(crate) enum KeeperEvent {
    /// It is to stop.
    Stop,
    /// The child died.
    Died(Arc<Death>),
    /// The candidate became ready, or did not.
    Candidate(Result<(), Arc<Death>>),
    /// The owner's own news.
    News,
}

/// A child that is ready, and what it said.
pub(crate) type ReadyChild<P> = (Kept<P>, <P as Protocol>::Ready);

/// Why no child was started.
#[derive(Debug)]
pub(crate) enum StartError {
    /// The keeper is to stop.
    Stopped,
    /// The child did not become ready.
    Died(Arc<Death>),
}

/// What the thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Stop,
    News,
    Wake,
    Child(ChildToken),
    Standby(ChildToken),
    Candidate(ChildToken),
}

/// The thread's own side: see the module.
pub(crate) struct Keeper<P: Protocol> {
    spec: Spec,
    /// How a standby is started.
    standby_spec: Option<Spec>,
    current: Option<Kept<P>>,
    standby: Standby<P>,
    candidate: Candidate<P>,
    stopped: Event,
    news: Event,
    wake: Event,
    in_hand: Arc<InHand>,
    /// When the children are to be asked for a sign of life.
    life: Deadline,
    /// Whether a standby is ready, for whoever asks.
    standby_ready: Arc<AtomicBool>,
}

impl<P: Protocol> Keeper<P> {
    /// A keeper without a child; `news` is its owner's own event.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub(crate) fn new(spec: Spec, news: Event, parts: KeeperParts) -> std::io::Result<Self> {
        let KeeperParts { stopped, in_hand } = parts;
        let life = Deadline::after(spec.deadlines.silence);
        Ok(Self {
            spec,
            standby_spec: None,
            current: None,
            standby: Standby::Off,
            candidate: Candidate::None,
            stopped,
            news,
            wake: Event::new()?,
            in_hand,
            life,
            standby_ready: Arc::default(),
        })
    }

    /// Waits until the owner has something to do, and looks after the children meanwhile.
    pub(crate) fn wait(&mut self) -> KeeperEvent {
        loop {
            if self.current.as_ref().is_some_and(|kept| kept.child.fate.is_condemned())
                && let Some(kept) = self.current.take()
            {
                return KeeperEvent::Died(kept.end(Cause::Ended));
            }
            let next = self.look_after();
            if let Some(news) = self.advance_candidate() {
                return KeeperEvent::Candidate(news);
            }
            let tokens = match self.poll(next) {
                Ok(tokens) => tokens,
                Err(error) => {
                    tracing::error!("{}: cannot wait: {error}", self.spec.subject);
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            let mut event = None;
            for token in tokens {
                match token {
                    Token::Stop => return KeeperEvent::Stop,
                    Token::News => {
                        let _ = self.news.clear();
                        event = Some(KeeperEvent::News);
                    }
                    Token::Wake => drop(self.wake.clear()),
                    Token::Child(token) => self.child(token),
                    Token::Standby(token) => self.standby(token),
                    Token::Candidate(ChildToken::Stderr) => self.candidate.forward_stderr(),
                    // `advance_candidate` sees to the rest.
                    Token::Candidate(_) => {}
                }
            }
            // A death that is known already is told before any other news.
            let dead = self.current.as_ref().is_some_and(|kept| kept.child.fate.is_condemned());
            match event {
                Some(event) if !dead => return event,
                Some(_) => self.again(),
                None => {}
            }
        }
    }

    /// News that were taken are told the next time.
    fn again(&self) {
        if let Ok(signaller) = self.news.signaller() {
            signaller.signal();
        }
    }

    /// What is due by time; when the next is.
    fn look_after(&mut self) -> Option<Deadline> {
        let mut next = Vec::new();
        let due = self.life.passed();
        let mut pause = self.spec.deadlines.silence;
        let standby = match &self.standby {
            Standby::Ready(kept, _) => Some(kept),
            _ => None,
        };
        for kept in self.current.iter().chain(standby) {
            next.extend(kept.strike_later());
            if due {
                pause = pause.min(kept.child.channel.check_life());
            }
        }
        if due {
            self.life = Deadline::after(pause.max(Duration::from_millis(1)));
        }
        if self.current.is_some() || standby.is_some() {
            next.push(self.life);
        }
        self.advance_standby();
        next.extend(match &self.standby {
            Standby::Wanted(when, _) => Some(*when),
            Standby::Starting(starting, _) => Some(starting.deadline),
            Standby::Off | Standby::Ready(..) => None,
        });
        if let Candidate::Starting(starting) = &self.candidate {
            next.extend(
                [Some(starting.deadline), starting.kept.strike_later()].into_iter().flatten(),
            );
        }
        next.into_iter().min()
    }

    fn poll(&self, deadline: Option<Deadline>) -> std::io::Result<poll::Tokens<Token>> {
        // Tubes are locked for as long as they are waited for: nobody else uses them yet.
        let (standby_tube, candidate_tube);
        let mut sources = vec![
            Source::readable(&self.stopped, Token::Stop),
            Source::readable(&self.wake, Token::Wake),
            Source::readable(&self.news, Token::News),
        ];
        if let Some(kept) = &self.current {
            sources.extend(kept.sources(Token::Child));
        }
        match &self.standby {
            Standby::Starting(starting, _) => {
                standby_tube = starting.tube();
                sources.extend(starting.sources(&*standby_tube, Token::Standby));
            }
            Standby::Ready(kept, _) => sources.extend(kept.sources(Token::Standby)),
            Standby::Off | Standby::Wanted(..) => {}
        }
        match &self.candidate {
            Candidate::Starting(starting) => {
                candidate_tube = starting.tube();
                sources.extend(starting.sources(&*candidate_tube, Token::Candidate));
            }
            // Its end is found when it is to take over.
            Candidate::Ready(..) | Candidate::None => {}
        }
        poll::wait(&sources, deadline)
    }

    fn child(&mut self, token: ChildToken) {
        let Some(kept) = &mut self.current else { return };
        match token {
            ChildToken::Stderr => kept.forward_stderr(),
            ChildToken::Exit => kept.child.fate.condemn(Cause::Ended),
            ChildToken::Tube => {}
        }
    }

    fn spawn(&self, spec: &Spec) -> Result<Starting<P>, Arc<Death>> {
        let wake = self.wake.signaller().map_err(|error| {
            let name = crate::child::process_name::<P>(&spec.subject);
            Arc::new(Death::new(name, Cause::no_room(error)))
        })?;
        Starting::spawn(spec, wake)
    }

    /// Starts a child and waits until it is ready.
    ///
    /// # Errors
    /// [`StartError`].
    pub(crate) fn start(&self) -> Result<ReadyChild<P>, StartError> {
        self.start_as(&self.spec)
    }

    /// [`Keeper::start`] as another spec says.
    ///
    /// # Errors
    /// [`StartError`].
    pub(crate) fn start_as(&self, spec: &Spec) -> Result<ReadyChild<P>, StartError> {
        let starting = self.spawn(spec).map_err(StartError::Died)?;
        self.finish(starting)
    }

    /// Waits until a child that starts is ready.
    fn finish(&self, mut starting: Starting<P>) -> Result<ReadyChild<P>, StartError> {
        let (cause, stopped) = loop {
            match starting.advance() {
                Progress::Ready(ready) => return Ok((starting.kept, ready)),
                Progress::Failed(cause) => break (cause, false),
                Progress::NotYet => {}
            }
            let next = [starting.kept.strike_later(), Some(starting.deadline)];
            let tokens = {
                let tube = starting.tube();
                let mut sources = vec![
                    Source::readable(&self.stopped, Token::Stop),
                    Source::readable(&self.wake, Token::Wake),
                ];
                sources.extend(starting.sources(&*tube, Token::Child));
                poll::wait(&sources, next.into_iter().flatten().min())
            };
            let mut stop = false;
            for token in tokens.unwrap_or_default() {
                match token {
                    Token::Stop => stop = true,
                    Token::Wake => drop(self.wake.clear()),
                    Token::Child(ChildToken::Stderr) => starting.kept.forward_stderr(),
                    _ => {}
                }
            }
            if stop {
                break (Cause::Stopped, true);
            }
        };
        if stopped {
            // It has nothing yet that it could give back in order.
            starting.kept.child.fate.kill();
        }
        let death = starting.kept.end(cause);
        Err(if stopped { StartError::Stopped } else { StartError::Died(death) })
    }

    /// Talks to a child that may be ended meanwhile by whoever stops the keeper.
    pub(crate) fn with_in_hand<T>(&self, child: &Child<P>, talk: impl FnOnce() -> T) -> T {
        *self.in_hand.0.lock() = Some(Arc::clone(&child.fate));
        let done = talk();
        *self.in_hand.0.lock() = None;
        done
    }

    /// Keeps this child from here on.
    pub(crate) fn keep(&mut self, kept: Kept<P>) {
        self.life = Deadline::after(self.spec.deadlines.silence);
        self.current = Some(kept);
    }

    /// Waits a little; `false` when there is no point in going on: it is to stop, or there is news.
    pub(crate) fn pause(&self, pause: Duration) -> bool {
        let sources = [Source::readable(&self.stopped, ()), Source::readable(&self.news, ())];
        poll::wait(&sources, Some(Deadline::after(pause))).is_ok_and(|tokens| tokens.is_empty())
    }

    /// Whether it is to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        poll::wait_readable(&self.stopped, Deadline::now()).unwrap_or(true)
    }

    /// Asks the child to stop, or kills it when it does not stop in time; how it ended.
    pub(crate) fn end(&mut self) -> Option<Arc<Death>> {
        let kept = self.current.take()?;
        Some(self.end_in_order(kept))
    }

    /// [`Keeper::end`] for one that was not kept.
    pub(crate) fn end_in_order(&self, kept: Kept<P>) -> Arc<Death> {
        let deadline = Deadline::after(self.spec.deadlines.stop);
        let fate = &kept.child.fate;
        // One that is stopped would not read it.
        let answers = !fate.is_condemned() && !fate.is_suspended();
        let ended = answers && kept.child.channel.shut_down(deadline) && fate.ends_by(deadline);
        kept.end(if ended { Cause::Stopped } else { Cause::Overdue("stop") })
    }
}
