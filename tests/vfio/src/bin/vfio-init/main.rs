//! `vfio-init`: the init of the machine that `vfio_guest` boots. It makes the system that programs expect, loads the
//! kernel's VFIO, binds what is to be bound, runs the script of its initramfs and reports on a serial port of its own.
//! Whatever happens ends with a report and the machine off: nobody is there to look at it.

mod functions;
mod launch;
mod reporter;
mod steps;

use std::fs;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::system::{RebootCommand, finit_module, reboot};

use reporter::Reporter;
use vfio_guest::Report;
use vfio_guest::script::{MODULES, SCRIPT, Script};

fn main() {
    if let Some(step) = launch::step() {
        let failed = launch::run(step);
        console::complain(format_args!("vfio-init: {failed}"));
        std::process::exit(i32::from(console::exit::FAILED));
    }
    // Before devices are there, there is nothing to report on: the kernel's console has what is printed.
    let reporter = match prepare() {
        Ok(reporter) => reporter,
        Err(reason) => {
            console::complain(format_args!("vfio-init: {reason}"));
            return off();
        }
    };
    match serve(&reporter) {
        Ok(()) => reporter.report(&Report::Done),
        Err(reason) => reporter.report(&Report::Failed { reason }),
    }
    drop(reporter);
    off();
}

fn off() {
    rustix::fs::sync();
    let _ = reboot(RebootCommand::PowerOff);
}

/// Mounts what a Linux system needs, in a root that is not the kernel's first one.
fn prepare() -> Result<Reporter, String> {
    move_root().map_err(|error| format!("the root cannot be moved: {error}"))?;
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
    ] {
        fs::create_dir_all(at).map_err(|error| format!("{at}: {error}"))?;
        let mounted = mount(kind, at, kind, MountFlags::empty(), None);
        mounted.map_err(|error| format!("mounting {at}: {error}"))?;
    }
    Reporter::open().map_err(|error| format!("the port for reports: {error}"))
}

/// Moves the root. The kernel's first one, which has the initramfs, can neither be pivoted away from nor unmounted, and
/// a process that gives itself an empty root does both. A second mount of it that lies over it can.
fn move_root() -> rustix::io::Result<()> {
    const AT: &str = "/moved";
    fs::create_dir_all(AT).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    mount_bind("/", AT)?;
    rustix::process::chdir(AT)?;
    mount_move(AT, "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")
}

fn serve(reporter: &Reporter) -> Result<(), String> {
    let script = fs::read(SCRIPT).map_err(|error| format!("{SCRIPT}: {error}"))?;
    let script: Script =
        serde_json::from_slice(&script).map_err(|error| format!("{SCRIPT}: {error}"))?;
    load_modules()?;
    for function in &script.bind {
        vfio_guest::binding::bind(function)?;
    }
    reporter.report(&Report::Ready { functions: functions::all()? });
    for step in &script.steps {
        let may_open = step.descriptors.is_empty();
        for function in &script.bind {
            functions::give(function, if may_open { step.user } else { 0 })?;
        }
        functions::open_containers(may_open)?;
        steps::run(step, reporter);
    }
    Ok(())
}

/// Loads every module of the initramfs, in the order of their names. A kernel that has VFIO built in comes without.
fn load_modules() -> Result<(), String> {
    if !fs::exists(MODULES).unwrap_or(true) {
        return Ok(());
    }
    let entries = fs::read_dir(MODULES).map_err(|error| format!("{MODULES}: {error}"))?;
    let mut modules: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    modules.sort();
    for module in modules {
        let file =
            fs::File::open(&module).map_err(|error| format!("{}: {error}", module.display()))?;
        match finit_module(&file, c"", 0) {
            // Whoever has a kernel with it built in has it already.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(format!("{}: {error}", module.display())),
        }
    }
    Ok(())
}
