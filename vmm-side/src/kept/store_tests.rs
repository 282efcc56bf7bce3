use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use ipc::Handles;
use ipc::wire::common::Identity;
use ipc::wire::connection::{DmaEntry, Escrowed, EscrowedFunction, Mapped};

use super::*;
use crate::connection::{Account, Accounts, Escrow};

/// A keeper of the test's: what it was given, by name and in the order of coming.
struct Keeper {
    socket: UnixDatagram,
    kept: Vec<(OwnedFd, String)>,
    /// Every message.
    heard: Vec<String>,
}

impl Keeper {
    fn new() -> (Self, UnixDatagram) {
        let (socket, theirs) = UnixDatagram::pair().unwrap();
        (Self { socket, kept: Vec::new(), heard: Vec::new() }, theirs)
    }

    /// Carries out what was asked for.
    fn hear(&mut self) -> &mut Self {
        let mut bytes = [0; 512];
        while let Ok(came) = ipc::rights::receive(&self.socket, &mut bytes) {
            let text = String::from_utf8(bytes[..came.bytes].to_vec()).unwrap();
            let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap();
            if text.starts_with("FDSTOREREMOVE=1\n") {
                assert!(came.handles.is_empty());
                self.kept.retain(|(_, kept)| kept != name);
            } else {
                // Sockets are kept also when their peers are gone.
                assert!(text.starts_with("FDSTORE=1\nFDPOLL=0\n"), "{text}");
                let [fd] = <[OwnedFd; 1]>::try_from(came.handles).unwrap();
                // What it has already it does not take again.
                self.kept.retain(|(_, kept)| kept != name);
                self.kept.push((fd, name.to_owned()));
            }
            self.heard.push(text);
        }
        self
    }

    fn names(&mut self) -> Vec<String> {
        let mut names: Vec<_> = self.hear().kept.iter().map(|(_, name)| name.clone()).collect();
        names.sort();
        names
    }

    /// The next instance, which is passed everything, in another order.
    fn restart(&mut self) -> (Store, UnixDatagram) {
        self.hear();
        let (socket, theirs) = UnixDatagram::pair().unwrap();
        self.socket = socket;
        let passed = self.kept.iter().rev();
        let passed = passed.map(|(fd, name)| (fd.try_clone().unwrap(), name.clone()));
        (Store::of(theirs.try_clone().unwrap(), passed.collect(), usize::MAX, &[]), theirs)
    }
}

fn address(function: u8) -> PciAddress {
    format!("01:00.{function}").parse().unwrap()
}

fn file(size: u64) -> OwnedFd {
    SharedMemory::create("kept", size).unwrap().into_fd()
}

/// A group with these functions; each has an event for its request, whose other end comes beside.
fn escrow(functions: &[u8]) -> (Escrow, Vec<UnixStream>) {
    let (mut handles, mut requests) = (vec![file(1 << 16), file(2 << 16)], Vec::new());
    let described = functions.iter().map(|number| {
        let (request, event) = UnixStream::pair().unwrap();
        requests.push(request);
        handles.extend([file(u64::from(3 + number) << 16), event.into()]);
        EscrowedFunction { address: address(*number), descriptors: 1, request: true }
    });
    let escrowed = Escrowed { group: 2, functions: described.collect() };
    (Escrow::of(&escrowed, Handles::from(handles)).unwrap().unwrap(), requests)
}

fn region(memory: &Arc<SharedMemory>, iova: u64) -> Arc<GuestRegion> {
    let (memory, size) = (Arc::clone(memory), 0x1000);
    Arc::new(GuestRegion { iova, size, memory, offset: iova, writable: true })
}

/// What a function was told, which reaches these regions.
fn account(number: u8, regions: &[Arc<GuestRegion>]) -> Account {
    let identity = Identity { address: address(number), vendor: 1, device: 2, class: 3 };
    let mut account = Account::new(identity, [None; 6]);
    for region in regions {
        let (key, size) = (region.iova, region.size);
        account.regions.insert(key, (Arc::clone(region), Some(0)));
        let mapped = Mapped { bus_address: key, bus_length: size };
        account.ranges.insert(key, (DmaEntry { key, address: key, size }, Some((0, mapped))));
    }
    account
}

