//! `cordon serve` on macOS: not confined. Its children inherit a port of its own, which no socket can
//! carry, so nothing else can start them; and a process that may start them may run any program.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use cordon_cli::confinement::{Confinement, Layer};
use cordon_vmm::HostConfig;
use ipc::{PciAddress, SocketFile, SocketFileError};

use crate::Failure;
use crate::serve::Plan;

/// The command that this program is run with to be a spawner, where there is one.
pub(crate) const SPAWNER: &str = "spawner";

/// See the module.
pub(crate) struct Confined {
    confinement: Confinement,
    access: ipc::socket_file::Access,
}

impl Confined {
    /// Says that nothing holds.
    pub(crate) fn begin(plan: &Plan<'_>) -> Result<Self, Failure> {
        if plan.uid.is_some() || plan.gid.is_some() {
            return Err("--uid and --gid are for Linux".into());
        }
        let missing = Layer {
            name: sandbox_profiles::Layer::Seatbelt.to_string(),
            state: "MISSING".to_owned(),
            detail:
                "on macOS this program is not confined, only its device processes are: run it as a \
                     user of its own"
                    .to_owned(),
        };
        let (process, layers) = (std::process::id(), vec![missing]);
        let confinement = Confinement { process, spawner: None, layers, syscalls: 0 };
        Ok(Self { confinement, access: plan.access })
    }

    /// What holds.
    pub(crate) fn confinement(&self) -> &Confinement {
        &self.confinement
    }

    /// This process starts its own.
    pub(crate) fn launch(&self, config: HostConfig) -> HostConfig {
        config
    }

    /// Listens at a path.
    pub(crate) fn listen(&self, path: &Path) -> Result<SocketFile, SocketFileError> {
        SocketFile::listen_for(path, self.access)
    }

    /// Refuses: macOS runs no program by a descriptor.
    pub(crate) fn add_program(&self, _: BorrowedFd<'_>) -> Result<Option<PathBuf>, String> {
        Err("macOS runs no program by a descriptor, so none can be given to a server".to_owned())
    }

    /// No.
    pub(crate) fn takes_programs(&self) -> bool {
        false
    }

    /// There is none.
    pub(crate) fn forget_program(&self, _: &Path) {}

    /// Never.
    pub(crate) fn lost(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Kills every child, whatever it does.
    pub(crate) fn kill_children(&self) {
        super::kill_children();
    }

    /// There is nothing to end.
    pub(crate) fn finish(&self) {}
}

/// There is none.
pub(crate) fn spawner() -> Result<(), Failure> {
    Err("there is no spawner on macOS".into())
}

/// There is none.
pub(crate) fn with_spawner(_: HostConfig, _: &[PciAddress]) -> Result<HostConfig, Failure> {
    Err("--spawner is for Linux".into())
}
