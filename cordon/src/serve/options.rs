//! The command line of `cordon serve`.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ipc::PciAddress;

use crate::How;
use crate::faults::FaultOptions;
use crate::target::Named;
use crate::vfio_fds::VfioFds;

/// What is served where.
#[derive(Debug, Args)]
pub(crate) struct ServeOptions {
    /// Where the dext is: sim:PATH for a simulated one, iokit for the real one; sim@NAME:PATH or
    /// iokit@NAME for what it has beneath one root bridge of the host, where addresses are unique. Or vfio:
    /// what Linux has bound to vfio-pci.
    #[arg(long, env = "CORDON_DEXT")]
    pub(super) dext: Option<OsString>,
    #[command(flatten)]
    pub(super) how: How,
    /// A function to serve, or with BB:DD every function of a device; repeat it for several. With vfio: before
    /// it, as in vfio:0000:01:00.0, it is one of Linux's VFIO, and --dext need not be said: all functions of one
    /// server are of one kind.
    #[arg(
        long = "device",
        required_unless_present_any = ["print_capabilities", "config"],
        value_name = "[vfio:]BB:DD[.F]"
    )]
    pub(super) devices: Vec<Named>,
    /// Where to serve it: one for each --device, in the same order.
    #[arg(
        long = "socket",
        visible_alias = "socket-path",
        conflicts_with_all = ["fds", "socket_dir"],
        value_name = "PATH"
    )]
    pub(super) sockets: Vec<PathBuf>,
    /// The number of a descriptor to serve it by, which this program is started with: a Unix stream
    /// socket that listens, or a client; one for each --device, in the same order.
    #[arg(long = "fd", conflicts_with = "socket_dir", value_name = "NUMBER")]
    pub(super) fds: Vec<RawFd>,
    /// Descriptors of Linux's VFIO that this program is started with, so that its device processes need no right
    /// to /dev/vfio: group=N, /dev/vfio/GROUP, with container=M, a /dev/vfio/vfio without a group, for each group;
    /// or device=N, /dev/vfio/devices/NAME, for each function, with iommufd=M, a /dev/iommu that nobody else uses,
    /// once for each group. The second of each may be left out if this user may open it.
    #[arg(long = "vfio-fd", value_name = "NAME=N[,NAME=M]")]
    pub(super) vfio_fds: Vec<VfioFds>,
    /// The descriptor of a /dev/iommu for a group whose functions are named by --vfio-fd device=N without one. Repeat
    /// it for each such group, in their order.
    #[arg(long = "iommufd-fd", value_name = "NUMBER")]
    pub(super) iommufds: Vec<RawFd>,
    /// A TOML file that says what is served, as docs/config.md has it. The command line wins where both say
    /// something; devices of both are served.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Say whether the command line and the config file are right, and start nothing.
    #[arg(long)]
    pub(super) check: bool,
    /// A folder to serve every function in, at a socket of its address, as 01:00.0.sock; its
    /// companion, if there is one, at 01:00.0-companion.sock.
    #[arg(long, value_name = "DIR")]
    pub(super) socket_dir: Option<PathBuf>,
    /// Stop in order when standard input closes, as it does with the end of whoever started this.
    #[arg(long)]
    pub(super) exit_with_stdin: bool,
    /// Stop, with status 69, when every function was given up, although a --control socket could revive them.
    #[arg(long)]
    pub(super) exit_when_given_up: bool,
    /// Say what this program can do, as a JSON object, and do nothing else.
    #[arg(long)]
    pub(super) print_capabilities: bool,
    /// Who maps guest memory for the device; by default direct.
    #[arg(long, value_enum)]
    pub(super) dma: Option<Dma>,
    /// Where to serve the DMA companion of each --device, as a device of its own, in the same
    /// order; needs --dma companion. With --socket-dir it need not be said.
    #[arg(long = "companion-socket", value_name = "PATH")]
    pub(super) companions: Vec<PathBuf>,
    /// Where the guest of each companion has its device, as its driver looks it up.
    #[arg(long = "companion-guest", value_name = "BB:DD.F")]
    pub(super) guests: Vec<PciAddress>,
    /// How guests lay out the entries of a companion's ring; by default packed32.
    #[arg(long, value_enum)]
    pub(super) companion_layout: Option<CompanionLayout>,
    /// Entries that a companion's batch may have, at most 4096; 0 means that many.
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub(super) companion_entries: u32,
    /// Where to take commands: a socket for `cordon ctl` and `cordon inspect --control`.
    #[arg(long, value_name = "PATH")]
    pub(super) control: Option<PathBuf>,
    /// How BARs become windows of the guest's; by default handed, over vfio trapped: there a client that is
    /// handed a window has the whole device.
    #[arg(long, value_enum)]
    pub(super) windows: Option<Windows>,
    /// Refuse guest memory that its VMM could still shorten; not every VMM can seal its.
    #[arg(long)]
    pub(super) sealed_memory: bool,
    /// Keep a standby for each function process, which takes over within a millisecond.
    #[arg(long)]
    pub(super) standby: bool,
    #[command(flatten)]
    pub(super) faults: FaultOptions,
    /// Print events as JSON lines.
    #[arg(long)]
    pub(super) json: bool,
    /// Write every event, with its time and number, as JSON lines to a file or to an inherited
    /// descriptor: FD:3. See docs/events.md.
    #[arg(long, value_name = "FILE|FD:N")]
    pub(super) events: Option<OsString>,
    /// Keep reports of the last 16 deaths of device processes in this folder, which is made if it is not
    /// there: crash-00.json to crash-15.json, for cordon report.
    #[arg(long, value_name = "FOLDER")]
    pub(super) crash_reports: Option<PathBuf>,
    /// Linux, as root: the user that this program and its device processes end up as, by number. By
    /// default 2000000000 and the process id: a user that nobody has.
    #[arg(long, value_name = "NUMBER")]
    pub(super) uid: Option<u32>,
    /// The group, by number; by default the number of the user.
    #[arg(long, value_name = "NUMBER")]
    pub(super) gid: Option<u32>,
    /// Who may connect to the sockets, in octal: as the mode of a file; by default 600.
    #[arg(long, value_name = "MODE", value_parser = mode)]
    pub(super) socket_mode: Option<u32>,
    /// The group of the sockets, by number; by default that of whoever starts this.
    #[arg(long, value_name = "NUMBER")]
    pub(super) socket_group: Option<u32>,
}

