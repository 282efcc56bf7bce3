//! P1: attach, share, detach; every step undone when a later one fails; nothing left behind.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use cordon_tests::{Simulator, Vmm, address, config, is_running};
use cordon_vmm::host::AttachError;
use cordon_vmm::{DmaMode, ErrorKind, PassthroughDevice as _};
use ipc::wire::dext::selector;

#[test]
fn p1_1_a_failing_step_undoes_the_ones_before_and_p1_5_names_device_and_code() {
    // What fails, at which call of its selector, and what the error must say.
    let steps = [
        (selector::CLAIM, 1, "Claim"),
        (selector::GET_IDENTITY, 1, "GetIdentity"),
        (selector::CONFIG_READ, 1, "ConfigRead"),
        (selector::REGISTER_DMA_REGION, 2, "RegisterDMARegion"),
        (selector::SETUP_INTERRUPTS, 1, "SetupInterrupts"),
        (selector::WAIT_INTERRUPT, 1, "WaitInterrupt"),
    ];
    for (selector, nth, operation) in steps {
        let simulator = Simulator::usual();
        let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
        simulator.fault(&format!("fail:selector={selector},nth={nth},code=0xe00002bd"));
        let error = vmm.host.attach(address("01:00.0"), &vmm.container, None).err();
        let line = error.unwrap_or_else(|| panic!("{operation} failed and nobody saw")).to_string();
        for part in ["01:00.0", operation, "0xe00002bd"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert_eq!(simulator.fired(), [1], "{operation}");
        simulator.assert_released("01:00.0");
        assert!(vmm.container.discard_allowed(), "{operation}");
        // Nothing is in the way of the next try.
        let proxy = vmm.attach("01:00.0");
        vmm.host.detach(&proxy);
        simulator.assert_released("01:00.0");
    }
}

#[test]
fn p1_2_a_second_owner_is_refused_by_name_and_the_first_goes_on() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let proxy = vmm.attach("01:00.0");
    let refused = vmm.host.attach(address("01:00.0"), &vmm.container, None).err().unwrap();
    assert_eq!(refused.to_string(), "duplicate owner for host PCI 01:00.0");
    proxy.config_read(0, &mut [0; 4]).unwrap();
}

#[test]
fn p1_1_a_function_that_another_vmm_has_is_refused_and_left_alone() {
    let simulator = Simulator::usual();
    let one = Vmm::new(config(&simulator), DmaMode::Direct);
    let two = Vmm::new(config(&simulator), DmaMode::Direct);
    let proxy = one.attach("01:00.0");
    let refused = two.host.attach(address("01:00.0"), &two.container, None).err().unwrap();
    let AttachError::Step { error, .. } = refused else { panic!("{refused}") };
    let why = error.to_string();
    assert!(why.contains("01:00.0") && why.contains("claimed by another"), "{why}");
    // Who it is: the other one's processes.
    assert!(why.contains("device-proc (pid "), "{why}");
    proxy.config_read(0, &mut [0; 4]).unwrap();
    one.host.detach(&proxy);
    simulator.assert_released("01:00.0");
    let proxy = two.attach("01:00.0");
    two.host.detach(&proxy);
}

#[test]
fn p1_4_detach_releases_everything_and_the_function_can_be_attached_again() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    for _ in 0..3 {
        let proxy = vmm.attach("01:00.0");
        let pids = [proxy.pid(), proxy.connection().pid()];
        assert_eq!(simulator.held("01:00.0"), (2, 1, 1, true));
        assert!(!vmm.container.discard_allowed());
        vmm.host.detach(&proxy);
        simulator.assert_released("01:00.0");
        assert!(pids.iter().all(|pid| !is_running(*pid)));
        assert!(vmm.container.discard_allowed());
    }
}

#[test]
fn p1_6_a_device_without_a_name_gets_one() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let proxy = vmm.attach("01:00.0");
    assert_eq!(proxy.info().name, "apple-0000:01:00.0");
    let name = Some("disk0".to_owned());
    let named = vmm.host.attach(address("01:00.1"), &vmm.container, name).unwrap();
    assert_eq!(named.info().name, "disk0");
}

#[test]
fn functions_of_one_device_share_a_connection_process_and_leave_it_one_by_one() {
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let (a, b) = (vmm.attach("01:00.0"), vmm.attach("01:00.1"));
    assert_eq!(a.connection().pid(), b.connection().pid());
    assert_ne!(a.pid(), b.pid());
    vmm.host.detach(&a);
    assert!(is_running(b.connection().pid()));
    b.config_read(0, &mut [0; 4]).unwrap();
    // Its opener was closed: a late return gets a connection process of its own.
    let again = vmm.attach("01:00.0");
    assert_ne!(again.connection().pid(), b.connection().pid());
    vmm.host.detach(&b);
    again.config_read(0, &mut [0; 4]).unwrap();
    vmm.host.detach(&again);
    simulator.assert_released("01:00.0");
    simulator.assert_released("01:00.1");
}

#[test]
fn functions_of_two_devices_do_not_share() {
    let simulator = Simulator::start(&["--device=01:00.0=probe", "--device=02:00.0=probe"]);
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let (a, b) = (vmm.attach("01:00.0"), vmm.attach("02:00.0"));
    assert_ne!(a.connection().pid(), b.connection().pid());
}

#[test]
fn p2_4_direct_mode_is_refused_where_the_platform_chooses_addresses() {
    let simulator = Simulator::start(&["--device=01:00.0=probe", "--dart=strict"]);
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let refused = vmm.host.attach(address("01:00.0"), &vmm.container, None).err().unwrap();
    assert!(refused.to_string().contains("companion"), "{refused}");
    simulator.assert_released("01:00.0");
    let companion = Vmm::new(config(&simulator), DmaMode::Companion);
    let proxy = companion.attach("01:00.0");
    assert_eq!(simulator.held("01:00.0").2, 0, "companion mode registers nothing by itself");
    companion.host.detach(&proxy);
}

#[test]
fn p2_4_memory_that_comes_and_goes_is_registered_and_removed() {
    use cordon_vmm::container::GuestRegion;
    use ipc::SharedMemory;
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let (a, _b) = (vmm.attach("01:00.0"), vmm.attach("01:00.1"));
    let memory = SharedMemory::create("more", 1 << 20).unwrap();
    let region =
        GuestRegion { iova: 0, size: 1 << 20, memory: memory.into(), offset: 0, writable: false };
    vmm.container.map(region).unwrap();
    assert_eq!((simulator.held("01:00.0").2, simulator.held("01:00.1").2), (2, 2));
    assert_eq!(a.connection().statistics(address("01:00.0")).unwrap().regions, 2);
    vmm.container.unmap(0, 1 << 20).unwrap();
    // The answer came only once the registration was gone.
    assert_eq!((simulator.held("01:00.0").2, simulator.held("01:00.1").2), (1, 1));
}

#[test]
fn memory_that_one_function_cannot_have_is_given_to_none() {
    use cordon_vmm::container::GuestRegion;
    use ipc::SharedMemory;
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let _both = (vmm.attach("01:00.0"), vmm.attach("01:00.1"));
    simulator.fault("fail:selector=5,nth=2,code=0xe00002db");
    let memory = SharedMemory::create("more", 1 << 20).unwrap();
    let region =
        GuestRegion { iova: 0, size: 1 << 20, memory: memory.into(), offset: 0, writable: true };
    let refused = vmm.container.map(region).unwrap_err();
    assert!(refused.kind() == ErrorKind::NoSpace, "{refused}");
    assert_eq!((simulator.held("01:00.0").2, simulator.held("01:00.1").2), (1, 1));
}
