//! A connection process dies, and another one adopts what it left: the function's holder does not notice.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cordon_backend::ErrorKind;
use cordon_vmm::observer::{Happening, Observer, ProcessKind};
use cordon_vmm::{Function, Presence};

use super::*;

/// What happened, by the names that matter here.
type Told = Arc<Mutex<Vec<&'static str>>>;

fn observer(told: &Told) -> Observer {
    let told = Arc::clone(told);
    Observer::start(move |happening| {
        told.lock().unwrap().push(match happening {
            Happening::Died { kind: ProcessKind::Connection, .. } => "connection died",
            Happening::Died { .. } => "function died",
            Happening::Adopted { .. } => "adopted",
            Happening::Reconnected { .. } => "reconnected",
            Happening::Recovered { .. } => "recovered",
            Happening::Away { .. } => "away",
            Happening::Back { .. } => "back",
            Happening::Requested { .. } => "requested",
            _ => "other",
        });
    })
    .unwrap()
}

/// A function whose claim and DMA survive, over a backend that hands on as VFIO does.
fn lasting(recovery: Recovery) -> (Setup, Told) {
    let told = Told::default();
    let survives = |function: &mut FakeFunction| {
        (function.handed, function.survives) = (true, true);
        function.interrupts = FakeInterrupts::Kernel;
    };
    let s = setup_as(survives, |mut config| {
        config.dext = "vfio".into();
        config.with_recovery(recovery).with_observer(Some(observer(&told)))
    });
    (s, told)
}

impl Setup {
    fn kill_connection(&self) {
        self.host.child(self.function.connection().pid()).kill();
    }

    fn reaches(&self, iova: u64) -> bool {
        self.fake().dma_write(at(), iova, b"dma")
    }
}

fn is_present(function: &Function) -> bool {
    matches!(function.presence(), Presence::Present)
}

fn more(iova: u64) -> GuestRegion {
    let memory = SharedMemory::create("more", 0x10000).unwrap();
    GuestRegion { iova, size: 0x10000, memory: memory.into(), offset: 0, writable: true }
}

#[test]
fn the_death_of_a_connection_process_is_noticed_by_nobody() {
    let (s, told) = lasting(Recovery::default());
    let (event, pid) = (s.assign(2), s.function.pid());
    for round in 1..=20u32 {
        let before = s.function.connection().pid();
        s.kill_connection();
        let mut adopted = false;
        for access in 0.. {
            assert!(is_present(&s.function) && s.reaches(RAM_BASE + 0x1000));
            s.function.bar_write(2, 0x10, &(round + access).to_le_bytes()).unwrap();
            s.fake().fire(at(), [2]);
            assert!(event.wait(soon()).unwrap());
            if adopted {
                break;
            }
            adopted = s.function.connection().adoptions() == u64::from(round);
        }
        assert_ne!(s.function.connection().pid(), before);
    }
    assert_eq!((s.function.returns(), s.function.pid(), s.fake().resets(at())), (0, pid, 0));
    assert_eq!(s.function.connection().statistics(at()).unwrap().regions, 1);
    // The successor has account of what it was told.
    s.vmm.container.map(more(RAM_BASE + RAM)).unwrap();
    assert!(s.reaches(RAM_BASE + RAM));
    s.kill_connection();
    s.vmm.container.unmap(RAM_BASE + RAM, 0x10000).unwrap();
    assert!(!s.reaches(RAM_BASE + RAM) && s.reaches(RAM_BASE));
    assert!(eventually(|| told.lock().unwrap().len() == 42));
    for (at, what) in told.lock().unwrap().iter().enumerate() {
        assert_eq!(*what, ["connection died", "adopted"][at % 2]);
    }
    s.vmm.host.detach(&s.function);
    assert!(eventually(|| !s.fake().is_claimed(at())));
    assert_eq!(s.fake().registered(at()), []);
}

