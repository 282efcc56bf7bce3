//! What the system says of itself: limits, configuration, users, randomness, names of hosts.

use std::ffi::{CStr, c_char, c_int, c_long, c_void};

use darwin_abi::{HIDDEN, Symbol, error, fail, result, symbols};

use super::page;
use super::runner::lacks;
use crate::libsystem::confined::mediated;

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! {
    "_sysconf" => sysconf,
    "_confstr" => confstr,
    "_sysctlbyname" => sysctlbyname,
    "_getentropy" => getentropy,
    "_CCRandomGenerateBytes" => random_bytes,
    "_getrlimit" => getrlimit,
    "_setrlimit" => setrlimit,
    "_getpwuid_r" => getpwuid_r,
};

/// `unistd.h` of Libc-1669.
extern "C" fn sysconf(name: c_int) -> c_long {
    let linux = match name {
        29 => return page::SIZE as c_long,
        71 => return 4096,
        5 => return HIDDEN.into(),
        1 => libc::_SC_ARG_MAX,
        2 => libc::_SC_CHILD_MAX,
        3 => libc::_SC_CLK_TCK,
        4 => libc::_SC_NGROUPS_MAX,
        56 => libc::_SC_IOV_MAX,
        57 => libc::_SC_NPROCESSORS_CONF,
        58 => libc::_SC_NPROCESSORS_ONLN,
        72 => libc::_SC_HOST_NAME_MAX,
        _ => lacks(format_args!("sysconf {name}")),
    };
    // SAFETY: plain numbers.
    unsafe { libc::sysconf(linux) }
}

/// _CS_DARWIN_USER_TEMP_DIR is all that is asked.
unsafe extern "C" fn confstr(name: c_int, buffer: *mut u8, size: usize) -> usize {
    const USER_TEMP_DIR: c_int = 65537;
    const FOLDER: &[u8] = b"/tmp/\0";
    if name != USER_TEMP_DIR {
        lacks(format_args!("confstr {name}"));
    }
    let length = FOLDER.len().min(size);
    // SAFETY: the caller's buffer.
    unsafe { std::ptr::copy_nonoverlapping(FOLDER.as_ptr(), buffer, length) };
    FOLDER.len()
}

/// A confined process is asked for sysctl-read. What is not known here has no name (ENOENT).
unsafe extern "C" fn sysctlbyname(
    name: *const c_char,
    old: *mut c_void,
    old_size: *mut usize,
    new: *const c_void,
    _new_size: usize,
) -> c_int {
    mediated!("SYS_sysctlbyname");
    // SAFETY: the caller's string.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    if !new.is_null() || !mach_kernel::permits("sysctl-read", &name) {
        return fail(error::EPERM);
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as i32;
    let value: Vec<u8> = match &*name {
        "hw.pagesize" => (page::SIZE as u64).to_ne_bytes().to_vec(),
        "hw.ncpu" | "hw.logicalcpu" | "hw.activecpu" => processors.to_ne_bytes().to_vec(),
        "kern.ostype" => b"Darwin\0".to_vec(),
        "kern.osrelease" => b"24.4.0\0".to_vec(),
        "kern.osproductversion" => b"15.4\0".to_vec(),
        "kern.hostname" => b"macho-runner\0".to_vec(),
        _ => return fail(error::ENOENT),
    };
    // SAFETY: the caller's places, as large as it says.
    unsafe {
        if old.is_null() {
            if let Some(size) = old_size.as_mut() {
                *size = value.len();
            }
            return 0;
        }
        if *old_size < value.len() {
            return fail(error::ENOMEM);
        }
        std::ptr::copy_nonoverlapping(value.as_ptr(), old.cast(), value.len());
        *old_size = value.len();
    }
    0
}

/// At most 256 bytes.
unsafe extern "C" fn getentropy(buffer: *mut c_void, size: usize) -> c_int {
    mediated!("SYS_getentropy");
    if size > 256 {
        return fail(error::EIO);
    }
    // SAFETY: the caller's buffer.
    result(unsafe { libc::getentropy(buffer, size) })
}

/// CommonCrypto's: any size, and 0 when it is done.
unsafe extern "C" fn random_bytes(buffer: *mut u8, size: usize) -> c_int {
    const UNSPECIFIED: c_int = -4308;
    for at in (0..size).step_by(256) {
        // SAFETY: the caller's buffer; no part is longer than what is left of it.
        if unsafe { libc::getentropy(buffer.add(at).cast(), 256.min(size - at)) } != 0 {
            return UNSPECIFIED;
        }
    }
    0
}

