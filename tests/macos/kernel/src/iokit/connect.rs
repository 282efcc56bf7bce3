//! Connections: `IOServiceOpen`, scalar methods, mapped memory, the end.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cordon_ipc::wire::dext::{
    Backing, IoReturn, Reply as DextReply, Request as DextRequest, selector,
};
use cordon_ipc::{Deadline, Handles, Tube};
use cordon_sandbox_profiles::seatbelt::Target;
use darwin_abi::Symbol;
use rustix::event::{PollFd, PollFlags, poll};

use super::{Object, connection, entry, give, registry, returned, service_terminated};
use crate::codes::{Code, Name, PAGE, kern};
use crate::ports::put;
use crate::space::{self, READ, WRITE};
use crate::state::{SELF, Segment};
use crate::{fail, ports, sandbox};

pub(super) const SYMBOLS: &[Symbol] = darwin_abi::symbols! {
    "_IOServiceOpen" => open as extern "C" fn(_, _, _, _) -> _,
    "_IOServiceClose" => close as extern "C" fn(_) -> _,
    "_IOConnectCallScalarMethod" => call_scalar as extern "C" fn(_, _, _, _, _, _) -> _,
    "_IOConnectMapMemory64" => map_memory as extern "C" fn(_, _, _, _, _, _) -> _,
    "_IOConnectUnmapMemory64" => unmap_memory as extern "C" fn(_, _, _, _) -> _,
};

/// Most scalars that MIG carries (iokit/IOKit/iokitmig_types.h: `io_scalar_inband64_t`).
pub(super) const SCALARS: usize = 16;

/// An `io_connect_t`.
pub(crate) struct Connection {
    service: u64,
    tube: Mutex<(Tube, u32)>,
    /// Signalled by the dext when what was asked asynchronously completes.
    completed: OwnedFd,
    /// Signalled when the connection closes.
    stop: OwnedFd,
    pub(super) armed: Mutex<Option<super::async_call::Armed>>,
    /// What is mapped by it into this task: type, address, length.
    mappings: Mutex<Vec<(u32, u64, u64)>>,
    is_closed: AtomicBool,
    /// The dext's process is gone.
    is_lost: AtomicBool,
}

impl Connection {
    /// Asks the dext. Of a dext whose process is gone every method is kIOReturnOffline: `IOUserServer::rpc` finds the
    /// server stopped (IOUserServer.cpp).
    pub(super) fn exchange(
        &self,
        request: &DextRequest,
        beside: &[BorrowedFd<'_>],
    ) -> Result<(Vec<u64>, Handles), Code> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(returned::PORT_DEAD);
        }
        let mut tube = self.tube.lock().unwrap_or_else(PoisonError::into_inner);
        let (tube, next) = &mut *tube;
        *next = next.wrapping_add(1).max(1);
        // A method may take as long as it likes: a Mac has no deadline for it.
        let deadline = Deadline::after(std::time::Duration::MAX);
        let sent = tube.send(*next, request, beside, deadline);
        let Ok(received) = sent.and_then(|()| tube.receive::<DextReply>(deadline)) else {
            self.is_lost.store(true, Ordering::Release);
            return Err(returned::OFFLINE);
        };
        match received.message {
            DextReply::Return { code: IoReturn::SUCCESS, outputs } => {
                Ok((outputs, received.handles))
            }
            DextReply::Return { code, .. } => Err(code.0.cast_signed()),
            DextReply::Services(_) => fail::not_simulated("services that nobody asked for"),
        }
    }

    /// Ends it: what it mapped into this task goes, and the dext releases the rest. Once
    /// (`IOUserClient::clientDied`).
    pub(super) fn close(&self) {
        if self.is_closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        for (_, address, length) in
            std::mem::take(&mut *self.mappings.lock().unwrap_or_else(PoisonError::into_inner))
        {
            unmap(address, length);
        }
        super::async_call::drop_armed(self);
        let tube = self.tube.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = rustix::net::shutdown(tube.0.as_fd(), rustix::net::Shutdown::Both);
    }
}

fn unmap(address: u64, length: u64) {
    // SAFETY: what the connection mapped; its user gave it up, or the kernel takes it.
    unsafe { libc::munmap(address as *mut libc::c_void, space::usize_of(length)) };
    space::unmapped(address, length);
}

