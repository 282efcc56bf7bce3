//! Memory: ways to map it that no limit counts, and more of it than the limits allow.

use std::ffi::{c_int, c_long, c_void};
use std::os::fd::AsFd as _;

use crate::Entry;

/// Size of the guest memory that is mapped; none of it is there until it is touched.
const GUEST: u64 = 1 << 30;
/// More of anything than a budget allows: bytes, or pages that have page tables of their own.
const TOO_MUCH: usize = 1 << 30;
const TOO_MANY: usize = 50_000;

/// What is taken in one step.
const STEP: usize = 16 << 20;

const READ_WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;
const OWN: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// Puts memory such as a guest's in the place of standard input, where it can be mapped by a process
/// that may open nothing.
pub(crate) fn guest_memory() -> std::io::Result<()> {
    let memory = ipc::SharedMemory::create("guest", GUEST)?;
    rustix::stdio::dup2_stdin(memory.as_fd())?;
    Ok(())
}

fn page() -> usize {
    rustix::param::page_size()
}

/// Maps memory; negative when that is refused. Whole registers are passed: the filter compares them.
fn map(at: usize, length: usize, protection: c_int, flags: c_int, fd: c_int) -> c_long {
    let [protection, flags, fd] = [protection, flags, fd].map(c_long::from);
    // SAFETY: an attempt to be refused. Where it is not, the mapping is new: only `over_itself` asks
    // for a place, which is its own.
    unsafe { libc::syscall(libc::SYS_mmap, at, length, protection, flags, fd, 0usize) }
}

/// A page of private memory with more flags than an allocator asks for.
fn own(flags: c_int) -> c_long {
    map(0, page(), READ_WRITE, OWN | flags, -1)
}

/// Maps guest memory as a process does that is handed it.
fn guest(length: usize) -> c_long {
    map(0, length, READ_WRITE, libc::MAP_SHARED, 0)
}

/// Moves or duplicates a mapping of one page.
fn remap(old: c_long, old_length: usize, flags: c_int, to: usize) -> c_long {
    if old < 0 {
        return old;
    }
    // SAFETY: an attempt to be refused; a mapping of our own that nothing points into.
    unsafe { libc::syscall(libc::SYS_mremap, old, old_length, page(), c_long::from(flags), to) }
}

/// A place that is this program's own, one page.
fn over_itself() -> c_long {
    let mapped = guest(page());
    let Ok(at) = usize::try_from(mapped) else { return mapped };
    map(at, page(), READ_WRITE, OWN | libc::MAP_FIXED, -1)
}

/// Repeats `map` until it fails, or has given as much as no budget allows.
fn until_too_much(map: impl Fn() -> c_long) -> c_long {
    let steps = TOO_MUCH / STEP;
    let mapped = (0..steps).take_while(|_| map() >= 0).count();
    if mapped == steps { 0 } else { -1 }
}

/// Leaves one page of each table behind, touched, so that the tables cost as much as the pages.
fn sparse() -> c_long {
    // What one page of page tables maps: an entry has eight bytes.
    let table = page() * (page() / 8);
    for _ in 0..TOO_MANY {
        let Ok(at) = usize::try_from(guest(table)) else { return -1 };
        let last = at + table - page();
        let freed: *mut c_void = std::ptr::with_exposed_provenance_mut(at);
        let kept: *const u8 = std::ptr::with_exposed_provenance(last);
        // SAFETY: mapped just now, by us, and pointed to by nothing else; the last page stays mapped.
        unsafe {
            if libc::syscall(libc::SYS_munmap, freed, table - page()) < 0 {
                return -1;
            }
            kept.read_volatile();
        }
    }
    0
}

pub(super) const ATTEMPTS: &[Entry] = &[
    ("map-shared-anonymous", |_| {
        map(0, page(), READ_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)
    }),
    ("map-growing-down", |_| own(libc::MAP_GROWSDOWN)),
    ("map-at-an-address", |_| map(1 << 40, page(), READ_WRITE, OWN, -1)),
    ("map-over-itself", |_| over_itself()),
    ("map-without-reserve", |_| own(libc::MAP_NORESERVE)),
    ("map-populated", |_| own(libc::MAP_POPULATE)),
    ("map-locked", |_| own(libc::MAP_LOCKED)),
    ("map-huge-pages", |_| own(libc::MAP_HUGETLB)),
    ("map-no-access", |_| map(0, page(), libc::PROT_NONE, OWN, -1)),
    ("map-a-private-copy", |_| map(0, page(), READ_WRITE, libc::MAP_PRIVATE, 0)),
    ("map-shared-and-populated", |_| {
        map(0, page(), READ_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE, 0)
    }),
    ("remap-to-an-address", |_| {
        remap(own(0), page(), libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, 1 << 40)
    }),
    ("remap-and-keep", |_| remap(own(0), page(), libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP, 0)),
    ("remap-a-second-time", |_| remap(guest(page()), 0, libc::MREMAP_MAYMOVE, 0)),
    ("too-much-private-memory", |_| until_too_much(|| map(0, STEP, READ_WRITE, OWN, -1))),
    ("too-much-heap", |_| {
        // SAFETY: asks where the heap ends, and then for more of it, which nobody uses.
        let brk = |end: usize| unsafe { libc::syscall(libc::SYS_brk, end) };
        let end = usize::try_from(brk(0)).unwrap_or(0) + TOO_MUCH;
        if usize::try_from(brk(end)) == Ok(end) { 0 } else { -1 }
    }),
    ("too-much-guest-memory", |_| until_too_much(|| guest(STEP))),
    ("too-many-page-tables", |_| sparse()),
];
