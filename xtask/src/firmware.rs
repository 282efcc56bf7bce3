//! The firmware that the test VMM runs: 32-bit code without a system, built by the compiler that builds for macOS,
//! which brings the sources of its standard library, and linked by LLVM's linker into a flat image.

use std::path::PathBuf;

use crate::{Result, macos, root, run, target};

const TARGET: &str = "i586-unknown-linux-gnu";

/// Builds it; where the image is.
pub(crate) fn build() -> Result<PathBuf> {
    let toolchain = macos::toolchain()?;
    let folder = target().join("firmware");
    std::fs::create_dir_all(&folder)?;
    let linker = folder.join("ld");
    let lld = toolchain.join("root/usr/lib/llvm-19/bin/ld.lld");
    macos::script(
        &linker,
        &format!("LD_LIBRARY_PATH={} exec {} \"$@\"", macos::libraries(&toolchain), lld.display()),
    )?;
    let source = root().join("tests/vmm/firmware");
    let script = source.join("link.ld");
    let flags = [
        "-Clinker-flavor=ld",
        "-Crelocation-model=static",
        "-Clink-arg=--oformat=binary",
        "-Clink-arg=--no-pie",
        "-Clink-arg=-T",
        &format!("-Clink-arg={}", script.display()),
    ]
    .join("\u{1f}");
    let mut command = macos::cargo(&toolchain)?;
    command
        .args(["build", "--release", "--locked", "--quiet", "--target", TARGET])
        .args(["-Zbuild-std=core", "-Zbuild-std-features=compiler-builtins-mem"])
        .arg("--target-dir")
        .arg(&folder)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("CARGO_TARGET_I586_UNKNOWN_LINUX_GNU_LINKER", &linker)
        .current_dir(source);
    run("building the test VMM's firmware", command)?;
    Ok(folder.join(TARGET).join("release/probe-firmware"))
}
