//! Interrupts of the device, on their way to the guest.

use super::{ConfigSpace, Delivery, InterruptMode};
use crate::intx::LineChange;
use crate::message::{Message, VectorState};
use crate::registers::INTERRUPT_PIN;

impl ConfigSpace {
    /// How the guest takes its interrupts: MSI-X before MSI before INTx, which needs a pin. Not at
    /// all while the device is gone.
    #[must_use]
    pub fn mode(&self) -> InterruptMode {
        if !self.is_present {
            InterruptMode::Off
        } else if self.msix.as_ref().is_some_and(crate::Msix::is_enabled) {
            InterruptMode::Msix
        } else if self.msi.as_ref().is_some_and(crate::Msi::is_enabled) {
            InterruptMode::Msi
        } else if self.shadow[INTERRUPT_PIN] != 0 {
            InterruptMode::Intx
        } else {
            InterruptMode::Off
        }
    }

    /// Vectors of the mode in use: MSI-X table entries, MSI vectors that the guest chose, 1 for
    /// INTx.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        match (self.mode(), &self.msix, &self.msi) {
            (InterruptMode::Msix, Some(msix), _) => msix.capability().vectors,
            (InterruptMode::Msi, _, Some(msi)) => msi.chosen(),
            (InterruptMode::Intx, ..) => 1,
            _ => 0,
        }
    }

    /// The state of `vector` in the mode in use. This is what the host's interrupts are set up
    /// from (P9.4): a vector in use that is not masked can go straight to the guest with its
    /// message; one that is masked must come to [`ConfigSpace::signal`], for its pending bit. INTx
    /// is vector 0.
    #[must_use]
    pub fn vector(&self, vector: u16) -> VectorState {
        let none = VectorState { in_use: false, masked: true, message: Message::default() };
        match (self.mode(), &self.msix, &self.msi) {
            (InterruptMode::Msix, Some(msix), _) => msix.vector(vector),
            (InterruptMode::Msi, _, Some(msi)) => msi.vector(vector),
            (InterruptMode::Intx, ..) if vector == 0 => {
                VectorState { in_use: true, masked: false, message: Message::default() }
            }
            _ => none,
        }
    }

    /// The device raised `vector` (P9.2). In INTx mode any vector raises the line; otherwise one
    /// that is masked becomes pending, and one that is not in use is dropped.
    pub fn signal(&mut self, vector: u16) -> Option<Delivery> {
        match (self.mode(), &mut self.msix, &mut self.msi) {
            (InterruptMode::Msix, Some(msix), _) => msix.signal(vector).map(Delivery::Message),
            (InterruptMode::Msi, _, Some(msi)) => {
                let message = msi.signal(vector).map(Delivery::Message);
                if message.is_none() {
                    self.refresh_capabilities();
                }
                message
            }
            (InterruptMode::Intx, ..) => {
                let change = self.intx.raise();
                self.refresh_line();
                change.map(Delivery::Line)
            }
            _ => None,
        }
    }

    /// The next pending vector that may be delivered, and its message; it is pending no more.
    pub fn next_message(&mut self) -> Option<(u16, Message)> {
        match (self.mode(), &mut self.msix, &mut self.msi) {
            (InterruptMode::Msix, Some(msix), _) => msix.next_deliverable(),
            (InterruptMode::Msi, _, Some(msi)) => {
                let next = msi.next_deliverable();
                self.refresh_capabilities();
                next
            }
            _ => None,
        }
    }

    pub(super) fn has_deliverable(&self) -> bool {
        match (self.mode(), &self.msix, &self.msi) {
            (InterruptMode::Msix, Some(msix), _) => msix.has_deliverable(),
            (InterruptMode::Msi, _, Some(msi)) => msi.has_deliverable(),
            _ => false,
        }
    }

    /// The guest ended its INTx interrupt (EOI, or the resample event).
    pub fn end_of_interrupt(&mut self) -> Option<LineChange> {
        let change = self.intx.end_of_interrupt();
        self.refresh_line();
        change
    }
}
