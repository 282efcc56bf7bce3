//! The filter that shows every call.
#![allow(unsafe_code, reason = "no library installs a filter with a listener")]

use std::ffi::{c_int, c_long, c_void};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use cordon_tests::trace::{self, StandsFor};
use sandbox_profiles::policy::{Condition, Syscall};

/// Becomes the program; comes back only when that fails.
pub(crate) fn run() -> std::io::Error {
    let mut arguments = std::env::args_os().skip(1);
    let role = arguments.next().unwrap_or_default();
    let own = std::fs::File::open("/proc/self/exe").unwrap();
    let StandsFor { program, tracer } = trace::read_stands_for(&own).unwrap();
    drop(own);
    let mut socket = UnixStream::connect(tracer).unwrap();
    socket.write_all(role.as_encoded_bytes()).unwrap();
    let mut count = [0];
    socket.read_exact(&mut count).unwrap();
    let mut known = vec![0; usize::from(count[0])];
    socket.read_exact(&mut known).unwrap();
    let rows = role.to_str().and_then(trace::role).map(trace::rows).unwrap_or_default();
    let known: Vec<_> = known.iter().map(|at| rows[usize::from(*at)]).collect();
    let listener = show_calls(&known).unwrap();
    hand_over(&socket, listener.as_raw_fd(), role.as_encoded_bytes()).unwrap();
    // Both are closed by exec.
    Command::new(program).arg(role).args(arguments).exec()
}

/// Marks the one call that is not shown, by an argument that the kernel does not look at: nobody
/// listens yet when the listener is handed over.
const NOT_SHOWN: u32 = 0x7472_6163;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// A step; of a comparison that does not hold, `over` steps are left out.
fn step(code: u32, k: u32, over: usize) -> libc::sock_filter {
    libc::sock_filter { code: code.try_into().unwrap(), jt: 0, jf: over.try_into().unwrap(), k }
}

/// Where the two halves of an argument are in `struct seccomp_data`: the lower, and the upper.
fn halves(argument: u8) -> (u32, u32) {
    let at = 16 + 8 * u32::from(argument);
    if cfg!(target_endian = "big") { (at + 4, at) } else { (at, at + 4) }
}

/// Lets a call go on that has this number and these words of its arguments; any other goes to what follows.
fn allow(number: i64, words: &[(u32, u32)]) -> Vec<libc::sock_filter> {
    let number = (0, u32::try_from(number).unwrap());
    let compared: Vec<_> = [number].into_iter().chain(words.iter().copied()).collect();
    let mut steps = Vec::new();
    for (done, (at, value)) in compared.iter().enumerate() {
        // What is left of the comparisons, and the return.
        let over = 2 * (compared.len() - done - 1) + 1;
        steps.extend([step(LOAD, *at, 0), step(EQUAL, *value, over)]);
    }
    steps.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0));
    steps
}

/// The words that a row's conditions are about; `None` where one of them is about more than one value.
fn words(row: &Syscall) -> Option<Vec<(u32, u32)>> {
    let words = |(argument, condition): &(u8, Condition)| {
        let (Condition::Is(value), (lower, upper)) = (*condition, halves(*argument)) else {
            return None;
        };
        let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap();
        Some([(lower, half(value)), (upper, half(value >> 32))])
    };
    let words: Option<Vec<_>> = row.conditions.iter().map(words).collect();
    words.map(|words| words.concat())
}

/// Installs the filter: every call of this process but those of `known` rows waits from here on until the
/// listener says that it may go on.
fn show_calls(known: &[&Syscall]) -> std::io::Result<OwnedFd> {
    let mut steps = allow(libc::SYS_sendmsg, &[(halves(5).0, NOT_SHOWN)]);
    // A number means another call where it came by another architecture's entry, which is at 4.
    // Calls of a row that is about many values are shown each time.
    let rows = known.iter().filter_map(|row| Some(allow(row.number, &words(row)?)));
    let rows: Vec<_> = rows.flatten().collect();
    let all = u32::try_from(rows.len()).unwrap();
    // Only a plain jump goes as far as over all of them.
    let native = libc::sock_filter { jt: 1, ..step(EQUAL, trace::ARCHITECTURE, 0) };
    steps.extend([step(LOAD, 4, 0), native, step(libc::BPF_JMP | libc::BPF_JA, all, 0)]);
    steps.extend(rows);
    steps.push(step(RETURN, libc::SECCOMP_RET_USER_NOTIF, 0));
    let program =
        libc::sock_fprog { len: steps.len().try_into().unwrap(), filter: steps.as_mut_ptr() };
    let flags =
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: prctl takes plain numbers; the program and its steps live through the call; what comes
    // back is a new descriptor that nobody else owns.
    unsafe {
        // A process that is root of a user namespace needs no such promise, one without namespaces does.
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        match libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) {
            fd if fd < 0 => Err(std::io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(c_int::try_from(fd).unwrap())),
        }
    }
}

/// Sends the listener and the role's name, by the call that is not shown.
fn hand_over(socket: &UnixStream, listener: RawFd, role: &[u8]) -> std::io::Result<()> {
    let mut part =
        libc::iovec { iov_base: role.as_ptr().cast_mut().cast::<c_void>(), iov_len: role.len() };
    let mut control = [0u64; 4];
    // SAFETY: a zeroed msghdr is valid; what its pointers lead to outlives the call; `control` is
    // aligned and large enough for one descriptor.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header).cast::<c_int>().write_unaligned(listener);
        let socket = c_long::from(socket.as_raw_fd());
        let unused = c_long::from(NOT_SHOWN);
        libc::syscall(libc::SYS_sendmsg, socket, &raw const message, 0 as c_long, 0, 0, unused)
    };
    if sent < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
