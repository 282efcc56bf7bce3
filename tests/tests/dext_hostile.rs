//! Clients that mean ill, at the simulated dext: whatever one of them does or holds, another
//! function's client notices nothing.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![cfg(target_os = "linux")]

use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use cordon_tests::dext::{register, unsealed};
use cordon_tests::{Simulator, address, eventually, program, start_copy};
use dext_client::sim::SimulatedRegistry;
use dext_client::{Behind, Client, Registry as _, SelectorError, UserClient, open_function};
use ipc::poll::{self, Source};
use ipc::wire::dext::{CLIENT_TYPE, IoReturn, Reply, Request, memory, selector};
use ipc::wire::handshake::Role;
use ipc::{Access, Deadline, SharedMemory, Tube};
use rustix::event::EventfdFlags;
use rustix::fs::SealFlags;

const NVME: &str = "01:00.0";
const PROBE: &str = "01:00.1";

/// Connections that one process may have.
const OF_A_PROCESS: usize = 128;
/// Connections that one function may have.
const OF_A_FUNCTION: usize = 64;
/// Files that one function's clients may have mapped.
const FILES: u64 = 4096;

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

fn registry(simulator: &Simulator) -> SimulatedRegistry {
    SimulatedRegistry::new(&simulator.socket())
}

fn claimed(simulator: &Simulator, function: &str) -> Client {
    let mut client = open_function(&registry(simulator), address(function)).unwrap();
    client.claim().unwrap();
    client
}

/// A connection with a claim, without types.
fn raw(simulator: &Simulator, function: usize) -> Box<dyn UserClient> {
    let service = registry(simulator).services().unwrap()[function].id;
    let mut connection = registry(simulator).open(service, CLIENT_TYPE).unwrap();
    connection.call(selector::CLAIM, &[], &mut [], None).unwrap();
    connection
}

/// A socket that has introduced itself and nothing else.
fn stranger(simulator: &Simulator) -> Result<Tube, Box<dyn std::error::Error>> {
    let mut tube = Tube::connect(&simulator.socket())?;
    tube.handshake(Role::DextClient, Role::Dext, soon())?;
    Ok(tube)
}

/// That a client does everything a client does, and its device moves data.
fn works(client: &mut Client) {
    client.config_read(0, 4).unwrap();
    client.reset().unwrap();
    let ram = SharedMemory::create("ram", 0x8000).unwrap();
    let window = ram.map_all(Access::ReadWrite).unwrap();
    window.copy_in(0, b"carried over").unwrap();
    let bus = register(client, 1 << 40, &ram, 0x8000).unwrap();
    let registers = client.map_bar(0).unwrap().window;
    assert_eq!(copy(&registers, bus, bus + 0x4000), 0);
    let mut there = [0; 12];
    window.copy_out(0x4000, &mut there).unwrap();
    assert_eq!(&there, b"carried over");
    client.unregister_dma(1 << 40).unwrap();
}

/// Has the probe copy 4 KiB; its status.
fn copy(registers: &ipc::Window, from: u64, to: u64) -> u32 {
    let number = registers.load_u32(0x5c).unwrap() + 1;
    start_copy(registers, from, to, 4096, number);
    assert!(eventually(|| registers.load_u32(0x5c).unwrap() == number), "the copy never ended");
    registers.read(0x60).unwrap()
}

/// Two probes: one for the client that means ill, one for the other.
fn two_probes() -> Simulator {
    Simulator::start(&["--device=01:00.0=probe", "--device=01:00.1=probe"])
}

#[test]
fn memory_that_is_shortened_after_it_was_registered_fails_its_own_dma_only() {
    let simulator = two_probes();
    let (mut ill, mut other) = (claimed(&simulator, PROBE), claimed(&simulator, NVME));
    let memory = unsealed(0x8000);
    let bus = register(&mut ill, 0x1000_0000, &memory, 0x8000).unwrap();
    let registers = ill.map_bar(0).unwrap().window;
    assert_eq!(copy(&registers, bus, bus + 0x4000), 0);
    for left in [0x4000, 0] {
        rustix::fs::ftruncate(&memory, left).unwrap();
        // Out of what is there into what is gone, and the other way round.
        assert_eq!(copy(&registers, bus, bus + 0x4000), 1, "{left:#x}");
        assert_eq!(copy(&registers, bus + 0x4000, bus), 1, "{left:#x}");
    }
    // The dext itself reads it for ProbeDMARegion.
    let mut service = raw(&simulator, 1);
    let mut value = [0];
    let behind = Behind { memory: &unsealed(0x4000), offset: 0, writable: true };
    let inputs = [0x2000_0000, 0x1000, 0x4000];
    let short = behind.memory.try_clone().unwrap();
    service.call(selector::REGISTER_DMA_REGION, &inputs, &mut [0; 3], Some(behind)).unwrap();
    rustix::fs::ftruncate(&short, 0).unwrap();
    let probed = service.call(selector::PROBE_DMA_REGION, &[0x2000_0000, 0], &mut value, None);
    assert!(matches!(probed, Err(SelectorError::Code(IoReturn::NO_MEMORY))), "{probed:?}");
    works(&mut other);
    works(&mut ill);
}

