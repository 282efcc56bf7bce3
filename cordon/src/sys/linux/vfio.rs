//! What /sys, /dev and /proc say of Linux's VFIO: whether functions can be served, and what stands in the way.
//!
//! Read by commands, before anything is started and by whoever runs them: what that user may not see is unknown.
//! Nothing is changed, and no device is opened, which would reset it.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use rustix::fs::{Access, access};

use crate::host::{Group, GroupFile, Member, Obstacle, ResetReach};

/// Drivers that keep no group from being served, beside VFIO's own: bridges have none to give.
const HARMLESS: [&str; 2] = ["pci-stub", "pcieport"];

/// The file of iommufds.
pub(crate) const IOMMUFD: &str = "/dev/iommu";

/// The kernel's files, beneath `/` or, in tests, a folder.
#[derive(Clone, Debug)]
pub(crate) struct Vfio {
    root: PathBuf,
}

impl Default for Vfio {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

/// An IOMMU group, by its number.
pub(crate) fn vfio_group(number: u32) -> Option<Group> {
    Some(Vfio::default().group(number))
}

/// Whether a driver of this name is one of VFIO's, which has some for single makes of devices.
pub(crate) fn is_vfio(driver: &str) -> bool {
    driver.replace('_', "-").ends_with("vfio-pci")
}

impl Vfio {
    /// Files beneath another folder.
    #[cfg(test)]
    pub(crate) fn beneath(root: &std::path::Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// What is at this place, which is written as it is beneath `/`.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(self.at(path))?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names: Vec<String> = names.collect::<io::Result<_>>()?;
        names.sort_unstable();
        Ok(names)
    }

    /// Numbers of all IOMMU groups, in order.
    pub(crate) fn groups(&self) -> io::Result<Vec<u32>> {
        let names = self.names("/sys/kernel/iommu_groups")?;
        let mut groups: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        groups.sort_unstable();
        Ok(groups)
    }

    /// Whether a part of the kernel is there: loaded, or built in.
    pub(crate) fn has_module(&self, name: &str) -> bool {
        self.at("/sys/module").join(name).exists()
    }

    /// Whether a file can be read and written, or why not.
    pub(crate) fn may_use(&self, path: &str) -> io::Result<()> {
        Ok(access(self.at(path), Access::READ_OK | Access::WRITE_OK)?)
    }

    /// What is known of a group.
    pub(crate) fn group(&self, number: u32) -> Group {
        let devices = self.names(&format!("/sys/kernel/iommu_groups/{number}/devices"));
        let member = |address: String| {
            let link = self.at("/sys/bus/pci/devices").join(&address).join("driver");
            let driver = std::fs::read_link(link).ok();
            let name = driver.and_then(|to| Some(to.file_name()?.to_string_lossy().into_owned()));
            let reset = self.reset(&address, number);
            Member { address, driver: name, reset }
        };
        let members: Vec<Member> = devices.unwrap_or_default().into_iter().map(member).collect();
        let path = format!("/dev/vfio/{number}");
        let own = self.own_files(&members);
        let iommufd = own.is_some();
        let obstacle = self.obstacle(number, &members, &path, iommufd);
        let held = || own.iter().flatten().find_map(|path| self.holder(path));
        let file = std::fs::metadata(self.at(&path)).ok().map(|found| GroupFile {
            mode: format!("{:04o}", found.mode() & 0o7777),
            uid: found.uid(),
            gid: found.gid(),
            held_by: self.holder(&path).or_else(held),
            path,
        });
        Group { number, members, file, iommufd, obstacle }
    }

    /// The files of their own of all functions that are VFIO's; none unless this user may use each, and an iommufd.
    fn own_files(&self, members: &[Member]) -> Option<Vec<String>> {
        let bound = members.iter().filter(|one| one.driver.as_deref().is_some_and(is_vfio));
        let own = bound.map(|one| {
            let names = self.names(&format!("/sys/bus/pci/devices/{}/vfio-dev", one.address));
            let path = format!("/dev/vfio/devices/{}", names.ok()?.first()?);
            self.may_use(&path).ok().map(|()| path)
        });
        let own: Vec<String> = own.collect::<Option<_>>()?;
        (!own.is_empty() && self.may_use(IOMMUFD).is_ok()).then_some(own)
    }

