//! The rules, one test each, from xnu's sources and not from what our product does.

use super::*;
use crate::codes::{COMPLEX, DEAD, NULL, disposition as how, kern, msg, notify, option, right};

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn word(bytes: &[u8], index: usize) -> u32 {
    u32::from_le_bytes(bytes[index * 4..index * 4 + 4].try_into().unwrap())
}

/// Two tasks, and a port of the second that the first has a send right of.
struct Two {
    kernel: Kernel,
    a: TaskId,
    b: TaskId,
    /// B's name of its receive right, with a send right.
    inbox: Name,
    /// A's name for it.
    to: Name,
}

fn two() -> Two {
    let mut kernel = Kernel::default();
    let b = kernel.first_task(2);
    let inbox = kernel.allocate(b, right::RECEIVE).unwrap();
    kernel.insert(b, inbox, inbox, how::MAKE_SEND).unwrap();
    let birth = kernel.birth(b, Some(&[inbox])).unwrap();
    let a = kernel.born_task(1, birth).unwrap();
    let [to, NULL, NULL] = kernel.lookup(a).unwrap() else { panic!("other slots") };
    Two { kernel, a, b, inbox, to }
}

impl Two {
    fn send(&mut self, bytes: &[u8]) -> Answer<bool> {
        let pending = self.kernel.take_message(self.a, bytes)?;
        Ok(self.kernel.deliver(pending)?.is_ok())
    }

    fn plain(&mut self, id: u32) -> Answer<bool> {
        let to = self.to;
        self.send(&words(&[how::COPY_SEND, 24, to, 0, 0, id]))
    }

    /// A message with one right in it.
    fn with(&mut self, name: Name, disposition: u32) -> Answer<bool> {
        let bits = how::COPY_SEND | COMPLEX;
        let to = self.to;
        self.send(&words(&[bits, 40, to, 0, 0, 7, 1, name, 0, disposition << 16]))
    }

    fn receive(&mut self) -> Vec<u8> {
        match self.kernel.receive(self.b, self.inbox, option::RCV, 4096).unwrap() {
            (Received::Message(bytes), 0) => bytes,
            other => panic!("{other:?}"),
        }
    }

    fn is_empty(&mut self) -> bool {
        let received = self.kernel.receive(self.b, self.inbox, option::RCV, 4096);
        matches!(received, Ok((Received::Empty, _)))
    }
}

fn entry_of(kernel: &mut Kernel, task: TaskId) -> Name {
    let memory = Memory { segments: Vec::new(), protection: 3, is_copy: true };
    kernel.new_memory(task, memory).unwrap()
}

/// mach_msg.c, ipc_kmsg.c: header and trailer as they are received.
#[test]
fn a_plain_message_comes_with_its_own_name_and_the_smallest_trailer() {
    let mut two = two();
    assert_eq!(two.plain(42), Ok(true));
    let bytes = two.receive();
    assert_eq!(bytes, words(&[how::MOVE_SEND << 8, 24, 0, two.inbox, 0, 42, 0, 8]));
    // MACH_RCV_TRAILER_AUDIT: the sender's pid is in the token.
    assert_eq!(two.plain(43), Ok(true));
    let audit = option::RCV | 3 << 24;
    let received = two.kernel.receive(two.b, two.inbox, audit, 4096).unwrap();
    let (Received::Message(bytes), 0) = received else { panic!("{received:?}") };
    assert_eq!((bytes.len(), word(&bytes, 7), word(&bytes, 6 + 5 + 5)), (24 + 52, 52, 1));
}

