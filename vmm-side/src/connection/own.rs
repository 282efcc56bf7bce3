//! BAR windows by a connection of the VMM's own: the way that needs nothing of another process, and
//! that gives the VMM a connection with the dext's full powers. Only where it was chosen.

use std::ffi::OsStr;
use std::sync::Arc;

use dext_client::{DextError, Endpoint};
use ipc::wire::connection::BarWindow;
use ipc::{DeviceMemory, PciAddress};

use crate::error::DeviceError;

/// Opens the function, unclaimed, and maps the BARs of `windows`; the memory of each window. The
/// connection stays open for as long as memory that has no descriptor of its own does.
pub(super) fn memory(
    dext: &OsStr,
    address: PciAddress,
    windows: &[BarWindow],
) -> Result<Vec<DeviceMemory>, DeviceError> {
    let endpoint: Endpoint = dext
        .try_into()
        .map_err(|error: dext_client::EndpointError| DeviceError::invalid(error.to_string()))?;
    let failed = |error: DextError| DeviceError::io(error.to_string());
    let registry = dext_client::registry(&endpoint).map_err(failed)?;
    let mut client = dext_client::open_function(registry.as_ref(), address).map_err(failed)?;
    let mut bars: Vec<(u8, DeviceMemory)> = Vec::new();
    let mut all = Vec::new();
    for window in windows {
        if !bars.iter().any(|(bar, _)| *bar == window.bar) {
            let mapped = client.map_bar(window.bar).map_err(failed)?;
            let memory = match mapped.memory {
                Some(memory) => DeviceMemory::from(memory),
                None => DeviceMemory::Own(Arc::new(mapped.window)),
            };
            bars.push((window.bar, memory));
        }
        let of_it = bars.iter().find(|(bar, _)| *bar == window.bar);
        let memory = of_it.map(|(_, memory)| memory.try_clone());
        let memory = memory.transpose().ok().flatten();
        let none = || DeviceError::no_space(format!("BAR {}: no descriptor left", window.bar));
        all.push(memory.ok_or_else(none)?);
    }
    Ok(all)
}
