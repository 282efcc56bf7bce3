//! What belongs to the process itself: descriptors, namespaces it was born in, privileges, limits.
#![expect(unsafe_code, reason = "dropping capabilities the libraries have no name for")]

use std::io;
use std::os::fd::RawFd;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{FORBIDDEN, outcome};
use crate::policy::{self, MAX_DESCRIPTORS, MAX_STACK};
use crate::{LayerState, Role};

/// What helps when /proc does not say what it must.
const NO_PROC: &str = "mount /proc where this process runs";
/// What helps when a namespace is missing that a process cannot make for itself.
const NOT_BORN_IN: &str = "the process was not started in one; its VMM side makes it";

/// Nothing is open but 0, 1, 2 and `keep`.
pub(super) fn descriptors(keep: &[RawFd]) -> LayerState {
    let open = match open_descriptors() {
        Ok(open) => open,
        Err(error) => {
            return LayerState::Missing(format!(
                "cannot list the open descriptors: {error}; {NO_PROC}"
            ));
        }
    };
    let stray: Vec<String> = open
        .iter()
        .filter(|fd| **fd > 2 && !keep.contains(fd))
        .map(|fd| {
            let what = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
            format!("{fd} ({})", what.display())
        })
        .collect();
    if stray.is_empty() {
        LayerState::Enforced(format!("{} open, all expected", open.len()))
    } else {
        let stray = stray.join(", ");
        LayerState::Missing(format!(
            "unexpected descriptors are open: {stray}; whoever starts this process must close them"
        ))
    }
}

fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let mut open = Vec::new();
    let own = rustix::fs::open(
        "/proc/self/fd",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let listing = std::os::fd::AsRawFd::as_raw_fd(&own);
    for entry in rustix::fs::Dir::new(own)? {
        let entry = entry?;
        if let Some(fd) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok())
            && fd != listing
        {
            open.push(fd);
        }
    }
    Ok(open)
}

/// The initial user namespace maps every id; ours maps one, or a second one that this process is to be:
/// that of a spawner, which runs as root, was needed to open what is open by now.
pub(super) fn user_namespace() -> LayerState {
    match std::fs::read_to_string("/proc/self/uid_map") {
        Ok(map) => {
            let fields: Vec<&str> = map.split_whitespace().collect();
            match fields[..] {
                ["0", _, "1"] => LayerState::Enforced("one id mapped".to_owned()),
                ["0", _, "1", "1", user, "1"] => outcome(
                    become_second(),
                    &format!("two ids mapped; it is the second, user {user} outside"),
                    FORBIDDEN,
                ),
                _ => LayerState::Missing(NOT_BORN_IN.to_owned()),
            }
        }
        Err(error) => {
            LayerState::Missing(format!("cannot read /proc/self/uid_map: {error}; {NO_PROC}"))
        }
    }
}

/// Becomes the second id, for good, and keeps the privileges within its namespaces for what is still to be
/// done with them. A process that could not is killed by no one, but stays the first: that is an error.
fn become_second() -> Result<(), Errno> {
    let (user, group) = (Uid::from_raw(1), Gid::from_raw(1));
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    rustix::thread::set_keep_capabilities(false)?;
    // What is kept is permitted; it is in effect only when asked for.
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets)?;
    // As before: the folder in /proc, which the next layers read, is not its own otherwise.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)
}

/// In its own pid namespace a process is number 1 and can name nobody else.
pub(super) fn pid_namespace() -> LayerState {
    match rustix::process::getpid().as_raw_nonzero().get() {
        1 => LayerState::Enforced("process 1 of its own".to_owned()),
        _ => LayerState::Missing(NOT_BORN_IN.to_owned()),
    }
}

