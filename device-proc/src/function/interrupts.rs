//! Interrupt delivery (P4, P9): from the backend's pending bits to the VMM's signallers.
//!
//! A notification wakes the main loop, which drains what pends, signals every vector in use in
//! ascending order and arms again. The VMM side is not involved. Where the kernel delivers, it is
//! given the signallers, and nothing of this runs when the device fires.

use std::os::fd::{AsFd as _, BorrowedFd};

use cordon_backend::{BackendError, Delivery, KernelInterrupts, ServedFunction, VectorSet};
use ipc::Handles;
use ipc::event::{self, Signaller};
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::function::{InterruptAction, InterruptIndex, MAX_ASSIGN, Statistics};

use crate::{failure, start};

/// The interrupt setup of one function.
pub struct Interrupts {
    subject: String,
    /// Message vectors that the backend delivers.
    vectors: u16,
    /// Entries of the MSI-X table.
    entries: u16,
    mode: Mode,
    statistics: Statistics,
}

/// Which index is in use; one at a time.
enum Mode {
    Off,
    Intx(Intx),
    /// MSI or MSI-X: a signaller for each vector in use.
    Messages(InterruptIndex, Vec<Option<Signaller>>),
}

/// INTx is level-triggered for the guest, and the dext tells of edges: it is held back after each
/// signal until unmasked, which says that the guest has accessed the device. An edge meanwhile is
/// signalled then, since the guest may have looked for work before it; but not if it came before
/// anybody had taken the signal, for whoever takes it looks later than that. Such an edge must not
/// be signalled again. There is nothing left for its driver to do, and one that finds nothing in
/// memory touches no register: a VMM that takes the line down at the next access leaves it up, and
/// its guest is interrupted over and over until it gives up on the line ("nobody cared").
///
/// An edge after the signal was taken may have been seen by the guest or not. It is signalled: a
/// spurious interrupt, whatever a VMM makes of it, is better than one that is lost.
struct Intx {
    signaller: Signaller,
    masked: bool,
    held_back: bool,
}

impl Intx {
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
        Ok(Self { subject, vectors, entries, mode, statistics })
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
    /// # Errors
    /// [`BackendError`] only when the backend is lost.
    pub fn deliver(&mut self, function: &mut dyn ServedFunction) -> Result<(), BackendError> {
        if let Some(Err(error)) = function.notification().map(ipc::Event::clear) {
            tracing::warn!("cannot take a notification: {error}");
        }
        let Delivery::Notified(notified) = function.delivery() else { return Ok(()) };
        self.statistics.notifications += 1;
        match notified.drain() {
            Ok(pending) => self.dispatch(pending),
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => tracing::warn!("pending bits cannot be drained: {error}"),
        }
        match notified.arm() {
            Err(error) if error.is_fatal() => Err(error),
            Err(error) => {
                tracing::warn!("the notification cannot be armed again: {error}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn dispatch(&mut self, pending: VectorSet) {
        let fired = u64::from(pending.count());
        let delivered = match &mut self.mode {
            Mode::Off => 0,
            Mode::Intx(_) if fired == 0 => 0,
            Mode::Intx(intx) => {
                // P9.2: any bit is INTx; all of them together are one signal.
                self.statistics.delivered += u64::from(intx.fire());
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
            InterruptAction::Assign { start, present } => {
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
        done.map_err(|error| failure(&error))
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
                intx.masked = false;
                if std::mem::take(&mut intx.held_back) {
                    intx.fire();
                }
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
                Some(signaller) => Mode::Intx(Intx { signaller, masked: false, held_back: false }),
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
