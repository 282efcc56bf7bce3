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
        let lines: Vec<&str> = errors.lines().filter(|line| !line.contains("Z  WARN ")).collect();
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
    // As on a Mac, whose tools are not there: what they would say is unknown.
    let folder = tempfile::tempdir().unwrap();
    let tools = format!("--tools={}", folder.path().display());
    let (code, text, errors) = cordon(&["doctor", &tools, "--dext", &simulator.endpoint()]);
    assert_eq!(code, 3, "{errors}");
    let held = text.lines().filter(|line| line.starts_with("ok") && line.ends_with("probes hold"));
    assert_eq!(held.count(), 7, "{text}");
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

/// The commands that a program's help lists, the hidden ones not among them.
fn commands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let list = list.take_while(|line| !line.is_empty());
    // What a command does is longer than a line at times.
    let list = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    list.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

#[test]
fn every_help_fits_80_columns() {
    let (mut walked, mut wide) = (0, Vec::new());
    let mut look = |name: &str, arguments: &[&str]| {
        let (code, help, errors) = run(name, arguments);
        assert_eq!(code, 0, "{name} {arguments:?}: {errors}");
        assert!(help.lines().count() > 3, "{name} {arguments:?}: {help}");
        walked += 1;
        let of_it = help.lines().filter(|line| line.chars().count() > 80);
        wide.extend(of_it.map(|line| format!("{name} {arguments:?}: {line}")));
        help
    };
    for name in ["cordon", "dext-sim"] {
        look(name, &["-h"]);
        let help = look(name, &["--help"]);
        for command in commands(&help) {
            for asked in ["-h", "--help"] {
                // That of `help` is told by itself.
                match command.as_str() {
                    "help" => look(name, &["help"]),
                    command => look(name, &[command, asked]),
                };
            }
        }
    }
    let help = look("cordon", &["ctl", "--help"]);
    let asked = commands(&help);
    assert!(asked.len() > 5, "{asked:?}");
    for command in asked.iter().filter(|command| *command != "help") {
        look("cordon", &["ctl", command, "--help"]);
    }
    look("cordon", &["generate", "--help"]);
    look("device-proc", &["--help"]);
    look("bench", &["--help"]);
    assert!(walked >= 2 * 7 + 6, "{walked} were walked");
    assert!(wide.is_empty(), "{wide:#?}");
}

#[test]
fn programs_say_their_names_and_the_same_version_wherever_they_were_built() {
    for name in ["cordon", "dext-sim", "device-proc"] {
        let (code, text, _) = run(name, &["--version"]);
        assert_eq!((code, text), (0, format!("{name} {}\n", env!("CARGO_PKG_VERSION"))));
    }
}

#[test]
fn json_objects_carry_their_type() {
    let simulator = Simulator::usual();
    let dext = format!("--dext={}", simulator.endpoint());
    for (arguments, kind) in [
        (&["devices", &dext, "--json"][..], "devices"),
        (&["inspect", "01:00.0", &dext, "--json"], "inspection"),
        (&["doctor", &dext, "--json"], "doctor"),
    ] {
        let (_, text, errors) = cordon(arguments);
        let object: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{errors}"));
        assert_eq!(object["type"], kind, "{object}");
    }
    let (code, text, errors) = cordon(&["torture", "--kills=3", "--json"]);
    assert_eq!(code, 0, "{text}{errors}");
    let mut last = Value::Null;
    for line in text.lines() {
        last = serde_json::from_str(line).unwrap();
        assert!(last["type"].is_string(), "{line}");
    }
    assert_eq!(last["type"], "summary");
}

#[test]
fn a_torture_draws_how_long_recoveries_took_and_a_place_that_cannot_be_written_is_told_first() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("recovery.svg");
    let svg = format!("--svg={}", picture.display());
    let kill = "--kill=function=3,connection=1";
    let (code, text, errors) = cordon(&["torture", "--kills=12", kill, &svg]);
    assert_eq!(code, 0, "{text}{errors}");
    let drawn = std::fs::read_to_string(&picture).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"), "{drawn}");
    for part in ["12 deaths under load, without a standby", "replaced", "away and back", "polyline"]
    {
        assert!(drawn.contains(part), "{part}: {drawn}");
    }
    let nowhere = folder.path().join("none/recovery.svg");
    let (code, text, errors) = cordon(&["torture", &format!("--svg={}", nowhere.display())]);
    assert_eq!((code, text.as_str()), (1, ""), "nothing was begun: {errors}");
    assert!(errors.contains(&format!("cannot write {}: ", nowhere.display())), "{errors}");
}

#[test]
fn a_torture_says_how_far_it_is_and_nothing_for_each_kill() {
    let (code, text, errors) = cordon(&["torture", "--kills=20", "--with=kill,garbage"]);
    assert_eq!(code, 0, "{text}{errors}");
    assert_eq!(errors, "", "each death is counted, and none is a warning");
    let of_a_kill = text.lines().filter(|line| line.contains("process") && line.contains("died"));
    assert_eq!(of_a_kill.count(), 0, "{text}");
    assert!(text.contains("20 kills, "), "{text}");
    let slow = text.lines().filter(|line| line.contains(": back in "));
    assert!(slow.count() <= 20, "{text}");
    // No heading comes twice.
    let mut headings: Vec<&str> =
        text.lines().filter(|line| line.contains(" s  ")).map(|line| &line[10..]).collect();
    let all = headings.len();
    headings.sort_unstable();
    headings.dedup();
    assert!(headings.len() == all && all >= 2, "{text}");
}

#[test]
fn names_come_from_the_list_and_all_shows_what_the_host_has() {
    let simulator = Simulator::usual();
    let dext = format!("--dext={}", simulator.endpoint());
    let (code, text, errors) = cordon(&["devices", &dext, "--all", "--json"]);
    assert_eq!(code, 0, "{errors}");
    let listing: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(listing["devices"][0]["class_name"], "Non-Volatile memory controller");
    // What the list has no name for is null, and what is simulated is in no list.
    assert!(listing["devices"][0].get("vendor_name").is_some_and(Value::is_null), "{listing:#}");
    let folder = std::path::Path::new("/sys/bus/pci/devices");
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            let functions = listing["host"]["functions"].as_array().unwrap();
            assert_eq!(functions.len(), entries.count(), "{listing:#}");
            for one in functions {
                let address = one["address"].as_str().unwrap();
                let driver = std::fs::read_link(folder.join(address).join("driver")).ok();
                let name = driver.as_ref().and_then(|link| link.file_name()?.to_str());
                assert_eq!(one["driver"].as_str(), name, "{one:#}");
            }
        }
        // Where it cannot be known that is said, and the listing is there all the same.
        Err(_) => assert!(listing["host"]["unknown"].is_string(), "{listing:#}"),
    }
    let (_, text, _) = cordon(&["devices", &dext, "--json"]);
    let listing: Value = serde_json::from_str(&text).unwrap();
    assert!(listing.get("host").is_none(), "nobody asked: {listing:#}");
    let (_, text, _) = cordon(&["devices", &dext, "--all"]);
    assert!(text.contains("The host itself has") || text.contains("cannot be told"), "{text}");
}

#[test]
fn a_lister_that_hangs_is_told_once() {
    let fault = "--fault=delay:selector=0,nth=1,calls=9,ms=60000";
    let simulator = Simulator::start(&["--device=01:00.0=probe", fault]);
    let (code, _, errors) = cordon(&["devices", "--dext", &simulator.endpoint()]);
    assert_eq!((code, errors.lines().count()), (1, 1), "{errors}");
    assert!(errors.contains("lister process") && errors.contains("in time"), "{errors}");
}
