//! The device goes away under a client, and comes back: never an end of file, never a late reply.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use cordon_tests::vfio_user::{Served, map, ram, words};
use cordon_tests::{eventually, signal};
use cordon_vfio_user::Event;
use cordon_vfio_user::protocol::command::{DMA_MAP, REGION_INFO};
use cordon_vmm::{PassthroughDevice as _, Recovery};
use ipc::{Access, SharedMemory};
use rustix::process::Signal;
use std::os::fd::AsFd as _;

const CONFIG: u32 = 7;

fn served() -> Served {
    Served::start_with("01:00.1", |config| config.recovery = Recovery::default())
}

#[test]
fn requests_meanwhile_are_answered_at_once_with_all_ones() {
    let mut served = served();
    let mut client = served.client();
    let memory = ram(0x10000);
    client.ask(DMA_MAP, &map(3, 0, 0x8000_0000, 0x10000), &[memory.as_fd()]);
    served.simulator.kill();
    let before = Instant::now();
    assert!(eventually(|| client.read(CONFIG, 0, 4) == [0xff; 4]));
    for _ in 0..20 {
        assert_eq!(client.read(0, 0, 4), [0xff; 4]);
        client.write(0, 0x10, &[1, 2, 3, 4]);
        client.write(CONFIG, 4, &[6, 0]);
        client.still_works();
    }
    assert!(before.elapsed() < Duration::from_secs(3));
    served.simulator.restart();
    assert!(eventually(|| served.proxy.returns() == 1));
    client.still_works();
}

#[test]
fn a_function_process_that_hangs_delays_a_reply_below_qemus_five_seconds() {
    let served = served();
    let mut client = served.client();
    signal(served.proxy.pid(), Signal::STOP);
    let before = Instant::now();
    assert_eq!(client.read(CONFIG, 0, 4), [0xd0, 0xc0, 0x02, 0x00]);
    assert!(before.elapsed() < Duration::from_millis(4500));
}

#[test]
fn a_client_with_windows_of_a_dext_that_died_reads_all_ones_until_another_comes() {
    let mut served = served();
    let mut client = served.client();
    let argument = words(&[32, 0, 2, 0, 0, 0, 0, 0]);
    let window: OwnedFd = client.ask(REGION_INFO, &argument, &[]).descriptors.pop().unwrap();
    let window = SharedMemory::measured(window).unwrap().map_all(Access::ReadWrite).unwrap();
    window.write(0, 7u32).unwrap();
    served.simulator.kill();
    assert!(eventually(|| client.read(CONFIG, 0, 4) == [0xff; 4]));
    served.simulator.restart();
    assert!(eventually(|| served.proxy.returns() == 1));
    assert_eq!(client.read(CONFIG, 0, 4), [0xff; 4]);
    assert_eq!(client.read(0, 0, 4), [0xff; 4]);
    client.write(CONFIG, 0x0c, &[1]);
    assert!(eventually(|| window.read::<u32>(0).unwrap() == u32::MAX));
    drop(client);
    served.until(|event| matches!(event, Event::Detached(_)));
    let mut client = served.client();
    assert_eq!(client.read(CONFIG, 0, 4), [0xd0, 0xc0, 0x02, 0x00]);
    let mut cache_line = [0; 1];
    served.proxy.config_read(0x0c, &mut cache_line).unwrap();
    assert_eq!(cache_line, [0]);
}

#[test]
fn a_client_keeps_its_windows_when_only_the_connection_process_died() {
    let served = served();
    let mut client = served.client();
    signal(served.proxy.connection().pid(), Signal::KILL);
    assert!(eventually(|| served.proxy.returns() == 1));
    assert_eq!(client.read(CONFIG, 0, 4), [0xd0, 0xc0, 0x02, 0x00]);
    client.master_bus();
    assert_eq!(client.read(0, 0, 4), *b"PRBE");
}

#[test]
fn a_device_that_came_back_is_as_after_a_reset_also_what_the_server_keeps_of_it() {
    let served = served();
    let mut client = served.client();
    let of_device = || {
        let mut command = [0; 2];
        served.proxy.config_read(4, &mut command).unwrap();
        command
    };
    client.write(CONFIG, 4, &[6, 0]);
    client.write(CONFIG, 0x10, &0xfeb0_0000u32.to_le_bytes());
    client.write(CONFIG, 0xb3, &[0x80]);
    assert_eq!(of_device(), [6, 0]);
    signal(served.proxy.connection().pid(), Signal::KILL);
    assert!(eventually(|| served.proxy.returns() == 1));
    // Its new claim switched bus mastering on, which the guest has not.
    for (at, length) in [(4, 2), (0x10, 4), (0xb3, 1)] {
        assert_eq!(client.read(CONFIG, at, length), vec![0; length as usize], "{at:#x}");
    }
    assert_eq!(of_device(), [0, 0]);
}

#[test]
fn bar_registers_of_a_device_that_is_gone_read_all_ones() {
    let mut served = served();
    let mut client = served.client();
    client.write(CONFIG, 0x10, &0xfeb0_0000u32.to_le_bytes());
    assert_eq!(client.read(CONFIG, 0x10, 4), 0xfeb0_0000u32.to_le_bytes());
    assert_eq!(client.read(0, 0x800c, 4), [1, 0, 0, 0]);
    served.simulator.kill();
    assert!(eventually(|| client.read(CONFIG, 0x10, 4) == [0xff; 4]));
    assert_eq!(client.read(0, 0x800c, 4), [0xff; 4]);
}
