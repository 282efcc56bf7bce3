//! Which rows of the system-call policy confined processes use, call by call.
//!
//! [`Tracer::start`] makes a folder of programs in which those that confine themselves are stood in for by
//! `traced-role`. It shows every system call of the process to the tracer (seccomp's user notification),
//! before and after the process confines itself. When the process installs its role's filter, the tracer
//! says that it is done and keeps it from being installed: from there on it *is* the filter, by the same
//! rows. A call that a row takes is noted and goes on; one that no row takes is noted and not carried out, and
//! the process is killed. (By SIGKILL: it is the first of its pid namespace, which no other signal from outside
//! ends. Of a call that the filter itself ends a process for, nothing would be seen.) Whether the
//! installed filter does what the rows say is tried by another test, `tests/tests/policy/main.rs`.
//!
//! A process that starts later does not show what the tracer knows by then: calls that are taken by a row that
//! this role was seen to use. So a suite that starts hundreds of processes takes little longer than it
//! does untraced, and what is left to be seen, a row's first use and a call that no row takes, is.
//!
//! What the vDSO answers is no system call, and is not seen.

mod notify;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use sandbox_profiles::Role;
use sandbox_profiles::policy::{self, Syscall};

pub use notify::ARCHITECTURE;
use notify::{Listener, Shown, Verdict};

/// The programs that confine themselves.
const CONFINED: [&str; 2] = ["device-proc", "faulty-device-proc"];
/// Behind it is what a `traced-role` stands for.
const MARK: &[u8] = b"\0traced-role stands for\0";

/// What a `traced-role` becomes, and whom it shows its calls to.
pub struct StandsFor {
    /// The program.
    pub program: PathBuf,
    /// The tracer's socket.
    pub tracer: PathBuf,
}

/// Bytes behind a `traced-role`, which begin with [`MARK`].
const BEHIND: usize = 8192;

/// What is written behind the bytes of a `traced-role`.
///
/// # Errors
/// When it cannot be read, or nothing is.
pub fn read_stands_for(program: &std::fs::File) -> std::io::Result<StandsFor> {
    let mut behind = vec![0; BEHIND];
    let from = program.metadata()?.len().saturating_sub(BEHIND as u64);
    program.read_exact_at(&mut behind, from)?;
    let paths = behind.strip_prefix(MARK).ok_or(std::io::ErrorKind::InvalidData)?;
    let mut paths = paths.split(|byte| *byte == 0);
    let mut path = || PathBuf::from(OsString::from_vec(paths.next().unwrap_or_default().to_vec()));
    Ok(StandsFor { program: path(), tracer: path() })
}

/// A row of a role's policy, or a call that none takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// "connection", "function" or "lister".
    pub role: String,
    /// The row, with its conditions; or the call, with its arguments.
    pub what: String,
}

/// What was seen so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Rows that a call was made by, and in which role.
    pub rows: BTreeSet<Use>,
    /// Calls that no row takes.
    pub forbidden: BTreeSet<Use>,
    /// Processes that confined themselves.
    pub processes: usize,
    /// Calls that they showed since.
    pub calls: u64,
}

/// Rows that only something out of the ordinary uses: how a row begins, and the test of
/// `tests/tests/policy/needed.rs` that makes it be used.
pub const OUT_OF_THE_ORDINARY: [(&str, &str); 3] = [
    (
        "mmap(0 is 0x0, 2 is 0x1, 3 is 0x1)",
        "guest_memory_that_the_device_may_not_write_is_mapped_to_be_read",
    ),
    ("clock_gettime(", "the_clock_is_a_call_where_the_vdso_has_none"),
    ("rt_sigreturn(", "a_handler_that_interrupts_a_signal_comes_back"),
];

/// What a comparison of the policy with what was seen comes to.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Rows that there are.
    pub rows: usize,
    /// Those of them that were used.
    pub used: usize,
    /// Those that a test of their own uses.
    pub elsewhere: usize,
    /// Those that nobody needs.
    pub unneeded: Vec<String>,
    /// Calls that were needed and are not allowed.
    pub forbidden: Vec<String>,
}

impl Seen {
    /// Compares with the policy, in both directions.
    #[must_use]
    pub fn compare(&self) -> Comparison {
        let used: BTreeSet<&str> = self.rows.iter().map(|one| one.what.as_str()).collect();
        let all = [Role::Connection, Role::Function, Role::Lister].into_iter();
        let all: BTreeSet<String> = all
            .flat_map(|role| policy::tables(role).iter().copied().flatten())
            .map(ToString::to_string)
            .collect();
        let mut compared = Comparison { rows: all.len(), ..Comparison::default() };
        for row in all {
            if used.contains(row.as_str()) {
                compared.used += 1;
            } else if OUT_OF_THE_ORDINARY.iter().any(|(begins, _)| row.starts_with(begins)) {
                compared.elsewhere += 1;
            } else {
                compared.unneeded.push(row);
            }
        }
        let forbidden = self.forbidden.iter().map(|one| format!("{}: {}", one.role, one.what));
        compared.forbidden = forbidden.collect();
        compared
    }
}

