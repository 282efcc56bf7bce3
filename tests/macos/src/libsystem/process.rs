//! Processes: fork, exec, wait, identities.

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use darwin_abi::{Symbol, error, fail, from_linux, result, set, symbols};

use super::{arguments, kqueue, runner, signals};
use crate::libsystem::confined::mediated;

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! {
    "_fork" => fork,
    "_execv" => execv,
    "_execvp" => execvp,
    "_waitpid" => waitpid,
    "_getpid" => libc::getpid,
    "_getuid" => libc::getuid,
    "_setuid" => setuid,
    "_setgid" => setgid,
    "_setgroups" => setgroups,
    "_setsid" => setsid,
    "_setpgid" => setpgid,
    "_proc_listchildpids" => listchildpids,
    "_proc_name" => proc_name,
};

extern "C" fn fork() -> c_int {
    mediated!("SYS_fork", crate::libsystem::confined::denies("process-fork", ""));
    let held = kqueue::hold();
    // SAFETY: the caller answers for what a child of a process with threads may do.
    let child = result(unsafe { libc::fork() });
    drop(held);
    child
}

/// The last byte of a wait's status is a signal's number, and the one before it that of what stopped a process.
fn status_to_darwin(linux: c_int) -> c_int {
    const STOPPED: c_int = 0x7f;
    if libc::WIFSTOPPED(linux) {
        signals::from_linux(libc::WSTOPSIG(linux)) << 8 | STOPPED
    } else if libc::WIFCONTINUED(linux) {
        0x13 << 8 | STOPPED
    } else if libc::WIFSIGNALED(linux) {
        signals::from_linux(libc::WTERMSIG(linux)) | linux & 0x80
    } else {
        linux
    }
}

unsafe extern "C" fn waitpid(process: c_int, status: *mut c_int, options: c_int) -> c_int {
    mediated!("SYS_wait4");
    const NOHANG: c_int = 1;
    const UNTRACED: c_int = 2;
    const CONTINUED: c_int = 0x10;
    let pairs =
        [(NOHANG, libc::WNOHANG), (UNTRACED, libc::WUNTRACED), (CONTINUED, libc::WCONTINUED)];
    let set = pairs.iter().filter(|(darwin, _)| options & darwin != 0);
    let options = set.fold(0, |all, (_, linux)| all | linux);
    let mut linux = 0;
    // SAFETY: a place of this function's, and the caller's, which may be null.
    unsafe {
        let found = result(libc::waitpid(process, &raw mut linux, options));
        if let (1.., Some(status)) = (found, status.as_mut()) {
            *status = status_to_darwin(linux);
        }
        found
    }
}

extern "C" fn setuid(user: u32) -> c_int {
    mediated!("SYS_setuid");
    // SAFETY: plain numbers.
    result(unsafe { libc::setuid(user) })
}

extern "C" fn setgid(group: u32) -> c_int {
    mediated!("SYS_setgid");
    // SAFETY: plain numbers.
    result(unsafe { libc::setgid(group) })
}

unsafe extern "C" fn setgroups(count: c_int, groups: *const u32) -> c_int {
    mediated!("SYS_setgroups");
    // SAFETY: the caller's array.
    result(unsafe { libc::setgroups(count.max(0) as usize, groups) })
}

extern "C" fn setsid() -> c_int {
    mediated!("SYS_setsid");
    // SAFETY: nothing is passed.
    result(unsafe { libc::setsid() })
}

extern "C" fn setpgid(process: c_int, group: c_int) -> c_int {
    mediated!("SYS_setpgid");
    // SAFETY: plain numbers.
    result(unsafe { libc::setpgid(process, group) })
}

/// Children of a process; gives how many, and fills what there is room for (Libsystem, `libproc.c`).
unsafe extern "C" fn listchildpids(process: c_int, buffer: *mut c_int, size: c_int) -> c_int {
    let children = children(process);
    let room = size.max(0) as usize / size_of::<c_int>();
    if buffer.is_null() {
        return children.len() as c_int;
    }
    let count = children.len().min(room);
    // SAFETY: the caller's buffer, as large as it says.
    unsafe { std::ptr::copy_nonoverlapping(children.as_ptr(), buffer, count) };
    count as c_int
}

/// `proc_name` (libsyscall/wrappers/libproc/libproc.c): as much of the name as there is room for; the result is its
/// length, 0 where there is no such process.
unsafe extern "C" fn proc_name(process: c_int, buffer: *mut u8, room: u32) -> c_int {
    mediated!("SYS_proc_info");
    let Some(name) = name_of(process) else {
        fail(error::ESRCH);
        return 0;
    };
    let length = name.len().min((room as usize).saturating_sub(1));
    // SAFETY: the caller's buffer, as large as it says.
    unsafe {
        buffer.copy_from_nonoverlapping(name.as_ptr(), length);
        if room > 0 {
            buffer.add(length).write(0);
        }
    }
    length as c_int
}

/// A process is called after its program: of ours that is what the runner was given, of others the kernel knows. What
/// Linux has as the name of a process is that of its first thread, which a program changes.
fn name_of(process: c_int) -> Option<String> {
    let words = std::fs::read_to_string(format!("/proc/{process}/cmdline")).ok()?;
    let mut words = words.split('\0').skip_while(|word| !word.ends_with("/macho-runner")).skip(1);
    let program = match words.next() {
        Some("--argv0") => words.nth(1),
        program => program,
    };
    match program.and_then(|program| program.rsplit('/').next()) {
        Some(name) => Some(name.to_owned()),
        None => {
            let name = std::fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
            Some(name.trim_end().to_owned())
        }
    }
}

fn children(process: c_int) -> Vec<c_int> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<c_int>().ok());
    numbers.filter(|number| parent(*number) == Some(process)).collect()
}

