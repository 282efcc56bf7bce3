//! The ways in which a dext or its device ends, as the typed client sees them: a loss with its code,
//! on a connection that nobody closes.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::time::Duration;

use cordon_tests::{RAM, RAM_BASE, Simulator, address, eventually};
use dext_client::sim::SimulatedRegistry;
use dext_client::{Behind, Client, DextError, Registry as _, open_function};
use ipc::poll::{self, Source};
use ipc::wire::dext::IoReturn;
use ipc::{Access, Deadline, SharedMemory};

const ENDINGS: [(&str, IoReturn); 5] = [
    ("offline", IoReturn::OFFLINE),
    ("no-device", IoReturn::NO_DEVICE),
    ("not-ready", IoReturn::NOT_READY),
    ("ipc-error", IoReturn::IPC_ERROR),
    ("port-dead", IoReturn::PORT_DEAD),
];
const PROBE: &str = "01:00.1";
const NVME: &str = "01:00.0";

fn registry(simulator: &Simulator) -> SimulatedRegistry {
    SimulatedRegistry::new(&simulator.socket())
}

fn open(simulator: &Simulator, function: &str) -> Client {
    open_function(&registry(simulator), address(function)).unwrap()
}

/// A client that holds everything there is to hold.
fn opener(simulator: &Simulator, function: &str) -> Client {
    let mut client = open(simulator, function);
    client.claim().unwrap();
    client.set_up_interrupts().unwrap();
    client.wait_interrupt().unwrap();
    register(&mut client).unwrap();
    client
}

fn register(client: &mut Client) -> Result<(u64, u64), DextError> {
    let memory = SharedMemory::create("ram", RAM).unwrap();
    let window = memory.map_all(Access::ReadWrite).unwrap();
    let behind = Behind { memory: &memory, offset: 0, writable: true };
    client.register_dma(RAM_BASE, window.address(), RAM, behind)
}

/// What each call of a client comes back with, when none succeeds.
fn losses(client: &mut Client) -> Vec<DextError> {
    vec![
        client.claim().unwrap_err(),
        client.config_read(0, 4).unwrap_err(),
        client.config_write(4, 2, 6).unwrap_err(),
        client.bars().unwrap_err(),
        client.map_bar(0).unwrap_err(),
        client.map_interrupt_page().unwrap_err(),
        client.set_up_interrupts().unwrap_err(),
        client.wait_interrupt().unwrap_err(),
        client.check_interrupt().unwrap_err(),
        client.set_irq_mask([0; 4]).unwrap_err(),
        client.reset().unwrap_err(),
        register(client).unwrap_err(),
        client.unregister_dma(RAM_BASE).unwrap_err(),
        client.is_claimed().unwrap_err(),
    ]
}

/// Whether the connection is open and quiet: neither closed nor notified.
fn is_quiet(client: &Client) -> bool {
    let liveness = client.liveness().unwrap();
    let sources = [Source::hangup(&liveness, ()), Source::readable(client.completion(), ())];
    poll::wait(&sources, Some(Deadline::after(Duration::from_millis(50)))).unwrap().is_empty()
}

#[test]
fn every_ending_is_a_loss_with_its_code_and_hangs_nothing_up() {
    for (ending, code) in ENDINGS {
        let simulator = Simulator::usual();
        let mut client = opener(&simulator, PROBE);
        simulator.end(PROBE, ending);
        for error in losses(&mut client) {
            assert!(error.is_lost(), "{ending}: {error:?}");
            assert_eq!(error.code(), Some(code), "{ending}: {error:?}");
        }
        assert!(is_quiet(&client), "{ending}");
    }
}

#[test]
fn it_ends_for_all_clients_of_the_function() {
    for (ending, code) in ENDINGS {
        let simulator = Simulator::usual();
        let (_opener, mut second) = (opener(&simulator, PROBE), open(&simulator, PROBE));
        simulator.end(PROBE, ending);
        for error in losses(&mut second) {
            assert_eq!(error.code(), Some(code), "{ending}: {error:?}");
            // NotReady is what these methods say to one that has not set interrupts up.
            let operations = ["WaitInterrupt", "CheckInterrupt", "SetIRQMask"];
            let ambiguous = code == IoReturn::NOT_READY
                && operations.iter().any(|operation| error.to_string().contains(operation));
            assert_eq!(error.is_lost(), !ambiguous, "{ending}: {error:?}");
        }
        assert!(is_quiet(&second), "{ending}");
    }
}

