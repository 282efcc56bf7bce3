//! What /sys says of functions and groups: their drivers, who shares a group with whom, and for listing,
//! what is known of a function that nobody opens.
//!
//! Read before the process confines itself, and by no other.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use ipc::PciAddress;
use ipc::wire::common::BarInfo;

use crate::error::{Obstacle, VfioError};

/// Bytes of config space.
const CONFIG: usize = 4096;
/// A BAR's type, in the flags of a resource: as the register has it.
const KIND: u64 = 0xf;

/// Where the kernel's files are.
#[derive(Clone, Debug)]
pub struct Places {
    /// As /sys.
    pub sys: PathBuf,
    /// As /dev.
    pub dev: PathBuf,
    /// As /proc.
    pub proc: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { sys: "/sys".into(), dev: "/dev".into(), proc: "/proc".into() }
    }
}

/// An address as the kernel writes it.
pub(crate) fn name(address: PciAddress) -> String {
    let (segment, bus) = (address.segment(), address.bus());
    format!("{segment:04x}:{bus:02x}:{:02x}.{:x}", address.device(), address.function())
}

/// The last part of what a link points to; `None` if there is no link.
fn link(path: &Path) -> Result<Option<String>, VfioError> {
    match std::fs::read_link(path) {
        Ok(to) => Ok(to.file_name().map(|name| name.to_string_lossy().into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(VfioError::Sysfs { path: path.to_owned(), source }),
    }
}

/// Names in a folder, in order.
fn names(path: &Path) -> Result<Vec<String>, VfioError> {
    let failed = |source| VfioError::Sysfs { path: path.to_owned(), source };
    let entries = std::fs::read_dir(path).map_err(failed)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.collect::<io::Result<_>>().map_err(failed)?;
    names.sort_unstable();
    Ok(names)
}

/// Whether a driver of this name is of VFIO's, which has some for single makes of devices.
pub(crate) fn is_vfio(driver: &str) -> bool {
    driver.replace('_', "-").ends_with("vfio-pci")
}

impl Places {
    fn function(&self, name: &str) -> PathBuf {
        self.sys.join("bus/pci/devices").join(name)
    }

    /// The IOMMU group of a function that there is.
    ///
    /// # Errors
    /// [`VfioError`].
    pub(crate) fn group(&self, address: PciAddress) -> Result<u32, VfioError> {
        let function = self.function(&name(address));
        if !function.exists() {
            return Err(VfioError::NoSuchFunction(address));
        }
        let group = link(&function.join("iommu_group"))?.ok_or(VfioError::NoGroup)?;
        group.parse().map_err(|_| VfioError::Invalid(format!("'{group}' is no IOMMU group")))
    }

    /// The file of a group.
    ///
    /// # Errors
    /// [`VfioError::NoIommu`] when it is one without an IOMMU.
    pub(crate) fn file(&self, group: u32) -> Result<PathBuf, VfioError> {
        let named = format!("noiommu-{group}");
        let said = self.sys.join(format!("kernel/iommu_groups/{group}/name"));
        let said = std::fs::read_to_string(said).unwrap_or_default();
        if self.dev.join("vfio").join(&named).exists() || said.trim() == "vfio-noiommu" {
            return Err(VfioError::NoIommu { group: named });
        }
        Ok(self.dev.join("vfio").join(group.to_string()))
    }

    /// The file of a function's own, if the kernel makes one and it is here.
    pub(crate) fn cdev(&self, name: &str) -> Option<PathBuf> {
        let path = self.dev.join("vfio/devices").join(self.own_name(name)?);
        path.exists().then_some(path)
    }

    /// What the file of a function's own is called, if the kernel makes one.
    pub(crate) fn own_name(&self, name: &str) -> Option<String> {
        names(&self.function(name).join("vfio-dev")).ok()?.into_iter().next()
    }

    /// Which process has a file open, as `name (pid 7)`, as far as whoever runs this may see: the first that is
    /// found.
    pub(crate) fn holder(&self, file: &Path) -> Option<String> {
        std::fs::read_dir(&self.proc).ok()?.flatten().find_map(|process| {
            let name = process.file_name();
            let pid: u32 = name.to_str()?.parse().ok()?;
            // A function's own file is open here too, whoever has the function.
            if pid == std::process::id() {
                return None;
            }
            let mut open = std::fs::read_dir(process.path().join("fd")).ok()?.flatten();
            open.find(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == file))?;
            let comm = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let printable = |one: char| if one.is_control() { '?' } else { one };
            let comm: String = comm.trim_end().chars().map(printable).collect();
            Some(format!("{comm} (pid {pid})"))
        })
    }

    /// The functions of a group, by their names.
    ///
    /// # Errors
    /// [`VfioError::Sysfs`].
    pub(crate) fn members(&self, group: u32) -> Result<Vec<String>, VfioError> {
        names(&self.sys.join(format!("kernel/iommu_groups/{group}/devices")))
    }

    /// The driver of a function, if it has one.
    ///
    /// # Errors
    /// [`VfioError::Sysfs`].
    pub(crate) fn driver(&self, name: &str) -> Result<Option<String>, VfioError> {
        link(&self.function(name).join("driver"))
    }

    /// Those functions of a group that other drivers have. Of those that have none the kernel takes no
    /// offence, and of bridges' neither.
    pub(crate) fn obstacles(&self, group: u32) -> Vec<Obstacle> {
        let of = |function: String| {
            let driver = self.driver(&function).ok().flatten()?;
            let harmless = is_vfio(&driver) || ["pci-stub", "pcieport"].contains(&driver.as_str());
            (!harmless).then_some(Obstacle { function, driver: Some(driver) })
        };
        self.members(group).unwrap_or_default().into_iter().filter_map(of).collect()
    }

    /// The addresses of all functions that are VFIO's, in order.
    ///
    /// # Errors
    /// [`VfioError::Sysfs`].
    pub(crate) fn bound(&self) -> Result<Vec<PciAddress>, VfioError> {
        let mut bound = Vec::new();
        for name in names(&self.sys.join("bus/pci/devices"))? {
            let Ok(address) = name.parse::<PciAddress>() else { continue };
            if self.driver(&name)?.is_some_and(|driver| is_vfio(&driver)) {
                bound.push(address);
            }
        }
        bound.sort_unstable();
        Ok(bound)
    }

    /// What can be read of a function's config space by whoever runs this: all of it, or the header, and
    /// zeros from there on.
    ///
    /// # Errors
    /// [`VfioError::Sysfs`].
    pub(crate) fn config(&self, address: PciAddress) -> Result<Vec<u8>, VfioError> {
        let path = self.function(&name(address)).join("config");
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            std::fs::File::open(&path)?.take(CONFIG as u64).read_to_end(&mut bytes)?;
            bytes.resize(CONFIG, 0);
            Ok(bytes)
        };
        read().map_err(|source| VfioError::Sysfs { path: path.clone(), source })
    }

    /// What the kernel has for the `vendor` or `device` of a function, if it says.
    pub(crate) fn id(&self, address: PciAddress, what: &str) -> Option<u16> {
        let said = std::fs::read_to_string(self.function(&name(address)).join(what)).ok()?;
        u16::from_str_radix(said.trim().strip_prefix("0x")?, 16).ok()
    }

    /// A function's BARs, by its resources: first and last address, and flags.
    ///
    /// # Errors
    /// [`VfioError::Sysfs`] and [`VfioError::Invalid`].
    pub(crate) fn bars(&self, address: PciAddress) -> Result<[Option<BarInfo>; 6], VfioError> {
        let path = self.function(&name(address)).join("resource");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| VfioError::Sysfs { path: path.clone(), source })?;
        let mut bars = [None; 6];
        for ((number, bar), line) in (0u8..).zip(&mut bars).zip(text.lines()) {
            let invalid = || VfioError::Invalid(format!("'{line}' is no resource"));
            let words: Option<Vec<u64>> = line
                .split_whitespace()
                .map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok())
                .collect();
            let Some(&[first, last, flags]) = words.as_deref() else { return Err(invalid()) };
            if flags == 0 {
                continue;
            }
            let size = last.checked_sub(first).and_then(|size| size.checked_add(1));
            let kind = u8::try_from(flags & KIND).unwrap_or_default();
            let size = size.ok_or_else(invalid)?;
            *bar = Some(BarInfo { memory_index: number, size, kind });
        }
        Ok(bars)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Machine;

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    #[test]
    fn a_function_is_found_with_its_group_and_its_driver() {
        let machine = Machine::new();
        machine.function("0000:01:00.0", 12, Some("vfio-pci"));
        machine.function("0001:02:00.1", 13, Some("nvme"));
        machine.function("0000:03:00.0", 14, None);
        machine.function("0000:04:00.0", 15, Some("mlx5_vfio_pci"));
        let places = machine.places();
        assert_eq!(places.group(address("01:00.0")).unwrap(), 12);
        assert_eq!(places.group(address("0001:02:00.1")).unwrap(), 13);
        let none = places.group(address("05:00.0")).unwrap_err();
        assert_eq!(none.to_string(), "this machine has no function 05:00.0");
        assert_eq!(places.driver("0000:03:00.0").unwrap(), None);
        assert_eq!(places.bound().unwrap(), ["01:00.0", "04:00.0"].map(address));
    }

    #[test]
    fn a_group_is_not_viable_for_those_whom_other_drivers_have() {
        let machine = Machine::new();
        machine.function("0000:01:00.0", 12, Some("vfio-pci"));
        machine.function("0000:01:00.1", 12, Some("snd_hda_intel"));
        machine.function("0000:01:00.2", 12, None);
        machine.function("0000:00:1c.0", 12, Some("pcieport"));
        let places = machine.places();
        assert_eq!(places.members(12).unwrap().len(), 4);
        let obstacles = places.obstacles(12);
        assert_eq!(obstacles.len(), 1);
        assert_eq!(obstacles[0].function, "0000:01:00.1");
    }

    #[test]
    fn the_process_that_has_a_group_open_is_named() {
        let machine = Machine::new();
        let (places, group) = (machine.places(), machine.write("dev/vfio/12", ""));
        machine.write("proc/self/comm", "no number\n");
        machine.write("proc/41/comm", "other\n");
        machine.write("proc/42/comm", "qemu\u{1b}x86\n");
        for pid in [41, 42] {
            machine.write(&format!("proc/{pid}/fd/x"), "");
        }
        assert_eq!(places.holder(&group), None);
        std::os::unix::fs::symlink(&group, places.proc.join("42/fd/7")).unwrap();
        assert_eq!(places.holder(&group).as_deref(), Some("qemu?x86 (pid 42)"));
    }

    #[test]
    fn what_is_behind_no_iommu_is_refused_by_either_of_its_names() {
        let machine = Machine::new();
        machine.function("0000:01:00.0", 3, Some("vfio-pci"));
        let places = machine.places();
        assert!(places.file(3).unwrap().ends_with("vfio/3"));
        let named = machine.write("dev/vfio/noiommu-3", "");
        let refused = places.file(3).unwrap_err().to_string();
        assert!(refused.contains("its group noiommu-3 has no IOMMU"), "{refused}");
        std::fs::remove_file(named).unwrap();
        machine.write("sys/kernel/iommu_groups/3/name", "vfio-noiommu\n");
        assert!(matches!(places.file(3), Err(VfioError::NoIommu { .. })));
    }

    #[test]
    fn resources_are_bars_and_a_header_is_all_that_some_may_read() {
        let machine = Machine::new();
        machine.function("0000:01:00.0", 3, Some("vfio-pci"));
        machine.write(
            "sys/bus/pci/devices/0000:01:00.0/resource",
            "0x00000000fe800000 0x00000000fe803fff 0x0000000000140204\n\
             0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
             0x000000000000c000 0x000000000000c01f 0x0000000000040101\n",
        );
        let place = machine.write("sys/bus/pci/devices/0000:01:00.0/config", "");
        std::fs::write(place, [7; 64]).unwrap();
        let (places, function) = (machine.places(), address("01:00.0"));
        let bars = places.bars(function).unwrap();
        assert_eq!(bars[0], Some(BarInfo { memory_index: 0, size: 0x4000, kind: 4 }));
        assert_eq!(bars[1], None);
        assert_eq!(bars[2], Some(BarInfo { memory_index: 2, size: 0x20, kind: BarInfo::IO }));
        let config = places.config(function).unwrap();
        assert_eq!((config.len(), config[63], config[64]), (4096, 7, 0));
        machine.write("sys/bus/pci/devices/0000:01:00.0/resource", "0x0 banana 0x1\n");
        let refused = places.bars(function).unwrap_err().to_string();
        assert!(refused.contains("'0x0 banana 0x1' is no resource"), "{refused}");
    }
}