/// The fourth field of a process's stat, counted from behind its name.
fn parent(process: c_int) -> Option<c_int> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// How a program is started: the file and its words.
pub(super) struct Image {
    pub(super) file: CString,
    pub(super) words: Vec<CString>,
}

impl Image {
    /// Of a program: a Mach-O is run by the runner, and anything else by Linux.
    pub(super) fn of(program: &CStr, words: Vec<CString>) -> Result<Self, c_int> {
        let path = Path::new(std::ffi::OsStr::from_bytes(program.to_bytes()));
        match is_mach_o(path) {
            Ok(true) => {}
            Ok(false) => return Ok(Self { file: program.to_owned(), words }),
            Err(error) => return Err(from_linux(error.raw_os_error().unwrap_or(libc::EIO))),
        }
        let mut all = runner::command().map_err(from_linux)?;
        let file = all.first().ok_or(error::ENOENT)?.clone();
        let name = words.first().cloned().unwrap_or_default();
        all.extend([c"--argv0".to_owned(), name, program.to_owned()]);
        all.extend(words.into_iter().skip(1));
        Ok(Self { file, words: all })
    }
}

fn is_mach_o(path: &Path) -> std::io::Result<bool> {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;
    let mut file = std::fs::File::open(path)?;
    if file.metadata()?.is_dir() || file.metadata()?.permissions().mode() & 0o111 == 0 {
        return Err(std::io::Error::from_raw_os_error(libc::EACCES));
    }
    let mut magic = [0; 4];
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(u32::from_le_bytes(magic) == 0xfeed_facf),
        Err(_) => Ok(false),
    }
}

/// Where a program is that is looked for in PATH.
pub(super) fn search(program: &CStr, path: Option<&[u8]>) -> Result<CString, c_int> {
    let name = program.to_bytes();
    if name.contains(&b'/') {
        return Ok(program.to_owned());
    }
    let folders = path.unwrap_or(b"/usr/bin:/bin");
    for folder in folders.split(|byte| *byte == b':') {
        let folder = if folder.is_empty() { b"." } else { folder };
        let path = [folder, b"/", name].concat();
        if is_mach_o(Path::new(std::ffi::OsStr::from_bytes(&path))).is_ok() {
            return CString::new(path).map_err(|_| error::EINVAL);
        }
    }
    Err(error::ENOENT)
}

/// A null-terminated array of strings.
///
/// # Safety
///
/// It is one.
pub(super) unsafe fn strings(mut array: *const *const c_char) -> Vec<CString> {
    let mut all = Vec::new();
    if array.is_null() {
        return all;
    }
    // SAFETY: as the caller says.
    unsafe {
        while !(*array).is_null() {
            all.push(CStr::from_ptr(*array).to_owned());
            array = array.add(1);
        }
    }
    all
}

/// Pointers to strings, and null.
pub(super) fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|one| one.as_ptr()).chain([std::ptr::null()]).collect()
}

/// What the program's variables become for another image: its own, and the runner's.
pub(super) fn environment(program: Vec<CString>, inherited: &str) -> Result<Vec<CString>, c_int> {
    let mut all = program;
    if let Some(emulator) = std::env::var_os(runner::EMULATOR) {
        let variable = [runner::EMULATOR.as_bytes(), b"=", emulator.as_bytes()].concat();
        all.push(CString::new(variable).map_err(|_| error::EINVAL)?);
    }
    if !inherited.is_empty() {
        let variable = format!("{}={inherited}", runner::INHERITED);
        all.push(CString::new(variable).map_err(|_| error::EINVAL)?);
    }
    Ok(all)
}

unsafe extern "C" fn execv(program: *const c_char, words: *const *const c_char) -> c_int {
    mediated!("SYS_execve", unsafe {
        crate::libsystem::confined::denies_path("process-exec", program)
    });
    // SAFETY: the caller's strings.
    let (program, words) = unsafe { (CStr::from_ptr(program), strings(words)) };
    set(execute(program, words));
    -1
}

unsafe extern "C" fn execvp(program: *const c_char, words: *const *const c_char) -> c_int {
    mediated!("SYS_execve", unsafe {
        crate::libsystem::confined::denies_path("process-exec", program)
    });
    // SAFETY: the caller's strings.
    let (program, words) = unsafe { (CStr::from_ptr(program), strings(words)) };
    // SAFETY: the program's variables are a null-terminated array.
    let variables = unsafe { strings(arguments::current_environment()) };
    let path = variables.iter().find_map(|one| one.to_bytes().strip_prefix(b"PATH="));
    match search(program, path) {
        Ok(program) => set(execute(&program, words)),
        Err(errno) => set(errno),
    }
    -1
}

/// Replaces the image of this process; gives why it could not be. It allocates: under glibc that may be done in the
/// child of a process with threads.
fn execute(program: &CStr, words: Vec<CString>) -> c_int {
    // SAFETY: the program's variables are a null-terminated array.
    let variables = unsafe { strings(arguments::current_environment()) };
    let prepared = Image::of(program, words).and_then(|image| {
        let inherited = mach_kernel::inherit(None)?;
        Ok((image, environment(variables, &inherited.text)?, inherited.descriptors))
    });
    let (image, variables, descriptors) = match prepared {
        Ok(prepared) => prepared,
        Err(errno) => return errno,
    };
    kqueue::close_on_exec();
    for fd in descriptors {
        // SAFETY: plain numbers.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    }
    let (words, variables) = (pointers(&image.words), pointers(&variables));
    // SAFETY: strings that end in NUL and arrays that end in null.
    unsafe {
        libc::execve(image.file.as_ptr(), words.as_ptr(), variables.as_ptr());
        from_linux(*libc::__errno_location())
    }
}
