//! The registry: the services that the simulated dext has now, each beneath a PCI device, bridges and a root bridge as
//! `ioreg` shows them on Apple silicon.

use std::collections::VecDeque;
use std::ffi::{CStr, c_char};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use cordon_ipc::wire::dext::{Reply as DextReply, Request as DextRequest, Service};
use cordon_ipc::wire::handshake::Role;
use cordon_ipc::{Deadline, Tube};
use cordon_sandbox_profiles::seatbelt::Target;
use darwin_abi::Symbol;

use super::{Object, entry, find, give, give_entry, returned};
use crate::cf::{self, Value};
use crate::client::reserved;
use crate::codes::{Code, NULL, Name};
use crate::ports::put;
use crate::{fail, sandbox};

/// `kIOMasterPortDefault` is MACH_PORT_NULL.
static MASTER_PORT: u32 = NULL;

pub(super) const SYMBOLS: &[Symbol] = darwin_abi::symbols! {
    "_kIOMasterPortDefault" => &raw const MASTER_PORT,
    "_kIOMainPortDefault" => &raw const MASTER_PORT,
    "_IOServiceMatching" => matching as extern "C" fn(_) -> _,
    "_IORegistryEntryIDMatching" => id_matching as extern "C" fn(_) -> _,
    "_IOServiceGetMatchingServices" => matching_services as extern "C" fn(_, _, _) -> _,
    "_IOServiceGetMatchingService" => matching_service as extern "C" fn(_, _) -> _,
    "_IOIteratorNext" => next as extern "C" fn(_) -> _,
    "_IOObjectConformsTo" => conforms_to as extern "C" fn(_, _) -> _,
    "_IORegistryEntryGetRegistryEntryID" => entry_id as extern "C" fn(_, _) -> _,
    "_IORegistryEntryGetNameInPlane" => name_in_plane as extern "C" fn(_, _, _) -> _,
    "_IORegistryEntryGetLocationInPlane" => location_in_plane as extern "C" fn(_, _, _) -> _,
    "_IORegistryEntryGetParentEntry" => parent_entry as extern "C" fn(_, _, _) -> _,
    "_IORegistryEntryGetChildIterator" => child_iterator as extern "C" fn(_, _, _) -> _,
    "_IORegistryEntryCreateCFProperty" => create_property as extern "C" fn(_, _, _, _) -> _,
};

/// Where the simulated dext listens.
static DEXT: OnceLock<PathBuf> = OnceLock::new();

/// Takes over where the dext is.
pub(crate) fn start(dext: Option<&str>) {
    if let Some(path) = dext {
        let _ = DEXT.set(path.into());
    }
}

/// See [`start`].
pub(crate) fn dext() -> Option<&'static PathBuf> {
    DEXT.get()
}