#[test]
fn memory_that_comes_and_goes_meanwhile_is_given_and_taken_by_the_successor() {
    let (s, _told) = lasting(Recovery::default());
    let (one, other) = (RAM_BASE + RAM, RAM_BASE + 2 * RAM);
    s.vmm.container.map(more(one)).unwrap();
    // A successor asks for them before it says that it is ready.
    s.fake().stall(Operation::Bars);
    s.kill_connection();
    assert!(eventually(|| s.fake().waiting(Operation::Bars) > 0));
    std::thread::scope(|scope| {
        let mapping = scope.spawn(|| s.vmm.container.map(more(other)));
        let unmapping = scope.spawn(|| {
            let done = s.vmm.container.unmap(one, 0x10000);
            (done, s.reaches(one))
        });
        std::thread::sleep(Duration::from_millis(100));
        assert!(!mapping.is_finished() && !unmapping.is_finished(), "nobody can do it yet");
        assert!(s.reaches(one), "what is to be taken is not yet");
        s.fake().resume(Operation::Bars);
        mapping.join().unwrap().unwrap();
        let (unmapped, reaches) = unmapping.join().unwrap();
        unmapped.unwrap();
        assert!(!reaches, "it is reached no more when that returns");
    });
    assert!(s.reaches(other) && s.reaches(RAM_BASE) && !s.reaches(one));
    assert_eq!((s.function.connection().adoptions(), s.function.returns()), (1, 0));
}

/// Bytes of memory of which nobody has touched any: the kernel makes it when it is registered.
#[test]
fn large_memory_is_registered_in_pieces_that_a_successor_finds_again() {
    let (s, _told) = lasting(Recovery::default());
    let (base, size, gib) = ((3u64 << 30) - 0x1_0000, (2u64 << 30) + 0x2_0000, 1u64 << 30);
    let memory = SharedMemory::create("large", size).unwrap();
    let region = GuestRegion { iova: base, size, memory: memory.into(), offset: 0, writable: true };
    s.vmm.container.map(region).unwrap();
    let pieces = || {
        let all = s.fake().registered(at()).into_iter().filter(|(key, _)| *key >= base);
        all.map(|(key, range)| (key, range.length)).collect::<Vec<_>>()
    };
    let expected = [(base, 0x1_0000), (3 * gib, gib), (4 * gib, gib), (5 * gib, 0x1_0000)];
    assert_eq!(pieces(), expected);
    s.kill_connection();
    assert!(eventually(|| s.function.connection().adoptions() == 1));
    assert!(pieces() == expected && s.reaches(base) && s.reaches(4 * gib));
    s.vmm.container.unmap(base, size).unwrap();
    assert_eq!(pieces(), []);
    // Of what cannot be registered to its end nothing stays.
    s.fake().fail_after(at(), Operation::RegisterDma, 2, ErrorKind::NoSpace);
    let memory = SharedMemory::create("large", size).unwrap();
    let region = GuestRegion { iova: base, size, memory: memory.into(), offset: 0, writable: true };
    s.vmm.container.map(region).unwrap_err();
    assert_eq!(pieces(), []);
    assert_eq!((s.function.returns(), s.function.connection().adoptions()), (0, 1));
}

#[test]
fn a_connection_process_that_is_stopped_is_found_and_adopted_from() {
    let (s, told) = lasting(Recovery::default());
    let pid = s.function.pid();
    s.host.child(s.function.connection().pid()).suspend();
    // It is asked for a sign of life when it was silent for a second, and has two to give it.
    let is_adopted = || eventually(|| s.function.connection().adoptions() == 1);
    assert!(is_adopted() || is_adopted());
    assert_eq!((s.function.returns(), s.function.pid()), (0, pid));
    assert!(s.reaches(RAM_BASE) && is_present(&s.function));
    assert!(eventually(|| *told.lock().unwrap() == ["connection died", "adopted"]));
}

#[test]
fn both_processes_of_a_function_may_die_at_once() {
    let (s, told) = lasting(Recovery::default());
    for round in 1..=10 {
        s.kill_connection();
        s.kill();
        assert!(eventually(|| s.function.connection().adoptions() == round));
        assert!(eventually(|| s.function.replacements() == round));
        assert!(s.reaches(RAM_BASE));
        s.function.bar_write(2, 0x10, &7u32.to_le_bytes()).unwrap();
    }
    assert_eq!((s.function.returns(), s.fake().resets(at())), (0, 0));
    assert!(!told.lock().unwrap().contains(&"away"));
}

