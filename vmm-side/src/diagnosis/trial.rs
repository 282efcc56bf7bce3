//! Children that are started to see whether they can be: in namespaces, and confined.
//!
//! A trial's child is distrusted as any other is, and has a deadline.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use ipc::wire::handshake::Role;
use ipc::wire::sandbox::SandboxReport;
use ipc::{Deadline, MemoryInbox, Tube};

use super::Outcome;
use crate::child::{ExitStatus, Isolation, Process as _, Start};
use crate::limits::MAX_WORDS;
use crate::sys::{self, SpawnError, Step};
use crate::text::printable;

/// How long a child may take for what it does; a healthy one takes some milliseconds.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Which namespaces a child is born in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kinds {
    None,
    User,
    UserAndPid,
}

/// A child that runs.
struct Running {
    process: sys::Process,
    stderr: OwnedFd,
    tube: Tube,
}

impl Running {
    /// Starts one; `confined` as every child is, otherwise in these namespaces and no others.
    fn start(program: &Path, arguments: &[&str], kinds: Option<Kinds>) -> Result<Self, SpawnError> {
        let no_room = |error| SpawnError::new(Step::Prepare, program, error);
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let (tube, theirs) = Tube::pair().map_err(no_room)?;
        let (stderr, writer) = sys::stderr_pipe().map_err(no_room)?;
        let inbox = MemoryInbox::new().map_err(no_room)?;
        let start = Start {
            program,
            arguments: &arguments,
            stderr: writer.as_fd(),
            tube: theirs.as_fd(),
            isolation: Isolation::Preferred,
            inbox: &inbox,
        };
        let process = match kinds {
            Some(kinds) => sys::spawn_in(&start, kinds != Kinds::None, kinds == Kinds::UserAndPid)?,
            None => sys::spawn(&start)?,
        };
        Ok(Self { process, stderr, tube })
    }

    /// Waits for its end; how it ended, and the last line that it said. `None` when it was overdue and was
    /// killed.
    fn finish(self) -> Option<(ExitStatus, String)> {
        let ended = ipc::poll::wait_readable(&self.process, Deadline::after(TIMEOUT));
        let in_time = ended.unwrap_or(false);
        if !in_time {
            self.process.kill();
        }
        let exit = self.process.reap();
        // The pipe does not block this end either.
        let mut words = [0; MAX_WORDS];
        let length = rustix::io::read(&self.stderr, &mut words).unwrap_or(0);
        let words = String::from_utf8_lossy(&words[..length]);
        let last = printable(words.trim_end().lines().last().unwrap_or_default());
        in_time.then_some((exit, last))
    }
}

const BUILD: &str = "build or install device-proc and cordon from the same sources";

/// Whether the program runs at all, in no namespace.
pub(super) fn runs(program: &Path) -> Outcome {
    match Running::start(program, &["--version"], Some(Kinds::None)) {
        Err(error) => Outcome::absent(error.cause(), error.cure()),
        Ok(child) => match child.finish() {
            Some((ExitStatus::Code(0), _)) => Outcome::Present(program.display().to_string()),
            ended => Outcome::absent(format!("{} {}", program.display(), said(ended)), BUILD),
        },
    }
}

fn said(ended: Option<(ExitStatus, String)>) -> String {
    match ended {
        None => format!("did not end within {} s", TIMEOUT.as_secs()),
        Some((exit, words)) if words.is_empty() => format!("ended with {exit}"),
        Some((exit, words)) => format!("ended with {exit}; it said: {words}"),
    }
}

/// Has a child born in such namespaces, with its ids mapped.
pub(super) fn namespaces(program: &Path, kinds: Kinds) -> Outcome {
    let made = "made for a child, with one user and one group mapped";
    match Running::start(program, &["--version"], Some(kinds)) {
        Ok(child) => match child.finish() {
            Some(_) => Outcome::Present(made.to_owned()),
            None => Outcome::absent("a child in one did not end in time", BUILD),
        },
        Err(error) => match error.step {
            Step::Namespaces | Step::MapIds | Step::Clone => {
                Outcome::absent(error.cause(), error.cure())
            }
            // These come after: it was in them already.
            Step::Install | Step::CloseOthers | Step::Run => Outcome::Present(made.to_owned()),
            Step::Prepare | Step::NullDevice | Step::Duplicate | Step::CommandLine => {
                Outcome::not_tried(error.cause(), error.cure())
            }
        },
    }
}

/// A child that confined itself, reported, and made a forbidden call.
pub(super) struct Trial {
    pub(super) report: SandboxReport,
    pub(super) exit: ExitStatus,
}

impl Trial {
    /// Starts one, as a function process is.
    ///
    /// # Errors
    /// What it says of confinement that there is no such child.
    pub(super) fn run(program: &Path) -> Result<Self, Outcome> {
        let mut child = Running::start(program, &["doctor", "--report=function"], None)
            .map_err(|error| Outcome::not_tried(error.cause(), error.cure()))?;
        let deadline = Deadline::after(TIMEOUT);
        let met = child.tube.handshake(Role::Vmm, Role::Function, deadline);
        let received = met
            .map_err(|error| ipc::chain(&error))
            .and_then(|_| child.tube.receive(deadline).map_err(|error| ipc::chain(&error)));
        let report = received.map(|received| received.message);
        match (report, child.finish()) {
            (Ok(report), Some((exit, _))) => Ok(Self { report, exit }),
            (Ok(_), None) => Err(Outcome::absent(
                format!("the child reported, and did not end within {} s", TIMEOUT.as_secs()),
                BUILD,
            )),
            (Err(why), ended) => {
                let text = format!("no report came ({why}): the child {}", said(ended));
                Err(Outcome::not_tried(printable(&text), BUILD))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_child_says_only_so_much_is_looked_at() {
        let says = |script: String| {
            let arguments = ["-c", script.as_str()];
            Running::start(Path::new("/bin/sh"), &arguments, Some(Kinds::None)).unwrap().finish()
        };
        let (exit, last) = says("echo one >&2; echo two >&2; exit 3".to_owned()).unwrap();
        assert_eq!((exit, last.as_str()), (ExitStatus::Code(3), "two"));
        let most = MAX_WORDS - 2;
        let (_, last) = says(format!("printf '%{most}s\\nyes' x >&2")).unwrap();
        assert_eq!(last, "y", "one byte of the last line is within the limit");
    }
}