fn memory() -> Arc<SharedMemory> {
    Arc::new(SharedMemory::create("ram", 0x10000).unwrap())
}

const ALL: [&str; 6] = [
    "cordon.0000-01-00-0.0000-01-00-0.device-0",
    "cordon.0000-01-00-0.0000-01-00-0.request",
    "cordon.0000-01-00-0.group-0",
    "cordon.0000-01-00-0.group-1",
    "cordon.0000-01-00-0.record",
    "cordon.memory-0",
];

/// One function that is kept by a store of a keeper's, with two regions.
fn kept() -> (Keeper, Store, Keeping, Escrow, Vec<UnixStream>) {
    let (mut keeper, socket) = Keeper::new();
    let store = Store::of(socket, Vec::new(), usize::MAX, &[]);
    let (escrow, requests) = escrow(&[0]);
    let memory = memory();
    let account = account(0, &[region(&memory, 0), region(&memory, 0x4000)]);
    let mut keeping = store.keeping(address(0));
    keeping.update(&escrow, &Accounts::from([(address(0), account)]), |_| true);
    assert_eq!(keeper.names(), ALL);
    (keeper, store, keeping, escrow, requests)
}

fn why(store: &Store) -> String {
    let told: Vec<_> = store.unusable().iter().map(|(at, why)| format!("{at}: {why}")).collect();
    told.join("\n")
}

#[test]
fn what_is_kept_is_there_for_the_next_instance_with_its_memory() {
    let (mut keeper, store, keeping, _escrow, _requests) = kept();
    store.keeps(address(0)).unwrap();
    assert!(matches!(*store.keeps(address(1)).unwrap_err(), StoreError::NotKept(_)));
    // A kill.
    std::mem::forget(keeping);
    drop(store);
    let (store, _socket) = keeper.restart();
    assert!(store.unusable().is_empty(), "{}", why(&store));
    let left = store.left();
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].address, left[0].group.as_slice()), (address(0), &[address(0)][..]));
    let places: Vec<_> =
        left[0].regions.iter().map(|one| (one.iova, one.size, one.offset, one.writable)).collect();
    assert_eq!(places, [(0, 0x1000, 0, true), (0x4000, 0x1000, 0x4000, true)]);
    assert!(Arc::ptr_eq(&left[0].regions[0].memory, &left[0].regions[1].memory));
    let group = store.take(address(0)).unwrap();
    assert!(store.left().is_empty() && store.take(address(0)).is_none());
    let sizes = |fds: &[Arc<OwnedFd>]| -> Vec<u64> {
        fds.iter().map(|fd| SharedMemory::size_of(&**fd).unwrap() >> 16).collect()
    };
    assert_eq!(sizes(group.escrow.group()), [1, 2]);
    let functions: Vec<_> = group.escrow.functions().map(|one| sizes(one.descriptors)).collect();
    assert_eq!(functions, [[3]]);
    store.put_back(group);
    assert_eq!(store.left().len(), 1);
    // Nothing was said that a keeper has to do anything about.
    assert_eq!(keeper.names(), ALL);
}

#[test]
fn each_change_is_there_after_a_kill_and_costs_no_message_where_nothing_is_new() {
    let (mut keeper, store, mut keeping, escrow, _requests) = kept();
    let (first, second) = (memory(), memory());
    let before = keeper.heard.len();
    let now = account(0, &[region(&first, 0), region(&second, 0x4000), region(&first, 0x8000)]);
    keeping.update(&escrow, &Accounts::from([(address(0), now)]), |_| true);
    // Two files came, and the one before went.
    assert_eq!(keeper.hear().heard.len(), before + 3);
    let now = account(0, &[region(&first, 0)]);
    keeping.update(&escrow, &Accounts::from([(address(0), now.clone())]), |_| true);
    assert_eq!(keeper.hear().heard.len(), before + 4, "{:?}", keeper.heard);
    keeping.update(&escrow, &Accounts::from([(address(0), now)]), |_| true);
    assert_eq!(keeper.hear().heard.len(), before + 4);
    drop((keeping, store));
    let (store, _socket) = keeper.restart();
    let left = store.left();
    assert_eq!(left[0].regions.len(), 1, "{}", why(&store));
}

