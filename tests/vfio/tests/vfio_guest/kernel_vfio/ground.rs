//! What the product is built on, without the product: groups, the container, DMA, interrupts and reset as the kernel has
//! them, and a sandbox that holds as it does elsewhere.

use std::sync::OnceLock;
use std::time::Duration;

use serde_json::json;
use vfio_guest::{Emulated, Ran, Step};

use super::{run, with_programs};

/// Bytes of the NVMe's namespaces.
const DISK: u64 = 16 << 20;
/// What confines a process whatever its kernel, of the lines of `cordon doctor`.
const LAYERS: [&str; 14] = [
    "descriptors",
    "user namespace",
    "pid namespace",
    "mount namespace",
    "network namespace",
    "ipc namespace",
    "uts namespace",
    "empty root",
    "resource limits",
    "address space",
    "capabilities",
    "no new privileges",
    "death with parent",
    "seccomp",
];

/// Addresses by the order in which the devices are added.
const NVME: &str = "0000:01:00.0";
const EDU: &str = "0000:02:00.0";
const PAIR: [&str; 2] = ["0000:03:00.0", "0000:03:00.1"];
const IGB: [&str; 2] = ["0000:04:00.0", "0000:04:00.1"];

/// The one boot that these share.
fn ran() -> &'static Ran {
    static RAN: OnceLock<Result<Ran, String>> = OnceLock::new();
    let ran = RAN.get_or_init(|| {
        let programs = ["vfio-check", "cordon", "device-proc", "sandbox-tries", "sandbox-probe"];
        let mut machine = with_programs(&programs);
        assert_eq!(machine.add(&Emulated::Nvme { bytes: DISK }), [NVME]);
        assert_eq!(machine.add(&Emulated::Edu), [EDU]);
        assert_eq!(machine.add(&Emulated::NvmePair { bytes: DISK }), PAIR);
        assert_eq!(machine.add(&Emulated::Igb), IGB);
        let check = |name: &str, words: &[&str]| {
            let words = std::iter::once(name).chain(words.iter().copied());
            Step::new(name, "/bin/vfio-check").arguments(words)
        };
        machine.step(check("nvme", &[NVME]));
        machine.step(check("edu", &[EDU]));
        machine.step(check("pair", &PAIR));
        machine.step(Step::new("doctor", "/bin/cordon").arguments(["doctor", "--json"]));
        let tries = Step::new("sandbox", "/bin/sandbox-tries").timeout(Duration::from_secs(240));
        machine.step(tries);
        run(machine, "ground")
    });
    ran.as_ref().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn an_nvme_is_alone_in_its_group_with_the_kernels_vfio() {
    let ran = ran();
    let function = |address| ran.function(address).unwrap_or_else(|| panic!("{address}: {ran}"));
    let nvme = function(NVME);
    assert_eq!((nvme.ids.as_str(), nvme.class.as_str()), ("1b36:0010", "010802"));
    assert_eq!(nvme.driver.as_deref(), Some("vfio-pci"));
    assert!(nvme.group.is_some());
    let with_it = ran.functions.iter().filter(|other| other.group == nvme.group);
    assert_eq!(with_it.count(), 1, "{:?}", ran.functions);
    let said = ran.found("nvme").said();
    for (name, expected) in [
        ("api_version", json!(0)),
        ("type1v2", json!(true)),
        ("viable", json!(true)),
        // Without an IOMMU nothing would keep a device in its place.
        ("noiommu_offered", json!(false)),
        ("second_holder", json!("ResourceBusy")),
        ("pci", json!(true)),
    ] {
        assert_eq!(said[name], expected, "{name}: {said}");
    }
    assert!(said["noiommu_allowed"].is_null() || said["noiommu_allowed"] == "N", "{said}");
}

