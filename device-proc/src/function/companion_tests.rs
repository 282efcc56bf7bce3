//! Doorbells against a connection process that answers late, out of turn or not at all.

use super::*;
use crate::hooks::NoHooks;
use crate::start::Answer;
use ipc::wire::connection::DmaEntry;
use ipc::{Access, SharedMemory, Window};

const BASE: u64 = 0x1_0000;
const SIZE: u64 = 0x1_0000;
const OK: u32 = 0;
const IO_ERROR: u32 = 1;
const LONG: u32 = 60_000;

/// A companion that has joined, the connection process at the other end, and its guest's memory.
struct Setup {
    companion: Companion,
    peer: Tube,
    memory: MemoryTable,
    ram: Window,
}

fn owed(id: u32) -> Owed {
    let (mut tube, _other) = Tube::pair().unwrap();
    Answer::to(&mut tube, id, &mut NoHooks).owed()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(5))
}

fn setup() -> Setup {
    let (ours, mut peer) = Tube::pair().unwrap();
    let mut companion = Companion::join(ours.into(), Layout::Packed32, 64, owed(1));
    let memory = MemoryTable::new(true);
    assert!(companion.deadline().is_some() && companion.take_done().is_empty());
    peer.handshake(Role::Connection, Role::Function, soon()).unwrap();
    companion.on_ready(&memory);
    assert!(matches!(companion.take_done()[..], [Done::Joined(_, Ok(()))]));
    assert_eq!(companion.deadline(), None);
    let shared = SharedMemory::create("ram", SIZE).unwrap();
    let ram = shared.map_all(Access::ReadWrite).unwrap();
    let mut setup = Setup { companion, peer, memory, ram };
    setup.memory.add(BASE, SIZE, shared.into_fd(), 0, true).unwrap();
    setup
}

impl Setup {
    /// Writes a command that maps `count` pages; one per doorbell, at a page of its own.
    fn command(&self, page: u64, count: u32) {
        let words = [1, count, 0xffff_ffff, 0].map(u32::to_le_bytes).concat();
        let arrays = [BASE + page + 0x100, BASE + page + 0x800].map(u64::to_le_bytes).concat();
        self.ram.copy_in(page, &[words, arrays].concat()).unwrap();
        for entry in 0..u64::from(count) {
            let request = [(BASE + 0x8000 + 0x10 * entry).to_le_bytes(), 0x10u64.to_le_bytes()];
            self.ram.copy_in(page + 0x100 + 16 * entry, &request.concat()).unwrap();
        }
    }

    /// Rings for a batch of two entries, at the page of its number.
    fn ring(&mut self, batch: u64, timeout_ms: u32) {
        self.command(0x1000 * batch, 2);
        let call = Doorbell { page: Some(BASE + 0x1000 * batch), batch, timeout_ms };
        self.companion.ring(&self.memory, &call, owed(u32::try_from(batch).unwrap()));
    }

    /// What it asks of the connection process next.
    fn asked(&mut self) -> (u32, Request) {
        let received = self.peer.receive::<Request>(soon()).unwrap();
        (received.id, received.message)
    }

    /// It asks for this batch; the number of the message.
    fn map_asked(&mut self, wanted: u64) -> u32 {
        let (id, request) = self.asked();
        let Request::Map { batch, entries, .. } = request else { panic!("{request:?}") };
        let entry = |key| DmaEntry { key, address: key, size: 0x10 };
        assert_eq!((batch, entries), (wanted, vec![entry(BASE + 0x8000), entry(BASE + 0x8010)]));
        id
    }

    fn abandon_asked(&mut self, batch: u64) {
        assert_eq!(self.asked(), (0, Request::Abandon { batch }));
    }

    fn nothing_asked(&mut self) {
        let nothing = self.peer.receive::<Request>(Deadline::now());
        assert!(matches!(nothing, Err(TubeError::TimedOut)), "{nothing:?}");
    }

    /// The connection process answers that both entries are mapped.
    fn answer(&mut self, id: u32) {
        let mapped = Outcome::Mapped { bus_address: 0x77, bus_length: 0x10 };
        self.peer.send(id, &Reply::Ok(vec![mapped; 2]), &[], soon()).unwrap();
        self.companion.on_ready(&self.memory);
    }