#[test]
fn what_is_given_back_is_given_up_at_once_and_memory_with_its_last_user() {
    let (mut keeper, socket) = Keeper::new();
    let store = Store::of(socket, Vec::new(), usize::MAX, &[]);
    let ram = memory();
    let accounts =
        Accounts::from([0, 1].map(|one| (address(one), account(one, &[region(&ram, 0)]))));
    let ((both, _one), (other, _two)) = (escrow(&[0, 1]), escrow(&[0, 1]));
    let (mut group, mut another) =
        (store.keeping(address(0)), store.keeping("02:00.0".parse().unwrap()));
    group.update(&both, &accounts, |_| true);
    another.update(&other, &accounts, |one| one == address(1));
    let memories =
        |keeper: &mut Keeper| keeper.names().iter().filter(|name| name.contains("memory")).count();
    // A group has 2 and its record, a function 2; both have one file.
    assert_eq!((keeper.names().len(), memories(&mut keeper)), (7 + 5 + 1, 1));
    group.update(&both, &accounts, |one| one == address(1));
    assert_eq!(keeper.names().len(), 5 + 5 + 1);
    group.void();
    assert_eq!((keeper.names().len(), memories(&mut keeper)), (5 + 1, 1));
    another.void();
    assert!(keeper.names().is_empty());
    assert!(store.keeps(address(1)).is_err());
    // And can come again.
    group.update(&both, &accounts, |_| true);
    assert_eq!(keeper.names().len(), 7 + 1);
}

#[test]
fn a_kill_between_any_two_messages_leaves_what_is_whole_or_nothing() {
    let (mut keeper, store, keeping, escrow, _requests) = kept();
    drop((store, keeping));
    let all = std::mem::take(&mut keeper.kept);
    // The record comes last.
    assert!(all[5].1.ends_with(".record"), "{:?}", keeper.heard);
    for count in 0..all.len() {
        keeper.kept =
            all[..count].iter().map(|(fd, name)| (fd.try_clone().unwrap(), name.clone())).collect();
        let (store, _socket) = keeper.restart();
        assert!(store.left().is_empty());
        assert!(keeper.names().is_empty(), "{:?}", keeper.names());
        assert!(count == 0 || !why(&store).is_empty() || all[0].1.contains("memory"));
    }
    drop(escrow);
}

#[test]
fn what_is_missing_costs_its_group_and_is_named() {
    for missing in ALL {
        let (mut keeper, _store, _keeping, _escrow, _requests) = kept();
        keeper.kept.retain(|(_, name)| name != missing);
        let (store, _socket) = keeper.restart();
        assert!(store.left().is_empty());
        let told = why(&store);
        assert!(told.starts_with("01:00.0: ") && told.contains(missing), "{told}");
        assert!(keeper.names().is_empty(), "{:?}", keeper.names());
    }
}

#[test]
fn what_is_too_much_is_closed_and_costs_nobody_else_anything() {
    let (mut keeper, _store, _keeping, _escrow, _requests) = kept();
    let other = "cordon.0000-01-00-0.0000-01-00-1.device-0";
    for name in [other, "cordon.memory-9", "cordon.0000-07-00-0.group-0", "of-the-vmm"] {
        keeper.kept.push((file(4096), name.to_owned()));
    }
    let (store, _socket) = keeper.restart();
    assert_eq!(store.left().len(), 1);
    let told = why(&store);
    assert!(told.contains("01:00.1: It was just being attached or detached"), "{told}");
    assert!(told.contains("07:00.0: cordon.0000-07-00-0.record was not kept"), "{told}");
    assert_eq!(keeper.names().len(), ALL.len() + 1, "what is the VMM's own stays");
    // Two of a name: which is meant nobody knows.
    keeper.kept.push((file(4096), ALL[2].to_owned()));
    let (store, _socket) = keeper.restart();
    assert!(store.left().is_empty() && why(&store).contains("group-0 was passed on twice"));
}