#[test]
fn memory_that_is_too_short_already_is_not_registered() {
    let simulator = two_probes();
    let mut client = claimed(&simulator, PROBE);
    let memory = unsealed(0x8000);
    register(&mut client, 0x1000_0000, &memory, 0x8000).unwrap();
    rustix::fs::ftruncate(&memory, 0x4000).unwrap();
    let refused = register(&mut client, 0x2000_0000, &memory, 0x8000).unwrap_err();
    assert_eq!(refused, IoReturn::BAD_ARGUMENT);
    // And memory that has grown is there as far as it has.
    rustix::fs::ftruncate(&memory, 0x1_0000).unwrap();
    register(&mut client, 0x3000_0000, &memory, 0x1_0000).unwrap();
}

#[test]
fn a_descriptor_for_reading_does_not_become_one_for_writing_through_another_client() {
    let simulator = two_probes();
    let (mut owner, mut ill) = (claimed(&simulator, NVME), claimed(&simulator, PROBE));
    let memory = unsealed(0x8000);
    register(&mut owner, 0x1000_0000, &memory, 0x8000).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory.as_fd()));
    let for_reading: OwnedFd = std::fs::File::open(path).unwrap().into();
    let for_reading = SharedMemory::from_trusted(for_reading, memory.size()).unwrap();
    let refused = register(&mut ill, 0x1000_0000, &for_reading, 0x8000).unwrap_err();
    assert_eq!(refused, IoReturn::BAD_ARGUMENT);
}

#[test]
fn a_client_at_the_end_of_its_functions_mappings_is_refused_and_another_functions_is_not() {
    let simulator = two_probes();
    let (mut ill, mut other) = (claimed(&simulator, PROBE), claimed(&simulator, NVME));
    for file in 0..FILES {
        register(&mut ill, file << 16, &unsealed(4096), 4096).unwrap();
    }
    let memory = unsealed(4096);
    assert_eq!(register(&mut ill, 1 << 40, &memory, 4096), Err(IoReturn::NO_MEMORY));
    let mut second = claimed(&simulator, PROBE);
    assert_eq!(register(&mut second, 1 << 40, &memory, 4096), Err(IoReturn::NO_MEMORY));
    works(&mut other);
    ill.unregister_dma(0).unwrap();
    register(&mut second, 1 << 40, &memory, 4096).unwrap();
}

#[test]
fn a_client_at_the_end_of_its_functions_addresses_is_refused_and_another_functions_is_not() {
    let simulator = two_probes();
    let (mut ill, mut other) = (claimed(&simulator, PROBE), claimed(&simulator, NVME));
    // 2 TiB of nothing each, as much as 4 TiB of them.
    for (key, size, registered) in [
        (0, 1 << 46, Err(IoReturn::NO_MEMORY)),
        (1 << 20, 1 << 41, Ok(1 << 20)),
        (2 << 20, 1 << 41, Ok(2 << 20)),
        (3 << 20, 4096, Err(IoReturn::NO_MEMORY)),
    ] {
        assert_eq!(register(&mut ill, key, &unsealed(size), 4096), registered, "{size:#x}");
    }
    works(&mut other);
}

#[test]
fn buffers_of_all_clients_of_a_function_are_as_much_as_one_may_be() {
    let simulator = Simulator::usual();
    let allocate = |connection: &mut Box<dyn UserClient>, size: u64| {
        connection.call(selector::ALLOCATE_DMA_BUFFER, &[size, 0], &mut [0; 6], None)
    };
    let (mut first, mut second) = (raw(&simulator, 1), raw(&simulator, 1));
    let mut other = raw(&simulator, 0);
    allocate(&mut first, 1 << 30).unwrap();
    let refused = allocate(&mut second, 1 << 30).unwrap_err();
    assert!(matches!(refused, SelectorError::Code(IoReturn::NO_MEMORY)), "{refused:?}");
    allocate(&mut second, 1 << 29).unwrap();
    allocate(&mut other, 3 << 29).unwrap();
    // It replaces its own.
    allocate(&mut first, 1 << 30).unwrap();
}

