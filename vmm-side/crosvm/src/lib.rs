//! Cordon's passed-through functions as PCI devices of crosvm.
//!
//! A crosvm tree makes a [`Cordon`] for its VM, has it [`create`](Cordon::create) a [`FunctionDevice`] for each
//! function while it creates its devices, and [`attach`](Cordon::attach) them once it has forked its last jailed
//! device. What a guest sees of a function is `cordon_pci`'s model; this package connects that to crosvm's buses,
//! IRQ tubes and memory tubes. README.md says which lines a tree adds, and where.
//!
//! | module | what |
//! | --- | --- |
//! | `cordon` | the functions of a VM, guest memory, whose child ended |
//! | `function` | [`PciDevice`](devices::PciDevice) for a function |
//! | `companion` | the same for its companion |
//! | `guest` | what the guest sees of a function, shared by vCPUs and the thread of its interrupts |
//! | `interrupts` | MSI and MSI-X by GSIs, INTx by its level |
//! | `windows` | BARs that the guest has as memory |
//! | `bars` | BARs on crosvm's bus |
//! | `children` | children of crosvm's that ended unnoticed |
//! | [`options`] | the command line, and what is refused |
//!
//! All of it runs in crosvm's main process. It distrusts the guest, whose every config write goes through the
//! permission table, and the processes below it, as `cordon_vmm` does. A function process that dies is replaced and
//! nothing is seen of that here; a device that is away reads all ones, and its windows do at the addresses that the
//! hypervisor was given.
//!
//! # Methods of `PciDevice` that are not implemented
//!
//! | method | why its default is right |
//! | --- | --- |
//! | `allocate_device_bars` | a BAR can be a window in parts; all are allocated by `allocate_io_bars`, and windows registered where the guest puts them |
//! | `register_device_capabilities` | the capabilities are the device's, in its config space |
//! | `get_vm_memory_client` | asked for ioevents, of which there are none: a doorbell is a store to a window |
//! | `setup_pci_config_mapping` | parts of config space are the device's, which nobody may read ahead |
//! | `read_virtual_config_register`, `write_virtual_config_register` | for the power management of VFIO's devices by ACPI methods, of which there are none |
//! | `on_device_sandboxed` | called before the last fork; [`Cordon::attach`] is what comes later |
//! | `generate_acpi`, `generate_acpi_methods`, `set_gpe` | it has no ACPI objects |
//! | `get_removed_children_devices`, `get_new_pci_bus`, `configure_bridge_window`, `set_subordinate_bus` | it is no bridge |
//! | `supports_iommu`, `set_iommu` | no virtio-iommu is in front of it: a companion maps, or everything is mapped |
//! | `as_virtio_pci_device` | it is none |
//!
//! `keep_rds` is empty: no descriptor must outlive a jailing, since the device itself is never jailed. A companion
//! has in addition no `assign_irq`, since it interrupts nobody.

mod bars;
mod children;
mod companion;
mod cordon;
mod function;
mod guest;
mod interrupts;
pub mod options;
mod windows;

pub use companion::CompanionDevice;
pub use cordon::{Cordon, Tubes};
pub use cordon_vmm::{HostConfig, Recovery};
pub use function::FunctionDevice;
