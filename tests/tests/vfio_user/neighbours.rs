//! What one client does to the server's resources, and what another client of another function
//! notices of it: nothing. Over `cordon serve`, in a process of its own.
#![cfg(target_os = "linux")]

use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use cordon_cli::event::{Event, LimitName, Limited, Part};
use cordon_tests::serve::Serve;
use cordon_tests::vfio_user::{Client, map, ram, words};
use cordon_tests::{Simulator, eventually, processes, signal};
use cordon_vfio_user::protocol::command::{DMA_MAP, SET_IRQS};
use rustix::process::Signal;

const NVME: &str = "01:00.0";
const PROBE: &str = "01:00.1";
const NVME_ID: [u8; 4] = [0xd0, 0xc0, 0x01, 0x00];
const EMFILE: i32 = 24;
const MIB: u64 = 1 << 20;

/// Takes as many descriptors of the server's as it gets.
fn grab(client: &mut Client) -> usize {
    let mut grabbed = 0;
    // Each of a file of its own, as many as used up a server once.
    for number in 0..948 {
        let memory = ram(4096);
        let at = number * MIB;
        let reply = client.ask(DMA_MAP, &map(3, 0, at, 4096), &[memory.as_fd()]);
        if reply.error != 0 {
            assert_eq!(i32::try_from(reply.error).unwrap(), EMFILE);
            break;
        }
        grabbed += 1;
    }
    let event = ipc::Event::new().unwrap();
    let signaller = event.signaller().unwrap();
    for vector in 0..32 {
        let install = words(&[20, 0x24, 2, vector, 1]);
        grabbed += usize::from(client.ask(SET_IRQS, &install, &[signaller.as_fd()]).error == 0);
    }
    grabbed
}

fn ends_a_function(event: &Event) -> bool {
    matches!(event, Event::GivenUp { .. } | Event::Failed { .. } | Event::Away { .. })
}

#[test]
fn a_client_that_takes_all_the_descriptors_it_can_leaves_its_neighbours_theirs() {
    let simulator = Simulator::usual();
    let mut serve = Serve::start_with_descriptors(&simulator, &[NVME, PROBE], 300);
    let mut neighbour = serve.client(NVME);
    let mut greedy = serve.client(PROBE);
    let grabbed = grab(&mut greedy);
    assert!((50..200).contains(&grabbed), "{grabbed}");
    serve.until(|event| {
        let of_files = LimitName::MemoryFiles;
        matches!(event, Event::Limit { of: Limited::Client, part: Some(Part::Function), limit, most: Some(most), .. }
            if *limit == of_files && *most > 20)
    });
    serve.until(|event| matches!(event, Event::Refused { why, .. } if why.contains("files")));

    // The neighbour's function process is replaced, which needs descriptors, and its client goes and
    // comes again.
    for _ in 0..3 {
        for child in processes::children(serve.pid()) {
            let line =
                std::fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
            if line.contains("function") && line.contains(NVME) {
                signal(child, Signal::KILL);
            }
        }
        assert!(eventually(|| neighbour.read(7, 0, 4) == NVME_ID));
        drop(neighbour);
        neighbour = serve.client(NVME);
    }
    let memory = ram(MIB);
    assert_eq!(neighbour.ask(DMA_MAP, &map(3, 0, 0, MIB), &[memory.as_fd()]).error, 0);
    greedy.still_works();
    let (status, _, events) = serve.end(Signal::TERM);
    assert!(status.success() && !events.iter().any(ends_a_function), "{events:?}");
}

/// Sets what a process may open; what it has open stays. Asked by the user that it is, which a server
/// becomes that root starts: root of a container may not be allowed to.
fn limit(pid: u32, most: u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let id = |name: &str| -> u32 {
        let ids = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        ids.split_whitespace().next().unwrap().parse().unwrap()
    };
    let mut command = Command::new("prlimit");
    command.args(["--pid", &pid.to_string(), &format!("--nofile={most}:")]);
    if rustix::process::geteuid().is_root() {
        command.uid(id("Uid:")).gid(id("Gid:"));
    }
    assert!(command.status().unwrap().success());
}

#[test]
fn a_client_that_comes_while_no_descriptor_is_left_is_let_in_when_one_is() {
    let simulator = Simulator::usual();
    let mut serve = Serve::start(&simulator, &[NVME, PROBE]);
    let mut neighbour = serve.client(NVME);
    limit(serve.pid(), 10);
    let mut late = Client::connect(&serve.socket(PROBE));
    late.send(1, 0, b"\0\0\0\0{}\0", &[]);
    serve.until(|event| matches!(event, Event::Delayed { why, .. } if why.contains("open files")));
    // Also where there is a client already, and another comes.
    let mut second = Client::connect(&serve.socket(NVME));
    serve.until(|event| matches!(event, Event::Delayed { .. }));
    assert_eq!(neighbour.read(7, 0, 4), NVME_ID);
    limit(serve.pid(), 1024);
    assert_eq!(late.receive().1.error, 0);
    late.still_works();
    assert!(second.is_closed());
    neighbour.still_works();
    let (status, _, events) = serve.end(Signal::TERM);
    assert!(status.success() && !events.iter().any(ends_a_function), "{events:?}");
}
