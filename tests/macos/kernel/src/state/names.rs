//! Rights and their names: what `mach_port_*` do (osfmk/ipc/mach_port.c, osfmk/ipc/ipc_right.c).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Answer, Carried, Entry, Fault, Kernel, Kind, PortId, Receiver, Right, TaskId};
use crate::codes::{DEAD, MAX_REFERENCES, NULL, Name, disposition, kern, right};

impl Kernel {
    fn new_name(&mut self, task: TaskId, right: Right) -> Answer<Name> {
        let task = self.task_mut(task)?;
        let name = task.next;
        // A name is never used twice, so that a stale one is found.
        task.next = name.checked_add(0x100).ok_or(kern::RESOURCE_SHORTAGE)?;
        task.space.insert(name, Entry { right, dead_name: None });
        Ok(name)
    }

    fn entry(&mut self, task: TaskId, name: Name) -> Answer<&mut Entry> {
        let entry = self.task_mut(task)?.space.get_mut(&name);
        entry.ok_or(Fault::Code(kern::INVALID_NAME))
    }

    /// `mach_port_allocate`.
    pub(crate) fn allocate(&mut self, task: TaskId, kind: u32) -> Answer<Name> {
        match kind {
            right::RECEIVE => {
                let port = self.new_port(Kind::Plain, Receiver::Transit);
                self.receive_name(task, port)
            }
            right::PORT_SET => self.new_name(task, Right::Set { members: Vec::new() }),
            right::DEAD_NAME => self.new_name(task, Right::Dead { references: 1 }),
            _ => Err(kern::INVALID_VALUE.into()),
        }
    }

    fn receive_name(&mut self, task: TaskId, port: PortId) -> Answer<Name> {
        let name = match self.name_of(task, port)? {
            Some(name) => {
                if let Right::Port { receive, .. } = &mut self.entry(task, name)?.right {
                    *receive = true;
                }
                name
            }
            None => self.new_name(task, Right::Port { port, receive: true, sends: 0 })?,
        };
        if let Some(port) = self.ports.get_mut(&port) {
            port.receiver = Receiver::Task(task, name);
        }
        Ok(name)
    }

    /// The name by which a task has send or receive rights of a port: at most one.
    fn name_of(&self, task: TaskId, wanted: PortId) -> Answer<Option<Name>> {
        let names = self.task(task)?.space.iter();
        let mut names = names
            .filter(|(_, entry)| matches!(entry.right, Right::Port { port, .. } if port == wanted));
        Ok(names.next().map(|(name, _)| *name))
    }

    /// `mach_port_insert_right`: a right of the caller's own under a name.
    pub(crate) fn insert(&mut self, task: TaskId, name: Name, from: Name, how: u32) -> Answer<()> {
        if from == NULL || from == DEAD || name == NULL || name == DEAD {
            return Err(
                if from == NULL { kern::INVALID_CAPABILITY } else { kern::INVALID_VALUE }.into()
            );
        }
        // `mach_port_insert_right` copies the right in by its name, so an immovable one ends here.
        let carried = self.copy_in(task, from, how).map_err(|fault| match fault {
            Fault::Code(kern::INVALID_NAME) => Fault::Code(kern::INVALID_CAPABILITY),
            other => other,
        })?;
        let Carried::Send(Some(port)) = carried else {
            return Err(Fault::NotSimulated(format!(
                "mach_port_insert_right with disposition {how}"
            )));
        };
        match self.name_of(task, port)? {
            Some(known) if known == name => self.add_reference(task, name),
            Some(_) => {
                self.drop_send(port);
                // KERN_RIGHT_EXISTS.
                Err(Fault::Code(21))
            }
            None if self.task(task)?.space.contains_key(&name) => {
                self.drop_send(port);
                Err(kern::NAME_EXISTS.into())
            }
            None => {
                self.drop_send(port);
                Err(Fault::NotSimulated("mach_port_insert_right with a new name".to_owned()))
            }
        }
    }

    fn add_reference(&mut self, task: TaskId, name: Name) -> Answer<()> {
        match &mut self.entry(task, name)?.right {
            Right::Port { sends, .. } if *sends < MAX_REFERENCES => *sends += 1,
            _ => return Err(kern::UREFS_OVERFLOW.into()),
        }
        Ok(())
    }

