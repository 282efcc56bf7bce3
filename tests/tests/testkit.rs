//! The test kit, as a VMM author uses it: what it shows in its documentation runs, and what it waits for has happened.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::time::Duration;

use cordon_testkit::{
    Dart, DextFault, Error, PassthroughDevice as _, Programs, Rig, connection, function,
};
use cordon_tests::{announce, bin_dir, eventually, is_running, over_iokit};
use cordon_vmm::faults::{FaultPlan, Faults};
use cordon_vmm::{IoReturn, Presence};

// What the documentation of the crate shows, as it is.
#[path = "../../testkit/examples/third-bar-write.rs"]
mod shown;

fn programs() -> Programs {
    Programs::in_folder(bin_dir())
}

#[test]
fn what_the_documentation_shows_runs_and_is_ten_lines() {
    // It finds the programs by itself: they are built, and beside the folder of this test.
    let folder = bin_dir();
    announce(&format!("the programs are in {}", folder.display()));
    shown::main().unwrap();
    let text = include_str!("../../testkit/examples/third-bar-write.rs");
    let body = text.lines().skip_while(|line| !line.starts_with("pub(crate) fn main")).skip(1);
    let body: Vec<&str> = body.filter(|line| line.starts_with("    ")).collect();
    assert!(body.len() <= 13, "{body:#?}");
    let readme = include_str!("../../testkit/README.md");
    assert!(readme.contains("function().at_bar_write(3).during().kill()"));
}

#[test]
fn each_deadly_fault_of_a_function_process_is_survived_and_told() {
    for fault in [
        function().at_bar_write(3).during().kill(),
        function().at_bar_read(1).before().stop(),
        function().at_config_read(1).after().closed(),
        function().at_bar_write(2).during().garbage(),
    ] {
        let text = fault.to_string();
        let rig =
            Rig::with_device("01:00.0=probe").programs(programs()).fault(fault).start().unwrap();
        let device = rig.attach("01:00.0").unwrap();
        let before = device.pid();
        for number in 0..6u32 {
            let mut back = [0; 4];
            device.bar_write(0, 0x10, &number.to_le_bytes()).unwrap();
            device.bar_read(0, 0x10, &mut back).unwrap();
            assert_eq!(u32::from_le_bytes(back), number, "{text}");
            device.config_read(0, &mut back).unwrap();
        }
        let survived = rig.survived(&device).unwrap();
        assert_eq!(survived.len(), 1, "{survived:?}");
        assert_eq!((survived[0].process, survived[0].successor), (before, device.pid()), "{text}");
        assert!(survived[0].took.is_some_and(|took| took > Duration::ZERO));
        assert!(!is_running(before), "{text}");
        announce(&survived[0].to_string());
        drop(device);
        rig.finish().unwrap();
    }
}

#[test]
fn the_death_of_a_connection_process_is_a_return_and_is_waited_for() {
    let rig = Rig::with_device("01:00.0=probe").programs(programs()).start().unwrap();
    let device = rig.attach("01:00.0").unwrap();
    let before = device.connection().pid();
    rig.strike(connection().at("Statistics", 1).during().kill()).unwrap();
    let _ = device.connection().statistics(device.address());
    let survived = rig.survived(&device).unwrap();
    assert_eq!((survived[0].process, survived[0].took), (before, None));
    assert_ne!(survived[0].successor, before);
    assert!(device.returns() == 1 && matches!(device.presence(), Presence::Present));
    // One that is armed later is waited for too, and is another.
    rig.strike(function().at_config_read(1).kill()).unwrap();
    device.config_read(0, &mut [0; 4]).unwrap();
    assert_eq!(rig.survived(&device).unwrap().len(), 2);
    drop(device);
    rig.finish().unwrap();
}

