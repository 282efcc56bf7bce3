use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use crate::EINVAL;
use cordon_tests::vfio_user::{Client, Served, words};
use cordon_vfio_user::protocol::command::{RESET, SET_IRQS};
use ipc::event::Signaller;
use ipc::{Deadline, Event};

const INSTALL: u32 = 0x24;
const OFF: u32 = 0x21;
const TRIGGER: u32 = 0x21;
const UNMASK: u32 = 0x11;
const MASK: u32 = 0x09;

fn body(flags: u32, index: u32, start: u32, count: u32) -> Vec<u8> {
    words(&[20, flags, index, start, count])
}

struct Events(Vec<(Event, Signaller)>);

impl Events {
    fn new(count: usize) -> Self {
        let event = |_| {
            let event = Event::new().unwrap();
            let signaller = event.signaller().unwrap();
            (event, signaller)
        };
        Self((0..count).map(event).collect())
    }

    fn handles(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(|(_, signaller)| signaller.as_fd()).collect()
    }

    fn came(&self, number: usize) -> bool {
        self.0[number].0.wait(Deadline::after(Duration::from_secs(5))).unwrap()
    }

    fn none(&self) -> bool {
        self.0.iter().all(|(event, _)| !event.clear().unwrap())
    }
}

fn install(client: &mut Client, index: u32, start: u32, events: &Events) {
    let count = u32::try_from(events.0.len()).unwrap();
    let reply = client.ask(SET_IRQS, &body(INSTALL, index, start, count), &events.handles());
    assert_eq!((reply.error, reply.body.len()), (0, 0));
}

/// The device fires a vector.
fn fire(served: &Served, vector: u16) {
    let raise = serde_json::json!({ "raise": { "address": "01:00.1", "vector": vector } });
    assert_eq!(served.simulator.control(&raise), "done");
}

#[test]
fn vectors_are_installed_in_runs_and_taken_away_in_runs() {
    let served = Served::probe();
    let mut client = served.client();
    client.master_bus();
    let (a, b) = (Events::new(2), Events::new(1));
    install(&mut client, 2, 0, &a);
    install(&mut client, 2, 4, &b);
    client.ok(SET_IRQS, &body(INSTALL, 2, 2, 2));
    for vector in [0, 1, 2, 3, 4, 5] {
        fire(&served, vector);
    }
    assert!(a.came(0) && a.came(1) && b.came(0));
    client.ok(SET_IRQS, &body(INSTALL, 2, 0, 1));
    fire(&served, 0);
    fire(&served, 1);
    assert!(a.came(1));
    assert!(a.none() && b.none());
    client.ok(SET_IRQS, &body(OFF, 2, 0, 0));
    fire(&served, 1);
    fire(&served, 4);
    let intx = Events::new(1);
    install(&mut client, 0, 0, &intx);
    fire(&served, 0);
    assert!(intx.came(0));
    assert!(a.none() && b.none());
}

#[test]
fn intx_is_masked_by_its_signal_until_the_client_unmasks_it() {
    let served = Served::probe();
    let mut client = served.client();
    client.master_bus();
    let line = Events::new(1);
    install(&mut client, 0, 0, &line);
    fire(&served, 0);
    assert!(line.came(0));
    fire(&served, 0);
    let noticed = || served.proxy.statistics().unwrap().notifications == 2;
    assert!(cordon_tests::eventually(noticed));
    assert!(line.none());
    client.ok(SET_IRQS, &body(UNMASK, 0, 0, 1));
    assert!(line.came(0));
    client.ok(SET_IRQS, &body(UNMASK, 0, 0, 1));
    client.ok(SET_IRQS, &body(MASK, 0, 0, 1));
    fire(&served, 0);
    assert!(cordon_tests::eventually(|| served.proxy.statistics().unwrap().notifications == 3));
    assert!(line.none());
}

