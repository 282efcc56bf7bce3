//! What the examples share: where the dext and the confined program are.
//!
//! Each example is a program of its own in `src/bin`. Try one against a simulated device:
//!
//! ```text
//! dext-sim --socket /tmp/dext --device 01:00.0=probe &
//! CORDON_DEXT=sim:/tmp/dext CORDON_DEVICE_PROC=target/debug/device-proc read-config 01:00.0
//! ```

use std::error::Error;

use cordon_vmm::{HostConfig, PciAddress};

/// How processes are started, from `CORDON_DEXT` and `CORDON_DEVICE_PROC`.
///
/// # Errors
/// When one of them is not set.
pub fn config() -> Result<HostConfig, Box<dyn Error>> {
    let dext = std::env::var("CORDON_DEXT")
        .map_err(|_| "CORDON_DEXT is not set: sim:PATH of a running dext-sim, or iokit")?;
    let device_proc = std::env::var_os("CORDON_DEVICE_PROC")
        .ok_or("CORDON_DEVICE_PROC is not set: the device-proc program")?;
    Ok(HostConfig::new(device_proc, dext))
}

/// The function that the command line names.
///
/// # Errors
/// When there is none, or it is no address.
pub fn address() -> Result<PciAddress, Box<dyn Error>> {
    let text = std::env::args().nth(1).ok_or("give the address of a function, as 01:00.0")?;
    Ok(text.parse()?)
}
