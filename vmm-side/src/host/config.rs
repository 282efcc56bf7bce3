//! How a host's processes are started.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipc::PciAddress;
use ipc::wire::spawn::Grant;

use super::vfio_group::VfioGroup;
use crate::child::launch::Processes;
use crate::child::{Children, Deadlines, Handed, Launch, Spec};
use crate::faults::Faults;
use crate::kept::Store;
use crate::observer::Observer;
use crate::recovery::Recovery;

/// How BARs become windows of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowRoute {
    /// The connection process hands their memory on: a descriptor, or on macOS a memory entry.
    Handed,
    /// The VMM maps them by an unclaimed connection of its own. That gives the VMM the dext's full
    /// powers, against the split; for platforms where handing on does not work.
    OwnConnection,
    /// They do not: every access is trapped.
    Trapped,
}

impl WindowRoute {
    /// As a connection process is told.
    fn argument(self) -> &'static str {
        match self {
            Self::Handed => "handed",
            Self::OwnConnection => "described",
            Self::Trapped => "trapped",
        }
    }
}

/// How a host's processes are started. Made by [`HostConfig::new`] and changed by the methods that
/// begin with `with_`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HostConfig {
    /// The `device-proc` program.
    pub device_proc: PathBuf,
    /// Where functions come from: the dext at `sim:PATH` or `iokit`, or what it has beneath one root bridge,
    /// `sim@NAME:PATH` or `iokit@NAME`; or `vfio`, Linux's VFIO.
    pub dext: OsString,
    /// Refuse to start a process without a layer of its sandbox: the default.
    pub strict: bool,
    /// Whether trapped accesses go by the lane, which is fast where whoever asks and whoever serves have a
    /// processor each: by default where the machine has two.
    pub lane: bool,
    /// How long things may take.
    pub deadlines: Deadlines,
    /// Whether and how a dead process is replaced: by default it is.
    pub recovery: Recovery,
    /// How BARs become windows of the guest's: handed on by default.
    pub windows: WindowRoute,
    /// macOS: the profile with which sandbox-exec starts every process, confined from its first
    /// instruction, instead of each confining itself with a tighter one.
    pub sandbox_exec: Option<PathBuf>,
    /// What is to go wrong, for tests of whoever must survive it. With faults, functions and devices are
    /// served by `faulty-device-proc` from the folder of [`HostConfig::device_proc`].
    pub faults: Option<Arc<Faults>>,
    /// Who is told what happens to the processes of functions and devices: nobody by default.
    pub observer: Option<Observer>,
    /// How children are started: as processes, unless a test puts something else in their place.
    pub launch: Arc<dyn Launch>,
    /// IOMMU groups whose files a manager opened (Linux's VFIO): none by default, and then connection processes open
    /// them.
    pub vfio_groups: Vec<Arc<VfioGroup>>,
    /// Who keeps devices for a next instance of this VMM, if it is killed (Linux's VFIO): nobody by default.
    pub store: Option<Arc<Store>>,
    /// The processes that were started.
    pub(crate) children: Arc<Children>,
}

impl HostConfig {
    /// Processes of the `device-proc` program, confined, over the dext at `dext`: `iokit`, or
    /// `sim:PATH` for a simulated one; or over `vfio`, the functions that Linux has bound to vfio-pci.
    #[must_use]
    pub fn new(device_proc: impl Into<PathBuf>, dext: impl Into<OsString>) -> Self {
        Self {
            device_proc: device_proc.into(),
            dext: dext.into(),
            strict: true,
            lane: ipc::spin::has_processors_for(2),
            deadlines: Deadlines::default(),
            recovery: Recovery::default(),
            windows: WindowRoute::Handed,
            sandbox_exec: None,
            faults: None,
            observer: None,
            launch: Arc::new(Processes),
            vfio_groups: Vec::new(),
            store: None,
            children: Arc::default(),
        }
    }

    /// Whether trapped accesses go by the lane.
    #[must_use]
    pub fn with_lane(mut self, lane: bool) -> Self {
        self.lane = lane;
        self
    }

    /// Whether to refuse a process without a layer of its sandbox.
    #[must_use]
    pub fn with_strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// With other deadlines.
    #[must_use]
    pub fn with_deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// With another way to deal with dead processes.
    #[must_use]
    pub fn with_recovery(mut self, recovery: Recovery) -> Self {
        self.recovery = recovery;
        self
    }

    /// With another route of windows.
    #[must_use]
    pub fn with_windows(mut self, windows: WindowRoute) -> Self {
        self.windows = windows;
        self
    }

    /// macOS: with sandbox-exec and this profile.
    #[must_use]
    pub fn with_sandbox_exec(mut self, profile: Option<PathBuf>) -> Self {
        self.sandbox_exec = profile;
        self
    }

    /// With faults.
    #[must_use]
    pub fn with_faults(mut self, faults: Option<Arc<Faults>>) -> Self {
        self.faults = faults;
        self
    }

