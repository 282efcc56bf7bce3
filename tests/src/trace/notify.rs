//! The listener's end of a filter that shows calls: seccomp_unotify(2).
#![allow(unsafe_code, reason = "ioctls that no library wraps")]

use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::io::Errno;

/// A call that waits.
pub(super) struct Shown {
    id: u64,
    /// The process, as its listener sees it.
    pub(super) pid: u32,
    /// By which architecture's entry it came: `AUDIT_ARCH_…`.
    pub(super) architecture: u32,
    /// Its number.
    pub(super) number: i64,
    /// Its arguments, whole registers.
    pub(super) arguments: [u64; 6],
}

/// What becomes of it.
pub(super) enum Verdict {
    /// It is carried out.
    GoesOn,
    /// It comes back with 0 and was not carried out.
    Done,
}

/// One traced process.
pub(super) struct Listener(pub(super) OwnedFd);

impl Listener {
    /// The next call; `None` when the process has ended.
    pub(super) fn next(&self) -> Option<Shown> {
        loop {
            let mut sources = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
            match rustix::event::poll(&mut sources, None) {
                Err(Errno::INTR) => continue,
                Err(error) => panic!("poll: {error}"),
                Ok(_) => {}
            }
            if !sources[0].revents().contains(rustix::event::PollFlags::IN) {
                return None;
            }
            // SAFETY: a zeroed notification is what the kernel asks for, and fills.
            let (answered, shown) = unsafe {
                let mut shown: libc::seccomp_notif = std::mem::zeroed();
                let fd = self.0.as_raw_fd();
                let answered = libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut shown);
                (answered, shown)
            };
            if answered < 0 {
                // It was interrupted, or killed, before it was taken.
                continue;
            }
            return Some(Shown {
                id: shown.id,
                pid: shown.pid,
                architecture: shown.data.arch,
                number: shown.data.nr.into(),
                arguments: shown.data.args,
            });
        }
    }

    /// Lets a call go on, or not. One whose process was killed meanwhile needs no answer.
    pub(super) fn answer(&self, shown: &Shown, verdict: &Verdict) {
        let flags = match verdict {
            Verdict::GoesOn => u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap(),
            Verdict::Done => 0,
        };
        let mut answer = libc::seccomp_notif_resp { id: shown.id, val: 0, error: 0, flags };
        // SAFETY: the answer lives through the call.
        unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer);
        }
    }
}

/// `AUDIT_ARCH_…` of this build.
pub const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
