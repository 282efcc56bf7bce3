//! What helps when a child cannot be started: looked up when it happens, so that the cure is the
//! one for this system and not a list of all there are.
#![expect(unsafe_code, reason = "asking whether this process is dumpable")]

use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};

use super::{CURE_OF_NULL, Step, cure_of_run};

/// How a child is started that has no namespaces.
const RELAXED: &str = "or start without them by --sandbox=relaxed";

/// What helps when `step` failed with `error`.
pub(crate) fn cure(step: Step, program: &Path, error: &io::Error) -> String {
    let errno = error.raw_os_error().unwrap_or(0);
    if let (Step::Prepare | Step::Namespaces | Step::Clone, Some(cure)) = (step, out_of(errno)) {
        return cure.to_owned();
    }
    match step {
        Step::Namespaces => format!("{}, {RELAXED}", namespaces(errno)),
        Step::MapIds => format!("{}, {RELAXED}", map_ids(errno)),
        Step::NullDevice => CURE_OF_NULL.to_owned(),
        Step::Run => cure_of_run(program, error).to_owned(),
        Step::CloseOthers if matches!(errno, libc::ENOSYS | libc::EPERM) => {
            "Linux 5.9 or newer is needed, and no filter over this process that forbids close_range"
                .to_owned()
        }
        Step::Prepare
        | Step::Duplicate
        | Step::CommandLine
        | Step::Clone
        | Step::Install
        | Step::CloseOthers => String::new(),
    }
}

/// Whatever makes processes, when there is no room for one more.
fn out_of(errno: i32) -> Option<&'static str> {
    match errno {
        libc::EAGAIN => {
            Some("raise the limit of processes (ulimit -u, or pids.max of its control group)")
        }
        libc::ENOMEM => Some("raise the limit of memory (ulimit -v, or of its control group)"),
        _ => None,
    }
}

fn namespaces(errno: i32) -> String {
    match errno {
        libc::ENOSPC | libc::EUSERS => format!(
            "raise user.max_user_namespaces (it is {}) or user.max_pid_namespaces (it is {})",
            setting("user/max_user_namespaces"),
            setting("user/max_pid_namespaces")
        ),
        libc::EINVAL => "a kernel with user and pid namespaces is needed".to_owned(),
        libc::EPERM | libc::EACCES => not_permitted(),
        _ => "they are needed to confine it".to_owned(),
    }
}

/// The kernel does not say why it does not permit a user namespace; most reasons can be seen.
fn not_permitted() -> String {
    if is_set("kernel/unprivileged_userns_clone", "0") {
        "set kernel.unprivileged_userns_clone to 1 (it is 0)".to_owned()
    } else if is_chroot() {
        "this process is in a chroot, where the kernel permits none: use pivot_root (a container) \
         instead"
            .to_owned()
    } else if is_filtered() {
        "the seccomp filter over this process (a container's?) must permit clone with \
         CLONE_NEWUSER"
            .to_owned()
    } else {
        "a chroot or a security module forbids them: use pivot_root, or change its policy"
            .to_owned()
    }
}

fn map_ids(errno: i32) -> String {
    match errno {
        libc::ENOENT | libc::ENOTDIR => "mount /proc where this process runs".to_owned(),
        libc::EROFS => "mount /proc writable where this process runs".to_owned(),
        _ if is_set("kernel/apparmor_restrict_unprivileged_userns", "1") => {
            "give this program an AppArmor profile that permits userns, or set \
             kernel.apparmor_restrict_unprivileged_userns to 0 (it is 1)"
                .to_owned()
        }
        libc::EACCES if !is_dumpable() => {
            "this process is not dumpable, so /proc/self is not its own: make its program readable, \
             and let it start its devices before it calls prctl(PR_SET_DUMPABLE)"
                .to_owned()
        }
        _ => "a security module or a filter forbids it: change its policy".to_owned(),
    }
}

/// A setting below /proc/sys, for people.
fn setting(name: &str) -> String {
    let value = std::fs::read_to_string(format!("/proc/sys/{name}"));
    value.map_or_else(|_| "unknown".to_owned(), |value| value.trim().to_owned())
}

fn is_set(name: &str, value: &str) -> bool {
    setting(name) == value
}

/// Whether the root directory is a plain directory of its file system. A chroot into a mount point
/// is not seen.
fn is_chroot() -> bool {
    let root = rustix::fs::statx(CWD, "/", AtFlags::empty(), StatxFlags::BASIC_STATS);
    root.is_ok_and(|root| {
        let known = StatxAttributes::from_bits_retain(root.stx_attributes_mask.bits());
        known.contains(StatxAttributes::MOUNT_ROOT)
            && !root.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    })
}

/// Whether a seccomp filter is over this process.
fn is_filtered() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"]))
}

fn is_dumpable() -> bool {
    // SAFETY: takes no further argument and touches no memory.
    unsafe { libc::prctl(libc::PR_GET_DUMPABLE) == 1 }
}
