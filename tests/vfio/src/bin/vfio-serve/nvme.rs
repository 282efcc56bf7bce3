//! A driver for an NVMe controller behind a vfio-user socket: every register by a trapped access, every completion
//! found in memory.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use cordon_tests::vfio_user::{Client, words};
use cordon_vmm::{Deadline, Event};

use crate::Failure;

/// Where guest memory is in the guest, and its size.
pub(crate) const BASE: u64 = 0x8000_0000;
pub(crate) const SIZE: u64 = 4 << 20;
/// A part of it in which one controller has all that it needs.
pub(crate) const PART: u64 = SIZE / 2;
/// An address of nothing.
const NOWHERE: u64 = BASE + (1 << 30);
/// Registers.
const VERSION: u64 = 0x08;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;
/// Entries of each queue.
const ENTRIES: u16 = 8;
/// Where in guest memory the queues are, each with its completions a page behind it, then a page for answers, and data.
const QUEUES: [u64; 2] = [0, 0x2000];
const PAGE: u64 = 0x1000;
const ANSWER: u64 = 0x4000;
const DATA: u64 = 0x1_0000;
/// Pages of data that are written and read back.
const PAGES: u64 = 16;
const BLOCKS_OF_PAGE: u64 = PAGE / 512;
/// How long the controller may take.
const LONGEST: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Queue {
    tail: u16,
    head: u16,
    /// What a completion that is no news has.
    phase: bool,
}

/// A controller that is up.
pub(crate) struct Nvme<'c> {
    client: &'c mut Client,
    memory: &'c File,
    /// Where in that memory its part is.
    part: u64,
    queues: [Queue; 2],
    /// By which it says that there is a completion in the second queue.
    interrupt: Option<&'c Event>,
}

/// Words of a command, by their numbers; 6 is 64 bits wide.
type Words<'w> = &'w [(usize, u64)];

/// A register of 32 bits.
pub(crate) fn register(client: &mut Client, at: u64) -> Result<u32, Failure> {
    let bytes = client.read(0, at, 4);
    Ok(u32::from_le_bytes(bytes.as_slice().try_into()?))
}

/// SET_IRQS with an event for each vector of MSI-X from the first on.
const SET_IRQS: u16 = 8;
const EVENTS: u32 = 1 << 2 | 1 << 5;
const MSIX: u32 = 2;

/// Gives the controller's first vectors these events.
pub(crate) fn vectors(client: &mut Client, events: &[Event]) -> Result<(), Failure> {
    let signallers = events.iter().map(Event::signaller).collect::<Result<Vec<_>, _>>()?;
    let beside: Vec<_> = signallers.iter().map(|one| one.as_fd()).collect();
    let count = u32::try_from(events.len())?;
    match client.ask(SET_IRQS, &words(&[20, EVENTS, MSIX, 0, count]), &beside).error {
        0 => Ok(()),
        error => Err(format!("its interrupts are refused: {error}").into()),
    }
}

/// Whether it is enabled.
pub(crate) fn is_enabled(client: &mut Client) -> Result<bool, Failure> {
    Ok(register(client, CC)? & 1 != 0 && register(client, CSTS)? & 0b11 == 1)
}

/// The version that the controller says.
pub(crate) fn version(client: &mut Client) -> Result<u32, Failure> {
    register(client, VERSION)
}

impl<'c> Nvme<'c> {
    /// Brings a controller up with one queue of its own and one for data.
    pub(crate) fn start(client: &'c mut Client, memory: &'c File) -> Result<Self, Failure> {
        Self::start_in(client, memory, 0)
    }

    /// The same in another part of the memory, [`PART`] bytes from there on.
    pub(crate) fn start_in(
        client: &'c mut Client,
        memory: &'c File,
        part: u64,
    ) -> Result<Self, Failure> {
        Self::start_with(client, memory, part, None)
    }

    /// The same, whose vectors are this event and another one, which [`vectors`] set up: every completion of data is
    /// said by an interrupt.
    pub(crate) fn start_with(
        client: &'c mut Client,
        memory: &'c File,
        part: u64,
        interrupt: Option<&'c Event>,
    ) -> Result<Self, Failure> {
        // What a controller said there before is no news.
        memory.write_all_at(&vec![0; usize::try_from(DATA)?], part)?;
        let mut nvme = Self { client, memory, part, queues: Default::default(), interrupt };
        nvme.client.master_bus();
        nvme.store(CC, 0);
        nvme.until_ready(false)?;
        let entries = u32::from(ENTRIES - 1);
        nvme.store(AQA, entries << 16 | entries);
        let set = register(nvme.client, AQA)?;
        if set != entries << 16 | entries {
            return Err(format!("a register that was written reads {set:#x}").into());
        }
        for (at, address) in [(ASQ, nvme.bus(QUEUES[0])), (ACQ, nvme.bus(QUEUES[0] + PAGE))] {
            nvme.store(at, u32::try_from(address & 0xffff_ffff)?);
            nvme.store(at + 4, u32::try_from(address >> 32)?);
        }
        nvme.store(CC, 6 << 16 | 4 << 20 | 1);
        nvme.until_ready(true)?;
        let size = u64::from(ENTRIES - 1) << 16 | 1;
        let (submission, completion) = (nvme.bus(QUEUES[1]), nvme.bus(QUEUES[1] + PAGE));
        // Where interrupts are wanted, by vector 1.
        let how = if interrupt.is_some() { 1 | 1 << 1 | 1 << 16 } else { 1 };
        nvme.done(0, &[(0, 0x05), (6, completion), (10, size), (11, how)])?;
        nvme.done(0, &[(0, 0x01), (6, submission), (10, size), (11, 1 << 16 | 1)])?;
        Ok(nvme)
    }

