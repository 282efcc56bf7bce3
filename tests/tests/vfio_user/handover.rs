//! From one client to the next: what one plants, the other does not find.

use std::os::fd::AsFd as _;
use std::time::Duration;

use cordon_tests::vfio_user::{Client, Served, map, ram, words};
use cordon_vfio_user::Event;
use cordon_vfio_user::protocol::command::{DMA_MAP, REGION_INFO, SET_IRQS};
use cordon_vmm::{PassthroughDevice as _, Recovery};
use ipc::{Access, Deadline, SharedMemory, Window};

const CONFIG: u32 = 7;
/// Registers of config space that a client can write on both functions, and what it plants there: some
/// reach the device, others are kept for the client.
const PLANTED: [(u64, &[u8]); 8] = [
    (0x04, &[0x46, 0x05]),
    (0x0c, &[0x10]),
    (0x3c, &[0x2a]),
    (0x54, &[0x00, 0xf0, 0xe0, 0xfe]),
    (0x58, &[0x78, 0x56, 0x34, 0x12]),
    (0x5c, &[0x42, 0x41]),
    (0x78, &[0x40, 0x10]),
    (0xb3, &[0xc0]),
];

/// Where a client can put something into a function's BARs: BAR, offset.
struct Function {
    address: &'static str,
    /// By a trapped access, which the device keeps.
    trapped: &'static [(u32, u64)],
    /// By a window.
    windowed: &'static [(u32, u64)],
    /// Ranges of BARs that are compared, by traps.
    compared: &'static [(u32, u64, u32)],
}

const PROBE: Function = Function {
    address: "01:00.1",
    trapped: &[(0, 0x10), (0, 0x40), (2, 0x8), (2, 0xf_fff0)],
    windowed: &[(0, 0x38), (0, 0x1_0000), (2, 0x100), (2, 0x8_0000)],
    // Without its counter of resets.
    compared: &[
        (0, 0, 0x0c),
        (0, 0x10, 0x400),
        (0, 0x8000, 0x1000),
        (0, 0x1_0000, 0x100),
        (2, 0, 0x1000),
        (2, 0x8_0000, 0x100),
        (2, 0xf_f000, 0x1000),
    ],
};

const NVME: Function = Function {
    address: "01:00.0",
    // Admin queues: attributes, submission, completion.
    trapped: &[(0, 0x24), (0, 0x28), (0, 0x30)],
    // And the doorbells.
    windowed: &[(0, 0x28), (0, 0x30), (0, 0x1000), (0, 0x1004)],
    compared: &[(0, 0, 0x1020)],
};

fn window(client: &mut Client, bar: u32) -> Window {
    let argument = words(&[96, 0, bar, 0, 0, 0, 0, 0]);
    let memory = client.ask(REGION_INFO, &argument, &[]).descriptors.pop().unwrap();
    SharedMemory::measured(memory).unwrap().map_all(Access::ReadWrite).unwrap()
}

/// What a client found where.
type One = (String, Vec<u8>);
type Seen = Vec<One>;

/// Everything of a function that a client can look at.
fn look(client: &mut Client, function: &Function) -> Seen {
    let mut seen = vec![("config".to_owned(), client.read(CONFIG, 0, 4096))];
    for (bar, at, count) in function.compared {
        seen.push((format!("BAR {bar} from {at:#x}"), client.read(*bar, *at, *count)));
    }
    for (bar, at) in function.windowed {
        let mut bytes = [0; 16];
        window(client, *bar).copy_out(*at, &mut bytes).unwrap();
        seen.push((format!("window of BAR {bar} from {at:#x}"), bytes.to_vec()));
    }
    seen
}

/// Where two differ, and what the second has there.
fn differences(one: &Seen, other: &Seen) -> Vec<String> {
    let differ = |(one, other): (&One, &One)| {
        let ((place, before), (_, after)) = (one, other);
        let at = before.iter().zip(after).position(|(before, after)| before != after)?;
        Some(format!("{place}: +{at:#x}: {:x?}", &after[at..after.len().min(at + 8)]))
    };
    one.iter().zip(other).filter_map(differ).collect()
}

fn plant(client: &mut Client, function: &Function) {
    for (at, bytes) in PLANTED {
        client.write(CONFIG, at, bytes);
    }
    assert_eq!(client.read(CONFIG, 0x54, 8), [PLANTED[3].1, PLANTED[4].1].concat());
    for (bar, at) in function.trapped {
        client.write(*bar, *at, b"planted!");
    }
    for (bar, at) in function.windowed {
        window(client, *bar).copy_in(*at, b"planted!").unwrap();
    }
}

fn left(served: &Served) {
    served.until(|event| matches!(event, Event::Detached(_)));
}

