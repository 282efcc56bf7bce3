//! Hosts where a bus:device.function is not unique: what is beneath which root bridge is shown, an
//! address that means several devices is refused, and an endpoint names the one that is meant.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::process::{Command, Output};

use cordon_tests::{Simulator, Vmm, address, config, program};
use cordon_vmm::{DmaMode, HostConfig, PassthroughDevice as _};
use serde_json::Value;

fn simulator() -> Simulator {
    Simulator::start(&[
        "--device=01:00.0=probe,root=apciec0",
        "--device=01:00.1=probe,root=apciec0",
        "--device=01:00.0=probe,root=apciec1,vectors=4",
        "--device=02:00.0=probe,root=apciec1",
    ])
}

fn beneath(simulator: &Simulator, root: &str) -> String {
    format!("sim@{root}:{}", simulator.socket().display())
}

fn vmm(simulator: &Simulator, root: &str) -> Vmm {
    let config = HostConfig::new(program("device-proc"), beneath(simulator, root));
    Vmm::new(config, DmaMode::Direct)
}

fn cordon(arguments: &[&str]) -> Output {
    Command::new(program("cordon")).args(arguments).output().unwrap()
}

#[test]
fn an_address_that_means_several_devices_is_refused_with_their_root_bridges() {
    let simulator = simulator();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let refused = vmm.host.attach(address("01:00.0"), &vmm.container, None).err().unwrap();
    let said = refused.to_string();
    assert!(said.contains("01:00.0") && said.contains("apciec0, apciec1"), "{said}");
    assert!(said.contains("--dext=iokit@apciec0"), "{said}");
    // Others are what they are, with the functions of their own device beside them.
    assert_eq!(vmm.attach("02:00.0").info().msix.unwrap().vectors, 32);
    assert_eq!(vmm.attach("01:00.1").info().msix.unwrap().vectors, 32);
}

#[test]
fn an_endpoint_beneath_a_root_bridge_has_its_devices_only() {
    let simulator = simulator();
    let (first, second) = (vmm(&simulator, "apciec0"), vmm(&simulator, "apciec1"));
    assert_eq!(first.attach("01:00.0").info().msix.unwrap().vectors, 32);
    assert_eq!(second.attach("01:00.0").info().msix.unwrap().vectors, 4);
    let none = first.host.attach(address("02:00.0"), &first.container, None).err().unwrap();
    assert!(none.to_string().contains("has no function 02:00.0"), "{none}");
}

#[test]
fn the_commands_show_root_bridges_and_want_one() {
    let simulator = simulator();
    let place = simulator.endpoint();
    let listed = cordon(&["devices", "--dext", &place, "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let devices = listed["devices"].as_array().unwrap();
    let of = |one: &Value| format!("{} {}", one["address"], one["root_bridge"]).replace('"', "");
    let shown: Vec<String> = devices.iter().map(of).collect();
    let expected = ["01:00.0 apciec0", "01:00.0 apciec1", "01:00.1 apciec0", "02:00.0 apciec1"];
    assert_eq!(shown, expected);
    let refused = cordon(&["inspect", "01:00.0", "--dext", &place]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("apciec0, apciec1"), "{said}");
    let inspected = cordon(&["inspect", "01:00.0", "--dext", &beneath(&simulator, "apciec1")]);
    let said = String::from_utf8(inspected.stdout).unwrap();
    assert!(said.contains("Beneath root bridge apciec1"), "{said}");
}

#[test]
fn a_place_where_something_else_is_found_is_passed_over() {
    let simulator = Simulator::usual();
    let endpoint = format!("sim:{}", simulator.socket().display());
    let registry = dext_client::registry(&endpoint.parse().unwrap()).unwrap();
    let services: Vec<u64> =
        registry.services().unwrap().iter().map(|service| service.id).collect();
    assert!(services.len() > 1);
    for place in services.into_iter().chain([u64::MAX]) {
        for wanted in ["01:00.0", "01:00.1"].map(address) {
            let found = dext_client::open_function_at(registry.as_ref(), wanted, place).unwrap();
            assert_eq!(found.address(), wanted, "looked for at {place}");
        }
    }
    let none = dext_client::open_function_at(registry.as_ref(), address("07:00.0"), 0).err();
    assert!(none.unwrap().to_string().contains("07:00.0"));
}
