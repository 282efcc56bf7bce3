//! Real functions served by our processes: an NVMe controller whose data is verified while processes are killed, the
//! device for teaching by its pin, and both as a user who is not root.

use std::sync::OnceLock;
use std::time::Duration;

use cordon_tests::verdict;
use serde_json::{Value, json};
use vfio_guest::checks::number;
use vfio_guest::script::Ending;
use vfio_guest::{Emulated, Ran, Step};

use super::{run, with_programs};

/// Bytes of the NVMe's namespace: more than are moved.
const DISK: u64 = 128 << 20;
/// Bytes that are moved and verified at least.
const MOVED: u64 = 64 << 20;
/// Function processes that are killed: of the NVMe, under verified I/O, and of edu.
const KILLS: u64 = 200;
const EDU_KILLS: u64 = 20;
/// Connection processes that are killed under verified I/O, and that are stopped.
const CONNECTION_KILLS: u64 = 20;
const STOPS: u64 = 1;
/// A user who owns the groups, and what a manager lets them lock: guest memory and some.
const USER: u32 = 1000;
/// Less than guest memory, in bytes.
const LITTLE: u64 = 1 << 20;
const NVME: &str = "0000:01:00.0";
const EDU: &str = "0000:02:00.0";
/// Two functions of one group, of which the kernel's own driver has the second.
const MIXED: [&str; 2] = ["0000:03:00.0", "0000:03:00.1"];
/// One that the kernel's own driver has.
const FOREIGN: &str = "0000:04:00.0";

/// One that is served to a client of vfio-user, and has to reach where it may not.
const SERVED: &str = "0000:06:00.0";
/// Two functions of one group, both bound.
const PAIR: [&str; 2] = ["0000:05:00.0", "0000:05:00.1"];
/// Function processes of the first of them that are killed.
const PAIR_KILLS: u64 = 20;

/// Two functions of one group that the kernel can reset only together.
const TOGETHER: [&str; 2] = ["0000:07:00.0", "0000:07:00.1"];

/// The one boot that these share.
fn ran() -> &'static Ran {
    static RAN: OnceLock<Result<Ran, String>> = OnceLock::new();
    let ran = RAN.get_or_init(|| {
        let mut machine =
            with_programs(&["cordon", "device-proc", "vfio-bus", "vfio-check", "vfio-serve"]);
        assert_eq!(machine.add(&Emulated::Nvme { bytes: DISK }), [NVME]);
        assert_eq!(machine.add(&Emulated::Edu), [EDU]);
        let small = 16 << 20;
        assert_eq!(machine.add_unbound(&Emulated::NvmePair { bytes: small }), MIXED);
        machine.bind(MIXED[0]);
        assert_eq!(machine.add_unbound(&Emulated::Nvme { bytes: small }), [FOREIGN]);
        assert_eq!(machine.add(&Emulated::NvmePair { bytes: small }), PAIR);
        assert_eq!(machine.add(&Emulated::Nvme { bytes: small }), [SERVED]);
        assert_eq!(machine.add(&Emulated::E1000Pair), TOGETHER);
        let demo = |name: &str, address: &str, kills: u64| {
            let kills = format!("--kills={kills}");
            let step = Step::new(name, "/bin/cordon").timeout(Duration::from_secs(400));
            step.arguments(["demo", "--json", "--vfio", address, &kills])
        };
        machine.step(demo("nvme", NVME, KILLS));
        machine.step(demo("edu", EDU, EDU_KILLS));
        machine.step(demo("group", PAIR[0], PAIR_KILLS).arguments(["--vfio", PAIR[1]]));
        machine.step(demo("user", NVME, 1).user(USER));
        machine.step(demo("little", NVME, 1).user(USER).locked_memory(LITTLE));
        machine.step(demo("mixed", MIXED[0], 1));
        machine.step(demo("foreign", FOREIGN, 1));
        machine.step(demo("absent", "0000:77:00.0", 1));
        let devices = ["devices", "--json", "--dext", "vfio"];
        machine.step(Step::new("devices", "/bin/cordon").arguments(devices));
        let asked = |name: &str, words: &[&str]| {
            let words = words.iter().copied().chain(["--json", "--dext", "vfio"]);
            Step::new(name, "/bin/cordon").arguments(words)
        };
        machine.step(asked("all devices", &["devices", "--all"]));
        machine.step(asked("inspect", &["inspect", NVME]));
        machine.step(asked("inspect of two", &["inspect", TOGETHER[0]]));
        machine.step(Step::new("bus", "/bin/vfio-bus").arguments(TOGETHER));
        machine.step(asked("doctor", &["doctor"]));
        machine.step(asked("doctor of a user", &["doctor"]).user(USER).locked_memory(LITTLE));
        let serve = Step::new("serve", "/bin/vfio-serve").timeout(Duration::from_secs(240));
        machine.step(serve.arguments([SERVED]));
        let serve = Step::new("serve a group", "/bin/vfio-serve").timeout(Duration::from_secs(240));
        machine.step(serve.arguments(PAIR));
        let removed = Step::new("removed", "/bin/vfio-check").timeout(Duration::from_secs(120));
        let (until, kills) = ("Moving data", "--kills=1");
        let demo = ["/bin/cordon", "demo", "--vfio", NVME, kills];
        machine.step(removed.arguments(["remove", NVME, until].into_iter().chain(demo)));
        run(machine, "product")
    });
    ran.as_ref().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn an_nvme_moves_64_mib_by_dma_and_msi_x_while_its_function_process_is_killed() {
    let summary = ran().summary("nvme");
    let (bytes, kills) = (number(&summary, "bytes_verified"), number(&summary, "kills"));
    assert!(bytes >= MOVED, "{summary}");
    assert_eq!(kills, KILLS, "{summary}");
    let vectors = summary["interrupts"].as_array().unwrap();
    // One for commands of the controller's own, the rest for data.
    assert!(vectors.len() >= 3, "{summary}");
    assert!(vectors.iter().all(|count| count.as_u64() > Some(0)), "{summary}");
    verdict(&format!(
        "vfio guest: {kills} kills of function processes under {} MiB of verified I/O",
        bytes >> 20
    ));
}