#[test]
fn a_record_of_another_version_or_a_torn_one_is_told_and_the_device_is_free() {
    for (garbage, says) in [(&[9u8, 0, 0, 0][..], "of version 9"), (&[0; 64][..], "is torn")] {
        let (mut keeper, _store, _keeping, _escrow, _requests) = kept();
        let record = keeper.kept.iter().find(|(_, name)| name.ends_with(".record")).unwrap();
        let record = File::from(record.0.try_clone().unwrap());
        for slot in [0, crate::limits::MAX_RECORD as u64] {
            use std::os::unix::fs::FileExt as _;
            let at = if garbage.len() == 4 { slot + 8 } else { slot };
            record.write_all_at(garbage, at).unwrap();
        }
        if garbage.len() == 4 {
            // The slot that was never written is none.
            assert!(record.metadata().unwrap().len() > 0);
        }
        let (store, _socket) = keeper.restart();
        assert!(store.left().is_empty());
        assert!(why(&store).contains(says), "{}", why(&store));
        assert!(keeper.names().is_empty());
    }
}

#[test]
fn memory_that_is_not_as_large_as_the_record_says_is_refused() {
    let (mut keeper, _store, _keeping, _escrow, _requests) = kept();
    let memory = keeper.kept.iter_mut().find(|(_, name)| name == "cordon.memory-0").unwrap();
    memory.0 = file(0x4000);
    let (store, _socket) = keeper.restart();
    assert!(store.left().is_empty());
    assert!(
        why(&store).contains("0x4000+0x1000 is said to be at 0x4000 of a file"),
        "{}",
        why(&store)
    );
}

#[test]
fn what_the_kernel_wants_back_is_closed_when_it_is_looked_at() {
    let (mut keeper, _, _, _, mut requests) = kept();
    let (store, socket) = keeper.restart();
    requests[0].write_all(&[1]).unwrap();
    assert!(store.left().is_empty());
    assert!(keeper.names().is_empty(), "{:?}", keeper.heard);
    drop(socket);
    let (mut keeper, _, _, _, mut requests) = kept();
    requests[0].write_all(&[1]).unwrap();
    let (store, _socket) = keeper.restart();
    assert!(why(&store).contains("The kernel wants it back"), "{}", why(&store));
    assert!(keeper.names().is_empty());
}

#[test]
fn what_is_discarded_is_given_up_with_its_group() {
    let (mut keeper, _store, _keeping, _escrow, _requests) = kept();
    let (store, _socket) = keeper.restart();
    assert!(!store.discard(address(3)));
    assert!(store.discard(address(0)) && !store.discard(address(0)));
    assert!(store.left().is_empty() && keeper.names().is_empty());
}

#[test]
fn a_keeper_that_takes_nothing_is_waited_for_once() {
    let (mut keeper, socket) = Keeper::new();
    let store = Store::of(socket, Vec::new(), usize::MAX, &[]);
    let (escrow, _requests) = escrow(&[0]);
    let accounts = Accounts::from([(address(0), account(0, &[]))]);
    let mut keeping = store.keeping(address(0));
    // It has not much room, and does not listen: told and told again, it has none in the end.
    let many = 100_000;
    let is_silent = (0..many).any(|_| {
        keeping.update(&escrow, &accounts, |_| true);
        let is_silent = store.keeps(address(0)).is_err();
        if !is_silent {
            keeping.void();
        }
        is_silent
    });
    assert!(is_silent, "it takes all there is");
    let error = store.keeps(address(0)).unwrap_err();
    assert!(matches!(*error, StoreError::Silent(_)), "{error}");
    let again = std::time::Instant::now();
    keeping.update(&escrow, &accounts, |_| true);
    assert!(again.elapsed() < Duration::from_millis(500), "it was waited for again");
    // It is told as much as it has room for at a time, without waiting, until it has heard everything.
    let mut is_kept = false;
    for _ in 0..many {
        if is_kept {
            break;
        }
        keeper.hear();
        keeping.update(&escrow, &accounts, |_| true);
        is_kept = store.keeps(address(0)).is_ok();
    }
    assert!(is_kept, "it listens again");
    assert_eq!(keeper.names(), ALL[..5], "all of the group is there again");
    // It is waited for again, and once.
    keeping.void();
    drop(keeper);
    let again = std::time::Instant::now();
    keeping.update(&escrow, &accounts, |_| true);
    let error = store.keeps(address(0)).unwrap_err();
    assert!(matches!(*error, StoreError::Silent(_)), "{error}");
    assert!(again.elapsed() < Duration::from_millis(500), "nobody is there to wait for");
}

