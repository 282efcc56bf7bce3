//! A function that is open: what every process reads of it, and what the function process serves.

use std::os::fd::BorrowedFd;

use ipc::poll::Source;
use ipc::wire::common::{BarInfo, Identity};
use ipc::{Event, PciAddress};

use crate::error::BackendError;
use crate::interrupts::Delivery;

/// How the loss of a backend is seen by a process that waits.
#[derive(Clone, Copy, Debug)]
pub enum Liveness<'f> {
    /// The descriptor hangs up: the other end was closed.
    Hangup(BorrowedFd<'f>),
    /// The descriptor becomes readable: an event says that the device goes.
    Readable(BorrowedFd<'f>),
}

impl<'f> Liveness<'f> {
    /// What to wait for.
    pub fn source<T>(&'f self, token: T) -> Source<'f, T> {
        match self {
            Self::Hangup(fd) => Source::hangup(fd, token),
            Self::Readable(fd) => Source::readable(fd, token),
        }
    }
}

/// A function that is open, whoever opened it for what.
pub trait OpenFunction: Send {
    /// What it is and where.
    fn identity(&self) -> Identity;

    /// Where it is.
    fn address(&self) -> PciAddress {
        self.identity().address
    }

    /// Its BARs: `None` for an unused one and for the upper half of a 64-bit one (P3.1).
    ///
    /// # Errors
    /// [`BackendError`] only when the backend is lost or makes no sense.
    fn bars(&mut self) -> Result<[Option<BarInfo>; 6], BackendError>;

    /// Reads 1, 2 or 4 bytes of config space, zero-extended.
    ///
    /// # Errors
    /// [`BackendError`].
    fn config_read(&mut self, offset: u32, width: u8) -> Result<u32, BackendError>;

    /// Whether another holder has the claim. Asked by those that hold none themselves.
    ///
    /// # Errors
    /// [`BackendError`] when the backend is lost.
    fn is_claimed(&mut self) -> Result<bool, BackendError>;

    /// How its loss is seen, where that can be waited for; where it cannot, the next call says it.
    fn liveness(&self) -> Option<Liveness<'_>>;

    /// Where the backend has it, in words of its own, for [`Source::OwnAt`](crate::Source::OwnAt);
    /// `None` where that is of no use.
    fn place(&self) -> Option<u64> {
        None
    }

    /// The error for a loss that was seen by waiting, during `operation`.
    fn lost(&self, operation: &'static str) -> BackendError;

    /// Descriptors that must stay open for it to work.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;
}

/// What a reset reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetKind {
    /// The one function, by whatever the platform has for that.
    Function,
    /// Everything on its bus, other functions included.
    Bus,
}

/// Resets (P8).
pub trait Reset {
    /// The kinds that this function has, the narrowest first.
    fn reset_kinds(&self) -> &[ResetKind];

    /// Resets. What the host programmed before (interrupts, windows, DMA) is the caller's to restore.
    ///
    /// # Errors
    /// [`BackendError`]; [`crate::ErrorKind::Unsupported`] for a kind that it does not have.
    fn reset(&mut self, kind: ResetKind) -> Result<(), BackendError>;
}

/// A function as the function process serves it: config space, trapped BAR access, interrupts and
/// reset. It never holds the claim and never registers DMA.
pub trait ServedFunction: OpenFunction + Reset {
    /// Writes 1, 2 or 4 bytes of config space.
    ///
    /// # Errors
    /// [`BackendError`].
    fn config_write(&mut self, offset: u32, width: u8, value: u32) -> Result<(), BackendError>;

    /// Makes a memory BAR accessible, before the process confines itself; how many bytes of it are,
    /// from its beginning.
    ///
    /// # Errors
    /// [`BackendError`]; the BAR is then out of reach (P7.4).
    fn open_bar(&mut self, bar: u8) -> Result<u64, BackendError>;

    /// One load of 1, 2, 4 or 8 bytes at a multiple of that, little endian and zero-extended (P7.5),
    /// inside of what [`ServedFunction::open_bar`] said.
    ///
    /// # Errors
    /// [`BackendError`].
    fn bar_read(&mut self, bar: u8, offset: u64, width: u8) -> Result<u64, BackendError>;

    /// One store of the low `width` bytes of `value`; as [`ServedFunction::bar_read`].
    ///
    /// # Errors
    /// [`BackendError`].
    fn bar_write(
        &mut self,
        bar: u8,
        offset: u64,
        width: u8,
        value: u64,
    ) -> Result<(), BackendError>;

    /// Takes the function's interrupts, before anything else of [`ServedFunction::delivery`]; how
    /// many message vectors can be delivered. Notified ones are masked and armed.
    ///
    /// # Errors
    /// [`BackendError`], also while another process has them.
    fn set_up_interrupts(&mut self) -> Result<u16, BackendError>;

    /// Signalled when notified interrupts pend; `None` where the kernel delivers them.
    fn notification(&self) -> Option<&Event>;

    /// How its interrupts reach the VMM.
    fn delivery(&mut self) -> Delivery<'_>;
}
