//! The controller driven by hand, without its thread: what it does to guest memory, and when.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ipc::{Access, SharedMemory, Window};

use super::*;
use crate::config_space::{BUS_MASTER, MEMORY_SPACE};
use crate::faults::Faults;
use crate::memory::{Budget, ClientMemory};
use crate::options::DartMode;

/// Where guest memory begins on the bus, and how much there is.
const RAM: u64 = 0x10_0000;
const SIZE: u64 = 0x1_0000;
/// Where things are in it.
const ADMIN_COMMANDS: u64 = 0x0000;
const ADMIN_COMPLETIONS: u64 = 0x1000;
const COMMANDS: u64 = 0x2000;
const COMPLETIONS: u64 = 0x3000;
const DATA: u64 = 0x4000;
/// Memory of its own, whose owner can shorten it: one page at each.
#[cfg(target_os = "linux")]
const COMMANDS_APART: u64 = 0x20_0000;
#[cfg(target_os = "linux")]
const DATA_APART: u64 = 0x30_0000;
#[cfg(target_os = "linux")]
const COMPLETIONS_APART: u64 = 0x40_0000;

struct Bench {
    hardware: Hardware,
    controller: Controller,
    ram: Window,
    budget: Arc<Budget>,
}

impl Bench {
    fn new() -> Self {
        let hardware =
            Hardware::new(&shape(4), DartMode::Identity, &Arc::new(Faults::default())).unwrap();
        hardware.config().set_command(MEMORY_SPACE | BUS_MASTER, 0);
        let memory = SharedMemory::create("guest", SIZE).unwrap();
        let ram = memory.map_all(Access::ReadWrite).unwrap();
        let controller = Controller::new(1 << 20, 4, None, 1).unwrap();
        let mut bench = Self { hardware, controller, ram, budget: Budget::of_one_in(1) };
        bench.map(RAM, &memory.into_fd(), SIZE);
        bench.controller.reset(&bench.hardware);
        bench
    }

    fn map(&self, bus: u64, file: &OwnedFd, size: u64) {
        let memory = ClientMemory::map(file, size, Access::ReadWrite, &self.budget).unwrap();
        self.hardware.dart.map(1, bus, Arc::new(memory), 0, size).unwrap();
    }

    /// A page of memory of its own.
    #[cfg(target_os = "linux")]
    fn page_apart(&self, bus: u64) -> OwnedFd {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = rustix::fs::memfd_create("apart", flags).unwrap();
        rustix::fs::ftruncate(&file, 0x1000).unwrap();
        self.map(bus, &file, 0x1000);
        file
    }

    fn registers(&self) -> &Window {
        self.hardware.registers(0).unwrap()
    }

    fn poll(&mut self) {
        for _ in 0..100 {
            self.controller.poll(&self.hardware);
        }
    }

    fn status(&self) -> u32 {
        self.registers().load_u32(CSTS).unwrap()
    }

    fn configure(&mut self, enable: bool) {
        self.registers().store_u32(CC, u32::from(enable) | 6 << 16 | 4 << 20).unwrap();
        self.poll();
    }

    /// As a guest's driver does it, with the admin queues at these bus addresses.
    fn enable_at(&mut self, commands: u64, completions: u64) {
        self.registers().write(AQA, 15u32 << 16 | 15).unwrap();
        self.registers().write(ASQ, commands).unwrap();
        self.registers().write(ACQ, completions).unwrap();
        self.configure(true);
    }

    fn enable(&mut self) {
        self.enable_at(RAM + ADMIN_COMMANDS, RAM + ADMIN_COMPLETIONS);
        assert_eq!(self.status(), READY);
    }

    fn ring(&self, queue: u64, tail: u32) {
        self.registers().store_u32(DOORBELLS + 8 * queue, tail).unwrap();
    }

    fn put(&self, at: u64, command: &[u8; 64]) {
        self.ram.copy_in(at, command).unwrap();
    }

    /// Status of the completion at `at`, if its phase bit is that of the first round.
    fn completion(&self, at: u64) -> Option<u16> {
        let status = self.ram.read::<u16>(at + 14).unwrap();
        (status & 1 == 1).then_some(status >> 1)
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.ram.length()];
        self.ram.copy_out(0, &mut bytes).unwrap();
        bytes
    }

    /// I/O queue 1, by admin commands 0 and 1, its completions at `completions`.
    fn make_queue(&mut self, completions: u64) {
        let size = 15 << 16 | 1;
        self.put(ADMIN_COMMANDS, &command(0x05, completions, [size, 1]));
        self.put(ADMIN_COMMANDS + 64, &command(0x01, RAM + COMMANDS, [size, 1 << 16 | 1]));
        self.ring(0, 2);
        self.poll();
        for entry in 0..2 {
            assert_eq!(self.completion(ADMIN_COMPLETIONS + 16 * entry), Some(0));
        }
    }
}

fn command(opcode: u8, data: u64, words: [u32; 2]) -> [u8; 64] {
    let mut bytes = [0; 64];
    (bytes[0], bytes[2], bytes[4]) = (opcode, 7, 1);
    bytes[24..32].copy_from_slice(&data.to_le_bytes());
    bytes[40..44].copy_from_slice(&words[0].to_le_bytes());
    bytes[44..48].copy_from_slice(&words[1].to_le_bytes());
    bytes
}

