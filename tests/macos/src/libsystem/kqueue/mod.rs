//! Kernel queues over epoll (xnu-11417.101.15, `bsd/kern/kern_event.c`).
//!
//! The queue's descriptor is an epoll, so that it can be polled, and each filter that is registered has a hidden
//! descriptor in it that is readable while the filter is active ([`source`]).

mod source;

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use darwin_abi::descriptors::given;
use darwin_abi::{Errno, Symbol, error, fail, from_linux, result, symbols};

use crate::libsystem::confined::mediated;
use source::Source;

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! { "_kqueue" => kqueue, "_kevent" => kevent };

const EVFILT_READ: i16 = -1;
const EVFILT_WRITE: i16 = -2;
const EVFILT_PROC: i16 = -5;
const EVFILT_TIMER: i16 = -7;
const EVFILT_MACHPORT: i16 = -8;
const EVFILT_USER: i16 = -10;

const EV_ADD: u16 = 0x1;
const EV_DELETE: u16 = 0x2;
const EV_ENABLE: u16 = 0x4;
const EV_DISABLE: u16 = 0x8;
const EV_ONESHOT: u16 = 0x10;
const EV_CLEAR: u16 = 0x20;
const EV_RECEIPT: u16 = 0x40;
const EV_DISPATCH: u16 = 0x80;
const EV_ERROR: u16 = 0x4000;
const EV_EOF: u16 = 0x8000;

/// `struct kevent`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Event {
    identity: usize,
    filter: i16,
    flags: u16,
    filter_flags: u32,
    data: isize,
    user: *mut c_void,
}

// SAFETY: the pointer is the program's own word, which is only given back to it.
unsafe impl Send for Event {}

/// A filter that is registered.
#[derive(Debug)]
struct Note {
    event: Event,
    source: Source,
    enabled: bool,
}

/// The notes of a queue, by number.
#[derive(Debug, Default)]
struct Queue {
    notes: Mutex<HashMap<u64, Note>>,
}

/// Queues by descriptor. One that was duplicated is there under each.
static QUEUES: LazyLock<Mutex<HashMap<c_int, Arc<Queue>>>> = LazyLock::new(Mutex::default);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a descriptor is a kernel queue.
pub(super) fn is(fd: c_int) -> bool {
    lock(&QUEUES).contains_key(&fd)
}

/// A descriptor is about to be closed: its notes go with it, and it is no queue any more.
pub(super) fn forget(fd: c_int) {
    let mut queues = lock(&QUEUES);
    queues.remove(&fd);
    for (epoll, queue) in queues.iter() {
        lock(&queue.notes).retain(|_, note| {
            let gone = matches!(note.event.filter, EVFILT_READ | EVFILT_WRITE)
                && note.event.identity == fd as usize;
            if gone {
                note.source.leave(*epoll);
            }
            !gone
        });
    }
}

/// A descriptor was duplicated.
pub(super) fn duplicated(from: c_int, to: c_int) {
    let mut queues = lock(&QUEUES);
    if let Some(queue) = queues.get(&from).cloned()
        && to >= 0
        && to != from
    {
        queues.insert(to, queue);
    }
}

/// Held over a fork, so that the child does not find the queues in the hands of a thread that it does not have.
pub(super) fn hold() -> impl Drop {
    lock(&QUEUES)
}

