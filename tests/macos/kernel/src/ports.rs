//! `mach_port_*`, `mach_ports_*`, `mach_msg` and what libsyscall does beside them, by their Darwin names.

use darwin_abi::Symbol;

use crate::client::{ask, code};
use crate::codes::{
    COMPLEX, Code, DEAD, HEADER, MAX_MESSAGE, NULL, Name, PORT_DESCRIPTOR, REGISTERED, disposition,
    kern, msg, option, right,
};
use crate::state::SELF;
use crate::wire::{Reply, Request};
use crate::{fail, iokit, sandbox, vm};

/// `mach_task_self_`.
static TASK_SELF: u32 = SELF;

pub(crate) const SYMBOLS: &[Symbol] = darwin_abi::symbols! {
    "_mach_task_self_" => &raw const TASK_SELF,
    "_mach_port_allocate" => allocate as extern "C" fn(_, _, _) -> _,
    "_mach_port_insert_right" => insert_right as extern "C" fn(_, _, _, _) -> _,
    "_mach_port_deallocate" => deallocate as extern "C" fn(_, _) -> _,
    "_mach_port_mod_refs" => mod_refs as extern "C" fn(_, _, _, _) -> _,
    "_mach_port_request_notification" => request_notification as extern "C" fn(_, _, _, _, _, _, _) -> _,
    "_mach_port_move_member" => move_member as extern "C" fn(_, _, _) -> _,
    "_mach_ports_register" => register as extern "C" fn(_, _, _) -> _,
    "_mach_ports_lookup" => lookup as extern "C" fn(_, _, _) -> _,
    "_mach_msg" => mach_msg as extern "C" fn(_, _, _, _, _, _, _) -> _,
    "_mach_msg_destroy" => destroy as extern "C" fn(_),
};

/// Only this process's own task is simulated: no other task's port can be had here.
pub(crate) fn own_task(task: Name, what: &str) {
    if task != SELF {
        fail::not_simulated(&format!("{what} of task {task:#x}, which is not the caller's own"));
    }
}

/// Puts a value where the caller wants it.
///
/// # Safety
/// `at` is a place for it, as the Darwin call promises.
pub(crate) unsafe fn put<T>(at: *mut T, value: T) {
    // SAFETY: the caller's promise; the place may be unaligned for all that is known.
    unsafe { at.write_unaligned(value) }
}

fn name(request: &Request, into: *mut Name) -> Code {
    match ask(request) {
        Reply::Name(name) => {
            // SAFETY: the Darwin call's place for a name.
            unsafe { put(into, name) };
            kern::SUCCESS
        }
        Reply::Code(code) => code,
        other => fail::not_simulated(&format!("an answer to {request:?}: {other:?}")),
    }
}

pub(crate) extern "C" fn allocate(task: Name, right: u32, into: *mut Name) -> Code {
    own_task(task, "mach_port_allocate");
    if let Err(code) = sandbox::trap("MSC__kernelrpc_mach_port_allocate_trap") {
        return code;
    }
    name(&Request::Allocate { right }, into)
}

pub(crate) extern "C" fn insert_right(task: Name, name: Name, from: Name, how: u32) -> Code {
    own_task(task, "mach_port_insert_right");
    if let Err(code) = sandbox::trap("MSC__kernelrpc_mach_port_insert_right_trap") {
        return code;
    }
    code(&Request::Insert { name, from, how })
}

/// What a right of IOKit's stood for goes with it.
fn done(request: &Request, name: Name) -> Code {
    match ask(request) {
        Reply::Done { was_last } => {
            if was_last {
                iokit::last_right_gone(name);
            }
            kern::SUCCESS
        }
        Reply::Code(code) => code,
        other => fail::not_simulated(&format!("an answer to {request:?}: {other:?}")),
    }
}

pub(crate) extern "C" fn deallocate(task: Name, name: Name) -> Code {
    own_task(task, "mach_port_deallocate");
    if let Err(code) = sandbox::trap("MSC__kernelrpc_mach_port_deallocate_trap") {
        return code;
    }
    done(&Request::Deallocate { name }, name)
}

pub(crate) extern "C" fn mod_refs(task: Name, name: Name, right: u32, delta: i32) -> Code {
    own_task(task, "mach_port_mod_refs");
    if let Err(code) = sandbox::trap("MSC__kernelrpc_mach_port_mod_refs_trap") {
        return code;
    }
    done(&Request::ModRefs { name, right, delta }, name)
}

pub(crate) extern "C" fn request_notification(
    task: Name,
    of: Name,
    what: i32,
    sync: u32,
    whom: Name,
    how: u32,
    previous: *mut Name,
) -> Code {
    own_task(task, "mach_port_request_notification");
    if let Err(code) = sandbox::trap("MSC__kernelrpc_mach_port_request_notification_trap") {
        return code;
    }
    name(&Request::Notification { name: of, what, sync, whom, how }, previous)
}

pub(crate) extern "C" fn move_member(task: Name, member: Name, into: Name) -> Code {
    own_task(task, "mach_port_move_member");
    if let Err(code) = sandbox::trap("MSC__kernelrpc_mach_port_move_member_trap") {
        return code;
    }
    code(&Request::MoveMember { member, into })
}

