use std::os::unix::net::{UnixDatagram, UnixStream};

use super::*;
use crate::kept::Store;

fn address() -> PciAddress {
    "01:00.0".parse().unwrap()
}

/// A store of a keeper that was passed on this, for a function that goes on, or none.
fn store(passed: Vec<(OwnedFd, String)>, goes_on: bool) -> (Store, UnixDatagram) {
    let (keeper, socket) = UnixDatagram::pair().unwrap();
    let functions = goes_on.then(address);
    (Store::with_functions(socket, passed, functions.as_slice()), keeper)
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe().unwrap()
}

fn memory(size: u64) -> OwnedFd {
    SharedMemory::create("session", size).unwrap().into_fd()
}

fn event() -> OwnedFd {
    let signaller = ipc::Event::new().unwrap().signaller().unwrap();
    signaller.as_fd().try_clone_to_owned().unwrap()
}

fn name(part: ClientPart) -> String {
    Name::Client(address(), part).to_string()
}

/// A client as it is kept, and its own end.
fn client() -> (Vec<(OwnedFd, String)>, UnixStream) {
    let ((near, far), (out, into)) = (UnixStream::pair().unwrap(), pipe());
    let parts = [
        (near.into(), ClientPart::Socket),
        (out, ClientPart::AnswersOut),
        (into, ClientPart::AnswersIn),
        (memory(4096), ClientPart::Session),
        (event(), ClientPart::Event(2, 7)),
    ];
    (parts.into_iter().map(|(fd, part)| (fd, name(part))).collect(), far)
}

fn removed(keeper: &UnixDatagram) -> Vec<String> {
    let mut names = removed_in_order(keeper);
    names.sort();
    names
}

/// The names that the keeper was given.
fn stored(keeper: &UnixDatagram) -> Vec<String> {
    keeper.set_nonblocking(true).unwrap();
    let (mut bytes, mut names) = ([0; 512], Vec::new());
    while let Ok(came) = keeper.recv(&mut bytes) {
        let text = String::from_utf8(bytes[..came].to_vec()).unwrap();
        let name = text.strip_prefix("FDSTORE=1\nFDPOLL=0\nFDNAME=");
        names.extend(name.map(|name| name.trim_end().to_owned()));
    }
    names
}

/// The names that the keeper was told to close.
fn removed_in_order(keeper: &UnixDatagram) -> Vec<String> {
    keeper.set_nonblocking(true).unwrap();
    let (mut bytes, mut names) = ([0; 512], Vec::new());
    while let Ok(came) = keeper.recv(&mut bytes) {
        let text = String::from_utf8(bytes[..came].to_vec()).unwrap();
        if text.starts_with("FDSTOREREMOVE=1\n") {
            names.push(
                text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap().to_owned(),
            );
        }
    }
    names
}

fn is_closed(far: &mut UnixStream) -> bool {
    use std::io::Read as _;
    matches!(far.read(&mut [0]), Ok(0))
}

