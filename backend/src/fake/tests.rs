//! The fake keeps the promises of the traits, so that what is tested against it is worth something.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use ipc::wire::function::InterruptIndex;
use ipc::{Deadline, Event, SharedMemory};

use super::*;
use crate::{
    Behind, BusAddresses, Delivery, DmaRange, GroupFunction, KernelInterrupts, Left, Liveness,
    NotifiedInterrupts, Survives,
};

fn address() -> PciAddress {
    "01:00.0".parse().unwrap()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(5))
}

fn fake(change: impl FnOnce(&mut FakeFunction)) -> Fake {
    let mut function = FakeFunction::at(address());
    change(&mut function);
    Fake::new([function]).unwrap()
}

/// The process that holds the group and its one function, claimed.
fn holder(fake: &Fake) -> (FakeProcess, OpenGroup) {
    let process = fake.process();
    let mut group = process.open_group(address(), Source::Own).unwrap();
    assert!(!group.functions[0].is_claimed().unwrap());
    group.functions[0].claim().unwrap();
    (process, group)
}

fn register(function: &mut dyn GroupFunction, key: u64, memory: &SharedMemory) -> BusRange {
    let behind = Behind { memory, offset: 0x1000, writable: true };
    let range = DmaRange { key, size: 0x1000, mapped_at: None, behind };
    function.register_dma(&range).unwrap()
}

fn adopt(function: &mut dyn GroupFunction, key: u64, memory: &SharedMemory) -> BusRange {
    let behind = Behind { memory, offset: 0x1000, writable: true };
    let range = DmaRange { key, size: 0x1000, mapped_at: None, behind };
    function.adopt_dma(&range).unwrap()
}

fn notified(function: &mut dyn ServedFunction) -> &mut dyn NotifiedInterrupts {
    match function.delivery() {
        Delivery::Notified(notified) => notified,
        Delivery::Kernel(_) => panic!("delivered by the kernel"),
    }
}

fn kernel(function: &mut dyn ServedFunction) -> &mut dyn KernelInterrupts {
    match function.delivery() {
        Delivery::Kernel(kernel) => kernel,
        Delivery::Notified(_) => panic!("notified"),
    }
}

#[test]
fn a_claim_has_one_holder_and_goes_with_it() {
    let fake = fake(|_| {});
    let (_process, group) = holder(&fake);
    let other = fake.process();
    let mut second = other.open_group(address(), Source::Own).unwrap();
    assert!(second.functions[0].is_claimed().unwrap());
    assert_eq!(second.functions[0].claim().unwrap_err().kind, ErrorKind::Busy);
    drop(group);
    assert!(!fake.is_claimed(address()));
    second.functions[0].claim().unwrap();
    assert!(second.functions.remove(0).release().unwrap().is_none());
    assert!(!fake.is_claimed(address()));
    let elsewhere = other.open_group("02:00.0".parse().unwrap(), Source::Own).err().unwrap();
    assert_eq!(elsewhere.kind, ErrorKind::NoSuchDevice);
}

#[test]
fn what_needs_a_claim_is_refused_without_one() {
    let fake = fake(|_| {});
    let process = fake.process();
    let mut function = process.open_function(address(), Source::Own).unwrap();
    let refused = function.set_up_interrupts().unwrap_err();
    assert_eq!((refused.kind, refused.code), (ErrorKind::Refused, Some(NOT_CLAIMED)));
    assert!(refused.to_string().contains("01:00.0: SetUpInterrupts failed"), "{refused}");
    let (_holder, _group) = holder(&fake);
    assert_eq!(function.set_up_interrupts().unwrap(), 32);
}

#[test]
fn notified_interrupts_are_recorded_drained_and_armed() {
    let fake = fake(|_| {});
    let (_holder, _group) = holder(&fake);
    let process = fake.process();
    let mut function = process.open_function(address(), Source::Own).unwrap();
    function.set_up_interrupts().unwrap();
    let second = fake.process().open_function(address(), Source::Own).unwrap().set_up_interrupts();
    assert_eq!(second.unwrap_err().kind, ErrorKind::Busy);
    notified(function.as_mut()).set_mask([3, 40].into_iter().collect()).unwrap();
    fake.fire(address(), [3, 4]);
    assert!(function.notification().unwrap().wait(soon()).unwrap());
    fake.fire(address(), [40]);
    assert!(!function.notification().unwrap().clear().unwrap(), "it was not armed again");
    let pending = notified(function.as_mut()).drain().unwrap();
    assert_eq!(pending.iter().collect::<Vec<_>>(), [3, 40]);
    fake.fire(address(), [3]);
    notified(function.as_mut()).arm().unwrap();
    assert!(function.notification().unwrap().wait(soon()).unwrap(), "something pended already");
}

