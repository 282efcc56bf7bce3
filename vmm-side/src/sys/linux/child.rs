//! The child between clone and exec, in the memory of its parent, which waits.
#![expect(unsafe_code, reason = "only system calls may be made here")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::sys::Step;

/// Everything the child needs between clone and exec, made before: it shares this memory and may
/// not allocate.
pub(super) struct Context {
    pub(super) program: CString,
    /// The file that is run in the place of that path.
    pub(super) file: Option<c_int>,
    pub(super) arguments: Vec<*const c_char>,
    pub(super) environment: Vec<*const c_char>,
    pub(super) descriptors: [(c_int, c_int); 4],
    /// Files to write first: the maps of the user namespace.
    pub(super) maps: Vec<(CString, Vec<u8>)>,
    /// Where its parent writes these maps instead: readable once it has. The child is the second id
    /// of its namespace then, and acts as the first one until it has opened what it needs. And the other end of that,
    /// which the child closes: it ends when its parent does before.
    pub(super) gate: Option<(c_int, c_int)>,
    /// Left by a child that could not go on: at what, and its errno.
    pub(super) failed: Option<(Step, c_int)>,
}

/// Makes a process in control group `group`, on `stack`, that shares our memory and has us wait, as
/// [`libc::clone`] does without a group. Entering one later would take milliseconds.
///
/// # Safety
/// `stack` is of nobody else, and `argument` is what [`run`] is given; both stay until the child has run
/// exec or ended, which this call waits for.
pub(super) unsafe fn clone_into(
    group: BorrowedFd<'_>,
    stack: &mut [u128],
    flags: c_int,
    argument: *mut c_void,
    pidfd: *mut c_int,
) -> io::Result<c_int> {
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: all zeros ask for nothing.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    // The signal at its end is an argument of its own here.
    arguments.flags = u64::from((flags & !libc::SIGCHLD).unsigned_abs()) | INTO_CGROUP;
    // A sibling's is that of the process that makes it, and none may be asked for.
    let own = flags & libc::CLONE_PARENT == 0;
    arguments.exit_signal = if own { u64::from(libc::SIGCHLD.unsigned_abs()) } else { 0 };
    arguments.pidfd = pidfd as u64;
    arguments.stack = stack.as_mut_ptr() as u64;
    arguments.stack_size = size_of_val(stack) as u64;
    arguments.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
    // SAFETY: arguments of the size given. Ours goes on after the call as after any other. The child
    // begins behind it too, on the upper end of `stack`, 16-byte aligned, with nothing above: it only
    // calls `run` with `argument`, which both are in registers that the kernel keeps, and which ends
    // it. `run` uses our memory as the caller allows it.
    let answer = unsafe { call_clone3(&raw const arguments, run, argument) };
    let answer = i32::try_from(answer).map_err(io::Error::other)?;
    if answer < 0 { Err(io::Error::from_raw_os_error(-answer)) } else { Ok(answer) }
}

/// # Safety
/// As said in [`clone_into`], which is its only caller.
#[cfg(target_arch = "x86_64")]
unsafe fn call_clone3(
    arguments: *const libc::clone_args,
    run: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
) -> i64 {
    let answer: i64;
    // SAFETY: a system call that the caller vouches for; what it changes is declared.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => answer,
            in("rdi") arguments,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") argument,
            in("r13") run,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    answer
}

/// # Safety
/// As said in [`clone_into`], which is its only caller.
#[cfg(target_arch = "aarch64")]
unsafe fn call_clone3(
    arguments: *const libc::clone_args,
    run: extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
) -> i64 {
    let answer: i64;
    // SAFETY: a system call that the caller vouches for; what it changes is declared.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, x20",
            "blr x21",
            "brk 1",
            "2:",
            in("x8") libc::SYS_clone3,
            inlateout("x0") arguments as i64 => answer,
            in("x1") size_of::<libc::clone_args>(),
            in("x20") argument,
            in("x21") run,
        );
    }
    answer
}

/// Elsewhere a child has no control group.
///
/// # Safety
/// Nothing is done.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn call_clone3(
    _: *const libc::clone_args,
    _: extern "C" fn(*mut c_void) -> c_int,
    _: *mut c_void,
) -> i64 {
    -i64::from(libc::ENOSYS)
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
    if let Some((gate, other_end)) = context.gate {
        let mut byte = 0u8;
        // SAFETY: room for one byte. By system calls: what the library has around the others is for
        // all threads of a process. What is closed is this process's own, whose table of descriptors is a copy.
        unsafe {
            libc::syscall(libc::SYS_close, other_end);
            if libc::read(gate, (&raw mut byte).cast(), 1) != 1
                || byte != 1
                || libc::syscall(libc::SYS_setresgid, 1, 0, 0) < 0
                || libc::syscall(libc::SYS_setresuid, 1, 0, 0) < 0
            {
                return Step::MapIds;
            }
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
        // What tells a parent that does not wait that this memory is its own again must stay until exec.
        // So must the file that is run.
        let stay = context.gate.is_some() || context.file.is_some();
        let how = if stay { libc::CLOSE_RANGE_CLOEXEC } else { 0 };
        if libc::syscall(libc::SYS_close_range, 4, u32::MAX, how) < 0 {
            return Step::CloseOthers;
        }
        libc::setsid();
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        if let Some(file) = context.file {
            libc::syscall(
                libc::SYS_execveat,
                file,
                c"".as_ptr(),
                context.arguments.as_ptr(),
                context.environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
            return Step::Run;
        }
        libc::execve(
            context.program.as_ptr(),
            context.arguments.as_ptr(),
            context.environment.as_ptr(),
        );
    }
    Step::Run
}
