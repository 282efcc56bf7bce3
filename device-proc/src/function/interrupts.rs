//! Interrupt delivery (P4, P9): from the backend's pending bits to the VMM's signallers.
//!
//! A notification wakes the main loop, which drains what pends, signals every vector in use in
//! ascending order and arms again. The VMM side is not involved. Where the kernel delivers, it is
//! given the signallers, and nothing of this runs when the device fires.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use cordon_backend::{BackendError, Delivery, KernelInterrupts, ServedFunction, VectorSet};
use ipc::event::{self, Signaller};
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::function::{InterruptAction, InterruptIndex, MAX_ASSIGN, Statistics};
use ipc::{Deadline, Handles};

use crate::{failure, start};

/// STATUS in config space, and Interrupt Status in it.
const STATUS: u32 = 0x06;
const INTERRUPT_STATUS: u32 = 1 << 3;

/// The interrupt setup of one function.
pub struct Interrupts {
    subject: String,
    /// Message vectors that the backend delivers.
    vectors: u16,
    /// Entries of the MSI-X table.
    entries: u16,
    mode: Mode,
    statistics: Statistics,
    /// No notification is armed, since that failed: when it is tried again.
    rearm: Option<Deadline>,
}

/// After this long a notification is armed again that could not be.
const REARM: Duration = Duration::from_millis(10);

/// Which index is in use; one at a time.
enum Mode {
    Off,
    Intx(Intx),
    /// MSI or MSI-X: a signaller for each vector in use.
    Messages(InterruptIndex, Vec<Option<Signaller>>),
}

/// How long after an unmask INTx is not signalled again. An unmask says that the guest has accessed the
/// device, not that its handler has run: with several processors it may be another one's access.
const HOLD_OFF: Duration = Duration::from_micros(500);

/// INTx is level-triggered for the guest, and the dext tells of edges: it is held back after each
/// signal until unmasked, and a little longer ([`HOLD_OFF`]).
///
/// An edge whose cause is gone must not be signalled. There is nothing left for its driver to do, and one
/// that finds nothing in memory touches no register: a VMM that takes the line down at the next access
/// leaves it up, and its guest is interrupted over and over until it gives up on the line ("nobody
/// cared"). Whether the cause is still there is what Interrupt Status in STATUS says, so the device is
/// asked. Not every device shows it while the host takes messages, so it is believed from the first
/// time on that it was set. Of one that never showed it edges are all that is known: one that comes
/// before anybody has taken the signal is no other interrupt, for whoever takes it looks later than
/// that; one that comes later may have been seen or not, and is signalled after the unmask. A spurious
/// interrupt, whatever a VMM makes of it, is better than one that is lost.
struct Intx {
    signaller: Signaller,
    masked: bool,
    /// There may be something to signal when it is unmasked and not held off any more.
    held_back: bool,
    /// Until when it is held off.
    quiet: Option<Deadline>,
    /// The device has shown that it asserts its pin.
    shows: bool,
}

impl Intx {
    fn new(signaller: Signaller) -> Self {
        Self { signaller, masked: false, held_back: false, quiet: None, shows: false }
    }

    /// Whether there may be something to do for the guest: not when the device says that there is not.
    fn may_assert(&mut self, function: &mut dyn ServedFunction) -> bool {
        match function.config_read(STATUS, 2) {
            Ok(status) if status == u32::from(u16::MAX) => true,
            Ok(status) => {
                let asserts = status & INTERRUPT_STATUS != 0;
                self.shows |= asserts;
                asserts || !self.shows
            }
            Err(error) => {
                tracing::debug!("STATUS cannot be read: {error}");
                true
            }
        }
    }

    /// The device fired; whether that was signalled.
    fn edge(&mut self, function: &mut dyn ServedFunction) -> bool {
        if self.masked {
            self.held_back |= !self.signaller.is_pending();
            return false;
        }
        self.held_back = true;
        self.settle(function)
    }

