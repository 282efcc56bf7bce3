//! An NVMe driver whose state is in guest memory, as that of a guest's driver is: whoever maps the memory goes on with
//! it. Registers through the window, completions by MSI-X or found in memory.

use std::time::{Duration, Instant};

use cordon_vmm::{Deadline, Event, Window};

use crate::Failure;

/// Guest memory of a controller's driver, in bytes.
pub(crate) const SIZE: u64 = 16 << 20;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;
const ENTRIES: u64 = 32;
const PAGE: u64 = 4096;
/// Queues 0 and 1: submissions, and completions a page behind.
const QUEUES: [u64; 2] = [0x1000, 0x3000];
/// Lists of pages, one for each command.
const LISTS: u64 = 0x1_0000;
/// What is written, and where it is read to.
const WRITTEN: u64 = 0x10_0000;
const READ: u64 = 0x80_0000;
/// Pages of one command: as many as the controller takes.
const PAGES: u64 = 128;
/// Commands that are given at once.
pub(crate) const AT_ONCE: u64 = 8;
const BYTES: u64 = PAGES * PAGE;
const LONGEST: Duration = Duration::from_secs(30);

/// What the driver remembers, each 8 bytes of the first page of guest memory.
#[derive(Clone, Copy)]
pub(crate) enum Word {
    /// How often the program was killed.
    Kills = 0,
    /// With commands of which no completion had come.
    InFlight = 8,
    /// Of the pattern on the disk.
    Seed = 16,
    /// Bytes that were compared.
    Verified = 24,
    /// Interrupts that were taken.
    Interrupts = 32,
    /// Whether the next instance is to have the first controller only.
    Alone = 40,
    /// Of the queues: tail, head, and the phase that is news; the second queue 24 bytes behind.
    Tail = 64,
    Head = 72,
    Phase = 80,
}

/// A controller.
pub(crate) struct Nvme<'m> {
    pub(crate) registers: &'m Window,
    pub(crate) memory: &'m Window,
    /// Where that is in the guest.
    pub(crate) base: u64,
    pub(crate) events: &'m [Event],
}

/// Words of a command, by their numbers; 6 and 8 are 64 bits wide.
type Words<'w> = &'w [(usize, u64)];

