//! The test VMM (`tests/vmm`), which links `cordon-vmm` on alioth, runs its firmware with the probe function under
//! KVM: the firmware reports each thing that it tried, and what it had killed meanwhile.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![cfg(target_os = "linux")]
#![cfg(target_arch = "x86_64")]

use std::process::Command;

use cordon_tests::{Simulator, program, verdict};

/// Says that there is no KVM here and that this is known.
const WITHOUT: &str = "CORDON_WITHOUT_KVM";
/// What a run must have tried, so that a firmware which ends early is not one that found nothing.
const CHECKS: usize = 76;

#[test]
fn firmware_drives_a_function_through_deaths_under_kvm() {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        let allowed = std::env::var_os(WITHOUT).is_some_and(|value| !value.is_empty());
        assert!(allowed, "/dev/kvm: {error}; a machine that has none says so with --without-kvm");
        verdict(
            "vmm: 0 passed, 0 failed (alioth; /dev/kvm is missing and --without-kvm was given)",
        );
        return;
    }
    let firmware = std::env::var_os("CORDON_FIRMWARE").expect(
        "CORDON_FIRMWARE names the firmware: cargo xtask firmware builds it and says where",
    );
    let simulator = Simulator::usual();
    let output = Command::new("timeout")
        .args(["--kill-after=5", "120"])
        .arg(program("test-vmm"))
        .args(["--dext", &simulator.endpoint(), "01:00.1", "--image"])
        .arg(firmware)
        .arg("--device-proc")
        .arg(program("device-proc"))
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    verdict(&format!("\n{report}"));
    let count = |word: &str| report.lines().filter(|line| line.starts_with(word)).count();
    let (passed, failed) = (count("ok "), count("FAILED "));
    verdict(&format!("vmm: {passed} passed, {failed} failed (alioth, kvm)"));
    let last = format!("firmware: {passed} passed, {failed} failed");
    assert!(report.lines().any(|line| line == last), "{report}\n{errors}");
    assert!(output.status.success() && failed == 0 && passed >= CHECKS, "{report}\n{errors}");
    simulator.assert_released("01:00.1");
}
