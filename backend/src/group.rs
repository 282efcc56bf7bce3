//! An isolation group that is open: claims, the memory of BARs, and DMA, as the connection process
//! holds them.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ipc::{DeviceMemory, SharedMemory, Window};

use crate::error::{BackendError, ErrorKind};
use crate::function::{Liveness, OpenFunction, Reset};

/// A group and its functions.
pub struct OpenGroup {
    /// What holds it together.
    pub group: Box<dyn Group>,
    /// Its functions, in the order of their addresses. Each can be claimed and released by itself.
    pub functions: Vec<Box<dyn GroupFunction>>,
}

/// What outlives the process that holds a group.
#[derive(Debug)]
pub enum Survives<'g> {
    /// Nothing: with the process go claims and DMA registrations, and its successor begins anew.
    Nothing,
    /// The device goes on for as long as somebody keeps duplicates of these. With them a successor
    /// opens the group as [`crate::Source::Adopted`].
    Descriptors(Vec<BorrowedFd<'g>>),
}

/// What outlives the process, of a function: see [`GroupFunction::survives`].
#[derive(Debug, Default)]
pub struct SurvivingFunction<'f> {
    /// What keeps it open.
    pub descriptors: Vec<BorrowedFd<'f>>,
    /// An event that is readable once the function is to be given back.
    pub request: Option<BorrowedFd<'f>>,
}

/// What the functions of a group share.
pub trait Group: Send {
    /// What outlives this process, as things are now.
    fn survives(&self) -> Survives<'_>;

    /// How its loss is seen, where that can be waited for and is not seen by its functions.
    fn liveness(&self) -> Option<Liveness<'_>>;

    /// The error for a loss that was seen by waiting, at the group or at one of its functions.
    fn lost(&self, operation: &'static str) -> BackendError;

    /// Descriptors that must stay open for it to work, those of its functions left out.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;

    /// Whether memory is mapped by an iommufd, of which a process asks other things than of a container.
    fn uses_iommufd(&self) -> bool {
        false
    }
}

/// One function of an open group. Dropping it releases its claim and its DMA.
pub trait GroupFunction: OpenFunction + Reset {
    /// Claims it (P1.1): from here on it may be used by whoever opened it, and its memory by the
    /// device. Claiming again changes nothing; neither does claiming what was adopted.
    ///
    /// # Errors
    /// [`BackendError`].
    fn claim(&mut self) -> Result<(), BackendError>;

    /// Gives up the claim, and with it the DMA that is left: the device reaches nothing when this returns. The
    /// function, where it can be claimed again through this group, once it was reset; nothing where it cannot be
    /// had again from it.
    ///
    /// # Errors
    /// [`BackendError`] when it was not quiet by itself; it is closed, and cannot be had again.
    fn release(self: Box<Self>) -> Result<Option<Box<dyn GroupFunction>>, BackendError>;

    /// Whether its loss ([`OpenFunction::liveness`]) is its own, and the group goes on without it once it is
    /// closed. Otherwise it is the group's.
    fn is_lost_alone(&self) -> bool {
        false
    }

    /// What the process that serves the function is handed as [`crate::Source::Handed`]; nothing
    /// where it opens the function itself.
    fn handed(&self) -> Vec<BorrowedFd<'_>>;

    /// What a successor needs of it beside what the group leaves ([`Group::survives`]); nothing where that
    /// is enough.
    fn survives(&self) -> SurvivingFunction<'_> {
        SurvivingFunction::default()
    }

    /// Windows begin and end on multiples of this: the page size of the host that maps them (P7.7).
    fn window_granule(&self) -> u64;

    /// The memory of a memory BAR.
    ///
    /// # Errors
    /// [`BackendError`]; the BAR is then served by traps only (P7.4).
    fn bar_memory(&mut self, bar: u8) -> Result<BarMemory, BackendError>;

    /// What its DMA space is like.
    fn dma_space(&self) -> DmaSpace;

