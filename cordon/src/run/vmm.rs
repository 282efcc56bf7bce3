//! The VMMs that `cordon run` knows: how each is told of a device that is served, and what it lacks.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

/// How a VMM is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Vmm {
    /// qemu-system-*: `-device` with JSON.
    Qemu,
    /// cloud-hypervisor: `--user-device`.
    CloudHypervisor,
}

impl Vmm {
    /// By the name of its program.
    ///
    /// # Errors
    /// When it is called as none of them.
    pub(super) fn called(program: &OsStr) -> Result<Self, String> {
        let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
        match &*name {
            name if name.starts_with("qemu-system-") || name == "qemu-kvm" => Ok(Self::Qemu),
            "cloud-hypervisor" => Ok(Self::CloudHypervisor),
            _ => Err(format!(
                "{} is called neither qemu-system-* nor cloud-hypervisor: --vmm says which of them it is",
                program.display()
            )),
        }
    }

    /// What is appended to its command line for devices that are served at these sockets.
    pub(super) fn devices(self, sockets: &[PathBuf]) -> Result<Vec<OsString>, String> {
        match self {
            Self::Qemu => sockets.iter().try_fold(Vec::new(), |mut arguments, socket| {
                let path = socket.to_str().ok_or_else(|| {
                    format!("{}: QEMU's JSON takes a path that is text", socket.display())
                })?;
                let device = serde_json::json!({
                    "driver": "vfio-user-pci",
                    "socket": { "type": "unix", "path": path },
                });
                arguments.extend(["-device".into(), device.to_string().into()]);
                Ok(arguments)
            }),
            // One option with all of them, which its parser wants.
            Self::CloudHypervisor => {
                let device = |socket: &PathBuf| {
                    let mut text = OsString::from("socket=");
                    text.push(socket);
                    text
                };
                Ok([OsString::from("--user-device")]
                    .into_iter()
                    .chain(sockets.iter().map(device))
                    .collect())
            }
        }
    }

    /// Whether guest memory is shared, as far as the command line shows: a device process could not reach
    /// it otherwise.
    ///
    /// # Errors
    /// With what to add.
    pub(super) fn check(self, arguments: &[OsString]) -> Result<(), String> {
        let has = |part: &str| {
            let part = part.as_bytes();
            let mut all = arguments.iter().map(|one| one.as_bytes());
            all.any(|one| one.windows(part.len()).any(|at| at == part))
        };
        let (shows, cure) = match self {
            Self::Qemu => (
                // Or it is said in a file.
                ["share=on", "share=yes", "share=true", "\"share\":true", "-readconfig"].as_slice(),
                "-machine memory-backend=ram -object memory-backend-memfd,id=ram,size=SIZE,share=on",
            ),
            Self::CloudHypervisor => (["shared=on"].as_slice(), "--memory size=SIZE,shared=on"),
        };
        if shows.iter().any(|part| has(part)) {
            return Ok(());
        }
        Err(format!("guest memory must be shared with device processes: add {cure} for the VMM"))
    }
}

/// Where a program is that a shell would run by this name.
pub(super) fn program(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, String> {
    use std::os::unix::fs::PermissionsExt as _;
    let runs = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return if runs(&path) {
            Ok(path)
        } else {
            Err(format!("{} is no program that can be run", path.display()))
        };
    }
    let mut folders = path.into_iter().flat_map(std::env::split_paths);
    let found = folders.find_map(|folder| Some(folder.join(name)).filter(|path| runs(path)));
    found.ok_or_else(|| format!("there is no program {} in PATH", name.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmms_are_known_by_their_names_and_told_in_their_own_ways() {
        for (name, vmm) in [
            ("/usr/bin/qemu-system-x86_64", Vmm::Qemu),
            ("qemu-system-aarch64", Vmm::Qemu),
            ("qemu-kvm", Vmm::Qemu),
            ("./cloud-hypervisor", Vmm::CloudHypervisor),
        ] {
            assert_eq!(Vmm::called(name.as_ref()), Ok(vmm));
        }
        let error = Vmm::called("/bin/firecracker".as_ref()).unwrap_err();
        assert!(error.contains("/bin/firecracker is called neither"), "{error}");
        let sockets = [PathBuf::from("/t/a \"b\""), PathBuf::from("/t/c")];
        let qemu = Vmm::Qemu.devices(&sockets).unwrap();
        assert_eq!(qemu.len(), 4);
        let device: serde_json::Value = serde_json::from_str(qemu[1].to_str().unwrap()).unwrap();
        assert_eq!(
            (&qemu[0], &device["socket"]["path"]),
            (&"-device".into(), &"/t/a \"b\"".into())
        );
        let other = Vmm::CloudHypervisor.devices(&sockets[1..]).unwrap();
        assert_eq!(other, ["--user-device", "socket=/t/c"]);
    }

    #[test]
    fn memory_that_is_not_shared_is_refused_with_the_cure() {
        let arguments = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for (vmm, text) in [
            (Vmm::Qemu, "-m 1G -object memory-backend-memfd,id=ram,size=1G,share=on"),
            (Vmm::CloudHypervisor, "--memory size=1G,shared=on"),
        ] {
            assert_eq!(vmm.check(&arguments(text)), Ok(()));
            let error = vmm.check(&arguments("-m 1G")).unwrap_err();
            assert!(error.contains("must be shared") && error.contains("size=SIZE"), "{error}");
        }
    }

    #[test]
    fn a_program_is_found_as_a_shell_finds_it() {
        let path = std::env::join_paths(["/nonexistent", "/usr/bin", "/bin"]).unwrap();
        assert!(program("sh".as_ref(), Some(&path)).unwrap().ends_with("sh"));
        assert_eq!(program("/bin/sh".as_ref(), None), Ok("/bin/sh".into()));
        for (name, says) in [
            ("no-such-vmm", "there is no program no-such-vmm in PATH"),
            ("/etc/passwd", "/etc/passwd is no program that can be run"),
        ] {
            assert_eq!(program(name.as_ref(), Some(&path)).unwrap_err(), says);
        }
    }
}
