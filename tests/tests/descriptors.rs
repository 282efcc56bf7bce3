//! Functions of one device share the descriptors of a connection process. What one of them takes of these is its
//! own affair: its guest is refused at a limit, and no other guest notices.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::sync::Arc;

use cordon_tests::{Simulator, address, config, program, write_script};
use cordon_vmm::container::GuestRegion;
use cordon_vmm::{AttachError, Container, DmaMode, Function, Host, PassthroughDevice as _};
use ipc::SharedMemory;

/// Regions of one guest: as many as there may be.
const REGIONS: u64 = 1024;
const FUNCTIONS: [&str; 8] =
    ["01:00.0", "01:00.1", "01:00.2", "01:00.3", "01:00.4", "01:00.5", "01:00.6", "01:00.7"];

fn simulator() -> Simulator {
    let devices = FUNCTIONS.map(|one| format!("--device={one}=probe,vectors=1"));
    Simulator::start(&devices.each_ref().map(String::as_str))
}

/// A guest with so many regions of its memory. They are registered by its guest, if at all.
fn guest(regions: u64) -> Arc<Container> {
    let memory = SharedMemory::create("ram", regions * 0x4000).unwrap();
    let container = Arc::new(Container::new(DmaMode::Companion));
    for number in 0..regions {
        let region = GuestRegion {
            iova: 0x1_0000 * number,
            size: 0x4000,
            memory: memory.try_clone().unwrap().into(),
            offset: 0x4000 * number,
            writable: true,
        };
        container.map(region).unwrap();
    }
    container
}

fn attach(host: &Host, function: &str, regions: u64) -> Result<Arc<Function>, AttachError> {
    host.attach(address(function), &guest(regions), None)
}

#[test]
fn every_function_of_a_device_has_room_for_all_its_regions() {
    let simulator = simulator();
    let host = Host::new(config(&simulator));
    let attached = FUNCTIONS.map(|one| attach(&host, one, REGIONS).unwrap());
    for function in &attached {
        assert_eq!(function.connection().pid(), attached[0].connection().pid());
        assert_eq!(function.returns(), 0);
        function.config_read(0, &mut [0; 4]).unwrap();
    }
}

#[test]
fn one_that_takes_more_descriptors_than_there_are_is_refused_and_no_sibling_notices() {
    let simulator = simulator();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device-proc");
    let few =
        format!("#!/bin/sh\nulimit -n 1500\nexec {} \"$@\"", program("device-proc").display());
    write_script(&path, &few);
    let mut config = config(&simulator);
    config.device_proc = path;
    let host = Host::new(config);
    let first = attach(&host, FUNCTIONS[0], REGIONS).unwrap();
    let pid = first.connection().pid();
    let refused = attach(&host, FUNCTIONS[1], REGIONS).err().unwrap();
    let refused = ipc::chain(&refused);
    assert!(refused.contains("no descriptors left for memory"), "{refused}");
    // What it took was given back, and there is room for a guest that takes less.
    for regions in [64, 64] {
        let second = attach(&host, FUNCTIONS[1], regions).unwrap();
        second.config_read(0, &mut [0; 4]).unwrap();
        host.detach(&second);
    }
    first.config_read(0, &mut [0; 4]).unwrap();
    assert_eq!((first.connection().pid(), first.returns(), first.replacements()), (pid, 0, 0));
}
