//! VMM side and function process.

use serde::{Deserialize, Serialize};

use super::common::{BarInfo, Identity, MsixInfo};
use super::faults::Misbehaviour;
use super::sandbox::SandboxReport;

/// Size of the config space that is served (P5.1).
pub const CONFIG_SPACE: usize = 4096;

/// Most vectors that one request assigns: one descriptor each fits beside a message.
pub const MAX_ASSIGN: usize = crate::tube::MAX_HANDLES;

/// Sent once the function is set up and the process confined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// What it serves.
    pub identity: Identity,
    /// Its BARs; `None` for an unused one and for the upper half of a 64-bit one.
    pub bars: [Option<BarInfo>; 6],
    /// Its MSI-X capability.
    pub msix: Option<MsixInfo>,
    /// Vectors that the dext registered; 0 from a standby, which has not asked yet.
    pub vectors: u16,
    /// What confines the process.
    pub sandbox: SandboxReport,
}

/// Interrupt indexes, in VFIO's order (P4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InterruptIndex {
    /// Legacy interrupt.
    Intx,
    /// Message-signalled interrupts.
    Msi,
    /// Extended message-signalled interrupts.
    Msix,
    /// Device error; never signalled.
    Err,
    /// Device request; never signalled.
    Req,
}

/// How the entries of a companion's ring are laid out (C3): there is no way to detect it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// 32-bit lengths.
    #[default]
    Packed32,
    /// 64-bit lengths.
    Packed64,
}

/// A change of the interrupt setup, after VFIO's SET_IRQS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InterruptAction {
    /// Gives vectors `start..start + present.len()` a signaller, or takes it away. One descriptor
    /// beside the message for each `true`, at most [`MAX_ASSIGN`] entries.
    Assign {
        /// First vector.
        start: u16,
        /// Whether each vector is given a signaller.
        present: Vec<bool>,
    },
    /// Takes away every signaller of the index.
    Disable,
    /// Holds INTx back until it is unmasked. Other indexes cannot be masked.
    Mask,
    /// Lets INTx through again, and signals it when one was held back.
    Unmask,
    /// Signals vectors as if the device had fired them.
    Trigger {
        /// First vector.
        start: u16,
        /// How many.
        count: u16,
    },
}

/// What the VMM side asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// P5. `length` is at most [`CONFIG_SPACE`].
    ConfigRead {
        /// First byte.
        offset: u32,
        /// Bytes wanted.
        length: u32,
    },
    /// P6.
    ConfigWrite {
        /// First byte.
        offset: u32,
        /// Bytes, at most [`CONFIG_SPACE`].
        data: Vec<u8>,
    },
    /// P7.5.
    BarRead {
        /// BAR number 0..=5.
        bar: u8,
        /// Offset in the BAR.
        offset: u64,
        /// 1, 2, 4 or 8.
        width: u8,
    },
    /// P7.5.
    BarWrite {
        /// BAR number 0..=5.
        bar: u8,
        /// Offset in the BAR.
        offset: u64,
        /// 1, 2, 4 or 8.
        width: u8,
        /// The low `width` bytes are stored.
        value: u64,
    },
    /// P9.
    Interrupts {
        /// Which index.
        index: InterruptIndex,
        /// What to do.
        action: InterruptAction,
    },
    /// P8.
    Reset,
    /// Counters of what was delivered.
    Statistics,
    /// Exit in order.
    Shutdown,
    /// A process that was started as a standby sets its interrupts up and serves from here on.
    TakeOver,
    /// Serve a companion's doorbell; the tube to the connection process travels beside.
    Companion {
        /// Layout of its entries.
        layout: Layout,
        /// Entries that a batch may have, 1..=4096.
        max_entries: u32,
    },
    /// A region of guest RAM, for the companion's rings; its descriptor travels beside.
    AddMemory {
        /// Guest address.
        base: u64,
        /// Bytes.
        size: u64,
        /// Where in the memory behind the descriptor it begins.
        offset: u64,
        /// Whether devices may write it.
        writable: bool,
    },
    /// Forget a region.
    RemoveMemory {
        /// Guest address that it was added at.
        base: u64,
    },
    /// The guest rang the companion's doorbell: carry out one batch.
    Doorbell {
        /// Guest address of the command page, once it was set.
        page: Option<u64>,
        /// Number of the doorbell; the same when it is carried out again.
        batch: u64,
    },
    /// Do wrong at the next request; refused unless the process was started for that.
    Misbehave(Misbehaviour),
}

/// Interrupts since the process started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Notifications from the dext.
    pub notifications: u64,
    /// Signals delivered to the VMM.
    pub delivered: u64,
    /// Pending bits that no vector in use wanted (P9.2).
    pub dropped: u64,
}

/// What the function process answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// To a config read: exactly as many bytes as asked for.
    Bytes(Vec<u8>),
    /// To a BAR read.
    Value(u64),
    /// To [`Request::Statistics`].
    Statistics(Statistics),
    /// To [`Request::Doorbell`]: the status register's value.
    Status(u32),
    /// To [`Request::TakeOver`]: vectors that the dext registered.
    Vectors(u16),
}
