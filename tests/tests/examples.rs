//! The examples run as they are, against a simulated device.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::process::Command;

use cordon_tests::{Simulator, announce, program};

#[test]
fn every_example_runs_and_says_what_it_saw() {
    let simulator = Simulator::start(&["--device=01:00.0=probe"]);
    for (example, says) in [
        ("read-config", "c0d0:0002"),
        ("window-and-interrupt", "vector 0 was signalled"),
        ("survive-a-kill", "nothing was lost"),
    ] {
        let output = Command::new(program(example))
            .arg("01:00.0")
            .env("CORDON_DEXT", simulator.endpoint())
            .env("CORDON_DEVICE_PROC", program("device-proc"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains(says), "{example}: {text}{errors}");
        for line in text.lines() {
            announce(&format!("example {example}: {line}"));
        }
        simulator.assert_released("01:00.0");
    }
}
