//! Messages: in, queued, out (osfmk/ipc/ipc_kmsg.c, osfmk/ipc/ipc_mqueue.c, osfmk/ipc/mach_msg.c).

use super::{Answer, Fault, Kernel, Kind, PortId, Receiver, Right, TaskId};
use crate::codes::{
    COMPLEX, Code, DEAD, HEADER, NULL, Name, PORT_DESCRIPTOR, disposition, kern, msg, option,
};

/// A right on its way. `None` is no port, or a dead one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    Send(Option<PortId>),
    Once(Option<PortId>),
    Receive(PortId),
}

impl Carried {
    /// The disposition that its receiver sees.
    fn received(self) -> u32 {
        match self {
            Self::Send(_) => disposition::MOVE_SEND,
            Self::Once(_) => disposition::MOVE_SEND_ONCE,
            Self::Receive(_) => disposition::MOVE_RECEIVE,
        }
    }
}

/// A message in a queue.
#[derive(Debug)]
pub(super) struct Message {
    id: i32,
    is_complex: bool,
    /// Sent by a send-once right.
    by_once: bool,
    reply: Option<Carried>,
    /// What follows the header.
    body: Vec<u8>,
    /// Rights by where their descriptors begin in the body.
    rights: Vec<(usize, Carried)>,
    /// Process of the sender; 0 is the kernel.
    pid: u32,
}

impl Message {
    pub(super) fn of_kernel(id: i32, body: Vec<u8>, by_once: bool) -> Self {
        let rights = Vec::new();
        Self { id, is_complex: false, by_once, reply: None, body, rights, pid: 0 }
    }
}

/// What became of a receive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Header, body and trailer.
    Message(Vec<u8>),
    /// There is none yet.
    Empty,
}

/// A message that was taken from its sender and waits for room.
#[derive(Debug)]
pub(crate) struct Pending {
    to: PortId,
    by_once: bool,
    message: Message,
    header: [u32; 6],
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}

impl Kernel {
    /// Takes a message from its sender. The sender has lost what it moved, whatever comes of it.
    pub(crate) fn take_message(&mut self, task: TaskId, bytes: &[u8]) -> Answer<Pending> {
        if bytes.len() < HEADER || !bytes.len().is_multiple_of(4) {
            return Err(msg::SEND_MSG_TOO_SMALL.into());
        }
        let [bits, size, remote, local, voucher, id] =
            [0, 4, 8, 12, 16, 20].map(|at| word(bytes, at));
        let (to_how, reply_how, voucher_how) = (bits & 0x1f, bits >> 8 & 0x1f, bits >> 16 & 0x1f);
        if voucher_how != 0 || voucher != NULL {
            return Err(Fault::NotSimulated("a voucher in a message".to_owned()));
        }
        // MACH_MSGH_BITS_USER and no other.
        if bits & !(COMPLEX | 0x001f_1f1f) != 0 {
            return Err(msg::SEND_INVALID_HEADER.into());
        }
        // `ipc_kmsg_copyin_header`: a destination must be a send or send-once right.
        if !(disposition::MOVE_SEND..=disposition::MAKE_SEND_ONCE).contains(&to_how) {
            return Err(msg::SEND_INVALID_HEADER.into());
        }
        if remote == NULL || remote == DEAD {
            return Err(msg::SEND_INVALID_DEST.into());
        }
        if reply_how == 0 && local != NULL {
            return Err(msg::SEND_INVALID_HEADER.into());
        }
        let to = match self.copy_in_destination(task, remote, to_how)? {
            Carried::Send(Some(port)) => (port, false),
            Carried::Once(Some(port)) => (port, true),
            _ => return Err(msg::SEND_INVALID_DEST.into()),
        };
        let reply = match reply_how {
            0 => None,
            how => match self.copy_in(task, local, how) {
                Ok(Carried::Receive(port)) => {
                    self.release(Carried::Receive(port));
                    self.release_destination(to);
                    return Err(msg::SEND_INVALID_HEADER.into());
                }
                Ok(carried) => Some(carried),
                Err(Fault::Code(_)) => {
                    self.release_destination(to);
                    return Err(msg::SEND_INVALID_REPLY.into());
                }
                Err(other) => return Err(other),
            },
        };
        let body = bytes[HEADER..].to_vec();
        let pid = self.task(task)?.pid;
        let is_complex = bits & COMPLEX != 0;
        let (by_once, rights) = (to.1, Vec::new());
        let id = id.cast_signed();
        let mut message = Message { id, is_complex, by_once, reply, body, rights, pid };
        if is_complex && let Err(fault) = self.copy_in_body(task, &mut message) {
            self.destroy_message(message);
            self.release_destination(to);
            return Err(fault);
        }
        let header = [bits, size, remote, local, voucher, id.cast_unsigned()];
        Ok(Pending { to: to.0, by_once, message, header })
    }