/// A role by the word that starts it.
#[must_use]
pub fn role(word: &str) -> Option<Role> {
    match word {
        "connection" => Some(Role::Connection),
        "function" => Some(Role::Function),
        "lister" => Some(Role::Lister),
        "iommufd-connection" => Some(Role::IommufdConnection),
        "vfio-connection" => Some(Role::VfioConnection),
        "vfio-function" => Some(Role::VfioFunction),
        _ => None,
    }
}

/// Every row of a role, in one order.
#[must_use]
pub fn rows(role: Role) -> Vec<&'static Syscall> {
    policy::tables(role).iter().copied().flatten().collect()
}

/// What a tracer does beside looking on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// Nothing.
    #[default]
    AsItIs,
    /// It takes the clock out of the vDSO of each traced process before that has looked for it there, as on
    /// a machine whose clock cannot be read without a call.
    ByCall,
}

/// A folder of programs whose processes are traced for as long as this lives.
pub struct Tracer {
    folder: tempfile::TempDir,
    seen: Arc<Mutex<Seen>>,
    programs: PathBuf,
    socket: tempfile::TempDir,
}

impl Tracer {
    /// Stands in for the programs of `programs`.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn start(programs: &Path, clock: Clock) -> Self {
        // Beside the programs, so that links to them can be made. Sockets need short paths.
        let folder = tempfile::tempdir_in(programs).unwrap();
        let socket = tempfile::tempdir().unwrap();
        let at = socket.path().join("tracer");
        for entry in std::fs::read_dir(programs).unwrap().map(Result::unwrap) {
            let name = entry.file_name();
            if entry.file_type().unwrap().is_file() && !CONFINED.iter().any(|one| name == *one) {
                let to = folder.path().join(&name);
                // A file may end while others build.
                let _ = std::fs::hard_link(entry.path(), to);
            }
        }
        for name in CONFINED {
            stand_in(programs, name, &folder.path().join(name), &at);
        }
        let listener = UnixListener::bind(&at).unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = Arc::clone(&seen);
        // Ends with the process: what is traced cannot go on without it.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || trace(&stream, clock, &shared));
            }
        });
        Self { folder, seen, programs: programs.to_owned(), socket }
    }

    /// Has another program traced that confines itself, which a test starts by the path that comes back.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn stand_in(&self, name: &str) -> PathBuf {
        let to = self.folder.path().join(format!("traced-{name}"));
        stand_in(&self.programs, name, &to, &self.socket.path().join("tracer"));
        to
    }

    /// The folder of the programs: for `CORDON_BIN_DIR`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a `traced-role` at `to` that becomes `name` of `programs`.
fn stand_in(programs: &Path, name: &str, to: &Path, tracer: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let written = folder.path().join(name);
    let mut bytes = std::fs::read(programs.join("traced-role")).unwrap();
    let length = bytes.len() + BEHIND;
    bytes.extend(MARK);
    for path in [&programs.join(name), tracer] {
        bytes.extend(path.as_os_str().as_bytes());
        bytes.push(0);
    }
    assert!(bytes.len() <= length, "{}", programs.display());
    bytes.resize(length, 0);
    std::fs::write(&written, bytes).unwrap();
    crate::install(&written, to);
}

/// Which rows a process of this role need not show: those that it was seen to use.
///
/// Not the timer's, whose period is made longer at each call. And where the clock is to be found by a call, the
/// first call after exec must be seen, whichever it is.
fn known(word: &str, clock: Clock, seen: &Mutex<Seen>) -> Vec<u8> {
    let Some(role) = role(word).filter(|_| clock == Clock::AsItIs) else { return Vec::new() };
    let seen = lock(seen);
    let used =
        |row: &Syscall| seen.rows.contains(&Use { role: word.into(), what: row.to_string() });
    let rows = rows(role).into_iter().enumerate();
    let known = rows.filter(|(_, row)| row.number != libc::SYS_timer_settime && used(row));
    known.filter_map(|(at, _)| u8::try_from(at).ok()).collect()
}

/// Looks on at one process until it ends.
fn trace(stream: &UnixStream, clock: Clock, seen: &Mutex<Seen>) {
    let Some((word, listener)) = accept(stream, |word| known(word, clock, seen)) else { return };
    let (listener, role) = (Listener(listener), role(&word));
    let (mut confined, mut clock) = (false, clock);
    let mut became = false;
    while let Some(shown) = listener.next() {
        let mut verdict = Verdict::GoesOn;
        if shown.number == libc::SYS_timer_settime {
            slow_timer(&shown);
        }
        if confined {
            verdict = note(&word, role, &shown, seen);
        } else if role.is_some() && is_filter(&shown) {
            confined = true;
            lock(seen).processes += 1;
            verdict = Verdict::Done;
        } else if became && std::mem::take(&mut clock) == Clock::ByCall {
            hide_clock(shown.pid);
        }
        became |= shown.number == libc::SYS_execve;
        listener.answer(&shown, &verdict);
    }
}