#[test]
fn too_many_deaths_in_a_row_are_a_removal_and_a_reset() {
    let (s, told) = lasting(Recovery::default().with_max_deaths(4));
    for round in 1..=2 {
        s.kill_connection();
        assert!(eventually(|| s.function.connection().adoptions() == round));
    }
    s.kill_connection();
    assert!(eventually(|| s.function.returns() == 1));
    assert_eq!((s.function.connection().adoptions(), s.fake().resets(at())), (2, 1));
    assert!(s.reaches(RAM_BASE) && is_present(&s.function));
    let removed = ["connection died", "away", "reconnected", "back"];
    assert!(eventually(|| removed.iter().all(|one| told.lock().unwrap().contains(one))));
}

#[test]
fn what_cannot_be_adopted_is_removed_and_comes_back() {
    let mut recovery = Recovery::default();
    recovery.timeout = Duration::from_secs(1);
    let (s, told) = lasting(recovery);
    // The successor cannot say what it has; the one after it can, which opens anew.
    s.fake().fail(at(), Operation::Bars, ErrorKind::Refused);
    s.kill_connection();
    assert!(eventually(|| told.lock().unwrap().contains(&"away")));
    s.fake().recover(at(), Operation::Bars);
    assert!(eventually(|| s.function.returns() == 1));
    assert_eq!((s.function.connection().adoptions(), s.fake().resets(at())), (0, 1));
    assert!(s.reaches(RAM_BASE));
}

/// The kernel asks while a successor is about to take over: nobody goes on with it, and that is told.
#[test]
fn what_is_wanted_back_during_an_adoption_is_not_adopted_and_that_is_told() {
    let (s, told) = lasting(Recovery::default());
    s.fake().stall(Operation::Bars);
    s.kill_connection();
    assert!(eventually(|| s.fake().waiting(Operation::Bars) > 0));
    s.fake().ask_for(at()).unwrap();
    s.fake().fail(at(), Operation::Bars, ErrorKind::Gone);
    s.fake().resume(Operation::Bars);
    assert!(eventually(|| told.lock().unwrap().contains(&"requested")));
    assert_eq!(s.function.connection().adoptions(), 0);
    assert_eq!(told.lock().unwrap().iter().filter(|one| **one == "requested").count(), 1);
}

#[test]
fn memory_that_may_have_been_mapped_after_its_time_is_reached_by_nobody() {
    let (s, told) = lasting(Recovery::default());
    s.fake().stall(Operation::RegisterDma);
    let late = s.vmm.container.map(more(RAM_BASE + RAM)).unwrap_err();
    s.fake().resume(Operation::RegisterDma);
    assert!(eventually(|| s.function.returns() == 1), "{late}");
    assert!(!s.reaches(RAM_BASE + RAM) && s.reaches(RAM_BASE));
    assert_eq!(s.function.connection().adoptions(), 0);
    assert!(!told.lock().unwrap().contains(&"adopted"));
}

#[test]
fn memory_that_is_not_given_back_ends_the_process_and_nobody_adopts_what_it_left() {
    let (s, told) = lasting(Recovery::default());
    s.vmm.container.map(more(RAM_BASE + RAM)).unwrap();
    s.fake().fail(at(), Operation::UnregisterDma, ErrorKind::Refused);
    s.vmm.container.unmap(RAM_BASE + RAM, 0x10000).unwrap();
    s.fake().recover(at(), Operation::UnregisterDma);
    assert!(eventually(|| s.function.returns() == 1));
    assert!(!s.reaches(RAM_BASE + RAM) && s.reaches(RAM_BASE));
    assert_eq!(s.function.connection().adoptions(), 0);
    assert!(!told.lock().unwrap().contains(&"adopted"));
}