    /// With an observer.
    #[must_use]
    pub fn with_observer(mut self, observer: Option<Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// With something else than processes.
    #[must_use]
    pub fn with_launch(mut self, launch: Arc<dyn Launch>) -> Self {
        self.launch = launch;
        self
    }

    /// With an IOMMU group whose files a manager opened: connection processes of its functions use them, and open none
    /// of it. What they need besides is the right to open `/dev/vfio/vfio`, unless a container was handed too.
    #[must_use]
    pub fn with_vfio_group(mut self, group: VfioGroup) -> Self {
        self.vfio_groups.push(Arc::new(group));
        self
    }

    /// With a store that a keeper has: over VFIO, devices go on when this process is killed, and functions that an
    /// instance before this one left are attached as they are ([`kept`](crate::kept)). Devices that outlive their
    /// connection process only do, so not where [`Recovery`] is off.
    #[must_use]
    pub fn with_store(mut self, store: Option<Arc<Store>>) -> Self {
        self.store = store;
        self
    }

    /// How a process for `address` is started; without one, for the whole dext.
    #[must_use]
    pub fn spec(&self, address: Option<PciAddress>) -> Spec {
        let mode = if self.strict { "strict" } else { "relaxed" };
        let mut arguments = vec![joined("--dext=", &self.dext), format!("--sandbox={mode}").into()];
        arguments.extend(address.map(|address| format!("--address={address}").into()));
        let program = self.program(address.is_some());
        let (program, before) = match &self.sandbox_exec {
            None => (program, Vec::new()),
            Some(profile) => launched(profile, &program),
        };
        Spec {
            launch: Arc::clone(&self.launch),
            children: Arc::clone(&self.children),
            program,
            before,
            arguments,
            strict: self.strict,
            lane: self.lane,
            subject: address
                .map_or_else(|| self.source().to_owned(), |address| address.to_string()),
            deadlines: self.deadlines,
            expendable: false,
            faults: self.faults.clone(),
            address,
            observer: self.observer.clone(),
            handed: self.is_vfio().then(Handed::default),
            adopted: None,
            group: None,
            store: None,
        }
    }

    /// Who offers functions, for people.
    pub(super) fn source(&self) -> &'static str {
        if self.is_vfio() { "VFIO" } else { "the dext" }
    }

    /// Whether functions are Linux's VFIO's.
    pub(super) fn is_vfio(&self) -> bool {
        self.dext == "vfio"
    }

    /// What a spawner is given that starts the processes of these functions, and no sockets. Set
    /// [`HostConfig::launch`] to that spawner then.
    #[must_use]
    pub fn grant(&self, devices: &[PciAddress]) -> Grant {
        use std::os::unix::ffi::OsStrExt as _;
        Grant {
            program: self.program(true).as_os_str().as_bytes().to_vec(),
            dext: self.dext.as_bytes().to_vec(),
            strict: self.strict,
            windows: self.windows.argument().to_owned(),
            devices: devices.to_vec(),
            sockets: Vec::new(),
            socket_mode: ipc::socket_file::Access::default().mode,
            socket_group: None,
            user: None,
            programs: false,
        }
    }

    /// The program that processes of functions and devices run: [`HostConfig::device_proc`], or the one beside it where
    /// there is a fault plan.
    #[must_use]
    pub fn program_of_functions(&self) -> PathBuf {
        self.program(true)
    }

    /// The program of a process, for one function or for the whole dext.
    fn program(&self, of_function: bool) -> PathBuf {
        // What only the process itself can do wrong is done by a program of its own.
        if of_function && self.faults.is_some() {
            self.device_proc.with_file_name("faulty-device-proc")
        } else {
            self.device_proc.clone()
        }
    }

    pub(super) fn connection_spec(&self, address: PciAddress) -> Spec {
        let mut spec = self.spec(Some(address));
        spec.arguments.push(format!("--windows={}", self.windows.argument()).into());
        spec.group = self.vfio_groups.iter().find(|group| group.has(address)).cloned();
        spec.store = self.store.clone().filter(|_| self.is_vfio());
        spec
    }

    /// The dext, if this side maps windows by a connection of its own.
    pub(super) fn own_connection(&self) -> Option<OsString> {
        (self.windows == WindowRoute::OwnConnection).then(|| self.dext.clone())
    }
}

/// An argument and its value, which may be any path.
fn joined(name: &str, value: &OsStr) -> OsString {
    let mut argument = OsString::from(name);
    argument.push(value);
    argument
}

/// sandbox-exec, and what it is told before the program's own arguments.
fn launched(profile: &Path, program: &Path) -> (PathBuf, Vec<OsString>) {
    let folder = program.parent().unwrap_or(Path::new("/"));
    let before = vec![
        "-f".into(),
        profile.into(),
        "-D".into(),
        joined("PROGRAM=", program.as_os_str()),
        "-D".into(),
        joined("PROGRAM_DIR=", folder.as_os_str()),
        program.into(),
    ];
    ("/usr/bin/sandbox-exec".into(), before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_starts_the_program_with_its_own_arguments() {
        let config = HostConfig::new("/opt/cordon/device-proc", "iokit")
            .with_sandbox_exec(Some("/opt/cordon/launch.sb".into()));
        let spec = config.spec(Some("01:00.0".parse().unwrap()));
        assert_eq!(spec.program, Path::new("/usr/bin/sandbox-exec"));
        let expected = [
            "-f",
            "/opt/cordon/launch.sb",
            "-D",
            "PROGRAM=/opt/cordon/device-proc",
            "-D",
            "PROGRAM_DIR=/opt/cordon",
            "/opt/cordon/device-proc",
        ];
        assert_eq!(spec.before, expected);
        assert!(spec.arguments.contains(&"--address=01:00.0".into()));
        let direct = config.with_sandbox_exec(None).spec(None);
        assert!(direct.before.is_empty() && direct.program.ends_with("device-proc"));
    }
}
