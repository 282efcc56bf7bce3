//! The kernel's NVMe driver on one disk and on several, and a function beside it.

use std::process::Command;

use cordon_tests::Simulator;

use crate::serve::{Serve, is_refusal};
use cordon_tests::machine::Guest;

#[test]
fn the_kernels_nvme_driver_binds_and_every_queue_interrupts() {
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=64M,queues=4"]);
    let serve = Serve::start(&simulator, &["01:00.0"]);
    let mut guest = Guest::boot("queues", "q35", &[serve.socket("01:00.0")], &["-no-reboot"]);
    guest.passes("queues");
    guest.ends();
    let seen = serve.until("detach");
    assert!(seen.iter().all(|line| !is_refusal(line)), "{seen:?}");
    serve.stop();
    simulator.assert_released("01:00.0");
}

#[test]
fn file_systems_hold_and_an_images_files_are_read_and_written() {
    let directory = tempfile::tempdir().unwrap();
    let (image, files) = (directory.path().join("image"), directory.path().join("files"));
    let content = |number: usize| -> Vec<u8> {
        (0..300_000)
            .map(|at: usize| ((at * 31 + at / 257) ^ (number * 97)).to_le_bytes()[0])
            .collect()
    };
    std::fs::create_dir(&files).unwrap();
    std::fs::write(files.join("from-host"), content(1000)).unwrap();
    std::fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
    let path = "/usr/sbin:/sbin:/usr/bin:/bin";
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-F", "-d"]).arg(&files).arg(&image).env("PATH", path);
    let made = make.status().is_ok_and(|status| status.success());
    assert!(made, "mkfs.ext4 of the package e2fsprogs");

    let disk = format!("--device=01:00.1=nvme,queues=4,image={}", image.display());
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=128M,queues=4", &disk]);
    let serve = Serve::start(&simulator, &["01:00.0", "01:00.1"]);
    let sockets = [serve.socket("01:00.0"), serve.socket("01:00.1")];
    let mut guest = Guest::boot("files", "q35", &sockets, &["-no-reboot"]);
    guest.passes("files");
    guest.ends();
    serve.stop();

    // The image file on the host holds what the guest wrote.
    let back = directory.path().join("from-guest");
    let dump = format!("dump /from-guest {}", back.display());
    let dumped = Command::new("debugfs").args(["-R", &dump]).arg(&image).env("PATH", path).output();
    assert!(dumped.unwrap().status.success(), "debugfs of the package e2fsprogs");
    assert!(std::fs::read(&back).unwrap() == content(2000), "the guest's file is different");
}

#[test]
fn two_functions_of_one_device_in_one_guest() {
    let simulator = Simulator::usual();
    let serve = Serve::start(&simulator, &["01:00.0", "01:00.1"]);
    let sockets = [serve.socket("01:00.0"), serve.socket("01:00.1")];
    let mut guest = Guest::boot("probe", "q35", &sockets, &["-no-reboot"]);
    guest.passes("probe");
    for said in ["registers: 12", "DMA engine: 65536", "interrupts: each of 32"] {
        assert!(guest.seen.iter().any(|line| line.contains(said)), "{said}: {:#?}", guest.seen);
    }
    guest.ends();
    serve.stop();
}
