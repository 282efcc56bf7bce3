//! Where the event stream is written to: opened before this process confines itself.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::Failure;
use crate::sys::inherited;

/// What an inherited descriptor begins with.
const DESCRIPTOR: &[u8] = b"FD:";

/// Opens `target`: a path, or FD and the number of a descriptor that this program was started with.
pub(super) fn open(target: &OsStr) -> Result<OwnedFd, Failure> {
    let shown = target.display();
    if let Some(number) = target.as_bytes().strip_prefix(DESCRIPTOR) {
        let number = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
        let number = number.ok_or_else(|| {
            format!("--events {shown}: the number of a descriptor is expected after FD:")
        })?;
        let taken = inherited::take_writable(number);
        return taken.map_err(|error| format!("--events {shown}: {error}").into());
    }
    // A FIFO that nobody reads is an error, and no wait.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut options = File::options();
    let opened = options.append(true).create(true).mode(0o600).custom_flags(flags);
    let opened = opened.open(Path::new(target));
    opened.map(OwnedFd::from).map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => format!("--events {shown}: nobody reads this FIFO").into(),
        _ => format!("--events {shown}: {error}").into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn what_cannot_be_written_to_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let error = |target: &OsStr| open(target).unwrap_err().to_string();
        let nobody = error(fifo.as_os_str());
        assert!(nobody.contains("fifo") && nobody.ends_with("nobody reads this FIFO"), "{nobody}");
        let is_folder = error(folder.path().as_os_str());
        assert!(is_folder.contains(&folder.path().display().to_string()), "{is_folder}");
        for (target, why) in [
            ("FD:", "expected after FD:"),
            ("FD:x", "expected after FD:"),
            ("FD:-1", "is not open"),
            ("FD:99999", "is not open"),
        ] {
            let said = error(OsStr::new(target));
            assert!(said.starts_with(&format!("--events {target}: ")), "{said}");
            assert!(said.contains(why), "{said}");
        }
        // One that this program opened itself, as it seems.
        use std::os::fd::AsRawFd as _;
        let own = File::open("/dev/null").unwrap();
        let said = error(OsStr::new(&format!("FD:{}", own.as_raw_fd())));
        assert!(said.contains("was not inherited"), "{said}");
    }

    #[test]
    fn a_file_is_made_for_its_owner_and_appended_to() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        for line in ["one\n", "two\n"] {
            let opened = open(path.as_os_str()).unwrap();
            File::from(opened).write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
}
