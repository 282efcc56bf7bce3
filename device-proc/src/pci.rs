//! `cordon_pci` over what a backend opened, and its types beside those of the wire.
//!
//! Used by every role. What a device says of itself is not believed: `cordon_pci` ends a capability
//! list that loops or points to nowhere, and ignores a capability that cannot be.

use std::collections::BTreeMap;

use cordon_backend::{BackendError, ErrorKind, OpenFunction};
use cordon_pci::permission::Layout;
use cordon_pci::{Bar, BarKind, MsixCapability};
use ipc::wire::common::{BarInfo, MsixInfo};

/// Reads aligned dwords of config space for `cordon_pci`, each once: from what is known, or from the
/// device.
pub(crate) struct Dwords<'f> {
    function: &'f mut dyn OpenFunction,
    known: BTreeMap<u16, u32>,
}

impl<'f> Dwords<'f> {
    /// Of a function of which nothing but `known` is known.
    pub(crate) fn new(function: &'f mut dyn OpenFunction, known: &[(u16, u32)]) -> Self {
        Self { function, known: known.iter().copied().collect() }
    }

    fn read(&mut self, offset: u16) -> Result<u32, BackendError> {
        if let Some(value) = self.known.get(&offset) {
            return Ok(*value);
        }
        let value = self.function.config_read(offset.into(), 4)?;
        self.known.insert(offset, value);
        Ok(value)
    }

    /// All that were read, for a successor.
    pub(crate) fn into_known(self) -> Vec<(u16, u32)> {
        self.known.into_iter().collect()
    }
}

/// A reader of the aligned 4 bytes at an offset of config space, as `cordon_pci` wants it.
pub(crate) fn reader(
    function: &mut dyn OpenFunction,
) -> impl FnMut(u16) -> Result<u32, BackendError> + '_ {
    |offset| function.config_read(offset.into(), 4)
}

/// What a guest may write to a function's config space (P6.4), and the dwords that this was read from.
/// `read_request` is the host's maximum read request size, where it is known from before a guest used the
/// function; `known` are dwords that another process of the function has read.
///
/// # Errors
/// [`BackendError`] when config space cannot be read, and when nobody answers: all ones have no
/// capabilities, and everything would be permitted.
pub(crate) fn permissions(
    function: &mut dyn OpenFunction,
    read_request: Option<u8>,
    known: &[(u16, u32)],
) -> Result<(Layout, Vec<(u16, u32)>), BackendError> {
    // In any case: it says whether the device is there.
    if function.config_read(0, 2)? == u32::from(u16::MAX) {
        let subject = format!("Function {}", function.address());
        let why = "the device does not answer: its vendor id reads as all ones";
        return Err(BackendError::new(ErrorKind::Gone, subject, "ConfigRead", why));
    }
    let mut dwords = Dwords::new(function, known);
    let mut permissions = Layout::read(|offset| dwords.read(offset))?;
    if let Some(size) = read_request {
        permissions.set_max_read_request(size);
    }
    Ok((permissions, dwords.into_known()))
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
