//! The whole of the VMM side over roles that are threads and a fake backend: no process, no dext.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod adoption;
mod decoding;
#[cfg(target_os = "linux")]
mod kept;
mod launch;
mod windows;

use std::sync::Arc;
use std::time::Duration;

use cordon_tests::{RAM, RAM_BASE, Vmm, address, eventually};
use cordon_vmm::device::InterruptSetup;
use cordon_vmm::{
    Deadline, Deadlines, DmaMode, ErrorKind, Event, Function, GuestRegion, HostConfig,
    InterruptIndex, PassthroughDevice as _, PciAddress, Recovery, SharedMemory,
};
use device_proc::in_process::fake::{Fake, FakeFunction, FakeInterrupts, Operation};

use self::launch::InProcess;

struct Setup {
    host: InProcess,
    vmm: Vmm,
    function: Arc<Function>,
}

fn at() -> PciAddress {
    address("01:00.0")
}

fn setup(change: impl FnOnce(&mut FakeFunction)) -> Setup {
    setup_as(change, |config| config)
}

fn setup_as(
    change: impl FnOnce(&mut FakeFunction),
    configure: impl FnOnce(HostConfig) -> HostConfig,
) -> Setup {
    let mut function = FakeFunction::at(at());
    change(&mut function);
    let host = InProcess::over(Fake::new([function]).unwrap());
    let config = HostConfig::new("/nonexistent/device-proc", "sim:/nonexistent/dext")
        .with_strict(false)
        .with_recovery(Recovery::default())
        .with_launch(Arc::new(host.clone()));
    let vmm = Vmm::new(configure(config), DmaMode::Direct);
    let function = vmm.attach("01:00.0");
    Setup { host, vmm, function }
}

impl Setup {
    fn fake(&self) -> &Fake {
        &self.host.fake
    }

    /// Kills the function process.
    fn kill(&self) {
        self.host.child(self.function.pid()).kill();
    }

    fn identity(&self) -> [u8; 4] {
        let mut ids = [0; 4];
        self.function.config_read_or_ones(0, &mut ids);
        ids
    }

    /// Has a vector of MSI-X signal an event.
    fn assign(&self, vector: u16) -> Event {
        let event = Event::new().unwrap();
        let signallers = vec![Some(event.signaller().unwrap())];
        let setup = InterruptSetup::Assign { start: vector, signallers };
        self.function.set_interrupts(InterruptIndex::Msix, setup).unwrap();
        event
    }
}

/// Vendor 0xc0d0, device 0xfa4e.
const IDS: [u8; 4] = [0xd0, 0xc0, 0x4e, 0xfa];

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

#[test]
fn guest_memory_comes_and_goes_as_the_container_says() {
    let s = setup(|_| {});
    assert!(s.fake().dma_write(at(), RAM_BASE + 0x1000, b"dma"));
    let mut read = [0; 3];
    s.vmm.ram.copy_out(0x1000, &mut read).unwrap();
    assert_eq!(&read, b"dma");
    assert!(!s.fake().dma_write(at(), RAM_BASE + RAM, b"x"));
    let memory = SharedMemory::create("more", 0x10000).unwrap();
    let iova = RAM_BASE + RAM;
    let region =
        GuestRegion { iova, size: 0x10000, memory: memory.into(), offset: 0, writable: false };
    s.vmm.container.map(region).unwrap();
    assert!(s.fake().dma_read(at(), iova, &mut read));
    assert!(!s.fake().dma_write(at(), iova, b"x"), "it is the guest's ROM");
    s.vmm.container.unmap(iova, 0x10000).unwrap();
    assert!(!s.fake().dma_read(at(), iova, &mut read));
    s.vmm.host.detach(&s.function);
    assert!(eventually(|| !s.fake().is_claimed(at())));
    assert_eq!(s.fake().registered(at()), []);
}