    fn copy_in_destination(&mut self, task: TaskId, name: Name, how: u32) -> Answer<Carried> {
        // Sending *to* an immovable right moves nothing: `ipc_right_copyin` is told so by
        // IPC_OBJECT_COPYIN_FLAGS_ALLOW_IMMOVABLE_SEND.
        if how == disposition::COPY_SEND {
            let entry = self.task(task)?.space.get(&name);
            if let Some(Right::Port { port, sends: 1.., .. }) = entry.map(|entry| &entry.right) {
                let port = *port;
                self.add_send(port);
                return Ok(Carried::Send(Some(port)));
            }
        }
        self.copy_in(task, name, how).map_err(|fault| match fault {
            Fault::Code(_) => Fault::Code(msg::SEND_INVALID_DEST),
            other => other,
        })
    }

    fn release_destination(&mut self, (port, by_once): (PortId, bool)) {
        if by_once {
            self.drop_once(port);
        } else {
            self.drop_send(port);
        }
    }

    /// The descriptors of a complex message (`ipc_kmsg_copyin_body`).
    fn copy_in_body(&mut self, task: TaskId, message: &mut Message) -> Answer<()> {
        const PORT: u8 = 0;
        let Some(count) = message.body.get(..4).map(|bytes| word(bytes, 0) as usize) else {
            return Err(msg::SEND_MSG_TOO_SMALL.into());
        };
        let end = count.checked_mul(PORT_DESCRIPTOR).and_then(|bytes| bytes.checked_add(4));
        if end.is_none_or(|end| end > message.body.len()) {
            return Err(msg::SEND_MSG_TOO_SMALL.into());
        }
        for at in (4..).step_by(PORT_DESCRIPTOR).take(count) {
            let (how, kind) = (u32::from(message.body[at + 10]), message.body[at + 11]);
            match kind {
                PORT => {}
                1..=4 => {
                    return Err(Fault::NotSimulated(format!(
                        "a message with a descriptor of type {kind}"
                    )));
                }
                _ => return Err(msg::SEND_INVALID_TYPE.into()),
            }
            let name = word(&message.body, at);
            let carried = self.copy_in(task, name, how).map_err(|fault| match fault {
                Fault::Code(kern::INVALID_VALUE) => Fault::Code(msg::SEND_INVALID_TYPE),
                Fault::Code(_) => Fault::Code(msg::SEND_INVALID_RIGHT),
                other => other,
            })?;
            message.rights.push((at, carried));
        }
        Ok(())
    }

    /// Queues a message, if there is room. Send-once rights go past the limit (`ipc_mqueue_send`).
    pub(crate) fn deliver(&mut self, pending: Pending) -> Answer<Result<(), Pending>> {
        let Some(port) = self.ports.get(&pending.to) else {
            self.destroy_message(pending.message);
            return Ok(Ok(()));
        };
        if !matches!(port.kind, Kind::Plain) {
            let id = pending.message.id;
            return Err(Fault::NotSimulated(format!("message {id} to an object of the kernel's")));
        }
        if port.queue.len() >= port.limit && !pending.by_once {
            return Ok(Err(pending));
        }
        let Pending { to, by_once, message, .. } = pending;
        self.enqueue(to, message);
        if !by_once {
            // The right that it was sent by goes when it is queued here; no-senders is told after.
            self.drop_send(to);
        }
        Ok(Ok(()))
    }