    /// What a reset of a function of a group would reach. The kernel names the ways that it has of resetting it alone,
    /// but `bus` also where it found other functions there later: those whose addresses begin as its own.
    fn reset(&self, address: &str, group: u32) -> ResetReach {
        let function = self.at("/sys/bus/pci/devices").join(address);
        let ways = std::fs::read_to_string(function.join("reset_method")).unwrap_or_default();
        let bus = address.rsplit_once(':').map_or(address, |(bus, _)| bus);
        let all = self.names("/sys/bus/pci/devices").unwrap_or_default();
        let of_bus = |name: &&String| name.rsplit_once(':').is_some_and(|(one, _)| one == bus);
        let on_it: Vec<&String> = all.iter().filter(of_bus).collect();
        let devices = self.names(&format!("/sys/kernel/iommu_groups/{group}/devices"));
        let devices = devices.unwrap_or_default();
        if ways.split_whitespace().any(|way| way != "bus" || on_it.len() < 2) {
            ResetReach::Function
        } else if !on_it.is_empty() && on_it.iter().all(|one| devices.contains(one)) {
            ResetReach::Bus
        } else {
            ResetReach::None
        }
    }

    /// What keeps a group from being served that somebody wants to be, the first thing first.
    fn obstacle(
        &self,
        number: u32,
        members: &[Member],
        path: &str,
        iommufd: bool,
    ) -> Option<Obstacle> {
        let found = |cause: String, cure: String| Some(Obstacle { cause, cure });
        let name = self.at(&format!("/sys/kernel/iommu_groups/{number}/name"));
        let name = std::fs::read_to_string(name).unwrap_or_default();
        if name.trim() == "vfio-noiommu" || self.at(&format!("/dev/vfio/noiommu-{number}")).exists()
        {
            return found(
                "it has no IOMMU (vfio's noiommu mode)".to_owned(),
                "switch the IOMMU on in the firmware and in the kernel (intel_iommu=on, or \
                 amd_iommu=on)"
                    .to_owned(),
            );
        }
        let bound = |member: &&Member| member.driver.as_deref().is_some_and(is_vfio);
        if !members.iter().any(|one| bound(&one)) {
            let first = members.first().map_or("ADDRESS", |member| member.address.as_str());
            return found(
                "no function of it is bound to vfio-pci".to_owned(),
                format!("bind it, for example with driverctl set-override {first} vfio-pci"),
            );
        }
        let others: Vec<&Member> = members
            .iter()
            .filter(|member| {
                member
                    .driver
                    .as_deref()
                    .is_some_and(|driver| !is_vfio(driver) && !HARMLESS.contains(&driver))
            })
            .collect();
        if let Some(first) = others.first() {
            let each: Vec<String> = others.iter().map(|member| member.to_string()).collect();
            return found(
                format!("the host's drivers have functions of it: {}", each.join(", ")),
                format!(
                    "bind all of them, for example with driverctl set-override {} vfio-pci: functions of \
                     a group reach each other's memory",
                    first.address
                ),
            );
        }
        match self.may_use(path) {
            Ok(()) => None,
            Err(_) if iommufd => None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => found(
                format!("there is no {path}"),
                "is the module vfio-pci loaded, and is this the host's /dev?".to_owned(),
            ),
            Err(error) => found(
                format!("this user may not use {path}: {error}"),
                format!(
                    "give it to the user (chown USER {path}; to last, a rule of udev for \
                     SUBSYSTEM==\"vfio\" with OWNER or GROUP)"
                ),
            ),
        }
    }

