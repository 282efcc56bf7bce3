//! What a note of a queue waits for: a descriptor in the queue's epoll.

use std::ffi::c_int;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use darwin_abi::{Errno, HIDDEN, error, from_linux, hide};

use super::{
    EV_CLEAR, EV_EOF, EVFILT_MACHPORT, EVFILT_PROC, EVFILT_READ, EVFILT_TIMER, EVFILT_USER,
    EVFILT_WRITE, Event,
};
use crate::libsystem::runner::lacks;

const NOTE_TRIGGER: u32 = 0x0100_0000;
/// The two bits that say what a trigger does with the flags of the program.
const NOTE_CONTROL: u32 = 0xc000_0000;
const NOTE_FLAGS: u32 = 0x00ff_ffff;
const NOTE_EXIT: u32 = 0x8000_0000;

/// What a note waits for.
#[derive(Debug)]
pub(super) enum Source {
    /// A duplicate of the descriptor that is watched.
    Descriptor(OwnedFd),
    /// An event counter.
    User(OwnedFd),
    /// A process's descriptor.
    Process(OwnedFd),
    /// A timer's descriptor.
    Timer(OwnedFd),
    /// Of the Mach kernel, which owns it.
    Port(c_int),
}

fn own(fd: c_int) -> Result<OwnedFd, Errno> {
    if fd < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error();
        return Err(from_linux(errno.unwrap_or(libc::EIO)));
    }
    // SAFETY: a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(hide(fd)) })
}

impl Source {
    pub(super) fn new(change: &Event) -> Result<Self, Errno> {
        let identity = change.identity as c_int;
        // SAFETY: plain numbers, all of them.
        unsafe {
            match change.filter {
                EVFILT_READ | EVFILT_WRITE => {
                    own(libc::fcntl(identity, libc::F_DUPFD_CLOEXEC, HIDDEN)).map(Self::Descriptor)
                }
                EVFILT_USER => {
                    let flags = libc::EFD_NONBLOCK | libc::EFD_CLOEXEC;
                    own(libc::eventfd(0, flags)).map(Self::User)
                }
                EVFILT_PROC => {
                    if change.filter_flags & NOTE_FLAGS != 0 || change.filter_flags & NOTE_EXIT == 0
                    {
                        lacks(format_args!("EVFILT_PROC with {:#x}", change.filter_flags));
                    }
                    // A process that has ended is not found, although nobody has waited for it
                    // (`filt_procattach`).
                    if has_ended(identity) {
                        return Err(error::ESRCH);
                    }
                    own(libc::syscall(libc::SYS_pidfd_open, identity, 0) as c_int)
                        .map(Self::Process)
                }
                EVFILT_TIMER => timer(change),
                EVFILT_MACHPORT => {
                    let name = change.identity as u32;
                    mach_kernel::readable(name).map(Self::Port).ok_or(error::ENOENT)
                }
                other => lacks(format_args!("kernel queue filter {other}")),
            }
        }
    }

    fn raw(&self) -> c_int {
        match self {
            Self::Descriptor(fd) | Self::User(fd) | Self::Process(fd) | Self::Timer(fd) => {
                fd.as_raw_fd()
            }
            Self::Port(fd) => *fd,
        }
    }

