//! Functions by files of their own, and memory by an iommufd: a Linux host as that of `vfio_guest`, whose kernel has them.
//! Debian's kernels have not, so that `cargo xtask iommufd` makes one and runs these, and `vfio_guest` on it as well.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![cfg(target_os = "linux")]
#![cfg(target_arch = "x86_64")]

use std::sync::OnceLock;
use std::time::Duration;

use cordon_tests::machine::prepared;
use cordon_tests::{announce, program, verdict};
use serde_json::Value;
use vfio_guest::checks::number;
use vfio_guest::{Descriptor, Emulated, Machine, Ran, Step};

/// A user to whom nothing of VFIO belongs.
const USER: u32 = 1000;
const SMALL: u64 = 16 << 20;
const NVME: &str = "0000:01:00.0";
const OTHER: &str = "0000:02:00.0";
const PAIR: [&str; 2] = ["0000:03:00.0", "0000:03:00.1"];
/// Two functions of one group, of which the kernel's own driver has the second.
const MIXED: [&str; 2] = ["0000:04:00.0", "0000:04:00.1"];
const IOMMUFD: &str = "/dev/iommu";
/// Function processes that are killed.
const KILLS: u64 = 40;
/// How long the boot with its steps may take on a busy machine.
const WITHIN: Duration = Duration::from_secs(900);

/// What a device process has open decides how it maps: by a function's own file and an iommufd, or not at all.
fn files(address: &str) -> [Descriptor; 2] {
    [Descriptor::device_of(address), Descriptor::path(IOMMUFD)]
}

/// The demo, by a user who may open nothing, with these files and words.
fn demo(
    name: &str,
    addresses: &[&str],
    files: impl IntoIterator<Item = Descriptor>,
    words: &[&str],
) -> Step {
    let step = Step::new(name, "/bin/cordon").timeout(Duration::from_secs(300)).user(USER);
    let kills = format!("--kills={KILLS}");
    let addresses = addresses.iter().flat_map(|address| ["--vfio", address]);
    let words =
        ["demo", "--json", &kills].into_iter().chain(addresses).chain(words.iter().copied());
    step.arguments(words).descriptors(files)
}

fn boot() -> Result<Ran, String> {
    let mut machine = Machine::new(prepared());
    for name in ["cordon", "device-proc", "vfio-check", "vfio-serve"] {
        machine.program(&program(name)).unwrap();
    }
    assert_eq!(machine.add(&Emulated::Nvme { bytes: 128 << 20 }), [NVME]);
    assert_eq!(machine.add(&Emulated::Nvme { bytes: SMALL }), [OTHER]);
    assert_eq!(machine.add(&Emulated::NvmePair { bytes: SMALL }), PAIR);
    assert_eq!(machine.add_unbound(&Emulated::NvmePair { bytes: SMALL }), MIXED);
    machine.bind(MIXED[0]);
    let own = ["--vfio-fd", "device=3,iommufd=4"];
    machine
        .step(Step::new("doctor", "/bin/cordon").arguments(["doctor", "--json", "--dext", "vfio"]));
    let devices = ["devices", "--json", "--all", "--dext", "vfio"];
    machine.step(Step::new("devices", "/bin/cordon").arguments(devices));
    machine.step(demo("without", &[NVME], [Descriptor::path("/dev/null")], &[]));
    machine.step(demo("nvme", &[NVME], files(NVME), &own));
    let pair = PAIR.map(Descriptor::device_of).into_iter().chain([Descriptor::path(IOMMUFD)]);
    machine.step(demo(
        "group",
        &PAIR,
        pair,
        &["--vfio-fd", "device=3,iommufd=5", "--vfio-fd", "device=4"],
    ));
    machine.step(demo(
        "two",
        &[NVME, OTHER],
        files(NVME).into_iter().chain(files(OTHER)),
        &[own[0], own[1], "--vfio-fd", "device=5,iommufd=6"],
    ));
    let both = files(NVME).into_iter().chain([Descriptor::device_of(OTHER)]);
    machine.step(demo("other device", &[NVME], files(OTHER), &own));
    machine.step(demo("swapped", &[NVME], files(NVME), &["--vfio-fd", "device=4,iommufd=3"]));
    machine.step(demo("no iommufd", &[NVME], files(NVME), &["--vfio-fd", "device=3"]));
    machine.step(demo("closed", &[NVME], files(NVME), &["--vfio-fd", "device=3,iommufd=9"]));
    machine.step(demo(
        "named twice",
        &[NVME, OTHER],
        both,
        &[own[0], own[1], "--vfio-fd", "device=5,iommufd=4"],
    ));
    machine.step(demo("not viable", &[MIXED[0]], files(MIXED[0]), &own));
    let serve = Step::new("serve", "/bin/vfio-serve").timeout(Duration::from_secs(240));
    let named = |address: &str| {
        let [device, iommufd] = files(address);
        [device.named("vfio-device"), iommufd.named("vfio-iommufd")]
    };
    machine.step(serve.clone().arguments([OTHER, "handed"]).user(USER).descriptors(named(OTHER)));
    let root = Step { name: "serve root".to_owned(), ..serve };
    machine.step(root.arguments([OTHER, "handed", "removed"]).descriptors(named(OTHER)));
    announce("iommufd: booting");
    let ran = machine.run(&program("vfio-init"), WITHIN, |report| {
        if let vfio_guest::Report::Ended { step, how, took, .. } = report {
            announce(&format!("iommufd: {step}: {how:?} after {took:.1?}"));
        }
    });
    ran.map_err(|error| error.to_string())
}

