use std::io::{Read as _, Write as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use cordon_vmm::kept::Store;
use cordon_vmm::{Container, DmaMode, GuestRegion, PciAddress, SharedMemory};
use ipc::Event;

use super::steps::{ENDED_AT, Killed, LEFT};
use super::*;
use crate::fake::{Call, Fake};
use crate::handover::Handover;
use crate::options::Options;
use crate::protocol::{HEADER, Header, command, flag};
use crate::session::Session;
use crate::socket::Socket;

/// Where the client's memory is.
const BASE: u64 = 0x10_0000;
const SIZE: u64 = 0x1_0000;

fn address() -> PciAddress {
    "01:00.0".parse().unwrap()
}

/// A keeper: what it has, by name.
struct Keeper {
    socket: UnixDatagram,
    kept: Vec<(OwnedFd, String)>,
}

impl Keeper {
    fn new() -> (Self, Store) {
        let (socket, theirs) = UnixDatagram::pair().unwrap();
        let store = Store::with_functions(theirs, Vec::new(), &[address()]);
        (Self { socket, kept: Vec::new() }, store)
    }

    fn hear(&mut self) {
        let mut bytes = [0; 512];
        while let Ok(came) = ipc::rights::receive(&self.socket, &mut bytes) {
            let text = String::from_utf8(bytes[..came.bytes].to_vec()).unwrap();
            let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap();
            let is_removed = text.starts_with("FDSTOREREMOVE=1\n");
            if is_removed {
                self.kept.retain(|(_, kept)| kept != name);
                continue;
            }
            let fd = came.handles.into_iter().next().unwrap();
            // As systemd and cordon keep have it: what is there already stays what it is, by whichever name.
            if !self.kept.iter().any(|(kept, _)| crate::sys::is_same_file(kept, &fd)) {
                self.kept.push((fd, name.to_owned()));
            }
        }
    }

    fn names(&mut self) -> Vec<String> {
        self.hear();
        let mut names: Vec<_> = self.kept.iter().map(|(_, name)| name.clone()).collect();
        names.sort();
        names
    }

    fn restart(&mut self) -> Store {
        let (socket, store) = self.start();
        self.socket = socket;
        store
    }

    /// What it passes on, and who is to hear what comes of that.
    fn start(&mut self) -> (UnixDatagram, Store) {
        self.hear();
        let (socket, theirs) = UnixDatagram::pair().unwrap();
        let passed = self.kept.iter().map(|(fd, name)| (fd.try_clone().unwrap(), name.clone()));
        (socket, Store::with_functions(theirs, passed.collect(), &[address()]))
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn access(region: u32, offset: u64, count: u32, data: &[u8]) -> Vec<u8> {
    [&offset.to_le_bytes()[..], &words(&[region, count]), data].concat()
}

fn map(flags: u32, fields: &[u64]) -> Vec<u8> {
    let mut body = words(&[if fields.len() == 3 { 32 } else { 24 }, flags]);
    fields.iter().for_each(|field| body.extend_from_slice(&field.to_le_bytes()));
    body
}

/// One message of a client's.
#[derive(Clone)]
struct Said {
    command: u16,
    flags: u32,
    body: Vec<u8>,
    /// What comes beside it: the memory, or events.
    memory: bool,
    events: Vec<usize>,
}

fn say(command: u16, body: Vec<u8>) -> Said {
    Said { command, flags: 0, body, memory: false, events: Vec::new() }
}

/// What the client says, some of it at once.
fn conversation() -> Vec<Vec<Said>> {
    use command::{
        DMA_MAP, DMA_UNMAP, GET_INFO, REGION_READ, REGION_WRITE, RESET, SET_IRQS, VERSION,
    };
    let write = |offset: u64, data: &[u8]| {
        let count = u32::try_from(data.len()).unwrap();
        say(REGION_WRITE, access(0, offset, count, data))
    };
    let config = |offset: u64, data: &[u8]| {
        let count = u32::try_from(data.len()).unwrap();
        say(REGION_WRITE, access(7, offset, count, data))
    };
    let map_it = Said { memory: true, ..say(DMA_MAP, map(3, &[0, BASE, SIZE])) };
    let set = |start, count, events: &[usize]| Said {
        events: events.to_vec(),
        ..say(SET_IRQS, words(&[20, 1 << 2 | 1 << 5, 2, start, count]))
    };
    let silent = |said: Said| Said { flags: flag::NO_REPLY, ..said };
    vec![
        vec![say(VERSION, b"\0\0\0\0{}\0".to_vec())],
        vec![say(REGION_READ, access(7, 0, 4096, &[]))],
        vec![map_it.clone(), say(DMA_MAP, map(3, &[0, 2 * BASE, SIZE]))],
        vec![
            config(4, &[6, 0]),
            config(0x10, &[0xff; 4]),
            say(REGION_READ, access(7, 0x10, 4, &[])),
        ],
        // One and the same event for two vectors, at once and one after the other.
        vec![set(0, 2, &[0, 1]), set(1, 1, &[0]), set(3, 2, &[2, 2]), set(0, 1, &[])],
        // They change places, by one message and by two; and one goes while others have it.
        vec![set(0, 2, &[1, 0]), set(0, 2, &[0, 1]), set(0, 1, &[1])],
        vec![set(1, 1, &[2]), set(4, 1, &[0]), set(3, 2, &[])],
        // Longer than what is looked at at first, and the longest.
        vec![write(0x100, &[7; 200]), say(REGION_READ, access(0, 0, 16 << 10, &[]))],
        vec![write(0x1000, &vec![9; 16 << 10])],
        // More data than was agreed on, and what is refused.
        vec![write(0, &vec![1; (16 << 10) + 8])],
        vec![say(DMA_UNMAP, map(0, &[0, SIZE])), say(99, Vec::new())],
        // Nobody is answered, and a number that is used again at once.
        vec![
            silent(write(0x20, &[1; 4])),
            silent(write(0x24, &[2; 4])),
            silent(write(0x28, &[3; 4])),
        ],
        vec![
            say(DMA_UNMAP, map(0, &[BASE, SIZE])),
            map_it,
            say(DMA_UNMAP, map(0, &[2 * BASE, SIZE])),
        ],
        vec![say(SET_IRQS, words(&[20, 1 | 1 << 5, 2, 0, 0])), set(0, 1, &[0])],
        vec![say(RESET, Vec::new()), say(GET_INFO, words(&[16, 0, 0, 0]))],
    ]
}

/// What came of a conversation, and at which steps servers were ended.
struct Came {
    ended: Vec<&'static str>,
    /// The client was sent away, since it was in the middle of what nobody goes on with.
    is_torn: bool,
    answers: Vec<u8>,
    record: Record,
    maps: usize,
    names: Vec<String>,
}

/// A machine whose server is ended.
struct World {
    keeper: Keeper,
    store: Store,
    stopped: Event,
    device: Fake,
    container: Container,
    memory: Arc<SharedMemory>,
    events: Vec<Event>,
    client: UnixStream,
    calls: Vec<Call>,
    is_torn: bool,
}

fn device() -> Fake {
    let bar = ipc::wire::common::BarInfo { memory_index: 0, kind: 0, size: 1 << 16 };
    let mut config = vec![0; 4096];
    config[..4].copy_from_slice(&[0x36, 0x1b, 1, 0]);
    Fake::new(config, [Some(bar), None, None, None, None, None])
}

impl World {
    /// Ends its server after so many steps, and the next one after so many more.
    fn run(ends: &[u32]) -> Came {
        let (keeper, store) = Keeper::new();
        let (near, client) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let mut world = Self {
            keeper,
            store,
            stopped: Event::new().unwrap(),
            device: device(),
            container: Container::new(DmaMode::Direct),
            memory: Arc::new(SharedMemory::create("ram", SIZE).unwrap()),
            events: (0..3).map(|_| Event::new().unwrap()).collect(),
            client,
            calls: Vec::new(),
            is_torn: false,
        };
        let mut ends = ends.iter().copied();
        LEFT.set(None);
        let kept = Kept::new(world.store.client(address()).unwrap(), &near, &Record::default());
        let mut first = Some((near, kept.unwrap()));
        LEFT.set(ends.next());
        let mut said = conversation().into_iter();
        let mut next = said.next();
        let (mut answers, mut id) = (Vec::new(), 1);
        loop {
            let record = world.serve(
                first.take(),
                || {
                    let group = next.take()?;
                    next = said.next();
                    Some(group)
                },
                &mut id,
                &mut answers,
            );
            if let Some((record, names)) = record {
                LEFT.set(None);
                let ended = ENDED_AT.take();
                let is_torn = world.is_torn;
                if !is_torn {
                    world.once(ended.len());
                }
                let maps = world.container.usage().0;
                return Came { ended, is_torn, answers, record, maps, names };
            }
            LEFT.set(ends.next());
        }
    }

    /// Serves until everything is said and answered: what is known of the client, and what is kept. `None` when it was
    /// ended: the next server has its store.
    fn serve(
        &mut self,
        first: Option<(UnixStream, Kept)>,
        mut next: impl FnMut() -> Option<Vec<Said>>,
        id: &mut u16,
        answers: &mut Vec<u8>,
    ) -> Option<(Record, Vec<String>)> {
        let mut handover = Handover::new();
        let is_first = first.is_some();
        // What the function reached goes on; of the container there is a new one.
        let regions: Vec<GuestRegion> = match is_first || self.container.usage().0 == 0 {
            true => Vec::new(),
            false => {
                let memory = Arc::clone(&self.memory);
                vec![GuestRegion { iova: BASE, size: SIZE, memory, offset: 0, writable: true }]
            }
        };
        if !is_first {
            self.container = Container::new(DmaMode::Direct);
        }
        let Self {
            keeper, store, stopped, device, container, client, memory, events, calls, ..
        } = &mut *self;
        let all = &*events;
        let mut adopted = None;
        if !is_first {
            let left = store.take_client(address()).unwrap();
            match Adopted::of(left, container, &regions, Options::default()) {
                Ok(one) => adopted = Some(one),
                Err(not) if matches!(not.why, KeptError::Torn) => {
                    // It hears so, and of it there is what it wrote.
                    while !matches!(client.read(&mut [0; 4096]), Ok(0)) {}
                    let names = keeper.names();
                    self.is_torn = true;
                    return Some((Record::default(), names));
                }
                Err(not) => panic!("{}", not.why),
            }
        }
        // Not dropped when it is ended: nobody is, by a kill.
        let mut adopted = adopted.map(std::mem::ManuallyDrop::new);
        if let Some(one) = &mut adopted {
            let settled =
                catch_unwind(AssertUnwindSafe(|| one.settle(|_| unreachable!()).unwrap()));
            if was_killed(settled) {
                *store = keeper.restart();
                // What it says of giving up nobody hears.
                adopted.take().map(std::mem::ManuallyDrop::into_inner);
                return None;
            }
        }
        let session = match (first, adopted) {
            (Some((near, kept)), _) => {
                let socket = Socket::kept(near, kept, stopped);
                Session::new(socket, device, container, &mut handover, Options::default())
            }
            (None, Some(adopted)) => {
                let adopted = std::mem::ManuallyDrop::into_inner(adopted);
                handover = Handover::of(&adopted.record.handover);
                let how = Options::default();
                Session::adopt(adopted, stopped, device, container, &mut handover, how).unwrap()
            }
            (None, None) => unreachable!(),
        };
        // Not dropped when it is ended: nobody is, by a kill.
        let mut session = std::mem::ManuallyDrop::new(session);
        loop {
            let served = catch_unwind(AssertUnwindSafe(|| {
                while session.look() {
                    session.serve_one().unwrap();
                }
            }));
            calls.extend(device.calls());
            let mut bytes = [0; 4096];
            while let Ok(came @ 1..) = client.read(&mut bytes) {
                answers.extend_from_slice(&bytes[..came]);
            }
            keeper.hear();
            if was_killed(served) {
                *store = keeper.restart();
                // What it says of giving up nobody hears.
                drop(std::mem::ManuallyDrop::into_inner(session));
                return None;
            }
            let Some(group) = next() else {
                let known = (session.record(), keeper.names());
                drop(std::mem::ManuallyDrop::into_inner(session));
                return Some(known);
            };
            for Said { command, flags, body, memory: with_memory, events } in group {
                let size = u32::try_from(HEADER + body.len()).unwrap();
                if flags & flag::NO_REPLY == 0 {
                    *id += 1;
                }
                let header = Header { id: *id, command, size, flags, error: 0 };
                let message = [&header.to_bytes()[..], &body].concat();
                let signallers: Vec<_> =
                    events.iter().map(|at| all[*at].signaller().unwrap()).collect();
                let mut beside: Vec<BorrowedFd<'_>> =
                    signallers.iter().map(|one| one.as_fd()).collect();
                if with_memory {
                    beside.push(memory.as_fd());
                }
                let sent = ipc::rights::send(client, &message, &beside).unwrap();
                if sent < message.len() {
                    client.write_all(&message[sent..]).unwrap();
                }
            }
        }
    }

    /// What the device was told was told once, but for the command at which a server was ended.
    fn once(&self, ended: usize) {
        let writes = |call: &&Call| matches!(call, Call::BarWrite(..) | Call::Reset);
        let writes: Vec<&Call> = self.calls.iter().filter(writes).collect();
        let silent = [0x20, 0x24, 0x28].map(|offset| {
            let is_it = |call: &&&Call| matches!(call, Call::BarWrite(0, at, ..) if *at == offset);
            writes.iter().filter(is_it).count()
        });
        let again: usize = silent.iter().map(|count| count.checked_sub(1).unwrap()).sum();
        assert!(again <= ended, "{silent:?}");
    }
}

fn was_killed<T>(result: Result<T, Box<dyn std::any::Any + Send>>) -> bool {
    match result {
        Ok(_) => false,
        Err(thrown) if thrown.is::<Killed>() => true,
        Err(other) => resume_unwind(other),
    }
}

/// Both clients were told the same, and the same is known of them and kept.
fn same(one: &Came, other: &Came, ends: &[u32]) {
    let at = &one.ended;
    assert!(one.answers == other.answers, "{ends:?} {at:?}: the client was answered otherwise");
    let known = |came: &Came| (came.record.clone(), came.maps, came.names.clone());
    assert_eq!(known(one), known(other), "{ends:?} {at:?}");
}

mod baseline;
mod left;

#[test]
fn a_client_is_answered_once_wherever_its_server_is_ended() {
    let whole = World::run(&[]);
    assert!(whole.maps == 1 && whole.names.len() == 5, "{:?} {:?}", whole.names, whole.maps);
    let (mut at, mut torn) = (0, 0);
    let mut seen = std::collections::BTreeSet::new();
    loop {
        let came = World::run(&[at]);
        if came.ended.is_empty() {
            break;
        }
        match came.is_torn {
            true => torn += 1,
            false => same(&came, &whole, &[at]),
        }
        let known = ["cordon.client.0000-01-00-0.session"];
        assert!(!came.is_torn || came.names == known, "{:?}", came.names);
        seen.extend(came.ended);
        at += 1;
    }
    for step in [
        "looked",
        "executed",
        "events change",
        "event removed",
        "event stored",
        "record written",
        "word stored",
        "staged",
        "consumed",
        "sent",
    ] {
        assert!(seen.contains(step), "no server was ended at {step}: {seen:?}");
    }
    // Of the one message that is too long, and no other.
    assert!(torn > 0 && torn < at / 20, "{torn} of {at}");
}

#[test]
fn one_that_is_ended_while_it_goes_on_is_followed_by_one_that_does() {
    let whole = World::run(&[]);
    let mut twice = 0;
    for at in (0..).step_by(3) {
        let mut is_over = false;
        for next in 0..12 {
            let came = World::run(&[at, next, 2 * next]);
            is_over |= came.ended.is_empty();
            twice += u32::from(came.ended.len() > 1);
            if !came.is_torn {
                same(&came, &whole, &[at, next]);
            }
        }
        if is_over {
            break;
        }
    }
    assert!(twice > 500, "{twice}");
}

#[test]
fn descriptors_are_the_message_s_that_they_came_beside_and_of_none_before_it() {
    let (mut keeper, store) = Keeper::new();
    let (near, client) = UnixStream::pair().unwrap();
    let kept = Kept::new(store.client(address()).unwrap(), &near, &Record::default()).unwrap();
    let (stopped, device, container) =
        (Event::new().unwrap(), device(), Container::new(DmaMode::Direct));
    let mut handover = Handover::new();
    let socket = Socket::kept(near, kept, &stopped);
    let mut session = Session::new(socket, &device, &container, &mut handover, Options::default());
    let memory = SharedMemory::create("ram", SIZE).unwrap();
    // All of it is there before the first is looked at: of these the last alone brings memory.
    let said = [
        say(command::VERSION, b"\0\0\0\0{}\0".to_vec()),
        say(command::DMA_MAP, map(3, &[0, BASE, SIZE])),
        say(command::DMA_MAP, map(3, &[0, 2 * BASE, SIZE])),
        // As long as what is looked at at first, together with the one behind it.
        say(command::RESET, Vec::new()),
        say(command::DMA_MAP, map(3, &[0, 3 * BASE, SIZE])),
        Said { memory: true, ..say(command::DMA_MAP, map(3, &[0, 4 * BASE, SIZE])) },
    ];
    for (id, one) in (1..).zip(&said) {
        let size = u32::try_from(HEADER + one.body.len()).unwrap();
        let header = Header { id, command: one.command, size, flags: 0, error: 0 };
        let message = [&header.to_bytes()[..], &one.body].concat();
        let beside: Vec<BorrowedFd<'_>> = one.memory.then(|| memory.as_fd()).into_iter().collect();
        assert_eq!(ipc::rights::send(&client, &message, &beside).unwrap(), message.len());
    }
    for _ in &said {
        assert!(session.look());
        assert_eq!(session.serve_one().unwrap(), None);
    }
    assert_eq!(container.usage().0, 1);
    assert!(container.unmap(4 * BASE, SIZE).is_ok(), "and it is the one that brought it");
    drop(session);
    keeper.hear();
}

#[test]
fn who_is_torn_stays_so_until_the_message_is_over_and_for_good_when_given_up() {
    let mut journal = Journal::new().unwrap();
    let phase = |journal: &Journal| {
        Journal::left(journal.memory().try_clone().unwrap()).map(|(_, phase, _)| phase).unwrap()
    };
    journal.write(&Record::default()).unwrap();
    journal.set(Phase::Torn);
    // An event changes in the middle of a long message.
    journal.write(&Record::default()).unwrap();
    journal.commit();
    assert_eq!(phase(&journal), Phase::Torn);
    journal.set(Phase::Open);
    journal.commit();
    assert_eq!(phase(&journal), Phase::Open);
    journal.give_up();
    journal.set(Phase::Open);
    assert_eq!(phase(&journal), Phase::Torn);
}
