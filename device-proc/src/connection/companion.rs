//! A function process that serves a companion, seen from the connection process: it may register
//! and remove ranges for its own function and nothing else. It may be compromised; it is never
//! waited for, and what makes no sense ends its tube. It has one batch carried out at a time, which is
//! answered when that is done: one that sends another before is out of step, and so is one that leaves
//! more answers unread than a tube keeps.

use std::os::fd::OwnedFd;
use std::time::Duration;

use ipc::wire::common::FailureKind;
use ipc::wire::dma::{MAX_BATCH, Reply, Request};
use ipc::wire::handshake::Role;
use ipc::{Deadline, Tube, TubeError};

use super::claimed::ClaimedFunction;
use super::claimed::batch::Work;

/// Its tube.
pub(super) struct Companion {
    function: u8,
    tube: Tube,
    greeted: bool,
}

impl Companion {
    pub(super) fn new(function: u8, fd: OwnedFd) -> Self {
        Self { function, tube: Tube::from_fd(fd), greeted: false }
    }

    /// Number of its function.
    pub(super) fn function(&self) -> u8 {
        self.function
    }

    pub(super) fn tube(&self) -> &Tube {
        &self.tube
    }

    /// Takes what it sent, and sends on what was kept for it; `false` when it is gone or out of step.
    pub(super) fn serve_one(&mut self, function: &mut ClaimedFunction) -> bool {
        let now = Deadline::now();
        if !self.greeted {
            // Its greeting is there: it is what woke us.
            self.greeted = self.tube.handshake(Role::Connection, Role::Function, now).is_ok();
            return self.greeted;
        }
        if self.tube.flush().is_err() {
            return false;
        }
        let received = match self.tube.receive::<Request>(now) {
            Ok(received) if received.handles.is_empty() => received,
            Err(TubeError::TimedOut) => return true,
            Err(TubeError::Disconnected) => return false,
            Ok(_) | Err(_) => return Self::out_of_step(function),
        };
        let (batch, timeout_ms, work) = match received.message {
            Request::Map { batch, timeout_ms, entries } => (batch, timeout_ms, Work::Map(entries)),
            Request::Unmap { batch, timeout_ms, keys } => (batch, timeout_ms, Work::Unmap(keys)),
            Request::Abandon { batch } => {
                function.abandon_batch(batch);
                return true;
            }
        };
        if function.has_open_batch() {
            return Self::out_of_step(function);
        }
        let begun = if (1..=MAX_BATCH).contains(&work.len()) {
            let deadline = Deadline::after(Duration::from_millis(timeout_ms.into()));
            function.begin_batch(batch, work, received.id, deadline)
        } else {
            Err(FailureKind::InvalidArgument)
        };
        begun.is_ok() || self.answer(received.id, &begun.map(|()| Vec::new()))
    }

    fn out_of_step(function: &ClaimedFunction) -> bool {
        tracing::warn!("the function process of {} is out of step", function.address());
        false
    }

