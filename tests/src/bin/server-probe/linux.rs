//! Each attempt is one system call, so that what answers is the kernel and no library.
#![expect(unsafe_code, reason = "system calls as an attacker makes them")]

use std::ffi::c_long;
use std::io::Write as _;

use sandbox_profiles::{Mode, confine_server};

/// Done: nothing stood in the way.
const DONE: u8 = 0;
/// Refused, as by the filter.
const REFUSED: u8 = 10;
/// The kernel does not know it, or says so.
const UNKNOWN: u8 = 11;
/// What must work did not.
const BROKEN: u8 = 12;

const ROOT: *const u8 = c"/".as_ptr().cast();
const FILE: *const u8 = c"/etc/passwd".as_ptr().cast();
const PROGRAM: *const u8 = c"/bin/true".as_ptr().cast();

/// Memory of nobody else.
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// Attempts by name: a number, and arguments that the kernel takes where nothing is in the way, or that
/// it refuses in another way than a filter does.
fn attempts() -> Vec<(&'static str, c_long, [u64; 6])> {
    let at = libc::AT_FDCWD as u64;
    let none = [std::ptr::null::<u8>()];
    // What must live for as long as the program does.
    let argv: &'static [*const u8; 1] = Box::leak(Box::new(none));
    let room: &'static mut [u64; 64] = Box::leak(Box::new([0; 64]));
    let room = room.as_mut_ptr() as u64;
    let (file, root, program) = (FILE as u64, ROOT as u64, PROGRAM as u64);
    let argv = argv.as_ptr() as u64;
    let own = u64::from(std::process::id());
    let exec = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
    let both = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let anonymous = PRIVATE as u64;
    let unix = libc::AF_UNIX as u64;
    let stream = libc::SOCK_STREAM as u64;
    // SAFETY: plain numbers; a page that nothing else uses.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, 1, PRIVATE, -1, 0) } as u64;
    let user = libc::CLONE_NEWUSER as u64;
    vec![
        ("open-file", libc::SYS_openat, [at, file, 0, 0, 0, 0]),
        ("open-root", libc::SYS_openat, [at, root, libc::O_DIRECTORY as u64, 0, 0, 0]),
        ("open-how", libc::SYS_openat2, [at, file, room, 24, 0, 0]),
        ("look", libc::SYS_statx, [at, file, 0, 0, room, 0]),
        ("access", libc::SYS_faccessat, [at, file, 0, 0, 0, 0]),
        ("read-link", libc::SYS_readlinkat, [at, file, room, 16, 0, 0]),
        ("remove", libc::SYS_unlinkat, [at, c"/nobody".as_ptr() as u64, 0, 0, 0, 0]),
        ("make-folder", libc::SYS_mkdirat, [at, file, 0o700, 0, 0, 0]),
        ("rename", libc::SYS_renameat2, [at, file, at, root, 0, 0]),
        ("change-folder", libc::SYS_chdir, [root, 0, 0, 0, 0, 0]),
        ("exec", libc::SYS_execve, [program, argv, argv, 0, 0, 0]),
        ("exec-at", libc::SYS_execveat, [at, program, argv, argv, 0, 0]),
        ("fork", libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]),
        ("clone-user", libc::SYS_clone, [user | libc::SIGCHLD as u64, 0, 0, 0, 0, 0]),
        ("clone3", libc::SYS_clone3, [room, 88, 0, 0, 0, 0]),
        ("socket-inet", libc::SYS_socket, [libc::AF_INET as u64, stream, 0, 0, 0, 0]),
        ("socket-unix", libc::SYS_socket, [unix, stream, 0, 0, 0, 0]),
        ("socket-netlink", libc::SYS_socket, [libc::AF_NETLINK as u64, 3, 0, 0, 0, 0]),
        ("connect", libc::SYS_connect, [0, room, 2, 0, 0, 0]),
        ("bind", libc::SYS_bind, [0, room, 2, 0, 0, 0]),
        ("listen", libc::SYS_listen, [0, 1, 0, 0, 0, 0]),
        ("kill", libc::SYS_kill, [own, 0, 0, 0, 0, 0]),
        ("kill-thread", libc::SYS_tgkill, [own, own, 0, 0, 0, 0]),
        ("queue-signal", libc::SYS_rt_sigqueueinfo, [own, 0, room, 0, 0, 0]),
        ("trace", libc::SYS_ptrace, [libc::PTRACE_TRACEME as u64, 0, 0, 0, 0, 0]),
        ("read-process", libc::SYS_process_vm_readv, [own, room, 0, room, 0, 0]),
        ("write-process", libc::SYS_process_vm_writev, [own, room, 0, room, 0, 0]),
        ("pidfd", libc::SYS_pidfd_open, [own, 0, 0, 0, 0, 0]),
        ("take-descriptor", libc::SYS_pidfd_getfd, [0, 0, 0, 0, 0, 0]),
        ("bpf", libc::SYS_bpf, [0, room, 48, 0, 0, 0]),
        ("perf", libc::SYS_perf_event_open, [room, 0, u64::MAX, u64::MAX, 0, 0]),
        ("userfaultfd", libc::SYS_userfaultfd, [1, 0, 0, 0, 0, 0]),
        ("io-uring", libc::SYS_io_uring_setup, [1, room, 0, 0, 0, 0]),
        ("unshare-user", libc::SYS_unshare, [user, 0, 0, 0, 0, 0]),
        ("unshare-mounts", libc::SYS_unshare, [libc::CLONE_NEWNS as u64, 0, 0, 0, 0, 0]),
        ("enter-namespace", libc::SYS_setns, [0, 0, 0, 0, 0, 0]),
        ("mount", libc::SYS_mount, [root, root, root, 0, 0, 0]),
        ("unmount", libc::SYS_umount2, [root, libc::MNT_DETACH as u64 | 1 << 20, 0, 0, 0, 0]),
        ("pivot", libc::SYS_pivot_root, [file, file, 0, 0, 0, 0]),
        ("chroot", libc::SYS_chroot, [root, 0, 0, 0, 0, 0]),
        ("open-handle", libc::SYS_open_by_handle_at, [at, room, 0, 0, 0, 0]),
        ("keys", libc::SYS_keyctl, [0, 0, 0, 0, 0, 0]),
        ("module", libc::SYS_init_module, [room, 0, file, 0, 0, 0]),
        ("become-root", libc::SYS_setuid, [0, 0, 0, 0, 0, 0]),
        ("become-group", libc::SYS_setgid, [0, 0, 0, 0, 0, 0]),
        ("capabilities", libc::SYS_capset, [room, room, 0, 0, 0, 0]),
        ("personality", libc::SYS_personality, [0x0040_0000, 0, 0, 0, 0, 0]),
        ("run-memory", libc::SYS_mmap, [0, 4096, exec, anonymous, u64::MAX, 0]),
        ("make-runnable", libc::SYS_mprotect, [page, 4096, 1 | libc::PROT_EXEC as u64, 0, 0, 0]),
        ("make-runnable-key", libc::SYS_pkey_mprotect, [page, 4096, 5, u64::MAX, 0, 0]),
        ("another-filter", libc::SYS_seccomp, [0, 0, 0, 0, 0, 0]),
        ("dumpable", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0, 0]),
        ("raise-limit", libc::SYS_prlimit64, [0, libc::RLIMIT_CORE as u64, room, 0, 0, 0]),
        ("limit-of-other", libc::SYS_prlimit64, [1, libc::RLIMIT_CORE as u64, 0, room, 0, 0]),
        ("shared-memory", libc::SYS_shmget, [0, 4096, 0o1600, 0, 0, 0]),
        ("watch-files", libc::SYS_inotify_init1, [0, 0, 0, 0, 0, 0]),
        ("type-into-terminal", libc::SYS_ioctl, [0, libc::TIOCSTI, room, 0, 0, 0]),
        ("lock-memory", libc::SYS_mlock, [page, 4096, 0, 0, 0, 0]),
        ("socketpair-inet", libc::SYS_socketpair, [libc::AF_INET as u64, stream, 0, room, 0, 0]),
        ("priority", libc::SYS_setpriority, [0, 0, 19, 0, 0, 0]),
        ("too-much-memory", libc::SYS_mmap, [0, 2 << 30, both, anonymous, u64::MAX, 0]),
        ("host-name", libc::SYS_sethostname, [root, 1, 0, 0, 0, 0]),
        ("alias-memory", libc::SYS_mremap, [page, 0, 4096, 1, 0, 0]),
    ]
}

