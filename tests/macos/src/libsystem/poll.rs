//! `poll` as Darwin does it: over a kernel queue (xnu-11417.101.15, `bsd/kern/sys_generic.c`, `poll_nocancel` and
//! `poll_callback`).
//!
//! - an entry whose `events` name nothing is not registered, and nothing is ever reported of it;
//! - the end of a stream, in either direction, is POLLHUP, also when the peer only shut down its writing side;
//! - what is writable is not reported with POLLHUP.

use std::ffi::{c_int, c_short};

use crate::libsystem::confined::mediated;
use darwin_abi::{Symbol, result, symbols};

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! { "_poll" => poll };

const POLLIN: c_short = 0x1;
const POLLPRI: c_short = 0x2;
const POLLOUT: c_short = 0x4;
const POLLHUP: c_short = 0x10;
const POLLNVAL: c_short = 0x20;
const POLLRDNORM: c_short = 0x40;
const POLLRDBAND: c_short = 0x80;
const POLLWRBAND: c_short = 0x100;

/// What registers a read filter.
const READS: c_short = POLLIN | POLLRDNORM | POLLPRI | POLLRDBAND | POLLHUP;
/// What registers a write filter; POLLWRNORM is POLLOUT.
const WRITES: c_short = POLLOUT | POLLWRBAND;

/// `struct pollfd`, which is the same.
type Entry = libc::pollfd;

unsafe extern "C" fn poll(entries: *mut Entry, count: u32, timeout: c_int) -> c_int {
    mediated!("SYS_poll");
    let entries = if count == 0 {
        &mut []
    } else {
        // SAFETY: the caller's array.
        unsafe { std::slice::from_raw_parts_mut(entries, count as usize) }
    };
    let mut linux: Vec<libc::pollfd> = entries.iter().map(register).collect();
    // SAFETY: an array of this function's own.
    let done = unsafe { libc::poll(linux.as_mut_ptr(), linux.len() as libc::nfds_t, timeout) };
    if result(done) < 0 {
        return done;
    }
    let mut ready = 0;
    for (entry, linux) in entries.iter_mut().zip(&linux) {
        entry.revents = if linux.fd < 0 { 0 } else { report(entry.events, linux.revents) };
        ready += c_int::from(entry.revents != 0);
    }
    ready
}

/// What Linux is asked for an entry: nothing if it registers nothing.
fn register(entry: &Entry) -> libc::pollfd {
    let mut events = 0;
    if entry.events & READS != 0 {
        events |= libc::POLLIN | libc::POLLRDHUP;
        if entry.events & (POLLPRI | POLLRDBAND) != 0 {
            events |= libc::POLLPRI;
        }
    }
    if entry.events & WRITES != 0 {
        events |= libc::POLLOUT;
    }
    let fd = if events == 0 { -1 } else { entry.fd };
    libc::pollfd { fd, events, revents: 0 }
}

/// What Darwin says for what Linux said.
fn report(events: c_short, linux: c_short) -> c_short {
    if linux & libc::POLLNVAL != 0 {
        return POLLNVAL;
    }
    let mut said = 0;
    let end = libc::POLLHUP | libc::POLLRDHUP | libc::POLLERR;
    if linux & end != 0 {
        said |= POLLHUP;
    }
    if events & READS != 0 && linux & (libc::POLLIN | end) != 0 {
        let mut mask = POLLIN | POLLRDNORM;
        if said & POLLHUP != 0 || linux & libc::POLLPRI != 0 {
            mask |= POLLPRI | POLLRDBAND;
        }
        said |= events & mask;
    }
    if events & WRITES != 0 && linux & libc::POLLOUT != 0 && said & POLLHUP == 0 {
        said |= events & WRITES;
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_without_events_is_not_registered() {
        let entry = Entry { fd: 1, events: 0, revents: 0 };
        assert_eq!(register(&entry).fd, -1);
        assert_eq!(register(&Entry { events: POLLHUP, ..entry }).fd, 1);
    }

    #[test]
    fn the_end_of_a_stream_hangs_up() {
        assert_eq!(report(POLLIN, libc::POLLIN | libc::POLLRDHUP), POLLIN | POLLHUP);
        assert_eq!(report(POLLHUP, libc::POLLRDHUP), POLLHUP);
        assert_eq!(report(POLLOUT, libc::POLLOUT | libc::POLLERR), POLLHUP);
    }
}
