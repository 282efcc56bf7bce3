//! Says what a fault of memory was, or which forbidden system call was made, before the process ends by its
//! signal.
//!
//! The runtime has a handler of its own for SIGSEGV and SIGBUS, which looks for a stack overflow and
//! otherwise puts the default back by a call, faults again and says nothing. The sandbox forbids that call, so
//! that a process whose guest's memory was shortened seemed to have ended by a forbidden call. This
//! handler says on standard error what was accessed and returns; the kernel has put the default back when it
//! called it (SA_RESETHAND), so the access is made again and ends the process by the signal that it is.
//!
//! A forbidden call raises SIGSYS instead of being made ([`sandbox_profiles::confine`]). The kernel tells
//! nobody but this process which call it was, so its handler writes the number as a last word. The default is
//! back by then, and SIGSYS blocked: the next forbidden call, which the handler makes at once, ends the process
//! without asking it. That is also what happens where there is no handler, where SIGSYS is blocked, and when
//! the handler was used up before.
//!
//! What is said is this process's own word. One that was taken over can come by its own handler once, if it
//! has moved the stack for signals into memory that somebody else writes meanwhile, and say something else or
//! nothing; the call was not made, and the next one ends it. What it cannot do is make the call, or install
//! another handler.

mod places;

use std::ffi::{c_int, c_void};
use std::fmt::{self, Write as _};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use ipc::wire::common::{FORBIDDEN_CALL, MEMORY_FAULT};

pub(crate) use places::Place;

/// An address in the stack, near to where it begins.
static STACK: AtomicUsize = AtomicUsize::new(0);
/// How far the stack reaches below that: what it may grow to, and the gap that the kernel leaves.
const STACK_REACH: usize = (8 << 20) + (1 << 20);

/// A handler with SA_SIGINFO.
type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Has this process say what a fault of memory was, or which forbidden call it made.
///
/// # Errors
/// What the system reports.
pub(crate) fn report_faults() -> io::Result<()> {
    let here = 0u8;
    STACK.store((&raw const here).addr(), Ordering::Relaxed);
    let handlers: [(c_int, Handler); 3] =
        [(libc::SIGBUS, fault), (libc::SIGSEGV, fault), (libc::SIGSYS, forbidden)];
    for (signal, handler) in handlers {
        // SAFETY: a zeroed sigaction is valid, with an empty mask; the handlers only call what is
        // async-signal-safe.
        let installed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as libc::sighandler_t;
            // On the runtime's stack for signals: the other one may have overflowed.
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        };
        if installed != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A line, in memory that is there already: nothing may be allocated in a handler.
struct Line {
    text: [u8; 240],
    length: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let rest = self.text.get_mut(self.length..).ok_or(fmt::Error)?;
        let into = rest.get_mut(..text.len()).ok_or(fmt::Error)?;
        into.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}

extern "C" fn fault(signal: c_int, information: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO what it knows, which lives through the call.
    let (address, code) = unsafe { ((*information).si_addr().addr(), (*information).si_code) };
    let mut line = Line { text: [0; 240], length: 0 };
    // What does not fit is not said.
    let _ = describe(&mut line, signal, code, address);
    // SAFETY: write and _exit are async-signal-safe; the line lives through the call.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.text.as_ptr().cast(), line.length);
        if code <= 0 {
            // Nothing is wrong here that would happen again.
            libc::_exit(128 + signal);
        }
    }
}

/// What the kernel tells a handler of SIGSYS: `siginfo_t` as its 64-bit systems have it, of which the C
/// library's declaration leaves this part unnamed.
#[repr(C)]
struct Refused {
    signal: c_int,
    error: c_int,
    code: c_int,
    unused: c_int,
    call_address: *mut c_void,
    number: c_int,
    architecture: u32,
}

const _: () = assert!(
    size_of::<Refused>() <= size_of::<libc::siginfo_t>() && cfg!(target_pointer_width = "64")
);

/// What `code` is of a call that a filter refused.
const SYS_SECCOMP: c_int = 1;

extern "C" fn forbidden(signal: c_int, information: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO what it knows, which lives through the call. A
    // siginfo_t is at least as long as this part of it, as checked above, and any bytes are a valid one.
    let (code, number) = unsafe {
        let refused = information.cast::<Refused>();
        ((*refused).code, (*refused).number)
    };
    let mut line = Line { text: [0; 240], length: 0 };
    if code == SYS_SECCOMP {
        // As the kernel compares it: x32's have their own bit. It fits.
        let _ = writeln!(line, "{FORBIDDEN_CALL}{}", number.cast_unsigned());
    }
    // SAFETY: write, a system call and _exit are async-signal-safe; the line lives through the call. The call
    // names no process, so it does nothing even where no filter is installed yet.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.text.as_ptr().cast(), line.length);
        // Forbidden as well: the end, by SIGSYS.
        libc::syscall(libc::SYS_tgkill, 0, 0, 0);
        libc::_exit(128 + signal);
    }
}

/// Whole lines only.
fn describe(line: &mut Line, signal: c_int, code: c_int, address: usize) -> fmt::Result {
    if code <= 0 {
        return writeln!(line, "{MEMORY_FAULT}none: signal {signal} was sent to this process");
    }
    write!(line, "{MEMORY_FAULT}address {address:#x}: ")?;
    let stack = STACK.load(Ordering::Relaxed);
    if let Some(guest) = places::guest_address(address) {
        writeln!(
            line,
            "guest memory at {guest:#x} is not there: what it is mapped of was shortened"
        )
    } else if signal == libc::SIGBUS {
        writeln!(line, "what is mapped there is not there: past the end of it, or it was shortened")
    } else if (stack.saturating_sub(STACK_REACH)..stack).contains(&address) {
        writeln!(line, "the stack is full")
    } else {
        writeln!(line, "nothing is mapped there, or not for such an access")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(signal: c_int, code: c_int, address: usize) -> String {
        let mut line = Line { text: [0; 240], length: 0 };
        describe(&mut line, signal, code, address).unwrap();
        String::from_utf8(line.text[..line.length].to_vec()).unwrap()
    }

    #[test]
    fn a_fault_is_told_as_what_it_is_in_one_line() {
        const ADRERR: c_int = 2;
        let at = 0x7000_0000_0000;
        let place = places::Place::new(at, 4096, 0x8000_0000);
        let guest = said(libc::SIGBUS, ADRERR, at + 0x10);
        assert!(guest.contains("guest memory at 0x80000010 is not there"), "{guest}");
        drop(place);
        let other = said(libc::SIGBUS, ADRERR, at + 0x10);
        assert!(other.contains("0x700000000010: ") && other.contains("past the end"), "{other}");
        assert!(said(libc::SIGBUS, 0, 0).contains("signal 7 was sent"));
        assert!(said(libc::SIGSEGV, 1, 0).contains("nothing is mapped there"));
        STACK.store(0x7fff_0000_0000, Ordering::Relaxed);
        assert!(said(libc::SIGSEGV, 1, 0x7ffe_ff80_0000).contains("the stack is full"));
        for line in [guest, other] {
            assert!(line.starts_with(MEMORY_FAULT) && line.ends_with('\n'), "{line}");
        }
    }
}
