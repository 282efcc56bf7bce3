//! The kernel's state: tasks, their name spaces, ports and rights. Runs in the kernel process, knows nothing of
//! sockets, and is told of everything by number.
//!
//! Sources, all of xnu-11417.101.15: osfmk/ipc/{ipc_right,ipc_port,ipc_object,ipc_kmsg,ipc_notify,mach_port}.c,
//! osfmk/kern/ipc_tt.c.

mod message;
mod names;
mod notify;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::codes::{Code, Name, REGISTERED};
pub(crate) use message::Received;
use message::{Carried, Message};

/// A task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TaskId(pub(crate) u64);

/// A port, by a number that is used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortId(u64);

/// Why a call did not do what it was asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The kernel's answer.
    Code(Code),
    /// The caller is ended.
    Guard(String),
    /// Nobody knows what the kernel would do.
    NotSimulated(String),
}

impl From<Code> for Fault {
    fn from(code: Code) -> Self {
        Self::Code(code)
    }
}

pub(crate) type Answer<T> = Result<T, Fault>;

/// A part of a memory file.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// What a memory entry stands for.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub(crate) segments: Vec<Segment>,
    /// VM_PROT_*.
    pub(crate) protection: i32,
    /// Made with MAP_MEM_VM_SHARE: mapped whole or not at all.
    pub(crate) is_copy: bool,
}

/// What a port is.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Messages are queued for whoever holds the receive right.
    Plain,
    /// A task's own port.
    Task,
    /// A memory entry.
    Memory(Memory),
    /// An object of IOKit's, which the opener's own process carries out.
    Object {
        /// A connection: its send right stays in its task (`IPC_KOBJECT_ALLOC_IMMOVABLE_SEND`,
        /// osfmk/device/iokit_rpc.c `iokit_alloc_object_port`).
        is_immovable: bool,
    },
}

/// Where the receive right is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiver {
    Task(TaskId, Name),
    /// In a message.
    Transit,
    Kernel,
}

#[derive(Debug)]
struct Port {
    kind: Kind,
    receiver: Receiver,
    queue: VecDeque<Message>,
    limit: usize,
    /// Send rights, wherever they are.
    sends: u64,
    make_sends: u32,
    /// Whom to tell when there are no senders.
    no_senders: Option<PortId>,
    /// Readable while the queue is not empty; made when it is asked for.
    readable: Option<Arc<OwnedFd>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Right {
    Port { port: PortId, receive: bool, sends: u32 },
    Once { port: PortId },
    Set { members: Vec<PortId> },
    Dead { references: u32 },
}

#[derive(Debug)]
struct Entry {
    right: Right,
    /// Whom to tell when the name dies: a send-once right.
    dead_name: Option<PortId>,
}

/// What a confined task is confined by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Confinement {
    pub(crate) profile: String,
    pub(crate) parameters: Vec<(String, String)>,
}

#[derive(Debug)]
struct Task {
    pid: u32,
    port: PortId,
    space: BTreeMap<Name, Entry>,
    next: Name,
    registered: [Option<PortId>; REGISTERED],
    /// Rights that the kernel holds for the task: wake ports of asynchronous calls.
    held: BTreeMap<u64, PortId>,
    confinement: Option<Confinement>,
}

/// What a task that is about to be spawned starts with.
#[derive(Debug)]
struct Birth {
    registered: [Option<PortId>; REGISTERED],
    confinement: Option<Confinement>,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    tasks: BTreeMap<TaskId, Task>,
    ports: BTreeMap<PortId, Port>,
    births: BTreeMap<u64, Birth>,
    next: u64,
}

/// The name of a task's own port in its space.
pub(crate) const SELF: Name = 0x203;

impl Kernel {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn new_port(&mut self, kind: Kind, receiver: Receiver) -> PortId {
        let id = PortId(self.number());
        let port = Port {
            kind,
            receiver,
            queue: VecDeque::new(),
            limit: crate::codes::QUEUE_LIMIT,
            sends: 0,
            make_sends: 0,
            no_senders: None,
            readable: None,
        };
        self.ports.insert(id, port);
        id
    }

