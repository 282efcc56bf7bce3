//! The numbers of vfio-user, little endian, as the stock clients speak it.

pub use crate::limits::MAX_DATA;
pub use crate::limits::MAX_DESCRIPTORS;
pub use crate::limits::MAX_MESSAGE;

use crate::options::{AtBudget, BudgetKind};

/// Bytes of the header.
pub const HEADER: usize = 16;

/// Commands.
#[expect(missing_docs, reason = "the protocol's own names")]
pub mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const GET_INFO: u16 = 4;
    pub const REGION_INFO: u16 = 5;
    pub const IRQ_INFO: u16 = 7;
    pub const SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const RESET: u16 = 13;
}

/// Flags of a header: the type in the low bits, then these.
pub mod flag {
    /// Mask of the message type.
    pub const TYPE: u32 = 0xf;
    /// Type of a command.
    pub const COMMAND: u32 = 0;
    /// Type of a reply.
    pub const REPLY: u32 = 1;
    /// The sender wants no reply.
    pub const NO_REPLY: u32 = 0x10;
    /// The reply is an error and has no body.
    pub const ERROR: u32 = 0x20;
}

/// A header as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The client's number for the message.
    pub id: u16,
    /// Command.
    pub command: u16,
    /// Header and body in bytes.
    pub size: u32,
    /// Type and flags.
    pub flags: u32,
    /// Error of a reply.
    pub error: u32,
}

impl Header {
    /// From the bytes of a message.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            id: fields.half(),
            command: fields.half(),
            size: fields.word(),
            flags: fields.word(),
            error: fields.word(),
        }
    }

    /// As it travels.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..2].copy_from_slice(&self.id.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.command.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.size.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.flags.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.error.to_le_bytes());
        bytes
    }
}

/// Reads fields in order; what is not there reads as zero, so lengths are checked before.
pub(super) struct Fields<'b>(pub(super) &'b [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let there = N.min(self.0.len());
        bytes[..there].copy_from_slice(&self.0[..there]);
        self.0 = &self.0[there..];
        bytes
    }

    pub(super) fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub(super) fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(super) fn double(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// An errno for the client, and why, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: i32,
    pub(super) why: String,
    /// A budget that it was refused for.
    pub(super) at_budget: Option<AtBudget>,
}

impl Refusal {
    /// For no budget.
    pub(super) fn new(errno: i32, why: impl Into<String>) -> Self {
        Self { errno, why: why.into(), at_budget: None }
    }
}

pub(super) fn refuse<T>(errno: i32, why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(errno, why))
}

/// Refuses what is beyond a budget of the client's.
pub(super) fn refuse_beyond<T>(
    kind: BudgetKind,
    most: usize,
    errno: i32,
    why: impl Into<String>,
) -> Result<T, Refusal> {
    let at_budget = Some(AtBudget { kind, most });
    Err(Refusal { at_budget, ..Refusal::new(errno, why) })
}

impl From<cordon_vmm::DeviceError> for Refusal {
    fn from(error: cordon_vmm::DeviceError) -> Self {
        Self::new(error.errno(), error.to_string())
    }
}

/// Checks that a body has at least `length` bytes.
pub(super) fn at_least(body: &[u8], length: usize) -> Result<Fields<'_>, Refusal> {
    if body.len() >= length {
        Ok(Fields(body))
    } else {
        refuse(
            libc::EINVAL,
            format!("the body has {} bytes, at least {length} are needed", body.len()),
        )
    }
}
