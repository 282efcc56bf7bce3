//! What a write of a guest comes to. Nothing here is allocated.

use crate::bar::BarSet;
use crate::intx::LineChange;
use crate::message::Message;
use crate::permission::Forwards;
use crate::power::PowerState;

/// How the guest takes its interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InterruptMode {
    /// Not at all: no messages are enabled and there is no interrupt pin.
    #[default]
    Off,
    /// By its INTx line.
    Intx,
    /// By MSI.
    Msi,
    /// By MSI-X.
    Msix,
}

/// What changed about interrupts. Always empty under
/// [`InterruptPolicy::Client`](super::InterruptPolicy::Client).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterruptChanges {
    /// Another mode is in use: set the host's interrupts up anew (P9.4).
    pub mode: Option<InterruptMode>,
    /// The first vector whose [`VectorState`](crate::VectorState) may have changed, and how many.
    pub vectors: Option<(u16, u16)>,
    /// Vectors that were pending may be delivered: call
    /// [`next_message`](super::ConfigSpace::next_message) until there are no more.
    pub deliver: bool,
    /// What to do with the INTx line.
    pub line: Option<LineChange>,
}

impl InterruptChanges {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why the function must be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCause {
    /// The guest asked for a function-level reset, by PCI Express or Advanced Features.
    FunctionLevel,
    /// The guest woke up a function that loses its state in D3hot. The device was kept in D0, for
    /// the sake of the BARs that the host programmed; a reset does to it what the guest expects.
    PowerUp,
}

/// What a write comes to. To be carried out in this order:
///
/// 1. `windows` is `Some(false)`: withdraw the windows, so that reads are all ones (P6.4);
/// 2. `forwards`: write to the device, in order;
/// 3. `reset`: reset the device, with everything that P8 says. The model has been reset already;
/// 4. `bars` and `windows` that is `Some(true)`: map the windows where the BARs are now;
/// 5. `interrupts`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Config writes for the device.
    pub forwards: Forwards,
    /// Windows appear or disappear: memory decoding and D0 have come together, or no longer do.
    pub windows: Option<bool>,
    /// BARs that are decoded elsewhere now.
    pub bars: BarSet,
    /// The power state changed.
    pub power: Option<PowerState>,
    /// COMMAND changed; its new value.
    pub command: Option<u16>,
    /// The device must be reset.
    pub reset: Option<ResetCause>,
    /// What changed about interrupts.
    pub interrupts: InterruptChanges,
}

impl Effects {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How an interrupt that the device raised reaches the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// As a message.
    Message(Message),
    /// By the INTx line.
    Line(LineChange),
}
