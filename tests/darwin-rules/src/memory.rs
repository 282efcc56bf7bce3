//! Memory: pages of 16 KiB, and POSIX shared memory.

use std::ffi::CString;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use libc::{MAP_ANON, MAP_FAILED, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};

use crate::calls::errno;

const PAGE: usize = 16384;
const BOTH: i32 = PROT_READ | PROT_WRITE;

fn map(at: usize, size: usize, flags: i32, fd: i32, offset: i64) -> Result<usize, i32> {
    // SAFETY: fixed mappings are put over memory of the test's own only.
    let got = unsafe { libc::mmap(at as *mut _, size, BOTH, flags, fd, offset) };
    if got == MAP_FAILED { Err(errno()) } else { Ok(got as usize) }
}

/// `osfmk/mach/arm/vm_param.h`: tasks of arm64 Macs have pages of 16 KiB.
#[test]
fn pages_have_sixteen_kibibytes() {
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }, 16384);
    for _ in 0..16 {
        assert_eq!(map(0, 4096, MAP_PRIVATE | MAP_ANON, -1, 0).unwrap() % PAGE, 0);
    }
}

/// `bsd/kern/kern_mman.c`, mmap, mprotect, munmap: an address that is not at a page is refused.
#[test]
fn a_fixed_mapping_is_at_a_page() {
    let room = map(0, 4 * PAGE, MAP_PRIVATE | MAP_ANON, -1, 0).unwrap();
    let fixed = MAP_PRIVATE | MAP_ANON | MAP_FIXED;
    assert_eq!(map(room + 4096, PAGE, fixed, -1, 0), Err(libc::EINVAL));
    assert_eq!(map(room + PAGE, PAGE, fixed, -1, 0), Ok(room + PAGE));
    // SAFETY: memory of this test's own.
    unsafe {
        assert_eq!(libc::mprotect((room + 4096) as *mut _, 4096, PROT_READ), -1);
        assert_eq!(errno(), libc::EINVAL);
        assert_eq!(libc::munmap((room + 4096) as *mut _, 4096), -1);
        assert_eq!(errno(), libc::EINVAL);
        assert_eq!(libc::munmap(room as *mut _, 4 * PAGE), 0);
    }
}

/// Shared memory of a size, or none yet.
fn object(name: &str, size: i64) -> OwnedFd {
    let name = CString::new(format!("/rule.{}.{name}", std::process::id())).unwrap();
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
    // SAFETY: a string of this function's own; a new descriptor.
    unsafe {
        let fd = libc::shm_open(name.as_ptr(), flags, 0o600);
        assert!(fd >= 0, "{}", errno());
        assert_eq!(libc::shm_unlink(name.as_ptr()), 0);
        if size > 0 {
            assert_eq!(libc::ftruncate(fd, size), 0);
        }
        OwnedFd::from_raw_fd(fd)
    }
}

/// `bsd/kern/posix_shm.c`, pshm_truncate: whole pages, once.
#[test]
fn shared_memory_gets_its_size_once() {
    let memory = object("once", 100);
    // SAFETY: a place for what is asked.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        assert_eq!(libc::fstat(memory.as_raw_fd(), &raw mut stat), 0);
        assert_eq!(stat.st_size, 16384);
        assert_eq!(libc::ftruncate(memory.as_raw_fd(), 2 * 16384), -1);
        assert_eq!(errno(), libc::EINVAL);
    }
}

/// `bsd/kern/posix_shm.c`, pshm_mmap: shared, and not beyond its length. Copies of it come by other ways.
#[test]
fn shared_memory_is_mapped_shared() {
    let memory = object("shared", 16384);
    let fd = memory.as_raw_fd();
    assert_eq!(map(0, PAGE, MAP_PRIVATE, fd, 0), Err(libc::EINVAL));
    assert_eq!(map(0, 2 * PAGE, MAP_SHARED, fd, 0), Err(libc::EINVAL));
    assert_eq!(map(0, PAGE, MAP_SHARED, object("empty", 0).as_raw_fd(), 0), Err(libc::EINVAL));
    assert!(map(0, PAGE, MAP_SHARED, fd, 0).is_ok());
}

/// `bsd/sys/posix_shm.h`: PSHMNAMLEN is 31.
#[test]
fn names_of_shared_memory_are_short() {
    let name = CString::new(format!("/{}", "x".repeat(31))).unwrap();
    // SAFETY: a string of this test's own.
    let fd = unsafe { libc::shm_open(name.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600) };
    assert_eq!((fd, errno()), (-1, libc::ENAMETOOLONG));
}

unsafe extern "C" {
    fn sandbox_init_with_parameters(
        profile: *const libc::c_char,
        flags: u64,
        parameters: *const *const libc::c_char,
        error: *mut *mut libc::c_char,
    ) -> i32;
}

/// `bsd/kern/posix_shm.c`, pshm_stat asks the policy and pshm_mmap does not: a confined process maps memory that it
/// was handed, and may not ask how large it is. In a child, since confinement is for good.
#[test]
fn a_confined_process_maps_shared_memory_and_may_not_look_at_it() {
    let memory = object("confined", 16384);
    // SAFETY: the child makes plain calls and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let profile = c"(version 1)(deny default)";
        let none = [std::ptr::null()];
        // SAFETY: strings and places of this block's own.
        let status = unsafe {
            let mut error = std::ptr::null_mut();
            let profile = profile.as_ptr();
            let confined = sandbox_init_with_parameters(profile, 0, none.as_ptr(), &raw mut error);
            let mut stat: libc::stat = std::mem::zeroed();
            let looked = libc::fstat(memory.as_raw_fd(), &raw mut stat);
            let refused = looked == -1 && errno() == libc::EPERM;
            let mapped = map(0, PAGE, MAP_SHARED, memory.as_raw_fd(), 0).is_ok();
            i32::from(confined != 0) | i32::from(!refused) << 1 | i32::from(!mapped) << 2
        };
        // SAFETY: ends the child.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: the child of this test, and a place.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "1: not confined, 2: fstat was not refused, 4: mmap was (times 256)");
}