/// ipc_kmsg_copyin_body and _copyout_body: a right moves as what it is called in the receiver.
#[test]
fn rights_in_a_message_get_names_in_the_receiver() {
    let mut two = two();
    let entry = entry_of(&mut two.kernel, two.a);
    assert_eq!(two.with(entry, how::COPY_SEND), Ok(true));
    let bytes = two.receive();
    assert_eq!((word(&bytes, 0), word(&bytes, 6)), (COMPLEX | how::MOVE_SEND << 8, 1));
    assert_eq!(word(&bytes, 9) >> 16, how::MOVE_SEND);
    let name = word(&bytes, 7);
    assert_eq!(two.kernel.memory(two.b, name).unwrap().protection, 3);
    // ipc_right_copyout: a second right of the same port is a reference of the same name.
    assert_eq!(two.with(entry, how::MOVE_SEND), Ok(true));
    assert_eq!(word(&two.receive(), 7), name);
    assert_eq!(two.kernel.deallocate(two.a, entry), Err(Fault::Code(kern::INVALID_NAME)));
    assert_eq!(two.kernel.deallocate(two.b, name), Ok(false));
    assert!(two.kernel.memory(two.b, name).is_ok());
    // The last right ends the entry.
    assert_eq!(two.kernel.deallocate(two.b, name), Ok(false));
    assert!(!two.kernel.ports.values().any(|port| matches!(port.kind, Kind::Memory(_))));
}

/// iokit_rpc.c iokit_alloc_object_port (IPC_KOBJECT_ALLOC_IMMOVABLE_SEND), ipc_right.c, ipc_policy.c
/// mach_port_guard_exception_immovable.
#[test]
fn sending_an_io_connect_ends_the_sender() {
    let mut two = two();
    let connect = two.kernel.new_object(two.a, true).unwrap();
    for disposition in [how::COPY_SEND, how::MOVE_SEND] {
        let sent = two.with(connect, disposition);
        assert!(matches!(&sent, Err(Fault::Guard(why)) if why.contains("IMMOVABLE")), "{sent:?}");
    }
    assert!(two.is_empty());
    // Other objects of IOKit's move.
    let service = two.kernel.new_object(two.a, false).unwrap();
    assert_eq!(two.with(service, how::COPY_SEND), Ok(true));
}

/// ipc_tt.c mach_ports_register: KERN_INVALID_RIGHT; kern_exec.c makes EINVAL of it.
#[test]
fn an_io_connect_can_neither_be_registered_nor_spawned_with() {
    let mut two = two();
    let connect = two.kernel.new_object(two.a, true).unwrap();
    let refused = Err(Fault::Code(kern::INVALID_RIGHT));
    assert_eq!(two.kernel.register(two.a, &[connect]), refused);
    assert_eq!(two.kernel.birth(two.a, Some(&[connect])).map(drop), refused);
    // What was registered before still is.
    assert_eq!(two.kernel.lookup(two.a).unwrap()[0], two.to);
}

/// ipc_tt.c ipc_task_init: three slots, inherited by spawn without attributes and by fork; every look brings
/// references of its own.
#[test]
fn registered_ports_are_inherited_and_each_look_up_brings_a_reference() {
    let mut two = two();
    let birth = two.kernel.birth(two.a, None).unwrap();
    let child = two.kernel.born_task(3, birth).unwrap();
    let grandchild = two.kernel.forked_task(4, child).unwrap();
    let names = two.kernel.lookup(grandchild).unwrap();
    assert_eq!((names[0] != NULL, names[1], names[2]), (true, NULL, NULL));
    assert_eq!(two.kernel.lookup(grandchild).unwrap(), names);
    for left in [true, true, false] {
        let given = two.kernel.deallocate(grandchild, names[0]);
        assert_eq!(given.is_ok(), left, "{given:?}");
    }
    assert_eq!(two.kernel.register(child, &[NULL, NULL, NULL]), Ok(()));
    assert_eq!(two.kernel.lookup(child).unwrap(), [NULL; 3]);
    assert_eq!(two.kernel.register(child, &[0; 4]), Err(Fault::Code(kern::INVALID_ARGUMENT)));
    assert!(two.kernel.born_task(5, birth).is_none(), "a birth is used once");
}

