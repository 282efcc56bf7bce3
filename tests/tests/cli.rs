//! Bad input on the command line: one clear line that names the thing, exit status 1 or 2, no
//! panic, no process left.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::process::Command;

use cordon_tests::{Simulator, Vmm, config, program};
use cordon_vmm::DmaMode;
use ipc::wire::dext::selector;
use serde_json::Value;

/// Exit status, standard output, standard error.
fn cordon(arguments: &[&str]) -> (i32, String, String) {
    run("cordon", arguments)
}

fn run(name: &str, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(program(name)).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn refused(name: &str, arguments: &[&str], status: i32, says: &[&str]) {
    let (code, _, errors) = run(name, arguments);
    assert_eq!(code, status, "{arguments:?}: {errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    for part in says {
        assert!(errors.contains(part), "{arguments:?} does not say {part:?}: {errors}");
    }
    if status == 1 {
        let lines: Vec<&str> =
            errors.lines().filter(|l| !l.trim_start().starts_with("WARN")).collect();
        assert_eq!(lines.len(), 1, "{errors}");
    }
}

#[test]
fn what_cannot_be_is_named() {
    let simulator = Simulator::usual();
    let dext = format!("--dext={}", simulator.endpoint());
    let none = "--dext=sim:/nonexistent/dext";
    refused("cordon", &["inspect", "07:00.0", &dext], 1, &["no such device", "07:00.0"]);
    refused("cordon", &["inspect", "banana", &dext], 2, &["banana", "BB:DD.F"]);
    refused("cordon", &["inspect", "01:20.0", &dext], 2, &["device number 0x20"]);
    refused("cordon", &["devices", none], 1, &["No dext at sim:/nonexistent/dext"]);
    refused("cordon", &["devices", "--dext=usb:7"], 1, &["usb:7", "sim:PATH or iokit"]);
    refused("cordon", &["devices", "--dext=iokit"], 1, &["iokit"]);
    refused("cordon", &["devices"], 2, &["--dext"]);
    refused("cordon", &[], 2, &["Usage"]);
    refused("cordon", &["demo", "--frobnicate"], 2, &["--frobnicate"]);
    let missing = "--device-proc=/nonexistent/device-proc";
    refused("cordon", &["devices", &dext, missing], 1, &["device-proc", "/nonexistent"]);
    refused("cordon", &["demo", missing], 1, &["/nonexistent/device-proc"]);
    refused("cordon", &["demo", "--dext-sim=/nonexistent/sim"], 1, &["/nonexistent/sim"]);
    // A program that is there and is another one.
    refused("cordon", &["devices", &dext, "--device-proc=/bin/true"], 1, &["did not start"]);
    simulator.assert_released("01:00.0");
}

#[test]
fn what_dext_sim_cannot_be_is_named() {
    let socket = "--socket=/tmp/cordon-never";
    refused("dext-sim", &[socket, "--device=01:00.0=gpu"], 2, &["gpu"]);
    refused("dext-sim", &[socket, "--device=01:00.0=nvme,size=1"], 2, &["size"]);
    refused("dext-sim", &[socket], 2, &["--device"]);
    let twice = [socket, "--device=01:00.0=probe", "--device=01:00.0=probe"];
    refused("dext-sim", &twice, 1, &["01:00.0 is given twice"]);
    let image = "--device=01:00.0=nvme,image=/nonexistent.img";
    refused("dext-sim", &[socket, image], 1, &["/nonexistent.img"]);
    let fault = "--fault=explode:nth=1";
    refused("dext-sim", &[socket, "--device=01:00.0=probe", fault], 2, &["explode"]);
    let fault = "--fault=fail:selector=99,nth=1,code=0xe00002bd";
    let says = ["no selector 99", "0 GetIdentity", "17 ResetDevice"];
    refused("dext-sim", &[socket, "--device=01:00.0=probe", fault], 2, &says);
    let simulator = Simulator::usual();
    let taken = format!("--socket={}", simulator.socket().display());
    refused("dext-sim", &[&taken, "--device=01:00.0=probe"], 1, &["Cannot listen"]);
}

#[test]
fn device_proc_alone_says_what_is_missing() {
    let arguments = ["function", "--address=01:00.0", "--dext=sim:/x", "--tube-fd=77"];
    refused("device-proc", &arguments, 1, &["No tube at descriptor 77"]);
    refused("device-proc", &["function"], 2, &["--address"]);
}

#[test]
fn what_cannot_be_served_is_named_and_nothing_is_left() {
    let simulator = Simulator::usual();
    let dext = format!("--dext={}", simulator.endpoint());
    let directory = tempfile::tempdir().unwrap();
    let socket = format!("--socket={}", directory.path().join("s").display());
    let serve = |more: &[&str], status, says: &[&str]| {
        let mut arguments = vec!["serve", &dext];
        arguments.extend(more);
        refused("cordon", &arguments, status, says);
        simulator.assert_released("01:00.0");
    };
    serve(&["--device=07:00.0", &socket], 1, &["07:00.0"]);
    serve(&["--device=01:00.0"], 2, &["--socket"]);
    serve(&["--device=01:00.0", "--device=01:00.1", &socket], 1, &["2 --device but 1 --socket"]);
    serve(&["--device=01:00.0", "--socket=/nonexistent/s"], 1, &["/nonexistent/s"]);
    let beside = format!("--companion-socket={}", directory.path().join("c").display());
    let guest = "--companion-guest=00:05.0";
    let one = "--device=01:00.0";
    serve(&[one, &socket, &beside], 1, &["1 --companion-socket", "0 --companion-guest"]);
    serve(&[one, &socket, &beside, guest], 1, &["needs --dma companion"]);
    serve(&[one, &socket, &beside, "--companion-guest=00:05"], 2, &["00:05"]);
    let companion = "--dma=companion";
    let many = "--companion-entries=5000";
    serve(&[one, &socket, companion, &beside, guest, many], 1, &["01:00.0", "5000", "4096"]);
    serve(&[one, &socket, "--control=/nonexistent/c"], 1, &["/nonexistent/c"]);
    let long = format!("--socket=/tmp/{}", "x".repeat(200));
    serve(&["--device=01:00.0", &long], 1, &["Cannot listen"]);
    let twice = ["--device=01:00.0", "--device=01:00.0", &socket, &socket];
    serve(&twice, 1, &["duplicate owner for host PCI 01:00.0"]);
    // Somebody listens there.
    let taken = directory.path().join("taken");
    let _listener = std::os::unix::net::UnixListener::bind(&taken).unwrap();
    let taken = format!("--socket={}", taken.display());
    serve(
        &["--device=01:00.0", &taken],
        1,
        &["Cannot listen", "another program has its socket there"],
    );
}

#[test]
fn doctor_asks_every_probe_of_every_profile_and_says_what_to_try_on_a_mac() {
    let simulator = Simulator::usual();
    let (code, text, errors) = cordon(&["doctor", "--dext", &simulator.endpoint()]);
    assert_eq!(code, 0, "{errors}");
    let held = text.lines().filter(|line| line.starts_with("ok") && line.ends_with("probes hold"));
    assert_eq!(held.count(), 4, "{text}");
    assert!(text.contains("a confined process lists 2 functions"), "{text}");
    let (code, text, _) = cordon(&["doctor", "--mac-bringup"]);
    assert!(code == 0 && text.contains("None of this has run on a Mac yet"), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with(char::is_numeric)).count(), 6);
    let dext = simulator.endpoint();
    let (code, _, errors) = cordon(&["devices", "--dext", &dext, "--sandbox-exec", "/x"]);
    assert!(code == 1 && errors.contains("is for macOS"), "{errors}");
}

