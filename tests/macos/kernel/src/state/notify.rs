//! Notifications (osfmk/ipc/ipc_notify.c, osfmk/ipc/ipc_right.c `ipc_right_request_alloc`).

use super::message::Message;
use super::{Answer, Carried, Fault, Kernel, PortId, Right, TaskId};
use crate::codes::{DEAD, NULL, Name, disposition, kern, notify};

/// NDR_record of a little-endian machine (osfmk/mach/ndr.h).
const NDR: [u8; 8] = [0, 0, 0, 0, 1, 0, 0, 0];

impl Kernel {
    /// `mach_port_request_notification`: the name of the send-once right that was asked to be told before, or
    /// NULL.
    pub(crate) fn request_notification(
        &mut self,
        task: TaskId,
        name: Name,
        what: i32,
        sync: u32,
        whom: Name,
        how: u32,
    ) -> Answer<Name> {
        if how != disposition::MAKE_SEND_ONCE && how != disposition::MOVE_SEND_ONCE {
            return Err(kern::INVALID_VALUE.into());
        }
        let new = match self.copy_in(task, whom, how) {
            Ok(Carried::Once(port)) => port,
            Ok(_) => return Err(kern::INVALID_CAPABILITY.into()),
            Err(Fault::Code(_)) => return Err(kern::INVALID_CAPABILITY.into()),
            Err(other) => return Err(other),
        };
        let entry = self.task_mut(task)?.space.get_mut(&name);
        let entry = entry.ok_or(Fault::Code(kern::INVALID_NAME))?;
        let old = match what {
            notify::DEAD_NAME => {
                let is_dead = matches!(entry.right, Right::Dead { .. });
                match &mut entry.right {
                    // Told at once where `sync` is not 0, with a reference of its own.
                    Right::Dead { references } if sync != 0 => {
                        *references += 1;
                        if let Some(whom) = new {
                            self.tell_dead_name(whom, name);
                        }
                        return Ok(NULL);
                    }
                    Right::Port { .. } | Right::Once { .. } => {
                        std::mem::replace(&mut entry.dead_name, new)
                    }
                    _ if is_dead => return Err(kern::INVALID_ARGUMENT.into()),
                    _ => return Err(kern::INVALID_RIGHT.into()),
                }
            }
            notify::NO_SENDERS => {
                let Right::Port { port, receive: true, .. } = entry.right else {
                    return Err(kern::INVALID_RIGHT.into());
                };
                let port = self.ports.get_mut(&port).ok_or(Fault::Code(kern::INVALID_NAME))?;
                let old = port.no_senders.take();
                match new {
                    // `ipc_port_nsrequest`: told at once if there are none, and enough were made.
                    Some(whom) if port.sends == 0 && sync <= port.make_sends => {
                        let count = port.make_sends;
                        self.tell_no_senders(whom, count);
                    }
                    new => port.no_senders = new,
                }
                old
            }
            other => {
                return Err(Fault::NotSimulated(format!(
                    "mach_port_request_notification for {other}"
                )));
            }
        };
        match old {
            None => Ok(NULL),
            old => self
                .copy_out(task, Carried::Once(old))
                .map(|name| if name == DEAD { NULL } else { name }),
        }
    }

    pub(super) fn tell_dead_name(&mut self, whom: PortId, name: Name) {
        let body = [&NDR[..], &name.to_le_bytes()].concat();
        self.tell(whom, notify::DEAD_NAME, body);
    }

    pub(super) fn tell_no_senders(&mut self, whom: PortId, make_sends: u32) {
        let body = [&NDR[..], &make_sends.to_le_bytes()].concat();
        self.tell(whom, notify::NO_SENDERS, body);
    }

    /// A send-once right that goes without having been used (`ipc_notify_send_once`).
    pub(super) fn drop_once(&mut self, port: PortId) {
        self.tell(port, notify::SEND_ONCE, Vec::new());
    }

    fn tell(&mut self, whom: PortId, id: i32, body: Vec<u8>) {
        self.enqueue(whom, Message::of_kernel(id, body, true));
    }
}
