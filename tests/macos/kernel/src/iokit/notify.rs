//! Notification ports and general interest (IOKitUser-100222.0.4, IOKitLib.c).

use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use darwin_abi::Symbol;

use super::async_call::{COMPLETION, MESSAGE, REFERENCES, hold, notification};
use super::{Object, entry, give, returned};
use crate::client::ask;
use crate::codes::{COMPLEX, Code, HEADER, NULL, Name, option, right};
use crate::dispatch::{self, Queue, Source, source};
use crate::ports::put;
use crate::state::SELF;
use crate::wire::Request;
use crate::{fail, ports};

pub(super) const SYMBOLS: &[Symbol] = darwin_abi::symbols! {
    "_IONotificationPortCreate" => create as extern "C" fn(_) -> _,
    "_IONotificationPortDestroy" => destroy as extern "C" fn(_),
    "_IONotificationPortGetMachPort" => mach_port as extern "C" fn(_) -> _,
    "_IONotificationPortSetDispatchQueue" => set_queue as extern "C" fn(_, _),
    "_IOServiceAddInterestNotification" => add_interest as extern "C" fn(_, _, _, _, _, _) -> _,
};

/// kIOServiceMessageNotificationType and kIOMessageServiceIsTerminated.
const SERVICE_MESSAGE: u32 = 160;
const IS_TERMINATED: u32 = 0xe000_0010;

/// An `IONotificationPortRef`.
pub(crate) struct NotificationPort {
    port: Name,
    source: *mut Source,
}

pub(crate) extern "C" fn create(main: Name) -> *mut NotificationPort {
    if main != NULL {
        fail::not_simulated("a notification port of another main port");
    }
    let mut port = NULL;
    if ports::allocate(SELF, right::RECEIVE, &raw mut port) != 0 {
        return std::ptr::null_mut();
    }
    Box::into_raw(Box::new(NotificationPort { port, source: std::ptr::null_mut() }))
}

/// # Safety
/// A port of [`create`] that is not destroyed yet.
unsafe fn get<'p>(port: *mut NotificationPort) -> &'p mut NotificationPort {
    // SAFETY: the caller's promise; a notification port is used by one thread at a time.
    unsafe { &mut *port }
}

pub(crate) extern "C" fn mach_port(port: *mut NotificationPort) -> Name {
    // SAFETY: the Darwin call's port.
    unsafe { get(port) }.port
}

/// The receive right goes when no handler runs any more, which is after this returned: only the port itself is
/// protected, whatever a callback is given is not.
pub(crate) extern "C" fn destroy(port: *mut NotificationPort) {
    // SAFETY: the Darwin call's port, which nobody uses afterwards.
    let port = unsafe { Box::from_raw(port) };
    if port.source.is_null() {
        ports::mod_refs(SELF, port.port, right::RECEIVE, -1);
        return;
    }
    source::cancel(port.source);
    dispatch::release(port.source.cast());
}

/// Sets the queue once; another one cancels the source of the first without waiting for it.
pub(crate) extern "C" fn set_queue(port: *mut NotificationPort, queue: *const Queue) {
    // SAFETY: the Darwin call's port.
    let port = unsafe { get(port) };
    if !port.source.is_null() || queue.is_null() {
        fail::not_simulated("another queue of a notification port");
    }
    let source = Source::new(port.port, queue);
    source::set_context(source, port.port as usize as *mut c_void);
    source::set_event_handler(source, Some(handle));
    source::set_cancel_handler(source, Some(cancelled));
    source::resume(source);
    port.source = source;
}

pub(crate) extern "C" fn cancelled(context: *mut c_void) {
    let port = u32::try_from(context as usize).unwrap_or_default();
    ports::mod_refs(SELF, port, right::RECEIVE, -1);
}