    /// Gives a message back to its sender, whose time is over: it holds the rights again, as moved ones
    /// (`ipc_kmsg_copyout_pseudo`). A copied right is thus one more reference, which `mach_msg_destroy`
    /// gives back.
    pub(crate) fn give_back(&mut self, task: TaskId, pending: Pending) -> Answer<Vec<u8>> {
        let Pending { to, by_once, mut message, header } = pending;
        let destination = if by_once { Carried::Once(Some(to)) } else { Carried::Send(Some(to)) };
        let remote = self.copy_out(task, destination)?;
        let (local, reply_how) = match message.reply.take() {
            None => (header[3], 0),
            Some(carried) => (self.copy_out(task, carried)?, carried.received()),
        };
        self.copy_out_body(task, &mut message)?;
        let complex = header[0] & COMPLEX;
        let bits = complex | destination.received() | reply_how << 8;
        let words = [bits, header[1], remote, local, header[4], header[5]];
        let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        bytes.extend(message.body);
        Ok(bytes)
    }

    pub(super) fn enqueue(&mut self, to: PortId, message: Message) {
        match self.ports.get_mut(&to) {
            Some(port) => {
                port.queue.push_back(message);
                self.show_readable(to);
            }
            None => self.destroy_message(message),
        }
    }

    /// A message from the kernel to a right that it holds, which is used up with `last`. The limit of the queue is
    /// not looked at: MACH_SEND_KERNEL_DEFAULT has MACH_SEND_ALWAYS.
    pub(crate) fn send_from_kernel(
        &mut self,
        task: TaskId,
        held: u64,
        id: i32,
        body: Vec<u8>,
        is_last: bool,
    ) -> Answer<()> {
        let Some(port) = self.task(task)?.held.get(&held).copied() else { return Ok(()) };
        self.enqueue(port, Message::of_kernel(id, body, false));
        if is_last { self.let_go(task, held) } else { Ok(()) }
    }

    pub(super) fn destroy_message(&mut self, message: Message) {
        let rights = message.rights.into_iter().map(|(_, carried)| carried);
        for carried in message.reply.into_iter().chain(rights) {
            self.release(carried);
        }
    }

    fn release(&mut self, carried: Carried) {
        match carried {
            Carried::Send(Some(port)) => self.drop_send(port),
            Carried::Once(Some(port)) => self.drop_once(port),
            Carried::Receive(port) => self.destroy_port(port),
            Carried::Send(None) | Carried::Once(None) => {}
        }
    }

    /// The ports that a receive from `name` takes from: of the port itself, also where it is in a set, or of a
    /// set's members.
    fn sources(&self, task: TaskId, name: Name) -> Answer<Vec<PortId>> {
        match self.task(task)?.space.get(&name).map(|entry| &entry.right) {
            Some(Right::Port { port, receive: true, .. }) => Ok(vec![*port]),
            Some(Right::Set { members }) => Ok(members.clone()),
            _ => Err(msg::RCV_INVALID_NAME.into()),
        }
    }

    /// Whether a receive that began must end: the right is gone, which is told by how it went.
    pub(crate) fn still_receives(
        &self,
        task: TaskId,
        name: Name,
        began_with: &[u64],
    ) -> Answer<()> {
        match self.sources(task, name) {
            Ok(_) => Ok(()),
            Err(Fault::Code(_)) => {
                let moved = began_with.iter().any(|port| self.is_alive(PortId(*port)));
                Err(if moved { msg::RCV_PORT_CHANGED } else { msg::RCV_PORT_DIED }.into())
            }
            Err(other) => Err(other),
        }
    }

    /// See [`Kernel::still_receives`].
    pub(crate) fn receives_from(&self, task: TaskId, name: Name) -> Answer<Vec<u64>> {
        Ok(self.sources(task, name)?.into_iter().map(|port| port.0).collect())
    }

