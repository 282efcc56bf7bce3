//! The other programs: found beside this one, where a package puts them, or where the command line says.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use cordon_testkit::programs::beside;

use crate::Failure;

/// The program `name`: `given`, or the one beside this program, or where a package has it.
pub(crate) fn find(name: &str, given: Option<&Path>) -> Result<PathBuf, Failure> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => {
            let own = std::env::current_exe()
                .map_err(|error| format!("cannot find this program's own path: {error}"))?;
            beside(&own, name)
        }
    };
    if path.is_file() {
        return Ok(path);
    }
    let hint =
        if given.is_some() { "" } else { " (build the whole workspace, or say where it is)" };
    Err(format!("the program {name} is not at {}{hint}", path.display()).into())
}

/// Checks that it names a dext: `sim:PATH`, `iokit`, or what one has beneath a root bridge.
pub(crate) fn endpoint(text: &OsStr) -> Result<OsString, Failure> {
    match cordon_vmm::Endpoint::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string().into()),
    }
}