/// `_ioNotificationPortHandler`: one message, and what it calls.
pub(crate) extern "C" fn handle(context: *mut c_void) {
    let port = u32::try_from(context as usize).unwrap_or_default();
    let mut message = [0u8; 1024];
    let options = option::RCV | option::RCV_TIMEOUT;
    let came = ports::mach_msg(message.as_mut_ptr(), options, 0, 1024, port, 0, NULL);
    if came == 0 {
        call_out(&message);
    }
}

type Callback = extern "C" fn(*mut c_void, Code);
type InterestCallback = extern "C" fn(*mut c_void, Name, u32, *mut c_void);

/// `IODispatchCalloutFromMessage`: the function to call is in the message.
fn call_out(message: &[u8]) {
    let word = |at: usize| {
        let bytes = message.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_le_bytes(bytes.unwrap_or_default())
    };
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let (bits, id) = (word(0), word(20).cast_signed());
    if id != MESSAGE || bits & COMPLEX != 0 {
        fail::not_simulated(&format!("message {id} at a notification port"));
    }
    let kind = word(HEADER + 4) & 0xfff;
    let reference = |index: usize| long(HEADER + 8 + index * 8);
    let content = HEADER + 8 + REFERENCES * 8;
    let (function, context) = (reference(1) as usize, reference(2) as usize as *mut c_void);
    if function == 0 {
        fail::abort("a notification without a function to call");
    }
    match kind {
        COMPLETION => {
            // SAFETY: what the caller of the method put there is a function of this type (IOAsyncCallback0).
            let function: Callback = unsafe { std::mem::transmute(function) };
            function(context, word(content).cast_signed());
        }
        SERVICE_MESSAGE => {
            // SAFETY: as above (IOServiceInterestCallback).
            let function: InterestCallback = unsafe { std::mem::transmute(function) };
            let service = u32::try_from(reference(3)).unwrap_or_default();
            function(context, service, word(content), long(content + 4) as usize as *mut c_void);
        }
        other => fail::not_simulated(&format!("a notification of type {other}")),
    }
}

/// Somebody who wants to know what happens to a service.
pub(crate) struct Interest {
    service: u64,
    held: u64,
    reference: [u64; REFERENCES],
    is_over: AtomicBool,
}

impl Interest {
    /// The service is terminated: told once.
    pub(super) fn terminated(&self, service: u64) {
        if service != self.service || self.is_over.swap(true, Ordering::AcqRel) {
            return;
        }
        let content = [&IS_TERMINATED.to_le_bytes()[..], &0u64.to_le_bytes()].concat();
        let body = notification(SERVICE_MESSAGE, &self.reference, &content);
        ask(&Request::FromKernel { held: self.held, id: MESSAGE, body, is_last: true });
    }

    /// The notification was released.
    pub(super) fn end(&self) {
        if !self.is_over.swap(true, Ordering::AcqRel) {
            ask(&Request::LetGo { held: self.held });
        }
    }
}

pub(crate) extern "C" fn add_interest(
    port: *mut NotificationPort,
    service: Name,
    kind: *const c_char,
    callback: usize,
    context: usize,
    into: *mut Name,
) -> Code {
    // SAFETY: the Darwin call's string and port.
    let (kind, port) = unsafe { (CStr::from_ptr(kind), get(port).port) };
    if kind != c"IOGeneralInterest" {
        fail::not_simulated(&format!("interest in {}", kind.to_string_lossy()));
    }
    let Some(node) = entry(service) else { return returned::BAD_ARGUMENT };
    let Some(held) = hold(port) else { return returned::BAD_ARGUMENT };
    let mut reference = [0; REFERENCES];
    reference[1] = callback as u64;
    reference[2] = context as u64;
    reference[3] = service.into();
    let interest = Interest { service: node.id, held, reference, is_over: AtomicBool::new(false) };
    let name = give(Object::Interest(std::sync::Arc::new(interest)), false);
    // SAFETY: the Darwin call's place for a notification.
    unsafe { put(into, name) };
    returned::SUCCESS
}
