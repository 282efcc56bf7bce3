//! What was left and is not as it was, and messages in parts.

use super::*;

/// A client as its server left it, changed.
fn left(change: impl FnOnce(&mut Vec<(OwnedFd, String)>)) -> (Store, UnixStream) {
    let (mut keeper, store) = Keeper::new();
    let (near, far) = UnixStream::pair().unwrap();
    let mut record = Record::default();
    record.events.held.push((2, 0));
    record.maps.push((BASE, SIZE, true));
    let mut kept = Kept::new(store.client(address()).unwrap(), &near, &record).unwrap();
    let event = Event::new().unwrap().signaller().unwrap();
    kept.change_events(&record, &[((2, 0), Some(event.as_fd()))]);
    keeper.hear();
    change(&mut keeper.kept);
    let store = keeper.restart();
    drop(kept);
    (store, far)
}

fn adopted(store: &Store, regions: &[GuestRegion]) -> Result<Adopted, KeptError> {
    let container = Container::new(DmaMode::Direct);
    let left = store.take_client(address()).unwrap();
    let adopted = Adopted::of(left, &container, regions, Options::default());
    let adopted = adopted.map_err(|not| {
        // What is known of it can be read, or is gone.
        assert_eq!(not.baseline.is_some(), store.client(address()).is_none());
        not.why
    });
    assert_eq!(container.usage().0, usize::from(adopted.is_ok() && !regions.is_empty()));
    adopted
}

fn ram(iova: u64, size: u64) -> GuestRegion {
    let memory = Arc::new(SharedMemory::create("ram", size).unwrap());
    GuestRegion { iova, size, memory, offset: 0, writable: true }
}

/// Another value at this place of what is known of it.
fn overwrite(kept: &mut [(OwnedFd, String)], at: u64, value: u64) {
    let session = kept.iter().find(|(_, name)| name.ends_with(".session")).unwrap();
    let file = std::fs::File::from(session.0.try_clone().unwrap());
    std::os::unix::fs::FileExt::write_all_at(&file, &value.to_le_bytes(), at).unwrap();
}

#[test]
fn what_is_not_as_it_was_sends_the_client_away_and_is_named() {
    let there = [ram(BASE, SIZE)];
    let (store, _far) = left(|_| {});
    assert!(adopted(&store, &there).is_ok());
    // That was taken away, which was not answered.
    let (store, _far) = left(|_| {});
    assert!(adopted(&store, &[]).is_ok());
    type Change = fn(&mut Vec<(OwnedFd, String)>);
    let cases: [(Change, &[GuestRegion], &str); 10] = [
        (
            |kept| kept.retain(|(_, name)| !name.contains("event")),
            &there,
            "vector 0 of interrupt index 2 was not kept",
        ),
        (|_| {}, &[ram(BASE, SIZE / 2)], "is a region of 0x8000 bytes"),
        (|kept| overwrite(kept, 0, 7), &there, "is torn, or is none"),
        (|kept| overwrite(kept, 8, 9), &there, "of version 9"),
        // A phase that there is not, a slot, an answer that is too long, and one that is torn.
        (|kept| overwrite(kept, 16, 4), &there, "is torn, or is none"),
        (|kept| overwrite(kept, 16, 2 << 8), &there, "is torn, or is none"),
        (|kept| overwrite(kept, 16, u64::MAX << 32 | 1), &there, "is torn, or is none"),
        (|kept| overwrite(kept, 16, 2), &there, "It was sending a message"),
        // Records of both slots, too long and of garbage.
        (
            |kept| {
                [24 << 10, 152 << 10].map(|at| overwrite(kept, at, u64::MAX)).into_iter().collect()
            },
            &there,
            "is torn, or is none",
        ),
        (
            |kept| {
                [24 << 10, 152 << 10]
                    .map(|at| overwrite(kept, at + 8, u64::MAX))
                    .into_iter()
                    .collect()
            },
            &there,
            "makes no sense",
        ),
    ];
    for (change, regions, says) in cases {
        let (store, mut far) = left(change);
        let error = adopted(&store, regions).map(drop).unwrap_err();
        let said = ipc::chain(&error);
        assert!(said.contains(says), "{says}: {said}");
        assert!(matches!(far.read(&mut [0; 16]), Ok(0)), "{says}");
    }
}

