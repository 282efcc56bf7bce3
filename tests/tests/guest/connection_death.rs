//! What a guest sees of the death of a connection process.

use std::time::Duration;

use cordon_tests::{Simulator, announce, signal};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::serve::{Serve, process};
use cordon_tests::machine::Guest;

#[test]
fn a_connection_process_that_dies_is_a_controller_reset_for_the_guest() {
    let devices = ["--device=01:00.0=nvme,size=128M,queues=4", "--device=02:00.0=nvme,size=64M"];
    let simulator = Simulator::start(&devices);
    let serve = Serve::start(&simulator, &["01:00.0", "02:00.0"]);
    let sockets = [serve.socket("01:00.0"), serve.socket("02:00.0")];
    let mut guest = Guest::boot("return", "q35", &sockets, &["-no-reboot"]);
    guest.says("GUEST-BUSY");
    std::thread::sleep(Duration::from_millis(500));
    // Long enough away for the guest to see it.
    simulator.fault("cleanup-delay:ms=1000");
    signal(process(serve.child.id(), "connection", "01:00.0").unwrap(), Signal::KILL);
    guest.passes("return");
    let said = guest.seen.iter().find(|line| line.contains("live after"));
    announce(&format!("guest: {}", said.unwrap()));
    guest.ends();
    let seen = serve.until("detach");
    let of = |event: &str| -> Vec<&Value> {
        seen.iter().filter(|line| line["event"] == event).map(|line| &line["device"]).collect()
    };
    assert_eq!((of("away"), of("back")), (vec![&json!("01:00.0")], vec![&json!("01:00.0")]));
    assert!(of("given-up").is_empty() && of("refused").is_empty(), "{seen:?}");
    serve.stop();
    simulator.assert_released("01:00.0");
}

/// Kills the connection process under I/O of a guest that does nothing about it; its longest request.
fn mended_by_the_driver(kernel: &str) -> Duration {
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=64M,queues=4"]);
    let serve = Serve::start(&simulator, &["01:00.0"]);
    let sockets = [serve.socket("01:00.0")];
    let mut guest = Guest::boot_with("outlived", kernel, "q35", &sockets, &["-no-reboot"]);
    guest.says("GUEST-BUSY");
    std::thread::sleep(Duration::from_secs(2));
    signal(process(serve.child.id(), "connection", "01:00.0").unwrap(), Signal::KILL);
    serve.until("away");
    serve.until("back");
    guest.passes("outlived");
    let longest = guest.longest_request();
    guest.ends();
    let said: Vec<_> = guest.seen.iter().filter(|line| line.contains("kernel: ")).collect();
    announce(&format!("guest {kernel}: its longest request {longest:?}, its kernel: {said:#?}"));
    serve.stop();
    simulator.assert_released("01:00.0");
    longest
}

/// Linux asks whether a request is lost after 30 s, tries to abort it, and resets the controller after
/// another 30 s.
#[test]
fn a_connection_process_that_dies_is_mended_by_the_guests_driver_alone() {
    let longest = mended_by_the_driver("");
    assert!(longest < Duration::from_secs(75), "{longest:?}");
}

#[test]
fn a_guest_with_a_shorter_timeout_is_stalled_for_less_by_the_death_of_a_connection_process() {
    let longest = mended_by_the_driver("nvme_core.io_timeout=5");
    assert!(longest < Duration::from_secs(20), "{longest:?}");
}