#[test]
fn devices_lists_what_there_is_and_who_has_it() {
    let simulator = Simulator::usual();
    let dext = format!("--dext={}", simulator.endpoint());
    let (code, text, errors) = cordon(&["devices", &dext, "--json"]);
    assert_eq!(code, 0, "{errors}");
    let listing: Value = serde_json::from_str(&text).unwrap();
    let devices = listing["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 2);
    assert_eq!(devices[0]["address"], "01:00.0");
    assert_eq!(devices[0]["msix_vectors"], 5);
    assert_eq!(devices[0]["claimed"], false);
    assert_eq!(devices[1]["bars"].as_array().unwrap().len(), 4);

    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let proxy = vmm.attach("01:00.0");
    let (_, text, _) = cordon(&["devices", &dext, "--json"]);
    let listing: Value = serde_json::from_str(&text).unwrap();
    let disk = &listing["devices"][0];
    assert_eq!(disk["claimed"], true);
    let pids: Vec<u64> =
        disk["clients"].as_array().unwrap().iter().map(|c| c["pid"].as_u64().unwrap()).collect();
    assert!(pids.contains(&proxy.connection().pid().into()), "{pids:?}");
    assert!(pids.contains(&proxy.pid().into()), "{pids:?}");
    let (_, text, _) = cordon(&["devices", &dext]);
    assert!(text.contains("claimed; open in device-proc ["), "{text}");
}

#[test]
fn inspect_shows_a_free_function_whole_and_leaves_nothing() {
    let simulator = Simulator::usual();
    let dext = format!("--dext={}", simulator.endpoint());
    let (code, text, errors) = cordon(&["inspect", "01:00.1", &dext, "--attach", "--json"]);
    assert_eq!(code, 0, "{errors}");
    let one: Value = serde_json::from_str(&text).unwrap();
    let names: Vec<&str> = one["config"]["capabilities"]
        .as_array()
        .unwrap()
        .iter()
        .map(|capability| capability["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["Power Management", "MSI", "Express", "MSI-X", "Device Serial Number"]);
    let attached = &one["attached"];
    assert_eq!(attached["regions"].as_array().unwrap().len(), 9);
    assert_eq!(attached["interrupts"][2]["count"], 32);
    assert_eq!(attached["dma"]["live_regions"], 0);
    for process in attached["processes"].as_array().unwrap() {
        let layers = process["sandbox"]["layers"].as_array().unwrap();
        assert!(layers.iter().all(|layer| layer["state"] != "MISSING"), "{layers:?}");
    }
    simulator.assert_released("01:00.1");
}

#[test]
fn inspect_looks_without_a_claim_unless_it_is_asked_to_attach() {
    let simulator = Simulator::usual();
    let dext = format!("--dext={}", simulator.endpoint());
    // A claim would fail, and be seen to.
    simulator.fault(&format!("fail:selector={},nth=1,code=0xe00002bd", selector::CLAIM));
    let (code, text, errors) = cordon(&["inspect", "01:00.1", &dext]);
    assert_eq!(code, 0, "{errors}");
    assert!(text.contains("Free (--attach shows") && text.contains("MSI-X"), "{text}");
    let (_, text, _) = cordon(&["inspect", "01:00.1", &dext, "--json"]);
    let one: Value = serde_json::from_str(&text).unwrap();
    assert!(one["attached"].is_null() && one["claimed_by"].is_null(), "{one}");
    assert_eq!(simulator.fired(), [0]);
    refused("cordon", &["inspect", "01:00.1", &dext, "--attach"], 1, &["Claim", "01:00.1"]);
    assert_eq!(simulator.fired(), [1]);
    simulator.assert_released("01:00.1");
}

#[test]
fn inspect_of_a_claimed_function_shows_its_owner_and_does_not_disturb_it() {
    use cordon_vmm::PassthroughDevice as _;
    let simulator = Simulator::usual();
    let vmm = Vmm::new(config(&simulator), DmaMode::Direct);
    let proxy = vmm.attach("01:00.0");
    let dext = format!("--dext={}", simulator.endpoint());
    let (code, text, _) = cordon(&["inspect", "01:00.0", &dext]);
    assert_eq!(code, 0);
    assert!(text.contains("Claimed; open in"), "{text}");
    assert!(text.contains(&proxy.connection().pid().to_string()), "{text}");
    proxy.config_read(0, &mut [0; 4]).unwrap();
    assert_eq!(simulator.held("01:00.0").1, 1);
}
