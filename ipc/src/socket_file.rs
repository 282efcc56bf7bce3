//! Sockets in the file system: the one place that binds them, and that replaces or removes their
//! files.
//!
//! Every program that listens uses it: `cordon serve`, `dext-sim`. What lies at the path may be
//! somebody's file or somebody's server, so:
//!
//! - only a socket that nobody has bound any more is replaced; any other kind of file, a symbolic
//!   link included, is left alone and named in the error;
//! - a live listener is not disturbed. The question is asked by `connect` with a socket of another
//!   type: the system looks for the socket behind the file, finds one, and refuses the pair with
//!   `EPROTOTYPE` before anything reaches the listener's queue; where it finds none it says
//!   `ECONNREFUSED`. This holds on Linux and on the BSDs, macOS among them, and it also sees a
//!   socket that is bound and does not listen yet;
//! - of several starters exactly one wins. Between looking and replacing, and inside `bind` itself
//!   between making the file and tying the socket to it, another starter would see a file without
//!   a socket. So binding happens under a `flock` of the directory, which leaves no file behind and
//!   ends with its holder. Nothing is held while listening: then the bound socket itself tells;
//! - whoever can connect owns what is served: the file is for its owner only before the first
//!   client can come;
//! - on drop only the file that was made is removed. As long as the socket is bound its inode
//!   cannot be used again, so comparing inodes is exact.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketType};

use crate::deadline::Deadline;
use crate::{poll, sys};

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 64;

/// How long another starter in the same directory is waited for. It holds the lock for a few
/// system calls.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a server that is out of descriptors or memory leaves its clients in the queue.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);

/// Why a path cannot be listened at.
#[derive(Debug, thiserror::Error)]
pub enum SocketFileError {
    /// Something else than a socket is there. It is left alone.
    #[error(
        "Cannot listen at {}: it is a {kind}, and only a socket that nobody listens at is replaced",
        path.display()
    )]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// What is there.
        kind: &'static str,
    },
    /// A program has a socket there.
    #[error("Cannot listen at {}: another program has its socket there", .0.display())]
    InUse(PathBuf),
    /// The directory's lock is not given up.
    #[error(
        "Cannot listen at {}: another program keeps the directory locked (flock)",
        .0.display()
    )]
    Locked(PathBuf),
    /// A dead socket is there, and it cannot be made sure that no other starter replaces it too.
    #[error(
        "Cannot listen at {}: a socket that nobody listens at is there, and the directory cannot \
         be locked to replace it; remove it first",
        path.display()
    )]
    Unlockable {
        /// The path.
        path: PathBuf,
        /// Why it cannot be locked.
        #[source]
        source: io::Error,
    },
    /// No socket can have this path.
    #[error(
        "Cannot listen at '{}': a socket's path has 1 to {max} bytes, this one {length}",
        path.display()
    )]
    Length {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        length: usize,
        /// Bytes that it may have.
        max: usize,
    },
    /// The process that makes sockets for this one could not, and says why.
    #[error("{0}")]
    Elsewhere(String),
    /// The system refused.
    #[error("Cannot listen at {}", path.display())]
    System {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Device and inode: which file it is.
type Identity = (i128, u64);

/// Who may connect: a group and permission bits of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Permission bits, 0o777 at most.
    pub mode: u32,
    /// The file's group; that of the process when it is not said.
    pub group: Option<u32>,
}

impl Access {
    /// As the system takes it, whose number has another width on each.
    fn mode(self) -> Mode {
        let bits = [
            (0o400, Mode::RUSR),
            (0o200, Mode::WUSR),
            (0o100, Mode::XUSR),
            (0o040, Mode::RGRP),
            (0o020, Mode::WGRP),
            (0o010, Mode::XGRP),
            (0o004, Mode::ROTH),
            (0o002, Mode::WOTH),
            (0o001, Mode::XOTH),
        ];
        bits.into_iter().filter(|(bit, _)| self.mode & bit != 0).map(|(_, mode)| mode).collect()
    }
}

impl Default for Access {
    /// Its owner alone.
    fn default() -> Self {
        Self { mode: 0o600, group: None }
    }
}

/// Removes the file of a socket that another process made.
type Remover = Box<dyn Fn() + Send + Sync>;

/// Who removes the file.
enum Removal {
    /// This process: the file that it made.
    Own(Identity),
    /// Another one, which made it, when it is asked.
    Asked(Remover),
    /// Nobody here any more.
    Left,
}

/// A listening socket with a file. The file is removed on drop, if it is still the one that was
/// made.
pub struct SocketFile {
    socket: OwnedFd,
    path: PathBuf,
    removal: Removal,
}

