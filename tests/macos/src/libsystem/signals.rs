//! Signals: Darwin's numbers, actions and sets (xnu-11417.101.15, `bsd/sys/signal.h`).

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::libsystem::confined::mediated;
use darwin_abi::{Symbol, error, fail, result, symbols};

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! {
    "_sigaction" => sigaction,
    "_signal" => signal,
    "_sigaltstack" => sigaltstack,
    "_sigemptyset" => sigemptyset,
    "_sigfillset" => sigfillset,
    "_sigaddset" => sigaddset,
    "_kill" => kill,
    "_pause" => pause,
};

/// How many there are, and one more.
const COUNT: usize = 32;

/// Linux's number for each of Darwin's; 0 where Linux has none (SIGEMT, SIGINFO).
const TO_LINUX: [c_int; COUNT] = [
    0,
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    0,
    libc::SIGFPE,
    libc::SIGKILL,
    libc::SIGBUS,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGPIPE,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGURG,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGCONT,
    libc::SIGCHLD,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGIO,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGWINCH,
    0,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// What the program set for each signal: 0 and 1 are SIG_DFL and SIG_IGN.
static HANDLERS: [AtomicUsize; COUNT] = [const { AtomicUsize::new(0) }; COUNT];

pub(super) fn to_linux(darwin: c_int) -> Option<c_int> {
    let linux = *TO_LINUX.get(usize::try_from(darwin).ok()?)?;
    (linux != 0).then_some(linux)
}

pub(super) fn from_linux(linux: c_int) -> c_int {
    TO_LINUX.iter().position(|one| *one == linux && linux != 0).map_or(0, |at| at as c_int)
}

/// Whether SIGPIPE has its default action, which ends the process.
pub(super) fn pipe_kills() -> bool {
    // SAFETY: a place for what is asked.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut now);
        now.sa_sigaction != libc::SIG_IGN
    }
}

/// `siginfo_t`, of 104 bytes.
#[repr(C)]
struct Info {
    signal: c_int,
    error: c_int,
    code: c_int,
    process: i32,
    user: u32,
    status: c_int,
    address: usize,
    value: usize,
    band: i64,
    _rest: [u64; 7],
}

const _: () = assert!(size_of::<Info>() == 104);

type Handler = unsafe extern "C" fn(c_int, *mut Info, *mut c_void);

/// What Linux calls: passes the signal on with Darwin's number and description.
///
/// The context of the machine is not passed on: it is all zeros, of the size of `ucontext_t`.
unsafe extern "C" fn deliver(linux: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    let signal = from_linux(linux);
    let handler = HANDLERS[signal as usize].load(Ordering::SeqCst);
    if handler <= 1 {
        return;
    }
    // SAFETY: the kernel's description, of which each kind of signal has the fields that are read; errno is this
    // thread's, and put back; the program's handler takes these arguments, or fewer.
    unsafe {
        let errno = *libc::__errno_location();
        let of_fault = matches!(linux, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE);
        let mut description = Info {
            signal,
            error: 0,
            code: (*info).si_code,
            process: if of_fault { 0 } else { (*info).si_pid() },
            user: if of_fault { 0 } else { (*info).si_uid() },
            status: if linux == libc::SIGCHLD { (*info).si_status() } else { 0 },
            address: if of_fault { (*info).si_addr() as usize } else { 0 },
            value: 0,
            band: 0,
            _rest: [0; 7],
        };
        let mut context = [0u64; 128];
        let handler: Handler = std::mem::transmute(handler);
        handler(signal, &raw mut description, context.as_mut_ptr().cast());
        *libc::__errno_location() = errno;
    }
}

/// `struct sigaction`, as programs have it.
#[repr(C)]
struct Action {
    handler: usize,
    mask: u32,
    flags: c_int,
}

/// SA_* flags: Darwin's, Linux's.
const FLAGS: [(c_int, c_int); 7] = [
    (0x1, libc::SA_ONSTACK),
    (0x2, libc::SA_RESTART),
    (0x4, libc::SA_RESETHAND),
    (0x8, libc::SA_NOCLDSTOP),
    (0x10, libc::SA_NODEFER),
    (0x20, libc::SA_NOCLDWAIT),
    (0x40, libc::SA_SIGINFO),
];

/// Linux's set for one of Darwin's, in which signal n is bit n - 1.
pub(super) fn set_to_linux(darwin: u32) -> libc::sigset_t {
    // SAFETY: a set of this function's own; valid numbers.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for (number, linux) in TO_LINUX.iter().enumerate().skip(1) {
            if *linux != 0 && darwin >> (number - 1) & 1 == 1 {
                libc::sigaddset(&raw mut set, *linux);
            }
        }
        set
    }
}

