//! A guest whose QEMU `cordon run` starts has its device, and nothing is left when it powers off.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::process::Command;

use cordon_tests::machine::{Guest, Platform};
use cordon_tests::{Simulator, announce, eventually, program, write_script};

const DISK: &str = "01:00.0";

#[test]
fn a_guest_by_cordon_run_does_verified_io_and_its_end_is_that_of_the_run() {
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=64M,queues=4"]);
    let folder = tempfile::tempdir().unwrap();
    let temporary = folder.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    // QEMU is run by its own loader here, and known by its name.
    let qemu = folder.path().join("qemu-system-x86_64");
    let by_run = |command: Command| {
        let mut words = vec![command.get_program().to_owned()];
        words.extend(command.get_args().map(ToOwned::to_owned));
        let own =
            words.iter().position(|word| word.to_string_lossy().ends_with("/qemu-system-x86_64"));
        let options = words.split_off(own.unwrap() + 1);
        let quoted: Vec<String> =
            words.iter().map(|word| format!("'{}'", word.display())).collect();
        write_script(&qemu, &format!("#!/bin/sh\nexec {} \"$@\"\n", quoted.join(" ")));
        let mut run = Command::new(program("cordon"));
        run.args(["run", "--dext", &simulator.endpoint(), "--device", DISK, "--"]);
        run.arg(&qemu).args(options).env("TMPDIR", &temporary);
        run
    };
    let port = folder.path().join("port");
    let port_option = format!("unix:{},server=on,wait=off", port.display());
    let more = ["-no-reboot", "-serial", &port_option];
    let mut guest = Guest::boot_by(Platform::Pc, "replaced", "q35", &[], &more, by_run);
    guest.says("GUEST-BUSY");
    assert!(std::fs::read_dir(&temporary).unwrap().next().is_some(), "its sockets are nowhere");
    let mut tell = UnixStream::connect(&port).unwrap();
    tell.write_all(b"over\n").unwrap();
    guest.passes("replaced");
    guest.ends();
    assert!(guest.child.wait().unwrap().success());
    let line = guest.seen.iter().find(|line| line.starts_with("replaced: ")).unwrap();
    announce(&format!("cordon run: a guest of QEMU's: {line}"));
    let bytes = line.split(' ').find_map(|word| word.parse::<u64>().ok());
    assert!(bytes > Some(1 << 20), "{line}");
    assert!(
        eventually(|| std::fs::read_dir(&temporary).unwrap().next().is_none()),
        "its folder is left"
    );
    simulator.assert_released(DISK);
}
