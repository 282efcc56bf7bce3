//! Every library and program as it would be published: packaged, unpacked, and checked to build from
//! nothing but what was packaged.
//!
//! Cargo verifies packages too, but takes one of the same version for the same wherever it has built
//! or unpacked it before. Here they are unpacked anew as a workspace of their own, in which each stands
//! for the one of that name in the registry.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use crate::apt::{make, write};
use crate::{Result, cargo, policy, root, run, target};

/// Packages everything, builds it, and says what came of it.
pub(crate) fn check() -> Result {
    let names = policy::published()?;
    // What is not committed yet is packaged too: this runs before a commit.
    let mut package = cargo(&["package", "--no-verify", "--allow-dirty", "--quiet"]);
    package.args(names.iter().map(|name| format!("--package={name}")));
    run("packages", package)?;
    let packages = target().join("package");
    let folder = packages.join("unpacked");
    let _ = std::fs::remove_dir_all(&folder);
    make(&folder)?;
    let mut manifest = String::from("[workspace]\nresolver = \"3\"\nmembers = [\"*\"]\n\n");
    // As the workspace has it, so that what others published need not be built once more.
    manifest.push_str(
        "[profile.dev]\nopt-level = 1\ndebug = \"line-tables-only\"\n\n[patch.crates-io]\n",
    );
    let mut said = Vec::new();
    for name in &names {
        // The version is the workspace's, and so is that of this program.
        let unpacked = format!("{name}-{}", env!("CARGO_PKG_VERSION"));
        let file = packages.join(format!("{unpacked}.crate"));
        unpack(&file, &folder)?;
        let _ = writeln!(manifest, "{name} = {{ path = \"{unpacked}\" }}");
        let bytes = std::fs::metadata(&file).map_err(|e| format!("{}: {e}", file.display()))?.len();
        said.push(format!("{unpacked}.crate: {} KiB, builds by itself", bytes.div_ceil(1024)));
    }
    write(&folder.join("Cargo.toml"), &manifest)?;
    // The same versions of everything else.
    let lock = "Cargo.lock";
    std::fs::copy(root().join(lock), folder.join(lock)).map_err(|e| format!("{lock}: {e}"))?;
    let mut build = cargo(&["check", "--quiet", "--workspace", "--target-dir"]);
    build.arg(target()).current_dir(&folder);
    run("what was packaged, by itself", build)?;
    for line in said {
        console::say!("{line}")?;
    }
    Ok(())
}

fn unpack(file: &Path, folder: &Path) -> Result {
    let mut tar = Command::new("tar");
    // With the time of now: packaged files have one and the same, by which Cargo would not see a change.
    tar.arg("-xzmf").arg(file).arg("-C").arg(folder);
    let status = tar.status().map_err(|error| format!("tar: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} cannot be unpacked", file.display()).into())
    }
}
