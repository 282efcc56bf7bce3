//! A function process that serves a companion, seen from the connection process: it may register
//! and remove ranges for its own function and nothing else. It may be compromised; it is never
//! waited for, and what makes no sense ends its tube.

use std::os::fd::OwnedFd;

use ipc::wire::common::FailureKind;
use ipc::wire::dma::{MAX_BATCH, Reply, Request};
use ipc::wire::handshake::Role;
use ipc::{Deadline, Tube, TubeError};

use super::claimed::ClaimedFunction;

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

    /// Serves what it sent; `false` when it is gone or out of step.
    pub(super) fn serve_one(&mut self, function: &mut ClaimedFunction) -> bool {
        let now = Deadline::now();
        if !self.greeted {
            // Its greeting is there: it is what woke us.
            self.greeted = self.tube.handshake(Role::Connection, Role::Function, now).is_ok();
            return self.greeted;
        }
        let received = match self.tube.receive::<Request>(now) {
            Ok(received) if received.handles.is_empty() => received,
            Err(TubeError::TimedOut) => return true,
            Err(TubeError::Disconnected) => return false,
            Ok(_) | Err(_) => {
                tracing::warn!("the function process of {} is out of step", function.address());
                return false;
            }
        };
        let fits = |length| (1..=MAX_BATCH).contains(&length);
        let reply: Reply = match received.message {
            Request::Map { batch, entries } if fits(entries.len()) => {
                Ok(function.map_batch(batch, &entries))
            }
            Request::Unmap { batch, keys } if fits(keys.len()) => {
                Ok(function.unmap_batch(batch, &keys))
            }
            Request::Map { .. } | Request::Unmap { .. } => Err(FailureKind::InvalidArgument),
        };
        // One answer always fits into its socket: who asks before it has read the last one is out.
        self.tube.send(received.id, &reply, &[], now).is_ok()
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

    fn answer(peer: &mut Tube) -> Reply {
        peer.receive::<Reply>(soon()).unwrap().message
    }

    #[test]
    fn batches_are_registered_in_guest_memory_and_nowhere_else() {
        let (fake, mut function, mut companion, mut peer) = greeted();
        let mut wanted = entries(2);
        wanted.push(DmaEntry { key: 9, address: 0x1fff0, size: 0x20 });
        peer.send(1, &Request::Map { batch: 1, entries: wanted }, &[], soon()).unwrap();
        assert!(companion.serve_one(&mut function));
        let failed = Outcome::Failed(FailureKind::InvalidArgument);
        assert!(
            matches!(answer(&mut peer).unwrap()[..], [Outcome::Mapped { .. }, Outcome::Mapped { .. }, last] if last == failed)
        );
        peer.send(2, &Request::Unmap { batch: 2, keys: vec![0, 77] }, &[], soon()).unwrap();
        assert!(companion.serve_one(&mut function));
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
                peer.send(1, &Request::Unmap { batch: 1, keys }, &[handle.as_fd()], soon())
                    .unwrap();
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
            peer.send(1, &Request::Unmap { batch: 1, keys }, &[], soon()).unwrap();
            assert!(companion.serve_one(&mut function));
            assert_eq!(answer(&mut peer), Err(FailureKind::InvalidArgument));
            assert_eq!(fake.calls_of(selector::UNREGISTER_DMA_REGION).len(), 0);
        }
        // Who asks again and again and never reads an answer holds nobody up.
        let (_fake, mut function, mut companion, mut peer) = greeted();
        let request = Request::Map { batch: 1, entries: entries(4096) };
        let ends = (0..1000).any(|_| {
            let _ = peer.send(1, &request, &[], Deadline::now());
            !companion.serve_one(&mut function)
        });
        assert!(ends);
        // Who does not introduce itself as a function process.
        let (_fake, mut function, mut companion, mut peer) = pair();
        peer.send(1, &ipc::wire::handshake::Hello::ours(Role::Vmm), &[], soon()).unwrap();
        assert!(!companion.serve_one(&mut function));
    }
}
