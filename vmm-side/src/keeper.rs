//! Keeps a child: one thread that starts it, looks after it, and starts another when it dies.
//!
//! It is the same thing for function and connection processes; what is done about a death is its
//! owner's ([`crate::function`], [`crate::connection`]). The thread waits in one place
//! ([`Keeper::wait`]) for: its stop, news of its owner's, the end and the standard error of the child,
//! faults that are due, and a second, warm child that stands by. It is on the way of no request. It
//! asks a silent child for a sign of life ([`Channel::check_life`](crate::child::Channel)).
//!
//! Children die with the thread that spawned them, so that thread is the keeper's and outlives them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use ipc::event::Signaller;
use ipc::poll::{self, Source};
use ipc::{Deadline, Event};
use parking_lot::Mutex;

use crate::child::start::{ChildToken, Kept, Progress, Starting};
use crate::child::{Cause, Child, Death, Fate, Protocol, Spec};
use crate::recovery::Backoff;

/// Pauses between attempts to start a standby: nobody is in a hurry.
const STANDBY_PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));
/// How long the thread may go on with what it has in hand after it was told to stop.
const STOP_GRACE: Duration = Duration::from_millis(300);

/// Something that its owner must know.
#[derive(Debug)]
pub(crate) enum KeeperEvent {
    /// It is to stop.
    Stop,
    /// The child died.
    Died(Arc<Death>),
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

enum Standby<P: Protocol> {
    /// None is wanted.
    Off,
    /// One is to be started at this time.
    Wanted(Deadline, Backoff),
    Starting(Starting<P>, Backoff),
    Ready(Kept<P>, P::Ready),
}

/// What the thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Stop,
    News,
    Wake,
    Child(ChildToken),
    Standby(ChildToken),
}

/// The thread's own side: see the module.
pub(crate) struct Keeper<P: Protocol> {
    spec: Spec,
    /// How a standby is started.
    standby_spec: Option<Spec>,
    current: Option<Kept<P>>,
    standby: Standby<P>,
    stopped: Event,
    news: Event,
    wake: Event,
    in_hand: Arc<InHand>,
    /// When the children are to be asked for a sign of life.
    life: Deadline,
    /// Whether a standby is ready, for whoever asks.
    standby_ready: Arc<AtomicBool>,
}

/// The child that the thread is talking to: whoever stops the thread ends it.
#[derive(Default)]
struct InHand(Mutex<Option<Arc<Fate>>>);

/// The owner's side: stops the thread.
pub(crate) struct KeeperThread {
    stop: Signaller,
    in_hand: Arc<InHand>,
    thread: Mutex<Option<JoinHandle<()>>>,
    finished: Mutex<Receiver<()>>,
    name: String,
}

/// What a keeper's thread is given to begin with.
pub(crate) struct KeeperParts {
    stopped: Event,
    in_hand: Arc<InHand>,
}

impl KeeperThread {
    /// Starts a thread that runs `run` until it is told to stop.
    ///
    /// # Errors
    /// When there are no threads or descriptors left.
    pub(crate) fn spawn(
        name: String,
        run: impl FnOnce(KeeperParts) + Send + 'static,
    ) -> std::io::Result<Self> {
        let stopped = Event::new()?;
        let stop = stopped.signaller()?;
        let in_hand = Arc::new(InHand::default());
        let parts = KeeperParts { stopped, in_hand: Arc::clone(&in_hand) };
        let (sender, finished) = channel();
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            run(parts);
            let _ = sender.send(());
        })?;
        let (thread, finished) = (Mutex::new(Some(thread)), Mutex::new(finished));
        Ok(Self { stop, in_hand, thread, finished, name })
    }

    /// Stops the thread, and with it the child. Returns within half a second or so, whatever state the
    /// child is in. Called from the thread itself it only says so.
    pub(crate) fn stop(&self) {
        self.stop.signal();
        let own = self.thread.lock().as_ref().map(|thread| thread.thread().id());
        if own == Some(std::thread::current().id()) {
            return;
        }
        let finished = self.finished.lock();
        let mut ended = finished.recv_timeout(STOP_GRACE);
        if ended == Err(RecvTimeoutError::Timeout) {
            self.in_hand.end();
            ended = finished.recv_timeout(Duration::from_secs(5));
        }
        match ended {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                let thread = self.thread.lock().take();
                if thread.is_some_and(|thread| thread.join().is_err()) {
                    tracing::error!("the thread '{}' panicked", self.name);
                }
            }
            Err(RecvTimeoutError::Timeout) => tracing::error!("the thread '{}' hangs", self.name),
        }
    }
}

