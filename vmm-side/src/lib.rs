//! What a VMM links to pass PCI functions through Cordon's confined processes.
//!
//! | module | what |
//! | --- | --- |
//! | [`device`] | [`PassthroughDevice`], the trait that VMM authors see |
//! | [`error`] | [`DeviceError`]: a plain kind, a code, a line of text |
//! | [`host`] | attach and detach: processes started, claim taken, everything undone in reverse |
//! | [`function`] | an attached function and the process that serves it, replaced when it dies |
//! | [`container`] | guest memory and DMA of the functions of one guest |
//! | [`companion`] | the DMA companion device |
//! | [`connection`] | the VMM side of a connection process |
//! | [`child`] | a child process: its calls, its death |
//! | [`kept`] | devices that go on when the VMM is killed, and the keeper that holds them meanwhile |
//! | [`observer`] | what happens to processes, told to whoever embeds this |
//! | [`recovery`] | whether and how dead processes are replaced |
//! | `spawner` | Linux: starts the processes of a VMM side that confines itself |
//! | [`faults`] | faults on purpose, as data |
//! | [`listing`] | what the dext offers, read by a confined process |
//! | [`supervisor`] | a child that is looked after and not replaced |
//! | `diagnosis` | Linux: whether children can be started and confined here, each thing tried |
//! | [`text`] | text of a distrusted process, fit for people |
//!
//! Everything here runs in the VMM. It distrusts every process below it: what they send is
//! checked, what they do not answer in time ends them, and their death is a value
//! ([`ErrorKind::Gone`]) that reads as all ones.
//!
//! Calls are made on the caller's own thread, so vCPU threads call straight into the tube of the process
//! that serves them; one thread for each function and one for each device look after processes and are
//! on the way of no request. The lines that they log go through `tracing`, and through `log` for a VMM
//! that uses that.
//!
//! ```no_run
//! use std::sync::Arc;
//! use cordon_vmm::{Container, DmaMode, Host, HostConfig, PassthroughDevice as _};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let host = Host::new(HostConfig::new("/usr/libexec/device-proc", "iokit"));
//! let container = Arc::new(Container::new(DmaMode::Companion));
//! let function = host.attach("01:00.0".parse()?, &container, None)?;
//! let mut ids = [0; 4];
//! function.config_read(0, &mut ids)?;
//! host.detach(&function);
//! # Ok(())
//! # }
//! ```

pub mod child;
pub mod companion;
pub mod connection;
pub mod container;
pub mod device;
#[cfg(target_os = "linux")]
pub mod diagnosis;
pub mod error;
pub mod faults;
pub mod function;
pub mod host;
mod keeper;
pub mod kept;
pub mod limits;
pub mod listing;
mod memory;
pub mod observer;
pub mod recovery;
#[cfg(target_os = "linux")]
pub mod spawner;
pub mod supervisor;
mod sys;
pub mod tally;
pub mod text;
mod window_check;
mod windows;

pub use child::Deadlines;
pub use companion::{Companion, CompanionConfig};
pub use container::{Container, DmaMode, GuestRegion};
pub use device::PassthroughDevice;
/// Where a dext is, as [`HostConfig`] is told in text.
pub use dext_client::Endpoint;
pub use error::{DeviceError, ErrorKind};
pub use function::{Function, Presence};
pub use function::{UpgradeError, Upgraded};
pub use host::{
    AttachError, Host, HostConfig, HostUpgradeError, VfioGroup, VfioGroupError, WindowRoute,
};
// What the interface is made of, so that a VMM needs no other crate.
pub use ipc::event::Signaller;
pub use ipc::wire::common::{BarInfo, Identity, MsixInfo};
pub use ipc::wire::connection::DmaStatistics;
pub use ipc::wire::dext::IoReturn;
pub use ipc::wire::function::{Access, InterruptIndex, Layout, Space, Statistics};
// What a mapping of memory allows; `Access` is one of a device.
pub use ipc::Access as MemoryAccess;
pub use ipc::wire::sandbox::{Layer, LayerKind, LayerState, SandboxReport};
pub use ipc::{Deadline, Event, PciAddress, SharedMemory, Window};
pub use observer::{Happening, Observer};
pub use recovery::Recovery;