/// ipc_port.c ipc_port_destroy, ipc_right.c ipc_right_check: at the death of the receiver.
#[test]
fn names_of_a_dead_task_die_at_once_and_a_notification_says_so() {
    let mut two = two();
    let told = two.kernel.allocate(two.a, right::RECEIVE).unwrap();
    let (a, to) = (two.a, two.to);
    let once = how::MAKE_SEND_ONCE;
    let before = two.kernel.request_notification(a, to, notify::DEAD_NAME, 0, told, once);
    assert_eq!(before, Ok(NULL));
    two.kernel.end_task(two.b);
    assert_eq!(two.plain(1), Err(Fault::Code(msg::SEND_INVALID_DEST)));
    let received = two.kernel.receive(a, told, option::RCV, 4096).unwrap();
    let (Received::Message(bytes), 0) = received else { panic!("{received:?}") };
    let header = [how::MOVE_SEND_ONCE << 8, 36, 0, told, 0, notify::DEAD_NAME as u32];
    assert_eq!(bytes, words(&[&header[..], &[0, 1, to, 0, 8]].concat()));
    // The name has the reference that was there and the notification's.
    assert_eq!(two.kernel.mod_refs(a, to, right::DEAD_NAME, -2), Ok(false));
    assert_eq!(two.kernel.deallocate(a, to), Err(Fault::Code(kern::INVALID_NAME)));
}

/// ipc_port.c ipc_port_nsrequest, ipc_notify.c: the last sender's death too.
#[test]
fn a_receiver_is_told_when_there_are_no_senders_with_how_many_were_made() {
    let mut two = two();
    let (b, inbox) = (two.b, two.inbox);
    let told = two.kernel.allocate(b, right::RECEIVE).unwrap();
    let once = how::MAKE_SEND_ONCE;
    two.kernel.request_notification(b, inbox, notify::NO_SENDERS, 1, told, once).unwrap();
    // Its own send right, and the child's, in its slot and by name.
    two.kernel.deallocate(b, inbox).unwrap();
    let nothing = two.kernel.receive(b, told, option::RCV, 4096).unwrap();
    assert_eq!(nothing, (Received::Empty, 0));
    two.kernel.end_task(two.a);
    let received = two.kernel.receive(b, told, option::RCV, 4096).unwrap();
    let (Received::Message(bytes), 0) = received else { panic!("{received:?}") };
    assert_eq!((word(&bytes, 5), word(&bytes, 8)), (notify::NO_SENDERS as u32, 1));
}

/// ipc_notify.c ipc_notify_send_once: a send-once right that is destroyed unused.
#[test]
fn a_reply_right_that_nobody_used_is_told_of() {
    let mut two = two();
    let reply = two.kernel.allocate(two.a, right::RECEIVE).unwrap();
    let bits = how::COPY_SEND | how::MAKE_SEND_ONCE << 8;
    let to = two.to;
    assert_eq!(two.send(&words(&[bits, 24, to, reply, 0, 9])), Ok(true));
    let bytes = two.receive();
    assert_eq!(word(&bytes, 0), how::MOVE_SEND_ONCE | how::MOVE_SEND << 8);
    let name = word(&bytes, 2);
    assert_eq!(two.kernel.deallocate(two.b, name), Ok(false));
    let received = two.kernel.receive(two.a, reply, option::RCV, 4096).unwrap();
    let (Received::Message(bytes), 0) = received else { panic!("{received:?}") };
    assert_eq!(word(&bytes, 5), notify::SEND_ONCE as u32);
}

