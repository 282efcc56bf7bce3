//! How a host's processes are started.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipc::PciAddress;

use crate::faults::Faults;
use crate::recovery::Recovery;
use crate::supervisor::{Deadlines, Spec};

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

/// How processes are started.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The `device-proc` program.
    pub device_proc: PathBuf,
    /// Where the dext is: `sim:PATH` or `iokit`.
    pub dext: String,
    /// Refuse to start a process without a layer of its sandbox.
    pub strict: bool,
    /// How long things may take.
    pub deadlines: Deadlines,
    /// Whether and how a dead process is replaced.
    pub recovery: Recovery,
    /// How BARs become windows of the guest's.
    pub windows: WindowRoute,
    /// macOS: the profile with which sandbox-exec starts every process, confined from its first
    /// instruction, instead of each confining itself with a tighter one.
    pub launcher: Option<PathBuf>,
    /// What is to go wrong, for tests of whoever must survive it.
    pub faults: Option<Arc<Faults>>,
}

impl HostConfig {
    /// How a process for `address` is started; without one, for the whole dext.
    #[must_use]
    pub fn spec(&self, address: Option<PciAddress>) -> Spec {
        let mode = if self.strict { "strict" } else { "relaxed" };
        let mut arguments = vec![format!("--dext={}", self.dext), format!("--sandbox={mode}")];
        arguments.extend(address.map(|address| format!("--address={address}")));
        let roles = address.is_some();
        arguments.extend((roles && self.faults.is_some()).then(|| "--misbehave".to_owned()));
        let (program, before) = match &self.launcher {
            None => (self.device_proc.clone(), Vec::new()),
            Some(profile) => launched(profile, &self.device_proc),
        };
        Spec {
            program,
            before,
            arguments,
            strict: self.strict,
            subject: address.map_or_else(|| "the dext".to_owned(), |address| address.to_string()),
            deadlines: self.deadlines,
            expendable: false,
            faults: self.faults.clone(),
        }
    }

    pub(super) fn connection_spec(&self, address: PciAddress) -> Spec {
        let mut spec = self.spec(Some(address));
        spec.arguments.push(format!("--windows={}", self.windows.argument()));
        spec
    }

    /// The dext, if this side maps windows by a connection of its own.
    pub(super) fn own_connection(&self) -> Option<String> {
        (self.windows == WindowRoute::OwnConnection).then(|| self.dext.clone())
    }
}

/// sandbox-exec, and what it is told before the program's own arguments.
fn launched(profile: &Path, program: &Path) -> (PathBuf, Vec<String>) {
    let folder = program.parent().unwrap_or(Path::new("/"));
    let before = vec![
        "-f".to_owned(),
        profile.display().to_string(),
        "-D".to_owned(),
        format!("PROGRAM={}", program.display()),
        "-D".to_owned(),
        format!("PROGRAM_DIR={}", folder.display()),
        program.display().to_string(),
    ];
    ("/usr/bin/sandbox-exec".into(), before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_starts_the_program_with_its_own_arguments() {
        let config = HostConfig {
            device_proc: "/opt/cordon/device-proc".into(),
            dext: "iokit".to_owned(),
            strict: true,
            deadlines: Deadlines::default(),
            recovery: Recovery::OFF,
            windows: WindowRoute::Handed,
            launcher: Some("/opt/cordon/launch.sb".into()),
            faults: None,
        };
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
        assert!(spec.arguments.contains(&"--address=01:00.0".to_owned()));
        let direct = HostConfig { launcher: None, ..config }.spec(None);
        assert!(direct.before.is_empty() && direct.program.ends_with("device-proc"));
    }
}
