//! Entries from senders that lie, and parts of entries.

use std::time::Duration;

use super::*;
use crate::SharedMemory;

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(5))
}

/// An inbox, and the port that a child would have of it.
fn connected() -> (MemoryInbox, MemoryPort) {
    let inbox = MemoryInbox::new().unwrap();
    // SAFETY: another send right of a port of ours, under the same name.
    let code = unsafe {
        mach_port_insert_right(
            mach_task_self(),
            inbox.receive,
            inbox.receive,
            MACH_MSG_TYPE_MAKE_SEND,
        )
    };
    assert_eq!(code, 0);
    let port = MemoryPort(SendRight(inbox.receive));
    (inbox, port)
}

fn page() -> u64 {
    rustix::param::page_size() as u64
}

/// So many pages, each of which begins with its number.
fn pages(count: u64) -> Window {
    let length = count * page();
    let window = SharedMemory::create("test", length).unwrap().map_all(Access::ReadWrite).unwrap();
    (0..count).for_each(|number| window.write(number * page(), number).unwrap());
    window
}

#[test]
fn an_entry_that_is_larger_than_was_said_is_refused_before_anything_is_mapped_over() {
    let (inbox, port) = connected();
    let memory = pages(4);
    let entry = MemoryEntry::of(&memory, 0, 4 * page()).unwrap();
    for said in [page(), 3 * page(), 4 * page() - 1, 5 * page(), 0] {
        port.send(7, &[&entry], soon()).unwrap();
        assert!(inbox.receive(7, &[said], soon()).is_err(), "{said:#x} bytes");
    }
    port.send(7, &[&entry], soon()).unwrap();
    assert_eq!(inbox.receive(7, &[4 * page()], soon()).unwrap()[0].size(), 4 * page());
}

#[test]
fn a_part_of_an_entry_is_that_part_and_nothing_behind_it_is_mapped_over() {
    let (inbox, port) = connected();
    let memory = pages(4);
    port.send(1, &[&MemoryEntry::of(&memory, 0, 4 * page()).unwrap()], soon()).unwrap();
    let entry = inbox.receive(1, &[4 * page()], soon()).unwrap().pop().unwrap();
    let length = rustix::param::page_size();
    let part = entry.map(2 * page(), length).unwrap();
    assert_eq!(part.read::<u64>(0).unwrap(), 2);
    part.write(8, 99u64).unwrap();
    assert_eq!(memory.read::<u64>(2 * page() + 8).unwrap(), 99);
    // Two pages of our own, over the first of which a part is put.
    let own = pages(2);
    own.write(0, 50u64).unwrap();
    own.write(page(), 51u64).unwrap();
    let first = Arc::new(own);
    // SAFETY: the first page of a window that outlives this one.
    let under = unsafe {
        let base = NonNull::new(first.address() as *mut u8).unwrap();
        Window::foreign(base, length, Access::ReadWrite, Box::new(Arc::clone(&first))).unwrap()
    };
    entry.put_under(&under, 3 * page()).unwrap();
    assert_eq!(under.read::<u64>(0).unwrap(), 3);
    assert_eq!(first.read::<u64>(page()).unwrap(), 51, "what lies behind the window");
    for (offset, length) in [(4 * page(), length), (0, 5 * length), (u64::MAX, length), (0, 0)] {
        assert!(matches!(entry.map(offset, length), Err(WindowError::OutOfRange { .. })));
    }
}

#[test]
fn a_right_to_answer_to_and_rights_of_nothing_are_given_back() {
    let (inbox, port) = connected();
    let (reply, _) = connected();
    let memory = pages(1);
    let entry = MemoryEntry::of(&memory, 0, page()).unwrap();
    let send = |reply_to: mach_port_t, name: mach_port_t| {
        let mut message = Message::empty();
        let answer = if reply_to == MACH_PORT_NULL { 0 } else { MACH_MSG_TYPE_COPY_SEND };
        message.header = mach_msg_header_t {
            msgh_bits: MACH_MSGH_BITS(MACH_MSG_TYPE_COPY_SEND, answer) | MACH_MSGH_BITS_COMPLEX,
            msgh_size: length(1),
            msgh_remote_port: port.0.0,
            msgh_local_port: reply_to,
            msgh_id: 3,
            ..mach_msg_header_t::default()
        };
        message.body.msgh_descriptor_count = 1;
        message.entries[0] = mach_msg_port_descriptor_t::new(name, MACH_MSG_TYPE_COPY_SEND);
        // SAFETY: a message of the length given, with rights that are copied.
        let sent = unsafe {
            mach_msg(&raw mut message.header, MACH_SEND_MSG, message.header.msgh_size, 0, 0, 0, 0)
        };
        assert_eq!(sent, 0);
    };
    for _ in 0..3 {
        send(reply.receive, entry.right.0);
        assert!(inbox.receive(3, &[page()], soon()).is_err());
    }
    send(MACH_PORT_NULL, MACH_PORT_NULL);
    assert!(inbox.receive(3, &[page()], soon()).is_err());
    // Of the port there is the one right that `connected` left over, and the inbox's own: a third was
    // given back each time.
    let own = reply.receive;
    // SAFETY: rights of a port of ours, given up one by one; the receive right stays.
    let given_up = || unsafe { mach_port_deallocate(mach_task_self(), own) };
    assert_eq!((given_up(), given_up() == 0), (0, false));
    send(MACH_PORT_NULL, entry.right.0);
    assert_eq!(inbox.receive(3, &[page()], soon()).unwrap().len(), 1);
}
