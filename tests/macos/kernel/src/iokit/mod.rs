//! IOKit over the simulated dext: the registry, connections, their memory and their completions
//! (xnu-11417.101.15 iokit/Kernel/IOUserClient.cpp, IOUserServer.cpp; IOKitUser-100222.0.4 IOKitLib.c).
//!
//! Every object has a name in this task that is a send right of the kernel process's; what it stands for is here. A
//! connection is a socket of this process's own to the dext, so the dext knows who it is, and the end of the process
//! is the end of its connections.

pub(crate) mod async_call;
pub(crate) mod connect;
pub(crate) mod notify;
pub(crate) mod registry;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use darwin_abi::Symbol;

use crate::client::ask;
use crate::codes::{Code, Name, right};
use crate::state::SELF;
use crate::wire::{Reply, Request};
use crate::{fail, ports};
use connect::Connection;
use notify::Interest;
use registry::Node;
pub(crate) use registry::{dext, start};

/// iokit/IOKit/IOReturn.h.
pub(crate) mod returned {
    use crate::codes::Code;
    const fn code(number: u32) -> Code {
        number.cast_signed()
    }
    pub(crate) const SUCCESS: Code = 0;
    pub(crate) const NO_RESOURCES: Code = code(0xe000_02be);
    pub(crate) const NO_DEVICE: Code = code(0xe000_02c0);
    pub(crate) const BAD_ARGUMENT: Code = code(0xe000_02c2);
    pub(crate) const UNSUPPORTED: Code = code(0xe000_02c7);
    pub(crate) const OFFLINE: Code = code(0xe000_02d7);
    pub(crate) const NOT_PERMITTED: Code = code(0xe000_02e2);
    pub(crate) const NOT_FOUND: Code = code(0xe000_02f0);
    /// Of MIG's, where the port is gone: MACH_SEND_INVALID_DEST.
    pub(crate) const PORT_DEAD: Code = crate::codes::msg::SEND_INVALID_DEST;
}

/// What a name stands for.
#[derive(Clone)]
pub(crate) enum Object {
    Entry(Arc<Node>),
    Iterator(Arc<Mutex<VecDeque<Arc<Node>>>>),
    Connection(Arc<Connection>),
    Interest(Arc<Interest>),
}

static OBJECTS: Mutex<Option<HashMap<Name, Object>>> = Mutex::new(None);

struct Objects(MutexGuard<'static, Option<HashMap<Name, Object>>>);

impl Objects {
    fn lock() -> Self {
        Self(OBJECTS.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn get(&mut self) -> &mut HashMap<Name, Object> {
        self.0.get_or_insert_default()
    }
}

/// What `name` stands for.
fn find(name: Name) -> Option<Object> {
    Objects::lock().get().get(&name).cloned()
}

/// A registry entry by its name.
fn entry(name: Name) -> Option<Arc<Node>> {
    match find(name) {
        Some(Object::Entry(node)) => Some(node),
        _ => None,
    }
}

/// A connection by its name. What is no connection is no destination for what is sent to it.
fn connection(name: Name) -> Result<Arc<Connection>, Code> {
    match find(name) {
        Some(Object::Connection(connection)) => Ok(connection),
        Some(_) => fail::not_simulated("a call on a connection that is another object of IOKit's"),
        None => Err(returned::PORT_DEAD),
    }
}

fn give(object: Object, is_immovable: bool) -> Name {
    match ask(&Request::NewObject { is_immovable }) {
        Reply::Name(name) => {
            Objects::lock().get().insert(name, object);
            name
        }
        other => fail::not_simulated(&format!("an answer to a new object: {other:?}")),
    }
}

/// The name of a registry entry: one entry has one port, so it has one name in a task however often it is looked up,
/// with a reference more each time.
fn give_entry(node: &Arc<Node>) -> Name {
    let known = {
        let mut objects = Objects::lock();
        let mut all = objects.get().iter();
        all.find(|(_, object)| matches!(object, Object::Entry(known) if known.id == node.id))
            .map(|(name, _)| *name)
    };
    if let Some(name) = known
        && ports::mod_refs(SELF, name, right::SEND, 1) == 0
    {
        Objects::lock().get().insert(name, Object::Entry(Arc::clone(node)));
        return name;
    }
    give(Object::Entry(Arc::clone(node)), false)
}

/// The last right of an object went: no-senders ends a connection (`iokit_no_senders`, iokit_rpc.c), and whatever
/// else it was.
pub(crate) fn last_right_gone(name: Name) {
    let object = Objects::lock().get().remove(&name);
    match object {
        Some(Object::Connection(connection)) => connection.close(),
        Some(Object::Interest(interest)) => interest.end(),
        Some(Object::Entry(_) | Object::Iterator(_)) | None => {}
    }
}

/// Tells who asked for the general interest of a service that it is terminated.
fn service_terminated(service: u64) {
    let all: Vec<Object> = Objects::lock().get().values().cloned().collect();
    for object in all {
        if let Object::Interest(interest) = object {
            interest.terminated(service);
        }
    }
}

/// `IOObjectRelease` (IOKitLib.c): `mach_port_deallocate` of this task.
pub(crate) extern "C" fn release(object: Name) -> Code {
    ports::deallocate(SELF, object)
}

const SYMBOLS: &[Symbol] = darwin_abi::symbols! {
    "_IOObjectRelease" => release as extern "C" fn(_) -> _,
};

pub(crate) fn symbols() -> Vec<&'static [Symbol]> {
    vec![SYMBOLS, registry::SYMBOLS, connect::SYMBOLS, async_call::SYMBOLS, notify::SYMBOLS]
}