/// Notes which row takes a call. One that none takes ends its process.
fn note(word: &str, role: Option<Role>, shown: &Shown, seen: &Mutex<Seen>) -> Verdict {
    let rows = role.into_iter().flat_map(policy::tables).copied().flatten();
    let native = shown.architecture == ARCHITECTURE;
    let taken: Vec<String> = rows
        .filter(|row| native && row.takes(shown.number, &shown.arguments))
        .map(ToString::to_string)
        .collect();
    let row = |what| Use { role: word.to_owned(), what };
    let mut seen = lock(seen);
    seen.calls += 1;
    if taken.is_empty() {
        let [a, b, c, d, e, f] = shown.arguments;
        let (number, by) = (shown.number, shown.architecture);
        let call =
            format!("call {number} by {by:#x}: {a:#x}, {b:#x}, {c:#x}, {d:#x}, {e:#x}, {f:#x}");
        seen.forbidden.insert(row(call));
        drop(seen);
        let pid = Pid::from_raw(i32::try_from(shown.pid).unwrap());
        if let Some(pidfd) =
            pid.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
        {
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        }
        return Verdict::Done;
    }
    seen.rows.extend(taken.into_iter().map(row));
    Verdict::GoesOn
}

/// Whether a call installs a filter.
fn is_filter(shown: &Shown) -> bool {
    shown.number == libc::SYS_seccomp
        && shown.arguments[0] == u64::from(libc::SECCOMP_SET_MODE_FILTER)
}

/// The role's word, and the listener of its calls. It is told between them which rows it need not show.
fn accept(stream: &UnixStream, known: impl Fn(&str) -> Vec<u8>) -> Option<(String, OwnedFd)> {
    let mut word = [0; 64];
    let mut receive = || {
        ipc::poll::wait_readable(stream, ipc::Deadline::after(Duration::from_secs(5))).ok()?;
        let came = ipc::rights::receive(stream, &mut word).ok()?;
        Some((String::from_utf8_lossy(&word[..came.bytes]).into_owned(), came.handles))
    };
    let (word, _) = receive()?;
    let known = known(&word);
    let count = u8::try_from(known.len()).ok()?;
    (&*stream).write_all(&[&[count], &known[..]].concat()).ok()?;
    let (_, handles) = receive()?;
    Some((word, handles.into_iter().next()?))
}

/// The memory of a process whose call waits.
fn memory(pid: u32) -> std::fs::File {
    let memory = std::fs::File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
    memory.unwrap_or_else(|error| panic!("the memory of {pid}: {error}"))
}

/// Makes the period of a timer as much longer as a call is when it is traced: the timer is there to
/// interrupt what takes some milliseconds, and what its process waits for here is the tracer.
fn slow_timer(shown: &Shown) {
    const PERIOD: Duration = Duration::from_millis(300);
    let memory = memory(shown.pid);
    // Two of seconds and nanoseconds: how often, and when first.
    let mut setting = [0; 32];
    // It may have been killed meanwhile.
    if memory.read_exact_at(&mut setting, shown.arguments[2]).is_err() || setting == [0; 32] {
        return;
    }
    let [seconds, nanoseconds] = [PERIOD.as_secs(), PERIOD.subsec_nanos().into()];
    for (at, value) in [seconds, nanoseconds, seconds, nanoseconds].into_iter().enumerate() {
        setting[8 * at..][..8].copy_from_slice(&value.to_ne_bytes());
    }
    let _ = memory.write_all_at(&setting, shown.arguments[2]);
}

/// Writes over the names of the clock's functions in the vDSO of a process that is being loaded: its libc
/// finds none, and calls.
fn hide_clock(pid: u32) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let vdso = maps.lines().find(|line| line.ends_with("[vdso]")).expect("there is a vDSO");
    let (from, to) = vdso.split_once(' ').unwrap().0.split_once('-').unwrap();
    let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
    let memory = memory(pid);
    let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
    memory.read_exact_at(&mut bytes, from).unwrap();
    const NAME: &[u8] = b"clock_gettime";
    let found: Vec<usize> =
        (0..bytes.len() - NAME.len()).filter(|at| bytes[*at..].starts_with(NAME)).collect();
    assert!(!found.is_empty(), "the vDSO has no clock");
    for at in found {
        memory.write_all_at(b"x", from + at as u64).unwrap();
    }
}