    /// The doorbells that are answered now: the number of each request, and its status.
    fn rung(&mut self) -> Vec<(u64, Option<u32>)> {
        let done = self.companion.take_done().into_iter();
        let (mut tube, mut other) = Tube::pair().unwrap();
        done.map(|done| {
            let Done::Rung(owed, status) = done else { panic!("{done:?}") };
            let mut hooks = NoHooks;
            let answer = owed.pay(&mut tube, &mut hooks);
            answer.reply::<ipc::wire::function::Request, Doorbell>(status).unwrap();
            let came = other.receive::<Result<u32, Failure>>(soon()).unwrap();
            (came.id.into(), came.message.ok())
        })
        .collect()
    }

    /// Status of each entry, and that of the page.
    fn told(&self, batch: u64) -> ([u32; 2], u32) {
        let word = |at| self.ram.read::<u32>(0x1000 * batch + at).unwrap();
        ([word(0x800 + 20), word(0x800 + 44)], word(8))
    }
}

#[test]
fn a_doorbell_is_open_until_its_answer_comes_and_others_wait_for_it() {
    let mut s = setup();
    s.ring(1, LONG);
    s.ring(2, LONG);
    let first = s.map_asked(1);
    s.nothing_asked();
    assert_eq!(s.rung(), []);
    assert!(s.companion.deadline().is_some());
    s.companion.expire(&s.memory);
    s.answer(first);
    assert_eq!((s.rung(), s.told(1)), (vec![(1, Some(OK))], ([OK; 2], OK)));
    let second = s.map_asked(2);
    s.answer(second);
    assert_eq!((s.rung(), s.told(2)), (vec![(2, Some(OK))], ([OK; 2], OK)));
    assert_eq!(s.companion.deadline(), None);
    // What makes no sense needs nobody, but its turn.
    s.ring(3, LONG);
    let call = Doorbell { page: None, batch: 4, timeout_ms: LONG };
    s.companion.ring(&s.memory, &call, owed(4));
    assert_eq!(s.rung(), []);
    let third = s.map_asked(3);
    s.answer(third);
    assert_eq!(s.rung(), [(3, Some(OK)), (4, Some(ring::status::INVALID))]);
}

#[test]
fn so_many_doorbells_wait_and_one_more_is_refused() {
    let mut s = setup();
    s.ring(1, LONG);
    let first = s.map_asked(1);
    let last = 2 + MAX_WAITING as u64;
    for batch in 2..=last {
        let call = Doorbell { page: None, batch, timeout_ms: LONG };
        s.companion.ring(&s.memory, &call, owed(u32::try_from(batch).unwrap()));
    }
    assert_eq!(s.rung(), [(last, None)]);
    s.answer(first);
    assert_eq!(s.rung().len(), 1 + MAX_WAITING);
}

#[test]
fn c5_7_an_answer_that_comes_too_late_is_dropped_and_its_batch_abandoned() {
    let mut s = setup();
    s.ring(1, 0);
    let late = s.map_asked(1);
    s.companion.expire(&s.memory);
    assert_eq!((s.rung(), s.told(1)), (vec![(1, Some(IO_ERROR))], ([IO_ERROR; 2], IO_ERROR)));
    s.abandon_asked(1);
    s.ring(2, LONG);
    let second = s.map_asked(2);
    s.answer(late);
    assert_eq!(s.rung(), []);
    assert_eq!(s.told(1), ([IO_ERROR; 2], IO_ERROR));
    s.answer(second);
    assert_eq!((s.rung(), s.told(2)), (vec![(2, Some(OK))], ([OK; 2], OK)));
    // It is there before this process looks, which was stopped meanwhile.
    s.ring(3, 0);
    let third = s.map_asked(3);
    s.answer(third);
    assert_eq!((s.rung(), s.told(3)), (vec![(3, Some(IO_ERROR))], ([IO_ERROR; 2], IO_ERROR)));
    s.abandon_asked(3);
}

#[test]
fn c5_7_a_guest_that_cannot_be_told_of_its_mappings_has_none() {
    let mut s = setup();
    s.ring(1, LONG);
    let first = s.map_asked(1);
    s.memory.remove(BASE).unwrap();
    s.answer(first);
    assert_eq!(s.rung(), [(1, Some(IO_ERROR))]);
    s.abandon_asked(1);
    // A refusal is a failure of all.
    let shared = SharedMemory::create("ram", SIZE).unwrap();
    s.ram = shared.map_all(Access::ReadWrite).unwrap();
    s.memory.add(BASE, SIZE, shared.into_fd(), 0, true).unwrap();
    s.ring(2, LONG);
    let second = s.map_asked(2);
    s.peer.send(second, &Reply::Err(FailureKind::Busy), &[], soon()).unwrap();
    s.companion.on_ready(&s.memory);
    assert_eq!((s.rung(), s.told(2)), (vec![(2, Some(IO_ERROR))], ([IO_ERROR; 2], IO_ERROR)));
}