    /// `mach_port_deallocate`: one reference of a send, send-once or dead name
    /// (`ipc_right_dealloc`; anything else is KERN_INVALID_RIGHT). True if the right of a kernel's object was the
    /// last one.
    pub(crate) fn deallocate(&mut self, task: TaskId, name: Name) -> Answer<bool> {
        // `mach_port_deallocate`: no name at all is success.
        if name == NULL || name == DEAD {
            return Ok(false);
        }
        match self.entry(task, name)?.right.clone() {
            Right::Dead { .. } => self.mod_refs(task, name, right::DEAD_NAME, -1),
            Right::Once { .. } => self.mod_refs(task, name, right::SEND_ONCE, -1),
            Right::Port { sends: 1.., .. } => self.mod_refs(task, name, right::SEND, -1),
            Right::Port { .. } | Right::Set { .. } => Err(kern::INVALID_RIGHT.into()),
        }
    }

    /// `mach_port_mod_refs` (`ipc_right_delta`). True if the right of a kernel's object was the last one.
    pub(crate) fn mod_refs(
        &mut self,
        task: TaskId,
        name: Name,
        kind: u32,
        delta: i32,
    ) -> Answer<bool> {
        let found = self.entry(task, name)?.right.clone();
        match (kind, found) {
            (right::RECEIVE, Right::Port { port, receive: true, .. }) => match delta {
                0 => Ok(false),
                -1 => {
                    self.destroy_port(port);
                    Ok(false)
                }
                _ => Err(kern::INVALID_VALUE.into()),
            },
            (right::SEND, Right::Port { port, receive, sends: sends @ 1.. }) => {
                let left = i64::from(sends) + i64::from(delta);
                let left = u32::try_from(left).map_err(|_| Fault::Code(kern::INVALID_VALUE))?;
                if left > MAX_REFERENCES {
                    return Err(kern::UREFS_OVERFLOW.into());
                }
                (sends..left).for_each(|_| self.add_send(port));
                if let Right::Port { sends, .. } = &mut self.entry(task, name)?.right {
                    *sends = left;
                }
                let is_object = matches!(
                    self.ports.get(&port).map(|port| &port.kind),
                    Some(Kind::Object { .. })
                );
                if left == 0 && !receive {
                    self.remove_name(task, name)?;
                }
                (left..sends).for_each(|_| self.drop_send(port));
                Ok(left == 0 && is_object)
            }
            (right::SEND_ONCE, Right::Once { port }) => match delta {
                0 => Ok(false),
                -1 => {
                    self.remove_name(task, name)?;
                    self.drop_once(port);
                    Ok(false)
                }
                _ => Err(kern::INVALID_VALUE.into()),
            },
            (right::PORT_SET, Right::Set { .. }) => match delta {
                0 => Ok(false),
                -1 => self.remove_name(task, name).map(|()| false),
                _ => Err(kern::INVALID_VALUE.into()),
            },
            (right::DEAD_NAME, Right::Dead { references }) => {
                let left = i64::from(references) + i64::from(delta);
                match u32::try_from(left) {
                    Ok(0) => self.remove_name(task, name).map(|()| false),
                    Ok(left) => {
                        self.entry(task, name)?.right = Right::Dead { references: left };
                        Ok(false)
                    }
                    Err(_) => Err(kern::INVALID_VALUE.into()),
                }
            }
            (0..=right::DEAD_NAME, _) => Err(kern::INVALID_RIGHT.into()),
            _ => Err(kern::INVALID_VALUE.into()),
        }
    }

    fn remove_name(&mut self, task: TaskId, name: Name) -> Answer<()> {
        let removed = self.task_mut(task)?.space.remove(&name);
        if let Some(port) = removed.and_then(|entry| entry.dead_name) {
            self.drop_once(port);
        }
        Ok(())
    }

    /// `mach_port_move_member`, and with NULL out of its set.
    pub(crate) fn move_member(&mut self, task: TaskId, member: Name, into: Name) -> Answer<()> {
        let Right::Port { port, receive: true, .. } = self.entry(task, member)?.right else {
            return Err(kern::INVALID_RIGHT.into());
        };
        if into != NULL && !matches!(self.entry(task, into)?.right, Right::Set { .. }) {
            return Err(kern::INVALID_RIGHT.into());
        }
        let mut was_in = false;
        for entry in self.task_mut(task)?.space.values_mut() {
            if let Right::Set { members } = &mut entry.right {
                was_in |= members.contains(&port);
                members.retain(|member| *member != port);
            }
        }
        if into == NULL {
            return if was_in { Ok(()) } else { Err(kern::NOT_IN_SET.into()) };
        }
        if let Right::Set { members } = &mut self.entry(task, into)?.right {
            members.push(port);
        }
        Ok(())
    }

