//! A wake-up that crosses processes.
//!
//! On Linux an eventfd; on macOS, which has none, a pipe whose *write* end is the one handed out
//! (P9.5). An [`Event`] is held by the side that waits, a [`Signaller`] by the side that wakes.
//! Either may die: a signaller without a waiter succeeds and does nothing.
//!
//! # A signal never waits
//! A write to an event that is full waits for its reader, unless the descriptor has O_NONBLOCK. Our
//! own events have it. What a peer brings may not: the counter of an eventfd can be filled by one
//! write, and O_NONBLOCK belongs to the open file description, which its owner shares and can
//! change back at any time. So looking at the flag, or at `poll`, before writing proves nothing
//! against a peer that wants its signaller to hang. What was tried on Linux 6.18 for an eventfd that
//! is not ours: `pwritev2` with RWF_NOWAIT (not supported, only pipes and sockets have it), opening
//! it anew through /proc (ENXIO, only pipes can be), and setting O_NONBLOCK ourselves, which takes
//! blocking reads away from the VMM that owns it and can be undone. What works in all cases, and on
//! macOS too, is a timer: the write of a thread that called [`bound_signals`] is interrupted after
//! some milliseconds, and since it waited because the event was full, whoever reads it will wake
//! anyway.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::deadline::Deadline;
use crate::poll::{self, Source};
use crate::sys;

/// The waiting side.
#[derive(Debug)]
pub struct Event(sys::EventPair);

impl Event {
    /// A new event, not signalled.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        sys::EventPair::new().map(Self)
    }

    /// The side to hand out.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn signaller(&self) -> io::Result<Signaller> {
        self.0.write_end().try_clone_to_owned().map(Signaller::from_trusted)
    }

    /// Takes all signals that came so far; `true` when there was at least one.
    ///
    /// # Errors
    /// What the read reports, "nothing there" excepted.
    pub fn clear(&self) -> io::Result<bool> {
        self.0.clear()
    }

    /// Waits for a signal and takes it. `Ok(false)` when the deadline passed first.
    ///
    /// # Errors
    /// As [`poll::wait`].
    pub fn wait(&self, deadline: Deadline) -> io::Result<bool> {
        loop {
            if self.clear()? {
                return Ok(true);
            }
            if !poll::wait_readable(self, deadline)? {
                return Ok(false);
            }
        }
    }
}

impl Event {
    /// Every descriptor that it holds, one or two: for a process that says which are open.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.0.descriptors()
    }
}

impl AsFd for Event {
    /// The descriptor to wait on for reading.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.read_end()
    }
}

/// How long a signal may wait before it is interrupted. Longer than the kernel's own tick, so that
/// its clock need not be set anew for each signal, which costs more than the signal.
const LONGEST_WAIT: Duration = Duration::from_millis(10);

thread_local! {
    static INTERVAL: OnceCell<sys::Interval> = const { OnceCell::new() };
}

/// From here on no signal of this thread waits for longer than some milliseconds, whatever
/// the descriptor is, and a second one to the same not at all: for threads that signal what a peer brought. Takes SIGALRM of the process. On
/// macOS, which has no timers for threads, the process may have no other thread.
///
/// # Errors
/// When the system has no timers left.
pub fn bound_signals() -> io::Result<()> {
    let interval = sys::Interval::new()?;
    // The first one serves as well as another.
    INTERVAL.with(|kept| drop(kept.set(interval)));
    Ok(())
}

/// Signals each; how many. Cheaper than one by one, in a thread that called [`bound_signals`].
pub fn signal_all<'s>(signallers: impl IntoIterator<Item = &'s Signaller>) -> u64 {
    let signal = || signallers.into_iter().map(Signaller::write).count() as u64;
    INTERVAL.with(|interval| match interval.get() {
        Some(interval) => interval.interrupting(LONGEST_WAIT, signal),
        None => signal(),
    })
}

/// The waking side.
#[derive(Debug)]
pub struct Signaller {
    fd: OwnedFd,
    /// A write to it had to be interrupted: it was full, and waits when it is.
    waits: AtomicBool,
}

