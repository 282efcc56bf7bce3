//! The seam between Cordon's confined processes and whatever gives them a PCI function.
//!
//! | side | process | traits |
//! | --- | --- | --- |
//! | function | function | [`ServedFunction`], [`NotifiedInterrupts`], [`KernelInterrupts`] |
//! | connection | connection | [`Group`], [`GroupFunction`] |
//! | listing | lister | [`OpenFunction`] |
//!
//! [`Backend`] opens all three. The seam is a PCI function, not the calls of a driver, so that a
//! driver extension's connection, a simulated one, Linux's VFIO and a fake in memory fit alike. Everything is opened before its process confines itself; what is open afterwards needs
//! only the descriptors that it names. Calls are made by the one thread of a process and may block
//! for as long as the backend bounds them.
//!
//! A backend trusts its caller, which has checked what came from outside; the caller trusts a
//! backend to be what it claims to be, and no more: sizes and counts are checked by whoever uses
//! them. The end of a backend is an error of kind [`ErrorKind::Lost`], that of one function
//! [`ErrorKind::Gone`], and where it can be waited for, a [`Liveness`]; the process reports it and exits.

mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod function;
mod group;
mod interrupts;

use std::os::fd::OwnedFd;

use ipc::{PciAddress, RootBridge};

pub use error::{BackendError, ErrorKind};
pub use function::{Liveness, OpenFunction, Reset, ResetKind, ServedFunction};
pub use group::{
    Backing, BarMemory, Behind, BusAddresses, BusRange, DmaRange, DmaSpace, Group, GroupFunction,
    OpenGroup, Survives, SurvivingFunction,
};
pub use interrupts::{Delivery, KernelInterrupts, NotifiedInterrupts, VectorSet};
/// Who has a function open.
pub use ipc::wire::dext::Client as Peer;

/// How a process comes by what it opens. Which one a backend takes is the backend's; the other is
/// [`ErrorKind::Unsupported`].
#[derive(Debug)]
pub enum Source {
    /// It opens it itself, before it confines itself.
    Own,
    /// As [`Source::Own`], and looks first at the place where another process found the function
    /// ([`OpenFunction::place`]). A backend without places, or one that finds something else there, opens
    /// it as ever.
    OwnAt(u64),
    /// It is handed descriptors before it confines itself: by the process that holds the group
    /// ([`GroupFunction::handed`]).
    Handed(Vec<OwnedFd>),
    /// It takes over what a dead predecessor left ([`Survives::Descriptors`]), as it is: claims and
    /// DMA registrations hold, and nothing is reset.
    Adopted(Left),
    /// It is handed the files of the group, which a manager opened for it, and opens nothing of the group by a path.
    HandedGroup(HandedGroup),
    /// It is handed files of functions' own, which a manager opened for it, and opens nothing of the group by a path.
    HandedDevices(HandedDevices),
}

/// Files of functions' own that a manager opened: those of functions of one group.
#[derive(Debug)]
pub struct HandedDevices {
    /// The functions', in any order.
    pub devices: Vec<HandedFile>,
    /// That of an iommufd which nobody else uses. It is the same one for each process: the kernel keeps a function with
    /// the one that it is bound to until the last duplicate of its file is closed.
    pub iommufd: HandedFile,
}

/// Files of a group that a manager opened.
#[derive(Debug)]
pub struct HandedGroup {
    /// The group's own.
    pub group: HandedFile,
    /// That of a container without a group; without one, the process opens one itself.
    pub container: Option<HandedFile>,
}

/// A file that a manager opened.
#[derive(Debug)]
pub struct HandedFile {
    /// The file.
    pub file: OwnedFd,
    /// The number of its descriptor in the process that it was handed to, which is what people know it by.
    pub number: i32,
}

/// What a dead process left of an open group.
#[derive(Debug, Default)]
pub struct Left {
    /// Files of functions' own that a manager opened, those of what was left among them; without them, functions of the
    /// group that were not claimed are opened by paths.
    pub handed: Option<HandedDevices>,
    /// Of the group itself ([`Survives::Descriptors`]).
    pub group: Vec<OwnedFd>,
    /// Of those of its functions that were claimed ([`GroupFunction::survives`]). The others are opened anew.
    pub functions: Vec<LeftFunction>,
}

/// What a dead process left of a function that it had claimed.
#[derive(Debug)]
pub struct LeftFunction {
    /// Where it is.
    pub address: PciAddress,
    /// What keeps it open.
    pub descriptors: Vec<OwnedFd>,
    /// An event that is readable once the function is to be given back.
    pub request: Option<OwnedFd>,
}

/// A function that was opened to be looked at.
pub struct Listed {
    /// It.
    pub function: Box<dyn OpenFunction>,
    /// The root bridge above it, where the host names one: an address need not be unique without.
    pub root_bridge: Option<RootBridge>,
    /// Who had it open before, as far as that is known.
    pub peers: Vec<Peer>,
}

/// What the processes over a backend do once they are confined, which is what they are let do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendKind {
    /// Each has opened for itself, and makes calls of another process.
    #[default]
    Calls,
    /// The kernel's VFIO: the process that holds the group hands devices on
    /// ([`GroupFunction::handed`], [`Source::Handed`]), and each makes requests of the kernel.
    Vfio,
}

/// What gives processes their PCI functions.
pub trait Backend: Send + Sync {
    /// Of which kind it is.
    fn kind(&self) -> BackendKind {
        BackendKind::default()
    }

    /// Opens every function that there is, at most `limit`, in the order of their addresses. Claims
    /// and changes nothing.
    ///
    /// # Errors
    /// [`BackendError`]; a function that disappears meanwhile is left out.
    fn list(&self, limit: usize) -> Result<Vec<Listed>, BackendError>;

    /// Opens the function at `address`, for the process that serves it. Claims nothing: the process
    /// that holds the group does.
    ///
    /// # Errors
    /// [`BackendError`]: [`ErrorKind::NoSuchDevice`] when there is no such function.
    fn open_function(
        &self,
        address: PciAddress,
        source: Source,
    ) -> Result<Box<dyn ServedFunction>, BackendError>;

    /// Opens the isolation group of the function at `address`: what can be claimed only by one
    /// process. The functions of a physical device, or those that an IOMMU cannot tell apart.
    ///
    /// # Errors
    /// [`BackendError`]: [`ErrorKind::NoSuchDevice`] when there is no such function.
    fn open_group(&self, address: PciAddress, source: Source) -> Result<OpenGroup, BackendError>;
}