    /// Answers a batch; `false` when it is gone or does not read.
    pub(super) fn answer(&mut self, request: u32, reply: &Reply) -> bool {
        self.tube.post(request, reply).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dext_client::fake::Fake;
    use ipc::wire::connection::DmaEntry;
    use ipc::wire::dext::{IoReturn, selector};
    use ipc::wire::dma::Outcome;
    use ipc::{Event, SharedMemory};
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    /// A function with guest memory at 0x10000, its companion, and the process at the other end.
    fn pair() -> (Fake, ClaimedFunction, Companion, Tube) {
        let (fake, client) = Fake::client();
        fake.fail(selector::REGISTER_DMA_REGION, IoReturn::NOT_OPEN);
        let mut function = ClaimedFunction::new(Box::new(client), crate::options::Windows::Handed);
        function.attach().unwrap();
        fake.recover(selector::REGISTER_DMA_REGION);
        let ram = SharedMemory::create("ram", 0x10000).unwrap().into_fd();
        function.memory.add(0x10000, 0x10000, ram, 0, true).unwrap();
        let (ours, theirs) = Tube::pair().unwrap();
        (fake, function, Companion::new(0, ours.into()), theirs)
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    /// As a function process that knows its part begins.
    fn greeted() -> (Fake, ClaimedFunction, Companion, Tube) {
        let (fake, mut function, mut companion, mut peer) = pair();
        let joined = std::thread::spawn(move || {
            peer.handshake(Role::Function, Role::Connection, soon()).unwrap();
            peer
        });
        assert!(ipc::poll::wait_readable(companion.tube(), soon()).unwrap());
        assert!(companion.serve_one(&mut function));
        (fake, function, companion, joined.join().unwrap())
    }

    /// A name, and what a process does wrong.
    type Wrong<'w> = (&'static str, &'w dyn Fn(&mut Tube));

    fn entries(count: usize) -> Vec<DmaEntry> {
        (0..count as u64).map(|key| DmaEntry { key, address: 0x10000 + key, size: 1 }).collect()
    }

    const LONG: u32 = 60_000;

    /// Takes a request and carries out what it asks for.
    fn serve(companion: &mut Companion, function: &mut ClaimedFunction) -> bool {
        let goes_on = companion.serve_one(function);
        let done = function.work(Deadline::after(Duration::from_secs(60)));
        goes_on && done.is_none_or(|(request, reply)| companion.answer(request, &reply))
    }

    #[test]
    fn a_batch_that_is_abandoned_is_not_answered_and_the_next_one_is() {
        let (fake, mut function, mut companion, mut peer) = greeted();
        let request = |batch| Request::Map { batch, timeout_ms: LONG, entries: entries(3) };
        peer.send(1, &request(1), &[], soon()).unwrap();
        peer.send(0, &Request::Abandon { batch: 1 }, &[], soon()).unwrap();
        peer.send(2, &request(2), &[], soon()).unwrap();
        assert!(companion.serve_one(&mut function));
        assert!(function.work(Deadline::now()).is_none());
        assert_eq!(fake.registered().len(), 1);
        assert!(companion.serve_one(&mut function));
        assert!(serve(&mut companion, &mut function));
        let received = peer.receive::<Reply>(soon()).unwrap();
        assert_eq!((received.id, received.message.unwrap().len()), (2, 3));
        assert_eq!(fake.registered().len(), 3);
        // It was answered already: only its registrations go.
        peer.send(0, &Request::Abandon { batch: 2 }, &[], soon()).unwrap();
        assert!(serve(&mut companion, &mut function));
        assert_eq!(fake.registered().len(), 0);
        peer.send(3, &request(2), &[], soon()).unwrap();
        assert!(companion.serve_one(&mut function));
        assert_eq!(answer(&mut peer), Err(FailureKind::InvalidArgument));
    }

    fn answer(peer: &mut Tube) -> Reply {
        peer.receive::<Reply>(soon()).unwrap().message
    }

    #[test]
    fn batches_are_registered_in_guest_memory_and_nowhere_else() {
        let (fake, mut function, mut companion, mut peer) = greeted();
        let mut wanted = entries(2);
        wanted.push(DmaEntry { key: 9, address: 0x1fff0, size: 0x20 });
        let request = Request::Map { batch: 1, timeout_ms: LONG, entries: wanted };
        peer.send(1, &request, &[], soon()).unwrap();
        assert!(serve(&mut companion, &mut function));
        let failed = Outcome::Failed(FailureKind::InvalidArgument);
        assert!(
            matches!(answer(&mut peer).unwrap()[..], [Outcome::Mapped { .. }, Outcome::Mapped { .. }, last] if last == failed)
        );
        let request = Request::Unmap { batch: 2, timeout_ms: LONG, keys: vec![0, 77] };
        peer.send(2, &request, &[], soon()).unwrap();
        assert!(serve(&mut companion, &mut function));
        assert_eq!(answer(&mut peer).unwrap(), [Outcome::Unmapped, failed]);
        assert_eq!(fake.registered().len(), 1);
    }

    #[test]
    fn whoever_breaks_the_protocol_is_out_and_changes_nothing() {
        let handle = Event::new().unwrap();
        let wrongs: [Wrong<'_>; 4] = [
            ("bytes", &|peer| {
                rustix::net::send(peer, &[0xa5; 64], rustix::net::SendFlags::empty()).unwrap();
            }),
            ("another type", &|peer| peer.send(1, &u64::MAX, &[], soon()).unwrap()),
            ("a descriptor", &|peer| {
                let keys = vec![1];
                let request = Request::Unmap { batch: 1, timeout_ms: LONG, keys };
                peer.send(1, &request, &[handle.as_fd()], soon()).unwrap();
            }),
            ("a role", &|peer| peer.send(1, &0u8, &[], soon()).unwrap()),
        ];
        for (name, wrong) in wrongs {
            let (_fake, mut function, mut companion, mut peer) = greeted();
            wrong(&mut peer);
            let ends = (0..1000).any(|_| !companion.serve_one(&mut function));
            assert!(ends, "{name}");
        }
        for length in [0, MAX_BATCH + 1] {
            let (fake, mut function, mut companion, mut peer) = greeted();
            let keys = vec![1; length];
            let request = Request::Unmap { batch: 1, timeout_ms: LONG, keys };
            peer.send(1, &request, &[], soon()).unwrap();
            assert!(companion.serve_one(&mut function));
            assert_eq!(answer(&mut peer), Err(FailureKind::InvalidArgument));
            assert_eq!(fake.calls_of(selector::UNREGISTER_DMA_REGION).len(), 0);
        }
        // Who asks again and again and never reads an answer holds nobody up.
        let (_fake, mut function, mut companion, mut peer) = greeted();
        let request = Request::Map { batch: 1, timeout_ms: LONG, entries: entries(4096) };
        let ends = (0..1000).any(|_| {
            let _ = peer.send(1, &request, &[], Deadline::now());
            !serve(&mut companion, &mut function)
        });
        assert!(ends);
        // Who sends another batch while one is carried out.
        let (fake, mut function, mut companion, mut peer) = greeted();
        for batch in [1, 2] {
            let request = Request::Map { batch, timeout_ms: LONG, entries: entries(4) };
            peer.send(1, &request, &[], soon()).unwrap();
            assert_eq!(companion.serve_one(&mut function), batch == 1);
        }
        assert_eq!(fake.registered().len(), 0);
        // Who does not introduce itself as a function process.
        let (_fake, mut function, mut companion, mut peer) = pair();
        peer.send(1, &ipc::wire::handshake::Hello::ours(Role::Vmm), &[], soon()).unwrap();
        assert!(!companion.serve_one(&mut function));
    }
}
