//! The real dext, through IOKit. None of it has run on a Mac yet: see docs/macos.md.
//!
//! Scalars go through `IOConnectCallScalarMethod` with the numbers of the ABI, memory through
//! `IOConnectMapMemory64` into this task, the one asynchronous method through a notification port
//! on a serial queue, whose callback signals the [`Event`] that the process waits for. The end of
//! the service shuts a pair of sockets down, which hangs up; as a rule a call says it earlier.
//!
//! A connection is opened by the process that uses it and goes nowhere else: its port cannot be
//! moved. Only opening is mediated by the sandbox, so what is open works on after confinement.
#![expect(unsafe_code, reason = "IOKit, CoreFoundation and Mach are C interfaces")]

use std::ffi::{CStr, c_char, c_void};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::Arc;

use core_foundation_sys::base::{CFGetTypeID, CFRelease, kCFAllocatorDefault};
use core_foundation_sys::string::{
    CFStringCreateWithCString, CFStringGetCString, CFStringGetTypeID, kCFStringEncodingUTF8,
};
use dispatch2::{DispatchQueue, DispatchQueueAttr, DispatchRetained};
use io_kit_sys::keys::{kIOGeneralInterest, kIOServicePlane};
use io_kit_sys::ret::IOReturn as KernelReturn;
use io_kit_sys::types::{
    io_connect_t, io_object_t, io_service_t, kIOMapAnywhere, kIOMapDefaultCache,
    kIOMapWriteCombineCache,
};
use io_kit_sys::{
    IOConnectCallAsyncScalarMethod, IOConnectCallScalarMethod, IOConnectMapMemory64,
    IOConnectUnmapMemory64, IOIteratorNext, IONotificationPortCreate, IONotificationPortDestroy,
    IONotificationPortGetMachPort, IONotificationPortRef, IONotificationPortSetDispatchQueue,
    IOObjectConformsTo, IOObjectRelease, IORegistryEntryCreateCFProperty,
    IORegistryEntryGetChildIterator, IORegistryEntryGetLocationInPlane,
    IORegistryEntryGetNameInPlane, IORegistryEntryGetParentEntry,
    IORegistryEntryGetRegistryEntryID, IORegistryEntryIDMatching, IOServiceAddInterestNotification,
    IOServiceClose, IOServiceGetMatchingService, IOServiceGetMatchingServices, IOServiceMatching,
    IOServiceOpen, kIOMasterPortDefault,
};
use ipc::event::Signaller;
use ipc::wire::common::BarInfo;
use ipc::wire::dext::{Client as Peer, IoReturn, Service, memory, selector};
use ipc::{Access, Event, RootBridge, Window};
use mach2::traps::mach_task_self;

use crate::{Behind, DextError, Mapped, Registry, SelectorError, UserClient};

/// What services of DriverKit extensions are to the kernel.
const KERNEL_CLASS: &CStr = c"IOUserService";
/// What PCI bridges are, the one of the host included.
const BRIDGE_CLASS: &CStr = c"IOPCIBridge";
/// Most entries between a service and the root of the registry; no device is as deep.
const MAX_DEPTH: usize = 64;
/// The property that says which extension it is.
const CLASS_PROPERTY: &CStr = c"IOUserClass";
/// The property of a user client that says who opened it: "pid 123, name".
const CREATOR_PROPERTY: &CStr = c"IOUserClientCreator";
/// Scalars of an asynchronous call's reference, and the places of callback and context in it.
const REFERENCES: usize = 8;
const CALLBACK: usize = 1;
const CONTEXT: usize = 2;
/// How many of them are used.
const USED_REFERENCES: u32 = 3;
/// The message of a general interest notification that says that the service is gone.
const SERVICE_IS_TERMINATED: u32 = 0xe000_0010;
/// Longest property that is read, in bytes.
const MAX_PROPERTY: usize = 256;

