//! Takes all that it gets: memory, page tables, descriptors, threads, log, processors.
#![expect(unsafe_code, reason = "maps memory that it does not use")]

use std::cell::RefCell;
use std::os::fd::AsFd as _;

use ipc::Tube;
use ipc::wire::faults::Point;
use rustix::mm::{MapFlags, ProtFlags};

use super::frames::Strike;

thread_local! {
    /// What it has got.
    static GOT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Private memory until there is no more, each page of it written, and goes on with it.
fn memory(_: &Tube) {
    const STEP: usize = 1 << 20;
    GOT.with_borrow_mut(|got| {
        loop {
            let mut more = Vec::new();
            if more.try_reserve_exact(STEP).is_err() || got.try_reserve(1).is_err() {
                break;
            }
            more.resize(STEP, 0xa5);
            got.push(more);
        }
        // Room for what serving takes.
        got.truncate(got.len().saturating_sub(2));
    });
}

/// Page tables: a page here and there, until mapping more is refused.
pub(crate) fn page_tables(_: &Tube) {
    const TABLE: usize = 2 << 20;
    let page = rustix::param::page_size();
    for _ in 0..100_000 {
        let (none, access) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: new memory at a place that the kernel chooses.
        let mapped = unsafe { rustix::mm::mmap_anonymous(none, TABLE, access, MapFlags::PRIVATE) };
        let Ok(mapped) = mapped else { return };
        // SAFETY: mapped just now, and nothing points into it: all but its last page goes, which is
        // written once, inside of what stays mapped.
        unsafe {
            let last = mapped.cast::<u8>().add(TABLE - page);
            let _ = rustix::mm::munmap(mapped, TABLE - page);
            last.write_volatile(1);
        }
    }
}

/// Standard error, as much as its pipe takes: lines that call themselves errors, and bytes that are no text.
pub(crate) fn standard_error() {
    let line = b"ERROR \x1b]0;owned\x07\xff\xfe all is lost, and here is a long line to say so\n";
    let bytes = line.repeat(64);
    for _ in 0..32 {
        let stderr = rustix::stdio::stderr();
        let room = [ipc::poll::Source::writable(&stderr, ())];
        let room = ipc::poll::wait(&room, Some(ipc::Deadline::now()));
        // A pipe with room for less than a write of ours would make it wait.
        if room.is_ok_and(|room| room.is_empty())
            || rustix::io::write(stderr, bytes.get(..4096).unwrap_or(&bytes)).is_err()
        {
            break;
        }
    }
}

pub(crate) const STRIKES: &[Strike] = &[
    ("takes-all-memory", Point::Before, memory),
    ("takes-all-page-tables", Point::Before, page_tables),
    ("takes-descriptors", Point::Before, |tube| {
        let copies: Vec<_> = (0..5000).map(|_| tube.as_fd().try_clone_to_owned()).collect();
        std::mem::forget(copies);
    }),
    ("makes-threads", Point::Before, |_| {
        for _ in 0..1000 {
            let spinning = std::thread::Builder::new().spawn(|| {
                loop {
                    std::hint::spin_loop();
                }
            });
            if spinning.is_err() {
                break;
            }
        }
    }),
    ("spins-for-ever", Point::Before, |_| {
        loop {
            std::hint::spin_loop();
        }
    }),
    ("floods-standard-error", Point::Before, |_| standard_error()),
];
