//! Folders: `struct dirent` with 64-bit inodes (xnu-11417.101.15, `bsd/sys/dirent.h`).

use std::ffi::{CStr, c_char, c_int};

use darwin_abi::descriptors::{closing, given, is_given};
use darwin_abi::{Symbol, from_linux, result, symbols};

/// The symbols of this file.
pub(in crate::libsystem) const SYMBOLS: &[Symbol] = symbols! {
    "_opendir" => opendir,
    "_fdopendir" => fdopendir,
    "_readdir_r" => readdir_r,
    "_closedir" => closedir,
    "_dirfd" => dirfd,
};

#[repr(C)]
struct Entry {
    inode: u64,
    seek_offset: u64,
    record_length: u16,
    name_length: u16,
    kind: u8,
    name: [u8; 1024],
}

/// What a DIR is to the program.
struct Folder {
    linux: *mut libc::DIR,
    /// It is of the descriptors of this process, of which only those of the program are shown.
    descriptors: bool,
}

fn wrap(linux: *mut libc::DIR) -> *mut Folder {
    if linux.is_null() {
        result(-1);
        return std::ptr::null_mut();
    }
    // SAFETY: an open folder.
    let fd = unsafe { libc::dirfd(linux) };
    let path = std::fs::read_link(format!("/proc/self/fd/{fd}"));
    let descriptors = path.is_ok_and(|path| {
        path.starts_with("/proc") && path.file_name().is_some_and(|name| name == "fd")
    });
    given(fd);
    Box::into_raw(Box::new(Folder { linux, descriptors }))
}

unsafe extern "C" fn opendir(path: *const c_char) -> *mut Folder {
    // SAFETY: the caller's string.
    wrap(unsafe { libc::opendir(path) })
}

extern "C" fn fdopendir(fd: c_int) -> *mut Folder {
    // SAFETY: the caller gives up the descriptor.
    wrap(unsafe { libc::fdopendir(fd) })
}

extern "C" fn dirfd(folder: &Folder) -> c_int {
    // SAFETY: an open folder.
    unsafe { libc::dirfd(folder.linux) }
}

unsafe extern "C" fn closedir(folder: *mut Folder) -> c_int {
    // SAFETY: made by `wrap`, and given up by the caller.
    unsafe {
        let folder = Box::from_raw(folder);
        closing(libc::dirfd(folder.linux));
        result(libc::closedir(folder.linux))
    }
}

unsafe extern "C" fn readdir_r(
    folder: &Folder,
    entry: *mut Entry,
    found: *mut *mut Entry,
) -> c_int {
    loop {
        // SAFETY: an open folder, which the caller lets nobody else read; the caller's places.
        unsafe {
            *libc::__errno_location() = 0;
            let next = libc::readdir(folder.linux);
            let Some(next) = next.as_ref() else {
                found.write(std::ptr::null_mut());
                return from_linux(*libc::__errno_location());
            };
            let name = CStr::from_ptr(next.d_name.as_ptr()).to_bytes();
            if folder.descriptors && is_hidden(name) {
                continue;
            }
            let to = &raw mut *entry;
            (&raw mut (*to).inode).write(next.d_ino);
            (&raw mut (*to).seek_offset).write(next.d_off as u64);
            (&raw mut (*to).name_length).write(name.len() as u16);
            let length = std::mem::offset_of!(Entry, name) + name.len() + 1;
            (&raw mut (*to).record_length).write(length.next_multiple_of(4) as u16);
            // The kinds have the same numbers.
            (&raw mut (*to).kind).write(next.d_type);
            let place = (&raw mut (*to).name).cast::<u8>();
            std::ptr::copy_nonoverlapping(name.as_ptr(), place, name.len());
            place.add(name.len()).write(0);
            found.write(entry);
            return 0;
        }
    }
}

/// Of a descriptor's name in a list of them.
fn is_hidden(name: &[u8]) -> bool {
    let number = std::str::from_utf8(name).ok().and_then(|name| name.parse::<c_int>().ok());
    number.is_some_and(|number| !is_given(number))
}
