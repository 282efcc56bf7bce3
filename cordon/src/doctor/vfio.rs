//! The lines of Linux's VFIO: whether real functions can be served, and by whoever asks. They are required where
//! VFIO is what was named (`--dext vfio`).

use std::io;

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::line::Line;
use crate::host::{Group, GroupFile, Obstacle};
use crate::sys::vfio::{IOMMUFD, Vfio, is_vfio};

/// The modules that are asked for, and what each is for.
const MODULES: [&str; 2] = ["vfio_pci", "vfio_iommu_type1"];
const CONTAINER: &str = "/dev/vfio/vfio";
const LOAD: &str =
    "load the modules (modprobe -a vfio-pci vfio_iommu_type1; to last, in /etc/modules-load.d)";
const SWITCH_ON: &str = "switch the IOMMU on in the firmware (VT-d, AMD-Vi) and in the kernel (intel_iommu=on, or amd_iommu=on)";
/// Less locked memory than this is enough for no guest, in bytes.
const LEAST: u64 = 64 << 20;

/// All of them. `named` is whether VFIO is what functions are to be served by.
pub(super) fn lines(vfio: &Vfio, named: bool) -> Vec<Line> {
    let bound = bound(vfio);
    // Where every function is opened by its own file, nothing of the older way is needed.
    let new_way = !bound.is_empty() && bound.iter().all(|group| group.iommufd);
    let older = |line: Line| if new_way { line.optional() } else { line };
    let mut lines = vec![iommu(vfio), modules(vfio, new_way), older(container(vfio))];
    lines.push(iommufd(vfio).optional());
    lines.extend(groups(bound));
    lines.push(pinned_memory(privileged(), getrlimit(Resource::Memlock).current));
    if named { lines } else { lines.into_iter().map(Line::optional).collect() }
}

