//! PCI functions as sysfs has them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use vfio_guest::binding::{DEVICES, DRIVER, last_part};
use vfio_guest::script::Function;

/// Makes the IOMMU group of a bound function a user's, as a manager does that starts programs as that user.
pub(crate) fn give(address: &str, user: u32) -> Result<(), String> {
    let function = Path::new(DEVICES).join(address);
    // A step before this one may have taken it away and failed: that is that step's error.
    if last_part(&function.join("driver")).as_deref() != Some(DRIVER) {
        return Ok(());
    }
    let file = group_file(address)?;
    let given = std::os::unix::fs::chown(&file, Some(user), Some(user));
    given.map_err(|error| format!("giving {} to user {user}: {error}", file.display()))
}

/// Who but root may open containers, by the mode of their file: everybody, as the kernel makes it, or nobody.
pub(crate) fn open_containers(to_all: bool) -> Result<(), String> {
    const FILE: &str = "/dev/vfio/vfio";
    let mode = std::fs::Permissions::from_mode(if to_all { 0o666 } else { 0o600 });
    fs::set_permissions(FILE, mode).map_err(|error| format!("{FILE}: {error}"))
}

/// The file of a function's IOMMU group.
pub(crate) fn group_file(address: &str) -> Result<PathBuf, String> {
    let group = last_part(&Path::new(DEVICES).join(address).join("iommu_group"));
    let group = group.ok_or_else(|| format!("{address} is in no group"))?;
    Ok(Path::new("/dev/vfio").join(group))
}

/// A function's own file.
pub(crate) fn own_file(address: &str) -> Result<PathBuf, String> {
    let folder = Path::new(DEVICES).join(address).join("vfio-dev");
    let mut names =
        fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let name = names.next().and_then(Result::ok).ok_or_else(|| format!("{address} has no file"))?;
    Ok(Path::new("/dev/vfio/devices").join(name.file_name()))
}

/// Every function, by address.
pub(crate) fn all() -> Result<Vec<Function>, String> {
    let entries = fs::read_dir(DEVICES).map_err(|error| format!("{DEVICES}: {error}"))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths.iter().map(|path| look(path)).collect())
}

fn look(path: &Path) -> Function {
    let number = |name: &str| {
        let text = fs::read_to_string(path.join(name)).unwrap_or_default();
        text.trim().trim_start_matches("0x").to_owned()
    };
    Function {
        address: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        ids: format!("{}:{}", number("vendor"), number("device")),
        class: number("class"),
        group: last_part(&path.join("iommu_group")).and_then(|group| group.parse().ok()),
        driver: last_part(&path.join("driver")),
    }
}
