//! What the suite of arm64 guests needs beside QEMU: Debian's arm64 kernels with pages of 4 KiB and of 16 KiB, busybox,
//! and an initramfs for each with our agent, which is built by the compiler that builds for macOS.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{Apt, Bundle, make};
use crate::guest::{self, Packed};
use crate::{Result, macho, macos, process, root};

/// A kernel: its name in the suite, the package that depends on it, and where that is.
struct Kernel {
    name: &'static str,
    package: &'static str,
    bundle: Bundle,
}

const KERNELS: [Kernel; 2] = [
    Kernel {
        name: "4k",
        package: "linux-image-cloud-arm64",
        bundle: arm64("arm64-4k", &["bookworm"]),
    },
    Kernel {
        name: "16k",
        package: "linux-image-arm64-16k",
        bundle: arm64("arm64-16k", &["trixie"]),
    },
];

const fn arm64(name: &'static str, suites: &'static [&'static str]) -> Bundle {
    Bundle { name, suites, prefer: suites[0], foreign: Some("arm64") }
}

/// What a kernel without an NVMe driver and ext4 of its own loads, as far as it is there: each after what it may
/// depend on.
const MODULES: [&str; 14] = [
    "crc16",
    "crc32c_generic",
    "crc64",
    "crc64-rocksoft",
    "crct10dif_common",
    "crc-t10dif",
    "t10-pi",
    "mbcache",
    "jbd2",
    "ext4",
    "nvme-keyring",
    "nvme-auth",
    "nvme-core",
    "nvme",
];

/// Fetches kernels and busybox.
pub(crate) fn prepare(folder: &Path, mirror: &str) -> Result {
    for kernel in &KERNELS {
        let into = folder.join(kernel.bundle.name);
        let apt = Apt::new(folder, &kernel.bundle, &kernel.bundle.sources(mirror), None)?;
        let package = format!("{}:arm64", kernel.package);
        let depends = apt.run("apt-cache", &["depends", &package])?;
        let image = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        let image = image.ok_or_else(|| format!("{package} depends on no kernel"))?;
        let image = if image.contains(':') { image.to_owned() } else { format!("{image}:arm64") };
        apt.run("apt-get", &["-q", "download", &image, "busybox-static:arm64"])?;
        make(&into)?;
        apt.unpack(&into)?;
    }
    Ok(())
}

/// The agent, linked statically, busybox, and the modules that there are.
pub(crate) fn initramfs(folder: &Path) -> Result {
    let agent = agent(folder)?;
    for kernel in &KERNELS {
        let system = folder.join(kernel.bundle.name);
        let busybox = read(
            &find(&system, &|path| path.ends_with("bin/busybox"))?.ok_or("there is no busybox")?,
        )?;
        let image = find(&system, &|path| path.to_string_lossy().contains("/boot/vmlinuz"))?;
        let image = image.ok_or("the kernel package has no kernel")?;
        std::fs::copy(&image, folder.join(format!("vmlinuz-arm64-{}", kernel.name)))?;
        let mut modules: Vec<Packed> = Vec::new();
        for (number, name) in MODULES.iter().enumerate() {
            let is_it = |path: &Path| {
                let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                file.strip_prefix(name).is_some_and(|end| end.starts_with(".ko"))
            };
            if let Some(path) = find(&system, &is_it)? {
                let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                modules.push((format!("{number:02}-{file}"), read(&path)?));
            }
        }
        let path = folder.join(format!("initramfs-arm64-{}", kernel.name));
        guest::pack(&path, &agent, &busybox, &modules)?;
    }
    Ok(())
}

fn agent(folder: &Path) -> Result<Vec<u8>> {
    let (toolchain, sysroot) = (macos::toolchain()?, macho::sysroot()?);
    let into = folder.join("agent-arm64");
    let mut build: Command = macho::cargo(&toolchain, &sysroot, &into)?;
    build
        .args(["build", "--quiet", "--release", "--locked", "--package", "guest-agent"])
        .args(["--target", macho::TARGET, "-Zbuild-std=std,panic_abort"])
        .current_dir(root());
    process::quiet("building the arm64 guest's agent", &mut build)?;
    read(&into.join(macho::TARGET).join("release/guest-agent"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    Ok(std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?)
}

/// A file beneath a folder.
fn find(folder: &Path, is_it: &dyn Fn(&Path) -> bool) -> Result<Option<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), is_it)? {
                return Ok(Some(found));
            }
        } else if entry.file_type()?.is_file() && is_it(&entry.path()) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}
