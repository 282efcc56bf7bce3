//! A small NVMe driver, as a guest would have one: registers through the BAR window, queues in
//! guest memory, completions by MSI-X.

use std::time::Duration;

use ipc::{Deadline, Event, Window};

use crate::Failure;

const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;

/// Entries of each queue.
const ENTRIES: u16 = 64;
const PAGE: u64 = 4096;
/// Bytes of a block.
pub(crate) const BLOCK: u64 = 512;
/// Largest transfer of one command.
pub(crate) const MAX_TRANSFER: u64 = 128 << 10;

/// How long the controller may take for anything.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Says whether the processes behind the device live, and why not.
pub(crate) type Alive<'a> = &'a dyn Fn() -> Result<(), Failure>;

/// Guest memory and who hands it out.
pub(crate) struct Memory<'m> {
    pub(crate) window: &'m Window,
    pub(crate) base: u64,
    next: u64,
}

impl<'m> Memory<'m> {
    pub(crate) fn new(window: &'m Window, base: u64) -> Self {
        Self { window, base, next: 0 }
    }

    /// Pages that nobody has: their offset.
    pub(crate) fn take(&mut self, bytes: u64) -> Result<u64, Failure> {
        let at = self.next;
        self.next += bytes.next_multiple_of(PAGE);
        if self.next > self.window.length() as u64 {
            return Err("the demo's guest memory is used up".into());
        }
        Ok(at)
    }
}

/// A submission queue with its completion queue.
struct Queue {
    number: u16,
    submission: u64,
    completion: u64,
    tail: u16,
    head: u16,
    phase: bool,
    in_flight: u16,
    next_id: u16,
    lists: u64,
}

/// The controller.
pub(crate) struct Nvme<'m> {
    registers: &'m Window,
    memory: &'m Window,
    base: u64,
    admin: Queue,
    io: Vec<Queue>,
    events: &'m [Event],
    /// Blocks of the namespace.
    pub(crate) blocks: u64,
    /// What Identify says.
    pub(crate) model: String,
    /// Interrupts taken, by vector.
    pub(crate) interrupts: Vec<u64>,
    alive: Alive<'m>,
}

/// A transfer: blocks of the disk and where in guest memory.
#[derive(Clone, Copy)]
pub(crate) struct Transfer {
    pub(crate) write: bool,
    pub(crate) block: u64,
    pub(crate) bytes: u64,
    pub(crate) memory: u64,
}

impl Queue {
    fn new(number: u16, memory: &mut Memory<'_>) -> Result<Self, Failure> {
        let submission = memory.take(64 * u64::from(ENTRIES))?;
        let completion = memory.take(16 * u64::from(ENTRIES))?;
        // What a controller said there before it was removed is no news.
        memory.window.copy_in(completion, &[0; 16 * ENTRIES as usize])?;
        Ok(Self {
            number,
            submission,
            completion,
            tail: 0,
            head: 0,
            phase: true,
            in_flight: 0,
            next_id: 0,
            lists: memory.take(PAGE * u64::from(ENTRIES))?,
        })
    }
}

impl<'m> Nvme<'m> {
    /// Brings the controller up with one I/O queue for each event after the first.
    pub(crate) fn start(
        registers: &'m Window,
        memory: &mut Memory<'m>,
        events: &'m [Event],
        alive: Alive<'m>,
    ) -> Result<Self, Failure> {
        let mut nvme = Self {
            registers,
            memory: memory.window,
            base: memory.base,
            admin: Queue::new(0, memory)?,
            io: Vec::new(),
            events,
            blocks: 0,
            model: String::new(),
            interrupts: vec![0; events.len()],
            alive,
        };
        nvme.enable()?;
        let page = memory.take(PAGE)?;
        nvme.identify(page)?;
        for number in 1..events.len() {
            let queue = Queue::new(u16::try_from(number)?, memory)?;
            nvme.create(&queue)?;
            nvme.io.push(queue);
        }
        Ok(nvme)
    }

    fn enable(&mut self) -> Result<(), Failure> {
        self.registers.store_u32(CC, 0)?;
        self.until_ready(false)?;
        let entries = u32::from(ENTRIES - 1);
        self.registers.write(AQA, entries << 16 | entries)?;
        self.registers.write(ASQ, self.base + self.admin.submission)?;
        self.registers.write(ACQ, self.base + self.admin.completion)?;
        // Entries of 64 and 16 bytes, enable.
        self.registers.store_u32(CC, 6 << 16 | 4 << 20 | 1)?;
        self.until_ready(true)
    }

    /// Stops the controller in order.
    pub(crate) fn stop(&mut self) -> Result<(), Failure> {
        self.registers.store_u32(CC, 0)?;
        self.until_ready(false)
    }

