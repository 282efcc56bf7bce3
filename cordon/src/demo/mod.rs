//! `cordon demo`: a simulated device with two functions, driven end to end as a VMM would.
//!
//! Each step either holds or ends the demo with one line and exit status 1. Every wait has a
//! deadline, so nothing that is killed meanwhile hangs it.

mod companion;
#[cfg(target_os = "linux")]
mod group;
mod steps;
mod summary;
#[cfg(target_os = "linux")]
mod vfio;

use std::path::PathBuf;

use clap::Args;
use console::exit;
use cordon_vmm::faults::GRAMMAR;

use crate::Failure;
use crate::rig::RigOptions;

/// What the demo is told.
#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// Use this disk image for the NVMe function, and prove that what is read through the device
    /// equals the file. What is written back is what was read: the file does not change.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Drive a real function instead, which Linux has bound to vfio-pci: an NVMe controller, WHOSE DISK IS
    /// OVERWRITTEN, or QEMU's edu device. Given twice, two NVMe controllers of one guest, as of one IOMMU group.
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "SSSS:BB:DD.F", conflicts_with = "image")]
    vfio: Vec<ipc::PciAddress>,
    /// With --vfio: descriptors that this program is started with, so that it opens none of VFIO's: group=N,
    /// /dev/vfio/GROUP, with container=M, a /dev/vfio/vfio without a group; or device=N, /dev/vfio/devices/NAME,
    /// with iommufd=M, a /dev/iommu that nobody else uses. Repeat it for a second group or function.
    #[cfg(target_os = "linux")]
    #[arg(long = "vfio-fd", value_name = "NAME=N[,NAME=M]", requires = "vfio")]
    vfio_fds: Vec<crate::vfio_fds::VfioFds>,
    /// With --vfio: how often its function process is killed under I/O.
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "NUMBER", requires = "vfio", default_value_t = 20)]
    kills: u32,
    /// Print JSON lines instead of text; the last one sums up.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    rig: RigOptions,
    /// The sandbox-probe program; by default the one beside this program.
    #[arg(
        long,
        env = "CORDON_SANDBOX_PROBE",
        value_name = "FILE",
        help_heading = "Device processes"
    )]
    sandbox_probe: Option<PathBuf>,
}

/// What comes after the options of `--help`.
pub(crate) fn help() -> String {
    format!(
        "The demo kills processes by itself. Faults of your own strike under the\n\
         same devices by 'cordon torture --fault FAULT', and under your VMM by\n\
         'cordon serve --fault FAULT'.\n\n{GRAMMAR}\n\n{}",
        exit::HELP
    )
}

/// Runs the demo.
pub(crate) fn run(options: &DemoOptions) -> Result<(), Failure> {
    steps::run(options)
}
