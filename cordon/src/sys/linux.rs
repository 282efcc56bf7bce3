//! Linux: children and descriptors by /proc, children killed by pidfd; what `cordon doctor` tries.
#![expect(unsafe_code, reason = "KVM and locked memory are asked by system calls")]

mod confined;
mod facts;
mod handed;
mod keep;
mod manager;
pub(crate) mod vfio;

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::host::{Host, HostFunction};

pub(crate) use confined::{Confined, SPAWNER, spawner, with_spawner};
pub(crate) use facts::facts;
pub(crate) use handed::handed_groups;
pub(crate) use keep::keep;
pub(crate) use manager::{Manager, passed};
pub(crate) use vfio::vfio_group;

/// Has what `command` starts get SIGTERM when the thread that starts it ends, whatever ends it.
pub(crate) fn end_with_parent(command: &mut Command) {
    let parent = Some(rustix::process::getpid());
    let ask = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // It may have ended before that.
        if rustix::process::getppid() == parent { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec it makes two system calls, and takes no lock and no memory.
    unsafe { command.pre_exec(ask) };
}

/// Whether a socket listens, or is connected; none of both otherwise.
pub(crate) fn listens(socket: &OwnedFd) -> Result<Option<bool>, Errno> {
    if rustix::net::sockopt::socket_acceptconn(socket)? {
        return Ok(Some(true));
    }
    match rustix::net::getpeername(socket) {
        Ok(_) => Ok(Some(false)),
        Err(Errno::NOTCONN) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Children of every thread of this process, also those that ended and were not reaped.
pub(crate) fn children() -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for task in std::fs::read_dir("/proc/self/task")? {
        // A thread that ends meanwhile has no children.
        let list = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    children.sort_unstable();
    Ok(children)
}

/// Kills every child, whatever it does.
pub(crate) fn kill_children() {
    let pid = |number: &u32| i32::try_from(*number).ok().and_then(Pid::from_raw);
    let open = |pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?));
    let before = children().unwrap_or_default();
    let opened: Vec<_> = before.iter().filter_map(pid).filter_map(open).collect();
    // A number that is still a child's after it was opened was not another process's meanwhile.
    let still = children().unwrap_or_default();
    for (pid, child) in opened {
        if u32::try_from(pid.as_raw_nonzero().get()).is_ok_and(|pid| still.contains(&pid)) {
            let _ = pidfd_send_signal(child, Signal::KILL);
        }
    }
}

/// One line for each open descriptor.
pub(crate) fn descriptors() -> io::Result<Vec<String>> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let target = std::fs::read_link(&path).unwrap_or_default();
        // The listing's own descriptor.
        if !target.starts_with("/proc/") {
            let number = path.file_name().map(|name| name.to_string_lossy().into_owned());
            open.push(format!("{} {}", number.unwrap_or_default(), target.display()));
        }
    }
    open.sort();
    Ok(open)
}

/// Locks a page of memory and lets go of it; what the limit is, for people.
pub(crate) fn lock_a_page() -> io::Result<String> {
    let page = vec![0u8; rustix::param::page_size()];
    // SAFETY: the range is of a live allocation; locking does not change what is in it.
    if unsafe { libc::mlock(page.as_ptr().cast(), page.len()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the same range.
    unsafe { libc::munlock(page.as_ptr().cast(), page.len()) };
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    Ok(limit.map_or("there is no limit".to_owned(), |bytes| format!("{} KiB at most", bytes >> 10)))
}

/// Opens KVM and makes a machine, which is gone again; the version of its interface, or what failed.
pub(crate) fn make_a_kvm_machine() -> Result<i32, (&'static str, io::Error)> {
    /// `_IO(KVMIO, 0)` and `_IO(KVMIO, 1)` of linux/kvm.h.
    const GET_API_VERSION: libc::Ioctl = 0xae00;
    const CREATE_VM: libc::Ioctl = 0xae01;
    let file = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    let kvm = file.map_err(|error| ("open /dev/kvm", error))?;
    let ask = |request, what| {
        // SAFETY: both requests take an integer, 0, and touch no memory of ours, whatever device it is.
        match unsafe { libc::ioctl(kvm.as_raw_fd(), request, 0) } {
            answer if answer < 0 => Err((what, io::Error::last_os_error())),
            answer => Ok(answer),
        }
    };
    let version = ask(GET_API_VERSION, "ask /dev/kvm for its version")?;
    let machine = ask(CREATE_VM, "make a machine by /dev/kvm")?;
    // SAFETY: a new descriptor, which nobody else owns.
    drop(unsafe { OwnedFd::from_raw_fd(machine) });
    Ok(version)
}

/// The functions on this host's PCI buses.
pub(crate) fn pci_functions() -> Host {
    pci_functions_in(Path::new("/sys/bus/pci/devices"))
}

fn pci_functions_in(folder: &Path) -> Host {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut functions = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let hex = |name: &str| {
            let text = std::fs::read_to_string(path.join(name)).ok()?;
            u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
        };
        let id = |name: &str| u16::try_from(hex(name)?).ok();
        // What a link points to is named by its last part.
        let link = |name: &str| {
            let target = std::fs::read_link(path.join(name)).ok()?;
            Some(target.file_name()?.to_string_lossy().into_owned())
        };
        // One that goes while it is looked at is left out.
        let (Some(vendor), Some(device), Some(class)) = (id("vendor"), id("device"), hex("class"))
        else {
            continue;
        };
        functions.push(HostFunction {
            address: entry.file_name().to_string_lossy().into_owned(),
            vendor,
            device,
            class,
            driver: link("driver"),
            iommu_group: link("iommu_group").and_then(|group| group.parse().ok()),
        });
    }
    functions.sort_by(|one, other| one.address.cmp(&other.address));
    Ok(functions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_read_with_what_they_are_bound_to() {
        let folder = tempfile::tempdir().unwrap();
        let make = |address: &str, files: &[(&str, &str)], links: &[(&str, &str)]| {
            let path = folder.path().join(address);
            std::fs::create_dir(&path).unwrap();
            for (name, text) in files {
                std::fs::write(path.join(name), format!("{text}\n")).unwrap();
            }
            for (name, target) in links {
                std::os::unix::fs::symlink(target, path.join(name)).unwrap();
            }
        };
        let ids = [("vendor", "0x8086"), ("device", "0x0953"), ("class", "0x010802")];
        let links = [
            ("driver", "../../../bus/pci/drivers/vfio-pci"),
            ("iommu_group", "../../../../kernel/iommu_groups/14"),
        ];
        make("0000:02:00.0", &ids, &[]);
        make("0000:01:00.0", &ids, &links);
        make("0000:03:00.0", &[("vendor", "0x8086")], &[]);
        let found = pci_functions_in(folder.path()).unwrap();
        let addresses: Vec<&str> = found.iter().map(|one| one.address.as_str()).collect();
        assert_eq!(addresses, ["0000:01:00.0", "0000:02:00.0"]);
        let (bound, free) = (&found[0], &found[1]);
        assert_eq!(bound.driver.as_deref(), Some("vfio-pci"));
        assert_eq!((bound.iommu_group, bound.class), (Some(14), 0x01_08_02));
        assert_eq!((&free.driver, free.iommu_group), (&None, None));
        assert!(pci_functions_in(Path::new("/no/such")).unwrap_err().contains("/no/such"));
    }
}
