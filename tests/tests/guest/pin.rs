//! A guest without MSI and MSI-X: interrupts by the pin, INTx.

use cordon_tests::{Simulator, announce};

use crate::serve::Serve;
use cordon_tests::machine::Guest;

#[test]
fn a_guest_without_msi_is_interrupted_as_often_as_there_is_something_to_do() {
    let simulator = Simulator::start(&["--device=01:00.0=nvme,size=64M,queues=4"]);
    let serve = Serve::start(&simulator, &["01:00.0"]);
    let sockets = [serve.socket("01:00.0")];
    // QEMU's own NVMe controller beside it, to compare with: its pin is a level.
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let drive = format!("id=image,if=none,format=raw,file={}", image.display());
    let more = ["-no-reboot", "-drive", &drive, "-device", "nvme,serial=1,drive=image"];
    let mut guest = Guest::boot_with("pin", "pci=nomsi", "q35", &sockets, &more);
    // The guest fails if its kernel says that nobody cared.
    guest.passes("pin");
    let said: Vec<_> = guest.seen.iter().filter(|line| line.contains("pin ")).cloned().collect();
    guest.ends();
    let per_request = |vendor: &str| {
        let line = said.iter().find(|line| line.contains(vendor)).unwrap();
        let before = |what: &str| {
            let number = line.split(what).next().unwrap().rsplit(' ').next();
            number.unwrap().parse::<u64>().unwrap()
        };
        before(" interrupts") / before(" requests")
    };
    let (own, qemus) = (per_request("0xc0d0"), per_request("0x1b36"));
    announce(&format!("guest: {own} interrupts for each request, {qemus} of QEMU's own: {said:?}"));
    // A line that stays up is 100,000 and more in a second.
    assert!(own < 250, "{said:?}");
    // QEMU's own is to compare with: on a busy machine its line was seen to stay up through a pause.
    let ours = said.iter().find(|line| line.contains("0xc0d0")).unwrap();
    assert!(ours.contains(" 0 of them in pauses"), "{said:?}");
    serve.stop();
    simulator.assert_released("01:00.0");
}
