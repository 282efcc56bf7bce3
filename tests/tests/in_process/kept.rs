//! A VMM dies, a keeper has what keeps its functions going, and the next one takes them over.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use cordon_vmm::kept::Store;
use cordon_vmm::{Container, Function, Host};

use super::*;

/// Two functions of one group.
const PAIR: [&str; 2] = ["01:00.0", "01:00.1"];

/// A keeper: what it has, by name.
struct Keeper {
    socket: UnixDatagram,
    kept: Vec<(OwnedFd, String)>,
}

impl Keeper {
    /// One that has this, and whoever it keeps it for.
    fn of(kept: Vec<(OwnedFd, String)>) -> (Self, Arc<Store>) {
        let (socket, theirs) = UnixDatagram::pair().unwrap();
        let passed = kept.iter().map(|(fd, name)| (fd.try_clone().unwrap(), name.clone()));
        let store = Store::with_functions(theirs, passed.collect(), &[]);
        (Self { socket, kept }, Arc::new(store))
    }

    fn hear(&mut self) {
        let mut bytes = [0; 512];
        while let Ok(came) = ipc::rights::receive(&self.socket, &mut bytes) {
            let text = String::from_utf8(bytes[..came.bytes].to_vec()).unwrap();
            let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap();
            self.kept.retain(|(_, kept)| kept != name);
            if let Some(fd) = came.handles.into_iter().next() {
                self.kept.push((fd, name.to_owned()));
            }
        }
    }

    fn has(&mut self, part: &str) -> bool {
        self.hear();
        self.kept.iter().any(|(_, name)| name.contains(part))
    }

    /// The next one, which has all of this as it is now, whatever becomes of what this one has.
    fn as_it_is(&mut self) -> (Self, Arc<Store>) {
        self.hear();
        let copies = self.kept.iter().map(|(fd, name)| {
            let fd = fd.try_clone().unwrap();
            let fd = if name.ends_with(".record") { copy(fd) } else { fd };
            (fd, name.clone())
        });
        Self::of(copies.collect())
    }
}

/// A file in memory like this one.
fn copy(fd: OwnedFd) -> OwnedFd {
    let size = SharedMemory::size_of(&fd).unwrap();
    let window = |memory: &SharedMemory| memory.map_all(cordon_vmm::MemoryAccess::ReadWrite);
    let from = window(&SharedMemory::from_peer(fd, size).unwrap()).unwrap();
    let copied = SharedMemory::create("copy", size).unwrap();
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    from.copy_out(0, &mut bytes).unwrap();
    window(&copied).unwrap().copy_in(0, &bytes).unwrap();
    copied.into_fd()
}

fn config(host: &InProcess, store: &Arc<Store>) -> HostConfig {
    let mut config = HostConfig::new("/nonexistent/device-proc", "vfio")
        .with_strict(false)
        .with_recovery(Recovery::default())
        .with_launch(Arc::new(host.clone()));
    config.store = Some(Arc::clone(store));
    config
}

/// A VMM with both functions that is dead, and what is left of it.
struct Dead {
    host: InProcess,
    keeper: Keeper,
    store: Arc<Store>,
    /// Of the one that is dead: its threads cannot start anything any more.
    _vmm: (Vmm, Vec<Arc<Function>>),
}

fn dead() -> Dead {
    let functions = PAIR.map(|one| {
        let mut function = FakeFunction::at(address(one));
        (function.handed, function.survives) = (true, true);
        function.interrupts = FakeInterrupts::Kernel;
        function
    });
    let host = InProcess::over(Fake::new(functions).unwrap());
    let (mut keeper, store) = Keeper::of(Vec::new());
    let vmm = Vmm::new(config(&host, &store), DmaMode::Direct);
    let functions: Vec<_> = PAIR.iter().map(|one| vmm.attach(one)).collect();
    for one in &functions {
        store.keeps(one.address()).unwrap();
    }
    let (keeper, store) = keeper.as_it_is();
    host.kill_all();
    let host = host.for_another_vmm();
    Dead { host, keeper, store, _vmm: (vmm, functions) }
}

impl Dead {
    fn reaches(&self, function: &str) -> bool {
        self.host.fake.dma_write(address(function), RAM_BASE + 0x1000, b"dma")
    }

    /// The next VMM, with everything that is reached in its container.
    fn next(&self) -> (Host, Arc<Container>) {
        let container = Container::new(DmaMode::Direct);
        let left = self.store.left();
        assert_eq!(left.len(), PAIR.len());
        for region in left.into_iter().take(1).flat_map(|one| one.regions) {
            container.map(region).unwrap();
        }
        (Host::new(config(&self.host, &self.store)), Arc::new(container))
    }
}

