//! `poll` and kernel queues.

use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::calls::{errno, pair};

fn poll(fd: &OwnedFd, events: i16) -> (i32, i16) {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one entry of this function's own.
    let ready = unsafe { libc::poll(&raw mut entry, 1, 100) };
    (ready, entry.revents)
}

/// `bsd/kern/sys_generic.c`, poll_nocancel: an entry without events registers nothing.
#[test]
fn an_entry_without_events_is_never_reported() {
    let (a, b) = pair();
    drop(b);
    assert_eq!(poll(&a, 0), (0, 0));
    assert_eq!(poll(&a, libc::POLLHUP), (1, libc::POLLHUP));
}

/// The same file, poll_callback: the end of a stream is POLLHUP, also when the peer only writes no more, and nothing
/// is writable then.
#[test]
fn the_end_of_a_stream_hangs_up() {
    let (a, b) = pair();
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::shutdown(b.as_raw_fd(), libc::SHUT_WR) }, 0);
    assert_eq!(poll(&a, libc::POLLIN), (1, libc::POLLIN | libc::POLLHUP));
    drop(b);
    assert_eq!(poll(&a, libc::POLLOUT), (1, libc::POLLHUP));
}

/// `bsd/kern/kern_event.c`, kqueue_stat: its kind is S_IFIFO.
#[test]
fn a_kernel_queue_is_a_fifo() {
    // SAFETY: nothing is passed; a place for what is asked.
    unsafe {
        let queue = libc::kqueue();
        let mut stat: libc::stat = std::mem::zeroed();
        assert_eq!(libc::fstat(queue, &raw mut stat), 0);
        assert_eq!(stat.st_mode & libc::S_IFMT, libc::S_IFIFO);
        libc::close(queue);
    }
}

/// The same file: an event of the program's own is active from its trigger on, until it is cleared.
#[test]
fn a_triggered_event_makes_its_queue_readable() {
    // SAFETY: nothing is passed; a new descriptor; events of this test's own.
    unsafe {
        let queue = libc::kqueue();
        let event = |flags, filter_flags| libc::kevent {
            ident: 5,
            filter: libc::EVFILT_USER,
            flags,
            fflags: filter_flags,
            data: 0,
            udata: std::ptr::null_mut(),
        };
        let change = |event: libc::kevent| {
            libc::kevent(queue, &raw const event, 1, std::ptr::null_mut(), 0, std::ptr::null())
        };
        let ready = || {
            let mut entry = libc::pollfd { fd: queue, events: libc::POLLIN, revents: 0 };
            libc::poll(&raw mut entry, 1, 0)
        };
        assert_eq!(change(event(libc::EV_ADD | libc::EV_CLEAR, 0)), 0);
        assert_eq!(ready(), 0);
        assert_eq!(change(event(0, libc::NOTE_TRIGGER)), 0);
        assert_eq!(ready(), 1);
        let mut got = event(0, 0);
        assert_eq!(libc::kevent(queue, std::ptr::null(), 0, &raw mut got, 1, std::ptr::null()), 1);
        let (identity, filter) = (got.ident, got.filter);
        assert_eq!((identity, filter), (5, libc::EVFILT_USER));
        assert_eq!(ready(), 0);
        let receipt = event(libc::EV_DELETE | libc::EV_RECEIPT, 0);
        let done = libc::kevent(queue, &raw const receipt, 1, &raw mut got, 1, std::ptr::null());
        assert_eq!((done, got.flags & libc::EV_ERROR), (1, libc::EV_ERROR));
        assert_eq!({ got.data }, 0);
        assert_eq!((change(event(libc::EV_DELETE, 0)), errno()), (-1, libc::ENOENT));
        libc::close(queue);
    }
}