/// In a child that was forked: no queue is inherited by the program that it is about to run.
pub(super) fn close_on_exec() {
    for fd in lock(&QUEUES).keys() {
        // SAFETY: plain numbers.
        unsafe { libc::fcntl(*fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

extern "C" fn kqueue() -> c_int {
    mediated!("SYS_kqueue");
    // SAFETY: nothing is passed.
    let fd = given(result(unsafe { libc::epoll_create1(0) }));
    if fd >= 0 {
        lock(&QUEUES).insert(fd, Arc::default());
    }
    fd
}

unsafe extern "C" fn kevent(
    fd: c_int,
    changes: *const Event,
    change_count: c_int,
    events: *mut Event,
    room: c_int,
    timeout: *const libc::timespec,
) -> c_int {
    mediated!("SYS_kevent");
    let Some(queue) = lock(&QUEUES).get(&fd).cloned() else { return fail(error::EBADF) };
    let room = room.max(0) as usize;
    let mut out = Vec::new();
    for index in 0..change_count.max(0) as usize {
        // SAFETY: the caller's array.
        let mut change = unsafe { changes.add(index).read() };
        let done = queue.change(fd, &change);
        if done.is_ok() && change.flags & EV_RECEIPT == 0 {
            continue;
        }
        let errno = done.err().unwrap_or(0);
        if out.len() == room {
            if errno != 0 {
                return fail(errno);
            }
            continue;
        }
        change.flags = EV_ERROR;
        change.data = errno as isize;
        out.push(change);
    }
    if out.is_empty() && room > 0 {
        // SAFETY: the caller's time, which may be null.
        let timeout = unsafe { timeout.as_ref() };
        match queue.wait(fd, room, timeout) {
            Ok(found) => out = found,
            Err(errno) => return fail(errno),
        }
    }
    // SAFETY: the caller's array, which has room for them.
    unsafe { std::ptr::copy_nonoverlapping(out.as_ptr(), events, out.len()) };
    out.len() as c_int
}

impl Queue {
    /// Carries out one change.
    fn change(&self, epoll: c_int, change: &Event) -> Result<(), Errno> {
        let mut notes = lock(&self.notes);
        let key = |note: &Note| (note.event.identity, note.event.filter);
        let found = notes.iter().find(|(_, note)| key(note) == (change.identity, change.filter));
        let number = found.map(|(number, _)| *number);
        if change.flags & EV_DELETE != 0 {
            let number = number.ok_or(error::ENOENT)?;
            if let Some(note) = notes.remove(&number) {
                note.source.leave(epoll);
            }
            return Ok(());
        }
        let number = match number {
            Some(number) => number,
            None if change.flags & EV_ADD == 0 => return Err(error::ENOENT),
            None => {
                let source = Source::new(change)?;
                let number = notes.keys().max().map_or(1, |last| last + 1);
                let note = Note { event: *change, source, enabled: false };
                notes.insert(number, note);
                let note = notes.get_mut(&number).ok_or(error::ENOMEM)?;
                if change.flags & EV_DISABLE == 0
                    && let Err(errno) = note.source.join(epoll, number, change)
                {
                    notes.remove(&number);
                    return Err(errno);
                }
                note.enabled = change.flags & EV_DISABLE == 0;
                number
            }
        };
        let note = notes.get_mut(&number).ok_or(error::ENOENT)?;
        note.update(epoll, number, change)
    }

    /// Waits until a note is active, and gives what is.
    fn wait(
        &self,
        epoll: c_int,
        room: usize,
        timeout: Option<&libc::timespec>,
    ) -> Result<Vec<Event>, Errno> {
        let end = timeout.map(|time| {
            let time = std::time::Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec as u32);
            std::time::Instant::now() + time
        });
        loop {
            let left = end.map(|end| end.saturating_duration_since(std::time::Instant::now()));
            // Up to whole milliseconds, so that it does not spin through the last one.
            let left = left.map_or(-1, |left| left.as_micros().div_ceil(1000) as c_int);
            let none = libc::epoll_event { events: 0, u64: 0 };
            let mut ready = vec![none; room.min(64)];
            // SAFETY: an array of this function's own.
            let count =
                unsafe { libc::epoll_wait(epoll, ready.as_mut_ptr(), ready.len() as c_int, left) };
            if count < 0 {
                let error = std::io::Error::last_os_error();
                return Err(from_linux(error.raw_os_error().unwrap_or(libc::EIO)));
            }
            let mut out = Vec::new();
            let mut notes = lock(&self.notes);
            for one in &ready[..count as usize] {
                let (number, state) = (one.u64, one.events);
                let Some(note) = notes.get_mut(&number) else { continue };
                let Some((event, ends)) = note.report(epoll, state) else { continue };
                out.push(event);
                if ends && let Some(note) = notes.remove(&number) {
                    note.source.leave(epoll);
                }
            }
            if !out.is_empty() || left == 0 || count == 0 && end.is_some() {
                return Ok(out);
            }
        }
    }
}

impl Note {
    /// What a change asks of a note that is there.
    fn update(&mut self, epoll: c_int, number: u64, change: &Event) -> Result<(), Errno> {
        if change.flags & EV_ADD != 0 {
            self.event.user = change.user;
        }
        if change.flags & EV_DISABLE != 0 && self.enabled {
            self.source.leave(epoll);
            self.enabled = false;
        }
        if change.flags & EV_ENABLE != 0 && !self.enabled {
            self.source.join(epoll, number, &self.event)?;
            self.enabled = true;
        }
        if self.event.filter == EVFILT_USER {
            source::trigger(&mut self.source, &mut self.event, change);
        }
        Ok(())
    }

    /// The event of an active note, and whether the note ends with it.
    fn report(&mut self, epoll: c_int, state: u32) -> Option<(Event, bool)> {
        let mut event = self.event;
        let once = self.source.describe(&mut event, state)?;
        let flags = self.event.flags;
        if flags & (EV_CLEAR | EV_DISPATCH | EV_ONESHOT) != 0 {
            self.source.clear();
        }
        let ends = once || flags & EV_ONESHOT != 0;
        if !ends && flags & EV_DISPATCH != 0 {
            self.source.leave(epoll);
            self.enabled = false;
        }
        if once {
            event.flags |= EV_ONESHOT;
        }
        event.flags &= !(EV_ADD | EV_RECEIPT);
        Some((event, ends))
    }
}
