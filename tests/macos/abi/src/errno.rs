//! Error numbers: Darwin's (bsd/sys/errno.h, xnu-11417.101.15) and how Linux's map to them.

use std::cell::Cell;
use std::ffi::c_int;

/// An error number of Darwin's.
pub type Errno = c_int;

thread_local! {
    static ERRNO: Cell<Errno> = const { Cell::new(0) };
}

/// The names that differ from Linux's by number.
#[allow(missing_docs, reason = "the names of errno.h")]
pub mod error {
    use std::ffi::c_int;
    pub const EPERM: c_int = 1;
    pub const ENOENT: c_int = 2;
    pub const ESRCH: c_int = 3;
    pub const EINTR: c_int = 4;
    pub const EIO: c_int = 5;
    pub const EBADF: c_int = 9;
    pub const ECHILD: c_int = 10;
    pub const EDEADLK: c_int = 11;
    pub const ENOMEM: c_int = 12;
    pub const EACCES: c_int = 13;
    pub const EFAULT: c_int = 14;
    pub const EBUSY: c_int = 16;
    pub const EEXIST: c_int = 17;
    pub const EINVAL: c_int = 22;
    pub const ENOTTY: c_int = 25;
    pub const ERANGE: c_int = 34;
    pub const EAGAIN: c_int = 35;
    pub const EMSGSIZE: c_int = 40;
    pub const EPROTONOSUPPORT: c_int = 43;
    pub const ENOTSUP: c_int = 45;
    pub const EAFNOSUPPORT: c_int = 47;
    pub const ETIMEDOUT: c_int = 60;
    pub const ENAMETOOLONG: c_int = 63;
    pub const ENOSYS: c_int = 78;
    pub const EOVERFLOW: c_int = 84;
}

/// (Linux, Darwin) where the two differ. Numbers up to 34 are the same but for EAGAIN.
const DIFFERENT: [(c_int, c_int); 44] = [
    (libc::EAGAIN, 35),
    (libc::EDEADLK, 11),
    (libc::ENAMETOOLONG, 63),
    (libc::ENOLCK, 77),
    (libc::ENOSYS, 78),
    (libc::ENOTEMPTY, 66),
    (libc::ELOOP, 62),
    (libc::ENOMSG, 91),
    (libc::EIDRM, 90),
    (libc::ENOSTR, 99),
    (libc::ENODATA, 96),
    (libc::ETIME, 101),
    (libc::ENOSR, 98),
    (libc::EREMOTE, 71),
    (libc::ENOLINK, 97),
    (libc::EPROTO, 100),
    (libc::EMULTIHOP, 95),
    (libc::EBADMSG, 94),
    (libc::EOVERFLOW, 84),
    (libc::EILSEQ, 92),
    (libc::EUSERS, 68),
    (libc::ENOTSOCK, 38),
    (libc::EDESTADDRREQ, 39),
    (libc::EMSGSIZE, 40),
    (libc::EPROTOTYPE, 41),
    (libc::ENOPROTOOPT, 42),
    (libc::EPROTONOSUPPORT, 43),
    (libc::ESOCKTNOSUPPORT, 44),
    // Darwin's sockets say EOPNOTSUPP (102); ENOTSUP (45) is another number there.
    (libc::EOPNOTSUPP, 102),
    (libc::EPFNOSUPPORT, 46),
    (libc::EAFNOSUPPORT, 47),
    (libc::EADDRINUSE, 48),
    (libc::EADDRNOTAVAIL, 49),
    (libc::ENETDOWN, 50),
    (libc::ENETUNREACH, 51),
    (libc::ENETRESET, 52),
    (libc::ECONNABORTED, 53),
    (libc::ECONNRESET, 54),
    (libc::ENOBUFS, 55),
    (libc::EISCONN, 56),
    (libc::ENOTCONN, 57),
    (libc::ETIMEDOUT, 60),
    (libc::ECONNREFUSED, 61),
    (libc::EHOSTDOWN, 64),
];

/// More of them.
const MORE: [(c_int, c_int); 8] = [
    (libc::ESHUTDOWN, 58),
    (libc::ETOOMANYREFS, 59),
    (libc::EHOSTUNREACH, 65),
    (libc::EALREADY, 37),
    (libc::EINPROGRESS, 36),
    (libc::ESTALE, 70),
    (libc::EDQUOT, 69),
    (libc::ECANCELED, 89),
];

/// Darwin's number for one of Linux's. What Darwin has no name for is EIO.
pub fn from_linux(linux: c_int) -> Errno {
    let pairs = || DIFFERENT.iter().chain(&MORE);
    if let Some((_, darwin)) = pairs().find(|(one, _)| *one == linux) {
        return *darwin;
    }
    if linux < 35 { linux } else { error::EIO }
}

/// Linux's number for one of Darwin's, for texts.
pub fn to_linux(darwin: Errno) -> c_int {
    let pairs = || DIFFERENT.iter().chain(&MORE);
    pairs().find(|(_, one)| *one == darwin).map_or(darwin, |(linux, _)| *linux)
}

/// Sets this thread's errno.
pub fn set(errno: Errno) {
    ERRNO.set(errno);
}

/// Where this thread's errno is: what `__error` returns.
pub extern "C" fn last() -> *mut Errno {
    ERRNO.with(Cell::as_ptr)
}

/// Sets errno and gives -1.
pub fn fail(errno: Errno) -> c_int {
    set(errno);
    -1
}

/// What a Linux call returned: on -1 its errno becomes Darwin's.
pub fn result<T: PartialEq + From<i8>>(returned: T) -> T {
    if returned == T::from(-1) {
        // SAFETY: this thread's errno.
        set(from_linux(unsafe { *libc::__errno_location() }));
    }
    returned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_darwins_and_go_back_and_forth() {
        for (linux, darwin) in [
            (libc::EAGAIN, 35),
            (libc::EMSGSIZE, 40),
            (libc::ENOENT, 2),
            (libc::EPROTONOSUPPORT, 43),
        ] {
            assert_eq!((from_linux(linux), to_linux(darwin)), (darwin, linux));
        }
        let mut all: Vec<_> = (1..=34).filter(|one| *one != libc::EAGAIN).map(from_linux).collect();
        all.extend(DIFFERENT.iter().chain(&MORE).map(|(_, darwin)| *darwin));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "two of Linux's are one of Darwin's");
    }
}
