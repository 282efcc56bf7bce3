//! `posix_spawn` (xnu-11417.101.15, `bsd/kern/kern_exec.c`; Libsyscall, `wrappers/spawn`).

use std::ffi::{CStr, CString, c_char, c_int, c_short};
use std::time::Duration;

use darwin_abi::{HIDDEN, Symbol, error, from_linux, symbols};

use super::process::{Image, environment, pointers, search, strings};
use super::runner::lacks;
use super::{kqueue, signals};

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! {
    "_posix_spawn" => posix_spawn,
    "_posix_spawnp" => posix_spawnp,
    "_posix_spawnattr_init" => attribute_init,
    "_posix_spawnattr_destroy" => attribute_destroy,
    "_posix_spawnattr_setflags" => setflags,
    "_posix_spawnattr_setpgroup" => setpgroup,
    "_posix_spawnattr_setsigdefault" => setsigdefault,
    "_posix_spawnattr_setsigmask" => setsigmask,
    "_posix_spawnattr_set_registered_ports_np" => set_registered_ports,
    "_posix_spawn_file_actions_init" => actions_init,
    "_posix_spawn_file_actions_destroy" => actions_destroy,
    "_posix_spawn_file_actions_adddup2" => adddup2,
};

const SETPGROUP: c_int = 0x2;
const SETSIGDEF: c_int = 0x4;
const SETSIGMASK: c_int = 0x8;
const SETSID: c_int = 0x400;
const CLOEXEC_DEFAULT: c_int = 0x4000;

/// What a `posix_spawnattr_t` points to.
#[derive(Default)]
struct Attribute {
    flags: c_int,
    group: c_int,
    default: u32,
    mask: u32,
    /// Registered ports of the child: none is its own setting, and not the parent's.
    ports: Option<Vec<u32>>,
}

/// What a `posix_spawn_file_actions_t` points to: duplications, from and to.
type Actions = Vec<(c_int, c_int)>;

unsafe extern "C" fn attribute_init(to: *mut *mut Attribute) -> c_int {
    // SAFETY: the caller's place.
    unsafe { to.write(Box::into_raw(Box::default())) };
    0
}

unsafe extern "C" fn attribute_destroy(of: *mut *mut Attribute) -> c_int {
    // SAFETY: made by `attribute_init`, and given up by the caller.
    drop(unsafe { Box::from_raw(of.read()) });
    0
}

extern "C" fn setflags(of: &mut &mut Attribute, flags: c_short) -> c_int {
    let known = SETPGROUP | SETSIGDEF | SETSIGMASK | SETSID | CLOEXEC_DEFAULT;
    let flags = c_int::from(flags) & 0xffff;
    if flags & !known != 0 {
        lacks(format_args!("posix_spawn with flags {flags:#x}"));
    }
    of.flags = flags;
    0
}

extern "C" fn setpgroup(of: &mut &mut Attribute, group: c_int) -> c_int {
    of.group = group;
    0
}

extern "C" fn setsigdefault(of: &mut &mut Attribute, set: &u32) -> c_int {
    of.default = *set;
    0
}

extern "C" fn setsigmask(of: &mut &mut Attribute, set: &u32) -> c_int {
    of.mask = *set;
    0
}

/// At most three (TASK_PORT_REGISTER_MAX).
unsafe extern "C" fn set_registered_ports(
    of: &mut &mut Attribute,
    ports: *const u32,
    count: u32,
) -> c_int {
    if count > 3 {
        return error::EINVAL;
    }
    // SAFETY: the caller's array.
    of.ports = Some(unsafe { std::slice::from_raw_parts(ports, count as usize) }.to_vec());
    0
}

unsafe extern "C" fn actions_init(to: *mut *mut Actions) -> c_int {
    // SAFETY: the caller's place.
    unsafe { to.write(Box::into_raw(Box::default())) };
    0
}

unsafe extern "C" fn actions_destroy(of: *mut *mut Actions) -> c_int {
    // SAFETY: made by `actions_init`, and given up by the caller.
    drop(unsafe { Box::from_raw(of.read()) });
    0
}

