//! What calls are tried with: memory, descriptors and a timer that are there before the process confines
//! itself.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_long};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::EventfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use sandbox_profiles::policy::Syscall;

use super::rows::pointer;

/// Set by the handler.
static HANDLED: AtomicBool = AtomicBool::new(false);

/// Structures that calls read and fill, alive for as long as the process.
struct Memory {
    bytes: [u8; 64],
    poll: libc::pollfd,
    part: libc::iovec,
    message: libc::msghdr,
    stat: libc::stat,
    time: libc::timespec,
    setting: libc::itimerspec,
    stack: libc::stack_t,
}

/// All of it.
pub(super) struct Things {
    tube: RawFd,
    memory: OwnedFd,
    event: OwnedFd,
    pair: [OwnedFd; 2],
    spare: OwnedFd,
    timer: c_int,
    mapped: u64,
    /// Two pages, of memory that has one.
    beyond: *const u8,
    page: usize,
    own: Box<UnsafeCell<Memory>>,
}

extern "C" fn handler(_: c_int) {
    HANDLED.store(true, Ordering::Relaxed);
}

impl Things {
    /// Makes them; beside the tube, at descriptor `tube`.
    pub(super) fn new(tube: RawFd) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let memory = ipc::SharedMemory::create("tried", page as u64)?.into_fd();
        let event = rustix::event::eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let pair = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::io::write(&pair.1, b"a message")?;
        let spare = memory.try_clone()?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping that nothing else points into.
        let mapped = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), page, protection, MapFlags::PRIVATE)?
        };
        let none = std::ptr::null_mut();
        // SAFETY: another.
        let beyond =
            unsafe { rustix::mm::mmap(none, 2 * page, protection, MapFlags::SHARED, &memory, 0)? };
        // SAFETY: all of these are plain numbers and pointers, for which zero is valid.
        let own: Box<UnsafeCell<Memory>> = Box::new(UnsafeCell::new(unsafe { std::mem::zeroed() }));
        let mut things = Self {
            tube,
            memory,
            event,
            pair: [pair.0, pair.1],
            spare,
            timer: 0,
            mapped: pointer(mapped),
            beyond: beyond.cast(),
            page,
            own,
        };
        things.fill();
        things.timer = timer()?;
        Ok(things)
    }

    fn fill(&mut self) {
        let event = self.event.as_raw_fd();
        let own = self.own.get_mut();
        own.poll = libc::pollfd { fd: event, events: libc::POLLIN, revents: 0 };
        // What a write to an event is.
        own.bytes[0] = 1;
        own.part = libc::iovec { iov_base: own.bytes.as_mut_ptr().cast(), iov_len: 8 };
        own.message.msg_iov = &raw mut own.part;
        own.message.msg_iovlen = 1;
        own.stack.ss_flags = libc::SS_DISABLE;
    }

    /// What is open, beside the standard streams.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        // SAFETY: inherited, open for as long as the process, and closed by nobody.
        let tube = unsafe { BorrowedFd::borrow_raw(self.tube) };
        let own = [&self.memory, &self.event, &self.pair[0], &self.pair[1], &self.spare];
        own.into_iter().map(|fd| fd.as_fd()).chain([tube]).collect()
    }

    /// Standard error.
    pub(super) fn stderr(&self) -> BorrowedFd<'static> {
        // SAFETY: open for as long as the process, and closed by nobody.
        unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) }
    }

    /// The arguments by which the call of `row` works: `asked` has those that its conditions name. `None` for
    /// a call that nobody has said how to make.
    pub(super) fn arguments(&self, row: &Syscall, asked: [u64; 6]) -> Option<[u64; 6]> {
        let own = self.own.get();
        let number = |fd: &OwnedFd| u64::from(fd.as_raw_fd().unsigned_abs());
        // SAFETY: places in memory that lives for as long as the process; nothing is read here.
        let (bytes, poll, message, stat, time, setting, stack) = unsafe {
            (
                pointer(&raw const (*own).bytes),
                pointer(&raw const (*own).poll),
                pointer(&raw const (*own).message),
                pointer(&raw const (*own).stat),
                pointer(&raw const (*own).time),
                pointer(&raw const (*own).setting),
                pointer(&raw const (*own).stack),
            )
        };
        let free: &[(usize, u64)] = match row.name {
            "ppoll" => &[(0, poll), (1, 1)],
            "recvmsg" | "sendmsg" => &[(0, number(&self.pair[0])), (1, message)],
            "sendto" => &[(0, number(&self.pair[0])), (1, bytes), (2, 8)],
            "pread64" => &[(0, number(&self.memory)), (1, bytes), (2, 8)],
            // Into /dev/null: no file may become longer, and a device is none.
            "pwrite64" => &[(0, u64::from(libc::STDOUT_FILENO.unsigned_abs())), (1, bytes), (2, 8)],
            "ioctl" => &[(0, number(&self.memory))],
            "read" | "write" => &[(0, number(&self.event)), (1, bytes), (2, 8)],
            "close" => &[(0, number(&self.spare))],
            "mmap" => {
                let own = asked[3] & u64::from(libc::MAP_ANONYMOUS.unsigned_abs()) != 0;
                let fd = if own { u64::MAX } else { number(&self.memory) };
                &[(1, self.page as u64), (4, fd)]
            }
            "munmap" => &[(0, self.mapped), (1, self.page as u64)],
            "fcntl" => &[(0, number(&self.memory))],
            "fstat" => &[(0, number(&self.memory)), (1, stat)],
            "clock_gettime" => &[(1, time)],
            "timer_settime" => &[(0, u64::from(self.timer.unsigned_abs())), (2, setting)],
            "timer_delete" => &[(0, u64::from(self.timer.unsigned_abs()))],
            "sigaltstack" => &[(0, stack)],
            // As the process ends that nothing was wrong in.
            "exit_group" => &[(0, u64::from(crate::SUCCEEDED.unsigned_abs()))],
            "brk" | "rt_sigreturn" => &[],
            _ => return None,
        };
        let mut arguments = asked;
        for (at, value) in free {
            arguments[*at] = *value;
        }
        Some(arguments)
    }

    /// Waits until the handler of the timer has come back, by `rt_sigreturn`.
    pub(super) fn wait_for_handler(&self) -> c_long {
        while !HANDLED.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
        0
    }

    /// Reads past the end of memory that is mapped, as of a file that was shortened.
    pub(super) fn read_past_the_end(&self) -> c_long {
        // SAFETY: two pages are mapped there, of which nobody knows but this; of the second there is nothing,
        // which ends the process.
        unsafe { self.beyond.add(self.page).read_volatile().into() }
    }
}

/// A timer that has begun to call the handler.
fn timer() -> io::Result<c_int> {
    let mut timer: c_int = 0;
    let soon = libc::timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    let setting = libc::itimerspec { it_interval: soon, it_value: soon };
    // SAFETY: zeroed structures are valid; what the calls read and fill lives through them; the handler
    // sets an atomic. The kernel's own number of a timer is what the policy's rows are about.
    let failed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGALRM;
        let clock = c_long::from(libc::CLOCK_MONOTONIC);
        let none: *mut libc::itimerspec = std::ptr::null_mut();
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()) < 0
            || libc::syscall(libc::SYS_timer_create, clock, &raw const event, &raw mut timer) < 0
            || libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const setting, none) < 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(timer) }
}