    /// Takes the oldest message of a port, or of the first member that has one. With too little room it is
    /// destroyed, unless MACH_RCV_LARGE leaves it where it is; the size that is needed is then told by a
    /// message that is a header only (`mach_msg_receive_results`, `ipc_mqueue_select_on_thread_locked`).
    pub(crate) fn receive(
        &mut self,
        task: TaskId,
        name: Name,
        options: i32,
        room: usize,
    ) -> Answer<(Received, Code)> {
        let sources = self.sources(task, name)?;
        let has_one =
            |port: &PortId| self.ports.get(port).is_some_and(|port| !port.queue.is_empty());
        let Some(from) = sources.into_iter().find(has_one) else {
            return Ok((Received::Empty, kern::SUCCESS));
        };
        let Some(port) = self.ports.get_mut(&from) else { return Ok((Received::Empty, 0)) };
        let Receiver::Task(_, local) = port.receiver else {
            return Err(msg::RCV_INVALID_NAME.into());
        };
        let trailer = trailer_size(options)?;
        let size = HEADER + port.queue.front().map_or(0, |message| message.body.len());
        if size + trailer > room {
            let told = header([0, as_u32(size), NULL, local, 0, 0]);
            if options & option::RCV_LARGE == 0
                && let Some(message) = port.queue.pop_front()
            {
                self.show_readable(from);
                self.destroy_message(message);
            }
            return Ok((Received::Message(told), msg::RCV_TOO_LARGE));
        }
        let Some(mut message) = port.queue.pop_front() else { return Ok((Received::Empty, 0)) };
        self.show_readable(from);
        let (remote, reply_how) = match message.reply.take() {
            None => (NULL, 0),
            Some(carried) => (self.copy_out(task, carried)?, carried.received()),
        };
        self.copy_out_body(task, &mut message)?;
        let own =
            if message.by_once { disposition::MOVE_SEND_ONCE } else { disposition::MOVE_SEND };
        let complex = if message.is_complex { COMPLEX } else { 0 };
        let bits = complex | reply_how | own << 8;
        let mut bytes = header([bits, as_u32(size), remote, local, 0, message.id.cast_unsigned()]);
        bytes.extend(&message.body);
        bytes.extend(trailer_bytes(trailer, message.pid));
        Ok((Received::Message(bytes), kern::SUCCESS))
    }

    /// Names in the receiver's space for the rights of a message (`ipc_kmsg_copyout_body`).
    fn copy_out_body(&mut self, task: TaskId, message: &mut Message) -> Answer<()> {
        for (at, carried) in std::mem::take(&mut message.rights) {
            let was_null = word(&message.body, at) == NULL;
            let name = match self.copy_out(task, carried)? {
                DEAD if was_null => NULL,
                name => name,
            };
            message.body[at..at + 4].copy_from_slice(&name.to_le_bytes());
            message.body[at + 10] = u8::try_from(carried.received()).unwrap_or_default();
        }
        Ok(())
    }
}

fn as_u32(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

fn header(words: [u32; 6]) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Bytes of the trailer that is asked for (osfmk/mach/message.h REQUESTED_TRAILER_SIZE).
fn trailer_size(options: i32) -> Answer<usize> {
    match (options >> 24 & 0xf, options >> 28 & 0x7) {
        (0, 0) => Ok(8),
        (1, 0) => Ok(12),
        (2, 0) => Ok(20),
        (3, 0) => Ok(52),
        _ => Err(Fault::NotSimulated(format!("a message trailer as asked for by {options:#x}"))),
    }
}

/// The trailer: type, size, sequence number, security token, audit token, as far as asked for. The audit token has
/// the pid at index 5 (bsm/audit_session.h).
fn trailer_bytes(size: usize, pid: u32) -> Vec<u8> {
    let audit = [0, 0, 0, 0, 0, pid, 0, 1];
    let words = [0, as_u32(size), 0, 0, 0].into_iter().chain(audit);
    words.flat_map(u32::to_le_bytes).take(size).collect()
}