/// A registry entry.
#[derive(Debug)]
pub(crate) struct Node {
    pub(super) id: u64,
    /// The kernel's class.
    pub(super) class: &'static str,
    name: String,
    location: Option<String>,
    properties: Vec<(&'static str, String)>,
    parent: Option<Arc<Node>>,
    children: Mutex<Vec<Weak<Node>>>,
    /// Keeps the entries below for as long as an entry above is held.
    below: Mutex<Vec<Arc<Node>>>,
    /// Whether it is a service of the dext's, which can be opened.
    pub(super) is_dext: bool,
}

/// Each class and what it is derived from, up to the one that all services are.
const CLASSES: [(&str, &str); 9] = [
    ("IOService", "IORegistryEntry"),
    ("IORegistryEntry", "OSObject"),
    ("IOPlatformExpertDevice", "IOService"),
    ("AppleARMIODevice", "IOService"),
    ("IOPCIBridge", "IOService"),
    ("IOPCI2PCIBridge", "IOPCIBridge"),
    ("IOPCIDevice", "IOService"),
    ("IOUserService", "IOService"),
    ("IOUserUserClient", "IOService"),
];

fn is_derived(class: &str, from: &str) -> bool {
    let mut class = class;
    loop {
        if class == from {
            return true;
        }
        match CLASSES.iter().find(|(name, _)| *name == class) {
            Some((_, above)) => class = above,
            None => return false,
        }
    }
}

/// How long the dext may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to the dext that has opened nothing.
pub(super) fn connect() -> Option<Tube> {
    let path = DEXT.get()?;
    let tube = Tube::connect(path).ok()?;
    let mut tube = Tube::from_fd(reserved(tube.into()));
    tube.handshake(Role::DextClient, Role::Dext, Deadline::after(TIMEOUT)).ok()?;
    Some(tube)
}

fn services() -> Vec<Service> {
    let Some(mut tube) = connect() else { return Vec::new() };
    let deadline = Deadline::after(TIMEOUT);
    let sent = tube.send(1, &DextRequest::Services, &[], deadline);
    match sent.and_then(|()| tube.receive::<DextReply>(deadline)) {
        Ok(received) => match received.message {
            DextReply::Services(services) => services,
            other => fail::not_simulated(&format!("an answer of the dext's: {other:?}")),
        },
        // It went meanwhile.
        Err(_) => Vec::new(),
    }
}

/// Numbers of entries that are not the dext's: far from its own.
const OTHERS: u64 = 1 << 40;

#[derive(Default)]
struct Snapshot(Vec<Arc<Node>>);

impl Snapshot {
    fn add(
        &mut self,
        id: u64,
        class: &'static str,
        name: &str,
        location: Option<&str>,
        parent: Option<&Arc<Node>>,
    ) -> Arc<Node> {
        self.add_with(id, class, (name, location), Vec::new(), parent, false)
    }