/// osfmk/mach/port.h MACH_PORT_QLIMIT_BASIC; ipc_mqueue.c, ipc_kmsg.c ipc_kmsg_copyout_pseudo.
#[test]
fn the_sixth_message_waits_and_comes_back_with_one_more_reference() {
    let mut two = two();
    for id in 0..5 {
        assert_eq!(two.plain(id), Ok(true));
    }
    assert_eq!(two.plain(5), Ok(false));
    let entry = entry_of(&mut two.kernel, two.a);
    let (a, to) = (two.a, two.to);
    let bits = how::COPY_SEND | COMPLEX;
    let bytes = words(&[bits, 40, to, 0, 0, 7, 1, entry, 0, how::COPY_SEND << 16]);
    let pending = two.kernel.take_message(a, &bytes).unwrap();
    let pending = two.kernel.deliver(pending).unwrap().unwrap_err();
    let back = two.kernel.give_back(a, pending).unwrap();
    assert_eq!(word(&back, 0), COMPLEX | how::MOVE_SEND);
    assert_eq!((word(&back, 2), word(&back, 7)), (to, entry));
    // Two references now: the sender's own, and what came back.
    assert_eq!(two.kernel.mod_refs(a, entry, right::SEND, -2), Ok(false));
    // A message of the kernel's goes past the limit (MACH_SEND_ALWAYS).
    let held = two.kernel.hold(two.b, two.inbox).unwrap();
    two.kernel.send_from_kernel(two.b, held, 53, Vec::new(), true).unwrap();
    let ids: Vec<u32> = (0..6).map(|_| word(&two.receive(), 5)).collect();
    assert_eq!(ids, [0, 1, 2, 3, 4, 53]);
}

/// ipc_kmsg.c ipc_kmsg_send: the port may die between the copy-in and the queue.
#[test]
fn a_message_whose_port_dies_on_the_way_is_sent_for_all_that_its_sender_knows() {
    let mut two = two();
    let (a, to) = (two.a, two.to);
    let pending = two.kernel.take_message(a, &words(&[how::COPY_SEND, 24, to, 0, 0, 1])).unwrap();
    two.kernel.end_task(two.b);
    assert!(two.kernel.deliver(pending).unwrap().is_ok());
}

/// ipc_mqueue.c ipc_mqueue_select_on_thread_locked, mach_msg.c: with the trailer counted in.
#[test]
fn a_message_that_does_not_fit_is_destroyed_unless_it_may_stay() {
    let mut two = two();
    two.plain(1).unwrap();
    let large = option::RCV | option::RCV_LARGE;
    let (b, inbox) = (two.b, two.inbox);
    let (Received::Message(bytes), code) = two.kernel.receive(b, inbox, large, 31).unwrap() else {
        panic!("nothing")
    };
    assert_eq!((code, word(&bytes, 1)), (msg::RCV_TOO_LARGE, 24));
    assert_eq!(word(&two.receive(), 5), 1);
    two.plain(2).unwrap();
    let (_, code) = two.kernel.receive(b, inbox, option::RCV, 31).unwrap();
    assert_eq!(code, msg::RCV_TOO_LARGE);
    assert!(two.is_empty());
}