pub(crate) extern "C" fn register(task: Name, names: *const Name, count: u32) -> Code {
    own_task(task, "mach_ports_register");
    if let Err(code) = sandbox::routine("mach_ports_register") {
        return code;
    }
    if count as usize > REGISTERED {
        return kern::INVALID_ARGUMENT;
    }
    // SAFETY: the Darwin call's array and its length.
    let names = (0..count as usize).map(|at| unsafe { names.add(at).read_unaligned() }).collect();
    code(&Request::Register { names })
}

/// The array is memory that the caller gives back by `mach_vm_deallocate`: a page.
pub(crate) extern "C" fn lookup(task: Name, into: *mut *mut Name, count: *mut u32) -> Code {
    own_task(task, "mach_ports_lookup");
    if let Err(code) = sandbox::routine("mach_ports_lookup") {
        return code;
    }
    let Reply::Names(names) = ask(&Request::Lookup) else {
        fail::not_simulated("mach_ports_lookup that fails");
    };
    let Some(page) = vm::anonymous(crate::codes::PAGE) else { return kern::RESOURCE_SHORTAGE };
    let array = page as *mut Name;
    for (at, name) in names.iter().enumerate() {
        // SAFETY: a fresh page with room for three names.
        unsafe { array.add(at).write(*name) };
    }
    // SAFETY: the Darwin call's places.
    unsafe {
        put(into, array);
        put(count, u32::try_from(names.len()).unwrap_or_default());
    }
    kern::SUCCESS
}

/// `mach_msg`. Signals do not end it: libsyscall's mach_msg.c tries again unless MACH_SEND_INTERRUPT or
/// MACH_RCV_INTERRUPT say otherwise.
pub(crate) extern "C" fn mach_msg(
    message: *mut u8,
    options: i32,
    send_size: u32,
    room: u32,
    from: Name,
    timeout: u32,
    notify: Name,
) -> Code {
    let unknown = options & !option::KNOWN;
    if unknown != 0 {
        fail::not_simulated(&format!("mach_msg with the options {unknown:#x}"));
    }
    if notify != NULL {
        fail::not_simulated("mach_msg with a port for notifications");
    }
    if let Err(code) = sandbox::trap("MSC_mach_msg2_trap") {
        return code;
    }
    if options & option::SEND != 0 {
        let sent = send(message, options, send_size, timeout);
        if sent != kern::SUCCESS {
            return sent;
        }
    }
    if options & option::RCV != 0 {
        receive(message, options, room, from, timeout)
    } else {
        kern::SUCCESS
    }
}

fn send(message: *mut u8, options: i32, size: u32, timeout: u32) -> Code {
    let size = size as usize;
    if size > MAX_MESSAGE {
        return msg::SEND_TOO_LARGE;
    }
    // SAFETY: the Darwin call's message of that size.
    let bytes = unsafe { std::slice::from_raw_parts(message, size) }.to_vec();
    let timeout = (options & option::SEND_TIMEOUT != 0).then_some(timeout);
    match ask(&Request::Send { message: bytes, timeout }) {
        Reply::Code(code) => code,
        Reply::Message { code, message: back } => {
            // SAFETY: as above; what comes back has the same size.
            unsafe { message.copy_from_nonoverlapping(back.as_ptr(), back.len().min(size)) };
            code
        }
        other => fail::not_simulated(&format!("an answer to a message: {other:?}")),
    }
}

fn receive(message: *mut u8, options: i32, room: u32, from: Name, timeout: u32) -> Code {
    let timeout = (options & option::RCV_TIMEOUT != 0).then_some(timeout);
    match ask(&Request::Receive { name: from, options, room, timeout }) {
        Reply::Code(code) => code,
        Reply::Message { code, message: came } => {
            let fits = came.len().min(room as usize);
            // SAFETY: the Darwin call's buffer with that room.
            unsafe { message.copy_from_nonoverlapping(came.as_ptr(), fits) };
            code
        }
        other => fail::not_simulated(&format!("an answer to a receive: {other:?}")),
    }
}

/// `mach_msg_destroy` (libsyscall/mach/mach_msg.c): every right of a message that was received, or came back,
/// by its disposition there.
pub(crate) extern "C" fn destroy(message: *mut u8) {
    // SAFETY: the Darwin call's message, which has at least a header.
    let word = |at: usize| unsafe { message.add(at).cast::<u32>().read_unaligned() };
    let bits = word(0);
    destroy_right(word(8), bits & 0x1f);
    // The local port of a received message is the receiver's own right; libsyscall looks at it no more.
    if bits & COMPLEX == 0 {
        return;
    }
    for at in (0..word(HEADER) as usize).map(|at| HEADER + 4 + at * PORT_DESCRIPTOR) {
        let last = word(at + 8).to_le_bytes();
        match last[3] {
            0 => destroy_right(word(at), u32::from(last[2])),
            kind => {
                fail::not_simulated(&format!("mach_msg_destroy of a descriptor of type {kind}"))
            }
        }
    }
}

fn destroy_right(name: Name, how: u32) {
    if name == NULL || name == DEAD {
        return;
    }
    match how {
        disposition::MOVE_SEND | disposition::MOVE_SEND_ONCE => {
            deallocate(SELF, name);
        }
        disposition::MOVE_RECEIVE => {
            mod_refs(SELF, name, right::RECEIVE, -1);
        }
        // Nothing was taken from the sender yet; a made right is made and given back.
        disposition::COPY_SEND | disposition::MAKE_SEND | disposition::MAKE_SEND_ONCE => {}
        0 => {}
        other => {
            fail::not_simulated(&format!("mach_msg_destroy of a right with disposition {other}"))
        }
    }
}