/// Identify of the controller, to `data`.
fn identify_to(data: u64) -> [u8; 64] {
    command(0x06, data, [1, 0])
}

/// A read of block 0, to `data`.
fn read_to(data: u64) -> [u8; 64] {
    command(0x02, data, [0, 0])
}

/// Fills guest memory with what old queues may have left: commands that write to it.
fn leave_old_commands(bench: &Bench) {
    bench.ram.copy_in(0, &vec![0xa5; bench.ram.length()]).unwrap();
    for entry in 0..16 {
        bench.put(ADMIN_COMMANDS + 64 * entry, &identify_to(RAM + DATA));
        bench.put(COMMANDS + 64 * entry, &read_to(RAM + DATA));
    }
}

#[test]
fn doorbells_that_were_rung_before_enabling_mean_nothing() {
    let mut bench = Bench::new();
    leave_old_commands(&bench);
    let before = bench.memory();
    for queue in 0..5 {
        bench.ring(queue, 3);
    }
    bench.poll();
    bench.enable();
    bench.poll();
    assert!(bench.memory() == before, "guest memory changed");
    // From here on they mean what they say.
    bench.ring(0, 1);
    bench.poll();
    assert_eq!(bench.completion(ADMIN_COMPLETIONS), Some(0));
    assert_eq!(bench.completion(ADMIN_COMPLETIONS + 16), Some(0xa5a5 >> 1), "one command ran");
    assert_eq!(bench.ram.read::<u16>(DATA).unwrap(), 0xc0d0);
}

#[test]
fn a_reset_takes_the_queues_and_their_doorbells_with_it() {
    for function_level in [false, true] {
        let mut bench = Bench::new();
        bench.enable();
        bench.make_queue(RAM + COMPLETIONS);
        leave_old_commands(&bench);
        let before = bench.memory();
        if function_level {
            bench.controller.reset(&bench.hardware);
        } else {
            bench.configure(false);
        }
        // A guest that has noticed nothing goes on, and then sets the controller up again.
        for queue in 0..5 {
            bench.ring(queue, 5);
        }
        bench.poll();
        assert!(bench.memory() == before, "guest memory changed while disabled");
        bench.enable();
        for queue in 1..5 {
            bench.ring(queue, 6);
        }
        bench.poll();
        assert!(bench.memory() == before, "guest memory changed by a queue that is no more");
    }
}

#[test]
fn a_queue_begins_with_its_doorbell_at_zero() {
    let mut bench = Bench::new();
    bench.enable();
    leave_old_commands(&bench);
    bench.ring(1, 4);
    bench.make_queue(RAM + COMPLETIONS);
    bench.poll();
    assert_eq!(bench.completion(COMPLETIONS), Some(0xa5a5 >> 1), "nothing was completed");
    bench.ring(1, 1);
    bench.poll();
    assert_eq!(bench.completion(COMPLETIONS), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn data_in_memory_that_is_gone_is_a_transfer_error_of_that_command() {
    let mut bench = Bench::new();
    bench.enable();
    bench.make_queue(RAM + COMPLETIONS);
    let gone = bench.page_apart(DATA_APART);
    rustix::fs::ftruncate(&gone, 0).unwrap();
    let to_gone = both_directions(DATA_APART);
    for (entry, one) in (0..).zip(to_gone) {
        bench.put(COMMANDS + 64 * entry, &one);
    }
    bench.put(COMMANDS + 128, &read_to(RAM + DATA));
    bench.ring(1, 3);
    bench.poll();
    let statuses = [0, 16, 32].map(|entry| bench.completion(COMPLETIONS + entry));
    let failed = Some(Status::TransferError as u16);
    assert_eq!(statuses, [failed, failed, Some(0)]);
    assert_eq!(bench.status(), READY);
}

/// A read to `data` and a write from there.
#[cfg(target_os = "linux")]
fn both_directions(data: u64) -> [[u8; 64]; 2] {
    [read_to(data), command(0x01, data, [0, 0])]
}

#[cfg(target_os = "linux")]
#[test]
fn queues_in_memory_that_is_gone_are_a_fatal_status_of_that_controller() {
    let mut bench = Bench::new();
    let gone = bench.page_apart(COMMANDS_APART);
    bench.enable_at(COMMANDS_APART, RAM + ADMIN_COMPLETIONS);
    rustix::fs::ftruncate(&gone, 0).unwrap();
    bench.ring(0, 1);
    bench.poll();
    assert_eq!(bench.status(), FATAL);

    let mut bench = Bench::new();
    let gone = bench.page_apart(COMPLETIONS_APART);
    bench.enable();
    bench.make_queue(COMPLETIONS_APART);
    rustix::fs::ftruncate(&gone, 0).unwrap();
    bench.put(COMMANDS, &read_to(RAM + DATA));
    bench.ring(1, 1);
    bench.poll();
    assert_eq!(bench.status(), FATAL);
    // A reset makes it whole again.
    bench.configure(false);
    bench.enable();
}