#[test]
fn a_function_has_so_many_clients_and_the_other_function_as_many() {
    let simulator = Simulator::usual();
    let services = registry(&simulator).services().unwrap();
    let mut open: Vec<_> = (0..OF_A_FUNCTION)
        .map(|_| registry(&simulator).open(services[1].id, CLIENT_TYPE).unwrap())
        .collect();
    let refused = registry(&simulator).open(services[1].id, CLIENT_TYPE).err().unwrap();
    assert_eq!(refused.code(), Some(IoReturn::NO_RESOURCES));
    claimed(&simulator, NVME);
    open.pop();
    assert!(eventually(|| registry(&simulator).open(services[1].id, CLIENT_TYPE).is_ok()));
}

#[test]
fn a_process_with_all_its_connections_leaves_some_to_others() {
    let simulator = Simulator::usual();
    let mut tubes = Vec::new();
    while let Ok(tube) = stranger(&simulator) {
        tubes.push(tube);
        assert!(tubes.len() <= OF_A_PROCESS, "this process was never refused");
    }
    assert_eq!(tubes.len(), OF_A_PROCESS);
    // Another process looks, opens every function and closes it again.
    let mut devices = Command::new(program("cordon"));
    devices.args(["devices", "--dext", &simulator.endpoint()]);
    let listed = devices.output().unwrap();
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.status.success() && text.contains(NVME), "{listed:?}");
    drop(tubes);
    assert!(eventually(|| stranger(&simulator).is_ok()));
}

#[test]
fn who_opens_nothing_is_not_waited_for_and_who_has_opened_may_be_silent() {
    let simulator = Simulator::usual();
    let silent = Tube::connect(&simulator.socket()).unwrap();
    let idle = stranger(&simulator).unwrap();
    let mut client = claimed(&simulator, NVME);
    let deadline = Deadline::after(Duration::from_secs(20));
    for tube in [&silent, &idle] {
        let closed = || {
            // What was sent before is not the end: only a read of nothing is.
            let mut bytes = [0; 4096];
            matches!(
                rustix::net::recv(tube, &mut bytes, rustix::net::RecvFlags::DONTWAIT),
                Ok((0, _))
            )
        };
        while !closed() {
            let ready = poll::wait(&[Source::readable(tube, ())], Some(deadline)).unwrap();
            assert!(!ready.is_empty(), "an idle connection stays for ever");
        }
    }
    client.config_read(0, 4).unwrap();
}

#[test]
fn descriptors_beside_messages_that_want_none_are_closed() {
    let simulator = Simulator::usual();
    let mut tube = stranger(&simulator).unwrap();
    let descriptors =
        || std::fs::read_dir(format!("/proc/{}/fd", simulator.pid())).unwrap().count();
    let before = descriptors();
    let null = std::fs::File::open("/dev/null").unwrap();
    let call = Request::Call { selector: 0, inputs: vec![], outputs: 6, backing: None };
    for id in 0..100 {
        for request in [&Request::Services, &call, &Request::Open { service: 1, kind: 0 }] {
            tube.send(id, request, &[null.as_fd(); 32], soon()).unwrap();
            tube.receive::<Reply>(soon()).unwrap();
        }
    }
    assert!(descriptors() <= before, "{before} before, {} after", descriptors());
}

#[test]
fn a_client_has_so_many_lines_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("dext");
    let mut dext = Command::new(program("dext-sim"));
    dext.args(["--exit-with-stdin", "--device=01:00.0=probe", "--socket"]).arg(&socket);
    dext.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut dext = dext.spawn().unwrap();
    dext.stdout.take().unwrap().read_exact(&mut [0; 5]).unwrap();
    let mut tube = Tube::connect(&socket).unwrap();
    tube.handshake(Role::DextClient, Role::Dext, soon()).unwrap();
    for id in 0..5000 {
        tube.send(id, &[0xffu64; 4], &[], soon()).unwrap();
        let Reply::Return { code, .. } = tube.receive::<Reply>(soon()).unwrap().message else {
            panic!("another reply");
        };
        assert_eq!(code, IoReturn::BAD_ARGUMENT);
    }
    drop((tube, dext.stdin.take()));
    let mut said = String::new();
    dext.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    dext.wait().unwrap();
    let lines = said.lines().count();
    assert!((1..=9).contains(&lines), "{lines}: {said}");
    assert!(said.contains("no more lines of this connection"), "{said}");
}

