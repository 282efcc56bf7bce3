//! The programs of a spawner: the grant's, by its path, and others that came as descriptors.
//!
//! Both sides run it. A server that is taken over may pass any descriptor that it has, so a file is run only
//! if nobody could have written it but those who may do so much anyhow: root, and the user who started all of
//! this. What has no name in any folder is none of theirs: memory can be made by whoever is taken over.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::limits::MAX_PROGRAMS;

/// What begins the path by which the server's side calls a program that came as a descriptor.
const PREFIX: &str = "spawner:";

/// What the server's side calls a program. The name of a file beside it is the same program.
pub(super) fn path(number: u32) -> PathBuf {
    PathBuf::from(format!("{PREFIX}{number}/device-proc"))
}

/// Which program a path is, if it is one of [`path`]'s.
pub(super) fn number(path: &Path) -> Option<u32> {
    let text = path.to_str()?.strip_prefix(PREFIX)?;
    text.split_once('/')?.0.parse().ok()
}

/// The spawner's own.
pub(super) struct Programs {
    path: Vec<u8>,
    /// The file that was there at the start, if there was one.
    first: Option<OwnedFd>,
    others: Vec<(u32, OwnedFd)>,
    last: u32,
}

impl Programs {
    /// The grant's, held from here on, so that it stays the same when its file is replaced.
    pub(super) fn new(path: &[u8]) -> Self {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let first = rustix::fs::openat(CWD, OsStr::from_bytes(path), flags, Mode::empty());
        Self { path: path.to_vec(), first: first.ok(), others: Vec::new(), last: 0 }
    }

    /// Takes another one; its number, which is 0 if it is no other.
    pub(super) fn add(&mut self, file: OwnedFd) -> Result<u32, String> {
        if self.first.as_ref().is_some_and(|first| is_same(first, &file)) {
            return Ok(0);
        }
        check(file.as_fd())?;
        if self.others.len() >= MAX_PROGRAMS {
            return Err(format!("{MAX_PROGRAMS} other programs are kept already"));
        }
        self.last += 1;
        self.others.push((self.last, file));
        Ok(self.last)
    }

    pub(super) fn forget(&mut self, number: u32) {
        self.others.retain(|(one, _)| *one != number);
    }

    /// The path of a program, for people and for the system, and its file where it is not run by its path.
    pub(super) fn find(&self, number: u32) -> Result<(PathBuf, Option<BorrowedFd<'_>>), String> {
        let granted = PathBuf::from(OsStr::from_bytes(&self.path));
        if number == 0 {
            // One that is there by its path is run by it, which has it seen by its name.
            let replaced = self.first.as_ref().filter(|first| !is_at(first, &granted));
            return Ok((granted, replaced.map(|file| file.as_fd())));
        }
        let found = self.others.iter().find(|(one, _)| *one == number);
        let (_, file) = found.ok_or_else(|| format!("there is no program {number}"))?;
        Ok((granted, Some(file.as_fd())))
    }
}

/// Whether a file is what is at a path, or what is there cannot be told.
fn is_at(file: &OwnedFd, path: &Path) -> bool {
    let (Ok(held), Ok(there)) = (rustix::fs::fstat(file), rustix::fs::stat(path)) else {
        return false;
    };
    (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)
}

/// Whether two descriptors are of one file.
fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let place = |file: &OwnedFd| rustix::fs::fstat(file).map(|stat| (stat.st_dev, stat.st_ino));
    matches!((place(one), place(other)), (Ok(one), Ok(other)) if one == other)
}

/// Whether a file may be run.
fn check(file: BorrowedFd<'_>) -> Result<(), String> {
    let stat =
        rustix::fs::fstat(file).map_err(|error| format!("it cannot be looked at: {error}"))?;
    let own = rustix::process::geteuid().as_raw();
    let why = if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        "it is no regular file".to_owned()
    } else if stat.st_mode & 0o111 == 0 {
        "it is not executable".to_owned()
    } else if stat.st_mode & 0o6000 != 0 {
        "it runs as another user or group (set-user-id, set-group-id)".to_owned()
    } else if stat.st_mode & 0o022 != 0 {
        "its group or others may write it".to_owned()
    } else if stat.st_uid != 0 && stat.st_uid != own {
        let owner = stat.st_uid;
        format!("it is of user {owner}: neither root's nor of user {own}, who started this server")
    } else if stat.st_nlink == 0 {
        "it is in no folder: memory, or a file that was removed".to_owned()
    } else {
        return Ok(());
    };
    Err(format!("The program is not run: {why}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_number_comes_back_from_its_path_and_from_the_name_beside_it() {
        assert_eq!(number(&path(7)), Some(7));
        assert_eq!(number(&path(7).with_file_name("faulty-device-proc")), Some(7));
        for other in ["/opt/device-proc", "spawner:x/device-proc", "spawner:7", "./spawner:7/x"] {
            assert_eq!(number(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn only_what_nobody_else_may_write_is_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = |mode| {
            let path = folder.path().join(format!("{mode:o}"));
            std::fs::File::create(&path).unwrap().write_all(b"x").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            OwnedFd::from(std::fs::File::open(path).unwrap())
        };
        for mode in [0o755, 0o555, 0o500, 0o700] {
            check(file(mode).as_fd()).unwrap();
        }
        for (mode, says) in [
            (0o644, "not executable"),
            (0o775, "may write it"),
            (0o757, "may write it"),
            (0o4755, "set-user-id"),
            (0o2755, "set-group-id"),
        ] {
            let why = check(file(mode).as_fd()).unwrap_err();
            assert!(why.contains(says), "{mode:o}: {why}");
        }
        let removed = file(0o751);
        std::fs::remove_file(folder.path().join("751")).unwrap();
        assert!(check(removed.as_fd()).unwrap_err().contains("in no folder"));
        let memory = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::fchmod(&memory, Mode::from_raw_mode(0o755)).unwrap();
        assert!(check(memory.as_fd()).unwrap_err().contains("in no folder"));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(check(null.as_fd()).unwrap_err().contains("no regular file"));
        let of_a_folder = std::fs::File::open(folder.path()).unwrap();
        assert!(check(of_a_folder.as_fd()).unwrap_err().contains("no regular file"));
    }

    #[test]
    fn so_many_programs_are_kept_and_numbers_are_not_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::write(&path, b"x").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let other = folder.path().join("other");
        std::fs::copy(&path, &other).unwrap();
        let open = || OwnedFd::from(std::fs::File::open(&other).unwrap());
        let mut programs = Programs::new(path.as_os_str().as_bytes());
        // Its own is no other one, and takes no place.
        let own = || OwnedFd::from(std::fs::File::open(&path).unwrap());
        assert_eq!((programs.add(own()), programs.add(own())), (Ok(0), Ok(0)));
        for number in 1..=4 {
            assert_eq!(programs.add(open()), Ok(number));
        }
        assert!(programs.add(open()).unwrap_err().contains("4 other programs"));
        programs.forget(2);
        assert!(programs.find(2).is_err() && programs.find(3).is_ok());
        assert_eq!(programs.add(open()), Ok(5));
        // The grant's is run by its path while it is there, and by its file afterwards.
        assert!(programs.find(0).unwrap().1.is_none());
        std::fs::remove_file(&path).unwrap();
        assert!(programs.find(0).unwrap().1.is_some());
        std::fs::write(&path, b"y").unwrap();
        assert!(programs.find(0).unwrap().1.is_some());
    }
}