#[test]
fn p8_a_device_that_would_not_survive_a_reset_is_never_reset_and_does_not_come_back() {
    // A GB202.
    let s =
        setup(|function| (function.identity.vendor, function.identity.device) = (0x10de, 0x2b85));
    assert!(!s.function.info().resettable);
    let refused = s.function.reset().unwrap_err();
    assert!(refused.to_string().contains("cycle its power"), "{refused}");
    s.kill();
    assert!(eventually(|| s.identity() == [0xde, 0x10, 0x85, 0x2b]), "a process is no device");
    s.fake().die();
    s.fake().revive().unwrap();
    assert!(eventually(|| s.function.death().is_some()));
    let death = s.function.death().unwrap().to_string();
    assert!(death.contains("GB202") && death.contains("cycle its power"), "{death}");
    assert_eq!((s.fake().resets(at()), s.identity()), (0, [0xff; 4]));
    // Any other.
    let s = setup(|_| {});
    assert!(s.function.info().resettable);
    s.function.reset().unwrap();
    assert_eq!(s.fake().resets(at()), 1);
}

#[test]
fn a_function_process_that_is_killed_is_no_loss() {
    let s = setup(|_| {});
    let event = s.assign(2);
    for round in 0..50u32 {
        let replaced = s.function.replacements();
        s.kill();
        s.function.bar_write(2, 0x10, &round.to_le_bytes()).unwrap();
        assert_eq!(s.fake().bar(at(), 2).unwrap().read::<u32>(0x10).unwrap(), round);
        assert!(s.function.replacements() > replaced);
        assert!(event.wait(soon()).unwrap(), "every vector in use is signalled once");
        s.fake().fire(at(), [2]);
        assert!(event.wait(soon()).unwrap());
    }
    assert!(s.fake().dma_write(at(), RAM_BASE, b"x"), "DMA is the connection process's");
}

/// What `event` says once the process that serves has taken a notification.
fn comes(s: &Setup, event: &Event) -> bool {
    s.fake().fire(at(), [0]);
    assert!(eventually(|| s.function.statistics().unwrap().notifications > 0));
    event.wait(Deadline::now()).unwrap()
}

#[test]
fn a_masked_intx_stays_masked_when_its_process_is_replaced() {
    let s = setup(|_| {});
    let event = Event::new().unwrap();
    let set = |setup| s.function.set_interrupts(InterruptIndex::Intx, setup);
    let replace = || {
        let replaced = s.function.replacements();
        s.kill();
        assert!(eventually(|| s.function.replacements() > replaced));
    };
    assert!(set(InterruptSetup::Mask).is_err(), "it is not in use");
    let signallers = vec![Some(event.signaller().unwrap())];
    set(InterruptSetup::Assign { start: 0, signallers }).unwrap();
    set(InterruptSetup::Mask).unwrap();
    for _ in 0..3 {
        replace();
        assert!(!comes(&s, &event));
    }
    // One may have been lost with a process: it comes with the unmask.
    set(InterruptSetup::Unmask).unwrap();
    assert!(event.wait(soon()).unwrap());
    replace();
    assert!(event.wait(soon()).unwrap(), "not masked any more: signalled once");
    set(InterruptSetup::Unmask).unwrap();
    s.fake().fire(at(), [0]);
    assert!(event.wait(soon()).unwrap());
}

#[test]
fn a_masked_intx_stays_masked_when_the_device_was_away() {
    let s = setup(|_| {});
    let event = Event::new().unwrap();
    let set = |setup| s.function.set_interrupts(InterruptIndex::Intx, setup);
    let signallers = vec![Some(event.signaller().unwrap())];
    set(InterruptSetup::Assign { start: 0, signallers }).unwrap();
    s.fake().die();
    assert!(eventually(|| s.identity() == [0xff; 4]));
    // Kept for whoever serves next.
    assert!(eventually(|| set(InterruptSetup::Mask).is_ok()));
    s.fake().revive().unwrap();
    assert!(eventually(|| s.identity() == IDS));
    assert!(!comes(&s, &event));
    set(InterruptSetup::Unmask).unwrap();
    assert!(event.wait(soon()).unwrap());
}