/// Opens a function with a descriptor of our own for completions.
fn open_with(simulator: &Simulator, function: usize, completion: &OwnedFd) -> (Tube, IoReturn) {
    let service = registry(simulator).services().unwrap()[function].id;
    let mut tube = stranger(simulator).unwrap();
    let open = Request::Open { service, kind: CLIENT_TYPE };
    let code = returned(&mut tube, &open, &[completion.as_fd()]);
    (tube, code)
}

fn returned(
    tube: &mut Tube,
    request: &Request,
    handles: &[std::os::fd::BorrowedFd<'_>],
) -> IoReturn {
    tube.send(1, request, handles, soon()).unwrap();
    match tube.receive::<Reply>(soon()).unwrap().message {
        Reply::Return { code, .. } => code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_would_block_whoever_signals_it_is_no_event() {
    let simulator = Simulator::usual();
    let (_read, pipe) = std::io::pipe().unwrap();
    let (_other, socket) = UnixStream::pair().unwrap();
    let file = tempfile::tempfile().unwrap();
    for bad in [pipe.into(), socket.into(), file.into()] {
        assert_eq!(open_with(&simulator, 1, &bad).1, IoReturn::BAD_ARGUMENT);
    }
    let good = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    assert_eq!(open_with(&simulator, 1, &good).1, IoReturn::SUCCESS);
}

#[test]
fn an_event_that_is_full_holds_up_nothing() {
    let simulator = two_probes();
    // Whoever writes to it waits until somebody reads, and nobody does.
    let full = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let (mut ill, opened) = open_with(&simulator, 1, &full);
    assert_eq!(opened, IoReturn::SUCCESS);
    let call = |selector: u32, outputs: u32| Request::Call {
        selector,
        inputs: vec![],
        outputs,
        backing: None,
    };
    assert_eq!(returned(&mut ill, &call(selector::CLAIM, 0), &[]), IoReturn::SUCCESS);
    assert_eq!(returned(&mut ill, &call(selector::SETUP_INTERRUPTS, 1), &[]), IoReturn::SUCCESS);
    let arm = Request::CallAsync { selector: selector::WAIT_INTERRUPT, inputs: vec![] };
    for vector in 0..3 {
        assert_eq!(returned(&mut ill, &arm, &[]), IoReturn::SUCCESS);
        let raise = serde_json::json!({ "raise": { "address": PROBE, "vector": vector } });
        assert_eq!(simulator.control(&raise), "done");
    }
    works(&mut claimed(&simulator, NVME));
    works(&mut claimed(&simulator, PROBE));
}

#[test]
fn what_is_handed_out_cannot_be_sealed_against_whoever_comes_next() {
    let simulator = two_probes();
    let mut ill = raw(&simulator, 1);
    ill.call(selector::SETUP_INTERRUPTS, &[], &mut [0], None).unwrap();
    ill.call(selector::ALLOCATE_DMA_BUFFER, &[4096, 0], &mut [0; 6], None).unwrap();
    for kind in [memory::BAR0, memory::BAR0 + 2, memory::INTERRUPT_STATE, memory::DMA_BUFFER] {
        let handed = ill.map(kind).unwrap().memory.unwrap();
        for seal in [SealFlags::FUTURE_WRITE, SealFlags::SEAL, SealFlags::GROW] {
            let sealed = rustix::fs::fcntl_add_seals(&handed, seal);
            assert_eq!(sealed, Err(rustix::io::Errno::PERM), "{kind} {seal:?}");
        }
    }
    drop(ill);
    // Whoever claimed first takes the open device along when it is gone, whatever others claimed meanwhile.
    simulator.assert_released(PROBE);
    works(&mut claimed(&simulator, PROBE));
}

#[test]
fn there_are_so_many_conversations_and_one_more_is_closed() {
    let simulator = Simulator::usual();
    let control = simulator.socket().with_file_name("control");
    let _silent: Vec<_> = (0..16).map(|_| UnixStream::connect(&control).unwrap()).collect();
    let mut more = UnixStream::connect(&control).unwrap();
    assert_eq!(std::io::Read::read(&mut more, &mut [0]).unwrap(), 0);
}

#[test]
fn a_conversation_that_says_nothing_holds_up_no_other() {
    let simulator = Simulator::usual();
    let control = simulator.socket().with_file_name("control");
    let _silent: Vec<_> = (0..4).map(|_| UnixStream::connect(&control).unwrap()).collect();
    assert_eq!(simulator.held(PROBE), (0, 0, 0, false));
}