    /// Lets the device reach memory.
    ///
    /// # Errors
    /// [`BackendError`]: [`crate::ErrorKind::Busy`] when the key is in use,
    /// [`crate::ErrorKind::NoSpace`] and [`crate::ErrorKind::Fragmented`] at the platform's limits.
    fn register_dma(&mut self, range: &DmaRange<'_>) -> Result<BusRange, BackendError>;

    /// Lets an adopted function reach memory that it may reach already: a range that the predecessor
    /// registered is answered as it is. The caller knows that the predecessor can have registered nothing
    /// else under this key.
    ///
    /// # Errors
    /// As [`GroupFunction::register_dma`]; [`crate::ErrorKind::Unsupported`] where nothing was adopted.
    fn adopt_dma(&mut self, _range: &DmaRange<'_>) -> Result<BusRange, BackendError> {
        let (kind, subject) = (ErrorKind::Unsupported, format!("Function {}", self.address()));
        Err(BackendError::new(kind, subject, "AdoptDma", "it was not adopted"))
    }

    /// Takes it back; `at` is what [`GroupFunction::register_dma`] answered for `key`. The device
    /// does not reach it any more when this returns.
    ///
    /// # Errors
    /// [`BackendError`].
    fn unregister_dma(&mut self, key: u64, at: BusRange) -> Result<(), BackendError>;
}

/// The memory of a BAR.
#[derive(Debug)]
pub struct BarMemory {
    /// Bytes that are there, from the BAR's beginning.
    pub size: u64,
    /// How others get at it.
    pub backing: Backing,
}

/// How the memory of a BAR can be handed on.
#[derive(Debug)]
pub enum Backing {
    /// As a whole, with a descriptor.
    Shared {
        /// The memory.
        memory: Arc<DeviceMemory>,
        /// Where in it the BAR begins.
        base: u64,
    },
    /// In parts, each as a memory entry made of this process's mapping, which stays for as long.
    Mapped(Window),
}

impl BarMemory {
    /// Bytes `offset..offset + length` of the BAR to hand on: the memory, and where in it they begin.
    ///
    /// # Errors
    /// Where the system has nothing for memory without a descriptor.
    pub fn part(&self, offset: u64, length: u64) -> io::Result<(Arc<DeviceMemory>, u64)> {
        match &self.backing {
            Backing::Shared { memory, base } => Ok((Arc::clone(memory), base + offset)),
            Backing::Mapped(window) => {
                DeviceMemory::of(window, offset, length).map(|memory| (Arc::new(memory), 0))
            }
        }
    }
}

/// Who chooses where a device reaches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusAddresses {
    /// We do: a range lies at its key.
    Chosen,
    /// The platform does, and says so.
    Assigned,
}

/// What the DMA space of a function is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaSpace {
    /// Who chooses bus addresses.
    pub addresses: BusAddresses,
    /// Address, offset and size of a range are multiples of this; 1 where any will do.
    pub granule: u64,
    /// Most ranges at once.
    pub max_ranges: u64,
    /// Whether a range must be mapped in this process ([`DmaRange::mapped_at`]); otherwise its
    /// descriptor is enough.
    pub needs_mapping: bool,
    /// Whether all functions of the group reach what one of them was given, so that they must
    /// belong to one guest.
    pub shared: bool,
}

/// The memory that a range of guest memory is.
#[derive(Clone, Copy, Debug)]
pub struct Behind<'m> {
    /// The memory.
    pub memory: &'m SharedMemory,
    /// Where in it the range begins.
    pub offset: u64,
    /// Whether devices may write it.
    pub writable: bool,
}

/// A range of guest memory for a device.
#[derive(Clone, Copy, Debug)]
pub struct DmaRange<'m> {
    /// Under which it is taken back; its bus address where we choose.
    pub key: u64,
    /// Bytes, not 0.
    pub size: u64,
    /// Where it is mapped in this process, if it is.
    pub mapped_at: Option<usize>,
    /// The memory itself.
    pub behind: Behind<'m>,
}

/// Where a device reaches a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusRange {
    /// Bus address.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}
