//! `cordon devices`.

use cordon_vmm::listing::Lister;
use ipc::wire::listing::Function;
use serde::Serialize;

use console::{OutputError, say};

use crate::host::{Group, Host, HostFunction};
use crate::names::Ids;
use crate::{Common, Failure, output, sys};

#[derive(Serialize)]
struct Listing {
    #[serde(rename = "type")]
    kind: &'static str,
    dext: String,
    devices: Vec<Device>,
    /// With `--all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<OnHost>,
}

/// What else the host has; `unknown` says why that cannot be told.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum OnHost {
    Functions(Vec<Other>),
    Unknown(String),
}

/// A function that the host has, by names too.
#[derive(Serialize)]
struct Other {
    address: String,
    #[serde(flatten)]
    ids: Ids,
    driver: Option<String>,
    iommu_group: Option<u32>,
    /// What a user of VFIO's needs to know of its group.
    #[serde(skip_serializing_if = "Option::is_none")]
    vfio: Option<Group>,
}

#[derive(Serialize)]
struct Device {
    address: String,
    root_bridge: Option<String>,
    #[serde(flatten)]
    ids: Ids,
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

/// Lists what the dext offers, and with `all` what else the host has.
pub(crate) fn run(common: &Common, all: bool, json: bool) -> Result<(), Failure> {
    let lister = Lister::start(&common.config()?)?;
    let functions = lister.functions()?;
    let devices: Vec<Device> = functions.iter().map(device).collect();
    let host = all.then(|| on_host(sys::pci_functions()));
    if json {
        let (kind, dext) = ("devices", common.dext().to_string());
        return output::json(&Listing { kind, dext, devices, host });
    }
    if devices.is_empty() {
        match common.is_vfio() {
            true => say!(
                "VFIO has no function: none is bound to vfio-pci (--all lists what there is)."
            )?,
            false => say!("The dext at {} offers no function.", common.dext())?,
        }
    }
    for device in &devices {
        print(device)?;
    }
    Ok(host.iter().try_for_each(print_host)?)
}

fn on_host(host: Host) -> OnHost {
    let other = |one: HostFunction| Other {
        ids: Ids::of(one.vendor, one.device, one.class),
        address: one.address,
        driver: one.driver,
        iommu_group: one.iommu_group,
        vfio: one.iommu_group.and_then(sys::vfio_group),
    };
    match host {
        Ok(functions) => OnHost::Functions(functions.into_iter().map(other).collect()),
        Err(why) => OnHost::Unknown(why),
    }
}

fn print_host(host: &OnHost) -> Result<(), OutputError> {
    let functions = match host {
        OnHost::Unknown(why) => return say!("What else the host has cannot be told: {why}"),
        OnHost::Functions(functions) => functions,
    };
    say!("The host itself has {} functions:", functions.len())?;
    for one in functions {
        let name = match (one.ids.vendor_name, one.ids.device_name) {
            (Some(vendor), Some(device)) => format!("{vendor} {device}"),
            (Some(vendor), None) => format!("{vendor} device"),
            (None, _) => "unknown device".to_owned(),
        };
        let Ids { vendor, device, class_name, .. } = &one.ids;
        say!("{}  {class_name}: {name} [{vendor}:{device}]", one.address)?;
        match &one.driver {
            Some(driver) => say!("    bound to {driver}")?,
            None => say!("    bound to no driver")?,
        }
        let mut lines = one.vfio.iter().flat_map(|group| group.lines(&one.address));
        lines.try_for_each(|line| say!("    {line}"))?;
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
        ids: Ids::of(identity.vendor, identity.device, identity.class),
        bars: output::bars(&function.bars),
        msi_vectors: function.msi_vectors,
        msix_vectors: function.msix.map_or(0, |msix| msix.vectors),
        claimed: function.claimed,
        clients: function.clients.iter().map(client).collect(),
    }
}

fn print(device: &Device) -> Result<(), OutputError> {
    let ids = &device.ids;
    say!(
        "{}  {}:{}  class {} ({})",
        device.address,
        ids.vendor,
        ids.device,
        ids.class,
        ids.class_name
    )?;
    if let Some(vendor) = ids.vendor_name {
        say!("    {vendor} {}", ids.device_name.unwrap_or("device without a name"))?;
    }
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