extern "C" fn adddup2(of: &mut &mut Actions, from: c_int, to: c_int) -> c_int {
    if from < 0 || !(0..HIDDEN).contains(&to) {
        return error::EBADF;
    }
    of.push((from, to));
    0
}

unsafe extern "C" fn posix_spawn(
    pid: *mut c_int,
    program: *const c_char,
    actions: *const *const Actions,
    attribute: *const *const Attribute,
    words: *const *const c_char,
    variables: *const *const c_char,
) -> c_int {
    if super::confined::denies_call("SYS_posix_spawn")
        || super::confined::denies("process-fork", "")
        // SAFETY: the caller's string.
        || unsafe { super::confined::denies_path("process-exec", program) }
    {
        return error::EPERM;
    }
    // SAFETY: the caller's strings, places and arrays; null actions and attributes are none.
    let (program, actions, attribute, words, variables) = unsafe {
        (
            CStr::from_ptr(program).to_owned(),
            actions.as_ref().and_then(|one| one.as_ref()),
            attribute.as_ref().and_then(|one| one.as_ref()),
            strings(words),
            strings(variables),
        )
    };
    match spawn(&program, actions, attribute, words, variables) {
        Ok(child) => {
            if !pid.is_null() {
                // SAFETY: the caller's place.
                unsafe { pid.write(child) };
            }
            0
        }
        Err(errno) => errno,
    }
}

unsafe extern "C" fn posix_spawnp(
    pid: *mut c_int,
    program: *const c_char,
    actions: *const *const Actions,
    attribute: *const *const Attribute,
    words: *const *const c_char,
    variables: *const *const c_char,
) -> c_int {
    // SAFETY: the caller's string; the program's own variables.
    let found = unsafe {
        let own = strings(super::arguments::current_environment());
        let path = own.iter().find_map(|one| one.to_bytes().strip_prefix(b"PATH="));
        search(CStr::from_ptr(program), path)
    };
    match found {
        // SAFETY: as the caller answers for.
        Ok(found) => unsafe {
            posix_spawn(pid, found.as_ptr(), actions, attribute, words, variables)
        },
        Err(errno) => errno,
    }
}

/// Everything that the child needs, made before it is.
struct Plan<'a> {
    file: CString,
    words: Vec<*const c_char>,
    variables: Vec<*const c_char>,
    actions: &'a [(c_int, c_int)],
    attribute: &'a Attribute,
    inherited: Vec<c_int>,
    default: libc::sigset_t,
    mask: libc::sigset_t,
    /// Where the child says why it could not run its program.
    failure: c_int,
}

fn spawn(
    program: &CStr,
    actions: Option<&Actions>,
    attribute: Option<&Attribute>,
    words: Vec<CString>,
    variables: Vec<CString>,
) -> Result<c_int, c_int> {
    let none = Attribute::default();
    let attribute = attribute.unwrap_or(&none);
    let image = Image::of(program, words)?;
    let inherited = mach_kernel::inherit(attribute.ports.as_deref())?;
    let variables = environment(variables, &inherited.text)?;
    let mut plan = Plan {
        file: image.file,
        words: pointers(&image.words),
        variables: pointers(&variables),
        actions: actions.map_or(&[], Vec::as_slice),
        attribute,
        inherited: inherited.descriptors,
        default: signals::set_to_linux(attribute.default),
        mask: signals::set_to_linux(attribute.mask),
        failure: -1,
    };
    loop {
        if let Some(child) = plan.start()? {
            return Ok(child);
        }
    }
}

/// How long a child has to become its program. A fork of a process with threads may stand still for good inside
/// an emulator, on a lock of the emulator's that a thread held which the child does not have.
const BECOMING: Duration = Duration::from_secs(20);

