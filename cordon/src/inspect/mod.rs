//! `cordon inspect`: one function, like `lspci -vv`, and what Cordon makes of it.
//!
//! What can be read without a claim is read by a lister process, which disturbs nobody. Where it is
//! asked for, a function that is free is then attached as a VMM would, for what only that shows
//! (vectors registered, windows, how the platform maps DMA, the processes and their confinement), and
//! detached again; whoever wants to attach it meanwhile is refused.

mod decode;
pub(crate) mod process;

use std::path::Path;
use std::sync::Arc;

use console::{OutputError, say};
use cordon_cli::protocol::{self, Served};
use cordon_vmm::InterruptIndex;
use cordon_vmm::container::GuestRegion;
use cordon_vmm::device::{PassthroughDevice as _, REGIONS};
use cordon_vmm::listing::Lister;
use cordon_vmm::{Container, DmaMode, Function, Host};
use ipc::wire::listing;
use ipc::{PciAddress, SharedMemory};
use serde::Serialize;

use crate::control;
use crate::host::{Group, HostFunction};
use crate::names::Ids;
use crate::output::{self, Sandbox};
use crate::{Common, Failure, sys};

#[derive(Serialize)]
struct Inspection {
    #[serde(rename = "type")]
    kind: &'static str,
    address: String,
    root_bridge: Option<String>,
    #[serde(flatten)]
    ids: Ids,
    claimed_by: Option<Vec<String>>,
    config: decode::Decoded,
    bars: Vec<output::Bar>,
    /// Its IOMMU group, of a function of VFIO's.
    #[serde(skip_serializing_if = "Option::is_none")]
    vfio: Option<Group>,
    attached: Option<Attached>,
    served: Option<Served>,
    reader: Sandbox,
}

#[derive(Serialize)]
struct Attached {
    name: String,
    regions: Vec<Region>,
    interrupts: Vec<Interrupt>,
    dma: Dma,
    processes: Vec<Process>,
}

#[derive(Serialize)]
struct Region {
    index: u32,
    name: String,
    size: u64,
    windows: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    offset: u64,
    length: u64,
}

#[derive(Serialize)]
struct Interrupt {
    index: String,
    count: u32,
}

#[derive(Serialize)]
struct Dma {
    addresses: &'static str,
    page_size: u64,
    #[serde(flatten)]
    registrations: protocol::Dma,
}

#[derive(Serialize)]
struct Process {
    role: &'static str,
    pid: u32,
    sandbox: Sandbox,
}

/// Inspects one function.
pub(crate) fn run(
    address: PciAddress,
    common: &Common,
    control: Option<&Path>,
    attach: bool,
    json: bool,
) -> Result<(), Failure> {
    let config = common.config()?;
    let (function, bytes, reader) = {
        let lister = Lister::start(&config)?;
        let functions = lister.functions()?;
        let is_it = |function: &listing::Function| function.identity.address == address;
        let roots: Vec<String> = functions
            .iter()
            .filter(|function| is_it(function))
            .map(|function| match &function.root_bridge {
                Some(name) => name.to_string(),
                None => "one without a name".to_owned(),
            })
            .collect();
        if roots.len() > 1 {
            let roots = roots.join(", ");
            let why = format!(
                "several devices have the address {address}, beneath the root bridges {roots}: name \
                 one, as in --dext=iokit@NAME"
            );
            return Err(why.into());
        }
        let at = functions.iter().position(is_it);
        let at = at.ok_or_else(|| match common.is_vfio() {
            true => format!("no such device: {address} is not bound to vfio-pci"),
            false => {
                format!("no such device: the dext at {} has no function {address}", common.dext())
            }
        })?;
        let bytes = lister.config(at)?;
        let function = functions.into_iter().nth(at).ok_or("the list changed")?;
        (function, bytes, Sandbox::from(lister.sandbox()))
    };
    let served = control.map(|control| served(control, address)).transpose()?;
    // One that is served and away is not claimed, and would not come back while we have it.
    let attached = if function.claimed || served.is_some() || !attach {
        None
    } else {
        let host = Host::new(config);
        let container = Arc::new(Container::new(DmaMode::Companion));
        let proxy = host.attach(address, &container, None)?;
        let attached = attached(&proxy);
        host.detach(&proxy);
        Some(attached?)
    };
    let mut inspection = inspection(&function, &bytes, attached, served, reader);
    inspection.vfio = if common.is_vfio() { group(address) } else { None };
    if json {
        return output::json(&inspection);
    }
    Ok(print(&inspection)?)
}

