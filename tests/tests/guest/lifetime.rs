//! Guests that come and go: reboots, successors, plugging.

use cordon_tests::{Simulator, eventually};
use serde_json::json;

use crate::serve::Serve;
use cordon_tests::machine::{Guest, Monitor, device};

#[test]
fn a_guest_reboots_and_another_comes_after_it_to_the_same_server() {
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=64M,queues=4"]);
    let serve = Serve::start(&simulator, &["01:00.0"]);
    let sockets = [serve.socket("01:00.0")];
    let mut guest = Guest::boot("reboot", "q35", &sockets, &[]);
    guest.passes("reboot");
    // The second boot of the same QEMU, after a system reset of the guest's own.
    guest.passes("reboot");
    guest.ends();
    serve.until("detach");
    let held = eventually(|| simulator.held("01:00.0").2 == 0);
    assert!(held, "the memory of a guest that is gone is still mapped");
    let mut guest = Guest::boot("marker", "q35", &sockets, &["-no-reboot"]);
    guest.passes("marker");
    // And a system reset from outside.
    guest.ends();
    serve.until("detach");
    let mut guest = Guest::boot("stay", "q35", &sockets, &[]);
    guest.passes("stay");
    let mut monitor = Monitor::connect(&guest);
    monitor.command(&json!({ "execute": "system_reset" }));
    guest.passes("stay");
    monitor.command(&json!({ "execute": "quit" }));
    guest.ends();
    serve.until("detach");
    serve.stop();
    simulator.assert_released("01:00.0");
}

#[test]
fn a_device_is_unplugged_and_plugged_where_qemu_survives_it() {
    // QEMU 11.1 itself aborts when a function with MSI-X is unplugged; this one has MSI only.
    let simulator = Simulator::start(&["--device=01:00.0=probe,vectors=0"]);
    let serve = Serve::start(&simulator, &["01:00.0"]);
    let socket = serve.socket("01:00.0");
    let mut guest = Guest::boot("stay", "pc", std::slice::from_ref(&socket), &["-no-reboot"]);
    guest.passes("stay");
    let mut monitor = Monitor::connect(&guest);
    monitor.command(&json!({ "execute": "device_del", "arguments": { "id": "function0" } }));
    monitor.event("DEVICE_DELETED");
    serve.until("detach");
    assert!(eventually(|| simulator.held("01:00.0").2 == 0));
    monitor.command(&json!({ "execute": "device_add", "arguments": device(&socket, 1) }));
    serve.until("attach");
    assert!(eventually(|| simulator.held("01:00.0").2 > 0), "its memory is not mapped again");
    monitor.command(&json!({ "execute": "quit" }));
    guest.ends();
    serve.until("detach");
    serve.stop();
}