fn iommu(vfio: &Vfio) -> Line {
    let check = "VFIO: the IOMMU is on";
    match vfio.groups() {
        Ok(groups) if groups.is_empty() => {
            Line::missing(check, "there is no IOMMU group", SWITCH_ON)
        }
        Ok(groups) => Line::ok(check, format!("{} IOMMU groups", groups.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Line::missing(check, "the kernel has no IOMMU groups", SWITCH_ON)
        }
        Err(error) => {
            let what = format!("/sys/kernel/iommu_groups cannot be read: {error}");
            Line::unknown(check, what, "run doctor where /sys is the host's")
        }
    }
}

fn modules(vfio: &Vfio, new_way: bool) -> Line {
    let check = "VFIO: the kernel's modules";
    let needed = if new_way { &MODULES[..1] } else { &MODULES };
    let missing: Vec<&str> = needed.iter().copied().filter(|name| !vfio.has_module(name)).collect();
    if !missing.is_empty() {
        return Line::missing(check, format!("not loaded: {}", missing.join(", ")), LOAD);
    }
    Line::ok(check, format!("there: {}", needed.join(", ")))
}

fn container(vfio: &Vfio) -> Line {
    let check = "VFIO: the container's file";
    match vfio.may_use(CONTAINER) {
        Ok(()) => Line::ok(check, format!("{CONTAINER} can be read and written")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Line::missing(check, format!("there is no {CONTAINER}"), LOAD)
        }
        Err(error) => {
            let cure = format!(
                "it gives nobody a device: chmod 0666 {CONTAINER}, which is udev's own rule"
            );
            Line::missing(check, format!("this user may not use {CONTAINER}: {error}"), cure)
        }
    }
}

/// Whether memory is mapped by an iommufd, which is not needed.
fn iommufd(vfio: &Vfio) -> Line {
    let check = "VFIO: an iommufd";
    let cure = "nothing is lost by that: memory is mapped by containers (the other way is Linux 6.6 and later, with \
                CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV)";
    match vfio.may_use(IOMMUFD) {
        Ok(()) => Line::ok(check, format!("{IOMMUFD} can be read and written")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Line::missing(check, format!("there is no {IOMMUFD}"), cure)
        }
        Err(error) => {
            Line::missing(check, format!("this user may not use {IOMMUFD}: {error}"), cure)
        }
    }
}

/// Groups that have a function of VFIO's.
fn bound(vfio: &Vfio) -> Vec<Group> {
    let numbers = vfio.groups().unwrap_or_default();
    numbers
        .into_iter()
        .map(|number| vfio.group(number))
        .filter(|group| group.members.iter().any(|one| one.driver.as_deref().is_some_and(is_vfio)))
        .collect()
}

/// A line for each group that has a function of VFIO's, or one that says that there is none.
fn groups(bound: Vec<Group>) -> Vec<Line> {
    if bound.is_empty() {
        let cure = "bind the function, for example with driverctl set-override 0000:01:00.0 vfio-pci \
                    ('cordon devices --all' lists what there is)";
        return vec![Line::missing("VFIO: functions", "none is bound to vfio-pci", cure)];
    }
    let line = |group: Group| {
        let check = format!("VFIO: IOMMU group {}", group.number);
        let members: Vec<String> = group.members.iter().map(ToString::to_string).collect();
        let members = members.join(", ");
        match (group.obstacle, group.file) {
            (Some(Obstacle { cause, cure }), _) => {
                Line::missing(&check, format!("{members}: {cause}"), cure)
            }
            (None, Some(GroupFile { held_by: Some(holder), .. })) => {
                Line::ok(&check, format!("{members}; it is open in {holder}"))
            }
            (None, _) if group.iommufd => {
                Line::ok(&check, format!("{members}; their own files are used, and {IOMMUFD}"))
            }
            (None, Some(GroupFile { path, mode, .. })) => {
                Line::ok(&check, format!("{members}; {path} (mode {mode}) can be read and written"))
            }
            (None, None) => {
                Line::unknown(&check, format!("{members}: its file went meanwhile"), "ask again")
            }
        }
    };
    bound.into_iter().map(line).collect()
}

/// Whether no limit of locked memory holds for this user; `None` when that cannot be known.
fn privileged() -> Option<bool> {
    let sets = capabilities(None).ok()?;
    Some(sets.effective.contains(CapabilitySet::IPC_LOCK))
}

/// What a device reaches is pinned, and counts.
fn pinned_memory(privileged: Option<bool>, limit: Option<u64>) -> Line {
    let check = "VFIO: memory that may be locked";
    let cure = "a guest's memory is locked while it has a device: raise ulimit -l above it (under systemd: \
                LimitMEMLOCK=)";
    match (privileged, limit) {
        (Some(true), _) => Line::ok(check, "this user's processes have no limit (CAP_IPC_LOCK)"),
        (_, None) => Line::ok(check, "there is no limit (RLIMIT_MEMLOCK)"),
        (Some(false), Some(bytes)) if bytes < LEAST => {
            Line::missing(check, format!("RLIMIT_MEMLOCK is {} KiB", bytes >> 10), cure)
        }
        (Some(false), Some(bytes)) => {
            Line::ok(check, format!("guests of less than {} MiB (RLIMIT_MEMLOCK)", bytes >> 20))
        }
        (None, Some(bytes)) => {
            let what =
                format!("RLIMIT_MEMLOCK is {} KiB, and whether it holds is not known", bytes >> 10);
            Line::unknown(check, what, cure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::State;
    use super::*;
    use crate::sys::vfio::tests::Host;

    fn states(host: &Host) -> Vec<(String, State)> {
        let lines = lines(&host.vfio(), true);
        let not_needed = |line: &Line| line.check == "VFIO: an iommufd";
        assert!(lines.iter().all(|line| line.required != not_needed(line)));
        let asked = lines.iter().take(lines.len() - 1);
        asked.map(|line| (line.check.clone(), line.state)).collect()
    }

    #[test]
    fn what_vfio_needs_is_a_line_each_with_its_cure() {
        let host = Host::new();
        assert!(states(&host).iter().all(|(_, state)| *state == State::Missing));
        assert!(lines(&host.vfio(), false).iter().all(|line| !line.required));
        for module in MODULES {
            host.write(&format!("/sys/module/{module}/refcnt"), "0\n");
        }
        host.write(CONTAINER, "");
        host.function("0000:01:00.0", 7, Some("vfio-pci"));
        host.function("0000:01:00.1", 7, Some("snd_hda_intel"));
        host.function("0000:02:00.0", 8, Some("vfio-pci"));
        host.write("/dev/vfio/8", "");
        host.function("0000:03:00.0", 9, Some("nvme"));
        let found = states(&host);
        let expected = [
            ("VFIO: the IOMMU is on", State::Ok),
            ("VFIO: the kernel's modules", State::Ok),
            ("VFIO: the container's file", State::Ok),
            ("VFIO: an iommufd", State::Missing),
            ("VFIO: IOMMU group 7", State::Missing),
            ("VFIO: IOMMU group 8", State::Ok),
        ];
        assert_eq!(found, expected.map(|(check, state)| (check.to_owned(), state)));
        let line = &lines(&host.vfio(), true)[4];
        assert!(line.found.contains("0000:01:00.1 (snd_hda_intel)"), "{line:?}");
        assert!(line.cure.as_ref().unwrap().contains("set-override 0000:01:00.1"), "{line:?}");
    }

    #[test]
    fn a_kernel_without_containers_will_do_where_every_function_has_a_file_of_its_own() {
        let host = Host::new();
        host.write("/sys/module/vfio_pci/refcnt", "0\n");
        host.function("0000:01:00.0", 7, Some("vfio-pci"));
        host.write("/sys/bus/pci/devices/0000:01:00.0/vfio-dev/vfio0/dev", "");
        host.write("/dev/vfio/devices/vfio0", "");
        let ok = |lines: &[Line]| {
            let mut required = lines.iter().take(lines.len() - 1).filter(|line| line.required);
            required.all(|line| line.state == State::Ok)
        };
        assert!(!ok(&lines(&host.vfio(), true)));
        host.write(IOMMUFD, "");
        let lines = lines(&host.vfio(), true);
        assert!(ok(&lines), "{lines:?}");
        let group = lines.iter().find(|line| line.check == "VFIO: IOMMU group 7").unwrap();
        assert!(group.found.contains("their own files are used"), "{group:?}");
    }

    #[test]
    fn memory_that_may_be_locked_is_enough_or_is_not() {
        let state = |privileged, limit| pinned_memory(privileged, limit).state;
        assert_eq!(state(Some(true), Some(0)), State::Ok);
        assert_eq!(state(Some(false), None), State::Ok);
        assert_eq!(state(Some(false), Some(8 << 20)), State::Missing);
        assert_eq!(state(Some(false), Some(4 << 30)), State::Ok);
        assert_eq!(state(None, Some(8 << 20)), State::Unknown);
    }
}