fn what_one_client_plants_the_next_does_not_find(function: &Function) {
    let served = Served::start(function.address);
    let mut first = served.client();
    let before = look(&mut first, function);
    let (event, memory) = (ipc::Event::new().unwrap(), ram(1 << 20));
    let signaller = event.signaller().unwrap();
    let install = words(&[20, 0x24, 2, 0, 1]);
    assert_eq!(first.ask(SET_IRQS, &install, &[signaller.as_fd()]).error, 0);
    assert_eq!(first.ask(DMA_MAP, &map(3, 0, 0, 1 << 20), &[memory.as_fd()]).error, 0);
    plant(&mut first, function);
    let planted = look(&mut first, function);
    let there = differences(&before, &planted);
    assert!(there.len() > function.windowed.len(), "too little was planted: {there:?}");
    drop(first);
    left(&served);

    let mut next = served.client();
    let found = differences(&before, &look(&mut next, function));
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!(served.simulator.held(function.address).2, 0);
    // Another index can be used, and the first client's event is not signalled any more.
    let own = ipc::Event::new().unwrap();
    let signaller = own.signaller().unwrap();
    let install = words(&[20, 0x24, 0, 0, 1]);
    assert_eq!(next.ask(SET_IRQS, &install, &[signaller.as_fd()]).error, 0);
    next.master_bus();
    let raise = serde_json::json!({ "raise": { "address": function.address, "vector": 0 } });
    assert_eq!(served.simulator.control(&raise), "done");
    assert!(own.wait(Deadline::after(Duration::from_secs(5))).unwrap());
    assert!(!event.clear().unwrap());
}

#[test]
fn the_probe_is_handed_on_as_the_first_client_found_it() {
    what_one_client_plants_the_next_does_not_find(&PROBE);
}

#[test]
fn the_nvme_controller_is_handed_on_as_the_first_client_found_it() {
    what_one_client_plants_the_next_does_not_find(&NVME);
}

#[test]
fn whoever_used_the_function_before_the_server_is_a_client_too() {
    let served = Served::start_after("01:00.1", |proxy| {
        proxy.bar_write(0, 0x10, b"planted!").unwrap();
        proxy.bar_write(2, 0x8000, b"planted!").unwrap();
    });
    let mut client = served.client();
    client.still_works();
    client.read(7, 4, 2);
    let mut command = [0xff; 2];
    served.proxy.config_read(4, &mut command).unwrap();
    assert_eq!(command[0] & 4, 0, "bus mastering is on");
    client.master_bus();
    assert_eq!(client.read(0, 0x10, 8), [0; 8]);
    assert_eq!(client.read(2, 0x8000, 8), [0; 8]);
}

#[test]
fn a_function_that_cannot_be_reset_is_withheld_until_it_can() {
    let served = Served::probe();
    let mut client = served.client();
    client.master_bus();
    client.write(0, 0x10, b"planted!");
    // Selector ResetDevice, again and again: for about two seconds, with the pauses between.
    for nth in 1..=8 {
        served.simulator.fault(&format!("fail:selector=17,nth={nth},code=0xe00002bc"));
    }
    drop(client);
    left(&served);
    served.until(|event| matches!(event, Event::Withheld(why) if why.contains("0xe00002bc")));
    let mut early = served.connect();
    assert!(early.is_closed(), "it was handed on");
    served.until(|event| *event == Event::Busy);
    served.until(|event| *event == Event::Available);
    let mut next = served.client();
    next.master_bus();
    assert_eq!(next.read(0, 0x10, 8), [0; 8]);
}

#[test]
fn a_device_that_goes_away_with_its_client_is_handed_on_when_it_is_back() {
    let mut served = Served::start_with("01:00.1", |config| config.recovery = Recovery::default());
    let mut client = served.client();
    let event = ipc::Event::new().unwrap();
    let signaller = event.signaller().unwrap();
    let install = |index| words(&[20, 0x24, index, 0, 1]);
    assert_eq!(client.ask(SET_IRQS, &install(2), &[signaller.as_fd()]).error, 0);
    served.simulator.kill();
    assert!(cordon_tests::eventually(|| client.read(CONFIG, 0, 4) == [0xff; 4]));
    drop(client);
    left(&served);
    served.until(|event| matches!(event, Event::Withheld(_)));
    served.simulator.restart();
    served.until(|event| *event == Event::Available);
    let mut next = served.client();
    assert_eq!(next.read(CONFIG, 0, 4), [0xd0, 0xc0, 0x02, 0x00]);
    let taken = next.ask(SET_IRQS, &install(0), &[signaller.as_fd()]);
    assert_eq!(taken.error, 0, "the first client's MSI-X is in use still");
}
