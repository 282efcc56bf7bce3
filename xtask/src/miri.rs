//! What has no system beneath it, under Miri: the models of PCI, and the words of a lane.
//!
//! Miri is a component of nightly toolchains only, and is had with rustup: `rustup toolchain install nightly
//! --component miri rust-src`. Where it is not, this says so and fails, and nothing else depends on it.

use std::process::{Command, Stdio};

use crate::{Result, root, run, target};

/// Packages, and which of their tests.
const TESTS: [(&str, &[&str]); 2] =
    [("cordon-pci", &[]), ("cordon-ipc", &["lane::protocol", "codec"])];

/// Properties are tried on so many inputs: each takes some hundred times as long as it does otherwise.
const CASES: &str = "8";

fn miri(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.arg("+nightly").arg("miri").args(arguments).current_dir(root());
    // Of the toolchain that runs this.
    for variable in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS"] {
        command.env_remove(variable);
    }
    command
}

/// Runs them.
pub(crate) fn check() -> Result {
    let mut asked = miri(&["--version"]);
    let there = asked.stdout(Stdio::null()).stderr(Stdio::piped()).output();
    match there {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let why = said.trim().lines().next().unwrap_or("it does not say why");
            return Err(missing(why));
        }
        Err(error) => return Err(missing(&error.to_string())),
    }
    for (package, tests) in TESTS {
        let mut command = miri(&["test", "--locked", "--lib", "--package", package, "--"]);
        command.args(tests).env("CARGO_TARGET_DIR", target().join("miri"));
        command.env("PROPTEST_CASES", CASES);
        // Failing inputs are kept in files.
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation");
        run(&format!("{package} under Miri"), command)?;
    }
    Ok(())
}

fn missing(why: &str) -> crate::Failure {
    format!(
        "Miri was NOT run, there is no nightly toolchain with it here ({why}); where rustup reaches its server: \
         rustup toolchain install nightly --component miri rust-src"
    )
    .into()
}
