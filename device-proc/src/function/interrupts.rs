//! Interrupt delivery (P4, P9): from the dext's pending bits to the VMM's signallers.
//!
//! The dext's notification wakes the main loop, which drains the state page, signals every vector
//! in use in ascending order and arms again. The VMM side is not involved.

use ipc::event::{self, Signaller};
use ipc::wire::common::{Failure, FailureKind};
use ipc::wire::dext::MAX_VECTORS;
use ipc::wire::function::{InterruptAction, InterruptIndex, MAX_ASSIGN, Statistics};
use ipc::{Handles, Window};

use crate::dext::{Client, DextError};
use crate::{failure, start};

/// The interrupt setup of one function.
pub struct Interrupts {
    subject: String,
    /// Vectors that the dext registered.
    vectors: u16,
    /// Entries of the MSI-X table.
    entries: u16,
    /// The state page; without it the pending bits are drained by calls.
    page: Option<Window>,
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
    /// Registers with the dext, masks everything and arms the notification. `entries` are those
    /// of the MSI-X table.
    ///
    /// # Errors
    /// [`DextError`].
    pub fn new(client: &mut Client, entries: u16) -> Result<Self, DextError> {
        let vectors = client.set_up_interrupts()?;
        let page = match client.map_interrupt_page() {
            Ok(mapped) => Some(mapped.window),
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => {
                tracing::warn!("pending bits are drained by calls: {error}");
                None
            }
        };
        client.set_irq_mask([0; 4])?;
        client.wait_interrupt()?;
        let subject = format!("Function {}", client.address());
        let (mode, statistics) = (Mode::Off, Statistics::default());
        Ok(Self { subject, vectors, entries, page, mode, statistics })
    }

    /// Vectors that the dext registered.
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
    /// [`DextError`] only when the dext is gone.
    pub fn deliver(&mut self, client: &mut Client) -> Result<(), DextError> {
        if let Err(error) = client.completion().clear() {
            tracing::warn!("cannot take a notification: {error}");
        }
        self.statistics.notifications += 1;
        match self.drain(client) {
            Ok(pending) => self.dispatch(pending),
            Err(error) if error.is_fatal() => return Err(error),
            Err(error) => tracing::warn!("pending bits cannot be drained: {error}"),
        }
        match client.wait_interrupt() {
            Err(error) if error.is_fatal() => Err(error),
            Err(error) => {
                tracing::warn!("the notification cannot be armed again: {error}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn drain(&self, client: &mut Client) -> Result<[u64; 4], DextError> {
        let Some(page) = &self.page else {
            return client.check_interrupt();
        };
        // The page is 16 KiB, so the four words are there.
        Ok([0, 8, 16, 24].map(|word| page.swap_u64(word, 0).unwrap_or_default()))
    }

    fn dispatch(&mut self, pending: [u64; 4]) {
        let fired = u64::from(pending.iter().map(|word| word.count_ones()).sum::<u32>());
        let delivered = match &mut self.mode {
            Mode::Off => 0,
            Mode::Intx(_) if fired == 0 => 0,
            Mode::Intx(intx) => {
                // P9.2: any bit is INTx; all of them together are one signal.
                self.statistics.delivered += u64::from(intx.fire());
                return;
            }
            Mode::Messages(_, signallers) => {
                let bits = (0..MAX_VECTORS).filter(|vector| is_set(&pending, *vector));
                let in_use =
                    bits.filter_map(|vector| signallers.get(usize::from(vector))?.as_ref());
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

    /// Changes the setup and then the dext's mask (P9.4).
    pub(super) fn change(
        &mut self,
        client: &mut Client,
        index: InterruptIndex,
        action: &InterruptAction,
        handles: Handles,
    ) -> Result<(), Failure> {
        match action {
            InterruptAction::Assign { start, present } => {
                self.assign(index, *start, present, handles)?;
            }
            other => {
                handles.expect(0).map_err(|error| start::invalid(error.to_string()))?;
                self.act(index, other)?;
            }
        }
        client.set_irq_mask(self.mask()).map_err(|error| failure(&error))
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
    fn mask(&self) -> [u64; 4] {
        let mut words = [0; 4];
        match &self.mode {
            Mode::Off => {}
            Mode::Intx(_) => words[0] = 1,
            Mode::Messages(_, signallers) => {
                for (vector, _) in signallers
                    .iter()
                    .enumerate()
                    .take(self.vectors.into())
                    .filter(|(_, signaller)| signaller.is_some())
                {
                    words[vector / 64] |= 1u64 << (vector % 64);
                }
            }
        }
        words
    }
}

fn is_mode(mode: &Mode, index: InterruptIndex) -> bool {
    match mode {
        Mode::Off => false,
        Mode::Intx(_) => index == InterruptIndex::Intx,
        Mode::Messages(used, _) => *used == index,
    }
}

fn is_set(words: &[u64; 4], vector: u16) -> bool {
    words[usize::from(vector / 64)] >> (vector % 64) & 1 != 0
}

#[cfg(test)]
#[path = "interrupts_tests.rs"]
mod tests;
