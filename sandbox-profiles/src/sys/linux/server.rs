//! `cordon serve` itself: a process that was started by anybody, in nothing.
#![expect(unsafe_code, reason = "leaving namespaces and groups, and closing what was inherited")]

use std::io;
use std::os::fd::RawFd;

use rustix::process::{DumpableBehavior, Gid, Resource, Uid};
use rustix::thread::UnshareFlags;

use super::{FORBIDDEN, landlock, outcome, process, root, seccomp};
use crate::limits::{MAX_SERVER_MEMORY, MAX_STACK};
use crate::policy;
use crate::{Collector, ConfineError, Layer, LayerState, Mode, Network, Report};

/// A user and a group, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// Confines the calling process, a server, for good. It has one thread; `keep` is what it has open
/// beside 0, 1 and 2, and anything else is closed. It ends up as `user`, which takes the privileges of
/// root; without one it stays who it is.
///
/// # Errors
/// [`ConfineError`] in strict mode; the process is partly confined then and must exit.
pub fn confine_server(
    mode: Mode,
    keep: &[RawFd],
    user: Option<User>,
) -> Result<Report, ConfineError> {
    let mut layers = Collector::new(mode);
    layers.add(Layer::Process, one_thread())?;
    layers.add(Layer::Descriptors, close_others(keep))?;
    layers.add(Layer::UnprivilegedUser, become_user(user))?;
    layers.add(Layer::UserNamespace, user_namespace())?;
    for (layer, state) in root::namespaces(Network::Shared) {
        layers.add(layer, state)?;
    }
    layers.add(Layer::EmptyRoot, root::empty())?;
    layers.add(Layer::ResourceLimits, limits())?;
    layers.add(Layer::Capabilities, process::capabilities())?;
    layers.add(Layer::NoNewPrivileges, process::no_new_privileges())?;
    layers.add(Layer::NotDumpable, process::not_dumpable())?;
    // Children are outside of it: started by another process, and killed by this one.
    layers.add(Layer::Landlock, landlock::restrict(landlock::Signals::Outside))?;
    let syscalls = policy::distinct(policy::SERVER);
    let said = format!(
        "{syscalls} system calls; others are refused, {} kill",
        policy::distinct(policy::SERVER_NEVER)
    );
    layers.add(Layer::Seccomp, outcome(seccomp::install_server(), &said, super::NO_FILTER))?;
    Ok(layers.report(syscalls))
}

/// What is done to one thread is done to the process.
fn one_thread() -> LayerState {
    match std::fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(1) => LayerState::Enforced("one thread, before any client".to_owned()),
        Ok(count) => LayerState::Missing(format!(
            "{count} threads run already: whoever starts them must do it later"
        )),
        Err(error) => LayerState::Missing(format!(
            "cannot count the threads: {error}; mount /proc where this process runs"
        )),
    }
}

/// Closes what was inherited: nobody here knows what it is, and a directory would be a way out.
fn close_others(keep: &[RawFd]) -> LayerState {
    let close = |from: u32, to: u32| {
        // SAFETY: plain numbers. Nothing in this process owns one of these descriptors: it has
        // opened nothing but `keep`.
        match unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut from = 3;
    for kept in keep.into_iter().chain([u32::MAX]) {
        // The last one is no descriptor, and may be closed with what is below it.
        let to = if kept == u32::MAX { kept } else { kept.saturating_sub(1) };
        if from <= to
            && let Err(error) = close(from, to)
        {
            return LayerState::Missing(format!("{error}; Linux 5.9 or newer is needed"));
        }
        from = kept.saturating_add(1);
    }
    LayerState::Enforced("standard streams and what was named; others closed".to_owned())
}

/// Becomes somebody who owns nothing.
fn become_user(user: Option<User>) -> LayerState {
    let own = rustix::process::getuid().as_raw();
    let Some(User { uid, gid }) = user else {
        return if own == 0 {
            LayerState::Partial(
                "user 0 of a user namespace that maps no other one for it; --uid and --gid say which"
                    .to_owned(),
            )
        } else {
            LayerState::Enforced(format!("user {own}, as it was started"))
        };
    };
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let changed = rustix::thread::set_thread_groups(&[])
        .and_then(|()| rustix::thread::set_thread_res_gid(group, group, group))
        .and_then(|()| rustix::thread::set_thread_res_uid(user, user, user))
        // Changing the user takes the process's own folder in /proc from it, where it maps its ids.
        .and_then(|()| rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable));
    let cure = "CAP_SETUID and CAP_SETGID are needed, and the ids must be mapped where this runs";
    outcome(changed, &format!("user {uid}, group {gid}"), cure)
}

/// A user namespace of its own, in which it may make the others.
fn user_namespace() -> LayerState {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    // SAFETY: unsafe because unsharing the descriptor table surprises other threads; this flag does
    // not do that, and there is one thread.
    if let Err(error) = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) } {
        return LayerState::Missing(format!(
            "{error}; user namespaces must be permitted (user.max_user_namespaces, a security module)"
        ));
    }
    let write = |name: &str, text: String| std::fs::write(format!("/proc/self/{name}"), text);
    let mapped = write("setgroups", "deny".to_owned())
        .and_then(|()| write("uid_map", format!("0 {uid} 1")))
        .and_then(|()| write("gid_map", format!("0 {gid} 1")));
    outcome(mapped, "one id mapped", FORBIDDEN)
}

/// Limits that hold even against code that gets past everything else. Files are not among them: what
/// it prints may go to one.
fn limits() -> LayerState {
    let limits = [
        (Resource::Core, 0),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
        (Resource::Data, MAX_SERVER_MEMORY),
        (Resource::Stack, MAX_STACK),
    ];
    let set = limits.into_iter().try_for_each(|(resource, most)| process::lower(resource, most));
    outcome(set, "core, locked memory, private memory, stack", FORBIDDEN)
}
