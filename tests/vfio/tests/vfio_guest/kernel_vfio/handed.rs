//! Functions whose files root opened, served for a user who may open none of VFIO's.

use std::sync::OnceLock;
use std::time::Duration;

use cordon_tests::verdict;
use vfio_guest::checks::number;
use vfio_guest::{Descriptor, Emulated, Ran, Step};

use super::{run, with_programs};

/// A user to whom nothing of VFIO belongs.
const USER: u32 = 1000;
const SMALL: u64 = 16 << 20;
const NVME: &str = "0000:01:00.0";
const OTHER: &str = "0000:02:00.0";
const PAIR: [&str; 2] = ["0000:03:00.0", "0000:03:00.1"];
/// Two functions of one group, of which the kernel's own driver has the second.
const MIXED: [&str; 2] = ["0000:04:00.0", "0000:04:00.1"];
const CONTAINER: &str = "/dev/vfio/vfio";
/// Function processes that are killed.
const KILLS: u64 = 40;

fn files(address: &str) -> [Descriptor; 2] {
    [Descriptor::group_of(address), Descriptor::path(CONTAINER)]
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

/// The one boot that these share.
fn ran() -> &'static Ran {
    static RAN: OnceLock<Result<Ran, String>> = OnceLock::new();
    let ran = RAN.get_or_init(|| {
        let mut machine = with_programs(&["cordon", "device-proc", "vfio-check", "vfio-serve"]);
        assert_eq!(machine.add(&Emulated::Nvme { bytes: 128 << 20 }), [NVME]);
        assert_eq!(machine.add(&Emulated::Nvme { bytes: SMALL }), [OTHER]);
        assert_eq!(machine.add(&Emulated::NvmePair { bytes: SMALL }), PAIR);
        assert_eq!(machine.add_unbound(&Emulated::NvmePair { bytes: SMALL }), MIXED);
        machine.bind(MIXED[0]);
        let both = ["--vfio-fd", "group=3,container=4"];
        machine.step(demo("without", &[NVME], [Descriptor::path("/dev/null")], &[]));
        machine.step(demo("nvme", &[NVME], files(NVME), &both));
        machine.step(demo("group", &PAIR, files(PAIR[0]), &both));
        machine.step(demo(
            "two",
            &[NVME, OTHER],
            files(NVME).into_iter().chain(files(OTHER)),
            &[both[0], both[1], "--vfio-fd", "group=5,container=6"],
        ));
        machine.step(demo("other group", &[NVME], files(OTHER), &both));
        machine.step(demo(
            "no group",
            &[NVME],
            [Descriptor::path("/dev/null")],
            &["--vfio-fd", "group=3"],
        ));
        let swapped = ["--vfio-fd", "group=4,container=3"];
        machine.step(demo("swapped", &[NVME], files(NVME), &swapped));
        machine.step(demo("no container", &[NVME], files(NVME), &["--vfio-fd", "group=3"]));
        machine.step(demo("closed", &[NVME], files(NVME), &["--vfio-fd", "group=3,container=9"]));
        machine.step(demo("not viable", &[MIXED[0]], files(MIXED[0]), &both));
        // One container for two groups would be one memory for two guests' devices.
        let shared = Descriptor::group_of(OTHER);
        let shared = files(NVME).into_iter().chain([shared]);
        machine.step(demo(
            "named twice",
            &[NVME, OTHER],
            shared,
            &[both[0], both[1], "--vfio-fd", "group=5,container=4"],
        ));
        let serve = Step::new("serve", "/bin/vfio-serve").timeout(Duration::from_secs(240));
        let named = |address: &str| {
            let [group, container] = files(address);
            [group.named("vfio-group"), container.named("vfio-container")]
        };
        machine
            .step(serve.clone().arguments([OTHER, "handed"]).user(USER).descriptors(named(OTHER)));
        let root = Step { name: "serve root".to_owned(), ..serve };
        machine.step(root.arguments([OTHER, "handed", "removed"]).descriptors(named(OTHER)));
        let removed = Step::new("removed", "/bin/vfio-check").timeout(Duration::from_secs(120));
        let command = ["/bin/cordon", "demo", "--vfio", NVME, "--kills=1", both[0], both[1]];
        let words = ["remove", NVME, "Moving data"].into_iter().chain(command);
        machine.step(removed.arguments(words).descriptors(files(NVME)));
        run(machine, "handed")
    });
    ran.as_ref().unwrap_or_else(|error| panic!("{error}"))
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
        "vfio guest: descriptors of a manager's: {kills} kills of function processes and {} of connection \
         processes under {} MiB of verified I/O",
        found[0],
        bytes >> 20
    ));
}

#[test]
fn several_functions_and_several_groups_are_handed() {
    let of_a_group = ran().summary("group");
    assert_eq!(of_a_group["one_process"], true, "{of_a_group}");
    let of_two = ran().summary("two");
    assert_eq!(of_two["one_process"], false, "{of_two}");
}

#[test]
fn what_is_no_file_of_the_functions_group_is_refused_with_its_number_and_what_it_is() {
    let (other, own) = (ran().group(OTHER), ran().group(NVME));
    ran().assert_refused(
        "other group",
        &[
            &format!("Descriptor 3 is of IOMMU group {other}"),
            &format!("01:00.0 is in group {own}"),
        ],
    );
    ran().assert_refused("no group", &["Descriptor 3 is the character device 1:3", "mem/null"]);
    ran().assert_refused(
        "swapped",
        &["Descriptor 4 is a container", "not the file of an IOMMU group"],
    );
    ran().assert_refused("no container", &["cannot open /dev/vfio/vfio", "Permission denied"]);
    ran().assert_refused("closed", &["Descriptor 9 is not open here"]);
    ran().assert_refused("named twice", &["descriptor 4 is named twice"]);
    let holder = format!("{} is bound to nvme", MIXED[1]);
    ran().assert_refused("not viable", &["04:00.0", "is not viable", &holder]);
}

#[test]
fn a_confined_server_is_handed_a_group_by_a_service_manager_and_comes_back_after_deaths() {
    let said = ran().done("serve").said();
    // 64 KiB each: at first, after a death that was adopted, and after one that was not.
    assert_eq!(number(&said, "bytes_verified"), 3 * 65536, "{said}");
    for (name, expected) in [("adopted", true), ("opened_again", true), ("confined", true)] {
        assert_eq!(said[name], expected, "{name}: {said}");
    }
    assert_eq!(number(&said, "status"), 0, "{said}");
}

#[test]
fn files_that_are_kept_hold_no_device_that_the_kernel_wants_back() {
    let said = ran().done("removed").said();
    assert!(number(&said, "removal_took_ms") < 10_000, "{said}");
    for name in ["gone", "program_ran_on", "returned"] {
        assert_eq!(said[name], true, "{name}: {said}");
    }
    assert!(said["status"].as_i64() > Some(0), "{said}");
}

#[test]
fn a_group_that_the_kernel_took_back_is_not_served_by_its_old_file_and_the_error_says_what_helps() {
    let said = ran().done("serve root").said();
    let taken_back = &said["taken_back"];
    assert!(number(taken_back, "took_ms") < 10_000, "{said}");
    let why = taken_back["why"].as_str().unwrap();
    let says = ["before the kernel took its devices back", "must open /dev/vfio/", "again"];
    assert!(says.iter().all(|part| why.contains(part)), "{why}");
}
