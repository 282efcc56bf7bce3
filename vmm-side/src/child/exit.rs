//! How a process ended: what the system says of it, and of a forbidden system call what the process itself said.

use std::fmt;

use crate::sys;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// Nobody knows.
    Unknown,
}

/// Signals that end a process, by the names that people know them by.
const SIGNALS: [(i32, &str); 24] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGTRAP, "SIGTRAP"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGKILL, "SIGKILL"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGPIPE, "SIGPIPE"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGSTOP, "SIGSTOP"),
    (libc::SIGTSTP, "SIGTSTP"),
    (libc::SIGTTIN, "SIGTTIN"),
    (libc::SIGTTOU, "SIGTTOU"),
    (libc::SIGXCPU, "SIGXCPU"),
    (libc::SIGXFSZ, "SIGXFSZ"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGPROF, "SIGPROF"),
    (libc::SIGSYS, "SIGSYS"),
];

/// A signal that ended a process. Shown by its name, or as "signal N".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndSignal(pub i32);

impl fmt::Display for EndSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIGNALS.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "signal {}", self.0),
        }
    }
}

/// The forbidden system call that a process said it had made, in its last words: its own word and no more. A
/// process that is taken over can name another one. On Linux only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimedCall(pub u32);

/// By its name, or as "number N" where it has none that is known.
impl fmt::Display for ClaimedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match sys::call_name(self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "number {:#x}", self.0),
        }
    }
}

impl ExitStatus {
    /// The status that it exited with.
    #[must_use]
    pub fn code(self) -> Option<i32> {
        if let Self::Code(code) = self { Some(code) } else { None }
    }

    /// The signal that ended it.
    #[must_use]
    pub fn signal(self) -> Option<EndSignal> {
        if let Self::Signal(signal) = self { Some(EndSignal(signal)) } else { None }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(libc::SIGSYS) => {
                write!(f, "signal {}: a forbidden system call", libc::SIGSYS)
            }
            Self::Signal(libc::SIGBUS) => write!(
                f,
                "signal {}: memory that it had mapped is not there, as when a file is shortened",
                libc::SIGBUS
            ),
            Self::Signal(libc::SIGSEGV) => {
                write!(f, "signal {}: an access where it had nothing mapped", libc::SIGSEGV)
            }
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => write!(f, "unknown exit status"),
        }
    }
}
