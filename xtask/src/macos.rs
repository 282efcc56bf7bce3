//! The macOS code, checked without a Mac: linted and linked for aarch64-apple-darwin.
//!
//! Debian's security archive has a compiler with the sources of its standard library, which is built
//! for the target. The linker is LLVM's; what it links against are text stubs in `xtask/macos/stubs`
//! that list every symbol that the programs and the suites ask of macOS. A symbol that is not listed
//! fails the link, one that is listed and not asked for fails the check: the stubs are the inventory.

use std::path::{Path, PathBuf};
use std::process::Command;

use console::say;

use crate::apt::{self, Apt, Bundle, make, write};
use crate::{Result, root, run, target};

const TARGET: &str = "aarch64-apple-darwin";
/// The oldest macOS that is linked for.
const OLDEST: &str = "13.0";
/// Changes when what is fetched changes.
const STAMP: &str = "1";
/// What runs on the host, or in a guest that is no Mac.
const NOT_FOR_MACS: [&str; 4] = ["--exclude", "guest-agent", "--exclude", "xtask"];
/// The programs.
const PROGRAMS: [&str; 5] =
    ["cordon", "device-proc", "dext-sim", "faulty-device-proc", "sandbox-probe"];

const TOOLCHAIN: Bundle =
    Bundle { name: "toolchain", suites: &["bookworm"], prefer: "bookworm-security" };
const PACKAGES: [&str; 5] = ["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy", "lld-19"];

/// Lints and links everything for macOS.
pub(crate) fn check() -> Result {
    if std::env::consts::ARCH != "x86_64" {
        return Err("the toolchain for macOS is fetched for x86-64 hosts".into());
    }
    let toolchain = toolchain()?;
    let mut lint = cargo(&toolchain, &["clippy"])?;
    lint.args(["--", "-D", "warnings", "-D", "missing_docs"]);
    run("lints for macOS", lint)?;
    run("linking for macOS", cargo(&toolchain, &["build"])?)?;
    let built = target().join("macos").join(TARGET).join("debug");
    for program in PROGRAMS {
        say!("{program}: {}", kind(&built.join(program))?)?;
    }
    let (symbols, files) = inventory(&built)?;
    say!("{symbols} symbols are asked of macOS by {files} Mach-O executables, all listed")?;
    Ok(())
}

/// Fetches the toolchain unless it is there.
fn toolchain() -> Result<PathBuf> {
    let folder = target().join("macos-toolchain");
    let stamp = folder.join("stamp");
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == STAMP) {
        return Ok(folder);
    }
    say!("\n== preparing a toolchain for macOS in {} (once)", folder.display())?;
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
    let script = |name: &str, line: String| -> Result {
        use std::os::unix::fs::PermissionsExt as _;
        let path = folder.join(name);
        write(&path, &format!("#!/bin/sh\n{line}\n"))?;
        let executable = std::fs::Permissions::from_mode(0o755);
        Ok(std::fs::set_permissions(&path, executable)?)
    };
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

fn libraries(folder: &Path) -> String {
    folder.join("root/usr/lib/x86_64-linux-gnu").display().to_string()
}

/// That toolchain's Cargo, for everything that is for Macs.
fn cargo(folder: &Path, task: &[&str]) -> Result<Command> {
    let programs = folder.join("root/usr/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::join_paths(std::iter::once(programs.clone()).chain(std::env::split_paths(&path)));
    let mut command = Command::new(programs.join("cargo"));
    command
        .args(task)
        .args(["--workspace", "--all-targets", "--locked", "--quiet", "--target", TARGET])
        .args(NOT_FOR_MACS)
        .arg("-Zbuild-std=std,panic_abort,test")
        .arg("--target-dir")
        .arg(target().join("macos"))
        .env("PATH", path.map_err(|error| error.to_string())?)
        .env("LD_LIBRARY_PATH", libraries(folder))
        .env("RUSTC", folder.join("rustc"))
        // Building the standard library is not for stable compilers otherwise.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("MACOSX_DEPLOYMENT_TARGET", OLDEST)
        .env("SDKROOT", root().join("xtask/macos/stubs"))
        .env("CARGO_TARGET_AARCH64_APPLE_DARWIN_LINKER", folder.join("ld"))
        .env("CARGO_TARGET_AARCH64_APPLE_DARWIN_RUSTFLAGS", "-Clinker-flavor=ld64.lld")
        .current_dir(root());
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
fn is_executable(bytes: &[u8]) -> bool {
    const ARM64: u32 = 0x0100_000c;
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_le_bytes)
    };
    (word(0), word(4), word(12)) == (Some(0xfeed_facf), Some(ARM64), Some(2))
}

/// Every symbol of the stubs is asked for by some executable; how many of both there are.
fn inventory(built: &Path) -> Result<(usize, usize)> {
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
    let mut files = 0;
    for folder in [built.to_owned(), built.join("deps")] {
        let entries = std::fs::read_dir(&folder).map_err(|error| error.to_string())?;
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
            if path.extension().is_some() {
                continue;
            }
            let bytes = std::fs::read(&path).map_err(|error| error.to_string())?;
            if is_executable(&bytes) {
                files += 1;
                let names: std::collections::BTreeSet<&[u8]> = bytes
                    .split(|byte| *byte == 0)
                    .filter(|name| name.first() == Some(&b'_'))
                    .collect();
                unused.retain(|symbol| !names.contains(symbol.as_bytes()));
            }
        }
    }
    if unused.is_empty() {
        Ok((listed.len(), files))
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