#[test]
fn a_request_that_waits_in_the_backend_is_sent_again_to_the_successor() {
    let s = setup(|_| {});
    s.fake().stall(Operation::BarRead);
    let function = Arc::clone(&s.function);
    let reader = std::thread::spawn(move || {
        let mut value = [0; 4];
        function.bar_read(2, 0x20, &mut value).map(|()| value)
    });
    assert!(eventually(|| s.fake().waiting(Operation::BarRead) == 1));
    s.kill();
    s.fake().bar(at(), 2).unwrap().write::<u32>(0x20, 0x1234).unwrap();
    s.fake().resume(Operation::BarRead);
    assert_eq!(reader.join().unwrap().unwrap(), [0x34, 0x12, 0, 0]);
    assert!(s.function.replacements() > 0);
}

/// Several requests are in the lane when a process hangs over one of them.
#[test]
fn only_the_request_that_a_process_hung_over_counts_as_having_ended_it() {
    let mut deadlines = Deadlines::default();
    deadlines.call = Duration::from_millis(300);
    let s = setup_as(|_| {}, |config| config.with_deadlines(deadlines));
    s.fake().stall(Operation::BarRead);
    let function = Arc::clone(&s.function);
    let culprit = std::thread::spawn(move || function.bar_read(2, 0x20, &mut [0; 4]));
    assert!(eventually(|| s.fake().waiting(Operation::BarRead) == 1));
    // Behind it in the first process, and before or behind it in the second.
    assert_eq!(s.identity(), IDS);
    let error = culprit.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("twice"), "{error}");
    s.fake().resume(Operation::BarRead);
    assert_eq!(s.identity(), IDS);
    s.function.bar_read(2, 0x20, &mut [0; 4]).unwrap();
}

#[test]
fn a_function_process_that_is_stopped_is_replaced() {
    let s = setup(|_| {});
    let pid = s.function.pid();
    s.host.child(pid).suspend();
    let mut ids = [0; 4];
    s.function.config_read(0, &mut ids).unwrap();
    assert_eq!(ids, IDS);
    assert_ne!(s.function.pid(), pid);
}

#[test]
fn where_the_kernel_delivers_interrupts_go_on_while_a_process_is_replaced() {
    let s = setup(|function| function.interrupts = FakeInterrupts::Kernel);
    let event = s.assign(7);
    s.fake().fail(at(), Operation::Open, cordon_backend::ErrorKind::Busy);
    s.kill();
    s.fake().fire(at(), [7]);
    assert!(event.wait(soon()).unwrap(), "nobody is on the way");
    s.fake().recover(at(), Operation::Open);
    assert_eq!(s.identity(), IDS);
}

#[test]
fn a_backend_that_dies_is_a_removal_and_its_return_brings_everything_back() {
    let s = setup(|_| {});
    let event = s.assign(0);
    s.fake().die();
    assert!(!s.fake().dma_write(at(), RAM_BASE, b"x"));
    assert!(eventually(|| s.identity() == [0xff; 4]));
    s.fake().revive().unwrap();
    assert!(eventually(|| s.identity() == IDS));
    assert_eq!(s.fake().resets(at()), 1, "before it is given memory");
    assert!(s.fake().dma_write(at(), RAM_BASE, b"x"));
    assert!(event.wait(soon()).unwrap());
    s.fake().fire(at(), [0]);
    assert!(event.wait(soon()).unwrap());
}

#[test]
fn what_the_backend_refuses_is_an_error_with_its_code() {
    let s = setup(|_| {});
    s.fake().fail(at(), Operation::Reset, cordon_backend::ErrorKind::Refused);
    let refused = s.function.reset().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Io, "{refused}");
    assert!(refused.to_string().contains("01:00.0: Reset failed"), "{refused}");
    s.fake().recover(at(), Operation::Reset);
    s.function.reset().unwrap();
}
