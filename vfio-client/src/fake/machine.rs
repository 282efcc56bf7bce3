//! Files in the place of /sys and /dev.

use std::path::PathBuf;

use super::{CONTAINER, DEVICES, GROUPS, IOMMUFD};
use crate::sysfs::Places;

/// A folder in the place of /sys and /dev.
#[derive(Debug)]
pub struct Machine(tempfile::TempDir);

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// Without functions.
    ///
    /// # Panics
    /// When there is no room for it.
    #[must_use]
    pub fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        for folder in ["sys/bus/pci/devices", "sys/kernel/iommu_groups", "sys/dev/char", "dev/vfio"]
        {
            std::fs::create_dir_all(machine.0.path().join(folder)).unwrap();
        }
        machine.number(CONTAINER, "virtual/misc/vfio");
        machine
    }

    /// Where its files are.
    #[must_use]
    pub fn places(&self) -> Places {
        let root = self.0.path();
        Places { sys: root.join("sys"), dev: root.join("dev"), proc: root.join("proc") }
    }

    /// Writes a file.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Has a character device be called so beneath /sys/devices.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn number(&self, (major, minor): (u32, u32), device: &str) {
        let link = self.0.path().join(format!("sys/dev/char/{major}:{minor}"));
        // Once for each function of a group.
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(format!("../../devices/{device}"), link).unwrap();
    }

    /// Has a function of VFIO's have a file of its own, and the kernel an iommufd.
    ///
    /// # Panics
    /// When it is there already.
    pub fn cdev(&self, name: &str, number: u32) {
        let device = format!("vfio-dev/vfio{number}");
        self.write(&format!("sys/bus/pci/devices/{name}/{device}/dev"), "");
        self.write(&format!("dev/vfio/devices/vfio{number}"), "");
        self.write("dev/iommu", "");
        self.number((DEVICES, number), &format!("pci0000:00/{name}/{device}"));
        self.number(IOMMUFD, "virtual/misc/iommu");
    }

    /// Adds a function in a group.
    ///
    /// # Panics
    /// When it is there already.
    pub fn function(&self, name: &str, group: u32, driver: Option<&str>) {
        let sys = self.0.path().join("sys");
        let function = sys.join("bus/pci/devices").join(name);
        std::fs::create_dir(&function).unwrap();
        let groups = format!("../../../../kernel/iommu_groups/{group}");
        std::os::unix::fs::symlink(groups, function.join("iommu_group")).unwrap();
        if let Some(driver) = driver {
            let driver = format!("../../drivers/{driver}");
            std::os::unix::fs::symlink(driver, function.join("driver")).unwrap();
        }
        let members = sys.join(format!("kernel/iommu_groups/{group}/devices"));
        std::fs::create_dir_all(&members).unwrap();
        std::fs::write(members.join(name), "").unwrap();
        self.number((GROUPS, group), &format!("virtual/vfio/{group}"));
    }
}