/// Our numbers are the system's.
const _: () = {
    use io_kit_sys::ret;
    assert!(IoReturn::SUCCESS.0 == ret::kIOReturnSuccess.cast_unsigned());
    assert!(IoReturn::NO_MEMORY.0 == ret::kIOReturnNoMemory.cast_unsigned());
    assert!(IoReturn::NO_RESOURCES.0 == ret::kIOReturnNoResources.cast_unsigned());
    assert!(IoReturn::IPC_ERROR.0 == ret::kIOReturnIPCError.cast_unsigned());
    assert!(IoReturn::NO_DEVICE.0 == ret::kIOReturnNoDevice.cast_unsigned());
    assert!(IoReturn::BAD_ARGUMENT.0 == ret::kIOReturnBadArgument.cast_unsigned());
    assert!(IoReturn::UNSUPPORTED.0 == ret::kIOReturnUnsupported.cast_unsigned());
    assert!(IoReturn::NOT_OPEN.0 == ret::kIOReturnNotOpen.cast_unsigned());
    assert!(IoReturn::NOT_ALIGNED.0 == ret::kIOReturnNotAligned.cast_unsigned());
    assert!(IoReturn::STILL_OPEN.0 == ret::kIOReturnStillOpen.cast_unsigned());
    assert!(IoReturn::OFFLINE.0 == ret::kIOReturnOffline.cast_unsigned());
    assert!(IoReturn::NOT_READY.0 == ret::kIOReturnNotReady.cast_unsigned());
    assert!(IoReturn::NOT_ATTACHED.0 == ret::kIOReturnNotAttached.cast_unsigned());
    assert!(IoReturn::NO_SPACE.0 == ret::kIOReturnNoSpace.cast_unsigned());
    assert!(IoReturn::OVERRUN.0 == ret::kIOReturnOverrun.cast_unsigned());
    assert!(IoReturn::NOT_PERMITTED.0 == ret::kIOReturnNotPermitted.cast_unsigned());
    assert!(IoReturn::ERROR.0 == ret::kIOReturnError.cast_unsigned());
    assert!(IoReturn::NOT_FOUND.0 == ret::kIOReturnNotFound.cast_unsigned());
    assert!(IoReturn::PORT_DEAD.0 == mach2::message::MACH_SEND_INVALID_DEST.cast_unsigned());
};

/// A reference on an object of the kernel's. Released on drop.
struct Object(io_object_t);

impl Object {
    fn new(object: io_object_t) -> Option<Self> {
        (object != 0).then_some(Self(object))
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: a reference that was given to us, released once.
        unsafe { IOObjectRelease(self.0) };
    }
}

/// The objects of an iterator.
fn objects(iterator: &Object) -> impl Iterator<Item = Object> {
    let next = iterator.0;
    // SAFETY: the iterator lives for as long as this borrows it; each object is a new reference.
    std::iter::from_fn(move || Object::new(unsafe { IOIteratorNext(next) }))
}

/// A property that is text; `None` if there is none.
fn text_property(object: &Object, name: &CStr) -> Option<String> {
    // SAFETY: a name that ends in NUL; what is created is checked against null, asked for its type
    // before it is read as a string, read into a buffer of the length given, and released once.
    unsafe {
        let key =
            CFStringCreateWithCString(kCFAllocatorDefault, name.as_ptr(), kCFStringEncodingUTF8);
        if key.is_null() {
            return None;
        }
        let value = IORegistryEntryCreateCFProperty(object.0, key, kCFAllocatorDefault, 0);
        CFRelease(key.cast());
        if value.is_null() {
            return None;
        }
        let mut bytes: [c_char; MAX_PROPERTY] = [0; MAX_PROPERTY];
        let length = isize::try_from(MAX_PROPERTY).unwrap_or_default();
        let read = CFGetTypeID(value) == CFStringGetTypeID()
            && CFStringGetCString(value.cast(), bytes.as_mut_ptr(), length, kCFStringEncodingUTF8)
                != 0;
        CFRelease(value);
        read.then(|| CStr::from_ptr(bytes.as_ptr()).to_string_lossy().into_owned())
    }
}

/// "pid 123, name" as a peer.
fn peer(creator: &str) -> Option<Peer> {
    let (pid, name) = creator.strip_prefix("pid ")?.split_once(", ")?;
    Some(Peer { pid: pid.trim().parse().ok()?, name: name.to_owned() })
}

/// Who has user clients of a service open.
fn peers(service: &Object) -> Vec<Peer> {
    let mut iterator = 0;
    // SAFETY: a service that we hold, a constant plane name, a place for the iterator.
    let got =
        unsafe { IORegistryEntryGetChildIterator(service.0, kIOServicePlane, &raw mut iterator) };
    let Some(iterator) = Object::new(iterator).filter(|_| got == 0) else {
        return Vec::new();
    };
    let creators = objects(&iterator).filter_map(|child| text_property(&child, CREATOR_PROPERTY));
    creators.filter_map(|creator| peer(&creator)).collect()
}