#[test]
fn the_death_of_a_connection_process_costs_a_guest_nothing() {
    let summary = ran().summary("nvme");
    let found = ["connection_kills", "stops", "away"].map(|name| number(&summary, name));
    // Under verified I/O, by the same function process, and without a moment away: the demo fails otherwise.
    assert_eq!(found, [CONNECTION_KILLS, STOPS, 0], "{summary}");
    let with_a_pin = ran().summary("edu");
    let found = ["connection_kills", "away"].map(|name| number(&with_a_pin, name));
    assert_eq!(found, [EDU_KILLS / 10, 0], "{with_a_pin}");
    verdict(&format!(
        "vfio guest: {CONNECTION_KILLS} kills of connection processes, and no absence"
    ));
}

#[test]
fn a_pin_interrupt_is_taken_while_its_function_process_is_killed() {
    let summary = ran().summary("edu");
    assert_eq!(number(&summary, "kills"), EDU_KILLS, "{summary}");
    let taken = summary["interrupts"][0].as_u64();
    assert!(taken > Some(16), "{summary}");
}

#[test]
fn functions_of_a_group_are_served_at_once_and_one_is_killed_and_detached_without_the_other() {
    let summary = ran().summary("group");
    assert_eq!(summary["one_process"], true, "{summary}");
    assert_eq!(number(&summary, "kills"), PAIR_KILLS, "{summary}");
    assert_eq!(number(&summary, "replaced_of_second"), 0, "{summary}");
    let bytes: Vec<u64> = serde_json::from_value(summary["bytes_verified"].clone()).unwrap();
    // Of the first: under kills, and once it was attached again. Of the second: before, between and after.
    assert!(bytes[0] >= 8 << 20 && bytes[1] >= 16 << 20, "{summary}");
    verdict(&format!(
        "vfio guest: two functions of a group, {} and {} MiB of verified I/O at once, {PAIR_KILLS} kills",
        bytes[0] >> 20,
        bytes[1] >> 20
    ));
}

#[test]
fn a_user_who_has_the_group_needs_no_other_right() {
    assert!(number(&ran().summary("user"), "bytes_verified") >= MOVED);
}