#[test]
fn events_that_change_places_are_each_where_the_client_gave_them_last() {
    let (mut keeper, store) = Keeper::new();
    let (near, _far) = UnixStream::pair().unwrap();
    let mut record = Record::default();
    let mut kept = Kept::new(store.client(address()).unwrap(), &near, &record).unwrap();
    let events = [(); 3].map(|()| Event::new().unwrap().signaller().unwrap());
    // Each message gives vectors events by their numbers, as often as the client likes.
    let said: [&[(u16, usize)]; 6] = [
        &[(0, 0), (1, 1)],
        &[(0, 1), (1, 0)],
        &[(0, 0)],
        &[(1, 2)],
        &[(3, 2), (4, 2)],
        &[(1, 0), (0, 1)],
    ];
    let mut now = std::collections::BTreeMap::new();
    for (number, message) in said.iter().enumerate() {
        let given = message.iter().map(|(at, event)| ((2, *at), Some(events[*event].as_fd())));
        kept.change_events(&record, &given.collect::<Vec<_>>());
        now.extend(message.iter().copied());
        record.events.held = now.keys().map(|vector| (2, *vector)).collect();
        record.events.names = kept.events.recorded();
        kept.write(&record);
        kept.journal.commit();
        // What another server would be passed on now, which this one does not hear.
        let (_nobody, store) = keeper.start();
        let left = adopted(&store, &[]).unwrap_or_else(|error| panic!("{number}: {error}"));
        let handed = left.kept.events.handed().unwrap();
        assert_eq!(handed.len(), now.len(), "{number}");
        for (vector, event) in &now {
            let is_it = crate::sys::is_same_file(&handed[&(2, *vector)], &events[*event]);
            assert!(is_it, "message {number}: vector {vector} has another event than {event}");
        }
    }
    // What a device does not take it has as before, and so does the keeper.
    let names = keeper.names();
    kept.change_events(&record, &[((2, 1), Some(events[2].as_fd())), ((2, 0), None)]);
    kept.events_refused();
    assert_eq!((keeper.names(), kept.events.recorded()), (names, record.events.names));
}

#[test]
fn records_that_cannot_be_are_refused() {
    let absurd = |change: fn(&mut Record)| {
        let mut record = Record::default();
        record.check().unwrap();
        change(&mut record);
        record.check().unwrap_err().to_string()
    };
    assert!(absurd(|one| one.negotiated = Some((1, 0))).contains("0 bytes"));
    assert!(absurd(|one| one.negotiated = Some((u64::MAX, 1))).contains("descriptors"));
    assert!(
        absurd(|one| one.maps = vec![(0x1000, 0x1000, true), (0x1fff, 1, true)])
            .contains("out of order")
    );
    assert!(absurd(|one| one.maps = vec![(u64::MAX, 2, true)]).contains("wraps"));
    assert!(absurd(|one| one.maps = vec![(0, 0, false)]).contains("empty"));
    assert!(absurd(|one| one.events.held = vec![(5, 0)]).contains("index 5"));
    assert!(absurd(|one| one.events.changing = vec![(2, 2048)]).contains("vector 2048"));
}

#[test]
fn the_largest_session_fits_and_a_larger_one_is_told() {
    let (all, whole) = (vec![0xff; 4096], vec![0xff; 4096 + 16 * 2048]);
    let mut record = Record {
        negotiated: Some((16, 1)),
        maps: (0..crate::limits::MAX_REGIONS as u64).map(|one| (one << 12, 4096, true)).collect(),
        config: Some(ConfigRecord { found: all.clone(), saved: whole }),
        handover: HandoverRecord { found: all, written: (0..1024).collect() },
        ..Record::default()
    };
    record.events.held = (0..2048).map(|vector| (2, vector)).collect();
    record.events.changing = record.events.held.clone();
    record.events.names = record.events.held.iter().map(|vector| (*vector, *vector)).collect();
    let mut journal = Journal::new().unwrap();
    journal.write(&record).unwrap();
    journal.set(Phase::Executed { rest: 63, length: MAX_KEPT_MESSAGE });
    let memory = journal.memory().try_clone().unwrap();
    let (_, phase, found) = Journal::left(memory).unwrap();
    assert_eq!(phase, Phase::Executed { rest: 63, length: MAX_KEPT_MESSAGE });
    assert_eq!(found, record);
    record.told = vec![0; crate::limits::MAX_SESSION];
    assert!(matches!(journal.write(&record), Err(KeptError::Record(_))));
}

#[test]
fn a_message_that_comes_in_parts_and_one_that_does_not_come_to_its_end_are_waited_for() {
    let (_keeper, store) = Keeper::new();
    let (near, mut far) = UnixStream::pair().unwrap();
    let kept = Kept::new(store.client(address()).unwrap(), &near, &Record::default()).unwrap();
    let stopped = Event::new().unwrap();
    let mut socket = Socket::kept(near, kept, &stopped);
    let message = |id: u16, length: usize| {
        let size = u32::try_from(HEADER + length).unwrap();
        let header = Header { id, command: command::GET_INFO, size, flags: 0, error: 0 };
        [&header.to_bytes()[..], &vec![7; length]].concat()
    };
    for (id, length) in [(1, 20), (2, 300), (3, 0)] {
        let message = message(id, length);
        let mut parts = message.chunks(7);
        far.write_all(parts.next().unwrap()).unwrap();
        assert!(socket.look());
        let came = std::thread::scope(|scope| {
            scope.spawn(|| {
                for part in parts {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                    far.write_all(part).unwrap();
                }
            });
            socket.receive().unwrap()
        });
        assert_eq!((came.header.id, came.body), (id, vec![7; length]));
        socket.reply(&came.header, &[], None).unwrap();
        assert_eq!(far.read(&mut [0; 64]).unwrap(), HEADER);
        assert!(!socket.look() && !socket.is_begun());
    }
    far.write_all(&message(4, 30)[..20]).unwrap();
    assert!(socket.look());
    drop(far);
    assert!(matches!(socket.receive(), Err(crate::socket::SocketError::EndOfFile)));
}