    /// Which process has a file open, as far as this user may see.
    fn holder(&self, path: &str) -> Option<String> {
        let file = self.at(path);
        std::fs::read_dir(self.at("/proc")).ok()?.flatten().find_map(|process| {
            let pid: u32 = process.file_name().to_str()?.parse().ok()?;
            let mut open = std::fs::read_dir(process.path().join("fd")).ok()?.flatten();
            open.find(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == file))?;
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            Some(format!("{} [{pid}]", cordon_vmm::text::printable(name.trim_end())))
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Files of a host that is made up.
    pub(crate) struct Host(tempfile::TempDir);

    impl Host {
        pub(crate) fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        pub(crate) fn vfio(&self) -> Vfio {
            Vfio::beneath(self.0.path())
        }

        pub(crate) fn write(&self, path: &str, text: &str) -> PathBuf {
            let path = self.vfio().at(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        }

        pub(crate) fn function(&self, address: &str, group: u32, driver: Option<&str>) {
            let function = format!("/sys/bus/pci/devices/{address}");
            self.write(&format!("{function}/vendor"), "0x1b36\n");
            if let Some(driver) = driver {
                let link = self.vfio().at(&function).join("driver");
                std::os::unix::fs::symlink(format!("../../drivers/{driver}"), link).unwrap();
            }
            self.write(&format!("/sys/kernel/iommu_groups/{group}/devices/{address}"), "");
        }
    }

    fn obstacle(host: &Host, group: u32) -> (String, String) {
        let obstacle = host.vfio().group(group).obstacle.unwrap();
        (obstacle.cause, obstacle.cure)
    }

    #[test]
    fn a_group_says_who_is_in_it_and_what_keeps_it_from_being_served() {
        let host = Host::new();
        host.function("0000:01:00.0", 12, Some("nvme"));
        host.function("0000:01:00.1", 12, None);
        host.function("0000:00:1c.0", 12, Some("pcieport"));
        let (cause, cure) = obstacle(&host, 12);
        assert!(cause.contains("no function of it is bound"), "{cause}");
        assert!(cure.contains("driverctl set-override 0000:00:1c.0"), "{cure}");

        host.function("0000:02:00.0", 13, Some("mlx5_vfio_pci"));
        host.function("0000:02:00.1", 13, Some("snd_hda_intel"));
        let (cause, cure) = obstacle(&host, 13);
        assert!(cause.contains("0000:02:00.1 (snd_hda_intel)"), "{cause}");
        assert!(cure.contains("set-override 0000:02:00.1 vfio-pci"), "{cure}");

        host.function("0000:03:00.0", 14, Some("vfio-pci"));
        host.function("0000:03:00.1", 14, None);
        let (cause, cure) = obstacle(&host, 14);
        assert!(cause.contains("there is no /dev/vfio/14") && cure.contains("vfio-pci"), "{cause}");
        let file = host.write("/dev/vfio/14", "");
        let group = host.vfio().group(14);
        assert_eq!(group.obstacle, None);
        let members: Vec<String> = group.members.iter().map(ToString::to_string).collect();
        assert_eq!(members, ["0000:03:00.0 (vfio-pci)", "0000:03:00.1 (no driver)"]);
        let of_file = group.file.unwrap();
        assert_eq!((of_file.path.as_str(), of_file.held_by), ("/dev/vfio/14", None));
        host.write("/proc/7/comm", "qemu\n");
        host.write("/proc/7/fd/1", "");
        std::os::unix::fs::symlink(&file, host.vfio().at("/proc/7/fd/9")).unwrap();
        let held = host.vfio().group(14).file.unwrap().held_by;
        assert_eq!(held.as_deref(), Some("qemu [7]"));

        let resets = |group: u32| -> Vec<ResetReach> {
            host.vfio().group(group).members.iter().map(|one| one.reset).collect()
        };
        assert_eq!(resets(14), [ResetReach::Bus; 2]);
        host.write("/sys/bus/pci/devices/0000:03:00.1/reset_method", "flr bus\n");
        host.write("/sys/bus/pci/devices/0000:03:00.0/reset_method", "bus\n");
        assert_eq!(resets(14), [ResetReach::Bus, ResetReach::Function]);
        host.function("0000:03:00.2", 15, None);
        assert_eq!(resets(14), [ResetReach::None, ResetReach::Function]);

        // By files of their own where all are there, and the group's own file is not needed then.
        host.function("0000:05:00.0", 16, Some("vfio-pci"));
        host.function("0000:05:00.1", 16, Some("vfio-pci"));
        let by_iommufd = || {
            let group = host.vfio().group(16);
            (group.iommufd, group.obstacle.is_none())
        };
        for (path, expected) in [
            ("/dev/iommu", (false, false)),
            ("/sys/bus/pci/devices/0000:05:00.0/vfio-dev/vfio0/dev", (false, false)),
            ("/sys/bus/pci/devices/0000:05:00.1/vfio-dev/vfio1/dev", (false, false)),
            ("/dev/vfio/devices/vfio0", (false, false)),
            ("/dev/vfio/devices/vfio1", (true, true)),
        ] {
            host.write(path, "");
            assert_eq!(by_iommufd(), expected, "{path}");
        }
        let own = host.vfio().at("/dev/vfio/devices/vfio1");
        std::os::unix::fs::symlink(own, host.vfio().at("/proc/7/fd/10")).unwrap();
        host.write("/dev/vfio/16", "");
        let held = host.vfio().group(16).file.unwrap().held_by;
        assert_eq!(held.as_deref(), Some("qemu [7]"));

        host.write("/sys/kernel/iommu_groups/14/name", "vfio-noiommu\n");
        assert!(obstacle(&host, 14).0.contains("no IOMMU"));
        assert_eq!(host.vfio().groups().unwrap(), [12, 13, 14, 15, 16]);
    }
}