impl Nvme<'_> {
    pub(crate) fn word(&self, word: Word) -> Result<u64, Failure> {
        Ok(self.memory.read(word as u64)?)
    }

    pub(crate) fn set(&self, word: Word, value: u64) -> Result<(), Failure> {
        Ok(self.memory.write(word as u64, value)?)
    }

    fn queue(&self, number: usize, word: Word) -> Result<u64, Failure> {
        Ok(self.memory.read(word as u64 + 24 * u64::try_from(number)?)?)
    }

    fn set_queue(&self, number: usize, word: Word, value: u64) -> Result<(), Failure> {
        Ok(self.memory.write(word as u64 + 24 * u64::try_from(number)?, value)?)
    }

    /// CC and CSTS.
    pub(crate) fn state(&self) -> Result<(u32, u32), Failure> {
        Ok((self.registers.load_u32(CC)?, self.registers.load_u32(CSTS)?))
    }

    /// Brings it up, with one queue of its own and one for data.
    pub(crate) fn start(&self) -> Result<(), Failure> {
        self.registers.store_u32(CC, 0)?;
        self.until_ready(0)?;
        let entries = u32::try_from(ENTRIES - 1)?;
        self.registers.write(AQA, entries << 16 | entries)?;
        for (at, address) in [(ASQ, self.base + QUEUES[0]), (ACQ, self.base + QUEUES[0] + PAGE)] {
            self.registers.write(at, u32::try_from(address & 0xffff_ffff)?)?;
            self.registers.write(at + 4, u32::try_from(address >> 32)?)?;
        }
        self.registers.store_u32(CC, 6 << 16 | 4 << 20 | 1)?;
        self.until_ready(1)?;
        for number in [0, 1] {
            self.set_queue(number, Word::Phase, 1)?;
        }
        let size = (ENTRIES - 1) << 16 | 1;
        let (submission, completion) = (self.base + QUEUES[1], self.base + QUEUES[1] + PAGE);
        self.submit(0, &[(0, 0x05), (6, completion), (10, size), (11, 1 << 16 | 3)])?;
        self.done(0, 1)?;
        self.submit(0, &[(0, 0x01), (6, submission), (10, size), (11, 1 << 16 | 1)])?;
        self.done(0, 1)
    }

    fn until_ready(&self, ready: u32) -> Result<(), Failure> {
        let began = Instant::now();
        while self.registers.load_u32(CSTS)? & 1 != ready {
            if began.elapsed() > LONGEST {
                return Err(format!("the controller did not become ready={ready}").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Puts a command into a queue; the tail of that.
    fn put(&self, number: usize, words: Words<'_>) -> Result<u32, Failure> {
        let tail = self.queue(number, Word::Tail)?;
        let mut command = [0; 64];
        for (word, value) in words {
            let width = if matches!(word, 6 | 8) { 8 } else { 4 };
            command[4 * word..4 * word + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        self.memory.copy_in(QUEUES[number] + 64 * tail, &command)?;
        let tail = (tail + 1) % ENTRIES;
        self.set_queue(number, Word::Tail, tail)?;
        Ok(u32::try_from(tail)?)
    }

    fn ring(&self, number: usize, tail: u32) -> Result<(), Failure> {
        Ok(self.registers.store_u32(DOORBELLS + 8 * u64::try_from(number)?, tail)?)
    }

    fn submit(&self, number: usize, words: Words<'_>) -> Result<(), Failure> {
        let tail = self.put(number, words)?;
        self.ring(number, tail)
    }

    /// Takes what a queue has completed; how many, all of which must have succeeded.
    fn reap(&self, number: usize) -> Result<u64, Failure> {
        let mut taken = 0;
        loop {
            let head = self.queue(number, Word::Head)?;
            let phase = self.queue(number, Word::Phase)?;
            let status = self.memory.load_u32(QUEUES[number] + PAGE + 16 * head + 12)? >> 16;
            if u64::from(status & 1) != phase {
                break;
            }
            if status >> 1 != 0 {
                return Err(format!("queue {number}: status {:#x}", status >> 1).into());
            }
            taken += 1;
            let head = (head + 1) % ENTRIES;
            self.set_queue(number, Word::Head, head)?;
            if head == 0 {
                self.set_queue(number, Word::Phase, 1 - phase)?;
            }
        }
        if taken > 0 {
            let head = u32::try_from(self.queue(number, Word::Head)?)?;
            self.registers.store_u32(DOORBELLS + 8 * u64::try_from(number)? + 4, head)?;
        }
        Ok(taken)
    }

    /// Waits for the queue's interrupts until so many commands are completed.
    fn done(&self, number: usize, commands: u64) -> Result<(), Failure> {
        let (mut left, until) = (commands, Deadline::after(LONGEST));
        while left > 0 {
            if !self.events[number].wait(until)? {
                return Err(format!("queue {number}: {left} commands, and no interrupt").into());
            }
            self.set(Word::Interrupts, self.word(Word::Interrupts)? + 1)?;
            left = left.checked_sub(self.reap(number)?).ok_or("a command is completed twice")?;
        }
        Ok(())
    }

    /// Waits without interrupts until so many commands are completed: nobody was there to be woken.
    pub(crate) fn found(&self, commands: u64) -> Result<(), Failure> {
        let (mut left, began) = (commands, Instant::now());
        while left > 0 {
            left = left.checked_sub(self.reap(1)?).ok_or("a command is completed twice")?;
            if began.elapsed() > LONGEST {
                return Err(format!("{left} commands that were in flight are not completed").into());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// Puts reads, or writes, of everything into the queue, as many as are given at once; the tail.
    fn put_all(&self, write: bool) -> Result<u32, Failure> {
        let (opcode, from) = if write { (0x01, WRITTEN) } else { (0x02, READ) };
        let mut tail = 0;
        for command in 0..AT_ONCE {
            let (at, list) = (from + command * BYTES, LISTS + command * PAGE);
            for page in 1..PAGES {
                self.memory.write(list + 8 * (page - 1), self.base + at + page * PAGE)?;
            }
            let (block, blocks) = (command * BYTES / 512, BYTES / 512 - 1);
            let words = [
                (0, opcode),
                (1, 1),
                (6, self.base + at),
                (8, self.base + list),
                (10, block),
                (12, blocks),
            ];
            tail = self.put(1, &words)?;
        }
        Ok(tail)
    }

    /// Writes a pattern to the disk that differs by `seed`, by interrupts.
    pub(crate) fn write(&self, seed: u64) -> Result<(), Failure> {
        self.set(Word::Seed, seed)?;
        self.memory.copy_in(WRITTEN, &pattern(seed))?;
        let tail = self.put_all(true)?;
        self.ring(1, tail)?;
        self.done(1, AT_ONCE)
    }

    /// Has everything read back and waits for it, by interrupts.
    pub(crate) fn read(&self) -> Result<(), Failure> {
        self.clear()?;
        let tail = self.put_all(false)?;
        self.ring(1, tail)?;
        self.done(1, AT_ONCE)
    }

    fn clear(&self) -> Result<(), Failure> {
        Ok(self.memory.copy_in(READ, &vec![0; usize::try_from(AT_ONCE * BYTES)?])?)
    }

    /// Has everything read back and does not wait for it. Whether completions are still to come then is written down.
    pub(crate) fn read_and_leave(&self) -> Result<(), Failure> {
        self.clear()?;
        let tail = self.put_all(false)?;
        self.set(Word::Kills, self.word(Word::Kills)? + 1)?;
        let (head, phase) = (self.queue(1, Word::Head)?, self.queue(1, Word::Phase)?);
        let last = (head + AT_ONCE - 1) % ENTRIES;
        let news = if last < head { 1 - phase } else { phase };
        let at = QUEUES[1] + PAGE + 16 * last + 12;
        let in_flight = self.word(Word::InFlight)?;
        self.ring(1, tail)?;
        let is_done = u64::from((self.memory.load_u32(at)? >> 16) & 1) == news;
        self.set(Word::InFlight, in_flight + u64::from(!is_done))
    }

    /// Compares what was read with what is on the disk.
    pub(crate) fn verify(&self) -> Result<(), Failure> {
        let expected = pattern(self.word(Word::Seed)?);
        let mut found = vec![0; expected.len()];
        self.memory.copy_out(READ, &mut found)?;
        if found != expected {
            let at = found.iter().zip(&expected).position(|(one, other)| one != other);
            return Err(format!("what was read differs from what was written at {at:?}").into());
        }
        self.set(Word::Verified, self.word(Word::Verified)? + found.len() as u64)
    }
}

fn pattern(seed: u64) -> Vec<u8> {
    let words = 0..AT_ONCE * BYTES / 8;
    words
        .flat_map(|word| (word ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect()
}
