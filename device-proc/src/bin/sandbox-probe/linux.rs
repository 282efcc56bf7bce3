//! What is tried on Linux: raw system calls.

use std::ffi::{CString, c_int, c_long, c_void};

use crate::{Entry, Target};

mod memory;
mod rows;
mod things;
pub(crate) use memory::guest_memory;
pub(crate) use rows::{confine_and_try, list};

/// A raw system call with up to six arguments.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        // SAFETY: an attempt to be refused; its arguments are valid for as long as the call
        // lasts, should it be carried out.
        unsafe { libc::syscall($number $(, $argument)*) }
    }};
}

fn text(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

fn open(path: &str, flags: c_int) -> c_long {
    call!(libc::SYS_openat, libc::AT_FDCWD, text(path).as_ptr(), flags, 0o600)
}

fn map(protection: c_int, flags: c_int) -> c_long {
    let none: *mut c_void = std::ptr::null_mut();
    call!(libc::SYS_mmap, none, 4096usize, protection, flags, -1, 0)
}

fn fork(flags: c_int) -> c_long {
    let child = call!(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize);
    if child == 0 {
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) }
    }
    child
}

/// What a connection to a dext begins with.
fn new_unix_socket() -> c_long {
    call!(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_SEQPACKET, 0)
}

/// Leads a socket that is open already somewhere else.
fn connect_elsewhere(target: &Target) -> c_long {
    let mut address = [0u8; 110];
    address[..2].copy_from_slice(&1u16.to_ne_bytes());
    address[2..12].copy_from_slice(b"/run/dbus/");
    call!(libc::SYS_connect, target.tube, address.as_ptr(), address.len())
}

fn exec(path: &str) -> c_long {
    let path = text(path);
    let arguments = [path.as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null::<libc::c_char>()];
    call!(libc::SYS_execve, path.as_ptr(), arguments.as_ptr(), environment.as_ptr())
}

/// A descriptor beside a message that nobody asked for.
fn send_descriptor(target: &Target) -> c_long {
    let mut byte = [0u8; 16];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    let mut control = [0u64; 4];
    // SAFETY: a zeroed msghdr is valid; the pointers set below outlive the call; `control` is
    // aligned and large enough for one descriptor.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header).cast::<c_int>().write_unaligned(2);
        // As the role sends: other flags are refused.
        let flags = c_long::from(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
        let sent = libc::syscall(libc::SYS_sendmsg, target.tube, &raw const message, flags);
        if sent < 0 {
            return sent;
        }
        // It went out: whether it was refused is the receiver's to show, by ending this process.
        let timeout = libc::timespec { tv_sec: 5, tv_nsec: 0 };
        libc::ppoll(std::ptr::null_mut(), 0, &raw const timeout, std::ptr::null());
    }
    0
}

