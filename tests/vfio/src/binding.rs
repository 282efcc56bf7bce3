//! Which driver has a PCI function, by sysfs.

use std::fs;
use std::path::Path;

/// The folder of all functions.
pub const DEVICES: &str = "/sys/bus/pci/devices";
/// The driver that passes functions on.
pub const DRIVER: &str = "vfio-pci";

/// Gives a function to `vfio-pci`, and to no other driver for as long as it is there: one that is taken out of the machine
/// and put back is a new one to the kernel, which gives it to its own driver at once.
///
/// # Errors
/// What could not be written, or that another driver has it all the same.
pub fn bind(address: &str) -> Result<(), String> {
    let function = Path::new(DEVICES).join(address);
    if !function.exists() {
        return Err(format!("there is no function {address}"));
    }
    write(&function.join("driver_override"), DRIVER)?;
    if function.join("driver").exists() {
        write(&function.join("driver/unbind"), address)?;
    }
    write(Path::new("/sys/bus/pci/drivers_probe"), address)?;
    match last_part(&function.join("driver")) {
        Some(driver) if driver == DRIVER => Ok(()),
        other => Err(format!("{address} is bound to {other:?} rather than to {DRIVER}")),
    }
}

/// The last part of where a link leads.
#[must_use]
pub fn last_part(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{text} > {}: {error}", path.display()))
}