    fn add_with(
        &mut self,
        id: u64,
        class: &'static str,
        (name, location): (&str, Option<&str>),
        properties: Vec<(&'static str, String)>,
        parent: Option<&Arc<Node>>,
        is_dext: bool,
    ) -> Arc<Node> {
        let node = Arc::new(Node {
            id,
            class,
            name: name.to_owned(),
            location: location.map(str::to_owned),
            properties,
            parent: parent.cloned(),
            children: Mutex::default(),
            below: Mutex::default(),
            is_dext,
        });
        if let Some(parent) = parent {
            parent.children.lock().unwrap_or_else(|e| e.into_inner()).push(Arc::downgrade(&node));
        }
        self.0.push(Arc::clone(&node));
        node
    }

    /// What there is now.
    fn take() -> Self {
        let mut all = Self::default();
        let root = all.add(OTHERS, "IORegistryEntry", "Root", None, None);
        let platform = all.add(OTHERS + 1, "IOPlatformExpertDevice", "J000AP", None, Some(&root));
        let mut hosts: Vec<(String, Arc<Node>)> = Vec::new();
        for (index, service) in (1..).zip(services()) {
            let base = OTHERS + (index << 16);
            // What is above a service: the host's bridge of its name, or nothing that is a bridge.
            let above = match &service.root_bridge {
                None => Arc::clone(&platform),
                Some(bridge) => match hosts.iter().find(|(name, _)| name == bridge.as_str()) {
                    Some((_, above)) => Arc::clone(above),
                    None => {
                        let (name, location) = match bridge.as_str().split_once('@') {
                            Some((name, location)) => (name, Some(location)),
                            None => (bridge.as_str(), None),
                        };
                        let host =
                            all.add(base + 1, "AppleARMIODevice", name, location, Some(&platform));
                        let top =
                            all.add(base + 2, "IOPCIBridge", "ApplePCIHost", None, Some(&host));
                        let port =
                            all.add(base + 3, "IOPCIDevice", "pci-bridge0", Some("0"), Some(&top));
                        let below = all.add(base + 4, "IOPCI2PCIBridge", "IOPP", None, Some(&port));
                        hosts.push((bridge.as_str().to_owned(), Arc::clone(&below)));
                        below
                    }
                },
            };
            let device = all.add(base + 5, "IOPCIDevice", "pci-device", Some("0"), Some(&above));
            let class = vec![("IOUserClass", service.class.clone())];
            let names = (service.class.as_str(), None);
            let dext = all.add_with(service.id, "IOUserService", names, class, Some(&device), true);
            for (number, client) in (6..).zip(&service.clients) {
                let creator = format!("pid {}, {}", client.pid, client.name);
                let properties = vec![("IOUserClientCreator", creator)];
                let names = ("IOUserUserClient", None);
                all.add_with(
                    base + number,
                    "IOUserUserClient",
                    names,
                    properties,
                    Some(&dext),
                    false,
                );
            }
        }
        // Whoever holds an entry can go down from it too.
        let whole = all.0.clone();
        for node in &all.0 {
            let children = node.children.lock().unwrap_or_else(|e| e.into_inner());
            let ids: Vec<u64> =
                children.iter().filter_map(Weak::upgrade).map(|one| one.id).collect();
            drop(children);
            let below = whole.iter().filter(|one| ids.contains(&one.id)).cloned().collect();
            *node.below.lock().unwrap_or_else(|e| e.into_inner()) = below;
        }
        all
    }

    fn matching(self, value: &Value) -> VecDeque<Arc<Node>> {
        let fits = |node: &Arc<Node>| match value {
            Value::ClassMatch(class) => is_derived(node.class, class),
            Value::IdMatch(id) => node.id == *id,
            Value::Text(_) => fail::abort("a string is no matching dictionary"),
        };
        self.0.into_iter().filter(fits).collect()
    }
}

/// # Safety
/// A string that ends in NUL.
unsafe fn text(at: *const c_char) -> String {
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned()
}

/// The only plane here.
fn service_plane(plane: *const c_char) {
    // SAFETY: the Darwin call's string.
    let plane = unsafe { text(plane) };
    if plane != "IOService" {
        fail::not_simulated(&format!("the registry's plane {plane}"));
    }
}

pub(crate) extern "C" fn matching(class: *const c_char) -> *mut cf::Object {
    // SAFETY: the Darwin call's string.
    cf::new(Value::ClassMatch(unsafe { text(class) }))
}

pub(crate) extern "C" fn id_matching(id: u64) -> *mut cf::Object {
    cf::new(Value::IdMatch(id))
}

fn own_port(port: Name) {
    if port != NULL {
        fail::not_simulated("a main port of IOKit's other than the default one");
    }
}

/// What matches; the dictionary is consumed.
fn matches(port: Name, dictionary: *mut cf::Object) -> VecDeque<Arc<Node>> {
    own_port(port);
    // SAFETY: the Darwin call's dictionary, of which this call takes the reference.
    let value = unsafe { cf::get(dictionary) }.value.clone();
    cf::release(dictionary);
    Snapshot::take().matching(&value)
}

pub(crate) extern "C" fn matching_services(
    port: Name,
    dictionary: *mut cf::Object,
    into: *mut Name,
) -> Code {
    let found = matches(port, dictionary);
    let iterator = give(Object::Iterator(Arc::new(Mutex::new(found))), false);
    // SAFETY: the Darwin call's place for an iterator.
    unsafe { put(into, iterator) };
    returned::SUCCESS
}

pub(crate) extern "C" fn matching_service(port: Name, dictionary: *mut cf::Object) -> Name {
    matches(port, dictionary).front().map_or(NULL, give_entry)
}

pub(crate) extern "C" fn next(iterator: Name) -> Name {
    let Some(Object::Iterator(left)) = find(iterator) else { return NULL };
    let node = left.lock().unwrap_or_else(|e| e.into_inner()).pop_front();
    node.map_or(NULL, |node| give_entry(&node))
}

pub(crate) extern "C" fn conforms_to(object: Name, class: *const c_char) -> u32 {
    // SAFETY: the Darwin call's string.
    let class = unsafe { text(class) };
    u32::from(entry(object).is_some_and(|node| is_derived(node.class, &class)))
}

pub(crate) extern "C" fn entry_id(object: Name, into: *mut u64) -> Code {
    let Some(node) = entry(object) else { return returned::BAD_ARGUMENT };
    // SAFETY: the Darwin call's place for a number.
    unsafe { put(into, node.id) };
    returned::SUCCESS
}

/// Bytes of an `io_name_t`.
const NAME: usize = 128;

/// # Safety
/// Room for an `io_name_t`.
unsafe fn put_name(into: *mut u8, name: &str) {
    let length = name.len().min(NAME - 1);
    // SAFETY: the caller's promise.
    unsafe {
        into.copy_from_nonoverlapping(name.as_ptr(), length);
        into.add(length).write(0);
    }
}

pub(crate) extern "C" fn name_in_plane(object: Name, plane: *const c_char, into: *mut u8) -> Code {
    service_plane(plane);
    let Some(node) = entry(object) else { return returned::BAD_ARGUMENT };
    // SAFETY: the Darwin call's room.
    unsafe { put_name(into, &node.name) };
    returned::SUCCESS
}

/// kIOReturnNotFound where the entry has none (`is_io_registry_entry_get_location_in_plane`).
pub(crate) extern "C" fn location_in_plane(
    object: Name,
    plane: *const c_char,
    into: *mut u8,
) -> Code {
    service_plane(plane);
    let Some(node) = entry(object) else { return returned::BAD_ARGUMENT };
    let Some(location) = &node.location else { return returned::NOT_FOUND };
    // SAFETY: the Darwin call's room.
    unsafe { put_name(into, location) };
    returned::SUCCESS
}

/// kIOReturnNoDevice at the root (`is_io_registry_entry_get_parent_iterator` gives none, IOKitLib.c says so).
pub(crate) extern "C" fn parent_entry(object: Name, plane: *const c_char, into: *mut Name) -> Code {
    service_plane(plane);
    let Some(node) = entry(object) else { return returned::BAD_ARGUMENT };
    let parent = node.parent.as_ref().map_or(NULL, give_entry);
    // SAFETY: the Darwin call's place for an entry.
    unsafe { put(into, parent) };
    if parent == NULL { returned::NO_DEVICE } else { returned::SUCCESS }
}

pub(crate) extern "C" fn child_iterator(
    object: Name,
    plane: *const c_char,
    into: *mut Name,
) -> Code {
    service_plane(plane);
    let Some(node) = entry(object) else { return returned::BAD_ARGUMENT };
    let children = node.below.lock().unwrap_or_else(|e| e.into_inner()).iter().cloned().collect();
    let iterator = give(Object::Iterator(Arc::new(Mutex::new(children))), false);
    // SAFETY: the Darwin call's place for an iterator.
    unsafe { put(into, iterator) };
    returned::SUCCESS
}

/// NULL where there is no such property, or the sandbox hides it (`iokit-get-properties`).
pub(crate) extern "C" fn create_property(
    object: Name,
    key: *const cf::Object,
    _allocator: *const c_char,
    options: u32,
) -> *mut cf::Object {
    if options != 0 {
        fail::not_simulated(&format!("IORegistryEntryCreateCFProperty with {options:#x}"));
    }
    // SAFETY: the Darwin call's string.
    let Value::Text(key) = (unsafe { &cf::get(key).value }) else {
        fail::abort("a property's name is no string");
    };
    let Some(node) = entry(object) else { return std::ptr::null_mut() };
    if !sandbox::may("iokit-get-properties", &Target::Name(key)) {
        return std::ptr::null_mut();
    }
    let found = node.properties.iter().find(|(name, _)| *name == key.as_str());
    found.map_or(std::ptr::null_mut(), |(_, value)| cf::new(Value::Text(value.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_what_they_are_derived_from() {
        assert!(is_derived("IOPCI2PCIBridge", "IOPCIBridge"));
        assert!(is_derived("IOUserService", "IOService"));
        assert!(!is_derived("IOPCIDevice", "IOPCIBridge"));
        assert!(!is_derived("IOUserService", "IOUserUserClient"));
    }
}