/// A descriptor that nobody can be woken by.
#[derive(Debug, thiserror::Error)]
pub enum SignallerError {
    /// It cannot be looked at.
    #[error("Descriptor cannot be inspected")]
    Inspect(#[source] io::Error),
    /// It is something else.
    #[error("A {0} is no event: an eventfd, or a pipe or socket that does not block, is needed")]
    Kind(&'static str),
    /// Whoever writes to it waits when it is full.
    #[error("The {0} has no O_NONBLOCK, so that whoever signals it would wait when it is full")]
    Blocks(&'static str),
    /// It cannot be written to.
    #[error("The {0} is not open for writing")]
    ReadOnly(&'static str),
}

impl Signaller {
    /// From a descriptor that a distrusted peer handed over: an eventfd, or a pipe or socket that
    /// does not block. Anything else could hold its signaller up for as long as it likes (a file
    /// of a file system that its owner serves), or grow with each signal.
    ///
    /// An eventfd is taken with and without O_NONBLOCK: VMMs that have theirs read by the
    /// hypervisor create them without. Signal it from a thread that called [`bound_signals`].
    ///
    /// # Errors
    /// [`SignallerError`].
    pub fn from_peer(fd: OwnedFd) -> Result<Self, SignallerError> {
        let inspect = |error: Errno| SignallerError::Inspect(error.into());
        let stat = rustix::fs::fstat(&fd).map_err(inspect)?;
        let eventfd = sys::is_eventfd(fd.as_fd()).map_err(SignallerError::Inspect)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            _ if eventfd => "eventfd",
            FileType::Fifo => "pipe",
            FileType::Socket => "socket",
            FileType::RegularFile => return Err(SignallerError::Kind("file")),
            FileType::Directory => return Err(SignallerError::Kind("folder")),
            FileType::CharacterDevice | FileType::BlockDevice => {
                return Err(SignallerError::Kind("device"));
            }
            _ => return Err(SignallerError::Kind("descriptor of this kind")),
        };
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(inspect)?;
        if !flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
            return Err(SignallerError::ReadOnly(kind));
        }
        if !eventfd && !flags.contains(OFlags::NONBLOCK) {
            return Err(SignallerError::Blocks(kind));
        }
        if !eventfd {
            sys::prepare_pipe(fd.as_fd());
        }
        Ok(Self::from_trusted(fd))
    }

    /// From a descriptor that was checked, or of a side that may as well end this process.
    #[must_use]
    pub fn from_trusted(fd: OwnedFd) -> Self {
        Self { fd, waits: AtomicBool::new(false) }
    }

    /// Wakes the waiting side (P9.3): retried when interrupted; an invalid or closed descriptor,
    /// and one that is already full of signals, is ignored, since the waiter either does not
    /// exist or will wake anyway.
    pub fn signal(&self) {
        signal_all([self]);
    }

    /// [`Signaller::signal`] of an event of a side that may as well end this process: one write, and
    /// nothing that bounds it, also in a thread that called [`bound_signals`].
    pub fn signal_trusted(&self) {
        self.write();
    }

    fn write(&self) {
        // One that waits costs its signaller time only once, not at each signal.
        let waits = self.waits.load(Ordering::Relaxed);
        let writable = || poll::wait(&[Source::writable(&self.fd, ())], Some(Deadline::now()));
        if waits && writable().is_ok_and(|ready| ready.is_empty()) {
            return;
        }
        let before = sys::ticks();
        let waited = loop {
            match rustix::io::write(&self.fd, sys::SIGNAL) {
                // It waited because it was full.
                Err(Errno::INTR) if sys::ticks() != before => break true,
                Err(Errno::INTR) => {}
                _ => break false,
            }
        };
        if waited != waits {
            self.waits.store(waited, Ordering::Relaxed);
        }
    }

    /// Whether the last signal has not been taken by anybody yet, so that another would tell them
    /// nothing new. Known of an eventfd only, which is both ends; `false` where it is not known.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        sys::is_pending(self.fd.as_fd())
    }

    /// Another handle for the same event.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.fd.try_clone().map(Self::from_trusted)
    }
}

