use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::Sender;

use cordon_vmm::kept::LeftClient;
use cordon_vmm::{Container, DmaMode, PciAddress};

use super::*;
use crate::fake::Fake;
use crate::kept::{Kept, Record};

const PAIR: [&str; 2] = ["01:00.0", "01:00.1"];

/// What a server left that had a client of each function, and the clients.
fn left() -> (Arc<Store>, Vec<(LeftClient, UnixStream)>) {
    let addresses: Vec<PciAddress> = PAIR.iter().map(|one| one.parse().unwrap()).collect();
    let store = |passed: Vec<(OwnedFd, String)>| {
        let (keeper, theirs) = UnixDatagram::pair().unwrap();
        (keeper, Store::with_functions(theirs, passed, &addresses))
    };
    let (keeper, before) = store(Vec::new());
    let mut clients = Vec::new();
    for address in &addresses {
        let (near, client) = UnixStream::pair().unwrap();
        let kept = before.client(*address).unwrap();
        // As after a kill: it is not given up.
        std::mem::forget(Kept::new(kept, &near, &Record::default()).unwrap());
        std::mem::forget(near);
        clients.push(client);
    }
    let (mut passed, mut bytes) = (Vec::new(), [0; 512]);
    while let Ok(came) = ipc::rights::receive(&keeper, &mut bytes) {
        let text = String::from_utf8(bytes[..came.bytes].to_vec()).unwrap();
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap();
        passed.push((came.handles.into_iter().next().unwrap(), name.to_owned()));
    }
    let (keeper, store) = store(passed);
    std::mem::forget(keeper);
    let left = addresses.iter().map(|address| store.take_client(*address).unwrap());
    let left = left.collect::<Vec<_>>().into_iter().zip(clients).collect();
    (Arc::new(store), left)
}

fn start(store: &Arc<Store>, guest: &Guest, adopted: Adopted, events: &Sender<Event>) -> Server {
    let keeping =
        Keeping { store: Some(Arc::clone(store)), adopted: Some(adopted), baseline: None };
    let device: Arc<dyn PassthroughDevice> = Arc::new(Fake::new(vec![0; 4096], [None; 6]));
    let events = events.clone();
    let log = move |event| drop(events.send(event));
    let clients = Clients::One(None, "passed on".into());
    Server::start_kept(clients, keeping, device, guest.clone(), Options::default(), log).unwrap()
}

#[test]
fn clients_of_one_guest_are_let_in_before_any_of_them_is_served() {
    let container = Arc::new(Container::new(DmaMode::Direct));
    let guest = Guest::shared(Arc::clone(&container));
    let (store, left) = left();
    let mut clients: Vec<(Adopted, UnixStream)> = left
        .into_iter()
        .map(|(left, client)| {
            let adopted = Adopted::of(left, &container, &[], Options::default()).unwrap();
            (adopted, client)
        })
        .collect();
    for (adopted, _) in &mut clients {
        adopted.admit(&guest);
    }
    let (second, mut client) = clients.pop().unwrap();
    let (mut first, _gone) = clients.pop().unwrap();
    // The first one left while nobody was there, and what it left is being taken back.
    let mut stay = first.admission.take().unwrap().unwrap();
    stay.leaves();
    let (sender, events) = channel();
    let _server = start(&store, &guest, second, &sender);
    assert_eq!(events.recv_timeout(Duration::from_secs(10)), Ok(Event::TakenOver));
    client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let read = std::io::Read::read(&mut client, &mut [0]).unwrap_err();
    assert_eq!(read.kind(), std::io::ErrorKind::WouldBlock, "it is not sent away");
    // One that is not let in before is not let in any more where nobody else is there.
    let (store, mut left) = self::left();
    let guest = Guest::shared(Arc::clone(&container));
    let mut stay = guest.admit(&client).unwrap();
    stay.leaves();
    let adopted = Adopted::of(left.remove(0).0, &container, &[], Options::default()).unwrap();
    let _server = start(&store, &guest, adopted, &sender);
    let lost = events.recv_timeout(Duration::from_secs(10));
    assert!(matches!(lost, Ok(Event::Lost(_))), "{lost:?}");
}
