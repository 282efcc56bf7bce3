//! What is tried on macOS: calls that the profile denies. The profile's own probes are asked from outside,
//! by `cordon doctor`: from inside even asking is denied.

use std::ffi::{CStr, CString, c_int, c_long};

use crate::{Entry, Target};

fn open(path: &CStr, flags: c_int) -> c_long {
    // SAFETY: an attempt to be refused; a path that ends in NUL.
    unsafe { libc::open(path.as_ptr(), flags, 0o600) }.into()
}

fn socket(family: c_int) -> c_long {
    // SAFETY: an attempt to be refused; plain numbers.
    unsafe { libc::socket(family, libc::SOCK_STREAM, 0) }.into()
}

fn exec(path: &CStr) -> c_long {
    let arguments = [path.as_ptr(), std::ptr::null()];
    // SAFETY: an attempt to be refused; a path and a list that ends in null.
    unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) }.into()
}

fn fork() -> c_long {
    // SAFETY: an attempt to be refused; a child that came to be ends at once.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(0);
        }
        child.into()
    }
}

fn signal(pid: c_long) -> c_long {
    let pid = libc::pid_t::try_from(pid).unwrap_or(-1);
    // SAFETY: asks whether the process could be signalled; signal 0 does nothing.
    unsafe { libc::kill(pid, 0) }.into()
}

fn read_variable(name: &CStr) -> c_long {
    let mut value = [0u8; 256];
    let mut length = value.len();
    // SAFETY: an attempt to be refused; a name that ends in NUL, a buffer of the length given.
    unsafe {
        libc::sysctlbyname(
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            &raw mut length,
            std::ptr::null_mut(),
            0,
        )
    }
    .into()
}

/// Leads a socket that is open already somewhere else.
fn connect_elsewhere(target: &Target) -> c_long {
    let mut address = [0u8; 106];
    address[..2].copy_from_slice(&[106, 1]);
    address[2..18].copy_from_slice(b"/var/run/syslog\0");
    let tube = c_int::try_from(target.tube).unwrap_or(-1);
    let length = libc::socklen_t::try_from(address.len()).unwrap_or(0);
    // SAFETY: an attempt to be refused; an address of the length given.
    unsafe { libc::connect(tube, address.as_ptr().cast(), length) }.into()
}

/// Whether the dext could be opened again, as it was before.
fn open_again(_: &Target) -> c_long {
    let opened = dext_client::registry(&dext_client::Endpoint::IoKit)
        .and_then(|registry| dext_client::open_all(registry.as_ref()));
    opened.map_or(-1, |clients| c_long::try_from(clients.len()).unwrap_or(0) - 1)
}

/// A call on a descriptor that is open, which no list has.
fn control() -> c_long {
    let mut count: c_int = 0;
    // SAFETY: an attempt to be refused; a place for the number of bytes.
    unsafe { libc::ioctl(2, libc::FIONREAD, &raw mut count) }.into()
}

/// Nothing: memory has no limits to try here.
pub(crate) fn guest_memory() -> std::io::Result<()> {
    Ok(())
}

/// Everything that is tried, in both roles.
pub(crate) fn attempts() -> impl Iterator<Item = &'static Entry> {
    ATTEMPTS.iter()
}

const ATTEMPTS: &[Entry] = &[
    ("open-file", |_| open(c"/etc/passwd", libc::O_RDONLY)),
    ("open-root-directory", |_| open(c"/", libc::O_RDONLY)),
    ("create-file", |_| open(c"/tmp/cordon-probe", libc::O_CREAT | libc::O_WRONLY)),
    ("open-disk", |_| open(c"/dev/disk0", libc::O_RDONLY)),
    ("second-dext-connection", open_again),
    ("connect-elsewhere", connect_elsewhere),
    ("socket-inet", |_| socket(libc::AF_INET)),
    ("socket-system", |_| socket(libc::AF_SYSTEM)),
    ("exec", |_| exec(c"/usr/bin/true")),
    ("fork", |_| fork()),
    ("signal-parent", |target| signal(target.victim)),
    ("host-name", |_| read_variable(c"kern.hostname")),
    ("process-list", |_| read_variable(c"kern.proc.all")),
    ("shared-memory-object", |_| {
        let name = CString::from(c"/cordon-probe");
        // SAFETY: an attempt to be refused; a name that ends in NUL.
        unsafe { libc::shm_open(name.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600) }.into()
    }),
    ("ioctl", |_| control()),
];

/// On Linux the rows of the policy are tried; here there are none.
pub(crate) fn list(_: sandbox_profiles::Role) -> Vec<String> {
    Vec::new()
}

/// Nothing to try.
pub(crate) fn confine_and_try(
    _: sandbox_profiles::Role,
    _: &cordon_device_proc::options::Common,
    _: usize,
) -> ! {
    std::process::exit(crate::UNKNOWN)
}
