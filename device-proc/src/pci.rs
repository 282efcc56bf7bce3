//! `cordon_pci` over what a backend opened, and its types beside those of the wire.
//!
//! Used by every role. What a device says of itself is not believed: `cordon_pci` ends a capability
//! list that loops or points to nowhere, and ignores a capability that cannot be.

use cordon_backend::{BackendError, ErrorKind, OpenFunction};
use cordon_pci::permission::Layout;
use cordon_pci::{Bar, BarKind, MsixCapability};
use ipc::wire::common::{BarInfo, MsixInfo};

/// A reader of the aligned 4 bytes at an offset of config space, as `cordon_pci` wants it.
pub(crate) fn reader(
    function: &mut dyn OpenFunction,
) -> impl FnMut(u16) -> Result<u32, BackendError> + '_ {
    |offset| function.config_read(offset.into(), 4)
}

/// What a guest may write to a function's config space (P6.4). `read_request` is the host's maximum
/// read request size, where it is known from before a guest used the function.
///
/// # Errors
/// [`BackendError`] when config space cannot be read, and when nobody answers: all ones have no
/// capabilities, and everything would be permitted.
pub(crate) fn permissions(
    function: &mut dyn OpenFunction,
    read_request: Option<u8>,
) -> Result<Layout, BackendError> {
    if function.config_read(0, 2)? == u32::from(u16::MAX) {
        let subject = format!("Function {}", function.address());
        let why = "the device does not answer: its vendor id reads as all ones";
        return Err(BackendError::new(ErrorKind::Gone, subject, "ConfigRead", why));
    }
    let mut permissions = Layout::read(reader(function))?;
    if let Some(size) = read_request {
        permissions.set_max_read_request(size);
    }
    Ok(permissions)
}

/// The MSI-X capability, if the function has one that makes sense.
///
/// # Errors
/// [`BackendError`] when config space cannot be read.
pub(crate) fn msix(
    function: &mut dyn OpenFunction,
) -> Result<Option<MsixCapability>, BackendError> {
    MsixCapability::find(reader(function))
}

/// An MSI-X capability as it is sent.
pub(crate) fn msix_info(capability: MsixCapability) -> MsixInfo {
    let MsixCapability { offset, vectors, table_bar, table_offset, pba_bar, pba_offset } =
        capability;
    MsixInfo { capability: offset, vectors, table_bar, table_offset, pba_bar, pba_offset }
}

/// A BAR as a backend describes it.
pub(crate) fn bar(info: &BarInfo) -> Bar {
    Bar { size: info.size, kind: BarKind::from_bits(info.kind) }
}

/// Whether a BAR has memory that can be mapped (P7.1).
pub(crate) fn is_mappable(info: &BarInfo) -> bool {
    let bar = bar(info);
    bar.size > 0 && !bar.kind.is_io()
}
