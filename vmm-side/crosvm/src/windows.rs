//! The parts of BARs that the guest has as memory, and where.
//!
//! Each is mapped into this process once, and its address is given to the hypervisor: while the device is away
//! there are ones at that address, and its memory again when it is back, so that nothing of the VM changes
//! then. A window that is given as a descriptor would go on showing the memory of a device that is dead.

use std::sync::Arc;

use base::{Protection, error};
use cordon_pci::bar::BAR_COUNT;
use cordon_vmm::device::GuestWindow;
use hypervisor::MemCacheType;
use vm_control::api::VmMemoryClient;
use vm_control::{VmMemoryDestination, VmMemoryRegionId, VmMemorySource};

/// The windows of one function.
pub(crate) struct Windows {
    client: VmMemoryClient,
    all: Vec<Arc<GuestWindow>>,
    /// For each BAR where it is, and what the hypervisor calls its windows.
    placed: [Option<Placed>; BAR_COUNT],
}

struct Placed {
    address: u64,
    regions: Vec<VmMemoryRegionId>,
}

impl Windows {
    /// None yet. `client` is of a tube whose peer is this process (`remote_peer: false`).
    pub(crate) fn new(client: VmMemoryClient) -> Self {
        Self { client, all: Vec::new(), placed: Default::default() }
    }

    /// The function is attached.
    pub(crate) fn set(&mut self, all: Vec<Arc<GuestWindow>>) {
        self.all = all;
    }

    /// Has each BAR where `wanted` says, and takes away what is elsewhere before anything is added: BARs may
    /// change places.
    pub(crate) fn place(&mut self, wanted: [Option<u64>; BAR_COUNT]) {
        for (placed, wanted) in self.placed.iter_mut().zip(wanted) {
            let Some(old) = placed.take_if(|old| Some(old.address) != wanted) else { continue };
            for region in old.regions {
                if let Err(error) = self.client.unregister_memory(region) {
                    error!("cordon: a window at {:#x} stays: {error:#}", old.address);
                }
            }
        }
        for (number, wanted) in wanted.into_iter().enumerate() {
            let (Some(address), None) = (wanted, &self.placed[number]) else { continue };
            let regions = self.add(number, address);
            self.placed[number] = Some(Placed { address, regions });
        }
    }

    /// Where a window cannot be had its accesses are trapped.
    fn add(&self, number: usize, address: u64) -> Vec<VmMemoryRegionId> {
        let windows = self.all.iter().filter(|window| usize::from(window.bar) == number);
        let regions = windows.filter_map(|window| {
            let (ptr, size) = (window.window().address() as u64, window.window().length() as u64);
            let at = address.checked_add(window.offset)?;
            let registered = self.client.register_memory(
                VmMemorySource::ExternalMapping { ptr, size },
                VmMemoryDestination::GuestPhysicalAddress(at),
                Protection::read_write(),
                MemCacheType::CacheCoherent,
            );
            let no_window =
                |error| error!("cordon: no window of BAR {number} at {at:#x}: {error:#}");
            registered.map_err(no_window).ok()
        });
        regions.collect()
    }
}