#[test]
fn a_connection_process_that_goes_or_talks_nonsense_fails_every_doorbell() {
    for nonsense in [false, true] {
        let mut s = setup();
        s.ring(1, LONG);
        s.ring(2, LONG);
        if nonsense {
            s.peer.send(1, &u64::MAX, &[], soon()).unwrap();
        } else {
            s.peer = Tube::pair().unwrap().0;
        }
        s.companion.on_ready(&s.memory);
        s.companion.expire(&s.memory);
        // It cannot be told that they are to be undone: the VMM side is.
        assert_eq!(s.rung(), [(1, None), (2, None)]);
        assert_eq!((s.told(1), s.told(2)), (([IO_ERROR; 2], IO_ERROR), ([IO_ERROR; 2], IO_ERROR)));
        assert_eq!(s.companion.sources(()).count(), 0);
    }
}

#[test]
fn one_that_does_not_read_is_not_waited_for() {
    let mut s = setup();
    let mut failed = 0;
    for batch in 1..200u64 {
        // Batches that fill its socket.
        s.command(0x1000, 64);
        let call = Doorbell { page: Some(BASE + 0x1000), batch, timeout_ms: 0 };
        s.companion.ring(&s.memory, &call, owed(1));
        s.companion.expire(&s.memory);
        for (_, status) in s.rung() {
            failed += u32::from(status.is_none());
            assert_ne!(status, Some(OK));
        }
    }
    assert!(failed > 0 && s.companion.sources(()).count() == 2);
    // When it reads again, everything that it was sent is there, and in order.
    let mut last = 0;
    loop {
        match s.peer.receive::<Request>(Deadline::now()) {
            Ok(received) => match received.message {
                Request::Map { batch, .. } => {
                    assert!(batch > last);
                    last = batch;
                }
                Request::Abandon { batch } => assert!(batch >= last),
                Request::Unmap { .. } => panic!("{received:?}"),
            },
            Err(TubeError::TimedOut) if s.companion.sources(()).count() == 1 => break,
            Err(TubeError::TimedOut) => s.companion.on_ready(&s.memory),
            Err(error) => panic!("{error}"),
        }
    }
    s.command(0x2000, 2);
    s.ring(2, LONG);
    let id = s.map_asked(2);
    s.answer(id);
    assert_eq!(s.rung(), [(2, Some(OK))]);
}

#[test]
fn one_that_is_replaced_answers_all_that_it_owes() {
    let mut s = setup();
    s.ring(1, LONG);
    s.ring(2, LONG);
    s.map_asked(1);
    let Setup { companion, memory, mut peer, .. } = s;
    let done = companion.end(&memory);
    assert!(matches!(done[..], [Done::Rung(_, Ok(IO_ERROR)), Done::Rung(_, Err(_))]), "{done:?}");
    let abandoned = peer.receive::<Request>(soon()).unwrap().message;
    assert_eq!(abandoned, Request::Abandon { batch: 1 });
    // Before it has joined, too.
    let (ours, _theirs) = Tube::pair().unwrap();
    let companion = Companion::join(ours.into(), Layout::Packed32, 64, owed(1));
    assert!(matches!(companion.end(&memory)[..], [Done::Joined(_, Err(_))]));
}

#[test]
fn nobody_but_a_connection_process_is_joined_and_no_batch_is_too_large() {
    let memory = MemoryTable::new(true);
    let (ours, mut theirs) = Tube::pair().unwrap();
    let mut companion = Companion::join(ours.into(), Layout::Packed32, 64, owed(1));
    theirs.introduce(Role::Vmm, soon()).unwrap();
    companion.on_ready(&memory);
    let done = companion.take_done();
    let [Done::Joined(_, Err(failure))] = &done[..] else { panic!("{done:?}") };
    assert_eq!(failure.kind, FailureKind::NoDevice);
    for entries in [0, 4097, u32::MAX] {
        let (ours, _theirs) = Tube::pair().unwrap();
        let mut companion = Companion::join(ours.into(), Layout::Packed32, entries, owed(1));
        let done = companion.take_done();
        let [Done::Joined(_, Err(failure))] = &done[..] else { panic!("{done:?}") };
        assert_eq!(failure.kind, FailureKind::InvalidArgument);
    }
}
