//! `cordon serve --print-capabilities`: what this program can do, for the tools that start backends of
//! devices. The conventions are those of QEMU's vhost-user backends, which has no such ones for vfio-user:
//! a JSON object, and nothing else is done.

use serde::Serialize;

use crate::{Failure, output};

/// Names of what a tool may rely on: options of the command line, by their names without dashes.
const FEATURES: [&str; 10] = [
    "companion-socket",
    "device",
    "fd",
    "iommufd-fd",
    "json",
    "sealed-memory",
    "socket-dir",
    "socket-path",
    "standby",
    "vfio-fd",
];

#[derive(Serialize)]
struct Capabilities {
    #[serde(rename = "type")]
    kind: &'static str,
    version: &'static str,
    features: &'static [&'static str],
}

/// Prints them.
pub(super) fn print() -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    output::json(&Capabilities { kind: "vfio-user", version, features: &FEATURES })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn every_feature_is_an_option_of_the_command_line() {
        let program = crate::Options::command();
        let serve = program.find_subcommand("serve").unwrap();
        let known: Vec<String> = serve
            .get_arguments()
            .flat_map(|argument| argument.get_long_and_visible_aliases().unwrap_or_default())
            .map(str::to_owned)
            .collect();
        for feature in FEATURES {
            assert!(known.iter().any(|one| one == feature), "{feature} is not among {known:?}");
        }
        assert!(FEATURES.is_sorted());
    }
}
