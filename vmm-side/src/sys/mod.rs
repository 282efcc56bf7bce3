//! What differs between systems: starting a child and watching it. One file per system, with
//! identical signatures.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;

#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
pub(crate) use macos::*;

use std::ffi::{CString, OsStr, c_char};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::child::Start;

/// What was being done when a child could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Making what its VMM side keeps of it: tube, standard error, events, a thread.
    Prepare,
    /// Opening /dev/null.
    NullDevice,
    /// Duplicating what it inherits.
    Duplicate,
    /// Writing down its command line.
    CommandLine,
    /// Making a process, in namespaces of its own.
    #[cfg(target_os = "linux")]
    Namespaces,
    /// Making a process.
    #[cfg(target_os = "linux")]
    Clone,
    /// Mapping its user and group in its user namespace.
    #[cfg(target_os = "linux")]
    MapIds,
    /// Putting what it inherits where it looks for it.
    #[cfg(target_os = "linux")]
    Install,
    /// Closing everything else.
    #[cfg(target_os = "linux")]
    CloseOthers,
    /// Saying how it is to be spawned.
    #[cfg(target_os = "macos")]
    Attributes,
    /// Running its program.
    Run,
    /// Watching for its end.
    #[cfg(target_os = "macos")]
    Watch,
}

impl Step {
    /// Completes "Cannot …".
    fn what(self) -> &'static str {
        match self {
            Self::Prepare => "make its tube and events",
            Self::NullDevice => "open /dev/null for its standard streams",
            Self::Duplicate => "duplicate the descriptors that it inherits",
            Self::CommandLine => "pass its command line",
            #[cfg(target_os = "linux")]
            Self::Namespaces => "make user and pid namespaces for it",
            #[cfg(target_os = "linux")]
            Self::Clone => "make a process for it",
            #[cfg(target_os = "linux")]
            Self::MapIds => "map its user and group by /proc/self/uid_map and gid_map",
            #[cfg(target_os = "linux")]
            Self::Install => "put the descriptors that it inherits in place",
            #[cfg(target_os = "linux")]
            Self::CloseOthers => "close the descriptors that it must not inherit",
            #[cfg(target_os = "macos")]
            Self::Attributes => "say how it is to be spawned",
            Self::Run => "run",
            #[cfg(target_os = "macos")]
            Self::Watch => "watch for its end",
        }
    }
}

/// Why there is no child: the step that failed, what the system said, and what helps.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {}{}: {error}{}", step.what(), subject(program.as_deref()), advice(cure))]
pub(crate) struct SpawnError {
    pub(crate) step: Step,
    /// The program, where the step is about it.
    program: Option<PathBuf>,
    error: io::Error,
    /// Empty where nobody knows one.
    cure: String,
}

impl SpawnError {
    /// A step that failed, with the cure that goes with it here and now.
    pub(crate) fn new(step: Step, program: &Path, error: io::Error) -> Self {
        let cure = if out_of_descriptors(&error) {
            "raise the limit of open files (ulimit -n)".to_owned()
        } else {
            cure(step, program, &error)
        };
        let program = (step == Step::Run).then(|| program.to_owned());
        Self { step, program, error, cure }
    }
}

#[cfg(target_os = "linux")]
impl SpawnError {
    /// What failed and why, without what helps.
    pub(crate) fn cause(&self) -> String {
        let Self { step, program, error, .. } = self;
        format!("Cannot {}{}: {error}", step.what(), subject(program.as_deref()))
    }

    /// What helps.
    pub(crate) fn cure(&self) -> &str {
        if self.cure.is_empty() { "see what forbids it to this user" } else { &self.cure }
    }
}

fn subject(program: Option<&Path>) -> String {
    program.map(|program| format!(" {}", program.display())).unwrap_or_default()
}

fn advice(cure: &str) -> String {
    if cure.is_empty() { String::new() } else { format!("; {cure}") }
}

fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// What helps when the program cannot be run, as far as that is the same everywhere.
fn cure_of_run(program: &Path, error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT) if program.exists() => {
            "the file is there, but the loader or interpreter that it names is not: build it for \
             this system"
        }
        Some(libc::ENOENT | libc::ENOTDIR) => {
            "there is no such program: install device-proc, or say where it is"
        }
        Some(libc::EACCES | libc::EPERM) => {
            "it must be an executable file that this user may run, not on a mount with noexec"
        }
        Some(libc::ENOEXEC) => "it is no program for this machine, or is cut short: build it again",
        Some(libc::ETXTBSY) => "it is being written: wait until it is built",
        Some(libc::ENOMEM | libc::E2BIG) => "raise the limits of memory and stack (ulimit -v, -s)",
        _ => "",
    }
}

/// /dev/null, which is what it must be: a file in its place would collect what is thrown away.
pub(crate) fn null_device() -> io::Result<std::fs::File> {
    use std::os::unix::fs::FileTypeExt as _;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    if null.metadata()?.file_type().is_char_device() {
        Ok(null)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no device"))
    }
}

/// What helps when that fails.
pub(crate) const CURE_OF_NULL: &str = "mount a /dev with the device null in it, not with nodev";

/// A command line and an environment as the system wants them.
struct Words {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Words {
    fn of(start: &Start<'_>) -> io::Result<Self> {
        let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::other);
        let program = text(start.program.as_os_str())?;
        let arguments = std::iter::once(Ok(program.clone()))
            .chain(start.arguments.iter().map(|argument| text(argument)))
            .collect::<Result<_, _>>()?;
        let environment = ["RUST_LOG", "RUST_BACKTRACE"]
            .into_iter()
            .filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)))
            .map(|pair| text(pair.as_ref()))
            .collect::<Result<_, _>>()?;
        Ok(Self { program, arguments, environment })
    }

    /// Pointers to strings, and null. They are good for as long as the strings are.
    fn null_terminated(strings: &[CString]) -> Vec<*const c_char> {
        strings.iter().map(|one| one.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::child::Isolation;

    /// What comes of a program that a child is to run.
    fn start(program: &Path, arguments: &[std::ffi::OsString]) -> Result<Process, SpawnError> {
        let (_ours, theirs) = ipc::Tube::pair().unwrap();
        let (_read, stderr) = stderr_pipe().unwrap();
        let inbox = ipc::MemoryInbox::new().unwrap();
        spawn(&Start {
            program,
            arguments,
            stderr: stderr.as_fd(),
            tube: theirs.as_fd(),
            isolation: Isolation::Preferred,
            inbox: &inbox,
        })
    }

    #[test]
    fn a_program_that_cannot_be_run_is_named_with_its_step_and_cure() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8], mode| {
            let path = folder.path().join(name);
            std::fs::File::create(&path).unwrap().write_all(content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        for (program, errno, cure) in [
            (folder.path().join("missing"), libc::ENOENT, "install device-proc"),
            (file("text", b"text", 0o755), libc::ENOEXEC, "no program for this machine"),
            (file("plain", b"text", 0o644), libc::EACCES, "executable file"),
            (file("script", b"#!/no/such\n", 0o755), libc::ENOENT, "loader or interpreter"),
        ] {
            let error = start(&program, &[]).unwrap_err();
            assert_eq!((error.step, error.error.raw_os_error()), (Step::Run, Some(errno)));
            let text = error.to_string();
            assert!(text.starts_with(&format!("Cannot run {}: ", program.display())), "{text}");
            assert!(text.contains(cure), "{text}");
        }
    }

    #[test]
    fn what_is_no_command_line_is_refused_before_anything_is_made() {
        let error = start(Path::new("/bin/true"), &["a\0b".into()]).unwrap_err();
        assert_eq!(error.step, Step::CommandLine);
    }

    #[test]
    fn descriptors_have_their_own_cure_whatever_the_step() {
        for errno in [libc::EMFILE, libc::ENFILE] {
            let error = io::Error::from_raw_os_error(errno);
            let text = SpawnError::new(Step::Duplicate, Path::new("x"), error).to_string();
            assert!(text.ends_with("raise the limit of open files (ulimit -n)"), "{text}");
        }
    }
}
