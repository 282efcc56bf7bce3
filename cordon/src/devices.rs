//! `cordon devices`.

use cordon_vmm::listing::Lister;
use ipc::wire::listing::Function;
use serde::Serialize;

use console::{OutputError, say};

use crate::{Common, Failure, output};

#[derive(Serialize)]
struct Listing {
    dext: String,
    devices: Vec<Device>,
}

#[derive(Serialize)]
struct Device {
    address: String,
    root_bridge: Option<String>,
    vendor: String,
    device: String,
    class: String,
    class_name: &'static str,
    bars: Vec<output::Bar>,
    msi_vectors: u16,
    msix_vectors: u16,
    claimed: bool,
    clients: Vec<Client>,
}

#[derive(Serialize)]
struct Client {
    pid: u32,
    name: String,
}

/// Lists what the dext offers.
pub(crate) fn run(common: &Common, json: bool) -> Result<(), Failure> {
    let lister = Lister::start(&common.config()?)?;
    let functions = lister.functions()?;
    let devices: Vec<Device> = functions.iter().map(device).collect();
    if json {
        return output::json(&Listing { dext: common.dext().to_string(), devices });
    }
    if devices.is_empty() {
        say!("The dext at {} offers no function.", common.dext())?;
    }
    for device in &devices {
        print(device)?;
    }
    Ok(())
}

fn device(function: &Function) -> Device {
    let identity = &function.identity;
    let client = |client: &ipc::wire::dext::Client| Client {
        pid: client.pid,
        name: cordon_vmm::text::printable(&client.name),
    };
    Device {
        address: identity.address.to_string(),
        root_bridge: function.root_bridge.as_ref().map(ToString::to_string),
        vendor: format!("{:04x}", identity.vendor),
        device: format!("{:04x}", identity.device),
        class: format!("{:06x}", identity.class),
        class_name: class_name(identity.class),
        bars: output::bars(&function.bars),
        msi_vectors: function.msi_vectors,
        msix_vectors: function.msix.map_or(0, |msix| msix.vectors),
        claimed: function.claimed,
        clients: function.clients.iter().map(client).collect(),
    }
}

fn print(device: &Device) -> Result<(), OutputError> {
    say!(
        "{}  {}:{}  class {} ({})",
        device.address,
        device.vendor,
        device.device,
        device.class,
        device.class_name
    )?;
    if let Some(name) = &device.root_bridge {
        say!("    beneath root bridge {name}")?;
    }
    for bar in &device.bars {
        say!("    BAR {}: {}, {}", bar.bar, output::size(bar.size), bar.kind())?;
    }
    say!("    vectors: MSI-X {}, MSI {}", device.msix_vectors, device.msi_vectors)?;
    let clients: Vec<String> =
        device.clients.iter().map(|client| format!("{} [{}]", client.name, client.pid)).collect();
    match (device.claimed, clients.is_empty()) {
        (true, false) => say!("    claimed; open in {}", clients.join(", ")),
        (true, true) => say!("    claimed"),
        (false, false) => say!("    free; open in {}", clients.join(", ")),
        (false, true) => say!("    free"),
    }
}

/// What a class code means, by base class, and the few subclasses that people meet.
pub(crate) fn class_name(class: u32) -> &'static str {
    match (class >> 16, (class >> 8) & 0xff) {
        (0x01, 0x06) => "SATA controller",
        (0x01, 0x08) => "Non-Volatile memory controller",
        (0x01, _) => "Mass storage controller",
        (0x02, 0x00) => "Ethernet controller",
        (0x02, _) => "Network controller",
        (0x03, 0x00) => "VGA compatible controller",
        (0x03, _) => "Display controller",
        (0x05, _) => "Memory controller",
        (0x06, _) => "Bridge",
        (0x07, _) => "Communication controller",
        (0x08, _) => "System peripheral",
        (0x0c, 0x03) => "USB controller",
        (0x0c, _) => "Serial bus controller",
        (0x12, _) => "Processing accelerator",
        (0xff, _) => "Unassigned class",
        _ => "Other class",
    }
}