fn last_errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// How many bytes came before the end; `None` if there is neither in time.
unsafe fn read_whole(fd: c_int, buffer: &mut [u8]) -> Option<usize> {
    let mut asked = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: a place of this function's own.
        let ready = unsafe { libc::poll(&raw mut asked, 1, BECOMING.as_millis() as c_int) };
        match ready {
            0 => return None,
            1 => {}
            _ => continue,
        }
        // SAFETY: the caller's descriptor and buffer.
        let count = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
        if count >= 0 || last_errno() != libc::EINTR {
            return Some(count.max(0) as usize);
        }
    }
}

impl Plan<'_> {
    /// Starts a child, which has become its program then. `None` if it stood still before it did; it is ended then,
    /// and has done nothing.
    fn start(&mut self) -> Result<Option<c_int>, c_int> {
        let mut pipe = [0; 2];
        // SAFETY: two places of this function's own.
        if unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return Err(from_linux(last_errno()));
        }
        let [read, write] = pipe.map(darwin_abi::hide);
        self.failure = write;
        let held = kqueue::hold();
        // SAFETY: the child calls only what may be called there, and does not return.
        let child = unsafe { libc::fork() };
        let forked = last_errno();
        drop(held);
        if child == 0 {
            // SAFETY: this is the child.
            unsafe { self.carry_out() };
        }
        let mut errno = 0i32.to_ne_bytes();
        // SAFETY: descriptors and a buffer of this function's own.
        let told = unsafe {
            libc::close(write);
            let told = if child < 0 { Some(0) } else { read_whole(read, &mut errno) };
            libc::close(read);
            told
        };
        if child < 0 {
            return Err(from_linux(forked));
        }
        if told == Some(0) {
            return Ok(Some(child));
        }
        // SAFETY: our own child, which has ended or will.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        match told {
            Some(_) => Err(from_linux(i32::from_ne_bytes(errno))),
            None => {
                eprintln!(
                    "macho-runner: a child stood still before it ran its program: another one is started"
                );
                Ok(None)
            }
        }
    }

    /// Becomes the program, in the child.
    ///
    /// # Safety
    ///
    /// In a child that was forked. Nothing is allocated.
    unsafe fn carry_out(&self) -> ! {
        // SAFETY: system calls on plain numbers, and on memory that was made before the fork.
        unsafe {
            // One that stands still here must not outlive its parent, of whose descriptors it has copies.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            let errno = if self.prepare() {
                libc::prctl(libc::PR_SET_PDEATHSIG, 0);
                libc::execve(self.file.as_ptr(), self.words.as_ptr(), self.variables.as_ptr());
                *libc::__errno_location()
            } else {
                *libc::__errno_location()
            };
            libc::write(self.failure, errno.to_ne_bytes().as_ptr().cast(), 4);
            libc::_exit(127)
        }
    }

    unsafe fn prepare(&self) -> bool {
        let flags = self.attribute.flags;
        // SAFETY: as above.
        unsafe {
            if flags & SETSID != 0 && libc::setsid() < 0 {
                return false;
            }
            if flags & SETPGROUP != 0 && libc::setpgid(0, self.attribute.group) != 0 {
                return false;
            }
            if flags & SETSIGDEF != 0 {
                for signal in 1..32 {
                    if libc::sigismember(&raw const self.default, signal) == 1 {
                        libc::signal(signal, libc::SIG_DFL);
                    }
                }
            }
            // Before anything else gets a queue's number.
            kqueue::close_on_exec();
            for (from, to) in self.actions {
                if from == to {
                    // Asked for by name, so it stays open.
                    if libc::fcntl(*from, libc::F_SETFD, 0) < 0 {
                        return false;
                    }
                } else if libc::dup2(*from, *to) < 0 {
                    return false;
                }
            }
            if flags & CLOEXEC_DEFAULT != 0 {
                for fd in 0..HIDDEN {
                    if !self.actions.iter().any(|(_, to)| *to == fd) {
                        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                    }
                }
            }
            for fd in &self.inherited {
                libc::fcntl(*fd, libc::F_SETFD, 0);
            }
            if flags & SETSIGMASK != 0 {
                libc::sigprocmask(libc::SIG_SETMASK, &raw const self.mask, std::ptr::null_mut());
            }
            true
        }
    }
}