/// 32-bit entry on x86-64: the filter must not be got round by another architecture's numbers.
fn other_entry(number: i64) -> c_long {
    #[cfg(target_arch = "x86_64")]
    {
        let result: i32;
        let number = i32::try_from(number).unwrap_or(-1);
        // SAFETY: a call by the 32-bit entry, of all arguments 0; clobbers are declared.
        unsafe {
            std::arch::asm!("push rbx", "xor ebx, ebx", "int 0x80", "pop rbx",
                inlateout("eax") number => result, in("ecx") 0, in("edx") 0, in("esi") 0, in("edi") 0,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        result.into()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = number;
        call!(-1 as c_long)
    }
}

const SHARED: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const RWX: c_int = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;

/// Everything that is tried, in both roles.
pub(crate) fn attempts() -> impl Iterator<Item = &'static Entry> {
    CALLS.iter().chain(memory::ATTEMPTS)
}

const CALLS: &[Entry] = &[
    ("open-file", |_| open("/etc/passwd", libc::O_RDONLY)),
    ("open-root-directory", |_| open("/", libc::O_RDONLY | libc::O_DIRECTORY)),
    ("read-proc-self", |_| open("/proc/self/maps", libc::O_RDONLY)),
    ("read-proc-parent", |t| open(&format!("/proc/{}/mem", t.victim), libc::O_RDWR)),
    ("create-file", |_| open("/tmp/cordon-probe", libc::O_CREAT | libc::O_WRONLY)),
    ("open-kvm", |_| open("/dev/kvm", libc::O_RDWR)),
    ("second-dext-connection", |_| new_unix_socket()),
    ("connect-elsewhere", connect_elsewhere),
    ("bind", |t| call!(libc::SYS_bind, t.tube, [1u16, 0].as_ptr(), 2)),
    ("accept", |t| call!(libc::SYS_accept4, t.tube, 0usize, 0usize, 0)),
    ("socket-inet", |_| call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0)),
    ("socket-netlink", |_| call!(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0)),
    ("socketpair", |_| {
        let mut pair = [0i32; 2];
        call!(libc::SYS_socketpair, libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr())
    }),
    ("exec", |_| exec("/bin/true")),
    ("fork", |_| fork(libc::SIGCHLD)),
    ("new-namespace", |_| fork(libc::SIGCHLD | libc::CLONE_NEWUSER)),
    ("thread", |_| fork(libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_VFORK)),
    ("ptrace-parent", |t| call!(libc::SYS_ptrace, libc::PTRACE_ATTACH, t.victim, 0, 0)),
    ("ptrace-me", |_| call!(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0)),
    ("read-parent-memory", |t| {
        let mut byte = 0u8;
        let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let parts = &raw mut part;
        call!(libc::SYS_process_vm_readv, t.victim, parts, 1usize, parts, 1usize, 0usize)
    }),
    ("signal-parent", |t| call!(libc::SYS_kill, t.victim, 0)),
    ("signal-everybody", |_| call!(libc::SYS_kill, -1, 0)),
    ("signal-self", |_| call!(libc::SYS_tgkill, 1, 1, 0)),
    ("map-executable", |_| map(RWX, SHARED)),
    ("map-read-execute", |_| map(libc::PROT_READ | libc::PROT_EXEC, SHARED)),
    ("protect-executable", |_| {
        let page = map(libc::PROT_READ | libc::PROT_WRITE, SHARED);
        call!(libc::SYS_mprotect, page, 4096usize, RWX)
    }),
    ("memfd", |_| call!(libc::SYS_memfd_create, c"x".as_ptr(), 0)),
    ("userfaultfd", |_| call!(libc::SYS_userfaultfd, 0)),
    ("io-uring", |_| {
        let mut parameters = [0u64; 32];
        call!(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr())
    }),
    ("bpf", |_| {
        let mut attributes = [0u64; 32];
        call!(libc::SYS_bpf, 0, attributes.as_mut_ptr(), size_of_val(&attributes))
    }),
    ("perf-event", |_| {
        let mut attributes = [0u64; 16];
        call!(libc::SYS_perf_event_open, attributes.as_mut_ptr(), 0, -1, -1, 0)
    }),
    ("unshare", |_| call!(libc::SYS_unshare, libc::CLONE_NEWUTS)),
    ("set-namespace", |_| call!(libc::SYS_setns, 0, 0)),
    ("mount", |_| {
        let (none, at, kind) = (c"none".as_ptr(), c"/".as_ptr(), c"tmpfs".as_ptr());
        call!(libc::SYS_mount, none, at, kind, 0usize, 0usize)
    }),
    ("chroot", |_| call!(libc::SYS_chroot, c"/".as_ptr())),
    ("become-dumpable", |_| call!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0)),
    ("change-filter", |_| call!(libc::SYS_seccomp, 0, 0, 0usize)),
    ("set-uid", |_| call!(libc::SYS_setuid, 0)),
    ("raise-limits", |t| {
        let limit = [u64::MAX; 2];
        let none: *mut c_void = std::ptr::null_mut();
        call!(libc::SYS_prlimit64, t.victim, libc::RLIMIT_NOFILE, limit.as_ptr(), none)
    }),
    ("type-into-terminal", |_| call!(libc::SYS_ioctl, 2, libc::TIOCSTI, c"x".as_ptr())),
    ("pidfd", |t| call!(libc::SYS_pidfd_open, t.victim, 0)),
    ("steal-descriptor", |_| call!(libc::SYS_pidfd_getfd, 3, 0, 0)),
    ("keyring", |_| call!(libc::SYS_keyctl, 0, -3, 0)),
    ("shared-memory-segment", |_| call!(libc::SYS_shmget, 0, 4096usize, 0o600)),
    ("listen-for-file-changes", |_| call!(libc::SYS_inotify_init1, 0)),
    ("host-name", |_| call!(libc::SYS_uname, [0u8; 512].as_mut_ptr())),
    ("shorten-memory", |t| call!(libc::SYS_ftruncate, t.tube, 0)),
    ("duplicate-descriptor", |t| call!(libc::SYS_fcntl, t.tube, libc::F_DUPFD, 0)),
    ("send-to-address", |t| {
        let address = [1u16, 0x2f, 0, 0];
        let bytes = [0u8; 16];
        call!(libc::SYS_sendto, t.tube, bytes.as_ptr(), 16usize, 0, address.as_ptr(), 8)
    }),
    ("send-descriptor", send_descriptor),
    // getpid.
    ("other-architecture", |_| other_entry(20)),
];
