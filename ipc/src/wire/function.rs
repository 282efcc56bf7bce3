//! VMM side and function process.

use serde::{Deserialize, Serialize};

use super::call::{Names, conversation};
use super::common::{BarInfo, Identity, MsixInfo, Ping, Shutdown};
use super::faults::Misbehave;
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
    /// DevCtl's maximum read request size (bits 14:12) as the host had set it, within which a guest
    /// stays (P6.4); `None` without PCI Express. A successor is told it: a guest may have lowered it.
    pub max_read_request: Option<u8>,
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

impl TryFrom<u32> for InterruptIndex {
    type Error = u32;

    /// VFIO's number of an index, 0..=4; any other is given back.
    fn try_from(number: u32) -> Result<Self, u32> {
        match number {
            0 => Ok(Self::Intx),
            1 => Ok(Self::Msi),
            2 => Ok(Self::Msix),
            3 => Ok(Self::Err),
            4 => Ok(Self::Req),
            other => Err(other),
        }
    }
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

/// What is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Space {
    /// Config space.
    Config,
    /// The BAR of this number, 0..=5.
    Bar(u8),
}

/// One access of at most 8 bytes: P5 and P6 for config space, P7.5 for a BAR. A read answers the value,
/// zero-extended; a write answers 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// What is accessed.
    pub space: Space,
    /// First byte.
    pub offset: u64,
    /// Bytes: 1..=8 of config space; 1, 2, 4 or 8 of a BAR.
    pub width: u8,
    /// Whether it is a write.
    pub write: bool,
    /// The low `width` bytes are written; 0 for a read.
    pub value: u64,
}

impl Access {
    /// A read.
    #[must_use]
    pub fn read(space: Space, offset: u64, width: u8) -> Self {
        Self { space, offset, width, write: false, value: 0 }
    }

    /// A write of the low `width` bytes of `value`.
    #[must_use]
    pub fn write(space: Space, offset: u64, width: u8, value: u64) -> Self {
        Self { space, offset, width, write: true, value }
    }
}

impl Names for Access {
    const NAMES: &'static [&'static str] = &["ConfigRead", "ConfigWrite", "BarRead", "BarWrite"];

    fn name(&self) -> &'static str {
        match (self.space, self.write) {
            (Space::Config, false) => Self::NAMES[0],
            (Space::Config, true) => Self::NAMES[1],
            (Space::Bar(_), false) => Self::NAMES[2],
            (Space::Bar(_), true) => Self::NAMES[3],
        }
    }
}

/// Reads more of config space than one [`Access`] can (P5.3); answers exactly as many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadConfig {
    /// First byte.
    pub offset: u32,
    /// Bytes, 1..=[`CONFIG_SPACE`].
    pub length: u32,
}

impl Names for ReadConfig {
    const NAMES: &'static [&'static str] = &[];

    /// It is a config read, whatever its length.
    fn name(&self) -> &'static str {
        Access::NAMES[0]
    }
}

/// Changes the interrupt setup (P9).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interrupts {
    /// Which index.
    pub index: InterruptIndex,
    /// What to do.
    pub action: InterruptAction,
}

/// Resets the device (P8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset;

/// Asks for the counters of what was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetStatistics;

impl Names for GetStatistics {
    const NAMES: &'static [&'static str] = &["Statistics"];

    fn name(&self) -> &'static str {
        Self::NAMES[0]
    }
}

/// A process that was started as a standby sets its interrupts up and serves from here on; answers
/// the vectors that the dext registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeOver;

/// Serves a companion's doorbell; the tube to the connection process travels beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Companion {
    /// Layout of its entries.
    pub layout: Layout,
    /// Entries that a batch may have, 1..=4096.
    pub max_entries: u32,
}

/// A region of guest RAM, for the companion's rings; its descriptor travels beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddMemory {
    /// Guest address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Where in the memory behind the descriptor it begins.
    pub offset: u64,
    /// Whether devices may write it.
    pub writable: bool,
}

/// Forgets a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveMemory {
    /// Guest address that it was added at.
    pub base: u64,
}

/// The guest rang the companion's doorbell: carry out one batch; answers the value of the status
/// register. Requests that come after it may be answered before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doorbell {
    /// Guest address of the command page, once it was set.
    pub page: Option<u64>,
    /// Number of the doorbell; the same when it is carried out again.
    pub batch: u64,
    /// Milliseconds until it is answered, less than the VMM side waits: entries that have not been
    /// carried out by then fail.
    pub timeout_ms: u32,
}

conversation! {
    /// What the VMM side asks a function process for.
    pub enum Request {
        /// Config space or a BAR, at most 8 bytes.
        Access -> u64, names of Access;
        /// More of config space.
        ReadConfig -> Vec<u8>, names of ReadConfig;
        /// The interrupt setup.
        Interrupts -> ();
        /// Reset the device.
        Reset -> ();
        /// Counters.
        GetStatistics -> Statistics, names of GetStatistics;
        /// A standby serves from here on.
        TakeOver -> u16;
        /// Serve a companion.
        Companion -> ();
        /// Guest RAM comes.
        AddMemory -> ();
        /// Guest RAM goes.
        RemoveMemory -> ();
        /// One batch of the companion's.
        Doorbell -> u32;
        /// A sign of life.
        Ping -> ();
        /// Exit in order.
        Shutdown -> ();
        /// Do wrong at the next request.
        Misbehave -> ();
        /// Serve a lane too.
        UseLane -> ();
    }
}

/// A lane beside the tube ([`crate::lane`]), whose handles come beside the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UseLane {
    /// Whether there are processors to look for requests with before sleeping.
    pub looks: bool,
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