#[test]
fn intx_is_held_back_while_command_forbids_it_whatever_the_client_unmasks() {
    let served = Served::probe();
    let mut client = served.client();
    let line = Events::new(1);
    install(&mut client, 0, 0, &line);
    let fires = |number| {
        fire(&served, 0);
        let noticed = || served.proxy.statistics().unwrap().notifications == number;
        assert!(cordon_tests::eventually(noticed), "{number}");
    };
    client.write(7, 4, &[0x06, 0x04]);
    fires(1);
    assert!(line.none());
    client.ok(SET_IRQS, &body(UNMASK, 0, 0, 1));
    assert!(line.none());
    client.write(7, 4, &[0x06, 0x00]);
    assert!(line.came(0));
    client.ok(SET_IRQS, &body(UNMASK, 0, 0, 1));
    // A line that comes while it is forbidden; and a reset allows it again.
    client.write(7, 4, &[0x06, 0x04]);
    client.ok(SET_IRQS, &body(OFF, 0, 0, 0));
    install(&mut client, 0, 0, &line);
    fires(2);
    assert!(line.none());
    client.ok(RESET, &[]);
    client.master_bus();
    fires(3);
    assert!(line.came(0));
}

#[test]
fn a_trigger_signals_and_bytes_choose() {
    let served = Served::probe();
    let mut client = served.client();
    client.master_bus();
    let events = Events::new(3);
    install(&mut client, 1, 0, &events);
    client.ok(SET_IRQS, &body(TRIGGER, 1, 1, 1));
    assert!(events.came(1) && events.none());
    let mut chosen = body(0x22, 1, 0, 3);
    chosen.extend_from_slice(&[1, 0, 1]);
    client.ok(SET_IRQS, &chosen);
    assert!(events.came(0) && events.came(2) && events.none());
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed_and_the_command_is_carried_out() {
    let served = Served::probe();
    let mut client = served.client();
    client.master_bus();
    let line = Events::new(1);
    install(&mut client, 0, 0, &line);
    let (read, write) = std::io::pipe().unwrap();
    for flags in [TRIGGER, UNMASK] {
        let reply = client.ask(SET_IRQS, &body(flags, 0, 0, 1), &[write.as_fd()]);
        assert_eq!(reply.error, 0);
    }
    assert!(line.came(0));
    assert_eq!(client.ask(SET_IRQS, &body(OFF, 0, 0, 0), &[write.as_fd()]).error, 0);
    drop(write);
    assert!(ipc::poll::wait_readable(&read, Deadline::after(Duration::from_secs(5))).unwrap());
    // Off, whatever came along: another index can be used.
    install(&mut client, 2, 0, &line);
    fire(&served, 0);
    assert!(line.came(0));
}

#[test]
fn indexes_without_vectors_can_be_switched_off() {
    let served = Served::probe();
    let mut client = served.client();
    for index in 0..5 {
        client.ok(SET_IRQS, &body(OFF, index, 0, 0));
    }
}

#[test]
fn ranges_flags_and_descriptors_that_do_not_fit_are_refused_and_closed() {
    let served = Served::probe();
    let mut client = served.client();
    client.master_bus();
    let events = Events::new(2);
    let two = events.handles();
    for (request, handles) in [
        (body(INSTALL, 5, 0, 1), 1),
        (body(INSTALL, 2, 32, 1), 1),
        (body(INSTALL, 2, 31, 2), 2),
        (body(INSTALL, 2, u32::MAX, 2), 2),
        (body(INSTALL, 2, 0, u32::MAX), 0),
        (body(INSTALL, 2, 0, 0), 0),
        (body(INSTALL, 2, 0, 3), 2),
        (body(INSTALL, 2, 0, 1), 2),
        (body(INSTALL, 3, 0, 1), 1),
        (body(UNMASK, 2, 0, 1), 0),
        (body(UNMASK, 0, 0, 1), 0),
        (body(0, 2, 0, 1), 0),
        (body(0x25, 2, 0, 1), 1),
        (body(0x31, 0, 0, 1), 0),
        (body(0x22, 2, 0, 2), 0),
        (body(u32::MAX, 2, 0, 1), 0),
        (body(INSTALL, 2, 0, 1)[..19].to_vec(), 1),
        (words(&[19, INSTALL, 2, 0, 1]), 1),
    ] {
        let errno = client.refused(SET_IRQS, &request, &two[..handles]);
        assert_eq!(errno, EINVAL, "{request:x?}");
    }
    drop(two);
    // What came with a refused request is closed.
    let (read, write) = std::io::pipe().unwrap();
    client.refused(SET_IRQS, &body(INSTALL, 9, 0, 1), &[write.as_fd()]);
    drop(write);
    let soon = Deadline::after(Duration::from_secs(5));
    assert!(ipc::poll::wait_readable(&read, soon).unwrap());
    install(&mut client, 2, 0, &events);
    fire(&served, 1);
    assert!(events.came(1));
}
