//! arm64 guests, with pages of 4 and of 16 KiB, and each of the ways in which their interrupt controllers take
//! messages: GICv3 with an ITS, and GICv2 with its frame for messages.

use std::time::Duration;

use cordon_tests::machine::{Guest, Platform};
use cordon_tests::{Simulator, announce, signal};
use rustix::process::Signal;

use crate::serve::{Serve, process};

const GIC_V3: &str = "virt,gic-version=3,its=on";
const GIC_V2: &str = "virt,gic-version=2";

fn boot(
    platform: Platform,
    test: &str,
    machine: &str,
    sockets: &[std::path::PathBuf],
    more: &[&str],
) -> Guest {
    // One that knows every size of pages.
    let more: Vec<&str> =
        ["-cpu", "max,pauth-impdef=on", "-no-reboot"].iter().chain(more).copied().collect();
    Guest::boot_on(platform, test, machine, sockets, &more)
}

/// Kills function processes under a guest's verified files until it says how that went.
fn hold(platform: Platform, machine: &str) {
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=128M,queues=4"]);
    let serve = Serve::start(&simulator, &["01:00.0"]);
    let mut guest = boot(platform, "hold", machine, &[serve.socket("01:00.0")], &[]);
    guest.says("GUEST-BUSY");
    let mut kills = 0;
    while !guest.has_said("GUEST-") {
        if let Some(pid) = process(serve.child.id(), "function", "01:00.0") {
            signal(pid, Signal::KILL);
            kills += 1;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    guest.passes("hold");
    guest.ends();
    announce(&format!(
        "arm64 guest, {platform:?} on {machine}: {kills} kills under its I/O, none seen"
    ));
    assert!(kills > 50, "{kills}");
    serve.stop_after_its_guest(&simulator);
}

#[test]
fn kills_are_invisible_to_a_guest_with_pages_of_4_kib() {
    hold(Platform::Arm4K, GIC_V3);
}

#[test]
fn kills_are_invisible_to_a_guest_with_pages_of_16_kib() {
    hold(Platform::Arm16K, GIC_V3);
}

#[test]
fn a_gic_v2_takes_messages_by_its_frame() {
    hold(Platform::Arm4K, GIC_V2);
}

#[test]
fn a_guest_maps_on_demand_through_the_companion_of_a_strict_dart() {
    let simulator = Simulator::start(&["--device=01:00.0=probe", "--dart=strict"]);
    let serve = Serve::start_with_companion(&simulator);
    let devices = serve.function_and_companion();
    let more = ["-device", &*devices[0], "-device", &*devices[1]];
    let mut guest = boot(Platform::Arm4K, "companion", GIC_V3, &[], &more);
    guest.says("GUEST-FRAGMENT");
    simulator.fault("fragment:nth=1");
    guest.passes("companion");
    for line in guest.seen.iter().filter(|line| line.contains("companion: ")) {
        announce(&format!("arm64 guest: {line}"));
    }
    guest.ends();
    serve.stop();
    simulator.assert_released("01:00.0");
}
