//! The macOS code, checked without a Mac: linted and linked for aarch64-apple-darwin.
//!
//! Debian's security archive has a compiler with the sources of its standard library, which is built
//! for the target. The linker is LLVM's; what it links against are text stubs in `xtask/macos/stubs`
//! that list every symbol that the programs and the suites ask of macOS. A symbol that is not listed
//! fails the link, one that is listed and not asked for fails the check: the stubs are the inventory.
//! What was linked is then executed: see `macho.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;

use console::say;

use crate::apt::{self, Apt, Bundle, make, write};
use crate::{Result, macho, process, root, run, target, times};

const TARGET: &str = "aarch64-apple-darwin";
/// The oldest macOS that is linked for.
const OLDEST: &str = "13.0";
/// Changes when what is fetched changes.
const STAMP: &str = "1";
/// What runs in a guest that is no Mac.
pub(crate) const NOT_FOR_MACS: [&str; 4] = ["--exclude", "guest-agent", "--exclude", "vfio-guest"];
/// What a Mac builds for itself and is no part of the product: what these ask of macOS is no part of the
/// inventory.
const NOT_LINKED: [&str; 6] =
    ["--exclude", "xtask", "--exclude", "cordon-bench", "--exclude", "test-vmm"];
/// The programs.
const PROGRAMS: [&str; 5] =
    ["cordon", "device-proc", "dext-sim", "faulty-device-proc", "sandbox-probe"];

const TOOLCHAIN: Bundle =
    Bundle { name: "toolchain", suites: &["bookworm"], prefer: "bookworm-security", foreign: None };
const PACKAGES: [&str; 5] = ["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy", "lld-19"];

/// Lints and links everything for macOS.
pub(crate) fn check() -> Result {
    if !matches!(std::env::consts::ARCH, "x86_64" | "aarch64") {
        return Err("the toolchain for macOS is fetched for x86-64 and arm64 hosts".into());
    }
    let toolchain = toolchain()?;
    let mut lint = product(&toolchain, "clippy")?;
    lint.args(["--", "-D", "warnings", "-D", "missing_docs"]);
    run("lints for macOS", lint)?;
    times::heading("linking for macOS")?;
    let (mut suites, mut executables) = (Vec::new(), Vec::new());
    let mut link = product(&toolchain, "build")?;
    link.args(NOT_LINKED).arg("--message-format=json-render-diagnostics");
    let status = process::quiet_lines("linking for macOS", &mut link, |line| {
        suites.extend(macho::suite(line)?);
        executables.extend(macho::executable(line)?);
        Ok(())
    })?;
    if !status.success() {
        return Err(format!("linking for macOS failed: {status}").into());
    }
    let built = target().join("macos").join(TARGET).join("debug");
    for program in PROGRAMS {
        say!("{program}: {}", kind(&built.join(program))?)?;
    }
    let symbols = inventory(&executables)?;
    let files = executables.len();
    say!("{symbols} symbols are asked of macOS by {files} Mach-O executables, all listed")?;
    macho::run(&toolchain, &built, &executables, &suites)
}

/// Fetches the toolchain unless it is there.
pub(crate) fn toolchain() -> Result<PathBuf> {
    let folder = target().join("macos-toolchain");
    let stamp = folder.join("stamp");
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == STAMP) {
        return Ok(folder);
    }
    times::heading(&format!("preparing a toolchain for macOS in {} (once)", folder.display()))?;
    let _ = std::fs::remove_dir_all(&folder);
    let security = apt::mirror("-security")?;
    let mut sources = TOOLCHAIN.sources(&apt::mirror("")?);
    sources.push((security, "bookworm-security"));
    // It runs on this machine as it is: what this machine has is not fetched again.
    let status = Path::new("/var/lib/dpkg/status");
    let apt = Apt::new(&folder, &TOOLCHAIN, &sources, Some(status))?;
    let mut arguments = vec!["-q", "-y", "--download-only", "--reinstall", "install"];
    arguments.extend(PACKAGES);
    apt.run("apt-get", &arguments)?;
    let into = folder.join("root");
    make(&into)?;
    apt.unpack(&into)?;
    let libraries = libraries(&folder);
    let script = |name: &str, line: String| script(&folder.join(name), &line);
    let usr = into.join("usr");
    let at = |part: &str| usr.join(part).display().to_string();
    script(
        "rustc",
        format!(
            "LD_LIBRARY_PATH={libraries} exec {} --sysroot {} \"$@\"",
            at("bin/rustc"),
            usr.display()
        ),
    )?;
    let stubs = root().join("xtask/macos/stubs");
    let (stubs, libs) = (stubs.display(), stubs.join("lib"));
    script(
        "ld",
        format!(
            "LD_LIBRARY_PATH={libraries} exec {} \"$@\" -L{} -F{stubs}",
            at("lib/llvm-19/bin/ld64.lld"),
            libs.display()
        ),
    )?;
    write(&stamp, STAMP)?;
    Ok(folder)
}

