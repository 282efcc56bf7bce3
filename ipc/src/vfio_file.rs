//! Which file of Linux's VFIO a descriptor is, by the number of its device and what /sys says of that.
//!
//! Looked at by whoever takes descriptors that another program opened, before they are used. The kernel is
//! trusted; whoever passed the descriptor on may have mixed it up.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FileType, fstat, major, minor};

/// What is behind a descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VfioFile {
    /// `/dev/vfio/NUMBER`.
    Group(u32),
    /// `/dev/vfio/noiommu-NUMBER`, by its name: a group that no IOMMU keeps apart.
    NoIommu(String),
    /// `/dev/vfio/vfio`.
    Container,
    /// `/dev/vfio/devices/NAME`.
    Device(String),
    /// `/dev/iommu`.
    Iommufd,
    /// Something else, in words.
    Other(String),
}

impl VfioFile {
    /// The file behind `descriptor`, by what is in `sys`, which is `/sys`.
    ///
    /// # Errors
    /// When the descriptor cannot be looked at.
    pub fn of(descriptor: impl AsFd, sys: &Path) -> io::Result<Self> {
        Ok(number(descriptor)?.map_or_else(Self::no_device, |number| Self::numbered(number, sys)))
    }

    /// What is no character device.
    #[must_use]
    pub fn no_device() -> Self {
        Self::Other("a file of another kind than VFIO has".to_owned())
    }

    /// The character device of this major and minor number, by what is in `sys`.
    #[must_use]
    pub fn numbered((major, minor): (u32, u32), sys: &Path) -> Self {
        let link = std::fs::read_link(sys.join(format!("dev/char/{major}:{minor}")));
        let link = link.unwrap_or_default();
        let mut parts = link.iter().rev().map(|part| part.to_string_lossy().into_owned());
        let (name, class) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        match (class.as_str(), name.as_str(), name.parse()) {
            ("vfio", _, Ok(number)) => Self::Group(number),
            ("vfio", name, _) if name.starts_with("noiommu-") => Self::NoIommu(name.to_owned()),
            ("misc", "vfio", _) => Self::Container,
            ("misc", "iommu", _) => Self::Iommufd,
            ("vfio-dev", name, _) => Self::Device(name.to_owned()),
            ("", ..) => Self::Other(format!("the character device {major}:{minor}")),
            (class, name, _) => {
                Self::Other(format!("the character device {major}:{minor} ({class}/{name})"))
            }
        }
    }
}

impl fmt::Display for VfioFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(number) => write!(f, "the file of IOMMU group {number}"),
            Self::NoIommu(name) => {
                write!(
                    f,
                    "the file of {name}, a group without an IOMMU: its devices reach all memory"
                )
            }
            Self::Container => f.write_str("a container (/dev/vfio/vfio)"),
            Self::Device(name) => write!(f, "the file of a device (/dev/vfio/devices/{name})"),
            Self::Iommufd => f.write_str("an iommufd (/dev/iommu)"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// Major and minor number of the character device behind a descriptor; none of anything else.
///
/// # Errors
/// When the descriptor cannot be looked at.
pub fn number(descriptor: impl AsFd) -> io::Result<Option<(u32, u32)>> {
    let stat = fstat(descriptor)?;
    let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    Ok(device.then(|| (major(stat.st_rdev), minor(stat.st_rdev))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_sys_says_of_its_number() {
        let sys = tempfile::tempdir().unwrap();
        let folder = sys.path().join("dev/char");
        std::fs::create_dir_all(&folder).unwrap();
        for (number, link, is) in [
            ("236:0", "virtual/vfio/12", VfioFile::Group(12)),
            ("236:1", "virtual/vfio/noiommu-3", VfioFile::NoIommu("noiommu-3".to_owned())),
            ("10:196", "virtual/misc/vfio", VfioFile::Container),
            ("10:124", "virtual/misc/iommu", VfioFile::Iommufd),
            (
                "511:0",
                "pci0000:00/0000:00:02.0/0000:01:00.0/vfio-dev/vfio0",
                VfioFile::Device("vfio0".to_owned()),
            ),
            (
                "1:3",
                "virtual/mem/null",
                VfioFile::Other("the character device 1:3 (mem/null)".to_owned()),
            ),
        ] {
            let target = format!("../../devices/{link}");
            std::os::unix::fs::symlink(target, folder.join(number)).unwrap();
            let (major, minor) = number.split_once(':').unwrap();
            let number = (major.parse().unwrap(), minor.parse().unwrap());
            assert_eq!(VfioFile::numbered(number, sys.path()), is);
        }
        let unknown = VfioFile::numbered((7, 7), sys.path());
        assert_eq!(unknown.to_string(), "the character device 7:7");
    }

    #[test]
    fn a_descriptor_of_something_else_is_named() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(number(&null).unwrap(), Some((1, 3)));
        let said = VfioFile::of(&null, Path::new("/sys")).unwrap().to_string();
        assert!(said.starts_with("the character device 1:3"), "{said}");
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(VfioFile::of(&one, Path::new("/sys")).unwrap(), VfioFile::no_device());
        let said = VfioFile::Device("vfio0".to_owned()).to_string();
        assert_eq!(said, "the file of a device (/dev/vfio/devices/vfio0)");
    }
}