fn set_from_linux(set: &libc::sigset_t) -> u32 {
    let numbers = TO_LINUX.iter().enumerate().skip(1);
    // SAFETY: a set of the caller's; valid numbers.
    let members = numbers.filter(|(_, linux)| {
        **linux != 0 && unsafe { libc::sigismember(std::ptr::from_ref(set), **linux) } == 1
    });
    members.fold(0, |all, (number, _)| all | 1 << (number - 1))
}

unsafe extern "C" fn sigaction(signal: c_int, new: *const Action, old: *mut Action) -> c_int {
    mediated!("SYS_sigaction");
    let Some(linux) = to_linux(signal) else { return fail(error::EINVAL) };
    let handler = &HANDLERS[signal as usize];
    // SAFETY: the caller's places, which may be null; this function's own.
    unsafe {
        let mut was: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(linux, std::ptr::null(), &raw mut was) != 0 {
            return result(-1);
        }
        if let Some(old) = old.as_mut() {
            let flags = FLAGS.iter().filter(|(_, linux)| was.sa_flags & linux != 0);
            old.flags = flags.fold(0, |all, (darwin, _)| all | darwin);
            old.mask = set_from_linux(&was.sa_mask);
            old.handler = match was.sa_sigaction {
                libc::SIG_DFL | libc::SIG_IGN => was.sa_sigaction,
                _ => handler.load(Ordering::SeqCst),
            };
        }
        let Some(new) = new.as_ref() else { return 0 };
        let mut action: libc::sigaction = std::mem::zeroed();
        let flags = FLAGS.iter().filter(|(darwin, _)| new.flags & darwin != 0);
        action.sa_flags = flags.fold(0, |all, (_, linux)| all | linux);
        action.sa_mask = set_to_linux(new.mask);
        action.sa_sigaction = new.handler;
        if new.handler > 1 {
            handler.store(new.handler, Ordering::SeqCst);
            action.sa_flags |= libc::SA_SIGINFO;
            action.sa_sigaction = deliver as *const () as usize;
        }
        let done = result(libc::sigaction(linux, &raw const action, std::ptr::null_mut()));
        if done == 0 {
            handler.store(new.handler, Ordering::SeqCst);
        }
        done
    }
}

/// The handler that was there; SIG_ERR is -1.
unsafe extern "C" fn signal(number: c_int, handler: usize) -> usize {
    const RESTART: c_int = 0x2;
    let new = Action { handler, mask: 0, flags: RESTART };
    let mut old = Action { handler: 0, mask: 0, flags: 0 };
    // SAFETY: places of this function's own.
    match unsafe { sigaction(number, &raw const new, &raw mut old) } {
        0 => old.handler,
        _ => usize::MAX,
    }
}

/// `stack_t`.
#[repr(C)]
struct Stack {
    start: *mut c_void,
    size: usize,
    flags: c_int,
}

/// SS_DISABLE is 4 in Darwin and 2 in Linux.
unsafe extern "C" fn sigaltstack(new: *const Stack, old: *mut Stack) -> c_int {
    mediated!("SYS_sigaltstack");
    const DISABLE: c_int = 4;
    // SAFETY: the caller's places, which may be null; this function's own.
    unsafe {
        let convert = |stack: &Stack| libc::stack_t {
            ss_sp: stack.start,
            ss_flags: if stack.flags & DISABLE != 0 { libc::SS_DISABLE } else { 0 },
            ss_size: stack.size,
        };
        let new = new.as_ref().map(convert);
        let new = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let mut was: libc::stack_t = std::mem::zeroed();
        let done = result(libc::sigaltstack(new, &raw mut was));
        if let (0, Some(old)) = (done, old.as_mut()) {
            let disabled = was.ss_flags & libc::SS_DISABLE != 0;
            old.start = was.ss_sp;
            old.size = was.ss_size;
            old.flags = if disabled { DISABLE } else { was.ss_flags & libc::SS_ONSTACK };
        }
        done
    }
}

extern "C" fn sigemptyset(set: &mut u32) -> c_int {
    *set = 0;
    0
}

extern "C" fn sigfillset(set: &mut u32) -> c_int {
    *set = u32::MAX;
    0
}

extern "C" fn sigaddset(set: &mut u32, signal: c_int) -> c_int {
    if !(1..COUNT as c_int + 1).contains(&signal) {
        return fail(error::EINVAL);
    }
    *set |= 1 << (signal - 1);
    0
}

/// Whose process it is, to the sandbox.
fn whose(process: c_int) -> &'static str {
    if u32::try_from(process) == Ok(std::process::id()) { "self" } else { "other" }
}

extern "C" fn kill(process: c_int, signal: c_int) -> c_int {
    mediated!("SYS_kill", crate::libsystem::confined::denies("signal", whose(process)));
    let Some(linux) = (if signal == 0 { Some(0) } else { to_linux(signal) }) else {
        return fail(error::EINVAL);
    };
    // SAFETY: plain numbers.
    result(unsafe { libc::kill(process, linux) })
}

extern "C" fn pause() -> c_int {
    // SAFETY: nothing is passed.
    result(unsafe { libc::pause() })
}
