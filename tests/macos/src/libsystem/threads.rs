//! Threads (libpthread-535): glibc's, with Darwin's attributes.

use std::ffi::{CStr, c_char, c_int, c_long, c_void};

use darwin_abi::{Symbol, error, from_linux, symbols};

use super::page;

/// The symbols of this file.
pub(super) const SYMBOLS: &[Symbol] = symbols! {
    "_pthread_create" => create,
    "_pthread_detach" => detach,
    "_pthread_join" => join,
    "_pthread_self" => libc::pthread_self,
    "_pthread_setname_np" => setname,
    "_pthread_threadid_np" => threadid,
    "_pthread_get_stackaddr_np" => stack_address,
    "_pthread_get_stacksize_np" => stack_size,
    "_pthread_attr_init" => attribute_init,
    "_pthread_attr_destroy" => attribute_destroy,
    "_pthread_attr_setstacksize" => attribute_setstacksize,
    "_sched_yield" => libc::sched_yield,
};

const SIGNATURE: c_long = 0x5448_5244;

/// Of 64 bytes.
#[repr(C)]
struct Attribute {
    signature: c_long,
    stack_size: usize,
    _rest: [u64; 6],
}

const _: () = assert!(size_of::<Attribute>() == 64);

unsafe extern "C" fn attribute_init(attribute: *mut Attribute) -> c_int {
    const DEFAULT: usize = 512 << 10;
    let new = Attribute { signature: SIGNATURE, stack_size: DEFAULT, _rest: [0; 6] };
    // SAFETY: the caller's memory.
    unsafe { attribute.write(new) };
    0
}

extern "C" fn attribute_destroy(attribute: &mut Attribute) -> c_int {
    attribute.signature = 0;
    0
}

/// Whole pages, at least one.
extern "C" fn attribute_setstacksize(attribute: &mut Attribute, size: usize) -> c_int {
    if attribute.signature != SIGNATURE || size < page::SIZE || !size.is_multiple_of(page::SIZE) {
        return error::EINVAL;
    }
    attribute.stack_size = size;
    0
}

type Start = extern "C" fn(*mut c_void) -> *mut c_void;

unsafe extern "C" fn create(
    thread: *mut libc::pthread_t,
    attribute: *const Attribute,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    /// The runner's own frames lie on the same stack.
    const MORE: usize = 256 << 10;
    // SAFETY: attributes of this function's own; start and argument are the caller's.
    unsafe {
        let mut linux: libc::pthread_attr_t = std::mem::zeroed();
        libc::pthread_attr_init(&raw mut linux);
        if let Some(attribute) = attribute.as_ref() {
            libc::pthread_attr_setstacksize(&raw mut linux, attribute.stack_size + MORE);
        }
        let made = libc::pthread_create(thread, &raw const linux, start, argument);
        libc::pthread_attr_destroy(&raw mut linux);
        from_linux(made)
    }
}

extern "C" fn detach(thread: libc::pthread_t) -> c_int {
    // SAFETY: the caller's thread.
    from_linux(unsafe { libc::pthread_detach(thread) })
}

unsafe extern "C" fn join(thread: libc::pthread_t, value: *mut *mut c_void) -> c_int {
    // SAFETY: the caller's thread and place.
    from_linux(unsafe { libc::pthread_join(thread, value) })
}

/// Names the calling thread. Linux keeps 15 bytes of it.
/// The name of a thread is not that of its process, which Linux has as the name of the first one.
unsafe extern "C" fn setname(name: *const c_char) -> c_int {
    const LONGEST: usize = 63;
    // SAFETY: the caller's string, and one of this function's own.
    unsafe {
        let name = CStr::from_ptr(name).to_bytes();
        if name.len() > LONGEST {
            return error::ENAMETOOLONG;
        }
        if libc::gettid() == libc::getpid() {
            return 0;
        }
        let mut short = [0; 16];
        let length = name.len().min(15);
        short[..length].copy_from_slice(&name[..length]);
        from_linux(libc::pthread_setname_np(libc::pthread_self(), short.as_ptr().cast()))
    }
}

/// The calling thread's number.
unsafe extern "C" fn threadid(thread: libc::pthread_t, number: *mut u64) -> c_int {
    // SAFETY: the caller's place.
    unsafe {
        if thread != 0 && thread != libc::pthread_self() {
            super::runner::lacks(format_args!("pthread_threadid_np of another thread"));
        }
        number.write(libc::gettid() as u64);
    }
    0
}

/// Where a thread's stack is, and its size.
fn stack(thread: libc::pthread_t) -> (usize, usize) {
    // SAFETY: the caller's thread; places of this function's.
    unsafe {
        let mut attribute: libc::pthread_attr_t = std::mem::zeroed();
        if libc::pthread_getattr_np(thread, &raw mut attribute) != 0 {
            return (0, 0);
        }
        let (mut start, mut size) = (std::ptr::null_mut(), 0);
        libc::pthread_attr_getstack(&raw const attribute, &raw mut start, &raw mut size);
        libc::pthread_attr_destroy(&raw mut attribute);
        (start as usize, size)
    }
}

/// The end that the stack grows down from.
extern "C" fn stack_address(thread: libc::pthread_t) -> usize {
    let (start, size) = stack(thread);
    start + size
}

extern "C" fn stack_size(thread: libc::pthread_t) -> usize {
    stack(thread).1
}
