//! What a config space is made from.

use crate::bar::{BAR_COUNT, Bar};
use crate::bytes;
use crate::registers::{HEADER, HEADER_TYPE, VENDOR};

/// A description that is not one of a type 0 function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Fewer bytes than a header has.
    #[error("Config space of {0} bytes: a header has 64")]
    Short(usize),
    /// The vendor id is all ones: nobody answered.
    #[error("Config space is all ones: the device does not answer")]
    Absent,
    /// A bridge, or nothing that is known.
    #[error("Header type {0:#x}: only type 0 can be passed through")]
    HeaderType(u8),
    /// More bytes than one write may have.
    #[error("Config write of {0} bytes: at most 8 at once")]
    Length(usize),
}

/// What is known about a function before a guest uses it.
#[derive(Clone, Copy, Debug)]
pub struct Description<'c> {
    /// Config space as the device shows it: 64 to 4096 bytes; those that are missing are zero.
    pub config: &'c [u8],
    /// Its BARs by number; `None` where there is none, and at the upper half of a 64-bit BAR.
    pub bars: [Option<Bar>; BAR_COUNT],
    /// Vectors that the host registered (P4): the guest is offered no more MSI vectors.
    pub vectors: u16,
}

impl Description<'_> {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let config = self.config;
        if config.len() < HEADER {
            return Err(ConfigError::Short(config.len()));
        }
        if bytes::half(config, VENDOR) == u16::MAX {
            return Err(ConfigError::Absent);
        }
        match bytes::byte(config, HEADER_TYPE) & 0x7f {
            0 => Ok(()),
            other => Err(ConfigError::HeaderType(other)),
        }
    }
}

/// Who carries out what the guest does to MSI, MSI-X and INTx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptPolicy {
    /// The front end, as [`InterruptChanges`](super::InterruptChanges) tells it: a linked VMM.
    Emulated,
    /// The client of the front end, which has emulation of its own and asks for interrupts by other
    /// messages: a VMM over vfio-user. Registers are kept, and change nothing.
    Client,
}

/// How a front end uses a config space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Who carries out interrupt changes.
    pub interrupts: InterruptPolicy,
    /// Whether the guest sees other functions in its slot (header type bit 7).
    pub multi_function: bool,
    /// There is no device: reads are answered from the description alone, and nothing is forwarded.
    pub synthetic: bool,
}

impl Options {
    /// For a VMM that links the front end: everything is emulated.
    #[must_use]
    pub const fn linked() -> Self {
        Self { interrupts: InterruptPolicy::Emulated, multi_function: false, synthetic: false }
    }

    /// For a front end whose client emulates MSI and MSI-X itself, as QEMU and cloud-hypervisor do
    /// over vfio-user.
    #[must_use]
    pub const fn vfio_user() -> Self {
        Self { interrupts: InterruptPolicy::Client, ..Self::linked() }
    }

    /// For a device that exists only here, such as the DMA companion.
    #[must_use]
    pub const fn synthetic() -> Self {
        Self { synthetic: true, ..Self::linked() }
    }

    /// The same, with header type bit 7 as given.
    #[must_use]
    pub const fn with_multi_function(mut self, multi_function: bool) -> Self {
        self.multi_function = multi_function;
        self
    }
}
