//! The command line of `device-proc`, written by the VMM side and by nobody else.

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
pub use dext_client::Endpoint;
use ipc::PciAddress;

/// One confined process of Cordon. Started by the VMM side, of no use by hand.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Options {
    /// Which process.
    #[command(subcommand)]
    pub role: RoleOptions,
}

/// Which process, and for what.
#[derive(Debug, Subcommand)]
pub enum RoleOptions {
    /// Hold the claim, the DMA registrations and the BAR windows of one device.
    Connection {
        /// Any function of the device.
        #[arg(long)]
        address: PciAddress,
        /// What becomes of the BARs.
        #[arg(long, value_enum, default_value_t = Windows::Handed)]
        windows: Windows,
        /// What all roles share.
        #[command(flatten)]
        common: Common,
    },
    /// Serve one function.
    Function {
        /// The function.
        #[arg(long)]
        address: PciAddress,
        /// Leave the interrupts to the process that serves the function now, and take over later.
        #[arg(long)]
        standby: bool,
        /// What all roles share.
        #[command(flatten)]
        common: Common,
    },
    /// Say how this program would be confined, and exit.
    Doctor {
        /// Confine this very process as a role, and ask the system what it would be allowed.
        #[arg(long, value_name = "ROLE")]
        confine: Option<String>,
    },
    /// Report what the dext offers.
    Lister {
        /// What all roles share.
        #[command(flatten)]
        common: Common,
    },
}

/// What all roles share.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Where the dext is: sim:PATH for a simulated one, iokit for the real one.
    #[arg(long, value_parser = endpoint())]
    pub dext: Endpoint,
    /// Refuse to start without a layer of the sandbox, or report it.
    #[arg(long, value_enum, default_value_t = Sandbox::Strict)]
    pub sandbox: Sandbox,
    /// The inherited descriptor of the tube.
    #[arg(long, default_value_t = 3)]
    pub tube_fd: i32,
    /// Do wrong when the VMM side says so: for tests of whoever must survive it.
    #[arg(long)]
    pub misbehave: bool,
}

/// Any path, not only one that is text.
fn endpoint() -> impl TypedValueParser<Value = Endpoint> {
    OsStringValueParser::new().try_map(|text| Endpoint::try_from(text.as_os_str()))
}

/// What becomes of the BARs that a guest may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Windows {
    /// Their memory is handed to the VMM.
    Handed,
    /// They are described, and the VMM maps them by a connection of its own.
    Described,
    /// None is a window: every access is trapped.
    Trapped,
}

/// What to do about a missing layer of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sandbox {
    /// Refuse to start.
    Strict,
    /// Report it and go on.
    Relaxed,
}

impl From<Sandbox> for sandbox_profiles::Mode {
    fn from(sandbox: Sandbox) -> Self {
        match sandbox {
            Sandbox::Strict => Self::Strict,
            Sandbox::Relaxed => Self::Relaxed,
        }
    }
}
