//! The command line of `cordon serve`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use cordon_vmm::companion::Layout;
use cordon_vmm::{CompanionConfig, DmaMode, HostConfig, WindowRoute};
use ipc::PciAddress;

use crate::faults::FaultOptions;
use crate::{Common, Failure};

/// What is served where.
#[derive(Debug, Args)]
pub(crate) struct ServeOptions {
    #[command(flatten)]
    common: Common,
    /// A function to serve; repeat it for several, with one --socket each, in the same order.
    #[arg(long = "device", required = true, value_name = "BB:DD.F")]
    pub(super) devices: Vec<PciAddress>,
    /// Where to serve it.
    #[arg(long = "socket", required = true, value_name = "PATH")]
    pub(super) sockets: Vec<PathBuf>,
    /// Who maps guest memory for the device.
    #[arg(long, value_enum, default_value_t = Dma::Direct)]
    dma: Dma,
    /// Where to serve the DMA companion of each --device, as a device of its own, in the same
    /// order; needs --dma companion.
    #[arg(long = "companion-socket", value_name = "PATH")]
    pub(super) companions: Vec<PathBuf>,
    /// Where the guest of each --companion-socket has its device, as its driver looks it up.
    #[arg(long = "companion-guest", value_name = "BB:DD.F")]
    guests: Vec<PciAddress>,
    /// How guests lay out the entries of a companion's ring.
    #[arg(long, value_enum, default_value_t = CompanionLayout::Packed32)]
    companion_layout: CompanionLayout,
    /// Entries that a companion's batch may have, at most 4096; 0 means that many.
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    companion_entries: u32,
    /// Where `cordon inspect --control` may ask what is served.
    #[arg(long, value_name = "PATH")]
    pub(super) control: Option<PathBuf>,
    /// How BARs become windows of the guest's.
    #[arg(long, value_enum, default_value_t = Windows::Handed)]
    windows: Windows,
    /// Refuse guest memory that its VMM could still shorten; not every VMM can seal its.
    #[arg(long)]
    sealed_memory: bool,
    /// Keep a standby for each function process, which takes over within a millisecond.
    #[arg(long)]
    standby: bool,
    #[command(flatten)]
    faults: FaultOptions,
    /// Print events as JSON lines.
    #[arg(long)]
    pub(super) json: bool,
}

/// Who maps guest memory for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dma {
    /// All of it is mapped as the client announces it; needs bus addresses equal to guest ones.
    Direct,
    /// Nothing is mapped by itself.
    Companion,
}

/// How BARs become windows of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Windows {
    /// The connection process hands their memory on.
    Handed,
    /// This program maps them by a connection of its own to the dext, with all its powers.
    OwnConnection,
    /// They do not: every access is trapped.
    Trapped,
}

/// How the entries of a companion's ring are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CompanionLayout {
    /// 32-bit lengths, as the reference series has them.
    Packed32,
    /// 64-bit lengths.
    Packed64,
}

impl ServeOptions {
    /// One of each that belongs to a device.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let (devices, sockets) = (self.devices.len(), self.sockets.len());
        if devices != sockets {
            return Err(format!("{devices} --device but {sockets} --socket: one each").into());
        }
        let (companions, guests) = (self.companions.len(), self.guests.len());
        if companions > 0 && (companions, guests) != (devices, devices) {
            let said = format!(
                "{devices} --device, {companions} --companion-socket, {guests} --companion-guest: \
                 one each"
            );
            return Err(said.into());
        }
        if companions > 0 && self.dma == Dma::Direct {
            return Err("--companion-socket needs --dma companion".into());
        }
        Ok(())
    }

    pub(super) fn config(&self) -> Result<HostConfig, Failure> {
        let mut config = self.common.config()?;
        config.recovery.standby = self.standby;
        config.windows = match self.windows {
            Windows::Handed => WindowRoute::Handed,
            Windows::OwnConnection => WindowRoute::OwnConnection,
            Windows::Trapped => WindowRoute::Trapped,
        };
        config.faults = if self.faults.any() { Some(self.faults.arm()?) } else { None };
        Ok(config)
    }

    /// How each function is served: every server, of a function or a companion, has an equal share
    /// of the descriptors that this process may have.
    pub(super) fn how(&self) -> cordon_vfio_user::Options {
        let servers = u64::try_from(self.sockets.len() + self.companions.len()).unwrap_or(u64::MAX);
        let share = crate::limits::descriptors() / servers.max(1);
        // Events have limits of their own here, which count them by what they are.
        let budget = cordon_vfio_user::Budget {
            reports: u32::MAX,
            ..cordon_vfio_user::Budget::within(share)
        };
        cordon_vfio_user::Options { sealed_memory: self.sealed_memory, budget }
    }

    /// Who maps guest memory.
    pub(super) fn dma_mode(&self) -> DmaMode {
        match self.dma {
            Dma::Direct => DmaMode::Direct,
            Dma::Companion => DmaMode::Companion,
        }
    }

    /// The companion of the function at this place of the command line.
    pub(super) fn companion(&self, at: usize) -> Option<CompanionConfig> {
        let layout = match self.companion_layout {
            CompanionLayout::Packed32 => Layout::Packed32,
            CompanionLayout::Packed64 => Layout::Packed64,
        };
        let max_entries = self.companion_entries;
        self.guests.get(at).map(|guest| CompanionConfig { guest: *guest, layout, max_entries })
    }
}
