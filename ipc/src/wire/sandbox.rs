//! What was really enforced, as it travels up in the ready message.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One layer of confinement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Which.
    pub kind: LayerKind,
    /// Whether it holds.
    pub state: LayerState,
}

/// What a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LayerKind {
    /// No descriptor is open but those that are expected.
    Descriptors,
    /// A user namespace of its own, made by the VMM side.
    UserNamespace,
    /// It sees no other process.
    PidNamespace,
    /// A control group of its own, which bounds its memory.
    ControlGroup,
    /// Its own mounts.
    MountNamespace,
    /// No network.
    NetworkNamespace,
    /// No System V or POSIX IPC of others.
    IpcNamespace,
    /// Its own host name.
    UtsNamespace,
    /// An empty, read-only root folder.
    EmptyRoot,
    /// Descriptors, files and processes are bounded.
    ResourceLimits,
    /// A budget of addresses.
    AddressSpace,
    /// None, not even in the bounding set.
    Capabilities,
    /// None to be had by exec.
    NoNewPrivileges,
    /// No debugger, no core dump.
    NotDumpable,
    /// It ends with its VMM.
    DeathWithParent,
    /// No file, no network, no signal or socket outside.
    Landlock,
    /// A list of system calls, any other kills.
    Seccomp,
    /// Its role's profile (macOS).
    Seatbelt,
    /// It is a process at all: a thread of its VMM, in tests, is not. Of a server, that it had one thread
    /// when all this was done to it.
    Process,
    /// A user who owns nothing, and is not root.
    UnprivilegedUser,
}

impl fmt::Display for LayerKind {
    /// Its name for people and in JSON: "user namespace".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Descriptors => "descriptors",
            Self::UserNamespace => "user namespace",
            Self::PidNamespace => "pid namespace",
            Self::ControlGroup => "control group",
            Self::MountNamespace => "mount namespace",
            Self::NetworkNamespace => "network namespace",
            Self::IpcNamespace => "ipc namespace",
            Self::UtsNamespace => "uts namespace",
            Self::EmptyRoot => "empty root",
            Self::ResourceLimits => "resource limits",
            Self::AddressSpace => "address space",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivileges => "no new privileges",
            Self::NotDumpable => "not dumpable",
            Self::DeathWithParent => "death with parent",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Seatbelt => "seatbelt",
            Self::Process => "process",
            Self::UnprivilegedUser => "unprivileged user",
        })
    }
}

/// Whether a layer holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerState {
    /// In force, with what there is to say of it.
    Enforced(String),
    /// In force as far as this kernel knows it; says what is lacking.
    Partial(String),
    /// Not in force; says why.
    Missing(String),
}

/// The confinement of one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxReport {
    /// Every layer of the policy, in the order of application.
    pub layers: Vec<Layer>,
    /// System calls that the process may still make.
    pub syscalls: u32,
}

impl SandboxReport {
    /// Whether the same layers are in force, as far as in `other`; what they say of themselves, as how much
    /// is in use, may differ.
    #[must_use]
    pub fn is_as(&self, other: &Self) -> bool {
        let layer = |one: &Layer| (one.kind, std::mem::discriminant(&one.state));
        self.syscalls == other.syscalls
            && self.layers.iter().map(layer).eq(other.layers.iter().map(layer))
    }
}