/// Limits that hold even against code that gets past everything else.
pub(super) fn limits(role: Role) -> LayerState {
    // What is mapped for DMA is locked, of whom it is mapped by.
    let maps = matches!(role, Role::VfioConnection | Role::IommufdConnection);
    let limits = [
        (Resource::Core, 0),
        (Resource::Nproc, 0),
        (Resource::Fsize, 0),
        (Resource::Memlock, if maps { u64::MAX } else { 0 }),
        (Resource::Msgqueue, 0),
        (Resource::Nofile, MAX_DESCRIPTORS),
        (Resource::Data, policy::private_memory(role)),
        (Resource::Stack, MAX_STACK),
    ];
    let set = limits.into_iter().try_for_each(|(resource, most)| lower(resource, most));
    outcome(set, "core, processes, files, descriptors, private memory, stack", FORBIDDEN)
}

/// Sets a limit for good, never above what the process was started with: that would need a privilege.
pub(super) fn lower(resource: Resource, most: u64) -> Result<(), Errno> {
    let hard = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let most = Some(most.min(hard));
    rustix::process::setrlimit(resource, Rlimit { current: most, maximum: most })
}

/// Bytes of addresses that are in use, whatever is behind them.
pub(super) fn mapped() -> io::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split(' ').next().and_then(|pages| pages.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| io::Error::other("/proc/self/statm makes no sense"))?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// A budget of addresses: what is in use, its private memory and stack, and what is mapped `later`.
/// It bounds what no other limit counts: how often shared memory is mapped, and with it page tables.
pub(super) fn address_space(role: Role, mapped: io::Result<u64>, later: u64) -> LayerState {
    let mapped = match mapped {
        Ok(mapped) => mapped,
        Err(error) => {
            return LayerState::Missing(format!("cannot tell what is in use: {error}; {NO_PROC}"));
        }
    };
    let own = policy::private_memory(role) + MAX_STACK;
    let most = mapped.saturating_add(own).saturating_add(later);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let said = format!(
        "{} MiB: {} in use, {} for itself, {} to be handed over",
        mib(most),
        mib(mapped),
        mib(own),
        mib(later)
    );
    outcome(lower(Resource::As, most), &said, FORBIDDEN)
}

/// Bytes of memory that this machine has; 0 when it does not say.
pub(super) fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// Drops every capability, ambient and bounding sets included.
pub(super) fn capabilities() -> LayerState {
    let drop = || -> io::Result<()> {
        rustix::thread::clear_ambient_capability_set()?;
        let bounding = drop_bounding_set();
        let none = CapabilitySet::empty();
        let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
        rustix::thread::set_capabilities(None, sets)?;
        bounding
    };
    match drop() {
        Ok(()) => LayerState::Enforced("none, bounding set empty".to_owned()),
        // Without a user namespace only the bounding set is out of reach, and without
        // capabilities and new privileges it means nothing.
        Err(error) if has_no_capabilities() => {
            LayerState::Partial(format!("none held, but the bounding set stays: {error}"))
        }
        Err(error) => LayerState::Missing(format!("{error}; {FORBIDDEN}")),
    }
}

fn has_no_capabilities() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|held| held.effective.is_empty() && held.permitted.is_empty())
}

/// Every capability that this kernel has, known to a library or not.
fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: PR_CAPBSET_DROP takes one integer and touches no memory of ours.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if dropped != 0 {
            let error = io::Error::last_os_error();
            let past_the_last = error.raw_os_error() == Some(libc::EINVAL);
            return if past_the_last { Ok(()) } else { Err(error) };
        }
    }
    Ok(())
}

pub(super) fn no_new_privileges() -> LayerState {
    outcome(rustix::thread::set_no_new_privs(true), "for good", FORBIDDEN)
}

pub(super) fn not_dumpable() -> LayerState {
    let set = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    outcome(set, "no core, no attaching", FORBIDDEN)
}

/// A stopped or looping process would not see its tube close.
pub(super) fn death_with_parent() -> LayerState {
    let set = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    outcome(set, "killed when the VMM side dies", FORBIDDEN)
}