impl ServeOptions {
    /// An option by which something is known by the number of a descriptor, if there is one.
    pub(super) fn by_number(&self) -> Option<&'static str> {
        let events = self.events.as_ref().and_then(|events| events.to_str());
        let said = [
            (!self.fds.is_empty(), "--fd"),
            (!self.vfio_fds.is_empty(), "--vfio-fd"),
            (!self.iommufds.is_empty(), "--iommufd-fd"),
            (events.is_some_and(|events| events.starts_with("FD:")), "--events FD:N"),
        ];
        said.into_iter().find(|(is_said, _)| *is_said).map(|(_, option)| option)
    }
}

/// Permission bits in octal.
pub(super) fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).map_err(|error| error.to_string())?;
    if mode > 0o777 { Err("000 to 777 is expected".to_owned()) } else { Ok(mode) }
}

/// Who maps guest memory for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Dma {
    /// All of it is mapped as the client announces it; needs bus addresses equal to guest ones.
    Direct,
    /// Only what the guest maps through the companion.
    Companion,
}

/// How BARs become windows of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Windows {
    /// The connection process hands their memory on.
    Handed,
    /// This program maps them by a connection of its own to the dext, with all its powers.
    OwnConnection,
    /// There are no windows: every access is trapped.
    Trapped,
}

/// How the entries of a companion's ring are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum CompanionLayout {
    /// 32-bit lengths, as the reference series has them.
    Packed32,
    /// 64-bit lengths.
    Packed64,
}