#[test]
fn the_kernel_signals_also_when_the_process_is_dead() {
    let fake = fake(|function| function.interrupts = FakeInterrupts::Kernel);
    let (_holder, group) = holder(&fake);
    let process = fake.process();
    let mut function = process.open_function(address(), Source::Own).unwrap();
    assert_eq!(function.set_up_interrupts().unwrap(), 32);
    assert!(function.notification().is_none());
    let event = Event::new().unwrap();
    let signaller = event.signaller().unwrap();
    let connected = [None, Some(signaller.as_fd())];
    kernel(function.as_mut()).connect(InterruptIndex::Msix, &connected).unwrap();
    process.kill();
    drop(function);
    fake.fire(address(), [0, 1]);
    assert!(event.wait(soon()).unwrap());
    drop(group);
    fake.fire(address(), [1]);
    assert!(!event.clear().unwrap(), "the claim is gone, and with it what was signalled");
}

#[test]
fn intx_is_held_back_by_the_kernel_until_it_is_let_through() {
    let fake = fake(|function| function.interrupts = FakeInterrupts::Kernel);
    let (_holder, _group) = holder(&fake);
    let mut function = fake.process().open_function(address(), Source::Own).unwrap();
    let event = Event::new().unwrap();
    let signaller = event.signaller().unwrap();
    let line = [Some(signaller.as_fd())];
    kernel(function.as_mut()).connect(InterruptIndex::Intx, &line).unwrap();
    fake.fire(address(), [0]);
    assert!(event.wait(soon()).unwrap());
    fake.fire(address(), [0]);
    assert!(!event.clear().unwrap());
    kernel(function.as_mut()).mask_intx(false).unwrap();
    fake.fire(address(), [0]);
    assert!(event.wait(soon()).unwrap());
}

#[test]
fn a_device_reaches_what_it_was_given_and_nothing_else() {
    let fake = fake(|function| function.dma.addresses = BusAddresses::Assigned);
    let (_process, mut group) = holder(&fake);
    let function = group.functions[0].as_mut();
    let memory = SharedMemory::create("ram", 0x10000).unwrap();
    let window = memory.map_all(Access::ReadWrite).unwrap();
    let at = register(function, 0x4000, &memory);
    assert_eq!(at, BusRange { address: ASSIGNED_BASE + 0x4000, length: 0x1000 });
    assert!(fake.dma_write(address(), at.address + 0xffc, b"data"));
    assert_eq!(window.read::<u32>(0x1ffc).unwrap(), u32::from_le_bytes(*b"data"));
    let mut read = [0; 4];
    assert!(fake.dma_read(address(), at.address + 0xffc, &mut read));
    assert_eq!(&read, b"data");
    assert!(!fake.dma_write(address(), at.address + 0xffd, b"data"));
    assert!(!fake.dma_write(address(), 0x4000, b"data"));
    function.unregister_dma(0x4000, at).unwrap();
    assert!(!fake.dma_write(address(), at.address, b"data"));
    assert!(function.unregister_dma(0x4000, at).is_err());
}

#[test]
fn limits_keys_and_faults_are_told_apart() {
    let fake = fake(|function| (function.dma.max_ranges, function.max_dma_bytes) = (2, 0x2000));
    let (_process, mut group) = holder(&fake);
    let function = group.functions[0].as_mut();
    let memory = SharedMemory::create("ram", 0x10000).unwrap();
    register(function, 1, &memory);
    let behind = Behind { memory: &memory, offset: 0, writable: false };
    let mut attempt = |key, size| {
        let range = DmaRange { key, size, mapped_at: None, behind };
        function.register_dma(&range).map_err(|error| error.kind)
    };
    assert_eq!(attempt(1, 0x1000), Err(ErrorKind::Busy));
    assert_eq!(attempt(2, 0x2000), Err(ErrorKind::NoSpace));
    fake.fail(address(), Operation::RegisterDma, ErrorKind::Fragmented);
    assert_eq!(attempt(2, 0x1000), Err(ErrorKind::Fragmented));
    fake.recover(address(), Operation::RegisterDma);
    attempt(2, 0x1000).unwrap();
    assert_eq!(attempt(3, 0x1), Err(ErrorKind::NoSpace));
    assert_eq!(fake.registered(address()).len(), 2);
}