/// What the `cordon serve` at `control` knows of the function.
fn served(control: &Path, address: PciAddress) -> Result<Served, Failure> {
    Ok(control::inspect(control, &address.to_string())?)
}

fn inspection(
    function: &listing::Function,
    bytes: &[u8],
    attached: Option<Attached>,
    served: Option<Served>,
    reader: Sandbox,
) -> Inspection {
    let identity = &function.identity;
    let owner = |client: &ipc::wire::dext::Client| {
        format!("{} [{}]", cordon_vmm::text::printable(&client.name), client.pid)
    };
    Inspection {
        kind: "inspection",
        address: identity.address.to_string(),
        root_bridge: function.root_bridge.as_ref().map(ToString::to_string),
        ids: Ids::of(identity.vendor, identity.device, identity.class),
        claimed_by: function.claimed.then(|| function.clients.iter().map(owner).collect()),
        config: decode::decode(bytes),
        bars: output::bars(&function.bars),
        vfio: None,
        attached,
        served,
        reader,
    }
}

/// The IOMMU group of a function of the host's.
fn group(address: PciAddress) -> Option<Group> {
    let functions = sys::pci_functions().ok()?;
    let is_it = |one: &HostFunction| one.address.parse::<PciAddress>().ok() == Some(address);
    functions.iter().find(|one| is_it(one))?.iommu_group.and_then(sys::vfio_group)
}

fn attached(proxy: &Function) -> Result<Attached, Failure> {
    let windows = proxy.windows()?;
    let region = |index: u32| -> Result<Region, Failure> {
        let info = proxy.region_info(index)?;
        let parts = windows.iter().filter(|window| u32::from(window.bar) == index);
        let part = |window: &cordon_vmm::device::BarMemory| Part {
            offset: window.offset,
            length: window.length,
        };
        let name = match index {
            0..=5 => format!("BAR {index}"),
            6 => "ROM".to_owned(),
            7 => "config".to_owned(),
            _ => "VGA".to_owned(),
        };
        Ok(Region { index, name, size: info.size, windows: parts.map(part).collect() })
    };
    let interrupt = |index| {
        let info = proxy.interrupt_info(index);
        Interrupt { index: format!("{:?}", info.index), count: info.count }
    };
    let process = |role, pid, sandbox: &ipc::wire::sandbox::SandboxReport| Process {
        role,
        pid,
        sandbox: Sandbox::from(sandbox),
    };
    let connection = proxy.connection();
    Ok(Attached {
        name: proxy.info().name.clone(),
        regions: (0..REGIONS).map(region).collect::<Result<_, _>>()?,
        interrupts: INTERRUPTS.map(interrupt).into(),
        dma: dma(proxy)?,
        processes: vec![
            process("connection", connection.pid(), &connection.sandbox()),
            process("function", proxy.pid(), &proxy.sandbox()),
        ],
    })
}

/// Every interrupt index, in VFIO's order.
const INTERRUPTS: [InterruptIndex; 5] = [
    InterruptIndex::Intx,
    InterruptIndex::Msi,
    InterruptIndex::Msix,
    InterruptIndex::Err,
    InterruptIndex::Req,
];

/// Registers one page for a moment, to see where the platform puts it.
fn dma(proxy: &Function) -> Result<Dma, Failure> {
    const BASE: u64 = 0x4000_0000;
    const SIZE: u64 = 16 * 1024;
    let container = Container::new(DmaMode::Direct);
    let memory = SharedMemory::create("inspect", SIZE)?;
    container.map(GuestRegion {
        iova: BASE,
        size: SIZE,
        memory: memory.into(),
        offset: 0,
        writable: true,
    })?;
    let addresses = match proxy.try_direct(&container) {
        Ok(()) => "bus address == iova: direct mode works",
        Err(error) if error.kind() == cordon_vmm::ErrorKind::NotSupported => {
            "chosen by the platform: needs companion mode"
        }
        Err(error) => return Err(error.into()),
    };
    let registrations = proxy.connection().statistics(proxy.address())?.into();
    Ok(Dma { addresses, page_size: container.page_size(), registrations })
}

