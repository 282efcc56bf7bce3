//! A step that is started with descriptors: this program, run once more as root, which opens the files, becomes the
//! step's user and then the step's program. It has nothing open but the standard streams, so that numbers begin at 3.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};

use vfio_guest::script::{Descriptor, Opened, Step};

use crate::functions;

/// This program, and the word that it is run with.
const INIT: &str = "/init";
const LAUNCH: &str = "launch";
/// The first descriptor that is passed on.
const FIRST: i32 = 3;

/// How a step is started: by itself, or by way of [`run`].
pub(crate) fn command(step: &Step) -> io::Result<Command> {
    if step.descriptors.is_empty() {
        let mut command = Command::new(&step.program);
        command.args(&step.arguments);
        return Ok(command);
    }
    let mut command = Command::new(INIT);
    command.args([LAUNCH, &serde_json::to_string(step)?]);
    Ok(command)
}

/// The step that this program is to become, if it was run for that.
pub(crate) fn step() -> Option<Step> {
    let mut words = std::env::args().skip(1);
    words.next().filter(|word| word == LAUNCH)?;
    serde_json::from_str(&words.next()?).ok()
}

/// Becomes a step's program; why not.
pub(crate) fn run(step: Step) -> String {
    let files: Result<Vec<File>, String> = step.descriptors.iter().map(open).collect();
    let files = match files {
        Ok(files) => files,
        Err(why) => return why,
    };
    for (file, expected) in files.iter().zip(FIRST..) {
        if file.as_raw_fd() != expected {
            return format!("descriptor {} is not {expected}", file.as_raw_fd());
        }
        if let Err(error) = fcntl_setfd(file, FdFlags::empty()) {
            return format!("descriptor {expected} cannot be passed on: {error}");
        }
    }
    let mut command = Command::new(&step.program);
    command.args(&step.arguments).uid(step.user).gid(step.user);
    let names: Vec<&str> = step.descriptors.iter().filter_map(|one| one.name.as_deref()).collect();
    if !names.is_empty() {
        // This process is the one that they are for.
        command.env("LISTEN_PID", std::process::id().to_string());
        command.env("LISTEN_FDS", files.len().to_string());
        command.env("LISTEN_FDNAMES", names.join(":"));
    }
    format!("{}: {}", step.program, command.exec())
}

fn open(descriptor: &Descriptor) -> Result<File, String> {
    let path = match &descriptor.file {
        Opened::GroupOf(address) => functions::group_file(address)?,
        Opened::DeviceOf(address) => functions::own_file(address)?,
        Opened::Path(path) => path.into(),
    };
    let opened = File::options().read(true).write(true).open(&path);
    opened.map_err(|error| format!("{}: {error}", path.display()))
}
