//! Functions that reach the same memory, as those of an IOMMU group do: their clients are one process, whose memory each
//! of them describes.
#![cfg(target_os = "linux")]

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::EINVAL;
use cordon_tests::vfio_user::{Client, map, ram, unmap};
use cordon_tests::{Simulator, address, config};
use cordon_vfio_user::protocol::command::{DMA_MAP, DMA_UNMAP};
use cordon_vfio_user::{Event, Guest, Options, Server};
use cordon_vmm::{Container, DmaMode, Host, PassthroughDevice};

const MIB: u64 = 1 << 20;
const FUNCTIONS: [&str; 2] = ["01:00.0", "01:00.1"];
/// Set for a process that is to be another client, to where it connects.
const OTHER: &str = "CORDON_OTHER_CLIENT";

struct Setup {
    simulator: Simulator,
    container: Arc<Container>,
    events: Mutex<Receiver<(usize, Event)>>,
    paths: Vec<PathBuf>,
    _servers: Vec<Server>,
    _host: Host,
    _folder: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        let simulator = Simulator::usual();
        let host = Host::new(config(&simulator));
        let container = Arc::new(Container::new(DmaMode::Direct));
        let guest = Guest::shared(Arc::clone(&container));
        let folder = tempfile::tempdir().unwrap();
        let (sender, events) = channel();
        let (mut paths, mut servers) = (Vec::new(), Vec::new());
        for (number, function) in FUNCTIONS.into_iter().enumerate() {
            let function = host.attach(address(function), &container, None).unwrap();
            let path = folder.path().join(number.to_string());
            let device: Arc<dyn PassthroughDevice> = function;
            let sender = sender.clone();
            let log = move |event| drop(sender.send((number, event)));
            let server = Server::start(&path, device, guest.clone(), Options::default(), log);
            servers.push(server.unwrap());
            paths.push(path);
        }
        let events = Mutex::new(events);
        Self {
            simulator,
            container,
            events,
            paths,
            _servers: servers,
            _host: host,
            _folder: folder,
        }
    }

    /// How many regions the dext has of each.
    fn mapped(&self) -> [u64; 2] {
        FUNCTIONS.map(|function| self.simulator.held(function).2)
    }

    /// Waits until a server has logged this.
    fn until(&self, number: usize, wanted: impl Fn(&Event) -> bool) {
        let events = self.events.lock().unwrap();
        while !events
            .recv_timeout(Duration::from_secs(10))
            .map(|(of, event)| of == number && wanted(&event))
            .unwrap()
        {}
    }

    /// Waits until another process was let in, or not; whether it was.
    fn other_is_let_in(&self, number: usize) -> bool {
        let name = "shared_guest::another_process_connects";
        let mut other = Command::new(std::env::current_exe().unwrap());
        other.args(["--exact", name, "--nocapture"]).env(OTHER, &self.paths[number]);
        let output = other.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        match (said.contains("served"), said.contains("sent away")) {
            (true, false) => true,
            (false, true) => false,
            _ => panic!("{output:?}"),
        }
    }
}

fn take(client: &mut Client, body: &[u8], memory: &ipc::SharedMemory) -> u32 {
    client.ask(DMA_MAP, body, &[memory.as_fd()]).error
}

/// Not a test by itself: what the others run as a process of its own.
#[test]
fn another_process_connects() {
    let Some(path) = std::env::var_os(OTHER) else { return };
    let mut client = Client::connect(Path::new(&path));
    let said = if client.is_served() { "served" } else { "sent away" };
    cordon_tests::verdict(said);
}

#[test]
fn memory_that_both_describe_is_there_until_both_have_taken_it_back() {
    let setup = Setup::new();
    let mut clients = [0, 1].map(|number: usize| Client::negotiated(&setup.paths[number]));
    let memory = ram(4 * MIB);
    let region = map(3, 0, 0, 4 * MIB);
    assert_eq!(take(&mut clients[0], &region, &memory), 0);
    // What one function is given all of them reach.
    assert_eq!(setup.mapped(), [1, 1]);
    assert_eq!(take(&mut clients[1], &region, &memory), 0);
    assert_eq!((setup.mapped(), setup.container.usage()), ([1, 1], (1, 4 * MIB)));
    clients[0].ok(DMA_UNMAP, &unmap(0, 0, 4 * MIB));
    assert_eq!(setup.mapped(), [1, 1]);
    clients[1].ok(DMA_UNMAP, &unmap(0, 0, 4 * MIB));
    assert_eq!((setup.mapped(), setup.container.usage()), ([0, 0], (0, 0)));
    // In any order, and again.
    assert_eq!(take(&mut clients[1], &region, &memory), 0);
    assert_eq!(take(&mut clients[0], &region, &memory), 0);
    clients[1].ok(DMA_UNMAP, &unmap(2, 0, 0));
    assert_eq!(setup.mapped(), [1, 1]);
    let [first, second] = clients;
    drop(second);
    setup.until(1, |event| matches!(event, Event::Detached(_)));
    assert_eq!(setup.mapped(), [1, 1]);
    drop(first);
    assert!(cordon_tests::eventually(|| setup.mapped() == [0, 0]));
}

#[test]
fn other_memory_at_the_same_address_is_refused() {
    const EBUSY: u32 = 16;
    let setup = Setup::new();
    let mut clients = [0, 1].map(|number: usize| Client::negotiated(&setup.paths[number]));
    let (memory, other) = (ram(4 * MIB), ram(4 * MIB));
    assert_eq!(take(&mut clients[0], &map(3, 0, 0, 2 * MIB), &memory), 0);
    assert_eq!(take(&mut clients[1], &map(3, 0, 0, 2 * MIB), &other), EBUSY);
    for body in [map(1, 0, 0, 2 * MIB), map(3, MIB, 0, 2 * MIB), map(3, 0, MIB, 2 * MIB)] {
        assert_eq!(take(&mut clients[1], &body, &memory), EBUSY, "{body:x?}");
    }
    // Its own account of what it has is as it was.
    let error = clients[1].refused(DMA_UNMAP, &unmap(0, 0, 2 * MIB), &[]);
    assert!(error != 0 && error != EINVAL, "{error}");
    assert_eq!(take(&mut clients[1], &map(3, 0, 0, 2 * MIB), &memory), 0);
    assert_eq!(setup.mapped(), [1, 1]);
}

#[test]
fn another_process_has_none_of_them_until_the_first_has_left_all() {
    let setup = Setup::new();
    let [first, second] = [0, 1].map(|number: usize| Client::negotiated(&setup.paths[number]));
    drop(second);
    setup.until(1, |event| matches!(event, Event::Detached(_)));
    assert!(!setup.other_is_let_in(1), "the first has the other function");
    setup.until(1, |event| {
        let Event::Refused(why) = event else { return false };
        why.contains(&format!("process {} has a function", std::process::id()))
    });
    // The one who has it may have both again.
    let again = Client::negotiated(&setup.paths[1]);
    drop((first, again));
    // When all that it left is taken back.
    assert!(cordon_tests::eventually(|| setup.other_is_let_in(1)));
    let mut own = Client::negotiated(&setup.paths[0]);
    own.still_works();
}
