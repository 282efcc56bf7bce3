//! A VMM that is killed, whose devices a keeper holds until its next instance has them.

use std::sync::OnceLock;
use std::time::Duration;

use cordon_tests::verdict;
use vfio_guest::{Emulated, Ran, Step};

use super::{run, with_programs};

const NVME: &str = "0000:01:00.0";
/// Two functions of one group.
const PAIR: [&str; 2] = ["0000:02:00.0", "0000:02:00.1"];
/// Bytes of its namespace: more than are written.
const DISK: u64 = 16 << 20;
/// How often the VMM is killed, and bytes that it verifies each time.
const KILLS: u64 = 6;
const VERIFIED: u64 = 4 << 20;
/// A user who owns the group.
const USER: u32 = 1000;

/// A boot of its own.
fn ran() -> &'static Ran {
    static RAN: OnceLock<Result<Ran, String>> = OnceLock::new();
    let ran = RAN.get_or_init(|| {
        let mut machine = with_programs(&["cordon", "device-proc", "vfio-kept"]);
        assert_eq!(machine.add(&Emulated::Nvme { bytes: DISK }), [NVME]);
        assert_eq!(machine.add(&Emulated::NvmePair { bytes: DISK }), PAIR);
        let kept = |name: &str, addresses: &[&str]| {
            let words = ["keep", "--restarts=20", "--", "/bin/vfio-kept"];
            let step = Step::new(name, "/bin/cordon").timeout(Duration::from_secs(300));
            step.arguments(words.iter().chain(addresses).copied())
        };
        machine.step(kept("kept", &[NVME]));
        machine.step(kept("kept by a user", &[NVME]).user(USER));
        machine.step(kept("kept group", &PAIR));
        run(machine, "keeper")
    });
    ran.as_ref().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_vmm_that_is_killed_goes_on_with_its_device_and_what_was_in_flight() {
    for (name, functions) in [("kept", 1), ("kept by a user", 1), ("kept group", 2)] {
        let said = ran().done(name).said();
        let number = |name: &str| said[name].as_u64().unwrap_or_else(|| panic!("{name}: {said}"));
        assert_eq!(number("kills"), KILLS, "{said}");
        // Once by each instance of what was in flight when the one before it was killed, and once of its own.
        let verified = functions * (KILLS + KILLS + 1) * VERIFIED;
        assert_eq!(
            (number("functions"), number("bytes_verified")),
            (functions, verified),
            "{said}"
        );
        assert!(number("interrupts") > KILLS, "{said}");
        assert_eq!(said["empty"], true, "{said}");
        // It was killed in the moment in which it rang the doorbell: of some of these, nothing was completed by then.
        let in_flight = number("in_flight");
        assert!(in_flight > 0, "{said}");
        let again =
            ran().done(name).errors.iter().filter(|line| line.contains("started again")).count();
        // Of a group once more, after which one function of it is attached without the other.
        let kills = KILLS + (functions - 1);
        assert_eq!(again as u64, kills, "{:#?}", ran().done(name).errors);
        verdict(&format!(
            "vfio guest: {KILLS} kills of a VMM, {in_flight} with a command in flight for certain, adopted ({name})"
        ));
    }
}

#[test]
fn no_device_reached_for_what_it_may_not() {
    let _ = ran().done("kept");
    ran().assert_no_faults(&[NVME, PAIR[0], PAIR[1]]);
}
