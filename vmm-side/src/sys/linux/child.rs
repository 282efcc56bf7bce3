//! The child between clone and exec, in the memory of its parent, which waits.
#![expect(unsafe_code, reason = "only system calls may be made here")]

use std::ffi::{CString, c_char, c_int, c_void};

use crate::sys::Step;

/// Everything the child needs between clone and exec, made before: it shares this memory and may
/// not allocate.
pub(super) struct Context {
    pub(super) program: CString,
    pub(super) arguments: Vec<*const c_char>,
    pub(super) environment: Vec<*const c_char>,
    pub(super) descriptors: [(c_int, c_int); 4],
    /// Files to write first: the maps of the user namespace.
    pub(super) maps: Vec<(CString, Vec<u8>)>,
    /// Left by a child that could not go on: at what, and its errno.
    pub(super) failed: Option<(Step, c_int)>,
}

/// The child between clone and exec. Only system calls; every failure ends it, with the step and the
/// errno left in the context, which the parent reads.
pub(super) extern "C" fn run(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the context that the parent passed; the parent is suspended until
    // exec or _exit, so this is the only user. All pointers in it are to memory of the parent that
    // lives until then, and the pointer arrays end in null. The calls are async-signal-safe.
    unsafe {
        let context = &mut *argument.cast::<Context>();
        let step = prepare_and_exec(context);
        context.failed = Some((step, *libc::__errno_location()));
        libc::_exit(127)
    }
}

/// Comes back only when a step failed: which; errno says why.
///
/// # Safety
/// As in [`run`], which is its only caller.
unsafe fn prepare_and_exec(context: &Context) -> Step {
    for (file, content) in &context.maps {
        // SAFETY: a null-terminated path and a buffer of the length given.
        unsafe {
            let fd = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd < 0 || libc::write(fd, content.as_ptr().cast(), content.len()) < 0 {
                return Step::MapIds;
            }
            libc::close(fd);
        }
    }
    for (from, to) in context.descriptors {
        // SAFETY: plain descriptor numbers; `from` is above 9, so CLOEXEC is cleared on `to`.
        if unsafe { libc::dup2(from, to) } < 0 {
            return Step::Install;
        }
    }
    // SAFETY: plain numbers; an empty signal set is valid zeroed; exec gets null-terminated arrays
    // of null-terminated strings.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 4, u32::MAX, 0) < 0 {
            return Step::CloseOthers;
        }
        libc::setsid();
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::execve(
            context.program.as_ptr(),
            context.arguments.as_ptr(),
            context.environment.as_ptr(),
        );
    }
    Step::Run
}