    /// A descriptor that is readable while the port has messages.
    pub(crate) fn readable(
        &mut self,
        task: TaskId,
        name: Name,
        make: impl FnOnce() -> std::io::Result<OwnedFd>,
    ) -> Answer<Arc<OwnedFd>> {
        let Right::Port { port, receive: true, .. } = self.entry(task, name)?.right else {
            return Err(Fault::NotSimulated(
                "EVFILT_MACHPORT of what is no receive right".to_owned(),
            ));
        };
        let found = self.ports.get_mut(&port).ok_or(Fault::Code(kern::INVALID_NAME))?;
        if let Some(readable) = &found.readable {
            return Ok(Arc::clone(readable));
        }
        let made = make().map_err(|error| Fault::NotSimulated(format!("an event: {error}")))?;
        let made = Arc::new(made);
        found.readable = Some(Arc::clone(&made));
        self.show_readable(port);
        Ok(made)
    }

    pub(super) fn show_readable(&self, port: PortId) {
        let Some(port) = self.ports.get(&port) else { return };
        let Some(readable) = &port.readable else { return };
        if port.queue.is_empty() {
            let _ = rustix::io::read(&**readable, &mut [0; 8]);
        } else {
            let _ = rustix::io::write(&**readable, &1u64.to_ne_bytes());
        }
    }

    pub(super) fn add_send(&mut self, port: PortId) {
        if let Some(port) = self.ports.get_mut(&port) {
            port.sends += 1;
        }
    }

    /// One send right less. The last one of a kernel's object ends the object (`ipc_kobject` no-senders).
    pub(super) fn drop_send(&mut self, id: PortId) {
        let Some(port) = self.ports.get_mut(&id) else { return };
        port.sends = port.sends.saturating_sub(1);
        if port.sends > 0 {
            return;
        }
        match port.kind {
            Kind::Plain => {
                let count = port.make_sends;
                if let Some(whom) = port.no_senders.take() {
                    self.tell_no_senders(whom, count);
                }
            }
            Kind::Memory(_) | Kind::Object { .. } => drop(self.ports.remove(&id)),
            Kind::Task => {}
        }
    }

    /// The end of a port: its messages go, and names of it die everywhere.
    pub(super) fn destroy_port(&mut self, id: PortId) {
        let Some(port) = self.ports.remove(&id) else { return };
        if let Some(readable) = port.readable {
            // Whoever waits finds out that the port died.
            let _ = rustix::io::write(&*readable, &1u64.to_ne_bytes());
        }
        let mut told = Vec::new();
        for task in self.tasks.values_mut() {
            for (name, entry) in &mut task.space {
                let references = match &mut entry.right {
                    Right::Port { port, sends, .. } if *port == id => *sends,
                    Right::Once { port } if *port == id => 1,
                    Right::Set { members } => {
                        members.retain(|member| *member != id);
                        continue;
                    }
                    _ => continue,
                };
                // A notification brings a reference of the dead name along (`ipc_right_check`).
                let request = entry.dead_name.take();
                let references = references + u32::from(request.is_some());
                entry.right = Right::Dead { references };
                told.extend(request.map(|whom| (whom, *name)));
            }
            task.space.retain(|_, entry| entry.right != Right::Dead { references: 0 });
        }
        for (whom, name) in told {
            self.tell_dead_name(whom, name);
        }
        if let Some(whom) = port.no_senders {
            self.drop_once(whom);
        }
        for message in port.queue {
            self.destroy_message(message);
        }
    }

