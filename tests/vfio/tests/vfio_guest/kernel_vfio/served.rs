//! A `cordon serve` that is killed again and again under its clients' I/O, and that a keeper has started again.

use std::sync::OnceLock;
use std::time::Duration;

use cordon_tests::verdict;
use serde_json::json;
use vfio_guest::{Emulated, Ran, Step};

use super::{run, with_programs};

const NVME: &str = "0000:01:00.0";
/// Two functions of one group.
const PAIR: [&str; 2] = ["0000:02:00.0", "0000:02:00.1"];
/// Bytes of its namespace: more than are written.
const DISK: u64 = 16 << 20;
/// How often each server is killed.
const KILLS: u64 = 40;

/// A boot of its own.
fn ran() -> &'static Ran {
    static RAN: OnceLock<Result<Ran, String>> = OnceLock::new();
    let ran = RAN.get_or_init(|| {
        let mut machine = with_programs(&["cordon", "device-proc", "vfio-serve"]);
        assert_eq!(machine.add(&Emulated::Nvme { bytes: DISK }), [NVME]);
        assert_eq!(machine.add(&Emulated::NvmePair { bytes: DISK }), PAIR);
        let kept = |name: &str, addresses: &[&str]| {
            let step = Step::new(name, "/bin/vfio-serve").timeout(Duration::from_secs(400));
            step.arguments(std::iter::once(&"kept").chain(addresses).copied())
        };
        machine.step(kept("kept", &[NVME]));
        machine.step(kept("kept group", &PAIR));
        // Last: one of them is taken out of the machine.
        let apart = Step::new("apart", "/bin/vfio-serve").timeout(Duration::from_secs(200));
        machine.step(apart.arguments(["apart", PAIR[0], NVME]));
        run(machine, "killed servers")
    });
    ran.as_ref().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_server_that_is_killed_is_nothing_to_its_clients_but_a_wait() {
    for (name, functions) in [("kept", 1_usize), ("kept group", 2)] {
        let all = functions;
        let functions = functions as u64;
        let said = ran().done(name).said();
        let number = |name: &str| said[name].as_u64().unwrap_or_else(|| panic!("{name}: {said}"));
        assert_eq!((number("functions"), number("kills")), (functions, KILLS), "{said}");
        assert_eq!(said["undisturbed"], json!(vec![true; all]), "{said}");
        // Each came once, and was gone on with by every server that lived to do so.
        assert_eq!((number("attached"), &said["lost"]), (functions, &json!([])), "{said}");
        assert!(number("adopted") >= functions * KILLS / 2, "{said}");
        assert!(number("bytes_verified") > 0, "{said}");
        // Of commands of clients that were waiting when the server was killed.
        assert!(number("in_flight") >= KILLS / 2, "{said}");
        assert_eq!(
            (&said["cleaned"], &said["garbage_closed"]),
            (&json!(true), &json!(true)),
            "{said}"
        );
        // One whose message is in pieces is lost, and what it changed is put back.
        let torn = &said["torn"];
        assert_eq!((&torn["closed"], &torn["restored"]), (&json!(true), &json!(true)), "{said}");
        let why = torn["told"]["why"].as_str().unwrap_or_default();
        assert!(why.contains("message"), "{said}");
        assert_eq!((&said["ended"], &said["status"]), (&json!(true), &json!(0)), "{said}");
        assert_eq!(said["remaining"], 0, "{said}");
        if functions > 1 {
            assert_eq!(said["less"]["closed"], true, "{said}");
            // It does not go on as a part of its group either.
            assert_eq!(said["less"]["masters"], false, "{said}");
        }
        let access = &said["access_us"];
        let [before, with, after] = ["without", "with", "without_again"]
            .map(|one| access[one].as_u64().unwrap_or_else(|| panic!("{said}")));
        verdict(&format!(
            "vfio guest: {KILLS} kills of a server under {} MiB of verified I/O of {functions} clients, {} with a \
             command waiting, {} ms in the median ({} at most); a trapped access {with} us, {before} and {after} \
             without a keeper ({name})",
            number("bytes_verified") >> 20,
            number("in_flight"),
            number("waited_us") / 1000,
            number("longest_us") / 1000,
        ));
    }
}

#[test]
fn a_function_that_is_gone_when_the_server_is_started_again_costs_no_other_its_client() {
    let said = ran().done("apart").said();
    let all = ["answered", "undisturbed", "adopted", "lost", "attached", "status"];
    let all = all.map(|one| said[one].clone());
    assert_eq!(json!(all), json!([true, true, 1, 0, true, 0]), "{said}");
    let failed = &said["failed"];
    let why = failed["why"].as_str().unwrap_or_default();
    assert!(failed["device"] == "01:00.0" && why.starts_with("it stays detached: "), "{said}");
    assert!(said["bytes_verified"].as_u64().is_some_and(|bytes| bytes > 0), "{said}");
}

#[test]
fn no_device_of_a_killed_server_reached_for_what_it_may_not() {
    let _ = ran().done("kept");
    ran().assert_no_faults(&[NVME, PAIR[0], PAIR[1]]);
}