/// `is_io_service_open_extended`: only for the caller's own task (kIOReturnBadArgument), and only where the sandbox
/// allows the service and its client (`mac_iokit_check_open_service`, `mac_iokit_check_open`:
/// kIOReturnNotPermitted).
pub(crate) extern "C" fn open(service: Name, task: Name, kind: u32, into: *mut Name) -> Code {
    if task != SELF {
        return returned::BAD_ARGUMENT;
    }
    let Some(node) = entry(service) else { return returned::BAD_ARGUMENT };
    if !sandbox::may("iokit-open-service", &Target::Class(node.class)) {
        return returned::NOT_PERMITTED;
    }
    if !node.is_dext {
        return returned::UNSUPPORTED;
    }
    if !sandbox::may("iokit-open-user-client", &Target::Class("IOUserUserClient")) {
        return returned::NOT_PERMITTED;
    }
    match connect(node.id, kind) {
        Ok(connection) => {
            let name = give(Object::Connection(connection), true);
            // SAFETY: the Darwin call's place for a connection.
            unsafe { put(into, name) };
            returned::SUCCESS
        }
        Err(code) => code,
    }
}

fn connect(service: u64, kind: u32) -> Result<Arc<Connection>, Code> {
    let completed = space::event().map_err(|_| returned::NO_RESOURCES)?;
    let stop = space::event().map_err(|_| returned::NO_RESOURCES)?;
    let tube = registry::connect().ok_or(returned::NO_DEVICE)?;
    let connection = Arc::new(Connection {
        service,
        tube: Mutex::new((tube, 0)),
        completed,
        stop,
        armed: Mutex::default(),
        mappings: Mutex::default(),
        is_closed: AtomicBool::new(false),
        is_lost: AtomicBool::new(false),
    });
    let request = DextRequest::Open { service, kind };
    connection.exchange(&request, &[connection.completed.as_fd()])?;
    let watched = Arc::clone(&connection);
    let spawned =
        std::thread::Builder::new().name("iokit".to_owned()).spawn(move || watch(&watched));
    spawned.map(|_| connection).map_err(|_| returned::NO_RESOURCES)
}

/// The kernel's side of a connection: completions, and the end of the dext's process.
fn watch(connection: &Connection) {
    let socket = {
        let tube = connection.tube.lock().unwrap_or_else(PoisonError::into_inner);
        match tube.0.as_fd().try_clone_to_owned() {
            Ok(socket) => crate::client::reserved(socket),
            Err(error) => {
                fail::not_simulated(&format!("a connection without descriptors ({error})"))
            }
        }
    };
    loop {
        let mut polled = [
            PollFd::new(&connection.stop, PollFlags::IN),
            PollFd::new(&connection.completed, PollFlags::IN),
            // Nothing but its end is of interest: answers are somebody else's.
            PollFd::new(&socket, PollFlags::RDHUP),
        ];
        if poll(&mut polled, None).is_err() {
            continue;
        }
        let [stop, completed, socket] = polled.map(|polled| !polled.revents().is_empty());
        if stop {
            return;
        }
        if completed {
            let _ = rustix::io::read(&connection.completed, &mut [0; 8]);
            super::async_call::complete(connection);
        }
        if socket {
            if !connection.is_closed.load(Ordering::Acquire) {
                connection.is_lost.store(true, Ordering::Release);
                service_terminated(connection.service);
            }
            return;
        }
    }
}

/// `IOServiceClose` (IOKitLib.c): `io_service_close`, and then the right.
pub(crate) extern "C" fn close(connect: Name) -> Code {
    if let Err(code) = sandbox::routine("io_service_close") {
        return code;
    }
    let closed = connection(connect).map(|connection| connection.close());
    ports::deallocate(SELF, connect);
    closed.err().unwrap_or(returned::SUCCESS)
}

/// The scalars of a call, if they are few enough.
///
/// # Safety
/// `count` scalars are there.
pub(super) unsafe fn scalars(at: *const u64, count: u32) -> Result<Vec<u64>, Code> {
    if count as usize > SCALARS {
        return Err(returned::BAD_ARGUMENT);
    }
    // SAFETY: the caller's promise.
    Ok((0..count as usize).map(|index| unsafe { at.add(index).read_unaligned() }).collect())
}

pub(crate) extern "C" fn call_scalar(
    connect: Name,
    selector: u32,
    input: *const u64,
    input_count: u32,
    output: *mut u64,
    output_count: *mut u32,
) -> Code {
    if let Err(code) = sandbox::routine("io_connect_method") {
        return code;
    }
    let called = connection(connect).and_then(|connection| {
        // SAFETY: the Darwin call's arrays and their lengths.
        let inputs = unsafe { scalars(input, input_count) }?;
        // SAFETY: as above; null is no room.
        let room =
            if output_count.is_null() { 0 } else { unsafe { output_count.read_unaligned() } };
        if room as usize > SCALARS {
            return Err(returned::BAD_ARGUMENT);
        }
        call(&connection, selector, inputs, room)
    });
    match called {
        Ok(outputs) => {
            // SAFETY: room for so many was given, and not more came.
            unsafe {
                for (index, value) in outputs.iter().enumerate() {
                    put(output.add(index), *value);
                }
                if !output_count.is_null() {
                    put(output_count, u32::try_from(outputs.len()).unwrap_or(0));
                }
            }
            returned::SUCCESS
        }
        Err(code) => code,
    }
}

