//! Copies that the kernel makes: a page that is not there is a code, and no signal.

use std::cell::RefCell;
use std::os::fd::{AsRawFd as _, OwnedFd};

use crate::client::reserved;
use crate::codes::{Code, Name, kern};
use crate::ports::{own_task, put};

thread_local! {
    /// What bytes go through: the Linux kernel reads and writes the memory, and says so where it cannot.
    static PIPE: RefCell<Option<(OwnedFd, OwnedFd)>> = const { RefCell::new(None) };
}

/// Most that is in the pipe at once.
const STEP: usize = 64 * 1024;

enum Failed {
    From,
    To,
}

fn copy(from: u64, to: u64, length: u64) -> Result<(), Failed> {
    PIPE.with(|pipe| {
        let mut slot = pipe.borrow_mut();
        let mut copied = 0;
        while copied < length {
            let (read, write) = slot.get_or_insert_with(|| match rustix::pipe::pipe() {
                Ok((read, write)) => (reserved(read), reserved(write)),
                Err(error) => {
                    crate::fail::not_simulated(&format!("a copy without a pipe ({error})"))
                }
            });
            let step = usize::try_from(length - copied).unwrap_or(STEP).min(STEP);
            // SAFETY: the kernel reads what is mapped there, and says so where it cannot.
            let came = unsafe {
                libc::write(write.as_raw_fd(), (from + copied) as *const libc::c_void, step)
            };
            let Ok(came) = u64::try_from(came) else { return Err(Failed::From) };
            let mut taken = 0;
            while taken < came {
                let left = usize::try_from(came - taken).unwrap_or_default();
                let at = (to + copied + taken) as *mut libc::c_void;
                // SAFETY: the kernel writes what is mapped there, and says so where it cannot.
                let put = unsafe { libc::read(read.as_raw_fd(), at, left) };
                match u64::try_from(put) {
                    Ok(put) if put > 0 => taken += put,
                    _ => {
                        // With what is in it the pipe is of no more use.
                        *slot = None;
                        return Err(Failed::To);
                    }
                }
            }
            copied += came;
        }
        Ok(())
    })
}

/// `mach_vm_read_overwrite` (osfmk/vm/vm_user.c).
pub(crate) extern "C" fn read_overwrite(
    task: Name,
    address: u64,
    size: u64,
    to: u64,
    copied: *mut u64,
) -> Code {
    own_task(task, "mach_vm_read_overwrite");
    if let Err(code) = crate::sandbox::routine("mach_vm_read_overwrite") {
        return code;
    }
    match copy(address, to, size) {
        Ok(()) => {
            // SAFETY: the Darwin call's place for a size.
            unsafe { put(copied, size) };
            kern::SUCCESS
        }
        Err(_) => kern::INVALID_ADDRESS,
    }
}

/// `mach_vm_write`: what is mapped and cannot be written is KERN_PROTECTION_FAILURE.
pub(crate) extern "C" fn write(task: Name, address: u64, from: usize, count: u32) -> Code {
    own_task(task, "mach_vm_write");
    if let Err(code) = crate::sandbox::routine("mach_vm_write") {
        return code;
    }
    let (start, end) = (address / 4096 * 4096, address + u64::from(count));
    match copy(from as u64, address, count.into()) {
        Ok(()) => kern::SUCCESS,
        Err(Failed::To) if crate::space::is_mapped(start, end) => kern::PROTECTION_FAILURE,
        Err(_) => kern::INVALID_ADDRESS,
    }
}