#[test]
fn a_keeper_is_given_no_more_than_it_has_room_for() {
    let (mut keeper, socket) = Keeper::new();
    // Something of another version is there, whose name nobody knows.
    let passed = vec![(file(4096), "cordon.memory-x".to_owned())];
    let store = Store::of(socket, passed, 10, &[]);
    let accounts = |number| Accounts::from([(address(number), account(number, &[]))]);
    let ((one, _first), (other, _second)) = (escrow(&[0]), escrow(&[1]));
    let mut group = store.keeping(address(0));
    let mut another = store.keeping(address(1));
    group.update(&one, &accounts(0), |_| true);
    assert_eq!(keeper.names().len(), 5);
    another.update(&other, &accounts(1), |_| true);
    // 5 more are one too many: nothing is kept of it in part, and the first is as it was.
    let error = store.keeps(address(1)).unwrap_err();
    assert!(matches!(*error, StoreError::Full(10)), "{error}");
    assert_eq!(keeper.names(), ALL[..5]);
    store.keeps(address(0)).unwrap();
    // A client has what is left, which is 4, and then no event.
    let client = store.client(address(0)).unwrap();
    let (near, _far) = UnixStream::pair().unwrap();
    let (out, into) = rustix::pipe::pipe().unwrap();
    let session = file(4096);
    client.begin(near.as_fd(), (out.as_fd(), into.as_fd()), session.as_fd()).unwrap();
    assert_eq!(keeper.names().len(), 9);
    let refused = client.event(2, 0, session.as_fd()).unwrap_err();
    assert!(refused.to_string().contains("room for 10 descriptors"), "{refused}");
    assert_eq!(keeper.names().len(), 6, "what is known of it stays");
    client.give_up();
    // What goes is room for others, and what was passed on takes room.
    group.void();
    another.update(&other, &accounts(1), |_| true);
    store.keeps(address(1)).unwrap();
    drop((store, another));
    keeper.hear();
    let (socket, theirs) = UnixDatagram::pair().unwrap();
    keeper.socket = socket;
    let passed = keeper.kept.iter().map(|(fd, name)| (fd.try_clone().unwrap(), name.clone()));
    let store = Store::of(theirs, passed.collect(), 9, &[]);
    assert_eq!(store.left().len(), 1, "{}", why(&store));
    group = store.keeping(address(0));
    group.update(&one, &accounts(0), |_| true);
    assert!(matches!(*store.keeps(address(0)).unwrap_err(), StoreError::Full(9)));
    assert_eq!(keeper.names().len(), 5);
}

#[test]
fn files_of_guest_memory_are_as_many_as_are_kept_and_no_more() {
    let (mut keeper, socket) = Keeper::new();
    let store = Store::of(socket, Vec::new(), usize::MAX, &[]);
    let (escrow, _requests) = escrow(&[0]);
    let mut keeping = store.keeping(address(0));
    let mut regions = Vec::new();
    for number in 0..=crate::limits::MAX_KEPT_FILES as u64 {
        let memory = Arc::new(SharedMemory::create("ram", 0x1000).unwrap());
        let (iova, size) = (number << 12, 0x1000);
        regions.push(Arc::new(GuestRegion { iova, size, memory, offset: 0, writable: true }));
        keeping.update(&escrow, &Accounts::from([(address(0), account(0, &regions))]), |_| true);
        keeper.hear();
        let is_kept = store.keeps(address(0)).is_ok();
        assert_eq!(is_kept, number < crate::limits::MAX_KEPT_FILES as u64, "{number}");
    }
    let error = store.keeps(address(0)).unwrap_err();
    assert!(matches!(*error, StoreError::TooManyFiles(_)), "{error}");
    assert!(keeper.names().is_empty(), "nothing is kept in part");
}
