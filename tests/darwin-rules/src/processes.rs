//! Processes: how their ends are seen.

use crate::calls::errno;

fn watch(queue: i32, process: i32) -> i32 {
    let change = libc::kevent {
        ident: usize::try_from(process).unwrap(),
        filter: libc::EVFILT_PROC,
        flags: libc::EV_ADD,
        fflags: libc::NOTE_EXIT,
        data: 0,
        udata: std::ptr::null_mut(),
    };
    // SAFETY: one change of this function's own.
    unsafe { libc::kevent(queue, &raw const change, 1, std::ptr::null_mut(), 0, std::ptr::null()) }
}

/// `bsd/kern/kern_event.c`, filt_procattach: a process that has ended is not found, although nobody waited for it.
#[test]
fn a_process_that_has_ended_cannot_be_watched() {
    // SAFETY: the child ends at once; plain numbers and places of this test's own.
    unsafe {
        let queue = libc::kqueue();
        let mut pipe = [0; 2];
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        let child = libc::fork();
        if child == 0 {
            libc::close(pipe[1]);
            libc::read(pipe[0], [0u8; 1].as_mut_ptr().cast(), 1);
            libc::_exit(3);
        }
        assert_eq!(watch(queue, child), 0);
        libc::close(pipe[1]);
        let mut event: libc::kevent = std::mem::zeroed();
        let come = libc::kevent(queue, std::ptr::null(), 0, &raw mut event, 1, std::ptr::null());
        assert_eq!((come, event.fflags & libc::NOTE_EXIT), (1, libc::NOTE_EXIT));
        assert_eq!((watch(queue, child), errno()), (-1, libc::ESRCH));
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 3));
        libc::close(pipe[0]);
        libc::close(queue);
    }
}

/// `bsd/sys/signal.h`, `bsd/sys/wait.h`: signals have other numbers, also in a status.
#[test]
fn a_status_names_darwins_signals() {
    // SAFETY: the child waits to be stopped and killed; plain numbers and places of this test's own.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            loop {
                libc::pause();
            }
        }
        let mut status = 0;
        assert_eq!(libc::kill(child, 17), 0);
        assert_eq!(libc::waitpid(child, &raw mut status, libc::WUNTRACED), child);
        assert_eq!((libc::WIFSTOPPED(status), libc::WSTOPSIG(status)), (true, 17));
        assert_eq!(libc::kill(child, 30), 0);
        assert_eq!(libc::kill(child, 19), 0);
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        assert_eq!((libc::WIFSIGNALED(status), libc::WTERMSIG(status)), (true, 30));
    }
}

/// libunwind-201, `src/CompactUnwinder.hpp`: what is thrown is caught, by way of the image's own tables.
#[test]
fn a_panic_is_caught() {
    let caught = std::panic::catch_unwind(|| panic!("on purpose"));
    assert_eq!(*caught.unwrap_err().downcast::<&str>().unwrap(), "on purpose");
}
