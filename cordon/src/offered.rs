//! Which functions a dext offers, asked by this program run once more: whoever asks so is about to
//! confine itself, and must have no thread by then that looking would start.

use std::process::{Command, Stdio};

use cordon_vmm::text::printable;
use ipc::PciAddress;
use serde_json::Value;

use crate::{Common, Failure, Sandbox};

/// Their addresses, as `cordon devices` lists them.
pub(crate) fn offered(common: &Common) -> Result<Vec<PciAddress>, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| format!("cannot find this program's own path: {error}"))?;
    let mut devices = Command::new(own);
    devices.arg("devices").arg("--json").arg("--dext").arg(&common.dext);
    if let Some(device_proc) = &common.how.device_proc {
        devices.arg("--device-proc").arg(device_proc);
    }
    if common.how.sandbox == Sandbox::Relaxed {
        devices.arg("--sandbox=relaxed");
    }
    if let Some(profile) = &common.how.sandbox_exec {
        devices.arg("--sandbox-exec").arg(profile);
    }
    let output = devices
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot ask for the functions of {}: {error}", common.dext()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing was said");
        let why = printable(last.trim_start_matches("cordon: "));
        return Err(format!("the functions of {} cannot be listed: {why}", common.dext()).into());
    }
    let nonsense =
        || format!("cordon devices --dext {} listed nothing that is read", common.dext());
    let listing: Value = serde_json::from_slice(&output.stdout).map_err(|_| nonsense())?;
    let devices = listing["devices"].as_array().ok_or_else(nonsense)?;
    let address = |device: &Value| device["address"].as_str().and_then(|text| text.parse().ok());
    let addresses: Option<Vec<PciAddress>> = devices.iter().map(address).collect();
    Ok(addresses.ok_or_else(nonsense)?)
}