#[test]
fn what_cannot_be_served_is_refused_with_the_reason() {
    ran().assert_refused("foreign", &["04:00.0", "its driver is nvme, not vfio-pci", "driverctl"]);
    let other = format!("{} is bound to nvme", MIXED[1]);
    ran().assert_refused("mixed", &["03:00.0", "is not viable", &other]);
    ran().assert_refused("absent", &["77:00.0"]);
    ran().assert_refused("little", &["RLIMIT_MEMLOCK", "cannot be locked"]);
}

#[test]
fn what_is_bound_is_listed() {
    let step = ran().found("devices");
    assert!(step.succeeded() && step.left.is_empty(), "{step:#?}");
    let said = step.output.join("\n");
    for listed in ["01:00.0", "02:00.0", "03:00.0", PAIR[0], PAIR[1]] {
        let listed = listed.trim_start_matches("0000:");
        assert!(said.contains(listed), "no {listed}: {said}");
    }
    for other in ["03:00.1", "04:00.0"] {
        assert!(!said.contains(other), "{other}: {said}");
    }
}

/// A line of doctor's: its state, and everything that it says.
fn line(step: &str, check: &str) -> (String, String) {
    let said = ran().found(step).said();
    let lines = said["lines"].as_array().unwrap();
    let line = lines.iter().find(|line| line["check"] == check);
    let line = line.unwrap_or_else(|| panic!("there is no line '{check}': {said:#}"));
    (line["state"].as_str().unwrap().to_owned(), line.to_string())
}

#[test]
fn doctor_says_what_vfio_has_and_what_it_lacks() {
    for check in [
        "the IOMMU is on",
        "the kernel's modules",
        "the container's file",
        "memory that may be locked",
    ] {
        let (state, said) = line("doctor", &format!("VFIO: {check}"));
        assert_eq!(state, "ok", "{said}");
    }
    let of = |address: &str| line("doctor", &format!("VFIO: IOMMU group {}", ran().group(address)));
    let (state, said) = of(PAIR[0]);
    assert!(state == "ok" && said.contains(PAIR[1]), "{said}");
    let (state, said) = of(MIXED[0]);
    assert!(state == "missing" && said.contains(&format!("{} (nvme)", MIXED[1])), "{said}");
    // Required, since it was VFIO that was asked about.
    assert_eq!(
        ran().found("doctor").ending,
        Some(Ending::Exited(1)),
        "{:#?}",
        ran().found("doctor")
    );
    let (state, said) = line("doctor of a user", "VFIO: memory that may be locked");
    assert!(state == "missing" && said.contains("1024 KiB"), "{said}");
}

#[test]
fn devices_and_inspect_show_the_group() {
    let said_of = |function: &Value, address: &str| {
        let vfio = &function["vfio"];
        assert_eq!(vfio["number"], ran().group(address), "{function}");
        vfio.clone()
    };
    let all = ran().found("all devices").said();
    let functions = all["host"]["functions"].as_array().unwrap();
    let function = |address: &str| {
        let found = functions.iter().find(|function| function["address"] == address);
        said_of(found.unwrap_or_else(|| panic!("no {address}: {all:#}")), address)
    };
    let pair = function(PAIR[0]);
    assert_eq!(pair["members"][1]["address"], PAIR[1], "{pair}");
    assert!(pair["obstacle"].is_null() && pair["file"]["path"].is_string(), "{pair}");
    let cause = function(FOREIGN)["obstacle"]["cause"].to_string();
    assert!(cause.contains("no function of it is bound to vfio-pci"), "{cause}");
    let inspected = ran().found("inspect").said();
    let vfio = said_of(&inspected, NVME);
    assert_eq!(vfio["members"].as_array().map(Vec::len), Some(1), "{vfio}");
}