#[test]
fn a_function_that_is_left_with_its_group_and_not_attached_is_stopped() {
    let mut s = dead();
    let [first, second] = PAIR;
    let (host, container) = s.next();
    let function = host.attach(address(first), &container, None).unwrap();
    assert!(function.was_kept() && s.reaches(first));
    assert!(s.reaches(second), "it was taken over with the other one, and is as it was");
    assert_eq!(host.discard_unattached(), [address(second)]);
    assert!(!s.reaches(second) && !s.host.fake.is_claimed(address(second)));
    assert!(!s.keeper.has("01-00-1."), "{:?}", s.keeper.kept);
    // The other one is as it was.
    assert!(s.reaches(first) && s.keeper.has("01-00-0.device"));
    assert_eq!((s.host.fake.resets(address(first)), function.returns()), (0, 0));
    assert_eq!(host.discard_unattached(), []);
    // It goes on also when its connection process dies.
    s.host.child(function.connection().pid()).kill();
    assert!(eventually(|| function.connection().adoptions() == 1));
    assert!(s.reaches(first) && !s.reaches(second));
    host.detach(&function);
    assert!(eventually(|| !s.host.fake.is_claimed(address(first))));
}

#[test]
fn functions_that_are_all_attached_are_all_kept() {
    let s = dead();
    let (host, container) = s.next();
    let functions = PAIR.map(|one| host.attach(address(one), &container, None).unwrap());
    assert_eq!(host.discard_unattached(), []);
    assert!(functions.iter().all(|one| one.was_kept()) && PAIR.iter().all(|one| s.reaches(one)));
    functions.iter().for_each(|one| host.detach(one));
}

#[test]
fn message_vectors_are_signalled_once_and_intx_is_not() {
    let s = dead();
    let (host, container) = s.next();
    let function = host.attach(address(PAIR[0]), &container, None).unwrap();
    let set_up = |index| {
        let event = Event::new().unwrap();
        let signallers = vec![Some(event.signaller().unwrap())];
        let setup = InterruptSetup::Assign { start: 0, signallers };
        function.set_interrupts(index, setup).unwrap();
        event
    };
    let event = set_up(InterruptIndex::Intx);
    function.set_interrupts(InterruptIndex::Intx, InterruptSetup::Mask).unwrap();
    assert!(!event.wait(Deadline::now()).unwrap(), "the device does not assert it");
    function.set_interrupts(InterruptIndex::Intx, InterruptSetup::Unmask).unwrap();
    s.host.fake.fire(address(PAIR[0]), [0]);
    assert!(event.wait(soon()).unwrap(), "it does now");
    function.set_interrupts(InterruptIndex::Intx, InterruptSetup::Disable).unwrap();
    assert!(set_up(InterruptIndex::Msix).wait(Deadline::now()).unwrap());
    assert!(!set_up(InterruptIndex::Msix).wait(Deadline::now()).unwrap(), "it was, once");
}

/// Function processes of it do not start.
fn breaks(s: &Dead, function: &str) {
    let kind = cordon_backend::ErrorKind::Refused;
    s.host.fake.fail(address(function), Operation::SetUpInterrupts, kind);
}

#[test]
fn a_function_that_cannot_be_attached_as_it_was_costs_no_other_of_its_group_anything() {
    let [first, second] = PAIR;
    // Tried before the other one: the group is as it was, and both are when the second attempt succeeds.
    let s = dead();
    let (host, container) = s.next();
    breaks(&s, first);
    host.attach(address(first), &container, None).unwrap_err();
    assert_eq!(s.store.left().len(), PAIR.len());
    let other = host.attach(address(second), &container, None).unwrap();
    s.host.fake.recover(address(first), Operation::SetUpInterrupts);
    let again = host.attach(address(first), &container, None).unwrap();
    assert!(again.was_kept() && other.was_kept() && PAIR.iter().all(|one| s.reaches(one)));
    [again, other].iter().for_each(|one| host.detach(one));
    // Tried after it: it is given back alone, and nothing of the group is left to be given up.
    let s = dead();
    let (host, container) = s.next();
    let other = host.attach(address(second), &container, None).unwrap();
    breaks(&s, first);
    host.attach(address(first), &container, None).unwrap_err();
    assert!(!s.reaches(first) && !s.host.fake.is_claimed(address(first)));
    assert!(s.reaches(second) && other.was_kept() && !s.store.discard(address(first)));
    assert_eq!(host.discard_unattached(), []);
    host.detach(&other);
}