/// The one boot that these share.
fn ran() -> &'static Ran {
    static RAN: OnceLock<Result<Ran, String>> = OnceLock::new();
    RAN.get_or_init(boot).as_ref().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn doctor_and_devices_say_that_functions_own_files_are_used() {
    let said: Value = ran().found("doctor").said();
    let lines = said["lines"].as_array().unwrap();
    let line = |check: &str| {
        let line = lines.iter().find(|line| line["check"] == check);
        line.unwrap_or_else(|| panic!("no line {check}: {said:#}"))
    };
    assert_eq!(line("VFIO: an iommufd")["state"], "ok");
    let of_group = line(&format!("VFIO: IOMMU group {}", ran().group(NVME)));
    assert!(of_group["found"].as_str().unwrap().contains("their own files are used"), "{of_group}");
    let said: Value = ran().found("devices").said();
    let functions = said["host"]["functions"].as_array().unwrap();
    let nvme = functions.iter().find(|function| function["address"] == NVME).unwrap();
    assert_eq!(nvme["vfio"]["iommufd"], true, "{nvme}");
}

#[test]
fn a_user_who_may_open_nothing_is_served_by_what_a_manager_opened_under_kills() {
    // Without the descriptors there is nothing.
    ran().assert_refused("without", &["01:00.0", "cannot open /dev/vfio/", "Permission denied"]);
    let summary = ran().summary("nvme");
    let (bytes, kills) = (number(&summary, "bytes_verified"), number(&summary, "kills"));
    assert!(bytes >= 64 << 20 && kills == KILLS, "{summary}");
    let found = ["connection_kills", "away"].map(|name| number(&summary, name));
    assert_eq!(found, [KILLS / 10, 0], "{summary}");
    verdict(&format!(
        "iommufd: {kills} kills of function processes and {} of connection processes under {} MiB of verified I/O",
        found[0],
        bytes >> 20
    ));
}

#[test]
fn several_functions_and_several_groups_are_handed() {
    assert_eq!(ran().summary("group")["one_process"], true);
    assert_eq!(ran().summary("two")["one_process"], false);
}

#[test]
fn what_is_no_file_of_the_functions_is_refused_with_its_number_and_what_it_is() {
    let (other, own) = (ran().group(OTHER), ran().group(NVME));
    let says =
        [format!("Descriptor 3 is of IOMMU group {other}"), format!("01:00.0 is in group {own}")];
    ran().assert_refused("other device", &[&says[0], &says[1]]);
    let swapped = ["Descriptor 4 is an iommufd", "not the file of a device"];
    ran().assert_refused("swapped", &swapped);
    ran().assert_refused("no iommufd", &["/dev/iommu cannot be opened", "Permission denied"]);
    ran().assert_refused("closed", &["Descriptor 9 is not open here"]);
    ran().assert_refused("named twice", &["descriptor 4 is named twice"]);
    let holder = format!("{} is bound to nvme", MIXED[1]);
    ran().assert_refused("not viable", &["04:00.0", "is not viable", &holder]);
}

#[test]
fn a_confined_server_is_handed_a_function_by_a_service_manager_and_comes_back_after_deaths() {
    let said = ran().done("serve").said();
    // 64 KiB each: at first, after a death that was adopted, and after one that was not.
    assert_eq!(number(&said, "bytes_verified"), 3 * 65536, "{said}");
    for name in ["adopted", "opened_again", "confined"] {
        assert_eq!(said[name], true, "{name}: {said}");
    }
    assert_eq!(number(&said, "status"), 0, "{said}");
}

#[test]
fn a_function_that_the_kernel_wants_back_is_let_go_and_the_error_says_what_helps() {
    let said = ran().done("serve root").said();
    let taken_back = &said["taken_back"];
    assert!(number(taken_back, "took_ms") < 10_000, "{said}");
    let why = taken_back["why"].as_str().unwrap();
    assert!(why.contains("the kernel took it back") && why.contains("must open it again"), "{why}");
}