#[test]
fn a_bus_is_reset_while_nothing_else_of_it_is_in_use_and_the_error_names_what_is() {
    assert_eq!(ran().group(TOGETHER[0]), ran().group(TOGETHER[1]));
    let (step, said) = (ran().found("bus"), ran().found("bus").said());
    assert!(step.succeeded() && step.left.is_empty(), "{step:#?}\n{:#?}", ran().kernel);
    for (name, expected) in [
        ("written", json!(true)),
        ("after_reset", json!(0)),
        ("kept", json!(true)),
        ("after_second_reset", json!(0)),
        // No process was replaced, and the function was never away.
        ("processes", json!([0, 0])),
    ] {
        assert_eq!(said[name], expected, "{name}: {said}");
    }
    let refused = (said["refused"][0].as_i64(), said["refused"][1].as_str().unwrap());
    let says = refused.1.contains("in use there is 07:00.1");
    assert!(refused.0 == Some(libc::EBUSY.into()) && says, "{said}");
    // As /sys says it, which is what is shown before anything is opened.
    let reset = |step: &str| ran().found(step).said()["vfio"]["members"][0]["reset"].clone();
    assert_eq!(reset("inspect of two"), "bus");
    assert_eq!(reset("inspect"), "function");
}

#[test]
fn a_client_of_vfio_user_drives_a_real_function_that_goes_and_comes_back() {
    let step = ran().found("serve");
    assert!(step.succeeded() && step.left.is_empty(), "{step:#?}\n{:#?}", ran().kernel);
    let said = ran().found("serve").said();
    for (name, expected) in [
        ("ids", json!([0x36, 0x1b, 0x10, 0x00])),
        ("memory_error", json!(0)),
        ("ones", json!(true)),
        ("back", json!("device")),
        ("same_version", json!(true)),
        ("status", json!(0)),
        // Each time 64 KiB: at first, after it tried to reach outside, and after its return.
        ("bytes_verified", json!(3 * 65536)),
        // Two huge pages' worth that begins in the middle of one.
        ("huge", json!({ "mapped": 0, "unmapped": 0, "pages": 4, "taken": 3, "given_back": true })),
    ] {
        assert_eq!(said[name], expected, "{name}: {said}");
    }
    assert!(said["model"].as_str().unwrap().contains("NVMe"), "{said}");
    assert!(said["requested"].as_str().unwrap().contains("the kernel wants it back"), "{said}");
    assert!(number(&said, "removal_took_ms") < 10_000, "{said}");
    let faults = ran().faults_of(SERVED);
    assert!(
        !faults.is_empty(),
        "nothing reported that {SERVED} reached outside: {:#?}",
        ran().kernel
    );
}

#[test]
fn functions_of_a_group_are_served_to_one_client_and_no_other_process_has_one_of_them() {
    let step = ran().found("serve a group");
    assert!(step.succeeded() && step.left.is_empty(), "{step:#?}\n{:#?}", ran().kernel);
    let said = ran().found("serve a group").said();
    for (name, expected) in [
        ("one_process", json!(true)),
        ("mapped", json!([0, 0])),
        ("while_one_is_had", json!("sent away")),
        ("still_had", json!("sent away")),
        ("free", json!("served")),
        // Of the first also once the second has no client any more.
        ("bytes_verified", json!([5 * 65536, 4 * 65536])),
        ("status", json!(0)),
    ] {
        assert_eq!(said[name], expected, "{name}: {said}");
    }
    let refused = said["refused"].as_str().unwrap();
    assert!(refused.contains("has a function of the same IOMMU group"), "{refused}");
}

#[test]
fn a_function_that_the_kernel_wants_back_is_let_go_at_once() {
    let step = ran().found("removed");
    assert!(step.succeeded() && step.left.is_empty(), "{step:#?}\n{:#?}", ran().kernel);
    let said: Value = serde_json::from_str(&step.output.join("\n")).unwrap();
    // Removal waits until everything of the function is closed, for ever if need be.
    assert!(number(&said, "removal_took_ms") < 10_000, "{said}");
    for (name, expected) in [("gone", true), ("program_ran_on", true), ("returned", true)] {
        assert_eq!(said[name], expected, "{name}: {said}");
    }
    // It is not back for the program, which says so rather than crashing.
    assert!(said["status"].as_i64() > Some(0), "{said}: {step:#?}");
}

#[test]
fn no_device_reached_for_what_it_may_not() {
    ran().assert_no_faults(&[NVME, EDU, PAIR[0], PAIR[1]]);
}
