//! What several conversations share.

use serde::{Deserialize, Serialize};

use crate::address::PciAddress;

/// How the last words of a process begin that ends by a fault of its memory. Text for people: what follows
/// says what was accessed.
pub const MEMORY_FAULT: &str = "memory fault: ";

/// How the last words of a process begin that ends by a system call that its sandbox forbids. The number of the
/// call follows, and the end of the line.
pub const FORBIDDEN_CALL: &str = "forbidden system call: number ";

/// The exit status of a connection process that ends since the host wants a function back that is in use: it is
/// unplugged, or another driver is to have it.
pub const REQUESTED: u8 = 3;

/// What the dext says a function is (selector GetIdentity).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class code, 24 bits.
    pub class: u32,
}

/// What the dext says of a BAR (selector GetBARInfo).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarInfo {
    /// The dext's memory index, which is not the BAR number.
    pub memory_index: u8,
    /// Size in bytes.
    pub size: u64,
    /// Low bits of the BAR register: see the constants.
    pub kind: u8,
}

impl BarInfo {
    /// Bit 0 of [`BarInfo::kind`]: an I/O BAR.
    pub const IO: u8 = 0b0001;
    /// Bits 2:1: a 64-bit BAR, whose upper half is the next BAR number.
    pub const WIDTH_64: u8 = 0b0100;
    /// Bit 3: prefetchable, mapped with write-combining.
    pub const PREFETCHABLE: u8 = 0b1000;
}

/// Where a function's MSI-X table and pending-bit array lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixInfo {
    /// Offset of the capability in config space.
    pub capability: u16,
    /// Table entries, 1..=2048.
    pub vectors: u16,
    /// BAR of the table.
    pub table_bar: u8,
    /// Offset of the table in its BAR.
    pub table_offset: u32,
    /// BAR of the pending-bit array.
    pub pba_bar: u8,
    /// Offset of the pending-bit array in its BAR.
    pub pba_offset: u32,
}

/// What kind of failure it is, for callers that must choose an errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The request makes no sense (EINVAL).
    InvalidArgument,
    /// The dext refused or failed (EIO).
    Io,
    /// There is no device or no connection to it (ENODEV).
    NoDevice,
    /// Not supported (ENOTTY).
    NotSupported,
    /// Somebody else has it, or it is there already (EBUSY).
    Busy,
    /// A limit is reached (ENOSPC).
    NoSpace,
    /// The dext or its device is gone, and whoever says so ends (ENODEV).
    Lost,
}

/// Why something was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Kind.
    pub kind: FailureKind,
    /// The dext's code, when it was the dext.
    pub code: Option<u32>,
    /// What failed, on what, and why; one line.
    pub message: String,
}

/// A sign of life: answered at once by a process that is in its wait loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping;

/// Exit in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown;