#[test]
fn what_was_held_is_released_and_the_other_function_goes_on() {
    let simulator = Simulator::usual();
    let mut nvme = opener(&simulator, NVME);
    let probe = opener(&simulator, PROBE);
    assert_eq!(simulator.held(PROBE), (1, 1, 1, true));
    simulator.end(PROBE, "offline");
    assert_eq!(simulator.held(PROBE), (1, 0, 0, false), "only the connection is left");
    assert_eq!(simulator.held(NVME), (1, 1, 1, true));
    nvme.config_read(0, 4).unwrap();
    nvme.reset().unwrap();
    drop(probe);
    simulator.assert_released(PROBE);
}

#[test]
fn the_service_is_gone_and_comes_back_as_another_one() {
    let simulator = Simulator::usual();
    let mut old = opener(&simulator, PROBE);
    let services = registry(&simulator).services().unwrap();
    simulator.end(PROBE, "no-device");
    let left = registry(&simulator).services().unwrap();
    assert_eq!(left.len(), 1);
    let ended = services.iter().find(|one| one.id != left[0].id).unwrap();
    let refused = registry(&simulator).open(ended.id, 0).err().unwrap();
    assert_eq!(refused.code(), Some(IoReturn::NOT_FOUND));
    let none = open_function(&registry(&simulator), address(PROBE)).err().unwrap();
    assert!(matches!(none, DextError::NoSuchDevice(_)), "{none}");

    simulator.bring_back(PROBE);
    let refused = registry(&simulator).open(ended.id, 0).err().unwrap();
    assert_eq!(refused.code(), Some(IoReturn::NOT_FOUND), "the old service stays gone");
    let mut new = opener(&simulator, PROBE);
    let registers = new.map_bar(0).unwrap().window;
    assert_eq!(registers.read::<u32>(0).unwrap(), u32::from_le_bytes(*b"PRBE"));
    // The old connection stays lost, and what it does not hold any more is not taken from the new.
    assert!(old.config_read(0, 4).unwrap_err().is_lost());
    assert!(!registry(&simulator).services().unwrap().iter().any(|one| one.clients.len() > 1));
    drop(old);
    assert!(eventually(|| simulator.held(PROBE) == (1, 1, 1, true)));
    new.unregister_dma(RAM_BASE).unwrap();
}

#[test]
fn the_device_stands_still_and_begins_anew() {
    let simulator = Simulator::usual();
    let mut client = opener(&simulator, PROBE);
    let registers = client.map_bar(0).unwrap().window;
    registers.write(0x10, 0x1234_5678u32).unwrap();
    simulator.end(PROBE, "offline");
    // The mapping stays, and nobody carries out what is written to it.
    cordon_tests::start_copy(&registers, RAM_BASE, RAM_BASE + 4096, 4096, 1);
    assert!(is_quiet(&client));
    assert_eq!(registers.read::<u32>(0x5c).unwrap(), 0);
    simulator.bring_back(PROBE);
    let mut client = open(&simulator, PROBE);
    client.claim().unwrap();
    let registers = client.map_bar(0).unwrap().window;
    assert_eq!(registers.read::<u32>(0x10).unwrap(), 0);
    assert_eq!(registers.read::<u32>(0x58).unwrap(), 0);
}

#[test]
fn a_fault_ends_the_function_that_gets_the_call_and_brings_it_back_in_time() {
    let fault = "--fault=end:selector=17,nth=2,as=ipc-error,back=300";
    let devices = ["--device=01:00.0=nvme,size=16M", "--device=01:00.1=probe", fault];
    let simulator = Simulator::start(&devices);
    let (mut nvme, mut probe) = (opener(&simulator, NVME), opener(&simulator, PROBE));
    nvme.reset().unwrap();
    let error = probe.reset().unwrap_err();
    assert_eq!((error.is_lost(), error.code()), (true, Some(IoReturn::IPC_ERROR)));
    assert_eq!(simulator.fired(), [1]);
    assert_eq!(registry(&simulator).services().unwrap().len(), 1);
    nvme.reset().unwrap();
    assert!(eventually(|| registry(&simulator).services().unwrap().len() == 2));
    open(&simulator, PROBE);
    assert!(probe.config_read(0, 4).unwrap_err().is_lost());
}

#[test]
fn what_is_no_end_is_named() {
    let simulator = Simulator::usual();
    let end = |function: &str, ending: &str| {
        let command = serde_json::json!({ "end": { "address": function, "as": ending } });
        simulator.control(&command)["error"].as_str().unwrap().to_owned()
    };
    assert!(end(PROBE, "smoke").contains("'smoke' is no way to end: offline"));
    assert!(end("07:00.0", "offline").contains("07:00.0"));
    let there = serde_json::json!({ "return": { "address": PROBE } });
    assert_eq!(simulator.control(&there)["error"], "it is there");
    let mut client = open(&simulator, PROBE);
    client.config_read(0, 4).unwrap();
}
