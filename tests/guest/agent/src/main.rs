//! The guest's init: mounts what a Linux system needs, does what the kernel command line asks
//! (`cordon.test=NAME`), says how it went on the console, and powers off.
//!
//! Linked statically and put into an initramfs with busybox, so that a guest needs nothing else.
#![expect(clippy::print_stdout, reason = "a guest without a console has nobody to tell anything")]

mod companion;
mod load;
mod measure;
mod nvme;
mod probe;
mod replaced;
mod sys;

use std::fs;
use std::path::Path;
use std::process::Command;

/// A test's outcome: nothing, or what did not hold.
type Outcome = Result<(), String>;

/// What ends a guest.
enum End {
    PowerOff,
    Reboot,
    /// Wait for whoever drives the guest from outside.
    Stay,
}

fn main() {
    let set_up = set_up();
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let test = line.split_whitespace().find_map(|word| word.strip_prefix("cordon.test="));
    let (name, done) = match (set_up, test) {
        (Err(error), _) => ("set-up", Err(error)),
        (Ok(()), None | Some("shell")) => return shell(),
        (Ok(()), Some(test)) => (test, run(test)),
    };
    let end = match done {
        Ok(end) => {
            println!("GUEST-OK {name}");
            end
        }
        Err(error) => {
            println!("GUEST-FAIL {name}: {error}");
            End::PowerOff
        }
    };
    sys::end(&end);
}

fn run(test: &str) -> Result<End, String> {
    let off = |outcome: Outcome| outcome.map(|()| End::PowerOff);
    match test {
        "queues" => off(nvme::queues()),
        "files" => off(nvme::files()),
        "hold" => off(nvme::hold()),
        "companion" => off(companion::exercise()),
        "return" => off(nvme::comes_back()),
        "stalled" => off(load::stalled()),
        "outlived" => off(load::outlived()),
        "replaced" => off(replaced::until_told()),
        "pin" => off(load::by_pin()),
        "measure" => off(measure::disks()),
        "probe" => off(probe::exercise()),
        "reboot" => nvme::reboot(),
        "marker" => off(nvme::marker()),
        "stay" => Ok(End::Stay),
        other => Err(format!("there is no test {other}")),
    }
}

fn set_up() -> Outcome {
    for (kind, at) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")]
    {
        fs::create_dir_all(at).map_err(|error| format!("{at}: {error}"))?;
        sys::mount(kind, at, kind).map_err(|error| format!("mounting {at}: {error}"))?;
    }
    load_modules()?;
    busybox(&["--install", "-s", "/bin"])
}

/// Loads what the initramfs brings for a kernel without the drivers that are needed, in the order of their names.
fn load_modules() -> Outcome {
    let entries = fs::read_dir("/modules").into_iter().flatten().flatten();
    let mut modules: Vec<_> = entries.map(|entry| entry.path()).collect();
    modules.sort();
    for module in modules {
        let loaded = sys::load_module(&module);
        loaded.map_err(|error| format!("{}: {error}", module.display()))?;
    }
    Ok(())
}

/// Runs one of busybox's programs.
fn busybox(arguments: &[&str]) -> Outcome {
    let status = Command::new("/bin/busybox").args(arguments).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{arguments:?}: {status}")),
        Err(error) => Err(format!("{arguments:?}: {error}")),
    }
}

/// A prompt for people.
fn shell() {
    println!("Guest of Cordon. PCI functions:");
    for entry in fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten() {
        let read = |name| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let driver = fs::read_link(entry.path().join("driver")).ok();
        let driver = driver.as_deref().and_then(Path::file_name).unwrap_or_default();
        println!(
            "  {} {}:{} class {} {}",
            entry.file_name().to_string_lossy(),
            read("vendor").trim(),
            read("device").trim(),
            read("class").trim(),
            driver.to_string_lossy()
        );
    }
    println!("'poweroff -f' ends the guest; so does Ctrl-A X.");
    let _ = Command::new("/bin/busybox")
        .args(["setsid", "cttyhack", "sh"])
        .env("PATH", "/bin")
        .status();
    sys::end(&End::PowerOff);
}
