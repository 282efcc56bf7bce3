//! System calls that std has no name for.
#![expect(unsafe_code, reason = "mount, mmap, modules, reboot, affinity")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::NonNull;

use crate::End;

/// Mounts a file system.
pub(crate) fn mount(source: &str, at: &str, kind: &str) -> io::Result<()> {
    let [source, at, kind] = [source, at, kind].map(|text| CString::new(text).unwrap_or_default());
    // SAFETY: three strings that end in NUL, no flags, no data.
    let done =
        unsafe { libc::mount(source.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Unmounts a file system.
pub(crate) fn unmount(at: &str) -> io::Result<()> {
    let at = CString::new(at).unwrap_or_default();
    // SAFETY: a string that ends in NUL.
    let done = unsafe { libc::umount(at.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Loads a kernel module, which may be compressed.
pub(crate) fn load_module(path: &std::path::Path) -> io::Result<()> {
    /// MODULE_INIT_COMPRESSED_FILE
    const COMPRESSED: libc::c_int = 4;
    let file = File::open(path)?;
    let flags = if path.extension().is_some_and(|end| end == "ko") { 0 } else { COMPRESSED };
    // SAFETY: an open file, a string that ends in NUL, and plain numbers.
    let done =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), flags) };
    match io::Error::last_os_error() {
        _ if done == 0 => Ok(()),
        // It is there already.
        error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        error => Err(error),
    }
}

/// Keeps this thread on one processor.
pub(crate) fn stay_on(processor: usize) -> io::Result<()> {
    // SAFETY: a zeroed set is an empty one; the number is checked by CPU_SET's own bounds; the
    // size is the set's.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the kernel has logged so far.
pub(crate) fn kernel_log() -> io::Result<String> {
    const READ_ALL: libc::c_int = 3;
    let mut bytes = vec![0u8; 1 << 20];
    let length = libc::c_int::try_from(bytes.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: a buffer of the length given.
    let read = unsafe { libc::klogctl(READ_ALL, bytes.as_mut_ptr().cast(), length) };
    bytes.truncate(usize::try_from(read).map_err(|_| io::Error::last_os_error())?);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Ends the guest, or waits for ever.
pub(crate) fn end(end: &End) {
    // SAFETY: no pointers; the kernel stops.
    unsafe {
        libc::sync();
        match end {
            End::PowerOff => libc::reboot(libc::RB_POWER_OFF),
            End::Reboot => libc::reboot(libc::RB_AUTOBOOT),
            End::Stay => loop {
                libc::pause();
            },
        };
    }
}

/// A mapping that is never given back.
#[derive(Clone, Copy)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: a raw range that is never given back, accessed by volatile loads and stores only.
unsafe impl Send for Mapping {}
// SAFETY: as above; what threads do to it at once is what the guest's processors do.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a file: a BAR's resource.
    pub(crate) fn of(file: &File, length: usize) -> io::Result<Self> {
        // SAFETY: a new shared mapping of an open file at an address the kernel chooses.
        Self::checked(length, unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        })
    }

    /// Memory that stays where it is in physical memory.
    pub(crate) fn locked(length: usize) -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_LOCKED | libc::MAP_POPULATE;
        // SAFETY: a new anonymous mapping at an address the kernel chooses.
        Self::checked(length, unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), length, access, flags, -1, 0)
        })
    }

    /// Memory that is contiguous in each 2 MiB of physical memory, and stays where it is. The
    /// kernel must have set as many huge pages aside.
    pub(crate) fn huge(length: usize) -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_POPULATE;
        // SAFETY: a new anonymous mapping at an address the kernel chooses.
        Self::checked(length, unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), length, access, flags, -1, 0)
        })
    }

    fn checked(length: usize, base: *mut libc::c_void) -> io::Result<Self> {
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { base, length })
    }

    pub(crate) fn address(self) -> usize {
        self.base.as_ptr() as usize
    }

    fn at<T>(self, offset: usize) -> *mut T {
        assert!(offset.is_multiple_of(size_of::<T>()) && offset + size_of::<T>() <= self.length);
        self.base.as_ptr().wrapping_add(offset).cast()
    }

    pub(crate) fn read(self, offset: usize) -> u32 {
        // SAFETY: `at` checked range and alignment; the mapping is never given back.
        unsafe { self.at::<u32>(offset).read_volatile() }
    }

    pub(crate) fn read_double(self, offset: usize) -> u64 {
        // SAFETY: as in `read`.
        unsafe { self.at::<u64>(offset).read_volatile() }
    }

    pub(crate) fn write(self, offset: usize, value: u32) {
        // SAFETY: as in `read`.
        unsafe { self.at::<u32>(offset).write_volatile(value) };
    }

    pub(crate) fn write_double(self, offset: usize, value: u64) {
        // SAFETY: as in `read`.
        unsafe { self.at::<u64>(offset).write_volatile(value) };
    }
}