impl std::fmt::Debug for SocketFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocketFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The file of a socket that another process has: to be removed while that still holds the socket, so
/// that its inode cannot be another one's.
#[derive(Debug)]
pub struct LeftFile {
    path: PathBuf,
    identity: Identity,
}

impl LeftFile {
    /// Removes the file, if it is still the one that was made.
    pub fn remove(&self) {
        remove_if(&self.path, self.identity);
    }
}

impl SocketFile {
    /// Listens at `path` for streams, for its owner alone.
    ///
    /// # Errors
    /// [`SocketFileError`]; what was at the path is then as it was.
    pub fn listen(path: &Path) -> Result<Self, SocketFileError> {
        Self::listen_for(path, Access::default())
    }

    /// Listens at `path` for streams, for those that `access` says.
    ///
    /// # Errors
    /// [`SocketFileError`]; what was at the path is then as it was.
    pub fn listen_for(path: &Path, access: Access) -> Result<Self, SocketFileError> {
        Self::listen_with(path, SocketType::STREAM, access)
    }

    /// A socket that another process made at `path`, which removes the file when `remove` asks it to.
    #[must_use]
    pub fn handed(
        socket: OwnedFd,
        path: PathBuf,
        remove: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self { socket, path, removal: Removal::Asked(Box::new(remove)) }
    }

    /// For the process that makes it for another one: the socket to hand over, and what removes the
    /// file.
    ///
    /// # Errors
    /// When no descriptor is left. The file is removed then.
    pub fn leave(mut self) -> io::Result<(OwnedFd, LeftFile)> {
        let socket = self.socket.try_clone()?;
        let Removal::Own(identity) = std::mem::replace(&mut self.removal, Removal::Left) else {
            return Err(io::Error::other("the socket is another process's"));
        };
        Ok((socket, LeftFile { path: self.path.clone(), identity }))
    }

    /// Listens at `path` for tubes.
    pub(crate) fn listen_for_tubes(path: &Path) -> Result<Self, SocketFileError> {
        Self::listen_with(path, sys::TUBE_SOCKET, Access::default())
    }