/// See the program.
pub(crate) fn run(words: &[&str]) -> u8 {
    let attempts = attempts();
    match words {
        ["list"] => {
            for (name, ..) in attempts {
                let _ = writeln!(std::io::stdout(), "{name}");
            }
            DONE
        }
        ["confined", "works"] => {
            if confine_server(Mode::Strict, &[], None).is_err() {
                return 2;
            }
            works()
        }
        [how @ ("confined" | "free"), name] => {
            let Some((_, number, a)) = attempts.iter().find(|(known, ..)| known == name) else {
                return 2;
            };
            if *how == "confined" && confine_server(Mode::Strict, &[], None).is_err() {
                return 2;
            }
            // SAFETY: none of it is safe, and nothing comes after it: what the call does to this process
            // ends with it.
            let answer = unsafe { libc::syscall(*number, a[0], a[1], a[2], a[3], a[4], a[5]) };
            let error = std::io::Error::last_os_error().raw_os_error();
            match (answer, error) {
                // The second by a limit: of memory, since that is what there is room for elsewhere.
                (-1, Some(libc::EPERM | libc::ENOMEM)) => REFUSED,
                (-1, Some(libc::ENOSYS)) => UNKNOWN,
                _ => DONE,
            }
        }
        _ => 2,
    }
}

/// What the server does all the time.
fn works() -> u8 {
    let thread =
        std::thread::Builder::new().name("a".to_owned()).spawn(|| vec![7u8; 1 << 20].len());
    // Half of what is too much.
    // SAFETY: new memory, which nobody touches.
    let much = unsafe { libc::mmap(std::ptr::null_mut(), 1 << 30, 3, PRIVATE, -1, 0) };
    let done = much != libc::MAP_FAILED
        && thread.is_ok_and(|thread| thread.join().is_ok())
        && ipc::Event::new().is_ok_and(|event| event.signaller().is_ok())
        && ipc::Tube::pair().is_ok()
        && ipc::SharedMemory::create("works", 4096).is_ok()
        && std::io::pipe().is_ok()
        && rustix::process::getrlimit(rustix::process::Resource::Nofile).current.is_some();
    if done { DONE } else { BROKEN }
}