    /// Signals what was held back, if it is time and there is still something to do; whether it was.
    fn settle(&mut self, function: &mut dyn ServedFunction) -> bool {
        if self.masked || !self.held_back || self.quiet.is_some_and(|until| !until.passed()) {
            return false;
        }
        (self.held_back, self.quiet) = (false, None);
        self.may_assert(function) && self.fire()
    }

    /// Signals, or holds back; whether it was signalled.
    fn fire(&mut self) -> bool {
        if self.masked {
            self.held_back |= !self.signaller.is_pending();
            return false;
        }
        self.masked = true;
        self.signaller.signal();
        true
    }

    /// The guest has accessed the device.
    fn unmask(&mut self) {
        if std::mem::take(&mut self.masked) {
            self.quiet = Some(Deadline::after(HOLD_OFF));
            // It may have been for one cause of several.
            self.held_back |= self.shows;
        }
    }

    /// When there is something to settle.
    fn due(&self) -> Option<Deadline> {
        let waits = self.held_back && !self.masked;
        waits.then(|| self.quiet.unwrap_or_else(Deadline::now))
    }
}

impl Interrupts {
    /// Takes the function's interrupts; none is in use yet. `entries` are those of the MSI-X table.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn new(function: &mut dyn ServedFunction, entries: u16) -> Result<Self, BackendError> {
        let vectors = function.set_up_interrupts()?;
        let subject = format!("Function {}", function.address());
        let (mode, statistics) = (Mode::Off, Statistics::default());
        Ok(Self { subject, vectors, entries, mode, statistics, rearm: None })
    }

    /// Message vectors that the backend delivers.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    /// Counters since the start.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics.clone()
    }

    /// A notification came (P9.1): drain, deliver in ascending order, arm again in any case.
    ///
    /// The notification is taken after the signals, which it would only hold up: none comes before the
    /// next is armed, and arming looks for what fired since the pending bits were drained. One that cannot be
    /// armed is armed later ([`Interrupts::settle`]), or the function would never be heard again.
    ///
    /// # Errors
    /// [`BackendError`] only when the backend is lost.
    pub fn deliver(&mut self, function: &mut dyn ServedFunction) -> Result<(), BackendError> {
        if let Delivery::Notified(notified) = function.delivery() {
            self.statistics.notifications += 1;
            match notified.drain() {
                Ok(pending) => self.dispatch(function, pending),
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => tracing::warn!("pending bits cannot be drained: {error}"),
            }
        }
        if let Some(Err(error)) = function.notification().map(ipc::Event::clear) {
            tracing::warn!("cannot take a notification: {error}");
        }
        let Delivery::Notified(notified) = function.delivery() else { return Ok(()) };
        match notified.arm() {
            Ok(()) => self.rearm = None,
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => {
                if self.rearm.is_none() {
                    tracing::warn!("the notification cannot be armed again yet: {error}");
                }
                self.rearm = Some(Deadline::after(REARM));
            }
        }
        Ok(())
    }

    fn dispatch(&mut self, function: &mut dyn ServedFunction, pending: VectorSet) {
        let fired = u64::from(pending.count());
        let delivered = match &mut self.mode {
            Mode::Off => 0,
            Mode::Intx(_) if fired == 0 => 0,
            Mode::Intx(intx) => {
                // P9.2: any bit is INTx; all of them together are one signal.
                self.statistics.delivered += u64::from(intx.edge(function));
                return;
            }
            Mode::Messages(_, signallers) => {
                let signaller = |vector| signallers.get(usize::from(vector))?.as_ref();
                let in_use = pending.iter().filter_map(signaller);
                event::signal_all(in_use)
            }
        };
        self.statistics.delivered += delivered;
        self.statistics.dropped += fired - delivered;
    }

    /// When [`Interrupts::settle`] is to be called next, if at all.
    #[must_use]
    pub fn due(&self) -> Option<Deadline> {
        let intx = if let Mode::Intx(intx) = &self.mode { intx.due() } else { None };
        intx.into_iter().chain(self.rearm).min()
    }

    /// Signals INTx that was held off, and arms a notification that could not be, if it is time.
    ///
    /// # Errors
    /// As [`Interrupts::deliver`].
    pub fn settle(&mut self, function: &mut dyn ServedFunction) -> Result<(), BackendError> {
        if self.rearm.is_some_and(|at| at.passed()) {
            self.deliver(function)?;
        }
        if let Mode::Intx(intx) = &mut self.mode {
            self.statistics.delivered += u64::from(intx.settle(function));
        }
        Ok(())
    }

    /// How many vectors an index has (P4).
    fn count(&self, index: InterruptIndex) -> u16 {
        match index {
            InterruptIndex::Intx => 1,
            InterruptIndex::Msi => self.vectors,
            InterruptIndex::Msix => self.entries,
            InterruptIndex::Err | InterruptIndex::Req => 0,
        }
    }

    /// Changes the setup, and then what the backend records (P9.4) or the kernel delivers.
    pub(super) fn change(
        &mut self,
        function: &mut dyn ServedFunction,
        index: InterruptIndex,
        action: &InterruptAction,
        handles: Handles,
    ) -> Result<(), Failure> {
        let was_in_use = is_mode(&self.mode, index);
        match action {
            InterruptAction::Assign { start, present, .. } => {
                self.assign(index, *start, present, handles)?;
            }
            other => {
                handles.expect(0).map_err(|error| start::invalid(error.to_string()))?;
                self.act(index, other)?;
            }
        }
        let done = match function.delivery() {
            Delivery::Notified(notified) => notified.set_mask(self.mask()),
            Delivery::Kernel(kernel) => self.tell(kernel, index, action, was_in_use),
        };
        done.map_err(|error| failure(&error))?;
        match action {
            // Last: what fires before it is recorded would be lost.
            InterruptAction::Assign { start, present, signal: true } => {
                self.trigger(index, *start, u16::try_from(present.len()).unwrap_or(u16::MAX))
            }
            _ => Ok(()),
        }
    }

    /// Tells the kernel of a change that was made here.
    fn tell(
        &self,
        kernel: &mut dyn KernelInterrupts,
        index: InterruptIndex,
        action: &InterruptAction,
        was_in_use: bool,
    ) -> Result<(), BackendError> {
        match action {
            InterruptAction::Assign { .. } | InterruptAction::Disable => {
                let is_in_use = is_mode(&self.mode, index);
                let signallers = if is_in_use { self.signallers() } else { Vec::new() };
                if is_in_use || was_in_use { kernel.connect(index, &signallers) } else { Ok(()) }
            }
            InterruptAction::Mask => kernel.mask_intx(true),
            InterruptAction::Unmask => kernel.mask_intx(false),
            // Signalled from here.
            InterruptAction::Trigger { .. } => Ok(()),
        }
    }

    /// Whom to signal for each vector of the index in use, up to the last one in use.
    fn signallers(&self) -> Vec<Option<BorrowedFd<'_>>> {
        match &self.mode {
            Mode::Off => Vec::new(),
            Mode::Intx(intx) => vec![Some(intx.signaller.as_fd())],
            Mode::Messages(_, signallers) => {
                let end = signallers.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
                signallers[..end].iter().map(|one| one.as_ref().map(Signaller::as_fd)).collect()
            }
        }
    }

    fn act(&mut self, index: InterruptIndex, action: &InterruptAction) -> Result<(), Failure> {
        match (action, &mut self.mode) {
            (InterruptAction::Disable, mode) => {
                if is_mode(mode, index) {
                    *mode = Mode::Off;
                }
                Ok(())
            }
            (InterruptAction::Mask, Mode::Intx(intx)) if index == InterruptIndex::Intx => {
                intx.masked = true;
                Ok(())
            }
            (InterruptAction::Unmask, Mode::Intx(intx)) if index == InterruptIndex::Intx => {
                intx.unmask();
                Ok(())
            }
            (InterruptAction::Mask | InterruptAction::Unmask, _) => Err(start::invalid(format!(
                "{}: {index:?} cannot be masked, or is not in use",
                self.subject
            ))),
            (InterruptAction::Trigger { start, count }, _) => self.trigger(index, *start, *count),
            (InterruptAction::Assign { .. }, _) => Ok(()),
        }
    }

    /// Checks `start..start + count` against the index.
    fn range(
        &self,
        index: InterruptIndex,
        start: u16,
        count: usize,
    ) -> Result<std::ops::Range<usize>, Failure> {
        let (first, limit) = (usize::from(start), usize::from(self.count(index)));
        match first.checked_add(count) {
            Some(end) if count > 0 && end <= limit => Ok(first..end),
            _ => Err(start::invalid(format!(
                "{}: {count} vectors of {index:?} from {start}: it has {limit}",
                self.subject
            ))),
        }
    }

    fn assign(
        &mut self,
        index: InterruptIndex,
        start: u16,
        present: &[bool],
        handles: Handles,
    ) -> Result<(), Failure> {
        if present.len() > MAX_ASSIGN {
            let most = format!("{} vectors at once, the limit is {MAX_ASSIGN}", present.len());
            return Err(start::invalid(most));
        }
        let range = self.range(index, start, present.len())?;
        let given = present.iter().filter(|present| **present).count();
        handles.expect(given).map_err(|error| start::invalid(error.to_string()))?;
        let idle = matches!(self.mode, Mode::Off);
        if !idle && !is_mode(&self.mode, index) {
            let message = format!("{}: another interrupt index is in use", self.subject);
            return Err(Failure { kind: FailureKind::Busy, code: None, message });
        }
        let mut handles = handles.map(Signaller::from_trusted);
        let mut given = present.iter().map(|present| if *present { handles.next() } else { None });
        if index == InterruptIndex::Intx {
            self.mode = match given.next().flatten() {
                Some(signaller) => Mode::Intx(Intx::new(signaller)),
                None => Mode::Off,
            };
            return Ok(());
        }
        if idle {
            let none = (0..self.count(index)).map(|_| None).collect();
            self.mode = Mode::Messages(index, none);
        }
        if let Mode::Messages(_, signallers) = &mut self.mode {
            for (slot, signaller) in signallers[range].iter_mut().zip(given) {
                *slot = signaller;
            }
            if signallers.iter().all(Option::is_none) {
                self.mode = Mode::Off;
            }
        }
        Ok(())
    }

    /// Signals vectors as if the device had fired them.
    fn trigger(&mut self, index: InterruptIndex, start: u16, count: u16) -> Result<(), Failure> {
        let range = self.range(index, start, count.into())?;
        match &mut self.mode {
            Mode::Intx(intx) if index == InterruptIndex::Intx => {
                intx.fire();
            }
            Mode::Messages(used, signallers) if *used == index => {
                event::signal_all(signallers[range].iter().flatten());
            }
            _ => {}
        }
        Ok(())
    }

    /// One bit for each vector in use; INTx bit 0; nothing otherwise (P9.4).
    fn mask(&self) -> VectorSet {
        match &self.mode {
            Mode::Off => VectorSet::EMPTY,
            Mode::Intx(_) => std::iter::once(0).collect(),
            Mode::Messages(_, signallers) => {
                let vectors = (0..self.vectors).zip(signallers);
                vectors.filter_map(|(vector, one)| one.as_ref().map(|_| vector)).collect()
            }
        }
    }
}

fn is_mode(mode: &Mode, index: InterruptIndex) -> bool {
    match mode {
        Mode::Off => false,
        Mode::Intx(_) => index == InterruptIndex::Intx,
        Mode::Messages(used, _) => *used == index,
    }
}

#[cfg(test)]
#[path = "interrupts_tests.rs"]
mod tests;