fn why(store: &Store) -> String {
    let told = store.unusable_clients().iter().map(|(at, why)| format!("{at}: {why}"));
    told.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_client_is_left_whole_and_stays_until_somebody_goes_on_with_it() {
    let (passed, _far) = client();
    rustix::io::write(&passed[2].0, b"answer").unwrap();
    let numbers: Vec<_> =
        passed.iter().map(|(fd, _)| std::os::fd::AsRawFd::as_raw_fd(fd)).collect();
    let (store, keeper) = store(passed, true);
    assert!(store.unusable_clients().is_empty(), "{}", why(&store));
    assert_eq!(store.clients(), [address()]);
    let open = store.descriptors();
    assert!(numbers.iter().all(|number| open.contains(number)));
    let left = store.take_client(address()).unwrap();
    assert!(store.take_client(address()).is_none());
    assert_eq!((left.staged, left.session.size()), (6, 4096));
    assert_eq!(left.events.keys().collect::<Vec<_>>(), [&(2, 7)]);
    // One that nobody went on with is there for the next instance.
    drop(left);
    assert!(removed(&keeper).is_empty());
}

#[test]
fn what_is_passed_on_of_a_client_is_looked_at_and_what_cannot_be_is_closed() {
    let with = |part: ClientPart, fd: OwnedFd| {
        let (mut passed, far) = client();
        let one = passed.iter_mut().find(|(_, of)| *of == name(part)).unwrap();
        one.0 = fd;
        (passed, far)
    };
    let without = |part: ClientPart| {
        let (mut passed, far) = client();
        passed.retain(|(_, of)| *of != name(part));
        (passed, far)
    };
    let twice = |part: ClientPart| {
        let (mut passed, far) = client();
        passed.push((event(), name(part)));
        (passed, far)
    };
    let datagrams = || UnixDatagram::pair().unwrap().0.into();
    let cases = [
        (without(ClientPart::Socket), "socket was not kept"),
        (without(ClientPart::AnswersIn), "answers-in was not kept"),
        (without(ClientPart::AnswersOut), "answers-out was not kept"),
        (without(ClientPart::Session), "session was not kept"),
        (twice(ClientPart::Event(2, 7)), "event-2-7 was passed on twice"),
        (twice(ClientPart::Session), "session was passed on twice"),
        (with(ClientPart::Socket, event()), "client's socket is none"),
        (with(ClientPart::Socket, datagrams()), "client's socket is none"),
        (with(ClientPart::AnswersIn, pipe().1), "in no pipe, or in two"),
        (with(ClientPart::AnswersOut, event()), "in no pipe, or in two"),
        (with(ClientPart::Session, memory(MAX_CLIENT_STATE + 4096)), "in no memory of ours"),
        (with(ClientPart::Session, event()), "in no memory of ours"),
    ];
    for ((passed, mut far), says) in cases {
        let names: std::collections::BTreeSet<_> =
            passed.iter().map(|(_, name)| name.clone()).collect();
        let (store, keeper) = store(passed, true);
        assert!(why(&store).contains(says), "{says}: {}", why(&store));
        assert!(store.clients().is_empty() && is_closed(&mut far), "{says}");
        let mut names: Vec<_> = names.into_iter().collect();
        if !says.contains("session") && !says.contains("memory of ours") {
            // What was known of it says what is to be put back, and stays until it is.
            names.retain(|one| *one != name(ClientPart::Session));
            assert!(store.client(address()).is_none(), "{says}");
            let left = store.take_session(address()).unwrap();
            assert!(left.session.size() == 4096 && removed(&keeper) == names, "{says}");
            left.keeping.give_up();
            names = vec![name(ClientPart::Session)];
        }
        assert!(store.take_session(address()).is_none(), "{says}");
        assert_eq!(removed(&keeper), names, "{says}");
        // There may be another one.
        assert!(store.client(address()).is_some(), "{says}");
    }
}

#[test]
fn a_client_goes_on_with_its_function_or_not_at_all() {
    let (passed, mut far) = client();
    let (store, keeper) = store(passed, false);
    assert!(why(&store).contains("Its function was not kept"), "{}", why(&store));
    assert!(is_closed(&mut far));
    assert_eq!(removed(&keeper).len(), 5);
    // Nor is a new one kept.
    assert!(store.client(address()).is_none());
}

#[test]
fn what_is_kept_of_a_client_goes_with_it_and_with_its_function() {
    let (store, keeper) = store(Vec::new(), true);
    let (near, _far) = UnixStream::pair().unwrap();
    let ((out, into), session, event) = (pipe(), memory(4096), event());
    for ends in [true, false] {
        let client = store.client(address()).unwrap();
        client.begin(near.as_fd(), (out.as_fd(), into.as_fd()), session.as_fd()).unwrap();
        client.event(2, 0, event.as_fd()).unwrap();
        client.event(2, 1, event.as_fd()).unwrap();
        client.remove_event(2, 1);
        client.remove_event(2, 1);
        assert_eq!(removed(&keeper), [name(ClientPart::Event(2, 1))]);
        assert!(store.client(address()).is_none(), "there is one");
        match ends {
            true => client.give_up(),
            false => {
                // The device was away, say.
                store.manager.note(address(), None);
                assert_eq!(removed(&keeper).len(), 5);
                let refused = client.event(2, 0, event.as_fd()).unwrap_err();
                assert!(matches!(refused, StoreError::NotKept(_)), "{refused}");
                drop(client);
                assert!(removed(&keeper).is_empty());
                continue;
            }
        }
        // What is known of it goes last.
        let removed = removed_in_order(&keeper);
        assert_eq!((removed.len(), removed.last()), (5, Some(&name(ClientPart::Session))));
    }
}

#[test]
fn what_is_known_of_a_client_is_kept_whenever_its_function_is_until_it_is_put_back() {
    let (store, keeper) = store(Vec::new(), true);
    let known = [name(ClientPart::Session)];
    let (near, _far) = UnixStream::pair().unwrap();
    let ((out, into), session, event) = (pipe(), memory(4096), event());
    let client = store.client(address()).unwrap();
    client.begin(near.as_fd(), (out.as_fd(), into.as_fd()), session.as_fd()).unwrap();
    assert_eq!(stored(&keeper)[0], known[0], "it comes first");
    // It has more than is kept of one client.
    let refused = (0..100).find_map(|vector| {
        let refused = client.event(2, vector, event.as_fd()).err();
        assert!(refused.is_some() || stored(&keeper).len() == 1);
        refused
    });
    assert!(matches!(refused, Some(StoreError::NoRoom { .. })), "{refused:?}");
    let gone = removed(&keeper);
    assert!(gone.len() == 79 && !gone.contains(&known[0]), "{gone:?}");
    // Its function is away for a while.
    store.manager.note(address(), None);
    assert_eq!(removed(&keeper), known);
    store.manager.note(address(), Some(Ok(())));
    store.manager.note(address(), Some(Ok(())));
    assert_eq!(stored(&keeper), known);
    assert!(store.client(address()).is_none(), "there is one");
    client.give_up();
    assert_eq!(removed(&keeper), known);
    store.manager.note(address(), Some(Ok(())));
    assert!(stored(&keeper).is_empty());
    drop(client);
    // Nobody has put back what another one wrote: that goes with the function.
    let client = store.client(address()).unwrap();
    client.begin(near.as_fd(), (out.as_fd(), into.as_fd()), session.as_fd()).unwrap();
    drop(client);
    let gone = removed(&keeper);
    assert!(gone.len() == 3 && !gone.contains(&known[0]), "{gone:?}");
    assert!(store.client(address()).is_none());
    store.manager.note(address(), None);
    assert_eq!(removed(&keeper), known);
    store.manager.note(address(), Some(Ok(())));
    assert!(stored(&keeper).is_empty() && store.client(address()).is_some());
}

#[test]
fn one_that_is_sent_away_stays_known_to_every_next_instance_until_it_is_put_back() {
    let (passed, mut far) = client();
    let session = passed.iter().find(|(_, of)| *of == name(ClientPart::Session)).unwrap();
    let session = session.0.try_clone().unwrap();
    let (first, keeper) = store(passed, true);
    let left = first.take_client(address()).unwrap().send_away();
    assert!(is_closed(&mut far));
    let gone = removed(&keeper);
    assert!(gone.len() == 4 && !gone.contains(&name(ClientPart::Session)), "{gone:?}");
    // Killed before it is put back, and after.
    drop((left, first));
    assert!(removed(&keeper).is_empty());
    let (next, keeper) = store(vec![(session, name(ClientPart::Session))], true);
    assert!(why(&next).contains("was not kept any more"), "{}", why(&next));
    assert!(next.descriptors().len() == 2 && next.clients().is_empty());
    next.take_session(address()).unwrap().keeping.give_up();
    assert_eq!(removed(&keeper), [name(ClientPart::Session)]);
    assert!(next.client(address()).is_some());
}

#[test]
fn one_client_takes_the_room_of_no_other_and_all_of_them_not_that_of_functions() {
    use crate::limits::{MAX_KEPT_OF_CLIENT, MAX_KEPT_OF_CLIENTS};

    let (keeper, socket) = UnixDatagram::pair().unwrap();
    let functions = ["01:00.0", "01:00.1", "01:00.2"].map(|text| text.parse().unwrap());
    let store = Store::with_functions(socket, Vec::new(), &functions);
    keeper.set_nonblocking(true).unwrap();
    let mut heard = 0;
    let mut hear = || {
        while keeper.recv(&mut [0; 512]).is_ok() {
            heard += 1;
        }
        heard
    };
    let clients = functions.map(|function| store.client(function).unwrap());
    let event = event();
    let mut given = 0;
    for (client, most) in clients.iter().zip([MAX_KEPT_OF_CLIENT, MAX_KEPT_OF_CLIENT, 0]) {
        for vector in 0..u16::try_from(most).unwrap() {
            client.event(2, vector, event.as_fd()).unwrap();
            given += 1;
            hear();
        }
        let refused = client.event(2, 9999, event.as_fd()).unwrap_err();
        assert!(matches!(refused, StoreError::NoRoom { .. }), "{refused}");
        assert!(refused.to_string().contains("80 and 160 are the limits"), "{refused}");
        // It is given up for that, which is room for nobody here.
        assert_eq!(given, MAX_KEPT_OF_CLIENTS.min(given));
        if most > 0 {
            for vector in 0..u16::try_from(most).unwrap() {
                client.event(2, vector, event.as_fd()).unwrap();
                hear();
            }
        }
    }
    assert!(hear() >= MAX_KEPT_OF_CLIENTS);
}
