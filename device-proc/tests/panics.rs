//! A panic ends the process that asked for that, at once, and says what happened.

use std::process::Command;

use cordon_device_proc::panics;

/// Set for the process that panics.
const PANICS: &str = "CORDON_TEST_PANICS";

#[test]
fn a_panic_is_said_and_ends_the_process_without_unwinding() {
    if std::env::var_os(PANICS).is_some() {
        panics::exit_on_panic();
        let caught = std::panic::catch_unwind(|| panic!("a bug"));
        println!("it went on: {caught:?}");
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_panic_is_said_and_ends_the_process_without_unwinding", "--nocapture"])
        .env(PANICS, "1")
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert_eq!(output.status.code(), Some(panics::STATUS), "{said}");
    assert!(said.contains("a bug") && !said.contains("it went on"), "{said}");
}