/// Writes a shell script of one command.
pub(crate) fn script(path: &Path, line: &str) -> Result {
    use std::os::unix::fs::PermissionsExt as _;
    write(path, &format!("#!/bin/sh\n{line}\n"))?;
    let executable = std::fs::Permissions::from_mode(0o755);
    Ok(std::fs::set_permissions(path, executable)?)
}

/// Where the toolchain's own libraries are.
pub(crate) fn libraries(folder: &Path) -> String {
    let name = format!("root/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    folder.join(name).display().to_string()
}

/// That toolchain's Cargo for everything that is for Macs.
fn product(folder: &Path, task: &str) -> Result<Command> {
    let mut command = cargo(folder)?;
    command
        .args([task, "--workspace", "--all-targets", "--locked", "--quiet", "--target", TARGET])
        .args(NOT_FOR_MACS)
        .arg("-Zbuild-std=std,panic_abort,test")
        .arg("--target-dir")
        .arg(target().join("macos"))
        .env("MACOSX_DEPLOYMENT_TARGET", OLDEST)
        // It is executed where no debugger reads it, and takes 6 GiB.
        .env("CARGO_PROFILE_DEV_DEBUG", "none")
        // Cargo would have what is left of it, of the standard library's, stripped by a program that is not there.
        .env("CARGO_PROFILE_DEV_STRIP", "none")
        .env("SDKROOT", root().join("xtask/macos/stubs"))
        .env("CARGO_TARGET_AARCH64_APPLE_DARWIN_LINKER", folder.join("ld"))
        .env("CARGO_TARGET_AARCH64_APPLE_DARWIN_RUSTFLAGS", "-Clinker-flavor=ld64.lld");
    Ok(command)
}

/// That toolchain's Cargo.
pub(crate) fn cargo(folder: &Path) -> Result<Command> {
    let programs = folder.join("root/usr/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::join_paths(std::iter::once(programs.clone()).chain(std::env::split_paths(&path)));
    let mut command = Command::new(programs.join("cargo"));
    command
        .env("PATH", path.map_err(|error| error.to_string())?)
        .env("LD_LIBRARY_PATH", libraries(folder))
        .env("RUSTC", folder.join("rustc"))
        // Building the standard library is not for stable compilers otherwise.
        .env("RUSTC_BOOTSTRAP", "1")
        .current_dir(root());
    crate::once(&mut command);
    // Of the toolchain that runs this.
    for variable in ["RUSTUP_TOOLCHAIN", "RUSTUP_HOME", "CARGO", "RUSTDOC", "RUSTFLAGS"] {
        command.env_remove(variable);
    }
    Ok(command)
}

/// What `file` would say.
fn kind(path: &Path) -> Result<&'static str> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if is_executable(&bytes) {
        Ok("Mach-O 64-bit arm64 executable")
    } else {
        Err(format!("{} is no Mach-O executable for arm64", path.display()).into())
    }
}

/// Magic number, processor and kind of a Mach-O header.
pub(crate) fn is_executable(bytes: &[u8]) -> bool {
    const ARM64: u32 = 0x0100_000c;
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_le_bytes)
    };
    (word(0), word(4), word(12)) == (Some(0xfeed_facf), Some(ARM64), Some(2))
}

/// Every symbol of the stubs is asked for by one of `executables`; how many there are.
///
/// Only what Cargo says that it linked counts: the folder may hold what an earlier state of the tree left there.
fn inventory(executables: &[PathBuf]) -> Result<usize> {
    let mut listed = Vec::new();
    for stub in [
        "lib/libSystem.tbd",
        "IOKit.framework/IOKit.tbd",
        "CoreFoundation.framework/CoreFoundation.tbd",
    ] {
        let path = root().join("xtask/macos/stubs").join(stub);
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{stub}: {e}"))?;
        let symbols = text.lines().map(|line| line.trim().trim_end_matches(','));
        listed.extend(symbols.filter(|line| line.starts_with('_')).map(str::to_owned));
    }
    let mut unused: Vec<String> = listed.clone();
    for path in executables {
        let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        if !is_executable(&bytes) {
            return Err(format!("{} is no Mach-O executable for arm64", path.display()).into());
        }
        let names: std::collections::BTreeSet<&[u8]> =
            bytes.split(|byte| *byte == 0).filter(|name| name.first() == Some(&b'_')).collect();
        unused.retain(|symbol| !names.contains(symbol.as_bytes()));
    }
    if unused.is_empty() {
        Ok(listed.len())
    } else {
        let unused = unused.join(", ");
        Err(format!("nobody asks macOS for {unused}: take them out of the stubs").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_recognised() {
        let header = [0xfeed_facf, 0x0100_000c, 0, 2u32].map(u32::to_le_bytes).concat();
        assert!(is_executable(&header));
        assert!(!is_executable(&header[..12]) && !is_executable(b"\x7fELF"));
        let library = [0xfeed_facf, 0x0100_000c, 0, 6u32].map(u32::to_le_bytes).concat();
        assert!(!is_executable(&library));
    }
}
