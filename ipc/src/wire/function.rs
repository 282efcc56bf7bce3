//! VMM side and function process.

use serde::{Deserialize, Serialize};

use super::call::{Names, conversation};
use super::common::{BarInfo, Identity, MsixInfo, Ping, Shutdown};
use super::faults::Misbehave;
use super::sandbox::SandboxReport;
use crate::codec;
pub use crate::limits::MAX_ASSIGN;
pub use crate::limits::MAX_KNOWN;
use crate::tube::MAX_MESSAGE;

/// Size of the config space that is served (P5.1).
pub const CONFIG_SPACE: usize = 4096;

/// What the first process of a function found before any guest had it, and a successor need not ask for
/// again: each question is a call of the backend's, and a guest waits meanwhile. It holds for as long
/// as the claim does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Where the backend has the function, in words of its own: a successor looks there first.
    pub place: Option<u64>,
    /// Its BARs; `None` for an unused one and for the upper half of a 64-bit one.
    pub bars: [Option<BarInfo>; 6],
    /// Offset and value of the aligned dwords of config space that its capabilities were found in; at
    /// most [`MAX_KNOWN`].
    pub config: Vec<(u16, u32)>,
}

impl Known {
    /// As an argument of a command line: of [`Known::config`] at most [`MAX_KNOWN`], since what a process says
    /// must not become longer than an argument may be. What is left out is asked again.
    #[must_use]
    pub fn to_hex(&self) -> String {
        use std::fmt::Write as _;
        let Self { place, bars, ref config } = *self;
        let config = config.iter().take(MAX_KNOWN).copied().collect();
        // Far below the limit, which a message has.
        let bytes = codec::encode(&Self { place, bars, config }, MAX_MESSAGE).unwrap_or_default();
        bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    /// Reads what [`Known::to_hex`] wrote.
    ///
    /// # Errors
    /// Says what is wrong with `hex`.
    pub fn from_hex(hex: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let digits = hex.as_bytes().chunks(2).map(|pair| match std::str::from_utf8(pair) {
            // The parser of numbers takes a sign as well.
            Ok(pair) if pair.len() == 2 && !pair.starts_with('+') => {
                u8::from_str_radix(pair, 16).ok()
            }
            _ => None,
        });
        let bytes: Vec<u8> = digits.collect::<Option<_>>().ok_or("not pairs of hex digits")?;
        let known: Self = codec::decode(&bytes)?;
        if known.config.len() > MAX_KNOWN {
            return Err(format!("{} dwords of config space", known.config.len()).into());
        }
        Ok(known)
    }
}

/// The first message to a process whose function is handed on and not opened by it: the descriptors come beside.
/// Only where the backend hands functions on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    /// How many descriptors.
    pub descriptors: u8,
}

/// Sent once the function is set up and the process confined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// What it serves.
    pub identity: Identity,
    /// What a successor is told.
    pub known: Known,
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

impl Ready {
    /// Whether a successor serves the same function in the same way. Where it was found, and registers
    /// that a guest may have written since, do not matter.
    #[must_use]
    pub fn is_as(&self, other: &Self) -> bool {
        let Self { identity, known, msix, vectors, max_read_request, sandbox } = self;
        *identity == other.identity
            && known.bars == other.known.bars
            && *msix == other.msix
            && *vectors == other.vectors
            && *max_read_request == other.max_read_request
            && sandbox.is_as(&other.sandbox)
    }
}

/// Interrupt indexes, in VFIO's order (P4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
        /// Whether each that is given one is signalled as soon as it is recorded: an interrupt may have been
        /// lost.
        signal: bool,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_fits_an_argument_however_much_a_process_says() {
        let known = Known { config: vec![(4, 7); 20_000], ..Known::default() };
        let hex = known.to_hex();
        // A system takes 128 KiB.
        assert!(hex.len() < 64 << 10, "{}", hex.len());
        let read = Known::from_hex(&hex).unwrap();
        assert_eq!(read.config, known.config[..MAX_KNOWN]);
        for wrong in ["", "0", "zz", "00ff"] {
            assert!(Known::from_hex(wrong).is_err(), "{wrong}");
        }
        // A sign is no digit.
        let none = Known::default().to_hex();
        assert!(Known::from_hex(&none).is_ok() && none.starts_with("00"));
        assert!(Known::from_hex(&none.replacen("00", "+0", 1)).is_err());
    }
}