/// Limits that both have: RLIMIT_CPU to RLIMIT_CORE, and three with other numbers.
fn resource(darwin: c_int) -> Option<libc::__rlimit_resource_t> {
    const POSIX_FLAG: c_int = 0x1000;
    Some(match darwin & !POSIX_FLAG {
        0 => libc::RLIMIT_CPU,
        1 => libc::RLIMIT_FSIZE,
        2 => libc::RLIMIT_DATA,
        3 => libc::RLIMIT_STACK,
        4 => libc::RLIMIT_CORE,
        5 => libc::RLIMIT_AS,
        6 => libc::RLIMIT_MEMLOCK,
        7 => libc::RLIMIT_NPROC,
        8 => libc::RLIMIT_NOFILE,
        _ => return None,
    })
}

/// RLIM_INFINITY.
const INFINITY: u64 = i64::MAX as u64;

fn to_darwin(limit: u64) -> u64 {
    limit.min(INFINITY)
}

fn to_linux(limit: u64) -> u64 {
    if limit >= INFINITY { libc::RLIM_INFINITY } else { limit }
}

/// Of descriptors the program may have those below the runner's.
unsafe extern "C" fn getrlimit(which: c_int, to: *mut [u64; 2]) -> c_int {
    mediated!("SYS_getrlimit");
    let Some(linux) = resource(which) else { return fail(error::EINVAL) };
    // SAFETY: places of this function's and the caller's.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        let done = result(libc::getrlimit(linux, &raw mut limit));
        if done == 0 {
            let mut both = [limit.rlim_cur, limit.rlim_max].map(to_darwin);
            if linux == libc::RLIMIT_NOFILE {
                both = both.map(|limit| limit.min(HIDDEN as u64));
            }
            to.write(both);
        }
        done
    }
}

/// A limit of descriptors that is not below the runner's changes nothing.
unsafe extern "C" fn setrlimit(which: c_int, from: &[u64; 2]) -> c_int {
    mediated!("SYS_setrlimit");
    let Some(linux) = resource(which) else { return fail(error::EINVAL) };
    if linux == libc::RLIMIT_NOFILE && from[0] >= HIDDEN as u64 {
        return 0;
    }
    let [rlim_cur, rlim_max] = from.map(to_linux);
    let mut limit = libc::rlimit { rlim_cur, rlim_max };
    // SAFETY: a place of this function's.
    unsafe {
        if linux == libc::RLIMIT_NOFILE {
            // The runner's own stay possible: only what may be opened next is limited.
            let mut now: libc::rlimit = std::mem::zeroed();
            libc::getrlimit(linux, &raw mut now);
            limit.rlim_max = now.rlim_max;
        }
        result(libc::setrlimit(linux, &raw const limit))
    }
}

/// `struct passwd`.
#[repr(C)]
struct Passwd {
    name: *mut c_char,
    password: *mut c_char,
    user: u32,
    group: u32,
    change: i64,
    class: *mut c_char,
    gecos: *mut c_char,
    home: *mut c_char,
    shell: *mut c_char,
    expire: i64,
}

/// From /etc/passwd.
unsafe extern "C" fn getpwuid_r(
    user: u32,
    to: *mut Passwd,
    buffer: *mut c_char,
    size: usize,
    found: *mut *mut Passwd,
) -> c_int {
    // SAFETY: the caller's place.
    unsafe { found.write(std::ptr::null_mut()) };
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entry = text
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() >= 7 && fields[2].parse() == Ok(user));
    let Some(fields) = entry else { return 0 };
    let texts = [fields[0], fields[1], "", fields[4], fields[5], fields[6]];
    if texts.iter().map(|text| text.len() + 1).sum::<usize>() > size {
        return error::ERANGE;
    }
    let mut at = buffer;
    // SAFETY: the caller's buffer has room for all of them and their ends.
    let places = texts.map(|text| unsafe {
        let place = at;
        std::ptr::copy_nonoverlapping(text.as_ptr(), place.cast(), text.len());
        place.add(text.len()).write(0);
        at = place.add(text.len() + 1);
        place
    });
    let [name, password, class, gecos, home, shell] = places;
    let group = fields[3].parse().unwrap_or(u32::MAX);
    let passwd =
        Passwd { name, password, user, group, change: 0, class, gecos, home, shell, expire: 0 };
    // SAFETY: the caller's places.
    unsafe {
        to.write(passwd);
        found.write(to);
    }
    0
}