    fn listen_with(path: &Path, kind: SocketType, access: Access) -> Result<Self, SocketFileError> {
        let place = Place::new(path)?;
        let socket = sys::socket(kind).map_err(|error| place.system(error))?;
        let set = rustix::io::ioctl_fionbio(&socket, true);
        set.map_err(|error| place.system(error))?;
        let file = place.bind(socket)?;
        // Nobody can connect before `listen`, so nobody does with the mode that the umask left.
        if let Some(group) = access.group {
            let group = Some(Gid::from_raw(group));
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let given = rustix::fs::chownat(CWD, path, None, group, flags);
            given.map_err(|error| place.system(error))?;
        }
        rustix::fs::chmod(path, access.mode()).map_err(|error| place.system(error))?;
        rustix::net::listen(&file.socket, BACKLOG).map_err(|error| place.system(error))?;
        Ok(file)
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file now, if it is still the one that was made: nobody finds the way here any
    /// more. For a listener that another thread still waits at.
    pub fn remove(&self) {
        match &self.removal {
            // The socket is still bound: see the module.
            Removal::Own(identity) => remove_if(&self.path, *identity),
            Removal::Asked(remove) => remove(),
            Removal::Left => {}
        }
    }

    /// The next client, if one waits; `None` also when it is gone again. Its socket closes on exec, does
    /// not block, and raises no signal when its peer is gone.
    ///
    /// # Errors
    /// What `accept` reports.
    pub fn try_accept(&self) -> io::Result<Option<OwnedFd>> {
        match sys::accept(self.socket.as_fd()) {
            Ok(client) => Ok(Some(client)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the next client. A shortage of descriptors or memory is waited out: the clients
    /// that wait meanwhile are served when it is over.
    ///
    /// # Errors
    /// What `poll` and `accept` report otherwise: nobody can be served here any more.
    pub fn accept(&self) -> io::Result<OwnedFd> {
        loop {
            match sys::accept(self.socket.as_fd()) {
                Ok(client) => return Ok(client),
                Err(Errno::AGAIN) => {
                    poll::wait(&[poll::Source::readable(&self.socket, ())], None)?;
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                // Nothing signals that a descriptor was closed somewhere.
                Err(error) if is_shortage(&error.into()) => std::thread::sleep(SHORTAGE_PAUSE),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether an error of accepting only says that descriptors or memory are short for now: the client
/// stays in the queue.
#[must_use]
pub fn is_shortage(error: &io::Error) -> bool {
    let short = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| short.contains(&error))
}

impl AsFd for SocketFile {
    /// The listening socket: to wait on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What is at a path.
enum Occupant {
    /// Nothing.
    Nobody,
    /// A socket that nobody has bound.
    Dead(Identity),
}

/// A path that is to be listened at.
struct Place<'p> {
    path: &'p Path,
    address: SocketAddrUnix,
}

impl<'p> Place<'p> {
    fn new(path: &'p Path) -> Result<Self, SocketFileError> {
        let length = path.as_os_str().len();
        // An empty path would not be refused on Linux but bound to a name outside the file system.
        let address = SocketAddrUnix::new(path).ok().filter(|_| length > 0);
        let max = sys::MAX_SOCKET_PATH;
        let address = address.ok_or_else(|| SocketFileError::Length {
            path: path.to_owned(),
            length,
            max,
        })?;
        Ok(Self { path, address })
    }

    fn system(&self, error: Errno) -> SocketFileError {
        SocketFileError::System { path: self.path.to_owned(), source: error.into() }
    }

    fn in_use(&self) -> SocketFileError {
        SocketFileError::InUse(self.path.to_owned())
    }

    /// Binds, in the place of a dead socket if there is one.
    fn bind(&self, socket: OwnedFd) -> Result<SocketFile, SocketFileError> {
        let lock = self.lock()?;
        match rustix::net::bind(&socket, &self.address) {
            Err(Errno::ADDRINUSE) => {
                if let Occupant::Dead(identity) = self.occupant()? {
                    lock.as_ref().map_err(|error| SocketFileError::Unlockable {
                        path: self.path.to_owned(),
                        source: (*error).into(),
                    })?;
                    remove_if(self.path, identity);
                }
                rustix::net::bind(&socket, &self.address).map_err(|error| match error {
                    // A program that does not lock was faster.
                    Errno::ADDRINUSE => self.in_use(),
                    other => self.system(other),
                })?;
            }
            other => other.map_err(|error| self.system(error))?,
        }
        let made = rustix::fs::lstat(self.path).map_err(|error| self.system(error))?;
        let removal = Removal::Own(identity(&made));
        Ok(SocketFile { socket, path: self.path.to_owned(), removal })
    }

    /// Locks the directory. The inner error says that this directory cannot be locked at all: a
    /// path where nothing is can be bound all the same.
    fn lock(&self) -> Result<Result<OwnedFd, Errno>, SocketFileError> {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            match rustix::fs::open(parent.unwrap_or(Path::new(".")), flags, Mode::empty()) {
                Ok(directory) => directory,
                Err(error @ Errno::ACCESS) => return Ok(Err(error)),
                Err(error) => return Err(self.system(error)),
            };
        let deadline = Deadline::after(LOCK_TIMEOUT);
        loop {
            match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Ok(directory)),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if deadline.passed() => {
                    return Err(SocketFileError::Locked(self.path.to_owned()));
                }
                // A lock that is waited for has no deadline, and a lock that is given up no event.
                Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(2)),
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// What is at the path. Anything but a dead socket is an error.
    fn occupant(&self) -> Result<Occupant, SocketFileError> {
        let stat = match rustix::fs::lstat(self.path) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Occupant::Nobody),
            Err(error) => return Err(self.system(error)),
        };
        let kind = file_type(&stat);
        if kind != FileType::Socket {
            let (path, kind) = (self.path.to_owned(), name(kind));
            return Err(SocketFileError::NotASocket { path, kind });
        }
        // No tube and no stream is of this type: see the module.
        let probe = sys::socket(SocketType::DGRAM).map_err(|error| self.system(error))?;
        match rustix::net::connect(&probe, &self.address) {
            Err(Errno::CONNREFUSED) => Ok(Occupant::Dead(identity(&stat))),
            Err(Errno::NOENT) => Ok(Occupant::Nobody),
            Ok(()) | Err(Errno::PROTOTYPE) => Err(self.in_use()),
            // It cannot be told whether somebody listens, so it is left alone.
            Err(error) => Err(self.system(error)),
        }
    }
}

/// Removes the file at `path` if it is that one.
fn remove_if(path: &Path, which: Identity) {
    let same = rustix::fs::lstat(path)
        .is_ok_and(|now| file_type(&now) == FileType::Socket && identity(&now) == which);
    if same {
        let _ = std::fs::remove_file(path);
    }
}

// A device number is signed on one system and not on the other.
fn identity(stat: &Stat) -> Identity {
    (i128::from(stat.st_dev), stat.st_ino)
}

fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "regular file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "named pipe",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        _ => "file of an unknown kind",
    }
}
