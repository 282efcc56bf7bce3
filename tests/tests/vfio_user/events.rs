//! What a client gives as events: what could hold its signaller up is refused, and what it makes of
//! an event afterwards holds up nobody but itself.

use std::io::Write as _;
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::EINVAL;
use cordon_tests::vfio_user::{Served, words};
use cordon_vfio_user::Event as ServerEvent;
use cordon_vfio_user::protocol::command::SET_IRQS;
use ipc::{Deadline, Event};
#[cfg(target_os = "linux")]
use rustix::event::EventfdFlags;
use rustix::fs::OFlags;

fn install(vector: u32) -> Vec<u8> {
    words(&[20, 0x24, 2, vector, 1])
}

fn fire(served: &Served, vector: u16) {
    let raise = serde_json::json!({ "raise": { "address": "01:00.1", "vector": vector } });
    assert_eq!(served.simulator.control(&raise), "done");
}

/// Vector 0 is `held`, vector 1 an event of the usual kind: both fire, again and again, and the
/// function goes on serving this client and the next.
fn fires_past(served: &Served, held: BorrowedFd<'_>, change: impl Fn()) {
    let mut client = served.client();
    client.master_bus();
    let process = served.proxy.pid();
    let usual = Event::new().unwrap();
    let signaller = usual.signaller().unwrap();
    assert_eq!(client.ask(SET_IRQS, &install(0), &[held]).error, 0);
    assert_eq!(client.ask(SET_IRQS, &install(1), &[signaller.as_fd()]).error, 0);
    change();
    let before = Instant::now();
    for _ in 0..20 {
        fire(served, 0);
        fire(served, 1);
        assert!(usual.wait(Deadline::after(Duration::from_secs(5))).unwrap());
        assert_eq!(client.read(0, 0, 4), b"PRBE");
        // As the function process does for every vector in use when it is a new one.
        client.ok(SET_IRQS, &words(&[20, 0x21, 2, 0, 1]));
    }
    assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    drop(client);
    served.until(|event| matches!(event, ServerEvent::Detached(_)));
    let mut next = served.client();
    next.master_bus();
    assert_eq!(next.ask(SET_IRQS, &install(1), &[signaller.as_fd()]).error, 0);
    fire(served, 1);
    assert!(usual.wait(Deadline::after(Duration::from_secs(5))).unwrap());
    assert_eq!((served.proxy.pid(), served.proxy.death().is_none()), (process, true));
}

#[cfg(target_os = "linux")]
fn eventfd_that_is_full(flags: EventfdFlags) -> OwnedFd {
    let eventfd = rustix::event::eventfd(0, flags).unwrap();
    rustix::io::write(&eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    eventfd
}

#[test]
fn what_would_hold_its_signaller_up_is_refused_with_the_reason() {
    let served = Served::probe();
    let mut client = served.client();
    let (_read, pipe) = std::io::pipe().unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let file = tempfile::tempfile().unwrap();
    let null = std::fs::File::options().write(true).open("/dev/null").unwrap();
    for (descriptor, why) in [
        (pipe.as_fd(), "pipe has no O_NONBLOCK"),
        (socket.as_fd(), "socket has no O_NONBLOCK"),
        (file.as_fd(), "file is no event"),
        (null.as_fd(), "device is no event"),
    ] {
        assert_eq!(client.refused(SET_IRQS, &install(3), &[descriptor]), EINVAL, "{why}");
        served.until(|event| {
            matches!(event, ServerEvent::Refused(told) if told.contains(why) && told.contains("vector 3"))
        });
    }
}

#[test]
fn pipes_and_sockets_that_do_not_block_are_events() {
    let served = Served::probe();
    let mut client = served.client();
    client.master_bus();
    let (read, pipe) = std::io::pipe().unwrap();
    rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK).unwrap();
    let (socket, other) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    assert_eq!(client.ask(SET_IRQS, &install(0), &[pipe.as_fd()]).error, 0);
    assert_eq!(client.ask(SET_IRQS, &install(1), &[socket.as_fd()]).error, 0);
    fire(&served, 0);
    fire(&served, 1);
    let soon = Deadline::after(Duration::from_secs(5));
    assert!(ipc::poll::wait_readable(&read, soon).unwrap());
    assert!(ipc::poll::wait_readable(&other, soon).unwrap());
}

#[cfg(target_os = "linux")]
#[test]
fn an_eventfd_that_is_full_holds_up_nobody() {
    for flags in [EventfdFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK] {
        let served = Served::probe();
        let full = eventfd_that_is_full(flags);
        fires_past(&served, full.as_fd(), || {});
    }
}

#[test]
fn an_event_whose_owner_has_it_block_afterwards_holds_up_nobody() {
    let (_read, mut pipe) = std::io::pipe().unwrap();
    rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK).unwrap();
    while pipe.write(&[0; 4096]).is_ok() {}
    fires_past(&Served::probe(), pipe.as_fd(), || {
        rustix::fs::fcntl_setfl(&pipe, OFlags::empty()).unwrap();
    });
    #[cfg(target_os = "linux")]
    {
        let full = eventfd_that_is_full(EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        fires_past(&Served::probe(), full.as_fd(), || {
            rustix::fs::fcntl_setfl(&full, OFlags::empty()).unwrap();
        });
    }
}