/// The root bridge above a service: what provides the last PCI bridge on the way up to the root of
/// the registry, by the name and location that `ioreg` shows. `None` where there is none, or its name
/// is not one that can be written down.
fn root_bridge(service: &Object) -> Option<RootBridge> {
    let mut above = parent(service)?;
    let (mut is_beneath_bridge, mut found) = (false, None);
    for _ in 0..MAX_DEPTH {
        // SAFETY: an entry that we hold, a name that ends in NUL.
        let is_bridge = unsafe { IOObjectConformsTo(above.0, BRIDGE_CLASS.as_ptr()) } != 0;
        if is_beneath_bridge && !is_bridge {
            found = entry_name(&above).or(found);
        }
        is_beneath_bridge = is_bridge;
        let Some(next) = parent(&above) else { break };
        above = next;
    }
    found?.parse().ok()
}

/// The entry that provides `object`.
fn parent(object: &Object) -> Option<Object> {
    let mut parent = 0;
    // SAFETY: an entry that we hold, a constant plane name, a place for its provider.
    let got = unsafe { IORegistryEntryGetParentEntry(object.0, kIOServicePlane, &raw mut parent) };
    Object::new(parent).filter(|_| got == 0)
}

/// "name@location", or "name".
fn entry_name(entry: &Object) -> Option<String> {
    /// What the interface gives room for: `io_name_t`.
    type Name = [c_char; 128];
    let text = |name: &Name| {
        // The kernel ends it in NUL; an array that it did not touch is empty.
        let bytes: Vec<u8> =
            name.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0).collect();
        String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
    };
    let (mut name, mut location): (Name, Name) = ([0; 128], [0; 128]);
    // SAFETY: an entry that we hold, a constant plane name, room for an `io_name_t`, in both.
    let (named, located) = unsafe {
        (
            IORegistryEntryGetNameInPlane(entry.0, kIOServicePlane, name.as_mut_ptr()),
            IORegistryEntryGetLocationInPlane(entry.0, kIOServicePlane, location.as_mut_ptr()),
        )
    };
    let name = text(&name).filter(|_| named == 0)?;
    match text(&location).filter(|_| located == 0) {
        Some(location) => Some(format!("{name}@{location}")),
        None => Some(name),
    }
}

fn no_dext(why: impl Into<String>) -> DextError {
    DextError::NoDext { place: "iokit".to_owned(), why: why.into() }
}

fn io_return(code: KernelReturn) -> IoReturn {
    IoReturn(code.cast_unsigned())
}

fn check(code: KernelReturn) -> Result<(), SelectorError> {
    if code == 0 { Ok(()) } else { Err(SelectorError::Code(io_return(code))) }
}

/// The system's registry.
#[derive(Debug)]
pub struct IoKitRegistry;

impl Registry for IoKitRegistry {
    fn services(&self) -> Result<Vec<Service>, DextError> {
        let mut iterator = 0;
        // SAFETY: a name that ends in NUL; the matching dictionary is consumed by the look-up; a
        // place for the iterator.
        let found = unsafe {
            let matching = IOServiceMatching(KERNEL_CLASS.as_ptr());
            if matching.is_null() {
                return Err(no_dext("no memory for a look-up"));
            }
            IOServiceGetMatchingServices(kIOMasterPortDefault, matching, &raw mut iterator)
        };
        let iterator = Object::new(iterator).filter(|_| found == 0);
        let Some(iterator) = iterator else {
            return Err(no_dext(format!("the registry says {}", io_return(found))));
        };
        let mut services = Vec::new();
        for service in objects(&iterator) {
            let Some(class) = text_property(&service, CLASS_PROPERTY) else { continue };
            let mut id = 0;
            // SAFETY: a service that we hold, a place for its id.
            if unsafe { IORegistryEntryGetRegistryEntryID(service.0, &raw mut id) } == 0 {
                let (root_bridge, clients) = (root_bridge(&service), peers(&service));
                services.push(Service { id, class, root_bridge, clients });
            }
        }
        Ok(services)
    }

    fn open(&self, service: u64, kind: u32) -> Result<Box<dyn UserClient>, DextError> {
        let gone =
            || crate::client::named("dext", "Open", SelectorError::Code(IoReturn::NOT_ATTACHED));
        // SAFETY: the matching dictionary is consumed by the look-up, which gives one reference.
        let found: io_service_t = unsafe {
            let matching = IORegistryEntryIDMatching(service);
            if matching.is_null() {
                return Err(no_dext("no memory for a look-up"));
            }
            IOServiceGetMatchingService(kIOMasterPortDefault, matching)
        };
        let service = Object::new(found).ok_or_else(gone)?;
        let client = IoKitClient::open(&service, kind);
        client
            .map(|client| Box::new(client) as _)
            .map_err(|error| crate::client::named("dext", "Open", error))
    }
}