#[test]
fn an_nvmes_regions_interrupts_and_reset_are_the_kernels() {
    let said = ran().found("nvme").said();
    let ids = [0x36, 0x1b, 0x10, 0x00];
    assert_eq!(said["ids"], json!(ids), "{said}");
    let region = |index: u64| {
        let regions = said["regions"].as_array().unwrap();
        regions.iter().find(|region| region["index"] == index).cloned().unwrap_or_default()
    };
    // BAR 0 has registers, doorbells and, in this emulation, the MSI-X table; 7 is configuration space.
    assert_eq!(region(0)["mappable"], true, "{said}");
    assert!(region(0)["size"].as_u64() >= Some(0x4000), "{said}");
    assert_eq!((&region(7)["size"], &region(7)["mappable"]), (&json!(4096), &json!(false)));
    // INTx, MSI, MSI-X, errors, request to let go.
    let interrupts = said["interrupts"].as_array().unwrap();
    assert_eq!(interrupts.len(), 5, "{said}");
    assert_eq!((&interrupts[0], &interrupts[4]), (&json!(1), &json!(1)), "{said}");
    assert!(interrupts[2].as_u64() >= Some(2), "{said}");
    assert_eq!((&said["resettable"], &said["reset"]), (&json!(true), &json!("ok")), "{said}");
    assert_ne!(said["version_by_trap"], json!(u32::MAX), "{said}");
    assert_eq!(said["version_by_trap"], said["version_by_window"], "{said}");
}

#[test]
fn memory_of_a_file_is_mapped_for_dma_once() {
    let said = ran().found("nvme").said();
    assert_eq!(
        (&said["mapped"], &said["mapped_twice"]),
        (&json!("ok"), &json!("AlreadyExists")),
        "{said}"
    );
}

#[test]
fn dma_reaches_what_is_mapped_and_nothing_else() {
    let said = ran().found("edu").said();
    let expected = json!({ "whole": true, "rest_untouched": true, "whole_after_fault": true });
    assert_eq!(said["dma"], expected, "{said}");
    let kernel = &ran().kernel;
    let fault = |line: &String| line.contains("DMAR") && line.contains("02:00.0");
    assert!(kernel.iter().any(fault), "no fault of {EDU} was reported: {kernel:#?}");
}

#[test]
fn an_intx_signals_once_until_it_is_unmasked() {
    let said = ran().found("edu").said();
    let expected =
        json!({ "first": true, "while_masked": false, "after_unmask": false, "again": true });
    assert_eq!(said["intx"], expected, "{said}");
}

#[test]
fn two_functions_of_a_group_have_one_holder() {
    let said = ran().found("pair").said();
    for (name, expected) in [
        ("same_group", json!(true)),
        ("viable", json!(true)),
        ("opened", json!(["ok", "ok"])),
        ("second_holder", json!("ResourceBusy")),
    ] {
        assert_eq!(said[name], expected, "{name}: {said}");
    }
    // Of a chip whose functions the kernel knows to be apart each has a group.
    let group = |address| ran().function(address).and_then(|function| function.group).unwrap();
    assert_eq!(group(PAIR[0]), group(PAIR[1]));
    assert_ne!(group(IGB[0]), group(IGB[1]));
}

#[test]
fn every_layer_of_the_sandbox_is_there_with_an_empty_root() {
    let said = ran().found("doctor").said();
    let lines = said["lines"].as_array().unwrap();
    for layer in LAYERS.iter().chain(&["forbidden calls kill", "not dumpable"]) {
        let line = lines.iter().find(|line| line["check"] == *layer);
        let line = line.unwrap_or_else(|| panic!("there is no line '{layer}': {said}"));
        assert_eq!(line["state"], "ok", "{line}");
    }
}

#[test]
fn each_role_can_make_the_calls_of_its_policy_and_no_other() {
    let ran = ran();
    let step = ran.step("sandbox").unwrap();
    let holes: Vec<_> = step.output.iter().filter(|line| !line.starts_with("held ")).collect();
    assert!(holes.is_empty() && step.succeeded(), "{holes:#?}: {:?}: {ran}", step.ending);
    for role in ["connection", "function", "lister"] {
        for (kind, least) in [("works: ", 10), ("refused: ", 8)] {
            let of_kind = format!("held {role} {kind}");
            let held = step.output.iter().filter(|line| line.starts_with(&of_kind)).count();
            assert!(held >= least, "{role}, {kind}: {held}: {ran}");
        }
    }
}

#[test]
fn no_step_leaves_a_process() {
    let ran = ran();
    assert!(ran.steps.len() == 5 && ran.steps.iter().all(|step| step.left.is_empty()), "{ran}");
}