impl Drop for KeeperThread {
    fn drop(&mut self) {
        self.stop();
    }
}

impl InHand {
    fn end(&self) {
        if let Some(fate) = &*self.0.lock() {
            fate.condemn(Cause::Overdue("stop"));
        }
    }
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
            stopped,
            news,
            wake: Event::new()?,
            in_hand,
            life,
            standby_ready: Arc::default(),
        })
    }

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

    /// Waits until the owner has something to do, and looks after the children meanwhile.
    pub(crate) fn wait(&mut self) -> KeeperEvent {
        loop {
            if self.current.as_ref().is_some_and(|kept| kept.child.fate.is_condemned())
                && let Some(kept) = self.current.take()
            {
                return KeeperEvent::Died(kept.end(Cause::Ended));
            }
            let next = self.look_after();
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
        next.into_iter().min()
    }

    fn poll(&self, deadline: Option<Deadline>) -> std::io::Result<poll::Tokens<Token>> {
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
                let tube = starting.tube();
                sources.extend(starting.sources(&*tube, Token::Standby));
                return poll::wait(&sources, deadline);
            }
            Standby::Ready(kept, _) => sources.extend(kept.sources(Token::Standby)),
            Standby::Off | Standby::Wanted(..) => {}
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

    fn standby(&mut self, token: ChildToken) {
        match (&mut self.standby, token) {
            (Standby::Ready(kept, _), ChildToken::Stderr) => kept.forward_stderr(),
            (Standby::Ready(kept, _), ChildToken::Exit) => kept.child.fate.condemn(Cause::Ended),
            (Standby::Starting(starting, _), ChildToken::Stderr) => starting.kept.forward_stderr(),
            // `advance_standby` sees to the rest.
            _ => {}
        }
    }

    /// Brings the standby as far as it comes without waiting.
    fn advance_standby(&mut self) {
        let standby = match std::mem::replace(&mut self.standby, Standby::Off) {
            Standby::Wanted(when, backoff) if when.passed() => self.start_standby(backoff),
            Standby::Starting(mut starting, backoff) => {
                let ended = starting.kept.has_ended();
                match starting.advance() {
                    Progress::Ready(ready) => Standby::Ready(starting.kept, ready),
                    Progress::Failed(cause) => self.standby_failed(starting.kept, cause, backoff),
                    Progress::NotYet if ended => {
                        self.standby_failed(starting.kept, Cause::Ended, backoff)
                    }
                    Progress::NotYet if starting.deadline.passed() => {
                        let overdue = Cause::Overdue("become ready");
                        self.standby_failed(starting.kept, overdue, backoff)
                    }
                    Progress::NotYet => Standby::Starting(starting, backoff),
                }
            }
            Standby::Ready(kept, ready) if kept.child.fate.is_condemned() => {
                drop(ready);
                kept.end(Cause::Ended);
                let backoff = Backoff::new(STANDBY_PAUSES.0, STANDBY_PAUSES.1);
                Standby::Wanted(Deadline::after(Duration::from_millis(100)), backoff)
            }
            other => other,
        };
        self.set_standby(standby);
    }

    fn start_standby(&self, backoff: Backoff) -> Standby<P> {
        let Some(spec) = &self.standby_spec else { return Standby::Off };
        match self.spawn(spec) {
            Ok(starting) => Standby::Starting(starting, backoff),
            Err(death) => Self::no_standby(&death, backoff),
        }
    }

    fn standby_failed(&self, kept: Kept<P>, cause: Cause, backoff: Backoff) -> Standby<P> {
        Self::no_standby(&kept.end(cause), backoff)
    }

    fn no_standby(death: &Death, mut backoff: Backoff) -> Standby<P> {
        tracing::debug!("no standby yet: {death}");
        let pause = backoff.pause();
        Standby::Wanted(Deadline::after(pause), backoff)
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
            // Looked at first: what it said last is still in its tube.
            let ended = starting.kept.has_ended();
            match starting.advance() {
                Progress::Ready(ready) => return Ok((starting.kept, ready)),
                Progress::Failed(cause) => break (cause, false),
                Progress::NotYet if ended => break (Cause::Ended, false),
                Progress::NotYet if starting.deadline.passed() => {
                    break (Cause::Overdue("become ready"), false);
                }
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
                kept.end(Cause::Ended);
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