    fn new_task(&mut self, pid: u32, birth: Birth) -> TaskId {
        let id = TaskId(self.number());
        let port = self.new_port(Kind::Task, Receiver::Kernel);
        self.add_send(port);
        let own = Right::Port { port, receive: false, sends: 1 };
        let space = BTreeMap::from([(SELF, Entry { right: own, dead_name: None })]);
        let Birth { registered, confinement } = birth;
        let held = BTreeMap::new();
        let task = Task { pid, port, space, next: SELF + 0x100, registered, held, confinement };
        self.tasks.insert(id, task);
        id
    }

    /// A task that nobody of ours spawned.
    pub(crate) fn first_task(&mut self, pid: u32) -> TaskId {
        self.new_task(pid, Birth { registered: [None; REGISTERED], confinement: None })
    }

    /// The task that `birth` was made for. `None` if there is no such birth.
    pub(crate) fn born_task(&mut self, pid: u32, birth: u64) -> Option<TaskId> {
        let birth = self.births.remove(&birth)?;
        Some(self.new_task(pid, birth))
    }

    /// The copy of a task by fork: nothing of the space, the registered ports (`ipc_task_init`), the
    /// confinement.
    pub(crate) fn forked_task(&mut self, pid: u32, parent: TaskId) -> Option<TaskId> {
        let birth = self.heritage(parent)?;
        Some(self.new_task(pid, birth))
    }

    fn heritage(&mut self, parent: TaskId) -> Option<Birth> {
        let task = self.tasks.get(&parent)?;
        let (registered, confinement) = (task.registered, task.confinement.clone());
        registered.into_iter().flatten().for_each(|port| self.add_send(port));
        Some(Birth { registered, confinement })
    }

    /// Prepares what a spawned task starts with: the ports named, or the parent's own. A right that cannot move is
    /// KERN_INVALID_RIGHT, which posix_spawn returns as EINVAL (bsd/kern/kern_exec.c
    /// `exec_handle_port_actions`, osfmk/kern/ipc_tt.c `mach_ports_register`).
    pub(crate) fn birth(&mut self, parent: TaskId, named: Option<&[Name]>) -> Answer<u64> {
        let mut birth =
            self.heritage(parent).ok_or(Fault::NotSimulated("a task is gone".to_owned()))?;
        if let Some(names) = named {
            let new = self.slots(parent, names);
            let old = std::mem::replace(
                &mut birth.registered,
                *new.as_ref().unwrap_or(&[None; REGISTERED]),
            );
            old.into_iter().flatten().for_each(|port| self.drop_send(port));
            new?;
        }
        let number = self.number();
        self.births.insert(number, birth);
        Ok(number)
    }

    /// Send rights for the ports of these names.
    fn slots(&mut self, task: TaskId, names: &[Name]) -> Answer<[Option<PortId>; REGISTERED]> {
        if names.len() > REGISTERED {
            return Err(crate::codes::kern::INVALID_ARGUMENT.into());
        }
        let mut slots = [None; REGISTERED];
        for (slot, name) in slots.iter_mut().zip(names) {
            if *name == crate::codes::NULL || *name == crate::codes::DEAD {
                continue;
            }
            match self.send_right(task, *name) {
                Ok(port) => *slot = Some(port),
                Err(fault) => {
                    slots.into_iter().flatten().for_each(|port| self.drop_send(port));
                    return Err(fault);
                }
            }
        }
        Ok(slots)
    }

    /// One more send right for what `name` has one for, which must be able to move.
    fn send_right(&mut self, task: TaskId, name: Name) -> Answer<PortId> {
        let entry = self.task(task)?.space.get(&name);
        let right = entry.ok_or(crate::codes::kern::INVALID_NAME)?.right.clone();
        match right {
            Right::Port { port, sends: 1.., .. } if !self.is_immovable(port) => {
                self.add_send(port);
                Ok(port)
            }
            _ => Err(crate::codes::kern::INVALID_RIGHT.into()),
        }
    }

    /// `mach_ports_register`.
    pub(crate) fn register(&mut self, task: TaskId, names: &[Name]) -> Answer<()> {
        let new = self.slots(task, names)?;
        let old = std::mem::replace(&mut self.task_mut(task)?.registered, new);
        old.into_iter().flatten().for_each(|port| self.drop_send(port));
        Ok(())
    }