    fn until_ready(&self, ready: bool) -> Result<(), Failure> {
        let deadline = Deadline::after(TIMEOUT);
        while self.registers.load_u32(CSTS)? & 1 != u32::from(ready) {
            (self.alive)()?;
            if deadline.passed() {
                return Err(format!("the controller did not become ready={ready}").into());
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    fn identify(&mut self, page: u64) -> Result<(), Failure> {
        let at = self.base + page;
        self.admin([(0, 0x06), (6, at), (10, 1)], &[])?;
        let mut model = [0; 40];
        self.memory.copy_out(page + 24, &mut model)?;
        self.model = String::from_utf8_lossy(&model).trim().to_owned();
        self.admin([(0, 0x06), (6, at), (10, 0)], &[(1, 1)])?;
        self.blocks = self.memory.read(page)?;
        Ok(())
    }

    fn create(&mut self, queue: &Queue) -> Result<(), Failure> {
        let number = u64::from(queue.number);
        let size = u64::from(ENTRIES - 1) << 16 | number;
        let completion = self.base + queue.completion;
        let submission = self.base + queue.submission;
        // Contiguous, interrupts enabled, on the vector of the queue's number.
        self.admin([(0, 0x05), (6, completion), (10, size)], &[(11, number << 16 | 3)])?;
        self.admin([(0, 0x01), (6, submission), (10, size)], &[(11, number << 16 | 1)])
    }

    /// One admin command from (word, value) pairs; words 6 and 8 are 64 bits wide.
    fn admin(&mut self, words: [(usize, u64); 3], more: &[(usize, u64)]) -> Result<(), Failure> {
        let mut command = [0; 64];
        for (word, value) in words.iter().chain(more) {
            let width = if *word == 6 { 8 } else { 4 };
            command[4 * word..4 * word + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        submit(self.memory, &mut self.admin, &mut command)?;
        ring(self.registers, &self.admin)?;
        while self.admin.in_flight > 0 {
            self.interrupts[0] += wait(&self.events[0], self.alive)?;
            reap(self.registers, self.memory, &mut self.admin)?;
        }
        Ok(())
    }

    /// Submits transfers, one for each queue in turn, until all are in flight or no queue has room.
    fn fill(&mut self, waiting: &mut std::slice::Iter<'_, Transfer>) -> Result<(), Failure> {
        let mut full = false;
        while !full {
            full = true;
            for queue in self.io.iter_mut().filter(|queue| queue.in_flight < ENTRIES / 4) {
                let Some(transfer) = waiting.next() else {
                    break;
                };
                let mut command = data_command(self.memory, self.base, queue, transfer)?;
                submit(self.memory, queue, &mut command)?;
                full = false;
            }
        }
        self.io.iter().try_for_each(|queue| ring(self.registers, queue))
    }

    /// Carries out transfers, spread over all queues, as many at once as fit.
    pub(crate) fn transfer(&mut self, transfers: &[Transfer]) -> Result<(), Failure> {
        let mut waiting = transfers.iter();
        loop {
            let mut idle = true;
            self.fill(&mut waiting)?;
            for queue in &mut self.io {
                if queue.in_flight == 0 {
                    continue;
                }
                idle = false;
                let vector = usize::from(queue.number);
                self.interrupts[vector] += wait(&self.events[vector], self.alive)?;
                reap(self.registers, self.memory, queue)?;
            }
            (self.alive)()?;
            if idle {
                return Ok(());
            }
        }
    }
}

/// A read or write command, its PRP list in the queue's own pages.
fn data_command(
    memory: &Window,
    base: u64,
    queue: &Queue,
    transfer: &Transfer,
) -> Result<[u8; 64], Failure> {
    let mut command = [0; 64];
    let blocks = transfer.bytes / BLOCK;
    let address = base + transfer.memory;
    let pages = transfer.bytes.div_ceil(PAGE);
    let list = queue.lists + PAGE * u64::from(queue.next_id % ENTRIES);
    let second = match pages {
        0 | 1 => 0,
        2 => address + PAGE,
        _ => {
            for page in 1..pages {
                memory.write(list + 8 * (page - 1), address + PAGE * page)?;
            }
            base + list
        }
    };
    command[0] = if transfer.write { 0x01 } else { 0x02 };
    command[4] = 1;
    command[24..32].copy_from_slice(&address.to_le_bytes());
    command[32..40].copy_from_slice(&second.to_le_bytes());
    command[40..48].copy_from_slice(&transfer.block.to_le_bytes());
    command[48..52].copy_from_slice(&u32::try_from(blocks - 1)?.to_le_bytes());
    Ok(command)
}

/// Puts a command in the queue, with the next number.
fn submit(memory: &Window, queue: &mut Queue, command: &mut [u8; 64]) -> Result<(), Failure> {
    command[2..4].copy_from_slice(&queue.next_id.to_le_bytes());
    queue.next_id = queue.next_id.wrapping_add(1);
    memory.copy_in(queue.submission + 64 * u64::from(queue.tail), command)?;
    queue.tail = (queue.tail + 1) % ENTRIES;
    queue.in_flight += 1;
    Ok(())
}

/// The submission doorbell.
fn ring(registers: &Window, queue: &Queue) -> Result<(), Failure> {
    Ok(registers.store_u32(DOORBELLS + 8 * u64::from(queue.number), queue.tail.into())?)
}

/// Waits for a vector; one interrupt taken. Ends at once when `alive` says that there is nobody
/// left to send it.
pub(crate) fn wait(event: &Event, alive: Alive<'_>) -> Result<u64, Failure> {
    let deadline = Deadline::after(TIMEOUT);
    while !event.wait(Deadline::after(Duration::from_millis(20)))? {
        alive()?;
        if deadline.passed() {
            return Err("no interrupt came within 5 s".into());
        }
    }
    Ok(1)
}

/// Takes every completion that is there.
fn reap(registers: &Window, memory: &Window, queue: &mut Queue) -> Result<(), Failure> {
    let before = queue.head;
    loop {
        let status = memory.load_u32(queue.completion + 16 * u64::from(queue.head) + 12)?;
        if (status >> 16) & 1 != u32::from(queue.phase) {
            break;
        }
        if status >> 17 != 0 {
            return Err(format!("queue {}: status {:#x}", queue.number, status >> 17).into());
        }
        queue.in_flight -= 1;
        queue.head = (queue.head + 1) % ENTRIES;
        if queue.head == 0 {
            queue.phase = !queue.phase;
        }
    }
    if queue.head != before {
        registers.store_u32(DOORBELLS + 8 * u64::from(queue.number) + 4, queue.head.into())?;
    }
    Ok(())
}