#[test]
fn a_function_that_is_given_up_is_no_survivor() {
    let off = cordon_vmm::Recovery::OFF;
    let fault = function().at_config_read(1).kill();
    let rig = Rig::with_device("01:00.0=probe").programs(programs());
    let rig = rig.recovery(off).fault(fault).start().unwrap();
    let device = rig.attach("01:00.0").unwrap();
    assert!(device.config_read(0, &mut [0; 4]).is_err());
    assert!(matches!(rig.survived(&device), Err(Error::GivenUp(_))));
}

#[test]
fn what_a_vmm_leaves_attached_is_found() {
    if over_iokit() {
        return announce("the rig's simulator is not the one that IOKit shows");
    }
    let rig = Rig::with_device("01:00.0=probe").programs(programs()).start().unwrap();
    // The VMM under test has a host of its own.
    let host = cordon_vmm::Host::new(rig.config());
    let device = host.attach("01:00.0".parse().unwrap(), rig.container(), None).unwrap();
    device.config_read(0, &mut [0; 4]).unwrap();
    let error = rig.finish().unwrap_err().to_string();
    assert!(error.starts_with("The dext still has, of 01:00.0: "), "{error}");
    host.detach(&device);
}

#[test]
fn a_rig_that_is_dropped_leaves_no_process() {
    let rig = Rig::with_device("01:00.0=probe").programs(programs()).start().unwrap();
    let device = rig.attach("01:00.0").unwrap();
    let pids = [device.pid(), device.connection().pid(), rig.simulator().pid()];
    assert!(pids.iter().all(|pid| is_running(*pid)));
    drop(device);
    drop(rig);
    assert!(eventually(|| !pids.iter().any(|pid| is_running(*pid))), "{pids:?}");
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_starts() {
    let rig = || Rig::with_device("01:00.0=probe").programs(programs());
    let refused = |error: Error| error.to_string();
    let why = refused(rig().fault(function().at("Fly", 1).kill()).start().unwrap_err());
    assert!(why.contains("there is no request Fly"), "{why}");
    let why = refused(rig().fault(function().at("Fly", 1).kill()).serve(&["01:00.0"]).unwrap_err());
    assert!(why.contains("there is no request Fly"), "{why}");
    let why = refused(rig().device("nonsense").start().unwrap_err());
    assert!(why.contains("dext-sim did not get ready"), "{why}");
    let why = refused(rig().programs(Programs::in_folder("/nowhere")).start().unwrap_err());
    assert!(why.contains("/nowhere/"), "{why}");
    let started = rig().start().unwrap();
    let why = refused(started.attach("first").unwrap_err());
    assert_eq!(why, "'first' is no address of a function: BB:DD.F is");
}

#[test]
fn every_fault_of_the_dext_is_one_that_it_takes() {
    let rig = Rig::with_device("01:00.0=probe").dart(Dart::Strict).programs(programs());
    let simulator = rig.simulator().unwrap();
    let faults = [
        DextFault::FailingCall { selector: 8, nth: 1000, code: IoReturn(0xe000_02cd) },
        DextFault::SlowCalls { selector: 8, nth: 1000, calls: 2, time: Duration::from_millis(5) },
        DextFault::Death { selector: 8, nth: 1000 },
        DextFault::LostNotification { nth: 1000 },
        DextFault::Fragmented { nth: 1000 },
        DextFault::SlowCleanup(Duration::from_millis(1)),
        DextFault::NoMsix,
    ];
    for fault in &faults {
        simulator.fault(fault).unwrap();
    }
    assert_eq!(simulator.fired().unwrap().len(), faults.len());
    let slow = DextFault::SlowCleanup(Duration::from_secs(3600));
    let why = simulator.fault(&slow).unwrap_err().to_string();
    assert!(why.contains("from 1 to 600000"), "{why}");
    // And on its command line.
    let rig = Rig::with_device("01:00.0=probe").programs(programs()).dext_fault(DextFault::NoMsix);
    rig.simulator().unwrap();
}

#[test]
fn every_request_of_a_process_can_be_named() {
    for name in cordon_vmm::faults::FUNCTION_REQUESTS {
        let faults = vec![function().at(name, 1).kill()];
        Faults::new(FaultPlan { faults }).unwrap();
    }
}