/// What callbacks on the queue need. Freed only after the queue was drained.
struct Context {
    completed: Signaller,
    /// Shut down when the service is gone. It stays open for as long as the client does, so that which
    /// descriptors a client has never changes.
    alive: UnixStream,
}

/// A connection of the kernel's. Closed on drop, which unmaps nothing that is still referenced.
struct Connect(io_connect_t);

impl Drop for Connect {
    fn drop(&mut self) {
        // SAFETY: a connection that was opened by us, closed once.
        unsafe { IOServiceClose(self.0) };
    }
}

/// One `io_connect_t`.
struct IoKitClient {
    connect: Arc<Connect>,
    port: IONotificationPortRef,
    interest: io_object_t,
    queue: DispatchRetained<DispatchQueue>,
    context: NonNull<Context>,
    completion: Event,
    liveness: UnixStream,
}

// SAFETY: the port and the context are used by this value and by callbacks on its own queue only;
// the context's parts are safe to share between threads.
unsafe impl Send for IoKitClient {}

/// WaitInterrupt completed.
unsafe extern "C" fn completed(context: *mut c_void, _result: KernelReturn) {
    // SAFETY: the context is freed only after the queue that this runs on was drained.
    unsafe { &*context.cast::<Context>() }.completed.signal();
}

/// Something happened to the service.
unsafe extern "C" fn interest(
    context: *mut c_void,
    _service: io_service_t,
    message: u32,
    _argument: *mut c_void,
) {
    if message == SERVICE_IS_TERMINATED {
        // SAFETY: as in `completed`.
        let alive = unsafe { &(*context.cast::<Context>()).alive };
        let _ = alive.shutdown(Shutdown::Both);
    }
}

impl IoKitClient {
    fn open(service: &Object, kind: u32) -> Result<Self, SelectorError> {
        let failed = |error: std::io::Error| SelectorError::Invalid(error.to_string());
        let completion = Event::new().map_err(failed)?;
        let completed = completion.signaller().map_err(failed)?;
        let (liveness, alive) = UnixStream::pair().map_err(failed)?;
        let mut connect = 0;
        // SAFETY: a service that we hold, our own task, a place for the connection.
        check(unsafe { IOServiceOpen(service.0, mach_task_self(), kind, &raw mut connect) })?;
        let connect = Arc::new(Connect(connect));
        let queue = DispatchQueue::new("cordon.dext", DispatchQueueAttr::SERIAL);
        // SAFETY: the default port is a constant of the system's.
        let port = unsafe { IONotificationPortCreate(kIOMasterPortDefault) };
        if port.is_null() {
            return Err(SelectorError::Invalid("no notification port".to_owned()));
        }
        let context = Box::new(Context { completed, alive });
        let context = NonNull::from(Box::leak(context));
        // From here on drop takes everything down in order.
        let mut client = Self { connect, port, interest: 0, queue, context, completion, liveness };
        // SAFETY: the queue outlives the port, which is set once; io-kit-sys has a name of its own
        // for the same pointer.
        unsafe {
            let queue: *const DispatchQueue = &raw const *client.queue;
            IONotificationPortSetDispatchQueue(client.port, queue.cast_mut().cast());
        }
        // SAFETY: the context outlives every callback: see drop. A place for the notification.
        check(unsafe {
            IOServiceAddInterestNotification(
                client.port,
                service.0,
                kIOGeneralInterest,
                interest,
                client.context.as_ptr().cast(),
                &raw mut client.interest,
            )
        })?;
        Ok(client)
    }

    fn scalars(
        &self,
        selector: u32,
        inputs: &[u64],
        out: &mut [u64],
    ) -> Result<u32, SelectorError> {
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let mut given = count(out.len());
        // SAFETY: both slices live through the call, and their lengths are given.
        check(unsafe {
            IOConnectCallScalarMethod(
                self.connect.0,
                selector,
                inputs.as_ptr(),
                count(inputs.len()),
                out.as_mut_ptr(),
                &raw mut given,
            )
        })?;
        Ok(given)
    }

