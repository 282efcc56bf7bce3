//! The simulated dext that a run starts: a child program, gone with the run.

use std::ffi::OsString;
use std::ops::{Deref, DerefMut};
use std::path::Path;

pub(crate) use cordon_testkit::Dart;
use cordon_testkit::Error;

use crate::Failure;
use crate::scratch::Folder;

/// A simulator of the test kit's in a folder that is removed also when the run cannot end in order.
pub(crate) struct Simulator {
    kit: cordon_testkit::Simulator,
    _folder: Folder,
}

impl Simulator {
    /// Starts `program` with `devices` and waits until it listens.
    pub(crate) fn start(program: &Path, dart: Dart, devices: &[OsString]) -> Result<Self, Failure> {
        // Whoever can connect to the simulator owns its devices.
        let folder = Folder::new("cordon-demo")?;
        let mut arguments = vec![OsString::from(dart.argument())];
        for device in devices {
            arguments.extend(["--device".into(), device.clone()]);
        }
        let kit = cordon_testkit::Simulator::start_in(folder.path(), program, arguments);
        let kit = kit.map_err(|error| match error {
            // What it has to say is on standard error already.
            Error::NotReady { .. } => Failure::from("the simulated dext did not start"),
            Error::Run { program, error } => {
                format!("cannot run {}: {error}", program.display()).into()
            }
            other => other.into(),
        })?;
        Ok(Self { kit, _folder: folder })
    }
}

impl Deref for Simulator {
    type Target = cordon_testkit::Simulator;

    fn deref(&self) -> &Self::Target {
        &self.kit
    }
}

impl DerefMut for Simulator {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.kit
    }
}
