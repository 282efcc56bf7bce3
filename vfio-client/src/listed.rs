//! Functions that are listed, and opened by nobody: the kernel would reset them.

use std::os::fd::BorrowedFd;

use cordon_backend::{BackendError, Listed, Liveness, OpenFunction};
use ipc::PciAddress;
use ipc::wire::common::{BarInfo, Identity};

use crate::abi::read;
use crate::backend::subject;
use crate::error::VfioError;
use crate::group::is_busy;
use crate::kernel::Kernel;
use crate::sysfs::Places;

/// A function as /sys shows it.
struct Shown {
    identity: Identity,
    bars: [Option<BarInfo>; 6],
    config: Vec<u8>,
    claimed: bool,
}

/// Every function that is bound to vfio-pci, at most `limit`, in the order of their addresses. One that
/// disappears meanwhile is left out.
///
/// # Errors
/// [`VfioError::Sysfs`] when /sys does not say which there are.
pub(crate) fn list(
    kernel: &dyn Kernel,
    places: &Places,
    limit: usize,
) -> Result<Vec<Listed>, VfioError> {
    let bound = places.bound()?.into_iter();
    let shown = bound.filter_map(|address| show(kernel, places, address).ok());
    let listed = shown.map(|function| Listed {
        function: Box::new(function),
        root_bridge: None,
        peers: Vec::new(),
    });
    Ok(listed.take(limit).collect())
}

fn show(kernel: &dyn Kernel, places: &Places, address: PciAddress) -> Result<Shown, VfioError> {
    let mut config = places.config(address)?;
    // A virtual function has none in its config space: vfio-pci puts them there for whoever opens it, as it is here.
    for (at, file) in [(0, "vendor"), (2, "device")] {
        if let Some(id) = places.id(address, file) {
            config[at..at + 2].copy_from_slice(&id.to_le_bytes());
        }
    }
    let word = |at| read(&config, at).map_or(0, u16::from_le_bytes);
    let class = read(&config, 8).map_or(0, u32::from_le_bytes) >> 8;
    let identity = Identity { address, vendor: word(0), device: word(2), class };
    let bars = places.bars(address)?;
    Ok(Shown { identity, bars, claimed: is_held(kernel, places, address), config })
}

/// Whether somebody has the function's group, as far as whoever runs this may know: opening is how the kernel
/// can be asked, and changes nothing.
fn is_held(kernel: &dyn Kernel, places: &Places, address: PciAddress) -> bool {
    let file = places.group(address).and_then(|group| places.file(group));
    file.is_ok_and(|path| kernel.open(&path).is_err_and(|error| is_busy(&error)))
}

impl OpenFunction for Shown {
    fn identity(&self) -> Identity {
        self.identity
    }

    fn bars(&mut self) -> Result<[Option<BarInfo>; 6], BackendError> {
        Ok(self.bars)
    }

    fn config_read(&mut self, offset: u32, width: u8) -> Result<u32, BackendError> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = match width {
            1 => read::<1>(&self.config, at).map(|[one]| one.into()),
            2 => read(&self.config, at).map(|two| u16::from_le_bytes(two).into()),
            4 => read(&self.config, at).map(u32::from_le_bytes),
            _ => None,
        };
        bytes.ok_or_else(|| {
            let why = format!("{width} bytes at {offset:#x} are no access of config space");
            VfioError::Invalid(why).of(subject(self.identity.address), "ConfigRead")
        })
    }

    fn is_claimed(&mut self) -> Result<bool, BackendError> {
        Ok(self.claimed)
    }

    fn liveness(&self) -> Option<Liveness<'_>> {
        None
    }

    fn lost(&self, operation: &'static str) -> BackendError {
        VfioError::Requested.of(subject(self.identity.address), operation)
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}
