//! The layers of confinement, of every system.

use std::fmt;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
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

impl fmt::Display for Layer {
    /// Its name for people.
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