    /// What the device reaches in its part of the memory.
    fn bus(&self, at: u64) -> u64 {
        BASE + self.part + at
    }

    fn store(&mut self, at: u64, value: u32) {
        self.client.write(0, at, &value.to_le_bytes());
    }

    fn until_ready(&mut self, ready: bool) -> Result<(), Failure> {
        let began = Instant::now();
        while register(self.client, CSTS)? & 1 != u32::from(ready) {
            if began.elapsed() > LONGEST {
                return Err(format!("the controller did not become ready={ready}").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Carries out a command: its status, 0 for success.
    fn command(&mut self, number: usize, words: Words<'_>) -> Result<u16, Failure> {
        let mut command = [0; 64];
        for (word, value) in words {
            let width = if *word == 6 { 8 } else { 4 };
            command[4 * word..4 * word + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        let (queue, place) = (&mut self.queues[number], self.part + QUEUES[number]);
        self.memory.write_all_at(&command, place + 64 * u64::from(queue.tail))?;
        queue.tail = (queue.tail + 1) % ENTRIES;
        let doorbell = DOORBELLS + 8 * u64::try_from(number)?;
        let (tail, began) = (u32::from(queue.tail), Instant::now());
        self.store(doorbell, tail);
        let queue = &mut self.queues[number];
        let at = place + PAGE + 16 * u64::from(queue.head) + 14;
        let status = loop {
            let mut bytes = [0; 2];
            self.memory.read_exact_at(&mut bytes, at)?;
            let status = u16::from_le_bytes(bytes);
            if (status & 1 != 0) != queue.phase {
                break status >> 1;
            }
            if began.elapsed() > LONGEST {
                return Err(format!("command {words:x?} is not completed").into());
            }
            std::thread::sleep(Duration::from_micros(200));
        };
        queue.head = (queue.head + 1) % ENTRIES;
        queue.phase ^= queue.head == 0;
        let head = u32::from(queue.head);
        if number == 1
            && let Some(interrupt) = self.interrupt
            && !interrupt.wait(Deadline::after(LONGEST))?
        {
            return Err("it completed a command, and no interrupt says so".into());
        }
        self.store(doorbell + 4, head);
        Ok(status)
    }

    /// A command that must succeed.
    fn done(&mut self, number: usize, words: Words<'_>) -> Result<(), Failure> {
        match self.command(number, words)? {
            0 => Ok(()),
            status => Err(format!("command {words:x?} ended with status {status:#x}").into()),
        }
    }

    /// The controller's name for itself, which it writes to memory.
    pub(crate) fn model(&mut self) -> Result<String, Failure> {
        self.done(0, &[(0, 0x06), (6, self.bus(ANSWER)), (10, 1)])?;
        let mut model = [0; 40];
        self.memory.read_exact_at(&mut model, self.part + ANSWER + 24)?;
        Ok(String::from_utf8_lossy(&model).trim().to_owned())
    }

    /// A read or write of one page of the disk.
    fn transfer(&mut self, write: bool, page: u64, address: u64) -> Result<u16, Failure> {
        let opcode = if write { 0x01 } else { 0x02 };
        let (block, blocks) = (page * BLOCKS_OF_PAGE, BLOCKS_OF_PAGE - 1);
        self.command(1, &[(0, opcode), (1, 1), (6, address), (10, block), (12, blocks)])
    }

    /// Writes pages that differ by `seed`, reads them back elsewhere and compares; the bytes compared.
    pub(crate) fn verify(&mut self, seed: u64) -> Result<u64, Failure> {
        let pattern: Vec<u8> = (0..PAGES * PAGE / 8)
            .flat_map(|word| (word ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect();
        let back = DATA + PAGES * PAGE;
        self.memory.write_all_at(&pattern, self.part + DATA)?;
        self.memory.write_all_at(&vec![0; pattern.len()], self.part + back)?;
        for (write, from) in [(true, DATA), (false, back)] {
            for page in 0..PAGES {
                let status = self.transfer(write, page, self.bus(from + page * PAGE))?;
                if status != 0 {
                    return Err(format!("page {page}, write {write}: status {status:#x}").into());
                }
            }
        }
        let mut found = vec![0; pattern.len()];
        self.memory.read_exact_at(&mut found, self.part + back)?;
        match found == pattern {
            true => Ok(pattern.len() as u64),
            false => Err("what was read is not what was written".into()),
        }
    }

    /// Has it write its name to an address that is not guest memory: the status of that, if it notices.
    pub(crate) fn reach_outside(&mut self) -> Result<u16, Failure> {
        self.command(0, &[(0, 0x06), (6, NOWHERE), (10, 1)])
    }
}