    /// Takes a right of a task's to put it into a message or somewhere else.
    pub(super) fn copy_in(&mut self, task: TaskId, name: Name, how: u32) -> Answer<Carried> {
        use disposition::{
            COPY_SEND, MAKE_SEND, MAKE_SEND_ONCE, MOVE_RECEIVE, MOVE_SEND, MOVE_SEND_ONCE,
        };
        if !(MOVE_RECEIVE..=MAKE_SEND_ONCE).contains(&how) {
            return Err(kern::INVALID_VALUE.into());
        }
        let is_once = how == MOVE_SEND_ONCE || how == MAKE_SEND_ONCE;
        if name == NULL || name == DEAD {
            return Ok(if is_once { Carried::Once(None) } else { Carried::Send(None) });
        }
        let found = self.entry(task, name)?.right.clone();
        match (how, found) {
            (MAKE_SEND | MAKE_SEND_ONCE, Right::Port { port, receive: true, .. }) => {
                if is_once {
                    return Ok(Carried::Once(Some(port)));
                }
                self.add_send(port);
                if let Some(port) = self.ports.get_mut(&port) {
                    port.make_sends += 1;
                }
                Ok(Carried::Send(Some(port)))
            }
            (COPY_SEND | MOVE_SEND, Right::Port { port, sends: 1.., .. }) => {
                if self.is_immovable(port) {
                    // `ipc_right_copyin`: an immovable send right is KERN_INVALID_CAPABILITY, with
                    // `mach_port_guard_exception_immovable`, which is fatal for what is no task's or thread's.
                    return Err(Fault::Guard(format!(
                        "GUARD_TYPE_MACH_PORT kGUARD_EXC_IMMOVABLE: name {name:#x} of an io_connect_t was to leave its task"
                    )));
                }
                self.add_send(port);
                if how == MOVE_SEND {
                    self.mod_refs(task, name, right::SEND, -1)?;
                }
                Ok(Carried::Send(Some(port)))
            }
            (COPY_SEND, Right::Dead { .. }) => Ok(Carried::Send(None)),
            (MOVE_SEND, Right::Dead { .. }) => {
                self.mod_refs(task, name, right::DEAD_NAME, -1)?;
                Ok(Carried::Send(None))
            }
            (MOVE_SEND_ONCE, Right::Once { port }) => {
                self.remove_name(task, name)?;
                Ok(Carried::Once(Some(port)))
            }
            (MOVE_SEND_ONCE, Right::Dead { .. }) => {
                self.mod_refs(task, name, right::DEAD_NAME, -1)?;
                Ok(Carried::Once(None))
            }
            (MOVE_RECEIVE, Right::Port { port, receive: true, sends }) => {
                if sends == 0 {
                    self.remove_name(task, name)?;
                } else if let Right::Port { receive, .. } = &mut self.entry(task, name)?.right {
                    *receive = false;
                }
                if let Some(port) = self.ports.get_mut(&port) {
                    port.receiver = Receiver::Transit;
                }
                Ok(Carried::Receive(port))
            }
            _ => Err(kern::INVALID_RIGHT.into()),
        }
    }

    /// Gives a right to a task; its name there.
    pub(super) fn copy_out(&mut self, task: TaskId, carried: Carried) -> Answer<Name> {
        match carried {
            Carried::Send(Some(port)) if self.is_alive(port) => match self.name_of(task, port)? {
                Some(name) => match self.add_reference(task, name) {
                    Ok(()) => Ok(name),
                    Err(fault) => {
                        self.drop_send(port);
                        Err(fault)
                    }
                },
                None => self.new_name(task, Right::Port { port, receive: false, sends: 1 }),
            },
            Carried::Once(Some(port)) if self.is_alive(port) => {
                self.new_name(task, Right::Once { port })
            }
            Carried::Receive(port) => self.receive_name(task, port),
            // `ipc_right_copyout` of a port that died meanwhile, or of none.
            Carried::Send(_) | Carried::Once(_) => Ok(DEAD),
        }
    }

    /// A send right that the kernel keeps for an asynchronous call: MACH_MSG_TYPE_MAKE_SEND of the caller's.
    pub(crate) fn hold(&mut self, task: TaskId, name: Name) -> Answer<u64> {
        match self.copy_in(task, name, disposition::MAKE_SEND)? {
            Carried::Send(Some(port)) => {
                let number = self.number();
                self.task_mut(task)?.held.insert(number, port);
                Ok(number)
            }
            _ => Err(kern::INVALID_CAPABILITY.into()),
        }
    }

    /// Gives up a right that was held.
    pub(crate) fn let_go(&mut self, task: TaskId, held: u64) -> Answer<()> {
        if let Some(port) = self.task_mut(task)?.held.remove(&held) {
            self.drop_send(port);
        }
        Ok(())
    }
}