    /// `mach_ports_lookup`: every slot, each with a send right of its own.
    pub(crate) fn lookup(&mut self, task: TaskId) -> Answer<[Name; REGISTERED]> {
        let slots = self.task(task)?.registered;
        let mut names = [crate::codes::NULL; REGISTERED];
        for (name, port) in names.iter_mut().zip(slots) {
            let Some(port) = port else { continue };
            self.add_send(port);
            *name = self.copy_out(task, Carried::Send(Some(port)))?;
        }
        Ok(names)
    }

    /// The end of a task: its rights go at once.
    pub(crate) fn end_task(&mut self, id: TaskId) {
        let Some(task) = self.tasks.remove(&id) else { return };
        for entry in task.space.into_values() {
            if let Some(port) = entry.dead_name {
                self.drop_once(port);
            }
            match entry.right {
                Right::Port { port, receive, sends } => {
                    if receive {
                        self.destroy_port(port);
                    }
                    (0..sends).for_each(|_| self.drop_send(port));
                }
                Right::Once { port } => self.drop_once(port),
                Right::Set { .. } | Right::Dead { .. } => {}
            }
        }
        task.registered.into_iter().flatten().for_each(|port| self.drop_send(port));
        task.held.into_values().for_each(|port| self.drop_send(port));
        self.destroy_port(task.port);
    }

    /// Whether any task lives, or is about to.
    pub(crate) fn is_in_use(&self) -> bool {
        !self.tasks.is_empty()
    }

    fn task(&self, id: TaskId) -> Answer<&Task> {
        self.tasks.get(&id).ok_or(Fault::NotSimulated("a call of a task that is gone".to_owned()))
    }

    fn task_mut(&mut self, id: TaskId) -> Answer<&mut Task> {
        self.tasks
            .get_mut(&id)
            .ok_or(Fault::NotSimulated("a call of a task that is gone".to_owned()))
    }

    fn is_alive(&self, port: PortId) -> bool {
        self.ports.contains_key(&port)
    }

    fn is_immovable(&self, port: PortId) -> bool {
        let kind = self.ports.get(&port).map(|port| &port.kind);
        matches!(kind, Some(Kind::Object { is_immovable: true }))
    }

    /// A new object of IOKit's with one send right.
    pub(crate) fn new_object(&mut self, task: TaskId, is_immovable: bool) -> Answer<Name> {
        let port = self.new_port(Kind::Object { is_immovable }, Receiver::Kernel);
        self.add_send(port);
        self.copy_out(task, Carried::Send(Some(port)))
    }

    /// A new memory entry with one send right.
    pub(crate) fn new_memory(&mut self, task: TaskId, memory: Memory) -> Answer<Name> {
        let port = self.new_port(Kind::Memory(memory), Receiver::Kernel);
        self.add_send(port);
        self.copy_out(task, Carried::Send(Some(port)))
    }

    /// What the memory entry `name` stands for.
    pub(crate) fn memory(&self, task: TaskId, name: Name) -> Answer<Memory> {
        let entry = self.task(task)?.space.get(&name);
        let port = match entry.map(|entry| &entry.right) {
            Some(Right::Port { port, sends: 1.., .. }) => self.ports.get(port),
            _ => None,
        };
        match port.map(|port| &port.kind) {
            Some(Kind::Memory(memory)) => Ok(memory.clone()),
            // `vm_map_enter_mem_object`: neither a named entry nor a memory object.
            _ => Err(crate::codes::kern::INVALID_ARGUMENT.into()),
        }
    }

    /// Confines a task for good. Twice is refused, by the kernel and not by the library.
    pub(crate) fn confine(&mut self, task: TaskId, confinement: Confinement) -> Answer<bool> {
        let slot = &mut self.task_mut(task)?.confinement;
        let is_first = slot.is_none();
        if is_first {
            *slot = Some(confinement);
        }
        Ok(is_first)
    }

    /// What the process `pid` is confined by; an error if there is no such process.
    pub(crate) fn confinement(&self, pid: u32) -> Result<Option<Confinement>, ()> {
        let task = self.tasks.values().find(|task| task.pid == pid).ok_or(())?;
        Ok(task.confinement.clone())
    }
}