#[test]
fn a_function_that_is_handed_is_opened_with_what_was_handed() {
    let fake = fake(|function| function.handed = true);
    let (_process, group) = holder(&fake);
    let own = fake.process().open_function(address(), Source::Own).err().unwrap();
    assert_eq!(own.kind, ErrorKind::Unsupported);
    let handed = group.functions[0].handed();
    let handed: Vec<OwnedFd> = handed.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
    let mut function = fake.process().open_function(address(), Source::Handed(handed)).unwrap();
    assert_eq!(function.config_read(0, 2).unwrap(), 0xc0d0);
    let other = vec![SharedMemory::create("other", 4096).unwrap().into_fd()];
    assert!(fake.process().open_function(address(), Source::Handed(other)).is_err());
}

#[test]
fn what_survives_is_adopted_as_it_is() {
    let fake = fake(|function| function.survives = true);
    let (process, mut group) = holder(&fake);
    let memory = SharedMemory::create("ram", 0x10000).unwrap();
    let at = register(group.functions[0].as_mut(), 0x4000, &memory);
    let Survives::Descriptors(left) = group.group.survives() else { panic!("nothing survives") };
    let left: Vec<OwnedFd> = left.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
    process.kill();
    drop(group);
    assert!(fake.dma_write(address(), at.address, b"data"), "DMA goes on");
    let successor = fake.process();
    let left = Left { group: left, ..Left::default() };
    let mut adopted = successor.open_group(address(), Source::Adopted(left)).unwrap();
    let function = adopted.functions[0].as_mut();
    assert!(!function.is_claimed().unwrap(), "nobody else has it");
    function.claim().unwrap();
    assert_eq!(fake.resets(address()), 0);
    assert_eq!(adopt(function, 0x4000, &memory), at, "it is recognised");
    function.unregister_dma(0x4000, at).unwrap();
    drop(adopted);
    assert!(!fake.is_claimed(address()));
    let again = fake.process().open_group(address(), Source::Adopted(Left::default()));
    assert_eq!(again.err().unwrap().kind, ErrorKind::Unsupported);
}

#[test]
fn a_process_that_is_killed_holds_nothing_even_while_its_thread_waits() {
    let fake = fake(|_| {});
    let (_holder, _group) = holder(&fake);
    let process = fake.process();
    let mut function = process.open_function(address(), Source::Own).unwrap();
    function.set_up_interrupts().unwrap();
    fake.stall(Operation::ConfigRead);
    let waiting = std::thread::spawn(move || function.config_read(0, 4).unwrap_err());
    process.kill();
    let mut successor = fake.process().open_function(address(), Source::Own).unwrap();
    successor.set_up_interrupts().unwrap();
    assert_eq!(waiting.join().unwrap().kind, ErrorKind::Lost);
    fake.resume(Operation::ConfigRead);
    assert_eq!(successor.config_read(0, 2).unwrap(), 0xc0d0);
}

#[test]
fn a_dead_backend_hangs_up_and_what_was_open_stays_lost() {
    let fake = fake(|_| {});
    let (_process, mut group) = holder(&fake);
    fake.bar(address(), 2).unwrap().write::<u32>(0, 7).unwrap();
    let memory = SharedMemory::create("ram", 0x10000).unwrap();
    let at = register(group.functions[0].as_mut(), 0x4000, &memory);
    assert!(fake.dma_write(address(), at.address, b"data"));
    fake.die();
    assert!(!fake.is_claimed(address()) && !fake.dma_write(address(), at.address, b"data"));
    let function = &mut group.functions[0];
    let Some(Liveness::Hangup(fd)) = function.liveness() else { panic!("it cannot be seen") };
    let hangup = [ipc::poll::Source::hangup(&fd, ())];
    assert_eq!(ipc::poll::wait(&hangup, Some(soon())).unwrap().len(), 1);
    assert!(function.claim().unwrap_err().is_fatal());
    let none = fake.process().open_group(address(), Source::Own).err().unwrap();
    assert_eq!(none.to_string(), "No fake backend: it is dead");
    fake.revive().unwrap();
    assert!(function.claim().unwrap_err().is_fatal());
    let (_process, _group) = holder(&fake);
    assert_eq!(fake.bar(address(), 2).unwrap().read::<u32>(0).unwrap(), 0);
}
