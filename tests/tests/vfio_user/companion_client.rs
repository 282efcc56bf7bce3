//! The client of a companion acts in the memory of its function's client, and leaves with it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use cordon_tests::vfio_user::Client;
use cordon_tests::{Simulator, address, config};
use cordon_vfio_user::{Event, Options, Server};
use cordon_vmm::{CompanionConfig, Container, DmaMode, Host};

fn wait(events: &Receiver<Event>, wanted: impl Fn(&Event) -> bool) {
    while !wanted(&events.recv_timeout(Duration::from_secs(10)).unwrap()) {}
}

#[test]
fn a_companions_client_leaves_with_the_functions_and_not_the_other_way_round() {
    let simulator = Simulator::usual();
    let host = Host::new(config(&simulator));
    let container = Arc::new(Container::new(DmaMode::Companion));
    let configuration = CompanionConfig::new(address("00:05.0"));
    let attached =
        host.attach_with_companion(address("01:00.1"), &container, None, configuration).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let paths = ["function", "companion"].map(|name| directory.path().join(name));
    let (tell, events) = channel();
    let function =
        Server::start(&paths[0], attached.0, Arc::clone(&container), Options::default(), {
            move |event| drop(tell.send(event))
        })
        .unwrap();
    let own = Arc::new(Container::new(DmaMode::Companion));
    let (tell, companion_events) = channel();
    let _companion = function
        .start_beside(
            ipc::SocketFile::listen(&paths[1]).unwrap(),
            attached.1,
            own,
            Options::default(),
            move |event| drop(tell.send(event)),
        )
        .unwrap();

    for _ in 0..3 {
        let mut client = Client::negotiated(&paths[0]);
        let mut beside = Client::negotiated(&paths[1]);
        // Its page register, which the next client is not to find.
        beside.write(0, 0x10, &0x8000u32.to_le_bytes());
        beside.write(7, 4, &[6, 0]);
        client.still_works();
        drop(client);
        wait(&events, |event| matches!(event, Event::Detached(_)));
        let left = "the client of its function has left";
        wait(&companion_events, |event| matches!(event, Event::Detached(why) if why == left));
        assert!(beside.is_closed());
    }

    let mut client = Client::negotiated(&paths[0]);
    let mut beside = Client::negotiated(&paths[1]);
    assert_eq!(beside.read(7, 4, 2), [0, 0]);
    drop(beside);
    wait(&companion_events, |event| matches!(event, Event::Detached(why) if why == "end of file"));
    client.still_works();
    Client::negotiated(&paths[1]).still_works();
}