/// One method. Where it names an address the kernel looks at the task: the memory behind it goes along.
fn call(
    connection: &Connection,
    selector: u32,
    inputs: Vec<u64>,
    outputs: u32,
) -> Result<Vec<u64>, Code> {
    let behind = match (selector, &inputs[..]) {
        (selector::REGISTER_DMA_REGION, [_, address, size, ..]) => memory(*address, *size),
        _ => None,
    };
    let backing = behind
        .as_ref()
        .map(|(segment, offset)| Backing { offset: segment.offset + offset, writable: true });
    let beside: Vec<BorrowedFd<'_>> =
        behind.iter().map(|(segment, _)| segment.file.as_fd()).collect();
    let request = DextRequest::Call { selector, inputs, outputs, backing };
    let (mut filled, _) = connection.exchange(&request, &beside)?;
    filled.truncate(outputs as usize);
    Ok(filled)
}

/// The file behind a range of this task's, and where in the first page the range begins.
/// `CreateMemoryDescriptorFromClient` takes memory of any kind; of several files it is not simulated.
fn memory(address: u64, size: u64) -> Option<(Segment, u64)> {
    if address == 0 || size == 0 {
        return None;
    }
    let start = address / 4096 * 4096;
    let end = address.checked_add(size)?.checked_next_multiple_of(4096)?;
    let mut found = space::segments(start, end, READ).ok()?;
    if found.len() > 1 {
        fail::not_simulated("DMA to memory that is made of several files");
    }
    found.pop().map(|segment| (segment, address - start))
}

/// Into this task: read and write, never execute, on a page of the task's. Whatever the dext says to a failure is
/// kIOReturnBadArgument to the caller (IOUserClient.cpp `is_io_connect_map_memory_into_task`).
pub(crate) extern "C" fn map_memory(
    connect: Name,
    kind: u32,
    task: Name,
    address: *mut u64,
    size: *mut u64,
    options: u32,
) -> Code {
    if task != SELF {
        fail::not_simulated("IOConnectMapMemory64 into another task");
    }
    if let Err(code) = sandbox::routine("io_connect_map_memory_into_task") {
        return code;
    }
    /// iokit/IOKit/IOTypes.h: kIOMapAnywhere, kIOMapCacheMask.
    const ANYWHERE: u32 = 1;
    const CACHE: u32 = 0xf00;
    if options & ANYWHERE == 0 || options & !(ANYWHERE | CACHE) != 0 {
        fail::not_simulated(&format!("IOConnectMapMemory64 with the options {options:#x}"));
    }
    let mapped = connection(connect).and_then(|connection| {
        let asked = connection.exchange(&DextRequest::Map { kind }, &[]);
        let (outputs, handles) = asked.map_err(|code| match code {
            returned::PORT_DEAD => code,
            _ => returned::BAD_ARGUMENT,
        })?;
        let length = *outputs.first().ok_or(returned::BAD_ARGUMENT)?;
        let file = space::received(handles.one().map_err(|_| returned::BAD_ARGUMENT)?);
        let segment = Segment { file, offset: 0, length };
        let at = space::map(&[segment], None, READ | WRITE, READ | WRITE);
        let at = at.map_err(|_| returned::BAD_ARGUMENT)?;
        let mut mappings = connection.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        mappings.push((kind, at, length));
        Ok((at, length))
    });
    match mapped {
        Ok((at, length)) => {
            // SAFETY: the Darwin call's places.
            unsafe {
                put(address, at);
                put(size, length);
            }
            returned::SUCCESS
        }
        Err(code) => code,
    }
}

/// Of what this connection mapped there; anything else is kIOReturnBadArgument.
pub(crate) extern "C" fn unmap_memory(connect: Name, kind: u32, task: Name, address: u64) -> Code {
    if task != SELF {
        fail::not_simulated("IOConnectUnmapMemory64 from another task");
    }
    if let Err(code) = sandbox::routine("io_connect_unmap_memory_from_task") {
        return code;
    }
    match connection(connect) {
        Ok(connection) => {
            let mut mappings = connection.mappings.lock().unwrap_or_else(PoisonError::into_inner);
            let page = address / PAGE * PAGE;
            let found = mappings.iter().position(|(of, at, _)| *of == kind && *at == page);
            match found {
                Some(index) => {
                    let (_, at, length) = mappings.remove(index);
                    drop(mappings);
                    unmap(at, length);
                    kern::SUCCESS
                }
                None => returned::BAD_ARGUMENT,
            }
        }
        Err(code) => code,
    }
}
