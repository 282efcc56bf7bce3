//! The functions of one VM: described before crosvm forks, attached after.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use base::{AsRawDescriptor as _, Tube, error, info};
use cordon_vmm::{
    CompanionConfig, Container, DmaMode, GuestRegion, Host, HostConfig, SharedMemory,
};
use sync::Mutex;
use vm_control::api::VmMemoryClient;
use vm_memory::GuestMemory;

use crate::bars::of_crosvm;
use crate::children;
use crate::companion::{Attached, CompanionDevice};
use crate::function::FunctionDevice;
use crate::guest::PassedThrough;
use crate::interrupts::descriptor;
use crate::options::{CompanionOption, DeviceOption};

/// What a device needs of its VM.
pub struct Tubes {
    /// Of a memory tube whose peer is this process: the windows are addresses in it.
    pub memory: VmMemoryClient,
    /// Of an IRQ tube.
    pub irq: Tube,
}

/// All passthrough of one VM.
pub struct Cordon {
    host: Arc<Host>,
    /// Guest memory for functions all of whose guest's memory is mapped.
    direct: Arc<Container>,
    /// Guest memory for functions with a companion.
    on_demand: Arc<Container>,
    waiting: Mutex<Vec<Waiting>>,
}

/// A function that is described and not attached yet.
struct Waiting {
    host: cordon_vmm::PciAddress,
    device: Arc<PassedThrough>,
    companion: Option<Attached>,
}

impl Cordon {
    /// No thread and no process yet.
    #[must_use]
    pub fn new(config: HostConfig) -> Self {
        Self {
            host: Arc::new(Host::new(config)),
            direct: Arc::new(Container::new(DmaMode::Direct)),
            on_demand: Arc::new(Container::new(DmaMode::Companion)),
            waiting: Mutex::default(),
        }
    }

    /// Describes a function and makes its devices. A confined process looks at the function and ends; no thread and
    /// no process is left, so that crosvm may fork afterwards.
    ///
    /// # Errors
    /// The function is not there, is claimed by somebody, or cannot be shown to a guest.
    pub fn create(
        &self,
        option: &DeviceOption,
        tubes: Tubes,
    ) -> anyhow::Result<(FunctionDevice, Option<CompanionDevice>)> {
        let described = self.host.describe(option.host)?;
        if described.claimed {
            anyhow::bail!("{}: somebody else has it claimed", option.host);
        }
        let device = PassedThrough::new(described, tubes.irq, tubes.memory)
            .with_context(|| format!("{} cannot be passed through", option.host))?;
        let device = Arc::new(device);
        let companion = match &option.companion {
            None => None,
            Some(CompanionOption { guest }) => {
                let attached = Arc::new(OnceLock::new());
                let name = format!("cordon companion of {}", option.host);
                let (host, wanted) = (Arc::clone(&self.host), guest.map(of_crosvm));
                let device = CompanionDevice::new(name, Arc::clone(&attached), host, wanted)?;
                Some((device, attached))
            }
        };
        let (companion, attached) = companion.unzip();
        self.waiting.lock().push(Waiting {
            host: option.host,
            device: Arc::clone(&device),
            companion: attached,
        });
        let wanted = option.guest.map(of_crosvm);
        Ok((FunctionDevice::new(device, Arc::clone(&self.host), wanted), companion))
    }

    /// Attaches every function that was described: after crosvm's last fork, since there are threads from here on,
    /// and before capabilities are dropped and vCPUs run.
    ///
    /// # Errors
    /// Of the first that cannot be attached.
    pub fn attach(&self, memory: &GuestMemory) -> anyhow::Result<()> {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        if waiting.is_empty() {
            return Ok(());
        }
        self.share(memory)?;
        for Waiting { host, device, companion } in waiting {
            let function = match companion {
                None => self.host.attach(host, &self.direct, None)?,
                Some(attached) => {
                    let guest = device.address().context("it has no address in the guest")?;
                    let guest = cordon_vmm::PciAddress::new(guest.bus, guest.dev, guest.func)?;
                    let (function, companion) = self.host.attach_with_companion(
                        host,
                        &self.on_demand,
                        None,
                        CompanionConfig::new(guest),
                    )?;
                    let _ = attached.set(companion);
                    function
                }
            };
            info!("{}: attached, function process {}", device.name, function.pid());
            if let Err(error) = device.attached(Arc::clone(&function)) {
                self.host.detach(&function);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Hands all of the VM's RAM over, as the files that it is.
    fn share(&self, memory: &GuestMemory) -> anyhow::Result<()> {
        let mut ends = HashMap::new();
        for region in memory.regions() {
            let end = ends.entry(region.shm.as_raw_descriptor()).or_insert(0);
            *end = region.shm_offset.saturating_add(region.size as u64).max(*end);
        }
        let mut files = HashMap::new();
        for region in memory.regions() {
            let file = region.shm.as_raw_descriptor();
            let shared = match files.get(&file) {
                Some(shared) => Arc::clone(shared),
                None => {
                    let shared = SharedMemory::from_trusted(descriptor(region.shm)?, ends[&file])?;
                    Arc::clone(files.entry(file).or_insert(Arc::new(shared)))
                }
            };
            for container in [&self.direct, &self.on_demand] {
                container.map(GuestRegion {
                    iova: region.guest_addr.0,
                    size: region.size as u64,
                    memory: Arc::clone(&shared),
                    offset: region.shm_offset,
                    writable: true,
                })?;
            }
        }
        Ok(())
    }

    /// Whether a SIGCHLD is no business of crosvm's: `pid` is that of a process of Cordon's, which Cordon
    /// reaps and replaces, and none of crosvm's own children has ended with it. Several children that end at once
    /// are one SIGCHLD, with the pid of one of them, so `own` (crosvm's children by pid, with their labels) are
    /// looked at too; they are not reaped.
    pub fn excuses(&self, pid: u32, own: &BTreeMap<u32, String>) -> bool {
        // A pid of crosvm's own may have been that of a process of ours before.
        if own.contains_key(&pid) {
            return false;
        }
        let Some(name) = self.host.process_name(pid) else { return false };
        if let Some(ended) = children::first_ended(own.keys().copied()) {
            let label = own.get(&ended).map_or("", String::as_str);
            error!("child {label} (pid {ended}) ended together with the {name} (pid {pid})");
            return false;
        }
        info!("the {name} (pid {pid}) ended or was stopped; Cordon looks after it");
        true
    }
}
