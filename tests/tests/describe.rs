//! Describe, then attach: what a device is can be learned before a VMM forks. Alone in its program, since
//! it counts threads.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use cordon_tests::{Simulator, address, children, config};
use cordon_vmm::Host;

#[test]
fn describing_a_function_leaves_no_process_and_no_thread_behind() {
    let simulator = Simulator::usual();
    let host = Host::new(config(&simulator));
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = (threads(), children(std::process::id()).len());
    let found = host.describe(address("01:00.1")).unwrap();
    assert_eq!((found.identity.vendor, found.identity.device), (0xc0d0, 0x0002));
    assert_eq!((found.msix.unwrap().vectors, found.claimed), (32, false));
    assert_eq!(found.pci_bars()[0].map(|bar| bar.size), Some(128 << 10));
    assert_eq!(found.config[..4], [0xd0, 0xc0, 0x02, 0x00]);
    assert_eq!(before, (threads(), children(std::process::id()).len()));
    let none = host.describe(address("07:00.0")).err().unwrap();
    assert!(none.to_string().contains("the dext has no function 07:00.0"), "{none}");
}
