//! Every library and program as it would be published: packaged, unpacked, built from what was
//! packaged. The packages find each other in a registry that Cargo lays over the real one.

use crate::{Result, cargo, policy, run, target};

/// Packages everything and says what came of it.
pub(crate) fn check() -> Result {
    let packages = policy::published()?;
    // What is not committed yet is packaged too: this runs before a commit.
    let mut package = cargo(&["package", "--allow-dirty", "--quiet"]);
    package.args(packages.iter().map(|name| format!("--package={name}")));
    run("packages", package)?;
    for name in packages {
        // The version is the workspace's, and so is that of this program.
        let file = format!("{name}-{}.crate", env!("CARGO_PKG_VERSION"));
        let packaged = target().join("package").join(&file);
        let bytes = std::fs::metadata(&packaged).map_err(|error| format!("{file}: {error}"))?.len();
        console::say!("{file}: {} KiB, builds by itself", bytes.div_ceil(1024))?;
    }
    Ok(())
}
