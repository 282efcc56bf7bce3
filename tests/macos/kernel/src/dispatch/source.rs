//! Sources of type DISPATCH_SOURCE_TYPE_MACH_RECV: the handler runs on the queue while the port has messages
//! (libdispatch src/source.c, src/event/event_kevent.c).

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use darwin_abi::Symbol;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::queue::Function;
use super::{Kind, Object, Queue, release, retain};
use crate::fail;

/// `_dispatch_source_type_mach_recv`: known by its address.
static MACH_RECV: u64 = 0;

pub(super) const SYMBOLS: &[Symbol] = darwin_abi::symbols! {
    "__dispatch_source_type_mach_recv" => &raw const MACH_RECV,
    "_dispatch_source_create" => create as extern "C" fn(_, _, _, _) -> _,
    "_dispatch_set_context" => set_context as extern "C" fn(_, _),
    "_dispatch_source_set_event_handler_f" => set_event_handler as extern "C" fn(_, _),
    "_dispatch_source_set_cancel_handler_f" => set_cancel_handler as extern "C" fn(_, _),
    "_dispatch_resume" => resume as extern "C" fn(_),
    "_dispatch_source_cancel" => cancel as extern "C" fn(_),
};

#[derive(Default)]
struct Handlers {
    context: usize,
    event: Option<Function>,
    cancel: Option<Function>,
}

/// A source. It begins suspended, and is resumed once.
#[repr(C)]
pub(crate) struct Source {
    object: Object,
    port: u32,
    queue: *const Queue,
    handlers: Mutex<Handlers>,
    cancelled: AtomicBool,
    resumed: AtomicBool,
}

pub(crate) extern "C" fn create(
    kind: *const u64,
    port: usize,
    mask: usize,
    queue: *const Queue,
) -> *mut Source {
    if !std::ptr::eq(kind, &raw const MACH_RECV) || mask != 0 || queue.is_null() {
        fail::not_simulated("dispatch_source_create of another kind than MACH_RECV on a queue");
    }
    Source::new(u32::try_from(port).unwrap_or_default(), queue)
}

impl Source {
    pub(crate) fn new(port: u32, queue: *const Queue) -> *mut Self {
        retain(queue.cast());
        let (object, handlers) = (Object::new(Kind::Source), Mutex::default());
        let (cancelled, resumed) = (AtomicBool::new(false), AtomicBool::new(false));
        Box::into_raw(Box::new(Self { object, port, queue, handlers, cancelled, resumed }))
    }
}

pub(crate) extern "C" fn set_context(object: *const Source, context: *mut c_void) {
    // SAFETY: an object that the caller has a reference of.
    let this = unsafe { &*object };
    if this.object.kind != Kind::Source {
        fail::not_simulated("dispatch_set_context of what is no source");
    }
    this.handlers.lock().unwrap_or_else(PoisonError::into_inner).context = context as usize;
}

pub(crate) extern "C" fn set_event_handler(this: *const Source, handler: Option<Function>) {
    // SAFETY: as above.
    unsafe { &*this }.handlers.lock().unwrap_or_else(PoisonError::into_inner).event = handler;
}

pub(crate) extern "C" fn set_cancel_handler(this: *const Source, handler: Option<Function>) {
    // SAFETY: as above.
    unsafe { &*this }.handlers.lock().unwrap_or_else(PoisonError::into_inner).cancel = handler;
}

/// How often a watcher looks whether its source was cancelled.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

pub(crate) extern "C" fn resume(this: *const Source) {
    // SAFETY: as above; the watcher has a reference of its own.
    let source = unsafe { &*this };
    if source.resumed.swap(true, Ordering::Relaxed) {
        fail::not_simulated("dispatch_resume of a source for a second time");
    }
    let Some(readable) = crate::readable(source.port) else {
        fail::not_simulated("a source of what is no port");
    };
    retain(this.cast());
    let at = this as usize;
    let watch = move || {
        let this = at as *const Source;
        // SAFETY: the watcher's reference.
        watch(unsafe { &*this }, readable);
        release(this.cast());
    };
    if let Err(error) = std::thread::Builder::new().name("dispatch".to_owned()).spawn(watch) {
        fail::not_simulated(&format!("a source without a thread ({error})"));
    }
}

/// Has the handler run for as long as there are messages, one run after the other.
fn watch(source: &Source, readable: i32) {
    loop {
        if source.cancelled.load(Ordering::Acquire) {
            break;
        }
        // SAFETY: it belongs to the port, and lives for as long as this process.
        let fd = unsafe { BorrowedFd::borrow_raw(readable) };
        let mut polled = [PollFd::new(&fd, PollFlags::IN)];
        if !matches!(poll(&mut polled, Some(&LOOK)), Ok(1)) {
            continue;
        }
        if polled[0].revents().contains(PollFlags::NVAL) {
            break;
        }
        run(source, |handlers| handlers.event, true);
    }
    run(source, |handlers| handlers.cancel, false);
}

/// Runs a handler when it is its turn on the queue, on the watcher's own thread.
fn run(source: &Source, which: fn(&Handlers) -> Option<Function>, only_uncancelled: bool) {
    let (context, function) = {
        let handlers = source.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        (handlers.context, which(&handlers))
    };
    // SAFETY: the source has a reference of its queue.
    unsafe { &*source.queue }.run_here(|| {
        if let Some(function) = function
            && !(only_uncancelled && source.cancelled.load(Ordering::Acquire))
        {
            function(context as *mut c_void);
        }
    });
}

/// No event handler *begins* afterwards on the queue; one that runs goes on, and the cancel handler comes later.
pub(crate) extern "C" fn cancel(this: *const Source) {
    // SAFETY: an object that the caller has a reference of.
    unsafe { &*this }.cancelled.store(true, Ordering::Release);
}

pub(super) unsafe fn dispose(this: *mut Source) {
    // SAFETY: the caller's: the last reference is gone.
    let this = unsafe { Box::from_raw(this) };
    release(this.queue.cast());
}