impl AsFd for Signaller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn signals_collapse_and_are_taken_once() {
        let event = Event::new().unwrap();
        assert!(!event.clear().unwrap());
        let signaller = event.signaller().unwrap();
        signaller.signal();
        signaller.signal();
        assert!(event.wait(Deadline::after(Duration::from_secs(1))).unwrap());
        assert!(!event.wait(Deadline::now()).unwrap());
    }

    #[test]
    fn p9_5_what_is_handed_out_wakes_by_being_written_to() {
        let event = Event::new().unwrap();
        let handed_out = event.signaller().unwrap().as_fd().try_clone_to_owned().unwrap();
        // Another program knows no signaller, only the descriptor: 8 bytes suit an eventfd and a
        // pipe alike.
        rustix::io::write(&handed_out, &1u64.to_ne_bytes()).unwrap();
        assert!(event.wait(Deadline::after(Duration::from_secs(1))).unwrap());
    }

    #[test]
    fn p9_3_a_signal_to_nobody_is_ignored() {
        let event = Event::new().unwrap();
        let signaller = event.signaller().unwrap();
        drop(event);
        signaller.signal();
        let closed = std::fs::File::open("/dev/null").unwrap();
        Signaller::from_trusted(closed.into()).signal();
    }

    /// A pipe that takes nothing more.
    fn full(nonblocking: bool) -> (std::io::PipeReader, OwnedFd) {
        let (read, write) = std::io::pipe().unwrap();
        rustix::fs::fcntl_setfl(&write, OFlags::NONBLOCK).unwrap();
        while rustix::io::write(&write, &[0; 4096]).is_ok() {}
        let flags = if nonblocking { OFlags::NONBLOCK } else { OFlags::empty() };
        rustix::fs::fcntl_setfl(&write, flags).unwrap();
        (read, write.into())
    }

    #[test]
    fn of_a_peer_only_what_can_be_signalled_is_taken() {
        let kind = |fd: OwnedFd| Signaller::from_peer(fd).unwrap_err();
        let null = std::fs::File::options().write(true).open("/dev/null").unwrap();
        assert!(matches!(kind(null.into()), SignallerError::Kind("device")));
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        assert!(matches!(kind(file.into()), SignallerError::Kind("file")));
        let folder = std::fs::File::open(".").unwrap();
        assert!(matches!(kind(folder.into()), SignallerError::Kind("folder")));
        let (_read, write) = full(false);
        assert!(matches!(kind(write), SignallerError::Blocks("pipe")));
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let second = socket.try_clone().unwrap();
        assert!(matches!(kind(socket.into()), SignallerError::Blocks("socket")));
        second.set_nonblocking(true).unwrap();
        Signaller::from_peer(second.into()).unwrap();
        let (read, write) = full(true);
        assert!(matches!(kind(read.into()), SignallerError::ReadOnly("pipe")));
        Signaller::from_peer(write).unwrap().signal();
        let own = Event::new().unwrap().signaller().unwrap();
        Signaller::from_peer(own.fd).unwrap();
    }

    /// Signals from a thread of its own, which must come back. On macOS, where there is no timer
    /// for one of several threads, it would not.
    #[cfg(target_os = "linux")]
    fn signal_in_time(signaller: &Signaller) {
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                bound_signals().unwrap();
                (0..100).for_each(|_| signaller.signal());
                done.send(()).unwrap();
            });
            // If it hangs, so does the end of the scope: the test ends here instead.
            if ended.recv_timeout(Duration::from_secs(10)).is_err() {
                eprintln!("a signal waits");
                std::process::abort();
            }
        });
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_signal_to_a_full_event_without_o_nonblock_does_not_wait() {
        let (_read, write) = full(false);
        signal_in_time(&Signaller::from_trusted(write));
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        while rustix::io::write(&socket, &[0; 4096]).is_ok() {}
        socket.set_nonblocking(false).unwrap();
        signal_in_time(&Signaller::from_trusted(socket.into()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_signal_to_an_eventfd_that_its_owner_filled_does_not_wait_and_later_ones_arrive() {
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        let eventfd = rustix::event::eventfd(0, flags).unwrap();
        rustix::io::write(&eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let signaller = Signaller::from_peer(eventfd.try_clone().unwrap()).unwrap();
        signal_in_time(&signaller);
        assert!(signaller.is_pending());
        rustix::io::read(&eventfd, &mut [0u8; 8]).unwrap();
        assert!(!signaller.is_pending());
        signal_in_time(&signaller);
        let mut count = [0; 8];
        rustix::io::read(&eventfd, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 100);
    }
    #[cfg(target_os = "linux")]
    #[test]
    fn an_eventfd_is_told_from_other_nameless_objects_and_is_not_signalled_by_that() {
        for flags in [rustix::event::EventfdFlags::CLOEXEC, rustix::event::EventfdFlags::NONBLOCK] {
            for count in [0, 7, u32::MAX - 1] {
                let eventfd = rustix::event::eventfd(count, flags).unwrap();
                Signaller::from_peer(eventfd.try_clone().unwrap()).unwrap();
                let pending = sys::is_pending(eventfd.as_fd());
                assert_eq!(pending, count > 0, "{count}");
                if count > 0 {
                    let mut read = [0; 8];
                    rustix::io::read(&eventfd, &mut read).unwrap();
                    assert_eq!(u64::from_ne_bytes(read), u64::from(count));
                }
            }
        }
        let kind = |fd: OwnedFd| Signaller::from_peer(fd).unwrap_err();
        let nameless = "descriptor of this kind";
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        assert!(matches!(kind(epoll.unwrap()), SignallerError::Kind(found) if found == nameless));
        let clock = rustix::time::TimerfdClockId::Monotonic;
        let timer = rustix::time::timerfd_create(clock, rustix::time::TimerfdFlags::CLOEXEC);
        assert!(matches!(kind(timer.unwrap()), SignallerError::Kind(found) if found == nameless));
    }
}