fn print(inspection: &Inspection) -> Result<(), OutputError> {
    let (config, ids) = (&inspection.config, &inspection.ids);
    say!(
        "{} {} [{}]: {}:{} (rev {:02x})",
        inspection.address,
        ids.class_name,
        ids.class,
        ids.vendor,
        ids.device,
        config.revision
    )?;
    if let Some(vendor) = ids.vendor_name {
        say!("    {vendor} {}", ids.device_name.unwrap_or("device without a name"))?;
    }
    if let Some(name) = &inspection.root_bridge {
        say!("    Beneath root bridge {name}")?;
    }
    say!("    Subsystem: {}", config.subsystem)?;
    say!("    Control: {}", config.command)?;
    say!("    Status: {}", config.status)?;
    say!("    Interrupt: pin {}", config.interrupt_pin)?;
    for bar in &inspection.bars {
        say!("    Region {}: {} [size={}]", bar.bar, bar.kind(), output::size(bar.size))?;
    }
    for capability in &config.capabilities {
        say!("    Capabilities: [{:x}] {}", capability.offset, capability.name)?;
        for detail in &capability.details {
            say!("        {detail}")?;
        }
    }
    if let Some(group) = &inspection.vfio {
        group.lines(&inspection.address).iter().try_for_each(|line| say!("    {line}"))?;
    }
    if let Some(owners) = &inspection.claimed_by {
        say!("    Claimed; open in {}", owners.join(", "))?;
    }
    match (&inspection.served, &inspection.attached, &inspection.claimed_by) {
        (Some(served), _, _) => print_served(served)?,
        (None, Some(attached), _) => print_attached(attached)?,
        (None, None, Some(_)) => {
            say!("    (interrupts, DMA and processes are its owner's to show: --control)")?;
        }
        (None, None, None) => {
            say!("    Free (--attach shows windows, interrupts, DMA and processes)")?;
        }
    }
    say!("    Read by: lister process, {}", inspection.reader.summary())
}

/// What a server says of a function, for people.
pub(crate) fn print_served(served: &Served) -> Result<(), OutputError> {
    let why = served.why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
    say!("    Served as {}, {}{why}", served.name, served.presence)?;
    say!(
        "        function process {}, replaced {} times{}; connection process {}, device back {} times",
        served.function_process,
        served.replacements,
        if served.standby { ", a standby waits" } else { "" },
        served.connection_process,
        served.returns
    )?;
    if served.program != "original" || served.connection_program != "original" {
        let next = served.next_connection_program.as_ref();
        let next = next.map_or_else(String::new, |next| format!(", the next one's {next}"));
        say!(
            "        program of the function process {}, of the connection process {}{next}",
            served.program,
            served.connection_program
        )?;
    }
    say!("        {}", served.client)?;
    for line in served.dma.iter().flat_map(dma_lines) {
        say!("        {line}")?;
    }
    Ok(())
}

/// DMA registrations for people.
fn dma_lines(dma: &protocol::Dma) -> Vec<String> {
    let mut lines = vec![format!(
        "DMA registrations: {} ({} bytes) now, {} ({} bytes) at most",
        dma.live_regions, dma.live_bytes, dma.peak_regions, dma.peak_bytes
    )];
    for (count, why) in [
        (dma.failed_bytes, "the platform maps no more bytes at once (about 1.5 GiB)"),
        (dma.failed_mappings, "the platform has no more mappings (65,536)"),
        (dma.failed_segments, "the platform had no single segment for them"),
    ] {
        if count > 0 {
            lines.push(format!("DMA registrations that failed, since {why}: {count}"));
        }
    }
    lines
}

fn print_attached(attached: &Attached) -> Result<(), OutputError> {
    say!("    Free; attached as {} for this look:", attached.name)?;
    for region in attached.regions.iter().filter(|region| region.size > 0) {
        let parts: Vec<String> = region
            .windows
            .iter()
            .map(|part| format!("{:#x}..{:#x}", part.offset, part.offset + part.length))
            .collect();
        let how = if parts.is_empty() {
            "trapped".to_owned()
        } else {
            format!("windows {}", parts.join(", "))
        };
        say!("        region {} {}: {} bytes, {how}", region.index, region.name, region.size)?;
    }
    for interrupt in &attached.interrupts {
        say!("        interrupt {}: {} vectors", interrupt.index, interrupt.count)?;
    }
    let dma = &attached.dma;
    say!("        DMA: {}; pages of {} bytes", dma.addresses, dma.page_size)?;
    for line in dma_lines(&dma.registrations) {
        say!("        {line}")?;
    }
    for process in &attached.processes {
        say!("        {} process {}: {}", process.role, process.pid, process.sandbox.summary())?;
        for layer in &process.sandbox.layers {
            say!("            {:18} {:9} {}", layer.name, layer.state, layer.detail)?;
        }
    }
    Ok(())
}