    /// Has the queue watch it.
    pub(super) fn join(&self, epoll: c_int, number: u64, event: &Event) -> Result<(), Errno> {
        let mut events = match event.filter {
            EVFILT_WRITE => libc::EPOLLOUT,
            EVFILT_READ => libc::EPOLLIN | libc::EPOLLRDHUP,
            _ => libc::EPOLLIN,
        };
        if event.flags & EV_CLEAR != 0 && matches!(self, Self::Descriptor(_)) {
            events |= libc::EPOLLET;
        }
        let mut event = libc::epoll_event { events: events as u32, u64: number };
        // SAFETY: an event of this function's own.
        let done =
            unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, self.raw(), &raw mut event) };
        if done == 0 {
            return Ok(());
        }
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        if errno == libc::EPERM {
            lacks(format_args!("a kernel queue that watches a regular file"));
        }
        Err(from_linux(errno))
    }

    /// Has the queue watch it no more.
    pub(super) fn leave(&self, epoll: c_int) {
        // SAFETY: plain numbers; the event is not looked at.
        unsafe {
            libc::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, self.raw(), std::ptr::null_mut());
        }
    }

    /// Makes it inactive until it is triggered anew.
    pub(super) fn clear(&self) {
        if let Self::User(fd) = self {
            let mut count = [0u8; 8];
            // SAFETY: a buffer of this function's own.
            unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
        }
    }

    /// Fills the event of an active note in. Gives whether the note ends with it, and nothing if it is not active
    /// after all.
    pub(super) fn describe(&self, event: &mut Event, state: u32) -> Option<bool> {
        let end = (libc::EPOLLHUP | libc::EPOLLRDHUP | libc::EPOLLERR) as u32;
        match self {
            Self::Descriptor(fd) => {
                event.data = if event.filter == EVFILT_READ { available(fd) } else { 1 };
                event.filter_flags = 0;
                if state & end != 0 {
                    event.flags |= EV_EOF;
                }
                Some(false)
            }
            Self::User(_) => {
                event.filter_flags &= NOTE_FLAGS;
                Some(false)
            }
            Self::Process(_) => {
                event.data = 0;
                event.filter_flags = NOTE_EXIT;
                event.flags |= EV_EOF;
                Some(true)
            }
            Self::Timer(fd) => {
                let mut count = [0u8; 8];
                // SAFETY: a buffer of this function's own.
                let read = unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
                event.data = u64::from_ne_bytes(count) as isize;
                (read == 8).then_some(false)
            }
            Self::Port(_) => {
                event.data = event.identity as isize;
                Some(false)
            }
        }
    }
}

/// Bytes that can be read; 1 for a socket that listens.
fn available(fd: &OwnedFd) -> isize {
    let mut count: c_int = 0;
    // SAFETY: a place of this function's own.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if done == 0 { count as isize } else { 1 }
}

/// What a change of EVFILT_USER does: its flags, and the trigger.
pub(super) fn trigger(source: &mut Source, event: &mut Event, change: &Event) {
    let given = change.filter_flags & NOTE_FLAGS;
    let flags = event.filter_flags & NOTE_FLAGS;
    event.filter_flags = match change.filter_flags & NOTE_CONTROL {
        0x4000_0000 => flags & given,
        0x8000_0000 => flags | given,
        0xc000_0000 => given,
        _ => flags,
    };
    if change.filter_flags & NOTE_TRIGGER != 0
        && let Source::User(fd) = source
    {
        let one = 1u64.to_ne_bytes();
        // SAFETY: a buffer of this function's own.
        unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), 8) };
    }
}

fn timer(change: &Event) -> Result<Source, Errno> {
    const SECONDS: u32 = 0x1;
    const USECONDS: u32 = 0x2;
    const NSECONDS: u32 = 0x4;
    let nanoseconds = match change.filter_flags {
        SECONDS => 1_000_000_000,
        USECONDS => 1000,
        NSECONDS => 1,
        0 => 1_000_000,
        other => lacks(format_args!("EVFILT_TIMER with {other:#x}")),
    };
    let total = (change.data.max(0) as i64).saturating_mul(nanoseconds).max(1);
    let time = libc::timespec { tv_sec: total / 1_000_000_000, tv_nsec: total % 1_000_000_000 };
    let times = libc::itimerspec { it_interval: time, it_value: time };
    // SAFETY: times of this function's own.
    unsafe {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        let fd = own(libc::timerfd_create(libc::CLOCK_MONOTONIC, flags))?;
        libc::timerfd_settime(fd.as_raw_fd(), 0, &raw const times, std::ptr::null_mut());
        Ok(Source::Timer(fd))
    }
}

/// Whether a process is not there, or waits only to be waited for.
fn has_ended(process: c_int) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    matches!(state, None | Some("Z" | "X"))
}