/// ipc_kmsg.c: what is wrong with a message has a code of its own.
#[test]
fn messages_that_are_none_are_refused_by_their_codes() {
    let mut two = two();
    let to = two.to;
    let send = how::COPY_SEND;
    let other = two.kernel.allocate(two.a, right::RECEIVE).unwrap();
    for (message, code) in [
        (vec![send, 20, to, 0, 0], msg::SEND_MSG_TOO_SMALL),
        (vec![0, 24, to, 0, 0, 1], msg::SEND_INVALID_HEADER),
        (vec![how::MOVE_RECEIVE, 24, other, 0, 0, 1], msg::SEND_INVALID_HEADER),
        (vec![send, 24, NULL, 0, 0, 1], msg::SEND_INVALID_DEST),
        (vec![send, 24, 0x9903, 0, 0, 1], msg::SEND_INVALID_DEST),
        (vec![send, 24, other, 0, 0, 1], msg::SEND_INVALID_DEST),
        (vec![send, 24, to, to, 0, 1], msg::SEND_INVALID_HEADER),
        (vec![send | send << 8, 24, to, 0x9903, 0, 1], msg::SEND_INVALID_REPLY),
        (vec![send | COMPLEX, 24, to, 0, 0, 1], msg::SEND_MSG_TOO_SMALL),
        (vec![send | COMPLEX, 28, to, 0, 0, 1, 1], msg::SEND_MSG_TOO_SMALL),
        (vec![send | COMPLEX, 40, to, 0, 0, 1, 1, 0x9903, 0, send << 16], msg::SEND_INVALID_RIGHT),
        (vec![send | COMPLEX, 40, to, 0, 0, 1, 1, to, 0, 31 << 16], msg::SEND_INVALID_TYPE),
        (
            vec![send | COMPLEX, 40, to, 0, 0, 1, 1, to, 0, send << 16 | 9 << 24],
            msg::SEND_INVALID_TYPE,
        ),
    ] {
        assert_eq!(two.send(&words(&message)), Err(Fault::Code(code)), "{message:x?}");
    }
    assert!(two.is_empty());
    let out_of_line = vec![send | COMPLEX, 40, to, 0, 0, 1, 1, to, 0, send << 16 | 1 << 24];
    assert!(matches!(two.send(&words(&out_of_line)), Err(Fault::NotSimulated(_))));
    // Nothing was taken for good: the right to send is one reference, as before.
    assert_eq!(two.kernel.mod_refs(two.a, to, right::SEND, -1), Ok(false));
}

/// ipc_right.c ipc_right_copyin, ipc_right_copyout: null and dead rights.
#[test]
fn no_right_travels_as_none_and_one_that_died_as_dead() {
    let mut two = two();
    assert_eq!(two.with(NULL, how::COPY_SEND), Ok(true));
    assert_eq!(word(&two.receive(), 7), NULL);
    let port = two.kernel.allocate(two.a, right::RECEIVE).unwrap();
    assert_eq!(two.with(port, how::MAKE_SEND), Ok(true));
    two.kernel.mod_refs(two.a, port, right::RECEIVE, -1).unwrap();
    assert_eq!(word(&two.receive(), 7), DEAD);
}

/// ipc_right.c ipc_right_dealloc, ipc_right_delta; mach_port.c.
#[test]
fn rights_are_given_up_as_what_they_are() {
    let mut two = two();
    let (b, inbox) = (two.b, two.inbox);
    let invalid_right = Err(Fault::Code(kern::INVALID_RIGHT));
    assert_eq!(two.kernel.deallocate(b, NULL), Ok(false));
    assert_eq!(two.kernel.deallocate(b, DEAD), Ok(false));
    assert_eq!(two.kernel.deallocate(b, inbox), Ok(false));
    // It is a receive right only, now.
    assert_eq!(two.kernel.deallocate(b, inbox), invalid_right);
    assert_eq!(two.kernel.mod_refs(b, inbox, right::SEND, -1), invalid_right);
    assert_eq!(
        two.kernel.mod_refs(b, inbox, right::RECEIVE, 1),
        Err(Fault::Code(kern::INVALID_VALUE))
    );
    assert_eq!(two.kernel.mod_refs(b, inbox, 9, 0), Err(Fault::Code(kern::INVALID_VALUE)));
    assert_eq!(two.kernel.mod_refs(b, inbox, right::RECEIVE, -1), Ok(false));
    assert_eq!(
        two.kernel.mod_refs(b, inbox, right::RECEIVE, -1),
        Err(Fault::Code(kern::INVALID_NAME))
    );
    assert_eq!(two.kernel.allocate(b, right::SEND), Err(Fault::Code(kern::INVALID_VALUE)));
    let object = two.kernel.new_object(b, true).unwrap();
    assert_eq!(
        two.kernel.deallocate(b, object),
        Ok(true),
        "the last right of an object is told of"
    );
}

