//! A fault of memory is told as what it is, and a forbidden call as what that is.

use cordon_tests::companion::{Guest, PAGE};
use cordon_tests::{RAM, RAM_BASE, Simulator, address, announce, config, eventually, write_script};
use cordon_vmm::child::ExitStatus;
use cordon_vmm::companion::CompanionConfig;
use cordon_vmm::container::GuestRegion;
use cordon_vmm::{Container, DmaMode, Host};
use ipc::{Access, SharedMemory};
use rustix::fs::MemfdFlags;

use crate::{ROLES, tries, try_one, try_one_of};

/// Tries what `begins` so, in every role; what was told of it.
fn told(begins: &str, exit: ExitStatus) -> Vec<String> {
    let tell = |role: &&str| {
        let number = tries(role).iter().position(|tried| tried.starts_with(begins)).unwrap();
        let death = try_one(role, number);
        assert_eq!(death.exit, exit, "{death}");
        assert!(!death.is_from_outside());
        death.to_string()
    };
    ROLES.iter().map(tell).collect()
}

#[test]
fn memory_that_is_not_there_is_told_as_a_bus_error_with_its_address_in_every_role() {
    for text in told("bus: ", ExitStatus::Signal(libc::SIGBUS)) {
        assert!(text.contains("(signal 7: memory that it had mapped is not there"), "{text}");
        assert!(text.contains("memory fault: address 0x7"), "{text}");
        assert!(text.contains("past the end of it, or it was shortened"), "{text}");
        assert!(!text.contains("forbidden"), "{text}");
    }
}

#[test]
fn a_stack_without_end_is_told_as_one_in_every_role() {
    for text in told("fault: ", ExitStatus::Signal(libc::SIGSEGV)) {
        assert!(text.contains("signal 11") && text.contains("the stack is full"), "{text}");
        assert!(!text.contains("forbidden"), "{text}");
    }
}

#[test]
fn a_forbidden_call_is_told_as_one_in_every_role() {
    for text in told("refused: ", ExitStatus::Signal(libc::SIGSYS)) {
        assert!(text.contains("(signal 31: a forbidden system call)"), "{text}");
        assert!(!text.contains("memory"), "{text}");
        // The first row that is violated, of each role.
        assert!(text.contains("; by its own word the call was ppoll ("), "{text}");
    }
}

#[test]
fn a_forbidden_call_that_was_said_and_not_made_is_not_told() {
    let folder = tempfile::tempdir().unwrap();
    let liar = folder.path().join("liar");
    write_script(&liar, "#!/bin/sh\necho 'forbidden system call: number 59' >&2\nexit 3\n");
    let death = try_one_of(&liar, "function", 0);
    assert_eq!((death.exit, death.claimed_call), (ExitStatus::Code(3), None), "{death}");
    assert!(!death.to_string().contains("execve"), "{death}");
}

#[test]
fn guest_memory_that_is_shortened_under_its_function_process_is_told_by_the_guests_address() {
    let simulator = Simulator::start(&[
        "--device=01:00.0=nvme,size=16M",
        "--device=01:00.1=probe",
        "--dart=strict",
    ]);
    let host = Host::new(config(&simulator));
    let container = std::sync::Arc::new(Container::new(DmaMode::Companion));
    // A client's, which is not sealed.
    let file = rustix::fs::memfd_create("shortened", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, RAM).unwrap();
    let memory = SharedMemory::from_trusted(file.try_clone().unwrap(), RAM).unwrap();
    let ram = memory.map_all(Access::ReadWrite).unwrap();
    let region =
        GuestRegion { iova: RAM_BASE, size: RAM, memory: memory.into(), offset: 0, writable: true };
    container.map(region).unwrap();
    let companion = CompanionConfig::new(address("00:05.0"));
    let attached = host.attach_with_companion(address("01:00.1"), &container, None, companion);
    let (probe, companion) = attached.unwrap();
    let layout = companion.config().layout;
    let guest = Guest { companion: &*companion, ram: &ram, layout };
    let pages = [(RAM_BASE + 0x10_0000, 0x1000)];
    assert_eq!(guest.map(&pages).0, 0);

    rustix::fs::ftruncate(&file, 0).unwrap();
    let _ = cordon_vmm::PassthroughDevice::bar_write(
        &*companion,
        0,
        cordon_vmm::companion::register::DOORBELL,
        &1u32.to_le_bytes(),
    );
    assert!(eventually(|| probe.death().is_some()));
    let death = probe.death().unwrap();
    assert_eq!(death.exit, ExitStatus::Signal(libc::SIGBUS), "{death}");
    let text = death.to_string();
    let place = format!("guest memory at {PAGE:#x} is not there");
    assert!(text.contains(&place) && !text.contains("forbidden"), "{text}");
    announce(&format!("policy: {text}"));
}
