//! A guest that maps memory on demand.

use cordon_tests::{Simulator, announce, eventually};

use crate::serve::{Serve, is_refusal};
use cordon_tests::machine::{Guest, TIMEOUT};

#[test]
fn a_guest_maps_on_demand_through_the_companion_of_a_strict_dart() {
    let simulator = Simulator::start(&["--device=01:00.0=probe", "--dart=strict"]);
    let serve = Serve::start_with_companion(&simulator);
    let devices = serve.function_and_companion();
    let mut guest = Guest::boot(
        "companion",
        "q35",
        &[],
        &["-no-reboot", "-device", &devices[0], "-device", &devices[1]],
    );
    guest.says("GUEST-LIVE");
    let live = serve.inspect(&simulator, "01:00.0")["dma"].clone();
    assert_eq!((&live["live_regions"], &live["live_bytes"]), (&4096.into(), &(16 << 20).into()));
    assert_eq!(simulator.held("01:00.0").2, 4096);
    guest.says("GUEST-FRAGMENT");
    simulator.fault("fragment:nth=1");
    guest.passes("companion");
    for line in guest.seen.iter().filter(|line| line.contains("companion: ")) {
        announce(&format!("guest: {line}"));
    }
    guest.ends();
    let (mut gone, mut seen) = (0, Vec::new());
    while gone < 2 {
        let line = serve.log.recv_timeout(TIMEOUT).unwrap();
        gone += usize::from(line["event"] == "detach");
        seen.push(line);
    }
    assert!(seen.iter().all(|line| !is_refusal(line)), "{seen:?}");
    assert!(eventually(|| simulator.held("01:00.0").2 == 0), "a guest that is gone left mappings");
    let after = serve.inspect(&simulator, "01:00.0")["dma"].clone();
    assert_eq!((&after["live_regions"], &after["peak_regions"]), (&0.into(), &65_536.into()));
    assert_eq!(after["peak_bytes"], 3u64 << 29);
    let said = serve.errors.lock().unwrap().join("\n");
    for limit in ["no more mappings", "no more bytes at once", "no single segment"] {
        assert!(said.contains(limit), "{limit}: {said}");
    }
    for limit in ["failed_bytes", "failed_mappings", "failed_segments"] {
        // The hostile rings ask for whatever they like, so there may be more.
        assert!(after[limit].as_u64().unwrap() >= 1, "{limit}: {after}");
    }
    serve.stop();
    simulator.assert_released("01:00.0");
}