    /// How memory is to be mapped: device memory of a prefetchable BAR with write-combining.
    fn options(&self, kind: u32) -> u32 {
        let bar = kind.checked_sub(memory::BAR0).filter(|_| kind < memory::INTERRUPT_STATE);
        let prefetchable = bar.is_some_and(|bar| {
            let mut info = [0; 3];
            let asked = self.scalars(selector::GET_BAR_INFO, &[bar.into()], &mut info);
            asked.is_ok() && info[2] & u64::from(BarInfo::PREFETCHABLE) != 0
        });
        let cache = if prefetchable { kIOMapWriteCombineCache } else { kIOMapDefaultCache };
        (kIOMapAnywhere | cache).cast_unsigned()
    }
}

impl UserClient for IoKitClient {
    fn call(
        &mut self,
        selector: u32,
        inputs: &[u64],
        outputs: &mut [u64],
        // The kernel looks at this task itself.
        _behind: Option<Behind<'_>>,
    ) -> Result<(), SelectorError> {
        let given = self.scalars(selector, inputs, outputs)? as usize;
        SelectorError::unless_filled(given, outputs.len())
    }

    fn call_async(&mut self, selector: u32, inputs: &[u64]) -> Result<(), SelectorError> {
        let mut reference = [0; REFERENCES];
        let callback: unsafe extern "C" fn(*mut c_void, KernelReturn) = completed;
        reference[CALLBACK] = callback as usize as u64;
        reference[CONTEXT] = self.context.as_ptr() as usize as u64;
        let mut none = 0;
        // SAFETY: the port is ours; references and inputs live through the call with their
        // lengths; no outputs are asked for. The callback's context is freed after the queue was
        // drained.
        check(unsafe {
            IOConnectCallAsyncScalarMethod(
                self.connect.0,
                selector,
                IONotificationPortGetMachPort(self.port),
                reference.as_mut_ptr(),
                USED_REFERENCES,
                inputs.as_ptr(),
                u32::try_from(inputs.len()).unwrap_or(u32::MAX),
                std::ptr::null_mut(),
                &raw mut none,
            )
        })
    }

    fn map(&mut self, kind: u32) -> Result<Mapped, SelectorError> {
        let (mut address, mut size) = (0, 0);
        let options = self.options(kind);
        // SAFETY: our own connection and task; places for what was mapped.
        check(unsafe {
            IOConnectMapMemory64(
                self.connect.0,
                kind,
                mach_task_self(),
                &raw mut address,
                &raw mut size,
                options,
            )
        })?;
        let mapping = Mapping { connect: Arc::clone(&self.connect), kind, address };
        let base = usize::try_from(address).ok().and_then(|at| NonNull::new(at as *mut u8));
        let (Some(base), Ok(length)) = (base, usize::try_from(size)) else {
            return Err(SelectorError::Invalid(format!("mapped at {address:#x}, {size:#x} bytes")));
        };
        // SAFETY: the kernel mapped `length` bytes there, readable and writable; they stay for as
        // long as `mapping` lives, which the window keeps.
        let window = unsafe { Window::foreign(base, length, Access::ReadWrite, Box::new(mapping)) };
        let window = window.map_err(|error| SelectorError::Invalid(error.to_string()))?;
        // Device memory has no descriptor: it is handed on by memory entries.
        Ok(Mapped { window, memory: None })
    }

    fn completion(&self) -> &Event {
        &self.completion
    }

    fn liveness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.liveness.as_fd())
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut open = self.completion.descriptors();
        open.push(self.liveness.as_fd());
        // SAFETY: the context lives for as long as this value, and its descriptors with it.
        let context = unsafe { self.context.as_ref() };
        open.extend([context.completed.as_fd(), context.alive.as_fd()]);
        open
    }
}

impl Drop for IoKitClient {
    /// No callback may run once the context is freed: the port goes first, then the queue is
    /// drained of what it had delivered, then the context. A completion that never came is dropped
    /// by the dext: nothing waits for it.
    fn drop(&mut self) {
        // SAFETY: port and notification are ours and not used afterwards; this does not run on the
        // queue, so draining it cannot wait for itself; the context was leaked by `open`, and no
        // callback can hold it any more.
        unsafe {
            if self.interest != 0 {
                IOObjectRelease(self.interest);
            }
            IONotificationPortDestroy(self.port);
            self.queue.exec_sync(|| {});
            drop(Box::from_raw(self.context.as_ptr()));
        }
    }
}

/// Memory that the kernel mapped into this task. Unmapped on drop.
struct Mapping {
    connect: Arc<Connect>,
    kind: u32,
    address: u64,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by this connection into this task, unmapped once; the window that used it
        // is gone.
        unsafe {
            IOConnectUnmapMemory64(self.connect.0, self.kind, mach_task_self(), self.address);
        }
    }
}