/// mach_port.c mach_port_move_member; a member may be received from by itself too.
#[test]
fn a_set_receives_for_its_members() {
    let mut two = two();
    let (b, inbox) = (two.b, two.inbox);
    let set = two.kernel.allocate(b, right::PORT_SET).unwrap();
    two.kernel.move_member(b, inbox, set).unwrap();
    two.plain(1).unwrap();
    let received = two.kernel.receive(b, set, option::RCV, 4096).unwrap();
    let (Received::Message(bytes), 0) = received else { panic!("{received:?}") };
    assert_eq!(word(&bytes, 3), inbox);
    two.plain(2).unwrap();
    assert_eq!(word(&two.receive(), 5), 2);
    two.kernel.move_member(b, inbox, NULL).unwrap();
    two.plain(3).unwrap();
    assert_eq!(two.kernel.receive(b, set, option::RCV, 4096), Ok((Received::Empty, 0)));
    let not_in_set = Err(Fault::Code(kern::NOT_IN_SET));
    assert_eq!(two.kernel.move_member(b, inbox, NULL), not_in_set);
}

/// ipc_mqueue.c, ipc_kmsg.c: a waiting receiver is told how its right went.
#[test]
fn a_receive_ends_with_its_right() {
    let mut two = two();
    let (a, b, inbox) = (two.a, two.b, two.inbox);
    let began = two.kernel.receives_from(b, inbox).unwrap();
    two.kernel.mod_refs(b, inbox, right::RECEIVE, -1).unwrap();
    let died = two.kernel.still_receives(b, inbox, &began);
    assert_eq!(died, Err(Fault::Code(msg::RCV_PORT_DIED)));
    assert_eq!(two.kernel.receives_from(a, two.to), Err(Fault::Code(msg::RCV_INVALID_NAME)));
    let other = two.kernel.allocate(b, right::RECEIVE).unwrap();
    let began = two.kernel.receives_from(b, other).unwrap();
    assert!(matches!(two.kernel.copy_in(b, other, how::MOVE_RECEIVE), Ok(Carried::Receive(_))));
    let moved = two.kernel.still_receives(b, other, &began);
    assert_eq!(moved, Err(Fault::Code(msg::RCV_PORT_CHANGED)));
}

/// IOUserClient.cpp: a wake port is a right that MIG makes; it goes with the task.
#[test]
fn the_kernel_keeps_a_send_right_for_an_asynchronous_call() {
    let mut two = two();
    let port = two.kernel.allocate(two.a, right::RECEIVE).unwrap();
    let held = two.kernel.hold(two.a, port).unwrap();
    two.kernel.send_from_kernel(two.a, held, 53, vec![1, 2, 3, 4], true).unwrap();
    let received = two.kernel.receive(two.a, port, option::RCV, 4096).unwrap();
    let (Received::Message(bytes), 0) = received else { panic!("{received:?}") };
    assert_eq!((word(&bytes, 5), word(&bytes, 2), word(&bytes, 6)), (53, NULL, 0x0403_0201));
    // Used up: a second one goes nowhere.
    two.kernel.send_from_kernel(two.a, held, 54, Vec::new(), true).unwrap();
    assert_eq!(two.kernel.receive(two.a, port, option::RCV, 4096), Ok((Received::Empty, 0)));
    assert!(two.kernel.hold(two.a, two.to).is_err(), "not of a send right");
}

/// sandbox(7), and reports: for good, inherited, never twice.
#[test]
fn confinement_is_for_good_and_inherited() {
    let mut two = two();
    let confinement = |text: &str| Confinement { profile: text.to_owned(), parameters: Vec::new() };
    assert_eq!(two.kernel.confinement(1), Ok(None));
    assert_eq!(two.kernel.confinement(77), Err(()));
    assert_eq!(two.kernel.confine(two.a, confinement("one")), Ok(true));
    assert_eq!(two.kernel.confine(two.a, confinement("two")), Ok(false));
    let birth = two.kernel.birth(two.a, None).unwrap();
    two.kernel.born_task(8, birth).unwrap();
    assert_eq!(two.kernel.confinement(8), Ok(Some(confinement("one"))));
    assert_eq!(two.kernel.confinement(2), Ok(None));
}
